//! The loader on real files: order, bytes, layouts, faults, ends.
#![expect(clippy::unwrap_used, reason = "test code: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests of ends and deadlines take the time")]

mod bad;
mod decoded;
mod ends;
mod flow;
mod hang;
mod set;
mod windows;
