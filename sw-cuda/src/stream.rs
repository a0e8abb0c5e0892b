//! Streams and events: ours, and the caller's.
// UNSAFETY: calls through the checked table; handles are the driver's.
#![expect(unsafe_code, reason = "driver calls")]

use cudarc::driver::sys::{CUevent, CUstream};

use crate::context::Context;
use crate::error::{CudaError, NOT_READY, SUCCESS};

/// `CU_STREAM_NON_BLOCKING`: no implicit order with the legacy default stream, which would serialise us with others.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`: such an event is cheaper to record and to query.
const NO_TIMING: u32 = 2;

/// A stream of ours.
#[derive(Debug)]
pub struct Stream {
    context: Context,
    handle: CUstream,
}

// SAFETY: a stream handle may be used from any thread (CUDA Driver API, "Stream Management").
unsafe impl Send for Stream {}

impl Stream {
    /// A stream without implicit order to any other.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        let entered = context.enter()?;
        let mut handle: CUstream = std::ptr::null_mut();
        // SAFETY: a checked symbol, a writable result, a current context.
        let answer = unsafe { (entered.driver().table().cuStreamCreate)(&raw mut handle, NON_BLOCKING) };
        context.check(answer, "cuStreamCreate")?;
        Ok(Self { context: context.clone(), handle })
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.handle
    }

    /// As a stream of somebody else's, for as long as this lives.
    pub(crate) fn as_foreign(&self) -> ForeignStream {
        ForeignStream(self.handle)
    }

    /// Whether everything submitted so far is done. Never blocks.
    ///
    /// # Errors
    /// The driver's; also those of earlier work in this context.
    pub fn is_idle(&self) -> Result<bool, CudaError> {
        let entered = self.context.enter()?;
        // SAFETY: a checked symbol and our own live stream.
        match unsafe { (entered.driver().table().cuStreamQuery)(self.handle) } {
            SUCCESS => Ok(true),
            NOT_READY => Ok(false),
            code => self.context.check(code, "cuStreamQuery").map(|()| false),
        }
    }

    /// Later work here starts after `event`'s place was reached.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        let entered = self.context.enter()?;
        // SAFETY: a checked symbol, our own live stream and event.
        let answer = unsafe { (entered.driver().table().cuStreamWaitEvent)(self.handle, event.handle, 0) };
        self.context.check(answer, "cuStreamWaitEvent")
    }

    /// Puts `event` at the end of what was submitted so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        let entered = self.context.enter()?;
        // SAFETY: a checked symbol, our own live stream and event.
        let answer = unsafe { (entered.driver().table().cuEventRecord)(event.handle, self.handle) };
        self.context.check(answer, "cuEventRecord")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Ok(entered) = self.context.enter() else { return };
        // SAFETY: a checked symbol and our own stream, used by nobody after this. The driver ends it after its work.
        let answer = unsafe { (entered.driver().table().cuStreamDestroy_v2)(self.handle) };
        if answer != SUCCESS {
            tracing::debug!(gpu = self.context.device().ordinal(), code = answer, "stream destroyed with an error");
        }
    }
}

/// An event: a place in a stream that can be asked for and waited for.
#[derive(Debug)]
pub struct Event {
    context: Context,
    handle: CUevent,
}

// SAFETY: an event handle may be used from any thread (CUDA Driver API, "Event Management").
unsafe impl Send for Event {}

impl Event {
    /// An event without a clock.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        let entered = context.enter()?;
        let mut handle: CUevent = std::ptr::null_mut();
        // SAFETY: a checked symbol, a writable result, a current context.
        let answer = unsafe { (entered.driver().table().cuEventCreate)(&raw mut handle, NO_TIMING) };
        context.check(answer, "cuEventCreate")?;
        Ok(Self { context: context.clone(), handle })
    }

    pub(crate) fn raw(&self) -> CUevent {
        self.handle
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(entered) = self.context.enter() else { return };
        // SAFETY: a checked symbol and our own event, used by nobody after this.
        let answer = unsafe { (entered.driver().table().cuEventDestroy_v2)(self.handle) };
        if answer != SUCCESS {
            tracing::debug!(gpu = self.context.device().ordinal(), code = answer, "event destroyed with an error");
        }
    }
}

/// A stream of the caller's, by its handle.
#[derive(Clone, Copy, Debug)]
pub struct ForeignStream(CUstream);

// SAFETY: a stream handle may be used from any thread (CUDA Driver API, "Stream Management").
unsafe impl Send for ForeignStream {}

impl ForeignStream {
    /// Wraps a handle: a `CUstream`, or what frameworks give as an integer (0 is the legacy default stream).
    ///
    /// # Safety
    /// The stream is of the context that it will be used with, and lives until everything that was given this value is
    /// gone.
    pub unsafe fn from_raw(handle: usize) -> Self {
        Self(std::ptr::with_exposed_provenance_mut(handle))
    }

    pub(crate) fn raw(self) -> CUstream {
        self.0
    }
}
