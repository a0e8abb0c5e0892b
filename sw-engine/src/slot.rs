//! The slot table: everything that a device or peer may still touch has a slot until it provably let go.
//!
//! ```text
//!   Free ─stage─► Staged ─the transport took it─► InFlight ─done─► Free
//!                   │                                │ deadline, cancel, drop
//!                   └────────────────────────────►   ▼
//!                                               Abandoned ─done─► Free
//!                                                    │ the transport cannot be fenced
//!                                                    ▼
//!                                               Quarantined   (kept, counted, reported)
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
    pub const fn from_raw(raw: u64) -> Self {
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
    /// Filled in, not yet taken by a transport or copy engine.
    Staged,
    /// A transport or copy engine took it: its device may touch its memory, and the caller waits.
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
    /// The slot that is taken after it, while it is free; [`NONE`] for the last one.
    next_free: u32,
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
/// No slot: a table is smaller than that.
const NONE: u32 = u32::MAX;

/// Slots with a fixed capacity, each with a body of type `T` that outlives its use.
#[derive(Debug)]
pub(crate) struct SlotTable<T> {
    entries: Box<[Entry<T>]>,
    free: FreeList,
}

/// The free slots: a list through the entries, the one freed last in front, as its memory is warm.
#[derive(Debug)]
struct FreeList {
    /// [`NONE`] if there is none.
    first: u32,
    count: u32,
}

/// A slot in use, found once.
#[derive(Debug)]
pub(crate) struct Live<'a, T> {
    entry: &'a mut Entry<T>,
    free: &'a mut FreeList,
}

impl<'a, T> Live<'a, T> {
    #[inline(always)]
    pub(crate) fn token(&self) -> Token {
        self.entry.token
    }

    #[inline(always)]
    pub(crate) fn state(&self) -> SlotState {
        self.entry.state
    }

    #[inline(always)]
    pub(crate) fn body(&mut self) -> &mut T {
        &mut self.entry.body
    }

    /// The body alone.
    #[inline(always)]
    pub(crate) fn into_body(self) -> &'a mut T {
        &mut self.entry.body
    }

    /// A transport or copy engine has it now.
    #[inline(always)]
    pub(crate) fn fly(&mut self) {
        if self.entry.state == SlotState::Staged {
            self.entry.state = SlotState::InFlight;
        }
    }

    /// The owner provably let go. The generation moves on, so that a late completion finds nothing.
    ///
    /// Gives the body of the use that ended, for a last look.
    #[inline(always)]
    pub(crate) fn free(self) -> &'a mut T {
        let index = self.entry.token.index();
        self.entry.state = SlotState::Free;
        self.entry.token = NOBODY;
        self.entry.generation = self.entry.generation.wrapping_add(1);
        self.entry.next_free = self.free.first;
        self.free.first = index;
        self.free.count += 1;
        &mut self.entry.body
    }
}

impl<T> SlotTable<T> {
    /// `capacity` free slots with bodies from `body`.
    pub(crate) fn new(capacity: u32, body: impl Fn() -> T) -> Self {
        let entry = |index: u32| {
            let next_free = if index + 1 < capacity { index + 1 } else { NONE };
            Entry { token: NOBODY, generation: 1, next_free, state: SlotState::Free, body: body() }
        };
        let free = FreeList { first: if capacity > 0 { 0 } else { NONE }, count: capacity };
        Self { entries: (0..capacity).map(entry).collect(), free }
    }

    /// Takes a free slot, staged, or `None` when there is none. The body is that of its last use, to be overwritten.
    #[inline(always)]
    pub(crate) fn stage(&mut self) -> Option<Live<'_, T>> {
        let index = self.free.first;
        // `NONE` is no index.
        let entry = self.entries.get_mut(index as usize)?;
        debug_assert_eq!(entry.state, SlotState::Free);
        self.free.first = entry.next_free;
        self.free.count -= 1;
        entry.state = SlotState::Staged;
        entry.token = Token::new(index, entry.generation);
        Some(Live { entry, free: &mut self.free })
    }

    /// The slot of a live token.
    #[inline(always)]
    pub(crate) fn live(&mut self, token: Token) -> Option<Live<'_, T>> {
        let entry = self.entries.get_mut(token.index() as usize).filter(|entry| entry.is(token))?;
        Some(Live { entry, free: &mut self.free })
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
        Some(self.live(token)?.into_body())
    }

    /// A new generation for a slot that is handed over again, staged: an end of the earlier hand-over finds nothing.
    pub(crate) fn renew(&mut self, token: Token) -> Option<Token> {
        let entry = self.live(token)?.entry;
        entry.generation = entry.generation.wrapping_add(1);
        entry.state = SlotState::Staged;
        entry.token = Token::new(token.index(), entry.generation);
        Some(entry.token)
    }

    /// [`Live::fly`], for a token.
    pub(crate) fn fly(&mut self, token: Token) {
        self.live(token).into_iter().for_each(|mut slot| slot.fly());
    }

    /// The caller has its answer; the memory stays.
    pub(crate) fn abandon(&mut self, token: Token) {
        if let Some(Live { entry, .. }) = self.live(token)
            && matches!(entry.state, SlotState::InFlight | SlotState::Staged)
        {
            entry.state = SlotState::Abandoned;
        }
    }

    /// The owner could not be stopped; the slot is never used again.
    pub(crate) fn quarantine(&mut self, token: Token) {
        if let Some(Live { entry, .. }) = self.live(token) {
            entry.state = SlotState::Quarantined;
        }
    }

    /// [`Live::free`], for a token.
    #[inline]
    pub(crate) fn free(&mut self, token: Token) -> Option<&mut T> {
        Some(self.live(token)?.free())
    }

    /// Slots in all.
    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Free slots left.
    #[inline]
    pub(crate) fn free_count(&self) -> usize {
        self.free.count as usize
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
        let mut slot = table.stage().unwrap();
        *slot.body() = body;
        slot.token()
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
    fn every_slot_is_taken_once_and_the_one_freed_last_is_taken_first() {
        let mut table = SlotTable::new(3, || 0u8);
        let tokens = [1, 2, 3].map(|body| stage(&mut table, body));
        assert_eq!((tokens.map(Token::index), table.free_count()), ([0, 1, 2], 0));
        assert!(table.stage().is_none());
        table.free(tokens[0]);
        table.free(tokens[2]);
        table.free(tokens[2]);
        assert_eq!(table.free_count(), 2);
        assert_eq!([stage(&mut table, 4).index(), stage(&mut table, 5).index()], [2, 0]);
        assert!(table.stage().is_none());
        assert!(SlotTable::new(0, || ()).stage().is_none());
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
