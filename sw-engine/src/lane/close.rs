//! Ends before their time: deadline, cancel, abandon, broken queues, close.

use core::time::Duration;

use super::{Answer, Chunk, Lane, OpState, Phase, done::Moved};
use crate::{
    error::{Error, ErrorKind, Fault, Verb, WriteOutcome},
    op::OpId,
    seam::Fence,
    slot::{SlotState, Token},
    time::Time,
};

impl Lane {
    /// Ends an operation early: it completes now with `Cancelled`; what is in flight is asked to stop and its memory stays
    /// until it did. An operation that is over already is left alone.
    pub fn cancel(&mut self, now: Time, id: OpId) {
        self.now = now;
        self.stop(id.0, ErrorKind::Cancelled);
    }

    /// As [`Lane::cancel`], but nobody wants the completion: the caller dropped its future.
    pub fn abandon(&mut self, now: Time, id: OpId) {
        self.now = now;
        match self.ops.get_mut(id.0) {
            Some(state) if state.answer == Answer::Owed => state.answer = Answer::Given,
            Some(state) if state.answer != Answer::Ready => {}
            _ => return,
        }
        self.counters.dropped += 1;
        self.let_go(id.0);
    }

    /// Completes what passed its deadline.
    pub(super) fn expire(&mut self) {
        if self.now < self.next_deadline {
            return;
        }
        let now = self.now;
        let owed = |state: &OpState| state.answer == Answer::Owed;
        let deadline = |state: &OpState| state.op.as_ref().and_then(|op| op.options.deadline).filter(|_| owed(state));
        loop {
            let mut live = self.ops.live_tokens();
            let Some(token) =
                live.find_map(|(token, _, state)| deadline(state).is_some_and(|at| at <= now).then_some(token))
            else {
                break;
            };
            drop(live);
            self.stop(token, ErrorKind::DeadlineExceeded);
        }
        let left = self.ops.live_tokens().filter_map(|(_, _, state)| deadline(state));
        self.next_deadline = left.min().unwrap_or(Time::FOREVER);
    }

    /// Answers with `kind` and abandons what is in flight.
    fn stop(&mut self, token: Token, kind: ErrorKind) {
        let now = self.now;
        let (mut waited_for, mut verb) = (0, Verb::Read);
        let Some(state) = self.ops.get_mut(token) else { return };
        if state.answer == Answer::Ready {
            return;
        }
        if state.answer == Answer::Owed {
            let mut error = Error::new(kind, Verb::Read);
            if let Some(op) = &state.op {
                verb = op.verb;
                waited_for = state.slots;
                error = Error::new(kind, verb).at(op.target.object.name.clone()).in_range(op.offset, op.spans.len());
            }
            let waited = now.since(state.submitted).as_millis();
            let left = if state.flows > 0 { " and chunks not yet started" } else { "" };
            error = error.detail(format!(
                "{} after {waited} ms with {} bytes moved; waited for {waited_for} I/Os{left}",
                kind.name().replace('_', " "),
                state.moved()
            ));
            if kind == ErrorKind::DeadlineExceeded {
                let mut legs =
                    self.slots.live_tokens().filter(|(_, _, chunk)| chunk.op == token && chunk.phase == Phase::Io);
                let why = legs.find_map(|(_, _, Chunk { leg, .. })| {
                    self.queues.get(usize::from(leg.transport))?.transport.waits(leg.handle)
                });
                if let Some(why) = &why {
                    error = error.because_of(why);
                }
            }
            if state.fault.as_ref().is_some_and(|failure| failure.fault.kind == kind) {
                // Ended by the fault itself, with memory that stays: the fault is what the caller must hear of.
                error = state.error(&self.queues);
            } else if verb == Verb::Write {
                let untouched = state.started == Time::FOREVER && waited_for == 0;
                error = error.with_outcome(if untouched { WriteOutcome::NotApplied } else { WriteOutcome::Unknown });
            }
            (state.answer, state.ended) = (Answer::Given, now);
            self.counters.count(state);
            self.ready.push_early(state.answered(token, Err(error), &self.queues));
        }
        self.let_go(token);
    }

    /// Abandons the slots of an answered operation, and ends its flows.
    fn let_go(&mut self, token: Token) {
        self.ops.abandon(token);
        // The slots are found by a scan: this is the rare way, and it keeps the common way free of lists.
        let mine: Vec<_> = self
            .slots
            .live_tokens()
            .filter(|(_, _, chunk)| chunk.op == token)
            .map(|(slot, state, chunk)| (slot, state, chunk.phase, chunk.leg.transport))
            .collect();
        for (slot, state, phase, transport) in mine {
            self.slots.abandon(slot);
            self.counters.abandoned += u64::from(matches!(state, SlotState::Staged | SlotState::InFlight));
            let waiting = self.copiers.iter_mut().any(|copier| {
                let before = copier.backlog.len();
                copier.backlog.retain(|queued| *queued != slot);
                copier.backlog.len() < before
            });
            let queue = &mut self.queues[usize::from(transport)];
            let before = queue.refused.len();
            queue.refused.retain(|queued| *queued != slot);
            if waiting || queue.refused.len() < before {
                // No device has it: it is free at once.
                self.retire(slot, Moved::No);
            } else if phase == Phase::Io {
                queue.transport.cancel(slot);
            }
        }
        self.drop_flows(token);
        self.finish_if_over(token);
    }

    fn drop_flows(&mut self, token: Token) {
        let (flows, ops) = (&mut self.flows, &mut self.ops);
        for queue in &mut self.queues {
            queue.shares.remove(|index| {
                let gone = flows.get(index).op == token;
                if gone {
                    flows.put(index);
                    if let Some(state) = ops.get_mut(token) {
                        state.flows = state.flows.saturating_sub(1);
                    }
                }
                gone
            });
        }
    }

    /// A queue broke: its operations fail, and their memory stays until the fence says that it is quiet.
    pub(super) fn break_queue(&mut self, index: usize, error: &Error) {
        let fault = Fault::new(error.kind(), error.code());
        self.queues[index].broken = Some(fault);
        self.counters.broken += 1;
        self.fence_queue(index, Duration::from_secs(1), fault);
    }

    pub(super) fn break_copier(&mut self, index: usize, fault: Fault) {
        self.copiers[index].broken = Some(fault);
        self.counters.broken += 1;
        self.fence_copier(index, Duration::from_secs(1), fault);
    }

    fn fence_queue(&mut self, index: usize, timeout: Duration, fault: Fault) {
        let mut done = core::mem::take(&mut self.io_done);
        done.clear();
        let fence = self.queues[index].transport.fence(timeout, &mut done);
        self.mark_rung(index);
        for end in &done {
            self.io_ended(end);
        }
        self.io_done = done;
        let on_queue = |chunk: &super::Chunk| usize::from(chunk.leg.transport) == index && chunk.phase == Phase::Io;
        // Those that ended with memory that stays are quarantined already.
        let held: Vec<_> = self
            .slots
            .live_tokens()
            .filter(|(_, state, chunk)| *state != SlotState::Quarantined && on_queue(chunk))
            .map(|(slot, ..)| slot)
            .collect();
        while let Some(token) = self.queues[index].refused.pop_front() {
            // No device ever had it.
            self.chunk_failed(token, fault);
        }
        self.settle(held, fence, fault);
    }

    fn fence_copier(&mut self, index: usize, timeout: Duration, fault: Fault) {
        let mut done = core::mem::take(&mut self.copy_done);
        done.clear();
        let fence = self.copiers[index].engine.fence(timeout, &mut done);
        for end in &done {
            self.copy_ended(*end);
        }
        self.copy_done = done;
        while let Some(token) = self.copiers[index].backlog.pop_front() {
            // No device ever had it.
            self.chunk_failed(token, fault);
        }
        let device = self.copiers[index].caps.device;
        let on_device = |chunk: &super::Chunk| {
            let op = self.ops.get(chunk.op).and_then(|(state, _)| state.op.as_ref());
            let place = op.and_then(|op| op.spans.get(chunk.span)).map(sw_mem::DmaSpan::place);
            chunk.phase != Phase::Io && matches!(place, Some(sw_mem::Place::Device(mine, _)) if mine == device)
        };
        let held = self.slots.live_tokens().filter(|(_, state, _)| *state != SlotState::Quarantined);
        let held: Vec<_> = held.filter(|(_, _, chunk)| on_device(chunk)).map(|(slot, ..)| slot).collect();
        self.copiers[index].taken = 0;
        self.settle(held, fence, fault);
    }

    /// After a fence: quiet slots fail and are free; those of a device that could not be stopped are quarantined.
    fn settle(&mut self, held: Vec<Token>, fence: Fence, fault: Fault) {
        for slot in held {
            let abandoned = self.slots.get(slot).is_some_and(|(_, state)| state == SlotState::Abandoned);
            match (fence, abandoned) {
                (Fence::Quiet, true) => self.retire(slot, Moved::No),
                (Fence::Quiet, false) => self.chunk_failed(slot, fault),
                (Fence::Busy(_), _) => self.keep(slot, fault),
            }
        }
    }

    /// A device that was given up may touch the slot's memory for ever: its operation fails, and the slot is quarantined with
    /// what the operation owns. The operation's own place is free once no other slot needs it.
    pub(super) fn keep(&mut self, slot: Token, fault: Fault) {
        let Some((chunk, _)) = self.slots.get(slot) else { return };
        let (op, offset, phase) = (chunk.op, chunk.cut.offset, chunk.phase);
        let face = (chunk.leg.transport, chunk.leg.handle);
        self.fail_op(op, fault, offset, phase);
        self.met_at(op, fault, face);
        self.stop(op, fault.kind);
        // One that no device had is free by now.
        let Some((chunk, _)) = self.slots.get(slot) else { return };
        let shares = &mut self.queues[usize::from(chunk.leg.transport)].shares;
        shares.keep_slab(chunk.device, &chunk.stash);
        match chunk.phase {
            Phase::Io => shares.keep_place(chunk.device),
            // It had the place for the I/O to come, which no device heard of.
            Phase::CopyIn => shares.give_place(chunk.device),
            Phase::CopyOut => {}
        }
        self.slots.quarantine(slot);
        self.counters.quarantined += 1;
        if let Some(state) = self.ops.get_mut(op) {
            state.answer = Answer::Kept;
            state.lose_slot();
            self.finish_if_over(op);
        }
    }

    /// Closes: every operation is answered, every transport fenced, within about `timeout` each.
    ///
    /// Completions are ready afterwards. Returns the slots that could not be freed: their memory is leaked on purpose when
    /// the lane is dropped, because a device may still write it.
    pub fn close(&mut self, now: Time, timeout: Duration) -> u32 {
        self.now = now;
        self.closed = true;
        let live: Vec<_> = self.ops.live_tokens().map(|(token, ..)| token).collect();
        live.into_iter().for_each(|token| self.stop(token, ErrorKind::Closed));
        let fault = Fault::new(ErrorKind::Closed, 0);
        (0..self.queues.len()).for_each(|index| self.fence_queue(index, timeout, fault));
        (0..self.copiers.len()).for_each(|index| self.fence_copier(index, timeout, fault));
        self.slots.counts().quarantined
    }
}

impl Drop for Lane {
    /// Never frees what a device may still write: it fences, and what stays busy is leaked and was counted.
    fn drop(&mut self) {
        if !self.closed {
            self.close(self.now, Duration::from_secs(1));
        }
        if self.slots.counts().quarantined > 0 {
            self.leak();
        }
    }
}

impl Lane {
    #[expect(
        clippy::mem_forget,
        reason = "a device may still write this memory; freeing it would corrupt whoever gets it next"
    )]
    fn leak(&mut self) {
        // What is over has no slot: its memory is free.
        while self.pop().is_some() {}
        let empty = || super::SlotTable::new(0, OpState::empty);
        core::mem::forget(core::mem::replace(&mut self.ops, empty()));
        core::mem::forget(core::mem::take(&mut self.kept));
        core::mem::forget(core::mem::replace(&mut self.slots, super::SlotTable::new(0, super::Chunk::empty)));
        core::mem::forget(self.staging.take());
        if let Ok(bounce) = sw_mem::SlabPool::new(1, sw_mem::ByteLen(1), sw_mem::HugePages::Never) {
            core::mem::forget(core::mem::replace(&mut self.bounce, bounce));
        }
        core::mem::forget(core::mem::take(&mut self.queues));
        core::mem::forget(core::mem::take(&mut self.copiers));
    }
}
