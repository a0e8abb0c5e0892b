//! Structures of the specification as bytes: registers, commands, completions, identify data, log pages, features.
//!
//! Base revision: NVM Express Base Specification 2.x, NVM Command Set Specification 1.x, NVMe over PCIe Transport
//! Specification 1.x (`docs/decisions/0002-nvme-base-revision.md`). Citations name the data structure, since section
//! numbers move between revisions.
//!
//! Everything is little endian on the wire and read by named offsets; no structure is laid over memory. A decoder takes a
//! copy of the device's bytes, checks what would be used later, and gives a typed error for what cannot be.
//! A field that counts from zero on the wire is a plain count here.
//!
//! What the driver has no use for is here where it shares a dword or a page with what it uses, so that golden bytes and
//! fuzzing hold the layout of the whole: the commands' effects log, limits of the NVM command set (CNS 06h), controller lists
//! and combinations of command sets, [`IoFlags::DEALLOCATE`], [`IoFlags::LIMITED_RETRY`], and the attributes of Dataset
//! Management besides deallocation.

pub mod admin;
pub mod ana;
pub mod ccr;
pub mod command;
pub mod completion;
pub mod feature;
pub mod identify;
pub mod log;
pub mod regs;
pub mod text;

pub use command::{BlockCount, Command, DataPointer, IoFlags, LbaRange};
pub use completion::Completion;

/// Bytes of a submission queue entry (Base, "Submission Queue Entry").
pub const SQE_BYTES: usize = 64;
/// Bytes of a completion queue entry (Base, "Completion Queue Entry").
pub const CQE_BYTES: usize = 16;
/// Bytes of every Identify data structure (Base, "Identify command").
pub const IDENTIFY_BYTES: usize = 4096;
/// The NSID that names all namespaces (Base, "Namespace Identifiers").
pub const NSID_ALL: u32 = 0xFFFF_FFFF;

/// Why bytes of a device are not what they should be. What was found, and the range that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than the structure has.
    #[error("{what} has {got_bytes} bytes, {want_bytes} are needed")]
    Short {
        /// The structure.
        what: &'static str,
        /// Bytes that there are.
        got_bytes: usize,
        /// Bytes that it needs.
        want_bytes: usize,
    },
    /// A field outside the range that the specification, or this driver's arithmetic, allows.
    #[error("{field} is {got:#x}; {rule}")]
    Field {
        /// The field as the specification names it.
        field: &'static str,
        /// Its value.
        got: u64,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

/// `N` bytes of `from` at `at`. The callers' offsets are constants inside a length that was checked.
pub(crate) fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(there) = from.get(at..at + N) {
        out.copy_from_slice(there);
    }
    out
}

pub(crate) fn byte(from: &[u8], at: usize) -> u8 {
    from.get(at).copied().unwrap_or(0)
}

pub(crate) fn le16(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(from, at))
}

pub(crate) fn le32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(from, at))
}

pub(crate) fn le64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(from, at))
}

pub(crate) fn le128(from: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes(from, at))
}

/// Low and high half.
pub(crate) fn halves(value: u64) -> (u32, u32) {
    ((value & 0xFFFF_FFFF) as u32, (value >> 32) as u32)
}

/// Checks that a structure is all there.
pub(crate) fn whole(what: &'static str, from: &[u8], want_bytes: usize) -> Result<(), WireError> {
    if from.len() < want_bytes {
        return Err(WireError::Short { what, got_bytes: from.len(), want_bytes });
    }
    Ok(())
}
