//! A vendor's own library as one more way to the bytes of local files.
//!
//! ```text
//!   plan ─ does the policy (or the engine) name it? ─ no ─► shown to who asks for a plan, refused: VENDOR_NOT_ASKED; else not looked at
//!                      │ yes
//!                      ▼
//!          loaded once ─► the file is registered ─► one block compared ─► an object with one more face, which keeps the registration
//! ```
//!
//! The library decides by itself how bytes go. So it is never taken because it ranks well, its face lands as `KernelCopy`, which is the
//! least that can be said, and its reason is `VENDOR_DECIDES`. Until something names it, or the doctor
//! is asked, nothing is loaded and no thread runs.
//! Files and block devices only; no members of stripe sets, no memory of other PCI devices.

use std::{
    any::Any,
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use sw_engine::{
    Error, ErrorKind, Face, Fault, Granularity, Landing, Object, Plan, Policy, Reason, RouteMatch, TransportName, Verb,
    seam::{BlockingIo, CallFault, Io, Transport, TransportCaps},
};
use sw_uring::{ThreadsConfig, ThreadsTransport};

use crate::{
    backends::{CUFILE, CuFile, CuFileHandle, CuFileRefusal, CuFileReport, CuFileSource},
    builder::{Config, CuFileUse},
    doctor::{Fact, Health},
    policy::Destination,
    reach::Ask,
};

/// Its name in routes.
pub(crate) const NAME: TransportName = CUFILE;

/// Threads of one lane that call the library: as many I/Os run at once.
const THREADS: u32 = 4;
/// What a write has whole units of, at least: the library wants it for the direct ways that it has.
const BLOCK: u32 = 4096;
/// Where the doctor makes its test file; the first that is there.
const FOLDERS: [&str; 2] = ["/var/tmp", "/tmp"];

/// The library, once something named it.
pub(crate) struct Vendor {
    usage: CuFileUse,
    source: CuFileSource,
    loaded: OnceLock<(Option<CuFile>, CuFileReport)>,
    /// As for lanes.
    threads: ThreadsConfig,
}

/// An object as a plan sees it.
pub(crate) struct View {
    /// With the face of the library.
    pub(crate) object: Arc<Object>,
    verdict: Result<(), Reason>,
    /// What stands behind the verdict.
    why: Option<Error>,
}

/// What an open file keeps of its registration with the library, so that it is registered and proven once.
#[derive(Default)]
pub(crate) struct Registration(Mutex<Option<Registered>>);

struct Registered {
    /// Whose library: an object may be given to another engine.
    of: Weak<Vendor>,
    handle: Arc<CuFileHandle>,
    /// Kinds of memory that a block was read into: of the host, or a GPU's.
    proven: BTreeSet<Option<u16>>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registration")
    }
}

/// Keeps an object, and its registration with the library, as long as an operation uses either.
struct Keep {
    /// Whose library.
    of: Weak<Vendor>,
    _registered: Option<Arc<CuFileHandle>>,
    /// Goes last: it has the descriptors of the other faces.
    _object: Arc<Object>,
}

impl Vendor {
    pub(crate) fn new(config: &Config, source: CuFileSource) -> Arc<Self> {
        let threads = ThreadsConfig {
            threads: THREADS,
            queue_depth: config.queue_depth,
            io_bytes_max: config.io_bytes,
            ..ThreadsConfig::default()
        };
        Arc::new(Self { usage: config.cufile, source, loaded: OnceLock::new(), threads })
    }

    /// Whether lanes have a place for it.
    fn is_offered(&self) -> bool {
        self.usage != CuFileUse::Off
    }

    /// What its transport can do, for planning before any lane exists. `None`: lanes have none.
    pub(crate) fn caps(&self) -> Option<TransportCaps> {
        self.is_offered().then(|| self.threads.caps_of(&CuFile::CAPS))
    }

    /// The transport of one lane. Its threads start with its first I/O.
    pub(crate) fn transport(self: &Arc<Self>) -> Result<Option<Box<dyn Transport>>, Error> {
        if !self.is_offered() {
            return Ok(None);
        }
        let calls: Arc<dyn BlockingIo> = Arc::new(Calls(self.clone()));
        Ok(Some(Box::new(ThreadsTransport::over(self.threads.clone(), calls)?)))
    }

    /// The policy that counts where the engine itself prefers the library.
    pub(crate) fn policy(&self, asked: Policy) -> Policy {
        match (self.usage, asked) {
            (CuFileUse::Prefer, Policy::Any) => Policy::Prefer(RouteMatch { transport: Some(NAME), landing: None }),
            _ => asked,
        }
    }

    fn load(&self) -> &(Option<CuFile>, CuFileReport) {
        self.loaded.get_or_init(|| CuFile::load(&self.source))
    }

    /// `object`, which is `whole` or a member of it, with one more face, if `policy` names the library or somebody only wants to see what there is; `None` where the
    /// library is no way to it, or nobody would look.
    ///
    /// *Blocking*: loads the library, the first time; registers the file and reads one block.
    pub(crate) fn view(
        self: &Arc<Self>,
        (whole, object): (&crate::Object, &Arc<Object>),
        (destination, ask): (Destination, Ask),
        policy: &Policy,
        verb: Verb,
    ) -> Option<View> {
        let is_file = |face: &Face| [sw_uring::IO_URING, sw_uring::PREADV2].contains(&face.transport);
        if !self.is_offered() || !object.faces.iter().any(is_file) {
            return None;
        }
        let found = match (names(policy), destination) {
            (false, _) if ask == Ask::Proof => return None,
            (false, _) => Err((Reason::VendorNotAsked, None)),
            (true, _) if whole.inner().composed.is_some() => Err((Reason::VendorRefused, Some(of_a_set(whole.name())))),
            (true, Destination::Bar(_) | Destination::PeerMemory(_)) => Err((Reason::MemoryUnreachable, None)),
            (true, Destination::Host) => self.register(whole, None),
            (true, Destination::Gpu(ordinal)) => self.register(whole, Some(ordinal)),
        };
        Some(viewed(object, Arc::downgrade(self), found, verb))
    }

    /// Whether a view is of this library: the word in its face means something here.
    pub(crate) fn viewed(&self, object: &Object) -> bool {
        let keep: &dyn Any = &*object.keep;
        keep.downcast_ref::<Keep>().is_some_and(|keep| std::ptr::eq(keep.of.as_ptr(), self))
    }

    /// The file's registration, which was proven for that memory. The lock keeps others from doing the same meanwhile.
    fn register(
        self: &Arc<Self>,
        whole: &crate::Object,
        gpu: Option<u16>,
    ) -> Result<Arc<CuFileHandle>, (Reason, Option<Error>)> {
        let object = whole.inner();
        let (library, report) = self.load();
        let Some(library) = library else {
            return Err((Reason::NoVendorLibrary, Some(report.refusal().into_error())));
        };
        let refused = |error: Error| (Reason::VendorRefused, Some(error.at(object.name.clone())));
        let mut kept = whole.registration().0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = Arc::downgrade(self);
        let registered = match kept.take().filter(|registered| registered.of.ptr_eq(&of)) {
            Some(registered) => registered,
            None => {
                let descriptor = sw_uring::descriptor_of(object).map_err(refused)?;
                let handle = Arc::new(library.register(descriptor).map_err(refused)?);
                Registered { of, handle, proven: BTreeSet::new() }
            }
        };
        let registered = kept.insert(registered);
        if !registered.proven.contains(&gpu) {
            let proven = registered.handle.prove(gpu);
            proven.map_err(|error| (Reason::SelfTestFailed, Some(error.at(object.name.clone()))))?;
            registered.proven.insert(gpu);
        }
        Ok(registered.handle.clone())
    }

    /// Found, symbols, version, opened, self-test: fact by fact.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let fact = |name: &str, health, value: String, remedy: &str| Fact {
            name: format!("{NAME}.{name}"),
            health,
            value,
            remedy: remedy.to_owned(),
        };
        if !self.is_offered() {
            return vec![fact("library", Health::Neutral, "the engine was built without it".to_owned(), "")];
        }
        let (library, report) = self.load();
        let mut facts = Vec::new();
        let mut tell = |name: &str, found: Result<String, &CuFileRefusal>| match found {
            Ok(value) => facts.push(fact(name, Health::Good, value, "")),
            Err(CuFileRefusal::NotAsked) => {}
            // It is one way among others, and no machine is broken without it.
            Err(refusal) => facts.push(fact(name, Health::Neutral, refusal.to_string(), refusal.remedy())),
        };
        tell("library", report.library.as_ref().map(ToString::to_string));
        tell("symbols", report.symbols.as_ref().map(|count| format!("{count} present")));
        let unknown = || "older than 1.8".to_owned();
        tell("version", report.version.as_ref().map(|version| version.map_or_else(unknown, |v| v.to_string())));
        tell(
            "driver",
            report.driver.as_ref().map(|version| match version {
                (0, 0) => "opened; no nvidia-fs, so it moves bytes by system calls and copies of its own".to_owned(),
                (major, minor) => format!("opened; nvidia-fs {major}.{minor}"),
            }),
        );
        let folder = FOLDERS.map(Path::new).into_iter().find(|folder| folder.is_dir());
        if let (Some(library), Some(folder)) = (library, folder) {
            let at = folder.display();
            facts.push(match library.self_test(folder) {
                Ok(()) => fact(
                    "self_test",
                    Health::Good,
                    format!("wrote, read back, compared, guard bytes intact, in {at}"),
                    "",
                ),
                Err(error) => fact("self_test", Health::Neutral, format!("in {at}: {error}"), error.remedy_text()),
            });
        }
        facts
    }
}

impl View {
    /// Puts the verdict into what the transports can do.
    pub(crate) fn judge(&self, caps: &mut [TransportCaps]) {
        let Err(reason) = self.verdict else { return };
        for caps in caps.iter_mut().filter(|caps| caps.name == NAME) {
            (caps.host, caps.device) = (Err(reason), Err(reason));
        }
    }

    /// A policy that nothing but the library could meet fails with what stands behind the verdict.
    pub(crate) fn explain(self, plan: Plan, verb: Verb) -> Plan {
        match (plan.choice, self.why) {
            (Err(refusal), Some(why)) => {
                let error = Error::new(refusal.kind(), verb)
                    .at(self.object.name.clone())
                    .detail(format!("no route meets the policy: {why}"))
                    .with_code(why.code())
                    .with_reasons(refusal.reasons().to_vec())
                    .caused_by(why);
                Plan { choice: Err(error), ..plan }
            }
            (choice, _) => Plan { choice, ..plan },
        }
    }
}

/// Whether a policy names the library itself.
fn names(policy: &Policy) -> bool {
    match policy {
        Policy::Any => false,
        Policy::Prefer(route) | Policy::Require(route) | Policy::RequireCore(route) => route.transport == Some(NAME),
    }
}

/// One library's request has one file.
fn of_a_set(name: &str) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Open)
        .at(name)
        .detail("a vendor's library takes one file at a time, not a stripe set")
        .remedy("name a file, or leave the policy")
}

fn viewed(
    object: &Arc<Object>,
    of: Weak<Vendor>,
    found: Result<Arc<CuFileHandle>, (Reason, Option<Error>)>,
    verb: Verb,
) -> View {
    let (registered, verdict, why) = match found {
        Ok(handle) => (Some(handle), Ok(()), None),
        Err((reason, why)) => (None, Err(reason), why),
    };
    let face = Face {
        transport: NAME,
        handle: registered.as_ref().map_or(0, |handle| handle.word()),
        // It reads anything. What it does with the ends of a write that is no whole blocks, beside other writers, is not known.
        granularity: if verb == Verb::Read { Granularity::ANY } else { Granularity { block: BLOCK, memory: 1 } },
        write_unit: if verb == Verb::Read { 1 } else { object.whole_unit().max(BLOCK) },
        landing: Landing::KernelCopy,
        because: verdict.is_ok().then_some(Reason::VendorDecides),
    };
    let object = Object {
        id: Object::next_id(),
        name: object.name.clone(),
        len: object.len,
        version: object.version,
        faces: object.faces.iter().copied().chain([face]).collect(),
        residency: object.residency.get().into(),
        composed: None,
        keep: Box::new(Keep { of, _registered: registered, _object: object.clone() }),
    };
    View { object: Arc::new(object), verdict, why }
}

/// The calls of a library that is loaded by the first plan that names it: an I/O comes after such a plan.
struct Calls(Arc<Vendor>);

impl Calls {
    fn library(&self) -> Option<&CuFile> {
        self.0.loaded.get()?.0.as_ref()
    }
}

impl BlockingIo for Calls {
    fn caps(&self) -> TransportCaps {
        CuFile::CAPS
    }

    fn perform(&self, io: &Io) -> Result<u32, CallFault> {
        let none = CallFault::Known(Fault::new(ErrorKind::NotRegistered, 0));
        self.library().ok_or(none)?.perform(io)
    }

    fn explain(&self, fault: Fault) -> Option<&Error> {
        self.library()?.explain(fault)
    }
}
