//! The edge of a library that programs in other languages call, where `ffi/c`, `ffi/cufile` and `ffi/python` are the same:
//!
//! ```text
//!   caller ─► address, room, descriptor ─► contained ─► straightway::Engine
//!                (caller.rs)                 (panic.rs)      └─► streams that work waits for (stream.rs)
//! ```
//!
//! What a NULL is called, whether alignment is asked for, how structures grow and how long lent memory stays is each interface's own
//! contract and stands there. Nothing here knows the engine, a clock or a thread.

mod caller;
mod panic;
mod stream;

pub use caller::{Addr, Plain, Ready, address, own_descriptor};
pub use panic::contained;
pub use stream::{GATE_PAUSE, first_of_streams};
