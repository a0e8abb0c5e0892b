//! What the driver knows about an address: where it points, and into which allocation.
// UNSAFETY: one driver call that fills results of this file's own stack.
#![expect(unsafe_code, reason = "driver calls")]

use std::ffi::c_void;

use cudarc::driver::sys::{CUdeviceptr, CUpointer_attribute};
use sw_engine::ErrorKind;
use sw_mem::{ByteLen, DmaRegion, GpuVa, HostVa, Place};

use crate::context::Context;
use crate::driver::Driver;
use crate::error::CudaError;

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointerKind {
    /// Memory of a device; the CPU must not follow it.
    Device,
    /// Managed memory: both sides may touch it.
    Managed,
    /// Page-locked host memory, allocated or registered through the driver.
    PinnedHost,
    /// Memory that the driver does not know: ordinary host memory, or nothing.
    Unknown,
}

/// The facts about one address. An interior pointer finds its allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointerFacts {
    /// Where it points.
    pub kind: PointerKind,
    /// Ordinal of the device that owns it; `None` for [`PointerKind::Unknown`].
    pub device: Option<u16>,
    /// First byte of the allocation.
    pub base: u64,
    /// Length of the allocation in bytes.
    pub len: u64,
    /// The address's distance from `base` in bytes.
    pub offset: u64,
    /// Number of the allocation, never used again in this process: tells a freed and reused address from the same one.
    pub buffer_id: u64,
    /// Whether the driver can give it to third-party devices.
    pub gpudirect: bool,
}

impl PointerFacts {
    /// Bytes from the address to the end of its allocation.
    pub fn bytes_left(&self) -> u64 {
        self.len - self.offset
    }
}

impl Driver {
    /// Asks about an address. Any value may be asked about.
    ///
    /// # Errors
    /// The driver's; `Protocol` if it describes an allocation that does not contain the address.
    pub fn pointer_facts(self, address: u64) -> Result<PointerFacts, CudaError> {
        const CALL: &str = "cuPointerGetAttributes";
        use CUpointer_attribute as A;
        let (mut memory, mut managed, mut capable, mut ordinal) = (0u32, 0u32, 0u32, -1i32);
        let (mut id, mut base, mut len) = (0u64, 0 as CUdeviceptr, 0usize);
        let mut what = [
            A::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            A::CU_POINTER_ATTRIBUTE_IS_MANAGED,
            A::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
            A::CU_POINTER_ATTRIBUTE_BUFFER_ID,
            A::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
            A::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
            A::CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE,
        ];
        let mut into: [*mut c_void; 7] = [
            (&raw mut memory).cast(),
            (&raw mut managed).cast(),
            (&raw mut ordinal).cast(),
            (&raw mut id).cast(),
            (&raw mut base).cast(),
            (&raw mut len).cast(),
            (&raw mut capable).cast(),
        ];
        // SAFETY: a checked symbol; as many attributes as results, each result of the type that cuda.h documents for its
        // attribute. The address is only looked up, never followed.
        let answer = unsafe { (self.table().cuPointerGetAttributes)(7, what.as_mut_ptr(), into.as_mut_ptr(), address) };
        self.check(answer, CALL, None)?;
        // cuda.h, "enum CUmemorytype": host 1, device 2. Zero: not known to the driver.
        let kind = match (memory, managed) {
            (_, 1..) => PointerKind::Managed,
            (2, _) => PointerKind::Device,
            (1, _) => PointerKind::PinnedHost,
            _ => PointerKind::Unknown,
        };
        if kind == PointerKind::Unknown {
            return Ok(PointerFacts {
                kind,
                device: None,
                base: address,
                len: 0,
                offset: 0,
                buffer_id: 0,
                gpudirect: false,
            });
        }
        let len = len as u64;
        match address.checked_sub(base).filter(|offset| *offset < len) {
            Some(offset) => Ok(PointerFacts {
                kind,
                device: u16::try_from(ordinal).ok(),
                base,
                len,
                offset,
                buffer_id: id,
                gpudirect: capable != 0,
            }),
            None => {
                Err(CudaError::ours(ErrorKind::Protocol, CALL, None, "report the driver's version with this message"))
            }
        }
    }

    /// A region over memory that the caller allocated: device, managed or page-locked host memory; `address` may lie
    /// inside an allocation.
    ///
    /// # Errors
    /// `NotRegistered` if the driver does not know the address, `OutOfRange` if the range leaves its allocation.
    ///
    /// # Safety
    /// The caller keeps the allocation alive while the region or a span of it lives, and obeys
    /// [`DmaRegion::from_foreign`]'s rules for memory that the CPU can reach.
    pub unsafe fn register_existing(self, address: u64, len: ByteLen) -> Result<(DmaRegion, PointerFacts), CudaError> {
        const CALL: &str = "cuPointerGetAttributes";
        let facts = self.pointer_facts(address)?;
        let device = facts.device;
        if facts.kind == PointerKind::Unknown {
            let remedy = "allocate it with cudaMalloc, cudaMallocManaged or cudaHostAlloc, or register it first";
            return Err(CudaError::ours(ErrorKind::NotRegistered, CALL, None, remedy));
        }
        if len.0 == 0 || len.0 > facts.bytes_left() {
            let remedy = "register at most up to the end of the allocation";
            return Err(CudaError::ours(ErrorKind::OutOfRange, CALL, device, remedy));
        }
        let place = match (facts.kind, device) {
            (PointerKind::Device, Some(ordinal)) => Place::Device(sw_mem::DeviceId(ordinal), GpuVa::new(address)),
            (PointerKind::Device, None) => return Err(CudaError::ours(ErrorKind::Protocol, CALL, None, "")),
            _ => Place::Host(HostVa::new(address)),
        };
        // SAFETY: the caller's promise (this function's contract) is the one that is asked for here.
        let region = unsafe { DmaRegion::from_foreign(place, len, Box::new(())) };
        region.map(|region| (region, facts)).map_err(|_| CudaError::ours(ErrorKind::OutOfRange, CALL, device, ""))
    }
}

impl Context {
    /// The allocation that a device address lies in, by the driver's other answer to the same question
    /// (`cuMemGetAddressRange`): base and length in bytes.
    ///
    /// # Errors
    /// `NotFound` for an address that is in none.
    pub fn address_range(&self, address: GpuVa) -> Result<(GpuVa, ByteLen), CudaError> {
        let entered = self.enter()?;
        let (mut base, mut len) = (0, 0);
        // SAFETY: a checked symbol, writable results, a current context.
        let answer =
            unsafe { (entered.driver().table().cuMemGetAddressRange_v2)(&raw mut base, &raw mut len, address.raw()) };
        self.check(answer, "cuMemGetAddressRange_v2")?;
        Ok((GpuVa::new(base), ByteLen(len as u64)))
    }
}
