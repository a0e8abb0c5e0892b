//! Submission queue entries and the I/O commands of the NVM command set.
//!
//! Layout: Base, "Common Command Format". Opcodes and dwords: NVM Command Set, "NVM Command Set Commands". Admin commands
//! are in [`admin`](super::admin). An entry is made of eight 64-bit words, so that a read is eight stores.

use core::{fmt, ops::BitOr};

use super::{SQE_BYTES, bytes, le32, le64};

/// Opcodes of I/O commands.
pub mod opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0C;
}

/// A submission queue entry. One cache line.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Command([u8; SQE_BYTES]);

const _: () = assert!(size_of::<Command>() == SQE_BYTES, "the ring's entries lie one behind the other");

/// Where the data of a command lies (DPTR and PSDT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// The command moves no data.
    None,
    /// PRP entry 1 and PRP entry 2, as [`prp`](crate::prp) makes them.
    Prp(u64, u64),
    /// One SGL descriptor, as [`sgl`](crate::sgl) makes it; metadata, if any, is one contiguous buffer (PSDT 01b).
    Sgl([u8; 16]),
}

impl DataPointer {
    /// Both words of DPTR, and PSDT in its place in dword 0.
    #[inline]
    pub(crate) fn words(self) -> (u64, u64, u64) {
        match self {
            Self::None => (0, 0, 0),
            Self::Prp(prp1, prp2) => (prp1, prp2, 0),
            Self::Sgl(descriptor) => (le64(&descriptor, 0), le64(&descriptor, 8), 1 << 14),
        }
    }
}

/// A number of logical blocks of one command, 1 to 65,536. Counts from zero on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(u16);

impl BlockCount {
    /// The most that a command can name.
    pub const MAX: BlockCount = BlockCount(u16::MAX);

    /// `blocks`, or `None` outside 1 to 65,536.
    #[inline]
    pub fn new(blocks: u32) -> Option<Self> {
        u16::try_from(blocks.checked_sub(1)?).ok().map(Self)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0 as u32 + 1
    }
}

impl fmt::Debug for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// Blocks of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaRange {
    /// NSID, 1 to 0xFFFFFFFE.
    pub nsid: u32,
    /// SLBA: the first block.
    pub slba: u64,
    /// How many.
    pub nlb: BlockCount,
}

/// Bits 31:16 of dword 12 of I/O commands. Combine with `|`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct IoFlags(u32);

impl IoFlags {
    /// None: the controller retries by its own rules, protection information is neither made nor checked.
    pub const NONE: IoFlags = IoFlags(0);
    /// LR: limited retry; the controller gives up earlier.
    pub const LIMITED_RETRY: IoFlags = IoFlags(1 << 31);
    /// FUA: a write is on the medium, a read comes from the medium, before it completes.
    pub const FUA: IoFlags = IoFlags(1 << 30);
    /// PRACT of PRINFO: the controller makes protection information (write) and strips it (read).
    pub const PRACT: IoFlags = IoFlags(1 << 29);
    /// PRCHK of PRINFO, guard.
    pub const CHECK_GUARD: IoFlags = IoFlags(1 << 28);
    /// PRCHK of PRINFO, reference tag; the initial one is the low half of SLBA.
    pub const CHECK_REFERENCE: IoFlags = IoFlags(1 << 26);
    /// DEAC of Write Zeroes: deallocate the blocks if they read as zeroes then.
    pub const DEALLOCATE: IoFlags = IoFlags(1 << 25);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: IoFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits, in their place in dword 12.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From dword 12, for models and traces.
    pub const fn from_dword12(dword: u32) -> Self {
        Self(dword & 0xFFFF_0000)
    }
}

impl BitOr for IoFlags {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for IoFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// What Dataset Management shall do with its ranges: dword 11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetAttribute {
    /// AD: deallocate.
    Deallocate,
    /// IDW: expect writes as one.
    IntegralWrite,
    /// IDR: expect reads as one.
    IntegralRead,
}

/// Ranges of one Dataset Management command, 1 to 256.
pub const DSM_RANGES_MAX: usize = 256;
/// Bytes of one range of Dataset Management.
pub const DSM_RANGE_BYTES: usize = 16;

/// One range of Dataset Management as bytes: context attributes 0, length in blocks, first block (NVM Command Set,
/// "Dataset Management – Range Definition"). The length does not count from zero.
pub fn dsm_range(slba: u64, blocks: u32) -> [u8; DSM_RANGE_BYTES] {
    let mut range = [0; DSM_RANGE_BYTES];
    range[4..8].copy_from_slice(&blocks.to_le_bytes());
    range[8..].copy_from_slice(&slba.to_le_bytes());
    range
}

impl Command {
    /// All zero: Flush of no namespace. What unused entries of a new ring hold.
    pub const ZERO: Command = Command([0; SQE_BYTES]);

    /// From eight words: 0 is dwords 0 and 1, and so on.
    #[inline]
    pub(crate) fn from_words(words: [u64; 8]) -> Self {
        let mut entry = [0; SQE_BYTES];
        for (to, word) in entry.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self(entry)
    }

    /// From an entry's bytes, for models and traces.
    pub const fn new(entry: [u8; SQE_BYTES]) -> Self {
        Self(entry)
    }

    /// Read: `data` receives the blocks.
    #[inline]
    pub fn read(at: LbaRange, data: DataPointer, flags: IoFlags) -> Self {
        Self::blocks(opcode::READ, at, data, flags)
    }

    /// Write.
    #[inline]
    pub fn write(at: LbaRange, data: DataPointer, flags: IoFlags) -> Self {
        Self::blocks(opcode::WRITE, at, data, flags)
    }

    /// Compare: fails with Compare Failure where the medium differs from `data`.
    #[inline]
    pub fn compare(at: LbaRange, data: DataPointer, flags: IoFlags) -> Self {
        Self::blocks(opcode::COMPARE, at, data, flags)
    }

    /// Write Zeroes, with [`IoFlags::DEALLOCATE`] if wanted. Moves no data.
    pub fn write_zeroes(at: LbaRange, flags: IoFlags) -> Self {
        Self::blocks(opcode::WRITE_ZEROES, at, DataPointer::None, flags)
    }

    /// Verify: reads the blocks and checks them, moves no data.
    pub fn verify(at: LbaRange, flags: IoFlags) -> Self {
        Self::blocks(opcode::VERIFY, at, DataPointer::None, flags)
    }

    /// Write Uncorrectable: later reads of the blocks fail with Unrecovered Read Error.
    pub fn write_uncorrectable(at: LbaRange) -> Self {
        Self::blocks(opcode::WRITE_UNCORRECTABLE, at, DataPointer::None, IoFlags::NONE)
    }

    /// Flush of one namespace, or of all with [`NSID_ALL`](super::NSID_ALL) where the controller takes that.
    #[inline]
    pub fn flush(nsid: u32) -> Self {
        Self::from_words([word(opcode::FLUSH.into(), nsid), 0, 0, 0, 0, 0, 0, 0])
    }

    /// Dataset Management of `ranges` ranges (1 to 256) that lie in `data`, see [`dsm_range`].
    ///
    /// `None` for another number of ranges.
    pub fn dataset_management(nsid: u32, ranges: usize, what: DatasetAttribute, data: DataPointer) -> Option<Self> {
        let ranges_z = u8::try_from(ranges.checked_sub(1)?).ok()?;
        let attribute = match what {
            DatasetAttribute::IntegralRead => 1,
            DatasetAttribute::IntegralWrite => 2,
            DatasetAttribute::Deallocate => 4,
        };
        let (prp1, prp2, psdt) = data.words();
        let head = word(opcode::DATASET_MANAGEMENT.into(), nsid) | psdt;
        Some(Self::from_words([head, 0, 0, prp1, prp2, word(ranges_z.into(), attribute), 0, 0]))
    }

    /// The commands that name a range in dwords 10 to 12.
    #[inline]
    fn blocks(opcode: u8, at: LbaRange, data: DataPointer, flags: IoFlags) -> Self {
        let (prp1, prp2, psdt) = data.words();
        // Dword 14 is the initial reference tag: the low half of SLBA, which types 1 and 2 ask for (NVM Command Set,
        // "End-to-end Data Protection"). It has no meaning without PRINFO, and is zero then.
        let tagged = u64::from(flags.0 & (IoFlags::PRACT.0 | IoFlags::CHECK_REFERENCE.0) != 0);
        Self::from_words([
            word(opcode.into(), at.nsid) | psdt,
            0,
            0,
            prp1,
            prp2,
            at.slba,
            u64::from(u32::from(at.nlb.0) | flags.0),
            (at.slba & 0xFFFF_FFFF) * tagged,
        ])
    }

    /// The same with a command identifier.
    #[inline]
    #[must_use]
    pub fn with_cid(mut self, cid: u16) -> Self {
        self.set_cid(cid);
        self
    }

    /// Sets the command identifier.
    #[inline]
    pub fn set_cid(&mut self, cid: u16) {
        self.0[2..4].copy_from_slice(&cid.to_le_bytes());
    }

    /// The bytes, for the ring.
    #[inline]
    pub const fn bytes(&self) -> &[u8; SQE_BYTES] {
        &self.0
    }

    /// OPC.
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// CID.
    pub const fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// NSID.
    pub fn nsid(&self) -> u32 {
        le32(&self.0, 4)
    }

    /// Dword 0 to 15; 0 for another index.
    pub fn dword(&self, index: usize) -> u32 {
        index.checked_mul(4).map_or(0, |at| le32(&self.0, at))
    }

    /// DPTR with the kind that PSDT names. SGL for both SGL kinds.
    pub fn data_pointer(&self) -> DataPointer {
        if self.0[1] >> 6 == 0 {
            DataPointer::Prp(le64(&self.0, 24), le64(&self.0, 32))
        } else {
            DataPointer::Sgl(bytes(&self.0, 24))
        }
    }

    /// The range of a command that names one in dwords 10 to 12; other commands have other things there.
    pub fn range(&self) -> LbaRange {
        let nlb = BlockCount((self.dword(12) & 0xFFFF) as u16);
        LbaRange { nsid: self.nsid(), slba: le64(&self.0, 40), nlb }
    }
}

/// Two dwords as one word.
#[inline]
pub(crate) fn word(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command(opc {:#04x}, cid {:#06x}, nsid {:#x}, dptr ", self.opcode(), self.cid(), self.nsid())?;
        write!(f, "{:?}", self.data_pointer())?;
        for index in 10..16 {
            write!(f, ", cdw{index} {:#x}", self.dword(index))?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests;
