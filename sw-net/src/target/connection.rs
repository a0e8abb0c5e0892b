//! The controller's end of one connection: units, commands, transfers, answers.
//!
//! ```text
//!   CapsuleCmd ─► arrived ─► (fault) ─► begin ─► check ─┬─► run ─► answer            no data, data in the capsule, data to the host
//!                               │                       └─► ask ─► R2T … H2CData ─► run ─► answer
//!                               └─► delayed ─► begin, when it is due
//! ```

use std::{
    collections::VecDeque,
    convert::Infallible,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use sw_nvme::{
    fabrics::{self, CONNECT_DATA_BYTES, ConnectData, Demand, FabricsCommand},
    status::Status,
    tcp::pdu::{
        self, ADMIN_CAPSULE_DATA_BYTES, Breach, DIGEST_BYTES, Data, Digests, FatalStatus, HEAD_BYTES_MAX, Header,
        INITIALIZE_BYTES, IcReq, IcResp, Kind, Layout, MAXH2C_MIN, R2t, flags,
    },
    wire::{Command, admin::opcode as admin_opcode, ccr::Instance, feature, regs},
};

use super::{
    Fault, InitializeFault, TRANSFERS_MAX, TargetConfig,
    admin::{self, Desk},
    gate::SEND_BYTES_MAX,
    io::{self, Out},
    listen::Shared,
    pages::EVENT_REQUESTS_MAX,
    secure::Wire,
    session::Session,
    subsystem::{Answer, Joined, add, says},
    wire::{Ahead, End, Input, LONG_BYTES, Output, Twist, breach, field, length, now, terminate},
};

/// SGL identifier: Transport Data Block, subtype Transport.
const TRANSPORT_BLOCK: u8 = 0x5A;
/// SGL identifier: Data Block, subtype Offset: the data lies in the capsule.
const IN_CAPSULE: u8 = 0x01;
/// The bits of a transfer tag that are an index of the transfers; the rest counts.
const TAG_INDEX_BITS: u32 = 2;
const _: () = assert!(TRANSFERS_MAX == 1 << TAG_INDEX_BITS, "a tag's low bits name one transfer");

/// How often it is looked for events while the host waits for some.
const EVENTS_EVERY: Duration = Duration::from_millis(50);

/// A command with what goes wrong with it.
#[derive(Clone, Copy)]
struct Job {
    command: Command,
    fault: Option<Fault>,
}

impl Job {
    /// The identifier that units for it name.
    fn cid(&self) -> u16 {
        let cid = self.command.cid();
        if self.fault == Some(Fault::UnknownCid) { !cid } else { cid }
    }
}

/// Data that came in the capsule of a command, and whether it fits its digest.
#[derive(Clone, Copy)]
struct Carried<'a> {
    bytes: &'a [u8],
    intact: bool,
}

struct Delayed {
    due: Instant,
    job: Job,
    bytes: Vec<u8>,
    intact: bool,
}

/// A write whose data is on its way.
struct Transfer {
    job: Job,
    tag: u16,
    buffer: Vec<u8>,
    /// Bytes that came; bytes that were asked for so far, this R2T included; bytes of all.
    have: u32,
    asked: u32,
    total: u32,
    intact: bool,
}

/// What a command needs before it is carried out.
enum Plan {
    Run,
    /// Its data lies in the capsule.
    Capsule,
    /// So many bytes must be asked for.
    Ask(u32),
}

/// What came of a command.
pub(super) enum Outcome {
    Answer(Answer),
    /// The answer comes with an event.
    Held,
    /// The answer, and the connection ends.
    Farewell(Answer),
}

/// See the module documentation.
pub(super) struct Connection<'a> {
    session: Session<'a>,
    input: Input<'a>,
    output: Output<'a>,
    transfers: [Option<Transfer>; TRANSFERS_MAX],
    transfers_begun: u16,
    spare: Vec<Vec<u8>>,
    /// Writes that wait for a place among the transfers, with their bytes.
    waiting: VecDeque<(Job, u32)>,
    delayed: Vec<Delayed>,
    capsule: Vec<u8>,
    out: Out,
}

impl<'a> Connection<'a> {
    pub(super) fn new(shared: &'a Shared, wire: &'a Wire<'a>, (port, number): (usize, u64)) -> Self {
        Self {
            session: Session::new(shared, number, (port, wire.stream().local_addr().ok())).behind(wire),
            input: Input::new(wire),
            output: Output::new(wire),
            transfers: [const { None }; TRANSFERS_MAX],
            transfers_begun: 0,
            spare: Vec::new(),
            waiting: VecDeque::new(),
            delayed: Vec::new(),
            capsule: Vec::new(),
            out: Out::default(),
        }
    }

    /// Speaks until the connection ends.
    pub(super) fn serve(mut self) {
        let Err(end) = self.talk();
        // What was answered before is answered, if the host still listens.
        self.output.flush().ok();
        let tally = &self.session.shared.subsystem.tally;
        match end {
            End::Breach(breach) => {
                add(&tally.terminations, 1);
                tracing::debug!(connection = self.session.number, rule = breach.rule, "the host broke the protocol");
                terminate(&mut self.input, &mut self.output, &breach);
            }
            End::Silent if self.session.gate.demand() != Demand::None => add(&tally.authentication_failed, 1),
            End::Silent if self.session.joined.is_some() => {
                add(&tally.keep_alive_expired, 1);
                tracing::debug!(connection = self.session.number, "the host is silent past its keep-alive");
            }
            End::Silent | End::Closed | End::Fault => {}
        }
    }

    fn config(&self) -> &'a TargetConfig {
        self.session.config()
    }

    fn talk(&mut self) -> Result<Infallible, End> {
        self.input.set_deadline(Some(now() + self.config().connect_timeout));
        self.initialize()?;
        loop {
            self.begin_due()?;
            if let Some((cid, event)) = self.session.event() {
                self.response(cid, Answer::value(event.into()))?;
            }
            let look = self.session.awaits_events().then(|| now() + EVENTS_EVERY);
            let is_long = |transfer: &Transfer| (transfer.total - transfer.have) as usize >= LONG_BYTES;
            self.input.ahead = if self.transfers.iter().flatten().any(is_long) { Ahead::Heads } else { Ahead::All };
            if !self.input.wait(self.delayed.iter().map(|delayed| delayed.due).chain(look).min())? {
                continue;
            }
            let longest =
                self.config().capsule_data_bytes.max(ADMIN_CAPSULE_DATA_BYTES).max(self.config().h2c_bytes_max);
            let plen_max = length(HEAD_BYTES_MAX + DIGEST_BYTES) + longest;
            let (header, raw) = self.input.head(self.output.layout.digests, plen_max)?;
            match header.kind {
                Kind::CapsuleCmd => self.capsule(&header, &raw)?,
                Kind::H2cData => self.host_data(&header, &raw)?,
                Kind::H2cTerm => return Err(End::Closed),
                _ => return Err(breach(FatalStatus::Sequence, "a unit that a host does not send now")),
            }
        }
    }

    /// ICReq and ICResp.
    fn initialize(&mut self) -> Result<(), End> {
        let (header, raw) = self.input.head(Digests::default(), length(INITIALIZE_BYTES))?;
        if header.kind != Kind::IcReq {
            return Err(breach(FatalStatus::Sequence, "the first unit is no request to initialise"));
        }
        let asked = IcReq::decode(&raw);
        if asked.format != 0 {
            let rule = "the host asks for a format that is not known (PFV)";
            return Err(End::Breach(Breach { status: FatalStatus::Unsupported, information: 8, rule }));
        }
        if asked.alignment > 31 {
            return Err(field(10, "the host's alignment of data is past 31 (HPDA)"));
        }
        let config = self.config();
        let digests = Digests {
            header: asked.digests.header && config.digests.header,
            data: asked.digests.data && config.digests.data,
        };
        let (alignment, h2c_bytes_max) = (config.alignment, config.h2c_bytes_max);
        let mut response = IcResp { format: 0, alignment, digests, h2c_bytes_max };
        match config.faults.as_ref().and_then(|faults| faults.initialize(self.session.number)) {
            None => {}
            Some(InitializeFault::Drop) => return Err(End::Fault),
            // Until the host closes, or until the time for Connect is over.
            Some(InitializeFault::NeverAnswer) => return self.input.fill(&mut [0]),
            Some(InitializeFault::WrongFormat) => response.format = 1,
            Some(InitializeFault::UnaskedDigests) => {
                response.digests = Digests { header: !asked.digests.header, data: !asked.digests.data };
            }
            Some(InitializeFault::SmallData) => response.h2c_bytes_max = MAXH2C_MIN - 4,
        }
        self.output.unit(&response.encode())?;
        self.output.layout = Layout { digests, alignment: asked.alignment };
        Ok(())
    }

    /// Bytes of data in a capsule at most: of admin and fabrics commands always the same.
    fn capsule_bytes_max(&self, command: &Command) -> u32 {
        match self.session.joined {
            Some(Joined { qid: 1.., .. }) if command.opcode() != fabrics::OPCODE => self.config().capsule_data_bytes,
            _ => ADMIN_CAPSULE_DATA_BYTES,
        }
    }

    /// Commands that may be under way.
    fn entries(&self) -> usize {
        self.session.joined.map_or(1, |joined| joined.entries.into())
    }

    fn aligned(&self, header: &Header) -> Result<(), End> {
        let alignment = (u32::from(self.config().alignment) + 1) * 4;
        if header.data_bytes > 0 && !header.data_at.is_multiple_of(alignment) {
            return Err(field(3, "data does not begin where the controller asked for (CPDA)"));
        }
        Ok(())
    }

    fn capsule(&mut self, header: &Header, raw: &[u8]) -> Result<(), End> {
        self.aligned(header)?;
        let command = pdu::command(raw);
        if header.data_bytes > self.capsule_bytes_max(&command) {
            return Err(field(4, "more data in a capsule than may be"));
        }
        let mut bytes = core::mem::take(&mut self.capsule);
        bytes.resize(header.data_bytes as usize, 0);
        let intact = self.input.data(header, &mut bytes)?;
        let done = self.arrived(command, Carried { bytes: &bytes, intact });
        self.capsule = bytes;
        done
    }

    /// A command is here: its fault is decided.
    fn arrived(&mut self, command: Command, carried: Carried<'_>) -> Result<(), End> {
        let seen = self.session.came(&command);
        let fault = self.config().faults.as_ref().and_then(|faults| faults.command(&seen));
        match fault {
            Some(Fault::DropBefore) => Err(End::Fault),
            Some(Fault::NeverAnswer) => Ok(()),
            Some(Fault::HalfClose) => {
                self.output.half_close();
                Ok(())
            }
            Some(Fault::Delay(by)) if self.delayed.len() < self.entries() => {
                let (bytes, intact) = (carried.bytes.to_vec(), carried.intact);
                self.delayed.push(Delayed { due: now() + by, job: Job { command, fault: None }, bytes, intact });
                Ok(())
            }
            fault => self.begin(Job { command, fault }, carried),
        }
    }

    /// Begins the delayed commands whose time has come.
    fn begin_due(&mut self) -> Result<(), End> {
        let at = if self.delayed.is_empty() { return Ok(()) } else { now() };
        while let Some(index) = self.delayed.iter().position(|delayed| delayed.due <= at) {
            let Delayed { job, bytes, intact, .. } = self.delayed.remove(index);
            self.begin(job, Carried { bytes: &bytes, intact })?;
        }
        Ok(())
    }

    fn begin(&mut self, job: Job, carried: Carried<'_>) -> Result<(), End> {
        if let Some(Fault::Status(status)) = job.fault {
            return self.answer(job, status.into(), &Out::default());
        }
        match self.check(&job.command, carried) {
            Err(status) => self.answer(job, status.into(), &Out::default()),
            Ok(Plan::Run) => self.run(job, &[]),
            Ok(Plan::Capsule) => self.run(job, carried.bytes),
            Ok(Plan::Ask(bytes)) => self.transfer(job, bytes),
        }
    }

    /// Checks all of a command that can be before it is carried out.
    fn check(&self, command: &Command, carried: Carried<'_>) -> Result<Plan, Status> {
        let raw = command.bytes();
        // PSDT 01b: fabrics have SGLs only. FUSE: no fused commands.
        if raw[1] & 0xC3 != 0x40 {
            return Err(says::INVALID_FIELD);
        }
        if self.is_under_way(command.cid()) {
            return Err(says::CID_CONFLICT);
        }
        let fabrics = FabricsCommand::decode(command);
        self.session.may_come(fabrics.as_ref())?;
        let (bytes, descriptor) = (command.dword(8), raw[39]);
        // Bits 1:0 of the opcode, or of the type: 01b to the controller, 10b to the host.
        let direction = if fabrics.is_some() { raw[4] } else { raw[0] } & 3;
        let in_capsule = descriptor == IN_CAPSULE && direction == 1;
        // Where nothing is moved the field is reserved, as in Property Set, and hosts leave it zero (Base 2.1, 6.6). What wants data finds below
        // that it has none.
        let is_none = bytes == 0 && carried.bytes.is_empty();
        if !in_capsule && !is_none && (!carried.bytes.is_empty() || descriptor != TRANSPORT_BLOCK) {
            return Err(says::DESCRIPTOR);
        }
        let wants = if direction == 1 { self.session.wants(command, fabrics.as_ref())? } else { 0..=0 };
        if *wants.end() == 0 {
            return Ok(Plan::Run);
        }
        if !wants.contains(&bytes) || in_capsule && carried.bytes.len() != bytes as usize {
            return Err(says::DATA_LENGTH);
        }
        match (in_capsule, fabrics) {
            (true, _) if raw[24..32] != [0; 8] => Err(says::SGL_OFFSET),
            (true, _) if !carried.intact => Err(says::TRANSPORT),
            (true, _) => Ok(Plan::Capsule),
            (false, None | Some(FabricsCommand::AuthenticationSend(_))) => Ok(Plan::Ask(bytes)),
            // The data of Connect lies in its capsule.
            (false, Some(_)) => Err(says::DESCRIPTOR),
        }
    }

    fn is_under_way(&self, cid: u16) -> bool {
        let of = |job: &Job| job.command.cid() == cid;
        self.transfers.iter().flatten().any(|transfer| of(&transfer.job))
            || self.waiting.iter().any(|(job, _)| of(job))
            || self.delayed.iter().any(|delayed| of(&delayed.job))
            || self.session.held.contains(&cid)
    }
}

impl Session<'_> {
    /// Whether a command fits the state of queue and controller.
    pub(super) fn may_come(&self, fabrics: Option<&FabricsCommand>) -> Result<(), Status> {
        let connects = matches!(fabrics, Some(FabricsCommand::Connect { .. }));
        let Some(joined) = self.joined else {
            return if connects { Ok(()) } else { Err(says::SEQUENCE) };
        };
        if !connects && !self.gate.lets(fabrics) {
            return Err(says::AUTHENTICATION);
        }
        match (joined.qid, fabrics) {
            _ if connects => Err(says::SEQUENCE),
            (0, Some(_)) => Ok(()),
            (_, Some(FabricsCommand::Disconnect | FabricsCommand::AuthenticationSend(_))) => Ok(()),
            (_, Some(FabricsCommand::AuthenticationReceive(_))) => Ok(()),
            (_, Some(_)) => Err(Status::INVALID_OPCODE.with_dnr()),
            // Its connections are ended when a controller is disabled.
            (1.., None) => Ok(()),
            (0, None) => {
                let ready = self.shared.subsystem.with(joined.controller, |controller| controller.is_ready());
                if ready == Some(true) { Ok(()) } else { Err(says::SEQUENCE) }
            }
        }
    }

    /// How many bytes a command may take from the host.
    pub(super) fn wants(
        &self,
        command: &Command,
        fabrics: Option<&FabricsCommand>,
    ) -> Result<RangeInclusive<u32>, Status> {
        match (fabrics, self.joined) {
            (Some(FabricsCommand::Connect { .. }), _) => Ok(length(CONNECT_DATA_BYTES)..=length(CONNECT_DATA_BYTES)),
            (Some(FabricsCommand::AuthenticationSend(_)), _) => Ok(1..=SEND_BYTES_MAX),
            (Some(_), _) => Ok(0..=0),
            (None, Some(Joined { qid: 1.., .. })) => {
                self.shared.subsystem.access.check(self.port, command.nsid())?;
                io::wants(&self.shared.subsystem, command)
            }
            (None, _) => admin::wants(command).map(|bytes| bytes..=bytes),
        }
    }
}

impl Connection<'_> {
    /// Begins a write whose data must be asked for, or lets it wait for its turn.
    fn transfer(&mut self, job: Job, bytes: u32) -> Result<(), End> {
        let total = match job.fault {
            Some(Fault::ShortData(less)) => bytes.saturating_sub(less),
            _ => bytes,
        };
        if total == 0 {
            return self.run(job, &[]);
        }
        let Some(index) = self.transfers.iter().position(Option::is_none) else {
            if self.waiting.len() >= self.entries() {
                return Err(breach(FatalStatus::Unsupported, "more commands than the queue has entries"));
            }
            self.waiting.push_back((job, bytes));
            return Ok(());
        };
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(total as usize, 0);
        self.transfers_begun = self.transfers_begun.wrapping_add(1);
        // The index has TAG_INDEX_BITS.
        let tag = self.transfers_begun << TAG_INDEX_BITS | u16::try_from(index).unwrap_or(0);
        if let Some(place) = self.transfers.get_mut(index) {
            *place = Some(Transfer { job, tag, buffer, have: 0, asked: 0, total, intact: true });
        }
        self.ask(index)
    }

    /// Asks for the next part of a write.
    fn ask(&mut self, index: usize) -> Result<(), End> {
        let part = self.config().r2t_bytes_max;
        let Some(Some(transfer)) = self.transfers.get_mut(index) else { return Ok(()) };
        let (first, at) = (transfer.asked == 0, transfer.asked);
        let bytes = part.min(transfer.total - at);
        transfer.asked += bytes;
        let (job, tag) = (transfer.job, transfer.tag);
        let at = if job.fault == Some(Fault::R2tOutOfRange) { transfer.total } else { at };
        if first {
            self.arm(job);
        }
        self.output.ready(R2t { cid: job.cid(), tag, at, bytes })
    }

    /// H2CData.
    fn host_data(&mut self, header: &Header, raw: &[u8]) -> Result<(), End> {
        self.aligned(header)?;
        let h2c_bytes_max = self.config().h2c_bytes_max;
        let (data, tag) = Data::decode(raw);
        let index = usize::from(tag) % TRANSFERS_MAX;
        let transfer = self.transfers.get_mut(index).and_then(Option::as_mut).filter(|there| there.tag == tag);
        let transfer = transfer.ok_or(field(10, "data for a tag that nobody gave out"))?;
        if transfer.job.command.cid() != data.cid {
            return Err(field(8, "data for another command than its tag's"));
        }
        if data.bytes != header.data_bytes || data.bytes == 0 {
            return Err(field(16, "a unit with another length of data than its header says"));
        }
        if data.bytes > h2c_bytes_max {
            return Err(breach(FatalStatus::R2tLimit, "more data in a unit than MAXH2CDATA"));
        }
        if data.at != transfer.have || data.bytes > transfer.asked - transfer.have {
            return Err(breach(FatalStatus::OutOfRange, "data that does not follow, or that was not asked for"));
        }
        let end = data.at + data.bytes;
        if (header.flags & flags::LAST != 0) != (end == transfer.asked) {
            return Err(field(1, "the last data of an R2T is not marked, or other data is"));
        }
        let into = transfer.buffer.get_mut(data.at as usize..end as usize).unwrap_or_default();
        transfer.intact &= self.input.data(header, into)?;
        transfer.have = end;
        match (end == transfer.asked, end == transfer.total) {
            (false, _) => Ok(()),
            (true, false) => self.ask(index),
            (true, true) => self.transferred(index),
        }
    }

    /// All data of a write is here.
    fn transferred(&mut self, index: usize) -> Result<(), End> {
        let Some(transfer) = self.transfers.get_mut(index).and_then(Option::take) else { return Ok(()) };
        let Transfer { job, buffer, intact, .. } = transfer;
        if intact {
            self.run(job, &buffer)?;
        } else {
            self.answer(job, says::TRANSPORT.into(), &Out::default())?;
        }
        self.spare.push(buffer);
        match self.waiting.pop_front() {
            Some((job, bytes)) => self.transfer(job, bytes),
            None => Ok(()),
        }
    }

    /// Carries a command out and answers it.
    fn run(&mut self, job: Job, data: &[u8]) -> Result<(), End> {
        let mut out = core::mem::take(&mut self.out);
        let out_bytes = job.command.dword(8);
        if self.session.may_block(&job.command) {
            self.output.flush()?;
        }
        let outcome = self.session.execute(&job.command, data, (&mut out, out_bytes));
        let done = match outcome {
            Outcome::Held => Ok(()),
            Outcome::Answer(answer) => self.answer(job, answer, &out).and_then(|()| self.session.settle()),
            Outcome::Farewell(answer) => self.answer(job, answer, &Out::default()).and(Err(End::Closed)),
        };
        if let Some(deadline) = self.session.timer.take() {
            self.input.set_deadline(deadline);
        }
        // At once: whoever writes these bytes of a namespace would copy them as long as they are held.
        out.clear();
        self.out = out;
        done
    }
}

impl Session<'_> {
    /// Whether carrying a command out may take long.
    fn may_block(&self, command: &Command) -> bool {
        self.joined.is_some_and(|joined| joined.qid > 0) && io::may_block(&self.shared.subsystem, command)
    }

    /// Carries a command out. What goes to the host is put into `out`, which it has room for `out_bytes` of.
    pub(super) fn execute(&mut self, command: &Command, data: &[u8], (out, out_bytes): (&mut Out, u32)) -> Outcome {
        let shared = self.shared;
        let Some(joined) = self.joined else {
            return Outcome::Answer(self.connect(command, data));
        };
        if let Some(fabrics) = FabricsCommand::decode(command) {
            return self.fabrics(joined, &fabrics, (data, &mut out.bytes, out_bytes));
        }
        if joined.qid > 0 {
            if let Err(status) = shared.subsystem.access.check(self.port, command.nsid()) {
                return Outcome::Answer(status.into());
            }
            return Outcome::Answer(io::run(&shared.subsystem, command, data, out, out_bytes));
        }
        if command.opcode() == admin_opcode::ASYNC_EVENT_REQUEST {
            if self.held.len() >= usize::from(EVENT_REQUESTS_MAX) {
                return Outcome::Answer(Status::AER_LIMIT.with_dnr().into());
            }
            self.held.push(command.cid());
            return Outcome::Held;
        }
        if command.opcode() == admin_opcode::CROSS_CONTROLLER_RESET {
            return Outcome::Answer(shared.cross_reset(joined, Instance::of(command)));
        }
        let Some(local) = self.local else {
            return Outcome::Answer(Status::INTERNAL.into());
        };
        let answer = shared.subsystem.with(joined.controller, |controller| {
            let mut desk = Desk { subsystem: &shared.subsystem, controller, port: self.port, local };
            desk.run(command, data, &mut out.bytes, out_bytes)
        });
        let feature = command.dword(10).to_le_bytes()[0];
        match command.opcode() {
            admin_opcode::KEEP_ALIVE => self.restart_timer(),
            admin_opcode::SET_FEATURES if feature == feature::id::KEEP_ALIVE_TIMER => self.restart_timer(),
            _ => {}
        }
        Outcome::Answer(answer.unwrap_or(says::SEQUENCE.into()))
    }

    /// The keep-alive timer begins anew. I/O queues have none: their controller's ends them.
    fn restart_timer(&mut self) {
        let timeout = match self.joined {
            Some(Joined { qid: 0, controller, .. }) => self.shared.subsystem.keep_alive(controller),
            _ => None,
        };
        self.timer = Some(timeout.map(|timeout| now() + timeout));
    }

    /// Looks how authentication goes: a host that showed who it is has no deadline but its own, and one that failed is left.
    pub(super) fn settle(&mut self) -> Result<(), End> {
        let tally = &self.shared.subsystem.tally;
        if self.gate.settle() {
            add(&tally.authenticated, 1);
            if let Some(Joined { qid: 0, controller, .. }) = self.joined {
                self.shared.subsystem.with(controller, |controller| controller.is_known = true);
            }
            self.restart_timer();
        }
        if self.gate.has_failed() {
            add(&tally.authentication_failed, 1);
            tracing::debug!(connection = self.number, "a host did not show who it is, or did not believe the target");
            return Err(End::Closed);
        }
        Ok(())
    }

    fn connect(&mut self, command: &Command, data: &[u8]) -> Answer {
        let Some(FabricsCommand::Connect { queue, no_flow_control, format }) = FabricsCommand::decode(command) else {
            return says::SEQUENCE.into();
        };
        if format != 0 {
            return says::CONNECT_FORMAT.into();
        }
        if ConnectData::decode(data).is_ok_and(|data| !self.lets(&data)) {
            tracing::debug!(connection = self.number, "a host names others than those whose key of tls it has");
            return says::CONNECT_HOST.into();
        }
        match self.shared.subsystem.connect(queue, data, (self.port, self.number)) {
            Err(answer) => answer,
            Ok((joined, gate)) => {
                (self.joined, self.gate) = (Some(joined), gate);
                self.no_flow_control = no_flow_control;
                // FFFFh says that the controller does without flow control too.
                self.sq_head = if no_flow_control { 0xFFFF } else { 1 % joined.entries };
                let demand = self.gate.demand();
                if demand == Demand::None {
                    self.restart_timer();
                }
                Answer::value(u64::from(joined.controller) | u64::from(demand.bits()))
            }
        }
    }

    fn fabrics(
        &mut self,
        joined: Joined,
        fabrics: &FabricsCommand,
        (data, out, out_bytes): (&[u8], &mut Vec<u8>, u32),
    ) -> Outcome {
        let subsystem = &self.shared.subsystem;
        let answer = match *fabrics {
            FabricsCommand::Disconnect if joined.qid == 0 => says::QUEUE_TYPE.into(),
            FabricsCommand::Disconnect => return Outcome::Farewell(Answer::SUCCESS),
            FabricsCommand::PropertyGet { offset, size } => subsystem
                .with(joined.controller, |controller| subsystem.property(controller, offset, size))
                .unwrap_or(says::SEQUENCE.into()),
            FabricsCommand::PropertySet { offset: regs::CC, size: fabrics::PropertySize::Four, value } => {
                // The low half, as the property has four bytes.
                let cc = (value & 0xFFFF_FFFF) as u32;
                match subsystem.set_cc(joined.controller, cc) {
                    None => says::SEQUENCE.into(),
                    Some(ended) => {
                        self.shared.hang_up(&ended);
                        Answer::SUCCESS
                    }
                }
            }
            FabricsCommand::PropertySet { .. } => says::INVALID_FIELD.into(),
            FabricsCommand::Connect { .. } => says::SEQUENCE.into(),
            FabricsCommand::AuthenticationSend(security) => self.gate.send(security, data, subsystem.number()),
            FabricsCommand::AuthenticationReceive(security) => self.gate.receive(security, out, out_bytes),
            FabricsCommand::Other(_) => Status::INVALID_OPCODE.with_dnr().into(),
        };
        Outcome::Answer(answer)
    }
}

impl Connection<'_> {
    /// Faults of the first unit for a command.
    fn arm(&mut self, job: Job) {
        match job.fault {
            Some(Fault::WrongHeaderDigest) => self.output.twist = Twist::Header,
            Some(Fault::WrongDataDigest) => self.output.twist = Twist::Data,
            Some(Fault::DropAfterUnit) => self.output.last_unit = true,
            _ => {}
        }
    }

    /// Sends data, if there is some, and the answer: in the last data where nothing else is to be said.
    fn answer(&mut self, job: Job, answer: Answer, out: &Out) -> Result<(), End> {
        self.arm(job);
        let bytes = match job.fault {
            Some(Fault::ShortData(less)) => out.len().saturating_sub(less as usize),
            _ => out.len(),
        };
        let quiet = self.session.no_flow_control && answer.value == 0 && answer.status.is_success() && bytes > 0;
        if answer.status.is_success() {
            self.data(job, (out, bytes), if quiet { flags::SUCCESS } else { 0 })?;
        }
        let times = usize::from(!quiet) + usize::from(job.fault == Some(Fault::AnswerTwice));
        for _ in 0..times {
            self.response(job.cid(), answer)?;
        }
        if job.fault == Some(Fault::DropAfter) { Err(End::Fault) } else { Ok(()) }
    }

    /// Sends `total` bytes of data; `success` is the flag of the last unit.
    fn data(&mut self, job: Job, (out, total): (&Out, usize), success: u8) -> Result<(), End> {
        let late = if job.fault == Some(Fault::WrongOffset) { 4 } else { 0 };
        let most = self.config().c2h_bytes_max as usize;
        for at in (0..total).step_by(most) {
            let bytes = most.min(total - at);
            let flags = if at + bytes == total { flags::LAST | success } else { 0 };
            // At most 1 MiB (MDTS_MAX), and so below 32 bits.
            let of = Data { cid: job.cid(), at: length(at) + late, bytes: length(bytes) };
            self.output.data(of, flags, out.parts(at, bytes))?;
        }
        Ok(())
    }

    fn response(&mut self, cid: u16, answer: Answer) -> Result<(), End> {
        let completion = self.session.completion(cid, answer);
        self.output.response(&completion)
    }
}
