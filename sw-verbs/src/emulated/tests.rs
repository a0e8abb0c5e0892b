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
use crate::pool::{Budget, MrPool};

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
        Ok(device)
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
    let pool = MrPool::new(device.alloc_pd().unwrap(), Budget { bytes_max: 8192, leases_max: 2 });
    let memory = Buffer::allocate(ByteLen(16384)).unwrap().into_span();
    let of = |at, len| MrRequest { region: memory.region(), at, len, access: Access::LOCAL_WRITE };
    let first = pool.lease(of(0, 4096)).unwrap();
    let past = pool.lease(of(0, 4097)).map(drop).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::ResourceLimit);
    assert!(past.to_string().contains("4096 of 8192 left"), "{past}");
    let second = pool.lease(of(4096, 1)).unwrap();
    assert!(pool.lease(of(0, 1)).is_err());
    // What the device refuses costs nothing.
    drop(second);
    assert!(pool.lease(of(16384, 1)).is_err());
    assert_eq!((pool.used().bytes, pool.used().leases, pool.used().refused), (4096, 1, 2));
    drop(first);
    assert_eq!((pool.used().bytes, pool.used().leases), (0, 0));
    assert_eq!(device.registered(), (0, 0));
}
