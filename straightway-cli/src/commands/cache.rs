//! `cache`: what a cache of remote objects has, filling it, emptying it.

use std::{collections::HashMap, fmt, path::Path};

use serde::Serialize;
use straightway::{
    CacheConfig, CacheSelection, CacheStatus, CacheVerify, Engine, EntryKind, Error, ErrorKind, KeptObject, Object,
    Pinning, Uri, Verb,
};
use sw_data::{
    index::{Feed, Want},
    order::{Method, Sampler, Share, Tail, World},
    samples::Samples as _,
};

use super::dataset;
use crate::{
    cache_args::{Cache, Evict, Status, Warm},
    fail::Fail,
    out::Out,
    session::{self, Stopwatch},
    signals,
    size::Bytes,
};

/// The answer of `cache status`.
#[derive(Serialize)]
struct StatusReport {
    schema: &'static str,
    dir: String,
    block_bytes: u32,
    capacity_bytes: u64,
    kept_bytes: u64,
    blocks: u64,
    objects: u64,
    hit_bytes: u64,
    missed_bytes: u64,
    filled_blocks: u64,
    evicted_blocks: u64,
    damaged_blocks: u64,
    left_blocks: u64,
    fetched_blocks: u64,
    guests: u64,
    fault: Option<String>,
    discarded: Option<String>,
}

impl StatusReport {
    fn of(status: CacheStatus) -> Self {
        Self {
            schema: "straightway.cache.status/1",
            dir: status.dir.display().to_string(),
            block_bytes: status.block_bytes,
            capacity_bytes: status.capacity_bytes,
            kept_bytes: status.kept_bytes,
            blocks: status.blocks,
            objects: status.objects,
            hit_bytes: status.hit_bytes,
            missed_bytes: status.missed_bytes,
            filled_blocks: status.filled_blocks,
            evicted_blocks: status.evicted_blocks,
            damaged_blocks: status.damaged_blocks,
            left_blocks: status.left_blocks,
            fetched_blocks: status.fetched_blocks,
            guests: status.guests,
            fault: status.fault,
            discarded: status.discarded,
        }
    }
}

impl fmt::Display for StatusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, blocks, block_bytes, objects, hit_bytes, missed_bytes, .. } = self;
        writeln!(f, "{dir}: {} of {}", Bytes(self.kept_bytes), Bytes(self.capacity_bytes))?;
        writeln!(f, "  {blocks} blocks of up to {}, of {objects} objects", Bytes((*block_bytes).into()))?;
        let asked = hit_bytes + missed_bytes;
        let percent = (hit_bytes * 100).checked_div(asked).unwrap_or(0);
        writeln!(
            f,
            "  read {} from it and {} from elsewhere: {percent} % hits",
            Bytes(*hit_bytes),
            Bytes(*missed_bytes)
        )?;
        let Self { filled_blocks, evicted_blocks, damaged_blocks, left_blocks, fetched_blocks, .. } = self;
        write!(
            f,
            "  blocks: {filled_blocks} came ({fetched_blocks} beside what was asked for), {evicted_blocks} went, "
        )?;
        write!(f, "{left_blocks} were left for lack of memory or time, {damaged_blocks} were damaged")?;
        let told = [("keeps nothing more", &self.fault), ("began anew", &self.discarded)];
        told.iter()
            .filter_map(|(what, why)| Some((what, why.as_ref()?)))
            .try_for_each(|(what, why)| write!(f, "\n  {what}: {why}"))
    }
}

/// An object of which a cache has some.
#[derive(Serialize)]
struct ObjectReport {
    schema: &'static str,
    name: String,
    len: u64,
    modified_ns: String,
    kept_bytes: u64,
    pinned: bool,
    used_s: u64,
}

impl fmt::Display for ObjectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, len, kept_bytes, pinned, .. } = self;
        write!(f, "{kept_bytes:>14} of {len:>14}  {name}{}", if *pinned { "  pinned" } else { "" })
    }
}

/// The answer of `cache warm`.
#[derive(Serialize)]
struct WarmReport {
    schema: &'static str,
    objects: u64,
    read_bytes: u64,
    all: bool,
    pinned: u64,
    left: u64,
    seconds: f64,
}

impl fmt::Display for WarmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { objects, read_bytes, all, pinned, left, seconds, .. } = self;
        write!(f, "read {} of {objects} objects in {seconds:.3} s", Bytes(*read_bytes))?;
        if *pinned > 0 {
            write!(f, ", {pinned} pinned")?;
        }
        if *left > 0 {
            write!(f, ", {left} left out (no strong ETag of an object store)")?;
        }
        if *all { Ok(()) } else { write!(f, "; not all of it is there: the cache has no place or no memory for more") }
    }
}

/// The answer of `cache evict`.
#[derive(Serialize)]
struct EvictReport {
    schema: &'static str,
    name: String,
    blocks: u64,
    bytes: u64,
}

impl fmt::Display for EvictReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, blocks, bytes, .. } = self;
        let name = if name.is_empty() { "all" } else { name };
        write!(f, "{name}: {blocks} blocks with {} went", Bytes(*bytes))
    }
}

/// Runs a subcommand.
///
/// # Errors
/// Why it ended without success.
pub fn run(command: &Cache, out: &mut Out) -> Result<(), Fail> {
    match command {
        Cache::Status(args) => status(args, out),
        Cache::Warm(args) => warm(args, out),
        Cache::Evict(args) => evict(args, out),
    }
}

/// The cache that is there, for who does not read through it.
fn existing(dir: &Path) -> Result<straightway::Cache, Fail> {
    check_is_there(dir)?;
    Ok(straightway::Cache::open(CacheConfig { verify: CacheVerify::First, ..CacheConfig::new(dir, 0) })?)
}

fn check_is_there(dir: &Path) -> Result<(), Fail> {
    if !straightway::Cache::is_in(dir) {
        return Err(Error::new(ErrorKind::NotFound, Verb::Open)
            .at(dir.display().to_string())
            .detail("there is no cache in this directory")
            .remedy("a command makes one with --engine cache_dir=DIR, and `straightway cache warm` does")
            .into());
    }
    Ok(())
}

fn status(args: &Status, out: &mut Out) -> Result<(), Fail> {
    check_is_there(&args.dir)?;
    let (status, objects) = straightway::Cache::look(&args.dir)?;
    if args.objects {
        for object in objects {
            let KeptObject { name, version, len, kept_bytes, pinned, used_s } = object;
            let (schema, modified_ns) = ("straightway.cache.object/1", version.stamp.to_string());
            out.report(&ObjectReport { schema, name, len, modified_ns, kept_bytes, pinned, used_s })?;
        }
    }
    out.report(&StatusReport::of(status))
}

fn evict(args: &Evict, out: &mut Out) -> Result<(), Fail> {
    let cache = existing(&args.dir)?;
    cache.check_owner()?;
    let all = args.names.is_empty().then(String::new);
    for name in args.names.iter().chain(&all) {
        let Evict { older_than, larger_than, .. } = *args;
        let gone = cache.evict_selected(&CacheSelection { name: name.clone(), older_than, larger_than });
        let (schema, name) = ("straightway.cache.evict/1", name.clone());
        out.report(&EvictReport { schema, name, blocks: gone.blocks, bytes: gone.bytes })?;
    }
    Ok(())
}

fn warm(args: &Warm, out: &mut Out) -> Result<(), Fail> {
    let mut engine = args.engine.clone();
    engine.engine.push(format!("cache_dir={}", args.dir.display()));
    engine.engine.extend(args.bytes.map(|bytes| format!("cache_bytes={bytes}")));
    session::with_engine(&engine, |engine| {
        let clock = Stopwatch::start();
        let mut opened = Objects { engine, known: HashMap::new(), pin: args.pin, pinned: 0, left: 0 };
        let warmed = match &args.index {
            None => warm_objects(args, &mut opened)?,
            Some(index) => warm_samples(args, index, &mut opened, out)?,
        };
        out.report(&WarmReport {
            schema: "straightway.cache.warm/1",
            objects: opened.known.len() as u64,
            read_bytes: warmed.bytes,
            all: warmed.is_all,
            pinned: opened.pinned,
            left: opened.left,
            seconds: clock.seconds(),
        })
    })
}

/// Objects by their addresses, each opened once.
struct Objects<'a> {
    engine: &'a Engine,
    known: HashMap<String, Object>,
    /// Whether they are pinned: before anything of them comes.
    pin: bool,
    pinned: u64,
    /// Those that are not read through the cache.
    left: u64,
}

impl Objects<'_> {
    fn get(&mut self, address: &str) -> Result<Object, Error> {
        if let Some(known) = self.known.get(address) {
            return Ok(known.clone());
        }
        let object = self.engine.open(&address.parse()?)?;
        if self.pin && object.set_pinning(Pinning::Pinned) {
            self.pinned += 1;
        }
        self.known.insert(address.to_owned(), object.clone());
        Ok(object)
    }
}

/// Whatever comes first that ends the work.
type Stopped = Option<Fail>;

/// How an address came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Named,
    Listed,
}

fn warm_objects(args: &Warm, opened: &mut Objects<'_>) -> Result<straightway::Warmed, Fail> {
    let engine = opened.engine;
    // What somebody named must be; below a prefix there are others too.
    let mut left: Vec<(String, Origin)> = args.uris.iter().rev().map(|uri| (uri.clone(), Origin::Named)).collect();
    let mut stopped: Stopped = None;
    let next = || -> Option<Result<(Object, u64, u64), Error>> {
        loop {
            if let Err(fail) = signals::requested() {
                stopped = Some(fail);
                return None;
            }
            let (address, origin) = left.pop()?;
            let uri: Uri = match address.parse() {
                Ok(uri) => uri,
                Err(error) => return Some(Err(error)),
            };
            if !address.ends_with('/') {
                let object = match opened.get(&address) {
                    Ok(object) => object,
                    Err(error) if origin == Origin::Listed && error.kind() == ErrorKind::Unsupported => {
                        opened.left += 1;
                        continue;
                    }
                    Err(error) => return Some(Err(error)),
                };
                if object.is_empty() {
                    continue;
                }
                if origin == Origin::Listed && !object.is_cached() {
                    opened.left += 1;
                    continue;
                }
                let len = object.len();
                return Some(Ok((object, 0, len)));
            }
            match engine.list(&uri) {
                Ok(entries) => left.extend(entries.into_iter().rev().map(|entry| match entry.kind {
                    EntryKind::Directory => (format!("{}/", entry.name.trim_end_matches('/')), Origin::Listed),
                    _ => (entry.name, Origin::Listed),
                })),
                Err(error) => return Some(Err(error)),
            }
        }
    };
    let warmed = engine.warm(std::iter::from_fn(next))?;
    stopped.map_or(Ok(warmed), Err)
}

fn warm_samples(args: &Warm, index: &str, opened: &mut Objects<'_>, out: &Out) -> Result<straightway::Warmed, Fail> {
    let engine = opened.engine;
    let index = dataset::index_of(engine, &[index.to_owned()], (None, None), out)?;
    let method = args.method.unwrap_or(if args.seed.is_some() { Method::Shuffle } else { Method::Sequence });
    let misuse =
        |error: sw_data::order::OrderError| Fail::usage(error.to_string(), "see `straightway cache warm --help`");
    let epoch = Sampler::new(index.len(), args.seed.unwrap_or(0), method).map_err(misuse)?.epoch(args.epoch);
    let world = World::new(args.rank, args.world).map_err(misuse)?;
    let share = Share::new(epoch.len(), 0, world, Tail::Uneven);
    let limit = usize::try_from(args.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let numbers = share.filter_map(|position| epoch.at(position)).take(limit);
    let mut feed = Feed::new(engine, &index, numbers, Want::Places);
    let mut stopped: Stopped = None;
    let next = || -> Option<Result<(Object, u64, u64), Error>> {
        if let Err(fail) = signals::requested() {
            stopped = Some(fail);
            return None;
        }
        let fed = match feed.next_sample() {
            Ok(fed) => fed?,
            Err(error) => return Some(Err(error)),
        };
        let extent = fed.place.extent;
        Some(opened.get(&fed.entry.uri).map(|object| (object, extent.offset, extent.len)))
    };
    let warmed = engine.warm(std::iter::from_fn(next))?;
    stopped.map_or(Ok(warmed), Err)
}
