//! One error type for everything below the product layer: kind, retry advice, operation, place, remedy.
//!
//! Transports report a small [`Fault`] (it is `Copy`, so the data path allocates nothing); the lane turns it into an
//! [`Error`] with the object's name when it completes the operation.

use core::{fmt, time::Duration};
use std::{borrow::Cow, error, sync::Arc};

use crate::path::Reason;

/// What went wrong. The number is the stable code of the C and Python bindings; a retired code keeps its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum ErrorKind {
    /// The caller broke a rule of the interface; nothing was done.
    ApiMisuse = 1,
    /// The address does not parse or names a scheme that is not built in.
    BadUri = 2,
    /// There is nothing at that address.
    NotFound = 3,
    /// The system refuses access.
    PermissionDenied = 4,
    /// A directory or another kind of thing where bytes were expected, or the reverse.
    WrongKind = 5,
    /// A range outside the object or the memory.
    OutOfRange = 6,
    /// A length or a count over a stated limit.
    TooLarge = 7,
    /// Memory that no registration covers.
    NotRegistered = 8,
    /// The device named is not there, or its driver is not.
    NoDevice = 9,
    /// No route meets the policy; the reasons are in the text and in [`Error::reasons`].
    PolicyUnmet = 10,
    /// The source ended, or gave fewer bytes than it promised.
    ShortData = 11,
    /// The object changed while it was read.
    Changed = 12,
    /// The medium or the kernel reported an I/O error.
    Io = 13,
    /// No space for the bytes.
    NoSpace = 14,
    /// A limit of the system: locked memory, descriptors, address space.
    ResourceLimit = 15,
    /// A queue or pool is full and the caller asked not to wait.
    Busy = 16,
    /// The deadline passed.
    DeadlineExceeded = 17,
    /// The caller cancelled.
    Cancelled = 18,
    /// The engine or queue is closing or closed.
    Closed = 19,
    /// A checksum or a comparison failed.
    ChecksumMismatch = 20,
    /// A device, peer or kernel broke its contract; evidence is in the text.
    Protocol = 21,
    /// The process was forked after the engine was made; the child must make its own.
    Forked = 22,
    /// A panic of ours was contained; the engine refuses further work.
    Poisoned = 23,
    /// The platform lacks what was asked for.
    Unsupported = 24,
    /// Outside data does not follow its format.
    BadFormat = 25,
    /// Somebody else holds it.
    InUse = 26,
    /// A file with that name exists and was not to be replaced.
    AlreadyExists = 27,
}

impl ErrorKind {
    /// The stable number.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// A stable lower-case name, as `--json` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiMisuse => "api_misuse",
            Self::BadUri => "bad_uri",
            Self::NotFound => "not_found",
            Self::PermissionDenied => "permission_denied",
            Self::WrongKind => "wrong_kind",
            Self::OutOfRange => "out_of_range",
            Self::TooLarge => "too_large",
            Self::NotRegistered => "not_registered",
            Self::NoDevice => "no_device",
            Self::PolicyUnmet => "policy_unmet",
            Self::ShortData => "short_data",
            Self::Changed => "changed",
            Self::Io => "io",
            Self::NoSpace => "no_space",
            Self::ResourceLimit => "resource_limit",
            Self::Busy => "busy",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::ChecksumMismatch => "checksum_mismatch",
            Self::Protocol => "protocol",
            Self::Forked => "forked",
            Self::Poisoned => "poisoned",
            Self::Unsupported => "unsupported",
            Self::BadFormat => "bad_format",
            Self::InUse => "in_use",
            Self::AlreadyExists => "already_exists",
        }
    }
}

/// Whether and when trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// At once.
    Now,
    /// After this long.
    After(Duration),
    /// Only once the old path provably cannot write any more.
    AfterFence,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// Bytes from an object into memory.
    Read,
    /// Bytes from memory into an object.
    Write,
    /// Making written bytes durable.
    Flush,
    /// Resolving an address and getting at its facts.
    Open,
    /// Making a new object.
    Create,
    /// Enumerating a container.
    List,
    /// Registering or allocating memory.
    Register,
    /// Copying between host and device memory.
    Copy,
    /// Choosing a route.
    Plan,
    /// Setting up or closing an engine or a queue.
    Setup,
    /// Interpreting outside data.
    Parse,
    /// Removing or renaming an object.
    Replace,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Open => "open",
            Self::Create => "create",
            Self::List => "list",
            Self::Register => "register",
            Self::Copy => "copy",
            Self::Plan => "plan",
            Self::Setup => "setup",
            Self::Parse => "parse",
            Self::Replace => "replace",
        })
    }
}

/// Where, in the operator's words.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Location {
    /// The object, device or setting by the name its owner uses.
    pub name: Option<Arc<str>>,
    /// Byte range in the object: offset and length.
    pub range: Option<(u64, u64)>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        if let Some((offset, len)) = self.range {
            write!(f, " at {offset}+{len}")?;
        }
        Ok(())
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Every byte is in the object (durable only after a flush).
    Applied,
    /// No byte reached the object.
    NotApplied,
    /// Some bytes may have; only fencing or reading back tells.
    Unknown,
}

/// A transport's report of a failed I/O. `Copy`, so that the data path carries it without allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The class.
    pub kind: ErrorKind,
    /// The code as the layer below named it: an errno, a device status; 0 if there is none.
    pub code: i32,
    /// Advice.
    pub retry: Retry,
    /// Of a write: [`WriteOutcome::NotApplied`] where it is certain that this try wrote no byte, else [`WriteOutcome::Unknown`].
    pub outcome: WriteOutcome,
}

impl Fault {
    /// A fault that trying again will not mend. Some bytes of a write may have been written.
    pub const fn new(kind: ErrorKind, code: i32) -> Self {
        Self { kind, code, retry: Retry::Never, outcome: WriteOutcome::Unknown }
    }

    /// The same with other advice.
    #[must_use]
    pub const fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// The same of a try that certainly wrote nothing.
    #[must_use]
    pub const fn not_applied(self) -> Self {
        Self { outcome: WriteOutcome::NotApplied, ..self }
    }

    /// Whether a write that ended so certainly wrote nothing.
    pub const fn is_not_applied(&self) -> bool {
        matches!(self.outcome, WriteOutcome::NotApplied)
    }

    /// The same for an I/O whose memory the device may still touch: see [`IoDone`](crate::seam::IoDone).
    #[must_use]
    pub const fn kept(self) -> Self {
        Self { retry: Retry::AfterFence, ..self }
    }

    /// Whether the memory of the I/O stays with the device.
    pub const fn keeps_memory(&self) -> bool {
        matches!(self.retry, Retry::AfterFence)
    }

    /// The code of a `ResourceLimit` that no system names: the device has no queue left for one more lane.
    pub const NO_QUEUE_LEFT: i32 = -1;
    /// The code of a `ResourceLimit` that no system names: the device may reach no more memory.
    pub const NOT_MAPPED: i32 = -2;
}

/// A typed error. One line in `Display`; the source is not repeated there.
pub struct Error(Box<Body>);

struct Body {
    kind: ErrorKind,
    retry: Retry,
    verb: Verb,
    at: Location,
    code: i32,
    detail: Cow<'static, str>,
    remedy: Cow<'static, str>,
    outcome: Option<WriteOutcome>,
    reasons: Vec<Reason>,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` while doing `verb`.
    pub fn new(kind: ErrorKind, verb: Verb) -> Self {
        Self(Box::new(Body {
            kind,
            retry: Retry::Never,
            verb,
            at: Location::default(),
            code: 0,
            detail: Cow::Borrowed(""),
            remedy: Cow::Borrowed(""),
            outcome: None,
            reasons: Vec::new(),
            source: None,
        }))
    }

    /// From a transport's fault.
    pub fn from_fault(fault: Fault, verb: Verb) -> Self {
        let mut error = Self::new(fault.kind, verb).with_code(fault.code);
        error.0.retry = fault.retry;
        error
    }

    /// Names the object, device or setting.
    #[must_use]
    pub fn at(mut self, name: impl Into<Arc<str>>) -> Self {
        self.0.at.name = Some(name.into());
        self
    }

    /// Names the byte range.
    #[must_use]
    pub fn in_range(mut self, offset: u64, len: u64) -> Self {
        self.0.at.range = Some((offset, len));
        self
    }

    /// Says what happened, with numbers. Lower case, no final full stop.
    #[must_use]
    pub fn detail(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = text.into();
        self
    }

    /// Takes the text and the remedy of `why`, whose code is no part of it if the layer below made it up.
    #[must_use]
    pub fn explained_by(mut self, why: &Self) -> Self {
        self.0.detail = match why.0.at.name.as_ref().filter(|_| !why.0.detail.is_empty()) {
            Some(name) => format!("{name}: {}", why.0.detail).into(),
            None => why.0.detail.clone(),
        };
        self.0.remedy = why.0.remedy.clone();
        self.0.code = self.0.code.max(0);
        self
    }

    /// Adds the text of `why` to its own, and takes its remedy.
    #[must_use]
    pub(crate) fn because_of(mut self, why: &Self) -> Self {
        self.0.detail = format!("{}: {}", self.0.detail, why.0.detail).into();
        self.0.remedy = why.0.remedy.clone();
        self
    }

    /// Says what the reader can do about it.
    #[must_use]
    pub fn remedy(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.0.remedy = text.into();
        self
    }

    /// Sets the code of the layer below.
    #[must_use]
    pub fn with_code(mut self, code: i32) -> Self {
        self.0.code = code;
        self
    }

    /// Sets the retry advice.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Sets what became of the write.
    #[must_use]
    pub fn with_outcome(mut self, outcome: WriteOutcome) -> Self {
        self.0.outcome = Some(outcome);
        self
    }

    /// Attaches the planner's reasons.
    #[must_use]
    pub fn with_reasons(mut self, reasons: Vec<Reason>) -> Self {
        self.0.reasons = reasons;
        self
    }

    /// Keeps the error below.
    #[must_use]
    pub fn caused_by(mut self, source: impl error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// The class.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The code of the layer below (errno, status), 0 if none.
    pub fn code(&self) -> i32 {
        self.0.code
    }

    /// The retry advice.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// What was being done.
    pub fn verb(&self) -> Verb {
        self.0.verb
    }

    /// Where.
    pub fn location(&self) -> &Location {
        &self.0.at
    }

    /// What became of the write; `None` for anything but a failed write.
    pub fn outcome(&self) -> Option<WriteOutcome> {
        self.0.outcome
    }

    /// What to do about it; empty if nothing is known.
    pub fn remedy_text(&self) -> &str {
        &self.0.remedy
    }

    /// Why routes were refused; empty unless the kind is [`ErrorKind::PolicyUnmet`].
    pub fn reasons(&self) -> &[Reason] {
        &self.0.reasons
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = &self.0;
        write!(f, "{}{} failed: ", body.verb, body.at)?;
        if body.detail.is_empty() {
            f.write_str(&body.kind.name().replace('_', " "))?;
        } else {
            f.write_str(&body.detail)?;
        }
        if body.code != 0 {
            write!(f, " (code {})", body.code)?;
        }
        if let Some(WriteOutcome::Unknown) = body.outcome {
            f.write_str(" [outcome unknown: some bytes may have been written]")?;
        }
        for (n, reason) in body.reasons.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { " because " } else { ", " }, reason.code())?;
        }
        if !body.remedy.is_empty() {
            write!(f, "; {}", body.remedy)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error[{} {}]({self})", self.0.kind.code(), self.0.kind.name())
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_verb_place_numbers_and_remedy_on_one_line() {
        let error = Error::new(ErrorKind::NoSpace, Verb::Write)
            .at("/data/a")
            .in_range(4096, 512)
            .detail("no space left on device")
            .with_code(28)
            .with_outcome(WriteOutcome::Unknown)
            .remedy("free space");
        assert_eq!(
            error.to_string(),
            "write /data/a at 4096+512 failed: no space left on device (code 28) [outcome unknown: some bytes may \
             have been written]; free space"
        );
    }

    #[test]
    fn codes_are_the_published_ones() {
        assert_eq!(ErrorKind::PolicyUnmet.code(), 10);
        assert_eq!(ErrorKind::AlreadyExists.code(), 27);
    }
}
