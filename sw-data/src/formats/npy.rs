//! Arrays of numpy's `.npy` files.
//!
//! Source: numpy `lib/format.py`, "Format Version 1.0" to "3.0": magic, version, length of a header, the header as the literal of a
//! Python dictionary, the array's bytes without a gap.

use super::{Collector, Extent, FormatError, Scan, Wrong, shown};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Magic, version, and the longer of the two forms of a length.
const HEAD: u64 = 12;
/// Most bytes of a header. numpy itself reads 10,000 unless it is told otherwise.
const HEADER_MAX: u64 = 64 << 10;
/// Dimensions that numpy allows at most (`NPY_MAXDIMS` of numpy 2).
const DIMENSIONS_MAX: usize = 64;
/// Most items without a byte.
const EMPTY_ITEMS_MAX: u64 = 1 << 20;

/// An array in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// numpy's name of the element type with its byte order: `<f4`, `|u1`.
    pub descr: String,
    /// Bytes of an element.
    pub item_len: u64,
    /// Extent of each dimension; none for a scalar.
    pub shape: Vec<u64>,
    /// How elements follow each other.
    pub layout: Layout,
    /// The elements in the file.
    pub content: Extent,
}

impl Array {
    /// How many items there are along the first axis: samples, as loaders take them. A scalar is one.
    ///
    /// # Errors
    /// `Unsupported` for an array in Fortran order with more than one axis: its items are not one run of bytes. `TooMany`.
    pub fn items(&self) -> Result<u64, FormatError> {
        if self.layout == Layout::ColumnMajor && self.shape.len() > 1 {
            let wrong =
                Wrong::Unsupported { what: "an array in Fortran order", name: format!("shape {:?}", self.shape) };
            return Err(FormatError { offset: self.content.offset, wrong });
        }
        let items = self.shape.first().copied().unwrap_or(1);
        // Items without bytes are as many as a header says.
        if self.content.len == 0 && items > EMPTY_ITEMS_MAX {
            let wrong = Wrong::TooMany { what: "the empty items of an array", max: EMPTY_ITEMS_MAX };
            return Err(FormatError { offset: self.content.offset, wrong });
        }
        Ok(items)
    }

    /// Where item `number` along the first axis is; `None` if there is none.
    pub fn item(&self, number: u64) -> Option<Extent> {
        let items = self.items().ok().filter(|items| number < *items)?;
        let len = self.content.len / items;
        Some(Extent { offset: self.content.offset + number * len, len })
    }
}

/// Which dimension runs fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The last one, as in C.
    RowMajor,
    /// The first one, as in Fortran.
    ColumnMajor,
}

/// Reads a file's header. Arrays of Python objects are refused: they are pickles.
#[derive(Debug)]
pub struct NpyScan {
    bytes: Collector,
    /// Length of the header, once it is known.
    header_len: Option<u64>,
    found: Option<Array>,
}

impl NpyScan {
    /// Begins at the start of a file of so many bytes.
    ///
    /// # Errors
    /// `Cut` if it cannot hold a head.
    pub fn new(file_len: u64) -> Result<Self, FormatError> {
        let mut bytes = Collector::new(file_len);
        bytes.want(0, HEAD, "the head of an npy file")?;
        Ok(Self { bytes, header_len: None, found: None })
    }

    fn head(&mut self, head: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset: 0, wrong };
        let (Some((magic, rest)), 12) = (head.split_first_chunk::<6>(), head.len()) else {
            return Err(fail(Wrong::Field { field: "the head of an npy file" }));
        };
        if magic != MAGIC {
            return Err(fail(Wrong::Field { field: "the magic bytes of an npy file" }));
        }
        let (start, len) = match rest {
            [1, 0, a, b, ..] => (10, u64::from(u16::from_le_bytes([*a, *b]))),
            [2 | 3, 0, a, b, c, d] => (12, u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
            [major, minor, ..] => {
                let name = format!("{major}.{minor}");
                return Err(fail(Wrong::Unsupported { what: "a version of the npy format", name }));
            }
            _ => return Err(fail(Wrong::Field { field: "the version of an npy file" })),
        };
        if len > HEADER_MAX {
            return Err(fail(Wrong::TooLong { what: "the header of an npy file", len, max: HEADER_MAX }));
        }
        self.header_len = Some(len);
        self.bytes.want(start, len.max(1), "the header of an npy file")
    }

    fn header(&mut self, offset: u64, text: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset, wrong };
        let unread = || fail(Wrong::Field { field: "the header of an npy file" });
        let header = Literal(str::from_utf8(text).map_err(|_| unread())?.trim_end()).header().ok_or_else(unread)?;
        let Some(item_len) = item_len(&header.descr) else {
            return Err(fail(Wrong::Unsupported { what: "an element type", name: shown(header.descr.as_bytes()) }));
        };
        let content = offset + text.len() as u64;
        let len = header.shape.iter().try_fold(item_len, |len, extent| len.checked_mul(*extent)).ok_or_else(unread)?;
        let have = self.bytes.file_len - content;
        if len > have {
            return Err(FormatError { offset: content, wrong: Wrong::Cut { what: "the array", missing: len - have } });
        }
        let Header { descr, layout, shape } = header;
        self.found = Some(Array { descr, item_len, shape, layout, content: Extent { offset: content, len } });
        Ok(())
    }
}

impl Scan for NpyScan {
    type Found = Array;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        match (self.bytes.push(bytes)?, self.header_len) {
            (None, _) => Ok(()),
            (Some((_, bytes)), None) => self.head(&bytes),
            (Some((offset, bytes)), Some(_)) => self.header(offset, &bytes),
        }
    }

    fn next(&mut self) -> Option<Array> {
        self.found.take()
    }
}

/// Bytes of an element of a plain type: byte order, kind, size. Objects, structures and text of no size have none.
fn item_len(descr: &str) -> Option<u64> {
    let mut rest = descr.chars();
    let order = rest.next()?;
    let kind = rest.next()?;
    // Dates have their unit in brackets behind the size.
    let size = rest.as_str().split('[').next()?;
    let size: u64 = size.parse().ok()?;
    if !matches!(order, '<' | '>' | '|' | '=') {
        return None;
    }
    match kind {
        'b' | 'i' | 'u' | 'f' | 'c' | 'm' | 'M' | 'S' | 'V' => Some(size),
        // UCS-4.
        'U' => size.checked_mul(4),
        _ => None,
    }
}

struct Header {
    descr: String,
    layout: Layout,
    shape: Vec<u64>,
}

/// What is left of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, keys in any order, each once.
    fn header(mut self) -> Option<Header> {
        let (mut descr, mut layout, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.take("}") {
            let key = self.string()?;
            self.expect(":")?;
            let is_new = match key {
                "descr" => descr.replace(self.descr()?).is_none(),
                "fortran_order" => layout.replace(self.layout()?).is_none(),
                "shape" => shape.replace(self.shape()?).is_none(),
                _ => false,
            };
            if !is_new || !(self.take(",") || self.0.starts_with('}')) {
                return None;
            }
            self.blanks();
        }
        let is_over = self.0.is_empty();
        is_over.then_some(Header { descr: descr?, layout: layout?, shape: shape? })
    }

    fn blanks(&mut self) {
        self.0 = self.0.trim_start();
    }

    /// Takes a token if it is next.
    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let rest = self.0.strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        self.blanks();
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Option<()> {
        self.take(token).then_some(())
    }

    /// A string without escapes, as numpy writes keys and type names.
    fn string(&mut self) -> Option<&'a str> {
        let quote = self.0.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (text, rest) = self.0.get(1..)?.split_once(quote)?;
        self.0 = rest;
        (!text.contains('\\')).then_some(text)
    }

    /// A type's name; a list, for a structure, as it stands there.
    fn descr(&mut self) -> Option<String> {
        if !self.0.starts_with('[') {
            return self.string().map(str::to_owned);
        }
        // A structure's name is only shown, so that its end is all that is needed: brackets in names are none of numpy's.
        let mut depth = 0usize;
        let end = self.0.find(|c| {
            depth = match c {
                '[' => depth + 1,
                ']' => depth.saturating_sub(1),
                _ => depth,
            };
            depth == 0
        })?;
        let (text, rest) = self.0.split_at(end + 1);
        self.0 = rest;
        Some(text.to_owned())
    }

    fn layout(&mut self) -> Option<Layout> {
        if self.take("False") {
            return Some(Layout::RowMajor);
        }
        self.take("True").then_some(Layout::ColumnMajor)
    }

    /// `()`, `(3,)`, `(3, 4)`.
    fn shape(&mut self) -> Option<Vec<u64>> {
        let mut shape = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            let end = self.0.find(|c: char| !c.is_ascii_digit())?;
            let (digits, rest) = self.0.split_at(end);
            shape.push(digits.parse().ok()?);
            // Files of Python 2 have an `L` behind large numbers.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if shape.len() > DIMENSIONS_MAX || !(self.take(",") || self.0.starts_with(')')) {
                return None;
            }
        }
        Some(shape)
    }
}
