//! The invariants, by the names that violations carry.
//!
//! - *aliasing*: no device access outside of lent memory, no memory back while a device owns it (`shadow.rs`).
//! - *slots*: the states sum up to the capacity; no token is used twice; no more stale ends than lies were told.
//! - *provenance*: every byte of a read was current at some instant between submit and completion; guards are intact.
//! - *writes*: applied means all bytes, not applied means none, unknown means any mix; nothing else changes a disk (the
//!   whole image is compared at the end, `image.rs`).
//! - *path*: bytes by landing are those that the model saw; bounced bytes are counted exactly.
//! - *limits*: depth, lengths, pieces, alignment (`disk.rs`).
//! - *order*, *state*, *wire*: what a driver owes a controller (`nvme/`).
//! - *status*: success only for all bytes; errors only for a cause; memory comes back on success.
//! - *liveness*: a poll and a close take no longer than they were told to; everything ends by its deadline, or soon after faults stop; gauges return to zero.

use sw_engine::{Completion, ErrorKind, Lane, Time, Verb, WriteOutcome, seam::Wait};
use sw_mem::index;

use super::{
    CLOSE, World,
    nvme::{ControlBy, NvmeSetup},
    params::{Faces, Mood},
    work::{GUARD, LiveOp},
};
use crate::{hub::nanos, log::Mark, medium::written, shadow::Way};

/// How long a run goes on after the lane is gone, so that the last late bytes land.
const AFTERMATH_NS: u64 = 3_000_000_000;

/// Polls that may find a reason not to wait (a queue that says `Full`, a break that is just found), in a row.
const IDLE_POLLS_MAX: u32 = 50;

/// How long operations over controllers without faults may make no progress: less than any timer of the driver (its
/// `LOOK_EVERY` is 100 ms), more than all that the calm ones and the workload do.
const PROMPT_NS: u64 = 90_000_000;

/// What a poll may take beyond the wait that it was told: no wait for a controller's admin queue or registers.
const POLL_NS: u64 = 10_000_000;
/// What a close may take beyond its time for each controller: to delete a queue pair, and to disable the controller.
const CLOSE_NS: u64 = 300_000_000;

/// All slots of a lane.
pub(super) fn slots_in_all(lane: &Lane) -> u32 {
    let counts = lane.slot_counts();
    counts.free + counts.staged + counts.in_flight + counts.abandoned + counts.quarantined
}

/// Bytes by the way that the model saw them take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    dma: u64,
    kernel: u64,
    staged: u64,
    slab_kernel: u64,
}

impl Seen {
    fn of(ways: &[Way], live: &LiveOp) -> Self {
        let mut seen = Self::default();
        for way in ways {
            match way {
                // Also between a controller and a device, where the transport reaches that.
                Way::Dma => seen.dma += 1,
                Way::Kernel if !live.on_device => seen.kernel += 1,
                Way::SlabKernel => {
                    seen.staged += 1;
                    seen.slab_kernel += 1;
                }
                _ => seen.staged += 1,
            }
        }
        seen
    }
}

impl World {
    fn broken(&self, rule: &'static str, evidence: String) {
        self.hub.lock().violate(rule, evidence);
    }

    pub(super) fn take_completions(&mut self) {
        while let Some(completion) = self.lane.pop() {
            let code =
                completion.result.as_ref().map_or_else(|error| u64::from(error.kind().code()) << 48, |bytes| *bytes);
            let back = u64::from(completion.op.is_some());
            self.hub.lock().note("answer", &[completion.user, code, back]);
            match self.live.remove(&completion.user) {
                Some(live) => self.judge(live, completion),
                None => self.broken("status", format!("a completion of op {}, which is not live", completion.user)),
            }
        }
        let oldest = self.live.values().map(|live| live.submitted).min();
        let mut machine = self.hub.lock();
        let oldest = oldest.unwrap_or(machine.now());
        machine.disks.iter_mut().for_each(|disk| disk.forget_before(oldest));
    }

    /// Where nothing is wrong, nothing waits until a driver's timer finds out: a lost doorbell or a forgotten look is a hang
    /// that a timer hides.
    pub(super) fn judge_promptness(&mut self) {
        let (now, posted) = (self.now().0, self.hub.lock().nvme.iter().map(|ctrl| ctrl.counts.posted).sum());
        if posted != self.progress.1 || self.live.is_empty() {
            self.progress = (now, posted);
        }
        let idle = now - self.progress.0;
        if self.params.nvme.is_some() && self.params.mood == Mood::Calm && idle > PROMPT_NS {
            let count = self.live.len();
            self.broken(
                "liveness",
                format!("{count} operations made no progress for {idle} ns, and nothing went wrong"),
            );
        }
    }

    /// A poll waits as long as it was told to and for nothing else, whatever state the controllers are in.
    pub(super) fn judge_poll(&self, begun: Time, wait: Wait) {
        let told = match wait {
            Wait::No => 0,
            Wait::For { timeout, .. } => nanos(timeout),
        };
        self.judge_span("poll", begun, told + POLL_NS);
    }

    /// A close is over soon after its time.
    pub(super) fn judge_close(&self, begun: Time) {
        let queues =
            self.params.queues.len() + self.params.nvme.iter().map(|setup| setup.controllers.len()).sum::<usize>();
        self.judge_span("close", begun, nanos(CLOSE) + queues as u64 * CLOSE_NS);
    }

    fn judge_span(&self, what: &str, begun: Time, most: u64) {
        let attended = self.params.nvme.as_ref().is_some_and(|setup| setup.control != ControlBy::Lane);
        let took = self.now().0 - begun.0;
        if attended && took > most {
            self.broken("liveness", format!("a {what} took {took} ns, and {most} ns are enough"));
        }
    }

    fn judge(&mut self, live: LiveOp, completion: Completion) {
        let ok = completion.result.is_ok();
        if ok {
            self.stats.ok += 1
        } else {
            self.stats.failed += 1
        };
        self.judge_status(&live, &completion);
        if completion.op.is_none() {
            if ok && live.verb != Verb::Flush {
                self.broken("status", format!("op {} succeeded and its memory did not come back", live.user));
            }
            return self.withhold(live);
        }
        let ways = self.memory_back(&live);
        let bytes = self.memory_bytes(&live);
        self.judge_guards(&live);
        let promised = self.is_promised(&live, &ways);
        if live.verb == Verb::Write && !promised {
            self.taint_written(&live);
        }
        if ok {
            self.stats.bytes += live.len;
        }
        if ok && promised {
            self.judge_path(&live, &completion, &ways);
            self.judge_checksum(&live, &completion, &bytes);
        }
        match live.verb {
            Verb::Read if ok && promised => self.judge_read(&live, &bytes),
            Verb::Write => {
                let outcome = match &completion.result {
                    Ok(_) => Some(WriteOutcome::Applied),
                    Err(error) => error.outcome(),
                };
                self.judge_write(&live, outcome);
                let object = self.object(live.object);
                match outcome {
                    Some(WriteOutcome::Applied) => self.image.applied(&live, &object),
                    Some(WriteOutcome::NotApplied) => {}
                    Some(WriteOutcome::Unknown) | None => {
                        self.image.unknown(&live, &object, &self.hub.lock().disks);
                    }
                }
            }
            _ => {}
        }
        live.pages.iter().for_each(|page| {
            self.written.remove(page);
        });
        drop(completion);
        self.put_away(&live);
    }

    /// Whether no lie that only a device can tell took the promise about the operation's bytes away.
    fn is_promised(&self, live: &LiveOp, ways: &[Way]) -> bool {
        let machine = self.hub.lock();
        let staged = ways.iter().any(|way| !matches!(way, Way::Dma | Way::Kernel));
        let taint = &machine.taint;
        let hit = live.parts.iter().any(|part| taint.regions.contains(&part.region));
        !(taint.all || taint.ops.contains(&live.user) || hit || taint.slabs && staged)
    }

    /// A write whose bytes a device changed in memory: what it wrote is nobody's promise.
    fn taint_written(&self, live: &LiveOp) {
        let object = self.object(live.object);
        let mut machine = self.hub.lock();
        let places = live.parts.iter().flat_map(|part| part.offset..part.offset + part.len).map(|at| object.locate(at));
        for (disk, place) in places {
            match machine.taint.ranges.last_mut() {
                Some((on, from, len)) if *on == disk && *from + *len == place => *len += 1,
                _ => machine.taint.ranges.push((disk, place, 1)),
            }
        }
    }

    fn memory_back(&self, live: &LiveOp) -> Vec<Way> {
        let mut machine = self.hub.lock();
        let now = machine.now();
        let back = |part: &super::work::Part| machine.shadow.give_back(now, part.region, part.at, part.len, live.user);
        live.parts.iter().flat_map(back).collect()
    }

    fn memory_bytes(&self, live: &LiveOp) -> Vec<u8> {
        let mut machine = self.hub.lock();
        live.parts.iter().flat_map(|part| machine.shadow.get(part.region, part.at, part.len)).collect()
    }

    /// Success means all bytes; an error must have a cause.
    fn judge_status(&self, live: &LiveOp, completion: &Completion) {
        let mut machine = self.hub.lock();
        let now = machine.now();
        let error = match &completion.result {
            Ok(bytes) if *bytes == live.len => return,
            Ok(bytes) => {
                return machine
                    .violate("status", format!("op {}: success with {bytes} of {} bytes", live.user, live.len));
            }
            Err(error) => error,
        };
        let caused = match error.kind() {
            ErrorKind::DeadlineExceeded => {
                machine.mark(Mark::DeadlinePassed);
                live.deadline.is_some_and(|deadline| deadline <= now)
            }
            ErrorKind::Cancelled => {
                machine.mark(Mark::Cancelled);
                self.params.work.cancels > 0
            }
            ErrorKind::Closed => true,
            ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Busy | ErrorKind::ShortData | ErrorKind::NoDevice => {
                self.params.mood != Mood::Calm
            }
            ErrorKind::OutOfRange => self.params.work.shrinks,
            // A namespace that says to be another one by now, or that cannot tell its name.
            ErrorKind::Changed => machine.taint.all || self.params.nvme.as_ref().is_some_and(NvmeSetup::loses_names),
            ErrorKind::ResourceLimit if machine.log.marks.count(Mark::IommuFull) > 0 => true,
            // Without a code it is the lane's own; a driver's refusal of a copy has one.
            ErrorKind::ResourceLimit if error.code() == 0 => {
                machine.mark(Mark::AllSlabsLost);
                self.lost_before_close || self.all_slabs_lost()
            }
            ErrorKind::ResourceLimit => self.params.copiers.iter().any(|copier| live.on_device && copier.refuses > 0),
            ErrorKind::Protocol => self.params.mood != Mood::Calm,
            _ => false,
        };
        if !caused {
            machine.violate("status", format!("op {} failed without cause: {error}", live.user));
        }
        if (live.verb == Verb::Write) != error.outcome().is_some() {
            machine.violate(
                "writes",
                format!("op {} ({:?}) says {:?} of its outcome", live.user, live.verb, error.outcome()),
            );
        }
    }

    /// Whether every slab of a pool is out for good: a device may write it for ever.
    pub(super) fn all_slabs_lost(&self) -> bool {
        let (quarantined, (staging, bounce)) = (self.lane.slot_counts().quarantined, self.lane.slabs_out());
        let lost = |out: u32, count: u32| out == count && quarantined >= count;
        lost(bounce, self.params.lane.bounce_slabs)
            || self.params.staging.is_some_and(|(count, _)| lost(staging, count))
    }

    fn judge_guards(&self, live: &LiveOp) {
        for part in &live.parts {
            let mut machine = self.hub.lock();
            if machine.taint.regions.contains(&part.region) {
                continue;
            }
            let whole = machine.shadow.get(part.region, 0, part.region_len);
            drop(machine);
            let (start, end) = (index(part.at), index(part.at + part.len));
            let touched = whole.iter().enumerate().find(|(at, byte)| (*at < start || *at >= end) && **byte != GUARD);
            if let Some((at, byte)) = touched {
                let text = format!("op {}: guard byte {at} beside {}+{} is {byte:#04x}", live.user, part.at, part.len);
                self.broken("provenance", text);
            }
        }
    }

    fn judge_read(&self, live: &LiveOp, bytes: &[u8]) {
        let object = self.object(live.object);
        let block = u64::from(self.params.block);
        if live.parts.iter().any(|part| !part.offset.is_multiple_of(block)) {
            self.hub.lock().mark(Mark::RaggedRead);
        }
        if live.on_device {
            self.hub.lock().mark(Mark::DeviceRead);
        }
        let offsets = live.parts.iter().flat_map(|part| part.offset..part.offset + part.len);
        let mut machine = self.hub.lock();
        for (at, byte) in offsets.zip(bytes) {
            let (disk, place) = object.locate(at);
            let had = machine.disks.get(disk).is_some_and(|disk| disk.had(place, *byte, live.submitted));
            if !had {
                let holds = machine.disks.get(disk).and_then(|disk| disk.bytes().get(index(place))).copied();
                let text = format!(
                    "op {}: byte {at} of its object is {byte:#04x}; disk {disk} holds {holds:02x?} at {place} and never held that since {}",
                    live.user, live.submitted
                );
                return machine.violate("provenance", text);
            }
        }
    }

    /// Every byte of the object is old or new, as the outcome says.
    fn judge_write(&self, live: &LiveOp, outcome: Option<WriteOutcome>) {
        let mark = match outcome {
            Some(WriteOutcome::Unknown) => Some(Mark::OutcomeUnknown),
            Some(WriteOutcome::NotApplied) => Some(Mark::OutcomeNotApplied),
            _ if live.on_device => Some(Mark::DeviceWrite),
            _ => None,
        };
        mark.into_iter().for_each(|mark| self.hub.lock().mark(mark));
        if live.parts.iter().any(|part| part.offset % u64::from(self.params.block) != 0) {
            self.hub.lock().mark(Mark::RaggedWrite);
        }
        let held: Vec<u8> =
            live.parts.iter().flat_map(|part| self.object_bytes(live.object, part.offset, part.len)).collect();
        let (object, tainted) = (self.object(live.object), self.hub.lock().taint.any_range());
        let mut places = live.parts.iter().flat_map(|part| part.offset..part.offset + part.len);
        for ((at, held), before) in (0u64..).zip(&held).zip(&live.before) {
            let spot = places.next().map(|place| object.locate(place));
            if tainted && spot.is_some_and(|(disk, place)| self.hub.lock().taint.covers(disk, place)) {
                continue;
            }
            let new = written(live.user, at);
            let fine = match outcome {
                Some(WriteOutcome::Applied) => *held == new,
                Some(WriteOutcome::NotApplied) => held == before,
                Some(WriteOutcome::Unknown) | None => *held == new || held == before,
            };
            if !fine {
                let text = format!(
                    "op {} is {outcome:?} and its byte {at} is {held:#04x} (before {before:#04x}, written {new:#04x})",
                    live.user
                );
                return self.broken("writes", text);
            }
        }
    }

    fn judge_checksum(&self, live: &LiveOp, completion: &Completion, bytes: &[u8]) {
        let want = live.checksum.map(|algorithm| algorithm.of(bytes));
        if want.is_some() {
            self.hub.lock().mark(Mark::ChecksumChecked);
        }
        if want != completion.checksum && live.len > 0 {
            let text = format!("op {}: checksum {:x?} instead of {want:x?}", live.user, completion.checksum);
            self.broken("path", text);
        }
    }

    /// The report against what the model saw.
    fn judge_path(&self, live: &LiveOp, completion: &Completion, ways: &[Way]) {
        let seen = Seen::of(ways, live);
        let path = completion.path;
        let told =
            Seen { dma: path.bytes.dma, kernel: path.bytes.kernel_copy, staged: path.bytes.staged, slab_kernel: 0 };
        if live.on_device && seen.dma > 0 {
            self.hub.lock().mark(Mark::NvmePeer);
        }
        if told != (Seen { slab_kernel: 0, ..seen }) {
            return self.broken("path", format!("op {} says {told:?}, the model saw {seen:?}", live.user));
        }
        if path.bounced != seen.staged {
            let text = format!("op {} says {} bytes bounced, the model saw {}", live.user, path.bounced, seen.staged);
            return self.broken("path", text);
        }
        // Copies by a CPU: one a byte for the kernel's, one for ours on host memory.
        let ours = if live.on_device { 0 } else { seen.staged };
        let most = ours + seen.kernel + seen.staged;
        let exact = match (self.params.faces, live.on_device && live.verb == Verb::Read) {
            (_, true) => Some(seen.slab_kernel),
            (Faces::Direct, _) => Some(ours),
            (Faces::Buffered, _) => Some(most),
            (Faces::Both, _) => None,
        };
        let fine = exact
            .map_or(path.cpu_copied >= ours + seen.kernel && path.cpu_copied <= most, |exact| path.cpu_copied == exact);
        if !fine {
            let text =
                format!("op {} says {} bytes copied by a CPU; {exact:?} of {seen:?}", live.user, path.cpu_copied);
            return self.broken("path", text);
        }
        self.judge_bounces(live, seen);
    }

    /// An operation in place bounces its two ragged ends and nothing else.
    fn judge_bounces(&self, live: &LiveOp, seen: Seen) {
        let block = u64::from(self.params.block);
        let roomy = u64::from(self.params.lane.bounce_bytes) >= 2 * block;
        let plain =
            live.parts.len() == 1 && !self.object(live.object).is_striped() && live.congruent && !live.on_device;
        if plain && roomy && self.params.faces == Faces::Direct && seen.staged > 2 * block {
            let text = format!("op {} bounced {} bytes; two blocks are {}", live.user, seen.staged, 2 * block);
            self.broken("path", text);
        }
    }

    /// After each poll that was told the time `now`.
    pub(super) fn judge_step(&self, now: Time) {
        let sum = slots_in_all(&self.lane);
        if sum != self.slot_capacity {
            self.broken("slots", format!("slots sum up to {sum} of {}", self.slot_capacity));
        }
        let (stale, lies) = (self.lane.counters().stale, self.hub.lock().lies);
        if stale > lies {
            self.broken("slots", format!("{stale} ends found no slot, and only {lies} were lies"));
        }
        let (late, held) = (
            self.live.values().find(|live| live.deadline.is_some_and(|deadline| deadline <= now.0)),
            self.lane.in_flight(),
        );
        if let Some(late) = late {
            self.broken(
                "liveness",
                format!("op {} is {} ns past its deadline", late.user, now.0 - late.deadline.unwrap_or(0)),
            );
        }
        let known = self.live.len() + self.withheld.len();
        if held > known {
            self.broken("slots", format!("the lane holds {held} operations of {known} that it was given"));
        }
    }

    /// A lane that has a queue to wait on waits: a hot loop is a hang that burns a core.
    pub(super) fn judge_idle(&self) {
        let broken = self.hub.lock().queues.iter().all(|queue| queue.broken);
        if self.idle_polls > IDLE_POLLS_MAX && !broken {
            self.broken(
                "liveness",
                format!("{} polls in a row did not wait although they were told to", self.idle_polls),
            );
        }
    }

    /// Faults have stopped and time has passed: what still hangs must have lost an I/O, and no deadline.
    pub(super) fn judge_drained(&self) {
        let lost = self.hub.lock().log.marks.count(Mark::LostIo);
        for live in self.live.values() {
            if lost == 0 || live.deadline.is_some() {
                let text = format!("op {} ({:?}) did not end after faults stopped", live.user, live.verb);
                self.broken("liveness", text);
            }
        }
    }

    pub(super) fn judge_closed(&self, quarantined: u32) {
        if let Some(user) = self.live.keys().next() {
            self.broken("liveness", format!("op {user} and {} others were not answered by close", self.live.len() - 1));
        }
        let (free, slabs, held) = (self.lane.slot_counts().free, self.lane.slabs_out(), self.lane.in_flight());
        if quarantined == 0 && (free != self.slot_capacity || slabs != (0, 0) || held != 0) {
            let text =
                format!("{free} of {} slots free, slabs out {slabs:?}, {held} operations held", self.slot_capacity);
            self.broken("liveness", format!("gauges are not zero after close: {text}"));
        }
    }

    /// The lane is gone; the last bytes land; then memory and disks are as they must be.
    pub(super) fn judge_after(self, quarantined: u32) {
        let World { lane, hub, withheld, objects, mut image, drivers, .. } = self;
        drop(lane);
        drop(drivers);
        let mut machine = hub.lock();
        let until = machine.now() + AFTERMATH_NS;
        machine.run_until(until);
        if machine.shadow.live_count() > 0 {
            let text = format!("{} device accesses never ended", machine.shadow.live_count());
            machine.violate("model", text);
        }
        for live in withheld.values() {
            let kept = live.parts.iter().filter(|part| machine.shadow.is_held(part.region)).count();
            // A controller that cannot be stopped keeps all that it was told of.
            let unstoppable = machine.log.marks.count(Mark::NvmeStopRefused) > 0;
            if quarantined == 0 && kept > 0 && !unstoppable {
                machine.violate("liveness", format!("op {}: {kept} pieces of its memory were leaked", live.user));
            }
        }
        // Their devices let go just now, or never will: old or new, byte by byte.
        for live in withheld.values().filter(|live| live.verb == Verb::Write) {
            if let Some(object) = objects.get(live.object) {
                image.unknown(live, object, &machine.disks);
            }
        }
        for difference in image.differences(&machine.disks, &machine.taint) {
            machine.violate("writes", difference);
        }
    }
}
