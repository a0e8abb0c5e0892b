//! `checkpoint verify`: structure, every byte readable, stored checksums.

use std::fmt;

use serde::Serialize;
use sw_checkpoint::{Checkpoint, Mismatch, Verified};

use crate::{
    args::CheckpointVerify,
    fail::Fail,
    out::Out,
    session::{self, Stopwatch},
    signals,
    size::{self, Bytes, Rate},
};

/// A file.
#[derive(Serialize)]
struct FileLine<'a> {
    schema: &'static str,
    name: &'a str,
    bytes: u64,
    checked_bytes: u64,
    checksums: u64,
    mismatches: Vec<MismatchLine<'a>>,
}

/// A range whose bytes are wrong.
#[derive(Serialize)]
struct MismatchLine<'a> {
    what: &'a str,
    algorithm: &'static str,
    file_offset: u64,
    len: u64,
    stored: String,
    found: String,
}

impl fmt::Display for FileLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} read", self.name.escape_debug(), Bytes(self.bytes))?;
        match self.checksums {
            0 => write!(f, ", no checksums stored")?,
            count => write!(f, ", {count} checksums over {}", Bytes(self.checked_bytes))?,
        }
        for MismatchLine { what, algorithm, file_offset, len, stored, found } in &self.mismatches {
            write!(
                f,
                "\n  {}: bytes {file_offset}+{len} have {algorithm} {found}, stored is {stored}",
                what.escape_debug()
            )?;
        }
        Ok(())
    }
}

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    checkpoint: String,
    format: &'static str,
    files: usize,
    tensors: usize,
    bytes: u64,
    checked_bytes: u64,
    checksums: u64,
    mismatches: u64,
    seconds: f64,
    bytes_per_s: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, files, tensors, checksums, mismatches, .. } = self;
        write!(f, "{format}: {tensors} tensors in {files} file(s), {} read", Bytes(self.bytes))?;
        write!(f, " at {}, {checksums} checksums over {}", Rate(self.bytes_per_s), Bytes(self.checked_bytes))?;
        if *mismatches == 0 { Ok(()) } else { write!(f, ", {mismatches} do not agree") }
    }
}

/// Runs it.
///
/// # Errors
/// Those of the checkpoint and of reading; verification, if a checksum does not agree.
pub fn run(args: &CheckpointVerify, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let checkpoint = Checkpoint::open(engine, &args.checkpoint)?;
        let catalog = checkpoint.catalog();
        let bytes = catalog.files().iter().fold(0, |sum: u64, file| sum.saturating_add(file.len_bytes));
        let progress = out.progress(bytes, "verify");
        let (mut checked_bytes, mut checksums, mut mismatches, mut first) = (0, 0, 0, None);
        checkpoint.verify(engine, |file: Verified| {
            signals::requested()?;
            progress.add(file.read_bytes);
            checked_bytes += file.checked_bytes;
            checksums += file.checksums;
            mismatches += file.mismatches.len() as u64;
            first = first.take().or_else(|| file.mismatches.first().cloned());
            out.report(&file_line(&file))
        })?;
        drop(progress);
        let seconds = clock.seconds();
        out.report(&Report {
            schema: "straightway.checkpoint.verify/1",
            checkpoint: args.checkpoint.to_string(),
            format: catalog.format().name(),
            files: catalog.files().len(),
            tensors: catalog.tensors().len(),
            bytes,
            checked_bytes,
            checksums,
            mismatches,
            seconds,
            bytes_per_s: size::rate(bytes, seconds),
        })?;
        match first {
            None => Ok(()),
            Some(Mismatch { file, what, algorithm, file_offset, len_bytes, stored, found }) => Err(Fail::verification(
                format!(
                    "bytes {file_offset}+{len_bytes} of {file} ({what}) have {algorithm} {found:08x}, stored is {stored:08x}"
                ),
                "restore the file from another copy",
            )),
        }
    })
}

fn file_line(file: &Verified) -> FileLine<'_> {
    let line = |mismatch: &'_ Mismatch| -> (u64, u64, String, String) {
        let Mismatch { file_offset, len_bytes, stored, found, .. } = mismatch;
        (*file_offset, *len_bytes, format!("{stored:08x}"), format!("{found:08x}"))
    };
    let mismatches = file.mismatches.iter().map(|mismatch| {
        let (file_offset, len, stored, found) = line(mismatch);
        MismatchLine { what: &mismatch.what, algorithm: mismatch.algorithm, file_offset, len, stored, found }
    });
    FileLine {
        schema: "straightway.checkpoint.verified/1",
        name: &file.name,
        bytes: file.read_bytes,
        checked_bytes: file.checked_bytes,
        checksums: file.checksums,
        mismatches: mismatches.collect(),
    }
}
