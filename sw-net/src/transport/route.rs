//! Which way the I/Os of a lane go: to a leg, to another one when that is lost, or nowhere yet.

use std::{collections::VecDeque, sync::Arc};

use sw_engine::{Error, ErrorKind, Fault, Retry, Time, seam::IoDone};
use sw_nvme::{
    directory::CONTROLLERS_MAX,
    paths::{Choice, PATHS_MAX, Spread, Standing, choose},
    status::{Class, Status},
    tcp::works::Work,
};

use super::{
    LOOK_EVERY, Look, TcpTransport,
    legs::{Head, Leg, Place},
};
use crate::paths::Paths;

/// How a namespace stands by each leg.
type Standings = [Standing; PATHS_MAX];

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
        *to = Some(Head { paths, first, count, waiting: VecDeque::new(), turn: 0 });
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
        let told = self.standings(place, handle, now);
        let Some(Some(head)) = self.heads.get_mut(place) else { return };
        let mut here = [(Standing::Never, 0); PATHS_MAX];
        for ((to, told), leg) in here.iter_mut().zip(told).zip(self.legs.iter().skip(head.first).take(head.count)) {
            // Whatever is connected comes before whatever may be soon.
            *to = (if leg.is_linked() { told } else { told.min(Standing::Coming) }, leg.busy());
        }
        let spread = head.paths.spread();
        let choice = choose(here.iter().take(head.count).copied(), spread, head.turn);
        head.turn = head.turn.wrapping_add(1);
        match choice {
            Choice::By(number) => {
                let leg = head.first + number;
                let is_linked = self.legs.get(leg).is_some_and(Leg::is_linked);
                self.ask_those(place, (number, is_linked), (&told, spread), now);
                if is_linked {
                    self.give(leg, index, now);
                } else {
                    self.wait(index, now);
                }
            }
            Choice::Wait => self.wait(index, now),
            Choice::Never(Standing::Another) => self.fail(index, Fault::new(ErrorKind::Changed, 0)),
            Choice::Never(_) => self.fail_without_path(place, index),
        }
    }

    /// How the namespace of a handle stands by each leg of a head, connected or not.
    fn standings(&mut self, head: usize, handle: u64, now: Time) -> Standings {
        let mut told = [Standing::Never; PATHS_MAX];
        if let Some(Some(head)) = self.heads.get(head) {
            let legs = self.legs.iter_mut().skip(head.first).take(head.count);
            told.iter_mut().zip(legs).for_each(|(to, leg)| *to = leg.standing(&head.paths, handle, now));
        }
        told
    }

    /// Asks for connections of those legs that a work would rather go by, or as well, than by the one that was chosen; where that one is not connected
    /// either, of all that it could go by: which one is there first nobody knows.
    fn ask_those(
        &mut self,
        head: usize,
        (chosen, is_linked): (usize, bool),
        (told, spread): (&Standings, Spread),
        now: Time,
    ) {
        let Some(Some(Head { first, count, .. })) = self.heads.get(head) else { return };
        let (first, count) = (*first, *count);
        let best = told.get(chosen).copied().unwrap_or(Standing::Never);
        for (number, told) in told.iter().enumerate().take(count) {
            let is_wanted = match spread {
                _ if !is_linked => number == chosen || *told >= Standing::Coming,
                Spread::All => *told >= best,
                Spread::First => *told > best || *told == best && number < chosen,
            };
            let Some(leg) = self.legs.get(first + number).filter(|leg| is_wanted && !leg.is_linked()) else { continue };
            if matches!(leg.place, Place::Linked(_)) {
                // Of an association that is over.
                self.visit(first + number, (Look::Both, now));
            }
            let is_free = |leg: &Leg| matches!(leg.place, Place::Unlinked);
            // Of a single one every I/O asks.
            let is_due = |leg: &Leg| count == 1 || leg.refused_until.is_none_or(|until| now >= until);
            if self.legs.get(first + number).is_some_and(|leg| is_free(leg) && is_due(leg)) {
                // One that is gone is known as such.
                let _ = self.ask(first + number);
            }
        }
    }

    /// Has a work wait for a leg.
    fn wait(&mut self, index: u32, now: Time) {
        let Some(work) = self.works.get(index) else { return };
        work.waits(now);
        let place = work.place;
        if let Some(Some(head)) = self.heads.get_mut(place) {
            head.waiting.push_back(index);
        }
    }

    /// Gives a work to a leg that is connected.
    fn give(&mut self, leg: usize, index: u32, now: Time) {
        let Some(Leg { place: Place::Linked(link), .. }) = self.legs.get_mut(leg) else {
            return self.wait(index, now);
        };
        self.works.get(index).into_iter().for_each(Work::goes);
        if link.begin(index, &mut self.works, now) {
            let done = self.finish(index);
            self.ended.extend(done);
        }
    }

    /// Takes a work that is over out; a write that others wait for keeps them back no longer.
    pub(super) fn finish(&mut self, index: u32) -> Option<IoDone> {
        let done = self.works.finish(index)?;
        self.awaited.retain(|(of, _)| *of != index);
        Some(done)
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
        leg.place = Place::Asked(controller.ask_for_queue(self.waiter.bell()));
        Ok(())
    }

    /// Ends a work that a leg is over with. What a status says of the way to the namespace is kept in mind, so that the engine, which asks again,
    /// goes by another leg. A namespace that is not there any more by this controller may be by others: all but writes are asked for again there.
    pub(super) fn end(&mut self, leg: usize, index: u32, now: Time) -> Option<IoDone> {
        let (handle, is_write) = self.works.look(index).map(|work| (work.io.handle, work.is_write()))?;
        let mut done = self.finish(index)?;
        let Err(fault) = &mut done.result else { return Some(done) };
        let Ok(code) = u16::try_from(fault.code) else { return Some(done) };
        let [sct, sc] = code.to_be_bytes();
        let (status, head) = (Status::new(sct, sc), self.legs.get(leg).map_or(0, |leg| leg.head));
        self.explain_status(head, *fault);
        self.legs.iter_mut().skip(leg).take(1).for_each(|leg| leg.heed(handle, status, now));
        if status.class() == Class::NamespaceGone && !is_write && code != 0 {
            let others = self.standings(head, handle, now);
            if others.iter().any(|standing| *standing > Standing::Absent) {
                *fault = fault.with_retry(Retry::Now);
            }
        }
        Some(done)
    }

    /// A connection is not made: the works that wait go by another path where there are several, or end. Those that wait for the namespace to be
    /// reached go on waiting.
    pub(super) fn refused(&mut self, leg: usize, error: Error, now: Time) {
        let Some(at) = self.legs.get_mut(leg) else { return };
        at.refused_until = Some(now.after(LOOK_EVERY));
        let (head, number) = (at.head, at.number());
        let fault = Fault::new(error.kind(), error.code());
        self.explain_by(head, error);
        let Some(Some(there)) = self.heads.get_mut(head) else { return };
        let mut legs = self.legs.iter().skip(there.first).take(there.count);
        let is_hope = legs.any(|leg| matches!(leg.place, Place::Asked(_)));
        let has_others = there.count > 1;
        for index in std::mem::take(&mut there.waiting).into_iter().rev() {
            let handle = self.works.look(index).map_or(0, |work| work.io.handle);
            let is_elsewhere = self.standings(head, handle, now).get(number) == Some(&Standing::Later);
            if is_hope || is_elsewhere || has_others && self.works.get(index).is_some_and(Work::may_go_on) {
                self.homeless.push(index);
            } else {
                self.fail(index, fault);
            }
        }
        self.send_homeless(now);
    }

    /// A connection is made: what waits may go by it.
    pub(super) fn send_waiting(&mut self, head: usize, now: Time) {
        if let Some(Some(head)) = self.heads.get_mut(head) {
            self.homeless.extend(head.waiting.drain(..).rev());
        }
        self.send_homeless(now);
    }

    /// Looks for paths of works that wait for one, and ends those that waited for too long.
    pub(super) fn look_for_paths(&mut self, now: Time) {
        for head in 0..self.heads.len() {
            let Some(Some(there)) = self.heads.get_mut(head) else { continue };
            let patience = there.paths.patience();
            for index in std::mem::take(&mut there.waiting).into_iter().rev() {
                if self.works.look(index).is_some_and(|work| work.waited(now) >= patience && !work.is_over()) {
                    self.fail_without_path(head, index);
                } else {
                    self.homeless.push(index);
                }
            }
            self.send_homeless(now);
        }
    }

    /// Asks for the early end of the works that `which` chooses. Whoever asked for them may be told that they are over while commands of them are
    /// under way: other writes wait for such a write, which might be carried out behind them.
    pub(super) fn let_go(&mut self, which: impl Fn(&Work) -> bool) {
        for index in 0..self.works.places() {
            let Some(work) = self.works.get(index).filter(|work| which(work)) else { continue };
            work.cancel();
            let place = work.place;
            let Some(Some(head)) = self.heads.get_mut(place) else { continue };
            let is_found = take_out(&mut head.waiting, index);
            for leg in self.legs.iter_mut().skip(head.first).take(head.count) {
                // Of another leg's work it has nothing; its own ends with its commands.
                if let Place::Linked(link) = &mut leg.place {
                    link.ledger.let_go(index, &mut link.queue.connection);
                }
            }
            if is_found {
                self.finish_if_over(index);
            }
            let goes_on = self.works.look(index).is_some_and(|work| work.is_write() && work.is_under_way());
            if goes_on && !self.awaited.iter().any(|(of, _)| *of == index) {
                let head = self.heads.get(place).and_then(Option::as_ref);
                let family = head.and_then(|head| head.paths.controllers().next()).map(|one| one.family().awaits());
                self.awaited.extend(family.map(|family| (index, family)));
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
