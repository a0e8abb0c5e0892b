//! # Errors
//!
//! Each thread has its own last error, as `errno`.

// UNSAFETY: exported names, and a structure that C callers fill.
#![expect(unsafe_code, reason = "exported names, and a structure that C callers fill")]

use std::{
    cell::RefCell,
    ffi::{CStr, CString},
    sync::{Arc, OnceLock},
};

use straightway::{Error, Retry, WriteOutcome};

use crate::{
    edge::{call, misuse},
    pointer::{Out, Str, versioned},
    status::{
        SW_OK, SW_OUTCOME_APPLIED, SW_OUTCOME_NONE, SW_OUTCOME_NOT_APPLIED, SW_OUTCOME_UNKNOWN, SW_RETRY_AFTER,
        SW_RETRY_AFTER_FENCE, SW_RETRY_NEVER, SW_RETRY_NOW, SwOutcome, SwRetry, SwStatus, status_of,
    },
};

/// An error in full. No text is NULL; texts of a thread's last error are valid until a call of the same thread fails again.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwError {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// The status; `SW_OK` if no call of the thread has failed yet.
    pub status: SwStatus,
    /// Code of the layer below: an errno, a device status; 0 if there is none.
    pub system_code: i32,
    /// Whether trying again can help.
    pub retry: SwRetry,
    /// What became of a write.
    pub outcome: SwOutcome,
    /// With `SW_RETRY_AFTER`: nanoseconds to wait.
    pub retry_after_ns: u64,
    /// First byte of the range that it is about.
    pub offset: u64,
    /// Bytes of that range; 0 if it is about none.
    pub length: u64,
    /// Stable name of the status, such as `not_found`.
    pub kind: Str,
    /// What was being done, such as `read`.
    pub verb: Str,
    /// The object, device or setting that it is about; may be empty.
    pub place: Str,
    /// One line with everything, the remedy included.
    pub message: Str,
    /// What to do about it; empty if nothing is known.
    pub remedy: Str,
    /// Codes of the reasons why routes were refused, with commas between; empty but for `SW_ERR_POLICY_UNMET`.
    pub reasons: Str,
}

versioned!(SwError, "sw_error", 96);

/// An error, and its texts once somebody asked.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    texts: OnceLock<[CString; 6]>,
}

impl Failure {
    pub(crate) fn new(error: Error) -> Arc<Self> {
        Arc::new(Self { error, texts: OnceLock::new() })
    }
}

thread_local! {
    static LAST: RefCell<Option<Arc<Failure>>> = const { RefCell::new(None) };
}

/// Remembers an error. On a thread that is ending it is forgotten.
pub(crate) fn set(failure: Arc<Failure>) {
    let _ = LAST.try_with(|last| last.borrow_mut().replace(failure));
}

/// The message of the last error.
#[cfg(test)]
pub(crate) fn text() -> String {
    LAST.with(|last| last.borrow().as_ref().map(|last| last.error.to_string()).unwrap_or_default())
}

/// Text for C: it ends where it has a zero byte, which no text of ours has.
pub(crate) fn c_text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap_or_else(|cut| {
        let at = cut.nul_position();
        CString::new(cut.into_vec().get(..at).unwrap_or_default()).unwrap_or_default()
    })
}

/// Tells the last error of the calling thread: of the last call on it that returned one, or of the operation that a callback
/// is told of. Calls that succeed do not change it.
#[unsafe(no_mangle)]
pub extern "C" fn sw_error_last(error: Out<SwError>) -> SwStatus {
    call(|| {
        let out = error.sized()?;
        let told = LAST.try_with(|last| out.put(|| last.borrow().as_deref().map_or(NONE, told)));
        told.map_err(|_| misuse("the thread is ending", "ask earlier"))
    })
}

const EMPTY: Str = Str::of(c"");

const NONE: SwError = SwError {
    size: 0,
    status: SW_OK,
    system_code: 0,
    retry: SW_RETRY_NEVER,
    outcome: SW_OUTCOME_NONE,
    retry_after_ns: 0,
    offset: 0,
    length: 0,
    kind: EMPTY,
    verb: EMPTY,
    place: EMPTY,
    message: EMPTY,
    remedy: EMPTY,
    reasons: EMPTY,
};

fn told(failure: &Failure) -> SwError {
    let error = &failure.error;
    let texts = failure.texts.get_or_init(|| texts_of(error));
    let [kind, verb, place, message, remedy, reasons] = texts.each_ref().map(|text| Str::lent(text));
    let (retry, retry_after_ns) = retry(error.retry());
    let (offset, length) = error.location().range.unwrap_or_default();
    SwError {
        size: 0,
        status: status_of(error.kind()),
        system_code: error.code(),
        retry,
        outcome: outcome(error.outcome()),
        retry_after_ns,
        offset,
        length,
        kind,
        verb,
        place,
        message,
        remedy,
        reasons,
    }
}

fn texts_of(error: &Error) -> [CString; 6] {
    let reasons: Vec<&str> = error.reasons().iter().map(|reason| reason.code()).collect();
    [
        c_text(error.kind().name()),
        c_text(error.verb().to_string()),
        c_text(error.location().name.as_deref().unwrap_or_default()),
        c_text(error.to_string()),
        c_text(error.remedy_text()),
        c_text(reasons.join(",")),
    ]
}

fn retry(retry: Retry) -> (SwRetry, u64) {
    match retry {
        Retry::Never => (SW_RETRY_NEVER, 0),
        Retry::Now => (SW_RETRY_NOW, 0),
        Retry::After(wait) => (SW_RETRY_AFTER, u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)),
        Retry::AfterFence => (SW_RETRY_AFTER_FENCE, 0),
    }
}

fn outcome(outcome: Option<WriteOutcome>) -> SwOutcome {
    match outcome {
        None => SW_OUTCOME_NONE,
        Some(WriteOutcome::Applied) => SW_OUTCOME_APPLIED,
        Some(WriteOutcome::NotApplied) => SW_OUTCOME_NOT_APPLIED,
        Some(WriteOutcome::Unknown) => SW_OUTCOME_UNKNOWN,
    }
}

/// The name of a status, such as `SW_ERR_NOT_FOUND`: a text that lives for ever; `SW_ERR_UNKNOWN` for a number that this
/// version does not know.
#[unsafe(no_mangle)]
pub extern "C" fn sw_status_name(status: SwStatus) -> Str {
    const NAMES: [&CStr; 29] = [
        c"SW_PENDING",
        c"SW_OK",
        c"SW_ERR_API_MISUSE",
        c"SW_ERR_BAD_URI",
        c"SW_ERR_NOT_FOUND",
        c"SW_ERR_PERMISSION_DENIED",
        c"SW_ERR_WRONG_KIND",
        c"SW_ERR_OUT_OF_RANGE",
        c"SW_ERR_TOO_LARGE",
        c"SW_ERR_NOT_REGISTERED",
        c"SW_ERR_NO_DEVICE",
        c"SW_ERR_POLICY_UNMET",
        c"SW_ERR_SHORT_DATA",
        c"SW_ERR_CHANGED",
        c"SW_ERR_IO",
        c"SW_ERR_NO_SPACE",
        c"SW_ERR_RESOURCE_LIMIT",
        c"SW_ERR_BUSY",
        c"SW_ERR_DEADLINE_EXCEEDED",
        c"SW_ERR_CANCELLED",
        c"SW_ERR_CLOSED",
        c"SW_ERR_CHECKSUM_MISMATCH",
        c"SW_ERR_PROTOCOL",
        c"SW_ERR_FORKED",
        c"SW_ERR_POISONED",
        c"SW_ERR_UNSUPPORTED",
        c"SW_ERR_BAD_FORMAT",
        c"SW_ERR_IN_USE",
        c"SW_ERR_ALREADY_EXISTS",
    ];
    let at = status.checked_add(1).and_then(|at| usize::try_from(at).ok());
    Str::of(at.and_then(|at| NAMES.get(at)).copied().unwrap_or(c"SW_ERR_UNKNOWN"))
}
