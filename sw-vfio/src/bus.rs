//! A real function behind the driver's seam: [`sw_nvme::bus::Bus`].
// UNSAFETY: queue memory is handed to sw-mem as foreign memory, so that it can have several handles.
#![expect(unsafe_code, reason = "the contract of DmaRegion::from_foreign")]

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sw_engine::{Error, ErrorKind, PciAddress, Time, Verb, seam::Wake};
use sw_mem::{ByteLen, DmaRegion, DmaSpan, ForkMark, HostMapping, HugePages, Iova, Mmio, Place, Populate, barrier};
use sw_nvme::bus::{Bus, QueueMemory, Registers, Waiter};

use crate::{
    claim::ControllerClaim,
    config::Dma,
    fault,
    function::Function,
    presence::{Gone, Presence, StaysOpen},
    space::{Backend, DmaSpace},
    sys::{
        self,
        event::{EVENTS_MAX, Epoll, EventFd},
    },
};

/// A PCI function with registers in BAR 0, claimed by this process. Clones share it; it is closed with the last of them and
/// of its registers.
#[derive(Clone)]
pub struct VfioFunction {
    function: Arc<Function>,
    registers: VfioRegisters,
    start: Instant,
}

impl VfioFunction {
    /// Opens the function at `address` into `space`. Time is counted from `start`, which belongs to the composer.
    ///
    /// # Errors
    /// `InUse` if another process has it, `NoDevice` if it is not there or not bound to vfio-pci, `PermissionDenied`,
    /// `Unsupported` if it has no registers that can be mapped; each with what to do about it.
    pub fn open(space: &DmaSpace, address: PciAddress, start: Instant) -> Result<Self, Error> {
        let function = Function::open(space, address, Dma::On)?;
        let bar = function.map_bar(sys::vfio::BAR0)?;
        // What lies behind a hole could be reached, but a doorbell in the hole would be lost in silence. Registers of a
        // controller are far below 4 GiB; what lies beyond has no offset in the seam.
        let end = bar.hole().map_or(bar.len(), |(from, _)| from);
        let len = u32::try_from(end).unwrap_or(u32::MAX);
        let mmio = bar.mmio();
        let registers = VfioRegisters { mmio, len, presence: Arc::clone(function.presence()) };
        Ok(Self { function, registers, start })
    }

    pub(crate) fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// Its address.
    pub fn address(&self) -> PciAddress {
        self.function.address()
    }

    /// The space that its memory is mapped in.
    pub fn space(&self) -> &DmaSpace {
        self.function.space()
    }

    /// Why it is no longer ours, if it is not. Its registers read as all ones then.
    pub fn gone(&self) -> Option<Gone> {
        self.function.gone()
    }

    /// Lets the function's claim end with it: whoever still holds the claim has nothing then.
    pub fn tie(&self, claim: Arc<ControllerClaim>) {
        self.function.tie(claim);
    }

    /// Closes the function now and gives its claim up, although others still hold it or its registers: those find nobody
    /// from then on. For one that nothing is in flight on, or that is gone; what it touched before is theirs again.
    ///
    /// Nothing is done in a forked child. *Blocking*: the kernel resets the function, some 100 ms.
    ///
    /// # Errors
    /// Why it stays open.
    pub fn close(&self) -> Result<(), StaysOpen> {
        self.function.close()
    }

    /// Resets the function (`VFIO_DEVICE_RESET`) and lets it start accesses again. Blocks for some 100 ms.
    ///
    /// # Errors
    /// `Unsupported` where it has no reset of its own.
    pub fn reset(&self) -> Result<(), Error> {
        self.function.reset()
    }
}

/// Registers in BAR 0.
#[derive(Clone)]
pub struct VfioRegisters {
    mmio: Mmio,
    len: u32,
    presence: Arc<Presence>,
}

impl Registers for VfioRegisters {
    fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    fn read32(&self, at: u32) -> u32 {
        if self.presence.gone().is_some() {
            return u32::MAX;
        }
        self.mmio.read32(at.into())
    }

    #[inline]
    fn write32(&self, at: u32, value: u32) {
        if self.presence.gone().is_none() {
            self.mmio.write32(at.into(), value);
        }
    }

    // Two accesses: every controller takes them (NVM Express Base Specification 2.0c §3.1.3 "Controller Properties" lets the
    // host choose), and some are known to mishandle one of 64 bits.
    fn read64(&self, at: u32) -> u64 {
        let low = self.read32(at);
        let high = at.checked_add(4).map_or(u32::MAX, |at| self.read32(at));
        u64::from(low) | (u64::from(high) << 32)
    }

    fn write64(&self, at: u32, value: u64) {
        let half = |shift: u32| u32::try_from((value >> shift) & u64::from(u32::MAX)).unwrap_or(0);
        self.write32(at, half(0));
        if let Some(at) = at.checked_add(4) {
            self.write32(at, half(32));
        }
    }
}

/// Memory for rings and lists: locked by its mapping, zeroed, in one piece for both sides.
pub struct VfioMemory {
    span: DmaSpan,
    iova: Iova,
}

/// The driver keeps inside the length; see [`QueueMemory`] for what happens if it does not.
fn inside<T: Default>(result: Result<T, sw_mem::MemError>) -> T {
    debug_assert!(result.is_ok(), "queue memory: {:?}", result.as_ref().err());
    result.unwrap_or_default()
}

impl QueueMemory for VfioMemory {
    fn iova(&self) -> Iova {
        self.iova
    }

    fn len(&self) -> usize {
        sw_mem::index(self.span.len().0)
    }

    fn read(&self, at: usize, to: &mut [u8]) {
        inside(self.span.read(at as u64, to));
    }

    fn write(&self, at: usize, from: &[u8]) {
        inside(self.span.write(at as u64, from));
    }

    #[inline]
    fn load32(&self, at: usize) -> u32 {
        inside(self.span.load32(at as u64))
    }

    #[inline]
    fn store32(&self, at: usize, value: u32) {
        inside(self.span.store32(at as u64, value));
    }

    #[inline]
    fn before_doorbell(&self) {
        barrier::to_device_before_doorbell();
    }

    #[inline]
    fn after_valid(&self) {
        barrier::from_device_after_valid();
    }

    #[inline]
    fn store_then_load(&self) {
        barrier::store_to_device_then_load();
    }

    fn alias(&self) -> Option<Self> {
        let span = self.span.region().span(self.span.offset(), self.span.len()).ok()?;
        Some(Self { span, iova: self.iova })
    }
}

/// One message-signalled interrupt.
#[derive(Debug)]
pub struct VfioInterrupt(Arc<EventFd>);

/// Waits for interrupts and wake-ups by `epoll`; see [`Waiter`].
pub struct VfioWaiter {
    set: Epoll,
    /// By the number they have in the set.
    events: Vec<Arc<EventFd>>,
    wake: Arc<Waker>,
    start: Instant,
    fork: ForkMark,
}

/// Wake-ups of one waiter.
#[derive(Debug)]
struct Waker {
    event: EventFd,
    /// Set before the event is raised, so that a thread that polls sees it without a system call.
    called: AtomicBool,
}

/// The number of the wake-up event in the set.
const WAKE: u64 = u64::MAX;

impl Wake for Waker {
    fn wake(&self) {
        if !self.called.swap(true, Ordering::AcqRel) {
            self.event.raise();
        }
    }
}

impl Waker {
    /// Takes what came. The event always, too: it may be raised after the flag was taken.
    fn take(&self) -> bool {
        self.event.take();
        self.called.swap(false, Ordering::AcqRel)
    }
}

impl VfioWaiter {
    /// One that watches nothing yet. Time is counted from `start`.
    ///
    /// # Errors
    /// `ResourceLimit`: no descriptor left.
    pub fn new(start: Instant) -> Result<Self, Error> {
        let failed = |errno| fault::error(errno, Verb::Setup, "event", "making a waiter");
        let wake = Arc::new(Waker { event: EventFd::new().map_err(failed)?, called: AtomicBool::new(false) });
        let set = Epoll::new().map_err(failed)?;
        set.add(wake.event.as_fd(), WAKE).map_err(failed)?;
        Ok(Self { set, events: Vec::new(), wake, start, fork: ForkMark::new() })
    }
}

impl Waiter for VfioWaiter {
    type Interrupt = VfioInterrupt;

    fn watch(&mut self, interrupt: &VfioInterrupt) -> Result<(), Error> {
        let number = self.events.len() as u64;
        self.set
            .add(interrupt.0.as_fd(), number)
            .map_err(|errno| fault::error(errno, Verb::Setup, "event", "watching an interrupt"))?;
        self.events.push(Arc::clone(&interrupt.0));
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        if self.fork.is_child() {
            // What is ready is the parent's and stays ready: a loop that waits would spin.
            sleep(timeout);
            return false;
        }
        let (events, wake) = (&self.events, &self.wake);
        let mut woken = false;
        self.set.wait(Some(timeout), |number| match usize::try_from(number).ok().and_then(|at| events.get(at)) {
            Some(event) => {
                event.take();
            }
            None => woken |= wake.take(),
        });
        woken
    }

    #[inline]
    fn woken(&mut self) -> bool {
        self.wake.called.load(Ordering::Relaxed) && self.wake.take()
    }

    #[inline]
    fn relax(&mut self) {
        core::hint::spin_loop();
    }

    fn now(&self) -> Time {
        since(self.start)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as _
    }
}

// A turn of the loop takes what one wait can report, so a function's vectors must not starve the wake-up for ever: epoll
// hands out ready descriptors in turn.
const _: () = assert!(EVENTS_MAX >= 2);

fn since(start: Instant) -> Time {
    Time::ZERO.after(start.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "the driver's waits of bring-up are given in time by the specification")]
fn sleep(span: Duration) {
    std::thread::sleep(span);
}

impl Bus for VfioFunction {
    type Registers = VfioRegisters;
    type Memory = VfioMemory;
    type Waiter = VfioWaiter;

    fn name(&self) -> &str {
        self.function.name()
    }

    fn registers(&self) -> VfioRegisters {
        self.registers.clone()
    }

    fn allocate(&self, len: usize) -> Result<VfioMemory, Error> {
        self.function.expect_own(Verb::Register)?;
        let failed = |cause: String| Error::new(ErrorKind::ResourceLimit, Verb::Register).at(self.name()).detail(cause);
        let len = ByteLen(len.max(1) as u64);
        let region = match self.space().backend() {
            Backend::NoIommu => self.space().rings().allocate(len).map_err(|error| error.at(self.name()))?,
            Backend::Type1 | Backend::Iommufd => {
                let mapping = HostMapping::map(len, sys::page_bytes(), HugePages::Never, Populate::Now);
                let mapping = mapping.map_err(|cause| failed(cause.to_string()))?;
                let (base, whole) = (Place::Host(mapping.base()), mapping.len());
                // SAFETY: the mapping is the owner, so the range stays mapped while the region lives, and there is no
                // reference into it: every access goes through the spans of the region.
                let region = unsafe { DmaRegion::from_foreign(base, whole, Box::new(mapping)) };
                region.map_err(|cause| failed(cause.to_string()))?
            }
        };
        let iova = self.space().map(&region)?;
        let span = region.span(0, region.len()).map_err(|cause| failed(cause.to_string()))?;
        Ok(VfioMemory { span, iova })
    }

    fn map(&self, region: &DmaRegion) -> Result<Iova, Error> {
        self.function.expect_own(Verb::Register)?;
        self.space().map(region)
    }

    fn vectors(&self) -> u16 {
        self.function.vector_count()
    }

    fn interrupt(&self, vector: u16) -> Result<VfioInterrupt, Error> {
        self.function.interrupt(vector).map(VfioInterrupt)
    }

    fn now(&self) -> Time {
        since(self.start)
    }

    fn pause(&self, span: Duration) {
        sleep(span);
    }

    fn stop(&self) -> bool {
        self.function.stop_dma()
    }

    fn is_gone(&self) -> bool {
        self.function.gone().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bar::BarMap, caps::Region};

    const LONG: Duration = Duration::from_secs(30);

    #[expect(clippy::disallowed_methods, reason = "a test owns its clock")]
    fn waiter() -> VfioWaiter {
        VfioWaiter::new(Instant::now()).unwrap()
    }

    #[test]
    fn a_wake_before_a_wait_is_not_lost_and_is_taken_once() {
        let mut waiter = waiter();
        assert!(!waiter.woken());
        let waker = waiter.waker();
        waker.wake();
        waker.wake();
        assert!(waiter.woken() && !waiter.woken());
        waker.wake();
        let before = waiter.now();
        assert!(waiter.wait(LONG), "the wait says what it took");
        assert!(waiter.now().since(before) < LONG / 2, "the wait ended early");
        assert!(!waiter.woken(), "the wait took it");
        let before = waiter.now();
        assert!(!waiter.wait(Duration::from_millis(20)));
        assert!(waiter.now().since(before) >= Duration::from_millis(15), "nothing was left");
    }

    #[test]
    fn a_wake_from_another_thread_ends_a_wait() {
        let mut waiter = waiter();
        for _ in 0..200 {
            let waker = waiter.waker();
            let before = waiter.now();
            std::thread::scope(|scope| {
                scope.spawn(move || waker.wake());
                assert!(waiter.wait(LONG));
            });
            assert!(waiter.now().since(before) < LONG / 2);
            assert!(!waiter.woken(), "the wait took it");
        }
    }

    #[test]
    fn a_forked_child_neither_takes_nor_gives_a_wake_up_and_touches_no_register() {
        let file = sys::map::memory_file(4096).unwrap();
        let region = Region { flags: sys::vfio::REGION_MMAP, len: 4096, offset: 0, areas: None };
        let presence = Arc::<Presence>::default();
        let bar = BarMap::new(file.as_fd(), &region, &presence, Arc::new(())).unwrap();
        let registers = VfioRegisters { mmio: bar.mmio(), len: 4096, presence };
        registers.write32(0x14, 5);
        let mut waiter = waiter();
        waiter.waker().wake();
        let slice = Duration::from_millis(20);
        assert!(crate::fake::in_child(|| {
            registers.write32(0x14, 0);
            let before = waiter.now();
            let slept = !waiter.wait(slice) && waiter.now().since(before) >= slice;
            slept && registers.read32(0x14) == u32::MAX
        }));
        assert_eq!(registers.read32(0x14), 5, "the child's write went nowhere");
        assert!(waiter.wait(LONG), "the wake-up is still there");
        assert!(crate::fake::in_child(|| {
            waiter.waker().wake();
            true
        }));
        assert!(!waiter.wait(slice), "the child woke nobody");
    }

    #[test]
    fn each_watched_interrupt_ends_a_wait() {
        let mut waiter = waiter();
        let interrupts: Vec<_> = (0..3).map(|_| VfioInterrupt(Arc::new(EventFd::new().unwrap()))).collect();
        interrupts.iter().for_each(|interrupt| waiter.watch(interrupt).unwrap());
        for interrupt in &interrupts {
            interrupt.0.raise();
            let before = waiter.now();
            assert!(!waiter.wait(LONG), "an interrupt is no wake-up");
            assert!(waiter.now().since(before) < LONG / 2);
            assert!(!interrupt.0.take(), "the wait took it");
        }
    }
}
