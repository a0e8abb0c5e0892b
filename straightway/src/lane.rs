//! A lane for one thread: submit, poll, pop. The shortest way through the engine.

use std::{sync::Arc, time::Duration};

use sw_engine::{
    Completion, Counters, Error, Op, OpId, OpOptions, Policy, Rejected, Spans, Target, Verb,
    inspect::Tree,
    seam::{Attach, Wait},
};

use crate::{core::Core, memory::Memory, object::Object, policy::Destination, request};

/// See [`Engine::lane`](crate::Engine::lane). It belongs to the thread that polls it first.
///
/// Operations go in and come back by value, object and memory included, so that a loop allocates nothing.
pub struct Lane {
    core: Arc<Core>,
    lane: sw_engine::Lane,
    destination: Destination,
}

impl Lane {
    pub(crate) fn new(core: Arc<Core>, lane: sw_engine::Lane, destination: Destination) -> Self {
        Self { core, lane, destination }
    }

    /// Registers the lane's own slabs, for bounced and staged bytes.
    ///
    /// # Errors
    /// `ResourceLimit` if too little memory may be locked; everything works without, at a higher cost per I/O.
    pub fn attach_slabs(&mut self) -> Result<(), Error> {
        self.lane.attach_slabs()
    }

    /// Makes many I/Os on `object` cheap (a registered file) until [`Lane::detach_object`].
    ///
    /// # Errors
    /// A limit of the system; I/Os work without.
    pub fn attach_object(&mut self, object: &Object) -> Result<(), Error> {
        match &object.inner.stripe {
            None => self.lane.attach(Attach::Object(&object.inner)),
            Some((_, members)) => members.iter().try_for_each(|member| self.lane.attach(Attach::Object(member))),
        }
    }

    /// Ends [`Lane::attach_object`]. An object that stays attached stays open.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn detach_object(&mut self, object: &Object) -> Result<(), Error> {
        match &object.inner.stripe {
            None => self.lane.attach(Attach::ObjectGone(object.inner.id)),
            Some((_, members)) => members.iter().try_for_each(|member| self.lane.attach(Attach::ObjectGone(member.id))),
        }
    }

    /// Makes many I/Os into the allocation behind `memory` cheap (pinned once).
    ///
    /// # Errors
    /// `ResourceLimit` if too little memory may be locked; I/Os work without.
    pub fn attach_memory(&mut self, memory: &Memory) -> Result<(), Error> {
        self.lane.attach(Attach::Region(memory.span.region()))
    }

    /// Plans once for many operations.
    ///
    /// # Errors
    /// `PolicyUnmet` or `Unsupported` with the reasons.
    pub fn target(&self, object: &Object, policy: &Policy, verb: Verb) -> Result<Target, Error> {
        object.refresh();
        request::target(&self.core, object, self.destination, policy, verb)
    }

    /// Takes an operation; it starts at the next [`Lane::ring`] or [`Lane::poll`].
    ///
    /// # Errors
    /// [`Rejected`] with the operation: `Busy` means poll and try again.
    pub fn submit(&mut self, op: Op) -> Result<OpId, Rejected> {
        if let Err(error) = self.core.check(op.verb) {
            return Err(Rejected { op, error });
        }
        self.lane.submit(self.core.clock.now(), op)
    }

    /// An operation on `target`, to submit. `offset` counts from the start of the whole object: see [`Object::position`].
    pub fn op(user: u64, verb: Verb, target: Target, offset: u64, memory: Memory) -> Op {
        Op { user, verb, target, offset, spans: Spans::One(memory.span), options: OpOptions::default() }
    }

    /// The memory of a completed operation with one part.
    pub fn memory_of(op: Op) -> Option<Memory> {
        match op.spans {
            Spans::One(span) => Some(Memory { span }),
            _ => None,
        }
    }

    /// Hands everything taken to the devices.
    pub fn ring(&mut self) {
        self.lane.ring();
    }

    /// Moves everything forward and waits at most `timeout` for `min` completions; returns how many are ready.
    pub fn poll(&mut self, timeout: Duration, min: u32) -> usize {
        let wait = if timeout.is_zero() { Wait::No } else { Wait::For { timeout, min } };
        self.lane.poll(self.core.clock.now(), wait)
    }

    /// As [`Lane::poll`], for a caller that keeps much in flight: lets a few completions gather, so that their
    /// successors go to the device together. Rates are higher by it, the first completion is later by at most the
    /// gathering time of the transport (100 microseconds for io_uring).
    pub fn poll_gathering(&mut self, timeout: Duration) -> usize {
        let wait = Wait::gathering(timeout, self.lane.in_flight());
        self.lane.poll(self.core.clock.now(), wait)
    }

    /// The next completion.
    pub fn pop(&mut self) -> Option<Completion> {
        self.lane.pop()
    }

    /// Ends an operation early.
    pub fn cancel(&mut self, id: OpId) {
        self.lane.cancel(self.core.clock.now(), id);
    }

    /// Operations that have not completed.
    pub fn in_flight(&self) -> usize {
        self.lane.in_flight()
    }

    /// Sums since the lane was made.
    pub fn counters(&self) -> &Counters {
        self.lane.counters()
    }

    /// The live state.
    pub fn inspect(&self) -> Tree {
        self.lane.inspect()
    }
}
