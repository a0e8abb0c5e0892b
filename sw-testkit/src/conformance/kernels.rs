//! The suite for kernels: on whatever runs them, each against its twin in Rust, over edge lengths and alignments.
//!
//! What a kernel must not touch is looked at, too: bytes beside targets keep what they had. Whether it *reads* beside its ranges only a
//! bed with fences shows (`kernels/emulate` under the address sanitizer).

use sw_kernels::{
    Launch, PlanError,
    crc::{Algorithm, SumPlan},
    poison::{self, Found},
    ranges::{self, Range, RangePlan, Work},
    swap::{self, Element},
    widen::{self, Narrow},
};
use sw_mem::{ByteLen, GpuVa, index};

use super::{Case, CaseResult, End, Report, fail};
use crate::pattern;

/// Something that runs kernels.
pub trait Bed {
    /// Printed in the report.
    fn name(&self) -> String;

    /// Memory of `len` bytes, which starts `offset` bytes behind a multiple of 256. It stays until [`Bed::free`].
    ///
    /// # Errors
    /// [`End::Skip`] where nothing runs kernels.
    fn allocate(&mut self, offset: u64, len: u64) -> Result<GpuVa, End>;

    /// Copies bytes there; both ends lie in one allocation.
    ///
    /// # Errors
    /// [`End::Fail`] if that fails.
    fn write(&mut self, at: GpuVa, bytes: &[u8]) -> CaseResult;

    /// Copies bytes back.
    ///
    /// # Errors
    /// [`End::Fail`] if that fails.
    fn read(&mut self, at: GpuVa, len: u64) -> Result<Vec<u8>, End>;

    /// Runs a kernel to its end, after everything before.
    ///
    /// # Errors
    /// [`End::Fail`] if that fails.
    fn launch(&mut self, launch: &Launch) -> CaseResult;

    /// Frees everything that was allocated.
    ///
    /// # Errors
    /// [`End::Fail`] if that fails.
    fn free(&mut self) -> CaseResult;
}

/// A case of this suite.
pub type Run = fn(&mut dyn Bed) -> CaseResult;

/// The cases, in the order they run.
pub const CASES: &[Case<Run>] = &[
    Case { name: "checksums_of_every_edge_length", run: checksums_of_edges },
    Case { name: "checksums_at_every_alignment", run: checksums_at_alignments },
    Case { name: "checksums_of_many_buffers_in_one_launch", run: checksums_of_many },
    Case { name: "gather_of_every_alignment", run: gather_of_alignments },
    Case { name: "gather_and_scatter_of_many_ranges", run: gather_and_scatter },
    Case { name: "bytes_of_elements_turn", run: elements_turn },
    Case { name: "bytes_of_elements_turn_in_place", run: elements_turn_in_place },
    Case { name: "every_element_widens", run: every_element_widens },
    Case { name: "widening_of_every_alignment", run: widening_of_alignments },
    Case { name: "poison_is_written_and_found", run: poison_is_found },
];

/// Runs all cases on one bed.
pub fn run(bed: &mut dyn Bed) -> Report {
    let name = bed.name();
    Report::of("kernels", name, CASES, |run| {
        let outcome = run(bed);
        bed.free()?;
        outcome
    })
}

fn planned<T>(plan: Result<T, PlanError>) -> Result<T, End> {
    plan.or_else(|error| fail(format!("no plan: {error}")))
}

/// Bytes around a target, which must stay.
const FENCE: u64 = 48;
const FENCE_BYTE: u8 = 0xee;

fn put(bed: &mut dyn Bed, offset: u64, bytes: &[u8]) -> Result<GpuVa, End> {
    let at = bed.allocate(offset, bytes.len() as u64)?;
    bed.write(at, bytes)?;
    Ok(at)
}

fn further(at: GpuVa, by: u64) -> GpuVa {
    at.checked_add(ByteLen(by)).unwrap_or(at)
}

/// Memory for a target with a fence on either side; the target starts `offset` bytes behind a multiple of 16.
fn fenced(bed: &mut dyn Bed, offset: u64, len: u64) -> Result<GpuVa, End> {
    let at = put(bed, offset, &vec![FENCE_BYTE; index(len + 2 * FENCE)])?;
    Ok(further(at, FENCE))
}

fn expect_fenced(bed: &mut dyn Bed, what: &str, target: GpuVa, want: &[u8]) -> CaseResult {
    let from = GpuVa::new(target.raw() - FENCE);
    let got = bed.read(from, want.len() as u64 + 2 * FENCE)?;
    let fence = [FENCE_BYTE; index(FENCE)];
    let whole = [fence.as_slice(), want, fence.as_slice()].concat();
    match pattern::first_difference(&got, &whole) {
        None => Ok(()),
        Some((at, got, want)) => {
            let at = at as u64;
            fail(format!("{what}: byte {} is {got:#04x}, not {want:#04x}", at.cast_signed() - FENCE.cast_signed()))
        }
    }
}

const BOTH: [Algorithm; 2] = [Algorithm::Crc32c, Algorithm::Crc64Nvme];

fn sums(bed: &mut dyn Bed, plan: &SumPlan) -> Result<Vec<u64>, End> {
    let jobs = put(bed, 0, plan.jobs())?;
    for launch in planned(plan.launches(jobs))? {
        bed.launch(&launch)?;
    }
    let back = bed.read(jobs, plan.jobs().len() as u64)?;
    planned(plan.sums(&back))
}

/// All `buffers`, each content at an offset, in one launch a checksum, with segments of `seg_rows`.
fn check_sums(bed: &mut dyn Bed, buffers: &[(u64, Vec<u8>)], seg_rows: u64) -> CaseResult {
    let mut places = Vec::new();
    for (offset, bytes) in buffers {
        places.push((put(bed, *offset, bytes)?, ByteLen(bytes.len() as u64)));
    }
    for algorithm in BOTH {
        let plan = planned(SumPlan::with_segments(algorithm, &places, seg_rows))?;
        for ((offset, bytes), got) in buffers.iter().zip(sums(bed, &plan)?) {
            let want = algorithm.sum(bytes);
            if got != want {
                let len = bytes.len();
                return fail(format!("{algorithm:?} of {len} bytes at {offset}: {got:#x} instead of {want:#x}"));
            }
        }
    }
    bed.free()
}

fn checksums_of_edges(bed: &mut dyn Bed) -> CaseResult {
    // Words, rows, blocks of 32 and of 64 rows, segments of 64 and of 128 rows, and one more of each.
    let edges = [128, 4096, 8192, 12_288, 16_384, 24_576, 32_768];
    let lens = (0..10).chain(edges.into_iter().flat_map(|edge| edge - 1..=edge + 1)).chain([127, 129, 255, 40_001]);
    let buffers: Vec<_> = lens.map(|len| (0, pattern::bytes(len, 0, index(len)))).collect();
    check_sums(bed, &buffers, 64)?;
    check_sums(bed, &buffers, 128)
}

fn checksums_at_alignments(bed: &mut dyn Bed) -> CaseResult {
    let buffers: Vec<_> = (0..130).step_by(3).map(|at| (at, pattern::bytes(at, 0, index(9000 - 7 * at)))).collect();
    check_sums(bed, &buffers, 64)?;
    let short: Vec<_> =
        (0..9).flat_map(|at| (0..6).map(move |len| (at, pattern::bytes(len, at, index(len))))).collect();
    check_sums(bed, &short, 64)
}

fn checksums_of_many(bed: &mut dyn Bed) -> CaseResult {
    // Empty ones in front, between and at the end: they share the number of their first segment with a neighbour.
    let lens = [0, 0, 5000, 0, 1, 20_000, 0, 0, 300, 16_384, 0];
    let buffers: Vec<_> = lens.iter().map(|len| (len % 7, pattern::bytes(3 + len, 0, index(*len)))).collect();
    check_sums(bed, &buffers, 64)?;
    let many: Vec<_> = (0..300u64).map(|n| (n % 5, pattern::bytes(n, 0, index(n % 90)))).collect();
    check_sums(bed, &many, 64)
}

fn run_ranges(bed: &mut dyn Bed, work: Work, list: &[Range]) -> CaseResult {
    let plan = planned(RangePlan::new(work, list))?;
    let jobs = put(bed, 0, plan.jobs())?;
    bed.launch(&planned(plan.launch(jobs))?)
}

/// One range with the source `from` and the target `to` bytes behind a multiple of 16; `want` is what comes out.
fn check_range(bed: &mut dyn Bed, work: Work, (from, to): (u64, u64), source: &[u8], want: &[u8]) -> CaseResult {
    let at = put(bed, from, source)?;
    let target = fenced(bed, to, want.len() as u64)?;
    run_ranges(bed, work, &[Range { source: at, target, len: ByteLen(want.len() as u64) }])?;
    let what = format!("{work:?} of {} bytes from {from} to {to}", want.len());
    expect_fenced(bed, &what, target, want)?;
    bed.free()
}

fn gather_of_alignments(bed: &mut dyn Bed) -> CaseResult {
    let bytes = pattern::bytes(1, 0, 40_000);
    for from in 0..16 {
        for (to, len) in [(0, 1000), (1, 20_000), (5, 33 + from), (11, 16 + from), (15, 2), (16 - from, 700)] {
            let part = &bytes[..index(len)];
            check_range(bed, Work::Move, (from, to), part, part)?;
        }
    }
    for len in (1..70).chain([16_383, 16_384, 16_385, 16_400, 32_768, 40_000]) {
        let part = &bytes[..len];
        check_range(bed, Work::Move, (3, 0), part, part)?;
        check_range(bed, Work::Move, (4, 13), part, part)?;
    }
    Ok(())
}

fn gather_and_scatter(bed: &mut dyn Bed) -> CaseResult {
    let landing = pattern::bytes(2, 0, 90_000);
    // Tensors as they lie in a file, and where they are to be: from odd offsets, to lines, in another order.
    let lens = [5u64, 1, 17_000, 300, 64, 4099, 16, 33_001, 2, 512];
    let mut list = Vec::new();
    let (mut from, mut to) = (3, 0);
    for len in lens {
        list.push((from, to, len));
        from += len + len % 3;
        to = (to + len).next_multiple_of(64);
    }
    let mut want = vec![FENCE_BYTE; index(to)];
    planned(ranges::gather(&landing, &list, &mut want))?;
    let source = put(bed, 0, &landing)?;
    let target = fenced(bed, 0, to)?;
    let range = |(from, to, len): &(u64, u64, u64)| Range {
        source: further(source, *from),
        target: further(target, *to),
        len: ByteLen(*len),
    };
    let gather: Vec<Range> = list.iter().map(range).rev().collect();
    run_ranges(bed, Work::Move, &gather)?;
    expect_fenced(bed, "gather", target, &want)?;
    // And back to where they came from.
    let again = fenced(bed, 5, landing.len() as u64)?;
    let back = |(from, to, len): &(u64, u64, u64)| Range {
        source: further(target, *to),
        target: further(again, *from),
        len: ByteLen(*len),
    };
    let scatter: Vec<Range> = list.iter().map(back).collect();
    run_ranges(bed, Work::Move, &scatter)?;
    let mut want = vec![FENCE_BYTE; landing.len()];
    let same: Vec<_> = list.iter().map(|(from, _, len)| (*from, *from, *len)).collect();
    planned(ranges::gather(&landing, &same, &mut want))?;
    expect_fenced(bed, "scatter", again, &want)
}

fn elements_turn(bed: &mut dyn Bed) -> CaseResult {
    for element in Element::ALL {
        let size = element.bytes();
        for from in 0..16 {
            for (to, count) in [(0, 700), (1, 9), (3, 3000 + from), (16 / size - 1, 1)] {
                let source = pattern::bytes(from, 0, index(count * size));
                let mut want = vec![0; source.len()];
                planned(swap::swap(*element, &source, &mut want))?;
                check_range(bed, Work::Swap(*element), (from, to * size), &source, &want)?;
            }
        }
    }
    Ok(())
}

fn elements_turn_in_place(bed: &mut dyn Bed) -> CaseResult {
    for element in Element::ALL {
        for (at, count) in [(0, 4000), (1, 1), (1, 5000), (1, 40)] {
            let (offset, len) = (at * element.bytes(), count * element.bytes());
            let source = pattern::bytes(len, 0, index(len));
            let mut want = vec![0; source.len()];
            planned(swap::swap(*element, &source, &mut want))?;
            let place = fenced(bed, offset, len)?;
            bed.write(place, &source)?;
            run_ranges(bed, Work::Swap(*element), &[Range { source: place, target: place, len: ByteLen(len) }])?;
            expect_fenced(bed, &format!("{element:?} in place, {len} bytes at {offset}"), place, &want)?;
        }
        bed.free()?;
    }
    Ok(())
}

fn widened(narrow: Narrow, source: &[u8]) -> Result<Vec<u8>, End> {
    let mut want = vec![0; source.len() / index(narrow.bytes()) * 4];
    planned(widen::widen(narrow, source, &mut want))?;
    Ok(want)
}

fn every_element_widens(bed: &mut dyn Bed) -> CaseResult {
    for narrow in Narrow::ALL {
        let all: Vec<u8> = match narrow.bytes() {
            1 => (0..=u8::MAX).collect(),
            _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        };
        check_range(bed, Work::Widen(*narrow), (0, 0), &all, &widened(*narrow, &all)?)?;
        check_range(bed, Work::Widen(*narrow), (1, 4), &all, &widened(*narrow, &all)?)?;
    }
    Ok(())
}

fn widening_of_alignments(bed: &mut dyn Bed) -> CaseResult {
    for narrow in Narrow::ALL {
        for from in 0..9 {
            for (to, count) in [(0, 1), (4, 3), (8, 2000), (12, 4100 + from), (0, 17), (4, 9)] {
                let source = pattern::bytes(from + count, 0, index(count * narrow.bytes()));
                let want = widened(*narrow, &source)?;
                check_range(bed, Work::Widen(*narrow), (from, to), &source, &want)?;
            }
        }
    }
    Ok(())
}

fn poison_is_found(bed: &mut dyn Bed) -> CaseResult {
    const SEED: u64 = 0x1234_5678_9abc_def0;
    for (offset, len) in [(0, 1u64), (8, 7), (0, 8), (16, 9), (0, 4096), (24, 70_003), (8, 16_384)] {
        let place = fenced(bed, offset, len)?;
        bed.launch(&planned(poison::fill_launch(place, ByteLen(len), SEED))?)?;
        let mut bytes = vec![0; index(len)];
        poison::fill(&mut bytes, SEED);
        expect_fenced(bed, &format!("poison of {len} bytes"), place, &bytes)?;
        // Nothing arrived; then all but a hole in the middle; then all.
        for (from, to) in [(0, 0), (0, len / 3), (len / 3 + 100, len), (len / 3, len)] {
            if from >= len && to > 0 {
                continue;
            }
            let arrived = pattern::bytes(len, from, index(to - from));
            bed.write(further(place, from), &arrived)?;
            bytes[index(from)..index(to)].copy_from_slice(&arrived);
            let found = put(bed, 0, &Found::before())?;
            bed.launch(&planned(poison::find_launch(place, ByteLen(len), SEED, found))?)?;
            let (got, want) = (planned(Found::after(&bed.read(found, 16)?))?, poison::find(&bytes, SEED));
            if got != want {
                return fail(format!("{len} bytes, {from}..{to} written: found {got:?} instead of {want:?}"));
            }
        }
        bed.free()?;
    }
    Ok(())
}
