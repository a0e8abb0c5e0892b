//! The second stage: one thread with a lane of its own reads what is planned, in that order, as much at once as is allowed.
//!
//! ```text
//!   job ─► admit: is the object open? ─ yes ─► runnable ─► lane ─► done: last read of the job? ─► next stage
//!                        └ no ─► opener … opened ──┘
//! ```

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use straightway::{
    Completion, Destination, ErrorKind, Lane, Memory, Op, Region, Rejected, Verb, Via, checksum::Algorithm,
};

use super::{
    clock,
    error::{LoadError, Why},
    objects::{Objects, Opened, Wanted},
    options::Verify,
    plan::{Job, Key, Owner, Run, owners_of},
    planner,
    pool::Patience,
    shared::{InFlight, Mail, Shared, same_checksum},
};
use crate::formats::Extent;

/// Longest wait before the thread looks around again.
const LOOK: Duration = Duration::from_millis(100);
/// The same while the lane has no room, although little is in flight: what was given up still fills it.
const LOOK_SOON: Duration = Duration::from_millis(5);
/// Times that a batch is read again because a device kept its memory.
const AGAIN_MAX: u32 = 3;

/// A read of a job.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    job: u64,
    run: u32,
}

/// A job whose reads are on their way.
struct Active {
    job: Box<Job>,
    /// Its memory, of which reads get parts: region, start, bytes.
    memory: Option<(Region, u64, u64)>,
    /// Reads and windows that it waits for.
    left: usize,
    started: Option<Instant>,
    again: u32,
}

/// A read in the lane.
struct Flight {
    ticket: Ticket,
    key: Key,
    extent: Extent,
}

pub(super) struct Reader {
    shared: Arc<Shared>,
    lane: Lane,
    mail: Mail,
    jobs: HashMap<u64, Active>,
    /// Batches that wait for a window, by the number of the job that reads it.
    waiting: HashMap<u64, Vec<u64>>,
    admit: VecDeque<Ticket>,
    /// Their objects are open and count them as users.
    runnable: VecDeque<Ticket>,
    /// The lane had no room for it.
    held: Option<(Op, Flight)>,
    objects: Objects<Ticket>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    in_flight: u32,
    bytes: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, lane: Lane) -> Self {
        shared.inbox.set_waker(lane.waker());
        let objects = Objects::new(shared.options.objects);
        Self {
            shared,
            lane,
            mail: Mail::default(),
            jobs: HashMap::new(),
            waiting: HashMap::new(),
            admit: VecDeque::new(),
            runnable: VecDeque::new(),
            held: None,
            objects,
            flights: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            bytes: 0,
        }
    }

    /// The thread of the stage.
    pub(super) fn run(&mut self) {
        while !self.shared.is_stopped() {
            self.read_mail();
            self.admit();
            self.submit();
            self.wait();
            while let Some(done) = self.lane.pop() {
                self.done(done);
            }
            for ticket in self.objects.give_up(clock::now(), self.shared.options.deadline) {
                let after = self.shared.options.deadline;
                self.fail(ticket, &Why::Stuck { what: "opening its object", after });
            }
        }
    }

    fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        self.shared.inbox.take(&mut mail);
        for (key, result) in mail.opened.drain(..) {
            let failed = result.as_ref().err().cloned();
            for ticket in self.objects.opened(key, result) {
                match &failed {
                    Some(why) => self.fail(ticket, why),
                    None => self.runnable.push_back(ticket),
                }
            }
        }
        mail.jobs.drain(..).for_each(|job| self.begin(job, 0));
        // Its memory is used for the next mail.
        self.mail = mail;
    }

    fn begin(&mut self, mut job: Box<Job>, again: u32) {
        let memory = job.memory.take().map(|memory| {
            let len = memory.len();
            let (region, start) = memory.share();
            (region, start, len)
        });
        let (id, mut left) = (job.turn, job.runs.len());
        for run in (0u32..).take(left) {
            self.admit.push_back(Ticket { job: id, run });
        }
        // Whoever planned it sent the windows first.
        for window in job.waits.iter().filter(|window| !window.is_there()) {
            self.waiting.entry(window.turn).or_default().push(id);
            left += 1;
        }
        self.jobs.insert(id, Active { job, memory, left, started: None, again });
        if left == 0 {
            self.finish(id);
        }
    }

    /// Looks for the objects of the next reads, a bounded number ahead of the lane.
    fn admit(&mut self) {
        let most = usize::try_from(self.shared.options.reads).unwrap_or(usize::MAX);
        let now = clock::now();
        while self.runnable.len() < most
            && let Some(&ticket) = self.admit.front()
        {
            let Some((key, epoch)) = self
                .jobs
                .get(&ticket.job)
                .and_then(|active| Some((run_of(&active.job, ticket)?.key, active.job.epoch)))
            else {
                self.admit.pop_front();
                continue;
            };
            match self.objects.want(key, epoch, ticket, now, self.shared.options.deadline) {
                Wanted::Full => return,
                Wanted::Open => self.runnable.push_back(ticket),
                Wanted::Opening(None) => {}
                Wanted::Opening(Some(order)) => self.shared.opens.push(order),
                Wanted::Failed(why) => {
                    self.admit.pop_front();
                    self.fail(ticket, &why);
                    continue;
                }
            }
            self.admit.pop_front();
        }
    }

    fn submit(&mut self) {
        loop {
            let (op, flight) = match self.held.take() {
                Some(held) => held,
                None => match self.next_read() {
                    Some(next) => next,
                    None => return,
                },
            };
            if let Err((rejected, flight)) = self.send(op, flight) {
                let Rejected { op, error } = rejected;
                if error.kind() == ErrorKind::Busy {
                    self.held = Some((op, flight));
                    return;
                }
                drop(op);
                self.objects.release(flight.key);
                self.fail(flight.ticket, &Why::Storage(Arc::new(error)));
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "what is refused comes back to be sent again, without an allocation")]
    fn send(&mut self, mut op: Op, flight: Flight) -> Result<(), (Rejected, Flight)> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        op.user = index as u64;
        match self.lane.submit(op) {
            Ok(_) => {
                self.in_flight += 1;
                self.bytes += flight.extent.len;
                self.flights[index] = Some(flight);
                Ok(())
            }
            Err(rejected) => {
                self.free.push(index);
                Err((rejected, flight))
            }
        }
    }

    /// The next read, if it may be in flight too.
    fn next_read(&mut self) -> Option<(Op, Flight)> {
        loop {
            let options = &self.shared.options;
            let &ticket = self.runnable.front().filter(|_| self.in_flight < options.reads)?;
            let Some(active) = self.jobs.get_mut(&ticket.job) else {
                self.runnable.pop_front();
                continue;
            };
            let Some(run) = run_of(&active.job, ticket).copied() else {
                self.runnable.pop_front();
                continue;
            };
            if self.in_flight > 0 && self.bytes + run.extent.len > options.read_bytes {
                return None;
            }
            self.runnable.pop_front();
            let made = self.objects.get(run.key).and_then(|opened| {
                let made = read_of(&opened, &run, active, options.into)?;
                Ok((made, options.deadline, options.verify))
            });
            match made {
                Ok(((mut op, extent), deadline, verify)) => {
                    active.started.get_or_insert_with(clock::now);
                    op.options.deadline = Some(self.lane.deadline(deadline));
                    if verify == Verify::Known
                        && options.into != Destination::Host
                        && stored(&active.job, &run).is_some()
                    {
                        op.options.checksum = Some(Algorithm::Crc32c);
                    }
                    return Some((op, Flight { ticket, key: run.key, extent }));
                }
                Err(why) => {
                    self.objects.release(run.key);
                    self.fail(ticket, &why);
                }
            }
        }
    }

    fn wait(&mut self) {
        if self.in_flight == 0 && self.held.is_none() {
            let wait = if self.objects.opening() > 0 || self.admit.is_empty() { LOOK } else { LOOK_SOON };
            return self.shared.inbox.wait(wait, || self.shared.is_stopped());
        }
        let most = if self.held.is_some() { LOOK_SOON } else { LOOK };
        let mail = self.shared.inbox.falls_asleep() || self.shared.is_stopped();
        let timeout = if mail { Duration::ZERO } else { most };
        if let Some(flight) = self.flights.iter().flatten().next() {
            self.shared.watch.enter(InFlight { key: flight.key, extent: flight.extent, reads: self.in_flight });
        }
        self.lane.poll_gathering(timeout);
        self.shared.watch.leave();
        self.shared.inbox.wakes_up();
    }

    fn done(&mut self, done: Completion) {
        let index = usize::try_from(done.user).unwrap_or(usize::MAX);
        let Some(flight) = self.flights.get_mut(index).and_then(Option::take) else { return };
        self.free.push(index);
        self.in_flight -= 1;
        self.bytes -= flight.extent.len;
        self.objects.release(flight.key);
        // Its part of the job's memory goes; without an operation the device still has it.
        drop(done.op);
        let Flight { ticket, extent, .. } = flight;
        match done.result {
            Err(error) => self.fail(ticket, &Why::Storage(Arc::new(error))),
            Ok(_) => {
                self.shared.counts.read(done.path, extent.len);
                match self.compared(ticket, done.checksum) {
                    Ok(()) => self.ended(ticket.job),
                    Err(why) => self.fail(ticket, &why),
                }
            }
        }
    }

    /// Compares the checksum of a read that is one sample.
    fn compared(&self, ticket: Ticket, computed: Option<u64>) -> Result<(), Why> {
        let Some(active) = self.jobs.get(&ticket.job) else { return Ok(()) };
        let stored = run_of(&active.job, ticket).and_then(|run| stored(&active.job, run));
        match (stored, computed) {
            (Some(stored), Some(computed)) => same_checksum(stored, computed),
            _ => Ok(()),
        }
    }

    /// A read came to nothing: its samples are bad.
    fn fail(&mut self, ticket: Ticket, why: &Why) {
        let Some(active) = self.jobs.get_mut(&ticket.job) else { return };
        let job = &mut active.job;
        let run = run_of(job, ticket).copied();
        if let (Some((_, lost)), Some(run)) = (&mut job.reads, run) {
            lost.push((run.at..run.at + run.extent.len, why.clone()));
        } else if let Some(run) = run {
            for owner in owners_of(&job.owners, &run) {
                match *owner {
                    Owner::Item(index) => {
                        let item = usize::try_from(index).ok().and_then(|index| job.items.get_mut(index));
                        if let Some(item) = item {
                            item.lost = true;
                            job.bad.push(self.shared.bad_sample(item.id, &item.place, why.clone()));
                        }
                    }
                    Owner::Block(index) => {
                        let block = usize::try_from(index).ok().and_then(|index| job.blocks.get_mut(index));
                        if let Some(block) = block {
                            block.lost = true;
                            block.promise.settle(Err(why.clone()));
                        }
                    }
                }
            }
        }
        self.ended(ticket.job);
    }

    /// One read of a job is over.
    fn ended(&mut self, id: u64) {
        let Some(active) = self.jobs.get_mut(&id) else { return };
        active.left = active.left.saturating_sub(1);
        if active.left == 0 {
            self.finish(id);
        }
    }

    /// All reads of a job are over.
    fn finish(&mut self, id: u64) {
        let Some(Active { mut job, memory, started, again, .. }) = self.jobs.remove(&id) else { return };
        if let Some(started) = started {
            self.shared.counts.reading.since(started);
        }
        let Some((region, start, len)) = memory else { return self.shared.read_done(job) };
        let back = region.reclaim(start, len);
        if job.reads.is_some() {
            return self.finish_window(job, back.ok(), (len, again));
        }
        // In device memory the places are counted in samples that are there.
        let gaps = job.stride.is_some() && job.items.iter().any(|item| item.lost);
        match back {
            Ok(memory) if !gaps => {
                job.memory = Some(memory);
                self.shared.read_done(job);
            }
            Ok(memory) => {
                self.shared.pool.put(memory);
                self.read_again(job, again + 1);
            }
            // A device that did not answer may still write: this memory is not ours for now.
            Err(_) => {
                self.shared.pool.forget(len);
                self.read_again(job, again + 1);
            }
        }
    }

    /// All reads of a window are over, and its memory came back unless a device may still write into it.
    fn finish_window(&mut self, mut job: Box<Job>, memory: Option<Memory>, (len, again): (u64, u32)) {
        let Some((window, mut lost)) = job.reads.take() else { return };
        let buffer = memory.and_then(|memory| memory.into_buffer().ok());
        if buffer.is_none() {
            job.runs.retain(|run| !lost.iter().any(|(range, _)| range.contains(&run.at)));
            if !job.runs.is_empty() && again < AGAIN_MAX {
                self.shared.counts.read_again.add(1);
                // As large as before: the planner knows what its windows have.
                if let Ok(Some(memory)) = self.shared.windows.instead(len) {
                    (job.memory, job.reads) = (Some(memory), Some((window, lost)));
                    return self.begin(job, again + 1);
                }
            } else {
                self.shared.windows.forget(len);
            }
        }
        if buffer.is_none() {
            let what = "reading a window, whose memory a device kept,";
            let why = Why::Stuck { what, after: self.shared.options.deadline };
            lost.extend(job.runs.iter().map(|run| (run.at..run.at + run.extent.len, why.clone())));
        }
        self.shared.counts.windows.add(u64::from(buffer.is_some()));
        window.land(buffer, lost);
        for waiting in self.waiting.remove(&job.turn).unwrap_or_default() {
            self.ended(waiting);
        }
    }

    /// Reads what is not lost once more, into other memory.
    fn read_again(&mut self, mut job: Box<Job>, again: u32) {
        if self.shared.options.bad_max().is_none() && !job.bad.is_empty() {
            // The batch is an error anyway.
            job.items.clear();
            job.blocks.clear();
            return self.shared.read_done(job);
        }
        self.shared.counts.read_again.add(1);
        job.items.retain(|item| !item.lost);
        let found = planner::lay_out(&self.shared, &mut job)
            .and_then(|()| planner::find_memory(&self.shared, &mut job, Patience::None));
        match found {
            Ok(true) if again <= AGAIN_MAX => self.begin(job, again),
            Ok(true) => {
                job.memory.take().into_iter().for_each(|memory| self.shared.pool.put(memory));
                self.shared.fail(job, LoadError::Broken { stage: "reader" });
            }
            Ok(false) => {}
            Err(error) => self.shared.fail(job, error),
        }
    }
}

fn run_of(job: &Job, ticket: Ticket) -> Option<&Run> {
    job.runs.get(usize::try_from(ticket.run).ok()?)
}

/// The checksum of a read that is one sample, where the table knows it.
fn stored(job: &Job, run: &Run) -> Option<u32> {
    match owners_of(&job.owners, run) {
        [Owner::Item(index)] => job.items.get(usize::try_from(*index).ok()?)?.place.crc32c,
        _ => None,
    }
}

/// The operation of a run, and the bytes of the object that it reads.
fn read_of(opened: &Opened, run: &Run, active: &Active, into: Destination) -> Result<(Op, Extent), Why> {
    let storage = |error| Why::Storage(Arc::new(error));
    let main = opened.target.choice.main;
    // What goes through slabs may as well be exact.
    let block = if into == Destination::Host && main.via == Via::Direct { main.granularity.block } else { 1 };
    let (extent, at) = run.widened(block.into(), opened.object.len());
    let Some((region, start, _)) = &active.memory else { return Err(Why::NoObject { object: run.key.object }) };
    let part = region.part(start + at, extent.len).map_err(storage)?;
    let offset = opened.object.position(Verb::Read, extent.offset, extent.len).map_err(storage)?;
    Ok((Lane::op(0, Verb::Read, opened.target.clone(), offset, part), extent))
}
