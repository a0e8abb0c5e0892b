//! libFuzzer target: see `body::agp`.
#![no_main]

#[path = "../body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    body::agp(bytes);
});
