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
    files::{Asked, ENTRIES_MAX, Files, Growing, Meta, Ranges, Tries, persist},
};
use crate::{
    HTTP,
    http::{Connections, collect},
    land::{Landing, TooMany},
};

/// Bytes of a range, at most: what any answer may have.
const RANGE_BYTES_MAX: u64 = 32 << 20;
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

impl Web {
    /// Bytes of a range, not more than an answer may have.
    async fn fetch(&self, path: &str, range: Range<u64>) -> Result<Vec<u8>, Failed> {
        let mut body = self.open(path, &range).await?.into_body();
        let (read, end) = collect(&mut body, usize::MAX).await;
        end?;
        Ok(read)
    }

    async fn open(&self, path: &str, range: &Range<u64>) -> Result<HttpResponse, Failed> {
        let words = [("offset", range.start.to_string()), ("length", (range.end - range.start).to_string())];
        let words = words.each_ref().map(|(name, value)| (*name, value.as_str()));
        let place = self.place(Method::GET, path, "OPEN", &words).await?;
        self.send(Method::GET, &place, Bytes::new()).await
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
            while found.len() < ENTRIES_MAX {
                let words = [("startAfter", after.as_str())];
                let ask = || self.ask(Method::GET, path, "LISTSTATUS_BATCH", &words);
                let told = persist(self.patience, ask).await?;
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
            // A namenode says nothing, as it does what it is asked; a gateway that leaves out the option says whether it renamed.
            let is_done = match self.ask(Method::PUT, from, "RENAME", &words).await? {
                Value::Null => true,
                told => {
                    let is_done = told.get("boolean").and_then(Value::as_bool);
                    is_done.ok_or_else(|| nonsense("the answer to a renaming is none"))?
                }
            };
            // What has another name has this one no more.
            match self.stat(from).await {
                Err(gone) if gone.kind == ErrorKind::NotFound && is_done => Ok(()),
                Err(gone) if gone.kind == ErrorKind::NotFound => Err(nonsense("what was not renamed is gone")),
                Err(failed) => Err(failed.for_doubt()),
                Ok(_) => Err(Failed::refusal(
                    ErrorKind::AlreadyExists,
                    "the server renames nothing over what is there",
                    "write by the namenode itself and not by a gateway, or remove what is there before",
                )),
            }
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

    /// WebHDFS has no such request, and connections end with theirs.
    fn fence<'a>(&'a self, _path: &'a str) -> Asked<'a, ()> {
        futures_util::future::ready(Ok(())).boxed()
    }

    fn bytes(self: Arc<Self>, path: String, meta: Meta) -> Arc<dyn Ranges> {
        Arc::new(WebRanges { files: self, path, meta })
    }

    fn make(self: Arc<Self>, path: String) -> Asked<'static, Box<dyn Growing>> {
        async move {
            let words = [("overwrite", "false"), ("createparent", "true")];
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
        let answer = self.files.open(&self.path, &(range.start..range.start + len)).await?;
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
///
/// ```text
///   append ─┬─ done ─► as long as it is to be
///           └─ not told ─► what is there, compared ─► an append of nothing, which waits for the one before ─► what is there, compared ─► the rest
/// ```
///
/// A datanode whose client is gone appends what it has got of the bytes, and closes the file, when it finds out: lengths alone do not say
/// whose bytes they are.
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

    async fn len(&self) -> Result<u64, Failed> {
        Ok(persist(self.files.patience, || self.files.stat(&self.path)).await?.len)
    }

    async fn grow(&mut self, bytes: Bytes) -> Result<(), Failed> {
        let until = self.sent + bytes.len() as u64;
        let mut made = Made { begin: self.sent, bytes, tries: Tries::new(self.files.patience) };
        while self.sent < until {
            match self.put(made.rest(self.sent)).await {
                Err(failed) => self.settle(&mut made, failed).await?,
                Ok(()) => {
                    let len = self.len().await?;
                    if len != until {
                        return Err(wrong_len(len, until..=until));
                    }
                    self.sent = len;
                }
            }
        }
        Ok(())
    }

    /// Finds out where the file ends after an append that was not told of.
    async fn settle(&mut self, made: &mut Made, mut failed: Failed) -> Result<(), Failed> {
        loop {
            self.look(made).await?;
            if made.rest(self.sent).is_empty() {
                return Ok(());
            }
            made.tries.again(failed).await?;
            match self.put(Bytes::new()).await {
                Ok(()) => return self.look(made).await,
                Err(next) => failed = next,
            }
        }
    }

    /// Takes what is there for sent, if it is what was to be.
    async fn look(&mut self, made: &mut Made) -> Result<(), Failed> {
        let (len, until) = (self.len().await?, made.begin + made.bytes.len() as u64);
        if !(self.sent..=until).contains(&len) {
            return Err(wrong_len(len, self.sent..=until));
        }
        while self.sent < len {
            let end = len.min(self.sent + RANGE_BYTES_MAX);
            let there = persist(self.files.patience, || self.files.fetch(&self.path, self.sent..end)).await?;
            if !made.rest(self.sent).starts_with(&there) || there.len() as u64 != end - self.sent {
                let text = "the file has other bytes than were written: of an append that was given up, and went on";
                return Err(Failed::new(ErrorKind::ChecksumMismatch, text, "write it again"));
            }
            self.sent = end;
            made.tries.moved();
        }
        Ok(())
    }
}

/// What a file is to have from `begin` on.
struct Made {
    begin: u64,
    bytes: Bytes,
    tries: Tries,
}

impl Made {
    /// What comes behind those that are sent.
    fn rest(&self, sent: u64) -> Bytes {
        self.bytes.slice(sw_mem::index(sent - self.begin)..)
    }
}

fn wrong_len(len: u64, want: std::ops::RangeInclusive<u64>) -> Failed {
    let text = format!("the file has {len} bytes, where {} to {} were written", want.start(), want.end());
    Failed::new(ErrorKind::ShortData, text, "look at the cluster; write it again")
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
    use std::sync::Mutex;

    use sw_testkit::scripted::{Scripted, say};

    use super::*;
    use crate::http::HttpConfig;

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

    fn web(server: &Scripted) -> Arc<Web> {
        Arc::new(Web {
            base: format!("http://{}", server.address()),
            user: None,
            connections: Connections::new(&HttpConfig::default()).unwrap(),
            patience: Duration::from_secs(10),
        })
    }

    fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_renaming_that_a_gateway_did_not_do_is_an_error() {
        let there = r#"{"FileStatus":{"fileId":7,"length":5,"modificationTime":9,"type":"FILE"}}"#;
        let gone = r#"{"RemoteException":{"exception":"FileNotFoundException","message":"none"}}"#;
        for (told, is_there, want) in [
            ("", false, None),
            (r#"{"boolean":true}"#, false, None),
            (r#"{"boolean":false}"#, true, Some((ErrorKind::AlreadyExists, true))),
            ("", true, Some((ErrorKind::AlreadyExists, true))),
            (r#"{"boolean":false}"#, false, Some((ErrorKind::Protocol, false))),
            ("<html>", true, Some((ErrorKind::Protocol, false))),
        ] {
            let server = Scripted::start(move |request| match request {
                rename if rename.starts_with("put ") => say("200 OK", "", told.as_bytes()),
                _ if is_there => say("200 OK", "", there.as_bytes()),
                _ => say("404 Not Found", "", gone.as_bytes()),
            });
            let web = web(&server);
            let failed = run(async move { web.rename("/t", "/b").await.err() });
            assert_eq!(failed.map(|failed| (failed.kind, failed.is_refusal())), want, "{told} {is_there}");
        }
    }

    /// A datanode whose clients go away: what it has got of an append comes into the file with a later request.
    struct Late {
        file: Vec<u8>,
        /// Of an append that broke: bytes that come, when so many more appends have come.
        late: Option<(Vec<u8>, u32)>,
        /// How many bytes of the next appends arrive, before each breaks, and when they come.
        breaks: Vec<(usize, u32)>,
    }

    impl Late {
        fn append(&mut self, want: &[u8], len: usize) -> Vec<u8> {
            if let Some((bytes, left)) = self.late.take() {
                if left <= 1 {
                    self.file.extend(bytes);
                } else {
                    self.late = Some((bytes, left - 1));
                }
            }
            let bytes = &want[want.len() - len..];
            if len == 0 || self.breaks.is_empty() {
                self.file.extend(bytes);
                return say("200 OK", "", b"");
            }
            match self.breaks.remove(0) {
                (arrive, 0) => self.file.extend(&bytes[..arrive]),
                (arrive, after) => self.late = Some((bytes[..arrive].to_vec(), after)),
            }
            Vec::new()
        }
    }

    /// What is in the file after an append of `want`, whose requests break.
    fn appended(want: &[u8], breaks: &[(usize, u32)]) -> (Result<(), Failed>, Vec<u8>) {
        let late = Arc::new(Mutex::new(Late { file: Vec::new(), late: None, breaks: breaks.to_vec() }));
        let (state, bytes, port) = (late.clone(), want.to_vec(), Arc::new(Mutex::new(String::new())));
        let at = port.clone();
        let server = Scripted::start(move |request| {
            let number = |name: &str| {
                let word = request.split_once(name).map_or("0", |(_, word)| word);
                word.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap()
            };
            let mut state = state.lock().unwrap();
            if request.contains("noredirect") {
                let operation = if request.contains("op=open") { "open" } else { "append" };
                let words = if operation == "open" {
                    format!("&offset={}&length={}", number("offset="), number("length="))
                } else {
                    String::new()
                };
                let place = format!("http://{}/webhdfs/v1/data?op={operation}{words}", at.lock().unwrap());
                return say("200 OK", "", format!(r#"{{"Location":"{place}"}}"#).as_bytes());
            }
            if request.contains("op=getfilestatus") {
                let len = state.file.len();
                let told = format!(r#"{{"FileStatus":{{"length":{len},"modificationTime":9,"type":"FILE"}}}}"#);
                return say("200 OK", "", told.as_bytes());
            }
            if request.contains("op=open") {
                let from = number("offset=");
                return say("200 OK", "", &state.file[from..from + number("length=")]);
            }
            state.append(&bytes, number("content-length: "))
        });
        *port.lock().unwrap() = server.address().to_string();
        let (web, bytes) = (web(&server), Bytes::from(want.to_vec()));
        let mut file = WebFile { files: web, path: "/t".to_owned(), sent: 0 };
        let done = run(async move { file.append(bytes).await });
        let file = late.lock().unwrap().file.clone();
        (done, file)
    }

    #[test]
    fn appends_that_break_leave_bytes_as_they_were_written_or_an_error() {
        let want = sw_testkit::pattern::bytes(1, 0, 1000);
        // What arrives comes at once; with the next request; with the one behind it.
        for breaks in
            [&[][..], &[(300, 0), (200, 0)], &[(300, 1), (200, 0)], &[(300, 1), (200, 1)], &[(1000, 1)], &[(1000, 0)]]
        {
            let (done, file) = appended(&want, breaks);
            assert!(done.is_ok() && file == want, "{breaks:?}: {done:?}");
        }
        // It comes behind the append that was to wait for it: whoever appends then may find bytes of the same number, and others.
        let (done, file) = appended(&want, &[(300, 2), (200, 0)]);
        assert_eq!(done.map_err(|failed| failed.kind), Err(ErrorKind::ChecksumMismatch));
        assert_ne!(file[..500], want[..500]);
    }
}
