//! Open objects and new ones in the making.

use std::sync::{Arc, OnceLock};

use sw_engine::{Error, Residency, Target, Verb, Version, seam::WriteIntent};
use sw_uring::Resumable;

/// An open object: a file, a block device, a stripe set. Cloning shares it; it closes when the last clone is gone and no
/// operation uses it.
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) inner: Arc<sw_engine::Object>,
    /// Targets under the policy `any`, planned once: host and device memory, read and write.
    pub(crate) targets: Arc<[OnceLock<Target>; 4]>,
}

impl Object {
    pub(crate) fn new(inner: Arc<sw_engine::Object>) -> Self {
        Self { inner, targets: Arc::new([const { OnceLock::new() }; 4]) }
    }

    /// Its name in the operator's words.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// Whether it had no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// Its version when it was opened.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// Bytes in the page cache when it was opened; `None` if nobody can tell.
    pub fn cached_bytes(&self) -> Option<u64> {
        match self.inner.residency {
            Residency::Cached(bytes) => Some(bytes),
            Residency::Unknown => None,
        }
    }

    /// Whether the name still leads to the same, unchanged object.
    ///
    /// # Errors
    /// `Changed` with what changed, or the error of looking.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        match &self.inner.stripe {
            None => sw_uring::unchanged(&self.inner),
            Some((_, members)) => members.iter().try_for_each(|member| sw_uring::unchanged(member)),
        }
    }

    /// The engine's own view: faces, granularity, identity.
    pub fn as_engine_object(&self) -> &Arc<sw_engine::Object> {
        &self.inner
    }

    pub(crate) fn cached_target(&self, kind: MemoryKind, verb: Verb) -> &OnceLock<Target> {
        let column = usize::from(verb == Verb::Write);
        &self.targets[kind as usize * 2 + column]
    }
}

/// Which of the two kinds of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryKind {
    /// Memory of this process.
    Host = 0,
    /// Memory of an accelerator.
    Device = 1,
}

/// An object in the making: written under a temporary name, put in place as a whole by [`NewObject::commit`]. Dropped
/// without it, nothing has changed.
pub struct NewObject {
    intent: Box<dyn WriteIntent>,
    object: Object,
}

impl NewObject {
    pub(crate) fn new(intent: Box<dyn WriteIntent>) -> Self {
        let object = Object::new(intent.object().clone());
        Self { intent, object }
    }

    /// What to write to.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Makes it durable under its name. After an error the old one is still there.
    ///
    /// # Errors
    /// What the system reports.
    pub fn commit(self) -> Result<(), Error> {
        self.intent.commit()
    }
}

/// An object in the making that survives its writer: see [`Engine::create_resumable`](crate::Engine::create_resumable).
pub struct ResumableObject {
    inner: Resumable,
    object: Object,
}

impl ResumableObject {
    pub(crate) fn new(inner: Resumable) -> Self {
        let object = Object::new(inner.object().clone());
        Self { inner, object }
    }

    /// What to write to.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Bytes from the start that an earlier writer recorded as done and durable.
    pub fn done(&self) -> u64 {
        self.inner.done()
    }

    /// Makes what was written durable and records that `done` bytes from the start are.
    ///
    /// # Errors
    /// `OutOfRange`, and what the system reports.
    pub fn record(&mut self, done: u64) -> Result<(), Error> {
        self.inner.record(done)
    }

    /// Makes it durable under its name.
    ///
    /// # Errors
    /// What the system reports.
    pub fn commit(self) -> Result<(), Error> {
        self.inner.commit()
    }

    /// Removes what was written.
    ///
    /// # Errors
    /// What the system reports.
    pub fn discard(self) -> Result<(), Error> {
        self.inner.discard()
    }
}
