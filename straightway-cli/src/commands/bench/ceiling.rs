//! What the machine gives without the engine: plain system calls of a few threads, and memory copies.
//!
//! The only I/O of the command that does not go through the engine, because it is what the engine is compared with.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::fcntl::OFlag;
use straightway::{Buffer, Destination, Engine, Verb};

use super::report::{Ceilings, Sequential};
use crate::{fail::Fail, pipeline, session::Stopwatch, signals, size};

/// Threads of the pass, each with one request of [`IO_BYTES`] under way: the default depth of a cell.
const THREADS: u32 = 16;
/// Bytes of one system call, which also is the alignment of its offset.
const IO_BYTES: usize = 1 << 20;
/// How long the pass takes; it goes round a short file.
const TIME: Duration = Duration::from_secs(1);
/// Longest file that the ceiling of writing makes.
const WRITE_BYTES_MAX: u64 = 256 << 20;
/// Bytes that are copied from memory to memory at a time: more than the caches of most processors hold.
const COPY_BYTES: usize = 64 << 20;
/// How long memory is copied.
const COPY_TIME: Duration = Duration::from_millis(200);

/// Ceilings of reading `path` into that memory.
///
/// # Errors
/// What the system gives.
pub fn read(engine: &Engine, path: &Path, len: u64, into: Destination) -> Result<Ceilings, Fail> {
    let pass = Pass { path: path.to_owned(), len, kind: Kind::Read };
    ceilings(engine, pass.run(&mut memory(engine)?, Rounds::Timed)?, into, Verb::Read)
}

/// Both copies beside a pass.
fn ceilings(engine: &Engine, sequential: Sequential, memory: Destination, verb: Verb) -> Result<Ceilings, Fail> {
    let pinned = match memory {
        Destination::Gpu(_) => Some(engine.copy_rate(memory, verb, COPY_TIME)?),
        Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_) => None,
    };
    let pinned_copy_bytes_per_s = pinned.map(|rate| rate as f64);
    Ok(Ceilings { sequential, memory_copy_bytes_per_s: memory_copy(), pinned_copy_bytes_per_s })
}

/// Ceilings of writing beside `path` from that memory: to a file of its own, which is removed.
///
/// # Errors
/// What the system gives.
pub fn write(engine: &Engine, path: &Path, len: u64, from: Destination) -> Result<Ceilings, Fail> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = Removed(path.with_file_name(format!(".{name}.{}.straightway-ceiling", std::process::id())));
    OpenOptions::new().write(true).create_new(true).open(&own.0).map_err(|error| failed(&own.0, &error))?;
    let len = len.clamp(IO_BYTES as u64, WRITE_BYTES_MAX);
    let pass = Pass { path: own.0.clone(), len, kind: Kind::Write };
    // The first pass gives the file its blocks, as `bench write` does with its own.
    let mut memory = memory(engine)?;
    pass.run(&mut memory, Rounds::One)?;
    ceilings(engine, pass.run(&mut memory, Rounds::Timed)?, from, Verb::Write)
}

/// Memory of the threads: of the same kind as the engine's own, since a device can be faster into huge pages.
fn memory(engine: &Engine) -> Result<Buffer, Fail> {
    let memory = engine.allocate(Destination::Host, u64::from(THREADS) * IO_BYTES as u64, 0)?;
    let mut buffer = pipeline::buffer_of(memory)?;
    // Written once, so that the pass takes no page faults.
    buffer.as_mut_slice().fill(0x5a);
    Ok(buffer)
}

/// A file that goes with its owner.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // What cannot be removed is hidden and named for what it is.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounds {
    /// Once through the file.
    One,
    /// As many as fit into [`TIME`].
    Timed,
}

struct Pass {
    path: PathBuf,
    len: u64,
    kind: Kind,
}

impl Pass {
    fn run(&self, memory: &mut Buffer, rounds: Rounds) -> Result<Sequential, Fail> {
        let (file, o_direct) = self.open().map_err(|error| failed(&self.path, &error))?;
        let (next, moved) = (AtomicU64::new(0), AtomicU64::new(0));
        let clock = Stopwatch::start();
        std::thread::scope(|scope| {
            let (file, places) = (&file, (&next, &moved));
            let start = |piece| scope.spawn(move || self.work(file, piece, places, rounds, clock));
            let threads: Vec<_> = memory.as_mut_slice().chunks_exact_mut(IO_BYTES).map(start).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
        })
        .map_err(|error| failed(&self.path, &error))?;
        signals::requested()?;
        let (bytes, seconds) = (moved.into_inner(), clock.seconds());
        Ok(Sequential {
            bytes,
            seconds,
            bytes_per_s: size::rate(bytes, seconds),
            threads: THREADS,
            io_bytes: IO_BYTES as u64,
            o_direct,
        })
    }

    /// With `O_DIRECT` where the file system has it.
    fn open(&self) -> io::Result<(File, bool)> {
        let mut options = OpenOptions::new();
        options.read(self.kind == Kind::Read).write(self.kind == Kind::Write);
        match options.custom_flags(OFlag::O_DIRECT.bits()).open(&self.path) {
            Ok(file) => Ok((file, true)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                options.custom_flags(0).open(&self.path).map(|file| (file, false))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes one piece after the other until the rounds are over.
    fn work(
        &self,
        file: &File,
        buffer: &mut [u8],
        (next, moved): (&AtomicU64, &AtomicU64),
        rounds: Rounds,
        clock: Stopwatch,
    ) -> io::Result<()> {
        let pieces = self.len.div_ceil(IO_BYTES as u64).max(1);
        while signals::requested().is_ok() {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            let over = match rounds {
                Rounds::One => piece >= pieces,
                Rounds::Timed => clock.elapsed() >= TIME,
            };
            if over {
                break;
            }
            let offset = piece % pieces * IO_BYTES as u64;
            let done = match self.kind {
                Kind::Read => file.read_at(buffer, offset)?,
                Kind::Write => file.write_at(buffer, offset)?,
            };
            moved.fetch_add(done as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Bytes per second that one thread copies between two pieces of memory, each byte counted once.
fn memory_copy() -> f64 {
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![2_u8; COPY_BYTES];
    let clock = Stopwatch::start();
    let mut bytes = 0_u64;
    while clock.elapsed() < COPY_TIME {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        bytes += COPY_BYTES as u64;
    }
    size::rate(bytes, clock.seconds())
}

fn failed(path: &Path, error: &io::Error) -> Fail {
    Fail::system(&format!("ceiling of {}", path.display()), error)
}
