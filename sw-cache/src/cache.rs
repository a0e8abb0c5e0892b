//! The directory, and what is known of its blocks.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt,
    fs::File,
    io,
    num::NonZeroU64,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb, checksum::Algorithm};
use sw_mem::ForkMark;

pub(crate) use crate::home::wrong;
use crate::{
    config::{CacheConfig, Verify},
    fill::{Fills, Ready, Threads},
    home::{self, Home, SIZES, Sizes},
    index::{Change, Index, Known, Loaded, Unread, Word},
    key::{BlockKey, Named, ObjectKey},
    object::Cached,
    policy::{Queues, Standing, Usage, Victim},
    rules::{Ages, FLUSHED_AT_END, WallClock},
    shared::{
        claims::{Claims, now},
        guest::Guest,
        locks::{self, SlotLocks},
        owner::Serving,
    },
    slots::Slots,
    status::{Evicted, Pinning, Sums},
};

/// Longest that a directory which another process is making is waited for.
const MADE_WAIT: Duration = Duration::from_secs(2);
/// Longest that whoever opens a cache waits for the process that has it.
const CONNECT_WAIT: Duration = Duration::from_millis(500);
/// Between looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Slots that are looked at for one that nobody reads.
const LENT_MAX: usize = 64;

/// A block that is kept.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) word: Word,
    usage: Usage,
    pub(crate) is_verified: bool,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) blocks: HashMap<BlockKey, Block>,
    pub(crate) objects: HashMap<ObjectKey, Known>,
    pub(crate) ages: Ages,
    pub(crate) slots: Slots,
    pub(crate) queues: Queues<BlockKey>,
    pub(crate) sums: Sums,
    /// Bytes of objects in the blocks.
    pub(crate) kept_bytes: u64,
    /// Blocks of pinned objects.
    pinned_blocks: u64,
    /// Slots that cannot be read.
    retired: u64,
    /// Objects that somebody warms: their blocks are no pass over everything.
    pub(crate) warmed: HashSet<ObjectKey>,
    /// Blocks that somebody brings.
    pub(crate) claims: Claims,
    /// Blocks that the index has still to forget.
    gone: Vec<BlockKey>,
    /// The same of objects.
    objects_gone: Vec<ObjectKey>,
    /// Why nothing more is kept.
    pub(crate) fault: Option<String>,
}

impl State {
    pub(crate) fn of(loaded: Loaded, slots: u32) -> Self {
        let mut taken = HashSet::new();
        let mut twice = HashSet::new();
        for (_, word) in &loaded.blocks {
            if word.slot >= slots || !taken.insert(word.slot) {
                // Of two blocks in one slot one at most is right, and nobody knows which.
                twice.insert(word.slot);
            }
        }
        let mut state = Self {
            blocks: HashMap::with_capacity(loaded.blocks.len()),
            objects: loaded.objects.into_iter().collect(),
            ages: Ages::default(),
            slots: Slots::new(slots, &taken.difference(&twice).copied().collect()),
            queues: Queues::new(slots as usize),
            sums: Sums::of(loaded.tally),
            kept_bytes: 0,
            pinned_blocks: 0,
            retired: 0,
            warmed: HashSet::new(),
            claims: Claims::default(),
            gone: Vec::new(),
            objects_gone: Vec::new(),
            fault: None,
        };
        state.sums.damaged += loaded.damaged;
        for (key, word) in loaded.blocks {
            if twice.contains(&word.slot) || !state.objects.contains_key(&key.object) {
                state.gone.push(key);
                if !twice.contains(&word.slot) {
                    state.slots.put(word.slot);
                }
                continue;
            }
            let usage = state.queues.restore(key);
            state.insert(key, Block { word, usage, is_verified: false });
        }
        let State { objects, objects_gone, .. } = &mut state;
        objects.retain(|key, known| {
            let is_left = known.blocks > 0 || known.pinned;
            if !is_left {
                objects_gone.push(*key);
            }
            is_left
        });
        state.ages = Ages::of(state.objects.iter());
        state
    }

    /// An object of which nothing is kept any more.
    pub(crate) fn drop_object(&mut self, key: &ObjectKey) -> Option<Known> {
        let known = self.objects.remove(key)?;
        self.ages.gone(key, known.used_s);
        self.objects_gone.push(*key);
        Some(known)
    }

    /// Puts a block of a known object in.
    fn insert(&mut self, key: BlockKey, block: Block) {
        self.kept_bytes += u64::from(block.word.len);
        if let Some(known) = self.objects.get_mut(&key.object) {
            known.blocks += 1;
            self.pinned_blocks += u64::from(known.pinned);
        }
        self.blocks.insert(key, block);
    }

    /// Says whether blocks of an object go for others. Whether that is new; one of which there is nothing goes when it is free.
    fn pin(&mut self, key: &ObjectKey, pinning: Pinning) -> bool {
        let pinned = pinning == Pinning::Pinned;
        let Some(known) = self.objects.get_mut(key).filter(|known| known.pinned != pinned) else { return false };
        known.pinned = pinned;
        if pinned {
            self.pinned_blocks += known.blocks;
            return true;
        }
        self.pinned_blocks -= known.blocks;
        if known.blocks == 0 {
            self.drop_object(key);
        }
        true
    }

    /// The same of several, and what the index hears of it.
    pub(crate) fn change_pins(&mut self, keys: &[ObjectKey], pinning: Pinning) -> Change {
        let changed: Vec<_> = keys.iter().filter(|key| self.pin(key, pinning)).collect();
        let left = changed.into_iter().filter_map(|key| Some((*key, self.objects.get(key)?.clone())));
        let objects = left.collect();
        Change { objects, ..self.take_gone() }
    }

    /// Enters an object of which there may be nothing yet.
    pub(crate) fn enter(&mut self, key: ObjectKey, named: &Named, now_s: u64) {
        if let Entry::Vacant(new) = self.objects.entry(key) {
            new.insert(Known::new(named, now_s));
            self.ages.come(key, now_s);
        }
        self.objects_gone.retain(|gone| *gone != key);
    }

    /// What the index has still to hear.
    pub(crate) fn take_gone(&mut self) -> Change {
        let (gone, objects_gone) = (std::mem::take(&mut self.gone), std::mem::take(&mut self.objects_gone));
        Change { gone, objects_gone, tally: self.sums.tally(), ..Change::default() }
    }

    /// It did not.
    fn put_gone_back(&mut self, change: Change) {
        self.gone.extend(change.gone);
        let objects = &self.objects;
        self.objects_gone.extend(change.objects_gone.into_iter().filter(|key| !objects.contains_key(key)));
    }

    /// A block that is kept, for one more use.
    pub(crate) fn used(&mut self, key: &BlockKey) {
        if let Some(block) = self.blocks.get_mut(key) {
            self.queues.used(&mut block.usage);
        }
    }

    /// Takes a block out, and its object with the last one; the index hears of it with the next change.
    pub(crate) fn remove(&mut self, key: &BlockKey) -> Option<Block> {
        let block = self.take_out(key)?;
        self.slots.put(block.word.slot);
        Some(block)
    }

    /// As [`State::remove`], but its slot stays taken.
    fn take_out(&mut self, key: &BlockKey) -> Option<Block> {
        let block = self.blocks.remove(key)?;
        self.kept_bytes -= u64::from(block.word.len);
        if let Some(known) = self.objects.get_mut(&key.object) {
            known.blocks -= 1;
            self.pinned_blocks -= u64::from(known.pinned);
            if known.blocks == 0 && !known.pinned {
                self.drop_object(&key.object);
            }
        }
        self.gone.push(*key);
        Some(block)
    }

    /// A slot for another block: a free one, else that of the block that goes next. `None` if all must stay.
    fn take_slot(&mut self, is_lent: &impl Fn(u32) -> bool) -> Option<u32> {
        let mut lent = Vec::new();
        let found = loop {
            match self.take_any_slot(is_lent) {
                Some(slot) if is_lent(slot) && lent.len() < LENT_MAX => lent.push(slot),
                Some(slot) if is_lent(slot) => {
                    lent.push(slot);
                    break None;
                }
                found => break found,
            }
        };
        lent.into_iter().for_each(|slot| self.slots.put(slot));
        found
    }

    /// The same, which another process may still read.
    fn take_any_slot(&mut self, is_lent: &impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(slot) = self.slots.take() {
            return Some(slot);
        }
        // Some may be counted twice: then one that could go is looked for in vain, a bounded time.
        if self.pinned_blocks + self.retired >= u64::from(self.slots.count()) {
            return None;
        }
        let Self { blocks, objects, slots, queues, .. } = self;
        let victim = queues.victim(|key| {
            let block = blocks.get_mut(key)?;
            let is_pinned = objects.get(&key.object).is_some_and(|known| known.pinned);
            let is_held = is_pinned || slots.is_held(block.word.slot) || is_lent(block.word.slot);
            Some((if is_held { Standing::Held } else { Standing::Free }, block.usage))
        });
        let Victim { key: victim, moved } = victim;
        for (key, usage) in moved {
            if let Some(block) = blocks.get_mut(&key) {
                block.usage = usage;
            }
        }
        let victim = victim?;
        self.remove(&victim);
        self.sums.evicted += 1;
        self.slots.take()
    }
}

/// See the crate's documentation.
pub(crate) struct Inner {
    pub(crate) config: CacheConfig,
    pub(crate) clock: WallClock,
    pub(crate) home: Home,
    pub(crate) data: File,
    /// Of the owner.
    pub(crate) index: Mutex<Option<Index>>,
    state: Mutex<State>,
    /// Whoever changes the index has it from before he looks at the state until both are changed. Taken first.
    changing: Mutex<()>,
    pub(crate) fills: Fills,
    pub(crate) discarded: Mutex<Option<String>>,
    /// Whether this process has the directory.
    pub(crate) owns: AtomicBool,
    pub(crate) guest: Guest,
    /// Bytes of the data file that whoever reads it takes it to have.
    readable: AtomicU64,
    /// Slots that this process reads as a guest.
    pub(crate) locks: SlotLocks,
    /// What guests come to.
    pub(crate) serving: Mutex<Option<Arc<Serving>>>,
    /// Connections that there are.
    pub(crate) guests: AtomicU32,
    /// A child of this process touches none of it.
    pub(crate) fork: ForkMark,
    /// One process has the directory as long as this is open: behind all that is in it.
    pub(crate) lock: Mutex<Option<File>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A cache. Cloning shares it; its threads end with the last clone.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
    _threads: Arc<Threads>,
}

/// The index of a directory, a new one in place of one that cannot be read.
pub(crate) fn open_index(home: &Home, block_bytes: u32, dir: &Path) -> Result<(Index, Loaded, Option<String>), Error> {
    let why = match Index::open(home.own_file(home::INDEX)?, block_bytes) {
        Ok((index, loaded)) => return Ok((index, loaded, None)),
        Err(Unread::InUse) => {
            return Err(Error::new(ErrorKind::InUse, Verb::Setup)
                .at(dir.display().to_string())
                .detail("somebody has the index of this cache open")
                .remedy("end the program that looks into it; after a damaged index, the process that met it"));
        }
        Err(Unread::Broken(why)) => why,
    };
    tracing::warn!(dir = %dir.display(), why, "the index of the cache is not read; it begins anew");
    home.remove(home::INDEX)?;
    let anew = Index::open(home.own_file(home::INDEX)?, block_bytes);
    let told = |unread| match unread {
        Unread::InUse => wrong(dir, io::Error::other("its index is in use")),
        Unread::Broken(why) => wrong(dir, io::Error::other(why)),
    };
    anew.map(|(index, loaded)| (index, loaded, Some(why))).map_err(told)
}

/// What there is in a directory, without a change to it: what the cache is made with, its index, its slots.
pub(crate) fn look(home: &Home, dir: &Path) -> Result<(CacheConfig, Loaded, u32), Error> {
    let none = || {
        let error = Error::new(ErrorKind::NotFound, Verb::Open).at(dir.display().to_string());
        error.detail("there is no cache in this directory").remedy("name the directory of one")
    };
    let config = CacheConfig::new(dir, 0).settled(home.sizes()?.ok_or_else(none)?);
    let _shared = home.lock_to_look()?;
    let loaded =
        Index::look(home.to_look(home::INDEX)?, config.block_bytes).map_err(|why| wrong(dir, io::Error::other(why)))?;
    let slots = config.slots().unwrap_or(1);
    Ok((config, loaded, slots))
}

/// The lock of a directory with its epoch, or none: another process has it, and made the cache.
fn lock_or_wait(home: &Home) -> Result<(Option<File>, u64), Error> {
    let until = now() + MADE_WAIT;
    loop {
        match home.lock() {
            Ok((lock, epoch)) => return Ok((Some(lock), epoch)),
            Err(error) if error.kind() != ErrorKind::InUse => return Err(error),
            Err(_) if home.sizes()?.is_some() => return Ok((None, 0)),
            // Whoever has it is about to make it, or is no cache of this form.
            Err(error) if now() >= until => return Err(error),
            Err(_) => std::thread::park_timeout(LOOK_AGAIN),
        }
    }
}

/// Gives the data file its length. Nothing is reserved: a full disk shows when a block is written, and ends the filling.
pub(crate) fn size_data(data: &File, slots: u32, block_bytes: u32) -> io::Result<()> {
    let len = u64::from(slots) * u64::from(block_bytes);
    // Where a process still reads, nothing is cut: zeros would be in its place when the file grows again.
    if data.metadata()?.len() > len && locks::is_tail_lent(data, len) {
        return Ok(());
    }
    data.set_len(len)
}

impl Cache {
    /// Opens the cache of a directory, or makes one. While another process, or another engine, has it, this one is its guest: it reads
    /// blocks from the data file as it does, and hands it others. Sizes are the owner's then. When the owner is gone, one of the guests
    /// takes its place.
    ///
    /// *Blocking*: reads the index.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range; `InUse` while another process has the directory and makes no cache there; `WrongKind`
    /// for a directory with something else in it; `PermissionDenied` for one that others may write in; what the system reports.
    pub fn open(config: CacheConfig) -> Result<Self, Error> {
        Self::open_by(config, WallClock::system())
    }

    /// The same, by a clock that is given.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn open_by(config: CacheConfig, clock: WallClock) -> Result<Self, Error> {
        let misuse = |why: String| Error::new(ErrorKind::ApiMisuse, Verb::Setup).detail(why);
        config.check().map_err(misuse)?;
        let home = Home::make(&config.dir)?;
        home.check_ours()?;
        let (lock, made) = lock_or_wait(&home)?;
        // Who had it may have made it meanwhile.
        let had = home.sizes()?;
        let config = match (&lock, had) {
            // It is as its owner has it.
            (None, Some(Sizes { bytes, block_bytes })) => CacheConfig { bytes, block_bytes, ..config },
            _ => config.settled(had.unwrap_or(SIZES)),
        };
        config.check().map_err(misuse)?;
        let slots = config.slots().unwrap_or(1);
        let sizes = Sizes { bytes: config.bytes, block_bytes: config.block_bytes };
        if lock.is_some() && had != Some(sizes) {
            home.set_sizes(sizes)?;
        }
        let (index, loaded, discarded) = match &lock {
            Some(_) => open_index(&home, config.block_bytes, &config.dir)
                .map(|(index, loaded, discarded)| (Some(index), loaded, discarded))?,
            None => (None, Loaded::default(), None),
        };
        let data = home.data()?;
        if lock.is_some() {
            size_data(&data, slots, config.block_bytes).map_err(|cause| wrong(&config.dir, cause))?;
        }
        let (locks, guest) = (SlotLocks::new(home.data()?, config.block_bytes.into()), Guest::new(&home)?);
        let inner = Arc::new(Inner {
            state: Mutex::new(State::of(loaded, slots)),
            fills: Fills::new(&config),
            config,
            clock,
            home,
            data,
            index: Mutex::new(index),
            changing: Mutex::default(),
            discarded: Mutex::new(discarded),
            owns: AtomicBool::new(lock.is_some()),
            guest,
            readable: AtomicU64::new(u64::MAX),
            locks,
            serving: Mutex::default(),
            guests: AtomicU32::new(0),
            fork: ForkMark::new(),
            lock: Mutex::new(lock),
        });
        let cache = Self { _threads: Arc::new(Threads::start(&inner)?), inner };
        cache.meet(made);
        Ok(cache)
    }

    /// Lets others come to this process, or waits a moment for the one that it comes to.
    fn meet(&self, epoch: u64) {
        if self.inner.is_owner() {
            if let Err(error) = self.inner.serve(epoch) {
                tracing::warn!(%error, "other processes read without the cache");
            }
            return;
        }
        let until = now() + CONNECT_WAIT;
        while !self.inner.takes_fills() && now() < until {
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// Whether there is a cache in a directory.
    pub fn is_in(dir: &Path) -> bool {
        Home::of(dir).and_then(|home| home.sizes()).is_ok_and(|sizes| sizes.is_some())
    }

    /// The file that blocks are in. Read only.
    pub fn data_path(&self) -> PathBuf {
        home::data_in(&self.inner.config.dir)
    }

    /// Device and inode of that file: whoever opens it by its path sees whether it is still this one.
    ///
    /// # Errors
    /// What the system says.
    pub fn data_identity(&self) -> Result<(u64, u64), Error> {
        let found = self.inner.data.metadata().map_err(|cause| wrong(&self.inner.config.dir, cause))?;
        Ok((found.dev(), found.ino()))
    }

    /// Says how long the data file was when whoever reads it opened it: blocks behind that, of a later owner with a larger cache, are read from
    /// where their objects are.
    pub fn reads_up_to(&self, len_bytes: u64) {
        self.inner.readable.store(len_bytes, Ordering::Release);
    }

    /// An object that is read through the cache.
    pub fn object(&self, named: Named) -> Arc<Cached> {
        Arc::new(Cached::new(self.inner.clone(), named))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    /// Every section leaves it whole: a panic under it is none of outside's making.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.config.block_bytes.into()
    }

    /// Whether a block lies where this process reads.
    pub(crate) fn is_readable(&self, word: &Word) -> bool {
        let end = (u64::from(word.slot) + 1).saturating_mul(self.block_bytes());
        word.len <= self.config.block_bytes && end <= self.readable.load(Ordering::Acquire)
    }

    /// Nothing more is kept from now on. Told once.
    fn fail(&self, what: &str, why: &str) {
        let mut state = self.state();
        if state.fault.is_none() {
            tracing::warn!(dir = %self.config.dir.display(), what, why, "the cache keeps nothing more");
            state.fault = Some(format!("{what}: {why}"));
        }
    }

    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change of the index durable; if it fails, what it says of things gone is said with the next one. Without it blocks that
    /// went are found damaged, and those that came are not found.
    pub(crate) fn commit(&self, _changing: &MutexGuard<'_, ()>, change: Change) -> Option<Change> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let done = index.as_ref().map_or(Ok(()), |index| index.commit(&change));
        drop(index);
        match done {
            Ok(()) => Some(change),
            Err(why) => {
                self.fail("the index takes nothing", &why);
                self.state().put_gone_back(change);
                None
            }
        }
    }

    /// Sums, and what is gone, into the index.
    pub(crate) fn settle(&self) {
        let changing = self.changing();
        let change = {
            let mut state = self.state();
            let objects = state.take_moved(FLUSHED_AT_END);
            Change { objects, ..state.take_gone() }
        };
        self.commit(&changing, change);
    }

    /// Lets go of objects: of their blocks, and of what is in memory of them.
    pub(crate) fn forget(&self, which: impl Fn(&ObjectKey, &Named) -> bool) -> Evicted {
        let changing = self.changing();
        self.drop_fills(&which);
        let mut evicted = Evicted::default();
        let change = {
            let mut state = self.state();
            let objects = state.objects.iter().filter(|(key, known)| which(key, &known.named));
            let objects: HashSet<ObjectKey> = objects.map(|(key, _)| *key).collect();
            for key in &objects {
                if let Some(known) = state.drop_object(key).filter(|known| known.pinned) {
                    state.pinned_blocks -= known.blocks;
                }
            }
            let gone: Vec<_> = state.blocks.keys().filter(|key| objects.contains(&key.object)).copied().collect();
            for key in &gone {
                if let Some(block) = state.remove(key) {
                    evicted.blocks += 1;
                    evicted.bytes += u64::from(block.word.len);
                }
            }
            let State { blocks, queues, sums, .. } = &mut *state;
            queues.retain(|key| blocks.contains_key(key));
            sums.evicted += evicted.blocks;
            state.take_gone()
        };
        self.commit(&changing, change);
        evicted
    }

    /// Compares blocks with their checksums; those that do not have them go.
    pub(crate) fn verify(&self, blocks: &[(BlockKey, Word)]) {
        let mut buffer = vec![0; sw_mem::index(self.block_bytes())];
        let right: Vec<bool> = blocks.iter().map(|(_, word)| self.is_right(word, &mut buffer)).collect();
        let mut state = self.state();
        for ((key, word), right) in blocks.iter().zip(right) {
            match state.blocks.get_mut(key).filter(|block| block.word == *word) {
                None => {}
                Some(block) if right => block.is_verified = true,
                Some(_) => {
                    tracing::warn!(
                        slot = word.slot,
                        "a block of the cache is damaged; it is read from where its object is"
                    );
                    state.remove(key);
                    state.sums.damaged += 1;
                }
            }
        }
    }

    /// Lets go of blocks whose slots cannot be read. The slots are not used again by this process.
    pub(crate) fn retire(&self, is_one: impl Fn(u32) -> bool) {
        let mut state = self.state();
        let blocks = state.blocks.iter().filter(|(_, block)| is_one(block.word.slot)).map(|(key, _)| *key);
        for key in blocks.collect::<Vec<_>>() {
            tracing::warn!(dir = %self.config.dir.display(), "a block of the cache cannot be read; it is read from where its object is");
            state.take_out(&key);
            state.retired += 1;
            state.sums.damaged += 1;
        }
    }

    pub(crate) fn is_right(&self, word: &Word, buffer: &mut [u8]) -> bool {
        let Some(bytes) = buffer.get_mut(..word.len as usize) else { return false };
        let at = u64::from(word.slot) * self.block_bytes();
        if self.config.verify == Verify::Always {
            // What the disk has is compared, not what the page cache has of it.
            self.drop_pages(word);
        }
        self.data.read_exact_at(bytes, at).is_ok() && Algorithm::Crc64Nvme.of(bytes) == word.sum
    }

    /// Keeps blocks: their bytes first, then the words that lead to them, then whoever asks is told of them.
    pub(crate) fn keep(&self, changing: &MutexGuard<'_, ()>, batch: &[Ready]) {
        let mut change = Change::default();
        let mut failed = None;
        for ready in batch {
            let slot = {
                let mut state = self.state();
                if state.fault.is_some() || state.blocks.contains_key(&ready.key) {
                    continue;
                }
                let is_lent = |slot| locks::is_lent(&self.data, slot, self.block_bytes());
                let Some(slot) = state.take_slot(&is_lent) else {
                    state.sums.left += 1;
                    state.claims.ended(&ready.key, now());
                    continue;
                };
                slot
            };
            let word = Word { slot, len: ready.len, sum: Algorithm::Crc64Nvme.of(ready.bytes()) };
            change.come.push((ready.key, word));
            if let Err(cause) = self.data.write_all_at(ready.padded(), u64::from(slot) * self.block_bytes()) {
                failed = Some(cause);
                break;
            }
        }
        let failed = failed.or_else(|| self.data.sync_data().err());
        if let Some(cause) = &failed {
            self.fail("the disk takes nothing", &cause.to_string());
        }
        if failed.is_some() {
            let mut state = self.state();
            change.come.drain(..).for_each(|(_, word)| state.slots.put(word.slot));
        }
        let objects: HashMap<ObjectKey, &Ready> = batch.iter().map(|ready| (ready.key.object, ready)).collect();
        let come = std::mem::take(&mut change.come);
        {
            let mut state = self.state();
            change = state.take_gone();
            let new = objects.iter().filter(|(key, _)| !come.is_empty() && !state.objects.contains_key(*key));
            let now_s = self.clock.now();
            change.objects = new.map(|(key, ready)| (*key, Known::new(&ready.named, now_s))).collect();
        }
        change.come = come;
        if change.is_empty() {
            return;
        }
        let slots: Vec<u32> = change.come.iter().map(|(_, word)| word.slot).collect();
        match self.commit(changing, change) {
            Some(change) => self.publish(change, &objects),
            None => {
                let mut state = self.state();
                slots.into_iter().for_each(|slot| state.slots.put(slot));
            }
        }
    }

    fn publish(&self, change: Change, objects: &HashMap<ObjectKey, &Ready>) {
        let (now_s, mut state) = (self.clock.now(), self.state());
        for (key, word) in &change.come {
            // One whose last block was found damaged meanwhile comes back: the index has it.
            let ready = objects.get(&key.object);
            if let Some(ready) = ready.filter(|_| !state.objects.contains_key(&key.object)) {
                state.enter(key.object, &ready.named, now_s);
            }
            state.use_object(&key.object, now_s);
            let is_warmed = state.warmed.contains(&key.object) || ready.is_some_and(|ready| ready.is_warmed);
            let usage = if is_warmed { state.queues.restore(*key) } else { state.queues.admit(*key) };
            state.insert(*key, Block { word: *word, usage, is_verified: true });
            state.sums.filled += 1;
            state.claims.ended(key, now());
        }
        drop(state);
        for (_, word) in change.come {
            // They are read past the page cache.
            self.drop_pages(&word);
        }
    }

    /// Lets the page cache forget a block. A hint, of which nothing depends.
    fn drop_pages(&self, word: &Word) {
        let at = u64::from(word.slot) * self.block_bytes();
        let _ = rustix::fs::fadvise(&self.data, at, NonZeroU64::new(word.len.into()), rustix::fs::Advice::DontNeed);
    }

    /// Whether a block may be read: with `Verify::Always` it is only right behind a comparison, which whoever asks has made.
    pub(crate) fn needs_check(&self, block: &Block) -> bool {
        !block.is_verified || self.config.verify == Verify::Always
    }
}

impl Inner {
    /// Lets another process have the directory, unless an operation of this one still reads slots: then with the last object. Objects that
    /// are open are read from where they are.
    pub(crate) fn release(&self) {
        let _changing = self.changing();
        {
            let state = self.state();
            if !self.is_owner() || state.slots.is_any_held() {
                return;
            }
            self.owns.store(false, Ordering::Release);
        }
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(index);
        self.unlock(&mut self.lock.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn unlock(&self, lock: &mut Option<File>) {
        if let Some(lock) = lock.take() {
            // What cannot be removed is of no use to anybody, and the next owner's to remove.
            let _ = self.home.remove(home::SOCKET);
            // Closing would leave it with the children of this process that have it too.
            let _ = lock.unlock();
        }
    }
}

impl Drop for Inner {
    /// In a child of the process the index and the lock are its parent's.
    #[expect(clippy::mem_forget, reason = "closing it would write into the file that the parent has open")]
    fn drop(&mut self) {
        let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.fork.is_child() {
            std::mem::forget(index);
            return;
        }
        drop(index);
        let mut lock = self.lock.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.unlock(&mut lock);
    }
}
