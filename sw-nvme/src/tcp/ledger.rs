//! The commands of a lane on one connection: which are under way, which keep a place, and what becomes of them when it is lost.
//!
//! ```text
//!   Work ─► begin ─► HostQueue … ─► ended                        its commands, as many as there are places; the rest waits
//!             │                      let_go ─► zombie ─► bury     nobody waits; the place is taken until the answer
//!             └─► waiting (no place, or a write that is fenced) ─► resume
//!   lost ─► reads: to be asked for again · writes: unknown, in doubt · unsent: to the next connection
//! ```
//!
//! Nothing here sends or receives: that is the connection's, over the same [`HostQueue`].

use core::time::Duration;
use std::collections::VecDeque;

use sw_engine::{ErrorKind, Fault, Retry, Time, Verb, seam::IoKind};

use super::{
    host::{End, HostQueue, Outcome, Range, Transfer},
    works::{Work, Works, command_of},
};
use crate::{
    directory::{generation, in_handle, split},
    namespace::Namespace,
    status::RetryDelays,
    wire::Command,
};

/// Connections that an I/O waits for at most: each was lost before a byte of it was sent.
pub const CONNECTIONS_PER_IO_MAX: u8 = 8;

/// A command of a work.
#[derive(Clone, Copy, Debug)]
struct Part {
    work: u32,
    /// First byte, counted from the start of the I/O.
    at: u32,
    cid: u16,
    since: Time,
    live: bool,
}

/// Whether writes may be sent to a subsystem: see [`Fences`](crate::paths::Fences).
pub trait Gate {
    /// How often a write was in doubt so far, by whichever controller.
    fn doubts(&self) -> u64;
    /// Whether a write may be sent now.
    fn is_safe(&self, now: Time) -> bool;
}

/// Pieces of memory that a command's data may lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// As many as there are.
    Any,
    /// One: the command names it to the controller, which takes one descriptor (MSDBD 1, as Linux's and SPDK's targets have it).
    One,
}

/// The host's end of a queue, whichever wire it is over.
pub trait Commands {
    /// Pieces of memory of one command.
    fn pieces(&self) -> Pieces;
    /// Takes a command and gives its identifier; `None`: it is full.
    fn submit(&mut self, command: &Command, transfer: Transfer, user: u32) -> Option<u16>;
    /// Ends a command for its caller, if its memory can be left alone from now on.
    fn let_go(&mut self, cid: u16) -> bool;
    /// Whether a command was let go of and keeps its place.
    fn is_let_go(&self, cid: u16) -> bool;
}

impl Commands for HostQueue {
    fn pieces(&self) -> Pieces {
        Pieces::Any
    }

    fn submit(&mut self, command: &Command, transfer: Transfer, user: u32) -> Option<u16> {
        self.submit(command, transfer, user)
    }

    fn let_go(&mut self, cid: u16) -> bool {
        self.let_go(cid)
    }

    fn is_let_go(&self, cid: u16) -> bool {
        self.is_let_go(cid)
    }
}

/// What commands are made with.
pub struct Side<'a, Q> {
    /// The queue.
    pub queue: &'a mut Q,
    /// Of the controller, as its association found them.
    pub namespaces: &'a [Namespace],
    /// Whether writes may be sent.
    pub gate: &'a dyn Gate,
}

/// How far a command came whose connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The controller cannot know of it.
    Nobody,
    /// It may have it, and its memory is free.
    Controller,
    /// It may have it, and a device does not let go of its memory: that is never free again.
    Kept,
}

/// What becomes of commands when their connection is lost.
#[derive(Debug)]
pub struct Loss {
    /// Whether a write may still be carried out by the controller, and nobody knows.
    pub in_doubt: bool,
    /// Works that are over by it.
    pub over: Vec<u32>,
    /// Works that have more to send, or again: they wait for the next connection.
    pub unsent: VecDeque<u32>,
}

/// See the module documentation.
pub struct Ledger {
    parts: Vec<Part>,
    free: Vec<u32>,
    /// Commands that were let go of, which keep their place in the queue until they are answered, and since when.
    zombies: Vec<(u16, Time)>,
    /// Works that have commands to send and found no place.
    waiting: VecDeque<u32>,
    /// Writes were safe when so many had been in doubt.
    safe_at: Option<u64>,
}

/// What an I/O that was under way on a connection comes to. A read may be asked for again at once: nothing of the old connection lands any more.
/// A write may still be carried out by the controller, and nobody knows.
pub fn lost_with(kind: ErrorKind, verb: Verb) -> Fault {
    // Where a device of ours is gone another path may go by another one.
    let again = verb == Verb::Read && matches!(kind, ErrorKind::Io | ErrorKind::NoDevice);
    Fault::new(kind, 0).with_retry(if again { Retry::Now } else { Retry::Never })
}

impl Ledger {
    /// For a queue of `depth` commands.
    pub fn new(depth: u16) -> Self {
        let none = Part { work: 0, at: 0, cid: 0, since: Time::ZERO, live: false };
        Self {
            parts: vec![none; usize::from(depth)],
            free: (0..u32::from(depth)).rev().collect(),
            zombies: Vec::new(),
            waiting: VecDeque::new(),
            // To be asked about with the first write.
            safe_at: None,
        }
    }

    /// Whose data a range of the queue is: the work, and the first byte of it.
    pub fn place<'a>(&self, of: Range, works: &'a Works) -> Option<(&'a Work, u64)> {
        let part = self.parts.get(sw_mem::index(u64::from(of.user)))?;
        Some((works.look(part.work)?, u64::from(part.at) + u64::from(of.at)))
    }

    /// Places that are taken: by commands under way, and by those that nobody waits for.
    pub fn taken(&self) -> usize {
        self.parts.len() - self.free.len() + self.zombies.len()
    }

    /// Commands that somebody waits for, and works that wait for a place or until writes are safe.
    pub fn busy(&self) -> usize {
        self.parts.len() - self.free.len() + self.waiting.len()
    }

    /// Sends the commands of a work, as many as there are places for; the rest waits. `true`: it is over by this.
    pub fn begin(&mut self, index: u32, works: &mut Works, side: &mut Side<'_, impl Commands>, now: Time) -> bool {
        let Some(work) = works.get(index) else { return false };
        let ((_, nsid), asked) = (split(work.io.handle), generation(work.io.handle));
        let mut namespaces = side.namespaces.iter();
        let found = namespaces.find(|found| found.nsid == nsid && in_handle(found.generation) == asked);
        let Some((namespace, limits)) = found.and_then(|found| Some((found, found.limits?))) else {
            work.fail(Fault::new(ErrorKind::Changed, 0));
            return work.is_over();
        };
        if work.io.kind == IoKind::Write && !work.stops() && !self.may_write(side.gate, now) {
            self.waiting.push_back(index);
            return false;
        }
        while !work.stops() && work.sent < work.units() {
            let Some(user) = self.free.last().copied() else { break };
            let Some((command, transfer, step)) = command_of(work, namespace, (limits, side.queue.pieces())) else {
                work.fail(Fault::new(ErrorKind::ApiMisuse, 0));
                break;
            };
            let Some(cid) = side.queue.submit(&command, transfer, user) else { break };
            self.free.pop();
            let part = Part { work: index, at: work.sent, cid, since: now, live: true };
            if let Some(place) = self.parts.get_mut(sw_mem::index(u64::from(user))) {
                *place = part;
            }
            (work.sent, work.open) = (work.sent + step, work.open + 1);
        }
        if !work.stops() && work.sent < work.units() {
            self.waiting.push_back(index);
        }
        work.is_over()
    }

    /// Whether a write may be sent. As long as no further write of any lane is in doubt, what was safe is.
    fn may_write(&mut self, gate: &dyn Gate, now: Time) -> bool {
        let doubts = gate.doubts();
        if self.safe_at != Some(doubts) {
            self.safe_at = gate.is_safe(now).then_some(doubts);
        }
        self.safe_at.is_some()
    }

    /// Begins the works that wait; appends those that are over.
    pub fn resume(&mut self, works: &mut Works, side: &mut Side<'_, impl Commands>, over: &mut Vec<u32>, now: Time) {
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            if self.begin(index, works, side, now) {
                over.push(index);
            }
        }
    }

    /// Notes the end of a command; the work that is over by it.
    pub fn ended(&mut self, end: End, works: &mut Works, delays: &RetryDelays) -> Option<u32> {
        let part = self.parts.get_mut(sw_mem::index(u64::from(end.user))).filter(|part| part.live)?;
        part.live = false;
        let Part { work: index, at, .. } = *part;
        self.free.push(end.user);
        let work = works.get(index)?;
        work.open = work.open.saturating_sub(1);
        work.aside = work.aside.saturating_add(end.aside);
        match end.outcome {
            Outcome::Told(status) => match status.fault(delays) {
                // A write is sent again, by this controller or another one, only if the one that had it answered: it is done with a command
                // then, also where it could not complete it for a path of its own (00h, 60h; Base 2.1, "Path Related Status", leaves the
                // retry to DNR there), so that nothing of it lands behind the next one. A status that a host made says that nobody answered:
                // the command may be carried out yet, and no fence of ours reaches who has it.
                Some(fault) if work.is_write() && status.is_of_host() => {
                    work.fail_at(at, fault.with_retry(Retry::Never))
                }
                Some(fault) => work.fail_at(at, fault),
                None => work.moved(),
            },
            // The target's word against what came: it lies, or lost data.
            Outcome::Short { .. } => work.fail_at(at, Fault::new(ErrorKind::ShortData, 0)),
            Outcome::WrongDigest => {
                work.fail_at(at, Fault::new(ErrorKind::ChecksumMismatch, 0).with_retry(Retry::Now));
            }
            // Bytes of it may be anywhere.
            Outcome::LetGo => work.fail_at(at, Fault::new(ErrorKind::Cancelled, 0)),
        }
        work.is_over().then_some(index)
    }

    /// Ends the commands of a work for their caller, where their memory can be left alone from now on.
    pub fn let_go(&mut self, index: u32, queue: &mut impl Commands) {
        for part in self.parts.iter().filter(|part| part.live && part.work == index) {
            if queue.let_go(part.cid) && queue.is_let_go(part.cid) {
                self.zombies.push((part.cid, part.since));
            }
        }
        self.bury(queue);
    }

    /// Forgets commands that were let go of and answered since.
    fn bury(&mut self, queue: &impl Commands) {
        self.zombies.retain(|(cid, _)| queue.is_let_go(*cid));
    }

    /// Whether a command is late, one that nobody waits for included: its place in the queue is taken.
    pub fn is_late(&mut self, queue: &impl Commands, limit: Duration, now: Time) -> bool {
        self.bury(queue);
        let mut begun = self.parts.iter().filter(|part| part.live).map(|part| part.since);
        begun.any(|since| now.since(since) >= limit) || self.zombies.iter().any(|(_, since)| now.since(*since) >= limit)
    }

    /// The connection is lost: `kind` says how, `reached` how far each command came, by its identifier.
    ///
    /// A work that is over keeps its place until it is [finished](Works::finish).
    pub fn lost(self, works: &mut Works, kind: ErrorKind, reached: impl Fn(u16) -> Reached) -> Loss {
        let mut loss = Loss { in_doubt: false, over: Vec::new(), unsent: VecDeque::new() };
        let live: Vec<Part> = self.parts.into_iter().filter(|part| part.live).collect();
        for part in &live {
            let Some(work) = works.get(part.work) else { continue };
            work.open = work.open.saturating_sub(1);
            let fault = lost_with(kind, work.verb());
            let fault = match reached(part.cid) {
                Reached::Nobody => {
                    // Commands are sent in their order: those behind it were not sent either.
                    work.sent = work.sent.min(part.at);
                    continue;
                }
                Reached::Controller => fault,
                Reached::Kept => fault.kept(),
            };
            loss.in_doubt |= work.is_write();
            work.fail_at(part.at, fault);
        }
        for index in live.iter().map(|part| part.work).chain(self.waiting) {
            if loss.unsent.contains(&index) || loss.over.contains(&index) {
                continue;
            }
            let Some(work) = works.get(index) else { continue };
            work.lost = work.lost.saturating_add(1);
            if work.lost > CONNECTIONS_PER_IO_MAX && !work.stops() {
                work.fail(lost_with(kind, work.verb()));
            }
            // One that was cancelled before a command of it was sent is over, too.
            if work.is_over() {
                loss.over.push(index);
            } else {
                loss.unsent.push_back(index);
            }
        }
        loss
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
