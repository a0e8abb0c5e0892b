//! Stripe geometry: a logical object laid over members in units, as RAID 0 does.

use std::sync::Arc;

use crate::{
    error::{Error, ErrorKind, Verb},
    object::Object,
};

/// Members at most in one set.
pub const MEMBERS_MAX: u32 = 64;

/// Width and unit of a stripe set.
///
/// Logical byte `x` lies in unit `x / unit`; unit `u` lies on member `u % width` at member offset
/// `(u / width) * unit + x % unit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeGeometry {
    unit: u64,
    width: u32,
}

/// The part of a logical range that lies on one member: contiguous there, in strides in the logical range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberRange {
    /// First byte on the member.
    pub member_offset: u64,
    /// Bytes on the member.
    pub len: u64,
    /// Distance of its first byte from the start of the logical range.
    pub logical_start: u64,
}

impl StripeGeometry {
    /// A set of `width` members with `unit` bytes each in turn.
    ///
    /// # Errors
    /// `ApiMisuse` if `width` is not 1 to 64 or `unit` is not a power of two of at least 4096 bytes.
    pub fn new(unit: u64, width: u32) -> Result<Self, Error> {
        if !(1..=MEMBERS_MAX).contains(&width) || !unit.is_power_of_two() || unit < 4096 {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Open)
                .detail(format!("a stripe set of {width} members with a unit of {unit} bytes is not possible"))
                .remedy(format!("use 1 to {MEMBERS_MAX} members and a power of two of at least 4096 bytes")));
        }
        Ok(Self { unit, width })
    }

    /// Checks that no block of a member, nor a unit that its writes must not share, lies in two units of the set.
    ///
    /// # Errors
    /// `Unsupported`, with the unit that would do.
    pub fn check_members(&self, members: &[Arc<Object>]) -> Result<(), Error> {
        let Some(widest) = members.iter().max_by_key(|member| member.whole_unit()) else { return Ok(()) };
        let needed = u64::from(widest.whole_unit());
        if self.unit >= needed {
            return Ok(());
        }
        let unit = self.unit;
        Err(Error::new(ErrorKind::Unsupported, Verb::Open)
            .at(widest.name.clone())
            .detail(format!(
                "a stripe unit of {unit} bytes divides the {needed} bytes that this member takes as a whole"
            ))
            .remedy(format!("use a stripe unit of at least {needed} bytes, or a file system with smaller blocks")))
    }

    /// Bytes that lie on one member before the next one follows.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// Members.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Logical length of a set whose shortest member has `shortest` bytes: whole stripes only.
    pub fn logical_len(&self, shortest: u64) -> u64 {
        (shortest / self.unit).saturating_mul(self.unit).saturating_mul(u64::from(self.width))
    }

    /// What of the logical range `offset..offset+len` lies on `member`; `None` if nothing does.
    pub fn on_member(&self, member: u32, offset: u64, len: u64) -> Option<MemberRange> {
        if len == 0 || member >= self.width {
            return None;
        }
        let width = u64::from(self.width);
        let end = offset.checked_add(len)?;
        let (first, last) = (offset / self.unit, (end - 1) / self.unit);
        // The first and last unit of the range that this member holds.
        let first_mine = first + (u64::from(member) + width - first % width) % width;
        let behind = (last % width + width - u64::from(member)) % width;
        let last_mine = last.checked_sub(behind).filter(|mine| *mine >= first_mine)?;
        let start = (first_mine * self.unit).max(offset);
        let stop = ((last_mine + 1) * self.unit).min(end);
        let member_offset = first_mine / width * self.unit + (start - first_mine * self.unit);
        let member_end = last_mine / width * self.unit + (stop - last_mine * self.unit);
        Some(MemberRange { member_offset, len: member_end - member_offset, logical_start: start - offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in the type's documentation, byte by byte.
    fn naive(unit: u64, width: u64, member: u64, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let mine = (offset..offset + len).filter(|x| x / unit % width == member);
        mine.map(|x| (x / unit / width * unit + x % unit, x - offset)).collect()
    }

    #[test]
    fn member_ranges_agree_with_the_definition() {
        let unit = 4096;
        for width in 1..=4u32 {
            let geometry = StripeGeometry::new(unit, width).unwrap();
            for (offset, len) in [(0, 1), (0, 40_000), (4095, 2), (4096, 4096), (5000, 30_000), (8191, 1), (12_288, 17)]
            {
                for member in 0..width {
                    let expected = naive(unit, u64::from(width), u64::from(member), offset, len);
                    let got = geometry.on_member(member, offset, len);
                    match (got, expected.first()) {
                        (None, None) => {}
                        (Some(range), Some(first)) => {
                            assert_eq!((range.member_offset, range.logical_start), *first);
                            assert_eq!(range.len, expected.len() as u64);
                        }
                        other => panic!("width {width} member {member} {offset}+{len}: {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn impossible_sets_are_refused() {
        for (unit, width) in [(4096, 0), (4096, 65), (1000, 2), (512, 2)] {
            assert_eq!(StripeGeometry::new(unit, width).unwrap_err().kind(), ErrorKind::ApiMisuse);
        }
    }

    #[test]
    fn the_logical_length_counts_whole_stripes() {
        assert_eq!(StripeGeometry::new(4096, 3).unwrap().logical_len(10_000), 2 * 4096 * 3);
    }
}
