//! Conversations that `sw-nvme/testdata/wire/record.py` wrote down.

use std::path::Path;

/// Which end of a connection sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Who made the connection.
    Host,
    /// Who took it.
    Controller,
}

/// A unit as it went over the wire.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The number of its connection.
    pub connection: u32,
    /// Who sent it.
    pub from: From,
    /// All of it.
    pub bytes: Vec<u8>,
}

fn number(digits: &str, radix: u32) -> u32 {
    u32::from_str_radix(digits, radix).expect("a number")
}

/// The bytes of a word: hex, or one byte and how many times.
fn bytes(word: &str) -> Vec<u8> {
    let (hex, times) = word.split_once('x').map_or((word, 1), |(hex, times)| (hex, number(times, 10)));
    let pairs = (0..hex.len()).step_by(2).filter_map(|at| hex.get(at..at + 2));
    let piece: Vec<u8> = pairs.map(|pair| u8::try_from(number(pair, 16)).expect("two digits")).collect();
    piece.repeat(times as usize)
}

/// The units of a recording, in their order.
///
/// # Panics
/// It cannot be read, or is none.
pub fn recording(path: &Path) -> Vec<Unit> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let unit = |line: &str| {
        let mut words = line.split(' ');
        let (connection, way) = (words.next().expect("a number"), words.next());
        let from = if way == Some(">") { From::Host } else { From::Controller };
        Unit { connection: number(connection, 10), from, bytes: words.flat_map(bytes).collect() }
    };
    text.lines().map(unit).collect()
}
