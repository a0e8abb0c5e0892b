//! Identify Controller (Base, "Identify Controller data structure") and its NVM command set part (NVM Command Set,
//! "Identify Controller data structure", CNS 06h with CSI 00h).

use core::time::Duration;

use crate::{
    status::RetryDelays,
    wire::{
        IDENTIFY_BYTES, WireError, byte, bytes, ccr::Instance, le16, le32, le64, le128, regs::Version, text::Ascii,
        whole,
    },
};

/// CNTRLTYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// 0: not reported (before 1.4), an I/O controller.
    NotReported,
    /// 1: I/O controller.
    Io,
    /// 2: discovery controller.
    Discovery,
    /// 3: administrative controller; it has no I/O queues.
    Administrative,
    /// A value that no revision defines.
    Other(u8),
}

/// OACS: optional admin commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminAbilities(pub u16);

impl AdminAbilities {
    /// Namespace Management and Attachment.
    pub const fn namespace_management(self) -> bool {
        self.0 >> 3 & 1 != 0
    }

    /// Doorbell Buffer Config: shadow doorbells, which emulated controllers offer.
    pub const fn doorbell_buffers(self) -> bool {
        self.0 >> 8 & 1 != 0
    }
}

/// ONCS: optional commands of the NVM command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmAbilities(pub u16);

impl NvmAbilities {
    /// Compare.
    pub const fn compare(self) -> bool {
        self.0 & 1 != 0
    }

    /// Write Uncorrectable.
    pub const fn write_uncorrectable(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    /// Dataset Management.
    pub const fn dataset_management(self) -> bool {
        self.0 >> 2 & 1 != 0
    }

    /// Write Zeroes.
    pub const fn write_zeroes(self) -> bool {
        self.0 >> 3 & 1 != 0
    }

    /// SEL of Get Features.
    pub const fn feature_select(self) -> bool {
        self.0 >> 4 & 1 != 0
    }

    /// Reservations.
    pub const fn reservations(self) -> bool {
        self.0 >> 5 & 1 != 0
    }

    /// Timestamp feature.
    pub const fn timestamp(self) -> bool {
        self.0 >> 6 & 1 != 0
    }

    /// Verify.
    pub const fn verify(self) -> bool {
        self.0 >> 7 & 1 != 0
    }

    /// Copy.
    pub const fn copy(self) -> bool {
        self.0 >> 8 & 1 != 0
    }
}

/// VWC 2:1: Flush of all namespaces at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushAll {
    /// 00b: not said (before 1.4); do not use it.
    NotSaid,
    /// 10b: refused.
    No,
    /// 11b: NSID FFFFFFFFh flushes all.
    Yes,
}

/// What the driver uses of Identify Controller. Counts are plain, the wire's zero-based values are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyController {
    /// VID: PCI vendor.
    pub vendor: u16,
    /// SSVID: PCI subsystem vendor.
    pub subsystem_vendor: u16,
    /// SN.
    pub serial: Ascii<20>,
    /// MN.
    pub model: Ascii<40>,
    /// FR.
    pub firmware: Ascii<8>,
    /// IEEE OUI, most significant byte first.
    pub ieee_oui: [u8; 3],
    /// CMIC, as it stands: bit 1, the subsystem has several controllers; bit 3, asymmetric namespace access is told.
    pub multi_path: u8,
    /// MDTS, as it stands: a power of two of `CAP.MPSMIN` pages, 0 for no limit. See
    /// [`TransferLimits`](crate::limits::TransferLimits).
    pub mdts: u8,
    /// CNTLID.
    pub controller_id: u16,
    /// VER; 0 before 1.2.
    pub version: Version,
    /// RTD3E: how long a normal shutdown may take; nothing if not reported.
    pub shutdown_limit: Option<Duration>,
    /// OAES: events that can be asked for, bits of [`async_events`](crate::wire::feature::async_events).
    pub async_events: u32,
    /// CTRATT, as it stands.
    pub attributes: u32,
    /// CNTRLTYPE.
    pub kind: ControllerKind,
    /// FGUID, zero if not reported.
    pub fru_guid: [u8; 16],
    /// CRDT1 to CRDT3.
    pub retry_delays: RetryDelays,
    /// CIU: which life of the controller this is; 0 if it does not say. See [`Instance`].
    pub instance_uniquifier: u8,
    /// CIRN: a random number of that life.
    pub instance_random: u64,
    /// OACS.
    pub admin: AdminAbilities,
    /// ACL: Abort commands that may be outstanding, 1 to 256.
    pub aborts_max: u16,
    /// AERL: Asynchronous Event Requests that may be outstanding, 1 to 256.
    pub async_requests_max: u16,
    /// LPA, as it stands: bit 0 SMART per namespace, bit 1 Commands Supported and Effects, bit 2 offsets in log pages.
    pub log_attributes: u8,
    /// ELPE: entries of Error Information, 1 to 256.
    pub error_entries: u16,
    /// NPSS: power states, 1 to 256 as the field says (the specification has 32).
    pub power_states: u16,
    /// AVSCC, as it stands.
    pub vendor_commands: u8,
    /// WCTEMP in kelvins, 0 if not reported.
    pub warning_kelvin: u16,
    /// CCTEMP in kelvins, 0 if not reported.
    pub critical_kelvin: u16,
    /// HMPRE: host memory that it would like, in units of 4 KiB.
    pub host_memory_preferred_4k: u32,
    /// HMMIN: the least that it can use, in units of 4 KiB.
    pub host_memory_min_4k: u32,
    /// TNVMCAP in bytes, 0 if not reported.
    pub capacity_bytes: u128,
    /// UNVMCAP in bytes.
    pub unallocated_bytes: u128,
    /// ANATT: how long the access to a namespace may take to change at most; nothing without asymmetric access.
    pub ana_transition: Option<Duration>,
    /// ANACAP, as it stands: bits 0 to 4, the states that are reported; bit 6, ANAGRPID of an attached namespace stays.
    pub ana_abilities: u8,
    /// ANAGRPMAX: the highest ANAGRPID.
    pub ana_group_max: u32,
    /// NANAGRPID: how many groups there may be.
    pub ana_groups: u32,
    /// KAS: granularity of the keep-alive timer; nothing if there is none.
    pub keep_alive_unit: Option<Duration>,
    /// MAXCMD: commands that it likes outstanding in one queue; 0 if not reported.
    pub commands_max: u16,
    /// NN: the highest NSID.
    pub namespaces: u32,
    /// ONCS.
    pub nvm: NvmAbilities,
    /// FUSES, as it stands: bit 0, compare and write.
    pub fused: u16,
    /// FNA, as it stands.
    pub format_attributes: u8,
    /// VWC bit 0: there is a volatile write cache, so that a write needs a flush or FUA to last.
    pub volatile_write_cache: bool,
    /// VWC 2:1.
    pub flush_all: FlushAll,
    /// AWUN in logical blocks, 1 to 65,536.
    pub atomic_write_blocks: u32,
    /// AWUPF in logical blocks, 1 to 65,536.
    pub atomic_write_power_fail_blocks: u32,
    /// SGLS, as it stands; see [`SglSupport`](crate::sgl::SglSupport).
    pub sgls: u32,
    /// MNAN: namespaces of the subsystem at most; 0 where NN says it.
    pub namespaces_max: u32,
    /// SUBNQN; empty before 1.2.1.
    pub subsystem_nqn: Ascii<256>,
    /// CCRL: resets of other controllers that it has under way at a time; 0: it takes no Cross-Controller Reset.
    pub resets_max: u8,
}

impl IdentifyController {
    /// Decodes CNS 01h.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes; queue entries of a size other than 64 and 16 bytes required (SQES, CQES).
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Identify Controller", raw, IDENTIFY_BYTES)?;
        entry_size("SQES", byte(raw, 512), 6, "the driver's submission entries have 2^6 bytes")?;
        entry_size("CQES", byte(raw, 513), 4, "the driver's completion entries have 2^4 bytes")?;
        let oui: [u8; 3] = bytes(raw, 73);
        let (rtd3e, kas, vwc) = (le32(raw, 88), le16(raw, 320), byte(raw, 525));
        let anatt = byte(raw, 342);
        let counted = |at: usize| u16::from(byte(raw, at)) + 1;
        Ok(Self {
            vendor: le16(raw, 0),
            subsystem_vendor: le16(raw, 2),
            serial: Ascii::new(bytes(raw, 4)),
            model: Ascii::new(bytes(raw, 24)),
            firmware: Ascii::new(bytes(raw, 64)),
            ieee_oui: [oui[2], oui[1], oui[0]],
            multi_path: byte(raw, 76),
            mdts: byte(raw, 77),
            controller_id: le16(raw, 78),
            version: Version(le32(raw, 80)),
            shutdown_limit: (rtd3e != 0).then(|| Duration::from_micros(rtd3e.into())),
            async_events: le32(raw, 92),
            attributes: le32(raw, 96),
            kind: kind(byte(raw, 111)),
            fru_guid: bytes(raw, 112),
            retry_delays: RetryDelays::from_crdt([le16(raw, 128), le16(raw, 130), le16(raw, 132)]),
            instance_uniquifier: byte(raw, 135),
            instance_random: le64(raw, 136),
            admin: AdminAbilities(le16(raw, 256)),
            aborts_max: counted(258),
            async_requests_max: counted(259),
            log_attributes: byte(raw, 261),
            error_entries: counted(262),
            power_states: counted(263),
            vendor_commands: byte(raw, 264),
            warning_kelvin: le16(raw, 266),
            critical_kelvin: le16(raw, 268),
            host_memory_preferred_4k: le32(raw, 272),
            host_memory_min_4k: le32(raw, 276),
            capacity_bytes: le128(raw, 280),
            unallocated_bytes: le128(raw, 296),
            ana_transition: (anatt != 0).then(|| Duration::from_secs(anatt.into())),
            ana_abilities: byte(raw, 343),
            ana_group_max: le32(raw, 344),
            ana_groups: le32(raw, 348),
            keep_alive_unit: (kas != 0).then(|| Duration::from_millis(100) * u32::from(kas)),
            commands_max: le16(raw, 514),
            namespaces: le32(raw, 516),
            nvm: NvmAbilities(le16(raw, 520)),
            fused: le16(raw, 522),
            format_attributes: byte(raw, 524),
            volatile_write_cache: vwc & 1 != 0,
            flush_all: match vwc >> 1 & 3 {
                2 => FlushAll::No,
                3 => FlushAll::Yes,
                _ => FlushAll::NotSaid,
            },
            atomic_write_blocks: u32::from(le16(raw, 526)) + 1,
            atomic_write_power_fail_blocks: u32::from(le16(raw, 528)) + 1,
            sgls: le32(raw, 536),
            namespaces_max: le32(raw, 540),
            subsystem_nqn: Ascii::new(bytes(raw, 768)),
            resets_max: byte(raw, 1807),
        })
    }

    /// CMIC bit 3: whether the controller tells how its namespaces are reached (asymmetric namespace access).
    pub const fn tells_access(&self) -> bool {
        self.multi_path >> 3 & 1 != 0
    }

    /// This life of the controller, if it can be named for others to reset it.
    pub fn instance(&self) -> Option<Instance> {
        let (uniquifier, random) = (self.instance_uniquifier, self.instance_random);
        (uniquifier != 0).then_some(Instance { controller: self.controller_id, uniquifier, random })
    }

    /// CTRATT bit 0: Host Identifier may have 128 bits.
    pub const fn host_id_128(&self) -> bool {
        self.attributes & 1 != 0
    }

    /// CTRATT bit 15, ELBAS: more block formats and protection formats exist; CNS 05h tells of them.
    pub const fn extended_formats(&self) -> bool {
        self.attributes >> 15 & 1 != 0
    }

    /// CTRATT bit 16, MEM: MDTS and the size limits do not count metadata that lies between the blocks.
    pub const fn mdts_excludes_metadata(&self) -> bool {
        self.attributes >> 16 & 1 != 0
    }

    /// LPA bit 1: there is Commands Supported and Effects.
    pub const fn has_command_effects(&self) -> bool {
        self.log_attributes >> 1 & 1 != 0
    }

    /// LPA bit 2: log pages can be read from an offset.
    pub const fn has_log_offsets(&self) -> bool {
        self.log_attributes >> 2 & 1 != 0
    }
}

fn entry_size(field: &'static str, value: u8, ours_log2: u8, rule: &'static str) -> Result<(), WireError> {
    let (required, max) = (value & 0xF, value >> 4);
    if required > ours_log2 || max < ours_log2 {
        return Err(WireError::Field { field, got: value.into(), rule });
    }
    Ok(())
}

fn kind(value: u8) -> ControllerKind {
    match value {
        0 => ControllerKind::NotReported,
        1 => ControllerKind::Io,
        2 => ControllerKind::Discovery,
        3 => ControllerKind::Administrative,
        other => ControllerKind::Other(other),
    }
}

/// Limits of single commands of the NVM command set (CNS 06h, CSI 00h). All zero where the controller does not say. Powers
/// of two of pages become bytes through [`mdts_bytes`](crate::limits::mdts_bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmLimits {
    /// VSL: Verify, as a power of two of `CAP.MPSMIN` pages of data; 0 for no limit.
    pub verify_log2: u8,
    /// WZSL: Write Zeroes, likewise.
    pub write_zeroes_log2: u8,
    /// WUSL: Write Uncorrectable, likewise.
    pub write_uncorrectable_log2: u8,
    /// DMRL: ranges of one Dataset Management; 0 for no limit below 256.
    pub dsm_ranges: u8,
    /// DMRSL: blocks of one range; 0 for no limit.
    pub dsm_range_blocks: u32,
    /// DMSL: blocks of all ranges of one command; 0 for no limit.
    pub dsm_blocks: u64,
}

impl NvmLimits {
    /// Decodes the structure.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Identify Controller, NVM command set", raw, IDENTIFY_BYTES)?;
        Ok(Self {
            verify_log2: byte(raw, 0),
            write_zeroes_log2: byte(raw, 1),
            write_uncorrectable_log2: byte(raw, 2),
            dsm_ranges: byte(raw, 3),
            dsm_range_blocks: le32(raw, 4),
            dsm_blocks: le64(raw, 8),
        })
    }
}
