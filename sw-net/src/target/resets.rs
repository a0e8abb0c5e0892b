//! Cross-Controller Reset: a host has one of its controllers reset another one, which it does not reach any more.
//!
//! ```text
//!   command ─► the other one's life ─► taken out, connections cut ─► Ending ─(the last of its threads has left)─► done
//!                └─ not there, not ending: done at once                └─ in time: done at once; else the log page, and an event
//! ```
//!
//! Done is said once every thread that carried out commands of that life has left: nothing of it touches a namespace afterwards. Refusals and
//! limits are those of Linux's target (`nvmet_execute_cross_ctrl_reset`, series of 2026, linux-nvme): hosts meet both.

use std::{
    collections::BTreeSet,
    sync::PoisonError,
    time::{Duration, Instant},
};

use sw_nvme::{
    status::Status,
    wire::{
        ccr::{self, ENTRIES_MAX, Entry, Instance, Log, Progress},
        feature::async_events,
        log::{self, Retain},
    },
};

use super::{
    CrossReset,
    listen::Shared,
    subsystem::{Answer, Controller, Controllers, Joined, Role, add, says},
    wire::now,
};

/// CCRL: resets that a controller has under way at a time.
pub(super) const RESETS_MAX: u8 = 4;
/// How long the end of a life is waited for before the command is answered: threads that wait for a host end at once.
const AT_ONCE: Duration = Duration::from_millis(20);
/// After so long a reset fails that shall.
const FAILS_AFTER: Duration = Duration::from_millis(50);
/// DW0 of the event: a notice (2) that a reset is over (F4h), with its log page.
const COMPLETED: u32 = 2 | 0xF4 << 8 | (log::id::CROSS_CONTROLLER_RESET as u32) << 16;
/// CCRF: the request was found valid, and the reset was begun.
const VALID: u8 = 1;
const BEGUN: u8 = 1 << 1;
/// ACID: none is named.
const NO_ALTERNATE: u16 = 0xFFFF;

/// A life of a controller that is over, while threads may still carry out commands of its connections.
pub(super) struct Ending {
    pub(super) instance: Instance,
    pub(super) connections: BTreeSet<u64>,
}

impl Ending {
    /// One of its connections has left.
    pub(super) fn without(mut self, connection: u64) -> Self {
        self.connections.remove(&connection);
        self
    }
}

/// A reset that a controller was asked for.
struct Reset {
    of: Instance,
    state: State,
}

/// How it goes.
enum State {
    Under,
    Succeeded,
    /// It fails, as it shall, from then on.
    Fails(Instant),
}

impl Reset {
    fn progress(&self) -> Progress {
        match self.state {
            State::Under => Progress::Under,
            State::Succeeded => Progress::Succeeded,
            State::Fails(from) if now() < from => Progress::Under,
            State::Fails(_) => Progress::Failed,
        }
    }
}

/// What becomes of those that are over when the log page was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completed {
    /// They stay.
    Kept,
    /// They go (RMC).
    Removed,
}

/// What a controller was asked to reset, as its log page tells.
#[derive(Default)]
pub(super) struct Resets {
    all: Vec<Reset>,
    /// Those of which the host was told that they are over.
    told: usize,
    /// An event was sent, and the page was not read since.
    is_masked: bool,
}

impl Resets {
    fn over(&self) -> usize {
        self.all.iter().filter(|reset| reset.progress() != Progress::Under).count()
    }

    /// Whether one more may be asked for.
    fn may_ask(&self, of: Instance) -> Result<(), Status> {
        let mut under = self.all.iter().filter(|reset| reset.progress() == Progress::Under);
        if under.clone().any(|reset| reset.of == of) {
            return Err(ccr::IN_PROGRESS.with_dnr());
        }
        if under.by_ref().count() >= RESETS_MAX.into() {
            return Err(ccr::LIMIT);
        }
        if self.all.len() >= ENTRIES_MAX {
            return Err(ccr::LOG_FULL);
        }
        Ok(())
    }

    fn begin(&mut self, of: Instance, state: State) {
        self.all.push(Reset { of, state });
    }

    /// It was done before anybody was told of it.
    fn forget(&mut self, of: Instance) {
        self.all.retain(|reset| reset.of != of);
    }

    /// Nothing of a life is carried out any more.
    pub(super) fn ended(&mut self, of: Instance) {
        let its = self.all.iter_mut().filter(|reset| reset.of == of && matches!(reset.state, State::Under));
        its.for_each(|reset| reset.state = State::Succeeded);
    }

    /// The log page.
    pub(super) fn page(&mut self, after: Completed, event: Retain) -> Vec<u8> {
        let entry = |reset: &Reset| {
            let progress = reset.progress();
            let flags = if progress == Progress::Failed { VALID } else { VALID | BEGUN };
            let Instance { controller, uniquifier, .. } = reset.of;
            Entry { controller, uniquifier, alternate: NO_ALTERNATE, progress, flags }
        };
        let page = Log(self.all.iter().map(entry).collect()).encode();
        if after == Completed::Removed {
            self.all.retain(|reset| reset.progress() == Progress::Under);
        }
        if event == Retain::Clear {
            (self.told, self.is_masked) = (self.over(), false);
        }
        page
    }

    /// DW0 of the event that one is over, if it is to be told now.
    pub(super) fn event(&mut self, event_config: u32) -> Option<u32> {
        let is_due = event_config & async_events::RESET_COMPLETED != 0 && !self.is_masked && self.told < self.over();
        self.is_masked |= is_due;
        is_due.then_some(COMPLETED)
    }
}

/// What becomes of a request.
enum Course {
    /// That life is over.
    Done,
    /// It ends now, with these connections.
    Cut(Vec<u64>),
    /// It is ending already, or will not.
    Accepted,
}

impl Controllers {
    /// Whether threads may still carry out commands of a life that is over.
    fn is_ending(&self, of: Instance) -> bool {
        self.ending.iter().any(|ending| ending.instance == of)
    }

    /// A controller is asked to reset that life of another one.
    fn asked(&mut self, by: u16, of: Instance, how: CrossReset) -> Result<Course, Status> {
        let asks = self.live.get(&by).ok_or(says::SEQUENCE)?;
        if how == CrossReset::Refused || asks.role != Role::Io {
            return Err(Status::INVALID_OPCODE.with_dnr());
        }
        if of.controller == by {
            return Err(says::INVALID_FIELD);
        }
        // Another host's is none that there is.
        let is_its = |there: &&Controller| there.instance == of && there.role == Role::Io && there.is_of(asks);
        let is_there = self.live.get(&of.controller).filter(is_its).is_some();
        if !is_there && !self.is_ending(of) {
            return Ok(Course::Done);
        }
        asks.resets.may_ask(of)?;
        let state = match how {
            CrossReset::Fails => State::Fails(now() + FAILS_AFTER),
            CrossReset::Offered | CrossReset::Refused => State::Under,
        };
        let is_cut = is_there && matches!(state, State::Under);
        if let Some(asks) = self.live.get_mut(&by) {
            asks.resets.begin(of, state);
        }
        Ok(if is_cut { Course::Cut(self.cut(of.controller)) } else { Course::Accepted })
    }
}

impl Shared {
    /// Cross-Controller Reset, by the controller of a queue.
    pub(super) fn cross_reset(&self, joined: Joined, of: Instance) -> Answer {
        let subsystem = &self.subsystem;
        let asked = subsystem.lock().asked(joined.controller, of, subsystem.config.cross_reset);
        let told = match asked {
            Err(status) => return status.into(),
            Ok(Course::Done) => ccr::Told::Done,
            Ok(Course::Accepted) => ccr::Told::Accepted,
            Ok(Course::Cut(connections)) => {
                add(&subsystem.tally.cross_resets, 1);
                self.hang_up(&connections);
                let controllers = subsystem.lock();
                let waited = subsystem.left.wait_timeout_while(controllers, AT_ONCE, |there| there.is_ending(of));
                let (mut controllers, _) = waited.unwrap_or_else(PoisonError::into_inner);
                let is_over = !controllers.is_ending(of);
                let asks = controllers.live.get_mut(&joined.controller).filter(|_| is_over);
                asks.into_iter().for_each(|asks| asks.resets.forget(of));
                if is_over { ccr::Told::Done } else { ccr::Told::Accepted }
            }
        };
        Answer::value(told.bits().into())
    }
}
