//! The arguments of `cache`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use sw_data::order::Method;

use crate::{args::EngineArgs, dataset_args::parse_method, size};

const USE: &str =
    "A command reads remote objects through a cache with --engine cache_dir=DIR, and makes it if it is not there.
Processes of one user share a directory. docs/cache.md has the rest.

Examples:
  straightway load s3://bucket/model --engine cache_dir=/nvme/cache --engine cache_bytes=500GiB
  straightway cache warm /nvme/cache s3://bucket/model/ --pin
  straightway cache status /nvme/cache --objects";

/// `cache`.
#[derive(Subcommand, Debug)]
#[command(arg_required_else_help = false, after_help = USE)]
pub enum Cache {
    /// Tell what a cache has, and what came of it
    Status(Status),
    /// Read what a cache has not of objects, or of the samples of an index in the order of an epoch
    Warm(Warm),
    /// Let go of objects
    Evict(Evict),
}

/// `cache status`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway cache status /nvme/cache
  straightway cache status /nvme/cache --objects --json")]
pub struct Status {
    /// The directory of the cache
    pub dir: PathBuf,
    /// List the objects that it has some of, too
    #[arg(long)]
    pub objects: bool,
}

/// `cache warm`.
#[derive(Args, Debug)]
#[command(after_help = "It ends when as much was read as there is place for.

Examples:
  straightway cache warm /nvme/cache s3://bucket/model/ --pin
  straightway cache warm /nvme/cache --index s3://bucket/train.index.arrow --seed 1 --epoch 0 --rank 3 --world 8")]
pub struct Warm {
    /// The directory of the cache, made if it is not there
    pub dir: PathBuf,
    /// Objects, and prefixes that end with a slash
    #[arg(required_unless_present = "index")]
    pub uris: Vec<String>,
    /// Bytes that a new cache may have, or this one from now on
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub bytes: Option<u64>,
    /// Keep what is warmed until it is evicted by name
    #[arg(long)]
    pub pin: bool,
    /// The index of a dataset: its samples, in the order of an epoch
    #[arg(long, value_name = "INDEX", conflicts_with = "uris")]
    pub index: Option<String>,
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
    /// sequence, shuffle, or blocks=SAMPLESxBLOCKS, as of dataset iterate
    #[arg(long, value_parser = parse_method)]
    pub method: Option<Method>,
    /// Samples to warm at most
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `cache evict`.
#[derive(Args, Debug)]
#[command(after_help = "Pinned objects go too, unless --older-than or --larger-than is given.

Examples:
  straightway cache evict /nvme/cache s3://bucket/model/
  straightway cache evict /nvme/cache --older-than 30d --larger-than 1GiB s3://bucket/
  straightway cache evict /nvme/cache --all")]
pub struct Evict {
    /// The directory of the cache
    pub dir: PathBuf,
    /// Addresses of objects, in every version; those below it for one that ends with a slash
    #[arg(required_unless_present_any = ["all", "older_than", "larger_than"])]
    pub names: Vec<String>,
    /// All that it has
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Only objects of which nothing was read, and nothing came, for so long: 30d, 12h, 90s; without names, of all
    #[arg(long, value_name = "TIME", value_parser = size::parse_duration)]
    pub older_than: Option<Duration>,
    /// Only objects with more bytes, whatever of them is kept; without names, of all
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub larger_than: Option<u64>,
}
