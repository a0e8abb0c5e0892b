//! Object stores against a server of S3 in this process that is not ours, with a wire between that does what networks do.

mod client;
mod conformance;
mod faults;
