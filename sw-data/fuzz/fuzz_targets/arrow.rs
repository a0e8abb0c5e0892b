//! libFuzzer target: an index file, see `index_body::index`.
#![no_main]

#[path = "../index_body.rs"]
mod index_body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    index_body::index(bytes);
});
