//! Cases about limits: depth, waits, wake-ups, output capacity.

use std::{thread, time::Duration};

use sw_engine::seam::{IoDone, MAX_SEGMENTS, Submit, Wait};

use super::{
    Bed, Clock,
    arena::Arena,
    data::{caps_text, some_content, some_reads},
    drive::{Driver, PATIENCE},
};
use crate::conformance::{CaseResult, fail, skip};

/// A wait that no case means to sit out.
const LONG: Duration = Duration::from_secs(20);
/// What a wait may take beyond its timeout on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(5);

pub(super) fn caps_are_sane_and_constant(bed: &mut dyn Bed) -> CaseResult {
    let driver = Driver::new(bed, &some_content())?;
    let (block, memory) = driver.granularity()?;
    let caps = driver.transport.caps();
    if caps.name.is_empty() || caps.queue_depth == 0 || caps.io_bytes_max == 0 {
        return fail(format!("an empty ability: {caps:?}"));
    }
    if caps.segments_max == 0 || usize::from(caps.segments_max) > MAX_SEGMENTS {
        return fail(format!("segments_max is 1 to {MAX_SEGMENTS}: {caps:?}"));
    }
    if !block.is_power_of_two() || !memory.is_power_of_two() {
        return fail(format!("granularity is no power of two: {block}, {memory}"));
    }
    if caps.io_bytes_max % block != 0 {
        return fail(format!("io_bytes_max {} is no multiple of the block {block}", caps.io_bytes_max));
    }
    if caps.host.is_err() && caps.device.is_err() {
        return fail(format!("no memory can be reached: {caps:?}"));
    }
    if caps_text(driver.transport.as_ref()) != format!("{caps:?}") {
        return fail("caps change from call to call");
    }
    Ok(())
}

pub(super) fn full_and_then_taken(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 16 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let depth = driver.transport.caps().queue_depth;
    if depth > 1024 {
        return skip(format!("a depth of {depth} is more than the case fills"));
    }
    let (block, _) = driver.granularity()?;
    if u64::from(depth + 1) * u64::from(block.max(512)) * 3 > 12 << 20 {
        return skip(format!("depth {depth} times block {block} is more memory than the case has"));
    }
    let reads = some_reads(&mut driver, &mut arena, depth + 1)?;
    let (last, fill) = match reads.split_last() {
        Some((last, fill)) => (last, fill),
        None => return fail("no reads: a bug of the suite"),
    };
    for io in fill {
        driver.submit(io)?;
    }
    // One more than the stated depth: refused, or taken because there is room after all. Either way exactly one end.
    let refused = match driver.transport.submit(last) {
        Submit::Accepted => {
            driver.open.insert(last.token.raw(), *last);
            false
        }
        Submit::Full => true,
    };
    driver.drain()?;
    if refused {
        driver.run(&[*last])?;
    }
    match driver.ends.len() == reads.len() {
        true => arena.check_guards(),
        false => fail(format!("{} of {} reads ended", driver.ends.len(), reads.len())),
    }
}

pub(super) fn poll_keeps_to_capacity(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 2 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    let count = driver.transport.caps().queue_depth.min(8);
    for io in some_reads(&mut driver, &mut arena, count)? {
        driver.submit(&io)?;
    }
    driver.ring()?;
    let start = driver.bed.now();
    let mut out: Vec<IoDone> = Vec::with_capacity(2);
    while !driver.open.is_empty() {
        out.clear();
        let room = out.capacity();
        let wait = Wait::For { timeout: Duration::from_millis(100), min: 1 };
        let counted = driver.transport.poll(wait, &mut out).or_else(|error| fail(format!("poll: {error}")))?;
        if out.capacity() != room || counted > room {
            return fail(format!("{counted} ends into room for {room}; capacity is now {}", out.capacity()));
        }
        driver.book(&out.clone())?;
        if driver.bed.now().saturating_sub(start) > PATIENCE {
            return fail(format!("{} I/Os did not end", driver.open.len()));
        }
    }
    // No room at all: nothing may be lost or pushed.
    let mut none: Vec<IoDone> = Vec::new();
    match driver.transport.poll(Wait::No, &mut none) {
        Ok(0) if none.is_empty() => Ok(()),
        other => fail(format!("a poll without room gave {other:?}")),
    }
}

pub(super) fn a_wait_for_nothing_ends(bed: &mut dyn Bed) -> CaseResult {
    let mut driver = Driver::new(bed, &some_content())?;
    let timeout = Duration::from_millis(30);
    let start = driver.bed.now();
    let ended = driver.poll(Wait::For { timeout, min: 1 }, 8)?;
    let took = driver.bed.now().saturating_sub(start);
    if ended != 0 {
        return fail(format!("{ended} ends of nothing"));
    }
    if took > timeout + SLACK {
        return fail(format!("a wait of {timeout:?} took {took:?}"));
    }
    let start = driver.bed.now();
    driver.poll(Wait::No, 8)?;
    let took = driver.bed.now().saturating_sub(start);
    if took > SLACK { fail(format!("Wait::No took {took:?}")) } else { Ok(()) }
}

pub(super) fn a_wait_ends_at_a_completion(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 1 << 20)?;
    let mut driver = Driver::new(bed, &some_content())?;
    for io in some_reads(&mut driver, &mut arena, 1)? {
        driver.submit(&io)?;
    }
    let start = driver.bed.now();
    // Not rung: a poll that waits implies it.
    let ended = driver.poll(Wait::For { timeout: LONG, min: 1 }, 8)?;
    let took = driver.bed.now().saturating_sub(start);
    match (ended, took < LONG) {
        (1, true) => Ok(()),
        _ => fail(format!("{ended} ends after {took:?}; one read was there to end the wait")),
    }
}

pub(super) fn a_wake_before_is_not_lost(bed: &mut dyn Bed) -> CaseResult {
    let mut driver = Driver::new(bed, &some_content())?;
    let waker = driver.transport.waker();
    waker.wake();
    waker.wake();
    let start = driver.bed.now();
    driver.poll(Wait::For { timeout: LONG, min: 1 }, 8)?;
    let took = driver.bed.now().saturating_sub(start);
    if took > SLACK { fail(format!("a wait of {LONG:?} after a wake took {took:?}")) } else { Ok(()) }
}

pub(super) fn a_wake_from_another_thread(bed: &mut dyn Bed) -> CaseResult {
    if bed.clock() == Clock::Virtual {
        return skip("virtual time does not pass while another thread acts");
    }
    let mut driver = Driver::new(bed, &some_content())?;
    let waker = driver.transport.waker();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let spawned = thread::Builder::new().name("conformance-wake".into()).spawn(move || {
        // Gives the other side time to be inside its wait; if it is not yet, the case still holds.
        let _ = gone.recv_timeout(Duration::from_millis(50));
        waker.wake();
    });
    let Ok(spawned) = spawned else { return fail("no thread for the case") };
    let start = driver.bed.now();
    driver.poll(Wait::For { timeout: LONG, min: 1 }, 8)?;
    let took = driver.bed.now().saturating_sub(start);
    drop(go);
    if spawned.join().is_err() {
        return fail("wake panicked");
    }
    // The waker outlives the transport.
    let late = driver.transport.waker();
    drop(driver);
    late.wake();
    if took > SLACK + Duration::from_millis(50) { fail(format!("the wait took {took:?}")) } else { Ok(()) }
}
