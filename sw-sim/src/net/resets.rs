//! Cross-Controller Reset of the modelled target: when it says what, and what it does besides.
//!
//! A reset that succeeds ends the association, whose commands may be carried out until it is over and not later. Of one that is refused,
//! fails, or is never over they may be for as long as without it. Entries of others stand in the log page: of the same CNTLID with another
//! CIU, and the other way round, all with success.

use sw_nvme::{
    status::Status,
    wire::ccr::{self, Entry, Instance, Log, Progress, Told},
};

use super::{Event, Shared};
use crate::{log::Mark, rng::Rng};

/// What a target does when it is asked for a reset.
#[derive(Clone, Copy, Debug)]
pub struct ResetParams {
    /// CCRL.
    pub most: u8,
    /// Of a thousand: refused; done at once; accepted and failed; accepted and never over. The others succeed later.
    pub refused: u64,
    /// See above.
    pub at_once: u64,
    /// See above.
    pub failed: u64,
    /// See above.
    pub never: u64,
    /// Nanoseconds that one takes at most.
    pub takes_ns: u64,
}

/// What becomes of a request that is taken.
pub(super) struct Course {
    pub(super) told: Told,
    /// Whether the association ends.
    pub(super) is_begun: bool,
}

/// A reset that was accepted.
struct Reset {
    by: u16,
    of: Instance,
    end: Progress,
    /// When it comes to that.
    at: u64,
}

/// See the module documentation.
pub(super) struct Resets {
    params: Option<ResetParams>,
    rng: Rng,
    all: Vec<Reset>,
}

impl Resets {
    pub(super) fn new(params: Option<ResetParams>, seed: u64) -> Self {
        Self { params, rng: Rng::split(seed, "resets"), all: Vec::new() }
    }

    /// The life of a controller: CIUs repeat.
    pub(super) fn instance(&self, controller: u16) -> Instance {
        let uniquifier = if self.params.is_some() { controller.to_le_bytes()[0] % 2 + 1 } else { 0 };
        Instance { controller, uniquifier, random: 0x5157_0000 + u64::from(controller) }
    }

    /// A controller is asked for a reset.
    pub(super) fn ask(&mut self, by: u16, of: Instance, shared: &mut Shared) -> Result<Course, Status> {
        let params = self.params.ok_or(Status::INVALID_OPCODE.with_dnr())?;
        let dice = self.rng.below(1000);
        let [refused, at_once, failed, never] = [params.refused, params.at_once, params.failed, params.never];
        if dice < refused {
            shared.mark(Mark::NetResetRefused);
            return Err(ccr::LIMIT);
        }
        if dice < refused + at_once {
            return Ok(Course { told: Told::Done, is_begun: true });
        }
        let (end, is_begun) = match dice - refused - at_once {
            dice if dice < failed => (Progress::Failed, self.rng.per_mille(300)),
            dice if dice < failed + never => (Progress::Under, self.rng.per_mille(300)),
            _ => (Progress::Succeeded, true),
        };
        let takes = self.rng.range(1, params.takes_ns);
        self.all.push(Reset { by, of, end, at: shared.now() + takes });
        if end == Progress::Succeeded {
            shared.agenda.plan(takes, Event::Reset(self.all.len() - 1));
        }
        Ok(Course { told: Told::Accepted, is_begun })
    }

    /// One is over now; whose.
    pub(super) fn over(&self, id: usize) -> Option<u16> {
        self.all.get(id).map(|reset| reset.of.controller)
    }

    /// The log page of a controller.
    pub(super) fn page(&self, by: u16, now: u64) -> Log {
        let entry =
            |controller, uniquifier, progress| Entry { controller, uniquifier, alternate: 0, progress, flags: 3 };
        let mut log = Log::default();
        for Reset { of, end, at, .. } in self.all.iter().filter(|reset| reset.by == by) {
            let (controller, uniquifier) = (of.controller, of.uniquifier);
            let progress = if now >= *at { *end } else { Progress::Under };
            log.0.push(entry(controller, uniquifier + 2, Progress::Succeeded));
            log.0.push(entry(controller, uniquifier, progress));
            log.0.push(entry(controller ^ 0x4000, uniquifier, Progress::Succeeded));
        }
        log
    }
}
