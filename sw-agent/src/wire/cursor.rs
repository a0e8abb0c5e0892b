//! Reading and writing little-endian fields one behind the other.

use super::Breach;

/// Reads from the start to the end.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Breach> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Breach::field(self.at, "it ends in the middle of a field"))?;
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Breach> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Breach> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Breach> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Breach> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Breach> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes that must be zero.
    pub(super) fn zero(&mut self, len: usize) -> Result<(), Breach> {
        let at = self.at;
        let is_zero = self.take(len)?.iter().all(|byte| *byte == 0);
        if is_zero { Ok(()) } else { Err(Breach::field(at, "bytes that must be zero are not")) }
    }

    /// A length of 16 bits and as many bytes.
    pub(super) fn blob(&mut self, len_max: usize) -> Result<&'a [u8], Breach> {
        let at = self.at;
        let len = usize::from(self.u16()?);
        if len > len_max {
            return Err(Breach::field(at, "it is longer than it may be"));
        }
        self.take(len)
    }

    /// A blob that is UTF-8 without control characters.
    pub(super) fn text(&mut self, len_max: usize) -> Result<Box<str>, Breach> {
        let at = self.at;
        let text = core::str::from_utf8(self.blob(len_max)?);
        let text = text.map_err(|_| Breach::field(at, "a text is not UTF-8"))?;
        if text.chars().any(char::is_control) {
            return Err(Breach::field(at, "a text has control characters"));
        }
        Ok(text.into())
    }
}

/// Writes one field behind the other.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn zero(&mut self, len: usize) -> &mut Self {
        self.out.resize(self.out.len() + len, 0);
        self
    }

    /// A blob of `len_max` bytes at most: what is behind is cut off. Callers check before, where that matters.
    pub(super) fn blob(&mut self, bytes: &[u8], len_max: usize) -> &mut Self {
        let len = bytes.len().min(len_max);
        self.u16(u16::try_from(len).unwrap_or(0));
        self.bytes(bytes.get(..len).unwrap_or_default())
    }

    /// A text, cut off at a character.
    pub(super) fn text(&mut self, text: &str, len_max: usize) -> &mut Self {
        let cut = (0..=len_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.blob(text.get(..cut).unwrap_or_default().as_bytes(), len_max)
    }
}
