//! Servers that answer as they are told to, which no well-behaved one would.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use sw_engine::{
    ErrorKind, Reason, WriteOutcome,
    seam::{EntryKind, Landed, Names, OpenMode, Part, Store, Tee},
};
use sw_remote::objects::{ObjectStores, ObjectsConfig, Settings};
use sw_testkit::scripted::{Scripted, error, head_of, part_of, say};

use crate::client::{config, put, read, stores, write};

/// How an S3 that is such a server is reached.
fn config_of(server: &Scripted) -> ObjectsConfig {
    let mut config = config([
        ("AWS_ENDPOINT_URL_S3", format!("http://{}", server.address())),
        ("AWS_ACCESS_KEY_ID", "A".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "S".to_owned()),
    ]);
    config.patience = Duration::from_secs(1);
    config
}

fn stores_of(server: &Scripted) -> ObjectStores {
    stores(config_of(server))
}

const TAG: &str = "ETag: \"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";

#[test]
fn a_version_is_asked_for_by_its_tag_and_not_by_its_name() {
    let headers = format!("{TAG}x-amz-version-id: v1\r\n");
    let server = Scripted::start(move |request| match request {
        _ if request.starts_with("head") => head_of(9, &headers),
        _ => part_of(request, &headers, b"123456789"),
    });
    let stores = stores_of(&server);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    assert_eq!(read(&stores, &object).unwrap(), b"123456789");
    let asked = server.asked("get");
    assert!(
        asked.iter().all(|request| !request.contains("versionid") && request.contains("if-match: \"1\"")),
        "{asked:?}"
    );
}

/// What a cache would keep: places and bytes.
#[derive(Default)]
struct Kept(Mutex<Vec<(u64, Vec<u8>)>>, AtomicU32);

impl Tee for Kept {
    fn landed(&self, part: Part, bytes: &mut dyn Landed) {
        let mut copy = vec![0; usize::try_from(part.len).unwrap()];
        bytes.copy_to(&mut copy);
        self.0.lock().unwrap().push((part.offset, copy));
    }

    fn disown(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn copies_are_given_of_answers_that_say_their_version_and_taken_back_if_the_whole_is_wrong() {
    let time = "Last-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
    let wrong = format!("{TAG}x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\nx-amz-checksum-type: FULL_OBJECT\r\n");
    // One of a weak tag is known by its time, and is no version.
    let weak = format!("ETag: W/\"1\"\r\n{time}");
    for (head, answer, kept, disowned) in [(TAG, TAG, 1, 0), (&weak, time, 0, 0), (&wrong, TAG, 0, 1)] {
        let (head, answer, head_is_strong) = (head.to_owned(), answer.to_owned(), head != weak);
        let server = Scripted::start(move |request| match request {
            _ if request.starts_with("head") => head_of(9, &head),
            _ => part_of(request, &answer, b"123456789"),
        });
        let stores = stores_of(&server);
        let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
        assert_eq!(sw_remote::is_versioned(&object), head_is_strong);
        let tee = Arc::new(Kept::default());
        let weak: Arc<dyn Tee> = tee.clone();
        sw_remote::set_tee(&object, Arc::downgrade(&weak));
        assert_eq!(read(&stores, &object).is_ok(), disowned == 0);
        let copies = tee.0.lock().unwrap().clone();
        assert!(copies.iter().all(|copy| *copy == (0, b"123456789".to_vec())));
        assert_eq!((copies.len(), tee.1.load(Ordering::Relaxed)), (kept, disowned));
    }
}

#[test]
fn an_answer_without_the_tag_that_the_object_had_is_of_another_one() {
    let time = "Last-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
    let server = Scripted::start(move |request| match request {
        _ if request.starts_with("head") => head_of(9, TAG),
        _ => part_of(request, time, b"123456789"),
    });
    let stores = stores_of(&server);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    let changed = read(&stores, &object).unwrap_err();
    assert_eq!(changed.kind(), ErrorKind::Changed, "{changed}");
}

#[test]
fn an_object_that_vanishes_while_it_is_listed_is_left_out() {
    let server = Scripted::start(|request| match request {
        _ if request.contains("list-type=2") => {
            let one = |key: &str| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-12-01T10:00:00.000Z</LastModified><Size>9</Size></Contents>"
                )
            };
            let page = format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{}{}</ListBucketResult>",
                one("gone"),
                one("here")
            );
            say("200 OK", "", page.as_bytes())
        }
        _ if request.contains("/b/here") => head_of(9, TAG),
        _ => say("404 Not Found", "", b""),
    });
    let names: Vec<String> = stores_of(&server).list("s3://b/").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["s3://b/here"]);
}

#[test]
fn who_may_not_list_is_told_so_and_finds_no_less() {
    let server = Scripted::start(|request| match request {
        _ if request.contains("list-type=2") => error("403 Forbidden", "AccessDenied"),
        _ if request.starts_with("head /b/hidden") => say("403 Forbidden", "", b""),
        _ => say("404 Not Found", "", b""),
    });
    let stores = stores_of(&server);
    let refused = stores.list("s3://b/").unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::PermissionDenied, 403), "{refused}");
    assert!(refused.to_string().contains("AccessDenied"), "{refused}");
    for missing in [stores.open("s3://b/k", OpenMode::Read).unwrap_err(), stores.stat("s3://b/k").unwrap_err()] {
        assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    }
    assert_eq!(stores.stat("s3://b/hidden").unwrap_err().kind(), ErrorKind::PermissionDenied);
    // The name of an object is no text that a status is read from.
    let error = stores.open("s3://b/status code: 403", OpenMode::Read).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, 404), "{error}");
}

#[test]
fn keys_whose_time_is_over_are_told_so() {
    let server = Scripted::start(|request| match request {
        _ if request.starts_with("head") => head_of(9, TAG),
        _ => error("400 Bad Request", "ExpiredToken"),
    });
    let stores = stores_of(&server);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    let expired = read(&stores, &object).unwrap_err();
    assert_eq!(expired.kind(), ErrorKind::PermissionDenied, "{expired}");
    assert!(expired.to_string().contains("ExpiredToken"), "{expired}");
    let unusable = {
        let mut config = config_of(&server);
        config.settings.set("AWS_SESSION_TOKEN", "a\rb");
        crate::client::stores(config).open("s3://b/k", OpenMode::Read).unwrap_err()
    };
    assert_eq!(unusable.kind(), ErrorKind::PermissionDenied, "{unusable}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
fn where_nobody_has_keys_that_is_told_soon() {
    let server = Scripted::start(|_| Vec::new());
    let at = |name: &str, value: String| (name.into(), value.into());
    let endpoint = at("AWS_ENDPOINT_URL_S3", format!("http://{}", server.address()));
    let error = |environment: Vec<_>| {
        let settings = Settings::from_environment(environment);
        let config = ObjectsConfig { settings, patience: Duration::from_secs(60), ..ObjectsConfig::default() };
        stores(config).open("s3://b/k", OpenMode::Read).unwrap_err()
    };
    let begun = Instant::now();
    let disabled = error(vec![endpoint.clone(), at("AWS_EC2_METADATA_DISABLED", "true".into())]);
    assert_eq!(disabled.kind(), ErrorKind::PermissionDenied, "{disabled}");
    assert!(disabled.to_string().contains("AWS_EC2_METADATA_DISABLED"), "{disabled}");
    // A metadata service that closes each connection.
    let service = at("AWS_METADATA_ENDPOINT", format!("http://{}", server.address()));
    let asked = error(vec![endpoint, service]);
    assert_eq!(asked.kind(), ErrorKind::PermissionDenied, "{asked}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(server.asked("get /b/k").is_empty() && server.asked("head").is_empty());
}

#[test]
fn an_object_that_became_another_is_changed_whatever_the_server_says_of_the_range() {
    for (status, headers) in [
        ("416 Range Not Satisfiable", "Content-Range: bytes */3\r\n"),
        // It looks at no range.
        ("200 OK", TAG),
    ] {
        let heads = Mutex::new(0);
        let server = Scripted::start(move |request| {
            if !request.starts_with("head") {
                return say(status, headers, b"123");
            }
            *heads.lock().unwrap() += 1;
            if *heads.lock().unwrap() == 1 { head_of(9, TAG) } else { head_of(3, &TAG.replace("\"1\"", "\"2\"")) }
        });
        let stores = stores_of(&server);
        let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
        let changed = read(&stores, &object).unwrap_err();
        assert_eq!(changed.kind(), ErrorKind::Changed, "{status}: {changed}");
    }
}

/// What comes of an object of ten bytes that is written by one request, where a server says so to it, and to the look at it.
fn written(put: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static, look: Vec<u8>) -> Result<(), sw_engine::Error> {
    let puts = Mutex::new(0);
    let server = Scripted::start(move |request| {
        if request.starts_with("head") {
            return look.clone();
        }
        let mut puts = puts.lock().unwrap();
        *puts += 1;
        put(*puts)
    });
    crate::client::put(&stores_of(&server), "s3://b/k", &[1; 10])
}

#[test]
fn an_object_that_may_have_been_written_is_not_told_as_not_written() {
    let outcome = |result: Result<(), sw_engine::Error>| result.unwrap_err().outcome();
    let denied = || say("403 Forbidden", "", b"");
    // The answer to the first try is lost, and meanwhile the keys are no longer good.
    let lost = |tries: usize| if tries == 1 { Vec::new() } else { error("400 Bad Request", "ExpiredToken") };
    assert_eq!(outcome(written(lost, denied())), Some(WriteOutcome::Unknown));
    let unwell =
        |tries: usize| if tries == 1 { say("500 Oh", "", b"") } else { error("403 Forbidden", "AccessDenied") };
    assert_eq!(outcome(written(unwell, denied())), Some(WriteOutcome::Unknown));
    // One that was refused at once was not.
    assert_eq!(outcome(written(|_| error("403 Forbidden", "AccessDenied"), denied())), Some(WriteOutcome::NotApplied));
}

#[test]
fn another_writers_object_and_one_that_may_not_be_looked_at_are_no_failures() {
    let done = || |_| say("200 OK", "ETag: \"mine\"\r\n", b"");
    let other = |headers: &str| head_of(7, &format!("{TAG}{headers}"));
    written(done(), other("x-amz-meta-straightway-upload: 00112233445566778899aabbccddeeff\r\n")).unwrap();
    written(done(), other("")).unwrap();
    written(done(), say("403 Forbidden", "", b"")).unwrap();
    let short = written(done(), head_of(7, "ETag: \"mine\"\r\n")).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::ShortData, "{short}");
}

#[test]
fn an_upload_that_nothing_fences_is_told_as_unknown() {
    let server = Scripted::start(|request| match request {
        _ if request.starts_with("put") && request.contains("comp=blocklist") => {
            error("403 Forbidden", "AuthorizationFailure")
        }
        _ if request.starts_with("put") => say("201 Created", "ETag: \"1\"\r\n", b""),
        _ => say("404 Not Found", "", b""),
    });
    let mut config = config_of(&server);
    for (name, value) in
        [("ACCOUNT_NAME", "a"), ("SKIP_SIGNATURE", "true"), ("ENDPOINT", &format!("http://{}", server.address()))]
    {
        config.settings.set(&format!("AZURE_STORAGE_{name}"), value);
    }
    config.settings.set("AZURE_SKIP_SIGNATURE", "true");
    config.part_bytes = 5 << 20;
    let stores = stores(config);
    let intent = stores.create("az://c/k", 6 << 20).unwrap();
    write(&stores, intent.object(), 0, &vec![1; 6 << 20]).unwrap();
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::PermissionDenied, Some(WriteOutcome::Unknown)), "{error}");
}

/// A page of a listing: names, prefixes, and what the next is asked for by.
fn page(names: &[&str], prefixes: &[&str], next: Option<&str>) -> Vec<u8> {
    let object = |name: &&str| {
        format!(
            "<Contents><Key>{name}</Key><LastModified>2026-12-01T10:00:00Z</LastModified><ETag>\"1\"</ETag><Size>3</Size></Contents>"
        )
    };
    let prefix = |name: &&str| format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>");
    let next = next.map(|next| format!("<NextContinuationToken>{next}</NextContinuationToken>")).unwrap_or_default();
    let entries = names.iter().map(object).chain(prefixes.iter().map(prefix)).collect::<String>();
    say("200 OK", "", format!("<ListBucketResult>{entries}{next}</ListBucketResult>").as_bytes())
}

#[test]
fn a_listing_has_what_can_be_asked_for_page_by_page() {
    let server = Scripted::start(|request| match request {
        _ if request.starts_with("head") => say("404 Not Found", "", b""),
        _ if request.contains("prefix=empty%2f") => page(&["empty/"], &[], None),
        _ if request.contains("prefix=same%2f") => page(&["same/a"], &[], Some("t")),
        _ if request.contains("continuation-token=t1") => page(&["d/z", "d/../up"], &["d/sub/"], None),
        _ if request.contains("prefix=d%2f") => page(&["d/", "d/a", "d//b", "d/&#x1;"], &["d//"], Some("t1")),
        _ => page(&[], &[], None),
    });
    let stores = stores_of(&server);
    let listed = stores.list("s3://b/d/").unwrap();
    let names: Vec<_> = listed.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    let (object, directory) = (EntryKind::Object, EntryKind::Directory);
    assert_eq!(names, [("s3://b/d/a", object), ("s3://b/d/sub", directory), ("s3://b/d/z", object)]);
    // One that is made by a tool as an object of no bytes is there, and has nothing in it.
    assert_eq!(stores.list("s3://b/empty/").unwrap(), []);
    assert_eq!(stores.stat("s3://b/empty/").unwrap().kind, directory);
    assert_eq!(stores.stat("s3://b/d").unwrap().kind, directory);
    assert_eq!(stores.list("s3://b/nothing/").unwrap_err().kind(), ErrorKind::NotFound);
    let endless = stores.list("s3://b/same/").unwrap_err();
    assert_eq!(endless.kind(), ErrorKind::Protocol, "{endless}");
}

#[test]
fn an_object_is_removed_by_its_name_and_by_nothing_else() {
    let server = Scripted::start(|request| match request {
        _ if request.starts_with("head") => head_of(9, TAG),
        _ if request.starts_with("delete") => say("204 No Content", "", b""),
        _ => say(
            "200 OK",
            "",
            b"<DeleteResult><Error><Key>other</Key><Code>a</Code><Message>b</Message></Error></DeleteResult>",
        ),
    });
    stores_of(&server).remove("s3://b/k").unwrap();
    assert_eq!((server.asked("delete /b/k").len(), server.asked("post").len()), (1, 0));
}

#[test]
fn what_no_server_says_is_an_error_at_once() {
    let server = Scripted::start(|request| match request {
        _ if request.contains("list-type=2") => say("200 OK", "", &vec![b' '; 40 << 20]),
        _ if request.starts_with("head") => head_of(9, TAG),
        _ => {
            say("206 Partial Content", &format!("{TAG}Content-Range: bytes 0-18446744073709551615/9\r\n"), b"123456789")
        }
    });
    let stores = stores_of(&server);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    let nonsense = read(&stores, &object).unwrap_err();
    assert_eq!(nonsense.kind(), ErrorKind::Protocol, "{nonsense}");
    let endless = stores.list("s3://b/").unwrap_err();
    assert_eq!(endless.kind(), ErrorKind::Protocol, "{endless}");
}

#[test]
fn settings_that_make_no_address_are_told_before_anything_is_asked() {
    let of = |name, value: &str| {
        let mut config = ObjectsConfig::default();
        config.settings.set("AWS_ACCESS_KEY_ID", "A");
        config.settings.set("AWS_SECRET_ACCESS_KEY", "S");
        config.settings.set(name, value);
        stores(config).open("s3://b/k", OpenMode::Read).unwrap_err()
    };
    for (name, value) in [("AWS_ENDPOINT_URL", "minio:9000"), ("AWS_REGION", "eu west")] {
        let wrong = of(name, value);
        assert_eq!(wrong.kind(), ErrorKind::ApiMisuse, "{wrong}");
        assert!(wrong.to_string().contains(value), "{wrong}");
    }
    assert_eq!(
        stores(ObjectsConfig::default()).open("s3://a<b/k", OpenMode::Read).unwrap_err().kind(),
        ErrorKind::BadUri
    );
}

#[test]
fn who_is_left_alone_lets_others_ask() {
    let server = Scripted::start(|request| match request {
        _ if request.starts_with("head /b/busy") => say("503 Slow Down", "Retry-After: 5\r\n", b""),
        _ => head_of(9, TAG),
    });
    let mut config = config_of(&server);
    config.http.requests_max = 1;
    let stores = stores(config);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| stores.open("s3://b/busy", OpenMode::Read).unwrap_err());
        while server.asked("head /b/busy").is_empty() {
            std::thread::yield_now();
        }
        // The only place is free while the other waits.
        #[expect(clippy::disallowed_methods, reason = "the wait is one of time")]
        let start = Instant::now();
        stores.open("s3://b/k", OpenMode::Read).unwrap();
        assert!(start.elapsed() < Duration::from_secs(4), "it waited until the other had waited");
        assert_eq!(busy.join().unwrap().kind(), ErrorKind::Busy);
    });
}

#[test]
fn a_part_of_an_answer_is_never_joined_to_a_part_of_another() {
    let weak = "ETag: W/\"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
    let none = "Last-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
    let later = |headers: &str| headers.replace("10:00:00", "10:00:01");
    for headers in [weak, none] {
        for (then, is_same) in [(headers.to_owned(), true), (later(headers), false)] {
            let gets = Mutex::new(0);
            let server = Scripted::start(move |request| {
                if request.starts_with("head") {
                    return head_of(100_000, headers);
                }
                let mut gets = gets.lock().unwrap();
                *gets += 1;
                if *gets > 1 {
                    return part_of(request, &then, &[7; 100_000]);
                }
                // The first is cut in its middle.
                let mut cut = part_of(request, headers, &[7; 100_000]);
                cut.truncate(50_000);
                cut
            });
            let stores = stores_of(&server);
            let object = stores.open(&format!("http://{}/file", server.address()), OpenMode::Read).unwrap();
            let got = read(&stores, &object);
            match is_same {
                true => assert!(got.unwrap() == [7; 100_000], "{headers}"),
                false => assert_eq!(got.unwrap_err().kind(), ErrorKind::Changed, "{headers}"),
            }
        }
    }
}

#[test]
fn plain_http_is_read_and_nothing_else_and_its_names_are_those_of_urls() {
    let server = Scripted::start(|_| head_of(9, TAG));
    let (stores, at) = (stores_of(&server), format!("http://{}", server.address()));
    for refused in [
        stores.remove(&format!("{at}/k")).unwrap_err(),
        stores.list(&at).unwrap_err(),
        put(&stores, &format!("{at}/k"), b"1").unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    }
    assert_eq!(server.asked("").len(), 0);
    stores.open(&format!("{at}/a%20b/c+d"), OpenMode::Read).unwrap();
    assert_eq!(server.asked("head /a%20b/c+d http").len(), 1, "{:?}", server.asked(""));
    let signed = stores.open(&format!("{at}/k?X-Amz-Signature=1"), OpenMode::Read).unwrap_err();
    assert_eq!(signed.kind(), ErrorKind::BadUri, "{signed}");
    let object = stores.open(&format!("{at}/k"), OpenMode::Read).unwrap();
    assert_eq!(object.faces[0].because, None);
    let mut config = config_of(&server);
    config.settings.set("AWS_ENDPOINT_URL_S3", "https://localhost:1");
    let intent = crate::client::stores(config).create("s3://b/k", 1).unwrap();
    assert_eq!(intent.object().faces[0].because, Some(Reason::TlsInUserSpace));
}
