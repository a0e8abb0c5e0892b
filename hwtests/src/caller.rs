//! Programs that have GPU memory, streams and contexts of their own, as every training job has: what the engine does with
//! those. The caller here speaks to the driver itself, not through `sw-cuda`.
// UNSAFETY: plays the caller of the unsafe constructors, and calls the driver with the signatures of cuda.h.
#![expect(unsafe_code, reason = "plays a program that owns CUDA memory, streams and contexts")]

use std::ffi::{c_int, c_uint};

use serde_json::json;
use straightway::{Engine, Policy};
use sw_cuda::{Context, CopyEngineConfig, CudaCopyEngine, Driver, ForeignStream, PointerKind, SelfTest, StreamOrder};
use sw_engine::Token;
use sw_engine::seam::{CopyDirection, CopyEngine, CopyJob, Fence};
use sw_mem::{Buffer, ByteLen, GpuVa};

use crate::harness::{Need, Notes, Tag, Test};
use crate::machine::Machine;
use crate::staged::{Folder, compare};

/// Bytes of each allocation of the caller's.
const BLOCK_BYTES: u64 = 4 << 20;
/// Where the engine may write in it: a place that is no multiple of anything, and an odd length.
const INSIDE: (u64, u64) = (70_001, 3_000_017);
/// What the caller's memory is filled with before.
const GUARD: u8 = 0xa5;
/// Bytes that the caller's stream fills again and again before our copy: long enough that a copy without order is first.
const BUSY_BYTES: u64 = 256 << 20;
/// How often; some 10 ms in all at 3 TB/s. Once on the stand-in, which is as fast as the host's memory.
const BUSY_TIMES: u32 = 100;
/// Longest that copies may take.
const FENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Looks at a gate at most: a second of them at the least, at 0.1 microseconds each.
const LOOKS_MAX: u64 = 10_000_000;

/// All of them.
pub fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "caller.memory",
            will: "read a file into device, managed and page-locked memory that a caller allocated, at an odd place inside",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: memory,
        },
        Test {
            name: "caller.stream_order",
            will: "copy in order with a busy stream of a caller's: after what it held, before what follows",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: stream_order,
        },
        Test {
            name: "caller.stream_gate",
            will: "read a file in its place in a busy stream of a caller's, with nobody waiting but the stream",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: stream_gate,
        },
        Test {
            name: "caller.contexts",
            will: "work in a context that a caller made, beside the primary one, and leave the current context as it was",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: contexts,
        },
    ]
}

fn say(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// What the caller allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Device,
    Managed,
    Pinned,
}

/// The caller's own access to the driver that `sw-cuda` loaded, with the primary context of device 0 current.
struct Caller {
    library: libloading::Library,
}

impl Caller {
    fn new(driver: Driver) -> Result<Self, String> {
        // SAFETY: the same file is loaded already; this is one more reference.
        let library = unsafe { libloading::Library::new(driver.path()) }.map_err(say)?;
        let caller = Self { library };
        let primary = caller.primary()?;
        caller.one("cuCtxPushCurrent_v2", primary)?;
        Ok(caller)
    }

    fn primary(&self) -> Result<usize, String> {
        type Retain = unsafe extern "C" fn(*mut usize, c_int) -> u32;
        let mut handle = 0;
        // SAFETY: the signature of cuda.h.
        let retain = unsafe { self.library.get::<Retain>("cuDevicePrimaryCtxRetain") }.map_err(say)?;
        // SAFETY: a writable result; device 0 exists.
        code("cuDevicePrimaryCtxRetain", unsafe { retain(&raw mut handle, 0) })?;
        Ok(handle)
    }

    /// Calls a function that takes one handle or address.
    fn one(&self, name: &str, handle: usize) -> Result<(), String> {
        // SAFETY: every caller names a function of cuda.h with one pointer-sized parameter.
        let function = unsafe { self.library.get::<unsafe extern "C" fn(usize) -> u32>(name) }.map_err(say)?;
        // SAFETY: a live handle or address of the kind that the function takes.
        code(name, unsafe { function(handle) })
    }

    /// Calls a function that gives one handle and takes nothing.
    fn get(&self, name: &str) -> Result<usize, String> {
        let mut handle = 0;
        // SAFETY: every caller names a function of cuda.h with one result.
        let function = unsafe { self.library.get::<unsafe extern "C" fn(*mut usize) -> u32>(name) }.map_err(say)?;
        // SAFETY: a writable result.
        code(name, unsafe { function(&raw mut handle) })?;
        Ok(handle)
    }

    fn stream(&self) -> Result<usize, String> {
        type Create = unsafe extern "C" fn(*mut usize, c_uint) -> u32;
        /// `CU_STREAM_NON_BLOCKING`: no order with the default stream, so only ours is left.
        const NON_BLOCKING: c_uint = 1;
        let mut handle = 0;
        // SAFETY: the signature of cuda.h.
        let create = unsafe { self.library.get::<Create>("cuStreamCreate") }.map_err(say)?;
        // SAFETY: a writable result; a context is current.
        code("cuStreamCreate", unsafe { create(&raw mut handle, NON_BLOCKING) })?;
        Ok(handle)
    }

    fn context(&self) -> Result<usize, String> {
        type Create = unsafe extern "C" fn(*mut usize, c_uint, c_int) -> u32;
        let mut handle = 0;
        // SAFETY: the signature of cuda.h.
        let create = unsafe { self.library.get::<Create>("cuCtxCreate_v2") }.map_err(say)?;
        // SAFETY: a writable result; device 0 exists.
        code("cuCtxCreate_v2", unsafe { create(&raw mut handle, 0, 0) })?;
        Ok(handle)
    }

    fn allocate(&self, kind: Kind, len: u64) -> Result<u64, String> {
        type Two = unsafe extern "C" fn(*mut u64, usize) -> u32;
        type Three = unsafe extern "C" fn(*mut u64, usize, c_uint) -> u32;
        /// `CU_MEM_ATTACH_GLOBAL` and `CU_MEMHOSTALLOC_PORTABLE`.
        const FLAGS: c_uint = 1;
        let (mut address, len) = (0, sw_mem::index(len));
        match kind {
            Kind::Device => {
                // SAFETY: the signature of cuda.h.
                let alloc = unsafe { self.library.get::<Two>("cuMemAlloc_v2") }.map_err(say)?;
                // SAFETY: a writable result; a context is current.
                code("cuMemAlloc_v2", unsafe { alloc(&raw mut address, len) })?;
            }
            Kind::Managed | Kind::Pinned => {
                let name = if kind == Kind::Managed { "cuMemAllocManaged" } else { "cuMemHostAlloc" };
                // SAFETY: the signature of cuda.h for both; a pointer is as wide as an address.
                let alloc = unsafe { self.library.get::<Three>(name) }.map_err(say)?;
                // SAFETY: a writable result; a context is current.
                code(name, unsafe { alloc(&raw mut address, len, FLAGS) })?;
            }
        }
        Ok(address)
    }

    fn free(&self, kind: Kind, address: u64) -> Result<(), String> {
        let name = if kind == Kind::Pinned { "cuMemFreeHost" } else { "cuMemFree_v2" };
        self.one(name, sw_mem::index(address))
    }

    /// Queues a fill.
    fn fill(&self, at: u64, byte: u8, len: u64, stream: usize) -> Result<(), String> {
        type Fill = unsafe extern "C" fn(u64, u8, usize, usize) -> u32;
        // SAFETY: the signature of cuda.h.
        let fill = unsafe { self.library.get::<Fill>("cuMemsetD8Async") }.map_err(say)?;
        // SAFETY: memory of the caller's own, a live stream.
        code("cuMemsetD8Async", unsafe { fill(at, byte, sw_mem::index(len), stream) })
    }

    /// Bytes from memory of any kind, by the driver; waits.
    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>, String> {
        type Copy = unsafe extern "C" fn(*mut u8, u64, usize) -> u32;
        let mut to = vec![0; sw_mem::index(len)];
        // SAFETY: the signature of cuda.h.
        let copy = unsafe { self.library.get::<Copy>("cuMemcpyDtoH_v2") }.map_err(say)?;
        // SAFETY: `to` has as many bytes; the source is memory of the caller's own.
        code("cuMemcpyDtoH_v2", unsafe { copy(to.as_mut_ptr(), at, to.len()) })?;
        Ok(to)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _best_effort = self.get("cuCtxPopCurrent_v2");
        let _best_effort = self.one("cuDevicePrimaryCtxRelease_v2", 0);
    }
}

fn code(name: &str, code: u32) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{name} answered {code}")) }
}

fn memory(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let driver = machine.driver.clone().map_err(say)?;
    let caller = Caller::new(driver)?;
    let (inside, len) = INSIDE;
    let folder = Folder::new()?;
    let file = folder.file("source", 1000 + sw_mem::index(len))?;
    let want = file.get(1000..).ok_or("the file is shorter than its test")?;
    let engine = Engine::builder().build().map_err(say)?;
    let object = engine.open(&folder.uri("source")?).map_err(say)?;
    for (kind, expected) in [
        (Kind::Device, PointerKind::Device),
        (Kind::Managed, PointerKind::Managed),
        (Kind::Pinned, PointerKind::PinnedHost),
    ] {
        let block = caller.allocate(kind, BLOCK_BYTES)?;
        caller.fill(block, GUARD, BLOCK_BYTES, 0)?;
        caller.one("cuStreamSynchronize", 0)?;
        {
            // SAFETY: the block is freed below, after the region and everything made of it; no reference into it exists.
            let (region, facts) = unsafe { driver.register_existing(block + inside, ByteLen(len)) }.map_err(say)?;
            if (facts.kind, facts.base, facts.offset) != (expected, block, inside) {
                return Err(format!("{kind:?} memory is said to be {facts:?}"));
            }
            let part = engine.register(region).map_err(say)?.part(0, len).map_err(say)?;
            let read = engine.read(&object, 1000, part).policy(Policy::Any).wait().ok().map_err(say)?;
            notes.insert(format!("{kind:?}").to_lowercase(), json!(read.path.to_string()));
            compare(&engine, &read.into_memory().ok_or("no memory came back")?, want)?;
        }
        let around = caller.bytes(block, BLOCK_BYTES)?;
        let end = sw_mem::index(inside + len);
        let guards = around.iter().take(sw_mem::index(inside)).chain(around.iter().skip(end));
        if let Some(at) = guards.clone().position(|byte| *byte != GUARD) {
            return Err(format!("{kind:?}: guard byte {at} around the range was written"));
        }
        if around.get(sw_mem::index(inside)..end) != Some(want) {
            return Err(format!("{kind:?}: the driver sees other bytes than the file has"));
        }
        caller.free(kind, block)?;
        // SAFETY: no region comes into being.
        if unsafe { driver.register_existing(block + inside, ByteLen(len)) }.is_ok() {
            return Err(format!("{kind:?}: freed memory was registered"));
        }
    }
    engine.close().map_err(say)
}

fn stream_order(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let driver = machine.driver.clone().map_err(say)?;
    let context = Context::primary(&driver.device(0).map_err(say)?).map_err(say)?;
    let caller = Caller::new(driver)?;
    let stream = caller.stream()?;
    let (busy, target) = (caller.allocate(Kind::Device, BUSY_BYTES)?, caller.allocate(Kind::Device, 8192)?);
    let times = if machine.is_standin() { 1 } else { BUSY_TIMES };
    // SAFETY: the stream is destroyed below, after the engine that was given it.
    let around = StreamOrder::Around(unsafe { ForeignStream::from_raw(stream) });
    for (name, order) in [("ordered", around), ("unordered", StreamOrder::Unordered)] {
        let bytes = race(&context, &caller, order, &Race { busy, times, target, stream })?;
        let first = |at: usize| bytes.get(at).copied().unwrap_or(0);
        notes.insert(format!("{name}_bytes"), json!([first(0), first(8191)]));
        let kept = bytes.iter().take(4096).all(|b| *b == 0x33) && bytes.iter().skip(4096).all(|b| *b == 0x22);
        notes.insert(format!("{name}_is_ordered"), json!(kept));
        if name == "ordered" && !kept {
            return Err(format!("the copy was not between the caller's fills: {:#x} and {:#x}", first(0), first(8191)));
        }
    }
    caller.one("cuStreamDestroy_v2", stream)?;
    caller.free(Kind::Device, busy)?;
    caller.free(Kind::Device, target)
}

/// What a race takes place in: memory that keeps the stream busy and how often, memory that is looked at, the stream.
struct Race {
    busy: u64,
    times: u32,
    target: u64,
    stream: usize,
}

/// The caller's stream is busy, then fills the target with 0x11; our copy writes 0x22; the caller fills the first half with
/// 0x33. Answers what is there at the end.
fn race(context: &Context, caller: &Caller, order: StreamOrder, race: &Race) -> Result<Vec<u8>, String> {
    let Race { busy, times, target, stream } = *race;
    let mut engine = CudaCopyEngine::new(context, CopyEngineConfig { order, ..Default::default() }).map_err(say)?;
    let host = Buffer::allocate(ByteLen(8192)).map_err(say)?.into_span();
    host.fill(0, 8192, 0x22).map_err(say)?;
    let _pin = engine.pin_slabs(host.region()).map_err(say)?;
    for _ in 0..times {
        caller.fill(busy, GUARD, BUSY_BYTES, stream)?;
    }
    caller.fill(target, 0x11, 8192, stream)?;
    let job = CopyJob {
        token: Token::from_raw(1),
        direction: CopyDirection::ToDevice,
        host: host.place().host().ok_or("host memory")?,
        device: GpuVa::new(target),
        len: 8192,
    };
    engine.submit(&job).map_err(say)?;
    engine.ring().map_err(say)?;
    caller.fill(target, 0x33, 4096, stream)?;
    let mut done = Vec::with_capacity(4);
    let fence = engine.fence(FENCE, &mut done);
    if fence != Fence::Quiet || done.len() != 1 {
        return Err(format!("{fence:?} with {} copies ended", done.len()));
    }
    caller.one("cuStreamSynchronize", stream)?;
    caller.bytes(target, 8192)
}

/// The caller's stream is busy, then fills its memory with 0x11; a file is read there; the caller fills the first half with 0x33.
fn stream_gate(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let driver = machine.driver.clone().map_err(say)?;
    let caller = Caller::new(driver)?;
    let stream = caller.stream()?;
    let (busy, target) = (caller.allocate(Kind::Device, BUSY_BYTES)?, caller.allocate(Kind::Device, BLOCK_BYTES)?);
    let folder = Folder::new()?;
    let file = folder.file("source", sw_mem::index(BLOCK_BYTES))?;
    let engine = Engine::builder().build().map_err(say)?;
    let object = engine.open(&folder.uri("source")?).map_err(say)?;
    for _ in 0..if machine.is_standin() { 1 } else { BUSY_TIMES } {
        caller.fill(busy, GUARD, BUSY_BYTES, stream)?;
    }
    caller.fill(target, 0x11, BLOCK_BYTES, stream)?;
    // SAFETY: the stream is destroyed below, after the gate.
    let gate = engine.stream_gate(0, unsafe { ForeignStream::from_raw(stream) }).map_err(say)?;
    caller.fill(target, 0x33, BLOCK_BYTES / 2, stream)?;
    {
        // SAFETY: the memory is freed below, after the region and everything made of it; no reference into it exists.
        let (region, _) = unsafe { driver.register_existing(target, ByteLen(BLOCK_BYTES)) }.map_err(say)?;
        let part = engine.register(region).map_err(say)?.part(0, BLOCK_BYTES).map_err(say)?;
        let mut looks = 0_u64;
        while !gate.is_reached().map_err(say)? {
            looks += 1;
            if looks > LOOKS_MAX {
                return Err("the stream does not come to the gate".to_owned());
            }
            std::hint::spin_loop();
        }
        notes.insert("looks_until_reached".to_owned(), json!(looks));
        engine.read(&object, 0, part).start().wait().ok().map_err(say)?;
    }
    drop(gate);
    caller.one("cuStreamSynchronize", stream)?;
    let half = sw_mem::index(BLOCK_BYTES / 2);
    let bytes = caller.bytes(target, BLOCK_BYTES)?;
    if bytes.iter().take(half).any(|byte| *byte != 0x33) || bytes.get(half..) != file.get(half..) {
        return Err("the read was not between the caller's fills".to_owned());
    }
    caller.one("cuStreamDestroy_v2", stream)?;
    caller.free(Kind::Device, busy)?;
    caller.free(Kind::Device, target)?;
    engine.close().map_err(say)
}

fn contexts(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let driver = machine.driver.clone().map_err(say)?;
    let primary = Context::primary(&driver.device(0).map_err(say)?).map_err(say)?;
    let caller = Caller::new(driver)?;
    let made = caller.context()?;
    {
        // SAFETY: it is destroyed below, after everything made from this value.
        let own = unsafe { Context::of_caller(driver) }.map_err(say)?;
        if own.device().ordinal() != 0 {
            return Err(format!("the context is said to be of gpu{}", own.device().ordinal()));
        }
        let both = std::thread::scope(|scope| {
            let beside = scope.spawn(|| SelfTest::run(&primary));
            (SelfTest::run(&own), beside.join())
        });
        let passed = both.0.map_err(|error| format!("in the caller's context: {error}"))?;
        let beside = both.1.map_err(|_| "the self-test panicked".to_owned())?;
        beside.map_err(|error| format!("in the primary context: {error}"))?;
        notes.insert("bytes".to_owned(), json!(passed.bytes));
    }
    let current = caller.get("cuCtxGetCurrent")?;
    if current != made {
        return Err("another context is current than before".to_owned());
    }
    caller.one("cuCtxDestroy_v2", made)
}
