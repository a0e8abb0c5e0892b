//! The ceiling of a loader: the same extents in random order through a bare io_uring ring, past the page cache, into huge pages
//! that are there already. Nothing is opened, joined, ordered, handed over or checked meanwhile.
// UNSAFETY: pushing entries onto the submission queue is unsafe in the io-uring crate.
#![expect(unsafe_code, reason = "io_uring submission")]

use std::{
    fs::{File, OpenOptions},
    io,
    mem::ManuallyDrop,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::Instant,
};

use io_uring::{IoUring, opcode, types};
use sw_mem::{Buffer, ByteLen};

use crate::{
    data,
    fault::Fault,
    report::Sample,
    samples::{Digest, List},
    usage::Usage,
};

/// As many files are opened before the clock starts at most: more are a ceiling of something else.
const FILES_MAX: usize = 512;
/// The largest block that a device asks for.
const PAGE: usize = 4096;

/// Reads every sample of the list once, `depth` at a time.
pub(crate) fn run(list: &Path, depth: u32, seed: u64) -> Result<Sample, Fault> {
    let list = List::read(list)?;
    if list.files.len() > FILES_MAX {
        let what = format!("a ceiling of reads for {} files, most of whose time is opening", list.files.len());
        return Err(Fault::Missing { what, remedy: "see it in shards" });
    }
    let open = |path: &std::path::PathBuf| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT).open(path).map_err(Fault::os("open", path))
    };
    let files = list.files.iter().map(open).collect::<Result<Vec<File>, _>>()?;
    let first = list.files.first().map_or(Ok(512), |path| data::direct_block(path))?;
    // Never freed: after an error a read may still be on its way into it.
    let mut reads = ManuallyDrop::new(Reads::new(&list, u64::from(first), depth, seed)?);
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(depth)
        .map_err(Fault::os("set up", "io_uring"))?;
    let (mut sample, mut digest) = (Sample::default(), Digest::default());
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let mut flying = 0;
    loop {
        while let Some(entry) = reads.next(&files) {
            // SAFETY: the entry's memory is that of a slot, which is used for nothing else until its completion is taken, and is
            // there until the process ends.
            let pushed = unsafe { ring.submission().push(&entry) };
            assert!(pushed.is_ok(), "the queue has an entry for each of {depth} slots");
            flying += 1;
        }
        if flying == 0 {
            break;
        }
        ring.submit_and_wait(flying.min(8)).map_err(Fault::os("enter", "io_uring"))?;
        let done: Vec<(u64, i32)> =
            ring.completion().map(|entry: io_uring::cqueue::Entry| (entry.user_data(), entry.result())).collect();
        for (slot, got) in done {
            flying -= 1;
            let failed = || Fault::os("read", "an extent")(io::Error::from_raw_os_error(got.saturating_neg()));
            digest.add(reads.done(slot, got).ok_or_else(failed)?);
        }
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    (sample.ops, sample.bytes) = (digest.samples, digest.bytes);
    sample.checksum = Some(digest.text());
    Ok(sample)
}

/// What is to be read, and the memory for it.
struct Reads {
    /// File, first byte, bytes.
    places: Vec<(u32, u64, u64)>,
    next: usize,
    block: u64,
    memory: Buffer,
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// What one read has.
struct Slot {
    /// Its first byte in the memory: a device wants blocks.
    start: usize,
    place: (u32, u64, u64),
}

impl Reads {
    fn new(list: &List, block: u64, depth: u32, seed: u64) -> Result<Self, Fault> {
        let mut places = list.places.clone();
        let mut state = seed;
        for at in (1..places.len()).rev() {
            state = data::splitmix64(state);
            places.swap(at, usize::try_from(state % (at as u64 + 1)).unwrap_or(at));
        }
        let longest = places.iter().map(|place| place.2).max().unwrap_or(0);
        let room = usize::try_from(longest + 2 * block).unwrap_or(usize::MAX).next_multiple_of(PAGE);
        let bytes = ByteLen((room as u64).saturating_mul(u64::from(depth)));
        let mut memory = Buffer::allocate(bytes)
            .map_err(|error| Fault::os("map", "memory of the reads")(io::Error::other(error)))?;
        memory.as_mut_slice().fill(1);
        let slots: Vec<Slot> =
            (0..depth).zip((0..).step_by(room)).map(|(_, start)| Slot { start, place: (0, 0, 0) }).collect();
        Ok(Self { places, next: 0, block, memory, free: (0..slots.len()).collect(), slots })
    }

    /// The next read, if there is one and a slot for it.
    fn next(&mut self, files: &[File]) -> Option<io_uring::squeue::Entry> {
        let (&number, &place) = (self.free.last()?, self.places.get(self.next)?);
        let file = files.get(usize::try_from(place.0).ok()?)?;
        let offset = place.1 / self.block * self.block;
        let len = usize::try_from((place.1 + place.2).next_multiple_of(self.block) - offset).ok()?;
        let slot = self.slots.get_mut(number)?;
        let memory = self.memory.as_mut_slice().get_mut(slot.start..slot.start + len)?;
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), memory.as_mut_ptr(), u32::try_from(len).ok()?);
        slot.place = place;
        self.free.pop();
        self.next += 1;
        Some(read.offset(offset).build().user_data(number as u64))
    }

    /// The sample that a slot read; `None` if it was not read whole.
    fn done(&mut self, number: u64, got: i32) -> Option<&[u8]> {
        let number = usize::try_from(number).ok()?;
        let slot = self.slots.get(number)?;
        self.free.push(number);
        let (_, offset, len) = slot.place;
        let skip = offset % self.block;
        u64::try_from(got).ok().filter(|got| *got >= skip + len)?;
        let from = slot.start + usize::try_from(skip).ok()?;
        self.memory.as_slice().get(from..from + usize::try_from(len).ok()?)
    }
}
