//! TLS with subsystems behind TCP: the key, and how it is used.

use std::{path::Path, sync::Arc};

use sw_engine::{Error, ErrorKind, Verb};
use sw_net::HostTls;
use sw_nvme::{auth::RANDOM_BYTES, psk::Transform};
use zeroize::Zeroizing;

pub use sw_net::KernelTls;
pub use sw_nvme::psk::{ConfiguredPsk, Derivation, Form, PskError, Suite, Version};

use crate::keys::{Keys, read_text};

/// Whether connections have TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NvmeTcpTlsUse {
    /// They have it if there is a key.
    #[default]
    WithKey,
    /// They go in the clear.
    Off,
    /// They have it; a connection in the clear is never made.
    Required,
}

/// TLS 1.3 of an engine, with all subsystems behind TCP. OpenSSL 3 is loaded with the first of them.
///
/// The key is in no `Debug` text, no log and no error, and is wiped when it is dropped.
#[derive(Clone, Debug)]
pub struct NvmeTcpTls {
    /// Whether connections have it.
    pub wanted: NvmeTcpTlsUse,
    /// The keys, which the subsystems have too, one for each or one for all. Default: none.
    pub key: Option<Keys<ConfiguredPsk>>,
    /// How keys are named and made of it. Default: version 1, as the specification says.
    pub form: Form,
    /// Whether the kernel does it behind the handshake. Default: where it can.
    pub kernel: KernelTls,
}

impl Default for NvmeTcpTls {
    fn default() -> Self {
        let (wanted, form, kernel) = (NvmeTcpTlsUse::default(), Form::default(), KernelTls::IfThere);
        Self { wanted, key: None, form, kernel }
    }
}

impl NvmeTcpTls {
    /// Sets one by the name that the command line uses, behind `nvme_tcp_tls`; `None` for an unknown name or a value that does not
    /// parse.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Option<Result<(), Error>> {
        match (name, value) {
            ("", "off") => self.wanted = NvmeTcpTlsUse::Off,
            ("", "required") => self.wanted = NvmeTcpTlsUse::Required,
            ("_key_file", file) => return Some(read_psks(file).map(|keys| self.key = Some(keys))),
            ("_identity", name) => self.form = Form::of_name(name)?,
            ("_kernel", "auto") => self.kernel = KernelTls::IfThere,
            ("_kernel", "off") => self.kernel = KernelTls::Never,
            ("_kernel", "required") => self.kernel = KernelTls::Demanded,
            _ => return None,
        }
        Some(Ok(()))
    }

    /// Checks that it can be used.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.wanted == NvmeTcpTlsUse::Required && self.key.is_none() {
            return Err("nvme_tcp_tls=required without a key: set nvme_tcp_tls_key_file");
        }
        Ok(())
    }

    /// What connections are made with; `None`: they go in the clear.
    pub(crate) fn host_tls(&self) -> Result<Option<Arc<HostTls>>, Error> {
        match (&self.key, self.wanted) {
            (Some(key), NvmeTcpTlsUse::WithKey | NvmeTcpTlsUse::Required) => {
                HostTls::new(key.clone(), self.form, self.kernel).map(|tls| Some(Arc::new(tls)))
            }
            (None, _) | (_, NvmeTcpTlsUse::Off) => Ok(None),
        }
    }
}

/// Reads keys from a file: one key `NVMeTLSkey-1:…:` for all, as `nvme gen-tls-key` writes it, or lines `NQN NVMeTLSkey-1:…:`, one for each other
/// end ([`Keys`]).
///
/// # Errors
/// What the system says of the file; `BadFormat` for another text.
pub fn read_psks(path: impl AsRef<Path>) -> Result<Keys<ConfiguredPsk>, Error> {
    let path = path.as_ref();
    Keys::parse(&read_text(path, "NVMeTLSkey-1:…:")?, ConfiguredPsk::parse).map_err(|cause| {
        Error::new(ErrorKind::BadFormat, Verb::Setup)
            .at(path.display().to_string())
            .detail(format!("the file has no key for tls: {cause}"))
            .remedy("write one line NVMeTLSkey-1:…: to it, as `straightway nvme gen-tls-key` prints it, or lines of an NQN and a key")
    })
}

/// Makes a key of random bytes for connections of `suite`.
///
/// # Errors
/// `Io` if the system gives no random bytes.
pub fn make_psk(suite: Suite) -> Result<ConfiguredPsk, Error> {
    let random: Zeroizing<[u8; RANDOM_BYTES]> = sw_net::random_bytes().map_err(|cause| {
        Error::new(ErrorKind::Io, Verb::Setup).detail("the system gives no random bytes").caused_by(cause)
    })?;
    Ok(ConfiguredPsk::from_random(&random, suite, Transform::ByHash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_go_together() {
        let mut tls = NvmeTcpTls::default();
        for (name, value) in [("_identity", "v0-compat"), ("_kernel", "off"), ("", "required")] {
            tls.set(name, value).unwrap().unwrap();
        }
        assert_eq!((tls.form.name(), tls.kernel), ("v0-compat", KernelTls::Never));
        assert!(tls.check().unwrap_err().contains("nvme_tcp_tls_key_file"));
        for (name, value) in [("", "on"), ("_identity", "v2"), ("_kernel", ""), ("_key", "NVMeTLSkey-1:")] {
            assert!(tls.set(name, value).is_none(), "{name}={value}");
        }
        tls.key = Some(make_psk(Suite::Aes256GcmSha384).unwrap().into());
        tls.check().unwrap();
        tls.wanted = NvmeTcpTlsUse::Off;
        assert!(tls.host_tls().unwrap().is_none());
    }

    #[test]
    fn a_file_without_a_key_is_refused_with_a_remedy_and_without_its_text() {
        let path = std::env::temp_dir().join(format!("straightway-psk-{}", std::process::id()));
        let told = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            read_psks(&path).map(|keys| format!("{keys:?}")).map_err(|error| (error.kind(), error.to_string()))
        };
        let text = make_psk(Suite::Aes256GcmSha384).unwrap().to_text();
        assert_eq!(
            told(format!("{}\n", *text).as_bytes()),
            Ok("Keys { all: Some(ConfiguredPsk(48 bytes, ByHash)), named: [] }".into())
        );
        for wrong in [&b"NVMeTLSkey-1:00:U0VDUkVU:"[..], b"", b"\xFF\xFE", &vec![b'A'; 1 << 20]] {
            let (kind, text) = told(wrong).unwrap_err();
            assert_eq!(kind, ErrorKind::BadFormat);
            assert!(text.contains(';') && !text.contains("U0VDUkVU") && text.len() < 400, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_psks(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
