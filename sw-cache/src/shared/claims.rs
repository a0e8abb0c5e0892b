//! Who brings which block: others wait for it rather than to read it too, for as long as it comes.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::key::{BlockKey, ObjectKey};

/// Who brings a block: the owner, or a connection.
pub(crate) type Who = u64;
/// The owner itself.
pub(crate) const OWNER: Who = 0;

/// Longest that others wait for blocks of an object while none comes of whoever brings them: a slow server takes seconds for a long range,
/// and whoever reads it gives back what does not come. Only one that stands still is waited for in vain.
const STILL: Duration = Duration::from_secs(5);
/// Longest that one operation waits for others: whoever brings its blocks may bring others of the object for ever.
const OPERATION_WAIT: Duration = Duration::from_secs(30);
/// Between questions of an operation that waits: the first ones, and the later ones.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// An operation that has not asked for so long is over.
const ASKED_LAST: Duration = Duration::from_secs(1);
/// Operations of an object that are known to wait at most.
const WAITING_MAX: usize = 1024;
/// Blocks that are on their way at most; of more nobody knows.
const CLAIMS_MAX: usize = 1 << 16;

/// The time, for waits that end and for what nobody brings any more.
#[expect(clippy::disallowed_methods, reason = "the cache has threads of its own, and their waits end")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[derive(Debug, Default)]
struct Claimed {
    /// When whoever brings some claimed one, or one of his came.
    moved: HashMap<Who, Instant>,
    blocks: HashMap<u32, Who>,
}

impl Claimed {
    fn is_still(&self, who: Who, now: Instant) -> bool {
        self.moved.get(&who).is_none_or(|moved| now.saturating_duration_since(*moved) > STILL)
    }

    /// Nobody waits for his blocks any more. How many there were.
    fn drop_who(&mut self, who: Who) -> usize {
        let before = self.blocks.len();
        self.blocks.retain(|_, by| *by != who);
        self.moved.remove(&who);
        before - self.blocks.len()
    }

    /// The same of all that stand still.
    fn drop_still(&mut self, now: Instant) -> usize {
        let still: Vec<Who> = self.moved.keys().copied().filter(|who| self.is_still(*who, now)).collect();
        still.into_iter().map(|who| self.drop_who(who)).sum()
    }
}

/// Blocks that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    objects: HashMap<ObjectKey, Claimed>,
    count: usize,
}

impl Claims {
    /// Says that `who` brings blocks `whole`, unless another one brings one of them or of `parts`: then nothing changes. Whether it does.
    pub(crate) fn take(&mut self, who: Who, object: ObjectKey, (whole, parts): (&[u32], &[u32]), now: Instant) -> bool {
        if let Some(claimed) = self.objects.get_mut(&object) {
            let others = whole.iter().chain(parts).filter_map(|number| claimed.blocks.get(number).copied());
            let others: HashSet<Who> = others.filter(|by| *by != who).collect();
            if others.iter().any(|by| !claimed.is_still(*by, now)) {
                return false;
            }
            self.count -= others.into_iter().map(|by| claimed.drop_who(by)).sum::<usize>();
        }
        if whole.is_empty() {
            return true;
        }
        if self.count + whole.len() > CLAIMS_MAX {
            self.drop_each(|claimed| claimed.drop_still(now));
        }
        if self.count + whole.len() <= CLAIMS_MAX {
            let claimed = self.objects.entry(object).or_default();
            claimed.moved.insert(who, now);
            self.count += whole.iter().filter(|number| claimed.blocks.insert(**number, who).is_none()).count();
        }
        true
    }

    /// Drops some of each object, by the number of blocks that go.
    fn drop_each(&mut self, mut some: impl FnMut(&mut Claimed) -> usize) {
        let Self { objects, count } = self;
        objects.retain(|_, claimed| {
            *count -= some(claimed);
            !claimed.blocks.is_empty()
        });
    }

    /// A block came, or is not kept.
    pub(crate) fn ended(&mut self, key: &BlockKey, now: Instant) {
        let Some(claimed) = self.objects.get_mut(&key.object) else { return };
        if let Some(who) = claimed.blocks.remove(&key.number) {
            claimed.moved.insert(who, now);
            self.count -= 1;
        }
        if claimed.blocks.is_empty() {
            self.objects.remove(&key.object);
        }
    }

    /// `who` does not bring them.
    pub(crate) fn give_back(&mut self, who: Who, keys: impl IntoIterator<Item = BlockKey>) {
        for key in keys {
            if let Some(claimed) = self.objects.get_mut(&key.object)
                && claimed.blocks.get(&key.number) == Some(&who)
            {
                claimed.blocks.remove(&key.number);
                self.count -= 1;
                if claimed.blocks.is_empty() {
                    self.objects.remove(&key.object);
                }
            }
        }
    }

    /// `who` is gone.
    pub(crate) fn leave(&mut self, who: Who) {
        self.drop_each(|claimed| claimed.drop_who(who));
    }
}

/// Operations on one object that wait for others, by their first byte and their length.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// Since when, and when they asked last.
    since: HashMap<(u64, u64), (Instant, Instant)>,
}

impl Waits {
    /// One has to wait. When it is to ask again; `None` if it waited long enough.
    pub(crate) fn wait(&mut self, operation: (u64, u64), now: Instant) -> Option<Duration> {
        let is_over = |last: Instant| now.saturating_duration_since(last) > ASKED_LAST;
        if self.since.len() >= WAITING_MAX && !self.since.contains_key(&operation) {
            self.since.retain(|_, (_, last)| !is_over(*last));
            if self.since.len() >= WAITING_MAX {
                return None;
            }
        }
        let (since, last) = self.since.entry(operation).or_insert((now, now));
        if is_over(*last) {
            *since = now;
        }
        *last = now;
        let waited = now.saturating_duration_since(*since);
        if waited > OPERATION_WAIT {
            self.since.remove(&operation);
            return None;
        }
        Some((waited / 8).clamp(ASK_AGAIN.0, ASK_AGAIN.1))
    }

    /// One does not wait.
    pub(crate) fn ended(&mut self, operation: (u64, u64)) {
        if !self.since.is_empty() {
            self.since.remove(&operation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ObjectKey = [1; 16];

    #[test]
    fn others_wait_for_what_somebody_brings_as_long_as_it_comes() {
        let (mut claims, start) = (Claims::default(), now());
        let after = |millis| start + Duration::from_millis(millis);
        let key = |number| BlockKey { object: A, number };
        assert!(claims.take(1, A, (&[0, 1, 2], &[]), start));
        assert!(claims.take(1, A, (&[2, 3], &[]), start), "one's own");
        assert!(!claims.take(2, A, (&[9, 1], &[]), start) && !claims.take(2, A, (&[], &[1]), start));
        assert!(claims.take(2, A, (&[9], &[8]), start), "nothing of the first try was claimed");
        claims.ended(&key(0), after(4000));
        assert!(claims.take(2, A, (&[], &[0]), after(4000)) && !claims.take(2, A, (&[], &[1]), after(8000)));
        // What others bring of the object is not what is waited for.
        assert!(claims.take(3, A, (&[20, 21], &[]), after(9000)));
        claims.ended(&key(20), after(9500));
        assert!(claims.take(2, A, (&[1], &[]), after(10_000)), "nothing came for five seconds");
        assert!(!claims.take(2, A, (&[21], &[]), after(10_000)), "the other one goes on");
        claims.leave(3);
        claims.give_back(1, [key(1)]);
        assert!(!claims.take(1, A, (&[1], &[]), after(10_000)), "it is another's");
        claims.leave(2);
        assert!(claims.take(1, A, (&[1], &[]), after(10_000)));
        claims.give_back(1, [key(1)]);
        assert_eq!((claims.count, claims.objects.len()), (0, 0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut claims, now) = (Claims::default(), now());
        let many: Vec<u32> = (0..50_000).collect();
        assert!(claims.take(1, A, (&many, &[]), now) && claims.take(1, [2; 16], (&many, &[]), now));
        assert_eq!(claims.count, 50_000);
        let later = now + 2 * STILL;
        assert!(claims.take(1, [2; 16], (&many, &[]), later));
        assert_eq!((claims.count, claims.objects.len()), (50_000, 1));
    }

    #[test]
    fn an_operation_waits_a_bounded_time_whoever_brings_what() {
        let (mut waits, start) = (Waits::default(), now());
        let after = |millis| start + Duration::from_millis(millis);
        let (first, other) = ((0, 9), (4, 9));
        assert_eq!(waits.wait(first, start), Some(Duration::from_millis(2)));
        let asked: Vec<_> = (1..=60).map(|turn| waits.wait(first, after(turn * 500))).collect();
        assert!(asked.iter().all(Option::is_some) && asked[59] == Some(Duration::from_millis(50)));
        assert!(waits.wait(other, after(30_001)).is_some());
        assert_eq!(waits.wait(first, after(30_001)), None);
        // One that was left, and the same one anew.
        assert_eq!(waits.wait(other, after(70_000)), Some(Duration::from_millis(2)));
        waits.ended(other);
        assert!(waits.since.is_empty());
        for operation in 0..2000 {
            assert_eq!(waits.wait((operation, 1), start).is_some(), operation < 1024);
        }
    }
}
