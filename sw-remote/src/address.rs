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
    /// `daos://POOL/CONTAINER/PATH`.
    Daos,
    /// `ais://BUCKET/KEY`, `ais://BUCKET/KEY?archpath=MEMBER`.
    Ais,
    /// `alluxio://PROXY:PORT/DIRECTORY/PATH`.
    Alluxio,
    /// `juicefs://REDIS:PORT/DATABASE/PATH`.
    JuiceFs,
    /// `milvus://HOST:PORT/COLLECTION`.
    Milvus,
    /// `agp://HOST:PORT/URI`, `agp://unix:/SOCKET/URI`.
    Agent,
}

impl Scheme {
    /// All of them, with what stands before `://`.
    pub const ALL: [(&'static str, Scheme); 17] = [
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
        ("daos", Self::Daos),
        ("ais", Self::Ais),
        ("alluxio", Self::Alluxio),
        ("juicefs", Self::JuiceFs),
        ("milvus", Self::Milvus),
        ("agp", Self::Agent),
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
            Self::Daos => "daos",
            Self::Ais => "ais",
            Self::Alluxio => "alluxio",
            Self::JuiceFs => "juicefs",
            Self::Milvus => "milvus",
            Self::Agent => "agp",
        }
    }

    /// Whether each answer with bytes of an object says which version they are of: what is known by a listing is not asked for before.
    pub fn tells_versions(self) -> bool {
        matches!(self, Self::S3 | Self::Gcs | Self::Azure | Self::Alluxio)
    }

    /// Whether its names can be listed.
    pub(crate) fn lists(self) -> bool {
        !matches!(self, Self::Http | Self::Https)
    }

    /// Whether what stands behind `://` is a host.
    fn has_host(self) -> bool {
        matches!(self, Self::Http | Self::Https | Self::Nfs | Self::Alluxio | Self::JuiceFs | Self::Milvus)
    }
}

/// An object, or a prefix of names, in a remote system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// The bucket or container; the host and port of plain HTTP, of NFS, of a namenode, of the Redis of JuiceFS, or the name of a service; of Ceph the pool, with a namespace
    /// behind a colon, or the file system; of Alluxio the proxy's host and port, a slash, and the first directory, which is a bucket to it; of DAOS the pool.
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

    /// One of Alluxio's: what stands behind the host, and its first part, which is a bucket to the proxy.
    fn of_alluxio(host: &str, path: &str) -> Result<Self, &'static str> {
        let (directory, key) = path.split_once('/').unwrap_or((path, ""));
        if !is_of(host, b"-_.:[]") {
            return Err("there is no host, or its name has characters that none has");
        }
        if !is_of(directory, b"-_.") || directory.bytes().all(|byte| byte == b'.') {
            return Err(
                "behind the host stands a directory, of letters, digits, `-`, `_` and `.`: the proxy has no others",
            );
        }
        Ok(Self { scheme: Scheme::Alluxio, bucket: format!("{host}/{directory}"), key: key.to_owned() })
    }

    /// One behind an agent: the agent is what stands before the slash that is last before the first `://`, and all behind it is the agent's.
    fn of_agent(rest: &str) -> Result<Self, &'static str> {
        const WHOLE: &str =
            "behind the agent stands a whole address with its scheme, as in agp://HOST:PORT/file:///data/a";
        let scheme_end = rest.find("://").ok_or(WHOLE)?;
        let slash = rest.get(..scheme_end).and_then(|before| before.rfind('/')).ok_or(WHOLE)?;
        let (agent, key) = (rest.get(..slash).ok_or(WHOLE)?, rest.get(slash + 1..).ok_or(WHOLE)?);
        let is_agent = match agent.strip_prefix("unix:") {
            Some(path) => path.starts_with('/') && !path.contains(char::is_control),
            None => is_of(agent, b"-_.:[]") && agent.contains(':'),
        };
        if !is_agent {
            return Err("an agent is HOST:PORT, or unix: and the whole path of its socket");
        }
        Ok(Self { scheme: Scheme::Agent, bucket: agent.to_owned(), key: key.to_owned() })
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
        if scheme == Scheme::Agent {
            return Self::of_agent(rest);
        }
        if scheme == Scheme::Alluxio {
            return Self::of_alluxio(bucket, key);
        }
        // Those that stand in a URL as they are: `:` for tenants and ports, `$` for containers of Azure's, brackets for addresses of IPv6.
        let more: &[u8] = if scheme.has_host() { b"-_.:[]" } else { b"-_.:$" };
        if !is_of(bucket, more) {
            return Err("there is no bucket or host, or its name has characters that none has");
        }
        Ok(Self { scheme, bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// An address as messages have it, whatever it is: without what stands before the host, where others have a user and a password.
pub fn shown(text: &str) -> String {
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((scheme, behind)) = rest.split_once("://") {
        let host = behind.find('/').map_or(behind, |slash| behind.get(..slash).unwrap_or(behind));
        shown.extend([scheme, "://"]);
        rest = match host.rfind('@') {
            Some(at) => {
                shown.push_str("***");
                behind.get(at..).unwrap_or_default()
            }
            None => behind,
        };
    }
    shown.push_str(rest);
    shown
}

/// Whether a name is one, of letters, digits and some characters more.
fn is_of(name: &str, more: &[u8]) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_was_read() {
        for text in [
            "rados://p:n/k",
            "daos://pool/container/a/b",
            "s3://b/k",
            "gs://bucket/a b/c?d=1#e",
            "az://c/x",
            "http://127.0.0.1:80/a",
            "https://h/",
            "s3://b/",
            "nfs://[::1]:2049/a/b",
            "alluxio://proxy:39999/d/",
            "alluxio://[::1]/d/a b/c",
            "juicefs://h:6379/1/a/ü b",
            "agp://unix:/run/sw.sock/s3://b/k/://x",
            "agp://h:1/file:///a b",
            "agp://[::1]:7/agp://h:1/s3://b/k",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let whole: Address = "s3://bucket".parse().unwrap();
        assert_eq!((whole.bucket.as_str(), whole.key.as_str()), ("bucket", ""));
        let of_proxy: Address = "alluxio://h:1/d/a/b".parse().unwrap();
        assert_eq!((of_proxy.bucket.as_str(), of_proxy.key.as_str()), ("h:1/d", "a/b"));
        assert_eq!(of_proxy.sibling("c").to_string(), "alluxio://h:1/d/c");
    }

    #[test]
    fn a_password_is_not_shown() {
        for (text, want) in [
            ("juicefs://:secret@h:6379/1/a@b", "juicefs://***@h:6379/1/a@b"),
            ("juicefs://u:se@cret@h", "juicefs://***@h"),
            ("s3://b/a@b", "s3://b/a@b"),
            ("rbd://pool/image@snapshot", "rbd://pool/image@snapshot"),
            ("stripe:1MiB:http://u:secret@h/a,s3://u:secret@b/a", "stripe:1MiB:http://***@h/a,s3://***@b/a"),
            ("a@b", "a@b"),
            ("", ""),
        ] {
            assert_eq!(shown(text), want);
        }
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
            "alluxio://h:1",
            "alluxio://h:1/",
            "alluxio://h:1//k",
            "alluxio://h:1/../k",
            "alluxio://h:1/a b/k",
            "alluxio:///d/k",
            "agp://h:1/data/a",
            "agp://h/s3://b/k",
            "agp://unix:run/sw.sock/s3://b/k",
            "agp://s3://b/k",
            "agp://:/x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
