//! The event log: its last lines for people, its hash for replay, and marks for branches that must be reached.

use core::fmt;
use std::collections::{BTreeMap, VecDeque};

/// Lines kept for the report of a failure.
const LINES_KEPT: usize = 60;

/// A rare branch. A batch of seeds that reaches fewer of them than it should tests less than it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are sentences")]
pub enum Mark {
    FullBelowDepth,
    ShortThenRest,
    ZeroBytesReported,
    TooManyBytesClaimed,
    MediumError,
    RetryNow,
    EndTwice,
    EndOfUnknownToken,
    LostIo,
    CancelWon,
    CancelLost,
    LandedAfterAnswer,
    ScribbledBeforeLanding,
    QueueBroke,
    FenceBusy,
    FenceKilled,
    LandedAfterBusyFence,
    CopyFailed,
    CopyEngineBroke,
    LaneBusy,
    DeadlinePassed,
    Cancelled,
    Abandoned,
    ClosedInFlight,
    StripedOp,
    VectoredOp,
    RaggedWrite,
    RaggedRead,
    DeviceRead,
    DeviceWrite,
    ChecksumChecked,
    Misaligned,
    OutcomeUnknown,
    OutcomeNotApplied,
    MemoryQuarantined,
    NoSlabForEnds,
    AllSlabsLost,
    RegionDetached,
    IommuFault,
    IommuFull,
    IommuReused,
    IommuSlow,
    IommuStale,
    NvmeFatal,
    NvmeStuck,
    NvmeGone,
    NvmeStopRefused,
    NvmeDroppedByReset,
    NvmeReadyTooLate,
    NvmeResetHangs,
    NvmeResetInFlight,
    NvmeSqFull,
    NvmeCqFull,
    NvmeCqWrapped,
    NvmeShadowSeenLate,
    NvmeInterruptLost,
    NvmeInterruptMerged,
    NvmeInterruptSpurious,
    NvmeLost,
    NvmeFailed,
    NvmeFailedForNow,
    NvmeAbortWon,
    NvmeAbortLost,
    NvmeTwice,
    NvmeUnknownCid,
    NvmeWrongSq,
    NvmeWrongHead,
    NvmeWrongPhase,
    NvmeShortData,
    NvmeLostPage,
    NvmeLateData,
    NvmeLateDataElsewhere,
    NvmeFewerQueues,
    NvmeDeletedInFlight,
    NvmeDoorbellBuffer,
    NvmeEvent,
    NvmeNoise,
    NvmeDetached,
    NvmePeer,
    NvmeMisplaced,
    NvmeSlept,
    NvmeShutDown,
    NetReset,
    NetHalfClose,
    NetPartition,
    NetKeepAliveExpired,
    NetCarriedOutLate,
    NetUnknownCarriedOut,
    NetWriteBehindFence,
    NetInDoubt,
    NetInDoubtLate,
    NetInDoubtDuringSign,
    NetUnsentGoesOn,
    NetAskedAgain,
    NetCancelled,
    NetToldUnknown,
    NetCommandLate,
    NetShortData,
    NetWrongDigest,
    NetBitFlipped,
    NetPatienceOver,
    NetResetDone,
    NetResetTold,
    NetResetFailed,
    NetResetRefused,
    NetResetUntold,
    NetResetOfOwnPast,
    RdmaLost,
    RdmaNicGone,
    RdmaPeerGone,
    RdmaLateRefused,
    RdmaLateLandedInTime,
    RdmaWrongKey,
    RdmaInvalidated,
    RdmaOvertaken,
    RdmaInCapsule,
    RdmaWindowRefused,
    RdmaNoRoom,
    RdmaNonsense,
}

impl Mark {
    /// Every mark of runs with modelled disks.
    pub const ALL: [Mark; 38] = [
        Mark::FullBelowDepth,
        Mark::ShortThenRest,
        Mark::ZeroBytesReported,
        Mark::TooManyBytesClaimed,
        Mark::MediumError,
        Mark::RetryNow,
        Mark::EndTwice,
        Mark::EndOfUnknownToken,
        Mark::LostIo,
        Mark::CancelWon,
        Mark::CancelLost,
        Mark::LandedAfterAnswer,
        Mark::ScribbledBeforeLanding,
        Mark::QueueBroke,
        Mark::FenceBusy,
        Mark::FenceKilled,
        Mark::LandedAfterBusyFence,
        Mark::CopyFailed,
        Mark::CopyEngineBroke,
        Mark::LaneBusy,
        Mark::DeadlinePassed,
        Mark::Cancelled,
        Mark::Abandoned,
        Mark::ClosedInFlight,
        Mark::StripedOp,
        Mark::VectoredOp,
        Mark::RaggedWrite,
        Mark::RaggedRead,
        Mark::DeviceRead,
        Mark::DeviceWrite,
        Mark::ChecksumChecked,
        Mark::Misaligned,
        Mark::OutcomeUnknown,
        Mark::OutcomeNotApplied,
        Mark::MemoryQuarantined,
        Mark::NoSlabForEnds,
        Mark::AllSlabsLost,
        Mark::RegionDetached,
    ];

    /// Every mark of runs with modelled controllers, besides those of the engine.
    pub const NVME: [Mark; 44] = [
        Mark::IommuFault,
        Mark::IommuFull,
        Mark::IommuReused,
        Mark::IommuSlow,
        Mark::IommuStale,
        Mark::NvmeFatal,
        Mark::NvmeStuck,
        Mark::NvmeGone,
        Mark::NvmeStopRefused,
        Mark::NvmeDroppedByReset,
        Mark::NvmeReadyTooLate,
        Mark::NvmeResetHangs,
        Mark::NvmeResetInFlight,
        Mark::NvmeSqFull,
        Mark::NvmeCqFull,
        Mark::NvmeCqWrapped,
        Mark::NvmeShadowSeenLate,
        Mark::NvmeInterruptLost,
        Mark::NvmeInterruptMerged,
        Mark::NvmeInterruptSpurious,
        Mark::NvmeLost,
        Mark::NvmeFailed,
        Mark::NvmeFailedForNow,
        Mark::NvmeAbortWon,
        Mark::NvmeAbortLost,
        Mark::NvmeTwice,
        Mark::NvmeUnknownCid,
        Mark::NvmeWrongSq,
        Mark::NvmeWrongHead,
        Mark::NvmeWrongPhase,
        Mark::NvmeShortData,
        Mark::NvmeLostPage,
        Mark::NvmeLateData,
        Mark::NvmeLateDataElsewhere,
        Mark::NvmeFewerQueues,
        Mark::NvmeDeletedInFlight,
        Mark::NvmeDoorbellBuffer,
        Mark::NvmeEvent,
        Mark::NvmeNoise,
        Mark::NvmeDetached,
        Mark::NvmePeer,
        Mark::NvmeMisplaced,
        Mark::NvmeSlept,
        Mark::NvmeShutDown,
    ];

    /// Every mark of runs with a modelled network.
    pub const NET: [Mark; 19] = [
        Mark::NetReset,
        Mark::NetHalfClose,
        Mark::NetPartition,
        Mark::NetKeepAliveExpired,
        Mark::NetCarriedOutLate,
        Mark::NetUnknownCarriedOut,
        Mark::NetWriteBehindFence,
        Mark::NetInDoubt,
        Mark::NetInDoubtLate,
        Mark::NetInDoubtDuringSign,
        Mark::NetUnsentGoesOn,
        Mark::NetAskedAgain,
        Mark::NetCancelled,
        Mark::NetToldUnknown,
        Mark::NetCommandLate,
        Mark::NetShortData,
        Mark::NetWrongDigest,
        Mark::NetBitFlipped,
        Mark::NetPatienceOver,
    ];

    /// Marks of runs with a modelled target that resets controllers.
    pub const RESETS: [Mark; 6] = [
        Mark::NetResetDone,
        Mark::NetResetTold,
        Mark::NetResetFailed,
        Mark::NetResetRefused,
        Mark::NetResetUntold,
        Mark::NetResetOfOwnPast,
    ];

    /// Every mark of runs with a modelled RDMA fabric.
    pub const RDMA: [Mark; 12] = [
        Mark::RdmaLost,
        Mark::RdmaNicGone,
        Mark::RdmaPeerGone,
        Mark::RdmaLateRefused,
        Mark::RdmaLateLandedInTime,
        Mark::RdmaWrongKey,
        Mark::RdmaInvalidated,
        Mark::RdmaOvertaken,
        Mark::RdmaInCapsule,
        Mark::RdmaWindowRefused,
        Mark::RdmaNoRoom,
        Mark::RdmaNonsense,
    ];
}

/// How often each mark was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<Mark, u64>);

impl Marks {
    /// Once more.
    pub fn hit(&mut self, mark: Mark) {
        *self.0.entry(mark).or_default() += 1;
    }

    /// How often.
    pub fn count(&self, mark: Mark) -> u64 {
        self.0.get(&mark).copied().unwrap_or(0)
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Marks) {
        other.0.iter().for_each(|(mark, count)| *self.0.entry(*mark).or_default() += count);
    }

    /// Those of `all` that were never reached.
    pub fn missing(&self, all: &[Mark]) -> Vec<Mark> {
        all.iter().copied().filter(|mark| self.count(*mark) == 0).collect()
    }
}

/// The log of one run.
#[derive(Debug)]
pub(crate) struct Log {
    hash: u64,
    events: u64,
    last: VecDeque<String>,
    pub(crate) marks: Marks,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            hash: 0xCBF2_9CE4_8422_2325,
            events: 0,
            last: VecDeque::with_capacity(LINES_KEPT),
            marks: Marks::default(),
        }
    }

    /// Notes an event. Words only: no addresses, no process-wide numbers.
    pub(crate) fn note(&mut self, now: u64, what: &str, words: &[u64]) {
        self.events += 1;
        self.mix(now);
        what.bytes().for_each(|byte| self.mix(u64::from(byte)));
        words.iter().for_each(|word| self.mix(*word));
        if self.last.len() == LINES_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(format!("{:>12} ns  {what} {words:?}", now));
    }

    /// FNV-1a, a word at a time.
    fn mix(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "last {} of {} events:", self.last.len(), self.events)?;
        self.last.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
