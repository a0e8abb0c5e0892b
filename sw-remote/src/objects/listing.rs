//! Listings, page by page.
//!
//! The library reads a page as a whole or not at all, and stops at names that it could not ask for (with empty parts, `.` or `..`, or control
//! characters). Those are taken out of the page before it sees it, and counted.

use std::borrow::Cow;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    ClientOptions, ListResult, ObjectMeta, ObjectStoreExt,
    client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService},
    list::{PaginatedListOptions, PaginatedListResult},
    path::{DELIMITER, Path},
};

use super::bucket::Bucket;
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
                if meta.e_tag.is_some() { Ok(meta) } else { self.store.head(&meta.location).await }
            };
            let asked = stream::iter(std::mem::take(&mut page.objects)).map(told).buffered(HEADS_TOGETHER);
            page.objects = asked.try_collect().await?;
        }
        Ok((page, page_token.filter(|token| !token.is_empty())))
    }
}

/// Connections whose listings have names only that can be asked for.
#[derive(Clone, Debug)]
pub(super) struct Listings {
    connections: Connections,
    directories: Directories,
}

/// What names are that end with a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directories {
    /// Objects, as others.
    Objects,
    /// Directories, which Alluxio lists between the objects: there is nothing to ask for.
    LeftOut,
}

impl Listings {
    pub(super) fn of(scheme: Scheme, connections: Connections) -> Self {
        let directories = if scheme == Scheme::Alluxio { Directories::LeftOut } else { Directories::Objects };
        Self { connections, directories }
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
        let query = request.uri().query().unwrap_or_default().to_owned();
        let is_listing = query.split('&').any(|word| matches!(word, "list-type=2" | "comp=list"));
        // Whether there is anything below, a directory says too.
        let is_question = query.split('&').any(|word| word == "max-keys=1");
        let directories = if is_question { Directories::Objects } else { self.directories };
        let answer = self.connections.call(request).await?;
        if !is_listing {
            return Ok(answer);
        }
        let (parts, mut body) = answer.into_parts();
        // The connection holds it to a length.
        let (page, end) = collect(&mut body, usize::MAX).await;
        end?;
        let (page, Skipped { count, first }) = reachable(&String::from_utf8_lossy(&page), directories);
        if let Some(first) = first {
            tracing::warn!(count, first, "names that cannot be asked for are left out of a listing");
        }
        Ok(HttpResponse::from_parts(parts, page.into()))
    }
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
fn reachable(page: &str, directories: Directories) -> (String, Skipped) {
    let (mut kept, mut rest, mut skipped) = (String::with_capacity(page.len()), page, Skipped::default());
    while let Some((at, end, name)) = element(rest) {
        let (before, behind) = rest.split_at(end);
        let is_object = before.get(at..).is_some_and(|element| element.starts_with("<Contents>"));
        if directories == Directories::LeftOut && is_object && name.ends_with(DELIMITER) {
            kept.push_str(before.get(..at).unwrap_or_default());
        } else if Path::parse(unescaped(name)).is_ok() {
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
        let (kept, skipped) = reachable(&page, Directories::Objects);
        assert_eq!(kept, format!("{head}{good}{}</ListBucketResult>", object("a/z")));
        assert_eq!((skipped.count, skipped.first.as_deref()), (6, Some(".")));
        let (same, none) = reachable(&kept, Directories::Objects);
        assert_eq!((same, none), (kept, Skipped::default()));
        let (files, left) = reachable(&good, Directories::LeftOut);
        assert_eq!((files, left.count), ([object("a/b &amp; c"), prefix("a/d/")].concat(), 0));
        // Azure's.
        let blobs = "<Blobs><Blob><Name>a//b</Name></Blob><BlobPrefix><Name>a/</Name></BlobPrefix></Blobs>";
        let unclosed = "<Contents><Key>a//b</Key><CommonPrefixes>";
        assert_eq!(
            reachable(unclosed, Directories::Objects),
            (unclosed.to_owned(), Skipped::default()),
            "it is left to the library"
        );
        assert_eq!(reachable(blobs, Directories::Objects).0, "<Blobs><BlobPrefix><Name>a/</Name></BlobPrefix></Blobs>");
    }

    #[test]
    fn what_xml_writes_in_its_own_way_is_read() {
        assert_eq!(unescaped("a&amp;&lt;&gt;&quot;&apos;&#65;&#x42;&unknown;&"), "a&<>\"'AB&");
    }
}
