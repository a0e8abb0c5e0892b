//! What goes by rules rather than for others: objects that nobody used for long, those that are large.
//!
//! ```text
//!   used ─► Ages: objects by their last use ─► sweep, now and then: the oldest ones go, so many blocks at a time
//!             └─ moved ─► flush: last uses into the index, so many objects at a time
//! ```
//!
//! A last use is a second of the wall clock. The index has it as it was at the last flush: after a crash an object counts as unused for as
//! long as that is ago, and may go so much earlier. It is a cache: what goes is read again from where it is.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    cache::{Cache, Inner, State},
    config::CacheConfig,
    index::{Change, Known},
    key::{BlockKey, ObjectKey},
    status::Evicted,
};

/// Objects that one step looks at, at most.
const LOOKED_MAX: usize = 1024;
/// Places of blocks that one step looks at, at most.
const BLOCKS_MAX: u32 = 4096;
/// Last uses that one step writes, at most.
const FLUSHED_MAX: usize = 1024;
/// The same at the end of a cache.
pub(crate) const FLUSHED_AT_END: usize = 1 << 16;
/// Between two looks for what is old, at most; where there is no rule, between two flushes.
const LOOK_MAX: Duration = Duration::from_secs(60);
const LOOK_MIN: Duration = Duration::from_millis(250);
/// Between two steps of one look.
const STEP: Duration = Duration::from_millis(50);

/// The wall clock: seconds since 1970.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now()).finish()
    }
}

impl WallClock {
    /// That which `tell` tells.
    pub fn new(tell: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The system's.
    #[expect(clippy::disallowed_methods, reason = "ages outlive the process: they are told by the wall clock")]
    pub fn system() -> Self {
        Self::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    pub(crate) fn now(&self) -> u64 {
        (self.0)()
    }
}

/// Which objects are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// With a name, or below it if it ends with a slash; all of them for an empty one.
    pub name: String,
    /// Only those of which nothing was read, and nothing came, for so long: in whole seconds.
    pub older_than: Option<Duration>,
    /// Only those with more bytes, whatever of them is kept.
    pub larger_than: Option<u64>,
}

impl Selection {
    /// All with a name, or below it.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Whether nothing but the name counts: then pinned objects are meant too, and what is on its way.
    pub(crate) fn is_by_name(&self) -> bool {
        self.older_than.is_none() && self.larger_than.is_none()
    }

    fn has(&self, known: &Known, now_s: u64) -> bool {
        let is_old = self.older_than.is_none_or(|age| is_older(known, age, now_s));
        let is_large = self.larger_than.is_none_or(|bytes| known.named.len > bytes);
        !known.pinned && is_old && is_large && crate::status::is_named(&known.named.name, &self.name)
    }
}

/// A clock that was set back makes nothing old.
fn is_older(known: &Known, age: Duration, now_s: u64) -> bool {
    now_s.saturating_sub(known.used_s) >= age.as_secs().max(1)
}

/// Objects by their last use.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    order: BTreeSet<(u64, ObjectKey)>,
    /// Whose last use the index does not know.
    moved: HashSet<ObjectKey>,
    /// Where the look goes on that was not at its end; `None`: at the oldest.
    at: Option<(u64, ObjectKey)>,
    /// The object of which a part went, and the block that is next.
    partly: Option<(ObjectKey, u32)>,
    /// Names that are in the queues in vain.
    in_queues: usize,
}

impl Ages {
    pub(crate) fn of<'a>(objects: impl Iterator<Item = (&'a ObjectKey, &'a Known)>) -> Self {
        Self { order: objects.map(|(key, known)| (known.used_s, *key)).collect(), ..Self::default() }
    }

    /// An object that is new.
    pub(crate) fn come(&mut self, key: ObjectKey, used_s: u64) {
        self.order.insert((used_s, key));
    }

    pub(crate) fn gone(&mut self, key: &ObjectKey, used_s: u64) {
        self.order.remove(&(used_s, *key));
        self.moved.remove(key);
    }

    /// Old ones that come next, as far as one step looks.
    fn next(&self, limit_s: u64) -> impl Iterator<Item = (u64, ObjectKey)> {
        let from = self.at.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.order.range((from, Bound::Unbounded));
        range.take_while(move |(used_s, _)| *used_s <= limit_s).copied().take(LOOKED_MAX)
    }
}

/// Whether there is more to do of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    More,
    Done,
}

impl State {
    /// An object is read, or some of it came.
    pub(crate) fn use_object(&mut self, key: &ObjectKey, now_s: u64) {
        let Some(known) = self.objects.get_mut(key).filter(|known| known.used_s != now_s) else { return };
        self.ages.order.remove(&(known.used_s, *key));
        known.used_s = now_s;
        self.ages.order.insert((now_s, *key));
        self.ages.moved.insert(*key);
    }

    /// Last uses that the index does not know.
    pub(crate) fn take_moved(&mut self, most: usize) -> Vec<(ObjectKey, Known)> {
        let keys: Vec<ObjectKey> = self.ages.moved.iter().take(most).copied().collect();
        for key in &keys {
            self.ages.moved.remove(key);
        }
        keys.into_iter().filter_map(|key| Some((key, self.objects.get(&key)?.clone()))).collect()
    }

    /// Takes objects out of which nothing was used for long, as many as one step does.
    fn sweep(&mut self, (age, above): (Duration, u64), block_bytes: u64, now_s: u64) -> (Evicted, Step) {
        let rule = Selection { older_than: Some(age), larger_than: above.checked_sub(1), ..Selection::default() };
        let (mut evicted, mut left) = (Evicted::default(), BLOCKS_MAX);
        let limit_s = now_s.saturating_sub(age.as_secs().max(1));
        let found: Vec<_> = self.ages.next(limit_s).collect();
        let is_end = found.len() < LOOKED_MAX;
        for at in found {
            let (_, key) = at;
            let known = self.objects.get(&key).filter(|known| rule.has(known, now_s));
            if let Some(blocks) = known.map(|known| known.named.len.div_ceil(block_bytes)) {
                let from = self.ages.partly.take_if(|(partly, _)| *partly == key).map_or(0, |(_, next)| next);
                let end = u32::try_from(blocks).unwrap_or(u32::MAX);
                let stop = end.min(from.saturating_add(left));
                left -= stop - from;
                for number in from..stop {
                    if let Some(block) = self.remove(&BlockKey { object: key, number }) {
                        evicted.blocks += 1;
                        evicted.bytes += u64::from(block.word.len);
                    }
                }
                if stop < end && self.objects.contains_key(&key) {
                    self.ages.partly = Some((key, stop));
                    return (self.count(evicted), Step::More);
                }
            }
            self.ages.at = Some(at);
        }
        if is_end {
            self.ages.at = None;
        }
        (self.count(evicted), if is_end { Step::Done } else { Step::More })
    }

    /// Counts what went. Its names leave the queues once they are an eighth of them: that is a walk through all.
    fn count(&mut self, evicted: Evicted) -> Evicted {
        self.sums.evicted += evicted.blocks;
        self.ages.in_queues += sw_mem::index(evicted.blocks);
        if self.ages.in_queues > self.blocks.len() / 8 + LOOKED_MAX {
            let Self { blocks, queues, ages, .. } = self;
            queues.retain(|key| blocks.contains_key(key));
            ages.in_queues = 0;
        }
        evicted
    }
}

/// When the next look is.
pub(crate) fn look_after(config: &CacheConfig, step: Step) -> Duration {
    match step {
        Step::More => STEP,
        Step::Done => config.max_age.map_or(LOOK_MAX, |age| (age / 8).clamp(LOOK_MIN, LOOK_MAX)),
    }
}

impl Inner {
    /// One step of what the rules of age want, and of what the index has to hear of last uses.
    pub(crate) fn look_at_ages(&self) -> (Evicted, Step) {
        if !self.is_owner() {
            return (Evicted::default(), Step::Done);
        }
        let changing = self.changing();
        let (change, evicted, step) = {
            let mut state = self.state();
            let CacheConfig { max_age, max_age_above, .. } = self.config;
            let now_s = self.clock.now();
            let (evicted, step) = match max_age {
                Some(age) => state.sweep((age, max_age_above), self.block_bytes(), now_s),
                None => (Evicted::default(), Step::Done),
            };
            let objects = state.take_moved(FLUSHED_MAX);
            let step = if objects.len() < FLUSHED_MAX { step } else { Step::More };
            (Change { objects, ..state.take_gone() }, evicted, step)
        };
        if !change.is_empty() {
            self.commit(&changing, change);
        }
        (evicted, step)
    }

    /// Those that are meant now.
    pub(crate) fn selected(&self, selection: &Selection) -> HashSet<ObjectKey> {
        let (state, now_s) = (self.state(), self.clock.now());
        state.objects.iter().filter(|(_, known)| selection.has(known, now_s)).map(|(key, _)| *key).collect()
    }
}

impl Cache {
    /// What the owner does in the background, now and to its end: objects go that are older than the rule (`cache_max_age`) lets them be,
    /// and the index hears of last uses. Nothing for a guest.
    ///
    /// *Blocking*: waits for the disk.
    pub fn apply_rules(&self) -> Evicted {
        let mut all = Evicted::default();
        loop {
            let (evicted, step) = self.inner().look_at_ages();
            all.blocks += evicted.blocks;
            all.bytes += evicted.bytes;
            if step == Step::Done {
                return all;
            }
        }
    }
}
