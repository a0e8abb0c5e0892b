//! Addresses of objects.
//!
//! ```text
//!   /path/to/file     file:///path/to/file     nvme://0000:3b:00.0/1     stripe:1MiB:ADDRESS,ADDRESS,…
//!   nvme+tcp://host:4420/NQN?nsid=1     nvme+tcp://host,[::1]:4421/NQN?nsid=1 (two paths)
//!   nvme+rdma://host:4420/NQN?nsid=1          and &device=NAME, &gid=N, or &fabric=emulated
//!   s3://bucket/key   gs://bucket/key   az://container/key   http(s)://host/path
//!   hdfs://namenode:port/path   hdfs://service/path   webhdfs://namenode:port/path   nfs://host:2049/export/path
//!   rados://pool/object   rbd://pool/image@snapshot   cephfs://filesystem/path
//!   daos://pool/container/path
//!   juicefs://redis-host:6379/database/path
//!   ais://bucket/key   ais://bucket/shard.tar?archpath=member   alluxio://proxy:39999/directory/path
//!   milvus://host:19530/collection
//!   any of them with ?offset=N&len=N: that part of it
//! ```

use std::{fmt, path::Path, str::FromStr};

use sw_engine::{Error, ErrorKind, PciAddress, Verb};
use sw_nvme::paths::PATHS_MAX;
use sw_remote::{Address, Scheme, shown};
/// Which device and which of its addresses connections over RDMA are made from.
pub use sw_verbs::library::PortChoice as RdmaPort;

/// Schemes of the design that this build does not have yet: named, so that the answer is not "bad address".
const PLANNED: [&str; 3] = ["curvefs", "weka", "lustre"];

/// The beginning of addresses of JuiceFS with the name of an engine of metadata, as in `juicefs+postgres://`.
const JUICEFS_ENGINE: &str = "juicefs+";

/// What may be written, for the remedy of a wrong address.
const KNOWN: &str = "use a path, file:///path, nvme://0000:3b:00.0/1, nvme+tcp://host:4420/NQN?nsid=1, nvme+rdma:// likewise, s3://bucket/key, gs://, az://, https://, hdfs://namenode:port/path, webhdfs://, nfs://host/export/path, rados://pool/object, rbd://pool/image@snapshot, cephfs://filesystem/path, ais://bucket/key, alluxio://proxy:39999/directory/path, juicefs://redis-host:port/database/path, milvus://host:19530/collection, daos://pool/container/path, agp://host:port/URI, agp://unix:/socket/URI or stripe:UNIT:/a,/b";

/// An address. Parse it with [`str::parse`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Uri {
    /// A file, directory or block device of this machine.
    File(String),
    /// A namespace of an NVMe controller that this process drives itself.
    Nvme(NvmeUri),
    /// A namespace of an NVMe subsystem behind TCP or, as [`NvmeTcpUri::wire`] says, RDMA.
    NvmeTcp(NvmeTcpUri),
    /// An object in an object store or another remote system, or a prefix of names there.
    Remote(Address),
    /// A stripe set over files, block devices or namespaces.
    Stripe {
        /// Bytes on one member before the next one follows: a power of two of at least 4096.
        unit: u64,
        /// The members, in order; none is a stripe set itself.
        members: Vec<Uri>,
    },
    /// A part of another address.
    Part {
        /// The whole.
        of: Box<Uri>,
        /// First byte.
        offset: u64,
        /// Bytes; `None`: up to the end.
        len: Option<u64>,
    },
}

/// A namespace by the PCI address of its controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NvmeUri {
    /// The controller's place.
    pub controller: PciAddress,
    /// The namespace, from 1.
    pub nsid: u32,
    /// The serial number that the controller must have. Nothing is written to a namespace whose address has none.
    pub serial: Option<String>,
}

impl NvmeUri {
    /// `0000:3b:00.0/1` with what stands behind a `?`.
    fn parse(rest: &str, serial: Option<String>) -> Option<Self> {
        let (controller, nsid) = rest.split_once('/')?;
        Some(Self { controller: controller.parse().ok()?, nsid: parse_nsid(nsid)?, serial })
    }
}

impl fmt::Display for NvmeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvme://{}/{}", self.controller, self.nsid)?;
        self.serial.as_ref().map_or(Ok(()), |serial| write!(f, "?serial={serial}"))
    }
}

/// The port of NVMe/TCP (IANA: nvme, 4420).
pub(crate) const NVME_TCP_PORT: u16 = 4420;

/// What a subsystem is reached by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum FabricWire {
    /// `nvme+tcp://`.
    #[default]
    Tcp,
    /// `nvme+rdma://` with `fabric=emulated`: the emulated fabric, whose both ends are this program's. It is no NIC, and is never taken unasked.
    EmulatedRdma,
    /// `nvme+rdma://`: RDMA devices of the system's, by libibverbs and librdmacm; from where, if not the route chooses.
    Rdma(RdmaPort),
}

/// A port of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FabricPort {
    /// A name, an address of IPv4, or one of IPv6 in brackets.
    pub host: String,
    /// The port; 4420 if none is written.
    pub port: u16,
}

impl FabricPort {
    /// `host:4420` or `host`.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            // The colons of an address of IPv6 are inside its brackets.
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok().filter(|port| *port != 0)?),
            _ => (text, NVME_TCP_PORT),
        };
        let bare = host.strip_prefix('[').map_or(Some(host), |inner| inner.strip_suffix(']'))?;
        let is_bracketed = bare.len() < host.len();
        let is_wrong = bare.is_empty() || bare.contains(['[', ']', '@']) || (bare.contains(':') && !is_bracketed);
        (!is_wrong).then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for FabricPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A namespace by the addresses and the name of its subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NvmeTcpUri {
    /// Where it is reached; each is a path to it. There is at least one.
    pub ports: Vec<FabricPort>,
    /// The NQN of the subsystem.
    pub subsystem: String,
    /// The namespace, from 1.
    pub nsid: u32,
    /// The serial number that the subsystem must have. Nothing is written to a namespace whose address has none.
    pub serial: Option<String>,
    /// What it is reached by.
    pub wire: FabricWire,
}

impl NvmeTcpUri {
    /// `host:4420,…/NQN` with what stands behind a `?`.
    fn parse(rest: &str, nsid: Option<u32>, serial: Option<String>, wire: FabricWire) -> Option<Self> {
        let (at, subsystem) = rest.split_once('/')?;
        let ports = at.split(',').map(FabricPort::parse).collect::<Option<Vec<_>>>()?;
        let is_twice = ports.iter().enumerate().any(|(n, port)| ports.iter().take(n).any(|before| before == port));
        let fits = !is_twice && ports.len() <= PATHS_MAX && subsystem.starts_with("nqn.");
        fits.then_some(())?;
        Some(Self { ports, subsystem: subsystem.to_owned(), nsid: nsid?, serial, wire })
    }
}

impl fmt::Display for NvmeTcpUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.wire == FabricWire::Tcp { "nvme+tcp" } else { "nvme+rdma" };
        write!(f, "{scheme}://")?;
        self.ports.iter().enumerate().try_for_each(|(n, port)| write!(f, "{}{port}", if n == 0 { "" } else { "," }))?;
        write!(f, "/{}?nsid={}", self.subsystem, self.nsid)?;
        match &self.wire {
            FabricWire::Tcp => {}
            FabricWire::EmulatedRdma => f.write_str("&fabric=emulated")?,
            FabricWire::Rdma(RdmaPort { device, gid }) => {
                device.as_ref().map_or(Ok(()), |device| write!(f, "&device={device}"))?;
                gid.map_or(Ok(()), |gid| write!(f, "&gid={gid}"))?;
            }
        }
        self.serial.as_ref().map_or(Ok(()), |serial| write!(f, "&serial={serial}"))
    }
}

/// What may stand behind the `?` of an address.
#[derive(Default)]
struct Query {
    nsid: Option<u32>,
    offset: Option<u64>,
    len: Option<u64>,
    serial: Option<String>,
    /// `fabric=emulated`.
    emulated: Option<()>,
    port: RdmaPort,
}

impl Query {
    fn parse(text: &str) -> Option<Self> {
        let mut query = Self::default();
        let name = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        for pair in text.split('&') {
            match pair.split_once('=')? {
                ("offset", value) => once(&mut query.offset, parse_bytes(value))?,
                ("len", value) => once(&mut query.len, parse_bytes(value))?,
                ("nsid", value) => once(&mut query.nsid, parse_nsid(value))?,
                ("serial", value) => once(&mut query.serial, name(value))?,
                ("fabric", value) => once(&mut query.emulated, (value == "emulated").then_some(()))?,
                ("device", value) => once(&mut query.port.device, name(value))?,
                ("gid", value) => once(&mut query.port.gid, value.parse().ok())?,
                _ => return None,
            }
        }
        Some(query)
    }

    /// What an address of this scheme is reached by, if it is a subsystem's. `None`: the query chooses a way that the scheme does not have, or
    /// a device of the emulation's, which has none.
    fn wire(&mut self, scheme: &str) -> Option<Option<FabricWire>> {
        let port = core::mem::take(&mut self.port);
        let chooses = port != RdmaPort::default();
        match (scheme, self.emulated) {
            ("nvme+rdma", None) => Some(Some(FabricWire::Rdma(port))),
            ("nvme+rdma", Some(())) if !chooses => Some(Some(FabricWire::EmulatedRdma)),
            ("nvme+tcp", None) if !chooses => Some(Some(FabricWire::Tcp)),
            ("nvme+rdma" | "nvme+tcp", _) => None,
            (_, None) if !chooses && self.nsid.is_none() => Some(None),
            _ => None,
        }
    }

    fn is_part_only(&self) -> bool {
        self.nsid.is_none() && self.serial.is_none() && self.emulated.is_none() && self.port == RdmaPort::default()
    }
}

/// Puts a value where there is none yet. `None`: it is said twice, or wrong.
fn once<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
    place.is_none().then_some(())?;
    *place = Some(value?);
    Some(())
}

impl Uri {
    /// The address of a file of this machine.
    ///
    /// # Errors
    /// `BadUri` for a path that is not UTF-8: addresses are text.
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        path.to_str().map(|text| Uri::File(text.to_owned())).ok_or_else(|| {
            Error::new(ErrorKind::BadUri, Verb::Open)
                .at(path.to_string_lossy().into_owned())
                .detail("a path that is not UTF-8")
                .remedy("rename it, or reach it by another path")
        })
    }

    /// The address without the part that it names, and the part.
    pub fn whole(&self) -> (&Uri, u64, Option<u64>) {
        match self {
            Uri::Part { of, offset, len } => (of, *offset, *len),
            whole => (whole, 0, None),
        }
    }

    /// Its last name, where it has names: of a file, or of an object in an object store.
    pub fn file_name(&self) -> Option<&str> {
        let path = match self {
            Uri::File(path) => path,
            Uri::Remote(at) => &at.key,
            Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Stripe { .. } | Uri::Part { .. } => return None,
        };
        path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."))
    }

    /// What is called `name` (which may have parts) in the directory, or below the prefix, that this is.
    ///
    /// # Errors
    /// `WrongKind` for an address that has nothing below it.
    pub fn join(&self, name: &str) -> Result<Self, Error> {
        let below = |path: &str| match path {
            "" => name.to_owned(),
            path => format!("{}/{name}", path.trim_end_matches('/')),
        };
        match self {
            Uri::File(path) => Ok(Uri::File(below(path))),
            Uri::Remote(at) => Ok(Uri::Remote(Address { key: below(&at.key), ..at.clone() })),
            Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Stripe { .. } | Uri::Part { .. } => {
                Err(Error::new(ErrorKind::WrongKind, Verb::Open)
                    .at(self.to_string())
                    .detail("nothing lies below it")
                    .remedy("name a directory, or a prefix of an object store"))
            }
        }
    }

    /// The directory, or the prefix, that it lies in: `.` for a file that is named without one. `None` for what lies in none.
    pub fn parent(&self) -> Option<Self> {
        let above = |path: &str| path.trim_end_matches('/').rfind('/').map(|slash| path[..slash].to_owned());
        match self {
            Uri::File(path) => Some(Uri::File(match above(path) {
                None => ".".to_owned(),
                Some(root) if root.is_empty() => "/".to_owned(),
                Some(directory) => directory,
            })),
            Uri::Remote(at) => Some(Uri::Remote(Address { key: above(&at.key).unwrap_or_default(), ..at.clone() })),
            Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Stripe { .. } | Uri::Part { .. } => None,
        }
    }

    fn part(self, offset: Option<u64>, len: Option<u64>) -> Self {
        match (offset, len) {
            (None, None) => self,
            _ => Uri::Part { of: Box::new(self), offset: offset.unwrap_or(0), len },
        }
    }
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |detail: String| Error::new(ErrorKind::BadUri, Verb::Open).at(shown(text)).detail(detail);
        if text.is_empty() || text.contains('\0') {
            return Err(bad("an address cannot be empty or contain NUL".into()).remedy("give a path or file:///path"));
        }
        if let Some(rest) = text.strip_prefix("stripe:") {
            return stripe(rest).ok_or_else(|| {
                bad("not a stripe set".into())
                    .remedy("write stripe:UNIT:A,B with a unit such as 1MiB and paths or nvme:// addresses")
            });
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Uri::File(text.into())) };
        let wrong_query = || {
            bad("what stands behind the ? is not understood".into())
                .remedy("write ?offset=N, ?len=N or both with &; serial=S for an NVMe controller, nsid=N and serial=S for nvme+tcp and nvme+rdma, device=NAME, gid=N or fabric=emulated for the latter")
        };
        let (rest, mut query) = match rest.split_once('?') {
            Some((rest, query)) if matches!(scheme, "nvme" | "nvme+tcp" | "nvme+rdma" | "file") => {
                (rest, Query::parse(query).ok_or_else(wrong_query)?)
            }
            _ => (rest, Query::default()),
        };
        if Scheme::ALL.iter().any(|(name, _)| *name == scheme) {
            return remote(text);
        }
        let wire = query.wire(scheme).ok_or_else(wrong_query)?;
        let Query { nsid, offset, len, serial, .. } = query;
        if let Some(wire) = wire {
            let nvme = NvmeTcpUri::parse(rest, nsid, serial, wire).ok_or_else(|| {
                let choice = if scheme == "nvme+rdma" { ", with &device=NAME or &gid=N to choose, or with &fabric=emulated" } else { "" };
                bad("not a namespace of an NVMe subsystem".into()).remedy(format!(
                    "write {scheme}://HOST:PORT/NQN?nsid=N, as in {scheme}://10.0.0.1:4420/nqn.2026-11.io.example:one?nsid=1{choice}"
                ))
            })?;
            return Ok(Uri::NvmeTcp(nvme).part(offset, len));
        }
        match scheme {
            "nvme" => match NvmeUri::parse(rest, serial) {
                Some(nvme) => Ok(Uri::Nvme(nvme).part(offset, len)),
                None => Err(bad("not a namespace of an NVMe controller".into())
                    .remedy("write nvme://PCI-ADDRESS/NSID, as in nvme://0000:3b:00.0/1")),
            },
            "file" if serial.is_some() => Err(wrong_query()),
            // RFC 8089 §2 "Syntax": file://host/path; only the local host has files here.
            "file" if rest.starts_with('/') => Ok(Uri::File(rest.into()).part(offset, len)),
            "file" if rest.starts_with("localhost/") => {
                Ok(Uri::File(rest["localhost".len()..].into()).part(offset, len))
            }
            "file" => Err(bad("a file address names this machine only".into()).remedy("write file:///absolute/path")),
            scheme if scheme.starts_with(JUICEFS_ENGINE) => Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(shown(text))
                .detail("metadata of JuiceFS are read from a Redis without TLS, and from no other engine")
                .remedy("use juicefs://HOST:PORT/DATABASE/PATH for those; others by `juicefs mount` and the path, or by `juicefs gateway --keep-etag` and s3://")),
            scheme if PLANNED.contains(&scheme) => Err(bad(format!("scheme {scheme} is not built in"))
                .remedy(format!("{KNOWN}; mount the store to reach it by path"))),
            scheme => Err(bad(format!("unknown scheme {scheme}")).remedy(KNOWN)),
        }
    }
}

/// An object in an object store. Names there may have question marks: only what is a part, and nothing else, is taken for one.
fn remote(text: &str) -> Result<Uri, Error> {
    let part = text.rsplit_once('?').and_then(|(whole, query)| Some((whole, Query::parse(query)?)));
    let part = part.filter(|(_, query)| query.is_part_only());
    let (whole, Query { offset, len, .. }) = part.unwrap_or((text, Query::default()));
    let address = whole.parse::<Address>().map_err(|why| {
        Error::new(ErrorKind::BadUri, Verb::Open)
            .at(shown(text))
            .detail(why)
            .remedy("write s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, http(s)://HOST/PATH, hdfs://NAMENODE:PORT/PATH, webhdfs:// likewise, nfs://HOST/EXPORT/PATH, rados://POOL/OBJECT, rbd://POOL/IMAGE@SNAPSHOT, cephfs://FS/PATH, ais://BUCKET/KEY, alluxio://PROXY:PORT/DIRECTORY/PATH, juicefs://REDIS-HOST:PORT/DATABASE/PATH, daos://POOL/CONTAINER/PATH, milvus://HOST:PORT/COLLECTION, agp://HOST:PORT/URI or agp://unix:/SOCKET/URI")
    })?;
    Ok(Uri::Remote(address).part(offset, len))
}

/// A namespace identifier: 1 to 0xFFFFFFFE.
fn parse_nsid(text: &str) -> Option<u32> {
    text.parse().ok().filter(|nsid| *nsid != 0 && *nsid != u32::MAX)
}

/// The members between commas; those between the ports of one address are its own.
fn members_of(text: &str) -> Vec<String> {
    let mut members: Vec<String> = Vec::new();
    for part in text.split(',') {
        let is_open = |before: &&mut String| {
            let ports = before.strip_prefix("nvme+tcp://").or_else(|| before.strip_prefix("nvme+rdma://"));
            ports.is_some_and(|ports| !ports.contains('/'))
        };
        match members.last_mut().filter(is_open) {
            Some(before) => before.extend([",", part]),
            None => members.push(part.to_owned()),
        }
    }
    members
}

fn stripe(rest: &str) -> Option<Uri> {
    let (unit, members) = rest.split_once(':')?;
    let unit = parse_bytes(unit)?;
    let member = |text: &str| match text.parse().ok()? {
        Uri::Stripe { .. } => None,
        member => Some(member),
    };
    let members = members_of(members).iter().map(|text| member(text)).collect::<Option<Vec<_>>>()?;
    Some(Uri::Stripe { unit, members })
}

/// A number of bytes as people write it: `4096`, `4k`, `4KiB`, `1M`, `2GiB`, `1T` (powers of 1024). `None` if it is not one
/// or does not fit.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::File(path) => f.write_str(path),
            Uri::Nvme(nvme) => nvme.fmt(f),
            Uri::NvmeTcp(nvme) => nvme.fmt(f),
            Uri::Remote(address) => address.fmt(f),
            Uri::Stripe { unit, members } => {
                write!(f, "stripe:{unit}:")?;
                members.iter().enumerate().try_for_each(|(n, member)| match n {
                    0 => write!(f, "{member}"),
                    _ => write!(f, ",{member}"),
                })
            }
            Uri::Part { of, offset, len } => {
                let scheme = if matches!(**of, Uri::File(_)) { "file://" } else { "" };
                let whole = of.to_string();
                // A question mark in an object's name begins no query.
                let first = if whole.contains('?') && !matches!(**of, Uri::Remote(_)) { '&' } else { '?' };
                write!(f, "{scheme}{whole}{first}offset={offset}")?;
                len.map_or(Ok(()), |len| write!(f, "&len={len}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_file_addresses_are_files() {
        for (text, path) in [("/a/b", "/a/b"), ("a b", "a b"), ("file:///a", "/a"), ("file://localhost/a", "/a")] {
            assert_eq!(text.parse::<Uri>().unwrap(), Uri::File(path.into()));
        }
    }

    #[test]
    fn a_stripe_set_has_a_unit_and_members() {
        let uri: Uri = "stripe:64k:/a,/b".parse().unwrap();
        let members = vec![Uri::File("/a".into()), Uri::File("/b".into())];
        assert_eq!(uri, Uri::Stripe { unit: 65_536, members });
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
    }

    #[test]
    fn a_namespace_has_a_controller_and_perhaps_a_serial_and_a_part() {
        let uri: Uri = "nvme://3B:00.0/1?serial=S1&offset=1MiB&len=4k".parse().unwrap();
        let nvme = NvmeUri { controller: "3b:00.0".parse().unwrap(), nsid: 1, serial: Some("S1".into()) };
        assert_eq!(uri.whole(), (&Uri::Nvme(nvme.clone()), 1 << 20, Some(4096)));
        assert_eq!(uri.to_string(), "nvme://0000:3b:00.0/1?serial=S1&offset=1048576&len=4096");
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        let plain: Uri = "nvme://0000:3b:00.0/1".parse().unwrap();
        assert_eq!(plain, Uri::Nvme(NvmeUri { serial: None, ..nvme }));
        let set: Uri = "stripe:1MiB:nvme://3b:00.0/1,nvme://3c:00.0/1?serial=S2".parse().unwrap();
        assert_eq!(set.to_string().parse::<Uri>().unwrap(), set);
        for wrong in [
            "nvme://",
            "nvme://3b:00.0",
            "nvme://3b:00.0/0",
            "nvme://3b:00.0/4294967295",
            "nvme://3b:00.0/x",
            "nvme://3b:00.8/1",
            "nvme://3b:20.0/1",
            "nvme://3b:00.0/1?",
            "nvme://3b:00.0/1?len=",
            "nvme://3b:00.0/1?len=1&len=2",
            "nvme://3b:00.0/1?serial=",
            "nvme://+b:00.0/1",
            "file:///a?serial=x",
        ] {
            assert_eq!(wrong.parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri, "{wrong}");
        }
    }

    #[test]
    fn a_namespace_behind_tcp_has_a_subsystem_and_a_number() {
        let nqn = "nqn.2026-11.io.example:one";
        let uri: Uri = format!("nvme+tcp://[fe80::1]:4421/{nqn}?nsid=2&serial=S1&offset=4k").parse().unwrap();
        let namespace = NvmeTcpUri {
            wire: FabricWire::Tcp,
            ports: vec![FabricPort { host: "[fe80::1]".into(), port: 4421 }],
            subsystem: nqn.into(),
            nsid: 2,
            serial: Some("S1".into()),
        };
        assert_eq!(uri.whole(), (&Uri::NvmeTcp(namespace), 4096, None));
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        for host in ["storage-1", "10.0.0.1", "[::1]"] {
            let uri: Uri = format!("nvme+tcp://{host}/{nqn}?nsid=1").parse().unwrap();
            let Uri::NvmeTcp(found) = &uri else { panic!("{uri:?}") };
            assert_eq!(found.ports, [FabricPort { host: host.into(), port: 4420 }]);
            assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        }
        for wrong in [
            format!("nvme+tcp://host/{nqn}"),
            format!("nvme+tcp://host/{nqn}?nsid=0"),
            format!("nvme+tcp://host:0/{nqn}?nsid=1"),
            format!("nvme+tcp://host:x/{nqn}?nsid=1"),
            format!("nvme+tcp://::1:4420/{nqn}?nsid=1"),
            format!("nvme+tcp://[::1/{nqn}?nsid=1"),
            format!("nvme+tcp://:4420/{nqn}?nsid=1"),
            "nvme+tcp://host/one?nsid=1".into(),
            "nvme+tcp://host?nsid=1".into(),
            "nvme://3b:00.0/1?nsid=1".into(),
            "file:///a?nsid=1".into(),
        ] {
            assert_eq!(wrong.parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri, "{wrong}");
        }
    }

    #[test]
    fn rdma_goes_by_the_route_by_a_device_or_by_the_emulation() {
        let nqn = "nqn.2026-11.io.example:one";
        let wire = |more: &str| {
            let uri: Uri = format!("nvme+rdma://10.0.0.1/{nqn}?nsid=1{more}").parse().ok()?;
            assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
            let Uri::NvmeTcp(found) = uri else { panic!("{uri:?}") };
            Some(found.wire)
        };
        let by = |device: Option<&str>, gid| FabricWire::Rdma(RdmaPort { device: device.map(str::to_owned), gid });
        assert_eq!(wire(""), Some(by(None, None)));
        assert_eq!(wire("&device=mlx5_0"), Some(by(Some("mlx5_0"), None)));
        assert_eq!(wire("&gid=3&device=rxe0"), Some(by(Some("rxe0"), Some(3))));
        assert_eq!(wire("&fabric=emulated"), Some(FabricWire::EmulatedRdma));
        for wrong in ["&fabric=emulated&device=rxe0", "&fabric=real", "&gid=x", "&device=", "&gid=1&gid=2"] {
            assert_eq!(wire(wrong), None, "{wrong}");
        }
        for wrong in ["nvme+tcp", "file"] {
            assert!(format!("{wrong}://10.0.0.1/{nqn}?nsid=1&device=rxe0").parse::<Uri>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_namespace_may_be_reached_by_several_ports() {
        let nqn = "nqn.2026-11.io.example:one";
        let text = format!("nvme+tcp://10.0.0.1,storage-2:4421,[fe80::1],[::1]:9/{nqn}?nsid=1&serial=S1");
        let uri: Uri = text.parse().unwrap();
        let Uri::NvmeTcp(found) = &uri else { panic!("{uri:?}") };
        let ports: Vec<String> = found.ports.iter().map(FabricPort::to_string).collect();
        assert_eq!(ports, ["10.0.0.1:4420", "storage-2:4421", "[fe80::1]:4420", "[::1]:9"]);
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        // Its commas are not those of a set.
        let set: Uri = format!("stripe:1MiB:{text},/a,nvme+tcp://b,c/{nqn}?nsid=2,/d").parse().unwrap();
        let Uri::Stripe { members, .. } = &set else { panic!("{set:?}") };
        assert_eq!((members.len(), &members[0], &members[3]), (4, &uri, &Uri::File("/d".into())));
        assert_eq!(set.to_string().parse::<Uri>().unwrap(), set);
        let many = (1..=17).map(|port| format!("a:{port}")).collect::<Vec<_>>().join(",");
        for wrong in ["a,", ",a", "a,,b", "a,a", "a:1,b,a:1", "a,::1", &many] {
            let text = format!("nvme+tcp://{wrong}/{nqn}?nsid=1");
            assert_eq!(text.parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri, "{text}");
        }
    }

    #[test]
    fn a_part_of_a_file_is_written_with_its_scheme() {
        let uri: Uri = "file:///a?offset=4k".parse().unwrap();
        assert_eq!(uri, Uri::Part { of: Box::new(Uri::File("/a".into())), offset: 4096, len: None });
        assert_eq!(uri.to_string(), "file:///a?offset=4096");
        // A path is taken as it is: names may have question marks.
        assert_eq!("/a?offset=4k".parse::<Uri>().unwrap(), Uri::File("/a?offset=4k".into()));
    }

    #[test]
    fn what_is_not_built_in_says_so() {
        for (text, word) in
            [("weka://h/k", "not built in"), ("gopher://x", "unknown"), ("file://host/x", "this machine")]
        {
            let error = text.parse::<Uri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadUri);
            assert!(error.to_string().contains(word), "{error}");
        }
        for text in ["", "a\0b", "stripe:", "stripe:1k", "stripe:x:/a", "stripe:1k:/a,,/b"] {
            assert_eq!(text.parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri, "{text:?}");
        }
    }

    #[test]
    fn names_are_joined_and_taken_apart() {
        for (whole, directory, name) in [
            ("/a/b", "/a", "b"),
            ("/a", "/", "a"),
            ("a", ".", "a"),
            ("s3://b/x/y", "s3://b/x", "y"),
            ("s3://b/x", "s3://b/", "x"),
            ("cephfs://fs/x/y", "cephfs://fs/x", "y"),
            ("daos://p/c/x", "daos://p/c", "x"),
            ("rados://pool:space/x", "rados://pool:space/", "x"),
            ("rbd://pool/image@snapshot", "rbd://pool/", "image@snapshot"),
            ("juicefs://h:6379/1/a/b", "juicefs://h:6379/1/a", "b"),
        ] {
            let (uri, parent): (Uri, Uri) = (whole.parse().unwrap(), directory.parse().unwrap());
            assert_eq!((uri.parent(), uri.file_name()), (Some(parent.clone()), Some(name)), "{whole}");
            let again = parent.join(name).unwrap();
            assert!(again == uri || directory == ".", "{again}");
        }
        let nvme: Uri = "nvme://3b:00.0/1".parse().unwrap();
        assert_eq!((nvme.parent(), nvme.file_name()), (None, None));
        assert_eq!(nvme.join("a").unwrap_err().kind(), ErrorKind::WrongKind);
        for none in ["s3://b", "/", ".."] {
            assert_eq!(none.parse::<Uri>().unwrap().file_name(), None, "{none}");
        }
    }

    #[test]
    fn errors_have_no_passwords() {
        for text in [
            "juicefs://:secret@h:6379/1/a",
            "juicefs+postgres://u:secret@h/db/a",
            "s3://u:secret@b/k",
            "nothing://u:secret@h/a",
            "file://u:secret@h/a",
            "nvme+tcp://u:secret@h/a",
            "stripe:x:s3://u:secret@b/k",
        ] {
            let error = text.parse::<Uri>().unwrap_err();
            assert!(!error.to_string().contains("secret") && error.to_string().contains("***@"), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn other_engines_of_juicefs_are_told_to_be_none_of_ours() {
        let error = "juicefs+postgres://h/db/a".parse::<Uri>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.remedy_text().contains("juicefs mount"), "{error}");
    }

    #[test]
    fn an_object_of_a_store_may_have_a_part_and_any_name() {
        let uri: Uri = "s3://bucket/a b?c=1/d?offset=4k&len=1".parse().unwrap();
        let whole: Uri = "s3://bucket/a b?c=1/d".parse().unwrap();
        assert_eq!(uri.whole(), (&whole, 4096, Some(1)));
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        let odd: Uri = "s3://bucket/a?nsid=1".parse().unwrap();
        assert!(matches!(&odd, Uri::Remote(at) if at.key == "a?nsid=1"));
        assert_eq!("s3://".parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri);
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("4k"), Some(4096));
        assert_eq!(parse_bytes("1GiB"), Some(1 << 30));
        assert_eq!(parse_bytes("7"), Some(7));
        for bad in ["", "k", "-1", "1x", "1.5M", "99999999999T"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }
}
