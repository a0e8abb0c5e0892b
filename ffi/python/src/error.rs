//! Errors of the engine as Python exceptions.
//!
//! The classes are Python (`straightway/_errors.py`): one for each kind, each also a kind of the built-in exception that a
//! Python programmer would catch. Here their fields are filled.

use pyo3::{prelude::*, types::PyDict};
use straightway::{Error, ErrorKind, Retry, Verb, WriteOutcome};

/// What goes wrong in this crate: an error of the engine, or a Python exception on its way through.
#[derive(Debug)]
pub enum Fail {
    /// Of the engine.
    Engine(Error),
    /// Raised by Python code, or a signal's.
    Python(PyErr),
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<PyErr> for Fail {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Fail> for PyErr {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Python(error) => error,
            Fail::Engine(error) => Python::attach(|py| raise(py, &error)),
        }
    }
}

/// A misuse of this interface.
pub fn misuse(detail: impl Into<std::borrow::Cow<'static, str>>, remedy: &'static str) -> Fail {
    Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("python").detail(detail).remedy(remedy).into()
}

/// The exception for an error; if it cannot be made, the exception that says why.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    match exception(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(failed) => failed,
    }
}

fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    make(py, &error.to_string(), fields_of(py, error)?)
}

/// The exception with these words and fields.
pub fn make<'py>(py: Python<'py>, text: &str, fields: Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
    py.import("straightway._errors")?.call_method1("make", (text, fields))
}

/// What the exception for an error tells.
pub fn fields_of<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("kind", error.kind().name())?;
    fields.set_item("code", error.kind().code())?;
    fields.set_item("system_code", error.code())?;
    fields.set_item("verb", error.verb().to_string())?;
    fields.set_item("remedy", error.remedy_text())?;
    fields.set_item("location", error.location().name.as_deref())?;
    fields.set_item("range", error.location().range)?;
    match error.retry() {
        Retry::Never => fields.set_item("retry", "never")?,
        Retry::Now => fields.set_item("retry", "now")?,
        Retry::After(wait) => fields.set_item("retry", wait.as_secs_f64())?,
        Retry::AfterFence => fields.set_item("retry", "after-fence")?,
    }
    let outcome = error.outcome().map(|outcome| match outcome {
        WriteOutcome::Applied => "applied",
        WriteOutcome::NotApplied => "not-applied",
        WriteOutcome::Unknown => "unknown",
    });
    fields.set_item("outcome", outcome)?;
    fields.set_item("reasons", error.reasons().iter().map(|reason| reason.code()).collect::<Vec<_>>())?;
    Ok(fields)
}
