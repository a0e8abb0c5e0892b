//! Listings, page by page.
//!
//! The library reads a page as a whole or not at all, and stops at names that it could not ask for (with empty parts, `.` or `..`, or control
//! characters). Those are taken out of the page before it sees it, and counted.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    ClientOptions, ListResult, ObjectMeta, ObjectStoreExt,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
    list::{PaginatedListOptions, PaginatedListResult},
    path::{DELIMITER, Path},
};

use url::form_urlencoded;

use super::{bucket::Bucket, fault};
use crate::{
    address::Scheme,
    http::{Connections, collect},
};

/// Objects of a page that are asked for their headers at a time, where the listing does not say enough.
const HEADS_TOGETHER: usize = 16;

/// How far a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// To the next slash; what goes on behind it is a prefix.
    Level,
    /// To the first name, whatever it is.
    First,
    /// To the end.
    All,
}

impl Bucket {
    /// A page of what begins with a prefix and a slash, behind a name where the store can, and by what the next one is asked for.
    pub(super) async fn page(
        &self,
        prefix: Option<Path>,
        (depth, after): (Depth, Option<String>),
        token: Option<String>,
    ) -> object_store::Result<(ListResult, Option<String>)> {
        let Some(pages) = &self.pages else {
            let (operation, implementer) = ("a listing".to_owned(), "plain HTTP".to_owned());
            return Err(object_store::Error::NotImplemented { operation, implementer });
        };
        let below = prefix.as_ref().map(|prefix| format!("{prefix}{DELIMITER}"));
        let (delimiter, max_keys) = match depth {
            Depth::Level => (Some(Cow::Borrowed(DELIMITER)), None),
            Depth::First => (None, Some(1)),
            Depth::All => (None, None),
        };
        let options = PaginatedListOptions {
            delimiter,
            max_keys,
            offset: after,
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let PaginatedListResult { result: mut page, page_token } =
            pages.list_paginated(below.as_deref(), options).await?;
        if depth != Depth::First {
            // A listing without ETags would tell other versions than the objects do.
            let told = |meta: ObjectMeta| async move {
                if meta.e_tag.is_some() {
                    return Ok(Some(meta));
                }
                match self.store.head(&meta.location).await {
                    Ok(meta) => Ok(Some(meta)),
                    // It was removed since the page was made.
                    Err(gone) if fault::is_missing(&gone) => Ok(None),
                    Err(error) => Err(error),
                }
            };
            let asked = stream::iter(std::mem::take(&mut page.objects)).map(told).buffered(HEADS_TOGETHER);
            page.objects = asked.try_filter_map(|meta| std::future::ready(Ok(meta))).try_collect().await?;
        }
        Ok((page, page_token.filter(|token| !token.is_empty())))
    }
}

/// Connections whose listings have names only that can be asked for.
#[derive(Clone, Debug)]
pub(super) struct Listings {
    connections: Connections,
    dialect: Dialect,
    came_to: CameTo,
}

/// Where the requests of a bucket's client went that were answered: scheme, host and port. It goes to one place.
#[derive(Clone, Debug, Default)]
pub(super) struct CameTo(Arc<OnceLock<String>>);

impl CameTo {
    /// `None` before the first answer.
    pub(super) fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn note(&self, place: Option<String>) {
        if let Some(place) = place {
            let _known = self.0.set(place);
        }
    }

    /// The place of an address, where it is not known yet.
    fn place(&self, uri: &http::Uri) -> Option<String> {
        let is_new = self.0.get().is_none();
        is_new.then(|| Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))).flatten()
    }
}

/// How listings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// As S3 and Azure do.
    Usual,
    /// As Alluxio's proxy does: it says that an answer has as many bytes as it has characters, so that its end is missing where a name is not of
    /// ASCII. Names are asked for as URLs have them for that reason. Directories stand between the objects; they cannot be asked for.
    Alluxio,
}

impl Listings {
    pub(super) fn of(scheme: Scheme, connections: Connections) -> Self {
        let dialect = if scheme == Scheme::Alluxio { Dialect::Alluxio } else { Dialect::Usual };
        Self { connections, dialect, came_to: CameTo::default() }
    }

    pub(super) fn came_to(&self) -> CameTo {
        self.came_to.clone()
    }

    pub(super) fn into_inner(self) -> Connections {
        self.connections
    }
}

impl HttpConnector for Listings {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Listings {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let place = self.came_to.place(request.uri());
        let answer = self.answer(request).await;
        if answer.is_ok() {
            self.came_to.note(place);
        }
        answer
    }
}

impl Listings {
    async fn answer(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let has = |word: &str| request.uri().query().unwrap_or_default().split('&').any(|one| one == word);
        if self.dialect == Dialect::Alluxio && request.method() == http::Method::POST {
            let (parts, mut body) = self.connections.call(request).await?.into_parts();
            let (said, end) = collect(&mut body, usize::MAX).await;
            end?;
            return Ok(HttpResponse::from_parts(parts, of_upload(&String::from_utf8_lossy(&said)).into()));
        }
        if !has("list-type=2") && !has("comp=list") {
            return self.connections.call(request).await;
        }
        // Whether there is anything below, a directory says too.
        let directories = if has("max-keys=1") { Directories::Kept } else { Directories::LeftOut };
        if self.dialect == Dialect::Alluxio {
            let asked = asked_of_alluxio(&request.uri().to_string()).parse();
            // What was one is one with more letters.
            *request.uri_mut() =
                asked.map_err(|error: http::uri::InvalidUri| HttpError::new(HttpErrorKind::Request, error))?;
        }
        let (parts, mut body) = self.connections.call(request).await?.into_parts();
        // The connection holds it to a length.
        let (page, end) = collect(&mut body, usize::MAX).await;
        end?;
        let page = String::from_utf8_lossy(&page);
        let page = match self.dialect {
            Dialect::Alluxio => Cow::Owned(usual(&page, directories)),
            Dialect::Usual => page,
        };
        let (page, Skipped { count, first }) = reachable(&page);
        if let Some(first) = first {
            tracing::warn!(count, first, "names that cannot be asked for are left out of a listing");
        }
        Ok(HttpResponse::from_parts(parts, page.into()))
    }
}

/// Whether directories are left in a listing of Alluxio's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directories {
    Kept,
    LeftOut,
}

/// A listing's page as Alluxio is asked for it: with names as URLs have them, and behind a name where S3 is told a token of ours ([`token_behind`]).
fn asked_of_alluxio(uri: &str) -> String {
    const TOKEN: &str = "continuation-token=";
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let token = query.split('&').find_map(|one| one.strip_prefix(TOKEN));
    let kept =
        query.split('&').filter(|one| token.is_none() || !one.starts_with(TOKEN) && !one.starts_with("start-after="));
    let mut asked: Vec<String> = kept.map(str::to_owned).collect();
    asked.extend(token.map(|token| format!("start-after={}", of_url(token))));
    format!("{path}?{}&encoding-type=url", asked.join("&"))
}

/// By what the page behind `last` is asked for. Alluxio (2.9.6 `ListBucketResult.buildListBucketResult`) compares names without the slash that ends
/// those of directories, in the order of UTF-16, and has that slash in its own token: behind `c/` it would leave out `c-1`.
fn token_behind(last: &str) -> String {
    let name: String = form_urlencoded::byte_serialize(last.as_bytes()).collect();
    format!("<NextContinuationToken>{name}</NextContinuationToken>")
}

/// A page of Alluxio's as S3 would write it: names as they are, no directories, and with its end. What is missing of that is behind the last name, as
/// no more than the prefix is not of ASCII, which stands there.
fn usual(page: &str, directories: Directories) -> String {
    const END: &str = "</ListBucketResult>";
    const PREFIX: &str = "<Prefix>";
    if !page.contains("<ListBucketResult>") {
        return page.to_owned();
    }
    let (mut kept, mut rest, mut last) = (String::with_capacity(page.len()), page, String::new());
    while let Some((at, end, name)) = element(rest) {
        let (before, behind) = rest.split_at(end);
        let (head, one) = before.split_at(at);
        kept.push_str(head);
        let plain = of_url(name);
        let path = plain.strip_suffix(DELIMITER).unwrap_or(&plain);
        if last.encode_utf16().lt(path.encode_utf16()) {
            path.clone_into(&mut last);
        }
        let is_directory = one.starts_with("<Contents>") && plain.ends_with(DELIMITER);
        if !is_directory || directories == Directories::Kept {
            let (open, close) = one.split_once(name).unwrap_or((one, ""));
            kept.extend([open, &escaped(&plain), close]);
        }
        rest = behind;
    }
    kept.push_str(rest.rfind(PREFIX).and_then(|at| rest.get(..at)).unwrap_or(rest));
    if !kept.ends_with(END) {
        kept.push_str(END);
    }
    with_token(kept, &last, END)
}

/// A page with the token of ours where it has one of Alluxio's.
fn with_token(page: String, last: &str, end: &str) -> String {
    let (open, close) = ("<NextContinuationToken>", "</NextContinuationToken>");
    let Some((before, rest)) = page.split_once(open).filter(|_| !last.is_empty()) else { return page };
    let behind = rest.split_once(close).map_or(end, |(_, behind)| behind);
    format!("{before}{}{behind}", token_behind(last))
}

/// What Alluxio answers of an upload, with the end that its proxy cuts where the name is not of ASCII: as long as what is said is whole.
fn of_upload(said: &str) -> String {
    for (answer, value, len) in
        [("InitiateMultipartUploadResult", "UploadId", UPLOAD_LEN), ("CompleteMultipartUploadResult", "ETag", TAG_LEN)]
    {
        let (open, end) = (format!("<{value}>"), format!("</{answer}>"));
        let Some((head, rest)) = said.split_once(&open).filter(|_| said.contains(&format!("<{answer}>"))) else {
            continue;
        };
        let text = rest.split('<').next().unwrap_or_default();
        if text.len() == len && !said.ends_with(&end) {
            return format!("{head}{open}{text}</{value}>{end}");
        }
    }
    said.to_owned()
}

/// Letters of the name of an upload (a UUID), and of the tag of an object that is made of parts (an MD5).
const UPLOAD_LEN: usize = 36;
const TAG_LEN: usize = 32;
/// Bytes of a name beyond one for each of its characters, at most: what ends an upload tells it twice, and what is behind its tag is as long.
pub(super) const CUT_MAX: usize = "</ETag></CompleteMultipartUploadResult>".len() / 2;

/// A name as URLs have it in their queries, as it is: `+` for a space, `%XX` for a byte.
fn of_url(text: &str) -> String {
    let name = form_urlencoded::parse(text.as_bytes()).next();
    name.map(|(name, _)| name.into_owned()).unwrap_or_default()
}

/// A text as XML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Names that were left out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Skipped {
    count: u64,
    first: Option<String>,
}

/// Elements of a listing, and where their names are: those of S3, those of Azure.
const ELEMENTS: [(&str, &str); 4] =
    [("Contents", "Key"), ("CommonPrefixes", "Prefix"), ("Blob", "Name"), ("BlobPrefix", "Name")];

/// A page without the elements whose names the library cannot read.
fn reachable(page: &str) -> (String, Skipped) {
    let (mut kept, mut rest, mut skipped) = (String::with_capacity(page.len()), page, Skipped::default());
    while let Some((at, end, name)) = element(rest) {
        let (before, behind) = rest.split_at(end);
        if Path::parse(unescaped(name)).is_ok() {
            kept.push_str(before);
        } else {
            kept.push_str(before.get(..at).unwrap_or_default());
            skipped.count += 1;
            skipped.first.get_or_insert_with(|| unescaped(name).escape_debug().to_string());
        }
        rest = behind;
    }
    kept.push_str(rest);
    (kept, skipped)
}

/// The first element of a page: where it begins and ends, and its name. It looks at no byte behind its end, so that a page costs what it is
/// long, not that squared.
fn element(page: &str) -> Option<(usize, usize, &str)> {
    let (at, (element, name)) = page.match_indices('<').find_map(|(at, _)| {
        let behind = page.get(at + 1..)?;
        let begins =
            |(element, _): &&(&str, &str)| behind.strip_prefix(*element).is_some_and(|rest| rest.starts_with('>'));
        Some((at, ELEMENTS.iter().find(begins)?))
    })?;
    let close = format!("</{element}>");
    let end = at + page.get(at..)?.find(&close)? + close.len();
    let inside = page.get(at..end)?;
    let text = inside.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    Some((at, end, text.map_or("", |(text, _)| text)))
}

/// What XML writes in its own way, as it is.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('&') {
        plain.push_str(before);
        let Some((word, behind)) = behind.split_once(';') else {
            plain.push('&');
            rest = behind;
            continue;
        };
        let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
        let one = match word {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => match word.strip_prefix('#') {
                Some(digits) => {
                    digits.strip_prefix('x').map_or_else(|| number(digits, 10), |digits| number(digits, 16))
                }
                None => None,
            },
        };
        plain.extend(one);
        rest = behind;
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_asked_for_are_left_out_of_a_page() {
        let object = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let prefix = |key: &str| format!("<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>");
        let head = "<?xml version=\"1.0\"?><ListBucketResult><Prefix>a/</Prefix>";
        let good = [object("a/b &amp; c"), object("a/marker/"), prefix("a/d/")].concat();
        let bad = [object("a//b"), prefix("a//"), object("a/../b"), object("a/&#x1;b"), object("a/&#10;b")].concat();
        let page = format!("{head}{}{good}{bad}{}</ListBucketResult>", object("."), object("a/z"));
        let (kept, skipped) = reachable(&page);
        assert_eq!(kept, format!("{head}{good}{}</ListBucketResult>", object("a/z")));
        assert_eq!((skipped.count, skipped.first.as_deref()), (6, Some(".")));
        let (same, none) = reachable(&kept);
        assert_eq!((same, none), (kept, Skipped::default()));
        // Azure's.
        let blobs = "<Blobs><Blob><Name>a//b</Name></Blob><BlobPrefix><Name>a/</Name></BlobPrefix></Blobs>";
        let unclosed = "<Contents><Key>a//b</Key><CommonPrefixes>";
        assert_eq!(reachable(unclosed), (unclosed.to_owned(), Skipped::default()), "it is left to the library");
        assert_eq!(reachable(blobs).0, "<Blobs><BlobPrefix><Name>a/</Name></BlobPrefix></Blobs>");
    }

    #[test]
    fn a_page_of_alluxio_is_one_without_directories_and_with_its_end() {
        let object = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let below = |key: &str| format!("<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>");
        let page = |objects: [String; 4], end: &str| {
            let name = "<Name>d</Name>";
            format!("<ListBucketResult><KeyCount>4</KeyCount>{}{name}{}{end}", below("%C3%A4%2F"), objects.concat())
        };
        let told = page(
            [object("a%26b"), object("c%2F"), object("d+e%2B"), object("%C3%BC")],
            "<Prefix>ä</Prefix></ListBucketResult",
        );
        let want = |directory: String| {
            let objects = [object("a&amp;b"), directory, object("d e+"), object("ü")];
            page(objects, "</ListBucketResult>").replace("%C3%A4%2F", "ä/")
        };
        assert_eq!(usual(&told, Directories::LeftOut), want(String::new()));
        assert_eq!(usual(&told, Directories::Kept), want(object("c/")));
        let empty = "<ListBucketResult><KeyCount>0</KeyCount>";
        assert_eq!(
            usual(&format!("{empty}<Prefix>ääääääääää"), Directories::Kept),
            format!("{empty}</ListBucketResult>")
        );
        for text in ["", "<Error><Prefix>a</Prefix></Error>", "ä"] {
            assert_eq!(usual(text, Directories::LeftOut), text);
        }
    }

    #[test]
    fn the_next_page_of_alluxio_is_asked_for_behind_a_name_without_its_slash() {
        let page = "<ListBucketResult><NextContinuationToken>632f-1a</NextContinuationToken><Contents><Key>c%2F</Key></Contents><Contents><Key>b</Key></Contents></ListBucketResult>";
        let told = usual(page, Directories::LeftOut);
        assert!(
            told.starts_with("<ListBucketResult><NextContinuationToken>c</NextContinuationToken><Contents>"),
            "{told}"
        );
        // In the order of UTF-16, where what is beyond its first plane stands before the end of that.
        let names = ["%F0%9F%98%80", "%EF%BD%81+b%2F"].map(|key| format!("<Contents><Key>{key}</Key></Contents>"));
        let told = usual(&page.replace("<Contents><Key>b</Key></Contents>", &names.concat()), Directories::LeftOut);
        assert!(told.contains("<NextContinuationToken>%EF%BD%81+b</NextContinuationToken>"), "{told}");
        let asked = asked_of_alluxio("http://h/b?list-type=2&continuation-token=%25EF%25BD%2581%2Bb&prefix=a%2F");
        assert_eq!(asked, "http://h/b?list-type=2&prefix=a%2F&start-after=%EF%BD%81+b&encoding-type=url");
        assert_eq!(asked_of_alluxio("http://h/b?list-type=2"), "http://h/b?list-type=2&encoding-type=url");
    }

    #[test]
    fn an_answer_of_alluxio_is_whole_as_long_as_what_it_says_is() {
        let (id, tag) = ("a".repeat(UPLOAD_LEN), "b".repeat(TAG_LEN));
        let begun = |key: &str| {
            format!(
                "<InitiateMultipartUploadResult><Key>{key}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            )
        };
        let ended = |key: &str| {
            format!(
                "<CompleteMultipartUploadResult><Location>/d/{key}</Location><Key>{key}</Key><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            )
        };
        let key = "ä".repeat(CUT_MAX);
        for (said, times) in [(begun(&key), 1), (ended(&key), 2), (begun("a"), 0), (ended("a"), 0)] {
            let cut = &said[..said.len() - times * CUT_MAX];
            assert_eq!(of_upload(cut), said);
        }
        let too_short = &ended(&key)[..ended(&key).len() - 2 * CUT_MAX - 2];
        assert_eq!(of_upload(too_short), too_short);
    }

    #[test]
    fn what_xml_writes_in_its_own_way_is_read() {
        assert_eq!(unescaped("a&amp;&lt;&gt;&quot;&apos;&#65;&#x42;&unknown;&"), "a&<>\"'AB&");
    }
}
