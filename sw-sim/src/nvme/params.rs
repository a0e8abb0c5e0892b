//! What a modelled controller is like, and its faults as data.

/// A namespace of a modelled controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceParams {
    /// Its number; 1 and up, gaps are fine.
    pub nsid: u32,
    /// The disk that holds its bytes, by its index.
    pub disk: usize,
    /// Bytes of a logical block: 512 or 4096.
    pub block: u32,
    /// Bytes of metadata with each block; not 0 is a format that a driver must refuse or handle.
    pub metadata: u16,
    /// NOIOB in blocks; 0 for none. No command may cross a multiple of it.
    pub boundary_blocks: u16,
}

/// What kind of queue a command comes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    /// The admin queue.
    Admin,
    /// An I/O queue.
    #[default]
    Io,
}

/// Which commands a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnCommand {
    /// Only those of this kind of queue.
    pub queue: QueueKind,
    /// Only this opcode.
    pub opcode: Option<u8>,
    /// Every n-th match; 0 and 1 mean each.
    pub every: u64,
    /// Matches to act on at most; 0 means no end.
    pub times: u64,
}

/// A status as it stands in an entry: type, code, and what it says of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusParams {
    /// SCT.
    pub kind: u8,
    /// SC.
    pub code: u8,
    /// DNR: it will fail again.
    pub do_not_retry: bool,
    /// CRD: which of the controller's three delays to wait, 0 for none.
    pub delay: u8,
}

/// What a rule does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeAct {
    /// Part of the data may move, then this status.
    Fail(StatusParams),
    /// Takes this many nanoseconds longer.
    Slow(u64),
    /// Never ends by itself.
    Lost,
    /// Ends, and after this many nanoseconds the same entry comes again: a lie.
    Twice(u64),
    /// Ends, and an entry comes with a CID that no command has: a lie.
    UnknownCid,
    /// Its entry names another submission queue: a lie, and the command has no other end.
    WrongSq,
    /// Ends, and an entry for another queue comes with the CID of a command that is under way in this one: a lie.
    Misplaced,
    /// Its entry says that the head of the queue is outside of it: a lie.
    WrongHead,
    /// Its entry and those of one lap have the phase of the lap before: a lie.
    WrongPhase,
    /// Success, and half of the data did not move: a lie that no driver can see.
    ShortData,
    /// Success, and a page of the data went to an address that is not mapped: likewise.
    LostPage,
    /// Success, and the data moves this many nanoseconds after the entry: likewise.
    LateData(u64),
}

/// One line of a controller's table. The first that fires decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeRule {
    /// Which commands.
    pub on: OnCommand,
    /// What happens to them.
    pub act: NvmeAct,
}

/// What befalls the whole controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// CSTS.CFS; nothing completes until a reset.
    Fatal,
    /// The link is down for good: registers read all ones and nothing moves.
    Gone,
    /// Commands are taken and none ends until a reset.
    Stuck,
    /// This many asynchronous events at once.
    Events(u8),
    /// Its last namespace is detached, and a notice says so.
    Detached,
    /// From now on it makes no sense. What it holds is nobody's promise any more.
    Noise(Noise),
}

/// What a controller is like. Times in nanoseconds; chances in thousandths.
#[derive(Clone, Debug)]
pub struct NvmeParams {
    /// Namespaces.
    pub namespaces: Vec<NamespaceParams>,
    /// Entries of an I/O queue at most, 2 to 65,536.
    pub entries_max: u32,
    /// I/O queue pairs that it gives, however many are asked for; at least 1.
    pub queue_pairs: u16,
    /// Interrupt vectors; 0 is a function that must be polled.
    pub vectors: u16,
    /// CAP.DSTRD.
    pub stride: u8,
    /// MDTS: 2^n pages in one command; 0 for no limit.
    pub mdts: u8,
    /// What scatter gather lists are multiples of: 1 or 4 bytes; 0 for none.
    pub lists: u8,
    /// Doorbell Buffer Config is there.
    pub doorbell_buffer: bool,
    /// Abort commands at once: ACL + 1.
    pub aborts_max: u8,
    /// Asynchronous event requests at once: AERL + 1.
    pub events_max: u8,
    /// CAP.TO, in halves of a second, at least 1.
    pub timeout_halves: u8,
    /// How long CSTS.RDY takes to follow CC.EN, up and down.
    pub ready_ns: (u64, u64),
    /// How long a shutdown takes.
    pub shutdown_ns: u64,
    /// Somebody left it enabled.
    pub left_enabled: bool,
    /// VWC: there is a volatile write cache.
    pub write_cache: bool,
    /// Shortest and longest time of a command.
    pub latency_ns: (u64, u64),
    /// Chance of the long tail, and how much longer it is.
    pub tail: (u64, u64),
    /// Entries that it takes off a queue at once, at least 1.
    pub fetch_burst: u32,
    /// Time that a register read takes.
    pub read_ns: u64,
    /// Time that passes in a barrier, at most: what lies between two accesses of the driver.
    pub barrier_ns: u64,
    /// Chance that a read's memory is scribbled over before its data lands.
    pub scribble: u64,
    /// Chance that an interrupt is lost.
    pub interrupts_lost: u64,
    /// How late an interrupt is, at most.
    pub interrupt_ns: u64,
    /// Chance that an entry comes with a second interrupt for nothing.
    pub interrupts_spurious: u64,
    /// Chance that an abort ends its command early.
    pub abort_wins: u64,
    /// Whether a controller that does not obey CC.EN can be stopped from outside.
    pub stop_works: bool,
    /// Chance that CC.EN = 0 is not followed by CSTS.RDY = 0 in time.
    pub reset_hangs: u64,
    /// Entries of its IOMMU.
    pub iommu_entries: usize,
    /// Where its addresses begin.
    pub iova_first: u64,
    /// Which addresses it gives out.
    pub addresses: Addresses,
    /// How long a removed entry goes on to translate.
    pub stale_ns: u64,
    /// Time that a mapping takes.
    pub map_ns: u64,
    /// CRDT1, CRDT2 and CRDT3, in units of 100 ms.
    pub retry_delays: [u16; 3],
    /// Its faults.
    pub rules: Vec<NvmeRule>,
}

/// How addresses of the IOMMU are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Each one once.
    Fresh,
    /// The lowest one that is free.
    LowestFree,
}

/// How a controller that makes no sense makes none. Chances in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// A register read is random.
    pub registers: u64,
    /// Bytes of an entry are random.
    pub entries: u64,
    /// Bytes of identify data, log pages and features are random.
    pub data: u64,
    /// An entry comes that nothing asked for.
    pub extra: u64,
}

impl Mishap {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mishap::Fatal => "fatal",
            Mishap::Gone => "gone",
            Mishap::Stuck => "stuck",
            Mishap::Events(_) => "events",
            Mishap::Detached => "detached",
            Mishap::Noise(_) => "noise",
        }
    }
}

impl NvmeParams {
    /// A controller without faults over `namespaces`: 1,024 entries, 8 queue pairs, 9 vectors, 128 KiB a command.
    pub fn calm(namespaces: Vec<NamespaceParams>) -> Self {
        Self {
            namespaces,
            entries_max: 1024,
            queue_pairs: 8,
            vectors: 9,
            stride: 0,
            mdts: 5,
            lists: 0,
            doorbell_buffer: false,
            aborts_max: 4,
            events_max: 4,
            timeout_halves: 10,
            ready_ns: (1_000_000, 1_000_000),
            shutdown_ns: 1_000_000,
            left_enabled: false,
            write_cache: true,
            latency_ns: (10_000, 100_000),
            tail: (0, 0),
            fetch_burst: 16,
            read_ns: 400,
            barrier_ns: 0,
            scribble: 0,
            interrupts_lost: 0,
            interrupt_ns: 0,
            interrupts_spurious: 0,
            abort_wins: 500,
            stop_works: true,
            reset_hangs: 0,
            iommu_entries: 65_535,
            iova_first: 0x1000_0000,
            addresses: Addresses::LowestFree,
            stale_ns: 0,
            map_ns: 0,
            retry_delays: [1, 2, 3],
            rules: Vec::new(),
        }
    }
}

/// The table with its counts.
#[derive(Clone, Debug)]
pub(super) struct RuleTable {
    rows: Vec<(NvmeRule, u64, u64)>,
    /// Off: nothing fires any more (the liveness phase).
    pub(super) quiet: bool,
}

impl RuleTable {
    pub(super) fn new(rules: &[NvmeRule]) -> Self {
        Self { rows: rules.iter().map(|rule| (*rule, 0, 0)).collect(), quiet: false }
    }

    pub(super) fn decide(&mut self, queue: QueueKind, opcode: u8) -> Option<NvmeAct> {
        if self.quiet {
            return None;
        }
        for (rule, seen, acted) in &mut self.rows {
            let on = &rule.on;
            if on.queue != queue || on.opcode.is_some_and(|only| only != opcode) {
                continue;
            }
            *seen += 1;
            if seen.is_multiple_of(on.every.max(1)) && (on.times == 0 || *acted < on.times) {
                *acted += 1;
                return Some(rule.act);
            }
        }
        None
    }
}
