//! Bounded waits of the control plane. The data path never waits.

use std::time::{Duration, Instant};

/// Polls `done` until it says yes, fails, or `timeout` is over (`Ok(false)`).
///
/// Spins first (a copy of a slab takes tens of microseconds), then gives the processor away.
#[expect(
    clippy::disallowed_methods,
    reason = "the seam's fence has a timeout and no clock argument; it waits here only"
)]
pub fn until<E>(timeout: Duration, mut done: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    /// Polls without a pause: some 20 µs at the driver's query cost of 0.1 to 0.5 µs.
    const SPINS: u32 = 64;
    /// Pause between later polls.
    const PAUSE: Duration = Duration::from_micros(50);
    let start = Instant::now();
    let mut polls = 0u32;
    loop {
        if done()? {
            return Ok(true);
        }
        if start.elapsed() >= timeout {
            return Ok(false);
        }
        polls = polls.saturating_add(1);
        if polls < SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(PAUSE);
        }
    }
}
