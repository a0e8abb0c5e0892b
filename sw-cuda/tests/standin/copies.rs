//! The copy engine: right bytes, right order, bounded, no allocation, few driver calls.
// UNSAFETY: plays other clients of the driver, which call it directly, and counts allocations.
#![expect(clippy::cast_possible_truncation, reason = "test data: the numbers are small, and wrapping bytes are wanted")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use standin_libcuda::harness::Control;
use sw_cuda::{Context, CopyEngineConfig, CudaCopyEngine, DeviceBuffer, Driver, ForeignStream, StreamOrder};
use sw_engine::seam::{CopyDirection, CopyDone, CopyEngine, CopyJob, Fence, SlabPin};
use sw_engine::{ErrorKind, Token};
use sw_mem::{Buffer, ByteLen, DmaSpan, GpuVa, HostVa};

use crate::{Case, Outcome, case, first_context, holds, same, text};

pub fn cases() -> Vec<Case> {
    let worker = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100")];
    vec![
        case("bytes_arrive_at_odd_offsets_in_both_directions", round_trip),
        case("nothing_is_told_before_its_event_was_reached", not_before),
        case("a_batch_costs_one_event", batch_cost),
        case("depth_is_a_limit_and_full_is_not_an_error_of_the_device", depth),
        case("poll_never_grows_its_list", no_growth),
        case("jobs_that_cannot_be_are_refused_before_the_driver", refused),
        case("copies_wait_for_the_callers_stream_and_it_for_them", ordered),
        case("without_an_order_the_callers_stream_is_not_waited_for", unordered),
        case("a_fence_waits_for_what_runs_and_forgets_what_was_not_rung", fence),
        case("a_fence_that_runs_out_says_how_many", fence_timeout),
        case("dropping_an_engine_waits_for_its_copies", drop_waits),
        case("the_data_path_allocates_nothing", allocation_free),
        Case { settings: worker, ..case("many_random_copies_match_a_model", random) },
        Case { settings: worker, ..case("each_way_can_have_several_streams", streams) },
        Case {
            settings: &[("STANDIN_DEVICES", "2"), ("STANDIN_MODE", "lazy")],
            ..case("engines_of_two_devices_do_not_mix", two_devices)
        },
    ]
}

/// Counts allocations of the test binary: the code under test and not the stand-in, which has its own allocator.
struct Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Another library of the process, which calls the driver directly.
pub(crate) mod other {
    use std::ffi::{c_int, c_uint, c_void};

    pub fn library() -> Result<libloading::Library, String> {
        // SAFETY: the driver is loaded already; this is one more reference.
        unsafe { libloading::Library::new("libcuda.so") }.map_err(crate::text)
    }

    pub fn create_context() -> Result<usize, String> {
        let library = library()?;
        let mut handle: *mut c_void = std::ptr::null_mut();
        type Create = unsafe extern "C" fn(*mut *mut c_void, c_uint, c_int) -> u32;
        // SAFETY: the signature of cuda.h.
        let create = unsafe { library.get::<Create>("cuCtxCreate_v2") }.map_err(crate::text)?;
        // SAFETY: a writable result; device 0 exists.
        let code = unsafe { create(&raw mut handle, 0, 0) };
        crate::same("cuCtxCreate_v2", code, 0)?;
        Ok(handle.addr())
    }

    /// Calls a function that takes one handle.
    pub fn with_handle(name: &str, handle: usize) -> Result<(), String> {
        let library = library()?;
        // SAFETY: every caller names a function of cuda.h with one pointer-sized parameter.
        let function = unsafe { library.get::<unsafe extern "C" fn(usize) -> u32>(name) }.map_err(crate::text)?;
        // SAFETY: a live handle of the right kind.
        crate::same(name, unsafe { function(handle) }, 0)
    }

    /// Calls a function that answers one handle.
    pub fn answer(name: &str, flags: Option<c_uint>) -> Result<usize, String> {
        let library = library()?;
        let mut handle = 0usize;
        let code = match flags {
            None => {
                // SAFETY: every caller names a function of cuda.h with one result.
                let f = unsafe { library.get::<unsafe extern "C" fn(*mut usize) -> u32>(name) }.map_err(crate::text)?;
                // SAFETY: a writable result.
                unsafe { f(&raw mut handle) }
            }
            Some(flags) => {
                type F = unsafe extern "C" fn(*mut usize, c_uint) -> u32;
                // SAFETY: every caller names a function of cuda.h with one result and flags.
                let f = unsafe { library.get::<F>(name) }.map_err(crate::text)?;
                // SAFETY: a writable result.
                unsafe { f(&raw mut handle, flags) }
            }
        };
        crate::same(name, code, 0)?;
        Ok(handle)
    }

    /// Queues a fill of device memory in a stream.
    pub fn fill(at: u64, byte: u8, len: usize, stream: usize) -> Result<(), String> {
        let library = library()?;
        type Fill = unsafe extern "C" fn(u64, u8, usize, usize) -> u32;
        // SAFETY: the signature of cuda.h.
        let fill = unsafe { library.get::<Fill>("cuMemsetD8Async") }.map_err(crate::text)?;
        // SAFETY: device memory of the test, a live stream.
        crate::same("cuMemsetD8Async", unsafe { fill(at, byte, len, stream) }, 0)
    }
}

/// A context that another library made and made current; it destroys it on drop.
pub struct Made(usize);

pub fn make_current_context() -> Result<Made, String> {
    Driver::load().map_err(text)?;
    other::create_context().map(Made)
}

impl Drop for Made {
    fn drop(&mut self) {
        let _code = other::with_handle("cuCtxDestroy_v2", self.0);
    }
}

/// The context that is current in this thread; 0 for none.
pub fn current_context() -> usize {
    other::answer("cuCtxGetCurrent", None).unwrap_or(usize::MAX)
}

/// An engine with pinned host memory and device memory. Fields drop in this order: the engine first.
pub struct Bench {
    pub engine: CudaCopyEngine,
    pub pin: Option<Box<dyn SlabPin>>,
    pub host: DmaSpan,
    pub device: DeviceBuffer,
    pub done: Vec<CopyDone>,
}

impl Bench {
    pub fn new(context: &Context, config: CopyEngineConfig, room: u64) -> Result<Self, String> {
        let mut engine = CudaCopyEngine::new(context, config).map_err(text)?;
        let host = Buffer::allocate(ByteLen(room)).map_err(text)?.into_span();
        let device = DeviceBuffer::allocate(context, ByteLen(room)).map_err(text)?;
        let pin = Some(engine.pin(host.region()).map_err(text)?);
        Ok(Self { engine, pin, host, device, done: Vec::with_capacity(4096) })
    }

    pub fn job(&self, token: u64, direction: CopyDirection, host_at: u64, device_at: u64, len: u32) -> CopyJob {
        let base = self.host.place().host().map_or(0, HostVa::raw);
        let host = HostVa::new(base + host_at);
        let device = GpuVa::new(self.device.base().raw() + device_at);
        CopyJob { token: Token::from_raw(token), direction, host, device, len }
    }

    /// Submits, rings, polls to the end; the token must come back.
    pub fn copy(&mut self, direction: CopyDirection, host_at: u64, device_at: u64, len: u32) -> Outcome {
        self.done.clear();
        let job = self.job(7, direction, host_at, device_at, len);
        self.engine.submit(&job).map_err(text)?;
        self.engine.ring().map_err(text)?;
        self.drain(1)?;
        let end = self.done.pop().ok_or("nothing was told")?;
        same("token", end.token, job.token)?;
        end.result.map_err(text)
    }

    /// Polls until `count` copies were told; at most 100,000 times (10 s in mode worker).
    pub fn drain(&mut self, count: usize) -> Outcome {
        for _ in 0..100_000 {
            if self.done.len() >= count {
                return Ok(());
            }
            if self.engine.poll(&mut self.done).map_err(text)? == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        Err(format!("{} of {count} copies told", self.done.len()))
    }

    fn host_bytes(&self, at: u64, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        self.host.read(at, &mut bytes).map_err(text)?;
        Ok(bytes)
    }
}

use CopyDirection::{FromDevice, ToDevice};

fn round_trip() -> Outcome {
    let context = first_context()?;
    let mut bench = Bench::new(&context, Default::default(), 1 << 20)?;
    for (n, len) in [1u32, 3, 511, 4097, 100_001].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(n as u8)).collect();
        bench.host.write(17, &bytes).map_err(text)?;
        bench.copy(ToDevice, 17, 1001, len)?;
        bench.host.fill(0, 1 << 20, 0).map_err(text)?;
        bench.copy(FromDevice, 300_003, 1001, len)?;
        same("bytes", bench.host_bytes(300_003, len as usize)? == bytes, true)?;
    }
    Ok(())
}

fn not_before() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    control.set("query_polls", 5);
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    let job = bench.job(1, ToDevice, 0, 0, 4096);
    bench.engine.submit(&job).map_err(text)?;
    same("staged copies are not told", bench.engine.poll(&mut bench.done).map_err(text)?, 0)?;
    same("and not started", control.stat("calls.cuMemcpyHtoDAsync_v2"), 0)?;
    bench.engine.ring().map_err(text)?;
    for _ in 0..5 {
        same("told early", bench.engine.poll(&mut bench.done).map_err(text)?, 0)?;
        same("copied early", control.stat("copies"), 0)?;
    }
    same("told", bench.engine.poll(&mut bench.done).map_err(text)?, 1)?;
    same("no blocking wait", control.stat("blocking_waits"), 0)
}

fn batch_cost() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    control.set("query_polls", 0);
    let mut bench = Bench::new(&context, Default::default(), 1 << 20)?;
    let before = control.stat("calls.all");
    for round in 0..10 {
        for n in 0..32 {
            let job = bench.job(round * 32 + n, ToDevice, n * 4096, n * 4096, 4096);
            bench.engine.submit(&job).map_err(text)?;
        }
        bench.engine.ring().map_err(text)?;
        bench.drain((round as usize + 1) * 32)?;
    }
    // For 32 copies: 32 copy calls, 1 event recorded, 1 queried, and the context pushed and popped by ring and poll.
    same("driver calls for 320 copies", control.stat("calls.all") - before, 10 * (32 + 1 + 1 + 4))
}

fn depth() -> Outcome {
    let context = first_context()?;
    let config = CopyEngineConfig { queue_depth: 3, ..Default::default() };
    let mut bench = Bench::new(&context, config, 8192)?;
    same("told by caps", bench.engine.caps().queue_depth, 3)?;
    for n in 0..3 {
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 8)).map_err(text)?;
    }
    let fourth = bench.job(3, ToDevice, 0, 0, 8);
    same("full", bench.engine.submit(&fourth).map_err(|f| f.kind), Err(ErrorKind::Busy))?;
    bench.engine.ring().map_err(text)?;
    same("still full", bench.engine.submit(&fourth).map_err(|f| f.kind), Err(ErrorKind::Busy))?;
    bench.drain(3)?;
    bench.engine.submit(&fourth).map_err(text)?;
    bench.engine.ring().map_err(text)?;
    bench.drain(4)?;
    for (depth, streams) in [(0, 1), (4097, 1), (1, 0), (1, 9)] {
        let config = CopyEngineConfig { queue_depth: depth, streams, ..Default::default() };
        let answer = CudaCopyEngine::new(&context, config).map(|_| ()).map_err(|e| e.kind);
        same("bad configuration", answer, Err(ErrorKind::ApiMisuse))?;
    }
    Ok(())
}

fn no_growth() -> Outcome {
    let context = first_context()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    bench.done = Vec::with_capacity(4);
    let room = bench.done.capacity();
    for n in 0..10 {
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 8)).map_err(text)?;
    }
    bench.engine.ring().map_err(text)?;
    let mut tokens = Vec::new();
    for _ in 0..100 {
        bench.engine.poll(&mut bench.done).map_err(text)?;
        same("capacity", bench.done.capacity(), room)?;
        tokens.extend(bench.done.drain(..).map(|d| d.token.raw()));
    }
    same("all told, each once, in order", tokens, (0..10).collect::<Vec<_>>())
}

fn refused() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    let kind = |bench: &mut Bench, job: &CopyJob| bench.engine.submit(job).map_err(|f| f.kind);
    let empty = bench.job(1, ToDevice, 0, 0, 0);
    same("no bytes", kind(&mut bench, &empty), Err(ErrorKind::ApiMisuse))?;
    for (at, len) in [(8192, 1), (8191, 2), (0, 8193), (u64::MAX / 2, 1)] {
        let job = bench.job(1, ToDevice, at, 0, len);
        same("not pinned", kind(&mut bench, &job), Err(ErrorKind::NotRegistered))?;
    }
    let good = bench.job(1, ToDevice, 0, 0, 16);
    bench.pin = None;
    same("pin dropped", kind(&mut bench, &good), Err(ErrorKind::NotRegistered))?;
    bench.engine.ring().map_err(text)?;
    same("no copy was asked of the driver", control.stat("calls.cuMemcpyHtoDAsync_v2"), 0)
}

/// Whom the case asks first: in mode lazy that stream runs, and with it only what it has to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Engine,
    Caller,
}

/// Fill 0x11 queued by the caller, then our copy of 0x22, then fill 0x33 queued by the caller over the first half.
/// Answers what is there when both were waited for.
fn with_order(order: fn(usize) -> StreamOrder, first: First) -> Result<Vec<u8>, String> {
    let context = first_context()?;
    Control::open()?.set("query_polls", 0);
    let mut plain = Bench::new(&context, Default::default(), 8192)?;
    other::with_handle("cuCtxPushCurrent_v2", primary_handle(&context)?)?;
    let stream = other::answer("cuStreamCreate", Some(1))?;
    let device = plain.device.base().raw();
    plain.host.fill(0, 4096, 0x22).map_err(text)?;
    {
        let config = CopyEngineConfig { order: order(stream), ..Default::default() };
        let mut engine = CudaCopyEngine::new(&context, config).map_err(text)?;
        let _pin = engine.pin(plain.host.region()).map_err(text)?;
        other::fill(device, 0x11, 4096, stream)?;
        engine.submit(&plain.job(1, ToDevice, 0, 0, 4096)).map_err(text)?;
        engine.ring().map_err(text)?;
        other::fill(device, 0x33, 2048, stream)?;
        let mut done = Vec::with_capacity(4);
        if first == First::Caller {
            other::with_handle("cuStreamSynchronize", stream)?;
        }
        engine.poll(&mut done).map_err(text)?;
        same("told", done.len(), 1)?;
        other::with_handle("cuStreamSynchronize", stream)?;
    }
    other::with_handle("cuStreamDestroy_v2", stream)?;
    other::answer("cuCtxPopCurrent_v2", None)?;
    plain.copy(FromDevice, 4096, 0, 4096)?;
    plain.host_bytes(4096, 4096)
}

/// The handle of the primary context, as another library gets it: retained once more and released.
fn primary_handle(_context: &Context) -> Result<usize, String> {
    let handle = other::answer("cuDevicePrimaryCtxRetain", Some(0))?;
    other::with_handle("cuDevicePrimaryCtxRelease_v2", 0)?;
    Ok(handle)
}

fn ordered() -> Outcome {
    for first in [First::Engine, First::Caller] {
        // SAFETY: the stream is destroyed after the engine, in `with_order`.
        let bytes = with_order(|stream| StreamOrder::Around(unsafe { ForeignStream::from_raw(stream) }), first)?;
        same("later fill is last", &bytes[..2048], &[0x33; 2048][..])?;
        same("copy after earlier fill", &bytes[2048..], &[0x22; 2048][..])?;
    }
    Ok(())
}

fn unordered() -> Outcome {
    // Whoever is asked last writes last: the order that nobody asked for is not there.
    let bytes = with_order(|_| StreamOrder::Unordered, First::Caller)?;
    same("the copy was last", &bytes[..], &[0x22; 4096][..])?;
    let bytes = with_order(|_| StreamOrder::Unordered, First::Engine)?;
    same("both fills were last", (bytes[0], bytes[4095]), (0x33, 0x11))
}

fn fence() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    for n in 0..4 {
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 8)).map_err(text)?;
    }
    bench.engine.ring().map_err(text)?;
    bench.engine.submit(&bench.job(9, ToDevice, 0, 0, 8)).map_err(text)?;
    let answer = bench.engine.fence(Duration::from_secs(5), &mut bench.done);
    same("quiet", answer, Fence::Quiet)?;
    same("rung copies are told", bench.done.iter().map(|d| d.token.raw()).collect(), vec![0, 1, 2, 3])?;
    same("the other never ran", control.stat("copies"), 4)?;
    bench.copy(ToDevice, 0, 0, 8)
}

fn fence_timeout() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    control.set("query_polls", 1_000_000);
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    for n in 0..3 {
        bench.engine.submit(&bench.job(n, FromDevice, 0, 0, 8)).map_err(text)?;
    }
    bench.engine.ring().map_err(text)?;
    same("busy", bench.engine.fence(Duration::from_millis(5), &mut bench.done), Fence::Busy(3))?;
    same("nothing told", bench.done.len(), 0)?;
    // The answer "not ready" is used up by waiting elsewhere, as a slow device does.
    other::with_handle("cuCtxPushCurrent_v2", primary_handle(&context)?)?;
    let library = other::library()?;
    // SAFETY: the signature of cuda.h.
    let sync = unsafe { library.get::<unsafe extern "C" fn() -> u32>("cuCtxSynchronize") }.map_err(text)?;
    // SAFETY: a current context.
    same("cuCtxSynchronize", unsafe { sync() }, 0)?;
    other::answer("cuCtxPopCurrent_v2", None)?;
    same("quiet", bench.engine.fence(Duration::from_secs(5), &mut bench.done), Fence::Quiet)?;
    same("told", bench.done.len(), 3)
}

fn drop_waits() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    bench.engine.submit(&bench.job(1, ToDevice, 0, 0, 4096)).map_err(text)?;
    bench.engine.ring().map_err(text)?;
    let Bench { engine, pin, host, device, .. } = bench;
    drop(engine);
    same("copied before the memory goes", (control.stat("copies"), control.stat("pending")), (1, 0))?;
    drop((pin, host, device));
    Ok(())
}

fn allocation_free() -> Outcome {
    let context = first_context()?;
    Control::open()?.set("query_polls", 1);
    let mut bench = Bench::new(&context, Default::default(), 1 << 20)?;
    let jobs: Vec<CopyJob> =
        (0..1000).map(|n| bench.job(n, if n % 2 == 0 { ToDevice } else { FromDevice }, n * 64, n * 64, 64)).collect();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for batch in jobs.chunks(20) {
        for job in batch {
            bench.engine.submit(job).map_err(text)?;
        }
        bench.engine.ring().map_err(text)?;
        bench.done.clear();
        while bench.done.len() < batch.len() {
            bench.engine.poll(&mut bench.done).map_err(text)?;
        }
    }
    same("allocations for 1,000 copies", ALLOCATIONS.load(Ordering::Relaxed) - before, 0)?;
    drop(std::hint::black_box(vec![1u8]));
    holds("the counter counts", ALLOCATIONS.load(Ordering::Relaxed) > before)
}

/// A small generator (SplitMix64), so that a failing run is told by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn random() -> Outcome {
    random_with(CopyEngineConfig { queue_depth: 16, ..Default::default() }, 0x5eed)
}

fn streams() -> Outcome {
    random_with(CopyEngineConfig { queue_depth: 16, streams: 4, ..Default::default() }, 0x5eee)
}

/// Rounds of up to 16 copies over ranges that do not overlap within a round; a model of both memories follows.
fn random_with(config: CopyEngineConfig, seed: u64) -> Outcome {
    const PARTS: u64 = 16;
    const PART: u64 = 8192;
    let context = first_context()?;
    let mut bench = Bench::new(&context, config, PARTS * PART)?;
    let mut random = Random(seed);
    let (mut host, mut device) = (vec![0u8; (PARTS * PART) as usize], vec![0u8; (PARTS * PART) as usize]);
    bench.host.fill(0, PARTS * PART, 0).map_err(text)?;
    bench.copy(ToDevice, 0, 0, (PARTS * PART) as u32)?;
    for round in 0..60u64 {
        let shift = random.below(PARTS);
        let count = 1 + random.below(PARTS);
        for n in 0..count {
            let (h, d) = ((n * PART) as usize, (((n + shift) % PARTS) * PART) as usize);
            let at = random.below(PART - 1) as usize;
            let len = 1 + random.below(PART - at as u64) as usize;
            let direction = if random.below(2) == 0 { ToDevice } else { FromDevice };
            if direction == ToDevice {
                let byte = random.below(256) as u8;
                bench.host.fill((h + at) as u64, len as u64, byte).map_err(text)?;
                host[h + at..h + at + len].fill(byte);
                device[d + at..d + at + len].fill(byte);
            } else {
                host[h + at..h + at + len].copy_from_slice(&device[d + at..d + at + len]);
            }
            let job = bench.job(n, direction, (h + at) as u64, (d + at) as u64, len as u32);
            bench.engine.submit(&job).map_err(text)?;
        }
        bench.engine.ring().map_err(text)?;
        bench.done.clear();
        bench.drain(count as usize)?;
        same(&format!("seed {seed:#x} round {round}"), bench.host_bytes(0, host.len())? == host, true)?;
    }
    bench.copy(FromDevice, 0, 0, (PARTS * PART) as u32)?;
    same("device memory", bench.host_bytes(0, device.len())? == device, true)
}

fn two_devices() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    let contexts: Vec<Context> = [0, 1]
        .iter()
        .map(|n| driver.device(*n).and_then(|d| Context::primary(&d)).map_err(text))
        .collect::<Result<_, _>>()?;
    let mut benches: Vec<Bench> =
        contexts.iter().map(|context| Bench::new(context, Default::default(), 4096)).collect::<Result<_, _>>()?;
    for (n, bench) in benches.iter_mut().enumerate() {
        same("device", usize::from(bench.engine.caps().device.0), n)?;
        bench.host.fill(0, 4096, 0x40 + n as u8).map_err(text)?;
        bench.engine.submit(&bench.job(1, ToDevice, 0, 0, 4096)).map_err(text)?;
        bench.engine.ring().map_err(text)?;
    }
    for (n, bench) in benches.iter_mut().enumerate() {
        bench.drain(1)?;
        bench.done.clear();
        bench.host.fill(0, 4096, 0).map_err(text)?;
        bench.copy(FromDevice, 0, 0, 4096)?;
        same("bytes of the right device", bench.host_bytes(0, 4096)?, vec![0x40 + n as u8; 4096])?;
    }
    Ok(())
}
