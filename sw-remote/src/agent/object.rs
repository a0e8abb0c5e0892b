//! Objects behind an agent: open for reading, and in the making.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_agent::{
    failure::{Class, Outcome},
    host::End,
    id::ObjectId,
    wire::{Message, Opcode, descriptor::flags, message::Access},
};
use sw_engine::{
    Error, ErrorKind, Verb, WriteOutcome,
    checksum::{Algorithm, Running},
    seam::{IoKind, Names},
};

use super::{
    link::{Link, Question, Refusal, Work, Worked, lost_object},
    room::PLACE_BYTES,
    told,
};
use crate::{
    address::Address,
    intent,
    land::Landing,
    remote::{Remote, not_read, not_written},
};

/// Sessions that one read may lose.
const SESSIONS_MAX: u32 = 3;

/// As an agent numbers it, and of which generation of the link.
type Named = (ObjectId, u64);

/// One that is open for reading.
pub(super) struct Opening {
    name: String,
    uri: String,
    link: Arc<Link>,
    named: Mutex<Named>,
    /// Which it must have whenever it is opened again.
    version: Box<str>,
}

fn no_room(verb: Verb, name: &str) -> Error {
    Error::new(ErrorKind::ResourceLimit, verb).at(name.to_owned()).detail("no place is left in what the agent is lent")
}

impl Opening {
    pub(super) fn new((name, uri): (&str, String), link: Arc<Link>, named: Named, version: Box<str>) -> Self {
        Self { name: name.to_owned(), uri, link, named: Mutex::new(named), version }
    }

    /// Its name with the agent, which it is opened with anew if its session is over.
    async fn named(&self) -> Result<Named, Refusal> {
        let generation = self.link.generation();
        let known = *self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if known.1 == generation {
            return Ok(known);
        }
        let question = Question::Open(self.uri.clone(), Access::Read, self.version.to_string());
        match self.link.ask(question).await? {
            Message::Opened { object, .. } => {
                let named = (object, self.link.generation());
                *self.named.lock().unwrap_or_else(PoisonError::into_inner) = named;
                Ok(named)
            }
            _ => Err(lost_object()),
        }
    }

    async fn read_once(&self, offset: u64, length: u32) -> Result<Worked, Refusal> {
        let (object, generation) = self.named().await?;
        let slot = self.link.room.take().await;
        let (opcode, flags, checksum) = (Opcode::Read, 0, 0);
        let worked = self.link.work(Work { opcode, flags, checksum, object, generation, offset, length, slot }).await?;
        match worked.end.status {
            Ok(()) => Ok(worked),
            Err(failure) => Err(Refusal { failure, text: Box::default() }),
        }
    }

    async fn read_to(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let length = (landing.len() - landing.done()).min(PLACE_BYTES);
        let mut sessions = 0;
        let worked = loop {
            let before = self.link.generation();
            match self.read_once(offset, length).await {
                Ok(worked) => break worked,
                Err(why) => {
                    // What its session took with it is asked for in the next one.
                    let is_of_session = why.failure.detail.kind() == Some(ErrorKind::Closed)
                        || why.failure.detail.kind() == Some(ErrorKind::NotRegistered);
                    sessions += 1;
                    let known = self.named.lock().unwrap_or_else(PoisonError::into_inner).1;
                    let is_over = known != self.link.generation() || before != self.link.generation();
                    if !(is_of_session && is_over && sessions < SESSIONS_MAX) {
                        return Err(told(&why, Verb::Read, &self.name));
                    }
                }
            }
        };
        let slot = worked.slot.ok_or_else(|| no_room(Verb::Read, &self.name))?;
        let mut sum = Running::new(Algorithm::Crc32c);
        let landed = slot.visit(length, |bytes| {
            sum.update(bytes);
            landing.put(bytes)
        });
        landed.map_err(|_too_many| no_room(Verb::Read, &self.name))?;
        if sum.value() != worked.end.checksum {
            return Err(Error::new(ErrorKind::ChecksumMismatch, Verb::Read)
                .at(self.name.clone())
                .in_range(offset, length.into())
                .detail("what came is not what the agent sent"));
        }
        Ok(())
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let (object, generation) = *self.named.lock().unwrap_or_else(PoisonError::into_inner);
        self.link.close(object, generation);
    }
}

impl Remote for Opening {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.read_to(offset, landing).boxed()
    }

    fn write<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        not_written(&self.name)
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            match self.link.ask(Question::Stat(self.uri.clone())).await {
                Ok(Message::Stated { version, .. }) if version == self.version => Ok(()),
                Ok(_) => Err(Error::new(ErrorKind::Changed, Verb::Open)
                    .at(self.name.clone())
                    .detail("it is not what it was when it was opened")),
                Err(refusal) => Err(told(&refusal, Verb::Open, &self.name)),
            }
        }
        .boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

/// One in the making. It is of one session: what that loses begins anew.
pub(super) struct Making {
    name: String,
    link: Arc<Link>,
    named: Named,
    /// Its length, when that is known.
    len: Mutex<Option<u64>>,
    /// Where what was written ends.
    end: AtomicU64,
    patience: Duration,
}

impl Making {
    pub(super) fn new(name: &str, link: Arc<Link>, named: Named, len: Option<u64>, patience: Duration) -> Self {
        Self { name: name.to_owned(), link, named, len: Mutex::new(len), end: AtomicU64::new(0), patience }
    }

    fn outcome(&self, end: &End, verb: Verb) -> Result<(), Error> {
        let Err(failure) = end.status else { return Ok(()) };
        let error = told(&Refusal { failure, text: Box::default() }, verb, &self.name);
        Err(error.with_outcome(match end.outcome {
            Outcome::Applied => WriteOutcome::Applied,
            Outcome::Nothing | Outcome::NotApplied => WriteOutcome::NotApplied,
            Outcome::Unknown => WriteOutcome::Unknown,
        }))
    }

    async fn write_from(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let (object, generation) = self.named;
        let mut done = 0;
        while done < landing.len() {
            let length = (landing.len() - done).min(PLACE_BYTES);
            let slot = self.link.room.take().await.ok_or_else(|| no_room(Verb::Write, &self.name))?;
            let mut sum = Running::new(Algorithm::Crc32c);
            slot.fill(length, |bytes| {
                landing.take(bytes);
                sum.update(bytes);
            });
            let (opcode, flags, checksum, offset) =
                (Opcode::Write, flags::EXPECT, sum.value(), offset + u64::from(done));
            let slot = Some(slot);
            let work = Work { opcode, flags, checksum, object, generation, offset, length, slot };
            let worked = self.link.work(work).await;
            let worked =
                worked.map_err(|why| told(&why, Verb::Write, &self.name).with_outcome(WriteOutcome::Unknown))?;
            self.outcome(&worked.end, Verb::Write)?;
            self.end.fetch_max(offset + u64::from(length), Ordering::AcqRel);
            done += length;
        }
        Ok(())
    }

    async fn commit(&self) -> Result<(), Error> {
        let (object, generation) = self.named;
        let (opcode, flags, checksum, offset, length, slot) = (Opcode::Commit, 0, 0, 0, 0, None);
        let work = Work { opcode, flags, checksum, object, generation, offset, length, slot };
        let worked = self.link.work(work).await.map_err(|why| {
            // It was refused before it was sent, or nobody knows.
            let outcome =
                if why.failure.class == Class::Caller { WriteOutcome::NotApplied } else { WriteOutcome::Unknown };
            told(&why, Verb::Create, &self.name).with_outcome(outcome)
        })?;
        self.outcome(&worked.end, Verb::Create)
    }
}

impl Remote for Making {
    fn read<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        match self.name.parse::<Address>() {
            Ok(at) => not_read(&at),
            Err(_) => futures_util::future::ready(Err(Error::new(ErrorKind::Unsupported, Verb::Read))).boxed(),
        }
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.write_from(offset, landing).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    /// What is in the making lasts when it is committed.
    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

impl intent::Making for Making {
    fn cut(&self, len: u64) -> Result<(), Error> {
        *self.len.lock().unwrap_or_else(PoisonError::into_inner) = Some(len);
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        let (written, len) =
            (self.end.load(Ordering::Acquire), *self.len.lock().unwrap_or_else(PoisonError::into_inner));
        if len.is_some_and(|len| len != written) {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Create)
                .at(self.name.clone())
                .detail(format!("it ends where what was written ends, at byte {written}"))
                .remedy("write all bytes of it, and no more"));
        }
        Ok(self.patience + Duration::from_secs(1))
    }

    fn finish(&self, _names: Names) -> BoxFuture<'_, Result<(), Error>> {
        self.commit().boxed()
    }

    fn outcome(&self, _error: &Error) -> Option<WriteOutcome> {
        Some(WriteOutcome::Unknown)
    }

    fn leaves(&self) -> Option<Duration> {
        Some(Duration::from_secs(2).min(self.patience))
    }

    fn abandon(&self) -> BoxFuture<'_, ()> {
        async {
            if self.named.1 == self.link.generation() {
                let _ = self.link.ask(Question::Close(self.named.0)).await;
            }
        }
        .boxed()
    }
}
