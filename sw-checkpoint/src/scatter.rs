//! Puts short runs of a window into their places in a region.
//!
//! ```text
//!  host memory:  the processor copies runs
//!  a GPU, places that lie side by side (columns of a tensor): the processor puts the runs together, one copy brings them
//!  a GPU, many places apart (a chunk of columns into the whole tensor): the window goes to the GPU in one piece, and its kernel moves
//!                the runs, thousands in one launch; without kernels, a copy for each
//! ```

use straightway::{CopyIn, Destination, Engine, Error, ErrorKind, Memory, Moves, Verb};

use crate::load_plan::{Place, Window};

/// Places apart from which on the GPU moves the runs: a copy for each takes some 10 microseconds, a launch with its two copies as long as
/// a few of them. Not measured on hardware.
const PLACES_MIN: usize = 16;

/// One for a load.
pub(crate) struct Scatter<'l> {
    engine: &'l Engine,
    into: Destination,
    way_in: CopyIn,
    moves: Option<Moves>,
    /// Where windows land in the GPU's memory, as long as the longest so far.
    landing: Option<Memory>,
    moved_bytes: u64,
    refusal: Option<Error>,
}

impl<'l> Scatter<'l> {
    /// For regions in `into`.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(engine: &'l Engine, into: Destination) -> Result<Self, Error> {
        let way_in = engine.copy_in(into)?;
        Ok(Self { engine, into, way_in, moves: None, landing: None, moved_bytes: 0, refusal: None })
    }

    /// Bytes that a GPU's kernel moved, and why it moved no more; no reason where nothing more was asked of it.
    pub fn outcome(self) -> (u64, Option<Error>) {
        (self.moved_bytes, self.refusal)
    }

    /// Puts the runs of `window`, whose bytes these are, into their places.
    ///
    /// # Errors
    /// `Protocol` if the bytes are too few; the copy engine's; the device's.
    pub fn put(&mut self, window: &Window<'_>, bytes: &[u8], memory: &Memory, place: Place) -> Result<(), Error> {
        let runs: Vec<(u64, u64, u64)> = window.copies().collect();
        if runs.iter().any(|(from, _, len)| run_of(bytes, *from, *len).is_none()) {
            return Err(too_short());
        }
        if places_apart(&runs) >= PLACES_MIN && self.can_move() && self.land(bytes)? {
            return self.move_runs(&runs, memory, place);
        }
        self.copy_runs(&runs, bytes, memory, place)
    }

    /// Whether a GPU moves runs here. Asked when some are there to be moved: its driver makes code of the kernel first.
    fn can_move(&mut self) -> bool {
        if self.moves.is_none() && self.refusal.is_none() && matches!(self.into, Destination::Gpu(_)) {
            match self.engine.moves(self.into) {
                Ok(moves) => self.moves = Some(moves),
                Err(refusal) => self.refusal = Some(refusal),
            }
        }
        self.moves.is_some()
    }

    /// Copies a window into memory of the GPU's; `false` if there is no room for one, which is told once.
    fn land(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        let len = bytes.len() as u64;
        if self.landing.as_ref().is_none_or(|landing| landing.len() < len) {
            self.landing = None;
            match self.engine.allocate(self.into, len, 0) {
                Ok(landing) => self.landing = Some(landing),
                Err(refusal) => {
                    (self.moves, self.refusal) = (None, Some(refusal));
                    return Ok(false);
                }
            }
        }
        let Some(landing) = &self.landing else { return Ok(false) };
        self.way_in.put(landing, 0, bytes).map(|()| true)
    }

    fn move_runs(&mut self, runs: &[(u64, u64, u64)], memory: &Memory, place: Place) -> Result<(), Error> {
        let (Some(moves), Some(landing)) = (&mut self.moves, &self.landing) else {
            return Err(
                Error::new(ErrorKind::Protocol, Verb::Copy).detail("runs were to be moved by what is not there")
            );
        };
        let placed: Vec<(u64, u64, u64)> =
            runs.iter().map(|(from, to, len)| (*from, place.region_offset + to, *len)).collect();
        moves.gather(landing, memory, &placed)?;
        self.moved_bytes += runs.iter().map(|(_, _, len)| len).sum::<u64>();
        Ok(())
    }

    /// Neighbours together, one copy for each place apart.
    fn copy_runs(
        &mut self,
        runs: &[(u64, u64, u64)],
        bytes: &[u8],
        memory: &Memory,
        place: Place,
    ) -> Result<(), Error> {
        let mut together: Vec<u8> = Vec::new();
        let mut start = 0;
        for (from, to, len) in runs {
            let run = run_of(bytes, *from, *len).ok_or_else(too_short)?;
            if !together.is_empty() && start + together.len() as u64 != *to {
                self.way_in.put(memory, place.region_offset + start, &together)?;
                together.clear();
            }
            if together.is_empty() {
                start = *to;
            }
            together.extend_from_slice(run);
        }
        self.way_in.put(memory, place.region_offset + start, &together)
    }
}

fn run_of(bytes: &[u8], from: u64, len: u64) -> Option<&[u8]> {
    let from = usize::try_from(from).ok()?;
    bytes.get(from..from.checked_add(usize::try_from(len).ok()?)?)
}

fn too_short() -> Error {
    Error::new(ErrorKind::Protocol, Verb::Copy).detail("a read came back shorter than its window")
}

/// Places that the runs fill, runs side by side counted as one.
fn places_apart(runs: &[(u64, u64, u64)]) -> usize {
    let apart = |pair: &[(u64, u64, u64)]| match pair {
        [(_, first, len), (_, second, _)] => first + len != *second,
        _ => false,
    };
    runs.windows(2).filter(|pair| apart(pair)).count() + usize::from(!runs.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_side_by_side_are_one_place() {
        assert_eq!(places_apart(&[]), 0);
        assert_eq!(places_apart(&[(0, 10, 5), (90, 15, 5), (7, 20, 1)]), 1);
        assert_eq!(places_apart(&[(0, 10, 5), (5, 16, 4), (9, 20, 1)]), 2);
    }
}
