//! Batches of a loader: views of memory that goes back to it when the last of them is dropped.

use std::{fmt, sync::Arc};

use pyo3::{
    exceptions::PyIndexError,
    prelude::*,
    types::{PyByteArray, PyDict, PyMemoryView},
};
use sw_checkpoint::Dtype;
use sw_data::{formats::Extent, index::Index, loader, samples::Label};

use crate::{
    buffer::{Buffer, Held},
    dataset,
    error::{Fail, misuse},
};

/// Samples in one piece of memory. `batch[i]` is a view of a sample; nothing is copied.
///
/// `offsets`, `lengths`, `samples` and `datasets` are memory views of 64-bit integers, which `numpy.asarray` takes as they are.
#[pyclass(frozen, sequence, module = "straightway._native", weakref)]
pub struct Batch {
    held: Arc<Held>,
    batch: Arc<loader::Batch>,
    /// The tables of the loader, in the order of its datasets.
    tables: Arc<[Arc<Index>]>,
    content: Content,
}

/// What the bytes of a sample are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Those of the files.
    Stored,
    /// Those that a map function made of them.
    Mapped,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.__repr__())
    }
}

impl Batch {
    /// What a loader gave.
    pub fn new(batch: loader::Batch, tables: Arc<[Arc<Index>]>, content: Content) -> Self {
        let batch = Arc::new(batch);
        let (destination, at) = (batch.destination(), (batch.address(), batch.size_bytes()));
        let held =
            if at.1 == 0 { Held::empty(destination) } else { Held::lent(Box::new(batch.clone()), destination, at) };
        Self { held: Arc::new(held), batch, tables, content }
    }

    /// A view of `len` bytes from `offset` on.
    fn part(&self, offset: u64, len: u64) -> Result<Buffer, Fail> {
        Buffer::bytes(self.held.clone(), None).typed(Dtype::U8, vec![len], offset)
    }

    /// Where a sample lies, counted from the end if negative.
    fn place(&self, at: isize) -> Result<(usize, u64, u64), Fail> {
        let len = self.batch.len();
        let none = || Fail::from(PyIndexError::new_err(format!("sample {at} of a batch of {len}")));
        let index = if at < 0 { len.checked_sub(at.unsigned_abs()) } else { Some(at.unsigned_abs()) };
        let index = index.ok_or_else(none)?;
        let place = self.batch.offsets().get(index).zip(self.batch.lengths().get(index));
        place.map(|(offset, len)| (index, *offset, *len)).ok_or_else(none)
    }

    fn labels(&self, py: Python<'_>, dataset: u32, numbers: &[u64]) -> Result<Vec<Label>, Fail> {
        let table = usize::try_from(dataset).ok().and_then(|at| self.tables.get(at));
        match table {
            Some(table) => dataset::labels(py, table, numbers),
            None => Ok(vec![Label::default(); numbers.len()]),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = (u32, u64)> {
        self.batch.ids().iter().map(|id| (id.dataset, id.number))
    }
}

/// Words as a memory view of 64-bit integers, in memory of its own.
fn words<'py>(py: Python<'py>, words: impl Iterator<Item = u64>) -> PyResult<Bound<'py, PyAny>> {
    let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    PyMemoryView::from(&PyByteArray::new(py, &bytes))?.call_method1("cast", ("q",))
}

/// Whether a part lies in a sample of `len` bytes.
fn is_inside(part: Extent, len: u64) -> bool {
    part.offset.checked_add(part.len).is_some_and(|end| end <= len)
}

#[pymethods]
impl Batch {
    fn __len__(&self) -> usize {
        self.batch.len()
    }

    /// A view of the bytes of a sample.
    fn __getitem__(&self, at: isize) -> Result<Buffer, Fail> {
        let (_, offset, len) = self.place(at)?;
        self.part(offset, len)
    }

    /// All its memory. With equal places for all samples (layouts padded and fixed) it has two dimensions: sample, byte.
    #[getter]
    fn data(&self) -> Result<Buffer, Fail> {
        let whole = Buffer::bytes(self.held.clone(), None);
        let count = self.batch.len() as u64;
        match self.batch.stride() {
            Some(stride) if count.checked_mul(stride) == Some(whole.len) => {
                whole.typed(Dtype::U8, vec![count, stride], 0)
            }
            _ => Ok(whole),
        }
    }

    /// Where each sample begins in `data`, in bytes.
    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        words(py, self.batch.offsets().iter().copied())
    }

    /// How many bytes each sample has.
    #[getter]
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        words(py, self.batch.lengths().iter().copied())
    }

    /// The number of each sample in its dataset.
    #[getter]
    fn samples<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        words(py, self.numbers().map(|(_, number)| number))
    }

    /// The dataset of each sample, by its place in the loader's list.
    #[getter]
    fn datasets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        words(py, self.numbers().map(|(dataset, _)| dataset.into()))
    }

    /// The key of each sample. Asks the index.
    #[getter]
    fn keys(&self, py: Python<'_>) -> Result<Vec<String>, Fail> {
        let mut keys = vec![String::new(); self.batch.len()];
        for dataset in 0..u32::try_from(self.tables.len()).unwrap_or(u32::MAX) {
            let of = |&(_, (from, _)): &(usize, (u32, u64))| from == dataset;
            let (places, numbers): (Vec<usize>, Vec<u64>) =
                self.numbers().enumerate().filter(of).map(|(at, (_, number))| (at, number)).unzip();
            for (at, label) in places.into_iter().zip(self.labels(py, dataset, &numbers)?) {
                if let Some(key) = keys.get_mut(at) {
                    *key = label.key;
                }
            }
        }
        Ok(keys)
    }

    /// The fields of a sample by name, as views: those of WebDataset, columns of MDS. Empty for a sample that is one thing.
    fn fields<'py>(&self, py: Python<'py>, at: isize) -> Result<Bound<'py, PyDict>, Fail> {
        if self.content == Content::Mapped {
            return Err(misuse("a map function made these bytes of the fields", "use the fields in the map function"));
        }
        let (index, offset, len) = self.place(at)?;
        let fields = PyDict::new(py);
        let label = match self.numbers().nth(index) {
            Some((dataset, number)) => self.labels(py, dataset, &[number])?.pop(),
            None => None,
        };
        for part in label.into_iter().flat_map(|label| label.parts) {
            if !is_inside(part.extent, len) {
                return Err(misuse("the index has a field outside of its sample", "index the dataset again"));
            }
            fields.set_item(part.name, self.part(offset + part.extent.offset, part.extent.len)?)?;
        }
        Ok(fields)
    }

    /// The epoch that it is of; 0 for a mixture.
    #[getter]
    fn epoch(&self) -> u64 {
        self.batch.epoch()
    }

    /// `host`, `gpu0`, …
    #[getter]
    fn device(&self) -> String {
        self.batch.destination().to_string()
    }

    /// Bytes of all samples.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.batch.lengths().iter().sum()
    }

    fn __repr__(&self) -> String {
        let (len, bytes, device) = (self.batch.len(), self.nbytes(), self.device());
        format!("<straightway.Batch {len} samples, {bytes} bytes of {device} memory, epoch {}>", self.epoch())
    }
}
