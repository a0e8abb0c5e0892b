//! What a server answers, looked at before the library sees it: a refusal becomes an error that keeps its status and its word, and of an
//! answer only what can be trusted is left.
//!
//! ```text
//!   answer ─┬─ 2xx ─► ranges that can be counted, no weak tags ─► the library
//!           └─ else ─► some of its body ─► Refusal; the place is free, and as long as the server asks for is waited ─► tried again or told
//! ```

use std::{fmt, time::Duration};

use http::{
    HeaderMap, Method, StatusCode,
    header::{CONTENT_RANGE, ETAG, LOCATION, RETRY_AFTER},
    response::Parts,
};
use object_store::client::{HttpError, HttpErrorKind};

use super::body::{Watched, collect};

/// Bytes of a refusal's body that are read at most; its word stands at the beginning.
pub(super) const REFUSAL_BYTES_MAX: usize = 16 << 10;
/// Longest text of a refusal that is passed on, in bytes.
const TEXT_MAX: usize = 300;
/// Longest that is waited because a server says when to come again, each time: the backing off of the library comes on top.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// A server did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The store's own word for it, such as `NoSuchKey`.
    pub(crate) code: Option<String>,
    pub(crate) text: String,
    /// Where else it is to be asked for.
    pub(crate) location: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        for text in self.code.iter().chain(Some(&self.text).filter(|text| !text.is_empty())) {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// What an answer says of an object that the library does not pass on: headers of checksums.
#[derive(Clone, Debug)]
pub(crate) struct Told(pub(crate) HeaderMap);

/// An answer that says something impossible.
#[derive(Debug)]
struct Nonsense(&'static str);

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer has a {} that is none", self.0)
    }
}

impl std::error::Error for Nonsense {}

impl Refusal {
    fn new(parts: &Parts, body: &[u8]) -> Self {
        // AIStore's answers to HEAD have the text in a header.
        let aside = parts.headers.get("hdr-error").filter(|_| body.is_empty());
        let body = String::from_utf8_lossy(aside.map_or(body, http::HeaderValue::as_bytes));
        let word = |text: &str| Some(text.to_owned()).filter(|text| (1..=64).contains(&text.len()));
        let told = parts.headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        let json = hadoop(&body).or_else(|| aistore(&body));
        let (class, message) = json.as_ref().map_or((None, None), |(class, text)| (Some(&**class), Some(&**text)));
        let code = element(&body, "Code").or(told).or(class).and_then(word);
        let text = element(&body, "Message").or(message).unwrap_or(&body);
        let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = text.char_indices().find(|(at, c)| at + c.len_utf8() > TEXT_MAX) {
            text.truncate(end);
            text.push('…');
        }
        let location = parts.headers.get(LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        Self { status: parts.status, code, text, location: location.filter(|_| parts.status.is_redirection()) }
    }

    /// Whether it may be another time: the library tries those again.
    fn is_passing(&self) -> bool {
        let is_of_the_moment = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        // A proxy of AIStore's that has just begun knows of no target yet.
        let has_begun = self.code.as_deref() == Some("ErrNoNodes");
        let is_for_good = matches!(self.status.as_u16(), 501 | 505 | 507);
        is_of_the_moment || has_begun || self.status.is_server_error() && !is_for_good
    }

    /// Whether the server looked at the request and will not do it, and has not.
    pub(crate) fn is_final(&self) -> bool {
        self.status.is_client_error() && !self.is_passing()
    }
}

/// The text of the first element with this name.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// The exception that WebHDFS tells (Hadoop, "WebHDFS REST API", "Error Responses"), and its text.
fn hadoop(body: &str) -> Option<(String, String)> {
    let told: serde_json::Value = serde_json::from_str(body).ok()?;
    let told = told.get("RemoteException")?;
    let text = |name| told.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    // Behind its first line is where it was thrown.
    let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
    Some((text("exception")?, text("message").map(first).unwrap_or_default()))
}

/// The class of an error of AIStore's, and its text (AIStore, `cmn/err.go`, `ErrHTTP`).
fn aistore(body: &str) -> Option<(String, String)> {
    let told: serde_json::Value = serde_json::from_str(body).ok()?;
    told.get("url_path")?;
    let text = |name| told.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Some((text("tcode"), text("message")))
}

/// The error that a refusal is. Its body is read as far as it is wanted and let go of before anything is waited for.
pub(super) async fn refused(parts: &Parts, mut body: Watched) -> HttpError {
    // What is lost of it costs a word, not its meaning.
    let (read, _) = collect(&mut body, REFUSAL_BYTES_MAX).await;
    drop(body);
    refused_with(parts, &read).await
}

/// The same of a refusal whose body, or the beginning of it, was read.
pub(super) async fn refused_with(parts: &Parts, read: &[u8]) -> HttpError {
    let refusal = Refusal::new(parts, read.get(..REFUSAL_BYTES_MAX).unwrap_or(read));
    let kind = if refusal.is_passing() { HttpErrorKind::Request } else { HttpErrorKind::Unknown };
    if let Some(wait) = wait_of(&parts.headers).filter(|_| refusal.is_passing()) {
        tokio::time::sleep(wait).await;
    }
    HttpError::new(kind, refusal)
}

/// How long a server wants to be left alone (RFC 9110 §10.2.3 "Retry-After"), if it says it in seconds.
fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Leaves what can be trusted of an answer that is no refusal.
///
/// # Errors
/// A range that cannot be counted, of which the library would make another.
pub(super) fn check(method: &Method, parts: &mut Parts) -> Result<(), HttpError> {
    let is_sane = |value: &http::HeaderValue| value.to_str().is_ok_and(is_range);
    if !parts.headers.get_all(CONTENT_RANGE).iter().all(is_sane) {
        return Err(HttpError::new(HttpErrorKind::Decode, Nonsense("Content-Range")));
    }
    if matches!(*method, Method::HEAD | Method::GET) {
        let is_sum = |(name, _): &(&http::HeaderName, _)| name.as_str().starts_with("x-amz-checksum-");
        if parts.headers.iter().any(|header| is_sum(&header)) {
            let sums = parts.headers.iter().filter(is_sum).map(|(name, value)| (name.clone(), value.clone())).collect();
            parts.extensions.insert(Told(sums));
        }
    }
    // A weak one may stand for other bytes of the same meaning (RFC 9110 §8.8.1 "Weak versus Strong"): nothing is joined by it.
    let is_weak = |value: &http::HeaderValue| value.as_bytes().starts_with(b"W/");
    if matches!(*method, Method::GET | Method::HEAD) && parts.headers.get(ETAG).is_some_and(is_weak) {
        parts.headers.remove(ETAG);
    }
    Ok(())
}

/// Whether it is `bytes FIRST-LAST/LENGTH` with bytes that there are.
fn is_range(text: &str) -> bool {
    let parsed = || {
        let (range, len) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, len.parse::<u64>().ok()?))
    };
    parsed().is_some_and(|(first, last, len)| first <= last && last < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(status: u16, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(status).unwrap();
        parts.headers.extend(
            headers.iter().map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())),
        );
        parts
    }

    #[test]
    fn a_refusal_keeps_the_word_of_the_store() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The  token\nhas expired.</Message><Resource>/a</Resource></Error>";
        let refusal = Refusal::new(&parts(400, &[]), body);
        assert_eq!(refusal.code.as_deref(), Some("ExpiredToken"));
        assert_eq!(refusal.to_string(), "the server answered 400 Bad Request: ExpiredToken: The token has expired.");
        let refusal = Refusal::new(&parts(404, &[("x-ms-error-code", "BlobNotFound")]), b"");
        assert_eq!(refusal.to_string(), "the server answered 404 Not Found: BlobNotFound");
        let json = br#"{"tcode":"ErrBckNotFound","message":"bucket \"ais://b\" does not exist","method":"HEAD","url_path":"/v1/objects/b/o","status":404}"#;
        let refusal = Refusal::new(&parts(404, &[]), json);
        assert_eq!(
            refusal.to_string(),
            "the server answered 404 Not Found: ErrBckNotFound: bucket \"ais://b\" does not exist"
        );
        let to = [("location", "http://h/b")];
        assert_eq!(Refusal::new(&parts(301, &to), b"").location.as_deref(), Some("http://h/b"));
        assert_eq!(Refusal::new(&parts(404, &to), b"").location, None);
        let long = Refusal::new(&parts(500, &[]), &"ü".repeat(10_000).into_bytes());
        assert!(long.text.len() < TEXT_MAX + 4, "{}", long.text.len());
    }

    #[test]
    fn what_passes_is_tried_again_and_what_is_final_is_not() {
        let of = |status| Refusal::new(&parts(status, &[]), b"");
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(of(status).is_passing() && !of(status).is_final(), "{status}");
        }
        for status in [400, 401, 403, 404, 409, 412, 416] {
            assert!(!of(status).is_passing() && of(status).is_final(), "{status}");
        }
        for status in [301, 307, 501, 507] {
            assert!(!of(status).is_passing() && !of(status).is_final(), "{status}");
        }
    }

    #[test]
    fn a_server_is_left_alone_as_long_as_it_says_and_not_longer_than_we_want() {
        let of = |value| wait_of(&parts(503, &[("retry-after", value)]).headers);
        assert_eq!(of("2"), Some(Duration::from_secs(2)));
        assert_eq!(of("86400"), Some(RETRY_AFTER_MAX));
        assert_eq!(of("Tue, 01 Dec 2026 10:00:00 GMT"), None);
        assert_eq!(wait_of(&parts(503, &[]).headers), None);
    }

    #[test]
    fn ranges_that_cannot_be_counted_and_weak_tags_do_not_pass() {
        for range in ["bytes 0-18446744073709551615/5", "bytes 5-4/9", "bytes 0-9/9", "bytes 0-1/*", "items 0-1/2"] {
            check(&Method::GET, &mut parts(206, &[("content-range", range)])).unwrap_err();
        }
        check(&Method::GET, &mut parts(206, &[("content-range", "bytes 0-8/9")])).unwrap();
        let tags = |method, tag| {
            let mut parts = parts(200, &[("etag", tag)]);
            check(&method, &mut parts).unwrap();
            parts.headers.contains_key(ETAG)
        };
        assert!(!tags(Method::HEAD, "W/\"1\"") && tags(Method::HEAD, "\"1\"") && tags(Method::PUT, "W/\"1\""));
    }
}
