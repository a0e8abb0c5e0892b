//! The samples of one object, found by its format's scan, every byte read by the engine.

use std::sync::atomic::{AtomicBool, Ordering};

use straightway::{Buffer, Destination, Engine, Error, ErrorKind, Memory, Object, Uri, Verb};

use crate::{
    decode::{self, DecodeError},
    formats::{
        Extent, FormatError, Grouping, Layout, MdsScan, MdsShard, NpyScan, NpzArray, NpzContent, NpzScan, ParquetRows,
        ParquetScan, Payloads, Sample, Scan, TarScan, TfRecordScan, TokenIndexScan, Wrong, example, feature_bytes,
    },
    samples::{Format, ObjectEntry, Part, version_text},
};

use super::{
    milvus,
    rows::{Found, Rows},
    sidecar::{self, Aside, SideCars},
    sources::{Wanted, What},
};

/// Which checksums an index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Those that cost no reading beyond what finds the samples: TFRecord's own, of its payloads; and of features of TFRecord, which
    /// are read to be found. Samples from a side-car have none.
    Stored,
    /// CRC-32C of every sample. All bytes are read; checksums that a format stores are compared: TFRecord's, and those of npz.
    Computed,
}

/// Samples that are passed on at once.
const CHUNK_ROWS: usize = 4096;
/// Reads are whole multiples of this, at whole multiples of it.
const READ_UNIT: u64 = 4 << 10;
/// Bytes of a read of a scan that jumps, and of one that goes on where the last one ended.
const READ_MIN: u64 = 16 << 10;
const READ_MAX: u64 = 1 << 20;

/// An error of a format as one of the engine's: with the object, and a kind by which callers can tell what to do.
pub(super) fn malformed(at: &str, error: &FormatError) -> Error {
    let kind = match error.wrong {
        Wrong::Cut { .. } | Wrong::Shrank { .. } => ErrorKind::ShortData,
        Wrong::Checksum { .. } => ErrorKind::ChecksumMismatch,
        Wrong::Unsupported { .. } => ErrorKind::Unsupported,
        Wrong::TooLong { .. } => ErrorKind::TooLarge,
        _ => ErrorKind::BadFormat,
    };
    Error::new(kind, Verb::Parse).at(at).detail(error.to_string()).caused_by(error.clone())
}

/// Bytes of an object around the place where a scan is. It reads more at once the more of it is used.
pub(super) struct Window<'a> {
    engine: &'a Engine,
    object: &'a Object,
    stop: &'a AtomicBool,
    buffer: Option<Buffer>,
    /// Where the buffer begins in the object.
    start: u64,
    /// Bytes that the next read has.
    next: u64,
}

impl<'a> Window<'a> {
    pub fn new(engine: &'a Engine, object: &'a Object, stop: &'a AtomicBool) -> Self {
        Self { engine, object, stop, buffer: None, start: 0, next: READ_MIN }
    }

    /// One of another object, that reads by the same engine and stops when this one does.
    pub fn beside<'b>(&self, object: &'b Object) -> Window<'b>
    where
        'a: 'b,
    {
        Window::new(self.engine, object, self.stop)
    }

    pub fn engine(&self) -> &'a Engine {
        self.engine
    }

    pub fn object(&self) -> &'a Object {
        self.object
    }

    fn held(&self, extent: Extent) -> Option<std::ops::Range<usize>> {
        let have = self.buffer.as_ref()?.as_slice().len() as u64;
        let from = extent.offset.checked_sub(self.start).filter(|from| *from < have)?;
        let until = (from + extent.len).min(have);
        Some(usize::try_from(from).ok()?..usize::try_from(until).ok()?)
    }

    /// The bytes of an extent of the object, or a first part of them, at least one.
    pub fn bytes(&mut self, extent: Extent) -> Result<&[u8], Error> {
        if self.held(extent).is_none() {
            self.read(extent)?;
        }
        let held = self.held(extent).ok_or_else(|| self.short(extent))?;
        Ok(self.buffer.as_ref().and_then(|buffer| buffer.as_slice().get(held)).unwrap_or_default())
    }

    fn read(&mut self, extent: Extent) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, Verb::Read).at(self.object.name()));
        }
        let have = self.buffer.as_ref().map_or(0, |buffer| buffer.as_slice().len() as u64);
        let goes_on = extent.offset >= self.start && extent.offset < self.start + have + self.next;
        self.next = if goes_on { (self.next * 2).min(READ_MAX) } else { (self.next / 2).max(READ_MIN) };
        let start = extent.offset / READ_UNIT * READ_UNIT;
        let len = self.next.min(self.object.len().saturating_sub(start));
        if len == 0 || extent.offset >= self.object.len() {
            return Err(self.short(extent));
        }
        let memory = match self.buffer.take() {
            Some(buffer) if buffer.as_slice().len() as u64 == len => buffer.into(),
            _ => self.engine.allocate(Destination::Host, len, 0)?,
        };
        let memory = self.engine.read(self.object, start, memory).wait().ok()?.into_memory();
        let no_slices = |memory: Memory| {
            Error::new(ErrorKind::ApiMisuse, Verb::Read).at(memory.to_string()).detail("host memory without slices")
        };
        self.buffer = memory.map(|memory| memory.into_buffer().map_err(no_slices)).transpose()?;
        self.start = start;
        Ok(())
    }

    fn short(&self, extent: Extent) -> Error {
        Error::new(ErrorKind::ShortData, Verb::Read)
            .at(self.object.name())
            .in_range(extent.offset, extent.len)
            .detail(format!("the object ends before, after {} bytes", self.object.len()))
            .remedy("it was cut or is still being written")
    }

    /// Shows the bytes of an extent to `each`, in order.
    pub fn visit(&mut self, extent: Extent, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut rest = extent;
        while rest.len > 0 {
            let bytes = self.bytes(rest)?;
            each(bytes);
            let done = bytes.len() as u64;
            rest = Extent { offset: rest.offset + done, len: rest.len - done };
        }
        Ok(())
    }

    /// CRC-32C of an extent.
    pub fn crc32c(&mut self, extent: Extent) -> Result<u32, Error> {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        self.visit(extent, |bytes| digest.update(bytes))?;
        Ok(u32::try_from(digest.finalize()).unwrap_or(u32::MAX))
    }

    /// Drives a scan of the object to its end.
    pub fn drive<S: Scan>(
        &mut self,
        scan: &mut S,
        mut each: impl FnMut(&mut Self, S::Found) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let name = self.object.name();
        loop {
            while let Some(found) = scan.next() {
                each(self, found)?;
            }
            // What can be gone over is damage all the same: whoever takes the object wants all of it.
            if let Some(damaged) = scan.damaged() {
                return Err(malformed(name, &damaged.error));
            }
            let Some(need) = scan.need() else { return Ok(()) };
            scan.push(self.bytes(need)?).map_err(|error| malformed(name, &error))?;
        }
    }
}

/// Takes the samples of an object, numbers those that have no name, and passes them on.
pub(super) struct Collect<'a, 'b> {
    rows: Rows,
    number: u64,
    /// Reads samples to sum them.
    sums: Option<Window<'b>>,
    /// The last block that was summed.
    block: Option<(Extent, u32)>,
    pass_on: &'a mut dyn FnMut(Rows) -> Result<(), Error>,
}

impl Collect<'_, '_> {
    fn add(&mut self, found: Found<'_>) -> Result<(), Error> {
        let crc32c = match (&mut self.sums, found.crc32c) {
            (Some(sums), None) => Some(sums.crc32c(found.extent)?),
            (_, known) => known,
        };
        self.number += 1;
        self.rows.add(&Found { crc32c, ..found })?;
        if self.rows.len() >= CHUNK_ROWS { self.send() } else { Ok(()) }
    }

    /// An item of a block. Its checksum is that of the block, which is summed once.
    pub fn item(&mut self, block: Extent, row: u64, key: &str) -> Result<(), Error> {
        let crc32c = match (&mut self.sums, self.block) {
            (None, _) => None,
            (Some(_), Some((known, sum))) if known == block => Some(sum),
            (Some(sums), _) => Some(sums.crc32c(block)?),
        };
        self.block = crc32c.map(|sum| (block, sum));
        let row = u32::try_from(row).map_err(|_| {
            Error::new(ErrorKind::TooLarge, Verb::Parse)
                .in_range(block.offset, block.len)
                .detail(format!("item {row} of one block"))
                .remedy("write smaller row groups")
        })?;
        self.add(Found { extent: block, row: Some(row), crc32c, key, parts: &[] })
    }

    /// An item of a block, whose key is its number.
    fn numbered_item(&mut self, block: Extent, row: u64) -> Result<(), Error> {
        let key = self.number.to_string();
        self.item(block, row, &key)
    }

    /// A sample of that key.
    pub fn called(&mut self, key: &str, extent: Extent) -> Result<(), Error> {
        self.add(Found { extent, row: None, crc32c: None, key, parts: &[] })
    }

    /// Samples so far.
    pub fn count(&self) -> u64 {
        self.number
    }

    /// A sample whose key is its number.
    pub fn numbered(&mut self, extent: Extent, crc32c: Option<u32>) -> Result<(), Error> {
        let key = self.number.to_string();
        self.add(Found { extent, row: None, crc32c, key: &key, parts: &[] })
    }

    fn send(&mut self) -> Result<(), Error> {
        (self.pass_on)(std::mem::take(&mut self.rows))
    }
}

/// What was scanned.
pub(super) struct Scanned {
    pub entry: ObjectEntry,
    /// Members of archives that belong to no sample; rows of a collection that were deleted.
    pub passed: u64,
    /// What came of its side-cars.
    pub aside: Aside,
}

/// How objects are scanned.
#[derive(Clone, Copy, Debug)]
pub(super) struct How<'a> {
    pub checksums: Checksums,
    /// The column of Parquet, the array of npz, the feature of TFRecord.
    pub column: Option<&'a str>,
    pub sidecars: SideCars,
}

impl How<'_> {
    /// Whether side-cars of objects of a format say all that is wanted.
    fn asks_sidecars(&self, format: Format) -> bool {
        let is_told = match format {
            Format::Tar => true,
            // Where a feature lies in its record, only the record tells.
            Format::TfRecord => self.column.is_none(),
            _ => false,
        };
        is_told && self.sidecars == SideCars::Use && self.checksums == Checksums::Stored
    }
}

/// What an index keeps of TFRecord files as their coding: which feature samples are, nothing if they are whole records.
pub(super) fn coding_of_records(column: Option<&str>) -> String {
    column.map(|name| format!("feature:{name}")).unwrap_or_default()
}

/// Finds the samples of an object and passes them on in their order.
///
/// # Errors
/// What opening and reading return; what is wrong with the object; `Changed` if it was written to meanwhile.
pub(super) fn scan(
    engine: &Engine,
    wanted: &Wanted,
    (how, stop): (How<'_>, &AtomicBool),
    pass_on: &mut dyn FnMut(Rows) -> Result<(), Error>,
) -> Result<Scanned, Error> {
    let format = wanted.what.format();
    let uri = wanted.uri.to_string();
    if let (What::File(below), Checksums::Stored) = (&wanted.what, how.checksums) {
        // What the store says is all that an index needs: the file is not opened.
        let entry = ObjectEntry {
            uri,
            len: wanted.entry.len,
            version: version_text(wanted.entry.version),
            format,
            coding: String::new(),
        };
        let mut collect = Collect { rows: Rows::default(), number: 0, sums: None, block: None, pass_on };
        file(below, entry.len, &mut collect)?;
        collect.send()?;
        return Ok(Scanned { entry, passed: 0, aside: Aside::Nothing });
    }
    let object = engine.open(&wanted.uri)?;
    let sums = (how.checksums == Checksums::Computed).then(|| Window::new(engine, &object, stop));
    let mut collect = Collect { rows: Rows::default(), number: 0, sums, block: None, pass_on };
    let mut window = Window::new(engine, &object, stop);
    let aside = match how.asks_sidecars(format) {
        true => sidecar::samples(&mut window, (&wanted.uri, format), &mut collect)?,
        false => Aside::Nothing,
    };
    let (passed, coding) = match &aside {
        Aside::Used(used) => (used.passed, String::new()),
        _ => walk(&mut window, wanted, how, &mut collect)?,
    };
    collect.send()?;
    object.check_unchanged()?;
    let entry = ObjectEntry { uri, len: object.len(), version: version_text(object.version()), format, coding };
    Ok(Scanned { entry, passed, aside })
}

/// Finds samples in the object itself. Returns members that belong to none, and what decoding takes.
fn walk(
    window: &mut Window<'_>,
    wanted: &Wanted,
    how: How<'_>,
    collect: &mut Collect<'_, '_>,
) -> Result<(u64, String), Error> {
    let object = window.object;
    let (mut passed, mut coding) = (0, String::new());
    match &wanted.what {
        What::File(below) => file(below, object.len(), collect)?,
        What::Alone(Format::Tar) => passed = tar(window, collect)?,
        What::Alone(Format::TfRecord) => {
            coding = coding_of_records(how.column);
            match how.column {
                Some(name) => features(window, name, collect)?,
                None => records(window, how.checksums, collect)?,
            }
        }
        What::Alone(Format::Npy) => array(window, collect)?,
        What::Alone(Format::Npz) => passed = arrays(window, how.column, collect)?,
        What::Alone(Format::Parquet) => coding = rows_of_parquet(window, how.column, collect)?,
        What::Mds(shard) if shard.compression.is_some() => compressed_mds(object, shard, collect)?,
        What::Mds(shard) => shard_of_mds(window, shard, collect)?,
        What::Milvus(log) => (passed, coding) = milvus::rows(window, log, collect)?,
        What::Tokens(index) => documents(window, index, collect)?,
        What::Alone(format) => {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Parse)
                .at(wanted.uri.to_string())
                .detail(format!("samples of {format} files cannot be indexed"))
                .remedy("leave the file out, or give its format: --format raw takes each file for a sample"));
        }
    }
    Ok((passed, coding))
}

/// A file is one sample. Its key is its path up to the first dot of the base name, as in an archive; what follows names its part.
fn file(below: &str, len: u64, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let base = below.rfind('/').map_or(0, |slash| slash + 1);
    let dot = below[base..].find('.').filter(|dot| *dot > 0).map(|dot| base + dot);
    let (key, name) = dot.map_or((below, ""), |dot| (&below[..dot], &below[dot + 1..]));
    let extent = Extent { offset: 0, len };
    let part = [Part { name: name.to_lowercase(), extent }];
    let parts = if name.is_empty() { &[][..] } else { &part };
    collect.add(Found { extent, row: None, crc32c: None, key, parts })
}

/// Members that follow each other and have one key. The extent is from the first byte of the first to the last of the last.
fn tar(window: &mut Window<'_>, collect: &mut Collect<'_, '_>) -> Result<u64, Error> {
    let object = window.object;
    let fail = |error: FormatError| malformed(object.name(), &error);
    let mut scan = TarScan::new(object.len()).map_err(fail)?;
    let mut grouping = Grouping::default();
    window.drive(&mut scan, |_, member| match grouping.add(&member).map_err(fail)? {
        Some(sample) => grouped(&sample, collect),
        None => Ok(()),
    })?;
    if let Some(sample) = grouping.finish() {
        grouped(&sample, collect)?;
    }
    Ok(grouping.skipped() + scan.passed())
}

pub(super) fn grouped(sample: &Sample, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let start = sample.fields.iter().map(|field| field.content.offset).min().unwrap_or(0);
    let end = sample.fields.iter().map(|field| field.content.offset + field.content.len).max().unwrap_or(start);
    let part = |field: &crate::formats::Field| {
        let extent = Extent { offset: field.content.offset - start, len: field.content.len };
        Part { name: field.name.clone(), extent }
    };
    let parts: Vec<Part> = sample.fields.iter().map(part).collect();
    let extent = Extent { offset: start, len: end - start };
    collect.add(Found { extent, row: None, crc32c: None, key: &sample.key, parts: &parts })
}

/// Payloads, with the checksums that stand behind them.
fn records(window: &mut Window<'_>, checksums: Checksums, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let payloads = match checksums {
        Checksums::Stored => Payloads::GoOver,
        Checksums::Computed => Payloads::Check,
    };
    let object = window.object;
    let scan = TfRecordScan::new(object.len(), payloads);
    let mut scan = scan.map_err(|error| malformed(object.name(), &error))?;
    window.drive(&mut scan, |window, record| {
        let payload = record.payload;
        let mut stored = Vec::with_capacity(4);
        window
            .visit(Extent { offset: payload.offset + payload.len, len: 4 }, |bytes| stored.extend_from_slice(bytes))?;
        let masked = stored.first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
        // TensorFlow `hash/crc32c.h`: rotated by 15 bits and a constant added.
        let crc32c = masked.map(|masked| masked.wrapping_sub(0xa282_ead8).rotate_left(15));
        collect.numbered(payload, crc32c)
    })
}

/// One byte string of the `tf.train.Example` in each record. Where it lies only the record says: all bytes are read, what TFRecord
/// stores of them is compared, and the checksum of the feature comes with it.
fn features(window: &mut Window<'_>, name: &str, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let object = window.object;
    let fail = |error: FormatError| malformed(object.name(), &error);
    let mut scan = TfRecordScan::new(object.len(), Payloads::GoOver).map_err(fail)?;
    let mut body = Vec::new();
    window.drive(&mut scan, |window, record| {
        let max = decode::Limits::default().bytes;
        if record.payload.len > max {
            let wrong = Wrong::TooLong { what: "a tf.train.Example", len: record.payload.len, max };
            return Err(fail(FormatError { offset: record.payload.offset, wrong }));
        }
        body.clear();
        window.visit(record.body(), |bytes| body.extend_from_slice(bytes))?;
        let payload = record.check_body(&body).map_err(fail)?;
        let inside =
            |error: FormatError| fail(FormatError { offset: record.payload.offset + error.offset, wrong: error.wrong });
        let number = collect.number;
        let Some(found) = feature_bytes(payload, name).map_err(inside)? else {
            let features = example(payload).map_err(inside)?;
            let names: Vec<&str> = features.iter().map(|feature| feature.name).take(NAMED_MAX).collect();
            return Err(Error::new(ErrorKind::NotFound, Verb::Parse)
                .at(object.name())
                .detail(format!("record {number} has no feature {name}"))
                .remedy(format!("name one of: {}", names.join(", "))));
        };
        let bytes = usize::try_from(found.offset)
            .ok()
            .and_then(|from| payload.get(from..)?.get(..usize::try_from(found.len).ok()?));
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes.unwrap_or_default());
        let extent = Extent { offset: record.payload.offset + found.offset, len: found.len };
        collect.numbered(extent, u32::try_from(sum).ok())
    })
}

/// Items along the first axis.
fn array(window: &mut Window<'_>, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let object = window.object;
    let scan = NpyScan::new(object.len());
    let mut scan = scan.map_err(|error| malformed(object.name(), &error))?;
    window.drive(&mut scan, |_, array| {
        let unsupported = |detail: &'static str| {
            let error = Error::new(ErrorKind::Unsupported, Verb::Parse).at(object.name()).detail(detail);
            Err(error.remedy("save it with np.ascontiguousarray, the first axis being that of the samples"))
        };
        let Some(items) = array.shape.first().copied() else { return unsupported("a scalar has no items") };
        if array.layout == Layout::ColumnMajor && array.shape.len() > 1 {
            return unsupported("the items of an array in Fortran's order are not one run of bytes each");
        }
        let len = array.content.len.checked_div(items).unwrap_or(0);
        (0..items)
            .try_for_each(|item| collect.numbered(Extent { offset: array.content.offset + item * len, len }, None))
    })
}

/// Arrays of an archive, or the one of that name: as they lie there, or as the one item of their member.
fn arrays(window: &mut Window<'_>, column: Option<&str>, collect: &mut Collect<'_, '_>) -> Result<u64, Error> {
    let object = window.object;
    let mut scan = NpzScan::new(object.len()).map_err(|error| malformed(object.name(), &error))?;
    let (mut others, mut is_there) = (Vec::new(), column.is_none());
    window.drive(&mut scan, |_, array| {
        if column.is_some_and(|column| column != array.name) {
            if others.len() < NAMED_MAX {
                others.push(array.name);
            }
            return Ok(());
        }
        is_there = true;
        if let Some(sums) = &mut collect.sums {
            whole_array(object.name(), sums, &array)?;
        }
        let (extent, row) = match &array.content {
            NpzContent::Stored(stored) => (stored.content, None),
            NpzContent::Deflated(_) => (array.block, Some(0)),
        };
        collect.add(Found { extent, row, crc32c: None, key: &array.name, parts: &[] })
    })?;
    match column {
        Some(column) if !is_there => Err(Error::new(ErrorKind::NotFound, Verb::Parse)
            .at(object.name())
            .detail(format!("there is no array {column}"))
            .remedy(format!("name one of: {}", others.join(", ")))),
        _ => Ok(scan.passed()),
    }
}

/// Names of an archive that an error lists at most.
const NAMED_MAX: usize = 20;

/// Holds an array's member against the CRC-32 that the archive has of it.
fn whole_array(name: &str, sums: &mut Window<'_>, array: &NpzArray) -> Result<(), Error> {
    if let NpzContent::Deflated(_) = array.content {
        let mut block = Vec::new();
        sums.visit(array.block, |bytes| block.extend_from_slice(bytes))?;
        let decoded = decode::rows(Format::Npz, "", &block, decode::Limits::default());
        return decoded.map(drop).map_err(|error| undecodable(name, array.block, &error));
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc);
    sums.visit(array.member, |bytes| digest.update(bytes))?;
    let computed = u32::try_from(digest.finalize()).unwrap_or(u32::MAX);
    if computed == array.crc32 {
        return Ok(());
    }
    let wrong = Wrong::Checksum { what: "a member of an npz archive", stored: array.crc32, computed };
    Err(malformed(name, &FormatError { offset: array.member.offset, wrong }))
}

/// An error of decoding a block of an object as one of the engine's.
pub(super) fn undecodable(name: &str, block: Extent, error: &DecodeError) -> Error {
    let kind = match error {
        DecodeError::Checksum { .. } => ErrorKind::ChecksumMismatch,
        DecodeError::TooLong { .. } => ErrorKind::TooLarge,
        DecodeError::Unsupported { .. } => ErrorKind::Unsupported,
        _ => ErrorKind::BadFormat,
    };
    Error::new(kind, Verb::Parse).at(name).detail(error.to_string()).in_range(block.offset, block.len)
}

/// Values of a column: as they lie there, or items of pages. Returns what decoding them takes.
fn rows_of_parquet(
    window: &mut Window<'_>,
    column: Option<&str>,
    collect: &mut Collect<'_, '_>,
) -> Result<String, Error> {
    let object = window.object;
    let scan = ParquetScan::new(object.len(), column);
    let mut scan = scan.map_err(|error| malformed(object.name(), &error))?;
    window.drive(&mut scan, |_, rows| match rows {
        ParquetRows::Values { first, rows } => (0..rows).try_for_each(|row| {
            collect.numbered(Extent { offset: first.offset + row * first.len, len: first.len }, None)
        }),
        ParquetRows::Missing { rows } => {
            (0..rows).try_for_each(|_| collect.numbered(Extent { offset: 0, len: 0 }, None))
        }
        ParquetRows::Block { extent, first_row, rows } => {
            (first_row..first_row.saturating_add(rows)).try_for_each(|row| collect.numbered_item(extent, row))
        }
    })?;
    Ok(scan.coding().map(|coding| coding.to_string()).unwrap_or_default())
}

/// The file of an MDS shard has the length that the index says.
fn check_shard_len(object: &Object, shard: &MdsShard) -> Result<(), Error> {
    if object.len() == shard.len {
        return Ok(());
    }
    let wrong = Wrong::Differs { what: "the length of a shard", here: object.len(), index: shard.len };
    Err(malformed(object.name(), &FormatError { offset: 0, wrong }))
}

/// A compressed shard: all of it is the block that its samples are items of.
fn compressed_mds(object: &Object, shard: &MdsShard, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    check_shard_len(object, shard)?;
    (0..shard.samples).try_for_each(|row| collect.numbered_item(Extent { offset: 0, len: object.len() }, row))
}

/// Samples of an MDS shard with their columns as parts.
fn shard_of_mds(window: &mut Window<'_>, shard: &MdsShard, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let object = window.object;
    let fail = |error: FormatError| malformed(object.name(), &error);
    check_shard_len(object, shard)?;
    let mut scan = MdsScan::new(object.len(), shard.samples).map_err(fail)?;
    // Samples lie elsewhere than their places: a window of its own.
    let mut heads = Window::new(window.engine, object, window.stop);
    window.drive(&mut scan, |_, sample| {
        let mut head = Vec::new();
        let len = shard.head_len().min(sample.len);
        heads.visit(Extent { len, ..sample }, |bytes| head.extend_from_slice(bytes))?;
        let columns = shard.columns_of(sample, &head).map_err(fail)?;
        let part = |(column, extent): (&crate::formats::Column, Extent)| {
            let extent = Extent { offset: extent.offset - sample.offset, ..extent };
            Part { name: column.name.clone(), extent }
        };
        let parts: Vec<Part> = shard.columns.iter().zip(columns).map(part).collect();
        let key = collect.number.to_string();
        collect.add(Found { extent: sample, row: None, crc32c: None, key: &key, parts: &parts })
    })
}

/// Documents of token data: sequences between the bounds that its index names.
fn documents(window: &mut Window<'_>, index: &Uri, collect: &mut Collect<'_, '_>) -> Result<(), Error> {
    let data = window.object;
    let index = window.engine.open(index)?;
    let fail = |error: FormatError| malformed(index.name(), &error);
    let mut scan = TokenIndexScan::new(index.len(), data.len()).map_err(fail)?;
    let mut sequences = Window::new(window.engine, &index, window.stop);
    let mut bounds = Window::new(window.engine, &index, window.stop);
    let mut document = Document::default();
    // The head must be read before the bounds can be.
    while scan.shape().is_none() {
        let Some(need) = scan.need() else { break };
        scan.push(sequences.bytes(need)?).map_err(fail)?;
    }
    let at = scan.documents_at().unwrap_or(Extent { offset: 0, len: 0 });
    let mut next = Bounds { rest: at, bounds: &mut bounds };
    let wrong = |offset| {
        fail(FormatError { offset, wrong: Wrong::Field { field: "the bounds of documents in a token index" } })
    };
    // The first bound is the first sequence.
    if next.take()?.is_some_and(|first| first != 0) {
        return Err(wrong(at.offset));
    }
    let mut end = next.take()?;
    let mut number = 0u64;
    sequences.drive(&mut scan, |_, sequence| {
        while let Some(bound) = end.filter(|bound| *bound <= number) {
            if bound < number {
                return Err(wrong(next.rest.offset));
            }
            collect.numbered(document.take(), None)?;
            end = next.take()?;
        }
        number += 1;
        if end.is_some() && !document.add(sequence) {
            return Err(fail(FormatError {
                offset: 0,
                wrong: Wrong::Unsupported { what: "a document in pieces", name: format!("sequence {}", number - 1) },
            }));
        }
        Ok(())
    })?;
    while let Some(bound) = end {
        if bound != number {
            return Err(wrong(next.rest.offset));
        }
        collect.numbered(document.take(), None)?;
        end = next.take()?;
    }
    index.check_unchanged()
}

/// Sequences that follow each other.
#[derive(Default)]
struct Document(Option<Extent>);

impl Document {
    fn add(&mut self, sequence: Extent) -> bool {
        match &mut self.0 {
            None => self.0 = Some(sequence),
            Some(extent) if extent.offset + extent.len == sequence.offset => extent.len += sequence.len,
            Some(_) => return false,
        }
        true
    }

    fn take(&mut self) -> Extent {
        self.0.take().unwrap_or(Extent { offset: 0, len: 0 })
    }
}

/// Numbers of sequences, 8 bytes each.
struct Bounds<'a, 'b> {
    rest: Extent,
    bounds: &'a mut Window<'b>,
}

impl Bounds<'_, '_> {
    fn take(&mut self) -> Result<Option<u64>, Error> {
        if self.rest.len < 8 {
            return Ok(None);
        }
        let mut word = Vec::with_capacity(8);
        self.bounds.visit(Extent { len: 8, ..self.rest }, |bytes| word.extend_from_slice(bytes))?;
        self.rest = Extent { offset: self.rest.offset + 8, len: self.rest.len - 8 };
        Ok(word.first_chunk::<8>().map(|word| u64::from_le_bytes(*word)))
    }
}
