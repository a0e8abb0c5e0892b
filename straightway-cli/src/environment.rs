//! Everything that the command reads from its environment. No other module does.

use std::{env, ffi::OsString, path::PathBuf};

/// The arguments, the program's name first.
pub fn arguments() -> Vec<OsString> {
    env::args_os().collect()
}

/// Where `demo` puts its files unless it is told: `TMPDIR`, else `/tmp`.
pub fn temporary_directory() -> PathBuf {
    env::temp_dir()
}
