//! Writing: to a temporary name beside the last one, in pieces that are kept here until the server has them in stable storage.
//!
//! ```text
//!   write ─► WRITE (unstable) ─► kept ─ enough of them, or commit ─► COMMIT: is the verifier that of each piece?
//!                                                                      yes: let go      no: the server lost it; written again, stable
//!   commit ─► COMMIT ─► length ─► RENAME over the last name ─ answer lost ─► whose file has the name?
//! ```
//! RFC 1813 §4.8 "Stable versus unstable writes".

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use nfs3_types::nfs3::{
    COMMIT3args, CREATE3args, FSSTAT3args, NFS_PROGRAM, REMOVE3args, RENAME3args, SETATTR3args, createhow3,
    createverf3, diropargs3, ftype3, nfs_fh3, sattr3, sattrguard3, set_atime, set_mode3, set_mtime, set_size3,
    stable_how,
};
use sw_engine::{Error, ErrorKind, Verb, WriteOutcome, seam::IoKind};

use super::{
    fault,
    message::Message,
    mounts::{Found, Root},
    random_u64,
    reply::{Facts, Reply},
    server::{Asked, At, Server},
};
use crate::{land::Landing, remote::Remote};

/// No length yet.
pub(super) const OPEN: u64 = u64::MAX;
/// Bytes of one file that are kept for the server to lose, at most; and those of all files of a server.
const KEPT_MAX: (u64, u64) = (32 << 20, 256 << 20);
/// What everybody may do with a new file: as most programs have it.
const MODE: u32 = 0o644;
/// Bytes of the last name that a temporary one has: the rest of its 255 are ours.
const LEAF_MAX: usize = 200;
/// Temporary names that are tried.
const NAMES_MAX: u32 = 3;
const NOTSUPP: u32 = 10004;
const EXIST: u32 = 17;

/// A piece that the server may lose.
#[derive(Clone)]
struct Piece {
    number: u64,
    offset: u64,
    bytes: Bytes,
    /// That of the server which took it.
    verifier: [u8; 8],
}

#[derive(Default)]
struct Kept {
    next: u64,
    pieces: Vec<Piece>,
}

/// A file in the making.
pub(super) struct NfsWrite {
    server: Arc<Server>,
    pub(super) name: String,
    root: Arc<Root>,
    dir: nfs_fh3,
    leaf: String,
    temporary: String,
    file: nfs_fh3,
    facts: Facts,
    pub(super) len: AtomicU64,
    kept: Mutex<Kept>,
    /// One commit at a time.
    settling: tokio::sync::Mutex<()>,
    /// Held shared by writes, and alone by who writes what was lost again: old bytes never come behind newer ones of the same place.
    order: tokio::sync::RwLock<()>,
}

/// A name that hides, for as long as it is not the last one.
fn temporary(leaf: &str) -> String {
    let mut end = leaf.len().min(LEAF_MAX);
    while !leaf.is_char_boundary(end) {
        end -= 1;
    }
    format!(".{}.straightway-{:016x}", leaf.get(..end).unwrap_or_default(), random_u64())
}

fn in_dir<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 { dir: dir.clone(), name: name.as_bytes().into() }
}

impl NfsWrite {
    /// Makes one in a directory, under a name that nobody else has.
    pub(super) async fn create(
        server: Arc<Server>,
        at: &At<'_>,
        (dir, leaf): (Found, &str),
        len: Option<u64>,
    ) -> Result<Self, Error> {
        if dir.facts.kind != ftype3::NF3DIR {
            return Err(at
                .fail(ErrorKind::WrongKind)
                .detail("what it is to lie in is no directory")
                .remedy("name a directory"));
        }
        match server.look_up(at, &dir.handle, leaf).await {
            Ok((_, facts)) if facts.kind == ftype3::NF3DIR => {
                return Err(at
                    .fail(ErrorKind::WrongKind)
                    .detail("a directory has that name")
                    .remedy("name a file in it"));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        room_for(&server, at, &dir.handle, len.unwrap_or(0)).await?;
        let (temporary, file) = exclusive(&server, at, &dir.handle, leaf).await?;
        let new = sattr3 {
            mode: set_mode3::Some(MODE),
            // The times hold the word by which an exclusive file is known.
            atime: set_atime::SET_TO_SERVER_TIME,
            mtime: set_mtime::SET_TO_SERVER_TIME,
            ..sattr3::default()
        };
        set(&server, at, &file, new).await?;
        let facts = server.facts(at, &file).await?;
        Ok(Self {
            server,
            name: at.name.to_owned(),
            root: dir.root,
            dir: dir.handle,
            leaf: leaf.to_owned(),
            temporary,
            file,
            facts,
            len: len.unwrap_or(OPEN).into(),
            kept: Mutex::default(),
            settling: tokio::sync::Mutex::default(),
            order: tokio::sync::RwLock::default(),
        })
    }

    fn at(&self, verb: Verb) -> At<'_> {
        At { verb, name: &self.name, until: self.server.until() }
    }

    /// One WRITE; how many bytes the server took, and its verifier if it may lose them.
    async fn send(
        &self,
        at: &At<'_>,
        offset: u64,
        how: stable_how,
        bytes: &Bytes,
    ) -> Result<(usize, Option<[u8; 8]>), Error> {
        let message = Message::write(&self.server.credential, (&self.file, offset), how, bytes.clone());
        let mut reply = self.server.nfs(at, message).await?.good(at)?;
        let mut told = || {
            reply.change()?;
            Ok((reply.u32()?, reply.u32()?, reply.bytes::<8>()?))
        };
        let (count, committed, verifier) = told().map_err(|garbled| at.garbled(garbled))?;
        let count = sw_mem::index(u64::from(count));
        if count == 0 || count > bytes.len() {
            let text = format!("the server says that it took {count} of {} bytes", bytes.len());
            return Err(at.fail(ErrorKind::Protocol).detail(text).remedy("look at the server"));
        }
        Ok((count, (committed == 0).then_some(verifier)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, offset: u64, bytes: Bytes, verifier: [u8; 8]) {
        self.server.kept.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut kept = self.lock();
        let number = kept.next;
        kept.next += 1;
        kept.pieces.push(Piece { number, offset, bytes, verifier });
    }

    fn let_go(&self, which: impl Fn(&Piece) -> bool) {
        let gone: u64 =
            self.lock().pieces.extract_if(.., |piece| which(piece)).map(|piece| piece.bytes.len() as u64).sum();
        self.server.kept.fetch_sub(gone, Ordering::Relaxed);
    }

    /// Writes bytes, whatever the server takes at a time.
    async fn send_all(&self, at: &At<'_>, offset: u64, how: stable_how, bytes: &Bytes) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            let piece = bytes.slice(done..);
            let from = offset + done as u64;
            let (count, verifier) = self.send(at, from, how, &piece).await?;
            if let Some(verifier) = verifier {
                if how != stable_how::UNSTABLE {
                    let text = "the server does not keep what it was asked to keep (WRITE, FILE_SYNC)";
                    return Err(at.fail(ErrorKind::Protocol).detail(text).remedy("look at the server"));
                }
                self.keep(from, piece.slice(..count), verifier);
            }
            done += count;
        }
        Ok(())
    }

    async fn put(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let end = offset.checked_add(landing.len().into()).filter(|end| *end <= self.len.load(Ordering::Acquire));
        let range = (offset, u64::from(landing.len()));
        let end = end.ok_or_else(|| {
            let text = format!("the file is to have {} bytes", self.len.load(Ordering::Acquire));
            Error::new(ErrorKind::OutOfRange, Verb::Write)
                .at(self.name.as_str())
                .in_range(range.0, range.1)
                .detail(text)
        })?;
        let (mut from, most) = (offset, u64::from(self.root.write_bytes));
        while from < end {
            let mut bytes = vec![0; sw_mem::index((end - from).min(most))];
            landing.take(&mut bytes);
            let len = bytes.len() as u64;
            let at = self.at(Verb::Write);
            let writing = self.order.read().await;
            let sent = self.send_all(&at, from, stable_how::UNSTABLE, &bytes.into()).await;
            drop(writing);
            sent.map_err(|error| error.in_range(range.0, range.1))?;
            from += len;
        }
        let mine: u64 = self.lock().pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
        if mine > KEPT_MAX.0 || self.server.kept.load(Ordering::Relaxed) > KEPT_MAX.1 {
            self.settle(Verb::Write).await?;
        }
        Ok(())
    }

    /// Lets the server put all that is kept into stable storage; what it lost is written again.
    async fn settle(&self, verb: Verb) -> Result<(), Error> {
        let _one_at_a_time = self.settling.lock().await;
        let pieces = self.lock().pieces.clone();
        if pieces.is_empty() {
            return Ok(());
        }
        let at = self.at(verb);
        let asked = COMMIT3args { file: self.file.clone(), offset: 0, count: 0 };
        let mut reply = self.server.call(&at, NFS_PROGRAM::NFSPROC3_COMMIT, &asked).await?.good(&at)?;
        let verifier = reply.change().and_then(|_| reply.bytes::<8>()).map_err(|garbled| at.garbled(garbled))?;
        if pieces.iter().all(|piece| piece.verifier == verifier) {
            let last = pieces.last().map_or(0, |piece| piece.number);
            self.let_go(|piece| piece.number <= last);
            return Ok(());
        }
        let _alone = self.order.write().await;
        let (pieces, mut again) = (self.lock().pieces.clone(), 0);
        // All of them, as they came: what was written over each other ends as it was.
        for piece in pieces {
            self.send_all(&self.at(verb), piece.offset, stable_how::FILE_SYNC, &piece.bytes).await?;
            self.let_go(|kept| kept.number == piece.number);
            again += piece.bytes.len();
        }
        tracing::warn!(file = %self.name, bytes = again, "the server lost what was not stable yet; it was written again");
        Ok(())
    }

    /// Makes it whole, under its last name.
    pub(super) async fn finish(&self) -> Result<(), Error> {
        let len = self.len.load(Ordering::Acquire);
        if len == OPEN {
            let error = Error::new(ErrorKind::ApiMisuse, Verb::Create).at(self.name.as_str());
            return Err(error.detail("its length was not said before it is committed"));
        }
        self.whole(len).await.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        self.rename().await
    }

    async fn whole(&self, len: u64) -> Result<(), Error> {
        self.settle(Verb::Create).await?;
        let at = self.at(Verb::Create);
        if self.server.facts(&at, &self.file).await?.len != len {
            // Zeros are what was not written; what was written behind the end goes.
            set(&self.server, &at, &self.file, sattr3 { size: set_size3::Some(len), ..sattr3::default() }).await?;
        }
        let has = self.server.facts(&at, &self.file).await?.len;
        if has != len {
            let text = format!("the server has {has} bytes of it instead of {len}");
            return Err(at.fail(ErrorKind::ShortData).detail(text).remedy("write it again"));
        }
        Ok(())
    }

    async fn rename(&self) -> Result<(), Error> {
        let at = self.at(Verb::Create);
        let asked = RENAME3args { from: in_dir(&self.dir, &self.temporary), to: in_dir(&self.dir, &self.leaf) };
        let error = match self.server.call(&at, NFS_PROGRAM::NFSPROC3_RENAME, &asked).await {
            Ok(answer) if answer.status == 0 => return Ok(()),
            Ok(answer) if answer.asked == Asked::Once => {
                return Err(at.said(answer.status).with_outcome(WriteOutcome::NotApplied));
            }
            // An asking before may have done it.
            Ok(answer) => at.said(answer.status),
            Err(error) => error,
        };
        let at = self.at(Verb::Create);
        let has_last = self.server.look_up(&at, &self.dir, &self.leaf).await;
        if has_last.as_ref().is_ok_and(|(_, facts)| facts.is_same_file(&self.facts)) {
            return Ok(());
        }
        let has_first = self.server.look_up(&at, &self.dir, &self.temporary).await;
        // One that is still on its way may be done later: that its name is there now says nothing for sure.
        let is_undone = has_first.is_ok() && error.kind() != ErrorKind::DeadlineExceeded;
        Err(error.with_outcome(if is_undone { WriteOutcome::NotApplied } else { WriteOutcome::Unknown }))
    }

    /// Leaves nothing of it.
    pub(super) async fn abandon(&self) {
        self.let_go(|_| true);
        let at = self.at(Verb::Create);
        if let Err(error) = remove(&self.server, &at, &self.dir, &self.temporary).await {
            tracing::warn!(file = %self.name, temporary = %self.temporary, %error, "a file that was given up stays under its temporary name");
        }
    }
}

impl Drop for NfsWrite {
    fn drop(&mut self) {
        self.let_go(|_| true);
    }
}

/// Whether a new file of so many bytes has room.
async fn room_for(server: &Server, at: &At<'_>, dir: &nfs_fh3, len: u64) -> Result<(), Error> {
    if len == 0 {
        return Ok(());
    }
    let answer = server.call(at, NFS_PROGRAM::NFSPROC3_FSSTAT, &FSSTAT3args { fsroot: dir.clone() }).await?;
    if answer.status == NOTSUPP {
        return Ok(());
    }
    let mut reply = answer.good(at)?;
    let mut told = || {
        reply.facts_if_any()?;
        Ok((reply.u64()?, reply.u64()?, reply.u64()?))
    };
    let (total, _, free) = told().map_err(|garbled| at.garbled(garbled))?;
    // Of file systems that tell nothing all of it is zero.
    if total > 0 && free < len {
        let text = format!("the server has room for {free} bytes, and {len} are wanted");
        return Err(at.fail(ErrorKind::NoSpace).detail(text).remedy("make room on the server"));
    }
    Ok(())
}

/// Makes a file that nobody else made.
async fn exclusive(server: &Server, at: &At<'_>, dir: &nfs_fh3, leaf: &str) -> Result<(String, nfs_fh3), Error> {
    let mut is_guarded = false;
    let mut status = 0;
    for _ in 0..NAMES_MAX {
        let name = temporary(leaf);
        let how = if is_guarded {
            createhow3::GUARDED(sattr3 { mode: set_mode3::Some(MODE), ..sattr3::default() })
        } else {
            createhow3::EXCLUSIVE(createverf3(random_u64().to_be_bytes()))
        };
        let asked = CREATE3args { where_: in_dir(dir, &name), how };
        let answer = server.call(at, NFS_PROGRAM::NFSPROC3_CREATE, &asked).await?;
        status = answer.status;
        match status {
            0 => {
                let mut reply: Reply = answer.reply;
                let handle = match reply.handle_if_any().map_err(|garbled| at.garbled(garbled))? {
                    Some(handle) => handle,
                    None => server.look_up(at, dir, &name).await?.0,
                };
                return Ok((name, handle));
            }
            NOTSUPP => is_guarded = true,
            EXIST => {}
            status => return Err(at.said(status)),
        }
    }
    Err(at.said(status))
}

async fn set(server: &Server, at: &At<'_>, file: &nfs_fh3, new: sattr3) -> Result<(), Error> {
    let asked = SETATTR3args { object: file.clone(), new_attributes: new, guard: sattrguard3::None };
    server.call(at, NFS_PROGRAM::NFSPROC3_SETATTR, &asked).await?.good(at).map(drop)
}

/// Removes a name.
pub(super) async fn remove(server: &Server, at: &At<'_>, dir: &nfs_fh3, name: &str) -> Result<(), Error> {
    let asked = REMOVE3args { object: in_dir(dir, name) };
    let answer = server.call(at, NFS_PROGRAM::NFSPROC3_REMOVE, &asked).await?;
    // An asking before, whose answer was lost, has done it.
    if answer.status == fault::NOENT && answer.asked == Asked::Again {
        return Ok(());
    }
    answer.good(at).map(drop)
}

impl Remote for NfsWrite {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        let error = Error::new(ErrorKind::Unsupported, Verb::Read)
            .at(self.name.as_str())
            .in_range(offset, landing.len().into());
        futures_util::future::ready(Err(error.detail("a file that is being written is not read before it is whole")))
            .boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.put(offset, landing).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        self.settle(Verb::Flush).boxed()
    }
}
