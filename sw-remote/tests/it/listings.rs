//! Walks over more names than a page of a listing has, against a server that lists as S3 does, or not quite.

use std::{
    collections::BTreeSet,
    fmt::Write,
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    sync::{Arc, Mutex},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind,
    seam::{Hidden, Store},
};
use sw_testkit::scripted::{Scripted, head_of, say};

use crate::client::{config, stores};

/// Names of a page.
const PAGE: usize = 100;

/// What a listing does that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It begins at the first name, wherever it is told to begin.
    BeginsAnywhere,
    /// Names come backwards.
    Backwards,
    /// Only behind the first page.
    BackwardsLater,
    /// The second page has itself for the next.
    Endless,
    /// What is behind the second page is refused.
    Refuses,
}

/// How many requests it had at a time, at most, and all.
#[derive(Default)]
struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
    queries: Mutex<Vec<String>>,
}

/// A word of a query.
fn word(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(String::from_utf8(bytes).unwrap())
}

/// A page of "ListObjectsV2".
fn page(names: &BTreeSet<String>, query: &str, fault: Fault) -> String {
    let prefix = word(query, "prefix").unwrap_or_default();
    let after = word(query, "start-after").filter(|_| fault != Fault::BeginsAnywhere).unwrap_or_default();
    let token = word(query, "continuation-token");
    let from = token.clone().unwrap_or(after);
    let is_level = word(query, "delimiter").is_some();
    let mut rows: Vec<(String, bool)> = Vec::new();
    let mut is_cut = false;
    for name in names.iter().filter(|name| name.starts_with(&prefix) && **name > from) {
        let below = &name[prefix.len()..];
        let row = match below.find('/').filter(|_| is_level) {
            Some(slash) => (format!("{prefix}{}", &below[..=slash]), true),
            None => (name.clone(), false),
        };
        if row.1 && row.0 <= from || rows.last() == Some(&row) {
            continue;
        }
        if rows.len() == PAGE {
            is_cut = true;
            break;
        }
        rows.push(row);
    }
    // A prefix is behind all that is below it.
    let last = rows.last().map(|(name, is_prefix)| if *is_prefix { format!("{name}~") } else { name.clone() });
    let is_later = token.is_some() || word(query, "start-after").is_some();
    let next = if fault == Fault::Endless && token.is_some() { token } else { last };
    if fault == Fault::Backwards || fault == Fault::BackwardsLater && is_later && !is_level {
        rows.reverse();
    }
    let mut text = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
    write!(text, "<IsTruncated>{is_cut}</IsTruncated>").unwrap();
    if is_cut {
        write!(text, "<NextContinuationToken>{}</NextContinuationToken>", next.unwrap()).unwrap();
    }
    for (name, is_prefix) in rows {
        if is_prefix {
            write!(text, "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>").unwrap();
        } else {
            let rest = "<LastModified>2026-12-01T10:00:00.000Z</LastModified><ETag>\"1\"</ETag><Size>7</Size>";
            write!(text, "<Contents><Key>{name}</Key>{rest}</Contents>").unwrap();
        }
    }
    text + "</ListBucketResult>"
}

#[expect(clippy::disallowed_methods, reason = "an answer that takes a while, so that others are asked for meanwhile")]
fn server(names: &[String], fault: Fault) -> (Scripted, Arc<Seen>) {
    let names: BTreeSet<String> = names.iter().cloned().collect();
    let seen = Arc::new(Seen::default());
    let watch = seen.clone();
    let server = Scripted::start(move |request| {
        let Some(query) = request.split([' ', '?']).find(|part| part.contains("list-type=2")) else {
            return say("404 Not Found", "", b"");
        };
        let nth = watch.all.fetch_add(1, SeqCst);
        watch.most.fetch_max(watch.now.fetch_add(1, SeqCst) + 1, SeqCst);
        watch.queries.lock().unwrap().push(query.to_owned());
        std::thread::sleep(Duration::from_millis(2));
        let answer = match fault {
            Fault::Refuses if nth > 4 => say("403 Forbidden", "", b""),
            _ => say("200 OK", "Content-Type: application/xml\r\n", page(&names, query, fault).as_bytes()),
        };
        watch.now.fetch_sub(1, SeqCst);
        answer
    });
    (server, seen)
}

fn walked(server: &Scripted, at: &str, hidden: Hidden, most: usize) -> Result<Vec<String>, Error> {
    let mut config = config([
        ("AWS_ENDPOINT_URL_S3", format!("http://{}", server.address())),
        ("AWS_ACCESS_KEY_ID", "A".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "S".to_owned()),
    ]);
    config.patience = Duration::from_secs(10);
    let stores = stores(config);
    let mut found = Vec::new();
    stores.walk(at, hidden, &mut |entry| {
        found.push(entry.name.strip_prefix("s3://b/").unwrap().to_owned());
        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

/// A thousand classes with a few objects each, and some names in between that sort before and behind a slash.
fn classes() -> Vec<String> {
    let mut names: Vec<String> =
        (0..1000).flat_map(|class| (0..5).map(move |one| format!("t/n{class:04}/{one}.jpg"))).collect();
    names.extend(["t/n0500-b", "t/n0500.c", "t/n0500z", "t/z", "s/a", "u/a"].map(str::to_owned));
    names.sort();
    names
}

fn below(names: &[String], prefix: &str) -> Vec<String> {
    names.iter().filter(|name| name.starts_with(prefix)).cloned().collect()
}

#[test]
fn a_walk_gives_each_name_once_in_order_by_several_listings_at_a_time() {
    let names = classes();
    let (server, seen) = server(&names, Fault::None);
    assert!(walked(&server, "s3://b/t", Hidden::Given, usize::MAX).unwrap() == below(&names, "t/"));
    let (all, most) = (seen.all.load(SeqCst), seen.most.load(SeqCst));
    assert!(most > 1, "{most} requests at a time");
    // Fifty pages, and those that find where to cut and that are used in part.
    assert!((50..100).contains(&all), "{all} requests");
    // The bucket as a whole, a level above.
    assert!(walked(&server, "s3://b/", Hidden::Given, usize::MAX).unwrap() == names);
}

#[test]
fn names_of_one_level_and_a_deep_tree_with_one_branch_are_walked_too() {
    let flat: Vec<String> = (0..2500).map(|number| format!("f/{number:05}")).collect();
    let deep: Vec<String> = (0..2500).map(|number| format!("a/b/c/d/{:02}/{number:05}", number % 20)).collect();
    for mut names in [flat, deep] {
        names.sort();
        let (server, seen) = server(&names, Fault::None);
        assert!(walked(&server, "s3://b", Hidden::Given, usize::MAX).unwrap() == names);
        let (all, most) = (seen.all.load(SeqCst), seen.most.load(SeqCst));
        // Nobody knows a name of the first one before it is listed.
        assert!(if names[0].starts_with('f') { most == 1 } else { most > 1 }, "{most} requests at a time");
        assert!((25..60).contains(&all), "{all} requests");
    }
}

#[test]
fn a_short_listing_is_one_request_and_a_walk_ends_when_it_is_told_to() {
    let names = classes();
    let (server, seen) = server(&names, Fault::None);
    assert_eq!(walked(&server, "s3://b/t/n0007/", Hidden::Given, usize::MAX).unwrap(), below(&names, "t/n0007/"));
    assert_eq!(seen.all.load(SeqCst), 1);
    assert_eq!(walked(&server, "s3://b/t", Hidden::Given, 7).unwrap(), below(&names, "t/")[..7]);
    assert_eq!(seen.all.load(SeqCst), 2);
    assert_eq!(walked(&server, "s3://b/none", Hidden::Given, 7).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(walked(&server, "s3://b/t", Hidden::Given, 700).unwrap() == below(&names, "t/")[..700]);
}

#[test]
fn hidden_names_are_left_out_where_that_is_wanted() {
    let names = [".x/a", "d/.git/head", "d/.y", "d/a", "d/b.c/.z/1", "d/b.c/1"].map(str::to_owned);
    let (server, _) = server(&names, Fault::None);
    assert_eq!(walked(&server, "s3://b/d", Hidden::LeftOut, 99).unwrap(), ["d/a", "d/b.c/1"]);
    assert_eq!(walked(&server, "s3://b/", Hidden::LeftOut, 99).unwrap(), ["d/a", "d/b.c/1"]);
    assert_eq!(walked(&server, "s3://b/", Hidden::Given, 99).unwrap(), names);
    // What is named is not hidden.
    assert_eq!(walked(&server, "s3://b/.x", Hidden::LeftOut, 99).unwrap(), [".x/a"]);
}

#[test]
fn a_store_that_does_not_begin_where_it_is_told_gives_each_name_once() {
    let names = classes();
    let (server, _) = server(&names, Fault::BeginsAnywhere);
    assert!(walked(&server, "s3://b/t", Hidden::Given, usize::MAX).unwrap() == below(&names, "t/"));
}

#[test]
fn a_listing_without_order_is_walked_page_by_page_and_one_that_loses_it_is_refused() {
    let names = classes();
    let (server_of, seen) = server(&names, Fault::Backwards);
    let mut found = walked(&server_of, "s3://b/t", Hidden::Given, usize::MAX).unwrap();
    found.sort();
    assert!(found == below(&names, "t/"));
    assert_eq!(seen.most.load(SeqCst), 1);
    let (server_of, _) = server(&names, Fault::BackwardsLater);
    let error = walked(&server_of, "s3://b/t", Hidden::Given, usize::MAX).unwrap_err();
    assert!(error.to_string().contains("not in their order"), "{error}");
}

#[test]
fn a_listing_without_end_or_with_a_refusal_in_the_middle_is_an_error() {
    let names: Vec<String> = (0..2500).map(|number| format!("f/{number:05}")).collect();
    for (fault, kind) in [(Fault::Endless, ErrorKind::Io), (Fault::Refuses, ErrorKind::PermissionDenied)] {
        let (server, _) = server(&names, fault);
        let error = walked(&server, "s3://b/f", Hidden::Given, usize::MAX).unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {error}");
    }
}

/// A listing of Alluxio's (2.9.6 `ListBucketResult.buildListBucketResult`): names are compared without the slash that ends those of directories, and its
/// own token has it. All that is a directory is in `directories`.
fn alluxio_page(request: &str, files: &[String], directories: &[String]) -> Vec<u8> {
    const PAGE: usize = 1000;
    let query = request.split(' ').nth(1).unwrap().split_once('?').unwrap().1;
    let (prefix, after) = (word(query, "prefix").unwrap_or_default(), word(query, "start-after").unwrap_or_default());
    let token = word(query, "continuation-token").unwrap_or_default();
    let is_level = word(query, "delimiter").is_some();
    let all = files.iter().map(|name| (name, "")).chain(directories.iter().map(|name| (name, "/")));
    let mut all: Vec<_> = all
        .filter(|(name, _)| name.starts_with(&prefix) && **name > after && **name > token)
        .filter(|(name, _)| !is_level || !name[prefix.len()..].contains('/'))
        .collect();
    all.sort_unstable();
    let is_more = all.len() > PAGE;
    all.truncate(PAGE);
    let next = all.last().filter(|_| is_more).map(|(name, slash)| format!("{name}{slash}")).unwrap_or_default();
    let mut page = format!("<ListBucketResult><IsTruncated>{is_more}</IsTruncated>");
    if is_more {
        write!(page, "<NextContinuationToken>{next}</NextContinuationToken>").unwrap();
    }
    for (name, slash) in all {
        if is_level && slash == "/" {
            write!(page, "<CommonPrefixes><Prefix>{name}/</Prefix></CommonPrefixes>").unwrap();
        } else {
            write!(page, "<Contents><Key>{name}{slash}</Key><LastModified>2026-12-01T10:00:00.000Z</LastModified><Size>1</Size></Contents>").unwrap();
        }
    }
    say("200 OK", "", format!("{page}<Prefix>{prefix}</Prefix></ListBucketResult>").as_bytes())
}

#[test]
fn a_page_of_alluxio_that_ends_with_a_directory_loses_no_names() {
    let mut files: Vec<String> = (0..999).map(|number| format!("many/a{number:03}")).collect();
    files.extend(["many/c b", "many/c-1", "many/c.x", "many/c/x", "many/d"].map(str::to_owned));
    let directories = vec!["many/c".to_owned()];
    let (served, below) = (files.clone(), directories.clone());
    let server = Scripted::start(move |request| match request {
        _ if request.starts_with("head") => {
            head_of(1, "ETag: \"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n")
        }
        _ => alluxio_page(request, &served, &below),
    });
    let mut config = config([("", String::new()), ("", String::new()), ("", String::new())]);
    config.settings.set("ALLUXIO_USER", "root");
    let (stores, at) = (stores(config), format!("alluxio://{}/d/", server.address()));
    let full = |names: Vec<String>| names.into_iter().map(|name| format!("{at}{name}")).collect::<Vec<_>>();
    let mut walked = Vec::new();
    let mut each = |entry: sw_engine::seam::Entry| {
        walked.push(entry.name);
        ControlFlow::Continue(())
    };
    stores.walk(&format!("{at}many/"), Hidden::Given, &mut each).unwrap();
    assert!(walked == full(files.clone()), "{:?}", walked.get(990..));
    let level: Vec<String> = stores.list(&format!("{at}many/")).unwrap().into_iter().map(|entry| entry.name).collect();
    let mut want: Vec<String> = files.into_iter().filter(|name| name != "many/c/x").chain(directories).collect();
    want.sort_unstable();
    assert!(level == full(want), "{:?}", level.get(990..));
}
