//! Conformance suites: one per seam, run by every backend with a bed of its own.
//!
//! ```text
//!  backend's test ──► impl Bed (makes and tears down) ──► suite::run(&mut bed) ──► Report ──► assert_green(&[skips])
//! ```
//!
//! A backend is done when its suite is green and every skipped case is listed, with its reason, in the backend's test.

pub mod block_file;
pub mod copy_engine;
pub mod kernels;
mod report;
pub mod store;
pub mod verbs;

pub use report::{Case, CaseResult, End, Report, Row, Verdict, fail, skip};
