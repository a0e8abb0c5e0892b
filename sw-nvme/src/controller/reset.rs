//! Controller reset: what proves that memory is let go of, and what comes after.

use core::time::Duration;

use sw_engine::{Error, Time};

use crate::{
    bus::{Bus, Registers},
    controller::{Control, Controller, Life, RESET_ROW},
    wire::regs::{self, Csts},
};

/// What a reset came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The controller was seen disabled and works again, in this epoch.
    Again(u64),
    /// It touches no memory and takes no commands any more.
    Dead,
    /// It could neither be disabled nor stopped: it may touch memory for ever.
    Unproven,
    /// Another thread had the admin queue all the time; nothing was done.
    Late,
}

/// Resets in a row.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// When the last one was over.
    last: Option<Time>,
    count: u32,
}

impl Row {
    /// Counts a reset that begins at `now`; one that follows the end of the last one within `span` belongs to its row.
    fn next(&mut self, now: Time, span: Duration) -> u32 {
        let near = self.last.is_some_and(|last| now.since(last) < span);
        self.count = if near { self.count + 1 } else { 1 };
        self.count
    }
}

/// How long a reset may wait.
#[derive(Clone, Copy, Debug)]
pub struct ResetLimits {
    /// For another thread that has the admin queue.
    pub queue: Duration,
    /// For CSTS.RDY to fall, if that is less than CAP.TO.
    pub ready: Duration,
}

impl<B: Bus> Controller<B> {
    /// Resets the controller that lived in `epoch`, unless somebody did so since: disables it, sees CSTS.RDY fall, and
    /// brings it up again. All queue pairs of the epoch are void afterwards.
    ///
    /// A controller that cannot be disabled is stopped from outside. After [`resets_max`](super::ControllerConfig::resets_max)
    /// (see [`ControllerConfig`](super::ControllerConfig)) resets in a row it is left disabled.
    pub fn reset(&self, epoch: u64, limits: ResetLimits) -> Reset {
        let Some(mut guard) = self.lock_within(limits.queue) else { return Reset::Late };
        match self.life() {
            Life::Up(now) if now > epoch => return Reset::Again(now),
            Life::Up(_) | Life::Resetting(_) => {}
            Life::Quiet(_) => return Reset::Dead,
            Life::Loud(_) => return Reset::Unproven,
        }
        let Some(control) = guard.as_mut() else { return Reset::Dead };
        self.reset_with(control, epoch, limits.ready)
    }

    fn reset_with(&self, control: &mut Control<B>, epoch: u64, ready: Duration) -> Reset {
        self.life.set(Life::Resetting(epoch));
        control.admin.counters.resets += 1;
        // An admin command that is never answered takes its time, and must not make a row of resets look like single ones.
        let row = control.row.next(self.bus.now(), RESET_ROW.saturating_add(self.config.admin_timeout));
        if control.admin.disable(&self.facts.cap, ready).is_err() {
            let quiet = self.bus.stop();
            self.life.set(if quiet { Life::Quiet(epoch) } else { Life::Loud(epoch) });
            return if quiet { Reset::Dead } else { Reset::Unproven };
        }
        control.admin.forget();
        control.doubtful.clear();
        if row <= self.config.resets_max && self.bring_back(control).is_ok() {
            control.row.last = Some(self.bus.now());
            self.life.set(Life::Up(epoch + 1));
            return Reset::Again(epoch + 1);
        }
        // Not up again: make sure that a half-enabled controller is off.
        let quiet = control.admin.disable(&self.facts.cap, Duration::MAX).is_ok() || self.bus.stop();
        self.life.set(if quiet { Life::Quiet(epoch) } else { Life::Loud(epoch) });
        if quiet { Reset::Dead } else { Reset::Unproven }
    }

    fn bring_back(&self, control: &mut Control<B>) -> Result<(), Error> {
        control.admin.enable(&self.facts.cap)?;
        control.configure(&self.config, &self.facts.info)?;
        self.rescan_with(control)
    }

    /// Checks the registers of a controller that was silent: whether it is gone (all ones), fatal (CSTS.CFS), or not ready
    /// without our doing. A reset is next then.
    pub fn is_ill(&self, epoch: u64) -> bool {
        let csts = Csts(self.bus.registers().read32(regs::CSTS));
        let well = !csts.is_gone() && !csts.is_fatal() && csts.is_ready();
        !well && self.life() == Life::Up(epoch)
    }
}
