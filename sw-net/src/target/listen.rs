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
    Counters, PORTS_MAX, PortAccess, TargetConfig,
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
    /// Connections that are open, with the port of each, so that others can shut them down.
    open: Mutex<BTreeMap<u64, (usize, HangUp)>>,
    /// Ports where nobody is let in.
    shut: [AtomicBool; PORTS_MAX],
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
            shut: Default::default(),
            stopping: AtomicBool::new(false),
            stopped: Condvar::new(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, (usize, HangUp)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends connections: their threads see the end of the socket.
    pub(super) fn hang_up(&self, connections: &[u64]) {
        let open = self.open();
        connections.iter().filter_map(|number| open.get(number)).for_each(|(_, hang_up)| hang_up.end());
    }

    /// Whether the target is being stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Starts the thread of a connection; `None`: it was closed.
    pub(super) fn begin(
        self: &Arc<Self>,
        (port, hang_up): (usize, HangUp),
        serve: impl FnOnce(&Shared, u64) + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let number = {
            let mut open = self.open();
            let is_shut = self.shut.get(port).is_some_and(|shut| shut.load(Ordering::Acquire));
            if open.len() >= self.subsystem.config.connections_max || is_shut || self.is_stopping() {
                add(&self.refused, 1);
                return None;
            }
            let number = self.accepted.fetch_add(1, Ordering::Relaxed);
            open.insert(number, (port, hang_up));
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
            cross_resets: of(&tally.cross_resets),
        }
    }
}

/// Whether a port lets hosts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It does.
    Open,
    /// It closes every connection at once, as if its network were gone.
    Shut,
}

/// A running target. Dropping it stops it.
pub struct Target {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    /// Where connections wake the listeners; one over RDMA looks up by itself.
    woken_at: Vec<SocketAddr>,
    listeners: Vec<JoinHandle<()>>,
}

impl Target {
    /// Opens the namespaces, listens, and starts the threads of the listeners.
    ///
    /// # Errors
    /// `ApiMisuse`: a field of `config` outside its range. `NotFound`, `PermissionDenied`, `Io`: a file. `InUse`, `PermissionDenied`,
    /// `NoDevice`, `Io`: an address. `ResourceLimit`: no thread. `Unsupported`: TLS without OpenSSL 3.
    pub fn start(config: TargetConfig) -> Result<Target, Error> {
        config.validate()?;
        let wanted: Vec<SocketAddr> = core::iter::once(config.listen).chain(config.more.iter().copied()).collect();
        let tls = config.tls.as_ref().map(|tls| tls.server(&config.subsystem)).transpose()?;
        let shared = Shared::new(Subsystem::new(config)?, tls);
        let mut target = Target { shared, addresses: Vec::new(), woken_at: Vec::new(), listeners: Vec::new() };
        for (port, wanted) in wanted.into_iter().enumerate() {
            let listener = TcpListener::bind(wanted).map_err(|error| listen_error(wanted, error))?;
            let address = listener.local_addr().map_err(|error| listen_error(wanted, error))?;
            target.woken_at.push(reachable(address));
            target.listen_by(address, move |shared| listen(&listener, port, shared))?;
        }
        Ok(target)
    }

    /// As [`Target::start`], behind RDMA by a device; its address is one of the device's.
    ///
    /// # Errors
    /// As [`Target::start`]; `Unsupported` with TLS, which is for TCP.
    pub fn start_rdma(config: TargetConfig, device: Arc<dyn Device>) -> Result<Target, Error> {
        if config.tls.is_some() {
            return Err(tls::not_over_rdma("a target"));
        }
        let config = TargetConfig { more: Vec::new(), ..config };
        config.validate()?;
        let wanted = config.listen;
        let mut listener = device.listen(&wanted.to_string())?;
        let address = listener.address().parse().unwrap_or(wanted);
        let mut subsystem = Subsystem::new(config)?;
        subsystem.offer = Offer::RDMA;
        let shared = Shared::new(subsystem, None);
        let mut target = Target { shared, addresses: Vec::new(), woken_at: Vec::new(), listeners: Vec::new() };
        target.listen_by(address, move |shared| rdma::listen(&mut *listener, &device, shared))?;
        Ok(target)
    }

    fn listen_by(
        &mut self,
        address: SocketAddr,
        listen: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<(), Error> {
        let its = Arc::clone(&self.shared);
        let thread = Builder::new().name("nvme target".to_owned()).spawn(move || listen(&its));
        self.listeners.push(thread.map_err(|error| {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("nvme target");
            limit.with_code(error.raw_os_error().unwrap_or(0)).caused_by(error)
        })?);
        self.addresses.push(address);
        Ok(())
    }

    /// Where it listens first, with the port that it got.
    pub fn address(&self) -> SocketAddr {
        // Whoever has one has started its first listener.
        self.addresses.first().copied().unwrap_or(self.shared.subsystem.config.listen)
    }

    /// All places where it listens, as [`TargetConfig::listen`] and [`TargetConfig::more`] name them, with the ports that they got.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// Changes how a namespace is reached by a port, by its place in [`Target::addresses`], and tells hosts that want to know. Without
    /// [`TargetConfig::tells`], and for a port or a namespace that is not there, nothing happens.
    pub fn set_access(&self, port: usize, nsid: u32, access: PortAccess) {
        self.shared.subsystem.access.set(port, nsid, access);
    }

    /// Opens or shuts a port, by its place in [`Target::addresses`]. Connections of one that is shut end.
    pub fn set_port(&self, port: usize, state: PortState) {
        let open = self.shared.open();
        if let Some(shut) = self.shared.shut.get(port) {
            shut.store(state == PortState::Shut, Ordering::Release);
        }
        let its = open.values().filter(|(at, _)| *at == port && state == PortState::Shut);
        its.for_each(|(_, hang_up)| hang_up.end());
    }

    /// Ends every connection, as if the network went away; the target goes on and takes new ones.
    pub fn drop_connections(&self) {
        let all: Vec<u64> = self.shared.open().keys().copied().collect();
        self.shared.hang_up(&all);
    }

    /// Closes the listeners and every connection and joins the threads. *Blocking*: until the I/O that the threads are in ends; every
    /// wait of theirs for the network ends at once.
    pub fn stop(self) {}
}

impl Drop for Target {
    fn drop(&mut self) {
        {
            // Under the lock that a resting listener waits with, so that it cannot miss it; and that connections are registered under.
            let open = self.shared.open();
            self.shared.stopping.store(true, Ordering::Release);
            open.values().for_each(|(_, hang_up)| hang_up.end());
        }
        self.shared.stopped.notify_all();
        for at in &self.woken_at {
            // The listener looks up when a connection comes. If none can be made, its queue is full of some that wake it.
            TcpStream::connect_timeout(at, WAKE_TIMEOUT).ok();
        }
        for listener in self.listeners.drain(..) {
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

fn listen(listener: &TcpListener, port: usize, shared: &Arc<Shared>) {
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
            Ok((stream, _)) => threads.extend(begin(stream, port, shared)),
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
fn begin(stream: TcpStream, port: usize, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    // Answers are small and somebody waits for them.
    stream.set_nodelay(true).ok()?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT)).ok()?;
    let twin = stream.try_clone().ok()?;
    shared.begin((port, HangUp::Tcp(twin)), move |shared, number| {
        let wire = match &shared.tls {
            None => Wire::plain(&stream),
            Some(tls) => match Wire::secure(&stream, tls, now() + shared.subsystem.config.connect_timeout) {
                Some(wire) => wire,
                None => return add(&shared.subsystem.tally.tls_failed, 1),
            },
        };
        Connection::new(shared, &wire, (port, number)).serve();
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
        if let Some((_, hang_up)) = self.shared.open().remove(&self.number) {
            hang_up.end();
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
