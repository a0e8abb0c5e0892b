//! The facade with device memory, on the project's stand-in driver: each case in a process of its own, see
//! `standin_libcuda::runner`. It proves the logic, not a device.
//!
//! `cargo test -p straightway --test gpu -- NAME` runs the cases whose name contains NAME.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed case")]

mod fabrics;
mod faults;
mod reads;
mod setup;
mod sums;
mod writes;

use std::process::ExitCode;

use straightway::{Completed, Destination, Engine, EngineBuilder, Landing, Memory, Object, Reason, Uri};
use sw_testkit::scratch::Scratch;

pub(crate) use standin_libcuda::runner::{Case, End, Library, Outcome, case, holds, same, text};

/// The three ways in which the stand-in's streams run: when asked for, on a thread of their own, at once.
pub(crate) const LAZY: &[(&str, &str)] = &[("STANDIN_MODE", "lazy")];
pub(crate) const WORKER: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100")];
pub(crate) const EAGER: &[(&str, &str)] = &[("STANDIN_MODE", "eager")];
pub(crate) const TWO: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DEVICES", "2")];

fn main() -> ExitCode {
    let cases = [setup::cases(), reads::cases(), writes::cases(), faults::cases(), sums::cases(), fabrics::cases()];
    standin_libcuda::runner::main("straightway-gpu", &cases.concat())
}

/// An engine with four slabs of 64 KiB for each lane: small enough that every read here goes round the ring many times.
pub(crate) fn builder() -> EngineBuilder {
    Engine::builder().reactors(2).staging(64 << 10, 4)
}

pub(crate) fn engine() -> Engine {
    builder().build().unwrap()
}

pub(crate) fn scratch() -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), "gpu")
}

pub(crate) fn at(scratch: &Scratch, name: &str) -> Uri {
    scratch.text(name).parse().unwrap()
}

pub(crate) fn file(scratch: &Scratch, name: &str, len: usize) -> (Uri, Vec<u8>) {
    let bytes = scratch.file(name, len);
    (at(scratch, name), bytes)
}

pub(crate) const GPU0: Destination = Destination::Gpu(0);

/// Device memory with the bytes of a host vector, by way of a file.
pub(crate) fn on_gpu(engine: &Engine, scratch: &Scratch, len: usize) -> (Memory, Vec<u8>) {
    let (uri, bytes) = file(scratch, "source", len);
    let object = engine.open(&uri).unwrap();
    (read(engine, &object, 0, len).unwrap().into_memory().unwrap(), bytes)
}

/// Reads `len` bytes from `offset` into fresh memory of GPU 0.
pub(crate) fn read(engine: &Engine, object: &Object, offset: usize, len: usize) -> Result<Completed, String> {
    let memory = engine.allocate(GPU0, len as u64, offset as u64).map_err(text)?;
    engine.read(object, offset as u64, memory).wait().ok().map_err(text)
}

/// What must hold for every way into or out of device memory on this machine.
pub(crate) fn went_through_slabs(done: &Completed, len: usize) -> Outcome {
    let path = &done.path;
    same("landing", path.route.landing, Landing::Staged)?;
    same("reason", path.reason, Reason::NoPeerPages)?;
    same("bytes by path", (path.bytes.staged, path.bytes.total()), (len as u64, len as u64))?;
    same("bounced", path.bounced, len as u64)?;
    // At most the kernel's own copy out of or into its page cache: device memory is not touched by a CPU.
    holds("no CPU copy of ours", path.cpu_copied <= len as u64)
}

/// The bytes of a part of device memory.
pub(crate) fn bytes_are(engine: &Engine, memory: &Memory, want: &[u8]) -> Outcome {
    let got = engine.copy_to_host(memory).map_err(text)?;
    let differ = got.iter().zip(want).position(|(got, want)| got != want);
    same("length and first byte that differs", (got.len(), differ), (want.len(), None))
}
