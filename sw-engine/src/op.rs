//! Operations as callers give them, and completions as they come back.

use std::{fmt, sync::Arc, time::Duration};

use sw_mem::DmaSpan;

use crate::{
    checksum::Algorithm,
    error::{Error, Verb},
    object::Object,
    path::{ByPath, DataPath, Landing, Reason, Route},
    plan::Choice,
    slot::Token,
    time::Time,
};

/// Names an operation in its lane, until its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(pub(crate) Token);

/// What an operation is about: an object and how to reach it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The object. A clone of the `Arc` lives until the operation's last slot is free.
    pub object: Arc<Object>,
    /// The planner's choice for it. For a stripe set: that of each member, in `members`.
    pub choice: Choice,
    /// The choices of a stripe set's members, in their order; `None` for a plain object.
    pub members: Option<Arc<[Choice]>>,
}

impl Target {
    /// The choices of a stripe set's members; empty for a plain object.
    pub fn member_choices(&self) -> &[Choice] {
        self.members.as_deref().unwrap_or_default()
    }
}

/// A part of a vectored operation.
#[derive(Debug)]
pub struct Segment {
    /// First byte in the object.
    pub offset: u64,
    /// Its memory; its length is the segment's.
    pub span: DmaSpan,
}

/// The memory of an operation.
#[derive(Debug)]
pub enum Spans {
    /// None: a flush.
    None,
    /// One span at the operation's offset.
    One(DmaSpan),
    /// Many, each at its own offset; the operation's offset is added to each.
    Many(Box<[Segment]>),
}

impl Spans {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match self {
            Spans::None => 0,
            Spans::One(span) => span.len().0,
            Spans::Many(segments) => segments.iter().map(|segment| segment.span.len().0).sum(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, index: u32) -> Option<&DmaSpan> {
        match self {
            Spans::None => None,
            Spans::One(span) => (index == 0).then_some(span),
            Spans::Many(segments) => segments.get(index as usize).map(|segment| &segment.span),
        }
    }
}

/// What may be asked of an operation besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpOptions {
    /// When the caller stops waiting. `None`: never.
    pub deadline: Option<Time>,
    /// A checksum of the operation's bytes, in its own order.
    pub checksum: Option<Algorithm>,
    /// Fills host memory with this byte before a read, so that bytes that never arrived show.
    pub poison: Option<u8>,
    /// For a flush: all metadata, not only what is needed to read the data back.
    pub all_metadata: bool,
}

/// An operation.
#[derive(Debug)]
pub struct Op {
    /// The caller's word; comes back with the completion.
    pub user: u64,
    /// [`Verb::Read`], [`Verb::Write`] or [`Verb::Flush`].
    pub verb: Verb,
    /// On what.
    pub target: Target,
    /// First byte in the object.
    pub offset: u64,
    /// The memory.
    pub spans: Spans,
    /// The rest.
    pub options: OpOptions,
}

/// Limits that a lane enforces when it takes an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in one operation.
    pub op_bytes_max: u64,
    /// Segments in one operation.
    pub segments_max: u32,
}

impl Default for Limits {
    /// One TiB and 65,536 segments: more than any tensor or batch, small enough that sums never wrap.
    fn default() -> Self {
        Self { op_bytes_max: 1 << 40, segments_max: 1 << 16 }
    }
}

/// An operation that was not taken, with the reason. Nothing was done.
pub struct Rejected {
    /// The operation, with its memory.
    pub op: Op,
    /// Why. [`ErrorKind::Busy`](crate::ErrorKind::Busy) means: poll, then try again.
    pub error: Error,
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

/// Where an operation's time went, as seen at the polls of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Times {
    /// From `submit` until the first chunk was with the transport.
    pub queued: Duration,
    /// From then until the last chunk was back.
    pub moving: Duration,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Its name.
    pub id: OpId,
    /// The caller's word.
    pub user: u64,
    /// Bytes moved: all that were asked for, or the error.
    pub result: Result<u64, Error>,
    /// The way of the bytes that moved.
    pub path: DataPath,
    /// Where the time went.
    pub times: Times,
    /// The checksum that was asked for, if the operation succeeded.
    pub checksum: Option<u64>,
    /// The operation with its memory. `None` if a device may still touch it (deadline, cancel, close): the lane keeps it
    /// until the device let go, then drops it.
    pub op: Option<Op>,
}

impl Completion {
    /// The completion of an operation that no lane took: no bytes, no route, no memory.
    pub fn failed(error: Error) -> Self {
        let path = DataPath {
            route: Route { transport: "none", landing: Landing::Staged },
            bytes: ByPath::default(),
            bounced: 0,
            cpu_copied: 0,
            reason: Reason::Best,
        };
        let id = OpId(Token::from_raw(u64::MAX));
        Self { id, user: 0, result: Err(error), path, times: Times::default(), checksum: None, op: None }
    }
}
