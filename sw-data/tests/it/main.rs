//! Datasets against real servers, where `cargo xtask interop` has brought them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

mod milvus;
