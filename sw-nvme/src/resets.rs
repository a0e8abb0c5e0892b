//! Who asks whom to reset a controller that a host does not reach any more, and what the answers prove.
//!
//! ```text
//!   a write in doubt ─► Fences ─► claim: another association of the subsystem, of the same host, asks ─► Errands
//!                         ▲                                   Cross-Controller Reset, then the log page    │
//!                         └──────────── prove: nothing of that life is carried out any more ◄── Done ──────┘
//! ```
//!
//! What success proves: a Controller Level Reset ends every command of the controller (Base, "Controller Level Reset"), and the
//! controller says so when it is over. Linux's target says it once the controller, and with it the last queue, is freed
//! (`nvmet_ctrl_complete_pending_ccr`), or when it has none of that CNTLID, CIU and CIRN any more; its host retries writes elsewhere then
//! (`nvme_fence_ctrl`, series of 2026, linux-nvme). The text of NVMe TP 8028 itself was not at hand. Anything but success proves nothing,
//! and the fence stays until its time is over.
//!
//! A controller that says "that life is over" for one that it does not know is right only as one of the same subsystem: NQN and serial number
//! say so. An entry of the log page has no CIRN: an association asks for one life of each CNTLID and CIU, so that whatever stands there of
//! the two is of what it asked for.
//!
//! Nothing here does I/O or knows the time.

use core::time::Duration;

use sw_engine::Time;

use crate::{
    fabrics::Nqn,
    inquiry::Answer,
    paths::Holder,
    wire::{
        ccr::{ENTRIES_MAX, Instance, Log, Progress, Told},
        identify::IdentifyController,
    },
};

/// Between two looks at the log page: at first, and the longest.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Whom a controller serves: one asks for what another one had only if both are the same here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// HOSTNQN.
    pub host: Nqn,
    /// HOSTID.
    pub host_id: [u8; 16],
    /// The serial number of the subsystem, whose NQN is known to be the same.
    pub serial: String,
}

impl Served {
    fn of(info: &IdentifyController, (host, host_id): (&Nqn, [u8; 16])) -> Self {
        Self { host: host.clone(), host_id, serial: info.serial.as_str().to_owned() }
    }
}

/// A life of a controller that has an association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// As the controller names it.
    pub instance: Instance,
    /// Whom it serves.
    pub served: Served,
}

impl Life {
    /// Of a controller that says `info`, and has CNTLID `id` by Connect, to a host; `None`: it cannot be named.
    pub fn of(info: &IdentifyController, id: u16, host: (&Nqn, [u8; 16])) -> Option<Self> {
        // Both are the same, or one of them names somebody else.
        let instance = info.instance().filter(|instance| instance.controller == id)?;
        Some(Self { instance, served: Served::of(info, host) })
    }
}

/// A life that somebody is to be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// Whose writes are in doubt.
    pub of: Holder,
    /// Its controller's life.
    pub instance: Instance,
    /// When it has let go of everything anyway.
    pub until: Time,
}

/// What is known of an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing of that life is carried out any more.
    Done,
    /// It is not known yet.
    Open,
    /// It will not become known by this controller.
    Failed,
}

/// What an association asked its controller for: resets of others.
#[derive(Debug)]
pub struct Errands {
    by: Holder,
    served: Served,
    controller: u16,
    /// At a time.
    most: usize,
    /// Those that were accepted.
    open: Vec<Errand>,
    /// Every CNTLID and CIU that was asked for.
    asked: Vec<(u16, u8)>,
    next: Time,
    pause: Duration,
}

impl Errands {
    /// Of an association `by`, whose controller says `info` and has CNTLID `id`; `None`: it takes no such commands.
    pub fn of(by: Holder, info: &IdentifyController, id: u16, host: (&Nqn, [u8; 16])) -> Option<Self> {
        (info.resets_max > 0).then(|| Self {
            by,
            served: Served::of(info, host),
            controller: id,
            most: info.resets_max.into(),
            open: Vec::new(),
            asked: Vec::new(),
            next: Time(u64::MAX),
            pause: LOOK_FIRST,
        })
    }

    /// Whose they are.
    pub fn by(&self) -> Holder {
        self.by
    }

    /// Whether the controller may be asked about a life.
    pub fn may_ask(&self, life: &Life) -> bool {
        let Instance { controller, uniquifier, .. } = life.instance;
        life.served == self.served
            && controller != self.controller
            && self.open.len() < self.most
            && self.asked.len() < ENTRIES_MAX
            && !self.asked.contains(&(controller, uniquifier))
    }

    /// The controller was asked, and answered; `None`: it did not.
    pub fn answered(&mut self, errand: Errand, answer: Option<Answer>, now: Time) -> Verdict {
        self.asked.push((errand.instance.controller, errand.instance.uniquifier));
        match answer.filter(|answer| answer.status.is_success()).map(|answer| Told::decode(answer.dw0)) {
            None => Verdict::Failed,
            Some(Told::Done) => Verdict::Done,
            Some(Told::Accepted) => {
                self.open.push(errand);
                self.pause = LOOK_FIRST;
                self.next = now.after(self.pause);
                Verdict::Open
            }
        }
    }

    /// When the log page is to be read, if it is.
    pub fn due(&self) -> Option<Time> {
        (!self.open.is_empty()).then_some(self.next)
    }

    /// The controller told of an event: the log page is read now.
    pub fn hurry(&mut self, now: Time) {
        self.next = self.next.min(now);
    }

    /// What the log page says, `None` if it was refused or makes no sense; the errands that are over, each with what it came to.
    pub fn told(&mut self, log: Option<&Log>, now: Time) -> Vec<(Errand, Verdict)> {
        let (open, over) = core::mem::take(&mut self.open)
            .into_iter()
            .map(|errand| (errand, verdict(&errand, log, now)))
            .partition::<Vec<_>, _>(|(_, verdict)| *verdict == Verdict::Open);
        self.open = open.into_iter().map(|(errand, _)| errand).collect();
        self.pause = (self.pause * 2).min(LOOK_MAX);
        self.next = now.after(self.pause);
        over
    }

    /// The association is over: what it was asked for and did not tell.
    pub fn end(self) -> Vec<Errand> {
        self.open
    }
}

/// Of an errand that was accepted.
fn verdict(errand: &Errand, log: Option<&Log>, now: Time) -> Verdict {
    let Instance { controller, uniquifier, .. } = errand.instance;
    let entries = log.iter().flat_map(|log| &log.0);
    let mut its = entries.filter(|entry| (entry.controller, entry.uniquifier) == (controller, uniquifier)).peekable();
    let is_there = its.peek().is_some();
    let mut all_succeeded = is_there;
    for entry in its {
        match entry.progress {
            Progress::Failed => return Verdict::Failed,
            Progress::Succeeded => {}
            Progress::Under | Progress::Other(_) => all_succeeded = false,
        }
    }
    match all_succeeded {
        true => Verdict::Done,
        // Nothing to be won any more.
        false if now >= errand.until => Verdict::Failed,
        false => Verdict::Open,
    }
}

#[cfg(test)]
#[path = "resets_tests.rs"]
mod tests;
