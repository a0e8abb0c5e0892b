//! Loads tensors by an engine: every byte through its pipeline, each file with the way that its bytes took.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};
use straightway::{
    CopyOut, DataPath, Destination, Engine, Error, ErrorKind, Memory, Object, Pending, Policy, Uri, Verb,
    checksum::Algorithm,
};

use crate::checked::{Checks, ReadRange, Rest};
pub(crate) use crate::open::malformed;
use crate::{
    Cancel, Catalog, Checkpoint, Dtype, LoadLimits, LoadPlan, Meter, Pattern, PlanError, ReadPart, Verification,
    Verify, Want,
    load_plan::{Place, Window},
    scatter::Scatter,
};

/// Parts in flight: with parts of 8 MiB and I/Os of 2 MiB enough to keep the queues of a few reactors full, and few enough
/// that memory of one part is what a failure throws away.
const PARTS_IN_FLIGHT: usize = 8;

/// How many times as many parts may be in flight if they are cut shorter, so that small chunks fill no queue.
const SHORTER_MAX: usize = 8;

/// Ranges whose checksums are asked of a device at a time: a cancel waits no longer than for so many.
const LANDED_AT_A_TIME: usize = 2048;

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where tensors land.
    pub into: Destination,
    /// Which tensors [`load()`] loads. Default: all.
    pub tensors: Pattern,
    /// Which routes are accepted for the tensors' bytes.
    pub policy: Policy,
    /// Whether to compute SHA-256 of each tensor's bytes.
    pub digest: bool,
    /// Whether to compare the checksums that lie beside the checkpoint.
    pub verify: Verify,
    /// Limits of the plan.
    pub limits: LoadLimits,
    /// Ends the load early.
    pub cancel: Cancel,
    /// Tells how far the load is.
    pub meter: Meter,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            into: Destination::Host,
            tensors: Pattern::all(),
            policy: Policy::Any,
            digest: false,
            verify: Verify::default(),
            limits: LoadLimits::default(),
            cancel: Cancel::default(),
            meter: Meter::default(),
        }
    }
}

/// Reads that went the same way for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The way, with its bytes summed.
    pub path: DataPath,
    /// How many reads.
    pub reads: u64,
}

/// What was read of one file.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// Its path.
    pub name: String,
    /// The ways of its bytes, those that were read for checksums included. The head is read apart and is not in them.
    pub ways: Vec<Way>,
    /// Bytes in chunks that were compared with their checksum; parts of them may not have been wanted.
    pub verified_bytes: u64,
    /// Bytes that were read and not compared.
    pub unverified_bytes: u64,
}

impl FileReport {
    fn add(&mut self, path: DataPath) {
        let same = |way: &&mut Way| way.path.route == path.route && way.path.reason == path.reason;
        match self.ways.iter_mut().find(same) {
            Some(way) => {
                way.path.bytes += path.bytes;
                way.path.bounced += path.bounced;
                way.path.cpu_copied += path.cpu_copied;
                way.reads += 1;
            }
            None => self.ways.push(Way { path, reads: 1 }),
        }
    }
}

/// A tensor, or a slice of one, in memory.
#[derive(Clone, Debug)]
pub struct LoadedTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions of what was loaded, outermost first.
    pub shape: Vec<u64>,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Position in [`Loaded::files`] of the file that has the tensor's first chunk; `None` if it has none.
    pub file: Option<usize>,
    /// Region and offset of its first byte; `None` exactly if it has no bytes.
    pub place: Option<(usize, u64)>,
    /// SHA-256 of its bytes, if it was asked for.
    pub digest: Option<[u8; 32]>,
}

/// What came of comparing bytes where they landed, in a device's memory: damage behind the processor, which saw them on their way.
#[derive(Debug)]
pub struct Landed {
    /// Bytes whose checksum in the device's memory is that of what was read.
    pub compared_bytes: u64,
    /// Why the device summed nothing; `None` if it did.
    pub refusal: Option<Error>,
}

/// Short runs that a GPU's kernels moved into place; copies brought the rest of them.
#[derive(Debug)]
pub struct RunsMoved {
    /// Bytes of them.
    pub bytes: u64,
    /// Why it moved no more, where more than a few runs lay together; `None` if it moved them all.
    pub refusal: Option<Error>,
}

/// A loaded checkpoint.
#[derive(Debug)]
pub struct Loaded {
    /// The memory. Tensors lie in it with the gaps and padding of their files; given memory is here in the order of the
    /// wants that have bytes.
    pub regions: Vec<Memory>,
    /// The tensors, in the order of the wants; for [`load()`] in that of the catalog.
    pub tensors: Vec<LoadedTensor>,
    /// What was read of each file.
    pub files: Vec<FileReport>,
    /// Bytes of the tensors.
    pub tensor_bytes: u64,
    /// Bytes read beside them, because reading on is cheaper than a second read.
    pub gap_bytes: u64,
    /// Whether they were compared with the checksums beside the checkpoint.
    pub verification: Verification,
    /// Bytes read beside them, because their chunk could not be compared without.
    pub rest_bytes: u64,
    /// By [`Verify::Require`] into a GPU: what the GPU says of them. Short runs that are put together by the processor are not in it.
    pub landed: Option<Landed>,
    /// Of short runs that were put together in a GPU's memory: what its kernels moved.
    pub moved: Option<RunsMoved>,
}

impl Loaded {
    /// Copies a tensor's bytes out, whatever memory they are in.
    ///
    /// # Errors
    /// The copy engine's; `NotFound` for a tensor that is not of this checkpoint.
    pub fn bytes_of(&self, engine: &Engine, tensor: &LoadedTensor) -> Result<Vec<u8>, Error> {
        match tensor.place {
            Some((region, offset)) => engine.copy_range_to_host(self.region(region, tensor)?, offset, tensor.len_bytes),
            None => Ok(Vec::new()),
        }
    }

    /// Shows a tensor's bytes to `each` in order, whatever memory they are in, in copies of at most 1 MiB each.
    ///
    /// # Errors
    /// As [`Loaded::bytes_of`]; `each` may have seen a part then.
    pub fn visit(&self, engine: &Engine, tensor: &LoadedTensor, each: impl FnMut(&[u8])) -> Result<(), Error> {
        let Some((region, _)) = tensor.place else { return Ok(()) };
        let destination = self.region(region, tensor)?.destination();
        self.visit_by(&mut engine.copy_out(destination)?, tensor, each)
    }

    /// [`Loaded::visit`] by a way out that was made before.
    fn visit_by(&self, out: &mut CopyOut, tensor: &LoadedTensor, each: impl FnMut(&[u8])) -> Result<(), Error> {
        let Some((region, offset)) = tensor.place else { return Ok(()) };
        out.visit(self.region(region, tensor)?, offset, tensor.len_bytes, each)
    }

    fn region(&self, region: usize, tensor: &LoadedTensor) -> Result<&Memory, Error> {
        self.regions.get(region).ok_or_else(|| Error::new(ErrorKind::NotFound, Verb::Copy).at(tensor.name.as_str()))
    }
}

/// Loads a checkpoint of any format that [`Checkpoint::open`] knows.
///
/// *Blocking*: until every byte is there. Memory: the regions of the plan and the engine's staging, nothing else; where
/// short runs are gathered, 64 MiB more.
///
/// # Errors
/// As [`Checkpoint::open`] and [`Checkpoint::load`].
pub fn load(engine: &Engine, at: &Uri, options: &LoadOptions) -> Result<Loaded, Error> {
    let checkpoint = Checkpoint::open(engine, at)?;
    checkpoint.load(engine, &checkpoint.wants(&options.tensors)?, options)
}

impl Checkpoint {
    /// Loads `wants` into fresh memory. [`LoadOptions::tensors`] is not looked at.
    ///
    /// *Blocking*, memory: as [`load()`].
    ///
    /// # Errors
    /// `PolicyUnmet`; `Cancelled`; what planning, allocating and reading return; `ChecksumMismatch` with file and chunk,
    /// and by [`Verify::Require`] `NotFound` without checksums. Nothing is returned half.
    pub fn load(&self, engine: &Engine, wants: &[Want], options: &LoadOptions) -> Result<Loaded, Error> {
        let plan = LoadPlan::new(self.catalog(), wants, options.limits);
        let plan = plan.map_err(|cause| unplanned(self.at(), cause))?;
        let allocate = |region: &crate::Region| engine.allocate(options.into, region.len_bytes, 0);
        let memory = plan.regions().iter().map(allocate).collect::<Result<_, _>>()?;
        self.fill(engine, (&plan, wants), memory, options)
    }

    /// Loads `wants` into `memory`: one for each want that has bytes, in order, of exactly its length, all of the kind
    /// [`LoadOptions::into`]. It comes back in [`Loaded::regions`].
    ///
    /// # Errors
    /// As [`Checkpoint::load`]; `ApiMisuse` if number, kind or length do not fit, before anything is read. The memory is
    /// let go of then, and may have been written to.
    pub fn load_into(
        &self,
        engine: &Engine,
        wants: &[Want],
        memory: Vec<Memory>,
        options: &LoadOptions,
    ) -> Result<Loaded, Error> {
        let plan = LoadPlan::into_given(self.catalog(), wants, options.limits);
        let plan = plan.map_err(|cause| unplanned(self.at(), cause))?;
        let fits = memory.len() == plan.regions().len()
            && memory
                .iter()
                .zip(plan.regions())
                .all(|(memory, region)| memory.len() == region.len_bytes && memory.destination() == options.into);
        if !fits {
            let wanted: Vec<u64> = plan.regions().iter().map(|region| region.len_bytes).collect();
            let given: Vec<u64> = memory.iter().map(Memory::len).collect();
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Plan)
                .at(self.at().to_string())
                .detail(format!("memory of {given:?} bytes was given for wants of {wanted:?} in {}", options.into))
                .remedy("give one memory for each want that has bytes, of its length, all of one kind"));
        }
        self.fill(engine, (&plan, wants), memory, options)
    }

    fn fill(
        &self,
        engine: &Engine,
        (plan, wants): (&LoadPlan, &[Want]),
        memory: Vec<Memory>,
        options: &LoadOptions,
    ) -> Result<Loaded, Error> {
        let report = |object: &Object| FileReport {
            name: object.name().to_owned(),
            ways: Vec::new(),
            verified_bytes: 0,
            unverified_bytes: 0,
        };
        let files = self.objects().iter().map(report).collect();
        let checksums = if options.verify == Verify::Off { None } else { self.shared_checksums(engine)? };
        let mut checks = Checks::new(&self.at().to_string(), checksums, options.verify, plan.limits().align_bytes)?;
        for file in self.catalog().files() {
            checks.file(&file.name, file.len_bytes)?;
        }
        let totals = plan.totals();
        let LoadOptions { policy, cancel, meter, .. } = options;
        meter.expect(totals.tensor_bytes + totals.gap_bytes);
        let seen = (options.verify == Verify::Require && matches!(options.into, Destination::Gpu(_))).then(Vec::new);
        let mut run = Run { engine, objects: self.objects(), policy: *policy, cancel, meter, files, checks, seen };
        let regions = run.read_all(plan, memory)?;
        let landed = run.check_landed(&regions, options.into)?;
        let moved = run.gather_all(plan, &regions, options.into)?;
        let rest_bytes = run.finish_checks(&regions, options.into)?;
        self.objects().iter().try_for_each(Object::check_unchanged)?;
        let tensors = loaded_tensors(self.catalog(), plan, wants);
        meter.complete();
        let mut loaded = Loaded {
            regions,
            tensors,
            files: run.files,
            tensor_bytes: totals.tensor_bytes,
            gap_bytes: totals.gap_bytes,
            verification: run.checks.outcome(),
            rest_bytes,
            landed,
            moved,
        };
        if options.digest {
            // One way out for all: a copy engine is made once.
            let mut out = engine.copy_out(options.into)?;
            for at in 0..loaded.tensors.len() {
                options.cancel.check(Verb::Read)?;
                let mut hash = Sha256::new();
                loaded.visit_by(&mut out, &loaded.tensors[at], |piece| hash.update(piece))?;
                loaded.tensors[at].digest = Some(hash.finalize().into());
            }
        }
        Ok(loaded)
    }
}

fn loaded_tensors(catalog: &Catalog, plan: &LoadPlan, wants: &[Want]) -> Vec<LoadedTensor> {
    let tensors = plan.views().iter().zip(wants).filter_map(|(view, want)| {
        let tensor = catalog.tensors().get(view.tensor)?;
        Some(LoadedTensor {
            name: tensor.name.to_string(),
            dtype: tensor.dtype,
            shape: want.sizes.to_vec(),
            len_bytes: view.len_bytes,
            file: tensor.file(),
            place: view.place.map(|place| (place.region, place.region_offset)),
            digest: None,
        })
    });
    tensors.collect()
}

/// A read on its way, with what it reads.
struct Running {
    range: ReadRange,
    pending: Pending,
}

/// One load.
struct Run<'l> {
    engine: &'l Engine,
    objects: &'l [Object],
    policy: Policy,
    cancel: &'l Cancel,
    meter: &'l Meter,
    files: Vec<FileReport>,
    checks: Checks,
    /// Ranges that the processor saw on their way into device memory, each with its checksum, if they are to be compared there.
    seen: Option<Vec<(ReadRange, u64)>>,
}

impl Run<'_> {
    /// Reads what lands in place.
    fn read_all(&mut self, plan: &LoadPlan, memory: Vec<Memory>) -> Result<Vec<Memory>, Error> {
        let share = |memory: Memory| {
            let len = memory.len();
            (memory.share(), len)
        };
        let regions: Vec<_> = memory.into_iter().map(share).collect();
        let chunk_bytes = self.checks.chunk_bytes().unwrap_or(u64::MAX);
        // As many bytes in flight if the parts are shorter.
        let shorter = usize::try_from(plan.limits().part_len_bytes / chunk_bytes).unwrap_or(1);
        let most = PARTS_IN_FLIGHT * shorter.clamp(1, SHORTER_MAX);
        let mut running = VecDeque::with_capacity(most);
        let mut failed = None;
        for part in plan.parts_in(chunk_bytes) {
            if running.len() == most {
                failed = self.settle(running.pop_front()).err();
            }
            failed = failed.or_else(|| self.cancel.check(Verb::Read).err());
            let Some(object) = self.objects.get(part.file).filter(|_| failed.is_none()) else { break };
            let Some(((region, base), _)) = regions.get(part.region) else { break };
            let read = to_whole_blocks(plan, &part, object);
            let memory = region.part(base + read.region_offset, read.len_bytes)?;
            let ReadPart { file, file_offset, len_bytes, region, region_offset, .. } = read;
            let range = ReadRange { file, file_offset, len_bytes, place: Some(Place { region, region_offset }) };
            running.push_back(self.start(object, range, memory, self.policy));
        }
        // After a failure the rest is still waited for: its memory must not be given back under a device.
        while let Some(part) = running.pop_front() {
            let later = self.settle(Some(part)).err();
            failed = failed.or(later);
        }
        match failed {
            Some(error) => Err(error),
            None => regions.into_iter().map(|((region, base), len)| Ok(region.reclaim(base, len)?)).collect(),
        }
    }

    /// Compares what lies in device memory with what was read.
    fn check_landed(&mut self, regions: &[Memory], into: Destination) -> Result<Option<Landed>, Error> {
        let Some(seen) = self.seen.take().filter(|seen| !seen.is_empty()) else { return Ok(None) };
        let mut sums = self.engine.sums(into)?;
        if !sums.is_on_device() {
            // Over copies it would be a second load.
            return Ok(Some(Landed { compared_bytes: 0, refusal: sums.into_refusal() }));
        }
        let lies = |(range, _): &(ReadRange, u64)| {
            let place = range.place?;
            Some((regions.get(place.region)?, place.region_offset, range.len_bytes))
        };
        let mut compared_bytes = 0;
        for seen in seen.chunks(LANDED_AT_A_TIME) {
            self.cancel.check(Verb::Read)?;
            let places = seen.iter().map(lies).collect::<Option<Vec<_>>>().ok_or_else(without_memory)?;
            for ((range, want), have) in seen.iter().zip(sums.of(Algorithm::Crc32c, &places)?) {
                if have != *want {
                    let name = self.files.get(range.file).map(|file| file.name.as_str()).unwrap_or_default();
                    return Err(Error::new(ErrorKind::ChecksumMismatch, Verb::Copy)
                        .at(name)
                        .in_range(range.file_offset, range.len_bytes)
                        .detail(format!("{have:08x} in {into} memory, {want:08x} as it was read"))
                        .remedy("load again, and look into the kernel log for messages about the device"));
                }
                compared_bytes += range.len_bytes;
            }
        }
        Ok(Some(Landed { compared_bytes, refusal: None }))
    }

    /// Reads short runs into memory beside the regions and copies them to their places.
    fn gather_all(
        &mut self,
        plan: &LoadPlan,
        regions: &[Memory],
        into: Destination,
    ) -> Result<Option<RunsMoved>, Error> {
        if plan.gathers().is_empty() {
            return Ok(None);
        }
        let mut scatter = Scatter::new(self.engine, into)?;
        let mut running: VecDeque<(Running, Window<'_>)> = VecDeque::with_capacity(PARTS_IN_FLIGHT);
        let mut windows = plan.gathers().iter().flat_map(|gather| plan.windows(gather));
        loop {
            self.cancel.check(Verb::Read)?;
            while running.len() < PARTS_IN_FLIGHT {
                let Some(window) = windows.next() else { break };
                let Some(object) = self.objects.get(window.gather.file) else { break };
                // Congruent with the file, so that a direct read needs no bounce.
                let memory = self.engine.allocate(Destination::Host, window.len_bytes, window.file_offset)?;
                let pending = self.engine.read(object, window.file_offset, memory).policy(self.policy).start();
                let (file, file_offset, len_bytes) = (window.gather.file, window.file_offset, window.len_bytes);
                running.push_back((
                    Running { range: ReadRange { file, file_offset, len_bytes, place: None }, pending },
                    window,
                ));
            }
            let Some((read, window)) = running.pop_front() else {
                let (bytes, refusal) = scatter.outcome();
                return Ok(matches!(into, Destination::Gpu(_)).then_some(RunsMoved { bytes, refusal }));
            };
            let (memory, _) = self.wait(read)?;
            self.meter.add(window.len_bytes);
            let bytes = memory.and_then(|memory| memory.into_buffer().ok());
            let place = plan.views().get(window.gather.view).and_then(|view| view.place);
            let memory = place.and_then(|place| regions.get(place.region));
            let (Some(bytes), Some(place), Some(memory)) = (bytes, place, memory) else {
                return Err(without_memory());
            };
            self.checks.took_bytes(window.gather.file, window.file_offset, bytes.as_slice())?;
            scatter.put(&window, bytes.as_slice(), memory, place)?;
        }
    }

    /// Compares what is left to compare, and gives the bytes that were read for that.
    fn finish_checks(&mut self, regions: &[Memory], into: Destination) -> Result<u64, Error> {
        let unseen = self.checks.unseen();
        if !unseen.is_empty() {
            // By the device's kernels where it has some, else over copies.
            let mut sums = self.engine.sums(into)?;
            for range in unseen {
                let Some((place, memory)) =
                    range.place.and_then(|place| regions.get(place.region).map(|memory| (place, memory)))
                else {
                    continue;
                };
                let sum = sums.of(Algorithm::Crc32c, &[(memory, place.region_offset, range.len_bytes)])?;
                self.checks.took(range, sum.first().copied())?;
            }
        }
        let mut rest_bytes = 0;
        let mut running: VecDeque<(Running, Rest)> = VecDeque::with_capacity(PARTS_IN_FLIGHT);
        let mut rests = self.checks.rests(None).into_iter();
        loop {
            self.cancel.check(Verb::Read)?;
            while running.len() < PARTS_IN_FLIGHT {
                let Some(rest) = rests.next() else { break };
                let Some(object) = self.objects.get(rest.range.file) else { break };
                rest_bytes += rest.range.len_bytes;
                let memory = self.engine.allocate(Destination::Host, rest.range.len_bytes, rest.range.file_offset)?;
                let read = self.engine.read(object, rest.range.file_offset, memory).policy(Policy::Any);
                running.push_back((Running { range: rest.range, pending: read.start() }, rest));
            }
            let Some((read, rest)) = running.pop_front() else { break };
            let bytes = self.wait(read)?.0.and_then(|memory| memory.into_buffer().ok());
            let bytes = bytes.ok_or_else(without_memory)?;
            self.checks.took_rest(&rest, bytes.as_slice())?;
        }
        for (at, file) in self.files.iter_mut().enumerate() {
            (file.verified_bytes, file.unverified_bytes) = self.checks.totals(at);
        }
        Ok(rest_bytes)
    }

    /// Starts a read inside one chunk.
    fn start(&self, object: &Object, range: ReadRange, memory: Memory, policy: Policy) -> Running {
        let read = self.engine.read(object, range.file_offset, memory).policy(policy);
        let summed = self.checks.chunk_bytes().is_some();
        let read = if summed { read.checksum(Algorithm::Crc32c) } else { read };
        Running { range, pending: read.start() }
    }

    /// Waits for a read, notes its way and compares its bytes.
    fn settle(&mut self, read: Option<Running>) -> Result<(), Error> {
        let Some(read) = read else { return Ok(()) };
        let range = read.range;
        let (_, sum) = self.wait(read)?;
        if let (Some(seen), Some(sum)) = (&mut self.seen, sum) {
            seen.push((range, sum));
        }
        self.checks.took(range, sum)
    }

    /// Waits for a read and notes its way; gives its memory back, and its checksum.
    fn wait(&mut self, Running { range, pending }: Running) -> Result<(Option<Memory>, Option<u64>), Error> {
        let done = pending.wait();
        if let (Ok(_), Some(report)) = (&done.result, self.files.get_mut(range.file)) {
            report.add(done.path);
        }
        if range.place.is_some() {
            self.meter.add(range.len_bytes);
        }
        let sum = done.checksum;
        Ok((done.ok()?.into_memory(), sum))
    }
}

fn without_memory() -> Error {
    Error::new(ErrorKind::Protocol, Verb::Copy).detail("a read came back without its memory")
}

/// The part widened to whole blocks, for which the plan left room, so that nothing is bounced; never past the end of the
/// file.
fn to_whole_blocks(plan: &LoadPlan, part: &ReadPart, object: &Object) -> ReadPart {
    let wide = plan.blocks_of(part);
    let end = object.len().min(wide.file_offset + wide.len_bytes);
    ReadPart { len_bytes: end.saturating_sub(wide.file_offset), ..wide }
}

/// Nothing is wrong with the file: what was asked of it cannot be had.
pub(crate) fn unplanned(at: &Uri, cause: PlanError) -> Error {
    let kind = match cause {
        PlanError::NoMatch { .. } | PlanError::NoTensor { .. } => ErrorKind::NotFound,
        PlanError::OverBudget { .. } => ErrorKind::TooLarge,
        PlanError::Refused { .. } => ErrorKind::Unsupported,
        PlanError::OutsideTensor { .. } | PlanError::PartialByte { .. } => ErrorKind::OutOfRange,
        PlanError::OtherTensor { .. } | PlanError::BadAlign { .. } | PlanError::BadPart { .. } => ErrorKind::ApiMisuse,
    };
    Error::new(kind, Verb::Plan).at(at.to_string()).detail(cause.to_string()).caused_by(cause)
}
