//! A batch in the caller's hands.

use std::sync::{Arc, Mutex, PoisonError};

use straightway::{Buffer, Destination, Engine, Error, Memory};

use super::{deal::LoaderState, error::SampleId, pool::Pool};

/// Samples in one piece of memory, which goes back to the loader when the batch is dropped. The address stays as it is until
/// then, so that whoever exports it (as DLPack, say) keeps the batch and nothing else.
#[derive(Debug)]
pub struct Batch {
    pub(super) parts: Parts,
    held: Held,
    home: Home,
}

/// What a batch is, besides its memory.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) seq: u64,
    pub(super) epoch: u64,
    pub(super) after: LoaderState,
    pub(super) ids: Vec<SampleId>,
    pub(super) offsets: Vec<u64>,
    pub(super) lengths: Vec<u64>,
    /// Bytes of each place, if all are equally long.
    pub(super) stride: Option<u64>,
    /// Bytes of the memory that belong to the batch.
    pub(super) used: u64,
}

#[derive(Debug)]
enum Held {
    /// No bytes at all.
    Nothing,
    Host(Buffer),
    /// Only its owner touches it: the lock is for looking at it from several threads.
    Device(Mutex<Memory>),
}

struct Home(Arc<Pool>);

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Home")
    }
}

impl Batch {
    pub(super) fn new(parts: Parts, memory: Option<Memory>, home: Arc<Pool>) -> Self {
        let held = match memory.map(Memory::into_buffer) {
            None => Held::Nothing,
            Some(Ok(buffer)) => Held::Host(buffer),
            Some(Err(memory)) => Held::Device(Mutex::new(memory)),
        };
        Self { parts, held, home: Home(home) }
    }

    /// How many samples it has.
    pub fn len(&self) -> usize {
        self.parts.ids.len()
    }

    /// Whether it has none: all of them were left out.
    pub fn is_empty(&self) -> bool {
        self.parts.ids.is_empty()
    }

    /// Its number since the loader was made, from 0; ends of epochs have numbers too.
    pub fn number(&self) -> u64 {
        self.parts.seq
    }

    /// The epoch that it is of; 0 for a mixture.
    pub fn epoch(&self) -> u64 {
        self.parts.epoch
    }

    /// Which samples, in order.
    pub fn ids(&self) -> &[SampleId] {
        &self.parts.ids
    }

    /// Where each sample begins, in bytes from [`Batch::address`].
    pub fn offsets(&self) -> &[u64] {
        &self.parts.offsets
    }

    /// How many bytes each sample has.
    pub fn lengths(&self) -> &[u64] {
        &self.parts.lengths
    }

    /// Bytes from each sample's beginning to the next one's, if all have places of equal length, one after the other: the batch
    /// is an array of [`Batch::len`] times that many bytes.
    pub fn stride(&self) -> Option<u64> {
        self.parts.stride
    }

    /// The state of the loader once this batch is taken.
    pub fn state(&self) -> &LoaderState {
        &self.parts.after
    }

    /// Where its memory is.
    pub fn destination(&self) -> Destination {
        match &self.held {
            Held::Nothing | Held::Host(_) => Destination::Host,
            Held::Device(memory) => memory.lock().unwrap_or_else(PoisonError::into_inner).destination(),
        }
    }

    /// Address of its first byte, in the space of [`Batch::destination`]; 0 if it has no bytes.
    pub fn address(&self) -> u64 {
        match &self.held {
            Held::Nothing => 0,
            Held::Host(buffer) => buffer.as_slice().as_ptr().expose_provenance() as u64,
            Held::Device(memory) => memory.lock().unwrap_or_else(PoisonError::into_inner).address(),
        }
    }

    /// Bytes of its memory, gaps and padding included.
    pub fn size_bytes(&self) -> u64 {
        self.parts.used
    }

    /// Bytes of memory that it keeps, for the books of the pool.
    pub(super) fn capacity(&self) -> u64 {
        match &self.held {
            Held::Nothing => 0,
            Held::Host(buffer) => buffer.len().0,
            Held::Device(memory) => memory.lock().unwrap_or_else(PoisonError::into_inner).len(),
        }
    }

    /// All its bytes; `None` in device memory.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.held {
            Held::Nothing => Some(&[]),
            Held::Host(buffer) => buffer.as_slice().get(..usize::try_from(self.parts.used).ok()?),
            Held::Device(_) => None,
        }
    }

    /// The bytes of a sample by its place in the batch; `None` past the last one, and in device memory.
    pub fn sample(&self, index: usize) -> Option<&[u8]> {
        let (offset, len) = (*self.parts.offsets.get(index)?, *self.parts.lengths.get(index)?);
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        self.as_bytes()?.get(offset..offset.checked_add(len)?)
    }

    /// Copies the bytes of a sample out, whatever memory they are in; `None` past the last one.
    ///
    /// # Errors
    /// The copy engine's.
    pub fn copy_sample(&self, engine: &Engine, index: usize) -> Result<Option<Vec<u8>>, Error> {
        let (Some(&offset), Some(&len)) = (self.parts.offsets.get(index), self.parts.lengths.get(index)) else {
            return Ok(None);
        };
        match &self.held {
            Held::Nothing | Held::Host(_) => Ok(self.sample(index).map(<[u8]>::to_vec)),
            Held::Device(memory) => {
                let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                engine.copy_range_to_host(&memory, offset, len).map(Some)
            }
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => {}
            Held::Host(buffer) => self.home.0.take_back(Memory::from(buffer)),
            Held::Device(memory) => self.home.0.take_back(memory.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}
