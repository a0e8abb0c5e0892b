//! Commands of the NVM command set, over the disks.

use super::{
    NamespaceParams, NvmeAct, Step,
    command::{INVALID_FIELD, INVALID_NAMESPACE, INVALID_OPCODE, LBA_RANGE, SUCCESS, Sqe, spot, status},
    iommu::Reached,
};
use crate::log::Mark;

const FLUSH: u8 = 0x00;
pub(super) const WRITE: u8 = 0x01;
pub(super) const READ: u8 = 0x02;
const COMPARE: u8 = 0x05;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;
const VERIFY: u8 = 0x0C;
const COMPARE_FAILED: u16 = status(2, 0x85);
/// Bytes of a range of Dataset Management.
const RANGE: usize = 16;
/// The smallest page: the unit of MDTS (CAP.MPSMIN is 0).
const PAGE_MIN: u64 = 4096;

/// A range of a namespace, in bytes of its disk.
#[derive(Clone, Copy, Debug)]
struct Extent {
    disk: usize,
    at: u64,
    len: u64,
}

impl Step<'_> {
    fn namespace(&self, nsid: u32) -> Option<NamespaceParams> {
        self.ctrl.params.namespaces.iter().find(|namespace| namespace.nsid == nsid).copied()
    }

    /// Logical blocks of a namespace.
    pub(super) fn blocks(&self, namespace: &NamespaceParams) -> u64 {
        // It may have shrunk since the driver asked.
        let len = self.disks.get(namespace.disk).map_or(0, |disk| disk.end.min(disk.bytes().len() as u64));
        len / u64::from(namespace.block)
    }

    /// Bytes of data that the command has; what makes no sense ends here.
    pub(super) fn io_data_len(&mut self, sqe: &Sqe) -> Result<u64, u16> {
        match sqe.opcode() {
            READ | WRITE | COMPARE => {
                let namespace = self.namespace(sqe.nsid()).ok_or(INVALID_NAMESPACE)?;
                let len = (u64::from(sqe.low(12)) + 1) * u64::from(namespace.block);
                self.check_transfer(sqe, &namespace, len)?;
                Ok(len)
            }
            DATASET_MANAGEMENT => Ok(((u64::from(sqe.word(10)) & 0xFF) + 1) * RANGE as u64),
            FLUSH | WRITE_ZEROES | VERIFY => Ok(0),
            _ => Err(INVALID_OPCODE),
        }
    }

    /// What the controller said that it takes, and what the driver may not ask for.
    fn check_transfer(&mut self, sqe: &Sqe, namespace: &NamespaceParams, len: u64) -> Result<(), u16> {
        let mdts = self.ctrl.params.mdts;
        if mdts > 0 && len > PAGE_MIN << mdts {
            self.violate("limits", format!("{len} bytes in one command, MDTS allows {}", PAGE_MIN << mdts));
            return Err(INVALID_FIELD);
        }
        let (first, count) = (sqe.wide(10), u64::from(sqe.low(12)) + 1);
        let boundary = u64::from(namespace.boundary_blocks);
        if boundary > 0 && first / boundary != (first + count - 1) / boundary {
            self.violate("limits", format!("{count} blocks at {first} cross a boundary of {boundary} blocks"));
        }
        // PRINFO and the storage tag check mean something only where there is protection information.
        if sqe.word(12) & 0x3F00_0000 != 0 && namespace.metadata == 0 {
            self.violate("wire", format!("CDW12 {:#x} asks for protection that the format has not", sqe.word(12)));
        }
        Ok(())
    }

    fn extent(&self, sqe: &Sqe) -> Result<Extent, u16> {
        let namespace = self.namespace(sqe.nsid()).ok_or(INVALID_NAMESPACE)?;
        let (first, count) = (sqe.wide(10), u64::from(sqe.low(12)) + 1);
        match first.checked_add(count) {
            Some(end) if end <= self.blocks(&namespace) => {}
            _ => return Err(LBA_RANGE),
        }
        let block = u64::from(namespace.block);
        Ok(Extent { disk: namespace.disk, at: first * block, len: count * block })
    }

    pub(super) fn execute_io(&mut self, name: u64, sqe: &Sqe) -> u16 {
        let found = match sqe.opcode() {
            FLUSH => return self.flush(sqe),
            DATASET_MANAGEMENT => return self.manage(name, sqe),
            _ => self.extent(sqe),
        };
        let extent = match found {
            Ok(extent) => extent,
            Err(status) => return status,
        };
        let now = self.now();
        match sqe.opcode() {
            READ => self.read_blocks(name, extent),
            WRITE => self.write_blocks(name, extent),
            COMPARE => {
                let held = self.held(extent);
                if held == self.take_data(name) { SUCCESS } else { COMPARE_FAILED }
            }
            WRITE_ZEROES => {
                let zeroes = vec![0; sw_mem::index(extent.len)];
                self.disks.get_mut(extent.disk).into_iter().for_each(|disk| disk.write(now, extent.at, &zeroes));
                SUCCESS
            }
            _ => SUCCESS,
        }
    }

    fn flush(&self, sqe: &Sqe) -> u16 {
        let known = sqe.nsid() == u32::MAX || self.namespace(sqe.nsid()).is_some();
        if known { SUCCESS } else { INVALID_NAMESPACE }
    }

    fn held(&self, extent: Extent) -> Vec<u8> {
        self.disks.get(extent.disk).map(|disk| disk.read(extent.at, extent.len).to_vec()).unwrap_or_default()
    }

    fn read_blocks(&mut self, name: u64, extent: Extent) -> u16 {
        let mut bytes = self.held(extent);
        match self.act_of(name) {
            Some(NvmeAct::LateData(_)) => {
                self.mark(Mark::NvmeLateData);
                self.taint_memory(name);
                return SUCCESS;
            }
            Some(NvmeAct::ShortData) => {
                self.mark(Mark::NvmeShortData);
                self.taint_memory(name);
                bytes.truncate(bytes.len() / 2);
            }
            Some(NvmeAct::LostPage) => {
                // The page that is lost is the last one; the IOMMU records the access and the controller hears nothing.
                self.lose_page();
                self.taint_memory(name);
                let kept = bytes.len().saturating_sub(sw_mem::index(PAGE_MIN));
                bytes.truncate(kept);
            }
            _ => {}
        }
        self.put_data(name, &mut bytes);
        SUCCESS
    }

    fn write_blocks(&mut self, name: u64, extent: Extent) -> u16 {
        let now = self.now();
        let mut bytes = self.take_data(name);
        let lost = match self.act_of(name) {
            Some(NvmeAct::LateData(_)) => {
                self.mark(Mark::NvmeLateData);
                bytes.len()
            }
            Some(NvmeAct::ShortData) => {
                self.mark(Mark::NvmeShortData);
                bytes.len() - bytes.len() / 2
            }
            Some(NvmeAct::LostPage) => {
                self.lose_page();
                bytes.len().min(sw_mem::index(PAGE_MIN))
            }
            _ => 0,
        };
        if lost > 0 {
            let kept = bytes.len() - lost;
            self.taint.ranges.push((extent.disk, extent.at + kept as u64, lost as u64));
            bytes.truncate(kept);
        }
        self.disks.get_mut(extent.disk).into_iter().for_each(|disk| disk.write(now, extent.at, &bytes));
        SUCCESS
    }

    fn act_of(&self, name: u64) -> Option<NvmeAct> {
        self.ctrl.commands.get(&name).and_then(|command| command.act)
    }

    fn lose_page(&mut self) {
        self.mark(Mark::NvmeLostPage);
        let nowhere = self.translate(0, 1).is_none();
        debug_assert!(nowhere, "page 0 is never mapped");
    }

    /// What the memory of a command holds is nobody's promise any more.
    fn taint_memory(&mut self, name: u64) {
        let Some(command) = self.ctrl.commands.get(&name) else { return };
        for spot in command.pieces.iter().filter_map(spot) {
            match self.shadow.op_at(spot) {
                Some(op) => {
                    self.taint.ops.insert(op);
                }
                None => self.taint.slabs = true,
            }
        }
    }

    /// A transfer that fails may have moved some of its blocks.
    pub(super) fn move_some(&mut self, name: u64) {
        let Some(sqe) = self.ctrl.commands.get(&name).map(|command| command.sqe) else { return };
        if !matches!(sqe.opcode(), READ | WRITE) {
            return;
        }
        let (Ok(extent), Some(namespace)) = (self.extent(&sqe), self.namespace(sqe.nsid())) else { return };
        let blocks = self.ctrl.moods.below(extent.len / u64::from(namespace.block) + 1);
        let len = blocks * u64::from(namespace.block);
        let now = self.now();
        if sqe.opcode() == READ {
            let mut bytes = self.held(Extent { len, ..extent });
            self.put_data(name, &mut bytes);
        } else {
            let mut bytes = self.take_data(name);
            bytes.truncate(sw_mem::index(len));
            self.disks.get_mut(extent.disk).into_iter().for_each(|disk| disk.write(now, extent.at, &bytes));
        }
    }

    /// Data that comes after its entry: the driver let go of the memory, and the controller does not care. It meets what is
    /// at the addresses now: nothing, what was there, or what another has there by now.
    pub(super) fn late_data(&mut self, name: u64) {
        let Some(command) = self.ctrl.commands.remove(&name) else { return };
        let Ok(extent) = self.extent(&command.sqe) else { return };
        let now = self.now();
        let pieces = self.translate_all(&command.runs).unwrap_or_default();
        if pieces != command.pieces {
            self.mark(Mark::NvmeLateDataElsewhere);
        }
        let mut bytes = self.held(extent);
        let mut at = 0;
        for piece in pieces {
            let (Reached::Queue(_, _, len) | Reached::Region(_, _, len)) = piece;
            let Some(here) = bytes.get_mut(at..at + sw_mem::index(len)) else { break };
            at += here.len();
            // Past every owner: that somebody else has the memory is the controller's crime, not the driver's.
            match (piece, command.sqe.opcode()) {
                (Reached::Region(region, at, _), READ) => {
                    self.taint.regions.insert(region);
                    self.taint.slabs |= self.shadow.is_of_the_engine(region);
                    self.shadow.put(region, at, here);
                }
                (Reached::Region(region, at, len), _) => here.copy_from_slice(&self.shadow.get(region, at, len)),
                (Reached::Queue(memory, at, _), READ) => {
                    // Entries that the controller made up out of data: nothing is promised after them.
                    self.taint.all = true;
                    self.memories.device_write(memory, at, here);
                }
                (Reached::Queue(..), _) => here.fill(0),
            }
        }
        if command.sqe.opcode() == WRITE && at > 0 {
            self.disks.get_mut(extent.disk).into_iter().for_each(|disk| disk.write(now, extent.at, &bytes));
        }
    }

    fn manage(&mut self, name: u64, sqe: &Sqe) -> u16 {
        let Some(namespace) = self.namespace(sqe.nsid()) else { return INVALID_NAMESPACE };
        let (now, block, blocks) = (self.now(), u64::from(namespace.block), self.blocks(&namespace));
        let deallocate = sqe.word(11) & 4 != 0;
        for range in self.take_data(name).as_chunks::<RANGE>().0 {
            let [_, _, _, _, a, b, c, d, first @ ..] = *range;
            let (count, first) = (u64::from(u32::from_le_bytes([a, b, c, d])), u64::from_le_bytes(first));
            if first.checked_add(count).is_none_or(|end| end > blocks) {
                return LBA_RANGE;
            }
            if deallocate {
                let zeroes = vec![0; sw_mem::index(count * block)];
                self.disks.get_mut(namespace.disk).into_iter().for_each(|disk| disk.write(now, first * block, &zeroes));
            }
        }
        SUCCESS
    }
}
