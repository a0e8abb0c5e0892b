//! What a world of RDMA is like: drawn from its seed, or fixed.

use sw_engine::seam::verbs::Ability;
use sw_nvme::rdma::Registering;

use crate::{fabric::FabricParams, rng::Rng};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// Of a thousand: how often something goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct RdmaFaults {
    /// Of steps: a connection is ended by the target.
    pub cuts: u64,
    /// Of worlds' steps: the NIC of one lane is pulled out, once.
    pub pulls: u64,
    /// The same for the target's NIC of one lane.
    pub peer_pulls: u64,
    /// Of reads: the target writes into their memory once more behind its answer.
    pub late: u64,
    /// Of answers that invalidate a key: the key of another command.
    pub wrong_keys: u64,
    /// Of answers: to a command that there is not.
    pub nonsense: u64,
}

/// A world.
#[derive(Clone, Copy, Debug)]
pub struct RdmaParams {
    /// The network and the NICs.
    pub fabric: FabricParams,
    /// Lanes, each with a NIC and a queue of its own.
    pub lanes: usize,
    /// Commands of a lane at a time.
    pub depth: u16,
    /// Memory that a lane's callers have: so many operations at a time.
    pub buffers: usize,
    /// How memory is registered.
    pub registering: Registering,
    /// Bytes of a write that go in its capsule at most.
    pub capsule_data_bytes: u32,
    /// Blocks of a lane's namespace.
    pub blocks: u64,
    /// Blocks of one operation at most.
    pub blocks_max: u64,
    /// Operations of all.
    pub ops: u64,
    /// Of a thousand operations: writes.
    pub writes: u64,
    /// Nanoseconds between two steps at most.
    pub step_ns: u64,
    /// How long a command takes in the target at most.
    pub latency_ns: u64,
    /// How long a lane does not look at most, now and then.
    pub stall_ns: u64,
    /// What goes wrong.
    pub faults: RdmaFaults,
}

impl RdmaParams {
    /// From a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::split(seed, "rdma params");
        let is_calm = rng.per_mille(60);
        let registering = rng.pick_or(&[Registering::Kept, Registering::PerCommand], Registering::Kept);
        let blocks = rng.pick_or(&[4, 16], 16);
        let blocks_max = rng.range(1, blocks.min(8));
        let fabric = FabricParams {
            packet_bytes: rng.pick_or(&[256, 1024, 4096], 1024),
            packet_ns: rng.pick_or(&[10, 200], 200),
            delay_ns: (100, rng.pick_or(&[1_000, 50_000], 1_000)),
            ack_ns: (100, rng.pick_or(&[1_000, 200_000], 200_000)),
            retry_ns: 5_000_000,
            remote_invalidate: rng.pick_or(&[Ability::Yes, Ability::Yes, Ability::No], Ability::Yes),
            sge_max: rng.pick_or(&[1, 2, 4], 2),
            // As much as one operation has, which is less than the memory that it lies in.
            mr_bytes_max: rng.pick_or(&[1 << 32, 1 << 32, blocks_max * BLOCK as u64], 1 << 32),
            registrations_max: rng.pick_or(&[1 << 16, 1 << 16, 5], 1 << 16),
            limited: 2,
        };
        let faults = RdmaFaults {
            cuts: rng.pick_or(&[0, 0, 20, 60], 20),
            pulls: rng.pick_or(&[0, 0, 10], 0),
            peer_pulls: rng.pick_or(&[0, 0, 10], 0),
            // A controller that breaks the rules reaches kept memory behind its answers: decision record 0020.
            late: if registering == Registering::PerCommand { rng.pick_or(&[0, 200], 200) } else { 0 },
            wrong_keys: rng.pick_or(&[0, 0, 50], 50),
            nonsense: rng.pick_or(&[0, 0, 20], 0),
        };
        Self {
            fabric,
            lanes: 2,
            depth: u16::try_from(rng.range(1, 6)).unwrap_or(1),
            buffers: sw_mem::index(rng.range(1, 8)),
            registering,
            capsule_data_bytes: rng.pick_or(&[0, 512, 4096], 512),
            blocks,
            blocks_max,
            ops: rng.range(20, 120),
            writes: rng.pick_or(&[300, 500, 800], 500),
            step_ns: rng.pick_or(&[2_000, 50_000], 50_000),
            latency_ns: rng.pick_or(&[1_000, 100_000], 1_000),
            stall_ns: rng.pick_or(&[0, 20_000, 500_000], 20_000),
            faults: if is_calm { RdmaFaults::default() } else { faults },
        }
    }

    /// Whether nothing goes wrong.
    pub fn is_calm(&self) -> bool {
        let RdmaFaults { cuts, pulls, peer_pulls, late, wrong_keys, nonsense } = self.faults;
        cuts + pulls + peer_pulls + late + wrong_keys + nonsense == 0
    }

    /// The same each time: small, without faults, two commands at a time.
    pub(super) fn of_conversation(registering: Registering) -> Self {
        let fabric = FabricParams {
            packet_bytes: 512,
            packet_ns: 100,
            delay_ns: (100, 2_000),
            ack_ns: (100, 5_000),
            retry_ns: 5_000_000,
            remote_invalidate: Ability::Yes,
            sge_max: 2,
            ..FabricParams::default()
        };
        Self {
            fabric,
            lanes: 1,
            depth: 2,
            buffers: 2,
            registering,
            capsule_data_bytes: 512,
            blocks: 4,
            blocks_max: 3,
            ops: 8,
            writes: 500,
            step_ns: 2_000,
            latency_ns: 1_000,
            stall_ns: 0,
            faults: RdmaFaults::default(),
        }
    }
}
