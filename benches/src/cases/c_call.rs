//! `c-call`: what a call of the C interface costs more than the same call in Rust.

use crate::{
    bench::{Bench, Size, words},
    data::{self, CacheState},
    fault::Fault,
    report::{Bound, Case, Metric, Role},
    rounds::Before,
};

/// Blocks of 1,000 calls of each side.
fn blocks(size: Size) -> u32 {
    match size {
        Size::Smoke => 5,
        Size::Real => 400,
    }
}

/// Both in one process, block by block.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let file = data::plain(&bench.dir, Size::Smoke.file_bytes(), bench.seed)?;
    let library = bench.libraries.join("libstraightway_c.so");
    let args = words(&[
        "c-call",
        &format!("--library={}", library.display()),
        &format!("--file={}", file.display()),
        &format!("--blocks={}", blocks(bench.size)),
    ]);
    let subjects = vec![bench.worker("straightway", Role::Ours, &args, &[file])];
    let what = "512 bytes read from the page cache by blocking calls in Rust and by sw_read of libstraightway.so, in turn in one \
                process, blocks of 1,000 calls; numbers are medians over blocks, overheads of differences between neighbours";
    let before = Before { cache: Some(CacheState::Warm), ..Before::default() };
    let mut case = bench.case("c-call", what, subjects, &before);
    for (metric, text) in [
        (Metric::CallOverRustNanos, "at most 50 ns more than Rust whose memory goes in and comes back"),
        (
            Metric::CallOverPartsNanos,
            "at most 50 ns more than Rust that takes a part of a region for each call, as C does",
        ),
    ] {
        case.hold(text, metric, "straightway", None, Bound::AtMost(50.0));
    }
    Ok(vec![case])
}
