//! Devices and drivers that fail: a typed error, nothing hangs, nothing is freed under a device, and all is given back
//! where that can be proven.

use std::{
    thread,
    time::{Duration, Instant},
};

use standin_libcuda::harness::{COPY, Control};
use straightway::{Completed, Engine, ErrorKind, Memory, WriteOutcome};

use crate::{
    Case, End, GPU0, Outcome, Scratch, WORKER, at, builder, bytes_are, case, engine, file, holds, on_gpu, read, same,
    scratch, text,
};

/// Streams of the stand-in that take this long for every copy, beside the program.
const SLOW_MS: u64 = 800;
const SLOW: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "800000")];

pub fn cases() -> Vec<Case> {
    let with = |settings, name, run| Case { settings, ..case(name, run) };
    let kept = |settings, name, run| Case { end: End::Kept, ..with(settings, name, run) };
    vec![
        case("device_memory_that_is_not_there_is_refused_and_later_given", out_of_memory),
        case("slabs_that_cannot_be_pinned_are_an_error_that_does_not_stay", pin_refused),
        case("every_refusal_while_a_lane_is_made_is_typed_and_leaves_nothing", set_up_refused),
        case("a_refused_copy_fails_its_operation_alone", copy_refused),
        kept(WORKER, "a_copy_that_fails_later_is_told_and_its_memory_kept", copy_failed),
        kept(SLOW, "a_device_lost_during_a_read_answers_everybody", lost_in_read),
        kept(SLOW, "a_device_lost_during_a_write_answers_everybody", lost_in_write),
        kept(SLOW, "a_device_lost_during_a_verification_keeps_the_slab", lost_in_copy_out),
        with(SLOW, "a_deadline_during_a_slow_copy_is_kept_and_so_is_its_memory", deadline),
        with(SLOW, "a_cancelled_read_gives_its_memory_back_when_the_copy_ends", cancelled),
        with(SLOW, "a_dropped_read_gives_its_memory_back_when_the_copy_ends", dropped),
        with(SLOW, "closing_answers_reads_that_are_in_a_copy", closing),
        with(WORKER, "memory_outlives_its_engine", outlives),
    ]
}

#[expect(clippy::disallowed_methods, reason = "the cases are about time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a device that is slow is waited for")]
fn sleep_ms(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

/// The error of an operation, with its kind and the driver's code.
fn failed(done: &Completed) -> Result<(ErrorKind, i32), String> {
    let error = done.result.as_ref().err().ok_or("it succeeded")?;
    holds(&format!("a remedy in: {error}"), !error.remedy_text().is_empty())?;
    Ok((error.kind(), error.code()))
}

/// A file, opened, with memory for all of it.
fn opened(engine: &Engine, scratch: &Scratch, len: usize) -> Result<(straightway::Object, Memory, Vec<u8>), String> {
    let (uri, bytes) = file(scratch, "data", len);
    let object = engine.open(&uri).map_err(text)?;
    Ok((object, engine.allocate(GPU0, len as u64, 0).map_err(text)?, bytes))
}

fn out_of_memory() -> Outcome {
    let engine = engine();
    let control = Control::open()?;
    let error = engine.allocate(GPU0, 1 << 40, 0).err().ok_or("a TiB of a GiB")?;
    same("kind, code", (error.kind(), error.code()), (ErrorKind::ResourceLimit, 2))?;
    holds("remedy", error.remedy_text().contains("device memory"))?;
    let error = engine.allocate(GPU0, u64::MAX, 1).err().ok_or("more than there are addresses")?;
    holds("kind", matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::ResourceLimit))?;
    control.set_fault("cuMemAlloc_v2", 1, 2);
    same("refused", engine.allocate(GPU0, 16, 0).map(|_| ()).map_err(|e| e.kind()), Err(ErrorKind::ResourceLimit))?;
    engine.allocate(GPU0, 16, 0).map(|_| ()).map_err(text)
}

fn pin_refused() -> Outcome {
    let scratch = scratch();
    let engine = engine();
    let (object, mut memory, bytes) = opened(&engine, &scratch, 200_000)?;
    let control = Control::open()?;
    control.set_fault("cuMemHostRegister_v2", 0, 2);
    for started in [false, true, false, true] {
        let request = engine.read(&object, 0, memory);
        let done = if started { request.start().wait() } else { request.wait() };
        same("kind, code", failed(&done)?, (ErrorKind::ResourceLimit, 2))?;
        memory = done.into_memory().ok_or("memory did not come back")?;
    }
    control.clear_faults();
    // Two rounds of both reactors: the refusal is not remembered.
    for started in [false, true, true, true] {
        let request = engine.read(&object, 0, memory);
        let done = if started { request.start().wait() } else { request.wait() };
        memory = done.ok().map_err(text)?.into_memory().ok_or("no memory")?;
        bytes_are(&engine, &memory, &bytes)?;
    }
    Ok(())
}

/// Each driver call that a first read makes, refused once.
fn set_up_refused() -> Outcome {
    let scratch = scratch();
    let control = Control::open()?;
    let faults: [(&str, u64, u32, ErrorKind); 7] = [
        ("cuDevicePrimaryCtxRetain", 1, 2, ErrorKind::ResourceLimit),
        ("cuDeviceGet", 1, 101, ErrorKind::NoDevice),
        ("cuMemAlloc_v2", 1, 2, ErrorKind::ResourceLimit),
        ("cuStreamCreate", 1, 2, ErrorKind::ResourceLimit),
        ("cuStreamCreate", 3, 999, ErrorKind::Io),
        ("cuEventCreate", 3, 2, ErrorKind::ResourceLimit),
        ("cuMemHostRegister_v2", 1, 800, ErrorKind::PermissionDenied),
    ];
    for (name, nth, code, kind) in faults {
        // Measured, so that the measurement's own calls are refused too; one lane, so that nothing hides the refusal.
        let engine = Engine::builder().reactors(1).staging_bytes(2 << 20).build().map_err(text)?;
        let (uri, _) = file(&scratch, "data", 1000);
        let object = engine.open(&uri).map_err(text)?;
        let played = control.stat("faults_played");
        control.set_fault(name, nth, code);
        let done = engine.allocate(GPU0, 1000, 0).and_then(|memory| {
            // Not waited for in line: that would try a second lane after the first.
            engine.read(&object, 0, memory).start().wait().ok().map(|_| ())
        });
        let error = done.err().ok_or_else(|| format!("{name} was refused and nobody noticed"))?;
        same(&format!("{name} {code}: {error}"), (error.kind(), control.stat("faults_played") - played), (kind, 1))?;
        engine.close().map_err(text)?;
        drop(object);
        same(&format!("left after {name}"), control.stat("live"), 0)?;
    }
    Ok(())
}

fn copy_refused() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (object, memory, bytes) = opened(&engine, &scratch, 1 << 20)?;
    let control = Control::open()?;
    control.set_fault("cuMemcpyHtoDAsync_v2", 5, 1);
    let done = engine.read(&object, 0, memory).wait();
    same("kind, code", failed(&done)?, (ErrorKind::ApiMisuse, 1))?;
    let memory = done.into_memory().ok_or("memory did not come back")?;
    let done = engine.read(&object, 0, memory).wait().ok().map_err(text)?;
    bytes_are(&engine, &done.into_memory().ok_or("no memory")?, &bytes)?;
    let (memory, _) = on_gpu(&engine, &scratch, 200_000);
    let new = engine.create(&at(&scratch, "new"), 200_000).map_err(text)?;
    control.set_fault("cuMemcpyDtoHAsync_v2", 2, 1);
    let done = engine.write(new.object(), 0, memory).wait();
    same("kind, code", failed(&done)?, (ErrorKind::ApiMisuse, 1))?;
    same("outcome", done.result.as_ref().err().and_then(straightway::Error::outcome), Some(WriteOutcome::Unknown))?;
    let memory = done.into_memory().ok_or("memory did not come back")?;
    engine.write(new.object(), 0, memory).wait().ok().map_err(text)?;
    engine.close().map_err(text)
}

/// After a loss: later operations are told at once, and closing says that memory is kept.
fn is_lost(engine: Engine, object: &straightway::Object, code: i32) -> Outcome {
    let start = now();
    let error = engine.allocate(GPU0, 16, 0).err().ok_or("device memory of a lost device")?;
    same("allocate", (error.kind(), error.code()), (ErrorKind::Io, code))?;
    let host = engine.allocate(straightway::Destination::Host, 1000, 0).map_err(text)?;
    engine.read(object, 0, host).wait().ok().map_err(text)?;
    let counters = engine.counters();
    let counted = counters.quarantined > 0 && counters.abandoned >= counters.quarantined && counters.broken > 0;
    holds(&format!("the loss is counted: {counters:?}"), counted)?;
    let error = engine.close().err().ok_or("closed as if nothing were left")?;
    same("close", error.kind(), ErrorKind::Protocol)?;
    holds("within seconds", start.elapsed() < Duration::from_secs(10))
}

fn copy_failed() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (object, memory, _) = opened(&engine, &scratch, 1 << 20)?;
    Control::open()?.set_fault(COPY, 4, 719);
    let done = engine.read(&object, 0, memory).wait();
    same("kind, code", failed(&done)?, (ErrorKind::Io, 719))?;
    let error = done.result.as_ref().err().ok_or("no error")?.to_string();
    holds(&format!("it says what failed: {error}"), error.contains("device memory"))?;
    holds("its memory may still be written", done.into_memory().is_none())?;
    is_lost(engine, &object, 719)
}

fn lost_in_read() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (object, memory, _) = opened(&engine, &scratch, 1 << 20)?;
    let inline = engine.allocate(GPU0, 200_000, 0).map_err(text)?;
    let spare = engine.allocate(GPU0, 200_000, 0).map_err(text)?;
    let pending = engine.read(&object, 0, memory).start();
    let waiter = {
        let (engine, object) = (engine.clone(), object.clone());
        thread::Builder::new().spawn(move || engine.read(&object, 0, inline).wait()).map_err(text)?
    };
    sleep_ms(SLOW_MS / 2);
    let start = now();
    Control::open()?.lose_device(0, 999);
    let answers = [pending.wait(), waiter.join().map_err(|_| "the waiter panicked")?];
    holds("soon", start.elapsed() < Duration::from_secs(5))?;
    for done in answers {
        same("kind, code", failed(&done)?, (ErrorKind::Io, 999))?;
        holds("its memory may still be written", done.into_memory().is_none())?;
    }
    // Every slab is kept for ever: later reads must hear of the loss, not wait for a slab.
    let spare = engine.read(&object, 0, spare).wait();
    same("kind, code", failed(&spare)?, (ErrorKind::Io, 999))?;
    let spare = engine.read(&object, 0, spare.into_memory().ok_or("no memory")?).start().wait();
    same("kind, code", failed(&spare)?, (ErrorKind::Io, 999))?;
    drop(spare);
    is_lost(engine, &object, 999)
}

fn lost_in_write() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (memory, _) = on_gpu(&engine, &scratch, 200_000);
    let (uri, bytes) = file(&scratch, "data", 200_000);
    let object = engine.open_for_update(&uri).map_err(text)?;
    let pending = engine.write(&object, 0, memory).start();
    sleep_ms(SLOW_MS / 2);
    Control::open()?.lose_device(0, 46);
    let done = pending.wait();
    same("kind, code", failed(&done)?, (ErrorKind::NoDevice, 46))?;
    same("outcome", done.result.as_ref().err().and_then(straightway::Error::outcome), Some(WriteOutcome::Unknown))?;
    holds("nothing reached the file", std::fs::read(scratch.path("data")).map_err(text)? == bytes)?;
    drop(done);
    same("close", engine.close().map_err(|error| error.kind()), Err(ErrorKind::Protocol))
}

fn lost_in_copy_out() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (memory, _) = on_gpu(&engine, &scratch, 1000);
    let verifier = {
        let engine = engine.clone();
        thread::Builder::new().spawn(move || engine.copy_to_host(&memory).map(|_| ())).map_err(text)?
    };
    sleep_ms(SLOW_MS / 2);
    Control::open()?.lose_device(0, 999);
    let error = verifier.join().map_err(|_| "panicked")?.err().ok_or("verified on a lost device")?;
    same("kind, code", (error.kind(), error.code()), (ErrorKind::Io, 999))
}

/// Waits until the stand-in has no device memory but `bytes` allocations, asking the engine for memory as a program would.
fn given_back(engine: &Engine, control: &Control, allocations: u64) -> Outcome {
    let start = now();
    while control.stat("live.device") > allocations {
        if start.elapsed() > Duration::from_secs(5) {
            return Err(format!("the memory stayed: {}", engine.inspect()));
        }
        sleep_ms(20);
        drop(engine.allocate(straightway::Destination::Host, 1, 0).map_err(text)?);
    }
    Ok(())
}

fn deadline() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let control = Control::open()?;
    for started in [false, true] {
        let (object, memory, bytes) = opened(&engine, &scratch, 200_000)?;
        let start = now();
        let request = engine.read(&object, 0, memory).deadline(Duration::from_millis(SLOW_MS / 8));
        let done = if started { request.start().wait() } else { request.wait() };
        let waited = start.elapsed();
        let error = done.result.as_ref().err().ok_or("it succeeded")?;
        same("kind", error.kind(), ErrorKind::DeadlineExceeded)?;
        holds(&format!("it says how long: {error}"), error.to_string().contains("waited for"))?;
        let limits = Duration::from_millis(SLOW_MS / 8)..Duration::from_millis(SLOW_MS);
        holds(&format!("in time, not after {waited:?}"), limits.contains(&waited))?;
        holds("memory is not given back while the copy runs", done.into_memory().is_none())?;
        same("it is still there", control.stat("live.device"), 1)?;
        given_back(&engine, &control, 0)?;
        bytes_are(&engine, &read(&engine, &object, 0, 1000)?.into_memory().ok_or("no memory")?, &bytes[..1000])?;
    }
    engine.close().map_err(text)
}

fn cancelled() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (object, memory, _) = opened(&engine, &scratch, 200_000)?;
    let mut pending = engine.read(&object, 0, memory).start();
    sleep_ms(SLOW_MS / 4);
    let start = now();
    pending.cancel();
    let done = pending.wait();
    holds("at once", start.elapsed() < Duration::from_millis(SLOW_MS / 2))?;
    same("kind", done.result.as_ref().map_err(straightway::Error::kind).copied(), Err(ErrorKind::Cancelled))?;
    holds("memory is not given back while the copy runs", done.into_memory().is_none())?;
    given_back(&engine, &Control::open()?, 0)?;
    engine.close().map_err(text)
}

fn dropped() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (object, memory, _) = opened(&engine, &scratch, 200_000)?;
    let pending = engine.read(&object, 0, memory).start();
    sleep_ms(SLOW_MS / 4);
    drop(pending);
    let control = Control::open()?;
    same("it is still there", control.stat("live.device"), 1)?;
    given_back(&engine, &control, 0)?;
    engine.close().map_err(text)
}

fn closing() -> Outcome {
    let scratch = scratch();
    let engine = builder().reactors(1).build().map_err(text)?;
    let (object, memory, _) = opened(&engine, &scratch, 1 << 20)?;
    let inline = engine.allocate(GPU0, 1 << 20, 0).map_err(text)?;
    let pending = engine.read(&object, 0, memory).start();
    let waiter = {
        let (engine, object) = (engine.clone(), object.clone());
        thread::Builder::new().spawn(move || engine.read(&object, 0, inline).wait()).map_err(text)?
    };
    sleep_ms(SLOW_MS / 2);
    let start = now();
    engine.close().map_err(text)?;
    let answers = [pending.wait(), waiter.join().map_err(|_| "the waiter panicked")?];
    // A whole read is four rounds of the ring.
    holds("before the reads would have ended", start.elapsed() < Duration::from_millis(3 * SLOW_MS))?;
    for done in answers {
        same("kind", done.result.as_ref().map_err(straightway::Error::kind).copied(), Err(ErrorKind::Closed))?;
    }
    Ok(())
}

fn outlives() -> Outcome {
    let scratch = scratch();
    let engine = engine();
    let (memory, bytes) = on_gpu(&engine, &scratch, 10_000);
    engine.close().map_err(text)?;
    let other = crate::engine();
    bytes_are(&other, &memory, &bytes)?;
    drop(other);
    same("alive", Control::open()?.stat("live.device"), 1)?;
    drop(memory);
    same("gone", Control::open()?.stat("live"), 0)
}
