//! Completions: what became of an operation, in 32 bytes.

use sw_engine::Landing;
use sw_engine::checksum::Algorithm;

use super::{Breach, cursor::Reader, cursor::Writer};
use crate::failure::{Class, Detail, Failure, Origin, Outcome};
use crate::id::{Epoch, OperationId};
use crate::limits::PAYLOAD_BYTES_MAX;

/// Bytes of a completion.
pub const COMPLETION_BYTES: usize = 32;

/// How it went.
pub type Status = Result<(), Failure>;

/// The way that the bytes took at the agent, so that the host's report is true of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Path {
    /// What the agent moved them by, as its WELCOME and `docs/agp.md` number transports; 0 for none.
    pub transport: u8,
    /// Who wrote them into the agent's memory, or into the host's where the agent kept none; `None` if none moved.
    pub landing: Option<Landing>,
    /// Copies of each byte by the agent's processors, delivery included; 255 for that many and more.
    pub copies: u8,
    /// Bytes that went by memory of the agent on their way.
    pub bounced_bytes: u32,
}

/// A completion, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Completion {
    /// Whose it is.
    pub operation: OperationId,
    /// The epoch of its descriptor.
    pub epoch: Epoch,
    /// How it went.
    pub status: Status,
    /// What became of what it should change.
    pub outcome: Outcome,
    /// The way of the bytes.
    pub path: Path,
    /// Payload bytes that were delivered (a read) or taken (a write).
    pub bytes: u32,
    /// Their checksum, of the kind that was asked for; 0 for none.
    pub checksum: u64,
}

impl Completion {
    /// From the wire.
    ///
    /// # Errors
    /// A check that does not fit; a class, origin, outcome or landing that is not defined, or that do not go together; more bytes than
    /// an operation can have.
    pub fn decode(raw: &[u8; COMPLETION_BYTES]) -> Result<Self, Breach> {
        if check(raw) != u16::from_le_bytes([raw[14], raw[15]]) {
            return Err(Breach::field(14, "the check of a completion does not fit"));
        }
        let mut from = Reader::new(raw);
        let (operation, epoch) = (OperationId(from.u32()?), Epoch(from.u32()?));
        let (class, outcome, origin_landing, transport) = (from.u8()?, from.u8()?, from.u8()?, from.u8()?);
        let (copies, detail) = (from.u8()?, from.u8()?);
        from.take(2)?;
        let (bytes, bounced_bytes, checksum) = (from.u32()?, from.u32()?, from.u64()?);
        let (origin, landing) = (origin_landing & 0xF, origin_landing >> 4);
        let status = match (class, origin, detail) {
            (0, 0, 0) => Ok(()),
            (0, ..) => return Err(Breach::field(8, "a success with a reason")),
            _ => {
                let class = Class::of(class).ok_or(Breach::field(8, "the class is not defined"))?;
                let origin = Origin::of(origin).ok_or(Breach::field(10, "the origin is not defined"))?;
                if detail == 0 {
                    return Err(Breach::field(13, "a failure without a kind"));
                }
                Err(Failure { class, origin, detail: Detail(detail) })
            }
        };
        let landing = match landing {
            0 => None,
            1 => Some(Landing::Dma),
            2 => Some(Landing::KernelCopy),
            3 => Some(Landing::Staged),
            _ => return Err(Breach::field(10, "the landing is not defined")),
        };
        let outcome = Outcome::of(outcome).ok_or(Breach::field(9, "the outcome is not defined"))?;
        let path = Path { transport, landing, copies, bounced_bytes };
        let completion = Self { operation, epoch, status, outcome, path, bytes, checksum };
        completion.check()?;
        Ok(completion)
    }

    /// The rules that need nothing but the completion.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn check(&self) -> Result<(), Breach> {
        if !self.operation.is_some() || self.epoch == Epoch(0) {
            return Err(Breach::field(0, "a completion of nothing"));
        }
        if self.status.is_ok() && matches!(self.outcome, Outcome::NotApplied | Outcome::Unknown) {
            return Err(Breach::field(9, "a success that was not applied"));
        }
        if self.bytes > PAYLOAD_BYTES_MAX || self.path.bounced_bytes > PAYLOAD_BYTES_MAX {
            return Err(Breach::field(16, "more bytes than an operation can have"));
        }
        Ok(())
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; COMPLETION_BYTES] {
        let (class, origin, detail) = match self.status {
            Ok(()) => (0, 0, 0),
            Err(failure) => (failure.class as u8, failure.origin as u8, failure.detail.0),
        };
        let landing = match self.path.landing {
            None => 0,
            Some(Landing::Dma) => 1,
            Some(Landing::KernelCopy) => 2,
            Some(Landing::Staged) => 3,
        };
        let mut out = Vec::with_capacity(COMPLETION_BYTES);
        let mut to = Writer::new(&mut out);
        to.u32(self.operation.0).u32(self.epoch.0).u8(class).u8(self.outcome as u8).u8(origin | landing << 4);
        to.u8(self.path.transport).u8(self.path.copies).u8(detail).zero(2);
        to.u32(self.bytes).u32(self.path.bounced_bytes).u64(self.checksum);
        let mut raw = [0; COMPLETION_BYTES];
        raw.copy_from_slice(&out);
        let sum = check(&raw);
        raw[14..16].copy_from_slice(&sum.to_le_bytes());
        raw
    }
}

/// The low half of the CRC-32C of the whole with the check at zero.
fn check(raw: &[u8; COMPLETION_BYTES]) -> u16 {
    let mut bare = *raw;
    bare[14..16].fill(0);
    (Algorithm::Crc32c.of(&bare) & 0xFFFF) as u16
}
