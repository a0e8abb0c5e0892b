//! Metadata and protection information: what is handled, and what is refused with its reason.
//!
//! Handled: protection information of types 1 to 3 with the 16-bit guard, where it is all of the metadata (8 bytes). The
//! controller makes it on writes and checks and strips it on reads (PRACT), so that the host moves plain blocks (NVM
//! Command Set, "End-to-end Data Protection", "The PRACT Bit"). Everything else would put bytes between or beside the
//! blocks, and is refused: reading it as plain blocks would give wrong data.

use core::fmt;

use super::IdentifyNamespace;
use crate::wire::{IDENTIFY_BYTES, WireError, command::IoFlags, le32, whole};

/// Bytes of protection information with a 16-bit guard: guard 2, application tag 2, reference tag 4.
const PI16_BYTES: u16 = 8;

/// PIF: the format of protection information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardFormat {
    /// 00b: 16-bit guard, 8 bytes.
    Bits16,
    /// 01b: 32-bit guard, 16 bytes.
    Bits32,
    /// 10b: 64-bit guard, 16 bytes.
    Bits64,
    /// 11b: by another field (QPIF).
    Qualified,
}

/// What ELBAF says about a format beyond the LBA format (CNS 05h, CSI 00h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedFormat {
    /// STS: bits of the storage tag, 0 to 64; they are taken from the reference tag.
    pub storage_tag_bits: u8,
    /// PIF.
    pub guard: GuardFormat,
}

impl ExtendedFormat {
    /// Decodes the entry of format `index` (0 to 63) of CNS 05h, CSI 00h.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes; an index past 63.
    pub fn decode(raw: &[u8], index: u8) -> Result<Self, WireError> {
        whole("Identify Namespace, NVM command set", raw, IDENTIFY_BYTES)?;
        if index > 63 {
            return Err(WireError::Field { field: "ELBAF index", got: index.into(), rule: "there are 64" });
        }
        let entry = le32(raw, 12 + 4 * usize::from(index));
        let guard = match entry >> 7 & 3 {
            0 => GuardFormat::Bits16,
            1 => GuardFormat::Bits32,
            2 => GuardFormat::Bits64,
            _ => GuardFormat::Qualified,
        };
        Ok(Self { storage_tag_bits: (entry & 0x7F) as u8, guard })
    }
}

/// Flags of commands to a namespace whose protection information the controller makes and strips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// For Read: PRACT, and the checks that the type has.
    pub read: IoFlags,
    /// For Write and Write Zeroes: PRACT.
    pub write: IoFlags,
    /// For Verify: the checks alone.
    pub verify: IoFlags,
}

/// Why a namespace's blocks are not taken for plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataReason {
    /// Metadata without protection information: bytes that belong to an application.
    Plain {
        /// Bytes of metadata of a block.
        metadata_bytes: u16,
    },
    /// Metadata beside the protection information.
    BesideProtection {
        /// Bytes of metadata of a block.
        metadata_bytes: u16,
    },
    /// Protection information is on, and the metadata has no room for it.
    NoRoom {
        /// Bytes of metadata of a block.
        metadata_bytes: u16,
    },
    /// A type that no revision defines.
    UnknownType {
        /// DPS 2:0.
        protection_type: u8,
    },
    /// A guard of more than 16 bits.
    Guard(GuardFormat),
    /// A storage tag, which changes the reference tag.
    StorageTag {
        /// STS.
        bits: u8,
    },
}

impl fmt::Display for MetadataReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain { metadata_bytes } => write!(f, "each block has {metadata_bytes} bytes of metadata"),
            Self::BesideProtection { metadata_bytes } => {
                write!(f, "{metadata_bytes} bytes of metadata hold more than protection information")
            }
            Self::NoRoom { metadata_bytes } => {
                write!(f, "protection information is on, and {metadata_bytes} bytes of metadata cannot hold it")
            }
            Self::UnknownType { protection_type } => write!(f, "protection type {protection_type} is not known"),
            Self::Guard(guard) => write!(f, "the guard format {guard:?} is not handled"),
            Self::StorageTag { bits } => write!(f, "a storage tag of {bits} bits is in use"),
        }
    }
}

/// What becomes of the metadata of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataVerdict {
    /// There is none: plain blocks.
    None,
    /// Protection information that the controller makes, checks and strips: plain blocks for the host, with these flags.
    /// Compare is not possible: it takes protection information from the host.
    Stripped(Protection),
    /// Not handled.
    Refused(MetadataReason),
}

impl MetadataVerdict {
    /// What is to be done about `namespace`. `extended` is its format's entry of CNS 05h, where the controller has such
    /// (CTRATT.ELBAS); nothing means guards of 16 bits and no storage tags.
    pub fn of(namespace: &IdentifyNamespace, extended: Option<ExtendedFormat>) -> Self {
        let metadata_bytes = namespace.format.metadata_bytes;
        let checks = match namespace.protection_type {
            0 if metadata_bytes == 0 => return Self::None,
            0 => return Self::Refused(MetadataReason::Plain { metadata_bytes }),
            1 | 2 => IoFlags::CHECK_GUARD | IoFlags::CHECK_REFERENCE,
            // Type 3 has no reference tag that the controller could check.
            3 => IoFlags::CHECK_GUARD,
            protection_type => return Self::Refused(MetadataReason::UnknownType { protection_type }),
        };
        if let Some(format) = extended {
            if format.guard != GuardFormat::Bits16 {
                return Self::Refused(MetadataReason::Guard(format.guard));
            }
            if format.storage_tag_bits != 0 {
                return Self::Refused(MetadataReason::StorageTag { bits: format.storage_tag_bits });
            }
        }
        match metadata_bytes {
            PI16_BYTES => {
                let read = IoFlags::PRACT | checks;
                Self::Stripped(Protection { read, write: IoFlags::PRACT, verify: checks })
            }
            0..PI16_BYTES => Self::Refused(MetadataReason::NoRoom { metadata_bytes }),
            _ => Self::Refused(MetadataReason::BesideProtection { metadata_bytes }),
        }
    }
}
