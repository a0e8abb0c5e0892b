use std::{sync::Arc, time::Duration};

use sw_engine::ErrorKind;

use super::{Controller, ControllerConfig, Life, Notify, PairRequest, Reset, ResetLimits};
use crate::{
    namespace::{Identity, Unusable},
    status::Status,
    testbus::{Model, ModelNamespace, TestBus},
    wire::{admin::opcode, log::EventKind},
};

fn open(model: Model) -> (Arc<TestBus>, Arc<Controller<TestBus>>) {
    let bus = TestBus::new(model);
    let controller = Controller::open(bus.clone(), ControllerConfig::default()).unwrap();
    (bus, controller)
}

fn refused(model: Model) -> (ErrorKind, String) {
    let error = Controller::open(TestBus::new(model), ControllerConfig::default()).unwrap_err();
    (error.kind(), error.to_string())
}

const REQUEST: PairRequest = PairRequest { depth: 31, data_bytes_max: 1 << 17, notify: Notify::Interrupt };

const LIMITS: ResetLimits = ResetLimits { queue: Duration::from_secs(5), ready: Duration::from_secs(5) };

#[test]
fn bring_up_finds_facts_and_namespaces() {
    let mut named = ModelNamespace::new(7, 12, 64);
    named.uuid = Some(*b"0123456789abcdef");
    let mut odd = ModelNamespace::new(9, 9, 64);
    odd.metadata_bytes = 8;
    let namespaces = vec![named, odd, ModelNamespace::new(2, 9, 100)];
    let (_, controller) = open(Model { namespaces, cap_high: 1 << 25, ..Model::default() });
    let facts = controller.facts();
    assert_eq!((facts.queue_pairs, facts.transfer_bytes_max), (8, Some(4096 << 5)));
    assert!(facts.write_cache && !facts.shadow_doorbells);
    let cmb = facts.cmb.unwrap();
    assert_eq!((cmb.bar, cmb.len_bytes), (2, 4 << 20), "seen only after CMBMSC.CRE was set");
    let namespaces = controller.namespaces();
    let [two, seven, nine] = &namespaces[..] else { panic!("{namespaces:?}") };
    assert_eq!((two.nsid, two.block_bytes(), two.blocks()), (2, 512, 100));
    assert_eq!(two.identity, Identity::Serial("SERIAL".to_owned(), 2));
    assert_eq!((seven.block_bytes(), seven.len_bytes()), (4096, 64 * 4096));
    assert_eq!(seven.identity, Identity::Uuid(*b"0123456789abcdef"));
    assert_eq!(seven.identity.to_string(), "uuid.30313233-3435-3637-3839-616263646566");
    assert!(matches!(nine.unusable, Some(Unusable::Metadata(_))), "{:?}", nine.unusable);
}

#[test]
fn a_list_of_namespaces_goes_over_pages() {
    let namespaces = (1..=1024).map(|nsid| ModelNamespace::new(nsid, 9, 1)).collect();
    let (bus, controller) = open(Model { namespaces, ..Model::default() });
    assert_eq!(controller.namespaces().len(), 1024);
    assert_eq!(controller.namespaces().last().unwrap().nsid, 1024);
    drop(bus);
}

#[test]
fn a_controller_before_1_1_is_scanned_by_number() {
    let (_, controller) = open(Model { version: 0x0001_0000, ..Model::default() });
    assert_eq!(controller.namespaces().iter().map(|one| one.nsid).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_is_no_controller_is_refused_with_the_reason() {
    let (kind, text) = refused(Model { gone: true, ..Model::default() });
    assert!(kind == ErrorKind::NoDevice && text.contains("all ones"), "{text}");
    let (kind, text) = refused(Model { ready_after_ns: 10_000_000_000, ..Model::default() });
    assert!(kind == ErrorKind::DeadlineExceeded && text.contains("RDY to become 1"), "{text}");
    let (kind, text) = refused(Model { fatal: true, ..Model::default() });
    assert!(kind == ErrorKind::Io && text.contains("CFS"), "{text}");
    let (kind, text) = refused(Model { cap_high: 1 << 16 | 1 << 20, ..Model::default() });
    assert!(kind == ErrorKind::Unsupported && text.contains("8192"), "{text}");
    let (kind, text) = refused(Model { mute: Some(opcode::IDENTIFY), ..Model::default() });
    assert!(kind == ErrorKind::DeadlineExceeded && text.contains("no answer"), "{text}");
    let (kind, text) = refused(Model { nothing_lands: true, ..Model::default() });
    assert!(kind == ErrorKind::Protocol && text.contains("never reached memory"), "{text}");
    let (kind, text) = refused(Model { mqes: 0, ..Model::default() });
    assert!(kind == ErrorKind::Protocol && text.contains("MQES"), "{text}");
}

#[test]
fn ready_just_before_the_limit_is_ready() {
    let (_, controller) = open(Model { ready_after_ns: 499_000_000, ..Model::default() });
    assert_eq!(controller.life(), Life::Up(1));
}

/// CAP.TO says half a second; a controller with CAP.CRMS has the longer limit in CRTO (Base, "Controller Ready Timeouts").
#[test]
fn where_there_is_crto_it_is_waited_for_longer() {
    let (with_media, three_seconds) = (1 << 27, 6);
    let slow = |cap_high, crto, ready_after_ns| Model { cap_high, crto, ready_after_ns, ..Model::default() };
    let (_, controller) = open(slow(with_media, three_seconds, 2_900_000_000));
    assert_eq!(controller.life(), Life::Up(1));
    assert_eq!(controller.reset(1, LIMITS), Reset::Again(2), "and for the way down");
    for never in [slow(with_media, three_seconds, 3_100_000_000), slow(0, three_seconds, 2_900_000_000)] {
        let (kind, text) = refused(never);
        assert!(kind == ErrorKind::DeadlineExceeded && text.contains("RDY to become 1"), "{text}");
    }
}

#[test]
fn pairs_are_limited_given_back_and_have_vectors_of_their_own() {
    let (bus, controller) = open(Model { queues_given: 2, ..Model::default() });
    let first = controller.create_pair(&REQUEST).unwrap();
    let second = controller.create_pair(&REQUEST).unwrap();
    assert_eq!((first.queue.qid(), second.queue.qid()), (1, 2));
    assert_eq!((first.interrupt, second.interrupt), (Some((1, 1)), Some((2, 2))));
    let none = controller.create_pair(&REQUEST).map(drop).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::ResourceLimit);
    assert!(controller.delete_pair(1, 1, Duration::from_secs(1)));
    assert_eq!(controller.create_pair(&REQUEST).unwrap().queue.qid(), 1);
    assert!(bus.model().admin_log.contains(&opcode::DELETE_CQ));
}

#[test]
fn a_pair_fits_what_the_controller_allows() {
    let (_, controller) = open(Model { mqes: 99, vectors: 0, ..Model::default() });
    let pair = controller.create_pair(&PairRequest { depth: 1000, ..REQUEST }).unwrap();
    assert_eq!(pair.queue.entries(), 64, "a power of two within MQES");
    assert_eq!(pair.interrupt, None);
}

#[test]
fn a_submission_queue_that_is_refused_leaves_no_completion_queue() {
    let (bus, controller) = open(Model::default());
    bus.model().refuse = Some((opcode::CREATE_SQ, Status::INVALID_QUEUE_SIZE));
    assert!(controller.create_pair(&REQUEST).is_err());
    assert_eq!(controller.queue_pairs_in_use(), 0);
    bus.model().refuse = None;
    assert!(controller.create_pair(&REQUEST).is_ok(), "the identifiers are free again");
}

#[test]
fn a_reset_voids_earlier_pairs_and_keeps_their_identifiers() {
    let (_, controller) = open(Model::default());
    let old = controller.create_pair(&REQUEST).unwrap();
    assert_eq!(controller.reset(1, LIMITS), Reset::Again(2));
    assert!(controller.life().lets_go_of(old.epoch));
    assert_eq!(controller.reset(1, LIMITS), Reset::Again(2), "somebody did it already");
    let new = controller.create_pair(&REQUEST).unwrap();
    assert_eq!((new.queue.qid(), new.epoch), (2, 2), "1 is out until its owner gives it back");
    controller.release_pair(1);
    let third = controller.create_pair_again(&REQUEST, 5).unwrap();
    assert_eq!(third.queue.qid(), 5, "the one that it had before");
    assert_eq!(controller.create_pair_again(&REQUEST, 5).unwrap().queue.qid(), 1, "it is out");
    assert_eq!(controller.counters().resets, 1);
}

#[test]
fn a_controller_that_cannot_be_disabled_is_stopped_from_outside() {
    for (can_stop, want, life) in [(true, Reset::Dead, Life::Quiet(1)), (false, Reset::Unproven, Life::Loud(1))] {
        let (bus, controller) = open(Model { can_stop, ..Model::default() });
        bus.model().stays_ready = true;
        assert_eq!(controller.reset(1, LIMITS), want);
        assert_eq!((controller.life(), bus.model().stops), (life, 1));
        assert_eq!(controller.create_pair(&REQUEST).map(drop).unwrap_err().kind(), ErrorKind::NoDevice);
    }
}

#[test]
fn resets_in_a_row_end() {
    let (_, controller) = open(Model::default());
    for epoch in 1..=3 {
        assert_eq!(controller.reset(epoch, LIMITS), Reset::Again(epoch + 1));
    }
    assert_eq!(controller.reset(4, LIMITS), Reset::Dead);
    assert_eq!(controller.life(), Life::Quiet(5), "it was seen disabled, and lives no more");
}

#[test]
fn a_hurry_never_stops_a_controller_from_outside_and_the_reset_that_follows_has_all_its_time() {
    let (bus, controller) = open(Model::default());
    bus.model().ready_after_ns = 400_000_000;
    assert_eq!(controller.quiesce(1, Duration::from_millis(100)), Reset::Late);
    assert_eq!((controller.life(), bus.model().stops, controller.wants_work()), (Life::Resetting(1), 0, true));
    controller.work();
    assert_eq!((controller.life(), bus.model().stops), (Life::Up(2), 0));
    // A shutdown that comes between ends it as well.
    assert_eq!(controller.quiesce(2, Duration::from_millis(100)), Reset::Late);
    controller.shut_down().unwrap();
    assert_eq!((controller.life(), bus.model().stops), (Life::Quiet(2), 0));
}

#[test]
fn lanes_that_disable_a_controller_in_good_order_make_no_row_of_resets() {
    let (_, controller) = open(Model::default());
    for epoch in 1..=6 {
        assert_eq!(controller.create_pair(&REQUEST).unwrap().epoch, epoch);
        assert_eq!(controller.quiesce(epoch, Duration::from_secs(1)), Reset::Down);
    }
}

#[test]
fn a_fatal_controller_comes_back_and_a_gone_one_does_not() {
    let (bus, controller) = open(Model::default());
    assert!(!controller.is_ill(1));
    bus.model().fatal = true;
    assert!(controller.is_ill(1));
    assert_eq!(controller.reset(1, LIMITS), Reset::Again(2));
    bus.model().gone = true;
    assert!(controller.is_ill(2));
    assert_eq!(controller.reset(2, LIMITS), Reset::Dead);
}

#[test]
fn an_event_about_namespaces_is_looked_into_and_asked_for_again() {
    let (bus, controller) = open(Model::default());
    let before = controller.inventory();
    bus.model().namespaces.push(ModelNamespace::new(3, 9, 8));
    // Notice, namespace attribute changed, log page 4.
    (0..2).for_each(|_| bus.model().raise(0x0004_0002));
    controller.service().unwrap();
    assert_eq!(controller.namespaces().len(), 2);
    assert_eq!(controller.inventory(), before + 1);
    assert!(bus.model().admin_log.contains(&opcode::GET_LOG_PAGE));
    let events = controller.take_events();
    assert!(events.len() == 2 && events.iter().all(|event| event.kind == EventKind::NamespaceAttribute));
    // Requests that completed were sent again: three are outstanding (AERL 2).
    let requests = bus.model().admin_log.iter().filter(|code| **code == opcode::ASYNC_EVENT_REQUEST).count();
    assert_eq!(requests, 5);
}

#[test]
fn log_pages_are_decoded() {
    let (_, controller) = open(Model::default());
    assert!(controller.error_log(8).unwrap().is_empty());
    assert!(controller.smart().is_ok());
}

#[test]
fn shut_down_ends_in_a_disabled_controller() {
    let (bus, controller) = open(Model::default());
    controller.shut_down().unwrap();
    assert_eq!(controller.life(), Life::Quiet(1));
    let mut model = bus.model();
    assert_eq!(model.read32(crate::wire::regs::CC) & (1 | 3 << 14), 1 << 14, "SHN 01b, then EN 0");
    drop(model);
    assert_eq!(controller.create_pair(&REQUEST).map(drop).unwrap_err().kind(), ErrorKind::Closed);
}

/// Whoever works is at its first try of a bring-up that no command answers: nobody waits for the tries that are left.
#[test]
fn a_shutdown_waits_for_no_bring_up() {
    let bus = TestBus::new(Model::default());
    let config = ControllerConfig { admin_timeout: Duration::from_secs(6000), ..ControllerConfig::default() };
    let controller = Controller::open(bus.clone(), config).unwrap();
    controller.attend(Arc::new(Nobody));
    bus.model().deaf = true;
    controller.ask_for_reset(1);
    let begun = bus.model().now_ns;
    std::thread::scope(|scope| {
        scope.spawn(|| controller.work());
        while controller.life() != Life::Resetting(2) {
            std::thread::yield_now();
        }
        controller.shut_down().unwrap();
    });
    assert_eq!(controller.life(), Life::Quiet(2));
    let seconds = (bus.model().now_ns - begun) / 1_000_000_000;
    assert!(seconds < 6000, "{seconds}");
}

#[test]
fn nothing_is_begun_for_a_controller_that_is_to_be_shut_down() {
    for is_down in [false, true] {
        let (bus, controller) = open(Model::default());
        controller.attend(Arc::new(Nobody));
        if is_down {
            assert_eq!(controller.quiesce(1, Duration::from_secs(1)), Reset::Down);
        }
        let ticket = controller.ask_for_pair(REQUEST, 0, Arc::new(Nobody));
        let (life, commands) = (controller.life(), bus.model().admin_log.len());
        controller.desk.close();
        controller.work();
        let refused = ticket.take().unwrap().map(drop).unwrap_err();
        assert_eq!((refused.kind(), controller.life()), (ErrorKind::Closed, life));
        assert_eq!(bus.model().admin_log.len(), commands);
        assert!(!is_down || controller.rescan().is_err() && controller.life() == life);
        controller.shut_down().unwrap();
    }
}

/// Pairs that lanes left are deleted in good order, but a controller that does not answer is not waited for.
#[test]
fn a_shutdown_waits_a_moment_for_the_deletion_of_pairs() {
    let (bus, controller) = open(Model::default());
    controller.attend(Arc::new(Nobody));
    for _ in 0..3 {
        let pair = controller.create_pair(&REQUEST).unwrap();
        controller.discard(pair.queue, pair.epoch);
    }
    bus.model().deaf = true;
    let begun = bus.model().now_ns;
    controller.shut_down().unwrap();
    let passed = bus.model().now_ns - begun;
    assert!(passed < 2_000_000_000, "{passed}");
    assert_eq!(controller.life(), Life::Quiet(1));
}

/// It broke while nobody waited for an answer.
#[test]
fn a_broken_admin_queue_costs_a_reset_and_no_order() {
    let (bus, controller) = open(Model::default());
    controller.attend(Arc::new(Nobody));
    bus.model().forge(0, 0x7777);
    // A look that finds it broken.
    assert!(!controller.abort(1, 1));
    let ticket = controller.ask_for_pair(REQUEST, 0, Arc::new(Nobody));
    controller.work();
    assert_eq!(ticket.take().unwrap().map(|pair| pair.epoch).unwrap(), 2);
}

struct Nobody;

impl sw_engine::seam::Wake for Nobody {
    fn wake(&self) {}
}

/// It was told of rings that a lane left after the controller was shut down and could not be stopped.
#[test]
fn rings_that_a_loud_controller_may_write_are_never_freed() {
    let left = [false, true].map(|discards| {
        let (bus, controller) = open(Model { can_stop: false, ..Model::default() });
        controller.attend(Arc::new(Nobody));
        let pair = controller.create_pair(&REQUEST).unwrap();
        bus.model().stays_ready = true;
        assert!(controller.shut_down().is_err());
        assert_eq!(controller.life(), Life::Loud(1));
        if discards {
            controller.discard(pair.queue, pair.epoch)
        } else {
            drop(pair)
        }
        drop(controller);
        bus.handles()
    });
    assert!(left[1] > left[0], "{left:?}");
}

#[test]
fn a_dropped_controller_is_disabled() {
    let (bus, controller) = open(Model::default());
    drop(controller);
    assert_eq!(bus.model().read32(crate::wire::regs::CC) & 1, 0);
}

#[test]
fn shadow_doorbells_are_used_where_offered() {
    let (_, controller) = open(Model { shadow_offered: true, ..Model::default() });
    assert!(controller.facts().shadow_doorbells);
}
