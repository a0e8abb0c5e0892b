//! Names of things on the wire: a slot in the low half, its generation above. Zero names nothing.

use core::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $word:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// Names nothing.
            pub const NONE: Self = Self(0);

            /// The slot with a generation, which is never 0: zero is taken for one.
            pub const fn new(slot: u16, generation: u16) -> Self {
                Self(slot as u32 | (if generation == 0 { 1 } else { generation } as u32) << 16)
            }

            /// The slot.
            pub const fn slot(self) -> u16 {
                (self.0 & 0xFFFF) as u16
            }

            /// The generation; 0 in names that name nothing.
            pub const fn generation(self) -> u16 {
                (self.0 >> 16) as u16
            }

            /// The same slot's next name: 65,535 names of a slot differ.
            #[must_use]
            pub const fn next(self) -> Self {
                Self::new(self.slot(), self.generation().wrapping_add(1))
            }

            /// Whether it names something.
            pub const fn is_some(self) -> bool {
                self.generation() != 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}.{}"), self.slot(), self.generation())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )*};
}

ids! {
    /// A lease: the agent's right to touch a window of the host's memory. Named by the host.
    LeaseId, "lease";
    /// An open object. Named by the agent.
    ObjectId, "object";
    /// An operation. Named by the host.
    OperationId, "operation";
}

/// Which of a host's attachments to a session it is: each is above all before it, whichever session and agent they were of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Epoch(pub u32);

/// A session. Named by the agent; zero names none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct SessionId(pub u32);

/// How many descriptors were sent on a connection, modulo 2^32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position(pub u32);

impl Position {
    /// One descriptor later.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// How far this is ahead of `other`; a distance of half the range and more is behind it, which is `None`.
    pub const fn ahead_of(self, other: Self) -> Option<u32> {
        let distance = self.0.wrapping_sub(other.0);
        if distance < 1 << 31 { Some(distance) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_never_are_zero_and_positions_wrap() {
        let last = LeaseId::new(7, u16::MAX);
        assert_eq!(last.next(), LeaseId::new(7, 1));
        assert!(!LeaseId::NONE.is_some() && LeaseId::new(0, 0).is_some());
        assert_eq!(Position(1).ahead_of(Position(u32::MAX)), Some(2));
        assert_eq!(Position(u32::MAX).ahead_of(Position(1)), None);
        assert_eq!(Position(5).ahead_of(Position(5)), Some(0));
    }
}
