//! `rbd://POOL/IMAGE@SNAPSHOT`, `rbd://POOL:NAMESPACE/IMAGE@SNAPSHOT`: images as they were when a snapshot was made.
//!
//! A snapshot is opened read-only: nobody's exclusive lock is asked for or broken, and no watch is set. So nobody tells us when it is removed
//! either, and the bytes that are read of a removed one may be another's, or zeros. The removal changes the image's header (it moves it to the trash, `librbd` operation/SnapshotRemoveRequest.cc, `trash_snap`) before the
//! first byte goes: each read ends by asking whether the header is the one that the snapshot was last seen by.

use std::{
    ffi::{CStr, CString},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};
use sha2::{Digest, Sha256};
use sw_engine::{
    Error, ErrorKind, Object, Verb, Version,
    seam::{Entry, EntryKind, IoKind},
};

use super::{
    Ceph, Shared, fault,
    held::{Held, Keep},
    objects::{directory, wrong_kind},
    sys::{
        Failed,
        rados::Pool,
        rbd::{Image, Snapshot},
    },
    text,
};
use crate::{
    address::Address,
    land::Landing,
    remote::{Remote, land, not_written},
};

/// The name of the object that an image's facts are in, but for its identifier (`librbd`, of images of format 2).
const HEADER: &str = "rbd_header.";

pub(super) fn read_only(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::Unsupported, verb)
        .at(name)
        .detail("images are read at their snapshots, and neither written nor removed")
        .remedy("use the command rbd (`rbd import`, `rbd snap rm`)")
}

/// An image and perhaps a snapshot.
fn names_of<'a>(at: &'a Address, name: &str, verb: Verb) -> Result<(&'a str, Option<&'a str>), Error> {
    let bad =
        |detail| Error::new(ErrorKind::BadUri, verb).at(name).detail(detail).remedy("write rbd://POOL/IMAGE@SNAPSHOT");
    let key = at.key.trim_end_matches('/');
    let (image, snapshot) = key.rsplit_once('@').map_or((key, None), |(image, snapshot)| (image, Some(snapshot)));
    if image.is_empty() || snapshot == Some("") {
        return Err(bad("an image, or a snapshot, has no name"));
    }
    if key.contains('/') {
        return Err(bad(
            "an image's name has no slash; a namespace stands behind its pool, as in rbd://POOL:NAMESPACE/IMAGE@SNAPSHOT",
        ));
    }
    Ok((image, snapshot))
}

/// What tells two snapshots apart: the pool and the image by a hash, and its number, which no other one of the pool has.
fn version(pool: &Pool, id: &CStr, snapshot: u64) -> Version {
    let hash: [u8; 32] =
        Sha256::new().chain_update(pool.id().to_le_bytes()).chain_update(id.to_bytes()).finalize().into();
    let word = hash.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte));
    Version { identity: (word, snapshot), stamp: 0 }
}

/// A snapshot that was found.
struct Found {
    image: Image,
    pool: Arc<Held<Pool>>,
    header: CString,
    /// The header's version before the snapshot was looked at.
    seen: u64,
    id: CString,
    snapshot: u64,
}

/// A snapshot that is open.
struct Snap {
    shared: Arc<Shared>,
    at: Address,
    image: Arc<Held<Image>>,
    pool: Arc<Held<Pool>>,
    header: CString,
    seen: AtomicU64,
    len: u64,
    version: Version,
}

impl Shared {
    /// Opens a snapshot.
    fn snapshot(self: &Arc<Self>, at: &Address, verb: Verb) -> Result<Found, Error> {
        let name = at.to_string();
        let (image, snapshot) = names_of(at, &name, verb)?;
        let snapshot = snapshot.ok_or_else(|| {
            Error::new(ErrorKind::WrongKind, verb)
                .at(&*name)
                .detail("an image without a snapshot may change while it is read")
                .remedy("make a snapshot (`rbd snap create POOL/IMAGE@NAME`) and name it; `straightway ls` shows those that are there")
        })?;
        let (image, snapshot) = (text(image, verb, &name)?, text(snapshot, verb, &name)?);
        let told = |failed| fault::told(failed, verb, &name);
        let (library, pool) = (self.rbd(verb, &name)?, Arc::new(Held::new(self.pool(at, verb, &name)?, &self.calls)));
        // The name of the header is the image's; what is open meanwhile may be older than the header that is looked at then.
        let id = Image::open(library, &pool, &image, Some(&snapshot)).and_then(|image| image.id()).map_err(told)?;
        let header = text(&format!("{HEADER}{}", id.to_string_lossy()), verb, &name)?;
        let seen = self.pool(at, verb, &name)?.stat(&header).map_err(|failed| {
            let error = told(failed);
            if failed.errno != libc::ENOENT {
                return error;
            }
            Error::new(ErrorKind::Unsupported, verb)
                .at(&*name)
                .detail("the image has no header by which a removed snapshot would be noticed: it is of format 1")
                .remedy("migrate the image to format 2 (`rbd migration`)")
        })?;
        let image = Image::open(library, &pool, &image, Some(&snapshot)).map_err(told)?;
        if image.id().map_err(told)? != id {
            return Err(fault::changed(&name));
        }
        let snapshot = image.snapshot_id(&snapshot).map_err(told)?;
        Ok(Found { image, pool, header, seen: seen.version, id, snapshot })
    }
}

impl Snap {
    fn fail(&self, failed: Failed) -> Error {
        fault::told(failed, Verb::Read, &self.at.to_string())
    }

    /// Whether the snapshot is still there.
    async fn check(&self) -> Result<(), Error> {
        let name = self.at.to_string();
        let place = self.shared.calls.place(Verb::Read, &name).await?;
        let keep = Keep::new(self.pool.clone(), place);
        let seen = self.seen.load(Ordering::Acquire);
        let begun = self.pool.read(&self.header, (0, seen), Vec::new(), keep);
        let done = self.shared.end(begun, (Verb::Read, &name)).await?;
        match i32::try_from(-done.result).unwrap_or(libc::EIO) {
            ..=0 => Ok(()),
            libc::ENOENT => Err(self.gone()),
            // The image has changed: a write lock, another snapshot, or this one.
            libc::ERANGE | libc::EOVERFLOW => self.look().await,
            errno => Err(self.fail(Failed { call: "rados_aio_read_op_operate", errno })),
        }
    }

    fn gone(&self) -> Error {
        fault::changed(&self.at.to_string())
            .detail("the snapshot was removed since it was opened")
            .remedy("protect snapshots that are read (`rbd snap protect`)")
    }

    /// Looks at the image as whoever opens it does.
    async fn look(&self) -> Result<(), Error> {
        let (shared, at) = (self.shared.clone(), self.at.clone());
        let look = move || {
            let Found { pool, seen, id, snapshot, image, .. } = shared.snapshot(&at, Verb::Read)?;
            let version = version(&pool, &id, snapshot);
            drop(Held::new(image, &shared.calls));
            Ok((seen, version))
        };
        match self.shared.calls.call((Verb::Read, &self.at.to_string()), look).await {
            Ok((seen, version)) if version == self.version => {
                self.seen.fetch_max(seen, Ordering::AcqRel);
                Ok(())
            }
            Ok(_) => Err(self.gone()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.gone()),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let end = offset.saturating_add(u64::from(landing.len())).min(self.len);
        if offset >= end {
            return Ok(());
        }
        let name = self.at.to_string();
        let keep = Keep::new(self.image.clone(), self.shared.calls.place(Verb::Read, &name).await?);
        let begun = self.image.read(offset, self.shared.slabs.take(sw_mem::index(end - offset)), keep);
        let done = self.shared.end(begun, (Verb::Read, &name)).await?;
        let Ok(moved) = usize::try_from(done.result) else {
            let errno = i32::try_from(-done.result).unwrap_or(libc::EIO);
            let error = self.fail(Failed { call: "rbd_aio_read", errno });
            // Of a snapshot that is gone its objects are too.
            let is_gone =
                errno == libc::ENOENT && self.check().await.is_err_and(|why| why.kind() == ErrorKind::Changed);
            return Err(if is_gone { self.gone() } else { error });
        };
        self.check().await?;
        land(landing, done.buffer.get(..moved), &self.at)?;
        self.shared.slabs.give(done.buffer);
        Ok(())
    }
}

impl Remote for Snap {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.get(offset, landing).boxed()
    }

    fn write<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        not_written(&self.at)
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.check().boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

impl Shared {
    /// The snapshots of an image, as they are listed.
    fn snapshots(self: &Arc<Self>, at: &Address, verb: Verb) -> Result<Vec<Entry>, Error> {
        let name = at.to_string();
        let (image_name, _) = names_of(at, &name, verb)?;
        let told = |failed| fault::told(failed, verb, &name);
        let (library, pool) = (self.rbd(verb, &name)?, Arc::new(Held::new(self.pool(at, verb, &name)?, &self.calls)));
        let image = Image::open(library, &pool, &text(image_name, verb, &name)?, None).map_err(told)?;
        let (id, found) = (image.id().map_err(told)?, image.snapshots().map_err(told)?);
        let entry = |snapshot: Snapshot| {
            let key = format!("{image_name}@{}", snapshot.name.to_str().ok()?);
            let (name, version) = (at.sibling(&key).to_string(), version(&pool, &id, snapshot.id));
            Some(Entry { name, kind: EntryKind::Object, len: snapshot.len, version })
        };
        Ok(found.into_iter().filter_map(entry).collect())
    }
}

impl Ceph {
    pub(super) fn open_image(&self, at: Address) -> Result<Arc<Object>, Error> {
        let name = at.to_string();
        if at.key.is_empty() {
            return Err(wrong_kind(&name, "a pool, not a snapshot of an image"));
        }
        let (snap, facts) = self.run(&self.shared.calls, (Verb::Open, &name), move |shared| {
            let Found { image, pool, header, seen, id, snapshot } = shared.snapshot(&at, Verb::Open)?;
            let len = image.len().map_err(|failed| fault::told(failed, Verb::Open, &at.to_string()))?;
            let version = version(&pool, &id, snapshot);
            let image = Arc::new(Held::new(image, &shared.calls));
            let snap = Snap { shared: shared.clone(), at, image, pool, header, seen: seen.into(), len, version };
            Ok((snap, (len, version)))
        })?;
        Ok(Arc::new(self.object(name, Arc::new(snap), facts)))
    }

    pub(super) fn stat_image(&self, at: Address, name: &str) -> Result<Entry, Error> {
        let named = name.to_owned();
        self.run(&self.shared.calls, (Verb::Open, name), move |shared| {
            if at.key.is_empty() {
                return shared.pool(&at, Verb::Open, &named).map(|_| directory(&named));
            }
            let snapshots = shared.snapshots(&at, Verb::Open)?;
            if names_of(&at, &named, Verb::Open)?.1.is_none() {
                return Ok(directory(&named));
            }
            let wanted = at.sibling(at.key.trim_end_matches('/')).to_string();
            let found = snapshots.into_iter().find(|entry| entry.name == wanted);
            found.ok_or_else(|| {
                fault::told(Failed { call: "the image has no such snapshot", errno: libc::ENOENT }, Verb::Open, &named)
            })
        })
    }

    pub(super) fn list_images(&self, at: Address, name: &str) -> Result<Vec<Entry>, Error> {
        let named = name.to_owned();
        self.run(&self.shared.calls, (Verb::List, name), move |shared| {
            if at.key.is_empty() {
                let (library, pool) = (shared.rbd(Verb::List, &named)?, shared.pool(&at, Verb::List, &named)?);
                let images = library.images(&pool).map_err(|failed| fault::told(failed, Verb::List, &named))?;
                let image = |image: CString| Some(directory(&at.sibling(image.to_str().ok()?).to_string()));
                return Ok(images.into_iter().filter_map(image).collect());
            }
            let mut snapshots = shared.snapshots(&at, Verb::List)?;
            if names_of(&at, &named, Verb::List)?.1.is_some() {
                let wanted = at.sibling(at.key.trim_end_matches('/')).to_string();
                snapshots.retain(|entry| entry.name == wanted);
                if snapshots.is_empty() {
                    return Err(fault::told(
                        Failed { call: "the image has no such snapshot", errno: libc::ENOENT },
                        Verb::List,
                        &named,
                    ));
                }
            }
            Ok(snapshots)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_snapshot_or_none() {
        let names = |text: &str| {
            let at: Address = text.parse().unwrap();
            names_of(&at, text, Verb::Open)
                .map(|(image, snapshot)| (image.to_owned(), snapshot.map(str::to_owned)))
                .ok()
        };
        assert_eq!(names("rbd://pool/image@snap"), Some(("image".to_owned(), Some("snap".to_owned()))));
        assert_eq!(names("rbd://pool:space/image"), Some(("image".to_owned(), None)));
        assert_eq!(names("rbd://pool/image/"), Some(("image".to_owned(), None)));
        for wrong in ["rbd://pool/@snap", "rbd://pool/image@", "rbd://pool/a/b@c", "rbd://pool//"] {
            assert_eq!(names(wrong), None, "{wrong}");
        }
    }
}
