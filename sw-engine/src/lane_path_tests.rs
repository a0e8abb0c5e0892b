//! What may go which way, and what the report says of it.

use super::*;
use crate::{error::Fault, plan::RouteMatch};

const DMA: RouteMatch = RouteMatch { transport: None, landing: Some(Landing::Dma) };

/// The file of a bed, with another block and write unit of its direct face; without that face if the block is 1.
fn variant(bed: &Bed, file: usize, block: u32, write_unit: u32) -> Object {
    let plain = &bed.objects[file];
    let mut faces = plain.faces.clone();
    if block == 1 {
        faces.remove(0);
        faces[0].because = Some(Reason::DirectRefused);
    } else {
        faces[0].granularity.block = block;
        faces[0].write_unit = write_unit;
    }
    Object {
        id: Object::next_id(),
        name: plain.name.clone(),
        len: plain.len,
        version: Version::default(),
        faces,
        residency: Residency::Unknown.into(),
        composed: None,
        keep: Box::new(()),
    }
}

fn choose(bed: &Bed, object: &Object, policy: Policy, verb: Verb) -> crate::Choice {
    let caps = bed.lane.transport_caps();
    plan(object, &MemoryFacts::HOST, &caps, &policy, &RateTable::new(), verb).choice.unwrap()
}

fn submit(bed: &mut Bed, target: Target, verb: Verb, at: u64, len: u64) -> Result<OpId, Box<Error>> {
    let buffer = bed.buffer(len, at);
    let op = Op { target, ..bed.op(verb, at, Spans::One(buffer.into_span())) };
    bed.lane.submit(Time(0), op).map_err(|rejected| Box::new(rejected.error))
}

fn plain(bed: &mut Bed, policy: Policy, verb: Verb, at: u64, len: u64) -> Result<Completion, Box<Error>> {
    let target = bed.target(0, policy, verb);
    submit(bed, target, verb, at, len).map(|_| bed.run())
}

fn set(bed: &Bed, unit: u64, members: Vec<Object>, policy: Policy, verb: Verb) -> Result<Target, Error> {
    let choices = members.iter().map(|member| choose(bed, member, policy, verb)).collect();
    let members: Vec<_> = members.into_iter().map(Arc::new).collect();
    let geometry = StripeGeometry::new(unit, u32::try_from(members.len()).unwrap()).unwrap();
    let set = Object {
        id: Object::next_id(),
        name: "set".into(),
        len: geometry.logical_len(members.iter().map(|member| member.len).min().unwrap()),
        version: Version::default(),
        faces: Vec::new(),
        residency: Residency::Unknown.into(),
        composed: Some((Layout::Stripe(geometry), members)),
        keep: Box::new(()),
    };
    Target::composed(Arc::new(set), choices)
}

#[test]
fn a_write_that_is_all_ends_does_not_claim_the_direct_route() {
    let mut bed = bed();
    let done = plain(&mut bed, Policy::Any, Verb::Write, 100, 100).unwrap();
    assert_eq!(done.path.bytes, ByPath { kernel_copy: 100, ..ByPath::default() });
    assert_eq!((done.path.route.landing, done.path.reason), (Landing::KernelCopy, Reason::RaggedEnds));
    // Two pages in the middle go direct: most of it, but not all.
    let done = plain(&mut bed, Policy::Any, Verb::Write, 4000, 9000).unwrap();
    assert_eq!(done.path.bytes, ByPath { dma: 8192, kernel_copy: 808, staged: 0 });
    assert_eq!((done.path.route.landing, done.path.reason), (Landing::Dma, Reason::RaggedEnds));
    let done = plain(&mut bed, Policy::Any, Verb::Write, 4096, 8192).unwrap();
    assert_eq!((done.path.route.landing, done.path.reason), (Landing::Dma, Reason::Best));
    // A read inside a block is a bounce and nothing else.
    let done = plain(&mut bed, Policy::Any, Verb::Read, 100, 100).unwrap();
    assert_eq!(done.path.bytes.staged, 100);
    assert_eq!((done.path.route.landing, done.path.reason), (Landing::Staged, Reason::RaggedEnds));
    bed.idle();
}

#[test]
fn one_unit_is_never_written_both_ways() {
    for unit in [4096u32, 16_384] {
        let mut bed = bed_with(1, 200_000, 3, 4);
        let object = variant(&bed, 0, BLOCK, unit);
        let choice = choose(&bed, &object, Policy::Any, Verb::Write);
        let object = Arc::new(object);
        let mut ways = std::collections::BTreeMap::new();
        // Neighbours that meet inside units, as shards of a checkpoint do.
        for (at, end) in [(0, 20_000), (20_000, 66_048), (66_048, 131_584), (131_584, 140_000)] {
            let target = Target::new(object.clone(), choice).unwrap();
            bed.memory.lock().unwrap().hold = true;
            submit(&mut bed, target, Verb::Write, at, end - at).unwrap();
            for _ in 0..10 {
                bed.memory.lock().unwrap().hold = true;
                bed.lane.poll(Time(1), Wait::No);
                let taken: Vec<Io> = bed.memory.lock().unwrap().taken.iter().copied().collect();
                for io in taken {
                    for page in io.offset / u64::from(unit)..(io.offset + u64::from(io.len)).div_ceil(u64::from(unit)) {
                        ways.entry(page).or_insert_with(Vec::new).push(io.handle);
                    }
                }
                bed.memory.lock().unwrap().hold = false;
                bed.lane.poll(Time(1), Wait::No);
            }
            bed.lane.pop().unwrap().result.unwrap();
        }
        let mixed = ways.iter().find(|(_, handles)| handles.iter().any(|handle| *handle != handles[0]));
        assert_eq!(mixed, None, "unit {unit}: {ways:?}");
        assert!(ways.values().any(|handles| handles[0] == 0), "nothing went direct: {ways:?}");
        bed.idle();
    }
}

#[test]
fn a_demanded_write_is_whole_units_or_refused() {
    let mut bed = bed();
    for (at, len) in [(0, 512), (512, 4096), (4096, 4608), (4095, 4096)] {
        let error = plain(&mut bed, Policy::Require(DMA), Verb::Write, at, len).unwrap_err();
        assert_eq!((error.kind(), error.reasons()), (ErrorKind::PolicyUnmet, [Reason::RaggedEnds].as_slice()));
    }
    let done = plain(&mut bed, Policy::Require(DMA), Verb::Write, 4096, 8192).unwrap();
    assert_eq!((done.path.bytes.dma, done.path.reason), (8192, Reason::Best));
    // Reads change nothing, so blocks are enough.
    let done = plain(&mut bed, Policy::Require(DMA), Verb::Read, 512, 1024).unwrap();
    assert_eq!(done.path.bytes.dma, 1024);
    // Without another face nobody meets anybody: blocks are enough.
    let mut alone = variant(&bed, 0, BLOCK, 1);
    alone.faces.truncate(1);
    let choice = choose(&bed, &alone, Policy::Require(DMA), Verb::Write);
    submit(&mut bed, Target::new(Arc::new(alone), choice).unwrap(), Verb::Write, 512, 512).unwrap();
    assert_eq!(bed.run().path.bytes.dma, 512);
    bed.idle();
}

#[test]
fn a_demanded_core_must_be_there() {
    let mut bed = bed();
    let core = Policy::RequireCore(DMA);
    for (verb, at, len) in
        [(Verb::Write, 512, 1024), (Verb::Write, 512, 7168), (Verb::Read, 10, 500), (Verb::Read, 10, 1000)]
    {
        let error = plain(&mut bed, core, verb, at, len).unwrap_err();
        assert_eq!((error.kind(), error.reasons()), (ErrorKind::PolicyUnmet, [Reason::RaggedEnds].as_slice()));
    }
    for (verb, at, len, direct) in [(Verb::Write, 512, 7680, 4096), (Verb::Read, 10, 1014, 512)] {
        let done = plain(&mut bed, core, verb, at, len).unwrap();
        assert_eq!((done.path.bytes.dma, done.path.reason), (direct, Reason::RaggedEnds), "{verb}");
    }
    // One part of many is enough.
    for (second, fine) in [(1024u64, true), (700, false)] {
        let parts = [(7, 100), (4096, second)].map(|(offset, len)| {
            let buffer = bed.buffer(len.min(511).max(if fine { len } else { 0 }), offset);
            Segment { offset, span: buffer.into_span() }
        });
        let op = Op { target: bed.target(0, core, Verb::Read), ..bed.op(Verb::Read, 0, Spans::Many(parts.into())) };
        assert_eq!(bed.lane.submit(Time(0), op).is_ok(), fine);
    }
    bed.run().result.unwrap();
    bed.idle();
}

#[test]
fn blocks_too_large_to_bounce_are_staged_at_the_ends_only() {
    let mut bed = bed_with(1, 131_072, 3, 4);
    let object = variant(&bed, 0, 8192, 8192);
    let choice = choose(&bed, &object, Policy::RequireCore(DMA), Verb::Read);
    submit(&mut bed, Target::new(Arc::new(object), choice).unwrap(), Verb::Read, 8000, 60_000).unwrap();
    let done = bed.run();
    assert_eq!(done.path.bytes, ByPath { dma: 57_344, kernel_copy: 0, staged: 192 + 2464 });
    let expected: Vec<u8> = (8000..68_000).map(|at| pattern(0, at)).collect();
    assert!(buffer_of(done).as_slice() == expected);
    bed.idle();
}

#[test]
fn a_stripe_unit_that_divides_a_block_is_refused() {
    let bed = bed_with(2, 131_072, 3, 4);
    for (block, write_unit) in [(16_384, 16_384), (512, 16_384)] {
        let members = || (0..2).map(|file| variant(&bed, file, block, write_unit)).collect();
        let error = set(&bed, 8192, members(), Policy::Any, Verb::Write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("16384"), "{error}");
        set(&bed, 16_384, members(), Policy::Any, Verb::Write).unwrap();
    }
}

#[test]
fn a_stripe_set_reports_the_way_of_most_bytes_and_the_worst_reason() {
    for buffered in [0, 1] {
        let mut bed = bed_with(2, 131_072, 3, 4);
        let members = (0..2).map(|file| variant(&bed, file, if file == buffered { 1 } else { BLOCK }, 4096)).collect();
        let target = set(&bed, 4096, members, Policy::Any, Verb::Read).unwrap();
        // Two units of one member and one of the other, in turn.
        for (at, most) in [(0, 0), (4096, 1)] {
            submit(&mut bed, target.clone(), Verb::Read, at, 3 * 4096).unwrap();
            let path = bed.run().path;
            let landing = if most == buffered { Landing::KernelCopy } else { Landing::Dma };
            assert_eq!((path.route.landing, path.reason), (landing, Reason::DirectRefused), "{:?}", path.bytes);
        }
        // What lies on one member alone has that member's way.
        submit(&mut bed, target.clone(), Verb::Read, 4096, 4096).unwrap();
        let path = bed.run().path;
        let expected =
            if buffered == 1 { (Landing::KernelCopy, Reason::DirectRefused) } else { (Landing::Dma, Reason::Best) };
        assert_eq!((path.route.landing, path.reason), expected);
        bed.idle();
    }
}

#[test]
fn a_write_chunk_with_bytes_that_nobody_gave_is_never_sent() {
    let mut bed = bed();
    let mut choice = bed.target(0, Policy::Any, Verb::Write).choice;
    // A plan made by hand, whose way for the ends takes whole blocks only.
    choice.ends.as_mut().unwrap().granularity.block = BLOCK;
    let target = Target::new(bed.objects[0].clone(), choice).unwrap();
    submit(&mut bed, target, Verb::Write, 100, 100).unwrap();
    assert!(bed.memory.lock().unwrap().taken.is_empty());
    let error = bed.run().result.unwrap_err();
    assert_eq!(error.kind(), Fault::new(ErrorKind::Protocol, 0).kind);
    bed.idle();
}

#[test]
fn poison_shows_bytes_that_a_device_claims_and_never_wrote() {
    const POISON: u8 = 0xdb;
    for (at, len) in [(512, 4096), (1_003, 60_001)] {
        for poison in [None, Some(POISON)] {
            let mut bed = bed();
            bed.memory.lock().unwrap().mute = true;
            let mut buffer = bed.buffer(len, at);
            buffer.as_mut_slice().fill(0x11);
            let mut op = bed.op(Verb::Read, at, Spans::One(buffer.into_span()));
            op.options.poison = poison;
            bed.lane.submit(Time(0), op).unwrap();
            let done = bed.run();
            assert_eq!(done.result.as_ref().unwrap(), &len);
            // Ends that are not whole blocks come out of a slab, whatever it held.
            let block = usize::try_from(at.next_multiple_of(512) - at).unwrap();
            let whole = usize::try_from(done.path.bytes.dma).unwrap();
            assert!(whole >= 4096);
            let left = poison.unwrap_or(0x11);
            assert!(buffer_of(done).as_slice()[block..][..whole].iter().all(|byte| *byte == left), "{at} {poison:?}");
        }
    }
    // Every part of a read into several places, and never what is to be written.
    let mut bed = bed_with(1, 100_000, 3, 4);
    bed.memory.lock().unwrap().mute = true;
    let parts = [bed.buffer(4096, 0), bed.buffer(8192, 0)];
    let segments = parts.into_iter().zip([0, 4096]);
    let segments = segments.map(|(buffer, offset)| Segment { offset, span: buffer.into_span() }).collect();
    let mut op = bed.op(Verb::Read, 0, Spans::Many(segments));
    op.options.poison = Some(POISON);
    bed.lane.submit(Time(0), op).unwrap();
    let Spans::Many(segments) = bed.run().op.unwrap().spans else { panic!("other memory came back") };
    for buffer in segments.into_iter().map(|segment| segment.span.into_buffer().unwrap()) {
        assert!(buffer.as_slice().iter().all(|byte| *byte == POISON));
    }
    let mut buffer = bed.buffer(4096, 0);
    buffer.as_mut_slice().fill(0x22);
    let mut op = bed.op(Verb::Write, 0, Spans::One(buffer.into_span()));
    op.options.poison = Some(POISON);
    bed.lane.submit(Time(0), op).unwrap();
    assert!(buffer_of(bed.run()).as_slice().iter().all(|byte| *byte == 0x22));
    bed.idle();
}

#[test]
fn bytes_that_a_transport_copied_aside_are_told_as_staged_and_copied_twice_more() {
    let mut bed = bed();
    for (verb, at, len, asides, bounced) in
        [(Verb::Read, 4096, 8192, vec![4096], 0), (Verb::Read, 100, 60_000, vec![512, 1024], 100)]
    {
        let plain = plain(&mut bed, Policy::Any, verb, at, len).unwrap();
        let before = *bed.lane.counters();
        bed.memory.lock().unwrap().asides.extend(&asides);
        let target = bed.target(0, Policy::Any, verb);
        submit(&mut bed, target, verb, at, len).unwrap();
        let (done, after) = (bed.run(), *bed.lane.counters());
        done.result.as_ref().unwrap();
        let aside: u64 = asides.into_iter().map(u64::from).sum();
        let (path, was) = (done.path, plain.path);
        assert_eq!(path.bytes.total(), len);
        // Of a block that is bounced, what went aside is staged already.
        let staged = path.bytes.staged - was.bytes.staged;
        assert!(staged <= aside && staged + 2 * bounced >= aside && staged > 0, "{path:?}, and without {was:?}");
        assert_eq!((path.bounced, path.reason), (was.bounced, Reason::OutOfOrder));
        assert_eq!(path.cpu_copied, was.cpu_copied + 2 * aside);
        assert_eq!(after.cpu_copied - before.cpu_copied, path.cpu_copied);
        assert_eq!(after.bytes.staged - before.bytes.staged, path.bytes.staged);
    }
    bed.idle();
}
