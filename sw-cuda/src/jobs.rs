//! Launches over a list of jobs: the list goes to the device, kernels run over it, and it may come back with their answers.
//!
//! ```text
//!  jobs ─► pinned memory ─copy─► device ─► kernels ─► device ─copy─► pinned memory ─► answers
//! ```
//!
//! One stream of its own, so nobody's default stream is touched. Control plane: it waits, bounded.
// UNSAFETY: launches over memory whose regions are held, and copies between our own buffers.
#![expect(unsafe_code, reason = "driver calls")]

use std::ffi::c_void;
use std::time::Duration;

use sw_engine::ErrorKind;
use sw_kernels::{Launch, PlanError};
use sw_mem::{ByteLen, DmaRegion, DmaSpan, GpuVa, Place, index};

use crate::buffer::{DeviceBuffer, PinnedBuffer};
use crate::context::Context;
use crate::error::CudaError;
use crate::kernels::Kernels;
use crate::stream::Stream;
use crate::wait;

/// Jobs of one launch at most.
pub const JOBS_MAX: usize = 8192;
/// Bytes of a job as the device has it, of checksums as of ranges.
const JOB_BYTES: usize = 32;
/// How long one launch may take: a whole device's memory at a hundredth of its rate.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the device's answers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// The jobs come back.
    Wanted,
    /// It is enough that the kernels have run.
    None,
}

/// Runs lists of jobs, one after the other.
#[derive(Debug)]
pub struct Jobs {
    stream: Stream,
    device: DmaSpan,
    host: DmaSpan,
    lost: bool,
    call: &'static str,
    // Last: launches are over before it goes (`wait`).
    kernels: Kernels,
}

impl Jobs {
    /// Takes 256 KiB on either side. `call` is what errors say.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(kernels: &Kernels, call: &'static str) -> Result<Self, CudaError> {
        let context = kernels.context();
        let bytes = ByteLen((JOBS_MAX * JOB_BYTES) as u64);
        let whole = |region: DmaRegion| region.span(0, bytes).map_err(|_| ours(context, call, ErrorKind::Protocol, ""));
        let host = whole(PinnedBuffer::allocate(context, bytes)?.into_region()?)?;
        let device = whole(DeviceBuffer::allocate(context, bytes)?.into_region()?)?;
        Ok(Self { stream: Stream::new(context)?, device, host, lost: false, call, kernels: kernels.clone() })
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        self.kernels.context()
    }

    /// An error of ours.
    pub fn refuse(&self, kind: ErrorKind, remedy: &'static str) -> CudaError {
        ours(self.context(), self.call, kind, remedy)
    }

    /// A range of a memory of this device.
    ///
    /// # Errors
    /// `ApiMisuse` for memory of another device or of the host; `OutOfRange`.
    pub fn place_of(&self, memory: &DmaSpan, at: u64, len: u64) -> Result<GpuVa, CudaError> {
        let Place::Device(device, base) = memory.place() else {
            return Err(self.refuse(ErrorKind::ApiMisuse, "give it memory of a device"));
        };
        if device != self.context().device().id() {
            return Err(self.refuse(ErrorKind::ApiMisuse, "give it memory of the device that it is of"));
        }
        let inside = at.checked_add(len).is_some_and(|end| end <= memory.len().0);
        let place = base.checked_add(ByteLen(at)).filter(|_| inside);
        place.ok_or_else(|| self.refuse(ErrorKind::OutOfRange, "ask for bytes that it has"))
    }

    /// Runs `launches`, made for where the jobs will lie, over `jobs`; answers the jobs as they are then, if wanted.
    ///
    /// # Errors
    /// `DeadlineExceeded` and what breaks the context, after which it takes nothing more (`Closed`), and `memory` stays allocated; the
    /// driver's.
    ///
    /// # Safety
    /// The launches touch nothing but the jobs and `memory`; nobody else writes there what they read, or touches what they write.
    pub unsafe fn run(
        &mut self,
        jobs: &[u8],
        launches: impl FnOnce(GpuVa) -> Result<Vec<Launch>, PlanError>,
        memory: &[&DmaSpan],
        answers: Answers,
    ) -> Result<Vec<u8>, CudaError> {
        if self.lost {
            return Err(self.refuse(ErrorKind::Closed, "make a new one"));
        }
        let too_large = |error: PlanError| {
            tracing::debug!(%error, call = self.call, "no launch");
            self.refuse(ErrorKind::TooLarge, "ask for fewer or shorter ranges")
        };
        let launches = launches(GpuVa::new(self.device.place().raw())).map_err(too_large)?;
        if jobs.len() > JOBS_MAX * JOB_BYTES {
            return Err(self.refuse(ErrorKind::TooLarge, "ask for fewer ranges"));
        }
        self.host.write(0, jobs).map_err(|_| self.refuse(ErrorKind::Protocol, ""))?;
        self.copy(jobs.len(), Way::ToDevice)?;
        let launched = launches.iter().try_for_each(|launch| {
            // SAFETY: this function's contract; the jobs are ours, and `memory` is kept if the wait fails.
            unsafe { self.kernels.launch(launch, &self.stream) }
        });
        let ended = match answers {
            Answers::Wanted => launched.and_then(|()| self.copy(jobs.len(), Way::FromDevice)),
            Answers::None => launched,
        };
        self.wait(memory)?;
        ended?;
        let mut back = vec![0; if answers == Answers::Wanted { jobs.len() } else { 0 }];
        self.host.read(0, &mut back).map_err(|_| self.refuse(ErrorKind::Protocol, ""))?;
        Ok(back)
    }

    fn copy(&self, len: usize, way: Way) -> Result<(), CudaError> {
        let context = self.context();
        let host = self.host.place().host().ok_or_else(|| self.refuse(ErrorKind::Protocol, ""))?;
        let host = std::ptr::with_exposed_provenance_mut::<c_void>(index(host.raw()));
        let entered = context.enter()?;
        let (table, device) = (entered.driver().table(), self.device.place().raw());
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
    fn wait(&mut self, memory: &[&DmaSpan]) -> Result<(), CudaError> {
        let failed = match wait::until(TIMEOUT, || self.stream.is_idle()) {
            Ok(true) => return Ok(()),
            Ok(false) => self.refuse(ErrorKind::DeadlineExceeded, "see what else the device does"),
            Err(error) => error,
        };
        // Late or lost: the driver does not say that the device lets go of what it was given.
        self.lost = true;
        let own = [&self.host, &self.device];
        memory.iter().copied().chain(own).for_each(|memory| keep_for_ever(memory.region().clone()));
        keep_for_ever(self.kernels.clone());
        Err(failed)
    }
}

#[derive(Clone, Copy)]
enum Way {
    ToDevice,
    FromDevice,
}

fn ours(context: &Context, call: &'static str, kind: ErrorKind, remedy: &'static str) -> CudaError {
    CudaError::ours(kind, call, Some(context.device().ordinal()), remedy)
}

#[expect(clippy::mem_forget, reason = "the device may still touch it")]
fn keep_for_ever<T>(what: T) {
    std::mem::forget(what);
}
