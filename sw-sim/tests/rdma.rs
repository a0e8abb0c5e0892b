//! A conversation over RDMA that is ended, or loses its NIC, at every event.
#![forbid(unsafe_code)]

use sw_nvme::rdma::Registering;
use sw_sim::{Mark, Marks, RdmaCut, RdmaWorld};

#[test]
fn a_conversation_that_is_ended_at_any_event_keeps_every_promise() {
    let (mut runs, mut failed, mut marks) = (0u64, 0, Marks::default());
    for registering in [Registering::Kept, Registering::PerCommand] {
        let whole = RdmaWorld::converse(registering, None);
        assert!(whole.holds(), "{}", whole.report);
        let stats = whole.stats;
        assert_eq!((stats.ops, stats.ok, stats.failed), (8, 8, 0));
        for cut in (1..=stats.events).flat_map(|at| [RdmaCut::Ended(at), RdmaCut::PulledOut(at)]) {
            let outcome = RdmaWorld::converse(registering, Some(cut));
            assert!(outcome.holds(), "{cut:?}: {}", outcome.report);
            (runs, failed) = (runs + 1, failed + outcome.stats.failed);
            marks.add(&outcome.marks);
        }
    }
    println!("{runs} cuts: {failed} operations failed; {marks:?}");
    assert!(runs > 400 && failed > 0);
    assert_eq!(marks.missing(&[Mark::RdmaLost, Mark::RdmaNicGone, Mark::RdmaOvertaken, Mark::RdmaInCapsule]), []);
}
