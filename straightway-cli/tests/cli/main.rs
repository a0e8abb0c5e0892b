//! The command as its users see it: a process with arguments, output and an exit code.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

mod bench;
mod checkpoint;
mod copy;
mod dataset;
mod documented;
mod fabrics;
mod gpu;
mod hwtest;
mod interrupt;
mod misuse;
mod objects;
mod progress;
mod reference;
mod support;
mod target;
mod topology;
mod transfer;
mod vendor;
