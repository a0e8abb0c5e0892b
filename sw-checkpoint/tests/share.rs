//! Properties of sharing: every byte is read once, readers are balanced, each rank ends with exactly its wants.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sw_checkpoint::{
    Catalog, CatalogBuilder, CatalogFile, Chunk, Dtype, FileRange, Format, RankShare, Scope, Share, ShareLimits, Want,
    share,
};

/// The byte of a file at an offset.
fn byte(file: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0] ^ u8::try_from(file % 251).unwrap()
}

/// Tensors of two dimensions, each cut into a grid whose chunks lie in turn in one of three files.
fn catalog(tensors: &[(u64, u64, u64, u64)]) -> Catalog {
    let mut lens = [7_u64, 100, 5000];
    let mut made = Vec::new();
    for &(rows, columns, down, across) in tensors {
        let mut chunks = Vec::new();
        for r in 0..down {
            for c in 0..across {
                let (top, bottom) = (rows * r / down, rows * (r + 1) / down);
                let (left, right) = (columns * c / across, columns * (c + 1) / across);
                let (offsets, sizes) = ([top, left], [bottom - top, right - left]);
                let len_bytes = 2 * sizes[0] * sizes[1];
                let file = (made.len() + chunks.len()) % 3;
                chunks.push(Chunk {
                    file,
                    file_offset: lens[file],
                    len_bytes,
                    offsets: offsets.into(),
                    sizes: sizes.into(),
                });
                lens[file] += len_bytes + 3;
            }
        }
        made.push((rows, columns, chunks));
    }
    let files = lens.iter().enumerate().map(|(at, len)| CatalogFile::new(format!("f{at}"), *len)).collect();
    let mut builder = CatalogBuilder::new(Format::Dcp, files);
    for (at, (rows, columns, chunks)) in made.into_iter().enumerate() {
        builder.chunked(format!("t{at}").into(), Dtype::Bf16, [rows, columns].into(), chunks).unwrap();
    }
    builder.finish().unwrap()
}

/// The bytes of a want, element by element.
fn oracle(catalog: &Catalog, want: &Want) -> Vec<u8> {
    let tensor = &catalog.tensors()[want.tensor];
    let mut bytes = Vec::new();
    for r in want.offsets[0]..want.offsets[0] + want.sizes[0] {
        for c in want.offsets[1]..want.offsets[1] + want.sizes[1] {
            let inside = |chunk: &&Chunk| {
                (0..2).all(|d| [r, c][d] >= chunk.offsets[d] && [r, c][d] < chunk.offsets[d] + chunk.sizes[d])
            };
            let chunk = tensor.chunks().iter().find(inside).unwrap();
            let at = chunk.file_offset + 2 * ((r - chunk.offsets[0]) * chunk.sizes[1] + (c - chunk.offsets[1]));
            bytes.extend([byte(chunk.file, at), byte(chunk.file, at + 1)]);
        }
    }
    bytes
}

/// The bytes of a want, as the rank puts them together from what it has.
fn put_together(rank: &RankShare, number: usize, len: usize, has: &BTreeSet<(usize, u64)>) -> Vec<u8> {
    let mut bytes = vec![None; len];
    for cut in rank.cuts.iter().filter(|cut| cut.want == number) {
        let mut runs = vec![(cut.file_offset, cut.want_offset)];
        for &(count, from, to) in &cut.steps {
            runs = runs.into_iter().flat_map(|(a, b)| (0..count).map(move |i| (a + i * from, b + i * to))).collect();
        }
        for (from, to) in runs {
            for step in 0..cut.run_len {
                assert!(has.contains(&(cut.file, from + step)), "byte {} of file {} is missing", from + step, cut.file);
                let place = &mut bytes[usize::try_from(to + step).unwrap()];
                assert!(place.is_none(), "a byte of a want has two sources");
                *place = Some(byte(cut.file, from + step));
            }
        }
    }
    bytes.into_iter().map(|byte| byte.expect("every byte of a want has a source")).collect()
}

fn bytes_of(ranges: impl Iterator<Item = FileRange>) -> Vec<(usize, u64)> {
    ranges.flat_map(|range| (0..range.len_bytes).map(move |at| (range.file, range.file_offset + at))).collect()
}

/// Checks everything that the module states, for one group of ranks.
fn check(catalog: &Catalog, wants: &[Vec<Want>], share: &Share, limits: ShareLimits) {
    let mut read_by: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    for (rank, of_rank) in share.ranks.iter().enumerate() {
        for at in bytes_of(of_rank.reads.iter().copied()) {
            assert_eq!(read_by.insert(at, rank), None, "byte {at:?} is read twice");
        }
    }
    let mut needed = BTreeSet::new();
    for (rank, of_rank) in share.ranks.iter().enumerate() {
        let given: BTreeSet<(usize, u64)> =
            bytes_of(of_rank.receives.iter().map(|transfer| transfer.range)).into_iter().collect();
        for transfer in &of_rank.receives {
            assert_ne!(transfer.rank, rank);
            let twin = sw_checkpoint::Transfer { rank, range: transfer.range };
            assert!(share.ranks[transfer.rank].sends.contains(&twin));
        }
        for transfer in &of_rank.sends {
            bytes_of(std::iter::once(transfer.range)).iter().for_each(|at| assert_eq!(read_by[at], rank));
            let twin = sw_checkpoint::Transfer { rank, range: transfer.range };
            assert!(share.ranks[transfer.rank].receives.contains(&twin));
        }
        let own: BTreeSet<(usize, u64)> = bytes_of(of_rank.reads.iter().copied()).into_iter().collect();
        assert!(own.is_disjoint(&given), "what a rank reads nobody gives it");
        let has: BTreeSet<(usize, u64)> = own.union(&given).copied().collect();
        let mut used = BTreeSet::new();
        for (number, want) in wants[rank].iter().enumerate() {
            let expected = oracle(catalog, want);
            assert_eq!(put_together(of_rank, number, expected.len(), &has), expected);
            used.extend(of_rank.cuts.iter().filter(|cut| cut.want == number).flat_map(|cut| {
                let mut runs = vec![cut.file_offset];
                for &(count, from, _) in &cut.steps {
                    runs = runs.into_iter().flat_map(|a| (0..count).map(move |i| a + i * from)).collect();
                }
                runs.into_iter()
                    .flat_map(|from| (0..cut.run_len).map(move |i| (cut.file, from + i)))
                    .collect::<Vec<_>>()
            }));
        }
        if limits.gap_max_bytes == 0 {
            // It may read for others; what it is given is exactly the rest of what it wants.
            assert_eq!(given, used.difference(&own).copied().collect());
        }
        needed.extend(used);
    }
    if limits.gap_max_bytes == 0 {
        assert_eq!(read_by.keys().copied().collect::<BTreeSet<_>>(), needed, "nothing is read that nobody wants");
    }
    let total: u64 = share.ranks.iter().map(RankShare::read_bytes).sum();
    let fair = total.div_ceil(share.ranks.len() as u64) + limits.piece_max_bytes;
    assert!(
        share.ranks.iter().all(|rank| rank.read_bytes() <= fair),
        "{:?} of {total}",
        share.ranks.iter().map(RankShare::read_bytes).collect::<Vec<_>>()
    );
}

fn cases() -> impl Strategy<Value = (Catalog, Vec<Vec<Want>>, ShareLimits)> {
    let tensor = (1_u64..12, 1_u64..12, 1_u64..4, 1_u64..4).prop_map(|(r, c, d, a)| (r, c, d.min(r), a.min(c)));
    let tensors = prop::collection::vec(tensor, 1..5);
    let want = (0_usize..4, 0_u64..12, 0_u64..12, 1_u64..12, 1_u64..12);
    let wants = prop::collection::vec(prop::collection::vec(want, 0..4), 1..6);
    let limits = (1_u64..5, prop_oneof![Just(1_u64), Just(16)], prop_oneof![Just(0_u64), Just(8)]);
    (tensors, wants, limits).prop_map(|(tensors, wants, (pieces, align_bytes, gap_max_bytes))| {
        let one = |(at, r, c, h, w): &(usize, u64, u64, u64, u64)| {
            let at = at % tensors.len();
            let (rows, columns, ..) = tensors[at];
            let (r, c) = (r % rows, c % columns);
            Want { tensor: at, offsets: [r, c].into(), sizes: [(*h).min(rows - r), (*w).min(columns - c)].into() }
        };
        let wants = wants.iter().map(|list| list.iter().map(one).collect()).collect();
        let limits = ShareLimits { piece_max_bytes: pieces * align_bytes, align_bytes, gap_max_bytes };
        (catalog(&tensors), wants, limits)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_byte_is_read_once_and_each_rank_gets_its_wants((catalog, wants, limits) in cases()) {
        let shared = share(&catalog, &wants, Scope::Job, limits).unwrap();
        check(&catalog, &wants, &shared, limits);
        let text = serde_json::to_string(&shared).unwrap();
        prop_assert_eq!(serde_json::from_str::<Share>(&text).unwrap(), shared);
    }

    #[test]
    fn nodes_share_among_themselves((catalog, wants, limits) in cases(), per_node in 1_usize..4) {
        let shared = share(&catalog, &wants, Scope::Node(per_node), limits).unwrap();
        for (number, ranks) in shared.ranks.chunks(per_node).enumerate() {
            let first = number * per_node;
            let mut own = Share { ranks: ranks.to_vec() };
            for rank in &mut own.ranks {
                rank.sends.iter_mut().chain(&mut rank.receives).for_each(|transfer| transfer.rank -= first);
            }
            check(&catalog, &wants[first..first + ranks.len()], &own, limits);
        }
    }
}

#[test]
fn four_ranks_that_want_everything_read_a_quarter_each() {
    let catalog = catalog(&[(1000, 1000, 1, 1), (500, 100, 2, 1)]);
    let all: Vec<Want> = (0..2).map(|at| Want::whole(&catalog, at).unwrap()).collect();
    let limits = ShareLimits { piece_max_bytes: 64 << 10, ..ShareLimits::default() };
    let shared = share(&catalog, &vec![all; 4], Scope::Job, limits).unwrap();
    let read: Vec<u64> = shared.ranks.iter().map(RankShare::read_bytes).collect();
    assert_eq!(read.iter().sum::<u64>(), 2_100_000);
    assert!(read.iter().all(|bytes| bytes.abs_diff(525_000) <= 64 << 10), "{read:?}");
}

#[test]
fn ranks_that_want_different_rows_read_their_own() {
    let catalog = catalog(&[(1000, 64, 1, 1)]);
    let wants: Vec<Vec<Want>> =
        (0..4).map(|r| vec![Want::slice(&catalog, "t0", &[r * 250..(r + 1) * 250, 0..64]).unwrap()]).collect();
    let shared = share(&catalog, &wants, Scope::Job, ShareLimits::default()).unwrap();
    assert!(
        shared.ranks.iter().all(|rank| rank.sends.is_empty() && rank.reads.len() == 1 && rank.read_bytes() == 32_000)
    );
}
