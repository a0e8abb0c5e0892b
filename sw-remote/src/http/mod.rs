//! Connections for `object_store`: HTTP/1.1 over TCP or TLS, with a limit of every wait and of the number of requests.
//!
//! HTTP/1.1 and not 2: each range has a connection of its own, so that none waits behind another's bytes.

mod answer;
mod body;
mod limit;
mod progress;
mod straight;
mod tcp;
mod tls;

use std::{
    error::Error as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{StatusCode, header::RANGE};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector as TcpConnector},
    rt::TokioExecutor,
};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
};
use sw_engine::Error;

pub(crate) use self::answer::{Refusal, Told};
pub(crate) use self::body::collect;
pub(crate) use self::straight::{NotLanded, Straight, Taken};
pub(crate) use self::tls::NoTls;
pub(crate) use self::tls::is_possible as is_tls_possible;
use self::{
    body::{Sent, Watched},
    limit::{Limit, Place},
    straight::{Answer, Pool},
    tcp::Tcp,
};

/// How connections are made and used.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Longest that a connection takes to be made. Default 5 s.
    pub connect: Duration,
    /// Longest silence of a server: while it takes a request, before its answer, and between pieces of one. One that is silent is given
    /// up after this, twice as long at most. Default 30 s.
    pub silence: Duration,
    /// Requests under way at a time, at most. Fewer where a server says that it is too much. Default 64.
    pub requests_max: usize,
    /// Certificates to trust, as a file of PEM, instead of those of the system.
    pub ca_file: Option<PathBuf>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { connect: 5 * second, silence: 30 * second, requests_max: 64, ca_file: None }
    }
}

/// Connections that are kept for the next request, of each server.
const IDLE_CONNECTIONS: usize = 64;
/// Longest that they are kept: servers and what is between close them after a minute or so.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// How many times the silence of a server one waits for a place while nothing moves at all: requests that have one are given up before.
const PLACE_SILENCES: u32 = 4;

/// Bytes of an answer that is not a range of an object, at most: a page of a listing, at six bytes for each of its names' bytes, fits.
const ANSWER_BYTES_MAX: u64 = 32 << 20;

/// Bytes that the answer to a request may have, where it has more than others and asks for no range: put into its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most(pub(crate) u64);

/// Whether the store may have done a request of which it did not say so: put into a request's extensions, it follows all of its tries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    pub(crate) fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Enters what came of a try. One that made no connection did nothing, and what was refused for good was not done.
    fn enter(&self, failed: &HttpError) {
        let is_final = failed.source().and_then(|error| error.downcast_ref()).is_some_and(Refusal::is_final);
        if failed.kind() != HttpErrorKind::Connect && !is_final {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Makes requests. Cloning shares connections and limits.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    client: Client<HttpsConnector<Tcp>, Sent>,
    pool: Pool,
    limit: Arc<Limit>,
    silence: Duration,
}

impl Connections {
    /// None is made yet.
    ///
    /// # Errors
    /// Certificates that cannot be read.
    pub(crate) fn new(config: &HttpConfig) -> Result<Self, Error> {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(config.connect));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls::config(config.ca_file.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Tcp(tcp));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(https.clone());
        Ok(Self {
            client,
            pool: Pool::new(https),
            limit: Arc::new(Limit::new(config.requests_max)),
            silence: config.silence,
        })
    }
}

impl HttpConnector for Connections {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connections {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.uri().scheme() == Some(&http::uri::Scheme::HTTPS) && !tls::is_possible() {
            return Err(HttpError::new(HttpErrorKind::Unknown, NoTls));
        }
        let place = self.limit.enter(self.silence * PLACE_SILENCES).await.map_err(too_long)?;
        if request.extensions().get::<Straight>().is_some() {
            return self.ask_straight(request, place).await;
        }
        let doubt = request.extensions().get::<Doubt>().cloned();
        let answer = self.ask(request, place).await;
        if let (Some(doubt), Err(error)) = (&doubt, &answer) {
            doubt.enter(error);
        }
        answer
    }
}

impl Connections {
    /// Asks for a range whose bytes stay on the connection, for whoever takes them from the answer's extensions.
    async fn ask_straight(&self, request: HttpRequest, place: Place) -> Result<HttpResponse, HttpError> {
        let Answer { mut parts, rest } = self.pool.ask(&request, self.silence, &place).await?;
        if !parts.status.is_success() {
            self.was_refused(parts.status);
            let read = rest.collect(place, answer::REFUSAL_BYTES_MAX).await;
            return Err(answer::refused_with(&parts, &read).await);
        }
        rest.expect_length()?;
        self.limit.went_well();
        answer::check(request.method(), &mut parts)?;
        parts.extensions.insert(Taken::new(rest.hold(place)));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(bytes::Bytes::new())))
    }

    fn was_refused(&self, status: StatusCode) {
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            self.limit.was_too_much();
        }
    }

    async fn ask(&self, request: HttpRequest, place: Place) -> Result<HttpResponse, HttpError> {
        let progress = place.progress();
        let usual = if request.headers().contains_key(RANGE) { u64::MAX } else { ANSWER_BYTES_MAX };
        let most = request.extensions().get::<Most>().map_or(usual, |most| most.0);
        let method = request.method().clone();
        let request = request.map(|body| Sent::new(body, progress.clone()));
        let answer = progress.watch(self.silence, self.client.request(request)).await.map_err(too_long)?;
        let (mut parts, body) = answer.map_err(told)?.into_parts();
        let body = Watched::new(body, self.silence, place, most);
        if !parts.status.is_success() {
            self.was_refused(parts.status);
            return Err(answer::refused(&parts, body).await);
        }
        self.limit.went_well();
        answer::check(&method, &mut parts)?;
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

fn too_long(silent: progress::Silent) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, silent)
}

/// What a request that got no answer failed of: it decides whether it is made again.
fn told(error: hyper_util::client::legacy::Error) -> HttpError {
    let kind = if error.is_connect() {
        // A certificate that is not trusted will not be trusted a moment later.
        if tls::is_refusal(&error) { HttpErrorKind::Unknown } else { HttpErrorKind::Connect }
    } else {
        kind_of(error.source().and_then(|source| source.downcast_ref()))
    };
    HttpError::new(kind, error)
}

/// The class of an error of a connection.
fn kind_of(error: Option<&hyper::Error>) -> HttpErrorKind {
    let Some(error) = error else { return HttpErrorKind::Unknown };
    if error.is_timeout() {
        return HttpErrorKind::Timeout;
    }
    if error.is_parse() {
        return HttpErrorKind::Decode;
    }
    let is_lost =
        error.is_closed() || error.is_incomplete_message() || error.is_canceled() || error.is_body_write_aborted();
    let io = error.source().is_some_and(|source| source.is::<std::io::Error>());
    if is_lost || io { HttpErrorKind::Interrupted } else { HttpErrorKind::Unknown }
}
