//! A cluster of AIStore: which proxy is asked, and which target it sends us to.
//!
//! ```text
//!   request ─► proxy ── 301, 307 ─► a target of the cluster map, or nobody
//! ```
//!
//! One step is followed, and that to nodes of the cluster map (`/v1/daemon?what=smap`) only: whoever answers for a proxy cannot send a token
//! or bytes elsewhere.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::{
    chain::chain,
    http::{Connections, Doubt, Most, Refusal, collect},
};

/// The first wait before something is tried again, and the longest.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// An answer that is none of AIStore's.
#[derive(Debug)]
pub(super) struct Nonsense(pub(super) &'static str);

impl std::fmt::Display for Nonsense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Nonsense {}

pub(super) fn nonsense(text: &'static str) -> HttpError {
    HttpError::new(HttpErrorKind::Decode, Nonsense(text))
}

/// What a server said, if it said something.
pub(super) fn refusal(error: &HttpError) -> Option<&Refusal> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Whether it says so of a request.
pub(super) fn is_status(error: &HttpError, status: u16) -> bool {
    refusal(error).is_some_and(|refusal| refusal.status.as_u16() == status)
}

/// Whether the same may be asked a moment later.
fn may_pass(error: &HttpError) -> bool {
    use HttpErrorKind::{Connect, Interrupted, Request, Timeout};
    matches!(error.kind(), Connect | Request | Timeout | Interrupted)
}

/// Waits between tries: longer each time, and none any more when patience has ended.
pub(super) struct Tries {
    since: Instant,
    wait: Duration,
    patience: Duration,
}

impl Tries {
    pub(super) fn new(patience: Duration) -> Self {
        Self { since: Instant::now(), wait: WAIT_MIN, patience }
    }

    /// Waits, if what failed may be tried again.
    pub(super) async fn again(&mut self, failed: HttpError) -> Result<(), HttpError> {
        if !may_pass(&failed) || self.since.elapsed() + self.wait >= self.patience {
            return Err(failed);
        }
        sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAIT_MAX);
        Ok(())
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// With its query, as it stands in a URL.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Bytes of the answer at most, where it has many.
    pub(super) most: Option<u64>,
    pub(super) doubt: Option<Doubt>,
}

impl Call {
    pub(super) fn new(method: Method, path: String) -> Self {
        Self { method, path, headers: HeaderMap::new(), body: Bytes::new(), most: None, doubt: None }
    }

    /// One with a message.
    pub(super) fn json(method: Method, path: String, body: &Value) -> Self {
        let mut call = Self::new(method, path);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        call.body = body.to_string().into();
        call
    }
}

/// A target, by the places of its networks: `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    public: String,
    control: String,
    data: String,
}

/// It.
#[derive(Debug)]
pub(super) struct Cluster {
    connections: Connections,
    token: Option<HeaderValue>,
    pub(super) patience: Duration,
    /// Proxies, the one that was named first, and which of them is asked.
    proxies: Mutex<(Vec<String>, usize)>,
    targets: Mutex<Arc<Vec<Target>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a URL is.
fn place_of(url: &Url) -> String {
    url.origin().ascii_serialization()
}

impl Cluster {
    /// # Errors
    /// A token that is none.
    pub(super) fn new(
        endpoint: String,
        token: Option<&str>,
        (connections, patience): (Connections, Duration),
    ) -> Result<Self, String> {
        let token = token.map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose();
        let mut token = token.map_err(|_| "the token of AIStore has characters of none".to_owned())?;
        token.iter_mut().for_each(|token| token.set_sensitive(true));
        let proxies = Mutex::new((vec![endpoint], 0));
        Ok(Self { connections, token, patience, proxies, targets: Mutex::default() })
    }

    fn proxy(&self) -> String {
        let proxies = lock(&self.proxies);
        proxies.0.get(proxies.1).cloned().unwrap_or_default()
    }

    /// Asks another proxy from now on, if `failed` is the one that is asked.
    fn turn(&self, failed: &str) {
        let mut proxies = lock(&self.proxies);
        let (known, now) = &mut *proxies;
        if known.get(*now).is_some_and(|proxy| proxy == failed) {
            *now = (*now + 1) % known.len();
        }
    }

    /// Sends it to a place, once.
    pub(super) async fn send(&self, url: &str, call: &Call) -> Result<HttpResponse, HttpError> {
        let request: Result<HttpRequest, _> =
            http::Request::builder().method(&call.method).uri(url).body(HttpRequestBody::from(call.body.clone()));
        let mut request = request.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        request.headers_mut().extend(call.headers.clone());
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        if let Some(most) = call.most {
            request.extensions_mut().insert(Most(most));
        }
        if let Some(doubt) = &call.doubt {
            request.extensions_mut().insert(doubt.clone());
        }
        self.connections.call(request).await
    }

    /// Sends it to a proxy, once: the answer, or the target that it names.
    async fn send_to_proxy(&self, call: &Call) -> Result<Result<HttpResponse, Url>, HttpError> {
        let proxy = self.proxy();
        match self.send(&format!("{proxy}{}", call.path), call).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(error) => match refusal(&error).and_then(|refusal| refusal.location.clone()) {
                Some(location) => self.checked(&location).await.map(Err),
                None => {
                    if may_pass(&error) {
                        self.turn(&proxy);
                    }
                    Err(error)
                }
            },
        }
    }

    /// Asks, once, wherever the answer is.
    pub(super) async fn ask(&self, call: &Call) -> Result<HttpResponse, HttpError> {
        match self.send_to_proxy(call).await? {
            Ok(answer) => Ok(answer),
            Err(target) => self.send(target.as_str(), call).await,
        }
    }

    /// The same as often as it takes, for what may be done twice.
    pub(super) async fn persist(&self, call: &Call) -> Result<HttpResponse, HttpError> {
        self.again(|| self.ask(call)).await
    }

    /// Tries until there is an answer, or patience has ended.
    pub(super) async fn again<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<T, HttpError>
    where
        F: Future<Output = Result<T, HttpError>>,
    {
        let mut tries = Tries::new(self.patience);
        loop {
            match ask().await {
                Ok(told) => return Ok(told),
                Err(failed) => tries.again(failed).await?,
            }
        }
    }

    /// The place that a proxy names for a request, which it is sent without its bytes. One that names none does it itself.
    pub(super) async fn place(&self, method: Method, path: &str) -> Result<String, HttpError> {
        let call = Call::new(method, path.to_owned());
        let proxy = self.proxy();
        match self.send_to_proxy(&call).await? {
            Err(target) => Ok(target.into()),
            // It was asked for nothing that changes anything.
            Ok(_) if call.method == Method::GET => Ok(format!("{proxy}{path}")),
            Ok(_) => Err(nonsense("the proxy does not send writes to a target")),
        }
    }

    /// What is asked, where AIStore's answer is JSON.
    pub(super) async fn json(&self, call: &Call) -> Result<Value, HttpError> {
        let mut body = self.ask(call).await?.into_body();
        let (read, end) = collect(&mut body, usize::MAX).await;
        end?;
        serde_json::from_slice(&read).map_err(|_| nonsense("the answer is not JSON"))
    }

    /// A location, if it is that of a node of the cluster.
    async fn checked(&self, location: &str) -> Result<Url, HttpError> {
        let url = Url::parse(location).map_err(|_| nonsense("the proxy sends us to what is no URL"))?;
        let place = place_of(&url);
        let is_known = |targets: &[Target]| targets.iter().any(|t| [&t.public, &t.control, &t.data].contains(&&place));
        if !is_known(&lock(&self.targets).clone()) && !is_known(&self.look().await?) {
            return Err(nonsense("the proxy sends us to a host that is not in the cluster's map"));
        }
        Ok(url)
    }

    /// Asks for the map.
    async fn look(&self) -> Result<Arc<Vec<Target>>, HttpError> {
        let call = Call::new(Method::GET, "/v1/daemon?what=smap".to_owned());
        let proxy = self.proxy();
        let mut body = self.send(&format!("{proxy}{}", call.path), &call).await?.into_body();
        let (read, end) = collect(&mut body, usize::MAX).await;
        end?;
        let map: Value = serde_json::from_slice(&read).map_err(|_| nonsense("the cluster's map is not JSON"))?;
        let targets = Arc::new(targets(&map).ok_or_else(|| nonsense("the cluster's map has no targets"))?);
        lock(&self.targets).clone_from(&targets);
        let mut proxies = lock(&self.proxies);
        for found in proxies_of(&map) {
            if !proxies.0.contains(&found) {
                proxies.0.push(found);
            }
        }
        Ok(targets)
    }

    /// Where bytes of an object are read, from where its headers are: a proxy names the networks of control and of data to those that are near
    /// it, and the public one to others.
    pub(super) fn data_of(&self, headers: &Url) -> Option<String> {
        let (place, targets) = (place_of(headers), lock(&self.targets).clone());
        let found = targets.iter().find(|target| target.public == place || target.control == place)?;
        let data = if found.public == place { &found.public } else { &found.data };
        headers.as_str().strip_prefix(&place).map(|path| format!("{data}{path}"))
    }

    /// A target's answer, and where it is.
    pub(super) async fn ask_target(&self, call: &Call) -> Result<(HttpResponse, Option<Url>), HttpError> {
        match self.send_to_proxy(call).await? {
            Ok(answer) => Ok((answer, None)),
            Err(target) => Ok((self.send(target.as_str(), call).await?, Some(target))),
        }
    }
}

/// The place of a node in one of its networks.
fn of_network(node: &Value, network: &str) -> Option<String> {
    let url = Url::parse(node.get(network)?.get("direct_url")?.as_str()?).ok()?;
    Some(place_of(&url))
}

fn targets(map: &Value) -> Option<Vec<Target>> {
    let of = |node: &Value| {
        let public = of_network(node, "public_net")?;
        let other = |network| of_network(node, network).unwrap_or_else(|| public.clone());
        Some(Target { control: other("intra_control_net"), data: other("intra_data_net"), public })
    };
    map.get("tmap")?.as_object()?.values().map(of).collect()
}

fn proxies_of(map: &Value) -> Vec<String> {
    let proxies = map.get("pmap").and_then(Value::as_object);
    proxies.into_iter().flat_map(|all| all.values()).filter_map(|node| of_network(node, "public_net")).collect()
}

/// A name as it stands in the path of a URL.
pub(super) fn escaped(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}
