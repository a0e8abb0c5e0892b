//! `checkpoint convert`: the tensors of a checkpoint of any format in another one.

use std::{fmt, path::Path};

use serde::Serialize;
use sw_checkpoint::{Checkpoint, DcpOptions, Layout, LayoutOptions, Pattern};

use crate::{
    args::{CheckpointConvert, ConvertTo},
    fail::Fail,
    out::Out,
    route::Landed,
    session::{self, Stopwatch},
    signals,
    size::{self, Bytes, Rate},
};

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    checkpoint: String,
    out: String,
    from: &'static str,
    to: &'static str,
    files: Vec<String>,
    tensors: u64,
    tensor_bytes: u64,
    written: Landed,
    /// Values that are no tensors: written, and left behind.
    other_values: u64,
    left_behind: u64,
    seconds: f64,
    tensor_bytes_per_s: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, tensors, out, other_values, left_behind, .. } = self;
        write!(f, "{from} to {to}: {tensors} tensors, {} into ", Bytes(self.tensor_bytes))?;
        write!(f, "{} file(s) of {out}, {}", self.files.len(), Rate(self.tensor_bytes_per_s))?;
        if *other_values > 0 {
            write!(f, "; {other_values} other values came along")?;
        }
        if *left_behind > 0 {
            write!(f, "; {left_behind} other values were left behind, they cannot be carried from {from} to {to}")?;
        }
        Ok(())
    }
}

/// Runs it.
///
/// # Errors
/// Those of the checkpoint, of reading and writing; an interrupt, which leaves nothing behind.
pub fn run(args: &CheckpointConvert, out: &mut Out) -> Result<(), Fail> {
    let pattern = match &args.tensors {
        None => Pattern::all(),
        Some(text) => Pattern::parse(text)
            .map_err(|error| Fail::usage(error.to_string(), "see `straightway load --help` for patterns"))?,
    };
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let checkpoint = Checkpoint::open(engine, &args.checkpoint)?;
        let catalog = checkpoint.catalog();
        let wants = checkpoint.wants(&pattern)?;
        let positions: Vec<usize> = wants.iter().map(|want| want.tensor).collect();
        let tensor_bytes = wants.iter().filter_map(|want| want.len_bytes(catalog)).sum();
        let layout = match args.to {
            ConvertTo::Safetensors => {
                Layout::from(LayoutOptions { shard_len_max_bytes: args.shard_size, ..LayoutOptions::default() })
            }
            ConvertTo::Dcp => Layout::Dcp(DcpOptions { file_len_max_bytes: args.shard_size }),
        };
        let progress = out.progress(tensor_bytes, "convert");
        let converted = checkpoint.convert(engine, &positions, (Path::new(&args.out), &layout), |bytes| {
            progress.add(bytes);
            signals::requested()
        })?;
        drop(progress);
        let seconds = clock.seconds();
        out.report(&Report {
            schema: "straightway.checkpoint.convert/1",
            checkpoint: args.checkpoint.to_string(),
            out: args.out.to_string_lossy().into_owned(),
            from: catalog.format().name(),
            to: args.to.name(),
            files: converted.files,
            tensors: converted.tensors,
            tensor_bytes,
            written: converted.bytes.into(),
            other_values: converted.objects,
            left_behind: (catalog.leaves().len() as u64).saturating_sub(converted.objects),
            seconds,
            tensor_bytes_per_s: size::rate(tensor_bytes, seconds),
        })
    })
}
