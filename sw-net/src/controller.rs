//! A controller behind TCP: its association, what it says of itself, and its I/O queues.
//!
//! ```text
//!   Controller::open ─► admin connection ─► Connect ─► CAP, VS, CC, CSTS ─► Identify ─► queues ─► namespaces
//!        ▲ attend: keep-alive, a connection for each queue that a lane asks for, the next association when one is lost
//!
//! ```
//!
//! When what is due, when an association is over, and when writes may be sent again decides [`Association`]; here it is carried out.
//!
//! Base 2.x, "Fabrics Initialization".
//!
//! Each association has a number. I/O queues belong to the one that they were made in and are closed with it; what waits for a queue
//! waits for the next one. A namespace that is another one in the next association has another generation: handles of the old one
//! reach nothing.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Fault, Landing, Reason, Verb, seam::Wake};
use sw_nvme::{
    fabrics::{ConnectData, Nqn, PropertySize, QueueRequest},
    inquiry::{AdminQueue, Data},
    paths::Holder,
    resets::Errands,
    status::Status,
    tcp::{
        association::{Association, Duty, Patience, Wanted},
        pdu::{ADMIN_CAPSULE_DATA_BYTES, Digests},
    },
    wire::{
        Command,
        regs::{self, Cc, Shutdown},
    },
};

use crate::{
    admin::{Admin, after},
    associate::{associate, connect, pause},
    authenticate::{self, HostKeys},
    carrier::{Carrier, HangUp, QueueOf, Way},
    clock::now,
    connection::ConnectionConfig,
    errands,
    events::{Again, EVENTS_EVERY, Stale},
    facts::Facts,
    family::Family,
    socket::left,
    tls::{self, HostTls, Peers, Protection},
};

/// Longest that a target takes to notice that the connection of a queue was closed, and how often it is asked meanwhile.
const QUEUE_LEFT_WITHIN: Duration = Duration::from_secs(1);
const QUEUE_LOOKED_AFTER: Duration = Duration::from_millis(5);
/// Numbers of queues that are tried without a pause.
const QUEUES_TRIED_AT_ONCE: usize = 4;
/// Connections that may be lost in a row while a queue is made: the association stands, so that the next one may well last.
const QUEUES_LOST_MAX: usize = 3;
/// Between two looks of somebody who waits for the association, if nobody tells.
const NEWS_STEP: Duration = Duration::from_millis(100);
/// How long each of the two answers of a shutdown is waited for.
const SHUT_DOWN_WAIT: Duration = Duration::from_secs(1);

/// Where a subsystem is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an address; one of IPv6 in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The subsystem.
    pub subsystem: Nqn,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvme+tcp://{}:{}/{}", self.host, self.port, self.subsystem)
    }
}

/// Who we are. The same for all associations of a host, or targets refuse them.
#[derive(Clone, Debug)]
pub struct HostIdentity {
    /// HOSTNQN.
    pub nqn: Nqn,
    /// HOSTID.
    pub id: [u8; 16],
    /// What shows it to subsystems that demand authentication.
    pub keys: Option<Arc<HostKeys>>,
    /// What all connections have TLS with; `None`: they go in the clear.
    pub tls: Option<Arc<HostTls>>,
}

impl HostIdentity {
    /// For TLS with a subsystem, like that of the connections `before`.
    pub(crate) fn peers<'a>(&'a self, subsystem: &'a Nqn, before: Option<Protection>) -> Option<Peers<'a>> {
        let Self { nqn: host, tls, .. } = self;
        tls.as_deref().map(|tls| Peers { tls, host, subsystem, before })
    }
}

/// How an association is made.
#[derive(Clone, Copy, Debug)]
pub struct ControllerConfig {
    /// KATO: the target gives us up after so long without a sign, and a sign is sent twice in it. Default 10 s.
    pub keep_alive: Duration,
    /// How long a connection, or an answer to an admin command, may take. Default 10 s.
    pub timeout: Duration,
    /// How long an association may take to be made, with all of its answers: those of a controller with a thousand namespaces are
    /// thousands. Default 2 min.
    pub association_timeout: Duration,
    /// How long a lost association is tried to be made again; what waits for it fails then. Default 60 s.
    pub patience: Duration,
    /// I/O queues to ask for, one per lane. Default 64.
    pub queues: u16,
    /// Commands of one I/O queue at a time, 1 to 1,000; fewer where the controller has fewer. Default 128.
    pub depth: u16,
    /// Digests to ask for. Default none: TCP has a checksum, and a checksum of the data is asked for by operation.
    pub digests: Digests,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            association_timeout: Duration::from_secs(120),
            patience: Duration::from_secs(60),
            queues: 64,
            depth: 128,
            digests: Digests::default(),
        }
    }
}

/// An I/O queue with its connection. Dropping it closes the connection.
pub(crate) struct IoQueue {
    pub(crate) connection: Carrier,
    /// Of the association that it belongs to.
    pub(crate) facts: Arc<Facts>,
    qid: u16,
    of: Arc<Controller>,
}

impl IoQueue {
    /// Whether its association is up.
    pub(crate) fn is_up(&self) -> bool {
        self.of.is_up(&self.facts)
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        let mut desk = self.of.desk();
        if self.of.is_up(&self.facts) {
            desk.qids.push_back(self.qid);
        }
    }
}

/// An I/O queue that was asked for.
pub(crate) struct Ticket {
    is_ready: AtomicBool,
    answer: Mutex<Option<Result<IoQueue, Error>>>,
    wake: Arc<dyn Wake>,
}

impl Ticket {
    /// The answer, once there is one.
    pub(crate) fn take(&self) -> Option<Result<IoQueue, Error>> {
        if !self.is_ready.load(Ordering::Acquire) {
            return None;
        }
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn give(&self, answer: Result<IoQueue, Error>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.is_ready.store(true, Ordering::Release);
        self.wake.wake();
    }
}

/// What lanes want of whoever attends the controller.
struct Desk {
    wanted: VecDeque<Arc<Ticket>>,
    /// Free identifiers, the one that was used last at the end: a target may not have noticed yet that a queue is gone.
    qids: VecDeque<u16>,
    association: Association,
    is_closed: bool,
}

/// Whether a target refuses a queue as it has not noticed yet that the one of that number, whose connection was closed just now, is gone:
/// SPDK and ours say an invalid identifier, Linux that it comes out of turn.
fn is_still_there(error: &Error) -> bool {
    let told = [Status::INVALID_QUEUE_ID, Status::COMMAND_SEQUENCE_ERROR].map(|status| i32::from(status.code()));
    // A status, not a number of the system's.
    error.kind() != ErrorKind::ResourceLimit && told.contains(&error.code())
}

/// Whether a controller will be as patient as it was asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patient {
    /// It will.
    Yes,
    /// Its association was given up before.
    TooLate,
}

/// As long as there is, if it is longer.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Whether an error says that trying again with the same keys will not mend it.
fn is_refusal(error: &Error) -> bool {
    authenticate::is_refusal(error) || tls::is_refusal(error)
}

/// How it is with the association.
enum Life {
    Up(Box<Admin>),
    /// And why.
    Down(String),
    /// For ever.
    Gone(String),
}

/// [`Stale`], for lanes to note.
#[derive(Default)]
struct Distrusted {
    namespaces: AtomicBool,
    access: AtomicBool,
}

/// See the module documentation.
pub struct Controller {
    name: String,
    way: Way,
    address: Address,
    host: HostIdentity,
    config: ControllerConfig,
    /// Of the association that is up, or was last.
    facts: Mutex<Arc<Facts>>,
    /// The number of the association that is up; 0 if none is. What the desk's association says, for lanes to look at without its lock;
    /// as the next one.
    up: AtomicU64,
    /// That of the facts, for lanes to look at without their lock.
    revision: AtomicU64,
    is_gone: AtomicBool,
    /// How long the desk's association is tried to be made again, for lanes to look at without its lock.
    patience_ms: AtomicU64,
    /// What it said of its namespaces, and of their access, is not what a command found.
    distrusted: Distrusted,
    /// What it was asked for and did not tell.
    pub(crate) again: Mutex<Again>,
    /// What it has in common with the other controllers of its subsystem, and its number among them.
    family: Arc<Family>,
    member: u64,
    /// What the association that is up was asked for by others.
    pub(crate) errands: Mutex<Option<Errands>>,
    life: Mutex<Life>,
    /// The admin connection once more: whoever closes ends with it what the attendant waits for.
    handle: Mutex<Option<HangUp>>,
    desk: Mutex<Desk>,
    /// Something is on the desk; or the association came up, or is gone.
    news: Condvar,
}

impl Controller {
    /// Makes an association. Blocks, three times [`ControllerConfig::timeout`] at most if nobody answers, and
    /// [`ControllerConfig::association_timeout`] at most if somebody answers slowly.
    ///
    /// # Errors
    /// `NotFound` for a name, `NoDevice` for a target that is not there or does not have the subsystem, `PermissionDenied` where the
    /// host is not allowed or does not show who it is, `Unsupported` where a secure channel is demanded, `DeadlineExceeded`, `Protocol`.
    pub fn open(address: Address, host: HostIdentity, config: ControllerConfig) -> Result<Arc<Self>, Error> {
        Self::open_by(Way::Tcp, address, host, config)
    }

    /// As [`Controller::open`], by TCP or RDMA.
    ///
    /// # Errors
    /// As [`Controller::open`].
    pub fn open_by(
        way: Way,
        address: Address,
        host: HostIdentity,
        config: ControllerConfig,
    ) -> Result<Arc<Self>, Error> {
        let family = Family::of(&address.subsystem);
        let name = way.name_of(&address);
        let (admin, facts) = associate((&name, &way), (&address, &host), config, (&family, None))?;
        let made = (facts.association, facts.letting_go(config.keep_alive));
        let association = Association::new(config.keep_alive, config.patience, made, now());
        let member = family.join();
        let errands = errands::of(member, &facts, &host);
        let made = Arc::new(Self {
            name,
            way,
            address,
            host,
            config,
            up: AtomicU64::new(facts.association),
            revision: AtomicU64::new(facts.revision),
            is_gone: AtomicBool::new(false),
            patience_ms: AtomicU64::new(millis(config.patience)),
            distrusted: Distrusted::default(),
            again: Mutex::default(),
            family,
            member,
            errands: Mutex::new(errands),
            handle: Mutex::new(admin.handle()),
            life: Mutex::new(Life::Up(Box::new(admin))),
            desk: Mutex::new(Desk {
                wanted: VecDeque::new(),
                qids: (1..=facts.queues).collect(),
                association,
                is_closed: false,
            }),
            facts: Mutex::new(Arc::new(facts)),
            news: Condvar::new(),
        });
        made.family.enlist(&made);
        Ok(made)
    }

    /// Its address, as an address of an object has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who writes the last copy of its bytes, and why nobody better does.
    pub fn landing(&self) -> (Landing, Option<Reason>) {
        self.way.landing(self.facts().protection)
    }

    /// What it said in the association that is up, or was last.
    pub fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the association that `facts` are of is up.
    #[inline]
    pub fn is_up(&self, facts: &Facts) -> bool {
        self.up.load(Ordering::Acquire) == facts.association
    }

    /// Whether it will not come back.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How long a lost association is tried to be made again.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::Acquire))
    }

    /// Has a lost association be tried to be made again for `patience` at least; whether it is not given up already.
    pub fn be_patient(&self, patience: Duration) -> Patient {
        let mut desk = self.desk();
        if desk.is_closed || self.is_gone() {
            return Patient::TooLate;
        }
        desk.association.be_patient(patience);
        self.patience_ms.fetch_max(millis(patience), Ordering::AcqRel);
        Patient::Yes
    }

    /// What it said, if the association is up.
    pub(crate) fn facts_if_up(&self) -> Option<Arc<Facts>> {
        Some(self.facts()).filter(|facts| self.is_up(facts))
    }

    /// How long an answer may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.config.timeout
    }

    /// Why its association is not up; empty if it is.
    pub(crate) fn why_not(&self) -> String {
        // Whoever holds it waits for an answer, of an association that is up as far as anybody knows.
        match self.life.try_lock().as_deref() {
            Ok(Life::Down(why) | Life::Gone(why)) => why.clone(),
            Ok(Life::Up(_)) | Err(_) => String::new(),
        }
    }

    /// With what it has in common with other controllers of its subsystem.
    pub(crate) fn family(&self) -> &Arc<Family> {
        &self.family
    }

    /// A command found that a namespace is not reached as the controller said, or is not there: it is asked again.
    pub(crate) fn distrust(&self, stale: Stale) {
        self.distrusted.namespaces.fetch_or(stale.namespaces, Ordering::AcqRel);
        self.distrusted.access.fetch_or(stale.access, Ordering::AcqRel);
        self.news.notify_all();
    }

    /// What it is to be asked again; it is asked.
    pub(crate) fn take_distrust(&self) -> Stale {
        let Distrusted { namespaces, access } = &self.distrusted;
        Stale { namespaces: namespaces.swap(false, Ordering::AcqRel), access: access.swap(false, Ordering::AcqRel) }
    }

    /// Which look at the namespaces [`Controller::facts`] are of.
    #[inline]
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(crate) fn publish(&self, facts: Facts) {
        let revision = facts.revision;
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
        self.revision.store(revision, Ordering::Release);
    }

    /// Tells all controllers of the subsystem of the fences of this one. `facts` are of the association that there is news of.
    fn tell_fence(&self, desk: &Desk, facts: &Facts) {
        for (association, safe) in desk.association.fences(now()) {
            let life = facts.life.as_ref().filter(|_| facts.association == association);
            self.family.raise(Holder { controller: self.member, association }, safe, life);
        }
    }

    /// Something was sent to the controller, and is answered or given up: see [`Association::exchanged`].
    fn exchanged(&self) {
        let mut desk = self.desk();
        desk.association.exchanged(now());
        self.tell_fence(&desk, &self.facts());
    }

    /// Another controller of the subsystem may be asked about.
    pub(crate) fn called(&self) {
        self.news.notify_all();
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the association came up or is gone, or something else is done for lanes; not longer than `most`, nor than 100 ms.
    pub(crate) fn wait_for_news(&self, most: Duration) {
        let desk = self.desk();
        drop(self.news.wait_timeout(desk, most.min(NEWS_STEP)));
    }

    /// Does what is due and what lanes ask for, until the association is gone: signs of life, connections for queues, the next
    /// association. One thread of whoever composes the engine runs it.
    pub fn attend(self: &Arc<Self>) {
        loop {
            let mut desk = self.desk();
            if desk.is_closed || self.is_gone() {
                return;
            }
            let wanted = if desk.wanted.is_empty() { Wanted::None } else { Wanted::Queues };
            match desk.association.duty(now(), wanted) {
                Duty::LetGo => self.let_go_of_old(),
                Duty::Associate => {
                    drop(desk);
                    self.try_again();
                }
                Duty::Sign => {
                    drop(desk);
                    self.sign();
                }
                Duty::Connect => {
                    let ticket = desk.wanted.pop_front();
                    drop(desk);
                    ticket.into_iter().for_each(|ticket| self.serve(ticket));
                    self.exchanged();
                }
                Duty::Rest(span) => {
                    drop(self.news.wait_timeout(desk, span.min(EVENTS_EVERY).min(self.without_errand())));
                    self.hear();
                    self.run_errands();
                    self.exchanged();
                }
            }
        }
    }

    /// Gives a sign of life; whether the association is up.
    fn sign(&self) -> bool {
        let mut life = self.life();
        let Life::Up(admin) = &mut *life else { return false };
        let answer = admin.expect("keep alive", Data::None, |_| Command::keep_alive());
        drop(life);
        match answer {
            Ok(_) => {
                let mut desk = self.desk();
                desk.association.signed(now());
                self.tell_fence(&desk, &self.facts());
                desk.association.up().is_some()
            }
            Err(error) => {
                self.drop_association(error.to_string());
                false
            }
        }
    }

    /// Does something with the admin queue, if the association is up.
    pub(crate) fn with_admin<R>(&self, act: impl FnOnce(&mut Admin, &Facts) -> R) -> Option<R> {
        let facts = self.facts();
        let mut life = self.life();
        let Life::Up(admin) = &mut *life else { return None };
        Some(act(admin, &facts))
    }

    /// The association is over; the next one is tried.
    pub(crate) fn drop_association(&self, why: String) {
        tracing::warn!(controller = self.name, why, "the association is over");
        let mut desk = self.desk();
        desk.association.lost(now());
        self.tell_fence(&desk, &self.facts());
        self.up.store(0, Ordering::Release);
        drop(desk);
        *self.life() = Life::Down(why);
        self.hang_up();
        self.set_errands(None);
        self.family.call();
    }

    /// Closes the connection of an association that a lane ended.
    fn let_go_of_old(&self) {
        tracing::warn!(controller = self.name, "the association is ended: a connection was lost with writes on it");
        *self.life() = Life::Down("a connection was lost with writes on it".to_owned());
        self.hang_up();
        self.set_errands(None);
    }

    /// Connects a queue for a lane. If the association turns out to be over the lane waits for the next one.
    fn serve(self: &Arc<Self>, ticket: Arc<Ticket>) {
        match self.connect_queue() {
            Err(error) if error.code() != Fault::NO_QUEUE_LEFT && !is_refusal(&error) && !self.sign() => {
                tracing::debug!(controller = self.name, %error, "a queue waits for the next association");
                let mut desk = self.desk();
                if desk.is_closed {
                    // Whoever closed it answers no ticket any more.
                    drop(desk);
                    return ticket.give(Err(error));
                }
                desk.wanted.push_front(ticket);
            }
            answer => ticket.give(answer),
        }
    }

    /// Makes the next association, or gives up when there is no patience left.
    fn try_again(&self) {
        let before = self.facts();
        let since = (&*self.family, Some(&*before));
        match associate((&self.name, &self.way), (&self.address, &self.host), self.config, since) {
            Ok((admin, facts)) => {
                tracing::info!(
                    controller = self.name,
                    association = facts.association,
                    "the association is made again"
                );
                let mut desk = self.desk();
                if desk.is_closed {
                    return;
                }
                desk.qids = (1..=facts.queues).collect();
                desk.association.made(facts.association, facts.letting_go(self.config.keep_alive), now());
                *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = admin.handle();
                let number = facts.association;
                self.set_errands(errands::of(self.member, &facts, &self.host));
                self.publish(facts);
                *self.life() = Life::Up(Box::new(admin));
                self.up.store(number, Ordering::Release);
                drop(desk);
                self.news.notify_all();
            }
            // Keys that are wrong stay wrong: the target is not to be asked over and over.
            Err(error) if is_refusal(&error) => self.end(error.to_string()),
            // A device that is gone does not come back in this object: whoever waits is told at once, and another path is chosen.
            Err(error) if self.way.is_gone() => self.end(error.to_string()),
            Err(error) => {
                let mut desk = self.desk();
                let is_over = desk.association.failed(now()) == Patience::Over;
                // Decided: nobody can ask for more patience any more.
                self.is_gone.fetch_or(is_over, Ordering::AcqRel);
                drop(desk);
                let why = error.to_string();
                if is_over {
                    return self.end(format!("{why}; it was tried for {} s", self.patience().as_secs()));
                }
                let mut life = self.life();
                if let Life::Down(_) = &*life {
                    *life = Life::Down(why);
                }
            }
        }
    }

    /// The association is gone, for ever.
    fn end(&self, why: String) {
        let mut desk = self.desk();
        desk.association.lost(now());
        self.up.store(0, Ordering::Release);
        // Whoever closes it has fenced its lanes: all doubt is told. One that is given up may have lanes that look at their connections later.
        if !desk.is_closed {
            desk.association.given_up();
        }
        self.tell_fence(&desk, &self.facts());
        drop(desk);
        self.set_errands(None);
        self.family.call();
        *self.life() = Life::Gone(why);
        self.is_gone.store(true, Ordering::Release);
        let wanted = std::mem::take(&mut self.desk().wanted);
        wanted.into_iter().for_each(|ticket| ticket.give(Err(self.lost())));
        self.news.notify_all();
    }

    /// The error of whoever wants something of an association that is not up.
    pub fn lost(&self) -> Error {
        let made = |text: String| Error::new(ErrorKind::NoDevice, Verb::Open).at(self.name.clone()).detail(text);
        match &*self.life() {
            Life::Gone(why) => made(format!("the association with the target is over: {why}")).remedy("open it again"),
            Life::Down(why) => made(format!("the association with the target is lost, and being made again: {why}"))
                .remedy("look at the target and the network; I/O goes on when it is back"),
            Life::Up(_) => made("the connection with the target was lost".to_owned()).remedy("try again"),
        }
    }

    /// Ends the admin connection, of which `life` has one handle only.
    fn hang_up(&self) {
        if let Some(handle) = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take() {
            handle.end();
        }
    }

    /// Asks for an I/O queue; `wake` is told when there is an answer.
    pub(crate) fn ask_for_queue(&self, wake: Arc<dyn Wake>) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket { is_ready: AtomicBool::new(false), answer: Mutex::new(None), wake });
        let mut desk = self.desk();
        if desk.is_closed || self.is_gone() {
            drop(desk);
            ticket.give(Err(self.lost()));
            return ticket;
        }
        desk.wanted.push_back(Arc::clone(&ticket));
        drop(desk);
        self.news.notify_all();
        ticket
    }

    /// A lane lost its connection: it is looked after before the next sign of life is due.
    pub(crate) fn suspect(&self) {
        self.desk().association.suspect();
        self.news.notify_all();
    }

    /// A lane lost its connection with writes on it, whose outcome is unknown: see [`Association::doubt`].
    pub(crate) fn doubt(&self, facts: &Facts) {
        let mut desk = self.desk();
        desk.association.doubt(facts.association, facts.letting_go(self.config.keep_alive), now());
        self.up.store(desk.association.up().unwrap_or(0), Ordering::Release);
        self.tell_fence(&desk, facts);
        drop(desk);
        self.family.call();
    }

    pub(crate) fn connect_queue(self: &Arc<Self>) -> Result<IoQueue, Error> {
        let facts = self.facts();
        let (until, mut tries, mut lost) = (after(QUEUE_LEFT_WITHIN), 0, 0);
        loop {
            let qid = self.desk().qids.pop_front().ok_or_else(|| {
                Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                    .at(self.name.clone())
                    .with_code(Fault::NO_QUEUE_LEFT)
                    .detail(format!("all {} I/O queues of the controller are in use", facts.queues))
            })?;
            let error = match self.connect_queue_as(qid, &facts) {
                Ok(connection) => return Ok(IoQueue { connection, facts, qid, of: Arc::clone(self) }),
                Err(error) => error,
            };
            let mut desk = self.desk();
            desk.qids.push_back(qid);
            let (free, is_closed) = (desk.qids.len(), desk.is_closed);
            drop(desk);
            lost += usize::from(error.kind() == ErrorKind::Io);
            let may_last = error.kind() == ErrorKind::Io && lost <= QUEUES_LOST_MAX;
            if is_closed || !(is_still_there(&error) || may_last) || left(until).is_none() {
                return Err(error);
            }
            // Some others first: once none of them is free, they become so.
            tries += 1;
            if tries >= free.min(QUEUES_TRIED_AT_ONCE) {
                tries = 0;
                pause(QUEUE_LOOKED_AFTER);
            }
        }
    }

    fn connect_queue_as(&self, qid: u16, facts: &Facts) -> Result<Carrier, Error> {
        let Self { address: Address { host: to, port, subsystem }, host, config, .. } = self;
        let limits = ConnectionConfig {
            digests: config.digests,
            depth: facts.depth,
            // Commands of fabrics have their data there on every queue, also where the controller takes none of writes.
            capsule_data_bytes: facts.capsule_data_bytes.max(ADMIN_CAPSULE_DATA_BYTES),
        };
        // Both ways together: signs of life wait for it.
        let until = after(config.timeout);
        let of = QueueOf { qid, controller: facts.id };
        let by = (&self.way, host.peers(subsystem, Some(facts.protection)));
        let connection = Carrier::open(by, (to, *port), (of, limits), until)?;
        let mut first = Admin::new(self.name.clone(), connection, config.timeout)?;
        first.finish_by(Some(until));
        let request = QueueRequest { qid, entries: facts.depth + 1, keep_alive_ms: 0 };
        let data = ConnectData {
            host_id: host.id,
            controller: facts.id,
            subsystem: subsystem.clone(),
            host: host.nqn.clone(),
        };
        connect(&mut first, (request, &data), host.keys.as_deref(), config.timeout)?;
        let mut connection = first.into_connection();
        connection.set_capsule_data_bytes(facts.capsule_data_bytes);
        Ok(connection)
    }

    /// Ends the association for ever; in good order, if the target answers within a second each time. I/O queues that are in use end when their
    /// lanes see it.
    pub fn shut_down(&self) {
        self.desk().is_closed = true;
        self.news.notify_all();
        match self.life.try_lock() {
            Ok(mut life) => shut_down(&mut life),
            // The attendant waits for an answer: that one will not come any more.
            Err(TryLockError::WouldBlock) => self.hang_up(),
            Err(TryLockError::Poisoned(_)) => {}
        }
        self.hang_up();
        self.end("it was closed".to_owned());
    }
}

/// Tells the controller that its host goes; it ends the association by itself when the connection goes.
fn shut_down(life: &mut Life) {
    let Life::Up(admin) = life else { return };
    admin.hurry(SHUT_DOWN_WAIT);
    if let Ok(cc) = admin.property(regs::CC, PropertySize::Four) {
        let cc = Cc::from_raw(u32::try_from(cc).unwrap_or(0)).shutdown(Shutdown::Normal);
        let _ = admin.run(Data::None, |_| Command::property_set(regs::CC, cc.raw()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_the_system_is_no_status_of_a_queue_that_is_still_there() {
        let error = |kind, code| Error::new(kind, Verb::Open).with_code(code);
        // ENOMEM has the number of Command Sequence Error.
        assert_eq!(Status::COMMAND_SEQUENCE_ERROR.code(), 12);
        assert!(!is_still_there(&error(ErrorKind::ResourceLimit, 12)));
        assert!(is_still_there(&error(ErrorKind::Protocol, 12)));
        assert!(is_still_there(&error(ErrorKind::Protocol, i32::from(Status::INVALID_QUEUE_ID.code()))));
        assert!(!is_still_there(&error(ErrorKind::Protocol, 13)));
    }
}
