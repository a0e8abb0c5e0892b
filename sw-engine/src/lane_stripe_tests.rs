//! Stripe sets whose members have transports of their own.

use super::*;

const UNIT: u64 = 4096;
const UNITS: u64 = 400;

/// Two members, each behind its own transport of depth 4.
fn two_disks() -> (Lane, [Arc<Mutex<Memory>>; 2], Target) {
    let len = usize::try_from(UNIT * UNITS / 2).unwrap();
    let disk = |name, file: usize| {
        let (host, device, regions) = (Ok(()), Err(Reason::NoPeerPages), Regions::Any);
        let caps =
            TransportCaps { name, queue_depth: 4, io_bytes_max: 16 << 10, segments_max: 3, host, device, regions };
        let mut bytes = vec![Vec::new(); file];
        bytes.push((0..len).map(|at| pattern(file, at)).collect());
        Arc::new(Mutex::new(Memory::new(bytes, caps)))
    };
    let disks = [disk("mem0", 0), disk("mem1", 1)];
    let transports = disks.iter().map(super::disk).collect();
    let lane = Lane::new(LaneConfig::default(), LaneParts { transports, copiers: Vec::new(), staging: None }).unwrap();
    let member = |(file, name)| {
        let plain = object(file, len);
        let faces = plain.faces.iter().map(|face| Face { transport: name, ..*face }).collect();
        let plain = Arc::into_inner(plain).unwrap();
        Arc::new(Object { faces, ..plain })
    };
    let members: Vec<_> = [(0, "mem0"), (1, "mem1")].into_iter().map(member).collect();
    let choices = members.iter().map(|member| {
        let caps = lane.transport_caps();
        plan(member, &MemoryFacts::HOST, &caps, &Policy::Any, &RateTable::new(), Verb::Read).choice.unwrap()
    });
    let choices = choices.collect();
    let geometry = StripeGeometry::new(UNIT, 2).unwrap();
    let set = Object {
        id: Object::next_id(),
        name: "stripe".into(),
        len: geometry.logical_len(len as u64),
        version: Version::default(),
        faces: Vec::new(),
        residency: Residency::Unknown.into(),
        composed: Some((Layout::Stripe(geometry), members)),
        keep: Box::new(()),
    };
    let target = Target::composed(Arc::new(set), choices).unwrap();
    (lane, disks, target)
}

#[test]
fn pieces_of_a_checksum_stay_few_while_one_member_lags() {
    let (mut lane, disks, target) = two_disks();
    let buffer = Buffer::allocate_with(ByteLen(UNIT * UNITS), 0, HugePages::Never, sw_mem::Populate::Lazy).unwrap();
    lane.attach(Attach::Region(buffer.region())).unwrap();
    disks[0].lock().unwrap().hold = true;
    let options = OpOptions { checksum: Some(Algorithm::Crc64Nvme), ..OpOptions::default() };
    let spans = Spans::One(buffer.into_span());
    let id = lane.submit(Time(0), Op { user: 1, verb: Verb::Read, target, offset: 0, spans, options }).unwrap();
    for _ in 0..1000 {
        lane.poll(Time(1), Wait::No);
    }
    let slots = lane.slots.capacity();
    let state = lane.ops.get(id.0).unwrap().0;
    let pieces = state.pieces.as_ref().unwrap().count();
    assert!((slots..=3 * slots).contains(&pieces), "{pieces} pieces, {slots} slots, {UNITS} units");
    assert_eq!(state.flows, 2, "the other member waits, it is not at its end");
    disks[0].lock().unwrap().hold = false;
    let done = loop {
        lane.poll(Time(2), Wait::No);
        if let Some(done) = lane.pop() {
            break done;
        }
    };
    assert_eq!(done.result.as_ref().unwrap(), &(UNIT * UNITS));
    let unit = usize::try_from(UNIT).unwrap();
    let logical = |x: usize| pattern(x / unit % 2, x / unit / 2 * unit + x % unit);
    let expected: Vec<u8> = (0..usize::try_from(UNIT * UNITS).unwrap()).map(logical).collect();
    assert_eq!(done.checksum, Some(Algorithm::Crc64Nvme.of(&expected)));
}
