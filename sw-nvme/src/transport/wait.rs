//! Polls, with and without waiting.

use core::time::Duration;

use sw_engine::{Error, seam::IoDone};

use super::{Completion, LOOK_EVERY, NvmeTransport, Place, waited};
use crate::bus::{Bus, Waiter};

/// Longest sleep before the queues are looked at without an interrupt: what a lost one costs.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Longest sleep while all I/Os wait for a queue pair: whoever makes it wakes us.
const PARKED_MAX: Duration = Duration::from_millis(1);
/// Longest that completions which are there wait for more, about one read of an SSD: what `min` may cost.
const GATHER: Duration = Duration::from_micros(100);

/// Looks at the queues for each look at the clock.
const LOOKS_PER_CLOCK: u32 = 32;

/// Ends with [`NvmeTransport::poll_waiting`].
struct Until {
    min: usize,
    timeout: Duration,
}

impl<B: Bus> NvmeTransport<B> {
    #[inline]
    pub(super) fn poll_now(&mut self, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        if self.fork.is_elsewhere() {
            return Err(super::ends::forked());
        }
        let before = out.len();
        if !self.parked.is_empty() {
            sw_engine::seam::Transport::ring(self)?;
        }
        if self.watch.is_due() {
            self.look(self.waiter.now());
        }
        // Ends of before first, so that a busy queue does not hold them back.
        if !self.ended.is_empty() {
            self.give_out(out);
        }
        self.reap(out);
        if !self.ended.is_empty() {
            self.give_out(out);
        }
        Ok(out.len() - before)
    }

    /// Takes completions of all controllers, as many as `out` has room for.
    #[inline]
    pub(super) fn reap(&mut self, out: &mut Vec<IoDone>) {
        for index in 0..self.places.len() {
            let Place::Linked(link) = &mut self.places[index] else { continue };
            if !link.is_current() {
                // One that closes has no time for that.
                if !self.closed {
                    link.controller.press_reset();
                }
                self.link_changed(index);
                continue;
            }
            link.poll(out.capacity() - out.len(), &mut self.parents, out);
            if link.has_waiting() {
                link.resume(&mut self.parents, &mut self.ended);
            }
            if link.queue.breach().is_some() {
                self.reset(index);
            }
        }
    }

    pub(super) fn poll_waiting(&mut self, timeout: Duration, min: u32, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let before = out.len();
        sw_engine::seam::Transport::ring(self)?;
        let mut found = self.poll_now(out)?;
        if timeout.is_zero() || out.len() == out.capacity() {
            return Ok(found);
        }
        let until = Until { min: sw_mem::index(u64::from(min.max(1))), timeout };
        let begun = self.waiter.now();
        while found < until.min && out.len() < out.capacity() {
            let passed = waited(&self.waiter, begun);
            let limit = if found > 0 { until.timeout.min(GATHER) } else { until.timeout };
            let none_left = found > 0 && self.in_flight() == 0;
            if none_left || passed >= limit || self.waiter.woken() {
                break;
            }
            let slept = self.wait_a_moment(passed, limit - passed);
            self.look(self.waiter.now());
            let more = self.poll_now(out)?;
            found = out.len() - before;
            // The sleep took the wake-up, so that `woken` would not see it any more. Anything else goes on waiting.
            if slept == Slept::Woken {
                break;
            }
            self.counters.lost_interrupts += u64::from(slept == Slept::Through && more > 0);
        }
        Ok(found)
    }

    /// Looks once more, or sleeps until an interrupt.
    fn wait_a_moment(&mut self, passed: Duration, left: Duration) -> Slept {
        let (idle, parked) = (self.in_flight() == 0, self.parents.live_count() == 0 && !self.parked.is_empty());
        let spins = match self.config.completion {
            Completion::Polled => true,
            Completion::Interrupt => false,
            Completion::Hybrid { spin } => passed < spin,
        };
        // Nothing in flight: only a wake-up can end it. Otherwise sleep only if every busy queue can end the sleep.
        let sleeps = idle
            || parked
            || !spins && self.parked.is_empty() && self.links().all(|link| link.interrupts || link.is_idle());
        if !sleeps {
            // Several looks for each look at the clock, which costs more than they do.
            for _ in 0..LOOKS_PER_CLOCK {
                self.waiter.relax();
                if self.links().any(|link| link.queue.has_completion()) {
                    break;
                }
            }
            return Slept::No;
        }
        // Sleep no longer than until a retry is due or the controllers want a look.
        let now = self.waiter.now();
        let due = self.links().filter_map(|link| link.next_due()).map(|due| due.since(now)).min();
        let longest = match (idle, parked) {
            (true, _) => LOOK_EVERY,
            (_, true) => PARKED_MAX,
            _ => SLEEP_MAX,
        };
        let span = left.min(longest).min(due.unwrap_or(Duration::MAX));
        match self.waiter.wait(span) {
            true => Slept::Woken,
            false if waited(&self.waiter, now) >= span => Slept::Through,
            false => Slept::Interrupted,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slept {
    /// It looked instead.
    No,
    /// Until the time was over.
    Through,
    /// An interrupt ended it, or nothing did.
    Interrupted,
    /// A wake-up came, early or at the last moment.
    Woken,
}
