//! Reading: each answer tells what the file is by now, and that is looked at before its bytes are let in.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use nfs3_types::nfs3::{NFS_PROGRAM, READ3args, nfs_fh3};
use sw_engine::{Error, ErrorKind, Verb, seam::IoKind};
use tokio::sync::RwLock;

use super::{
    connection::{Connection, Incoming, Lost},
    fault::{self, Refusal},
    message::Message,
    mounts::Found,
    reply::{FATTR_BYTES, Facts, VERIFIER_MAX},
    server::{At, Server, Tries},
    wire::Wire,
};
use crate::{
    land::Landing,
    remote::{Remote, no_range_written},
};

/// A file that is open for reading.
pub(super) struct NfsRead {
    server: Arc<Server>,
    name: String,
    path: String,
    found: Found,
    /// Another one after a server came back with others.
    handle: RwLock<nfs_fh3>,
}

/// What came of one READ.
enum Came {
    /// So many bytes landed; whether the file ends behind them; whether the file was told about.
    Bytes(u32, bool, Option<Facts>),
    Status(u32),
    Refused(Refusal),
    /// It is another one than was opened; nothing landed.
    Other,
    /// The answer is none: what is wrong with it.
    Lie(&'static str),
}

impl NfsRead {
    pub(super) fn new(server: Arc<Server>, name: String, path: String, found: Found) -> Self {
        let handle = RwLock::new(found.handle.clone());
        Self { server, name, path, found, handle }
    }

    fn changed(&self, range: (u64, u64), verb: Verb) -> Error {
        Error::new(ErrorKind::Changed, verb)
            .at(self.name.as_str())
            .in_range(range.0, range.1)
            .detail("the file was changed or replaced since it was opened")
            .remedy("open it anew; bytes of two versions are never mixed")
    }

    fn lie(&self, text: &'static str) -> Error {
        Error::new(ErrorKind::Protocol, Verb::Read).at(self.name.as_str()).detail(text).remedy("look at the server")
    }

    /// Looks whether the file has another handle by now, and takes it if it is the same file still.
    async fn again(&self, at: &At<'_>, range: (u64, u64), stale: &nfs_fh3) -> Result<(), Error> {
        let mut handle = self.handle.write().await;
        if *handle != *stale {
            return Ok(());
        }
        let gone = || self.changed(range, at.verb).with_code(i32::try_from(fault::STALE).unwrap_or(0));
        // Where its name leads nowhere it was removed.
        let now = self.server.find(at, &self.path).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::Changed => gone(),
            _ => error,
        })?;
        if now.facts != self.found.facts || now.handle == *stale {
            return Err(gone());
        }
        *handle = now.handle;
        Ok(())
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let whole = self.found.facts;
        // Nothing is asked of what lies behind the end; the lane is told that the data is short.
        let end = offset.saturating_add(u64::from(landing.len())).min(whole.len);
        let range = (offset, end.saturating_sub(offset));
        let mut at = At { verb: Verb::Read, name: &self.name, until: self.server.until() };
        let (mut tries, mut moved) = (Tries::until(at.until), 0);
        loop {
            let from = offset + u64::from(landing.done());
            if from >= end {
                return Ok(());
            }
            if landing.done() > moved {
                moved = landing.done();
                at.until = self.server.until();
                tries = Tries::until(at.until);
            }
            let want = u32::try_from(end - from).unwrap_or(u32::MAX).min(self.found.root.read_bytes);
            let handle = self.handle.read().await.clone();
            match self.once((from, want), &handle, landing, &at).await {
                Ok(Came::Bytes(count, is_end, facts)) => {
                    if facts.is_none() {
                        // Not said with the bytes: asked behind them.
                        self.check(&at, range).await?;
                    }
                    if (count == 0 || is_end) && from + u64::from(count) < end {
                        return Err(self.lie("the server ends the file before the length that it tells"));
                    }
                }
                Ok(Came::Other) => return Err(self.changed(range, Verb::Read)),
                Ok(Came::Lie(text)) => return Err(self.lie(text)),
                Ok(Came::Refused(refusal)) => return Err(fault::refused(refusal, Verb::Read, &self.name)),
                Ok(Came::Status(fault::JUKEBOX)) if tries.again().await => {}
                Ok(Came::Status(status)) if fault::is_stale(status) => self.again(&at, range, &handle).await?,
                Ok(Came::Status(status)) => return Err(at.said(status).in_range(range.0, range.1)),
                Err(lost) if lost.is_lie() || !tries.again().await => {
                    return Err(fault::lost(lost, Verb::Read, &self.name).in_range(range.0, range.1));
                }
                Err(_lost) => {}
            }
        }
    }

    async fn once(
        &self,
        (offset, count): (u64, u32),
        file: &nfs_fh3,
        landing: &mut Landing,
        at: &At<'_>,
    ) -> Result<Came, Lost> {
        let asked = READ3args { file: file.clone(), offset, count };
        let message = Message::new(&self.server.credential, NFS_PROGRAM::NFSPROC3_READ, &asked);
        let (connection, mut incoming) = self.server.stream(&message, at.until).await?;
        let came = self.land(&mut incoming, count, landing).await;
        // Before its bytes go on to others.
        let came = self.settle(&connection, came);
        drop(incoming);
        came
    }

    /// A connection whose bytes cannot be told apart any more is not used further.
    fn settle(&self, connection: &Connection, came: std::io::Result<Came>) -> Result<Came, Lost> {
        came.map_err(|error| {
            let lost = Lost::from(error);
            connection.give_up(&lost);
            lost
        })
    }

    /// Takes the answer to a READ of `asked` bytes (RFC 1813 §3.3.6).
    async fn land(&self, incoming: &mut Incoming, asked: u32, landing: &mut Landing) -> std::io::Result<Came> {
        let wire = incoming.wire()?;
        if let Some(refusal) = taken(wire).await? {
            return Ok(Came::Refused(refusal));
        }
        let status = wire.u32().await?;
        if status != 0 {
            return Ok(Came::Status(status));
        }
        let facts = match wire.u32().await? {
            0 => None,
            1 => {
                let mut bytes = [0; FATTR_BYTES];
                wire.take(&mut bytes).await?;
                let Ok(facts) = Facts::of(&bytes) else {
                    return Ok(Came::Lie("the server tells attributes that are none"));
                };
                Some(facts)
            }
            _ => return Ok(Came::Lie("the server's answer does not follow NFS version 3")),
        };
        if facts.is_some_and(|facts| facts != self.found.facts) {
            return Ok(Came::Other);
        }
        let (count, is_end, len) = (wire.u32().await?, wire.u32().await?, wire.u32().await?);
        if count != len || len > asked || is_end > 1 {
            return Ok(Came::Lie("the server answers with other bytes than were asked for"));
        }
        wire.land(landing, sw_mem::index(u64::from(len))).await?;
        Ok(Came::Bytes(len, is_end == 1, facts))
    }

    async fn check(&self, at: &At<'_>, range: (u64, u64)) -> Result<(), Error> {
        let handle = self.handle.read().await.clone();
        match self.server.facts(at, &handle).await {
            Ok(now) if now == self.found.facts => Ok(()),
            Ok(_) => Err(self.changed(range, at.verb)),
            Err(error) if error.kind() == ErrorKind::Changed => self.again(at, range, &handle).await,
            Err(error) => Err(error),
        }
    }
}

/// The head of an answer: whether the call was taken.
async fn taken(wire: &mut Wire) -> std::io::Result<Option<Refusal>> {
    if wire.u32().await? != 0 {
        let why = wire.u32().await?;
        return Ok(Some(Refusal::Denied(if why == 1 { wire.u32().await? } else { 0 })));
    }
    wire.u32().await?;
    let len = sw_mem::index(u64::from(wire.u32().await?));
    if len > VERIFIER_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "an answer's verifier is longer than any"));
    }
    wire.skip(len.next_multiple_of(4)).await?;
    let status = wire.u32().await?;
    Ok((status != 0).then_some(Refusal::NotTaken(status)))
}

impl Remote for NfsRead {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.get(offset, landing).boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        no_range_written(&self.name, (offset, landing), "file")
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let at = At { verb: Verb::Open, name: &self.name, until: self.server.until() };
            self.check(&at, (0, self.found.facts.len)).await
        }
        .boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}
