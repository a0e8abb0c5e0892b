//! DH-HMAC-CHAP: host and controller show each other that they know a secret, on the queue that they just made.
//!
//! ```text
//!   host (initiator)                                          controller (responder)
//!   AUTH_Negotiate            hashes, groups ───────────────► chooses one of each
//!                                       C1, S1, g^x  ◄─────── DH-HMAC-CHAP_Challenge
//!   DH-HMAC-CHAP_Reply        R1, (C2, S2,) g^y ────────────► compares R1
//!   compares R2                              (R2)  ◄───────── DH-HMAC-CHAP_Success1
//!   (DH-HMAC-CHAP_Success2) ────────────────────────────────► both are known
//!
//!   R1 = HMAC(host's key,       Ca1 ‖ S1 ‖ T_ID ‖ 0 ‖ "HostHost"   ‖ host NQN      ‖ 0 ‖ subsystem NQN)
//!   R2 = HMAC(controller's key, Ca2 ‖ S2 ‖ T_ID ‖ 0 ‖ "Controller" ‖ subsystem NQN ‖ 0 ‖ host NQN)
//!   Ca = C without Diffie-Hellman, else HMAC(H(g^xy mod p), C)
//! ```
//!
//! [`host`] and [`controller`] are the two ends, [`message`] is what goes over the queue (with Authentication Send and Authentication
//! Receive, in [`crate::fabrics`]), [`secret`] what both know. No I/O, no clock, no source of randomness: random bytes come in.
//!
//! Invariants: what a peer says is no length, hash or group before it was checked; secrets, exponents and what is made of them are
//! wiped when they are let go of, are compared in constant time, and are in no text that is made here; a [sequence
//! number](Sequence) is never 0 and comes again behind all others only.
//!
//! Source: NVM Express Base Specification 2.1, section 8.3.5.5 "DH-HMAC-CHAP Protocol", which all citations here are of; RFC 7919 for
//! the groups. Secure channel concatenation (TLS with a key of this exchange) is not there.

pub mod controller;
pub mod group;
pub mod host;
pub mod message;
pub(crate) mod response;
pub mod secret;

use core::num::NonZeroU32;

use group::Group;

/// Bytes of random numbers that one end of an exchange takes, for each of challenge and exponent.
pub const RANDOM_BYTES: usize = 64;
/// Bytes of the longest hash.
pub const HASH_BYTES_MAX: usize = 64;

/// A hash function, of responses or of the transformation of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// All, in the order in which they are offered.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// HashID.
    pub const fn id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha384 => 2,
            Self::Sha512 => 3,
        }
    }

    /// Of a HashID; `None` for one that is not known.
    pub fn of(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.id() == id)
    }

    /// Bytes of its result.
    pub const fn len_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Its name, as settings have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

/// What one end is content with, in the order in which it likes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Hashes.
    pub hashes: Vec<Hash>,
    /// Groups.
    pub groups: Vec<Group>,
}

impl Default for Offer {
    /// All hashes and groups.
    fn default() -> Self {
        Self { hashes: Hash::ALL.to_vec(), groups: Group::ALL.to_vec() }
    }
}

/// What both ends use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The hash of responses.
    pub hash: Hash,
    /// The group.
    pub group: Group,
}

/// Numbers of challenges that one end gives: never 0, which says that there is no challenge (SEQNUM), and none again before all others
/// were given. They go on then: an end that had no number left would be one that whoever asks often enough switches off.
#[derive(Debug)]
pub struct Sequence(NonZeroU32);

impl Sequence {
    /// Begins anywhere.
    pub fn from_random(random: u32) -> Self {
        Self(NonZeroU32::new(random).unwrap_or(NonZeroU32::MIN))
    }

    /// The next number.
    pub fn take(&mut self) -> NonZeroU32 {
        let next = self.0.checked_add(1).unwrap_or(NonZeroU32::MIN);
        core::mem::replace(&mut self.0, next)
    }
}

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod hostile_tests;
