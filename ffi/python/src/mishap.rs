//! What goes wrong in a loader, as Python exceptions.
//!
//! What a map function raised is raised as it is, with its traceback and a note that names the sample. All else is an error of the
//! kind that fits, with the fields `sample` and `dataset` where it is about one.

use pyo3::prelude::*;
use straightway::{Error, ErrorKind, Verb};
use sw_data::loader::{BadSample, Cause, LoadError, Why};

use crate::{error, map::Raised};

/// The exception for an error of a loader; if it cannot be made, the exception that says why.
pub fn raise(py: Python<'_>, error: &LoadError) -> PyErr {
    made(py, error).unwrap_or_else(|failed| failed)
}

fn made(py: Python<'_>, failed: &LoadError) -> PyResult<PyErr> {
    match failed {
        LoadError::Sample(bad) => of_sample(py, bad, &bad.to_string()),
        LoadError::TooManyBad { last, .. } => {
            let text = failed.to_string();
            let last_error = of_sample(py, last, &last.to_string())?;
            let error = of_kind(py, kind_of(&last.why), last, &text)?;
            error.set_cause(py, Some(last_error));
            Ok(error)
        }
        LoadError::Engine(inner) => Ok(error::raise(py, inner)),
        LoadError::Locate { cause, .. } => match cause.downcast_ref::<Error>() {
            Some(inner) => Ok(error::raise(py, inner)),
            None => plain(py, ErrorKind::BadFormat, failed),
        },
        LoadError::OverBudget { .. } => plain(py, ErrorKind::TooLarge, failed),
        LoadError::WrongPlaces { .. } => plain(py, ErrorKind::BadFormat, failed),
        LoadError::Unsupported { .. } => plain(py, ErrorKind::Unsupported, failed),
        LoadError::NoThread { .. } => plain(py, ErrorKind::ResourceLimit, failed),
        LoadError::Forked => plain(py, ErrorKind::Forked, failed),
        LoadError::Stuck { .. } => plain(py, ErrorKind::DeadlineExceeded, failed),
        LoadError::Broken { .. } => plain(py, ErrorKind::Poisoned, failed),
        _ => plain(py, ErrorKind::ApiMisuse, failed),
    }
}

fn plain(py: Python<'_>, kind: ErrorKind, failed: &LoadError) -> PyResult<PyErr> {
    let fields = error::fields_of(py, &Error::new(kind, Verb::Read))?;
    Ok(PyErr::from_value(error::make(py, &failed.to_string(), fields)?))
}

fn of_sample(py: Python<'_>, bad: &BadSample, text: &str) -> PyResult<PyErr> {
    if let Why::Map(cause) = &bad.why
        && let Some(raised) = raised(cause)
    {
        let error = raised.error.clone_ref(py);
        let note = format!(
            "in the map function, called for {} ({}, bytes {}+{})",
            bad.id, bad.object, bad.extent.offset, bad.extent.len
        );
        error.value(py).call_method1("add_note", (note,))?;
        return Ok(error);
    }
    of_kind(py, kind_of(&bad.why), bad, text)
}

/// What a map function in Python raised.
pub fn raised(cause: &Cause) -> Option<&Raised> {
    cause.downcast_ref::<Raised>()
}

fn of_kind(py: Python<'_>, kind: ErrorKind, bad: &BadSample, text: &str) -> PyResult<PyErr> {
    let made_here = || Error::new(kind, Verb::Read).in_range(bad.extent.offset, bad.extent.len);
    let fields = match &bad.why {
        Why::Storage(inner) => error::fields_of(py, inner)?,
        _ => error::fields_of(py, &made_here())?,
    };
    fields.set_item("location", &*bad.object)?;
    fields.set_item("sample", bad.id.number)?;
    fields.set_item("dataset", bad.id.dataset)?;
    Ok(PyErr::from_value(error::make(py, text, fields)?))
}

fn kind_of(why: &Why) -> ErrorKind {
    match why {
        Why::Storage(error) => error.kind(),
        Why::Stuck { .. } => ErrorKind::DeadlineExceeded,
        Why::Changed { .. } => ErrorKind::Changed,
        Why::Checksum { .. } => ErrorKind::ChecksumMismatch,
        Why::NoDecoder { .. } => ErrorKind::Unsupported,
        Why::GivenUp => ErrorKind::Cancelled,
        Why::Panicked { .. } => ErrorKind::Poisoned,
        Why::NotFixed { .. } | Why::TooLong { .. } => ErrorKind::OutOfRange,
        _ => ErrorKind::BadFormat,
    }
}
