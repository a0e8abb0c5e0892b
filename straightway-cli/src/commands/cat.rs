//! `cat`: the exact bytes of an object on stdout.

use std::fmt;

use serde::Serialize;
use straightway::Memory;

use crate::{args::Cat, fail::Fail, out::Out, pipeline, route::Way, session};

/// What was written.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    uri: String,
    offset: u64,
    bytes: u64,
    crc64_nvme: String,
    routes: Vec<Way>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.bytes, self.uri)
    }
}

/// Runs it.
///
/// # Errors
/// `OutOfRange` if the range is not inside the object; else those of opening, reading and writing to stdout.
pub fn run(args: &Cat, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let object = engine.open(&args.uri)?;
        let range = range(args, object.len())?;
        let bytes = range.end - range.start;
        let mut sum = pipeline::Sum::default();
        let ways = pipeline::read_in_order((engine, &object), range, args.pipeline, args.policy, |piece| {
            sum.add(piece.checksum, piece.len);
            write_out(piece.memory, out)
        })?;
        out.flush()?;
        out.report_beside(&Report {
            schema: "straightway.cat/1",
            uri: args.uri.to_string(),
            offset: args.offset,
            bytes,
            crc64_nvme: format!("{:016x}", sum.value()),
            routes: ways.report(),
        });
        Ok(())
    })
}

/// The bytes asked for. A range past the end is refused before the first byte is written, not cut short.
fn range(args: &Cat, len: u64) -> Result<std::ops::Range<u64>, Fail> {
    let wanted = args.len.unwrap_or(len.saturating_sub(args.offset));
    match args.offset.checked_add(wanted) {
        Some(end) if args.offset <= len && end <= len => Ok(args.offset..end),
        _ => Err(Fail::new(
            crate::fail::Exit::Failed,
            straightway::ErrorKind::OutOfRange.name(),
            format!("read {} at {}+{wanted} failed: the object has {len} bytes", args.uri, args.offset),
            "choose an offset and length inside it; `straightway stat` tells its length",
        )),
    }
}

fn write_out(memory: Memory, out: &mut Out) -> Result<Memory, Fail> {
    match memory.into_buffer() {
        Ok(buffer) => {
            out.bytes(buffer.as_slice())?;
            Ok(buffer.into())
        }
        // Memory of `Spare` is host memory of the engine's own; anything else is copied out.
        Err(memory) => {
            let mut copy = vec![0; usize::try_from(memory.len()).unwrap_or(0)];
            memory.read(0, &mut copy)?;
            out.bytes(&copy)?;
            Ok(memory)
        }
    }
}
