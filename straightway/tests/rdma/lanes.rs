//! Transports of lanes, by hand.

use sw_engine::{
    Token,
    seam::{Attach, Io, MemorySegment, Submit, Wait},
};

use super::*;

/// A lane's transport with memory, and the object that it reads and writes.
pub(super) struct Lane {
    pub(super) transport: TcpTransport,
    pub(super) memory: DmaSpan,
}

impl Lane {
    pub(super) fn new(directory: &Arc<Directory>) -> Self {
        Self::of(directory, 8192)
    }

    /// With so much memory.
    pub(super) fn of(directory: &Arc<Directory>, bytes: u64) -> Self {
        let config = TcpConfig { wire: Wire::EmulatedRdma, ..TcpConfig::default() };
        let mut transport = TcpTransport::new(directory.clone(), config).unwrap();
        let memory = Buffer::allocate(ByteLen(bytes)).unwrap().into_span();
        transport.attach(Attach::Region(memory.region())).unwrap();
        Self { transport, memory }
    }

    /// Lets go of the memory and takes other memory, with or without a word to the transport.
    fn renew(&mut self) {
        self.memory = Buffer::allocate(ByteLen(8192)).unwrap().into_span();
        self.transport.attach(Attach::Region(self.memory.region())).unwrap();
    }

    pub(super) fn begin(&mut self, object: &sw_engine::Object, kind: IoKind) {
        self.begin_of(object, kind, 8192);
    }

    pub(super) fn begin_of(&mut self, object: &sw_engine::Object, kind: IoKind, len: u32) {
        let segment = MemorySegment { place: self.memory.place(), len, region: self.memory.region().id() };
        let (token, handle) = (Token::from_raw(1), object.faces[0].handle);
        let io =
            Io { token, kind, object: object.id, handle, offset: 0, len, segment_count: 1, segments: [segment; 3] };
        assert_eq!(self.transport.submit(&io), Submit::Accepted);
        self.transport.ring().unwrap();
    }

    pub(super) fn end(&mut self) -> Option<Result<u32, sw_engine::Fault>> {
        let mut done = Vec::with_capacity(1);
        let wait = Wait::For { timeout: Duration::from_millis(20), min: 1 };
        self.transport.poll(wait, &mut done).unwrap();
        done.first().map(|done| done.result)
    }

    pub(super) fn run(&mut self, object: &sw_engine::Object, kind: IoKind) -> Result<u32, sw_engine::Fault> {
        self.begin(object, kind);
        self.wait()
    }

    pub(super) fn wait(&mut self) -> Result<u32, sw_engine::Fault> {
        let begun = now();
        loop {
            if let Some(result) = self.end() {
                return result;
            }
            assert!(now() - begun < LIMIT, "nothing comes");
        }
    }
}

#[test]
fn a_command_waits_for_memory_that_another_connection_has_registered() {
    // Both directions of three connections, and the data of one command.
    let budget = Budget { registrations_max: 7, ..Budget::default() };
    let directory = Arc::default();
    let late = once(opcode::READ, Fault::Delay(Duration::from_millis(700)));
    let rig = Rig::with(&directory, of_memory(Some(late)), ControllerConfig::default(), budget);
    let object = rig.object();
    let (mut one, mut two) = (Lane::new(&directory), Lane::new(&directory));
    assert_eq!((one.run(&object, IoKind::Write), two.run(&object, IoKind::Write)), (Ok(8192), Ok(8192)));
    one.begin(&object, IoKind::Read);
    two.begin(&object, IoKind::Write);
    let (begun, mut first, mut second) = (now(), None, None);
    while first.is_none() || second.is_none() {
        assert!(now() - begun < LIMIT, "nothing comes");
        (first, second) = (first.or_else(|| one.end()), second.or_else(|| two.end()));
        assert!(first.is_some() || second.is_none(), "it did not wait: {second:?}");
    }
    assert_eq!((first, second), (Some(Ok(8192)), Some(Ok(8192))));
}

#[test]
fn bytes_that_go_out_are_not_counted_as_come() {
    let directory = Arc::default();
    let rig = Rig::new(&directory, of_memory(None), ControllerConfig::default());
    let (object, mut lane) = (rig.object(), Lane::new(&directory));
    lane.run(&object, IoKind::Write).unwrap();
    let before = lane.transport.counters().bytes_in;
    lane.run(&object, IoKind::Write).unwrap();
    assert_eq!(lane.transport.counters().bytes_in, before);
    lane.run(&object, IoKind::Read).unwrap();
    assert_eq!(lane.transport.counters().bytes_in, before + 8192);
}

/// A rig whose connections keep what they registered, or not.
pub(super) fn rig(directory: &Arc<Directory>, budget: Budget, registering: Registering) -> Rig {
    Rig::by(directory, of_memory(None), ControllerConfig::default(), (budget, registering))
}

#[test]
fn memory_is_registered_once_and_not_for_each_command() {
    for (registering, wanted) in [(Registering::PerCommand, 1000), (Registering::Kept, 0)] {
        let directory = Arc::default();
        let rig = rig(&directory, Budget::default(), registering);
        let (object, mut lane) = (rig.object(), Lane::new(&directory));
        // The data of Connect, and of the first command.
        lane.run(&object, IoKind::Read).unwrap();
        assert_eq!(lane.transport.counters().registrations, 2, "{registering:?}");
        for _ in 0..1000 {
            lane.run(&object, IoKind::Read).unwrap();
        }
        assert_eq!(lane.transport.counters().registrations - 2, wanted, "{registering:?}");
        // The other direction has a key of its own.
        lane.run(&object, IoKind::Write).unwrap();
        assert_eq!(lane.transport.counters().registrations - 2, wanted + 1, "{registering:?}");
    }
}

#[test]
fn a_registration_ends_with_its_memory_whether_anybody_tells_or_not() {
    let directory = Arc::default();
    let rig = rig(&directory, Budget::default(), Registering::Kept);
    let (object, mut lane) = (rig.object(), Lane::new(&directory));
    lane.run(&object, IoKind::Read).unwrap();
    let (count, bytes) = rig.device.registered();
    for number in 3..7 {
        // The same address again, as likely as not; another region, and so another key.
        let region = lane.memory.region().id();
        lane.renew();
        let ended = rig.device.registered();
        assert_eq!(ended, (count - 1, bytes - 8192), "memory that is gone is registered");
        lane.run(&object, IoKind::Read).unwrap();
        assert_eq!((rig.device.registered(), lane.transport.counters().registrations), ((count, bytes), number));
        lane.transport.attach(Attach::RegionGone(region)).unwrap();
        assert_eq!(rig.device.registered(), (count, bytes));
    }
    lane.transport.attach(Attach::RegionGone(lane.memory.region().id())).unwrap();
    assert_eq!(rig.device.registered(), (count - 1, bytes - 8192));
}

#[test]
fn registrations_that_nobody_uses_give_way_to_those_of_other_lanes() {
    // Both directions of three connections, and two pieces of memory.
    let budget = Budget { registrations_max: 8, ..Budget::default() };
    let directory = Arc::default();
    let rig = rig(&directory, budget, Registering::Kept);
    let object = rig.object();
    let mut lanes = [Lane::new(&directory), Lane::new(&directory)];
    for _ in 0..20 {
        for lane in &mut lanes {
            // Of each lane two, of which one is too many.
            assert_eq!((lane.run(&object, IoKind::Write), lane.run(&object, IoKind::Read)), (Ok(8192), Ok(8192)));
        }
    }
    assert!(rig.device.registered().0 <= 8);
}
