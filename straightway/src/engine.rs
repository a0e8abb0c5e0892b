//! The engine, as a program sees it.

use std::{ops::ControlFlow, os::fd::BorrowedFd, sync::Arc, time::Duration};

use sw_cache::{Cache, CacheConfig};
use sw_engine::{
    Counters, Error, ErrorKind, Layout, Plan, Policy, Residency, Segment, Spans, StripeGeometry, Target, Verb, Version,
    inspect::Tree,
    seam::{CopyDirection, Entry, Hidden, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen, DmaRegion, HugePages, Populate};
use sw_net::PathReport;

use crate::{
    backends::{Backends, CallerStream, CuFileSource, DeviceAllocation, Owner, StreamGate},
    builder::{Config, EngineBuilder},
    caches::Warmed,
    core::Core,
    doctor::Doctor,
    keys::NvmeTcpKeys,
    lane::Lane,
    memory::{CopyIn, CopyOut, Memory, Region},
    moves::Moves,
    object::{NewObject, Object, OpenObject, ResumableObject},
    policy::Destination,
    reach::{Ask, Reach},
    remotes::Remote,
    request::{self, Batch, Request},
    sums::Sums,
    uri::Uri,
};

/// Moves bytes between objects and memory. Cloning shares it; the last clone closes it.
///
/// *Thread*: any. *Blocking*: what opens, lists and allocates; requests only where their methods say so.
#[derive(Clone, Debug)]
pub struct Engine {
    core: Arc<Core>,
}

impl Engine {
    /// How to make one.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    pub(crate) fn make(
        config: Config,
        cufile: CuFileSource,
        keys: NvmeTcpKeys,
        remote: (Remote, Option<CacheConfig>),
    ) -> Self {
        Self { core: Core::new(config, cufile, keys, remote) }
    }

    /// Opens an object to read.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `WrongKind` and what the system reports, each with the name and a remedy.
    pub fn open(&self, uri: &Uri) -> Result<Object, Error> {
        self.open_as(uri, OpenMode::Read)
    }

    /// An object whose length and version a listing or an index told: a store that says its version with each answer is not asked
    /// before the first read, which is `Changed` if it is another. Of the version its `stamp` and the second word of its `identity` count.
    /// Other systems, and an engine with a cache, open it and compare.
    ///
    /// # Errors
    /// As [`Engine::open`]; `Changed` if it is already known to be another.
    pub fn open_known(&self, uri: &Uri, len: u64, version: Version) -> Result<Object, Error> {
        // A cache knows objects by all of their version, which the store says.
        if let (Uri::Remote(at), None) = (uri, self.cache()) {
            self.core.check(Verb::Open)?;
            let opened = self.core.backends.remotes.of(at).open_known(&at.to_string(), len, version)?;
            return Ok(self.object(opened));
        }
        let object = self.open(uri)?;
        let now = object.version();
        let is_same = (object.len(), now.stamp, now.identity.1) == (len, version.stamp, version.identity.1);
        if is_same { Ok(object) } else { Err(changed(uri)) }
    }

    /// Opens an existing object to read and to write in place.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_for_update(&self, uri: &Uri) -> Result<Object, Error> {
        self.open_as(uri, OpenMode::Update)
    }

    /// An object of a file or a block device that the caller opened, for what its descriptor is open for. The descriptor is
    /// duplicated: the caller may close its own. Its flags hold for one way to the bytes, through the page cache or past it; for
    /// the other one the file is opened once more by `/proc/self/fd`, where that is allowed ([`Reason`](crate::Reason)
    /// `NotReopened` says where not).
    ///
    /// A file may grow: [`Object::len`] is the largest that there is, a write may go past the end, and a read past it is
    /// `ShortData`.
    ///
    /// # Errors
    /// `WrongKind` for what is no file and no block device, and for a descriptor that appends or was opened with `O_PATH`;
    /// `ApiMisuse` (EBADF) for one that is not open; what the system reports.
    pub fn open_descriptor(&self, descriptor: BorrowedFd<'_>) -> Result<Object, Error> {
        self.core.check(Verb::Open)?;
        self.core.backends.files.open_descriptor(descriptor).map(|inner| self.object(Arc::new(inner)))
    }

    /// The allocation of a GPU that an address lies in, as the driver knows it: an interior address finds it too. `None` for host
    /// memory, for memory that both sides may touch, and for addresses that the driver does not know; also where this
    /// process has not loaded the driver, without which nobody can have device memory.
    ///
    /// # Errors
    /// The driver's. Where this process has loaded the driver, an address that neither the driver knows (or cannot be asked about: it
    /// does not start, lacks names, or GPUs are switched off) nor the processor can read: `NotRegistered`, or why there is no driver.
    pub fn device_allocation(&self, address: u64) -> Result<Option<DeviceAllocation>, Error> {
        self.core.check(Verb::Register)?;
        self.core.backends.device_allocation(address)
    }

    fn open_as(&self, uri: &Uri, mode: OpenMode) -> Result<Object, Error> {
        self.core.check(Verb::Open)?;
        match uri {
            Uri::Remote(at) if mode == OpenMode::Read => {
                let inner = self.open_single(uri, mode)?;
                let Backends { files, remotes, caches, .. } = &self.core.backends;
                let parts = (files, self.core.clock, Arc::downgrade(&self.core));
                Ok(self.object(caches.through(parts, inner, |name| remotes.of(at).realm(name))))
            }
            Uri::File(_) | Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Remote(_) => {
                self.open_single(uri, mode).map(|inner| self.object(inner))
            }
            Uri::Stripe { unit, members } => self.open_stripe(uri, *unit, members, mode),
            Uri::Part { of, offset, len } => self.open_as(of, mode)?.part(*offset, *len),
        }
    }

    /// An object that is no set and no part.
    fn open_single(&self, uri: &Uri, mode: OpenMode) -> Result<Arc<sw_engine::Object>, Error> {
        match uri {
            Uri::File(path) => self.core.backends.files.open(path, mode),
            Uri::Nvme(namespace) => self.core.backends.nvme.open(namespace, mode),
            Uri::NvmeTcp(namespace) => self.core.backends.fabrics_of(namespace).open(namespace, mode),
            Uri::Remote(at) => self.core.backends.remotes.of(at).open(&at.to_string(), mode),
            Uri::Stripe { .. } | Uri::Part { .. } => Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(uri.to_string())
                .detail("a member of a stripe set is a whole object")
                .remedy("name files, block devices or namespaces")),
        }
    }

    fn object(&self, inner: Arc<sw_engine::Object>) -> Object {
        Object::new(inner, self.core.clock)
    }

    fn open_stripe(&self, uri: &Uri, unit: u64, members: &[Uri], mode: OpenMode) -> Result<Object, Error> {
        let width = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let geometry = StripeGeometry::new(unit, width).map_err(|error| error.at(uri.to_string()))?;
        let members = members.iter().map(|member| self.open_single(member, mode)).collect::<Result<Vec<_>, _>>()?;
        geometry.check_members(&members)?;
        let shortest = members.iter().map(|member| member.len).min().unwrap_or(0);
        let cached = members.iter().try_fold(0u64, |sum, member| match member.residency.get() {
            Residency::Cached(bytes) => Some(sum + bytes),
            Residency::Unknown => None,
        });
        Ok(self.object(Arc::new(sw_engine::Object {
            id: sw_engine::Object::next_id(),
            name: uri.to_string().into(),
            len: geometry.logical_len(shortest),
            version: Version {
                identity: (0, 0),
                stamp: members.iter().map(|member| member.version.stamp).max().unwrap_or(0),
            },
            faces: Vec::new(),
            residency: cached.map_or(Residency::Unknown, Residency::Cached).into(),
            composed: Some((Layout::Stripe(geometry), members)),
            keep: Box::new(()),
        })))
    }

    /// The cache of remote objects. `None` if the engine has none.
    ///
    /// *Blocking*: the first time it is opened, which reads its index.
    ///
    /// # Errors
    /// Why there is none though there was to be one: `InUse` while another process or engine has the directory; what the system reports.
    pub fn cache(&self) -> Option<Result<&Cache, Error>> {
        self.core.backends.caches.get(&self.core.backends.files)
    }

    /// Reads what the cache has not of ranges (object, offset, length) of remote objects, in their order and in whole blocks, and waits
    /// until it is kept. It ends when as much was read as the cache has place for.
    ///
    /// *Blocking*: for as long as that takes.
    ///
    /// # Errors
    /// `ApiMisuse` without a cache, and what [`Engine::cache`] says; `Unsupported` for an object that is not read through it; `OutOfRange`;
    /// an error among the ranges; those of reading; `Io` if the cache keeps nothing more.
    pub fn warm(&self, ranges: impl IntoIterator<Item = Result<(Object, u64, u64), Error>>) -> Result<Warmed, Error> {
        self.core.check(Verb::Read)?;
        let ranges = ranges.into_iter().map(|range| {
            let (object, offset, len) = range?;
            let offset = object.position(Verb::Read, offset, len)?;
            Ok((object, offset, len))
        });
        self.core.backends.caches.warm(&self.core, ranges)
    }

    /// Starts a new object of `len` bytes: written under a temporary name, put in place as a whole by
    /// [`NewObject::commit`], never half.
    ///
    /// # Errors
    /// As [`Engine::open`], and `NoSpace` before anything is written.
    pub fn create(&self, uri: &Uri, len: u64) -> Result<NewObject, Error> {
        self.core.check(Verb::Create)?;
        let intent = match uri {
            Uri::Remote(at) => self.core.backends.remotes.of(at).create(&at.to_string(), len)?,
            _ => self.core.backends.files.create(file_path(uri, Verb::Create)?, len)?,
        };
        Ok(NewObject::new(intent, self.core.clock))
    }

    /// As [`Engine::create`] for an object whose length is known when it is whole. Nothing is reserved: a full disk shows when
    /// bytes are written.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn create_open(&self, uri: &Uri) -> Result<OpenObject, Error> {
        self.core.check(Verb::Create)?;
        let intent = match uri {
            Uri::Remote(at) => self.core.backends.remotes.of(at).create_open(&at.to_string())?,
            _ => self.core.backends.files.create_open(file_path(uri, Verb::Create)?)?,
        };
        Ok(OpenObject::new(NewObject::new(intent, self.core.clock)))
    }

    /// As [`Engine::create`], but what was recorded survives the writer, and the same call goes on with it. `key` stands
    /// for the version of what is written, so that a changed source starts anew.
    ///
    /// # Errors
    /// As [`Engine::create`]; `InUse` while another writer has it.
    pub fn create_resumable(&self, uri: &Uri, len: u64, key: u64) -> Result<ResumableObject, Error> {
        self.core.check(Verb::Create)?;
        self.core
            .backends
            .files
            .create_resumable(file_path(uri, Verb::Create)?, len, key)
            .map(|inner| ResumableObject::new(inner, self.core.clock))
    }

    /// Facts of a name.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn stat(&self, uri: &Uri) -> Result<Entry, Error> {
        match uri.whole() {
            (Uri::Nvme(namespace), ..) => self.core.backends.nvme.stat(namespace),
            (Uri::NvmeTcp(namespace), ..) => self.core.backends.fabrics_of(namespace).stat(namespace),
            (Uri::Remote(at), ..) => self.core.backends.remotes.of(at).stat(&at.to_string()),
            _ => self.core.backends.files.stat(file_path(uri, Verb::Open)?),
        }
    }

    /// The paths by which a namespace behind a fabric is reached, in the order of its address; none of anything else.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn paths(&self, uri: &Uri) -> Result<Vec<PathReport>, Error> {
        match uri.whole() {
            (Uri::NvmeTcp(namespace), ..) => self.core.backends.fabrics_of(namespace).path_reports(namespace),
            _ => Ok(Vec::new()),
        }
    }

    /// The entries of a directory in byte order of their names; an object lists as itself.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn list(&self, uri: &Uri) -> Result<Vec<Entry>, Error> {
        match uri {
            Uri::Remote(at) => self.core.backends.remotes.of(at).list(&at.to_string()),
            _ => self.core.backends.files.list(file_path(uri, Verb::List)?),
        }
    }

    /// Gives each thing below a directory, or a prefix of an object store, at any depth, that is no directory itself, in byte order of the names, until `each` breaks; an
    /// object gives itself. Millions of objects in a store cost the memory of some pages of its listing, several of which are asked for at a time.
    ///
    /// # Errors
    /// As [`Engine::open`]; `TooLarge` for directories that lead back into themselves.
    pub fn walk(&self, uri: &Uri, hidden: Hidden, mut each: impl FnMut(Entry) -> ControlFlow<()>) -> Result<(), Error> {
        match uri {
            Uri::Remote(at) => self.core.backends.remotes.of(at).walk(&at.to_string(), hidden, &mut each),
            _ => self.core.backends.files.walk(file_path(uri, Verb::List)?, hidden, &mut each),
        }
    }

    /// Removes an object.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn remove(&self, uri: &Uri) -> Result<(), Error> {
        match uri {
            Uri::Remote(at) => self.core.backends.remotes.of(at).remove(&at.to_string()),
            _ => self.core.backends.files.remove(file_path(uri, Verb::Replace)?),
        }
    }

    /// Fresh memory of `len` bytes whose address is congruent to `phase` modulo the page size, so that a read from file
    /// offset `phase` lands in place. Host memory is zeroed (unless the engine keeps freed memory), and on huge pages where
    /// the kernel has some.
    ///
    /// *Blocking*: an engine that drives NVMe controllers pins large host memory here, about a second for tens of gigabytes.
    ///
    /// With [`NvmeBackend::NoIommu`](crate::NvmeBackend::NoIommu), host memory of up to 2 MiB is a reserved huge page of its
    /// own, as long as there are some; controllers reach other memory through slabs only.
    ///
    /// # Errors
    /// `ResourceLimit`; `NoDevice` if there is no such GPU; `ApiMisuse` for zero bytes.
    pub fn allocate(&self, destination: Destination, len: u64, phase: u64) -> Result<Memory, Error> {
        self.core.check(Verb::Register)?;
        let fail = |kind| Error::new(kind, Verb::Register).at(format!("{len} bytes of {destination} memory"));
        if len == 0 {
            return Err(fail(ErrorKind::ApiMisuse).detail("an allocation has at least one byte"));
        }
        self.core.reap();
        match destination {
            Destination::Host => {
                let buffer = match (self.core.backends.nvme.allocate(len, phase), self.core.config.keep_bytes) {
                    (Some(buffer), _) => Ok(buffer),
                    (None, 0) => Buffer::allocate_with(ByteLen(len), phase, HugePages::Advise, Populate::Lazy),
                    (None, _) => Buffer::allocate_kept(ByteLen(len), phase, HugePages::Advise, &self.core.kept),
                };
                let memory = buffer
                    .map(Memory::from)
                    .map_err(|cause| fail(ErrorKind::ResourceLimit).detail(cause.to_string()).caused_by(cause))?;
                self.core.backends.nvme.pin(memory.span.region());
                Ok(memory)
            }
            Destination::Gpu(_) | Destination::Bar(_) | Destination::PeerMemory(_) => {
                // Staging takes any address; the phase is kept for routes that land in place.
                let skew = phase % sw_mem::PAGE_BYTES;
                let whole = len.checked_add(skew).ok_or_else(|| fail(ErrorKind::TooLarge))?;
                let region = self.core.backends.allocate_on_device(destination, ByteLen(whole))?;
                region
                    .span(skew, ByteLen(len))
                    .map(|span| Memory { span })
                    .map_err(|cause| fail(ErrorKind::OutOfRange).caused_by(cause))
            }
        }
    }

    /// Makes memory of the caller's known to the engine. Raw pointers become a [`DmaRegion`] by its unsafe constructor,
    /// which has the contract; from there on everything is checked. Device memory is looked up with the driver.
    ///
    /// *Blocking*: as [`Engine::allocate`].
    ///
    /// # Errors
    /// `NoDevice` if it is device memory that the driver cannot serve; `NotRegistered` if the driver knows the address as
    /// memory of another device than the region says, or not at all; `OutOfRange` if the region leaves its allocation.
    pub fn register(&self, region: DmaRegion) -> Result<Region, Error> {
        self.core.check(Verb::Register)?;
        match (Destination::of(&region), region.base()) {
            (Destination::Gpu(ordinal), place) => {
                self.core.backends.check_device_range(ordinal, place.raw(), region.len())?;
            }
            (Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_), _) => {}
        }
        self.core.backends.nvme.pin(&region);
        Region::new(&region)
    }

    /// A way to look at memory of one kind from the host. For verification and headers; it is not the fast path.
    ///
    /// # Errors
    /// The driver's, if `destination` is a device.
    pub fn copy_out(&self, destination: Destination) -> Result<CopyOut, Error> {
        self.core.check(Verb::Copy)?;
        Ok(CopyOut::new(self.core.backends.reader(destination)?, destination))
    }

    /// A way to put host bytes into memory of one kind: for bytes that no read can put in place. It is not the fast path.
    ///
    /// # Errors
    /// The driver's, if `destination` is a device.
    pub fn copy_in(&self, destination: Destination) -> Result<CopyIn, Error> {
        self.core.check(Verb::Copy)?;
        Ok(CopyIn::new(self.core.backends.reader(destination)?, destination))
    }

    /// A way to sum bytes of one kind of memory where they lie. A GPU does it by kernels, without a byte going back; where it cannot,
    /// [`Sums::refusal`] says why, and the processor sums copies.
    ///
    /// *Blocking*: the first one on a GPU waits until its driver has made code of the kernels.
    ///
    /// # Errors
    /// The driver's, if `destination` is a device that neither sums nor copies.
    pub fn sums(&self, destination: Destination) -> Result<Sums, Error> {
        let refusal = match destination {
            Destination::Gpu(ordinal) => match self.core.backends.device_sums(ordinal) {
                Ok(sums) => return Ok(Sums::on_device(sums, destination)),
                Err(refusal) => Some(refusal),
            },
            Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_) => None,
        };
        Ok(Sums::by_processor(self.copy_out(destination)?, destination, refusal))
    }

    /// A way to move many ranges between memories of one GPU at once, by its kernels.
    ///
    /// *Blocking*: the first one on a GPU waits until its driver has made code of the kernel.
    ///
    /// # Errors
    /// `Unsupported` where the GPU runs no kernels of ours, and for memory that is no GPU's; the driver's.
    pub fn moves(&self, destination: Destination) -> Result<Moves, Error> {
        self.core.check(Verb::Setup)?;
        match destination {
            Destination::Gpu(ordinal) => Ok(Moves::new(self.core.backends.device_moves(ordinal)?, destination)),
            Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_) => {
                Err(Error::new(ErrorKind::Unsupported, Verb::Setup)
                    .at(format!("{destination} memory"))
                    .detail("no device moves bytes in it")
                    .remedy("copy them"))
            }
        }
    }

    /// Copies `len` bytes from `at` of memory of any kind into fresh host memory. For more than one range of a device's
    /// memory, [`Engine::copy_out`] does the set-up once.
    ///
    /// # Errors
    /// `OutOfRange`; the copy engine's.
    pub fn copy_range_to_host(&self, memory: &Memory, at: u64, len: u64) -> Result<Vec<u8>, Error> {
        // Before the allocation: a length from outside may be any number.
        memory.check_range(at, len)?;
        let mut bytes = Vec::with_capacity(sw_mem::index(len));
        self.copy_out(memory.destination())?.visit(memory, at, len, |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// Copies all of `memory` into fresh host memory.
    ///
    /// # Errors
    /// As [`Engine::copy_range_to_host`].
    pub fn copy_to_host(&self, memory: &Memory) -> Result<Vec<u8>, Error> {
        self.copy_range_to_host(memory, 0, memory.len())
    }

    /// Every route that a transfer could take, with a verdict for each. For a stripe set: of its first member.
    ///
    /// Made from facts: nothing is written, and no memory of a device is opened or touched. What a self-test has yet to show is
    /// told by [`Engine::reach`]. A policy that names NVIDIA's libcufile has it loaded, and the file read by it, to know.
    pub fn plan(&self, object: &Object, destination: Destination, policy: Policy, verb: Verb) -> Plan {
        object.refresh();
        self.core.plan(object, first_of(object), (destination, Ask::Facts), &policy, verb).1
    }

    /// What operations in a [`Lane`] for `destination` name: an object, and the way to it. Planned once, kept with the object.
    ///
    /// # Errors
    /// `PolicyUnmet` or `Unsupported` with the reasons.
    pub fn target(
        &self,
        object: &Object,
        destination: Destination,
        policy: &Policy,
        verb: Verb,
    ) -> Result<Target, Error> {
        self.core.check(verb)?;
        object.refresh();
        request::target(&self.core, object, destination, policy, verb)
    }

    /// What is known of an object and a destination, before anything is tried or after. For a stripe set: of its first member.
    pub fn reach(&self, object: &Object, destination: Destination) -> Reach {
        self.core.reach(object, first_of(object), destination, Ask::Facts)
    }

    /// Reads as many bytes as `memory` has, from byte `offset`.
    pub fn read(&self, object: &Object, offset: u64, memory: impl Into<Memory>) -> Request {
        self.request(object, Verb::Read, offset, Spans::One(memory.into().span))
    }

    /// Writes the bytes of `memory` at byte `offset`.
    pub fn write(&self, object: &Object, offset: u64, memory: impl Into<Memory>) -> Request {
        self.request(object, Verb::Write, offset, Spans::One(memory.into().span))
    }

    /// Reads each part from its own offset: one operation, one completion.
    pub fn read_vectored(&self, object: &Object, parts: Vec<(u64, Memory)>) -> Request {
        self.request(object, Verb::Read, 0, many(parts))
    }

    /// Writes each part at its own offset: one operation, one completion.
    pub fn write_vectored(&self, object: &Object, parts: Vec<(u64, Memory)>) -> Request {
        self.request(object, Verb::Write, 0, many(parts))
    }

    /// Makes completed writes durable.
    pub fn flush(&self, object: &Object) -> Request {
        self.request(object, Verb::Flush, 0, Spans::None)
    }

    /// Starts requests together.
    pub fn batch(&self, requests: Vec<Request>) -> Batch {
        Batch::start(requests)
    }

    fn request(&self, object: &Object, verb: Verb, offset: u64, spans: Spans) -> Request {
        object.refresh();
        Request::new(self.core.clone(), object.clone(), verb, offset, spans)
    }

    /// Closes a gate at the end of what a stream of GPU `ordinal` holds now, so that an operation can take its place in the
    /// stream: start it once [`StreamGate::is_reached`] says yes, and drop the gate when it is over. What is submitted to the
    /// stream later waits for that. No function of the host runs in the stream, and no other stream waits.
    ///
    /// The stream is of the primary context, as those of the runtime library are. What allocates or frees memory of the device may
    /// wait for the gate, so nothing that the gate waits for may: the reactors of the GPU are set up here, and the operation is
    /// started ([`Request::start`]) and not run in line.
    ///
    /// # Errors
    /// `NoDevice`; what setting up the GPU reports; `Unsupported` for a driver without waits for memory; `Busy` if too many gates are closed (1024); the driver's,
    /// for a stream of another context.
    pub fn stream_gate(&self, ordinal: u16, stream: CallerStream) -> Result<StreamGate, Error> {
        self.core.check(Verb::Setup)?;
        self.core.start_all(self.core.group(Destination::Gpu(ordinal))?)?;
        self.core.backends.stream_gate(ordinal, stream)
    }

    /// A lane for one thread's own use: the shortest way, without a thread switch or an allocation per operation.
    ///
    /// # Errors
    /// What the system refuses; `NoDevice` if there is no such GPU.
    pub fn lane(&self, destination: Destination) -> Result<Lane, Error> {
        self.core.check(Verb::Setup)?;
        let group = self.core.group(destination)?;
        let lane = self.core.make_lane(group, Owner::OneThread)?;
        Ok(Lane::new(self.core.clone(), lane, destination))
    }

    /// Bytes per second of copies between pinned host memory and a GPU, measured for about `time` (at most 10 s): into the GPU
    /// for [`Verb::Read`], out of it for [`Verb::Write`]. What `read` or `write` cannot exceed there, for reports.
    ///
    /// *Blocking*: for that time.
    ///
    /// # Errors
    /// `ApiMisuse` for memory that is no GPU's, or another verb; what the driver reports; `DeadlineExceeded` for copies that do
    /// not end.
    pub fn copy_rate(&self, destination: Destination, verb: Verb, time: Duration) -> Result<u64, Error> {
        self.core.check(Verb::Copy)?;
        let direction = match verb {
            Verb::Read => Some(CopyDirection::ToDevice),
            Verb::Write => Some(CopyDirection::FromDevice),
            _ => None,
        };
        match (destination, direction) {
            (Destination::Gpu(ordinal), Some(direction)) => {
                self.core.backends.copy_rate(ordinal, direction, time.min(Duration::from_secs(10)))
            }
            _ => Err(Error::new(ErrorKind::ApiMisuse, Verb::Copy)
                .at(destination.to_string())
                .detail("copies to and from a GPU are measured, for reads and writes")
                .remedy("name a GPU, as gpu0")),
        }
    }

    /// Sums over the engine's own lanes (not those that [`Engine::lane`] gave away).
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.core.reports().iter().for_each(|(counters, _)| sum += *counters);
        sum
    }

    /// The live state, as a tree.
    pub fn inspect(&self) -> Tree {
        let lanes = self.core.reports().into_iter().filter_map(|(_, tree)| tree).collect();
        let rates = self.core.rates();
        let rate = |(class, rate): &(sw_engine::RateClass, u64)| {
            let source =
                if class.resident { " from the page cache".into() } else { format!(" of device {}", class.device) };
            let face = if class.face == class.landing { "" } else { class.face.name() };
            let filled = if face.is_empty() { String::new() } else { format!(" filled by {face}") };
            let name = format!("{}/{}{filled}{source}", class.transport, class.landing.name());
            Tree::leaf(name, format!("{} MiB/s", rate >> 20))
        };
        let rates = rates.rows().iter().map(rate).collect();
        let stagings = self.core.backends.stagings().into_iter();
        let stagings = stagings.map(|(ordinal, staging)| Tree::leaf(format!("gpu{ordinal}"), staging)).collect();
        let parts = [("lanes", lanes), ("staging", stagings), ("measured rates", rates)];
        Tree::group("engine", parts.map(|(name, parts)| Tree::group(name, parts)).into())
    }

    /// What this machine can do, and what to change.
    ///
    /// *Blocking*: looks at devices. NVIDIA's libcufile, where there is one, is loaded, opened and tried, unless the engine is without it
    /// ([`CuFileUse::Off`](crate::CuFileUse::Off)): that has limits of 15 and 10 seconds for each call.
    pub fn doctor(&self) -> Doctor {
        Doctor::examine(&self.core.backends)
    }

    /// Answers everything in flight and stops. The last clone does the same when it is dropped.
    ///
    /// # Errors
    /// `Protocol` if a device did not let go of memory in time: that memory is kept for ever, and told.
    pub fn close(self) -> Result<(), Error> {
        match self.core.close() {
            0 => Ok(()),
            stuck => Err(Error::new(ErrorKind::Protocol, Verb::Setup)
                .at("engine")
                .detail(format!(
                    "{stuck} I/Os could not be stopped; their memory is quarantined until the process ends"
                ))
                .remedy("look at the kernel log for the device that does not answer")),
        }
    }

    /// Longest that [`Engine::close`] waits for each lane.
    pub const CLOSE_WAIT: Duration = Duration::from_secs(5);
}

/// The object itself, or the first member of a stripe set.
fn first_of(object: &Object) -> &Arc<sw_engine::Object> {
    match &object.inner().composed {
        Some((_, members)) => members.first().unwrap_or(object.inner()),
        None => object.inner(),
    }
}

fn many(parts: Vec<(u64, Memory)>) -> Spans {
    Spans::Many(parts.into_iter().map(|(offset, memory)| Segment { offset, span: memory.span }).collect())
}

fn changed(uri: &Uri) -> Error {
    Error::new(ErrorKind::Changed, Verb::Open)
        .at(uri.to_string())
        .detail("it is not what it was when its length and version were noted")
        .remedy("list or index it anew")
}

fn file_path(uri: &Uri, verb: Verb) -> Result<&str, Error> {
    match uri {
        Uri::File(path) => Ok(path),
        Uri::Stripe { .. } => Err(Error::new(ErrorKind::Unsupported, verb)
            .at(uri.to_string())
            .detail("a stripe set is opened as it is; it is not created, listed or removed as a whole")
            .remedy("work on its members by path")),
        Uri::Nvme(_) | Uri::NvmeTcp(_) => Err(Error::new(ErrorKind::Unsupported, verb)
            .at(uri.to_string())
            .detail("a namespace is there or not; it is not created, listed or removed by an address")
            .remedy("open it for update and write in place")),
        Uri::Remote(_) => Err(Error::new(ErrorKind::Unsupported, verb)
            .at(uri.to_string())
            .detail("an object of an object store is written from its beginning, as a whole")
            .remedy("start anew; what was sent before an interruption is not there")),
        Uri::Part { .. } => Err(Error::new(ErrorKind::Unsupported, verb)
            .at(uri.to_string())
            .detail("a part of an object is opened and written in place; it is not created, listed or removed")
            .remedy("name the whole object")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sw_engine::PciAddress;

    use super::*;
    use crate::{core::Source, policy::PciBar};

    #[test]
    fn rates_behind_pci_are_not_taken_for_rates_of_host_memory() {
        let path = std::env::temp_dir().join(format!("straightway-rated-{}", std::process::id()));
        std::fs::write(&path, vec![7; 2 << 20]).unwrap();
        let engine = Engine::builder().build().unwrap();
        let object = engine.open(&Uri::from_path(&path).unwrap()).unwrap();
        let mut lane = engine.lane(Destination::Host).unwrap();
        let target = lane.target(&object, &Policy::Any, Verb::Read).unwrap();
        let memory = engine.allocate(Destination::Host, 2 << 20, 0).unwrap();
        lane.submit(crate::Lane::op(0, Verb::Read, target, 0, memory)).unwrap();
        while lane.poll(Duration::from_secs(1), 1) == 0 {}
        let done = lane.pop().unwrap();
        std::fs::remove_file(&path).unwrap();

        let address = PciAddress { domain: 0, bus: 3, device: 0, function: 0 };
        for behind_pci in [Destination::PeerMemory(address), Destination::Bar(PciBar { address, bar: 2 })] {
            engine.core.rate(&done, behind_pci, Source::PageCache);
        }
        assert_eq!(engine.core.rates().rows(), &[]);
        engine.core.rate(&done, Destination::Host, Source::PageCache);
        assert_eq!(engine.core.rates().rows().len(), 1);
    }
}
