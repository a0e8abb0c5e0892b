//! NFS version 3 against a server of this process: one that is made by hand and does what servers should not (`nfs_made`), and one that is not
//! ours (`nfs3_server`), with its portmapper.

use std::{sync::Arc, time::Duration};

use nfs3_server::{
    memfs::{MemFs, MemFsConfig},
    tcp::{NFSTcp, NFSTcpListener},
};
use sw_engine::{
    Error, ErrorKind, Object, Token, WriteOutcome,
    seam::{EntryKind, Io, IoKind, MemorySegment, Names, OpenMode, Store, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    Context, RemoteConfig, Runtime, System,
    nfs::{NFS, NfsConfig, NfsStores},
};
use sw_testkit::pattern;

use crate::{
    client::{put, read, write},
    nfs_made::{
        ACCES, COMMIT, CREATE, GARBLED, HEAD, IO, JUKEBOX, LEN, Odd, Peer, READ, REMOVE, RENAME, SETATTR, WRITE,
    },
};

const FILE: &str = "nfs://127.0.0.1/file";
const NEW: &str = "nfs://127.0.0.1/new";

fn stores(config: NfsConfig) -> NfsStores {
    NfsStores::new(Context::new(Runtime::new(2)), || config)
}

/// A peer, its client, and a file that was opened before anything is odd.
fn opened() -> (Peer, NfsStores, Arc<Object>) {
    let peer = Peer::start();
    let stores = stores(peer.config());
    let object = stores.open(FILE, OpenMode::Read).unwrap();
    assert_eq!(object.len, LEN as u64);
    (peer, stores, object)
}

/// Reads into the middle of memory; what is around it stays as it was.
fn read_between(stores: &NfsStores, object: &Object, len: u32) -> Result<Vec<u8>, Error> {
    read_into_poison(stores, object, len).0
}

/// As that; and what is in the middle afterwards, before it `0xaa`.
fn read_into_poison(stores: &NfsStores, object: &Object, len: u32) -> (Result<Vec<u8>, Error>, Vec<u8>) {
    let mut buffer = Buffer::allocate(ByteLen(u64::from(len) + 8192)).unwrap();
    buffer.as_mut_slice().fill(0xaa);
    let mut transport = stores.context().transport(RemoteConfig { name: NFS, queue_depth: 4, io_bytes_max: 4 << 20 });
    let region = buffer.region();
    // Three pieces, the middle one of 5 bytes.
    let piece = |at: u32, len| MemorySegment {
        place: region.base().checked_add(ByteLen(4096 + u64::from(at))).unwrap(),
        len,
        region: region.id(),
    };
    let segments = [piece(0, 100), piece(100, 5), piece(105, len - 105)];
    let io = Io {
        token: sw_engine::Token::from_raw(1),
        kind: IoKind::Read,
        object: object.id,
        handle: object.faces[0].handle,
        offset: 0,
        len,
        segment_count: 3,
        segments,
    };
    assert_eq!(transport.submit(&io), Submit::Accepted);
    let mut done = Vec::with_capacity(4);
    while done.is_empty() {
        transport.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut done).unwrap();
    }
    let result = done[0].result;
    let explained = result.map_err(|fault| {
        let error = transport.explain(io.handle, fault);
        error.map_or_else(
            || Error::from_fault(fault, sw_engine::Verb::Read),
            |error| Error::new(error.kind(), error.verb()).detail(error.to_string()),
        )
    });
    drop(transport);
    let all = &buffer.as_mut_slice()[..len as usize + 8192];
    assert!(all[..4096].iter().chain(&all[4096 + len as usize..]).all(|byte| *byte == 0xaa), "bytes landed outside");
    let inside = all[4096..4096 + len as usize].to_vec();
    (explained.map(|moved| inside[..moved as usize].to_vec()), inside)
}

#[test]
fn what_a_server_may_do_is_coped_with() {
    let (peer, stores, object) = opened();
    let want = pattern::bytes(1, 0, LEN);
    for odd in [
        Odd::Nothing,
        Odd::Jukebox(3),
        Odd::Short(70_001),
        Odd::Untold,
        Odd::Moved,
        Odd::Fragments(1000),
        Odd::Fragments(1 << 16),
        Odd::Stranger,
        Odd::LosesAnswer(READ),
    ] {
        peer.set(odd);
        assert!(read(&stores, &object).unwrap_or_else(|error| panic!("{odd:?}: {error}")) == want, "{odd:?}");
        assert!(read_between(&stores, &object, 1 << 20).unwrap() == want[..1 << 20], "{odd:?}");
    }
}

#[test]
fn what_a_server_may_not_do_is_an_error_and_nothing_lands_outside() {
    let (peer, stores, object) = opened();
    for (odd, kind) in [
        (Odd::EarlyEnd, ErrorKind::Protocol),
        (Odd::Surplus(1), ErrorKind::Protocol),
        (Odd::Surplus(1 << 20), ErrorKind::Protocol),
        (Odd::Lies(u32::MAX), ErrorKind::Protocol),
        (Odd::Lies(7), ErrorKind::Protocol),
        (Odd::Lacks(1), ErrorKind::Protocol),
        (Odd::Lacks(100_000), ErrorKind::Protocol),
        (Odd::Endless, ErrorKind::Protocol),
        (Odd::ChangesAfter(0), ErrorKind::Changed),
        (Odd::Replaced, ErrorKind::Changed),
    ] {
        peer.set(odd);
        let (done, inside) = read_into_poison(&stores, &object, 2 << 20);
        let error = done.unwrap_err();
        assert_eq!(error.kind(), kind, "{odd:?}: {error}");
        let lands = matches!(odd, Odd::EarlyEnd | Odd::Lacks(_));
        assert!(lands || inside.iter().all(|byte| *byte == 0xaa), "{odd:?}: bytes landed");
    }
    // As long as there is patience, and no longer.
    for (odd, silence, kind) in
        [(Odd::Jukebox(u32::MAX), 20_000, ErrorKind::Busy), (Odd::Silent(READ), 300, ErrorKind::DeadlineExceeded)]
    {
        let peer = Peer::start();
        let stores = self::stores(NfsConfig {
            silence: Duration::from_millis(silence),
            patience: Duration::from_secs(1),
            ..peer.config()
        });
        let object = stores.open(FILE, OpenMode::Read).unwrap();
        peer.set(odd);
        let error = read_between(&stores, &object, 2 << 20).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{odd:?}: {error}");
    }
    let (peer, stores, object) = opened();
    peer.set(Odd::ChangesAfter(2));
    assert_eq!(read(&stores, &object).map(drop).unwrap_err().kind(), ErrorKind::Changed, "in the middle");
}

#[test]
fn garbled_answers_end_in_errors_or_in_the_right_bytes() {
    let (peer, stores, object) = opened();
    let (want, mut errors) = (pattern::bytes(1, 0, LEN), 0);
    for seed in 0..120 {
        peer.set(Odd::Garbles(seed));
        let done = read_between(&stores, &object, 300_000);
        let is_of_another = peer.state().has_garbled_facts;
        match done {
            // Bytes themselves are not checked by the protocol; those behind what was garbled are where they belong.
            Ok(bytes) => {
                assert!(!is_of_another, "{seed}: bytes with attributes of another file");
                assert!(bytes.len() == 300_000 && bytes[GARBLED - HEAD..] == want[GARBLED - HEAD..300_000], "{seed}");
            }
            Err(_) => errors += 1,
        }
        drop(stores.stat(FILE));
        drop(stores.list("nfs://127.0.0.1/"));
    }
    assert!((30..120).contains(&errors), "{errors}");
    peer.set(Odd::Nothing);
    assert!(read(&stores, &object).unwrap() == want);
}

/// A record that ends elsewhere than it says: what is behind it is not taken for what it is not.
#[test]
fn records_with_garbled_marks_end_in_errors_or_in_the_right_bytes() {
    let peer = Peer::start();
    let config = NfsConfig { silence: Duration::from_millis(300), patience: Duration::from_secs(10), ..peer.config() };
    let stores = self::stores(config);
    let object = stores.open(FILE, OpenMode::Read).unwrap();
    let (want, mut errors) = (pattern::bytes(1, 0, LEN), 0);
    for seed in 0..40 {
        peer.set(Odd::GarblesMarks(seed));
        match read_between(&stores, &object, 2 << 20) {
            Ok(bytes) => assert!(bytes == want[..2 << 20], "{seed}"),
            Err(_) => errors += 1,
        }
    }
    assert!((5..40).contains(&errors), "{errors}");
}

/// A wire on which what is asked takes longer than silence and patience together: as long as bytes come, nothing is given up.
#[test]
fn a_slow_wire_is_no_silence() {
    let peer = Peer::start();
    let stores = stores(NfsConfig {
        connections: 1,
        silence: Duration::from_secs(3),
        patience: Duration::from_millis(200),
        ..peer.config()
    });
    let object = stores.open(FILE, OpenMode::Read).unwrap();
    // A MiB a second and a fifth.
    peer.set(Odd::Slow((1 << 20) / 120));
    let want = pattern::bytes(1, 0, 4 << 20);
    std::thread::scope(|scope| {
        // One I/O of three READs, and two that wait behind them.
        let long = scope.spawn(|| read_between(&stores, &object, 3 << 20).unwrap() == want[..3 << 20]);
        let others =
            [1, 2].map(|_| scope.spawn(|| read_between(&stores, &object, 1 << 20).unwrap() == want[..1 << 20]));
        assert!(long.join().unwrap() && others.into_iter().all(|other| other.join().unwrap()));
    });
}

#[test]
fn what_a_server_loses_is_written_again() {
    let peer = Peer::start();
    let stores = stores(peer.config());
    let bytes = pattern::bytes(2, 0, (5 << 20) + 3);
    for odd in [
        Odd::Nothing,
        Odd::Loses,
        Odd::Short(300_001),
        Odd::Jukebox(3),
        Odd::LosesAnswer(CREATE),
        Odd::LosesAnswer(SETATTR),
        Odd::LosesAnswer(WRITE),
        Odd::LosesAnswer(RENAME),
        Odd::LosesAnswer(COMMIT),
        Odd::Guarded,
        Odd::GuardedLost,
    ] {
        peer.set(odd);
        put(&stores, NEW, &bytes).unwrap_or_else(|error| panic!("{odd:?}: {error}"));
        assert!(peer.written() == bytes, "{odd:?}");
        assert_eq!(peer.names(), ["new"], "{odd:?}");
    }
    peer.set(Odd::LosesAnswer(REMOVE));
    stores.remove(NEW).unwrap();
    assert_eq!(peer.names(), [""; 0]);
    // More than is kept: committed on the way.
    let large = pattern::bytes(3, 0, 70 << 20);
    put(&stores, NEW, &large).unwrap();
    assert!(peer.written() == large);
    peer.set(Odd::Full);
    let intent = stores.create(NEW, 100).unwrap();
    let error = write(&stores, intent.object(), 0, &[1; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let error = write(&stores, intent.object(), 1, &[1; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    peer.set(Odd::Nothing);
    let hasty = self::stores(NfsConfig { patience: Duration::from_secs(1), ..peer.config() });
    let intent = hasty.create(NEW, 100).unwrap();
    peer.set(Odd::Jukebox(u32::MAX));
    let error = write(&hasty, intent.object(), 0, &[1; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    peer.set(Odd::Nothing);
    let intent = sw_remote::System::create_open(&stores, NEW).unwrap();
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiMisuse, "{error}");
    assert_ne!(error.outcome(), Some(WriteOutcome::Applied));
}

/// Written twice at one place, with a server that comes back as another one in between: the last bytes stay.
#[test]
fn bytes_that_are_written_again_never_come_over_newer_ones() {
    let peer = Peer::start();
    let stores = stores(peer.config());
    // The newer bytes may be lost too, or are in stable storage at once.
    for then in [Odd::Nothing, Odd::Stable] {
        peer.set(Odd::Nothing);
        let intent = stores.create(NEW, 100).unwrap();
        write(&stores, intent.object(), 0, &[1; 100]).unwrap();
        peer.state().verifier += 1;
        peer.set(then);
        write(&stores, intent.object(), 50, &[2; 50]).unwrap();
        intent.commit(Names::Durable).unwrap();
        assert!(peer.written() == [[1; 50], [2; 50]].concat(), "{then:?}");
    }
    // Who writes again is given up between the old bytes and the new ones.
    peer.set(Odd::Nothing);
    peer.clear();
    let intent = stores.create(NEW, 100).unwrap();
    write(&stores, intent.object(), 0, &[1; 100]).unwrap();
    peer.state().verifier += 1;
    write(&stores, intent.object(), 0, &[2; 100]).unwrap();
    peer.set(Odd::HoldsSecondSync);
    give_up(&stores, intent.object(), IoKind::FlushData, &mut Buffer::allocate(ByteLen(100)).unwrap());
    peer.set(Odd::Nothing);
    match intent.commit(Names::Durable) {
        Ok(()) => assert!(peer.written() == [2; 100]),
        Err(error) => {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Cancelled, Some(WriteOutcome::NotApplied)));
            assert_eq!(peer.names(), [""; 0]);
        }
    }
}

/// Begins an I/O, and gives it up half a second later.
fn give_up(stores: &NfsStores, object: &Object, kind: IoKind, buffer: &mut Buffer) {
    let mut transport = stores.context().transport(RemoteConfig { name: NFS, queue_depth: 4, io_bytes_max: 4 << 20 });
    let region = buffer.region();
    let segment = MemorySegment { place: region.base(), len: 100, region: region.id() };
    let is_flush = kind == IoKind::FlushData;
    let io = Io {
        token: Token::from_raw(1),
        kind,
        object: object.id,
        handle: object.faces[0].handle,
        offset: 0,
        len: if is_flush { 0 } else { 100 },
        segment_count: u8::from(!is_flush),
        segments: [segment; 3],
    };
    assert_eq!(transport.submit(&io), Submit::Accepted);
    let mut done = Vec::with_capacity(4);
    transport.poll(Wait::For { timeout: Duration::from_millis(500), min: 1 }, &mut done).unwrap();
    assert!(done.is_empty(), "{done:?}");
    transport.cancel(io.token);
    while done.is_empty() {
        transport.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut done).unwrap();
    }
    done[0].result.unwrap_err();
}

/// What is told of a RENAME without a clear answer stays true, whenever the server does it.
#[test]
fn a_rename_that_may_still_be_done_is_not_told_as_undone() {
    let peer = Peer::start();
    let stores = stores(NfsConfig { patience: Duration::from_secs(1), ..peer.config() });
    for odd in [
        Odd::RenamesLateAndLies,
        Odd::RenamesLateAndSays(IO),
        Odd::RenamesLateAndSays(ACCES),
        Odd::RenamesLateAndSays(JUKEBOX),
    ] {
        // It comes when all is over, or just before the name is to go that it takes away.
        for (is_before, told, names) in [(false, Some(WriteOutcome::NotApplied), &[][..]), (true, None, &["new"])] {
            peer.clear();
            peer.set(Odd::Nothing);
            let intent = stores.create(NEW, 100).unwrap();
            write(&stores, intent.object(), 0, &[1; 100]).unwrap();
            peer.set(odd);
            peer.state().is_late_before_remove = is_before;
            let outcome = intent.commit(Names::Durable).map_err(|error| error.outcome().unwrap()).err();
            peer.state().rename_late();
            peer.state().is_late_before_remove = false;
            assert_eq!(outcome, told, "{odd:?} {is_before}");
            assert_eq!(peer.names(), names, "{odd:?} {is_before}");
        }
    }
    for (odd, outcome) in [
        // Done, and said to have failed.
        (Odd::RenamesAndSays(IO), None),
        (Odd::Says(RENAME, IO), Some(WriteOutcome::NotApplied)),
        (Odd::Says(RENAME, ACCES), Some(WriteOutcome::NotApplied)),
        // Done, and somebody else has the name when that is looked at.
        (Odd::Taken, Some(WriteOutcome::Unknown)),
    ] {
        peer.set(Odd::Nothing);
        peer.clear();
        let intent = stores.create(NEW, 100).unwrap();
        write(&stores, intent.object(), 0, &[1; 100]).unwrap();
        peer.set(odd);
        let told = intent.commit(Names::Durable).map_err(|error| error.outcome().unwrap()).err();
        assert_eq!(told, outcome, "{odd:?}");
        assert_eq!(peer.names().is_empty(), outcome == Some(WriteOutcome::NotApplied), "{odd:?}");
    }
}

#[test]
fn nothing_is_written_once_a_commit_has_begun_and_nothing_committed_that_may_still_be_written() {
    let peer = Peer::start();
    let stores = stores(peer.config());
    let intent = stores.create(NEW, 100).unwrap();
    let object = intent.object().clone();
    write(&stores, &object, 0, &[1; 100]).unwrap();
    intent.commit(Names::Durable).unwrap();
    assert_eq!(write(&stores, &object, 0, &[2; 100]).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(peer.written(), [1; 100]);
    let intent = stores.create(NEW, 100).unwrap();
    let object = intent.object().clone();
    drop(intent);
    assert_eq!(write(&stores, &object, 0, &[2; 100]).unwrap_err().kind(), ErrorKind::Closed);
    // A write that is given up, whose bytes may come at any time.
    let intent = stores.create(NEW, 100).unwrap();
    peer.set(Odd::Silent(WRITE));
    give_up(&stores, intent.object(), IoKind::Write, &mut Buffer::allocate(ByteLen(100)).unwrap());
    peer.set(Odd::Nothing);
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Cancelled, Some(WriteOutcome::NotApplied)), "{error}");
    assert_eq!((peer.written(), peer.names()), (vec![1; 100], vec!["new".to_owned()]));
    // One that was asked for twice: nothing newer goes there, and the end stays behind it.
    for len in [100, 60] {
        let intent = System::create_open(&stores, NEW).unwrap();
        peer.set(Odd::LosesAnswer(WRITE));
        write(&stores, intent.object(), 0, &[1; 100]).unwrap();
        let error = write(&stores, intent.object(), 50, &[2; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        write(&stores, intent.object(), 100, &[2; 100]).unwrap();
        intent.cut(len).unwrap();
        let done = intent.commit(Names::Durable).map_err(|error| error.outcome());
        assert_eq!(done, if len == 100 { Ok(()) } else { Err(Some(WriteOutcome::NotApplied)) }, "{len}");
    }
}

#[test]
fn a_file_that_cannot_be_made_leaves_no_name_and_one_that_is_replaced_keeps_its_mode() {
    let peer = Peer::start();
    let stores = stores(NfsConfig { patience: Duration::from_secs(1), ..peer.config() });
    for odd in [Odd::Says(SETATTR, ACCES), Odd::Says(1, IO), Odd::Silent(CREATE)] {
        // Its root is known.
        drop(stores.list("nfs://127.0.0.1/").unwrap());
        let hasty = if odd == Odd::Silent(CREATE) { Duration::from_millis(300) } else { Duration::from_secs(20) };
        let stores = self::stores(NfsConfig { silence: hasty, patience: Duration::from_secs(1), ..peer.config() });
        drop(stores.list("nfs://127.0.0.1/").unwrap());
        peer.set(odd);
        stores.create(NEW, 1).map(drop).unwrap_err();
        assert_eq!(peer.names(), [""; 0], "{odd:?}");
        peer.set(Odd::Nothing);
    }
    put(&stores, NEW, b"first").unwrap();
    assert_eq!(peer.mode() & !0o666, 0);
    peer.set_mode(0o600);
    put(&stores, NEW, b"second").unwrap();
    assert_eq!((peer.mode(), peer.written()), (0o600, b"second".to_vec()));
}

#[test]
fn what_a_server_says_of_a_write_is_looked_at() {
    let peer = Peer::start();
    let stores = stores(peer.config());
    for odd in [Odd::Short(1), Odd::Keeps(3), Odd::Keeps(u32::MAX)] {
        let intent = stores.create(NEW, 100_000).unwrap();
        peer.set(odd);
        let error = write(&stores, intent.object(), 0, &[1; 100_000]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{odd:?}: {error}");
        peer.set(Odd::Nothing);
    }
    // What it lost is to be stable when it is written again.
    for keeps in [0, 1] {
        let intent = stores.create(NEW, 100).unwrap();
        write(&stores, intent.object(), 0, &[1; 100]).unwrap();
        peer.state().verifier += 1;
        peer.set(Odd::Keeps(keeps));
        assert_eq!(intent.commit(Names::Durable).unwrap_err().kind(), ErrorKind::Protocol, "{keeps}");
        peer.set(Odd::Nothing);
    }
}

#[test]
fn listings_leave_out_what_cannot_be_a_name_and_end() {
    let (peer, stores, _object) = opened();
    peer.set(Odd::WrongNames);
    let names: Vec<String> = stores.list("nfs://127.0.0.1/").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [FILE]);
    for odd in [Odd::Circle, Odd::Circles] {
        peer.set(odd);
        assert_eq!(stores.list("nfs://127.0.0.1/").unwrap_err().kind(), ErrorKind::Protocol, "{odd:?}");
    }
    // By READDIR and LOOKUP.
    peer.set(Odd::NoPlus);
    let listed = stores.list("nfs://127.0.0.1/").unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].len), (1, FILE, LEN as u64));
}

#[test]
fn addresses_and_names_that_cannot_be_are_refused() {
    let stores = stores(NfsConfig::default());
    for name in ["nfs://h:0/a", "nfs://h:x/a", "nfs://[::1/a", "nfs://::1/a", "nfs://:1/a"] {
        assert_eq!(stores.stat(name).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
    let (_peer, stores, _object) = opened();
    for name in
        ["nfs://127.0.0.1/a/../file", "nfs://127.0.0.1/./file", "nfs://127.0.0.1/file\0", "nfs://127.0.0.1/a\0b/file"]
    {
        assert_eq!(stores.stat(name).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
    for name in ["nfs://127.0.0.1/", "nfs://127.0.0.1/a/", "nfs://127.0.0.1/..", "nfs://127.0.0.1/new\0"] {
        assert_eq!(stores.create(name, 1).map(drop).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
    let error = stores.open(FILE, OpenMode::Update).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn a_port_behind_a_head_that_is_none_is_no_port() {
    let peer = Peer::start();
    let stores = stores(NfsConfig { port: None, portmap_port: peer.port(), ..peer.config() });
    peer.set(Odd::PortBehindNoHead);
    let error = stores.stat(FILE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    peer.set(Odd::Nothing);
    assert_eq!(stores.stat(FILE).unwrap().len, LEN as u64);
}

/// Ports by the portmapper, all of it by a server that is not ours.
#[test]
fn another_server_is_found_by_its_portmapper_read_and_written() {
    let mut files = MemFsConfig::default();
    files.add_dir("/folder");
    files.add_file("/folder/file", pattern::bytes(4, 0, 300_000));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(NFSTcpListener::bind("127.0.0.1:0", MemFs::new(files).unwrap())).unwrap();
    let port = listener.get_listen_port();
    runtime.spawn(async move { listener.handle_forever().await });
    let stores = stores(NfsConfig { portmap_port: port, patience: Duration::from_secs(10), ..NfsConfig::default() });
    let file = "nfs://127.0.0.1/folder/file";
    let object = stores.open(file, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == pattern::bytes(4, 0, 300_000));
    let listed = stores.list("nfs://127.0.0.1/").unwrap();
    assert_eq!(
        listed.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect::<Vec<_>>(),
        [("nfs://127.0.0.1/folder", EntryKind::Directory)]
    );
    let bytes = pattern::bytes(5, 0, (2 << 20) + 1);
    put(&stores, "nfs://127.0.0.1/folder/new", &bytes).unwrap();
    let object = stores.open("nfs://127.0.0.1/folder/new", OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
    stores.remove("nfs://127.0.0.1/folder/new").unwrap();
    assert_eq!(stores.stat("nfs://127.0.0.1/folder/new").unwrap_err().kind(), ErrorKind::NotFound);
    runtime.shutdown_background();
}
