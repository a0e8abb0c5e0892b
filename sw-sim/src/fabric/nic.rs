//! What the engines of modelled NICs do, in virtual time.
//!
//! ```text
//!   post_send ─► sq ─ Transmit ─► [lkey] packet ─► wire ─ Arrive ─► [rkey, receive] ─► lands ─ last ─► replies ─ Reply ─► completion
//! ```
//!
//! Packets of one direction of a connection come in order, and so do answers; answers and packets of the other direction overtake each other as the
//! draw says, so that a response may be received before the send that it answers completes. A completion that comes late finds the memory
//! of its request as it was posted, or that is noted ([`Touch::Changed`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sw_engine::seam::{
    Wake,
    verbs::{Access, QpState, RecvWr, RemoteKey, SendOp, SendWr, Wc, WcKind, WcStatus},
};

use super::{
    FabricParams,
    keys::{Asked, Keys, Touch, Use},
};
use crate::{agenda::Agenda, rng::Rng};

/// Reads of a QP under way at a time.
pub(super) const READS_MAX: usize = 16;

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A QP sends its next packet.
    Transmit(u32),
    /// The first packet of what a QP sent is at its peer.
    Arrive(u32),
    /// A QP looks again at what came: a receive was posted, or a part of a read was sent.
    Resume(u32),
    /// A QP was waited for until now for a receive.
    Rnr(u32, u64),
    /// The first answer of what a QP answered is at its peer.
    Reply(u32),
    /// A QP hears of its peer's end.
    Disconnect(u32),
    /// A QP looks whether its peer is there still, which it has waited for.
    GiveUp(u32),
    /// Somebody else's.
    User(u64),
}

/// A posted request.
struct Wqe {
    psn: u64,
    wr: SendWr,
    /// Bytes that were sent.
    at: u64,
    is_sent: bool,
    /// What was sent.
    bytes: Vec<u8>,
}

impl Wqe {
    fn is_read(&self) -> bool {
        matches!(self.wr.op, SendOp::RdmaRead(_))
    }
}

/// A part of a message.
#[derive(Clone)]
struct Packet {
    psn: u64,
    op: SendOp,
    at: u64,
    total: u64,
    bytes: Vec<u8>,
}

impl Packet {
    fn is_last(&self) -> bool {
        self.at + self.bytes.len() as u64 == self.total
    }
}

enum Answer {
    Done,
    Refused(WcStatus),
    /// A part of what a read asked for, and whether it is the last.
    Data(u64, Vec<u8>, bool),
}

/// A queue pair, as its NIC has it.
pub(super) struct QpCore {
    pub(super) device: usize,
    pub(super) pd: u64,
    pub(super) cqs: (usize, usize),
    pub(super) phase: QpState,
    pub(super) why: Option<&'static str>,
    pub(super) peer: Option<u32>,
    /// How long the peer's sends wait here for a receive.
    pub(super) rnr_ns: u64,
    pub(super) wants_rnr_ns: u64,
    pub(super) sends_open: u32,
    pub(super) receives_open: u32,
    sq: VecDeque<Wqe>,
    rq: VecDeque<RecvWr>,
    next_psn: u64,
    /// A [`Event::Transmit`] is planned.
    is_sending: bool,
    /// Packets on their way to the peer, and when the last is there.
    wire: VecDeque<Packet>,
    wire_due: u64,
    /// Answers on their way to the peer.
    replies: VecDeque<(u64, Answer)>,
    replies_due: u64,
    /// Packets of the peer's that are here and wait for those before them.
    inbox: VecDeque<Packet>,
    /// The receive that a message is coming into.
    receiving: Option<RecvWr>,
    /// The number of the message that waits for a receive.
    starving: Option<u64>,
    /// A [`Event::Resume`] is planned.
    is_resuming: bool,
    /// A [`Event::GiveUp`] is planned.
    is_watching: bool,
    /// A message of the peer's was refused, and what is behind it is dropped.
    is_deaf: bool,
}

impl QpCore {
    pub(super) fn new((device, pd): (usize, u64), cqs: (usize, usize), wants_rnr_ns: u64) -> Self {
        Self {
            device,
            pd,
            cqs,
            phase: QpState::Init,
            why: None,
            peer: None,
            rnr_ns: 0,
            wants_rnr_ns,
            sends_open: 0,
            receives_open: 0,
            sq: VecDeque::new(),
            rq: VecDeque::new(),
            next_psn: 0,
            is_sending: false,
            wire: VecDeque::new(),
            wire_due: 0,
            replies: VecDeque::new(),
            replies_due: 0,
            inbox: VecDeque::new(),
            receiving: None,
            starving: None,
            is_resuming: false,
            is_watching: false,
            is_deaf: false,
        }
    }

    fn domain(&self) -> (usize, u64) {
        (self.device, self.pd)
    }
}

/// A completion queue, as its NIC has it.
pub(super) struct CqCore {
    pub(super) device: usize,
    pub(super) entries: u32,
    pub(super) reserved: u32,
    pub(super) queue: VecDeque<Wc>,
    pub(super) is_armed: bool,
    pub(super) wake: Arc<dyn Wake>,
}

/// How a QP comes to its end.
struct Failure {
    send: Option<(u64, WcStatus)>,
    recv: Option<WcStatus>,
    why: &'static str,
}

/// All NICs, and what is between them.
pub(super) struct Nics {
    pub(super) params: FabricParams,
    pub(super) rng: Rng,
    pub(super) agenda: Agenda<Event>,
    pub(super) keys: Keys,
    pub(super) gone: Vec<bool>,
    pub(super) qps: BTreeMap<u32, QpCore>,
    pub(super) cqs: BTreeMap<usize, CqCore>,
    /// To be called without the lock.
    pub(super) wakes: Vec<Arc<dyn Wake>>,
    /// Messages that were received before a send that was there before them had completed.
    pub(super) overtakes: u64,
}

impl Nics {
    pub(super) fn is_gone(&self, device: usize) -> bool {
        self.gone.get(device).copied().unwrap_or(true)
    }

    fn delay(&mut self, (low, high): (u64, u64)) -> u64 {
        self.rng.range(low, high)
    }

    /// Carries out an event that is due.
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Transmit(qpn) => self.transmit(qpn),
            Event::Arrive(qpn) => self.arrive(qpn),
            Event::Resume(qpn) => {
                self.qps.get_mut(&qpn).into_iter().for_each(|qp| qp.is_resuming = false);
                self.look(qpn);
            }
            Event::Rnr(qpn, psn) => self.starved(qpn, psn),
            Event::Reply(qpn) => self.replied(qpn),
            Event::Disconnect(qpn) => {
                self.fail(qpn, Failure { send: None, recv: None, why: "the peer ended the connection" })
            }
            Event::GiveUp(qpn) => self.give_up(qpn),
            Event::User(_) => {}
        }
    }

    /// A device is pulled out: it does nothing any more, and nothing completes.
    pub(super) fn pull(&mut self, device: usize) {
        self.gone.get_mut(device).into_iter().for_each(|gone| *gone = true);
        for qp in self.qps.values_mut().filter(|qp| qp.device == device) {
            (qp.phase, qp.why) = (QpState::Error, Some("the device is gone"));
        }
        let woken = self.cqs.values().filter(|cq| cq.device == device).map(|cq| Arc::clone(&cq.wake));
        self.wakes.extend(woken);
    }

    pub(super) fn complete(&mut self, cq: usize, wc: Wc) {
        let Some(cq) = self.cqs.get_mut(&cq) else { return };
        cq.queue.push_back(wc);
        if core::mem::take(&mut cq.is_armed) {
            self.wakes.push(Arc::clone(&cq.wake));
        }
    }

    fn tell_send(&mut self, qpn: u32, wr: &SendWr, status: WcStatus) {
        let Some(qp) = self.qps.get(&qpn) else { return };
        let kind = match wr.op {
            SendOp::Send | SendOp::SendWithInvalidate(_) => WcKind::Send,
            SendOp::RdmaWrite(_) => WcKind::RdmaWrite,
            SendOp::RdmaRead(_) => WcKind::RdmaRead,
        };
        self.complete(qp.cqs.0, Wc { wr_id: wr.wr_id, qpn, kind, status, byte_len: 0, invalidated: None });
    }

    fn tell_recv(
        &mut self,
        qpn: u32,
        wr: &RecvWr,
        (status, byte_len): (WcStatus, u64),
        invalidated: Option<RemoteKey>,
    ) {
        let Some(qp) = self.qps.get(&qpn) else { return };
        // As long as a message may be.
        let byte_len = u32::try_from(byte_len).unwrap_or(u32::MAX);
        self.complete(qp.cqs.1, Wc { wr_id: wr.wr_id, qpn, kind: WcKind::Recv, status, byte_len, invalidated });
    }

    pub(super) fn post_send(&mut self, qpn: u32, wr: SendWr) {
        let Some(qp) = self.qps.get_mut(&qpn) else { return };
        qp.sends_open += 1;
        if qp.phase == QpState::Error {
            return self.tell_send(qpn, &wr, WcStatus::WrFlush);
        }
        let psn = qp.next_psn;
        qp.next_psn += 1;
        qp.sq.push_back(Wqe { psn, wr, at: 0, is_sent: false, bytes: Vec::new() });
        self.go_on(qpn);
    }

    pub(super) fn post_recv(&mut self, qpn: u32, wr: RecvWr) {
        let Some(qp) = self.qps.get_mut(&qpn) else { return };
        qp.receives_open += 1;
        if qp.phase == QpState::Error {
            return self.tell_recv(qpn, &wr, (WcStatus::WrFlush, 0), None);
        }
        qp.rq.push_back(wr);
        self.resume(qpn);
    }

    /// Plans the next packet, if there is something to send.
    fn go_on(&mut self, qpn: u32) {
        let Some(qp) = self.qps.get_mut(&qpn) else { return };
        if qp.phase == QpState::Rts && !qp.is_sending && qp.sq.iter().any(|wqe| !wqe.is_sent) {
            qp.is_sending = true;
            self.agenda.plan(self.params.packet_ns, Event::Transmit(qpn));
        }
    }

    fn resume(&mut self, qpn: u32) {
        let Some(qp) = self.qps.get_mut(&qpn) else { return };
        if !qp.is_resuming && !qp.inbox.is_empty() {
            qp.is_resuming = true;
            self.agenda.plan(self.params.packet_ns, Event::Resume(qpn));
        }
    }

    fn transmit(&mut self, qpn: u32) {
        let Some(qp) = self.qps.get_mut(&qpn).filter(|qp| qp.phase == QpState::Rts) else { return };
        qp.is_sending = false;
        let (domain, reads) = (qp.domain(), qp.sq.iter().filter(|wqe| wqe.is_sent && wqe.is_read()).count());
        let Some(wqe) = qp.sq.iter_mut().find(|wqe| !wqe.is_sent) else { return };
        if wqe.is_read() && reads >= READS_MAX {
            // It goes on when one has ended.
            return;
        }
        let (psn, at, total) = (wqe.psn, wqe.at, wqe.wr.memory.bytes());
        let packet = match next_packet(wqe, domain, &mut self.keys, self.params.packet_bytes) {
            Some(packet) => packet,
            None => {
                let send = Some((psn, WcStatus::LocProt));
                return self.fail(
                    qpn,
                    Failure { send, recv: None, why: "a request of ours names memory that is not registered for that" },
                );
            }
        };
        let Some(wqe) = qp.sq.iter_mut().find(|wqe| wqe.psn == psn) else { return };
        wqe.at = at + packet.bytes.len() as u64;
        wqe.bytes.extend(&packet.bytes);
        wqe.is_sent = wqe.is_read() || wqe.at == total;
        qp.wire.push_back(packet);
        let due = qp.wire_due;
        let due = due.max(self.agenda.now() + self.delay(self.params.delay_ns));
        self.qps.get_mut(&qpn).into_iter().for_each(|qp| qp.wire_due = due);
        self.agenda.plan(due - self.agenda.now(), Event::Arrive(qpn));
        self.watch(qpn);
        self.go_on(qpn);
    }

    fn watch(&mut self, qpn: u32) {
        let Some(qp) = self.qps.get_mut(&qpn).filter(|qp| !qp.is_watching) else { return };
        qp.is_watching = true;
        self.agenda.plan(self.params.retry_ns, Event::GiveUp(qpn));
    }

    /// Ends a QP that waits for a peer that is not there.
    fn give_up(&mut self, qpn: u32) {
        let Some(qp) = self.qps.get_mut(&qpn) else { return };
        qp.is_watching = false;
        if qp.phase != QpState::Rts || qp.sq.is_empty() {
            return;
        }
        let (peer, first) = (qp.peer, qp.sq.front().map(|wqe| (wqe.psn, WcStatus::RetryExc)));
        let peer = peer.and_then(|peer| self.qps.get(&peer));
        if peer.is_some_and(|peer| peer.phase == QpState::Rts && !self.is_gone(peer.device)) {
            return self.watch(qpn);
        }
        self.fail(qpn, Failure { send: first, recv: None, why: "the peer does not answer" });
    }

    fn arrive(&mut self, from: u32) {
        let Some(packet) = self.qps.get_mut(&from).and_then(|qp| qp.wire.pop_front()) else { return };
        let peer = self.qps.get(&from).and_then(|qp| qp.peer);
        let Some(peer) = peer else { return };
        let Some(qp) = self.qps.get_mut(&peer).filter(|qp| qp.phase == QpState::Rts && !qp.is_deaf) else { return };
        qp.inbox.push_back(packet);
        if qp.inbox.len() == 1 && !qp.is_resuming {
            self.look(peer);
        }
    }

    /// Takes what came, up to something that must be waited for.
    fn look(&mut self, qpn: u32) {
        loop {
            let Some(qp) = self.qps.get_mut(&qpn).filter(|qp| qp.phase == QpState::Rts) else { return };
            let Some(packet) = qp.inbox.front().cloned() else { return };
            let taken = match packet.op {
                SendOp::Send | SendOp::SendWithInvalidate(_) => self.message(qpn, &packet),
                SendOp::RdmaWrite(to) => self.written(qpn, &packet, (to.addr, to.rkey())),
                SendOp::RdmaRead(from) => self.asked(qpn, &packet, (from.addr, from.rkey())),
            };
            match taken {
                Ok(true) => {
                    if let Some(qp) = self.qps.get_mut(&qpn) {
                        qp.inbox.pop_front();
                    }
                }
                Ok(false) => return,
                Err((status, recv, why)) => {
                    self.reply(qpn, packet.psn, Answer::Refused(status));
                    return self.fail(qpn, Failure { send: None, recv, why });
                }
            }
        }
    }
}

/// What a packet of the peer's comes to: whether it was taken; or what the peer is told, how the receive ends, and why.
type Taken = Result<bool, (WcStatus, Option<WcStatus>, &'static str)>;

const REFUSED: &str = "a request of the peer's was refused";

impl Nics {
    fn message(&mut self, qpn: u32, packet: &Packet) -> Taken {
        let Some(qp) = self.qps.get_mut(&qpn) else { return Ok(false) };
        let domain = qp.domain();
        if packet.at == 0 && qp.receiving.is_none() {
            let Some(wr) = qp.rq.pop_front() else {
                if qp.starving != Some(packet.psn) {
                    qp.starving = Some(packet.psn);
                    self.agenda.plan(qp.rnr_ns, Event::Rnr(qpn, packet.psn));
                }
                return Ok(false);
            };
            (qp.starving, qp.receiving) = (None, Some(wr));
        }
        let Some(wr) = qp.receiving else { return Ok(true) };
        if packet.total > wr.sge.len.into() {
            return Err((WcStatus::RemInvReq, Some(WcStatus::LocLen), REFUSED));
        }
        let asked = Asked::local(domain, &wr.sge, Access::LOCAL_WRITE).part(packet.at, packet.bytes.len() as u64);
        let landed = packet.bytes.is_empty() || asked.is_some_and(|asked| self.keys.write(asked, &packet.bytes));
        if !landed {
            return Err((WcStatus::RemOp, Some(WcStatus::LocProt), REFUSED));
        }
        if !packet.is_last() {
            return Ok(true);
        }
        let invalidated = match packet.op {
            SendOp::SendWithInvalidate(key) if !self.keys.invalidate(domain, key.0) => {
                return Err((WcStatus::RemAccess, None, REFUSED));
            }
            SendOp::SendWithInvalidate(key) => Some(key),
            _ => None,
        };
        if let Some(qp) = self.qps.get_mut(&qpn) {
            qp.receiving = None;
            self.overtakes += u64::from(qp.sq.front().is_some_and(|wqe| wqe.is_sent));
        }
        self.tell_recv(qpn, &wr, (WcStatus::Success, packet.total), invalidated);
        self.reply(qpn, packet.psn, Answer::Done);
        Ok(true)
    }

    fn written(&mut self, qpn: u32, packet: &Packet, (addr, key): (u64, u32)) -> Taken {
        let Some(qp) = self.qps.get(&qpn) else { return Ok(false) };
        let (len, access) = (packet.total, Access::REMOTE_WRITE);
        let whole = Asked { domain: qp.domain(), key, used: Use::Remote, addr, len, access };
        let part = whole.part(packet.at, packet.bytes.len() as u64);
        // The whole is announced with the first packet; each has its own look.
        let may = packet.total == 0 || (packet.at > 0 || self.keys.opens(whole));
        let landed = packet.bytes.is_empty() || part.is_some_and(|part| may && self.keys.write(part, &packet.bytes));
        if !may || !landed {
            return Err((WcStatus::RemAccess, None, REFUSED));
        }
        if packet.is_last() {
            self.reply(qpn, packet.psn, Answer::Done);
        }
        Ok(true)
    }

    fn asked(&mut self, qpn: u32, packet: &Packet, (addr, key): (u64, u32)) -> Taken {
        let Some(qp) = self.qps.get(&qpn) else { return Ok(false) };
        let (len, access) = (packet.total, Access::REMOTE_READ);
        let whole = Asked { domain: qp.domain(), key, used: Use::Remote, addr, len, access };
        if packet.total == 0 {
            self.reply(qpn, packet.psn, Answer::Data(0, Vec::new(), true));
            return Ok(true);
        }
        if packet.at == 0 && !self.keys.opens(whole) {
            return Err((WcStatus::RemAccess, None, REFUSED));
        }
        let take = (packet.total - packet.at).min(self.params.packet_bytes);
        let bytes = whole.part(packet.at, take).and_then(|part| self.keys.read(part));
        let Some(bytes) = bytes else { return Err((WcStatus::RemAccess, None, REFUSED)) };
        let is_last = packet.at + take == packet.total;
        self.reply(qpn, packet.psn, Answer::Data(packet.at, bytes, is_last));
        if is_last {
            return Ok(true);
        }
        // The rest is read later, so that a key may end in the midst.
        if let Some(front) = self.qps.get_mut(&qpn).and_then(|qp| qp.inbox.front_mut()) {
            front.at += take;
        }
        self.resume(qpn);
        Ok(false)
    }

    fn starved(&mut self, qpn: u32, psn: u64) {
        let Some(qp) = self.qps.get_mut(&qpn).filter(|qp| qp.phase == QpState::Rts) else { return };
        if qp.starving != Some(psn) {
            return;
        }
        (qp.starving, qp.is_deaf) = (None, true);
        qp.inbox.clear();
        self.reply(qpn, psn, Answer::Refused(WcStatus::RnrRetryExc));
    }

    fn reply(&mut self, qpn: u32, psn: u64, answer: Answer) {
        let delay = self.delay(self.params.ack_ns);
        let now = self.agenda.now();
        let Some(qp) = self.qps.get_mut(&qpn) else { return };
        qp.replies_due = qp.replies_due.max(now + delay);
        qp.replies.push_back((psn, answer));
        self.agenda.plan(qp.replies_due - now, Event::Reply(qpn));
    }

    fn replied(&mut self, from: u32) {
        let Some((psn, answer)) = self.qps.get_mut(&from).and_then(|qp| qp.replies.pop_front()) else { return };
        let Some(qpn) = self.qps.get(&from).and_then(|qp| qp.peer) else { return };
        let Some(qp) = self.qps.get_mut(&qpn).filter(|qp| qp.phase == QpState::Rts) else { return };
        let domain = qp.domain();
        let Some(wqe) = qp.sq.front_mut().filter(|wqe| wqe.psn == psn) else { return };
        let (wr, sent) = (wqe.wr, core::mem::take(&mut wqe.bytes));
        match answer {
            Answer::Refused(status) => {
                let send = Some((psn, status));
                return self.fail(qpn, Failure { send, recv: None, why: "a request failed" });
            }
            Answer::Data(at, bytes, is_last) => {
                let asked = wr.memory.pieces().first().map(|sge| Asked::local(domain, sge, Access::LOCAL_WRITE));
                let part = asked.and_then(|asked| asked.part(at, bytes.len() as u64));
                if !bytes.is_empty() && !part.is_some_and(|part| self.keys.write(part, &bytes)) {
                    let send = Some((psn, WcStatus::LocProt));
                    return self.fail(qpn, Failure { send, recv: None, why: "a read has no memory any more" });
                }
                if !is_last {
                    return;
                }
            }
            Answer::Done => {
                // Until now it may have been sent again.
                let again = gathered(&wr, domain, &mut self.keys);
                if again != Some(sent) {
                    self.keys.note(Touch::Changed { qpn, wr_id: wr.wr_id });
                }
            }
        }
        self.qps.get_mut(&qpn).into_iter().for_each(|qp| drop(qp.sq.pop_front()));
        self.tell_send(qpn, &wr, WcStatus::Success);
        self.go_on(qpn);
    }

    /// The owner ends it.
    pub(super) fn end(&mut self, qpn: u32) {
        self.fail(qpn, Failure { send: None, recv: None, why: "it was ended on this side" });
    }

    /// The peer refused, or is not there.
    pub(super) fn not_connected(&mut self, qpn: u32, why: &'static str) {
        self.fail(qpn, Failure { send: None, recv: None, why });
    }

    /// Puts a QP into error and flushes it; the first failure counts. The peer hears of it behind what is on its way to it.
    fn fail(&mut self, qpn: u32, failure: Failure) {
        let Some(qp) = self.qps.get_mut(&qpn).filter(|qp| qp.phase != QpState::Error) else { return };
        (qp.phase, qp.why) = (QpState::Error, Some(failure.why));
        let sends: Vec<Wqe> = qp.sq.drain(..).collect();
        let receives: Vec<(RecvWr, WcStatus)> = qp
            .receiving
            .take()
            .map(|wr| (wr, failure.recv.unwrap_or(WcStatus::WrFlush)))
            .into_iter()
            .chain(qp.rq.drain(..).map(|wr| (wr, WcStatus::WrFlush)))
            .collect();
        qp.inbox.clear();
        let last = qp.wire_due.max(qp.replies_due);
        let peer = qp.peer;
        for wqe in sends {
            let first = failure.send.filter(|(psn, _)| *psn == wqe.psn);
            self.tell_send(qpn, &wqe.wr, first.map_or(WcStatus::WrFlush, |(_, status)| status));
        }
        for (wr, status) in receives {
            self.tell_recv(qpn, &wr, (status, 0), None);
        }
        if let Some(peer) = peer {
            let now = self.agenda.now();
            let due = last.max(now + self.delay(self.params.delay_ns)) + 1;
            self.agenda.plan(due - now, Event::Disconnect(peer));
        }
    }
}

/// The next part of a request; `None`: its memory is not open.
fn next_packet(wqe: &Wqe, domain: (usize, u64), keys: &mut Keys, most: u64) -> Option<Packet> {
    let (psn, op, at, total) = (wqe.psn, wqe.wr.op, wqe.at, wqe.wr.memory.bytes());
    if wqe.is_read() {
        let sound = |sge| keys.opens(Asked::local(domain, sge, Access::LOCAL_WRITE));
        return wqe.wr.memory.pieces().iter().all(sound).then_some(Packet { psn, op, at: 0, total, bytes: Vec::new() });
    }
    let (mut bytes, mut skip, mut left) = (Vec::new(), at, most.min(total - at));
    for sge in wqe.wr.memory.pieces() {
        let whole = Asked::local(domain, sge, Access::LOCAL_READ);
        if !keys.opens(whole) {
            return None;
        }
        let here = u64::from(sge.len).saturating_sub(skip).min(left);
        if here > 0 {
            bytes.extend(keys.read(whole.part(skip, here)?)?);
        }
        (skip, left) = (skip.saturating_sub(sge.len.into()), left - here);
    }
    Some(Packet { psn, op, at, total, bytes })
}

/// All bytes of a request that is sent.
fn gathered(wr: &SendWr, domain: (usize, u64), keys: &mut Keys) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for sge in wr.memory.pieces() {
        bytes.extend(keys.read(Asked::local(domain, sge, Access::LOCAL_READ))?);
    }
    Some(bytes)
}
