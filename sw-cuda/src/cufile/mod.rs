//! NVIDIA's own libcufile, loaded at run time, as one way to move the bytes of local files.
//!
//! ```text
//!   a path, or the loader's search ─► found ─► not ours ─► symbols ─► version ─► opened ─► CuFile
//!                                                                                            │ register(descriptor)
//!   BlockingIo::perform ◄── a pool of threads elsewhere            CuFileHandle (in the object) ◄── prove: one block, compared
//! ```
//!
//! Invariants:
//! - It is never our own drop-in, which would come back here: that one is told by a name that only it exports ([`Refusal`](CuFileRefusal)
//!   `Ours`), also where it stands in front of all libraries of the process.
//! - Nothing here waits for ever: whatever the library does beside moving bytes runs on a thread of its own with a limit
//!   (`within.rs`); a thread that the library keeps is left behind, told in the log, and never waited for again; nor is the library
//!   asked for another file then. Bytes are moved on the threads of a pool, whose callers have deadlines.
//! - A file that is registered keeps its descriptor; it is deregistered before that is closed, and after the last I/O on it.
//! - Nothing is told of the way that the bytes took, because the library tells nothing: it chooses between `nvidia-fs`, its own bounce
//!   buffers and plain system calls for each I/O. So its landing is never `Dma` ([`Reason::VendorDecides`](sw_engine::Reason)).
//!
//! What it does not do: register memory (each I/O is of memory that the library does not know, which it takes), batches, streams.
//! Read on: `docs/cufile.md` "NVIDIA's library as a route".

mod files;
mod library;
mod table;
mod within;

pub use files::CuFileHandle;
pub use library::{CUFILE, CuFile, CuFileRefusal, CuFileReport, CuFileSource, CuFileVersion};
