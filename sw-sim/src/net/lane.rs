//! A lane: the product's works and ledger over the modelled network, as `sw-net`'s transport has them over sockets.

use std::{collections::VecDeque, rc::Rc};

use sw_engine::{
    ErrorKind, Fault, Time, Token,
    seam::{Io, IoDone},
};
use sw_nvme::{
    directory::{generation, in_handle},
    paths::{Choice, Spread, Standing, choose},
    status::RetryDelays,
    tcp::{
        host::{HostQueue, Range},
        ledger::{Ledger, Loss, Reached, Side},
        works::{Work, Works},
    },
};

use super::{
    Shared,
    attendant::{Attendant, Awaited, Family, Queue},
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
    Asked,
    Linked(Box<Link>),
}

/// See the module documentation.
pub(crate) struct Lane {
    number: usize,
    params: HostParams,
    works: Works,
    /// Of each path.
    places: Vec<Place>,
    /// Works that no path is connected for.
    waiting: VecDeque<u32>,
    /// Writes that go on though their users were told of their end.
    awaited: Vec<(u32, Awaited)>,
    turn: usize,
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
    fn sides<'a>(&'a mut self, attendant: &'a Attendant) -> Option<(&'a mut Ledger, Side<'a, HostQueue>)> {
        let queue = self.queue.stream.queue.as_mut()?;
        Some((&mut self.ledger, Side { queue, namespaces: attendant.namespaces(), gate: &*attendant.family }))
    }

    fn begin(&mut self, index: u32, works: &mut Works, attendant: &Attendant, now: Time) -> bool {
        let Some((ledger, mut side)) = self.sides(attendant) else { return false };
        ledger.begin(index, works, &mut side, now)
    }

    /// Moves bytes both ways; gives the works that are over.
    fn pump(
        &mut self,
        works: &mut Works,
        arena: &mut Arena,
        attendant: &Attendant,
        shared: &mut Shared,
    ) -> (Vec<u32>, Result<(), ErrorKind>) {
        let (now, is_up) = (shared.now(), attendant.is_up(self.queue.association));
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
        if let Some((ledger, mut side)) = self.sides(attendant) {
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
            places: (0..params.paths).map(|_| Place::Unlinked).collect(),
            waiting: VecDeque::new(),
            awaited: Vec::new(),
            turn: 0,
            ended: Vec::new(),
            stalled_until: 0,
        }
    }

    /// I/Os that are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.works.under_way()
    }

    /// Places of its queues that are taken.
    pub(crate) fn taken(&self) -> usize {
        let taken = |place: &Place| if let Place::Linked(link) = place { link.ledger.taken() } else { 0 };
        self.places.iter().map(taken).sum()
    }

    pub(crate) fn submit(&mut self, io: &Io, arena: &mut Arena, all: &mut [Attendant], shared: &mut Shared) {
        let index = self.works.take(io, 0);
        self.send(VecDeque::from([index]), arena, all, shared);
    }

    /// How a namespace of that generation stands by a path: as `sw-net`'s legs have it.
    fn standing(&self, path: usize, handle: u64, all: &[Attendant]) -> Standing {
        let Some(attendant) = all.get(path).filter(|attendant| !attendant.is_gone) else { return Standing::Never };
        if !attendant.is_any_up() {
            return Standing::Coming;
        }
        let asked = generation(handle);
        if !attendant.namespaces().iter().any(|found| in_handle(found.generation) == asked) {
            return Standing::Another;
        }
        Standing::of(attendant.access())
    }

    /// Whether a path has a connection of an association that is up.
    fn is_linked(&self, path: usize, all: &[Attendant]) -> bool {
        let is_up = |link: &Link| all.get(path).is_some_and(|attendant| attendant.is_up(link.queue.association));
        matches!(self.places.get(path), Some(Place::Linked(link)) if is_up(link))
    }

    /// Gives works that are without a path one.
    fn send(&mut self, works: VecDeque<u32>, arena: &mut Arena, all: &mut [Attendant], shared: &mut Shared) {
        for index in works {
            let Some(handle) = self.works.look(index).map(|work| work.io.handle) else { continue };
            let told: Vec<_> = (0..self.places.len()).map(|path| self.standing(path, handle, all)).collect();
            // As `sw-net`: what is connected comes before what may be soon.
            let here = told.iter().enumerate().map(|(path, told)| {
                let is_linked = self.is_linked(path, all);
                (if is_linked { *told } else { (*told).min(Standing::Coming) }, self.busy(path))
            });
            let here: Vec<_> = here.collect();
            let choice = choose(here.iter().copied(), Spread::All, self.turn);
            self.turn += 1;
            match choice {
                Choice::By(path) => {
                    let least =
                        if self.is_linked(path, all) { told.get(path).copied() } else { Some(Standing::Coming) };
                    for (other, _) in told.iter().enumerate().filter(|(_, told)| Some(**told) >= least) {
                        self.ask_if_unlinked(other, arena, all, shared);
                    }
                    self.give(path, index, all, shared);
                }
                Choice::Never(Standing::Another) => self.fail(index, Fault::new(ErrorKind::Changed, 0)),
                Choice::Never(_) | Choice::Wait => self.fail(index, Fault::new(ErrorKind::NoDevice, 0)),
            }
        }
    }

    fn busy(&self, path: usize) -> usize {
        match self.places.get(path) {
            Some(Place::Linked(link)) => link.ledger.busy(),
            Some(Place::Unlinked | Place::Asked) | None => 0,
        }
    }

    /// Asks for a connection of a path that has none, or one of an association that is over.
    fn ask_if_unlinked(&mut self, path: usize, arena: &mut Arena, all: &mut [Attendant], shared: &mut Shared) {
        if matches!(self.places.get(path), Some(Place::Linked(_))) && !self.is_linked(path, all) {
            self.visit_path(path, arena, all, shared);
        }
        if matches!(self.places.get(path), Some(Place::Unlinked)) {
            self.ask(path, all);
        }
    }

    /// Gives a work to a path, if that is connected; else it waits for the first one that is.
    fn give(&mut self, path: usize, index: u32, all: &[Attendant], shared: &Shared) {
        let now = Time(shared.now());
        if !self.is_linked(path, all) {
            return self.waiting.push_back(index);
        }
        if let (Some(Place::Linked(link)), Some(attendant)) = (self.places.get_mut(path), all.get(path))
            && link.begin(index, &mut self.works, attendant, now)
        {
            self.finish(index);
        }
    }

    /// Asks for a connection, unless there will be none any more.
    fn ask(&mut self, path: usize, all: &mut [Attendant]) {
        if let (Some(attendant), Some(place)) = (all.get_mut(path), self.places.get_mut(path))
            && !attendant.is_gone
        {
            attendant.ask(self.number);
            *place = Place::Asked;
        }
    }

    fn fail(&mut self, index: u32, fault: Fault) {
        self.works.get(index).into_iter().for_each(|work| work.fail(fault));
        if self.works.look(index).is_some_and(Work::is_over) {
            self.finish(index);
        }
    }

    /// A work is over.
    fn finish(&mut self, index: u32) {
        self.ended.extend(self.works.finish(index));
        self.awaited.retain(|(of, _)| *of != index);
    }

    /// Takes connections that it asked for, moves bytes, and looks for commands that are late.
    pub(crate) fn visit(&mut self, arena: &mut Arena, all: &mut [Attendant], shared: &mut Shared) {
        for path in 0..self.places.len() {
            self.visit_path(path, arena, all, shared);
        }
        // What waits may find another path.
        let waiting = core::mem::take(&mut self.waiting);
        self.send(waiting, arena, all, shared);
    }

    fn visit_path(&mut self, path: usize, arena: &mut Arena, all: &mut [Attendant], shared: &mut Shared) {
        let (Some(attendant), Some(place)) = (all.get_mut(path), self.places.get_mut(path)) else { return };
        if matches!(place, Place::Asked)
            && let Some(answer) = attendant.answers.remove(&self.number)
        {
            *place = Place::Unlinked;
            let is_only = self.places.len() == 1;
            match answer {
                Ok(queue) => self.link(path, queue, (arena, all), shared),
                Err(kind) if is_only => {
                    core::mem::take(&mut self.waiting)
                        .into_iter()
                        .for_each(|index| self.fail(index, Fault::new(kind, 0)));
                }
                // What waits finds another path, or none.
                Err(_) => {}
            }
        }
        let (Some(attendant), Some(Place::Linked(link))) = (all.get_mut(path), self.places.get_mut(path)) else {
            return;
        };
        let (over, moved) = link.pump(&mut self.works, arena, attendant, shared);
        let (limit, now) = (self.params.command_timeout, Time(shared.now()));
        let queue = link.queue.stream.queue.as_ref();
        let is_late = queue.is_some_and(|queue| link.ledger.is_late(queue, limit, now));
        for index in over {
            self.finish(index);
        }
        if let Err(kind) = moved {
            return self.unlink(path, kind, (arena, all), shared);
        }
        if is_late {
            shared.mark(Mark::NetCommandLate);
            self.unlink(path, ErrorKind::Io, (arena, all), shared);
        }
    }

    fn link(&mut self, path: usize, queue: Queue, (arena, all): (&mut Arena, &mut [Attendant]), shared: &mut Shared) {
        let Some(attendant) = all.get(path) else { return };
        let waiting = core::mem::take(&mut self.waiting);
        if !attendant.is_up(queue.association) {
            queue.stream.hang_up(shared);
            return self.send(waiting, arena, all, shared);
        }
        if let Some(place) = self.places.get_mut(path) {
            let link = Link { queue, ledger: Ledger::new(self.params.depth), seen: shared.now() };
            *place = Place::Linked(Box::new(link));
        }
        // As `sw-net`: the controller may have told meanwhile that it does not lead to what they read.
        self.send(waiting, arena, all, shared);
    }

    fn unlink(
        &mut self,
        path: usize,
        kind: ErrorKind,
        (arena, all): (&mut Arena, &mut [Attendant]),
        shared: &mut Shared,
    ) {
        let (Some(attendant), Some(place)) = (all.get_mut(path), self.places.get_mut(path)) else { return };
        let Place::Linked(link) = core::mem::replace(place, Place::Unlinked) else { return };
        let Link { queue: Queue { stream, association }, ledger, .. } = *link;
        let reached = |cid| if stream.is_untouched(cid) { Reached::Nobody } else { Reached::Controller };
        let Loss { in_doubt, over, unsent } = ledger.lost(&mut self.works, kind, reached);
        stream.hang_up(shared);
        shared.note("lane loses its connection", &[self.number as u64, over.len() as u64, unsent.len() as u64]);
        attendant.suspect();
        if in_doubt {
            attendant.doubt(association, shared);
        }
        if !unsent.is_empty() {
            shared.mark(Mark::NetUnsentGoesOn);
        }
        over.into_iter().for_each(|index| self.finish(index));
        self.send(unsent, arena, all, shared);
    }

    /// Asks for the early end of an I/O; whether it is a write that goes on all the same.
    pub(crate) fn cancel(&mut self, token: Token, family: &Rc<Family>) -> bool {
        let mut is_told = false;
        for index in 0..self.works.places() {
            let Some(work) = self.works.get(index).filter(|work| work.io.token == token) else { continue };
            work.cancel();
            let before = self.waiting.len();
            self.waiting.retain(|queued| *queued != index);
            let is_found = self.waiting.len() < before;
            for place in &mut self.places {
                if let Place::Linked(link) = place
                    && let Some(queue) = &mut link.queue.stream.queue
                {
                    link.ledger.let_go(index, queue);
                }
            }
            if is_found && self.works.look(index).is_some_and(Work::is_over) {
                self.finish(index);
            }
            if self.works.look(index).is_some_and(|work| work.is_write() && work.is_under_way()) {
                is_told = true;
                self.awaited.push((index, Awaited::new(family)));
            }
        }
        is_told
    }
}
