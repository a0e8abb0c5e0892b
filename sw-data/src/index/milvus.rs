//! Collections of Milvus: the rows of one field, without those that were deleted.
//!
//! ```text
//!   manifest ─► segments ─► binlogs of the field ─────► pages, rows ─► samples, called by their primary keys
//!            │          └─► of the primary key, of the times ─┤
//!            └─► deletes: key ─► time ────────────────────────┘ a row that is older than its key's delete is none
//! ```
//!
//! The k-th binlogs of a segment's fields have the same rows. A row and a delete of the same time are an upsert, whose row stays
//! (milvus-io/milvus `internal/datanode/compactor.go`, `isDeletedValue`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Deserialize;
use straightway::{Engine, Entry, EntryKind, Error, ErrorKind, Uri, Verb, Version};

use super::{
    build::{Event, told},
    scan::{Collect, Window, malformed, undecodable},
    sources::{Progress, Wanted, What},
};
use crate::{
    decode::{self, Limits},
    formats::{
        BINLOG_COLUMN, BinlogEvent, BinlogScan, ColumnCoding, Extent, FormatError, ParquetRows, ParquetScan, Payload,
        Scan as _, Wrong,
    },
    samples::Format,
};

/// Bytes of a manifest, at most: a million binlogs.
const MANIFEST_MAX: u64 = 256 << 20;
/// What a manifest is.
const SCHEMA: &str = "straightway.milvus/1";
/// The fields that every collection has, by number: the times of rows.
const TIMES: &str = "1";
/// Deletes of all partitions are of this one.
const ALL_PARTITIONS: i64 = -1;
/// Where manifests are from. Another's may name anything that an engine can read.
const SERVER: &str = "milvus://";
/// Deletes that are held, at most: about 50 bytes each.
const DELETES_MAX: usize = 100_000_000;

#[derive(Deserialize)]
struct Manifest {
    schema: String,
    fields: Vec<Field>,
    segments: Vec<Segment>,
    deletes: Vec<DeleteLog>,
    not_flushed: Waiting,
}

#[derive(Deserialize)]
struct Field {
    id: i64,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    primary: bool,
}

#[derive(Deserialize)]
struct Segment {
    id: i64,
    partition: i64,
    rows: u64,
    fields: HashMap<String, Vec<LogFile>>,
}

#[derive(Deserialize)]
struct LogFile {
    uri: String,
    len: u64,
}

#[derive(Deserialize)]
struct DeleteLog {
    partition: i64,
    uri: String,
}

#[derive(Deserialize)]
struct Waiting {
    rows: u64,
}

/// A primary key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Number(i64),
    Text(Box<str>),
}

/// What keys of a collection are.
#[derive(Clone, Copy, Debug)]
enum KeyKind {
    Number,
    Text,
}

impl Key {
    fn read(bytes: &[u8], kind: KeyKind) -> Option<Self> {
        match kind {
            KeyKind::Text => Some(Self::Text(std::str::from_utf8(bytes).ok()?.into())),
            KeyKind::Number => Some(Self::Number(i64::from_le_bytes(bytes.try_into().ok()?))),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// When keys were deleted last, by partition.
#[derive(Debug, Default)]
pub(super) struct Deletes {
    partitions: HashMap<i64, HashMap<Key, u64>>,
    count: usize,
}

impl Deletes {
    /// Adds one, if there is room for it.
    fn add(&mut self, partition: i64, key: Key, time: u64) -> Option<()> {
        let keys = self.partitions.entry(partition).or_default();
        let before = keys.len();
        let last = keys.entry(key).or_default();
        *last = time.max(*last);
        self.count += keys.len() - before;
        (self.count <= DELETES_MAX).then_some(())
    }

    /// Whether a row of that key and time was deleted afterwards.
    fn has(&self, partition: i64, key: &Key, time: u64) -> bool {
        let of = |partition| self.partitions.get(&partition).and_then(|keys| keys.get(key)).copied();
        [of(partition), of(ALL_PARTITIONS)].into_iter().flatten().any(|deleted| time < deleted)
    }
}

/// The rows of a segment, counted by whoever writes the index.
#[derive(Debug)]
struct Counted {
    segment: i64,
    said: u64,
    /// Those of binlogs that were read, and binlogs that were not.
    tally: Mutex<(u64, usize)>,
    /// One of its binlogs has more rows than it.
    unfit: AtomicBool,
}

/// A binlog of the field, and those that say which of its rows are there.
#[derive(Debug)]
pub(super) struct Log {
    keys: Uri,
    times: Uri,
    kind: KeyKind,
    partition: i64,
    deletes: Arc<Deletes>,
    rows: Arc<Counted>,
}

fn bad(at: &str, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Parse).at(at).detail(detail.into())
}

/// The binlogs that a manifest names, of the field that is wanted; and rows of segments that are not flushed, which are not there.
pub(super) fn collection(
    engine: &Engine,
    manifest: &Uri,
    (group, column): (u32, Option<&str>),
    progress: &mut Progress<'_>,
) -> Result<(Vec<Wanted>, u64), Error> {
    let at = manifest.to_string();
    if !at.starts_with(SERVER) {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Parse)
            .at(at)
            .detail("a manifest that is not the server's may name anything: it is not followed")
            .remedy("name the collection: milvus://HOST:PORT/COLLECTION"));
    }
    let object = engine.open(manifest)?;
    if object.len() > MANIFEST_MAX {
        return Err(Error::new(ErrorKind::TooLarge, Verb::Parse)
            .at(at)
            .detail(format!("a manifest of {} bytes, and {MANIFEST_MAX} is the most that is read", object.len()))
            .remedy("compact the collection"));
    }
    let stop = AtomicBool::new(false);
    let bytes = bytes_of(&mut Window::new(engine, &object, &stop), Extent { offset: 0, len: object.len() })?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| bad(&at, format!("no manifest of a collection: {error}")))?;
    if manifest.schema != SCHEMA {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Parse)
            .at(at)
            .detail(format!("a manifest of {}", manifest.schema)));
    }
    let field = wanted_field(&manifest.fields, column, &at)?;
    let primary = manifest.fields.iter().find(|field| field.primary);
    let primary = primary.ok_or_else(|| bad(&at, "the collection has no primary key"))?;
    let kind = match primary.kind.as_str() {
        "int64" => KeyKind::Number,
        "varchar" => KeyKind::Text,
        other => return Err(bad(&at, format!("a primary key of type {other}"))),
    };
    let deletes = Arc::new(deletes(engine, &manifest.deletes, progress)?);
    let mut wanted = Vec::new();
    for segment in &manifest.segments {
        let logs = |field: &str| segment.fields.get(field).map(Vec::as_slice).unwrap_or_default();
        let (values, keys, times) = (logs(&field.id.to_string()), logs(&primary.id.to_string()), logs(TIMES));
        if values.len() != keys.len() || values.len() != times.len() || values.is_empty() {
            let detail = format!(
                "segment {} has {} binlogs of field {}, {} of its key and {} of its times",
                segment.id,
                values.len(),
                field.name,
                keys.len(),
                times.len()
            );
            return Err(bad(&at, detail).remedy("an object of it is missing, or it is being written: try again"));
        }
        let tally = Mutex::new((0, values.len()));
        let rows = Arc::new(Counted { segment: segment.id, said: segment.rows, tally, unfit: AtomicBool::new(false) });
        for ((value, keys), times) in values.iter().zip(keys).zip(times) {
            let log = Log {
                keys: keys.uri.parse()?,
                times: times.uri.parse()?,
                kind,
                partition: segment.partition,
                deletes: deletes.clone(),
                rows: rows.clone(),
            };
            let (name, len, version) = (value.uri.clone(), value.len, Version::default());
            let entry = Entry { name, kind: EntryKind::Object, len, version };
            wanted.push(Wanted { uri: value.uri.parse()?, group, entry, what: What::Milvus(Arc::new(log)) });
        }
    }
    Ok((wanted, manifest.not_flushed.rows))
}

/// The field that samples are: the one that is named, or the only vector.
fn wanted_field<'a>(fields: &'a [Field], column: Option<&str>, at: &str) -> Result<&'a Field, Error> {
    let found: Vec<&Field> = fields
        .iter()
        .filter(|field| column.map_or_else(|| field.kind.ends_with("_vector"), |name| name == field.name))
        .collect();
    if let [one] = found[..] {
        return Ok(one);
    }
    let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
    let asked = match column {
        Some(name) => format!("the collection has no field {name:?}"),
        None => format!("the collection has {} fields of vectors", found.len()),
    };
    let wrong = Wrong::Column { asked, columns: names.join(", ") };
    Err(malformed(at, &FormatError { offset: 0, wrong }))
}

/// Reads what was deleted.
fn deletes(engine: &Engine, logs: &[DeleteLog], progress: &mut Progress<'_>) -> Result<Deletes, Error> {
    let mut deletes = Deletes::default();
    let stop = AtomicBool::new(false);
    for log in logs {
        told(progress(Event::Deletes { uri: &log.uri }))?;
        let object = engine.open(&log.uri.parse()?)?;
        each_value(&mut Window::new(engine, &object, &stop), BinlogEvent::Delete, &mut |bytes| {
            let (key, time) = deleted(bytes).ok_or_else(|| bad(&log.uri, "a delete that cannot be read"))?;
            deletes.add(log.partition, key, time).ok_or_else(|| {
                Error::new(ErrorKind::TooLarge, Verb::Parse)
                    .at(log.uri.as_str())
                    .detail(format!("more than {DELETES_MAX} deletes"))
                    .remedy("compact the collection")
            })
        })?;
    }
    Ok(deletes)
}

/// A delete: `{"pk":1,"ts":2,"pkType":5}`, before Milvus 2.1 `1,2`.
fn deleted(bytes: &[u8]) -> Option<(Key, u64)> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Pk {
        Number(i64),
        Text(Box<str>),
    }
    #[derive(Deserialize)]
    struct Line {
        pk: Pk,
        ts: u64,
    }
    if let Ok(Line { pk, ts }) = serde_json::from_slice(bytes) {
        return Some(match pk {
            Pk::Number(number) => (Key::Number(number), ts),
            Pk::Text(text) => (Key::Text(text), ts),
        });
    }
    let (key, time) = std::str::from_utf8(bytes).ok()?.split_once(',')?;
    Some((Key::Number(key.parse().ok()?), time.parse().ok()?))
}

/// All bytes of an extent.
fn bytes_of(window: &mut Window<'_>, extent: Extent) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    window.visit(extent, |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}

/// What the pages of a binlog's payloads hold, in the order of rows.
fn each_run(
    window: &mut Window<'_>,
    event: BinlogEvent,
    each: &mut dyn FnMut(&mut Window<'_>, ColumnCoding, ParquetRows) -> Result<(), Error>,
) -> Result<(), Error> {
    let object = window.object();
    let name = object.name();
    let fail = |error: FormatError| malformed(name, &error);
    let mut payloads: Vec<Payload> = Vec::new();
    window.drive(&mut BinlogScan::new(object.len()).map_err(fail)?, |_, payload| {
        payloads.push(payload);
        Ok(())
    })?;
    for payload in payloads {
        let base = payload.extent.offset;
        let inside = |error: FormatError| fail(FormatError { offset: base + error.offset, wrong: error.wrong });
        if payload.event != event {
            return Err(inside(FormatError { offset: 0, wrong: Wrong::Field { field: "the type of an event" } }));
        }
        let shifted = |extent: Extent| Extent { offset: base + extent.offset, ..extent };
        let mut scan = ParquetScan::new(payload.extent.len, Some(BINLOG_COLUMN)).map_err(inside)?;
        loop {
            while let (Some(coding), Some(found)) = (scan.coding(), scan.next()) {
                let found = match found {
                    ParquetRows::Values { first, rows } => ParquetRows::Values { first: shifted(first), rows },
                    ParquetRows::Block { extent, first_row, rows } => {
                        ParquetRows::Block { extent: shifted(extent), first_row, rows }
                    }
                    missing @ ParquetRows::Missing { .. } => missing,
                };
                each(window, coding, found)?;
            }
            let Some(need) = scan.need() else { break };
            scan.push(window.bytes(shifted(need))?).map_err(inside)?;
        }
    }
    Ok(())
}

/// Shows the values of a binlog to `each`.
fn each_value(
    window: &mut Window<'_>,
    event: BinlogEvent,
    each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let name = window.object().name().to_owned();
    each_run(window, event, &mut |window, coding, found| match found {
        ParquetRows::Values { first, rows } => {
            let len = first.len.checked_mul(rows).ok_or_else(|| bad(&name, "a page that is too long"))?;
            let bytes = bytes_of(window, Extent { len, ..first })?;
            match usize::try_from(first.len) {
                Ok(width) if width > 0 => bytes.chunks_exact(width).try_for_each(&mut *each),
                _ => (0..rows).try_for_each(|_| each(&[])),
            }
        }
        ParquetRows::Missing { .. } => Err(bad(&name, "a key, a time or a delete is missing")),
        ParquetRows::Block { extent, first_row, rows } => {
            let block = bytes_of(window, extent)?;
            let decoded = decode::rows(Format::Milvus, &coding.to_string(), &block, Limits::default());
            let decoded = decoded.map_err(|error| undecodable(&name, extent, &error))?;
            (first_row..first_row.saturating_add(rows)).try_for_each(|row| {
                let value = usize::try_from(row).ok().and_then(|row| decoded.get(row));
                each(value.ok_or_else(|| bad(&name, "a page has fewer rows than it says"))?)
            })
        }
    })
}

/// The rows of a binlog that are there. Returns how many are not, and what decoding takes.
pub(super) fn rows(window: &mut Window<'_>, log: &Log, collect: &mut Collect<'_, '_>) -> Result<(u64, String), Error> {
    let object = window.object();
    let (mut keys, mut times) = (Vec::new(), Vec::new());
    let at = log.keys.to_string();
    let of = window.engine().open(&log.keys)?;
    each_value(&mut window.beside(&of), BinlogEvent::Insert, &mut |bytes| {
        log.rows.room(keys.len(), &at)?;
        keys.push(Key::read(bytes, log.kind).ok_or_else(|| bad(&at, "a primary key that is none"))?);
        Ok(())
    })?;
    let at = log.times.to_string();
    let of = window.engine().open(&log.times)?;
    each_value(&mut window.beside(&of), BinlogEvent::Insert, &mut |bytes| {
        log.rows.room(times.len(), &at)?;
        times.push(bytes.try_into().map(u64::from_le_bytes).map_err(|_| bad(&at, "a time that is none"))?);
        Ok(())
    })?;
    if keys.len() != times.len() {
        return Err(bad(object.name(), format!("{} keys have {} times", keys.len(), times.len())));
    }
    let (mut next, mut deleted, mut coded) = (0, 0, None);
    each_run(window, BinlogEvent::Insert, &mut |_, coding, found| {
        if *coded.get_or_insert(coding) != coding {
            let detail = "its events are coded in different ways";
            return Err(Error::new(ErrorKind::Unsupported, Verb::Parse).at(object.name()).detail(detail));
        }
        let (rows, first) = match found {
            ParquetRows::Values { rows, .. } | ParquetRows::Missing { rows } => (rows, 0),
            ParquetRows::Block { rows, first_row, .. } => (rows, first_row),
        };
        for number in 0..rows {
            let (Some(key), Some(time)) = (keys.get(next), times.get(next)) else {
                return Err(bad(object.name(), format!("it has more rows than keys, {}", keys.len())));
            };
            next += 1;
            if log.deletes.has(log.partition, key, *time) {
                deleted += 1;
                continue;
            }
            let key = key.shown();
            match found {
                ParquetRows::Values { first, .. } => {
                    collect.called(&key, Extent { offset: first.offset + number * first.len, ..first })?;
                }
                ParquetRows::Missing { .. } => collect.called(&key, Extent { offset: 0, len: 0 })?,
                ParquetRows::Block { extent, .. } => collect.item(extent, first + number, &key)?,
            }
        }
        Ok(())
    })?;
    if next != keys.len() {
        return Err(bad(object.name(), format!("it has {next} rows, and {} keys", keys.len())));
    }
    Ok((deleted, coded.map(|coding: ColumnCoding| coding.to_string()).unwrap_or_default()))
}

impl Log {
    /// Counts the rows of this binlog, deleted ones included; with the segment's last, all are to be there. A wrong count is the segment's
    /// fault, and not that of the binlog which is counted last.
    pub fn count(&self, rows: u64, at: &str) -> Result<(), Error> {
        self.rows.count(rows, at)
    }

    /// Whether a binlog of its segment had more rows than the segment: whatever is damaged, the segment is wrong.
    pub fn is_unfit(&self) -> bool {
        self.rows.unfit.load(Ordering::Relaxed)
    }
}

impl Counted {
    fn wrong(&self, seen: u64, at: &str) -> Error {
        let detail = format!("the binlogs of segment {} have {seen} rows, and Milvus says {}", self.segment, self.said);
        bad(at, detail).remedy("it was compacted meanwhile, or binlogs of a flush that failed are there: try again")
    }

    /// Whether one of its binlogs may have a row beside so many.
    fn room(&self, rows: usize, at: &str) -> Result<(), Error> {
        if (rows as u64) < self.said {
            return Ok(());
        }
        self.unfit.store(true, Ordering::Relaxed);
        Err(self.wrong(rows as u64 + 1, at))
    }

    fn count(&self, rows: u64, at: &str) -> Result<(), Error> {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, left) = (tally.0.saturating_add(rows), tally.1.saturating_sub(1));
        *tally = (seen, left);
        if seen > self.said || (left == 0 && seen != self.said) { Err(self.wrong(seen, at)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, ops::ControlFlow};

    use super::*;
    use crate::index::{
        build::{BuildOptions, OnError, collect},
        sources::Sources,
    };

    fn counted(said: u64, logs: usize) -> Counted {
        Counted { segment: 1, said, tally: Mutex::new((0, logs)), unfit: AtomicBool::new(false) }
    }

    #[test]
    fn deletes_are_read_and_the_last_counts() {
        let number = |bytes: &[u8]| deleted(bytes).unwrap();
        assert_eq!(number(br#"{"pk":-7,"ts":18446744073709551615,"pkType":5}"#), (Key::Number(-7), u64::MAX));
        assert_eq!(number(br#"{"pk":"a,b","ts":3,"pkType":21}"#), (Key::Text("a,b".into()), 3));
        assert_eq!(number(b"5,6"), (Key::Number(5), 6));
        for wrong in [&b""[..], b"{}", b"5", b"5,-1", br#"{"pk":1.5,"ts":1}"#, b"\xff,1"] {
            assert_eq!(deleted(wrong), None);
        }
        let mut deletes = Deletes::default();
        for time in [5, 9, 7] {
            deletes.add(1, Key::Number(1), time).unwrap();
        }
        deletes.add(ALL_PARTITIONS, Key::Number(2), 4).unwrap();
        assert_eq!(deletes.count, 2);
        // An upsert's row has the time of its delete.
        let has = |partition, key, time| deletes.has(partition, &Key::Number(key), time);
        assert_eq!(
            [has(1, 1, 8), has(1, 1, 9), has(2, 1, 8), has(2, 2, 3), has(1, 2, 4), has(1, 3, 0)],
            [true, false, false, true, false, false]
        );
    }

    #[test]
    fn rows_are_counted_with_the_last_binlog() {
        let counted = |said| counted(said, 2);
        let good = counted(5);
        assert!(good.count(2, "a").is_ok() && good.count(3, "b").is_ok());
        let wrong = counted(6);
        assert!(wrong.count(2, "a").is_ok());
        assert_eq!(wrong.count(3, "b").unwrap_err().kind(), ErrorKind::BadFormat);
        // Too many are so whatever else there is.
        assert!(counted(1).count(2, "a").is_err());
    }

    /// A binlog of a length that nobody said would be held row by row.
    #[test]
    fn no_more_rows_are_held_than_are_said() {
        let counted = counted(2, 1);
        assert!(counted.room(1, "a").is_ok());
        assert_eq!(counted.room(2, "a").unwrap_err().kind(), ErrorKind::BadFormat);
    }

    /// The keys 3,000 to 4,999 of a segment, which Milvus 2.3.5 wrote, as two binlogs of one segment.
    #[test]
    fn a_segment_that_does_not_fit_ends_whatever_is_said_of_damage() {
        let engine = Engine::builder().gpu(straightway::GpuUse::Off).reactors(1).build().unwrap();
        let name = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/milvus/int64.binlog");
        let uri: Uri = name.parse().unwrap();
        let entry = engine.stat(&uri).unwrap();
        let build = |said| {
            let rows = Arc::new(counted(said, 2));
            let (keys, times, kind) = (uri.clone(), uri.clone(), KeyKind::Number);
            let log = Arc::new(Log { keys, times, kind, partition: 1, deletes: Arc::default(), rows });
            let wanted =
                || Wanted { uri: uri.clone(), group: 0, entry: entry.clone(), what: What::Milvus(log.clone()) };
            let found = Sources { wanted: vec![wanted(), wanted()], ..Sources::default() };
            let options = BuildOptions { on_error: OnError::Skip, ..BuildOptions::new(NonZeroUsize::MIN) };
            let built = collect(&engine, found, (Vec::new(), ""), &options, &mut |_| ControlFlow::Continue(()));
            built.map(|(built, _)| (built.samples, built.damaged))
        };
        assert_eq!(build(4000).unwrap(), (4000, 0));
        for said in [4001, 3999, 1999] {
            assert_eq!(build(said).unwrap_err().kind(), ErrorKind::BadFormat, "{said}");
        }
    }

    #[test]
    fn manifests_are_the_servers_alone() {
        let engine = Engine::builder().gpu(straightway::GpuUse::Off).reactors(1).build().unwrap();
        for from in ["/tmp/collection.milvus.json", "s3://b/collection.milvus.json"] {
            let error =
                collection(&engine, &from.parse().unwrap(), (0, None), &mut |_| ControlFlow::Continue(())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn reading_deletes_can_be_given_up() {
        let engine = Engine::builder().gpu(straightway::GpuUse::Off).reactors(1).build().unwrap();
        let logs = [DeleteLog { partition: 1, uri: "/no-such-folder/1".to_owned() }];
        let error = deletes(&engine, &logs, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(
            deletes(&engine, &logs, &mut |_| ControlFlow::Continue(())).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn the_only_vector_is_meant() {
        let field = |name: &str, kind: &str| Field { id: 1, name: name.into(), kind: kind.into(), primary: false };
        let fields = [field("id", "int64"), field("v", "float_vector"), field("w", "binary_vector")];
        assert_eq!(wanted_field(&fields[..2], None, "a").unwrap().name, "v");
        assert_eq!(wanted_field(&fields, Some("id"), "a").unwrap().name, "id");
        assert!(wanted_field(&fields, None, "a").is_err_and(|error| error.to_string().contains("2 fields of vectors")));
        assert!(wanted_field(&fields, Some("x"), "a").is_err());
    }
}
