//! Checksums of bytes where they lie: of what is in memory now, not of what a read saw on its way there.

use std::fmt;

use sw_engine::{Error, ErrorKind, Verb, checksum::Algorithm};
use sw_mem::ByteLen;

use crate::{
    backends::{DeviceSums, SumRange},
    memory::{CopyOut, Memory},
    policy::Destination,
};

/// Sums bytes in memory of one kind: see [`Engine::sums`](crate::Engine::sums). It lives as long as its set-up is wanted: a device's has
/// its kernels loaded and a stream.
pub struct Sums {
    way: Way,
    destination: Destination,
    refusal: Option<Error>,
}

enum Way {
    /// The device's own kernels.
    Device(Box<DeviceSums>),
    /// The processor, over copies if the memory is a device's.
    Processor(Box<CopyOut>),
}

impl Sums {
    pub(crate) fn on_device(sums: DeviceSums, destination: Destination) -> Self {
        Self { way: Way::Device(Box::new(sums)), destination, refusal: None }
    }

    pub(crate) fn by_processor(out: CopyOut, destination: Destination, refusal: Option<Error>) -> Self {
        Self { way: Way::Processor(Box::new(out)), destination, refusal }
    }

    /// Whether the device sums its own memory, so that no byte goes back to the host.
    pub fn is_on_device(&self) -> bool {
        matches!(self.way, Way::Device(_))
    }

    /// Why the device of the memory does not sum it; `None` if it does, and for memory that has no such device.
    pub fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }

    /// The same, to keep.
    pub fn into_refusal(self) -> Option<Error> {
        self.refusal
    }

    /// The checksums of ranges, each a memory with the first byte and the length of a range in it, in their order. Nothing may write to
    /// them meanwhile.
    ///
    /// *Blocking*: until every byte was looked at.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for memory of another kind than it was made for; the device's, after which it takes nothing more.
    pub fn of(&mut self, algorithm: Algorithm, ranges: &[(&Memory, u64, u64)]) -> Result<Vec<u64>, Error> {
        for (memory, at, len) in ranges {
            memory.check_range(*at, *len)?;
            if memory.destination() != self.destination {
                return Err(Error::new(ErrorKind::ApiMisuse, Verb::Copy)
                    .at(format!("{} memory", memory.destination()))
                    .detail(format!("these checksums are of {} memory", self.destination))
                    .remedy("make one for each kind of memory"));
            }
        }
        match &mut self.way {
            Way::Device(sums) => {
                let mut asked = Vec::with_capacity(ranges.len());
                for (memory, at, len) in ranges {
                    asked.push(SumRange { memory: &memory.span, at: *at, len: ByteLen(*len) });
                }
                sums.of(algorithm, &asked).map_err(|error| error.into_error(Verb::Copy))
            }
            Way::Processor(out) => {
                ranges.iter().map(|(memory, at, len)| by_copies(out, algorithm, memory, *at, *len)).collect()
            }
        }
    }
}

fn by_copies(out: &mut CopyOut, algorithm: Algorithm, memory: &Memory, at: u64, len: u64) -> Result<u64, Error> {
    let mut sum = algorithm.of(&[]);
    out.visit(memory, at, len, |bytes| sum = algorithm.combine(sum, algorithm.of(bytes), bytes.len() as u64))?;
    Ok(sum)
}

impl fmt::Debug for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.is_on_device() { "the device" } else { "the processor" };
        f.debug_struct("Sums").field("destination", &self.destination).field("by", &by).finish_non_exhaustive()
    }
}
