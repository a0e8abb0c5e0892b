//! The engine: it plans, splits and tracks operations, and owns what a device may still touch. It does no I/O itself.
//!
//! ```text
//!  Op ─► Lane ─► Task ─► chunks ─► Slot ─► Transport (a seam) ─► CPU or device copy ─► Completion { DataPath }
//!          │      (split)  (own memory)     submit · ring · poll   (seam: CopyEngine)
//!          └── joins: vectored and striped operations, ragged write ends before the core
//! ```
//!
//! Invariants, as absences: nothing here knows a clock (`now` is an argument), a thread, a lock, a file descriptor, an
//! environment variable or a vendor. Memory of an operation leaves a [`Lane`] only when every slot that names it is free.
//! Read on: `docs/ARCHITECTURE.md`; the contracts of the seams are in [`seam`].

#![forbid(unsafe_code)]

pub mod checksum;
mod error;
pub mod inspect;
mod lane;
mod layout;
mod object;
mod op;
mod path;
mod pci;
mod plan;
mod rate;
pub mod seam;
mod slot;
mod split;
mod staging;
mod stripe;
mod time;

pub use error::{Error, ErrorKind, Fault, Location, Retry, Verb, WriteOutcome};
pub use lane::{Counters, Lane, LaneConfig, LaneParts};
pub use layout::{Extent, Hold, Later, Layout, Resolve};
pub use object::{Device, Face, Granularity, Object, ObjectId, Residency, ResidencyNow, Version};
pub use op::{Completion, Limits, Op, OpId, OpOptions, Reached, Rejected, Segment, Spans, Target, Times};
pub use path::{ByPath, DataPath, Landing, Reason, Route, TransportName};
pub use pci::PciAddress;
pub use plan::{Candidate, Choice, Leg, MemoryFacts, Plan, Policy, RouteMatch, Verdict, Via, plan};
pub use rate::{RateClass, RateTable};
pub use slot::{SlotCounts, SlotState, Token};
pub use staging::{
    SLAB_BYTES_MAX, SLAB_BYTES_MIN, SLABS_MAX, SLABS_MIN, SlabRate, StagingShape, choose_staging, slab_candidates,
};
pub use stripe::StripeGeometry;
pub use time::Time;
