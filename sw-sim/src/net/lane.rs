//! A lane: the product's works and ledger over the modelled network, as `sw-net`'s transport has them over sockets.

use std::collections::VecDeque;

use sw_engine::{
    ErrorKind, Fault, Time, Token,
    seam::{Io, IoDone},
};
use sw_nvme::{
    namespace::Namespace,
    status::RetryDelays,
    tcp::{
        host::{HostQueue, Range},
        ledger::{Ledger, Loss, Side},
        works::{Work, Works},
    },
};

use super::{
    Shared,
    attendant::{Attendant, Queue},
    params::HostParams,
    stream::Memory,
    user::Arena,
};
use crate::log::Mark;

/// How often commands are looked at that are late, in nanoseconds; as `sw-net` does.
pub(crate) const LOOK_EVERY_NS: u64 = 100_000_000;
/// A connection that nobody looked at for so long is looked at before something is sent.
const RESTED_AFTER_NS: u64 = LOOK_EVERY_NS;

struct Link {
    queue: Queue,
    ledger: Ledger,
    seen: u64,
}

enum Place {
    Unlinked,
    Asked(VecDeque<u32>),
    Linked(Box<Link>),
}

/// See the module documentation.
pub(crate) struct Lane {
    number: usize,
    params: HostParams,
    works: Works,
    place: Place,
    pub(crate) ended: Vec<IoDone>,
    /// Its thread does something else before.
    pub(crate) stalled_until: u64,
}

/// The memory of the commands on a link.
struct Data<'a> {
    ledger: &'a Ledger,
    works: &'a Works,
    arena: &'a mut Arena,
}

impl Memory for Data<'_> {
    fn take(&mut self, of: Range, shared: &mut Shared) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some((work, at)) = self.ledger.place(of, self.works) {
            work.memory(at, of.bytes.into(), |place, skip, len| {
                bytes.extend(self.arena.take(place.raw() + skip, len, shared));
            });
        }
        bytes.resize(sw_mem::index(of.bytes.into()), 0);
        bytes
    }

    fn land(&mut self, of: Range, bytes: &[u8], shared: &mut Shared) {
        let Some((work, at)) = self.ledger.place(of, self.works) else {
            return shared.violate("memory", format!("{} bytes come for a command that has ended", bytes.len()));
        };
        let mut rest = bytes;
        work.memory(at, bytes.len() as u64, |place, skip, len| {
            let (now, later) = rest.split_at(sw_mem::index(len).min(rest.len()));
            self.arena.land(place.raw() + skip, now, shared);
            rest = later;
        });
    }
}

impl Link {
    fn sides<'a>(
        &'a mut self,
        attendant: &'a Attendant,
        namespaces: &'a [Namespace],
    ) -> Option<(&'a mut Ledger, Side<'a, HostQueue>)> {
        let queue = self.queue.stream.queue.as_mut()?;
        Some((&mut self.ledger, Side { queue, namespaces, gate: &attendant.desk }))
    }

    fn begin(&mut self, index: u32, works: &mut Works, by: (&Attendant, &HostParams), now: Time) -> bool {
        let Some((ledger, mut side)) = self.sides(by.0, &by.1.namespaces) else { return false };
        ledger.begin(index, works, &mut side, now)
    }

    /// Moves bytes both ways; gives the works that are over.
    fn pump(
        &mut self,
        works: &mut Works,
        arena: &mut Arena,
        by: (&Attendant, &HostParams),
        shared: &mut Shared,
    ) -> (Vec<u32>, Result<(), ErrorKind>) {
        let (now, is_up) = (shared.now(), by.0.is_up(self.queue.association));
        let Self { queue: Queue { stream, .. }, ledger, seen } = self;
        let mut data = Data { ledger, works, arena };
        let rested = now - *seen >= RESTED_AFTER_NS;
        *seen = now;
        let mut moved = if rested { stream.receive(&mut data, shared) } else { Ok(()) };
        if moved.is_ok() {
            if is_up {
                stream.send(&mut data, shared);
            }
            moved = stream.receive(&mut data, shared);
        }
        let mut over = Vec::new();
        while let Some(end) = stream.queue.as_mut().and_then(|queue| queue.pop_end()) {
            over.extend(ledger.ended(end, works, &RetryDelays::default()));
        }
        if !is_up {
            return (over, Err(ErrorKind::Io));
        }
        if moved.is_err() {
            return (over, moved);
        }
        if let Some((ledger, mut side)) = self.sides(by.0, &by.1.namespaces) {
            ledger.resume(works, &mut side, &mut over, Time(now));
        }
        let Self { queue: Queue { stream, .. }, ledger, .. } = self;
        stream.send(&mut Data { ledger, works, arena }, shared);
        (over, Ok(()))
    }
}

impl Lane {
    pub(crate) fn new(number: usize, params: &HostParams) -> Self {
        Self {
            number,
            params: params.clone(),
            works: Works::default(),
            place: Place::Unlinked,
            ended: Vec::new(),
            stalled_until: 0,
        }
    }

    /// I/Os that are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.works.under_way()
    }

    /// Places of its queue that are taken.
    pub(crate) fn taken(&self) -> usize {
        if let Place::Linked(link) = &self.place { link.ledger.taken() } else { 0 }
    }

    pub(crate) fn submit(&mut self, io: &Io, arena: &mut Arena, attendant: &mut Attendant, shared: &mut Shared) {
        if matches!(&self.place, Place::Linked(link) if !attendant.is_up(link.queue.association)) {
            self.visit(arena, attendant, shared);
        }
        let index = self.works.take(io, 0);
        let now = Time(shared.now());
        match &mut self.place {
            Place::Linked(link) => {
                if link.begin(index, &mut self.works, (attendant, &self.params), now) {
                    self.ended.extend(self.works.finish(index));
                }
            }
            Place::Asked(waiting) => waiting.push_back(index),
            Place::Unlinked => self.ask_again(VecDeque::from([index]), attendant),
        }
    }

    fn ask_again(&mut self, waiting: VecDeque<u32>, attendant: &mut Attendant) {
        if waiting.is_empty() {
            return;
        }
        if attendant.is_gone {
            return self.refuse_all(&waiting, Fault::new(ErrorKind::NoDevice, 0));
        }
        attendant.ask(self.number);
        self.place = Place::Asked(waiting);
    }

    fn refuse_all(&mut self, waiting: &VecDeque<u32>, fault: Fault) {
        for index in waiting {
            self.works.get(*index).into_iter().for_each(|work| work.fail(fault));
            self.finish_if_over(*index);
        }
    }

    fn finish_if_over(&mut self, index: u32) {
        if self.works.look(index).is_some_and(Work::is_over) {
            self.ended.extend(self.works.finish(index));
        }
    }

    /// Takes a connection that it asked for, moves bytes, and looks for commands that are late.
    pub(crate) fn visit(&mut self, arena: &mut Arena, attendant: &mut Attendant, shared: &mut Shared) {
        if matches!(self.place, Place::Asked(_))
            && let Some(answer) = attendant.answers.remove(&self.number)
            && let Place::Asked(waiting) = core::mem::replace(&mut self.place, Place::Unlinked)
        {
            match answer {
                Ok(queue) => self.link(queue, waiting, attendant, shared),
                Err(kind) => self.refuse_all(&waiting, Fault::new(kind, 0)),
            }
        }
        let Place::Linked(link) = &mut self.place else { return };
        let (over, moved) = link.pump(&mut self.works, arena, (attendant, &self.params), shared);
        for index in over {
            self.ended.extend(self.works.finish(index));
        }
        if let Err(kind) = moved {
            return self.unlink(kind, attendant, shared);
        }
        let Place::Linked(link) = &mut self.place else { return };
        if let Some(queue) = &link.queue.stream.queue
            && link.ledger.is_late(queue, self.params.command_timeout, Time(shared.now()))
        {
            shared.mark(Mark::NetCommandLate);
            self.unlink(ErrorKind::Io, attendant, shared);
        }
    }

    fn link(&mut self, queue: Queue, waiting: VecDeque<u32>, attendant: &mut Attendant, shared: &mut Shared) {
        if !attendant.is_up(queue.association) {
            queue.stream.hang_up(shared);
            return self.ask_again(waiting, attendant);
        }
        let now = shared.now();
        let mut link = Box::new(Link { queue, ledger: Ledger::new(self.params.depth), seen: now });
        for index in waiting {
            if link.begin(index, &mut self.works, (attendant, &self.params), Time(now)) {
                self.ended.extend(self.works.finish(index));
            }
        }
        self.place = Place::Linked(link);
    }

    fn unlink(&mut self, kind: ErrorKind, attendant: &mut Attendant, shared: &mut Shared) {
        let Place::Linked(link) = core::mem::replace(&mut self.place, Place::Unlinked) else { return };
        let Link { queue: Queue { stream, association }, ledger, .. } = *link;
        let Loss { in_doubt, over, unsent } = ledger.lost(&mut self.works, kind, |cid| stream.is_untouched(cid));
        stream.hang_up(shared);
        shared.note("lane loses its connection", &[self.number as u64, over.len() as u64, unsent.len() as u64]);
        attendant.desk.0.borrow_mut().suspect();
        if in_doubt {
            attendant.doubt(association, shared);
        }
        if !unsent.is_empty() {
            shared.mark(Mark::NetUnsentGoesOn);
        }
        over.into_iter().for_each(|index| self.ended.extend(self.works.finish(index)));
        self.ask_again(unsent, attendant);
    }

    /// Asks for the early end of an I/O.
    pub(crate) fn cancel(&mut self, token: Token) {
        for index in 0..self.works.places() {
            let Some(work) = self.works.get(index).filter(|work| work.io.token == token) else { continue };
            work.cancel();
            match &mut self.place {
                Place::Linked(link) => {
                    if let Some(queue) = &mut link.queue.stream.queue {
                        link.ledger.let_go(index, queue);
                    }
                }
                Place::Asked(waiting) => {
                    waiting.retain(|queued| *queued != index);
                    self.finish_if_over(index);
                }
                Place::Unlinked => {}
            }
        }
    }
}
