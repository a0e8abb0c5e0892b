//! A PCI function, opened: its regions, its interrupts, its reset.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use sw_engine::{Error, ErrorKind, PciAddress, Verb};

use crate::{
    bar::BarMap,
    caps::{self, Region},
    claim::ControllerClaim,
    config::{Config, Dma},
    fault,
    presence::{Gone, Hold, News, Presence, StaysOpen, Watcher},
    space::DmaSpace,
    sys::{self, event::EventFd, vfio::IrqInfo},
};

/// Interrupt vectors that are enabled at once at most where the kernel cannot add single ones later: 64 queues and the
/// admin queue. Each takes a vector of the machine's, of which there are about 200 a processor.
pub(crate) const VECTORS_MAX: u16 = 65;

/// Message-signalled interrupts of a function.
#[derive(Debug)]
struct Vectors {
    /// `VFIO_PCI_MSIX_IRQ_INDEX` or `VFIO_PCI_MSI_IRQ_INDEX`.
    index: u32,
    count: u16,
    can_grow: bool,
    /// Those that were asked for; empty until the first one.
    enabled: Mutex<Vec<Option<Arc<EventFd>>>>,
}

/// An open function. Its registers, memory and interrupts keep it open; the last of them closes it: interrupts off, DMA off,
/// file closed, group left. A forked child closes its copies of the descriptors and does nothing else.
#[derive(Debug)]
pub(crate) struct Function {
    name: Arc<str>,
    address: PciAddress,
    space: DmaSpace,
    config: Config,
    dma: Dma,
    can_reset: bool,
    vectors: Option<Vectors>,
    // In this order: the watcher has a handle of it.
    watcher: Option<Watcher>,
    hold: Arc<Hold>,
}

impl Function {
    /// Opens a function into a space and lets it answer and, with `dma`, start accesses. It is reset first, as vfio-pci does on opening.
    ///
    /// # Errors
    /// `InUse`, `NoDevice`, `PermissionDenied`, `Unsupported`, with what to do about it.
    pub(crate) fn open(space: &DmaSpace, address: PciAddress, dma: Dma) -> Result<Arc<Self>, Error> {
        space.sysfs().expect_function(address)?;
        let name: Arc<str> = address.to_string().into();
        // Declared in this order: an error below closes the device before its group is left.
        let (member, device) = space.join(address)?;
        let failed = |errno, what| fault::error(errno, Verb::Open, Arc::clone(&name), what);
        let info = sys::vfio::device_info(device.as_fd()).map_err(|errno| failed(errno, "asking what it is"))?;
        if info.flags & sys::vfio::DEVICE_IS_PCI == 0 || info.regions <= sys::vfio::CONFIG {
            return Err(Error::new(ErrorKind::WrongKind, Verb::Open).at(name).detail("it is no PCI function"));
        }
        let config =
            region_of(device.as_fd(), sys::vfio::CONFIG).map_err(|errno| failed(errno, "its configuration space"))?;
        let config = Config { offset: config.offset };
        let vectors = find_vectors(device.as_fd());
        let mut function = Self {
            name: Arc::clone(&name),
            address,
            space: space.clone(),
            config,
            dma,
            can_reset: info.flags & sys::vfio::DEVICE_CAN_RESET != 0,
            vectors,
            watcher: None,
            hold: Arc::new(Hold::new(Arc::default(), config, device, Some(member))),
        };
        function.watcher = function.watch().map_err(|errno| failed(errno, "asking to be told of its removal"))?;
        config.enable(function.fd(), dma).map_err(|errno| failed(errno, "switching on its memory and DMA"))?;
        Ok(Arc::new(function))
    }

    /// Asks the kernel to tell of removal and errors, if it can, and starts waiting for it.
    fn watch(&self) -> Result<Option<Watcher>, i32> {
        let news = News::new()?;
        let mut told = false;
        for (index, event) in [(sys::vfio::REQ, &news.request), (sys::vfio::ERR, &news.error)] {
            // Some functions have no error reporting: what there is counts.
            if sys::vfio::irq_info(self.fd(), index).is_ok_and(|info| info.count > 0) {
                sys::vfio::set_irq_events(self.fd(), index, 0, &[Some(event.as_fd())])?;
                told = true;
            }
        }
        if !told {
            return Ok(None);
        }
        Watcher::start(&self.name, news, Arc::clone(&self.hold)).map(Some)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.hold.device().as_fd()
    }

    pub(crate) fn device(&self) -> &OwnedFd {
        self.hold.device()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> PciAddress {
        self.address
    }

    pub(crate) fn space(&self) -> &DmaSpace {
        &self.space
    }

    pub(crate) fn presence(&self) -> &Arc<Presence> {
        self.hold.presence()
    }

    /// Why it is no longer ours, if it is not.
    pub(crate) fn gone(&self) -> Option<Gone> {
        self.presence().gone()
    }

    /// An error in a forked child, which may not touch its parent's function, and once the kernel wants it back.
    pub(crate) fn expect_own(&self, verb: Verb) -> Result<(), Error> {
        match self.gone() {
            Some(Gone::Forked) => Err(fault::forked(verb, Arc::clone(&self.name))),
            Some(Gone::Requested) => Err(Error::new(ErrorKind::NoDevice, verb)
                .at(Arc::clone(&self.name))
                .detail("it was taken away: removed, or unbound from vfio-pci")
                .remedy("open it again when it is back and bound to vfio-pci")),
            Some(Gone::Closed) => {
                Err(Error::new(ErrorKind::Closed, verb).at(Arc::clone(&self.name)).detail("this process closed it"))
            }
            Some(Gone::Failed | Gone::Unmapped) | None => Ok(()),
        }
    }

    /// Maps a BAR. The mapping keeps the function open.
    pub(crate) fn map_bar(self: &Arc<Self>, bar: u32) -> Result<Arc<BarMap>, Error> {
        self.expect_own(Verb::Open)?;
        let failed = |errno| fault::error(errno, Verb::Open, Arc::clone(&self.name), &format!("mapping BAR {bar}"));
        if bar > sys::vfio::BAR5 {
            return Err(failed(libc::EINVAL));
        }
        let region = region_of(self.fd(), bar).map_err(failed)?;
        let bar = BarMap::new(self.fd(), &region, self.presence(), Arc::clone(self) as _).map_err(failed)?;
        // Again: a mapping that came after the function was closed would keep it open.
        self.expect_own(Verb::Open)?;
        Ok(bar)
    }

    /// Vectors that [`Function::interrupt`] can enable.
    pub(crate) fn vector_count(&self) -> u16 {
        self.vectors.as_ref().map_or(0, |vectors| vectors.count)
    }

    /// Connects interrupt `vector` to an event, or gives the one that is connected already.
    pub(crate) fn interrupt(&self, vector: u16) -> Result<Arc<EventFd>, Error> {
        self.expect_own(Verb::Setup)?;
        let failed =
            |errno| fault::error(errno, Verb::Setup, Arc::clone(&self.name), &format!("enabling interrupt {vector}"));
        let vectors =
            self.vectors.as_ref().filter(|vectors| vector < vectors.count).ok_or_else(|| failed(libc::EINVAL))?;
        let mut enabled = vectors.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(event)) = enabled.get(usize::from(vector)) {
            return Ok(Arc::clone(event));
        }
        let event = Arc::new(EventFd::new().map_err(failed)?);
        let first = enabled.is_empty();
        if first {
            enabled.resize(usize::from(vectors.count), None);
        }
        let done = if first && !vectors.can_grow {
            // All of them at once, this one connected: the others can then be connected one by one.
            let mut fds = vec![None; enabled.len()];
            if let Some(fd) = fds.get_mut(usize::from(vector)) {
                *fd = Some(event.as_fd());
            }
            sys::vfio::set_irq_events(self.fd(), vectors.index, 0, &fds)
        } else {
            sys::vfio::set_irq_events(self.fd(), vectors.index, vector.into(), &[Some(event.as_fd())])
        };
        match done {
            Ok(0) => {}
            // The machine has fewer vectors left than the function has.
            Ok(_) | Err(_) => {
                if first {
                    enabled.clear();
                }
                let errno = done.err().unwrap_or(libc::ENOSPC);
                return Err(failed(errno).remedy("use fewer queues or polled completion"));
            }
        }
        if let Some(slot) = enabled.get_mut(usize::from(vector)) {
            *slot = Some(Arc::clone(&event));
        }
        self.presence().tell(&event);
        Ok(event)
    }

    /// Gives `claim` up when the function is closed.
    pub(crate) fn tie(&self, claim: Arc<ControllerClaim>) {
        self.hold.tie(claim);
    }

    /// Closes it now, whoever still holds it or registers of it. In a forked child nothing is done.
    pub(crate) fn close(&self) -> Result<(), StaysOpen> {
        if self.presence().is_child() { Err(StaysOpen::Forked) } else { self.hold.lose(Gone::Closed) }
    }

    /// Takes bus mastership away; `true`: it can touch no memory any more. In a forked child it is left alone: it never
    /// reaches the child's memory, which is a copy.
    pub(crate) fn stop_dma(&self) -> bool {
        self.presence().is_child() || self.hold.stop_dma()
    }

    /// Resets it and lets it do again what it was opened for.
    ///
    /// # Errors
    /// `Unsupported` where it has no reset of its own; `Forked`; the kernel's.
    pub(crate) fn reset(&self) -> Result<(), Error> {
        self.expect_own(Verb::Setup)?;
        let failed = |errno, what| fault::error(errno, Verb::Setup, Arc::clone(&self.name), what);
        if !self.can_reset {
            return Err(failed(libc::EOPNOTSUPP, "it has no reset of its own"));
        }
        sys::with_lock(|| sys::vfio::reset(self.fd())).map_err(|errno| failed(errno, "resetting it"))?;
        self.config.enable(self.fd(), self.dma).map_err(|errno| failed(errno, "switching it on after a reset"))
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // The descriptors are shared: what a forked child switched off would be off for its parent. It closes its copies.
        if self.presence().is_child() {
            return;
        }
        // Its watcher must not report a removal that is an orderly end.
        self.watcher = None;
        if let Some(vectors) = &self.vectors {
            let _ = sys::vfio::disable_irqs(self.fd(), vectors.index);
        }
        if !self.stop_dma() {
            tracing::warn!(function = &*self.name, "could not switch its DMA off; closing it resets it");
        }
    }
}

fn region_of(device: BorrowedFd<'_>, index: u32) -> Result<Region, i32> {
    let told = sys::vfio::region_info(device, index)?;
    caps::region(&told).filter(|region| region.len > 0).ok_or(libc::ENXIO)
}

/// MSI-X if there is any, else MSI. A line interrupt is not worth having: it is shared and has to be unmasked each time.
fn find_vectors(device: BorrowedFd<'_>) -> Option<Vectors> {
    let found = |index| sys::vfio::irq_info(device, index).ok().filter(|info: &IrqInfo| info.count > 0);
    let (index, info) = [sys::vfio::MSIX, sys::vfio::MSI].into_iter().find_map(|index| Some((index, found(index)?)))?;
    let count = u16::try_from(info.count).unwrap_or(u16::MAX).min(VECTORS_MAX);
    let can_grow = info.flags & sys::vfio::IRQ_NORESIZE == 0;
    Some(Vectors { index, count, can_grow, enabled: Mutex::default() })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::unix::fs::MetadataExt as _};

    use super::*;
    use crate::{caps::Region, config, fake::in_child, space, sysfs::Sysfs};

    /// A function whose file is memory, with its DMA switched on and its watcher running.
    fn opened() -> (Arc<Function>, OwnedFd, Config) {
        let (function, file, config, _) = opened_with_request();
        (function, file, config)
    }

    /// With the event by which the kernel asks for it back.
    fn opened_with_request() -> (Arc<Function>, OwnedFd, Config, File) {
        let (file, config) = config::fake(0x0006);
        let address = "0000:01:00.0".parse().unwrap();
        let (space, member) = space::joined(&Sysfs::at("/nowhere"), address);
        let news = News::new().unwrap();
        let request = File::from(news.request.as_fd().try_clone_to_owned().unwrap());
        let hold = Arc::new(Hold::new(Arc::default(), config, file.try_clone().unwrap(), Some(member)));
        let watcher = Watcher::start("test", news, Arc::clone(&hold)).unwrap();
        let function = Function {
            name: "0000:01:00.0".into(),
            address,
            space,
            config,
            dma: Dma::On,
            can_reset: true,
            vectors: None,
            watcher: Some(watcher),
            hold,
        };
        (Arc::new(function), file, config, request)
    }

    #[test]
    fn a_forked_child_touches_nothing_of_its_parents_function() {
        let (function, file, config) = opened();
        let held = function.space().clone();
        let mut function = Some(function);
        assert!(in_child(|| {
            let own = function.take().unwrap();
            let forked = |result: Result<(), Error>| result.is_err_and(|error| error.kind() == ErrorKind::Forked);
            let stopped = own.stop_dma();
            let refused = forked(own.reset()) && forked(own.interrupt(0).map(drop)) && forked(own.map_bar(0).map(drop));
            let closed = Arc::into_inner(own).map(drop).is_some();
            stopped && refused && closed
        }));
        assert_eq!(config.command(file.as_fd()), Ok(0x0006), "DMA of the parent's function is on");
        assert_eq!(held.open_functions(), 1);
        drop(function);
        assert_eq!(config.command(file.as_fd()), Ok(0x0002), "the parent's drop switches it off");
        assert_eq!(held.open_functions(), 0);
    }

    fn inode(fd: BorrowedFd<'_>) -> u64 {
        File::from(fd.try_clone_to_owned().unwrap()).metadata().unwrap().ino()
    }

    /// Asks for it back and waits for what comes of it.
    fn ask(function: &Function, mut request: File) {
        request.write_all(&1u64.to_ne_bytes()).unwrap();
        let clock = sw_testkit::clock::RealClock::start();
        while !function.presence().is_stopped() && clock.now() < std::time::Duration::from_secs(20) {
            std::thread::yield_now();
        }
        // The watcher keeps this lock until it is through.
        function.presence().tell_bar(&Arc::new(sys::map::Reserved::new(sys::page_bytes()).unwrap()));
    }

    #[test]
    fn what_the_kernel_wants_back_is_closed_though_somebody_holds_its_registers() {
        let (function, file, config, request) = opened_with_request();
        let region = Region { flags: sys::vfio::REGION_MMAP, len: 4096, offset: 0, areas: None };
        let bar = BarMap::new(function.fd(), &region, function.presence(), Arc::new(())).unwrap();
        let registers = bar.mmio();
        registers.write32(0x40, 7);
        assert_eq!(inode(function.fd()), inode(file.as_fd()));
        ask(&function, request);
        assert_eq!(function.gone(), Some(Gone::Requested));
        assert_ne!(inode(function.fd()), inode(file.as_fd()), "the descriptor names something else");
        assert_eq!(registers.read32(0x40), u32::MAX);
        registers.write32(0x40, 9);
        let mut bytes = [0; 4];
        sys::pread_exact(file.as_fd(), &mut bytes, 0x40).unwrap();
        assert_eq!(bytes, 7u32.to_le_bytes(), "a late write does not reach it");
        assert_eq!(config.command(file.as_fd()), Ok(0x0002), "its DMA was off before");
        assert!(function.stop_dma());
        assert_eq!(function.reset().unwrap_err().kind(), ErrorKind::NoDevice);
        assert_eq!(function.map_bar(0).map(drop).unwrap_err().kind(), ErrorKind::NoDevice);
    }

    #[test]
    fn what_is_taken_away_or_closed_leaves_its_group_and_its_claim() {
        let tree = crate::fake::Tree::new();
        let address = tree.function("0000:01:00.0", "0x010802", "vfio-pci", "4");
        for removed in [true, false] {
            let (function, file, config, request) = opened_with_request();
            let claim = crate::claim::ControllerClaim::take(tree.sysfs(), address).unwrap();
            function.tie(Arc::clone(&claim));
            let space = function.space().clone();
            assert_eq!(space.open_functions(), 1);
            if removed {
                ask(&function, request);
                let clock = sw_testkit::clock::RealClock::start();
                while space.open_functions() > 0 && clock.now() < std::time::Duration::from_secs(20) {
                    std::thread::yield_now();
                }
            }
            assert_eq!(function.close(), Ok(()));
            assert_eq!(function.close(), Ok(()), "again changes nothing");
            assert_eq!(function.gone(), Some(if removed { Gone::Requested } else { Gone::Closed }));
            assert_eq!(config.command(file.as_fd()), Ok(0x0002));
            assert_ne!(inode(function.fd()), inode(file.as_fd()));
            assert_eq!(space.open_functions(), 0, "it may be opened again");
            let again = crate::claim::ControllerClaim::take(tree.sysfs(), address).unwrap();
            // What comes too late is given up at once.
            function.tie(Arc::clone(&again));
            assert!(crate::claim::ControllerClaim::take(tree.sysfs(), address).is_ok());
            let refused = function.reset().unwrap_err().kind();
            assert_eq!(refused, if removed { ErrorKind::NoDevice } else { ErrorKind::Closed });
        }
    }

    #[test]
    fn what_cannot_be_stopped_is_not_closed() {
        let (function, file, config) = opened();
        // A file that takes no writes: the bit stays on.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let sealed = sys::open(std::path::Path::new(&path), libc::O_RDONLY).unwrap();
        sys::replace(function.fd(), sealed.as_fd()).unwrap();
        assert_eq!(function.close(), Err(StaysOpen::Loud));
        assert_eq!(function.space().open_functions(), 1);
        assert_eq!(config.command(file.as_fd()), Ok(0x0006));
    }

    #[test]
    fn what_is_lent_stays_open_until_its_users_are_gone() {
        let (function, file, config, request) = opened_with_request();
        function.presence().lend().settle();
        ask(&function, request);
        assert_eq!(function.gone(), Some(Gone::Requested));
        assert_eq!(inode(function.fd()), inode(file.as_fd()));
        assert_eq!(config.command(file.as_fd()), Ok(0x0002));
        assert_eq!(function.close(), Err(StaysOpen::Lent));
    }
}
