//! Which way the I/Os of a lane go: to a leg, to another one when that is lost, or nowhere yet.

use std::{collections::VecDeque, sync::Arc};

use sw_engine::{Error, ErrorKind, Fault, Time};
use sw_nvme::{
    directory::CONTROLLERS_MAX,
    paths::{Choice, PATHS_MAX, Standing, choose},
    status::{Class, Status},
    tcp::works::Work,
};

use super::{
    Look, TcpTransport,
    legs::{Head, Leg, Mood, Place},
};
use crate::{clock::now, paths::Paths};

impl TcpTransport {
    /// Whether there is such a subsystem; its legs are there from now on.
    pub(super) fn meet(&mut self, head: usize) -> bool {
        if matches!(self.heads.get(head), Some(Some(_))) {
            return true;
        }
        let Some(paths) = self.directory.get(u32::try_from(head).unwrap_or(u32::MAX)) else { return false };
        if head >= self.heads.len() && head < CONTROLLERS_MAX {
            self.heads.resize_with(head + 1, || None);
            self.whys.resize_with(head + 1, || None);
        }
        let (first, count) = (self.legs.len(), paths.count().min(PATHS_MAX));
        let Some(to) = self.heads.get_mut(head) else { return false };
        *to = Some(Head { paths, first, count, waiting: VecDeque::new(), starved: None, turn: 0 });
        self.legs.extend((0..count).map(|number| Leg::new(head, number)));
        true
    }

    /// Sends a work by a path, and those that are without one by that.
    pub(super) fn send(&mut self, index: u32, now: Time) {
        self.homeless.push(index);
        self.send_homeless(now);
    }

    /// Gives each work that is without a path another one, or lets it wait. Each is lost a few times at most, so that this ends.
    pub(super) fn send_homeless(&mut self, now: Time) {
        while let Some(index) = self.homeless.pop() {
            self.send_one(index, now);
        }
    }

    pub(super) fn send_one(&mut self, index: u32, now: Time) {
        let Some(work) = self.works.look(index) else { return };
        if work.is_over() {
            return self.finish_if_over(index);
        }
        let (place, handle) = (work.place, work.io.handle);
        let Some(Some(head)) = self.heads.get_mut(place) else { return };
        let mut standings = [(Standing::Never, 0); PATHS_MAX];
        for (to, leg) in standings.iter_mut().zip(self.legs.iter_mut().skip(head.first).take(head.count)) {
            *to = (leg.standing(&head.paths, handle, now), leg.busy());
        }
        let choice = choose(standings.iter().take(head.count).copied(), head.paths.spread(), head.turn);
        head.turn = head.turn.wrapping_add(1);
        match choice {
            Choice::By(number) => {
                let leg = head.first + number;
                match standings.get(number) {
                    // A controller that is given up by itself ends what waits for it.
                    Some((Standing::Coming, _)) if head.paths.outlasts_patience(number) => {
                        head.starved.get_or_insert(now);
                    }
                    Some((Standing::Works | Standing::Best, _)) => head.starved = None,
                    _ => {}
                }
                self.give(leg, index, now);
            }
            Choice::Wait => {
                head.starved.get_or_insert(now);
                head.waiting.push_back(index);
            }
            Choice::Never(Standing::Another) => self.fail(index, Fault::new(ErrorKind::Changed, 0)),
            Choice::Never(_) => self.fail_without_path(place, index),
        }
    }

    /// Gives a work to a path.
    pub(super) fn give(&mut self, leg: usize, index: u32, now: Time) {
        if matches!(self.legs.get(leg), Some(Leg { place: Place::Linked(link), .. }) if !link.is_up()) {
            // The handle may be of the next association, which the connection knows nothing of.
            self.visit(leg, (Look::Both, now));
        }
        if matches!(self.legs.get(leg), Some(Leg { place: Place::Unlinked, .. }))
            && let Err(fault) = self.ask(leg)
        {
            return self.fail(index, fault);
        }
        match self.legs.get_mut(leg).map(|leg| &mut leg.place) {
            Some(Place::Linked(link)) => {
                if link.begin(index, &mut self.works, now) {
                    self.ended.extend(self.works.finish(index));
                }
            }
            Some(Place::Asked(_, waiting)) => waiting.push_back(index),
            Some(Place::Unlinked) | None => {}
        }
    }

    /// Ends a work of which nothing is under way.
    pub(super) fn fail(&mut self, index: u32, fault: Fault) {
        if let Some(work) = self.works.get(index) {
            work.fail(fault);
        }
        self.finish_if_over(index);
    }

    /// Ends a work for which no path comes.
    pub(super) fn fail_without_path(&mut self, head: usize, index: u32) {
        let Some(Some(there)) = self.heads.get(head) else { return };
        let handle = self.works.look(index).map_or(0, |work| work.io.handle);
        let gone = there.paths.controllers().find(|controller| controller.is_gone());
        let why = match (there.count, gone) {
            (1, Some(controller)) => controller.lost(),
            _ => {
                let facts = there.paths.controllers().map(|controller| controller.facts());
                let namespace = facts.into_iter().find_map(|facts| facts.namespace_of(handle).cloned());
                there.paths.no_path(namespace.as_ref())
            }
        };
        let fault = Fault::new(why.kind(), why.code());
        self.explain_by(head, why);
        self.fail(index, fault);
    }

    /// The paths that a leg is one of.
    pub(super) fn paths_of(&self, leg: usize) -> Option<Arc<Paths>> {
        let head = self.legs.get(leg)?.head;
        Some(Arc::clone(&self.heads.get(head)?.as_ref()?.paths))
    }

    /// Asks for a connection of a leg.
    pub(super) fn ask(&mut self, leg: usize) -> Result<(), Fault> {
        let paths = self.paths_of(leg);
        let Some(leg) = self.legs.get_mut(leg) else { return Err(Fault::new(ErrorKind::NoDevice, 0)) };
        let Some(controller) = paths.as_ref().and_then(|paths| paths.controller(leg.number())) else {
            return Err(Fault::new(ErrorKind::NoDevice, 0));
        };
        if controller.is_gone() {
            let (head, why) = (leg.head, controller.lost());
            self.explain_by(head, why);
            return Err(Fault::new(ErrorKind::NoDevice, 0));
        }
        leg.place = Place::Asked(controller.ask_for_queue(self.waiter.bell()), VecDeque::new());
        Ok(())
    }

    /// Notes of a leg that a command failed on its way: the engine asks again, and that goes by another one.
    pub(super) fn heed(&mut self, leg: usize, fault: Fault, now: Time) {
        let Ok(code) = u16::try_from(fault.code) else { return };
        let [sct, sc] = code.to_be_bytes();
        if let Some(Leg { place: Place::Linked(link), .. }) = self.legs.get(leg)
            && Status::new(sct, sc).class() == Class::Path
        {
            let controller = Arc::clone(&link.controller);
            self.legs.iter_mut().skip(leg).take(1).for_each(|leg| leg.heed(&controller, code, now));
        }
    }

    /// A connection is not made: the works that wait for it go by another path where there are several, or end.
    pub(super) fn refuse_all(&mut self, leg: usize, waiting: VecDeque<u32>, error: Error) {
        let Some(at) = self.legs.get_mut(leg) else { return };
        at.mood = Mood::Lost;
        let (head, has_others) = (at.head, self.has_others(leg));
        let fault = Fault::new(error.kind(), error.code());
        self.explain_by(head, error);
        for index in waiting {
            if has_others && self.works.get(index).is_some_and(Work::may_go_on) {
                self.homeless.push(index);
            } else {
                self.fail(index, fault);
            }
        }
        self.send_homeless(now());
    }

    /// Whether there are other legs to the subsystem of a leg.
    pub(super) fn has_others(&self, leg: usize) -> bool {
        let head = self.legs.get(leg).and_then(|leg| self.heads.get(leg.head));
        head.and_then(Option::as_ref).is_some_and(|head| head.count > 1)
    }

    /// Looks for paths of works that wait for one, and for connections of legs that lost theirs.
    pub(super) fn look_for_paths(&mut self, now: Time) {
        for leg in 0..self.legs.len() {
            let is_lost = |leg: &&Leg| leg.mood == Mood::Lost && matches!(leg.place, Place::Unlinked);
            if self.legs.get(leg).as_ref().is_some_and(is_lost) && self.has_others(leg) && !self.closed {
                let _ = self.ask(leg);
            }
        }
        for head in 0..self.heads.len() {
            let Some(Some(there)) = self.heads.get_mut(head) else { continue };
            let is_over = there.starved.is_some_and(|since| now.since(since) >= there.paths.patience());
            let mut waiting = std::mem::take(&mut there.waiting);
            for leg in self.legs.iter_mut().skip(there.first).take(there.count) {
                // What waits for a connection is not bound to it.
                if let Place::Asked(_, asked) = &mut leg.place {
                    waiting.append(asked);
                }
            }
            if is_over || waiting.is_empty() {
                there.starved = None;
            }
            if is_over {
                waiting.into_iter().for_each(|index| self.fail_without_path(head, index));
            } else {
                self.homeless.extend(waiting.into_iter().rev());
                self.send_homeless(now);
            }
        }
    }

    /// Asks for the early end of the works that `which` chooses.
    pub(super) fn let_go(&mut self, which: impl Fn(&Work) -> bool) {
        for index in 0..self.works.places() {
            let Some(work) = self.works.get(index).filter(|work| which(work)) else { continue };
            work.cancel();
            let Some(Some(head)) = self.heads.get_mut(work.place) else { continue };
            let mut is_found = take_out(&mut head.waiting, index);
            for leg in self.legs.iter_mut().skip(head.first).take(head.count) {
                match &mut leg.place {
                    // Of another leg's work it has nothing; its own ends with its commands.
                    Place::Linked(link) => link.ledger.let_go(index, &mut link.queue.connection),
                    Place::Asked(_, waiting) => is_found |= take_out(waiting, index),
                    Place::Unlinked => {}
                }
            }
            if is_found {
                self.finish_if_over(index);
            }
        }
    }
}

/// Takes a work out of a queue; whether it was there.
fn take_out(queue: &mut VecDeque<u32>, index: u32) -> bool {
    let before = queue.len();
    queue.retain(|queued| *queued != index);
    queue.len() < before
}
