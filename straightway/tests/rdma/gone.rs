//! A device that is pulled out, or has less room than is wanted, under a lane; and small writes.

use std::sync::atomic::AtomicBool;

use sw_engine::{
    Verb,
    seam::{
        Attach, Fence,
        verbs::{DeviceFacts, DmaBufRequest, Gid, Listener, Pd, Presence, Sge},
    },
};

use super::{
    lanes::{Lane, rig},
    *,
};

/// Answers the first command of a kind late, and says that it has come: it is under way then.
fn late(wanted: u8) -> (Arc<dyn Faults>, Arc<AtomicBool>) {
    let (came, once) = (Arc::new(AtomicBool::new(false)), once(wanted, Fault::Delay(Duration::from_millis(400))));
    let told = Arc::clone(&came);
    let faults = move |seen: &Seen| {
        let fault = once.command(seen);
        told.fetch_or(fault.is_some(), Ordering::Release);
        fault
    };
    (Arc::new(faults), came)
}

/// Polls a lane until its command has come to the target.
fn under_way(lane: &mut Lane, came: &AtomicBool) {
    let begun = now();
    while !came.load(Ordering::Acquire) {
        assert!(lane.end().is_none() && now() - begun < LIMIT, "it does not get under way");
    }
}

/// A target that answers the first command of that kind late.
fn slow(directory: &Arc<Directory>, wanted: u8, registering: Registering) -> (Rig, Arc<AtomicBool>) {
    let (late, came) = late(wanted);
    let rig = Rig::by(directory, of_memory(Some(late)), ControllerConfig::default(), (Budget::default(), registering));
    (rig, came)
}

#[test]
fn a_device_that_is_gone_gives_the_memory_back_with_an_error_that_says_so() {
    let both = [Registering::Kept, Registering::PerCommand];
    for (registering, kind, wanted) in
        both.iter().flat_map(|how| [(*how, IoKind::Read, opcode::READ), (*how, IoKind::Write, opcode::WRITE)])
    {
        let directory = Arc::default();
        let ((rig, came), (other, _)) =
            (slow(&directory, wanted, registering), slow(&directory, opcode::FLUSH, registering));
        let (object, beside) = (rig.object(), other.object());
        let (mut lane, mut unharmed) = (Lane::new(&directory), Lane::new(&directory));
        unharmed.run(&beside, IoKind::Write).unwrap();
        lane.memory.fill(0, 8192, 0x77).unwrap();
        lane.begin(&object, kind);
        under_way(&mut lane, &came);
        rig.device.pull_out();
        let begun = now();
        let fault = loop {
            if let Some(result) = lane.end() {
                break result.unwrap_err();
            }
            assert!(now() - begun < LIMIT, "nothing is told");
        };
        assert!(now() - begun < Duration::from_secs(5), "it was waited for something that does not come");
        assert_eq!(fault.kind, ErrorKind::NoDevice, "{fault:?}");
        assert_eq!(fault.outcome, WriteOutcome::Unknown, "{fault:?}");
        let why = lane.transport.explain(object.faces[0].handle, fault).expect("a reason").to_string();
        assert!(why.contains("emu0") && why.contains("gone") && why.contains(';'), "{why}");
        // It is registered no more, so that nothing can land in it: what is left, and goes, is the admin queue's.
        assert!(rig.device.registered().1 < 16384, "{registering:?}");
        while rig.device.registered() != (0, 0) {
            assert!(now() - begun < LIMIT, "{registering:?}: {:?}", rig.device.registered());
            std::thread::yield_now();
        }
        lane.memory.fill(0, 8192, 0x33).unwrap();
        std::thread::park_timeout(Duration::from_millis(500));
        let mut bytes = vec![0; 8192];
        lane.memory.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0x33; 8192]);
        // Others go on, and this one says the same again.
        unharmed.run(&beside, IoKind::Read).unwrap();
        assert_eq!(lane.run(&object, IoKind::Read).unwrap_err().kind, ErrorKind::NoDevice);
    }
}

#[test]
fn a_device_with_little_room_registers_command_by_command() {
    // Both directions of three connections, and the data of one command of 8 KiB; the memory that it lies in does not fit.
    let budget = Budget { bytes_max: 64 << 10, ..Budget::default() };
    let directory = Arc::default();
    let rig = rig(&directory, budget, Registering::Kept);
    let (object, mut lane) = (rig.object(), Lane::of(&directory, 4 << 20));
    let mut registered = Vec::new();
    for kind in [IoKind::Write, IoKind::Read].into_iter().cycle().take(20) {
        assert_eq!(lane.run(&object, kind), Ok(8192));
        registered.push(rig.device.registered());
    }
    let counters = lane.transport.counters();
    // A window is not tried for each command: one is refused, and then others are not asked for.
    assert_eq!((counters.windows_refused, counters.registrations), (1, 21), "{counters:?}");
    let first = registered[0];
    assert!(registered.iter().all(|now| *now == first), "a command's memory stays registered: {registered:?}");
}

#[test]
fn small_writes_go_in_their_capsule_and_others_do_not() {
    for (bytes, goes) in [(4096, 1), (8192, 1), (12288, 0)] {
        let directory = Arc::default();
        let rig = rig(&directory, Budget::default(), Registering::PerCommand);
        let (object, mut lane) = (rig.object(), Lane::of(&directory, 16 << 10));
        let (content, mut got) = (super::bytes(bytes as usize), vec![0; bytes as usize]);
        lane.memory.write(0, &content).unwrap();
        lane.begin_of(&object, IoKind::Write, bytes);
        assert_eq!(lane.wait(), Ok(bytes));
        assert_eq!(lane.transport.counters().in_capsule, goes, "{bytes} bytes");
        lane.memory.fill(0, bytes.into(), 0).unwrap();
        lane.begin_of(&object, IoKind::Read, bytes);
        assert_eq!(lane.wait(), Ok(bytes));
        lane.memory.read(0, &mut got).unwrap();
        assert!(got == content, "{bytes} bytes came back as others");
    }
}

// ---- a device that is gone and lets go of nothing -----------------------------------------------------------------

/// An emulated device that, once it is pulled out, refuses to deregister, as a driver may whose device failed for good.
struct Stubborn(Arc<EmulatedDevice>);

struct StubbornPd(Arc<EmulatedDevice>, Arc<dyn Pd>);

struct StubbornMr(Arc<EmulatedDevice>, Box<dyn Mr>);

impl Device for Stubborn {
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
        Ok(Arc::new(StubbornPd(self.0.clone(), self.0.alloc_pd()?)))
    }

    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        self.0.create_cq(entries, wake)
    }

    fn listen(&self, at: &str) -> Result<Box<dyn Listener>, Error> {
        self.0.listen(at)
    }
}

impl Pd for StubbornPd {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        Ok(Box::new(StubbornMr(self.0.clone(), self.1.reg_mr(memory)?)))
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        Ok(Box::new(StubbornMr(self.0.clone(), self.1.reg_bound_mr(memory)?)))
    }

    fn reg_dmabuf_mr(&self, memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        self.1.reg_dmabuf_mr(memory)
    }

    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
        self.1.create_qp(config)
    }
}

impl Mr for StubbornMr {
    fn len(&self) -> u64 {
        self.1.len()
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        self.1.sge(at, len)
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        self.1.remote(at)
    }

    fn deregister(self: Box<Self>) -> Result<(), Error> {
        let Self(device, mr) = *self;
        mr.deregister()?;
        match device.presence() {
            Presence::Here => Ok(()),
            Presence::Gone => Err(Error::new(ErrorKind::Io, Verb::Setup).at("mr").with_code(5)),
        }
    }
}

#[test]
fn memory_that_a_device_that_is_gone_does_not_let_go_of_stays_with_it() {
    for (registering, kind, wanted, told) in [
        (Registering::Kept, IoKind::Read, opcode::READ, false),
        (Registering::Kept, IoKind::Write, opcode::WRITE, false),
        // The registration goes with its command alone.
        (Registering::Kept, IoKind::Read, opcode::READ, true),
        (Registering::PerCommand, IoKind::Read, opcode::READ, false),
        (Registering::PerCommand, IoKind::Write, opcode::WRITE, false),
    ] {
        let directory = Arc::default();
        let device = EmulatedDevice::open();
        let (late, came) = late(wanted);
        let budgeted = Budgeted::new(Arc::new(Stubborn(device.clone())), Budget::default());
        let rig =
            Rig::over(&directory, of_memory(Some(late)), ControllerConfig::default(), (budgeted, device, registering));
        let (object, mut lane) = (rig.object(), Lane::new(&directory));
        lane.begin(&object, kind);
        under_way(&mut lane, &came);
        if told {
            lane.transport.attach(Attach::RegionGone(lane.memory.region().id())).unwrap();
        }
        rig.device.pull_out();
        let fault = lane.wait().unwrap_err();
        assert!(fault.kind == ErrorKind::NoDevice && fault.keeps_memory(), "{registering:?} {kind:?}: {fault:?}");
        lane.transport.attach(Attach::Region(lane.memory.region())).unwrap();
        let again = lane.run(&object, kind).unwrap_err();
        assert!(again.kind == ErrorKind::NoDevice && !again.keeps_memory(), "no device heard of it: {again:?}");
        let fence = lane.transport.fence(Duration::ZERO, &mut Vec::new());
        assert_eq!(fence, Fence::Busy(1), "{registering:?} {kind:?}");
    }
}
