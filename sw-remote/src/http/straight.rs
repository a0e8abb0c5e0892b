//! Ranges straight from their connections: the head of an answer is read here, and its bytes are left on the connection for whoever has a
//! place for them, into which the kernel copies them. `hyper` would have them in a buffer of its own first, one task and two wake-ups away.
//!
//! ```text
//!   an idle connection, or a new one ─► request ─► head ─┬─ a length ─► Rest: what came with the head, and the connection ─► its place
//!                                                        └─ none ─► refused: the library does not read such ranges either
//! ```
//!
//! A connection is used again when its answer was read to the end and nothing came behind it; what comes on one that is idle ends it.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
    response::Parts,
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use object_store::client::{HttpError, HttpErrorKind, HttpRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tower_service::Service;

use super::{IDLE_CONNECTIONS, IDLE_TIME, limit::Place, progress::Silent, tcp::Tcp, tls};
use crate::land::{Landing, TooMany};

/// Bytes that are read for a head at first: with those of a usual answer, few of its body.
const HEAD_BYTES: usize = 2 << 10;
/// Bytes of a head at most, those of interim answers before it included.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Headers of an answer at most.
const HEADERS_MAX: usize = 100;

/// A range whose bytes are to stay on the connection: put into a request's extensions. The answer's then have a [`Taken`], if they did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Straight;

/// The bytes of an answer, for the first who takes them.
#[derive(Clone, Debug)]
pub(crate) struct Taken(Arc<Mutex<Option<Rest>>>);

impl Taken {
    pub(super) fn new(rest: Rest) -> Self {
        Self(Arc::new(Mutex::new(Some(rest))))
    }

    pub(crate) fn take(&self) -> Option<Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

type Stream = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;

/// A connection.
struct Wire {
    stream: Stream,
    /// What was read for the head of its last answer: bytes before `filled` came.
    read: Vec<u8>,
    filled: usize,
}

/// A server: whether by TLS, and its authority.
type Server = (bool, String);

struct Idle {
    server: Server,
    wire: Wire,
    since: Instant,
}

#[derive(Default)]
struct Kept {
    /// The last ones used are the last.
    idle: Vec<Idle>,
    /// A task ends those that are idle for too long.
    sweeps: bool,
}

/// Connections of its own.
#[derive(Clone)]
pub(super) struct Pool {
    connector: HttpsConnector<Tcp>,
    kept: Arc<Mutex<Kept>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// No connection was made.
#[derive(Debug)]
struct Unreached(Box<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for Unreached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no connection was made")
    }
}

impl std::error::Error for Unreached {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// An answer that is none.
#[derive(Debug)]
struct Nonsense(&'static str);

impl std::fmt::Display for Nonsense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the answer {}", self.0)
    }
}

impl std::error::Error for Nonsense {}

fn nonsense(why: &'static str) -> HttpError {
    HttpError::new(HttpErrorKind::Decode, Nonsense(why))
}

fn lost(error: io::Error) -> HttpError {
    HttpError::new(HttpErrorKind::Interrupted, error)
}

fn ended() -> HttpError {
    lost(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended within the answer"))
}

/// What a head says.
pub(super) struct Answer {
    pub(super) parts: Parts,
    pub(super) rest: Rest,
}

/// What a connection still has of an answer. The connection ends with it, but for one that was read to its end.
pub(crate) struct Rest {
    wire: Wire,
    pool: Pool,
    server: Server,
    /// Bytes of the body that are still to be had; `None` where nobody says how many.
    left: Option<u64>,
    /// What of the wire's buffer is of the body.
    at: usize,
    may_stay: bool,
    silence: Duration,
    place: Option<Place>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").field("left", &self.left).finish_non_exhaustive()
    }
}

/// Why bytes of an answer did not land.
#[derive(Debug)]
pub(crate) enum NotLanded {
    /// The connection was lost before their end.
    Cut(HttpError),
    /// There are more than were asked for.
    TooMany,
}

impl From<TooMany> for NotLanded {
    fn from(_: TooMany) -> Self {
        Self::TooMany
    }
}

impl Pool {
    pub(super) fn new(connector: HttpsConnector<Tcp>) -> Self {
        Self { connector, kept: Arc::default() }
    }

    /// Every section is list operations.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self, server: &Server) -> Option<Wire> {
        let mut kept = self.lock();
        let at = kept.idle.iter().rposition(|idle| idle.server == *server && idle.since.elapsed() < IDLE_TIME)?;
        Some(kept.idle.remove(at).wire)
    }

    /// Keeps a connection for the next range.
    fn keep(&self, server: Server, wire: Wire) {
        let mut kept = self.lock();
        if kept.idle.iter().filter(|idle| idle.server == server).count() >= IDLE_CONNECTIONS {
            return;
        }
        kept.idle.push(Idle { server, wire, since: Instant::now() });
        if std::mem::replace(&mut kept.sweeps, true) {
            return;
        }
        let kept = Arc::downgrade(&self.kept);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_TIME).await;
                let Some(kept) = kept.upgrade() else { return };
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.idle.retain(|idle| idle.since.elapsed() < IDLE_TIME);
                if kept.idle.is_empty() {
                    kept.sweeps = false;
                    return;
                }
            }
        });
    }

    async fn connect(&self, uri: &Uri) -> Result<Wire, HttpError> {
        let mut connector = self.connector.clone();
        let refused = |error: Box<dyn std::error::Error + Send + Sync>| {
            // A certificate that is not trusted will not be trusted a moment later.
            let kind = if tls::is_refusal(&*error) { HttpErrorKind::Unknown } else { HttpErrorKind::Connect };
            HttpError::new(kind, Unreached(error))
        };
        poll_fn(|context| connector.poll_ready(context)).await.map_err(refused)?;
        let stream = TokioIo::new(connector.call(uri.clone()).await.map_err(refused)?);
        Ok(Wire { stream, read: vec![0; HEAD_BYTES], filled: 0 })
    }

    /// Asks, and reads the head of the answer.
    pub(super) async fn ask(
        &self,
        request: &HttpRequest,
        silence: Duration,
        place: &Place,
    ) -> Result<Answer, HttpError> {
        let uri = request.uri();
        let server = server_of(uri).ok_or_else(|| nonsense("is of no server: the address has none"))?;
        let head = head_of(request);
        let silent = |silent: Silent| HttpError::new(HttpErrorKind::Timeout, silent);
        let work = async {
            // What is idle may have been closed at the other end at this moment; nothing of an answer came then.
            while let Some(mut wire) = self.idle(&server) {
                if !wire.is_quiet().await {
                    continue;
                }
                match wire.ask(&head, place).await {
                    Err(error) if wire.filled == 0 && error.kind() == HttpErrorKind::Interrupted => {}
                    answer => return answer.map(|parts| (wire, parts)),
                }
            }
            let mut wire = self.connect(uri).await?;
            let parts = wire.ask(&head, place).await?;
            Ok((wire, parts))
        };
        let (wire, (parts, at)) = place.progress().watch(silence, work).await.map_err(silent)??;
        let left = length(&parts)?;
        let closes = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("close"));
        let may_stay = parts.version == Version::HTTP_11 && !parts.headers.get_all(CONNECTION).iter().any(closes);
        let pool = self.clone();
        Ok(Answer { parts, rest: Rest { wire, pool, server, left, at, may_stay, silence, place: None } })
    }
}

fn server_of(uri: &Uri) -> Option<Server> {
    Some((uri.scheme() == Some(&http::uri::Scheme::HTTPS), uri.authority()?.as_str().to_owned()))
}

/// A request as it goes out (RFC 9112 §3 "Request Line"). It has no body.
fn head_of(request: &HttpRequest) -> Vec<u8> {
    let uri = request.uri();
    let mut head = Vec::with_capacity(1024);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    put(&[request.method().as_str().as_bytes(), b" ", path.as_bytes(), b" HTTP/1.1\r\n"]);
    if let (None, Some(host), port) = (request.headers().get(HOST), uri.host(), uri.port()) {
        put(&[b"host: ", host.as_bytes()]);
        // The port of the scheme is left out, as it is in what was signed.
        let own = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
        if let Some(port) = port.filter(|port| port.as_u16() != own) {
            put(&[b":", port.as_str().as_bytes()]);
        }
        put(&[b"\r\n"]);
    }
    for (name, value) in request.headers() {
        put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n"]);
    head
}

/// Bytes of the body that a head says; `None` if only its end says it (RFC 9112 §6.3 "Message Body Length").
fn length(parts: &Parts) -> Result<Option<u64>, HttpError> {
    if parts.status == StatusCode::NO_CONTENT || parts.status == StatusCode::NOT_MODIFIED {
        return Ok(Some(0));
    }
    if parts.headers.contains_key(TRANSFER_ENCODING) {
        return Ok(None);
    }
    let mut said = None;
    for value in parts.headers.get_all(CONTENT_LENGTH) {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let len: Option<u64> = digits.and_then(|digits| digits.parse().ok());
        if len.is_none() || said.is_some_and(|said| Some(said) != len) {
            return Err(nonsense("has a Content-Length that is none"));
        }
        said = len;
    }
    Ok(said)
}

impl Wire {
    /// Whether nothing came since its last answer. What comes unasked is of no request, and an end is an end.
    async fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        let stream = &mut self.stream;
        let looked = poll_fn(|context| {
            Poll::Ready(Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut byte)).is_pending())
        });
        looked.await
    }

    /// Sends a request and reads the head of its answer. Gives it, and where its body begins in what was read.
    async fn ask(&mut self, head: &[u8], place: &Place) -> Result<(Parts, usize), HttpError> {
        self.filled = 0;
        let mut rest = head;
        while !rest.is_empty() {
            let stream = &mut self.stream;
            let sent = poll_fn(|context| Pin::new(&mut *stream).poll_write(context, rest)).await.map_err(lost)?;
            if sent == 0 {
                return Err(lost(io::ErrorKind::WriteZero.into()));
            }
            rest = rest.get(sent..).unwrap_or_default();
            place.progress().moved();
        }
        let stream = &mut self.stream;
        poll_fn(|context| Pin::new(&mut *stream).poll_flush(context)).await.map_err(lost)?;
        let mut from = 0;
        loop {
            if self.read.len() == self.filled {
                if self.filled >= HEAD_BYTES_MAX {
                    return Err(nonsense("has a head without end"));
                }
                self.read.resize(self.filled * 2, 0);
            }
            let came = self.look().await.map_err(lost)?;
            if came == 0 {
                return Err(ended());
            }
            place.progress().moved();
            let (before, mut whole) = (self.filled, None);
            self.filled += came;
            while whole.is_none()
                && let Some((parts, len)) = parse(self.read.get(from..self.filled).unwrap_or_default())?
            {
                from += len;
                if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(nonsense("is of another protocol"));
                }
                whole = (!parts.status.is_informational()).then_some(parts);
            }
            let end = if whole.is_some() { from } else { self.filled };
            self.consume(before, end).await.map_err(lost)?;
            if let Some(parts) = whole {
                return Ok((parts, from));
            }
        }
    }

    /// Reads behind what was read, but leaves it on the connection where the kernel can: bytes of the body are copied by it once, into
    /// their place. Gives how many came.
    async fn look(&mut self) -> io::Result<usize> {
        let mut free = ReadBuf::new(self.read.get_mut(self.filled..).unwrap_or_default());
        let stream = &mut self.stream;
        poll_fn(|context| match stream.inner() {
            MaybeHttpsStream::Http(plain) => plain.inner().poll_peek(context, &mut free).map_ok(drop),
            MaybeHttpsStream::Https(_) => Pin::new(&mut *stream).poll_read(context, &mut free),
        })
        .await?;
        Ok(free.filled().len())
    }

    /// Takes bytes from the connection that were looked at: those before `end`, where those before `before` were taken.
    async fn consume(&mut self, mut before: usize, end: usize) -> io::Result<()> {
        if matches!(self.stream.inner(), MaybeHttpsStream::Https(_)) {
            return Ok(());
        }
        while before < end {
            let mut same = ReadBuf::new(self.read.get_mut(before..end).unwrap_or_default());
            let stream = &mut self.stream;
            poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut same)).await?;
            if same.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            before += same.filled().len();
        }
        self.filled = end;
        Ok(())
    }
}

/// The head that `bytes` begin with, and its length; `None` if more of it is to come.
fn parse(bytes: &[u8]) -> Result<Option<(Parts, usize)>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(status) = parsed.parse(bytes) else { return Err(nonsense("has a head that is none")) };
    let httparse::Status::Complete(len) = status else { return Ok(None) };
    let mut parts = http::Response::new(()).into_parts().0;
    let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    parts.status = code.ok_or_else(|| nonsense("has a status that is none"))?;
    parts.version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut map = HeaderMap::with_capacity(parsed.headers.len());
    for header in &*parsed.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(header.value)) else {
            return Err(nonsense("has a header that is none"));
        };
        map.append(name, value);
    }
    parts.headers = map;
    Ok(Some((parts, len)))
}

impl Rest {
    /// # Errors
    /// Its length is not known.
    pub(super) fn expect_length(&self) -> Result<(), HttpError> {
        self.left.map(drop).ok_or_else(|| nonsense("has no length"))
    }

    /// Has the place of its request until its end.
    pub(super) fn hold(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// What came with the head.
    fn early(&self) -> &[u8] {
        self.wire.read.get(self.at..self.wire.filled).unwrap_or_default()
    }

    /// Puts all of it into its place; `seen` is shown what lands, piece after piece.
    pub(crate) async fn land(mut self, landing: &mut Landing, mut seen: impl FnMut(&[u8])) -> Result<(), NotLanded> {
        // What came behind the body is of no request of ours.
        let Some(mut left) = self.left else { return Err(NotLanded::Cut(ended())) };
        let early = self.early();
        let own = early.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if own < early.len() {
            self.may_stay = false;
        }
        if left > u64::from(landing.len() - landing.done()) {
            return Err(NotLanded::TooMany);
        }
        let early = self.early().get(..own).unwrap_or_default();
        seen(early);
        landing.put(early)?;
        left -= own as u64;
        let Some(place) = self.place.take() else { return Err(NotLanded::Cut(ended())) };
        let (stream, progress) = (&mut self.wire.stream, place.progress());
        let work = async {
            while left > 0 {
                let came =
                    poll_fn(|context| landing.poll_fill(context, stream, left, &mut seen)).await.map_err(lost)?;
                if came == 0 {
                    return Err(ended());
                }
                left -= came as u64;
                progress.moved();
            }
            Ok(())
        };
        let silent = |silent: Silent| HttpError::new(HttpErrorKind::Timeout, silent);
        let landed = progress.watch(self.silence, work).await.map_err(silent).and_then(|landed| landed);
        landed.map_err(NotLanded::Cut)?;
        drop(place);
        self.end();
        Ok(())
    }

    /// The first `most` bytes of it, for a refusal, which may be cut anywhere; without a length as they come on the wire.
    pub(super) async fn collect(mut self, place: Place, most: usize) -> Vec<u8> {
        let left = usize::try_from(self.left.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let mut read = self.early().to_vec();
        self.may_stay &= read.len() <= left;
        let (stream, progress) = (&mut self.wire.stream, place.progress());
        let is_whole = |read: &[u8]| read.len() >= left || left == usize::MAX && read.ends_with(b"\r\n0\r\n\r\n");
        let work = async {
            let mut piece = [0; 1024];
            while !is_whole(&read) && read.len() < most {
                let mut free = ReadBuf::new(&mut piece);
                let came = poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut free)).await;
                if came.is_err() || free.filled().is_empty() {
                    return;
                }
                read.extend_from_slice(free.filled());
                progress.moved();
            }
        };
        // What is lost of it costs a word, not its meaning.
        let _ended = progress.watch(self.silence, work).await;
        drop(place);
        if read.len() == left {
            self.end();
        }
        read.truncate(left.min(most));
        read
    }

    /// Gives the connection back.
    fn end(self) {
        if self.may_stay {
            self.pool.keep(self.server, self.wire);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(head: &str) -> Result<Option<u64>, HttpError> {
        let (parts, len) = parse(head.as_bytes())?.unwrap();
        assert_eq!(len, head.len());
        length(&parts)
    }

    #[test]
    fn a_length_is_what_all_of_the_head_says() {
        let of = |headers: &str| said(&format!("HTTP/1.1 206 Partial Content\r\n{headers}\r\n"));
        assert_eq!(of("Content-Length: 7\r\n").unwrap(), Some(7));
        assert_eq!(of("Content-Length: 7\r\ncontent-length: 7\r\n").unwrap(), Some(7));
        assert_eq!(of("").unwrap(), None);
        assert_eq!(of("Transfer-Encoding: chunked\r\nContent-Length: 7\r\n").unwrap(), None);
        for wrong in ["-1", "+7", "7, 8", "", "18446744073709551616"] {
            of(&format!("Content-Length: {wrong}\r\n")).unwrap_err();
        }
        of("Content-Length: 7\r\nContent-Length: 8\r\n").unwrap_err();
        assert_eq!(said("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n").unwrap(), Some(0));
    }

    #[test]
    fn heads_that_are_none_are_told() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n").unwrap().is_none(), "more is to come");
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        for head in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 99 x\r\n\r\n", "HTTP/1.1 200 OK\r\nA b\r\n\r\n", &many] {
            parse(head.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_request_goes_out_with_its_host_and_without_the_port_of_its_scheme() {
        let of = |uri: &str| {
            let mut request = HttpRequest::new(Vec::new().into());
            *request.uri_mut() = uri.parse().unwrap();
            request.headers_mut().insert("a", HeaderValue::from_static("b"));
            String::from_utf8(head_of(&request)).unwrap()
        };
        assert_eq!(of("http://h:9/k?x=y"), "GET /k?x=y HTTP/1.1\r\nhost: h:9\r\na: b\r\n\r\n");
        assert_eq!(of("https://h:443/k"), "GET /k HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n");
        assert_eq!(of("http://[::1]:80/"), "GET / HTTP/1.1\r\nhost: [::1]\r\na: b\r\n\r\n");
    }
}
