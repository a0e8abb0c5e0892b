//! What a cache tells of itself.

use std::path::{Path, PathBuf};

use sw_engine::{Error, Version};

use crate::{
    cache::{self, Cache, CacheConfig, State},
    index::Tally,
};

/// Sums over the life of a directory; blocks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) hit_bytes: u64,
    pub(crate) missed_bytes: u64,
    pub(crate) filled: u64,
    pub(crate) evicted: u64,
    pub(crate) damaged: u64,
    pub(crate) left: u64,
    pub(crate) fetched: u64,
}

impl Sums {
    pub(crate) fn tally(&self) -> Tally {
        let Self { hit_bytes, missed_bytes, filled, evicted, damaged, left, fetched } = *self;
        [hit_bytes, missed_bytes, filled, evicted, damaged, left, fetched]
    }

    pub(crate) fn of(tally: Tally) -> Self {
        let [hit_bytes, missed_bytes, filled, evicted, damaged, left, fetched] = tally;
        Self { hit_bytes, missed_bytes, filled, evicted, damaged, left, fetched }
    }
}

/// The state of a cache. Sums count from when its directory was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it is.
    pub dir: PathBuf,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Bytes that it may have.
    pub capacity_bytes: u64,
    /// Bytes of objects that it has.
    pub kept_bytes: u64,
    /// Blocks that it has.
    pub blocks: u64,
    /// Objects, in one version each, of which it has some.
    pub objects: u64,
    /// Bytes that were read from it.
    pub hit_bytes: u64,
    /// Bytes that were read from where the objects are.
    pub missed_bytes: u64,
    /// Blocks that came.
    pub filled_blocks: u64,
    /// Blocks that went for others, or as they were told to.
    pub evicted_blocks: u64,
    /// Blocks and words of the index whose checksums did not hold: they were had again from where the objects are.
    pub damaged_blocks: u64,
    /// Blocks that were not kept, as there was no memory for them or the disk was slower.
    pub left_blocks: u64,
    /// Blocks that were read beside what was asked for, as parts of them were asked for twice.
    pub fetched_blocks: u64,
    /// Why nothing more is kept, if that is so.
    pub fault: Option<String>,
    /// Why the cache began anew when it was opened, if it did.
    pub discarded: Option<String>,
}

/// An object of which a cache has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptObject {
    /// Its address.
    pub name: String,
    /// The version.
    pub version: Version,
    /// Bytes of the object.
    pub len: u64,
    /// Bytes of it that are kept.
    pub kept_bytes: u64,
    /// Its blocks do not go for others.
    pub pinned: bool,
}

/// Whether blocks of an object go for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// They do.
    Free,
    /// They do not.
    Pinned,
}

/// What was evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Blocks.
    pub blocks: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Whether a name is `what`, or lies below it if it ends with a slash. Everything lies below the empty one.
fn is_named(name: &str, what: &str) -> bool {
    name == what || what.is_empty() || (what.ends_with('/') && name.starts_with(what))
}

impl Status {
    fn of(config: &CacheConfig, state: &State, discarded: Option<String>) -> Self {
        let Sums { hit_bytes, missed_bytes, filled, evicted, damaged, left, fetched } = state.sums;
        Self {
            dir: config.dir.clone(),
            block_bytes: config.block_bytes,
            capacity_bytes: u64::from(state.slots.count()) * u64::from(config.block_bytes),
            kept_bytes: state.kept_bytes,
            blocks: state.blocks.len() as u64,
            objects: state.objects.len() as u64,
            hit_bytes,
            missed_bytes,
            filled_blocks: filled,
            evicted_blocks: evicted,
            damaged_blocks: damaged,
            left_blocks: left,
            fetched_blocks: fetched,
            fault: state.fault.clone(),
            discarded,
        }
    }
}

fn objects_of(state: &State) -> Vec<KeptObject> {
    let mut kept: std::collections::HashMap<_, u64> = std::collections::HashMap::new();
    for (key, block) in &state.blocks {
        *kept.entry(key.object).or_default() += u64::from(block.word.len);
    }
    let told = state.objects.iter().map(|(key, known)| KeptObject {
        name: known.named.name.clone(),
        version: known.named.version,
        len: known.named.len,
        kept_bytes: kept.get(key).copied().unwrap_or(0),
        pinned: known.pinned,
    });
    let mut objects: Vec<_> = told.collect();
    objects.sort_by(|a, b| (&a.name, a.version.stamp).cmp(&(&b.name, b.version.stamp)));
    objects
}

impl Cache {
    /// How the cache of a directory stands, and the objects that it has some of, by name. Nothing is made, written or removed.
    ///
    /// *Blocking*: reads the index. Whoever opens the cache meanwhile is told `InUse`.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InUse` while somebody has it; `Io` if its index cannot be read; what the system reports.
    pub fn look(dir: &Path) -> Result<(Status, Vec<KeptObject>), Error> {
        let (config, loaded, slots) = cache::look(dir)?;
        let state = State::of(loaded, slots);
        Ok((Status::of(&config, &state, None), objects_of(&state)))
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let inner = self.inner();
        Status::of(&inner.config, &inner.state(), inner.discarded.clone())
    }

    /// The objects that it has some of, by name.
    pub fn objects(&self) -> Vec<KeptObject> {
        objects_of(&self.inner().state())
    }

    /// Lets go of all blocks of the objects with a name, or below it if it ends with a slash; of all of them for an empty one.
    pub fn evict(&self, what: &str) -> Evicted {
        self.inner().forget(|_, named| is_named(&named.name, what))
    }

    /// Says whether blocks of objects go for others. Objects that the cache has nothing of are left out; says how many it marked.
    pub fn set_pinning(&self, what: &str, pinning: Pinning) -> u64 {
        let changing = self.inner().changing();
        let marked;
        let change = {
            let mut state = self.inner().state();
            let named = state.objects.iter().filter(|(_, known)| is_named(&known.named.name, what));
            let keys: Vec<_> = named.map(|(key, _)| *key).collect();
            marked = keys.len() as u64;
            state.change_pins(&keys, pinning)
        };
        self.inner().commit(&changing, change);
        marked
    }
}
