//! The initiator and the target against each other, connections and associations, with TLS and without.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    time::Duration,
};

use sw_nvme::{auth::RANDOM_BYTES, fabrics::NQN_BYTES_MAX, psk::Transform, tcp::pdu::Digests};

use super::*;
use crate::{
    Address, Controller, ControllerConfig, DiscoverConfig, HostIdentity, discover,
    target::{Backing, Target, TargetConfig, Tls},
};

fn nqn(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

fn psk(byte: u8, suite: Suite) -> ConfiguredPsk {
    ConfiguredPsk::from_random(&[byte; RANDOM_BYTES], suite, Transform::ByHash)
}

/// Whether OpenSSL 3 is there; if not, it is told.
fn is_there() -> bool {
    let made = HostTls::new(psk(1, Suite::Aes128GcmSha256), Form::default(), KernelTls::Never);
    made.inspect_err(|error| eprintln!("skipped: {error}")).is_ok()
}

/// A target that demands TLS with the key of this byte.
fn target(byte: u8, suite: Suite, derivation: Derivation) -> Target {
    let tls = Some(Tls { psk: psk(byte, suite).into(), derivation, kernel: KernelTls::IfThere });
    let namespaces = vec![Backing::Memory(1 << 20)];
    Target::start(TargetConfig { tls, namespaces, ..TargetConfig::default() }).unwrap()
}

fn host(tls: Option<(ConfiguredPsk, Form)>) -> HostIdentity {
    let tls = tls.map(|(psk, form)| Arc::new(HostTls::new(psk, form, KernelTls::IfThere).unwrap()));
    HostIdentity { nqn: nqn("nqn.2026-11.io.straightway:host"), id: [7; 16], keys: None, tls }
}

fn form(name: &str) -> Form {
    Form::of_name(name).unwrap()
}

fn address(at: std::net::SocketAddr) -> Address {
    Address { host: at.ip().to_string(), port: at.port(), subsystem: TargetConfig::default().subsystem }
}

fn quick() -> ControllerConfig {
    ControllerConfig { timeout: Duration::from_secs(5), ..ControllerConfig::default() }
}

/// The association and one I/O queue.
fn both_queues(at: std::net::SocketAddr, host: HostIdentity, config: ControllerConfig) -> Result<Protection, Error> {
    let controller = Controller::open(address(at), host, config)?;
    let protection = controller.facts().protection;
    let done = controller.connect_queue();
    if let Ok(queue) = &done {
        assert_eq!(queue.connection.protection(), protection);
    }
    let done = done.map(drop);
    controller.shut_down();
    done.map(|()| protection)
}

/// Waits for what the threads of a target count.
#[expect(clippy::disallowed_methods, reason = "a test that waits for another thread")]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn both_suites_and_all_identities_open_both_kinds_of_queues() {
    if !is_there() {
        return;
    }
    for suite in Suite::ALL {
        for (name, form) in Form::NAMED {
            let target = target(1, suite, form.derivation);
            for digests in [Digests::default(), Digests { header: true, data: true }] {
                let config = ControllerConfig { digests, ..quick() };
                let protection = both_queues(target.address(), host(Some((psk(1, suite), form))), config).unwrap();
                assert_ne!(protection, Protection::None, "{name}");
            }
            let counters = target.counters();
            assert_eq!((counters.tls_failed, counters.terminations, counters.panics), (0, 0, 0));
        }
    }
}

#[test]
fn a_wrong_key_and_an_unknown_name_are_told_as_such_and_not_tried_again() {
    if !is_there() {
        return;
    }
    let small = Suite::Aes128GcmSha256;
    let target = target(1, small, Derivation::Standard);
    let cases = [
        // A name of version 0 has nothing of the key: the key is found out to be wrong.
        (psk(2, small), "v0", "illegal_parameter"),
        (psk(1, small), "v0-compat", "illegal_parameter"),
        (psk(2, small), "v1", "handshake_failure"),
        (psk(1, small), "v1-compat", "handshake_failure"),
        (psk(1, Suite::Aes256GcmSha384), "v1", "handshake_failure"),
    ];
    for (number, (psk, name, word)) in cases.into_iter().enumerate() {
        let error = both_queues(target.address(), host(Some((psk, form(name)))), quick()).unwrap_err();
        let text = error.to_string();
        assert!(is_refusal(&error) && text.contains(word) && text.contains("nvme_tcp_tls_key_file"), "{name}: {text}");
        until("the count", || target.counters().tls_failed == number as u64 + 1);
    }
    both_queues(target.address(), host(Some((psk(1, small), Form::default()))), quick()).unwrap();
}

#[test]
fn a_host_in_the_clear_is_told_that_tls_is_demanded() {
    if !is_there() {
        return;
    }
    let target = target(1, Suite::Aes128GcmSha256, Derivation::Standard);
    let error = both_queues(target.address(), host(None), quick()).unwrap_err();
    assert!(is_refusal(&error) && error.to_string().contains("nvme_tcp_tls=required"), "{error}");
    until("the count", || target.counters().tls_failed == 1);
    assert_eq!(target.counters().commands, 0);
}

#[test]
fn nothing_goes_in_the_clear_to_a_target_without_tls() {
    if !is_there() {
        return;
    }
    let target = Target::start(TargetConfig::default()).unwrap();
    let with = || host(Some((psk(1, Suite::Aes128GcmSha256), Form::default())));
    let error = both_queues(target.address(), with(), quick()).unwrap_err();
    assert!(is_refusal(&error) && error.to_string().contains("no tls"), "{error}");
    assert_eq!(target.counters().commands, 0);
    // One that closes, and one that says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let closes = std::thread::Builder::new().spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        drop(stream);
        listener
    });
    let error = both_queues(at, with(), quick()).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("its log"), "{error}");
    let listener = closes.unwrap().join().unwrap();
    let closes = std::thread::Builder::new().spawn(move || {
        drop(listener.accept().unwrap());
        listener
    });
    let error = both_queues(at, host(None), quick()).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("demand tls"), "{error}");
    let _listener = closes.unwrap().join().unwrap();
    let limit = ControllerConfig { timeout: Duration::from_millis(300), ..quick() };
    let error = both_queues(at, with(), limit).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
}

#[test]
fn a_host_that_stops_in_the_handshake_is_left_by_the_target() {
    if !is_there() {
        return;
    }
    let tls = Some(Tls {
        psk: psk(1, Suite::Aes128GcmSha256).into(),
        derivation: Derivation::Standard,
        kernel: KernelTls::Never,
    });
    let limit = Duration::from_millis(300);
    let target = Target::start(TargetConfig { tls, connect_timeout: limit, ..TargetConfig::default() }).unwrap();
    // Nothing; the beginning of a record; no TLS.
    for begin in [&b""[..], &[22, 3, 1, 2], &[22], &[0; 128], &[22, 3, 3, 0, 4, 1, 2, 3, 4]] {
        let mut stream = std::net::TcpStream::connect(target.address()).unwrap();
        stream.write_all(begin).unwrap();
        let mut answer = Vec::new();
        // Until the target closes.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() <= 7, "{answer:?}");
    }
    until("the end of all", || target.counters().connections_open == 0 && target.counters().tls_failed == 5);
    assert_eq!(target.counters().panics, 0);
}

#[test]
fn names_in_connect_are_those_of_the_key() {
    if !is_there() {
        return;
    }
    let (suite, subsystem) = (Suite::Aes128GcmSha256, TargetConfig::default().subsystem);
    let target = target(1, suite, Derivation::Standard);
    let host = host(Some((psk(1, suite), Form::default())));
    let tls = host.tls.as_deref().unwrap();
    let other = nqn("nqn.other");
    // TLS in the name of another host, and with the name of the discovery service: Connect tells the own ones.
    let discovery = Nqn::discovery();
    for (named_host, named_subsystem) in [(&other, &subsystem), (&host.nqn, &discovery)] {
        let peers = Peers { tls, host: named_host, subsystem: named_subsystem, before: None };
        let error = connect_as(target.address(), peers, &host, &subsystem).unwrap_err();
        assert!(error.to_string().contains("does not let this host in"), "{error}");
    }
    let peers = Peers { tls, host: &host.nqn, subsystem: &subsystem, before: None };
    connect_as(target.address(), peers, &host, &subsystem).unwrap();
}

fn connect_as(at: std::net::SocketAddr, peers: Peers<'_>, host: &HostIdentity, subsystem: &Nqn) -> Result<u16, Error> {
    use crate::{
        admin::{Admin, after},
        associate::connect,
        carrier::{Carrier, QueueOf, Way},
        connection::ConnectionConfig,
    };
    use sw_nvme::fabrics::{ConnectData, QueueRequest};
    let limits = ConnectionConfig { digests: Digests::default(), depth: 31, capsule_data_bytes: 8192 };
    let limit = Duration::from_secs(10);
    let place = ("127.0.0.1", at.port());
    let connection = Carrier::open((&Way::Tcp, Some(peers)), place, (QueueOf::ADMIN, limits), after(limit))?;
    let mut admin = Admin::new("a target".into(), connection, limit)?;
    let request = QueueRequest { qid: 0, entries: 32, keep_alive_ms: 0 };
    let data =
        ConnectData { host_id: host.id, controller: 0xFFFF, subsystem: subsystem.clone(), host: host.nqn.clone() };
    connect(&mut admin, (request, &data), None, limit)
}

/// A host that has the key and then sends a record byte by byte: a pause of its own for each would keep the target's thread for ever.
#[test]
#[expect(clippy::disallowed_methods, reason = "a host that is slow on purpose")]
fn a_host_that_sends_a_record_byte_by_byte_is_not_waited_for_past_its_time() {
    if !is_there() {
        return;
    }
    let suite = Suite::Aes128GcmSha256;
    let tls = Some(Tls { psk: psk(1, suite).into(), derivation: Derivation::Standard, kernel: KernelTls::Never });
    let config = TargetConfig { tls, connect_timeout: Duration::from_secs(1), ..TargetConfig::default() };
    let target = Target::start(config).unwrap();
    let host = host(None);
    let tls = HostTls::new(psk(1, suite), Form::default(), KernelTls::Never).unwrap();
    let peers = Peers { tls: &tls, host: &host.nqn, subsystem: &TargetConfig::default().subsystem, before: None };
    let mut stream = TcpStream::connect(target.address()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let fd = stream.as_raw_fd();
    let wait = |what, until| wait_for(fd, what, until).map(|waited| waited == Waited::Ready);
    let channel = connect(&stream, peers, ("a target", crate::admin::after(Duration::from_secs(5))), wait).unwrap();
    stream.set_nonblocking(false).unwrap();
    // Data of 4,096 bytes (RFC 8446 §5.1), of which one comes every 100 ms: it would be there in seven minutes.
    stream.write_all(&[23, 3, 3, 16, 0]).unwrap();
    let begin = Instant::now();
    while stream.write_all(&[0]).is_ok() && target.counters().connections_open > 0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "the target still waits");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(begin.elapsed() > Duration::from_millis(500), "it waits for its time");
    drop(channel);
}

/// A process that ends with its handle.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// TLS here knows no certificates, so that none is trusted, expired or not: OpenSSL's own server, which has one and no key, is refused.
#[test]
fn a_certificate_is_no_key() {
    if !is_there() {
        return;
    }
    let file = |name: &str| std::env::temp_dir().join(format!("straightway-{name}-{}", std::process::id()));
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let openssl = |args: &str| {
        let words = args.split(' ').map(|word| match word {
            "KEY" => key.as_os_str(),
            "CERTIFICATE" => certificate.as_os_str(),
            word => word.as_ref(),
        });
        let mut command = std::process::Command::new("openssl");
        command.args(words).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        command
    };
    let mut made = openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=a.target -days 1 -keyout KEY -out CERTIFICATE",
    );
    if !made.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no program openssl");
        return;
    }
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = at.port();
    let server =
        openssl(&format!("s_server -accept 127.0.0.1:{port} -cert CERTIFICATE -key KEY -tls1_3 -quiet")).spawn();
    let _server = Process(server.unwrap());
    until("openssl's server", || TcpStream::connect(at).is_ok());
    for suite in Suite::ALL {
        let error = both_queues(at, host(Some((psk(1, suite), Form::default()))), quick()).unwrap_err();
        assert!(is_refusal(&error) && error.to_string().contains("without the key"), "{error}");
    }
    for path in [key, certificate] {
        std::fs::remove_file(path).unwrap();
    }
}

/// Two hosts with a key each: one at its own, the other with the first one's, and a third that nobody knows; a key for another subsystem.
#[test]
fn each_host_has_a_key_of_its_own_and_nobody_else_has_one() {
    if !is_there() {
        return;
    }
    let suite = Suite::Aes128GcmSha256;
    let names = ["nqn.2026-11.io.straightway:host", "nqn.2026-11.io.straightway:other"].map(nqn);
    let [first, second] = names.clone();
    let known = Keys::named(vec![(first.clone(), psk(1, suite)), (second.clone(), psk(2, suite))]);
    let tls = Some(Tls { psk: known, derivation: Derivation::Standard, kernel: KernelTls::IfThere });
    let target = Target::start(TargetConfig { tls, ..TargetConfig::default() }).unwrap();
    let open = |name: &Nqn, keys: Keys<ConfiguredPsk>| {
        let tls = HostTls::new(keys, Form::default(), KernelTls::IfThere).unwrap();
        let host = HostIdentity { nqn: name.clone(), tls: Some(Arc::new(tls)), ..host(None) };
        both_queues(target.address(), host, quick())
    };
    open(&first, psk(1, suite).into()).unwrap();
    open(&second, psk(2, suite).into()).unwrap();
    let ours = TargetConfig::default().subsystem;
    open(&second, Keys::named(vec![(nqn("nqn.another"), psk(1, suite)), (ours, psk(2, suite))])).unwrap();
    for (name, byte) in [(&second, 1), (&first, 2), (&nqn("nqn.nobody"), 1)] {
        let error = open(name, psk(byte, suite).into()).unwrap_err();
        assert!(is_refusal(&error), "{name}: {error}");
    }
    let error = open(&first, Keys::named(vec![(nqn("nqn.another"), psk(1, suite))])).unwrap_err();
    assert!(is_refusal(&error) && error.to_string().contains("nothing is sent in the clear"), "{error}");
    let mixed = Keys::named(vec![(first, psk(1, suite)), (second, psk(2, Suite::Aes256GcmSha384))]);
    let tls = Some(Tls { psk: mixed, derivation: Derivation::Standard, kernel: KernelTls::IfThere });
    let error = Target::start(TargetConfig { tls, ..TargetConfig::default() }).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiMisuse);
}

#[test]
fn discovery_goes_over_tls_too_and_says_that_it_is_demanded() {
    if !is_there() {
        return;
    }
    let target = target(1, Suite::Aes256GcmSha384, Derivation::Standard);
    let with = host(Some((psk(1, Suite::Aes256GcmSha384), Form::default())));
    let told =
        discover(&|_| Ok(crate::Way::Tcp), ("127.0.0.1", target.address().port()), &with, DiscoverConfig::default())
            .unwrap();
    let entry = &told.entries[0];
    assert_eq!((entry.secure_channel.name(), entry.security), ("required", 2));
    let error = discover(
        &|_| Ok(crate::Way::Tcp),
        ("127.0.0.1", target.address().port()),
        &host(None),
        DiscoverConfig::default(),
    )
    .unwrap_err();
    assert!(is_refusal(&error), "{error}");
}

#[test]
fn names_of_any_length_have_an_identity_of_version_1() {
    if !is_there() {
        return;
    }
    let long = |first: &str| nqn(&format!("nqn.{first}{}", "x".repeat(NQN_BYTES_MAX - 5)));
    let subsystem = long("s");
    let tls = Some(Tls {
        psk: psk(1, Suite::Aes256GcmSha384).into(),
        derivation: Derivation::Standard,
        kernel: KernelTls::IfThere,
    });
    let config = TargetConfig { tls, subsystem: subsystem.clone(), ..TargetConfig::default() };
    let target = Target::start(config).unwrap();
    let of = |name| {
        let host = HostIdentity { nqn: long("h"), ..host(Some((psk(1, Suite::Aes256GcmSha384), form(name)))) };
        let at = Address { subsystem: subsystem.clone(), ..address(target.address()) };
        Controller::open(at, host, quick()).map(|controller| controller.shut_down())
    };
    of("v1").unwrap();
    let error = of("v0").unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("nvme_tcp_tls_identity=v1"),
        "{error}"
    );
}

/// A target that is gone and comes back, with the same key, another, and none.
#[test]
fn an_association_that_is_made_again_has_tls_again_or_ends() {
    if !is_there() {
        return;
    }
    let suite = Suite::Aes128GcmSha256;
    for now in [Some(1), Some(9), None] {
        let first = target(1, suite, Derivation::Standard);
        let listen = first.address();
        let controller =
            Controller::open(address(listen), host(Some((psk(1, suite), Form::default()))), quick()).unwrap();
        let attended = Arc::clone(&controller);
        let attendant = std::thread::Builder::new().spawn(move || attended.attend()).unwrap();
        first.stop();
        let tls = now.map(|byte| Tls {
            psk: psk(byte, suite).into(),
            derivation: Derivation::Standard,
            kernel: KernelTls::IfThere,
        });
        let second = Target::start(TargetConfig { listen, tls, ..TargetConfig::default() }).unwrap();
        controller.suspect();
        if now == Some(1) {
            until("the next association", || {
                controller.is_up(&controller.facts()) && controller.facts().association == 2
            });
            assert_ne!(controller.facts().protection, Protection::None);
        } else {
            // Far below the patience of 60 s.
            until("the end of the association", || controller.is_gone());
            assert!(controller.lost().to_string().contains("tls"), "{}", controller.lost());
            assert_eq!(second.counters().commands, 0);
        }
        controller.shut_down();
        attendant.join().unwrap();
    }
}

#[test]
fn a_hundred_connections_leave_nothing_behind() {
    if !is_there() {
        return;
    }
    let (suite, descriptors) = (Suite::Aes128GcmSha256, || std::fs::read_dir("/proc/self/fd").unwrap().count());
    let target = target(1, suite, Derivation::Standard);
    let host = host(Some((psk(1, suite), Form::default())));
    let rounds = |count| {
        for _ in 0..count {
            let controller = Controller::open(address(target.address()), host.clone(), quick()).unwrap();
            controller.shut_down();
        }
        until("the end of all", || target.counters().connections_open == 0);
    };
    // What is made once is there then.
    rounds(20);
    let before = (descriptors(), resident_bytes());
    rounds(100);
    // Other tests have descriptors and memory of their own at the same time: what is looked for is one for each connection.
    let after = (descriptors(), resident_bytes());
    assert!(after.0 < before.0 + 80, "{before:?} {after:?}");
    // A session has tens of KiB.
    assert!(after.1 < before.1 + (64 << 20), "{before:?} {after:?}");
    assert_eq!((target.counters().tls_failed, target.counters().panics), (0, 0));
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn the_kernel_is_not_asked_where_it_may_not_and_must_where_it_shall() {
    if !is_there() {
        return;
    }
    let suite = Suite::Aes128GcmSha256;
    let target = target(1, suite, Derivation::Standard);
    let with = |kernel| {
        let tls = HostTls::new(psk(1, suite), Form::default(), kernel).unwrap();
        HostIdentity { tls: Some(Arc::new(tls)), ..host(None) }
    };
    assert_eq!(both_queues(target.address(), with(KernelTls::Never), quick()).unwrap(), Protection::TlsLibrary);
    match both_queues(target.address(), with(KernelTls::Demanded), quick()) {
        Ok(protection) => assert_eq!(protection, Protection::TlsKernel),
        Err(error) => {
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("CONFIG_TLS"), "{error}")
        }
    }
}

#[test]
fn codes_of_refusals_are_told_apart_from_those_of_statuses() {
    let denied = refusal(Failure::Tls(Fault::Alert(51)), "here:4420", "NVMe0R01 a b");
    assert!(is_refusal(&denied) && denied.to_string().contains("decrypt_error (51)"), "{denied}");
    let status = Error::new(ErrorKind::PermissionDenied, Verb::Open).with_code(0x191);
    assert!(!is_refusal(&status) && !is_refusal(&refusal(Failure::Silent, "here:4420", "")));
}

#[test]
fn keys_are_in_no_text() {
    if !is_there() {
        return;
    }
    let host = host(Some((psk(0x41, Suite::Aes128GcmSha256), Form::default())));
    let told = format!("{host:?}");
    assert!(told.contains("32 bytes") && !told.contains("65") && !told.contains("AAAA"), "{told}");
}
