//! Addresses that carry their space and unit, and memory that a device may write.
//!
//! ```text
//!   HostMapping (mmap)      unsafe DmaRegion::from_foreign(...)      a device backend's allocation
//!        │ exclusive                 │ shared                                │ shared
//!        ▼                           ▼                                       ▼
//!     Buffer ──into_span──►      DmaSpan  ◄──span──                     DmaRegion (Arc)
//!     (slices exist)             (copies in and out; no slices)         (lives while any span does)
//!        ▲                           │
//!        └────── into_buffer ────────┘   only if it came from a Buffer
//! ```
//!
//! [`DmaSpan::share`] makes a [`SharedSpan`], which gives out parts of an own mapping that do not overlap;
//! [`DmaSpan::reader`] a [`SpanReader`], which several threads may read at a time.
//!
//! Invariants:
//! - No Rust reference to a range exists while a device or peer may write it: [`DmaSpan`] has no slice view, and
//!   [`Buffer`], which has one, is given away by value before anything is submitted.
//! - An address never changes its space by `From`; arithmetic is named and checked.
//! - A region's memory stays mapped until the last span of it is gone.
//!
//! Nothing here knows a file, a device, a clock or a thread. Read on: `docs/ARCHITECTURE.md`.

mod addr;
pub mod barrier;
mod fork;
mod host;
mod keep;
mod mmio;
mod readable;
mod reader;
mod region;
#[cfg(not(miri))]
mod segment;
mod shared;
mod slab;
mod stream;

pub use addr::{BusAddr, ByteLen, GpuVa, HostVa, Iova, PAGE_BYTES, RemoteAddr, align_down, align_up, index};
pub use fork::ForkMark;
pub use host::{HostMapping, HugePages, MapError, PageBacking, Populate};
pub use keep::KeptMappings;
pub use mmio::Mmio;
pub use readable::is_readable;
pub use reader::SpanReader;
pub use region::{Buffer, DeviceId, DmaRegion, DmaSpan, Guest, GuestKey, MemError, Place, RegionId, WeakRegion};
#[cfg(not(miri))]
pub use segment::SharedSegment;
pub use shared::SharedSpan;
#[cfg(any(test, feature = "models"))]
pub use shared::model_span;
pub use slab::{Slab, SlabPool};
