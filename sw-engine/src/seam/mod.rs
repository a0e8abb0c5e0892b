//! The seams: what the engine asks of a backend.
//!
//! Small, synchronous, no default bodies that panic. A backend implements one or more of them and calls
//! `sw_testkit::conformance` from its tests; it is done when that suite is green.

mod blocking;
mod copy;
mod store;
mod tee;
mod transport;
pub mod verbs;

pub use blocking::{BlockingIo, CallFault};
pub use copy::{CopyDirection, CopyDone, CopyEngine, CopyEngineCaps, CopyJob, SlabPin};
pub use store::{Entry, EntryKind, Hidden, Names, OpenMode, Store, WALK_DEPTH_MAX, WriteIntent};
pub use tee::{Landed, Part, Tee};
pub use transport::{
    Attach, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Regions, Submit, Transport, TransportCaps, Wait,
    Wake,
};
