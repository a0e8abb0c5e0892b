//! Building an index: objects are scanned by several threads, and written in their order whatever the order in which scans end.
//!
//! ```text
//!   next object ─► its channel, in order ─► writer: drains channel after channel
//!        └► scan ─► rows ─► (its channel, bounded) ─┘
//! ```
//!
//! Memory: a thread is at most [`CHUNKS_AHEAD`] chunks ahead of the writer; a scan that is further waits. The object that the writer
//! drains is always being scanned, so that there is no standstill.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use straightway::{Engine, Error, ErrorKind, Uri, Verb};

use crate::samples::{Format, ObjectEntry, Samples as _};

use super::{
    Held, Index, folder_of, kept_as,
    rows::Rows,
    scan::{self, Checksums, How, Scanned, coding_of_records},
    sidecar::{Aside, SideCars},
    sources::{self, Asked, Sources, Wanted, What},
    write::{Growing, Sink, Writer},
};

/// Chunks of rows that a scan is ahead of the writer.
const CHUNKS_AHEAD: usize = 4;
/// Objects that are handed out before the writer is there, for each thread.
const OBJECTS_AHEAD: usize = 64;
/// Rows of an older index that are taken over at once.
const TAKEN_OVER: u64 = 4096;

/// What to do about an object that cannot be indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// End, and leave what was there.
    Fail,
    /// Leave the object out, and tell.
    Skip,
}

/// How to build.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions<'a> {
    /// Objects that are scanned at a time.
    pub threads: NonZeroUsize,
    /// The format of every file; `None`: by name and first bytes.
    pub format: Option<Format>,
    /// The column of Parquet files that samples are, names separated by dots; `None`: the only one that can be meant. Of npz
    /// files the array; `None`: every one. Of TFRecord files the feature of the `tf.train.Example` in each record, which must be
    /// one byte string; `None`: the record. Of collections of Milvus the field; `None`: the only vector.
    pub column: Option<&'a str>,
    /// Whether index files beside shards are used.
    pub sidecars: SideCars,
    /// Which checksums are kept.
    pub checksums: Checksums,
    /// About objects that cannot be indexed.
    pub on_error: OnError,
    /// An older index, from which objects of the same version are taken over without being read.
    pub older: Option<&'a Index>,
}

impl BuildOptions<'_> {
    /// Every file by its own format, side-cars used, the checksums that are stored kept, and the first object that cannot be
    /// indexed an error.
    pub const fn new(threads: NonZeroUsize) -> Self {
        Self {
            threads,
            format: None,
            column: None,
            sidecars: SideCars::Use,
            checksums: Checksums::Stored,
            on_error: OnError::Fail,
            older: None,
        }
    }

    fn asked(&self) -> Asked<'_> {
        Asked { format: self.format, column: self.column }
    }
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many objects were found.
    Found {
        /// Objects.
        objects: u64,
    },
    /// A log of what was deleted is read, before objects are found.
    Deletes {
        /// Its address.
        uri: &'a str,
    },
    /// An object is in the index.
    Object {
        /// It.
        entry: &'a ObjectEntry,
        /// Its samples.
        held: Held,
    },
    /// An index file beside an object does not fit it, and the object is walked.
    SideCar {
        /// The object's address.
        uri: &'a str,
        /// The side-car's.
        sidecar: &'a str,
        /// Why.
        error: &'a Error,
    },
    /// An object cannot be indexed and is left out.
    Damaged {
        /// Its address.
        uri: &'a str,
        /// Why.
        error: &'a Error,
    },
}

/// An index that was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Samples in it.
    pub samples: u64,
    /// Samples with a checksum.
    pub checksums: u64,
    /// Objects in it.
    pub objects: u64,
    /// Bytes of those objects.
    pub object_bytes: u64,
    /// Objects that were taken over from the older index.
    pub taken_over: u64,
    /// Objects of the older index that are no more among the sources, or are different now.
    pub dropped: u64,
    /// Objects that were left out as damaged.
    pub damaged: u64,
    /// Files of folders that hold no samples.
    pub passed_files: u64,
    /// Members of archives that belong to no sample. Of archives with a side-car those alone that it names.
    pub passed_members: u64,
    /// Rows of collections that were deleted, and are no samples.
    pub deleted_rows: u64,
    /// Rows of collections that the server has and did not flush: they are no samples.
    pub unflushed_rows: u64,
    /// Objects whose samples are from an index file beside them.
    pub sidecars: u64,
    /// Objects with an index file beside them that does not fit: they were walked.
    pub sidecars_unfit: u64,
    /// Samples from index files beside their objects.
    pub sidecar_samples: u64,
    /// Heads of records and members that a walk would have held against their checksums, and nobody looked at.
    pub sidecar_heads_unchecked: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
}

/// What a scan sends.
enum Sent {
    Rows(Box<Rows>),
    End(Scanned),
    Failed(Error),
}

/// An object on its way.
struct Running<'a> {
    wanted: &'a Wanted,
    is_taken_over: bool,
    sent: Receiver<Sent>,
}

/// Objects of an older index by address.
struct Older<'a> {
    index: &'a Index,
    numbers: HashMap<String, u32>,
}

impl<'a> Older<'a> {
    fn new(index: &'a Index) -> Result<Self, Error> {
        let entry = |number| index.object(number).map(|entry| (entry.uri, number));
        let numbers = (0..index.object_count()).map(entry).collect::<Result<_, _>>()?;
        Ok(Self { index, numbers })
    }

    /// The same object in the older index, if it need not be scanned again.
    fn same(&self, wanted: &Wanted, how: How<'_>) -> Result<Option<(ObjectEntry, Held)>, Error> {
        let Some(number) = self.numbers.get(&wanted.uri.to_string()) else { return Ok(None) };
        let entry = self.index.object(*number)?;
        let held = self.index.held(*number)?;
        let has_all = held.checksums == held.samples;
        let is_wanted = match entry.format {
            // Which column an older index is of, it does not say; and finding rows and arrays takes little.
            Format::Parquet | Format::Npz | Format::Milvus => false,
            // A walk finds checksums that a side-car does not have.
            Format::TfRecord => {
                entry.coding == coding_of_records(how.column) && (how.sidecars == SideCars::Use || has_all)
            }
            _ => true,
        };
        let is_same = is_wanted
            && entry.format == wanted.what.format()
            && entry.check_facts(wanted.entry.len, wanted.entry.version).is_ok()
            && (how.checksums == Checksums::Stored || has_all);
        Ok(is_same.then_some((entry, held)))
    }
}

/// Work that is left, taken by one thread at a time.
struct Queue<'a> {
    next: std::slice::Iter<'a, Wanted>,
    to: SyncSender<Running<'a>>,
}

/// What scans share.
struct Shared<'a> {
    engine: &'a Engine,
    how: How<'a>,
    older: Option<Older<'a>>,
    stop: AtomicBool,
}

/// Builds the index of `sources` under `to`, which is the old file or the whole new one at any time. *Blocking*.
///
/// `progress` is called by the calling thread; what it breaks with ends the building.
///
/// # Errors
/// `NotFound` and others for sources that cannot be looked at; with [`OnError::Fail`] the first that is wrong with an object, in
/// the order of objects; `NoSpace` and others of writing; `Cancelled`. Nothing has changed then.
pub fn build(
    engine: &Engine,
    sources: &[String],
    to: &Uri,
    options: &BuildOptions<'_>,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Built, Error> {
    let found = sources::find(engine, sources, options.asked(), progress)?;
    let (built, file) = collect(engine, found, (Growing::new(engine, to)?, &folder_of(to)), options, progress)?;
    Ok(Built { index_bytes: file.commit()?, ..built })
}

/// As [`build`], in memory: for a look at a dataset that has no index. About 60 bytes a sample.
///
/// # Errors
/// As [`build`].
pub fn build_in_memory(
    engine: &Engine,
    sources: &[String],
    options: &BuildOptions<'_>,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(Built, Index), Error> {
    let found = sources::find(engine, sources, options.asked(), progress)?;
    let (built, bytes) = collect(engine, found, (Vec::new(), ""), options, progress)?;
    Ok((Built { index_bytes: bytes.len() as u64, ..built }, Index::from_bytes(bytes)?))
}

pub(super) fn collect<S: Sink>(
    engine: &Engine,
    found: Sources,
    (to, folder): (S, &str),
    options: &BuildOptions<'_>,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(Built, S), Error> {
    told(progress(Event::Found { objects: found.wanted.len() as u64 }))?;
    let older = options.older.map(Older::new).transpose()?;
    let old_objects = older.as_ref().map_or(0, |older| older.numbers.len() as u64);
    let how = How { checksums: options.checksums, column: options.column, sidecars: options.sidecars };
    let shared = Shared { engine, how, older, stop: AtomicBool::new(false) };
    let threads = options.threads.get().min(found.wanted.len().max(1));
    let (send, receive) = sync_channel(threads * OBJECTS_AHEAD);
    let queue = Mutex::new(Some(Queue { next: found.wanted.iter(), to: send }));
    let mut built = Built { passed_files: found.passed, unflushed_rows: found.unflushed, ..Built::default() };
    let mut writer = Writer::new(to)?;
    let written = std::thread::scope(|scope| {
        for number in 0..threads {
            let thread = std::thread::Builder::new().name(format!("index-{number}"));
            let spawned = thread.spawn_scoped(scope, || work(&shared, &queue));
            if let Err(error) = spawned {
                shared.stop.store(true, Ordering::Relaxed);
                // A thread may wait for room in the queue and have its lock: it finds nobody there, and ends the others.
                drop(receive);
                return Err(no_thread(error));
            }
        }
        let mut drain = Drain { folder, on_error: options.on_error, writer: &mut writer, built: &mut built };
        let drained = receive.iter().try_for_each(|running| drain.object(running, progress));
        shared.stop.store(true, Ordering::Relaxed);
        // Whoever still sends finds nobody there.
        drop(receive);
        drained
    });
    written?;
    built.dropped = old_objects.saturating_sub(built.taken_over);
    Ok((built, writer.finish()?))
}

pub(super) fn no_thread(error: std::io::Error) -> Error {
    Error::new(ErrorKind::ResourceLimit, Verb::Setup)
        .at("a thread")
        .with_code(error.raw_os_error().unwrap_or(0))
        .remedy("use fewer threads")
        .caused_by(error)
}

pub(super) fn told(flow: ControlFlow<()>) -> Result<(), Error> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, Verb::Write).at("the index")),
    }
}

/// Scans objects until there are none, or nobody wants more.
fn work<'a>(shared: &Shared<'a>, queue: &Mutex<Option<Queue<'a>>>) {
    loop {
        let (send, sent) = sync_channel(CHUNKS_AHEAD);
        let (wanted, same) = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(left) = queue.as_mut() else { return };
            let Some(wanted) = left.next.next() else {
                // The writer sees the end when the last sender is gone.
                queue.take();
                return;
            };
            let same = shared.older.as_ref().map(|older| older.same(wanted, shared.how)).transpose();
            let is_taken_over = matches!(same, Ok(Some(Some(_))));
            if left.to.send(Running { wanted, is_taken_over, sent }).is_err() {
                queue.take();
                return;
            }
            (wanted, same)
        };
        let mut pass_on = |rows| send.send(Sent::Rows(Box::new(rows))).map_err(|_| nobody());
        let scanned = match same {
            Err(error) => Err(error),
            Ok(Some(Some((entry, held)))) => shared.take_over(entry, held, &mut pass_on),
            Ok(_) => scan::scan(shared.engine, wanted, (shared.how, &shared.stop), &mut pass_on),
        };
        // If nobody listens any more, the next send to the queue tells.
        let _ = send.send(scanned.map_or_else(Sent::Failed, Sent::End));
    }
}

/// The writer has ended; nobody sees this.
fn nobody() -> Error {
    Error::new(ErrorKind::Cancelled, Verb::Read).at("the index")
}

impl Shared<'_> {
    /// Passes on the samples that an older index has.
    fn take_over(
        &self,
        entry: ObjectEntry,
        held: Held,
        pass_on: &mut dyn FnMut(Rows) -> Result<(), Error>,
    ) -> Result<Scanned, Error> {
        let Some(older) = &self.older else { return Err(nobody()) };
        let mut at = held.first;
        let end = held.first + held.samples;
        while at < end {
            let rows = older.index.read_rows(at, TAKEN_OVER.min(end - at))?;
            at += rows.len() as u64;
            pass_on(rows)?;
        }
        Ok(Scanned { entry, passed: 0, aside: Aside::Nothing })
    }
}

/// The writing end.
struct Drain<'a, S> {
    folder: &'a str,
    on_error: OnError,
    writer: &'a mut Writer<S>,
    built: &'a mut Built,
}

impl<S: Sink> Drain<'_, S> {
    /// Writes one object, however long its scan takes.
    fn object(
        &mut self,
        running: Running<'_>,
        progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut damaged = None;
        for sent in running.sent.iter() {
            match sent {
                Sent::Rows(_) if damaged.is_some() => {}
                // A sample beyond a limit is the object's fault.
                Sent::Rows(rows) => damaged = self.add(&rows, running.wanted.group)?,
                Sent::End(scanned) if damaged.is_none() => {
                    let entry =
                        ObjectEntry { uri: kept_as(&scanned.entry.uri, self.folder).to_owned(), ..scanned.entry };
                    let held = self.writer.end(&entry)?;
                    self.built.objects += 1;
                    self.built.samples += held.samples;
                    self.built.checksums += held.checksums;
                    self.built.object_bytes += entry.len;
                    if let What::Milvus(log) = &running.wanted.what {
                        // Whatever is asked about damaged objects: of a segment that does not fit nothing is known to be good.
                        log.count(held.samples + scanned.passed, &entry.uri)?;
                    }
                    match entry.format {
                        Format::Milvus => self.built.deleted_rows += scanned.passed,
                        _ => self.built.passed_members += scanned.passed,
                    }
                    self.built.taken_over += u64::from(running.is_taken_over);
                    self.aside(&entry.uri, &scanned.aside, progress)?;
                    return told(progress(Event::Object { entry: &entry, held }));
                }
                Sent::End(_) => {}
                Sent::Failed(error) => damaged = damaged.or(Some(error)),
            }
        }
        let error = damaged.unwrap_or_else(gone);
        self.writer.take_back()?;
        let is_unfit = matches!(&running.wanted.what, What::Milvus(log) if log.is_unfit());
        if self.on_error == OnError::Fail || is_unfit {
            return Err(error);
        }
        self.built.damaged += 1;
        told(progress(Event::Damaged { uri: &running.wanted.uri.to_string(), error: &error }))
    }

    /// Counts and tells what came of side-cars.
    fn aside(
        &mut self,
        uri: &str,
        aside: &Aside,
        progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        match aside {
            Aside::Nothing => Ok(()),
            Aside::Used(used) => {
                self.built.sidecars += 1;
                self.built.sidecar_samples += used.samples;
                self.built.sidecar_heads_unchecked += used.heads_unchecked;
                Ok(())
            }
            Aside::Unfit { sidecar, error } => {
                self.built.sidecars_unfit += 1;
                told(progress(Event::SideCar { uri, sidecar, error }))
            }
        }
    }

    fn add(&mut self, rows: &Rows, group: u32) -> Result<Option<Error>, Error> {
        match self.writer.add(rows, group) {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::TooLarge && error.verb() == Verb::Parse => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }
}

/// A scan ended without a word: its thread panicked, which the scope tells.
fn gone() -> Error {
    Error::new(ErrorKind::Poisoned, Verb::Read).at("a scan")
}
