//! The command line of `target`, and of the keys that it and hosts have.

use std::path::PathBuf;

use clap::Args;
use straightway::{
    FabricWire, RdmaPort,
    authentication::{Group, Hash, parse_groups, parse_hashes},
    target::PortAccess,
    tls::{Form, Suite},
};

use crate::size;

/// `target`.
#[derive(Args, Debug)]
#[command(
    after_help = "It is small. With keys, hosts show who they are, and connections have TLS 1.3 (OpenSSL 3 must be there). Linux connects to it with nvme-cli; this
program with the addresses that it prints. Ctrl-C ends it.

Examples:
  straightway target memory:1GiB
  straightway target /data/dataset.img --read-only --listen 0.0.0.0:4420
  straightway target memory:1GiB --listen 10.0.0.1:4420 --listen 10.0.1.1:4420 --ana 2/1=non-optimized
  straightway target disk-a.img disk-b.img --block 512
  straightway target memory:1GiB --dhchap-key-file host.key --dhchap-ctrl-key-file target.key
  straightway target memory:1GiB --tls-key-file tls.key
  straightway target memory:1GiB --rdma --listen 192.0.2.10:4420"
)]
pub struct Target {
    /// What to offer: files or block devices, whose length stays, and memory:SIZE. They are namespaces 1, 2, ...
    #[arg(required = true, value_name = "SOURCE", value_parser = parse_source)]
    pub sources: Vec<TargetSource>,
    /// Where to listen; port 0 is any free one. May be given several times: each is a path to the namespaces
    #[arg(long, default_value = "127.0.0.1:4420", value_name = "ADDRESS:PORT")]
    pub listen: Vec<std::net::SocketAddr>,
    /// Tell hosts how namespaces are reached by the ports (ANA), and that namespace NSID is reached by the port of that place (from 1) like
    /// this: optimized, non-optimized, inaccessible, persistent-loss or change; optimized if nothing is said. May be given several times
    #[arg(long, value_name = "PORT/NSID=STATE", value_parser = parse_access, conflicts_with_all = ["rdma", "rdma_emulated"])]
    pub ana: Vec<PortState>,
    /// The name of the subsystem
    #[arg(long, default_value = "nqn.2026-11.io.straightway:target")]
    pub nqn: String,
    /// The serial number, which addresses that are written to must name; otherwise one of this machine and where it listens
    #[arg(long)]
    pub serial: Option<String>,
    /// Bytes of a block
    #[arg(long, default_value = "4096")]
    pub block: u32,
    /// Take no writes to files
    #[arg(long)]
    pub read_only: bool,
    #[command(flatten)]
    pub wire: Wire,
    /// The file of the key that hosts must know (DH-HMAC-CHAP), or lines of NQN and key, one for each host
    #[arg(long, value_name = "FILE")]
    pub dhchap_key_file: Option<PathBuf>,
    /// The file of the key that shows hosts who this target is, if they ask
    #[arg(long, value_name = "FILE", requires = "dhchap_key_file")]
    pub dhchap_ctrl_key_file: Option<PathBuf>,
    /// Hashes of authentication, the best first: names with a plus between
    #[arg(
        long,
        default_value = "sha256+sha384+sha512",
        requires = "dhchap_key_file",
        value_parser = parse_hash_list
    )]
    pub dhchap_hashes: Hashes,
    /// Groups of authentication, the best first: names with a plus between
    #[arg(
        long,
        default_value = "ffdhe2048+ffdhe3072+ffdhe4096+ffdhe6144+ffdhe8192+null",
        requires = "dhchap_key_file",
        value_parser = parse_group_list
    )]
    pub dhchap_groups: Groups,
    /// The file of the key that hosts must have for TLS, without which no connection is taken; or lines of NQN and key, each host with its own
    #[arg(long, value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// Make keys of it as old versions of libnvme do, for hosts with one
    #[arg(long, requires = "tls_key_file")]
    pub tls_compat: bool,
}

/// The wire of a target, and of a discovery service.
#[derive(Args, Debug)]
pub struct Wire {
    /// Over RDMA instead of TCP, by the device of the system's that has the address or the route
    #[arg(long, conflicts_with = "rdma_emulated")]
    rdma: bool,
    /// Over the emulated RDMA fabric instead of TCP: this program at both ends, to try and to test NVMe over RDMA without a NIC
    #[arg(long)]
    rdma_emulated: bool,
}

impl Wire {
    /// What was chosen; TCP if nothing was.
    pub fn chosen(&self) -> FabricWire {
        match self {
            Self { rdma: true, .. } => FabricWire::Rdma(RdmaPort::default()),
            Self { rdma_emulated: true, .. } => FabricWire::EmulatedRdma,
            _ => FabricWire::Tcp,
        }
    }
}

/// How a namespace is reached by a port.
#[derive(Clone, Copy, Debug)]
pub struct PortState {
    /// From 0.
    pub port: usize,
    /// From 1.
    pub nsid: u32,
    /// How.
    pub access: PortAccess,
}

fn parse_access(text: &str) -> Result<PortState, String> {
    let parse = || {
        let (at, state) = text.split_once('=')?;
        let (port, nsid) = at.split_once('/')?;
        let access = PortAccess::ALL.into_iter().find(|access| access.name() == state)?;
        let port = port.parse::<usize>().ok()?.checked_sub(1)?;
        Some(PortState { port, nsid: nsid.parse().ok().filter(|nsid| *nsid > 0)?, access })
    };
    parse().ok_or_else(|| "write PORT/NSID=STATE, as in 2/1=inaccessible".to_owned())
}

/// Hashes of authentication.
#[derive(Clone, Debug)]
pub struct Hashes(pub Vec<Hash>);

/// Groups of authentication.
#[derive(Clone, Debug)]
pub struct Groups(pub Vec<Group>);

fn parse_hash_list(text: &str) -> Result<Hashes, String> {
    parse_hashes(text).map(Hashes).ok_or_else(|| "write some of sha256+sha384+sha512".to_owned())
}

fn parse_group_list(text: &str) -> Result<Groups, String> {
    let all = "write some of null+ffdhe2048+ffdhe3072+ffdhe4096+ffdhe6144+ffdhe8192";
    parse_groups(text).map(Groups).ok_or_else(|| all.to_owned())
}

/// What a namespace of `target` is made of.
#[derive(Clone, Debug)]
pub enum TargetSource {
    /// So many bytes of memory.
    Memory(u64),
    /// A file or block device.
    File(PathBuf),
}

impl std::fmt::Display for TargetSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "memory:{bytes}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

fn parse_source(text: &str) -> Result<TargetSource, String> {
    match text.strip_prefix("memory:") {
        Some(bytes) => size::parse_positive(bytes).map(TargetSource::Memory),
        None => Ok(TargetSource::File(text.into())),
    }
}

/// `nvme gen-dhchap-key`.
#[derive(Args, Debug)]
#[command(
    after_help = "What it prints is secret: write it to a file that its owner alone may read. Targets and hosts of
others take the same text.

Examples:
  straightway nvme gen-dhchap-key > host.key
  straightway nvme gen-dhchap-key --hash sha512 --bytes 64 --json"
)]
pub struct NvmeGenDhchapKey {
    /// The hash that transforms the key with a name before it is used: none, sha256, sha384 or sha512
    #[arg(long, default_value = "sha256", value_parser = parse_transform)]
    pub hash: Transform,
    /// Bytes of the key: 32, 48 or 64
    #[arg(long, default_value = "32", value_parser = parse_key_bytes)]
    pub bytes: Hash,
}

/// What is done with a key before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    None,
    /// A transformation by a hash.
    By(Hash),
}

fn parse_transform(text: &str) -> Result<Transform, String> {
    match (text, parse_hashes(text).as_deref()) {
        ("none", _) => Ok(Transform::None),
        (_, Some([hash])) => Ok(Transform::By(*hash)),
        _ => Err("write none, sha256, sha384 or sha512".to_owned()),
    }
}

/// A key has as many bytes as a hash.
fn parse_key_bytes(text: &str) -> Result<Hash, String> {
    let found = Hash::ALL.into_iter().find(|hash| hash.len_bytes().to_string() == text);
    found.ok_or_else(|| "write 32, 48 or 64".to_owned())
}

/// `nvme gen-tls-key`.
#[derive(Args, Debug)]
#[command(
    after_help = "What it prints is secret: write it to a file that its owner alone may read. Targets and hosts of
others take the same text.

Examples:
  straightway nvme gen-tls-key > tls.key
  straightway nvme gen-tls-key --hash sha384 --json"
)]
pub struct NvmeGenTlsKey {
    /// The hash of the key and of its connections: sha256 (AES-128-GCM) or sha384 (AES-256-GCM)
    #[arg(long, default_value = "sha256", value_parser = parse_suite)]
    pub hash: Suite,
}

fn parse_suite(text: &str) -> Result<Suite, String> {
    let found = Suite::ALL.into_iter().find(|suite| suite.hash().name() == text);
    found.ok_or_else(|| "write sha256 or sha384".to_owned())
}

/// TLS of a host.
#[derive(Args, Debug)]
pub struct HostTls {
    /// The file of the key for TLS, which the services must have then
    #[arg(long, value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// How the key is named and made: v1, v0, v1-compat or v0-compat
    #[arg(long, default_value = "v1", value_parser = parse_form, requires = "tls_key_file")]
    pub tls_identity: Form,
}

fn parse_form(text: &str) -> Result<Form, String> {
    Form::of_name(text).ok_or_else(|| "write v1, v0, v1-compat or v0-compat".to_owned())
}
