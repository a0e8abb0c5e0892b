//! `load`: a checkpoint into host or GPU memory.

use std::fmt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use straightway::Engine;
use sw_checkpoint::{LoadOptions, Loaded, LoadedTensor, Pattern, Verify};

use crate::{
    args::Load,
    fail::Fail,
    out::Out,
    route::{Way, Ways},
    session::{self, Stopwatch},
    signals,
    size::{self, Bytes, Rate},
};

/// A tensor.
#[derive(Serialize)]
struct TensorReport<'a> {
    schema: &'static str,
    name: &'a str,
    dtype: &'static str,
    shape: &'a [u64],
    len: u64,
    file: &'a str,
    sha256: Option<String>,
}

impl fmt::Display for TensorReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = format!("{:?}", self.shape);
        write!(f, "{:<8} {:<20} {:>12}  {}", self.dtype, shape, self.len, self.name.escape_debug())?;
        match &self.sha256 {
            Some(digest) => write!(f, "  {digest}"),
            None => Ok(()),
        }
    }
}

/// A file.
#[derive(Serialize)]
struct FileReport<'a> {
    schema: &'static str,
    name: &'a str,
    routes: Vec<Way>,
    verified_bytes: u64,
    unverified_bytes: u64,
}

impl fmt::Display for FileReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.routes.iter().try_for_each(|way| write!(f, "\n  {way}"))?;
        match (self.verified_bytes, self.unverified_bytes) {
            (0, _) => Ok(()),
            (verified, 0) => write!(f, "\n  checksums agree over {}", Bytes(verified)),
            (verified, not) => write!(f, "\n  checksums agree over {}, {} not verified", Bytes(verified), Bytes(not)),
        }
    }
}

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    checkpoint: String,
    into: String,
    files: usize,
    tensors: usize,
    tensor_bytes: u64,
    gap_bytes: u64,
    verify: &'static str,
    verification: &'static str,
    verified_bytes: u64,
    unverified_bytes: u64,
    rest_bytes: u64,
    landed_bytes: u64,
    landed_refusal: Option<String>,
    seconds: f64,
    tensor_bytes_per_s: f64,
    digest_seconds: Option<f64>,
    routes: Vec<Way>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tensors, {} of {} file(s) into {} in {:.3} s, {}",
            self.tensors,
            Bytes(self.tensor_bytes),
            self.files,
            self.into,
            self.seconds,
            Rate(self.tensor_bytes_per_s)
        )?;
        if self.gap_bytes > 0 {
            write!(f, "; {} read beside them", Bytes(self.gap_bytes))?;
        }
        match (self.verification, self.verified_bytes, self.unverified_bytes) {
            ("compared", verified, 0) => write!(f, "; checksums agree over {}", Bytes(verified)),
            ("compared", 0, not) => write!(f, "; {} not verified, only parts of chunks were read", Bytes(not)),
            ("compared", verified, not) => {
                write!(f, "; checksums agree over {}, {} not verified", Bytes(verified), Bytes(not))
            }
            ("none", ..) => write!(f, "; not verified, there are no checksums beside it"),
            _ => write!(f, "; not verified"),
        }?;
        match &self.landed_refusal {
            Some(refusal) => write!(f, "; not compared again in {} ({refusal})", self.into),
            None if self.landed_bytes > 0 => {
                write!(f, "; {} compared again in {}", Bytes(self.landed_bytes), self.into)
            }
            None => Ok(()),
        }
    }
}

/// Runs it.
///
/// # Errors
/// Those of the checkpoint, of reading, and of the planner; an interrupt.
pub fn run(args: &Load, out: &mut Out) -> Result<(), Fail> {
    let tensors = match &args.tensors {
        None => Pattern::all(),
        Some(text) => Pattern::parse(text)
            .map_err(|error| Fail::usage(error.to_string(), "see `straightway load --help` for patterns"))?,
    };
    // Digests are computed afterwards, so that the time of the load is the load's.
    let verify = Verify::from(args.verify);
    let (into, policy) = (args.into, args.policy);
    let options = LoadOptions { into, tensors, policy, verify, digest: false, ..LoadOptions::default() };
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let loaded = sw_checkpoint::load(engine, &args.checkpoint, &options)?;
        let seconds = clock.seconds();
        signals::requested()?;
        let clock = Stopwatch::start();
        for tensor in &loaded.tensors {
            let digest = args.digest.then(|| digest(engine, &loaded, tensor)).transpose()?;
            out.report(&tensor_report(&loaded, tensor, digest))?;
        }
        let digest_seconds = args.digest.then(|| clock.seconds());
        let mut all = Ways::default();
        for file in &loaded.files {
            let ways = ways_of(file);
            out.report(&FileReport {
                schema: "straightway.load.file/1",
                name: &file.name,
                routes: ways.report(),
                verified_bytes: file.verified_bytes,
                unverified_bytes: file.unverified_bytes,
            })?;
            all.join(ways);
        }
        out.report(&Report {
            schema: "straightway.load/1",
            checkpoint: args.checkpoint.to_string(),
            into: args.into.to_string(),
            files: loaded.files.len(),
            tensors: loaded.tensors.len(),
            tensor_bytes: loaded.tensor_bytes,
            gap_bytes: loaded.gap_bytes,
            verify: verify.name(),
            verification: loaded.verification.name(),
            verified_bytes: loaded.files.iter().map(|file| file.verified_bytes).sum(),
            unverified_bytes: loaded.files.iter().map(|file| file.unverified_bytes).sum(),
            rest_bytes: loaded.rest_bytes,
            landed_bytes: loaded.landed.as_ref().map_or(0, |landed| landed.compared_bytes),
            landed_refusal: loaded.landed.as_ref().and_then(|landed| landed.refusal.as_ref()).map(ToString::to_string),
            seconds,
            tensor_bytes_per_s: size::rate(loaded.tensor_bytes, seconds),
            digest_seconds,
            routes: all.report(),
        })
    })
}

/// The ways of a file's reads.
pub fn ways_of(file: &sw_checkpoint::FileReport) -> Ways {
    let mut ways = Ways::default();
    file.ways.iter().for_each(|way| ways.add_many(&way.path, way.reads));
    ways
}

fn tensor_report<'a>(loaded: &'a Loaded, tensor: &'a LoadedTensor, sha256: Option<String>) -> TensorReport<'a> {
    TensorReport {
        schema: "straightway.load.tensor/1",
        name: &tensor.name,
        dtype: tensor.dtype.name(),
        shape: &tensor.shape,
        len: tensor.len_bytes,
        file: tensor.file.and_then(|file| loaded.files.get(file)).map_or("", |file| &file.name),
        sha256,
    }
}

/// SHA-256 of a tensor's bytes, wherever they are, in hexadecimal.
fn digest(engine: &Engine, loaded: &Loaded, tensor: &LoadedTensor) -> Result<String, Fail> {
    signals::requested()?;
    let bytes = loaded.bytes_of(engine, tensor)?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
