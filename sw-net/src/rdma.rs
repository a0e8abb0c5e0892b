//! One queue over one RDMA connection: moves capsules between a queue pair and the memory of commands.
//!
//! ```text
//!   HostQueue ─► command ─► [a lease of its memory] ─► capsule with address and rkey ─► SEND
//!   (the peer's NIC reads and writes that memory) … receive ─► HostQueue ─► [the lease ends] ─► end
//! ```
//!
//! A lease is of a registration that is kept, or of one for this command and its direction alone, which is deregistered before its end is told
//! (`registrations`). Nothing is left of either when the connection is over.
//!
//! *Thread*: one at a time. Once it is [broken](Broken) it stays so; [`RdmaConnection::hang_up`] ends all access to memory.

use std::{collections::VecDeque, sync::Arc, time::Duration, time::Instant};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Ability, Access, Connected, Cq, Device, Mr, MrRequest, Pd, PrivateData, Qp, QpConfig, RecvWr, SendOp,
            SendWr, Wc, WcKind, WcStatus,
        },
    },
};
use sw_mem::{Buffer, ByteLen, DmaSpan, RegionId};
use sw_nvme::{
    rdma::{
        Breach,
        capsule::{COMMAND_BYTES, KeyEnd, Keyed, RESPONSE_BYTES},
        cm::{Accept, Refused, Request},
        host::{HostQueue, Next},
    },
    tcp::host::{End, Outcome, Range, Transfer},
};

use crate::{
    connection::{Broken, ConnectionCounters, Places},
    registrations::{Direction, Lease, Registering, Registrations, Shelf},
    relay::Relay,
    socket::left,
};

/// Completions that are taken in one call.
const BATCH: usize = 64;
/// Batches in a row, until others have their turn.
const BATCHES_MAX: usize = 16;
/// How long the last completions of a queue pair that was ended are waited for.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the registration of memory is tried again that was refused for want of room.
const REGISTER_STEP: Duration = Duration::from_millis(10);
/// How long a send waits for a receive of the target's, which has one for each command.
const RNR_WAIT: Duration = Duration::from_secs(5);

/// Memory of ours that is registered as long as the connection is.
pub(crate) struct Slots {
    // Deregistered before the memory goes.
    pub(crate) mr: Box<dyn Mr>,
    pub(crate) span: DmaSpan,
}

impl Slots {
    pub(crate) fn new(pd: &dyn Pd, bytes: u64) -> Result<Self, Error> {
        let buffer = Buffer::allocate(ByteLen(bytes)).map_err(|cause| {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Open).at("rdma");
            limit.detail("no memory for capsules").caused_by(cause)
        })?;
        let span = buffer.into_span();
        let memory = MrRequest { region: span.region(), at: span.offset(), len: bytes, access: Access::LOCAL_WRITE };
        Ok(Self { mr: pd.reg_mr(memory)?, span })
    }
}

/// Memory of a command that the controller may use.
struct Given {
    lease: Lease,
    /// Bytes that come by it.
    bytes_in: u64,
}

/// By which device, and how memory is registered.
#[derive(Clone)]
pub struct RdmaWay {
    /// The device.
    pub device: Arc<dyn Device>,
    /// How the memory of commands is registered.
    pub registering: Registering,
    /// That of all connections by the device.
    pub shelf: Arc<Shelf>,
}

/// What a connection is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RdmaConfig {
    /// QID.
    pub(crate) qid: u16,
    /// CNTLID of an I/O queue's controller, 0 for the admin queue.
    pub(crate) controller: u16,
    /// Commands at a time.
    pub(crate) depth: u16,
}

/// See the module documentation. The fields are in the order in which they must go: the queue pair, what is registered, the queue of completions.
pub(crate) struct RdmaConnection {
    qp: Box<dyn Qp>,
    /// The memory of commands, by their place.
    leases: Vec<Option<Given>>,
    registrations: Registrations,
    capsules: Slots,
    responses: Slots,
    pd: Arc<dyn Pd>,
    cq: Arc<dyn Cq>,
    queue: HostQueue,
    ends: VecDeque<End>,
    relay: Arc<Relay>,
    key_end: KeyEnd,
    /// Requests without their completion.
    outstanding: usize,
    batch: Vec<Wc>,
    pub(crate) counters: ConnectionCounters,
}

impl RdmaConnection {
    /// Connects, with all receives posted before.
    ///
    /// # Errors
    /// As [`Qp::connect`]; `Busy` or `Protocol` for a refusal; `ResourceLimit`.
    pub(crate) fn open(way: &RdmaWay, to: &str, config: RdmaConfig, until: Instant) -> Result<Self, Error> {
        let RdmaConfig { qid, controller, depth } = config;
        let device = &way.device;
        let relay = Arc::new(Relay::default());
        let pd = device.alloc_pd()?;
        // A send and a receive for each command.
        let cq = device.create_cq(2 * u32::from(depth), Arc::clone(&relay) as Arc<dyn Wake>)?;
        let wr_max = u32::from(depth);
        let qp = pd.create_qp(QpConfig {
            send_cq: Arc::clone(&cq),
            recv_cq: Arc::clone(&cq),
            send_wr_max: wr_max,
            recv_wr_max: wr_max,
            rnr_wait: RNR_WAIT,
        })?;
        // What is kept is not to be invalidated.
        let invalidates =
            device.facts().remote_invalidate == Ability::Yes && way.registering == Registering::PerCommand;
        let mut made = Self {
            qp,
            leases: (0..depth).map(|_| None).collect(),
            registrations: Registrations::new(way.registering, Arc::clone(&way.shelf)),
            capsules: way.shelf.with_room(|| Slots::new(&*pd, u64::from(depth) * COMMAND_BYTES as u64))?,
            responses: way.shelf.with_room(|| Slots::new(&*pd, u64::from(depth) * RESPONSE_BYTES as u64))?,
            pd,
            cq,
            queue: HostQueue::new(depth),
            ends: VecDeque::with_capacity(depth.into()),
            relay,
            key_end: if invalidates { KeyEnd::Invalidated } else { KeyEnd::Kept },
            outstanding: 0,
            batch: Vec::with_capacity(BATCH),
            counters: ConnectionCounters::default(),
        };
        for place in 0..u64::from(depth) {
            made.post_receive(place).map_err(|broken| broken.refusal(to))?;
        }
        // Commands under way need a receive each, and there is always room for one more.
        let entries = depth.saturating_add(1);
        let wish = Request { qid, receive_entries: entries, send_entries: entries, controller };
        let private = PrivateData::new(&wish.encode()).unwrap_or(PrivateData::empty());
        match made.qp.connect(to, &private, left(until).unwrap_or_default())? {
            Connected::Rejected(why) => Err(refused(to, Refused::decode(why.as_bytes()))),
            Connected::Accepted(answer) => {
                let accept = Accept::decode(answer.as_bytes()).map_err(|error| {
                    let error = Error::new(ErrorKind::Protocol, Verb::Open).at(to).detail(error.to_string());
                    error.remedy("report it to whoever makes the target")
                })?;
                if accept.receive_entries < depth {
                    let text = format!(
                        "the target has {} places for commands, {depth} were asked for",
                        accept.receive_entries
                    );
                    return Err(Error::new(ErrorKind::Protocol, Verb::Open).at(to).detail(text));
                }
                Ok(made)
            }
        }
    }

    fn post_receive(&mut self, place: u64) -> Result<(), Broken> {
        let bytes = RESPONSE_BYTES as u64;
        let sge = self.responses.mr.sge(place * bytes, 16).ok_or(Broken::Closed)?;
        self.qp.post_recv(RecvWr { wr_id: place, sge }).map_err(|error| Broken::Verbs(error.to_string()))?;
        self.outstanding += 1;
        Ok(())
    }

    pub(crate) fn queue(&mut self) -> &mut HostQueue {
        &mut self.queue
    }

    /// Whether no byte of a command went out.
    pub(crate) fn is_unsent(&self, cid: u16) -> bool {
        self.queue.is_unsent(cid)
    }

    pub(crate) fn pop_end(&mut self) -> Option<End> {
        self.collect();
        self.ends.pop_front()
    }

    /// What ends a wait of another thread, and the connection with it.
    pub(crate) fn relay(&self) -> Arc<Relay> {
        Arc::clone(&self.relay)
    }

    /// Sends the capsules of the commands that have none yet.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn send(&mut self, places: &impl Places) -> Result<(), Broken> {
        while let Some(next) = self.queue.next() {
            let memory = match self.register(&next, places) {
                Ok(memory) => memory,
                // Others give back theirs, of this connection or of another one: it is tried again with each look, and is late at last.
                Err(error) if error.kind() == ErrorKind::ResourceLimit => return Ok(()),
                Err(error) => return Err(Broken::Verbs(error.to_string())),
            };
            let at = u64::from(next.place) * COMMAND_BYTES as u64;
            let sge = self.capsules.mr.sge(at, 64);
            let (Some(raw), Some(sge)) = (self.queue.capsule(memory), sge) else {
                return Err(Broken::Verbs("a command does not fit its memory".to_owned()));
            };
            // Inside: a place is below the depth.
            let _ = self.capsules.span.write(at, &raw);
            let wr = SendWr { wr_id: next.cid.into(), op: SendOp::Send, sge: Some(sge) };
            self.qp.post_send(wr).map_err(|error| self.broken(error.to_string()))?;
            self.outstanding += 1;
            self.counters.sends += 1;
            self.counters.bytes_out += raw.len() as u64;
        }
        Ok(())
    }

    /// Gives the controller the memory of a command, for what it does with it and nothing else.
    fn register(&mut self, next: &Next, places: &impl Places) -> Result<Option<Keyed>, Error> {
        let (bytes, direction) = match next.transfer {
            Transfer::None | Transfer::In(0) | Transfer::Out(0) => return Ok(None),
            Transfer::In(bytes) => (bytes, Direction::In),
            Transfer::Out(bytes) => (bytes, Direction::Out),
        };
        let window = places.window(Range { user: next.user, at: 0, bytes });
        let lost = || Error::new(ErrorKind::NotRegistered, Verb::Setup).at("rdma");
        let (region, at) =
            window.ok_or_else(|| lost().detail("the memory of a command is in no region that is attached"))?;
        let lease = self.registrations.lease(&*self.pd, (&region, at, bytes), direction)?;
        self.counters.registrations = self.registrations.made;
        let at = lease.at();
        if let Some(given) = self.leases.get_mut(usize::from(next.place)) {
            let bytes_in = if direction == Direction::In { bytes.into() } else { 0 };
            *given = Some(Given { lease, bytes_in });
        }
        Ok(Some(Keyed { at, bytes, end: self.key_end }))
    }

    /// Takes what came, a bounded number of times, and asks to be woken by the next.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn receive(&mut self) -> Result<(), Broken> {
        let mut is_armed = false;
        for _ in 0..BATCHES_MAX {
            self.batch.clear();
            self.counters.receives += 1;
            if self.cq.poll(&mut self.batch) == 0 {
                if is_armed {
                    return Ok(());
                }
                // Armed first, then looked again: see the seam.
                self.cq.arm().map_err(|error| Broken::Verbs(error.to_string()))?;
                is_armed = true;
                continue;
            }
            let batch = std::mem::take(&mut self.batch);
            let taken = batch.iter().try_for_each(|wc| self.completed(wc));
            self.batch = batch;
            self.collect();
            taken?;
        }
        // Somebody else's turn; it is woken again.
        self.relay.wake();
        Ok(())
    }

    fn completed(&mut self, wc: &Wc) -> Result<(), Broken> {
        self.outstanding = self.outstanding.saturating_sub(1);
        if wc.status != WcStatus::Success {
            return Err(self.broken(wc.status.to_string()));
        }
        match wc.kind {
            WcKind::Send => {
                let breach = Breach { rule: "a completion for a send that is not under way" };
                let cid = u16::try_from(wc.wr_id).map_err(|_| Broken::Rdma(breach))?;
                self.queue.sent(cid).map_err(Broken::Rdma)
            }
            WcKind::Recv => {
                let mut raw = [0; RESPONSE_BYTES];
                let bytes = sw_mem::index(wc.byte_len.into()).min(raw.len());
                let raw = raw.get_mut(..bytes).unwrap_or_default();
                // Copied once, and decided on the copy. A place that there is not is none of ours.
                let at = wc.wr_id.saturating_mul(RESPONSE_BYTES as u64);
                let copied = self.responses.span.read(at, raw);
                copied.map_err(|_| Broken::Rdma(Breach { rule: "a completion for a receive that is not posted" }))?;
                self.queue.response(raw, wc.invalidated).map_err(Broken::Rdma)?;
                self.post_receive(wc.wr_id)
            }
            WcKind::RdmaRead | WcKind::RdmaWrite => {
                Err(Broken::Rdma(Breach { rule: "a completion of something that was not posted" }))
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
                self.counters.bytes_in += if has_come { bytes_in } else { 0 };
            }
            self.ends.push_back(over.end);
        }
    }

    fn broken(&self, what: String) -> Broken {
        Broken::Verbs(match self.qp.why() {
            Some(why) if !why.contains(&what) => format!("{what}; {why}"),
            _ => what,
        })
    }

    /// Sends and receives until a command ends. For the control plane, which has nothing else to do.
    pub(crate) fn run(&mut self, places: &impl Places, until: Instant) -> (Result<(), Broken>, Option<End>) {
        loop {
            let moved = self.receive().and_then(|()| self.send(places));
            if let Some(end) = self.pop_end() {
                return (Ok(()), Some(end));
            }
            if let Err(broken) = moved {
                return (Err(broken), None);
            }
            if self.relay.is_ended() {
                return (Err(Broken::Closed), None);
            }
            // Nobody tells when there is memory to register again.
            let step = crate::admin::after(REGISTER_STEP);
            let next = if self.queue.has_capsules() { step.min(until) } else { until };
            if !self.relay.wait(Some(next)) && left(until).is_none() {
                return (Err(Broken::Silent), None);
            }
        }
    }

    /// Ends the connection. When this returns nothing of it reads or writes memory of commands any more: the queue pair is in error and
    /// drained as far as it would be, and all their memory is deregistered.
    pub(crate) fn hang_up(&mut self) {
        self.qp.to_error();
        let until = crate::admin::after(DRAIN);
        while self.outstanding > 0 {
            self.batch.clear();
            let found = self.cq.poll(&mut self.batch);
            self.outstanding = self.outstanding.saturating_sub(found);
            if found == 0 {
                // A NIC flushes by itself, and tells nobody who did not ask.
                if self.cq.arm().is_err() || left(until).is_none() {
                    break;
                }
                self.batch.clear();
                let found = self.cq.poll(&mut self.batch);
                self.outstanding = self.outstanding.saturating_sub(found);
                if found == 0 && !self.relay.wait(Some(until)) {
                    break;
                }
            }
        }
        self.leases.iter_mut().filter_map(Option::take).for_each(|given| given.lease.end());
        self.registrations.end();
    }

    /// A region is let go of.
    pub(crate) fn region_gone(&mut self, region: RegionId) {
        self.registrations.region_gone(region);
    }
}

impl Drop for RdmaConnection {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// Why a queue was refused.
fn refused(to: &str, why: Refused) -> Error {
    let kind = if why == Refused::RESOURCES { ErrorKind::Busy } else { ErrorKind::Protocol };
    Error::new(kind, Verb::Open)
        .at(to)
        .detail(format!("the target refused the connection: {why}"))
        .with_code(why.0.into())
        .remedy("see the target's log")
}
