//! Features of a `tf.train.Example`, the payload of most TFRecords.
//!
//! Sources: tensorflow `core/example/example.proto`, `feature.proto`; protobuf "Encoding": a message is a run of fields, each a tag
//! and a value; a map is a repeated message of a key and a value.
//!
//! ```text
//!   Example { 1: Features { 1 (repeated): { 1: name, 2: Feature { 1: bytes | 2: floats | 3: integers } } } }
//! ```
//!
//! Nothing is copied but numbers, nothing is deeper than this picture, and no length is believed beyond what encloses it.

use super::{Extent, FormatError, Wrong, shown, varint};

/// A feature of an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its values.
    pub values: Values,
}

/// Values of a feature.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Byte strings, as extents inside the record's payload.
    Bytes(Vec<Extent>),
    /// Floats of 32 bits.
    Floats(Vec<f32>),
    /// Integers of 64 bits.
    Ints(Vec<i64>),
    /// A feature without a kind: it is there, and empty.
    Nothing,
}

/// All features of a record's payload, in its order. A name that comes again takes the place of the one before, as in protobuf's
/// maps.
///
/// # Errors
/// `Field` for what is no `tf.train.Example`. Offsets are in the payload.
pub fn example(payload: &[u8]) -> Result<Vec<Feature<'_>>, FormatError> {
    let mut entries: Vec<(&str, Span<'_>)> = Vec::new();
    each_entry(payload, |name, feature| entries.push((name, feature)))?;
    // The last of each name, in the order of the file.
    let mut last: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    last.extend(entries.iter().enumerate().map(|(at, (name, _))| (*name, at)));
    let kept = entries.iter().enumerate().filter(|(at, (name, _))| last.get(name) == Some(at));
    kept.map(|(_, (name, feature))| Ok(Feature { name, values: values(*feature)? })).collect()
}

/// The bytes of the feature `name` in a record's payload; `None` if there is no such feature. Allocates nothing.
///
/// # Errors
/// As [`example`]; `Unsupported` if the feature is not one byte string: then it is no sample by itself.
pub fn feature_bytes(payload: &[u8], name: &str) -> Result<Option<Extent>, FormatError> {
    let mut found = None;
    each_entry(payload, |other, feature| {
        if other == name {
            found = Some(feature);
        }
    })?;
    let Some(feature) = found else { return Ok(None) };
    let other = || {
        let wrong = Wrong::Unsupported { what: "a feature that is not one byte string", name: shown(name.as_bytes()) };
        FormatError { offset: feature.at as u64, wrong }
    };
    let (BYTES, list) = kind(feature)?.ok_or_else(other)? else { return Err(other()) };
    let mut value = None;
    for field in list.fields() {
        if let (1, Value::Bytes(bytes)) = field?
            && value.replace(bytes.extent()).is_some()
        {
            return Err(other());
        }
    }
    value.map(Some).ok_or_else(other)
}

const BYTES: u64 = 1;
const FLOATS: u64 = 2;
const INTS: u64 = 3;

/// A message inside the payload.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    /// Its first byte in the payload.
    at: usize,
    bytes: &'a [u8],
}

/// A value of a field, by its wire type.
enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(Span<'a>),
    Fixed32(u32),
}

/// Fields of a message, until the first that cannot be read.
struct Fields<'a>(Span<'a>);

impl<'a> Span<'a> {
    fn fields(self) -> Fields<'a> {
        Fields(self)
    }

    fn extent(self) -> Extent {
        Extent { offset: self.at as u64, len: self.bytes.len() as u64 }
    }

    fn fail(self) -> FormatError {
        FormatError { offset: self.at as u64, wrong: Wrong::Field { field: "a field of a tf.train.Example" } }
    }

    fn take(&mut self, len: usize) -> Option<Span<'a>> {
        let (bytes, rest) = self.bytes.split_at_checked(len)?;
        let taken = Span { at: self.at, bytes };
        *self = Span { at: self.at + len, bytes: rest };
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut rest = self.bytes;
        let number = varint::unsigned(&mut rest).ok()?;
        self.take(self.bytes.len() - rest.len())?;
        Some(number)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(*self.take(4)?.bytes.first_chunk()?)),
            // Groups: given up by protobuf, and by no writer of examples.
            _ => return None,
        };
        (tag >= 8).then_some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.bytes.is_empty() {
            return None;
        }
        let start = self.0;
        let field = self.0.field().ok_or_else(|| start.fail());
        if field.is_err() {
            self.0.bytes = &[];
        }
        Some(field)
    }
}

/// Calls `each` for every entry of every map of features: messages of one field that come twice are one message.
fn each_entry<'a>(payload: &'a [u8], mut each: impl FnMut(&'a str, Span<'a>)) -> Result<(), FormatError> {
    for features in (Span { at: 0, bytes: payload }).fields() {
        let (1, Value::Bytes(features)) = features? else { continue };
        for entry in features.fields() {
            let (1, Value::Bytes(entry)) = entry? else { continue };
            let mut name = "";
            let mut feature = Span { at: entry.at, bytes: &[] };
            for part in entry.fields() {
                match part? {
                    (1, Value::Bytes(text)) => name = str::from_utf8(text.bytes).map_err(|_| text.fail())?,
                    (2, Value::Bytes(message)) => feature = message,
                    _ => {}
                }
            }
            each(name, feature);
        }
    }
    Ok(())
}

/// Which list a feature has, and that list: the last one, of a field of which there may be one.
fn kind(feature: Span<'_>) -> Result<Option<(u64, Span<'_>)>, FormatError> {
    let mut found = None;
    for field in feature.fields() {
        if let (number @ BYTES..=INTS, Value::Bytes(list)) = field? {
            found = Some((number, list));
        }
    }
    Ok(found)
}

fn values(feature: Span<'_>) -> Result<Values, FormatError> {
    let Some((kind, list)) = kind(feature)? else { return Ok(Values::Nothing) };
    let mut values = match kind {
        BYTES => Values::Bytes(Vec::new()),
        FLOATS => Values::Floats(Vec::new()),
        _ => Values::Ints(Vec::new()),
    };
    for field in list.fields() {
        let (1, value) = field? else { continue };
        match (&mut values, value) {
            (Values::Bytes(found), Value::Bytes(bytes)) => found.push(bytes.extent()),
            (Values::Floats(found), Value::Fixed32(bits)) => found.push(f32::from_bits(bits)),
            (Values::Floats(found), Value::Bytes(packed)) => {
                let (numbers, rest) = packed.bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(packed.fail());
                }
                found.extend(numbers.iter().map(|number| f32::from_le_bytes(*number)));
            }
            (Values::Ints(found), Value::Varint(number)) => found.push(number.cast_signed()),
            (Values::Ints(found), Value::Bytes(mut packed)) => {
                while !packed.bytes.is_empty() {
                    let number = packed.varint().ok_or_else(|| packed.fail())?;
                    found.push(number.cast_signed());
                }
            }
            _ => return Err(list.fail()),
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn entry(name: &str, feature: &[u8]) -> Vec<u8> {
        message(1, &[message(1, name.as_bytes()), message(2, feature)].concat())
    }

    #[test]
    fn numbers_are_read_packed_and_one_by_one() {
        let floats = message(2, &[message(1, &1.5f32.to_le_bytes()), vec![0x0d, 0, 0, 0, 0x40]].concat());
        let mut minus_one = vec![0xff; 9];
        minus_one.push(1);
        let ints = message(3, &[vec![8, 5], message(1, &minus_one)].concat());
        let payload = message(1, &[entry("f", &floats), entry("i", &ints), entry("none", &[])].concat());
        let found = example(&payload).unwrap();
        let values: Vec<_> = found.into_iter().map(|feature| (feature.name, feature.values)).collect();
        assert_eq!(
            values,
            [("f", Values::Floats(vec![1.5, 2.0])), ("i", Values::Ints(vec![5, -1])), ("none", Values::Nothing)]
        );
    }

    #[test]
    fn the_last_of_a_name_counts() {
        let bytes = |text: &[u8]| message(1, &message(1, text));
        let payload = [message(1, &entry("a", &bytes(b"old"))), message(1, &entry("a", &bytes(b"new")))].concat();
        let found = example(&payload).unwrap();
        assert_eq!(found.len(), 1);
        let Values::Bytes(extents) = &found[0].values else { panic!() };
        let extent = feature_bytes(&payload, "a").unwrap().unwrap();
        assert_eq!(*extents, [extent]);
        let from = usize::try_from(extent.offset).unwrap();
        assert_eq!(&payload[from..from + 3], b"new");
        assert_eq!(feature_bytes(&payload, "b"), Ok(None));
    }

    #[test]
    fn a_feature_of_several_values_is_no_sample() {
        let two = message(1, &[message(1, b"x"), message(1, b"y")].concat());
        let payload = message(1, &[entry("two", &two), entry("ints", &message(3, &[8, 1]))].concat());
        for name in ["two", "ints"] {
            assert!(matches!(feature_bytes(&payload, name).unwrap_err().wrong, Wrong::Unsupported { .. }), "{name}");
        }
    }

    #[test]
    fn numbers_of_more_than_64_bits_and_groups_are_refused() {
        let mut long = vec![8];
        long.extend([0xff; 9]);
        assert!(example(&[&long[..], &[2]].concat()).is_err());
        assert!(example(&[&long[..], &[1]].concat()).unwrap().is_empty());
        assert!(example(&[0x0b, 0x0c]).is_err());
        // Field 0 does not exist.
        assert!(example(&[0, 0]).is_err());
    }
}
