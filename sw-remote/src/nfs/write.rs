//! Writing: to a temporary name beside the last one, in pieces that are kept here until the server has them in stable storage.
//!
//! ```text
//!   write ─► WRITE (unstable) ─► kept ─ enough of them, or commit ─► COMMIT: is the verifier that of each piece?
//!                                                                      yes: let go      no: the server lost it; written again, stable
//!   commit ─► COMMIT ─► length ─► RENAME over the last name ─ no clear answer ─► whose file has the name?
//!                                                                               else REMOVE of the temporary one: then nothing is renamed any more
//! ```
//! RFC 1813 §4.8 "Stable versus unstable writes". A call whose answer is lost may be done by the server at any time afterwards: nothing is told as
//! undone before it cannot be done any more, and no place is written anew over a WRITE that may still come.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
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
    reply::{Facts, Reply},
    server::{Asked, At, Server},
};
use crate::{land::Landing, random::random_u64, remote::Remote};

/// No length yet.
pub(super) const OPEN: u64 = u64::MAX;
/// Bytes of one file that are kept for the server to lose, at most; and those of all files of a server.
const KEPT_MAX: (u64, u64) = (32 << 20, 256 << 20);
/// Pieces of one file that are kept, at most.
const PIECES_MAX: usize = 4096;
/// Fewest bytes that a server takes at a time, of many: what is kept of each has a cost of its own.
const TAKEN_MIN: usize = 512;
/// What is asked for with a WRITE, at most (`stable_how`).
const FILE_SYNC: u32 = stable_how::FILE_SYNC as u32;
/// What who may do with a new file is of its mode.
const MODE_BITS: u32 = 0o777;
/// Longest that an error waits until a temporary name is gone; where that takes longer, it goes on in the background.
const DISCARD_WAIT: Duration = Duration::from_secs(10);
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

impl Piece {
    fn is_at(&self, (offset, len): (u64, u64)) -> bool {
        meets((self.offset, self.bytes.len() as u64), (offset, len))
    }
}

/// Whether two ranges, each an offset and a length, have a byte in common.
fn meets(one: (u64, u64), other: (u64, u64)) -> bool {
    one.0 < other.0.saturating_add(other.1) && other.0 < one.0.saturating_add(one.1)
}

#[derive(Default)]
struct Kept {
    next: u64,
    pieces: Vec<Piece>,
}

/// WRITEs that the server may do later than they were asked for.
#[derive(Default)]
struct Late {
    /// One ended without an answer: what it writes, and when, is not known.
    is_open: bool,
    /// Those that were answered when they were asked again; the asking before may come later, with the same bytes.
    again: Vec<(u64, u64)>,
}

/// How a WRITE ended.
enum Ended {
    /// It was given up, or failed without being answered each time that it was asked.
    Open,
    Answered,
    AnsweredAgain,
}

/// A WRITE under way, told however it ends.
struct Sent<'a> {
    late: &'a Mutex<Late>,
    range: (u64, u64),
    ended: Ended,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        match self.ended {
            Ended::Open => late.is_open = true,
            Ended::Answered => {}
            Ended::AnsweredAgain => late.again.push(self.range),
        }
    }
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
    /// No write is taken any more: it is being committed, or was given up.
    is_closed: AtomicBool,
    late: Mutex<Late>,
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
        (len, umask): (Option<u64>, u32),
    ) -> Result<Self, Error> {
        if dir.facts.kind != ftype3::NF3DIR {
            return Err(at
                .fail(ErrorKind::WrongKind)
                .detail("what it is to lie in is no directory")
                .remedy("name a directory"));
        }
        let mode = match server.look_up(at, &dir.handle, leaf).await {
            Ok((_, facts)) if facts.kind == ftype3::NF3DIR => {
                return Err(at
                    .fail(ErrorKind::WrongKind)
                    .detail("a directory has that name")
                    .remedy("name a file in it"));
            }
            // What nobody else might read stays so.
            Ok((_, facts)) if facts.kind == ftype3::NF3REG => facts.mode & MODE_BITS,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => 0o666 & !umask,
        };
        room_for(&server, at, &dir.handle, len.unwrap_or(0)).await?;
        let (temporary, file) = exclusive(&server, at, &dir.handle, leaf).await?;
        let facts = match ready(&server, at, &file, mode).await {
            Ok(facts) => facts,
            Err(error) => {
                discard(&server, at, &dir.handle, &temporary).await;
                return Err(error);
            }
        };
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
            is_closed: false.into(),
            late: Mutex::default(),
            kept: Mutex::default(),
            settling: tokio::sync::Mutex::default(),
            order: tokio::sync::RwLock::default(),
        })
    }

    /// Longest that one call takes.
    pub(super) fn limit(&self) -> Duration {
        self.server.longest()
    }

    fn at(&self, verb: Verb) -> At<'_> {
        At { verb, name: &self.name, until: self.server.until() }
    }

    fn fail(&self, verb: Verb, kind: ErrorKind, range: (u64, u64)) -> Error {
        Error::new(kind, verb).at(self.name.as_str()).in_range(range.0, range.1)
    }

    fn late(&self) -> MutexGuard<'_, Late> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That a place was not written by a WRITE which may come later than this one; of those that were asked again the first `known` are known.
    fn clear(&self, verb: Verb, known: usize, range: (u64, u64)) -> Result<(), Error> {
        let late = self.late();
        if !late.again.iter().skip(known).any(|again| meets(*again, range)) {
            return Ok(());
        }
        drop(late);
        Err(self
            .fail(verb, ErrorKind::Io, range)
            .detail("an answer to what was written here before was lost, and the server may do that later than this")
            .remedy("write the file anew"))
    }

    /// One WRITE; how many bytes the server took, whether it may lose them, and its verifier.
    async fn send(
        &self,
        at: &At<'_>,
        offset: u64,
        how: stable_how,
        bytes: &Bytes,
    ) -> Result<(usize, bool, [u8; 8]), Error> {
        let lie = |text| Err(at.fail(ErrorKind::Protocol).detail(text).remedy("look at the server"));
        let message = Message::write(&self.server.credential, (&self.file, offset), how, bytes.clone());
        let mut sent = Sent { late: &self.late, range: (offset, bytes.len() as u64), ended: Ended::Open };
        let answer = self.server.nfs(at, message).await?;
        sent.ended = match (answer.asked, answer.status) {
            (Asked::Once, _) => Ended::Answered,
            (Asked::Again, 0) => Ended::AnsweredAgain,
            (Asked::Again, _) => Ended::Open,
        };
        drop(sent);
        let mut reply = answer.good(at)?;
        let mut told = || {
            reply.change()?;
            Ok((reply.u32()?, reply.u32()?, reply.bytes::<8>()?))
        };
        let (count, committed, verifier) = told().map_err(|garbled| at.garbled(garbled))?;
        let count = sw_mem::index(u64::from(count));
        if count == 0 || count > bytes.len() {
            return lie(format!("the server says that it took {count} of {} bytes", bytes.len()));
        }
        if committed > FILE_SYNC || committed < how as u32 {
            return lie(format!("the server does not keep what it was asked to keep (WRITE, {how:?}): {committed}"));
        }
        Ok((count, committed == 0, verifier))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the server may lose; and what it may not, where that lies over something older which it may: that is written again before it.
    fn keep(&self, offset: u64, bytes: Bytes, (may_go, verifier): (bool, [u8; 8])) {
        let mut kept = self.lock();
        if !may_go && !kept.pieces.iter().any(|piece| piece.is_at((offset, bytes.len() as u64))) {
            return;
        }
        self.server.kept.fetch_add(bytes.len() as u64, Ordering::Relaxed);
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
        let (mut done, mut times) = (0, 0);
        while done < bytes.len() {
            let piece = bytes.slice(done..);
            let from = offset + done as u64;
            let (count, may_go, verifier) = self.send(at, from, how, &piece).await?;
            times += 1;
            if times > 2 + bytes.len() / TAKEN_MIN {
                let text = format!("the server takes {} bytes in more than {times} pieces", bytes.len());
                return Err(at.fail(ErrorKind::Protocol).detail(text).remedy("look at the server"));
            }
            if how == stable_how::UNSTABLE {
                // A part of them is copied: it would hold all of them otherwise, and not be counted so.
                let taken = if count == bytes.len() { piece } else { Bytes::copy_from_slice(&piece[..count]) };
                self.keep(from, taken, (may_go, verifier));
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
            self.fail(Verb::Write, ErrorKind::OutOfRange, range).detail(text)
        })?;
        let (mut from, most) = (offset, u64::from(self.root.write_bytes));
        while from < end {
            let mut bytes = vec![0; sw_mem::index((end - from).min(most))];
            landing.take(&mut bytes);
            let len = bytes.len() as u64;
            let at = self.at(Verb::Write);
            let writing = self.order.read().await;
            if self.is_closed.load(Ordering::Acquire) {
                return Err(self
                    .fail(Verb::Write, ErrorKind::Closed, range)
                    .detail("it is being committed, or was given up; these bytes are not part of it")
                    .remedy("commit when all writes have ended"));
            }
            self.clear(Verb::Write, 0, (from, len))?;
            let sent = self.send_all(&at, from, stable_how::UNSTABLE, &bytes.into()).await;
            drop(writing);
            sent.map_err(|error| error.in_range(range.0, range.1))?;
            from += len;
        }
        let (mine, pieces) = {
            let kept = self.lock();
            (kept.pieces.iter().map(|piece| piece.bytes.len() as u64).sum::<u64>(), kept.pieces.len())
        };
        if mine > KEPT_MAX.0 || pieces > PIECES_MAX || self.server.kept.load(Ordering::Relaxed) > KEPT_MAX.1 {
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
        let (pieces, known) = (self.lock().pieces.clone(), self.late().again.len());
        // All of them, as they came: what was written over each other ends as it was. None goes before all are written: who is given up in
        // between begins with the first again.
        for piece in &pieces {
            self.clear(verb, known, (piece.offset, piece.bytes.len() as u64))?;
            self.send_all(&self.at(verb), piece.offset, stable_how::FILE_SYNC, &piece.bytes).await?;
        }
        let (last, again) = (
            pieces.last().map_or(0, |piece| piece.number),
            pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>(),
        );
        self.let_go(|kept| kept.number <= last);
        tracing::warn!(file = %self.name, bytes = again, "the server lost what was not stable yet; it was written again");
        Ok(())
    }

    /// Takes no more writes, and waits for those that are under way.
    async fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        drop(self.order.write().await);
    }

    /// Makes it whole, under its last name.
    pub(super) async fn finish(&self) -> Result<(), Error> {
        let len = self.len.load(Ordering::Acquire);
        if len == OPEN {
            let error = Error::new(ErrorKind::ApiMisuse, Verb::Create).at(self.name.as_str());
            let error = error.with_outcome(WriteOutcome::NotApplied);
            return Err(error.detail("its length was not said before it is committed"));
        }
        self.close().await;
        self.whole(len).await.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        self.rename().await
    }

    async fn whole(&self, len: u64) -> Result<(), Error> {
        self.settle(Verb::Create).await?;
        let is_late = {
            let late = self.late();
            // One behind the end would make it longer again.
            late.is_open || late.again.iter().any(|(offset, bytes)| offset + bytes > len)
        };
        if is_late {
            let error = self.fail(Verb::Create, ErrorKind::Cancelled, (0, len));
            return Err(error
                .detail("a write of it was given up, and the server may still do it")
                .remedy("write the file anew"));
        }
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
            Ok(answer) if answer.asked == Asked::Once && fault::is_refusal(answer.status) => {
                return Err(at.said(answer.status).with_outcome(WriteOutcome::NotApplied));
            }
            // An asking before, or this one, may have done it, or may be about to.
            Ok(answer) => at.said(answer.status),
            Err(error) => error,
        };
        if self.has_name().await {
            return Ok(());
        }
        // What is not there is not renamed, whenever that is done: its going is what says that it never was.
        let at = self.at(Verb::Create);
        let asked = REMOVE3args { object: in_dir(&self.dir, &self.temporary) };
        let gone = self.server.call(&at, NFS_PROGRAM::NFSPROC3_REMOVE, &asked).await.map(|answer| answer.status);
        let outcome = match gone {
            Ok(0) => WriteOutcome::NotApplied,
            Ok(fault::NOENT) if self.has_name().await => return Ok(()),
            _ => WriteOutcome::Unknown,
        };
        Err(error.with_outcome(outcome))
    }

    /// Whether the last name is that of this file.
    async fn has_name(&self) -> bool {
        let found = self.server.look_up(&self.at(Verb::Create), &self.dir, &self.leaf).await;
        found.is_ok_and(|(_, facts)| facts.is_same_file(&self.facts))
    }

    /// Leaves nothing of it.
    pub(super) async fn abandon(&self) {
        self.close().await;
        self.let_go(|_| true);
        let at = self.at(Verb::Create);
        // One whose commit failed may have gone with that.
        if let Err(error) = remove(&self.server, &at, &self.dir, &self.temporary).await
            && error.kind() != ErrorKind::NotFound
        {
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

/// Makes a file that nobody else made. A name that fails is left as if it had never been.
async fn exclusive(server: &Arc<Server>, at: &At<'_>, dir: &nfs_fh3, leaf: &str) -> Result<(String, nfs_fh3), Error> {
    let (mut is_guarded, mut status) = (false, 0);
    for _ in 0..NAMES_MAX {
        let name = temporary(leaf);
        let how = if is_guarded {
            // Nobody else reads it before it has the mode that it is to have.
            createhow3::GUARDED(sattr3 { mode: set_mode3::Some(0o600), ..sattr3::default() })
        } else {
            createhow3::EXCLUSIVE(createverf3(random_u64().to_be_bytes()))
        };
        let asked = CREATE3args { where_: in_dir(dir, &name), how };
        let answer = match server.call(at, NFS_PROGRAM::NFSPROC3_CREATE, &asked).await {
            Ok(answer) => answer,
            Err(error) => {
                discard(server, at, dir, &name).await;
                return Err(error);
            }
        };
        status = answer.status;
        if status == 0 {
            let made = handle(server, at, dir, (&name, answer.reply)).await;
            if made.is_err() {
                discard(server, at, dir, &name).await;
            }
            return Ok((name, made?));
        }
        // An asking before, whose answer was lost, may have made it.
        if answer.asked == Asked::Again {
            discard(server, at, dir, &name).await;
        }
        match status {
            NOTSUPP => is_guarded = true,
            EXIST => {}
            status => return Err(at.said(status)),
        }
    }
    Err(at.said(status))
}

/// The handle of a file that was made.
async fn handle(
    server: &Server,
    at: &At<'_>,
    dir: &nfs_fh3,
    (name, mut reply): (&str, Reply),
) -> Result<nfs_fh3, Error> {
    match reply.handle_if_any().map_err(|garbled| at.garbled(garbled))? {
        Some(handle) => Ok(handle),
        None => Ok(server.look_up(at, dir, name).await?.0),
    }
}

/// Gives a file that was made its mode; what it is then.
async fn ready(server: &Server, at: &At<'_>, file: &nfs_fh3, mode: u32) -> Result<Facts, Error> {
    let new = sattr3 {
        mode: set_mode3::Some(mode),
        // The times hold the word by which an exclusive file is known.
        atime: set_atime::SET_TO_SERVER_TIME,
        mtime: set_mtime::SET_TO_SERVER_TIME,
        ..sattr3::default()
    };
    set(server, at, file, new).await?;
    server.facts(at, file).await
}

/// Removes a name that nothing is to come of.
async fn discard(server: &Arc<Server>, at: &At<'_>, dir: &nfs_fh3, name: &str) {
    let (server, dir, verb) = (server.clone(), dir.clone(), at.verb);
    let (name, place) = (name.to_owned(), at.name.to_owned());
    let work = tokio::spawn(async move {
        let at = At { verb, name: &place, until: server.until() };
        match remove(&server, &at, &dir, &name).await {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(file = %place, temporary = %name, %error, "a file that was given up stays under its temporary name");
            }
            _ => {}
        }
    });
    drop(tokio::time::timeout(DISCARD_WAIT, work).await);
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
