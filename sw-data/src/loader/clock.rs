//! The loader's clock: it owns threads and deadlines, so it reads the time. The only place here that does.

use std::time::Instant;

/// Now.
#[expect(clippy::disallowed_methods, reason = "the loader owns its threads, deadlines and counters of time")]
pub(super) fn now() -> Instant {
    Instant::now()
}
