//! The wall clock, for beds whose transport waits in real time.

use std::time::{Duration, Instant};

/// Time since it was made.
#[derive(Clone, Copy, Debug)]
pub struct RealClock {
    start: Instant,
}

impl RealClock {
    /// Starts at zero.
    #[expect(clippy::disallowed_methods, reason = "a test bed owns its clock")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}
