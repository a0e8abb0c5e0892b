//! `cephfs://FILESYSTEM/PATH`: files by libcephfs, read by lazy I/O.

use std::{ffi::CString, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Object, Verb, Version,
    seam::{Entry, EntryKind, IoKind},
};

use super::{
    Ceph, Shared, fault,
    held::Held,
    objects::wrong_kind,
    sys::{
        Failed,
        cephfs::{Facts, File, Mount},
    },
    text,
};
use crate::{
    address::Address,
    foreign::held::late_is_unknown,
    land::Landing,
    remote::{Remote, land, not_written},
};

/// What tells two states of a file apart: its inode, its length, and when it was written last.
fn version(facts: &Facts) -> Version {
    Version { identity: (facts.inode, facts.len), stamp: facts.mtime }
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

/// A path in the file system.
pub(super) fn path(key: &str, verb: Verb, name: &str) -> Result<CString, Error> {
    if key.split('/').any(|part| part == "..") {
        return Err(Error::new(ErrorKind::BadUri, verb)
            .at(name)
            .detail("the path goes up by ..")
            .remedy("write it without"));
    }
    text(&format!("/{key}"), verb, name)
}

/// A file that is open for reading.
struct Read {
    shared: Arc<Shared>,
    at: Address,
    file: Arc<Held<File>>,
    facts: Facts,
}

/// Reads as much as there is.
fn read_all(file: &File, mut offset: u64, to: &mut [u8]) -> Result<usize, Failed> {
    let mut done = 0;
    while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read(offset, rest)? {
            0 => break,
            read => {
                done += read;
                offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            }
        }
    }
    Ok(done)
}

impl Read {
    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let end = offset.saturating_add(u64::from(landing.len())).min(self.facts.len);
        if offset >= end {
            return Ok(());
        }
        let name = self.at.to_string();
        let place = self.shared.file_calls.place(Verb::Read, &name).await?;
        let (file, then, at) = (self.file.clone(), self.facts, self.at.clone());
        let mut slab = self.shared.slabs.take(sw_mem::index(end - offset));
        let read = move || {
            let told = |failed| fault::told(failed, Verb::Read, &at.to_string());
            let moved = read_all(&file, offset, &mut slab).map_err(told)?;
            // Lazy I/O reads whatever others do meanwhile; they are asked for what they did.
            let now = file.stat().map_err(told)?;
            drop(place);
            if version(&now) == version(&then) { Ok((moved, slab)) } else { Err(fault::changed(&at.to_string())) }
        };
        let (moved, slab) = self.shared.file_calls.call((Verb::Read, &name), read).await?;
        land(landing, slab.get(..moved), &self.at)?;
        self.shared.slabs.give(slab);
        Ok(())
    }

    async fn check(&self) -> Result<(), Error> {
        let (shared, at, then) = (self.shared.clone(), self.at.clone(), self.facts);
        let look = move || {
            let name = at.to_string();
            let mount = shared.mount(&at, Verb::Open, &name)?;
            // By its name: another may be there.
            match mount.stat(&path(&at.key, Verb::Open, &name)?) {
                Ok(now) if version(&now) == version(&then) => Ok(()),
                Ok(_) | Err(Failed { errno: libc::ENOENT, .. }) => Err(fault::changed(&name)),
                Err(failed) => Err(fault::told(failed, Verb::Open, &name)),
            }
        };
        self.shared.file_calls.call((Verb::Open, &self.at.to_string()), look).await
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

/// Facts of a name, with the mount that it is in.
fn look(shared: &Arc<Shared>, at: &Address, verb: Verb) -> Result<(Arc<Held<Mount>>, CString, Facts), Error> {
    let name = at.to_string();
    let (mount, path) = (shared.mount(at, verb, &name)?, path(&at.key, verb, &name)?);
    let facts = mount.stat(&path).map_err(|failed| fault::told(failed, verb, &name))?;
    Ok((mount, path, facts))
}

impl Ceph {
    pub(super) fn open_file(&self, at: Address) -> Result<Arc<Object>, Error> {
        let name = at.to_string();
        let (read, facts) = self.run(&self.shared.file_calls, (Verb::Open, &name), move |shared| {
            let (mount, path, facts) = look(shared, &at, Verb::Open)?;
            let name = at.to_string();
            if kind(&facts) != EntryKind::Object {
                return Err(wrong_kind(&name, "not a regular file"));
            }
            let told = |failed| fault::told(failed, Verb::Open, &name);
            let file = Arc::new(Held::new(File::open(&mount, &path).map_err(told)?, &shared.file_calls));
            // Those of what is open.
            let facts = file.stat().map_err(told)?;
            Ok((Read { shared: shared.clone(), at, file, facts }, (facts.len, version(&facts))))
        })?;
        Ok(Arc::new(self.object(name, Arc::new(read), facts)))
    }

    pub(super) fn stat_file(&self, at: Address, name: &str) -> Result<Entry, Error> {
        let named = name.to_owned();
        self.run(&self.shared.file_calls, (Verb::Open, name), move |shared| {
            look(shared, &at, Verb::Open).map(|(_, _, facts)| entry(named, &facts))
        })
    }

    pub(super) fn list_files(&self, at: Address, name: &str) -> Result<Vec<Entry>, Error> {
        self.run(&self.shared.file_calls, (Verb::List, name), move |shared| {
            let (mount, path, facts) = look(shared, &at, Verb::List)?;
            if kind(&facts) != EntryKind::Directory {
                return Ok(vec![entry(at.to_string(), &facts)]);
            }
            let names = mount.names(&path).map_err(|failed| fault::told(failed, Verb::List, &at.to_string()))?;
            let above = at.key.trim_end_matches('/');
            let mut entries = Vec::with_capacity(names.len());
            // A name that is no text cannot be written in an address.
            for leaf in names.iter().filter_map(|leaf| leaf.to_str().ok()) {
                let key = if above.is_empty() { leaf.to_owned() } else { format!("{above}/{leaf}") };
                let below = at.sibling(&key);
                match mount.stat(&self::path(&key, Verb::List, &below.to_string())?) {
                    Ok(facts) => entries.push(entry(below.to_string(), &facts)),
                    // Gone meanwhile, or a link to nothing.
                    Err(Failed { errno: libc::ENOENT | libc::ELOOP, .. }) => {}
                    Err(failed) => return Err(fault::told(failed, Verb::List, &below.to_string())),
                }
            }
            Ok(entries)
        })
    }

    pub(super) fn remove_file(&self, at: Address) -> Result<(), Error> {
        let name = at.to_string();
        let removed = self.run(&self.shared.file_calls, (Verb::Replace, &name), move |shared| {
            let (mount, path, facts) = look(shared, &at, Verb::Replace)?;
            if kind(&facts) == EntryKind::Directory {
                return Err(wrong_kind(&at.to_string(), "a directory, not a file"));
            }
            mount.remove(&path).map_err(|failed| fault::of_write(failed, Verb::Replace, &at.to_string()))
        });
        removed.map_err(late_is_unknown)
    }
}
