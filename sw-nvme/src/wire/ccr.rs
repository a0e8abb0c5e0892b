//! Cross-Controller Reset: one controller of a subsystem is asked to reset another one, which its host does not reach any more.
//!
//! Base 2.3, 5.4.3 "Cross-Controller Reset command", and the log page 1Eh of that name, which NVMe TP 8028 "Rapid Path Failure Recovery"
//! brought. The text of neither was at hand: layouts and numbers are those of Linux's series of 2026 by TP 8028's implementer
//! (`include/linux/nvme.h`, `drivers/nvme/target/admin-cmd.c`, linux-nvme) and of libnvme (`nvme_init_cross_ctrl_reset`), which agree.
//!
//! A controller has an instance for each of its lives: its CNTLID, a number that counts them (CIU, never 0) and a random one (CIRN). The
//! command names all three; an entry of the log page names no CIRN.

use super::{Command, WireError, admin, byte, le16, le64, whole};
use crate::status::{Status, sct};

/// Bytes of the header of the log page, and of an entry.
pub const HEADER_BYTES: usize = 8;
/// See above.
pub const ENTRY_BYTES: usize = 8;
/// Entries of the log page at most: it has 4,096 bytes.
pub const ENTRIES_MAX: usize = 511;
/// Bytes of the whole log page.
pub const LOG_BYTES: usize = HEADER_BYTES + ENTRY_BYTES * ENTRIES_MAX;

/// Bit 0 of dword 0 of the completion: the controller was reset before the command ended.
const IMMEDIATE: u32 = 1;

/// Cross-Controller Reset in Progress: of this controller, asked for before.
pub const IN_PROGRESS: Status = Status::new(sct::COMMAND, 0x3F);
/// Cross-Controller Reset Log Page Full.
pub const LOG_FULL: Status = Status::new(sct::COMMAND, 0x40);
/// Cross-Controller Reset Limit Exceeded.
pub const LIMIT: Status = Status::new(sct::COMMAND, 0x41);

/// One life of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    /// CNTLID; ICID of the command.
    pub controller: u16,
    /// CIU.
    pub uniquifier: u8,
    /// CIRN.
    pub random: u64,
}

impl Instance {
    /// What a command names.
    pub fn of(command: &Command) -> Self {
        let raw = command.bytes();
        Self { controller: le16(raw, 40), uniquifier: byte(raw, 42), random: le64(raw, 48) }
    }
}

/// What a command that succeeded says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The controller was reset, or that life of it was over before: Immediate Reset Successful.
    Done,
    /// It is being reset, and the log page tells how it goes. Nothing is proven.
    Accepted,
}

impl Told {
    /// From dword 0 of a completion with success.
    pub const fn decode(dw0: u32) -> Self {
        if dw0 & IMMEDIATE != 0 { Self::Done } else { Self::Accepted }
    }

    /// For that dword.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Done => IMMEDIATE,
            Self::Accepted => 0,
        }
    }
}

/// CCRS: how a reset goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// 0: it is not over.
    Under,
    /// 1: the controller was reset.
    Succeeded,
    /// 2: it was not.
    Failed,
    /// A value that no table has: nothing is known.
    Other(u8),
}

impl Progress {
    const fn decode(value: u8) -> Self {
        match value {
            0 => Self::Under,
            1 => Self::Succeeded,
            2 => Self::Failed,
            other => Self::Other(other),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Under => 0,
            Self::Succeeded => 1,
            Self::Failed => 2,
            Self::Other(value) => value,
        }
    }
}

/// An entry of the log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// ICID: CNTLID of the controller that is reset.
    pub controller: u16,
    /// CIU of it.
    pub uniquifier: u8,
    /// ACID, as it stands.
    pub alternate: u16,
    /// CCRS.
    pub progress: Progress,
    /// CCRF, as it stands: bit 0, the request was found valid; bit 1, the reset was begun.
    pub flags: u8,
}

impl Entry {
    fn decode(raw: &[u8]) -> Self {
        let (controller, uniquifier, alternate) = (le16(raw, 0), byte(raw, 2), le16(raw, 4));
        Self { controller, uniquifier, alternate, progress: Progress::decode(byte(raw, 6)), flags: byte(raw, 7) }
    }

    fn encode(self) -> [u8; ENTRY_BYTES] {
        let ([c0, c1], [a0, a1]) = (self.controller.to_le_bytes(), self.alternate.to_le_bytes());
        [c0, c1, self.uniquifier, 0, a0, a1, self.progress.bits(), self.flags]
    }
}

/// The log page: what became of the resets that its controller was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log(pub Vec<Entry>);

impl Log {
    /// Decodes the page from its start, as far as it is there: entries that are cut off, or past [`ENTRIES_MAX`], are not told of.
    ///
    /// # Errors
    /// Fewer than 8 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Cross-Controller Reset", raw, HEADER_BYTES)?;
        let count = usize::from(le16(raw, 0)).min(ENTRIES_MAX);
        let entries = raw.get(HEADER_BYTES..).unwrap_or_default().chunks_exact(ENTRY_BYTES);
        Ok(Self(entries.take(count).map(Entry::decode).collect()))
    }

    /// The page; entries past [`ENTRIES_MAX`] are left out.
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.0.len().min(ENTRIES_MAX)).unwrap_or(0);
        let mut page = vec![0; HEADER_BYTES];
        page.splice(..2, count.to_le_bytes());
        self.0.iter().take(ENTRIES_MAX).for_each(|entry| page.extend(entry.encode()));
        page.resize(LOG_BYTES, 0);
        page
    }
}

impl Command {
    /// Cross-Controller Reset of that life of another controller of the subsystem.
    pub fn cross_controller_reset(of: Instance) -> Self {
        let (low, high) = super::halves(of.random);
        let c10 = u32::from(of.controller) | u32::from(of.uniquifier) << 16;
        admin::without_data(admin::opcode::CROSS_CONTROLLER_RESET, [c10, 0, low, high, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Instance = Instance { controller: 0x1234, uniquifier: 0x56, random: 0x1122_3344_5566_7788 };

    #[test]
    fn the_command_is_as_linux_lays_it_out() {
        let command = Command::cross_controller_reset(OF).with_cid(7);
        let raw = command.bytes();
        // `struct nvme_cross_ctrl_reset_cmd`: icid at 40, ciu at 42, cirn at 48.
        assert_eq!((raw[0], raw[2]), (0x38, 7));
        assert_eq!(raw[40..56], [0x34, 0x12, 0x56, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert!(raw[4..40].iter().chain(&raw[56..]).all(|byte| *byte == 0));
        assert_eq!(Instance::of(&command), OF);
    }

    #[test]
    fn only_bit_0_says_that_the_reset_is_done() {
        assert_eq!([0, 1, 2, 3, !1].map(Told::decode), {
            use Told::{Accepted, Done};
            [Accepted, Done, Accepted, Done, Accepted]
        });
        assert_eq!([Told::Done, Told::Accepted].map(Told::bits), [1, 0]);
    }

    #[test]
    fn the_log_page_is_as_linux_lays_it_out_and_comes_back() {
        // `struct nvme_ccr_log`: ne at 0, entries from 8: icid, ciu, acid at 4, ccrs at 6, ccrf at 7.
        let mut raw = vec![0; LOG_BYTES];
        raw[0] = 2;
        raw[8..24].copy_from_slice(&[0x34, 0x12, 0x56, 0, 0xFF, 0xFF, 1, 3, 9, 0, 1, 0, 5, 0, 2, 1]);
        let entry = |controller, uniquifier, alternate, progress, flags| Entry {
            controller,
            uniquifier,
            alternate,
            progress,
            flags,
        };
        let log = Log(vec![entry(0x1234, 0x56, 0xFFFF, Progress::Succeeded, 3), entry(9, 1, 5, Progress::Failed, 1)]);
        assert_eq!((LOG_BYTES, Log::decode(&raw).as_ref()), (4096, Ok(&log)));
        assert_eq!(log.encode(), raw);
        raw[14] = 0;
        assert_eq!(Log::decode(&raw).unwrap().0[0].progress, Progress::Under);
        raw[14] = 3;
        assert_eq!(Log::decode(&raw).unwrap().0[0].progress, Progress::Other(3));
    }

    #[test]
    fn a_log_page_that_is_cut_or_counts_too_many_tells_what_is_there() {
        let mut raw = vec![0; LOG_BYTES];
        raw[..2].fill(0xFF);
        assert_eq!(Log::decode(&raw).unwrap().0.len(), ENTRIES_MAX);
        assert_eq!(Log::decode(&raw[..HEADER_BYTES + 2 * ENTRY_BYTES + 7]).unwrap().0.len(), 2);
        assert_eq!(Log::decode(&raw[..HEADER_BYTES]), Ok(Log::default()));
        assert!(Log::decode(&raw[..HEADER_BYTES - 1]).is_err());
        let many = Log(vec![Log::decode(&raw).unwrap().0[0]; ENTRIES_MAX + 1]);
        assert_eq!((many.encode().len(), Log::decode(&many.encode()).unwrap().0.len()), (LOG_BYTES, ENTRIES_MAX));
    }
}
