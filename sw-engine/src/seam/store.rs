//! The control plane: names to objects. May block; never on the data path.

use std::{ops::ControlFlow, sync::Arc};

use crate::{
    error::{Error, ErrorKind, Verb},
    object::{Object, Version},
};

/// What kind of thing a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Bytes at offsets.
    Object,
    /// A container of names.
    Directory,
    /// A block device.
    BlockDevice,
    /// Something else (a pipe, a socket).
    Other,
}

/// One name in a listing, or the answer of a stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The full name: with it `open` finds the thing again.
    pub name: String,
    /// Its kind.
    pub kind: EntryKind,
    /// Bytes; 0 for what has none.
    pub len: u64,
    /// Its version.
    pub version: Version,
}

/// What becomes of names that begin with a dot, and of what lies below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// They are given like others.
    Given,
    /// They are left out.
    LeftOut,
}

/// Directories inside each other that a walk goes down, at most: a link may lead back.
pub const WALK_DEPTH_MAX: usize = 64;

/// What an object is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To read.
    Read,
    /// To write in place; it exists already.
    Update,
}

/// Whether a new name is durable when a commit returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// It is.
    Durable,
    /// The bytes are; the name is once the caller has flushed its directory.
    Left,
}

/// A new object in the making: written under a temporary name, then put in place as a whole or not at all.
pub trait WriteIntent: Send {
    /// The object to write to. Its length is the size that `create` was given.
    fn object(&self) -> &Arc<Object>;

    /// Makes it end after `len` bytes; what was written behind them is gone. For an object whose length was not known when it was
    /// begun. No I/O on it is under way.
    ///
    /// # Errors
    /// Any of the store.
    fn cut(&self, len: u64) -> Result<(), Error>;

    /// Makes it durable under its final name, replacing what was there. After an error the old one is still there. The bytes
    /// are durable before they have the name, whatever is asked of `names`.
    ///
    /// # Errors
    /// Any of the store; nothing is left behind but the temporary name, which [`Drop`] removes if it can.
    fn commit(self: Box<Self>, names: Names) -> Result<(), Error>;
}

/// Resolves the names of one scheme.
///
/// *Thread*: any, shared. *Blocking*: every call.
pub trait Store: Send + Sync {
    /// Opens a name.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `WrongKind` and what the system reports, each with the name.
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error>;

    /// Starts a new object of `len` bytes; space is reserved where the store can.
    ///
    /// # Errors
    /// As `open`, and `NoSpace`.
    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error>;

    /// Facts of a name, without opening it.
    ///
    /// # Errors
    /// As `open`.
    fn stat(&self, name: &str) -> Result<Entry, Error>;

    /// The entries of a directory, in byte order of their names; an object lists as itself.
    ///
    /// # Errors
    /// As `open`.
    fn list(&self, name: &str) -> Result<Vec<Entry>, Error>;

    /// Gives each thing below a directory, at any depth, that is no directory itself, in byte order of the names, until `each` breaks; an object gives itself.
    /// Holds a listing of each directory on the way down, or less.
    ///
    /// # Errors
    /// As `open`; `TooLarge` for more than [`WALK_DEPTH_MAX`] directories inside each other.
    fn walk(&self, name: &str, hidden: Hidden, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), Error> {
        let list = &|name: &str| self.list(name);
        walk_down(list, (name, 0), hidden, each).map(drop)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// As `open`.
    fn remove(&self, name: &str) -> Result<(), Error>;
}

/// A walk by listings.
fn walk_down(
    list: &dyn Fn(&str) -> Result<Vec<Entry>, Error>,
    (name, depth): (&str, usize),
    hidden: Hidden,
    each: &mut dyn FnMut(Entry) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    if depth > WALK_DEPTH_MAX {
        return Err(Error::new(ErrorKind::TooLarge, Verb::List)
            .at(name.to_owned())
            .detail(format!("more than {WALK_DEPTH_MAX} directories inside each other"))
            .remedy("look for a link that leads back; name the directories below"));
    }
    let mut entries = list(name)?;
    let is_hidden = |entry: &Entry| last_part(&entry.name).starts_with('.');
    entries.retain(|entry| hidden == Hidden::Given || !is_hidden(entry));
    // As what is below a directory is called: its slash is a byte like others.
    let key = |entry: &Entry| match entry.kind {
        EntryKind::Directory => format!("{}/", entry.name.trim_end_matches('/')),
        EntryKind::Object | EntryKind::BlockDevice | EntryKind::Other => entry.name.clone(),
    };
    entries.sort_by_cached_key(key);
    for entry in entries {
        let flow = match entry.kind {
            EntryKind::Directory => walk_down(list, (&entry.name, depth + 1), hidden, each)?,
            EntryKind::Object | EntryKind::BlockDevice | EntryKind::Other => each(entry),
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The name in its directory.
fn last_part(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

/// One that is shared is one.
impl<T: Store + ?Sized> Store for Arc<T> {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        (**self).open(name, mode)
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        (**self).create(name, len)
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        (**self).stat(name)
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        (**self).list(name)
    }

    fn walk(&self, name: &str, hidden: Hidden, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), Error> {
        (**self).walk(name, hidden, each)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        (**self).remove(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: EntryKind) -> Entry {
        Entry { name: name.to_owned(), kind, len: 0, version: Version::default() }
    }

    /// Directories and objects by their names; a directory that leads back to itself.
    fn list(name: &str) -> Result<Vec<Entry>, Error> {
        let (directory, object) = (EntryKind::Directory, EntryKind::Object);
        Ok(match name {
            "/d" => vec![
                entry("/d/a", directory),
                entry("/d/a-b", object),
                entry("/d/a0", object),
                entry("/d/.git", directory),
                entry("/d/.x", object),
            ],
            "/d/a" => vec![entry("/d/a/1", object), entry("/d/a/2", object)],
            "/d/.git" => vec![entry("/d/.git/head", object)],
            "/loop" => vec![entry("/loop", directory)],
            one => vec![entry(one, object)],
        })
    }

    fn walked(name: &str, hidden: Hidden, most: usize) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let mut each = |entry: Entry| {
            names.push(entry.name);
            if names.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let _ended = walk_down(&list, (name, 0), hidden, &mut each)?;
        Ok(names)
    }

    #[test]
    fn a_walk_is_in_the_order_of_the_whole_names() {
        let shown = ["/d/.git/head", "/d/.x", "/d/a-b", "/d/a/1", "/d/a/2", "/d/a0"];
        assert!(shown.is_sorted());
        assert_eq!(walked("/d", Hidden::Given, 100).unwrap(), shown);
        assert_eq!(walked("/d", Hidden::LeftOut, 100).unwrap(), shown[2..]);
        assert_eq!(walked("/d", Hidden::LeftOut, 2).unwrap(), shown[2..4]);
        assert_eq!(walked("/one", Hidden::Given, 100).unwrap(), ["/one"]);
    }

    #[test]
    fn a_link_that_leads_back_ends_a_walk() {
        assert_eq!(walked("/loop", Hidden::Given, 100).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
