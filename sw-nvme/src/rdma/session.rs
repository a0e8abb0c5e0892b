//! A queue over a queue pair: moves capsules between a QP and the memory of commands, for whoever has a device. It has no clock and waits for nobody.
//!
//! ```text
//!   HostQueue ─► command ─┬─ small write ─► [a lease of its memory] ─► capsule and data, one SEND of two pieces
//!                         └─ else ────────► [a lease of its memory] ─► capsule with address and rkey ─► SEND
//!   (the peer's NIC reads and writes that memory) … receive ─► HostQueue ─► [the lease ends] ─► end
//! ```
//!
//! A lease is of a registration that is kept, or of one for this command and its direction alone, which is deregistered before its end is told
//! (`registrations`).
//!
//! The order at the end: [`Session::disconnect`]; [`Session::drain`] until it says so or the caller's patience is over; [`Session::release`].
//! Then nothing of it reads or writes memory of commands any more: the queue pair is in error and flushed as far as it would be, and all
//! their memory is deregistered, which is the proof where a device that is gone flushes nothing. Without that proof it is said that it stays.
//!
//! *Thread*: one at a time. Once it is [over](Over) it stays so.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Ability, Access, Cq, Device, Gather, Mr, MrRequest, Pd, PostError, Presence, Qp, QpConfig, RecvWr, SendOp,
            SendWr, Wc, WcKind, WcStatus,
        },
    },
};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan, RegionId};

use super::{
    Breach,
    capsule::{COMMAND_BYTES, KeyEnd, Keyed, RESPONSE_BYTES, Source},
    host::{HostQueue, Next},
    registrations::{Direction, Lease, Memory, Registering, Registrations, Shelf},
};
use crate::tcp::host::{End, Outcome, Range, Transfer};

/// Completions that are taken in one call.
const BATCH: usize = 64;
/// Batches in a row, until others have their turn.
const BATCHES_MAX: usize = 16;

/// Memory of ours that is registered as long as a connection is.
pub struct Slots {
    // Deregistered before the memory goes.
    /// Its registration.
    pub mr: Box<dyn Mr>,
    /// The memory.
    pub span: DmaSpan,
}

impl Slots {
    /// `bytes`, above zero.
    ///
    /// # Errors
    /// `ResourceLimit`; those of [`Pd::reg_mr`].
    pub fn new(pd: &dyn Pd, bytes: u64) -> Result<Self, Error> {
        let buffer = Buffer::allocate(ByteLen(bytes)).map_err(|cause| {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Open).at("rdma");
            limit.detail("no memory for capsules").caused_by(cause)
        })?;
        let span = buffer.into_span();
        let memory = MrRequest { region: span.region(), at: span.offset(), len: bytes, access: Access::LOCAL_WRITE };
        Ok(Self { mr: pd.reg_mr(memory)?, span })
    }
}

/// Where the memory of commands lies.
pub trait Windows {
    /// The region that a range lies in, and its first byte there; `None`: in none that is known, or in several pieces.
    fn window(&self, of: Range) -> Option<(DmaRegion, u64)>;
}

/// Why a queue is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// The device says so.
    Verbs(String),
    /// The device is gone; its name.
    Gone(String),
    /// The controller broke the rules of NVMe over RDMA.
    Breach(Breach),
}

/// How a look at what came ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nothing is left, and the next completion wakes.
    Armed,
    /// There may be more; others shall have their turn.
    More,
}

/// What a queue is made with.
#[derive(Clone)]
pub struct SessionConfig {
    /// Commands at a time.
    pub depth: u16,
    /// How memory of commands is registered.
    pub registering: Registering,
    /// That of all connections by the device.
    pub shelf: Arc<Shelf>,
    /// How long a send waits for a receive of the target's, which has one for each command.
    pub rnr_wait: Duration,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were posted to send.
    pub sends: u64,
    /// Times that completions were asked for.
    pub polls: u64,
    /// Data bytes that came.
    pub bytes_in: u64,
    /// Bytes of capsules, with the data in them.
    pub bytes_out: u64,
    /// Times that memory of commands was registered.
    pub registrations: u64,
    /// Windows for which there was no room, so that memory was registered command by command.
    pub windows_refused: u64,
    /// Writes whose data went in their capsule.
    pub in_capsule: u64,
}

/// Memory of a command that the controller, or our device, may use.
struct Given {
    lease: Lease,
    /// Bytes that come by it.
    bytes_in: u64,
}

/// See the module documentation. The fields are in the order in which they must go: the queue pair, what is registered, the queue of completions.
pub struct Session {
    qp: Box<dyn Qp>,
    /// The memory of commands, by their place.
    leases: Vec<Option<Given>>,
    registrations: Registrations,
    capsules: Slots,
    responses: Slots,
    pd: Arc<dyn Pd>,
    cq: Arc<dyn Cq>,
    device: Arc<dyn Device>,
    queue: HostQueue,
    ends: VecDeque<End>,
    key_end: KeyEnd,
    /// Bytes of a write that go in its capsule at most.
    capsule_data_bytes: u32,
    /// Requests without their completion.
    outstanding: usize,
    batch: Vec<Wc>,
    tally: Tally,
}

impl Session {
    /// A queue that is not connected yet, with all its receives posted.
    ///
    /// # Errors
    /// Those of the device: `ResourceLimit`, `NoDevice`.
    pub fn new(device: &Arc<dyn Device>, wake: Arc<dyn Wake>, config: SessionConfig) -> Result<Self, Error> {
        let SessionConfig { depth, registering, shelf, rnr_wait } = config;
        let pd = device.alloc_pd()?;
        // A send and a receive for each command.
        let cq = device.create_cq(2 * u32::from(depth), wake)?;
        let (send_cq, recv_cq, wr_max) = (Arc::clone(&cq), Arc::clone(&cq), u32::from(depth));
        let qp = pd.create_qp(QpConfig { send_cq, recv_cq, send_wr_max: wr_max, recv_wr_max: wr_max, rnr_wait })?;
        // What is kept is not to be invalidated.
        let invalidates = device.facts().remote_invalidate == Ability::Yes && registering == Registering::PerCommand;
        let mut made = Self {
            qp,
            leases: (0..depth).map(|_| None).collect(),
            capsules: shelf.with_room(|| Slots::new(&*pd, u64::from(depth) * COMMAND_BYTES as u64))?,
            responses: shelf.with_room(|| Slots::new(&*pd, u64::from(depth) * RESPONSE_BYTES as u64))?,
            registrations: Registrations::new(registering, shelf, device.facts().mr_bytes_max),
            pd,
            cq,
            device: Arc::clone(device),
            queue: HostQueue::new(depth),
            ends: VecDeque::with_capacity(depth.into()),
            key_end: if invalidates { KeyEnd::Invalidated } else { KeyEnd::Kept },
            capsule_data_bytes: 0,
            outstanding: 0,
            batch: Vec::with_capacity(BATCH),
            tally: Tally::default(),
        };
        for place in 0..u64::from(depth) {
            made.post_receive(place).map_err(|over| {
                let (kind, text) = match over {
                    Over::Gone(name) => (ErrorKind::NoDevice, format!("the RDMA device {name} is gone")),
                    Over::Verbs(text) => (ErrorKind::Io, text),
                    Over::Breach(breach) => (ErrorKind::Protocol, breach.to_string()),
                };
                Error::new(kind, Verb::Open).at("rdma").detail(text)
            })?;
        }
        Ok(made)
    }

    /// The queue pair, to be connected.
    pub fn qp(&mut self) -> &mut dyn Qp {
        &mut *self.qp
    }

    /// The commands.
    pub fn queue(&mut self) -> &mut HostQueue {
        &mut self.queue
    }

    /// The same, to look at.
    pub fn commands(&self) -> &HostQueue {
        &self.queue
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        let (registrations, windows_refused) = (self.registrations.made, self.registrations.refused);
        Tally { registrations, windows_refused, ..self.tally }
    }

    /// From now on writes of so many bytes at most go in their capsule, if the device sends a message of two pieces: IOCCSZ, where ICDOFF is 0.
    pub fn set_capsule_data_bytes(&mut self, bytes: u32) {
        self.capsule_data_bytes = if self.device.facts().sge_max > 1 { bytes } else { 0 };
    }

    /// The next command that ended. Its memory is not in use by anybody any more.
    pub fn pop_end(&mut self) -> Option<End> {
        self.collect();
        self.ends.pop_front()
    }

    /// Sends the capsules of the commands that have none yet. Those whose memory cannot be registered for want of room wait for the next call.
    ///
    /// # Errors
    /// [`Over`].
    pub fn send(&mut self, windows: &impl Windows) -> Result<(), Over> {
        while let Some(next) = self.queue.next() {
            let (data, piece) = match self.register(&next, windows) {
                Ok(data) => data,
                // Others give back theirs, of this connection or of another one: it is tried again with each look, and is late at last.
                Err(error) if error.kind() == ErrorKind::ResourceLimit => return Ok(()),
                Err(error) => return Err(self.over(error.to_string())),
            };
            let at = u64::from(next.place) * COMMAND_BYTES as u64;
            let gather = self.capsules.mr.sge(at, 64).map(Gather::of);
            let gather = gather.and_then(|capsule| piece.map_or(Some(capsule), |piece| capsule.and(piece)));
            let (Some(raw), Some(memory)) = (self.queue.capsule(data), gather) else {
                return Err(Over::Verbs("a command does not fit its memory".to_owned()));
            };
            // Inside: a place is below the depth.
            let _ = self.capsules.span.write(at, &raw);
            let wr = SendWr { wr_id: next.cid.into(), op: SendOp::Send, memory };
            self.qp.post_send(wr).map_err(|error| self.refused(error))?;
            self.outstanding += 1;
            self.tally.sends += 1;
            self.tally.in_capsule += u64::from(piece.is_some());
            self.tally.bytes_out += memory.bytes();
        }
        Ok(())
    }

    /// Gives the controller the memory of a command, for what it does with it and nothing else; or our own device, if its data goes in the capsule.
    fn register(
        &mut self,
        next: &Next,
        windows: &impl Windows,
    ) -> Result<(Source, Option<sw_engine::seam::verbs::Sge>), Error> {
        let (bytes, direction) = match next.transfer {
            Transfer::None | Transfer::In(0) | Transfer::Out(0) => return Ok((Source::Nothing, None)),
            Transfer::In(bytes) => (bytes, Direction::In),
            Transfer::Out(bytes) => (bytes, Direction::Out),
        };
        let window = windows.window(Range { user: next.user, at: 0, bytes });
        let lost = || Error::new(ErrorKind::NotRegistered, Verb::Setup).at("rdma");
        let (region, at) =
            window.ok_or_else(|| lost().detail("the memory of a command is in no region that is attached"))?;
        let lease = self.registrations.lease(&*self.pd, (&region, at, bytes), direction)?;
        let (remote, local) = (lease.at(), lease.sge());
        if let Some(given) = self.leases.get_mut(usize::from(next.place)) {
            let bytes_in = if direction == Direction::In { bytes.into() } else { 0 };
            *given = Some(Given { lease, bytes_in });
        }
        if direction == Direction::Out && bytes <= self.capsule_data_bytes {
            return Ok((Source::Behind(bytes), Some(local)));
        }
        Ok((Source::Keyed(Keyed { at: remote, bytes, end: self.key_end }), None))
    }

    fn post_receive(&mut self, place: u64) -> Result<(), Over> {
        let lost = || Over::Verbs("a receive has no memory".to_owned());
        let sge = self.responses.mr.sge(place * RESPONSE_BYTES as u64, 16).ok_or_else(lost)?;
        self.qp.post_recv(RecvWr { wr_id: place, sge }).map_err(|error| self.refused(error))?;
        self.outstanding += 1;
        Ok(())
    }

    /// Takes what came, a bounded number of times, and asks to be woken by the next.
    ///
    /// # Errors
    /// [`Over`].
    pub fn receive(&mut self) -> Result<Looked, Over> {
        let mut is_armed = false;
        for _ in 0..BATCHES_MAX {
            self.batch.clear();
            self.tally.polls += 1;
            let found = self.cq.poll(&mut self.batch);
            // All of them, also those behind one that ends the queue: else their flush would be waited for.
            self.outstanding = self.outstanding.saturating_sub(found);
            if found == 0 {
                if is_armed {
                    return Ok(Looked::Armed);
                }
                // Armed first, then looked again: see the seam.
                self.cq.arm().map_err(|error| self.over(error.to_string()))?;
                is_armed = true;
                continue;
            }
            let batch = core::mem::take(&mut self.batch);
            // All of them: behind one that ends the queue there may be answers, and what was answered is not of unknown outcome. The first one tells
            // why it is over.
            let mut taken = Ok(());
            for wc in &batch {
                taken = taken.and(self.completed(wc));
            }
            self.batch = batch;
            self.collect();
            taken?;
        }
        Ok(Looked::More)
    }

    fn completed(&mut self, wc: &Wc) -> Result<(), Over> {
        if wc.status != WcStatus::Success {
            return Err(self.over(wc.status.to_string()));
        }
        match wc.kind {
            WcKind::Send => {
                let breach = Breach { rule: "a completion for a send that is not under way" };
                let cid = u16::try_from(wc.wr_id).map_err(|_| Over::Breach(breach))?;
                self.queue.sent(cid).map_err(Over::Breach)
            }
            WcKind::Recv => {
                let mut raw = [0; RESPONSE_BYTES];
                let bytes = sw_mem::index(wc.byte_len.into()).min(raw.len());
                let raw = raw.get_mut(..bytes).unwrap_or_default();
                // Copied once, and decided on the copy. A place that there is not is none of ours.
                let at = wc.wr_id.saturating_mul(RESPONSE_BYTES as u64);
                let copied = self.responses.span.read(at, raw);
                copied.map_err(|_| Over::Breach(Breach { rule: "a completion for a receive that is not posted" }))?;
                self.queue.response(raw, wc.invalidated).map_err(Over::Breach)?;
                self.post_receive(wc.wr_id)
            }
            WcKind::RdmaRead | WcKind::RdmaWrite => {
                Err(Over::Breach(Breach { rule: "a completion of something that was not posted" }))
            }
        }
    }

    /// Ends the leases of commands that are over, then tells their ends.
    fn collect(&mut self) {
        while let Some(over) = self.queue.pop_end() {
            let lease = over.place.and_then(|place| self.leases.get_mut(usize::from(place)));
            if let Some(Given { lease, bytes_in }) = lease.and_then(Option::take) {
                lease.end();
                let has_come = matches!(over.end.outcome, Outcome::Told(status) if status.is_success());
                self.tally.bytes_in += if has_come { bytes_in } else { 0 };
            }
            self.ends.push_back(over.end);
        }
    }

    fn refused(&self, error: PostError) -> Over {
        self.over(error.to_string())
    }

    /// What ended it, in the words of whoever saw it first.
    fn over(&self, what: String) -> Over {
        if self.device.presence() == Presence::Gone {
            return Over::Gone(self.device.facts().name.clone());
        }
        Over::Verbs(match self.qp.why() {
            Some(why) if !why.contains(&what) => format!("{what}; {why}"),
            _ => what,
        })
    }

    /// Ends the connection: the queue pair goes into error.
    pub fn disconnect(&mut self) {
        self.qp.to_error();
    }

    /// Takes what is flushed, and asks to be woken by more of it; whether nothing is outstanding, or nothing will come any more.
    pub fn drain(&mut self) -> bool {
        if self.device.presence() == Presence::Gone {
            return true;
        }
        // A device flushes by itself, and tells nobody who did not ask.
        self.take_flushed();
        if self.outstanding > 0 && self.cq.arm().is_err() {
            return true;
        }
        self.take_flushed();
        self.outstanding == 0
    }

    fn take_flushed(&mut self) {
        for _ in 0..=self.outstanding.div_ceil(BATCH) {
            self.batch.clear();
            let found = self.cq.poll(&mut self.batch);
            self.outstanding = self.outstanding.saturating_sub(found);
        }
    }

    /// Deregisters all memory of commands; whether that of those without an answer is free, all of it. The last step, behind [`Session::drain`].
    pub fn release(&mut self) -> Memory {
        let under_way = self.leases.iter_mut().filter_map(|given| Some(given.take()?.lease));
        self.registrations.end(under_way)
    }

    /// A region is let go of.
    pub fn region_gone(&mut self, region: RegionId) {
        self.registrations.region_gone(region);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
