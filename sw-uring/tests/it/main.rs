//! Tests against the real kernel, in one program: files, file systems, block devices, faults, limits.
//!
//! Some need root or a tool; those print why they do nothing. What they mount or make is undone by guards.

mod conformance;
mod data_path;
mod fair;
mod faults;
mod filesystems;
mod fuse;
mod limits;
mod mounts;
mod store;
mod support;
