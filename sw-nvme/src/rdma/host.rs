//! The host's end of a queue over RDMA: commands in, capsules out; completions in, ends out. It does no I/O.
//!
//! ```text
//!   submit ─► slot ─► next ─► (its memory is registered) ─► capsule ─► SEND
//!        SEND completed ─► sent ┐
//!        response received ─► response ┴─► both seen ─► pop_end ─► (its memory is deregistered)
//! ```
//!
//! Invariants:
//! - A command ends when its SEND's completion **and** its response were seen, in whichever order they come: the response may pass the
//!   completion, and until then the NIC reads the capsule.
//! - Memory and key are the slot's from [`HostQueue::capsule`] to its end, or until the QP was drained. Nobody who stops waiting changes that: a
//!   controller may write until it answers. See [`HostQueue::let_go`].
//! - What the controller says is compared before it is used: index and generation of the identifier, the key that it invalidated.

use std::collections::VecDeque;

use sw_engine::seam::verbs::RemoteKey;

use super::{
    Breach,
    capsule::{self, COMMAND_BYTES, KEYED_BYTES_MAX, KeyEnd, RESPONSE_BYTES, Source},
};
use crate::{
    tcp::host::{DEPTH_MAX, End, Outcome, Transfer},
    wire::{Command, Completion},
};

const INDEX_BITS: u32 = 10;
const INDEX_MASK: u16 = (1 << INDEX_BITS) - 1;
const GENERATIONS: u16 = 1 << (16 - INDEX_BITS);
const _: () = assert!(DEPTH_MAX <= INDEX_MASK, "an index has its bits in an identifier");

/// A command whose capsule is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Its place, below the depth: for whoever keeps capsules and memory by place.
    pub place: u16,
    /// CID.
    pub cid: u16,
    /// Given with the command.
    pub user: u32,
    /// What it moves.
    pub transfer: Transfer,
}

/// The end of a command, with its place: capsule and memory there are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The place; `None` for a command that never had memory.
    pub place: Option<u16>,
    /// What became of it.
    pub end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// No capsule was made.
    Unsent,
    /// With the NIC, and what was seen of it.
    Out {
        is_sent: bool,
        answer: Option<(Outcome, u64)>,
    },
}

struct Slot {
    generation: u16,
    state: State,
    user: u32,
    command: Command,
    transfer: Transfer,
    /// The key that its capsule carries, if the controller was asked to invalidate it.
    key: Option<RemoteKey>,
}

/// See the module documentation.
pub struct HostQueue {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    outbox: VecDeque<u16>,
    ends: VecDeque<Ended>,
}

impl HostQueue {
    /// A queue of `depth` commands at a time, 1 to [`DEPTH_MAX`].
    pub fn new(depth: u16) -> Self {
        let depth = depth.clamp(1, DEPTH_MAX);
        let slot = || Slot {
            generation: 0,
            state: State::Free,
            user: 0,
            command: Command::ZERO,
            transfer: Transfer::None,
            key: None,
        };
        Self {
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            outbox: VecDeque::with_capacity(depth.into()),
            ends: VecDeque::with_capacity(depth.into()),
        }
    }

    /// Commands that it takes now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Commands that are under way, those included that nobody waits for.
    pub fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a command; its data pointer and its identifier are set here. Gives the identifier; `None`: it is full, or moves more than a
    /// descriptor can say.
    pub fn submit(&mut self, command: &Command, transfer: Transfer, user: u32) -> Option<u16> {
        if let Transfer::In(bytes) | Transfer::Out(bytes) = transfer
            && bytes > KEYED_BYTES_MAX
        {
            return None;
        }
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        (slot.command, slot.transfer, slot.user) = (*command, transfer, user);
        (slot.state, slot.key) = (State::Unsent, None);
        self.outbox.push_back(index);
        Some(slot.generation << INDEX_BITS | index)
    }

    /// The next command to send. It stays the next one until [`HostQueue::capsule`].
    pub fn next(&self) -> Option<Next> {
        let place = *self.outbox.front()?;
        let slot = self.slots.get(usize::from(place))?;
        Some(Next { place, cid: slot.generation << INDEX_BITS | place, user: slot.user, transfer: slot.transfer })
    }

    /// The capsule of the [next](HostQueue::next) command, whose data lies at `data`: from now on both are its slot's. `None`: there is no command,
    /// or `data` does not fit what it moves.
    pub fn capsule(&mut self, data: Source) -> Option<[u8; COMMAND_BYTES]> {
        let next = self.next()?;
        let fits = match (next.transfer, data) {
            (Transfer::None, data) => data == Source::Nothing,
            (Transfer::In(_), Source::Behind(_)) => false,
            (Transfer::In(bytes) | Transfer::Out(bytes), data) => data.bytes() == bytes,
        };
        if !fits {
            return None;
        }
        let slot = self.slots.get_mut(usize::from(next.place))?;
        let raw = capsule::encode(&slot.command, next.cid, data)?;
        slot.key = match data {
            Source::Keyed(keyed) if keyed.end == KeyEnd::Invalidated => Some(RemoteKey(keyed.at.rkey())),
            _ => None,
        };
        slot.state = State::Out { is_sent: false, answer: None };
        self.outbox.pop_front();
        Some(raw)
    }

    /// Whether [`HostQueue::next`] has one.
    pub fn has_capsules(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The SEND of a command's capsule completed well.
    ///
    /// # Errors
    /// [`Breach`] for one that is not with the NIC: a completion that comes twice, or of nothing.
    pub fn sent(&mut self, cid: u16) -> Result<(), Breach> {
        let breach = Breach { rule: "a completion for a send that is not under way" };
        let index = self.live(cid).ok_or(breach)?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(breach)?;
        match slot.state {
            State::Out { is_sent: false, answer: None } => slot.state = State::Out { is_sent: true, answer: None },
            State::Out { is_sent: false, answer: Some((outcome, value)) } => self.over(index, outcome, value),
            _ => return Err(breach),
        }
        Ok(())
    }

    /// A response capsule came, with the key that it invalidated.
    ///
    /// # Errors
    /// [`Breach`]: the connection ends.
    pub fn response(&mut self, raw: &[u8], invalidated: Option<RemoteKey>) -> Result<(), Breach> {
        let raw: [u8; RESPONSE_BYTES] =
            raw.try_into().map_err(|_| Breach { rule: "a response that is no completion of 16 bytes" })?;
        let completion = Completion::new(raw);
        let breach = Breach { rule: "a response to a command that is not under way" };
        let index = self.live(completion.cid()).ok_or(breach)?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(breach)?;
        let State::Out { is_sent, answer: None } = slot.state else { return Err(breach) };
        if invalidated.is_some() && invalidated != slot.key {
            return Err(Breach { rule: "a response that invalidates another key than its command's" });
        }
        let outcome = Outcome::Told(completion.status());
        let value = u64::from(completion.dw0()) | u64::from(completion.dw1()) << 32;
        if is_sent {
            self.over(index, outcome, value);
        } else {
            slot.state = State::Out { is_sent, answer: Some((outcome, value)) };
        }
        Ok(())
    }

    /// The next command that ended.
    pub fn pop_end(&mut self) -> Option<Ended> {
        self.ends.pop_front()
    }

    /// Ends a command for its caller, if its memory can be left alone from now on: only one that was not sent. `false`: the controller's answer
    /// must be waited for, or the end of the QP, since it may write or read the memory until then.
    pub fn let_go(&mut self, cid: u16) -> bool {
        let Some(index) = self.live(cid).filter(|_| self.is_unsent(cid)) else { return false };
        self.outbox.retain(|queued| *queued != index);
        self.free(index, Outcome::LetGo, 0, None);
        true
    }

    /// Whether a command is under way of which no capsule was made yet: the controller cannot know of it.
    pub fn is_unsent(&self, cid: u16) -> bool {
        let slot = self.live(cid).and_then(|index| self.slots.get(usize::from(index)));
        slot.is_some_and(|slot| slot.state == State::Unsent)
    }

    /// The place of a live command.
    fn live(&self, cid: u16) -> Option<u16> {
        let index = cid & INDEX_MASK;
        let slot = self.slots.get(usize::from(index))?;
        (slot.state != State::Free && slot.generation == cid >> INDEX_BITS).then_some(index)
    }

    fn over(&mut self, index: u16, outcome: Outcome, value: u64) {
        self.free(index, outcome, value, Some(index));
    }

    fn free(&mut self, index: u16, outcome: Outcome, value: u64, place: Option<u16>) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        slot.state = State::Free;
        let end = End { user: slot.user, outcome, value, aside: 0 };
        self.ends.push_back(Ended { place, end });
        self.free.push(index);
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
