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
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

/// The bucket that is there.
pub const BUCKET: &str = "bucket";
/// Who may use it: a key, and its secret.
pub const KEY: (&str, &str) = ("AKIDEXAMPLE", "secret/with+signs=");

/// What the wire does with a connection's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Passes everything on.
    Good,
    /// Closes the connection after so many bytes of answers, once.
    CutOnce(u64),
    /// Says nothing after so many bytes.
    HoldAfter(u64),
    /// Refuses: answers 503 to every request that it sees as a whole, so many times.
    TooMuch(u64),
    /// Loses the answer to the next of these requests, which the server has done, and is what `then` says afterwards.
    Lose(Request, Then),
    /// Takes so many bytes of requests in each hundredth of a second.
    Slow(usize),
}

/// Requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
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
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        match self {
            Self::Complete => line.starts_with("POST ") && line.contains("uploadId="),
            Self::Put => line.starts_with("PUT ") && !line.contains("uploadId="),
        }
    }
}

/// It, until it is dropped.
pub struct Server {
    root: TempDir,
    runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    wire: Arc<Mutex<Wire>>,
    /// Requests that were refused with 503.
    refused: Arc<AtomicU64>,
}

impl Server {
    /// Starts one, on a port of its own.
    ///
    /// # Panics
    /// If the machine has no directory or port for it.
    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(BUCKET)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY.0, KEY.1));
        let service = service.build();
        let (listener, inner) = runtime.block_on(async {
            // A small window, so that a slow wire is noticed by who sends.
            let outer = TcpSocket::new_v4().unwrap();
            outer.set_recv_buffer_size(64 << 10).unwrap();
            outer.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            (outer.listen(1024).unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap())
        });
        let (address, behind) = (listener.local_addr().unwrap(), inner.local_addr().unwrap());
        let http = auto::Builder::new(TokioExecutor::new());
        runtime.spawn(async move {
            while let Ok((socket, _)) = inner.accept().await {
                let (http, service) = (http.clone(), service.clone());
                tokio::spawn(async move { drop(http.serve_connection(TokioIo::new(socket), service).await) });
            }
        });
        let wire = Arc::new(Mutex::new(Wire::Good));
        let refused = Arc::new(AtomicU64::new(0));
        let (told, count) = (wire.clone(), refused.clone());
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(pass(socket, behind, told.clone(), count.clone()));
            }
        });
        Self { root, runtime, address, wire, refused }
    }

    /// Sets what the wire does from now on.
    pub fn set(&self, wire: Wire) {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = wire;
    }

    /// Requests that were refused with 503.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Ends it: nobody listens any more.
    pub fn stop(self) -> TempDir {
        self.runtime.shutdown_background();
        self.root
    }

    /// What a client of it sets in its environment.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ENDPOINT_URL_S3", format!("http://{}", self.address)),
            ("AWS_ACCESS_KEY_ID", KEY.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEY.1.to_owned()),
        ]
    }

    /// Temporary files of uploads that it still has.
    ///
    /// # Errors
    /// Those of looking.
    pub fn uploads_left(&self) -> io::Result<Vec<PathBuf>> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.root.path())? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".upload")) {
                left.push(path);
            }
        }
        Ok(left)
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

async fn pass(mut client: TcpStream, behind: SocketAddr, wire: Arc<Mutex<Wire>>, refused: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(behind).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let look = || *wire.lock().unwrap_or_else(PoisonError::into_inner);
    let become_ = |next| *wire.lock().unwrap_or_else(PoisonError::into_inner) = next;
    // What the wire is when the answer of this connection's request has been lost.
    let lost = Mutex::new(None);
    let asks = async {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let most = if let Wire::Slow(most) = look() { most } else { buffer.len() };
            let len = from_client.read(&mut buffer[..most]).await.unwrap_or(0);
            let bytes = &buffer[..len];
            match look() {
                Wire::Slow(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Wire::Lose(request, then) if request.is_in(bytes) => {
                    *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(then);
                }
                _ => {}
            }
            if len == 0 || to_server.write_all(bytes).await.is_err() {
                break;
            }
        }
        drop(to_server.shutdown().await);
    };
    let answers = async {
        let (mut buffer, mut passed) = (vec![0; 64 << 10], 0u64);
        loop {
            let len = from_server.read(&mut buffer).await.unwrap_or(0);
            if len == 0 {
                return;
            }
            let bytes = &buffer[..len];
            if let Some(then) = lost.lock().unwrap_or_else(PoisonError::into_inner).take() {
                become_(if then == Then::Silent { Wire::HoldAfter(0) } else { Wire::Good });
                return;
            }
            match look() {
                Wire::Good | Wire::Slow(_) | Wire::Lose(..) => {}
                Wire::CutOnce(after) if passed + len as u64 > after => {
                    become_(Wire::Good);
                    let rest = usize::try_from(after.saturating_sub(passed)).unwrap();
                    drop(to_client.write_all(&bytes[..rest]).await);
                    return;
                }
                Wire::HoldAfter(after) if passed + len as u64 > after => {
                    let rest = usize::try_from(after.saturating_sub(passed)).unwrap();
                    drop(to_client.write_all(&bytes[..rest]).await);
                    std::future::pending::<()>().await;
                }
                Wire::TooMuch(left) => {
                    let less = if left > 1 { Wire::TooMuch(left - 1) } else { Wire::Good };
                    become_(less);
                    refused.fetch_add(1, Ordering::Relaxed);
                    let answer = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    drop(to_client.write_all(answer).await);
                    return;
                }
                Wire::CutOnce(_) | Wire::HoldAfter(_) => {}
            }
            if to_client.write_all(bytes).await.is_err() {
                return;
            }
            passed += len as u64;
        }
    };
    // Whichever ends first closes both.
    tokio::select! {
        () = answers => {}
        () = async { asks.await; std::future::pending::<()>().await } => {}
    }
}
