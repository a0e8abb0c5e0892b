//! libFuzzer target: see `host_queue::host_queue`.
#![no_main]

#[path = "../host_queue.rs"]
mod host_queue;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    host_queue::host_queue(bytes);
});
