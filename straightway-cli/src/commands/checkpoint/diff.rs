//! `checkpoint diff`: names, types, shapes and bytes of the tensors of two checkpoints.

use std::fmt;

use serde::Serialize;
use sw_checkpoint::{Checkpoint, Difference};

use crate::{
    args::CheckpointDiff,
    fail::{Exit, Fail},
    out::Out,
    session, signals,
};

/// A tensor that is not the same.
#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    name: &'a str,
    difference: &'static str,
    /// Type and shape in the first and in the second.
    first: Option<String>,
    second: Option<String>,
    /// The first byte of the tensor that differs.
    first_byte: Option<u64>,
    reason: Option<String>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.escape_debug();
        let (first, second) = (self.first.as_deref().unwrap_or(""), self.second.as_deref().unwrap_or(""));
        match (self.difference, self.first_byte, &self.reason) {
            ("only_in_first", ..) => write!(f, "- {name}  {first}"),
            ("only_in_second", ..) => write!(f, "+ {name}  {second}"),
            ("layout", ..) => write!(f, "! {name}  {first} against {second}"),
            (_, Some(byte), _) => write!(f, "! {name}  {first}  bytes differ from byte {byte} on"),
            (_, _, reason) => write!(f, "? {name}  {}", reason.as_deref().unwrap_or("")),
        }
    }
}

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    first: String,
    second: String,
    same: u64,
    different: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors are the same, {} are not", self.same, self.different)
    }
}

/// Runs it.
///
/// # Errors
/// Those of the checkpoints and of reading; `different` with exit code 1 if they are not the same.
pub fn run(args: &CheckpointDiff, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let first = Checkpoint::open(engine, &args.first)?;
        let second = Checkpoint::open(engine, &args.second)?;
        let mut different = 0;
        let same = first.diff(engine, &second, |name: &str, difference: Difference| {
            signals::requested()?;
            different += 1;
            let told = |checkpoint: &Checkpoint| {
                checkpoint.catalog().get(name).map(|tensor| format!("{} {:?}", tensor.dtype, tensor.shape))
            };
            let (first_byte, reason) = match &difference {
                Difference::Bytes { first } => (Some(*first), None),
                Difference::Unknown { reason } => (None, Some(reason.clone())),
                _ => (None, None),
            };
            out.report(&Line {
                schema: "straightway.checkpoint.difference/1",
                name,
                difference: difference.name(),
                first: told(&first),
                second: told(&second),
                first_byte,
                reason,
            })
        })?;
        out.report(&Report {
            schema: "straightway.checkpoint.diff/1",
            first: args.first.to_string(),
            second: args.second.to_string(),
            same,
            different,
        })?;
        if different == 0 {
            return Ok(());
        }
        Err(Fail::new(Exit::Failed, "different", format!("{different} tensors are not the same"), ""))
    })
}
