//! Checksums of device memory, by kernels, where the bytes lie.
// UNSAFETY: launches over memory that the caller lends.
#![expect(unsafe_code, reason = "launches kernels")]

use sw_engine::{ErrorKind, checksum::Algorithm};
use sw_kernels::Entry;
use sw_kernels::crc::{self, SumPlan};
use sw_mem::{ByteLen, DmaSpan};

use crate::attribute::Attribute;
use crate::error::CudaError;
use crate::jobs::{Answers, JOBS_MAX, Jobs};
use crate::kernels::Kernels;

/// Warps of a multiprocessor that sum at a time: what registers allow, 104 a thread for CRC-64 (from NVIDIA's assembler for sm_90).
const WARPS_PER_PROCESSOR: u64 = 16;

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
    jobs: Jobs,
    warps: u64,
}

impl DeviceSums {
    /// Loads the kernels of both checksums and takes 256 KiB on either side.
    ///
    /// # Errors
    /// As [`Kernels::load`]; the driver's.
    pub fn new(kernels: &Kernels) -> Result<Self, CudaError> {
        for entry in [Entry::Crc32cSum, Entry::Crc32cFinish, Entry::Crc64Sum, Entry::Crc64Finish] {
            kernels.load(entry)?;
        }
        let processors = kernels.context().device().attribute(Attribute::Multiprocessors)?;
        let warps = u64::try_from(processors).unwrap_or(1).max(1) * WARPS_PER_PROCESSOR;
        Ok(Self { jobs: Jobs::new(kernels, "checksum kernel")?, warps })
    }

    /// The checksums of `ranges`, in their order. What was written to them before this call is summed; nobody may write to them meanwhile,
    /// or the sums are of no content that ever was.
    ///
    /// *Blocking*: until the device has read every byte.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for memory of another device or of the host; `TooLarge` above 256 GiB in a range; `DeadlineExceeded` after
    /// 60 s of one launch and what breaks the context, after which it takes nothing more (`Closed`) and what it summed stays allocated;
    /// the driver's.
    pub fn of(&mut self, algorithm: Algorithm, ranges: &[SumRange<'_>]) -> Result<Vec<u64>, CudaError> {
        let algorithm = match algorithm {
            Algorithm::Crc32c => crc::Algorithm::Crc32c,
            Algorithm::Crc64Nvme => crc::Algorithm::Crc64Nvme,
        };
        let place = |range: &SumRange<'_>| Ok((self.jobs.place_of(range.memory, range.at, range.len.0)?, range.len));
        let places = ranges.iter().map(place).collect::<Result<Vec<_>, CudaError>>()?;
        let mut sums = Vec::with_capacity(ranges.len());
        for (places, ranges) in places.chunks(JOBS_MAX).zip(ranges.chunks(JOBS_MAX)) {
            let too_large = |_| self.jobs.refuse(ErrorKind::TooLarge, "ask for ranges below 256 GiB each");
            let plan = SumPlan::new(algorithm, places, self.warps).map_err(too_large)?;
            let memory: Vec<&DmaSpan> = ranges.iter().map(|range| range.memory).collect();
            // SAFETY: the kernels read the ranges and nothing else of memory that is lent for as long; they write to the jobs only.
            let back = unsafe { self.jobs.run(plan.jobs(), |at| plan.launches(at), &memory, Answers::Wanted) }?;
            sums.extend(plan.sums(&back).map_err(|_| self.jobs.refuse(ErrorKind::Protocol, ""))?);
        }
        Ok(sums)
    }
}
