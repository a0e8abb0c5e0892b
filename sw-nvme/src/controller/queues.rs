//! Queue pairs of a controller: identifiers, interrupt vectors, shadow doorbells, creation and deletion.

use core::time::Duration;

use sw_engine::{Error, ErrorKind, Fault, Verb};

use crate::{
    bus::{Bus, QueueMemory, Waiter},
    controller::{Control, Controller, Life},
    inquiry::{ADMIN_DATA_BYTES, AdminQueue, Data},
    queue::{QueuePair, QueueShape, Shadow},
    wire::{
        Command,
        admin::{self as wire, CqInterrupt},
        feature::{Feature, QueueCounts},
    },
};

/// How a queue pair shall tell of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Not at all: it is polled.
    Polled,
    /// By an interrupt of its own, if one is left.
    Interrupt,
}

/// What a queue pair shall be like.
#[derive(Clone, Copy, Debug)]
pub struct PairRequest {
    /// Commands in flight at most; the pair may have fewer, see [`QueuePair::entries`].
    pub depth: u32,
    /// Bytes of one command at most.
    pub data_bytes_max: u32,
    /// How it tells.
    pub notify: Notify,
}

/// A queue pair that the controller knows.
pub struct Pair<B: Bus> {
    /// The rings.
    pub queue: QueuePair<B>,
    /// The epoch that it belongs to.
    pub epoch: u64,
    /// Its interrupt with the vector's number, if it asked for one and has one of its own.
    pub interrupt: Option<(u16, <B::Waiter as Waiter>::Interrupt)>,
}

/// Identifiers that are out.
///
/// One stays out across a reset until its owner gives it back: a doorbell that the owner wrote late then hits a queue that
/// does not exist, never one of another thread.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Of I/O queue `index + 1`.
    out: Vec<bool>,
}

impl Ids {
    /// Sets how many there are. Those above that are out stay out until they are given back.
    pub(super) fn set_count(&mut self, count: u16) {
        let count = usize::from(count);
        let last_out = self.out.iter().rposition(|out| *out).map_or(0, |at| at + 1);
        self.out.resize(count.max(last_out), false);
    }

    /// The lowest of `count` that is free; `wish` if that is.
    fn take(&mut self, count: u16, wish: u16) -> Option<u16> {
        let all = self.out.iter().take(usize::from(count));
        let free = |qid: &u16| qid.checked_sub(1).and_then(|at| self.out.get(usize::from(at))) == Some(&false);
        let qid = match Some(wish).filter(|wish| *wish <= count).filter(free) {
            Some(wish) => wish,
            None => u16::try_from(all.clone().position(|out| !out)?).ok()? + 1,
        };
        self.out[usize::from(qid) - 1] = true;
        Some(qid)
    }

    pub(super) fn give_back(&mut self, qid: u16) {
        if let Some(out) = usize::from(qid).checked_sub(1).and_then(|at| self.out.get_mut(at)) {
            *out = false;
        }
    }

    /// How many are out.
    pub(super) fn out_count(&self) -> usize {
        self.out.iter().filter(|out| **out).count()
    }
}

/// The vector of a queue, of `vectors` that there are: its own number, so that it has the same one after a reset. Vector 0 is
/// that of the admin queue, which is polled; the first queue past the others has it.
fn vector_of(qid: u16, vectors: u16) -> Option<u16> {
    match qid.cmp(&vectors) {
        core::cmp::Ordering::Less => Some(qid),
        core::cmp::Ordering::Equal => Some(0),
        core::cmp::Ordering::Greater => None,
    }
}

impl<B: Bus> Control<B> {
    /// Asks for `wanted` queue pairs and keeps how many there are.
    ///
    /// # Errors
    /// What [`Admin::expect`](AdminQueue::expect) says.
    pub(super) fn negotiate_queues(&mut self, wanted: u16) -> Result<(), Error> {
        let wanted = u32::from(wanted.max(1));
        // Within 1 to 65,535.
        let dword11 = QueueCounts { submission: wanted, completion: wanted }.encode().unwrap_or(0);
        let feature = Feature::NumberOfQueues { dword11 };
        let answer =
            self.admin.expect("set number of queues", Data::None, |data| Command::set_features(&feature, data))?;
        let there = QueueCounts::decode(answer.dw0);
        // The controller may give more than was asked for; those are not used.
        self.pairs_max = u16::try_from(there.submission.min(there.completion).min(wanted)).unwrap_or(u16::MAX);
        self.ids.set_count(self.pairs_max);
        Ok(())
    }

    /// Gives the controller shadow doorbell buffers, where it takes them and the bus can share memory.
    ///
    /// # Errors
    /// None for a refusal: doorbells are then written to registers. What
    /// [`Admin::run`](AdminQueue::run) says.
    pub(super) fn offer_shadow(&mut self) -> Result<(), Error> {
        let Some((doorbells, events)) = &self.shadow else { return Ok(()) };
        let zeroes = [0; ADMIN_DATA_BYTES];
        doorbells.write(0, &zeroes);
        events.write(0, &zeroes);
        let (doorbells, events) = (doorbells.iova(), events.iova());
        let answer = self.admin.run(Data::None, |_| Command::doorbell_buffer_config(doorbells, events))?;
        self.shadowed = answer.status.is_success();
        Ok(())
    }

    /// The words of one queue, or `None` if they lie past the page of the buffers.
    fn shadow_of(&self, qid: u16) -> Option<Shadow<B::Memory>> {
        let (doorbells, events) = self.shadow.as_ref().filter(|_| self.shadowed)?;
        let stride = self.cap.doorbell_stride;
        let at = |offset: u32| {
            let at = sw_mem::index(u64::from(offset.checked_sub(crate::wire::regs::DOORBELLS)?));
            (at + 4 <= doorbells.len().min(events.len())).then_some(at)
        };
        let (sq_at, cq_at) = (at(stride.sq_tail(qid)?)?, at(stride.cq_head(qid)?)?);
        for word in [sq_at, cq_at] {
            doorbells.store32(word, 0);
            events.store32(word, 0);
        }
        Some(Shadow { doorbells: doorbells.alias()?, events: events.alias()?, sq_at, cq_at })
    }

    pub(super) fn create(&mut self, request: &PairRequest, wish: u16, epoch: u64) -> Result<Pair<B>, Error> {
        let Some(qid) = self.ids.take(self.pairs_max, wish) else {
            return Err(self
                .admin
                .error(
                    ErrorKind::ResourceLimit,
                    format!("all {} queue pairs of the controller are in use", self.pairs_max),
                )
                .with_code(Fault::NO_QUEUE_LEFT)
                .remedy("use fewer lanes, or close an engine that uses this controller"));
        };
        let made = self.create_with(request, epoch, qid);
        if made.is_err() {
            self.ids.give_back(qid);
        }
        made
    }

    fn create_with(&mut self, request: &PairRequest, epoch: u64, qid: u16) -> Result<Pair<B>, Error> {
        // One entry stays empty; a power of two within CAP.MQES, rounded down (MQES need not be one).
        let most = self.cap.queue_entries_max.min(crate::queue::ENTRIES_MAX);
        let most = if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 };
        let entries = request.depth.saturating_add(1).next_power_of_two().clamp(2, most);
        let shape =
            QueueShape { qid, entries, data_bytes_max: request.data_bytes_max, stride: self.cap.doorbell_stride };
        let bus = self.admin.bus.clone();
        let vector = vector_of(qid, bus.vectors()).filter(|_| request.notify == Notify::Interrupt);
        // The machine may have fewer vectors than the function: the queue is polled then, and the pair says so.
        let interrupt = vector.and_then(|vector| Some((vector, bus.interrupt(vector).ok()?)));
        let mut queue = QueuePair::new(&*bus, shape)?;
        let notify = interrupt.as_ref().map_or(CqInterrupt::Polled, |(vector, _)| CqInterrupt::Vector(*vector));
        let ring = |iova| wire::QueueShape { qid, entries, iova };
        let (cq, sq) =
            (Command::create_cq(ring(queue.cq_iova()), notify), Command::create_sq(ring(queue.sq_iova()), qid));
        let (Some(cq), Some(sq)) = (cq, sq) else {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).detail("a queue has 2 to 4096 entries"));
        };
        // Shadow words are zero before the controller looks at them, which it does from creation on.
        if let Some(shadow) = self.shadow_of(qid) {
            queue.set_shadow(shadow);
        }
        if let Err(error) = self.admin.expect("create I/O completion queue", Data::None, |_| cq) {
            return Err(self.undo(queue, error));
        }
        if let Err(error) = self.admin.expect("create I/O submission queue", Data::None, |_| sq) {
            // An answer that never came leaves the queue in doubt, and so does a deletion that failed.
            let deleted = !self.admin.stuck
                && self
                    .admin
                    .run(Data::None, |_| Command::delete_cq(qid))
                    .is_ok_and(|answer| answer.status.is_success());
            self.admin.stuck |= !deleted;
            return Err(self.undo(queue, error));
        }
        Ok(Pair { queue, epoch, interrupt })
    }

    /// Frees rings of a queue that was not created, unless the controller may know them: then they stay until it is reset.
    fn undo(&mut self, queue: QueuePair<B>, error: Error) -> Error {
        if self.admin.stuck {
            self.doubtful.push(queue);
        }
        error
    }

    /// Deletes both queues of a pair; `true`: the controller confirmed both.
    pub(super) fn delete(&mut self, qid: u16) -> bool {
        let mut gone =
            |command: Command| self.admin.run(Data::None, |_| command).is_ok_and(|answer| answer.status.is_success());
        gone(Command::delete_sq(qid)) && gone(Command::delete_cq(qid))
    }
}

impl<B: Bus> Controller<B> {
    /// Makes a queue pair. Control plane: waits for admin commands.
    ///
    /// # Errors
    /// `ResourceLimit` if none is left, `NoDevice` if the controller is gone or was given up, `Forked` in a child of the
    /// process that opened it, what the controller and the bus say.
    pub fn create_pair(&self, request: &PairRequest) -> Result<Pair<B>, Error> {
        self.create_pair_again(request, 0)
    }

    /// As [`Controller::create_pair`], with the identifier (and thereby the vector) that a pair had before a reset, if that
    /// is free; 0 for none.
    ///
    /// # Errors
    /// As [`Controller::create_pair`].
    pub fn create_pair_again(&self, request: &PairRequest, qid: u16) -> Result<Pair<B>, Error> {
        self.control_up(|control, epoch| {
            self.take_back(control);
            control.create(request, qid, epoch)
        })
    }

    /// Deletes a pair whose commands all ended, or that the caller wants to end: the controller ends those that are in
    /// flight. `true`: it confirmed both deletions, and `qid` is free for others. Each of the waits, for another thread and
    /// for two answers, ends after `at_most`.
    ///
    /// Confirmed or not, commands without a completion may still touch memory until the controller is disabled.
    pub fn delete_pair(&self, qid: u16, epoch: u64, at_most: Duration) -> bool {
        let Some(mut guard) = self.lock_within(at_most) else { return false };
        let Some(control) = guard.as_mut().filter(|_| self.life() == Life::Up(epoch)) else { return false };
        let usual = control.admin.timeout;
        control.admin.timeout = usual.min(at_most);
        let deleted = control.delete(qid);
        control.admin.timeout = usual;
        if deleted {
            control.ids.give_back(qid);
        }
        deleted
    }

    /// Gives an identifier back after a reset or the controller's end. Its owner writes no doorbell of it any more. Never
    /// waits.
    pub fn release_pair(&self, qid: u16) {
        self.desk.free(qid);
    }
}

#[cfg(test)]
mod tests {
    use super::vector_of;

    #[test]
    fn queues_have_vectors_of_their_own_as_long_as_there_are_some() {
        let of = |vectors| (1..=4).map(move |qid| vector_of(qid, vectors)).collect::<Vec<_>>();
        assert_eq!(of(0), [None; 4]);
        assert_eq!(of(1), [Some(0), None, None, None]);
        assert_eq!(of(3), [Some(1), Some(2), Some(0), None]);
        assert_eq!(of(9), [Some(1), Some(2), Some(3), Some(4)]);
    }
}
