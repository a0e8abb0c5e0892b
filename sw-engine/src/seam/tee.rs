//! Copies of bytes that reads brought, for whoever keeps them.

/// Bytes that have landed, from their first on.
pub trait Landed {
    /// Leaves the next bytes out.
    fn skip(&mut self, bytes: u32);

    /// Copies the next bytes over `to`, which is no longer than what is left.
    fn copy_to(&mut self, to: &mut [u8]);
}

/// Takes copies of what was read of one object, on its way to whoever reads it.
///
/// *Thread*: any of a transport's, several at a time. Its reader waits meanwhile, so it takes no longer than a copy, and never waits
/// itself; what it has no room for it leaves.
pub trait Tee: Send + Sync {
    /// `len` bytes from `offset` of the object on have landed, as a read of its transport brought them.
    fn landed(&self, offset: u64, len: u32, bytes: &mut dyn Landed);
}
