//! What has its bytes elsewhere.

use std::fmt::Display;

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{Error, ErrorKind, Verb, seam::IoKind};

use crate::{address::Address, land::Landing};

/// An open remote object. Its futures run on the runtime's threads, several at a time; one that is dropped is over at once, and touches
/// no memory afterwards.
pub(crate) trait Remote: Send + Sync + 'static {
    /// Puts as many bytes as `landing` has, from byte `offset` on, into it. It may end with fewer: the lane asks for the rest.
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>>;

    /// Writes the bytes of `landing` at byte `offset`; all of them, or an error.
    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>>;

    /// Whether it is still what it was when it was opened.
    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Whether other bytes under its name have another [`Version`](sw_engine::Version) for certain, however soon they came and for as
    /// long as anybody remembers: a strong ETag, a generation. What is read of such an object may be kept.
    fn is_versioned(&self) -> bool {
        false
    }

    /// What a flush means for it.
    fn flush(&self, kind: IoKind) -> BoxFuture<'_, Result<(), Error>>;
}

/// Copies what a library read to its place.
pub(crate) fn land(landing: &mut Landing, bytes: Option<&[u8]>, at: &Address) -> Result<(), Error> {
    let landed = bytes.and_then(|bytes| landing.put(bytes).ok());
    landed.ok_or_else(|| {
        Error::new(ErrorKind::Protocol, Verb::Read).at(at.to_string()).detail("more bytes came than were asked for")
    })
}

/// What is open for reading is not written.
pub(crate) fn not_written(at: &impl Display) -> BoxFuture<'static, Result<(), Error>> {
    futures_util::future::ready(Err(read_only(at).detail("it is open for reading"))).boxed()
}

/// The same of a range; `what` says what it is.
pub(crate) fn no_range_written(
    at: &impl Display,
    (offset, landing): (u64, &Landing),
    what: &'static str,
) -> BoxFuture<'static, Result<(), Error>> {
    let error = read_only(at).in_range(offset, landing.len().into());
    futures_util::future::ready(Err(error.detail(format!("the {what} is open for reading")))).boxed()
}

fn read_only(at: &impl Display) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Write).at(at.to_string())
}

/// What is being written is not read.
pub(crate) fn not_read(at: &Address) -> BoxFuture<'static, Result<(), Error>> {
    let error = Error::new(ErrorKind::Unsupported, Verb::Read).at(at.to_string());
    let error = error.detail("an object that is being written is not read before it is whole");
    futures_util::future::ready(Err(error)).boxed()
}
