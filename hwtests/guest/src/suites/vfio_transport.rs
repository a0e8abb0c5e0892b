//! The engine's suite for transports, on a real queue pair through VFIO: interrupts, waits and wake-ups of the kernel's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sw_engine::seam::{IoKind, Transport};
use sw_mem::Buffer;
use sw_mem::ByteLen;
use sw_nvme::transport::Completion;
use sw_testkit::conformance::End;
use sw_testkit::conformance::block_file::{Bed, Clock, Target, run};
use sw_vfio::Backend;

use crate::context::Context;
use crate::registry::{Stop, Suite, Test, Verdict, fail};
use crate::vfio_rig::{Rig, all, attach, on_each};

pub const SUITE: Suite = Suite {
    name: "vfio-transport",
    tests: &[
        Test::new("polled", "the transport conforms, polled", |context| conforms(context, Completion::Polled))
            .limit_s(150),
        Test::new("interrupts", "the transport conforms, by interrupt", |context| {
            conforms(context, Completion::Interrupt)
        })
        .limit_s(150),
        Test::new("hybrid", "the transport conforms, looking first and sleeping then", |context| {
            conforms(context, Completion::Hybrid { spin: Duration::from_micros(200) })
        })
        .limit_s(150),
    ],
};

/// Bytes that the suite's own lane moves at once.
const PIECE: usize = 1 << 20;

/// Namespaces as objects: each begins at the first block and is as long as the suite wants.
struct Namespaces {
    rig: Rig,
    completion: Completion,
    objects: u32,
    start: Instant,
}

fn broken(stop: Stop) -> End {
    match stop {
        Stop::Skip(reason) => End::Skip(reason),
        Stop::Fail(reason) => End::Fail(reason),
    }
}

impl Namespaces {
    /// Moves all bytes of an object by a lane of its own.
    fn moved(&self, kind: IoKind, target: &Target, bytes: &mut [u8]) -> Result<(), Stop> {
        let mut lane = self.rig.lane(Completion::Polled)?;
        let mut buffer = Buffer::allocate(ByteLen(PIECE as u64))?;
        for (at, piece) in (0u64..).step_by(PIECE).zip(bytes.chunks_mut(PIECE)) {
            buffer.as_mut_slice()[..piece.len()].copy_from_slice(piece);
            let span = buffer.into_span();
            attach(&mut lane, span.region())?;
            all(&mut lane, kind, &target.object, at, (&span, 0, u32::try_from(piece.len())?))?;
            buffer = span.into_buffer().or_else(|_| fail("the buffer did not come back"))?;
            piece.copy_from_slice(&buffer.as_slice()[..piece.len()]);
        }
        Ok(())
    }
}

impl Bed for Namespaces {
    fn name(&self) -> String {
        format!("{} through VFIO, {:?}", self.rig.controller.name(), self.completion)
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        Ok(Box::new(self.rig.lane(self.completion).map_err(broken)?))
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        // In turns, so that the two objects of a case are two namespaces.
        self.objects += 1;
        let mut object = self.rig.object(1 + self.objects % 2).map_err(broken)?;
        let block = object.faces.first().map_or(1, |face| face.granularity.block);
        if !content.len().is_multiple_of(block as usize) {
            return Err(End::Skip("a namespace has whole blocks".into()));
        }
        object.len = content.len() as u64;
        let target = Target { object: Arc::new(object), face: 0 };
        self.moved(IoKind::Write, &target, &mut content.to_vec()).map_err(broken)?;
        Ok(target)
    }

    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End> {
        let mut bytes = vec![0; sw_mem::index(target.object.len)];
        self.moved(IoKind::Read, target, &mut bytes).map_err(broken)?;
        Ok(bytes)
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        Err(End::Skip("every block of this controller can be read".into()))
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }
}

/// Cases that may be skipped: a namespace has whole blocks, an object here ends inside it, and errors of the medium have a
/// suite of their own.
const SKIPS: [&str; 3] = [
    "any_offset_and_address_on_a_bytewise_face",
    "a_read_over_the_end_is_short_or_an_error",
    "an_error_of_the_medium_is_a_fault_with_a_code",
];

fn conforms(context: &Context, completion: Completion) -> Verdict {
    on_each(context, |backend| {
        if backend == Backend::NoIommu {
            // The suite's memory is not in one piece.
            return Ok(());
        }
        let rig = Rig::open(context, "nvme-a", backend)?;
        // Two objects of a case are two namespaces.
        rig.namespace(2)?;
        let report = run(&mut Namespaces { rig, completion, objects: 0, start: Instant::now() });
        let failed: Vec<String> = report.failed().map(|row| format!("{row:?}")).collect();
        let skipped: Vec<&str> = report.skipped().filter(|case| !SKIPS.contains(case)).collect();
        if failed.is_empty() && skipped.is_empty() {
            return Ok(());
        }
        fail(format!("{}; skipped: {}", failed.join("; "), skipped.join(", ")))
    })
}
