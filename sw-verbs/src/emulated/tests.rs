use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use sw_engine::{
    ErrorKind,
    seam::verbs::{Access, Device, Fabric, MrRequest},
};
use sw_mem::{Buffer, ByteLen};
use sw_testkit::conformance::{End, verbs};

use super::*;
use crate::budget::{Budget, Budgeted};

struct Bed {
    begun: Instant,
    devices: Vec<Arc<EmulatedDevice>>,
}

impl verbs::Bed for Bed {
    fn name(&self) -> String {
        "emulated fabric over loopback".to_owned()
    }

    fn device(&mut self) -> Result<Arc<dyn Device>, End> {
        let device = EmulatedDevice::open();
        self.devices.push(Arc::clone(&device));
        // As the product has it.
        Ok(Budgeted::new(device, Budget::default()))
    }

    fn address(&self) -> String {
        "127.0.0.1:0".to_owned()
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn idle(&mut self) {
        std::thread::yield_now();
    }
}

#[test]
fn the_emulation_is_what_the_seam_asks_for() {
    let mut bed = Bed { begun: wire::now(), devices: Vec::new() };
    verbs::run(&mut bed).assert_green(&[]);
    for device in bed.devices {
        assert_eq!(device.registered(), (0, 0));
    }
}

#[test]
fn there_is_one_device_and_it_says_what_it_is() {
    let devices = EmulatedFabric.devices().unwrap();
    assert_eq!((devices.len(), devices[0].kind), (1, FabricKind::Emulated));
    let error = EmulatedFabric.open("mlx5_0").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDevice);
}

#[test]
fn what_is_no_emulation_is_refused() {
    let mut listener = EmulatedDevice::open().listen("127.0.0.1:0").unwrap();
    let mut stranger = TcpStream::connect(listener.address()).unwrap();
    stranger.write_all(&[0x16; 200]).unwrap();
    let mut incoming = listener.accept(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(incoming.request(Duration::from_secs(10)).unwrap_err().kind(), ErrorKind::Protocol);
    // One that says nothing is waited for as long as was said.
    let _silent = TcpStream::connect(listener.address()).unwrap();
    let mut incoming = listener.accept(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(incoming.request(Duration::from_millis(20)).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(listener.accept(Duration::from_millis(1)).unwrap().is_none());
}

#[test]
fn a_budget_refuses_what_is_past_it_and_comes_back() {
    let device = EmulatedDevice::open();
    let budgeted = Budgeted::new(device.clone(), Budget { bytes_max: 8192, registrations_max: 2 });
    let (pd, other) = (budgeted.alloc_pd().unwrap(), budgeted.alloc_pd().unwrap());
    let memory = Buffer::allocate(ByteLen(16384)).unwrap().into_span();
    let of = |at, len| MrRequest { region: memory.region(), at, len, access: Access::LOCAL_WRITE };
    let first = pd.reg_mr(of(0, 4096)).unwrap();
    let past = other.reg_mr(of(0, 4097)).map(drop).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::ResourceLimit);
    assert!(past.to_string().contains("4096 of 8192 left"), "{past}");
    let second = other.reg_mr(of(4096, 1)).unwrap();
    assert!(pd.reg_mr(of(0, 1)).is_err());
    // What the device refuses costs nothing.
    drop(second);
    assert!(pd.reg_mr(of(16384, 1)).is_err());
    let used = budgeted.used();
    assert_eq!((used.bytes, used.registrations, used.refused), (4096, 1, 2));
    first.deregister();
    assert_eq!((budgeted.used().bytes, budgeted.used().registrations), (0, 0));
    assert_eq!(device.registered(), (0, 0));
}

#[test]
fn an_lkey_of_memory_that_a_peer_may_write_is_no_rkey_of_it() {
    // On a NIC both may be one number; here nobody gets used to that.
    let keys = Arc::new(memory::Keys::default());
    let memory = Buffer::allocate(ByteLen(4096)).unwrap().into_span();
    let access = Access::LOCAL_WRITE.with(Access::REMOTE_WRITE);
    let mr = keys.register(1, MrRequest { region: memory.region(), at: 0, len: 4096, access }).unwrap();
    let (sge, remote) = (mr.sge(0, 64).unwrap(), mr.remote(0).unwrap());
    let opens = |key, used| keys.open(1, (key, used), (sge.addr, 64), access).is_some();
    assert!(opens(sge.lkey.0, memory::Use::Local) && opens(remote.rkey(), memory::Use::Remote));
    assert!(!opens(sge.lkey.0, memory::Use::Remote) && !opens(remote.rkey(), memory::Use::Local));
}
