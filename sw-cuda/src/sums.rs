//! Checksums of device memory, by kernels, where the bytes lie.
//!
//! ```text
//!  ranges ─► SumPlan ─► jobs in pinned memory ─copy─► jobs on the device ─► two kernels ─► jobs ─copy─► pinned ─► checksums
//! ```
//!
//! One stream of its own, so nobody's default stream is touched. Control plane: it waits, bounded.
// UNSAFETY: launches over memory whose regions are held, and copies between our own buffers.
#![expect(unsafe_code, reason = "driver calls")]

use std::ffi::c_void;
use std::time::Duration;

use sw_engine::ErrorKind;
use sw_engine::checksum::Algorithm;
use sw_kernels::crc::{self, SumPlan};
use sw_kernels::{Entry, PlanError};
use sw_mem::{ByteLen, DmaSpan, GpuVa, Place, index};

use crate::attribute::Attribute;
use crate::buffer::{DeviceBuffer, PinnedBuffer};
use crate::context::Context;
use crate::error::CudaError;
use crate::kernels::Kernels;
use crate::stream::Stream;
use crate::wait;

/// Ranges in one launch.
const RANGES_MAX: usize = 2048;
/// Bytes of a range as the device has it.
const JOB_BYTES: usize = 32;
/// Warps of a multiprocessor that sum at a time: what registers allow, 104 a thread for CRC-64 (from NVIDIA's assembler for sm_90).
const WARPS_PER_PROCESSOR: u64 = 16;
/// How long one launch may take: a whole device's memory at a hundredth of its rate.
const TIMEOUT: Duration = Duration::from_secs(60);
const CALL: &str = "checksum kernel";

/// A range of device memory.
#[derive(Clone, Copy, Debug)]
pub struct SumRange<'a> {
    /// The memory.
    pub memory: &'a DmaSpan,
    /// First byte of the range in it.
    pub at: u64,
    /// Bytes of the range, any number.
    pub len: ByteLen,
}

/// Sums ranges of one device's memory.
#[derive(Debug)]
pub struct DeviceSums {
    stream: Stream,
    jobs: DmaSpan,
    host: DmaSpan,
    warps: u64,
    lost: bool,
    // Last: launches are over before it goes (`wait`).
    kernels: Kernels,
}

impl DeviceSums {
    /// Loads the kernels of both checksums and takes 64 KiB on either side.
    ///
    /// # Errors
    /// As [`Kernels::load`]; the driver's.
    pub fn new(kernels: &Kernels) -> Result<Self, CudaError> {
        let context = kernels.context();
        for entry in [Entry::Crc32cSum, Entry::Crc32cFinish, Entry::Crc64Sum, Entry::Crc64Finish] {
            kernels.load(entry)?;
        }
        let bytes = ByteLen((RANGES_MAX * JOB_BYTES) as u64);
        let host = PinnedBuffer::allocate(context, bytes)?.into_region()?;
        let host = host.span(0, bytes).map_err(|_| ours(context, ErrorKind::Protocol, ""))?;
        let jobs = DeviceBuffer::allocate(context, bytes)?.into_region()?;
        let jobs = jobs.span(0, bytes).map_err(|_| ours(context, ErrorKind::Protocol, ""))?;
        let processors = context.device().attribute(Attribute::Multiprocessors)?;
        Ok(Self {
            stream: Stream::new(context)?,
            jobs,
            host,
            warps: u64::try_from(processors).unwrap_or(1).max(1) * WARPS_PER_PROCESSOR,
            lost: false,
            kernels: kernels.clone(),
        })
    }

    /// The checksums of `ranges`, in their order. What was written to them before this call is summed; nobody may write to them meanwhile,
    /// or the sums are of no content that ever was.
    ///
    /// *Blocking*: until the device has read every byte.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for memory of another device or of the host; `DeadlineExceeded` and what
    /// breaks the context, after which it takes nothing more (`Closed`) and what it summed stays allocated; the driver's.
    pub fn of(&mut self, algorithm: Algorithm, ranges: &[SumRange<'_>]) -> Result<Vec<u64>, CudaError> {
        let places = ranges.iter().map(|range| self.place_of(range)).collect::<Result<Vec<_>, _>>()?;
        let mut sums = Vec::with_capacity(ranges.len());
        for (places, ranges) in places.chunks(RANGES_MAX).zip(ranges.chunks(RANGES_MAX)) {
            sums.extend(self.launch(algorithm, places, ranges)?);
        }
        Ok(sums)
    }

    fn place_of(&self, range: &SumRange<'_>) -> Result<(GpuVa, ByteLen), CudaError> {
        let context = self.kernels.context();
        let Place::Device(device, base) = range.memory.place() else {
            return Err(ours(context, ErrorKind::ApiMisuse, "sum host memory on the host"));
        };
        if device != context.device().id() {
            return Err(ours(context, ErrorKind::ApiMisuse, "sum memory on the device that has it"));
        }
        let inside = range.at.checked_add(range.len.0).is_some_and(|end| end <= range.memory.len().0);
        let at = base.checked_add(ByteLen(range.at)).filter(|_| inside);
        at.map(|at| (at, range.len)).ok_or_else(|| ours(context, ErrorKind::OutOfRange, "ask for bytes that it has"))
    }

    fn launch(
        &mut self,
        algorithm: Algorithm,
        places: &[(GpuVa, ByteLen)],
        ranges: &[SumRange<'_>],
    ) -> Result<Vec<u64>, CudaError> {
        let context = self.kernels.context().clone();
        if self.lost {
            return Err(ours(&context, ErrorKind::Closed, "make a new one"));
        }
        let no_plan = |error: PlanError| {
            tracing::debug!(%error, "no checksums");
            ours(&context, ErrorKind::TooLarge, "ask for ranges below 256 GiB each")
        };
        let algorithm = match algorithm {
            Algorithm::Crc32c => crc::Algorithm::Crc32c,
            Algorithm::Crc64Nvme => crc::Algorithm::Crc64Nvme,
        };
        let plan = SumPlan::new(algorithm, places, self.warps).map_err(no_plan)?;
        let protocol = |_| ours(&context, ErrorKind::Protocol, "");
        self.host.write(0, plan.jobs()).map_err(protocol)?;
        self.copy(plan.jobs().len(), Way::ToDevice)?;
        let launched =
            plan.launches(GpuVa::new(self.jobs.place().raw())).map_err(no_plan)?.iter().try_for_each(|launch| {
                // SAFETY: the jobs are ours; the ranges lie in memory that `ranges` borrows, and that is kept if the wait fails. A read and
                // nothing else is done to them.
                unsafe { self.kernels.launch(launch, &self.stream) }
            });
        let copied = launched.and_then(|()| self.copy(plan.jobs().len(), Way::FromDevice));
        self.wait(ranges)?;
        copied?;
        let mut jobs = vec![0; plan.jobs().len()];
        self.host.read(0, &mut jobs).map_err(protocol)?;
        plan.sums(&jobs).map_err(no_plan)
    }

    fn copy(&self, len: usize, way: Way) -> Result<(), CudaError> {
        let context = self.kernels.context();
        let host = self.host.place().host().ok_or_else(|| ours(context, ErrorKind::Protocol, ""))?;
        let host = std::ptr::with_exposed_provenance_mut::<c_void>(index(host.raw()));
        let entered = context.enter()?;
        let (table, device) = (entered.driver().table(), self.jobs.place().raw());
        match way {
            Way::ToDevice => {
                // SAFETY: a checked symbol, our own buffers, of which both have at least `len` bytes, our own stream, a current context.
                let answer = unsafe { (table.cuMemcpyHtoDAsync_v2)(device, host.cast_const(), len, self.stream.raw()) };
                context.check(answer, "cuMemcpyHtoDAsync_v2")
            }
            Way::FromDevice => {
                // SAFETY: as above.
                let answer = unsafe { (table.cuMemcpyDtoHAsync_v2)(host, device, len, self.stream.raw()) };
                context.check(answer, "cuMemcpyDtoHAsync_v2")
            }
        }
    }

    /// Waits until the stream is done with what it was given.
    fn wait(&mut self, ranges: &[SumRange<'_>]) -> Result<(), CudaError> {
        let failed = match wait::until(TIMEOUT, || self.stream.is_idle()) {
            Ok(true) => return Ok(()),
            Ok(false) => ours(self.kernels.context(), ErrorKind::DeadlineExceeded, "see what else the device does"),
            Err(error) => error,
        };
        // Late or lost: the driver does not say that the device lets go of what it was given.
        self.lost = true;
        let own = [&self.host, &self.jobs];
        let all = ranges.iter().map(|range| range.memory).chain(own);
        all.for_each(|memory| keep_for_ever(memory.region().clone()));
        keep_for_ever(self.kernels.clone());
        Err(failed)
    }
}

#[derive(Clone, Copy)]
enum Way {
    ToDevice,
    FromDevice,
}

fn ours(context: &Context, kind: ErrorKind, remedy: &'static str) -> CudaError {
    CudaError::ours(kind, CALL, Some(context.device().ordinal()), remedy)
}

#[expect(clippy::mem_forget, reason = "the device may still touch it")]
fn keep_for_ever<T>(what: T) {
    std::mem::forget(what);
}
