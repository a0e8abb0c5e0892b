//! How a command fails: one line for people, one object for machines, one exit code.

use std::{fmt, io};

use serde::Serialize;
use straightway::{Error, ErrorKind, Reason};

/// Exit codes. A test compares them with the table of `docs/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The operation failed in a way that no other code names.
    Failed,
    /// The command line is wrong.
    Usage,
    /// There is nothing at that address.
    NotFound,
    /// The system refuses access.
    Permission,
    /// No route meets the policy.
    PolicyUnmet,
    /// Bytes are not what they should be.
    Verification,
    /// No space.
    NoSpace,
    /// The device, driver or ability is not there.
    Unsupported,
    /// A limit of the system.
    Limit,
    /// Somebody else holds it, or it exists already.
    InUse,
    /// Outside data does not follow its format.
    BadFormat,
    /// Ended by a signal, whose number is added to 128.
    Signal(u8),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Permission => 4,
            Self::PolicyUnmet => 5,
            Self::Verification => 6,
            Self::NoSpace => 7,
            Self::Unsupported => 8,
            Self::Limit => 9,
            Self::InUse => 10,
            Self::BadFormat => 11,
            Self::Signal(number) => 128_u8.saturating_add(number),
        }
    }
}

/// The number of SIGPIPE: what a tool exits with, plus 128, when the reader of its output has gone.
const SIGPIPE: u8 = 13;

/// Why a command ends without success.
#[derive(Debug)]
pub struct Fail {
    exit: Exit,
    kind: &'static str,
    message: String,
    remedy: String,
    reasons: Vec<Reason>,
}

/// The object that `--json` prints for it.
#[derive(Serialize)]
pub struct FailReport<'a> {
    schema: &'static str,
    kind: &'static str,
    exit: u8,
    message: String,
    remedy: &'a str,
    reasons: Vec<&'static str>,
}

impl Fail {
    /// A failure of the command itself. `message` is lower case without a final full stop; `remedy` may be empty.
    pub fn new(exit: Exit, kind: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { exit, kind, message: message.into(), remedy: remedy.into(), reasons: Vec::new() }
    }

    /// Wrong arguments.
    pub fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message, remedy)
    }

    /// Bytes that are not what they should be.
    pub fn verification(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Exit::Verification, ErrorKind::ChecksumMismatch.name(), message, remedy)
    }

    /// A signal asked the command to stop.
    pub fn interrupted(signal: usize) -> Self {
        let number = u8::try_from(signal).unwrap_or(0);
        Self::new(Exit::Signal(number), "interrupted", format!("stopped by signal {number}"), "")
    }

    /// A failure to write the command's own output.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Signal(SIGPIPE), "broken_pipe", "", ""),
            io::ErrorKind::StorageFull => {
                Self::new(Exit::NoSpace, ErrorKind::NoSpace.name(), format!("write to stdout failed: {error}"), "")
            }
            _ => Self::new(Exit::Failed, ErrorKind::Io.name(), format!("write to stdout failed: {error}"), ""),
        }
    }

    /// A failure of the system on a file of the command's own.
    pub fn system(doing: &str, error: &io::Error) -> Self {
        let (exit, kind) = match error.kind() {
            io::ErrorKind::NotFound => (Exit::NotFound, ErrorKind::NotFound),
            io::ErrorKind::PermissionDenied => (Exit::Permission, ErrorKind::PermissionDenied),
            io::ErrorKind::StorageFull => (Exit::NoSpace, ErrorKind::NoSpace),
            io::ErrorKind::AlreadyExists => (Exit::InUse, ErrorKind::AlreadyExists),
            _ => (Exit::Failed, ErrorKind::Io),
        };
        Self::new(exit, kind.name(), format!("{doing} failed: {error}"), "")
    }

    /// The same, with something more to know.
    #[must_use]
    pub fn and(self, more: &str) -> Self {
        let told = self.to_string();
        if self.is_silent() { self } else { Self { message: format!("{told}; {more}"), remedy: String::new(), ..self } }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether the reader of the output has gone: nothing is said then.
    pub fn is_silent(&self) -> bool {
        self.exit == Exit::Signal(SIGPIPE)
    }

    /// The object for `--json`.
    pub fn report(&self) -> FailReport<'_> {
        FailReport {
            schema: "straightway.error/1",
            kind: self.kind,
            exit: self.exit.code(),
            message: one_line(&self.message),
            remedy: &self.remedy,
            reasons: self.reasons.iter().map(|reason| reason.code()).collect(),
        }
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))?;
        // The text of an engine's error ends in its remedy already.
        if !self.remedy.is_empty() && !self.message.ends_with(&self.remedy) {
            write!(f, "; {}", one_line(&self.remedy))?;
        }
        Ok(())
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self {
            exit: exit_of(error.kind()),
            kind: error.kind().name(),
            message: error.to_string(),
            remedy: error.remedy_text().to_owned(),
            reasons: error.reasons().to_vec(),
        }
    }
}

/// The exit code of each kind of the engine's errors.
pub fn exit_of(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::ApiMisuse | ErrorKind::BadUri => Exit::Usage,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::PermissionDenied => Exit::Permission,
        ErrorKind::PolicyUnmet => Exit::PolicyUnmet,
        ErrorKind::ChecksumMismatch => Exit::Verification,
        ErrorKind::NoSpace => Exit::NoSpace,
        ErrorKind::NoDevice | ErrorKind::Unsupported => Exit::Unsupported,
        ErrorKind::ResourceLimit => Exit::Limit,
        ErrorKind::InUse | ErrorKind::AlreadyExists => Exit::InUse,
        ErrorKind::BadFormat => Exit::BadFormat,
        _ => Exit::Failed,
    }
}

/// File names may hold line breaks; an error is one line all the same.
fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped: Vec<char> = if c.is_control() { c.escape_default().collect() } else { vec![c] };
            escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use straightway::Verb;

    #[test]
    fn an_engine_error_keeps_kind_reasons_and_one_remedy() {
        let error = Error::new(ErrorKind::PolicyUnmet, Verb::Plan)
            .at("/a\nb")
            .with_reasons(vec![Reason::NoDriver])
            .remedy("relax the policy");
        let fail = Fail::from(error);
        let line = fail.to_string();
        assert_eq!(line.matches("relax the policy").count(), 1, "{line}");
        assert!(!line.contains('\n') && line.contains("/a\\nb"), "{line}");
        let json = serde_json::to_value(fail.report()).unwrap();
        assert_eq!((json["exit"].as_u64(), json["reasons"][0].as_str()), (Some(5), Some("NO_GPU_DRIVER")));
    }

    /// The page that users read.
    const PAGE: &str = include_str!("../../docs/cli.md");

    #[test]
    fn the_page_has_the_exit_code_of_every_kind() {
        let kinds = [
            ErrorKind::ApiMisuse,
            ErrorKind::BadUri,
            ErrorKind::NotFound,
            ErrorKind::PermissionDenied,
            ErrorKind::WrongKind,
            ErrorKind::OutOfRange,
            ErrorKind::TooLarge,
            ErrorKind::NotRegistered,
            ErrorKind::NoDevice,
            ErrorKind::PolicyUnmet,
            ErrorKind::ShortData,
            ErrorKind::Changed,
            ErrorKind::Io,
            ErrorKind::NoSpace,
            ErrorKind::ResourceLimit,
            ErrorKind::Busy,
            ErrorKind::DeadlineExceeded,
            ErrorKind::Cancelled,
            ErrorKind::Closed,
            ErrorKind::ChecksumMismatch,
            ErrorKind::Protocol,
            ErrorKind::Forked,
            ErrorKind::Poisoned,
            ErrorKind::Unsupported,
            ErrorKind::BadFormat,
            ErrorKind::InUse,
            ErrorKind::AlreadyExists,
        ];
        for kind in kinds {
            let row = PAGE.lines().find(|line| line.starts_with("| ") && line.contains(&format!("`{}`", kind.name())));
            let row = row.unwrap_or_else(|| panic!("docs/cli.md has no row with {}", kind.name()));
            let code = format!("| {} |", exit_of(kind).code());
            assert!(row.starts_with(&code), "{} ends with {code}, the page says {row}", kind.name());
        }
    }

    #[test]
    fn a_gone_reader_is_silent_and_a_signal_has_its_number() {
        assert!(Fail::output(&io::ErrorKind::BrokenPipe.into()).is_silent());
        assert_eq!(Fail::interrupted(2).exit().code(), 130);
        assert_eq!(Fail::interrupted(15).exit().code(), 143);
    }
}
