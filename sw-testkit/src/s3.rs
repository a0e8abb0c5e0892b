//! A server of S3 in this process, over a directory: the crate `s3s-fs`, which looks at signatures and is not ours, behind a wire that can be cut and held.

#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

/// The bucket that is there.
pub const BUCKET: &str = "bucket";
/// Who may use it: a key, and its secret.
pub const KEY: (&str, &str) = ("AKIDEXAMPLE", "secret/with+signs=");

/// The certificate of a server with TLS, which is its own authority, for 127.0.0.1. Its key is no secret.
pub const CERTIFICATE: &str = include_str!("../tls/cert.pem");

/// What the wire does with a connection's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Passes everything on.
    Good,
    /// Closes the connection after so many bytes of answers, once.
    CutOnce(u64),
    /// Breaks the connection (RST) after so many bytes of answers, once.
    ResetOnce(u64),
    /// Says nothing after so many bytes.
    HoldAfter(u64),
    /// Refuses: answers 503 to each of these requests that it sees as a whole, so many times.
    TooMuch(Request, u64),
    /// Turns a bit of a byte that the next of these requests sends.
    AlterOnce(Request),
    /// Loses the answer to the next of these requests, which the server has done, and is what `then` says afterwards.
    Lose(Request, Then),
    /// Takes so many bytes of requests in each hundredth of a second.
    Slow(usize),
}

/// Requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Whatever it is.
    Any,
    /// A part of an upload.
    Part,
    /// A range of an object.
    Range,
    /// The end of an upload in parts.
    Complete,
    /// An object as a whole.
    Put,
}

/// What the wire is behind a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It passes everything on.
    Good,
    /// It says nothing more.
    Silent,
}

impl Request {
    /// Whether a request that begins so is one.
    fn is_in(self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(16 << 10)).unwrap_or_default());
        let line = text.split('\r').next().unwrap_or_default();
        match self {
            Self::Any => ["GET ", "HEAD ", "PUT ", "POST ", "DELETE "].iter().any(|method| line.starts_with(method)),
            Self::Part => line.starts_with("PUT ") && line.contains("partNumber="),
            Self::Range => line.starts_with("GET ") && text.to_ascii_lowercase().contains("\r\nrange: "),
            Self::Complete => line.starts_with("POST ") && line.contains("uploadId="),
            Self::Put => line.starts_with("PUT ") && !line.contains("uploadId="),
        }
    }
}

/// It, until it is dropped.
pub struct Server {
    root: TempDir,
    // Before what is behind it.
    proxy: Proxy,
    scheme: &'static str,
    runtime: Runtime,
}

/// The wire, before a server of any kind.
pub struct Proxy {
    runtime: Runtime,
    address: SocketAddr,
    wire: Arc<Mutex<Wire>>,
    /// Requests that were refused with 503.
    refused: Arc<AtomicU64>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Proxy {
    /// One before the server at `behind`, on a port of its own.
    ///
    /// # Panics
    /// If the machine has no port for it.
    pub fn before(behind: SocketAddr) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(async {
            // A small window, so that a slow wire is noticed by who sends.
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(64 << 10).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(1024).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Mutex::new(Wire::Good));
        let refused = Arc::new(AtomicU64::new(0));
        let (told, count) = (wire.clone(), refused.clone());
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(pass(socket, behind, told.clone(), count.clone()));
            }
        });
        Self { runtime, address, wire, refused }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what the wire does from now on.
    pub fn set(&self, wire: Wire) {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = wire;
    }

    /// What it does: what it does once is [`Wire::Good`] when it was done.
    pub fn wire(&self) -> Wire {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Starts one, on a port of its own.
    ///
    /// # Panics
    /// If the machine has no directory or port for it.
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// One that speaks TLS, with the certificate of [`CERTIFICATE`].
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_with_tls() -> Self {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("../tls/key.pem")).unwrap();
        let provider = Arc::new(rustls_graviola::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        Self::start_as(Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn start_as(tls: Option<TlsAcceptor>) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(BUCKET)).unwrap();
        let runtime = runtime();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY.0, KEY.1));
        let service = service.build();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let proxy = Proxy::before(listener.local_addr().unwrap());
        let http = auto::Builder::new(TokioExecutor::new());
        let scheme = if tls.is_some() { "https" } else { "http" };
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (http, service, tls) = (http.clone(), service.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(socket), service).await),
                        Some(tls) => {
                            let Ok(socket) = tls.accept(socket).await else { return };
                            drop(http.serve_connection(TokioIo::new(socket), service).await);
                        }
                    }
                });
            }
        });
        Self { root, proxy, scheme, runtime }
    }

    /// Sets what the wire does from now on.
    pub fn set(&self, wire: Wire) {
        self.proxy.set(wire);
    }

    /// Requests that were refused with 503.
    pub fn refused(&self) -> u64 {
        self.proxy.refused.load(Ordering::Relaxed)
    }

    /// Ends it: nobody listens any more.
    pub fn stop(self) -> TempDir {
        self.proxy.runtime.shutdown_background();
        self.runtime.shutdown_background();
        self.root
    }

    /// What a client of it sets in its environment.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ENDPOINT_URL_S3", format!("{}://{}", self.scheme, self.proxy.address)),
            ("AWS_ACCESS_KEY_ID", KEY.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEY.1.to_owned()),
        ]
    }

    /// Temporary files of uploads that it still has.
    ///
    /// # Errors
    /// Those of looking.
    pub fn uploads_left(&self) -> io::Result<Vec<PathBuf>> {
        self.files(".upload")
    }

    /// Files of what it gets at this moment.
    ///
    /// # Errors
    /// Those of looking.
    pub fn arriving(&self) -> io::Result<Vec<PathBuf>> {
        self.files(".tmp.")
    }

    /// Its own files whose names begin so.
    fn files(&self, begin: &str) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.path())? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// The file of an object.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(key)
    }

    /// The address of an object.
    pub fn uri(key: &str) -> String {
        format!("s3://{BUCKET}/{key}")
    }
}

/// One connection through the wire.
struct Passing {
    wire: Arc<Mutex<Wire>>,
    refused: Arc<AtomicU64>,
    /// What becomes of the answer to this connection's request.
    verdict: Mutex<Option<Verdict>>,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is lost, and this is what the wire is behind it.
    Lost(Then),
    /// It is a refusal.
    Refused,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Broken,
}

async fn pass(mut client: TcpStream, behind: SocketAddr, wire: Arc<Mutex<Wire>>, refused: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(behind).await else { return };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let passing = Passing { wire, refused, verdict: Mutex::new(None) };
    // Whichever ends first closes both.
    let end = tokio::select! {
        end = passing.answers(from_server, to_client) => end,
        end = async { passing.asks(from_client, to_server).await; std::future::pending::<End>().await } => end,
    };
    if end == End::Broken {
        drop(socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)));
    }
}

impl Passing {
    fn look(&self) -> Wire {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, wire: Wire) {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = wire;
    }

    async fn asks(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let (mut buffer, mut alters) = (vec![0; 256 << 10], false);
        loop {
            let most = if let Wire::Slow(most) = self.look() { most } else { buffer.len() };
            let len = from.read(&mut buffer[..most]).await.unwrap_or(0);
            let bytes = &mut buffer[..len];
            match self.look() {
                Wire::Slow(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Wire::Lose(request, then) if request.is_in(bytes) => drop(self.judge(Some(Verdict::Lost(then)))),
                Wire::TooMuch(request, _) if request.is_in(bytes) => drop(self.judge(Some(Verdict::Refused))),
                Wire::AlterOnce(request) if request.is_in(bytes) => {
                    self.set(Wire::Good);
                    alters = true;
                }
                // Behind the head of the request.
                _ if alters && len > 1000 => {
                    alters = false;
                    bytes[len - 1] ^= 4;
                }
                _ => {}
            }
            let bytes = &buffer[..len];
            if len == 0 || to.write_all(bytes).await.is_err() {
                break;
            }
        }
        drop(to.shutdown().await);
    }

    async fn answers(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> End {
        let (mut buffer, mut passed) = (vec![0; 64 << 10], 0u64);
        loop {
            let len = from.read(&mut buffer).await.unwrap_or(0);
            if len == 0 {
                return End::Closed;
            }
            let bytes = &buffer[..len];
            match self.judge(None) {
                Some(Verdict::Lost(then)) => {
                    self.set(if then == Then::Silent { Wire::HoldAfter(0) } else { Wire::Good });
                    return End::Closed;
                }
                Some(Verdict::Refused) => {
                    if let Wire::TooMuch(request, left) = self.look() {
                        self.set(if left > 1 { Wire::TooMuch(request, left - 1) } else { Wire::Good });
                    }
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    let answer = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    drop(to.write_all(answer).await);
                    return End::Closed;
                }
                None => {}
            }
            let rest = |after: u64| usize::try_from(after.saturating_sub(passed)).unwrap();
            match self.look() {
                wire @ (Wire::CutOnce(after) | Wire::ResetOnce(after)) if passed + len as u64 > after => {
                    self.set(Wire::Good);
                    drop(to.write_all(&bytes[..rest(after)]).await);
                    return if matches!(wire, Wire::CutOnce(_)) { End::Closed } else { End::Broken };
                }
                Wire::HoldAfter(after) if passed + len as u64 > after => {
                    drop(to.write_all(&bytes[..rest(after)]).await);
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
            if to.write_all(bytes).await.is_err() {
                return End::Closed;
            }
            passed += len as u64;
        }
    }

    /// Says what becomes of the answer, and takes what was said.
    fn judge(&self, verdict: Option<Verdict>) -> Option<Verdict> {
        std::mem::replace(&mut *self.verdict.lock().unwrap_or_else(PoisonError::into_inner), verdict)
    }
}
