//! What a store says, as a typed error.

use object_store::client::{HttpError, HttpErrorKind};
use sw_engine::{Error, ErrorKind, Retry, Verb};

use crate::{chain::chain, http::NoTls};

/// Longest text of a store's own that is passed on, in bytes.
const TEXT_MAX: usize = 400;

/// The error of a store.
pub(super) fn told(error: object_store::Error, verb: Verb, name: &str) -> Error {
    use object_store::Error as Said;
    let (text, status) = (text(&error), status(&error));
    let made = |kind: ErrorKind| Error::new(kind, verb).at(name).with_code(status.unwrap_or(0)).detail(text.clone());
    let made = match &error {
        Said::NotFound { .. } => {
            made(ErrorKind::NotFound).remedy("look for the name with `straightway ls`, and at the endpoint")
        }
        Said::Precondition { .. } | Said::NotModified { .. } => {
            made(ErrorKind::Changed).remedy("open it anew; bytes of two versions are never mixed")
        }
        Said::AlreadyExists { .. } => made(ErrorKind::AlreadyExists).remedy("choose another name"),
        Said::PermissionDenied { .. } | Said::Unauthenticated { .. } => made(ErrorKind::PermissionDenied)
            .remedy("look at the credentials, the clock of this machine, and the rights of the bucket"),
        Said::InvalidPath { .. } => made(ErrorKind::BadUri).remedy("names with empty parts, . or .. are not reached"),
        Said::NotSupported { .. } | Said::NotImplemented { .. } => {
            made(ErrorKind::Unsupported).remedy("use a store or a scheme that has it")
        }
        _ => return without_class(&error, made),
    };
    made.caused_by(error)
}

/// Whether a store has certainly not done what it was asked, and will not: it looked at the request and refused it.
pub(super) fn is_refusal(error: &object_store::Error) -> bool {
    // All that are the asker's fault but a request that came too slowly and one of too many.
    matches!(status(error), Some(400..=407 | 409..=428 | 430..=499))
}

/// One that has no class of its own: by the connection's, or by the status.
fn without_class(error: &object_store::Error, made: impl Fn(ErrorKind) -> Error) -> Error {
    let http = chain(error).find_map(|error| error.downcast_ref::<HttpError>()).map(HttpError::kind);
    match (http, status(error)) {
        (Some(HttpErrorKind::Timeout), _) => {
            made(ErrorKind::DeadlineExceeded).remedy("look whether the server can be reached and is well")
        }
        (Some(HttpErrorKind::Unknown), _) if chain(error).any(|error| error.is::<rustls::Error>()) => {
            made(ErrorKind::PermissionDenied)
                .remedy("trust the server's certificate: remote_ca_file names a file with that of its authority")
        }
        _ if chain(error).any(|error| error.is::<NoTls>()) => {
            made(ErrorKind::Unsupported).remedy("use a newer processor, or plain http within a network that is yours")
        }
        (Some(HttpErrorKind::Decode), _) => {
            made(ErrorKind::Protocol).remedy("the server speaks another protocol than expected")
        }
        (_, Some(503 | 429)) => made(ErrorKind::Busy)
            .with_retry(Retry::Now)
            .remedy("the store refuses as it is asked too much; ask it less or later"),
        (_, Some(404)) => made(ErrorKind::NotFound).remedy("look for the bucket, and at the endpoint"),
        (_, Some(507)) => made(ErrorKind::NoSpace).remedy("make room in the store"),
        _ => made(ErrorKind::Io).remedy("look at the endpoint, the network and the server's log"),
    }
}

/// The status that a server answered with, which the library tells in words only.
fn status(error: &object_store::Error) -> Option<i32> {
    let said = chain(error).map(ToString::to_string).find(|text| text.contains("status code: "))?;
    said.split("status code: ").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
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
