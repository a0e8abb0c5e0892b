//! Heads of npy files, and the types of their elements.
//!
//! Source: numpy `numpy/lib/format.py`, version 1.0.

use std::{fmt, str::FromStr};

use straightway::{Error, ErrorKind, Verb};

/// Heads end at multiples of this.
const ALIGN: usize = 64;

/// What elements of an array are: `u1`, `i8`, `f4` and so on, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    kind: char,
    bytes: u8,
}

impl Element {
    /// Bytes.
    pub const BYTE: Self = Self { kind: 'u', bytes: 1 };

    /// Bytes of one.
    pub fn width(self) -> u64 {
        self.bytes.into()
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind, self.bytes)
    }
}

impl FromStr for Element {
    type Err = Error;

    /// # Errors
    /// `ApiMisuse`, with the types that there are.
    fn from_str(text: &str) -> Result<Self, Error> {
        let all = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"];
        let known = all.contains(&text).then(|| text.split_at(1));
        let read =
            known.and_then(|(kind, bytes)| Some(Self { kind: kind.chars().next()?, bytes: bytes.parse().ok()? }));
        read.ok_or_else(|| {
            Error::new(ErrorKind::ApiMisuse, Verb::Parse)
                .at(text)
                .detail("no element of an array is called so")
                .remedy(format!("use one of {}", all.join(", ")))
        })
    }
}

/// What stands before the elements of `rows` samples of `columns` each.
pub(super) fn head(element: Element, rows: u64, columns: u64) -> Vec<u8> {
    let order = if element.bytes == 1 { '|' } else { '<' };
    let mut text = format!("{{'descr': '{order}{element}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    const BEFORE: usize = 10;
    let len = (BEFORE + text.len() + 1).next_multiple_of(ALIGN);
    text.extend(std::iter::repeat_n(' ', len - BEFORE - text.len() - 1));
    text.push('\n');
    let own = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&b"\x93NUMPY\x01\x00"[..], &own.to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{NpyScan, scan_slice};

    #[test]
    fn heads_are_read_back() {
        for (element, rows, columns) in [("u1", 0, 1), ("f4", 12_345_678_901, 128), ("i8", 1, 1), ("f2", 7, 768)] {
            let element: Element = element.parse().unwrap();
            let head = head(element, rows, columns);
            assert_eq!(head.len() % ALIGN, 0);
            let content = rows * columns * element.width();
            let mut scan = NpyScan::new(head.len() as u64 + content).unwrap();
            let found = scan_slice(&mut scan, &head).unwrap();
            assert_eq!((found[0].shape.as_slice(), found[0].content.len), (&[rows, columns][..], content));
        }
        for wrong in ["", "f1", "f16", "x4", "4f", "<f4"] {
            assert!(wrong.parse::<Element>().is_err(), "{wrong}");
        }
    }
}
