//! The status field of a completion: what the controller says became of a command, and what follows from it.
//!
//! Names and meanings: Base, "Status Field Definition" with its tables "Generic Command Status Values", "Command Specific
//! Status Values", "Media and Data Integrity Error Values" and "Path Related Status Values"; NVM Command Set, the tables
//! of the same names. A code that no table has survives as its number.

use core::{fmt, time::Duration};

use sw_engine::{ErrorKind, Fault, Retry};

mod names;

/// A status field, phase bit cleared. Success status does not prove that data landed: a refused DMA write may be visible
/// to the IOMMU alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Status(u16);

/// Status code types (SCT).
pub mod sct {
    /// Generic command status.
    pub const GENERIC: u8 = 0;
    /// Command specific status.
    pub const COMMAND: u8 = 1;
    /// Media and data integrity errors.
    pub const MEDIA: u8 = 2;
    /// Path related status.
    pub const PATH: u8 = 3;
    /// Vendor specific.
    pub const VENDOR: u8 = 7;
}

/// What a status is about, as far as the driver acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The command was carried out.
    Success,
    /// It was not, and the same command may work later. `crd` 1 to 3 names CRDT1 to CRDT3 of Identify Controller, 0 none.
    Retryable {
        /// Command Retry Delay, an index.
        crd: u8,
    },
    /// It was not, and the same command fails again.
    NotRetryable,
    /// The medium, or the protection information, of some of the blocks. DNR says whether to try again.
    Media,
    /// The namespace is not there, not attached or not active any more.
    NamespaceGone,
    /// Given up on request: Abort command, queue deleted, preempted. The controller has let go of the memory.
    Aborted,
    /// The way to the namespace (ANA, controller or host side). DNR says whether to try again on this path.
    Path,
}

/// CRDT1 to CRDT3 of Identify Controller: how long to wait before a retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryDelays([Duration; 3]);

impl RetryDelays {
    /// From CRDT1 to CRDT3, in units of 100 milliseconds (Base, "Identify Controller data structure").
    pub fn from_crdt(crdt: [u16; 3]) -> Self {
        Self(crdt.map(|units| Duration::from_millis(100) * u32::from(units)))
    }

    /// The delay that CRD asks for; nothing for index 0.
    pub fn of(&self, crd: u8) -> Duration {
        usize::from(crd).checked_sub(1).and_then(|at| self.0.get(at)).copied().unwrap_or_default()
    }
}

impl Status {
    /// Successful completion.
    pub const SUCCESS: Status = Status(0);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Status = Status::new(sct::GENERIC, 0x01);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Status = Status::new(sct::GENERIC, 0x02);
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Status = Status::new(sct::GENERIC, 0x04);
    /// Internal Error.
    pub const INTERNAL: Status = Status::new(sct::GENERIC, 0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Status = Status::new(sct::GENERIC, 0x07);
    /// Command Aborted due to SQ Deletion.
    pub const ABORTED_SQ_DELETION: Status = Status::new(sct::GENERIC, 0x08);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Status = Status::new(sct::GENERIC, 0x0B);
    /// Command Sequence Error.
    pub const COMMAND_SEQUENCE_ERROR: Status = Status::new(sct::GENERIC, 0x0C);
    /// PRP Offset Invalid.
    pub const INVALID_PRP_OFFSET: Status = Status::new(sct::GENERIC, 0x13);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Status = Status::new(sct::GENERIC, 0x80);
    /// Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Status = Status::new(sct::GENERIC, 0x82);
    /// Completion Queue Invalid.
    pub const INVALID_COMPLETION_QUEUE: Status = Status::new(sct::COMMAND, 0x00);
    /// Invalid Queue Identifier.
    pub const INVALID_QUEUE_ID: Status = Status::new(sct::COMMAND, 0x01);
    /// Invalid Queue Size.
    pub const INVALID_QUEUE_SIZE: Status = Status::new(sct::COMMAND, 0x02);
    /// Abort Command Limit Exceeded.
    pub const ABORT_LIMIT: Status = Status::new(sct::COMMAND, 0x03);
    /// Asynchronous Event Request Limit Exceeded.
    pub const AER_LIMIT: Status = Status::new(sct::COMMAND, 0x05);
    /// Invalid Log Page.
    pub const INVALID_LOG_PAGE: Status = Status::new(sct::COMMAND, 0x09);
    /// Invalid Queue Deletion.
    pub const INVALID_QUEUE_DELETION: Status = Status::new(sct::COMMAND, 0x0C);
    /// Write Fault.
    pub const WRITE_FAULT: Status = Status::new(sct::MEDIA, 0x80);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ: Status = Status::new(sct::MEDIA, 0x81);
    /// Compare Failure.
    pub const COMPARE_FAILURE: Status = Status::new(sct::MEDIA, 0x85);

    /// From a type and a code, other bits clear. `sct` has three bits; more are dropped.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sc as u16) << 1 | ((sct & 7) as u16) << 9)
    }

    /// From bits 31:16 of the entry's last word; the phase bit is dropped.
    #[inline]
    pub const fn from_field(field: u16) -> Self {
        Self(field & !1)
    }

    /// The field as it stands in an entry, phase bit clear.
    pub const fn field(self) -> u16 {
        self.0
    }

    /// The same with Do Not Retry set.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | 1 << 15)
    }

    /// The same with a Command Retry Delay index (0 to 3).
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self(self.0 & !(3 << 12) | ((crd & 3) as u16) << 12)
    }

    /// Whether the command was carried out.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 & 0x0FFE == 0
    }

    /// SCT: the table that [`Status::sc`] belongs to, 0 to 7.
    pub const fn sct(self) -> u8 {
        (self.0 >> 9 & 7) as u8
    }

    /// SC: the code.
    pub const fn sc(self) -> u8 {
        (self.0 >> 1 & 0xFF) as u8
    }

    /// CRD: which retry delay to keep, 0 for none.
    pub const fn crd(self) -> u8 {
        (self.0 >> 12 & 3) as u8
    }

    /// M: the Error Information log page has more.
    pub const fn more(self) -> bool {
        self.0 >> 14 & 1 == 1
    }

    /// DNR: the same command to any controller of the subsystem fails again.
    pub const fn dnr(self) -> bool {
        self.0 >> 15 == 1
    }

    /// SCT and SC in one number, `0x281` for unrecovered read error. What error texts and records carry.
    pub const fn code(self) -> u16 {
        self.0 >> 1 & 0x7FF
    }

    /// What it is about.
    pub fn class(self) -> Class {
        if self.is_success() {
            return Class::Success;
        }
        match (self.sct(), self.sc()) {
            (sct::MEDIA, _) => Class::Media,
            // Commands aborted by the host (71h) stand among the path codes.
            (sct::GENERIC, 0x07 | 0x08 | 0x1B) | (sct::PATH, 0x71) => Class::Aborted,
            (sct::PATH, _) => Class::Path,
            // Namespace Not Attached comes from Namespace Attachment only, but says the same.
            (sct::GENERIC, 0x0B) | (sct::COMMAND, 0x1A) => Class::NamespaceGone,
            _ if self.dnr() => Class::NotRetryable,
            _ => Class::Retryable { crd: self.crd() },
        }
    }

    /// Whether and when to send the same command again: never with DNR, else after the delay that CRD names.
    pub fn retry(self, delays: &RetryDelays) -> Retry {
        if self.is_success() || self.dnr() {
            return Retry::Never;
        }
        match delays.of(self.crd()) {
            Duration::ZERO => Retry::Now,
            delay => Retry::After(delay),
        }
    }

    /// The engine's word for it, `None` for success. The code is [`Status::code`].
    pub fn fault(self, delays: &RetryDelays) -> Option<Fault> {
        if self.is_success() {
            return None;
        }
        let fault = Fault::new(self.kind(), i32::from(self.code())).with_retry(self.retry(delays));
        Some(if self.leaves_untouched() { fault.not_applied() } else { fault })
    }

    /// Whether a command that writes and ended so certainly wrote nothing: it was refused for what it is and where it points, which no event
    /// changes while it is carried out. Every other status may come after some blocks were written: those of descriptors and transfers (found
    /// on the way), of capacity ("the execution of the command has caused the capacity to be exceeded"), of aborts, and those of a state that the
    /// namespace, the controller or its path may have got into meanwhile (detached, protected, reserved, being formatted or sanitized, inaccessible).
    ///
    /// Source: Base 2.1 §4.2.3 "Status Field Definition", tables of generic, command specific and media related values, and NVM Command Set 1.1
    /// §3.2: "Invalid Command Opcode", "Invalid Field in Command", "Atomic Write Unit Exceeded", "LBA Out of Range", "Conflicting
    /// Attributes", "Invalid Protection Information", "Attempted Write to Read Only Range", "Command Size Limit Exceeded".
    fn leaves_untouched(self) -> bool {
        matches!((self.sct(), self.sc()), (sct::GENERIC, 0x01 | 0x02 | 0x14 | 0x80) | (sct::COMMAND, 0x80..=0x83))
    }

    /// Whether a host made it, not a controller (Base 2.1, "Path Related Status Values": 70h to 7Fh, "Host Detected Pathing Errors"). From a target it
    /// is that of a host behind it, of a gateway or a passthrough: the controller at which the command ended did not answer.
    pub const fn is_of_host(self) -> bool {
        self.sct() == sct::PATH && matches!(self.sc(), 0x70..=0x7F)
    }

    fn kind(self) -> ErrorKind {
        match (self.sct(), self.sc()) {
            (sct::GENERIC, 0x01) => ErrorKind::Unsupported,
            // Fields, identifiers, descriptors: the driver and the controller disagree about the protocol.
            (sct::GENERIC, 0x02 | 0x03 | 0x0C..=0x13 | 0x16 | 0x1E | 0x1F) => ErrorKind::Protocol,
            (sct::GENERIC, 0x0B) | (sct::COMMAND, 0x1A) => ErrorKind::NoDevice,
            (sct::GENERIC, 0x14) | (sct::COMMAND, 0x83) => ErrorKind::TooLarge,
            (sct::GENERIC, 0x15 | 0x20 | 0x23) | (sct::MEDIA, 0x86) | (sct::COMMAND, 0x82) => {
                ErrorKind::PermissionDenied
            }
            (sct::GENERIC, 0x1D | 0x24 | 0x82 | 0x84) => ErrorKind::Busy,
            (sct::GENERIC, 0x80) => ErrorKind::OutOfRange,
            (sct::GENERIC, 0x81) | (sct::COMMAND, 0x15 | 0x26) => ErrorKind::NoSpace,
            (sct::GENERIC, 0x83) => ErrorKind::InUse,
            (sct::MEDIA, 0x82..=0x85 | 0x88) => ErrorKind::ChecksumMismatch,
            (sct::COMMAND, 0x00..=0x02 | 0x08 | 0x0C | 0x80 | 0x81) => ErrorKind::Protocol,
            (sct::COMMAND, 0x03 | 0x05) => ErrorKind::ResourceLimit,
            (sct::COMMAND, 0x09 | 0x0D..=0x0F | 0x29 | 0x2A) => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        }
    }

    /// The name of the specification in lower case; `None` for a code that no table has, or a vendor's.
    pub fn name(self) -> Option<&'static str> {
        names::name(self.code())
    }

    /// What an operator can do about it, if something is known.
    pub fn remedy(self) -> Option<&'static str> {
        names::remedy(self.code())
    }
}

impl fmt::Display for Status {
    /// As in `unrecovered read error (sct 2h, sc 81h, dnr)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or(if self.sct() == sct::VENDOR { "vendor specific" } else { "unknown status" });
        write!(f, "{name} (sct {:x}h, sc {:02x}h", self.sct(), self.sc())?;
        if self.crd() != 0 {
            write!(f, ", crd {}", self.crd())?;
        }
        if self.more() {
            f.write_str(", more")?;
        }
        f.write_str(if self.dnr() { ", dnr)" } else { ")" })
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
