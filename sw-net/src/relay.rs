//! Who is told that something came on a connection over RDMA: its thread while it waits here, and its lane.

#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};
use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};

use sw_engine::seam::Wake;

use crate::socket::left;

/// A wake that is kept until it is waited for, and passed on.
///
/// Protocol: the side that completes sets the word and tells; the side that waits takes the word before it looks for completions, and sleeps only
/// if none was set since. With [`Cq::arm`](sw_engine::seam::verbs::Cq::arm) before the look no completion is missed.
#[derive(Default)]
pub(crate) struct Relay {
    word: Mutex<Word>,
    told: Condvar,
}

#[derive(Default)]
struct Word {
    is_told: bool,
    /// The connection shall end.
    is_ended: bool,
    lane: Option<Arc<dyn Wake>>,
}

impl Relay {
    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes wakes on from now on; one that came before is passed on at once.
    pub(crate) fn pass_to(&self, lane: Arc<dyn Wake>) {
        let mut word = self.word();
        if word.is_told {
            lane.wake();
        }
        word.lane = Some(lane);
    }

    /// Asks the connection's thread to end it. Any thread.
    pub(crate) fn end(&self) {
        self.word().is_ended = true;
        self.wake();
    }

    /// Whether somebody asked for the end.
    pub(crate) fn is_ended(&self) -> bool {
        self.word().is_ended
    }

    /// Waits for a wake, or until the time is over; whether there was one. Takes it.
    pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
        let mut word = self.word();
        while !word.is_told {
            word = match until {
                None => self.told.wait(word).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let Some(left) = left(until) else { return false };
                    self.told.wait_timeout(word, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        word.is_told = false;
        true
    }
}

impl Wake for Relay {
    fn wake(&self) {
        let mut word = self.word();
        word.is_told = true;
        let lane = word.lane.clone();
        drop(word);
        self.told.notify_all();
        if let Some(lane) = lane {
            lane.wake();
        }
    }
}

#[cfg(all(test, loom))]
#[path = "relay_loom_tests.rs"]
mod loom_tests;
