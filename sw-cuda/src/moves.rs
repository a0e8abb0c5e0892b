//! Ranges moved inside one device's memory, many in one launch, from any address to any address.
// UNSAFETY: launches over memory that the caller lends.
#![expect(unsafe_code, reason = "launches kernels")]

use sw_engine::ErrorKind;
use sw_kernels::Entry;
use sw_kernels::ranges::{Range, RangePlan, Work};
use sw_mem::{ByteLen, DmaSpan};

use crate::error::CudaError;
use crate::jobs::{Answers, JOBS_MAX, Jobs};
use crate::kernels::Kernels;

/// Gathers ranges of a memory of one device into another memory of the same device.
#[derive(Debug)]
pub struct DeviceMoves {
    jobs: Jobs,
}

impl DeviceMoves {
    /// Loads the kernel and takes 256 KiB on either side.
    ///
    /// # Errors
    /// As [`Kernels::load`]; the driver's.
    pub fn new(kernels: &Kernels) -> Result<Self, CudaError> {
        kernels.load(Entry::Move)?;
        Ok(Self { jobs: Jobs::new(kernels, "gather kernel")? })
    }

    /// Moves `ranges`, each its first byte in `from`, its first byte in `into` and its length. They are there when it returns.
    ///
    /// *Blocking*: until then.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for memory of another device or of the host, if the two are one region, or if ranges of `into` overlap;
    /// nothing was moved then. `DeadlineExceeded` after 60 s of one launch and what breaks the context, after which it takes nothing more
    /// (`Closed`) and both memories stay allocated; the driver's. A part may have been moved then.
    pub fn gather(&mut self, from: &DmaSpan, into: &DmaSpan, ranges: &[(u64, u64, u64)]) -> Result<(), CudaError> {
        // Ranges run in no order.
        if from.region().id() == into.region().id() {
            return Err(self.jobs.refuse(ErrorKind::ApiMisuse, "gather into another region"));
        }
        let mut places = Vec::with_capacity(ranges.len());
        for (source, target, len) in ranges.iter().filter(|(_, _, len)| *len > 0) {
            let (source, target) = (self.jobs.place_of(from, *source, *len)?, self.jobs.place_of(into, *target, *len)?);
            places.push(Range { source, target, len: ByteLen(*len) });
        }
        places.sort_unstable_by_key(|range| range.target.raw());
        let overlap = |pair: &[Range]| match pair {
            [first, second] => first.target.checked_add(first.len).is_none_or(|end| end > second.target),
            _ => false,
        };
        if places.windows(2).any(overlap) {
            return Err(self.jobs.refuse(ErrorKind::ApiMisuse, "give ranges that do not overlap where they go"));
        }
        for places in places.chunks(JOBS_MAX) {
            let too_large = |_| self.jobs.refuse(ErrorKind::TooLarge, "ask for shorter ranges");
            let plan = RangePlan::new(Work::Move, places).map_err(too_large)?;
            let launches = |at| plan.launch(at).map(|launch| vec![launch]);
            // SAFETY: the kernel reads ranges of `from` and writes ranges of `into`, checked above; both are lent for as long, and no range
            // is written twice.
            unsafe { self.jobs.run(plan.jobs(), launches, &[from, into], Answers::None) }?;
        }
        Ok(())
    }
}
