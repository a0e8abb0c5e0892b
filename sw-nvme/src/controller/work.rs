//! The slow work of a controller, apart from the lanes: queue pairs, resets, events. See [`desk`](super::desk).
//!
//! Who does it: a thread of the layer above that [`attends`](Controller::attend), calls [`Controller::work`] whenever it is
//! woken, and may wait there as long as the limits of the specification say. Where nobody attends, whoever leaves
//! something does the work at once, in a call that may wait as long.

use core::time::Duration;
use std::sync::{Arc, MutexGuard};

use sw_engine::{Error, Fault, Retry, seam::Wake};

use super::{
    Control, Controller, Life, PairRequest, ResetLimits,
    desk::{Discarded, Short, Ticket},
};
use crate::{bus::Bus, queue::QueuePair};

/// How long a lane waits for another one that works, where nobody attends.
const TURN: Duration = Duration::from_millis(10);
/// Looks at the desk in one [`Controller::work`] at most.
const LOOKS_MAX: u32 = 64;

impl<B: Bus> Controller<B> {
    /// From now on somebody does the work of this controller who is told by `wake`, from any thread: by calling
    /// [`Controller::work`] soon after each wake-up. Lanes then never wait for the admin queue.
    pub fn attend(&self, wake: Arc<dyn Wake>) {
        self.desk.attend(Some(wake.clone()));
        if self.wants_work() {
            wake.wake();
        }
    }

    /// The end of [`Controller::attend`]: lanes do the work again.
    pub fn leave(&self) {
        self.desk.attend(None);
    }

    /// Whether there is something for [`Controller::work`]. One atomic load.
    pub fn wants_work(&self) -> bool {
        self.desk.is_posted()
    }

    /// Does what is wanted, until nothing is or it was much ([`Controller::wants_work`] then tells): resets the controller, brings it up, makes and deletes queue pairs, reads the log pages of
    /// events. Does nothing in a forked child.
    ///
    /// *Blocking*: as long as the limits of the specification and of [`ControllerConfig`](super::ControllerConfig) say, which
    /// is minutes for a controller that is ill. Never call it where somebody waits for other devices.
    pub fn work(&self) {
        let Some(mut guard) = self.lock() else { return };
        for _ in 0..LOOKS_MAX {
            if !self.wants_work() {
                break;
            }
            self.work_with(&mut guard);
        }
    }

    /// Tells whoever attends that something was left, or does a turn of the work.
    pub(super) fn stir(&self) {
        if !self.desk.post()
            && let Some(mut guard) = self.lock_within(TURN)
        {
            self.work_with(&mut guard);
        }
    }

    /// Asks for a queue pair, with the identifier `wish` if that is free. `wake` is called when the answer is there.
    pub(crate) fn ask_for_pair(self: &Arc<Self>, request: PairRequest, wish: u16, wake: Arc<dyn Wake>) -> Ticket<B> {
        let ticket = self.desk.order(request, wish, wake, self);
        self.stir();
        ticket
    }

    /// As long as an order has no answer and nobody attends, its owner does the work.
    pub(crate) fn press(&self, ticket: &Ticket<B>) {
        if !ticket.is_answered() && !self.desk.is_attended() {
            self.stir();
        }
    }

    /// As long as a reset is wanted and nobody attends, whoever waits for its end does the work.
    pub(crate) fn press_reset(&self) {
        if self.wants_work() && !self.desk.is_attended() {
            self.stir();
        }
    }

    /// Whether a lane was refused a queue pair because all were out: who has one and does not use it gives it back.
    pub(crate) fn is_short_of_pairs(&self) -> bool {
        self.desk.is_short()
    }

    /// Takes a queue pair of which no command is in flight and that nobody uses any more: it is deleted, and its memory
    /// stays until that is confirmed or the controller was disabled.
    pub(crate) fn discard(&self, queue: QueuePair<B>, epoch: u64) {
        self.desk.discard(Discarded { queue, epoch });
        self.stir();
    }

    /// Asks for the reset of a controller that lives in `epoch`; more than once changes nothing.
    pub(crate) fn ask_for_reset(&self, epoch: u64) {
        self.desk.want_reset(epoch);
        self.stir();
    }

    /// A lane's look, now and then: takes what came on the admin queue, if nobody has it, and asks for what follows from it.
    /// Never waits, where somebody attends.
    pub(crate) fn glance(&self) {
        let Life::Up(epoch) = self.life() else { return };
        {
            let Some(mut guard) = self.lock_within(Duration::ZERO) else { return };
            let Some(control) = guard.as_mut() else { return };
            control.admin.reap_idle();
            if control.admin.is_broken() {
                self.desk.want_reset(epoch);
            } else if control.has_news() {
                self.desk.want_service();
            } else {
                return;
            }
        }
        self.stir();
    }

    fn work_with(&self, guard: &mut MutexGuard<'_, Option<Control<B>>>) {
        self.desk.begin();
        let Some(control) = guard.as_mut() else { return self.turn_away() };
        if self.desk.is_closing() {
            return self.turn_orders_away();
        }
        match self.life() {
            Life::Up(epoch) if self.desk.wants_reset(epoch) => {
                self.reset_with(control, epoch, ResetLimits::WHOLE);
            }
            // A lane in a hurry began to disable it.
            Life::Resetting(epoch) if !control.is_down => {
                self.reset_with(control, epoch, ResetLimits::WHOLE);
            }
            _ => {}
        }
        self.take_back(control);
        self.answer_orders(control);
        if let Life::Up(epoch) = self.life()
            && self.desk.take_service()
            && self.service_with(control).is_err()
            && control.admin.stuck
            && !self.desk.is_closing()
        {
            self.reset_with(control, epoch, ResetLimits::WHOLE);
        }
    }

    /// Identifiers that are free again, and pairs to delete.
    pub(super) fn take_back(&self, control: &mut Control<B>) {
        for qid in self.desk.take_freed() {
            control.ids.give_back(qid);
        }
        for Discarded { queue, epoch } in self.desk.take_discarded() {
            match self.life() {
                life if life.lets_go_of(epoch) => control.ids.give_back(queue.qid()),
                Life::Up(_) if !control.admin.stuck && control.delete(queue.qid()) => {
                    control.ids.give_back(queue.qid());
                    self.desk.set_short(Short::No);
                }
                // Not confirmed: its memory and its identifier stay until the controller is disabled.
                _ => control.doubtful.push(queue),
            }
        }
    }

    fn answer_orders(&self, control: &mut Control<B>) {
        while let Some(order) = self.desk.next_order() {
            if !order.is_wanted() {
                continue;
            }
            let made = self.ready(control).and_then(|epoch| control.create(&order.request, order.wish, epoch));
            match (made, self.life()) {
                (Err(_), _) if self.desk.is_closing() => {
                    order.answer(Err(self.closed()));
                    return self.turn_orders_away();
                }
                (Err(error), Life::Up(epoch)) if error.retry() == Retry::AfterFence => {
                    // Only a reset frees the admin queue. It is one of a row, which ends.
                    self.desk.put_back(order);
                    self.reset_with(control, epoch, ResetLimits::WHOLE);
                    return self.desk.repeat();
                }
                (made, _) => {
                    if made.as_ref().is_err_and(|error| error.code() == Fault::NO_QUEUE_LEFT) {
                        self.desk.set_short(Short::Yes);
                    }
                    // Whoever works for itself is awake, and others look soon.
                    let wake = Some(order.wake()).filter(|_| self.desk.is_attended());
                    let unwanted = order.answer(made);
                    wake.iter().for_each(|wake| wake.wake());
                    if let Some(pair) = unwanted {
                        self.desk.discard(Discarded { queue: pair.queue, epoch: pair.epoch });
                        self.desk.repeat();
                    }
                }
            }
        }
    }

    /// The epoch in which it takes commands, after it was brought up if it was left disabled.
    ///
    /// # Errors
    /// `NoDevice` if it was given up.
    pub(super) fn ready(&self, control: &mut Control<B>) -> Result<u64, Error> {
        match self.life() {
            Life::Resetting(epoch) if control.is_down => drop(self.bring_up(control, epoch)),
            Life::Resetting(epoch) => drop(self.reset_with(control, epoch, ResetLimits::WHOLE)),
            _ => {}
        }
        match self.life() {
            Life::Up(epoch) => Ok(epoch),
            _ => Err(control.admin.gone_for_good()),
        }
    }

    /// Runs `act` while another thread seems to have the admin queue.
    #[cfg(test)]
    pub(crate) fn while_busy(&self, act: impl FnOnce()) {
        let guard = self.lock_within(Duration::ZERO).unwrap();
        act();
        drop(guard);
    }

    /// The controller is being shut down: what lanes left is for whoever does that.
    fn turn_orders_away(&self) {
        while let Some(order) = self.desk.next_order() {
            order.answer(Err(self.closed()));
        }
    }

    /// The controller was shut down.
    fn turn_away(&self) {
        self.turn_orders_away();
        // Its memory is let go of, unless the controller could not be stopped.
        if matches!(self.life(), Life::Loud(_)) {
            self.desk.leak()
        } else {
            drop(self.desk.take_discarded())
        }
        self.desk.take_freed();
    }
}
