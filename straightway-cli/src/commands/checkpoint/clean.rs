//! `checkpoint clean`: removes what dead writers of checkpoints left.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{args::CheckpointClean, fail::Fail, out::Out};

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    directory: String,
    removed: Vec<String>,
    /// Being written now, or by a writer that nobody can prove gone.
    kept: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for removed in &self.removed {
            writeln!(f, "removed  {}", removed.escape_debug())?;
        }
        for kept in &self.kept {
            writeln!(f, "kept     {}  being written, or its writer cannot be asked", kept.escape_debug())?;
        }
        write!(f, "{} leftovers removed, {} kept", self.removed.len(), self.kept.len())
    }
}

/// Runs it.
///
/// # Errors
/// What the system reports.
pub fn run(args: &CheckpointClean, out: &mut Out) -> Result<(), Fail> {
    let cleaned = sw_checkpoint::clean(&args.directory)?;
    let names = |paths: Vec<PathBuf>| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    out.report(&Report {
        schema: "straightway.checkpoint.clean/1",
        directory: args.directory.to_string_lossy().into_owned(),
        removed: names(cleaned.removed),
        kept: names(cleaned.kept),
    })
}
