//! Cases about ends that are not plain success: end of object, cancel, medium errors, fence, drop.

use std::time::Duration;

use sw_engine::seam::{Fence, IoDone, IoKind, Submit, Wait};

use sw_mem::index;

use super::{
    Bed,
    arena::Arena,
    data::{some_content, some_reads},
    drive::{Driver, PATIENCE},
};
use crate::{
    conformance::{CaseResult, fail},
    pattern,
};

/// What a fence gets. A real queue may have a slow device below it.
const FENCE: Duration = Duration::from_secs(20);

pub(super) fn a_read_over_the_end(bed: &mut dyn Bed) -> CaseResult {
    let len = 3 * 4096 + 100u64;
    let mut arena = Arena::new(bed, 1 << 20)?;
    let mut driver = Driver::new(bed, &pattern::bytes(5, 0, index(len)))?;
    let (_, memory) = driver.granularity()?;
    let piece = arena.piece(8192, memory.into(), 0)?;
    let io = driver.io(IoKind::Read, 8192, &arena, &[piece])?;
    match driver.one(io)? {
        Ok(bytes) if u64::from(bytes) <= len - 8192 => {
            let got = arena.read(piece)?;
            let want = pattern::bytes(5, 8192, bytes as usize);
            if let Some((at, got, want)) = pattern::first_difference(&got, &want) {
                return fail(format!("byte {at} of a short read is {got:#04x} instead of {want:#04x}"));
            }
        }
        Ok(bytes) => return fail(format!("{bytes} bytes where {} are left", len - 8192)),
        Err(fault) => println!("    a read over the end is {fault:?}, which is allowed"),
    }
    let past = driver.io(IoKind::Read, 16384, &arena, &[piece])?;
    match driver.one(past)? {
        Ok(0) | Err(_) => arena.check_guards(),
        Ok(bytes) => fail(format!("{bytes} bytes past the end")),
    }
}

pub(super) fn a_cancelled_io_ends_once(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 2 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let count = driver.transport.caps().queue_depth.min(16);
    let reads = some_reads(&mut driver, &mut arena, count)?;
    for io in &reads {
        driver.submit(io)?;
    }
    // The first half before the device knows of them, the second after.
    let (before, after) = reads.split_at(reads.len() / 2);
    before.iter().for_each(|io| driver.transport.cancel(io.token));
    driver.ring()?;
    after.iter().for_each(|io| driver.transport.cancel(io.token));
    after.iter().for_each(|io| driver.transport.cancel(io.token));
    driver.drain()?;
    for io in &reads {
        match driver.ends.get(&io.token.raw()) {
            Some(Ok(_) | Err(_)) => {}
            None => return fail(format!("cancelled I/O at {} never ended", io.offset)),
        }
    }
    driver.poll(Wait::No, 64)?;
    arena.check_guards()
}

pub(super) fn cancelling_nothing(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 2 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let reads = some_reads(&mut driver, &mut arena, 2)?;
    driver.transport.cancel(sw_engine::Token::from_raw(u64::MAX));
    let (Some(first), Some(second)) = (reads.first().copied(), reads.get(1).copied()) else {
        return fail("no reads: a bug of the suite");
    };
    let result = driver.one(first)?;
    driver.transport.cancel(first.token);
    let again = driver.one(second)?;
    driver.poll(Wait::For { timeout: Duration::from_millis(20), min: 1 }, 8)?;
    match (result, again) {
        (Ok(a), Ok(b)) if a == first.len && b == second.len => Ok(()),
        other => fail(format!("cancelling others' tokens changed results: {other:?}")),
    }
}

pub(super) fn a_medium_error_is_a_fault(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 1 << 20)?;
    let target = bed.failing_object()?;
    let mut driver = Driver::at(bed, target)?;
    let (block, memory) = driver.granularity()?;
    let piece = arena.piece(block.max(4096), memory.into(), 0)?;
    let io = driver.io(IoKind::Read, 0, &arena, &[piece])?;
    match driver.one(io)? {
        Err(fault) if fault.code != 0 => arena.check_guards(),
        Err(fault) => fail(format!("a fault without the code of the layer below: {fault:?}")),
        Ok(bytes) => fail(format!("{bytes} bytes from a medium that cannot be read")),
    }
}

pub(super) fn fence_idle(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 1 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let reads = some_reads(&mut driver, &mut arena, 2)?;
    let Some(first) = reads.first().copied() else { return fail("no reads: a bug of the suite") };
    driver.run(&[first])?;
    let mut out: Vec<IoDone> = Vec::with_capacity(8);
    match driver.transport.fence(FENCE, &mut out) {
        Fence::Quiet if out.is_empty() => {}
        other => return fail(format!("{other:?} and {} ends with nothing in flight", out.len())),
    }
    match reads.get(1).map(|io| driver.transport.submit(io)) {
        Some(Submit::Full) => Ok(()),
        other => fail(format!("after Quiet a submit gave {other:?}")),
    }
}

pub(super) fn fence_busy(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 2 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let count = driver.transport.caps().queue_depth.min(16);
    for io in some_reads(&mut driver, &mut arena, count)? {
        driver.submit(&io)?;
    }
    driver.ring()?;
    let (start, mut rounds) = (driver.bed.now(), 0);
    loop {
        let mut out: Vec<IoDone> = Vec::with_capacity(64);
        let fenced = driver.transport.fence(FENCE, &mut out);
        driver.book(&out)?;
        rounds += 1;
        match fenced {
            Fence::Quiet => break,
            // A fence may need several rounds; it may not stay busy for good on a device that works.
            Fence::Busy(_) if rounds < 8 && driver.bed.now().saturating_sub(start) < PATIENCE => {}
            Fence::Busy(left) => return fail(format!("still busy with {left} after {rounds} fences")),
        }
    }
    let still = arena.snapshot()?;
    let mut out: Vec<IoDone> = Vec::with_capacity(64);
    // A poll after Quiet may refuse; it may not report I/Os that Quiet said would have no end.
    let _refusal = driver.transport.poll(Wait::For { timeout: Duration::from_millis(50), min: 1 }, &mut out);
    if !out.is_empty() {
        return fail(format!("{} ends after Quiet", out.len()));
    }
    if arena.snapshot()? != still {
        return fail("memory changed after Quiet");
    }
    arena.check_guards()
}

pub(super) fn dropped_in_flight(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 2 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let count = driver.transport.caps().queue_depth.min(16);
    for io in some_reads(&mut driver, &mut arena, count)? {
        driver.submit(&io)?;
    }
    driver.ring()?;
    drop(driver);
    // Contents after a drop are undefined, bytes outside of the pieces are not.
    let still = arena.snapshot()?;
    let mut driver = Driver::new(bed, &some_content())?;
    driver.poll(Wait::For { timeout: Duration::from_millis(50), min: 1 }, 8)?;
    if arena.snapshot()? != still {
        return fail("memory changed after the transport was dropped");
    }
    arena.check_guards()
}
