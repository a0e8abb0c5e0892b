//! Statistics in the structures of cuFile.
//!
//! The functions get no size, and the structures grew with 1.19: what is written is the layout of the version that `cuFileGetVersion`
//! tells, see `SW_CUFILE_VERSION`. A level that is not set, or no open driver, is an error, as
//! documented. The counters stay after the last close for the next driver; `cuFileStatsReset` empties them.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    abi::{CuFileError, GPUS_MAX, OpCounter, PerGpu, StatsBase, StatsGpus, StatsSizes, StatsVectored},
    code::Failure,
    count::{BatchWhat, Counts, Gpu, Pair, Way, What},
    edge::call,
    library::library,
    pointer::Out,
    settings::{SIZES, STATS_LEVEL, VECTORED_SINCE},
};

/// What a pointer to a structure of statistics points to: its size is that of the version.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StatsRoom {
    first: u64,
}

/// `cuFileSetStatsLevel`: 0 to 3.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileSetStatsLevel(level: i32) -> CuFileError {
    call("cuFileSetStatsLevel", || {
        let level = u64::try_from(level).ok().filter(|level| *level <= SIZES[STATS_LEVEL].max);
        let level = level.ok_or_else(|| Failure::invalid("a level is 0 to 3"))?;
        library().settings.call_size(STATS_LEVEL, level);
        library().counts.set_level(level);
        Ok(())
    })
}

/// `cuFileGetStatsLevel`.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetStatsLevel(level: Out<i32>) -> CuFileError {
    call("cuFileGetStatsLevel", || {
        let out = level.ready("level")?;
        out.put(i32::try_from(library().settings.effective()?.size(STATS_LEVEL)).unwrap_or(0));
        Ok(())
    })
}

/// `cuFileStatsStart`: counting goes on. It is on from the start where the level is above 0.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileStatsStart() -> CuFileError {
    call("cuFileStatsStart", || library().open_one().map(|_| library().counts.start()))
}

/// `cuFileStatsStop`: counting stops; what was counted stays.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileStatsStop() -> CuFileError {
    call("cuFileStatsStop", || library().open_one().map(|_| library().counts.stop()))
}

/// `cuFileStatsReset`: from zero.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileStatsReset() -> CuFileError {
    call("cuFileStatsReset", || library().open_one().map(|_| library().counts.reset()))
}

/// `cuFileGetStatsL1`: calls, bytes, latencies.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetStatsL1(stats: Out<StatsRoom>) -> CuFileError {
    call("cuFileGetStatsL1", || fill(stats, 1))
}

/// `cuFileGetStatsL2`: level 1, and requests by size.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetStatsL2(stats: Out<StatsRoom>) -> CuFileError {
    call("cuFileGetStatsL2", || fill(stats, 2))
}

/// `cuFileGetStatsL3`: level 2, and each GPU. What a device put in place counts as peer-to-peer, all else as POSIX.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetStatsL3(stats: Out<StatsRoom>) -> CuFileError {
    call("cuFileGetStatsL3", || fill(stats, 3))
}

fn fill(stats: Out<StatsRoom>, level: u8) -> Result<(), Failure> {
    let out = stats.ready("stats")?;
    let counts = &library().counts;
    library().open_one()?;
    if counts.level() < level {
        return Err(Failure::invalid(format!("statistics of level {level}, where the level is {}", counts.level())));
    }
    out.put_behind(0, base(counts));
    let mut at = size_of::<StatsBase>();
    if library().own().version >= VECTORED_SINCE {
        out.put_behind(at, vectored(counts));
        at += size_of::<StatsVectored>();
    }
    if level >= 2 {
        let read = |side: usize| counts.sizes[side].each_ref().map(|count| count.load(Relaxed));
        out.put_behind(at, StatsSizes { read: read(0), write: read(1) });
        at += size_of::<StatsSizes>();
    }
    if level >= 3 {
        out.put_behind(at, gpus(counts));
    }
    Ok(())
}

fn counter(pair: &Pair) -> OpCounter {
    let (ok, err) = pair.get();
    OpCounter { ok, err }
}

/// Bytes, bytes a second while they moved, mean and sum of latencies in microseconds, calls a second while they ran.
fn numbers(way: &Way) -> [u64; 5] {
    let (bytes, calls, nanos) = (way.bytes.load(Relaxed), way.calls.load(Relaxed), way.nanos.load(Relaxed));
    let a_second = |count: u64| {
        let per = u128::from(count) * 1_000_000_000 / u128::from(nanos.max(1));
        if nanos == 0 { 0 } else { u64::try_from(per).unwrap_or(u64::MAX) }
    };
    let micros = nanos / 1000;
    [bytes, a_second(bytes), micros / calls.max(1), a_second(calls), micros]
}

fn base(counts: &Counts) -> StatsBase {
    let [read, write] = [&counts.ways[0], &counts.ways[1]].map(numbers);
    let [batch_read, batch_write] = counts.batch_ways.each_ref().map(numbers);
    let both = |at: usize| [read[at], write[at]];
    let of = |what: BatchWhat| counter(&counts.batch[what as usize]);
    let mut batch_ops = [OpCounter::default(); 15];
    let calls = [BatchWhat::Submit, BatchWhat::Complete, BatchWhat::SetUp, BatchWhat::Cancel, BatchWhat::Destroy];
    batch_ops.iter_mut().zip(calls).for_each(|(to, what)| *to = of(what));
    // None of the entries is the module's, or one of threads of the POSIX interface: enqueued, processed and submitted in all.
    (batch_ops[5], batch_ops[7], batch_ops[14]) =
        (of(BatchWhat::Enqueued), of(BatchWhat::Processed), of(BatchWhat::Enqueued));
    let mut batch = [0; 12];
    (batch[0], batch[1], batch[2], batch[3]) = (batch_read[0], batch_write[0], batch_read[1], batch_write[1]);
    StatsBase {
        ops: [
            What::Read,
            What::Write,
            What::HandleRegister,
            What::HandleDeregister,
            What::BufRegister,
            What::BufDeregister,
        ]
        .map(|what| counter(&counts.calls[what as usize])),
        bytes: both(0),
        bandwidth: both(1),
        latency_avg_us: both(2),
        ops_per_second: both(3),
        latency_sum_us: both(4),
        batch_ops,
        batch,
    }
}

fn vectored(counts: &Counts) -> StatsVectored {
    let [read, write] = [&counts.ways[2], &counts.ways[3]].map(numbers);
    let pairs = read.iter().zip(&write).flat_map(|(read, write)| [*read, *write]);
    let mut all = [0; 10];
    all.iter_mut().zip(pairs).for_each(|(to, from)| *to = from);
    StatsVectored { ops: [What::Readv, What::Writev].map(|what| counter(&counts.calls[what as usize])), numbers: all }
}

fn gpus(counts: &Counts) -> StatsGpus {
    let mut all = StatsGpus { count: 0, hole: 0, each: [PerGpu::default(); GPUS_MAX] };
    for (index, (to, from)) in all.each.iter_mut().zip(&counts.gpus).enumerate() {
        *to = gpu(from);
        if *to != PerGpu::default() {
            all.count = u32::try_from(index + 1).unwrap_or(0);
        }
    }
    all
}

fn gpu(gpu: &Gpu) -> PerGpu {
    let side = |way: &Way, at: usize| {
        let [bytes, bandwidth, _, _, micros] = numbers(way);
        let word = |words: &[std::sync::atomic::AtomicU64; 2]| words[at].load(Relaxed);
        let (calls, errors) = (way.calls.load(Relaxed), word(&gpu.errors));
        let (in_place, others, unaligned) = (word(&gpu.in_place), word(&gpu.others), word(&gpu.unaligned));
        ([bytes, bandwidth, 0, micros, calls, in_place, 0, others, unaligned, 0], errors)
    };
    let ((read, read_errors), (write, write_errors)) = (side(&gpu.read, 0), side(&gpu.write, 1));
    let mut reads = [0; 13];
    reads.iter_mut().zip(read.into_iter().chain([0, 0, read_errors])).for_each(|(to, from)| *to = from);
    let mut writes = [0; 11];
    writes.iter_mut().zip(write.into_iter().chain([write_errors])).for_each(|(to, from)| *to = from);
    let registered = gpu.registered.load(Relaxed);
    let buffers = [registered, registered, 0, gpu.deregistered.load(Relaxed), gpu.registered_bytes.load(Relaxed)];
    PerGpu { uuid: [0; 16], read: reads, write: writes, buffers }
}
