//! Memory that Python holds, and typed views of it.
// UNSAFETY: Python's slots of the buffer protocol are unsafe functions; `export` has their bodies.
#![expect(unsafe_code, reason = "slots of the buffer protocol")]

use std::{any::Any, ffi::c_int, fmt, sync::Arc};

use pyo3::{
    ffi,
    prelude::*,
    types::{PyBytes, PyCapsule, PyDict, PyTuple},
};
use straightway::{DataPath, Destination, Memory, Region};
use sw_checkpoint::Dtype;

use crate::{
    elements,
    error::{Fail, misuse},
    export::{self, DlAsk},
    report,
};

/// Memory of the engine that stays mapped while this lives. Every export of an address holds one.
pub struct Held {
    keeps: Keeps,
    address: u64,
    len: u64,
    destination: Destination,
}

/// What keeps memory mapped.
enum Keeps {
    /// No bytes.
    Nothing,
    /// A region, and where it counts from.
    Region(Region, u64),
    /// Somebody who lent it.
    Lender(#[expect(dead_code, reason = "it is kept, nothing else")] Box<dyn Any + Send + Sync>),
}

/// What memory without bytes points to: never followed, but aligned for every element type and not null.
#[repr(align(64))]
struct Nowhere(#[expect(dead_code, reason = "its address is used")] [u8; 64]);
static NOWHERE: Nowhere = Nowhere([0; 64]);

impl Held {
    /// Keeps memory.
    pub fn new(memory: Memory) -> Self {
        let (address, len, destination) = (memory.address(), memory.len(), memory.destination());
        let (region, start) = memory.share();
        Self { keeps: Keeps::Region(region, start), address, len, destination }
    }

    /// `len` bytes at `address` of memory that belongs to `lender`, as long as that lives.
    pub fn lent(lender: Box<dyn Any + Send + Sync>, destination: Destination, (address, len): (u64, u64)) -> Self {
        Self { keeps: Keeps::Lender(lender), address, len, destination }
    }

    /// Whether it belongs to somebody else.
    pub fn is_lent(&self) -> bool {
        matches!(self.keeps, Keeps::Lender(_))
    }

    /// No bytes.
    pub fn empty(destination: Destination) -> Self {
        let address = (&raw const NOWHERE).expose_provenance() as u64;
        Self { keeps: Keeps::Nothing, address, len: 0, destination }
    }

    /// Address of its first byte, in the space of its destination.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Whose memory it is.
    pub fn destination(&self) -> Destination {
        self.destination
    }

    /// A part to give to an operation that may write it; `None` if it has no bytes, or if they are lent.
    ///
    /// # Errors
    /// `InUse` while another operation has bytes of it; `OutOfRange`.
    pub fn part(&self, at: u64, len: u64) -> Result<Option<Memory>, Fail> {
        match &self.keeps {
            Keeps::Region(region, start) if len > 0 => Ok(Some(region.part(start + at, len)?)),
            _ => Ok(None),
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {} memory", self.len, self.destination)
    }
}

/// Memory of the engine, seen as a dense array in row-major order.
///
/// `numpy.asarray(buffer)`, `torch.from_dlpack(buffer)` and `memoryview(buffer)` share the memory; it stays as long as one
/// of them lives. An operation that reads into a buffer writes under them, as `readinto` of a file would.
#[pyclass(frozen, module = "straightway._native", weakref)]
#[derive(Debug)]
pub struct Buffer {
    /// The memory.
    pub held: Arc<Held>,
    /// First byte in it.
    pub offset: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Bytes.
    pub len: u64,
    /// The way that the bytes came, and in how many operations, if one operation filled it.
    pub path: Option<(DataPath, u64)>,
}

impl Buffer {
    /// Plain bytes.
    pub fn bytes(held: Arc<Held>, path: Option<(DataPath, u64)>) -> Self {
        let len = held.len;
        Self { held, offset: 0, dtype: Dtype::U8, shape: vec![len], len, path }
    }

    /// Address of its first byte.
    pub fn address(&self) -> u64 {
        // The offset lies inside the memory, so this does not wrap.
        self.held.address() + self.offset
    }

    /// A typed view of `self` that starts at byte `offset` of it.
    ///
    /// # Errors
    /// `ApiMisuse` if it is not inside.
    pub fn typed(&self, dtype: Dtype, shape: Vec<u64>, offset: u64) -> Result<Self, Fail> {
        let len = elements::dense_len(dtype, &shape);
        let end = len.and_then(|len| offset.checked_add(len));
        match (len, end) {
            (Some(len), Some(end)) if end <= self.len => {
                let (held, offset) = (self.held.clone(), self.offset + offset);
                Ok(Self { held, offset, dtype, shape, len, path: self.path })
            }
            _ => {
                let detail =
                    format!("{} {shape:?} from byte {offset} does not lie in {} bytes", dtype.name(), self.len);
                Err(misuse(detail, "give a type, shape and offset that it has bytes for"))
            }
        }
    }
}

/// Element type by name, as safetensors calls it.
///
/// # Errors
/// `ApiMisuse`.
pub fn dtype_named(name: &str) -> Result<Dtype, Fail> {
    elements::dtype_of(name).ok_or_else(|| {
        misuse(
            format!("{name:?} is no element type"),
            "use a name of safetensors, such as F32, BF16, F8_E4M3, I64, BOOL or U8",
        )
    })
}

#[pymethods]
impl Buffer {
    /// Bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.len
    }

    /// Dimensions, outermost first.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// Element type by its safetensors name.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    /// Bytes of an element; for types below one byte, 0.
    #[getter]
    fn itemsize(&self) -> u64 {
        self.dtype.bits() / 8
    }

    /// `host`, `gpu0`, …
    #[getter]
    fn device(&self) -> String {
        self.held.destination().to_string()
    }

    /// The way that its bytes came, or None if no single operation filled it.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.path.as_ref().map(|(path, operations)| report::path(py, path, *operations)).transpose()
    }

    fn __len__(&self) -> PyResult<usize> {
        let first = self.shape.first().and_then(|first| usize::try_from(*first).ok());
        first.ok_or_else(|| pyo3::exceptions::PyTypeError::new_err("len() of a buffer without dimensions"))
    }

    /// The same bytes as another type or shape, from byte `offset` on. Without a shape: all that is left, in one dimension.
    #[pyo3(signature = (dtype="U8", shape=None, offset=0))]
    fn view(&self, dtype: &str, shape: Option<Vec<u64>>, offset: u64) -> Result<Buffer, Fail> {
        let dtype = dtype_named(dtype)?;
        let rest = self.len.saturating_sub(offset).saturating_mul(8);
        let shape = shape.unwrap_or_else(|| vec![rest / dtype.bits()]);
        self.typed(dtype, shape, offset)
    }

    /// A copy of its bytes. Host memory only.
    fn tobytes<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, Fail> {
        export::tobytes(py, self)
    }

    /// `(device type, ordinal)` of DLPack.
    fn __dlpack_device__(&self) -> PyResult<(i32, i32)> {
        export::dlpack_device(self)
    }

    /// A DLPack capsule that shares the memory. The bytes are there and visible, so no stream needs to be waited for.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        slf: &Bound<'py, Self>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        drop(stream);
        export::dlpack(slf.py(), slf.get(), DlAsk { max_version, device: dl_device, copy })
    }

    /// Memory of a GPU for numba, cupy and others; other memory has no such attribute.
    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        export::cuda_array_interface(py, self)
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        // SAFETY: Python gives a view to fill.
        unsafe { export::fill_view(slf, view, flags) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: Python gives back what `__getbuffer__` filled, once.
        unsafe { export::release_view(view) };
    }

    fn __repr__(&self) -> String {
        let mut text = format!(
            "<straightway.Buffer {} {:?} {} bytes of {} memory",
            self.dtype.name(),
            self.shape,
            self.len,
            self.held.destination()
        );
        if let Some((path, _)) = &self.path {
            text.push_str(&format!(", {} {}", path.route, path.reason.code()));
        }
        text.push('>');
        text
    }
}
