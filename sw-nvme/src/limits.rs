//! What one command may move, and where it is split: MDTS, NOIOB, and the granularities that a namespace prefers.

use crate::wire::{
    BlockCount,
    identify::{IdentifyController, IdentifyNamespace, MetadataVerdict},
};

/// Limits of data commands to one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferLimits {
    /// Bytes of one block.
    pub block_bytes: u32,
    /// Blocks of one command, from MDTS and the 16 bits of NLB.
    pub blocks_max: BlockCount,
    /// NOIOB in blocks: commands are split at multiples of it.
    pub boundary_blocks: Option<u16>,
    /// NPWG in blocks, one if not reported: the unit of writes that costs no read-modify-write inside the device.
    pub write_granularity_blocks: u32,
    /// NPWA in blocks, one if not reported: the alignment of such writes.
    pub write_alignment_blocks: u32,
}

/// MDTS in bytes: 2^MDTS pages of `page_bytes_min` (`CAP.MPSMIN`), `None` for no limit (Base, "Identify Controller data
/// structure", MDTS). A power past 64 bits is none either.
pub fn mdts_bytes(mdts: u8, page_bytes_min: u32) -> Option<u64> {
    let shift = page_bytes_min.trailing_zeros() + u32::from(mdts);
    (mdts != 0 && shift < 64).then(|| 1 << shift)
}

impl TransferLimits {
    /// From what controller and namespace said. `page_bytes_min` is `CAP.MPSMIN` in bytes. `None`: MDTS is below one
    /// block, so that no block can be moved.
    pub fn new(controller: &IdentifyController, page_bytes_min: u32, namespace: &IdentifyNamespace) -> Option<Self> {
        let block_bytes = namespace.format.block_bytes;
        // Interleaved metadata counts unless the controller says that it does not. Stripped protection information is
        // not moved; devices that count it all the same exist, and a few bytes less per command cost nothing.
        let counted = match MetadataVerdict::of(namespace, None) {
            MetadataVerdict::None => 0,
            _ if controller.mdts_excludes_metadata() => 0,
            _ => u64::from(namespace.format.metadata_bytes),
        };
        let blocks = mdts_bytes(controller.mdts, page_bytes_min)
            .map_or(BlockCount::MAX.get().into(), |bytes| bytes / (u64::from(block_bytes) + counted));
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(BlockCount::MAX.get());
        Some(Self {
            block_bytes,
            blocks_max: BlockCount::new(blocks)?,
            boundary_blocks: namespace.io_boundary_blocks,
            write_granularity_blocks: namespace.write_granularity_blocks.unwrap_or(1),
            write_alignment_blocks: namespace.write_alignment_blocks.unwrap_or(1),
        })
    }

    /// Bytes of the longest command.
    pub fn bytes_max(&self) -> u64 {
        u64::from(self.blocks_max.get()) * u64::from(self.block_bytes)
    }

    /// How many of `left` blocks from `slba` on the next command takes: no more than one command may move, and none past
    /// a multiple of NOIOB. `None` if nothing is left.
    #[inline]
    pub fn next(&self, slba: u64, left: u64) -> Option<BlockCount> {
        let to_boundary = self.boundary_blocks.map_or(u64::MAX, |every| match u64::from(every) {
            0 => u64::MAX,
            every => every - slba % every,
        });
        let take = left.min(to_boundary).min(self.blocks_max.get().into());
        BlockCount::new(u32::try_from(take).ok()?)
    }

    /// As [`next`](Self::next), for a write. One that is cut because a command is full ends where the next one may start
    /// without a read-modify-write inside the device, if such a place is within it: it is a multiple of NPWG long, or,
    /// where it does not start at a multiple of NPWA itself, it ends at one (NVM command set, "Improving performance
    /// through I/O size and alignment adherence").
    #[inline]
    pub fn next_write(&self, slba: u64, left: u64) -> Option<BlockCount> {
        let take = self.next(slba, left)?;
        if take < self.blocks_max || u64::from(take.get()) == left {
            return Some(take);
        }
        let (alignment, whole) = (u64::from(self.write_alignment_blocks.max(1)), u64::from(take.get()));
        let over = match slba % alignment {
            0 => whole % u64::from(self.write_granularity_blocks.max(1)),
            // The sum of a start and a length within a namespace.
            _ => slba.saturating_add(whole) % alignment,
        };
        let less = whole.checked_sub(over).and_then(|less| BlockCount::new(u32::try_from(less).ok()?));
        Some(less.unwrap_or(take))
    }
}

#[cfg(test)]
mod tests;
