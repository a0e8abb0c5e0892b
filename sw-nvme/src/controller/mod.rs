//! A controller: bring-up, facts, namespaces, queue pairs, events, reset, shutdown. Control plane only.
//!
//! ```text
//!   Controller (Arc, shared by the threads)
//!     ├─ life     one word: up in epoch e, resetting, dead and quiet, dead and loud          (lock-free)
//!     ├─ facts    what it said about itself at bring-up                                      (constant)
//!     ├─ desk     orders of lanes, pairs to delete, wanted resets: never held for long           (short lock)
//!     └─ control  behind a mutex: admin queue, identifiers, namespaces, shadow doorbells
//! ```
//!
//! What may take long is done by [`Controller::work`], on a thread of the layer above; lanes leave orders and look for the
//! answers.
//!
//! Every wait has a limit that the specification or [`ControllerConfig`] gives, and ends when registers read as all ones.
//! After a reset, or if the controller dies, each owner of a queue pair learns it from [`Controller::life`] and lets its
//! pair go; see [`life`](crate::life) for what each state says about memory.
//!
//! Base, "Controller Initialization", "Controller Level Reset", "Controller Shutdown".

mod admin;
mod desk;
mod enable;
mod events;
mod namespaces;
mod queues;
mod reset;
mod work;

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use sw_engine::{Error, ErrorKind, Verb};

pub use crate::inquiry::NAMESPACES_MAX;
pub use crate::life::Life;
use crate::{
    bus::{Bus, Registers},
    fork::Origin,
    inquiry::{self, AdminQueue},
    life::LifeWord,
    namespace::Namespace,
    queue::{QueuePair, QueueShape},
    sgl::SglSupport,
    status::RetryDelays,
    wire::{
        Command,
        feature::{Feature, Switch},
        identify::IdentifyController,
        regs::{self, Cap, Cmb, Pmrcap, Version},
    },
};
use admin::Admin;
pub use admin::AdminCounters;
use desk::Desk;
pub(crate) use desk::Ticket;
use queues::Ids;
pub use queues::{Notify, Pair, PairRequest};
pub use reset::{Reset, ResetLimits};

/// How a controller is brought up.
#[derive(Clone, Copy, Debug)]
pub struct ControllerConfig {
    /// I/O queue pairs to ask for, 1 to 65,535: one per lane. Default 16.
    pub queue_pairs: u16,
    /// How long an admin command may take before the controller counts as hung. Default 60 s, as in Linux
    /// (`nvme_core.admin_timeout`).
    pub admin_timeout: Duration,
    /// Whether shadow doorbells are used where there are some. Default yes.
    pub shadow_doorbells: ShadowDoorbells,
    /// Resets in a row, each within [`RESET_ROW`] and the time of an admin command of the one before, until the controller is
    /// given up. Default 3.
    pub resets_max: u32,
}

/// Two resets that lie closer together, the time that one admin command may take left out, belong to one row.
pub const RESET_ROW: Duration = Duration::from_secs(60);

/// How long a shutdown waits for the deletion of queue pairs that were left; the disabled controller forgets them all the same.
const TIDY: Duration = Duration::from_secs(1);

/// Whether shadow doorbells are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowDoorbells {
    /// Where the controller has them and the bus can share queue memory.
    WhereOffered,
    /// Never.
    Never,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            queue_pairs: 16,
            admin_timeout: Duration::from_secs(60),
            shadow_doorbells: ShadowDoorbells::WhereOffered,
            resets_max: 3,
        }
    }
}

impl ControllerConfig {
    fn validate(&self) -> Result<(), Error> {
        let misuse = |text: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).detail(text));
        if self.queue_pairs == 0 {
            return misuse("queue_pairs must be 1 to 65535");
        }
        if self.admin_timeout.is_zero() {
            return misuse("admin_timeout must be above zero");
        }
        Ok(())
    }
}

/// What a controller said about itself when it was brought up.
#[derive(Clone, Debug)]
pub struct Facts {
    /// VS.
    pub version: Version,
    /// CAP.
    pub cap: Cap,
    /// Identify Controller.
    pub info: IdentifyController,
    /// Bytes of one command at most, from MDTS; `None` for no limit.
    pub transfer_bytes_max: Option<u64>,
    /// Whether it has a volatile write cache, so that a flush means something.
    pub write_cache: bool,
    /// Whether I/O commands may use scatter gather lists.
    pub sgl: SglSupport,
    /// The delays that CRD of a status names.
    pub retry_delays: RetryDelays,
    /// The controller memory buffer, if there is one that can be read of.
    pub cmb: Option<Cmb>,
    /// The persistent memory region, if there is one.
    pub pmr: Option<Pmrcap>,
    /// I/O queue pairs that there are.
    pub queue_pairs: u16,
    /// Shadow doorbells are in use.
    pub shadow_doorbells: bool,
}

/// What only one thread at a time may use.
struct Control<B: Bus> {
    admin: Admin<B>,
    cap: Cap,
    ids: Ids,
    pairs_max: u16,
    namespaces: Vec<Namespace>,
    /// Looks at the namespaces that were over.
    scans: u32,
    /// Shadow doorbell buffer and EventIdx buffer, a page each.
    shadow: Option<(B::Memory, B::Memory)>,
    /// The controller took them.
    shadowed: bool,
    /// Rings that the controller may know although their creation or their deletion failed.
    doubtful: Vec<QueuePair<B>>,
    /// It was disabled and is to be brought up by whoever needs it.
    is_down: bool,
    /// What happened, for whoever asks.
    log: events::Log,
    row: reset::Row,
}

/// See the module documentation. Shared by `Arc`.
///
/// *Blocking*: every method but the getters may wait, at most as long as the limits say. The transport calls none that does,
/// as long as somebody [attends](Controller::attend). Dropped, it disables the
/// controller; if that fails it stops it from outside, and if that fails too the admin queue's memory is never freed. In a
/// forked child a drop does nothing: the controller is the parent's.
pub struct Controller<B: Bus> {
    bus: Arc<B>,
    config: ControllerConfig,
    life: LifeWord,
    /// Counts changes of the namespaces.
    inventory: AtomicU64,
    facts: Facts,
    pub(crate) fork: Origin,
    desk: Desk<B>,
    /// Its namespaces as last identified, for whoever must not wait.
    published: Mutex<Arc<[Namespace]>>,
    /// `None` once it was shut down.
    control: Mutex<Option<Control<B>>>,
}

impl<B: Bus> Controller<B> {
    /// Brings a controller up: reset, enable, identify, queue count, namespaces, event requests.
    ///
    /// # Errors
    /// `ApiMisuse` for the configuration; `NoDevice`; `Protocol` for registers and data that no controller has;
    /// `Unsupported` for one without the NVM command set or pages of 4 KiB; `DeadlineExceeded`; what the bus says. The
    /// controller is disabled then, or stopped from outside.
    pub fn open(bus: Arc<B>, config: ControllerConfig) -> Result<Arc<Self>, Error> {
        config.validate()?;
        let mut control = Control::new(bus.clone(), &config)?;
        let desk = Desk::new(control.admin.urgent.clone());
        match control.start(&config) {
            Ok(facts) => Ok(Arc::new(Self {
                bus,
                config,
                life: LifeWord::new(Life::Up(1)),
                inventory: AtomicU64::new(1),
                facts,
                fork: Origin::default(),
                desk,
                published: Mutex::new(control.namespaces.as_slice().into()),
                control: Mutex::new(Some(control)),
            })),
            Err(error) => {
                control.put_to_rest();
                Err(error)
            }
        }
    }

    /// The function in the operator's words.
    pub fn name(&self) -> &str {
        self.bus.name()
    }

    /// The function.
    pub fn bus(&self) -> &Arc<B> {
        &self.bus
    }

    /// What it said about itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it lives. One atomic load.
    #[inline]
    pub fn life(&self) -> Life {
        self.life.get()
    }

    /// A number that grows when namespaces come, go or change. One atomic load.
    #[inline]
    pub fn inventory(&self) -> u64 {
        self.inventory.load(Ordering::Acquire)
    }

    /// Its active namespaces, as last identified; at most [`NAMESPACES_MAX`]. Never waits for the admin queue.
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).to_vec()
    }

    /// I/O queue pairs that are out now.
    pub fn queue_pairs_in_use(&self) -> usize {
        let count = self.control(|control| {
            self.take_back(control);
            Ok(control.ids.out_count())
        });
        count.unwrap_or(0)
    }

    /// Counts of the control plane.
    pub fn counters(&self) -> AdminCounters {
        self.control(|control| Ok(control.admin.counters)).unwrap_or_default()
    }

    /// Asks for an end of a command, within ACL and without waiting. `false`: it was not sent (limit, another thread has
    /// the admin queue, the controller is not up).
    pub fn abort(&self, qid: u16, cid: u16) -> bool {
        let Life::Up(_) = self.life() else { return false };
        let guard = self.lock_within(Duration::ZERO);
        guard.is_some_and(|mut guard| guard.as_mut().is_some_and(|control| control.admin.abort(qid, cid)))
    }

    /// Shuts the controller down in good order (CC.SHN, bounded by RTD3E) and disables it. Work that is under way is given up
    /// at its next look, so that this takes a few times CAP.TO at most besides. Queue pairs that are left are
    /// let go of: their owners find [`Life::Quiet`].
    ///
    /// # Errors
    /// `Forked` in a child of the process that opened it: it is the parent's, and nothing was done. What went wrong; [`Controller::life`] then says whether memory may still be touched.
    pub fn shut_down(&self) -> Result<(), Error> {
        if self.fork.is_elsewhere() {
            return Err(self.forked());
        }
        // Whoever has it waits for answers that nobody needs any more, or brings up what nobody will use.
        self.desk.close();
        let Some(mut guard) = self.lock() else { return Err(self.forked()) };
        let Some(mut control) = guard.take() else { return Ok(()) };
        self.desk.hold();
        if let (Life::Resetting(epoch), true) = (self.life(), control.is_down) {
            // It was seen disabled, and nobody needed it since.
            self.life.set(Life::Quiet(epoch));
            return Ok(());
        }
        control.admin.timeout = control.admin.timeout.min(TIDY);
        self.take_back(&mut control);
        let (Life::Up(epoch) | Life::Resetting(epoch)) = self.life() else {
            *guard = Some(control);
            return Err(Error::new(ErrorKind::NoDevice, Verb::Setup)
                .at(self.name())
                .detail("the controller is not up"));
        };
        self.life.set(Life::Resetting(epoch));
        let result = control.admin.shut_down(&self.facts.cap, self.facts.info.shutdown_limit);
        let quiet = control.put_to_rest();
        self.life.set(if quiet { Life::Quiet(epoch) } else { Life::Loud(epoch) });
        result
    }

    /// The lock, however long another thread has it: each of its waits has a limit. `None` in a forked child, which may have
    /// inherited it taken.
    fn lock(&self) -> Option<MutexGuard<'_, Option<Control<B>>>> {
        self.lock_within(Duration::MAX)
    }

    /// The lock, or `None` if another thread has it for `limit`, or in a forked child. It is waited for by looks, so that the
    /// bus lets time pass meanwhile.
    fn lock_within(&self, limit: Duration) -> Option<MutexGuard<'_, Option<Control<B>>>> {
        if self.fork.is_elsewhere() {
            return None;
        }
        let begun = self.bus.now();
        let mut patience = admin::Patience::new();
        loop {
            match self.control.try_lock() {
                Ok(guard) => return Some(guard),
                // Whatever a panic left half done ends in errors of the admin queue, and then in a reset.
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if self.bus.now().since(begun) >= limit => return None,
                Err(TryLockError::WouldBlock) => patience.pause(&*self.bus),
            }
        }
    }

    fn control<R>(&self, run: impl FnOnce(&mut Control<B>) -> Result<R, Error>) -> Result<R, Error> {
        let mut guard = self.lock().ok_or_else(|| self.forked())?;
        match guard.as_mut() {
            Some(control) => run(control),
            None => Err(self.closed()),
        }
    }

    /// As `control`, for what needs a controller that takes commands: one that was left disabled is brought up.
    fn control_up<R>(&self, run: impl FnOnce(&mut Control<B>, u64) -> Result<R, Error>) -> Result<R, Error> {
        self.control(|control| {
            let epoch = self.ready(control)?;
            run(control, epoch)
        })
    }

    fn forked(&self) -> Error {
        Error::new(ErrorKind::Forked, Verb::Setup)
            .at(self.name())
            .detail("the controller belongs to the parent of this process")
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, Verb::Setup).at(self.name()).detail("the controller was shut down")
    }
}

impl<B: Bus> Control<B> {
    fn new(bus: Arc<B>, config: &ControllerConfig) -> Result<Self, Error> {
        let registers = bus.registers();
        let raw = registers.read64(regs::CAP);
        let cap = Cap::decode(raw).map_err(|cause| {
            let kind = if raw == u64::MAX { ErrorKind::NoDevice } else { ErrorKind::Protocol };
            Error::new(kind, Verb::Setup).at(bus.name()).detail(cause.to_string()).caused_by(cause)
        })?;
        let shape =
            QueueShape { qid: 0, entries: admin::ADMIN_ENTRIES, data_bytes_max: 0, stride: cap.doorbell_stride };
        let queue = QueuePair::new(&*bus, shape)?;
        Ok(Self {
            admin: Admin::new(bus, queue, config.admin_timeout)?,
            cap,
            ids: Ids::default(),
            pairs_max: 0,
            namespaces: Vec::new(),
            scans: 0,
            shadow: None,
            shadowed: false,
            doubtful: Vec::new(),
            is_down: false,
            log: events::Log::default(),
            row: reset::Row::default(),
        })
    }

    /// From whatever state the controller is in to one that works.
    fn start(&mut self, config: &ControllerConfig) -> Result<Facts, Error> {
        self.admin.disable(&self.cap, Duration::MAX)?;
        self.admin.enable(&self.cap)?;
        let info = inquiry::identify_controller(&mut self.admin)?;
        self.admin.aborts_max = u32::from(info.aborts_max);
        if config.shadow_doorbells == ShadowDoorbells::WhereOffered && info.admin.doorbell_buffers() {
            self.allocate_shadow()?;
        }
        let (cmb, pmr) = self.memory_facts();
        self.configure(config, &info)?;
        self.identify_namespaces(&info)?;
        Ok(Facts {
            version: Version(self.admin.registers.read32(regs::VS)),
            cap: self.cap,
            transfer_bytes_max: crate::limits::mdts_bytes(info.mdts, self.cap.page_bytes_min),
            write_cache: info.volatile_write_cache,
            sgl: SglSupport::decode(info.sgls),
            retry_delays: info.retry_delays,
            info,
            cmb,
            pmr,
            queue_pairs: self.pairs_max,
            shadow_doorbells: self.shadowed,
        })
    }

    /// What a controller forgets when it is reset.
    fn configure(&mut self, config: &ControllerConfig, info: &IdentifyController) -> Result<(), Error> {
        self.negotiate_queues(config.queue_pairs)?;
        self.offer_shadow()?;
        self.allow_retry_delays(info)?;
        self.ask_for_events(info)
    }

    /// Lets the controller interrupt commands and name a delay (Host Behavior Support, ACRE), where it has delays.
    fn allow_retry_delays(&mut self, info: &IdentifyController) -> Result<(), Error> {
        if info.retry_delays == RetryDelays::default() {
            return Ok(());
        }
        let feature = Feature::HostBehavior { advanced_retry: Switch::On };
        self.admin.fill_page(&feature.data());
        // A refusal costs nothing: commands are then retried without delay.
        self.admin.run(inquiry::Data::Out(feature.data_bytes()), |data| Command::set_features(&feature, data)).map(drop)
    }

    fn allocate_shadow(&mut self) -> Result<(), Error> {
        use crate::bus::QueueMemory;
        let page = || self.admin.bus.allocate(inquiry::ADMIN_DATA_BYTES);
        let (doorbells, events) = (page()?, page()?);
        if doorbells.alias().is_some() && events.alias().is_some() {
            self.shadow = Some((doorbells, events));
        }
        Ok(())
    }

    /// Controller memory and persistent memory, as far as the registers tell; nothing is switched on but the registers
    /// themselves (CMBMSC.CRE), without which CMBLOC and CMBSZ read zero.
    fn memory_facts(&self) -> (Option<Cmb>, Option<Pmrcap>) {
        let registers = &self.admin.registers;
        if self.cap.controller_memory {
            registers.write64(regs::CMBMSC, regs::cmbmsc(None));
        }
        let cmb = Cmb::decode(registers.read32(regs::CMBLOC), registers.read32(regs::CMBSZ));
        let pmr = self.cap.persistent_memory.then(|| Pmrcap::decode(registers.read32(regs::PMRCAP)));
        // A buffer that no revision describes is not used: the controller works without.
        (cmb.ok().flatten(), pmr)
    }

    /// Makes sure that the controller touches no memory any more and frees its own; leaks that if it cannot be made sure.
    /// `true`: quiet.
    fn put_to_rest(self) -> bool {
        let quiet = self.admin.disable(&self.cap, Duration::MAX).is_ok() || self.admin.bus.stop();
        if !quiet {
            self.leak();
        }
        quiet
    }

    #[expect(clippy::mem_forget, reason = "the controller could not be stopped and may still write this memory")]
    fn leak(self) {
        core::mem::forget(self.shadow);
        self.doubtful.into_iter().for_each(QueuePair::leak);
        self.admin.leak();
    }
}

impl<B: Bus> Admin<B> {
    /// The error of a controller that was given up.
    fn gone_for_good(&self) -> Error {
        if self.csts().is_gone() {
            return self.gone();
        }
        self.error(ErrorKind::NoDevice, "the controller was given up after a failed reset")
            .remedy("look at the kernel log and the drive's firmware, then open it again")
    }
}

impl<B: Bus> Drop for Controller<B> {
    #[expect(clippy::mem_forget, reason = "in a forked child, registers, memory and function are the parent's")]
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.fork.is_elsewhere() {
            self.desk.leak();
            // One handle more, so that the function is not closed here either.
            return core::mem::forget((control, Arc::clone(&self.bus)));
        }
        match (control, self.life.get()) {
            (None, Life::Loud(_)) => self.desk.leak(),
            (None, _) => {}
            (Some(control), Life::Quiet(_)) => drop(control),
            (Some(control), Life::Loud(_)) => {
                self.desk.leak();
                control.leak();
            }
            (Some(control), Life::Up(_) | Life::Resetting(_)) => {
                if !control.put_to_rest() {
                    self.desk.leak();
                }
            }
        }
    }
}

impl<B: Bus> core::fmt::Debug for Controller<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Controller")
            .field("name", &self.name())
            .field("life", &self.life())
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
