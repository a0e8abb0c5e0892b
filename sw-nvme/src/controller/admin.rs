//! The admin queue: one command at a time for the control plane, with events and aborts beside it.

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::sync::Arc;

use sw_engine::{Error, ErrorKind, Retry, Time};
use sw_mem::ByteLen;

use crate::{
    bus::{Bus, QueueMemory, Registers},
    inquiry::{ADMIN_DATA_BYTES, AdminQueue, Answer, Data},
    prp::Segment,
    queue::{Ended, QueuePair},
    wire::{Command, DataPointer, regs, regs::Csts},
};

/// Entries of both admin queues: one command of the control plane, the aborts and the event requests.
pub(super) const ADMIN_ENTRIES: u32 = 32;
/// Looks at the queue before the first pause: a controller that answers at once costs no pause.
const LOOKS_FIRST: u32 = 64;
/// The first pause between two looks, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(5), Duration::from_millis(1));
/// Events kept until somebody asks for them.
pub(super) const EVENTS_MAX: usize = 64;

/// What the word of an admin command says, in its high half.
const RUN: u64 = 1 << 32;
const EVENT: u64 = 2 << 32;
const ABORT: u64 = 3 << 32;

/// What stands in the page before a command writes it: success does not prove that the data landed (an IOMMU may have
/// refused the write), and yesterday's answer must not pass for today's.
const UNWRITTEN: u8 = 0xA5;

/// Pauses between looks, longer from one to the next.
pub(super) struct Patience {
    looks: u32,
    next: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { looks: 0, next: PAUSES.0 }
    }

    /// Waits a moment.
    pub(super) fn pause<B: Bus>(&mut self, bus: &B) {
        self.looks += 1;
        if self.looks > LOOKS_FIRST {
            bus.pause(self.next);
            self.next = (self.next * 2).min(PAUSES.1);
        }
    }
}

/// Counts of the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminCounters {
    /// Admin commands that were waited for.
    pub commands: u64,
    /// Abort commands sent.
    pub aborts: u64,
    /// Aborts that were not sent, since ACL of them were under way.
    pub aborts_over_limit: u64,
    /// Asynchronous events that came.
    pub events: u64,
    /// Events that nobody asked for in time, so that they were dropped.
    pub events_dropped: u64,
    /// Controller resets that were begun.
    pub resets: u64,
}

pub(super) struct Admin<B: Bus> {
    pub(super) bus: Arc<B>,
    pub(super) registers: B::Registers,
    pub(super) queue: QueuePair<B>,
    /// Where data of admin commands goes.
    page: B::Memory,
    run: u32,
    /// A command was given up: its data may still land in the page. Only a reset ends that.
    pub(super) stuck: bool,
    /// The epoch of the controller, and the newest one whose end somebody wants: then no answer is waited for.
    pub(super) epoch: u64,
    pub(super) urgent: Arc<AtomicU64>,
    pub(super) timeout: Duration,
    /// Abort commands under way, and how many may be.
    pub(super) aborts: u32,
    pub(super) aborts_max: u32,
    /// Event requests that are with the controller, and how many shall be.
    pub(super) requests: u32,
    pub(super) requests_max: u32,
    /// Dword 0 of events that came.
    pub(super) events: Vec<u32>,
    pub(super) counters: AdminCounters,
}

impl<B: Bus> Admin<B> {
    pub(super) fn new(bus: Arc<B>, queue: QueuePair<B>, timeout: Duration) -> Result<Self, Error> {
        let page = bus.allocate(ADMIN_DATA_BYTES)?;
        Ok(Self {
            registers: bus.registers(),
            bus,
            queue,
            page,
            run: 0,
            stuck: false,
            epoch: 1,
            urgent: Arc::default(),
            timeout,
            aborts: 0,
            aborts_max: 1,
            requests: 0,
            requests_max: 0,
            events: Vec::with_capacity(EVENTS_MAX),
            counters: AdminCounters::default(),
        })
    }

    pub(super) fn csts(&self) -> Csts {
        Csts(self.registers.read32(regs::CSTS))
    }

    /// The error for a function whose registers read as all ones.
    pub(super) fn gone(&self) -> Error {
        self.error(ErrorKind::NoDevice, "the controller is gone: its registers read as all ones")
            .remedy("look for a removed drive or a link that is down in the kernel log")
    }

    /// Refuses an admin queue whose memory an earlier command may still write.
    pub(super) fn check_usable(&self) -> Result<(), Error> {
        if self.stuck {
            return Err(self
                .error(ErrorKind::Busy, "an admin command was never answered; only a reset frees the admin queue")
                .with_retry(Retry::AfterFence));
        }
        Ok(())
    }

    /// Whether only a reset helps.
    pub(super) fn is_broken(&self) -> bool {
        self.stuck || self.queue.breach().is_some()
    }

    fn landed(&self, data: Data, answer: Answer) -> Result<Answer, Error> {
        let Data::In(len) = data else { return Ok(answer) };
        if answer.status.is_success() && self.page().iter().take(len).all(|byte| *byte == UNWRITTEN) {
            return Err(self
                .error(ErrorKind::Protocol, "the controller reports success for data that never reached memory")
                .remedy("look for IOMMU faults of this function in the kernel log"));
        }
        Ok(answer)
    }

    /// Refuses to go on with a controller that is gone, fatal, or broke the rules.
    fn check_life(&mut self) -> Result<(), Error> {
        let csts = self.csts();
        if csts.is_gone() {
            self.stuck = true;
            return Err(self.gone());
        }
        if csts.is_fatal() {
            self.stuck = true;
            return Err(self
                .error(ErrorKind::Io, "the controller reports a fatal error (CSTS.CFS)")
                .with_retry(Retry::AfterFence));
        }
        if let Some(breach) = self.queue.breach() {
            self.stuck = true;
            return Err(self
                .error(ErrorKind::Protocol, format!("admin queue: {breach}"))
                .with_retry(Retry::AfterFence));
        }
        Ok(())
    }

    fn give_up(&mut self, begun: Time) -> Error {
        self.stuck = true;
        let waited = self.bus.now().since(begun).as_millis();
        self.error(ErrorKind::DeadlineExceeded, format!("no answer to an admin command for {waited} ms"))
            .with_retry(Retry::AfterFence)
            .remedy("the controller will be reset; if that repeats, look at its firmware and the kernel log")
    }

    /// Takes what ended; the answer of the command with `word`, if it is among that.
    pub(super) fn reap(&mut self, word: u64) -> Option<Answer> {
        let Self { queue, aborts, requests, events, counters, .. } = self;
        let mut answer = None;
        queue.poll(index_of(ADMIN_ENTRIES), |Ended { user, status, dw0, .. }| match user & !u64::from(u32::MAX) {
            RUN if user == word => answer = Some(Answer { status, dw0 }),
            EVENT => {
                *requests = requests.saturating_sub(1);
                // Without success it was given back: over the limit, aborted, or the queue is going.
                if status.is_success() {
                    counters.events += 1;
                    if events.len() < EVENTS_MAX { events.push(dw0) } else { counters.events_dropped += 1 }
                }
            }
            ABORT => *aborts = aborts.saturating_sub(1),
            _ => {}
        });
        answer
    }

    /// Takes what ended while nobody waits.
    pub(super) fn reap_idle(&mut self) {
        self.reap(0);
    }

    /// Sends as many event requests as the controller shall have.
    pub(super) fn request_events(&mut self) {
        while self.requests < self.requests_max && !self.stuck {
            if self.queue.stage(&[], EVENT, |_| Command::async_event_request()).is_err() {
                break;
            }
            self.requests += 1;
        }
        self.queue.ring();
    }

    /// Sends an Abort without waiting for it, within ACL; says whether it did.
    pub(super) fn abort(&mut self, qid: u16, cid: u16) -> bool {
        self.reap_idle();
        if self.aborts >= self.aborts_max {
            self.counters.aborts_over_limit += 1;
            return false;
        }
        if self.stuck || self.queue.stage(&[], ABORT, |_| Command::abort(qid, cid)).is_err() {
            return false;
        }
        self.queue.ring();
        self.aborts += 1;
        self.counters.aborts += 1;
        true
    }

    /// The controller was disabled: nothing of before is under way any more. It lives in `epoch` next.
    pub(super) fn forget(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.queue.reset();
        (self.stuck, self.aborts, self.requests) = (false, 0, 0);
    }

    /// Fills the start of the page, the rest with zeroes; for a command that takes data.
    pub(super) fn fill_page(&self, bytes: &[u8]) {
        let mut page = [0; ADMIN_DATA_BYTES];
        for (to, from) in page.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.page.write(0, &page);
    }

    /// Never frees its memory: the controller may still reach it.
    #[expect(clippy::mem_forget, reason = "the controller could not be stopped and may still write its admin memory")]
    pub(super) fn leak(self) {
        core::mem::forget(self.page);
        self.queue.leak();
    }
}

impl<B: Bus> AdminQueue for Admin<B> {
    fn name(&self) -> &str {
        self.bus.name()
    }

    /// Runs a command whose data, if any, goes through the page.
    ///
    /// # Errors
    /// `NoDevice`, `Io` for a fatal status, `Protocol` for a broken queue or data that never came, `DeadlineExceeded`. A
    /// status is no error here.
    fn run(&mut self, data: Data, command: impl FnOnce(DataPointer) -> Command) -> Result<Answer, Error> {
        self.check_usable()?;
        self.run = self.run.wrapping_add(1);
        let word = RUN | u64::from(self.run);
        let len = match data {
            Data::None => 0,
            Data::In(len) => {
                self.page.write(0, &[UNWRITTEN; ADMIN_DATA_BYTES]);
                len
            }
            Data::Out(len) => len,
        };
        let segment = Segment { iova: self.page.iova(), len: ByteLen(len as u64) };
        let pieces = if len == 0 { &[][..] } else { core::slice::from_ref(&segment) };
        if self.queue.stage(pieces, word, command).is_err() {
            // One that broke while nobody waited: only a reset helps.
            self.check_life()?;
            return Err(self.error(ErrorKind::Protocol, "the admin queue takes no command: it is broken or full"));
        }
        self.queue.ring();
        self.counters.commands += 1;
        let begun = self.bus.now();
        let mut patience = Patience::new();
        loop {
            if let Some(answer) = self.reap(word) {
                return self.landed(data, answer);
            }
            self.check_life()?;
            if self.urgent.load(Ordering::Acquire) >= self.epoch {
                self.stuck = true;
                return Err(self
                    .error(ErrorKind::Busy, "an admin command was given up for a reset of the controller")
                    .with_retry(Retry::AfterFence));
            }
            if self.bus.now().since(begun) >= self.timeout {
                return Err(self.give_up(begun));
            }
            patience.pause(&*self.bus);
        }
    }

    /// A copy of the page that the last command filled.
    fn page(&self) -> [u8; ADMIN_DATA_BYTES] {
        let mut bytes = [0; ADMIN_DATA_BYTES];
        self.page.read(0, &mut bytes);
        bytes
    }
}

fn index_of(entries: u32) -> usize {
    sw_mem::index(u64::from(entries))
}
