//! The library as programs see it: its names, and C programs that are compiled against our header and run.
//!
//! `cargo test -p straightway-cufile`
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

mod installed;
mod library;
mod program;

use std::sync::LazyLock;

use sw_testkit::native::{Library, Source};

/// The library under its names.
pub(crate) static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    Library::stage(Source {
        package: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        file: "libstraightway_cufile.so",
        name: "libcufile.so",
        option: "--cufile",
        // A configuration of this machine's is none of the tests'.
        environment: &[("CUFILE_ENV_PATH_JSON", "/nonexistent/cufile.json")],
    })
});
