//! What a store says, as a typed error.

use std::borrow::Borrow;

use object_store::client::{HttpError, HttpErrorKind};
use sw_engine::{Error, ErrorKind, Verb};

use super::{
    ais::{LostUpload, MemberTooLong, UnsureListing},
    credentials::NoCredentials,
};
use crate::{
    chain::chain,
    http::{NoTls, Refusal},
};

/// Longest text of a store's own that is passed on, in bytes.
const TEXT_MAX: usize = 400;

/// What stores answer 400 with where keys are no longer, or not yet, good (Amazon S3 API, "List of error codes").
const EXPIRED: [&str; 4] = ["ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException"];

/// An error of the library's, be it shared by those who waited for the same.
pub(super) trait Said: Borrow<object_store::Error> + std::error::Error + Send + Sync + 'static {}

impl<E: Borrow<object_store::Error> + std::error::Error + Send + Sync + 'static> Said for E {}

/// The error of a store.
pub(super) fn told(error: impl Said, verb: Verb, name: &str) -> Error {
    let said = error.borrow();
    let (kind, remedy) = class(said);
    let status = refusal(said).map_or(0, |refusal| i32::from(refusal.status.as_u16()));
    Error::new(kind, verb).at(name).with_code(status).detail(text(said)).remedy(remedy).caused_by(error)
}

/// Whether there is nothing of that name.
pub(super) fn is_missing(error: &object_store::Error) -> bool {
    class(error).0 == ErrorKind::NotFound
}

/// Whether we may not ask.
pub(super) fn is_forbidden(error: &object_store::Error) -> bool {
    class(error).0 == ErrorKind::PermissionDenied
}

/// What a server said, if it said something.
pub(super) fn refusal(error: &object_store::Error) -> Option<&Refusal> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Whether a store has certainly not done what it was asked, and will not: it looked at the request and refused it.
pub(super) fn is_refusal(error: &object_store::Error) -> bool {
    refusal(error).is_some_and(Refusal::is_final)
}

/// Whether a server answered, but not as it was asked: with a range that there is not, or with something else than a range.
pub(super) fn is_other_answer(error: &object_store::Error) -> bool {
    let is_range = refusal(error).is_some_and(|refusal| refusal.status.as_u16() == 416);
    is_range || !chain(error).any(|error| error.is::<HttpError>() || error.is::<NoCredentials>())
}

/// The one place where what went wrong gets its class, and what can be done.
fn class(error: &object_store::Error) -> (ErrorKind, &'static str) {
    use object_store::Error as Library;
    let rights = "look at the credentials, the clock of this machine, and the rights of the bucket";
    let nothing = "look for the name with `straightway ls`, and for the bucket, at the endpoint";
    if chain(error).any(|error| error.is::<NoCredentials>()) {
        let remedy = "set the keys (AWS_ACCESS_KEY_ID and its like), a profile (AWS_PROFILE), or s3_anonymous=on for buckets that all may read";
        return (ErrorKind::PermissionDenied, remedy);
    }
    if let Some(refusal) = refusal(error) {
        let is_expired = refusal.code.as_deref().is_some_and(|code| EXPIRED.contains(&code));
        return match refusal.status.as_u16() {
            400 if is_expired => (ErrorKind::PermissionDenied, "renew the credentials: their time is over"),
            400 => (ErrorKind::Io, "look at the endpoint, the region and the credentials, whose time may be over"),
            401 | 403 => (ErrorKind::PermissionDenied, rights),
            404 => (ErrorKind::NotFound, nothing),
            405 | 501 => (ErrorKind::Unsupported, "use a store or a scheme that has it"),
            409 => (ErrorKind::InUse, "somebody else changes it at this moment; try again"),
            412 => (ErrorKind::Changed, "open it anew; bytes of two versions are never mixed"),
            429 | 503 => (ErrorKind::Busy, "the store refuses as it is asked too much; ask it less or later"),
            507 => (ErrorKind::NoSpace, "make room in the store"),
            300..=399 => (ErrorKind::Io, "name the endpoint and the region of the bucket: redirects are not followed"),
            _ => (ErrorKind::Io, "look at the endpoint, the network and the server's log"),
        };
    }
    if chain(error).any(|error| error.is::<MemberTooLong>()) {
        return (ErrorKind::TooLarge, "read ranges of the archive itself: an index of it says where its members are");
    }
    if chain(error).any(|error| error.is::<LostUpload>()) {
        return (ErrorKind::Io, "write the object again; the one before is still there");
    }
    if chain(error).any(|error| error.is::<UnsureListing>()) {
        return (ErrorKind::Unsupported, "list what is below it in parts, by names of directories");
    }
    if chain(error).any(|error| error.is::<NoTls>()) {
        return (ErrorKind::Unsupported, "use a newer processor, or plain http within a network that is yours");
    }
    let kind = chain(error).find_map(|error| error.downcast_ref::<HttpError>()).map(HttpError::kind);
    match (kind, error) {
        (Some(HttpErrorKind::Timeout), _) => {
            (ErrorKind::DeadlineExceeded, "look whether the server can be reached and is well")
        }
        (Some(HttpErrorKind::Unknown), _) if chain(error).any(|error| error.is::<rustls::Error>()) => (
            ErrorKind::PermissionDenied,
            "trust the server's certificate: remote_ca_file names a file with that of its authority",
        ),
        (Some(HttpErrorKind::Decode), _) => (ErrorKind::Protocol, "the server speaks another protocol than expected"),
        (None, Library::NotFound { .. }) => (ErrorKind::NotFound, nothing),
        (None, Library::InvalidPath { .. }) => (ErrorKind::BadUri, "names with empty parts, . or .. are not reached"),
        (None, Library::NotSupported { .. } | Library::NotImplemented { .. }) => {
            (ErrorKind::Unsupported, "use a store or a scheme that has it")
        }
        _ => (ErrorKind::Io, "look at the endpoint, the network and the server's log"),
    }
}
/// What the innermost error says that says anything, in one line.
fn text(error: &object_store::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for error in chain(error) {
        let said = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        // Most errors repeat what is behind them.
        if !said.is_empty() && !parts.iter().any(|known| known.contains(&said)) {
            parts.push(said);
        }
    }
    let mut text = parts.join(": ");
    if let Some((end, _)) = text.char_indices().find(|(at, c)| at + c.len_utf8() > TEXT_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
