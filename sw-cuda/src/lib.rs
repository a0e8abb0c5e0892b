//! CUDA through the driver loaded at run time: memory, copies, streams, capabilities.
//!
//! ```text
//!  Driver ──► Device ──► Context ─┬─► DeviceBuffer, PinnedBuffer, ManagedBuffer ─► sw_mem::DmaRegion
//!  (loaded,   (facts,    (primary │
//!   probed)    report)    or the  ├─► HostPin: slab memory that the copy engine may address
//!                         caller's)├─► CudaCopyEngine: the engine's CopyEngine seam, on streams and events
//!                                 ├─► Gates: a stream of the caller's waits for an operation of ours
//!                                 └─► Kernels ─► DeviceSums, DeviceMoves: checksums where bytes lie; many ranges moved at once
//!
//!  CuFile: NVIDIA's own libcufile as one way to the bytes of files (BlockingIo)
//! ```
//!
//! Invariants:
//! - Nothing here links to CUDA. A machine without a driver gets a [`Refusal`] with a remedy, never an error at start and
//!   never a panic. "Found", "symbols present", "version", "devices" and "self-test passed" are different facts
//!   ([`ProbeReport`], [`SelfTest`]).
//! - Library, types and constants come from `cudarc`; the functions are looked up once, checked, and called through a
//!   table whose signatures the compiler compares with cudarc's (see `table.rs` for why not through its wrappers).
//! - The caller's current context is as it was after every call: contexts are pushed and popped, never set.
//! - The data path ([`CudaCopyEngine`]) allocates nothing, takes no lock, never blocks.
//!
//! What it does not do: choose routes, own slabs, know files. No clock but in bounded waits of the control plane.
//! Everything here is proven against the project's stand-in driver; what a real GPU does is told by the records of
//! `hwtests`. Read on: `docs/paths.md`, `sw-testkit/standin-libcuda`.

mod attribute;
mod buffer;
mod context;
mod copy_engine;
mod cufile;
mod device;
mod dmabuf;
mod driver;
mod error;
mod gate;
mod jobs;
mod kernels;
mod moves;
mod pin;
mod pointer;
mod probe;
mod report;
mod self_test;
mod stream;
mod sums;
mod table;
mod wait;

pub use attribute::Attribute;
pub use buffer::{DeviceBuffer, ManagedBuffer, PinnedBuffer};
pub use context::Context;
pub use copy_engine::{CopyEngineConfig, CudaCopyEngine, QUEUE_DEPTH_MAX, STREAMS_MAX, StreamOrder};
pub use cufile::{CUFILE, CuFile, CuFileHandle, CuFileRefusal, CuFileReport, CuFileSource, CuFileVersion};
pub use device::{ComputeCapability, Device, PciAddress, Uuid};
pub use dmabuf::DmaBuf;
pub use driver::{Driver, DriverVersion, is_in_process};
pub use error::CudaError;
pub use gate::{GATES_MAX, Gate, Gates};
pub use kernels::Kernels;
pub use moves::DeviceMoves;
pub use pin::HostPin;
pub use pointer::{PointerFacts, PointerKind};
pub use probe::{ProbeReport, Refusal};
pub use report::{DeviceReport, Finding, Gap, PeerReport};
pub use self_test::SelfTest;
pub use stream::{Event, ForeignStream, Stream};
pub use sums::{DeviceSums, SumRange};
