//! TLS 1.3 with a pre-shared key, on each connection, before its first unit.
//!
//! ```text
//!   TCP ─► handshake (OpenSSL, loaded when it is needed) ─┬─► Kernel:  the socket makes and reads records; bytes go as without TLS
//!                                                         └─► Library: OpenSSL does, in buffers of its own
//! ```
//!
//! TLS is demanded or it is not there: nothing goes on in the clear where it was asked for. What an association found first, kernel or
//! library, all of its connections and the associations behind it have, as objects were told of it.
//!
//! NVM Express TCP Transport Specification 1.1, section 3.6.1 "Transport Layer Security (TLS)". Keys and identities are
//! [`sw_nvme::psk`]'s.

mod bio;
mod kernel;
mod openssl;
mod table;

use std::{fmt, io, net::TcpStream, os::fd::AsRawFd, sync::Arc, time::Instant};

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::ForkMark;
use sw_nvme::{
    fabrics::Nqn,
    keyring::Keys,
    psk::{Answer, ConfiguredPsk, Derivation, Form, Suite, host_of},
};

use openssl::{Context, Keys as SessionKeys, Role, Secrets, Step};
pub(crate) use openssl::{Fault, Session};

use crate::socket::{Ready, Waited, wait_for};

/// Codes of errors that say that the other end will not have TLS, or not with this key: this, and the number of its alert, or
/// [`NO_ALERT`].
pub(crate) const REFUSED: i32 = 0x1_0000;
/// It gave none.
const NO_ALERT: i32 = 0x100;

/// How the bytes of a connection are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// They are not: they go in the clear.
    None,
    /// By TLS, in buffers of a library of this process.
    TlsLibrary,
    /// By TLS, in the kernel.
    TlsKernel,
}

/// Whether the kernel shall do TLS behind the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTls {
    /// Where it can.
    IfThere,
    /// Never: the library does.
    Never,
    /// It must: a connection is not made where it cannot.
    Demanded,
}

impl KernelTls {
    /// For the next connection of somebody who has one with `protection`.
    pub(crate) fn like(protection: Protection) -> Self {
        match protection {
            Protection::TlsKernel => Self::Demanded,
            Protection::TlsLibrary | Protection::None => Self::Never,
        }
    }
}

/// What a host has TLS with, to all subsystems.
pub struct HostTls {
    psk: Keys<ConfiguredPsk>,
    form: Form,
    kernel: KernelTls,
    /// One for each suite of the keys.
    contexts: Vec<Context>,
}

impl HostTls {
    /// `psk`: the keys that the host and the subsystems have, one for each or one for all; a subsystem without a key has no connection.
    /// `form`: how they are named, and made of the configured ones. Loads OpenSSL.
    ///
    /// # Errors
    /// `Unsupported` where OpenSSL 3 is not there, or does not take the suite of a key.
    pub fn new(psk: impl Into<Keys<ConfiguredPsk>>, form: Form, kernel: KernelTls) -> Result<Self, Error> {
        let psk = psk.into();
        let suites = Suite::ALL.into_iter().filter(|suite| psk.iter().any(|key| key.suite() == *suite));
        let contexts = suites.map(|suite| Context::new(suite, Role::Client)).collect::<Result<_, _>>()?;
        Ok(Self { psk, form, kernel, contexts })
    }
}

impl fmt::Debug for HostTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTls({:?}, {}, {:?})", self.psk, self.form.name(), self.kernel)
    }
}

/// Between whom a connection is, and what it must have of what was before.
#[derive(Clone, Copy)]
pub(crate) struct Peers<'a> {
    pub(crate) tls: &'a HostTls,
    pub(crate) host: &'a Nqn,
    pub(crate) subsystem: &'a Nqn,
    /// That of the association, where there is one.
    pub(crate) before: Option<Protection>,
}

/// How bytes go over a socket.
pub(crate) enum Channel {
    Plain,
    Library(Session),
    /// A child that was forked has the descriptor too, and says nothing in the parent's name.
    Kernel(ForkMark),
}

impl Channel {
    pub(crate) fn protection(&self) -> Protection {
        match self {
            Self::Plain => Protection::None,
            Self::Library(_) => Protection::TlsLibrary,
            Self::Kernel(_) => Protection::TlsKernel,
        }
    }

    /// Tells the peer that no more bytes come.
    pub(crate) fn close(&self, stream: &TcpStream) {
        match self {
            Self::Plain => {}
            Self::Library(session) => session.close(),
            Self::Kernel(fork) if fork.is_child() => {}
            Self::Kernel(_) => kernel::close(stream.as_raw_fd()),
        }
    }

    /// A read of a socket with the kernel's TLS failed: whether it may be tried again; an end is `Ok(false)`.
    ///
    /// # Errors
    /// That of the read, or what the record says that it stopped at.
    pub(crate) fn look_at_control(&self, stream: &TcpStream, error: io::Error) -> io::Result<bool> {
        if !matches!(self, Self::Kernel(_)) || !kernel::is_control(&error) {
            return Err(error);
        }
        kernel::control(stream.as_raw_fd()).map(|said| said == kernel::Control::Nothing)
    }
}

/// Makes TLS of a connection that nothing went over yet, as the host; `until` at most. `await_socket` waits for the socket.
///
/// # Errors
/// `PermissionDenied` with a code where the other end does not take the key or will not have TLS at all; `Io` where it closes the
/// connection; `DeadlineExceeded`; `Unsupported` where the kernel must do it and cannot.
pub(crate) fn connect(
    stream: &TcpStream,
    peers: Peers<'_>,
    (at, until): (&str, Instant),
    await_socket: impl Fn(Ready, Instant) -> io::Result<bool>,
) -> Result<Channel, Error> {
    let Peers { tls: HostTls { psk, form, kernel, contexts }, host, subsystem, before } = peers;
    let made = |kind, text: String| Error::new(kind, Verb::Open).at(at).detail(text);
    let found = psk.of(subsystem).and_then(|psk| Some((psk, contexts.iter().find(|of| of.suite() == psk.suite())?)));
    let (psk, context) = found.ok_or_else(|| {
        made(
            ErrorKind::PermissionDenied,
            format!("there is no key of tls for {subsystem}, and nothing is sent in the clear"),
        )
        .with_code(REFUSED | NO_ALERT)
        .remedy("add a line with its nqn and its key to the file of nvme_tcp_tls_key_file")
    })?;
    let key = psk.tls_psk(host, subsystem, *form).map_err(|error| {
        made(ErrorKind::Unsupported, error.to_string()).remedy("set nvme_tcp_tls_identity=v1, or shorten the names")
    })?;
    let identity = key.identity().to_owned();
    let failed = |fault| refusal(fault, at, &identity);
    let kernel = before.map_or(*kernel, KernelTls::like);
    let fd = stream.as_raw_fd();
    let system = |error: io::Error| failed(Failure::Tls(Fault::System(error.raw_os_error().unwrap_or(0))));
    let secrets = secrets(kernel, fd).map_err(system)?.ok_or_else(|| failed(Failure::NoKernel))?;
    let session = Session::new(context, fd, SessionKeys::Mine(key), secrets).map_err(system)?;
    loop {
        let wait = match session.handshake().map_err(|fault| failed(Failure::Tls(fault)))? {
            Step::Done => break,
            Step::WantsToRead => Ready::ToRead,
            Step::WantsToWrite => Ready::ToReadOrWrite,
        };
        if !await_socket(wait, until).map_err(system)? {
            return Err(failed(Failure::Silent));
        }
    }
    let channel = settle(session, fd, (psk.suite(), Role::Client), kernel).map_err(|_| failed(Failure::NoKernel))?;
    tracing::debug!(at, identity, suite = psk.suite().name(), protection = ?channel.protection(), "tls");
    Ok(channel)
}

/// Whether secrets are kept for the kernel; `None`: it must do TLS, and cannot.
///
/// # Errors
/// The connection is over already.
fn secrets(kernel: KernelTls, fd: i32) -> io::Result<Option<Secrets>> {
    if kernel != KernelTls::Never && kernel::prepare(fd)? {
        return Ok(Some(Secrets::Kept));
    }
    Ok((kernel != KernelTls::Demanded).then_some(Secrets::Hidden))
}

/// Gives the connection to the kernel, if it is to have it and takes it.
fn settle(session: Session, fd: i32, (suite, role): (Suite, Role), kernel: KernelTls) -> io::Result<Channel> {
    let traffic = session.take_traffic();
    // A record that is inside the library already, the kernel would not see.
    if !session.has_pending() && kernel::take_over(fd, suite, role, &traffic)? {
        session.forget();
        return Ok(Channel::Kernel(ForkMark::new()));
    }
    if kernel == KernelTls::Demanded {
        return Err(io::ErrorKind::Unsupported.into());
    }
    session.read_ahead();
    Ok(Channel::Library(session))
}

/// Why a host's handshake came to nothing.
enum Failure {
    Tls(Fault),
    Silent,
    NoKernel,
}

/// The error of a handshake.
fn refusal(failure: Failure, at: &str, identity: &str) -> Error {
    let made = |kind, text: String| Error::new(kind, Verb::Open).at(at).detail(text);
    let denied = |text: String, code| made(ErrorKind::PermissionDenied, text).with_code(REFUSED | code);
    match failure {
        Failure::Silent => {
            made(ErrorKind::DeadlineExceeded, "the other end did not finish the handshake of tls in time".into())
                .remedy("look whether the target speaks tls at this port; see its log")
        }
        Failure::NoKernel => {
            made(ErrorKind::Unsupported, "the kernel does no tls for this connection, and was to".into())
                .remedy("load its module tls (CONFIG_TLS), or open the object again")
        }
        Failure::Tls(Fault::Alert(number)) if is_final(number) => {
            let text = format!("the target does not take the key of tls: it says {} ({number})", alert_name(number));
            let remedy = match number {
                alert::PROTOCOL_VERSION => "the target must speak tls 1.3".to_owned(),
                _ => format!(
                    "give the target the same key (nvme_tcp_tls_key_file) for `{identity}`; nvme_tcp_tls_identity says how the key is named"
                ),
            };
            denied(text, i32::from(number)).remedy(remedy)
        }
        Failure::Tls(Fault::NoTls) => denied("what answers at this port is no tls".into(), NO_ALERT)
            .remedy("look at the port; where the target has no tls, nvme_tcp_tls=off sends everything in the clear"),
        Failure::Tls(Fault::WithoutKey) => denied("the target made a connection without the key".into(), NO_ALERT)
            .remedy("give the target the same key (nvme_tcp_tls_key_file)"),
        Failure::Tls(Fault::Cut) => {
            made(ErrorKind::Io, "the target closed the connection in the handshake of tls".into())
                .remedy(format!("see its log: it may have no tls at this port, or no key for `{identity}`"))
        }
        Failure::Tls(fault @ Fault::System(code)) => {
            made(ErrorKind::Io, format!("the handshake of tls failed: {fault}"))
                .with_code(code)
                .remedy("see the target's log and the network; one without tls ends connections like this")
        }
        Failure::Tls(fault @ (Fault::Library(_) | Fault::Alert(_))) => {
            made(ErrorKind::Io, format!("the handshake of tls failed: {fault}")).remedy("see the target's log")
        }
    }
}

/// The error of a library that does not take a suite.
fn refuses(suite: Suite) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Setup)
        .at("libssl.so.3")
        .detail(format!("the library does not take {} of tls 1.3", suite.name()))
        .remedy("look at its configuration, openssl.cnf")
}

/// TLS that was asked for where there is none.
pub(crate) fn not_over_rdma(name: &str) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Setup)
        .at(name.to_owned())
        .detail("tls protects connections over tcp; over rdma there is none")
        .remedy("use tcp, or leave nvme_tcp_tls off")
}

/// Whether an error says that trying again with the same key will not mend it.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied && error.code() & REFUSED != 0
}

/// Numbers of alerts (RFC 8446 §6).
mod alert {
    pub(super) const BAD_RECORD_MAC: u8 = 20;
    pub(super) const HANDSHAKE_FAILURE: u8 = 40;
    pub(super) const ILLEGAL_PARAMETER: u8 = 47;
    pub(super) const ACCESS_DENIED: u8 = 49;
    pub(super) const DECRYPT_ERROR: u8 = 51;
    pub(super) const PROTOCOL_VERSION: u8 = 70;
    pub(super) const INSUFFICIENT_SECURITY: u8 = 71;
    pub(super) const MISSING_EXTENSION: u8 = 109;
    pub(super) const UNKNOWN_PSK_IDENTITY: u8 = 115;
    pub(super) const CERTIFICATE_REQUIRED: u8 = 116;
}

fn is_final(number: u8) -> bool {
    use alert::{
        ACCESS_DENIED, BAD_RECORD_MAC, CERTIFICATE_REQUIRED, DECRYPT_ERROR, HANDSHAKE_FAILURE, ILLEGAL_PARAMETER,
        INSUFFICIENT_SECURITY, MISSING_EXTENSION, PROTOCOL_VERSION, UNKNOWN_PSK_IDENTITY,
    };
    matches!(
        number,
        ACCESS_DENIED
            | BAD_RECORD_MAC
            | CERTIFICATE_REQUIRED
            | DECRYPT_ERROR
            | HANDSHAKE_FAILURE
            | ILLEGAL_PARAMETER
            | INSUFFICIENT_SECURITY
            | MISSING_EXTENSION
            | PROTOCOL_VERSION
            | UNKNOWN_PSK_IDENTITY
    )
}

/// The name of an alert.
fn alert_name(number: u8) -> &'static str {
    match number {
        0 => "close_notify",
        10 => "unexpected_message",
        alert::BAD_RECORD_MAC => "bad_record_mac",
        22 => "record_overflow",
        alert::HANDSHAKE_FAILURE => "handshake_failure",
        alert::ILLEGAL_PARAMETER => "illegal_parameter",
        alert::ACCESS_DENIED => "access_denied",
        50 => "decode_error",
        alert::DECRYPT_ERROR => "decrypt_error",
        alert::PROTOCOL_VERSION => "protocol_version",
        alert::INSUFFICIENT_SECURITY => "insufficient_security",
        80 => "internal_error",
        90 => "user_canceled",
        alert::MISSING_EXTENSION => "missing_extension",
        110 => "unsupported_extension",
        alert::UNKNOWN_PSK_IDENTITY => "unknown_psk_identity",
        alert::CERTIFICATE_REQUIRED => "certificate_required",
        _ => "an alert that is not known here",
    }
}

/// A record with the alert `handshake_failure`: what a target says to a host that does not begin with TLS.
pub(crate) const WANTS_TLS: [u8; 7] = [21, 3, 3, 0, 2, 2, alert::HANDSHAKE_FAILURE];

/// Whether what came instead of a unit is an alert of TLS.
pub(crate) fn is_alert(first: &[u8]) -> bool {
    matches!(first, [21, 3, _, 0, 2, ..])
}

/// What a target has TLS with.
pub(crate) struct ServerTls {
    context: Context,
    find: openssl::Find,
    suite: Suite,
    kernel: KernelTls,
}

impl ServerTls {
    /// One that takes the keys of hosts for names that `is_ours` knows.
    ///
    /// # Errors
    /// As [`HostTls::new`]; `ApiMisuse` for keys of two suites.
    pub(crate) fn new(
        psk: Keys<ConfiguredPsk>,
        derivation: Derivation,
        kernel: KernelTls,
        is_ours: impl Fn(&Nqn) -> bool + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // One suite a context: whoever names a key of the other one would be offered the wrong one.
        let mut suites = Suite::ALL.into_iter().filter(|suite| psk.iter().any(|key| key.suite() == *suite));
        let (Some(suite), None) = (suites.next(), suites.next()) else {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .detail("the keys of tls of one target must be of one hash")
                .remedy("make them all with `straightway nvme gen-tls-key --hash sha256`, or all with sha384"));
        };
        let context = Context::new(suite, Role::Server)?;
        let find: openssl::Find =
            Arc::new(move |identity| psk.of(&host_of(identity)?)?.answer(identity, derivation, &is_ours));
        Ok(Self { context, find, suite, kernel })
    }

    /// Makes TLS of a connection that nothing came over yet, as the target; `until` at most, however slowly bytes come: the socket does
    /// not block meanwhile, and behind the handshake only if the kernel has the connection.
    ///
    /// # Errors
    /// [`Fault`]; `None`: there is no time left.
    pub(crate) fn accept(&self, stream: &TcpStream, until: Instant) -> Result<(Channel, Answer), Option<Fault>> {
        let fd = stream.as_raw_fd();
        let system = |error: io::Error| Some(Fault::System(error.raw_os_error().unwrap_or(0)));
        let secrets = secrets(self.kernel, fd).map_err(system)?.ok_or(Some(Fault::Library(0)))?;
        let session =
            Session::new(&self.context, fd, SessionKeys::Theirs(Arc::clone(&self.find)), secrets).map_err(system)?;
        stream.set_nonblocking(true).map_err(system)?;
        loop {
            let wait = match session.handshake().map_err(Some)? {
                Step::Done => break,
                Step::WantsToRead => Ready::ToRead,
                Step::WantsToWrite => Ready::ToReadOrWrite,
            };
            if wait_for(fd, wait, until).map_err(system)? == Waited::TimeOver {
                return Err(None);
            }
        }
        let answer = session.take_answer().ok_or(Some(Fault::WithoutKey))?;
        let channel = settle(session, fd, (self.suite, Role::Server), self.kernel).map_err(system)?;
        if channel.protection() == Protection::TlsKernel {
            stream.set_nonblocking(false).map_err(system)?;
        }
        Ok((channel, answer))
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
