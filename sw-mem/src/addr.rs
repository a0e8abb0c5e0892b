//! Address spaces and byte lengths as types.
//!
//! There are no arithmetic operators: every sum is `checked_add`, so that a length from a file or a peer cannot wrap
//! around into somebody else's memory. Only a mapper (a backend that asked the IOMMU or the driver) makes an [`Iova`].

use core::fmt;

/// Size of the page that the kernel hands out, in bytes: 4 KiB on x86-64 and on the aarch64 kernels we build for.
///
/// A 64 KiB-page kernel works too: it only makes alignments stricter than asked, never looser (checked by
/// [`HostMapping::map`](crate::HostMapping::map), which aligns to the larger of the two).
pub const PAGE_BYTES: u64 = 4096;

/// A 64-bit length or address as an index of this machine. Lossless: see the assertion below.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits on every target, asserted below")]
pub const fn index(value: u64) -> usize {
    value as usize
}

// Files, devices and GPUs are larger than 4 GiB; a 32-bit build could not name their bytes.
const _: () = assert!(usize::BITS == 64, "Straightway is built for 64-bit targets");

/// A number of bytes. Range: the whole of `u64`; the users of a length check it against their own limits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteLen(pub u64);

impl ByteLen {
    /// No bytes.
    pub const ZERO: ByteLen = ByteLen(0);

    /// `n` KiB.
    pub const fn kib(n: u64) -> ByteLen {
        ByteLen(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> ByteLen {
        ByteLen(n << 20)
    }

    /// The sum, or `None` if it does not fit in 64 bits.
    pub fn checked_add(self, more: ByteLen) -> Option<ByteLen> {
        self.0.checked_add(more.0).map(ByteLen)
    }
}

impl fmt::Display for ByteLen {
    /// Bytes with the largest binary unit that divides them, as in `2 MiB` or `1000 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((size, name)) => write!(f, "{} {name}", self.0 / size),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl fmt::Debug for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `at` rounded up to a multiple of `unit`, or `None` if that does not fit. `unit` is a power of two.
pub fn align_up(at: u64, unit: u64) -> Option<u64> {
    debug_assert!(unit.is_power_of_two(), "alignment {unit} is not a power of two");
    Some(at.checked_add(unit - 1)? & !(unit - 1))
}

/// `at` rounded down to a multiple of `unit`, a power of two.
pub fn align_down(at: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two(), "alignment {unit} is not a power of two");
    at & !(unit - 1)
}

macro_rules! address_space {
    ($(#[$doc:meta])* $name:ident, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address of this space. The caller names the space; nothing is checked.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address, for the system call, register or wire field that needs it.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `len` bytes further, or `None` past the end of the space.
            pub fn checked_add(self, len: ByteLen) -> Option<Self> {
                self.0.checked_add(len.0).map(Self)
            }

            /// Bytes from `base` up to this address, or `None` if it lies below.
            pub fn checked_sub(self, base: Self) -> Option<ByteLen> {
                self.0.checked_sub(base.0).map(ByteLen)
            }

            /// Whether the address is a multiple of `unit` bytes (a power of two).
            pub fn is_aligned_to(self, unit: u64) -> bool {
                align_down(self.0, unit) == self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }
    };
}

address_space!(
    /// An address of this process, as the CPU uses it.
    HostVa, "host"
);
address_space!(
    /// A pointer of an accelerator's address space, as its kernels use it. The CPU may not follow it.
    GpuVa, "gpu"
);
address_space!(
    /// An address as a device sees it behind an IOMMU. Made by a mapper only.
    Iova, "iova"
);
address_space!(
    /// An address as the bus sees it, without translation.
    BusAddr, "bus"
);

/// An address in a peer's memory together with the key that opens it. The key does not appear in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddr {
    /// Address in the peer's space, in bytes.
    pub addr: u64,
    rkey: u32,
}

impl RemoteAddr {
    /// Names `addr` of a peer that granted `rkey`.
    pub const fn new(addr: u64, rkey: u32) -> Self {
        Self { addr, rkey }
    }

    /// The key, for the work request that carries it.
    pub const fn rkey(self) -> u32 {
        self.rkey
    }
}

impl fmt::Debug for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Knuth's multiplicative hash: enough to tell two keys apart in a log, useless to a reader who wants the key.
        let fingerprint = self.rkey.wrapping_mul(2_654_435_761) >> 16;
        write!(f, "remote:{:#x} rkey~{fingerprint:04x}", self.addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_past_the_space_are_none() {
        assert_eq!(HostVa::new(u64::MAX).checked_add(ByteLen(1)), None);
        assert_eq!(HostVa::new(16).checked_sub(HostVa::new(17)), None);
        assert_eq!(align_up(u64::MAX, 512), None);
    }

    #[test]
    fn rounding_keeps_multiples_and_moves_the_rest() {
        assert_eq!(align_up(4096, 512), Some(4096));
        assert_eq!(align_up(4097, 512), Some(4608));
        assert_eq!(align_down(4607, 512), 4096);
    }

    #[test]
    fn lengths_print_with_their_unit() {
        assert_eq!(ByteLen::mib(2).to_string(), "2 MiB");
        assert_eq!(ByteLen(1000).to_string(), "1000 B");
    }

    #[test]
    fn a_remote_key_is_not_printed() {
        let text = format!("{:?}", RemoteAddr::new(0x1000, 0xdead_beef));
        assert!(!text.contains("dead"), "{text}");
    }
}
