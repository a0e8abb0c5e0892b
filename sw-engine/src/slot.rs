//! The slot table: everything that a device or peer may still touch has a slot until it provably let go.
//!
//! ```text
//!   Free ─stage─► Staged ─ring─► InFlight ─done─► Free
//!                   │               │ deadline, cancel, drop
//!                   └──unstage──►   ▼
//!                              Abandoned ─done─► Free
//!                                   │ the transport cannot be fenced
//!                                   ▼
//!                              Quarantined   (kept, counted, reported)
//! ```
//!
//! A token names a slot and its generation. A completion with a dead generation finds nothing and is counted.

/// Names one use of one slot: index below, generation above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    /// From the word that a device gave back. Nothing is believed: the table checks it.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The word to hand to a device.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The slot.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the index by construction")]
    pub fn index(self) -> u32 {
        self.0 as u32
    }

    /// Which use of the slot.
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// Nobody touches its memory.
    Free,
    /// Filled in, not yet with the device.
    Staged,
    /// The device may touch its memory and the caller waits.
    InFlight,
    /// The device may touch its memory and the caller has its answer.
    Abandoned,
    /// The device may touch its memory for ever: it could not be stopped.
    Quarantined,
}

/// How many slots are in each state. They sum up to the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SlotCounts {
    /// In [`SlotState::Free`].
    pub free: u32,
    /// In [`SlotState::Staged`].
    pub staged: u32,
    /// In [`SlotState::InFlight`].
    pub in_flight: u32,
    /// In [`SlotState::Abandoned`].
    pub abandoned: u32,
    /// In [`SlotState::Quarantined`].
    pub quarantined: u32,
}

#[derive(Debug)]
struct Entry<T> {
    /// Of its present use; [`NOBODY`] while it is free, so that one comparison tells whether a token is live.
    token: Token,
    /// Of its present use, or of the next one while it is free.
    generation: u32,
    state: SlotState,
    body: T,
}

impl<T> Entry<T> {
    /// Whether `token` names the present use.
    #[inline]
    fn is(&self, token: Token) -> bool {
        self.token == token
    }
}

/// A token that no slot has: a table is smaller than its index.
const NOBODY: Token = Token(u64::MAX);

/// Slots with a fixed capacity, each with a body of type `T` that outlives its use.
#[derive(Debug)]
pub(crate) struct SlotTable<T> {
    entries: Box<[Entry<T>]>,
    free: Vec<u32>,
}

impl<T> SlotTable<T> {
    /// `capacity` free slots with bodies from `body`.
    pub(crate) fn new(capacity: u32, body: impl Fn() -> T) -> Self {
        let entry = |_| Entry { token: NOBODY, generation: 1, state: SlotState::Free, body: body() };
        Self { entries: (0..capacity).map(entry).collect(), free: (0..capacity).rev().collect() }
    }

    /// Takes a free slot, staged, or `None` when there is none. The body is that of its last use, to be overwritten.
    #[inline(always)]
    pub(crate) fn stage(&mut self) -> Option<(Token, &mut T)> {
        let index = self.free.pop()?;
        let entry = self.entries.get_mut(index as usize)?;
        debug_assert_eq!(entry.state, SlotState::Free);
        entry.state = SlotState::Staged;
        entry.token = Token::new(index, entry.generation);
        Some((entry.token, &mut entry.body))
    }

    /// The body of a live token.
    #[inline]
    pub(crate) fn get(&self, token: Token) -> Option<(&T, SlotState)> {
        let entry = self.entries.get(token.index() as usize)?;
        entry.is(token).then_some((&entry.body, entry.state))
    }

    /// The body of a live token, writable.
    #[inline]
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        Some(&mut self.live(token)?.body)
    }

    /// A new generation for a slot that is handed over again, staged: an end of the earlier hand-over finds nothing.
    pub(crate) fn renew(&mut self, token: Token) -> Option<Token> {
        let entry = self.live(token)?;
        entry.generation = entry.generation.wrapping_add(1);
        entry.state = SlotState::Staged;
        entry.token = Token::new(token.index(), entry.generation);
        Some(entry.token)
    }

    /// The body of a live token, writable, and its state.
    #[inline]
    pub(crate) fn get_mut_with_state(&mut self, token: Token) -> Option<(&mut T, SlotState)> {
        let entry = self.live(token)?;
        Some((&mut entry.body, entry.state))
    }

    /// The device has it now.
    #[inline]
    pub(crate) fn fly(&mut self, token: Token) {
        if let Some(entry) = self.live(token)
            && entry.state == SlotState::Staged
        {
            entry.state = SlotState::InFlight;
        }
    }

    /// The caller has its answer; the memory stays.
    pub(crate) fn abandon(&mut self, token: Token) {
        if let Some(entry) = self.live(token)
            && matches!(entry.state, SlotState::InFlight | SlotState::Staged)
        {
            entry.state = SlotState::Abandoned;
        }
    }

    /// The owner could not be stopped; the slot is never used again.
    pub(crate) fn quarantine(&mut self, token: Token) {
        if let Some(entry) = self.live(token) {
            entry.state = SlotState::Quarantined;
        }
    }

    /// The owner provably let go. The generation moves on, so that a late completion finds nothing.
    ///
    /// Gives the body of the use that ended, for a last look.
    #[inline]
    pub(crate) fn free(&mut self, token: Token) -> Option<&mut T> {
        let entry = self.entries.get_mut(token.index() as usize).filter(|entry| entry.is(token))?;
        entry.state = SlotState::Free;
        entry.token = NOBODY;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(token.index());
        Some(&mut entry.body)
    }

    #[inline]
    fn live(&mut self, token: Token) -> Option<&mut Entry<T>> {
        self.entries.get_mut(token.index() as usize).filter(|entry| entry.is(token))
    }

    /// Free slots left.
    #[inline]
    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Slots by state.
    pub(crate) fn counts(&self) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for entry in &self.entries {
            *match entry.state {
                SlotState::Free => &mut counts.free,
                SlotState::Staged => &mut counts.staged,
                SlotState::InFlight => &mut counts.in_flight,
                SlotState::Abandoned => &mut counts.abandoned,
                SlotState::Quarantined => &mut counts.quarantined,
            } += 1;
        }
        counts
    }

    /// Tokens and bodies of all slots that are not free.
    pub(crate) fn live_tokens(&self) -> impl Iterator<Item = (Token, SlotState, &T)> {
        let live = self.entries.iter().filter(|entry| entry.state != SlotState::Free);
        live.map(|entry| (entry.token, entry.state, &entry.body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage<T>(table: &mut SlotTable<T>, body: T) -> Token {
        let (token, place) = table.stage().unwrap();
        *place = body;
        token
    }

    #[test]
    fn a_late_completion_of_a_dead_generation_finds_nothing() {
        let mut table = SlotTable::new(1, || 0u8);
        let first = stage(&mut table, 1);
        table.fly(first);
        table.free(first);
        let second = stage(&mut table, 2);
        assert_eq!(first.index(), second.index());
        assert!(table.get(first).is_none());
        table.free(first);
        assert_eq!(table.get(second), Some((&2, SlotState::Staged)));
    }

    #[test]
    fn an_end_of_an_earlier_hand_over_finds_nothing() {
        let mut table = SlotTable::new(1, || 0u8);
        let first = stage(&mut table, 1);
        table.fly(first);
        let again = table.renew(first).unwrap();
        assert!(table.get(first).is_none() && table.renew(first).is_none());
        assert_eq!(table.get(again), Some((&1, SlotState::Staged)));
    }

    #[test]
    fn an_abandoned_slot_is_not_free_until_its_owner_lets_go() {
        let mut table = SlotTable::new(1, || ());
        let token = stage(&mut table, ());
        table.fly(token);
        table.abandon(token);
        assert!(table.stage().is_none());
        assert_eq!(table.counts().abandoned, 1);
        table.free(token);
        assert_eq!(table.counts().free, 1);
    }

    #[test]
    fn words_that_no_slot_has_are_harmless() {
        let mut table = SlotTable::new(2, || ());
        for raw in [0, 1 << 32, u64::MAX, 7] {
            let token = Token::from_raw(raw);
            assert!(table.get(token).is_none());
            table.free(token);
            table.abandon(token);
        }
        assert_eq!(table.counts(), SlotCounts { free: 2, ..SlotCounts::default() });
    }
}
