//! Digests and signatures of requests, for `object_store`, without code in C: SHA-256 and HMAC by RustCrypto, RSA by graviola.

use hmac::{Hmac, KeyInit, Mac};
use object_store::{
    Error, Result,
    client::{CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::http::{NoTls, is_tls_possible};

/// It has no state.
#[derive(Debug)]
pub(crate) struct Sign;

/// Why nothing is signed.
#[derive(Debug)]
struct Refused(&'static str);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "signature", source: Box::new(source) }
}

impl CryptoProvider for Sign {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Sum { state: Sha256::new(), out: [0; 32] })),
            _ => Err(refused(Refused("a digest that is not SHA-256"))),
        }
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        let state = <Hmac<Sha256> as KeyInit>::new_from_slice(secret).map_err(refused)?;
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Keyed { state, out: [0; 32] })),
            _ => Err(refused(Refused("an HMAC that is not of SHA-256"))),
        }
    }

    fn sign(&self, algorithm: SigningAlgorithm, pem: &[u8]) -> Result<Box<dyn Signer>> {
        if !matches!(algorithm, SigningAlgorithm::RS256) {
            return Err(refused(Refused("a signature that is not RS256")));
        }
        if !is_tls_possible() {
            return Err(refused(NoTls));
        }
        let unusable = |_| refused(Refused("the key of the service account is no RSA key in PEM"));
        let key = match PrivateKeyDer::from_pem_slice(pem).map_err(refused)? {
            PrivateKeyDer::Pkcs8(key) => graviola::signing::rsa::SigningKey::from_pkcs8_der(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => graviola::signing::rsa::SigningKey::from_pkcs1_der(key.secret_pkcs1_der()),
            _ => return Err(refused(Refused("the key of the service account is not of RSA"))),
        };
        Ok(Box::new(Rsa(key.map_err(unusable)?)))
    }
}

struct Sum {
    state: Sha256,
    out: [u8; 32],
}

impl DigestContext for Sum {
    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.state, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.out = self.state.finalize_reset().into();
        Ok(&self.out)
    }
}

struct Keyed {
    state: Hmac<Sha256>,
    out: [u8; 32],
}

impl HmacContext for Keyed {
    fn update(&mut self, data: &[u8]) {
        Mac::update(&mut self.state, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.out = self.state.clone().finalize().into_bytes().into();
        Ok(&self.out)
    }
}

struct Rsa(graviola::signing::rsa::SigningKey);

impl Signer for Rsa {
    fn sign(&self, string_to_sign: &[u8]) -> Result<Vec<u8>> {
        let mut signature = vec![0; self.0.modulus_len_bytes()];
        let signed = self.0.sign_pkcs1_sha256(&mut signature, string_to_sign);
        signed.map_err(|_| refused(Refused("the key of the service account signs nothing")))?;
        Ok(signature)
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use graviola::signing::rsa::{KeySize, SigningKey};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_are_those_of_their_standards() {
        let mut sum = Sign.digest(DigestAlgorithm::Sha256).unwrap();
        sum.update(b"a");
        sum.update(b"bc");
        // FIPS 180-4's example, "abc".
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(sum.finish().unwrap()), want);
        // RFC 4231 §4.3 "Test Case 2".
        let mut keyed = Sign.hmac(DigestAlgorithm::Sha256, b"Jefe").unwrap();
        keyed.update(b"what do ya want ");
        keyed.update(b"for nothing?");
        let want = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(keyed.finish().unwrap()), want);
    }

    #[test]
    fn a_service_account_signs_what_its_public_key_verifies() {
        let key = SigningKey::generate(KeySize::Rsa2048).unwrap();
        let mut der = [0; 4096];
        let der = BASE64_STANDARD.encode(key.to_pkcs8_der(&mut der).unwrap());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n");
        let signature = Sign.sign(SigningAlgorithm::RS256, pem.as_bytes()).unwrap().sign(b"claims").unwrap();
        key.public_key().verify_pkcs1_sha256(&signature, b"claims").unwrap();
        assert!(key.public_key().verify_pkcs1_sha256(&signature, b"others").is_err());
        assert!(Sign.sign(SigningAlgorithm::RS256, b"no key").is_err());
    }
}
