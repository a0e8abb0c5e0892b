//! A conversation over a network that is cut at every byte: each stream, each direction, each way in which one ends.
#![forbid(unsafe_code)]

use sw_sim::{Cut, CutKind, Marks, NetWorld, Way};

/// Nanoseconds of a partition that heals before anybody gives up, and of one that heals behind every limit.
const SHORT: u64 = 20_000_000;
const LONG: u64 = 1_000_000_000;

#[test]
fn a_conversation_that_is_cut_at_any_byte_keeps_every_promise() {
    let whole = NetWorld::converse(None);
    assert!(whole.outcome.holds(), "{}", whole.outcome.report);
    let stats = whole.outcome.stats;
    assert_eq!((stats.ops, stats.ok, stats.failed), (15, 15, 0));
    let kinds = [CutKind::Reset, CutKind::HalfClose, CutKind::Partition(SHORT), CutKind::Partition(LONG)];
    let (mut runs, mut marks, mut failed) = (0u32, Marks::default(), 0);
    // The association's stream, and the queue's.
    for (stream, bytes) in whole.bytes.iter().enumerate() {
        for (way, bytes) in Way::ALL.into_iter().zip(bytes) {
            for (at, kind) in (0..=*bytes).flat_map(|at| kinds.map(|kind| (at, kind))) {
                let cut = Cut { stream, way, at, kind };
                let outcome = NetWorld::converse(Some(cut)).outcome;
                assert!(outcome.holds(), "{cut:?}: {}", outcome.report);
                (runs, failed) = (runs + 1, failed + outcome.stats.failed);
                marks.add(&outcome.marks);
            }
        }
    }
    println!("{runs} cuts of {:?} bytes: {failed} operations failed; {marks:?}", whole.bytes);
    assert_eq!(whole.bytes.len(), 2);
    assert!(runs > 10_000 && failed > 0);
}
