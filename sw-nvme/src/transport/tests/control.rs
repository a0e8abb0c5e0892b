//! Lanes and whoever does the slow work of their controller.

use core::sync::atomic::{AtomicU32, Ordering};

use sw_engine::seam::Wake;

use super::*;
use crate::{controller::Reset, wire::admin::opcode as admin};

/// Counts how often it was told.
#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Bell {
    fn rang(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) > 0
    }
}

/// What a lane may wait for the control plane.
const PROMPT_NS: u64 = 10_000_000;

impl Bed {
    fn controller(&self) -> Arc<Controller<TestBus>> {
        self.transport.directory.get(0).unwrap()
    }

    fn attended(model: Model) -> (Self, Arc<Bell>) {
        let (bed, bell) = (Self::new(model), Arc::new(Bell::default()));
        bed.controller().attend(bell.clone());
        (bed, bell)
    }

    /// Another lane over the same controllers.
    fn lane(&self) -> NvmeTransport<TestBus> {
        NvmeTransport::new(self.transport.directory.clone(), self.bus.waiter(), NvmeConfig::default()).unwrap()
    }

    /// Puts one I/O in flight in each of both lanes.
    fn both_in_flight(&mut self, other: &mut NvmeTransport<TestBus>, io: &Io) {
        for lane in [&mut self.transport, &mut *other] {
            assert_eq!(lane.submit(io), Submit::Accepted);
            lane.ring().unwrap();
        }
        self.controller().work();
        for lane in [&mut self.transport, other] {
            lane.poll(Wait::No, &mut self.out).unwrap();
            assert_eq!(lane.parents.live_count(), 1);
        }
    }

    /// A poll that must not wait.
    fn poll_promptly(&mut self) -> Vec<(u64, Result<u32, Fault>)> {
        let before = self.bus.model().now_ns;
        let done = self.poll();
        let passed = self.bus.model().now_ns - before;
        assert!(passed < PROMPT_NS, "a poll took {passed} ns");
        done
    }

    /// An I/O for which a queue pair is perhaps missing.
    fn one_after_work(&mut self, io: &Io) -> Result<u32, Fault> {
        self.submit(io);
        let mut done = self.poll();
        self.controller().work();
        done.extend(self.poll());
        done[0].1
    }

    /// Looks after the controller until the next look at it.
    fn let_look(&mut self) {
        self.bus.model().now_ns += 200_000_000;
        for _ in 0..256 {
            assert_eq!(self.poll_promptly(), []);
        }
    }
}

const AGAIN: Fault = Fault::new(ErrorKind::Io, 0).with_retry(Retry::Now);

#[test]
fn a_queue_pair_is_asked_for_and_its_ios_wait() {
    let (mut bed, bell) = Bed::attended(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll_promptly(), []);
    assert!(bell.rang() && bed.controller().wants_work());
    assert!(!bed.bus.model().admin_log.contains(&admin::CREATE_CQ));
    assert_eq!(bed.poll_promptly(), []);
    assert!(!bell.rang(), "told once");
    bed.controller().work();
    assert!(!bed.controller().wants_work());
    // The answer ends a wait.
    let before = bed.bus.model().now_ns;
    bed.out.clear();
    bed.transport.poll(Wait::For { timeout: Duration::from_secs(5), min: 2 }, &mut bed.out).unwrap();
    assert!(bed.bus.model().now_ns - before < PROMPT_NS);
    assert_eq!(bed.out.iter().map(|done| done.result).collect::<Vec<_>>(), [Ok(4096)]);
}

#[test]
fn a_controller_that_does_not_answer_holds_up_no_poll_and_no_fence() {
    for mute in [admin::CREATE_CQ, admin::IDENTIFY, admin::GET_LOG_PAGE, admin::DELETE_SQ] {
        let (mut bed, _) = Bed::attended(Model { queues_given: 1, ..Model::default() });
        let io = bed.read(1, 0, 0, 4096);
        bed.submit(&io);
        bed.poll_promptly();
        if mute != admin::CREATE_CQ {
            bed.controller().work();
            assert_eq!(bed.poll_promptly(), [(1, Ok(4096))]);
        }
        bed.bus.model().mute = Some(mute);
        bed.bus.model().raise(0x0004_0002);
        bed.let_look();
        assert!(bed.controller().wants_work());
        let before = bed.bus.model().now_ns;
        bed.out.clear();
        assert_eq!(bed.transport.fence(Duration::from_millis(50), &mut bed.out), Fence::Quiet);
        let passed = bed.bus.model().now_ns - before;
        assert!(passed < 60_000_000, "{mute:#04x}: a fence of 50 ms took {passed} ns");
        // The work takes what it takes, elsewhere.
        bed.controller().work();
    }
}

#[test]
fn a_reset_is_asked_for_and_the_ios_end_when_it_was_seen_disabled() {
    let (mut bed, bell) = Bed::attended(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    bed.poll();
    bed.bus.model().lie = Some(Lie::UnknownCid);
    bed.submit(&io);
    assert_eq!(bed.poll_promptly(), []);
    assert_eq!(bed.poll_promptly(), []);
    assert_eq!((bed.controller().life(), bed.transport.counters().resets), (Life::Up(1), 1));
    assert!(bell.rang());
    // It comes up again only after its first try failed: a row of resets is not over with one.
    bed.bus.model().refuse = Some((admin::SET_FEATURES, Status::INTERNAL.with_dnr()));
    bed.bus.model().refusals = Some(1);
    bed.controller().work();
    assert_eq!(bed.controller().life(), Life::Up(2));
    assert_eq!(bed.poll_promptly(), [(1, Err(AGAIN))]);
}

#[test]
fn events_are_looked_into_by_whoever_works() {
    let (mut bed, bell) = Bed::attended(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    bed.poll();
    bell.rang();
    bed.bus.model().namespaces.push(ModelNamespace::new(5, 12, 16));
    bed.bus.model().raise(0x0004_0002);
    bed.let_look();
    assert!(bell.rang());
    assert_eq!(
        (bed.controller().namespaces().len(), bed.bus.model().admin_log.contains(&admin::GET_LOG_PAGE)),
        (1, false)
    );
    bed.controller().work();
    assert_eq!(bed.controller().namespaces().len(), 2);
}

#[test]
fn lanes_go_on_while_another_thread_has_the_admin_queue() {
    let (mut bed, _) = Bed::attended(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
    let controller = bed.controller();
    let mut other = bed.lane();
    controller.while_busy(|| {
        bed.let_look();
        bed.submit(&io);
        assert_eq!(bed.poll_promptly(), [(1, Ok(4096))]);
        assert_eq!(controller.namespaces().len(), 1);
        bed.bus.model().hold = true;
        bed.submit(&io);
        bed.transport.cancel(io.token);
        assert_eq!(bed.poll_promptly(), []);
        let before = bed.bus.model().now_ns;
        assert_eq!(other.submit(&io), Submit::Accepted);
        other.poll(Wait::No, &mut bed.out).unwrap();
        assert!(bed.bus.model().now_ns - before < PROMPT_NS);
        drop(other);
        assert!(bed.bus.model().now_ns - before < PROMPT_NS, "nothing of it is in flight");
    });
}

#[test]
fn a_pair_that_nobody_waits_for_any_more_is_deleted() {
    let (mut bed, _) = Bed::attended(Model::default());
    let mut other = bed.lane();
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    assert_eq!(other.submit(&io), Submit::Accepted);
    other.ring().unwrap();
    // One goes before the answer, one after it.
    assert_eq!(bed.transport.fence(Duration::from_secs(1), &mut bed.out), Fence::Quiet);
    bed.controller().work();
    assert_eq!(bed.controller().queue_pairs_in_use(), 1);
    drop(other);
    bed.controller().work();
    assert_eq!(bed.controller().queue_pairs_in_use(), 0);
    assert!(bed.bus.model().admin_log.contains(&admin::DELETE_CQ));
}

#[test]
fn lanes_work_for_themselves_once_nobody_attends() {
    let (mut bed, _) = Bed::attended(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll(), []);
    bed.controller().leave();
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
}

/// Two lanes with lost commands close at once: the first one disables, the second one sees that in the life word.
#[test]
fn lanes_that_close_together_wait_for_one_disabled_controller_and_for_no_bring_up() {
    let (mut bed, _) = Bed::attended(Model { hold: true, ready_after_ns: 1_000_000, ..Model::default() });
    let mut other = bed.lane();
    other.attach(Attach::Region(&bed.region)).unwrap();
    let io = bed.read(1, 0, 0, 4096);
    bed.both_in_flight(&mut other, &io);
    // From now on no admin command is answered: a bring-up would take minutes.
    bed.bus.model().deaf = true;
    let before = bed.bus.model().now_ns;
    let timeout = Duration::from_millis(400);
    bed.out.clear();
    assert_eq!(bed.transport.fence(timeout, &mut bed.out), Fence::Quiet);
    assert_eq!(other.fence(timeout, &mut bed.out), Fence::Quiet);
    let passed = bed.bus.model().now_ns - before;
    assert!(passed < 900_000_000, "two fences of 400 ms took {passed} ns");
    assert_eq!((bed.controller().life(), bed.out.len()), (Life::Resetting(2), 2));
    // Whoever needs it next brings it up.
    bed.bus.model().deaf = false;
    bed.bus.model().hold = false;
    let mut third = bed.lane();
    third.attach(Attach::Region(&bed.region)).unwrap();
    assert_eq!(third.submit(&io), Submit::Accepted);
    third.ring().unwrap();
    bed.controller().work();
    bed.out.clear();
    third.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut bed.out).unwrap();
    assert_eq!((bed.controller().life(), bed.out[0].result), (Life::Up(2), Ok(4096)));
}

#[test]
fn whoever_works_gives_a_command_up_for_a_lane_that_must_stop_the_controller() {
    let (mut bed, _) = Bed::attended(Model { hold: true, lose: 1, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    bed.poll();
    let controller = bed.controller();
    controller.while_busy(|| assert_eq!(controller.quiesce(1, Duration::from_millis(50)), Reset::Late));
    // The wish stays: the next admin command is not waited for, and the reset comes instead.
    let before = bed.bus.model().now_ns;
    bed.bus.model().mute = Some(admin::IDENTIFY);
    assert!(controller.rescan().is_err());
    assert!(bed.bus.model().now_ns - before < PROMPT_NS);
    bed.bus.model().mute = None;
    controller.work();
    assert_eq!(controller.life(), Life::Up(2));
}

#[test]
fn a_fence_takes_what_ended_whether_or_not_the_caller_has_room() {
    for drops in [false, true] {
        let mut bed = Bed::new(Model { hold: true, ..Model::default() });
        let ios = [bed.read(1, 0, 0, 4096), bed.read(2, 0, 4096, 4096)];
        ios.iter().for_each(|io| bed.submit(io));
        assert_eq!(bed.poll(), []);
        bed.bus.model().release();
        let before = bed.bus.model().now_ns;
        let Bed { bus, mut transport, .. } = bed;
        let controller = transport.directory.get(0).unwrap();
        if !drops {
            assert_eq!(transport.fence(Duration::from_secs(10), &mut Vec::new()), Fence::Quiet);
            assert_eq!(transport.counters().aborts, 0);
        }
        drop(transport);
        let passed = bus.model().now_ns - before;
        assert!(passed < PROMPT_NS, "it waited {passed} ns for what was there");
        let counters = controller.counters();
        assert_eq!((counters.resets, counters.aborts, controller.queue_pairs_in_use()), (0, 0, 0));
    }
}

#[test]
fn a_controller_that_was_too_slow_for_the_fence_has_let_go_by_the_time_the_lane_is_dropped() {
    let (mut bed, _bell) = Bed::attended(Model { lose: 1, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    assert_eq!(bed.poll(), []);
    bed.bus.model().ready_after_ns = 400_000_000;
    bed.out.clear();
    assert_eq!(bed.transport.fence(Duration::from_millis(100), &mut bed.out), Fence::Busy(1));
    let Bed { transport, region, .. } = bed;
    let controller = transport.directory.get(0).unwrap();
    // The one who looks after it goes on meanwhile.
    controller.work();
    assert!(controller.life().lets_go_of(1), "{:?}", controller.life());
    let (leaked, holders) = (super::super::leaked_pairs(), region.holders());
    drop(transport);
    assert_eq!(super::super::leaked_pairs(), leaked);
    assert_eq!(region.holders(), holders, "no handle is kept for it");
}

#[test]
fn a_forked_child_submits_rings_polls_and_makes_nothing() {
    let mut bed = Bed::new(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    assert_eq!(bed.one(&io), Ok(4096));
    let controller = bed.controller();
    let rung = bed.bus.model().doorbell_writes.len();
    bed.submit(&io);
    bed.transport.fork.pretend_child();
    controller.fork.pretend_child();
    assert_eq!(bed.transport.submit(&io), Submit::Full);
    assert_eq!(bed.transport.ring().unwrap_err().kind(), ErrorKind::Forked);
    for wait in [Wait::No, Wait::For { timeout: Duration::from_secs(1), min: 1 }] {
        assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap_err().kind(), ErrorKind::Forked);
    }
    let request =
        crate::controller::PairRequest { depth: 8, data_bytes_max: 4096, notify: crate::controller::Notify::Polled };
    assert_eq!(controller.create_pair(&request).map(drop).unwrap_err().kind(), ErrorKind::Forked);
    assert_eq!(controller.rescan().unwrap_err().kind(), ErrorKind::Forked);
    controller.work();
    assert_eq!(bed.bus.model().doorbell_writes.len(), rung);
}

#[test]
fn the_error_of_a_refused_queue_pair_is_told_with_its_remedy() {
    let mut bed = Bed::new(Model { queues_given: 1, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    assert_eq!(bed.one(&io), Ok(4096));
    let mut other = bed.lane();
    assert_eq!(other.submit(&io), Submit::Accepted);
    bed.out.clear();
    other.poll(Wait::No, &mut bed.out).unwrap();
    let fault = bed.out[0].result.unwrap_err();
    let why = other.explain(io.handle, fault).unwrap();
    assert!(why.to_string().contains("all 1 queue pairs") && why.remedy_text().contains("fewer lanes"), "{why}");
    assert!(other.explain(io.handle, Fault::new(ErrorKind::Io, 5)).is_none(), "another fault has another reason");
}

#[test]
fn a_lane_that_does_not_use_its_queue_pair_leaves_it_to_one_that_has_none() {
    let (mut bed, _) = Bed::attended(Model { queues_given: 1, ..Model::default() });
    let mut other = bed.lane();
    other.attach(Attach::Region(&bed.region)).unwrap();
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
    (0..20).for_each(|_| bed.let_look());
    assert_eq!(bed.controller().queue_pairs_in_use(), 1, "nobody else wants it");
    let mut ask = |bed: &mut Bed| {
        assert_eq!(other.submit(&io), Submit::Accepted);
        other.ring().unwrap();
        bed.controller().work();
        bed.out.clear();
        other.poll(Wait::No, &mut bed.out).unwrap();
        other.poll(Wait::No, &mut bed.out).unwrap();
        bed.out[0].result
    };
    assert_eq!(ask(&mut bed), Err(Fault::new(ErrorKind::ResourceLimit, Fault::NO_QUEUE_LEFT)));
    bed.let_look();
    bed.controller().work();
    assert_eq!(ask(&mut bed), Ok(4096));
    assert_eq!(bed.bus.model().bad_doorbells, 0);
}

#[test]
fn nobody_rings_doorbells_of_a_controller_that_is_being_disabled() {
    let (mut bed, _) = Bed::attended(Model { hold: true, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.controller().work();
    bed.poll();
    bed.bus.model().ready_after_ns = 20_000_000_000;
    assert_eq!(bed.controller().quiesce(1, Duration::from_millis(100)), Reset::Late);
    let rung = bed.bus.model().doorbell_writes.len();
    (0..20).for_each(|_| bed.let_look());
    assert_eq!(bed.bus.model().doorbell_writes.len(), rung);
}

/// It waits for its time to be sent again, while the controller is being reset for another lane: no device has anything of it.
#[test]
fn an_io_that_is_to_be_sent_again_is_no_reason_to_keep_memory() {
    let (mut bed, _) = Bed::attended(Model { crdt1: 2, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.bus.model().statuses.extend([Status::NAMESPACE_NOT_READY.with_crd(1)]);
    bed.controller().work();
    assert_eq!(bed.poll(), []);
    assert_eq!((bed.poll(), bed.commands()), (vec![], 1));
    bed.bus.model().ready_after_ns = 20_000_000_000;
    assert_eq!(bed.controller().quiesce(1, Duration::from_millis(100)), Reset::Late);
    bed.out.clear();
    assert_eq!(bed.transport.fence(Duration::from_millis(100), &mut bed.out), Fence::Quiet);
    assert!(bed.out.len() == 1 && error(ErrorKind::Cancelled)(&bed.out[0].result), "{:?}", bed.out);
}

#[test]
fn a_refusal_from_before_an_io_is_not_told_to_it() {
    for looks in [false, true] {
        let (mut bed, _) = Bed::attended(Model::default());
        let face = face(0, &bed.controller().namespaces()[0]).unwrap();
        let object = sw_engine::Object {
            id: sw_engine::Object::next_id(),
            name: "one".into(),
            len: 1 << 20,
            version: sw_engine::Version::default(),
            faces: vec![face],
            residency: sw_engine::Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        };
        bed.bus.model().refuse = Some((admin::CREATE_CQ, Status::INTERNAL.with_dnr()));
        bed.transport.attach(Attach::Object(&Arc::new(object))).unwrap();
        bed.controller().work();
        bed.bus.model().refuse = None;
        if looks {
            bed.let_look();
        }
        let io = bed.read(1, 0, 0, 4096);
        bed.submit(&io);
        assert_eq!(bed.poll_promptly(), []);
        bed.controller().work();
        assert_eq!(bed.poll_promptly(), [(1, Ok(4096))]);
    }
}

#[test]
fn a_pair_that_came_after_its_io_was_called_off_goes_to_whoever_lacks_one() {
    let (mut bed, _) = Bed::attended(Model { queues_given: 1, ..Model::default() });
    let mut other = bed.lane();
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.transport.cancel(io.token);
    assert_eq!(bed.poll().len(), 1);
    bed.controller().work();
    assert_eq!(other.submit(&io), Submit::Accepted);
    other.ring().unwrap();
    bed.controller().work();
    (0..20).for_each(|_| bed.let_look());
    bed.controller().work();
    assert_eq!(bed.controller().queue_pairs_in_use(), 0);
}

/// The words of a refusal are for the I/Os that it ended, and for no other failure of the same kind.
#[test]
fn an_old_refusal_explains_no_later_fault() {
    let mut bed = Bed::new(Model::default());
    bed.bus.model().refuse = Some((admin::CREATE_CQ, Status::INTERNAL.with_dnr()));
    let io = bed.read(1, 0, 0, 4096);
    let refused = bed.one(&io).unwrap_err();
    let why = bed.transport.explain(io.handle, refused).unwrap().to_string();
    assert!(why.contains("create I/O completion queue"), "{why}");
    let bad = Status::UNRECOVERED_READ.with_dnr();
    let media = Fault::new(ErrorKind::Io, i32::from(bad.code()));
    assert!(bed.transport.explain(io.handle, media).is_none(), "another code");
    bed.bus.model().refuse = None;
    assert_eq!(bed.one(&io), Ok(4096));
    assert!(bed.transport.explain(io.handle, refused).is_none(), "it has its pair since");
    // One that dies tells why.
    bed.controller().shut_down().unwrap();
    assert_eq!(bed.poll(), []);
    let dead = bed.one(&io).unwrap_err();
    let why = bed.transport.explain(io.handle, dead).unwrap();
    assert!(why.to_string().contains("shut down") && why.remedy_text().contains("open it again"), "{why}");
}

/// A lane that closes in a hurry pays for that itself: the controller has all its time, and the other lanes go on.
#[test]
fn the_hurry_of_one_lane_does_not_end_the_controller_for_the_others() {
    for attended in [true, false] {
        let mut bed = Bed::new(Model { hold: true, ..Model::default() });
        if attended {
            bed.controller().attend(Arc::new(Bell::default()));
        }
        let mut other = bed.lane();
        other.attach(Attach::Region(&bed.region)).unwrap();
        let io = bed.read(1, 0, 0, 4096);
        bed.both_in_flight(&mut other, &io);
        // Within CAP.TO, and longer than the lane has.
        bed.bus.model().ready_after_ns = 400_000_000;
        bed.bus.model().refuse = Some((admin::DELETE_SQ, Status::INVALID_QUEUE_ID));
        bed.bus.model().mute = Some(admin::ABORT);
        assert_eq!(other.fence(Duration::from_millis(200), &mut bed.out), Fence::Busy(1));
        assert_eq!((bed.controller().life(), bed.bus.model().stops), (Life::Resetting(1), 0));
        drop(other);
        bed.bus.model().hold = false;
        if attended {
            assert_eq!(bed.poll_promptly(), []);
            bed.controller().work();
        }
        let done: Vec<_> = (0..2).flat_map(|_| bed.poll()).collect();
        assert_eq!((done, bed.controller().life()), (vec![(1, Err(AGAIN))], Life::Up(2)));
        assert_eq!(bed.one_after_work(&io), Ok(4096));
        let model = bed.bus.model();
        assert_eq!((model.stops, model.bad_doorbells), (0, 0));
    }
}
