//! The life of an association, and when writes may be sent again: what decides, without a clock, a socket or a thread.
//!
//! ```text
//!   up ──(silent, lost, or a write in doubt)──► down ──(let go of, tried again with pauses)──► up, or given up
//!                                                │
//!   safe ──(a write is in doubt)──► fencing ─────┴──(Letting go: KATO 2 or 3 times, and CQT)──► safe
//! ```
//!
//! Both go on beside each other: the next association may be up, and serve reads, long before writes are safe.
//!
//! Whoever attends a controller asks for its [duty](Association::duty), does it, and tells what it came to. Lanes tell of
//! [doubt](Association::doubt). Its [fences](Association::fences) are some of those that keep writes back by all controllers of the
//! subsystem: [`Fences`](crate::paths::Fences).

use core::time::Duration;
use std::collections::BTreeMap;

use sw_engine::Time;

use crate::wire::identify::IdentifyController;

/// Between two signs of life at least.
const SIGNS_STEP: Duration = Duration::from_millis(10);
/// The first pause between two tries to make an association again, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// CTRATT bit 6, TBKAS: any command restarts the timer of keep-alive.
const TRAFFIC_BASED: u32 = 1 << 6;

/// What restarts a controller's keep-alive timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptAliveBy {
    /// The Keep Alive command.
    Commands,
    /// Any command (CTRATT, TBKAS).
    Traffic,
}

/// What decides how long a controller may still carry out commands of a host that lost it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LettingGo {
    /// KATO as it was asked for.
    pub keep_alive: Duration,
    /// KAS: KATO is rounded up to multiples of it, if there is one.
    pub granularity: Option<Duration>,
    /// What restarts the timer.
    pub kept_alive_by: KeptAliveBy,
    /// CQT.
    pub quiesce: Duration,
}

impl LettingGo {
    /// What a controller says of itself.
    pub fn of(info: &IdentifyController, keep_alive: Duration, quiesce: Duration) -> Self {
        let traffic = info.attributes & TRAFFIC_BASED != 0;
        Self {
            keep_alive,
            granularity: info.keep_alive_unit,
            kept_alive_by: if traffic { KeptAliveBy::Traffic } else { KeptAliveBy::Commands },
            quiesce,
        }
    }

    /// How long after the loss was noticed here nothing of before is carried out any more.
    ///
    /// A last sign of life may be on its way, and arrive just before the timer that the one before it started is over: twice KATO.
    /// Where any command is a sign the controller looks only once in KATO whether there was one, and commands that are on their way
    /// may be the last: three times (NVMe TP 4129 "KATO Corrections and Clarifications", Base 2.1 "Communication Loss Handling"; Linux
    /// holds requests for as long, `nvmef_req_hold_timeout_ms` of 2025-03-24, linux-nvme). Then CQT.
    pub fn span(&self) -> Duration {
        let step = self.granularity.unwrap_or_default().as_nanos().max(1);
        let rounded = self.keep_alive.as_nanos().div_ceil(step).saturating_mul(step);
        let keep_alive = Duration::from_nanos(u64::try_from(rounded).unwrap_or(u64::MAX));
        let times = match self.kept_alive_by {
            KeptAliveBy::Commands => 2,
            KeptAliveBy::Traffic => 3,
        };
        keep_alive.saturating_mul(times).saturating_add(self.quiesce)
    }
}

/// What whoever attends a controller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Close the connection of an association that a lane ended.
    LetGo,
    /// Make the next association: [`Association::made`] or [`Association::failed`].
    Associate,
    /// Give a sign of life: [`Association::signed`] or [`Association::lost`].
    Sign,
    /// Connect a queue that a lane wants: [`Association::exchanged`].
    Connect,
    /// Nothing, for so long at most.
    Rest(Duration),
}

/// Whether lanes wait for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None does.
    None,
    /// At least one.
    Queues,
}

/// Whether an association is tried to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It is.
    Left,
    /// It was tried for as long as it should be.
    Over,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Association {
    keep_alive: Duration,
    patience: Duration,
    /// Of the one that is up, or was last.
    number: u64,
    hold: Duration,
    is_up: bool,
    /// A lane ended it, and its admin connection is still open.
    is_open: bool,
    /// A lane lost a connection: perhaps the association is over.
    is_suspect: bool,
    up_since: Time,
    down_since: Time,
    /// The next sign of life, or try.
    next: Time,
    pause: Duration,
    /// Until when a write of an association may still be carried out, by its number.
    fences: BTreeMap<u64, Time>,
}

impl Association {
    /// One that was just made: its number, and how long the controller takes to let go ([`LettingGo::span`]). `keep_alive` is KATO;
    /// one that is lost is tried to be made again for `patience`.
    pub fn new(keep_alive: Duration, patience: Duration, (number, hold): (u64, Duration), now: Time) -> Self {
        let mut new = Self {
            keep_alive,
            patience,
            number,
            hold,
            is_up: false,
            is_open: false,
            is_suspect: false,
            up_since: now,
            down_since: now,
            next: now,
            pause: RETRY_FIRST,
            fences: BTreeMap::new(),
        };
        new.made(number, hold, now);
        new
    }

    /// The number of the association that is up.
    pub fn up(&self) -> Option<u64> {
        self.is_up.then_some(self.number)
    }

    /// What is to be done now.
    pub fn duty(&mut self, now: Time, wanted: Wanted) -> Duty {
        if !self.is_up && core::mem::take(&mut self.is_open) {
            return Duty::LetGo;
        }
        match (self.is_up, now >= self.next) {
            (false, true) => Duty::Associate,
            (true, is_due) if core::mem::take(&mut self.is_suspect) || is_due => Duty::Sign,
            (true, _) if wanted == Wanted::Queues => Duty::Connect,
            _ => Duty::Rest(self.next.since(now)),
        }
    }

    /// The controller answered a sign of life.
    pub fn signed(&mut self, now: Time) {
        // Half of the time that the target waits; a sign that is late by as much again is still in time.
        self.next = if self.is_up { now.after((self.keep_alive / 2).max(SIGNS_STEP)) } else { now };
        self.exchanged(now);
    }

    /// Something was sent to the controller, and is answered or given up. While a lane ended the association, that may have kept it alive:
    /// the time of the fence begins anew. Of one that was let go of nothing is kept alive, and the fence stays as it is.
    pub fn exchanged(&mut self, now: Time) {
        if self.is_open {
            self.fence(self.number, now.after(self.hold));
        }
    }

    /// The association is over.
    pub fn lost(&mut self, now: Time) {
        self.exchanged(now);
        if self.is_up {
            self.goes_down(now);
        }
        (self.is_up, self.is_open) = (false, false);
    }

    /// The next one is tried at once, but where this one did not live for as long as the pause between tries: a target that takes an association
    /// and drops it is not to be asked over and over.
    fn goes_down(&mut self, now: Time) {
        (self.down_since, self.next) = (now, now);
        if now.since(self.up_since) >= self.pause {
            self.pause = RETRY_FIRST;
        } else {
            self.wait_longer(now);
        }
    }

    fn wait_longer(&mut self, now: Time) {
        self.next = now.after(self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// The next association is there.
    pub fn made(&mut self, number: u64, hold: Duration, now: Time) {
        self.fences.retain(|_, safe| now < *safe);
        (self.number, self.hold, self.is_up, self.is_open) = (number, hold, true, false);
        (self.up_since, self.is_suspect) = (now, false);
        self.signed(now);
    }

    /// Somebody more wants a lost association to be tried to be made again, for `patience`: the most patient one counts.
    pub fn be_patient(&mut self, patience: Duration) {
        self.patience = self.patience.max(patience);
    }

    /// The next association could not be made.
    pub fn failed(&mut self, now: Time) -> Patience {
        self.wait_longer(now);
        if now.since(self.down_since) >= self.patience { Patience::Over } else { Patience::Left }
    }

    /// A lane lost a connection: it is looked after before the next sign of life is due.
    pub fn suspect(&mut self) {
        self.is_suspect = true;
    }

    /// A lane lost a connection of association `number` with writes on it, whose outcome is unknown. The association ends at once, with the
    /// connections of all lanes, and no write is sent until the controller has provably let go of them.
    pub fn doubt(&mut self, number: u64, hold: Duration, now: Time) {
        self.fence(number, now.after(hold));
        if self.up() == Some(number) {
            self.goes_down(now);
            (self.is_up, self.is_open) = (false, true);
        }
    }

    fn fence(&mut self, number: u64, safe: Time) {
        let before = self.fences.entry(number).or_insert(safe);
        *before = safe.max(*before);
    }

    /// The association is given up: writes of it that lanes have not told of yet may still be carried out, too.
    pub fn given_up(&mut self) {
        self.fence(self.number, self.down_since.after(self.hold));
    }

    /// Until when no write is sent, as one that was sent in an association, by its number, may still be carried out.
    pub fn fences(&self, now: Time) -> impl Iterator<Item = (u64, Time)> + '_ {
        self.fences.iter().map(|(number, safe)| (*number, *safe)).filter(move |(_, safe)| now < *safe)
    }
}

#[cfg(test)]
#[path = "association_tests.rs"]
mod tests;
