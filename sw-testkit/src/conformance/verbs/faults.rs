//! What goes wrong, and how it ends.

use sw_engine::seam::verbs::{Ability, Access, RemoteKey, SendOp, SendWr, WcKind, WcStatus};
use sw_mem::RemoteAddr;

use super::{
    super::{CaseResult, fail, skip},
    Bed,
    rig::{ALL, AT, DEPTH, EndPoint, MEMORY, WINDOW, pair, pair_with, register, span, there, told},
};

const OK: WcStatus = WcStatus::Success;
const FLUSH: WcStatus = WcStatus::WrFlush;
const ACCESS: WcStatus = WcStatus::RemAccess;
const POISON: u8 = 0xA5;

/// A request that the peer refuses ends with `status`, what is behind it is flushed, and the connection is over; not a byte of the other
/// end's memory changes.
fn refused(bed: &mut dyn Bed, (a, b): (&mut EndPoint, &mut EndPoint), (op, status): (SendOp, WcStatus)) -> CaseResult {
    let kind = match op {
        SendOp::RdmaRead(_) => WcKind::RdmaRead,
        SendOp::RdmaWrite(_) => WcKind::RdmaWrite,
        SendOp::Send | SendOp::SendWithInvalidate(_) => WcKind::Send,
    };
    told("poison", b.span.fill(0, MEMORY, POISON))?;
    b.recv(50, 0, 64)?;
    a.post(7, op, 0, 4096)?;
    a.post(8, SendOp::Send, 0, 8)?;
    a.expect(bed, (7, kind, status))?;
    a.expect(bed, (8, WcKind::Send, FLUSH))?;
    a.expect_error(bed)?;
    b.expect_error(bed)?;
    b.expect(bed, (50, WcKind::Recv, FLUSH))?;
    let mut all = vec![0; sw_mem::index(MEMORY)];
    told("read", b.span.read(0, &mut all))?;
    match all.iter().position(|byte| *byte != POISON) {
        None => a.quiet().and(b.quiet()),
        Some(at) => fail(format!("byte {at} changed by a request that was refused")),
    }
}

pub(super) fn past_the_window(bed: &mut dyn Bed) -> CaseResult {
    let inside = |addr: RemoteAddr, by: i64| RemoteAddr::new(addr.addr.wrapping_add_signed(by), addr.rkey());
    let last = i64::try_from(WINDOW).unwrap_or(0);
    // One byte past the end, one before the start, and addresses whose end wraps.
    for by in [last - 4095, -1, i64::MAX] {
        let (_device, mut a, mut b) = pair(bed)?;
        let to = inside(b.remote(0)?, by);
        refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))?;
        let (_device, mut a, mut b) = pair(bed)?;
        let from = inside(b.remote(0)?, by);
        refused(bed, (&mut a, &mut b), (SendOp::RdmaRead(from), ACCESS))?;
    }
    Ok(())
}

pub(super) fn access(bed: &mut dyn Bed) -> CaseResult {
    let read_only = Access::LOCAL_WRITE.with(Access::REMOTE_READ);
    let (_device, mut a, mut b) = pair_with(bed, read_only)?;
    let to = b.remote(0)?;
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))?;
    let write_only = Access::LOCAL_WRITE.with(Access::REMOTE_WRITE);
    let (_device, mut a, mut b) = pair_with(bed, write_only)?;
    let from = b.remote(0)?;
    refused(bed, (&mut a, &mut b), (SendOp::RdmaRead(from), ACCESS))
}

pub(super) fn other_domain(bed: &mut dyn Bed) -> CaseResult {
    let (device, mut a, mut b) = pair(bed)?;
    let foreign = told("pd", device.alloc_pd())?;
    let mr = register(&foreign, &b.span, ALL)?;
    let to = there("remote", mr.remote(0))?;
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))
}

pub(super) fn local_key(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair_with(bed, Access::LOCAL_WRITE)?;
    let sge = b.sge(0, 4096)?;
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(RemoteAddr::new(sge.addr, sge.lkey.0)), ACCESS))
}

pub(super) fn revoked(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    let lease = register(&b.pd, &b.span, ALL)?;
    let to = there("remote", lease.remote(0))?;
    a.post(1, SendOp::RdmaWrite(to), 0, 4096)?;
    a.expect(bed, (1, WcKind::RdmaWrite, OK))?;
    lease.deregister();
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))
}

pub(super) fn invalidate(bed: &mut dyn Bed) -> CaseResult {
    let (device, mut a, mut b) = pair(bed)?;
    if device.facts().remote_invalidate == Ability::No {
        return skip("the device has no SEND with Invalidate");
    }
    let lease = register(&b.pd, &b.span, ALL)?;
    let to = there("remote", lease.remote(0))?;
    b.recv(3, 0, 64)?;
    a.post(1, SendOp::RdmaWrite(to), 0, 4096)?;
    a.post(2, SendOp::SendWithInvalidate(RemoteKey(to.rkey())), 0, 16)?;
    a.expect(bed, (1, WcKind::RdmaWrite, OK))?;
    a.expect(bed, (2, WcKind::Send, OK))?;
    let wc = b.expect(bed, (3, WcKind::Recv, OK))?;
    if wc.invalidated != Some(RemoteKey(to.rkey())) {
        return fail(format!("{wc:?} does not tell what was invalidated"));
    }
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))?;
    lease.deregister();
    Ok(())
}

pub(super) fn invalidate_twice(bed: &mut dyn Bed) -> CaseResult {
    let (device, mut a, mut b) = pair(bed)?;
    if device.facts().remote_invalidate == Ability::No {
        return skip("the device has no SEND with Invalidate");
    }
    let lease = register(&b.pd, &b.span, ALL)?;
    let key = RemoteKey(there("remote", lease.remote(0))?.rkey());
    b.recv(3, 0, 64)?;
    b.recv(4, 0, 64)?;
    a.post(2, SendOp::SendWithInvalidate(key), 0, 16)?;
    a.expect(bed, (2, WcKind::Send, OK))?;
    b.expect(bed, (3, WcKind::Recv, OK))?;
    a.post(3, SendOp::SendWithInvalidate(key), 0, 16)?;
    a.expect(bed, (3, WcKind::Send, ACCESS))?;
    b.expect_error(bed)
}

pub(super) fn too_long(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    b.put(0, &[POISON; 128])?;
    b.recv(1, 0, 64)?;
    b.recv(2, 64, 64)?;
    a.post(1, SendOp::Send, 0, 65)?;
    a.expect(bed, (1, WcKind::Send, WcStatus::RemInvReq))?;
    b.expect(bed, (1, WcKind::Recv, WcStatus::LocLen))?;
    b.expect(bed, (2, WcKind::Recv, FLUSH))?;
    if b.get(64, 64)? == [POISON; 64] { Ok(()) } else { fail("a message wrote past its receive") }
}

pub(super) fn local_protection(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    let memory = span(MEMORY)?;
    let mr = register(&b.pd, &memory, Access::REMOTE_READ)?;
    let sge = there("local memory", mr.sge(0, 64))?;
    told("receive", b.qp.post_recv(sw_engine::seam::verbs::RecvWr { wr_id: 1, sge }))?;
    a.post(1, SendOp::Send, 0, 8)?;
    b.expect(bed, (1, WcKind::Recv, WcStatus::LocProt))?;
    a.expect(bed, (1, WcKind::Send, WcStatus::RemOp))?;
    // A key that is none, of our own.
    let (_device, mut a, _b) = pair(bed)?;
    let sge = a.sge(0, 8)?;
    let gone = register(&a.pd, &a.span, ALL)?;
    let stale = there("local memory", gone.sge(0, 8))?;
    gone.deregister();
    told("post", a.qp.post_send(SendWr { wr_id: 1, op: SendOp::Send, sge: Some(stale) }))?;
    told("post", a.qp.post_send(SendWr { wr_id: 2, op: SendOp::Send, sge: Some(sge) }))?;
    a.expect(bed, (1, WcKind::Send, WcStatus::LocProt))?;
    a.expect(bed, (2, WcKind::Send, FLUSH)).map(drop)
}

pub(super) fn no_receive(bed: &mut dyn Bed) -> CaseResult {
    // One that comes in time is found.
    let (_device, mut a, mut b) = pair(bed)?;
    a.post(1, SendOp::Send, 0, 8)?;
    b.recv(1, 0, 8)?;
    a.expect(bed, (1, WcKind::Send, OK))?;
    b.expect(bed, (1, WcKind::Recv, OK))?;
    a.post(2, SendOp::Send, 0, 8)?;
    a.post(3, SendOp::Send, 0, 8)?;
    a.expect(bed, (2, WcKind::Send, WcStatus::RnrRetryExc))?;
    a.expect(bed, (3, WcKind::Send, FLUSH))?;
    a.expect_error(bed)
}

pub(super) fn flush(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    // Sends that wait for a receive which never comes.
    for wr in 0..u64::from(DEPTH) {
        a.recv(100 + wr, 64 * wr, 64)?;
        a.post(wr, SendOp::Send, 0, 8)?;
    }
    a.qp.to_error();
    let ended = a.wait(bed, sw_mem::index((2 * DEPTH).into()))?;
    let ids =
        |receives: bool| ended.iter().map(|wc| wc.wr_id).filter(|id| (*id >= 100) == receives).collect::<Vec<_>>();
    if ended.iter().any(|wc| wc.status != FLUSH) {
        return fail(format!("not all flushed: {ended:?}"));
    }
    let depth = u64::from(DEPTH);
    if ids(false) != (0..depth).collect::<Vec<_>>() || ids(true) != (100..100 + depth).collect::<Vec<_>>() {
        return fail(format!("flushed twice, or out of order: {ended:?}"));
    }
    a.quiet()?;
    b.expect_error(bed)?;
    b.qp.to_error();
    b.quiet()
}

pub(super) fn peer_ends(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, b) = pair(bed)?;
    a.recv(1, 0, 64)?;
    drop(b);
    a.expect(bed, (1, WcKind::Recv, FLUSH))?;
    a.expect_error(bed)
}

pub(super) fn post_in_error(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, _b) = pair(bed)?;
    a.qp.to_error();
    for wr in 0..3 {
        a.post(wr, SendOp::Send, 0, 8)?;
        a.expect(bed, (wr, WcKind::Send, FLUSH))?;
        a.recv(wr, 0, 8)?;
        a.expect(bed, (wr, WcKind::Recv, FLUSH))?;
    }
    a.quiet()
}

pub(super) fn nothing_behind_the_end(bed: &mut dyn Bed) -> CaseResult {
    for round in 0..20u8 {
        let (_device, mut a, mut b) = pair(bed)?;
        let to = b.remote(0)?;
        a.put(0, &vec![round; 500_000])?;
        for wr in 0..8 {
            a.post(wr, SendOp::RdmaWrite(to), 0, 500_000)?;
        }
        // Somewhere in the midst of them.
        let begun = bed.now();
        while b.get(0, 1)? != [round] && bed.now().saturating_sub(begun).as_secs() < 10 && round > 0 {
            bed.idle();
        }
        b.qp.to_error();
        told("poison", b.span.fill(AT, WINDOW, POISON))?;
        for wc in a.wait(bed, 8)? {
            if wc.status != OK && wc.status != FLUSH {
                return fail(format!("{wc:?}"));
            }
        }
        if b.get(0, 500_000)?.iter().any(|byte| *byte != POISON) {
            return fail("a write landed behind the end of the queue pair");
        }
    }
    Ok(())
}
