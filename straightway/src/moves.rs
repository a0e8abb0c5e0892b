//! Many ranges moved inside a device's memory at once.

use std::fmt;

use sw_engine::{Error, Verb};

use crate::{backends::DeviceMoves, memory::Memory, policy::Destination};

/// Moves ranges between memories of one GPU, by its kernels: see [`Engine::moves`](crate::Engine::moves). It lives as long as its set-up is
/// wanted.
pub struct Moves {
    device: DeviceMoves,
    destination: Destination,
}

impl Moves {
    pub(crate) fn new(device: DeviceMoves, destination: Destination) -> Self {
        Self { device, destination }
    }

    /// Moves `ranges`, each its first byte in `from`, its first byte in `into` and its length, of any alignment. They are there when it
    /// returns.
    ///
    /// *Blocking*: until then. Nobody may write to `from`, or touch the ranges of `into`, meanwhile.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for memory of another device, for two memories of one allocation, and for ranges that overlap where they go:
    /// nothing was moved then. The device's; a part may have been moved then, and it takes nothing more.
    pub fn gather(&mut self, from: &Memory, into: &Memory, ranges: &[(u64, u64, u64)]) -> Result<(), Error> {
        self.device.gather(&from.span, &into.span, ranges).map_err(|error| error.into_error(Verb::Copy))
    }
}

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moves").field("destination", &self.destination).finish_non_exhaustive()
    }
}
