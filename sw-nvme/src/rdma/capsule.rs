//! Command capsules: where the data of a command lies (Base, "Keyed SGL Data Block descriptor"; RDMA Transport, "Capsules and SGLs").

use sw_mem::RemoteAddr;

use crate::wire::{CQE_BYTES, Command, SQE_BYTES};

/// Bytes of a response capsule: a completion, and nothing else.
pub const RESPONSE_BYTES: usize = CQE_BYTES;
/// Bytes of a command capsule without data.
pub const COMMAND_BYTES: usize = SQE_BYTES;
/// Bytes of data that a keyed descriptor names at most: its length has 24 bits.
pub const KEYED_BYTES_MAX: u32 = (1 << 24) - 1;

/// PSDT 01b in the flags of a command: an SGL, as fabrics have nothing else.
const PSDT_SGL: u8 = 0x40;
/// SGL identifier: Keyed SGL Data Block (type 4h), subtype Address.
const KEYED: u8 = 0x40;
/// SGL identifier: Keyed SGL Data Block, subtype Fh: the controller invalidates the key with its response.
const KEYED_INVALIDATE: u8 = 0x4F;
/// SGL identifier: Data Block, subtype Offset: the data lies in the capsule.
const IN_CAPSULE: u8 = 0x01;

/// What becomes of the key when the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEnd {
    /// The host ends it.
    Kept,
    /// The controller is asked to invalidate it with its response (SEND with Invalidate). Only where both NICs have that: rxe does not.
    Invalidated,
}

/// Memory of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// Where, and the key.
    pub at: RemoteAddr,
    /// Bytes, up to [`KEYED_BYTES_MAX`].
    pub bytes: u32,
    /// What becomes of the key.
    pub end: KeyEnd,
}

/// Where a command's data lies, as a controller reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// There is none: a keyed descriptor of zeroes.
    Nothing,
    /// In memory of the host's.
    Keyed(Keyed),
    /// In the capsule: so many bytes from this one on, counted from the end of the command.
    InCapsule {
        /// First byte.
        at: u64,
        /// Bytes.
        bytes: u32,
    },
    /// Another identifier.
    Other(u8),
}

/// Where a host has the data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is none.
    Nothing,
    /// In memory that the controller reaches by a key.
    Keyed(Keyed),
    /// Behind the command, so many bytes (ICDOFF 0).
    Behind(u32),
}

impl Source {
    /// Bytes.
    pub fn bytes(&self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Keyed(keyed) => keyed.bytes,
            Self::Behind(bytes) => *bytes,
        }
    }
}

/// A command with identifier and data pointer; `None`: the memory is longer than a descriptor can say.
pub fn encode(command: &Command, cid: u16, data: Source) -> Option<[u8; COMMAND_BYTES]> {
    let mut raw = *command.bytes();
    raw[1] = raw[1] & 0x3F | PSDT_SGL;
    raw[2..4].copy_from_slice(&cid.to_le_bytes());
    raw[24..40].fill(0);
    raw[39] = KEYED;
    match data {
        Source::Nothing => {}
        Source::Keyed(Keyed { bytes, .. }) if bytes > KEYED_BYTES_MAX => return None,
        Source::Keyed(Keyed { at, bytes, end }) => {
            raw[24..32].copy_from_slice(&at.addr.to_le_bytes());
            raw[32..35].copy_from_slice(&bytes.to_le_bytes()[..3]);
            raw[35..39].copy_from_slice(&at.rkey().to_le_bytes());
            raw[39] = if end == KeyEnd::Invalidated { KEYED_INVALIDATE } else { KEYED };
        }
        // Its address is an offset from the end of the command: 0.
        Source::Behind(bytes) => {
            raw[32..36].copy_from_slice(&bytes.to_le_bytes());
            raw[39] = IN_CAPSULE;
        }
    }
    Some(raw)
}

/// The command of a capsule, and the data that came in it; `None`: fewer bytes than a command.
pub fn decode(raw: &[u8]) -> Option<(Command, &[u8])> {
    let (command, data) = raw.split_first_chunk::<COMMAND_BYTES>()?;
    Some((Command::new(*command), data))
}

/// Whether a command's data pointer is an SGL (PSDT 01b).
pub fn has_sgl(command: &Command) -> bool {
    command.bytes()[1] & 0xC0 == PSDT_SGL
}

/// Where a command's data lies.
pub fn descriptor(command: &Command) -> Descriptor {
    let raw = command.bytes();
    let long = |at: usize| u64::from(command.dword(at / 4)) | u64::from(command.dword(at / 4 + 1)) << 32;
    match raw[39] {
        kind @ (KEYED | KEYED_INVALIDATE) => {
            let bytes = u32::from_le_bytes([raw[32], raw[33], raw[34], 0]);
            let key = u32::from_le_bytes([raw[35], raw[36], raw[37], raw[38]]);
            let end = if kind == KEYED_INVALIDATE { KeyEnd::Invalidated } else { KeyEnd::Kept };
            if bytes == 0 && end == KeyEnd::Kept {
                return Descriptor::Nothing;
            }
            Descriptor::Keyed(Keyed { at: RemoteAddr::new(long(24), key), bytes, end })
        }
        IN_CAPSULE => Descriptor::InCapsule { at: long(24), bytes: command.dword(8) },
        other => Descriptor::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyed_descriptor_is_as_the_specification_lays_it_out() {
        let at = RemoteAddr::new(0x1122_3344_5566_7788, 0xAABB_CCDD);
        let memory = Keyed { at, bytes: 0x0012_3456, end: KeyEnd::Kept };
        let raw = encode(&Command::keep_alive(), 0x0C41, Source::Keyed(memory)).unwrap();
        assert_eq!((raw[1] & 0xC0, &raw[2..4]), (0x40, &[0x41, 0x0C][..]));
        assert_eq!(raw[24..32], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        // Length of 24 bits, key of 32, and the identifier.
        assert_eq!(raw[32..40], [0x56, 0x34, 0x12, 0xDD, 0xCC, 0xBB, 0xAA, 0x40]);
        let (command, data) = decode(&raw).unwrap();
        assert_eq!((descriptor(&command), data.len(), has_sgl(&command)), (Descriptor::Keyed(memory), 0, true));
        let asked = Keyed { end: KeyEnd::Invalidated, ..memory };
        let raw = encode(&Command::keep_alive(), 1, Source::Keyed(asked)).unwrap();
        assert_eq!((raw[39], descriptor(&Command::new(raw))), (0x4F, Descriptor::Keyed(asked)));
    }

    #[test]
    fn a_command_without_data_has_a_keyed_descriptor_of_zeroes() {
        let raw = encode(&Command::keep_alive(), 1, Source::Nothing).unwrap();
        assert_eq!((&raw[24..39], raw[39]), (&[0; 15][..], 0x40));
        assert_eq!(descriptor(&Command::new(raw)), Descriptor::Nothing);
    }

    #[test]
    fn data_behind_the_command_is_named_by_its_offset_from_there() {
        let raw = encode(&Command::keep_alive(), 1, Source::Behind(0x1234)).unwrap();
        assert_eq!((&raw[24..32], &raw[32..40]), (&[0; 8][..], &[0x34, 0x12, 0, 0, 0, 0, 0, 0x01][..]));
        assert_eq!(descriptor(&Command::new(raw)), Descriptor::InCapsule { at: 0, bytes: 0x1234 });
    }

    #[test]
    fn what_a_descriptor_cannot_say_is_refused_and_others_are_told() {
        let memory = |bytes| Source::Keyed(Keyed { at: RemoteAddr::new(0, 1), bytes, end: KeyEnd::Kept });
        assert!(encode(&Command::keep_alive(), 1, memory(KEYED_BYTES_MAX)).is_some());
        assert_eq!(encode(&Command::keep_alive(), 1, memory(KEYED_BYTES_MAX + 1)), None);
        let mut raw = encode(&Command::keep_alive(), 1, Source::Nothing).unwrap();
        raw[39] = 0x5A;
        assert_eq!(descriptor(&Command::new(raw)), Descriptor::Other(0x5A));
        (raw[39], raw[32]) = (0x01, 16);
        assert_eq!(descriptor(&Command::new(raw)), Descriptor::InCapsule { at: 0, bytes: 16 });
        assert!(decode(&raw[..63]).is_none());
    }
}
