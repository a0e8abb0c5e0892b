//! Completion queue entries (Base, "Common Completion Queue Entry Layout").

use crate::status::Status;

use super::{CQE_BYTES, le16, le32};

/// A copy of one entry. Read the phase word first, then [`after_valid`](crate::bus::QueueMemory::after_valid), then the
/// entry, once.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Completion([u8; CQE_BYTES]);

/// Offset of the 32-bit word with CID (15:0), phase (16) and status (31:17): the last one that the controller writes.
pub const PHASE_WORD_AT: usize = 12;

/// The phase of an entry from its word at [`PHASE_WORD_AT`].
#[inline]
pub const fn phase_of(word: u32) -> bool {
    word >> 16 & 1 == 1
}

/// The fields of an entry, for [`Completion::build`]; their meaning is that of the getters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionFields {
    /// DW0.
    pub dw0: u32,
    /// SQHD.
    pub sq_head: u16,
    /// SQID.
    pub sq_id: u16,
    /// CID.
    pub cid: u16,
    /// P.
    pub phase: bool,
    /// The status field.
    pub status: Status,
}

impl Completion {
    /// From the entry's bytes.
    #[inline]
    pub const fn new(bytes: [u8; CQE_BYTES]) -> Self {
        Self(bytes)
    }

    /// DW0: command specific.
    #[inline]
    pub fn dw0(&self) -> u32 {
        le32(&self.0, 0)
    }

    /// DW1: command specific or reserved.
    #[inline]
    pub fn dw1(&self) -> u32 {
        le32(&self.0, 4)
    }

    /// SQHD: how far the controller took entries of the submission queue. Check it against the ring before use.
    #[inline]
    pub fn sq_head(&self) -> u16 {
        le16(&self.0, 8)
    }

    /// SQID: the submission queue of the command.
    #[inline]
    pub fn sq_id(&self) -> u16 {
        le16(&self.0, 10)
    }

    /// CID: the command. Check it before use.
    #[inline]
    pub fn cid(&self) -> u16 {
        le16(&self.0, 12)
    }

    /// P: the phase.
    #[inline]
    pub fn phase(&self) -> bool {
        phase_of(le32(&self.0, PHASE_WORD_AT))
    }

    /// The status field.
    #[inline]
    pub fn status(&self) -> Status {
        Status::from_field(le16(&self.0, 14))
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; CQE_BYTES] {
        &self.0
    }

    /// An entry as a controller writes it, for models.
    pub fn build(of: CompletionFields) -> Self {
        let status = u64::from(of.status.field() | u16::from(of.phase));
        let second = u64::from(of.sq_head) | u64::from(of.sq_id) << 16 | u64::from(of.cid) << 32 | status << 48;
        let mut bytes = [0; CQE_BYTES];
        bytes[..8].copy_from_slice(&u64::from(of.dw0).to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        Self(bytes)
    }
}

impl core::fmt::Debug for Completion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Completion")
            .field("cid", &format_args!("{:#06x}", self.cid()))
            .field("sq", &self.sq_id())
            .field("sq_head", &self.sq_head())
            .field("phase", &u8::from(self.phase()))
            .field("status", &self.status())
            .field("dw0", &format_args!("{:#x}", self.dw0()))
            .finish()
    }
}

#[cfg(test)]
mod tests;
