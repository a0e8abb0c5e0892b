//! The clock of lanes and controllers, which are in one order with each other.

use std::{sync::OnceLock, time::Instant};

use sw_engine::Time;

/// When it was first asked for.
static START: OnceLock<Instant> = OnceLock::new();

/// Now.
#[expect(clippy::disallowed_methods, reason = "sockets are waited for by the kernel's clock, and the seam has no now")]
pub(crate) fn now() -> Time {
    let now = Instant::now();
    Time::ZERO.after(now.saturating_duration_since(*START.get_or_init(|| now)))
}
