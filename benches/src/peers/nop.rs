//! A bare io_uring loop of no-ops: what the kernel's ring costs when nothing is behind it.
// UNSAFETY: pushing an entry onto the submission queue is unsafe in the io-uring crate.
#![expect(unsafe_code, reason = "io_uring submission")]

use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode};

use crate::{fault::Fault, report::Sample, usage::Usage};

/// Submits batches of `batch` no-ops and reaps each batch whole, for `time`.
pub(crate) fn run(batch: u32, time: Duration) -> Result<Sample, Fault> {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(batch.max(8))
        .map_err(Fault::os("set up", "io_uring"))?;
    let mut sample = Sample::default();
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    while start.elapsed() < time {
        // The clock is read once for many batches, so that it is no part of the cost.
        for _ in 0..256 {
            for user in 0..batch {
                let entry = opcode::Nop::new().build().user_data(u64::from(user));
                // SAFETY: a no-op names no memory; nothing must outlive it.
                let pushed = unsafe { ring.submission().push(&entry) };
                assert!(pushed.is_ok(), "the queue of {batch} was full at entry {user}");
            }
            ring.submit_and_wait(batch as usize).map_err(Fault::os("enter", "io_uring"))?;
            sample.ops += ring.completion().count() as u64;
        }
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_no_op_comes_back() {
        match run(4, Duration::from_millis(1)) {
            Ok(sample) => assert_eq!(sample.ops % (256 * 4), 0),
            Err(fault) => eprintln!("skipped: {}", fault.line()),
        }
    }
}
