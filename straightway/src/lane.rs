//! A lane for one thread: submit, poll, pop. The shortest way through the engine.

use std::{sync::Arc, time::Duration};

use sw_engine::{
    Completion, Counters, Error, ErrorKind, Op, OpId, OpOptions, PciAddress, Policy, Rejected, Spans, Target, Time,
    Verb,
    inspect::Tree,
    seam::{Attach, Wait, Wake},
};
use sw_mem::RegionId;

use crate::{core::Core, memory::Memory, object::Object, policy::Destination, request};

/// See [`Engine::lane`](crate::Engine::lane). It belongs to the thread that polls it first.
///
/// Operations go in and come back by value, object and memory included, so that a loop allocates nothing.
pub struct Lane {
    core: Arc<Core>,
    lane: sw_engine::Lane,
    destination: Destination,
}

/// Ends a wait of the thread that polls a [`Lane`]. Cloning shares it.
#[derive(Clone)]
pub struct LaneWaker(Arc<[Arc<dyn Wake>]>);

impl LaneWaker {
    /// Makes a poll that waits, or the next one to wait, return soon. Any thread; never blocks.
    pub fn wake(&self) {
        self.0.iter().for_each(|waker| waker.wake());
    }
}

impl Lane {
    pub(crate) fn new(core: Arc<Core>, lane: sw_engine::Lane, destination: Destination) -> Self {
        Self { core, lane, destination }
    }

    /// Makes many I/Os on `object` cheap (a registered file) until [`Lane::detach_object`].
    ///
    /// # Errors
    /// A limit of the system; I/Os work without.
    pub fn attach_object(&mut self, object: &Object) -> Result<(), Error> {
        match &object.inner().composed {
            None => self.lane.attach(Attach::Object(object.inner())),
            Some((_, members)) => members.iter().try_for_each(|member| self.lane.attach(Attach::Object(member))),
        }
    }

    /// Ends [`Lane::attach_object`]. An object that stays attached stays open.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn detach_object(&mut self, object: &Object) -> Result<(), Error> {
        match &object.inner().composed {
            None => self.lane.attach(Attach::ObjectGone(object.inner().id)),
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

    /// Takes an operation; it starts at the next [`Lane::ring`] or [`Lane::poll`] at the latest.
    ///
    /// # Errors
    /// [`Rejected`] with the operation: `Busy` means poll and try again, with `Retry::After` not before; `ApiMisuse` is memory that the lane was not made
    /// for, peer memory in a lane for host memory included: targets of one are not planned for the other.
    pub fn submit(&mut self, op: Op) -> Result<OpId, Rejected> {
        let fits = || expect_own(self.destination, op.verb, &op.spans, sw_uring::peer::provider_of);
        if let Err(error) = self.core.check(op.verb).and_then(|()| fits()) {
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

    /// The point in time `after` from now, for the deadline of an operation: [`OpOptions::deadline`].
    pub fn deadline(&self, after: Duration) -> Time {
        self.core.clock.now().after(after)
    }

    /// How another thread ends a wait in [`Lane::poll`].
    pub fn waker(&self) -> LaneWaker {
        LaneWaker(self.lane.wakers().into())
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

/// An error unless all memory of an operation is peer memory of the lane's own provider, or none of it is peer memory: to
/// the engine both have addresses of this process. What has none it tells apart itself.
fn expect_own(
    destination: Destination,
    verb: Verb,
    spans: &Spans,
    provider_of: impl Fn(RegionId) -> Option<PciAddress>,
) -> Result<(), Error> {
    let own = match destination {
        Destination::PeerMemory(provider) => Some(provider),
        Destination::Host | Destination::Gpu(_) | Destination::Bar(_) => None,
    };
    let other = match spans {
        Spans::None => None,
        Spans::One(span) => Some(provider_of(span.region().id())).filter(|provider| *provider != own),
        Spans::Many(segments) => {
            segments.iter().map(|segment| provider_of(segment.span.region().id())).find(|provider| *provider != own)
        }
    };
    let Some(other) = other else { return Ok(()) };
    let given =
        other.map_or_else(|| "memory of no such device".to_owned(), |at| Destination::PeerMemory(at).to_string());
    Err(Error::new(ErrorKind::ApiMisuse, verb)
        .at(format!("a lane for {destination}"))
        .detail(format!("was given {given}"))
        .remedy("make a lane for each destination, and targets from it"))
}

#[cfg(test)]
mod tests {
    use sw_engine::Segment;
    use sw_mem::{Buffer, ByteLen, DmaSpan};

    use super::*;

    fn span() -> DmaSpan {
        Buffer::allocate(ByteLen(4096)).unwrap().into_span()
    }

    #[test]
    fn a_lane_takes_memory_of_its_own_provider_only() {
        let at = |bus| PciAddress { domain: 0, bus, device: 0, function: 0 };
        let (near, far) = (Destination::PeerMemory(at(3)), Destination::PeerMemory(at(4)));
        let (host, peer) = (Spans::One(span()), Spans::One(span()));
        let Spans::One(lent) = &peer else { panic!() };
        let lent = lent.region().id();
        let provider_of = |region| (region == lent).then_some(at(3));
        let misused = |destination, spans: &Spans| {
            expect_own(destination, Verb::Read, spans, provider_of).map_err(|error| error.kind())
        };
        let refused = Err(ErrorKind::ApiMisuse);
        assert_eq!((misused(Destination::Host, &host), misused(Destination::Host, &peer)), (Ok(()), refused));
        assert_eq!((misused(near, &host), misused(near, &peer), misused(far, &peer)), (refused, Ok(()), refused));
        assert_eq!((misused(near, &Spans::None), misused(Destination::Gpu(0), &host)), (Ok(()), Ok(())));
        let (Spans::One(one), Spans::One(other)) = (host, peer) else { panic!() };
        let mixed = Spans::Many(vec![Segment { offset: 0, span: one }, Segment { offset: 4096, span: other }].into());
        assert_eq!((misused(Destination::Host, &mixed), misused(near, &mixed)), (refused, refused));
    }
}
