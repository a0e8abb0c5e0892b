//! Our memory for others: buffer protocol, DLPack, CUDA array interface.
// UNSAFETY: C structures of Python and of DLPack are filled and freed.
#![expect(unsafe_code, reason = "C structures of Python and of DLPack, with addresses that a Held keeps valid")]

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::Arc,
};

use pyo3::{
    exceptions::{PyAttributeError, PyBufferError},
    ffi,
    prelude::*,
    types::{PyBytes, PyCapsule, PyDict, PyTuple},
};
use straightway::Destination;

use crate::{
    buffer::{Buffer, Held},
    elements,
    error::{Fail, misuse},
    foreign::{LEGACY, VERSIONED},
};

/// `kDLCPU`.
pub const CPU: i32 = 1;
/// `kDLCUDA`.
pub const CUDA: i32 = 2;
/// `kDLCUDAHost`.
pub const CUDA_HOST: i32 = 3;

/// `DLDevice` of `dlpack.h` 1.1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlDevice {
    /// `DLDeviceType`.
    pub kind: i32,
    /// Ordinal.
    pub id: i32,
}

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlType {
    code: u8,
    /// Of one lane.
    pub bits: u8,
    /// Of one element.
    pub lanes: u16,
}

/// `DLTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlTensor {
    /// Base address.
    pub data: *mut c_void,
    /// Whose memory.
    pub device: DlDevice,
    /// Dimensions.
    pub ndim: i32,
    /// Element type.
    pub dtype: DlType,
    /// `ndim` lengths.
    pub shape: *mut i64,
    /// `ndim` strides in elements, or null for a dense row-major array.
    pub strides: *mut i64,
    /// From the base address.
    pub byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
#[derive(Debug)]
pub struct DlManaged {
    /// The array.
    pub tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlManaged)>,
}

/// `DLManagedTensorVersioned` of major version 1.
#[repr(C)]
struct DlVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

/// A managed tensor with what it points to. `managed` comes first: its address is the whole's.
#[repr(C)]
struct Export<M> {
    managed: M,
    _shape: Vec<i64>,
    _strides: Vec<i64>,
    _held: Arc<Held>,
}

/// Frees an export. Called once, by whoever took it over or by its capsule.
unsafe extern "C" fn free<M>(managed: *mut M) {
    // SAFETY: the pointer came from `Box::into_raw` of an `Export<M>`, whose first field it is; DLPack calls once.
    drop(unsafe { Box::from_raw(managed.cast::<Export<M>>()) });
}

/// Frees what nobody took over: a consumer renames the capsule.
unsafe extern "C" fn drop_legacy(capsule: *mut ffi::PyObject) {
    // SAFETY: called by Python with the capsule that is going away.
    unsafe { drop_capsule::<DlManaged>(capsule, LEGACY) };
}

/// As [`drop_legacy`].
unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as in `drop_legacy`.
    unsafe { drop_capsule::<DlVersioned>(capsule, VERSIONED) };
}

unsafe fn drop_capsule<M>(capsule: *mut ffi::PyObject, name: &'static CStr) {
    // SAFETY: a live capsule and a static name.
    if unsafe { ffi::PyCapsule_IsValid(capsule, name.as_ptr()) } != 1 {
        return;
    }
    // SAFETY: it is valid under that name, so it still holds the pointer that it was made with.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule, name.as_ptr()) };
    // SAFETY: nobody took it over.
    unsafe { free::<M>(pointer.cast()) };
}

impl Buffer {
    fn dl_device(&self) -> PyResult<DlDevice> {
        match self.held.destination() {
            Destination::Host => Ok(DlDevice { kind: CPU, id: 0 }),
            Destination::Gpu(ordinal) => Ok(DlDevice { kind: CUDA, id: i32::from(ordinal) }),
            other => Err(PyBufferError::new_err(format!("DLPack has no device for {other} memory"))),
        }
    }

    /// A managed tensor, made by `manage`.
    fn dl_export<M>(&self, manage: impl FnOnce(DlTensor) -> M) -> PyResult<*mut M> {
        let (code, bits) = elements::dlpack_type(self.dtype)
            .ok_or_else(|| PyBufferError::new_err(format!("DLPack has no type for {}", self.dtype.name())))?;
        let dims = self.shape.iter().map(|dim| i64::try_from(*dim)).collect::<Result<Vec<_>, _>>();
        let mut shape = dims.map_err(|_| PyBufferError::new_err("a dimension is too large for DLPack"))?;
        let mut strides = row_major(&shape, 1);
        // The arrays stay where they are when the box that owns them moves.
        let array = DlTensor {
            data: ptr::with_exposed_provenance_mut(address(self)),
            device: self.dl_device()?,
            ndim: i32::try_from(shape.len()).map_err(|_| PyBufferError::new_err("too many dimensions"))?,
            dtype: DlType { code, bits, lanes: 1 },
            shape: shape.as_mut_ptr(),
            strides: strides.as_mut_ptr(),
            byte_offset: 0,
        };
        Ok(Box::into_raw(Box::new(Export {
            managed: manage(array),
            _shape: shape,
            _strides: strides,
            _held: self.held.clone(),
        }))
        .cast())
    }
}

/// The address as this process's pointers have it.
fn address(buffer: &Buffer) -> usize {
    // Addresses of this process, and those of GPUs, fit a pointer.
    usize::try_from(buffer.address()).unwrap_or(usize::MAX)
}

/// Strides of a dense row-major array, in units of `item`.
fn row_major(shape: &[i64], item: i64) -> Vec<i64> {
    let mut strides = vec![item; shape.len()];
    for at in (1..shape.len()).rev() {
        if let (Some(dim), Some(stride)) = (shape.get(at).copied(), strides.get(at).copied())
            && let Some(outer) = strides.get_mut(at - 1)
        {
            *outer = stride.saturating_mul(dim.max(1));
        }
    }
    strides
}

/// What a view of the buffer protocol points to.
struct View {
    shape: Vec<isize>,
    strides: Vec<isize>,
    /// Keeps the memory also if the buffer object goes first.
    _held: Arc<Held>,
}

/// `(device type, ordinal)` of DLPack.
pub fn dlpack_device(buffer: &Buffer) -> PyResult<(i32, i32)> {
    buffer.dl_device().map(|device| (device.kind, device.id))
}

/// What `__dlpack__` may be asked for.
#[derive(Clone, Copy, Debug)]
pub struct DlAsk {
    /// Newest version that the consumer knows.
    pub max_version: Option<(u32, u32)>,
    /// Where it wants the bytes.
    pub device: Option<(i32, i32)>,
    /// Whether it wants a copy.
    pub copy: Option<bool>,
}

/// A DLPack capsule that shares the memory.
pub fn dlpack<'py>(py: Python<'py>, buffer: &Buffer, ask: DlAsk) -> PyResult<Bound<'py, PyCapsule>> {
    let own = dlpack_device(buffer)?;
    if ask.copy == Some(true) || ask.device.is_some_and(|wanted| wanted != own) {
        return Err(PyBufferError::new_err("a buffer is shared where it is; copy it in your framework"));
    }
    if ask.max_version.is_some_and(|(major, _)| major >= 1) {
        let manage = |tensor| DlVersioned {
            major: 1,
            minor: 0,
            context: ptr::null_mut(),
            deleter: Some(free::<DlVersioned>),
            flags: 0,
            tensor,
        };
        let pointer = buffer.dl_export(manage)?;
        return capsule(py, pointer.cast(), VERSIONED, drop_versioned);
    }
    let manage = |tensor| DlManaged { tensor, context: ptr::null_mut(), deleter: Some(free::<DlManaged>) };
    let pointer = buffer.dl_export(manage)?;
    capsule(py, pointer.cast(), LEGACY, drop_legacy)
}

/// The CUDA array interface of memory of a GPU; for other memory the attribute is not there.
pub fn cuda_array_interface<'py>(py: Python<'py>, buffer: &Buffer) -> PyResult<Bound<'py, PyDict>> {
    let Destination::Gpu(_) = buffer.held.destination() else {
        return Err(PyAttributeError::new_err("__cuda_array_interface__ is for memory of a GPU"));
    };
    let typestr = elements::typestr(buffer.dtype).ok_or_else(|| {
        PyAttributeError::new_err(format!("the array interface has no type for {}; use DLPack", buffer.dtype.name()))
    })?;
    let interface = PyDict::new(py);
    interface.set_item("shape", PyTuple::new(py, &buffer.shape)?)?;
    interface.set_item("typestr", typestr)?;
    interface.set_item("data", (buffer.address(), false))?;
    interface.set_item("strides", py.None())?;
    interface.set_item("version", 3)?;
    Ok(interface)
}

/// A copy of its bytes.
pub fn tobytes<'py>(py: Python<'py>, buffer: &Buffer) -> Result<Bound<'py, PyBytes>, Fail> {
    if buffer.held.destination() != Destination::Host {
        return Err(misuse("the memory is not of the host", "copy it to the host first: engine.to_host(buffer)"));
    }
    let from: *const u8 = ptr::with_exposed_provenance(address(buffer));
    let len = usize::try_from(buffer.len).unwrap_or(usize::MAX);
    Ok(PyBytes::new_with(py, len, |to| {
        // SAFETY: host memory of `len` bytes that `buffer.held` keeps mapped, and a fresh destination of that length. Where
        // another thread's operation writes it meanwhile, the copy has old and new bytes, as for any shared buffer.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), len) };
        Ok(())
    })?)
}

/// Fills a view of the buffer protocol.
///
/// # Safety
/// `view` is Python's, to be filled.
pub unsafe fn fill_view(slf: Bound<'_, Buffer>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
    let buffer = slf.get();
    if buffer.held.destination() != Destination::Host {
        return Err(PyBufferError::new_err("memory of a device has no buffer protocol; use DLPack"));
    }
    let asks = |flag: c_int| flags & flag == flag;
    let format = elements::buffer_format(buffer.dtype);
    if asks(ffi::PyBUF_FORMAT) && format.is_none() {
        let name = buffer.dtype.name();
        return Err(PyBufferError::new_err(format!("{name} has no buffer format; use DLPack, or view(\"U8\")")));
    }
    if asks(ffi::PyBUF_F_CONTIGUOUS) && buffer.shape.len() > 1 {
        return Err(PyBufferError::new_err("the buffer is in row-major order"));
    }
    let item = isize::try_from((buffer.dtype.bits() / 8).max(1)).unwrap_or(1);
    let (len, mut parts) = view_parts(buffer, item)?;
    // The arrays stay where they are when the box that owns them moves.
    let (shape, strides) = (parts.shape.as_mut_ptr(), parts.strides.as_mut_ptr());
    let filled = ffi::Py_buffer {
        buf: ptr::with_exposed_provenance_mut(address(buffer)),
        len,
        itemsize: item,
        readonly: 0,
        ndim: c_int::try_from(buffer.shape.len()).unwrap_or(0),
        format: format.filter(|_| asks(ffi::PyBUF_FORMAT)).map_or(ptr::null_mut(), |text| text.as_ptr().cast_mut()),
        shape: if asks(ffi::PyBUF_ND) { shape } else { ptr::null_mut() },
        strides: if asks(ffi::PyBUF_STRIDES) { strides } else { ptr::null_mut() },
        suboffsets: ptr::null_mut(),
        internal: Box::into_raw(Box::new(parts)).cast(),
        obj: slf.into_any().into_ptr(),
    };
    // SAFETY: the caller's.
    unsafe { view.write(filled) };
    Ok(())
}

/// Ends a view.
///
/// # Safety
/// `view` was filled by [`fill_view`], and is released once.
pub unsafe fn release_view(view: *mut ffi::Py_buffer) {
    // SAFETY: the caller's.
    let internal = unsafe { (*view).internal };
    // SAFETY: it came from a box there.
    drop(unsafe { Box::from_raw(internal.cast::<View>()) });
}

fn view_parts(buffer: &Buffer, item: isize) -> PyResult<(isize, View)> {
    let large = |_| PyBufferError::new_err("too large for a view");
    let len = isize::try_from(buffer.len).map_err(large)?;
    let shape = buffer.shape.iter().map(|dim| isize::try_from(*dim)).collect::<Result<Vec<_>, _>>().map_err(large)?;
    let dims: Vec<i64> = shape.iter().map(|dim| *dim as i64).collect();
    let strides =
        row_major(&dims, item as i64).into_iter().map(isize::try_from).collect::<Result<_, _>>().map_err(large)?;
    Ok((len, View { shape, strides, _held: buffer.held.clone() }))
}

fn capsule<'py>(
    py: Python<'py>,
    pointer: *mut c_void,
    name: &'static CStr,
    destructor: ffi::PyCapsule_Destructor,
) -> PyResult<Bound<'py, PyCapsule>> {
    let pointer = ptr::NonNull::new(pointer).ok_or_else(|| PyBufferError::new_err("no memory"))?;
    // SAFETY: the pointer is a managed tensor of the kind that the name says, and the destructor is the one for it.
    unsafe { PyCapsule::new_with_pointer_and_destructor(py, pointer, name, Some(destructor)) }
}
