//! The word in a face: a descriptor, and whether it was opened with `O_DIRECT`.

use std::os::fd::RawFd;

/// Set when the descriptor bypasses the page cache: a polled ring takes no other.
const DIRECT: u64 = 1 << 32;

/// How a descriptor was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// With `O_DIRECT`.
    Bypassed,
    /// Through the page cache.
    Used,
}

pub(crate) fn pack(fd: RawFd, cache: Cache) -> u64 {
    // A descriptor is never negative once it is open, so the conversion is exact.
    u64::from(fd.cast_unsigned()) | if cache == Cache::Bypassed { DIRECT } else { 0 }
}

/// The descriptor.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is the descriptor by construction")]
pub(crate) fn fd(handle: u64) -> RawFd {
    (handle as u32).cast_signed()
}

#[inline]
pub(crate) fn is_direct(handle: u64) -> bool {
    handle & DIRECT != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        for number in [0, 3, RawFd::MAX] {
            for cache in [Cache::Bypassed, Cache::Used] {
                let handle = pack(number, cache);
                assert_eq!((fd(handle), is_direct(handle)), (number, cache == Cache::Bypassed));
            }
        }
    }
}
