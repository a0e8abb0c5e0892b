//! WebHDFS: the namenode says what it knows, and which datanode gives or takes bytes; no more than one step is followed, and that where the
//! namenode says.
//!
//! Chunks are compared with their checksums by the datanode that reads them, not here: on the way from there bytes have TCP's alone.

use std::{ops::Range, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, header::CONTENT_LENGTH};
use http_body::Body;
use object_store::client::{HttpRequest, HttpRequestBody, HttpResponse, HttpService};
use serde_json::Value;
use sw_engine::{ErrorKind, TransportName, seam::EntryKind};
use url::Url;

use super::{
    fault::Failed,
    files::{Asked, Files, Growing, Meta, Ranges, Tries, persist},
};
use crate::{
    HTTP,
    http::{Connections, collect},
    land::{Landing, TooMany},
};

/// Bytes of a range, at most: what any answer may have.
const RANGE_BYTES_MAX: u64 = 32 << 20;
/// Pages of a listing, at most.
const PAGES_MAX: u32 = 1_000_000;
/// What stands before every name.
const PREFIX: &str = "/webhdfs/v1";

/// A cluster.
pub(super) struct Web {
    /// `http://HOST:PORT` of the namenode.
    pub(super) base: String,
    pub(super) user: Option<String>,
    pub(super) connections: Connections,
    pub(super) patience: Duration,
}

fn nonsense(text: &str) -> Failed {
    Failed::new(ErrorKind::Protocol, text, "look whether it is the namenode's port for HTTP")
}

/// A text as it stands in a URL.
fn escaped(text: &str) -> String {
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

impl Web {
    fn url(&self, path: &str, operation: &str, words: &[(&str, &str)]) -> String {
        let user = self.user.as_deref().map(|user| ("user.name", user));
        let mut url = format!("{}{PREFIX}{}?op={operation}", self.base, escaped(path));
        for (name, value) in words.iter().copied().chain(user) {
            url.push_str(&format!("&{name}={}", escaped(value)));
        }
        url
    }

    async fn send(&self, method: Method, url: &str, body: Bytes) -> Result<HttpResponse, Failed> {
        let request: Result<HttpRequest, _> =
            http::Request::builder().method(method).uri(url).body(HttpRequestBody::from(body));
        let request = request.map_err(|error| Failed::new(ErrorKind::BadUri, error.to_string(), "look at the name"))?;
        Ok(self.connections.call(request).await?)
    }

    /// Asks the namenode. What it says may be nothing.
    async fn ask(&self, method: Method, path: &str, operation: &str, words: &[(&str, &str)]) -> Result<Value, Failed> {
        let mut body = self.send(method, &self.url(path, operation, words), Bytes::new()).await?.into_body();
        let (read, end) = collect(&mut body, usize::MAX).await;
        end?;
        if read.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&read).map_err(|_| nonsense("the namenode's answer is not JSON"))
    }

    /// The datanode that the namenode names for an operation.
    async fn place(
        &self,
        method: Method,
        path: &str,
        operation: &str,
        words: &[(&str, &str)],
    ) -> Result<String, Failed> {
        let words = [words, &[("noredirect", "true")]].concat();
        let told = self.ask(method, path, operation, &words).await?;
        let place = told.get("Location").and_then(Value::as_str).unwrap_or_default();
        let url = Url::parse(place).map_err(|_| nonsense("the namenode names no datanode"))?;
        let is_one = url.has_host() && url.username().is_empty() && url.path().starts_with(PREFIX);
        if !is_one || !self.base.starts_with(&format!("{}:", url.scheme())) {
            return Err(nonsense("what the namenode names is no datanode"));
        }
        // It may have letters of no URL's, which are escaped here.
        Ok(url.into())
    }
}

/// What is said of a name.
fn meta(status: &Value) -> Option<Meta> {
    let number = |name| status.get(name).and_then(Value::as_u64);
    let is_directory = status.get("type")?.as_str()? == "DIRECTORY";
    let (kind, len) = if is_directory { (EntryKind::Directory, 0) } else { (EntryKind::Object, number("length")?) };
    Some(Meta { kind, len, modified_ms: number("modificationTime")?, id: number("fileId").unwrap_or(0) })
}

/// A page of a listing, and how many names come behind it.
fn page(told: &Value) -> Option<(Vec<(String, Meta)>, u64)> {
    let listing = told.get("DirectoryListing")?;
    let statuses = listing.get("partialListing")?.get("FileStatuses")?.get("FileStatus")?.as_array()?;
    let named = |status: &Value| Some((status.get("pathSuffix")?.as_str()?.to_owned(), meta(status)?));
    let entries: Option<Vec<_>> = statuses.iter().map(named).collect();
    Some((entries?, listing.get("remainingEntries")?.as_u64()?))
}

impl Files for Web {
    fn transport(&self) -> TransportName {
        HTTP
    }

    fn stat<'a>(&'a self, path: &'a str) -> Asked<'a, Meta> {
        async move {
            let told = self.ask(Method::GET, path, "GETFILESTATUS", &[]).await?;
            told.get("FileStatus").and_then(meta).ok_or_else(|| nonsense("the namenode says nothing of the file"))
        }
        .boxed()
    }

    fn list<'a>(&'a self, path: &'a str) -> Asked<'a, Vec<(String, Meta)>> {
        async move {
            let (mut found, mut after) = (Vec::<(String, Meta)>::new(), String::new());
            for _ in 0..PAGES_MAX {
                let told = self.ask(Method::GET, path, "LISTSTATUS_BATCH", &[("startAfter", &after)]).await?;
                let (entries, left) = page(&told).ok_or_else(|| nonsense("the namenode's listing is none"))?;
                let last = entries.last().map(|(name, _)| name.clone());
                found.extend(entries);
                match last {
                    Some(last) if left > 0 && last != after => after = last,
                    _ if left > 0 => return Err(nonsense("the namenode's listing does not go on")),
                    _ => return Ok(found),
                }
            }
            Err(Failed::new(ErrorKind::TooLarge, "the directory has more names than are read", "list one below it"))
        }
        .boxed()
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> Asked<'a, ()> {
        async move {
            let words = [("destination", to), ("renameoptions", "OVERWRITE")];
            self.ask(Method::PUT, from, "RENAME", &words).await.map(drop)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, path: &'a str) -> Asked<'a, bool> {
        async move {
            let told = self.ask(Method::DELETE, path, "DELETE", &[("recursive", "false")]).await?;
            Ok(told.get("boolean").and_then(Value::as_bool).unwrap_or(false))
        }
        .boxed()
    }

    fn bytes(self: Arc<Self>, path: String, meta: Meta) -> Arc<dyn Ranges> {
        Arc::new(WebRanges { files: self, path, meta })
    }

    fn make(self: Arc<Self>, path: String) -> Asked<'static, Box<dyn Growing>> {
        async move {
            let words = [("overwrite", "true"), ("createparent", "true")];
            let place = self.place(Method::PUT, &path, "CREATE", &words).await?;
            self.send(Method::PUT, &place, Bytes::new()).await?;
            Ok(Box::new(WebFile { files: self, path, sent: 0 }) as Box<dyn Growing>)
        }
        .boxed()
    }
}

/// A file.
struct WebRanges {
    files: Arc<Web>,
    path: String,
    meta: Meta,
}

impl WebRanges {
    async fn land(&self, range: Range<u64>, landing: &mut Landing) -> Result<(), Failed> {
        let len = (range.end - range.start).min(RANGE_BYTES_MAX);
        let words = [("offset", range.start.to_string()), ("length", len.to_string())];
        let words = words.each_ref().map(|(name, value)| (*name, value.as_str()));
        let place = self.files.place(Method::GET, &self.path, "OPEN", &words).await?;
        let answer = self.files.send(Method::GET, &place, Bytes::new()).await?;
        let said = answer.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
        if said.is_some_and(|said| said != len) {
            // Of a file that became shorter there may be less.
            if self.files.stat(&self.path).await? != self.meta {
                return Err(Failed::changed());
            }
            return Err(nonsense("the datanode's answer has another length than was asked for"));
        }
        let (mut body, mut left) = (answer.into_body(), len);
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let Ok(piece) = frame?.into_data() else { continue };
            let over = |TooMany| nonsense("the datanode's answer has more bytes than it says");
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| over(TooMany))?;
            landing.put(&piece).map_err(over)?;
        }
        if left > 0 {
            return Err(Failed::passing(
                ErrorKind::ShortData,
                format!("the datanode's answer ended {left} bytes early"),
            ));
        }
        Ok(())
    }
}

impl Ranges for WebRanges {
    fn ready(&self) -> Asked<'_, ()> {
        async move {
            if self.meta.len == 0 {
                return Ok(());
            }
            let words = [("offset", "0"), ("length", "1")];
            self.files.place(Method::GET, &self.path, "OPEN", &words).await.map(drop)
        }
        .boxed()
    }

    fn read<'a>(&'a self, range: Range<u64>, landing: &'a mut Landing) -> Asked<'a, ()> {
        self.land(range, landing).boxed()
    }
}

/// A file that is written: each piece is an append of its own.
struct WebFile {
    files: Arc<Web>,
    path: String,
    sent: u64,
}

impl WebFile {
    async fn put(&self, bytes: Bytes) -> Result<(), Failed> {
        let place = self.files.place(Method::POST, &self.path, "APPEND", &[]).await?;
        let mut body = self.files.send(Method::POST, &place, bytes).await?.into_body();
        let (_, end) = collect(&mut body, usize::MAX).await;
        Ok(end?)
    }

    async fn grow(&mut self, bytes: Bytes) -> Result<(), Failed> {
        let (begin, until) = (self.sent, self.sent + bytes.len() as u64);
        let mut tries = Tries::new(self.files.patience);
        loop {
            let put = self.put(bytes.slice(sw_mem::index(self.sent - begin)..)).await;
            // Nothing is sent again before it is known where the file ends.
            let len = persist(self.files.patience, || self.files.stat(&self.path)).await?.len;
            if !(self.sent..=until).contains(&len) {
                let text = format!("the file has {len} bytes, where {} to {until} were written", self.sent);
                return Err(Failed::new(ErrorKind::ShortData, text, "look at the cluster; write it again"));
            }
            if len > self.sent {
                tries.moved();
            }
            self.sent = len;
            match put {
                // What was lost may have been the answer.
                _ if len == until => return Ok(()),
                Ok(()) => {
                    let text = format!("the file has {len} bytes instead of {until}");
                    return Err(Failed::new(ErrorKind::ShortData, text, "look at the cluster; write it again"));
                }
                Err(failed) => tries.again(failed).await?,
            }
        }
    }
}

impl Growing for WebFile {
    fn append(&mut self, bytes: Bytes) -> Asked<'_, ()> {
        self.grow(bytes).boxed()
    }

    fn close(&mut self) -> Asked<'_, ()> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("/a b/ü?&#+%"), "/a%20b/%C3%BC%3F%26%23%2B%25");
    }

    #[test]
    fn what_is_said_of_names_is_read() {
        let text = r#"{"DirectoryListing":{"partialListing":{"FileStatuses":{"FileStatus":[
            {"fileId":7,"length":5,"modificationTime":9,"pathSuffix":"a","type":"FILE"},
            {"fileId":8,"length":0,"modificationTime":9,"pathSuffix":"d","type":"DIRECTORY"}]}},"remainingEntries":3}}"#;
        let (entries, left) = page(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!((entries.len(), left), (2, 3));
        assert_eq!(entries[0].1, Meta { kind: EntryKind::Object, len: 5, modified_ms: 9, id: 7 });
        assert_eq!((entries[1].0.as_str(), entries[1].1.kind), ("d", EntryKind::Directory));
        assert!(page(&serde_json::json!({"DirectoryListing": {}})).is_none());
        assert!(meta(&serde_json::json!({"type": "FILE", "length": -1, "modificationTime": 1})).is_none());
    }
}
