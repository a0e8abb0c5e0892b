//! Frames: what is one behind the other on a carrier that is a stream of bytes.
//!
//! ```text
//!    0      1      2       4             8             12            16         16 + length
//!   ┌──────┬──────┬───────┬─────────────┬─────────────┬─────────────┬──────────┐
//!   │ kind │ type │ flags │ length      │ session     │ epoch       │ body     │
//!   └──────┴──────┴───────┴─────────────┴─────────────┴─────────────┴──────────┘
//! ```

use super::{
    Breach, Completion, Descriptor, Message, completion::COMPLETION_BYTES, cursor::Reader, cursor::Writer,
    descriptor::DESCRIPTOR_BYTES,
};
use crate::id::{Epoch, LeaseId, OperationId, SessionId};
use crate::limits::{BATCH_MAX, CONTROL_BYTES_MAX, DATA_BYTES_MAX};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of the head of DATA, between header and payload.
pub const DATA_HEAD_BYTES: usize = 24;
/// `flags`: who does not know the type ends the connection.
pub const CRITICAL: u16 = 1 << 0;

/// What a frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// One control message.
    Control = 1,
    /// Descriptors, from host to agent.
    Descriptors = 2,
    /// Completions, from agent to host.
    Completions = 3,
    /// Payload.
    Data = 4,
}

/// The header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// What the frame has.
    pub kind: Kind,
    /// The type of a control message; 0 otherwise.
    pub message_type: u8,
    /// [`CRITICAL`] or nothing.
    pub flags: u16,
    /// Bytes behind the header.
    pub length: u32,
    /// The session; 0 before there is one.
    pub session: SessionId,
    /// Its epoch; 0 before there is one.
    pub epoch: Epoch,
}

impl Header {
    /// From the first 16 bytes.
    ///
    /// # Errors
    /// A kind that is not defined, flags or a type that the kind does not have, a length that the kind cannot have.
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Result<Self, Breach> {
        let mut from = Reader::new(raw);
        let kind = match from.u8()? {
            1 => Kind::Control,
            2 => Kind::Descriptors,
            3 => Kind::Completions,
            4 => Kind::Data,
            _ => return Err(Breach::field(0, "the kind of a frame is not defined")),
        };
        let (message_type, flags, length) = (from.u8()?, from.u16()?, from.u32()?);
        let (session, epoch) = (SessionId(from.u32()?), Epoch(from.u32()?));
        let is_control = kind == Kind::Control;
        if is_control == (message_type == 0) {
            return Err(Breach::field(1, "control messages have a type, other frames have none"));
        }
        if flags & !CRITICAL != 0 || (flags != 0 && !is_control) {
            return Err(Breach::field(2, "a flag that the frame does not have"));
        }
        let entries = |entry_bytes: usize| {
            let entry = u32::try_from(entry_bytes).unwrap_or(u32::MAX);
            length > 0 && length.is_multiple_of(entry) && length / entry <= BATCH_MAX
        };
        let fits = match kind {
            Kind::Control => length <= CONTROL_BYTES_MAX,
            Kind::Descriptors => entries(DESCRIPTOR_BYTES),
            Kind::Completions => entries(COMPLETION_BYTES),
            Kind::Data => (DATA_HEAD_BYTES as u64 + 1..=DATA_HEAD_BYTES as u64 + u64::from(DATA_BYTES_MAX))
                .contains(&u64::from(length)),
        };
        if !fits {
            return Err(Breach::field(4, "a length that frames of this kind cannot have"));
        }
        Ok(Self { kind, message_type, flags, length, session, epoch })
    }

    /// As bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut to = Writer::new(out);
        to.u8(self.kind as u8).u8(self.message_type).u16(self.flags).u32(self.length);
        to.u32(self.session.0).u32(self.epoch.0);
    }
}

/// The head of DATA: where payload belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataHead {
    /// Whose it is.
    pub operation: OperationId,
    /// The epoch in which that was sent.
    pub epoch: Epoch,
    /// The lease that it lies under.
    pub lease: LeaseId,
    /// Where in the window of the lease, in bytes.
    pub offset: u64,
}

impl DataHead {
    /// From the 24 bytes behind the header.
    ///
    /// # Errors
    /// Names that name nothing, bytes that must be zero and are not.
    pub fn decode(raw: &[u8; DATA_HEAD_BYTES]) -> Result<Self, Breach> {
        let mut from = Reader::new(raw);
        let (operation, epoch, lease) = (OperationId(from.u32()?), Epoch(from.u32()?), LeaseId(from.u32()?));
        from.zero(4)?;
        let offset = from.u64()?;
        if !operation.is_some() || !lease.is_some() {
            return Err(Breach::field(0, "data that belongs to nothing"));
        }
        Ok(Self { operation, epoch, lease, offset })
    }

    /// As bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut to = Writer::new(out);
        to.u32(self.operation.0).u32(self.epoch.0).u32(self.lease.0).zero(4).u64(self.offset);
    }
}

/// A frame that is all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A control message that this version knows.
    Control(Message),
    /// A control message of a type that this version does not know and may pass over.
    Unknown(u8),
    /// Descriptors.
    Descriptors(Vec<Descriptor>),
    /// Completions.
    Completions(Vec<Completion>),
    /// The head of payload, and how much there is.
    Data(DataHead, u32),
}

impl Frame {
    /// From the body behind `header`, which is all there.
    ///
    /// # Errors
    /// What the decoders of the parts say; a body of another length than its header tells.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, Breach> {
        if u64::from(header.length) != body.len() as u64 {
            return Err(Breach::field(4, "the body has another length than its header says"));
        }
        match header.kind {
            Kind::Control => match Message::decode(header.message_type, body)? {
                Some(message) => Ok(Self::Control(message)),
                None if header.flags & CRITICAL != 0 => {
                    Err(Breach::field(1, "a message of a type that is not known, which is critical"))
                }
                None => Ok(Self::Unknown(header.message_type)),
            },
            Kind::Descriptors => {
                body.as_chunks().0.iter().map(Descriptor::decode).collect::<Result<_, _>>().map(Self::Descriptors)
            }
            Kind::Completions => {
                body.as_chunks().0.iter().map(Completion::decode).collect::<Result<_, _>>().map(Self::Completions)
            }
            Kind::Data => {
                let (head, payload) = body.split_first_chunk().ok_or(Breach::field(4, "payload without its head"))?;
                Ok(Self::Data(DataHead::decode(head)?, u32::try_from(payload.len()).unwrap_or(u32::MAX)))
            }
        }
    }
}

/// A control message as a whole frame.
pub fn control_frame(message: &Message, session: SessionId, epoch: Epoch, out: &mut Vec<u8>) {
    let start = out.len();
    let header =
        Header { kind: Kind::Control, message_type: message.kind(), flags: CRITICAL, length: 0, session, epoch };
    header.encode(out);
    message.encode(out);
    let length = u32::try_from(out.len() - start - HEADER_BYTES).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&length.to_le_bytes());
    }
}
