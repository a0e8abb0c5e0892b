//! Compares two checkpoints, whatever their formats: names, types, shapes, bytes.

use straightway::{Destination, Engine, Error};

use crate::batches::batches;
use crate::catalog::Tensor;
use crate::{Checkpoint, Held, LoadOptions, Verify, Want};

/// Bytes of each checkpoint that are compared at a time.
const BATCH_BYTES: u64 = 64 << 20;

/// How a tensor of one checkpoint differs from that of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only the first has it.
    OnlyInFirst,
    /// Only the second has it.
    OnlyInSecond,
    /// It has another type or shape.
    Layout,
    /// It has other bytes; the first that differs, in the tensor.
    Bytes {
        /// Its position, in bytes.
        first: u64,
    },
    /// One of them cannot be loaded, so its bytes are not known.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Difference {
    /// Its name for machines.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OnlyInFirst => "only_in_first",
            Self::OnlyInSecond => "only_in_second",
            Self::Layout => "layout",
            Self::Bytes { .. } => "bytes",
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl Checkpoint {
    /// Tells `each` every tensor that is not the same in `other`: first those of this one in its order, then those that
    /// only `other` has. Values that are no tensors are not compared. Gives the number of tensors that are the same.
    ///
    /// Memory: 64 MiB of each checkpoint, or one row of a tensor if that is longer.
    ///
    /// # Errors
    /// What reading returns; what `each` returns.
    pub fn diff<E: From<Error>>(
        &self,
        engine: &Engine,
        other: &Checkpoint,
        mut each: impl FnMut(&str, Difference) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut same = Vec::new();
        for (position, tensor) in self.catalog().tensors().iter().enumerate() {
            let Some(at) = other.catalog().position(&tensor.name) else {
                each(&tensor.name, Difference::OnlyInFirst)?;
                continue;
            };
            let twin = &other.catalog().tensors()[at];
            if tensor.dtype != twin.dtype || tensor.shape != twin.shape {
                each(&tensor.name, Difference::Layout)?;
            } else if let Some(reason) = refused(tensor).or_else(|| refused(twin)) {
                each(&tensor.name, Difference::Unknown { reason })?;
            } else {
                same.push(position);
            }
        }
        let mut equal = same.len() as u64;
        let mut last_different = None;
        for batch in batches(self.catalog(), &same, BATCH_BYTES) {
            for (position, first) in self.differing(engine, other, &batch)? {
                // A tensor in several batches is told once.
                if last_different != Some(position) {
                    last_different = Some(position);
                    equal -= 1;
                    each(&self.catalog().tensors()[position].name, Difference::Bytes { first })?;
                }
            }
        }
        for tensor in other.catalog().tensors() {
            if self.catalog().position(&tensor.name).is_none() {
                each(&tensor.name, Difference::OnlyInSecond)?;
            }
        }
        Ok(equal)
    }

    /// Tensors of a batch whose bytes differ, and where first.
    fn differing(
        &self,
        engine: &Engine,
        other: &Checkpoint,
        batch: &[(Want, u64)],
    ) -> Result<Vec<(usize, u64)>, Error> {
        // Damaged bytes are a difference like any other.
        let options = LoadOptions { into: Destination::Host, verify: Verify::Off, ..LoadOptions::default() };
        let ours: Vec<Want> = batch.iter().map(|(want, _)| want.clone()).collect();
        let mut theirs = ours.clone();
        for want in &mut theirs {
            let name = &self.catalog().tensors()[want.tensor].name;
            // It was found before.
            want.tensor = other.catalog().position(name).unwrap_or(usize::MAX);
        }
        let first = self.load(engine, &ours, &options)?;
        let second = other.load(engine, &theirs, &options)?;
        let mut differing = Vec::new();
        for (number, (want, at)) in batch.iter().enumerate() {
            let (a, b) = (&first.tensors[number], &second.tensors[number]);
            let bytes = second.bytes_of(engine, b)?;
            let (mut done, mut found) = (0_usize, None);
            first.visit(engine, a, |piece| {
                let twin = bytes.get(done..done + piece.len()).unwrap_or_default();
                if found.is_none() && piece != twin {
                    let skip = piece.iter().zip(twin).take_while(|(a, b)| a == b).count();
                    found = Some(at + (done + skip) as u64);
                }
                done += piece.len();
            })?;
            differing.extend(found.map(|first| (want.tensor, first)));
        }
        Ok(differing)
    }
}

fn refused(tensor: &Tensor) -> Option<String> {
    match &tensor.held {
        Held::Refused(reason) => Some(reason.to_string()),
        Held::Chunks(_) => None,
    }
}
