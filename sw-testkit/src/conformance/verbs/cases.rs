//! What works.

use std::sync::Arc;

use sw_engine::{
    ErrorKind,
    seam::{
        Wake,
        verbs::{
            Ability, Access, Connected, DmaBufRequest, MrRequest, PostError, PrivateData, QpConfig, SendOp, WcKind,
            WcStatus,
        },
    },
};

use super::{
    super::{CaseResult, fail, skip},
    Bed,
    rig::{
        ALL, AT, Answer, CONNECT, Count, DEPTH, EndPoint, MEMORY, WINDOW, bytes, config, join, pair, span, there, told,
    },
};

const OK: WcStatus = WcStatus::Success;

pub(super) fn facts_are_sane(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let facts = device.facts();
    let sane = !facts.name.is_empty() && facts.wr_max >= DEPTH && facts.cqe_max >= 2 * DEPTH;
    if !sane || facts.message_bytes_max < 1 << 20 || facts.rd_atomic_max == 0 || facts.mr_bytes_max < MEMORY {
        return fail(format!("{facts:?}"));
    }
    let gids = told("gids", device.gids())?;
    if gids.is_empty() { fail("a port without an address") } else { Ok(()) }
}

pub(super) fn private_data(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let (mut a, mut b) = (EndPoint::new(&device, ALL)?, EndPoint::new(&device, ALL)?);
    let words = (there("data", PrivateData::new(&[7; 32]))?, there("data", PrivateData::new(&[9; 32]))?);
    let (connected, asked) = join(bed, &device, (&mut a, &mut b), (words, Answer::Accept))?;
    // A transport may fill up what was sent.
    match connected {
        Connected::Accepted(got) if got.as_bytes().starts_with(&[9; 32]) && asked.as_bytes().starts_with(&[7; 32]) => {
            Ok(())
        }
        other => fail(format!("{other:?}, asked with {asked:?}")),
    }
}

pub(super) fn refusal(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let (mut a, mut b) = (EndPoint::new(&device, ALL)?, EndPoint::new(&device, ALL)?);
    a.recv(1, 0, 64)?;
    let words = (PrivateData::empty(), there("data", PrivateData::new(&[0, 0, 6, 0]))?);
    match join(bed, &device, (&mut a, &mut b), (words, Answer::Reject))?.0 {
        Connected::Rejected(why) if why.as_bytes().starts_with(&[0, 0, 6, 0]) => {}
        other => return fail(format!("{other:?}")),
    }
    a.expect_error(bed)?;
    a.expect(bed, (1, WcKind::Recv, WcStatus::WrFlush)).map(drop)
}

pub(super) fn nobody_listens(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let mut a = EndPoint::new(&device, ALL)?;
    // Its port is free again.
    let at = told("listen", device.listen(&bed.address()))?.address();
    match a.qp.connect(&at, &PrivateData::empty(), CONNECT) {
        Err(error) if matches!(error.kind(), ErrorKind::NoDevice | ErrorKind::DeadlineExceeded) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

pub(super) fn connected_once(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, _b) = pair(bed)?;
    match a.qp.connect(&bed.address(), &PrivateData::empty(), CONNECT) {
        Err(error) if error.kind() == ErrorKind::ApiMisuse => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

pub(super) fn messages(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    for (seed, len) in [0u32, 1, 16, 64, 4096, 65_535, 65_536, 65_537, 500_000].into_iter().enumerate() {
        let (seed, len_usize) = (seed as u64, sw_mem::index(len.into()));
        let sent = bytes(seed, len_usize);
        for (from, to) in [(0, 1), (1, 0)] {
            let (sender, receiver) = if from < to { (&mut a, &mut b) } else { (&mut b, &mut a) };
            receiver.put(0, &vec![0xEE; len_usize + 8])?;
            // Half a MiB is for what comes, half for what goes.
            receiver.recv(seed, 0, 500_000)?;
            sender.put(WINDOW / 2, &sent)?;
            sender.post(seed, SendOp::Send, WINDOW / 2, len)?;
            sender.expect(bed, (seed, WcKind::Send, OK))?;
            let wc = receiver.expect(bed, (seed, WcKind::Recv, OK))?;
            if wc.byte_len != len || receiver.get(0, len_usize)? != sent {
                return fail(format!("a message of {len} bytes came as {} bytes, or others", wc.byte_len));
            }
            if receiver.get(len.into(), 8)? != [0xEE; 8] {
                return fail(format!("a message of {len} bytes wrote past its end"));
            }
        }
    }
    a.quiet().and(b.quiet())
}

pub(super) fn write_then_send(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    for round in 0..8u64 {
        let len = [1u32, 4096, 70_000, 300_000][sw_mem::index(round % 4)];
        let sent = bytes(round, sw_mem::index(len.into()));
        a.put(0, &sent)?;
        b.put(100, &vec![0; sent.len()])?;
        b.recv(round, WINDOW - 64, 64)?;
        a.post(2 * round, SendOp::RdmaWrite(b.remote(100)?), 0, len)?;
        a.post(2 * round + 1, SendOp::Send, WINDOW - 16, 16)?;
        b.expect(bed, (round, WcKind::Recv, OK))?;
        if b.get(100, sent.len())? != sent {
            return fail(format!("a write of {len} bytes is not there when the send behind it is"));
        }
        a.expect(bed, (2 * round, WcKind::RdmaWrite, OK))?;
        a.expect(bed, (2 * round + 1, WcKind::Send, OK))?;
    }
    Ok(())
}

pub(super) fn reads(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    for (seed, len) in [1u32, 4096, 65_537, 400_000].into_iter().enumerate() {
        let there = bytes(seed as u64, sw_mem::index(len.into()));
        b.put(77, &there)?;
        a.put(8, &vec![0; there.len() + 8])?;
        let remote = b.remote(77)?;
        a.post(5, SendOp::RdmaRead(remote), 8, len)?;
        a.expect(bed, (5, WcKind::RdmaRead, OK))?;
        if a.get(8, there.len())? != there || a.get(8 + u64::from(len), 8)? != [0; 8] {
            return fail(format!("a read of {len} bytes brought others"));
        }
    }
    // Both ways at once, so that neither waits for the other.
    for wr in 0..4 {
        let (to_a, to_b) = (a.remote(0)?, b.remote(0)?);
        a.post(wr, SendOp::RdmaRead(to_b), 0, 1_000_000)?;
        b.post(wr, SendOp::RdmaRead(to_a), 0, 1_000_000)?;
    }
    a.wait(bed, 4)?;
    b.wait(bed, 4).map(drop)
}

pub(super) fn order(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    for round in 0..20u64 {
        for wr in 0..4 {
            b.recv(wr, WINDOW - 4096 + 64 * wr, 64)?;
        }
        let remote = b.remote(4096)?;
        for wr in 0..12u64 {
            let op = match (wr + round) % 3 {
                0 if wr < 12 => SendOp::RdmaWrite(remote),
                1 => SendOp::RdmaRead(remote),
                _ => SendOp::Send,
            };
            a.post(wr, op, 64 * wr, 16)?;
        }
        let ended: Vec<u64> = a.wait(bed, 12)?.iter().map(|wc| wc.wr_id).collect();
        if ended != (0..12).collect::<Vec<_>>() {
            return fail(format!("completions in the order {ended:?}"));
        }
        let received: Vec<u64> = b.wait(bed, 4)?.iter().map(|wc| wc.wr_id).collect();
        if received != [0, 1, 2, 3] {
            return fail(format!("receives in the order {received:?}"));
        }
    }
    Ok(())
}

pub(super) fn full_queue(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    let remote = b.remote(0)?;
    for wr in 0..u64::from(DEPTH) {
        a.post(wr, SendOp::RdmaWrite(remote), 0, 8)?;
        b.recv(wr, 0, 8)?;
    }
    // Without their completions being taken the places stay taken.
    let again = a.try_post(99, SendOp::RdmaWrite(remote), 0, 8)?;
    if again != Err(PostError::Full) {
        return fail(format!("a full queue says {again:?}"));
    }
    let sge = b.sge(0, 8)?;
    let again = b.qp.post_recv(sw_engine::seam::verbs::RecvWr { wr_id: 99, sge });
    if again != Err(PostError::Full) {
        return fail(format!("a full receive queue says {again:?}"));
    }
    a.wait(bed, sw_mem::index(DEPTH.into()))?;
    a.post(100, SendOp::RdmaWrite(remote), 0, 8)?;
    a.expect(bed, (100, WcKind::RdmaWrite, OK)).map(drop)
}

pub(super) fn no_room(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let pd = told("pd", device.alloc_pd())?;
    let wake = || Arc::new(Count::default()) as Arc<dyn Wake>;
    if device.create_cq(0, wake()).is_ok() {
        return fail("a completion queue of no entries");
    }
    // Devices round up, but not as far.
    let cq = told("cq", device.create_cq(DEPTH, wake()))?;
    let much = QpConfig { send_wr_max: device.facts().wr_max, recv_wr_max: device.facts().wr_max, ..config(&cq) };
    match pd.create_qp(much) {
        Err(error) if error.kind() == ErrorKind::ResourceLimit => {}
        other => return fail(format!("{:?}", other.map(|qp| qp.number()))),
    }
    match pd.create_qp(QpConfig { send_wr_max: 0, ..config(&cq) }) {
        Err(error) if error.kind() == ErrorKind::ApiMisuse => Ok(()),
        other => fail(format!("{:?}", other.map(|qp| qp.number()))),
    }
}

pub(super) fn registrations(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let pd = told("pd", device.alloc_pd())?;
    let memory = span(MEMORY)?;
    let (region, access) = (memory.region(), Access::LOCAL_WRITE);
    let whole = region.len().0;
    for (at, len, access, kind) in [
        (0, whole + 1, access, ErrorKind::OutOfRange),
        (u64::MAX, 2, access, ErrorKind::OutOfRange),
        (whole, 1, access, ErrorKind::OutOfRange),
        (0, 0, access, ErrorKind::OutOfRange),
        (0, whole, Access::REMOTE_WRITE, ErrorKind::ApiMisuse),
    ] {
        match pd.reg_mr(MrRequest { region, at, len, access }) {
            Err(error) if error.kind() == kind => {}
            other => return fail(format!("{at}+{len}: {:?}", other.map(|mr| mr.len()))),
        }
    }
    let mr = told("registration", pd.reg_mr(MrRequest { region, at: AT, len: WINDOW, access }))?;
    let past = u32::try_from(WINDOW).unwrap_or(u32::MAX);
    if mr.len() != WINDOW || mr.sge(0, past).is_none() || mr.sge(1, past).is_some() || mr.remote(0).is_some() {
        return fail("bytes past the window, or a remote address of what no peer may touch");
    }
    Ok(())
}

pub(super) fn dma_buf(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let pd = told("pd", device.alloc_pd())?;
    let request = DmaBufRequest { fd: -1, at: 0, len: 4096, iova: 0, access: Access::LOCAL_WRITE };
    let wanted = match device.facts().dma_buf {
        Ability::No => ErrorKind::Unsupported,
        // A descriptor that is none.
        Ability::Yes => ErrorKind::ApiMisuse,
    };
    match pd.reg_dmabuf_mr(request) {
        Err(error) if error.kind() == wanted => {}
        other => return fail(format!("{:?}", other.map(|mr| mr.len()))),
    }
    if device.facts().dma_buf == Ability::No {
        return Ok(());
    }
    for (request, wanted) in [
        (DmaBufRequest { len: 0, ..request }, ErrorKind::OutOfRange),
        (DmaBufRequest { at: u64::MAX, ..request }, ErrorKind::OutOfRange),
        (DmaBufRequest { iova: 1, ..request }, ErrorKind::ApiMisuse),
        (DmaBufRequest { access: Access::REMOTE_WRITE, ..request }, ErrorKind::ApiMisuse),
    ] {
        match pd.reg_dmabuf_mr(request) {
            Err(error) if error.kind() == wanted => {}
            other => return fail(format!("{request:?}: {:?}", other.map(|mr| mr.len()))),
        }
    }
    Ok(())
}

pub(super) fn dma_buf_lands(bed: &mut dyn Bed) -> CaseResult {
    if bed.device()?.facts().dma_buf == Ability::No {
        return skip("the device registers no dma-bufs");
    }
    let behind = bed.dma_buf()?;
    let (_device, mut a, b) = pair(bed)?;
    let before = behind.bytes();
    // From the midst of the first page into the second; the address is none of this process.
    let (at, len, iova) = (1000, 4096, 0x7000_0000 + 1000);
    let mr = told("dma-buf", b.pd.reg_dmabuf_mr(DmaBufRequest { fd: behind.fd(), at, len, iova, access: ALL }))?;
    let (to, sent) = (there("remote", mr.remote(0))?, bytes(7, 4096));
    if to.addr != iova || mr.len() != len {
        return fail(format!("its first byte is {:#x}, and it has {} bytes", to.addr, mr.len()));
    }
    a.put(0, &sent)?;
    a.post(1, SendOp::RdmaWrite(to), 0, 4096)?;
    a.expect(bed, (1, WcKind::RdmaWrite, OK))?;
    let (mut wanted, start) = (before, sw_mem::index(at));
    wanted.get_mut(start..start + sent.len()).into_iter().for_each(|place| place.copy_from_slice(&sent));
    if behind.bytes() != wanted {
        return fail("other bytes are behind the descriptor than were written");
    }
    a.post(2, SendOp::RdmaRead(there("remote", mr.remote(0))?), 8192, 4096)?;
    a.expect(bed, (2, WcKind::RdmaRead, OK))?;
    if a.get(8192, 4096)? != sent {
        return fail("a read brought other bytes than are behind the descriptor");
    }
    // Its end is that of any registration.
    let to = there("remote", mr.remote(0))?;
    told("deregister", mr.deregister())?;
    a.put(0, &vec![0; 4096])?;
    a.post(3, SendOp::RdmaWrite(to), 0, 4096)?;
    a.expect(bed, (3, WcKind::RdmaWrite, WcStatus::RemAccess))?;
    if behind.bytes() == wanted { Ok(()) } else { fail("a write landed behind the deregistration") }
}

pub(super) fn not_connected(bed: &mut dyn Bed) -> CaseResult {
    let device = bed.device()?;
    let mut a = EndPoint::new(&device, ALL)?;
    let posted = a.try_post(1, SendOp::Send, 0, 8)?;
    if posted == Err(PostError::NotConnected) { a.quiet() } else { fail(format!("{posted:?}")) }
}
