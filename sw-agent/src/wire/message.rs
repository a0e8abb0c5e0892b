//! Control messages. Fixed fields first, then texts, then optional fields: `tag`, length, value.
//!
//! A tag with its highest bit set is critical: who does not know it ends the connection. Others are passed over. Version 1 has one field,
//! the software's name in HELLO and WELCOME.

use super::{Breach, cursor::Reader, cursor::Writer};
use crate::credits::Credit;
use crate::failure::{Class, Detail, Failure, Origin};
use crate::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use crate::limits::{
    AUTH_STEPS_MAX, CURSOR_BYTES_MAX, ENTRIES_MAX, EVIDENCE_BYTES_MAX, LEASE_BYTES_MAX, LEASES_MAX, LIFETIME_MS,
    NAME_BYTES_MAX, OBJECTS_MAX, OPERATIONS_MAX, PAYLOAD_BYTES_MAX, SILENCE_MS, SOFTWARE_BYTES_MAX, TENANT_BYTES_MAX,
    TEXT_BYTES_MAX, URI_BYTES_MAX, VERSION_BYTES_MAX,
};

/// The first four bytes of HELLO and WELCOME: `AGP` and zero.
pub const MAGIC: [u8; 4] = *b"AGP\0";
/// A field with this bit must be known.
const TAG_CRITICAL: u16 = 1 << 15;
/// The software's name and version.
const TAG_SOFTWARE: u16 = 1;

/// What an end says of itself: HELLO and WELCOME.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The oldest version that it speaks; in WELCOME the one that was chosen.
    pub version_min: u16,
    /// The newest; in WELCOME the same.
    pub version_max: u16,
    /// Features without which it will not go on; in WELCOME those that are in force.
    pub features_critical: u64,
    /// Features that it has besides; in WELCOME those of the agent that are not in force.
    pub features_optional: u64,
    /// Which machine or process it is, for logs.
    pub node: [u8; 16],
    /// Drawn anew whenever it starts.
    pub boot: u64,
    /// Operations under way at most.
    pub operations_max: u16,
    /// Leases at most.
    pub leases_max: u16,
    /// Open objects at most.
    pub objects_max: u16,
    /// Payload bytes of one operation at most.
    pub payload_bytes_max: u32,
    /// It gives up who is silent for so long, in milliseconds, and speaks at least four times in it.
    pub silence_ms: u32,
    /// Kinds of checksums that it computes: [`ChecksumKind::bit`](super::ChecksumKind::bit).
    pub checksums: u32,
    /// Name and version of the software, for logs; empty if it does not say.
    pub software: Box<str>,
}

/// How payload comes into the memory of a lease, and out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By DATA frames, which the host lands.
    Frames,
    /// The agent reads and writes a segment that both have mapped.
    SharedMemory {
        /// Which segment, as the carrier counts them.
        segment: u32,
        /// Where the window begins in it, in bytes.
        offset: u64,
    },
    /// The agent reads and writes by RDMA.
    Rdma {
        /// The address of the window.
        address: u64,
        /// Its key.
        rkey: u32,
    },
}

/// What the agent may do under a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Access {
    /// Read the memory: writes to objects.
    Read = 1,
    /// Write the memory: reads of objects.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

impl Access {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::ReadWrite,
            _ => return None,
        })
    }

    /// Whether all of `other` is allowed.
    pub const fn allows(self, other: Self) -> bool {
        self as u8 & other as u8 == other as u8
    }
}

/// A lease, as LEASE_GRANT has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Its name.
    pub lease: LeaseId,
    /// What the agent may do.
    pub access: Access,
    /// How.
    pub way: Way,
    /// Bytes of the window.
    pub length: u64,
    /// It ends so many milliseconds after its arrival, unless it is renewed.
    pub lifetime_ms: u32,
}

/// What a name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Something with bytes.
    Object = 1,
    /// Something with names below it.
    Folder = 2,
}

/// One name of LISTED.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// What it names.
    pub kind: EntryKind,
    /// Bytes of an object; 0 of a folder.
    pub length: u64,
    /// The name, below what was listed.
    pub name: Box<str>,
}

/// Why a lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RevokedFor {
    /// It was revoked.
    Asked = 1,
    /// It was not renewed.
    Expired = 2,
    /// The agent could not take it, or has let go of it.
    Refused = 3,
}

/// A message. Who sends it and when: `docs/agp.md`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "fields are those of docs/agp.md, by the same names")]
pub enum Message {
    /// The first word of a host.
    Hello(Hello),
    /// The first word of an agent.
    Welcome(Hello),
    /// A step of who the host is: evidence from the host, challenges from the agent.
    Auth { kind: u16, step: u16, evidence: Box<[u8]> },
    /// Who the host is taken for.
    Admitted { tenant: Box<str> },
    /// A session is wanted: a new one (`session` 0), or one of before.
    SessionOpen { session: SessionId, epoch: Epoch, boot: u64, key: [u8; 16], credit: Credit },
    /// The session. `resumed`: it is the one that was asked for. `settled`: nothing of its older epochs can be applied any more.
    Session {
        session: SessionId,
        epoch: Epoch,
        key: [u8; 16],
        credit: Credit,
        linger_ms: u32,
        resumed: Flag,
        settled: Flag,
    },
    /// The agent may touch a window of memory.
    LeaseGrant(Grant),
    /// It has taken the lease, or the new lifetime.
    LeaseHeld { lease: LeaseId },
    /// The lease ends later.
    LeaseRenew { lease: LeaseId, lifetime_ms: u32 },
    /// The lease is over for what was sent behind `position`; what is under way is stopped.
    LeaseRevoke { lease: LeaseId, position: Position },
    /// Nothing touches the memory under the lease any more.
    LeaseRevoked { lease: LeaseId, reason: RevokedFor },
    /// What the host may send, as totals of the epoch.
    Credits(Credit),
    /// An object is wanted; `version`, if there is one, must be its version.
    Open { request: u32, access: Access, uri: Box<str>, version: Box<str> },
    /// The object.
    Opened { request: u32, object: ObjectId, length: u64, granularity: u32, version: Box<str> },
    /// What is there?
    Stat { request: u32, uri: Box<str> },
    /// That is there.
    Stated { request: u32, kind: EntryKind, length: u64, modified_ms: u64, version: Box<str> },
    /// What names are there, behind `cursor`?
    List { request: u32, entries_max: u16, uri: Box<str>, cursor: Box<str> },
    /// These; an empty cursor says that there are no more.
    Listed { request: u32, cursor: Box<str>, entries: Box<[Entry]> },
    /// The object is not needed any more.
    Close { request: u32, object: ObjectId },
    /// It is closed.
    Closed { request: u32 },
    /// The operation, the last descriptor of which is before `position`, is to be stopped. Its completion is the answer.
    Cancel { operation: OperationId, position: Position },
    /// A sign of life.
    Heartbeat { count: u64 },
    /// The sender will go: nothing new, and what is under way ends within `deadline_ms`.
    Drain { reason: u16, deadline_ms: u32 },
    /// The last word.
    Goodbye { reason: u16 },
    /// A request is refused, or, for request 0, the connection ends.
    Refused { request: u32, failure: Failure, text: Box<str> },
}

/// Yes or no, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Flag {
    /// No.
    #[default]
    Clear,
    /// Yes.
    Set,
}

impl From<bool> for Flag {
    fn from(is_set: bool) -> Self {
        if is_set { Self::Set } else { Self::Clear }
    }
}

impl Message {
    /// Its type on the wire.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 0x01,
            Self::Welcome(_) => 0x02,
            Self::Auth { .. } => 0x03,
            Self::Admitted { .. } => 0x04,
            Self::SessionOpen { .. } => 0x05,
            Self::Session { .. } => 0x06,
            Self::LeaseGrant(_) => 0x07,
            Self::LeaseHeld { .. } => 0x08,
            Self::LeaseRenew { .. } => 0x09,
            Self::LeaseRevoke { .. } => 0x0A,
            Self::LeaseRevoked { .. } => 0x0B,
            Self::Credits(_) => 0x0C,
            Self::Open { .. } => 0x0D,
            Self::Opened { .. } => 0x0E,
            Self::Stat { .. } => 0x0F,
            Self::Stated { .. } => 0x10,
            Self::List { .. } => 0x11,
            Self::Listed { .. } => 0x12,
            Self::Close { .. } => 0x13,
            Self::Closed { .. } => 0x14,
            Self::Cancel { .. } => 0x15,
            Self::Heartbeat { .. } => 0x17,
            Self::Drain { .. } => 0x18,
            Self::Goodbye { .. } => 0x19,
            Self::Refused { .. } => 0x1A,
        }
    }

    /// From the body of a frame; `None` for a type that this version does not have.
    ///
    /// # Errors
    /// A body that is too short, values outside their ranges, texts that are too long or no UTF-8, bytes that must be zero and are not,
    /// a critical field that is not known.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, Breach> {
        let mut from = Reader::new(body);
        let Some(mut message) = fixed(kind, &mut from)? else { return Ok(None) };
        while !from.is_at_end() {
            let at = from.at();
            let tag = from.u16()?;
            match (tag, &mut message) {
                (TAG_SOFTWARE, Self::Hello(hello) | Self::Welcome(hello)) => {
                    hello.software = from.text(SOFTWARE_BYTES_MAX)?;
                }
                _ if tag & TAG_CRITICAL != 0 => {
                    return Err(Breach::field(at, "a field that is not known, which is critical"));
                }
                _ => {
                    from.blob(usize::from(u16::MAX))?;
                }
            }
        }
        Ok(Some(message))
    }

    /// As the body of a frame. Texts and lists that are longer than they may be are cut; callers that need to know check before.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut to = Writer::new(out);
        match self {
            Self::Hello(hello) | Self::Welcome(hello) => encode_hello(hello, &mut to),
            Self::LeaseGrant(grant) => encode_grant(grant, &mut to),
            Self::Auth { .. } | Self::Admitted { .. } | Self::SessionOpen { .. } | Self::Session { .. } => {
                encode_session(self, &mut to);
            }
            Self::Open { .. }
            | Self::Opened { .. }
            | Self::Stat { .. }
            | Self::Stated { .. }
            | Self::List { .. }
            | Self::Listed { .. }
            | Self::Close { .. }
            | Self::Closed { .. }
            | Self::Refused { .. } => encode_request(self, &mut to),
            _ => encode_short(self, &mut to),
        }
    }
}

fn fixed(kind: u8, from: &mut Reader<'_>) -> Result<Option<Message>, Breach> {
    Ok(Some(match kind {
        0x01 => Message::Hello(decode_hello(from)?),
        0x02 => Message::Welcome(decode_hello(from)?),
        0x03..=0x06 => decode_session(kind, from)?,
        0x07 => Message::LeaseGrant(decode_grant(from)?),
        0x0D..=0x14 | 0x1A => decode_request(kind, from)?,
        0x08..=0x0C | 0x15 | 0x17..=0x19 => decode_short(kind, from)?,
        _ => return Ok(None),
    }))
}

fn decode_hello(from: &mut Reader<'_>) -> Result<Hello, Breach> {
    if from.array()? != MAGIC {
        return Err(Breach::field(0, "it does not begin with AGP"));
    }
    let (version_min, version_max) = (from.u16()?, from.u16()?);
    if version_min == 0 || version_min > version_max {
        return Err(Breach::field(4, "no range of versions"));
    }
    let (features_critical, features_optional, node, boot) = (from.u64()?, from.u64()?, from.array()?, from.u64()?);
    let (operations_max, leases_max, objects_max) = (from.u16()?, from.u16()?, from.u16()?);
    from.zero(2)?;
    let (payload_bytes_max, silence_ms, checksums) = (from.u32()?, from.u32()?, from.u32()?);
    from.zero(4)?;
    let counts = [(operations_max, OPERATIONS_MAX), (leases_max, LEASES_MAX), (objects_max, OBJECTS_MAX)];
    if counts.iter().any(|(told, most)| *told == 0 || told > most) {
        return Err(Breach::field(48, "a limit of none, or beyond that of the version"));
    }
    if !(1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes_max) {
        return Err(Breach::field(56, "payload outside the limits"));
    }
    if !SILENCE_MS.contains(&silence_ms) {
        return Err(Breach::field(60, "silence outside the limits"));
    }
    let software = Box::default();
    Ok(Hello {
        version_min,
        version_max,
        features_critical,
        features_optional,
        node,
        boot,
        operations_max,
        leases_max,
        objects_max,
        payload_bytes_max,
        silence_ms,
        checksums,
        software,
    })
}

fn encode_hello(hello: &Hello, to: &mut Writer<'_>) {
    to.bytes(&MAGIC).u16(hello.version_min).u16(hello.version_max);
    to.u64(hello.features_critical).u64(hello.features_optional).bytes(&hello.node).u64(hello.boot);
    to.u16(hello.operations_max).u16(hello.leases_max).u16(hello.objects_max).zero(2);
    to.u32(hello.payload_bytes_max).u32(hello.silence_ms).u32(hello.checksums).zero(4);
    if !hello.software.is_empty() {
        to.u16(TAG_SOFTWARE).text(&hello.software, SOFTWARE_BYTES_MAX);
    }
}

fn credit(from: &mut Reader<'_>) -> Result<Credit, Breach> {
    Ok(Credit { operations: from.u64()?, bytes: from.u64()? })
}

fn decode_session(kind: u8, from: &mut Reader<'_>) -> Result<Message, Breach> {
    Ok(match kind {
        0x03 => {
            let (kind, step) = (from.u16()?, from.u16()?);
            if step >= AUTH_STEPS_MAX {
                return Err(Breach::field(2, "more steps than there may be"));
            }
            Message::Auth { kind, step, evidence: from.blob(EVIDENCE_BYTES_MAX)?.into() }
        }
        0x04 => Message::Admitted { tenant: from.text(TENANT_BYTES_MAX)? },
        0x05 => Message::SessionOpen {
            session: SessionId(from.u32()?),
            epoch: Epoch(from.u32()?),
            boot: from.u64()?,
            key: from.array()?,
            credit: credit(from)?,
        },
        _ => {
            let (session, epoch, key) = (SessionId(from.u32()?), Epoch(from.u32()?), from.array()?);
            if session == SessionId(0) || epoch == Epoch(0) {
                return Err(Breach::field(0, "a session without a name or an epoch"));
            }
            let (credit, linger_ms, flags) = (credit(from)?, from.u32()?, from.u8()?);
            if flags & !3 != 0 {
                return Err(Breach::field(44, "a flag that is not defined"));
            }
            from.zero(3)?;
            let (resumed, settled) = (Flag::from(flags & 1 != 0), Flag::from(flags & 2 != 0));
            Message::Session { session, epoch, key, credit, linger_ms, resumed, settled }
        }
    })
}

fn encode_session(message: &Message, to: &mut Writer<'_>) {
    match message {
        Message::Auth { kind, step, evidence } => {
            to.u16(*kind).u16(*step).blob(evidence, EVIDENCE_BYTES_MAX);
        }
        Message::Admitted { tenant } => {
            to.text(tenant, TENANT_BYTES_MAX);
        }
        Message::SessionOpen { session, epoch, boot, key, credit } => {
            to.u32(session.0).u32(epoch.0).u64(*boot).bytes(key).u64(credit.operations).u64(credit.bytes);
        }
        Message::Session { session, epoch, key, credit, linger_ms, resumed, settled } => {
            to.u32(session.0).u32(epoch.0).bytes(key).u64(credit.operations).u64(credit.bytes).u32(*linger_ms);
            to.u8(u8::from(*resumed == Flag::Set) | u8::from(*settled == Flag::Set) << 1).zero(3);
        }
        _ => {}
    }
}

fn decode_grant(from: &mut Reader<'_>) -> Result<Grant, Breach> {
    let lease = some_lease(from)?;
    let access = Access::of(from.u8()?).ok_or(Breach::field(4, "the access is not defined"))?;
    let way = from.u8()?;
    from.zero(2)?;
    let (length, lifetime_ms, segment) = (from.u64()?, from.u32()?, from.u32()?);
    let (place, rkey) = (from.u64()?, from.u32()?);
    from.zero(4)?;
    let way = match (way, segment, place, rkey) {
        (1, 0, 0, 0) => Way::Frames,
        (2, segment, offset, 0) => Way::SharedMemory { segment, offset },
        (3, 0, address, rkey) => Way::Rdma { address, rkey },
        _ => return Err(Breach::field(5, "the way is not defined, or has what it cannot have")),
    };
    if !(1..=LEASE_BYTES_MAX).contains(&length) || place.checked_add(length).is_none() {
        return Err(Breach::field(8, "a window outside the limits"));
    }
    lifetime(lifetime_ms, 16)?;
    Ok(Grant { lease, access, way, length, lifetime_ms })
}

fn encode_grant(grant: &Grant, to: &mut Writer<'_>) {
    let (way, segment, place, rkey) = match grant.way {
        Way::Frames => (1, 0, 0, 0),
        Way::SharedMemory { segment, offset } => (2, segment, offset, 0),
        Way::Rdma { address, rkey } => (3, 0, address, rkey),
    };
    to.u32(grant.lease.0).u8(grant.access as u8).u8(way).zero(2).u64(grant.length).u32(grant.lifetime_ms);
    to.u32(segment).u64(place).u32(rkey).zero(4);
}

fn some_lease(from: &mut Reader<'_>) -> Result<LeaseId, Breach> {
    let (at, lease) = (from.at(), LeaseId(from.u32()?));
    if lease.is_some() { Ok(lease) } else { Err(Breach::field(at, "a lease without a name")) }
}

fn lifetime(lifetime_ms: u32, at: usize) -> Result<(), Breach> {
    if LIFETIME_MS.contains(&lifetime_ms) { Ok(()) } else { Err(Breach::field(at, "a lifetime outside the limits")) }
}

fn decode_short(kind: u8, from: &mut Reader<'_>) -> Result<Message, Breach> {
    Ok(match kind {
        0x08 => {
            let lease = some_lease(from)?;
            from.zero(4)?;
            Message::LeaseHeld { lease }
        }
        0x09 => {
            let (lease, lifetime_ms) = (some_lease(from)?, from.u32()?);
            lifetime(lifetime_ms, 4)?;
            Message::LeaseRenew { lease, lifetime_ms }
        }
        0x0A => Message::LeaseRevoke { lease: some_lease(from)?, position: Position(from.u32()?) },
        0x0B => {
            let lease = some_lease(from)?;
            let reason = match from.u8()? {
                1 => RevokedFor::Asked,
                2 => RevokedFor::Expired,
                3 => RevokedFor::Refused,
                _ => return Err(Breach::field(4, "the reason is not defined")),
            };
            from.zero(3)?;
            Message::LeaseRevoked { lease, reason }
        }
        0x0C => Message::Credits(credit(from)?),
        0x15 => {
            let operation = OperationId(from.u32()?);
            if !operation.is_some() {
                return Err(Breach::field(0, "an operation without a name"));
            }
            Message::Cancel { operation, position: Position(from.u32()?) }
        }
        0x17 => Message::Heartbeat { count: from.u64()? },
        0x18 => {
            let reason = from.u16()?;
            from.zero(2)?;
            Message::Drain { reason, deadline_ms: from.u32()? }
        }
        _ => {
            let reason = from.u16()?;
            from.zero(2)?;
            Message::Goodbye { reason }
        }
    })
}

fn encode_short(message: &Message, to: &mut Writer<'_>) {
    match message {
        Message::LeaseHeld { lease } => to.u32(lease.0).zero(4),
        Message::LeaseRenew { lease, lifetime_ms } => to.u32(lease.0).u32(*lifetime_ms),
        Message::LeaseRevoke { lease, position } => to.u32(lease.0).u32(position.0),
        Message::LeaseRevoked { lease, reason } => to.u32(lease.0).u8(*reason as u8).zero(3),
        Message::Credits(credit) => to.u64(credit.operations).u64(credit.bytes),
        Message::Cancel { operation, position } => to.u32(operation.0).u32(position.0),
        Message::Heartbeat { count } => to.u64(*count),
        Message::Drain { reason, deadline_ms } => to.u16(*reason).zero(2).u32(*deadline_ms),
        Message::Goodbye { reason } => to.u16(*reason).zero(2),
        _ => to,
    };
}

fn decode_entry_kind(from: &mut Reader<'_>) -> Result<EntryKind, Breach> {
    let at = from.at();
    match from.u8()? {
        1 => Ok(EntryKind::Object),
        2 => Ok(EntryKind::Folder),
        _ => Err(Breach::field(at, "what the name names is not defined")),
    }
}

fn decode_request(kind: u8, from: &mut Reader<'_>) -> Result<Message, Breach> {
    let request = from.u32()?;
    if request == 0 && kind != 0x1A {
        return Err(Breach::field(0, "a request without a number"));
    }
    Ok(match kind {
        0x0D => {
            let access = Access::of(from.u8()?).ok_or(Breach::field(4, "the access is not defined"))?;
            from.zero(3)?;
            Message::Open { request, access, uri: from.text(URI_BYTES_MAX)?, version: from.text(VERSION_BYTES_MAX)? }
        }
        0x0E => {
            let (object, length, granularity) = (ObjectId(from.u32()?), from.u64()?, from.u32()?);
            if !object.is_some() || !granularity.is_power_of_two() {
                return Err(Breach::field(4, "an object without a name, or of a granularity that is no power of two"));
            }
            from.zero(4)?;
            Message::Opened { request, object, length, granularity, version: from.text(VERSION_BYTES_MAX)? }
        }
        0x0F => {
            from.zero(4)?;
            Message::Stat { request, uri: from.text(URI_BYTES_MAX)? }
        }
        0x10 => {
            let kind = decode_entry_kind(from)?;
            from.zero(3)?;
            let (length, modified_ms) = (from.u64()?, from.u64()?);
            Message::Stated { request, kind, length, modified_ms, version: from.text(VERSION_BYTES_MAX)? }
        }
        0x11 => {
            let entries_max = from.u16()?;
            if !(1..=ENTRIES_MAX).contains(&entries_max) {
                return Err(Breach::field(4, "a number of entries outside the limits"));
            }
            from.zero(2)?;
            Message::List { request, entries_max, uri: from.text(URI_BYTES_MAX)?, cursor: from.text(CURSOR_BYTES_MAX)? }
        }
        0x12 => decode_listed(request, from)?,
        0x13 => {
            let object = ObjectId(from.u32()?);
            if !object.is_some() {
                return Err(Breach::field(4, "an object without a name"));
            }
            Message::Close { request, object }
        }
        0x14 => {
            from.zero(4)?;
            Message::Closed { request }
        }
        _ => {
            let (class, origin, detail) = (from.u8()?, from.u8()?, Detail(from.u8()?));
            from.zero(1)?;
            let class = Class::of(class).ok_or(Breach::field(4, "the class is not defined"))?;
            let origin = Origin::of(origin).ok_or(Breach::field(5, "the origin is not defined"))?;
            Message::Refused { request, failure: Failure { class, origin, detail }, text: from.text(TEXT_BYTES_MAX)? }
        }
    })
}

fn decode_listed(request: u32, from: &mut Reader<'_>) -> Result<Message, Breach> {
    let count = from.u16()?;
    if count > ENTRIES_MAX {
        return Err(Breach::field(4, "more entries than there may be"));
    }
    from.zero(2)?;
    let cursor = from.text(CURSOR_BYTES_MAX)?;
    // Nothing is set aside for what is only announced: an entry has 12 bytes at least, which must be there first.
    let mut entries = Vec::new();
    for _ in 0..count {
        let length = from.u64()?;
        let kind = decode_entry_kind(from)?;
        from.zero(1)?;
        entries.push(Entry { kind, length, name: from.text(NAME_BYTES_MAX)? });
    }
    Ok(Message::Listed { request, cursor, entries: entries.into() })
}

fn encode_request(message: &Message, to: &mut Writer<'_>) {
    match message {
        Message::Open { request, access, uri, version } => {
            to.u32(*request).u8(*access as u8).zero(3).text(uri, URI_BYTES_MAX).text(version, VERSION_BYTES_MAX)
        }
        Message::Opened { request, object, length, granularity, version } => {
            to.u32(*request).u32(object.0).u64(*length).u32(*granularity).zero(4).text(version, VERSION_BYTES_MAX)
        }
        Message::Stat { request, uri } => to.u32(*request).zero(4).text(uri, URI_BYTES_MAX),
        Message::Stated { request, kind, length, modified_ms, version } => {
            to.u32(*request).u8(*kind as u8).zero(3).u64(*length).u64(*modified_ms).text(version, VERSION_BYTES_MAX)
        }
        Message::List { request, entries_max, uri, cursor } => {
            to.u32(*request).u16(*entries_max).zero(2).text(uri, URI_BYTES_MAX).text(cursor, CURSOR_BYTES_MAX)
        }
        Message::Listed { request, cursor, entries } => {
            let entries = entries.get(..usize::from(ENTRIES_MAX)).unwrap_or(entries);
            to.u32(*request).u16(u16::try_from(entries.len()).unwrap_or(0)).zero(2).text(cursor, CURSOR_BYTES_MAX);
            for entry in entries {
                to.u64(entry.length).u8(entry.kind as u8).zero(1).text(&entry.name, NAME_BYTES_MAX);
            }
            to
        }
        Message::Close { request, object } => to.u32(*request).u32(object.0),
        Message::Closed { request } => to.u32(*request).zero(4),
        Message::Refused { request, failure, text } => {
            let Failure { class, origin, detail } = failure;
            to.u32(*request).u8(*class as u8).u8(*origin as u8).u8(detail.0).zero(1).text(text, TEXT_BYTES_MAX)
        }
        _ => to,
    };
}
