//! The agent: what an engine opens, for hosts that speak AGP/1 (`docs/agp.md`).
//!
//! ```text
//!   listeners ─► a reader for each connection ─► Core: sw_agent::agent::Agent ─actions─► workers: open, list, read, write
//!                a writer for each connection ◄─ frames, payload ◄──────────────────────┘
//! ```
//!
//! A lock guards the state machine, and nobody who holds it waits for a socket or for storage. Payload by frames stays counted against its
//! session until a socket took it, so that a slow host slows the reader.

mod connection;
mod core;
mod work;

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::FileTypeExt, net::UnixListener},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb};

use self::core::Shared;
use crate::Engine;

/// The clock of the state machine ticks so often.
const TICK: Duration = Duration::from_millis(10);
/// Threads that open, read and write.
const WORKERS: usize = 16;
/// Longest that hosts have to leave when it stops.
const LEAVE: Duration = Duration::from_secs(2);

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentListen {
    /// A Unix socket; hosts of the same user, and root, are let in.
    Unix(PathBuf),
    /// An address; hosts that prove a key are let in.
    Tcp(String),
}

impl std::str::FromStr for AgentListen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", at)) if at.contains(':') => Ok(Self::Tcp(at.to_owned())),
            _ => Err("write unix:/PATH or tcp:HOST:PORT"),
        }
    }
}

/// How an agent is.
#[derive(Clone, Debug, Default)]
pub struct AgentServe {
    /// Where it listens.
    pub listen: Vec<AgentListen>,
    /// What addresses must begin with, to the end or to a slash; none: all are opened.
    pub allow: Vec<String>,
    /// A file of lines `TENANT:KEY`. Needed behind TCP.
    pub keys: Option<PathBuf>,
}

/// Counters and gauges of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentCounters {
    /// Connections, sessions, operations and leases that there are.
    pub gauges: [usize; 4],
    /// Segments of hosts that are mapped.
    pub segments: u64,
    /// Connections that were taken.
    pub connections: u64,
    /// Reads that succeeded, and their bytes.
    pub reads: (u64, u64),
    /// Writes that succeeded, and their bytes.
    pub writes: (u64, u64),
    /// Operations and requests that failed.
    pub failed: u64,
}

/// An agent that runs. [`AgentServer::stop`] ends it.
pub struct AgentServer {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    sockets: Vec<PathBuf>,
    ticker: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl fmt::Debug for AgentServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentServer").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Tenants and their keys.
pub(crate) type TenantKeys = HashMap<String, Vec<u8>>;

fn setup(kind: ErrorKind, at: &str, detail: impl Into<String>, remedy: &'static str) -> Error {
    Error::new(kind, Verb::Setup).at(at.to_owned()).detail(detail.into()).remedy(remedy)
}

fn read_keys(path: &Path) -> Result<TenantKeys, Error> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| {
        setup(ErrorKind::Io, &name, format!("the file of keys is not read: {error}"), "write lines TENANT:KEY into it")
    })?;
    let mut keys = TenantKeys::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty() && !text.starts_with('#')) {
        let pair = text.trim().split_once(':').filter(|(tenant, key)| {
            !tenant.is_empty()
                && tenant.len() <= sw_agent::limits::TENANT_BYTES_MAX
                && sw_agent::psk::KEY_BYTES.contains(&key.len())
        });
        // The line itself is a secret.
        let (tenant, key) = pair.ok_or_else(|| {
            setup(ErrorKind::BadFormat, &name, format!("line {line} is no TENANT:KEY"), "use keys of 16 to 1,024 bytes")
        })?;
        keys.insert(tenant.to_owned(), key.as_bytes().to_vec());
    }
    Ok(keys)
}

/// The tenant and the key of a file with one line.
pub(crate) fn read_key(path: &Path) -> Result<(String, Vec<u8>), Error> {
    let mut keys = read_keys(path)?.into_iter();
    match (keys.next(), keys.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(setup(
            ErrorKind::BadFormat,
            &path.display().to_string(),
            "not exactly one key",
            "write one line TENANT:KEY",
        )),
    }
}

/// A socket that nobody listens at any more gives way.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|facts| facts.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

impl AgentServer {
    /// Starts one that opens by `engine`.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration that cannot be: no place to listen, TCP without keys; what the system says of its places and threads.
    pub fn start(engine: Engine, config: &AgentServe) -> Result<Self, Error> {
        let keys = config.keys.as_deref().map(read_keys).transpose()?.unwrap_or_default();
        let is_tcp = |listen: &AgentListen| matches!(listen, AgentListen::Tcp(_));
        if config.listen.is_empty() {
            return Err(setup(ErrorKind::ApiMisuse, "agent", "no place to listen", "give unix:/PATH or tcp:HOST:PORT"));
        }
        if keys.is_empty() && config.listen.iter().any(is_tcp) {
            return Err(setup(ErrorKind::ApiMisuse, "agent", "TCP without keys", "give a file of lines TENANT:KEY"));
        }
        let shared = Arc::new(Shared::new(engine, config.allow.clone(), keys));
        let mut server = Self { shared, addresses: Vec::new(), sockets: Vec::new(), ticker: None };
        for listen in &config.listen {
            server.listen(listen)?;
        }
        for _ in 0..WORKERS {
            let shared = server.shared.clone();
            spawn("agent-work", move || work::run(&shared))?;
        }
        let (stop, stopped) = mpsc::channel();
        let shared = server.shared.clone();
        let ticker = spawn("agent-time", move || {
            while stopped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                shared.time();
            }
        })?;
        server.ticker = Some((stop, ticker));
        Ok(server)
    }

    fn listen(&mut self, listen: &AgentListen) -> Result<(), Error> {
        let failed = |at: &str, error: io::Error| {
            setup(ErrorKind::Io, at, format!("it cannot be listened at: {error}"), "choose another place")
        };
        let shared = self.shared.clone();
        match listen {
            AgentListen::Unix(path) => {
                let name = path.display().to_string();
                let listener = listen_unix(path).map_err(|error| failed(&name, error))?;
                self.sockets.push(path.clone());
                spawn("agent-accept", move || {
                    for stream in listener.incoming().take_while(|_| !shared.is_over()).flatten() {
                        connection::take_unix(&shared, stream);
                    }
                })?;
            }
            AgentListen::Tcp(at) => {
                let listener = TcpListener::bind(at.as_str()).map_err(|error| failed(at, error))?;
                self.addresses.push(listener.local_addr().map_err(|error| failed(at, error))?);
                spawn("agent-accept", move || {
                    for stream in listener.incoming().take_while(|_| !shared.is_over()).flatten() {
                        connection::take_tcp(&shared, stream);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Where it listens by TCP.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What is counted.
    pub fn counters(&self) -> AgentCounters {
        self.shared.counters()
    }

    /// Ends it: hosts are told, what is under way has a while to end, connections are closed and sockets removed.
    pub fn stop(mut self) {
        self.shared.drain(LEAVE);
        self.shared.end();
        if let Some((stop, ticker)) = self.ticker.take() {
            drop(stop);
            let _ = ticker.join();
        }
        // Who waits for a connection gets one, and looks whether it is over.
        for path in &self.sockets {
            let _ = std::os::unix::net::UnixStream::connect(path);
            let _ = fs::remove_file(path);
        }
        for at in &self.addresses {
            let _ = std::net::TcpStream::connect_timeout(at, Duration::from_secs(1));
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        setup(ErrorKind::ResourceLimit, "agent", format!("the system gives no threads: {error}"), "raise ulimit -u")
    })
}
