//! Whom to trust.

use std::{error::Error as StdError, path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use sw_engine::{Error, ErrorKind, Verb};

use crate::chain::chain;

/// This processor lacks what the code of TLS is made of.
#[derive(Debug)]
pub(crate) struct NoTls;

impl std::fmt::Display for NoTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this processor lacks instructions that TLS is made of here (x86-64: AES, PCLMULQDQ, ADX, BMI1, AVX2; aarch64: AES, PMULL, SHA2)")
    }
}

impl StdError for NoTls {}

/// Whether this processor has what the cryptography of [`config`] needs, which panics without: graviola 0.4, `src/low/*/cpu.rs`.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_possible() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("adx")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("avx2")
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
pub(crate) fn is_possible() -> bool {
    use std::arch::is_aarch64_feature_detected;
    is_aarch64_feature_detected!("neon")
        && is_aarch64_feature_detected!("aes")
        && is_aarch64_feature_detected!("pmull")
        && is_aarch64_feature_detected!("sha2")
}

/// TLS 1.2 and 1.3 by rustls and graviola, with the certificates of a file or of the system.
pub(super) fn config(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls_graviola::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder =
        builder.map_err(|error| Error::new(ErrorKind::Unsupported, Verb::Setup).at(crate::HTTP).caused_by(error))?;
    Ok(builder.with_root_certificates(roots(ca_file)?).with_no_client_auth())
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        // A system without certificates can still speak HTTP; TLS says then whom it does not trust.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let wrong = |text: String| {
        Error::new(ErrorKind::BadFormat, Verb::Setup)
            .at(path.display().to_string())
            .detail(text)
            .remedy("name a file with certificates in PEM")
    };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    for certificate in found {
        let certificate = certificate.map_err(|error| wrong(format!("is no PEM: {error}")))?;
        roots.add(certificate).map_err(|error| wrong(format!("has a certificate that is none: {error}")))?;
    }
    if roots.is_empty() { Err(wrong("has no certificate".to_owned())) } else { Ok(roots) }
}

/// Whether the other end was refused, or refused us, in the handshake: trying again will not help.
pub(super) fn is_refusal(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|error| error.is::<rustls::Error>())
}
