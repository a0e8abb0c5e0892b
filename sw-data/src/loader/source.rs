//! Tables of samples of any kind behind one face.

use std::sync::Arc;

use super::error::Cause;
use crate::samples::{ObjectEntry, Place, Samples};

/// [`Samples`] with its error as a [`Cause`], so that a mixture may have tables of several kinds.
pub(super) trait AnySamples: Send + Sync {
    fn len(&self) -> u64;
    fn object_count(&self) -> u32;
    fn object(&self, number: u32) -> Result<ObjectEntry, Cause>;
    fn locate(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), Cause>;
}

impl<S: Samples> AnySamples for S {
    fn len(&self) -> u64 {
        Samples::len(self)
    }

    fn object_count(&self) -> u32 {
        Samples::object_count(self)
    }

    fn object(&self, number: u32) -> Result<ObjectEntry, Cause> {
        Samples::object(self, number).map_err(|error| Arc::new(error) as Cause)
    }

    fn locate(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), Cause> {
        Samples::locate(self, samples, places).map_err(|error| Arc::new(error) as Cause)
    }
}

/// A dataset of a loader: its samples, and how often they come against those of the others.
#[derive(Clone)]
pub struct Dataset {
    pub(super) samples: Arc<dyn AnySamples>,
    pub(super) weight: u32,
}

impl Dataset {
    /// A table of samples.
    pub fn new<S: Samples + 'static>(samples: Arc<S>) -> Self {
        Self { samples, weight: 1 }
    }

    /// How often its samples come, against those of the other datasets. Default 1; 0: never. Means nothing for one alone.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset").field("len", &self.samples.len()).field("weight", &self.weight).finish()
    }
}
