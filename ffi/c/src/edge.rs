//! The edge: what every function of the interface goes through. Panics stop here, and errors become a status and a detail.

use std::borrow::Cow;

use straightway::{Error, ErrorKind, Verb};

use crate::{
    last::{self, Failure},
    status::{SW_OK, SwStatus, status_of},
};

/// Runs the body of a function.
pub(crate) fn call(work: impl FnOnce() -> Result<(), Error>) -> SwStatus {
    ask(|| work().map(|()| SW_OK))
}

/// Runs the body of a function that has answers besides success.
#[inline(always)]
pub(crate) fn ask(work: impl FnOnce() -> Result<SwStatus, Error>) -> SwStatus {
    match contained(work) {
        Ok(status) => status,
        Err(error) => fail(error),
    }
}

/// Remembers an error as the thread's last one.
pub(crate) fn fail(error: Error) -> SwStatus {
    let status = status_of(error.kind());
    last::set(Failure::new(error));
    status
}

/// A panic stops here.
///
/// # Errors
/// `Poisoned` in its place.
#[inline(always)]
pub(crate) fn contained<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    straightway_edge::contained(work).unwrap_or_else(|told| {
        Err(Error::new(ErrorKind::Poisoned, Verb::Setup)
            .at("C interface")
            .detail(told)
            .remedy("make a new engine, and report this with the message"))
    })
}

/// A misuse of this interface; nothing was done.
pub(crate) fn misuse(detail: impl Into<Cow<'static, str>>, remedy: &'static str) -> Error {
    Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("C interface").detail(detail).remedy(remedy)
}

/// Something that this version does not know.
pub(crate) fn unsupported(detail: impl Into<Cow<'static, str>>, remedy: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Setup).at("C interface").detail(detail).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::SW_ERR_POISONED;

    #[test]
    fn a_panic_is_a_status_with_its_message() {
        let status = call(|| panic!("seven {}", 7));
        assert_eq!(status, SW_ERR_POISONED);
        assert!(last::text().contains("a panic was contained: seven 7"), "{}", last::text());
    }
}
