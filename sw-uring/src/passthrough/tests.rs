use sw_engine::{ObjectId, seam::MemorySegment};
use sw_mem::{HostVa, Place, RegionId};

use super::*;

const WORD: Word =
    Word { fd: 5, nsid: 3, block_shift: 12, command_shift: 17, poll_queues: PollQueues::None, link: Link::Pcie };

fn io(kind: IoKind, offset: u64, len: u32, token: u64) -> Io {
    let place = Place::Host(HostVa::new(0x7000_0000_1000));
    let segment = MemorySegment { place, len, region: RegionId(9) };
    Io {
        token: Token::from_raw(token),
        kind,
        object: ObjectId(1),
        handle: WORD.pack().unwrap(),
        offset,
        len,
        segment_count: u8::from(len > 0),
        segments: [segment; 3],
    }
}

#[test]
fn a_completion_is_bytes_an_errno_or_a_status() {
    let outcome = |result, bytes| super::outcome(result, bytes, Retry::Now);
    assert_eq!(outcome(0, 4096), Ok(4096));
    assert_eq!(outcome(-libc::EACCES, 0).unwrap_err().kind, ErrorKind::PermissionDenied);
    // Unrecovered read error, as the driver returns it: sct 2h, sc 81h, do not retry.
    let media = outcome(0x4281, 4096).unwrap_err();
    assert_eq!((media.kind, media.code, media.retry), (ErrorKind::Io, 0x281, Retry::Never));
    assert_eq!(outcome(0x0080, 4096).unwrap_err().kind, ErrorKind::OutOfRange);
    // Only the "more" bit: neither success nor an error.
    assert_eq!(outcome(0x2000, 4096).unwrap_err().kind, ErrorKind::Protocol);
    assert_eq!(outcome(i32::MAX, 4096).unwrap_err().kind, ErrorKind::Protocol);
    assert_eq!(outcome(i32::MIN, 4096).unwrap_err().kind, ErrorKind::Io);
}

#[test]
fn a_write_that_the_driver_gave_up_on_is_sent_again_over_pci_only() {
    let tables = Tables::none();
    let mut shape = Commands::new(2, 1, Completions::Posted);
    let mut given_up = |kind, link| {
        let len = if kind == IoKind::FlushAll { 0 } else { 4096 };
        let one = Io { handle: Word { link, ..WORD }.pack().unwrap(), ..io(kind, 0, len, 9) };
        let entry = shape.entry(&one, &tables).unwrap();
        let done = shape.end(squeue::EntryMarker::get_user_data(&entry), -libc::EINTR).unwrap();
        done.result.unwrap_err()
    };
    let unknown = Fault::new(ErrorKind::Io, libc::EINTR);
    let again = Fault { retry: Retry::Now, ..unknown };
    assert_eq!(given_up(IoKind::Write, Link::Pcie), again);
    assert_eq!(given_up(IoKind::Write, Link::Network), unknown, "the other side may still carry it out");
    for kind in [IoKind::Read, IoKind::FlushAll] {
        assert_eq!(given_up(kind, Link::Network), again, "twice is as good as once");
    }
}

#[test]
fn a_transfer_names_blocks_and_what_is_no_whole_block_is_refused() {
    let command = transfer(&io(IoKind::Read, 5 << 12, 8192, 1), &WORD, 8192).unwrap();
    assert_eq!(command.range(), LbaRange { nsid: 3, slba: 5, nlb: BlockCount::new(2).unwrap() });
    assert_eq!(command.opcode(), 0x02);
    assert_eq!(transfer(&io(IoKind::Write, 0, 4096, 1), &WORD, 4096).unwrap().opcode(), 0x01);
    for (offset, bytes) in [(512, 4096), (0, 4608), (0, 0)] {
        assert_eq!(transfer(&io(IoKind::Read, offset, bytes, 1), &WORD, bytes), Err(MISUSE));
    }
}

#[test]
fn an_io_past_the_command_limit_ends_short_and_tickets_come_back() {
    let tables = Tables::none();
    let mut shape = Commands::new(2, 2, Completions::Posted);
    let first = shape.entry(&io(IoKind::Read, 0, 1 << 20, 71), &tables).unwrap();
    let second = shape.entry(&io(IoKind::FlushData, 0, 0, 72), &tables).unwrap();
    assert_eq!(shape.entry(&io(IoKind::Read, 0, 4096, 73), &tables).unwrap_err(), MISUSE, "no ticket is left");

    let done = shape.end(squeue::EntryMarker::get_user_data(&first), 0).unwrap();
    assert_eq!((done.token.raw(), done.result), (71, Ok(128 << 10)));
    let done = shape.end(squeue::EntryMarker::get_user_data(&second), 0).unwrap();
    assert_eq!((done.token.raw(), done.result), (72, Ok(0)));
    assert!(shape.end(squeue::EntryMarker::get_user_data(&first), 0).is_none(), "a second end of one entry is no end");
    assert!(shape.end(77, 0).is_none());
    for token in [74, 75] {
        assert!(shape.entry(&io(IoKind::Write, 4096, 4096, token), &tables).is_ok());
    }
}

#[test]
fn a_refused_io_keeps_no_ticket() {
    let tables = Tables::none();
    let mut shape = Commands::new(2, 1, Completions::Posted);
    for _ in 0..3 {
        assert_eq!(shape.entry(&io(IoKind::Read, 512, 4096, 1), &tables).unwrap_err(), MISUSE);
    }
    let mut several = io(IoKind::Read, 0, 4096, 1);
    several.segment_count = 2;
    assert_eq!(shape.entry(&several, &tables).unwrap_err(), MISUSE);
    assert!(shape.entry(&io(IoKind::Read, 0, 4096, 1), &tables).is_ok());
}

#[test]
fn a_polled_ring_refuses_a_device_without_poll_queues() {
    let tables = Tables::none();
    let mut shape = Commands::new(2, 1, Completions::Polled);
    let one = io(IoKind::Read, 0, 4096, 1);
    assert_eq!(shape.entry(&one, &tables).unwrap_err().code, libc::EOPNOTSUPP);
    let handle = Word { poll_queues: PollQueues::Some, ..WORD }.pack().unwrap();
    assert!(shape.entry(&Io { handle, ..one }, &tables).is_ok());
}
