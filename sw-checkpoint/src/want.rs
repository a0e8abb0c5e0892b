//! What a caller wants of a checkpoint: tensors, or a slice of each along any dimension.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::boxes;
use crate::catalog::{Catalog, Tensor};
use crate::dtype::Dtype;
use crate::load_plan::PlanError;
use crate::pattern::Pattern;

/// A box of one tensor. Positions and sizes are in elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Position of the tensor in [`Catalog::tensors`].
    pub tensor: usize,
    /// First element in each dimension.
    pub offsets: Box<[u64]>,
    /// Elements in each dimension.
    pub sizes: Box<[u64]>,
}

impl Want {
    /// All of the tensor at `position`; `None` if there is none.
    #[must_use]
    pub fn whole(catalog: &Catalog, position: usize) -> Option<Self> {
        let tensor = catalog.tensors().get(position)?;
        Some(Self { tensor: position, offsets: vec![0; tensor.shape.len()].into(), sizes: tensor.shape.clone() })
    }

    /// The part of the tensor called `name` that `ranges` cut out, one for each dimension.
    ///
    /// # Errors
    /// `NoTensor`; `OutsideTensor` if the ranges are too few, too many, reversed or past the end.
    pub fn slice(catalog: &Catalog, name: &str, ranges: &[Range<u64>]) -> Result<Self, PlanError> {
        let (position, tensor) = find(catalog, name)?;
        let offsets: Box<[u64]> = ranges.iter().map(|range| range.start).collect();
        let sizes: Option<Box<[u64]>> = ranges.iter().map(|range| range.end.checked_sub(range.start)).collect();
        match sizes.filter(|sizes| boxes::inside(&tensor.shape, &offsets, sizes)) {
            Some(sizes) => Ok(Self { tensor: position, offsets, sizes }),
            None => Err(PlanError::OutsideTensor {
                tensor: name.to_owned(),
                shape: tensor.shape.to_vec(),
                ranges: ranges.iter().map(|range| (range.start, range.end)).collect(),
            }),
        }
    }

    /// All of the tensor called `name`, which must have this type and shape.
    ///
    /// # Errors
    /// `NoTensor`; `OtherTensor` if it has another type or shape.
    pub fn expecting(catalog: &Catalog, name: &str, dtype: Dtype, shape: &[u64]) -> Result<Self, PlanError> {
        let (position, tensor) = find(catalog, name)?;
        if tensor.dtype != dtype || *tensor.shape != *shape {
            return Err(PlanError::OtherTensor {
                tensor: name.to_owned(),
                asked: (dtype, shape.to_vec()),
                found: (tensor.dtype, tensor.shape.to_vec()),
            });
        }
        Ok(Self { tensor: position, offsets: vec![0; shape.len()].into(), sizes: shape.into() })
    }

    /// All of each tensor that `pattern` matches, in the catalog's order.
    ///
    /// # Errors
    /// `NoMatch` if *one* item of the pattern is idle, since that is most often a misspelt name.
    pub fn matching(catalog: &Catalog, pattern: &Pattern) -> Result<Vec<Self>, PlanError> {
        let items = pattern.idle_items(catalog.tensors().iter().map(|tensor| tensor.name.as_ref()));
        // `*` over a checkpoint without tensors asks for nothing and gets it.
        if !items.is_empty() && !catalog.tensors().is_empty() {
            return Err(PlanError::NoMatch { items });
        }
        let chosen = (0..catalog.tensors().len()).filter(|&at| pattern.matches(&catalog.tensors()[at].name));
        Ok(chosen.filter_map(|at| Self::whole(catalog, at)).collect())
    }

    /// All of each tensor that `names` has, in the catalog's order, each once.
    ///
    /// # Errors
    /// `NoMatch` with the names of which there is no tensor.
    pub fn named<N: AsRef<str>>(catalog: &Catalog, names: &[N]) -> Result<Vec<Self>, PlanError> {
        let mut positions = Vec::with_capacity(names.len());
        let mut items = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            match catalog.position(name) {
                Some(position) => positions.push(position),
                None => items.push(name.to_owned()),
            }
        }
        if !items.is_empty() {
            return Err(PlanError::NoMatch { items });
        }
        positions.sort_unstable();
        positions.dedup();
        Ok(positions.into_iter().filter_map(|at| Self::whole(catalog, at)).collect())
    }

    /// Bytes of the box; `None` if they do not fit 64 bits or are no whole number.
    #[must_use]
    pub fn len_bytes(&self, catalog: &Catalog) -> Option<u64> {
        catalog.tensors().get(self.tensor)?.dtype.len_bytes(&self.sizes).ok()
    }
}

fn find<'c>(catalog: &'c Catalog, name: &str) -> Result<(usize, &'c Tensor), PlanError> {
    let position = catalog.position(name).ok_or_else(|| PlanError::NoTensor { tensor: name.to_owned() })?;
    Ok((position, &catalog.tensors()[position]))
}
