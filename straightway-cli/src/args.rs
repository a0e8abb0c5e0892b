//! The command line: every subcommand, option, default and example.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use straightway::{Destination, Error, PciAddress, Policy, Uri, parse_policy};
use sw_checkpoint::Verify;

use crate::{
    agent_args::Agent,
    cache_args::Cache,
    dataset_args::Dataset,
    machine_args::{Doctor, Topology},
    size,
    target_args::{HostTls, NvmeGenDhchapKey, NvmeGenTlsKey, Target, Wire},
};

const ABOUT: &str =
    "Moves dataset and checkpoint bytes between storage and GPU memory, and tells which path every byte took.";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 permission, 5 policy unmet,
6 verification failed, 7 no space, 8 unsupported or no device, 9 system limit,
10 in use or exists, 11 malformed data, 130 interrupted, 141 reader of stdout gone.

Addresses: /path, file:///path, nvme://PCI-ADDRESS/NSID, nvme+tcp://HOST:PORT/NQN?nsid=N,
nvme+rdma://HOST:PORT/NQN?nsid=N (with &device=NAME, &gid=N, or &fabric=emulated), stripe:UNIT:ADDRESS,ADDRESS,...
A part of one: file:///path?offset=N&len=N, nvme://0000:3b:00.0/1?offset=1MiB

Examples:
  straightway demo
  straightway plan /data/model.safetensors --into gpu0
  straightway load /data/model --json";

/// The command.
#[derive(Parser, Debug)]
#[command(name = "straightway", version, about = ABOUT, after_help = EXIT_CODES, arg_required_else_help = false)]
pub struct Cli {
    /// What all subcommands share.
    #[command(flatten)]
    pub common: Common,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Args, Debug)]
pub struct Common {
    /// Print JSON on stdout: one object a line, each with its schema (docs/json.md)
    #[arg(long, global = true, display_order = 101)]
    pub json: bool,
    /// Draw no progress bars, even if stderr is a terminal
    #[arg(long, global = true, display_order = 102)]
    pub no_progress: bool,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make data, load it, verify every byte, and explain each route
    Demo(Demo),
    /// Tell what this machine can do, and what to change
    Doctor(Doctor),
    /// Tell which NIC and which drives are near which GPU, and why
    Topology(Topology),
    /// Tell which route a read or write would take, and why not a better one
    Plan(Plan),
    /// List what is at an address
    Ls(Ls),
    /// Tell kind, length, version and ways of an object
    Stat(Stat),
    /// Write the exact bytes of an object to stdout
    Cat(Cat),
    /// Copy an object: complete and verified under its name, or not there
    Cp(Cp),
    /// Tell, fill and empty a cache of remote objects
    #[command(subcommand)]
    Cache(Cache),
    /// Load a checkpoint into host or GPU memory
    Load(Load),
    /// Show, verify, compare and convert checkpoints
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Index, list and verify the samples of datasets
    #[command(subcommand)]
    Dataset(Dataset),
    /// Measure reads or writes beside the machine's own ceiling
    #[command(subcommand)]
    Bench(Bench),
    /// Show NVMe controllers; give one to this program or back to the kernel
    #[command(subcommand)]
    Nvme(Nvme),
    /// Offer files and memory to other machines by NVMe over TCP
    Target(Target),
    /// Open things for hosts that have no credentials and no libraries for them
    #[command(subcommand)]
    Agent(Agent),
    /// Run the suites of the test bed on this machine's own devices
    Hwtest(Hwtest),
    /// Print a completion script for a shell
    Completions(Completions),
}

/// How the engine is built.
#[derive(Args, Debug, Clone, Default)]
pub struct EngineArgs {
    /// Options of the engine: reactors, queue_depth, io_bytes, staging_bytes, staging=BYTESxCOUNT, ops_per_lane,
    /// keep_bytes, sqpoll_ms, iopoll=on|off, gpu=auto|off, io_uring=auto|off, nvme=auto|off, nvme_backend=auto|type1|iommufd|noiommu,
    /// nvme_completion=polled|interrupt|hybrid, nvme_tcp_digests=none|header|data|both, nvme_tcp_paths=all|first, nvme_tcp_keep_alive_ms, nvme_tcp_patience_ms,
    /// nvme_tcp_timeout_ms, nvme_rdma_registrations=kept|per-command,
    /// nvme_tcp_dhchap_key_file=FILE, nvme_tcp_dhchap_ctrl_key_file=FILE,
    /// nvme_tcp_dhchap_hashes=sha256+sha384+sha512, nvme_tcp_dhchap_groups=ffdhe2048+...+null, nvme_tcp_tls=off|required, nvme_tcp_tls_key_file=FILE,
    /// nvme_tcp_tls_identity=v1|v0|v1-compat|v0-compat, nvme_tcp_tls_kernel=auto|off|required, cache_dir=PATH, cache_bytes,
    /// cache_verify=first|always, cache_block_bytes, cache_fill_bytes, cache_max_age=TIME, cache_max_age_above, cufile=on-request|prefer|off, cufile_library=FILE
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', display_order = 100)]
    pub engine: Vec<String>,
}

/// `demo`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway demo
  straightway demo --dir /mnt/nvme --size 1GiB --into gpu0
  straightway demo --dir /data --keep --json")]
pub struct Demo {
    /// An existing directory for the files [default: TMPDIR, else /tmp]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Bytes to write in all, 16MiB or more
    #[arg(long, default_value = "256MiB", value_parser = size::parse_positive)]
    pub size: u64,
    /// Where to load: auto (GPU memory if there is a GPU), host or gpuN
    #[arg(long, default_value = "auto", value_parser = parse_auto)]
    pub into: Auto,
    /// Keep the files
    #[arg(long)]
    pub keep: bool,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `plan`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway plan /data/file
  straightway plan /data/file --into gpu0 --policy require=dma
  straightway plan /dev/nvme0n1 --into p2pmem:0000:3b:00.0
  straightway plan stripe:1MiB:/mnt/a/f,/mnt/b/f --verb write")]
pub struct Plan {
    /// The object
    #[arg(value_parser = parse_uri)]
    pub uri: Uri,
    /// Where the bytes go: host, gpuN, bar:PCI-ADDRESS/N or p2pmem:PCI-ADDRESS
    #[arg(long, default_value = "host", value_parser = parse_into)]
    pub into: Destination,
    /// Routes that are accepted: any, prefer=ROUTE, require=ROUTE, require-core=ROUTE
    #[arg(long, default_value = "any", value_parser = parse_policy)]
    pub policy: Policy,
    /// Direction
    #[arg(long, value_enum, default_value_t = Direction::Read)]
    pub verb: Direction,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Read or write.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the object.
    Read,
    /// To the object.
    Write,
}

/// `ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway ls /data
  straightway ls s3://bucket/train/ --recursive --json")]
pub struct Ls {
    /// All below, at any depth, in the order of the names; directories are left out. As it comes: millions cost no more memory than thousands
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// What to list; an object lists itself
    #[arg(required = true, value_parser = parse_uri)]
    pub uris: Vec<Uri>,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `stat`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway stat /data/file
  straightway stat /dev/nvme0n1 --json")]
pub struct Stat {
    /// What to look at
    #[arg(required = true, value_parser = parse_uri)]
    pub uris: Vec<Uri>,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `cat`.
#[derive(Args, Debug)]
#[command(after_help = "With --json the report is one line on stderr: stdout carries the bytes.

Examples:
  straightway cat /data/file > copy
  straightway cat /data/file --offset 1GiB --len 4k | xxd")]
pub struct Cat {
    /// The object
    #[arg(value_parser = parse_uri)]
    pub uri: Uri,
    /// First byte
    #[arg(long, default_value = "0", value_parser = size::parse)]
    pub offset: u64,
    /// Bytes [default: all from the offset on]
    #[arg(long, value_parser = size::parse)]
    pub len: Option<u64>,
    /// Routes that are accepted: any, prefer=ROUTE, require=ROUTE, require-core=ROUTE
    #[arg(long, default_value = "any", value_parser = parse_policy)]
    pub policy: Policy,
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How much is under way at a time.
#[derive(Args, Debug, Clone, Copy)]
pub struct Pipeline {
    /// Bytes of one piece
    #[arg(long, default_value = "1MiB", value_name = "SIZE", value_parser = parse_piece)]
    pub piece: u64,
    /// Pieces under way at a time, 1 to 256; memory is at most this many pieces
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub depth: u16,
}

/// `cp`.
#[derive(Args, Debug)]
#[command(
    after_help = "The copy is written under a hidden name, read back, compared by CRC-64 with the source, made durable and
then renamed: DST is the old file or the whole new one, never half. A namespace and a part of an object are written in
place, and for a namespace DST must name the controller's serial number.

Examples:
  straightway cp /data/a /scratch/a
  straightway cp --resume /mnt/nfs/model.safetensors /scratch/
  straightway cp stripe:1MiB:/mnt/a/f,/mnt/b/f /scratch/f
  straightway cp model.safetensors 'nvme://0000:3b:00.0/1?serial=S64XNE0R&offset=1MiB'"
)]
pub struct Cp {
    /// The source
    #[arg(value_parser = parse_uri)]
    pub src: Uri,
    /// The destination: a file that may exist, or an existing directory
    #[arg(value_parser = parse_uri)]
    pub dst: Uri,
    /// Keep what is done when interrupted, and go on from there next time
    #[arg(long)]
    pub resume: bool,
    /// Do not read the destination back
    #[arg(long)]
    pub no_verify: bool,
    /// Routes that are accepted: any, prefer=ROUTE, require=ROUTE, require-core=ROUTE
    #[arg(long, default_value = "any", value_parser = parse_policy)]
    pub policy: Policy,
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `load`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway load model.safetensors
  straightway load /data/model --into gpu0 --tensors 'model.layers.0.*,lm_head.weight'
  straightway load /data/step-1000 --verify require
  straightway load /data/model/model.safetensors.index.json --digest --json")]
pub struct Load {
    /// A safetensors file, an index.json, a file of torch.save, a directory of torch.distributed.checkpoint or Megatron, a
    /// directory that holds one of the files, or another object with the bytes of one
    #[arg(value_parser = parse_uri)]
    pub checkpoint: Uri,
    /// Where the bytes go: host, gpuN, bar:PCI-ADDRESS/N or p2pmem:PCI-ADDRESS
    #[arg(long, default_value = "host", value_parser = parse_into)]
    pub into: Destination,
    /// Names to load: a comma list of globs with * and ?
    #[arg(long, value_name = "PATTERN")]
    pub tensors: Option<String>,
    /// Compute the SHA-256 of each tensor's bytes
    #[arg(long)]
    pub digest: bool,
    /// Comparing the checksums that lie beside the checkpoint: auto where they are and it costs little, off, or require for
    /// every byte
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    pub verify: LoadVerify,
    /// Routes that are accepted: any, prefer=ROUTE, require=ROUTE, require-core=ROUTE
    #[arg(long, default_value = "any", value_parser = parse_policy)]
    pub policy: Policy,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Whether `load` compares checksums.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LoadVerify {
    /// Where they are and it costs little.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Every byte that is loaded.
    Require,
}

impl From<LoadVerify> for Verify {
    fn from(verify: LoadVerify) -> Self {
        match verify {
            LoadVerify::Auto => Self::Auto,
            LoadVerify::Off => Self::Off,
            LoadVerify::Require => Self::Require,
        }
    }
}

/// `checkpoint`.
#[derive(Subcommand, Debug)]
#[command(
    arg_required_else_help = false,
    after_help = "Formats: safetensors (one file, shards with an index, shards of a distributed export), torch.save,
torch.distributed.checkpoint (DCP), Megatron torch_dist. Pickles are read by an unpickler that runs nothing.

Examples:
  straightway checkpoint show /data/step-1000
  straightway checkpoint verify model.pt
  straightway checkpoint diff step-1000 model.safetensors
  straightway checkpoint convert step-1000 --to safetensors --out /data/model
  straightway checkpoint clean /checkpoints/run-7"
)]
pub enum CheckpointCommand {
    /// List files, tensors and other values, without reading a tensor
    Show(CheckpointShow),
    /// Read every byte and compare the checksums that are stored
    Verify(CheckpointVerify),
    /// Compare names, types, shapes and bytes of the tensors; exit code 1 if they differ
    Diff(CheckpointDiff),
    /// Write the tensors in another format, a bounded part at a time
    Convert(CheckpointConvert),
    /// Remove what dead writers of checkpoints left in a directory
    Clean(CheckpointClean),
}

/// `checkpoint show`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway checkpoint show model.pt
  straightway checkpoint show /data/step-1000 --json")]
pub struct CheckpointShow {
    /// The checkpoint
    #[arg(value_parser = parse_uri)]
    pub checkpoint: Uri,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `checkpoint verify`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway checkpoint verify model.pt
  straightway checkpoint verify /data/step-1000 --json")]
pub struct CheckpointVerify {
    /// The checkpoint
    #[arg(value_parser = parse_uri)]
    pub checkpoint: Uri,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `checkpoint diff`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway checkpoint diff step-1000 step-2000
  straightway checkpoint diff model.pt model.safetensors --json")]
pub struct CheckpointDiff {
    /// One checkpoint
    #[arg(value_parser = parse_uri)]
    pub first: Uri,
    /// The other, of the same format or another one
    #[arg(value_parser = parse_uri)]
    pub second: Uri,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `checkpoint convert`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway checkpoint convert model.pt --to safetensors --out /data/model
  straightway checkpoint convert model.safetensors --to dcp --out /data/step-0
  straightway checkpoint convert step-1000 --to safetensors --out /data/model --shard-size 5GB --tensors 'model.*'")]
pub struct CheckpointConvert {
    /// The checkpoint
    #[arg(value_parser = parse_uri)]
    pub checkpoint: Uri,
    /// The format to write
    #[arg(long, value_enum)]
    pub to: ConvertTo,
    /// The directory to make; may be there if it is empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Names to write: a comma list of globs with * and ?
    #[arg(long, value_name = "PATTERN")]
    pub tensors: Option<String>,
    /// Most tensor bytes of a file, for several files [default: one file]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    pub shard_size: Option<u64>,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `checkpoint clean`.
#[derive(Args, Debug)]
#[command(
    after_help = "Removes hidden directories of saves that ended before their commit, if their writer is provably gone.

Examples:
  straightway checkpoint clean /checkpoints/run-7"
)]
pub struct CheckpointClean {
    /// The directory that checkpoints are saved in
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// A format to write.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvertTo {
    /// A safetensors file, or shards with an index.
    Safetensors,
    /// A directory of torch.distributed.checkpoint.
    Dcp,
}

impl ConvertTo {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Dcp => "dcp",
        }
    }
}

/// `nvme`.
#[derive(Subcommand, Debug)]
#[command(
    arg_required_else_help = false,
    after_help = "Examples:
  straightway nvme list
  straightway nvme bind 0000:3b:00.0
  straightway cat nvme://0000:3b:00.0/1 --len 4k | xxd
  straightway nvme unbind 0000:3b:00.0
  straightway nvme discover 192.0.2.10
  straightway nvme gen-dhchap-key > /etc/nvme/one.key
  straightway nvme gen-tls-key > /etc/nvme/tls.key"
)]
pub enum Nvme {
    /// Show controllers, who drives them, who uses their namespaces, and what can be done
    List(NvmeList),
    /// Give a function to vfio-pci, so that this program can drive it; says every step first
    Bind(NvmeChange),
    /// Give a function back to the driver that had it before; says every step first
    Unbind(NvmeChange),
    /// Ask a discovery service which subsystems there are, and by which addresses
    Discover(NvmeDiscover),
    /// Make a key for authentication (DH-HMAC-CHAP), of random bytes, and print it
    GenDhchapKey(NvmeGenDhchapKey),
    /// Make a key for TLS, of random bytes, and print it
    GenTlsKey(NvmeGenTlsKey),
}

/// `nvme list`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway nvme list
  straightway nvme list --all --json")]
pub struct NvmeList {
    /// Every PCI function that is no bridge: any of them can lend a BAR as memory
    #[arg(long)]
    pub all: bool,
}

/// `nvme bind` and `nvme unbind`.
#[derive(Args, Debug)]
#[command(
    after_help = "A function whose namespaces are mounted, held or swap is refused, and so is one whose IOMMU group has
other functions that the kernel drives.

Examples:
  straightway nvme bind 0000:3b:00.0 --dry-run
  straightway nvme bind 0000:3b:00.0 --yes
  straightway nvme unbind 0000:3b:00.0 --yes"
)]
pub struct NvmeChange {
    /// The PCI address, as nvme list prints it
    pub address: PciAddress,
    /// Say the steps and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `nvme discover`.
#[derive(Args, Debug)]
#[command(
    after_help = "Other services that it refers to are asked too. The addresses name namespace 1; a subsystem may have others.

Examples:
  straightway nvme discover 192.0.2.10
  straightway nvme discover '[2001:db8::10]:4420' --json
  straightway nvme discover 192.0.2.10:4420 --tls-key-file tls.key
  straightway nvme discover 192.0.2.10:4420 --rdma"
)]
pub struct NvmeDiscover {
    /// Name or address of the service; without a port 8009 and, if nobody listens there, 4420
    #[arg(value_name = "HOST[:PORT]", value_parser = parse_service)]
    pub service: ServiceAddress,
    #[command(flatten)]
    pub wire: Wire,
    #[command(flatten)]
    pub tls: HostTls,
}

/// Where a discovery service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// A name or an address; one of IPv6 in brackets.
    pub host: String,
    /// The port, if one is written.
    pub port: Option<u16>,
}

fn parse_service(text: &str) -> Result<ServiceAddress, String> {
    // The colons of an address of IPv6 are inside its brackets.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port @ 1..)) => Some(port),
        Some(_) => return Err("the port is 1 to 65535".to_owned()),
    };
    let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let inner = bare.unwrap_or(host);
    if inner.is_empty() || inner.contains(['[', ']', '/', '@']) || (bare.is_none() && inner.contains(':')) {
        return Err("write a name, an address, or an address of IPv6 in brackets, with :PORT if it has one".to_owned());
    }
    Ok(ServiceAddress { host: host.to_owned(), port })
}

/// `bench`.
#[derive(Subcommand, Debug)]
#[command(
    arg_required_else_help = false,
    after_help = "Examples:
  straightway bench read /data/file --size 4k --depth 1,32 --random
  straightway bench write /scratch/bench.tmp --time 5s"
)]
pub enum Bench {
    /// Measure reads of an existing file or block device
    Read(BenchRead),
    /// Measure writes to a file of the bench's own
    Write(BenchWrite),
}

/// `bench read`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway bench read /data/file
  straightway bench read /data/file --size 4k --depth 1,32,128 --random --time 5s
  straightway bench read /data/file --size 1MiB --depth 16 --offset-shift 511 --json")]
pub struct BenchRead {
    /// The object
    #[arg(value_parser = parse_uri)]
    pub uri: Uri,
    /// Where the bytes go: host, gpuN, bar:PCI-ADDRESS/N or p2pmem:PCI-ADDRESS
    #[arg(long, default_value = "host", value_parser = parse_into)]
    pub into: Destination,
    /// What is measured.
    #[command(flatten)]
    pub load: Workload,
}

/// `bench write`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway bench write /scratch/bench.tmp
  straightway bench write /scratch/bench.tmp --size 4k,1MiB --depth 16 --time 5s --verify
  straightway bench write /scratch/pattern --file-size 1GiB --verify --keep")]
pub struct BenchWrite {
    /// The file to make; it is removed afterwards
    #[arg(value_parser = parse_uri)]
    pub uri: Uri,
    /// Where the bytes come from: host, gpuN, bar:PCI-ADDRESS/N or p2pmem:PCI-ADDRESS
    #[arg(long, default_value = "host", value_parser = parse_into)]
    pub into: Destination,
    /// Length of the file
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = size::parse_positive)]
    pub file_size: u64,
    /// Replace what is there
    #[arg(long)]
    pub overwrite: bool,
    /// Keep the file
    #[arg(long)]
    pub keep: bool,
    /// What is measured.
    #[command(flatten)]
    pub load: Workload,
}

/// What a bench does.
#[derive(Args, Debug, Clone)]
pub struct Workload {
    /// Bytes of one operation, a list
    #[arg(long, default_value = "1MiB", value_name = "SIZES", value_delimiter = ',', value_parser = parse_piece)]
    pub size: Vec<u64>,
    /// Operations under way in one job, a list, each 1 to 1024
    #[arg(long, default_value = "16", value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: Vec<u32>,
    /// Threads, each with a queue of its own, 1 to 64
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Offsets in random order
    #[arg(long, conflicts_with = "sequential")]
    pub random: bool,
    /// Offsets in order; the default
    #[arg(long)]
    pub sequential: bool,
    /// Added to every offset, so that operations are not aligned
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = size::parse)]
    pub offset_shift: u64,
    /// Compare every byte with a pattern: `bench write` writes it first, `bench read` wants it there
    #[arg(long)]
    pub verify: bool,
    /// Time of one measurement
    #[arg(long, default_value = "3s", value_parser = size::parse_duration, conflicts_with = "bytes")]
    pub time: Duration,
    /// Bytes of one measurement, instead of a time
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    pub bytes: Option<u64>,
    /// Start of the random numbers and of the pattern
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Do not measure the ceilings
    #[arg(long)]
    pub no_ceiling: bool,
    /// Routes that are accepted: any, prefer=ROUTE, require=ROUTE, require-core=ROUTE
    #[arg(long, default_value = "prefer=dma", value_parser = parse_policy)]
    pub policy: Policy,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `hwtest`.
#[derive(Args, Debug)]
#[command(
    after_help = "The tests are in a program of their own: cargo build --release -p straightway-guest. A test that
writes to a device, resets it or takes it from its driver runs only with --destructive, on a device whose serial is in the
profile and matches, and that nobody uses. The profile is explained in docs/hardware.md.

Examples:
  straightway hwtest --profile machine.json
  straightway hwtest --profile machine.json --only vfio.identify --destructive
  straightway hwtest --profile machine.json --destructive --record record.json"
)]
pub struct Hwtest {
    /// The file that names this machine's devices by role
    #[arg(long, value_name = "FILE")]
    pub profile: PathBuf,
    /// Also run tests that destroy data on the devices whose serial is in the profile
    #[arg(long)]
    pub destructive: bool,
    /// Only tests whose name, SUITE.TEST, has this in it
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Write the record of the run, a JSON document, to a file
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// `completions`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway completions bash > /etc/bash_completion.d/straightway
  straightway completions zsh > ~/.zfunc/_straightway")]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// A destination, or the best that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto {
    /// GPU memory if there is a GPU.
    Auto,
    /// That one.
    Fixed(Destination),
}

/// Longest piece: what one operation of the command line moves at most, in bytes.
const PIECE_BYTES_MAX: u64 = 1 << 30;

fn parse_piece(text: &str) -> Result<u64, String> {
    match size::parse_positive(text)? {
        bytes if bytes > PIECE_BYTES_MAX => Err(format!("`{text}` is over the limit of 1GiB for one operation")),
        bytes => Ok(bytes),
    }
}

fn parse_uri(text: &str) -> Result<Uri, Error> {
    text.parse()
}

fn parse_into(text: &str) -> Result<Destination, Error> {
    text.parse()
}

fn parse_auto(text: &str) -> Result<Auto, Error> {
    if text == "auto" { Ok(Auto::Auto) } else { parse_into(text).map(Auto::Fixed) }
}
