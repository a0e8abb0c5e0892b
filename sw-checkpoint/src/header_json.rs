//! The JSON text of a header, read in one pass.
//!
//! `serde_json`'s own maps keep the last of two equal keys and its errors do not say which tensor they are about. The
//! visitors here keep every key, so that duplicates are found, and leave the typed fault in [`State`] while the parser
//! unwinds. Nesting is bounded by the visitors' types; values of unknown keys are skipped without recursion.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::dtype::Dtype;
use crate::header::{HeaderError, LENGTH_LEN_BYTES, RANK_MAX};

/// The reserved key of the free-form strings.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// A tensor's entry as the text has it, offsets relative to the data section and not yet checked.
pub(crate) struct RawTensor {
    pub(crate) name: Box<str>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Box<[u64]>,
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// What the text says, in its order.
#[derive(Default)]
pub(crate) struct Raw {
    pub(crate) tensors: Vec<RawTensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    raw: Raw,
    metadata_seen: bool,
    /// Set just before a visitor gives up with a reason of our own.
    fault: Option<HeaderError>,
    /// The key in whose value the parser gave up.
    within: Option<String>,
    /// Reused for each shape: one allocation of the exact size per tensor remains.
    dims: Vec<u64>,
}

impl State {
    /// Leaves `fault` for [`read`] and makes the error that unwinds the parser.
    fn give_up<E: serde::de::Error>(&mut self, fault: HeaderError) -> E {
        self.fault = Some(fault);
        E::custom("see the typed fault")
    }
}

/// Reads the text of a header.
pub(crate) fn read(text: &str) -> Result<Raw, HeaderError> {
    let mut state = State::default();
    let mut parser = serde_json::Deserializer::from_str(text);
    let outcome = Top(&mut state).deserialize(&mut parser).and_then(|()| parser.end());
    match outcome {
        Ok(()) => Ok(state.raw),
        Err(source) => Err(state.fault.take().unwrap_or_else(|| HeaderError::Json {
            file_offset: LENGTH_LEN_BYTES + text_offset(text, source.line(), source.column()),
            within: state.within.take(),
            source,
        })),
    }
}

/// Byte offset of a parser's line (from 1) and column (from 1, in bytes).
pub(crate) fn text_offset(text: &str, line: usize, column: usize) -> u64 {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    before.saturating_add(column.saturating_sub(1)).min(text.len()) as u64
}

struct Top<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                if std::mem::replace(&mut state.metadata_seen, true) {
                    return Err(state.give_up(HeaderError::Duplicate { name }));
                }
                map.next_value_seed(Metadata(state))?;
                continue;
            }
            match map.next_value_seed(Entry { name: &name, state }) {
                Ok((dtype, [begin, end])) => {
                    let shape = state.dims.as_slice().into();
                    state.raw.tensors.push(RawTensor { name: name.into(), dtype, shape, begin, end });
                }
                Err(error) => {
                    state.within = Some(name);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

struct Metadata<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.0.within = Some(METADATA_KEY.to_owned());
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        while let Some(key) = map.next_key::<String>()? {
            let Some(value) = map.next_value_seed(StringOrOther)? else {
                return Err(state.give_up(HeaderError::MetadataNotString { key }));
            };
            if state.raw.metadata.contains_key(&key) {
                return Err(state.give_up(HeaderError::Duplicate { name: key }));
            }
            state.raw.metadata.insert(key, value);
        }
        state.within = None;
        Ok(())
    }
}

/// A string, or `None` for any other value (skipped if it is a scalar, left unread if it is not).
struct StringOrOther;

impl<'de> DeserializeSeed<'de> for StringOrOther {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StringOrOther {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(value.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

struct Entry<'a> {
    name: &'a str,
    state: &'a mut State,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = (Dtype, [u64; 2]);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entry<'_> {
    type Value = (Dtype, [u64; 2]);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { name, state } = self;
        let mut dtype = None;
        let mut shape = None;
        let mut offsets = None;
        while let Some(field) = map.next_key_seed(FieldName)? {
            let again = match field {
                Field::Dtype => dtype.replace(map.next_value_seed(DtypeName { tensor: name, state })?).is_some(),
                Field::Shape => shape.replace(map.next_value_seed(Shape { tensor: name, state })?).is_some(),
                Field::DataOffsets => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if again {
                let tensor = name.to_owned();
                return Err(state.give_up(HeaderError::DuplicateField { tensor, field: field.name() }));
            }
        }
        let mut missing =
            |field: Field| state.give_up(HeaderError::MissingField { tensor: name.to_owned(), field: field.name() });
        let dtype = dtype.ok_or_else(|| missing(Field::Dtype))?;
        shape.ok_or_else(|| missing(Field::Shape))?;
        let offsets = offsets.ok_or_else(|| missing(Field::DataOffsets))?;
        Ok((dtype, offsets))
    }
}

#[derive(Clone, Copy)]
enum Field {
    Dtype,
    Shape,
    DataOffsets,
    Other,
}

impl Field {
    const fn name(self) -> &'static str {
        match self {
            Self::Dtype => "dtype",
            Self::Shape => "shape",
            Self::DataOffsets => "data_offsets",
            Self::Other => "other",
        }
    }
}

struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Field, E> {
        Ok(match key {
            "dtype" => Field::Dtype,
            "shape" => Field::Shape,
            "data_offsets" => Field::DataOffsets,
            _ => Field::Other,
        })
    }
}

struct DtypeName<'a> {
    tensor: &'a str,
    state: &'a mut State,
}

impl<'de> DeserializeSeed<'de> for DtypeName<'_> {
    type Value = Dtype;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Dtype, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for DtypeName<'_> {
    type Value = Dtype;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an element type")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Dtype, E> {
        Dtype::from_name(name).ok_or_else(|| {
            let tensor = self.tensor.to_owned();
            self.state.give_up(HeaderError::UnknownDtype { tensor, dtype: name.to_owned() })
        })
    }
}

/// Leaves the dimensions in `state.dims`.
struct Shape<'a> {
    tensor: &'a str,
    state: &'a mut State,
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.state.dims.clear();
        while let Some(dim) = seq.next_element::<u64>()? {
            if self.state.dims.len() == RANK_MAX {
                let tensor = self.tensor.to_owned();
                return Err(self.state.give_up(HeaderError::RankOverLimit { tensor }));
            }
            self.state.dims.push(dim);
        }
        Ok(())
    }
}
