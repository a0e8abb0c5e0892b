//! AGP/1 as bytes: frames, control messages, descriptors, completions. Layouts: `docs/agp.md`.
//!
//! Everything is little endian and read by named offsets; no structure is laid over memory. A decoder takes bytes of the other end, checks
//! every field that has a range, every byte that must be zero and every length, and gives a [`Breach`] for what cannot be. It never panics
//! and never allocates more than the bytes that it was given.

pub mod completion;
mod cursor;
pub mod descriptor;
pub mod frame;
pub mod message;

use core::fmt;

pub use completion::{Completion, Path, Status};
pub use descriptor::{ChecksumKind, Descriptor, Opcode};
pub use frame::{Frame, Header, Kind};
pub use message::Message;

/// The newest version of this software.
pub const VERSION: u16 = 1;
/// The oldest version that this software speaks.
pub const VERSION_MIN: u16 = 1;

/// The other end broke a rule: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub struct Breach {
    /// Where in the structure, in bytes from its start; 0 if it is not about one field.
    pub at: u32,
    /// The rule.
    pub rule: &'static str,
}

impl Breach {
    /// A field at its offset.
    pub(crate) fn field(at: usize, rule: &'static str) -> Self {
        Self { at: u32::try_from(at).unwrap_or(u32::MAX), rule }
    }

    /// What may not come now.
    pub(crate) const fn of(rule: &'static str) -> Self {
        Self { at: 0, rule }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            0 => f.write_str(self.rule),
            at => write!(f, "{} (byte {at})", self.rule),
        }
    }
}
