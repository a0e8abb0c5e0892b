//! Memory for rings and lists, with the order of accesses on both sides.
//!
//! A CPU hides a missing barrier most of the time; the model never does. Each word knows in which stretch between two
//! [`Memories::before_doorbell`] calls the CPU stored it last, and which write of the controller it holds. So three things
//! are seen: a doorbell that is rung before the entry is visible, a field of an entry that is read before the barrier that
//! follows its phase, and a load after a store that may pass it.

use std::collections::{BTreeMap, BTreeSet};

use sw_mem::index;

/// Bytes of the unit in which the order is kept.
const WORD: usize = 4;

/// What the CPU did wrong, in words.
pub(crate) type Complaint = Option<String>;

/// Clocks of the one thread that owns the queues.
#[derive(Debug)]
struct Clocks {
    /// Stretch of stores: a store of an earlier one is visible to controllers.
    stretch: u64,
    /// Number of the last write of any controller.
    arrival: u64,
    /// The latest of them that the CPU saw in a word.
    seen: u64,
    /// What the CPU may read: nothing that arrived later.
    acquired: u64,
}

/// One allocation.
#[derive(Debug)]
struct QueueMem {
    /// The controller that it is mapped for.
    owner: usize,
    iova: u64,
    bytes: Vec<u8>,
    /// A word's last store by the CPU: the stretch, 0 for none.
    stored: Vec<u64>,
    /// A word's last write by a controller, 0 for none or if the CPU stored since.
    arrived: Vec<u64>,
    /// Whether the word is what an arrival is polled by: its last word.
    polled: Vec<bool>,
}

/// Shadow doorbells and the event indexes that answer them, each by memory and offset.
#[derive(Debug)]
struct Doorbells {
    shadow: (u64, usize),
    events: (u64, usize),
    len: usize,
    /// Offsets of shadow doorbells that were stored and that no full barrier follows yet.
    unfenced: BTreeSet<usize>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Memories {
    all: BTreeMap<u64, QueueMem>,
    next: u64,
    clocks: Clocks,
    doorbells: Vec<Doorbells>,
}

impl Memories {
    pub(crate) fn new() -> Self {
        let clocks = Clocks { stretch: 1, arrival: 0, seen: 0, acquired: 0 };
        Self { all: BTreeMap::new(), next: 0, clocks, doorbells: Vec::new() }
    }

    /// A name that nothing has.
    pub(crate) fn reserve(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Zeroed memory that controller `owner` sees at `iova`.
    pub(crate) fn allocate(&mut self, name: u64, owner: usize, iova: u64, len: usize) {
        let words = len.div_ceil(WORD);
        let memory = QueueMem {
            owner,
            iova,
            bytes: vec![0; len],
            stored: vec![0; words],
            arrived: vec![0; words],
            polled: vec![false; words],
        };
        self.all.insert(name, memory);
    }

    /// The driver let go of it; gives its address.
    pub(crate) fn free(&mut self, name: u64) -> Option<u64> {
        self.doorbells.retain(|pair| pair.shadow.0 != name && pair.events.0 != name);
        self.all.remove(&name).map(|memory| memory.iova)
    }

    /// A controller was told where shadow doorbells and event indexes are, `len` bytes of each.
    pub(crate) fn watch_doorbells(&mut self, shadow: (u64, u64), events: (u64, u64), len: u64) {
        let place = |(name, at): (u64, u64)| (name, index(at));
        let (shadow, events, len) = (place(shadow), place(events), index(len));
        self.doorbells.push(Doorbells { shadow, events, len, unfenced: BTreeSet::new() });
    }

    /// Allocations that there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The stretch of stores that is on now: what was stored before it is visible.
    pub(crate) fn stretch(&self) -> u64 {
        self.clocks.stretch
    }

    /// The CPU copies bytes out.
    pub(crate) fn cpu_read(&mut self, name: u64, at: usize, to: &mut [u8]) -> Complaint {
        let acquired = self.clocks.acquired;
        let Some(memory) = self.all.get(&name) else { return gone(name) };
        let Some(from) = memory.bytes.get(at..at.saturating_add(to.len())) else { return outside(at, to.len()) };
        to.copy_from_slice(from);
        let early = memory.words(at, to.len()).find(|word| memory.arrived.get(*word).is_some_and(|at| *at > acquired));
        early.map(|word| format!("bytes at {} of a ring are read and no barrier follows their phase", word * WORD))
    }

    /// The CPU copies bytes in.
    pub(crate) fn cpu_write(&mut self, name: u64, at: usize, from: &[u8]) -> Complaint {
        let stretch = self.clocks.stretch;
        let Some(memory) = self.all.get_mut(&name) else { return gone(name) };
        let Some(to) = memory.bytes.get_mut(at..at.saturating_add(from.len())) else { return outside(at, from.len()) };
        to.copy_from_slice(from);
        for word in memory.words(at, from.len()) {
            memory.stored.get_mut(word).into_iter().for_each(|stored| *stored = stretch);
            memory.arrived.get_mut(word).into_iter().for_each(|arrived| *arrived = 0);
        }
        None
    }

    /// One load by the CPU.
    pub(crate) fn cpu_load(&mut self, name: u64, at: usize) -> (u32, Complaint) {
        let passes = self.doorbells.iter().any(|pair| {
            let inside = name == pair.events.0 && (pair.events.1..pair.events.1 + pair.len).contains(&at);
            inside && pair.unfenced.contains(&(at - pair.events.1))
        });
        let Some(memory) = self.all.get(&name) else { return (0, gone(name)) };
        let bytes = memory.bytes.get(at..at + WORD).and_then(|bytes| bytes.try_into().ok());
        let Some(bytes) = bytes.filter(|_| at.is_multiple_of(WORD)) else { return (0, outside(at, WORD)) };
        let word = at / WORD;
        let arrived = memory.arrived.get(word).copied().unwrap_or(0);
        let polled = memory.polled.get(word).copied().unwrap_or(false);
        let new = arrived > self.clocks.acquired;
        self.clocks.seen = self.clocks.seen.max(arrived);
        let complaint = if new && !polled {
            Some(format!("the word at {at} of a ring is read before the phase and its barrier"))
        } else if passes {
            Some(format!("the event index at {at} is loaded and may pass the store of its shadow doorbell"))
        } else {
            None
        };
        (u32::from_le_bytes(bytes), complaint)
    }

    /// One store by the CPU.
    pub(crate) fn cpu_store(&mut self, name: u64, at: usize, value: u32) -> Complaint {
        let complaint = self.cpu_write(name, at, &value.to_le_bytes());
        for pair in &mut self.doorbells {
            if name == pair.shadow.0 && (pair.shadow.1..pair.shadow.1 + pair.len).contains(&at) {
                pair.unfenced.insert(at - pair.shadow.1);
            }
        }
        complaint.or_else(|| (!at.is_multiple_of(WORD)).then(|| format!("a store at {at}, which is no word")))
    }

    /// Earlier stores are visible before a later register write.
    pub(crate) fn before_doorbell(&mut self) {
        self.clocks.stretch += 1;
    }

    /// What arrived up to the last word that was loaded may be read.
    pub(crate) fn after_valid(&mut self) {
        self.clocks.acquired = self.clocks.acquired.max(self.clocks.seen);
    }

    /// Earlier stores are visible before later loads.
    pub(crate) fn store_then_load(&mut self) {
        self.clocks.stretch += 1;
        self.doorbells.iter_mut().for_each(|pair| pair.unfenced.clear());
    }

    /// A controller reads. `rung`: the stretch in which it was told to; what the CPU stored in it or later was not there yet
    /// for certain.
    pub(crate) fn device_read(&self, name: u64, at: u64, len: u64, rung: u64) -> (Vec<u8>, Complaint) {
        let (at, len) = (index(at), index(len));
        let Some(memory) = self.all.get(&name) else { return (vec![0; len], gone(name)) };
        let bytes = memory.bytes.get(at..at.saturating_add(len)).map(<[u8]>::to_vec);
        let late = memory.words(at, len).find(|word| memory.stored.get(*word).is_some_and(|stored| *stored >= rung));
        let late =
            late.map(|word| format!("the word at {} was stored with no barrier before the doorbell", word * WORD));
        (bytes.unwrap_or_else(|| vec![0; len]), late)
    }

    /// A controller writes.
    pub(crate) fn device_write(&mut self, name: u64, at: u64, bytes: &[u8]) {
        self.clocks.arrival += 1;
        let arrival = self.clocks.arrival;
        let at = index(at);
        let Some(memory) = self.all.get_mut(&name) else { return };
        let Some(to) = memory.bytes.get_mut(at..at.saturating_add(bytes.len())) else { return };
        to.copy_from_slice(bytes);
        let words = memory.words(at, bytes.len());
        let last = words.end.saturating_sub(1);
        for word in words {
            memory.arrived.get_mut(word).into_iter().for_each(|arrived| *arrived = arrival);
            memory.polled.get_mut(word).into_iter().for_each(|polled| *polled = word == last && bytes.len() <= 16);
        }
    }

    /// Whether all that the CPU stored for a controller is visible to it.
    pub(crate) fn is_visible(&self, owner: usize) -> bool {
        let mut mine = self.all.values().filter(|memory| memory.owner == owner);
        mine.all(|memory| memory.stored.iter().all(|stored| *stored < self.clocks.stretch))
    }

    /// A word as a controller sees it, and the stretch in which the CPU stored it.
    pub(crate) fn device_word(&self, name: u64, at: u64) -> Option<(u32, u64)> {
        let memory = self.all.get(&name)?;
        let at = index(at);
        let bytes = memory.bytes.get(at..at + WORD)?.try_into().ok()?;
        Some((u32::from_le_bytes(bytes), memory.stored.get(at / WORD).copied().unwrap_or(0)))
    }
}

impl QueueMem {
    fn words(&self, at: usize, len: usize) -> core::ops::Range<usize> {
        at / WORD..at.saturating_add(len).div_ceil(WORD).min(self.stored.len())
    }
}

fn gone(name: u64) -> Complaint {
    Some(format!("memory {name} was freed"))
}

fn outside(at: usize, len: usize) -> Complaint {
    Some(format!("{at}+{len} is not in the memory of the ring"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_memory() -> (Memories, u64) {
        let mut memories = Memories::new();
        let name = memories.reserve();
        memories.allocate(name, 0, 0x1000, 4096);
        (memories, name)
    }

    #[test]
    fn an_entry_is_visible_after_the_barrier_only() {
        let (mut memories, name) = with_memory();
        assert_eq!(memories.cpu_write(name, 64, &[1; 64]), None);
        let rung = memories.stretch();
        let (bytes, complaint) = memories.device_read(name, 64, 64, rung);
        assert!(bytes == [1; 64] && complaint.is_some(), "rung without a barrier");
        memories.before_doorbell();
        let (_, complaint) = memories.device_read(name, 64, 64, rung);
        assert!(complaint.is_some(), "a barrier after the doorbell is too late");
        assert_eq!(memories.device_read(name, 64, 64, memories.stretch()).1, None);
        assert!(memories.is_visible(0));
        assert_eq!(memories.cpu_write(name, 0, &[1]), None);
        assert!(memories.is_visible(1) && !memories.is_visible(0));
    }

    #[test]
    fn a_field_is_read_after_the_phase_and_its_barrier() {
        let (mut memories, name) = with_memory();
        memories.device_write(name, 0, &[7; 16]);
        let mut entry = [0; 16];
        assert!(memories.cpu_load(name, 0).1.is_some(), "a field before the phase");
        assert_eq!(memories.cpu_load(name, 12), (0x0707_0707, None));
        assert!(memories.cpu_read(name, 0, &mut entry).is_some(), "no barrier yet");
        memories.after_valid();
        assert_eq!(memories.cpu_read(name, 0, &mut entry), None);
        memories.device_write(name, 16, &[7; 16]);
        assert!(memories.cpu_read(name, 16, &mut entry).is_some(), "the barrier was for the entry before");
        assert_eq!(memories.cpu_read(name, 0, &mut entry), None);
    }

    #[test]
    fn a_load_may_pass_a_store_without_a_full_barrier() {
        let (mut memories, shadow) = with_memory();
        let events = memories.reserve();
        memories.allocate(events, 0, 0x3000, 4096);
        memories.watch_doorbells((shadow, 0), (events, 0), 4096);
        memories.device_write(events, 8, &5u32.to_le_bytes());
        assert_eq!(memories.cpu_store(shadow, 8, 6), None);
        memories.before_doorbell();
        assert!(memories.cpu_load(events, 8).1.is_some(), "a store barrier orders no load");
        assert_eq!(memories.cpu_load(events, 12).1, None, "another queue's");
        memories.store_then_load();
        assert_eq!(memories.cpu_load(events, 8), (5, None));
    }

    #[test]
    fn accesses_outside_and_after_the_end_are_complaints() {
        let (mut memories, name) = with_memory();
        assert!(memories.cpu_write(name, 4090, &[0; 8]).is_some());
        assert!(memories.cpu_load(name, 2).1.is_some() && memories.cpu_load(name, 4096).1.is_some());
        assert_eq!(memories.free(name), Some(0x1000));
        assert!(memories.cpu_write(name, 0, &[0]).is_some() && memories.count() == 0);
    }
}
