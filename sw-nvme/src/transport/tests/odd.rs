//! What happens beside the usual ways: late wake-ups, namespaces that change, forks, refusals.

use super::{super::Place, *};

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

impl Bed {
    /// Lets the controller tell that its namespaces changed, and the transport hear it.
    fn tell_namespaces(&mut self) {
        self.bus.model().raise(0x0004_0002);
        self.bus.model().now_ns += 200_000_000;
        (0..256).for_each(|_| drop(self.poll()));
    }

    fn face(&self) -> sw_engine::Face {
        face(0, &self.transport.directory.get(0).unwrap().namespaces()[0]).unwrap()
    }
}

#[test]
fn a_namespace_that_was_formatted_or_made_anew_is_not_touched_through_what_was_opened_before() {
    let other = ModelNamespace { uuid: Some([7; 16]), ..ModelNamespace::new(1, 9, 4096) };
    for after in [ModelNamespace::new(1, 12, 512), other, ModelNamespace::new(1, 9, 2048)] {
        let mut bed = Bed::new(Model::default());
        let write = bed.io(1, IoKind::Write, 512, &[(0, 512)]);
        assert_eq!(bed.one(&write), Ok(512));
        bed.bus.model().namespaces[0] = after;
        bed.tell_namespaces();
        let (before, flush) = (bed.commands(), bed.io(2, IoKind::FlushAll, 0, &[]));
        for io in [write, bed.read(1, 0, 0, 4096), flush] {
            let result = bed.one(&io);
            assert!(error(ErrorKind::Changed)(&result), "{result:?}");
        }
        assert_eq!(bed.commands(), before, "nothing was sent");
        let again = Io { handle: bed.face().handle, ..bed.read(3, 4096, 0, 4096) };
        assert_eq!(bed.one(&again), Ok(4096), "what is opened anew works");
    }
}

#[test]
fn a_look_at_namespaces_that_stayed_and_a_reset_leave_what_was_opened_in_use() {
    let grows = ModelNamespace { uuid: Some([7; 16]), ..ModelNamespace::new(1, 9, 4096) };
    let mut bed = Bed::new(Model { namespaces: vec![grows], ..Model::default() });
    let read = bed.read(1, 512, 0, 512);
    assert_eq!(bed.one(&read), Ok(512));
    let larger = ModelNamespace { uuid: Some([7; 16]), ..ModelNamespace::new(1, 9, 8192) };
    bed.bus.model().namespaces[0] = larger;
    bed.tell_namespaces();
    assert_eq!(bed.one(&read), Ok(512));
    bed.transport.reset(0);
    assert_eq!(bed.one(&read), Ok(512));
}

#[test]
fn an_offset_or_length_that_is_no_multiple_of_the_block_is_refused() {
    let mut bed = Bed::new(Model { namespaces: vec![ModelNamespace::new(1, 12, 512)], ..Model::default() });
    for (offset, len) in [(512, 4096), (0, 512), (4096, 4608)] {
        for kind in [IoKind::Read, IoKind::Write] {
            let io = bed.io(1, kind, offset, &[(0, len)]);
            let result = bed.one(&io);
            assert!(error(ErrorKind::ApiMisuse)(&result), "{result:?}");
        }
    }
    assert_eq!(bed.commands(), 0);
}

#[test]
fn one_odd_namespace_leaves_the_others_in_use() {
    // Blocks of one byte, which no format has.
    let odd = ModelNamespace { block_log2: 0, ..ModelNamespace::new(2, 9, 16) };
    let mut bed = Bed::new(Model { namespaces: vec![ModelNamespace::new(1, 9, 4096), odd], ..Model::default() });
    let namespaces = bed.transport.directory.get(0).unwrap().namespaces();
    let text = face(0, &namespaces[1]).unwrap_err().to_string();
    assert!(text.contains("what the controller says about it cannot be"), "{text}");
    let read = bed.read(1, 0, 0, 512);
    assert_eq!(bed.one(&read), Ok(512));
    let io = Io { handle: handle(0, 2), ..read };
    assert!(error(ErrorKind::NoDevice)(&bed.one(&io)));
    // And one that becomes odd while the controller runs costs no reset.
    bed.bus.model().namespaces[1].nsid = 3;
    bed.tell_namespaces();
    assert_eq!(bed.one(&read), Ok(512));
    assert_eq!(bed.transport.counters().resets, 0);
}

#[test]
fn a_region_that_is_refused_at_first_says_why_and_is_asked_for_again() {
    let mut bed = Bed::new(Model::default());
    let (region, read) = (bed.region.clone(), bed.read(1, 0, 0, 4096));
    assert_eq!(bed.one(&read), Ok(4096));
    bed.bus.model().memory.full = true;
    bed.bus.model().memory.forget(region.id());
    let Place::Linked(link) = &mut bed.transport.places[0] else { panic!("it is linked") };
    // As when the pair is made.
    link.detach(region.id());
    link.attach(&region).unwrap_err();
    assert_eq!(bed.one(&read), Err(Fault::new(ErrorKind::ResourceLimit, Fault::NOT_MAPPED)));
    let error = bed.transport.attach(Attach::Region(&region)).unwrap_err();
    assert!(error.to_string().contains("the test says no"), "{error}");
    bed.bus.model().memory.full = false;
    // The attach of another region asks for it too.
    let other = SlabPool::new(1, ByteLen(4096), HugePages::Never).unwrap();
    bed.transport.attach(Attach::Region(other.region())).unwrap();
    assert_eq!(bed.one(&read), Ok(4096));
}

#[test]
fn without_a_queue_pair_the_fault_says_that_and_nothing_else() {
    let mut bed = Bed::new(Model { queues_given: 1, ..Model::default() });
    let directory = bed.transport.directory.clone();
    let read = bed.read(1, 0, 0, 4096);
    assert_eq!(bed.one(&read), Ok(4096));
    let mut other = NvmeTransport::new(directory, bed.bus.waiter(), NvmeConfig::default()).unwrap();
    assert_eq!(other.submit(&read), Submit::Accepted);
    bed.out.clear();
    other.poll(Wait::No, &mut bed.out).unwrap();
    assert_eq!(bed.out[0].result, Err(Fault::new(ErrorKind::ResourceLimit, Fault::NO_QUEUE_LEFT)));
}

#[test]
fn a_forked_child_leaves_the_controller_alone() {
    let mut bed = Bed::new(Model { hold: true, ..Model::default() });
    let read = bed.read(1, 0, 0, 4096);
    bed.submit(&read);
    assert_eq!(bed.poll(), []);
    let count = |bus: &TestBus| {
        let model = bus.model();
        (model.admin_log.len(), model.stops)
    };
    let before = count(&bed.bus);
    let controller = bed.transport.directory.get(0).unwrap();
    bed.transport.fork.pretend_child();
    controller.fork.pretend_child();
    assert_eq!(bed.transport.fence(Duration::from_secs(1), &mut bed.out), Fence::Busy(1));
    assert_eq!(controller.shut_down().unwrap_err().kind(), ErrorKind::Forked);
    let Bed { bus, transport, region, _pool, .. } = bed;
    drop(transport);
    drop(controller);
    assert_eq!(count(&bus), before, "no command, no stop");
    let mut model = bus.model();
    assert_eq!(model.read32(crate::wire::regs::CC) & 1, 1, "it is still enabled");
    drop(model);
    assert!(Arc::strong_count(&bus) > 1, "nobody closed the function");
    drop(region);
}

#[test]
fn a_forked_child_that_drops_the_last_handle_of_a_controller_leaves_it_enabled() {
    let bus = TestBus::new(Model::default());
    let controller = Controller::open(bus.clone(), ControllerConfig::default()).unwrap();
    controller.fork.pretend_child();
    drop(controller);
    assert_eq!(bus.model().read32(crate::wire::regs::CC) & 1, 1);
    assert!(Arc::strong_count(&bus) > 1, "nobody closed the function");
}

#[test]
fn a_controller_that_was_taken_out_is_closed_by_its_last_lane_and_its_successor_has_another_index() {
    let mut bed = Bed::new(Model::default());
    let directory = bed.transport.directory.clone();
    let read = bed.read(1, 0, 0, 4096);
    assert_eq!(bed.one(&read), Ok(4096));
    let mut other = NvmeTransport::new(directory.clone(), bed.bus.waiter(), NvmeConfig::default()).unwrap();
    other.attach(Attach::Region(&bed.region)).unwrap();
    let dead = directory.take_out(0).unwrap();
    dead.shut_down().unwrap();
    let dead = {
        let weak = Arc::downgrade(&dead);
        drop(dead);
        weak
    };
    assert!(dead.upgrade().is_some(), "the lane has a queue pair of it");
    let successor = Controller::open(TestBus::new(Model::default()), ControllerConfig::default()).unwrap();
    assert_eq!(directory.add(successor).unwrap(), 1);
    assert_eq!((directory.count(), directory.all().len()), (2, 1));
    let gone = Err(Fault::new(ErrorKind::NoDevice, 0));
    assert_eq!(bed.one(&read), gone);
    assert!(dead.upgrade().is_none(), "the lane let go of it");
    // A lane that never had a queue pair of it.
    assert_eq!(other.submit(&read), Submit::Accepted);
    bed.out.clear();
    other.poll(Wait::No, &mut bed.out).unwrap();
    assert_eq!(bed.out[0].result, gone);
    let through = sw_engine::seam::Io { handle: handle(1, 1), token: Token::from_raw(2), ..read };
    assert_eq!(bed.one(&through), Ok(4096));
}

#[test]
fn a_controller_whose_loss_the_system_tells_fails_its_ios_within_two_looks() {
    for (told, longest_ms) in [(true, 300), (false, 1_500)] {
        let mut bed = Bed::new(Model { hold: true, ..Model::default() });
        let io = bed.read(1, 0, 0, 4096);
        bed.submit(&io);
        bed.transport.ring().unwrap();
        let begun = {
            let mut model = bed.bus.model();
            (model.gone, model.told_gone) = (true, told);
            model.now_ns
        };
        let wait = Wait::For { timeout: Duration::from_secs(10), min: 1 };
        bed.out.clear();
        bed.transport.poll(wait, &mut bed.out).unwrap();
        assert!(error(ErrorKind::NoDevice)(&bed.out[0].result), "{:?}", bed.out);
        let took = bed.bus.model().now_ns - begun;
        assert!(took < longest_ms * 1_000_000, "told: {told}; it took {took} ns");
    }
}

#[test]
fn memory_is_attached_although_a_controller_was_just_taken_away() {
    let mut bed = Bed::new(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    assert_eq!(bed.one(&io), Ok(4096));
    (bed.bus.model().gone, bed.bus.model().told_gone) = (true, true);
    let other = SlabPool::new(1, ByteLen(4096), HugePages::Never).unwrap();
    bed.transport.attach(Attach::Region(other.region())).unwrap();
    let into = Io { token: Token::from_raw(2), ..io };
    let into = Io {
        segments: [sw_engine::seam::MemorySegment {
            place: other.region().base(),
            len: 4096,
            region: other.region().id(),
        }; 3],
        ..into
    };
    bed.submit(&into);
    bed.out.clear();
    let wait = Wait::For { timeout: Duration::from_secs(10), min: 1 };
    bed.transport.poll(wait, &mut bed.out).unwrap();
    assert!(error(ErrorKind::NoDevice)(&bed.out[0].result), "{:?}", bed.out);
}
