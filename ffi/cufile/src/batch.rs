//! Batches: many transfers that are asked for together and end one by one.
//!
//! Every entry is told of once. A status call waits for as many as it is asked for, at most for those that are in flight, and at most as
//! long as its caller says. Entries for which the engine's queues have no room wait for a place and get it as others end.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use straightway::{Completed, ErrorKind, Pending, Verb};

use crate::{
    abi::{
        CuFileError, Handle, IoEvent, IoParams, MODE_BATCH, OPCODE_READ, OPCODE_WRITE, STATUS_CANCELED,
        STATUS_COMPLETE, STATUS_FAILED, TimeSpec,
    },
    code::{self, Failure},
    count::{BatchWhat, By},
    edge::{call, negative_word, quiet},
    file::file_of,
    library::library,
    pointer::{Addr, In, Out},
    settings::BATCH,
    transfer::{Begun, Numbers, Transfer},
};

/// Longest that giving up a batch waits for devices to let go of its memory.
const DESTROY_WAIT: Duration = Duration::from_secs(5);
/// Longest sleep between two looks: an end wakes earlier.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the handle of a batch stands for.
pub struct Batch {
    room: usize,
    entries: Mutex<Entries>,
    signal: Arc<Signal>,
}

#[derive(Default)]
struct Entries {
    all: Vec<Entry>,
    /// Places of entries that are being started.
    starting: usize,
    /// Being destroyed: nothing begins any more.
    ending: bool,
}

struct Entry {
    cookie: Addr,
    transfer: Transfer,
    state: State,
}

enum State {
    Running(Pending),
    /// Over, and not told of yet.
    Over(i32, u64),
}

/// Wakes whoever waits for an entry.
#[derive(Default)]
struct Signal {
    ends: Mutex<u64>,
    more: Condvar,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.more.notify_all();
    }
}

impl Signal {
    fn ends(&self) -> u64 {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until there was an end since `seen`, or for `time`.
    fn wait(&self, seen: u64, time: Duration) {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.more.wait_timeout_while(ends, time, |ends| *ends == seen));
    }
}

impl Entry {
    /// Looks whether it is over.
    fn look(&mut self, waker: &Waker) -> bool {
        let State::Running(pending) = &mut self.state else { return true };
        let done = match Pin::new(pending).poll(&mut Context::from_waker(waker)) {
            Poll::Pending => return false,
            Poll::Ready(done) => done,
        };
        let (status, ret) = self.ended(done);
        let result = if status == STATUS_COMPLETE { Ok(()) } else { Err(()) };
        library().counts.batch(BatchWhat::Processed, &result);
        self.state = State::Over(status, ret);
        true
    }

    fn ended(&self, done: Completed) -> (i32, u64) {
        let result = if self.transfer.has_shrunk(&done) {
            // Its file got shorter meanwhile: rare, and read again as far as it goes.
            self.transfer.run()
        } else {
            self.transfer.count(&done, By::Batch);
            let cancelled = done.result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Cancelled);
            if cancelled {
                return (STATUS_CANCELED, word(-isize::try_from(libc::ECANCELED).unwrap_or(1)));
            }
            done.result.map_err(Failure::from)
        };
        match result {
            Ok(bytes) => (STATUS_COMPLETE, bytes),
            Err(failure) => (STATUS_FAILED, word(negative_word(&failure))),
        }
    }
}

/// A negative answer in an unsigned field: "cuFile API Reference Guide", CUfileIOEvents_t.
fn word(negative: isize) -> u64 {
    i64::try_from(negative).unwrap_or(-1).cast_unsigned()
}

impl Batch {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for an early end of everything.
    fn cancel(&self) {
        for entry in &mut self.lock().all {
            if let State::Running(pending) = &mut entry.state {
                pending.cancel();
            }
        }
        // One that was not begun has its end now.
        self.signal.wake_by_ref();
    }

    /// Nothing begins any more; waits for what another thread is beginning, so that it is seen.
    fn end_starts(&self, until: Option<Instant>) {
        loop {
            let seen = self.signal.ends();
            let mut entries = self.lock();
            entries.ending = true;
            let starting = entries.starting;
            drop(entries);
            let left = until.map_or(LOOK_EVERY, |until| left_until(until).min(LOOK_EVERY));
            if starting == 0 || left.is_zero() {
                return;
            }
            self.signal.wait(seen, left);
        }
    }

    /// Looks at all entries; how many are over, and how many there are.
    fn look(&self) -> (usize, usize) {
        let waker = Waker::from(self.signal.clone());
        let mut entries = self.lock();
        let over = entries.all.iter_mut().map(|entry| entry.look(&waker)).filter(|over| *over).count();
        (over, entries.all.len())
    }

    /// Waits until `want` entries, or all, are over.
    fn wait(&self, want: usize, until: Option<Instant>) -> (usize, usize) {
        loop {
            let seen = self.signal.ends();
            let (over, all) = self.look();
            let left = until.map_or(LOOK_EVERY, |until| left_until(until).min(LOOK_EVERY));
            if over >= want.min(all) || left.is_zero() {
                return (over, all);
            }
            self.signal.wait(seen, left);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a caller's wait is measured by the clock; this is the outermost layer")]
fn left_until(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

#[expect(clippy::disallowed_methods, reason = "as above")]
fn after(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time)
}

fn batch_of(handle: Handle) -> Result<Arc<Batch>, Failure> {
    let batches = library().batches.read().unwrap_or_else(PoisonError::into_inner);
    let batch = batches.get(&handle.raw()).cloned();
    batch.ok_or_else(|| unknown(handle))
}

fn unknown(handle: Handle) -> Failure {
    Failure::new(code::INVALID_CONTEXT_ERROR, format!("{:#x} stands for no batch", handle.raw()))
}

/// `cuFileBatchIOSetUp`: makes a batch of `nr` entries, 1 up to the parameter `io_batchsize`.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBatchIOSetUp(batch: Out<Handle>, nr: u32) -> CuFileError {
    call("cuFileBatchIOSetUp", || {
        let made = set_up(batch, nr);
        library().counts.batch(BatchWhat::SetUp, &made);
        made
    })
}

fn set_up(batch: Out<Handle>, nr: u32) -> Result<(), Failure> {
    let out = batch.ready("batch_idp")?;
    let running = library().opened()?;
    let most = running.values.size(BATCH);
    if nr == 0 || u64::from(nr) > most {
        return Err(Failure::invalid(format!("a batch of {nr} entries; io_batchsize is {most}")));
    }
    let made = Batch { room: nr as usize, entries: Mutex::default(), signal: Arc::default() };
    let id = library().number();
    let mut batches = library().batches.write().unwrap_or_else(PoisonError::into_inner);
    library().still(&running)?;
    batches.insert(id, Arc::new(made));
    drop(batches);
    out.put(Handle::from_raw(id));
    Ok(())
}

/// `cuFileBatchIOSubmit`: starts `nr` transfers. All are checked before the first begins: after an error none has. An entry's place is
/// free again when its end was told.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBatchIOSubmit(batch: Handle, nr: u32, params: In<IoParams>, _flags: u32) -> CuFileError {
    call("cuFileBatchIOSubmit", || {
        let submitted = submit(batch, nr, params);
        library().counts.batch(BatchWhat::Submit, &submitted);
        submitted
    })
}

fn submit(handle: Handle, nr: u32, params: In<IoParams>) -> Result<(), Failure> {
    let batch = batch_of(handle)?;
    if params.is_null() {
        return Err(Failure::invalid("iocbp is NULL"));
    }
    let nr = nr as usize;
    if nr == 0 || nr > batch.room {
        let room = batch.room;
        return Err(Failure::new(code::INTERNAL_BATCH_SUBMIT_ERROR, format!("{nr} entries in a batch of {room}")));
    }
    let mut asked = Vec::with_capacity(nr);
    for index in 0..nr {
        let params = params.get_at(index)?;
        asked.push((params.cookie, entry(params)?));
    }
    let mut entries = batch.lock();
    if entries.ending {
        return Err(unknown(handle));
    }
    let there = entries.all.len() + entries.starting;
    if there + nr > batch.room {
        let room = batch.room;
        return Err(Failure::new(code::BATCH_FULL, format!("{nr} entries, {there} of {room} are not told of yet")));
    }
    entries.starting += nr;
    drop(entries);
    // Without the lock: a file system in user space runs its own code here.
    let begun: Vec<Entry> = asked.into_iter().map(|(cookie, transfer)| begin(cookie, transfer)).collect();
    let mut entries = batch.lock();
    entries.starting -= nr;
    entries.all.extend(begun);
    drop(entries);
    // Whoever destroys it waits for these.
    batch.signal.wake_by_ref();
    Ok(())
}

fn begin(cookie: Addr, transfer: Transfer) -> Entry {
    let begun = transfer.begin();
    library().counts.batch(BatchWhat::Enqueued, &begun);
    let state = match begun {
        Ok(Begun::Running(pending)) => State::Running(pending),
        Ok(Begun::Over(bytes)) => State::Over(STATUS_COMPLETE, bytes),
        Err(failure) => State::Over(STATUS_FAILED, word(negative_word(&failure))),
    };
    Entry { cookie, transfer, state }
}

impl In<IoParams> {
    fn get_at(self, index: usize) -> Result<IoParams, Failure> {
        self.at(index).ok_or_else(|| Failure::invalid("iocbp is NULL"))
    }
}

fn entry(params: IoParams) -> Result<Transfer, Failure> {
    let IoParams { mode, base, file_offset, dev_offset, size, fh, opcode, .. } = params;
    let verb = match (mode, opcode) {
        (MODE_BATCH, OPCODE_READ) => Verb::Read,
        (MODE_BATCH, OPCODE_WRITE) => Verb::Write,
        (MODE_BATCH, other) => return Err(Failure::invalid(format!("{other} is no CUfileOpcode_t"))),
        (other, _) => return Err(Failure::invalid(format!("{other} is no CUfileBatchMode_t"))),
    };
    Transfer::new(file_of(fh)?, verb, Numbers { base: base.raw(), size, file_offset, buffer_offset: dev_offset })
}

/// `cuFileBatchIOGetStatus`: tells of up to `*nr` entries that are over, each once, after waiting for `min_nr` of them, but not for more
/// than there are. `timeout` NULL: as long as it takes.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBatchIOGetStatus(
    batch: Handle,
    min_nr: u32,
    nr: Out<u32>,
    events: Out<IoEvent>,
    timeout: In<TimeSpec>,
) -> CuFileError {
    call("cuFileBatchIOGetStatus", || {
        let told = status(batch, min_nr, (nr, events), timeout);
        library().counts.batch(BatchWhat::Complete, &told);
        told
    })
}

fn status(
    batch: Handle,
    min_nr: u32,
    (nr, events): (Out<u32>, Out<IoEvent>),
    timeout: In<TimeSpec>,
) -> Result<(), Failure> {
    let (nr, events) = (nr.ready("nr")?, events.ready("iocbp")?);
    let room = nr.get();
    if min_nr > room {
        return Err(Failure::invalid(format!("at least {min_nr} events into room for {room}")));
    }
    let until = match timeout.at(0) {
        None => None,
        Some(time) => after(duration(time)?),
    };
    let batch = batch_of(batch)?;
    batch.wait(min_nr as usize, until);
    let mut told = 0u32;
    batch.lock().all.retain(|entry| match entry.state {
        State::Over(status, ret) if told < room => {
            events.put_at(told as usize, IoEvent { cookie: entry.cookie, status, hole: 0, ret });
            told += 1;
            false
        }
        _ => true,
    });
    nr.put(told);
    Ok(())
}

fn duration(time: TimeSpec) -> Result<Duration, Failure> {
    let seconds = u64::try_from(time.seconds).ok();
    let nanos = u32::try_from(time.nanoseconds).ok().filter(|nanos| *nanos < 1_000_000_000);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(Failure::invalid(format!("{} s and {} ns are no time to wait", time.seconds, time.nanoseconds))),
    }
}

/// `cuFileBatchIOCancel`: asks for an early end. Every entry still comes to an end of its own, which the status tells: cancelled, or what
/// it came to first.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBatchIOCancel(batch: Handle) -> CuFileError {
    call("cuFileBatchIOCancel", || {
        let cancelled = batch_of(batch).map(|batch| batch.cancel());
        library().counts.batch(BatchWhat::Cancel, &cancelled);
        cancelled
    })
}

/// `cuFileBatchIODestroy`: ends a batch. What is in flight is ended early, and its memory is the caller's again when this returns; for a
/// device that does not answer for five seconds that cannot be so, and the log says it.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBatchIODestroy(batch: Handle) {
    quiet("cuFileBatchIODestroy", || {
        let gone = library().batches.write().unwrap_or_else(PoisonError::into_inner).remove(&batch.raw());
        let gone = gone.ok_or_else(|| unknown(batch));
        library().counts.batch(BatchWhat::Destroy, &gone);
        let gone = gone?;
        let until = after(DESTROY_WAIT);
        gone.end_starts(until);
        gone.cancel();
        let (over, all) = gone.wait(usize::MAX, until);
        if over == all {
            return Ok(());
        }
        Err(Failure::new(code::IO_ERROR, format!("a device still holds memory of {} entries", all - over)))
    });
}
