//! Memory of Python objects, for operations.
// UNSAFETY: addresses that Python objects tell become regions of the engine.
#![expect(
    unsafe_code,
    reason = "raw addresses of other owners become regions, by the constructor that has the contract"
)]

use std::{any::Any, ffi::CStr, sync::Arc};

use pyo3::{
    buffer::PyUntypedBuffer,
    prelude::*,
    types::{PyCapsule, PyCapsuleMethods, PyMemoryView},
};
use straightway::{ByteLen, Destination, DeviceId, DmaRegion, GpuVa, HostVa, Memory, Place};

use crate::{
    buffer::{Buffer, Held},
    error::{Fail, misuse},
    export::{CPU, CUDA, CUDA_HOST, DlManaged, DlTensor},
};

/// What an operation does with the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It reads it: a write to an object.
    Source,
    /// It writes it: a read from an object.
    Target,
}

/// Memory that an object told of, with what keeps it.
struct Told {
    place: Place,
    len: u64,
    owner: Box<dyn Any + Send + Sync>,
}

/// The memory of `object`; `None` if it has no bytes.
///
/// `object` is a `Buffer`, or has `__cuda_array_interface__`, the buffer protocol or `__dlpack__`, in this order, and is
/// dense in row-major order. It is kept until the operation has let go of the memory.
///
/// # Errors
/// `ApiMisuse` for an object that is none of these, not dense, or not writable; what registration returns.
pub fn memory_of(
    engine: &straightway::Engine,
    object: &Bound<'_, PyAny>,
    access: Access,
) -> Result<Option<Memory>, Fail> {
    if let Ok(buffer) = object.cast::<Buffer>() {
        return of_buffer(engine, buffer.get(), access);
    }
    told_by(object, access)?.map(|told| register(engine, told)).transpose()
}

fn told_by(object: &Bound<'_, PyAny>, access: Access) -> Result<Option<Told>, Fail> {
    match of_cuda(object, access)? {
        Some(told) => Ok(Some(told)),
        None if is_buffer(object) => of_view(object, access),
        None => of_dlpack(object),
    }
}

/// Host memory that an object told of. It stays while this lives.
pub struct HostMemory {
    /// First byte.
    pub address: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    _owner: Box<dyn Any + Send + Sync>,
}

/// The memory of `object`, as [`memory_of`] takes it, for a copy that the engine has no part in.
///
/// # Errors
/// As [`memory_of`]; `ApiMisuse` for memory of a device.
pub fn host_memory_of(object: &Bound<'_, PyAny>, access: Access) -> Result<Option<HostMemory>, Fail> {
    let told = told_by(object, access)?.filter(|told| told.len > 0);
    told.map(|Told { place, len, owner }| match place {
        Place::Host(address) => Ok(HostMemory { address: address.raw(), len, _owner: owner }),
        _ => Err(misuse("the memory is a device's", "give memory of the host")),
    })
    .transpose()
}

fn register(engine: &straightway::Engine, told: Told) -> Result<Memory, Fail> {
    let Told { place, len, owner } = told;
    // SAFETY: the owner keeps the range mapped and in place until it is dropped: an export of the buffer protocol forbids to
    // move or free it, a DLPack capsule or an object with the CUDA array interface owns its memory. No Rust reference into
    // the range exists; that Python threads leave it alone meanwhile is what the documentation asks of the caller.
    let region = unsafe { DmaRegion::from_foreign(place, ByteLen(len), owner) };
    let region = region.map_err(|cause| misuse(cause.to_string(), "give memory of this process or of a GPU"))?;
    Ok(engine.register(region)?.part(0, len)?)
}

fn of_buffer(engine: &straightway::Engine, buffer: &Buffer, access: Access) -> Result<Option<Memory>, Fail> {
    let held: &Arc<Held> = &buffer.held;
    if access == Access::Source && held.destination() == Destination::Host && buffer.len > 0 {
        // Many operations may read the same bytes at once; parts of own memory never overlap.
        let place = Place::Host(HostVa::new(buffer.address()));
        return register(engine, Told { place, len: buffer.len, owner: Box::new(held.clone()) }).map(Some);
    }
    part_of(engine, buffer)
}

/// The memory of a buffer, for an operation.
///
/// # Errors
/// `InUse` while another operation has bytes of it; what registration returns.
pub fn part_of(engine: &straightway::Engine, buffer: &Buffer) -> Result<Option<Memory>, Fail> {
    let held = &buffer.held;
    if !held.is_lent() || buffer.len == 0 {
        return held.part(buffer.offset, buffer.len);
    }
    // Memory of a batch is its loader's: an operation gets at it as at that of others.
    let place = match held.destination() {
        Destination::Gpu(ordinal) => Place::Device(DeviceId(ordinal), GpuVa::new(buffer.address())),
        _ => Place::Host(HostVa::new(buffer.address())),
    };
    register(engine, Told { place, len: buffer.len, owner: Box::new(held.clone()) }).map(Some)
}

fn is_buffer(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: it only looks at the type of a live object.
    unsafe { pyo3::ffi::PyObject_CheckBuffer(object.as_ptr()) == 1 }
}

/// Memory by the buffer protocol. The memory view stays with the region, and with it the export.
fn of_view(object: &Bound<'_, PyAny>, access: Access) -> Result<Option<Told>, Fail> {
    let view = PyMemoryView::from(object)?;
    let buffer = PyUntypedBuffer::get(&view)?;
    if !buffer.is_c_contiguous() {
        return Err(not_dense());
    }
    if access == Access::Target && buffer.readonly() {
        return Err(misuse("the buffer is read-only", "give a writable one, such as bytearray or a numpy array"));
    }
    let (address, len) = (buffer.buf_ptr().expose_provenance() as u64, buffer.len_bytes() as u64);
    buffer.release(object.py());
    let owner = Box::new(view.unbind().into_any());
    Ok((len > 0).then_some(Told { place: Place::Host(HostVa::new(address)), len, owner }))
}

/// Memory of a GPU by the CUDA array interface (version 3): `None` if the object has none.
fn of_cuda(object: &Bound<'_, PyAny>, access: Access) -> Result<Option<Told>, Fail> {
    let Ok(interface) = object.getattr("__cuda_array_interface__") else { return Ok(None) };
    let (address, readonly): (u64, bool) = interface.get_item("data")?.extract()?;
    if access == Access::Target && readonly {
        return Err(misuse("the array is read-only", "give a writable one"));
    }
    let shape: Vec<u64> = interface.get_item("shape")?.extract()?;
    let typestr: String = interface.get_item("typestr")?.extract()?;
    let item: u64 = typestr.get(2..).and_then(|size| size.parse().ok()).ok_or_else(not_dense)?;
    if interface.get_item("strides").is_ok_and(|strides| !strides.is_none()) {
        let strides: Vec<i64> = interface.get_item("strides")?.extract()?;
        if !is_dense(&shape, &strides, item) {
            return Err(not_dense());
        }
    }
    let elements = shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim));
    let len = elements.and_then(|n| n.checked_mul(item)).ok_or_else(not_dense)?;
    let (_, ordinal): (i32, u16) = object.call_method0("__dlpack_device__")?.extract()?;
    let place = Place::Device(DeviceId(ordinal), GpuVa::new(address));
    Ok((len > 0).then(|| Told { place, len, owner: Box::new(object.clone().unbind()) }))
}

/// Names of capsules (DLPack 1.1, "Python Specification for DLPack").
pub const LEGACY: &CStr = c"dltensor";
/// Of those with a version.
pub const VERSIONED: &CStr = c"dltensor_versioned";

/// Memory by DLPack. The capsule is not taken over: it stays with the region as it is and frees what it holds when it is
/// dropped, by a thread that is attached to the interpreter.
fn of_dlpack(object: &Bound<'_, PyAny>) -> Result<Option<Told>, Fail> {
    let Ok(method) = object.getattr("__dlpack__") else {
        let what = object.get_type().name()?;
        return Err(misuse(
            format!("{what} tells no memory"),
            "give a Buffer, or an object with the buffer protocol or DLPack",
        ));
    };
    let capsule = method.call0()?;
    let capsule = capsule.cast::<PyCapsule>().map_err(PyErr::from)?;
    let pointer = capsule.pointer_checked(Some(LEGACY))?;
    // SAFETY: a capsule of that name holds a `DLManagedTensor` (DLPack 1.1, "Python Specification for DLPack"), which lives
    // as long as the capsule.
    let tensor: DlTensor = unsafe { pointer.cast::<DlManaged>().as_ref() }.tensor;
    let item = u64::from(tensor.dtype.bits) * u64::from(tensor.dtype.lanes) / 8;
    let (shape, strides) = dims(&tensor)?;
    let strides_bytes: Option<Vec<i64>> =
        strides.map(|strides| strides.iter().map(|stride| stride.saturating_mul(item.cast_signed())).collect());
    if strides_bytes.is_some_and(|strides| !is_dense(&shape, &strides, item)) {
        return Err(not_dense());
    }
    let elements = shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim));
    let len = elements.and_then(|n| n.checked_mul(item)).ok_or_else(not_dense)?;
    let address = (tensor.data.expose_provenance() as u64).saturating_add(tensor.byte_offset);
    let place = match tensor.device.kind {
        CPU | CUDA_HOST => Place::Host(HostVa::new(address)),
        CUDA => {
            let ordinal = u16::try_from(tensor.device.id).map_err(|_| not_dense())?;
            Place::Device(DeviceId(ordinal), GpuVa::new(address))
        }
        other => {
            return Err(misuse(
                format!("memory of DLPack device type {other}"),
                "give memory of the host or of a CUDA GPU",
            ));
        }
    };
    Ok((len > 0).then(|| Told { place, len, owner: Box::new(capsule.clone().unbind()) }))
}

/// Shape and strides, both in elements.
fn dims(tensor: &DlTensor) -> Result<(Vec<u64>, Option<Vec<i64>>), Fail> {
    let rank = usize::try_from(tensor.ndim).map_err(|_| not_dense())?;
    if rank == 0 {
        return Ok((Vec::new(), None));
    }
    // SAFETY: DLPack promises `ndim` numbers behind a shape that is not null; they live as long as the capsule.
    let shape = unsafe { std::slice::from_raw_parts(tensor.shape, rank) };
    let shape = shape.iter().map(|dim| u64::try_from(*dim).map_err(|_| not_dense())).collect::<Result<_, _>>()?;
    let strides = (!tensor.strides.is_null()).then(|| {
        // SAFETY: as above, for strides that are not null.
        unsafe { std::slice::from_raw_parts(tensor.strides, rank) }.to_vec()
    });
    Ok((shape, strides))
}

/// Whether strides in bytes are those of a dense row-major array. Dimensions of one element may have any.
fn is_dense(shape: &[u64], strides: &[i64], item: u64) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = item;
    for (dim, stride) in shape.iter().zip(strides).rev() {
        if *dim != 1 && u64::try_from(*stride) != Ok(expected) {
            return false;
        }
        expected = expected.saturating_mul(*dim);
    }
    shape.len() == strides.len()
}

fn not_dense() -> Fail {
    misuse("the array is not dense in row-major order", "make it contiguous first")
}
