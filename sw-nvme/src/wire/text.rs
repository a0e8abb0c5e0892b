//! Text that a device gives: space-padded ASCII fields and the NQN.

use core::fmt;

/// An ASCII field, trimmed. What is not printable ASCII is shown as `?`, so that a device cannot write control
/// characters to a terminal or a log (Base, "Identify Controller data structure": SN, MN and FR are ASCII strings,
/// left justified, padded with spaces; devices that pad with zeros exist).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ascii<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Ascii<N> {
    /// From the raw field: ends at the first zero byte, loses spaces at both ends.
    pub fn new(raw: [u8; N]) -> Self {
        let end = raw.iter().position(|&byte| byte == 0).unwrap_or(N);
        let text = raw.get(..end).unwrap_or(&raw).trim_ascii();
        let mut bytes = [0; N];
        for (to, &from) in bytes.iter_mut().zip(text) {
            *to = if from.is_ascii_graphic() || from == b' ' { from } else { b'?' };
        }
        Self { bytes, len: text.len() }
    }

    /// The text, at most `N` bytes.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("")
    }
}

impl<const N: usize> fmt::Display for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_goes_and_control_characters_are_shown_as_question_marks() {
        assert_eq!(Ascii::new(*b"  QEMU NVMe \x1b[2J  ").as_str(), "QEMU NVMe ?[2J");
        assert_eq!(Ascii::new(*b"ab\0garbage").as_str(), "ab");
        assert_eq!(Ascii::new([0xFF; 4]).as_str(), "????");
        assert_eq!(Ascii::new([b' '; 8]).as_str(), "");
    }
}
