//! A namespace as the driver uses it: size, format, limits, identity.

use core::fmt;

use sw_engine::{Granularity, Version};

use crate::{
    limits::TransferLimits,
    wire::{
        IoFlags, WireError,
        identify::{IdentifyNamespace, MetadataReason, MetadataVerdict, NamespaceDescriptors},
    },
};

/// How a namespace is told from others, best first. Byte arrays are in the order that they are printed in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A UUID (descriptor type 3).
    Uuid([u8; 16]),
    /// NGUID.
    Nguid([u8; 16]),
    /// EUI64.
    Eui64([u8; 8]),
    /// Serial number of the controller and NSID, where the namespace has no name of its own.
    Serial(String, u32),
}

impl Identity {
    /// From what the device said; identifiers of zeroes are none.
    pub(crate) fn of(nsid: u32, serial: &str, info: &IdentifyNamespace, names: &NamespaceDescriptors) -> Self {
        let some = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
        let nguid = names.nguid.unwrap_or(info.nguid);
        let eui64 = names.eui64.unwrap_or(info.eui64);
        match names.uuid.filter(|uuid| some(uuid)) {
            Some(uuid) => Self::Uuid(uuid),
            None if some(&nguid) => Self::Nguid(nguid),
            None if some(&eui64) => Self::Eui64(eui64),
            None => Self::Serial(serial.to_owned(), nsid),
        }
    }

    /// Two words for an object's version: the identifier, or a mix of serial number and NSID.
    pub fn words(&self) -> (u64, u64) {
        let halves = |bytes: &[u8; 16]| {
            let whole = u128::from_be_bytes(*bytes);
            (u64::try_from(whole >> 64).unwrap_or(0), u64::try_from(whole & u128::from(u64::MAX)).unwrap_or(0))
        };
        match self {
            Self::Uuid(bytes) | Self::Nguid(bytes) => halves(bytes),
            Self::Eui64(bytes) => (0, u64::from_be_bytes(*bytes)),
            Self::Serial(serial, nsid) => {
                // FNV-1a, so that equal serial numbers give equal words in any process.
                let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
                (serial.bytes().fold(0xCBF2_9CE4_8422_2325, mix), u64::from(*nsid))
            }
        }
    }
}

impl fmt::Display for Identity {
    /// As Linux prints them: `uuid.…`, `eui.…`, or serial number and NSID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes) = match self {
            Self::Uuid(bytes) => ("uuid.", &bytes[..]),
            Self::Nguid(bytes) => ("eui.", &bytes[..]),
            Self::Eui64(bytes) => ("eui.", &bytes[..]),
            Self::Serial(serial, nsid) => return write!(f, "serial {serial}, nsid {nsid}"),
        };
        f.write_str(kind)?;
        for (at, byte) in bytes.iter().enumerate() {
            if matches!((self, at), (Self::Uuid(_), 4 | 6 | 8 | 10)) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Why a namespace takes no reads and writes of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its metadata is not handled.
    Metadata(MetadataReason),
    /// One block is more than a command may move.
    Limits,
    /// It belongs to an I/O command set other than NVM.
    CommandSet(u8),
    /// What Identify says about it cannot be.
    Odd(WireError),
    /// The controller has more formats than the basic ones and does not say which one this is (CNS 05h).
    FormatNotTold,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata(reason) => reason.fmt(f),
            Self::Limits => f.write_str("one block is more than a command may move (MDTS)"),
            Self::Odd(cause) => write!(f, "what the controller says about it cannot be: {cause}"),
            Self::FormatNotTold => f.write_str("the controller does not say which format it has (Identify, CNS 05h)"),
            Self::CommandSet(csi) => write!(f, "it belongs to I/O command set {csi:#04x}, not NVM"),
        }
    }
}

/// One active namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// NSID.
    pub nsid: u32,
    /// What Identify Namespace said.
    pub info: IdentifyNamespace,
    /// What becomes of its metadata.
    pub metadata: MetadataVerdict,
    /// What one command may move; `None` for a namespace that is unusable.
    pub limits: Option<TransferLimits>,
    /// Its name.
    pub identity: Identity,
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<Unusable>,
    /// Another number each time that a namespace of this NSID comes, or becomes another one, or gets another format; 0
    /// for those that were there when the controller was opened. Not a part of what the device says.
    pub generation: u32,
}

impl Namespace {
    /// One that is there and about which the controller says what cannot be.
    pub(crate) fn odd(nsid: u32, serial: &str, names: &NamespaceDescriptors, why: Unusable) -> Self {
        let info = IdentifyNamespace::default();
        Self {
            nsid,
            identity: Identity::of(nsid, serial, &info, names),
            info,
            metadata: MetadataVerdict::None,
            limits: None,
            unusable: Some(why),
            generation: 0,
        }
    }

    /// Whether what was opened as `earlier` can be read and written as this. A namespace without a name of its own counts
    /// as another one if its size changed.
    pub fn continues(&self, earlier: &Self) -> bool {
        let named = !matches!(self.identity, Identity::Serial(..));
        self.identity == earlier.identity
            && self.info.format.block_bytes == earlier.info.format.block_bytes
            && self.metadata == earlier.metadata
            && (named || self.info.size_blocks == earlier.info.size_blocks)
    }

    /// Bytes of a block: a power of two from 512.
    pub fn block_bytes(&self) -> u32 {
        self.info.format.block_bytes
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u64 {
        self.info.size_blocks
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.info.size_bytes()
    }

    /// What an I/O on it must be a multiple of: whole blocks, memory at multiples of 4 bytes (PRP entries).
    pub fn granularity(&self) -> Granularity {
        Granularity { block: self.block_bytes(), memory: 4 }
    }

    /// What tells two states of it apart: its name, and its size. It has no time of change.
    pub fn version(&self) -> Version {
        Version { identity: self.identity.words(), stamp: i128::from(self.info.size_blocks) }
    }

    /// Flags of reads and of writes, for protection information that the controller handles.
    pub fn io_flags(&self) -> (IoFlags, IoFlags) {
        match self.metadata {
            MetadataVerdict::Stripped(protection) => (protection.read, protection.write),
            _ => (IoFlags::NONE, IoFlags::NONE),
        }
    }
}
