//! Page-locking host memory that we allocated, so that a copy engine can address it.
//!
//! A range may be registered once in a process. Several devices' engines pin the same slabs, so pins of the same range
//! share one registration, counted here. All of this is control plane; the lock is never taken on the data path.
// UNSAFETY: two driver calls on memory that the pin keeps alive.
#![expect(unsafe_code, reason = "driver calls")]

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use sw_engine::ErrorKind;
use sw_mem::{DmaRegion, HostVa, index};

use crate::context::Context;
use crate::error::{ALREADY_REGISTERED, CudaError, SUCCESS};
use crate::pointer::PointerKind;

/// `CU_MEMHOSTREGISTER_PORTABLE`: page-locked for every context, not only for this one.
const PORTABLE: u32 = 1;
const CALL: &str = "cuMemHostRegister_v2";

#[derive(Debug)]
struct Registered {
    base: u64,
    len: u64,
    pins: u32,
}

static REGISTERED: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

/// Host memory that is page-locked until this is dropped. It keeps the memory alive too.
#[derive(Debug)]
pub struct HostPin {
    context: Context,
    region: DmaRegion,
    base: u64,
    /// Whether the registration is one of ours (and not of another library in the process).
    ours: bool,
}

impl HostPin {
    /// Pins the whole of a host region. *Blocking*: the kernel locks every page, about 0.1 s a GiB.
    ///
    /// # Errors
    /// `ApiMisuse` for device memory, `ResourceLimit` if the system refuses to lock so much, `InUse` if a part of the
    /// range (but not all of it) is registered already.
    pub fn new(context: &Context, region: &DmaRegion) -> Result<Self, CudaError> {
        let ordinal = Some(context.device().ordinal());
        let Some(base) = region.base().host().map(HostVa::raw) else {
            return Err(CudaError::ours(ErrorKind::ApiMisuse, CALL, ordinal, "pin host memory only"));
        };
        let len = region.len().0;
        let pin = |ours| Self { context: context.clone(), region: region.clone(), base, ours };
        let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = registered.iter_mut().find(|r| r.base <= base && base - r.base + len <= r.len) {
            known.pins += 1;
            return Ok(pin(true));
        }
        let entered = context.enter()?;
        let pointer = std::ptr::with_exposed_provenance_mut::<c_void>(index(base));
        // SAFETY: a checked symbol and a current context; the range is mapped: the region is alive and kept.
        let answer = unsafe { (entered.driver().table().cuMemHostRegister_v2)(pointer, index(len), PORTABLE) };
        if answer == ALREADY_REGISTERED {
            // Another library pinned it. Good enough if it pinned all of it; ending that is then its business.
            let facts = entered.driver().pointer_facts(base)?;
            if facts.kind == PointerKind::PinnedHost && facts.bytes_left() >= len {
                return Ok(pin(false));
            }
        }
        context.check(answer, CALL)?;
        registered.push(Registered { base, len, pins: 1 });
        Ok(pin(true))
    }

    /// The memory.
    pub fn region(&self) -> &DmaRegion {
        &self.region
    }
}

impl Drop for HostPin {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        let at = registered.iter().position(|r| r.base <= self.base && self.base < r.base + r.len);
        let Some((at, known)) = at.and_then(|at| registered.get_mut(at).map(|known| (at, known))) else { return };
        known.pins -= 1;
        if known.pins > 0 {
            return;
        }
        let pointer = std::ptr::with_exposed_provenance_mut::<c_void>(index(known.base));
        registered.remove(at);
        let gpu = self.context.device().ordinal();
        let Ok(entered) = self.context.enter() else {
            tracing::warn!(gpu, "memory not unpinned: its context is gone");
            return;
        };
        // SAFETY: a checked symbol; a registration of ours, ended once; the memory is still mapped (`region`).
        let answer = unsafe { (entered.driver().table().cuMemHostUnregister)(pointer) };
        if answer != SUCCESS {
            tracing::debug!(gpu, code = answer, "memory unpinned with an error");
        }
    }
}
