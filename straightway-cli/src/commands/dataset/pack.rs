//! `dataset pack`.

use std::{fmt, fs, io, path::Path};

use serde::Serialize;
use sw_data::{
    index::{BuildOptions, SideCars, build},
    pack::{Container, Element, PackOptions, pack},
    samples::Samples as _,
};

use crate::{
    dataset_args::{Container as Kind, Pack},
    fail::{Exit, Fail},
    out::Out,
    session::{self, Stopwatch},
    size::Bytes,
};

use super::{THREADS, absolute, index_of, or_signal, until_signal};

/// Where contents of archives begin unless it is said: a page, and a block of any medium.
const ALIGN_BYTES: u64 = 4096;
/// The index of what was packed.
const INDEX_NAME: &str = "samples.index.arrow";

/// What was packed.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    folder: String,
    index: String,
    shards: usize,
    samples: u64,
    packed_samples: u64,
    entries: u64,
    content_bytes: u64,
    shard_bytes: u64,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples as {} of {} shards ({}, contents {}) in {:.3} s; index {}",
            self.samples,
            self.packed_samples,
            self.shards,
            Bytes(self.shard_bytes),
            Bytes(self.content_bytes),
            self.seconds,
            self.index
        )
    }
}

/// Runs it.
///
/// # Errors
/// Those of the sources and of writing; `in_use` for a folder that holds something; an interrupt, after which the shards that are
/// whole are in place.
pub fn run(args: &Pack, out: &mut Out) -> Result<(), Fail> {
    let element = args.dtype.unwrap_or(Element::BYTE);
    if args.dtype.is_some() && args.format != Kind::Npy {
        return Err(Fail::usage("only arrays have elements of a type", "leave --dtype out, or pack as npy"));
    }
    let container = match (args.format, args.align) {
        (Kind::Tar, align) => Container::Tar { align: align.unwrap_or(ALIGN_BYTES) },
        (Kind::Tfrecord, None) => Container::TfRecord,
        (Kind::Npy, None) => Container::Npy(element),
        (Kind::Tfrecord | Kind::Npy, Some(_)) => {
            return Err(Fail::usage("only archives have room for alignment", "leave --align out, or pack as tar"));
        }
    };
    let folder = absolute(&args.out.to_string_lossy())?;
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let index = index_of(engine, &args.sources, (None, args.column.as_deref()), out)?;
        make_folder(Path::new(&folder))?;
        let options = PackOptions { container, shard_bytes: args.shard_size };
        let bar = out.steps(index.len(), "pack");
        let packed = pack(engine, &index, &folder, &options, &mut |_| {
            bar.add(1);
            until_signal()
        });
        drop(bar);
        let packed = packed.map_err(or_signal)?;
        let to = format!("{folder}/{INDEX_NAME}");
        let options = BuildOptions { sidecars: SideCars::Ignore, ..BuildOptions::new(THREADS) };
        let built =
            build(engine, &packed.shards, &to.parse()?, &options, &mut |_| until_signal()).map_err(or_signal)?;
        out.report(&Report {
            schema: "straightway.dataset.pack/1",
            folder,
            index: to,
            shards: packed.shards.len(),
            samples: packed.samples,
            packed_samples: built.samples,
            entries: packed.entries,
            content_bytes: packed.content_bytes,
            shard_bytes: packed.shard_bytes,
            seconds: clock.seconds(),
        })
    })
}

/// A folder with nothing in it: shards of an earlier, longer packing would be taken for a part of this one.
fn make_folder(folder: &Path) -> Result<(), Fail> {
    let failed = |error: io::Error| Fail::system(&format!("making {}", folder.display()), &error);
    match fs::create_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::read_dir(folder).map_err(failed)?.next() {
                None => Ok(()),
                Some(_) => {
                    let what = format!("{} is not empty", folder.display());
                    Err(Fail::new(Exit::InUse, "already_exists", what, "name a new folder, or empty it"))
                }
            }
        }
        Err(error) => Err(failed(error)),
    }
}
