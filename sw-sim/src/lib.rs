//! A deterministic world for the engine: virtual time, modelled devices, faults as data, memory with a shadow.
//!
//! ```text
//!              World (seed) ── draws ──► Params ─► workload ─► Lane (the product's own code, unchanged)
//!                 │                                             │ seams
//!                 │ judges            SimTransport ◄────────────┼───► SimCopyEngine
//!                 │                        │           NvmeTransport (the product's)
//!                 │                        │                    │ bus seam
//!                 │                        │     SimBus ─► registers, rings, IOMMU, PRP walks (`nvme/`)
//!                 ▼                        ▼                    ▼
//!              Outcome ◄── Shadow (who owns each byte) ◄── Machine: agenda of events, media, device memory
//! ```
//!
//! Four kinds of worlds: [`World::run`] has modelled disks behind the `Transport` seam; [`World::run_nvme`] has modelled NVMe
//! controllers behind the bus seam of `sw-nvme`, so that the driver is the product's too. [`World::run_fuzzed`] is the latter
//! with controllers that make no sense. [`NetWorld`] has a network with a target behind it, under what decides in the
//! initiator over TCP. [`RdmaWorld`] has RDMA NICs behind the seam of verbs ([`ModelFabric`]), under the product's end of queues over RDMA.
//!
//! Invariants: one thread at a time (in some worlds an attendant of the controllers takes turns with the world,
//! `attendant.rs`); time moves only inside waits and between steps of the world; every draw comes from a split of
//! one seed; no float, no address and no process-wide counter enters a decision or the log. So one seed is one history,
//! and the hash of its event log is the same in every process.
//!
//! What a model does is a hypothesis about hardware; what it cannot show is in `docs/ARCHITECTURE.md`.

#![forbid(unsafe_code)]

mod agenda;
mod attendant;
mod copier;
mod disk;
mod fabric;
mod fault;
mod hub;
mod log;
mod machine;
mod medium;
mod net;
mod nvme;
mod rdma;
mod rng;
mod shadow;
mod world;

pub use copier::CopierParams;
pub use disk::QueueParams;
pub use fabric::{FabricParams, ModelFabric, Stepped, Touch};
pub use fault::{Act, FaultRule, On};
pub use hub::{Hub, SimCopyEngine, SimTransport};
pub use log::{Mark, Marks};
pub use machine::FaceParams;
pub use net::{
    CallerParams, Conversation, Cut, CutKind, HostParams, NetParams, NetWorld, ResetParams, TargetParams, Way,
    WireParams,
};
pub use nvme::{
    Mishap, NamespaceParams, Noise, NvmeAct, NvmeCounts, NvmeParams, NvmeRule, OnCommand, QueueKind, SimBus,
    SimInterrupt, SimMemory, SimRegisters, SimWaiter, StatusParams,
};
pub use rdma::{RdmaCut, RdmaFaults, RdmaParams, RdmaWorld};
pub use rng::Rng;
pub use shadow::{Belongs, Violation};
pub use world::{Mood, Outcome, Params, Stats, World};
