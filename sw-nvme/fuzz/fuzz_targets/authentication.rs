//! libFuzzer target: see `authentication::authentication`.
#![no_main]

#[path = "../authentication.rs"]
mod authentication;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    authentication::authentication(bytes);
});
