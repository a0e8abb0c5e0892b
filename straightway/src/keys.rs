//! What shows subsystems behind TCP who this host is, and shows this host who they are (DH-HMAC-CHAP); and the files of keys.

use std::{fs::File, io, io::Read as _, path::Path, sync::Arc};

use sw_engine::{Error, ErrorKind, Verb};
use sw_net::HostKeys;
use sw_nvme::auth::{Hash, Offer, RANDOM_BYTES, group::Group, secret::Secret};
pub use sw_nvme::keyring::{Keys, KeysError};
use zeroize::Zeroizing;

use crate::tls::NvmeTcpTls;

/// Bytes of a file of keys at most: hundreds of names with a key each.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// The keys of an engine, for all subsystems behind TCP that demand authentication, or shall show who they are.
///
/// Secrets are in no `Debug` text, no log and no error, and are wiped when they are dropped.
#[derive(Clone, Debug, Default)]
pub struct NvmeTcpKeys {
    /// The host's own key, one for each subsystem or one for all. Default: none, and subsystems that demand one are not opened.
    pub host: Option<Keys<Secret>>,
    /// The keys that subsystems must show that they know, likewise; one that does not is not opened. Not without [`NvmeTcpKeys::host`].
    /// Default: none, and subsystems are believed.
    pub controller: Option<Keys<Secret>>,
    /// Hashes and groups that may be used. Default: all, the NULL group included.
    pub offer: Offer,
    /// TLS, with a key of its own. Default: none.
    pub tls: NvmeTcpTls,
}

impl NvmeTcpKeys {
    /// Sets one by the name that the command line uses, behind `nvme_tcp_dhchap_`; `None` for an unknown name or a value that does
    /// not parse.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Option<Result<(), Error>> {
        match name {
            "key_file" | "ctrl_key_file" => {
                let into = if name == "key_file" { &mut self.host } else { &mut self.controller };
                return Some(read_secrets(value).map(|secrets| *into = Some(secrets)));
            }
            "hashes" => self.offer.hashes = parse_hashes(value)?,
            "groups" => self.offer.groups = parse_groups(value)?,
            _ => return None,
        }
        Some(Ok(()))
    }

    /// Checks that they can be used together.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.controller.is_some() && self.host.is_none() {
            return Err(
                "a key of the controller without one of the host: nvme_tcp_dhchap_ctrl_key_file goes with nvme_tcp_dhchap_key_file",
            );
        }
        self.tls.check()?;
        if self.offer.hashes.is_empty() || self.offer.groups.is_empty() {
            return Err("no hash or no group for authentication; leave at least one of each");
        }
        Ok(())
    }

    pub(crate) fn into_host_keys(self) -> Option<Arc<HostKeys>> {
        let Self { host, controller, offer, .. } = self;
        host.map(|host| Arc::new(HostKeys::new(host, controller, offer)))
    }
}

/// Reads keys from a file: one key `DHHC-1:…:` for all, as `nvme gen-dhchap-key` writes it, or lines `NQN DHHC-1:…:`, one for each other end
/// ([`Keys`]).
///
/// # Errors
/// What the system says of the file; `BadFormat` for another text.
pub fn read_secrets(path: impl AsRef<Path>) -> Result<Keys<Secret>, Error> {
    let path = path.as_ref();
    Keys::parse(&read_text(path, "DHHC-1:…:")?, Secret::parse).map_err(|cause| {
        Error::new(ErrorKind::BadFormat, Verb::Setup)
            .at(path.display().to_string())
            .detail(format!("the file has no key for dh-hmac-chap: {cause}"))
            .remedy("write one line DHHC-1:…: to it, as `straightway nvme gen-dhchap-key` prints it, or lines of an NQN and a key")
    })
}

/// Reads a file of keys, lines of this `form`.
///
/// # Errors
/// What the system says of the file; `BadFormat` where it is no text, or too long.
pub(crate) fn read_text(path: &Path, form: &str) -> Result<Zeroizing<String>, Error> {
    let made = |kind| Error::new(kind, Verb::Setup).at(path.display().to_string());
    // With room to spare: one that grew would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * sw_mem::index(FILE_BYTES_MAX)));
    let whole = |bytes| if bytes as u64 > FILE_BYTES_MAX { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) };
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    let read = read.and_then(whole);
    read.map_err(|cause| {
        let kind = match cause.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            io::ErrorKind::InvalidData => ErrorKind::BadFormat,
            _ => ErrorKind::Io,
        };
        made(kind)
            .detail(format!("the file of a key cannot be read: {cause}"))
            .with_code(cause.raw_os_error().unwrap_or(0))
            .remedy(format!("name a file with one line {form} that this user may read"))
    })?;
    Ok(text)
}

/// Makes a key of as many random bytes as `like` has, which is transformed by `transform` before it is used.
///
/// # Errors
/// `Io` if the system gives no random bytes.
pub fn make_secret(like: Hash, transform: Option<Hash>) -> Result<Secret, Error> {
    let random: Zeroizing<[u8; RANDOM_BYTES]> = sw_net::random_bytes().map_err(|cause| {
        Error::new(ErrorKind::Io, Verb::Setup).detail("the system gives no random bytes").caused_by(cause)
    })?;
    Ok(Secret::from_random(&random, like, transform))
}

/// Hashes by their names with a plus between, as `sha256+sha512`; `None` for one that there is not, or that comes twice.
pub fn parse_hashes(text: &str) -> Option<Vec<Hash>> {
    listed(text, &Hash::ALL, Hash::name)
}

/// Groups by their names with a plus between, as `ffdhe2048+null`; `None` for one that there is not, or that comes twice.
pub fn parse_groups(text: &str) -> Option<Vec<Group>> {
    listed(text, &Group::ALL, Group::name)
}

fn listed<T: Copy + PartialEq>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Option<Vec<T>> {
    let mut list = Vec::new();
    for word in text.split('+') {
        let one = all.iter().copied().find(|one| name(*one) == word).filter(|one| !list.contains(one))?;
        list.push(one);
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_of_names_that_there_are_each_once() {
        assert_eq!(parse_hashes("sha512+sha256"), Some(vec![Hash::Sha512, Hash::Sha256]));
        assert_eq!(parse_groups("null"), Some(vec![Group::Null]));
        for wrong in ["", "sha1", "sha256+", "sha256+sha256", "sha256,sha384"] {
            assert_eq!(parse_hashes(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_file_without_a_key_is_refused_with_a_remedy_and_without_its_text() {
        let path = std::env::temp_dir().join(format!("straightway-key-{}", std::process::id()));
        let told = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            read_secrets(&path).map(|secrets| format!("{secrets:?}")).map_err(|error| (error.kind(), error.to_string()))
        };
        let text = make_secret(Hash::Sha384, Some(Hash::Sha256)).unwrap().to_text();
        assert_eq!(
            told(format!("{}\n", *text).as_bytes()),
            Ok("Keys { all: Some(Secret(48 bytes, sha256)), named: [] }".into())
        );
        let endless = vec![b'A'; 1 << 20];
        for wrong in [&b"DHHC-1:00:U0VDUkVU:"[..], b"", b"\xFF\xFE", &endless] {
            let (kind, text) = told(wrong).unwrap_err();
            assert_eq!(kind, ErrorKind::BadFormat);
            assert!(text.contains(';') && !text.contains("U0VDUkVU") && text.len() < 400, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_secrets(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
