//! Identify Namespace of the NVM command set (NVM Command Set, "Identify Namespace data structure", CNS 00h).

use crate::wire::{IDENTIFY_BYTES, WireError, byte, bytes, le16, le32, le64, le128, whole};

/// The smallest LBADS of a format in use: blocks of 512 bytes. The specification reserves smaller ones.
pub const LBADS_MIN: u8 = 9;
/// The largest LBADS that this driver takes: so that the bytes of a block have 32 bits. The field would allow 2^255.
pub const LBADS_MAX: u8 = 31;

/// One LBA format, and how the namespace uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockFormat {
    /// Its index in the list.
    pub index: u8,
    /// Data bytes of a block: a power of two from 512.
    pub block_bytes: u32,
    /// MS: bytes of metadata of a block.
    pub metadata_bytes: u16,
    /// RP: 0 is best, 3 is degraded performance.
    pub relative_performance: u8,
}

/// DLFEAT 2:0: what deallocated blocks read as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeallocatedReads {
    /// Not said.
    #[default]
    NotSaid,
    /// Zeroes.
    Zeroes,
    /// Bytes of FFh.
    Ones,
}

/// What the driver uses of Identify Namespace. Counts are plain, the wire's zero-based values are gone.
///
/// The default is that of a namespace about which nothing is known: no blocks, and none of a size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// NSZE: blocks of the namespace, at least 1; its bytes have 64 bits.
    pub size_blocks: u64,
    /// NCAP: blocks that can be allocated.
    pub capacity_blocks: u64,
    /// NUSE: blocks that are.
    pub used_blocks: u64,
    /// NSFEAT, as it stands.
    pub features: u8,
    /// The format in use.
    pub format: BlockFormat,
    /// FLBAS bit 4: metadata lies between the blocks (extended LBA), not in a buffer of its own.
    pub metadata_interleaved: bool,
    /// The other formats that can be used at all.
    pub formats: Vec<BlockFormat>,
    /// MC, as it stands.
    pub metadata_abilities: u8,
    /// DPC, as it stands.
    pub protection_abilities: u8,
    /// DPS 2:0: the type of protection information, 0 for none.
    pub protection_type: u8,
    /// DPS 3: protection information is in the first bytes of the metadata, not the last.
    pub protection_first: bool,
    /// NMIC bit 0: several controllers may reach the namespace.
    pub shared: bool,
    /// FPI: percent that a running format still has to do; nothing if not reported.
    pub format_left_percent: Option<u8>,
    /// DLFEAT 2:0.
    pub deallocated_reads: DeallocatedReads,
    /// DLFEAT 3: Write Zeroes takes DEAC.
    pub write_zeroes_deallocates: bool,
    /// NAWUN in blocks, where NSFEAT bit 1 says that it holds.
    pub atomic_write_blocks: Option<u32>,
    /// NAWUPF in blocks, likewise.
    pub atomic_write_power_fail_blocks: Option<u32>,
    /// NOIOB in blocks: a command that crosses a multiple of it is slower; nothing if not reported.
    pub io_boundary_blocks: Option<u16>,
    /// NVMCAP in bytes, 0 if not reported.
    pub capacity_bytes: u128,
    /// NPWG in blocks, where NSFEAT says that it holds: writes of a multiple of it are best.
    pub write_granularity_blocks: Option<u32>,
    /// NPWA in blocks, likewise: the alignment of such writes.
    pub write_alignment_blocks: Option<u32>,
    /// NPDG in blocks, likewise: deallocation.
    pub deallocate_granularity_blocks: Option<u32>,
    /// NOWS in blocks, likewise: the optimal size of a write.
    pub write_optimal_blocks: Option<u32>,
    /// MSSRL: blocks of one source range of Copy; 0 without Copy.
    pub copy_range_blocks: u16,
    /// ANAGRPID, 0 without asymmetric access.
    pub ana_group: u32,
    /// NSATTR bit 0: write protected now.
    pub write_protected: bool,
    /// NGUID, zero if there is none.
    pub nguid: [u8; 16],
    /// EUI64, zero if there is none.
    pub eui64: [u8; 8],
}

impl IdentifyNamespace {
    /// Decodes CNS 00h. `Ok(None)`: all zero, which is the answer for a namespace that is not active.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes; no blocks; a format index outside the list; a block size below 512 bytes or above what 32
    /// bits hold; more bytes than 64 bits hold.
    pub fn decode(raw: &[u8]) -> Result<Option<Self>, WireError> {
        whole("Identify Namespace", raw, IDENTIFY_BYTES)?;
        if raw.iter().take(IDENTIFY_BYTES).all(|&byte| byte == 0) {
            return Ok(None);
        }
        let size_blocks = le64(raw, 0);
        if size_blocks == 0 {
            return Err(WireError::Field { field: "NSZE", got: 0, rule: "an active namespace has blocks" });
        }
        let (format, formats) = Self::formats_of(raw)?;
        if size_blocks > u64::MAX >> format.block_bytes.trailing_zeros() {
            return Err(WireError::Field { field: "NSZE", got: size_blocks, rule: "its bytes have 64 bits" });
        }
        Ok(Some(Self::fields(raw, format, formats)))
    }

    fn formats_of(raw: &[u8]) -> Result<(BlockFormat, Vec<BlockFormat>), WireError> {
        let (nlbaf_z, flbas, nulbaf) = (byte(raw, 25), byte(raw, 26), byte(raw, 82));
        let count = u16::from(nlbaf_z) + 1 + u16::from(nulbaf);
        if count > 64 {
            return Err(WireError::Field { field: "NLBAF", got: count.into(), rule: "there are at most 64 formats" });
        }
        // FLBAS 6:5 are the high bits of the index, and have no meaning unless there are more than 16 formats.
        let index = if count > 16 { flbas & 0xF | flbas >> 1 & 0x30 } else { flbas & 0xF };
        if u16::from(index) >= count {
            return Err(WireError::Field { field: "FLBAS", got: flbas.into(), rule: "its index is in the list" });
        }
        let lbads = byte(raw, 130 + 4 * usize::from(index));
        if lbads < LBADS_MIN {
            return Err(WireError::Field { field: "LBADS", got: lbads.into(), rule: "a block has at least 2^9 bytes" });
        }
        let format = block_format(raw, index).ok_or(WireError::Field {
            field: "LBADS",
            got: lbads.into(),
            rule: "this driver takes blocks of at most 2^31 bytes, so that a length has 32 bits",
        })?;
        let all = (0..count).filter_map(|index| u8::try_from(index).ok()).filter_map(|index| block_format(raw, index));
        Ok((format, all.collect()))
    }

    fn fields(raw: &[u8], format: BlockFormat, formats: Vec<BlockFormat>) -> Self {
        let features = byte(raw, 24);
        let counted = |at: usize| u32::from(le16(raw, at)) + 1;
        let atomic = |at| (features >> 1 & 1 != 0).then(|| counted(at));
        // OPTPERF, NSFEAT 5:4 (bit 4 alone before NVM Command Set 1.1): anything but 00b says that NPWG, NPWA and NOWS
        // hold. 10b has the deallocation granularity in fields that are wider and elsewhere.
        let optperf = features >> 4 & 3;
        let optimal = |at| (optperf != 0).then(|| counted(at));
        let (dps, fpi, dlfeat, noiob) = (byte(raw, 29), byte(raw, 32), byte(raw, 33), le16(raw, 46));
        Self {
            size_blocks: le64(raw, 0),
            capacity_blocks: le64(raw, 8),
            used_blocks: le64(raw, 16),
            features,
            format,
            metadata_interleaved: byte(raw, 26) >> 4 & 1 != 0,
            formats,
            metadata_abilities: byte(raw, 27),
            protection_abilities: byte(raw, 28),
            protection_type: dps & 7,
            protection_first: dps >> 3 & 1 != 0,
            shared: byte(raw, 30) & 1 != 0,
            format_left_percent: (fpi >> 7 != 0).then_some(fpi & 0x7F),
            deallocated_reads: match dlfeat & 7 {
                1 => DeallocatedReads::Zeroes,
                2 => DeallocatedReads::Ones,
                _ => DeallocatedReads::NotSaid,
            },
            write_zeroes_deallocates: dlfeat >> 3 & 1 != 0,
            atomic_write_blocks: atomic(34),
            atomic_write_power_fail_blocks: atomic(36),
            io_boundary_blocks: (noiob != 0).then_some(noiob),
            capacity_bytes: le128(raw, 48),
            write_granularity_blocks: optimal(64),
            write_alignment_blocks: optimal(66),
            deallocate_granularity_blocks: (optperf & 1 != 0).then(|| counted(68)),
            write_optimal_blocks: optimal(72),
            copy_range_blocks: le16(raw, 74),
            ana_group: le32(raw, 92),
            write_protected: byte(raw, 99) & 1 != 0,
            nguid: bytes(raw, 104),
            eui64: bytes(raw, 120),
        }
    }

    /// Bytes of the namespace.
    pub fn size_bytes(&self) -> u64 {
        // Checked when it was decoded.
        self.size_blocks.saturating_mul(self.format.block_bytes.into())
    }

    /// NSFEAT bit 2: reads of deallocated blocks can be made to fail.
    pub const fn deallocated_error(&self) -> bool {
        self.features >> 2 & 1 != 0
    }

    /// NSFEAT bit 0: thinly provisioned.
    pub const fn thin(&self) -> bool {
        self.features & 1 != 0
    }
}

/// Format `index` of the list, `None` if it is unused or of a size that the driver does not take.
fn block_format(raw: &[u8], index: u8) -> Option<BlockFormat> {
    let at = 128 + 4 * usize::from(index);
    let lbads = byte(raw, at + 2);
    (LBADS_MIN..=LBADS_MAX).contains(&lbads).then(|| BlockFormat {
        index,
        block_bytes: 1 << lbads,
        metadata_bytes: le16(raw, at),
        relative_performance: byte(raw, at + 3) & 3,
    })
}
