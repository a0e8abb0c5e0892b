//! Device memory: a copy engine between host slabs and the memory of one device.

use std::time::Duration;

use sw_mem::{DeviceId, DmaRegion, GpuVa, HostVa};

use crate::{error::Fault, seam::Fence, slot::Token};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// Host slab to device memory.
    ToDevice,
    /// Device memory to host slab.
    FromDevice,
}

/// One copy for one slot.
#[derive(Clone, Copy, Debug)]
pub struct CopyJob {
    /// Comes back in [`CopyDone`].
    pub token: Token,
    /// Which way.
    pub direction: CopyDirection,
    /// The host side: inside a slab that [`CopyEngine::pin`] pinned.
    pub host: HostVa,
    /// The device side.
    pub device: GpuVa,
    /// Bytes, above zero.
    pub len: u32,
}

/// The end of a copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyDone {
    /// Whose.
    pub token: Token,
    /// Done, or the fault.
    pub result: Result<(), Fault>,
}

/// What a copy engine can do. Asked once.
#[derive(Clone, Copy, Debug)]
pub struct CopyEngineCaps {
    /// Whose memory.
    pub device: DeviceId,
    /// Copies in flight at most. The engine never submits more.
    pub queue_depth: u32,
}

/// Slab memory that a device's copy engine can address until this is dropped.
pub trait SlabPin: Send + Sync {}

/// Copies between pinned host slabs and one device's memory.
///
/// One thread uses it at a time. *Complete* means: the bytes are visible to work that is submitted to the device
/// afterwards (to the device), or to the CPU (from the device). Ordering with a caller's own stream is fixed when the
/// engine is made. *Memory*: both sides may be touched from `submit` until the matching [`CopyDone`] or `Quiet`.
pub trait CopyEngine: Send {
    /// Its abilities. Constant over its life.
    fn caps(&self) -> CopyEngineCaps;

    /// Pins a slab region, once. Control plane.
    ///
    /// # Errors
    /// The driver refuses (limit of locked memory).
    fn pin(&mut self, slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, Fault>;

    /// Starts a copy (it may be batched until `ring`).
    ///
    /// # Errors
    /// The driver refuses it; nothing was started.
    fn submit(&mut self, job: &CopyJob) -> Result<(), Fault>;

    /// Hands everything taken to the device.
    ///
    /// # Errors
    /// The device is lost; `fence` then tells about memory.
    fn ring(&mut self) -> Result<(), Fault>;

    /// Appends ended copies to `out` without growing it past its capacity; never waits.
    ///
    /// # Errors
    /// The device is lost; `fence` then tells about memory.
    fn poll(&mut self, out: &mut Vec<CopyDone>) -> Result<usize, Fault>;

    /// Waits at most `timeout` until no copy touches memory any more.
    fn fence(&mut self, timeout: Duration, out: &mut Vec<CopyDone>) -> Fence;
}
