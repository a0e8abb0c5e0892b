//! Promises of started operations: nobody hangs, deadlines and cancels work in every queue, back-pressure is not an error.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
#![expect(clippy::disallowed_methods, reason = "a race is looked for at different moments")]

use std::{
    fs,
    future::{Future, poll_fn},
    pin::Pin,
    sync::mpsc,
    task::Poll,
    thread,
    time::Duration,
};

use straightway::{Destination, Engine, ErrorKind, GpuUse, Object, Pending, Uri, WriteOutcome};
use sw_testkit::{scratch::Scratch, wait::block_on};

/// Long enough for anything that does not hang, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn file(scratch: &Scratch, name: &str, len: usize) -> Uri {
    scratch.file(name, len);
    Uri::from_path(&scratch.path(name)).unwrap()
}

/// A hole of `len` bytes: reads of it cost the memory only.
fn hole(scratch: &Scratch, name: &str, len: u64) -> Uri {
    fs::File::create(scratch.path(name)).unwrap().set_len(len).unwrap();
    Uri::from_path(&scratch.path(name)).unwrap()
}

/// An engine whose one lane takes one operation, and an operation that keeps it busy for a good part of a second.
fn busy(scratch: &Scratch) -> (Engine, Object, Pending) {
    let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).ops_per_lane(1).build().unwrap();
    let hole = engine.open(&hole(scratch, "hole", 1 << 30)).unwrap();
    let slow = engine.read(&hole, 0, engine.allocate(Destination::Host, 1 << 30, 0).unwrap()).start();
    thread::sleep(Duration::from_millis(20));
    (engine, hole, slow)
}

fn small(engine: &Engine) -> straightway::Memory {
    engine.allocate(Destination::Host, 4096, 0).unwrap()
}

#[test]
fn a_deadline_or_a_cancel_in_the_backlog_is_answered_in_time_with_its_memory() {
    let scratch = scratch("backlog");
    let (engine, hole, slow) = busy(&scratch);
    let mut cancelled = engine.read(&hole, 0, small(&engine)).start();
    let late = engine.read(&hole, 0, small(&engine)).deadline(Duration::from_millis(10)).start();
    cancelled.cancel();
    for (pending, kind) in [(cancelled, ErrorKind::Cancelled), (late, ErrorKind::DeadlineExceeded)] {
        let done = pending.wait();
        assert_eq!(done.result.as_ref().unwrap_err().kind(), kind);
        assert!(done.result.as_ref().unwrap_err().to_string().contains("nothing was begun"));
        assert_eq!(done.into_memory().unwrap().len(), 4096);
    }
    assert_eq!(slow.wait().result.unwrap(), 1 << 30, "the slow one was still running");
}

#[test]
fn a_write_that_was_dropped_or_cancelled_before_it_began_never_happens() {
    let scratch = scratch("unbegun");
    let (engine, _, slow) = busy(&scratch);
    let target = engine.open_for_update(&file(&scratch, "target", 4096)).unwrap();
    let before = fs::read(scratch.path("target")).unwrap();
    let filled = || {
        let mut buffer = small(&engine).into_buffer().unwrap();
        buffer.as_mut_slice().fill(9);
        buffer
    };
    drop(engine.write(&target, 0, filled()).start());
    let mut cancelled = engine.write(&target, 0, filled()).start();
    cancelled.cancel();
    let error = cancelled.wait().result.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Cancelled, Some(WriteOutcome::NotApplied)));
    slow.wait().ok().unwrap();
    engine.flush(&target).start().wait().ok().unwrap();
    assert!(fs::read(scratch.path("target")).unwrap() == before);
}

#[test]
fn callers_that_wait_for_a_place_are_answered_when_the_engine_closes() {
    let scratch = scratch("room");
    let (engine, hole, slow) = busy(&scratch);
    // More than queue and backlog hold together.
    let all: Vec<_> = (0..2_100).map(|_| engine.read(&hole, 0, small(&engine)).start()).collect();
    let (tell, told) = mpsc::channel();
    for pending in all.into_iter().rev().take(20) {
        let tell = tell.clone();
        thread::Builder::new().spawn(move || tell.send(pending.wait().result.is_err()).unwrap()).unwrap();
    }
    thread::sleep(Duration::from_millis(20));
    engine.close().unwrap();
    for answered in 0..20 {
        assert!(told.recv_timeout(PATIENCE).is_ok(), "only {answered} of 20 were answered");
    }
    slow.wait();
}

#[test]
fn an_engine_that_closes_in_the_middle_of_everything_answers_everybody() {
    let scratch = scratch("race");
    let uri = file(&scratch, "data", 1 << 20);
    for round in 0..60u64 {
        let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap();
        let object = engine.open(&uri).unwrap();
        let (tell, told) = mpsc::channel();
        for _ in 0..3 {
            let (engine, object, tell) = (engine.clone(), object.clone(), tell.clone());
            let run = move || {
                let reads = || {
                    engine
                        .allocate(Destination::Host, 4096, 0)
                        .and_then(|m| engine.read(&object, 0, m).start().wait().result)
                };
                while reads().is_ok() {}
                tell.send(()).unwrap();
            };
            thread::Builder::new().spawn(run).unwrap();
        }
        thread::sleep(Duration::from_micros(500 + round * 97 % 3000));
        engine.close().unwrap();
        for _ in 0..3 {
            assert!(told.recv_timeout(PATIENCE).is_ok(), "a caller hangs after the close of round {round}");
        }
    }
}

#[test]
fn a_full_lane_is_back_pressure_not_an_error() {
    let scratch = scratch("flows");
    let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap();
    let members: Vec<Uri> = (0..8)
        .map(|at| {
            file(&scratch, &format!("m{at}"), 1 << 18);
            Uri::from_path(&scratch.path(&format!("m{at}"))).unwrap()
        })
        .collect();
    let object = engine.open(&Uri::Stripe { unit: 65_536, members }).unwrap();
    let requests =
        (0..200).map(|_| engine.read(&object, 0, engine.allocate(Destination::Host, object.len(), 0).unwrap()));
    for done in engine.batch(requests.collect()).wait() {
        done.ok().unwrap();
    }
}

#[test]
fn a_wait_inside_a_task_does_not_eat_the_wake_of_its_executor() {
    let (tell, told) = mpsc::channel();
    let run = move || {
        let scratch = scratch("nested");
        let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap();
        let object = engine.open(&hole(&scratch, "hole", 64 << 20)).unwrap();
        let mut outer = engine.read(&object, 0, small(&engine)).start();
        let mut inner = Some(engine.read(&object, 0, engine.allocate(Destination::Host, 64 << 20, 0).unwrap()));
        block_on(poll_fn(|context| {
            let done = Pin::new(&mut outer).poll(context).is_ready();
            if let Some(inner) = inner.take() {
                inner.start().wait().ok().unwrap();
            }
            if done { Poll::Ready(()) } else { Poll::Pending }
        }));
        tell.send(()).unwrap();
    };
    thread::Builder::new().spawn(run).unwrap();
    assert!(told.recv_timeout(PATIENCE).is_ok(), "the executor sleeps for ever");
}
