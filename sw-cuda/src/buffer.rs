//! Memory that the driver allocates: on the device, managed, or page-locked on the host.
// UNSAFETY: driver calls, and the promise to `DmaRegion` that the memory lives as long as its owner.
#![expect(unsafe_code, reason = "driver calls and region construction")]

use std::ffi::c_void;

use sw_engine::ErrorKind;
use sw_mem::{ByteLen, DmaRegion, GpuVa, HostVa, Place, index};

use crate::context::Context;
use crate::error::{CudaError, SUCCESS};

/// `CU_MEM_ATTACH_GLOBAL`: any stream of any device may touch it.
const ATTACH_GLOBAL: u32 = 1;
/// `CU_MEMHOSTALLOC_PORTABLE`: page-locked for every context, not only for this one.
const PORTABLE: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Device,
    Managed,
    Pinned,
}

/// One allocation; freed on drop.
#[derive(Debug)]
struct Allocation {
    context: Context,
    address: u64,
    len: ByteLen,
    kind: Kind,
}

impl Allocation {
    fn new(context: &Context, len: ByteLen, kind: Kind) -> Result<Self, CudaError> {
        let call = call_of(kind);
        if len.0 == 0 {
            let remedy = "ask for at least one byte";
            return Err(CudaError::ours(ErrorKind::ApiMisuse, call, Some(context.device().ordinal()), remedy));
        }
        let entered = context.enter()?;
        let table = entered.driver().table();
        let (mut device_va, mut host) = (0, std::ptr::null_mut::<c_void>());
        let answer = match kind {
            // SAFETY: a checked symbol, a writable result, a current context.
            Kind::Device => unsafe { (table.cuMemAlloc_v2)(&raw mut device_va, index(len.0)) },
            // SAFETY: as above.
            Kind::Managed => unsafe { (table.cuMemAllocManaged)(&raw mut device_va, index(len.0), ATTACH_GLOBAL) },
            // SAFETY: as above.
            Kind::Pinned => unsafe { (table.cuMemHostAlloc)(&raw mut host, index(len.0), PORTABLE) },
        };
        context.check(answer, call)?;
        let address = if kind == Kind::Pinned { host.expose_provenance() as u64 } else { device_va };
        Ok(Self { context: context.clone(), address, len, kind })
    }

    fn into_region(self) -> Result<DmaRegion, CudaError> {
        let (len, id) = (self.len, self.context.device().id());
        let place = match self.kind {
            Kind::Device => Place::Device(id, GpuVa::new(self.address)),
            Kind::Managed | Kind::Pinned => Place::Host(HostVa::new(self.address)),
        };
        let call = call_of(self.kind);
        // SAFETY: the allocation is the owner: the memory lives until it is dropped, which the region does last. For
        // memory that the CPU can reach, no reference to it was ever made: the address is only known here.
        let region = unsafe { DmaRegion::from_foreign(place, len, Box::new(self)) };
        region.map_err(|_| CudaError::ours(ErrorKind::Protocol, call, Some(id.0), "report the driver's version"))
    }
}

fn call_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Device => "cuMemAlloc_v2",
        Kind::Managed => "cuMemAllocManaged",
        Kind::Pinned => "cuMemHostAlloc",
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let gpu = self.context.device().ordinal();
        let Ok(entered) = self.context.enter() else {
            tracing::warn!(gpu, bytes = self.len.0, "memory not freed: its context is gone");
            return;
        };
        let table = entered.driver().table();
        let answer = match self.kind {
            // SAFETY: a checked symbol; our own allocation, freed once. Nothing in flight touches it: regions and spans
            // keep it alive until the engine let go.
            Kind::Device | Kind::Managed => unsafe { (table.cuMemFree_v2)(self.address) },
            Kind::Pinned => {
                let host = std::ptr::with_exposed_provenance_mut::<c_void>(index(self.address));
                // SAFETY: as above.
                unsafe { (table.cuMemFreeHost)(host) }
            }
        };
        if answer != SUCCESS {
            tracing::debug!(gpu, code = answer, bytes = self.len.0, "memory freed with an error");
        }
    }
}

macro_rules! buffer {
    ($(#[$doc:meta])* $name:ident, $kind:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Allocation);

        impl $name {
            /// Allocates `len` bytes, above zero.
            ///
            /// # Errors
            /// `ResourceLimit` if there is not enough; the driver's.
            pub fn allocate(context: &Context, len: ByteLen) -> Result<Self, CudaError> {
                Allocation::new(context, len, $kind).map(Self)
            }

            /// Length in bytes, as asked for.
            pub fn len(&self) -> ByteLen {
                self.0.len
            }

            /// Never true.
            pub fn is_empty(&self) -> bool {
                false
            }

            /// Gives it to the engine: the memory is freed after the last span of the region.
            ///
            /// # Errors
            /// `Protocol` if the driver gave an address that is none.
            pub fn into_region(self) -> Result<DmaRegion, CudaError> {
                self.0.into_region()
            }
        }
    };
}

buffer!(
    /// Memory of a device. The CPU must not follow its address.
    DeviceBuffer,
    Kind::Device
);
buffer!(
    /// Managed memory: host and device may both touch it, the driver moves pages.
    ManagedBuffer,
    Kind::Managed
);
buffer!(
    /// Page-locked host memory of the driver's own, usable from every context.
    PinnedBuffer,
    Kind::Pinned
);

impl DeviceBuffer {
    /// Its first byte.
    pub fn base(&self) -> GpuVa {
        GpuVa::new(self.0.address)
    }
}

impl ManagedBuffer {
    /// Its first byte, as both sides know it.
    pub fn base(&self) -> HostVa {
        HostVa::new(self.0.address)
    }
}

impl PinnedBuffer {
    /// Its first byte.
    pub fn base(&self) -> HostVa {
        HostVa::new(self.0.address)
    }
}
