//! The command's output: reports on stdout, as text for people or as one JSON object a line; progress on stderr.

use std::{
    fmt,
    io::{self, BufWriter, IsTerminal as _, Stdout, Write as _},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::fail::Fail;

/// Who reads stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// People.
    Text,
    /// Programs: one JSON object a line, each with its schema.
    Json,
}

/// Whether progress may be drawn, if stderr is a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawing {
    /// It may.
    Wanted,
    /// `--no-progress`.
    Forbidden,
}

/// What stdout carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Reports, and with JSON also the failure.
    Reports,
    /// The bytes of an object: reports and failures go to stderr.
    Bytes,
}

/// A result that can be shown both ways. The JSON is the truth, the text is a view of it.
pub trait Report: Serialize + fmt::Display {}

impl<T: Serialize + fmt::Display> Report for T {}

/// Stdout, and the way to make progress bars.
pub struct Out {
    format: Format,
    drawing: Drawing,
    carries: Carries,
    stdout: BufWriter<Stdout>,
}

impl Out {
    /// For one run of the command.
    pub fn new(format: Format, drawing: Drawing, carries: Carries) -> Self {
        let drawing = if io::stderr().is_terminal() { drawing } else { Drawing::Forbidden };
        Self { format, drawing, carries, stdout: BufWriter::new(io::stdout()) }
    }

    /// Whether programs read stdout.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a report, and flushes: a reader of JSON lines sees each as it comes.
    ///
    /// # Errors
    /// What writing to stdout gives.
    pub fn report(&mut self, report: &impl Report) -> Result<(), Fail> {
        let written = match self.format {
            Format::Text => writeln!(self.stdout, "{report}"),
            Format::Json => json_line(&mut self.stdout, report),
        };
        written.and_then(|()| self.stdout.flush()).map_err(|error| Fail::output(&error))
    }

    /// Prints a line for people; programs do not see it.
    ///
    /// # Errors
    /// What writing to stdout gives.
    pub fn text(&mut self, line: impl fmt::Display) -> Result<(), Fail> {
        match self.format {
            Format::Text => {
                writeln!(self.stdout, "{line}").and_then(|()| self.stdout.flush()).map_err(|error| Fail::output(&error))
            }
            Format::Json => Ok(()),
        }
    }

    /// Prints a report for programs; people do not see it.
    ///
    /// # Errors
    /// What writing to stdout gives.
    pub fn json(&mut self, report: &impl Serialize) -> Result<(), Fail> {
        match self.format {
            Format::Text => Ok(()),
            Format::Json => json_line(&mut self.stdout, report).map_err(|error| Fail::output(&error)),
        }
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// What writing to stdout gives.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fail> {
        self.stdout.write_all(bytes).map_err(|error| Fail::output(&error))
    }

    /// Passes on what is buffered.
    ///
    /// # Errors
    /// What writing to stdout gives.
    pub fn flush(&mut self) -> Result<(), Fail> {
        self.stdout.flush().map_err(|error| Fail::output(&error))
    }

    /// Prints a report on stderr for programs: for commands whose stdout carries bytes.
    pub fn report_beside(&self, report: &impl Serialize) {
        if self.format == Format::Json {
            // A closed stderr is no reason to fail a command that did its work.
            let _ = json_line(&mut io::stderr().lock(), report);
        }
    }

    /// Prints a failure: for people on stderr; for programs as the last JSON line on stdout, or on stderr if stdout
    /// carries bytes. A stream that fails in turn changes nothing.
    pub fn failure(&mut self, fail: &Fail) {
        // What was printed before stays before.
        let _ = self.stdout.flush();
        let _ = writeln!(io::stderr(), "straightway: error: {fail}");
        let _ = match (self.format, self.carries) {
            (Format::Text, _) => Ok(()),
            (Format::Json, Carries::Bytes) => json_line(&mut io::stderr().lock(), &fail.report()),
            (Format::Json, Carries::Reports) => json_line(&mut self.stdout, &fail.report()),
        };
    }

    /// A bar over `total` bytes, drawn on stderr if that is a terminal.
    pub fn progress(&self, total: u64, what: &str) -> Progress {
        self.bar(total, what, "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}")
    }

    /// The same over `total` steps.
    pub fn steps(&self, total: u64, what: &str) -> Progress {
        self.bar(total, what, "{msg} {bar:30} {pos}/{len}")
    }

    fn bar(&self, total: u64, what: &str, form: &str) -> Progress {
        if self.drawing == Drawing::Forbidden {
            return Progress(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Progress(bar)
    }
}

fn json_line(to: &mut impl io::Write, report: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, report)?;
    to.write_all(b"\n")?;
    to.flush()
}

/// A bar that vanishes when it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Adds bytes or steps that are done.
    pub fn add(&self, count: u64) {
        self.0.inc(count);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
