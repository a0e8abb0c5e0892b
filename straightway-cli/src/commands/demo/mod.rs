//! `demo`: makes data, loads it, verifies every byte, and tells for each read which way it took.
//!
//! ```text
//!   a few hundred small files, one large file, a checkpoint of several files
//!        └─ written by the engine ─► read into GPU or host memory ─► compared with the pattern ─► removed
//! ```

mod checkpoint;
mod dataset;
mod report;

use std::path::{Path, PathBuf};

use straightway::{Destination, Engine, Memory};

use self::report::{Read, Summary};
use crate::{
    args::{Auto, Demo},
    environment,
    fail::Fail,
    out::Out,
    pattern,
    route::Ways,
    session::{self, Stopwatch},
    size::{self, Bytes},
};

/// Least bytes: below, the parts of the demo are smaller than what they show.
const SIZE_MIN: u64 = 16 << 20;

/// Runs it.
///
/// # Errors
/// Those of writing and reading; a byte that is not what was written; an interrupt. The files are removed then too.
pub fn run(args: &Demo, out: &mut Out) -> Result<(), Fail> {
    if args.size < SIZE_MIN {
        return Err(Fail::usage(format!("a demo of {} bytes shows nothing", args.size), "use --size 16MiB or more"));
    }
    let clock = Stopwatch::start();
    let summary = session::with_engine(&args.engine, |engine| {
        let files = Files::make(args)?;
        let (into, why_host) = destination(engine, args.into);
        out.text(format_args!("in {}, {} to write, then to read into {into}", files.dir.display(), Bytes(args.size)))?;
        if let Some(why) = &why_host {
            out.text(format_args!("no GPU is used: {why}"))?;
        }
        let mut run =
            Run { engine, dir: &files.dir, into, out, read: Ways::default(), written: 0, verified: 0, read_s: 0.0 };
        run.dataset(args.size)?;
        run.checkpoint(args.size)?;
        let Run { read, written, verified, read_s, .. } = run;
        Ok(Summary {
            schema: "straightway.demo/1",
            dir: files.dir.display().to_string(),
            kept: args.keep,
            into: into.to_string(),
            why_not_gpu: why_host,
            written_bytes: written,
            read_bytes: read.bytes().total(),
            verified_bytes: verified,
            bounced_bytes: read.bounced(),
            read_seconds: read_s,
            read_bytes_per_s: size::rate(read.bytes().total(), read_s),
            seconds: clock.seconds(),
            routes: read.report(),
        })
    })?;
    out.report(&summary)
}

/// The directory of the demo, removed when it goes unless it is kept.
struct Files {
    dir: PathBuf,
    keep: bool,
}

impl Files {
    fn make(args: &Demo) -> Result<Self, Fail> {
        let parent = args.dir.clone().unwrap_or_else(environment::temporary_directory);
        let dir = parent.join(format!("straightway-demo-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|error| Fail::system(&format!("create {}", dir.display()), &error))?;
        Ok(Self { dir, keep: args.keep })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.keep {
            // Made by us under a name of our own; what cannot be removed is named in the first line of the output.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Where to load, and why not into a GPU if that was left open.
fn destination(engine: &Engine, wish: Auto) -> (Destination, Option<String>) {
    match wish {
        Auto::Fixed(into) => (into, None),
        Auto::Auto => match engine.allocate(Destination::Gpu(0), 1, 0) {
            Ok(_) => (Destination::Gpu(0), None),
            Err(error) => (Destination::Host, Some(error.to_string())),
        },
    }
}

/// One demo under way.
struct Run<'a> {
    engine: &'a Engine,
    dir: &'a Path,
    into: Destination,
    out: &'a mut Out,
    read: Ways,
    written: u64,
    verified: u64,
    /// Seconds in which reads were under way; comparing is not in it.
    read_s: f64,
}

impl Run<'_> {
    /// Compares memory of any kind with the pattern.
    fn verify(&mut self, memory: &Memory, name: &str, seed: u64) -> Result<(), Fail> {
        let copy = self.engine.copy_to_host(memory)?;
        self.verify_bytes(copy.as_slice(), memory.len(), name, seed)
    }

    /// Compares the first `len` of `bytes` with the pattern.
    fn verify_bytes(&mut self, bytes: &[u8], len: u64, name: &str, seed: u64) -> Result<(), Fail> {
        let wanted = usize::try_from(len).ok().and_then(|len| bytes.get(..len));
        let bytes = wanted.ok_or_else(|| {
            Fail::verification(
                format!("{name} came back with {} bytes of {len}", bytes.len()),
                "report this as a defect",
            )
        })?;
        self.verified += len;
        match pattern::first_difference(seed, 0, bytes) {
            None => Ok(()),
            Some(at) => Err(pattern::mismatch(name, at, seed)),
        }
    }

    /// Notes reads of an object that were verified; programs see each of its ways, people the sums.
    fn note(&mut self, name: &str, ways: &Ways) -> Result<(), Fail> {
        for way in ways.report() {
            self.out.json(&Read { schema: "straightway.demo.read/1", name: name.to_owned(), way, verified: true })?;
        }
        self.read.join(ways.clone());
        Ok(())
    }
}
