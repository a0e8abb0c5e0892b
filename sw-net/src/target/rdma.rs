//! The controller's end of one connection over RDMA: capsules in, the host's memory read and written by key, responses out.
//!
//! ```text
//!   receive ─► check ─┬─ data of the host's: RDMA READ … ─► carry out ─┬─► SEND of the response
//!                     └─ else ────────────────────────────► carry out ─┴─ data for the host: RDMA WRITE, then the SEND: it cannot pass the write
//! ```
//!
//! One command at a time, as over TCP. What is carried out, and by which rules, is one for both wires (`connection`, `session`, `io`, `admin`).
//! Of the faults those that are no unit's of TCP can be had: drops, delays, silence, statuses, wrong identifiers.

use std::{collections::VecDeque, sync::Arc, thread::JoinHandle, time::Duration, time::Instant};

use sw_engine::{
    Error, ErrorKind,
    seam::{
        Wake,
        verbs::{
            Ability, Cq, Device, Incoming, Listener, Pd, PrivateData, Qp, QpConfig, RecvWr, RemoteKey, SendOp, SendWr,
            Wc, WcKind, WcStatus,
        },
    },
};
use sw_mem::RemoteAddr;
use sw_nvme::{
    fabrics::{Demand, FabricsCommand},
    rdma::{
        capsule::{self, COMMAND_BYTES, Descriptor, KeyEnd, Keyed, RESPONSE_BYTES},
        cm::{Accept, Refused, Request},
        session::Slots,
    },
    status::Status,
    wire::Command,
};

use crate::{carrier::HangUp, relay::Relay};

use super::{
    Fault,
    connection::Outcome,
    io::Out,
    listen::{Shared, join},
    session::Session,
    subsystem::{Answer, add, says},
    wire::{WRITE_TIMEOUT, length, now},
};

/// How often the listener looks whether it shall end.
const LISTEN_STEP: Duration = Duration::from_millis(100);
/// How long a host's wish for a queue may take to come, behind its connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Completions that are taken in one call.
const BATCH: usize = 32;
/// Sends, writes and reads under way at a time: one command has a write and a response, and there is one command.
const SENDS_MAX: u32 = 4;

/// Why a connection ends.
enum Over {
    /// The host's end is gone, or its queue pair is over.
    Closed,
    /// It did nothing for too long.
    Silent,
    /// A fault on purpose.
    Fault,
    /// The host broke a rule of the transport.
    Breach(&'static str),
}

/// Takes connections until the target is stopped.
pub(super) fn listen(listener: &mut dyn Listener, device: &Arc<dyn Device>, shared: &Arc<Shared>) {
    let local = listener.address().parse().ok();
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !shared.is_stopping() {
        let (over, running): (Vec<_>, Vec<_>) = threads.into_iter().partition(JoinHandle::is_finished);
        threads = running;
        join(over);
        match listener.accept(LISTEN_STEP) {
            Ok(None) => {}
            Ok(Some(incoming)) => {
                let (relay, device) = (Arc::new(Relay::default()), Arc::clone(device));
                threads.extend(shared.begin((0, HangUp::Rdma(Arc::clone(&relay))), move |shared, number| {
                    let session = Session::new(shared, number, (0, local));
                    if let Err(error) = serve(session, &*device, (incoming, relay)) {
                        tracing::debug!(connection = number, %error, "a connection over RDMA was not made");
                    }
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "the target gets no connection from the device");
                // A relay that nobody tells: a pause.
                Relay::default().wait(Some(now() + LISTEN_STEP));
            }
        }
    }
    join(threads);
}

/// Accepts a wish, and speaks until the connection ends.
fn serve(
    session: Session<'_>,
    device: &dyn Device,
    (mut incoming, relay): (Box<dyn Incoming>, Arc<Relay>),
) -> Result<(), Error> {
    let asked = asked(&mut *incoming, &relay)?;
    let request = match judged(&session, asked.as_bytes()) {
        Ok(request) => request,
        Err(why) => {
            incoming.reject(&PrivateData::new(&why.encode()).unwrap_or(PrivateData::empty()));
            return Ok(());
        }
    };
    let mut connection = Connection::new(session, device, request, relay)?;
    let accept = Accept { receive_entries: request.send_entries };
    connection.qp.accept(incoming, &PrivateData::new(&accept.encode()).unwrap_or(PrivateData::empty()))?;
    connection.talk();
    Ok(())
}

/// The wish for a queue; the end of the target's is seen meanwhile.
fn asked(incoming: &mut dyn Incoming, relay: &Relay) -> Result<PrivateData, Error> {
    let until = now() + REQUEST_TIMEOUT;
    loop {
        match incoming.request(LISTEN_STEP) {
            Err(error) if error.kind() == ErrorKind::DeadlineExceeded && !relay.is_ended() && now() < until => {}
            asked => return asked,
        }
    }
}

/// Whether a wish for a queue can be met.
fn judged(session: &Session<'_>, raw: &[u8]) -> Result<Request, Refused> {
    let request = Request::decode(raw)?;
    let config = session.config();
    if request.qid > config.queues_max {
        return Err(Refused::QUEUE);
    }
    if request.send_entries < 2 || request.send_entries > config.queue_entries {
        return Err(Refused::SEND_SIZE);
    }
    Ok(request)
}

/// See the module documentation. The fields are in the order in which they must go.
struct Connection<'a> {
    qp: Box<dyn Qp>,
    capsules: Slots,
    /// Bytes of a place for a capsule: a command, and data behind it on an I/O queue.
    capsule_bytes: u32,
    responses: Slots,
    /// Data of the command that is carried out.
    staging: Slots,
    cq: Arc<dyn Cq>,
    relay: Arc<Relay>,
    session: Session<'a>,
    request: Request,
    invalidates: Ability,
    arrived: VecDeque<Wc>,
    /// Sends, writes and reads without their completion.
    outstanding: u32,
    deadline: Option<Instant>,
    batch: Vec<Wc>,
    out: Out,
}

impl<'a> Connection<'a> {
    fn new(session: Session<'a>, device: &dyn Device, request: Request, relay: Arc<Relay>) -> Result<Self, Error> {
        let entries = u32::from(request.send_entries);
        let pd = device.alloc_pd()?;
        let cq = device.create_cq(entries + SENDS_MAX, Arc::clone(&relay) as Arc<dyn Wake>)?;
        let qp = pd.create_qp(QpConfig {
            send_cq: Arc::clone(&cq),
            recv_cq: Arc::clone(&cq),
            send_wr_max: SENDS_MAX,
            recv_wr_max: entries,
            rnr_wait: REQUEST_TIMEOUT,
        })?;
        let pd: &dyn Pd = &*pd;
        let config = session.config();
        let data_bytes = if request.qid == 0 { 0 } else { config.capsule_data_bytes };
        let capsule_bytes = length(COMMAND_BYTES) + data_bytes;
        let mut made = Self {
            qp,
            capsules: Slots::new(pd, u64::from(entries) * u64::from(capsule_bytes))?,
            capsule_bytes,
            responses: Slots::new(pd, RESPONSE_BYTES as u64)?,
            staging: Slots::new(pd, config.transfer_bytes().max(4096).into())?,
            cq,
            relay,
            deadline: Some(now() + config.connect_timeout),
            session,
            request,
            invalidates: device.facts().remote_invalidate,
            arrived: VecDeque::with_capacity(BATCH),
            outstanding: 0,
            batch: Vec::with_capacity(BATCH),
            out: Out::default(),
        };
        for place in 0..u64::from(entries) {
            // There is room for all: the queue was made for them.
            let _ = made.post_receive(place);
        }
        Ok(made)
    }

    fn post_receive(&mut self, place: u64) -> Result<(), Over> {
        let bytes = self.capsule_bytes;
        let sge = self.capsules.mr.sge(place * u64::from(bytes), bytes).ok_or(Over::Closed)?;
        self.qp.post_recv(RecvWr { wr_id: place, sge }).map_err(|_| Over::Closed)
    }

    fn talk(&mut self) {
        let over = loop {
            let done = self.next().and_then(|wc| self.capsule(&wc));
            if let Err(over) = done {
                break over;
            }
        };
        let (number, tally) = (self.session.number, &self.session.shared.subsystem.tally);
        match over {
            Over::Breach(rule) => {
                add(&tally.terminations, 1);
                tracing::debug!(connection = number, rule, "the host broke the protocol");
            }
            Over::Silent if self.session.gate.demand() != Demand::None => add(&tally.authentication_failed, 1),
            Over::Silent if self.session.joined.is_some() => {
                add(&tally.keep_alive_expired, 1);
                tracing::debug!(connection = number, "the host is silent past its keep-alive");
            }
            Over::Silent | Over::Closed | Over::Fault => {}
        }
        self.qp.to_error();
    }

    /// The next capsule; waits for it.
    fn next(&mut self) -> Result<Wc, Over> {
        loop {
            if self.relay.is_ended() {
                return Err(Over::Closed);
            }
            if let Some(wc) = self.arrived.pop_front() {
                return Ok(wc);
            }
            let deadline = self.deadline;
            self.wait(deadline)?;
        }
    }

    /// Takes completions, or waits for some.
    fn wait(&mut self, until: Option<Instant>) -> Result<(), Over> {
        // Armed first, then looked: see the seam.
        self.cq.arm().map_err(|_| Over::Closed)?;
        self.batch.clear();
        if self.cq.poll(&mut self.batch) == 0 {
            let is_in_time = self.relay.wait(until);
            if self.relay.is_ended() {
                return Err(Over::Closed);
            }
            return if is_in_time { Ok(()) } else { Err(Over::Silent) };
        }
        for wc in &self.batch {
            match (wc.status, wc.kind) {
                (WcStatus::Success, WcKind::Recv) => self.arrived.push_back(*wc),
                (WcStatus::Success, _) => self.outstanding = self.outstanding.saturating_sub(1),
                _ => return Err(Over::Closed),
            }
        }
        Ok(())
    }

    /// Posts something and waits for the completions of all that was posted.
    fn post(&mut self, op: SendOp, sge: Option<sw_engine::seam::verbs::Sge>) -> Result<(), Over> {
        self.qp.post_send(SendWr { wr_id: 0, op, memory: sge.into() }).map_err(|_| Over::Closed)?;
        self.outstanding += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Over> {
        let until = Some(now() + WRITE_TIMEOUT);
        while self.outstanding > 0 {
            self.wait(until)?;
        }
        Ok(())
    }

    /// A capsule is here: its fault is decided.
    fn capsule(&mut self, wc: &Wc) -> Result<(), Over> {
        let mut raw = vec![0; sw_mem::index(wc.byte_len.min(self.capsule_bytes).into())];
        // A place that there is not is none of ours; copied once, and decided on the copy.
        let copied = self.capsules.span.read(wc.wr_id.saturating_mul(self.capsule_bytes.into()), &mut raw);
        let Some((command, data)) = capsule::decode(&raw).filter(|_| copied.is_ok()) else {
            return Err(Over::Breach("a capsule that is no command of 64 bytes"));
        };
        self.post_receive(wc.wr_id)?;
        if let Some(FabricsCommand::Connect { queue, .. }) = FabricsCommand::decode(&command)
            && queue.qid != self.request.qid
        {
            return Err(Over::Breach("another queue is connected than was asked for"));
        }
        let seen = self.session.came(&command);
        let fault = self.session.config().faults.as_ref().and_then(|faults| faults.command(&seen));
        match fault {
            Some(Fault::DropBefore) => return Err(Over::Fault),
            Some(Fault::NeverAnswer | Fault::HalfClose) => return Ok(()),
            Some(Fault::Delay(by)) => {
                // Completions that come meanwhile are taken afterwards; the end of the target's is seen at once.
                let due = now() + by;
                while self.relay.wait(Some(due)) {
                    if self.relay.is_ended() {
                        return Err(Over::Closed);
                    }
                }
            }
            _ => {}
        }
        self.run((&command, data), fault)?;
        match fault {
            Some(Fault::DropAfter | Fault::DropAfterUnit) => Err(Over::Fault),
            _ => Ok(()),
        }
    }

    /// Carries a command out and answers it.
    fn run(&mut self, (command, carried): (&Command, &[u8]), fault: Option<Fault>) -> Result<(), Over> {
        let mut out = core::mem::take(&mut self.out);
        let (outcome, memory) = match (fault, self.check(command, carried.len())) {
            (Some(Fault::Status(status)), checked) => {
                (Outcome::Answer(status.into()), checked.ok().and_then(|(it, _)| it))
            }
            (_, Err(status)) => (Outcome::Answer(status.into()), None),
            (_, Ok((None, 1..))) => (self.session.execute(command, carried, (&mut out, 0)), None),
            (_, Ok((memory, wanted))) => {
                let data = self.fetch(memory.filter(|_| wanted > 0), wanted)?;
                let room = memory.map_or(0, |keyed| keyed.bytes);
                (self.session.execute(command, &data, (&mut out, room)), memory)
            }
        };
        let (answer, is_last) = match outcome {
            Outcome::Held => (None, false),
            Outcome::Answer(answer) => (Some(answer), false),
            Outcome::Farewell(answer) => (Some(answer), true),
        };
        if let Some(answer) = answer {
            let cid = if fault == Some(Fault::UnknownCid) { !command.cid() } else { command.cid() };
            self.answer((cid, answer), memory, &out)?;
            self.session.settle().map_err(|_| Over::Closed)?;
        }
        if let Some(deadline) = self.session.timer.take() {
            self.deadline = deadline;
        }
        out.clear();
        self.out = out;
        if is_last { Err(Over::Closed) } else { Ok(()) }
    }

    /// Checks all of a command that can be before it is carried out: the host's memory, and how many bytes of it the command takes; without any,
    /// how many of those that came in its capsule, which are `carried`.
    fn check(&self, command: &Command, carried: usize) -> Result<(Option<Keyed>, u32), Status> {
        // FUSE: no fused commands.
        if !capsule::has_sgl(command) || command.bytes()[1] & 3 != 0 {
            return Err(says::INVALID_FIELD);
        }
        if self.session.held.contains(&command.cid()) {
            return Err(says::CID_CONFLICT);
        }
        let fabrics = FabricsCommand::decode(command);
        self.session.may_come(fabrics.as_ref())?;
        let (memory, behind) = match capsule::descriptor(command) {
            Descriptor::Nothing => (None, 0),
            Descriptor::Keyed(keyed) => (Some(keyed), 0),
            Descriptor::InCapsule { at: 0, bytes } => (None, bytes),
            Descriptor::InCapsule { .. } | Descriptor::Other(_) => return Err(says::DESCRIPTOR),
        };
        // What came is what is named, and nothing else.
        if sw_mem::index(behind.into()) != carried {
            return Err(says::DATA_LENGTH);
        }
        // Bits 1:0 of the opcode, or of the type: 01b to the controller, 10b to the host.
        let direction = if fabrics.is_some() { command.bytes()[4] } else { command.opcode() } & 3;
        if direction != 1 {
            return if behind > 0 { Err(says::DESCRIPTOR) } else { Ok((memory, 0)) };
        }
        let wants = self.session.wants(command, fabrics.as_ref())?;
        let bytes = memory.map_or(behind, |keyed| keyed.bytes);
        match *wants.end() {
            0 if behind > 0 => Err(says::DATA_LENGTH),
            0 => Ok((memory, 0)),
            // No more than there is room for.
            _ if wants.contains(&bytes) && u64::from(bytes) <= self.staging.span.len().0 => Ok((memory, bytes)),
            _ => Err(says::DATA_LENGTH),
        }
    }

    /// Reads the host's memory.
    fn fetch(&mut self, memory: Option<Keyed>, bytes: u32) -> Result<Vec<u8>, Over> {
        let Some(keyed) = memory else { return Ok(Vec::new()) };
        let sge = self.staging.mr.sge(0, bytes).ok_or(Over::Closed)?;
        self.post(SendOp::RdmaRead(keyed.at), Some(sge))?;
        self.settle()?;
        let mut data = vec![0; sw_mem::index(bytes.into())];
        // As long as was read.
        let _ = self.staging.span.read(0, &mut data);
        Ok(data)
    }

    /// Writes data into the host's memory, if there is some, and sends the answer behind it.
    fn answer(&mut self, (cid, answer): (u16, Answer), memory: Option<Keyed>, out: &Out) -> Result<(), Over> {
        if let Some(Keyed { at, bytes, .. }) = memory
            && answer.status.is_success()
            && out.len() > 0
        {
            // What is carried out gives no more than there is room for; and never is more written than the host has given.
            let bytes = sw_mem::index(bytes.into()).min(out.len());
            let sge = self.staging.mr.sge(0, length(bytes)).ok_or(Over::Closed)?;
            let mut staged = 0;
            for part in out.parts(0, bytes) {
                let _ = self.staging.span.write(staged, part);
                staged += part.len() as u64;
            }
            self.post(SendOp::RdmaWrite(RemoteAddr::new(at.addr, at.rkey())), Some(sge))?;
        }
        let completion = self.session.completion(cid, answer);
        let _ = self.responses.span.write(0, completion.bytes());
        let sge = self.responses.mr.sge(0, 16);
        let key = memory.filter(|keyed| keyed.end == KeyEnd::Invalidated && self.invalidates == Ability::Yes);
        let op = key.map_or(SendOp::Send, |keyed| SendOp::SendWithInvalidate(RemoteKey(keyed.at.rkey())));
        self.post(op, sge)?;
        self.settle()
    }
}
