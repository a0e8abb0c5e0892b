//! Everything that the command reads from its environment, and the limit there that it changes. No other module does.

use std::{env, ffi::OsString, path::PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

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

/// Raises this process's limit of open files to what it may be raised to: shells start programs with 1,024, and a checkpoint of as many
/// shards needs more. Where it cannot be raised, opening tells.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
