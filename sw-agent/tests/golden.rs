//! Each structure of AGP/1 as a file: what it was when it was written, and what it decodes to.
//!
//! `testdata/golden` has the vectors of the version that is being made. From the first release on, those of a release stay in a folder of
//! their own, beside it, and are decoded by the same test. `SW_WRITE_GOLDEN=1` writes the files anew; a change of one is a change of the protocol.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::path::PathBuf;

use sw_agent::credits::Credit;
use sw_agent::failure::{Class, Failure, Origin, Outcome};
use sw_agent::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use sw_agent::wire::descriptor::flags;
use sw_agent::wire::frame::{self, DataHead, HEADER_BYTES, Header};
use sw_agent::wire::message::{Access, Entry, EntryKind, Flag, Grant, Hello, RevokedFor, Way};
use sw_agent::wire::{ChecksumKind, Completion, Descriptor, Frame, Kind, Message, Opcode, Path};
use sw_engine::{ErrorKind, Landing};

const SESSION: SessionId = SessionId(0x0102_0304);
const EPOCH: Epoch = Epoch(7);
const LEASE: LeaseId = LeaseId::new(3, 9);
const OBJECT: ObjectId = ObjectId::new(5, 2);
const OPERATION: OperationId = OperationId::new(0x11, 0x22);

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features_critical: 0,
        features_optional: 0x8000_0000_0000_0001,
        node: core::array::from_fn(|at| u8::try_from(at).unwrap()),
        boot: 0x1122_3344_5566_7788,
        operations_max: 256,
        leases_max: 64,
        objects_max: 128,
        payload_bytes_max: 16 << 20,
        silence_ms: 5000,
        checksums: 3,
        software: "straightway 0.1.0".into(),
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let failure = Failure::new(Class::Caller, Origin::Storage, ErrorKind::NotFound);
    let credit = Credit { operations: 64, bytes: 256 << 20 };
    let grant = |way| {
        Message::LeaseGrant(Grant {
            lease: LEASE,
            access: Access::ReadWrite,
            way,
            length: 1 << 30,
            lifetime_ms: 60_000,
        })
    };
    let entry = |kind, length, name: &str| Entry { kind, length, name: name.into() };
    let entries = [entry(EntryKind::Folder, 0, "a"), entry(EntryKind::Object, 1 << 40, "b.safetensors")];
    let session = Message::Session {
        session: SESSION,
        epoch: EPOCH,
        key: [0xA5; 16],
        credit,
        linger_ms: 30_000,
        resumed: Flag::Set,
        settled: Flag::Clear,
    };
    let (uri, version) = ("s3://bucket/key", "\"etag\"");
    vec![
        ("hello", Message::Hello(hello())),
        ("welcome", Message::Welcome(Hello { software: Box::default(), ..hello() })),
        ("auth", Message::Auth { kind: 1, step: 0, evidence: [1, 2, 3, 0xFF].into() }),
        ("admitted", Message::Admitted { tenant: "team-a".into() }),
        ("session-open", Message::SessionOpen { session: SESSION, epoch: EPOCH, boot: 42, key: [0xA5; 16], credit }),
        ("session", session),
        ("lease-grant-frames", grant(Way::Frames)),
        ("lease-grant-memory", grant(Way::SharedMemory { segment: 2, offset: 4096 })),
        ("lease-grant-rdma", grant(Way::Rdma { address: 0x7F00_0000_1000, rkey: 0xDEAD_BEEF })),
        ("lease-held", Message::LeaseHeld { lease: LEASE }),
        ("lease-renew", Message::LeaseRenew { lease: LEASE, lifetime_ms: 60_000 }),
        ("lease-revoke", Message::LeaseRevoke { lease: LEASE, position: Position(0xFFFF_FFFE) }),
        ("lease-revoked", Message::LeaseRevoked { lease: LEASE, reason: RevokedFor::Expired }),
        ("credits", Message::Credits(credit)),
        ("open", Message::Open { request: 1, access: Access::Read, uri: uri.into(), version: version.into() }),
        (
            "opened",
            Message::Opened {
                request: 1,
                object: OBJECT,
                length: 123_456_789,
                granularity: 4096,
                version: version.into(),
            },
        ),
        ("stat", Message::Stat { request: 2, uri: uri.into() }),
        (
            "stated",
            Message::Stated {
                request: 2,
                kind: EntryKind::Object,
                length: 5,
                modified_ms: 1_796_000_000_000,
                version: version.into(),
            },
        ),
        ("list", Message::List { request: 3, entries_max: 1000, uri: "s3://bucket/".into(), cursor: "a".into() }),
        ("listed", Message::Listed { request: 3, cursor: "b.safetensors".into(), entries: entries.into() }),
        ("close", Message::Close { request: 4, object: OBJECT }),
        ("closed", Message::Closed { request: 4 }),
        ("cancel", Message::Cancel { operation: OPERATION, position: Position(17) }),
        ("heartbeat", Message::Heartbeat { count: 99 }),
        ("drain", Message::Drain { reason: 1, deadline_ms: 10_000 }),
        ("goodbye", Message::Goodbye { reason: 0 }),
        ("refused", Message::Refused { request: 1, failure, text: "no such key".into() }),
    ]
}

fn descriptor(opcode: Opcode) -> Descriptor {
    let memory = opcode.has_memory();
    let ranged = memory || opcode == Opcode::Prefetch;
    Descriptor {
        opcode,
        flags: if memory { flags::EXPECT } else { 0 },
        checksum_kind: if memory { ChecksumKind::Crc64Nvme } else { ChecksumKind::None },
        session: SESSION,
        epoch: EPOCH,
        operation: OPERATION,
        lease: if memory { LEASE } else { LeaseId::NONE },
        object: OBJECT,
        region_offset: if memory { 0x10_0000 } else { 0 },
        object_offset: if ranged { 0x1_0000_0000 } else { 0 },
        length: if ranged { 1 << 20 } else { 0 },
        deadline_us: 30_000_000,
        checksum: if memory { 0x1234_5678_9ABC_DEF0 } else { 0 },
        position: Position(41),
    }
}

fn completions() -> Vec<(&'static str, Completion)> {
    let path = Path { transport: 4, landing: Some(Landing::KernelCopy), copies: 2, bounced_bytes: 4096 };
    let failed = |class, kind, outcome| Completion {
        operation: OPERATION,
        epoch: EPOCH,
        status: Err(Failure::new(class, Origin::Storage, kind)),
        outcome,
        path: Path::default(),
        bytes: 0,
        checksum: 0,
    };
    let read = Completion {
        operation: OPERATION,
        epoch: EPOCH,
        status: Ok(()),
        outcome: Outcome::Nothing,
        path,
        bytes: 1 << 20,
        checksum: 0x1234_5678_9ABC_DEF0,
    };
    vec![
        ("completion-read", read),
        ("completion-write", Completion { outcome: Outcome::Applied, ..read }),
        ("completion-unknown", failed(Class::RetryAfterFence, ErrorKind::Io, Outcome::Unknown)),
        ("completion-integrity", failed(Class::Integrity, ErrorKind::ChecksumMismatch, Outcome::Nothing)),
    ]
}

fn frame_of(kind: Kind, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let mut out = Vec::new();
    Header { kind, message_type: 0, flags: 0, length, session: SESSION, epoch: EPOCH }.encode(&mut out);
    out.extend_from_slice(body);
    out
}

/// Name, bytes and meaning of every vector.
fn vectors() -> Vec<(String, Vec<u8>, Frame)> {
    let mut all = Vec::new();
    for (name, message) in messages() {
        let mut out = Vec::new();
        frame::control_frame(&message, SESSION, EPOCH, &mut out);
        all.push((name.to_owned(), out, Frame::Control(message)));
    }
    let opcodes = [Opcode::Read, Opcode::Write, Opcode::Flush, Opcode::Commit, Opcode::Prefetch];
    let descriptors: Vec<_> = opcodes.map(descriptor).into();
    let body: Vec<u8> = descriptors.iter().flat_map(Descriptor::encode).collect();
    all.push(("descriptors".to_owned(), frame_of(Kind::Descriptors, &body), Frame::Descriptors(descriptors)));
    for (name, completion) in completions() {
        let bytes = frame_of(Kind::Completions, &completion.encode());
        all.push((name.to_owned(), bytes, Frame::Completions(vec![completion])));
    }
    let head = DataHead { operation: OPERATION, epoch: EPOCH, lease: LEASE, offset: 0x10_0000 };
    let mut body = Vec::new();
    head.encode(&mut body);
    body.extend_from_slice(b"payload");
    all.push(("data".to_owned(), frame_of(Kind::Data, &body), Frame::Data(head, 7)));
    all
}

fn decode(bytes: &[u8]) -> Frame {
    let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().expect("a header");
    let header = Header::decode(head).expect("a good header");
    assert_eq!((header.session, header.epoch), (SESSION, EPOCH));
    Frame::decode(&header, body).expect("a good body")
}

#[test]
fn every_golden_vector_is_what_it_was() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/golden");
    let vectors = vectors();
    #[expect(clippy::disallowed_methods, reason = "whoever changes the protocol asks for new files by the environment")]
    if std::env::var_os("SW_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, bytes, _) in &vectors {
            std::fs::write(folder.join(format!("{name}.agp")), bytes).expect("a file");
        }
    }
    for (name, bytes, meaning) in &vectors {
        let kept = std::fs::read(folder.join(format!("{name}.agp"))).expect(name);
        assert_eq!(&kept, bytes, "{name} is encoded as it was");
        assert_eq!(&decode(&kept), meaning, "{name} is decoded as it was");
    }
    let files = std::fs::read_dir(&folder).expect("a folder").count();
    assert_eq!(files, vectors.len(), "a file without a vector");
}

#[test]
fn fields_lie_where_the_page_says() {
    let read = descriptor(Opcode::Read).encode();
    let at = |at: usize| u32::from_le_bytes(read[at..at + 4].try_into().unwrap());
    assert_eq!((read[0], read[1], read[2], read[3]), (1, 1, 2, 0));
    assert_eq!([at(4), at(8), at(12), at(16), at(20)], [SESSION.0, EPOCH.0, OPERATION.0, LEASE.0, OBJECT.0]);
    assert_eq!([at(24), at(32), at(36), at(40), at(44), at(56)], [0x10_0000, 0, 1, 1 << 20, 30_000_000, 41]);
    let done = completions()[1].1.encode();
    assert_eq!(done[8..14], [0, 1, 2 << 4, 4, 2, 0]);
    assert_eq!((done[16..20].to_vec(), done[20..24].to_vec()), (vec![0, 0, 0x10, 0], vec![0, 0x10, 0, 0]));
    let unknown = completions()[2].1.encode();
    assert_eq!(unknown[8..14], [2, 3, 4, 0, 0, 13]);
}
