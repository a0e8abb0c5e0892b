//! Cases about bytes: the right ones arrive, and no others are touched.

use sw_engine::{
    ErrorKind, ObjectId,
    seam::{Attach, Io, IoKind, Transport},
};

use sw_mem::index;

use super::{
    Bed,
    arena::{Arena, Piece},
    drive::Driver,
};
use crate::{
    conformance::{CaseResult, End, fail, skip},
    pattern,
};

/// Tag of the content that objects start with.
const BEFORE: u64 = 1;
/// Tag of what cases write.
const AFTER: u64 = 2;
/// Largest I/O that a case makes, in bytes: bounds the memory of the suite.
const IO_BYTES_CAP: u32 = 8 << 20;

fn expect(what: &str, got: &[u8], want: &[u8]) -> CaseResult {
    if got.len() != want.len() {
        return fail(format!("{what}: {} bytes instead of {}", got.len(), want.len()));
    }
    match pattern::first_difference(got, want) {
        None => Ok(()),
        Some((at, got, want)) => fail(format!("{what}: byte {at} is {got:#04x} instead of {want:#04x}")),
    }
}

/// Lays `bytes` over `image` at `offset`.
fn put(image: &mut [u8], offset: u64, bytes: &[u8]) {
    image.iter_mut().skip(index(offset)).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// A length of at least 64 KiB that every face takes, with its content.
fn content() -> Vec<u8> {
    pattern::bytes(BEFORE, 0, 256 << 10)
}

fn setup(bed: &mut dyn Bed) -> Result<(Driver<'_>, Arena), End> {
    let arena = Arena::new(bed, 2 << 20)?;
    let driver = Driver::new(bed, &content())?;
    Ok((driver, arena))
}

pub(super) fn reads_what_the_object_holds(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    let (block, memory) = driver.granularity()?;
    let block = block.max(512);
    for (offset, len) in [(0, block), (u64::from(block), 3 * block), (128 << 10, 64 << 10), ((256 << 10) - 4096, 4096)]
    {
        let piece = arena.piece(len.min(driver.transport.caps().io_bytes_max), memory.into(), 0)?;
        driver.whole(IoKind::Read, offset, &arena, piece)?;
        expect("read", &arena.read(piece)?, &pattern::bytes(BEFORE, offset, piece.len as usize))?;
    }
    arena.check_guards()
}

pub(super) fn writes_and_nothing_beside(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    let (block, memory) = driver.granularity()?;
    let mut image = content();
    for n in [1u64, 2, 5] {
        let len = block.max(512) * 2;
        let (offset, piece) = (n * u64::from(len) * 2, arena.piece(len, memory.into(), 0)?);
        let bytes = pattern::bytes(AFTER + n, offset, piece.len as usize);
        arena.write(piece, &bytes)?;
        driver.whole(IoKind::Write, offset, &arena, piece)?;
        expect("memory that was written from", &arena.read(piece)?, &bytes)?;
        put(&mut image, offset, &bytes);
    }
    let flush = driver.flush(IoKind::FlushAll)?;
    if let Err(fault) = driver.one(flush)? {
        return fail(format!("flush: {fault:?}"));
    }
    arena.check_guards()?;
    let target = driver.target.clone();
    expect("the object after writes", &driver.bed.content(&target)?, &image)
}

/// Pieces for one I/O of `blocks` blocks, each piece a whole number of blocks, placed in another order than the object.
fn scattered(driver: &Driver<'_>, arena: &mut Arena) -> Result<Vec<Piece>, End> {
    let (block, memory) = driver.granularity()?;
    let count = driver.transport.caps().segments_max;
    if count < 2 {
        return skip("the transport takes one piece of memory an I/O");
    }
    let unit = block.max(512);
    let mut pieces = Vec::new();
    for n in (0..u32::from(count)).rev() {
        pieces.push(arena.piece(unit * (n + 1), memory.into(), 0)?);
    }
    pieces.reverse();
    Ok(pieces)
}

pub(super) fn pieces_fill_in_object_order(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    let pieces = scattered(&driver, &mut arena)?;
    let offset = 64 << 10;
    let io = driver.io(IoKind::Read, offset, &arena, &pieces)?;
    let want = u32::try_from(pattern_len(&pieces)).unwrap_or(u32::MAX);
    match driver.one(io)? {
        Ok(bytes) if bytes == want => {}
        other => return fail(format!("a read of {want} bytes in {} pieces gave {other:?}", pieces.len())),
    }
    let mut got = Vec::new();
    for piece in &pieces {
        got.extend(arena.read(*piece)?);
    }
    expect("pieces", &got, &pattern::bytes(BEFORE, offset, pattern_len(&pieces)))?;
    arena.check_guards()
}

fn pattern_len(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.len as usize).sum()
}

pub(super) fn pieces_write_in_object_order(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    let pieces = scattered(&driver, &mut arena)?;
    let offset = 64 << 10;
    let bytes = pattern::bytes(AFTER, offset, pattern_len(&pieces));
    let mut at = 0;
    for piece in &pieces {
        arena.write(*piece, bytes.get(at..at + piece.len as usize).unwrap_or_default())?;
        at += piece.len as usize;
    }
    let io = driver.io(IoKind::Write, offset, &arena, &pieces)?;
    match driver.one(io)? {
        Ok(done) if done as usize == bytes.len() => {}
        other => return fail(format!("a write of {} bytes gave {other:?}", bytes.len())),
    }
    let flush = driver.flush(IoKind::FlushData)?;
    driver.run(&[flush])?;
    let mut image = content();
    put(&mut image, offset, &bytes);
    let target = driver.target.clone();
    expect("the object", &driver.bed.content(&target)?, &image)
}

pub(super) fn the_largest_io_works(bed: &mut dyn Bed) -> CaseResult {
    let largest = bed.transport()?.caps().io_bytes_max;
    let len = largest.min(IO_BYTES_CAP);
    let object = (len as usize + (64 << 10)).next_multiple_of(4096);
    let mut arena = Arena::new(bed, u64::from(len) + (1 << 20))?;
    let mut driver = Driver::new(bed, &pattern::bytes(BEFORE, 0, object))?;
    let (block, memory) = driver.granularity()?;
    let len = len / block * block;
    let piece = arena.piece(len, memory.into(), 0)?;
    driver.whole(IoKind::Read, 0, &arena, piece)?;
    expect("the largest read", &arena.read(piece)?, &pattern::bytes(BEFORE, 0, len as usize))?;
    arena.check_guards()
}

pub(super) fn any_offset_on_a_bytewise_face(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    if driver.granularity()? != (1, 1) {
        return skip("the face takes whole blocks only");
    }
    for (offset, len, phase) in [(1, 1, 1), (511, 1025, 3), (4095, 2, 63), (77_777, 8191, 17), (100_001, 4096, 0)] {
        let len = len.min(driver.transport.caps().io_bytes_max);
        let piece = arena.piece(len, 64, phase)?;
        driver.whole(IoKind::Read, offset, &arena, piece)?;
        expect("an odd read", &arena.read(piece)?, &pattern::bytes(BEFORE, offset, len as usize))?;
        let bytes = pattern::bytes(AFTER, offset, len as usize);
        arena.write(piece, &bytes)?;
        driver.whole(IoKind::Write, offset, &arena, piece)?;
        arena.clear(piece)?;
        driver.whole(IoKind::Read, offset, &arena, piece)?;
        expect("an odd write read back", &arena.read(piece)?, &bytes)?;
    }
    arena.check_guards()
}

pub(super) fn works_with_and_without_hints(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    let (block, memory) = driver.granularity()?;
    let round = |driver: &mut Driver<'_>, arena: &mut Arena, when: &str| {
        let piece = arena.piece(block.max(4096), memory.into(), 0)?;
        driver.whole(IoKind::Read, 8192, arena, piece)?;
        expect(when, &arena.read(piece)?, &pattern::bytes(BEFORE, 8192, piece.len as usize))
    };
    round(&mut driver, &mut arena, "before hints")?;
    let (object, region) = (driver.target.object.clone(), arena.region().clone());
    for hints in [
        [Attach::Object(&object), Attach::Region(&region)],
        [Attach::Region(&region), Attach::Object(&object)],
        [Attach::ObjectGone(object.id), Attach::RegionGone(region.id())],
        [Attach::ObjectGone(ObjectId(u64::MAX)), Attach::RegionGone(region.id())],
        [Attach::Object(&object), Attach::Region(&region)],
    ] {
        for hint in hints {
            driver.hint(hint)?;
        }
        round(&mut driver, &mut arena, "after a hint")?;
    }
    arena.check_guards()
}

pub(super) fn memory_not_attached_is_refused(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    if !driver.must_attach() {
        return skip("the transport reaches memory that it was not told of");
    }
    let (block, memory) = driver.granularity()?;
    let piece = arena.piece(block.max(4096), memory.into(), 0)?;
    let region = arena.region().clone();
    for round in 0..2 {
        for kind in [IoKind::Read, IoKind::Write] {
            let io = driver.io_as_it_is(kind, 8192, &arena, piece)?;
            match driver.one(io)? {
                Err(fault) if fault.kind == ErrorKind::NotRegistered => {}
                other => return fail(format!("round {round}: a {kind:?} with memory not attached gave {other:?}")),
            }
        }
        // Twice: the second time changes nothing.
        driver.hint(Attach::Region(&region))?;
        driver.hint(Attach::Region(&region))?;
        driver.whole(IoKind::Read, 8192, &arena, piece)?;
        expect("attached memory", &arena.read(piece)?, &pattern::bytes(BEFORE, 8192, piece.len as usize))?;
        driver.hint(Attach::RegionGone(region.id()))?;
    }
    arena.check_guards()
}

/// One block of the object an I/O, `count` of them, in an order that is not that of the object.
fn block_ios(driver: &mut Driver<'_>, arena: &mut Arena, kind: IoKind, count: u32) -> Result<Vec<(Io, Piece)>, End> {
    let (block, memory) = driver.granularity()?;
    let len = block.max(512);
    let blocks = (256 << 10) / u64::from(len);
    let mut ios = Vec::new();
    for n in 0..count {
        // 37 is odd, so that the steps visit every block of a power of two before they repeat.
        let offset = u64::from(n) * 37 % blocks * u64::from(len);
        let piece = arena.piece(len, memory.into(), 0)?;
        ios.push((driver.io(kind, offset, arena, &[piece])?, piece));
    }
    Ok(ios)
}

pub(super) fn many_ios_end_exactly_once(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 4 << 20)?;
    let mut driver = Driver::new(bed, &content())?;
    let ios = block_ios(&mut driver, &mut arena, IoKind::Read, 300)?;
    driver.run(&ios.iter().map(|(io, _)| *io).collect::<Vec<_>>())?;
    for (io, piece) in &ios {
        match driver.ends.get(&io.token.raw()) {
            Some(Ok(bytes)) if *bytes == io.len => {}
            other => return fail(format!("a read of {} bytes at {} gave {other:?}", io.len, io.offset)),
        }
        expect("one of many", &arena.read(*piece)?, &pattern::bytes(BEFORE, io.offset, piece.len as usize))?;
    }
    // A transport that ends an I/O twice does so now at the latest.
    driver.poll(sw_engine::seam::Wait::No, 64)?;
    arena.check_guards()
}

pub(super) fn mixed_keep_every_byte(bed: &mut dyn Bed) -> CaseResult {
    let mut arena = Arena::new(bed, 4 << 20)?;
    let mut driver = Driver::new(bed, &content())?;
    let (block, memory) = driver.granularity()?;
    let len = block.max(512);
    let mut image = content();
    let mut ios = Vec::new();
    // Even blocks are written while odd ones are read: neither may disturb the other.
    for n in 0..24u64 {
        let (offset, piece) = (n * u64::from(len), arena.piece(len, memory.into(), 0)?);
        let kind = if n % 2 == 0 { IoKind::Write } else { IoKind::Read };
        if kind == IoKind::Write {
            let bytes = pattern::bytes(AFTER, offset, len as usize);
            arena.write(piece, &bytes)?;
            put(&mut image, offset, &bytes);
        }
        ios.push((driver.io(kind, offset, &arena, &[piece])?, piece));
    }
    driver.run(&ios.iter().map(|(io, _)| *io).collect::<Vec<_>>())?;
    for (io, piece) in &ios {
        let range = index(io.offset)..index(io.offset + u64::from(piece.len));
        expect("a neighbour", &arena.read(*piece)?, image.get(range).unwrap_or_default())?;
    }
    let flush = driver.flush(IoKind::FlushAll)?;
    driver.run(&[flush])?;
    let target = driver.target.clone();
    expect("the object", &driver.bed.content(&target)?, &image)
}

pub(super) fn a_flush_ends_with_zero_bytes(bed: &mut dyn Bed) -> CaseResult {
    let (mut driver, mut arena) = setup(bed)?;
    for kind in [IoKind::FlushData, IoKind::FlushAll] {
        // A flush among reads, as the engine may have it.
        let mut ios: Vec<Io> =
            block_ios(&mut driver, &mut arena, IoKind::Read, 4)?.into_iter().map(|(io, _)| io).collect();
        let flush = driver.flush(kind)?;
        ios.push(flush);
        driver.run(&ios)?;
        match driver.ends.get(&flush.token.raw()) {
            Some(Ok(0)) => {}
            other => return fail(format!("{kind:?} gave {other:?}")),
        }
    }
    Ok(())
}

/// Reads of one block each, for cases of other files.
pub(super) fn some_reads(driver: &mut Driver<'_>, arena: &mut Arena, count: u32) -> Result<Vec<Io>, End> {
    Ok(block_ios(driver, arena, IoKind::Read, count)?.into_iter().map(|(io, _)| io).collect())
}

/// The object that [`some_reads`] reads.
pub(super) fn some_content() -> Vec<u8> {
    content()
}

/// Whether two transports of one bed say the same.
pub(super) fn caps_text(transport: &dyn Transport) -> String {
    format!("{:?}", transport.caps())
}
