//! Objects whose places are found out for each operation.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::{
    error::Retry,
    layout::{Extent, Hold, Later, Resolve},
};
use std::time::Duration;
use sw_mem::DmaSpan;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;

/// Odd pages are in the second member, two pages further on. Counts the holds that there are.
#[derive(Debug, Default)]
struct Odd {
    holds: Arc<AtomicU32>,
    wrong: Option<Extent>,
    /// How often it says so first.
    later: Arc<AtomicU32>,
    failed: Arc<Mutex<Vec<Extent>>>,
}

struct Held(Arc<AtomicU32>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Resolve for Odd {
    fn resolve(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>, out: &mut Vec<Extent>) -> Result<Hold, Later> {
        if self.later.load(Ordering::SeqCst) > 0 {
            self.later.fetch_sub(1, Ordering::SeqCst);
            return Err(Later(Duration::from_millis(2)));
        }
        self.holds.fetch_add(1, Ordering::SeqCst);
        for (offset, len) in ranges {
            let (mut at, end) = (offset, offset + len);
            while at < end {
                let stop = end.min((at / PAGE + 1) * PAGE);
                let is_odd = at / PAGE % 2 == 1;
                out.push(Extent {
                    member: u32::from(is_odd),
                    at: at + if is_odd { 2 * PAGE } else { 0 },
                    len: stop - at,
                });
                at = stop;
            }
        }
        if let (Some(wrong), Some(last)) = (self.wrong, out.last_mut()) {
            *last = wrong;
        }
        Ok(Box::new(Held(self.holds.clone())))
    }

    fn failed(&self, extent: Extent) {
        self.failed.lock().unwrap().push(extent);
    }
}

fn bed(odd: Odd) -> (Lane, [Arc<Mutex<Memory>>; 2], Target) {
    let len = usize::try_from(PAGE * PAGES).unwrap();
    let disk = |name, file: usize, len: usize| {
        let (host, device, regions) = (Ok(()), Err(Reason::NoPeerPages), Regions::Any);
        let caps =
            TransportCaps { name, queue_depth: 4, io_bytes_max: 16 << 10, segments_max: 3, host, device, regions };
        let mut bytes = vec![Vec::new(); file];
        bytes.push((0..len).map(|at| pattern(file, at)).collect());
        Arc::new(Mutex::new(Memory::new(bytes, caps)))
    };
    let longer = len + 4 * 4096;
    let disks = [disk("mem0", 0, len), disk("mem1", 1, longer)];
    let transports = disks.iter().map(super::disk).collect();
    let lane = Lane::new(LaneConfig::default(), LaneParts { transports, copiers: Vec::new(), staging: None }).unwrap();
    let member = |(file, name, len)| {
        let plain = object(file, len);
        let faces = plain.faces.iter().map(|face| Face { transport: name, ..*face }).collect();
        Arc::new(Object { faces, ..Arc::into_inner(plain).unwrap() })
    };
    let members: Vec<_> = [(0, "mem0", len), (1, "mem1", longer)].into_iter().map(member).collect();
    let choices = members.iter().map(|member| {
        let caps = lane.transport_caps();
        plan(member, &MemoryFacts::HOST, &caps, &Policy::Any, &RateTable::new(), Verb::Read).choice.unwrap()
    });
    let choices = choices.collect();
    let whole = Object {
        id: Object::next_id(),
        name: "pieces".into(),
        len: len as u64,
        version: Version::default(),
        faces: Vec::new(),
        residency: Residency::Unknown.into(),
        composed: Some((Layout::Pieces(Arc::new(odd)), members)),
        keep: Box::new(()),
    };
    (lane, disks, Target::composed(Arc::new(whole), choices).unwrap())
}

fn expected(at: u64) -> u8 {
    let is_odd = at / PAGE % 2 == 1;
    pattern(usize::from(is_odd), usize::try_from(at + if is_odd { 2 * PAGE } else { 0 }).unwrap())
}

fn finish(lane: &mut Lane) -> Completion {
    for _ in 0..10_000 {
        lane.poll(Time(1), Wait::No);
        if let Some(done) = lane.pop() {
            return done;
        }
    }
    panic!("the operation does not end");
}

fn span(lane: &mut Lane, len: u64, phase: u64) -> Buffer {
    let buffer = Buffer::allocate_with(ByteLen(len), phase, HugePages::Never, sw_mem::Populate::Lazy).unwrap();
    lane.attach(Attach::Region(buffer.region())).unwrap();
    buffer
}

#[test]
fn every_byte_comes_from_where_it_was_said_to_be_and_the_hold_goes_with_the_operation() {
    let odd = Odd::default();
    let holds = odd.holds.clone();
    let (mut lane, _disks, target) = bed(odd);
    for (offset, len) in [(0, PAGE * PAGES), (PAGE, PAGE), (5, 10), (4090, 12), (100, 30_001), (7 * PAGE + 1, 9 * PAGE)]
    {
        let buffer = span(&mut lane, len, offset);
        let options = OpOptions { checksum: Some(Algorithm::Crc32c), ..OpOptions::default() };
        let spans = Spans::One(buffer.into_span());
        let op = Op { user: 1, verb: Verb::Read, target: target.clone(), offset, spans, options };
        lane.submit(Time(0), op).unwrap();
        assert_eq!(holds.load(Ordering::SeqCst), 1);
        let done = finish(&mut lane);
        assert_eq!((done.result.unwrap(), holds.load(Ordering::SeqCst)), (len, 0), "{offset}+{len}");
        let want: Vec<u8> = (offset..offset + len).map(expected).collect();
        assert_eq!(done.checksum, Some(Algorithm::Crc32c.of(&want)), "{offset}+{len}");
        let op = done.op.unwrap();
        assert!(op.target.placed().is_none());
        let mut got = vec![0; want.len()];
        op.spans.get(0).unwrap().read(0, &mut got).unwrap();
        assert!(got == want, "{offset}+{len}");
    }
}

#[test]
fn a_read_of_a_copy_that_fails_is_told_and_the_operation_is_of_the_first_member_alone() {
    let odd = Odd::default();
    let (holds, failed) = (odd.holds.clone(), odd.failed.clone());
    let (mut lane, disks, target) = bed(odd);
    let (offset, len) = (100, 9 * PAGE);
    let read = |lane: &mut Lane| {
        let spans = Spans::One(span(lane, len, offset).into_span());
        let options = OpOptions { checksum: Some(Algorithm::Crc32c), ..OpOptions::default() };
        lane.submit(Time(0), Op { user: 1, verb: Verb::Read, target: target.clone(), offset, spans, options }).unwrap();
        finish(lane)
    };
    disks[1].lock().unwrap().lies.push_back(Err(Fault::new(ErrorKind::Io, 5)));
    let done = read(&mut lane);
    let want: Vec<u8> = (offset..offset + len).map(|at| pattern(0, usize::try_from(at).unwrap())).collect();
    assert_eq!((done.result.unwrap(), done.path.bytes.total()), (len, len));
    assert_eq!(done.checksum, Some(Algorithm::Crc32c.of(&want)));
    let told = failed.lock().unwrap().clone();
    assert!(told.len() == 1 && told[0].member == 1 && told[0].at / PAGE % 2 == 1 && told[0].len == PAGE, "{told:?}");
    assert_eq!(holds.load(Ordering::SeqCst), 0, "the copies are let go of");
    // One of the first member's own fails.
    disks[0].lock().unwrap().lies.push_back(Err(Fault::new(ErrorKind::Io, 5)));
    assert_eq!(read(&mut lane).result.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(failed.lock().unwrap().len(), 1);
}

#[test]
fn parts_of_an_operation_have_their_own_places() {
    let (mut lane, _disks, target) = bed(Odd::default());
    let ranges = [(3 * PAGE - 1, 2 * PAGE), (0, 17), (40 * PAGE + 3, 5 * PAGE)];
    let parts = ranges.map(|(offset, len)| Segment { offset, span: span(&mut lane, len, offset).into_span() });
    let spans = Spans::Many(parts.into());
    lane.submit(Time(0), Op { user: 1, verb: Verb::Read, target, offset: 0, spans, options: OpOptions::default() })
        .unwrap();
    let op = finish(&mut lane).op.unwrap();
    for (at, (offset, len)) in (0..).zip(ranges) {
        let mut got = vec![0; usize::try_from(len).unwrap()];
        op.spans.get(at).unwrap().read(0, &mut got).unwrap();
        assert!(got == (offset..offset + len).map(expected).collect::<Vec<u8>>(), "{offset}+{len}");
    }
}

#[test]
fn memory_that_a_device_may_touch_keeps_its_places_behind_the_deadline() {
    let odd = Odd::default();
    let holds = odd.holds.clone();
    let (mut lane, disks, target) = bed(odd);
    disks[1].lock().unwrap().hold = true;
    let options = OpOptions { deadline: Some(Time(10)), ..OpOptions::default() };
    let spans = Spans::One(span(&mut lane, 4 * PAGE, 0).into_span());
    lane.submit(Time(0), Op { user: 1, verb: Verb::Read, target, offset: 0, spans, options }).unwrap();
    lane.poll(Time(1), Wait::No);
    lane.poll(Time(11), Wait::No);
    let done = lane.pop().unwrap();
    assert_eq!((done.result.unwrap_err().kind(), done.op.is_none()), (ErrorKind::DeadlineExceeded, true));
    assert_eq!(holds.load(Ordering::SeqCst), 1, "a device may still read there");
    disks[1].lock().unwrap().hold = false;
    for _ in 0..100 {
        lane.poll(Time(12), Wait::No);
    }
    assert_eq!(holds.load(Ordering::SeqCst), 0);
}

#[test]
fn an_operation_whose_bytes_are_to_come_is_given_back_and_others_are_taken() {
    let odd = Odd { later: Arc::new(AtomicU32::new(1)), ..Odd::default() };
    let holds = odd.holds.clone();
    let (mut lane, _disks, target) = bed(odd);
    let read = |span: DmaSpan| Op {
        user: 1,
        verb: Verb::Read,
        target: target.clone(),
        offset: 0,
        spans: Spans::One(span),
        options: OpOptions::default(),
    };
    let op = read(span(&mut lane, 2 * PAGE, 0).into_span());
    let rejected = lane.submit(Time(0), op).unwrap_err();
    assert_eq!(
        (rejected.error.kind(), rejected.error.retry()),
        (ErrorKind::Busy, Retry::After(Duration::from_millis(2)))
    );
    assert_eq!((holds.load(Ordering::SeqCst), lane.has_room()), (0, true));
    let other = read(span(&mut lane, PAGE, 0).into_span());
    lane.submit(Time(0), other).unwrap();
    lane.submit(Time(0), rejected.op).unwrap();
    assert_eq!(finish(&mut lane).result.unwrap() + finish(&mut lane).result.unwrap(), 3 * PAGE);
}

#[test]
fn an_answer_that_is_not_one_is_refused_and_nothing_is_written() {
    for wrong in [
        Extent { member: 2, at: 0, len: PAGE },
        Extent { member: 0, at: 1, len: PAGE },
        Extent { member: 0, at: 0, len: 2 * PAGE },
        Extent { member: 0, at: 0, len: PAGE - 1 },
        Extent { member: 0, at: 0, len: 0 },
        Extent { member: 0, at: PAGE * PAGES, len: PAGE },
    ] {
        let odd = Odd { wrong: Some(wrong), ..Odd::default() };
        let holds = odd.holds.clone();
        let (mut lane, _disks, target) = bed(odd);
        let spans = Spans::One(span(&mut lane, 2 * PAGE, 0).into_span());
        let op =
            Op { user: 1, verb: Verb::Read, target: target.clone(), offset: 0, spans, options: OpOptions::default() };
        let rejected = lane.submit(Time(0), op).unwrap_err();
        assert_eq!((rejected.error.kind(), holds.load(Ordering::SeqCst)), (ErrorKind::Protocol, 0), "{wrong:?}");
        let op = Op { verb: Verb::Write, ..rejected.op };
        assert_eq!(lane.submit(Time(0), op).unwrap_err().error.kind(), ErrorKind::Unsupported);
    }
}
