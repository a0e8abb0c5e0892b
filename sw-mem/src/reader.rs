//! A span that several threads read at a time.
// UNSAFETY: a span is not `Sync` because it writes through `&self`; a reader has no way to write.
#![expect(unsafe_code, reason = "a promise about threads that the compiler cannot see")]

use crate::{ByteLen, DmaRegion, DmaSpan, MemError, Place};

/// A span that is only read while this lives, by any number of threads.
///
/// ```
/// let mut span = sw_mem::Buffer::allocate(sw_mem::ByteLen(8)).unwrap().into_span();
/// span.fill(0, 8, 7).unwrap();
/// let reader = span.reader();
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let mut byte = [0];
///         reader.read(3, &mut byte).unwrap();
///         assert_eq!(byte, [7]);
///     });
/// });
/// ```
#[derive(Debug)]
pub struct SpanReader<'a> {
    span: &'a mut DmaSpan,
}

// SAFETY: every method only reads, and the span is borrowed mutably, so nobody else can write through it while a reader
// lives. Other spans of the same bytes exist for regions from outside alone, whose constructor has the contract for those.
unsafe impl Sync for SpanReader<'_> {}

impl<'a> SpanReader<'a> {
    pub(crate) fn new(span: &'a mut DmaSpan) -> Self {
        Self { span }
    }

    /// Length in bytes.
    pub fn len(&self) -> ByteLen {
        self.span.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    /// Where its first byte lives.
    pub fn place(&self) -> Place {
        self.span.place()
    }

    /// Its region.
    pub fn region(&self) -> &DmaRegion {
        self.span.region()
    }

    /// As [`DmaSpan::read`].
    ///
    /// # Errors
    /// [`MemError`]; nothing is copied then.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<(), MemError> {
        self.span.read(at, to)
    }
}
