//! Controller reset: what proves that memory is let go of, and what comes after.

use core::time::Duration;

use sw_engine::{Error, ErrorKind, Time};

use crate::{
    bus::{Bus, Registers},
    controller::{Control, Controller, Life, RESET_ROW, admin::Patience},
    wire::regs::{self, Csts},
};

/// What a wait for CSTS.RDY gets at least: a controller that is well needs less.
const LOOK: Duration = Duration::from_millis(100);

/// What a reset came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The controller was seen disabled and works again, in this epoch.
    Again(u64),
    /// It touches no memory and takes no commands any more.
    Dead,
    /// It could neither be disabled nor stopped: it may touch memory for ever.
    Unproven,
    /// The time was over before the controller was seen disabled, or before another thread was done with the admin queue. A
    /// reset with all that CAP.TO allows is wanted now.
    Late,
    /// The controller was seen disabled. It is left so until somebody needs it.
    Down,
}

/// Resets in a row.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// When the last one was over.
    last: Option<Time>,
    count: u32,
}

impl Row {
    /// Something begins at `now`; unless it follows the end of the last one within `span`, a new row begins.
    fn look(&mut self, now: Time, span: Duration) {
        if self.last.is_none_or(|last| now.since(last) >= span) {
            self.count = 0;
        }
    }
}

impl ResetLimits {
    /// All that CAP.TO and CRTO allow, by whoever has the admin queue.
    pub(super) const WHOLE: Duration = Duration::MAX;
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
        let now = match self.life() {
            Life::Up(now) if now > epoch => return Reset::Again(now),
            Life::Up(now) | Life::Resetting(now) => now,
            Life::Quiet(_) => return Reset::Dead,
            Life::Loud(_) => return Reset::Unproven,
        };
        let Some(control) = guard.as_mut() else { return Reset::Dead };
        if control.is_down {
            return self.bring_up(control, now);
        }
        self.reset_with(control, now, limits.ready)
    }

    /// Sees to it that the commands of `epoch` touch no memory any more, and does no more than that: disables the controller
    /// and leaves it disabled, to be brought up by whoever needs it next. If another thread has the admin queue, it is asked
    /// for the same, and what it comes to is waited for. It is no part of a row of resets.
    ///
    /// Waits at most `at_most` for that thread and as much for CSTS.RDY; 100 ms at least.
    pub fn quiesce(&self, epoch: u64, at_most: Duration) -> Reset {
        let begun = self.bus.now();
        let mut patience = Patience::new();
        loop {
            match self.life() {
                Life::Up(now) if now > epoch => return Reset::Again(now),
                Life::Resetting(now) if now > epoch => return Reset::Down,
                Life::Quiet(_) => return Reset::Dead,
                Life::Loud(_) => return Reset::Unproven,
                Life::Up(_) | Life::Resetting(_) => {}
            }
            if let Some(mut guard) = self.lock_within(Duration::ZERO)
                && let Some(control) = guard.as_mut()
                && matches!(self.life(), Life::Up(now) | Life::Resetting(now) if now == epoch)
            {
                let left = at_most.saturating_sub(self.bus.now().since(begun)).max(LOOK);
                return self.take_down(control, epoch, left).err().unwrap_or(Reset::Down);
            }
            // Whoever has it gives up what it waits for.
            self.desk.want_reset(epoch);
            self.desk.post();
            if self.bus.now().since(begun) >= at_most || self.fork.is_elsewhere() {
                return Reset::Late;
            }
            patience.pause(&*self.bus);
        }
    }

    pub(super) fn reset_with(&self, control: &mut Control<B>, epoch: u64, ready: Duration) -> Reset {
        // An admin command that is never answered takes its time, and must not make a row of resets look like single ones.
        control.row.look(self.bus.now(), RESET_ROW.saturating_add(self.config.admin_timeout));
        control.row.count += 1;
        match self.take_down(control, epoch, ready) {
            Ok(next) => self.bring_up(control, next),
            Err(end) => end,
        }
    }

    /// Disables the controller. From then on it lets go of all that `epoch` had; gives the next one.
    ///
    /// # Errors
    /// What became of a controller that could not be disabled. It is stopped from outside, which ends it for all lanes, only
    /// after all the time that it may take: less than that is the hurry of one lane, and whoever works waits for the rest.
    fn take_down(&self, control: &mut Control<B>, epoch: u64, ready: Duration) -> Result<u64, Reset> {
        control.admin.counters.resets += u64::from(self.life() == Life::Up(epoch));
        self.life.set(Life::Resetting(epoch));
        if let Err(error) = control.admin.disable(&self.facts.cap, ready) {
            if error.kind() == ErrorKind::DeadlineExceeded && ready < control.admin.ready_limit(&self.facts.cap) {
                self.desk.want_reset(epoch);
                self.desk.post();
                return Err(Reset::Late);
            }
            return Err(self.stop(epoch));
        }
        let next = epoch + 1;
        control.admin.forget(next);
        for queue in control.doubtful.drain(..) {
            control.ids.give_back(queue.qid());
        }
        (control.is_down, control.row.last) = (true, Some(self.bus.now()));
        self.life.set(Life::Resetting(next));
        Ok(next)
    }

    /// Brings a disabled controller up, in `epoch`; tries again as long as its row of resets allows.
    pub(super) fn bring_up(&self, control: &mut Control<B>, epoch: u64) -> Reset {
        control.is_down = false;
        control.row.look(self.bus.now(), RESET_ROW.saturating_add(self.config.admin_timeout));
        while control.row.count <= self.config.resets_max {
            if self.desk.is_closing() {
                // It is disabled, and nobody will use it.
                (control.is_down, control.row.last) = (true, Some(self.bus.now()));
                return Reset::Down;
            }
            let is_back = self.bring_back(control).is_ok();
            control.row.last = Some(self.bus.now());
            if is_back {
                self.life.set(Life::Up(epoch));
                return Reset::Again(epoch);
            }
            // A half-enabled controller: off before the next try, or for good.
            if control.admin.disable(&self.facts.cap, Duration::MAX).is_err() {
                return self.stop(epoch);
            }
            control.admin.forget(epoch);
            control.row.count += 1;
        }
        self.give_up(Life::Quiet(epoch))
    }

    /// It could not be disabled: the last try is from outside.
    fn stop(&self, epoch: u64) -> Reset {
        self.give_up(if self.bus.stop() { Life::Quiet(epoch) } else { Life::Loud(epoch) })
    }

    fn give_up(&self, life: Life) -> Reset {
        self.life.set(life);
        if matches!(life, Life::Quiet(_)) { Reset::Dead } else { Reset::Unproven }
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
