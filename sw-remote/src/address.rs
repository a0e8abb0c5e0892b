//! Addresses of remote objects.

use std::{fmt, str::FromStr};

use sw_engine::{Error, ErrorKind, Verb};

/// What stands between the name of an archive and that of a member, in AIStore.
pub(crate) const ARCHPATH: &str = "?archpath=";

/// How a system is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// `s3://BUCKET/KEY`.
    S3,
    /// `gs://BUCKET/KEY`.
    Gcs,
    /// `az://CONTAINER/KEY`.
    Azure,
    /// `http://HOST/PATH`.
    Http,
    /// `https://HOST/PATH`.
    Https,
    /// `hdfs://NAMENODE:PORT/PATH`, `hdfs://SERVICE/PATH`.
    Hdfs,
    /// `webhdfs://NAMENODE:PORT/PATH`.
    WebHdfs,
    /// `nfs://HOST:PORT/EXPORT/PATH`.
    Nfs,
    /// `rados://POOL/OBJECT`.
    Rados,
    /// `rbd://POOL/IMAGE@SNAPSHOT`.
    Rbd,
    /// `cephfs://FILESYSTEM/PATH`.
    CephFs,
    /// `ais://BUCKET/KEY`, `ais://BUCKET/KEY?archpath=MEMBER`.
    Ais,
}

impl Scheme {
    /// All of them, with what stands before `://`.
    pub const ALL: [(&'static str, Scheme); 12] = [
        ("s3", Self::S3),
        ("gs", Self::Gcs),
        ("az", Self::Azure),
        ("http", Self::Http),
        ("https", Self::Https),
        ("hdfs", Self::Hdfs),
        ("webhdfs", Self::WebHdfs),
        ("nfs", Self::Nfs),
        ("rados", Self::Rados),
        ("rbd", Self::Rbd),
        ("cephfs", Self::CephFs),
        ("ais", Self::Ais),
    ];

    /// What stands before `://`.
    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
            Self::Http => "http",
            Self::Https => "https",
            Self::Hdfs => "hdfs",
            Self::WebHdfs => "webhdfs",
            Self::Nfs => "nfs",
            Self::Rados => "rados",
            Self::Rbd => "rbd",
            Self::CephFs => "cephfs",
            Self::Ais => "ais",
        }
    }

    /// Whether each answer with bytes of an object says which version they are of: what is known by a listing is not asked for before.
    pub fn tells_versions(self) -> bool {
        matches!(self, Self::S3 | Self::Gcs | Self::Azure)
    }

    /// Whether its names can be listed.
    pub(crate) fn lists(self) -> bool {
        !matches!(self, Self::Http | Self::Https)
    }

    /// Whether what stands behind `://` is a host.
    fn has_host(self) -> bool {
        matches!(self, Self::Http | Self::Https | Self::Nfs)
    }
}

/// An object, or a prefix of names, in a remote system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// The bucket or container; the host and port of plain HTTP, of NFS, of a namenode, or the name of a service; of Ceph the pool, with a namespace
    /// behind a colon, or the file system.
    pub bucket: String,
    /// The name in it, as it is, without a first slash; empty for the bucket as a whole.
    pub key: String,
}

impl Address {
    /// It, if it names an object.
    pub(crate) fn of_object(self, verb: Verb) -> Result<Self, Error> {
        if self.key.is_empty() || self.key.ends_with('/') {
            return Err(Error::new(ErrorKind::BadUri, verb)
                .at(self.to_string())
                .detail("names no object but a bucket or a prefix")
                .remedy("write the object's whole name"));
        }
        Ok(self)
    }

    /// The archive that it is in, if it is a member of one.
    pub(crate) fn archive(&self) -> Option<Self> {
        let (archive, _) = self.key.split_once(ARCHPATH).filter(|_| self.scheme == Scheme::Ais)?;
        Some(self.sibling(archive))
    }

    /// Another name in the same bucket.
    pub(crate) fn sibling(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme.name(), self.bucket, self.key)
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or("an address has a scheme")?;
        let known = Scheme::ALL.iter().find(|(name, _)| *name == scheme);
        let scheme = known.ok_or("not a scheme of a remote system")?.1;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        // Those that stand in a URL as they are: `:` for tenants and ports, `$` for containers of Azure's, brackets for addresses of IPv6.
        let more: &[u8] = if scheme.has_host() { b"-_.:[]" } else { b"-_.:$" };
        if bucket.is_empty() || !bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte)) {
            return Err("there is no bucket or host, or its name has characters that none has");
        }
        Ok(Self { scheme, bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_was_read() {
        for text in [
            "rados://p:n/k",
            "s3://b/k",
            "gs://bucket/a b/c?d=1#e",
            "az://c/x",
            "http://127.0.0.1:80/a",
            "https://h/",
            "s3://b/",
            "nfs://[::1]:2049/a/b",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let whole: Address = "s3://bucket".parse().unwrap();
        assert_eq!((whole.bucket.as_str(), whole.key.as_str()), ("bucket", ""));
    }

    #[test]
    fn what_names_no_bucket_is_none() {
        for text in [
            "s3://",
            "s3:///k",
            "s3:/b/k",
            "ftp://b/k",
            "s3://user@b/k",
            "s3://a b/k",
            "k",
            "http://h?x/y",
            "s3://a<b/k",
            "s3://ü/k",
            "http://u@h/k",
            "s3://a%20b/k",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
