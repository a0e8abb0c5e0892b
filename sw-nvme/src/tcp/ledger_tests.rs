//! What becomes of commands when their connection is lost, and when a write may be sent.

use core::cell::Cell;

use sw_engine::{
    ObjectId, Token, WriteOutcome,
    seam::{Io, IoDone, MemorySegment},
};
use sw_mem::{HostVa, Place, RegionId};

use super::{
    super::{
        host::HostConfig,
        pdu::{Kind, Layout},
    },
    *,
};
use crate::{
    directory::handle,
    limits::TransferLimits,
    namespace::Identity,
    status::Status,
    wire::{BlockCount, identify::IdentifyNamespace, identify::MetadataVerdict},
};

const BLOCK: u32 = 512;

/// Blocks of 512 bytes, two in a command.
fn namespace() -> Namespace {
    Namespace {
        nsid: 1,
        info: IdentifyNamespace::default(),
        metadata: MetadataVerdict::None,
        limits: Some(TransferLimits {
            block_bytes: BLOCK,
            blocks_max: BlockCount::new(2).unwrap(),
            boundary_blocks: None,
            write_granularity_blocks: 1,
            write_alignment_blocks: 1,
        }),
        identity: Identity::Serial("S".to_owned(), 1),
        unusable: None,
        generation: 0,
    }
}

/// A gate with a count of doubts, and whether writes are safe.
struct Told(Cell<u64>, Cell<bool>);

impl Gate for Told {
    fn doubts(&self) -> u64 {
        self.0.get()
    }

    fn is_safe(&self, _: Time) -> bool {
        self.1.get()
    }
}

struct Bed {
    ledger: Ledger,
    works: Works,
    queue: HostQueue,
    namespaces: [Namespace; 1],
    gate: Told,
}

impl Bed {
    fn new(depth: u16) -> Self {
        let layout = Layout::default();
        Self {
            ledger: Ledger::new(depth),
            works: Works::default(),
            queue: HostQueue::new(HostConfig { depth, layout, h2c_bytes_max: 4096, capsule_data_bytes: 4096 }),
            namespaces: [namespace()],
            gate: Told(Cell::new(0), Cell::new(true)),
        }
    }

    /// Begins an I/O of `blocks`; its place among the works.
    fn begin(&mut self, kind: IoKind, blocks: u32, token: u64) -> u32 {
        let len = blocks * BLOCK;
        let segment = MemorySegment { place: Place::Host(HostVa::new(4096)), len, region: RegionId(1) };
        let (token, handle) = (Token::from_raw(token), handle(0, 1));
        let io =
            Io { token, kind, object: ObjectId(1), handle, offset: 0, len, segment_count: 1, segments: [segment; 3] };
        let index = self.works.take(&io, 0);
        let mut side = Side { queue: &mut self.queue, namespaces: &self.namespaces, gate: &self.gate };
        self.ledger.begin(index, &mut self.works, &mut side, Time::ZERO);
        index
    }

    /// Capsules that go to the socket; their number.
    fn sends(&mut self, most: usize) -> usize {
        let units = core::iter::from_fn(|| self.queue.next_unit()).take(most);
        units.filter(|unit| unit.head.as_bytes()[0] == Kind::CapsuleCmd as u8).count()
    }

    fn lost(self) -> (Loss, Vec<IoDone>) {
        self.lost_with(Reached::Controller)
    }

    /// What was sent came so far.
    fn lost_with(self, sent: Reached) -> (Loss, Vec<IoDone>) {
        let Self { ledger, mut works, queue, .. } = self;
        let reached = |cid| if queue.is_unsent(cid) { Reached::Nobody } else { sent };
        let loss = ledger.lost(&mut works, ErrorKind::Io, reached);
        let done = loss.over.iter().filter_map(|index| works.finish(*index)).collect();
        (loss, done)
    }
}

#[test]
fn of_what_was_under_way_a_read_is_asked_for_again_a_write_is_unknown_and_what_was_not_sent_goes_on() {
    let mut bed = Bed::new(8);
    bed.begin(IoKind::Read, 1, 1);
    bed.begin(IoKind::Write, 1, 2);
    assert_eq!(bed.sends(8), 2);
    let unsent = bed.begin(IoKind::Write, 1, 3);
    let (loss, done) = bed.lost();
    assert_eq!((loss.in_doubt, loss.unsent), (true, VecDeque::from([unsent])));
    let fault = |retry| Err(Fault::new(ErrorKind::Io, 0).with_retry(retry));
    let results: Vec<_> = done.iter().map(|done| (done.token.raw(), done.result)).collect();
    assert_eq!(results, [(1, fault(Retry::Now)), (2, fault(Retry::Never))]);
}

#[test]
fn memory_that_stays_with_a_device_is_told_whatever_else_became_of_the_io() {
    let mut bed = Bed::new(8);
    bed.begin(IoKind::Read, 1, 1);
    // Its first command failed, and is told otherwise: the bytes before the second one that failed, or a try again.
    let index = bed.begin(IoKind::Read, 4, 2);
    bed.works.get(index).unwrap().fail_at(0, Fault::new(ErrorKind::ChecksumMismatch, 0).with_retry(Retry::Now));
    let behind = bed.begin(IoKind::Read, 4, 3);
    bed.works.get(behind).unwrap().fail_at(512, Fault::new(ErrorKind::ChecksumMismatch, 0));
    bed.begin(IoKind::Write, 1, 4);
    assert!(bed.sends(8) >= 4);
    let unsent = bed.begin(IoKind::Write, 1, 5);
    let (loss, done) = bed.lost_with(Reached::Kept);
    assert_eq!((loss.in_doubt, loss.unsent), (true, VecDeque::from([unsent])));
    let results: Vec<_> = done.iter().map(|done| (done.token.raw(), done.result)).collect();
    let kept = Err(Fault::new(ErrorKind::Io, 0).kept());
    assert_eq!(results, [1, 2, 3, 4].map(|token| (token, kept)));
}

#[test]
fn what_was_not_sent_is_in_no_doubt_and_of_an_io_in_two_commands_only_the_rest_is_sent_again() {
    let mut bed = Bed::new(1);
    // The second command waits for the place of the first.
    let index = bed.begin(IoKind::Write, 4, 1);
    let waiting = bed.begin(IoKind::Write, 1, 2);
    let (loss, done) = bed.lost();
    assert_eq!((loss.in_doubt, done.len()), (false, 0));
    assert_eq!(loss.unsent, VecDeque::from([index, waiting]));
}

#[test]
fn that_nothing_was_written_is_said_of_all_commands_or_not_at_all() {
    let refused = Status::LBA_OUT_OF_RANGE.with_dnr();
    for (statuses, outcome) in [
        ([refused, refused], WriteOutcome::NotApplied),
        ([refused, Status::SUCCESS], WriteOutcome::Unknown),
        ([Status::SUCCESS, refused], WriteOutcome::Unknown),
        ([refused, Status::INTERNAL.with_dnr()], WriteOutcome::Unknown),
    ] {
        let mut bed = Bed::new(8);
        let index = bed.begin(IoKind::Write, 4, 1);
        assert_eq!(bed.sends(8), 2);
        // Places are given from the last: the first command has number 0.
        for (user, status) in (0..).zip(statuses) {
            let end = End { user, outcome: Outcome::Told(status), value: 0, aside: 0 };
            bed.ledger.ended(end, &mut bed.works, &RetryDelays::default());
        }
        let done = bed.works.finish(index).unwrap();
        assert_eq!(done.result.unwrap_err().outcome, outcome, "{statuses:?}");
    }
}

#[test]
fn what_went_aside_of_its_commands_is_in_the_end_of_an_io() {
    let mut bed = Bed::new(8);
    let index = bed.begin(IoKind::Read, 4, 1);
    assert_eq!(bed.sends(8), 2);
    for (user, aside) in [(0, 512), (1, 1024)] {
        let end = End { user, outcome: Outcome::Told(Status::SUCCESS), value: 0, aside };
        bed.ledger.ended(end, &mut bed.works, &RetryDelays::default());
    }
    assert_eq!(bed.works.finish(index).unwrap().aside, 1536);
    // The next I/O in its place has nothing of that.
    let next = bed.begin(IoKind::Read, 1, 2);
    assert_eq!((next, bed.works.finish(next).unwrap().aside), (index, 0));
}

#[test]
fn a_write_is_sent_again_after_a_status_of_its_path_only_if_a_controller_made_that() {
    let path = |code| Status::new(crate::status::sct::PATH, code);
    // Internal, inaccessible, controller pathing error; host pathing error, aborted by host, and one that no table has.
    for (code, write) in [0x00, 0x02, 0x60]
        .map(|code| (code, Retry::Now))
        .into_iter()
        .chain([0x70, 0x71, 0x7F].map(|code| (code, Retry::Never)))
    {
        for (kind, retry) in [(IoKind::Write, write), (IoKind::Read, Retry::Now)] {
            let mut bed = Bed::new(8);
            let index = bed.begin(kind, 1, 1);
            assert_eq!(bed.sends(8), 1);
            let end = End { user: 0, outcome: Outcome::Told(path(code)), value: 0, aside: 0 };
            bed.ledger.ended(end, &mut bed.works, &RetryDelays::default());
            let fault = bed.works.finish(index).unwrap().result.unwrap_err();
            assert_eq!((fault.retry, fault.outcome), (retry, WriteOutcome::Unknown), "{kind:?} {code:#x}");
            // Do Not Retry counts for all.
            let mut bed = Bed::new(8);
            let index = bed.begin(kind, 1, 1);
            let end = End { outcome: Outcome::Told(path(code).with_dnr()), ..end };
            bed.ledger.ended(end, &mut bed.works, &RetryDelays::default());
            assert_eq!(bed.works.finish(index).unwrap().result.unwrap_err().retry, Retry::Never);
        }
    }
}

#[test]
fn an_io_waits_for_so_many_connections_only() {
    let mut bed = Bed::new(1);
    let index = bed.begin(IoKind::Read, 1, 1);
    for turn in 0..=CONNECTIONS_PER_IO_MAX {
        let mut side = Side { queue: &mut bed.queue, namespaces: &bed.namespaces, gate: &bed.gate };
        bed.ledger.begin(index, &mut bed.works, &mut side, Time::ZERO);
        let ledger = core::mem::replace(&mut bed.ledger, Ledger::new(1));
        let loss = ledger.lost(&mut bed.works, ErrorKind::Io, |_| Reached::Nobody);
        assert_eq!(loss.over.len(), usize::from(turn == CONNECTIONS_PER_IO_MAX), "{turn}");
        bed.queue = Bed::new(1).queue;
    }
}

#[test]
fn a_lane_asks_again_whether_writes_are_safe_once_another_one_was_in_doubt() {
    let mut bed = Bed::new(8);
    bed.begin(IoKind::Write, 1, 1);
    assert_eq!(bed.sends(8), 1);
    // Nobody doubts: the answer is remembered.
    bed.gate.1.set(false);
    bed.begin(IoKind::Write, 1, 2);
    assert_eq!(bed.sends(8), 1);
    // A lane noticed the loss of an earlier association.
    bed.gate.0.set(1);
    bed.begin(IoKind::Write, 1, 3);
    bed.begin(IoKind::Read, 1, 4);
    assert_eq!(bed.sends(8), 1, "the read alone");
    bed.gate.1.set(true);
    let mut side = Side { queue: &mut bed.queue, namespaces: &bed.namespaces, gate: &bed.gate };
    bed.ledger.resume(&mut bed.works, &mut side, &mut Vec::new(), Time::ZERO);
    assert_eq!(bed.sends(8), 1);
}

/// A queue that is full, in which one command was let go of and is not answered.
struct Holds(u16);

impl Commands for Holds {
    fn pieces(&self) -> Pieces {
        Pieces::Any
    }

    fn submit(&mut self, _command: &Command, _transfer: Transfer, _user: u32) -> Option<u16> {
        None
    }

    fn let_go(&mut self, _cid: u16) -> bool {
        true
    }

    fn is_let_go(&self, cid: u16) -> bool {
        cid == self.0
    }
}

#[test]
fn a_command_that_was_cancelled_and_is_never_answered_is_late_and_one_that_was_answered_is_not() {
    let (mut ledger, limit) = (Ledger::new(4), Duration::from_secs(1));
    let at = |millis: u64| Time(millis * 1_000_000);
    ledger.zombies = vec![(7, at(0)), (8, at(500))];
    assert!(!ledger.is_late(&Holds(8), limit, at(1499)), "7 was answered meanwhile");
    assert!(ledger.is_late(&Holds(8), limit, at(1500)));
}
