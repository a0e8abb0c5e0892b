//! `rados://POOL/OBJECT`, `rados://POOL:NAMESPACE/OBJECT`: objects by librados, each read under the version that was opened.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    ops::ControlFlow,
    sync::Arc,
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Object, Verb, Version,
    seam::{Entry, EntryKind, IoKind},
};

use super::{
    Ceph, Shared, fault,
    held::{Held, Keep},
    sys::{
        Failed,
        rados::{Pool, Stat},
    },
    text,
};
use crate::{
    address::Address,
    foreign::held::late_is_unknown,
    land::Landing,
    remote::{Remote, land, not_written},
};

/// Names of one listing, at most.
const NAMES_MAX: usize = 10_000_000;
/// Names that are looked at for one that begins with another: a pool has no index of its names.
const LOOKED_AT_MAX: usize = 65_536;
/// Contexts by which a listing asks for the facts of its objects.
const ASKED_TOGETHER: usize = 8;

/// What tells two states of an object apart: its pool, its version there, and its time.
fn version(pool: &Pool, stat: Stat) -> Version {
    Version { identity: (pool.id().cast_unsigned(), stat.version), stamp: i128::from(stat.mtime) * 1_000_000_000 }
}

/// An object that is open for reading.
struct Blob {
    shared: Arc<Shared>,
    at: Address,
    name: CString,
    pool: Arc<Held<Pool>>,
    stat: Stat,
}

impl Blob {
    fn fail(&self, failed: Failed) -> Error {
        let name = self.at.to_string();
        match failed.errno {
            // Older, or newer, than the version that was asked for (`rados_read_op_assert_version`).
            libc::ERANGE | libc::EOVERFLOW => fault::changed(&name).with_code(failed.errno),
            _ => fault::told(failed, Verb::Read, &name),
        }
    }

    /// Bytes from `offset` on; how many, with the memory that they are in.
    async fn ask(&self, offset: u64, buffer: Vec<u8>) -> Result<(usize, Vec<u8>), Error> {
        let name = self.at.to_string();
        let place = self.shared.calls.place(Verb::Read, &name).await?;
        let keep = Keep::new(self.pool.clone(), place);
        let begun = self.pool.read(&self.name, (offset, self.stat.version), buffer, keep);
        let done = self.shared.end(begun, (Verb::Read, &name)).await?;
        if done.result < 0 {
            let errno = i32::try_from(-done.result).unwrap_or(libc::EIO);
            return Err(self.fail(Failed { call: "rados_aio_read_op_operate", errno }));
        }
        Ok((done.moved, done.buffer))
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        // Nothing is asked of what lies behind the end; the lane is told that the data is short.
        let end = offset.saturating_add(u64::from(landing.len())).min(self.stat.len);
        if offset >= end {
            return Ok(());
        }
        let (moved, buffer) = self.ask(offset, self.shared.slabs.take(sw_mem::index(end - offset))).await?;
        land(landing, buffer.get(..moved), &self.at)?;
        self.shared.slabs.give(buffer);
        Ok(())
    }
}

impl Remote for Blob {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.get(offset, landing).boxed()
    }

    fn write<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        not_written(&self.at)
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            // One that is gone is another.
            let gone = |error: Error| match error.kind() {
                ErrorKind::NotFound => fault::changed(&self.at.to_string()),
                _ => error,
            };
            self.ask(0, Vec::new()).await.map(drop).map_err(gone)
        }
        .boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

/// What a name in a listing becomes: itself, or what it begins with up to the next slash.
fn below<'a>(prefix: &str, name: &'a str) -> Option<(&'a str, EntryKind)> {
    let rest = name.strip_prefix(prefix).filter(|rest| !rest.is_empty())?;
    match rest.find('/') {
        None => Some((name, EntryKind::Object)),
        // An empty part: its directory has one slash more, so that it is not the one that it is in.
        Some(0) => Some((&name[..=prefix.len()], EntryKind::Directory)),
        Some(slash) => Some((&name[..prefix.len() + slash], EntryKind::Directory)),
    }
}

/// What names of a prefix begin with.
fn prefix_of(key: &str) -> String {
    if key.is_empty() || key.ends_with('/') { key.to_owned() } else { format!("{key}/") }
}

impl Shared {
    fn stat_of(&self, at: &Address, verb: Verb) -> Result<(Pool, CString, Stat), Error> {
        let name = at.to_string();
        let (mut pool, key) = (self.pool(at, verb, &name)?, text(&at.key, verb, &name)?);
        let stat = pool.stat(&key).map_err(|failed| fault::told(failed, verb, &name))?;
        Ok((pool, key, stat))
    }

    /// Whether some object's name begins with this one and a slash, as far as is looked.
    fn has_below(&self, at: &Address, verb: Verb) -> Result<bool, Error> {
        let (name, prefix) = (at.to_string(), prefix_of(&at.key));
        let (mut is_some, mut looked_at) = (false, 0);
        let look = |found: &CStr| {
            looked_at += 1;
            is_some = found.to_bytes().starts_with(prefix.as_bytes());
            if is_some || looked_at == LOOKED_AT_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let looked = self.pool(at, verb, &name)?.names(look);
        looked.map_err(|failed| fault::told(failed, verb, &name))?;
        Ok(is_some)
    }

    /// The names of a level, and what each is.
    fn level(&self, at: &Address, verb: Verb) -> Result<BTreeSet<(String, bool)>, Error> {
        let (name, prefix) = (at.to_string(), prefix_of(&at.key));
        let (mut found, mut is_too_long) = (BTreeSet::new(), false);
        let take = |name: &CStr| {
            // One that is no text cannot be written in an address.
            if let Some((name, kind)) = name.to_str().ok().and_then(|name| below(&prefix, name)) {
                found.insert((name.to_owned(), kind == EntryKind::Object));
            }
            is_too_long = found.len() > NAMES_MAX;
            if is_too_long { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let listed = self.pool(at, verb, &name)?.names(take);
        listed.map_err(|failed| fault::told(failed, verb, &name))?;
        if is_too_long {
            let text = format!("the listing has more than {NAMES_MAX} names");
            return Err(Error::new(ErrorKind::TooLarge, verb).at(name).detail(text).remedy("list a part of it"));
        }
        Ok(found)
    }

    /// Facts of objects, by a context of one's own. What is gone meanwhile is left out.
    fn entries(&self, at: &Address, keys: &[String], verb: Verb) -> Result<Vec<Entry>, Error> {
        let mut pool = self.pool(at, verb, &at.to_string())?;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            let name = at.sibling(key).to_string();
            match pool.stat(&text(key, verb, &name)?) {
                Ok(stat) => {
                    entries.push(Entry { name, kind: EntryKind::Object, len: stat.len, version: version(&pool, stat) });
                }
                Err(Failed { errno: libc::ENOENT, .. }) => {}
                Err(failed) => return Err(fault::told(failed, verb, &name)),
            }
        }
        Ok(entries)
    }
}

pub(super) fn directory(name: &str) -> Entry {
    Entry { name: name.to_owned(), kind: EntryKind::Directory, len: 0, version: Version::default() }
}

pub(super) fn wrong_kind(name: &str, detail: &'static str) -> Error {
    Error::new(ErrorKind::WrongKind, Verb::Open)
        .at(name)
        .detail(detail)
        .remedy("name an object; `straightway ls` shows those below it")
}

pub(super) fn not_found(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::NotFound, verb)
        .at(name)
        .detail("neither an object nor the beginning of one's name")
        .remedy("look for the name with `straightway ls`")
}

impl Ceph {
    pub(super) fn open_blob(&self, at: Address) -> Result<Arc<Object>, Error> {
        let name = at.to_string();
        if at.key.is_empty() || at.key.ends_with('/') {
            return Err(wrong_kind(&name, "a pool or a prefix of names, not an object"));
        }
        let (blob, facts) = self.run(&self.shared.calls, (Verb::Open, &name), move |shared| {
            let (pool, name, stat) = match shared.stat_of(&at, Verb::Open) {
                Err(error)
                    if error.kind() == ErrorKind::NotFound && shared.has_below(&at, Verb::Open).unwrap_or(false) =>
                {
                    return Err(wrong_kind(&at.to_string(), "a prefix of names, not an object"));
                }
                other => other?,
            };
            let facts = (stat.len, version(&pool, stat));
            let pool = Arc::new(Held::new(pool, &shared.calls));
            Ok((Blob { shared: shared.clone(), at, name, pool, stat }, facts))
        })?;
        Ok(Arc::new(self.object(name, Arc::new(blob), facts)))
    }

    pub(super) fn stat_blob(&self, at: Address, name: &str) -> Result<Entry, Error> {
        let named = name.to_owned();
        self.run(&self.shared.calls, (Verb::Open, name), move |shared| {
            if at.key.is_empty() {
                return shared.pool(&at, Verb::Open, &named).map(|_| directory(&named));
            }
            let is_prefix = || shared.has_below(&at, Verb::Open);
            if at.key.ends_with('/') {
                return if is_prefix()? { Ok(directory(&named)) } else { Err(not_found(&named, Verb::Open)) };
            }
            match shared.stat_of(&at, Verb::Open) {
                Ok((pool, _, stat)) => {
                    Ok(Entry { name: named, kind: EntryKind::Object, len: stat.len, version: version(&pool, stat) })
                }
                Err(error) if error.kind() == ErrorKind::NotFound && is_prefix().unwrap_or(false) => {
                    Ok(directory(&named))
                }
                Err(error) => Err(error),
            }
        })
    }

    pub(super) fn list_blobs(&self, at: Address, name: &str) -> Result<Vec<Entry>, Error> {
        let level_of = at.clone();
        let level =
            self.run(&self.shared.calls, (Verb::List, name), move |shared| shared.level(&level_of, Verb::List))?;
        if level.is_empty() && !at.key.is_empty() {
            // An object lists as itself; what is neither object nor prefix is not there.
            return if at.key.ends_with('/') {
                Err(not_found(name, Verb::List))
            } else {
                Ok(vec![self.stat_blob(at, name)?])
            };
        }
        let (objects, prefixes): (Vec<_>, Vec<_>) = level.into_iter().partition(|(_, is_object)| *is_object);
        let mut entries: Vec<Entry> =
            prefixes.into_iter().map(|(key, _)| directory(&at.sibling(&key).to_string())).collect();
        let keys: Vec<String> = objects.into_iter().map(|(key, _)| key).collect();
        // Shares of a fixed size, so that each is done within the patience.
        for share in keys.chunks(ASKED_TOGETHER * 1024) {
            let parts = share.chunks(share.len().div_ceil(ASKED_TOGETHER)).map(<[String]>::to_vec);
            let parts: Vec<_> = parts.collect();
            let (shared, at, named) = (self.shared.clone(), at.clone(), name.to_owned());
            let asked = async move {
                let ask = |keys: Vec<String>| {
                    let (asked, at) = (shared.clone(), at.clone());
                    shared.calls.call((Verb::List, &named), move || asked.entries(&at, &keys, Verb::List))
                };
                futures_util::future::try_join_all(parts.into_iter().map(ask)).await
            };
            let limit = self.shared.limit();
            let asked = self.shared.calls.runtime.wait((Verb::List, name), limit, asked)?;
            entries.extend(asked.into_iter().flatten());
        }
        Ok(entries)
    }

    pub(super) fn remove_blob(&self, at: Address) -> Result<(), Error> {
        let name = at.to_string();
        let removed = self.run(&self.shared.calls, (Verb::Replace, &name), move |shared| {
            let name = at.to_string();
            let (pool, key) = (shared.pool(&at, Verb::Replace, &name)?, text(&at.key, Verb::Replace, &name)?);
            pool.remove(&key).map_err(|failed| fault::of_write(failed, Verb::Replace, &name))
        });
        removed.map_err(late_is_unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_object_of_its_level_or_of_one_below() {
        for (prefix, name, want) in [
            ("", "a", Some(("a", EntryKind::Object))),
            ("", "a/b/c", Some(("a", EntryKind::Directory))),
            ("a/", "a/b/c", Some(("a/b", EntryKind::Directory))),
            ("a/b/", "a/b/c", Some(("a/b/c", EntryKind::Object))),
            ("a/", "ab", None),
            // Names with empty parts lead down, not back.
            ("a/", "a//b", Some(("a//", EntryKind::Directory))),
            ("a//", "a//b", Some(("a//b", EntryKind::Object))),
            ("", "/x", Some(("/", EntryKind::Directory))),
            ("/", "/x", Some(("/x", EntryKind::Object))),
            ("a/", "a/", None),
        ] {
            assert_eq!(below(prefix, name), want, "{prefix} {name}");
        }
    }
}
