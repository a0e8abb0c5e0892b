//! The cache of an engine: remote objects are opened through it, and warmed.
//!
//! ```text
//!   open s3://… ─► the object, as its system opens it ─► Object made of it and the cache's data file
//!                                                          │ keeps
//!                                                          ▼
//!                               Through { what the cache says of it, the object itself: what blocks are read from, past the cache }
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use sw_cache::{Cache, CacheConfig, Cached, Named, Pinning, Source, Verify, Warming};
use sw_engine::{
    Error, ErrorKind, Layout, Residency, Spans, Verb,
    seam::{OpenMode, Store as _, Tee},
};
use sw_mem::{Buffer, ByteLen};
use sw_uring::FileStore;

use crate::{
    clock::Clock,
    core::Core,
    memory::Memory,
    object::Object,
    request::{Pending, Request},
};

/// Longest that a block beside what was asked for, or a piece that is warmed, is read.
const READ_WAIT: Duration = Duration::from_secs(300);
/// Bytes of a piece that is warmed: one request of an object store's.
const WARM_BYTES: u64 = 8 << 20;
/// Pieces that are under way at a time.
const WARM_PIECES: u64 = 4;

/// The cache, opened with the first remote object.
pub(crate) struct Caches {
    /// `None`: there is none.
    config: Option<CacheConfig>,
    opened: OnceLock<Result<Opened, Error>>,
    /// Taken to open it. Whether it was told that somebody else has it.
    opening: Mutex<bool>,
}

struct Opened {
    cache: Cache,
    /// The data file, as any file is opened.
    data: Arc<sw_engine::Object>,
}

/// What an object keeps that is read through the cache.
struct Through {
    cached: Arc<Cached>,
    /// It, past the cache.
    origin: Object,
}

/// Sets one by the name that the command line uses. `None` if there is no such name, or the value is none of it.
pub(crate) fn set(config: &mut CacheConfig, name: &str, value: &str) -> Option<()> {
    let bytes = || crate::parse_bytes(value);
    match (name, value) {
        ("cache_dir", path) if !path.is_empty() => config.dir = path.into(),
        ("cache_bytes", _) => config.bytes = bytes()?,
        ("cache_block_bytes", _) => config.block_bytes = u32::try_from(bytes()?).ok()?,
        ("cache_fill_bytes", _) => config.fill_bytes = bytes()?,
        ("cache_max_age", _) => config.max_age = Some(seconds(value)?),
        ("cache_max_age_above", _) => config.max_age_above = bytes()?,
        ("cache_verify", "first") => config.verify = Verify::First,
        ("cache_verify", "always") => config.verify = Verify::Always,
        _ => return None,
    }
    Some(())
}

/// A whole number with s, m, h or d; at least one second.
fn seconds(value: &str) -> Option<Duration> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 24 * 3600)];
    let (digits, unit) = units.into_iter().find_map(|(unit, seconds)| Some((value.strip_suffix(unit)?, seconds)))?;
    let count: u64 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    count.checked_mul(unit).filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

impl Caches {
    pub(crate) fn new(config: Option<CacheConfig>) -> Self {
        Self { config, opened: OnceLock::new(), opening: Mutex::default() }
    }

    /// The cache, if there is to be one.
    pub(crate) fn get(&self, files: &FileStore) -> Option<Result<&Cache, Error>> {
        Some(self.opened(files)?.map(|opened| &opened.cache))
    }

    /// Opens it with the first call. While somebody else has it, each call tries anew.
    fn opened(&self, files: &FileStore) -> Option<Result<&Opened, Error>> {
        let config = self.config.as_ref()?;
        if self.opened.get().is_none() {
            let mut is_told = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
            if self.opened.get().is_none() {
                let made = Self::open(config, files);
                if let Err(error) = &made
                    && !*is_told
                {
                    tracing::warn!(%error, "remote objects are read without the cache");
                    *is_told = true;
                }
                match made {
                    Err(error) if error.kind() == ErrorKind::InUse => return Some(Err(error)),
                    made => drop(self.opened.set(made)),
                }
            }
        }
        // It is told more than once.
        let again = |why: &Error| Error::new(why.kind(), Verb::Setup).explained_by(why).with_code(why.code());
        self.opened.get().map(|opened| opened.as_ref().map_err(again))
    }

    fn open(config: &CacheConfig, files: &FileStore) -> Result<Opened, Error> {
        let cache = Cache::open(config.clone())?;
        let data = files.open(&cache.data_path().to_string_lossy(), OpenMode::Read)?;
        if data.version.identity != cache.data_identity()? {
            return Err(Error::new(ErrorKind::Changed, Verb::Setup)
                .at(cache.data_path().display().to_string())
                .detail("another file has taken the place of the cache's")
                .remedy("see who else writes in this directory"));
        }
        cache.reads_up_to(data.len);
        Ok(Opened { cache, data })
    }

    /// A remote object as it is read through the cache; itself where there is none, or where its versions cannot be told apart for
    /// certain.
    pub(crate) fn through(
        &self,
        (files, clock, core): (&FileStore, Clock, Weak<Core>),
        origin: Arc<sw_engine::Object>,
        realm: impl FnOnce(&str) -> Option<String>,
    ) -> Arc<sw_engine::Object> {
        if self.config.is_none() || origin.len == 0 || !sw_remote::is_versioned(&origin) {
            return origin;
        }
        let Some(Ok(opened)) = self.opened(files) else { return origin };
        let (name, version, len) = (origin.name.to_string(), origin.version, origin.len);
        let Some(realm) = realm(&name) else { return origin };
        let cached = opened.cache.object(Named { realm, name, version, len });
        let tee: Arc<dyn Tee> = cached.clone();
        sw_remote::set_tee(&origin, Arc::downgrade(&tee));
        let past = Object::new(origin.clone(), clock);
        cached.set_source(Arc::new(Beside { core, object: past.clone() }));
        Arc::new(sw_engine::Object {
            id: sw_engine::Object::next_id(),
            name: origin.name.clone(),
            len,
            version,
            faces: Vec::new(),
            residency: Residency::Unknown.into(),
            composed: Some((Layout::Pieces(cached.clone()), vec![origin, opened.data.clone()])),
            keep: Box::new(Through { cached, origin: past }),
        })
    }

    /// Reads what the cache has not of ranges of objects, in their order, and waits until it is kept. Gives the bytes that were read.
    pub(crate) fn warm(
        &self,
        core: &Arc<Core>,
        ranges: impl IntoIterator<Item = Result<(Object, u64, u64), Error>>,
    ) -> Result<Warmed, Error> {
        let cache = self.get(&core.backends.files).ok_or_else(|| {
            Error::new(ErrorKind::ApiMisuse, Verb::Read)
                .detail("the engine has no cache")
                .remedy("name a directory by cache_dir=PATH")
        })??;
        let (most, block) = (cache.status().capacity_bytes, u64::from(cache.status().block_bytes));
        let sizes = PieceSizes::of(block, cache.fill_blocks());
        let mut pieces = Pieces { under_way: VecDeque::new(), read: 0 };
        let (mut asked, mut has_place): (Vec<Asked>, _) = (Vec::new(), true);
        'ranges: for range in ranges {
            let (object, offset, len) = range?;
            let through = through_of(&object)?;
            let (mut at, end) = (offset, offset.saturating_add(len));
            Asked::add(&mut asked, &object, through, (offset, end));
            while let Some((start, len)) =
                through.cached.next_missing(at, sizes.bytes).filter(|(start, _)| *start < end)
            {
                if pieces.has(&through.origin, start) {
                    // What it is of comes first.
                    pieces.finish(0)?;
                    cache.wait_for_room(u64::MAX, READ_WAIT);
                    if through.cached.next_missing(start, block).is_some_and(|(missing, _)| missing == start) {
                        // It was not kept. That is told at the end.
                        at = (start / block + 1) * block;
                    }
                    continue;
                }
                if pieces.read.saturating_add(len) > most {
                    // More would only take the place of what came before.
                    has_place = false;
                    break 'ranges;
                }
                // No further than asked for, but whole blocks.
                let len = len.min(end.next_multiple_of(block) - start);
                at = start + len;
                pieces.finish(sizes.count - 1)?;
                self.check_keeps(cache)?;
                if !cache.wait_for_room(sizes.bytes * (pieces.under_way.len() as u64 + 1), READ_WAIT) {
                    return Err(Error::new(ErrorKind::DeadlineExceeded, Verb::Write)
                        .at(cache.data_path().display().to_string())
                        .detail("the disk of the cache takes nothing")
                        .remedy("look at the disk"));
                }
                let pending = past(core, &through.origin, start, len)?.start();
                pieces.under_way.push_back(Piece { of: through.origin.clone(), start, len, pending });
            }
        }
        pieces.finish(0)?;
        cache.wait_for_room(u64::MAX, READ_WAIT);
        self.check_keeps(cache)?;
        // By what is there: blocks may have found no place, or gone again.
        let is_all = has_place && asked.iter().all(Asked::is_kept);
        Ok(Warmed { bytes: pieces.read, is_all })
    }

    fn check_keeps(&self, cache: &Cache) -> Result<(), Error> {
        match cache.status().fault {
            None => Ok(()),
            Some(fault) => Err(Error::new(ErrorKind::Io, Verb::Write)
                .at(cache.data_path().display().to_string())
                .detail(format!("the cache keeps nothing more: {fault}"))
                .remedy("free space, or mend the disk; then open the cache anew")),
        }
    }
}

/// Lets go of what is kept of an object, if it is read through a cache.
pub(crate) fn forget(object: &sw_engine::Object) {
    if let Some(through) = object.keep.downcast_ref::<Through>() {
        through.cached.forget();
    }
}

/// Says whether blocks of an object go for others. Whether it is read through a cache.
pub(crate) fn set_pinning(object: &sw_engine::Object, pinning: Pinning) -> bool {
    let through = object.keep.downcast_ref::<Through>();
    through.inspect(|through| through.cached.set_pinning(pinning)).is_some()
}

/// Whether an object is read through a cache.
pub(crate) fn is_through(object: &sw_engine::Object) -> bool {
    object.keep.is::<Through>()
}

fn through_of(object: &Object) -> Result<&Through, Error> {
    object.inner().keep.downcast_ref::<Through>().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, Verb::Read)
            .at(object.name())
            .detail("the object is not read through the cache")
            .remedy("objects of s3://, gs:// and az:// with a strong ETag are; local ones need none")
    })
}

/// How much is warmed at a time: no more than the cache has memory for on the way to its disk.
struct PieceSizes {
    bytes: u64,
    count: usize,
}

impl PieceSizes {
    fn of(block: u64, fill_blocks: u64) -> Self {
        let blocks = (WARM_BYTES / block).min(fill_blocks / 2).max(1);
        let count = (fill_blocks / 2 / blocks).clamp(1, WARM_PIECES);
        Self { bytes: blocks * block, count: usize::try_from(count).unwrap_or(1) }
    }
}

/// A range that was to be there.
struct Asked {
    object: Object,
    range: (u64, u64),
    _warming: Warming,
}

impl Asked {
    fn add(all: &mut Vec<Self>, object: &Object, through: &Through, range: (u64, u64)) {
        match all.last_mut() {
            Some(last) if Arc::ptr_eq(last.object.inner(), object.inner()) && last.range.1 == range.0 => {
                last.range.1 = range.1;
            }
            _ => all.push(Self { object: object.clone(), range, _warming: through.cached.warming() }),
        }
    }

    fn is_kept(&self) -> bool {
        let missing = through_of(&self.object).ok().and_then(|through| through.cached.next_missing(self.range.0, 1));
        missing.is_none_or(|(start, _)| start >= self.range.1)
    }
}

/// What came of warming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// Bytes that were read, in whole blocks; the rest was kept already.
    pub bytes: u64,
    /// Whether all that was asked for is there. If not, the cache has no place for it, or no memory on the way to its disk.
    pub is_all: bool,
}

/// Reads that fill the cache.
struct Pieces {
    under_way: VecDeque<Piece>,
    /// Bytes of those that began.
    read: u64,
}

struct Piece {
    of: Object,
    start: u64,
    len: u64,
    pending: Pending,
}

impl Pieces {
    /// Waits until so many are left.
    fn finish(&mut self, left: usize) -> Result<(), Error> {
        while self.under_way.len() > left {
            let Some(Piece { pending, len, .. }) = self.under_way.pop_front() else { break };
            pending.wait().result?;
            self.read += len;
        }
        Ok(())
    }

    fn has(&self, of: &Object, at: u64) -> bool {
        let is_it = |piece: &Piece| {
            Arc::ptr_eq(piece.of.inner(), of.inner()) && (piece.start..piece.start + piece.len).contains(&at)
        };
        self.under_way.iter().any(is_it)
    }
}

/// A read of an object past its cache, into memory that nobody looks at: what comes is kept on the way.
fn past(core: &Arc<Core>, origin: &Object, offset: u64, len: u64) -> Result<Request, Error> {
    let buffer = Buffer::allocate(ByteLen(len)).map_err(|cause| {
        Error::new(ErrorKind::ResourceLimit, Verb::Read).at(origin.name()).detail(cause.to_string()).caused_by(cause)
    })?;
    let memory = Memory::from(buffer);
    let request = Request::new(core.clone(), origin.clone(), Verb::Read, offset, Spans::One(memory.span));
    Ok(request.deadline(READ_WAIT))
}

/// Reads blocks beside what somebody asked for.
struct Beside {
    core: Weak<Core>,
    object: Object,
}

impl Source for Beside {
    fn read(&self, offset: u64, len: u64) -> Result<(), Error> {
        let core = self.core.upgrade().ok_or_else(|| Error::new(ErrorKind::Closed, Verb::Read))?;
        past(&core, &self.object, offset, len)?.wait().result.map(drop)
    }
}
