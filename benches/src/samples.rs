//! Datasets on disk: the same samples as loose files and in shards of several formats, with a list of where each lies.
//!
//! Loose files, tar and TFRecord are written here; MDS and Parquet by their own libraries, out of the tar shards, and our index
//! tells where their samples are.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use straightway::{Engine, GpuUse, checksum::Algorithm};
use sw_data::{
    index::{BuildOptions, SideCars, build_in_memory},
    samples::Samples as _,
};

use crate::{data::splitmix64, fault::Fault, peers::python::Python};

/// Bytes of a shard, about.
const SHARD_BYTES: u64 = 64 << 20;
/// Samples are up to this much longer than their nominal size: real ones are of no round length.
const LONGER_MAX: u64 = 500;
/// A block of tar (POSIX ustar).
const BLOCK: usize = 512;

/// How samples lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// A file each.
    Loose,
    /// Members of tar shards, as WebDataset writes them.
    Tar,
    /// Records of TFRecord shards.
    TfRecord,
    /// Samples of uncompressed MDS shards, of one column.
    Mds,
    /// Rows of Parquet files of one column, neither encoded nor compressed.
    Parquet,
}

impl Packing {
    pub(crate) const ALL: [Self; 5] = [Self::Tar, Self::TfRecord, Self::Mds, Self::Parquet, Self::Loose];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loose => "loose",
            Self::Tar => "tar",
            Self::TfRecord => "tfrecord",
            Self::Mds => "mds",
            Self::Parquet => "parquet",
        }
    }
}

/// What a side is told: the files, and where each sample lies.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) packing: String,
    pub(crate) files: Vec<PathBuf>,
    /// File, first byte, bytes.
    pub(crate) places: Vec<(u32, u64, u64)>,
}

impl List {
    pub(crate) fn read(path: &Path) -> Result<Self, Fault> {
        let text = fs::read(path).map_err(Fault::os("read", path))?;
        let none = |_| Fault::Missing { what: format!("{} is no list", path.display()), remedy: "make it again" };
        serde_json::from_slice(&text).map_err(none)
    }
}

/// A dataset.
#[derive(Clone, Debug)]
pub(crate) struct Dataset {
    pub(crate) list: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) bytes: u64,
    /// Of all samples in any order: see [`Digest`].
    pub(crate) digest: String,
}

/// What every side tells of the samples that it got: how many, how many bytes, and the sum of the first eight bytes of each,
/// so that it costs nothing and does not depend on the order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Digest {
    pub(crate) samples: u64,
    pub(crate) bytes: u64,
    sum: u64,
}

impl Digest {
    pub(crate) fn add(&mut self, sample: &[u8]) {
        self.samples += 1;
        self.bytes += sample.len() as u64;
        let first = sample.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        self.sum = self.sum.wrapping_add(first);
    }

    /// As `peers/samples.py` prints it.
    pub(crate) fn text(&self) -> String {
        format!("{}-{}-{:016x}", self.samples, self.bytes, self.sum)
    }
}

/// Samples of about `size` bytes, `total` in all; made if they are not there yet. `python` writes the formats that have libraries.
pub(crate) fn dataset(
    parent: &Path,
    packing: Packing,
    (size, total): (u64, u64),
    seed: u64,
    python: &Python,
) -> Result<Dataset, Fault> {
    let dir = parent.join(format!("samples-{}-{size}-{total}-{seed:x}", packing.name()));
    let list_path = dir.join("list.json");
    let (count, mut digest) = ((total / size).max(1), Digest::default());
    let done = List::read(&list_path).ok();
    let list = match done {
        Some(list) => {
            (0..count).for_each(|number| digest.add(&sample(number, size, seed)));
            list
        }
        None => {
            let list = if matches!(packing, Packing::Mds | Packing::Parquet) {
                let tar = dataset(parent, Packing::Tar, (size, total), seed, python)?;
                (0..count).for_each(|number| digest.add(&sample(number, size, seed)));
                python.write_samples(packing.name(), SHARD_BYTES, &tar.list, &dir)?;
                indexed(&dir, packing)?
            } else {
                fs::create_dir_all(&dir).map_err(Fault::os("create", &dir))?;
                let mut writer = Writer { dir: &dir, packing, out: None, at: 0, list: List::default() };
                writer.list.packing = packing.name().to_owned();
                for number in 0..count {
                    let bytes = sample(number, size, seed);
                    digest.add(&bytes);
                    writer.put(number, &bytes)?;
                }
                writer.end()?
            };
            let text = serde_json::to_vec(&list).unwrap_or_default();
            fs::write(&list_path, text).map_err(Fault::os("write", &list_path))?;
            list
        }
    };
    Ok(Dataset { list: list_path, files: list.files, bytes: digest.bytes, digest: digest.text() })
}

/// Where the samples of a folder of shards lie, of each its one part.
fn indexed(dir: &Path, packing: Packing) -> Result<List, Fault> {
    let engine = Engine::builder().gpu(GpuUse::Off).build()?;
    let source = if packing == Packing::Mds { dir.join("index.json") } else { dir.to_owned() };
    let options = BuildOptions { sidecars: SideCars::Ignore, ..BuildOptions::new(NonZeroUsize::MIN) };
    let sources = [source.to_string_lossy().into_owned()];
    let (built, index) = build_in_memory(&engine, &sources, &options, &mut |_| ControlFlow::Continue(()))?;
    let numbers: Vec<u64> = (0..built.samples).collect();
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    index.locate(&numbers, &mut places)?;
    index.labels(&numbers, &mut labels)?;
    let mut list = List { packing: packing.name().to_owned(), ..List::default() };
    for number in 0..index.object_count() {
        list.files.push(index.object(number)?.uri.into());
    }
    for (place, label) in places.iter().zip(&labels) {
        if place.row.is_some() {
            let what = format!("{} does not have its samples as they are", dir.display());
            return Err(Fault::Missing {
                what,
                remedy: "remove it, and make it with the versions of `cargo xtask bench peers`",
            });
        }
        // Of MDS the lengths of columns lie before.
        let (skip, len) =
            label.parts.first().map_or((0, place.extent.len), |part| (part.extent.offset, part.extent.len));
        list.places.push((place.object, place.extent.offset + skip, len));
    }
    Ok(list)
}

/// The bytes of a sample.
fn sample(number: u64, size: u64, seed: u64) -> Vec<u8> {
    let mut word = splitmix64(seed ^ splitmix64(number)) | 1;
    let len = usize::try_from(size + word % LONGER_MAX).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

struct Writer<'a> {
    dir: &'a Path,
    packing: Packing,
    out: Option<(PathBuf, BufWriter<File>)>,
    at: u64,
    list: List,
}

impl Writer<'_> {
    fn put(&mut self, number: u64, bytes: &[u8]) -> Result<(), Fault> {
        if self.out.is_none() || self.packing == Packing::Loose || self.at >= SHARD_BYTES {
            self.close()?;
            let path = match self.packing {
                // Loose files lie in folders of a thousand, as people keep them.
                Packing::Loose => self.dir.join(format!("{:04}", number / 1000)).join(format!("{number:08}.bin")),
                packing => self.dir.join(format!("shard-{:05}.{}", self.list.files.len(), packing.name())),
            };
            let parent = path.parent().unwrap_or(self.dir);
            fs::create_dir_all(parent).map_err(Fault::os("create", parent))?;
            let file = File::create(&path).map_err(Fault::os("create", &path))?;
            self.list.files.push(path.clone());
            self.out = Some((path, BufWriter::with_capacity(1 << 20, file)));
            self.at = 0;
        }
        let (before, after) = match self.packing {
            Packing::Loose | Packing::Mds | Packing::Parquet => (Vec::new(), Vec::new()),
            Packing::Tar => (tar_header(&format!("{number:08}.bin"), bytes.len()), vec![0; padding(bytes.len())]),
            Packing::TfRecord => {
                let len = (bytes.len() as u64).to_le_bytes();
                let head = [&len[..], &masked_crc(&len)].concat();
                (head, masked_crc(bytes).to_vec())
            }
        };
        let Some((path, out)) = &mut self.out else { return Ok(()) };
        for part in [&before, bytes, &after] {
            out.write_all(part).map_err(Fault::os("write", path.as_path()))?;
        }
        let file = u32::try_from(self.list.files.len() - 1).unwrap_or(u32::MAX);
        self.list.places.push((file, self.at + before.len() as u64, bytes.len() as u64));
        self.at += (before.len() + bytes.len() + after.len()) as u64;
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fault> {
        let Some((path, mut out)) = self.out.take() else { return Ok(()) };
        let end = if self.packing == Packing::Tar { vec![0; 2 * BLOCK] } else { Vec::new() };
        out.write_all(&end).and_then(|()| out.flush()).map_err(Fault::os("write", &path))
    }

    fn end(mut self) -> Result<List, Fault> {
        self.close()?;
        Ok(self.list)
    }
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(BLOCK) - len
}

/// A header of POSIX ustar for a plain file.
fn tar_header(name: &str, len: usize) -> Vec<u8> {
    let mut header = vec![0_u8; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{len:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The checksum of TFRecord: CRC-32C, rotated and moved (tensorflow/core/lib/hash/crc32c.h, `Mask`).
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let crc = u32::try_from(Algorithm::Crc32c.of(bytes) & u64::from(u32::MAX)).unwrap_or(0);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_lies_where_the_list_says_in_every_packing() {
        let dir = std::env::temp_dir().join(format!("straightway-bench-samples-{}", std::process::id()));
        let python = Python::new(dir.join("none"), dir.join("none"), dir.clone());
        for packing in [Packing::Tar, Packing::TfRecord, Packing::Loose] {
            let made = dataset(&dir, packing, (3000, 60_000), 7, &python).unwrap();
            let list: List = serde_json::from_slice(&fs::read(&made.list).unwrap()).unwrap();
            let mut digest = Digest::default();
            for (file, offset, len) in list.places {
                let bytes = fs::read(&list.files[file as usize]).unwrap();
                let at = usize::try_from(offset).unwrap();
                digest.add(&bytes[at..at + usize::try_from(len).unwrap()]);
            }
            assert_eq!((digest.samples, digest.text()), (20, made.digest.clone()), "{packing:?}");
            assert_eq!(dataset(&dir, packing, (3000, 60_000), 7, &python).unwrap().digest, made.digest, "made once");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
