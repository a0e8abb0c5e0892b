//! How the namespaces of a subsystem are reached by one of its controllers: the log page Asymmetric Namespace Access.
//!
//! Base 2.1, 8.1.1 "Asymmetric Namespace Access Reporting", and the log page 0Ch of that name. Groups have a state; a namespace is of one
//! group (ANAGRPID of Identify Namespace).

use super::{WireError, byte, le16, le32, whole};

/// Bytes of the header, and of a group's descriptor without its namespaces.
pub const HEADER_BYTES: usize = 16;
/// See above.
pub const GROUP_BYTES: usize = 32;
/// Groups of one controller that are taken: far above what targets have (Linux 128), and few enough to be asked for often.
pub const GROUPS_MAX: usize = 1024;
/// Of a namespace in a descriptor.
const NSID_BYTES: usize = 4;
/// Namespaces of all groups that there is room for.
const NSIDS_MAX: usize = 8192;
/// The longest page that is asked for.
pub const PAGE_BYTES_MAX: usize = HEADER_BYTES + GROUP_BYTES * GROUPS_MAX + NSID_BYTES * NSIDS_MAX;

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

/// How long the page is at most, in bytes, where there are `groups` (NANAGRPID) and `namespaces` (MNAN, or NN where that is 0): as Linux
/// computes it (`nvme_mpath_init_identify`), so that one command reads all of it, with the namespaces of each group: targets are out that know
/// neither RGO nor an offset. [`PAGE_BYTES_MAX`] at most, a multiple of 4.
pub fn page_bytes(groups: u32, namespaces: u32) -> usize {
    let many = |count: u32, most: usize| sw_mem::index(count.into()).min(most);
    HEADER_BYTES + GROUP_BYTES * many(groups, GROUPS_MAX) + NSID_BYTES * many(namespaces, NSIDS_MAX)
}

/// The state of each group, by ANAGRPID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    told: Vec<(u32, Access)>,
    is_cut: bool,
}

impl Groups {
    /// Decodes the page from its start, as far as it is there: descriptors that are cut off are not told of, nor are those above
    /// [`GROUPS_MAX`], nor groups in a state that no table has. Namespaces that stand with a group are passed over.
    ///
    /// # Errors
    /// Fewer than 16 bytes; a group without a number, or one that stands there twice.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Asymmetric Namespace Access", raw, HEADER_BYTES)?;
        let (mut groups, mut at) = (Vec::new(), HEADER_BYTES);
        let count = usize::from(le16(raw, 8));
        let mut is_cut = count > GROUPS_MAX;
        for _ in 0..count.min(GROUPS_MAX) {
            let Some(group) = raw.get(at..).filter(|rest| rest.len() >= GROUP_BYTES) else {
                is_cut = true;
                break;
            };
            let (number, namespaces) = (le32(group, 0), le32(group, 4));
            if number == 0 {
                return Err(WireError::Field { field: "ANA Group ID", got: 0, rule: "groups are numbered from 1" });
            }
            groups.extend(Access::from_bits(byte(group, 16)).map(|access| (number, access)));
            // Past the end of any page at the latest, wherever it points.
            at = at
                .saturating_add(GROUP_BYTES)
                .saturating_add(sw_mem::index(namespaces.into()).saturating_mul(NSID_BYTES));
        }
        groups.sort_unstable_by_key(|(number, _)| *number);
        let twice = groups.windows(2).find(|pair| matches!(pair, [(one, _), (next, _)] if one == next));
        match twice.and_then(<[_]>::first) {
            Some((number, _)) => Err(WireError::Field {
                field: "ANA Group ID",
                got: u64::from(*number),
                rule: "each group stands there once",
            }),
            None => Ok(Self { told: groups, is_cut }),
        }
    }

    /// The state of a group; `None` for one that was not told.
    pub fn of(&self, group: u32) -> Option<Access> {
        let at = self.told.binary_search_by_key(&group, |(number, _)| *number).ok()?;
        self.told.get(at).map(|(_, access)| *access)
    }

    /// Whether the page has more groups than there was room for: asked again, it tells no more.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Access)> + '_ {
        self.told.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(number: u32, namespaces: &[u32], state: u8) -> Vec<u8> {
        let mut raw = vec![0; GROUP_BYTES];
        raw[..4].copy_from_slice(&number.to_le_bytes());
        raw[4..8].copy_from_slice(&u32::try_from(namespaces.len()).unwrap().to_le_bytes());
        raw[16] = state;
        raw.extend(namespaces.iter().flat_map(|nsid| nsid.to_le_bytes()));
        raw
    }

    fn page(groups: &[Vec<u8>]) -> Vec<u8> {
        let mut raw = vec![0; HEADER_BYTES];
        raw[8..10].copy_from_slice(&u16::try_from(groups.len()).unwrap().to_le_bytes());
        raw.extend(groups.concat());
        raw
    }

    const ALL: [Option<Access>; 6] = [
        Some(Access::Optimized),
        Some(Access::NonOptimized),
        None,
        Some(Access::Inaccessible),
        Some(Access::PersistentLoss),
        Some(Access::Change),
    ];

    #[test]
    fn groups_have_the_states_of_the_table_with_and_without_their_namespaces() {
        for namespaces in [&[][..], &[1], &[7, 8, 9]] {
            // Reserved bits above the state do not count, nor does the order.
            let groups = [(5, 3), (1, 0xF1), (2, 2), (6, 4), (9, 15)];
            let mut raw = page(&groups.map(|(number, state)| group(number, namespaces, state)));
            // What lies behind the last one is none.
            raw.extend(group(3, &[], 1));
            let groups = Groups::decode(&raw).unwrap();
            assert_eq!([1, 2, 3, 5, 6, 9].map(|number| groups.of(number)), ALL, "{namespaces:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_in_no_state_is_not_told_and_the_rest_is() {
        let raw = page(&[group(1, &[1, 2], 1), group(2, &[3], 2), group(3, &[4], 7)]);
        let told = |raw: &[u8]| [1, 2, 3].map(|number| Groups::decode(raw).unwrap().of(number));
        assert_eq!(told(&raw), [ALL[0], ALL[1], None]);
        assert!(!Groups::decode(&raw).unwrap().is_cut());
        assert!(
            Groups::decode(&raw[..raw.len() - NSID_BYTES - 1]).unwrap().is_cut(),
            "without the head of the last one"
        );
        assert_eq!(told(&raw[..HEADER_BYTES + GROUP_BYTES + 8 + GROUP_BYTES - 1]), [ALL[0], None, None]);
        assert_eq!(told(&raw[..HEADER_BYTES]), [None; 3]);
        // A group that says that it has more namespaces than there are bytes.
        let mut raw = page(&[group(1, &[], 1), group(2, &[], 2)]);
        raw[HEADER_BYTES + 4..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(told(&raw), [ALL[0], None, None]);
        let many: Vec<_> = (1..=1025).map(|number| group(number, &[], 1)).collect();
        let many = Groups::decode(&page(&many)).unwrap();
        assert_eq!((many.of(1024), many.of(1025)), (ALL[0], None));
    }

    #[test]
    fn what_is_no_page_is_refused() {
        assert!(Groups::decode(&page(&[])[1..]).is_err());
        assert!(Groups::decode(&page(&[group(0, &[], 1)])).is_err());
        assert!(Groups::decode(&page(&[group(2, &[], 1), group(3, &[], 1), group(2, &[], 1)])).is_err());
    }

    #[test]
    fn a_page_is_as_long_as_groups_and_namespaces_may_make_it() {
        // Linux's target: 128 groups, 1,024 namespaces.
        assert_eq!(page_bytes(128, 1024), 16 + 4096 + 4096);
        assert_eq!(page_bytes(u32::MAX, u32::MAX), PAGE_BYTES_MAX);
    }
}
