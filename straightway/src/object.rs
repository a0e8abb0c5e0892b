//! Open objects and new ones in the making.

use std::sync::Arc;

use sw_engine::{
    Error, ErrorKind, Policy, Residency, Verb, Version,
    checksum::Algorithm,
    seam::{Names, WriteIntent},
};
use sw_uring::Resumable;

use crate::{
    clock::Clock,
    fabrics, nvme,
    policy::Destination,
    reach::Reaches,
    targets::{First, TargetSlot, Targets},
    vendor::Registration,
};

/// An open object: a file, a block device, a stripe set. Cloning shares it; it closes when the last clone is gone and no
/// operation uses it.
#[derive(Clone, Debug)]
pub struct Object {
    opened: Arc<Opened>,
    /// The part of it that this handle shows: first byte and length. All of it, for what was opened as a whole.
    part: (u64, u64),
}

/// What all clones and parts of an object have. One count of holders for all of it: every operation takes part in it.
#[derive(Debug)]
struct Opened {
    inner: Arc<sw_engine::Object>,
    targets: Targets,
    reaches: Reaches,
    vendor: Registration,
}

impl Object {
    pub(crate) fn new(inner: Arc<sw_engine::Object>, clock: Clock) -> Self {
        let part = (0, inner.len);
        let members = inner.composed.as_ref().map_or(0, |(_, members)| members.len());
        let (targets, reaches) = (Targets::new(clock), Reaches::new(members));
        Self { opened: Arc::new(Opened { inner, targets, reaches, vendor: Registration::default() }), part }
    }

    /// A part of it, as an object of its own that starts at byte `offset` and has `len` bytes (`None`: all up to the end).
    /// Operations on it cannot leave it.
    ///
    /// # Errors
    /// `OutOfRange` if it is not inside.
    pub fn part(&self, offset: u64, len: Option<u64>) -> Result<Object, Error> {
        let rest = self.len().checked_sub(offset);
        match (rest, len) {
            (Some(rest), None) => Ok(Self { part: (self.part.0 + offset, rest), ..self.clone() }),
            (Some(rest), Some(len)) if len <= rest => Ok(Self { part: (self.part.0 + offset, len), ..self.clone() }),
            _ => Err(self.outside(Verb::Open, offset, len.unwrap_or(0))),
        }
    }

    /// Where byte `offset` of this part lies in the whole object: what an operation in a [`Lane`](crate::Lane) names.
    ///
    /// # Errors
    /// `OutOfRange` if `len` bytes from there are not inside.
    pub fn position(&self, verb: Verb, offset: u64, len: u64) -> Result<u64, Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.part.1 => Ok(self.part.0 + offset),
            _ => Err(self.outside(verb, offset, len)),
        }
    }

    fn outside(&self, verb: Verb, offset: u64, len: u64) -> Error {
        Error::new(ErrorKind::OutOfRange, verb)
            .at(self.name())
            .in_range(offset, len)
            .detail(format!("the range ends past the object, which has {} bytes", self.len()))
            .remedy("ask for bytes that it has")
    }

    /// Looks at the page cache again if the last answer is old. Called wherever a plan may follow.
    pub(crate) fn refresh(&self) {
        self.opened.targets.refresh(self.inner(), First::Samples);
    }

    /// Its name in the operator's words.
    pub fn name(&self) -> &str {
        &self.inner().name
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.part.1
    }

    /// Whether it had no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its version when it was opened.
    pub fn version(&self) -> Version {
        self.inner().version
    }

    /// Bytes in the page cache when it was last asked: 1 ms ago, up to 100 ms where asking takes long; `None` if nobody can tell. For
    /// about 1 ms after the first operation on an object of a descriptor it is an estimate by samples.
    pub fn cached_bytes(&self) -> Option<u64> {
        self.opened.targets.refresh(self.inner(), First::Whole);
        match self.inner().residency.get() {
            Residency::Cached(bytes) => Some(bytes),
            Residency::Unknown => None,
        }
    }

    /// Whether the name still leads to the same, unchanged object.
    ///
    /// # Errors
    /// `Changed` with what changed, or the error of looking.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let unchanged = |object: &sw_engine::Object| {
            let of_namespace = nvme::unchanged(object).or_else(|| fabrics::unchanged(object));
            let of_namespace = of_namespace.or_else(|| sw_remote::unchanged(object));
            of_namespace.unwrap_or_else(|| sw_uring::unchanged(object))
        };
        self.inner().origins().iter().try_for_each(|origin| unchanged(origin))
    }

    /// The checksum that its store keeps of all of its bytes, as it was when it was opened: whoever reads all of them can compare.
    pub fn stored_checksum(&self) -> Option<(Algorithm, u64)> {
        // Of a set nobody keeps one.
        match self.inner().origins() {
            [origin] => sw_remote::stored_checksum(origin),
            _ => None,
        }
    }

    /// Lets go of all that a cache keeps of it: for who found its bytes to be wrong. What is read next comes from where the object is.
    ///
    /// *Blocking*: waits for the disk of the cache.
    pub fn forget_kept(&self) {
        crate::caches::forget(self.inner());
    }

    /// Whether it is read through a cache.
    pub fn is_cached(&self) -> bool {
        crate::caches::is_through(self.inner())
    }

    /// Says whether what a cache keeps of it, later too, gives way to other objects; pinned ones do not, and free other versions of their
    /// name. Whether it is read through a cache.
    ///
    /// *Blocking*: waits for the disk of the cache.
    pub fn set_pinning(&self, pinning: sw_cache::Pinning) -> bool {
        crate::caches::set_pinning(self.inner(), pinning)
    }

    /// The engine's own view: faces, granularity, identity.
    pub fn as_engine_object(&self) -> &Arc<sw_engine::Object> {
        self.inner()
    }

    pub(crate) fn inner(&self) -> &Arc<sw_engine::Object> {
        &self.opened.inner
    }

    /// Where the target under a policy is kept.
    pub(crate) fn cached_target(&self, destination: Destination, policy: Policy, verb: Verb) -> TargetSlot<'_> {
        self.opened.targets.slot(self.inner(), destination, policy, verb)
    }

    /// What it consists of: its members, or itself.
    pub(crate) fn members(&self) -> impl Iterator<Item = &sw_engine::Object> {
        let members = self.inner().composed.as_ref().map_or(&[][..], |(_, members)| members);
        let alone = members.is_empty().then_some(self.inner());
        members.iter().chain(alone).map(|inner| &**inner)
    }

    /// What is known of its ways to memory of other devices.
    pub(crate) fn reaches(&self) -> &Reaches {
        &self.opened.reaches
    }

    /// Its registration with a vendor's library.
    pub(crate) fn registration(&self) -> &Registration {
        &self.opened.vendor
    }
}

/// An object in the making: written under a temporary name, put in place as a whole by [`NewObject::commit`]. Dropped
/// without it, nothing has changed.
pub struct NewObject {
    intent: Box<dyn WriteIntent>,
    object: Object,
}

impl NewObject {
    pub(crate) fn new(intent: Box<dyn WriteIntent>, clock: Clock) -> Self {
        let object = Object::new(intent.object().clone(), clock);
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
        self.intent.commit(Names::Durable)
    }

    /// Makes its bytes durable and gives it its name, which is durable when its directory is flushed: once, by the caller, for
    /// many objects in a directory that nobody relies on before.
    ///
    /// # Errors
    /// As [`NewObject::commit`].
    pub fn commit_leaving_name(self) -> Result<(), Error> {
        self.intent.commit(Names::Left)
    }
}

/// An object in the making whose length is known when it is whole: see [`Engine::create_open`](crate::Engine::create_open).
pub struct OpenObject {
    inner: NewObject,
}

impl OpenObject {
    pub(crate) fn new(inner: NewObject) -> Self {
        Self { inner }
    }

    /// What to write to, at any offset. It has no length yet: [`Object::len`] is the largest that there is.
    pub fn object(&self) -> &Object {
        self.inner.object()
    }

    /// Makes it durable under its name, with its first `len` bytes. Bytes of them that were not written are zeros. After an error
    /// the old one is still there.
    ///
    /// # Errors
    /// What the system reports.
    pub fn commit(self, len: u64) -> Result<(), Error> {
        self.inner.intent.cut(len)?;
        self.inner.commit()
    }
}

/// An object in the making that survives its writer: see [`Engine::create_resumable`](crate::Engine::create_resumable).
pub struct ResumableObject {
    inner: Resumable,
    object: Object,
}

impl ResumableObject {
    pub(crate) fn new(inner: Resumable, clock: Clock) -> Self {
        let object = Object::new(inner.object().clone(), clock);
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
