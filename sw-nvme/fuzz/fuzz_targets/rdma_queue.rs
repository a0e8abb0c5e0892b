//! libFuzzer target: see `rdma_queue::rdma_queue`.
#![no_main]

#[path = "../rdma_queue.rs"]
mod rdma_queue;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    rdma_queue::rdma_queue(bytes);
});
