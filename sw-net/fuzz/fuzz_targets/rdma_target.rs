//! libFuzzer target: see `rdma_target::rdma_target`.
#![no_main]

#[path = "../rdma_target.rs"]
mod rdma_target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    rdma_target::rdma_target(bytes);
    assert_eq!(rdma_target::panics(), 0);
});
