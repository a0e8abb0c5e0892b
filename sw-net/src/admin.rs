//! The admin queue of a controller behind TCP: one command at a time, each waited for.

use std::time::{Duration, Instant};

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan};
use sw_nvme::{
    fabrics::PropertySize,
    inquiry::{ADMIN_DATA_BYTES, AdminQueue, Answer, Data},
    rdma::session::Windows,
    tcp::{
        host::{End, Outcome, Range, Transfer},
        ledger::Commands,
    },
    wire::{Command, DataPointer},
};

use crate::{
    carrier::{Carrier, HangUp},
    connection::{Broken, Places},
    socket::Piece,
};

/// Whom the end of an event request is for; commands that are waited for have 0.
const EVENT: u32 = 1;
/// Events that are kept for whoever looks; more than there are requests never come at a time.
const EVENTS_MAX: usize = 16;

/// What stands in the page before a command writes it: success does not prove that data came.
const UNWRITTEN: u8 = 0xA5;

/// The page that data of admin commands goes through.
struct Page(DmaSpan);

impl Page {
    /// Whether no byte came of data that a command was to bring. Over RDMA nobody counts them.
    fn is_unwritten(&self, transfer: Transfer) -> bool {
        let Transfer::In(bytes @ 1..) = transfer else { return false };
        self.start(sw_mem::index(bytes.into())).iter().all(|byte| *byte == UNWRITTEN)
    }

    /// With room for so many bytes.
    fn allocate(name: &str, bytes: usize) -> Result<Self, Error> {
        let page = Buffer::allocate(ByteLen(bytes as u64)).map_err(|error| {
            Error::new(ErrorKind::ResourceLimit, Verb::Open)
                .at(name.to_owned())
                .detail("no memory for a page")
                .caused_by(error)
        })?;
        Ok(Self(page.into_span()))
    }

    /// A copy of its first bytes, as many as there are.
    fn start(&self, bytes: usize) -> Vec<u8> {
        let mut copy = vec![0; bytes.min(sw_mem::index(self.0.len().0))];
        // Not longer than the page.
        let _ = self.0.read(0, &mut copy);
        copy
    }
}

impl Places for Page {
    fn pieces(&self, of: Range, into: &mut Vec<Piece>) {
        let (at, bytes) = (u64::from(of.at), u64::from(of.bytes));
        into.extend(self.0.place().host().map(|base| Piece::at(base.raw().wrapping_add(at), bytes)));
    }
}

impl Windows for Page {
    fn window(&self, of: Range) -> Option<(DmaRegion, u64)> {
        Some((self.0.region().clone(), self.0.offset() + u64::from(of.at)))
    }
}

/// See the module documentation.
pub(crate) struct Admin {
    name: String,
    connection: Carrier,
    page: Page,
    timeout: Duration,
    /// When all answers must be there, however long one may take.
    finish_by: Option<Instant>,
    /// The connection is over, and why.
    broken: Option<Broken>,
    /// Event requests under way, and how many there may be.
    requests: u16,
    requests_max: u16,
    /// DW0 of those that came.
    events: Vec<u32>,
}

/// The end of a command, with all eight bytes of the completion.
struct Ended {
    answer: Answer,
    value: u64,
}

impl Admin {
    /// For a connection that was initialised. `timeout`: how long an answer may take.
    ///
    /// # Errors
    /// No memory for a page.
    pub(crate) fn new(name: String, connection: Carrier, timeout: Duration) -> Result<Self, Error> {
        let page = Page::allocate(&name, ADMIN_DATA_BYTES)?;
        Ok(Self {
            name,
            connection,
            page,
            timeout,
            finish_by: None,
            broken: None,
            requests: 0,
            requests_max: 0,
            events: Vec::new(),
        })
    }

    /// Fills the start of the page, the rest with zeroes; for a command that takes data.
    pub(crate) fn fill_page(&self, bytes: &[u8]) {
        let mut page = [0; ADMIN_DATA_BYTES];
        page.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        // As long as the page.
        let _ = self.page.0.write(0, &page);
    }

    /// Reads a register.
    ///
    /// # Errors
    /// As [`AdminQueue::run`]; `Protocol` if it is refused.
    pub(crate) fn property(&mut self, offset: u32, size: PropertySize) -> Result<u64, Error> {
        let ended = self.send(Data::None, |_| Command::property_get(offset, size))?;
        if ended.answer.status.is_success() {
            return Ok(match size {
                PropertySize::Four => ended.value & 0xFFFF_FFFF,
                PropertySize::Eight => ended.value,
            });
        }
        let status = ended.answer.status;
        Err(self.error(ErrorKind::Protocol, format!("the property at {offset:#x} cannot be read: {status}")))
    }

    /// Answers are waited for so long at most from now on.
    pub(crate) fn hurry(&mut self, timeout: Duration) {
        self.timeout = self.timeout.min(timeout);
    }

    /// No answer is waited for beyond this point in time; `None`: each has its own time only.
    pub(crate) fn finish_by(&mut self, until: Option<Instant>) {
        self.finish_by = until;
    }

    /// The same, and not beyond what was said before, which comes back.
    pub(crate) fn finish_within(&mut self, until: Instant) -> Option<Instant> {
        let before = self.finish_by;
        self.finish_by = Some(before.map_or(until, |last| last.min(until)));
        before
    }

    /// Another handle of the connection, to end a wait of another thread with.
    pub(crate) fn handle(&self) -> Option<HangUp> {
        self.connection.handle()
    }

    /// The connection, for an I/O queue whose first command was sent by this.
    pub(crate) fn into_connection(self) -> Carrier {
        self.connection
    }

    fn send(&mut self, data: Data, command: impl FnOnce(DataPointer) -> Command) -> Result<Ended, Error> {
        let end = self.carry(data, command)?;
        self.ended(end)
    }

    fn ended(&self, end: (Outcome, u64)) -> Result<Ended, Error> {
        match end {
            (Outcome::Told(status), value) => {
                let dw0 = u32::try_from(value & 0xFFFF_FFFF).unwrap_or(0);
                Ok(Ended { answer: Answer { status, dw0 }, value })
            }
            (Outcome::Short { moved }, _) => {
                let text = format!("the target reports success for data of which {moved} bytes came");
                Err(self.error(ErrorKind::ShortData, text).remedy("report it to whoever makes the target"))
            }
            (Outcome::WrongDigest | Outcome::LetGo, _) => {
                Err(self.error(ErrorKind::ChecksumMismatch, "the data of an admin command does not fit its digest"))
            }
        }
    }

    /// Runs `command`, which may fill less of the page than the `room` that it has there; how many bytes came. `what` is its name.
    ///
    /// # Errors
    /// As [`AdminQueue::expect`].
    pub(crate) fn expect_up_to(&mut self, what: &str, room: usize, command: Command) -> Result<usize, Error> {
        match self.carry(Data::In(room), |_| command)? {
            (Outcome::Short { moved }, _) => Ok(sw_mem::index(moved.into())),
            end => {
                let Ended { answer, .. } = self.ended(end)?;
                self.succeeded(what, answer).map(|_| room)
            }
        }
    }

    /// Runs `command`, which fills `room` bytes at most, however long a page that is; gives those that came. `what` is its name.
    ///
    /// # Errors
    /// As [`AdminQueue::expect`]; no memory for so many.
    pub(crate) fn read_long(&mut self, what: &str, room: usize, command: Command) -> Result<Vec<u8>, Error> {
        // Nothing of the one before is under way: commands with data are waited for, and one that was not answered was the last.
        if self.page.0.len().0 < room as u64 && self.broken.is_none() {
            self.page = Page::allocate(&self.name, room)?;
        }
        let came = self.expect_up_to(what, room, command)?;
        Ok(self.page.start(came))
    }

    /// Whether the connection is over: nothing is answered any more.
    pub(crate) fn is_over(&self) -> bool {
        self.broken.is_some()
    }

    /// Runs a command to its end.
    fn carry(&mut self, data: Data, command: impl FnOnce(DataPointer) -> Command) -> Result<(Outcome, u64), Error> {
        if let Some(broken) = &self.broken {
            return Err(broken.refusal(&self.name));
        }
        // Pages are far shorter.
        let bytes = |len: usize| u32::try_from(len).unwrap_or(0);
        let transfer = match data {
            Data::None => Transfer::None,
            Data::In(len) => {
                let _ = self.page.0.fill(0, self.page.0.len().0, UNWRITTEN);
                Transfer::In(bytes(len))
            }
            Data::Out(len) => Transfer::Out(bytes(len)),
        };
        if self.connection.submit(&command(DataPointer::None), transfer, 0).is_none() {
            return Err(self.error(ErrorKind::Protocol, "the admin queue is full"));
        }
        let until = after(self.timeout);
        let until = self.finish_by.map_or(until, |last| last.min(until));
        loop {
            let end = match self.connection.run(&self.page, until) {
                (Ok(()), Some(end)) => end,
                (Err(broken), _) => return Err(self.give_up(broken)),
                // It is over only with an end.
                (Ok(()), None) => return Err(self.give_up(Broken::Silent)),
            };
            if end.user == EVENT {
                self.note(&end);
                continue;
            }
            let is_claimed = matches!(end.outcome, Outcome::Told(status) if status.is_success());
            let is_short = is_claimed && self.page.is_unwritten(transfer);
            return Ok((if is_short { Outcome::Short { moved: 0 } } else { end.outcome }, end.value));
        }
    }

    /// Has the controller tell of events, with so many requests at a time.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn watch(&mut self, requests: u16) -> Result<(), Error> {
        self.requests_max = requests;
        self.request_events()
    }

    /// Whether the controller was asked to tell of events.
    pub(crate) fn is_watched(&self) -> bool {
        self.requests_max > 0
    }

    /// Hands over as many requests as there may be.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn request_events(&mut self) -> Result<(), Error> {
        while self.requests < self.requests_max {
            if self.connection.submit(&Command::async_event_request(), Transfer::None, EVENT).is_none() {
                break;
            }
            self.requests += 1;
        }
        self.connection.send(&self.page).map_err(|broken| self.give_up(broken))
    }

    /// The events that came since, DW0 of each; does not wait.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn look(&mut self) -> Result<Vec<u32>, Error> {
        let received = self.connection.receive(&self.page);
        while let Some(end) = self.connection.pop_end() {
            self.note(&end);
        }
        received.map_err(|broken| self.give_up(broken))?;
        Ok(std::mem::take(&mut self.events))
    }

    fn note(&mut self, end: &End) {
        self.requests = self.requests.saturating_sub(1);
        match end.outcome {
            Outcome::Told(status) if status.is_success() && self.events.len() < EVENTS_MAX => {
                self.events.push(u32::try_from(end.value & 0xFFFF_FFFF).unwrap_or(0));
            }
            Outcome::Told(status) if status.is_success() => {}
            // It takes none, or no more of them: it is not asked again.
            _ => self.requests_max = self.requests,
        }
    }

    fn give_up(&mut self, broken: Broken) -> Error {
        if let Broken::Breach(breach) = &broken {
            self.connection.terminate(breach);
        }
        let error = broken.refusal(&self.name);
        self.broken = Some(broken);
        error
    }
}

impl AdminQueue for Admin {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, data: Data, command: impl FnOnce(DataPointer) -> Command) -> Result<Answer, Error> {
        self.send(data, command).map(|ended| ended.answer)
    }

    fn page(&self) -> [u8; ADMIN_DATA_BYTES] {
        let mut bytes = [0; ADMIN_DATA_BYTES];
        // As long as the page.
        let _ = self.page.0.read(0, &mut bytes);
        bytes
    }
}

/// The point in time `span` from now.
pub(crate) fn after(span: Duration) -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "waits of the control plane have an end, and no caller that has a clock"
    )]
    let now = Instant::now();
    now + span
}
