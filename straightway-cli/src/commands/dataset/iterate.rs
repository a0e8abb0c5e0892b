//! `dataset iterate`: samples in the order of an epoch.
//!
//! ```text
//!   epoch ─► share of a rank ─► samples ─► [read][read]… ─► digest, in order ─► a line each
//! ```

use std::fmt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use sw_data::{
    formats::Extent,
    index::{self, Fed, Feed, Want},
    order::{Method, OrderError, Sampler, Share, Tail, World},
    samples::{Part, Samples as _},
};

use crate::{
    dataset_args::Iterate,
    fail::Fail,
    out::Out,
    route::{Way, Ways},
    session::{self, Stopwatch},
    signals,
    size::Bytes,
};

use super::index_of;

/// A named part of a sample.
#[derive(Serialize)]
struct FieldReport {
    name: String,
    /// From the first byte of the sample.
    offset: u64,
    len: u64,
    sha256: Option<String>,
}

/// A sample.
#[derive(Serialize)]
struct SampleReport {
    schema: &'static str,
    sample: u64,
    key: String,
    group: u32,
    uri: String,
    format: &'static str,
    offset: u64,
    len: u64,
    row: Option<u32>,
    crc32c: Option<String>,
    sha256: Option<String>,
    fields: Vec<FieldReport>,
}

impl fmt::Display for SampleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10} {:>12}  {}", self.sample, self.len, self.key.escape_debug())?;
        let names: Vec<&str> = self.fields.iter().map(|field| field.name.as_str()).collect();
        if !names.is_empty() {
            write!(f, " ({})", names.join(", ").escape_debug())?;
        }
        self.sha256.as_ref().map_or(Ok(()), |digest| write!(f, "  {digest}"))
    }
}

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    samples: u64,
    bytes: u64,
    of_samples: u64,
    method: String,
    seed: u64,
    epoch: u64,
    rank: u64,
    world: u64,
    seconds: f64,
    routes: Vec<Way>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, bytes, of_samples, epoch, rank, world, seconds, .. } = self;
        write!(f, "{samples} samples ({}) of {of_samples}, epoch {epoch}, rank {rank} of {world}", Bytes(*bytes))?;
        write!(f, ", in {seconds:.3} s")?;
        self.routes.iter().try_for_each(|way| write!(f, "\n  {way}"))
    }
}

/// Runs it.
///
/// # Errors
/// Those of the sources or the index, of objects that changed, and of reading; an interrupt.
pub fn run(args: &Iterate, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let index = index_of(engine, &args.sources, (args.format, args.column.as_deref()), out)?;
        let seed = args.seed.unwrap_or(0);
        let method = args.method.unwrap_or(if args.seed.is_some() { Method::Shuffle } else { Method::Sequence });
        let sampler = Sampler::new(index.len(), seed, method).map_err(|error| misuse(&error))?;
        let epoch = sampler.epoch(args.epoch);
        let world = World::new(args.rank, args.world).map_err(|error| misuse(&error))?;
        let share = Share::new(epoch.len(), 0, world, Tail::Uneven);
        let limit = usize::try_from(args.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let numbers = share.filter_map(|position| epoch.at(position)).take(limit);
        let want = if args.digest { Want::Bytes } else { Want::Places };
        let mut feed = Feed::new(engine, &index, numbers, want);
        let (mut samples, mut bytes, mut ways) = (0, 0, Ways::default());
        while let Some(fed) = feed.next_sample()? {
            signals::requested()?;
            samples += 1;
            bytes += fed.place.extent.len;
            fed.path.iter().for_each(|path| ways.add(path));
            out.report(&sample_report(&fed, want)?)?;
        }
        out.report(&Report {
            schema: "straightway.dataset.iterate/1",
            samples,
            bytes,
            of_samples: index.len(),
            method: text(method),
            seed,
            epoch: args.epoch,
            rank: args.rank,
            world: args.world,
            seconds: clock.seconds(),
            routes: ways.report(),
        })
    })
}

fn sample_report(fed: &Fed, want: Want) -> Result<SampleReport, Fail> {
    let Fed { number, place, label, entry, bytes, .. } = fed;
    let digests = match want {
        Want::Places => None,
        Want::Bytes => Some(digests(bytes.as_ref(), &label.parts)?),
    };
    let field = |(at, part): (usize, &Part)| FieldReport {
        name: part.name.clone(),
        offset: part.extent.offset,
        len: part.extent.len,
        sha256: digests.as_ref().and_then(|(_, each)| each.get(at).cloned()),
    };
    Ok(SampleReport {
        schema: "straightway.dataset.sample/1",
        sample: *number,
        key: label.key.clone(),
        group: label.group,
        uri: entry.uri.clone(),
        format: entry.format.name(),
        offset: place.extent.offset,
        len: place.extent.len,
        row: place.row,
        crc32c: place.crc32c.map(|sum| format!("{sum:08x}")),
        fields: label.parts.iter().enumerate().map(field).collect(),
        sha256: digests.map(|(whole, _)| whole),
    })
}

/// A method as the command line takes it.
fn text(method: Method) -> String {
    match method {
        Method::Sequence => "sequence".to_owned(),
        Method::Blocks { samples, blocks } => format!("blocks={samples}x{blocks}"),
        _ => "shuffle".to_owned(),
    }
}

fn misuse(error: &OrderError) -> Fail {
    Fail::usage(error.to_string(), "see `straightway dataset iterate --help`")
}

/// SHA-256 of a sample: of its parts one behind the other, or of all its bytes if it has none; and of each part.
fn digests(bytes: Option<&index::Bytes>, parts: &[Part]) -> Result<(String, Vec<String>), Fail> {
    let hex = |digest: Sha256| digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut whole = Sha256::new();
    if let (Some(bytes), []) = (bytes, parts) {
        bytes.visit(Extent { offset: 0, len: bytes.len() }, |piece| whole.update(piece))?;
    }
    let mut each = Vec::with_capacity(parts.len());
    for part in parts {
        let mut digest = Sha256::new();
        if let Some(bytes) = bytes {
            bytes.visit(part.extent, |piece| {
                digest.update(piece);
                whole.update(piece);
            })?;
        }
        each.push(hex(digest));
    }
    Ok((hex(whole), each))
}
