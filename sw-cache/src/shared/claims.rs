//! Who brings which block: others wait for it rather than to read it too, for as long as it comes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::key::{BlockKey, ObjectKey};

/// Who brings a block: the owner, or a connection.
pub(crate) type Who = u64;
/// The owner itself.
pub(crate) const OWNER: Who = 0;

/// Longest that others wait for blocks of an object while none comes: a slow server takes seconds for a long range, and whoever reads it
/// gives back what does not come. Only one that stands still is waited for in vain.
const STILL: Duration = Duration::from_secs(5);
/// Blocks that are on their way at most; of more nobody knows.
const CLAIMS_MAX: usize = 1 << 16;

/// The time, for waits that end and for what nobody brings any more.
#[expect(clippy::disallowed_methods, reason = "the cache has threads of its own, and their waits end")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[derive(Debug)]
struct Claimed {
    /// When one was claimed, or came.
    moved: Instant,
    blocks: HashMap<u32, Who>,
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
        let is_still = |claimed: &Claimed| now.saturating_duration_since(claimed.moved) > STILL;
        if let Some(claimed) = self.objects.get(&object) {
            if is_still(claimed) {
                self.drop_object(&object);
            } else if whole.iter().chain(parts).any(|number| claimed.blocks.get(number).is_some_and(|by| *by != who)) {
                return false;
            }
        }
        if whole.is_empty() {
            return true;
        }
        if self.count + whole.len() > CLAIMS_MAX {
            let still: Vec<_> =
                self.objects.iter().filter(|(_, claimed)| is_still(claimed)).map(|(key, _)| *key).collect();
            still.iter().for_each(|key| self.drop_object(key));
        }
        if self.count + whole.len() <= CLAIMS_MAX {
            let new = || Claimed { moved: now, blocks: HashMap::new() };
            let claimed = self.objects.entry(object).or_insert_with(new);
            claimed.moved = now;
            self.count += whole.iter().filter(|number| claimed.blocks.insert(**number, who).is_none()).count();
        }
        true
    }

    fn drop_object(&mut self, object: &ObjectKey) {
        self.count -= self.objects.remove(object).map_or(0, |claimed| claimed.blocks.len());
    }

    /// A block came, or is not kept.
    pub(crate) fn ended(&mut self, key: &BlockKey, now: Instant) {
        let Some(claimed) = self.objects.get_mut(&key.object) else { return };
        claimed.moved = now;
        self.count -= usize::from(claimed.blocks.remove(&key.number).is_some());
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
        let Self { objects, count } = self;
        objects.retain(|_, claimed| {
            let before = claimed.blocks.len();
            claimed.blocks.retain(|_, by| *by != who);
            *count -= before - claimed.blocks.len();
            !claimed.blocks.is_empty()
        });
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
        assert!(claims.take(2, A, (&[1], &[]), after(10_000)), "nothing came for five seconds");
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
}
