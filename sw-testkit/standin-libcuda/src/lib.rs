//! A stand-in `libcuda.so.1`: the CUDA driver's C interface, with device memory kept in host memory.
//!
//! It exists so that the product's own CUDA code runs in every test, unchanged, on machines without a GPU. It is a
//! second *implementation of the driver's interface*, not a mock of ours: it is loaded by the dynamic loader, called
//! through C, and knows nothing about the crates that call it.
//!
//! ```text
//!  code under test ─dlopen("libcuda.so.1")─► api_*.rs ─► State ─► queue.rs   streams: copies happen later
//!  test harness    ─dlsym("standin_…")─────► control.rs    └────► arena.rs   device memory, one memfd per allocation
//! ```
//!
//! What it does like the real driver, on purpose, because bugs hide there:
//!
//! - A device pointer cannot be read by the CPU: its addresses are reserved without access. (Set
//!   `STANDIN_DEVICE_MEMORY=mapped` for tests of code that maps device memory.)
//! - Copies from and to pinned memory run *later*. In mode `lazy` nothing runs until somebody waits, or until a query has
//!   been answered "not ready" as often as asked; streams then run only as far as the question needs, so an order that
//!   nobody asked for is not there by luck.
//! - Bounds are those of the allocation; contexts must be current; registrations may not overlap; errors of a stream
//!   stick to its context; a forked child is refused.
//! - Every call can be made to fail (`STANDIN_FAULTS`, [`harness::Control::set_fault`]), a copy can fail, be cut short
//!   or be damaged in silence, a device can be lost, an export can be missing ([`harness::install`]).
//!
//! Kernels run as code of the host that the test names (`kernels.rs`), never as the PTX that was loaded; without such code no module
//! loads. What it does not do: arrays, textures, graphs, virtual memory management. Those names are not exported.
//! Timing means nothing here. A result obtained with it proves logic, never hardware.

mod abi;
mod api_context;
mod api_copy;
mod api_device;
mod api_memory;
mod api_misc;
mod api_module;
mod api_pointer;
mod api_stream;
mod arena;
mod config;
mod control;
mod fault;
pub mod harness;
mod kernels;
mod names;
mod queue;
pub mod runner;
mod state;
