//! The order of samples: a pure function of seed, epoch and position.
//!
//! No table is kept, so that 10⁸ samples cost what ten cost, and any position is found at once. What a job keeps to go on
//! later is a [`Cursor`]: two numbers, and four more that tell whether it is still the same order.
//!
//! - [`Permutation`]: a keyed bijection of `0..len`, both ways.
//! - [`Sampler`], [`Epoch`]: samples of one dataset in sequence, shuffled, or shuffled in blocks.
//! - [`Mixture`]: several datasets by weight.
//! - [`Cursor`], [`Share`]: which positions are whose, on any number of ranks. Positions are dealt out one by one, so that
//!   what all ranks have taken together is always a beginning of the order: it is the same at any world size, and a job that
//!   goes on with another number of ranks loses and repeats nothing.

mod key;
mod mixture;
mod permutation;
mod sampler;
mod share;

pub use mixture::{Mixture, MixtureCursor, Picked, Source};
pub use permutation::Permutation;
pub use sampler::{Epoch, Method, Sampler};
pub use share::{Cursor, Share, Tail, World};

/// Why an order cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// Blocks of no samples, or windows of no blocks.
    #[error("a block shuffle needs blocks of at least one sample and windows of at least one block; give both")]
    EmptyBlock,
    /// A window has more samples than a 64-bit number counts.
    #[error("a window of {blocks} blocks of {samples} samples is beyond 64 bits; make it smaller")]
    WindowTooLarge {
        /// Samples of a block.
        samples: u64,
        /// Blocks of a window.
        blocks: u64,
    },
    /// A mixture of nothing.
    #[error("a mixture needs at least one source with a weight; give weights above zero")]
    NoWeight,
    /// Weights whose sum is too large to deal out.
    #[error("the weights add up to {sum}, and {max} is the most; divide them")]
    WeightsTooLarge {
        /// Their sum, in lowest terms.
        sum: u64,
        /// The limit.
        max: u64,
    },
    /// A source with a weight has no samples.
    #[error("source {index} has a weight but no samples; leave it out")]
    EmptySource {
        /// Its place in the list.
        index: usize,
    },
    /// A rank that is not in the world.
    #[error("rank {rank} of a world of {size} ranks does not exist; ranks count from 0")]
    NoRank {
        /// The rank.
        rank: u64,
        /// Ranks there are.
        size: u64,
    },
    /// The cursor was kept from another order.
    #[error(
        "the cursor belongs to another order ({what} differs); begin anew, or give the dataset, seed and method it was kept with"
    )]
    OtherOrder {
        /// What is different: `len`, `seed`, `method` or `sources`.
        what: &'static str,
    },
    /// The cursor is past the end of its epoch.
    #[error("the cursor says {taken} samples were taken of an epoch of {len}")]
    PastEnd {
        /// Positions taken.
        taken: u64,
        /// Positions of the epoch.
        len: u64,
    },
}
