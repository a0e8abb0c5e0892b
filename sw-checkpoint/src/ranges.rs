//! Where heads are read from: an object of the engine's, a part of one that was fetched before, or bytes in memory.

/// Something with bytes at offsets.
pub(crate) trait Ranges {
    /// Why reading fails.
    type Error;

    /// Length in bytes.
    fn len_bytes(&self) -> u64;

    /// Reads exactly `len` bytes from `offset`; both lie inside.
    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Self::Error>;
}

/// A head that could not be had: it could not be read, or is not of its format.
#[derive(Debug)]
pub(crate) enum Failed<R, F> {
    /// Reading failed.
    Read(R),
    /// The format.
    Format(F),
}

impl<R, F> From<F> for Failed<R, F> {
    fn from(fault: F) -> Self {
        Self::Format(fault)
    }
}

/// Reads `len` bytes in pieces, so that memory follows what arrives and not what a file claims.
pub(crate) fn read_in_pieces<R: Ranges>(from: &mut R, offset: u64, len: u64) -> Result<Vec<u8>, R::Error> {
    const PIECE_BYTES: u64 = 4 << 20;
    if len <= PIECE_BYTES {
        return from.read(offset, len);
    }
    let mut all = Vec::new();
    let mut done = 0;
    while done < len {
        let now = (len - done).min(PIECE_BYTES);
        all.append(&mut from.read(offset + done, now)?);
        done += now;
    }
    Ok(all)
}

impl Ranges for &[u8] {
    type Error = std::convert::Infallible;

    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Self::Error> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(self.get(from..to).map(<[u8]>::to_vec).unwrap_or_default())
    }
}
