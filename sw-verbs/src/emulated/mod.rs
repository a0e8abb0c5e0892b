//! An emulated fabric: RDMA between processes over TCP, for machines without a NIC.
//!
//! ```text
//!   EmulatedFabric ─► device "emu0" ─► PD, CQ, QP, MR, listener                           qp, cq, memory, cm
//!   each connected QP: one TCP connection, and two threads that stand for the NIC's engines      nic, frame, wire
//! ```
//!
//! It enforces what a NIC would: keys, bounds, protection domains and access flags of both ends; that a deregistered rkey opens nothing
//! (the peer's request ends with [`RemAccess`](sw_engine::seam::verbs::WcStatus::RemAccess) and both QPs are over); the order of a
//! reliable connection; flushes; receives that are missing (RNR). Its NIC goes on without its owner, so that memory is written at any time
//! until it is deregistered.
//!
//! What it is not: fast (the kernel copies each byte between socket and memory), a wire format of RDMA, private (whoever reaches the port
//! may connect), or a proof about a NIC. It has one device and port, no SRQ, no atomics, no immediate data; in place of dma-bufs it
//! registers any descriptor that can be mapped, a memfd among them. An answer that never
//! comes is no error of its own: who speaks over it has deadlines. Where a NIC refuses for want of a receive, only the sender's QP is over; here both are.

mod cm;
mod cq;
mod frame;
mod memory;
mod nic;
mod power;
mod qp;
mod wire;

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Ability, Cq, Device, DeviceFacts, DmaBufRequest, Fabric, FabricKind, Gather, Gid, GidKind, Listener, Mr,
            MrRequest, Pd, Presence, Qp, QpConfig,
        },
    },
};

use crate::bound::{self, Keeps};

pub(crate) use wire::{now, wait_readable};

pub(crate) use memory::Mapping;
pub use memory::{REGISTERED_BYTES_MAX, REGISTRATIONS_MAX};

/// The one device.
pub const DEVICE: &str = "emu0";
/// Requests of one direction of a QP at most.
const WR_MAX: u32 = 1 << 14;
/// Entries of a CQ at most.
const CQE_MAX: u32 = 1 << 16;
/// Bytes of a message at most: 1 GiB, as InfiniBand has nearly (2^31).
const MESSAGE_BYTES_MAX: u32 = 1 << 30;
/// Pieces of memory of one send or write.
const SGES_MAX: u8 = 4;
const _: () = assert!(SGES_MAX as usize == Gather::PIECES_MAX, "as many as a request can name");
/// Reads that a QP may have under way.
const READS_MAX: u8 = 16;

/// See the module documentation.
#[derive(Default)]
pub struct EmulatedFabric;

impl Fabric for EmulatedFabric {
    fn devices(&self) -> Result<Vec<DeviceFacts>, Error> {
        Ok(vec![facts()])
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>, Error> {
        if name != DEVICE {
            let error = Error::new(ErrorKind::NoDevice, Verb::Open).at(name.to_owned());
            return Err(error.detail("the emulation has no such device").remedy(format!("it has {DEVICE}")));
        }
        Ok(EmulatedDevice::open())
    }
}

fn facts() -> DeviceFacts {
    DeviceFacts {
        name: DEVICE.to_owned(),
        kind: FabricKind::Emulated,
        wr_max: WR_MAX,
        cqe_max: CQE_MAX,
        message_bytes_max: MESSAGE_BYTES_MAX,
        mr_bytes_max: REGISTERED_BYTES_MAX,
        rd_atomic_max: READS_MAX,
        sge_max: SGES_MAX,
        remote_invalidate: Ability::Yes,
        dma_buf: Ability::Yes,
    }
}

/// The device of an [`EmulatedFabric`].
pub struct EmulatedDevice {
    facts: DeviceFacts,
    keys: Arc<memory::Keys>,
    power: Arc<power::Power>,
    domains: AtomicU64,
    numbers: Arc<AtomicU32>,
}

impl EmulatedDevice {
    /// Opens one. Each has keys of its own.
    pub fn open() -> Arc<Self> {
        let numbers = Arc::new(AtomicU32::new(1));
        let (keys, power) = (Arc::default(), Arc::default());
        Arc::new(Self { facts: facts(), keys, power, domains: AtomicU64::new(1), numbers })
    }

    /// Pulls it out under whoever uses it, as somebody pulls a NIC: when this returns it touches no memory, nothing completes any more, and peers
    /// find a connection that is gone.
    pub fn pull_out(&self) {
        self.power.pull();
    }

    /// Registrations and their bytes now: a gauge, which returns to zero.
    pub fn registered(&self) -> (usize, u64) {
        self.keys.count()
    }
}

impl Device for EmulatedDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn presence(&self) -> Presence {
        self.power.presence()
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        let raw = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        Ok(vec![Gid { index: 0, kind: GidKind::RoceV2, raw }])
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        self.power.expect()?;
        let (keys, power, numbers) = (Arc::clone(&self.keys), Arc::clone(&self.power), Arc::clone(&self.numbers));
        Ok(Arc::new(EmulatedPd { number: self.domains.fetch_add(1, Ordering::Relaxed), keys, power, numbers }))
    }

    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        if !(1..=CQE_MAX).contains(&entries) {
            let error = Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("cq");
            return Err(error.detail(format!("{entries} entries; there may be 1 to {CQE_MAX}")));
        }
        self.power.expect()?;
        let of = (Arc::clone(&self.keys), Arc::clone(&self.power));
        let cq = Arc::new(cq::EmulatedCq::new(sw_mem::index(entries.into()), wake, of));
        self.power.plug_cq(&cq);
        Ok(cq)
    }

    fn listen(&self, at: &str) -> Result<Box<dyn Listener>, Error> {
        self.power.expect()?;
        Ok(Box::new(cm::EmulatedListener::bind(at)?))
    }
}

struct EmulatedPd {
    number: u64,
    keys: Arc<memory::Keys>,
    power: Arc<power::Power>,
    numbers: Arc<AtomicU32>,
}

impl EmulatedPd {
    /// The device's own queue behind the seam; `None`: of another device, whose queue pairs have the same numbers, or of another fabric.
    fn own(&self, cq: &Arc<dyn Cq>) -> Option<Arc<cq::EmulatedCq>> {
        let cq: Arc<cq::EmulatedCq> = Arc::clone(cq).into_any().downcast().ok()?;
        cq.is_of(&self.keys).then_some(cq)
    }
}

impl Pd for EmulatedPd {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.power.expect()?;
        let keeps = Keeps::Memory(memory.region.clone());
        Ok(Box::new(self.keys.register(self.number, memory, keeps)?))
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.power.expect()?;
        bound::bind(memory.region, Box::new(self.keys.register(self.number, memory, Keeps::Nothing)?))
    }

    fn reg_dmabuf_mr(&self, memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        self.power.expect()?;
        Ok(Box::new(self.keys.register_descriptor(self.number, memory)?))
    }

    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
        let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("qp").detail(text.to_owned()));
        let within = |wr: u32| (1..=WR_MAX).contains(&wr);
        if !within(config.send_wr_max) || !within(config.recv_wr_max) {
            return refuse(ErrorKind::ApiMisuse, "a queue has 1 to 16384 requests");
        }
        let (Some(send), Some(recv)) = (self.own(&config.send_cq), self.own(&config.recv_cq)) else {
            return refuse(ErrorKind::ApiMisuse, "the completion queue is of another device");
        };
        self.power.expect()?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let of = (self.number, Arc::clone(&self.keys), Arc::clone(&self.power));
        match qp::EmulatedQp::new(number, of, (send, recv), &config) {
            Some(qp) => Ok(Box::new(qp)),
            None => refuse(ErrorKind::ResourceLimit, "the completion queue has no room for all requests"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
