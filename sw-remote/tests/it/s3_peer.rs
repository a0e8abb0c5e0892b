//! Real servers of S3: one table of what they do that others do not, and one suite that all of them are held to.
//!
//! ```text
//!   Peer (rgw, minio, garage): starts, is killed, starts again ─► everything(): suites, names, uploads, ranges, versions, checksums,
//!                                                                 refusals, TLS, lost answers, damage on its disk, kills, commands
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use sw_engine::{
    ErrorKind, Object, WriteOutcome,
    checksum::Algorithm,
    seam::{Entry, EntryKind, Hidden, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    System,
    objects::{ObjectStores, ObjectsConfig},
};
use sw_testkit::{
    pattern,
    s3::{BUCKET, Proxy, Request, Server, Then, Wire},
};

use crate::{
    client::{config, put, read, read_until, stores, transfer, write},
    commands,
    conformance::{Bed, store_conforms, transport_conforms},
    hdfs_cluster::timed,
};

pub const MIB: usize = 1 << 20;

/// What a server does that others do not.
pub struct Traits {
    pub name: &'static str,
    /// Checksums that it keeps of what is put by one request, and tells.
    pub keeps: &'static [Sum],
    /// Whether it tells that of an upload in parts, of all of its bytes.
    pub keeps_of_parts: bool,
    /// Names that it takes, of those that cannot be asked for or stand for a prefix.
    pub odd: &'static [&'static str],
    /// What it answers to a PUT with `If-None-Match: *` of a name that is there.
    pub put_if_none: u16,
    /// How often it is killed in the midst of reads and writes.
    pub kills: usize,
}

/// A checksum by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Crc64Nvme,
    Crc32c,
    Sha256,
}

impl Sum {
    const ALL: [Self; 3] = [Self::Crc64Nvme, Self::Crc32c, Self::Sha256];

    fn header(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    fn of(self, bytes: &[u8]) -> String {
        match self {
            Self::Crc64Nvme => STANDARD.encode(Algorithm::Crc64Nvme.of(bytes).to_be_bytes()),
            Self::Crc32c => STANDARD.encode(&Algorithm::Crc32c.of(bytes).to_be_bytes()[4..]),
            Self::Sha256 => STANDARD.encode(Sha256::digest(bytes)),
        }
    }
}

/// A server of S3.
pub trait Peer {
    fn traits(&self) -> &'static Traits;

    /// Where it listens.
    fn port(&self) -> u16;

    /// Where it speaks TLS, and whom to trust.
    fn tls(&self) -> Option<(u16, PathBuf)>;

    /// The name of a key, and its secret.
    fn key(&self) -> (String, String);

    /// The folder in which the bytes of objects lie.
    fn data(&self) -> Option<PathBuf>;

    /// Kills it, and starts it again.
    fn restart(&mut self);
}

/// What makes a certificate for it, which is its own authority.
pub const CERTIFICATE: [&str; 15] = [
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    "key.pem",
    "-out",
    "cert.pem",
    "-subj",
    "/CN=127.0.0.1",
    "-addext",
    "subjectAltName=IP:127.0.0.1",
    "-addext",
    "basicConstraints=critical,CA:FALSE",
];

/// What a server answers to a request: a line, some headers, and bytes.
pub fn ask(port: u16, line: &str, headers: &str, body: &[u8]) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (host, len) = (format!("127.0.0.1:{port}"), body.len());
    let head =
        format!("{line} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {len}\r\nConnection: close\r\n\r\n");
    socket.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The number of an answer.
fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request that is signed (AWS Signature Version 4), of a method, a path and a query; with headers, in the order of their names.
pub fn ask_signed(
    peer: &dyn Peer,
    (method, path, query): (&str, &str, &str),
    headers: &[(&str, String)],
    body: &[u8],
) -> String {
    let (key, secret) = peer.key();
    let time = time_of(&ask(peer.port(), "GET /", "", b""));
    let (day, host) = (&time[..8], format!("127.0.0.1:{}", peer.port()));
    let sum = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    let hmac = |key: &[u8], text: &str| {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let mut all = headers.to_vec();
    all.extend([("host", host), ("x-amz-content-sha256", sum(body)), ("x-amz-date", time.clone())]);
    all.sort();
    let names = all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = all.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let request = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{}", sum(body));
    let scope = format!("{day}/us-east-1/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sum(request.as_bytes()));
    let signing = [day, "us-east-1", "s3", "aws4_request"];
    let signing = signing.iter().fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part));
    let signature = hex(&hmac(&signing, &text));
    let credential = format!("Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}");
    let said = all.iter().filter(|(name, _)| *name != "host").map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers = format!("{}Authorization: AWS4-HMAC-SHA256 {credential}\r\n", said.collect::<String>());
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    ask(peer.port(), &format!("{method} {path}{query}"), &headers, body)
}

/// The time that a server tells, as signatures want it.
fn time_of(answer: &str) -> String {
    let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("date: ")).unwrap();
    let words: Vec<&str> = line["date: ".len()..].split([' ', ':']).collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = 1 + months.iter().position(|month| *month == words[2]).unwrap();
    format!("{}{month:02}{}T{}{}{}Z", words[3], words[1], words[4], words[5], words[6])
}

pub fn make_bucket(peer: &dyn Peer) {
    let answer = ask_signed(peer, ("PUT", &format!("/{BUCKET}"), ""), &[], b"");
    assert_eq!(status(&answer), 200, "{answer}");
}

/// Whether there is no unfinished upload of this name.
fn has_no_uploads(peer: &dyn Peer, name: &str) -> bool {
    let answer = ask_signed(peer, ("GET", &format!("/{BUCKET}"), &format!("prefix={name}&uploads=")), &[], b"");
    assert!(answer.contains("ListMultipartUploadsResult"), "{answer}");
    !answer.contains("<UploadId>")
}

pub fn environment(peer: &dyn Peer) -> [(&'static str, String); 3] {
    let (key, secret) = peer.key();
    let endpoint = format!("http://127.0.0.1:{}", peer.port());
    [("AWS_ENDPOINT_URL_S3", endpoint), ("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)]
}

fn config_of(peer: &dyn Peer) -> ObjectsConfig {
    ObjectsConfig { part_bytes: 5 << 20, ..config(environment(peer)) }
}

fn stores_of(peer: &dyn Peer) -> ObjectStores {
    stores(config_of(peer))
}

/// All of it in one test: some servers take seconds to start.
pub fn everything(peer: &mut dyn Peer) {
    let name = peer.traits().name;
    let bed = || Bed::of(name, stores_of(peer));
    store_conforms(&mut bed());
    transport_conforms(&mut bed());
    type Part = (&'static str, fn(&dyn Peer));
    let parts: [Part; 9] = [
        ("names", bytes_and_names),
        ("uploads", uploads),
        ("ranges", ranges),
        ("versions", versions),
        ("checksums", checksums),
        ("refusals", refusals),
        ("tls", tls),
        ("lost answers", lost_answers),
        ("damage", damage),
    ];
    for (what, part) in parts {
        println!("{name}: {what}: {:.1?}", timed(|| part(peer)).1);
    }
    println!("{name}: kills: {:.1?}", timed(|| killed(peer)).1);
    commands::hold(name, &Server::uri("commands/"), &environment(peer), &[]);
}

fn bytes_and_names(peer: &dyn Peer) {
    let stores = stores_of(peer);
    // More than a page of a listing, with names that must be escaped.
    let names: Vec<String> = (0..1005).map(|number| format!("many/a b+%?#&ü-{number:04}")).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(126) {
            let stores = &stores;
            scope.spawn(move || part.iter().for_each(|name| put(stores, &Server::uri(name), name.as_bytes()).unwrap()));
        }
    });
    let listed = stores.list(&Server::uri("many/")).unwrap();
    assert_eq!(
        listed.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>(),
        names.iter().map(|name| Server::uri(name)).collect::<Vec<_>>()
    );
    let mut walked = Vec::new();
    let mut each = |entry: Entry| {
        walked.push(entry);
        ControlFlow::Continue(())
    };
    stores.walk(&Server::uri("many"), Hidden::Given, &mut each).unwrap();
    assert!(walked == listed);
    let object = stores.open(&listed[1004].name, OpenMode::Read).unwrap();
    assert_eq!(
        (read(&stores, &object).unwrap(), object.version),
        (names[1004].clone().into_bytes(), listed[1004].version)
    );
    let root = stores.list("s3://bucket/").unwrap();
    assert!(
        root.iter().any(|entry| entry.name == Server::uri("many") && entry.kind == EntryKind::Directory),
        "{root:?}"
    );
    // Names that cannot be asked for, and one that tools make of a prefix, beside one that can.
    for name in ["odd//name", "odd/marker/", "odd/"] {
        let answer = ask_signed(peer, ("PUT", &format!("/{BUCKET}/{name}"), ""), &[], b"");
        assert_eq!(status(&answer) == 200, peer.traits().odd.contains(&name), "{name}: {answer}");
    }
    put(&stores, &Server::uri("odd/one"), b"1").unwrap();
    let odd: Vec<String> = stores.list(&Server::uri("odd/")).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(odd, [Server::uri("odd/marker"), Server::uri("odd/one")]);
    assert_eq!(stores.list(&Server::uri("odd/marker/")).unwrap(), []);
    stores.remove(&object.name).unwrap();
    assert_eq!(stores.stat(&object.name).unwrap_err().kind(), ErrorKind::NotFound);
}

fn uploads(peer: &dyn Peer) {
    let stores = stores_of(peer);
    for len in [0, 1, MIB, 5 * MIB, 17 * MIB + 5] {
        let (name, bytes) = (Server::uri("upload"), pattern::bytes(len as u64, 0, len));
        put(&stores, &name, &bytes).unwrap_or_else(|error| panic!("{len}: {error}"));
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes, "{len}");
    }
    let intent = stores.create(&Server::uri("holes"), 11 * MIB as u64).unwrap();
    write(&stores, intent.object(), 6 * MIB as u64, &[1; 100]).unwrap();
    intent.commit(Names::Durable).unwrap();
    let mut want = vec![0; 11 * MIB];
    want[6 * MIB..6 * MIB + 100].fill(1);
    let object = stores.open(&Server::uri("holes"), OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == want);
    let intent = stores.create(&Server::uri("given-up"), 11 * MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &want[..6 * MIB]).unwrap();
    assert!(!has_no_uploads(peer, "given-up"));
    drop(intent);
    assert!(has_no_uploads(peer, "given-up"));
    assert_eq!(stores.stat(&Server::uri("given-up")).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Reads a mebibyte from a place.
fn read_at(stores: &ObjectStores, object: &Object, at: u64) -> Result<Vec<u8>, sw_engine::Error> {
    let mut buffer = Buffer::allocate(ByteLen(MIB as u64)).unwrap();
    let moved = transfer(stores, object, IoKind::Read, at, &buffer)?;
    Ok(buffer.as_mut_slice()[..usize::try_from(moved).unwrap()].to_vec())
}

/// Of the object that `uploads` left, whose parts have 5 MiB.
fn ranges(peer: &dyn Peer) {
    let stores = stores_of(peer);
    let (len, seam) = (17 * MIB + 5, 5 * MIB as u64);
    let object = stores.open(&Server::uri("upload"), OpenMode::Read).unwrap();
    let want = pattern::bytes(len as u64, 0, len);
    let end = object.len;
    for at in [0, 1, seam - 1, seam, 2 * seam - 77, end - MIB as u64, end - 1, end] {
        let got = read_at(&stores, &object, at).unwrap();
        let at = usize::try_from(at).unwrap();
        assert!(got == want[at..len.min(at + MIB)], "{at}");
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(read(&stores, &object).unwrap() == want));
        }
    });
    let range = [("range", format!("bytes={end}-{}", end + 9))];
    let answer = ask_signed(peer, ("GET", &format!("/{BUCKET}/upload"), ""), &range, b"");
    assert_eq!(status(&answer), 416, "{answer}");
}

/// An object that is replaced by one of the same length, within a second: between opening and reading, and between two reads.
fn versions(peer: &dyn Peer) {
    let (stores, name) = (stores_of(peer), Server::uri("replaced"));
    let len = 3 * MIB;
    let make = |seed: u64| put(&stores, &name, &pattern::bytes(seed, 0, len)).unwrap();
    make(1);
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read_at(&stores, &object, 0).unwrap() == pattern::bytes(1, 0, MIB));
    make(2);
    assert_eq!(read_at(&stores, &object, MIB as u64).unwrap_err().kind(), ErrorKind::Changed);
    let known = stores.open_known(&name, object.len, object.version).unwrap();
    assert_eq!(read_at(&stores, &known, 0).unwrap_err().kind(), ErrorKind::Changed);
    let now = stores.stat(&name).unwrap();
    let known = stores.open_known(&name, now.len, now.version).unwrap();
    assert!(read(&stores, &known).unwrap() == pattern::bytes(2, 0, len));
    make(3);
    assert_eq!(read_at(&stores, &known, MIB as u64).unwrap_err().kind(), ErrorKind::Changed);
    // By the server itself, which is not relied on.
    let path = format!("/{BUCKET}/replaced");
    let old = [("if-match", "\"00000000000000000000000000000000\"".to_owned()), ("range", "bytes=0-9".to_owned())];
    assert_eq!(status(&ask_signed(peer, ("GET", &path, ""), &old, b"")), 412);
    let new_only = [("if-none-match", "*".to_owned())];
    let answer = ask_signed(peer, ("PUT", &path, ""), &new_only, b"other");
    assert_eq!(status(&answer), peer.traits().put_if_none, "{answer}");
}

/// Checksums that are given with an object: refused if they are wrong, kept, and compared by us.
fn checksums(peer: &dyn Peer) {
    let (stores, bytes) = (stores_of(peer), pattern::bytes(5, 0, 100_000));
    for sum in Sum::ALL {
        let (name, is_kept) = (format!("summed-{sum:?}"), peer.traits().keeps.contains(&sum));
        let path = format!("/{BUCKET}/{name}");
        let wrong = ask_signed(peer, ("PUT", &path, ""), &[(sum.header(), sum.of(b"others"))], &bytes);
        println!("    {sum:?}: a wrong one: {}", status(&wrong));
        assert!(!is_kept || status(&wrong) == 400, "{sum:?}: {wrong}");
        let right = ask_signed(peer, ("PUT", &path, ""), &[(sum.header(), sum.of(&bytes))], &bytes);
        assert_eq!(status(&right), 200, "{right}");
        let asked = [("x-amz-checksum-mode", "ENABLED".to_owned())];
        let told = ask_signed(peer, ("GET", &path, ""), &asked, b"").to_ascii_lowercase();
        assert_eq!(told.contains(&format!("{}: ", sum.header())), is_kept, "{sum:?}: {told:.600}");
        let object = stores.open(&Server::uri(&name), OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes);
        let by_us = sw_remote::stored_checksum(&object);
        let want = match sum {
            Sum::Crc64Nvme => Some((Algorithm::Crc64Nvme, Algorithm::Crc64Nvme.of(&bytes))),
            Sum::Crc32c => Some((Algorithm::Crc32c, Algorithm::Crc32c.of(&bytes))),
            Sum::Sha256 => None,
        };
        assert_eq!(by_us, want.filter(|_| is_kept), "{sum:?}");
    }
    // Of parts.
    let bytes = pattern::bytes(6, 0, 11 * MIB);
    put(&stores, &Server::uri("summed-parts"), &bytes).unwrap();
    let object = stores.open(&Server::uri("summed-parts"), OpenMode::Read).unwrap();
    let want = (Algorithm::Crc64Nvme, Algorithm::Crc64Nvme.of(&bytes));
    assert_eq!(sw_remote::stored_checksum(&object), peer.traits().keeps_of_parts.then_some(want));
}

fn refusals(peer: &dyn Peer) {
    let wrong = |name, value: &str| {
        let mut config = config_of(peer);
        config.settings.set(name, value);
        stores(config).open(&Server::uri("upload"), OpenMode::Read).unwrap_err()
    };
    assert_eq!(wrong("AWS_SECRET_ACCESS_KEY", "another").kind(), ErrorKind::PermissionDenied);
    assert_eq!(wrong("AWS_ACCESS_KEY_ID", "nobody").kind(), ErrorKind::PermissionDenied);
    assert_eq!(wrong("AWS_SKIP_SIGNATURE", "true").kind(), ErrorKind::PermissionDenied);
    let (stores, nowhere) = (stores_of(peer), "s3://no-such-bucket/object");
    let error = stores.open(nowhere, OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = put(&stores, nowhere, &[1; 10]).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NotFound, Some(WriteOutcome::NotApplied)), "{error}");
}

/// TLS, whose other end is the server's own.
fn tls(peer: &dyn Peer) {
    let Some((port, certificate)) = peer.tls() else { return println!("    it speaks no TLS of its own") };
    let of = |ca_file| {
        let mut config = config_of(peer);
        config.settings.set("AWS_ENDPOINT_URL_S3", format!("https://127.0.0.1:{port}"));
        config.http.ca_file = ca_file;
        stores(config)
    };
    let (trusting, bytes) = (of(Some(certificate)), pattern::bytes(10, 0, 9 * MIB));
    put(&trusting, &Server::uri("tls"), &bytes).unwrap();
    let object = trusting.open(&Server::uri("tls"), OpenMode::Read).unwrap();
    assert!(read(&trusting, &object).unwrap() == bytes);
    let error = of(None).open(&Server::uri("tls"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("remote_ca_file"), "{error}");
}

/// What is lost on the way is found done, or told as it is.
fn lost_answers(peer: &dyn Peer) {
    let proxy = Proxy::before(([127, 0, 0, 1], peer.port()).into());
    let mut config = config_of(peer);
    config.settings.set("AWS_ENDPOINT_URL_S3", format!("http://{}", proxy.address()));
    let through = stores(config);
    for (request, len) in [(Request::Complete, 11 * MIB), (Request::Put, MIB)] {
        let bytes = pattern::bytes(11, 0, len);
        proxy.set(Wire::Lose(request, Then::Good));
        put(&through, &Server::uri("lost"), &bytes).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        let object = through.open(&Server::uri("lost"), OpenMode::Read).unwrap();
        assert!(read(&through, &object).unwrap() == bytes, "{request:?}");
        assert!(has_no_uploads(peer, "lost"), "{request:?}");
    }
    let bytes = pattern::bytes(12, 0, 11 * MIB);
    proxy.set(Wire::Lose(Request::Part, Then::Good));
    put(&through, &Server::uri("lost-part"), &bytes).unwrap();
    let object = through.open(&Server::uri("lost-part"), OpenMode::Read).unwrap();
    assert!(read(&through, &object).unwrap() == bytes);
    assert!(has_no_uploads(peer, "lost-part"));
    // Parts that are cut in their answers are sent again. The first cut is in the answer to the begin, whose upload stays at the store.
    for after in [0, 20, 150] {
        let bytes = pattern::bytes(after, 0, 11 * MIB);
        proxy.set(Wire::CutOnce(after));
        put(&through, &Server::uri("cut"), &bytes).unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        let object = through.open(&Server::uri("cut"), OpenMode::Read).unwrap();
        assert!(read(&through, &object).unwrap() == bytes, "cut after {after}");
    }
}

/// Files below a folder that hold bytes of objects.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut left) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if fs::metadata(&path).is_ok_and(|file| file.len() > 100_000) {
                found.insert(path);
            }
        }
    }
    found
}

/// A file of an object is cut short on the server's disk, and a bit of it falls over: no byte is another than it was, and it is told.
fn damage(peer: &dyn Peer) {
    let Some(folder) = peer.data() else { return println!("    its bytes lie in no files") };
    let mut config = config_of(peer);
    config.patience = std::time::Duration::from_secs(4);
    let stores = stores(config);
    for what in ["cut", "bit"] {
        let (name, len) = (Server::uri(&format!("damaged-{what}")), 9 * MIB);
        // Of another start each, so that no part is one that is there already.
        let seed = if what == "cut" { 71 } else { 72 };
        let want = pattern::bytes(seed, 0, len);
        let before = files(&folder);
        put(&stores, &name, &want).unwrap();
        let object = stores.open(&name, OpenMode::Read).unwrap();
        let files: Vec<PathBuf> = files(&folder).difference(&before).cloned().collect();
        let file = files.get(files.len() / 2).expect("it lies in files");
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        if what == "cut" {
            bytes.truncate(middle)
        } else {
            bytes[middle] ^= 1
        }
        fs::write(file, bytes).unwrap();
        let mut refused = 0;
        for at in 0..9 {
            match read_at(&stores, &object, at * MIB as u64) {
                Ok(got) => assert!(got == pattern::bytes(seed, at * MIB as u64, MIB), "{what} {at}"),
                Err(error) => {
                    println!("    {what}, MiB {at}: {error}");
                    refused += 1;
                }
            }
        }
        assert!((1..=8).contains(&refused), "{what}: {refused} of 9 MiB are refused");
        put(&stores, &name, &want).unwrap();
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).is_ok_and(|got| got == want) || peer.traits().name == "garage", "{what}");
    }
}

/// The server dies and comes back: what is read and written meanwhile waits for it, and what was acknowledged stays.
fn killed(peer: &mut dyn Peer) {
    let stores = stores_of(peer);
    let bytes = pattern::bytes(9, 0, 24 * MIB);
    put(&stores, &Server::uri("large"), &bytes).unwrap();
    let object = stores.open(&Server::uri("large"), OpenMode::Read).unwrap();
    let intent = stores.create(&Server::uri("copy"), bytes.len() as u64).unwrap();
    let copy = intent.object().clone();
    write(&stores, &copy, 0, &bytes[..12 * MIB]).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_until(&is_over, &stores, &object, &bytes));
        let writes = scope.spawn(|| write(&stores, &copy, 12 * MIB as u64, &bytes[12 * MIB..]).unwrap());
        for _ in 0..peer.traits().kills {
            peer.restart();
            std::thread::park_timeout(std::time::Duration::from_millis(700));
        }
        is_over.store(true, Ordering::Relaxed);
        println!("    read {} times while it was killed {} times", reads.join().unwrap(), peer.traits().kills);
        writes.join().unwrap();
    });
    intent.commit(Names::Durable).unwrap();
    peer.restart();
    let object = stores.open(&Server::uri("copy"), OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
}
