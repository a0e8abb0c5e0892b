//! Identify data structures (Base, "Identify command"; NVM Command Set, "Identify I/O Command Set specific").
//!
//! Decoders take the 4,096 bytes that the controller wrote, copied out of its memory.

mod controller;
mod descriptors;
mod metadata;
mod namespace;

pub use controller::{AdminAbilities, ControllerKind, FlushAll, IdentifyController, NvmAbilities, NvmLimits};
pub use descriptors::NamespaceDescriptors;
pub use metadata::{ExtendedFormat, GuardFormat, MetadataReason, MetadataVerdict, Protection};
pub use namespace::{BlockFormat, DeallocatedReads, IdentifyNamespace, LBADS_MAX, LBADS_MIN};

use super::{IDENTIFY_BYTES, NSID_ALL, WireError, le16, le32, le64, whole};

/// Identifiers in one namespace list.
pub const NAMESPACE_LIST_LEN: usize = 1024;

/// Decodes a namespace list: ascending identifiers above `after`, ended by a zero or by the page (Base, "Namespace
/// List"). A full list may go on: ask again after its last one.
///
/// # Errors
/// Fewer than 4,096 bytes; identifiers that do not ascend above `after`; the broadcast identifier.
pub fn namespace_list(what: &'static str, raw: &[u8], after: u32) -> Result<Vec<u32>, WireError> {
    whole(what, raw, IDENTIFY_BYTES)?;
    let mut list: Vec<u32> = Vec::new();
    let mut last = after;
    for nsid in (0..NAMESPACE_LIST_LEN).map(|index| le32(raw, 4 * index)).take_while(|&nsid| nsid != 0) {
        if nsid <= last || nsid == NSID_ALL {
            return Err(WireError::Field { field: "namespace list", got: nsid.into(), rule: "identifiers ascend" });
        }
        list.push(nsid);
        last = nsid;
    }
    Ok(list)
}

/// Decodes a controller list: ascending CNTLIDs (Base, "Controller List").
///
/// # Errors
/// Fewer than 4,096 bytes; more than 2,047; identifiers that do not ascend.
pub fn controller_list(raw: &[u8]) -> Result<Vec<u16>, WireError> {
    whole("controller list", raw, IDENTIFY_BYTES)?;
    let count = usize::from(le16(raw, 0));
    if count > 2047 {
        return Err(WireError::Field { field: "NUMCNTL", got: count as u64, rule: "it is at most 2047" });
    }
    let list: Vec<u16> = (0..count).map(|index| le16(raw, 2 + 2 * index)).collect();
    if let Some(pair) = list.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(WireError::Field { field: "controller list", got: pair[1].into(), rule: "identifiers ascend" });
    }
    Ok(list)
}

/// From Identify CNS 1Ch: index and members of the smallest combination of I/O command sets that has all of `wanted`
/// (bit n: CSI n), for the I/O Command Set Profile feature (Base, "I/O Command Set data structure").
///
/// # Errors
/// Fewer than 4,096 bytes.
pub fn command_set_combination(raw: &[u8], wanted: u64) -> Result<Option<(u16, u64)>, WireError> {
    whole("I/O Command Set data structure", raw, IDENTIFY_BYTES)?;
    let fits = (0..512u16).map(|index| (index, le64(raw, 8 * usize::from(index))));
    let fits = fits.filter(|&(_, sets)| sets != 0 && sets & wanted == wanted);
    Ok(fits.min_by_key(|&(_, sets)| sets.count_ones()))
}

#[cfg(test)]
mod tests;
