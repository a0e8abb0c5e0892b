//! A stream of the caller's waits at a gate until it is dropped, and at no other time.
// UNSAFETY: cases play the caller who has streams and asks the driver about them.

use std::time::{Duration, Instant};

use sw_cuda::{Context, Driver, ForeignStream, GATES_MAX, Gate, Gates};
use sw_engine::ErrorKind;

use crate::{Case, Library, Outcome, case, copies::other, first_context, holds, same, text};

const WORKER: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100")];
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: u32 = 600;

pub fn cases() -> Vec<Case> {
    vec![
        Case { settings: WORKER, ..case("a_stream_waits_at_a_gate_until_it_is_dropped", waits) },
        Case { settings: WORKER, ..case("gates_of_one_stream_open_in_any_order", any_order) },
        Case { settings: WORKER, ..case("too_many_closed_gates_are_refused", limit) },
        Case {
            library: Library::Without("cuStreamWaitValue32_v2"),
            ..case("a_driver_without_waits_for_memory_is_told", older)
        },
    ]
}

/// A stream of a caller's, of the primary context, which is current until this is dropped.
struct Caller {
    stream: usize,
}

impl Caller {
    fn new() -> Result<Self, String> {
        let context = other::answer("cuDevicePrimaryCtxRetain", Some(0))?;
        other::with_handle("cuDevicePrimaryCtxRelease_v2", 0)?;
        other::with_handle("cuCtxPushCurrent_v2", context)?;
        Ok(Self { stream: other::answer("cuStreamCreate", Some(1))? })
    }

    fn gate(&self, gates: &Gates) -> Result<Gate, sw_cuda::CudaError> {
        // SAFETY: the stream is destroyed by `end`, after every gate in it.
        gates.close(unsafe { ForeignStream::from_raw(self.stream) })
    }

    /// What `cuStreamQuery` answers.
    fn query(&self) -> Result<u32, String> {
        let library = other::library()?;
        type Query = unsafe extern "C" fn(usize) -> u32;
        // SAFETY: the signature of cuda.h.
        let query = unsafe { library.get::<Query>("cuStreamQuery") }.map_err(text)?;
        // SAFETY: a live stream.
        Ok(unsafe { query(self.stream) })
    }

    fn end(self) -> Outcome {
        other::with_handle("cuStreamSynchronize", self.stream)?;
        other::with_handle("cuStreamDestroy_v2", self.stream)?;
        other::answer("cuCtxPopCurrent_v2", None).map(drop)
    }
}

fn until_reached(gate: &Gate) -> Outcome {
    let end = Instant::now() + Duration::from_secs(5);
    while !gate.is_reached().map_err(text)? {
        holds("reached in time", Instant::now() < end)?;
    }
    Ok(())
}

fn waits() -> Outcome {
    let context = first_context()?;
    let gates = Gates::new(&context).map_err(text)?;
    let caller = Caller::new()?;
    let device = sw_cuda::DeviceBuffer::allocate(&context, sw_mem::ByteLen(4096)).and_then(|b| b.into_region());
    let device = device.map_err(text)?;
    for _ in 0..3 {
        other::fill(device.base().raw(), 0x11, 4096, caller.stream)?;
        let gate = caller.gate(&gates).map_err(text)?;
        other::fill(device.base().raw(), 0x33, 4096, caller.stream)?;
        until_reached(&gate)?;
        std::thread::sleep(Duration::from_millis(5));
        same("closed", caller.query()?, NOT_READY)?;
        drop(gate);
        other::with_handle("cuStreamSynchronize", caller.stream)?;
        same("open", caller.query()?, 0)?;
    }
    caller.end()
}

fn any_order() -> Outcome {
    let context = first_context()?;
    let gates = Gates::new(&context).map_err(text)?;
    let caller = Caller::new()?;
    let first = caller.gate(&gates).map_err(text)?;
    let second = caller.gate(&gates).map_err(text)?;
    drop(second);
    until_reached(&first)?;
    same("the first is closed", caller.query()?, NOT_READY)?;
    // The word of the second is free again, and the stream has yet to look at it.
    let third = caller.gate(&gates).map_err(text)?;
    holds("nothing was reached behind the first", !third.is_reached().map_err(text)?)?;
    drop(first);
    until_reached(&third)?;
    same("the third is closed", caller.query()?, NOT_READY)?;
    drop(third);
    caller.end()
}

fn limit() -> Outcome {
    let context = first_context()?;
    let gates = Gates::new(&context).map_err(text)?;
    let caller = Caller::new()?;
    let closed: Result<Vec<Gate>, _> = (0..GATES_MAX).map(|_| caller.gate(&gates)).collect();
    let closed = closed.map_err(text)?;
    let refused = caller.gate(&gates).err().map(|error| error.kind);
    same("one more", refused, Some(ErrorKind::Busy))?;
    drop(closed);
    drop(caller.gate(&gates).map_err(text)?);
    caller.end()
}

fn older() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    let context = Context::primary(&driver.device(0).map_err(text)?).map_err(text)?;
    let refused = Gates::new(&context).err().map(|error| error.kind);
    same("without the function", refused, Some(ErrorKind::Unsupported))
}
