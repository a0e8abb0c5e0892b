//! # Status
//!
//! Every function that can fail returns a status. After one that is an error, `sw_error_last` tells more.

use straightway::ErrorKind;

/// What became of a call: `SW_OK`, `SW_PENDING`, or one of the errors, which are positive. A number never changes its meaning;
/// new ones may come.
pub type SwStatus = i32;

/// Not over yet; no error.
pub const SW_PENDING: SwStatus = -1;
/// Done.
pub const SW_OK: SwStatus = 0;
/// The caller broke a rule of the interface; nothing was done.
pub const SW_ERR_API_MISUSE: SwStatus = 1;
/// The address does not parse or names a scheme that is not built in.
pub const SW_ERR_BAD_URI: SwStatus = 2;
/// There is nothing at that address.
pub const SW_ERR_NOT_FOUND: SwStatus = 3;
/// The system refuses access.
pub const SW_ERR_PERMISSION_DENIED: SwStatus = 4;
/// A directory or another kind of thing where bytes were expected, or the reverse.
pub const SW_ERR_WRONG_KIND: SwStatus = 5;
/// A range outside the object or the memory.
pub const SW_ERR_OUT_OF_RANGE: SwStatus = 6;
/// A length or a count over a stated limit.
pub const SW_ERR_TOO_LARGE: SwStatus = 7;
/// Memory that no registration covers.
pub const SW_ERR_NOT_REGISTERED: SwStatus = 8;
/// The device named is not there, or its driver is not.
pub const SW_ERR_NO_DEVICE: SwStatus = 9;
/// No route meets the policy; the message has the reasons.
pub const SW_ERR_POLICY_UNMET: SwStatus = 10;
/// The source ended, or gave fewer bytes than it promised.
pub const SW_ERR_SHORT_DATA: SwStatus = 11;
/// The object changed while it was read.
pub const SW_ERR_CHANGED: SwStatus = 12;
/// The medium or the kernel reported an I/O error.
pub const SW_ERR_IO: SwStatus = 13;
/// No space for the bytes.
pub const SW_ERR_NO_SPACE: SwStatus = 14;
/// A limit of the system: locked memory, descriptors, address space, handles.
pub const SW_ERR_RESOURCE_LIMIT: SwStatus = 15;
/// A queue or pool is full and the caller asked not to wait.
pub const SW_ERR_BUSY: SwStatus = 16;
/// The deadline passed.
pub const SW_ERR_DEADLINE_EXCEEDED: SwStatus = 17;
/// The caller cancelled.
pub const SW_ERR_CANCELLED: SwStatus = 18;
/// The engine is closing or closed.
pub const SW_ERR_CLOSED: SwStatus = 19;
/// A checksum or a comparison failed.
pub const SW_ERR_CHECKSUM_MISMATCH: SwStatus = 20;
/// A device, peer or kernel broke its contract; evidence is in the message.
pub const SW_ERR_PROTOCOL: SwStatus = 21;
/// The process was forked after the engine was made; the child must make its own.
pub const SW_ERR_FORKED: SwStatus = 22;
/// A fault of the library itself was contained; the engine refuses further work.
pub const SW_ERR_POISONED: SwStatus = 23;
/// The platform, or this version of the library, lacks what was asked for.
pub const SW_ERR_UNSUPPORTED: SwStatus = 24;
/// Outside data does not follow its format.
pub const SW_ERR_BAD_FORMAT: SwStatus = 25;
/// Somebody else holds it.
pub const SW_ERR_IN_USE: SwStatus = 26;
/// A file with that name exists and was not to be replaced.
pub const SW_ERR_ALREADY_EXISTS: SwStatus = 27;

/// Whether and when trying again can help.
pub type SwRetry = i32;

/// The same call will fail again.
pub const SW_RETRY_NEVER: SwRetry = 0;
/// At once.
pub const SW_RETRY_NOW: SwRetry = 1;
/// After `retry_after_ns`.
pub const SW_RETRY_AFTER: SwRetry = 2;
/// Only once the old path provably cannot write any more.
pub const SW_RETRY_AFTER_FENCE: SwRetry = 3;

/// What became of a write that failed.
pub type SwOutcome = i32;

/// It was no write.
pub const SW_OUTCOME_NONE: SwOutcome = 0;
/// Every byte is in the object, durable only after a flush.
pub const SW_OUTCOME_APPLIED: SwOutcome = 1;
/// No byte reached the object.
pub const SW_OUTCOME_NOT_APPLIED: SwOutcome = 2;
/// Some bytes may have; only reading back tells.
pub const SW_OUTCOME_UNKNOWN: SwOutcome = 3;

/// The status of an error of that kind: the stable number of the kind.
pub(crate) fn status_of(kind: ErrorKind) -> SwStatus {
    i32::from(kind.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_engine() {
        let pairs = [
            (ErrorKind::ApiMisuse, SW_ERR_API_MISUSE),
            (ErrorKind::BadUri, SW_ERR_BAD_URI),
            (ErrorKind::NotFound, SW_ERR_NOT_FOUND),
            (ErrorKind::PermissionDenied, SW_ERR_PERMISSION_DENIED),
            (ErrorKind::WrongKind, SW_ERR_WRONG_KIND),
            (ErrorKind::OutOfRange, SW_ERR_OUT_OF_RANGE),
            (ErrorKind::TooLarge, SW_ERR_TOO_LARGE),
            (ErrorKind::NotRegistered, SW_ERR_NOT_REGISTERED),
            (ErrorKind::NoDevice, SW_ERR_NO_DEVICE),
            (ErrorKind::PolicyUnmet, SW_ERR_POLICY_UNMET),
            (ErrorKind::ShortData, SW_ERR_SHORT_DATA),
            (ErrorKind::Changed, SW_ERR_CHANGED),
            (ErrorKind::Io, SW_ERR_IO),
            (ErrorKind::NoSpace, SW_ERR_NO_SPACE),
            (ErrorKind::ResourceLimit, SW_ERR_RESOURCE_LIMIT),
            (ErrorKind::Busy, SW_ERR_BUSY),
            (ErrorKind::DeadlineExceeded, SW_ERR_DEADLINE_EXCEEDED),
            (ErrorKind::Cancelled, SW_ERR_CANCELLED),
            (ErrorKind::Closed, SW_ERR_CLOSED),
            (ErrorKind::ChecksumMismatch, SW_ERR_CHECKSUM_MISMATCH),
            (ErrorKind::Protocol, SW_ERR_PROTOCOL),
            (ErrorKind::Forked, SW_ERR_FORKED),
            (ErrorKind::Poisoned, SW_ERR_POISONED),
            (ErrorKind::Unsupported, SW_ERR_UNSUPPORTED),
            (ErrorKind::BadFormat, SW_ERR_BAD_FORMAT),
            (ErrorKind::InUse, SW_ERR_IN_USE),
            (ErrorKind::AlreadyExists, SW_ERR_ALREADY_EXISTS),
        ];
        for (index, (kind, status)) in pairs.into_iter().enumerate() {
            assert_eq!((status_of(kind), status), (status, i32::try_from(index).unwrap() + 1), "{kind:?}");
        }
    }
}
