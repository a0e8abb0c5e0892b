//! The edge: what every function of the interface goes through. Panics stop here, errors become numbers and a text.

use std::cell::RefCell;

use crate::{
    abi::CuFileError,
    code::{self, Failure},
    library::library,
    pointer::set_errno,
    settings::ErrorForm,
};

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Runs the body of a function that answers with a `CUfileError_t`.
pub(crate) fn call(name: &'static str, work: impl FnOnce() -> Result<(), Failure>) -> CuFileError {
    match contained(work) {
        Ok(()) => CuFileError { err: code::SUCCESS, cu_err: 0 },
        Err(failure) => {
            let answer = CuFileError { err: failure.code, cu_err: failure.cuda };
            remember(name, failure);
            answer
        }
    }
}

/// Runs the body of a function that answers with bytes: minus one with `errno`, or minus a code.
pub(crate) fn bytes(name: &'static str, work: impl FnOnce() -> Result<u64, Failure>) -> isize {
    match contained(work) {
        Ok(bytes) => isize::try_from(bytes).unwrap_or(isize::MAX),
        Err(failure) => {
            let answer = negative(&failure);
            remember(name, failure);
            if answer.0 == -1 {
                set_errno(answer.1);
            }
            answer.0
        }
    }
}

/// Runs the body of a function that answers nothing.
pub(crate) fn quiet(name: &'static str, work: impl FnOnce() -> Result<(), Failure>) {
    if let Err(failure) = contained(work) {
        remember(name, failure);
    }
}

/// The answer of a transfer that failed, and the `errno` that goes with minus one.
///
/// "cuFile API Reference Guide", cuFileRead: minus one with `errno` for errors of the file system, the negative code for all others.
/// The library of 1.15 and later answers minus one always, with the code in `errno` ("peers", 5.2): the form `observed`.
pub(crate) fn negative(failure: &Failure) -> (isize, i32) {
    match (failure.errno, library().error_form()) {
        (0, ErrorForm::Documented) => (-isize::try_from(failure.code).unwrap_or(1), 0),
        (0, ErrorForm::Observed) => (-1, failure.code),
        (errno, _) => (-1, errno),
    }
}

/// The answer in a slot or an event: the negative code or errno.
pub(crate) fn negative_word(failure: &Failure) -> isize {
    let number = if failure.errno == 0 { failure.code } else { failure.errno };
    -isize::try_from(number).unwrap_or(1)
}

/// Runs work; a panic of it is an error.
///
/// # Errors
/// The work's; `INTERNAL_ERROR` with the words of a panic.
pub(crate) fn contained<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    straightway_edge::contained(work).unwrap_or_else(|told| Err(Failure::new(code::INTERNAL_ERROR, told)))
}

/// The thread's last failure, for `sw_cufile_last_error`; on a thread that is ending it is forgotten.
fn remember(name: &'static str, failure: Failure) {
    let text = format!("{name}: {} ({}): {}", code::name(failure.code), failure.code, failure.text);
    library().log().error(&text);
    let _ = LAST.try_with(|last| last.borrow_mut().replace(Failure { text, ..failure }));
}

/// Text of the thread's last failure; empty if there was none.
pub(crate) fn last_text() -> String {
    LAST.try_with(|last| last.borrow().as_ref().map(|last| last.text.clone()).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_code_with_its_message() {
        let answer = call("test", || panic!("seven {}", 7));
        assert_eq!(answer.err, code::INTERNAL_ERROR);
        assert!(last_text().contains("a panic was contained: seven 7"), "{}", last_text());
        assert_eq!(bytes("test", || panic!("again")), -5030);
    }
}
