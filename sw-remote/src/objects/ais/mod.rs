//! AIStore by its own API over HTTP, as a store of the library that object stores are reached by.
//!
//! ```text
//!   open    HEAD ─► proxy ─► target: length, version, checksum
//!   read    GET of a range, at the target that a proxy named: it is kept for the next ranges of the object; many small ones by one request
//!   write   one PUT, or parts at the target and a last request with which the object appears
//!   list    pages of names, from a proxy
//! ```
//!
//! AIStore looks at no `If-Match`: whoever reads compares the tag that is made here of each answer's version and checksum.

mod batch;
mod cluster;
mod facts;
mod member;
mod tar;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header::RANGE};
use object_store::{
    Attributes, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartId,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    client::{HttpError, HttpErrorKind, HttpResponse},
    list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore},
    multipart::{MultipartStore, PartId},
    path::Path,
};
use serde_json::{Value, json};
use sw_engine::checksum::Algorithm;
use twox_hash::XxHash64;

pub(super) use self::batch::Given;
pub(super) use self::member::MemberTooLong;
use self::{
    batch::Batches,
    cluster::{Call, Cluster, escaped, is_status, nonsense, refusal},
    facts::Facts,
    member::Members,
};
use super::{ObjectsConfig, stored::Stored};
use crate::{
    address::ARCHPATH,
    http::{Connections, Doubt, collect},
};

/// Objects whose targets are remembered; all are forgotten when there are more.
const PLACES_MAX: usize = 4096;
/// Names on a page of a listing.
const PAGE_NAMES: usize = 10_000;
/// Of an entry of a listing: it stands for names that go on (AIStore, `api/apc/lsmsg.go`, `EntryIsDir`).
const IS_DIRECTORY: u64 = 1 << 8;

/// A bucket.
pub(super) struct AisStore {
    cluster: Arc<Cluster>,
    bucket: String,
    /// Where objects are read.
    places: Mutex<HashMap<Path, Arc<str>>>,
    members: Members,
    batches: Batches,
}

impl fmt::Debug for AisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AisStore").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl fmt::Display for AisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ais://{}", self.bucket)
    }
}

/// A listing from which AIStore may have left names out.
#[derive(Debug)]
pub(super) struct UnsureListing;

impl fmt::Display for UnsureListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the level has more than {PAGE_NAMES} names, and a page of them ends beside a directory: AIStore leaves names out there"
        )
    }
}

impl std::error::Error for UnsureListing {}

/// An upload that its target has no more.
#[derive(Debug)]
pub(super) struct LostUpload(String);

impl fmt::Display for LostUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the parts that were sent are lost, as with a target that was started again: {}", self.0)
    }
}

impl std::error::Error for LostUpload {}

/// What a refusal means to an upload that had begun.
fn of_upload(error: HttpError) -> HttpError {
    match refusal(&error) {
        Some(said) if said.status == StatusCode::NOT_FOUND && said.code.as_deref() != Some("ErrBckNotFound") => {
            HttpError::new(HttpErrorKind::Unknown, LostUpload(said.to_string()))
        }
        _ => error,
    }
}

fn told(error: HttpError) -> object_store::Error {
    object_store::Error::Generic { store: "AIStore", source: Box::new(error) }
}

fn unbuilt(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented { operation: operation.to_owned(), implementer: "AIStore".to_owned() }
}

impl AisStore {
    /// # Errors
    /// What is wrong with the settings.
    pub(super) fn new(
        bucket: &str,
        (endpoint, token): (String, Option<&str>),
        (connections, config): (Connections, &ObjectsConfig),
    ) -> Result<Self, String> {
        let cluster = Arc::new(Cluster::new(endpoint, token, (connections, config.patience))?);
        let (places, members, batches) = (Mutex::default(), Members::default(), Batches::new(config));
        Ok(Self { cluster, bucket: bucket.to_owned(), places, members, batches })
    }

    fn path(&self, location: &Path, query: &str) -> String {
        path_of(&self.bucket, location, query)
    }

    fn kept(&self, location: &Path) -> Option<Arc<str>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(location).cloned()
    }

    fn keep(&self, location: &Path, place: &str) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= PLACES_MAX {
            places.clear();
        }
        places.insert(location.clone(), place.into());
    }

    fn forget(&self, location: &Path) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(location);
    }

    /// What there is by a name. Where its bytes are read is known afterwards.
    async fn head(&self, location: &Path) -> Result<Facts, HttpError> {
        let call = Call::new(Method::HEAD, self.path(location, ""));
        let (answer, target) = self.cluster.again(|| self.cluster.ask_target(&call)).await?;
        if let Some(place) = target.and_then(|target| self.cluster.data_of(&target)) {
            self.keep(location, &place);
        }
        let facts = Facts::of(answer.headers());
        // Of an object without bytes no length is told.
        Ok(Facts { len: facts.len.or(Some(0)), ..facts })
    }

    /// The same of an object that was read: where it was.
    async fn look(&self, location: &Path) -> Result<Facts, HttpError> {
        let call = Call::new(Method::HEAD, String::new());
        let answer = self.cluster.again(|| self.at_target((location, ""), &call)).await?;
        let facts = Facts::of(answer.headers());
        Ok(Facts { len: facts.len.or(Some(0)), ..facts })
    }

    /// Asks the target of an object, once: where it was last, or where a proxy says that it is now.
    async fn at_target(&self, (location, query): (&Path, &str), call: &Call) -> Result<HttpResponse, HttpError> {
        if let Some(place) = self.kept(location) {
            match self.cluster.send(&format!("{place}{query}"), call).await {
                // It may be elsewhere by now, or not be told to those whom no proxy sends.
                Err(error) if is_final_here(&error) => self.forget(location),
                Err(error) => {
                    self.forget(location);
                    return Err(error);
                }
                answer => return answer,
            }
        }
        let place = self.cluster.place(Method::GET, &self.path(location, "")).await?;
        let answer = self.cluster.send(&format!("{place}{query}"), call).await?;
        self.keep(location, &place);
        Ok(answer)
    }

    /// The bytes of a range, and of what.
    async fn range(&self, location: &Path, options: &GetOptions) -> Result<GetResult, HttpError> {
        let mut call = Call::new(Method::GET, String::new());
        match &options.range {
            Some(GetRange::Bounded(range)) if !range.is_empty() => {
                let text = format!("bytes={}-{}", range.start, range.end - 1);
                let value = HeaderValue::try_from(text).map_err(|_| nonsense("a range that is none"))?;
                call.headers.insert(RANGE, value);
            }
            None => call.most = Some(u64::MAX),
            _ => return Err(nonsense("a range that is not asked for here")),
        }
        let answer = self.cluster.again(|| self.at_target((location, ""), &call)).await?;
        let mut facts = Facts::of(answer.headers());
        let (range, size) = match (&options.range, &facts.range, facts.len) {
            (Some(_), Some(part), _) if answer.status() == StatusCode::PARTIAL_CONTENT => part.clone(),
            (None, _, Some(len)) => (0..len, len),
            _ => return Err(nonsense("the answer to a request for a range is none")),
        };
        self.is_of_the_range(location, &mut facts, options).await?;
        let payload = answer.into_body().bytes_stream().map_err(told).boxed();
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta: facts.meta(location.clone(), size),
            range,
            attributes: Attributes::default(),
            extensions: http::Extensions::default(),
        })
    }

    /// A bucket may have answers with the checksum of the range instead of that of the object (`enable_read_range`): what is not the checksum that
    /// the object was opened with, though it is its version, is looked at.
    async fn is_of_the_range(&self, location: &Path, facts: &mut Facts, options: &GetOptions) -> Result<(), HttpError> {
        let Some(opened) = options.if_match.as_deref() else { return Ok(()) };
        let version = facts.version.as_deref().unwrap_or_default();
        let is_same_version =
            opened.strip_prefix('"').and_then(|tag| tag.split_once('-')).is_some_and(|(v, _)| v == version);
        if is_same_version && facts.tag().as_deref() != Some(opened) {
            facts.sum = self.head(location).await?.sum;
        }
        Ok(())
    }

    /// Writes all of an object by one request.
    async fn put(&self, location: &Path, bytes: &Bytes, doubt: Option<Doubt>) -> Result<PutResult, HttpError> {
        let path = self.path(location, "");
        let mut call = Call::new(Method::PUT, path.clone());
        let sum = format!("{:016x}", XxHash64::oneshot(0, bytes));
        let sum = HeaderValue::try_from(sum).map_err(|_| nonsense("a checksum that is none"))?;
        call.headers.insert(HeaderName::from_static("ais-checksum-type"), HeaderValue::from_static("xxhash2"));
        call.headers.insert(HeaderName::from_static("ais-checksum-value"), sum);
        (call.body, call.doubt) = (bytes.clone(), doubt);
        self.cluster
            .again(|| async {
                let place = self.cluster.place(Method::PUT, &path).await?;
                self.cluster.send(&place, &call).await
            })
            .await?;
        Ok(PutResult { e_tag: None, version: None, extensions: http::Extensions::default() })
    }

    /// An action on an object.
    fn action(&self, location: &Path, id: &str, (method, message): (Method, &Value)) -> Call {
        let query = if id.is_empty() { String::new() } else { format!("&uploadId={}", escaped(id)) };
        Call::json(method, self.path(location, &query), message)
    }

    /// Makes an object of its parts. An answer that is lost is found out where the checksum tells.
    async fn complete(&self, location: &Path, id: &str, parts: &[PartId]) -> Result<(), HttpError> {
        let numbers: Vec<Value> = (1..=parts.len()).map(|number| json!({"part-number": number})).collect();
        let message = json!({"action": "mpt-complete", "value": numbers});
        let call = self.action(location, id, (Method::POST, &message));
        let (mut tries, mut is_in_doubt) = (cluster::Tries::new(self.cluster.patience), false);
        loop {
            let Err(failed) = self.cluster.ask(&call).await else { return Ok(()) };
            if is_in_doubt && is_status(&failed, 404) {
                let now = self.head(location).await?;
                let (sum, len) = whole(parts).ok_or_else(|| nonsense("a part that is none"))?;
                let is_made = now.stored() == Some(Stored::Crc32c(sum)) && now.len == Some(len);
                return if is_made { Ok(()) } else { Err(failed) };
            }
            is_in_doubt |= failed.kind() != HttpErrorKind::Connect;
            tries.again(failed).await?;
        }
    }

    /// A page of a listing.
    async fn page(&self, prefix: &str, options: &PaginatedListOptions) -> Result<PaginatedListResult, HttpError> {
        let (uuid, token) = options.page_token.as_deref().and_then(|token| token.split_once(' ')).unwrap_or_default();
        // Names without what they stand for, or with.
        let flags = if options.delimiter.is_some() { 1 << 11 } else { 1 << 13 };
        let names = options.max_keys.unwrap_or(PAGE_NAMES).min(PAGE_NAMES);
        let message = json!({"action": "list", "value": {
            "uuid": uuid, "props": "name,size,version,checksum", "prefix": prefix, "continuation_token": token,
            "start_after": options.offset.as_deref().unwrap_or_default(), "pagesize": names,
            "flags": flags.to_string(),
        }});
        let call = Call::json(Method::GET, format!("/v1/buckets/{}?provider=ais", self.bucket), &message);
        let page = self.cluster.again(|| self.cluster.json(&call)).await?;
        let page = listing(&page, prefix).ok_or_else(|| nonsense("the listing is none"))?;
        if options.delimiter.is_some()
            && let Some((_, last)) = page.page_token.as_deref().and_then(|t| t.split_once(' '))
        {
            self.check_cut(prefix, last).await?;
        }
        Ok(page)
    }

    /// Whether a page that ends with `last` may lack names. A target gives those below a directory `a` before `a-b`, which a cluster's listing has
    /// before `a/`: where a page is cut between them, AIStore 1.5 leaves out what comes behind `a` on other targets. So it is looked whether there
    /// is such a directory.
    async fn check_cut(&self, prefix: &str, last: &str) -> Result<(), HttpError> {
        let leaf = last.strip_prefix(prefix).unwrap_or(last);
        let cuts = leaf.bytes().enumerate().filter(|(at, byte)| *at > 0 && *byte <= b'/').map(|(at, _)| at);
        for at in cuts {
            let below = format!("{prefix}{}/", leaf.get(..at).unwrap_or_default());
            let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
            let first = Box::pin(self.page(&below, &options)).await?;
            if !first.result.objects.is_empty() {
                return Err(HttpError::new(HttpErrorKind::Unknown, UnsureListing));
            }
        }
        Ok(())
    }
}

fn path_of(bucket: &str, location: &Path, query: &str) -> String {
    format!("/v1/objects/{bucket}/{}?provider=ais{query}", escaped(location.as_ref()))
}

/// Whether a target that was asked without a proxy's word says no: a proxy is asked.
fn is_final_here(error: &HttpError) -> bool {
    [400, 401, 403, 404].into_iter().any(|status| is_status(error, status)) || error.kind() == HttpErrorKind::Connect
}

/// What a page has. Names that cannot be asked for are left out.
fn listing(page: &Value, prefix: &str) -> Option<PaginatedListResult> {
    let text = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut result =
        ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: http::Extensions::default() };
    let (none, mut skipped) = (Vec::new(), 0_u64);
    let entries = match page.get("entries")? {
        Value::Null => &none,
        entries => entries.as_array()?,
    };
    for entry in entries {
        let name = entry.get("name")?.as_str()?;
        if name == prefix {
            continue;
        }
        let Ok(location) = Path::parse(name) else {
            skipped += 1;
            continue;
        };
        if entry.get("flags").and_then(Value::as_u64).unwrap_or(0) & IS_DIRECTORY != 0 {
            result.common_prefixes.push(location);
            continue;
        }
        let size =
            entry.get("size").map_or(Some(0), |size| size.as_str().map_or(size.as_u64(), |text| text.parse().ok()))?;
        let e_tag = facts::tag(&text(entry, "version"), &text(entry, "checksum"));
        result.objects.push(ObjectMeta { location, last_modified: Default::default(), size, e_tag, version: None });
    }
    if skipped > 0 {
        tracing::warn!(skipped, "names that cannot be asked for are left out of a listing");
    }
    let token = text(page, "continuation_token");
    let page_token = (!token.is_empty()).then(|| format!("{} {token}", text(page, "uuid")));
    Some(PaginatedListResult { result, page_token })
}

/// The checksum and the length of all parts.
fn whole(parts: &[PartId]) -> Option<(u64, u64)> {
    parts.iter().try_fold((0, 0), |(sum, len), part| {
        let (of_part, bytes) = part.content_id.split_once('-')?;
        let (of_part, bytes) = (u64::from_str_radix(of_part, 16).ok()?, bytes.parse::<u64>().ok()?);
        Some((Algorithm::Crc32c.combine(sum, of_part, bytes), len + bytes))
    })
}

#[async_trait]
impl ObjectStore for AisStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let bytes = Bytes::from(payload);
        self.put(location, &bytes, options.extensions.get().cloned()).await.map_err(told)
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(unbuilt("parts in their order"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if let Some((archive, member)) = location.as_ref().split_once(ARCHPATH) {
            let archive = Path::parse(archive)?;
            return self.member(location, (archive, member), &options).await.map_err(told);
        }
        if !options.head {
            return self.range(location, &options).await.map_err(told);
        }
        let facts = self.head(location).await.map_err(told)?;
        Ok(headers_only(&facts, location.clone()))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (cluster, bucket) = (self.cluster.clone(), self.bucket.clone());
        let remove = move |location: object_store::Result<Path>| {
            let (cluster, bucket) = (cluster.clone(), bucket.clone());
            async move {
                let location = location?;
                let call = Call::new(Method::DELETE, path_of(&bucket, &location, ""));
                cluster.persist(&call).await.map_err(told)?;
                Ok(location)
            }
        };
        locations.then(remove).boxed()
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        stream::once(async { Err(unbuilt("a listing that is not by pages")) }).boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> object_store::Result<ListResult> {
        Err(unbuilt("a listing that is not by pages"))
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> object_store::Result<()> {
        Err(unbuilt("a copy in the store"))
    }
}

/// An answer without bytes.
fn headers_only(facts: &Facts, location: Path) -> GetResult {
    let (size, mut extensions) = (facts.len.unwrap_or(0), http::Extensions::default());
    if let Some(stored) = facts.stored() {
        extensions.insert(stored);
    }
    GetResult {
        payload: GetResultPayload::Stream(stream::empty().boxed()),
        meta: facts.meta(location, size),
        range: 0..size,
        attributes: Attributes::default(),
        extensions,
    }
}

#[async_trait]
impl MultipartStore for AisStore {
    async fn create_multipart(&self, path: &Path) -> object_store::Result<MultipartId> {
        let call = self.action(path, "", (Method::POST, &json!({"action": "mpt-upload"})));
        let mut body = self.cluster.persist(&call).await.map_err(told)?.into_body();
        let (read, end) = collect(&mut body, 4096).await;
        end.map_err(told)?;
        let id = String::from_utf8(read).ok().map(|id| id.trim().trim_matches('"').to_owned());
        id.filter(|id| !id.is_empty()).ok_or_else(|| told(nonsense("an upload without a name")))
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> object_store::Result<PartId> {
        let query = format!("&uploadId={}&partNumber={}", escaped(id), part_idx + 1);
        let path = self.path(path, &query);
        let mut call = Call::new(Method::PUT, path.clone());
        call.body = data.into();
        let sent = || async {
            let place = self.cluster.place(Method::PUT, &path).await?;
            self.cluster.send(&place, &call).await
        };
        self.cluster.again(sent).await.map_err(of_upload).map_err(told)?;
        let sum = Algorithm::Crc32c.of(&call.body);
        Ok(PartId { content_id: format!("{sum:08x}-{}", call.body.len()) })
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        self.complete(path, id, &parts).await.map_err(of_upload).map_err(told)?;
        Ok(PutResult { e_tag: None, version: None, extensions: http::Extensions::default() })
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> object_store::Result<()> {
        let call = self.action(path, id, (Method::DELETE, &json!({"action": "mpt-abort"})));
        self.cluster.persist(&call).await.map(drop).map_err(told)
    }
}

#[async_trait]
impl PaginatedListStore for AisStore {
    async fn list_paginated(
        &self,
        prefix: Option<&str>,
        options: PaginatedListOptions,
    ) -> object_store::Result<PaginatedListResult> {
        self.page(prefix.unwrap_or_default(), &options).await.map_err(told)
    }
}
