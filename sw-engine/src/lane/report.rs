//! What a lane counts and shows.

use core::ops::AddAssign;

use super::{Answer, Lane, OpState};
use crate::{inspect::Tree, path::ByPath, slot::SlotCounts};

/// Sums since the lane was made. Plain numbers: the lane has one owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations taken.
    pub ops: u64,
    /// Operations completed without error.
    pub ok: u64,
    /// Operations completed with an error.
    pub failed: u64,
    /// Bytes of completed operations, by who wrote them finally.
    pub bytes: ByPath,
    /// Bytes that passed through a slab or bounce block of ours.
    pub bounced: u64,
    /// Bytes that a CPU copied, kernel and ours together.
    pub cpu_copied: u64,
    /// I/Os handed to transports.
    pub ios: u64,
    /// Copies handed to copy engines.
    pub copies: u64,
    /// Calls that handed I/Os to a device.
    pub doorbells: u64,
    /// Calls that asked a transport for ends.
    pub polls: u64,
    /// Short transfers whose rest was asked for or refused.
    pub short: u64,
    /// Chunks handed over again.
    pub resubmits: u64,
    /// Chunks that failed.
    pub faults: u64,
    /// Slots whose caller got its answer before the device let go.
    pub abandoned: u64,
    /// Operations whose caller wanted no answer.
    pub dropped: u64,
    /// Ends that named no live slot.
    pub stale: u64,
    /// Slots that a device could not be made to let go of.
    pub quarantined: u64,
    /// Queues and copy engines that broke.
    pub broken: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, more: Counters) {
        self.ops += more.ops;
        self.ok += more.ok;
        self.failed += more.failed;
        self.bytes += more.bytes;
        self.bounced += more.bounced;
        self.cpu_copied += more.cpu_copied;
        self.ios += more.ios;
        self.copies += more.copies;
        self.doorbells += more.doorbells;
        self.polls += more.polls;
        self.short += more.short;
        self.resubmits += more.resubmits;
        self.faults += more.faults;
        self.abandoned += more.abandoned;
        self.dropped += more.dropped;
        self.stale += more.stale;
        self.quarantined += more.quarantined;
        self.broken += more.broken;
    }
}

impl Counters {
    /// Counts an operation that gets its answer: at its end, or before.
    #[inline(always)]
    pub(super) fn count(&mut self, state: &OpState) {
        let ok = state.answer == Answer::Ready && state.fault.is_none();
        *if ok { &mut self.ok } else { &mut self.failed } += 1;
        if let (true, Some(op)) = (state.all_planned(), &state.op) {
            let main = &op.target.choice.main;
            self.bytes.add(main.landing, state.planned);
            self.cpu_copied += state.planned * u64::from(main.copies);
            return;
        }
        self.bytes += state.bytes();
        self.bounced += state.others.bounced;
        self.cpu_copied += state.cpu_copied();
    }

    /// Name and value of each, for reports.
    pub fn rows(&self) -> [(&'static str, u64); 20] {
        [
            ("ops", self.ops),
            ("ok", self.ok),
            ("failed", self.failed),
            ("bytes_dma", self.bytes.dma),
            ("bytes_kernel_copy", self.bytes.kernel_copy),
            ("bytes_staged", self.bytes.staged),
            ("bytes_bounced", self.bounced),
            ("bytes_cpu_copied", self.cpu_copied),
            ("ios", self.ios),
            ("copies", self.copies),
            ("doorbells", self.doorbells),
            ("polls", self.polls),
            ("short_transfers", self.short),
            ("resubmits", self.resubmits),
            ("faults", self.faults),
            ("abandoned_slots", self.abandoned),
            ("dropped_ops", self.dropped),
            ("stale_ends", self.stale),
            ("quarantined_slots", self.quarantined),
            ("broken_queues", self.broken),
        ]
    }
}

impl Lane {
    /// Sums since the lane was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether every transport broke: nothing can be waited on, and operations fail at once.
    pub fn is_broken(&self) -> bool {
        self.queues.iter().all(|queue| queue.broken.is_some())
    }

    /// Slots by state; they sum up to the capacity.
    pub fn slot_counts(&self) -> SlotCounts {
        self.slots.counts()
    }

    /// Slabs that are out: staging and bounce.
    pub fn slabs_out(&self) -> (u32, u32) {
        (self.staging.as_ref().map_or(0, sw_mem::SlabPool::outside), self.bounce.outside())
    }

    /// The live state.
    pub fn inspect(&self) -> Tree {
        let queue = |queue: &super::Queue| {
            Tree::group(
                format!("transport {}", queue.caps.name),
                vec![
                    Tree::leaf("in flight", format!("{} of {}", queue.shares.taken(), queue.caps.queue_depth)),
                    Tree::leaf("flows waiting", queue.shares.waiting()),
                    Tree::leaf("not yet rung", queue.unrung),
                    Tree::leaf("refused for now", queue.refused.len()),
                    Tree::leaf("state", if queue.broken.is_some() { "broken" } else { "works" }),
                ],
            )
        };
        let copier = |copier: &super::Copier| {
            let taken = format!("{} of {}", copier.taken, copier.caps.queue_depth);
            Tree::group(
                format!("copy engine {}", copier.caps.device.0),
                vec![Tree::leaf("in flight", taken), Tree::leaf("waiting", copier.backlog.len())],
            )
        };
        let counts = self.slots.counts();
        let slots = [
            ("free", counts.free),
            ("staged", counts.staged),
            ("in flight", counts.in_flight),
            ("abandoned", counts.abandoned),
            ("quarantined", counts.quarantined),
        ];
        let ops = self.ops.live_tokens().filter_map(|(token, _, state)| {
            let op = state.op.as_ref()?;
            let age = self.now.since(state.submitted).as_millis();
            let text = format!(
                "{} {} {}+{}, {} bytes moved, {} slots, {} flows, {age} ms old{}",
                op.verb,
                op.target.object.name,
                op.offset,
                op.spans.len(),
                state.moved(),
                state.slots,
                state.flows,
                if state.answer == Answer::Owed { "" } else { ", answered" }
            );
            Some(Tree::leaf(format!("op {:#x}", token.raw()), text))
        });
        let kept = Tree::leaf("memory kept of operations that are over", self.kept.len());
        let (staging, bounce) = self.slabs_out();
        let mut parts = vec![
            Tree::group("slots", slots.map(|(name, count)| Tree::leaf(name, count)).into()),
            Tree::group("slabs out", vec![Tree::leaf("staging", staging), Tree::leaf("bounce", bounce)]),
            Tree::group("operations", ops.chain([kept]).collect()),
            Tree::group("counters", self.counters.rows().map(|(name, value)| Tree::leaf(name, value)).into()),
        ];
        parts.extend(self.queues.iter().map(queue));
        parts.extend(self.copiers.iter().map(copier));
        Tree::group("lane", parts)
    }
}
