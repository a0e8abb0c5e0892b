//! What the footer of a Parquet file says about one column.

use super::{Codec, ColumnCoding, Physical};
use crate::formats::thrift::{Kind, Read, Thrift};
use crate::formats::varint::Bad;
use crate::formats::{Extent, FormatError, Wrong, shown};

/// Most columns of a schema, and most bytes of their paths together.
const COLUMNS_MAX: usize = 100_000;
const PATHS_MAX: usize = 16 << 20;
/// Columns that an error names.
const NAMED_MAX: usize = 20;

/// The column that samples are, in every row group.
#[derive(Debug)]
pub(super) struct Footer {
    pub coding: ColumnCoding,
    pub chunks: Vec<Chunk>,
}

/// A column's part of a row group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub extent: Extent,
    /// Rows of the group.
    pub rows: u64,
    /// Values and missing ones, repeated ones included.
    pub values: u64,
}

/// A column of the schema: a field without fields of its own.
#[derive(Debug)]
struct Column {
    /// Its place in the schema, names separated by dots.
    path: String,
    physical: Physical,
    is_text: bool,
    definition: u8,
    repetition: u8,
}

/// What is wrong with a footer.
enum Fail {
    Bad,
    Wrong(Wrong),
}

impl From<Bad> for Fail {
    fn from(_: Bad) -> Self {
        Self::Bad
    }
}

/// Reads the Thrift part of a footer that begins at `offset`. `column` is the path of the column; without one it is the only
/// column of byte strings that are no text, or, if there is no such column, the only one of text.
pub(super) fn read(offset: u64, bytes: &[u8], column: Option<&str>) -> Result<Footer, FormatError> {
    let read = || -> Result<Footer, Fail> {
        let mut reader = Reader { column, chosen: None, count: 0, chunks: Vec::new(), codec: None, end: offset };
        let mut failed = None;
        let mut thrift = Thrift::new(bytes);
        let whole = thrift.fields(|thrift, number, kind| {
            let done = match (number, kind) {
                (2, Kind::List) => reader.schema(thrift),
                (4, Kind::List) => reader.groups(thrift),
                // How a footer in the clear says that columns are encrypted.
                (8, Kind::Struct) => Err(encrypted()),
                _ => return Ok(Read::No),
            };
            done.map(|()| Read::Yes).map_err(|fail| {
                failed = Some(fail);
                Bad::Wrong
            })
        });
        match (whole, failed) {
            (_, Some(fail)) => Err(fail),
            (Err(_), None) => Err(Fail::Bad),
            (Ok(()), None) => reader.finish(),
        }
    };
    read().map_err(|fail| {
        let wrong = match fail {
            Fail::Bad => Wrong::Field { field: "the footer of a Parquet file" },
            Fail::Wrong(wrong) => wrong,
        };
        FormatError { offset, wrong }
    })
}

fn encrypted() -> Fail {
    unsupported("an encrypted Parquet file", "its columns".into())
}

fn unsupported(what: &'static str, name: String) -> Fail {
    Fail::Wrong(Wrong::Unsupported { what, name })
}

struct Reader<'a> {
    column: Option<&'a str>,
    /// The column, and its place among the columns.
    chosen: Option<(usize, Column)>,
    /// How many columns there are.
    count: usize,
    chunks: Vec<Chunk>,
    codec: Option<Codec>,
    /// Where the footer begins: chunks lie before it.
    end: u64,
}

impl Reader<'_> {
    fn finish(self) -> Result<Footer, Fail> {
        let (_, column) = self.chosen.ok_or(Fail::Bad)?;
        let Column { physical, definition, repetition, .. } = column;
        // A file without rows has no codec, and needs none.
        let coding = ColumnCoding { physical, codec: self.codec.unwrap_or(Codec::Plain), definition, repetition };
        Ok(Footer { coding, chunks: self.chunks })
    }

    fn schema(&mut self, thrift: &mut Thrift<'_>) -> Result<(), Fail> {
        let (Kind::Struct, elements) = thrift.list()? else { return Err(Fail::Bad) };
        let columns = columns(thrift, elements)?;
        self.count = columns.len();
        self.chosen = Some(choose(columns, self.column)?);
        Ok(())
    }

    fn groups(&mut self, thrift: &mut Thrift<'_>) -> Result<(), Fail> {
        let (Kind::Struct, groups) = thrift.list()? else { return Err(Fail::Bad) };
        for _ in 0..groups {
            let (mut rows, mut chunk, mut failed) = (None, None, None);
            let whole = thrift.fields(|thrift, number, kind| {
                match (number, kind) {
                    (1, Kind::List) => match self.chunk(thrift) {
                        Ok(found) => chunk = Some(found),
                        Err(fail) => {
                            failed = Some(fail);
                            return Err(Bad::Wrong);
                        }
                    },
                    (3, Kind::Int) => rows = u64::try_from(thrift.int()?).ok(),
                    _ => return Ok(Read::No),
                }
                Ok(Read::Yes)
            });
            if let Some(fail) = failed {
                return Err(fail);
            }
            whole?;
            let (Some(rows), Some(chunk)) = (rows, chunk) else { return Err(Fail::Bad) };
            self.add(rows, chunk)?;
        }
        Ok(())
    }

    /// The metadata of the chosen column in the list of a group's columns.
    fn chunk(&self, thrift: &mut Thrift<'_>) -> Result<Meta, Fail> {
        let (Kind::Struct, count) = thrift.list()? else { return Err(Fail::Bad) };
        let (chosen, _) = self.chosen.as_ref().ok_or(Fail::Bad)?;
        if count != self.count {
            return Err(Fail::Bad);
        }
        let mut found = Meta::default();
        for number in 0..count {
            let mut meta = Meta::default();
            thrift.fields(|thrift, field, kind| {
                match (field, kind) {
                    (3, Kind::Struct) if number == *chosen => meta.read(thrift)?,
                    (1, Kind::Binary) => meta.is_elsewhere = !thrift.binary()?.is_empty(),
                    (8, Kind::Struct) => {
                        meta.is_encrypted = true;
                        return Ok(Read::No);
                    }
                    _ => return Ok(Read::No),
                }
                Ok(Read::Yes)
            })?;
            if number == *chosen {
                found = meta;
            }
        }
        Ok(found)
    }

    fn add(&mut self, rows: u64, meta: Meta) -> Result<(), Fail> {
        let Some((_, column)) = &self.chosen else { return Err(Fail::Bad) };
        let path = || shown(column.path.as_bytes());
        if meta.is_encrypted {
            return Err(encrypted());
        }
        if meta.is_elsewhere {
            return Err(unsupported("a column that lies in another file", path()));
        }
        let (Some(codec), Some(values), Some(len), Some(data)) = (meta.codec, meta.values, meta.len, meta.data) else {
            return Err(Fail::Bad);
        };
        let codec = Codec::of(codec).map_err(|name| unsupported("a codec of a Parquet column", name))?;
        if rows == 0 && values == 0 {
            return Ok(());
        }
        if self.codec.is_some_and(|other| other != codec) {
            return Err(unsupported("a column with several codecs", path()));
        }
        self.codec = Some(codec);
        // Some writers give 0 where there is no dictionary page.
        let offset = meta.dictionary.filter(|at| (1..data).contains(at)).unwrap_or(data);
        if offset.checked_add(len).is_none_or(|end| end > self.end) {
            return Err(Fail::Wrong(Wrong::OutOfFile {
                what: "the column of row group",
                number: self.chunks.len() as u64,
            }));
        }
        self.chunks.push(Chunk { extent: Extent { offset, len }, rows, values });
        Ok(())
    }
}

/// `ColumnMetaData`, as far as it matters.
#[derive(Default)]
struct Meta {
    codec: Option<i64>,
    values: Option<u64>,
    len: Option<u64>,
    data: Option<u64>,
    dictionary: Option<u64>,
    is_elsewhere: bool,
    is_encrypted: bool,
}

impl Meta {
    fn read(&mut self, thrift: &mut Thrift<'_>) -> Result<(), Bad> {
        thrift.fields(|thrift, number, kind| {
            if kind != Kind::Int {
                return Ok(Read::No);
            }
            let field = match number {
                4 => {
                    self.codec = Some(thrift.int()?);
                    return Ok(Read::Yes);
                }
                5 => &mut self.values,
                7 => &mut self.len,
                9 => &mut self.data,
                11 => &mut self.dictionary,
                _ => return Ok(Read::No),
            };
            *field = Some(u64::try_from(thrift.int()?).map_err(|_| Bad::Wrong)?);
            Ok(Read::Yes)
        })
    }
}

/// `SchemaElement`, as far as it matters.
#[derive(Default)]
struct Element {
    physical: Option<i64>,
    len: Option<i64>,
    repetition: i64,
    name: String,
    children: usize,
    is_text: bool,
}

impl Element {
    fn read(thrift: &mut Thrift<'_>) -> Result<Self, Bad> {
        let mut element = Self::default();
        thrift.fields(|thrift, number, kind| {
            match (number, kind) {
                (1, Kind::Int) => element.physical = Some(thrift.int()?),
                (2, Kind::Int) => element.len = Some(thrift.int()?),
                (3, Kind::Int) => element.repetition = thrift.int()?,
                (4, Kind::Binary) => element.name = String::from_utf8_lossy(thrift.binary()?).into_owned(),
                (5, Kind::Int) => element.children = usize::try_from(thrift.int()?).map_err(|_| Bad::Wrong)?,
                // ConvertedType: UTF8, ENUM, JSON.
                (6, Kind::Int) => element.is_text |= matches!(thrift.int()?, 0 | 4 | 19),
                // LogicalType, a union: STRING, ENUM, JSON.
                (10, Kind::Struct) => thrift.fields(|_, number, _| {
                    element.is_text |= matches!(number, 1 | 4 | 12);
                    Ok(Read::No)
                })?,
                _ => return Ok(Read::No),
            }
            Ok(Read::Yes)
        })?;
        Ok(element)
    }
}

/// A group of the schema that is being read.
struct Open {
    /// Fields of it that are to come.
    left: usize,
    path_len: usize,
    definition: u8,
    repetition: u8,
}

/// Reads the schema, a tree written from the root down, and gives its leaves in order.
fn columns(thrift: &mut Thrift<'_>, elements: usize) -> Result<Vec<Column>, Fail> {
    let mut columns = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let (mut path, mut paths_len) = (String::new(), 0);
    for number in 0..elements {
        let element = Element::read(thrift)?;
        if number == 0 {
            open.push(Open { left: element.children, path_len: 0, definition: 0, repetition: 0 });
            continue;
        }
        while open.last().is_some_and(|group| group.left == 0) {
            open.pop();
        }
        let group = open.last_mut().ok_or(Fail::Bad)?;
        group.left -= 1;
        let step = |level: u8, more: bool| level.checked_add(u8::from(more)).ok_or(Fail::Bad);
        let definition = step(group.definition, element.repetition != 0)?;
        let repetition = step(group.repetition, element.repetition == 2)?;
        path.truncate(group.path_len);
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(&element.name);
        if element.children > 0 {
            open.push(Open { left: element.children, path_len: path.len(), definition, repetition });
            continue;
        }
        paths_len += path.len();
        let physical = element.physical.and_then(|code| Physical::of(code, element.len)).ok_or(Fail::Bad)?;
        columns.push(Column { path: path.clone(), physical, is_text: element.is_text, definition, repetition });
        if columns.len() > COLUMNS_MAX || paths_len > PATHS_MAX {
            let wrong =
                Wrong::TooLong { what: "the schema of a Parquet file", len: paths_len as u64, max: PATHS_MAX as u64 };
            return Err(Fail::Wrong(wrong));
        }
    }
    if open.iter().any(|group| group.left > 0) { Err(Fail::Bad) } else { Ok(columns) }
}

/// The column that samples are, and its place.
fn choose(columns: Vec<Column>, path: Option<&str>) -> Result<(usize, Column), Fail> {
    let is_bytes = |column: &Column| column.physical == Physical::Bytes;
    let only = |wanted: &dyn Fn(&Column) -> bool| {
        let mut found = columns.iter().enumerate().filter(|(_, column)| wanted(column)).map(|(number, _)| number);
        let first = found.next()?;
        Some(found.next().is_none().then_some(first))
    };
    let found = match path {
        Some(path) => only(&|column| column.path == path),
        None => only(&|column| is_bytes(column) && !column.is_text)
            .or_else(|| only(&|column| is_bytes(column) && column.is_text)),
    };
    let asked = match (path, found) {
        (_, Some(Some(number))) => {
            let column = columns.into_iter().nth(number).ok_or(Fail::Bad)?;
            return Ok((number, column));
        }
        (Some(path), None) => format!("there is no column {path}"),
        (Some(path), Some(None)) => format!("several columns are called {path}"),
        (None, None) => "there is no column of byte strings".to_owned(),
        (None, Some(None)) => "there are several columns of byte strings".to_owned(),
    };
    let mut names: Vec<String> = columns.iter().take(NAMED_MAX).map(|column| shown(column.path.as_bytes())).collect();
    if columns.len() > NAMED_MAX {
        names.push("…".to_owned());
    }
    let asked = shown(asked.as_bytes());
    Err(Fail::Wrong(Wrong::Column { asked, columns: names.join(", ") }))
}
