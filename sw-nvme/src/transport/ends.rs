//! Ends other than a completion: cancels, late commands, breaches, resets, controllers that are gone, fences.

use core::time::Duration;

use sw_engine::{
    Error, ErrorKind, Fault, Retry, Time, Token, Verb,
    seam::{Fence, IoDone},
};
use sw_mem::WeakRegion;

use super::{LOOK_EVERY, NVME, NvmeTransport, POLLS_PER_CLOCK, Place, waited};
use crate::{
    bus::{Bus, Waiter},
    controller::Life,
    directory::split,
    transport::link::Link,
};

/// The clock advances by so much between two looks at most: a machine that slept must not make every command late.
const STEP_MAX: Duration = Duration::from_secs(1);
/// What a controller that is to be closed gets at least.
const CLOSE_MIN: Duration = Duration::from_millis(100);
/// Longest that a transport which is dropped waits for what is in flight, and again for a reset.
const DROP_WAIT: Duration = Duration::from_secs(1);

/// The error of a forked child, whose calls do nothing.
#[cold]
pub(super) fn forked() -> Error {
    Error::new(ErrorKind::Forked, Verb::Setup)
        .at(NVME)
        .detail("the queues belong to the parent of this process")
        .remedy("make a new engine in the child")
}

/// A coarse clock for what is late.
#[derive(Debug)]
pub(super) struct Watch {
    polls: u32,
    last: Time,
    /// Looks, or more where they were far apart: units of [`LOOK_EVERY`].
    tick: u32,
}

impl Watch {
    pub(super) fn new(now: Time) -> Self {
        Self { polls: 0, last: now, tick: 0 }
    }

    pub(super) fn tick(&self) -> u32 {
        self.tick
    }

    /// Whether it is time for a look at the clock.
    #[inline]
    pub(super) fn is_due(&mut self) -> bool {
        self.polls = self.polls.wrapping_add(1);
        self.polls.is_multiple_of(POLLS_PER_CLOCK)
    }

    /// The ticks that passed, at least one, or `None` before the next look is due.
    fn advance(&mut self, now: Time) -> Option<u32> {
        let passed = now.since(self.last);
        if passed < LOOK_EVERY {
            return None;
        }
        self.last = now;
        let ticks = ticks(passed.min(STEP_MAX));
        self.tick = self.tick.wrapping_add(ticks);
        Some(ticks)
    }
}

/// A span in units of [`LOOK_EVERY`], rounded down.
fn ticks(span: Duration) -> u32 {
    u32::try_from(span.as_nanos() / LOOK_EVERY.as_nanos()).unwrap_or(u32::MAX)
}

/// The error of a controller that may touch memory for ever.
fn loud_error(name: &str) -> Error {
    Error::new(ErrorKind::NoDevice, Verb::Setup)
        .at(name)
        .detail("the controller could neither be disabled nor stopped: memory of its I/Os may still be written")
        .remedy("end the process; reset the function or reboot before the memory is used for something else")
}

/// The error of a controller that takes no commands any more.
fn dead_error(name: &str) -> Error {
    Error::new(ErrorKind::NoDevice, Verb::Setup)
        .at(name)
        .detail("the controller is gone, was shut down, or was given up after a failed reset")
        .remedy("look for it in the kernel log, then open it again")
}

impl<B: Bus> NvmeTransport<B> {
    /// Looks after all controllers, if it is time.
    pub(super) fn look(&mut self, now: Time) {
        let Some(passed) = self.watch.advance(now) else { return };
        for index in 0..self.places.len() {
            self.look_at(index, passed);
        }
    }

    fn look_at(&mut self, index: usize, passed: u32) {
        let tick = self.watch.tick;
        let (abort_after, reset_after) = (
            ticks(self.config.command_timeout),
            ticks(self.config.command_timeout.saturating_add(self.config.abort_timeout)),
        );
        if let Some(Place::Asked(ticket, _)) = self.places.get(index)
            && ticket.is_answered()
            && !self.parked.iter().any(|io| sw_mem::index(split(io.handle).0) == index)
        {
            // Whoever wanted the queue pair is gone: unused, it is given to others that lack one.
            let _ = self.take_pair(index);
        }
        let Some(Place::Linked(link)) = self.places.get_mut(index) else { return };
        link.queue.set_tick(tick);
        if link.is_unused() && link.controller.is_short_of_pairs() && link.is_current() {
            return self.give_back(index);
        }
        link.controller.glance();
        link.refresh();
        let mut ill = false;
        if link.queue.in_flight() > 0 {
            // Silence takes a second to tell; who is told by the system knows at once.
            ill |= link.controller.bus().is_gone() || link.is_silent() && link.is_ill();
            let age = |born: u32| tick.wrapping_sub(born);
            ill |= link.queue.live().any(|(_, _, born)| age(born) >= reset_after);
            let late = |born| age(born) >= abort_after && age(born).saturating_sub(passed) < abort_after;
            let aborted = link.queue.live().filter(|(_, _, born)| late(*born));
            let sent = aborted.filter(|(cid, ..)| link.controller.abort(link.queue.qid(), *cid)).count();
            self.counters.aborts += sent as u64;
        }
        if ill {
            self.reset(index);
        }
    }

    /// Another lane lacks a queue pair, and this one does not use its own: the next I/O asks for one again.
    fn give_back(&mut self, index: usize) {
        if let Place::Linked(link) = core::mem::replace(&mut self.places[index], Place::Unlinked(0)) {
            self.keep_counts(&link);
            link.discard();
        }
    }

    /// Asks for a reset of the controller of a link, and lets the link go, as far as the controller lets go of it.
    #[cold]
    pub(super) fn reset(&mut self, index: usize) {
        if let Some(Place::Linked(link)) = self.places.get_mut(index) {
            self.counters.resets += u64::from(!link.asked_reset);
            link.asked_reset = true;
            link.controller.ask_for_reset(link.epoch);
        }
        self.link_changed(index);
    }

    /// The controller of a link is perhaps not in the link's epoch any more.
    #[cold]
    pub(super) fn link_changed(&mut self, index: usize) {
        let Some(Place::Linked(link)) = self.places.get(index) else { return };
        let life = link.controller.life();
        if life == Life::Loud(link.epoch) {
            return self.keep_all_of(index);
        }
        if !life.lets_go_of(link.epoch) {
            return;
        }
        let gone = Fault::new(ErrorKind::NoDevice, 0);
        let (after, fault) = match life {
            Life::Quiet(_) => (Place::Dead(gone), gone),
            // The controller was seen disabled: nothing of the old commands lands any more, so that they may go again.
            _ => (Place::Unlinked(link.queue.qid()), Fault::new(ErrorKind::Io, 0).with_retry(Retry::Now)),
        };
        self.end_all_of(index, fault);
        if let Place::Linked(link) = core::mem::replace(&mut self.places[index], after) {
            if let Place::Dead(_) = self.places[index] {
                self.whys[index] = Some(dead_error(link.controller.name()));
            }
            if !link.is_deleted {
                link.controller.release_pair(link.queue.qid());
            }
            self.keep_counts(&link);
        }
    }

    /// A controller that may touch memory for ever: its I/Os end, their memory stays, and so does that of the queue pair.
    fn keep_all_of(&mut self, index: usize) {
        let gone = Fault::new(ErrorKind::NoDevice, 0);
        for slot in self.parents.indexes(|parent| sw_mem::index(u64::from(parent.link)) == index) {
            let Some(parent) = self.parents.get_mut(slot) else { continue };
            // One that sent nothing has nothing that could be touched.
            let (token, is_out) = (parent.token, parent.sent > 0);
            self.parents.finish(slot);
            self.kept += u32::from(is_out);
            self.ended.push(IoDone { token, result: Err(if is_out { gone.kept() } else { gone }), aside: 0 });
        }
        if let Place::Linked(link) = core::mem::replace(&mut self.places[index], Place::Dead(gone)) {
            self.whys[index] = Some(loud_error(link.controller.name()));
            self.keep_counts(&link);
            super::LEAKED_PAIRS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            link.leak();
        }
    }

    fn end_all_of(&mut self, index: usize, fault: Fault) {
        for slot in self.parents.indexes(|parent| sw_mem::index(u64::from(parent.link)) == index) {
            if let Some(parent) = self.parents.get_mut(slot) {
                let cancelled = Fault::new(ErrorKind::Cancelled, 0);
                parent.fail(0, if parent.cancelled { cancelled } else { fault });
            }
            self.ended.extend(self.parents.finish(slot));
        }
    }

    fn keep_counts(&mut self, link: &Link<B>) {
        self.counters.queues += link.queue.counters();
        self.counters.retries += link.counters.retries;
        self.counters.splits += link.counters.splits;
    }

    pub(super) fn cancel_io(&mut self, token: Token) {
        if let Some(at) = self.parked.iter().position(|io| io.token == token) {
            self.parked.remove(at);
            return self.ended.push(IoDone { token, result: Err(Fault::new(ErrorKind::Cancelled, 0)), aside: 0 });
        }
        for slot in self.parents.indexes(|parent| parent.token == token) {
            let Some(parent) = self.parents.get_mut(slot) else { continue };
            parent.cancelled = true;
            let (over, index) = (parent.is_over(), sw_mem::index(u64::from(parent.link)));
            let Some(Place::Linked(link)) = self.places.get_mut(index) else { continue };
            if over {
                link.forget(slot);
                self.ended.extend(self.parents.finish(slot));
            } else {
                self.counters.aborts += link.abort(slot);
            }
        }
    }

    /// Appends ends that no poll has given out yet.
    pub(super) fn give_out(&mut self, out: &mut Vec<IoDone>) {
        while out.len() < out.capacity()
            && let Some(done) = self.ended.pop()
        {
            out.push(done);
        }
    }

    pub(super) fn fence_all(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        self.closed = true;
        if self.fork.is_elsewhere() {
            // The parent's device works for the parent: nothing here is for this process to end.
            return match u32::try_from(self.in_flight()).unwrap_or(u32::MAX) {
                0 => Fence::Quiet,
                busy => Fence::Busy(busy),
            };
        }
        let (begun, before, kept) = (self.waiter.now(), out.len(), self.kept);
        // What is in flight gets a quarter of the time, aborted commands another one, and the controllers the rest.
        while let Some(io) = self.parked.front() {
            self.cancel_io(io.token);
        }
        let _ = sw_engine::seam::Transport::ring(self);
        self.drain(begun, timeout / 4, out);
        if self.parents.live_count() > 0 {
            for slot in self.parents.indexes(|_| true) {
                if let Some(parent) = self.parents.get_mut(slot) {
                    let token = parent.token;
                    self.cancel_io(token);
                }
            }
            self.drain(begun, timeout / 2, out);
        }
        for index in 0..self.places.len() {
            self.close_link(index, begun, timeout);
        }
        self.give_out(out);
        if self.kept > kept {
            // A controller was lost: what the fence called off was not cancelled by anybody.
            let ended = out.iter_mut().skip(before);
            let called_off = |done: &&mut IoDone| done.result.is_err_and(|fault| fault.kind == ErrorKind::Cancelled);
            ended.filter(called_off).for_each(|done| done.result = Err(Fault::new(ErrorKind::NoDevice, 0)));
        }
        match self.kept + u32::try_from(self.parents.live_count()).unwrap_or(u32::MAX) {
            0 => Fence::Quiet,
            busy => Fence::Busy(busy),
        }
    }

    /// Takes completions until nothing is in flight or `limit` since `begun` is over, whether `out` has room or not.
    fn drain(&mut self, begun: Time, limit: Duration, out: &mut Vec<IoDone>) {
        let mut found = Vec::with_capacity(self.depth);
        loop {
            self.reap(&mut found);
            self.ended.append(&mut found);
            self.give_out(out);
            if self.parents.live_count() == 0 || waited(&self.waiter, begun) >= limit {
                return;
            }
            self.waiter.relax();
        }
    }

    /// Gives a queue pair back; disables its controller if commands are left that the controller does not end. All that
    /// within `timeout` since `begun`, or [`CLOSE_MIN`].
    fn close_link(&mut self, index: usize, begun: Time, timeout: Duration) {
        if let Some(Place::Asked(..)) = self.places.get(index) {
            // A pair that is made after all is discarded.
            self.places[index] = Place::Unlinked(0);
        }
        let Some(Place::Linked(link)) = self.places.get_mut(index) else { return };
        let left = |waiter: &B::Waiter| timeout.saturating_sub(waited(waiter, begun)).max(CLOSE_MIN);
        if link.is_current() && link.queue.breach().is_none() && link.queue.in_flight() > 0 {
            // A wait for another thread and for two answers.
            link.is_deleted = link.controller.delete_pair(link.queue.qid(), link.epoch, left(&self.waiter) / 4);
            // Those that the deletion ended have their completions by now.
            link.take_last(&mut self.parents, &mut self.ended);
        }
        if link.queue.in_flight() > 0 || link.queue.breach().is_some() {
            self.counters.resets += 1;
            link.controller.quiesce(link.epoch, left(&self.waiter));
            self.link_changed(index);
            return;
        }
        // Some may wait for their time to be sent again, while the controller is being reset for another lane.
        self.end_all_of(index, Fault::new(ErrorKind::Cancelled, 0));
        self.give_back(index);
    }
}

impl<B: Bus> Drop for NvmeTransport<B> {
    /// Fences if nobody did. Rings, lists and regions that a controller may still touch are never freed, and counted.
    /// In a forked child nothing is touched and nothing is freed: all of it is the parent's.
    #[expect(clippy::mem_forget, reason = "the parent's device uses what the links hold")]
    fn drop(&mut self) {
        if self.fork.is_elsewhere() {
            return core::mem::forget(core::mem::take(&mut self.places));
        }
        if !self.closed {
            self.fence_all(DROP_WAIT, &mut Vec::with_capacity(self.depth));
        }
        // A controller that was too slow for the fence is perhaps quiet by now.
        (0..self.places.len()).for_each(|index| self.link_changed(index));
        for place in core::mem::take(&mut self.places) {
            let Place::Linked(link) = place else { continue };
            super::LEAKED_PAIRS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            link.leak();
            self.kept += 1;
        }
        if self.kept > 0 {
            let attached = core::mem::take(&mut self.attached);
            attached.iter().filter_map(WeakRegion::upgrade).for_each(core::mem::forget);
        }
    }
}
