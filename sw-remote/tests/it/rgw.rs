//! Ceph's gateway (RGW), as real as S3 is outside of Amazon, before a cluster of one monitor and one store in memory.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    ops::ControlFlow,
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use sw_engine::{
    ErrorKind, WriteOutcome,
    seam::{Entry, EntryKind, Hidden, Names, OpenMode, Store},
};
use sw_remote::objects::{ObjectStores, ObjectsConfig};
use sw_testkit::{
    pattern,
    s3::{BUCKET, KEY, Proxy, Request, Server, Then, Wire},
};

use crate::{
    client::{config, put, read, stores, write},
    cluster::{Cluster, Keys, Medium, Running, free_ports, wait_until},
    conformance::{Bed, store_conforms, transport_conforms},
};

const MIB: usize = 1 << 20;
/// The cluster with its gateway.
struct Rgw {
    // Before what it works in.
    gateway: Option<Running>,
    cluster: Cluster,
    port: u16,
    tls_port: u16,
}

/// What makes a certificate for it, which is its own authority.
const CERTIFICATE: [&str; 15] = [
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

impl Rgw {
    fn start() -> Self {
        let ports = free_ports::<2>();
        let more = format!(
            "rgw data = {{at}}\nrgw frontends = beast endpoint=127.0.0.1:{} ssl_endpoint=127.0.0.1:{} ssl_certificate={{at}}/cert.pem \
             ssl_private_key={{at}}/key.pem tcp_nodelay=1\n",
            ports[0], ports[1],
        );
        let cluster = Cluster::start("rgw", Medium::Memory, Keys::None, &more);
        cluster.run("openssl", &CERTIFICATE);
        let mut made = Self { gateway: None, cluster, port: ports[0], tls_port: ports[1] };
        made.gateway();
        let names = ["user", "create", "--uid", "user", "--display-name", "user"];
        made.cluster.run("radosgw-admin", &[&names[..], &["--access-key", KEY.0, "--secret-key", KEY.1]].concat());
        made.make_bucket();
        made
    }

    /// Starts the gateway, and waits until it answers.
    fn gateway(&mut self) {
        self.gateway = Some(self.cluster.spawn("radosgw", &["-n", "client.rgw", "-f"]));
        let port = self.port;
        assert!(
            wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok()),
            "the gateway does not listen: {}",
            fs::read_to_string(self.cluster.folder.path("client.rgw.log")).unwrap_or_default()
        );
    }

    /// What a server answers to a request of a line and some headers.
    fn ask(&self, line: &str, headers: &str) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let host = format!("127.0.0.1:{}", self.port);
        write!(socket, "{line} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A request that is signed (AWS Signature Version 4, of an empty body).
    fn ask_signed(&self, method: &str, path: &str, query: &str) -> String {
        let time = time_of(&self.ask("GET /", ""));
        let (day, host) = (&time[..8], format!("127.0.0.1:{}", self.port));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sum = |text: &str| hex(&Sha256::digest(text.as_bytes()));
        let hmac = |key: &[u8], text: &str| {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
            mac.update(text.as_bytes());
            mac.finalize().into_bytes().to_vec()
        };
        let (body, names) = (sum(""), "host;x-amz-content-sha256;x-amz-date");
        let lines = format!("host:{host}\nx-amz-content-sha256:{body}\nx-amz-date:{time}\n");
        let request = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{body}");
        let scope = format!("{day}/us-east-1/s3/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sum(&request));
        let key = [day, "us-east-1", "s3", "aws4_request"];
        let key = key.iter().fold(format!("AWS4{}", KEY.1).into_bytes(), |key, part| hmac(&key, part));
        let signature = hex(&hmac(&key, &text));
        let credential = format!("Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", KEY.0);
        let headers = format!(
            "x-amz-content-sha256: {body}\r\nx-amz-date: {time}\r\nAuthorization: AWS4-HMAC-SHA256 {credential}\r\n"
        );
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        self.ask(&format!("{method} {path}{query}"), &headers)
    }

    fn make_bucket(&self) {
        let answer = self.ask_signed("PUT", &format!("/{BUCKET}"), "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Whether it has no unfinished uploads.
    fn has_no_uploads(&self) -> bool {
        let answer = self.ask_signed("GET", &format!("/{BUCKET}"), "uploads=");
        assert!(answer.contains("ListMultipartUploadsResult"), "{answer}");
        !answer.contains("<UploadId>")
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ENDPOINT_URL_S3", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", KEY.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEY.1.to_owned()),
        ]
    }

    fn stores(&self) -> ObjectStores {
        stores(self.config())
    }

    fn config(&self) -> ObjectsConfig {
        ObjectsConfig { part_bytes: 5 << 20, ..config(self.environment()) }
    }
}

/// The time that a server tells, as signatures want it.
fn time_of(answer: &str) -> String {
    let date = answer.lines().find_map(|line| line.strip_prefix("Date: ")).unwrap();
    let words: Vec<&str> = date.split([' ', ':']).collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = 1 + months.iter().position(|month| *month == words[2]).unwrap();
    format!("{}{month:02}{}T{}{}{}Z", words[3], words[1], words[4], words[5], words[6])
}

/// All of it in one test: a cluster takes seconds to start.
#[test]
#[ignore = "needs Ceph's programs: cargo xtask interop rgw brings them and runs this"]
fn everything_holds_with_cephs_gateway() {
    let mut rgw = Rgw::start();
    store_conforms(&mut Bed::of("rgw", rgw.stores()));
    transport_conforms(&mut Bed::of("rgw", rgw.stores()));
    bytes_and_names(&rgw);
    uploads(&rgw);
    refusals(&rgw);
    tls(&rgw);
    lost_answers(&rgw);
    killed(&mut rgw);
}

fn bytes_and_names(rgw: &Rgw) {
    let stores = rgw.stores();
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
        let answer = rgw.ask_signed("PUT", &format!("/{BUCKET}/{name}"), "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    put(&stores, &Server::uri("odd/one"), b"1").unwrap();
    let odd: Vec<String> = stores.list(&Server::uri("odd/")).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(odd, [Server::uri("odd/marker"), Server::uri("odd/one")]);
    assert_eq!(stores.list(&Server::uri("odd/marker/")).unwrap(), []);
    // Of the same length, and within a second.
    put(&stores, &object.name, &vec![b'x'; names[1004].len()]).unwrap();
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed);
    stores.remove(&object.name).unwrap();
    assert_eq!(stores.stat(&object.name).unwrap_err().kind(), ErrorKind::NotFound);
}

fn uploads(rgw: &Rgw) {
    let stores = rgw.stores();
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
    assert!(!rgw.has_no_uploads());
    drop(intent);
    assert!(rgw.has_no_uploads());
    assert_eq!(stores.stat(&Server::uri("given-up")).unwrap_err().kind(), ErrorKind::NotFound);
}

fn refusals(rgw: &Rgw) {
    let wrong = |name, value: &str| {
        let mut config = config(rgw.environment());
        config.settings.set(name, value);
        stores(config).open(&Server::uri("upload"), OpenMode::Read).unwrap_err()
    };
    assert_eq!(wrong("AWS_SECRET_ACCESS_KEY", "another").kind(), ErrorKind::PermissionDenied);
    assert_eq!(wrong("AWS_ACCESS_KEY_ID", "nobody").kind(), ErrorKind::PermissionDenied);
    assert_eq!(wrong("AWS_SKIP_SIGNATURE", "true").kind(), ErrorKind::PermissionDenied);
    let (stores, nowhere) = (rgw.stores(), "s3://no-such-bucket/object");
    let error = stores.open(nowhere, OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = put(&stores, nowhere, &[1; 10]).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NotFound, Some(WriteOutcome::NotApplied)), "{error}");
}

/// TLS, whose other end is OpenSSL's here.
fn tls(rgw: &Rgw) {
    let of = |ca_file| {
        let mut config = config(rgw.environment());
        config.settings.set("AWS_ENDPOINT_URL_S3", format!("https://127.0.0.1:{}", rgw.tls_port));
        config.http.ca_file = ca_file;
        stores(config)
    };
    let (trusting, bytes) = (of(Some(rgw.cluster.folder.path("cert.pem"))), pattern::bytes(10, 0, 9 * MIB));
    put(&trusting, &Server::uri("tls"), &bytes).unwrap();
    let object = trusting.open(&Server::uri("tls"), OpenMode::Read).unwrap();
    assert!(read(&trusting, &object).unwrap() == bytes);
    let error = of(None).open(&Server::uri("tls"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("remote_ca_file"), "{error}");
}

/// What is lost on the way is found done, or told as it is.
fn lost_answers(rgw: &Rgw) {
    let proxy = Proxy::before(([127, 0, 0, 1], rgw.port).into());
    let mut config = rgw.config();
    config.settings.set("AWS_ENDPOINT_URL_S3", format!("http://{}", proxy.address()));
    let through = stores(config);
    for (request, len) in [(Request::Complete, 11 * MIB), (Request::Put, MIB)] {
        let bytes = pattern::bytes(11, 0, len);
        proxy.set(Wire::Lose(request, Then::Good));
        put(&through, &Server::uri("lost"), &bytes).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        let object = through.open(&Server::uri("lost"), OpenMode::Read).unwrap();
        assert!(read(&through, &object).unwrap() == bytes, "{request:?}");
        assert!(rgw.has_no_uploads(), "{request:?}");
    }
    let bytes = pattern::bytes(12, 0, 11 * MIB);
    proxy.set(Wire::Lose(Request::Part, Then::Good));
    put(&through, &Server::uri("lost-part"), &bytes).unwrap();
    let object = through.open(&Server::uri("lost-part"), OpenMode::Read).unwrap();
    assert!(read(&through, &object).unwrap() == bytes);
    assert!(rgw.has_no_uploads());
    // Parts that are cut in their answers are sent again. The first cut is in the answer to the begin, whose upload stays at the store.
    for after in [0, 20, 150] {
        let bytes = pattern::bytes(after, 0, 11 * MIB);
        proxy.set(Wire::CutOnce(after));
        put(&through, &Server::uri("cut"), &bytes).unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        let object = through.open(&Server::uri("cut"), OpenMode::Read).unwrap();
        assert!(read(&through, &object).unwrap() == bytes, "cut after {after}");
    }
}

/// The gateway dies and comes back: what is read and written meanwhile waits for it.
fn killed(rgw: &mut Rgw) {
    let stores = rgw.stores();
    let bytes = pattern::bytes(9, 0, 24 * MIB);
    put(&stores, &Server::uri("large"), &bytes).unwrap();
    let object = stores.open(&Server::uri("large"), OpenMode::Read).unwrap();
    let intent = stores.create(&Server::uri("copy"), bytes.len() as u64).unwrap();
    let copy = intent.object().clone();
    write(&stores, &copy, 0, &bytes[..12 * MIB]).unwrap();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| read(&stores, &object).unwrap());
        let writes = scope.spawn(|| write(&stores, &copy, 12 * MIB as u64, &bytes[12 * MIB..]).unwrap());
        rgw.gateway = None;
        rgw.gateway();
        assert!(reads.join().unwrap() == bytes);
        writes.join().unwrap();
    });
    intent.commit(Names::Durable).unwrap();
    let object = stores.open(&Server::uri("copy"), OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
}
