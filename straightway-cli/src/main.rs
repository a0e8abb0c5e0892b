//! The `straightway` command: a client of the engine for people and scripts.
//!
//! ```text
//!   args ─► commands/* ─► engine (facade) ─► Report: text view or JSON, on stdout
//!                │                                │
//!                └── Fail: one line on stderr ────┴─► exit code
//! ```
//!
//! Invariants, as absences: no module but `environment` reads the environment; nothing here moves an object's bytes
//! except through the engine (the bench's ceiling does, to have something to compare with); nothing panics on what it is
//! given; no wait without an end that a signal or a bound sets.
//! Read on: `docs/cli.md` for users, `docs/json.md` for the shape of `--json`.

#![forbid(unsafe_code)]

mod agent_args;
mod args;
mod cache_args;
mod commands;
mod dataset_args;
mod environment;
mod fail;
mod machine_args;
mod out;
mod pattern;
mod pipeline;
mod route;
mod session;
mod signals;
mod size;
mod target_args;
mod usage;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;

use crate::{
    args::{Cli, Command},
    fail::Fail,
    out::{Carries, Drawing, Format, Out},
};

fn main() -> ExitCode {
    signals::install();
    environment::raise_open_files();
    let arguments = environment::arguments();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_run(&error, &arguments),
    };
    let format = if cli.common.json { Format::Json } else { Format::Text };
    let drawing = if cli.common.no_progress { Drawing::Forbidden } else { Drawing::Wanted };
    let carries = if matches!(cli.command, Command::Cat(_)) { Carries::Bytes } else { Carries::Reports };
    let mut out = Out::new(format, drawing, carries);
    match commands::run(cli.command, &mut out).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => end(&fail, &mut out),
    }
}

/// Help and version go to stdout; anything else is a usage error.
fn not_run(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        // A reader that has gone wants no help.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let format = if has("--json") { Format::Json } else { Format::Text };
    let carries = if has("cat") { Carries::Bytes } else { Carries::Reports };
    end(&usage::fail(error, arguments), &mut Out::new(format, Drawing::Forbidden, carries))
}

/// Says why, once, and gives the exit code.
fn end(fail: &Fail, out: &mut Out) -> ExitCode {
    if !fail.is_silent() {
        out.failure(fail);
    }
    ExitCode::from(fail.exit().code())
}
