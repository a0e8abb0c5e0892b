//! Transports around a transport: the same trait, one more property.

mod checked;
mod faulty;
mod recording;

pub use checked::Checked;
pub use faulty::{Act, Faulty, On, Rule};
pub use recording::{Event, Recording};

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::null::NullTransport;
    use sw_engine::{
        ErrorKind, Fault, Token,
        seam::{Attach, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Regions, Submit, Transport, Wait},
    };
    use sw_mem::{HostVa, Place, RegionId};

    fn io(raw: u64) -> Io {
        let piece = MemorySegment { place: Place::Host(HostVa::new(4096)), len: 512, region: RegionId(0) };
        Io {
            token: Token::from_raw(raw),
            kind: IoKind::Read,
            object: NullTransport::OBJECT,
            handle: 0,
            offset: raw * 512,
            len: 512,
            segment_count: 1,
            segments: [piece; MAX_SEGMENTS],
        }
    }

    fn null() -> NullTransport {
        NullTransport::new(8, 4096)
    }

    /// Submits tokens 1 to 3 and gives their ends of two polls.
    fn ends(transport: &mut dyn Transport) -> Vec<IoDone> {
        (1..=3).for_each(|raw| assert_eq!(transport.submit(&io(raw)), Submit::Accepted));
        transport.ring().unwrap();
        let mut out = Vec::with_capacity(16);
        transport.poll(Wait::No, &mut out).unwrap();
        transport.poll(Wait::No, &mut out).unwrap();
        out
    }

    fn with(act: Act) -> Vec<(u64, Result<u32, Fault>)> {
        let on = On { kind: Some(IoKind::Read), range: Some((512, 1024)), skip: 1, times: 1 };
        let mut faulty = Faulty::new(null(), vec![Rule { on, act }]);
        let ends = ends(&mut faulty);
        assert_eq!(faulty.fired(), 1, "{act:?}");
        ends.iter().map(|done| (done.token.raw(), done.result)).collect()
    }

    #[test]
    fn a_rule_bends_the_end_that_it_matches_and_no_other() {
        let fault = Fault::new(ErrorKind::Io, 5);
        assert_eq!(with(Act::Fail(fault)), [(1, Ok(512)), (2, Err(fault)), (3, Ok(512))]);
        assert_eq!(with(Act::Short(100)), [(1, Ok(512)), (2, Ok(100)), (3, Ok(512))]);
        assert_eq!(with(Act::Overclaim(1)), [(1, Ok(512)), (2, Ok(513)), (3, Ok(512))]);
        assert_eq!(with(Act::Swallow), [(1, Ok(512)), (3, Ok(512))]);
        assert_eq!(with(Act::Twice), [(1, Ok(512)), (2, Ok(512)), (3, Ok(512)), (2, Ok(512))]);
        let mut once = Faulty::new(null(), vec![Rule { on: On { times: 1, ..On::default() }, act: Act::RefuseOnce }]);
        assert_eq!([once.submit(&io(1)), once.submit(&io(1))], [Submit::Full, Submit::Accepted]);
    }

    /// Whether it panics: the canary of a checker.
    fn panics<T>(run: impl FnOnce() -> T) -> bool {
        catch_unwind(AssertUnwindSafe(run)).is_err()
    }

    #[test]
    fn the_checker_takes_what_is_right_and_fires_at_what_is_not() {
        let mut right = Checked::new(null());
        assert_eq!(ends(&mut right).len(), 3);
        assert_eq!(right.in_flight(), 0);
        for act in [Act::Twice, Act::Overclaim(1)] {
            let rules = vec![Rule { on: On::default(), act }];
            assert!(panics(|| ends(&mut Checked::new(Faulty::new(null(), rules)))), "{act:?}");
        }
        let mut checked = Checked::new(null());
        checked.submit(&io(1));
        assert!(panics(|| checked.submit(&io(1))), "a token twice");
        assert!(panics(|| checked.submit(&Io { len: 513, ..io(2) })), "pieces that do not add up");
        assert!(panics(|| checked.submit(&Io { segment_count: 0, len: 0, ..io(2) })), "an empty read");
        assert_eq!(checked.fence(std::time::Duration::ZERO, &mut Vec::with_capacity(8)), sw_engine::seam::Fence::Quiet);
        assert!(panics(|| checked.submit(&io(3))), "after Quiet");
    }

    #[test]
    fn the_checker_fires_at_memory_that_was_not_attached() {
        let memory = sw_mem::Buffer::allocate(sw_mem::ByteLen(512)).unwrap();
        let region = memory.region();
        let on = |raw| {
            let plain = io(raw);
            let piece = MemorySegment { region: region.id(), place: region.base(), ..plain.segments[0] };
            Io { segments: [piece; MAX_SEGMENTS], ..plain }
        };
        let mut checked = Checked::new(null().with_regions(Regions::Attached));
        assert!(panics(|| checked.submit(&on(1))), "never attached");
        checked.attach(Attach::Region(region)).unwrap();
        assert_eq!(checked.submit(&on(1)), Submit::Accepted);
        assert!(panics(|| checked.attach(Attach::RegionGone(region.id()))), "taken away in flight");
        let mut hinted = Checked::new(null());
        assert_eq!(hinted.submit(&on(1)), Submit::Accepted);
        hinted.attach(Attach::RegionGone(region.id())).unwrap();
    }

    #[test]
    fn a_recording_keeps_calls_and_answers_in_order_up_to_its_limit() {
        let (mut recording, log) = Recording::new(null(), 6);
        ends(&mut recording);
        recording.cancel(Token::from_raw(9));
        let log = log.lock().unwrap();
        assert!(matches!(
            log.as_slice(),
            [
                Event::Submit(first, Submit::Accepted),
                Event::Submit(..),
                Event::Submit(..),
                Event::Ring,
                Event::Done(done),
                Event::Done(_),
            ] if first.token == done.token
        ));
    }
}
