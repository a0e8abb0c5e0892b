//! The paths of one address: a controller for each port that it names, all of one subsystem.
//!
//! ```text
//!   nvme+tcp://A,B/NQN ─► Paths ─┬─ leg A ─► Controller     lanes choose a leg for each I/O (sw_nvme::paths)
//!                                └─ leg B ─► (not reached yet: join)
//! ```

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Landing, Reason, Verb};
use sw_nvme::{
    namespace::Namespace,
    paths::{PATHS_MAX, Spread},
    wire::ana::Access,
};

use crate::{
    admin::after,
    controller::{Address, Controller},
    facts::Facts,
    socket::left,
};

/// One port.
struct Leg {
    address: Address,
    /// Once it was reached.
    controller: OnceLock<Arc<Controller>>,
    /// Why it was not.
    why: Mutex<String>,
}

/// See the module documentation.
pub struct Paths {
    name: String,
    legs: Vec<Leg>,
    spread: Spread,
    patience: Duration,
}

/// How a namespace is reached by one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathState {
    /// The controller tells how; optimized where it tells nothing of that kind.
    Told(Access),
    /// The controller did not tell of the namespace's group.
    NotTold,
    /// The controller has another namespace of that number, or none.
    AnotherNamespace,
    /// There is no association now, and why.
    Connecting(String),
    /// There will be none any more, and why.
    Gone(String),
}

impl PathState {
    /// The name for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Told(access) => access.name(),
            Self::NotTold => "not-told",
            Self::AnotherNamespace => "another-namespace",
            Self::Connecting(_) => "connecting",
            Self::Gone(_) => "gone",
        }
    }

    /// Why there is no association.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Connecting(why) | Self::Gone(why) => Some(why),
            Self::Told(_) | Self::NotTold | Self::AnotherNamespace => None,
        }
    }
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.why().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// One path, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathReport {
    /// Host and port.
    pub address: String,
    /// CNTLID of the association that is up, or was last; `None` if there never was one.
    pub controller: Option<u16>,
    /// How the namespace is reached by it.
    pub state: PathState,
}

impl Paths {
    /// Of one controller.
    pub fn of(controller: Arc<Controller>) -> Arc<Self> {
        let (name, patience) = (controller.name().to_owned(), controller.patience());
        let leg = Leg::new(controller.address().clone(), Ok(controller));
        Arc::new(Self { name, legs: vec![leg], spread: Spread::All, patience })
    }

    /// Of several ports, of each its controller or why it was not reached; [`PATHS_MAX`] at most count. I/Os wait for a path for `patience`.
    pub fn new(
        name: String,
        ports: Vec<(Address, Result<Arc<Controller>, String>)>,
        spread: Spread,
        patience: Duration,
    ) -> Arc<Self> {
        let legs = ports.into_iter().take(PATHS_MAX).map(|(address, reached)| Leg::new(address, reached)).collect();
        Arc::new(Self { name, legs, spread, patience })
    }

    /// Its name, as an address of an object has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Paths that there are, and may be.
    pub fn count(&self) -> usize {
        self.legs.len()
    }

    pub(crate) fn spread(&self) -> Spread {
        self.spread
    }

    /// How long an I/O waits for a path at most.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// A path's controller, once it was reached.
    pub fn controller(&self, leg: usize) -> Option<&Arc<Controller>> {
        self.legs.get(leg)?.controller.get()
    }

    /// All controllers that were reached.
    pub fn controllers(&self) -> impl Iterator<Item = &Arc<Controller>> {
        self.legs.iter().filter_map(|leg| leg.controller.get())
    }

    /// What one of them says whose association is up; waits for the first one that is, as long as an answer may take.
    ///
    /// # Errors
    /// [`Controller::lost`] of one of them.
    pub fn expect_up(&self) -> Result<Arc<Facts>, Error> {
        let until = after(self.controllers().map(|controller| controller.timeout()).max().unwrap_or_default());
        loop {
            if let Some(facts) = self.controllers().find_map(|controller| controller.facts_if_up()) {
                return Ok(facts);
            }
            match (self.controllers().find(|controller| !controller.is_gone()), left(until)) {
                (Some(controller), Some(left)) => controller.wait_for_news(left),
                (one, _) => {
                    let one = one.or_else(|| self.controllers().next());
                    return Err(one.map_or_else(|| self.no_path(None), |controller| controller.lost()));
                }
            }
        }
    }

    /// Who writes the last copy of bytes, and why nobody better does: of all paths the one that has a reason.
    pub fn landing(&self) -> (Landing, Option<Reason>) {
        let mut all = self.controllers().map(|controller| controller.landing());
        let first = all.next().unwrap_or((Landing::Staged, None));
        if first.1.is_some() { first } else { all.find(|(_, why)| why.is_some()).unwrap_or(first) }
    }

    /// Ports that were not reached so far.
    pub fn missing(&self) -> Vec<(usize, Address)> {
        let all = self.legs.iter().enumerate().filter(|(_, leg)| leg.controller.get().is_none());
        all.map(|(number, leg)| (number, leg.address.clone())).collect()
    }

    /// A port was reached. Each is once.
    pub fn join(&self, leg: usize, controller: Arc<Controller>) {
        let _ = self.legs.get(leg).map(|leg| leg.controller.set(controller));
    }

    /// A port was not reached, and why.
    pub fn missed(&self, leg: usize, why: String) {
        if let Some(leg) = self.legs.get(leg) {
            *leg.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        }
    }

    /// How a namespace is reached.
    pub fn report(&self, namespace: &Namespace) -> Vec<PathReport> {
        self.legs.iter().map(|leg| leg.report(namespace)).collect()
    }

    /// Why no path to a namespace comes, or came in time.
    pub(crate) fn no_path(&self, namespace: Option<&Namespace>) -> Error {
        let error = Error::new(ErrorKind::NoDevice, Verb::Read).at(self.name.clone());
        let states = namespace.map(|namespace| self.report(namespace)).unwrap_or_default();
        let told: Vec<String> = states.iter().map(|one| format!("{}: {}", one.address, one.state)).collect();
        error
            .detail(format!("no path to the namespace can be used ({})", told.join("; ")))
            .remedy("look at the target's ports and its ANA states")
    }
}

impl Leg {
    fn new(address: Address, reached: Result<Arc<Controller>, String>) -> Self {
        let (controller, why) = match reached {
            Ok(controller) => (OnceLock::from(controller), String::new()),
            Err(why) => (OnceLock::new(), why),
        };
        Self { address, controller, why: Mutex::new(why) }
    }

    fn report(&self, namespace: &Namespace) -> PathReport {
        let address = format!("{}:{}", self.address.host, self.address.port);
        let Some(controller) = self.controller.get() else {
            let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return PathReport { address, controller: None, state: PathState::Connecting(why) };
        };
        let facts = controller.facts();
        let is_it = |found: &&Namespace| found.nsid == namespace.nsid && found.generation == namespace.generation;
        let state = match (controller.is_gone(), controller.is_up(&facts)) {
            (true, _) => PathState::Gone(controller.why_not()),
            (false, false) => PathState::Connecting(controller.why_not()),
            (false, true) => match (facts.namespaces.iter().find(is_it), &facts.access) {
                (None, _) => PathState::AnotherNamespace,
                (Some(found), _) if facts.absent.contains(&found.nsid) => PathState::AnotherNamespace,
                (Some(_), None) if facts.info.tells_access() => PathState::NotTold,
                (Some(_), None) => PathState::Told(Access::Optimized),
                (Some(found), Some(groups)) => {
                    groups.of(found.info.ana_group).map_or(PathState::NotTold, PathState::Told)
                }
            },
        };
        PathReport { address, controller: Some(facts.id), state }
    }
}
