//! What a save is given: tensors with the memory that their bytes are in.

use straightway::{Error, ErrorKind, Memory, Verb};

use crate::TensorSpec;

/// Bytes that the caller has, in whatever memory: copied into our staging memory while the caller waits.
///
/// It is asked range by range, by the caller's thread and by those that help it
/// ([`SaverOptions::capture_threads`](crate::SaverOptions::capture_threads)), several at a time, and never after the capture is
/// over. With one thread it is asked in the order of the files. A binding that has a pointer implements it; nothing of ours
/// keeps the pointer.
pub trait Source: Sync {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` with the bytes from `at` on. Never asked for bytes past the end.
    ///
    /// # Errors
    /// What reading that memory reports; the save fails with it.
    fn copy_to(&self, at: u64, into: &mut [u8]) -> Result<(), Error>;
}

impl Source for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn copy_to(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..into.len()));
        let from = from.ok_or_else(|| Error::new(ErrorKind::OutOfRange, Verb::Copy).in_range(at, into.len() as u64))?;
        into.copy_from_slice(from);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn copy_to(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        self.as_slice().copy_to(at, into)
    }
}

/// Where the bytes of a tensor are.
pub enum Bytes<'a> {
    /// Memory of the caller's, captured before [`Saver::save`](crate::Saver::save) returns.
    Source(&'a dyn Source),
    /// Memory that the engine knows, host or device, captured before [`Saver::save`](crate::Saver::save) returns; device
    /// memory by the engine's copy path. Borrowed alone, because several threads look at it.
    Memory(&'a mut Memory),
    /// Memory given away until the save is over: the caller waits for nothing. Where it is host memory that lies in its
    /// page as the bytes lie in their block of the file, it is written from there without a copy.
    Owned(Memory),
}

impl Bytes<'_> {
    /// How many there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Source(source) => source.len(),
            Self::Memory(memory) => memory.len(),
            Self::Owned(memory) => memory.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which part of a larger tensor it is, where ranks hold one tensor together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Dimensions of the whole tensor.
    pub whole: Vec<u64>,
    /// First element of the part in each dimension.
    pub offsets: Vec<u64>,
}

impl Slice {
    /// Whether a part of `shape` lies in the whole.
    pub(super) fn holds(&self, shape: &[u64]) -> bool {
        let same_rank = shape.len() == self.whole.len() && shape.len() == self.offsets.len();
        let mut dimensions = shape.iter().zip(&self.offsets).zip(&self.whole);
        same_rank && dimensions.all(|((len, at), whole)| at.checked_add(*len).is_some_and(|end| end <= *whole))
    }
}

/// A tensor to save.
pub struct NewTensor<'a> {
    /// Name, element type, and the dimensions of what is saved here.
    pub spec: TensorSpec,
    /// Its place in a larger tensor; `None` if it is whole.
    pub slice: Option<Slice>,
    /// Its bytes, in C order without gaps.
    pub bytes: Bytes<'a>,
}

impl<'a> NewTensor<'a> {
    /// A whole tensor.
    pub fn new(spec: TensorSpec, bytes: Bytes<'a>) -> Self {
        Self { spec, slice: None, bytes }
    }
}
