//! Descriptors: what a host wants done, in 64 bytes.

use sw_engine::checksum::Algorithm;

use super::{Breach, cursor::Reader, cursor::Writer};
use crate::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use crate::limits::{DEADLINE_US_MAX, PAYLOAD_BYTES_MAX};

/// Bytes of a descriptor: a cache line of most machines.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Bytes that its checksum is of.
const CHECKED_BYTES: usize = 60;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Opcode {
    /// Bytes of the object into the window of the lease.
    Read = 1,
    /// Bytes of the window into the object.
    Write = 2,
    /// What was written to the object is made to last.
    Flush = 3,
    /// What was written to the object appears under its name, whole.
    Commit = 4,
    /// Bytes of the object will be read soon. Nothing lands, nothing is promised.
    Prefetch = 5,
}

impl Opcode {
    /// From the wire.
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Flush,
            4 => Self::Commit,
            5 => Self::Prefetch,
            _ => return None,
        })
    }

    /// Whether it has memory: a lease and a window in it.
    pub const fn has_memory(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// Whether it changes something, so that its outcome is one of three.
    pub const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Flush | Self::Commit)
    }
}

/// Of which kind a checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum ChecksumKind {
    /// None.
    #[default]
    None = 0,
    /// CRC-32C, in the low half.
    Crc32c = 1,
    /// CRC-64/NVME.
    Crc64Nvme = 2,
}

impl ChecksumKind {
    /// From the wire.
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::None,
            1 => Self::Crc32c,
            2 => Self::Crc64Nvme,
            _ => return None,
        })
    }

    /// Its bit in HELLO and WELCOME; none for no checksum.
    pub const fn bit(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Crc32c => 1 << 0,
            Self::Crc64Nvme => 1 << 1,
        }
    }
}

/// `flags` of a descriptor.
pub mod flags {
    /// `checksum` is what the bytes must have; others are an integrity failure. Of a write, compared before anything is stored.
    pub const EXPECT: u8 = 1 << 0;
    /// The completion of a write says that it lasts.
    pub const DURABLE: u8 = 1 << 1;
    /// All that are defined.
    pub const ALL: u8 = EXPECT | DURABLE;
}

/// A descriptor, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What is to be done.
    pub opcode: Opcode,
    /// See [`flags`].
    pub flags: u8,
    /// Which checksum is wanted.
    pub checksum_kind: ChecksumKind,
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The host's name for it.
    pub operation: OperationId,
    /// Where its memory lies; none where it has no memory.
    pub lease: LeaseId,
    /// The object.
    pub object: ObjectId,
    /// Where in the window of the lease, in bytes.
    pub region_offset: u64,
    /// Where in the object, in bytes.
    pub object_offset: u64,
    /// Bytes; 0 for FLUSH and COMMIT.
    pub length: u32,
    /// Microseconds from its arrival within which it must end, 1 to an hour.
    pub deadline_us: u32,
    /// What the bytes must have, with [`flags::EXPECT`]; 0 without.
    pub checksum: u64,
    /// How many descriptors were sent before on this connection.
    pub position: Position,
}

impl Descriptor {
    /// From the wire.
    ///
    /// # Errors
    /// A checksum of the descriptor that does not fit; an operation, flag or kind that is not defined; bytes that must be zero and are
    /// not; a length, range or time outside the limits; memory where there is none, or none where there is.
    pub fn decode(raw: &[u8; DESCRIPTOR_BYTES]) -> Result<Self, Breach> {
        let mut from = Reader::new(raw);
        if checksum(raw) != u32::from_le_bytes([raw[60], raw[61], raw[62], raw[63]]) {
            return Err(Breach::field(CHECKED_BYTES, "the checksum of a descriptor does not fit"));
        }
        let opcode = Opcode::of(from.u8()?).ok_or(Breach::field(0, "the operation is not defined"))?;
        let flags = from.u8()?;
        let checksum_kind =
            ChecksumKind::of(from.u8()?).ok_or(Breach::field(2, "the checksum's kind is not defined"))?;
        from.zero(1)?;
        let descriptor = Self {
            opcode,
            flags,
            checksum_kind,
            session: SessionId(from.u32()?),
            epoch: Epoch(from.u32()?),
            operation: OperationId(from.u32()?),
            lease: LeaseId(from.u32()?),
            object: ObjectId(from.u32()?),
            region_offset: from.u64()?,
            object_offset: from.u64()?,
            length: from.u32()?,
            deadline_us: from.u32()?,
            checksum: from.u64()?,
            position: Position(from.u32()?),
        };
        descriptor.check()?;
        Ok(descriptor)
    }

    /// The rules that need nothing but the descriptor.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn check(&self) -> Result<(), Breach> {
        let must = |holds: bool, at: usize, rule| if holds { Ok(()) } else { Err(Breach::field(at, rule)) };
        let (has_memory, expects) = (self.opcode.has_memory(), self.flags & flags::EXPECT != 0);
        let has_bytes = has_memory || self.opcode == Opcode::Prefetch;
        must(self.flags & !flags::ALL == 0, 1, "a flag that is not defined")?;
        must(
            !expects || (has_memory && self.checksum_kind != ChecksumKind::None),
            1,
            "a checksum is expected of nothing",
        )?;
        must(has_memory || self.checksum_kind == ChecksumKind::None, 2, "a checksum of nothing")?;
        must(self.flags & flags::DURABLE == 0 || self.opcode == Opcode::Write, 1, "only writes can be durable")?;
        must(self.session != SessionId(0) && self.epoch != Epoch(0), 4, "a descriptor outside a session")?;
        must(self.operation.is_some(), 12, "an operation without a name")?;
        must(
            if has_memory { self.lease.is_some() } else { self.lease == LeaseId::NONE },
            16,
            "reads and writes have a lease, others none",
        )?;
        must(self.object.is_some(), 20, "an operation without an object")?;
        must(has_memory || self.region_offset == 0, 24, "a window without a lease")?;
        must(
            self.region_offset.checked_add(u64::from(self.length)).is_some(),
            24,
            "a window past the end of all memory",
        )?;
        must(has_bytes || self.object_offset == 0, 32, "a range of something that has none")?;
        must(
            self.object_offset.checked_add(u64::from(self.length)).is_some(),
            32,
            "a range past the end of any object",
        )?;
        must(has_bytes == (self.length > 0) && self.length <= PAYLOAD_BYTES_MAX, 40, "a length outside the limits")?;
        must((1..=DEADLINE_US_MAX).contains(&self.deadline_us), 44, "a deadline outside the limits")?;
        let narrow = self.checksum_kind == ChecksumKind::Crc32c && self.checksum > u64::from(u32::MAX);
        must(!narrow && (expects || self.checksum == 0), 48, "a checksum that its kind cannot have")
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; DESCRIPTOR_BYTES] {
        let mut out = Vec::with_capacity(DESCRIPTOR_BYTES);
        let mut to = Writer::new(&mut out);
        to.u8(self.opcode as u8).u8(self.flags).u8(self.checksum_kind as u8).zero(1);
        to.u32(self.session.0).u32(self.epoch.0).u32(self.operation.0).u32(self.lease.0).u32(self.object.0);
        to.u64(self.region_offset).u64(self.object_offset).u32(self.length).u32(self.deadline_us);
        to.u64(self.checksum).u32(self.position.0).zero(4);
        let mut raw = [0; DESCRIPTOR_BYTES];
        raw.copy_from_slice(&out);
        let sum = checksum(&raw);
        raw[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        raw
    }
}

fn checksum(raw: &[u8; DESCRIPTOR_BYTES]) -> u32 {
    (Algorithm::Crc32c.of(raw.get(..CHECKED_BYTES).unwrap_or_default()) & 0xFFFF_FFFF) as u32
}
