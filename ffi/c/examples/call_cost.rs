//! What a call of the C interface costs beside the same call in Rust: 512-byte reads from the page cache, in turn in one process.
//!
//! `cargo run --release -p straightway-c --example call_cost -- FILE`
// UNSAFETY: plays a C caller.
#![expect(unsafe_code, reason = "makes the pointers that a C caller would pass")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![expect(clippy::unwrap_used, reason = "a failed set-up ends the measurement")]

use std::{ffi::CString, time::Instant};

use straightway::{Destination, Engine, Memory, Object, Region, Uri};
use straightway_c::{
    engine::{SwEngine, sw_engine_open},
    handle::Handle,
    io::{SwCompletion, sw_read},
    object::{SwObject, sw_object_open},
    pointer::{In, Out, Str},
    region::{SwRegion, sw_region_allocate},
    status::SW_OK,
};

const BYTES: u64 = 512;
/// Calls of a block, and blocks of each side.
const CALLS: u32 = 1000;
const BLOCKS: usize = 400;

struct C {
    object: Handle<SwObject>,
    region: Handle<SwRegion>,
}

impl C {
    fn new(path: &str) -> Self {
        let (mut engine, mut object, mut region) = (Handle::<SwEngine>::NULL, Handle::NULL, Handle::NULL);
        let path = CString::new(path).unwrap();
        assert_eq!(sw_engine_open(In::NULL, out(&mut engine)), SW_OK);
        // SAFETY: a text that ends with a zero byte and lives during the call.
        let uri = unsafe { Str::new(path.as_ptr()) };
        assert_eq!(sw_object_open(engine, uri, In::NULL, out(&mut object)), SW_OK);
        assert_eq!(sw_region_allocate(engine, Str::NULL, BYTES, 0, out(&mut region)), SW_OK);
        Self { object, region }
    }

    fn block(&self, done: Option<&mut SwCompletion>) -> f64 {
        let done = done.map_or(Out::NULL, out);
        let start = Instant::now();
        for _ in 0..CALLS {
            assert_eq!(sw_read(self.object, 0, self.region, 0, BYTES, In::NULL, done), SW_OK);
        }
        per_call(start)
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
    fn new(path: &str) -> Self {
        let engine = Engine::builder().build().unwrap();
        let object = engine.open(&path.parse::<Uri>().unwrap()).unwrap();
        let memory = Some(engine.allocate(Destination::Host, BYTES, 0).unwrap());
        let (region, start) = engine.allocate(Destination::Host, BYTES, 0).unwrap().share();
        Self { engine, object, memory, region, start }
    }

    fn block(&mut self) -> f64 {
        let start = Instant::now();
        for _ in 0..CALLS {
            let done = self.engine.read(&self.object, 0, self.memory.take().unwrap()).wait().ok().unwrap();
            self.memory = done.into_memory();
        }
        per_call(start)
    }

    fn block_of_parts(&self) -> f64 {
        let start = Instant::now();
        for _ in 0..CALLS {
            let part = self.region.part(self.start, BYTES).unwrap();
            self.engine.read(&self.object, 0, part).wait().ok().unwrap();
        }
        per_call(start)
    }
}

fn out<T: Copy>(place: &mut T) -> Out<T> {
    // SAFETY: a place that lives during the call.
    unsafe { Out::new(place) }
}

fn per_call(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn quarters(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

fn main() {
    let path = std::env::args().nth(1).expect("name a file");
    let (c, mut rust) = (C::new(&path), Rust::new(&path));
    let mut done = empty();
    let mut rows = Vec::new();
    for _ in 0..BLOCKS {
        rows.push([rust.block(), rust.block_of_parts(), c.block(None), c.block(Some(&mut done))]);
    }
    let show = |what: &str, values: Vec<f64>| {
        let [low, middle, high] = quarters(values);
        println!("{what:<34} {middle:7.0} ns ({low:.0} to {high:.0})");
    };
    let of = |side: usize| rows.iter().map(|row| row[side]).collect::<Vec<f64>>();
    let over = |side: usize, base: usize| rows.iter().map(|row| row[side] - row[base]).collect::<Vec<f64>>();
    show("Rust", of(0));
    show("Rust, parts of a region", of(1));
    show("C", of(2));
    show("C with a completion", of(3));
    show("C over Rust, block by block", over(2, 0));
    show("C over Rust with parts", over(2, 1));
    show("with a completion over Rust", over(3, 0));
    show("with a completion over parts", over(3, 1));
}

/// A completion with its size, as `SW_COMPLETION_INIT` is.
fn empty() -> SwCompletion {
    SwCompletion {
        size: size_of::<SwCompletion>(),
        status: 0,
        landing: 0,
        bytes: 0,
        transport: Str::NULL,
        reason: Str::NULL,
        reason_text: Str::NULL,
        bytes_dma: 0,
        bytes_kernel_copy: 0,
        bytes_staged: 0,
        bounced: 0,
        cpu_copied: 0,
        checksum: 0,
        has_checksum: 0,
        reserved: 0,
        queued_ns: 0,
        moving_ns: 0,
        user: straightway_c::pointer::Addr::NULL,
    }
}
