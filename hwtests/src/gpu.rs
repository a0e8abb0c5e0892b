//! The GPU suite: `sw-cuda` on the driver of this machine.

use std::time::{Duration, Instant};

use serde_json::json;
use straightway::{Destination, Engine};
use sw_cuda::{
    Context, CopyEngineConfig, CudaCopyEngine, Device, DeviceBuffer, DeviceReport, DmaBuf, Gap, ManagedBuffer,
    PinnedBuffer, PointerKind, SelfTest,
};
use sw_engine::Token;
use sw_engine::seam::{CopyDirection, CopyDone, CopyEngine, CopyJob};
use sw_mem::{Buffer, ByteLen, DmaSpan, GpuVa, HostVa};

use crate::harness::{Need, Notes, Tag, Test};
use crate::machine::Machine;
use crate::staged::Folder;

/// Bytes moved for each measured rate.
const RATE_BYTES: u64 = 1 << 30;
/// Slab of a measured copy: what the engine's staging ring uses by default.
const SLAB_BYTES: u64 = 1 << 20;
/// How long a measurement may take.
const RATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long what was dropped may take to be gone.
const SETTLE: Duration = Duration::from_secs(5);

/// All of them.
pub fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "gpu.self_test",
            will: "write to each device, read back, compare, and check the guard bytes",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: self_test,
        },
        Test {
            name: "gpu.capabilities",
            will: "ask each device for every capability and try a dma-buf export",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: capabilities,
        },
        Test {
            name: "gpu.pointers",
            will: "find interior pointers of device, managed and page-locked memory, and refuse what is none of these",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: pointers,
        },
        Test {
            name: "gpu.regions",
            will: "make regions of device, managed and page-locked memory, use them, and see them freed with the last span",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: regions,
        },
        Test {
            name: "gpu.leaks",
            will: "make and drop engines, copies and memory, and find device memory, pins and descriptors as before",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: leaks,
        },
        Test {
            name: "gpu.dmabuf",
            will: "export device memory as a dma-buf and close it again, 100 times",
            tag: Tag::Quick,
            needs: &[Need::Gpu, Need::DmaBuf],
            run: dmabuf,
        },
        Test {
            name: "gpu.two_devices",
            will: "run the self-test on all devices at the same time",
            tag: Tag::Quick,
            needs: &[Need::Gpu, Need::TwoGpus],
            run: two_devices,
        },
        Test {
            name: "gpu.copy_rate",
            will: "measure copies of 1 MiB slabs both ways over streams and depths, and verify the bytes",
            tag: Tag::Timed,
            needs: &[Need::Gpu],
            run: copy_rate,
        },
        Test {
            name: "gpu.pin_cost",
            will: "measure page-locking and releasing 64 MiB",
            tag: Tag::Timed,
            needs: &[Need::Gpu],
            run: pin_cost,
        },
    ]
}

fn say(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

fn devices(machine: &Machine) -> Result<Vec<Device>, String> {
    machine.driver.clone().map_err(say)?.devices().map_err(say)
}

fn first_context(machine: &Machine) -> Result<Context, String> {
    let device = devices(machine)?.into_iter().next().ok_or("no device")?;
    Context::primary(&device).map_err(say)
}

#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn now() -> Instant {
    Instant::now()
}

fn self_test(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    for device in devices(machine)? {
        let start = now();
        let context = Context::primary(&device).map_err(say)?;
        let opened = start.elapsed();
        let passed = SelfTest::run(&context).map_err(|error| error.to_string())?;
        notes.insert(
            format!("gpu{}", device.ordinal()),
            json!({ "context_ms": opened.as_secs_f64() * 1e3, "cases": passed.cases, "bytes": passed.bytes }),
        );
    }
    Ok(())
}

fn capabilities(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    for device in devices(machine)? {
        let context = Context::primary(&device).map_err(say)?;
        let report = DeviceReport::gather(&device, Some(&context));
        let lines: serde_json::Map<String, serde_json::Value> = report
            .lines()
            .into_iter()
            .map(|(name, finding)| (name.to_owned(), json!(finding.unwrap_or_else(|gap| format!("gap: {gap}")))))
            .collect();
        notes.insert(format!("gpu{}", device.ordinal()), serde_json::Value::Object(lines));
        // A device that says yes and then refuses is a finding, and its own failure here.
        match (&report.dmabuf_attribute, &report.dmabuf_export) {
            (Ok(true), Err(gap)) => return Err(format!("says that it exports dma-bufs, and does not: {gap}")),
            (Ok(false), Ok(())) => return Err("exports dma-bufs although it says that it cannot".to_owned()),
            (Ok(false), Err(gap)) if *gap != Gap::NotSupported => return Err(gap.to_string()),
            _ => {}
        }
        report.name.map_err(|gap| gap.to_string())?;
        report.uuid.map_err(|gap| gap.to_string())?;
    }
    Ok(())
}

fn pointers(machine: &Machine, _notes: &mut Notes) -> Result<(), String> {
    let context = first_context(machine)?;
    let driver = context.device().driver();
    let device = DeviceBuffer::allocate(&context, ByteLen::mib(3)).map_err(say)?;
    let managed = ManagedBuffer::allocate(&context, ByteLen::mib(3)).map_err(say)?;
    let pinned = PinnedBuffer::allocate(&context, ByteLen::mib(3)).map_err(say)?;
    let expected = [
        (device.base().raw(), PointerKind::Device),
        (managed.base().raw(), PointerKind::Managed),
        (pinned.base().raw(), PointerKind::PinnedHost),
    ];
    for (base, kind) in expected {
        for offset in [0, 1, 4097, (3 << 20) - 1] {
            let facts = driver.pointer_facts(base + offset).map_err(say)?;
            if (facts.kind, facts.base, facts.offset) != (kind, base, offset) {
                return Err(format!("{kind:?} at {base:#x}+{offset}: {facts:?}"));
            }
        }
    }
    let pageable = [0u8; 64];
    let facts = driver.pointer_facts(pageable.as_ptr().addr() as u64).map_err(say)?;
    if facts.kind != PointerKind::Unknown {
        return Err(format!("pageable memory of the stack is said to be {:?}", facts.kind));
    }
    let (base, len) = context.address_range(GpuVa::new(device.base().raw() + 4097)).map_err(say)?;
    if (base, len) != (device.base(), device.len()) {
        return Err(format!("cuMemGetAddressRange says {base:?} and {len}"));
    }
    Ok(())
}

fn regions(machine: &Machine, _notes: &mut Notes) -> Result<(), String> {
    let context = first_context(machine)?;
    let driver = context.device().driver();
    let len = ByteLen(3_000_001);
    let device = DeviceBuffer::allocate(&context, len).map_err(say)?.into_region().map_err(say)?;
    let managed = ManagedBuffer::allocate(&context, len).map_err(say)?.into_region().map_err(say)?;
    let pinned = PinnedBuffer::allocate(&context, len).map_err(say)?.into_region().map_err(say)?;
    if device.span(0, ByteLen(4)).map_err(say)?.write(0, b"no").is_ok() {
        return Err("the CPU was let into device memory".to_owned());
    }
    for (name, region) in [("managed", &managed), ("pinned", &pinned)] {
        let span = region.span(2_999_990, ByteLen(11)).map_err(say)?;
        span.write(0, b"eleven byte").map_err(say)?;
        let mut back = [0; 11];
        span.read(0, &mut back).map_err(say)?;
        if &back != b"eleven byte" {
            return Err(format!("{name} memory lost what the CPU wrote"));
        }
    }
    for region in [device, managed, pinned] {
        let (place, last) = (region.base(), region.span(7, ByteLen(1)).map_err(say)?);
        let kind = || driver.pointer_facts(place.raw()).map(|facts| facts.kind).map_err(say);
        drop(region);
        if kind()? == PointerKind::Unknown {
            return Err(format!("{place:?} was freed although a span lives"));
        }
        drop(last);
        if kind()? != PointerKind::Unknown {
            return Err(format!("{place:?} was not freed with its last span"));
        }
    }
    Ok(())
}

fn leaks(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    const ROUNDS: u32 = 5;
    let folder = Folder::new()?;
    folder.file("source", 3 << 20)?;
    let context = first_context(machine)?;
    let round = || {
        let mut rate = Rate::new(&context, CopyEngineConfig { queue_depth: 4, ..Default::default() })?;
        rate.copy(CopyDirection::ToDevice, 8)?;
        let managed = ManagedBuffer::allocate(&context, ByteLen::mib(3)).map_err(say)?;
        let engine = Engine::builder().build().map_err(say)?;
        let object = engine.open(&folder.uri("source")?).map_err(say)?;
        let memory = engine.allocate(Destination::Gpu(0), 3 << 20, 0).map_err(say)?;
        engine.read(&object, 0, memory).wait().ok().map_err(say)?;
        drop((managed, object));
        engine.close().map_err(say)
    };
    // What driver and kernel keep for later is there after the first two.
    round()?;
    round()?;
    let before = Held::now(&context)?;
    for _ in 0..ROUNDS {
        round()?;
    }
    let mut after = Held::now(&context)?;
    // The kernel takes rings down behind our back.
    let start = now();
    while after.is_more_than(&before) && start.elapsed() < SETTLE {
        std::thread::yield_now();
        after = Held::now(&context)?;
    }
    let lost = before.device_free_bytes.saturating_sub(after.device_free_bytes);
    notes.insert("device_bytes_lost".to_owned(), json!(lost));
    notes.insert("descriptors".to_owned(), json!([before.descriptors, after.descriptors]));
    notes.insert("pinned_kib".to_owned(), json!([before.pinned_kib, after.pinned_kib]));
    // Another process may use the device: what a round leaks it leaks every time.
    if lost >= u64::from(ROUNDS) << 20 {
        return Err(format!("{lost} bytes of device memory did not come back in {ROUNDS} rounds"));
    }
    if after.is_more_than(&before) {
        return Err(format!("left behind in {ROUNDS} rounds: {before:?}, then {after:?}"));
    }
    Ok(())
}

/// What a process holds and must give back.
#[derive(Debug)]
struct Held {
    device_free_bytes: u64,
    descriptors: usize,
    pinned_kib: u64,
}

impl Held {
    fn is_more_than(&self, before: &Self) -> bool {
        self.descriptors > before.descriptors || self.pinned_kib > before.pinned_kib
    }

    fn now(context: &Context) -> Result<Self, String> {
        let status = std::fs::read_to_string("/proc/self/status").map_err(say)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
        Ok(Self {
            device_free_bytes: context.memory_info().map_err(say)?.0,
            descriptors: std::fs::read_dir("/proc/self/fd").map_err(say)?.count(),
            pinned_kib: line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0),
        })
    }
}

fn dmabuf(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    const TIMES: u32 = 100;
    let context = first_context(machine)?;
    let buffer = DeviceBuffer::allocate(&context, ByteLen::mib(2)).map_err(say)?;
    let start = now();
    for _ in 0..TIMES {
        DmaBuf::export(&context, GpuVa::new(buffer.base().raw()), ByteLen::mib(2)).map_err(say)?;
    }
    notes.insert("export_us".to_owned(), json!(start.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)));
    Ok(())
}

fn two_devices(machine: &Machine, _notes: &mut Notes) -> Result<(), String> {
    let contexts: Vec<Context> =
        devices(machine)?.iter().map(Context::primary).collect::<Result<_, _>>().map_err(say)?;
    std::thread::scope(|scope| {
        let running: Vec<_> = contexts.iter().map(|context| scope.spawn(|| SelfTest::run(context))).collect();
        running.into_iter().try_for_each(|test| match test.join() {
            Ok(outcome) => outcome.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err("a self-test panicked".to_owned()),
        })
    })
}

fn copy_rate(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let context = first_context(machine)?;
    for (streams, depth) in [(1, 1), (1, 4), (1, 16), (2, 16), (4, 16)] {
        let mut bench = Rate::new(&context, CopyEngineConfig { queue_depth: depth, streams, ..Default::default() })?;
        for (name, direction) in [("to", CopyDirection::ToDevice), ("from", CopyDirection::FromDevice)] {
            let seconds = bench.run(direction)?;
            // 1 GiB in so many seconds; GB are 10^9 bytes, as links are sold.
            let rate = 1.073_741_824 / seconds;
            notes.insert(format!("{name}_device_streams{streams}_depth{depth}_gb_per_s"), json!(rate));
        }
        bench.verify()?;
    }
    Ok(())
}

struct Rate {
    engine: CudaCopyEngine,
    _pin: Box<dyn sw_engine::seam::SlabPin>,
    host: DmaSpan,
    device: DeviceBuffer,
    slabs: u64,
    done: Vec<CopyDone>,
}

impl Rate {
    fn new(context: &Context, config: CopyEngineConfig) -> Result<Self, String> {
        let slabs = u64::from(config.queue_depth);
        let mut engine = CudaCopyEngine::new(context, config).map_err(say)?;
        let host = Buffer::allocate(ByteLen(slabs * SLAB_BYTES)).map_err(say)?.into_span();
        host.fill(0, slabs * SLAB_BYTES, 0x5a).map_err(say)?;
        let pin = engine.pin_slabs(host.region()).map_err(say)?;
        let device = DeviceBuffer::allocate(context, ByteLen(slabs * SLAB_BYTES)).map_err(say)?;
        let done = Vec::with_capacity(usize::try_from(slabs).map_err(say)?);
        Ok(Self { engine, _pin: pin, host, device, slabs, done })
    }

    /// Keeps the queue full until [`RATE_BYTES`] have moved; answers the seconds.
    fn run(&mut self, direction: CopyDirection) -> Result<f64, String> {
        self.copy(direction, RATE_BYTES / SLAB_BYTES)
    }

    /// The same for `count` slabs.
    fn copy(&mut self, direction: CopyDirection, count: u64) -> Result<f64, String> {
        let (base, device) = (self.host.place().host().ok_or("host memory")?, self.device.base());
        let (mut submitted, mut ended) = (0, 0);
        let start = now();
        while ended < count {
            while submitted < count && submitted - ended < self.slabs {
                let at = submitted % self.slabs * SLAB_BYTES;
                let job = CopyJob {
                    token: Token::from_raw(submitted),
                    direction,
                    host: HostVa::new(base.raw() + at),
                    device: GpuVa::new(device.raw() + at),
                    len: 1 << 20,
                };
                self.engine.submit(&job).map_err(say)?;
                submitted += 1;
            }
            self.engine.ring().map_err(say)?;
            self.done.clear();
            ended += self.engine.poll(&mut self.done).map_err(say)? as u64;
            if let Some(failed) = self.done.iter().find(|done| done.result.is_err()) {
                return Err(say(failed));
            }
            if start.elapsed() > RATE_TIMEOUT {
                return Err(format!("{ended} of {count} copies in {RATE_TIMEOUT:?}"));
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// What came back last is what was sent: the pattern is still in every slab.
    fn verify(&self) -> Result<(), String> {
        let mut damaged = 0u64;
        let count = |bytes: &[u8]| damaged += bytes.iter().filter(|byte| **byte != 0x5a).count() as u64;
        self.host.visit(0, self.slabs * SLAB_BYTES, count).map_err(say)?;
        if damaged == 0 { Ok(()) } else { Err(format!("{damaged} bytes came back different")) }
    }
}

fn pin_cost(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let context = first_context(machine)?;
    let host = Buffer::allocate(ByteLen::mib(64)).map_err(say)?.into_span();
    host.fill(0, 64 << 20, 1).map_err(say)?;
    let start = now();
    let pin = sw_cuda::HostPin::new(&context, host.region()).map_err(say)?;
    notes.insert("pin_64_mib_ms".to_owned(), json!(start.elapsed().as_secs_f64() * 1e3));
    let start = now();
    drop(pin);
    notes.insert("unpin_64_mib_ms".to_owned(), json!(start.elapsed().as_secs_f64() * 1e3));
    Ok(())
}
