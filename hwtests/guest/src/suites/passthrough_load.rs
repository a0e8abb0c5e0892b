//! NVMe passthrough while the controller is reset or pulled out: every command ends, and says what became of it.

use std::time::{Duration, Instant};

use serde_json::json;
use sw_engine::seam::{Attach, Fence, IoDone, IoKind, OpenMode, Store, Submit, Transport, Wait};
use sw_engine::{ErrorKind, Fault, Object, Retry};
use sw_mem::DmaSpan;
use sw_uring::{FileStore, IO_URING, PassthroughTransport, UringConfig};

use super::passthrough::generic;
use crate::block::{self, Namespace};
use crate::context::Context;
use crate::io::{io, memory, piece};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "passthrough-load",
    tests: &[
        Test::new("reset", "a reset under load ends commands with advice to try again", reset).limit_s(60),
        Test::new("removal", "a controller that is pulled out ends commands with a typed fault", removal)
            .bed_only()
            .limit_s(60),
    ],
};

/// Reads in flight.
const DEPTH: u32 = 16;
const LEN: u32 = 4096;
/// One wait for completions.
const STEP: Duration = Duration::from_millis(20);
/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads that never stop.
struct Load {
    transport: PassthroughTransport,
    object: std::sync::Arc<Object>,
    span: DmaSpan,
    started: u64,
    good: u64,
    faults: Vec<Fault>,
    ended: Vec<IoDone>,
}

impl Load {
    fn new(namespace: &Namespace) -> Result<Self, Stop> {
        let object = FileStore::new(IO_URING).open(&generic(namespace)?.to_string_lossy(), OpenMode::Read)?;
        let config = UringConfig { queue_depth: DEPTH, ..UringConfig::passthrough() };
        let (mut transport, span) = (PassthroughTransport::new(config)?, memory(u64::from(DEPTH * LEN), 0)?);
        transport.attach(Attach::Object(&object))?;
        transport.attach(Attach::Region(span.region()))?;
        let ended = Vec::with_capacity(usize::try_from(DEPTH)?);
        Ok(Self { transport, object, span, started: 0, good: 0, faults: Vec::new(), ended })
    }

    /// Fills the queue and takes what has ended.
    fn pump(&mut self) -> Verdict {
        loop {
            let place = self.started % u64::from(DEPTH) * u64::from(LEN);
            let read = io(IoKind::Read, &self.object, place, Some(piece(&self.span, place, LEN)?))?;
            if self.transport.submit(&read) == Submit::Full {
                break;
            }
            self.started += 1;
        }
        self.take()
    }

    fn take(&mut self) -> Verdict {
        self.ended.clear();
        self.transport.poll(Wait::For { timeout: STEP, min: 1 }, &mut self.ended)?;
        for done in &self.ended {
            match done.result {
                Ok(LEN) => self.good += 1,
                Ok(other) => return fail(format!("{other} bytes of {LEN}")),
                Err(fault) => self.faults.push(fault),
            }
        }
        Ok(())
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self) -> Verdict {
        let start = Instant::now();
        while self.transport.in_flight() > 0 {
            self.take()?;
            if start.elapsed() > PATIENCE {
                return fail(format!("{} commands have no end", self.transport.in_flight()));
            }
        }
        Ok(())
    }

    fn kinds(&self) -> Vec<(ErrorKind, i32, Retry)> {
        let mut kinds: Vec<_> = self.faults.iter().map(|fault| (fault.kind, fault.code, fault.retry)).collect();
        kinds.sort_by_key(|(kind, code, _)| (kind.code(), *code));
        kinds.dedup();
        kinds
    }
}

fn reset(context: &Context) -> Verdict {
    let device = context.device("nvme-a")?;
    let all = block::namespaces(context, &device, 2)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    let mut load = Load::new(namespace)?;
    let controllers = crate::context::entries(&device.path().join("nvme"));
    let Some(controller) = controllers.first() else { return fail("no controller") };
    let lever = controller.join("reset_controller");
    for round in 0..3 {
        let before = load.good;
        let lever = lever.clone();
        // The write comes back when the reset is done.
        let puller = std::thread::spawn(move || std::fs::write(lever, "1"));
        while !puller.is_finished() {
            load.pump()?;
        }
        match puller.join() {
            Ok(written) => written?,
            Err(_) => return fail("the thread that resets"),
        }
        let start = Instant::now();
        while load.good < before + 100 {
            load.pump()?;
            if start.elapsed() > PATIENCE {
                return fail(format!("round {round}: no reads after the reset; faults {:?}", load.kinds()));
            }
        }
    }
    load.drain()?;
    context.fact(&json!({"reads": load.started, "faults": load.faults.len(), "kinds": format!("{:?}", load.kinds())}));
    match load.faults.iter().find(|fault| fault.retry != Retry::Now) {
        None => Ok(()),
        Some(fault) => fail(format!("a reset is no reason to give up: {fault:?}")),
    }
}

fn removal(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    let all = block::namespaces(context, &device, 1)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    let mut load = Load::new(namespace)?;
    while load.good < 50 {
        load.pump()?;
    }
    context.host("device_del", "nvme-b")?;
    let start = Instant::now();
    // From some moment on nothing succeeds any more.
    let last = |load: &Load| load.faults.last().copied();
    while context.present("nvme-b") || last(&load).is_none_or(|fault| fault.retry != Retry::Never) {
        load.pump()?;
        if start.elapsed() > PATIENCE {
            return fail(format!("still there, or still hopeful: {:?}", load.kinds()));
        }
        // Faults come at once from a device that is gone.
        load.faults.drain(..load.faults.len().saturating_sub(1000));
    }
    load.drain()?;
    context.fact(&json!({"reads": load.started, "kinds": format!("{:?}", load.kinds())}));
    let mut ended = Vec::with_capacity(usize::try_from(DEPTH)?);
    same("fence", &load.transport.fence(PATIENCE, &mut ended), &Fence::Quiet)?;
    let hopeless = [ErrorKind::NoDevice, ErrorKind::Io];
    let kind = last(&load).map(|fault| fault.kind);
    same("the last fault says that it is gone", &kind.is_some_and(|kind| hopeless.contains(&kind)), &true)?;
    drop(load);
    context.host("device_add", "nvme-b")?;
    let device = context.until(PATIENCE, "the device back", || context.device("nvme-b").ok())?;
    block::namespaces(context, &device, 1).map(drop)
}
