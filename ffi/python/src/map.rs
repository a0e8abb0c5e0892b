//! Map functions in Python, called by the loader's workers with the interpreter held.

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyBytes, PyDict, PyMemoryView},
};
use sw_data::{
    index::Index,
    loader::{Cause, MapFn, SampleRef},
    samples::Label,
};

use crate::{dataset, error::Fail};

/// What a map function raised.
pub struct Raised {
    text: String,
    /// The exception, with its traceback.
    pub error: PyErr,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Raised {}

/// The loader or the interpreter ends: nobody wants the sample.
#[derive(Debug, thiserror::Error)]
#[error("the loader was closed meanwhile")]
struct Over;

/// A sample as a map function gets it.
#[pyclass(frozen, module = "straightway._native")]
pub struct Sample {
    data: Py<PyBytes>,
    dataset: u32,
    number: u64,
    epoch: u64,
    format: &'static str,
    table: Option<Arc<Index>>,
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.__repr__())
    }
}

impl Sample {
    fn label(&self, py: Python<'_>) -> Result<Label, Fail> {
        let labels = self.table.as_ref().map(|table| dataset::labels(py, table, &[self.number])).transpose()?;
        Ok(labels.and_then(|mut labels| labels.pop()).unwrap_or_default())
    }
}

#[pymethods]
impl Sample {
    /// Its bytes.
    #[getter]
    fn data(&self, py: Python<'_>) -> Py<PyBytes> {
        self.data.clone_ref(py)
    }

    /// Its dataset, by its place in the loader's list.
    #[getter]
    fn dataset(&self) -> u32 {
        self.dataset
    }

    /// Its number in that dataset.
    #[getter]
    fn number(&self) -> u64 {
        self.number
    }

    /// The epoch.
    #[getter]
    fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What its object holds: `tar`, `tfrecord`, …
    #[getter]
    fn format(&self) -> &'static str {
        self.format
    }

    /// Its key. Asks the index.
    #[getter]
    fn key(&self, py: Python<'_>) -> Result<String, Fail> {
        Ok(self.label(py)?.key)
    }

    /// Its fields by name, as memory views. Asks the index.
    fn fields<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>, Fail> {
        let fields = PyDict::new(py);
        let whole = PyMemoryView::from(self.data.bind(py).as_any())?;
        for part in self.label(py)?.parts {
            let end = part.extent.offset.saturating_add(part.extent.len);
            let range = pyo3::types::PySlice::new(py, signed(part.extent.offset), signed(end), 1);
            fields.set_item(part.name, whole.get_item(range)?)?;
        }
        Ok(fields)
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.data.bind(py).as_bytes().len()
    }

    fn __bytes__(&self, py: Python<'_>) -> Py<PyBytes> {
        self.data(py)
    }

    fn __repr__(&self) -> String {
        format!("<straightway.Sample {} of dataset {}, {}>", self.number, self.dataset, self.format)
    }
}

fn signed(offset: u64) -> isize {
    isize::try_from(offset).unwrap_or(isize::MAX)
}

/// A map function of a loader that calls `function` with a [`Sample`], and takes bytes or anything with the buffer protocol.
/// Once `over` is true nothing is called any more.
pub fn map_fn(function: Py<PyAny>, tables: Arc<[Arc<Index>]>, over: Arc<AtomicBool>) -> Arc<MapFn> {
    Arc::new(move |sample: SampleRef<'_>, out: &mut Vec<u8>| {
        if over.load(Ordering::Acquire) {
            return Err(Arc::new(Over) as Cause);
        }
        // A loader that nobody closed may live on when the interpreter does not.
        let called = Python::try_attach(|py| {
            let done = call(py, &function, &tables, sample, out);
            done.map_err(|error| Arc::new(Raised { text: error.to_string(), error }) as Cause)
        });
        called.unwrap_or_else(|| Err(Arc::new(Over)))
    })
}

fn call(
    py: Python<'_>,
    function: &Py<PyAny>,
    tables: &[Arc<Index>],
    sample: SampleRef<'_>,
    out: &mut Vec<u8>,
) -> PyResult<()> {
    let table = usize::try_from(sample.id.dataset).ok().and_then(|at| tables.get(at)).cloned();
    let given = Sample {
        // A copy: the memory is used again as soon as the batch is put together.
        data: PyBytes::new(py, sample.bytes).unbind(),
        dataset: sample.id.dataset,
        number: sample.id.number,
        epoch: sample.epoch,
        format: sample.format.name(),
        table,
    };
    let made = function.bind(py).call1((given,))?;
    if let Ok(bytes) = made.cast::<PyBytes>() {
        out.extend_from_slice(bytes.as_bytes());
        return Ok(());
    }
    let view = PyMemoryView::from(&made).map_err(|_| {
        let kind = made.get_type().name().map(|name| name.to_string()).unwrap_or_default();
        PyTypeError::new_err(format!(
            "a map function returns bytes, a numpy array or what else has a buffer, not {kind}"
        ))
    })?;
    let bytes = view.call_method0("tobytes")?;
    out.extend_from_slice(bytes.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes());
    Ok(())
}
