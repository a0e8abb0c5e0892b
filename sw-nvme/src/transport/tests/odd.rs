//! What happens beside the usual ways: late wake-ups, namespaces that change, forks, refusals.

use super::*;

#[test]
fn a_wake_up_that_comes_as_the_sleep_ends_ends_the_poll() {
    let mut bed = Bed::new(Model::default());
    bed.transport.waiter.wakes_late = true;
    let before = bed.bus.model().now_ns;
    let timeout = Duration::from_secs(1);
    assert_eq!(bed.transport.poll(Wait::For { timeout, min: 1 }, &mut bed.out).unwrap(), 0);
    let passed = bed.bus.model().now_ns - before;
    assert!(passed < 150_000_000, "one slice and not the whole second: {passed} ns");
    // Nothing is left of it.
    let before = bed.bus.model().now_ns;
    assert_eq!(bed.transport.poll(Wait::For { timeout, min: 1 }, &mut bed.out).unwrap(), 0);
    assert!(bed.bus.model().now_ns - before >= 1_000_000_000);
}
