//! What a cache tells of itself.

use std::{
    path::{Path, PathBuf},
    sync::{PoisonError, atomic::Ordering},
};

use sw_engine::{Error, ErrorKind, Verb, Version};

use crate::{
    cache::{self, Cache, Inner, State},
    config::CacheConfig,
    home::Home,
    index::Tally,
    key::{Named, ObjectKey},
    rules::Selection,
    shared::{
        guest,
        wire::{Reply, Request},
    },
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
    /// Connections of other processes that read through it, two for each.
    pub guests: u64,
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
    /// When some of it was read, or came, last: seconds since 1970.
    pub used_s: u64,
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
pub(crate) fn is_named(name: &str, what: &str) -> bool {
    name == what || what.is_empty() || (what.ends_with('/') && name.starts_with(what))
}

impl Status {
    pub(crate) fn of(config: &CacheConfig, state: &State, discarded: Option<String>, guests: u64) -> Self {
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
            guests,
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
        used_s: known.used_s,
    });
    let mut objects: Vec<_> = told.collect();
    objects.sort_by(|a, b| (&a.name, a.version.stamp).cmp(&(&b.name, b.version.stamp)));
    objects
}

impl Inner {
    pub(crate) fn status(&self) -> Status {
        if !self.is_owner() {
            return match self.ask_owner(&Request::Status) {
                Some(Reply::Status(status)) => *status,
                _ => self.status_away(),
            };
        }
        let discarded = self.discarded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Status::of(&self.config, &self.state(), discarded, self.guests.load(Ordering::Acquire).into())
    }

    pub(crate) fn objects(&self) -> Vec<KeptObject> {
        if !self.is_owner() {
            return guest::objects(|request| self.ask_owner(request)).unwrap_or_default();
        }
        objects_of(&self.state())
    }

    /// A guest's own blocks that are on their way go first.
    pub(crate) fn evict(&self, selection: &Selection) -> Evicted {
        let which = |_: &ObjectKey, named: &Named| is_named(&named.name, &selection.name);
        if self.is_owner() && !selection.is_by_name() {
            let selected = self.selected(selection);
            return self.forget(|key, _| selected.contains(key));
        }
        if self.is_owner() {
            return self.forget(which);
        }
        let _changing = self.changing();
        if selection.is_by_name() {
            self.drop_fills(&which);
        }
        match self.ask_owner(&Request::Evict { selection: selection.clone() }) {
            Some(Reply::Evicted(evicted)) => evicted,
            _ => Evicted::default(),
        }
    }

    pub(crate) fn pin_names(&self, what: &str, pinning: Pinning) -> u64 {
        if !self.is_owner() {
            return match self.ask_owner(&Request::PinNames { what: what.to_owned(), pinning }) {
                Some(Reply::Count(count)) => count,
                _ => 0,
            };
        }
        let changing = self.changing();
        let marked;
        let change = {
            let mut state = self.state();
            let named = state.objects.iter().filter(|(_, known)| is_named(&known.named.name, what));
            let keys: Vec<_> = named.map(|(key, _)| *key).collect();
            marked = keys.len() as u64;
            state.change_pins(&keys, pinning)
        };
        self.commit(&changing, change);
        marked
    }
}

impl Cache {
    /// How the cache of a directory stands, and the objects that it has some of, by name. Nothing is made, written or removed.
    ///
    /// *Blocking*: asks the process that has it, else reads the index. Whoever opens the cache meanwhile waits.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InUse` while somebody has it who does not answer; `Io` if its index cannot be read; what the system
    /// reports.
    pub fn look(dir: &Path) -> Result<(Status, Vec<KeptObject>), Error> {
        let home = Home::of(dir)?;
        match cache::look(&home, dir) {
            Err(error) if error.kind() == ErrorKind::InUse => guest::look(&home).ok_or(error),
            looked => {
                let (config, loaded, slots) = looked?;
                let state = State::of(loaded, slots);
                Ok((Status::of(&config, &state, None, 0), objects_of(&state)))
            }
        }
    }

    /// How it stands. A guest asks the owner; if that does not answer, `fault` says so and sums are zero.
    pub fn status(&self) -> Status {
        self.inner().status()
    }

    /// The objects that it has some of, by name; none for a guest whose owner does not answer.
    pub fn objects(&self) -> Vec<KeptObject> {
        self.inner().objects()
    }

    /// Whether this process has the directory, rather than another one that it asks.
    pub fn is_owner(&self) -> bool {
        self.inner().is_owner()
    }

    /// Whether somebody answers who has the directory: what is asked of others than that is not done.
    ///
    /// # Errors
    /// `InUse`: another process has it, and does not answer.
    pub fn check_owner(&self) -> Result<(), Error> {
        if self.is_owner() || self.inner().ask_owner(&Request::Status).is_some() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InUse, Verb::Setup)
            .at(self.inner().config.dir.display().to_string())
            .detail("the process that has this cache does not answer")
            .remedy("see whether it stands still; its number is in the file `lock` of the directory"))
    }

    /// Lets go of all blocks of the objects with a name, or below it if it ends with a slash; of all of them for an empty one.
    pub fn evict(&self, what: &str) -> Evicted {
        self.inner().evict(&Selection::named(what))
    }

    /// The same of a selection. One by age or size leaves out pinned objects.
    pub fn evict_selected(&self, selection: &Selection) -> Evicted {
        self.inner().evict(selection)
    }

    /// Says whether blocks of objects go for others. Objects that the cache has nothing of are left out; says how many it marked.
    pub fn set_pinning(&self, what: &str, pinning: Pinning) -> u64 {
        self.inner().pin_names(what, pinning)
    }
}
