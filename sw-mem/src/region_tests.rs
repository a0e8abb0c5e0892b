// UNSAFETY: foreign ranges enter a region through an unsafe constructor, whose refusals are tested here.

use super::*;

#[test]
fn a_buffer_goes_out_as_a_span_and_comes_back() {
    let mut buffer = Buffer::allocate(ByteLen(10_000)).unwrap();
    buffer.as_mut_slice()[9_999] = 7;
    let span = buffer.into_span();
    span.write(0, b"abc").unwrap();
    let back = span.into_buffer().unwrap();
    assert_eq!(&back.as_slice()[..3], b"abc");
    assert_eq!(back.as_slice()[9_999], 7);
}

#[test]
fn a_part_of_shared_memory_never_becomes_a_buffer() {
    let shared = Buffer::allocate(ByteLen(100)).unwrap().into_span().share();
    assert!(shared.part(0, ByteLen(10)).unwrap().into_buffer().is_err());
}

#[test]
fn a_region_of_own_memory_gives_no_spans_behind_its_owner() {
    let buffer = Buffer::allocate(ByteLen(100)).unwrap();
    assert_eq!(buffer.region().span(0, ByteLen(10)).unwrap_err(), MemError::Owned);
    let span = buffer.into_span();
    assert_eq!(span.region().span(0, ByteLen(10)).unwrap_err(), MemError::Owned);
}

#[test]
fn halves_of_a_buffer_are_disjoint_and_keep_it_alive() {
    let (mut left, mut right) = Buffer::allocate(ByteLen(64)).unwrap().split_at(20).unwrap();
    left.as_mut_slice().fill(1);
    right.as_mut_slice().fill(2);
    assert_eq!((left.len(), right.len()), (ByteLen(20), ByteLen(44)));
    drop(right);
    assert!(left.as_slice().iter().all(|byte| *byte == 1));
    assert!(left.split_at(21).is_err());
}

#[test]
fn the_phase_of_an_allocation_is_kept() {
    let buffer = Buffer::allocate_with(ByteLen(5), 12_345, HugePages::Advise, Populate::Lazy).unwrap();
    assert_eq!(buffer.as_slice().as_ptr().addr() % 4096, 12_345 % 4096);
}

#[test]
fn ranges_outside_are_refused_before_anything_is_touched() {
    let span = Buffer::allocate(ByteLen(100)).unwrap().into_span();
    let out = |at, len| MemError::OutOfRange { at, len, have: ByteLen(100) };
    assert_eq!(span.write(98, b"abc"), Err(out(98, 3)));
    assert_eq!(span.fill(u64::MAX, 2, 0), Err(out(u64::MAX, 2)));
    assert_eq!(span.read(101, &mut []), Err(out(101, 0)));
    assert_eq!(
        crate::model_span(span.region(), 5000, ByteLen(1)).unwrap_err(),
        MemError::OutOfRange { at: 5000, len: 1, have: ByteLen(4096) }
    );
}

#[test]
fn overlapping_copies_keep_their_bytes() {
    let span = Buffer::allocate(ByteLen(16)).unwrap().into_span();
    span.write(0, b"0123456789").unwrap();
    span.copy_from(2, &span, 0, 10).unwrap();
    let mut seen = [0; 12];
    span.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"010123456789");
}

#[test]
fn visit_shows_every_byte_once_in_order() {
    let mut buffer = Buffer::allocate(ByteLen(40_000)).unwrap();
    for (at, byte) in buffer.as_mut_slice().iter_mut().enumerate() {
        *byte = at.to_le_bytes()[0];
    }
    let span = buffer.into_span();
    let mut seen = Vec::new();
    span.visit(3, 39_000, |piece| seen.extend_from_slice(piece)).unwrap();
    assert_eq!(seen.len(), 39_000);
    assert!(seen.iter().enumerate().all(|(at, byte)| *byte == (at + 3).to_le_bytes()[0]));
}

#[test]
fn device_memory_is_never_touched_by_the_cpu() {
    let place = Place::Device(DeviceId(0), GpuVa::new(0x7000_0000));
    // SAFETY: device memory is never dereferenced here, which is what the test shows.
    let region = unsafe { DmaRegion::from_foreign(place, ByteLen(4096), Box::new(())) }.unwrap();
    let span = region.span(16, ByteLen(16)).unwrap();
    assert_eq!(span.place(), Place::Device(DeviceId(0), GpuVa::new(0x7000_0010)));
    assert_eq!(span.fill(0, 1, 0), Err(MemError::NotHost(DeviceId(0))));
}

#[test]
fn null_and_wrapping_foreign_ranges_are_refused() {
    let foreign = |raw, len| {
        // SAFETY: refused before any use.
        unsafe { DmaRegion::from_foreign(Place::Host(HostVa::new(raw)), ByteLen(len), Box::new(())) }.unwrap_err()
    };
    assert_eq!(foreign(0, 1), MemError::BadAddress { raw: 0, len: ByteLen(1) });
    assert_eq!(foreign(u64::MAX, 2), MemError::BadAddress { raw: u64::MAX, len: ByteLen(2) });
}

#[test]
fn modelled_memory_never_names_a_real_device_and_refuses_the_cpu() {
    let model = DeviceId(DeviceId::MODEL_FIRST);
    let region = DmaRegion::modelled(model, GpuVa::new(1 << 40), ByteLen(64)).unwrap();
    assert_eq!(region.span(0, ByteLen(64)).unwrap().read(0, &mut [0]), Err(MemError::NotHost(model)));
    for (device, base, len) in [(DeviceId(0), 1 << 40, 64), (model, u64::MAX, 64), (model, 1 << 40, 0)] {
        assert!(DmaRegion::modelled(device, GpuVa::new(base), ByteLen(len)).is_err());
    }
}

#[test]
fn holders_are_handles_and_spans() {
    let buffer = Buffer::allocate(ByteLen(100)).unwrap();
    let region = buffer.region().clone();
    let span = crate::model_span(&region, 0, ByteLen(1)).unwrap();
    assert_eq!(region.holders(), 3);
    drop((buffer, span));
    assert_eq!(region.holders(), 1);
}

#[test]
fn only_the_last_holder_of_a_mapping_gets_slices_back() {
    let region = Buffer::allocate(ByteLen(100)).unwrap().region().clone();
    let span = crate::model_span(&region, 0, ByteLen(1)).unwrap();
    let region = region.reclaim(0, ByteLen(100)).unwrap_err();
    drop(span);
    assert!(region.clone().reclaim(0, ByteLen(100)).is_err(), "the clone's original still holds it");
    let region = region.reclaim(4096, ByteLen(1)).unwrap_err();
    assert_eq!(region.reclaim(10, ByteLen(90)).unwrap().len(), ByteLen(90));
}

/// Says when it goes, and whether the memory's owner had gone before.
struct Guest(std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>, &'static str);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(self.1);
    }
}

#[test]
fn guests_go_before_the_memory_and_with_the_last_handle() {
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let owner = Box::new(Guest(log.clone(), "memory"));
    let mut word = Box::new(0u64);
    let place = Place::Host(HostVa::new((&raw mut *word) as u64));
    // SAFETY: the box outlives the region; nobody else touches it.
    let region = unsafe { DmaRegion::from_foreign(place, ByteLen(8), owner) }.unwrap();
    let (key, other) = (GuestKey::fresh(), GuestKey::fresh());
    region.bind::<()>(key, || Ok(Box::new(Guest(log.clone(), "guest")))).unwrap();
    region.bind::<()>(key, || unreachable!("bound already")).unwrap();
    assert_eq!(region.bind(other, || Err("refused")), Err("refused"));
    assert_eq!(region.bound(key, |guest: &Guest| guest.1), Some("guest"));
    assert_eq!(region.bound(other, |guest: &Guest| guest.1), None);
    region.bind::<()>(other, || Ok(Box::new(Guest(log.clone(), "early")))).unwrap();
    assert!(!region.unbind_if(other, |guest: &Guest| guest.1 == "late"), "it is another one than the caller saw");
    assert!(!region.unbind_if(other, |_: &String| true), "no guest of that type");
    assert!(!region.unbind_if(GuestKey::fresh(), |_: &Guest| true));
    assert!(log.lock().unwrap().is_empty());
    assert!(region.unbind_if(other, |guest: &Guest| guest.1 == "early"));
    assert_eq!(region.bound(other, |guest: &Guest| guest.1), None);
    region.unbind(other);
    let span = region.span(0, ByteLen(8)).unwrap();
    drop(region);
    assert_eq!(*log.lock().unwrap(), ["early"]);
    drop(span);
    assert_eq!(*log.lock().unwrap(), ["early", "guest", "memory"]);
}

#[test]
fn words_are_aligned_little_endian_and_inside() {
    let span = Buffer::allocate(ByteLen(16)).unwrap().into_span();
    span.write(4, &[1, 2, 3, 4]).unwrap();
    assert_eq!(span.load32(4), Ok(0x0403_0201));
    span.store32(8, 0x0a0b_0c0d).unwrap();
    let mut bytes = [0; 4];
    span.read(8, &mut bytes).unwrap();
    assert_eq!(bytes, [0x0d, 0x0c, 0x0b, 0x0a]);
    assert!(span.load32(13).is_err() && span.load32(2).is_err() && span.store32(16, 0).is_err());
}

#[test]
fn a_weak_handle_finds_a_region_and_keeps_no_memory() {
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let buffer = Buffer::allocate(ByteLen(100)).unwrap();
    let weak = buffer.region().downgrade();
    assert_eq!(weak.upgrade().unwrap().id(), buffer.region().id());
    let key = GuestKey::fresh();
    buffer.region().bind::<()>(key, || Ok(Box::new(Guest(log.clone(), "guest")))).unwrap();
    let region = buffer.into_span().region().clone();
    assert!(weak.is_alive(), "the clone holds it");
    let buffer = region.reclaim(0, ByteLen(100)).unwrap();
    drop(buffer);
    assert!(!weak.is_alive() && weak.upgrade().is_none() && *log.lock().unwrap() == ["guest"]);
}
