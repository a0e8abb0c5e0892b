//! Transports of lanes, by hand.

use sw_engine::{
    Token,
    seam::{Attach, Io, IoKind, MemorySegment, Submit, Wait},
};

use super::*;

/// A lane's transport with memory, and the object that it reads and writes.
struct Lane {
    transport: TcpTransport,
    memory: DmaSpan,
}

impl Lane {
    fn new(directory: &Arc<Directory>) -> Self {
        let config = TcpConfig { wire: Wire::EmulatedRdma, ..TcpConfig::default() };
        let mut transport = TcpTransport::new(directory.clone(), config).unwrap();
        let memory = Buffer::allocate(ByteLen(8192)).unwrap().into_span();
        transport.attach(Attach::Region(memory.region())).unwrap();
        Self { transport, memory }
    }

    fn begin(&mut self, object: &sw_engine::Object, kind: IoKind) {
        let segment = MemorySegment { place: self.memory.place(), len: 8192, region: self.memory.region().id() };
        let (token, handle) = (Token::from_raw(1), object.faces[0].handle);
        let io = Io {
            token,
            kind,
            object: object.id,
            handle,
            offset: 0,
            len: 8192,
            segment_count: 1,
            segments: [segment; 3],
        };
        assert_eq!(self.transport.submit(&io), Submit::Accepted);
        self.transport.ring().unwrap();
    }

    fn end(&mut self) -> Option<Result<u32, sw_engine::Fault>> {
        let mut done = Vec::with_capacity(1);
        let wait = Wait::For { timeout: Duration::from_millis(20), min: 1 };
        self.transport.poll(wait, &mut done).unwrap();
        done.first().map(|done| done.result)
    }

    fn run(&mut self, object: &sw_engine::Object, kind: IoKind) -> Result<u32, sw_engine::Fault> {
        self.begin(object, kind);
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
