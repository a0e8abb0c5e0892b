//! The C interface as C programs see it: the header, the shared library, programs that are compiled and run.
//!
//! `cargo test -p straightway-c`
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

mod document;
mod fio;
mod header;
mod installed;
mod library;
mod program;

use std::{path::PathBuf, sync::LazyLock};

use sw_testkit::native::{Library, Source};

/// The library under its names.
pub(crate) static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    Library::stage(Source {
        package: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        file: "libstraightway_c.so",
        name: "libstraightway.so",
        option: "--library",
        environment: &[],
    })
});

/// Where this run may write.
pub(crate) fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// A committed file that is made: it must be what was made now.
pub(crate) fn same_or_written(committed: &str, fresh: &str) {
    let path = LIBRARY.in_package(committed);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    if old == fresh {
        return;
    }
    let name = path.file_name().unwrap();
    let copy = scratch().join(name);
    std::fs::write(&copy, fresh).unwrap();
    panic!("ffi/c/{committed} is not what the sources say; copy {} over it", copy.display());
}
