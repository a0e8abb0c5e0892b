//! What workers do: open, list, read and write by the engine.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use sw_agent::{
    agent::{Ending, Facts},
    failure::{Class, Detail, Failure, Origin, Outcome},
    limits::{NAME_BYTES_MAX, TEXT_BYTES_MAX},
    wire::{
        ChecksumKind, Message, Opcode, Path,
        descriptor::flags,
        message::{Access, Entry as Listed, EntryKind as ListedKind, Way},
    },
};
use sw_engine::{Error, ErrorKind, Retry, Verb, Version, WriteOutcome, checksum::Algorithm};
use sw_mem::ByteLen;

use super::core::{Job, Opened, Running, Shared};
use crate::{Completed, Destination, Entry, EntryKind, Memory, Uri};

/// Bytes of names in one LISTED, at most: a message has 65,536.
const LISTED_BYTES_MAX: usize = 48 << 10;

type Refused = (Failure, Box<str>);

pub(super) fn run(shared: &Arc<Shared>) {
    while let Some(job) = shared.next() {
        match job {
            Job::Open(whose, access, uri, version) => {
                shared.opened(whose, access, open(shared, access, &uri, &version).map_err(|error| refused(&error)));
            }
            Job::Ask(session, epoch, question) => {
                let (request, answer) = match &question {
                    Message::Stat { request, uri } => (*request, stat(shared, *request, uri)),
                    Message::List { request, entries_max, uri, cursor } => {
                        (*request, list(shared, *request, (uri, cursor), usize::from(*entries_max)))
                    }
                    _ => continue,
                };
                shared.answer((session, epoch, request), answer.map_err(|error| refused(&error)));
            }
            Job::Operation(running) => operate(shared, &running),
            Job::Close(object) => drop(object),
        }
    }
}

/// An error as it goes to a host.
fn refused(error: &Error) -> Refused {
    let mut text = error.to_string().replace(char::is_control, " ");
    while text.len() > TEXT_BYTES_MAX {
        text.pop();
    }
    (failure(error), text.into())
}

fn failure(error: &Error) -> Failure {
    let class = match (error.kind(), error.retry()) {
        (ErrorKind::ChecksumMismatch | ErrorKind::Changed | ErrorKind::ShortData, _) => Class::Integrity,
        (_, Retry::AfterFence) => Class::RetryAfterFence,
        (_, Retry::Never) => Class::Caller,
        _ => Class::RetryNow,
    };
    Failure { class, origin: Origin::Storage, detail: Detail::of(error.kind()) }
}

/// An address that hosts may have: whole, without steps up, below one of those that are allowed, and no agent's.
fn allowed(shared: &Shared, text: &str, verb: Verb) -> Result<Uri, Error> {
    let denied = |detail: &'static str| Err(Error::new(ErrorKind::PermissionDenied, verb).at(text).detail(detail));
    let Some((scheme, path)) = text.split_once("://") else { return denied("an address without a scheme") };
    if scheme == "agp" || path.split('/').any(|part| matches!(part, "." | "..")) {
        return denied("an address with steps in it, or of another agent");
    }
    let is_below = |prefix: &String| {
        text.strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
    };
    if !shared.allow.is_empty() && !shared.allow.iter().any(is_below) {
        return denied("the agent does not open this");
    }
    text.parse()
}

fn words(version: Version) -> Box<str> {
    let Version { identity, stamp } = version;
    format!("{:x}.{:x}.{:x}", identity.0, identity.1, stamp.cast_unsigned()).into()
}

fn open(shared: &Shared, access: Access, text: &str, version: &str) -> Result<(Facts, Arc<Opened>), Error> {
    let uri = allowed(shared, text, Verb::Open)?;
    if access == Access::Read {
        let object = shared.engine.open(&uri)?;
        let now = words(object.version());
        if !version.is_empty() && *version != *now {
            return Err(Error::new(ErrorKind::Changed, Verb::Open).at(text).detail("it has another version by now"));
        }
        let facts = Facts { length: object.len(), granularity: 1, version: now };
        return Ok((facts, Arc::new(Opened::Reading(object))));
    }
    if access == Access::ReadWrite {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Open).at(text).detail("agents write nothing in place"));
    }
    let making = shared.engine.create_open(&uri)?;
    let object = making.object().clone();
    let facts = Facts { length: 0, granularity: 1, version: Box::default() };
    Ok((facts, Arc::new(Opened::Making(Mutex::new((Some(making), 0)), object))))
}

fn listed_kind(kind: EntryKind) -> ListedKind {
    if kind == EntryKind::Directory { ListedKind::Folder } else { ListedKind::Object }
}

fn stat(shared: &Shared, request: u32, text: &str) -> Result<Message, Error> {
    let entry = shared.engine.stat(&allowed(shared, text, Verb::Open)?)?;
    let modified_ms = u64::try_from(entry.version.stamp / 1_000_000).unwrap_or_default();
    let (kind, length, version) = (listed_kind(entry.kind), entry.len, words(entry.version));
    Ok(Message::Stated { request, kind, length, modified_ms, version })
}

fn list(shared: &Shared, request: u32, (text, cursor): (&str, &str), most: usize) -> Result<Message, Error> {
    let all = shared.engine.list(&allowed(shared, text, Verb::List)?)?;
    let name = |entry: &Entry| {
        let name = entry.name.trim_end_matches('/');
        name.rsplit('/').next().unwrap_or(name).to_owned()
    };
    // An object lists as itself.
    let is_itself =
        |entry: &Entry| entry.kind != EntryKind::Directory && text.ends_with(entry.name.trim_start_matches("file://"));
    if let [one] = all.as_slice()
        && is_itself(one)
    {
        let entries = [Listed { kind: listed_kind(one.kind), length: one.len, name: Box::default() }].into();
        return Ok(Message::Listed { request, cursor: Box::default(), entries });
    }
    let mut names: Vec<_> = all.iter().map(|entry| (name(entry), entry)).collect();
    names.retain(|(name, _)| name.len() <= NAME_BYTES_MAX && !name.contains(char::is_control));
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut page, mut bytes, mut next) = (Vec::new(), 0, String::new());
    let rest = names.iter().filter(|(name, _)| cursor.is_empty() || name.as_str() > cursor);
    for (name, entry) in rest {
        if page.len() >= most || bytes + name.len() + 16 > LISTED_BYTES_MAX {
            next = page.last().map(|last: &Listed| last.name.to_string()).unwrap_or_default();
            break;
        }
        bytes += name.len() + 16;
        page.push(Listed { kind: listed_kind(entry.kind), length: entry.len, name: name.as_str().into() });
    }
    Ok(Message::Listed { request, cursor: next.into(), entries: page.into() })
}

fn algorithm(kind: ChecksumKind) -> Option<Algorithm> {
    match kind {
        ChecksumKind::None => None,
        ChecksumKind::Crc32c => Some(Algorithm::Crc32c),
        ChecksumKind::Crc64Nvme => Some(Algorithm::Crc64Nvme),
    }
}

/// How an operation ended without success.
fn failed(running: &Running, failure: Failure, outcome: Outcome) -> Ending {
    let outcome = if running.descriptor.opcode.changes() { outcome } else { Outcome::Nothing };
    Ending { status: Err(failure), outcome, bytes: 0, checksum: 0, path: Path::default() }
}

fn outcome_of(error: &Error) -> Outcome {
    match error.outcome() {
        Some(WriteOutcome::Applied) => Outcome::Applied,
        Some(WriteOutcome::NotApplied) => Outcome::NotApplied,
        // What is in the making is nothing yet, whatever became of its bytes.
        Some(WriteOutcome::Unknown) | None => Outcome::NotApplied,
    }
}

fn operate(shared: &Shared, running: &Arc<Running>) {
    let is_aborted = running.aborted.load(Ordering::Acquire);
    let ending = match (running.descriptor.opcode, running.object.as_deref()) {
        _ if is_aborted => failed(running, Failure::caller(ErrorKind::Cancelled), Outcome::NotApplied),
        (Opcode::Read, Some(Opened::Reading(object))) => match read(shared, running, object) {
            Ok(Some(ending)) => ending,
            // It ends when its bytes are sent.
            Ok(None) => return,
            Err(error) => failed(running, failure(&error), Outcome::Nothing),
        },
        (Opcode::Write, Some(Opened::Making(state, object))) => match write(shared, running, object) {
            Ok(ending) => {
                let end = running.descriptor.object_offset + u64::from(running.descriptor.length);
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.1 = state.1.max(end);
                ending
            }
            Err(error) => failed(running, failure(&error), outcome_of(&error)),
        },
        (Opcode::Commit, Some(Opened::Making(state, _))) => {
            let taken = {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                (state.0.take(), state.1)
            };
            match taken {
                (Some(making), end) => match making.commit(end) {
                    Ok(()) => applied(0, 0),
                    Err(error) => {
                        let outcome = match error.outcome() {
                            Some(WriteOutcome::NotApplied) => Outcome::NotApplied,
                            Some(WriteOutcome::Applied) => Outcome::Applied,
                            Some(WriteOutcome::Unknown) | None => Outcome::Unknown,
                        };
                        failed(running, failure(&error), outcome)
                    }
                },
                (None, _) => failed(running, Failure::caller(ErrorKind::Closed), Outcome::NotApplied),
            }
        }
        (Opcode::Flush | Opcode::Prefetch, Some(_)) => applied(0, 0),
        _ => failed(running, Failure::caller(ErrorKind::WrongKind), Outcome::NotApplied),
    };
    let ending = match running.descriptor.opcode {
        Opcode::Prefetch if ending.status.is_ok() => Ending { outcome: Outcome::Nothing, ..ending },
        _ => ending,
    };
    shared.ended(running.key, ending);
}

fn applied(bytes: u32, checksum: u64) -> Ending {
    Ending { status: Ok(()), outcome: Outcome::Applied, bytes, checksum, path: Path::default() }
}

fn late(running: &Running) -> Duration {
    Duration::from_micros(u64::from(running.descriptor.deadline_us))
}

/// The memory of an operation in the host's segment.
fn lent(shared: &Shared, running: &Running, verb: Verb) -> Result<Option<Memory>, Error> {
    let Some(segment) = &running.segment else { return Ok(None) };
    let stopped = || Error::new(ErrorKind::Cancelled, verb).at("agent").detail("the operation is being stopped");
    let len = running.descriptor.length;
    let touch = shared.touch(running.key, 0, len).ok_or_else(stopped)?;
    let Way::SharedMemory { segment: 0, offset } = touch.way else { return Err(stopped()) };
    let at = offset.checked_add(touch.offset).ok_or_else(stopped)?;
    // A host may lease more than it has.
    let span = segment.span(at, ByteLen(u64::from(len))).map_err(|error| {
        Error::new(ErrorKind::OutOfRange, verb)
            .at("agent")
            .detail("a lease past the end of its segment")
            .caused_by(error)
    })?;
    Ok(Some(Memory { span }))
}

fn read(shared: &Shared, running: &Arc<Running>, object: &crate::Object) -> Result<Option<Ending>, Error> {
    let descriptor = &running.descriptor;
    let len = descriptor.length;
    let lent = lent(shared, running, Verb::Read)?;
    let is_framed = lent.is_none();
    let memory = match lent {
        Some(memory) => memory,
        None => shared.engine.allocate(Destination::Host, u64::from(len), descriptor.object_offset)?,
    };
    let mut request = shared.engine.read(object, descriptor.object_offset, memory).deadline(late(running));
    if let Some(algorithm) = algorithm(descriptor.checksum_kind) {
        request = request.checksum(algorithm);
    }
    let completed: Completed = request.wait().ok()?;
    let checksum = completed.checksum.unwrap_or_default();
    let path = Path {
        transport: 0,
        landing: Some(completed.path.route.landing),
        copies: u8::from(is_framed),
        bounced_bytes: if is_framed { len } else { u32::try_from(completed.path.bounced).unwrap_or(len).min(len) },
    };
    if descriptor.flags & flags::EXPECT != 0 && checksum != descriptor.checksum {
        let wrong = Failure::new(Class::Integrity, Origin::Storage, ErrorKind::ChecksumMismatch);
        return Ok(Some(failed(running, wrong, Outcome::Nothing)));
    }
    let ending = Ending { status: Ok(()), outcome: Outcome::Nothing, bytes: len, checksum, path };
    if !is_framed {
        return Ok(Some(ending));
    }
    if let Some(memory) = completed.into_memory() {
        shared.send_payload(running, memory, ending);
        return Ok(None);
    }
    Err(Error::new(ErrorKind::Poisoned, Verb::Read).at("agent").detail("the memory of a read did not come back"))
}

/// Captured first, then compared, then written: what the host does with its memory meanwhile changes nothing.
fn write(shared: &Shared, running: &Running, object: &crate::Object) -> Result<Ending, Error> {
    let descriptor = &running.descriptor;
    let captured = shared.engine.allocate(Destination::Host, u64::from(descriptor.length), descriptor.object_offset)?;
    match lent(shared, running, Verb::Write)? {
        Some(memory) => captured.copy_from(0, &memory, 0, u64::from(descriptor.length))?,
        None => {
            let payload = std::mem::take(&mut *running.payload.lock().unwrap_or_else(PoisonError::into_inner));
            let written = captured.span.write(0, &payload);
            written.map_err(|error| Error::new(ErrorKind::OutOfRange, Verb::Write).at("agent").caused_by(error))?;
        }
    }
    let mut checksum = 0;
    if let Some(algorithm) = algorithm(descriptor.checksum_kind) {
        let mut sum = sw_engine::checksum::Running::new(algorithm);
        captured.visit(0, u64::from(descriptor.length), |bytes| sum.update(bytes))?;
        checksum = sum.value();
    }
    if descriptor.flags & flags::EXPECT != 0 && checksum != descriptor.checksum {
        let wrong = Error::new(ErrorKind::ChecksumMismatch, Verb::Write).at(object.name().to_owned());
        return Err(wrong.detail("what came is not what the host sent").with_outcome(WriteOutcome::NotApplied));
    }
    shared.engine.write(object, descriptor.object_offset, captured).deadline(late(running)).wait().ok()?;
    Ok(applied(descriptor.length, checksum))
}
