//! Reads in the order of streams that run kernels, on several streams and in graphs, with no function of the host in any of them.
// UNSAFETY: plays a program with streams and graphs of its own; calls the driver with the signatures of cuda.h.
#![expect(unsafe_code, reason = "plays a program that owns streams and graphs")]

use serde_json::json;
use straightway::{Destination, Engine, StreamGate};
use sw_cuda::ForeignStream;
use sw_engine::checksum::Algorithm as Reference;
use sw_kernels::{
    crc::{Algorithm, SumPlan},
    poison,
};
use sw_mem::{ByteLen, GpuVa, index};

use crate::harness::{Need, Notes, Tag, Test};
use crate::kernels::{Plain, Rig, code, say};
use crate::machine::Machine;
use crate::staged::Folder;

/// Streams at a time.
const STREAMS: u64 = 4;
/// Bytes that are read for each, an odd number.
const PART_BYTES: u64 = 3_000_017;
/// Times that a graph runs.
const RUNS: u64 = 3;
/// Looks at a gate or a stream at most.
const LOOKS_MAX: u64 = 10_000_000;

/// All of them.
pub fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "streams.reads_between_kernels",
            will: "read into the memory of four streams, each between two of its kernels, while a fifth runs past them",
            tag: Tag::Quick,
            needs: &[Need::Gpu, Need::Kernels],
            run: reads_between_kernels,
        },
        Test {
            name: "streams.graph_after_read",
            will: "run a captured graph of kernels after a read, again and again, each time on the bytes of its read",
            tag: Tag::Quick,
            needs: &[Need::Gpu, Need::Kernels, Need::Graphs],
            run: graph_after_read,
        },
    ]
}

const GRAPH_NAMES: [&str; 6] = [
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

/// Whether the driver has what a graph needs.
pub fn graphs_are_there(machine: &Machine) -> Result<(), String> {
    let plain = Plain::new(machine)?;
    let absent = GRAPH_NAMES.iter().find(|name| plain.function::<*const ()>(name).is_err());
    absent.map_or(Ok(()), |name| Err(format!("the driver has no {name}")))
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool, String>) -> Result<u64, String> {
    for looks in 0..LOOKS_MAX {
        if done()? {
            return Ok(looks);
        }
        std::hint::spin_loop();
    }
    Err(format!("{what} does not come"))
}

/// One stream: poison over a memory, a gate, and the checksum of what is there behind it.
struct Turn {
    stream: usize,
    memory: straightway::Memory,
    gate: StreamGate,
    plan: SumPlan,
    jobs: GpuVa,
}

impl Turn {
    fn new(rig: &mut Rig, engine: &Engine) -> Result<Self, String> {
        let memory = engine.allocate(Destination::Gpu(0), PART_BYTES, 0).map_err(say)?;
        let at = GpuVa::new(memory.address());
        let plan = SumPlan::new(Algorithm::Crc32c, &[(at, ByteLen(PART_BYTES))], 64).map_err(say)?;
        let (stream, jobs) = (rig.plain.stream()?, rig.filled(plan.jobs())?);
        let fill = poison::fill_launch(at, ByteLen(PART_BYTES), 3).map_err(say)?;
        rig.launch_in(&fill, stream)?;
        // SAFETY: the stream is destroyed by the test, after the gate.
        let gate = engine.stream_gate(0, unsafe { ForeignStream::from_raw(stream) }).map_err(say)?;
        plan.launches(jobs).map_err(say)?.iter().try_for_each(|launch| rig.launch_in(launch, stream))?;
        Ok(Self { stream, memory, gate, plan, jobs })
    }
}

fn reads_between_kernels(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let folder = Folder::new()?;
    let file = folder.file("source", index(STREAMS * PART_BYTES))?;
    let engine = Engine::builder().build().map_err(say)?;
    let object = engine.open(&folder.uri("source")?).map_err(say)?;
    let mut rig = Rig::new(machine)?;
    let turns = (0..STREAMS).map(|_| Turn::new(&mut rig, &engine)).collect::<Result<Vec<_>, _>>()?;
    // A fifth stream comes to its end while all four stand at their gates: nothing puts them in one line.
    let beside = rig.room(1 << 20)?;
    rig.launch_in(&poison::fill_launch(beside, ByteLen(1 << 20), 9).map_err(say)?, rig.stream)?;
    let looks = wait_for("the end of the stream beside", || rig.plain.is_idle(rig.stream))?;
    notes.insert("looks_until_the_stream_beside_ended".to_owned(), json!(looks));
    for turn in &turns {
        if rig.plain.is_idle(turn.stream)? {
            return Err("a stream passed its gate before the read".to_owned());
        }
    }
    let mut kept = Vec::new();
    // The last first: the order of streams is nobody's.
    for (number, turn) in turns.into_iter().enumerate().rev() {
        wait_for("a gate", || turn.gate.is_reached().map_err(say))?;
        let from = number as u64 * PART_BYTES;
        let read = engine.read(&object, from, turn.memory).start().wait().ok().map_err(say)?;
        drop(turn.gate);
        rig.plain.one("cuStreamSynchronize", turn.stream)?;
        let jobs = rig.plain.get(turn.jobs, turn.plan.jobs().len() as u64)?;
        let want = Reference::Crc32c.of(&file[index(from)..index(from + PART_BYTES)]);
        if turn.plan.sums(&jobs).map_err(say)? != [want] {
            return Err(format!("stream {number}: its kernel did not run on the bytes of its read"));
        }
        rig.plain.one("cuStreamDestroy_v2", turn.stream)?;
        kept.push(read.into_memory());
    }
    drop((kept, rig));
    engine.close().map_err(say)
}

/// A graph that was captured and made to run; destroyed on drop.
struct Graph<'a> {
    plain: &'a Plain,
    graph: usize,
    exec: usize,
}

impl<'a> Graph<'a> {
    /// What `work` puts into `stream`.
    fn capture(plain: &'a Plain, stream: usize, work: impl FnOnce() -> Result<(), String>) -> Result<Self, String> {
        let begin = plain.function::<unsafe extern "C" fn(usize, u32) -> u32>(GRAPH_NAMES[0])?;
        let end = plain.function::<unsafe extern "C" fn(usize, *mut usize) -> u32>(GRAPH_NAMES[1])?;
        let make = plain.function::<unsafe extern "C" fn(*mut usize, usize, u64) -> u32>(GRAPH_NAMES[2])?;
        // SAFETY: a live stream. 1 is `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
        code(GRAPH_NAMES[0], unsafe { begin(stream, 1) })?;
        let put = work();
        let (mut graph, mut exec) = (0, 0);
        // SAFETY: a writable result; ends what was begun above, whatever came of it.
        code(GRAPH_NAMES[1], unsafe { end(stream, &raw mut graph) })?;
        put?;
        // SAFETY: a writable result and a live graph.
        code(GRAPH_NAMES[2], unsafe { make(&raw mut exec, graph, 0) })?;
        Ok(Self { plain, graph, exec })
    }

    fn run(&self, stream: usize) -> Result<(), String> {
        let launch = self.plain.function::<unsafe extern "C" fn(usize, usize) -> u32>(GRAPH_NAMES[3])?;
        // SAFETY: a live graph and stream.
        code(GRAPH_NAMES[3], unsafe { launch(self.exec, stream) })
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        let _best_effort =
            self.plain.one(GRAPH_NAMES[4], self.exec).and_then(|()| self.plain.one(GRAPH_NAMES[5], self.graph));
    }
}

fn graph_after_read(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let folder = Folder::new()?;
    let file = folder.file("source", index(RUNS * PART_BYTES))?;
    let engine = Engine::builder().build().map_err(say)?;
    let object = engine.open(&folder.uri("source")?).map_err(say)?;
    let mut rig = Rig::new(machine)?;
    let mut memory = engine.allocate(Destination::Gpu(0), PART_BYTES, 0).map_err(say)?;
    let at = GpuVa::new(memory.address());
    let plan = SumPlan::new(Algorithm::Crc32c, &[(at, ByteLen(PART_BYTES))], 64).map_err(say)?;
    let jobs = rig.filled(plan.jobs())?;
    let launches = plan.launches(jobs).map_err(say)?;
    // Loaded before: a capture must not load.
    for launch in &launches {
        rig.kernels.load(launch.entry()).map_err(say)?;
    }
    let put = || launches.iter().try_for_each(|launch| rig.launch_in(launch, rig.stream));
    let graph = Graph::capture(&rig.plain, rig.stream, put)?;
    for run in 0..RUNS {
        rig.plain.put(jobs, plan.jobs())?;
        // SAFETY: the stream is destroyed with the rig, after the gate.
        let gate = engine.stream_gate(0, unsafe { ForeignStream::from_raw(rig.stream) }).map_err(say)?;
        graph.run(rig.stream)?;
        wait_for("a gate", || gate.is_reached().map_err(say))?;
        let read = engine.read(&object, run * PART_BYTES, memory).start().wait().ok().map_err(say)?;
        memory = read.into_memory().ok_or("the memory did not come back")?;
        drop(gate);
        rig.plain.one("cuStreamSynchronize", rig.stream)?;
        let got = plan.sums(&rig.plain.get(jobs, plan.jobs().len() as u64)?).map_err(say)?;
        let want = Reference::Crc32c.of(&file[index(run * PART_BYTES)..index((run + 1) * PART_BYTES)]);
        if got != [want] {
            return Err(format!("run {run}: the graph did not run on the bytes of its read"));
        }
    }
    notes.insert("runs".to_owned(), json!(RUNS));
    drop(graph);
    drop((memory, rig));
    engine.close().map_err(say)
}
