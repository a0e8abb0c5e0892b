//! Byte and entry budgets: pinned memory, BAR1 windows, IOVA entries.
//!
//! A reservation is a value; dropping it gives the amount back. Nobody waits here: a caller that cannot have its
//! amount gets the numbers for its error text.

use crate::sync::{Arc, AtomicU64, Ordering};

/// A shared limit on some amount (bytes or entries, the owner knows which).
///
/// *Thread*: any. *Blocking*: never.
#[derive(Clone, Debug)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    used: AtomicU64,
    limit: u64,
}

/// What was asked for and what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("budget exhausted (want {want}, free {free} of {limit})")]
pub struct BudgetExhausted {
    /// Amount asked for.
    pub want: u64,
    /// Amount that was free at that moment.
    pub free: u64,
    /// The whole budget.
    pub limit: u64,
}

/// A reserved amount. Given back on drop.
#[derive(Debug)]
#[must_use = "dropping a permit gives the amount back at once"]
pub struct Permit {
    from: Budget,
    amount: u64,
}

impl Budget {
    /// A budget of `limit` units.
    pub fn new(limit: u64) -> Self {
        Self { inner: Arc::new(Inner { used: AtomicU64::new(0), limit }) }
    }

    /// The whole budget.
    pub fn limit(&self) -> u64 {
        self.inner.limit
    }

    /// Units reserved now.
    pub fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// Reserves `want` units.
    ///
    /// # Errors
    /// [`BudgetExhausted`] if fewer are free; nothing is reserved then.
    pub fn reserve(&self, want: u64) -> Result<Permit, BudgetExhausted> {
        let mut used = self.inner.used.load(Ordering::Relaxed);
        loop {
            let free = self.inner.limit - used;
            if want > free {
                return Err(BudgetExhausted { want, free, limit: self.inner.limit });
            }
            // Relaxed: the counter guards a number, not memory; what was reserved is handed over by other means.
            match self.inner.used.compare_exchange_weak(used, used + want, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Permit { from: self.clone(), amount: want }),
                Err(now) => used = now,
            }
        }
    }
}

impl Permit {
    /// Units held.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.from.inner.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_permit_gives_its_amount_back() {
        let budget = Budget::new(10);
        let permit = budget.reserve(7).unwrap();
        assert_eq!(budget.reserve(4).unwrap_err(), BudgetExhausted { want: 4, free: 3, limit: 10 });
        drop(permit);
        assert_eq!(budget.used(), 0);
        assert_eq!(budget.reserve(10).unwrap().amount(), 10);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn loom_two_threads_never_hold_more_than_the_limit() {
        loom::model(|| {
            let budget = Budget::new(3);
            let other = budget.clone();
            let handle = loom::thread::spawn(move || other.reserve(2).map(|permit| permit.amount()));
            let mine = budget.reserve(2);
            if mine.is_ok() {
                assert!(budget.used() <= 3);
            }
            let theirs = handle.join().unwrap();
            assert!(mine.is_ok() || theirs.is_ok(), "one of two must win");
            drop(mine);
            assert_eq!(budget.used(), 0);
        });
    }
}
