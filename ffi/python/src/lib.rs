//! The compiled half of the Python package `straightway`: thin over the Rust crates.
//!
//! ```text
//!   Python object ──foreign──► Region ─┐
//!                                      ├─► Request ─.start()─► Operation ─ wait (no GIL, in slices) ─► Buffer + path
//!   Engine.allocate ─────────► Held  ──┘                          └─ poll (asyncio, woken by a socket)
//!
//!   Held ◄── Buffer ──export──► buffer protocol, DLPack, __cuda_array_interface__
//! ```
//!
//! Invariants:
//! - The interpreter is left (`Python::detach`) around everything that may wait; waits come back every [`wait::SLICE`] to
//!   look for signals.
//! - No thread of the engine ever attaches to the interpreter. What it lets go of (a reference to a Python object that
//!   owns memory) is dropped later by a thread that is attached.
//! - Whoever got an address from here keeps a [`buffer::Held`] alive, and that keeps the memory mapped.
//! - A panic of ours becomes the exception `Poisoned`.
//!
//! Adapters for frameworks, reports and asyncio are Python, in `python/straightway`.

mod aio;
mod buffer;
mod checkpoint;
mod elements;
mod engine;
mod error;
mod export;
mod foreign;
mod object;
mod report;
mod wait;

/// The module that Python imports.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::{
        aio::Completions,
        buffer::Buffer,
        checkpoint::Checkpoint,
        engine::Engine,
        object::{NewObject, Object, Operation},
    };

    /// Version of the package.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python packages use")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
