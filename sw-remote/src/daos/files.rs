//! Files of a container, read by events, and their names.

use std::{
    ffi::CString,
    sync::{Arc, atomic::Ordering},
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Object, Verb, Version,
    seam::{Entry, EntryKind, IoKind},
};

use super::{
    Daos, Place, Shared, fault,
    sys::{
        Code, Failed,
        dfs::{Access, Facts, Node, ObjectId},
    },
    text,
};
use crate::{
    address::Address,
    foreign::held::{Held, Keep, late_is_unknown},
    land::Landing,
    looks::Looks,
    remote::{Remote, land, not_written},
};

/// What tells two states of a file apart: its object, its length, and when it was written last.
fn version(facts: &Facts) -> Version {
    let ObjectId { low, high } = facts.id;
    Version { identity: (low.rotate_left(32) ^ high, facts.len), stamp: facts.mtime }
}

fn kind(facts: &Facts) -> EntryKind {
    match facts.format {
        libc::S_IFREG => EntryKind::Object,
        libc::S_IFDIR => EntryKind::Directory,
        _ => EntryKind::Other,
    }
}

fn entry(name: String, facts: &Facts) -> Entry {
    let (kind, version) = (kind(facts), version(facts));
    Entry { name, kind, len: if kind == EntryKind::Object { facts.len } else { 0 }, version }
}

/// What a look at an open file found that is not what it was.
#[derive(Clone, Copy)]
enum Looked {
    Changed,
    Failed(Failed),
    /// It was not made, and why.
    NotMade(ErrorKind),
}

/// A file that is open for reading.
struct Read {
    shared: Arc<Shared>,
    at: Address,
    path: String,
    file: Arc<Held<Node>>,
    facts: Facts,
    looks: Looks<Looked>,
}

impl Read {
    /// Whether it is what it was when it was opened.
    async fn look(&self) -> Result<(), Looked> {
        let file = self.file.clone();
        let looked = self.shared.calls.call((Verb::Read, &self.at.to_string()), move || Ok(file.stat())).await;
        match looked.map_err(|error| Looked::NotMade(error.kind()))? {
            Ok(now) if now == self.facts => Ok(()),
            // Its name is gone, or another's.
            Ok(_) | Err(Failed { code: Code::Errno(libc::ENOENT | libc::ESTALE), .. }) => Err(Looked::Changed),
            Err(failed) => Err(Looked::Failed(failed)),
        }
    }

    fn error(&self, looked: Looked) -> Error {
        let name = self.at.to_string();
        match looked {
            Looked::Changed => fault::changed(&name),
            Looked::Failed(failed) => fault::told(failed, Verb::Read, &name),
            Looked::NotMade(ErrorKind::DeadlineExceeded) => self.shared.calls.late(Verb::Read, &name),
            Looked::NotMade(kind) => Error::new(kind, Verb::Read).at(name).detail("the file could not be looked at"),
        }
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let end = offset.saturating_add(u64::from(landing.len())).min(self.facts.len);
        if offset < end {
            self.fetch(offset, end, landing).await?;
        }
        self.looks.confirm(|| self.look()).await.map_err(|looked| self.error(looked))
    }

    async fn fetch(&self, offset: u64, end: u64, landing: &mut Landing) -> Result<(), Error> {
        let (name, shared) = (self.at.to_string(), &self.shared);
        let keep = Keep::new(self.file.clone(), shared.calls.place(Verb::Read, &name).await?);
        let slab = shared.slabs.take(sw_mem::index(end - offset));
        let begun = self.file.read(offset, slab, keep).map_err(|failed| fault::told(failed, Verb::Read, &name))?;
        let number = begun.number();
        let Ok(done) = tokio::time::timeout(shared.calls.limit(), begun.end).await else {
            self.file.give_up(number);
            return Err(shared.calls.late(Verb::Read, &name));
        };
        let lost = |_| Error::new(ErrorKind::Poisoned, Verb::Read).at(&*name).detail("the end of a read was lost");
        let done = done.map_err(lost)?;
        if let Some(failed) = done.failed {
            return Err(fault::told(failed, Verb::Read, &name));
        }
        let moved = usize::try_from(done.moved).unwrap_or(usize::MAX);
        land(landing, done.buffer.get(..moved), &self.at)?;
        shared.slabs.give(done.buffer);
        Ok(())
    }

    async fn check(&self) -> Result<(), Error> {
        let (shared, at, path, then) = (self.shared.clone(), self.at.clone(), self.path.clone(), self.facts);
        let name = self.at.to_string();
        let look = move || {
            let place = Place::of(at, Verb::Open)?;
            let name = place.name();
            let mount = shared.mount(&place, Access::Read, Verb::Open)?;
            // By its name: another may be there.
            match Node::look_up(&mount, &text(&path, Verb::Open, &name)?, Access::Read) {
                Ok((_, now)) if now == then => Ok(()),
                Ok(_) | Err(Failed { code: Code::Errno(libc::ENOENT), .. }) => Err(fault::changed(&name)),
                Err(failed) => Err(fault::told(failed, Verb::Open, &name)),
            }
        };
        self.shared.calls.call((Verb::Open, &name), look).await
    }
}

impl Remote for Read {
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

/// What has a name, open, with its facts.
fn look_up(shared: &Shared, place: &Place, access: Access, verb: Verb) -> Result<(Node, Facts), Error> {
    let name = place.name();
    let mount = shared.mount(place, access, verb)?;
    let found = Node::look_up(&mount, &text(&place.path, verb, &name)?, Access::Read);
    found.map_err(|failed| fault::told(failed, verb, &name))
}

/// The directory that a file is in, and its name there.
pub(super) fn parts(path: &str) -> (&str, &str) {
    let (above, leaf) = path.rsplit_once('/').unwrap_or(("", path));
    (if above.is_empty() { "/" } else { above }, leaf)
}

impl Daos {
    pub(super) fn open_file(&self, place: Place) -> Result<Arc<Object>, Error> {
        let name = place.name();
        let (read, facts) = self.run((Verb::Open, &name), move |shared| {
            let (file, facts) = look_up(shared, &place, Access::Read, Verb::Open)?;
            if kind(&facts) != EntryKind::Object {
                return Err(fault::wrong_kind(&place.name(), "not a regular file"));
            }
            let Place { at, path, .. } = place;
            let file = Arc::new(Held::new(file, &shared.calls));
            Ok((Read { shared: shared.clone(), at, path, file, facts, looks: Looks::default() }, facts))
        })?;
        Ok(Arc::new(self.object(name, Arc::new(read), (facts.len, version(&facts)))))
    }

    pub(super) fn stat_file(&self, place: Place, name: &str) -> Result<Entry, Error> {
        let named = name.to_owned();
        self.run((Verb::Open, name), move |shared| {
            look_up(shared, &place, Access::Read, Verb::Open).map(|(_, facts)| entry(named, &facts))
        })
    }

    /// A name of which nothing may be known is something else, and fails none of the others.
    pub(super) fn list_files(&self, place: Place, name: &str) -> Result<Vec<Entry>, Error> {
        self.run_on((Verb::List, name), move |shared, progress| {
            let (node, facts) = look_up(shared, &place, Access::Read, Verb::List)?;
            if kind(&facts) != EntryKind::Directory {
                return Ok(vec![entry(place.name(), &facts)]);
            }
            let told = |failed| fault::told(failed, Verb::List, &place.name());
            let mut leaves = Vec::new();
            // A name that is no text cannot be written in an address.
            let mut add = |name: CString| {
                leaves.extend(name.into_string());
                progress.fetch_add(1, Ordering::Relaxed);
            };
            node.names(&mut add).map_err(told)?;
            let above = place.at.key.trim_end_matches('/');
            let mut entries = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                let below = Place::of(place.at.sibling(&format!("{above}/{leaf}")), Verb::List)?;
                progress.fetch_add(1, Ordering::Relaxed);
                match Node::look_up(&node.mount, &text(&below.path, Verb::List, &below.name())?, Access::Read) {
                    Ok((_, facts)) => entries.push(entry(below.name(), &facts)),
                    Err(Failed { code: Code::Errno(libc::EACCES | libc::EPERM), .. }) => {
                        let (name, version) = (below.name(), Version::default());
                        entries.push(Entry { name, kind: EntryKind::Other, len: 0, version });
                    }
                    // Gone meanwhile, or a link to nothing.
                    Err(Failed { code: Code::Errno(libc::ENOENT | libc::ELOOP), .. }) => {}
                    Err(failed) => return Err(fault::told(failed, Verb::List, &below.name())),
                }
            }
            Ok(entries)
        })
    }

    pub(super) fn remove_file(&self, place: Place) -> Result<(), Error> {
        let name = place.name();
        let removed = self.run((Verb::Replace, &name), move |shared| {
            let (_, facts) = look_up(shared, &place, Access::ReadWrite, Verb::Replace)?;
            if kind(&facts) == EntryKind::Directory {
                return Err(fault::wrong_kind(&place.name(), "a directory, not a file"));
            }
            let (above, leaf) = parts(&place.path);
            let (name, leaf) = (place.name(), text(leaf, Verb::Replace, &place.name())?);
            let mount = shared.mount(&place, Access::ReadWrite, Verb::Replace)?;
            let above = Node::look_up(&mount, &text(above, Verb::Replace, &name)?, Access::ReadWrite);
            let (above, _) = above.map_err(|failed| fault::of_begin(failed, Verb::Replace, &name))?;
            above.remove(&leaf).map_err(|failed| fault::of_change(failed, Verb::Replace, &name))
        });
        removed.map_err(late_is_unknown)
    }
}
