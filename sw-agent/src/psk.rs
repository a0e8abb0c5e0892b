//! AUTH of kind 1: both ends prove that they know a key, and say it to nobody.
//!
//! ```text
//!   host                                        agent
//!     step 0  tenant, nonce of the host  ──────►
//!             ◄────── nonce of the agent, HMAC(key, "agent" ‖ tenant ‖ both nonces)
//!     step 1  HMAC(key, "host" ‖ tenant ‖ both nonces) ──────►  ADMITTED
//! ```
//!
//! HMAC is of SHA-256 (RFC 2104). It proves who is there when a connection begins; it neither hides nor guards what follows.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Its number in AUTH.
pub const KIND: u16 = 1;
/// Bytes of a nonce, and of a proof.
pub const BYTES: usize = 32;
/// Bytes of a key, least and most.
pub const KEY_BYTES: core::ops::RangeInclusive<usize> = 16..=1024;

/// Who proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prover {
    /// The host.
    Host,
    /// The agent.
    Agent,
}

/// What a host says first.
pub fn first(tenant: &str, nonce: &[u8; BYTES]) -> Vec<u8> {
    [nonce.as_slice(), tenant.as_bytes()].concat()
}

/// The tenant and the nonce of what a host said first.
pub fn parse_first(evidence: &[u8]) -> Option<(&str, [u8; BYTES])> {
    let (nonce, tenant) = evidence.split_first_chunk()?;
    let tenant = core::str::from_utf8(tenant).ok()?;
    (!tenant.is_empty() && tenant.len() <= crate::limits::TENANT_BYTES_MAX).then_some((tenant, *nonce))
}

/// The nonce and the proof of an agent's challenge.
pub fn parse_challenge(evidence: &[u8]) -> Option<([u8; BYTES], [u8; BYTES])> {
    let (nonce, proof) = evidence.split_first_chunk()?;
    Some((*nonce, proof.try_into().ok()?))
}

fn mac(key: &[u8], who: Prover, tenant: &str, nonces: (&[u8; BYTES], &[u8; BYTES])) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).ok()?;
    mac.update(match who {
        Prover::Host => b"AGP/1 host\0",
        Prover::Agent => b"AGP/1 agent\0",
    });
    mac.update(nonces.0);
    mac.update(nonces.1);
    mac.update(tenant.as_bytes());
    Some(mac)
}

/// A proof; `nonces`: the host's and the agent's.
pub fn proof(key: &[u8], who: Prover, tenant: &str, nonces: (&[u8; BYTES], &[u8; BYTES])) -> [u8; BYTES] {
    // An HMAC takes keys of any length.
    mac(key, who, tenant, nonces).map_or([0; BYTES], |mac| mac.finalize().into_bytes().into())
}

/// Whether a proof is one, in a time that does not tell where it differs.
pub fn is_proof(proof: &[u8], key: &[u8], who: Prover, tenant: &str, nonces: (&[u8; BYTES], &[u8; BYTES])) -> bool {
    mac(key, who, tenant, nonces).is_some_and(|mac| mac.verify_slice(proof).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_its_key_its_prover_its_tenant_and_its_nonces() {
        let (host, agent) = ([1; BYTES], [2; BYTES]);
        let nonces = (&host, &agent);
        let good = proof(b"0123456789abcdef", Prover::Host, "a", nonces);
        let is = |key: &[u8], who, tenant, nonces| is_proof(&good, key, who, tenant, nonces);
        assert!(is(b"0123456789abcdef", Prover::Host, "a", nonces));
        assert!(!is(b"0123456789abcdeF", Prover::Host, "a", nonces));
        assert!(!is(b"0123456789abcdef", Prover::Agent, "a", nonces));
        assert!(!is(b"0123456789abcdef", Prover::Host, "b", nonces));
        assert!(!is(b"0123456789abcdef", Prover::Host, "a", (&agent, &host)));
        assert!(!is_proof(&[], b"0123456789abcdef", Prover::Host, "a", nonces));
    }

    #[test]
    fn evidence_is_taken_apart_as_it_was_put_together() {
        assert_eq!(parse_first(&first("t", &[7; BYTES])), Some(("t", [7; BYTES])));
        for wrong in [&[0; BYTES][..], &[0; 5], &[255; BYTES + 3], &[b'a'; BYTES + 65]] {
            assert_eq!(parse_first(wrong), None);
        }
        assert_eq!(parse_challenge(&[3; 2 * BYTES]), Some(([3; BYTES], [3; BYTES])));
        assert_eq!(parse_challenge(&[3; 2 * BYTES + 1]), None);
    }
}
