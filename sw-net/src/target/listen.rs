//! The listener, the threads of the connections, and their end.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Builder, JoinHandle},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb, seam::verbs::Device};

use crate::carrier::HangUp;

use super::{
    Counters, TargetConfig,
    connection::Connection,
    rdma,
    secure::Wire,
    subsystem::{Offer, Subsystem, add},
    wire::{WRITE_TIMEOUT, now},
};
use crate::tls::{self, ServerTls};

/// How long the listener rests after the system refused to give it a connection: descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long the connection may take that wakes the listener to its end.
const WAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// What all threads know.
pub(super) struct Shared {
    pub(super) subsystem: Subsystem,
    /// TLS that hosts must have.
    tls: Option<ServerTls>,
    /// Connections that are open, so that others can shut them down.
    open: Mutex<BTreeMap<u64, HangUp>>,
    stopping: AtomicBool,
    /// Tells a listener that rests.
    stopped: Condvar,
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    fn new(subsystem: Subsystem, tls: Option<ServerTls>) -> Arc<Self> {
        Arc::new(Self {
            subsystem,
            tls,
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
            stopped: Condvar::new(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, HangUp>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends connections: their threads see the end of the socket.
    pub(super) fn hang_up(&self, connections: &[u64]) {
        let open = self.open();
        connections.iter().filter_map(|number| open.get(number)).for_each(HangUp::end);
    }

    /// Whether the target is being stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Starts the thread of a connection; `None`: it was closed.
    pub(super) fn begin(
        self: &Arc<Self>,
        hang_up: HangUp,
        serve: impl FnOnce(&Shared, u64) + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let number = {
            let mut open = self.open();
            if open.len() >= self.subsystem.config.connections_max || self.is_stopping() {
                add(&self.refused, 1);
                return None;
            }
            let number = self.accepted.fetch_add(1, Ordering::Relaxed);
            open.insert(number, hang_up);
            number
        };
        let its = Arc::clone(self);
        let thread = Builder::new().name(format!("nvme target {number}")).spawn(move || {
            let _closing = Closing { shared: &its, number };
            serve(&its, number);
        });
        if thread.is_err() {
            self.open().remove(&number);
            add(&self.refused, 1);
        }
        thread.ok()
    }

    fn counters(&self) -> Counters {
        let tally = &self.subsystem.tally;
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Counters {
            connections: of(&self.accepted),
            connections_open: self.open().len() as u64,
            connections_refused: of(&self.refused),
            controllers: self.subsystem.controllers(),
            commands: of(&tally.commands),
            reads: of(&tally.reads),
            writes: of(&tally.writes),
            read_bytes: of(&tally.read_bytes),
            written_bytes: of(&tally.written_bytes),
            terminations: of(&tally.terminations),
            panics: of(&tally.panics),
            authenticated: of(&tally.authenticated),
            authentication_failed: of(&tally.authentication_failed),
            tls_failed: of(&tally.tls_failed),
            keep_alive_expired: of(&tally.keep_alive_expired),
        }
    }
}

/// A running target. Dropping it stops it.
pub struct Target {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Where a connection wakes the listener; one over RDMA looks up by itself.
    woken_at: Option<SocketAddr>,
    listener: Option<JoinHandle<()>>,
}

impl Target {
    /// Opens the namespaces, listens, and starts the listener's thread.
    ///
    /// # Errors
    /// `ApiMisuse`: a field of `config` outside its range. `NotFound`, `PermissionDenied`, `Io`: a file. `InUse`, `PermissionDenied`,
    /// `NoDevice`, `Io`: the address. `ResourceLimit`: no thread. `Unsupported`: TLS without OpenSSL 3.
    pub fn start(config: TargetConfig) -> Result<Target, Error> {
        config.validate()?;
        let wanted = config.listen;
        let tls = config.tls.as_ref().map(|tls| tls.server(&config.subsystem)).transpose()?;
        let shared = Shared::new(Subsystem::new(config)?, tls);
        let listener = TcpListener::bind(wanted).map_err(|error| listen_error(wanted, error))?;
        let address = listener.local_addr().map_err(|error| listen_error(wanted, error))?;
        Self::listen_by(shared, (address, Some(reachable(address))), move |shared| listen(&listener, shared))
    }

    /// As [`Target::start`], behind RDMA by a device; its address is one of the device's.
    ///
    /// # Errors
    /// As [`Target::start`]; `Unsupported` with TLS, which is for TCP.
    pub fn start_rdma(config: TargetConfig, device: Arc<dyn Device>) -> Result<Target, Error> {
        if config.tls.is_some() {
            return Err(tls::not_over_rdma("a target"));
        }
        // Data goes by keys, never in a capsule.
        let config = TargetConfig { capsule_data_bytes: 0, ..config };
        config.validate()?;
        let wanted = config.listen;
        let mut listener = device.listen(&wanted.to_string())?;
        let address = listener.address().parse().unwrap_or(wanted);
        let mut subsystem = Subsystem::new(config)?;
        subsystem.offer = Offer::RDMA;
        let shared = Shared::new(subsystem, None);
        Self::listen_by(shared, (address, None), move |shared| rdma::listen(&mut *listener, &device, shared))
    }

    fn listen_by(
        shared: Arc<Shared>,
        (address, woken_at): (SocketAddr, Option<SocketAddr>),
        listen: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<Target, Error> {
        let its = Arc::clone(&shared);
        let thread = Builder::new().name("nvme target".to_owned()).spawn(move || listen(&its));
        let thread = thread.map_err(|error| {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("nvme target");
            limit.with_code(error.raw_os_error().unwrap_or(0)).caused_by(error)
        })?;
        Ok(Target { shared, address, woken_at, listener: Some(thread) })
    }

    /// Where it listens, with the port that it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// Ends every connection, as if the network went away; the target goes on and takes new ones.
    pub fn drop_connections(&self) {
        let all: Vec<u64> = self.shared.open().keys().copied().collect();
        self.shared.hang_up(&all);
    }

    /// Closes the listener and every connection and joins the threads. *Blocking*: until the I/O that the threads are in ends; every
    /// wait of theirs for the network ends at once.
    pub fn stop(self) {}
}

impl Drop for Target {
    fn drop(&mut self) {
        {
            // Under the lock that a resting listener waits with, so that it cannot miss it; and that connections are registered under.
            let open = self.shared.open();
            self.shared.stopping.store(true, Ordering::Release);
            open.values().for_each(HangUp::end);
        }
        self.shared.stopped.notify_all();
        // The listener looks up when a connection comes. If none can be made, its queue is full of some that wake it.
        if let Some(at) = &self.woken_at {
            TcpStream::connect_timeout(at, WAKE_TIMEOUT).ok();
        }
        if let Some(listener) = self.listener.take() {
            // A listener that panicked has ended too.
            listener.join().ok();
        }
    }
}

/// An address that a connection to `address` goes to: that of the loopback where it is any.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::Acquire) {
            break;
        }
        let (over, running): (Vec<_>, Vec<_>) = threads.into_iter().partition(JoinHandle::is_finished);
        threads = running;
        join(over);
        match accepted {
            Ok((stream, _)) => threads.extend(begin(stream, shared)),
            Err(error) => {
                tracing::warn!(%error, "the target gets no connection from the system");
                let open = shared.open();
                let rested =
                    shared.stopped.wait_timeout_while(open, ACCEPT_PAUSE, |_| !shared.stopping.load(Ordering::Acquire));
                drop(rested);
            }
        }
    }
    join(threads);
}

pub(super) fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the target panicked");
        }
    }
}

/// Starts the thread of a connection; `None`: it was closed.
fn begin(stream: TcpStream, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    // Answers are small and somebody waits for them.
    stream.set_nodelay(true).ok()?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT)).ok()?;
    let twin = stream.try_clone().ok()?;
    shared.begin(HangUp::Tcp(twin), move |shared, number| {
        let wire = match &shared.tls {
            None => Wire::plain(&stream),
            Some(tls) => match Wire::secure(&stream, tls, now() + shared.subsystem.config.connect_timeout) {
                Some(wire) => wire,
                None => return add(&shared.subsystem.tally.tls_failed, 1),
            },
        };
        Connection::new(shared, &wire, number).serve();
    })
}

/// Takes a connection out of the table when its thread ends, however that is.
struct Closing<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            add(&self.shared.subsystem.tally.panics, 1);
        }
        if let Some(connection) = self.shared.open().remove(&self.number) {
            connection.end();
        }
    }
}

fn listen_error(at: SocketAddr, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AddrInUse => ErrorKind::InUse,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::AddrNotAvailable => ErrorKind::NoDevice,
        _ => ErrorKind::Io,
    };
    let code = error.raw_os_error().unwrap_or(0);
    Error::new(kind, Verb::Setup).at(format!("tcp {at}")).with_code(code).caused_by(error)
}
