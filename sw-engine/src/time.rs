//! Points in time, as the caller's clock counts them.

use core::{fmt, time::Duration};

/// Nanoseconds since a start that the owner of the clock chose. Range: 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The start of the clock.
    pub const ZERO: Time = Time(0);
    /// Later than any deadline.
    pub const FOREVER: Time = Time(u64::MAX);

    /// This point plus `span`; [`Time::FOREVER`] if that does not fit.
    pub fn after(self, span: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this point; zero if it lies later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Time::FOREVER { f.write_str("never") } else { write!(f, "{} us", self.0 / 1000) }
    }
}
