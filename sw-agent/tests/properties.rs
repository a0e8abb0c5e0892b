//! What is encoded is decoded as the same, and any bytes give a structure or a typed refusal.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use proptest::prelude::*;

use sw_agent::credits::Credit;
use sw_agent::failure::{Class, Detail, Failure, Origin, Outcome};
use sw_agent::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use sw_agent::wire::message::{Access, Entry, EntryKind, Flag, Grant, Way};
use sw_agent::wire::{ChecksumKind, Completion, Descriptor, Message, Opcode, Path};
use sw_engine::Landing;

#[path = "../fuzz/body.rs"]
mod body;

fn text(most: usize) -> impl Strategy<Value = Box<str>> {
    proptest::collection::vec(proptest::char::range(' ', '~'), 0..most)
        .prop_map(|chars| chars.into_iter().collect::<String>().into())
}

fn named() -> impl Strategy<Value = u32> {
    (any::<u16>(), 1..=u16::MAX).prop_map(|(slot, generation)| LeaseId::new(slot, generation).0)
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::ReadWrite)]
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Frames),
        (any::<u32>(), 0..1u64 << 62).prop_map(|(segment, offset)| Way::SharedMemory { segment, offset }),
        (0..1u64 << 62, any::<u32>()).prop_map(|(address, rkey)| Way::Rdma { address, rkey }),
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    let class = (1..=5u8).prop_map(|byte| Class::of(byte).unwrap());
    let origin = (1..=5u8).prop_map(|byte| Origin::of(byte).unwrap());
    (class, origin, 1..=u8::MAX).prop_map(|(class, origin, detail)| Failure { class, origin, detail: Detail(detail) })
}

fn message() -> impl Strategy<Value = Message> {
    let credit = || (any::<u64>(), any::<u64>()).prop_map(|(operations, bytes)| Credit { operations, bytes });
    let entry = (any::<bool>(), any::<u64>(), text(40)).prop_map(|(is_object, length, name)| Entry {
        kind: if is_object { EntryKind::Object } else { EntryKind::Folder },
        length,
        name,
    });
    let flag = || any::<bool>().prop_map(Flag::from);
    prop_oneof![
        (any::<u16>(), 0..8u16, proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(kind, step, evidence)| Message::Auth { kind, step, evidence: evidence.into() }),
        (any::<u32>(), any::<u32>(), any::<u64>(), any::<[u8; 16]>(), credit()).prop_map(
            |(session, epoch, boot, key, credit)| {
                Message::SessionOpen { session: SessionId(session), epoch: Epoch(epoch), boot, key, credit }
            }
        ),
        (1..=u32::MAX, 1..=u32::MAX, any::<[u8; 16]>(), credit(), any::<u32>(), flag(), flag()).prop_map(
            |(session, epoch, key, credit, linger_ms, resumed, settled)| Message::Session {
                session: SessionId(session),
                epoch: Epoch(epoch),
                key,
                credit,
                linger_ms,
                resumed,
                settled,
            }
        ),
        (named(), access(), way(), 1..=1u64 << 40, 1000..=3_600_000u32).prop_map(
            |(lease, access, way, length, lifetime_ms)| {
                Message::LeaseGrant(Grant { lease: LeaseId(lease), access, way, length, lifetime_ms })
            }
        ),
        credit().prop_map(Message::Credits),
        (1..=u32::MAX, access(), text(200), text(40)).prop_map(|(request, access, uri, version)| Message::Open {
            request,
            access,
            uri,
            version
        }),
        (1..=u32::MAX, named(), any::<u64>(), 0..32u32, text(40)).prop_map(
            |(request, object, length, shift, version)| {
                Message::Opened { request, object: ObjectId(object), length, granularity: 1 << shift, version }
            }
        ),
        (1..=u32::MAX, text(40), proptest::collection::vec(entry, 0..20))
            .prop_map(|(request, cursor, entries)| Message::Listed { request, cursor, entries: entries.into() }),
        (named(), any::<u32>())
            .prop_map(|(operation, at)| Message::Cancel { operation: OperationId(operation), position: Position(at) }),
        (any::<u32>(), failure(), text(100)).prop_map(|(request, failure, text)| Message::Refused {
            request,
            failure,
            text
        }),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let kinds = prop_oneof![Just(ChecksumKind::None), Just(ChecksumKind::Crc32c), Just(ChecksumKind::Crc64Nvme)];
    let names = (1..=u32::MAX, 1..=u32::MAX, named(), named(), named());
    let ranges = (0..1u64 << 40, 0..1u64 << 60, 1..=1u32 << 30, 1..=3_600_000_000u32);
    (1..=5u8, 0..4u8, kinds, names, ranges, any::<u64>(), any::<u32>()).prop_map(
        |(opcode, bits, kind, names, ranges, sum, position)| {
            let opcode = Opcode::of(opcode).unwrap();
            let (session, epoch, operation, lease, object) = names;
            let (region_offset, object_offset, length, deadline_us) = ranges;
            let has_memory = opcode.has_memory();
            let has_bytes = has_memory || opcode == Opcode::Prefetch;
            let checksum_kind = if has_memory { kind } else { ChecksumKind::None };
            let expect = bits & 1 & u8::from(checksum_kind != ChecksumKind::None);
            let durable = bits & 2 & if opcode == Opcode::Write { 2 } else { 0 };
            let sum = if checksum_kind == ChecksumKind::Crc32c { sum & 0xFFFF_FFFF } else { sum };
            Descriptor {
                opcode,
                flags: expect | durable,
                checksum_kind,
                session: SessionId(session),
                epoch: Epoch(epoch),
                operation: OperationId(operation),
                lease: if has_memory { LeaseId(lease) } else { LeaseId::NONE },
                object: ObjectId(object),
                region_offset: if has_memory { region_offset } else { 0 },
                object_offset: if has_bytes { object_offset } else { 0 },
                length: if has_bytes { length } else { 0 },
                deadline_us,
                checksum: if expect == 1 { sum } else { 0 },
                position: Position(position),
            }
        },
    )
}

fn completion() -> impl Strategy<Value = Completion> {
    let landing =
        prop_oneof![Just(None), Just(Some(Landing::Dma)), Just(Some(Landing::KernelCopy)), Just(Some(Landing::Staged))];
    let status = prop_oneof![Just(Ok(())), failure().prop_map(Err)];
    let path = (any::<u8>(), landing, any::<u8>(), 0..=1u32 << 30);
    (named(), 1..=u32::MAX, status, 0..4u8, path, 0..=1u32 << 30, any::<u64>()).prop_map(
        |(operation, epoch, status, outcome, path, bytes, checksum)| {
            let outcome = if status.is_ok() { outcome & 1 } else { outcome };
            let (transport, landing, copies, bounced_bytes) = path;
            Completion {
                operation: OperationId(operation),
                epoch: Epoch(epoch),
                status,
                outcome: Outcome::of(outcome).unwrap(),
                path: Path { transport, landing, copies, bounced_bytes },
                bytes,
                checksum,
            }
        },
    )
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were(message in message()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        prop_assert_eq!(Message::decode(message.kind(), &bytes), Ok(Some(message.clone())));
        // A field that is not known is passed over, a critical one is not; a part is never the whole.
        let whole = bytes.len();
        bytes.extend_from_slice(&[0x34, 0x12, 2, 0, 9, 9]);
        prop_assert_eq!(Message::decode(message.kind(), &bytes), Ok(Some(message.clone())));
        bytes[whole + 1] |= 0x80;
        prop_assert!(Message::decode(message.kind(), &bytes).is_err());
        prop_assert!(whole == 0 || Message::decode(message.kind(), &bytes[..whole - 1]).is_err());
    }

    #[test]
    fn descriptors_come_back_as_they_were(descriptor in descriptor()) {
        prop_assert_eq!(descriptor.check(), Ok(()));
        prop_assert_eq!(Descriptor::decode(&descriptor.encode()), Ok(descriptor));
    }

    #[test]
    fn a_descriptor_with_a_bit_turned_over_is_refused(descriptor in descriptor(), bit in 0..512usize) {
        let mut raw = descriptor.encode();
        raw[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Descriptor::decode(&raw).is_err());
    }

    #[test]
    fn completions_come_back_as_they_were(completion in completion()) {
        prop_assert_eq!(Completion::decode(&completion.encode()), Ok(completion));
    }

    #[test]
    fn a_completion_with_a_bit_turned_over_is_refused(completion in completion(), bit in 0..256usize) {
        let mut raw = completion.encode();
        raw[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Completion::decode(&raw).is_err());
    }

    #[test]
    fn any_bytes_give_something_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        body::agp(&bytes);
    }
}
