//! The clock of an engine: monotonic time since it was made. The only place of the product that reads one.

use std::time::Instant;

use sw_engine::Time;

/// Counts nanoseconds since it was made. *Thread*: any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything below is given")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// When it was made, for backends that read the same clock.
    pub(crate) fn start_instant(self) -> Instant {
        self.0
    }

    /// Now, for the cores below.
    pub(crate) fn now(self) -> Time {
        Time::ZERO.after(self.0.elapsed())
    }
}
