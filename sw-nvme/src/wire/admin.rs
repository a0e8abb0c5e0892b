//! Admin commands that the driver uses.
//!
//! Opcodes and dwords: Base, "Admin Command Set", and PCIe Transport for queue creation. Every builder gives a whole
//! [`Command`] with CID 0; the queue sets it.

use super::{
    Command, DataPointer,
    command::word,
    feature::{Feature, Select},
    log::LogPage,
};

/// Opcodes of admin commands.
pub mod opcode {
    /// Delete I/O Submission Queue.
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Cross-Controller Reset; see [`ccr`](super::super::ccr).
    pub const CROSS_CONTROLLER_RESET: u8 = 0x38;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;
}

/// CSI: an I/O command set (Base, "I/O Command Set Identifier").
pub mod csi {
    /// NVM.
    pub const NVM: u8 = 0x00;
    /// Key value.
    pub const KEY_VALUE: u8 = 0x01;
    /// Zoned namespaces.
    pub const ZONED: u8 = 0x02;
}

/// What Identify shall give: CNS with the fields that belong to it. Every answer has 4,096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identify {
    /// CNS 00h: Identify Namespace of the NVM command set.
    Namespace {
        /// NSID.
        nsid: u32,
    },
    /// CNS 01h: Identify Controller.
    Controller,
    /// CNS 02h: active namespaces with an NSID above `after`.
    ActiveNamespaces {
        /// NSID in front of the first one; 0 for all.
        after: u32,
    },
    /// CNS 03h: Namespace Identification Descriptors.
    NamespaceDescriptors {
        /// NSID.
        nsid: u32,
    },
    /// CNS 05h: I/O command set specific Identify Namespace.
    CommandSetNamespace {
        /// NSID.
        nsid: u32,
        /// See [`csi`].
        csi: u8,
    },
    /// CNS 06h: I/O command set specific Identify Controller.
    CommandSetController {
        /// See [`csi`].
        csi: u8,
    },
    /// CNS 07h: active namespaces of one I/O command set with an NSID above `after`.
    CommandSetNamespaces {
        /// NSID in front of the first one; 0 for all.
        after: u32,
        /// See [`csi`].
        csi: u8,
    },
    /// CNS 08h: I/O command set independent Identify Namespace.
    IndependentNamespace {
        /// NSID.
        nsid: u32,
    },
    /// CNS 12h: controllers that `nsid` is attached to, from identifier `from` on.
    NamespaceControllers {
        /// NSID.
        nsid: u32,
        /// The lowest CNTLID of interest.
        from: u16,
    },
    /// CNS 13h: controllers of the subsystem, from identifier `from` on.
    Controllers {
        /// The lowest CNTLID of interest.
        from: u16,
    },
    /// CNS 1Ch: combinations of I/O command sets, for the I/O Command Set Profile feature.
    CommandSets,
}

impl Identify {
    /// NSID, dword 10 (CNTID and CNS), dword 11 (CSI in its top byte).
    fn fields(self) -> (u32, u32, u32) {
        let csi_at = |csi: u8| u32::from(csi) << 24;
        match self {
            Self::Namespace { nsid } => (nsid, 0x00, 0),
            Self::Controller => (0, 0x01, 0),
            Self::ActiveNamespaces { after } => (after, 0x02, 0),
            Self::NamespaceDescriptors { nsid } => (nsid, 0x03, 0),
            Self::CommandSetNamespace { nsid, csi } => (nsid, 0x05, csi_at(csi)),
            Self::CommandSetController { csi } => (0, 0x06, csi_at(csi)),
            Self::CommandSetNamespaces { after, csi } => (after, 0x07, csi_at(csi)),
            Self::IndependentNamespace { nsid } => (nsid, 0x08, 0),
            Self::NamespaceControllers { nsid, from } => (nsid, 0x12 | u32::from(from) << 16, 0),
            Self::Controllers { from } => (0, 0x13 | u32::from(from) << 16, 0),
            // CNTID FFFFh is the controller that processes the command.
            Self::CommandSets => (0, 0x1C | 0xFFFF << 16, 0),
        }
    }
}

/// Whether a completion queue raises an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CqInterrupt {
    /// IEN 0: the queue is polled.
    Polled,
    /// IEN 1 with this vector (IV).
    Vector(u16),
}

/// A queue to create. It is physically contiguous (PC 1): under an IOMMU one contiguous address range is that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueShape {
    /// QID, 1 and up.
    pub qid: u16,
    /// Entries, 2 to `CAP.MQES`.
    pub entries: u32,
    /// Address of the first entry, a multiple of the memory page size.
    pub iova: sw_mem::Iova,
}

impl QueueShape {
    /// Dword 10: QSIZE, which counts from zero, and QID. `None` for a number of entries that the wire cannot name.
    fn dword10(self) -> Option<u32> {
        let size_z = u16::try_from(self.entries.checked_sub(1)?).ok().filter(|&size_z| size_z > 0)?;
        Some(u32::from(size_z) << 16 | u32::from(self.qid))
    }
}

fn admin(opcode: u8, nsid: u32, data: DataPointer, dwords: [u32; 6]) -> Command {
    let [c10, c11, c12, c13, c14, c15] = dwords;
    let (prp1, prp2, psdt) = data.words();
    let head = word(opcode.into(), nsid) | psdt;
    Command::from_words([head, 0, 0, prp1, prp2, word(c10, c11), word(c12, c13), word(c14, c15)])
}

/// A command of the whole controller that moves no data.
pub(super) fn without_data(opcode: u8, dwords: [u32; 6]) -> Command {
    admin(opcode, 0, DataPointer::None, dwords)
}

impl Command {
    /// Identify; `data` receives 4,096 bytes.
    pub fn identify(what: Identify, data: DataPointer) -> Self {
        let (nsid, c10, c11) = what.fields();
        admin(opcode::IDENTIFY, nsid, data, [c10, c11, 0, 0, 0, 0])
    }

    /// Set Features, for as long as the controller is enabled (SV 0). `data` is what [`Feature::data_bytes`] says.
    pub fn set_features(feature: &Feature, data: DataPointer) -> Self {
        admin(opcode::SET_FEATURES, 0, data, [feature.id().into(), feature.dword11(), 0, 0, 0, 0])
    }

    /// Get Features: the value comes in dword 0 of the completion, or in `data` where the feature has such.
    pub fn get_features(id: u8, select: Select, data: DataPointer) -> Self {
        admin(opcode::GET_FEATURES, 0, data, [u32::from(id) | select.bits() << 8, 0, 0, 0, 0, 0])
    }

    /// Create I/O Completion Queue. `None` for a number of entries outside 2 to 65,536.
    pub fn create_cq(queue: QueueShape, interrupt: CqInterrupt) -> Option<Self> {
        let (ien, iv) = match interrupt {
            CqInterrupt::Polled => (0, 0),
            CqInterrupt::Vector(vector) => (2, u32::from(vector)),
        };
        let data = DataPointer::Prp(queue.iova.raw(), 0);
        Some(admin(opcode::CREATE_CQ, 0, data, [queue.dword10()?, 1 | ien | iv << 16, 0, 0, 0, 0]))
    }

    /// Create I/O Submission Queue whose completions go to `cq_id`. Priority is urgent's 0, which round robin ignores.
    /// `None` for a number of entries outside 2 to 65,536.
    pub fn create_sq(queue: QueueShape, cq_id: u16) -> Option<Self> {
        let data = DataPointer::Prp(queue.iova.raw(), 0);
        Some(admin(opcode::CREATE_SQ, 0, data, [queue.dword10()?, 1 | u32::from(cq_id) << 16, 0, 0, 0, 0]))
    }

    /// Delete I/O Submission Queue. Comes before its completion queue's deletion.
    pub fn delete_sq(qid: u16) -> Self {
        admin(opcode::DELETE_SQ, 0, DataPointer::None, [qid.into(), 0, 0, 0, 0, 0])
    }

    /// Delete I/O Completion Queue.
    pub fn delete_cq(qid: u16) -> Self {
        admin(opcode::DELETE_CQ, 0, DataPointer::None, [qid.into(), 0, 0, 0, 0, 0])
    }

    /// Abort of command `cid` of submission queue `sq_id`. Bit 0 of dword 0 of the completion set: it was not aborted.
    pub fn abort(sq_id: u16, cid: u16) -> Self {
        let c10 = u32::from(sq_id) | u32::from(cid) << 16;
        admin(opcode::ABORT, 0, DataPointer::None, [c10, 0, 0, 0, 0, 0])
    }

    /// Asynchronous Event Request: completes when something happens; see [`AsyncEvent`](super::log::AsyncEvent).
    pub fn async_event_request() -> Self {
        admin(opcode::ASYNC_EVENT_REQUEST, 0, DataPointer::None, [0; 6])
    }

    /// Get Log Page: `page` from `offset_bytes` (a multiple of 4) into `data` of `len_bytes` (a multiple of 4, not 0).
    ///
    /// An offset other than 0 needs LPA bit 2. `None` for lengths and offsets that the wire cannot name.
    pub fn get_log_page(page: LogPage, offset_bytes: u64, len_bytes: u32, data: DataPointer) -> Option<Self> {
        if !len_bytes.is_multiple_of(4) || !offset_bytes.is_multiple_of(4) {
            return None;
        }
        let numd_z = (len_bytes / 4).checked_sub(1)?;
        let c10 = u32::from(page.id()) | u32::from(page.retain()) << 15 | (numd_z & 0xFFFF) << 16;
        let (low, high) = super::halves(offset_bytes);
        let nsid = page.nsid();
        // Dword 14 has CSI in its top byte; the NVM command set is 0.
        Some(admin(opcode::GET_LOG_PAGE, nsid, data, [c10, numd_z >> 16, low, high, 0, 0]))
    }

    /// Doorbell Buffer Config: shadow doorbells and event indexes, one page each, of the layout of the doorbells.
    pub fn doorbell_buffer_config(shadow: sw_mem::Iova, event_index: sw_mem::Iova) -> Self {
        let data = DataPointer::Prp(shadow.raw(), event_index.raw());
        admin(opcode::DOORBELL_BUFFER_CONFIG, 0, data, [0; 6])
    }

    /// Keep Alive.
    pub fn keep_alive() -> Self {
        admin(opcode::KEEP_ALIVE, 0, DataPointer::None, [0; 6])
    }
}
