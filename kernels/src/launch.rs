//! What there is to launch, and one launch as a value.

use std::fmt;

/// Arguments of a kernel at most. Each is a 64-bit number: an address, a length, a count.
pub const ARGUMENTS_MAX: usize = 4;
/// Lanes of a warp.
pub(crate) const LANES: u64 = 32;

/// The PTX of one source.
///
/// PTX ISA 8.0 for `compute_70`: drivers of CUDA 12.0 (R525) and later load it for devices of compute capability 7.0 (Volta) and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Checksums.
    Crc,
    /// Gather, scatter, byte order.
    Move,
    /// Poison.
    Poison,
    /// Widening.
    Widen,
}

impl Module {
    /// Every one.
    pub const ALL: &[Self] = &[Self::Crc, Self::Move, Self::Poison, Self::Widen];

    /// Its text.
    pub const fn ptx(self) -> &'static str {
        match self {
            Self::Crc => include_str!("../ptx/crc.ptx"),
            Self::Move => include_str!("../ptx/move.ptx"),
            Self::Poison => include_str!("../ptx/poison.ptx"),
            Self::Widen => include_str!("../ptx/widen.ptx"),
        }
    }
}

macro_rules! entries {
    ($($(#[$doc:meta])* $entry:ident = $name:literal in $module:ident, $threads:literal, $arguments:literal;)*) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Entry {
            $($(#[$doc])* $entry,)*
        }

        impl Entry {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$entry),*];

            /// Its name in the PTX.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$entry => $name,)* }
            }

            /// Where it is.
            pub const fn module(self) -> Module {
                match self { $(Self::$entry => Module::$module,)* }
            }

            /// Threads of a block: what its launch bounds are.
            pub const fn threads(self) -> u32 {
                match self { $(Self::$entry => $threads,)* }
            }

            /// How many arguments it takes.
            pub const fn arguments(self) -> usize {
                match self { $(Self::$entry => $arguments,)* }
            }
        }
    };
}

entries! {
    /// CRC-32C of segments.
    Crc32cSum = "sw_crc32c_sum" in Crc, 128, 4;
    /// CRC-64/NVME of segments.
    Crc64Sum = "sw_crc64_sum" in Crc, 128, 4;
    /// What a CRC-32C starts and ends with.
    Crc32cFinish = "sw_crc32c_finish" in Crc, 128, 2;
    /// What a CRC-64/NVME starts and ends with.
    Crc64Finish = "sw_crc64_finish" in Crc, 128, 2;
    /// Gather and scatter.
    Move = "sw_move" in Move, 256, 3;
    /// The bytes of 2-byte elements turned.
    Swap2 = "sw_swap2" in Move, 256, 3;
    /// The bytes of 4-byte elements turned.
    Swap4 = "sw_swap4" in Move, 256, 3;
    /// The bytes of 8-byte elements turned.
    Swap8 = "sw_swap8" in Move, 256, 3;
    /// bf16 to f32.
    WidenBf16 = "sw_widen_bf16" in Widen, 256, 3;
    /// f16 to f32.
    WidenF16 = "sw_widen_f16" in Widen, 256, 3;
    /// f8 e4m3fn to f32.
    WidenE4m3 = "sw_widen_e4m3" in Widen, 256, 3;
    /// f8 e5m2 to f32.
    WidenE5m2 = "sw_widen_e5m2" in Widen, 256, 3;
    /// Writes poison.
    PoisonFill = "sw_poison_fill" in Poison, 256, 3;
    /// Looks for poison.
    PoisonFind = "sw_poison_find" in Poison, 256, 4;
}

/// One launch: a kernel, how many blocks of how many threads, and its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    entry: Entry,
    blocks: u32,
    arguments: [u64; ARGUMENTS_MAX],
}

impl Launch {
    /// `warps` warps at least, above zero.
    pub(crate) fn of_warps(entry: Entry, warps: u64, arguments: &[u64]) -> Result<Self, PlanError> {
        debug_assert_eq!(arguments.len(), entry.arguments(), "{}", entry.name());
        let blocks = warps.div_ceil(u64::from(entry.threads()) / LANES).max(1);
        // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": blocks in x up to 2^31 - 1.
        let blocks = i32::try_from(blocks).map_err(|_| PlanError::TooMuch)?.unsigned_abs();
        let mut all = [0; ARGUMENTS_MAX];
        all.iter_mut().zip(arguments).for_each(|(to, from)| *to = *from);
        Ok(Self { entry, blocks, arguments: all })
    }

    /// The kernel.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// Blocks, in one dimension; above zero.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Threads of a block, in one dimension.
    pub fn threads(&self) -> u32 {
        self.entry.threads()
    }

    /// As many as the kernel takes.
    pub fn arguments(&self) -> &[u64] {
        &self.arguments[..self.entry.arguments()]
    }
}

/// Why there is no plan. Nothing was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// More bytes than the kernel counts, or a range that leaves the address space.
    TooMuch,
    /// An address or a length that is no multiple of what the kernel needs.
    Misaligned,
    /// No ranges.
    Nothing,
    /// A buffer of another length than was asked for.
    Length,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMuch => "a range is longer than a kernel counts, or leaves the address space",
            Self::Misaligned => "an address or a length is no multiple of the element",
            Self::Nothing => "there are no ranges",
            Self::Length => "a buffer has another length than its content",
        })
    }
}

impl std::error::Error for PlanError {}

/// Numbers as the device has them.
pub(crate) fn put(into: &mut Vec<u8>, words: &[u64]) {
    words.iter().for_each(|word| into.extend_from_slice(&word.to_le_bytes()));
}

/// The number at word `at`, if it is there.
pub(crate) fn get(from: &[u8], at: usize) -> Option<u64> {
    let bytes = from.get(at * 8..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_in_the_ptx_of_its_module_with_its_arguments() {
        for entry in Entry::ALL {
            let text = entry.module().ptx();
            let head = text.split_once(&format!(".visible .entry {}(", entry.name())).unwrap().1;
            let parameters = head.split_once(')').expect("an end of the parameters").0;
            assert_eq!(parameters.matches(".param .u64").count(), entry.arguments(), "{}", entry.name());
            let bound = format!(".maxntid {}", entry.threads());
            assert!(head.split_once('{').expect("a body").0.contains(&bound), "{} {bound}", entry.name());
        }
        let all: usize = Module::ALL.iter().map(|module| module.ptx().matches(".visible .entry").count()).sum();
        assert_eq!(all, Entry::ALL.len());
    }

    #[test]
    fn the_ptx_asks_for_no_more_than_is_said() {
        for module in Module::ALL {
            assert!(module.ptx().contains(".version 8.0\n.target sm_70\n"), "{module:?}");
        }
    }
}
