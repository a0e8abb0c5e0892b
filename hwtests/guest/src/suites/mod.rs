//! Every suite.

mod bed;
mod peer_pages;
mod power;
mod ways;

use crate::registry::Suite;

/// Every suite, in no particular order: the host's rows choose.
pub fn all() -> &'static [Suite] {
    &[bed::SUITE, power::SUITE, peer_pages::SUITE, ways::SUITE]
}
