//! A connection manager that takes wishes for connections of before, as one does whose peer came back with queue pairs of the same numbers.

use sw_engine::seam::verbs::{DeviceFacts, DmaBufRequest, Gid, Listener, Pd, PostError, Presence};

use super::*;

/// An emulated device of whose wishes so many more are taken for stale.
struct Stale(Arc<EmulatedDevice>, Arc<AtomicU32>);

struct StalePd(Arc<dyn Pd>, Arc<AtomicU32>);

struct StaleQp(Box<dyn Qp>, Arc<AtomicU32>);

impl Device for Stale {
    fn facts(&self) -> &DeviceFacts {
        self.0.facts()
    }

    fn presence(&self) -> Presence {
        self.0.presence()
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        self.0.gids()
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        Ok(Arc::new(StalePd(self.0.alloc_pd()?, self.1.clone())))
    }

    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        self.0.create_cq(entries, wake)
    }

    fn listen(&self, at: &str) -> Result<Box<dyn Listener>, Error> {
        self.0.listen(at)
    }
}

impl Pd for StalePd {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.0.reg_mr(memory)
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.0.reg_bound_mr(memory)
    }

    fn reg_dmabuf_mr(&self, memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        self.0.reg_dmabuf_mr(memory)
    }

    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
        Ok(Box::new(StaleQp(self.0.create_qp(config)?, self.1.clone())))
    }
}

impl Qp for StaleQp {
    fn number(&self) -> u32 {
        self.0.number()
    }

    fn state(&self) -> QpState {
        self.0.state()
    }

    fn why(&self) -> Option<String> {
        self.0.why()
    }

    fn connect(&mut self, to: &str, private: &PrivateData, timeout: Duration) -> Result<Connected, Error> {
        if self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            self.0.to_error();
            return Ok(Connected::Stale);
        }
        self.0.connect(to, private, timeout)
    }

    fn accept(&mut self, incoming: Box<dyn Incoming>, private: &PrivateData) -> Result<(), Error> {
        self.0.accept(incoming, private)
    }

    fn post_recv(&mut self, wr: RecvWr) -> Result<(), PostError> {
        self.0.post_recv(wr)
    }

    fn post_send(&mut self, wr: SendWr) -> Result<(), PostError> {
        self.0.post_send(wr)
    }

    fn to_error(&mut self) {
        self.0.to_error();
    }
}

/// Opens a controller of whose wishes so many are taken for stale; how that ends, how many were left over, and what stays registered.
fn opened((target, subsystem): (&Target, &Nqn), stale: u32) -> (Result<(), Error>, u32, (usize, u64)) {
    let (device, left) = (EmulatedDevice::open(), Arc::new(AtomicU32::new(stale)));
    let (host, port) = ("127.0.0.1".into(), target.address().port());
    let address = Address { host, port, subsystem: subsystem.clone() };
    let way = Way::rdma(Arc::new(Stale(device.clone(), left.clone())), Registering::Kept);
    let made = Controller::open_by(way, address, identity(), ControllerConfig::default());
    let made = made.map(|controller| controller.shut_down());
    (made, left.load(Ordering::Relaxed), device.registered())
}

#[test]
fn a_connection_that_is_taken_for_one_of_before_is_asked_for_again_so_many_times() {
    let config = of_memory(None);
    let subsystem = config.subsystem.clone();
    let target = start_rdma_emulated(config).unwrap();
    let (made, left, _) = opened((&target, &subsystem), 5);
    assert_eq!((made.map_err(|error| error.to_string()), left), (Ok(()), 0));
    let (made, left, registered) = opened((&target, &subsystem), 100);
    let error = made.unwrap_err();
    assert_eq!((error.kind(), left), (ErrorKind::Busy, 94), "{error}");
    assert!(error.to_string().contains("took 6 wishes for connections that it still has"), "{error}");
    // What each attempt had posted and registered went with it.
    assert_eq!(registered, (0, 0));
}
