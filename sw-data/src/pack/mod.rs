//! Packing samples into shards of formats that exist: tar as WebDataset reads it, TFRecord, and npy.
//!
//! ```text
//!   index of the sources ─► samples in order, read ahead ─► entries ─► shard-000000.tar ─► rename ─► shard-000001.tar …
//! ```
//!
//! A shard appears under its name when it is whole. Samples with one key that follow each other, as `a.jpg` and `a.json` of a folder
//! do, become one sample of an archive and are never parted.

mod npy;
mod records;
mod tar;

pub use npy::Element;

use std::ops::ControlFlow;

use straightway::{Engine, Error, ErrorKind, Uri, Verb};

use crate::{
    formats::Extent,
    index::{Bytes, Fed, Feed, Growing, Index, Sink as _, Want},
    samples::{Format, Samples as _},
};

/// What shards are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Archives in which the content of each member begins at a multiple of `align` bytes: a power of two from 512 on.
    Tar {
        /// Bytes.
        align: u64,
    },
    /// TFRecord files. The format has no room for alignment.
    TfRecord,
    /// Arrays of two dimensions: a sample is a row, and all have the same length.
    Npy(Element),
}

impl Container {
    fn ending(self) -> &'static str {
        match self {
            Self::Tar { .. } => "tar",
            Self::TfRecord => "tfrecord",
            Self::Npy(_) => "npy",
        }
    }
}

/// How to pack.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    /// What shards are.
    pub container: Container,
    /// Bytes of a shard at which the next one begins.
    pub shard_bytes: u64,
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Addresses of the shards, in order.
    pub shards: Vec<String>,
    /// Samples that were read.
    pub samples: u64,
    /// Members or records that were written.
    pub entries: u64,
    /// Bytes of their contents.
    pub content_bytes: u64,
    /// Bytes of the shards.
    pub shard_bytes: u64,
}

/// Largest alignment: beyond it comments are longer than readers take.
const ALIGN_MAX: u64 = 1 << 20;
/// Shards that are numbered with six digits.
const SHARDS_MAX: usize = 1_000_000;

/// A part of a sample as it is written.
struct Item {
    /// Of a member; a record has none.
    name: String,
    /// In the sample's bytes.
    content: Extent,
}

/// Writes the samples of an index into `folder`, which exists, as `shard-000000.tar` and so on. *Blocking*.
///
/// `progress` is told of each sample by the calling thread; what it breaks with ends the packing, with the shards that are whole in
/// place.
///
/// # Errors
/// `ApiMisuse` for an alignment that is none; those of reading samples; `Unsupported` for samples that the container cannot hold;
/// `AlreadyExists` for two parts of one name in one sample; `NoSpace` and others of writing; `Cancelled`.
pub fn pack(
    engine: &Engine,
    index: &Index,
    folder: &str,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Packed, Error> {
    if let Container::Tar { align } = options.container
        && !(align.is_power_of_two() && (tar::BLOCK..=ALIGN_MAX).contains(&align))
    {
        return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup)
            .at(align.to_string())
            .detail("an alignment of this many bytes")
            .remedy(format!("use a power of two from {} to {ALIGN_MAX}", tar::BLOCK)));
    }
    let mut shards = Shards {
        engine,
        folder,
        options,
        total: index.len(),
        array: None,
        current: None,
        packed: Packed::default(),
        last: Last::default(),
    };
    let mut feed = Feed::new(engine, index, 0..index.len(), Want::Bytes);
    while let Some(fed) = feed.next_sample()? {
        shards.add(&fed)?;
        if progress(fed.place.extent.len).is_break() {
            return Err(Error::new(ErrorKind::Cancelled, Verb::Write).at(folder));
        }
    }
    shards.finish()?;
    Ok(shards.packed)
}

/// The sample before: its key, and the names of its parts.
#[derive(Default)]
struct Last {
    key: Option<String>,
    names: Vec<String>,
}

/// Rows of arrays.
#[derive(Clone, Copy)]
struct Rows {
    len: u64,
    of_shard: u64,
    left: u64,
}

struct Shards<'a> {
    engine: &'a Engine,
    folder: &'a str,
    options: &'a PackOptions,
    /// Samples that are packed in all.
    total: u64,
    /// Of an array: bytes of a row, rows of a shard, and those that the current one lacks.
    array: Option<Rows>,
    current: Option<Growing<'a>>,
    packed: Packed,
    last: Last,
}

impl Shards<'_> {
    fn add(&mut self, fed: &Fed) -> Result<(), Error> {
        if let Container::Npy(element) = self.options.container {
            return self.add_row(fed, element);
        }
        let key = key_of(fed);
        let goes_on = self.last.key.as_ref() == Some(&key) && matches!(self.options.container, Container::Tar { .. });
        let items = self.items(fed, &key)?;
        if !goes_on {
            self.last.names.clear();
            let is_full = |file: &Growing<'_>| {
                file.at() > 0 && file.at().saturating_add(fed.place.extent.len) > self.options.shard_bytes
            };
            if self.current.as_ref().is_some_and(is_full) {
                self.finish()?;
            }
        }
        for item in &items {
            if self.last.names.contains(&item.name) {
                return Err(Error::new(ErrorKind::AlreadyExists, Verb::Write)
                    .at(item.name.as_str())
                    .detail(format!("a second part of this name in one sample, of {}", fed.entry.uri))
                    .remedy("give samples that follow each other different keys, or pack their sources apart"));
            }
            self.last.names.push(item.name.clone());
        }
        self.last.key = Some(key);
        self.write(fed, &items)?;
        self.packed.samples += 1;
        self.packed.entries += items.len() as u64;
        self.packed.content_bytes += items.iter().map(|item| item.content.len).sum::<u64>();
        Ok(())
    }

    /// A row of an array. How many its file has stands at its beginning: it is known, as all rows have one length.
    fn add_row(&mut self, fed: &Fed, element: Element) -> Result<(), Error> {
        let items = self.items(fed, &key_of(fed))?;
        let len = items.iter().map(|item| item.content.len).sum::<u64>();
        let rows = *self.array.get_or_insert_with(|| {
            let of_shard = self.options.shard_bytes.checked_div(len).unwrap_or(0).max(1);
            Rows { len, of_shard, left: 0 }
        });
        if rows.len != len || len == 0 || len % element.width() != 0 {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Write)
                .at(fed.entry.uri.as_str())
                .detail(format!(
                    "sample {} has {len} bytes, the first one {}, and elements are of {element}",
                    fed.label.key, rows.len
                ))
                .remedy("an array has rows of one length, a multiple of its elements': pack it as tar"));
        }
        let mut left = rows.left;
        if left == 0 {
            self.finish()?;
            left = rows.of_shard.min(self.total - self.packed.samples);
            let mut file = begin(self.engine, self.folder, self.options, &mut self.packed)?;
            file.write(&npy::head(element, left, len / element.width()))?;
            self.current = Some(file);
        }
        self.array = Some(Rows { left: left - 1, ..rows });
        self.write(fed, &items)?;
        self.packed.samples += 1;
        self.packed.entries += 1;
        self.packed.content_bytes += len;
        Ok(())
    }

    /// What becomes of a sample.
    fn items(&self, fed: &Fed, key: &str) -> Result<Vec<Item>, Error> {
        let parts = &fed.label.parts;
        let whole = Extent { offset: 0, len: fed.bytes.as_ref().map_or(0, Bytes::len) };
        match self.options.container {
            Container::TfRecord | Container::Npy(_) => match parts.as_slice() {
                // Records have no names: keys are not kept.
                [] => Ok(vec![Item { name: String::new(), content: whole }]),
                [one] => Ok(vec![Item { name: String::new(), content: one.extent }]),
                several => Err(Error::new(ErrorKind::Unsupported, Verb::Write)
                    .at(fed.entry.uri.as_str())
                    .detail(format!("sample {key} has {} parts, and a record is one", several.len()))
                    .remedy("pack it as tar")),
            },
            Container::Tar { .. } if parts.is_empty() => Ok(vec![Item { name: format!("{key}.bin"), content: whole }]),
            Container::Tar { .. } => {
                let item =
                    |part: &crate::samples::Part| Item { name: format!("{key}.{}", part.name), content: part.extent };
                Ok(parts.iter().map(item).collect())
            }
        }
    }

    fn write(&mut self, fed: &Fed, items: &[Item]) -> Result<(), Error> {
        let file = match &mut self.current {
            Some(file) => file,
            empty => empty.insert(begin(self.engine, self.folder, self.options, &mut self.packed)?),
        };
        for item in items {
            match self.options.container {
                Container::Tar { align } => file.write(&tar::head(file.at(), &item.name, item.content.len, align))?,
                Container::TfRecord => file.write(&records::head(item.content.len))?,
                Container::Npy(_) => {}
            }
            let mut sum = records::Sum::new();
            let mut failed = None;
            if let Some(bytes) = &fed.bytes {
                bytes.visit(item.content, |bytes| {
                    sum.add(bytes);
                    if failed.is_none() {
                        failed = file.write(bytes).err();
                    }
                })?;
            }
            failed.map_or(Ok(()), Err)?;
            match self.options.container {
                Container::Tar { .. } => file.write(tar::padding(item.content.len))?,
                Container::TfRecord => file.write(&sum.masked().to_le_bytes())?,
                Container::Npy(_) => {}
            }
        }
        Ok(())
    }

    /// Puts the shard that is being written in place.
    fn finish(&mut self) -> Result<(), Error> {
        let Some(mut file) = self.current.take() else { return Ok(()) };
        if let Container::Tar { .. } = self.options.container {
            file.write(&tar::END)?;
        }
        self.packed.shard_bytes += file.commit()?;
        Ok(())
    }
}

/// Begins the next shard.
fn begin<'a>(
    engine: &'a Engine,
    folder: &str,
    options: &PackOptions,
    packed: &mut Packed,
) -> Result<Growing<'a>, Error> {
    let number = packed.shards.len();
    if number >= SHARDS_MAX {
        return Err(Error::new(ErrorKind::TooLarge, Verb::Create)
            .at(folder)
            .detail(format!("more than {SHARDS_MAX} shards"))
            .remedy("make shards larger"));
    }
    let shard = format!("{folder}/shard-{number:06}.{}", options.container.ending());
    let file = Growing::new(engine, &shard.parse::<Uri>()?)?;
    packed.shards.push(shard);
    Ok(file)
}

/// The key of a sample in an archive. Numbers are only told apart by their objects.
fn key_of(fed: &Fed) -> String {
    match fed.entry.format {
        Format::Raw | Format::Tar => fed.label.key.clone(),
        _ => format!("{:06}-{:0>8}", fed.place.object, fed.label.key),
    }
}
