//! The device attributes that we ask for, by what they mean to us.

use cudarc::driver::sys::CUdevice_attribute;

/// One attribute. Meaning and unit: CUDA Driver API, "enum CUdevice_attribute".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Attribute {
    /// Compute capability, the number before the point.
    ComputeMajor,
    /// Compute capability, the number after the point.
    ComputeMinor,
    /// Number of multiprocessors.
    Multiprocessors,
    /// Number of copy engines that run beside kernels.
    CopyEngines,
    /// Host and device share one address space, so a pointer tells where it points.
    UnifiedAddressing,
    /// The device shares the host's memory chips.
    Integrated,
    /// The device has managed memory.
    ManagedMemory,
    /// Host and device may touch managed memory at the same time.
    ConcurrentManaged,
    /// The device reads pageable host memory (C2C, or HMM in the kernel).
    PageableAccess,
    /// It does so through the host's own page tables (a coherent link such as C2C).
    PageableThroughHostTables,
    /// The host reads managed memory on the device without moving it.
    ManagedFromHost,
    /// The link carries native atomics.
    HostNativeAtomics,
    /// Memory can be exported as a dma-buf.
    DmaBuf,
    /// Memory can be given to third-party devices (GPUDirect RDMA).
    GpuDirectRdma,
    /// How inbound writes are flushed, a bit set: 1 by a call of the host, 2 by a stream operation.
    GpuDirectFlush,
    /// Who sees inbound writes in order: 0 nobody, 100 the owner, 200 all devices.
    GpuDirectOrdering,
    /// Host memory can be registered.
    HostRegister,
    /// A registered host pointer is its own device pointer.
    RegisteredPointerIsDevicePointer,
}

impl Attribute {
    pub(crate) fn raw(self) -> CUdevice_attribute {
        use CUdevice_attribute as A;
        match self {
            Self::ComputeMajor => A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            Self::ComputeMinor => A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            Self::Multiprocessors => A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            Self::CopyEngines => A::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT,
            Self::UnifiedAddressing => A::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING,
            Self::Integrated => A::CU_DEVICE_ATTRIBUTE_INTEGRATED,
            Self::ManagedMemory => A::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY,
            Self::ConcurrentManaged => A::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS,
            Self::PageableAccess => A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS,
            Self::PageableThroughHostTables => A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES,
            Self::ManagedFromHost => A::CU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST,
            Self::HostNativeAtomics => A::CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED,
            Self::DmaBuf => A::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED,
            Self::GpuDirectRdma => A::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED,
            Self::GpuDirectFlush => A::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS,
            Self::GpuDirectOrdering => A::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING,
            Self::HostRegister => A::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED,
            Self::RegisteredPointerIsDevicePointer => A::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM,
        }
    }
}
