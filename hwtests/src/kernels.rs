//! Our kernels on the device of this machine: each against its twin, and its rate beside that of the driver's own copy.
// UNSAFETY: launches over memory of these tests, and the driver's copies with the signatures of cuda.h.
#![expect(unsafe_code, reason = "launches kernels and calls the driver")]

use std::time::Instant;

use serde_json::json;
use sw_cuda::{Context, DeviceBuffer, ForeignStream, Kernels};
use sw_engine::checksum::Algorithm as Reference;
use sw_kernels::{
    Entry, Launch,
    crc::{Algorithm, SumPlan},
    poison::{self, Found},
    ranges::{Range, RangePlan, Work},
    swap::Element,
    widen::Narrow,
};
use sw_mem::{ByteLen, GpuVa, index};
use sw_testkit::conformance::{self, CaseResult, End, Verdict, fail};

use crate::harness::{Need, Notes, Tag, Test};
use crate::machine::Machine;

/// Bytes that a rate is taken over: far more than a device caches.
const RATE_BYTES: u64 = 1 << 30;
/// Launches in one measurement.
const RATE_LAUNCHES: u32 = 20;
/// What is asked of copies and gather, of checksums: parts of the driver's own rate.
const COPY_GOAL: f64 = 0.8;
const SUM_GOAL: f64 = 0.5;
/// Warps that sum at a time: as `sw_cuda::DeviceSums` has them.
const WARPS_PER_PROCESSOR: u64 = 16;

/// All of them.
pub fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "kernels.twins",
            will: "run each kernel over edge lengths and alignments and compare with what its twin in Rust gives",
            tag: Tag::Quick,
            needs: &[Need::Gpu, Need::Kernels],
            run: twins,
        },
        Test {
            name: "kernels.rates",
            will: "measure each kernel over 1 GiB beside the driver's copy on the device, and verify what comes out",
            tag: Tag::Timed,
            needs: &[Need::Gpu, Need::Kernels],
            run: rates,
        },
    ]
}

pub fn say(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// Whether a kernel loads here.
pub fn there(machine: &Machine) -> Result<(), String> {
    let kernels = Kernels::new(&first_context(machine)?).map_err(|error| error.to_string())?;
    kernels.load(Entry::PoisonFill).map_err(|error| error.to_string())
}

pub fn first_context(machine: &Machine) -> Result<Context, String> {
    let driver = machine.driver.clone().map_err(say)?;
    Context::primary(&driver.device(0).map_err(say)?).map_err(say)
}

/// The driver, called by its own names; the primary context of device 0 is current.
pub struct Plain {
    library: libloading::Library,
}

impl Plain {
    pub fn new(machine: &Machine) -> Result<Self, String> {
        let driver = machine.driver.clone().map_err(say)?;
        // SAFETY: the same file is loaded already; this is one more reference.
        let library = unsafe { libloading::Library::new(driver.path()) }.map_err(say)?;
        let plain = Self { library };
        let mut primary = 0usize;
        let retain = plain.function::<unsafe extern "C" fn(*mut usize, i32) -> u32>("cuDevicePrimaryCtxRetain")?;
        // SAFETY: a writable result; device 0 exists.
        code("cuDevicePrimaryCtxRetain", unsafe { retain(&raw mut primary, 0) })?;
        plain.one("cuCtxPushCurrent_v2", primary)?;
        Ok(plain)
    }

    /// A function of the driver.
    pub fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        // SAFETY: every caller gives the signature of cuda.h.
        unsafe { self.library.get::<F>(name) }.map(|symbol| *symbol).map_err(|error| format!("{name}: {error}"))
    }

    /// Calls a function that takes one handle.
    pub fn one(&self, name: &str, handle: usize) -> Result<(), String> {
        let function = self.function::<unsafe extern "C" fn(usize) -> u32>(name)?;
        // SAFETY: every caller names a function of cuda.h with one pointer-sized parameter, and a live handle.
        code(name, unsafe { function(handle) })
    }

    /// A stream without order to the default one.
    pub fn stream(&self) -> Result<usize, String> {
        let create = self.function::<unsafe extern "C" fn(*mut usize, u32) -> u32>("cuStreamCreate")?;
        let mut handle = 0;
        // SAFETY: a writable result; a context is current. 1 is `CU_STREAM_NON_BLOCKING`.
        code("cuStreamCreate", unsafe { create(&raw mut handle, 1) })?;
        Ok(handle)
    }

    /// Whether a stream has come to its end.
    pub fn is_idle(&self, stream: usize) -> Result<bool, String> {
        let query = self.function::<unsafe extern "C" fn(usize) -> u32>("cuStreamQuery")?;
        // SAFETY: a live stream.
        match unsafe { query(stream) } {
            // `CUDA_ERROR_NOT_READY`.
            600 => Ok(false),
            answer => code("cuStreamQuery", answer).map(|()| true),
        }
    }

    pub fn put(&self, at: GpuVa, bytes: &[u8]) -> Result<(), String> {
        self.copy("cuMemcpyHtoD_v2", index(at.raw()), bytes.as_ptr().expose_provenance(), bytes.len())
    }

    pub fn get(&self, at: GpuVa, len: u64) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0u8; index(len)];
        self.copy("cuMemcpyDtoH_v2", bytes.as_mut_ptr().expose_provenance(), index(at.raw()), bytes.len())?;
        Ok(bytes)
    }

    fn copy(&self, name: &str, to: usize, from: usize, len: usize) -> Result<(), String> {
        if len == 0 {
            return Ok(());
        }
        let copy = self.function::<unsafe extern "C" fn(usize, usize, usize) -> u32>(name)?;
        // SAFETY: both ends have `len` bytes: a vector or slice here, memory of a test there.
        code(name, unsafe { copy(to, from, len) })
    }

    /// A copy inside the device, in a stream.
    fn copy_inside(&self, to: GpuVa, from: GpuVa, len: u64, stream: usize) -> Result<(), String> {
        const NAME: &str = "cuMemcpyDtoDAsync_v2";
        let copy = self.function::<unsafe extern "C" fn(u64, u64, usize, usize) -> u32>(NAME)?;
        // SAFETY: memory of a test, a live stream.
        code(NAME, unsafe { copy(to.raw(), from.raw(), index(len), stream) })
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let pop = self.function::<unsafe extern "C" fn(*mut usize) -> u32>("cuCtxPopCurrent_v2");
        if let Ok(pop) = pop {
            let mut context = 0;
            // SAFETY: a writable result; balances the push of `new`.
            let _popped = unsafe { pop(&raw mut context) };
        }
        let release = self.function::<unsafe extern "C" fn(i32) -> u32>("cuDevicePrimaryCtxRelease_v2");
        if let Ok(release) = release {
            // SAFETY: balances the retain of `new`.
            let _released = unsafe { release(0) };
        }
    }
}

pub fn code(call: &str, answer: u32) -> Result<(), String> {
    if answer == 0 { Ok(()) } else { Err(format!("{call} answered {answer}")) }
}

/// Kernels, a stream of the tests', and memory.
pub struct Rig {
    pub plain: Plain,
    pub kernels: Kernels,
    pub stream: usize,
    memory: Vec<DeviceBuffer>,
}

impl Rig {
    pub fn new(machine: &Machine) -> Result<Self, String> {
        let kernels = Kernels::new(&first_context(machine)?).map_err(say)?;
        let plain = Plain::new(machine)?;
        let stream = plain.stream()?;
        Ok(Self { plain, kernels, stream, memory: Vec::new() })
    }

    pub fn room(&mut self, len: u64) -> Result<GpuVa, String> {
        let buffer = DeviceBuffer::allocate(self.kernels.context(), ByteLen(len.max(1))).map_err(say)?;
        let base = buffer.base();
        self.memory.push(buffer);
        Ok(base)
    }

    pub fn filled(&mut self, bytes: &[u8]) -> Result<GpuVa, String> {
        let at = self.room(bytes.len() as u64)?;
        self.plain.put(at, bytes)?;
        Ok(at)
    }

    /// Puts a launch into a stream.
    pub fn launch_in(&self, launch: &Launch, stream: usize) -> Result<(), String> {
        // SAFETY: the tests destroy their streams after they have waited for them.
        let stream = unsafe { ForeignStream::from_raw(stream) };
        // SAFETY: the tests launch over their own memory, which lives until they have waited.
        unsafe { self.kernels.launch_in(launch, stream) }.map_err(|error| error.to_string())
    }

    fn wait(&self) -> Result<(), String> {
        self.plain.one("cuStreamSynchronize", self.stream)
    }

    /// Seconds of one of several launches behind each other, after one that is not counted.
    fn seconds(&self, run: impl Fn(usize) -> Result<(), String>) -> Result<f64, String> {
        run(self.stream)?;
        self.wait()?;
        let start = now();
        for _ in 0..RATE_LAUNCHES {
            run(self.stream)?;
        }
        self.wait()?;
        Ok(start.elapsed().as_secs_f64() / f64::from(RATE_LAUNCHES))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _best_effort = self.wait().and_then(|()| self.plain.one("cuStreamDestroy_v2", self.stream));
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn now() -> Instant {
    Instant::now()
}

impl conformance::kernels::Bed for Rig {
    fn name(&self) -> String {
        "the device of this machine".to_owned()
    }

    fn allocate(&mut self, offset: u64, len: u64) -> Result<GpuVa, End> {
        let at = self.room(offset + len).or_else(fail)?;
        at.checked_add(ByteLen(offset)).map_or_else(|| fail("an address that is none"), Ok)
    }

    fn write(&mut self, at: GpuVa, bytes: &[u8]) -> CaseResult {
        self.plain.put(at, bytes).or_else(fail)
    }

    fn read(&mut self, at: GpuVa, len: u64) -> Result<Vec<u8>, End> {
        self.plain.get(at, len).or_else(fail)
    }

    fn launch(&mut self, launch: &Launch) -> CaseResult {
        self.launch_in(launch, self.stream).and_then(|()| self.wait()).or_else(fail)
    }

    fn free(&mut self) -> CaseResult {
        self.memory.clear();
        Ok(())
    }
}

fn twins(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let report = conformance::kernels::run(&mut Rig::new(machine)?);
    notes.insert("cases".to_owned(), json!(report.rows.len()));
    match report.rows.iter().find(|row| row.verdict != Verdict::Passed) {
        None => Ok(()),
        Some(row) => Err(format!("{}: {:?}", row.case, row.verdict)),
    }
}

/// A measured kernel: bytes that it moves, and what is asked of it.
struct Rate {
    name: &'static str,
    moved_bytes: u64,
    goal: Option<f64>,
}

fn rates(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let mut rig = Rig::new(machine)?;
    let (free, _) = rig.kernels.context().memory_info().map_err(say)?;
    let len = RATE_BYTES.min(free / 4) / 65_536 * 65_536;
    notes.insert("bytes".to_owned(), json!(len));
    let (source, target) = (rig.room(len + 64)?, rig.room(len + 64)?);
    let fill = poison::fill_launch(source, ByteLen(len), 7).map_err(say)?;
    // What a copy moves is read once and written once.
    let copy = rig.seconds(|stream| rig.plain.copy_inside(target, source, len, stream))?;
    let copy_rate = 2.0 * gb(len) / copy;
    notes.insert("copy_gb_per_s".to_owned(), json!(copy_rate));
    let mut tell = |rate: &Rate, seconds: f64| {
        let gb_per_s = gb(rate.moved_bytes) / seconds;
        notes.insert(format!("{}_gb_per_s", rate.name), json!(gb_per_s));
        notes.insert(format!("{}_of_copy", rate.name), json!(gb_per_s / copy_rate));
        if let Some(goal) = rate.goal {
            notes.insert(format!("{}_goal_held", rate.name), json!(gb_per_s / copy_rate >= goal));
        }
    };
    let filled = rig.seconds(|stream| rig.launch_in(&fill, stream))?;
    tell(&Rate { name: "poison_fill", moved_bytes: len, goal: None }, filled);
    let found = rig.filled(&Found::before())?;
    let find = poison::find_launch(source, ByteLen(len), 8, found).map_err(say)?;
    let seconds = rig.seconds(|stream| rig.launch_in(&find, stream))?;
    tell(&Rate { name: "poison_find", moved_bytes: len, goal: None }, seconds);
    ranges_rates(&mut rig, (source, target, len), &mut tell)?;
    // Filled once more: swapping in place is none of the measured works, but nothing here should rest on that.
    rig.launch_in(&fill, rig.stream)?;
    sums_rates(machine, &mut rig, (source, len), &mut tell)
}

#[expect(clippy::cast_precision_loss, reason = "lengths here are below 2^53")]
fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn ranges_rates(
    rig: &mut Rig,
    (source, target, len): (GpuVa, GpuVa, u64),
    tell: &mut impl FnMut(&Rate, f64),
) -> Result<(), String> {
    let copies = Some(COPY_GOAL);
    let works = [
        ("gather_aligned", Work::Move, 0, copies),
        ("gather_misaligned", Work::Move, 13, copies),
        ("swap4", Work::Swap(Element::Four), 0, None),
        ("widen_bf16", Work::Widen(Narrow::Bf16), 0, None),
        ("widen_f16", Work::Widen(Narrow::F16), 0, None),
        ("widen_e4m3", Work::Widen(Narrow::E4m3Fn), 0, None),
        ("widen_e5m2", Work::Widen(Narrow::E5m2), 0, None),
    ];
    for (name, work, offset, goal) in works {
        // As tensors come: ranges of 1 MiB.
        let range = |at: u64| {
            let source = source.checked_add(ByteLen(work.source_len(at) + offset))?;
            Some(Range { source, target: target.checked_add(ByteLen(at))?, len: ByteLen((1 << 20).min(len - at)) })
        };
        let list = (0..len).step_by(1 << 20).map(range).collect::<Option<Vec<_>>>().ok_or("an address that is none")?;
        let plan = RangePlan::new(work, &list).map_err(say)?;
        let launch = plan.launch(rig.filled(plan.jobs())?).map_err(say)?;
        let seconds = rig.seconds(|stream| rig.launch_in(&launch, stream))?;
        tell(&Rate { name, moved_bytes: len + work.source_len(len), goal }, seconds);
    }
    Ok(())
}

fn sums_rates(
    machine: &Machine,
    rig: &mut Rig,
    (source, len): (GpuVa, u64),
    tell: &mut impl FnMut(&Rate, f64),
) -> Result<(), String> {
    let mut content = vec![0; index(len)];
    poison::fill(&mut content, 7);
    let driver = machine.driver.clone().map_err(say)?;
    let processors = driver.device(0).and_then(|device| device.attribute(sw_cuda::Attribute::Multiprocessors));
    let warps = u64::try_from(processors.map_err(say)?).unwrap_or(1) * WARPS_PER_PROCESSOR;
    let parts: Vec<(GpuVa, ByteLen)> = (0..len / (1 << 20))
        .filter_map(|part| Some((source.checked_add(ByteLen(part << 20))?, ByteLen(1 << 20))))
        .collect();
    for (algorithm, reference, one, many) in [
        (Algorithm::Crc32c, Reference::Crc32c, "crc32c_one_buffer", "crc32c_of_1_mib_each"),
        (Algorithm::Crc64Nvme, Reference::Crc64Nvme, "crc64_one_buffer", "crc64_of_1_mib_each"),
    ] {
        for (name, buffers) in [(one, &[(source, ByteLen(len))][..]), (many, &parts[..])] {
            let plan = SumPlan::new(algorithm, buffers, warps).map_err(say)?;
            let jobs = rig.filled(plan.jobs())?;
            let launches = plan.launches(jobs).map_err(say)?;
            let run = |stream| launches.iter().try_for_each(|launch| rig.launch_in(launch, stream));
            let seconds = rig.seconds(run)?;
            let moved: u64 = buffers.iter().map(|(_, len)| len.0).sum();
            tell(&Rate { name, moved_bytes: moved, goal: Some(SUM_GOAL) }, seconds);
            // Sums add up over launches: once more from the start, for their values.
            rig.plain.put(jobs, plan.jobs())?;
            run(rig.stream)?;
            rig.wait()?;
            let got = plan.sums(&rig.plain.get(jobs, plan.jobs().len() as u64)?).map_err(say)?;
            let want = |(at, len): &(GpuVa, ByteLen)| {
                let from = index(at.raw() - source.raw());
                reference.of(&content[from..from + index(len.0)])
            };
            if got != buffers.iter().map(want).collect::<Vec<u64>>() {
                return Err(format!("{name}: the sums are not those of the content"));
            }
        }
    }
    Ok(())
}
