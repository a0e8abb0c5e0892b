//! Copies and fills, now or in a stream.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{Answer, INVALID_VALUE, In, api};
use crate::arena::Kind;
use crate::queue::Work;
use crate::{queue, state};

api! {
    fn cuMemcpy(dst: u64, src: u64, bytes: u64) { copy(Some(Side::Any), dst, Side::Any, src, bytes, 0, When::Now) }
    fn cuMemcpyHtoD_v2(dst: u64, src: u64, bytes: u64) {
        copy(Some(Side::Device), dst, Side::Any, src, bytes, 0, When::Now)
    }
    fn cuMemcpyDtoH_v2(dst: u64, src: u64, bytes: u64) {
        copy(Some(Side::Any), dst, Side::Device, src, bytes, 0, When::Now)
    }
    fn cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: u64) {
        copy(Some(Side::Device), dst, Side::Device, src, bytes, 0, When::Now)
    }
    fn cuMemcpyPeer(dst: u64, _dst_context: u64, src: u64, _src_context: u64, bytes: u64) {
        copy(Some(Side::Device), dst, Side::Device, src, bytes, 0, When::Now)
    }
    fn cuMemcpyAsync(dst: u64, src: u64, bytes: u64, stream: u64) {
        copy(Some(Side::Any), dst, Side::Any, src, bytes, stream, When::Queued)
    }
    fn cuMemcpyHtoDAsync_v2(dst: u64, src: u64, bytes: u64, stream: u64) {
        copy(Some(Side::Device), dst, Side::Any, src, bytes, stream, When::Queued)
    }
    fn cuMemcpyDtoHAsync_v2(dst: u64, src: u64, bytes: u64, stream: u64) {
        copy(Some(Side::Any), dst, Side::Device, src, bytes, stream, When::Queued)
    }
    fn cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: u64, stream: u64) {
        copy(Some(Side::Device), dst, Side::Device, src, bytes, stream, When::Queued)
    }
    fn cuMemcpyPeerAsync(dst: u64, _dst_context: u64, src: u64, _src_context: u64, bytes: u64, stream: u64) {
        copy(Some(Side::Device), dst, Side::Device, src, bytes, stream, When::Queued)
    }
    fn cuMemsetD8_v2(dst: u64, byte: u8, bytes: u64) { fill(dst, byte, bytes, 0, When::Now) }
    fn cuMemsetD8Async(dst: u64, byte: u8, bytes: u64, stream: u64) { fill(dst, byte, bytes, stream, When::Queued) }
}

mod batch {
    use super::*;
    use crate::abi::Out;

    api! {
        fn cuMemcpyBatchAsync(
            dsts: In<u64>, srcs: In<u64>, sizes: In<u64>, count: u64, _attributes: u64, _indices: u64, _kinds: u64,
            failed: Out<u64>, stream: u64,
        ) {
            for index in 0..count {
                if let Err(code) = one_of(&dsts, &srcs, &sizes, index, stream) {
                    failed.set_if(index);
                    return Err(code);
                }
            }
            Ok(())
        }

        fn cuMemcpyBatchAsync_v2(
            dsts: In<u64>, srcs: In<u64>, sizes: In<u64>, count: u64, _attributes: u64, _indices: u64, _kinds: u64,
            stream: u64,
        ) {
            (0..count).try_for_each(|index| one_of(&dsts, &srcs, &sizes, index, stream))
        }
    }
}

fn one_of(dsts: &In<u64>, srcs: &In<u64>, sizes: &In<u64>, index: u64, stream: u64) -> Answer {
    let at = usize::try_from(index).map_err(|_| INVALID_VALUE)?;
    copy(Some(Side::Any), dsts.at(at)?, Side::Any, srcs.at(at)?, sizes.at(at)?, stream, When::Queued)
}

/// What an argument must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Anything: unified addressing tells.
    Any,
    /// Memory that the device has an address for.
    Device,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    Queued,
}

#[expect(clippy::too_many_arguments, reason = "one body for eleven functions that differ in exactly these")]
fn copy(to: Option<Side>, dst: u64, from: Side, src: u64, bytes: u64, stream: u64, when: When) -> Answer {
    if bytes == 0 {
        return state::with(|s| s.current()).map(|_| ());
    }
    let (stream, pageable) = state::attempt(|s| {
        s.current()?;
        let stream = s.stream(stream)?;
        for (side, address) in [(to.unwrap_or(Side::Any), dst), (from, src)] {
            let known = s.arena.find(address).is_some();
            if address == 0 || (side == Side::Device && !known) || s.arena.reach(address, bytes).is_none() {
                return Err(INVALID_VALUE);
            }
        }
        // Pageable host memory cannot be read later: the driver stages it, and returns when that is done
        // (CUDA Driver API, "API synchronization behavior").
        Ok((stream, s.arena.find(dst).is_none() || s.arena.find(src).is_none()))
    })?;
    queued(stream, Work::Copy { dst, src, len: bytes }, if pageable { When::Now } else { when })
}

fn fill(dst: u64, byte: u8, bytes: u64, stream: u64, when: When) -> Answer {
    let stream = state::attempt(|s| {
        s.current()?;
        let stream = s.stream(stream)?;
        let ours = s.arena.find(dst).is_some_and(|r| r.kind != Kind::Registered || r.is_ours() || bytes > 0);
        if !ours || s.arena.reach(dst, bytes).is_none() { Err(INVALID_VALUE) } else { Ok(stream) }
    })?;
    queued(stream, Work::Fill { dst, byte, len: bytes }, when)
}

fn queued(stream: u64, work: Work, when: When) -> Answer {
    let seq = state::with(|s| queue::push(s, stream, work))?;
    if when == When::Now { queue::run_to(stream, seq) } else { queue::after_push(stream, seq) }
}
