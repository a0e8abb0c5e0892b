//! Thrift's compact protocol, read from bytes: what Parquet keeps its own records in.
//!
//! Source: Apache Thrift `doc/specs/thrift-compact-protocol.md`. A struct is a run of fields, each with a number and a kind; what is
//! not asked for is gone over. Nothing is allocated, and nesting is bounded.

use super::varint::{self, Bad};

/// How deep unknown fields may be nested.
const DEPTH_MAX: usize = 16;

/// Kind of a field or an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    True,
    False,
    Byte,
    Int,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

impl Kind {
    fn of(code: u8) -> Result<Self, Bad> {
        Ok(match code {
            1 => Self::True,
            2 => Self::False,
            3 => Self::Byte,
            4..=6 => Self::Int,
            7 => Self::Double,
            8 => Self::Binary,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            _ => return Err(Bad::Wrong),
        })
    }
}

/// Bytes that were not read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thrift<'a> {
    rest: &'a [u8],
}

impl<'a> Thrift<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that were not read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Bad::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Bad> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn unsigned(&mut self) -> Result<u64, Bad> {
        varint::unsigned(&mut self.rest)
    }

    /// An integer of any width.
    pub fn int(&mut self) -> Result<i64, Bad> {
        varint::signed(&mut self.rest)
    }

    pub fn binary(&mut self) -> Result<&'a [u8], Bad> {
        let len = usize::try_from(self.unsigned()?).map_err(|_| Bad::Wrong)?;
        self.take(len)
    }

    /// The head of a list: kind and number of its elements. Each has at least a byte.
    pub fn list(&mut self) -> Result<(Kind, usize), Bad> {
        let head = self.byte()?;
        // An empty list may leave its kind out.
        let kind = if head == 0 { Kind::Byte } else { Kind::of(head & 15)? };
        let len = match head >> 4 {
            15 => usize::try_from(self.unsigned()?).map_err(|_| Bad::Wrong)?,
            short => usize::from(short),
        };
        if len > self.left() { Err(Bad::Short) } else { Ok((kind, len)) }
    }

    /// Reads a struct: `each` is given the number and the kind of every field, and reads it or says that it did not.
    pub fn fields(&mut self, mut each: impl FnMut(&mut Self, i64, Kind) -> Result<Read, Bad>) -> Result<(), Bad> {
        let mut number = 0i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            let kind = Kind::of(head & 15)?;
            number = match head >> 4 {
                0 => self.int()?,
                step => number.checked_add(i64::from(step)).ok_or(Bad::Wrong)?,
            };
            let before = *self;
            if each(self, number, kind)? == Read::No {
                *self = before;
                self.skip(kind, DEPTH_MAX)?;
            }
        }
    }

    /// Goes over a field's value. In a struct a boolean is its kind; in a list it is a byte.
    fn skip(&mut self, kind: Kind, depth: usize) -> Result<(), Bad> {
        let depth = depth.checked_sub(1).ok_or(Bad::Wrong)?;
        match kind {
            Kind::True | Kind::False => {}
            Kind::Byte => {
                self.byte()?;
            }
            Kind::Int => {
                self.unsigned()?;
            }
            Kind::Double => {
                self.take(8)?;
            }
            Kind::Binary => {
                self.binary()?;
            }
            Kind::List => {
                let (kind, len) = self.list()?;
                for _ in 0..len {
                    self.skip_element(kind, depth)?;
                }
            }
            Kind::Map => {
                let len = usize::try_from(self.unsigned()?).map_err(|_| Bad::Wrong)?;
                if len == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                if len > self.left() {
                    return Err(Bad::Short);
                }
                for _ in 0..len {
                    self.skip_element(Kind::of(kinds >> 4)?, depth)?;
                    self.skip_element(Kind::of(kinds & 15)?, depth)?;
                }
            }
            Kind::Struct => loop {
                let head = self.byte()?;
                if head == 0 {
                    break;
                }
                if head >> 4 == 0 {
                    self.int()?;
                }
                self.skip(Kind::of(head & 15)?, depth)?;
            },
        }
        Ok(())
    }

    fn skip_element(&mut self, kind: Kind, depth: usize) -> Result<(), Bad> {
        match kind {
            Kind::True | Kind::False => self.byte().map(drop),
            kind => self.skip(kind, depth),
        }
    }
}

/// Whether a field was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// It was.
    Yes,
    /// It is to be gone over.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_others_gone_over() {
        // 1: int -3; 2: list of two structs with a boolean each; 40 (long form): binary "ab"; end; one byte more.
        let bytes = [0x15, 5, 0x19, 0x2c, 0x11, 0, 0x12, 0, 0x08, 80, 2, b'a', b'b', 0, 9];
        let mut thrift = Thrift::new(&bytes);
        let (mut int, mut text) = (0, &b""[..]);
        let read = thrift.fields(|thrift, number, kind| {
            match (number, kind) {
                (1, Kind::Int) => int = thrift.int()?,
                (40, Kind::Binary) => text = thrift.binary()?,
                _ => return Ok(Read::No),
            }
            Ok(Read::Yes)
        });
        assert_eq!((read, int, text, thrift.left()), (Ok(()), -3, &b"ab"[..], 1));
        for len in 0..bytes.len() - 1 {
            assert_eq!(Thrift::new(&bytes[..len]).fields(|_, _, _| Ok(Read::No)), Err(Bad::Short), "{len}");
        }
    }

    #[test]
    fn depth_and_lengths_are_bounded() {
        // A list of one list of one list …
        let deep: Vec<u8> = [0x19].into_iter().chain([0x19; 100]).collect();
        assert_eq!(Thrift::new(&deep).fields(|_, _, _| Ok(Read::No)), Err(Bad::Wrong));
        // A list of 2³² bytes, a map of as many, a number of 70 bits.
        let lists = [[0x19, 0xf3, 0xff, 0xff, 0xff, 0xff, 0x0f, 0], [0x1b, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x33, 0]];
        for bytes in lists {
            assert_eq!(Thrift::new(&bytes).fields(|_, _, _| Ok(Read::No)), Err(Bad::Short));
        }
        assert_eq!(Thrift::new(&[0xff; 12]).int(), Err(Bad::Wrong));
    }
}
