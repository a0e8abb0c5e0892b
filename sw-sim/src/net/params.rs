//! What a world of a network is like: drawn from its seed, or fixed.

use std::time::Duration;

use sw_nvme::{
    limits::TransferLimits,
    namespace::{Identity, Namespace},
    paths::Lineage,
    tcp::{
        association::{KeptAliveBy, LettingGo},
        pdu::Digests,
    },
    wire::{
        BlockCount,
        ana::Access,
        identify::{BlockFormat, IdentifyNamespace, MetadataVerdict},
    },
};

use super::{history::BLOCK, resets::ResetParams, target::TargetParams, wire::WireParams};
use crate::rng::Rng;

const MS: u64 = 1_000_000;

/// What a host is like.
#[derive(Clone, Debug)]
pub struct HostParams {
    /// KATO in milliseconds.
    pub keep_alive_ms: u64,
    /// How long a lost association is tried to be made again.
    pub patience_ms: u64,
    /// How long the attendant waits for an answer.
    pub timeout_ns: u64,
    /// After so long without an answer a lane closes its connection.
    pub command_timeout: Duration,
    /// Lanes.
    pub lanes: usize,
    /// Paths to the namespace: controllers of one subsystem.
    pub paths: usize,
    /// Commands of a lane at a time.
    pub depth: u16,
    /// Digests that are asked for.
    pub digests: Digests,
    /// Bytes of a write that go in its capsule at most.
    pub capsule_data_bytes: u32,
    /// How the namespace is reached by the second path, as its controller tells.
    pub second_access: Access,
    /// As Identify gave them, one for each path.
    pub namespaces: Vec<Namespace>,
    /// How long the controller may take to let go, as the product makes it of what the controller says.
    pub hold: Duration,
}

/// What callers do.
#[derive(Clone, Copy, Debug)]
pub struct CallerParams {
    /// Operations.
    pub ops: u64,
    /// Operations that are under way at a time at most.
    pub at_a_time: usize,
    /// Of a thousand operations: writes.
    pub writes: u64,
    /// Blocks of one at most.
    pub blocks_max: u64,
    /// Nanoseconds between two steps at most.
    pub step_ns: u64,
    /// Of a thousand operations: with a deadline, so far away at most.
    pub deadlines: (u64, u64),
    /// Of a thousand steps: all connections are partitioned; one is cut; a lane, or the attendant, does nothing for so long at most.
    pub partitions: u64,
    /// See above.
    pub cuts: u64,
    /// See above.
    pub stalls: (u64, u64),
    /// Of a thousand steps: the association is lost under a lane that has writes under way and does not look for a while; and
    /// as often, all queues are lost while commands are on their way, and the target hears of it late.
    pub ambushes: u64,
}

/// A world.
#[derive(Clone, Debug)]
pub struct NetParams {
    /// Whether nothing goes wrong.
    pub is_calm: bool,
    /// The network.
    pub wire: WireParams,
    /// The target.
    pub target: TargetParams,
    /// The host.
    pub host: HostParams,
    /// The callers.
    pub caller: CallerParams,
}

/// The namespace, of `blocks`, of which a command moves `blocks_max`.
fn namespace(blocks: u64, blocks_max: u64) -> Namespace {
    let block_bytes = u32::try_from(BLOCK).unwrap_or(0);
    let format = BlockFormat { block_bytes, ..IdentifyNamespace::default().format };
    Namespace {
        nsid: 1,
        info: IdentifyNamespace { size_blocks: blocks, format, ..IdentifyNamespace::default() },
        metadata: MetadataVerdict::None,
        limits: Some(TransferLimits {
            block_bytes,
            blocks_max: BlockCount::new(u32::try_from(blocks_max).unwrap_or(1)).unwrap_or(BlockCount::MAX),
            boundary_blocks: None,
            write_granularity_blocks: 1,
            write_alignment_blocks: 1,
        }),
        identity: Identity::Serial("SIM".to_owned(), 1),
        unusable: None,
        generation: 0,
    }
}

impl NetParams {
    /// From a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::split(seed, "params");
        let is_calm = rng.per_mille(60);
        let blocks = rng.pick_or(&[1, 2, 4, 16], 4);
        let both = Digests { header: true, data: true };
        let digests = rng.pick_or(&[Digests::default(), both], both);
        let keep_alive_ms = rng.pick_or(&[200, 300, 1000], 300);
        let mut target = TargetParams {
            blocks,
            quiesce_ns: rng.pick_or(&[0, 50, 500, 1000], 50) * MS,
            keep_alive_unit_ns: rng.pick_or(&[0, 100, 700], 0) * MS,
            traffic: rng.per_mille(400),
            ends_with_any: rng.per_mille(400),
            digests,
            alignment: rng.pick_or(&[0, 3, 31], 0),
            r2t_bytes_max: rng.pick_or(&[64, 100, 4096], 100),
            c2h_bytes_max: rng.pick_or(&[32, 64, 4096], 64),
            latency_ns: (1_000, rng.pick_or(&[10_000, 1_000_000], 10_000)),
            slow: (rng.pick_or(&[0, 50, 300], 50), rng.pick_or(&[1, 10], 1) * keep_alive_ms * MS),
            deaf: rng.pick_or(&[0, 0, 20], 0),
            refused: rng.pick_or(&[0, 20], 0),
            short: rng.pick_or(&[0, 0, 30], 0),
            late: rng.pick_or(&[500, 1000], 1000),
            wrong_path: None,
            resets: None,
        };
        let keep_alive = keep_alive_ms.next_multiple_of((target.keep_alive_unit_ns / MS).max(1)) * MS;
        let mut wire = WireParams {
            delay_ns: (1_000, rng.pick_or(&[20_000, 2_000_000], 20_000)),
            piece_max: rng.pick_or(&[1, 7, 64, 100_000], 64),
            window: rng.pick_or(&[300, 2000, 1 << 20], 2000),
            // TP 4129 counts on it where any command is a sign of life: else old commands kept the association alive for ever.
            age_max_ns: if target.traffic { keep_alive } else { u64::MAX },
            cuts: rng.pick_or(&[0, 100, 300], 100),
            flips: 0,
        };
        if digests == both && wire.piece_max >= 64 {
            wire.flips = rng.pick_or(&[0, 0, 3], 0);
        }
        let mut caller = CallerParams {
            ops: rng.range(20, 80),
            at_a_time: sw_mem::index(rng.range(1, 12)),
            writes: rng.pick_or(&[300, 500, 900], 500),
            blocks_max: rng.range(1, blocks.min(8)),
            step_ns: rng.pick_or(&[1, 30, 300], 30) * MS,
            deadlines: (rng.pick_or(&[0, 200], 200), rng.pick_or(&[1, 50, 2000], 50) * MS),
            partitions: rng.pick_or(&[0, 30, 100], 30),
            cuts: rng.pick_or(&[0, 50, 200], 50),
            stalls: (rng.pick_or(&[0, 50, 200], 50), rng.pick_or(&[100, 2000, 5000], 100) * MS),
            ambushes: rng.pick_or(&[0, 0, 100, 300], 0),
        };
        if is_calm {
            (target.slow, target.deaf, target.refused, target.short) = ((0, 0), 0, 0, 0);
            (wire.cuts, wire.flips) = (0, 0);
            (caller.partitions, caller.cuts, caller.ambushes) = (0, 0, 0);
            (caller.stalls, caller.deadlines) = ((0, 0), (0, 0));
        }
        let host = HostParams {
            keep_alive_ms,
            patience_ms: if rng.per_mille(80) && !is_calm { 500 } else { 600_000 },
            timeout_ns: rng.pick_or(&[50, 300, 2000], 300) * MS,
            command_timeout: Duration::from_millis(rng.pick_or(&[200, 1000, 3000], 1000)),
            lanes: sw_mem::index(rng.range(1, 3)),
            paths: 1,
            second_access: Access::Optimized,
            depth: u16::try_from(rng.range(1, 8)).unwrap_or(1),
            digests,
            capsule_data_bytes: rng.pick_or(&[0, 64, 8192], 64),
            namespaces: vec![namespace(blocks, rng.range(1, 8))],
            hold: hold(&target, keep_alive_ms),
        };
        Self { is_calm, wire, target, host, caller }
    }

    /// From a seed, with two paths. By the second one, in one world of four each, another namespace is reached under the same number, or
    /// the namespace is inaccessible.
    pub fn draw_paths(seed: u64) -> Self {
        let (mut drawn, mut rng) = (Self::draw(seed), Rng::split(seed, "paths"));
        drawn.host.paths = 2;
        let Some(mut second) = drawn.host.namespaces.first().cloned() else { return drawn };
        let is_wrong = rng.per_mille(500);
        drawn.target.wrong_path = is_wrong.then_some(1);
        if is_wrong && rng.per_mille(500) {
            second.identity = Identity::Serial("OTHER".to_owned(), 1);
        } else if is_wrong {
            drawn.host.second_access = Access::Inaccessible;
        }
        let mut lineage = Lineage::default();
        drawn.host.namespaces.push(second);
        drawn.host.namespaces.iter_mut().for_each(|namespace| lineage.name(namespace, "SIM"));
        drawn
    }

    /// From a seed, with one path or two, to a target that resets controllers for its hosts.
    pub fn draw_resets(seed: u64) -> Self {
        let mut rng = Rng::split(seed, "resets of");
        let mut drawn = if rng.per_mille(600) { Self::draw_paths(seed) } else { Self::draw(seed) };
        drawn.target.resets = Some(ResetParams {
            most: rng.pick_or(&[1, 4], 4),
            refused: rng.pick_or(&[0, 300], 0),
            at_once: rng.pick_or(&[0, 300], 300),
            failed: rng.pick_or(&[0, 150], 150),
            never: rng.pick_or(&[0, 150], 150),
            takes_ns: rng.pick_or(&[1, 100, 1000], 100) * MS,
        });
        drawn
    }

    /// The same for each cut of one conversation: small, without draws that matter.
    pub(super) fn of_conversation() -> Self {
        let mut fixed = Self::draw(0);
        fixed.is_calm = false;
        fixed.wire = WireParams {
            delay_ns: (10_000, 10_000),
            piece_max: 1 << 20,
            window: 1 << 20,
            age_max_ns: u64::MAX,
            cuts: 0,
            flips: 0,
        };
        fixed.target = TargetParams {
            blocks: 8,
            quiesce_ns: 50 * MS,
            keep_alive_unit_ns: 0,
            traffic: false,
            ends_with_any: false,
            digests: Digests::default(),
            alignment: 0,
            r2t_bytes_max: 128,
            c2h_bytes_max: 128,
            // So that commands are under way when a stream is cut.
            latency_ns: (100_000, 100_000),
            slow: (0, 0),
            deaf: 0,
            refused: 0,
            short: 0,
            late: 1000,
            wrong_path: None,
            resets: None,
        };
        fixed.host = HostParams {
            keep_alive_ms: 100,
            patience_ms: 600_000,
            timeout_ns: 100 * MS,
            command_timeout: Duration::from_millis(200),
            lanes: 1,
            paths: 1,
            second_access: Access::Optimized,
            depth: 2,
            digests: Digests::default(),
            capsule_data_bytes: 64,
            namespaces: vec![namespace(8, 4)],
            hold: hold(&fixed.target, 100),
        };
        fixed
    }
}

/// What the product makes of what the controller says.
fn hold(target: &TargetParams, keep_alive_ms: u64) -> Duration {
    let unit = target.keep_alive_unit_ns;
    let says = LettingGo {
        keep_alive: Duration::from_millis(keep_alive_ms),
        granularity: (unit > 0).then_some(Duration::from_nanos(unit)),
        kept_alive_by: if target.traffic { KeptAliveBy::Traffic } else { KeptAliveBy::Commands },
        quiesce: Duration::from_nanos(target.quiesce_ns),
    };
    says.span()
}
