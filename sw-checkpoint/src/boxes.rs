//! Boxes of a tensor: which elements of one lie in another, and where, as runs of bytes.
//!
//! ```text
//!   chunk (in a file)          wanted slice (in memory)
//!   ┌───────────────┐          ┌──────┐
//!   │ . . a a a a . │   ──►    │ aaaa │    runs of 4 elements, one a row:
//!   │ . . a a a a . │          │ aaaa │    source stride 7, destination stride 4
//!   └───────────────┘          └──────┘
//! ```

/// Offsets and sizes of a box, in elements per dimension.
pub(crate) type Span<'a> = (&'a [u64], &'a [u64]);

/// Whether a box lies in `shape`.
pub(crate) fn inside(shape: &[u64], offsets: &[u64], sizes: &[u64]) -> bool {
    offsets.len() == shape.len()
        && sizes.len() == shape.len()
        && (0..shape.len()).all(|d| offsets[d].checked_add(sizes[d]).is_some_and(|end| end <= shape[d]))
}

/// The position of a box that shares elements with an earlier one in some order. All have the same rank and none is
/// empty. Time is quadratic only in boxes that no single dimension tells apart.
pub(crate) fn overlap(boxes: &[Span<'_>]) -> Option<usize> {
    let rank = boxes.first()?.0.len();
    if rank == 0 {
        return (boxes.len() > 1).then_some(1);
    }
    let distinct = |d: usize| {
        let mut starts: Vec<u64> = boxes.iter().map(|(offsets, _)| offsets[d]).collect();
        starts.sort_unstable();
        starts.dedup();
        starts.len()
    };
    let sweep = (0..rank).max_by_key(|&d| distinct(d))?;
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by_key(|&at| boxes[at].0[sweep]);
    let mut active: Vec<usize> = Vec::new();
    for at in order {
        let (offsets, sizes) = boxes[at];
        active.retain(|&other| boxes[other].0[sweep] + boxes[other].1[sweep] > offsets[sweep]);
        let meets = |&&other: &&usize| {
            let (o, s) = boxes[other];
            (0..rank).all(|d| offsets[d] < o[d] + s[d] && o[d] < offsets[d] + sizes[d])
        };
        if active.iter().any(|other| meets(&other)) {
            return Some(at);
        }
        active.push(at);
    }
    None
}

/// Bytes that go from a row-major box to another: runs of `run_len` bytes, repeated along `steps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    /// First byte of the first run, from the start of the source box.
    pub source: u64,
    /// The same in the destination box.
    pub target: u64,
    /// Length of each run in bytes, never 0.
    pub run_len: u64,
    /// Repetitions, outermost first: count (2 or more), bytes onwards in the source, bytes onwards in the destination.
    pub steps: Vec<(u64, u64, u64)>,
}

/// A box does not begin or end on a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartialByte;

impl Runs {
    /// What the source box has of the wanted box; `None` if they share nothing. Both lie in one tensor, whose number of
    /// bits fits 64 bits.
    pub(crate) fn between(source: Span<'_>, wanted: Span<'_>, bits: u64) -> Result<Option<Self>, PartialByte> {
        let rank = source.0.len();
        // Before any arithmetic: the other sizes of a box without elements may have a product of any size.
        let apart =
            |d: usize| source.0[d].max(wanted.0[d]) >= (source.0[d] + source.1[d]).min(wanted.0[d] + wanted.1[d]);
        if (0..rank).any(apart) {
            return Ok(None);
        }
        let mut steps: Vec<(u64, u64, u64)> = Vec::with_capacity(rank);
        let (mut from, mut to) = (0, 0);
        let (mut source_stride, mut target_stride) = (bits, bits);
        // Innermost first. A run grows as long as both boxes are full in every dimension inside.
        let mut run = bits;
        for d in (0..rank).rev() {
            let start = source.0[d].max(wanted.0[d]);
            let end = (source.0[d] + source.1[d]).min(wanted.0[d] + wanted.1[d]);
            let count = end - start;
            from += (start - source.0[d]) * source_stride;
            to += (start - wanted.0[d]) * target_stride;
            if steps.is_empty() && source_stride == run && target_stride == run {
                run *= count;
            } else if count > 1 {
                match steps.last_mut() {
                    // A step that goes on where the one inside ends is a part of it.
                    Some((n, s, t)) if *n * *s == source_stride && *n * *t == target_stride => *n *= count,
                    _ => steps.push((count, source_stride, target_stride)),
                }
            }
            source_stride *= source.1[d];
            target_stride *= wanted.1[d];
        }
        steps.reverse();
        let whole = |bits: u64| if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(PartialByte) };
        let steps = steps.into_iter().map(|(n, s, t)| Ok((n, whole(s)?, whole(t)?))).collect::<Result<_, _>>()?;
        Ok(Some(Self { source: whole(from)?, target: whole(to)?, run_len: whole(run)?, steps }))
    }

    /// Bytes of all runs.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.steps.iter().fold(self.run_len, |len, (count, ..)| len * count)
    }

    /// How many runs.
    pub(crate) fn count(&self) -> u64 {
        self.steps.iter().fold(1, |n, (count, ..)| n * count)
    }

    /// Source and destination of run `number`, below [`Runs::count`].
    pub(crate) fn at(&self, number: u64) -> (u64, u64) {
        let (mut source, mut target, mut rest) = (self.source, self.target, number);
        for &(count, from, to) in self.steps.iter().rev() {
            source += rest % count * from;
            target += rest % count * to;
            rest /= count;
        }
        (source, target)
    }

    /// Source and destination of each run, outermost first: the source only goes up, and so does the destination.
    pub(crate) fn each(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..self.count()).map(|number| self.at(number))
    }

    /// Bytes between neighbouring runs of the source, where they are at most `max`.
    pub(crate) fn gaps_up_to(&self, max: u64) -> u64 {
        let (mut sum, mut outer) = (0_u64, self.count());
        // Length of what one step of the loop repeats, from its first byte to its last.
        let mut extent = self.run_len;
        for &(count, from, _) in self.steps.iter().rev() {
            outer /= count;
            let gap = from.saturating_sub(extent);
            if gap <= max {
                sum = sum.saturating_add(gap.saturating_mul(count - 1).saturating_mul(outer));
            }
            extent += from * (count - 1);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slice_of_rows_is_one_run_and_of_columns_one_a_row() {
        let whole = (&[0, 0][..], &[6, 8][..]);
        let rows = Runs::between(whole, (&[2, 0], &[3, 8]), 16).unwrap().unwrap();
        assert_eq!((rows.source, rows.target, rows.run_len, rows.steps.len()), (32, 0, 48, 0));
        let columns = Runs::between(whole, (&[0, 2], &[6, 3]), 16).unwrap().unwrap();
        assert_eq!((columns.source, columns.run_len, columns.steps), (4, 6, vec![(6, 16, 6)]));
    }

    #[test]
    fn bits_that_end_inside_a_byte_are_refused() {
        let whole = (&[0, 0][..], &[2, 4][..]);
        assert_eq!(Runs::between(whole, (&[0, 1], &[2, 2]), 4), Err(PartialByte));
        assert!(Runs::between(whole, (&[1, 0], &[1, 2]), 4).unwrap().is_some());
    }

    #[test]
    fn a_box_without_elements_has_no_run_whatever_its_other_sizes() {
        let none = (&[0, 0, 0][..], &[0, 1 << 40, 1 << 40][..]);
        assert_eq!(Runs::between(none, none, 32), Ok(None));
    }

    fn row_major(coordinate: &[u64], (offsets, sizes): Span<'_>) -> u64 {
        (0..offsets.len()).fold(0, |at, d| at * sizes[d] + (coordinate[d] - offsets[d]))
    }

    fn coordinates((offsets, sizes): Span<'_>) -> Vec<Vec<u64>> {
        let mut all = vec![Vec::new()];
        for d in 0..offsets.len() {
            all = all
                .into_iter()
                .flat_map(|head: Vec<u64>| {
                    (offsets[d]..offsets[d] + sizes[d]).map(move |at| [&head[..], &[at]].concat())
                })
                .collect();
        }
        all
    }

    fn boxed() -> impl Strategy<Value = (Vec<u64>, Vec<u64>, Vec<u64>, Vec<u64>)> {
        let side = (0_u64..4, 0_u64..4, 0_u64..4, 0_u64..4);
        prop::collection::vec(side, 0..4).prop_map(|sides| {
            let pick = |f: fn(&(u64, u64, u64, u64)) -> u64| sides.iter().map(f).collect::<Vec<_>>();
            (pick(|s| s.0), pick(|s| s.1), pick(|s| s.2), pick(|s| s.3))
        })
    }

    proptest! {
        #[test]
        fn runs_bring_each_common_element_to_its_place((so, ss, wo, ws) in boxed()) {
            let (source, wanted) = ((&so[..], &ss[..]), (&wo[..], &ws[..]));
            let common: Vec<(u64, u64)> = coordinates(wanted)
                .into_iter()
                .filter(|c| (0..c.len()).all(|d| c[d] >= so[d] && c[d] < so[d] + ss[d]))
                .map(|c| (row_major(&c, source), row_major(&c, wanted)))
                .collect();
            let runs = Runs::between(source, wanted, 8).unwrap();
            let mut moved: Vec<(u64, u64)> = runs.iter().flat_map(|runs| {
                runs.each().flat_map(|(s, t)| (0..runs.run_len).map(move |i| (s + i, t + i)))
            }).collect();
            prop_assert!(moved.is_sorted_by_key(|m| m.0) && moved.is_sorted_by_key(|m| m.1));
            moved.sort_unstable_by_key(|m| m.1);
            prop_assert_eq!(moved, common);
            if let Some(runs) = runs {
                prop_assert_eq!(runs.len_bytes(), runs.each().count() as u64 * runs.run_len);
            }
        }

        #[test]
        fn overlap_is_found_exactly_when_two_share_an_element(list in prop::collection::vec(boxed(), 0..6)) {
            let rank = list.first().map_or(0, |b| b.0.len());
            let boxes: Vec<Span<'_>> = list.iter().filter(|b| b.0.len() == rank && b.1.iter().all(|s| *s > 0))
                .map(|b| (&b.0[..], &b.1[..])).collect();
            let mut seen = std::collections::BTreeSet::new();
            let shared = boxes.iter().flat_map(|&b| coordinates(b)).any(|c| !seen.insert(c));
            prop_assert_eq!(overlap(&boxes).is_some(), shared);
        }
    }
}
