//! What goes wrong, and how it ends.

use sw_engine::seam::verbs::{
    Ability, Access, FabricKind, Gather, MrRequest, RemoteKey, SendOp, SendWr, WcKind, WcStatus,
};
use sw_mem::RemoteAddr;

use super::{
    super::{CaseResult, End, fail, skip},
    Bed,
    rig::{ALL, DEPTH, EndPoint, MEMORY, WINDOW, pair, pair_with, register, span, there, told},
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
    told("deregister", lease.deregister())?;
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))
}

pub(super) fn bound(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    let memory = span(MEMORY)?;
    let request = MrRequest { region: memory.region(), at: memory.offset(), len: 4096, access: ALL };
    let kept = told("registration", b.pd.reg_bound_mr(request))?;
    let to = there("remote", kept.remote(0))?;
    a.put(0, &[0x5A; 4096])?;
    a.post(1, SendOp::RdmaWrite(to), 0, 4096)?;
    a.expect(bed, (1, WcKind::RdmaWrite, OK))?;
    let mut got = vec![0; 4096];
    told("read", memory.read(0, &mut got))?;
    if got != [0x5A; 4096] {
        return fail("a bound registration does not open its memory");
    }
    // Nobody tells the registration.
    drop(memory);
    if kept.remote(0).is_some() || kept.sge(0, 1).is_some() {
        return fail("a registration outlives its memory");
    }
    refused(bed, (&mut a, &mut b), (SendOp::RdmaWrite(to), ACCESS))?;
    told("deregister", kept.deregister())?;
    Ok(())
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
    told("deregister", lease.deregister())?;
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
    // Not the same everywhere: rxe says the second of each, where 2 is a local QP operation error.
    failed_with(bed, &a, &[WcStatus::RemInvReq, WcStatus::RemOp])?;
    failed_with(bed, &b, &[WcStatus::LocLen, WcStatus::Other(2)])?;
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
    // rxe calls it a local QP operation error (2).
    failed_with(bed, &b, &[WcStatus::LocProt, WcStatus::Other(2)])?;
    a.expect(bed, (1, WcKind::Send, WcStatus::RemOp)).map(drop)
}

pub(super) fn stale_local_key(bed: &mut dyn Bed) -> CaseResult {
    let (device, mut a, mut b) = pair(bed)?;
    b.recv(1, 0, 64)?;
    let sge = a.sge(0, 8)?;
    let gone = register(&a.pd, &a.span, ALL)?;
    let stale = there("local memory", gone.sge(0, 8))?;
    told("deregister", gone.deregister())?;
    told("post", a.qp.post_send(SendWr { wr_id: 1, op: SendOp::Send, memory: Gather::of(stale) }))?;
    told("post", a.qp.post_send(SendWr { wr_id: 2, op: SendOp::Send, memory: Gather::of(sge) }))?;
    let first = a.wait(bed, 1)?[0];
    a.expect(bed, (2, WcKind::Send, FLUSH))?;
    match first.status {
        WcStatus::LocProt => Ok(()),
        FLUSH if device.facts().kind == FabricKind::Software => {
            skip("the kernel's device flushes such a request and does not say why")
        }
        _ => fail(format!("{first:?}")),
    }
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

pub(super) fn gone(bed: &mut dyn Bed) -> CaseResult {
    let (device, mut connected, _peer) = pair(bed)?;
    let mut never = EndPoint::new(&device, ALL)?;
    for end in [&mut connected, &mut never] {
        end.recv(1, 0, 64)?;
        end.recv(2, 64, 64)?;
    }
    for EndPoint { qp, cq, .. } in [connected, never] {
        drop(qp);
        let mut some = Vec::with_capacity(4);
        if cq.poll(&mut some) != 0 {
            return fail(format!("completions for an owner that is gone: {some:?}"));
        }
    }
    Ok(())
}

/// The next completion is of request 1, and has one of these statuses.
fn failed_with(bed: &mut dyn Bed, end: &EndPoint, statuses: &[WcStatus]) -> CaseResult {
    let wc = end.wait(bed, 1)?[0];
    if wc.wr_id == 1 && statuses.contains(&wc.status) {
        Ok(())
    } else {
        fail(format!("{wc:?}, not one of {statuses:?}"))
    }
}

/// Whether the fabric is one of this project's.
fn is_ours(bed: &mut dyn Bed) -> Result<bool, End> {
    Ok(matches!(bed.device()?.facts().kind, FabricKind::Emulated | FabricKind::Model))
}

/// Bytes of each write below, and of the piece that is looked at.
const LARGE: u32 = 256 << 10;
const PIECE: usize = 32 << 10;

/// Has the peer write over the same bytes again and again, with others each time, ends that by `end` in the midst, and looks at a piece of
/// the memory at once and when the peer knows: it must be the same.
fn ended_in_the_midst(bed: &mut dyn Bed, end: impl Fn(&mut dyn Bed, &mut EndPoint) -> CaseResult) -> CaseResult {
    // Without the wait for a copy that is under way the emulation fails in one round of 200.
    let is_emulated = bed.device()?.facts().kind == FabricKind::Emulated;
    let rounds = if is_emulated { 600 } else { 100 };
    for round in 0..rounds {
        let (_device, mut a, mut b) = pair(bed)?;
        a.put(0, &vec![0x11; sw_mem::index(LARGE.into())])?;
        a.put(LARGE.into(), &vec![0x22; sw_mem::index(LARGE.into())])?;
        let to = b.remote(0)?;
        b.recv(1, WINDOW - 64, 64)?;
        for wr in 0..8u64 {
            a.post(wr, SendOp::RdmaWrite(to), wr % 2 * u64::from(LARGE), LARGE)?;
        }
        let piece = round % 8 * PIECE as u64;
        let begun = bed.now();
        while b.get(piece, 1)? == [0] && bed.now().saturating_sub(begun).as_secs() < 10 {
            bed.idle();
        }
        end(bed, &mut b)?;
        let at_once = b.get(piece, PIECE)?;
        let ended = a.wait(bed, 8)?;
        if let Some(wc) = ended.iter().find(|wc| ![OK, FLUSH, ACCESS].contains(&wc.status)) {
            return fail(format!("{wc:?}"));
        }
        if b.get(piece, PIECE)? != at_once {
            return fail(format!("a write landed behind the end, in round {round}"));
        }
    }
    Ok(())
}

pub(super) fn nothing_behind_the_end(bed: &mut dyn Bed) -> CaseResult {
    let is_ours = is_ours(bed)?;
    ended_in_the_midst(bed, |bed, b| {
        b.qp.to_error();
        if is_ours {
            // Ours keep more than is asked for: at once.
            return Ok(());
        }
        // The end is told by the flush of what was outstanding: before that the device may be in the midst of a packet.
        b.expect(bed, (1, WcKind::Recv, FLUSH)).map(drop)
    })
}

pub(super) fn nothing_behind_deregistration(bed: &mut dyn Bed) -> CaseResult {
    ended_in_the_midst(bed, |_, b| {
        if let Some(mr) = b.mr.take() {
            told("deregister", mr.deregister())?;
        }
        Ok(())
    })
}
