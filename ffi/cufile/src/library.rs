//! What the library is in a process: the driver, settings, and everything that a number stands for.
//!
//! ```text
//!   first use ─► Library (settings of the environment)
//!   cuFileDriverOpen, or the first registration ─► Running (engine, frozen parameters)
//!   last cuFileDriverClose ─► transfers end, handles and buffers are forgotten, the engine is closed; parameters may be set
//!   fork ─► the child has a Library of its own, in which nothing of its parent's is known
//! ```
//!
//! *Locks*: `driver` is taken before `running`; the others are leaves. None is held while bytes move.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
};

use straightway::{CuFileUse, Engine, ForkMark, Policy};

use crate::{
    batch::Batch,
    buffer::Buffer,
    code::{self, Failure},
    config::{self, Loaded},
    count::Counts,
    file::Files,
    log::Log,
    param::Settings,
    pump::{self, Pump},
    settings::{ErrorForm, IO_THREADS, Origin, Own, QUEUE_DEPTH, Values},
};

/// Forks in a row, each by a child of the one before, that all use the library.
const GENERATIONS: usize = 16;
/// Threads of the engine that move bytes, at most.
const REACTORS_MAX: u64 = 64;

/// See the module documentation.
pub(crate) struct Library {
    mark: ForkMark,
    own: Own,
    /// What was wrong in the environment, told when the driver is opened.
    trouble: Result<(), Failure>,
    driver: Mutex<Driver>,
    running: RwLock<Option<Arc<Running>>>,
    pub(crate) settings: Settings,
    pub(crate) files: RwLock<Files>,
    pub(crate) buffers: RwLock<BTreeMap<u64, Arc<Buffer>>>,
    /// Length in bytes of the longest buffer that was ever registered: how far below an address one may begin that has it.
    pub(crate) longest: AtomicU64,
    pub(crate) batches: RwLock<HashMap<u64, Arc<Batch>>>,
    /// Flags of registered streams.
    pub(crate) streams: RwLock<HashMap<u64, u32>>,
    pub(crate) counts: Counts,
    pump: Mutex<Option<Pump>>,
    next: AtomicU64,
    log: Log,
}

/// How often the driver was opened.
#[derive(Default)]
struct Driver {
    uses: u64,
    /// `CUfileP2PFlags_t` by kind of file system.
    p2p: BTreeMap<i32, u32>,
}

/// An open driver.
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) policy: Policy,
    pub(crate) values: Values,
    pub(crate) loaded: Loaded,
    /// Options that the engine was built with.
    pub(crate) options: String,
}

/// The library of this process.
pub(crate) fn library() -> &'static Library {
    static ALL: [OnceLock<Library>; GENERATIONS] = [const { OnceLock::new() }; GENERATIONS];
    let mut last = &ALL[0];
    for slot in &ALL {
        last = slot;
        let library = slot.get_or_init(Library::new);
        if !library.mark.is_child() {
            return library;
        }
    }
    // Its engine refuses everything: it is a parent's.
    last.get_or_init(Library::new)
}

impl Library {
    fn new() -> Self {
        let (own, trouble) = config::own(&config::environment);
        Self {
            mark: ForkMark::new(),
            own,
            trouble,
            driver: Mutex::default(),
            running: RwLock::default(),
            settings: Settings::default(),
            files: RwLock::default(),
            buffers: RwLock::default(),
            longest: AtomicU64::new(0),
            batches: RwLock::default(),
            streams: RwLock::default(),
            counts: Counts::default(),
            pump: Mutex::default(),
            next: AtomicU64::new(1),
            log: Log::default(),
        }
    }

    pub(crate) fn error_form(&self) -> ErrorForm {
        self.own.errors
    }

    pub(crate) fn own(&self) -> &Own {
        &self.own
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// A number that was never given out: no address that a program could follow.
    pub(crate) fn number(&self) -> u64 {
        number_of(std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a driver is the one that is open. With the lock of a table held it stays so for that table: the close takes the driver
    /// away before it empties the tables.
    ///
    /// # Errors
    /// `DRIVER_CLOSING`: what belongs to a driver of before must not be found in the next one.
    pub(crate) fn still(&self, running: &Arc<Running>) -> Result<(), Failure> {
        match self.running() {
            Some(now) if Arc::ptr_eq(&now, running) => Ok(()),
            _ => Err(Failure::new(code::DRIVER_CLOSING, "the driver was closed meanwhile")),
        }
    }

    pub(crate) fn longest_buffer(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver, for what may be called from functions of a file system in user space. Those that run in the order of a stream run on
    /// the pump's thread, which a close waits for: they are refused rather than made to wait for that close.
    ///
    /// # Errors
    /// `DRIVER_CLOSING`.
    fn driver_to_use(&self) -> Result<MutexGuard<'_, Driver>, Failure> {
        if !pump::is_this_thread() {
            return Ok(self.driver());
        }
        match self.driver.try_lock() {
            Ok(driver) => Ok(driver),
            Err(TryLockError::Poisoned(driver)) => Ok(driver.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(code::DRIVER_CLOSING, "the driver is opening or closing"))
            }
        }
    }

    /// The driver, if it is open.
    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The driver, which must be open.
    ///
    /// # Errors
    /// `DRIVER_NOT_INITIALIZED`.
    pub(crate) fn open_one(&self) -> Result<Arc<Running>, Failure> {
        self.running().ok_or_else(|| Failure::new(code::DRIVER_NOT_INITIALIZED, "the driver is not open"))
    }

    /// The driver, opened if it is not.
    ///
    /// # Errors
    /// As [`Library::open`].
    pub(crate) fn opened(&self) -> Result<Arc<Running>, Failure> {
        if let Some(running) = self.running() {
            return Ok(running);
        }
        let mut driver = self.driver_to_use()?;
        if driver.uses == 0 {
            self.start(&mut driver)?;
        }
        self.open_one()
    }

    /// Opens the driver, or counts one more use of it.
    ///
    /// # Errors
    /// `DRIVER_INVALID_PROPS` for a broken configuration; what the engine refuses.
    pub(crate) fn open(&self) -> Result<(), Failure> {
        let mut driver = self.driver_to_use()?;
        if driver.uses == 0 {
            return self.start(&mut driver);
        }
        driver.uses += 1;
        Ok(())
    }

    fn start(&self, driver: &mut Driver) -> Result<(), Failure> {
        let running = self.build().inspect_err(|failure| {
            // cuFile has no way to tell words, and this is a mistake of who set the process up.
            eprintln!("libcufile (straightway): {}", failure.text);
            self.settings.thaw();
        })?;
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(running));
        driver.uses = 1;
        Ok(())
    }

    fn build(&self) -> Result<Running, Failure> {
        self.trouble.clone()?;
        let loaded = self.settings.frozen()?;
        let values = self.settings.effective()?;
        if let Some(wrong) = values.wrong() {
            return Err(Failure::new(code::DRIVER_INVALID_PROPS, wrong));
        }
        self.log.set_up(&values)?;
        for (name, why) in &loaded.ignored {
            self.log.warn(&format!("{name} does nothing: {why}"));
        }
        let options = engine_options(&values, &self.own.engine);
        // NVIDIA's library is what a program here has not, and facts for `cuFileExportPCIeTopology` would load it.
        let mut builder = Engine::builder().cufile(CuFileUse::Off);
        for option in options.split([' ', ',']).filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or_else(|| {
                Failure::new(code::DRIVER_INVALID_PROPS, format!("SW_CUFILE_ENGINE: {option} has no value"))
            })?;
            builder = builder.set(name, value).map_err(wrong_option)?;
        }
        let engine = builder.build().map_err(wrong_option)?;
        self.counts.set_level(values.size(crate::settings::STATS_LEVEL));
        Ok(Running { engine, policy: self.own.policy, values, loaded, options })
    }

    /// Gives one use back; with the last one everything ends.
    ///
    /// # Errors
    /// `DRIVER_NOT_INITIALIZED` if it is not open; `INTERNAL_ERROR` if a device did not let go of memory in time: the driver is
    /// closed all the same. `DRIVER_CLOSING` from within a transfer in a stream.
    pub(crate) fn close(&self) -> Result<(), Failure> {
        let mut driver = self.driver_to_use()?;
        match driver.uses {
            0 => return Err(Failure::new(code::DRIVER_NOT_INITIALIZED, "the driver is not open")),
            1 if pump::is_this_thread() => {
                return Err(Failure::new(
                    code::DRIVER_CLOSING,
                    "a transfer in a stream cannot close the driver that runs it",
                ));
            }
            1 => {}
            _ => {
                driver.uses -= 1;
                return Ok(());
            }
        }
        let running = self.running.write().unwrap_or_else(PoisonError::into_inner).take();
        let pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner).take();
        // From here on nobody finds anything; what is in flight ends with the engine.
        let closed = running.map_or(Ok(()), |running| running.engine.clone().close());
        if let Some(pump) = pump {
            pump.stop();
        }
        self.files.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.batches.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.buffers.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.streams.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.settings.thaw();
        *driver = Driver::default();
        closed.map_err(Failure::from)
    }

    /// How often the driver is open.
    pub(crate) fn uses(&self) -> u64 {
        self.driver_to_use().map_or(0, |driver| driver.uses)
    }

    /// The pump, made when the first transfer needs it.
    ///
    /// # Errors
    /// `NOMEM_ERROR` if there is no thread for it.
    pub(crate) fn pump(&self) -> Result<Pump, Failure> {
        let mut pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pump {
            Some(pump) => Ok(pump.clone()),
            None => Ok(pump.insert(Pump::start()?).clone()),
        }
    }

    pub(crate) fn p2p(&self, kind: i32) -> u32 {
        self.driver_to_use().ok().and_then(|driver| driver.p2p.get(&kind).copied()).unwrap_or(0)
    }

    /// # Errors
    /// `DRIVER_CLOSING` from within a transfer in a stream.
    pub(crate) fn set_p2p(&self, kind: i32, flags: u32) -> Result<(), Failure> {
        self.driver_to_use()?.p2p.insert(kind, flags);
        Ok(())
    }
}

/// The `count`th number of a process: not a canonical address, whose highest 17 bits are the same (x86-64) or whose highest bytes are
/// equal (arm64). A process has 2^34 before it comes to those that another one would begin with, so a child's are not its parent's, and
/// its own never come back.
fn number_of(process: u32, count: u64) -> u64 {
    const NOT_CANONICAL: u64 = 0xcf << 56;
    const REST: u64 = (1 << 56) - 1;
    NOT_CANONICAL | (u64::from(process) << 34).wrapping_add(count) & REST
}

fn wrong_option(error: straightway::Error) -> Failure {
    Failure::new(code::DRIVER_INVALID_PROPS, error.to_string())
}

/// Options of the engine: those that parameters ask for, and those of the environment, which win.
fn engine_options(values: &Values, own: &str) -> String {
    let asked = |index: usize| Some(values.sizes[index]).filter(|(_, origin)| *origin != Origin::Default);
    let depth = asked(QUEUE_DEPTH).map(|(depth, _)| format!("queue_depth={depth}"));
    let threads = asked(IO_THREADS).map(|(threads, _)| format!("reactors={}", threads.clamp(1, REACTORS_MAX)));
    let own = Some(own.to_owned()).filter(|own| !own.is_empty());
    [depth, threads, own].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_no_addresses_and_never_the_same() {
        let (one, two) = (library().number(), library().number());
        assert!(one != two && one >> 56 == 0xcf && two >> 56 == 0xcf);
        // As many as a server gives out in a day of batches, and a process with the highest number that Linux has.
        for count in [1, 1 << 28, 1 << 32, 1 << 33] {
            let later = number_of(7, count + 1);
            assert!([1, count].iter().all(|early| number_of(7, *early) != later), "{count}");
            assert_ne!(later, number_of(8, count + 1));
            assert_eq!(number_of(4 << 20, count) >> 56, 0xcf);
        }
    }

    #[test]
    fn nvidias_library_is_not_loaded_behind_ours() {
        let library = Library::new();
        library.open().unwrap();
        let facts = crate::report::facts(&library.opened().unwrap());
        assert!(facts.contains("the engine was built without it"), "{facts}");
        library.close().unwrap();
    }

    #[test]
    fn what_belongs_to_a_driver_of_before_is_not_kept_for_the_next() {
        // A library of its own: that of the process is for other tests.
        let library = Library::new();
        library.open().unwrap();
        let before = library.open_one().unwrap();
        assert!(library.still(&before).is_ok());
        library.close().unwrap();
        assert_eq!(library.still(&before).unwrap_err().code, code::DRIVER_CLOSING);
        library.open().unwrap();
        assert_eq!(library.still(&before).unwrap_err().code, code::DRIVER_CLOSING);
        library.close().unwrap();
    }

    #[test]
    fn the_engine_is_asked_for_what_somebody_set() {
        let mut values = Values::default();
        assert_eq!(engine_options(&values, ""), "");
        values.sizes[QUEUE_DEPTH] = (32, Origin::File);
        values.sizes[IO_THREADS] = (0, Origin::Call);
        assert_eq!(engine_options(&values, "gpu=off"), "queue_depth=32 reactors=1 gpu=off");
    }
}
