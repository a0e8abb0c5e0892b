//! The self-test of a registered dma-buf: one page, written and read by the device, and looked at by whoever else has the memory.
//!
//! That a device registers a dma-buf proves nothing: between it and the memory may be a switch or an IOMMU that sends its writes elsewhere, or
//! nowhere (`field/dpu-rdma-nvmeof.md` section 1). So two queue pairs of the device are connected with each other, a pattern is written into the page by
//! RDMA, looked at by its owner, and read back; then its complement.
//!
//! Nobody registers memory of a GPU yet, which is what it waits for (docs/rdma.md): what this shows on a NIC and a GPU is unproven. It runs on the emulation with a memfd.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::Builder,
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Access, Connected, Cq, Device, DmaBufRequest, Gather, MrRequest, PrivateData, Qp, QpConfig, SendOp, SendWr,
            Wc, WcStatus,
        },
    },
};
use sw_mem::{Buffer, ByteLen};

/// Bytes that are tried.
pub const TRIED_BYTES: u64 = 4096;
/// How long each step may take.
const STEP: Duration = Duration::from_secs(5);

/// Kept until it is waited for.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_all();
    }
}

impl Bell {
    /// Whether it rang within [`STEP`].
    fn wait(&self) -> bool {
        let rung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) =
            self.1.wait_timeout_while(rung, STEP, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        core::mem::take(&mut *rung)
    }
}

fn failed(kind: ErrorKind, text: impl Into<String>) -> Error {
    let error = Error::new(kind, Verb::Setup).at("dma-buf self-test").detail(text.into());
    error.remedy("stage it in host memory; see the topology of PCIe, ACS and the IOMMU")
}

/// One end: a queue pair whose requests are carried out one after the other.
struct EndPoint {
    qp: Box<dyn Qp>,
    cq: Arc<dyn Cq>,
    bell: Arc<Bell>,
}

impl EndPoint {
    fn new(device: &dyn Device, pd: &dyn sw_engine::seam::verbs::Pd) -> Result<Self, Error> {
        let bell = Arc::new(Bell::default());
        let cq = device.create_cq(4, Arc::clone(&bell) as Arc<dyn Wake>)?;
        let (send_cq, recv_cq) = (Arc::clone(&cq), Arc::clone(&cq));
        let qp = pd.create_qp(QpConfig { send_cq, recv_cq, send_wr_max: 1, recv_wr_max: 1, rnr_wait: STEP })?;
        Ok(Self { qp, cq, bell })
    }

    fn run(&mut self, op: SendOp, memory: Gather) -> Result<(), Error> {
        let what = if matches!(op, SendOp::RdmaRead(_)) { "reading" } else { "writing" };
        let posted = self.qp.post_send(SendWr { wr_id: 1, op, memory });
        posted.map_err(|error| failed(ErrorKind::Io, format!("{what} the page: {error}")))?;
        let mut done = Vec::<Wc>::with_capacity(1);
        // Armed first, then looked: see the seam.
        self.cq.arm()?;
        while self.cq.poll(&mut done) == 0 {
            if !self.bell.wait() {
                return Err(failed(ErrorKind::DeadlineExceeded, format!("{what} the page does not end")));
            }
            self.cq.arm()?;
        }
        match done.first().map(|wc| wc.status) {
            Some(WcStatus::Success) | None => Ok(()),
            Some(status) => Err(failed(ErrorKind::Io, format!("{what} the page: {status}"))),
        }
    }
}

/// Connects two ends over `at`, an address of the device, `HOST:0`.
fn join(device: &dyn Device, at: &str, (a, b): (&mut EndPoint, &mut EndPoint)) -> Result<(), Error> {
    let mut listener = device.listen(at)?;
    let (to, none) = (listener.address(), PrivateData::empty());
    let qp = &mut b.qp;
    let silent = || failed(ErrorKind::DeadlineExceeded, "the device does not reach itself");
    std::thread::scope(|scope| {
        let accepting = Builder::new().name("dma-buf test".to_owned()).spawn_scoped(scope, move || {
            let mut incoming = listener.accept(STEP)?.ok_or_else(silent)?;
            incoming.request(STEP)?;
            qp.accept(incoming, &PrivateData::empty())
        });
        let accepting = accepting.map_err(|cause| failed(ErrorKind::ResourceLimit, "no thread").caused_by(cause))?;
        let connected = a.qp.connect(&to, &none, STEP);
        accepting.join().unwrap_or_else(|_| Err(silent()))?;
        match connected? {
            Connected::Accepted(_) => Ok(()),
            Connected::Rejected(_) | Connected::Stale => Err(silent()),
        }
    })
}

/// Whether what a device does to a dma-buf is what its owner sees. `at` is an address of the device, `HOST:0`; `memory` names one page or
/// more, of which the first [`TRIED_BYTES`] are overwritten; `look` gives those bytes as their owner has them. *Blocking*: some steps of five seconds at most.
///
/// # Errors
/// `Unsupported`, and the others of [`reg_dmabuf_mr`](sw_engine::seam::verbs::Pd::reg_dmabuf_mr); `ChecksumMismatch` where other bytes are there than were written;
/// `Io`, `DeadlineExceeded`. Nothing is registered any more then, or afterwards.
pub fn self_test(
    device: &Arc<dyn Device>,
    at: &str,
    memory: DmaBufRequest,
    mut look: impl FnMut(&mut [u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let pd = device.alloc_pd()?;
    let access = Access::LOCAL_WRITE.with(Access::REMOTE_WRITE).with(Access::REMOTE_READ);
    let there = pd.reg_dmabuf_mr(DmaBufRequest { len: TRIED_BYTES, access, ..memory })?;
    let buffer = Buffer::allocate(ByteLen(TRIED_BYTES))
        .map_err(|cause| failed(ErrorKind::ResourceLimit, "no memory").caused_by(cause))?;
    let here = buffer.into_span();
    let own = MrRequest { region: here.region(), at: here.offset(), len: TRIED_BYTES, access: Access::LOCAL_WRITE };
    let own = pd.reg_mr(own)?;
    let (mut a, mut b) = (EndPoint::new(&**device, &*pd)?, EndPoint::new(&**device, &*pd)?);
    join(&**device, at, (&mut a, &mut b))?;
    let bytes = u32::try_from(TRIED_BYTES).unwrap_or(0);
    let gather = Gather::from(own.sge(0, bytes));
    let remote = || there.remote(0).ok_or_else(|| failed(ErrorKind::NotRegistered, "it has no key for the peer"));
    for flip in [0, u8::MAX] {
        let pattern: Vec<u8> = (0..TRIED_BYTES).map(|byte| u8::try_from(byte % 251).unwrap_or(0) ^ flip).collect();
        let differ = |what: &str, got: &[u8]| {
            let first = got.iter().zip(&pattern).position(|(got, want)| got != want);
            first.map_or(Ok(()), |byte| Err(failed(ErrorKind::ChecksumMismatch, format!("byte {byte} {what}"))))
        };
        let _ = here.write(0, &pattern);
        a.run(SendOp::RdmaWrite(remote()?), gather)?;
        let mut seen = vec![0; pattern.len()];
        look(&mut seen)?;
        differ("was written by the device, and its owner sees another one", &seen)?;
        let _ = here.fill(0, TRIED_BYTES, 0);
        a.run(SendOp::RdmaRead(remote()?), gather)?;
        let _ = here.read(0, &mut seen);
        differ("comes back as another one", &seen)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sw_testkit::conformance::verbs::Behind;

    use super::*;
    use crate::emulated::{EmulatedDevice, tests::Memfd};

    fn request(fd: i32) -> DmaBufRequest {
        DmaBufRequest { fd, at: 0, len: 8192, iova: 0x10_0000, access: Access::LOCAL_WRITE }
    }

    #[test]
    fn memory_that_is_what_it_says_passes_and_nothing_stays() {
        let (device, memory) = (EmulatedDevice::open(), Memfd::new());
        let seam = Arc::clone(&device) as Arc<dyn Device>;
        let look = |to: &mut [u8]| {
            to.copy_from_slice(&memory.bytes()[..to.len()]);
            Ok(())
        };
        self_test(&seam, "127.0.0.1:0", request(memory.fd()), look).unwrap();
        assert_eq!(device.registered(), (0, 0));
    }

    #[test]
    fn memory_that_others_see_differently_fails() {
        let (device, memory) = (EmulatedDevice::open() as Arc<dyn Device>, Memfd::new());
        // As if the device's writes went elsewhere.
        let blind = |_: &mut [u8]| Ok(());
        let error = self_test(&device, "127.0.0.1:0", request(memory.fd()), blind).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChecksumMismatch, "{error}");
        assert!(error.to_string().contains("stage it"), "{error}");
        // The first pattern is seen for ever: the second one tells.
        let mut kept: Option<Vec<u8>> = None;
        let stale = |to: &mut [u8]| {
            let first = kept.get_or_insert_with(|| memory.bytes());
            to.copy_from_slice(&first[..to.len()]);
            Ok(())
        };
        assert_eq!(
            self_test(&device, "127.0.0.1:0", request(memory.fd()), stale).unwrap_err().kind(),
            ErrorKind::ChecksumMismatch
        );
        let none = self_test(&device, "127.0.0.1:0", request(-1), |_| Ok(())).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::ApiMisuse, "{none}");
    }
}
