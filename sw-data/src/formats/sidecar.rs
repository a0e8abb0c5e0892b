//! Index files that lie beside shards, as NVIDIA DALI's tools and others write them: text, a line a record or sample.
//!
//! Sources: DALI `tools/tfrecord2idx` (DLIO writes the same) and `tools/wds2idx.py`. An index is not believed: it must account for
//! every byte of a TFRecord file, and its extents must lie in the archive.

use std::collections::VecDeque;

use super::tfrecord::{FOOT, HEAD};
use super::{Collector, Extent, Field, FormatError, Record, Sample, Scan, Wrong, line, shown, webdataset};

/// Text that is read at once.
const PIECE: u64 = 64 << 10;
/// Most bytes of a line of a TFRecord index: two numbers of 20 digits.
const RECORD_LINE_MAX: usize = 64;
/// Most bytes of a line of a WebDataset index, which names every field of a sample.
const SAMPLE_LINE_MAX: usize = 1 << 20;
/// Words of a field with a name.
const NAMED_WORDS: usize = 4;

/// Lines of a text, read piece by piece.
#[derive(Debug)]
struct Lines {
    bytes: Collector,
    what: &'static str,
    line_max: usize,
    /// The beginning of a line that goes on in the next piece.
    part: Vec<u8>,
}

impl Lines {
    fn new(file_len: u64, what: &'static str, line_max: usize) -> Result<Self, FormatError> {
        let mut lines = Self { bytes: Collector::new(file_len), what, line_max, part: Vec::new() };
        lines.go_on(0)?;
        Ok(lines)
    }

    fn go_on(&mut self, at: u64) -> Result<(), FormatError> {
        let left = self.bytes.file_len - at;
        self.bytes.want(at, left.min(PIECE), self.what)
    }

    fn is_over(&self) -> bool {
        self.bytes.need().is_none()
    }

    /// Takes bytes of the text, and gives the lines that are complete by them, without their ends. The last one may lack its.
    fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), Wrong>) -> Result<(), FormatError> {
        let Some((offset, piece)) = self.bytes.push(bytes)? else { return Ok(()) };
        let mut at = offset - self.part.len() as u64;
        let mut text = std::mem::take(&mut self.part);
        text.extend_from_slice(&piece);
        self.go_on(offset + piece.len() as u64)?;
        let mut lines = text.split(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if line.len() > self.line_max {
                let (len, max) = (line.len() as u64, self.line_max as u64);
                self.bytes.stop();
                return Err(FormatError { offset: at, wrong: Wrong::TooLong { what: "a line of an index", len, max } });
            }
            let is_last = lines.peek().is_none();
            if is_last && (line.is_empty() || !self.is_over()) {
                self.part = line.to_vec();
                break;
            }
            if let Err(wrong) = each(line.strip_suffix(b"\r").unwrap_or(line)) {
                self.bytes.stop();
                return Err(FormatError { offset: at, wrong });
            }
            at += line.len() as u64 + 1;
        }
        Ok(())
    }
}

/// Reads the index of a TFRecord file: a line `OFFSET LENGTH` for each record, which counts its framing.
///
/// The records must follow each other from the file's first byte to its last. Checksums are not looked at: a
/// [`TfRecordScan`](super::TfRecordScan) does that.
#[derive(Debug)]
pub struct TfRecordIndexScan {
    lines: Lines,
    records_len: u64,
    records: Records,
}

#[derive(Debug, Default)]
struct Records {
    /// Where the next record must begin.
    next: u64,
    number: u64,
    found: VecDeque<Record>,
}

impl TfRecordIndexScan {
    /// Begins at the start of an index of so many bytes, for a TFRecord file of so many.
    ///
    /// # Errors
    /// `Differs` if the index is empty and the file is not.
    pub fn new(file_len: u64, records_len: u64) -> Result<Self, FormatError> {
        let lines = Lines::new(file_len, "the index of a TFRecord file", RECORD_LINE_MAX)?;
        let scan = Self { lines, records_len, records: Records::default() };
        scan.check_end()?;
        Ok(scan)
    }

    /// At the end of the index, the records must be at the end of their file.
    fn check_end(&self) -> Result<(), FormatError> {
        let index = self.records.next;
        if !self.lines.is_over() || index == self.records_len {
            return Ok(());
        }
        let wrong = Wrong::Differs { what: "the length of the TFRecord file", here: self.records_len, index };
        Err(FormatError { offset: self.lines.bytes.file_len, wrong })
    }
}

impl Records {
    fn line(&mut self, text: &[u8], records_len: u64) -> Result<(), Wrong> {
        let unread = || Wrong::Field { field: "a line of the index of a TFRecord file" };
        let space = text.iter().position(|byte| *byte == b' ').ok_or_else(unread)?;
        let (offset, len) = (line::decimal(&text[..space]), line::decimal(&text[space + 1..]));
        let (Some(offset), Some(len)) = (offset, len) else { return Err(unread()) };
        let number = self.number;
        if offset != self.next {
            return Err(Wrong::Differs { what: "the place of a record", here: self.next, index: offset });
        }
        let outside = Wrong::OutOfFile { what: "record", number };
        let payload = len.checked_sub(HEAD + FOOT).ok_or_else(unread)?;
        let Some(end) = offset.checked_add(len).filter(|end| *end <= records_len) else { return Err(outside) };
        self.found.push_back(Record { payload: Extent { offset: offset + HEAD, len: payload } });
        self.next = end;
        self.number += 1;
        Ok(())
    }
}

impl Scan for TfRecordIndexScan {
    type Found = Record;

    fn need(&self) -> Option<Extent> {
        self.lines.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let (records, records_len) = (&mut self.records, self.records_len);
        self.lines.push(bytes, |text| records.line(text, records_len))?;
        self.check_end()
    }

    fn next(&mut self) -> Option<Record> {
        self.records.found.pop_front()
    }
}

/// Reads the index of a WebDataset archive, of DALI's versions `v1.1` and `v1.2`: a line with the version and the number of samples,
/// then a line of `EXTENSION OFFSET LENGTH` for each field of a sample, in `v1.2` with the member's `NAME` behind.
///
/// Words are separated by spaces, so that an archive with spaces in its names has no usable index: its lines are refused, or name
/// other fields. Without names a sample's key is its number.
#[derive(Debug)]
pub struct WdsIndexScan {
    lines: Lines,
    archive_len: u64,
    samples: Samples,
}

#[derive(Debug, Default)]
struct Samples {
    /// Words that a field has, and samples that are to come; `None` until the first line was read.
    shape: Option<(usize, u64)>,
    number: u64,
    found: VecDeque<Sample>,
}

impl WdsIndexScan {
    /// Begins at the start of an index of so many bytes, for an archive of so many.
    ///
    /// # Errors
    /// `Cut` if it is empty.
    pub fn new(file_len: u64, archive_len: u64) -> Result<Self, FormatError> {
        let what = "the index of a WebDataset archive";
        if file_len == 0 {
            return Err(FormatError { offset: 0, wrong: Wrong::Cut { what, missing: 1 } });
        }
        Ok(Self { lines: Lines::new(file_len, what, SAMPLE_LINE_MAX)?, archive_len, samples: Samples::default() })
    }

    /// Whether the lines that were read have names, as those of `v1.2` do: else keys are numbers.
    pub fn has_names(&self) -> bool {
        self.samples.shape.is_some_and(|(words, _)| words == NAMED_WORDS)
    }
}

impl Samples {
    fn line(&mut self, text: &[u8], archive_len: u64) -> Result<(), Wrong> {
        let text = str::from_utf8(text).map_err(|_| unread())?;
        let Some((words, count)) = self.shape else {
            self.shape = Some(shape(text)?);
            return Ok(());
        };
        if self.number == count {
            return Err(Wrong::Differs { what: "the number of samples", here: self.number + 1, index: count });
        }
        let mut sample: Option<Sample> = None;
        let mut rest = text.split(' ');
        while let Some(extension) = rest.next() {
            let (offset, len) = (number(rest.next())?, number(rest.next())?);
            let named = if words == NAMED_WORDS { Some(rest.next().ok_or_else(unread)?) } else { None };
            let key = match named {
                Some(name) => webdataset::split(name).ok_or_else(unread)?.0.to_owned(),
                None => self.number.to_string(),
            };
            let outside = Wrong::OutOfFile { what: "sample", number: self.number };
            offset.checked_add(len).filter(|end| *end <= archive_len).ok_or(outside)?;
            let field = Field { name: extension.to_lowercase(), content: Extent { offset, len } };
            let sample = sample.get_or_insert_with(|| Sample { key: key.clone(), fields: Vec::new() });
            if sample.key != key {
                return Err(unread());
            }
            sample.fields.push(field);
        }
        self.found.push_back(sample.ok_or_else(unread)?);
        self.number += 1;
        Ok(())
    }

    /// At the end of the index all samples must have come.
    fn check_end(&self) -> Result<(), Wrong> {
        let (_, index) = self.shape.ok_or_else(unread)?;
        if self.number == index {
            return Ok(());
        }
        Err(Wrong::Differs { what: "the number of samples", here: self.number, index })
    }
}

fn unread() -> Wrong {
    Wrong::Field { field: "a line of the index of a WebDataset archive" }
}

fn number(word: Option<&str>) -> Result<u64, Wrong> {
    word.and_then(|word| line::decimal(word.as_bytes())).ok_or_else(unread)
}

/// `v1.2 1000`.
fn shape(text: &str) -> Result<(usize, u64), Wrong> {
    let (version, count) = text.split_once(' ').ok_or_else(unread)?;
    let words = match version {
        "v1.1" => 3,
        "v1.2" => NAMED_WORDS,
        _ => {
            let name = shown(version.as_bytes());
            return Err(Wrong::Unsupported { what: "a version of the index of a WebDataset archive", name });
        }
    };
    Ok((words, number(Some(count))?))
}

impl Scan for WdsIndexScan {
    type Found = Sample;

    fn need(&self) -> Option<Extent> {
        self.lines.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let (samples, archive_len) = (&mut self.samples, self.archive_len);
        self.lines.push(bytes, |text| samples.line(text, archive_len))?;
        if self.lines.is_over() {
            let offset = self.lines.bytes.file_len;
            return self.samples.check_end().map_err(|wrong| FormatError { offset, wrong });
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Sample> {
        self.samples.found.pop_front()
    }
}
