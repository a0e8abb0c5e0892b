//! How an engine is made.

use std::{path::PathBuf, time::Duration};

use sw_engine::{Error, ErrorKind, Verb};

use sw_cache::CacheConfig;

use crate::{Engine, backends::CuFileSource, caches, keys::NvmeTcpKeys, parse_bytes, remotes::Remote};

/// Whether the GPU driver is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GpuUse {
    /// When a GPU is first asked for.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Whether io_uring is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UringUse {
    /// Where the kernel allows it.
    #[default]
    Auto,
    /// Never: the thread pool moves files.
    Off,
}

/// How the ends of direct I/Os by io_uring are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UringCompletion {
    /// By interrupt: a lane that waits sleeps.
    #[default]
    Interrupt,
    /// By asking the device (`IORING_SETUP_IOPOLL`): one core is busy while a lane waits.
    Polled,
}

/// Whether NVMe controllers that are bound to vfio-pci are driven by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NvmeUse {
    /// When an address names one.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// How controllers and peers are opened and memory is mapped for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NvmeBackend {
    /// A VFIO container of type 1 where there is one, else iommufd.
    #[default]
    Auto,
    /// A VFIO container of type 1.
    Type1,
    /// iommufd.
    Iommufd,
    /// Without an IOMMU: the device can reach all memory of the machine. Never chosen by itself.
    NoIommu,
}

/// How completions of controllers are noticed by a lane that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeCompletion {
    /// By looking all the time: lowest latency, one core busy while something is in flight.
    Polled,
    /// By interrupt.
    Interrupt,
    /// By looking for so long, then by interrupt.
    Hybrid(Duration),
}

impl Default for NvmeCompletion {
    /// 50 microseconds of looking, then the interrupt: a fast drive answers within it, a slow one costs no core.
    fn default() -> Self {
        Self::Hybrid(Duration::from_micros(50))
    }
}

/// Which digests are asked for on connections of NVMe over TCP: a CRC-32C beside what TCP has. The target may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NvmeTcpDigests {
    /// None.
    #[default]
    None,
    /// Of headers.
    Header,
    /// Of data.
    Data,
    /// Both.
    Both,
}

/// How the memory of commands over RDMA is registered; see decision record 0020.
pub use sw_net::Registering as RdmaRegistering;

/// By which of several paths to a subsystem I/Os go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NvmeTcpPaths {
    /// By all that stand best, each by that with the fewest commands of its lane under way.
    #[default]
    All,
    /// By the first that stands best, in the order of the address.
    First,
}

/// How subsystems behind TCP and RDMA are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeTcp {
    /// Digests.
    pub digests: NvmeTcpDigests,
    /// The target gives the host up after so long without a sign of life, and a sign is sent twice in it. 100 ms to an hour; 10 s.
    pub keep_alive: Duration,
    /// How long a lost association is tried to be made again, while reads wait; 60 s.
    pub patience: Duration,
    /// How long a connection, or an answer of the control plane, may take. 10 ms to an hour; 10 s.
    pub timeout: Duration,
    /// Over RDMA: how the memory of commands is registered. Kept.
    pub registering: RdmaRegistering,
    /// By which of several paths I/Os go.
    pub paths: NvmeTcpPaths,
}

impl Default for NvmeTcp {
    fn default() -> Self {
        Self {
            digests: NvmeTcpDigests::None,
            keep_alive: Duration::from_secs(10),
            patience: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            registering: RdmaRegistering::Kept,
            paths: NvmeTcpPaths::All,
        }
    }
}

/// When NVIDIA's own libcufile moves the bytes of local files.
///
/// It decides by itself how they go and does not tell, so they count as copied by the kernel, with the reason
/// [`VendorDecides`](crate::Reason::VendorDecides); see `docs/cufile.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CuFileUse {
    /// Where a policy names the transport `cufile`. Before that it is not loaded, but by [`Engine::doctor`](crate::Engine::doctor).
    #[default]
    OnRequest,
    /// There, and wherever the policy is [`Policy::Any`](crate::Policy::Any), as if that were `prefer=cufile`.
    Prefer,
    /// Never, by the doctor neither.
    Off,
}

/// What an engine is made with. Every field has its unit, range and reason in the builder's methods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) reactors: u32,
    pub(crate) queue_depth: u32,
    pub(crate) io_bytes: u32,
    pub(crate) staging_bytes: u64,
    pub(crate) staging: Option<(u32, u32)>,
    pub(crate) ops_per_lane: u32,
    pub(crate) keep_bytes: u64,
    pub(crate) sqpoll_ms: Option<u32>,
    pub(crate) uring_completion: UringCompletion,
    pub(crate) gpu: GpuUse,
    pub(crate) io_uring: UringUse,
    pub(crate) nvme: NvmeUse,
    pub(crate) nvme_backend: NvmeBackend,
    pub(crate) nvme_completion: NvmeCompletion,
    pub(crate) nvme_tcp: NvmeTcp,
    pub(crate) cufile: CuFileUse,
}

/// `Config::io_bytes` unless it is set, or half of the staging is less.
const IO_BYTES: u32 = 2 << 20;

/// `Config::io_bytes` at least.
const IO_BYTES_MIN: u32 = 64 << 10;

/// `Config::io_bytes` where it is not set, beside that much staging; too little staging is told as that.
fn io_bytes_beside(staging_bytes: u64) -> u32 {
    let half = u32::try_from(staging_bytes / 2).unwrap_or(u32::MAX).max(1);
    IO_BYTES.min(1 << half.ilog2()).max(IO_BYTES_MIN)
}

/// Builds an [`Engine`].
///
/// ```
/// let engine = straightway::Engine::builder().queue_depth(32).build()?;
/// # Ok::<(), straightway::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EngineBuilder {
    config: Config,
    /// `Config::io_bytes`, if it was set.
    io_bytes: Option<u32>,
    /// Which libcufile.
    cufile_library: CuFileSource,
    /// What shows subsystems behind TCP who this host is.
    keys: NvmeTcpKeys,
    /// How object stores are reached.
    remote: Remote,
    /// Where their bytes are kept; nowhere, if that has no name.
    cache: CacheConfig,
}

impl Default for EngineBuilder {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            io_bytes: None,
            cufile_library: CuFileSource::Search,
            keys: NvmeTcpKeys::default(),
            remote: Remote::default(),
            cache: CacheConfig::new(PathBuf::new(), 0),
            config: Config {
                // More reactors than drives only share them; four feed a modern drive from the page cache.
                reactors: u32::try_from(cores.clamp(1, 4)).unwrap_or(1),
                queue_depth: 64,
                io_bytes: IO_BYTES,
                staging_bytes: 32 << 20,
                staging: None,
                ops_per_lane: 256,
                keep_bytes: 0,
                sqpoll_ms: None,
                uring_completion: UringCompletion::default(),
                gpu: GpuUse::Auto,
                io_uring: UringUse::Auto,
                nvme: NvmeUse::Auto,
                nvme_backend: NvmeBackend::Auto,
                nvme_completion: NvmeCompletion::default(),
                nvme_tcp: NvmeTcp::default(),
                cufile: CuFileUse::default(),
            },
        }
    }
}

impl EngineBuilder {
    #[cfg(test)]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Threads that move bytes of operations that were started and not waited for. 1 to 64; default: one a core, at most 4.
    #[must_use]
    pub fn reactors(mut self, count: u32) -> Self {
        self.config.reactors = count;
        self
    }

    /// I/Os in flight on each device, of each lane. 1 to 4096; default 64. A lane has room for four devices, so that one that
    /// does not answer does not hold up the others.
    #[must_use]
    pub fn queue_depth(mut self, depth: u32) -> Self {
        self.config.queue_depth = depth;
        self
    }

    /// Bytes of one I/O at most: a power of two from 64 KiB to 64 MiB; default 2 MiB, or less where
    /// half the staging is less. Larger ones measured no faster; with 1 MiB, a read of 1 MiB from an odd place on is two
    /// I/Os, and 5 to 10 % slower.
    #[must_use]
    pub fn io_bytes(mut self, bytes: u32) -> Self {
        self.io_bytes = Some(bytes);
        self
    }

    /// Bytes of staging slabs of each lane that feeds a GPU. At least two I/Os; default 32 MiB. The size of the slabs is
    /// measured when a GPU is first used (under 50 ms; [`Engine::inspect`] tells the choice); as many as fit are made.
    #[must_use]
    pub fn staging_bytes(mut self, bytes: u64) -> Self {
        self.config.staging_bytes = bytes;
        self
    }

    /// Fixes the staging slabs of each lane that feeds a GPU instead of measuring: `count` (2 to 1024) slabs of
    /// `slab_bytes` (a power of two from 64 KiB to 64 MiB, at most one I/O). `staging_bytes` is not looked at then.
    #[must_use]
    pub fn staging(mut self, slab_bytes: u32, count: u32) -> Self {
        self.config.staging = Some((slab_bytes, count));
        self
    }

    /// Operations in flight on each lane. 1 to 65,536; default 256.
    #[must_use]
    pub fn ops_per_lane(mut self, ops: u32) -> Self {
        self.config.ops_per_lane = ops;
        self
    }

    /// Bytes of freed host memory that are kept for the next [`Engine::allocate`]. Default 0.
    ///
    /// Fresh memory costs most of the CPU time of a load (the kernel zeroes it); kept memory costs none, and is *not*
    /// zeroed. It counts towards the process's memory while it is kept.
    #[must_use]
    pub fn keep_bytes(mut self, bytes: u64) -> Self {
        self.config.keep_bytes = bytes;
        self
    }

    /// Lets a kernel thread take submissions, asleep after so many idle milliseconds. Default off: it burns a core.
    #[must_use]
    pub fn sqpoll(mut self, idle_ms: u32) -> Self {
        self.config.sqpoll_ms = Some(idle_ms);
        self
    }

    /// How the ends of direct I/Os by io_uring are noticed. Default by interrupt.
    ///
    /// Polled, the device needs poll queues (`/sys/block/NAME/queue/io_poll` is 1), else its direct I/Os and NVMe commands end
    /// as `Unsupported`: it is not driven by interrupts instead. The page cache, flushes and the thread pool are as ever. Not
    /// together with [`EngineBuilder::sqpoll`].
    #[must_use]
    pub fn uring_completion(mut self, completion: UringCompletion) -> Self {
        self.config.uring_completion = completion;
        self
    }

    /// Whether GPUs are used.
    #[must_use]
    pub fn gpu(mut self, gpu: GpuUse) -> Self {
        self.config.gpu = gpu;
        self
    }

    /// Whether io_uring is used.
    #[must_use]
    pub fn io_uring(mut self, io_uring: UringUse) -> Self {
        self.config.io_uring = io_uring;
        self
    }

    /// Whether NVMe controllers are driven by the engine.
    #[must_use]
    pub fn nvme(mut self, nvme: NvmeUse) -> Self {
        self.config.nvme = nvme;
        self
    }

    /// How controllers are opened and memory is mapped for them.
    #[must_use]
    pub fn nvme_backend(mut self, backend: NvmeBackend) -> Self {
        self.config.nvme_backend = backend;
        self
    }

    /// How completions of controllers are noticed.
    #[must_use]
    pub fn nvme_completion(mut self, completion: NvmeCompletion) -> Self {
        self.config.nvme_completion = completion;
        self
    }

    /// How subsystems behind TCP and RDMA are connected.
    #[must_use]
    pub fn nvme_tcp(mut self, nvme_tcp: NvmeTcp) -> Self {
        self.config.nvme_tcp = nvme_tcp;
        self
    }

    /// What shows subsystems behind TCP who this host is, what they must show, and TLS with them. Default: nothing.
    #[must_use]
    pub fn nvme_tcp_keys(mut self, keys: NvmeTcpKeys) -> Self {
        self.keys = keys;
        self
    }

    /// How object stores are reached.
    #[must_use]
    pub fn remote(mut self, remote: Remote) -> Self {
        self.remote = remote;
        self
    }

    /// Keeps bytes of remote objects in a directory on a local disk. Default: nowhere. The directory is opened with the first remote
    /// object; where that fails, objects are read without, and [`Engine::cache`] says why.
    #[must_use]
    pub fn cache(mut self, cache: CacheConfig) -> Self {
        self.cache = cache;
        self
    }

    /// When NVIDIA's own libcufile is used. Default: on request.
    #[must_use]
    pub fn cufile(mut self, cufile: CuFileUse) -> Self {
        self.config.cufile = cufile;
        self
    }

    /// The file of NVIDIA's own libcufile, instead of what the loader finds by its usual names. Straightway's drop-in is refused.
    #[must_use]
    pub fn cufile_library(mut self, file: impl Into<PathBuf>) -> Self {
        self.cufile_library = CuFileSource::File(file.into());
        self
    }

    /// Checks everything once and makes the engine. Its threads and rings come with the first operation that needs them.
    ///
    /// # Errors
    /// `ApiMisuse` for a value out of range.
    pub fn build(mut self) -> Result<Engine, Error> {
        self.config.io_bytes = self.io_bytes.unwrap_or_else(|| io_bytes_beside(self.config.staging_bytes));
        let Config { reactors, queue_depth, io_bytes, staging_bytes, ops_per_lane, .. } = self.config;
        let wrong = |detail: String| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).detail(detail));
        if !(1..=64).contains(&reactors) {
            return wrong(format!("{reactors} reactors; use 1 to 64"));
        }
        if !(1..=4096).contains(&queue_depth) {
            return wrong(format!("a queue depth of {queue_depth}; use 1 to 4096"));
        }
        if !io_bytes.is_power_of_two() || !(IO_BYTES_MIN..=64 << 20).contains(&io_bytes) {
            return wrong(format!("I/Os of {io_bytes} bytes; use a power of two from 64 KiB to 64 MiB"));
        }
        if staging_bytes < 2 * u64::from(io_bytes) {
            return wrong(format!("{staging_bytes} bytes of staging; use at least two I/Os of {io_bytes}"));
        }
        if let Some((slab_bytes, count)) = self.config.staging {
            let slab_fits = slab_bytes.is_power_of_two() && (64 << 10..=io_bytes).contains(&slab_bytes);
            if !slab_fits || !(2..=1024).contains(&count) {
                return wrong(format!(
                    "{count} staging slabs of {slab_bytes} bytes; use 2 to 1024, of a power of two from 64 KiB to one I/O of {io_bytes}"
                ));
            }
        }
        if self.config.uring_completion == UringCompletion::Polled && self.config.sqpoll_ms.is_some() {
            return wrong("iopoll and sqpoll_ms are not offered together; choose one".to_owned());
        }
        let NvmeTcp { keep_alive, timeout, .. } = self.config.nvme_tcp;
        let hour = Duration::from_secs(3600);
        if !(Duration::from_millis(100)..=hour).contains(&keep_alive) {
            return wrong(format!("signs of life to NVMe targets every {keep_alive:?}; use 100 ms to an hour"));
        }
        if !(Duration::from_millis(10)..=hour).contains(&timeout) {
            return wrong(format!("{timeout:?} for answers of NVMe targets; use 10 ms to an hour"));
        }
        if !(1..=1 << 16).contains(&ops_per_lane) {
            return wrong(format!("{ops_per_lane} operations a lane; use 1 to 65,536"));
        }
        if let Err(why) = self.keys.check() {
            return wrong(why.to_owned());
        }
        if let Err(why) = self.remote.check() {
            return wrong(why);
        }
        let cache = (!self.cache.dir.as_os_str().is_empty()).then_some(self.cache);
        if let Some(why) = cache.as_ref().and_then(|cache| cache.check().err()) {
            return wrong(why);
        }
        Ok(Engine::make(self.config, self.cufile_library, self.keys, (self.remote, cache)))
    }

    /// Sets one option by the name that the command line uses, as `queue_depth=128` or `staging_bytes=64MiB`.
    ///
    /// # Errors
    /// `ApiMisuse` for an unknown name or a value that does not parse; those of
    /// [`read_secrets`](crate::authentication::read_secrets) and [`read_psks`](crate::tls::read_psks) for a file that has no key.
    pub fn set(mut self, name: &str, value: &str) -> Result<Self, Error> {
        // The value is not shown: it may be a password that is named wrongly.
        let wrong = || {
            Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .detail(format!("{name} is no option of an engine, or has no such value"))
                .remedy("use reactors, queue_depth, io_bytes, staging_bytes, staging=BYTESxCOUNT, ops_per_lane, keep_bytes, sqpoll_ms, iopoll=on|off, gpu=auto|off, io_uring=auto|off, nvme=auto|off, nvme_backend=auto|type1|iommufd|noiommu, nvme_completion=polled|interrupt|hybrid, nvme_tcp_digests=none|header|data|both, nvme_tcp_paths=all|first, nvme_tcp_keep_alive_ms, nvme_tcp_patience_ms, nvme_tcp_timeout_ms, nvme_rdma_registrations=kept|per-command, nvme_tcp_dhchap_key_file=FILE, nvme_tcp_dhchap_ctrl_key_file=FILE, nvme_tcp_dhchap_hashes=sha256+sha384+sha512, nvme_tcp_dhchap_groups=ffdhe2048+…+null, nvme_tcp_tls=off|required, nvme_tcp_tls_key_file=FILE, nvme_tcp_tls_identity=v1|v0|v1-compat|v0-compat, nvme_tcp_tls_kernel=auto|off|required, s3_endpoint=URL, s3_region, s3_virtual_host=on|off, s3_anonymous=on|off, ais_endpoint=URL, ais_batch=on|off, alluxio_user=NAME, hdfs_user=NAME, hdfs_conf_dir=PATH, remote_ca_file=FILE, remote_patience_ms, remote_timeout_ms, remote_requests, remote_part_bytes, remote_upload_bytes, remote_environment=on|off, nfs_port, nfs_mount_port, nfs_export=PATH, nfs_uid, nfs_gid, nfs_connections, ceph_conf=FILE, ceph_user=NAME, ceph_libraries=FOLDER, daos_system=NAME, daos_libraries=FOLDER, juicefs_bucket=URL, juicefs_meta_user=NAME, milvus_root=s3://BUCKET/ROOT, milvus_token=USER:PASSWORD, agent_key_file=FILE, cache_dir=PATH, cache_bytes, cache_verify=first|always, cache_block_bytes, cache_fill_bytes, cache_max_age=TIME, cache_max_age_above, cufile=on-request|prefer|off, cufile_library=FILE")
        };
        let bytes = parse_bytes(value);
        let millis = || value.parse().map(Duration::from_millis).map_err(|_| wrong());
        let number = || bytes.and_then(|bytes| u32::try_from(bytes).ok()).ok_or_else(wrong);
        if let Some(rest) = name.strip_prefix("nvme_tcp_dhchap_") {
            self.keys.set(rest, value).ok_or_else(wrong)??;
            return Ok(self);
        }
        if let Some(rest) = name.strip_prefix("nvme_tcp_tls") {
            self.keys.tls.set(rest, value).ok_or_else(wrong)??;
            return Ok(self);
        }
        match (name, value) {
            ("reactors", _) => self.config.reactors = number()?,
            ("queue_depth", _) => self.config.queue_depth = number()?,
            ("io_bytes", _) => self.io_bytes = Some(number()?),
            ("staging_bytes", _) => self.config.staging_bytes = bytes.ok_or_else(wrong)?,
            ("staging", _) => {
                let (slab, count) = value.split_once('x').ok_or_else(wrong)?;
                let slab = parse_bytes(slab).and_then(|bytes| u32::try_from(bytes).ok()).ok_or_else(wrong)?;
                self.config.staging = Some((slab, count.parse().map_err(|_| wrong())?));
            }
            ("ops_per_lane", _) => self.config.ops_per_lane = number()?,
            ("keep_bytes", _) => self.config.keep_bytes = bytes.ok_or_else(wrong)?,
            ("sqpoll_ms", _) => self.config.sqpoll_ms = Some(number()?),
            ("iopoll", "on") => self.config.uring_completion = UringCompletion::Polled,
            ("iopoll", "off") => self.config.uring_completion = UringCompletion::Interrupt,
            ("gpu", "auto") => self.config.gpu = GpuUse::Auto,
            ("gpu", "off") => self.config.gpu = GpuUse::Off,
            ("io_uring", "auto") => self.config.io_uring = UringUse::Auto,
            ("io_uring", "off") => self.config.io_uring = UringUse::Off,
            ("nvme", "auto") => self.config.nvme = NvmeUse::Auto,
            ("nvme", "off") => self.config.nvme = NvmeUse::Off,
            ("nvme_backend", "auto") => self.config.nvme_backend = NvmeBackend::Auto,
            ("nvme_backend", "type1") => self.config.nvme_backend = NvmeBackend::Type1,
            ("nvme_backend", "iommufd") => self.config.nvme_backend = NvmeBackend::Iommufd,
            ("nvme_backend", "noiommu") => self.config.nvme_backend = NvmeBackend::NoIommu,
            ("nvme_completion", "polled") => self.config.nvme_completion = NvmeCompletion::Polled,
            ("nvme_completion", "interrupt") => self.config.nvme_completion = NvmeCompletion::Interrupt,
            ("nvme_completion", "hybrid") => self.config.nvme_completion = NvmeCompletion::default(),
            ("nvme_tcp_digests", "none") => self.config.nvme_tcp.digests = NvmeTcpDigests::None,
            ("nvme_tcp_digests", "header") => self.config.nvme_tcp.digests = NvmeTcpDigests::Header,
            ("nvme_tcp_digests", "data") => self.config.nvme_tcp.digests = NvmeTcpDigests::Data,
            ("nvme_tcp_digests", "both") => self.config.nvme_tcp.digests = NvmeTcpDigests::Both,
            ("nvme_tcp_keep_alive_ms", _) => self.config.nvme_tcp.keep_alive = millis()?,
            ("nvme_tcp_paths", "all") => self.config.nvme_tcp.paths = NvmeTcpPaths::All,
            ("nvme_tcp_paths", "first") => self.config.nvme_tcp.paths = NvmeTcpPaths::First,
            ("nvme_tcp_patience_ms", _) => self.config.nvme_tcp.patience = millis()?,
            ("nvme_rdma_registrations", "kept") => self.config.nvme_tcp.registering = RdmaRegistering::Kept,
            ("nvme_rdma_registrations", "per-command") => {
                self.config.nvme_tcp.registering = RdmaRegistering::PerCommand;
            }
            ("nvme_tcp_timeout_ms", _) => self.config.nvme_tcp.timeout = millis()?,
            _ if name.starts_with("cache_") => caches::set(&mut self.cache, name, value).ok_or_else(wrong)?,
            ("cufile", "on-request") => self.config.cufile = CuFileUse::OnRequest,
            ("cufile", "prefer") => self.config.cufile = CuFileUse::Prefer,
            ("cufile", "off") => self.config.cufile = CuFileUse::Off,
            ("cufile_library", file) if !file.is_empty() => return Ok(self.cufile_library(file)),
            _ => self.remote.set(name, value).ok_or_else(wrong)?,
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_is_at_most_half_of_the_staging_unless_it_is_set() {
        let sizes = [0, 1 << 10, 3 << 20, 4 << 20, 1 << 40].map(io_bytes_beside);
        assert_eq!(sizes, [IO_BYTES_MIN, IO_BYTES_MIN, 1 << 20, IO_BYTES, IO_BYTES]);
        let small = EngineBuilder::default().staging_bytes(2 << 20);
        assert!(small.clone().build().is_ok());
        assert_eq!(small.io_bytes(2 << 20).build().err().map(|error| error.kind()), Some(ErrorKind::ApiMisuse));
    }
}
