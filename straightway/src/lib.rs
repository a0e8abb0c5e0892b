//! GPU-direct storage: what a Rust program links.
