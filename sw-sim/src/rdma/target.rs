//! A modelled controller's end of one connection: capsules in, the host's memory by key, answers out, and what it does wrong.

use std::{collections::BTreeMap, sync::Arc};

use sw_engine::seam::{
    Wake,
    verbs::{
        Access, Cq, Device, Gather, Mr, MrRequest, Pd, Qp, QpConfig, RecvWr, RemoteKey, SendOp, SendWr, Wc, WcKind,
        WcStatus,
    },
};
use sw_mem::{Buffer, ByteLen, DmaSpan, RemoteAddr};
use sw_nvme::{
    rdma::capsule::{self, COMMAND_BYTES, Descriptor, KeyEnd, Keyed, RESPONSE_BYTES},
    status::Status,
    wire::{Command, Completion, command::opcode, completion::CompletionFields},
};

use super::{
    Shared,
    params::{BLOCK, RdmaFaults},
};
use crate::{log::Mark, rng::Rng};

/// Nobody waits for a wake in a world.
#[derive(Default)]
pub(super) struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// What a request of the target's was for, in its number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Answer,
    Data,
    Fetch,
    Late,
}

/// A command.
struct Job {
    command: Command,
    keyed: Option<Keyed>,
    /// Data that came in the capsule.
    data: Vec<u8>,
}

/// See the module documentation. The fields are in the order in which they must go.
pub(super) struct Peer {
    pub(super) qp: Box<dyn Qp>,
    mrs: Vec<Box<dyn Mr>>,
    capsules: DmaSpan,
    responses: DmaSpan,
    staging: DmaSpan,
    cq: Arc<dyn Cq>,
    /// By identifier.
    jobs: BTreeMap<u16, Job>,
    capsule_bytes: u32,
    staging_bytes: u32,
    is_over: bool,
    /// Commands whose answer invalidated another key than theirs.
    pub(super) lied: Vec<u16>,
}

/// Memory of the target's own, registered.
fn own(pd: &Arc<dyn Pd>, bytes: u64) -> Option<(Box<dyn Mr>, DmaSpan)> {
    let span = Buffer::allocate(ByteLen(bytes)).ok()?.into_span();
    let access = Access::LOCAL_WRITE;
    let mr = pd.reg_mr(MrRequest { region: span.region(), at: span.offset(), len: bytes, access }).ok()?;
    Some((mr, span))
}

fn number(cid: u16, of: Of) -> u64 {
    u64::from(cid) << 2 | of as u64
}

fn parts(wr_id: u64) -> (u16, Of) {
    let of = [Of::Answer, Of::Data, Of::Fetch, Of::Late][sw_mem::index(wr_id & 3)];
    (u16::try_from(wr_id >> 2).unwrap_or(0), of)
}

impl Peer {
    /// With receives posted, not connected; `None`: the device is gone.
    pub(super) fn new(device: &Arc<dyn Device>, depth: u16, (data_bytes, staging_bytes): (u32, u32)) -> Option<Self> {
        let (pd, entries) = (device.alloc_pd().ok()?, u64::from(depth) + 1);
        let cq = device.create_cq(8 * u32::from(depth) + 16, Arc::new(Nobody)).ok()?;
        let qp = pd.create_qp(QpConfig {
            send_cq: Arc::clone(&cq),
            recv_cq: Arc::clone(&cq),
            send_wr_max: 6 * u32::from(depth) + 8,
            recv_wr_max: u32::from(depth) + 1,
            rnr_wait: core::time::Duration::from_secs(1),
        });
        let capsule_bytes = u32::try_from(COMMAND_BYTES).unwrap_or(0) + data_bytes;
        // A place for each identifier's index.
        let places = u64::from(depth);
        let (capsules_mr, capsules) = own(&pd, entries * u64::from(capsule_bytes))?;
        let (responses_mr, responses) = own(&pd, places * RESPONSE_BYTES as u64)?;
        let (staging_mr, staging) = own(&pd, places * u64::from(staging_bytes))?;
        let mut made = Self {
            qp: qp.ok()?,
            mrs: vec![capsules_mr, responses_mr, staging_mr],
            capsules,
            responses,
            staging,
            cq,
            jobs: BTreeMap::new(),
            capsule_bytes,
            staging_bytes,
            is_over: false,
            lied: Vec::new(),
        };
        (0..entries).for_each(|place| made.post_receive(place));
        Some(made)
    }

    fn post_receive(&mut self, place: u64) {
        let bytes = self.capsule_bytes;
        let sge = self.mrs.first().and_then(|mr| mr.sge(place * u64::from(bytes), bytes));
        let posted = sge.map(|sge| self.qp.post_recv(RecvWr { wr_id: place, sge }));
        self.is_over |= !matches!(posted, Some(Ok(())));
    }

    /// The place of a command: the index in its identifier, below the depth.
    fn place(cid: u16) -> u64 {
        u64::from(cid & 0x3FF)
    }

    /// Takes what came; gives the identifiers of commands that begin, to be carried out later.
    pub(super) fn look(&mut self, medium: &mut [[u8; BLOCK]], shared: &mut Shared) -> Vec<u16> {
        let (mut begun, mut some) = (Vec::new(), Vec::<Wc>::with_capacity(32));
        while !self.is_over && self.cq.poll(&mut some) > 0 {
            for wc in core::mem::take(&mut some) {
                match (wc.kind, parts(wc.wr_id).1, wc.status) {
                    (WcKind::RdmaWrite, Of::Late, WcStatus::RemAccess) => shared.mark(Mark::RdmaLateRefused),
                    (WcKind::RdmaWrite, Of::Late, WcStatus::Success) => shared.mark(Mark::RdmaLateLandedInTime),
                    _ => {}
                }
                if wc.status != WcStatus::Success {
                    self.is_over = true;
                } else if wc.kind == WcKind::Recv {
                    begun.extend(self.capsule(&wc, shared));
                } else if parts(wc.wr_id).1 == Of::Fetch {
                    self.fetched(parts(wc.wr_id).0, medium, shared);
                }
            }
            some = Vec::with_capacity(32);
        }
        begun
    }

    fn capsule(&mut self, wc: &Wc, shared: &mut Shared) -> Option<u16> {
        let mut raw = vec![0; sw_mem::index(wc.byte_len.into())];
        self.capsules.read(wc.wr_id * u64::from(self.capsule_bytes), &mut raw).ok()?;
        self.post_receive(wc.wr_id);
        let (command, data) = capsule::decode(&raw)?;
        let cid = command.cid();
        if self.jobs.contains_key(&cid) {
            shared.violate("protocol", format!("command {cid:#06x} comes while it is under way"));
            return None;
        }
        let (keyed, named) = match capsule::descriptor(&command) {
            Descriptor::Keyed(keyed) => (Some(keyed), 0),
            Descriptor::InCapsule { at: 0, bytes } => (None, bytes),
            Descriptor::Nothing => (None, 0),
            other => {
                shared.violate("protocol", format!("a descriptor that no host sends: {other:?}"));
                return None;
            }
        };
        if sw_mem::index(named.into()) != data.len() {
            shared.violate("protocol", format!("{} bytes in a capsule that names {named}", data.len()));
        }
        if !data.is_empty() {
            shared.mark(Mark::RdmaInCapsule);
        }
        self.jobs.insert(cid, Job { command, keyed, data: data.to_vec() });
        Some(cid)
    }

    fn post(&mut self, wr_id: u64, op: SendOp, (which, at, len): (usize, u64, u32)) {
        let sge = self.mrs.get(which).and_then(|mr| mr.sge(at, len));
        let posted = sge.map(|sge| self.qp.post_send(SendWr { wr_id, op, memory: Gather::of(sge) }));
        self.is_over |= !matches!(posted, Some(Ok(())));
    }

    /// Carries a command out.
    pub(super) fn carry_out(
        &mut self,
        cid: u16,
        (medium, rng, faults): (&mut [[u8; BLOCK]], &mut Rng, &RdmaFaults),
        shared: &mut Shared,
    ) {
        let Some(Job { command, keyed, data }) = self.jobs.get(&cid).filter(|_| !self.is_over) else { return };
        let at = Self::place(cid) * u64::from(self.staging_bytes);
        match (command.opcode(), keyed) {
            (opcode::READ, Some(keyed)) => {
                let (to, len) = (RemoteAddr::new(keyed.at.addr, keyed.at.rkey()), keyed.bytes);
                let first = sw_mem::index(command.range().slba);
                let blocks = sw_mem::index(u64::from(len)) / BLOCK;
                let bytes = medium.get(first..first + blocks).unwrap_or_default().as_flattened();
                let _ = self.staging.write(at, bytes);
                self.post(number(cid, Of::Data), SendOp::RdmaWrite(to), (2, at, len));
                self.answer(cid, (rng, faults), shared);
            }
            (opcode::WRITE, Some(keyed)) => {
                let (from, len) = (RemoteAddr::new(keyed.at.addr, keyed.at.rkey()), keyed.bytes);
                self.post(number(cid, Of::Fetch), SendOp::RdmaRead(from), (2, at, len));
            }
            (opcode::WRITE, None) => {
                let (first, data) = (command.range().slba, data.clone());
                apply(medium, first, &data);
                self.answer(cid, (rng, faults), shared);
            }
            _ => shared.violate("protocol", format!("command {cid:#06x} has no data")),
        }
    }

    /// Data of a write is here.
    fn fetched(&mut self, cid: u16, medium: &mut [[u8; BLOCK]], shared: &mut Shared) {
        let Some(Job { command, keyed: Some(keyed), .. }) = self.jobs.get(&cid) else { return };
        let mut data = vec![0; sw_mem::index(keyed.bytes.into())];
        let first = command.range().slba;
        let _ = self.staging.read(Self::place(cid) * u64::from(self.staging_bytes), &mut data);
        apply(medium, first, &data);
        let (rng, faults) = (&mut shared.rng.clone(), shared.faults);
        self.answer(cid, (rng, &faults), shared);
        shared.rng = rng.clone();
    }

    fn answer(&mut self, cid: u16, (rng, faults): (&mut Rng, &RdmaFaults), shared: &mut Shared) {
        let Some(job) = self.jobs.remove(&cid) else { return };
        let says = if rng.per_mille(faults.nonsense) {
            shared.mark(Mark::RdmaNonsense);
            cid ^ 0x8000
        } else {
            cid
        };
        let status = Status::SUCCESS;
        let fields = CompletionFields { dw0: 0, sq_head: 0, sq_id: 1, cid: says, phase: false, status };
        let at = Self::place(cid) * RESPONSE_BYTES as u64;
        let _ = self.responses.write(at, Completion::build(fields).bytes());
        let asked = job.keyed.filter(|keyed| keyed.end == KeyEnd::Invalidated).map(|keyed| keyed.at.rkey());
        let others = self.jobs.values().filter_map(|job| job.keyed).filter(|keyed| keyed.end == KeyEnd::Invalidated);
        let other = others.map(|keyed| keyed.at.rkey()).next();
        let key = match (asked, other) {
            (Some(_), Some(other)) if rng.per_mille(faults.wrong_keys) => {
                shared.mark(Mark::RdmaWrongKey);
                self.lied.push(says);
                Some(other)
            }
            (Some(own), _) => {
                shared.mark(Mark::RdmaInvalidated);
                Some(own)
            }
            _ => None,
        };
        let op = key.map_or(SendOp::Send, |key| SendOp::SendWithInvalidate(RemoteKey(key)));
        let bytes = u32::try_from(RESPONSE_BYTES).unwrap_or(0);
        self.post(number(cid, Of::Answer), op, (1, at, bytes));
        if let Some(keyed) = job.keyed.filter(|_| job.command.opcode() == opcode::READ && rng.per_mille(faults.late)) {
            // Once more, behind the answer; soon, or when the host has long done something else.
            shared.late.push((cid, RemoteAddr::new(keyed.at.addr, keyed.at.rkey()), keyed.bytes));
        }
    }

    /// Writes into memory of a command that was answered.
    pub(super) fn write_late(&mut self, cid: u16, to: &RemoteAddr, bytes: u32) {
        if self.is_over {
            return;
        }
        let to = RemoteAddr::new(to.addr, to.rkey());
        let at = Self::place(cid) * u64::from(self.staging_bytes);
        self.post(number(cid, Of::Late), SendOp::RdmaWrite(to), (2, at, bytes));
    }
}

fn apply(medium: &mut [[u8; BLOCK]], first: u64, data: &[u8]) {
    let places = medium.iter_mut().skip(sw_mem::index(first));
    places.zip(data.as_chunks::<BLOCK>().0).for_each(|(place, block)| *place = *block);
}
