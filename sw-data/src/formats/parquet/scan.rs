//! The walk over a Parquet file.

use std::collections::VecDeque;

use super::footer::{self, Chunk, Footer};
use super::page::{self, PLAIN, PageHeader, PageKind};
use super::{Codec, ColumnCoding, Physical};
use crate::formats::{Collector, Extent, FormatError, Scan, Wrong};

const MAGIC: &[u8; 4] = b"PAR1";
/// The footer's length, and the magic behind it.
const FOOT: u64 = 8;
/// Bytes of the end of a file that are read first: most footers are shorter.
const TAIL: u64 = 64 << 10;
/// Most bytes of a footer. One of a thousand columns in a thousand row groups has about 100 MB.
const FOOTER_MAX: u64 = 256 << 20;
/// Bytes that are read for the head of a page at first, and at most: statistics in it may be long.
const HEAD_FIRST: u64 = 256;
const HEAD_MAX: u64 = 1 << 20;
/// Most bytes of levels, and most runs of them, of a page whose values are found one by one.
const LEVELS_MAX: u64 = 1 << 20;
const RUNS_MAX: usize = 16 << 10;
/// Bytes of a page of byte strings that are read at once to find their lengths.
const WINDOW: u64 = 64 << 10;
/// A string of more bytes is jumped over: then only the next length is read.
const JUMP: u64 = 32 << 10;

/// Rows of the column, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParquetRows {
    /// Rows whose values lie in the file as they are, end to end.
    Values {
        /// The first value.
        first: Extent,
        /// How many values, and so rows, there are.
        rows: u64,
    },
    /// Rows without a value.
    Missing {
        /// How many.
        rows: u64,
    },
    /// Rows that must be decoded from a block.
    Block {
        /// Pages, heads included.
        extent: Extent,
        /// The number of the first of these rows in what the block decodes to.
        first_row: u64,
        /// How many.
        rows: u64,
    },
}

/// Walks a file. What its rows are coded with is known once the footer was read.
#[derive(Debug)]
pub struct ParquetScan {
    bytes: Collector,
    column: Option<String>,
    coding: Option<ColumnCoding>,
    chunks: VecDeque<Chunk>,
    at: At,
    found: VecDeque<ParquetRows>,
}

/// What is being read.
#[derive(Debug)]
enum At {
    Tail,
    /// The footer, of which the file's end was too short a part.
    Footer,
    /// The head of a page.
    Head(Pages, u64),
    /// The levels of a page.
    Levels(Pages, Page),
    /// Lengths of byte strings.
    Strings(Pages, Strings),
    Over,
}

/// How far the walk through a chunk is.
#[derive(Debug)]
struct Pages {
    chunk: Chunk,
    /// Where the next head is.
    next: u64,
    /// Values of the pages before it: of a column that is not repeated, rows.
    values: u64,
    /// Whether the chunk began with a dictionary.
    has_dictionary: bool,
    /// Pages from the start of the chunk that are to be one block, and rows in them that were not told yet.
    block: Option<(Extent, u64)>,
}

/// A page whose values lie in the file as they are.
#[derive(Debug)]
struct Page {
    /// With its head.
    whole: Extent,
    values: u64,
    /// Its levels.
    levels: Extent,
    /// Whether four bytes with their length stand before the levels.
    is_v1: bool,
    /// Where it ends.
    end: u64,
}

/// Where the walk through the byte strings of a page is.
#[derive(Debug)]
struct Strings {
    page_end: u64,
    runs: VecDeque<(bool, u64)>,
    /// Where the next length is.
    next: u64,
}

impl ParquetScan {
    /// Begins with a file of so many bytes. `column` is the path of the column that samples are, names separated by dots, as
    /// `image.bytes`. Without one, it is the only column of byte strings that are no text, or the only one of text.
    ///
    /// # Errors
    /// `Cut` if the file is too short.
    pub fn new(file_len: u64, column: Option<&str>) -> Result<Self, FormatError> {
        let mut bytes = Collector::new(file_len);
        let least = FOOT + MAGIC.len() as u64;
        if file_len < least {
            let wrong = Wrong::Cut { what: "a Parquet file", missing: least - file_len };
            return Err(FormatError { offset: 0, wrong });
        }
        let tail = file_len.min(TAIL);
        bytes.want(file_len - tail, tail, "the end of a Parquet file")?;
        let column = column.map(str::to_owned);
        Ok(Self { bytes, column, coding: None, chunks: VecDeque::new(), at: At::Tail, found: VecDeque::new() })
    }

    /// How the column is coded, once the footer was read.
    pub fn coding(&self) -> Option<ColumnCoding> {
        self.coding
    }

    fn tail(&mut self, offset: u64, tail: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset: self.bytes.file_len - FOOT, wrong };
        let Some((rest, [a, b, c, d, magic @ ..])) = tail.split_last_chunk::<8>() else {
            return Err(fail(Wrong::Field { field: "the end of a Parquet file" }));
        };
        match magic {
            b"PAR1" => {}
            b"PARE" => {
                let name = "its footer".to_owned();
                return Err(fail(Wrong::Unsupported { what: "an encrypted Parquet file", name }));
            }
            _ => return Err(fail(Wrong::Field { field: "the magic bytes at the end of a Parquet file" })),
        }
        let len = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
        if len > FOOTER_MAX {
            return Err(fail(Wrong::TooLong { what: "the footer of a Parquet file", len, max: FOOTER_MAX }));
        }
        let room = self.bytes.file_len - FOOT - MAGIC.len() as u64;
        let start = match (len <= room).then(|| self.bytes.file_len - FOOT - len) {
            Some(start) => start,
            None => return Err(fail(Wrong::Cut { what: "the footer of a Parquet file", missing: len - room })),
        };
        if start < offset {
            self.at = At::Footer;
            return self.bytes.want(start, len, "the footer of a Parquet file");
        }
        let from = usize::try_from(start - offset).unwrap_or(usize::MAX).min(rest.len());
        self.footer(start, &rest[from..])
    }

    fn footer(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let Footer { coding, chunks } = footer::read(offset, bytes, self.column.as_deref())?;
        self.coding = Some(coding);
        self.chunks = chunks.into();
        self.go_on()
    }

    fn is_repeated(&self) -> bool {
        self.coding.is_some_and(|coding| coding.repetition > 0)
    }

    /// Begins with the next chunk.
    fn go_on(&mut self) -> Result<(), FormatError> {
        self.at = At::Over;
        if let Some(chunk) = self.chunks.pop_front() {
            // A row of a repeated column has a value or a missing one at least.
            let fits = if self.is_repeated() { chunk.values >= chunk.rows } else { chunk.values == chunk.rows };
            if !fits {
                let wrong = Wrong::Differs {
                    what: "the number of values of a column chunk",
                    here: chunk.values,
                    index: chunk.rows,
                };
                return Err(FormatError { offset: chunk.extent.offset, wrong });
            }
            let pages = Pages { chunk, next: chunk.extent.offset, values: 0, has_dictionary: false, block: None };
            return self.next_page(pages);
        }
        Ok(())
    }

    /// Asks for the next head, or ends the chunk.
    fn next_page(&mut self, pages: Pages) -> Result<(), FormatError> {
        let Pages { chunk, next, values, .. } = pages;
        // Some writers count bytes of the chunk that are no pages; its values say when it is over.
        if values < chunk.values {
            return self.head_of(pages, HEAD_FIRST);
        }
        if values > chunk.values {
            return Err(other_count(&pages));
        }
        if self.is_repeated() {
            // Rows may go on from page to page.
            self.block(Extent { len: next - chunk.extent.offset, ..chunk.extent }, 0, chunk.rows);
        }
        if let Some((extent, rows)) = pages.block {
            self.block(extent, 0, rows);
        }
        self.go_on()
    }

    fn block(&mut self, extent: Extent, first_row: u64, rows: u64) {
        if rows > 0 {
            self.found.push_back(ParquetRows::Block { extent, first_row, rows });
        }
    }

    fn head_of(&mut self, pages: Pages, most: u64) -> Result<(), FormatError> {
        let left = pages.chunk.extent.offset + pages.chunk.extent.len - pages.next;
        if left == 0 {
            return Err(other_count(&pages));
        }
        self.bytes.want(pages.next, left.min(most), "the head of a page")?;
        self.at = At::Head(pages, most);
        Ok(())
    }

    fn head(&mut self, pages: Pages, most: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let offset = pages.next;
        let fail = |wrong| FormatError { offset, wrong };
        let unread = || fail(Wrong::Field { field: "the head of a page" });
        let Some(header) = PageHeader::read(bytes).map_err(|_| unread())? else {
            if most == HEAD_MAX || (bytes.len() as u64) < most {
                return Err(unread());
            }
            return self.head_of(pages, (4 * most).min(HEAD_MAX));
        };
        let len = header.head_len as u64 + u64::from(header.stored_len);
        let end = offset + len;
        let chunk_end = pages.chunk.extent.offset + pages.chunk.extent.len;
        if end > chunk_end {
            return Err(fail(Wrong::Cut { what: "a page of a column chunk", missing: end - chunk_end }));
        }
        self.page(pages, header, Extent { offset, len })
    }

    /// Decides how the rows of a page are told.
    fn page(&mut self, mut pages: Pages, header: PageHeader, whole: Extent) -> Result<(), FormatError> {
        let start = pages.chunk.extent.offset;
        pages.next = whole.offset + whole.len;
        if let PageKind::Dictionary { .. } = header.kind {
            pages.has_dictionary = true;
        }
        let values = u64::from(header.values());
        if header.values() > page::VALUES_MAX {
            let wrong = Wrong::TooMany { what: "the values of a page", max: page::VALUES_MAX.into() };
            return Err(FormatError { offset: whole.offset, wrong });
        }
        pages.values += values;
        if values == 0 || self.is_repeated() {
            return self.next_page(pages);
        }
        if header.needs_dictionary() {
            if !pages.has_dictionary {
                let wrong = Wrong::Field { field: "the dictionary of a column chunk" };
                return Err(FormatError { offset: whole.offset, wrong });
            }
            // From the dictionary on: what lies between is decoded too, and gone over.
            let rows = pages.block.take().map_or(0, |(_, rows)| rows);
            let extent = Extent { offset: start, len: pages.next - start };
            let is_contiguous = rows + values == pages.values;
            if is_contiguous {
                pages.block = Some((extent, pages.values));
            } else {
                self.block(extent, pages.values - values, values);
            }
            return self.next_page(pages);
        }
        // Rows are told in order: those of the block at the start come first.
        if let Some((extent, rows)) = pages.block.take() {
            self.block(extent, 0, rows);
        }
        match self.in_place(&header, whole) {
            Some(page) => self.levels_of(pages, page),
            None => {
                self.block(whole, 0, values);
                self.next_page(pages)
            }
        }
    }

    /// A page whose values can be read where they lie.
    fn in_place(&self, header: &PageHeader, whole: Extent) -> Option<Page> {
        let coding = self.coding?;
        let (end, start) = (whole.offset + whole.len, whole.offset + header.head_len as u64);
        let stored = u64::from(header.stored_len);
        let page = |values: u32, levels_len: u64, is_v1| {
            let levels = Extent { offset: start, len: levels_len };
            Some(Page { whole, values: values.into(), levels, is_v1, end })
        };
        let has_levels = coding.definition > 0;
        let is_plain = coding.codec == Codec::Plain && coding.physical != Physical::Boolean;
        match header.kind {
            PageKind::V1 { values, encoding: PLAIN, levels: [page::RLE, _] } if is_plain => {
                // How long the levels are stands before them: read with the first of them.
                page(values, if has_levels { stored.min(HEAD_FIRST) } else { 0 }, true)
            }
            PageKind::V2 { values, encoding: PLAIN, definition_len, repetition_len: 0, is_compressed, .. } => {
                let is_plain = is_plain || (!is_compressed && coding.physical != Physical::Boolean);
                let len = u64::from(definition_len);
                let fits = len <= stored.min(LEVELS_MAX) && has_levels == (len > 0);
                if is_plain && fits { page(values, len, false) } else { None }
            }
            _ => None,
        }
    }

    fn levels_of(&mut self, pages: Pages, page: Page) -> Result<(), FormatError> {
        if page.levels.len == 0 {
            let runs = [(true, page.values)].into();
            return self.values(pages, &page, page.levels.offset, runs);
        }
        self.bytes.want(page.levels.offset, page.levels.len, "the levels of a page")?;
        self.at = At::Levels(pages, page);
        Ok(())
    }

    fn levels(&mut self, pages: Pages, mut page: Page, bytes: &[u8]) -> Result<(), FormatError> {
        let mut levels = bytes;
        let mut behind = page.levels.offset + page.levels.len;
        if page.is_v1 {
            let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return self.as_block(pages, &page) };
            let len = u64::from(u32::from_le_bytes(*len));
            behind = page.levels.offset + 4 + len;
            if behind > page.end || len > LEVELS_MAX {
                return self.as_block(pages, &page);
            }
            let Some(own) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
                page.levels.len = 4 + len;
                return self.levels_of(pages, page);
            };
            levels = own;
        }
        let definition = self.coding.map_or(0, |coding| coding.definition);
        match page::presence(levels, definition, page.values, RUNS_MAX) {
            Some(runs) => self.values(pages, &page, behind, runs.into()),
            None => self.as_block(pages, &page),
        }
    }

    /// Gives a page to the decoder after all, who says what is wrong with it if something is.
    fn as_block(&mut self, pages: Pages, page: &Page) -> Result<(), FormatError> {
        self.block(page.whole, 0, page.values);
        self.next_page(pages)
    }

    fn values(
        &mut self,
        pages: Pages,
        page: &Page,
        mut at: u64,
        runs: VecDeque<(bool, u64)>,
    ) -> Result<(), FormatError> {
        let Some(len) = self.coding.and_then(|coding| coding.physical.plain_len()) else {
            return self.strings(pages, Strings { page_end: page.end, runs, next: at }, &[]);
        };
        let count: u64 = runs.iter().filter(|(is_there, _)| *is_there).map(|(_, count)| count).sum();
        if count.checked_mul(len).and_then(|sum| at.checked_add(sum)) != Some(page.end) {
            return Err(FormatError { offset: at, wrong: Wrong::Field { field: "the values of a page" } });
        }
        for (is_there, rows) in runs {
            if is_there {
                self.found.push_back(ParquetRows::Values { first: Extent { offset: at, len }, rows });
                at += rows * len;
            } else {
                self.found.push_back(ParquetRows::Missing { rows });
            }
        }
        self.next_page(pages)
    }

    /// Finds byte strings in `window`, which begins at the next length, and asks for more.
    fn strings(&mut self, pages: Pages, mut strings: Strings, window: &[u8]) -> Result<(), FormatError> {
        let start = strings.next;
        let mut last = 0;
        while let Some((is_there, left)) = strings.runs.front_mut() {
            if !*is_there {
                self.found.push_back(ParquetRows::Missing { rows: *left });
                strings.runs.pop_front();
                continue;
            }
            let head = usize::try_from(strings.next - start).ok().and_then(|at| window.get(at..)?.first_chunk::<4>());
            let Some(head) = head else { break };
            let first = Extent { offset: strings.next + 4, len: u32::from_le_bytes(*head).into() };
            let end = first.offset + first.len;
            if end > strings.page_end {
                let wrong = Wrong::Cut { what: "a value of a page", missing: end - strings.page_end };
                return Err(FormatError { offset: strings.next, wrong });
            }
            self.found.push_back(ParquetRows::Values { first, rows: 1 });
            (strings.next, last) = (end, first.len);
            *left -= 1;
            if *left == 0 {
                strings.runs.pop_front();
            }
        }
        let rest = strings.page_end - strings.next;
        if strings.runs.is_empty() {
            return match rest {
                0 => self.next_page(pages),
                _ => Err(FormatError { offset: strings.next, wrong: Wrong::Field { field: "the values of a page" } }),
            };
        }
        if rest < 4 {
            let wrong = Wrong::Cut { what: "a value of a page", missing: 4 - rest };
            return Err(FormatError { offset: strings.next, wrong });
        }
        self.bytes.want(strings.next, rest.min(if last > JUMP { 4 } else { WINDOW }), "the values of a page")?;
        self.at = At::Strings(pages, strings);
        Ok(())
    }
}

/// The pages of a chunk have other values than the footer says.
fn other_count(pages: &Pages) -> FormatError {
    let (here, index) = (pages.values, pages.chunk.values);
    FormatError {
        offset: pages.next,
        wrong: Wrong::Differs { what: "the number of values of a column chunk", here, index },
    }
}

impl Scan for ParquetScan {
    type Found = ParquetRows;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some((offset, bytes)) = self.bytes.push(bytes)? else { return Ok(()) };
        match std::mem::replace(&mut self.at, At::Over) {
            At::Tail => self.tail(offset, &bytes),
            At::Footer => self.footer(offset, &bytes),
            At::Head(pages, most) => self.head(pages, most, &bytes),
            At::Levels(pages, page) => self.levels(pages, page, &bytes),
            At::Strings(pages, strings) => self.strings(pages, strings, &bytes),
            At::Over => Ok(()),
        }
    }

    fn next(&mut self) -> Option<ParquetRows> {
        self.found.pop_front()
    }
}
