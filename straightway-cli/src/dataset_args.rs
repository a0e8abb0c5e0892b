//! The arguments of `dataset`.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};
use straightway::{Error, Uri};
use sw_data::{order::Method, pack::Element, samples::Format};

use crate::{args::EngineArgs, size};

const SOURCES: &str =
    "Sources are files, folders, shards with braces ('shard-{000000..000123}.tar', in quotes), and the
index.json of MDS shards. docs/datasets.md has the formats, and what a sample of each is.

Examples:
  straightway dataset index '/data/train-{000000..000123}.tar' --out /data/train.index.arrow
  straightway dataset stat /data/train.index.arrow
  straightway dataset iterate /data/train.index.arrow --seed 1 --epoch 0 --limit 10
  straightway dataset verify /data/train.index.arrow";

/// `dataset`.
#[derive(Subcommand, Debug)]
#[command(arg_required_else_help = false, after_help = SOURCES)]
pub enum Dataset {
    /// Write an index: where every sample is, without rewriting or listing anything later
    Index(Index),
    /// Sum an index up: samples, objects, formats, sizes, checksums
    Stat(Stat),
    /// List samples in the order of an epoch, with the SHA-256 of each if asked
    Iterate(Iterate),
    /// Hold objects and samples against their index
    Verify(Verify),
    /// Write samples into shards: small files into archives with aligned contents, into TFRecord files, or vectors into arrays
    Pack(Pack),
}

/// `dataset index`.
#[derive(Args, Debug)]
#[command(
    after_help = "The index is the old file or the whole new one, never half. Its objects in the folder of the index are
kept without that folder, so that both can be moved together.

Examples:
  straightway dataset index /data/imagenet --out /data/imagenet.index.arrow
  straightway dataset index '/data/a-{000..123}.tar' /data/b --out /data/ab.index.arrow --checksum
  straightway dataset index /data/growing --out /data/growing.index.arrow --update
  straightway dataset index /data/old --out /data/old.index.arrow --on-error quarantine=/data/old.damaged.jsonl"
)]
pub struct Index {
    /// Files, folders, names with braces
    #[arg(required = true)]
    pub sources: Vec<String>,
    /// The file to write; one that ends in .index.arrow is never taken for a sample
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Take over objects that have not changed from the index that is there, without reading them
    #[arg(long)]
    pub update: bool,
    /// Keep the CRC-32C of every sample: reads all bytes, and compares checksums that a format stores
    #[arg(long)]
    pub checksum: bool,
    /// Take every file for this format: raw, tar, tfrecord, mds, npy, npz, parquet, tokens or milvus
    #[arg(long, value_parser = parse_format)]
    pub format: Option<Format>,
    /// The column of Parquet files that samples are, names separated by dots [default: the only one that can be meant], the
    /// array of npz files [default: every one], the feature of tf.train.Example records [default: the record], or the field of
    /// Milvus collections [default: the only vector]
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// About DALI's indexes beside TFRecord files and archives (SHARD.idx): one that fits saves the walk through its shard
    #[arg(long, value_enum, default_value_t = BesideShards::Use, value_name = "POLICY")]
    pub sidecars: BesideShards,
    /// About objects that cannot be indexed: fail, skip, or quarantine=FILE (skip, and list them there)
    #[arg(long, default_value = "fail", value_name = "POLICY")]
    pub on_error: OnError,
    /// Objects that are scanned at a time
    #[arg(long, default_value = "8", value_name = "N")]
    pub threads: NonZeroUsize,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What to do about damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnError {
    /// End.
    Fail,
    /// Leave it out and tell.
    Skip,
    /// The same, and keep a list.
    Quarantine(PathBuf),
}

impl FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("quarantine=")) {
            ("fail", _) => Ok(Self::Fail),
            ("skip", _) => Ok(Self::Skip),
            (_, Some(file)) if !file.is_empty() => Ok(Self::Quarantine(file.into())),
            _ => Err(format!("`{text}` is none of fail, skip and quarantine=FILE")),
        }
    }
}

/// What to do with an index that lies beside a shard.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BesideShards {
    /// Take samples from it if it fits, without the checksums that TFRecord stores; else walk the shard and tell
    Use,
    /// Walk every shard
    Ignore,
}

/// `dataset stat`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway dataset stat /data/train.index.arrow
  straightway dataset stat /data/train.index.arrow --json")]
pub struct Stat {
    /// The index
    #[arg(value_parser = parse_uri)]
    pub index: Uri,
}

/// `dataset iterate`.
#[derive(Args, Debug)]
#[command(
    after_help = "Sources without an index are indexed in memory first. The order of an epoch is a pure function of the
seed, the epoch and the number of samples; the ranks of a world take its positions in turn, so that all of them together have
every sample once.

Examples:
  straightway dataset iterate /data/train.index.arrow --limit 10
  straightway dataset iterate /data/a.tar /data/b.tar --digest --json
  straightway dataset iterate /data/train.index.arrow --seed 7 --epoch 3 --rank 1 --world 8 --digest"
)]
pub struct Iterate {
    /// An index, or sources
    #[arg(required = true)]
    pub sources: Vec<String>,
    /// Read each sample and compute its SHA-256
    #[arg(long)]
    pub digest: bool,
    /// Start of the order; gives --method shuffle if that is not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The epoch
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub epoch: u64,
    /// Which rank's samples
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub rank: u64,
    /// Ranks that share the epoch
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub world: u64,
    /// sequence, shuffle, or blocks=SAMPLESxBLOCKS: blocks of neighbours shuffled, and then samples within so many blocks
    /// [default: sequence, with --seed shuffle]
    #[arg(long, value_parser = parse_method)]
    pub method: Option<Method>,
    /// Samples to list at most
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Take every file for this format, for sources without an index
    #[arg(long, value_parser = parse_format)]
    pub format: Option<Format>,
    /// The column of Parquet files, the array of npz files or the feature of tf.train.Example records that samples are, for
    /// sources without an index
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `dataset verify`.
#[derive(Args, Debug)]
#[command(
    after_help = "Every object must have the length and version that it had, and every sample with a checksum the bytes. What
is wrong is listed, and the exit code is 6.

Examples:
  straightway dataset verify /data/train.index.arrow
  straightway dataset verify /data/train.index.arrow --threads 32 --json"
)]
pub struct Verify {
    /// The index
    #[arg(value_parser = parse_uri)]
    pub index: Uri,
    /// Objects that are looked at at a time
    #[arg(long, default_value = "8", value_name = "N")]
    pub threads: NonZeroUsize,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `dataset pack`.
#[derive(Args, Debug)]
#[command(
    after_help = "Files of one key that follow each other, such as a.jpg and a.json, become one sample of an archive. The
index is FOLDER/samples.index.arrow.

Examples:
  straightway dataset pack /data/photos --out /data/packed
  straightway dataset pack /data/photos --out /data/packed --align 512 --shard-size 1GiB
  straightway dataset pack /data/train.index.arrow --out /data/records --format tfrecord
  straightway dataset pack milvus://host:19530/collection --out /data/vectors --format npy --dtype f4"
)]
pub struct Pack {
    /// An index, or sources
    #[arg(required = true)]
    pub sources: Vec<String>,
    /// The folder to write into: new, or empty
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// What shards are
    #[arg(long, value_enum, default_value_t = Container::Tar)]
    pub format: Container,
    /// What the elements of arrays are, such as f4, i8 or u1 [default: u1]
    #[arg(long, value_name = "TYPE", value_parser = parse_element)]
    pub dtype: Option<Element>,
    /// The column, array, feature or field that samples are, for sources without an index
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// Where contents of archives begin: multiples of this, a power of two from 512 to 1MiB [default: 4KiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    pub align: Option<u64>,
    /// Bytes of a shard at which the next one begins
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = size::parse_positive)]
    pub shard_size: u64,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What shards are.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// As WebDataset reads them.
    Tar,
    /// As TensorFlow reads them.
    Tfrecord,
    /// Arrays of two dimensions: a sample is a row, and all have the same length.
    Npy,
}

fn parse_uri(text: &str) -> Result<Uri, Error> {
    text.parse()
}

fn parse_element(text: &str) -> Result<Element, Error> {
    text.parse()
}

fn parse_format(text: &str) -> Result<Format, Error> {
    text.parse()
}

pub(crate) fn parse_method(text: &str) -> Result<Method, String> {
    let blocks = || {
        let (samples, blocks) = text.strip_prefix("blocks=")?.split_once('x')?;
        Some(Method::Blocks { samples: samples.parse().ok()?, blocks: blocks.parse().ok()? })
    };
    match text {
        "sequence" => Ok(Method::Sequence),
        "shuffle" => Ok(Method::Shuffle),
        _ => blocks().ok_or_else(|| format!("`{text}` is none of sequence, shuffle and blocks=SAMPLESxBLOCKS")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_methods_are_read() {
        assert_eq!("quarantine=a b".parse(), Ok(OnError::Quarantine("a b".into())));
        assert!("quarantine=".parse::<OnError>().is_err() && "warn".parse::<OnError>().is_err());
        assert_eq!(parse_method("blocks=100x16"), Ok(Method::Blocks { samples: 100, blocks: 16 }));
        assert!(parse_method("blocks=100").is_err() && parse_method("random").is_err());
    }
}
