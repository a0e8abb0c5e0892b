//! `dataset`: indexes of samples over existing files.

mod index;
mod iterate;
mod pack;
mod stat;
mod verify;

use std::{num::NonZeroUsize, ops::ControlFlow, path::Path};

use straightway::{Engine, EntryKind, Uri};
use sw_data::{
    index::{BuildOptions, Event, Index, SideCars, build_in_memory},
    samples::Format,
};

use crate::{dataset_args::Dataset, fail::Fail, out::Out, signals};

/// Runs a subcommand.
///
/// # Errors
/// Why it ended without success.
pub fn run(command: &Dataset, out: &mut Out) -> Result<(), Fail> {
    match command {
        Dataset::Index(args) => index::run(args, out),
        Dataset::Stat(args) => stat::run(args, out),
        Dataset::Iterate(args) => iterate::run(args, out),
        Dataset::Verify(args) => verify::run(args, out),
        Dataset::Pack(args) => pack::run(args, out),
    }
}

/// An address that means the same from anywhere: an index outlives the directory that its maker was in.
///
/// # Errors
/// Of a path that is none, or of a directory that is gone.
fn absolute(text: &str) -> Result<String, Fail> {
    if text.contains("://") || text.starts_with("stripe:") || text.starts_with('/') || text.is_empty() {
        return Ok(text.to_owned());
    }
    let path =
        std::path::absolute(Path::new(text)).map_err(|error| Fail::system(&format!("finding {text}"), &error))?;
    Ok(path.to_string_lossy().into_owned())
}

fn all_absolute(texts: &[String]) -> Result<Vec<String>, Fail> {
    texts.iter().map(|text| absolute(text)).collect()
}

/// Opens an index by an address that may be relative.
///
/// # Errors
/// Of opening it.
fn open(engine: &Engine, uri: &Uri) -> Result<Index, Fail> {
    Ok(Index::open(engine, &absolute(&uri.to_string())?.parse()?)?)
}

/// Objects that are scanned at a time, for sources without an index.
const THREADS: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// The index that was named, or one of the sources in memory.
///
/// # Errors
/// Of opening or building it; an interrupt.
pub(super) fn index_of(
    engine: &Engine,
    sources: &[String],
    (format, column): (Option<Format>, Option<&str>),
    out: &Out,
) -> Result<Index, Fail> {
    let sources = all_absolute(sources)?;
    if let [one] = sources.as_slice()
        && !one.contains('{')
    {
        let uri = one.parse()?;
        if matches!(engine.stat(&uri), Ok(entry) if entry.kind == EntryKind::Object) && Index::is_one(engine, &uri)? {
            if column.is_some() {
                return Err(Fail::usage(
                    "an index is of one column already",
                    "leave --column out, or name the sources",
                ));
            }
            return Ok(Index::open(engine, &uri)?);
        }
    }
    // Samples are read at once: the walk costs little beside that, and finds the checksums to hold them against.
    let options = BuildOptions { format, column, sidecars: SideCars::Ignore, ..BuildOptions::new(THREADS) };
    let mut bar = None;
    let mut progress = |event: Event<'_>| {
        match event {
            Event::Found { objects } => bar = Some(out.steps(objects, "index")),
            Event::Object { .. } | Event::Damaged { .. } => bar.iter().for_each(|bar| bar.add(1)),
            Event::SideCar { .. } | Event::Deletes { .. } => {}
        }
        until_signal()
    };
    build_in_memory(engine, &sources, &options, &mut progress).map(|(_, index)| index).map_err(or_signal)
}

/// Goes on until a signal asks to stop.
fn until_signal() -> ControlFlow<()> {
    match signals::requested() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

/// A failure, or the signal that was its cause.
fn or_signal(error: straightway::Error) -> Fail {
    signals::requested().err().unwrap_or_else(|| error.into())
}
