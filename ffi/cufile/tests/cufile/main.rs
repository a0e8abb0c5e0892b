//! The library as programs see it: its names, and C programs that are compiled against our header and run.
//!
//! `cargo test -p straightway-cufile`
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

mod installed;
mod library;
mod program;

use std::path::{Path, PathBuf};

/// The package.
pub(crate) fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where this run may write.
pub(crate) fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}
