//! A context: the device's primary one (the one that every library in a process shares), or the caller's own.
// UNSAFETY: calls through the checked table; context handles are the driver's.
#![expect(unsafe_code, reason = "driver calls")]

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUcontext;
use sw_engine::ErrorKind;

use crate::device::Device;
use crate::driver::Driver;
use crate::error::{CudaError, SUCCESS};

/// A context to work in. Copies share it; the last one gives it back.
///
/// *Thread*: any. The context is made current only inside calls and taken away again before they return.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    device: Device,
    handle: CUcontext,
    owner: Owner,
}

// SAFETY: a context handle may be used from any thread (CUDA Driver API, "Context Management"); it is only a name here.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing in it changes after it was made.
unsafe impl Sync for Inner {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A retain of ours is to be released.
    Primary,
    /// The caller's; not ours to end.
    Caller,
}

impl Context {
    /// The device's primary context. *Blocking*: the first one in a process takes 0.1 s to seconds on real hardware.
    ///
    /// # Errors
    /// The driver's.
    pub fn primary(device: &Device) -> Result<Self, CudaError> {
        let driver = device.driver();
        let mut handle: CUcontext = std::ptr::null_mut();
        // SAFETY: a checked symbol and a writable result.
        let answer = unsafe { (driver.table().cuDevicePrimaryCtxRetain)(&raw mut handle, device.raw()) };
        driver.check(answer, "cuDevicePrimaryCtxRetain", Some(device.ordinal()))?;
        Ok(Self(Arc::new(Inner { device: *device, handle, owner: Owner::Primary })))
    }

    /// The context that is current in the calling thread, made by somebody else.
    ///
    /// # Errors
    /// `ApiMisuse` if there is none; the driver's.
    ///
    /// # Safety
    /// The caller keeps that context alive until this value, its copies, and everything made from them are gone.
    pub unsafe fn of_caller(driver: Driver) -> Result<Self, CudaError> {
        let mut handle: CUcontext = std::ptr::null_mut();
        // SAFETY: a checked symbol and a writable result.
        let answer = unsafe { (driver.table().cuCtxGetCurrent)(&raw mut handle) };
        driver.check(answer, "cuCtxGetCurrent", None)?;
        if handle.is_null() {
            let remedy = "make a context current in this thread first, or use the primary one";
            return Err(CudaError::ours(ErrorKind::ApiMisuse, "cuCtxGetCurrent", None, remedy));
        }
        let mut raw = 0;
        // SAFETY: a checked symbol and a writable result; a context is current.
        let answer = unsafe { (driver.table().cuCtxGetDevice)(&raw mut raw) };
        driver.check(answer, "cuCtxGetDevice", None)?;
        let found = driver.devices()?.into_iter().find(|device| device.raw() == raw);
        let device = found.ok_or_else(|| CudaError::ours(ErrorKind::NoDevice, "cuCtxGetDevice", None, ""))?;
        Ok(Self(Arc::new(Inner { device, handle, owner: Owner::Caller })))
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Free and total device memory in bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        let entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: a checked symbol, writable results, a current context.
        let answer = unsafe { (entered.driver().table().cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.check(answer, "cuMemGetInfo_v2")?;
        Ok((free as u64, total as u64))
    }

    /// Makes it current in this thread until the guard is dropped: also for libraries that work in the thread's context.
    ///
    /// # Errors
    /// The driver's.
    pub fn enter(&self) -> Result<Entered<'_>, CudaError> {
        let code = self.push();
        self.check(code, "cuCtxPushCurrent_v2")?;
        Ok(Entered { context: self, not_send: PhantomData })
    }

    /// As [`Context::enter`], for the data path: a number, no text.
    pub(crate) fn enter_fast(&self) -> Result<Entered<'_>, u32> {
        match self.push() {
            SUCCESS => Ok(Entered { context: self, not_send: PhantomData }),
            code => Err(code),
        }
    }

    fn push(&self) -> u32 {
        // SAFETY: a checked symbol; the handle is alive: retained by us, or kept by the caller's promise.
        unsafe { (self.0.device.driver().table().cuCtxPushCurrent_v2)(self.0.handle) }
    }

    pub(crate) fn check(&self, code: u32, call: &'static str) -> Result<(), CudaError> {
        self.0.device.driver().check(code, call, Some(self.0.device.ordinal()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owner == Owner::Primary {
            // SAFETY: a checked symbol; releases the one retain that this value stands for.
            let answer = unsafe { (self.device.driver().table().cuDevicePrimaryCtxRelease_v2)(self.device.raw()) };
            if answer != SUCCESS {
                tracing::warn!(gpu = self.device.ordinal(), code = answer, "the primary context was not released");
            }
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context(gpu{})", self.0.device.ordinal())
    }
}

/// A context that is current in this thread; the one before is put back on drop.
#[derive(Debug)]
pub struct Entered<'a> {
    context: &'a Context,
    /// Current is a property of the thread.
    not_send: PhantomData<*const ()>,
}

impl Entered<'_> {
    pub(crate) fn driver(&self) -> Driver {
        self.context.device().driver()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped: CUcontext = std::ptr::null_mut();
        // SAFETY: a checked symbol and a writable result; balances the push of `enter`. An answer other than success
        // (a lost device) leaves nothing to do: the stack of this thread is the driver's.
        let _answer = unsafe { (self.driver().table().cuCtxPopCurrent_v2)(&raw mut popped) };
    }
}
