//! Runs the real code of this crate against the project's stand-in driver, each case in a process of its own: see
//! `standin_libcuda::runner`.
//!
//! `cargo test -p sw-cuda --test standin -- NAME` runs the cases whose name contains NAME.
// UNSAFETY: cases play callers of unsafe constructors; each file says which.
#![expect(unsafe_code, reason = "cases act as the callers of unsafe constructors, with memory that they allocated")]
#![expect(clippy::disallowed_methods, reason = "cases keep time and start a stream's host function late")]

mod conformance;
mod copies;
mod faults;
mod gates;
mod kernels;
mod memory;
mod probes;

use std::process::ExitCode;

pub use standin_libcuda::runner::{Case, KERNELS, Library, Outcome, case, holds, same, text};

fn main() -> ExitCode {
    let cases: Vec<Case> = [
        probes::cases(),
        memory::cases(),
        copies::cases(),
        conformance::cases(),
        faults::cases(),
        gates::cases(),
        kernels::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    standin_libcuda::runner::main("sw-cuda-standin", &cases)
}

/// The first device's primary context.
pub fn first_context() -> Result<sw_cuda::Context, String> {
    let driver = sw_cuda::Driver::load().map_err(text)?;
    sw_cuda::Context::primary(&driver.device(0).map_err(text)?).map_err(text)
}
