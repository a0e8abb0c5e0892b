//! Reading: what a file is made of is noted when it is opened, and blocks are never written twice.
//!
//! ```text
//!   open   attributes and slices of one moment ─────────────────────────┐
//!   read   spans ─► zeros │ ranges of blocks ─► bucket, folder          │ a block is gone:
//!                                                  └────────────────────┴─► both anew; other attributes: Changed
//! ```
//!
//! So what is read is the file as it was when it was opened, whatever is written to it meanwhile, for as long as its blocks are there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{Error, ErrorKind, Verb, seam::IoKind};

use super::{
    Server, Volume,
    meta::{Ask, Found},
    slices::{CHUNK_BYTES, Chunk},
};
use crate::{
    land::Landing,
    remote::{Remote, no_range_written},
};

/// Chunks whose slices are asked for at a time: 64 GiB.
const GROUP: u64 = 1024;
/// Groups that are kept: 4 TiB.
const GROUPS_MAX: usize = 64;
/// How often it is looked what a file is made of by now, for one read.
const RESOLVES_MAX: u32 = 4;

type Group = Arc<[Chunk]>;
/// A group that is kept, or that one read asks for while others wait.
type Place = Arc<tokio::sync::Mutex<Option<Group>>>;

/// A file that is open for reading.
pub(super) struct JuiceRead {
    server: Arc<Server>,
    volume: Arc<Volume>,
    name: String,
    /// Its path in the volume.
    path: String,
    found: Found,
    groups: Mutex<BTreeMap<u64, Place>>,
}

/// Chunks of a group of a file so long.
fn range(group: u64, len: u64) -> (u64, u64) {
    let first = group * GROUP;
    (first, len.div_ceil(CHUNK_BYTES).saturating_sub(first).min(GROUP))
}

impl JuiceRead {
    /// What was found by a name, with the slices of its first chunks.
    ///
    /// # Errors
    /// `NotFound` if it is gone again.
    pub(super) async fn open(
        (server, volume): (Arc<Server>, Arc<Volume>),
        (ask, path): (Ask<'_>, String),
        found: Found,
    ) -> Result<Self, Error> {
        let gone = || {
            ask.fail(ErrorKind::NotFound)
                .detail("it was removed at this moment")
                .remedy("look for the name with `straightway ls`")
        };
        let of = range(0, found.attr.len);
        let (attr, chunks) = server.meta.chunks(ask, found.inode, of).await?.ok_or_else(gone)?;
        // It may have grown since it was found: the rest is asked for when it is read.
        let groups = if attr == found.attr {
            BTreeMap::from([(0, Place::new(Some(chunks.into()).into()))])
        } else {
            BTreeMap::new()
        };
        let found = Found { attr, ..found };
        Ok(Self { server, volume, name: ask.name.to_owned(), path, found, groups: Mutex::new(groups) })
    }

    pub(super) fn found(&self) -> Found {
        self.found
    }

    fn changed(&self, verb: Verb) -> Error {
        Error::new(ErrorKind::Changed, verb)
            .at(self.name.as_str())
            .detail("the file was changed, renamed or removed since it was opened")
            .remedy("open it anew; bytes of two versions are never mixed")
    }

    /// Where a group of chunks is kept.
    fn place(&self, group: u64) -> Place {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.len() >= GROUPS_MAX && !groups.contains_key(&group) {
            groups.pop_first();
        }
        groups.entry(group).or_default().clone()
    }

    /// Asks what a group of chunks is made of.
    async fn load(&self, group: u64) -> Result<Group, Error> {
        let ask = Ask { verb: Verb::Read, name: &self.name };
        let now = self.server.meta.chunks(ask, self.found.inode, range(group, self.found.attr.len)).await?;
        let (_, chunks) = now.filter(|(attr, _)| *attr == self.found.attr).ok_or_else(|| self.changed(Verb::Read))?;
        Ok(chunks.into())
    }

    /// The slices of a chunk: those that are kept, else those that it has by now.
    async fn chunk(&self, number: u64) -> Result<(Group, usize), Error> {
        let (group, at) = (number / GROUP, sw_mem::index(number % GROUP));
        let place = self.place(group);
        let mut kept = place.lock().await;
        let chunks = match &*kept {
            Some(chunks) => chunks.clone(),
            None => kept.insert(self.load(group).await?).clone(),
        };
        Ok((chunks, at))
    }

    /// Looks what a chunk is made of by now, where a block of it is gone. Whether that is something else.
    async fn is_other_now(&self, number: u64, then: &Chunk) -> Result<bool, Error> {
        let (group, at) = (number / GROUP, sw_mem::index(number % GROUP));
        let place = self.place(group);
        let mut kept = place.lock().await;
        if kept.as_ref().is_some_and(|kept| kept.get(at) != Some(then)) {
            // Another read has looked.
            return Ok(true);
        }
        Ok(kept.insert(self.load(group).await?).get(at) != Some(then))
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        // Nothing is asked of what lies behind the end; the lane is told that the data is short.
        let end = offset.saturating_add(u64::from(landing.len())).min(self.found.attr.len);
        let mut resolves = 0;
        loop {
            let at = offset + u64::from(landing.done());
            if at >= end {
                return Ok(());
            }
            let (number, within) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
            let (group, index) = self.chunk(number).await?;
            let chunk = group.get(index).ok_or_else(|| self.changed(Verb::Read))?;
            let span = chunk.span(within, (end - at).min(CHUNK_BYTES - within));
            let word = |len: u64| u32::try_from(len).unwrap_or(u32::MAX);
            let Some((slice, from)) = span.of else {
                if landing.zeros(word(span.len)) == 0 {
                    return Ok(());
                }
                continue;
            };
            let naming = self.volume.format.naming;
            let (block, from, left) = slice.block(from, naming);
            let key = block.key(naming);
            let mut window = landing.window(word(span.len.min(left)));
            let read = self.volume.blocks()?.read((&key, block.size), from, &mut window).await;
            landing.join(&window);
            match read {
                Ok(()) if window.done() > 0 => {}
                Ok(()) => return Ok(()),
                Err(gone) if gone.kind() == ErrorKind::NotFound => {
                    resolves += 1;
                    if resolves > RESOLVES_MAX || !self.is_other_now(number, chunk).await? {
                        return Err(self.missing(&key, at, gone));
                    }
                }
                // So does S3 say of what is not there, to whoever may not list the bucket (GetObject, "Permissions").
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    resolves += 1;
                    let is_other = match self.is_other_now(number, chunk).await {
                        Err(changed) if changed.kind() == ErrorKind::Changed => return Err(changed),
                        // Where nobody says it the block's own error tells more.
                        other => other.unwrap_or(false),
                    };
                    if resolves > RESOLVES_MAX || !is_other {
                        return Err(self.unread((at, span.len.min(left)), error));
                    }
                }
                Err(error) => return Err(self.unread((at, span.len.min(left)), error)),
            }
        }
    }

    fn unread(&self, (at, len): (u64, u64), error: Error) -> Error {
        Error::new(error.kind(), Verb::Read)
            .explained_by(&error)
            .at(self.name.as_str())
            .in_range(at, len)
            .with_code(error.code())
            .caused_by(error)
    }

    fn missing(&self, key: &str, at: u64, gone: Error) -> Error {
        let place = self.volume.blocks().map(|blocks| blocks.name(key)).unwrap_or_default();
        Error::new(ErrorKind::Io, Verb::Read)
            .at(self.name.as_str())
            .in_range(at, 1)
            .with_code(gone.code())
            .detail(format!("its block {place} is not there, and the file is still made of it"))
            .remedy("wait for a client that mounts with --writeback, whose blocks come later; else look at the volume with `juicefs fsck`, and whether juicefs_bucket is the right place")
            .caused_by(gone)
    }
}

impl Remote for JuiceRead {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.get(offset, landing).boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        no_range_written(&self.name, (offset, landing), "file")
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let ask = Ask { verb: Verb::Open, name: &self.name };
            let gone = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::WrongKind | ErrorKind::Unsupported);
            let is_same = match self.server.meta.find(ask, &self.path).await {
                // Another file may have its name, and this one another name or a link of its own.
                Ok(now) => now.inode == self.found.inode && now.attr == self.found.attr,
                Err(error) if gone(error.kind()) => false,
                Err(error) => return Err(error),
            };
            if is_same { Ok(()) } else { Err(self.changed(Verb::Open)) }
        }
        .boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}
