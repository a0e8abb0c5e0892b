//! The data plane: moves bytes between an object and memory that the transport can reach.

use std::sync::Arc;
use std::time::Duration;

use sw_mem::{DeviceId, DmaRegion, Place, RegionId};

use crate::{
    error::{Error, Fault},
    object::{Object, ObjectId},
    path::TransportName,
    slot::Token,
};

/// Memory pieces in one I/O: a ragged head, the aligned core, a ragged tail.
pub const MAX_SEGMENTS: usize = 3;

/// One piece of memory of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySegment {
    /// First byte.
    pub place: Place,
    /// Length in bytes, above zero, at most the transport's [`TransportCaps::io_bytes_max`].
    pub len: u32,
    /// The region it lies in, for a transport that knows attached regions by their id.
    pub region: RegionId,
}

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Object to memory.
    Read,
    /// Memory to object.
    Write,
    /// Makes earlier completed writes of the object durable, data and the metadata needed to read it back.
    FlushData,
    /// Makes earlier completed writes durable with all metadata.
    FlushAll,
}

/// One I/O for one slot. Contiguous in the object; up to [`MAX_SEGMENTS`] pieces in memory.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Comes back in [`IoDone`].
    pub token: Token,
    /// What to do.
    pub kind: IoKind,
    /// The object, for a transport that knows attached objects by their id.
    pub object: ObjectId,
    /// The face's handle.
    pub handle: u64,
    /// First byte in the object.
    pub offset: u64,
    /// Sum of the segments' lengths in bytes; 0 for a flush.
    pub len: u32,
    /// Pieces in use.
    pub segment_count: u8,
    /// The pieces, in object order; those past `segment_count` mean nothing.
    pub segments: [MemorySegment; MAX_SEGMENTS],
}

impl Io {
    /// The pieces in use.
    #[inline]
    pub fn segments(&self) -> &[MemorySegment] {
        self.segments.get(..usize::from(self.segment_count)).unwrap_or(&self.segments)
    }
}

/// The end of an I/O.
///
/// A fault that [keeps the memory](Fault::keeps_memory) ends the I/O for its caller only: the device could not be stopped and
/// may touch the segments for ever. The lane never frees them (the slot is quarantined, counted and reported), and gives the
/// place in the queue up; the transport goes on with the I/Os of other devices and counts this one in every later
/// [`Fence::Busy`].
#[derive(Clone, Copy, Debug)]
pub struct IoDone {
    /// Whose.
    pub token: Token,
    /// Bytes moved from the start of the I/O (may be short: the engine asks for the rest), or the fault.
    pub result: Result<u32, Fault>,
    /// Of these bytes, those that came by way of a buffer of the transport's though the face says otherwise: two more copies of each by
    /// the CPU than the face tells. Never fewer than there were.
    pub aside: u32,
}

/// What the transport can do. Asked once, before the first I/O.
#[derive(Clone, Copy, Debug)]
pub struct TransportCaps {
    /// Its name in routes and reports.
    pub name: TransportName,
    /// I/Os in flight at most. The engine never submits more.
    pub queue_depth: u32,
    /// Bytes in one I/O at most; a multiple of every granularity it serves.
    pub io_bytes_max: u32,
    /// Memory pieces in one I/O at most, 1 to [`MAX_SEGMENTS`].
    pub segments_max: u8,
    /// Whether host memory can be reached (false only for a transport that lands in device memory alone).
    pub host: Reach,
    /// Whether device memory can be reached.
    pub device: Reach,
    /// Whether it must be told of memory before it can reach it.
    pub regions: Regions,
}

/// Which regions, of the kinds of memory that a transport reaches, an I/O may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Regions {
    /// Any. [`Attach::Region`] is a hint: it makes I/Os cheaper, and they work without.
    Any,
    /// Only those that were attached before (memory that a device sees through an IOMMU mapping, say). [`Attach::Region`]
    /// is then a duty of the lane, which has attached its own slabs before the first operation and the regions of an
    /// operation before its first chunk, and never detaches one that a live operation has memory in.
    Attached,
}

/// Whether a kind of memory can be reached, and if not, why.
pub type Reach = Result<(), crate::path::Reason>;

/// Whether an I/O was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submit {
    /// It will produce exactly one [`IoDone`].
    Accepted,
    /// No room now; the same call may succeed after a `ring` and a `poll`. Nothing was taken.
    Full,
}

/// How long `poll` may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until `min` completions are there (at least 1), the time is over, or [`Wake::wake`] was called.
    For {
        /// At most this long.
        timeout: Duration,
        /// Completions to gather before returning early; a hint that saves wake-ups.
        min: u32,
    },
}

/// Completions that are gathered at most while others are in flight: an eighth of the usual queue depth.
const GATHER_MAX: usize = 8;

impl Wait {
    /// Waits for a fifth of what is in flight, at most 8 of it: the first completion of a burst alone would come back
    /// as a batch of one, and the device would get its next commands one by one. What the rest of the burst may cost the
    /// first is bounded by the transport.
    pub fn gathering(timeout: Duration, in_flight: usize) -> Self {
        let min = u32::try_from((in_flight / 5).clamp(1, GATHER_MAX)).unwrap_or(1);
        Self::For { timeout, min }
    }
}

/// Whether a transport has let go of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// It provably touches no memory of earlier I/Os any more, and none ended with memory that stays; those without an [`IoDone`] will never have one.
    Quiet,
    /// This many I/Os may still touch memory.
    Busy(u32),
}

/// Control-plane news for a transport. Hints that a transport without use for them ignores; but see [`Regions::Attached`],
/// for which `Region` and `RegionGone` are orders.
#[derive(Clone, Copy, Debug)]
pub enum Attach<'a> {
    /// Many I/Os on this object will come; make them cheap (a registered file).
    Object(&'a Object),
    /// The last one is done.
    ObjectGone(ObjectId),
    /// Many I/Os into this region will come; make them cheap (pinned once). The transport may keep a handle of the region
    /// until `RegionGone`; one with [`Regions::Attached`] keeps none, so that memory goes when its owner lets go of it
    /// (what it needs beside it is bound to the region, see [`DmaRegion::bind`]). A second time changes nothing.
    Region(&'a DmaRegion),
    /// The last one is done. For a region that is not attached it changes nothing.
    RegionGone(RegionId),
}

/// Ends a wait of another thread.
pub trait Wake: Send + Sync {
    /// Makes a `poll` that waits, or the next one to wait, return soon. Any thread; never blocks.
    fn wake(&self);
}

/// Moves bytes between an object and memory.
///
/// One thread uses it at a time and may hand it over between calls. The engine validates: offsets and lengths are
/// multiples of the face's granularity, memory is reachable (and attached, see [`Regions`]), depth and length limits hold;
/// the transport may assert these in debug builds and must return a [`Fault`], never panic, for what the world below does.
/// One that asks for attached regions ends an I/O into another with a fault of kind `NotRegistered` and sends nothing.
///
/// *Complete* means: for a read, the bytes are where the segments say and visible to the CPU for host memory (device
/// memory: see the device's own visibility class); for a write, the object holds them (durable after a flush).
/// *Memory*: from `submit` until the matching [`IoDone`], or until [`Transport::fence`] says `Quiet`, the transport may
/// touch the segments; afterwards never, but for an end that says so (see [`IoDone`]). A cancelled I/O still ends with an [`IoDone`].
///
/// *Blocking*: only `poll` with [`Wait::For`] and `fence` wait, both bounded.
pub trait Transport: Send {
    /// Its abilities. Constant over its life.
    fn caps(&self) -> TransportCaps;

    /// Takes or drops a hint. Control plane: may be slow.
    ///
    /// # Errors
    /// A limit of the system (locked memory, table size). I/Os work without the hint too, except into a region that
    /// [`Regions::Attached`] asks for: that one is not attached then. `ResourceLimit` says that detaching others may help.
    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error>;

    /// Takes an I/O. It need not reach the device before `ring`.
    fn submit(&mut self, io: &Io) -> Submit;

    /// Hands everything taken to the device, in as few doorbells as it can.
    ///
    /// # Errors
    /// The queue is broken; `fence` then tells about memory.
    fn ring(&mut self) -> Result<(), Error>;

    /// Appends ended I/Os to `out` without growing it past its capacity, and returns how many.
    ///
    /// Implies `ring` if it waits.
    ///
    /// # Errors
    /// The queue is broken; `fence` then tells about memory.
    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error>;

    /// Asks for an early end of an I/O. It may still succeed; its [`IoDone`] tells.
    fn cancel(&mut self, token: Token);

    /// Stops everything and waits at most `timeout` until no memory of earlier I/Os can be touched.
    ///
    /// Ended I/Os are appended to `out`. After `Quiet` the transport takes no further I/O.
    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence;

    /// What stands behind a fault of an I/O with `handle`, if the transport knows more than the fault says: text and remedy go
    /// into the error of the operation. Asked when an operation fails.
    fn explain(&self, handle: u64, fault: Fault) -> Option<&Error> {
        let _ = (handle, fault);
        None
    }

    /// Why I/Os with `handle` wait in the transport, if some do and no device is at work on them: a connection that was lost, say. Text and
    /// remedy go into the error of an operation whose deadline passed.
    fn waits(&self, handle: u64) -> Option<Error> {
        let _ = handle;
        None
    }

    /// Whether it has nothing to look after while no I/O is in it: a lane with nothing to do then waits elsewhere if it can. One that
    /// does not rest looks after its devices in such waits, and gives back what others lack.
    fn rests(&self) -> bool {
        false
    }

    /// A handle that ends a wait in `poll`.
    fn waker(&self) -> Arc<dyn Wake>;
}

impl MemorySegment {
    /// The device whose memory it is, or `None` for host memory.
    pub fn device(&self) -> Option<DeviceId> {
        match self.place {
            Place::Host(_) => None,
            Place::Device(device, _) => Some(device),
        }
    }
}
