//! What a call of the C interface costs beside the same call in Rust: 512-byte reads from the page cache, in turn in one process. The C
//! side is `libstraightway.so`, loaded as a program loads it.
// UNSAFETY: calls functions of a shared library.
#![expect(unsafe_code, reason = "calls functions of a shared library")]

use std::{
    ffi::{CString, c_char, c_void},
    path::{Path, PathBuf},
    ptr,
    time::Instant,
};

use libloading::Library;
use straightway::{Destination, Engine, Error, Memory, Object, Region, Uri};

use crate::{
    allocations,
    fault::Fault,
    report::{Sample, median},
    usage::Usage,
};

const BYTES: u64 = 512;
/// Calls of a block.
const CALLS: u32 = 1000;

/// Blocks of each side, in turn.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Calls {
    /// `libstraightway.so`.
    #[arg(long)]
    pub library: PathBuf,
    /// A file in the page cache.
    #[arg(long)]
    pub file: PathBuf,
    /// Blocks of 1,000 calls of each side.
    #[arg(long)]
    pub blocks: u32,
}

/// `sw_completion` of `straightway.h`.
#[repr(C)]
#[derive(Default)]
struct Completion {
    size: usize,
    status: i32,
    landing: i32,
    bytes: u64,
    texts: [usize; 3],
    by_way: [u64; 3],
    bounced: u64,
    cpu_copied: u64,
    checksum: u64,
    has_checksum: i32,
    reserved: u32,
    times_ns: [u64; 2],
    user: usize,
}

type Pointer = *mut c_void;
type EngineOpen = extern "C" fn(*const c_void, *mut Pointer) -> i32;
type ObjectOpen = extern "C" fn(Pointer, *const c_char, *const c_void, *mut Pointer) -> i32;
type Allocate = extern "C" fn(Pointer, *const c_char, u64, u64, *mut Pointer) -> i32;
type Read = extern "C" fn(Pointer, u64, Pointer, u64, u64, *const c_void, *mut Completion) -> i32;

struct C {
    read: Read,
    object: Pointer,
    region: Pointer,
    _library: Library,
}

/// The function of this name.
fn function<T: Copy>(library: &Library, name: &'static str) -> Result<T, Fault> {
    // SAFETY: the caller's type is that of the function of this name in `ffi/c/include/straightway.h`.
    let found = unsafe { library.get::<T>(name) };
    found.map(|symbol| *symbol).map_err(|_| Fault::Library { call: name, answer: "is not in the library".to_owned() })
}

fn ok(call: &'static str, status: i32) -> Result<(), Fault> {
    if status == 0 { Ok(()) } else { Err(Fault::Library { call, answer: format!("answered {status}") }) }
}

impl C {
    fn new(path: &Path, file: &Path) -> Result<Self, Fault> {
        // SAFETY: what the library runs when it is loaded is the standard library's set-up; this project built it.
        let library = unsafe { Library::new(path) };
        let library = library.map_err(|error| Fault::Missing {
            what: format!("{} does not load: {error}", path.display()),
            remedy: "run it as `cargo xtask bench`, which builds the library",
        })?;
        let uri =
            CString::new(file.to_string_lossy().into_owned()).map_err(|error| Fault::os("name", file)(error.into()))?;
        let (mut engine, mut object, mut region) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let open: EngineOpen = function(&library, "sw_engine_open")?;
        ok("sw_engine_open", open(ptr::null(), &raw mut engine))?;
        let open: ObjectOpen = function(&library, "sw_object_open")?;
        ok("sw_object_open", open(engine, uri.as_ptr(), ptr::null(), &raw mut object))?;
        let allocate: Allocate = function(&library, "sw_region_allocate")?;
        ok("sw_region_allocate", allocate(engine, ptr::null(), BYTES, 0, &raw mut region))?;
        Ok(Self { read: function(&library, "sw_read")?, object, region, _library: library })
    }

    /// Nanoseconds a call, without and with a completion.
    fn block(&self, done: *mut Completion) -> Result<f64, Fault> {
        per_call(|| ok("sw_read", (self.read)(self.object, 0, self.region, 0, BYTES, ptr::null(), done)))
    }
}

/// What a Rust program does at its best: the memory goes in and comes back; and what it does where parts of one region go to many
/// operations, as in C.
struct Rust {
    engine: Engine,
    object: Object,
    memory: Option<Memory>,
    region: Region,
    start: u64,
}

impl Rust {
    fn new(file: &Path) -> Result<Self, Error> {
        let engine = Engine::builder().build()?;
        let object = engine.open(&Uri::File(file.to_string_lossy().into_owned()))?;
        let memory = Some(engine.allocate(Destination::Host, BYTES, 0)?);
        let (region, start) = engine.allocate(Destination::Host, BYTES, 0)?.share();
        Ok(Self { engine, object, memory, region, start })
    }

    fn block(&mut self) -> Result<f64, Fault> {
        per_call(|| {
            let Some(memory) = self.memory.take() else {
                let answer = "kept the memory".to_owned();
                return Err(Fault::Library { call: "Engine::read", answer });
            };
            self.memory = self.engine.read(&self.object, 0, memory).wait().ok()?.into_memory();
            Ok(())
        })
    }

    fn block_of_parts(&self) -> Result<f64, Fault> {
        per_call(|| {
            let part = self.region.part(self.start, BYTES)?;
            self.engine.read(&self.object, 0, part).wait().ok()?;
            Ok(())
        })
    }
}

/// Nanoseconds of each of the calls of a block.
fn per_call(mut call: impl FnMut() -> Result<(), Fault>) -> Result<f64, Fault> {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    for _ in 0..CALLS {
        call()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS))
}

/// A number of a row: nanoseconds a call in Rust, in Rust with parts, in C, in C with a completion.
type Number = fn(&[f64; 4]) -> f64;

/// Blocks of the four sides in turn; the numbers are medians over blocks, the differences those of blocks next to each other.
pub(crate) fn run(job: &Calls) -> Result<Sample, Fault> {
    let (c, mut rust) = (C::new(&job.library, &job.file)?, Rust::new(&job.file)?);
    let mut done = Completion { size: size_of::<Completion>(), ..Completion::default() };
    // The library has an allocator of its own, which does not count.
    allocations::stop();
    let mut sample = Sample::default();
    let mut rows = Vec::new();
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    for _ in 0..job.blocks {
        let row = [rust.block()?, rust.block_of_parts()?, c.block(ptr::null_mut())?, c.block(&raw mut done)?];
        rows.push(row);
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    sample.ops = u64::from(job.blocks) * u64::from(CALLS) * 4;
    sample.bytes = sample.ops * BYTES;
    let of = |number: Number| median(rows.iter().map(number).collect());
    let more: [(&str, Number); 8] = [
        ("rust_ns", |[rust, ..]| *rust),
        ("rust_parts_ns", |[_, parts, ..]| *parts),
        ("c_ns", |[.., c, _]| *c),
        ("c_completion_ns", |[.., done]| *done),
        ("over_rust_ns", |[rust, _, c, _]| c - rust),
        ("over_parts_ns", |[_, parts, c, _]| c - parts),
        ("completion_over_rust_ns", |[rust, .., done]| done - rust),
        ("completion_over_parts_ns", |[_, parts, _, done]| done - parts),
    ];
    sample.more.extend(more.into_iter().filter_map(|(name, number)| Some((name.to_owned(), of(number)?))));
    Ok(sample)
}
