//! Calls of Milvus's API: gRPC without streams, each message a request of HTTP/2 of its own on one connection.
//!
//! Source: grpc/grpc `doc/PROTOCOL-HTTP2.md`, `doc/statuscodes.md`.

use std::{future::poll_fn, pin::pin, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, header::CONTENT_TYPE};
use http_body::Body;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sw_engine::{Error, ErrorKind, Verb};
use tokio::net::TcpStream;

use super::messages::{Answer, Status};

/// Bytes of an answer, at most: a segment takes about 40, so that a million of them fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes before a message: whether it is compressed, and its length.
const HEAD: usize = 5;
/// Characters of what a server says that are shown.
const SHOWN_MAX: usize = 300;

/// Who asks, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// `HOST:PORT`.
    pub host: String,
    /// `user:password`, or a key; not shown.
    pub token: Option<Token>,
    /// Longest that the connection takes, and each answer.
    pub silence: Duration,
}

/// A secret.
#[derive(Clone)]
pub(super) struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What is asked about, for errors.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub verb: Verb,
    pub name: String,
}

impl About {
    pub fn fail(&self, kind: ErrorKind, detail: impl Into<String>) -> Error {
        Error::new(kind, self.verb).at(self.name.clone()).detail(detail.into())
    }

    fn late(&self, silence: Duration) -> Error {
        self.fail(ErrorKind::DeadlineExceeded, format!("Milvus was silent for {} ms", silence.as_millis()))
            .remedy("look whether the server is healthy; the setting remote_timeout_ms says how long is waited")
    }

    fn lost(&self, detail: String) -> Error {
        self.fail(ErrorKind::Io, detail).remedy("look whether Milvus runs, and listens for gRPC there (port 19530)")
    }
}

/// A connection.
pub(super) struct Api {
    send: http2::SendRequest<Once>,
    asker: Asker,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Api {
    pub async fn connect(asker: Asker, about: &About) -> Result<Self, Error> {
        let made = tokio::time::timeout(asker.silence, async {
            let tcp = TcpStream::connect(&asker.host).await;
            let tcp = tcp.map_err(|error| about.lost(format!("no connection: {error}")).caused_by(error))?;
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await;
            shaken.map_err(|error| about.lost(format!("it does not speak HTTP/2: {error}")))
        });
        let (send, connection) = made.await.map_err(|_| about.late(asker.silence))??;
        // Ends with the connection: who waits for an answer is told why by the answer.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { send, asker, driver })
    }

    /// Asks, and gives the answer if it is no refusal.
    pub async fn ask<A: Answer>(
        &mut self,
        method: &str,
        message: &impl prost::Message,
        about: &About,
    ) -> Result<A, Error> {
        let silence = self.asker.silence;
        let answer = tokio::time::timeout(silence, self.exchange(method, message, about));
        let bytes = answer.await.map_err(|_| about.late(silence))??;
        let answer = A::decode(bytes)
            .map_err(|error| about.fail(ErrorKind::Protocol, format!("the answer to {method}: {error}")))?;
        match answer.status() {
            Some(status) if status.code != 0 || status.error_code != 0 => Err(refused(status, about)),
            _ => Ok(answer),
        }
    }

    async fn exchange(&mut self, method: &str, message: &impl prost::Message, about: &About) -> Result<Bytes, Error> {
        let mut request =
            Request::post(format!("http://{}/milvus.proto.milvus.MilvusService/{method}", self.asker.host))
                .header(CONTENT_TYPE, "application/grpc")
                .header("te", "trailers");
        if let Some(Token(token)) = &self.asker.token {
            request = request.header("authorization", BASE64_STANDARD.encode(token));
        }
        let body = message.encode_to_vec();
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let framed = [&[0][..], &len.to_be_bytes(), &body].concat();
        let request = request.body(Once(Some(framed.into())));
        let request = request.map_err(|error| about.fail(ErrorKind::BadUri, error.to_string()))?;
        let lost = |error: hyper::Error| about.lost(format!("the connection was lost: {error}")).caused_by(error);
        let answer = self.send.send_request(request).await.map_err(lost)?;
        if !answer.status().is_success() {
            let detail = format!("{method} was answered with HTTP status {}", answer.status().as_u16());
            return Err(about
                .fail(ErrorKind::Protocol, detail)
                .remedy("give the port of gRPC, 19530 unless it was changed"));
        }
        let (parts, body) = answer.into_parts();
        told(&parts.headers, method, about)?;
        let (bytes, trailers) = collect(body, about).await?;
        told(&trailers, method, about)?;
        let mut rest = bytes.freeze();
        if rest.len() < HEAD {
            return Err(about.fail(ErrorKind::Protocol, format!("the answer to {method} ends before its message")));
        }
        let (compressed, len) = (rest.get_u8(), rest.get_u32());
        if compressed != 0 || sw_mem::index(u64::from(len)) != rest.len() {
            return Err(about.fail(ErrorKind::Protocol, format!("the answer to {method} is not one plain message")));
        }
        Ok(rest)
    }
}

/// All of an answer, and what stands behind it.
async fn collect(body: Incoming, about: &About) -> Result<(BytesMut, HeaderMap), Error> {
    let mut body = pin!(body);
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|error| about.lost(format!("the answer was cut: {error}")).caused_by(error))?;
        match frame.into_data() {
            Ok(data) if bytes.len() + data.len() > ANSWER_BYTES_MAX => {
                let detail = format!("an answer of more than {ANSWER_BYTES_MAX} bytes");
                return Err(about.fail(ErrorKind::TooLarge, detail));
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((bytes, trailers))
}

/// What gRPC says of a call, if it says that it failed.
fn told(headers: &HeaderMap, method: &str, about: &About) -> Result<(), Error> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let Some(status) = text("grpc-status").filter(|status| status != "0") else { return Ok(()) };
    let said = shown(&text("grpc-message").unwrap_or_default());
    let kind = match status.as_str() {
        "4" => ErrorKind::DeadlineExceeded,
        "5" => ErrorKind::NotFound,
        "7" | "16" => ErrorKind::PermissionDenied,
        "8" => ErrorKind::ResourceLimit,
        "12" => ErrorKind::Unsupported,
        "14" => ErrorKind::Busy,
        _ => ErrorKind::Protocol,
    };
    let error = about.fail(kind, format!("{method} failed with gRPC status {status}: {said}"));
    Err(if kind == ErrorKind::PermissionDenied { error.remedy(TOKEN) } else { error })
}

const TOKEN: &str = "give the user as USER:PASSWORD by MILVUS_TOKEN or the setting milvus_token";

/// A refusal of Milvus's.
///
/// Codes: milvus-io/milvus `pkg/util/merr/errors.go`; the older ones `common.proto`, `ErrorCode`.
fn refused(status: &Status, about: &About) -> Error {
    let (kind, remedy) = match (status.code, status.error_code) {
        (100 | 200 | 800, _) | (_, 4) => (ErrorKind::NotFound, "list the server: straightway ls milvus://HOST:PORT/"),
        (1400..=1402, _) | (_, 3) => (ErrorKind::PermissionDenied, TOKEN),
        (1..=9, _) => (ErrorKind::Busy, "look whether the server is healthy, and try again"),
        _ => (ErrorKind::Io, "look into the log of the server"),
    };
    let codes = format!("code {} ({})", status.code, status.error_code);
    about.fail(kind, format!("Milvus refused: {}, {codes}", shown(&status.reason))).remedy(remedy)
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A body of one piece.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
