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

/// The directory that this program's file is in, if the system tells.
pub fn program_directory() -> Option<PathBuf> {
    env::current_exe().ok()?.parent().map(PathBuf::from)
}

/// The directories of `PATH`, for the program that `hwtest` runs.
#[expect(clippy::disallowed_methods, reason = "this module is where the command reads its environment")]
pub fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}
