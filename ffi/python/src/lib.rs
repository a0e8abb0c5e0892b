//! The compiled half of the Python package `straightway`: thin over the Rust crates.
//!
//! ```text
//!   Python object ──foreign──► Region ─┐
//!                                      ├─► Request ─.start()─► Operation ─ wait (no GIL, in slices) ─► Buffer + path
//!   Engine.allocate ─────────► Held  ──┘                          └─ poll (asyncio, woken by a socket)
//!
//!   Dataset ─► Loader ─ wait (no GIL, in slices) ─► Batch ─► Held
//!
//!   Held ◄── Buffer ──export──► buffer protocol, DLPack, __cuda_array_interface__
//! ```
//!
//! Invariants:
//! - The interpreter is left (`Python::detach`) around everything that may wait; waits come back every `wait::SLICE` to
//!   look for signals.
//! - No thread of the engine ever attaches to the interpreter; of a loader's, only workers do, to call a map function. What
//!   they let go of (a reference to a Python object that owns memory) is dropped later by a thread that is attached.
//! - No lock is held while a thread enters the interpreter or leaves it.
//! - Whoever got an address from here keeps a `buffer::Held` alive, and that keeps the memory mapped.
//! - A panic of ours becomes the exception `Poisoned`.
//!
//! Adapters for frameworks, reports and asyncio are Python, in `python/straightway`.

mod aio;
mod batch;
mod buffer;
mod checkpoint;
mod checks;
mod copy;
mod dataset;
mod elements;
mod engine;
mod error;
mod export;
mod foreign;
mod loader;
mod map;
mod mishap;
mod neighbour;
mod object;
mod report;
mod save;
mod wait;

/// The module that Python imports.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::{
        aio::Completions,
        batch::Batch,
        buffer::Buffer,
        checkpoint::Checkpoint,
        checks::Checks,
        dataset::Dataset,
        engine::Engine,
        loader::Loader,
        map::Sample,
        neighbour::Neighbour,
        object::{NewObject, Object, Operation},
        save::{PendingCheckpoint, Steps},
    };

    /// Version of the package.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python packages use")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
