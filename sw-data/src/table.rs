//! A table of samples in memory.

use crate::samples::{Label, ObjectEntry, Place, Samples};

/// Samples whose places are kept in memory: 40 bytes each. For datasets of a few million samples, and for tests; an index
/// file serves larger ones.
#[derive(Clone, Debug, Default)]
pub struct Table {
    objects: Vec<ObjectEntry>,
    places: Vec<Place>,
}

/// Why a table cannot be made, or a place not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A place in an object that is not in the list.
    #[error("sample {sample} lies in object {object}, and there are {have} objects")]
    NoObject {
        /// The sample.
        sample: u64,
        /// Its object.
        object: u32,
        /// Objects there are.
        have: usize,
    },
    /// A place that leaves its object.
    #[error("sample {sample} has {len} bytes at {offset} of an object of {object_len} bytes")]
    OutOfObject {
        /// The sample.
        sample: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the object.
        object_len: u64,
    },
    /// A number that is no object's.
    #[error("object {object} does not exist; there are {have}")]
    NoEntry {
        /// The number.
        object: u32,
        /// Objects there are.
        have: usize,
    },
    /// A number that is no sample's.
    #[error("sample {sample} does not exist; there are {have}")]
    NoSample {
        /// The number.
        sample: u64,
        /// Samples there are.
        have: u64,
    },
}

impl Table {
    /// Of objects and the places of samples in them, sample 0 first.
    ///
    /// # Errors
    /// [`TableError::NoObject`], [`TableError::OutOfObject`].
    pub fn new(objects: Vec<ObjectEntry>, places: Vec<Place>) -> Result<Self, TableError> {
        for (sample, place) in (0u64..).zip(&places) {
            let index = usize::try_from(place.object).unwrap_or(usize::MAX);
            let no_object = TableError::NoObject { sample, object: place.object, have: objects.len() };
            let object = objects.get(index).ok_or(no_object)?;
            let (offset, len) = (place.extent.offset, place.extent.len);
            if offset.checked_add(len).is_none_or(|end| end > object.len) {
                return Err(TableError::OutOfObject { sample, offset, len, object_len: object.len });
            }
        }
        Ok(Self { objects, places })
    }

    /// The place of every sample.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

impl Samples for Table {
    type Error = TableError;

    fn len(&self) -> u64 {
        self.places.len() as u64
    }

    fn object_count(&self) -> u32 {
        u32::try_from(self.objects.len()).unwrap_or(u32::MAX)
    }

    fn object(&self, number: u32) -> Result<ObjectEntry, TableError> {
        let found = usize::try_from(number).ok().and_then(|index| self.objects.get(index));
        found.cloned().ok_or(TableError::NoEntry { object: number, have: self.objects.len() })
    }

    /// A table of places has no names: keys are numbers, and samples one thing.
    fn labels(&self, samples: &[u64], labels: &mut Vec<Label>) -> Result<(), TableError> {
        if let Some(sample) = samples.iter().copied().find(|sample| *sample >= self.len()) {
            return Err(TableError::NoSample { sample, have: self.len() });
        }
        labels.extend(samples.iter().map(|sample| Label { key: sample.to_string(), group: 0, parts: Vec::new() }));
        Ok(())
    }

    fn locate(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), TableError> {
        let before = places.len();
        for &sample in samples {
            match usize::try_from(sample).ok().and_then(|index| self.places.get(index)) {
                Some(place) => places.push(*place),
                None => {
                    places.truncate(before);
                    return Err(TableError::NoSample { sample, have: self.len() });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{formats::Extent, samples::Format};

    fn place(object: u32, offset: u64, len: u64) -> Place {
        Place { object, extent: Extent { offset, len }, row: None, crc32c: None }
    }

    fn objects() -> Vec<ObjectEntry> {
        vec![ObjectEntry {
            uri: "/a".into(),
            len: 100,
            version: String::new(),
            format: Format::Raw,
            coding: String::new(),
        }]
    }

    #[test]
    fn places_are_told_in_the_order_of_the_question() {
        let table = Table::new(objects(), vec![place(0, 0, 10), place(0, 10, 90), place(0, 100, 0)]).unwrap();
        let mut places = vec![place(0, 5, 5)];
        table.locate(&[2, 0, 2], &mut places).unwrap();
        assert_eq!(places, [place(0, 5, 5), place(0, 100, 0), place(0, 0, 10), place(0, 100, 0)]);
        assert_eq!(table.locate(&[1, 3], &mut places), Err(TableError::NoSample { sample: 3, have: 3 }));
        assert_eq!(places.len(), 4, "as before the error");
    }

    #[test]
    fn places_outside_of_their_objects_are_refused() {
        let refused = |place| Table::new(objects(), vec![place]).map(|_| ());
        assert_eq!(refused(place(1, 0, 1)), Err(TableError::NoObject { sample: 0, object: 1, have: 1 }));
        for (offset, len) in [(0, 101), (100, 1), (u64::MAX, 2)] {
            let error = TableError::OutOfObject { sample: 0, offset, len, object_len: 100 };
            assert_eq!(refused(place(0, offset, len)), Err(error));
        }
    }
}
