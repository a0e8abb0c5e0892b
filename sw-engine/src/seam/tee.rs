//! Copies of bytes that reads brought, for whoever keeps them.

use std::ops::Range;

/// Bytes that have landed, from their first on.
pub trait Landed {
    /// Leaves the next bytes out.
    fn skip(&mut self, bytes: u32);

    /// Copies the next bytes over `to`, which is no longer than what is left.
    fn copy_to(&mut self, to: &mut [u8]);
}

/// What has landed of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is in the object.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// The range of the object that is being read: other parts of it come before or after.
    pub of: Range<u64>,
}

/// Takes copies of what was read of one object, on its way to whoever reads it.
///
/// *Thread*: any of a transport's, several at a time. Its reader waits meanwhile, so it takes no longer than a copy, and never waits
/// itself; what it has no room for it leaves.
pub trait Tee: Send + Sync {
    /// Bytes came, from where the object is: they are not those of the reader's memory, which somebody may have changed.
    fn landed(&self, part: Part, bytes: &mut dyn Landed);

    /// What came of the object is wrong by a checksum of all of it: none of it is to be kept.
    fn disown(&self);
}
