//! GPU-direct storage: what a Rust program links.
//!
//! ```no_run
//! use straightway::{Destination, Engine, Uri};
//!
//! let engine = Engine::builder().build()?;
//! let object = engine.open(&"/data/shard-0".parse::<Uri>()?)?;
//! let memory = engine.allocate(Destination::Host, object.len(), 0)?;
//! let done = engine.read(&object, 0, memory).wait().ok()?;
//! println!("{}", done.path); // io_uring/dma (1048576 bytes, 0 bounced; BEST)
//! # Ok::<(), straightway::Error>(())
//! ```
//!
//! ```text
//!   Uri ─open─► Object ─┐
//!                       ├─► Request ─ .wait() ──► in line, on an idle lane ─┐
//!   Destination ─allocate─► Memory ─┘    │ .start(), .await                 ├─► Completed { result, path, memory }
//!                                        └──► a reactor's lane ─────────────┘
//! ```
//!
//! Every completion says which way its bytes took and why not a better one. A policy can demand a route; then anything
//! else is an error. Nothing here falls back in silence. This crate composes the backends; it has no I/O of its own.

#![forbid(unsafe_code)]

pub mod agent;
mod backends;
pub mod binding;
mod builder;
mod caches;
mod cell;
mod clock;
mod core;
pub mod discovery;
mod doctor;
mod engine;
mod fabric_ports;
mod fabrics;
mod keys;
mod lane;
mod memory;
pub mod mounts;
mod moves;
mod nvme;
mod nvme_control;
mod object;
mod policy;
mod rdma;
mod rdma_facts;
mod reach;
mod reactor;
mod remotes;
mod request;
mod staging;
mod sums;
mod targets;
pub mod tls;
pub mod topology;
mod uri;
mod vendor;

/// The program in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub use backends::{CallerStream, DeviceAllocation, StreamGate};
pub use builder::{
    CuFileUse, EngineBuilder, GpuUse, NvmeBackend, NvmeCompletion, NvmeTcp, NvmeTcpDigests, NvmeTcpPaths, NvmeUse,
    RdmaRegistering, UringCompletion, UringUse,
};
pub use caches::Warmed;
pub use doctor::{Doctor, Fact, Health};
pub use engine::Engine;
pub use keys::NvmeTcpKeys;
pub use lane::{Lane, LaneWaker};
pub use memory::{CopyIn, CopyOut, Memory, MemoryView, NotReclaimed, Region};
pub use moves::Moves;
pub use object::{NewObject, Object, OpenObject, ResumableObject};
pub use policy::{Destination, PciBar, parse_policy};
pub use reach::{Reach, SelfTest};
pub use remotes::{Nfs, Remote, Secret};
pub use request::{Batch, Completed, Pending, Request};
pub use sums::Sums;
pub use sw_cache::{
    Cache, CacheConfig, Evicted, KeptObject, Pinning, Selection as CacheSelection, Status as CacheStatus,
    Verify as CacheVerify,
};
pub use sw_net::{PathReport, PathState};
pub use sw_remote::{Address as RemoteAddress, Scheme as RemoteScheme};
pub use uri::{FabricPort, FabricWire, NvmeTcpUri, NvmeUri, RdmaPort, Uri, parse_bytes};

pub use sw_engine::{
    ByPath, Candidate, Choice, Completion, Counters, DataPath, Error, ErrorKind, Face, Landing, Op, OpId, OpOptions,
    PciAddress, Plan, Policy, Reason, Rejected, Retry, Route, RouteMatch, Spans, Target, Time, Times, Verb, Version,
    Via, WriteOutcome, checksum, inspect,
    seam::{Entry, EntryKind, Hidden},
};
pub use sw_mem::{Buffer, ByteLen, DeviceId, DmaRegion, ForkMark, GpuVa, HostVa, Place};
/// Keys for DH-HMAC-CHAP: what subsystems behind TCP, and hosts of a [`target`], show who they are by.
pub mod authentication {
    pub use crate::keys::{Keys, KeysError, make_secret, parse_groups, parse_hashes, read_secrets};
    pub use sw_nvme::auth::{
        Hash, Offer,
        group::Group,
        secret::{Secret, SecretError},
    };
}
/// A small target over TCP or RDMA with files and memory, for demonstrations and tests.
pub mod target {
    pub use sw_net::target::{
        Access, Authentication, Backing, Counters, PortAccess, PortState, Target, TargetConfig, Tells, Tls,
    };
    pub use sw_nvme::fabrics::Nqn;

    /// As [`Target::start`], behind an RDMA device of the system's: the one whose address the target listens at.
    ///
    /// # Errors
    /// As [`Target::start`]; `NoDevice` without the libraries or the kernel's support, and for an address that belongs to no device or to
    /// several (0.0.0.0).
    pub fn start_rdma(config: TargetConfig) -> Result<Target, crate::Error> {
        let device = crate::rdma::Devices::default().at(config.listen)?;
        Target::start_rdma(config, device)
    }

    /// As [`Target::start`], behind the emulated RDMA fabric: for addresses of `nvme+rdma://` with `fabric=emulated`.
    ///
    /// # Errors
    /// As [`Target::start`].
    pub fn start_rdma_emulated(config: TargetConfig) -> Result<Target, crate::Error> {
        Target::start_rdma(config, sw_verbs::emulated::EmulatedDevice::open())
    }
}
pub use sw_uring::peer::{Doubt as PeerDoubt, Verdict as PeerVerdict};
