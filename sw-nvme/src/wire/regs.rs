//! The register file of a controller (Base and PCIe Transport, "Controller Properties").
//!
//! Offsets in bytes from the start of BAR 0, and decoders that turn a raw value into counts, bytes and durations.

use core::{fmt, time::Duration};

use super::WireError;

/// Controller Capabilities, 64 bits: [`Cap`].
pub const CAP: u32 = 0x00;
/// Version, 32 bits: [`Version`].
pub const VS: u32 = 0x08;
/// Interrupt Mask Set, 32 bits; not to be used with MSI-X.
pub const INTMS: u32 = 0x0C;
/// Interrupt Mask Clear, 32 bits; not to be used with MSI-X.
pub const INTMC: u32 = 0x10;
/// Controller Configuration, 32 bits: [`Cc`].
pub const CC: u32 = 0x14;
/// Controller Status, 32 bits: [`Csts`].
pub const CSTS: u32 = 0x1C;
/// NVM Subsystem Reset, 32 bits; takes [`NSSR_RESET`].
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes, 32 bits: [`Aqa`].
pub const AQA: u32 = 0x24;
/// Admin Submission Queue base address, 64 bits, a multiple of the memory page size.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue base address, 64 bits, a multiple of the memory page size.
pub const ACQ: u32 = 0x30;
/// Controller Memory Buffer Location, 32 bits: [`Cmbloc`]. Reads 0 until `CMBMSC.CRE` is set where `CAP.CMBS` is 1.
pub const CMBLOC: u32 = 0x38;
/// Controller Memory Buffer Size, 32 bits: [`Cmbsz`]. Reads 0 likewise.
pub const CMBSZ: u32 = 0x3C;
/// Boot Partition Information, 32 bits.
pub const BPINFO: u32 = 0x40;
/// Boot Partition Read Select, 32 bits.
pub const BPRSEL: u32 = 0x44;
/// Boot Partition Memory Buffer Location, 64 bits.
pub const BPMBL: u32 = 0x48;
/// Controller Memory Buffer Memory Space Control, 64 bits: [`cmbmsc`].
pub const CMBMSC: u32 = 0x50;
/// Controller Memory Buffer Status, 32 bits: bit 0 (CBAI) says that the base address was refused.
pub const CMBSTS: u32 = 0x58;
/// Controller Memory Buffer Elasticity Buffer Size, 32 bits.
pub const CMBEBS: u32 = 0x5C;
/// Controller Memory Buffer Sustained Write Throughput, 32 bits.
pub const CMBSWTP: u32 = 0x60;
/// NVM Subsystem Shutdown, 32 bits.
pub const NSSD: u32 = 0x64;
/// Controller Ready Timeouts, 32 bits: [`Crto`].
pub const CRTO: u32 = 0x68;
/// Persistent Memory Region Capabilities, 32 bits: [`Pmrcap`].
pub const PMRCAP: u32 = 0xE00;
/// Persistent Memory Region Control, 32 bits; bit 0 enables.
pub const PMRCTL: u32 = 0xE04;
/// Persistent Memory Region Status, 32 bits.
pub const PMRSTS: u32 = 0xE08;
/// Persistent Memory Region Elasticity Buffer Size, 32 bits.
pub const PMREBS: u32 = 0xE0C;
/// Persistent Memory Region Sustained Write Throughput, 32 bits.
pub const PMRSWTP: u32 = 0xE10;
/// Persistent Memory Region Memory Space Control, low half, 32 bits.
pub const PMRMSCL: u32 = 0xE14;
/// Persistent Memory Region Memory Space Control, high half, 32 bits.
pub const PMRMSCU: u32 = 0xE18;
/// The first doorbell: the admin submission queue's tail.
pub const DOORBELLS: u32 = 0x1000;
/// What [`NSSR`] takes: the letters `NVMe`.
pub const NSSR_RESET: u32 = 0x4E56_4D65;
/// `CMBSTS.CBAI`: the controller refused the base address that [`cmbmsc`] gave.
pub const CMBSTS_CBAI: u32 = 1;

/// Entries of a queue that the wire can name: `CAP.MQES` and QSIZE have 16 bits and count from zero.
pub const QUEUE_ENTRIES_MAX: u32 = 0x1_0000;
/// Entries of an admin queue that [`Aqa`] can name: 12 bits that count from zero.
pub const ADMIN_ENTRIES_MAX: u32 = 0x1000;

/// The unit of `CAP.TO` and of both halves of CRTO.
const HALF_SECOND: Duration = Duration::from_millis(500);

const fn bit(value: u64, at: u32) -> bool {
    value >> at & 1 == 1
}

/// Doorbells of a controller: where each lies (PCIe Transport, "Doorbell registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellStride {
    bytes: u32,
}

impl DoorbellStride {
    /// From `CAP.DSTRD`: 2^(2 + DSTRD) bytes from one doorbell to the next. `dstrd` has four bits; more are ignored.
    pub const fn new(dstrd: u8) -> Self {
        Self { bytes: 4 << (dstrd & 0xF) }
    }

    /// Bytes from one doorbell to the next, 4 to 128 KiB.
    pub const fn bytes(self) -> u32 {
        self.bytes
    }

    /// Offset of the tail doorbell of submission queue `qid`, or `None` past 32 bits.
    pub fn sq_tail(self, qid: u16) -> Option<u32> {
        self.doorbell(2 * u32::from(qid))
    }

    /// Offset of the head doorbell of completion queue `qid`, or `None` past 32 bits.
    pub fn cq_head(self, qid: u16) -> Option<u32> {
        self.doorbell(2 * u32::from(qid) + 1)
    }

    fn doorbell(self, index: u32) -> Option<u32> {
        index.checked_mul(self.bytes)?.checked_add(DOORBELLS)
    }
}

/// `CAP.CRMS`: which ways of becoming ready there are (Base, "Controller Ready Modes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyModes {
    /// CRWMS: ready with media. Then CRTO has a limit for it.
    pub with_media: bool,
    /// CRIMS: ready independent of media.
    pub independent_of_media: bool,
}

/// Controller Capabilities, decoded. Numbers are counts and bytes, not the wire's exponents and zero-based values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// MQES: entries that an I/O queue may have, 2 to 65,536.
    pub queue_entries_max: u32,
    /// CQR: queues must be physically contiguous.
    pub contiguous_queues_required: bool,
    /// AMS: arbitration mechanisms besides round robin; bit 0 weighted round robin with urgent class, bit 1 vendor's.
    pub arbitration: u8,
    /// TO: how long CSTS.RDY may take to follow CC.EN. At least half a second, also where the register says 0.
    pub ready_timeout: Duration,
    /// DSTRD.
    pub doorbell_stride: DoorbellStride,
    /// NSSRS: an NVM subsystem reset can be asked for.
    pub subsystem_reset: bool,
    /// CSS, as it stands: bit 0 NVM command set, bit 6 I/O command sets by Identify, bit 7 no I/O command set.
    pub command_sets: u8,
    /// BPS: there are boot partitions.
    pub boot_partitions: bool,
    /// MPSMIN, in bytes: a power of two, 4 KiB to 128 MiB. The unit of MDTS.
    pub page_bytes_min: u32,
    /// MPSMAX, in bytes: not below `page_bytes_min`.
    pub page_bytes_max: u32,
    /// PMRS: there is a persistent memory region.
    pub persistent_memory: bool,
    /// CMBS: there is a controller memory buffer, to be enabled through CMBMSC before CMBLOC and CMBSZ say where.
    pub controller_memory: bool,
    /// CRMS.
    pub ready_modes: ReadyModes,
}

impl Cap {
    /// Bit 0 of CSS: the NVM command set.
    pub const CSS_NVM: u8 = 1;
    /// Bit 6 of CSS: I/O command sets that Identify tells of.
    pub const CSS_IOCS: u8 = 1 << 6;
    /// Bit 7 of CSS: no I/O command set, admin commands only.
    pub const CSS_ADMIN_ONLY: u8 = 1 << 7;

    /// Decodes the register.
    ///
    /// # Errors
    /// All ones (the device is gone); queues of fewer than two entries; MPSMAX below MPSMIN.
    pub fn decode(raw: u64) -> Result<Self, WireError> {
        let field = |field, got, rule| Err(WireError::Field { field, got, rule });
        if raw == u64::MAX {
            return field("CAP", raw, "all ones is what a device that is gone reads as");
        }
        let mqes_z = u32::from(low16(raw));
        if mqes_z == 0 {
            return field("CAP.MQES", 0, "it counts from zero and a queue has at least 2 entries");
        }
        let (mpsmin, mpsmax) = (nibble(raw, 48), nibble(raw, 52));
        if mpsmax < mpsmin {
            return field("CAP.MPSMAX", u64::from(mpsmax), "it is not below CAP.MPSMIN");
        }
        Ok(Self {
            queue_entries_max: mqes_z + 1,
            contiguous_queues_required: bit(raw, 16),
            arbitration: octet(raw, 17) & 3,
            ready_timeout: HALF_SECOND * u32::from(octet(raw, 24)).max(1),
            doorbell_stride: DoorbellStride::new(nibble(raw, 32)),
            subsystem_reset: bit(raw, 36),
            command_sets: octet(raw, 37),
            boot_partitions: bit(raw, 45),
            page_bytes_min: 0x1000 << mpsmin,
            page_bytes_max: 0x1000 << mpsmax,
            persistent_memory: bit(raw, 56),
            controller_memory: bit(raw, 57),
            ready_modes: ReadyModes { with_media: bit(raw, 59), independent_of_media: bit(raw, 60) },
        })
    }

    /// Whether the controller takes commands of the NVM command set, and the value of CC.CSS that selects them.
    ///
    /// `None`: admin commands only. Where CSS bit 6 is set, I/O command sets are selected all at once (110b).
    pub fn nvm_command_set(&self) -> Option<CommandSets> {
        if self.command_sets & Self::CSS_IOCS != 0 {
            Some(CommandSets::All)
        } else if self.command_sets & Self::CSS_NVM != 0 {
            Some(CommandSets::Nvm)
        } else {
            None
        }
    }

    /// How long to wait for CSTS.RDY after CC.EN changed. The longer of CAP.TO and CRTO, since there are devices
    /// whose CRTO is below what they need (Linux `nvme_enable_ctrl` takes the larger one too).
    pub fn ready_limit(&self, crto: Option<Crto>) -> Duration {
        let more = crto.filter(|_| self.ready_modes.with_media).map_or(Duration::ZERO, |crto| crto.with_media);
        self.ready_timeout.max(more)
    }

    /// CC.MPS for a memory page of `page_bytes`, or `None` if the controller does not take it.
    pub fn page_code(&self, page_bytes: u32) -> Option<u8> {
        let fits = page_bytes.is_power_of_two() && (self.page_bytes_min..=self.page_bytes_max).contains(&page_bytes);
        // Between 12 and 27, so that the difference has four bits.
        fits.then(|| u8::try_from(page_bytes.trailing_zeros() - 12).ok()).flatten()
    }
}

fn low16(raw: u64) -> u16 {
    (raw & 0xFFFF) as u16
}

fn octet(raw: u64, at: u32) -> u8 {
    (raw >> at & 0xFF) as u8
}

fn nibble(raw: u64, at: u32) -> u8 {
    (raw >> at & 0xF) as u8
}

/// Version, as `major.minor.tertiary`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// 1.0.0, the lowest there is.
    pub const V1_0: Version = Version(0x0001_0000);
    /// 1.1.0: active namespace lists (CNS 02h) may be there; they are required from here on.
    pub const V1_1: Version = Version(0x0001_0100);
    /// 1.2.0.
    pub const V1_2: Version = Version(0x0001_0200);
    /// 1.3.0: namespace identification descriptors are required.
    pub const V1_3: Version = Version(0x0001_0300);
    /// 1.4.0.
    pub const V1_4: Version = Version(0x0001_0400);
    /// 2.0.0: I/O command sets.
    pub const V2_0: Version = Version(0x0002_0000);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 16, self.0 >> 8 & 0xFF, self.0 & 0xFF)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// CC.CSS: the I/O command sets in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandSets {
    /// 000b: the NVM command set.
    Nvm,
    /// 110b: all that the controller has.
    All,
    /// 111b: admin commands only.
    AdminOnly,
}

/// CC.SHN: what kind of shutdown is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// 01b: normal; the controller finishes and flushes.
    Normal,
    /// 10b: abrupt; power goes soon.
    Abrupt,
}

/// Controller Configuration. A value to build and to write whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cc(u32);

impl Cc {
    /// Disabled, with everything else zero.
    pub const DISABLED: Cc = Cc(0);

    /// What enables the controller: memory page code (from [`Cap::page_code`]), command sets, 64-byte submission and
    /// 16-byte completion entries, round robin.
    pub fn enabled(page_code: u8, sets: CommandSets) -> Self {
        let css = match sets {
            CommandSets::Nvm => 0b000,
            CommandSets::All => 0b110,
            CommandSets::AdminOnly => 0b111,
        };
        // IOSQES 6 is 2^6 bytes, IOCQES 4 is 2^4 bytes: the only sizes that the NVM command set has.
        Self(1 | css << 4 | u32::from(page_code & 0xF) << 7 | 6 << 16 | 4 << 20)
    }

    /// From what the register reads.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// EN: whether it is enabled.
    pub const fn is_enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The same with EN clear: what starts a controller reset.
    #[must_use]
    pub const fn disable(self) -> Self {
        Self(self.0 & !1)
    }

    /// The same with a shutdown announced in SHN.
    #[must_use]
    pub const fn shutdown(self, kind: Shutdown) -> Self {
        let shn = match kind {
            Shutdown::Normal => 0b01,
            Shutdown::Abrupt => 0b10,
        };
        Self(self.0 & !(0b11 << 14) | shn << 14)
    }

    /// The memory page size that it selects, in bytes.
    pub const fn page_bytes(self) -> u32 {
        0x1000 << (self.0 >> 7 & 0xF)
    }

    /// The register's value.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Cc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CC {:#010x} (en {}, page {} bytes)", self.0, self.0 & 1, self.page_bytes())
    }
}

/// CSTS.SHST: how far a shutdown got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// 00b: none was asked for.
    None,
    /// 01b: under way.
    Processing,
    /// 10b: done.
    Complete,
    /// 11b, which no revision defines.
    Reserved,
}

/// Controller Status.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// All ones: reads of a function that is gone, or whose link or memory space is off. Nothing else may be concluded
    /// from the other bits then.
    pub const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// RDY: the controller takes commands.
    pub const fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS: a fatal error; only a reset helps.
    pub const fn is_fatal(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    /// SHST.
    pub const fn shutdown(self) -> ShutdownStatus {
        match self.0 >> 2 & 3 {
            0 => ShutdownStatus::None,
            1 => ShutdownStatus::Processing,
            2 => ShutdownStatus::Complete,
            _ => ShutdownStatus::Reserved,
        }
    }

    /// NSSRO: an NVM subsystem reset took place; stays until 1 is written to it.
    pub const fn subsystem_was_reset(self) -> bool {
        self.0 >> 4 & 1 != 0
    }

    /// PP: the controller stopped taking commands for now.
    pub const fn is_paused(self) -> bool {
        self.0 >> 5 & 1 != 0
    }
}

impl fmt::Debug for Csts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_gone() {
            return f.write_str("CSTS all ones (gone)");
        }
        write!(f, "CSTS {:#x} (rdy {}, cfs {}, shst {:?})", self.0, self.0 & 1, self.0 >> 1 & 1, self.shutdown())
    }
}

/// Admin Queue Attributes: sizes of both admin queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aqa {
    /// Entries of the submission queue, 2 to 4,096.
    pub sq_entries: u32,
    /// Entries of the completion queue, 2 to 4,096.
    pub cq_entries: u32,
}

impl Aqa {
    /// The register's value, or `None` for a size outside 2 to [`ADMIN_ENTRIES_MAX`].
    pub fn encode(self) -> Option<u32> {
        let fits = |entries: u32| (2..=ADMIN_ENTRIES_MAX).contains(&entries);
        (fits(self.sq_entries) && fits(self.cq_entries)).then(|| (self.cq_entries - 1) << 16 | (self.sq_entries - 1))
    }

    /// From the register, as a controller reads it.
    pub fn decode(raw: u32) -> Self {
        Self { sq_entries: (raw & 0xFFF) + 1, cq_entries: (raw >> 16 & 0xFFF) + 1 }
    }
}

/// Controller Memory Buffer Location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmbloc {
    /// BIR: the BAR it lies in: 0, 2, 3, 4 or 5 (others are not allowed and are refused by [`Cmb::decode`]).
    pub bar: u8,
    /// OFST in units of [`Cmbsz::unit_bytes`].
    pub offset_units: u32,
}

/// Controller Memory Buffer Size and what it may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmbsz {
    /// SQS: submission queues.
    pub submission_queues: bool,
    /// CQS: completion queues.
    pub completion_queues: bool,
    /// LISTS: PRP lists and SGL segments.
    pub lists: bool,
    /// RDS: data that commands bring to the host (reads).
    pub read_data: bool,
    /// WDS: data that commands take from the host (writes).
    pub write_data: bool,
    /// SZU as bytes: 4 KiB << 4·SZU, 0 for the values that no revision defines.
    pub unit_bytes: u64,
    /// SZ in units.
    pub units: u32,
}

impl Cmbloc {
    /// Decodes the register.
    pub fn decode(raw: u32) -> Self {
        Self { bar: (raw & 7) as u8, offset_units: raw >> 12 }
    }
}

impl Cmbsz {
    /// Decodes the register.
    pub fn decode(raw: u32) -> Self {
        let szu = raw >> 8 & 0xF;
        let on = |at| bit(u64::from(raw), at);
        Self {
            submission_queues: on(0),
            completion_queues: on(1),
            lists: on(2),
            read_data: on(3),
            write_data: on(4),
            // 0 is 4 KiB, 6 is 64 GiB; 7 and above are reserved.
            unit_bytes: if szu <= 6 { 0x1000 << (4 * szu) } else { 0 },
            units: raw >> 12,
        }
    }
}

/// Where a controller memory buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmb {
    /// The BAR.
    pub bar: u8,
    /// Bytes from the start of the BAR.
    pub offset_bytes: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// What it may be used for.
    pub uses: Cmbsz,
}

impl Cmb {
    /// From both registers. `Ok(None)`: there is none (or it is not enabled yet).
    ///
    /// # Errors
    /// A BAR that no controller memory may lie in; a unit that no revision defines; a range past 64 bits.
    pub fn decode(cmbloc: u32, cmbsz: u32) -> Result<Option<Self>, WireError> {
        let (location, uses) = (Cmbloc::decode(cmbloc), Cmbsz::decode(cmbsz));
        if uses.units == 0 {
            return Ok(None);
        }
        let refuse = |field, got, rule| Err(WireError::Field { field, got, rule });
        if !matches!(location.bar, 0 | 2..=5) {
            return refuse("CMBLOC.BIR", u64::from(location.bar), "it is 0 or 2 to 5");
        }
        if uses.unit_bytes == 0 {
            return refuse("CMBSZ.SZU", u64::from(cmbsz >> 8 & 0xF), "it is 0 to 6");
        }
        // 20 bits of units of at most 2^36 bytes: no product passes 64 bits, nor does their sum.
        let offset_bytes = u64::from(location.offset_units) * uses.unit_bytes;
        let len_bytes = u64::from(uses.units) * uses.unit_bytes;
        Ok(Some(Self { bar: location.bar, offset_bytes, len_bytes, uses }))
    }
}

/// The value of [`CMBMSC`] that enables the registers (CRE) and, with a base address, the buffer as a DMA target
/// (CMSE, CBA). `base` is a multiple of 4 KiB; lower bits are dropped.
pub fn cmbmsc(base: Option<u64>) -> u64 {
    match base {
        Some(base) => 0b11 | base & !0xFFF,
        None => 0b01,
    }
}

/// Controller Ready Timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crto {
    /// CRWMT: ready, media included.
    pub with_media: Duration,
    /// CRIMT: ready, media perhaps not.
    pub independent_of_media: Duration,
}

impl Crto {
    /// Decodes the register.
    pub fn decode(raw: u32) -> Self {
        Self { with_media: HALF_SECOND * (raw & 0xFFFF), independent_of_media: HALF_SECOND * (raw >> 16) }
    }
}

/// Persistent Memory Region Capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pmrcap {
    /// RDS: commands may bring data there.
    pub read_data: bool,
    /// WDS: commands may take data from there.
    pub write_data: bool,
    /// BIR: the BAR it lies in.
    pub bar: u8,
    /// PMRTO: how long it may take to become ready after it was enabled or disabled.
    pub timeout: Duration,
    /// CMSS: a base address for DMA can be set.
    pub memory_space: bool,
}

impl Pmrcap {
    /// Decodes the register.
    pub fn decode(raw: u32) -> Self {
        let raw = u64::from(raw);
        // PMRTU: 0 is 500 milliseconds, 1 is minutes; 2 and 3 are reserved and taken for the longer one.
        let unit = if raw >> 8 & 3 == 0 { HALF_SECOND } else { Duration::from_secs(60) };
        Self {
            read_data: bit(raw, 3),
            write_data: bit(raw, 4),
            bar: octet(raw, 5) & 7,
            timeout: unit * u32::from(octet(raw, 16)),
            memory_space: bit(raw, 24),
        }
    }
}

#[cfg(test)]
mod tests;
