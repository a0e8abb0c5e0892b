//! Whether a controller lives, as the threads that own its queues see it: one word, one load per poll.
//!
//! ```text
//!   Up(e) ──reset begins──► Resetting(e) ──CSTS.RDY 0──► Resetting(e + 1) ──enabled again──► Up(e + 1)
//!                               │                            │ (perhaps not before somebody needs it)
//!                               │                            └── not enabled again ──► Dead, quiet
//!                               ├── stopped from outside ──────────────────────────► Dead, quiet
//!                               └── neither disabled nor stopped ──────────────────► Dead, loud
//! ```
//!
//! A queue pair belongs to the epoch in which it was created. A later epoch, and `Dead` and quiet, both say that
//! the controller was seen disabled (CC.EN 0 and CSTS.RDY 0) or stopped from outside after that: it touches no memory of
//! the pair any more. While it is resetting in the pair's own epoch, or dead and loud, it may.

use core::sync::atomic::{AtomicU64, Ordering};

/// A state of a controller with its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It takes commands; queue pairs of earlier epochs are let go of.
    Up(u64),
    /// It is being reset; memory of this epoch may still be touched.
    Resetting(u64),
    /// It takes no commands and touches no memory.
    Quiet(u64),
    /// It takes no commands and may touch memory of this epoch for ever.
    Loud(u64),
}

impl Life {
    /// Whether all that was in flight on a queue pair of `epoch` is let go of.
    pub fn lets_go_of(self, epoch: u64) -> bool {
        match self {
            Life::Up(now) | Life::Resetting(now) | Life::Loud(now) => now > epoch,
            Life::Quiet(_) => true,
        }
    }

    const fn word(self) -> u64 {
        match self {
            Life::Up(epoch) => epoch << 2,
            Life::Resetting(epoch) => epoch << 2 | 1,
            Life::Quiet(epoch) => epoch << 2 | 2,
            Life::Loud(epoch) => epoch << 2 | 3,
        }
    }

    const fn from_word(word: u64) -> Self {
        let epoch = word >> 2;
        match word & 3 {
            0 => Life::Up(epoch),
            1 => Life::Resetting(epoch),
            2 => Life::Quiet(epoch),
            _ => Life::Loud(epoch),
        }
    }
}

/// The word.
#[derive(Debug)]
pub(crate) struct LifeWord(AtomicU64);

impl LifeWord {
    pub(crate) const fn new(life: Life) -> Self {
        Self(AtomicU64::new(life.word()))
    }

    #[inline]
    pub(crate) fn get(&self) -> Life {
        Life::from_word(self.0.load(Ordering::Acquire))
    }

    /// Only with the admin queue's lock held.
    pub(crate) fn set(&self, life: Life) {
        self.0.store(life.word(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_controller_that_was_seen_disabled_lets_go() {
        for life in [Life::Up(3), Life::Resetting(3), Life::Quiet(3), Life::Loud(3)] {
            assert_eq!(Life::from_word(life.word()), life);
            assert!(life.lets_go_of(2), "{life:?}: an earlier epoch ended by a disabled controller");
        }
        assert!(!Life::Up(3).lets_go_of(3) && !Life::Resetting(3).lets_go_of(3) && !Life::Loud(3).lets_go_of(3));
        assert!(Life::Quiet(3).lets_go_of(3));
    }
}
