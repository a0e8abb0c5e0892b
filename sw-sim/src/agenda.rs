//! Virtual time: events in one heap, ordered by time and then by the order in which they were planned.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Pending events and the clock. Times are nanoseconds since the start of the world.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    now: u64,
    next_sequence: u64,
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, E>,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { now: 0, next_sequence: 0, heap: BinaryHeap::new(), bodies: BTreeMap::new() }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Plans `event` in `delay` nanoseconds.
    pub(crate) fn plan(&mut self, delay: u64, event: E) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.heap.push(Reverse((self.now.saturating_add(delay), sequence)));
        self.bodies.insert(sequence, event);
    }

    /// Takes the next event that is due at or before `until`, and moves the clock to it.
    pub(crate) fn take_until(&mut self, until: u64) -> Option<E> {
        let Reverse((at, sequence)) = *self.heap.peek()?;
        if at > until {
            return None;
        }
        self.heap.pop();
        self.now = self.now.max(at);
        self.bodies.remove(&sequence)
    }

    /// Moves the clock to `until`; never back.
    pub(crate) fn pass(&mut self, until: u64) {
        self.now = self.now.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_plan() {
        let mut agenda = Agenda::new();
        agenda.plan(20, "c");
        agenda.plan(10, "a");
        agenda.plan(10, "b");
        assert_eq!(agenda.take_until(5), None);
        assert_eq!(agenda.now(), 0);
        let taken: Vec<_> = core::iter::from_fn(|| agenda.take_until(15)).collect();
        assert_eq!((taken, agenda.now()), (vec!["a", "b"], 10));
        agenda.pass(15);
        assert_eq!((agenda.take_until(u64::MAX), agenda.now()), (Some("c"), 20));
        agenda.pass(1);
        assert_eq!(agenda.now(), 20);
    }
}
