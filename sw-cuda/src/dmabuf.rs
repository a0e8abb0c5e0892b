//! Device memory as a dma-buf: a file descriptor that a NIC's or another device's driver can map.
// UNSAFETY: one driver call, and taking over the descriptor that it made.
#![expect(unsafe_code, reason = "driver call and descriptor ownership")]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use cudarc::driver::sys::CUmemRangeHandleType;
use sw_engine::ErrorKind;
use sw_mem::{ByteLen, GpuVa, PAGE_BYTES, index};

use crate::context::Context;
use crate::error::CudaError;

const CALL: &str = "cuMemGetHandleForAddressRange";

/// An exported range of device memory. The descriptor is closed on drop; the memory must outlive its importers.
#[derive(Debug)]
pub struct DmaBuf {
    fd: OwnedFd,
    len: ByteLen,
}

impl DmaBuf {
    /// Exports `[address, address + len)`; both are multiples of the host's page size (CUDA Driver API,
    /// "cuMemGetHandleForAddressRange").
    ///
    /// # Errors
    /// `Unsupported` if the driver has no such function or the device cannot, `ApiMisuse` for an unaligned range.
    pub fn export(context: &Context, address: GpuVa, len: ByteLen) -> Result<Self, CudaError> {
        let ordinal = Some(context.device().ordinal());
        if !address.is_aligned_to(PAGE_BYTES) || !len.0.is_multiple_of(PAGE_BYTES) || len.0 == 0 {
            let remedy = "export whole pages of 4096 bytes";
            return Err(CudaError::ours(ErrorKind::ApiMisuse, CALL, ordinal, remedy));
        }
        let entered = context.enter()?;
        let Some(export) = entered.driver().table().cuMemGetHandleForAddressRange else {
            let remedy = "install a driver of CUDA 11.7 or newer";
            return Err(CudaError::ours(ErrorKind::Unsupported, CALL, ordinal, remedy));
        };
        let mut fd: RawFd = -1;
        let kind = CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
        // SAFETY: a checked symbol and a current context; for this kind the result is an `int`.
        let answer = unsafe { export((&raw mut fd).cast(), address.raw(), index(len.0), kind, 0) };
        context.check(answer, CALL)?;
        if fd < 0 {
            return Err(CudaError::ours(ErrorKind::Protocol, CALL, ordinal, "report the driver's version"));
        }
        // SAFETY: a fresh descriptor that the driver made for us.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> ByteLen {
        self.len
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
