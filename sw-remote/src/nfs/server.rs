//! A server: its ports, its connections, and calls that are made again as long as there is patience.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use nfs3_types::{
    mount,
    nfs3::{self, NFS_PROGRAM},
    portmap::{self, PMAP_PROG, mapping},
    xdr_codec::Pack,
};
use sw_engine::{Error, ErrorKind, Verb};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    NfsConfig,
    connection::{Connection, Incoming, Lost},
    fault::{self, JUKEBOX, Refusal},
    message::{Credential, Message, Procedure},
    mounts::Exports,
    reply::{Garbled, Reply, VERIFIER_MAX},
};

/// How long is waited before a call is made again: the first time, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What is done, to what, and until when it is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) verb: Verb,
    pub(super) name: &'a str,
    pub(super) until: Instant,
}

impl At<'_> {
    pub(super) fn said(&self, status: u32) -> Error {
        fault::said(status, self.verb, self.name)
    }

    pub(super) fn fail(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.verb).at(self.name)
    }

    pub(super) fn garbled(&self, _garbled: Garbled) -> Error {
        fault::garbled(self.verb, self.name)
    }
}

/// The times that something is tried.
pub(super) struct Tries {
    until: Instant,
    wait: Duration,
}

impl Tries {
    pub(super) fn until(until: Instant) -> Self {
        Self { until, wait: AGAIN.0 }
    }

    /// Waits a while before the next one; `false` if there is no time for it.
    pub(super) async fn again(&mut self) -> bool {
        if Instant::now() + self.wait >= self.until {
            return false;
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(AGAIN.1);
        true
    }
}

/// Whether what was asked may have been done by an asking before, or may still be: one whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Once,
    Again,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u32,
    pub(super) reply: Reply,
    pub(super) asked: Asked,
}

impl Answer {
    /// What is behind a status that is good.
    pub(super) fn good(self, at: &At<'_>) -> Result<Reply, Error> {
        if self.status == 0 { Ok(self.reply) } else { Err(at.said(self.status)) }
    }
}

/// What listens at a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Mount,
    Nfs,
}

/// One.
pub(super) struct Server {
    host: String,
    /// The port in its address.
    port: Option<u16>,
    pub(super) config: NfsConfig,
    pub(super) credential: Credential,
    connections: Vec<Mutex<Option<Arc<Connection>>>>,
    next: AtomicUsize,
    /// The port that the portmapper told; zero for none.
    told_port: AtomicU16,
    /// It answered once: what fails now may come back.
    was_there: AtomicBool,
    pub(super) exports: Mutex<Exports>,
    /// Bytes of all its files that it may lose.
    pub(super) kept: AtomicU64,
}

fn wrong_host() -> Lost {
    io::Error::new(io::ErrorKind::NotFound, "the host's name has no address").into()
}

impl Server {
    /// Longest that one call takes.
    pub(super) fn longest(&self) -> Duration {
        self.config.patience + self.config.silence
    }

    /// The one that `host:port` is.
    pub(super) fn new(authority: &str, config: NfsConfig) -> Option<Self> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
            _ => (authority, None),
        };
        let bare = host.strip_prefix('[').map_or(Some(host), |inner| inner.strip_suffix(']'))?;
        if bare.is_empty() || (bare.contains(':') && bare.len() == host.len()) {
            return None;
        }
        let connections = (0..config.connections.clamp(1, 64)).map(|_| Mutex::default()).collect();
        Some(Self {
            host: bare.to_owned(),
            port,
            credential: Credential::new(config.uid, config.gid, &config.gids),
            config,
            connections,
            next: AtomicUsize::new(0),
            told_port: AtomicU16::new(0),
            was_there: AtomicBool::new(false),
            exports: Mutex::default(),
            kept: AtomicU64::new(0),
        })
    }

    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.config.patience
    }

    async fn connect(&self, port: u16) -> Result<Connection, Lost> {
        let found = tokio::net::lookup_host((self.host.as_str(), port)).await.map_err(|_| wrong_host())?;
        let (mut why, found): (_, Vec<SocketAddr>) = (wrong_host(), found.collect());
        for address in found {
            match Connection::new(address, self.config.silence).await {
                Ok(made) => return Ok(made),
                Err(lost) => why = lost,
            }
        }
        Err(why)
    }

    /// Asks the portmapper (RFC 1833 §3 "Port Mapper Program Protocol").
    async fn ask_port(&self, program: u32, version: u32) -> Result<u16, Lost> {
        let procedure = PMAP_PROG::PMAPPROC_GETPORT as u32;
        let procedure = Procedure { program: portmap::PROGRAM, version: portmap::VERSION, number: procedure };
        let asked = mapping { prog: program, vers: version, prot: portmap::IPPROTO_TCP, port: 0 };
        let message = Message::new(&Credential::none(), procedure, &asked);
        let other = |text: String| Lost::from(io::Error::other(text));
        let portmapper = self.config.portmap_port;
        let told = |lost: Lost| {
            other(format!(
                "no portmapper answers at port {portmapper} ({lost}), and no port was named: nfs_port, nfs_mount_port"
            ))
        };
        let connection =
            self.connect(portmapper).await.map_err(|lost| if lost.is_silence() { lost } else { told(lost) })?;
        let mut reply = Reply(connection.call(message, self.config.silence).await?);
        let port = matches!(head(&mut reply), Ok(None)).then(|| reply.u32().ok()).flatten();
        match port.and_then(|port| u16::try_from(port).ok()) {
            Some(port) if port != 0 => Ok(port),
            Some(_) => Err(other(format!("program {program} version {version} is not registered there over TCP"))),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "the portmapper's answer is none").into()),
        }
    }

    async fn port(&self, service: Service) -> Result<u16, Lost> {
        match service {
            Service::Mount => match self.config.mount_port {
                Some(port) => Ok(port),
                None => self.ask_port(mount::PROGRAM, mount::VERSION).await,
            },
            Service::Nfs => match (self.port.or(self.config.port), self.told_port.load(Ordering::Relaxed)) {
                (Some(port), _) => Ok(port),
                (None, 0) => {
                    let port = self.ask_port(nfs3::PROGRAM, nfs3::VERSION).await?;
                    self.told_port.store(port, Ordering::Relaxed);
                    Ok(port)
                }
                (None, port) => Ok(port),
            },
        }
    }

    /// How long an answer is waited for, behind all that was asked before it.
    fn limit(&self, until: Instant) -> Duration {
        until.saturating_duration_since(Instant::now()) + self.config.silence
    }

    async fn connection(&self, service: Service, until: Instant) -> Result<Arc<Connection>, Lost> {
        let silence = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
        timeout_at(until + self.config.silence, self.connected(service)).await.unwrap_or_else(|_| silence())
    }

    async fn connected(&self, service: Service) -> Result<Arc<Connection>, Lost> {
        if service != Service::Nfs {
            return self.connect(self.port(service).await?).await.map(Arc::new);
        }
        let slot = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len().max(1);
        let slot = self.connections.get(slot).ok_or_else(wrong_host)?;
        let mut kept = slot.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| !connection.is_over()) {
            return Ok(connection.clone());
        }
        let made = self.connect(self.port(service).await?).await;
        if made.is_err() {
            // It may come back at another one.
            self.told_port.store(0, Ordering::Relaxed);
        }
        let made = Arc::new(made?);
        *kept = Some(made.clone());
        Ok(made)
    }

    /// Whether there is a reason to try once more.
    async fn may_retry(&self, why: &Lost, tries: &mut Tries) -> bool {
        // One that was never there is not about to come back.
        !why.is_lie() && self.was_there.load(Ordering::Relaxed) && tries.again().await
    }

    /// Makes a call, by another connection if the answer is lost, and later if the server says so.
    pub(super) async fn ask(&self, at: &At<'_>, service: Service, message: Message) -> Result<Answer, Error> {
        let (mut tries, mut asked) = (Tries::until(at.until), Asked::Once);
        loop {
            let lost = match self.connection(service, at.until).await {
                Err(lost) => lost,
                Ok(connection) => match connection.call(message.clone(), self.limit(at.until)).await {
                    Err(lost) => {
                        asked = Asked::Again;
                        lost
                    }
                    Ok(bytes) => {
                        self.was_there.store(true, Ordering::Relaxed);
                        let answer = answer(at, bytes, asked)?;
                        if answer.status == JUKEBOX && service == Service::Nfs && tries.again().await {
                            continue;
                        }
                        return Ok(answer);
                    }
                },
            };
            if !self.may_retry(&lost, &mut tries).await {
                return Err(fault::lost(lost, at.verb, at.name));
            }
        }
    }

    /// Calls a procedure of NFS; what is behind the status of its answer.
    pub(super) async fn call(
        &self,
        at: &At<'_>,
        procedure: NFS_PROGRAM,
        args: &(impl Pack + Sync),
    ) -> Result<Answer, Error> {
        let message = Message::new(&self.credential, procedure, args);
        self.nfs(at, message).await
    }

    pub(super) async fn nfs(&self, at: &At<'_>, message: Message) -> Result<Answer, Error> {
        let mut answer = self.ask(at, Service::Nfs, message).await?;
        answer.status = answer.reply.u32().map_err(|garbled| at.garbled(garbled))?;
        Ok(answer)
    }

    /// Makes a call, and gives its answer as it comes in, with what may be tried again if that is lost.
    pub(super) async fn stream(&self, message: &Message, until: Instant) -> Result<(Arc<Connection>, Incoming), Lost> {
        let connection = self.connection(Service::Nfs, until).await?;
        let incoming = connection.stream(message.clone(), self.limit(until)).await?;
        Ok((connection, incoming))
    }
}

fn answer(at: &At<'_>, bytes: Bytes, asked: Asked) -> Result<Answer, Error> {
    let mut reply = Reply(bytes);
    if let Some(refusal) = head(&mut reply).map_err(|garbled| at.garbled(garbled))? {
        return Err(fault::refused(refusal, at.verb, at.name));
    }
    // What has no results (EXPORT) has no status either.
    let status = reply.clone().u32().unwrap_or(0);
    Ok(Answer { status, reply, asked })
}

/// The head of an answer behind its number: whether the call was taken.
pub(super) fn head(reply: &mut Reply) -> Result<Option<Refusal>, Garbled> {
    match reply.u32()? {
        0 => {
            reply.u32()?;
            reply.opaque(VERIFIER_MAX)?;
            let status = reply.u32()?;
            Ok((status != 0).then_some(Refusal::NotTaken(status)))
        }
        1 => match reply.u32()? {
            0 => Ok(Some(Refusal::Denied(0))),
            1 => Ok(Some(Refusal::Denied(reply.u32()?))),
            _ => Err(Garbled),
        },
        _ => Err(Garbled),
    }
}
