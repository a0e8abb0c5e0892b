//! Waiting with a limit of time.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// When a wait ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Forever,
    At(Instant),
}

impl Until {
    /// So many nanoseconds from now; the largest number, and what no clock holds, is for ever.
    pub(crate) fn after(timeout_ns: u64) -> Self {
        let end = Self::now().checked_add(Duration::from_nanos(timeout_ns)).filter(|_| timeout_ns != u64::MAX);
        end.map_or(Self::Forever, Self::At)
    }

    #[expect(clippy::disallowed_methods, reason = "waits of C callers have a limit of time; no core is below this")]
    fn now() -> Instant {
        Instant::now()
    }

    fn left(self) -> Option<Duration> {
        match self {
            Self::Forever => None,
            Self::At(end) => Some(end.saturating_duration_since(Self::now())),
        }
    }
}

/// Where one thread waits for several wakers.
#[derive(Debug, Default)]
pub(crate) struct Parker {
    woken: Mutex<bool>,
    wake: Condvar,
}

impl Parker {
    pub(crate) fn wake(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
    }

    /// Waits until somebody woke it since the last wait; no if the time is over.
    pub(crate) fn park(&self, until: Until) -> bool {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            woken = match until.left() {
                None => self.wake.wait(woken).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return false,
                Some(left) => self.wake.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        *woken = false;
        true
    }
}
