//! Namespaces behind TCP through the public interface, against the small target of this project.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(clippy::disallowed_methods, reason = "a target that goes or comes back does so some time later")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use straightway::{
    Buffer, ByteLen, Destination, Engine, Error, ErrorKind, Landing, Memory, NvmeTcp, NvmeTcpDigests, NvmeTcpKeys,
    Object, Reason, Uri, Verb, WriteOutcome,
    authentication::{Group, Hash, Offer, make_secret, read_secrets},
    parse_policy,
    target::{self, Access, Authentication, Backing, Nqn, PortAccess, PortState, Target, TargetConfig, Tells},
    tls,
};

const BYTES: u64 = 32 << 20;
const SERIAL: &str = "SWTARGET0001";

/// A target with a name of its own: what one test is in doubt of must not keep the writes of another one back.
fn own() -> TargetConfig {
    static TARGETS: AtomicU32 = AtomicU32::new(0);
    let number = TARGETS.fetch_add(1, Ordering::Relaxed);
    let subsystem = Nqn::new(&format!("nqn.2026-11.io.straightway:target-{number}")).unwrap();
    TargetConfig { subsystem, ..TargetConfig::default() }
}

fn target() -> (Target, String) {
    let config = TargetConfig { namespaces: vec![Backing::Memory(BYTES)], ..own() };
    let subsystem = config.subsystem.to_string();
    let target = Target::start(config).unwrap();
    let uri = format!("nvme+tcp://{}/{subsystem}?nsid=1", target.address());
    (target, uri)
}

/// Whether this machine has something that subsystems could know it by: without it nothing here can run.
fn known() -> bool {
    let there = ["/etc/nvme/hostid", "/etc/machine-id"].iter().any(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().len() >= 32
    });
    if !there {
        println!("skip fabrics: the machine has no hostid and no machine-id (the guests of the bed have one)");
    }
    there
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap()).collect()
}

fn memory(bytes: &[u8]) -> Memory {
    let mut buffer = Buffer::allocate(ByteLen(bytes.len() as u64)).unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    Memory::from(buffer)
}

fn read(engine: &Engine, object: &Object, at: u64, len: usize) -> Result<Vec<u8>, Error> {
    let memory = engine.allocate(Destination::Host, len as u64, 0)?;
    let memory = engine.read(object, at, memory).wait().ok()?.into_memory().unwrap();
    let mut got = vec![0; len];
    memory.read(0, &mut got)?;
    Ok(got)
}

fn opened(engine: &Engine, uri: &str) -> Object {
    let uri: Uri = format!("{uri}&serial={SERIAL}").parse().unwrap();
    engine.open_for_update(&uri).unwrap()
}

#[test]
fn bytes_go_there_and_back_and_the_way_is_told() {
    if !known() {
        return;
    }
    let (target, uri) = target();
    let engine = Engine::builder().build().unwrap();
    let object = opened(&engine, &uri);
    assert_eq!(object.len(), BYTES);
    let content = bytes(9 << 20);
    let done = engine.write(&object, 1 << 20, memory(&content)).wait();
    let path = done.path;
    assert_eq!(done.ok().unwrap().result.unwrap(), content.len() as u64);
    assert_eq!((path.route.transport, path.route.landing, path.bounced), ("nvme+tcp", Landing::KernelCopy, 0));
    assert_eq!(path.cpu_copied, content.len() as u64);
    engine.flush(&object).wait().ok().unwrap();
    for (at, len) in [(0, content.len()), (4096, 8192), (5, 1), (4095, 2), (777_777, 3_000_001)] {
        assert_eq!(read(&engine, &object, (1 << 20) + at as u64, len).unwrap(), content[at..at + len], "{at}+{len}");
    }
    assert_eq!(read(&engine, &object, 0, 4096).unwrap(), [0; 4096]);
    let counters = target.counters();
    assert_eq!((counters.terminations, counters.written_bytes), (0, content.len() as u64));
    // Blocks are written whole.
    let ragged = engine.write(&object, 1, memory(&[1; 4096])).wait().ok().unwrap_err();
    assert_eq!(ragged.kind(), ErrorKind::Unsupported, "{ragged}");
}

#[test]
fn what_an_address_says_is_held_against_what_is_there() {
    if !known() {
        return;
    }
    let (_target, uri) = target();
    let engine = Engine::builder().build().unwrap();
    let open =
        |uri: &str| engine.open(&uri.parse().unwrap()).map(drop).map_err(|error| (error.kind(), error.to_string()));
    assert_eq!(open(&uri), Ok(()));
    let (kind, text) = open(&format!("{uri}&serial=OTHER")).unwrap_err();
    assert!(kind == ErrorKind::Changed && text.contains(SERIAL), "{text}");
    let (kind, text) = open(&uri.replace("nsid=1", "nsid=7")).unwrap_err();
    assert!(kind == ErrorKind::NotFound && text.contains("its namespaces are: 1"), "{text}");
    let (kind, text) = open(&uri.replace(":target", ":other")).unwrap_err();
    assert!(kind == ErrorKind::NoDevice && text.contains("no such subsystem"), "{text}");
    let refused = engine.open_for_update(&uri.parse().unwrap()).unwrap_err();
    assert!(refused.kind() == ErrorKind::ApiMisuse && refused.to_string().contains(SERIAL), "{refused}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (kind, text) = open(&format!("nvme+tcp://{nobody}/nqn.2026-11.io.example:x?nsid=1")).unwrap_err();
    assert!(kind == ErrorKind::NoDevice && text.contains("nobody listens"), "{text}");
}

#[test]
fn somebody_who_speaks_another_protocol_is_no_target() {
    if !known() {
        return;
    }
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let web = std::thread::Builder::new().spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut one, _) = server.accept().unwrap();
        let mut asked = [0; 128];
        one.read_exact(&mut asked).unwrap();
        one.write_all(&[b"HTTP/1.1 400 Bad Request\r\n\r\n", &[b'x'; 200][..]].concat()).unwrap();
    });
    let engine = Engine::builder().build().unwrap();
    let uri: Uri = format!("nvme+tcp://{at}/nqn.2026-11.io.example:x?nsid=1").parse().unwrap();
    let error = engine.open(&uri).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    web.unwrap().join().unwrap();
}

#[test]
fn many_threads_share_a_namespace() {
    if !known() {
        return;
    }
    let (_target, uri) = target();
    let engine = Arc::new(Engine::builder().build().unwrap());
    let object = Arc::new(opened(&engine, &uri));
    let content = bytes(4 << 20);
    engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (engine, object, content) = (&engine, &object, &content);
            std::thread::Builder::new()
                .spawn_scoped(scope, move || {
                    for n in 0..20usize {
                        let at = (thread * 131 + n * 17) % 900 * 4096;
                        let got = read(engine, object, at as u64, 16384).unwrap();
                        assert_eq!(got, content[at..at + 16384]);
                    }
                })
                .unwrap();
        }
    });
    let requests = (0..64u64).map(|n| {
        let memory = engine.allocate(Destination::Host, 8192, 0).unwrap();
        engine.read(&object, n * 8192, memory)
    });
    for (n, done) in engine.batch(requests.collect()).wait().into_iter().enumerate() {
        let mut got = vec![0; 8192];
        done.ok().unwrap().into_memory().unwrap().read(0, &mut got).unwrap();
        assert_eq!(got, content[n * 8192..(n + 1) * 8192]);
    }
}

#[test]
fn a_target_that_goes_ends_what_waits_for_it() {
    if !known() {
        return;
    }
    let (target, uri) = target();
    let tcp = NvmeTcp { patience: Duration::from_secs(2), ..NvmeTcp::default() };
    let engine = Engine::builder().nvme_tcp(tcp).build().unwrap();
    let object = opened(&engine, &uri);
    engine.write(&object, 0, memory(&[9; 4096])).wait().ok().unwrap();
    target.stop();
    // While it is tried again, an operation ends at its deadline.
    let limit = Duration::from_millis(300);
    let late = engine.read(&object, 0, memory(&[0; 4096])).deadline(limit).wait().ok().unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    assert!(late.to_string().contains("the network"), "{late}");
    assert_eq!(object.check_unchanged().unwrap_err().kind(), ErrorKind::NoDevice);
    let error = read(&engine, &object, 0, 4096).unwrap_err();
    // Its own patience is over, or that of the association: whichever is looked at first.
    let told = ["open it again", "nobody listens"].iter().any(|text| error.to_string().contains(text));
    assert!(error.kind() == ErrorKind::NoDevice && told, "{error}");
    let error = engine.write(&object, 0, memory(&[8; 4096])).wait().ok().unwrap_err();
    // There was no connection that it could have gone by.
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoDevice, Some(WriteOutcome::NotApplied)), "{error}");
    let error = engine.open(&uri.parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

#[test]
fn a_target_that_comes_back_is_gone_on_with() {
    if !known() {
        return;
    }
    let path = std::env::temp_dir().join(format!("straightway-fabrics-{}", std::process::id()));
    std::fs::write(&path, bytes(4 << 20)).unwrap();
    let namespaces = vec![Backing::File(path.clone(), Access::ReadWrite)];
    let config = TargetConfig { namespaces, ..own() };
    let target = Target::start(config.clone()).unwrap();
    let (at, subsystem) = (target.address(), config.subsystem.to_string());
    let tcp = NvmeTcp { digests: NvmeTcpDigests::Both, ..NvmeTcp::default() };
    let engine = Engine::builder().nvme_tcp(tcp).build().unwrap();
    let object = opened(&engine, &format!("nvme+tcp://{at}/{subsystem}?nsid=1"));
    assert_eq!(read(&engine, &object, 4096, 8192).unwrap(), bytes(12288)[4096..]);
    target.stop();
    let again = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        Target::start(TargetConfig { listen: at, ..config }).unwrap()
    });
    // The same object: a read waits for it, a write too.
    assert_eq!(read(&engine, &object, 4096, 8192).unwrap(), bytes(12288)[4096..]);
    engine.write(&object, 0, memory(&[7; 4096])).wait().ok().unwrap();
    object.check_unchanged().unwrap();
    again.unwrap().join().unwrap().stop();
    assert_eq!(std::fs::read(&path).unwrap()[..4097], [&[7; 4096][..], &bytes(4097)[4096..]].concat());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn settings_out_of_range_are_refused() {
    for (name, value) in [
        ("nvme_tcp_keep_alive_ms", "99"),
        ("nvme_tcp_keep_alive_ms", "3600001"),
        ("nvme_tcp_timeout_ms", "9"),
        ("nvme_tcp_timeout_ms", "x"),
        ("nvme_rdma_registrations", "auto"),
        ("nvme_tcp_digests", "yes"),
        ("nvme_tcp_dhchap_hashes", "sha1"),
        ("nvme_tcp_dhchap_groups", ""),
        ("nvme_tcp_dhchap_key", "DHHC-1:00:AAAA:"),
        ("nvme_tcp_tls", "required"),
        ("nvme_tcp_tls", "on"),
        ("nvme_tcp_tls_identity", "v2"),
        ("nvme_tcp_tls_key", "NVMeTLSkey-1:00:AAAA:"),
    ] {
        let made = Engine::builder().set(name, value).and_then(|builder| builder.build());
        assert_eq!(made.err().map(|error| error.kind()), Some(ErrorKind::ApiMisuse), "{name}={value}");
    }
    let good = [
        "nvme_tcp_digests=header",
        "nvme_tcp_patience_ms=0",
        "nvme_tcp_keep_alive_ms=100",
        "nvme_tcp_timeout_ms=10",
        "nvme_rdma_registrations=per-command",
        "nvme_rdma_registrations=kept",
    ];
    let builder = good.iter().try_fold(Engine::builder(), |builder, setting| {
        let (name, value) = setting.split_once('=').unwrap();
        builder.set(name, value)
    });
    builder.unwrap().build().unwrap();
}

#[test]
fn keys_come_from_files_and_open_what_demands_them() {
    if !known() {
        return;
    }
    let file = |name: &str| std::env::temp_dir().join(format!("straightway-{name}-{}", std::process::id()));
    let (own, theirs) = (file("host.key"), file("target.key"));
    for path in [&own, &theirs] {
        let secret = make_secret(Hash::Sha256, Some(Hash::Sha256)).unwrap();
        std::fs::write(path, format!("{}\n", *secret.to_text())).unwrap();
    }
    let offer = Offer { hashes: vec![Hash::Sha384], groups: vec![Group::Ffdhe2048] };
    let (secret, controller_secret) = (read_secrets(&own).unwrap(), Some(read_secrets(&theirs).unwrap()));
    let authentication = Some(Authentication { secret, controller_secret, offer });
    let target = Target::start(TargetConfig { authentication, ..TargetConfig::default() }).unwrap();
    let uri: Uri =
        format!("nvme+tcp://{}/{}?nsid=1", target.address(), TargetConfig::default().subsystem).parse().unwrap();
    let with = |settings: &[(&str, &str)]| {
        let builder = settings.iter().try_fold(Engine::builder(), |builder, (name, value)| builder.set(name, value));
        let engine = builder?.build()?;
        let object = engine.open(&uri)?;
        read(&engine, &object, 0, 4096)
    };
    let [own_text, their_text] = [&own, &theirs].map(|path| path.display().to_string());
    let (key, ctrl) = ("nvme_tcp_dhchap_key_file", "nvme_tcp_dhchap_ctrl_key_file");
    assert_eq!(with(&[(key, &own_text)]).unwrap(), [0; 4096]);
    assert_eq!(
        with(&[(key, &own_text), (ctrl, &their_text), ("nvme_tcp_dhchap_groups", "ffdhe2048")]).unwrap(),
        [0; 4096]
    );
    let refused = |settings: &[(&str, &str)], kind, words: &str| {
        let error = with(settings).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error:?}");
    };
    refused(&[], ErrorKind::PermissionDenied, "set nvme_tcp_dhchap_key_file");
    refused(&[(key, &their_text)], ErrorKind::PermissionDenied, "compare the file of nvme_tcp_dhchap_key_file");
    refused(
        &[(key, &own_text), (ctrl, &own_text)],
        ErrorKind::PermissionDenied,
        "compare nvme_tcp_dhchap_ctrl_key_file",
    );
    refused(
        &[(key, &own_text), ("nvme_tcp_dhchap_groups", "null")],
        ErrorKind::PermissionDenied,
        "nvme_tcp_dhchap_groups",
    );
    refused(&[(ctrl, &their_text)], ErrorKind::ApiMisuse, "goes with nvme_tcp_dhchap_key_file");
    refused(&[(key, "/nowhere/at/all")], ErrorKind::NotFound, "/nowhere/at/all");
    refused(&[(key, "/proc/self/status")], ErrorKind::BadFormat, "gen-dhchap-key");
    for path in [own, theirs] {
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn bytes_over_tls_are_told_as_what_they_are() {
    if !known() {
        return;
    }
    let psk = tls::make_psk(tls::Suite::Aes128GcmSha256).unwrap();
    let demanded =
        |kernel| Some(target::Tls { psk: psk.clone().into(), derivation: tls::Derivation::Standard, kernel });
    let config = TargetConfig { tls: demanded(tls::KernelTls::Never), ..TargetConfig::default() };
    let target = match Target::start(config) {
        Ok(target) => target,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let uri: Uri =
        format!("nvme+tcp://{}/{}?nsid=1", target.address(), TargetConfig::default().subsystem).parse().unwrap();
    let tls =
        tls::NvmeTcpTls { key: Some(psk.clone().into()), kernel: tls::KernelTls::Never, ..tls::NvmeTcpTls::default() };
    let engine = Engine::builder().nvme_tcp_keys(NvmeTcpKeys { tls, ..NvmeTcpKeys::default() }).build().unwrap();
    let uri = format!("{uri}&serial={SERIAL}").parse().unwrap();
    let object = engine.open_for_update(&uri).unwrap();
    let content = bytes(1 << 20);
    let written = engine.write(&object, 0, memory(&content)).wait();
    let was_read = engine.read(&object, 0, memory(&[0; 1 << 20])).wait();
    for done in [&written, &was_read] {
        let path = done.path;
        assert_eq!(path.route.to_string(), "nvme+tcp/staged");
        assert_eq!((path.reason, path.bytes.staged, path.bounced), (Reason::TlsInUserSpace, 1 << 20, 0));
        // The kernel's copy, and the library's.
        assert_eq!(path.cpu_copied, 2 << 20);
    }
    assert_eq!(read(&engine, &object, 0, 1 << 20).unwrap(), content);
    let plan = engine.plan(&object, Destination::Host, parse_policy("require=kernel-copy").unwrap(), Verb::Read);
    assert!(format!("{plan:?}").contains("TlsInUserSpace"), "{plan:?}");
}

#[test]
fn a_closed_engine_opens_nothing_and_ends_its_association() {
    if !known() {
        return;
    }
    let (target, uri) = target();
    let engine = Engine::builder().build().unwrap();
    let object = opened(&engine, &uri);
    read(&engine, &object, 0, 4096).unwrap();
    assert_eq!(target.counters().controllers, 1);
    drop(engine);
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        target.counters().controllers == 0
    });
    assert!(gone, "{:?}", target.counters());
    assert_eq!(object.check_unchanged().unwrap_err().kind(), ErrorKind::NoDevice);
}

#[test]
fn a_target_that_is_silent_holds_up_no_other() {
    if !known() {
        return;
    }
    // It takes connections, by the system's queue, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_uri: Uri =
        format!("nvme+tcp://{}/nqn.2026-11.io.example:x?nsid=1", silent.local_addr().unwrap()).parse().unwrap();
    let (_target, uri) = target();
    let engine = Engine::builder().build().unwrap();
    std::thread::scope(|scope| {
        let waits = std::thread::Builder::new().spawn_scoped(scope, || engine.open(&silent_uri).map(drop));
        std::thread::sleep(Duration::from_millis(300));
        let begun = std::time::SystemTime::now();
        engine.open(&uri.parse().unwrap()).unwrap();
        assert!(begun.elapsed().unwrap() < Duration::from_secs(5), "it waited for the silent target");
        let error = waits.unwrap().join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    });
}

#[test]
fn large_blocks_are_read_from_any_byte_with_small_ios() {
    if !known() {
        return;
    }
    let config = TargetConfig { namespaces: vec![Backing::Memory(4 << 20)], block_bytes: 65536, ..own() };
    let subsystem = config.subsystem.to_string();
    let target = Target::start(config).unwrap();
    let uri = format!("nvme+tcp://{}/{subsystem}?nsid=1", target.address());
    let content = bytes(4 << 20);
    for io_bytes in [64 << 10, 128 << 10, 1 << 20] {
        let engine = Engine::builder().io_bytes(io_bytes).build().unwrap();
        let object = opened(&engine, &uri);
        engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
        for (at, len) in [(0, 65536), (1, 65536), (65535, 2), (1, 200_000), (65536, 1_000_000), (4_194_303, 1), (3, 3)]
        {
            assert_eq!(
                read(&engine, &object, at as u64, len).unwrap(),
                content[at..at + len],
                "{io_bytes}: {at}+{len}"
            );
        }
    }
}

/// A target with two ports that tells how its namespace is reached by them, and the address with both.
fn two_ports() -> (Target, String) {
    let more = vec![TargetConfig::default().listen];
    let namespaces = vec![Backing::Memory(BYTES)];
    let config = TargetConfig { more, namespaces, tells: Tells::Access, ..own() };
    let subsystem = config.subsystem.to_string();
    let target = Target::start(config).unwrap();
    let ports: Vec<String> = target.addresses().iter().map(ToString::to_string).collect();
    let uri = format!("nvme+tcp://{}/{subsystem}?nsid=1", ports.join(","));
    (target, uri)
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    assert!((0..400).any(|_| is_so() || (std::thread::sleep(Duration::from_millis(50)), false).1), "{what}");
}

#[test]
fn an_address_of_several_ports_is_opened_by_those_that_are_there_and_goes_on_by_them() {
    if !known() {
        return;
    }
    let (target, uri) = two_ports();
    target.set_port(1, PortState::Shut);
    let engine = Engine::builder().build().unwrap();
    let object = opened(&engine, &uri);
    let states = || {
        let paths = engine.paths(&uri.parse().unwrap()).unwrap();
        paths.iter().map(|path| path.state.name()).collect::<Vec<_>>()
    };
    assert_eq!(states(), ["optimized", "connecting"]);
    let content = bytes(1 << 20);
    engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
    target.set_port(1, PortState::Open);
    until("the second port is reached", || states() == ["optimized", "optimized"]);
    let told = engine.paths(&uri.parse().unwrap()).unwrap();
    assert!(told[0].controller.is_some() && told[0].controller != told[1].controller, "{told:?}");
    target.set_access(0, 1, PortAccess::NonOptimized);
    until("the change is told", || states() == ["non-optimized", "optimized"]);
    target.set_port(0, PortState::Shut);
    for _ in 0..4 {
        assert_eq!(read(&engine, &object, 0, content.len()).unwrap(), content);
    }
    engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
    object.check_unchanged().unwrap();
    // Of one port it is the same controller as before, and the same namespace.
    let second = format!("nvme+tcp://{}", uri.split_once(',').unwrap().1);
    let alone = opened(&engine, &second);
    assert_eq!(
        (alone.version(), read(&engine, &alone, 0, 4096).unwrap()),
        (object.version(), content[..4096].to_vec())
    );
    assert_eq!(engine.paths(&second.parse().unwrap()).unwrap()[0].controller, told[1].controller);
}

#[test]
fn a_port_is_not_lost_to_an_address_of_several_because_one_of_it_alone_would_give_it_up() {
    if !known() {
        return;
    }
    let (target, uri) = two_ports();
    let engine = Engine::builder().set("nvme_tcp_patience_ms", "300").unwrap().build().unwrap();
    let second = format!("nvme+tcp://{}", uri.split_once(',').unwrap().1);
    let alone = opened(&engine, &second);
    let object = opened(&engine, &uri);
    target.set_port(1, PortState::Shut);
    let states = || {
        let paths = engine.paths(&uri.parse().unwrap()).unwrap();
        paths.iter().map(|path| path.state.name()).collect::<Vec<_>>()
    };
    assert!(read(&engine, &alone, 0, 4096).is_err(), "its own patience is as it was");
    until("the loss is told", || states() == ["optimized", "connecting"]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(read(&engine, &object, 0, 4096).unwrap(), [0; 4096]);
    target.set_port(1, PortState::Open);
    until("the port is back", || states() == ["optimized", "optimized"]);
    assert_eq!(read(&engine, &alone, 0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn ports_of_different_subsystems_or_namespaces_are_no_paths() {
    if !known() {
        return;
    }
    let other = |serial: &str, size| {
        let namespaces = vec![Backing::Memory(size)];
        Target::start(TargetConfig { serial: serial.to_owned(), namespaces, ..TargetConfig::default() }).unwrap()
    };
    let refused = |other: &Target| {
        let namespaces = vec![Backing::Memory(BYTES)];
        let one = Target::start(TargetConfig { namespaces, ..TargetConfig::default() }).unwrap();
        let subsystem = TargetConfig::default().subsystem;
        let uri: Uri = format!("nvme+tcp://{},{}/{subsystem}?nsid=1", one.address(), other.address()).parse().unwrap();
        let error = Engine::builder().build().unwrap().open(&uri).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        let text = error.to_string();
        assert!([&one, other].iter().all(|target| text.contains(&target.address().to_string())), "{text}");
        text
    };
    let text = refused(&other("OTHER", BYTES));
    assert!(text.contains(SERIAL) && text.contains("OTHER"), "{text}");
    // Each has a controller with the number 1: what one is told of a controller would be believed of the other.
    assert!(refused(&other(SERIAL, BYTES)).contains("controllers of the same number"));
}

#[test]
fn a_stripe_set_lies_over_the_namespaces_of_a_target_with_two_ports_and_of_one_behind_another_wire() {
    if !known() {
        return;
    }
    const UNIT: usize = 64 << 10;
    let (tcp, one) = two_ports();
    let config = TargetConfig { namespaces: vec![Backing::Memory(BYTES)], ..own() };
    let subsystem = config.subsystem.to_string();
    let rdma = target::start_rdma_emulated(config).unwrap();
    let two = format!("nvme+rdma://{}/{subsystem}?nsid=1&fabric=emulated", rdma.address());
    let members = [one, two].map(|uri| format!("{uri}&serial={SERIAL}"));
    let engine = Engine::builder().build().unwrap();
    let set: Uri = format!("stripe:64k:{}", members.join(",")).parse().unwrap();
    let object = engine.open_for_update(&set).unwrap();
    assert_eq!(object.len(), 2 * BYTES);
    let content = bytes(40 * UNIT);
    let done = engine.write(&object, 0, memory(&content)).wait();
    assert_eq!((done.path.route.landing, done.path.bytes.kernel_copy), (Landing::KernelCopy, content.len() as u64));
    assert_eq!(done.ok().unwrap().result.unwrap(), content.len() as u64);
    engine.flush(&object).wait().ok().unwrap();
    for (at, len) in [(0, content.len()), (UNIT - 1, 2), (123_457, 1_500_001)] {
        assert_eq!(read(&engine, &object, at as u64, len).unwrap(), content[at..at + len], "{at}+{len}");
    }
    // Each has every other unit.
    for (number, member) in members.iter().enumerate() {
        let alone = engine.open(&member.parse().unwrap()).unwrap();
        let units: Vec<u8> = content.chunks(UNIT).skip(number).step_by(2).flatten().copied().collect();
        assert!(read(&engine, &alone, 0, units.len()).unwrap() == units, "{member}");
    }
    // A port that goes leaves the set as it is.
    tcp.set_port(0, PortState::Shut);
    for _ in 0..4 {
        assert!(read(&engine, &object, 0, content.len()).unwrap() == content);
    }
}
