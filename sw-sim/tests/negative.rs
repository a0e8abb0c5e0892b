//! Transports that break the contract fail the case of the suite that is about it: the suite can tell.

#![forbid(unsafe_code)]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sw_engine::{
    Error, Landing, Token,
    seam::{Attach, Fence, Io, IoDone, IoKind, Submit, Transport, TransportCaps, Wait, Wake},
};
use sw_mem::DmaRegion;
use sw_sim::{Belongs, FaceParams, Hub, QueueParams, SimTransport};
use sw_testkit::{
    conformance::{
        End,
        block_file::{self, Bed, Clock, Target},
        skip,
    },
    wrap::{Act, Faulty, On, Rule},
};

const NAME: &str = "sim-disk";
const BLOCK: u32 = 512;

/// What is wrong with a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Memory beside the segments is written at an end.
    WritesBesideMemory,
    /// A write lands one block behind its place.
    WritesBesideItsPlace,
    /// A cancelled I/O never ends.
    CancelLosesTheEnd,
    /// A fence says `Quiet` and stops nothing.
    QuietIsALie,
    /// The first read of each transport meets this.
    Rule(Act),
}

struct Wrapped {
    inner: Faulty<SimTransport>,
    wrong: Wrong,
    cancelled: Vec<Token>,
    hub: Hub,
    regions: Arc<Mutex<Vec<DmaRegion>>>,
}

impl Transport for Wrapped {
    fn caps(&self) -> TransportCaps {
        self.inner.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.inner.attach(hint)
    }

    fn submit(&mut self, io: &Io) -> Submit {
        let shifted = Io { offset: io.offset + u64::from(BLOCK), ..*io };
        let shift = self.wrong == Wrong::WritesBesideItsPlace && io.kind == IoKind::Write;
        self.inner.submit(if shift { &shifted } else { io })
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.inner.ring()
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let before = out.len();
        self.inner.poll(wait, out)?;
        out.retain(|done| !self.cancelled.contains(&done.token));
        if self.wrong == Wrong::WritesBesideMemory && out.len() > before {
            let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
            // The first byte of a case's memory lies before every segment.
            regions.iter().for_each(|region| self.hub.poke(region, 0, &[1]));
        }
        Ok(out.len() - before)
    }

    fn cancel(&mut self, token: Token) {
        if self.wrong == Wrong::CancelLosesTheEnd {
            self.cancelled.push(token);
        }
        self.inner.cancel(token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        if self.wrong == Wrong::QuietIsALie { Fence::Quiet } else { self.inner.fence(timeout, out) }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}

struct WrongBed {
    hub: Hub,
    wrong: Wrong,
    queues: u64,
    regions: Arc<Mutex<Vec<DmaRegion>>>,
}

impl Bed for WrongBed {
    fn name(&self) -> String {
        format!("{:?}", self.wrong)
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        self.queues += 1;
        let inner = self.hub.add_queue(QueueParams::calm(NAME), self.queues);
        let rules = match self.wrong {
            Wrong::Rule(act) => vec![Rule { on: On { kind: Some(IoKind::Read), times: 1, ..On::default() }, act }],
            _ => Vec::new(),
        };
        let inner = Faulty::new(inner, rules);
        let (hub, regions) = (self.hub.clone(), Arc::clone(&self.regions));
        Ok(Box::new(Wrapped { inner, wrong: self.wrong, cancelled: Vec::new(), hub, regions }))
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        let disk = self.hub.add_disk(content.to_vec());
        let face = FaceParams { disk, block: BLOCK, memory: BLOCK, landing: Landing::Dma };
        let object = self.hub.object(&format!("disk{disk}"), content.len() as u64, &[(NAME, face)]);
        Ok(Target { object, face: 0 })
    }

    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End> {
        let number = target.object.name.trim_start_matches("disk").parse();
        number.map_or_else(|_| skip("an object of another bed"), |number| Ok(self.hub.disk_bytes(number)))
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        skip("these beds have no failing medium")
    }

    fn memory(&mut self, region: &DmaRegion) {
        self.hub.memory(region, Belongs::Engine);
        *self.regions.lock().unwrap_or_else(PoisonError::into_inner) = vec![region.clone()];
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.hub.now().0)
    }

    fn clock(&self) -> Clock {
        Clock::Virtual
    }
}

fn failed(wrong: Wrong) -> Vec<&'static str> {
    let mut bed = WrongBed { hub: Hub::new(), wrong, queues: 0, regions: Arc::default() };
    let report = block_file::run(&mut bed);
    println!("{report}");
    report.failed().map(|row| row.case).collect()
}

#[test]
fn a_right_transport_in_the_same_wrapper_fails_nothing() {
    assert_eq!(failed(Wrong::Nothing), [""; 0]);
}

#[test]
fn each_broken_rule_fails_its_case() {
    for (wrong, case) in [
        (Wrong::Rule(Act::Twice), "many_ios_end_exactly_once_with_their_own_data"),
        (Wrong::Rule(Act::Swallow), "many_ios_end_exactly_once_with_their_own_data"),
        (Wrong::Rule(Act::Overclaim(BLOCK)), "reads_what_the_object_holds"),
        (Wrong::WritesBesideMemory, "reads_what_the_object_holds"),
        (Wrong::WritesBesideItsPlace, "writes_what_memory_holds_and_nothing_beside"),
        (Wrong::CancelLosesTheEnd, "a_cancelled_io_ends_exactly_once"),
        (Wrong::QuietIsALie, "a_fence_ends_what_is_in_flight_and_then_is_quiet"),
    ] {
        let failed = failed(wrong);
        assert!(failed.contains(&case), "{wrong:?} failed {failed:?} and not {case}");
    }
}
