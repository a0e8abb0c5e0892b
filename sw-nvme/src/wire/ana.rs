//! How the namespaces of a subsystem are reached by one of its controllers: the log page Asymmetric Namespace Access.
//!
//! Base 2.1, 8.1.1 "Asymmetric Namespace Access Reporting", and the log page 0Ch of that name. Groups have a state; a namespace is of one
//! group (ANAGRPID of Identify Namespace).

use super::{WireError, byte, le16, le32, le64, whole};

/// Bytes of the header, and of a group's descriptor without its namespaces.
pub const HEADER_BYTES: usize = 16;
/// See above.
pub const GROUP_BYTES: usize = 32;
/// Groups of one controller that are taken: far above what targets have (Linux 128), and few enough to be asked for often.
pub const GROUPS_MAX: usize = 1024;

/// How a namespace is reached by a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// 01h: as well as it can be.
    Optimized,
    /// 02h: it works, and there may be a better way.
    NonOptimized,
    /// 03h: not now.
    Inaccessible,
    /// 04h: never again.
    PersistentLoss,
    /// 0Fh: it is changing, for ANATT at most.
    Change,
}

impl Access {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Optimized, Self::NonOptimized, Self::Inaccessible, Self::PersistentLoss, Self::Change];

    /// From the low four bits of a descriptor's byte 16; `None` for one that no table has.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 0xF {
            0x1 => Some(Self::Optimized),
            0x2 => Some(Self::NonOptimized),
            0x3 => Some(Self::Inaccessible),
            0x4 => Some(Self::PersistentLoss),
            0xF => Some(Self::Change),
            _ => None,
        }
    }

    /// As the descriptor has it.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Optimized => 0x1,
            Self::NonOptimized => 0x2,
            Self::Inaccessible => 0x3,
            Self::PersistentLoss => 0x4,
            Self::Change => 0xF,
        }
    }

    /// As Linux's sysfs and the specification name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Optimized => "optimized",
            Self::NonOptimized => "non-optimized",
            Self::Inaccessible => "inaccessible",
            Self::PersistentLoss => "persistent-loss",
            Self::Change => "change",
        }
    }
}

/// The start of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Counts the changes: parts of the page that were read at two of them are of two pages.
    pub changes: u64,
    /// How many descriptors follow.
    pub groups: u16,
}

impl Header {
    /// Decodes the start of the page.
    ///
    /// # Errors
    /// Fewer than 16 bytes; more groups than [`GROUPS_MAX`].
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Asymmetric Namespace Access", raw, HEADER_BYTES)?;
        let groups = le16(raw, 8);
        if usize::from(groups) > GROUPS_MAX {
            let rule = "at most 1,024 groups are taken";
            return Err(WireError::Field { field: "Number of ANA Group Descriptors", got: groups.into(), rule });
        }
        Ok(Self { changes: le64(raw, 0), groups })
    }
}

/// The state of each group, by ANAGRPID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Vec<(u32, Access)>);

impl Groups {
    /// Takes the descriptors in `raw`, which have no namespaces with them (RGO), behind those that are there already. How many it took: as
    /// many as there are whole in `raw`, `most` at most.
    ///
    /// # Errors
    /// A group that has namespaces with it, no number, or a state that no table has; numbers that do not ascend; more than
    /// [`GROUPS_MAX`]. Nothing that was taken counts then.
    pub fn take(&mut self, raw: &[u8], most: usize) -> Result<usize, WireError> {
        let mut taken = 0;
        for group in raw.chunks_exact(GROUP_BYTES).take(most) {
            self.take_one(group)?;
            taken += 1;
        }
        Ok(taken)
    }

    fn take_one(&mut self, raw: &[u8]) -> Result<(), WireError> {
        let (number, namespaces, bits) = (le32(raw, 0), le32(raw, 4), byte(raw, 16));
        let wrong = |field, got, rule| Err(WireError::Field { field, got, rule });
        if namespaces != 0 {
            return wrong(
                "Number of NSID Values",
                namespaces.into(),
                "groups were asked for without their namespaces (RGO)",
            );
        }
        let last = self.0.last().map_or(0, |(last, _)| *last);
        if number <= last || self.0.len() >= GROUPS_MAX {
            return wrong("ANA Group ID", number.into(), "groups are numbered from 1, ascend, and are 1,024 at most");
        }
        let Some(access) = Access::from_bits(bits) else {
            return wrong("Asymmetric Namespace Access State", (bits & 0xF).into(), "it is 1h to 4h or Fh");
        };
        self.0.push((number, access));
        Ok(())
    }

    /// The state of a group; `None` for one that was not told.
    pub fn of(&self, group: u32) -> Option<Access> {
        let at = self.0.binary_search_by_key(&group, |(number, _)| *number).ok()?;
        self.0.get(at).map(|(_, access)| *access)
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Access)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(number: u32, namespaces: u32, state: u8) -> [u8; GROUP_BYTES] {
        let mut raw = [0; GROUP_BYTES];
        raw[..4].copy_from_slice(&number.to_le_bytes());
        raw[4..8].copy_from_slice(&namespaces.to_le_bytes());
        raw[16] = state;
        raw
    }

    #[test]
    fn groups_have_the_states_of_the_table() {
        // Reserved bits above the state do not count.
        let raw = [group(1, 0, 0xF1), group(2, 0, 2), group(5, 0, 3), group(6, 0, 4), group(9, 0, 15)].concat();
        let mut groups = Groups::default();
        // A part of a descriptor is none.
        assert_eq!((groups.take(&raw[..70], 9), groups.take(&raw[64..], 2)), (Ok(2), Ok(2)));
        assert_eq!(groups.take(&raw[128..], 9), Ok(1));
        let told = [1, 2, 3, 5, 6, 9].map(|number| groups.of(number));
        let (inaccessible, lost) = (Some(Access::Inaccessible), Some(Access::PersistentLoss));
        let good = [Some(Access::Optimized), Some(Access::NonOptimized)];
        assert_eq!(told, [good[0], good[1], None, inaccessible, lost, Some(Access::Change)]);
    }

    #[test]
    fn what_is_no_group_is_refused() {
        for wrong in [group(0, 0, 1), group(1, 1, 1), group(1, 0, 0), group(1, 0, 5), group(1, 0, 14)] {
            assert!(Groups::default().take(&wrong, 1).is_err(), "{wrong:?}");
        }
        for numbers in [[2, 1], [2, 2]] {
            let raw = numbers.map(|number| group(number, 0, 1)).concat();
            assert!(Groups::default().take(&raw, 2).is_err(), "{numbers:?}");
        }
        let many: Vec<u8> = (1..=1025).flat_map(|number| group(number, 0, 1)).collect();
        assert_eq!(Groups::default().take(&many, 1024), Ok(1024));
        assert!(Groups::default().take(&many, 1025).is_err());
    }

    #[test]
    fn a_header_counts_changes_and_groups() {
        let mut raw = [0; HEADER_BYTES];
        raw[..10].copy_from_slice(&[7, 0, 0, 0, 0, 0, 0, 1, 0, 4]);
        assert_eq!(Header::decode(&raw), Ok(Header { changes: 1 << 56 | 7, groups: 1024 }));
        raw[8] = 1;
        assert!(Header::decode(&raw).is_err() && Header::decode(&raw[1..]).is_err());
    }
}
