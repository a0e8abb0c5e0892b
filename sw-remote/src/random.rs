//! Numbers that nobody foretells, for names and tokens that no other has: by the keys of the standard library's hash tables, which are random.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 bits.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// 128 bits, in letters.
pub(crate) fn word() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}
