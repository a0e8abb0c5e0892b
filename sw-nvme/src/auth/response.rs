//! Hashes and what is made of them: keys, augmented challenges, responses.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::Hash;
use crate::fabrics::Nqn;

/// HMAC over the parts, one behind the other.
pub(crate) fn mac(hash: Hash, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    match hash {
        Hash::Sha256 => mac_with::<Hmac<Sha256>>(key, parts),
        Hash::Sha384 => mac_with::<Hmac<Sha384>>(key, parts),
        Hash::Sha512 => mac_with::<Hmac<Sha512>>(key, parts),
    }
}

fn mac_with<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    // RFC 2104 §2: a key has any length.
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

/// The hash of `bytes`.
pub(super) fn digest(hash: Hash, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(match hash {
        Hash::Sha256 => Sha256::digest(bytes).to_vec(),
        Hash::Sha384 => Sha384::digest(bytes).to_vec(),
        Hash::Sha512 => Sha512::digest(bytes).to_vec(),
    })
}

/// Whether they are the same, in a time that does not tell where they differ. One of another length is another one.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// Who takes part.
#[derive(Clone, Debug)]
pub(super) struct Parties {
    pub(super) host: Nqn,
    pub(super) subsystem: Nqn,
}

/// What a response is an answer to.
pub(super) struct Question<'a> {
    pub(super) hash: Hash,
    /// The session key: [`digest`] of the shared secret; nothing without Diffie-Hellman.
    pub(super) session: Option<&'a [u8]>,
    /// C1 or C2, as it was sent.
    pub(super) challenge: &'a [u8],
    /// S1 or S2.
    pub(super) sequence: u32,
    /// T_ID.
    pub(super) transaction: u16,
}

impl Question<'_> {
    /// R1 (section 8.3.5.5.4 "DH-HMAC-CHAP_Reply Message").
    pub(super) fn of_host(&self, key: &[u8], of: &Parties) -> Zeroizing<Vec<u8>> {
        self.response(key, b"HostHost", &of.host, &of.subsystem)
    }

    /// R2 (section 8.3.5.5.5 "DH-HMAC-CHAP_Success1 Message").
    pub(super) fn of_controller(&self, key: &[u8], of: &Parties) -> Zeroizing<Vec<u8>> {
        self.response(key, b"Controller", &of.subsystem, &of.host)
    }

    fn response(&self, key: &[u8], role: &[u8], own: &Nqn, other: &Nqn) -> Zeroizing<Vec<u8>> {
        let augmented = self.session.map(|session| mac(self.hash, session, &[self.challenge]));
        let challenge = augmented.as_ref().map_or(self.challenge, |augmented| augmented);
        // The byte behind T_ID is SC_C: no secure channel is concatenated.
        let (sequence, transaction) = (self.sequence.to_le_bytes(), self.transaction.to_le_bytes());
        let names = [own.as_str().as_bytes(), &[0], other.as_str().as_bytes()];
        mac(self.hash, key, &[challenge, &sequence, &transaction, &[0], role, names[0], names[1], names[2]])
    }
}
