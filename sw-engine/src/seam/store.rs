//! The control plane: names to objects. May block; never on the data path.

use std::sync::Arc;

use crate::{
    error::Error,
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

    /// Removes an object.
    ///
    /// # Errors
    /// As `open`.
    fn remove(&self, name: &str) -> Result<(), Error>;
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

    fn remove(&self, name: &str) -> Result<(), Error> {
        (**self).remove(name)
    }
}
