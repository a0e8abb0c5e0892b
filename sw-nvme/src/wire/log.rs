//! Log pages and asynchronous events (Base, "Get Log Page command", "Asynchronous Event Request command").

use super::{NSID_ALL, WireError, le16, le32, le64, le128, whole};

/// Log page identifiers.
pub mod id {
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed Namespace List (2.1: Changed Attached Namespace List).
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Asymmetric Namespace Access.
    pub const ANA: u8 = 0x0C;
    /// Cross-Controller Reset.
    pub const CROSS_CONTROLLER_RESET: u8 = 0x1E;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
}

/// Whether reading a log page answers the asynchronous event about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// RAE 0: the event may come again from now on.
    Clear,
    /// RAE 1: the event stays as it is.
    Keep,
}

/// A log page to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPage {
    /// Error Information, newest first.
    Errors(Retain),
    /// SMART / Health of the whole controller.
    Smart(Retain),
    /// Firmware slots.
    Firmware,
    /// Namespaces that changed since this page was last read.
    ChangedNamespaces(Retain),
    /// Commands and effects of the NVM command set.
    CommandEffects,
    /// How groups of namespaces are reached by this controller, with the namespaces of each; see [`crate::wire::ana`].
    Access(Retain),
    /// What became of the resets of other controllers that this one was asked for; see [`crate::wire::ccr`].
    Resets,
    /// What a discovery service knows; see [`crate::discovery`].
    Discovery,
}

impl LogPage {
    pub(crate) const fn id(self) -> u8 {
        match self {
            Self::Errors(_) => id::ERROR,
            Self::Smart(_) => id::SMART,
            Self::Firmware => id::FIRMWARE,
            Self::ChangedNamespaces(_) => id::CHANGED_NAMESPACES,
            Self::CommandEffects => id::COMMAND_EFFECTS,
            Self::Access(_) => id::ANA,
            Self::Resets => id::CROSS_CONTROLLER_RESET,
            Self::Discovery => id::DISCOVERY,
        }
    }

    pub(crate) const fn retain(self) -> bool {
        match self {
            Self::Errors(retain) | Self::Smart(retain) | Self::ChangedNamespaces(retain) | Self::Access(retain) => {
                matches!(retain, Retain::Keep)
            }
            Self::Firmware | Self::CommandEffects | Self::Resets | Self::Discovery => false,
        }
    }

    /// All these pages are about the controller: FFFFFFFFh where the page may also be about one namespace.
    pub(crate) const fn nsid(self) -> u32 {
        match self {
            Self::Smart(_) | Self::Errors(_) | Self::Firmware | Self::ChangedNamespaces(_) => NSID_ALL,
            Self::CommandEffects | Self::Access(_) | Self::Resets | Self::Discovery => 0,
        }
    }

    /// Bytes of the whole page; of one entry for Error Information and for Discovery; of Asymmetric Namespace Access the start,
    /// see [`ana::page_bytes`](super::ana::page_bytes).
    pub const fn len_bytes(self) -> u32 {
        match self {
            Self::Errors(_) => 64,
            Self::Smart(_) | Self::Firmware => 512,
            Self::ChangedNamespaces(_) | Self::CommandEffects | Self::Access(_) | Self::Resets => 4096,
            Self::Discovery => 1024,
        }
    }
}

/// Dword 0 of the completion of an Asynchronous Event Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: EventKind,
    /// The log page that has more; reading it with [`Retain::Clear`] lets the event come again. 0 for none.
    pub log_page: u8,
}

/// What an asynchronous event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// Error: a doorbell of a queue that is not there was written.
    InvalidDoorbell,
    /// Error: a doorbell got a value outside its queue.
    InvalidDoorbellValue,
    /// Error: diagnostic failure.
    DiagnosticFailure,
    /// Error: persistent internal error.
    PersistentInternal,
    /// Error: transient internal error.
    TransientInternal,
    /// Error: firmware image load error.
    FirmwareLoad,
    /// SMART / Health: reliability.
    Reliability,
    /// SMART / Health: a temperature threshold.
    Temperature,
    /// SMART / Health: spare below its threshold.
    Spare,
    /// Notice: namespaces were added, removed or changed.
    NamespaceAttribute,
    /// Notice: firmware activation starts; commands may take long.
    FirmwareActivation,
    /// Notice: asymmetric namespace access changed.
    AnaChange,
    /// Notice: a reset of another controller is over.
    ResetCompleted,
    /// Another one, with its type and information.
    Other {
        /// Asynchronous Event Type.
        kind: u8,
        /// Asynchronous Event Information.
        info: u8,
    },
}

impl AsyncEvent {
    /// The page that answers it, so that it can come again; none for one that is a vendor's or nobody asked for.
    pub const fn page(self) -> Option<LogPage> {
        match self.log_page {
            id::ERROR => Some(LogPage::Errors(Retain::Clear)),
            id::SMART => Some(LogPage::Smart(Retain::Clear)),
            id::FIRMWARE => Some(LogPage::Firmware),
            id::CHANGED_NAMESPACES => Some(LogPage::ChangedNamespaces(Retain::Clear)),
            id::ANA => Some(LogPage::Access(Retain::Clear)),
            id::CROSS_CONTROLLER_RESET => Some(LogPage::Resets),
            _ => None,
        }
    }

    /// Decodes the dword: type 2:0, information 15:8, log page 23:16.
    pub const fn decode(dw0: u32) -> Self {
        let (kind, info) = ((dw0 & 7) as u8, (dw0 >> 8 & 0xFF) as u8);
        let kind = match (kind, info) {
            (0, 0) => EventKind::InvalidDoorbell,
            (0, 1) => EventKind::InvalidDoorbellValue,
            (0, 2) => EventKind::DiagnosticFailure,
            (0, 3) => EventKind::PersistentInternal,
            (0, 4) => EventKind::TransientInternal,
            (0, 5) => EventKind::FirmwareLoad,
            (1, 0) => EventKind::Reliability,
            (1, 1) => EventKind::Temperature,
            (1, 2) => EventKind::Spare,
            (2, 0) => EventKind::NamespaceAttribute,
            (2, 1) => EventKind::FirmwareActivation,
            (2, 3) => EventKind::AnaChange,
            (2, 0xF4) => EventKind::ResetCompleted,
            (kind, info) => EventKind::Other { kind, info },
        };
        Self { kind, log_page: (dw0 >> 16 & 0xFF) as u8 }
    }
}

/// One entry of Error Information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Which error of the controller's life it is; not 0.
    pub error_count: u64,
    /// SQID of the command.
    pub sq_id: u16,
    /// CID of the command.
    pub cid: u16,
    /// The status that was reported.
    pub status: crate::status::Status,
    /// The bit and byte of the command that was wrong; `None` if the error is not about one (FFFFh).
    pub location: Option<ErrorLocation>,
    /// The first block.
    pub lba: u64,
    /// NSID.
    pub nsid: u32,
}

/// Parameter Error Location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorLocation {
    /// Byte of the submission queue entry.
    pub byte: u8,
    /// Bit of that byte, 0 to 7.
    pub bit: u8,
}

/// Bytes of one entry of Error Information.
pub const ERROR_ENTRY_BYTES: usize = 64;

impl ErrorEntry {
    /// Decodes one entry; `Ok(None)` for an unused one (error count 0).
    ///
    /// # Errors
    /// Fewer than 64 bytes.
    pub fn decode(raw: &[u8]) -> Result<Option<Self>, WireError> {
        whole("Error Information entry", raw, ERROR_ENTRY_BYTES)?;
        let error_count = le64(raw, 0);
        if error_count == 0 {
            return Ok(None);
        }
        let place = le16(raw, 14);
        let location =
            (place != 0xFFFF).then_some(ErrorLocation { byte: (place & 0xFF) as u8, bit: (place >> 8 & 7) as u8 });
        Ok(Some(Self {
            error_count,
            sq_id: le16(raw, 8),
            cid: le16(raw, 10),
            // Bit 0 is the phase, as in an entry of a completion queue.
            status: crate::status::Status::from_field(le16(raw, 12)),
            location,
            lba: le64(raw, 16),
            nsid: le32(raw, 24),
        }))
    }
}

/// Bits of the critical warning of SMART / Health.
pub mod critical {
    /// Spare capacity below its threshold.
    pub const SPARE: u8 = 1;
    /// Temperature outside its thresholds.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// Reliability degraded by media or internal errors.
    pub const RELIABILITY: u8 = 1 << 2;
    /// The medium is read only.
    pub const READ_ONLY: u8 = 1 << 3;
    /// The backup of volatile memory failed.
    pub const BACKUP: u8 = 1 << 4;
    /// The persistent memory region is unreliable or read only.
    pub const PMR: u8 = 1 << 5;
}

/// SMART / Health Information. 128-bit counters are kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smart {
    /// Bits of [`critical`].
    pub critical_warning: u8,
    /// Composite temperature in kelvins, 0 if not reported.
    pub temperature_kelvin: u16,
    /// Available spare, percent.
    pub spare_percent: u8,
    /// The threshold for it, percent.
    pub spare_threshold_percent: u8,
    /// Percentage of its life used; may pass 100, 255 means 255 or more.
    pub used_percent: u8,
    /// Data units read, in 1,000 units of 512 bytes.
    pub data_units_read: u128,
    /// Data units written, likewise.
    pub data_units_written: u128,
    /// Read and compare commands.
    pub read_commands: u128,
    /// Write commands.
    pub write_commands: u128,
    /// Minutes that the controller was busy.
    pub busy_minutes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours under power.
    pub power_on_hours: u128,
    /// Shutdowns that were not announced.
    pub unsafe_shutdowns: u128,
    /// Unrecovered data integrity errors.
    pub media_errors: u128,
    /// Entries of Error Information over the controller's life.
    pub error_log_entries: u128,
    /// Minutes above the warning temperature.
    pub warning_temperature_minutes: u32,
    /// Minutes above the critical temperature.
    pub critical_temperature_minutes: u32,
}

/// Bytes of SMART / Health Information.
pub const SMART_BYTES: usize = 512;

impl Smart {
    /// Decodes the page.
    ///
    /// # Errors
    /// Fewer than 512 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("SMART / Health Information", raw, SMART_BYTES)?;
        Ok(Self {
            critical_warning: super::byte(raw, 0),
            temperature_kelvin: le16(raw, 1),
            spare_percent: super::byte(raw, 3),
            spare_threshold_percent: super::byte(raw, 4),
            used_percent: super::byte(raw, 5),
            data_units_read: le128(raw, 32),
            data_units_written: le128(raw, 48),
            read_commands: le128(raw, 64),
            write_commands: le128(raw, 80),
            busy_minutes: le128(raw, 96),
            power_cycles: le128(raw, 112),
            power_on_hours: le128(raw, 128),
            unsafe_shutdowns: le128(raw, 144),
            media_errors: le128(raw, 160),
            error_log_entries: le128(raw, 176),
            warning_temperature_minutes: le32(raw, 192),
            critical_temperature_minutes: le32(raw, 196),
        })
    }
}

/// Firmware Slot Information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// AFI 2:0: the slot of the running image, 1 to 7.
    pub active_slot: u8,
    /// AFI 6:4: the slot that the next reset starts, 0 if none was chosen.
    pub next_slot: u8,
    /// FRS1 to FRS7; an empty text is an empty slot.
    pub revisions: [super::text::Ascii<8>; 7],
}

impl Firmware {
    /// Decodes the page.
    ///
    /// # Errors
    /// Fewer than 512 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Firmware Slot Information", raw, 512)?;
        let afi = super::byte(raw, 0);
        let revisions = core::array::from_fn(|slot| super::text::Ascii::new(super::bytes(raw, 8 + 8 * slot)));
        Ok(Self { active_slot: afi & 7, next_slot: afi >> 4 & 7, revisions })
    }
}

/// Changed Namespace List.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangedNamespaces {
    /// These changed; ascending.
    Listed(Vec<u32>),
    /// More than 1,024 changed: look at all.
    TooMany,
}

impl ChangedNamespaces {
    /// Decodes the page.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes; identifiers that do not ascend.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Changed Namespace List", raw, 4096)?;
        if le32(raw, 0) == NSID_ALL {
            return Ok(Self::TooMany);
        }
        Ok(Self::Listed(super::identify::namespace_list("Changed Namespace List", raw, 0)?))
    }
}

/// What a command does besides its work: one dword of Commands Supported and Effects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Effects(pub u32);

impl Effects {
    /// CSUPP: the controller takes the command.
    pub const fn supported(self) -> bool {
        self.0 & 1 != 0
    }

    /// LBCC: it may change logical blocks.
    pub const fn changes_blocks(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    /// NCC: it may change a namespace's abilities.
    pub const fn changes_namespace(self) -> bool {
        self.0 >> 2 & 1 != 0
    }

    /// NIC: it may change the set of namespaces.
    pub const fn changes_inventory(self) -> bool {
        self.0 >> 3 & 1 != 0
    }

    /// CCC: it may change the controller's abilities.
    pub const fn changes_controller(self) -> bool {
        self.0 >> 4 & 1 != 0
    }
}

impl core::fmt::Debug for Effects {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Effects({:#010x})", self.0)
    }
}

/// Commands Supported and Effects.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandEffects {
    raw: Box<[u8]>,
}

impl CommandEffects {
    /// Takes a copy of the page.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Commands Supported and Effects", raw, 4096)?;
        Ok(Self { raw: raw[..2048].into() })
    }

    /// Of admin command `opcode`.
    pub fn admin(&self, opcode: u8) -> Effects {
        Effects(le32(&self.raw, 4 * usize::from(opcode)))
    }

    /// Of I/O command `opcode`.
    pub fn io(&self, opcode: u8) -> Effects {
        Effects(le32(&self.raw, 1024 + 4 * usize::from(opcode)))
    }
}

impl core::fmt::Debug for CommandEffects {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let supported = |of: &dyn Fn(u8) -> Effects| (0..=u8::MAX).filter(|&opcode| of(opcode).supported()).count();
        let (admin, io) = (supported(&|opcode| self.admin(opcode)), supported(&|opcode| self.io(opcode)));
        write!(f, "CommandEffects({admin} admin and {io} i/o commands supported)")
    }
}

#[cfg(test)]
mod tests;
