//! The controllers behind a fabric of an engine, by port: opened once, shared by all addresses that name the port, attended by a thread each.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb};
use sw_net::{Address, Controller, ControllerConfig, HostKeys, Paths, Patient};
use sw_nvme::tcp::pdu::Digests;

use crate::{
    builder::{Config, NvmeTcp, NvmeTcpDigests},
    fabrics::{Found, expect_one_subsystem, identity},
    keys::NvmeTcpKeys,
    nvme_control::no_thread,
    rdma::Ways,
    tls::NvmeTcpTls,
    uri::FabricWire,
};

/// The first pause between two tries to reach a port that was not reached when an address was opened, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// See the module documentation.
pub(crate) struct Ports {
    config: Config,
    keys: Option<Arc<HostKeys>>,
    tls: NvmeTcpTls,
    ways: Ways,
    /// Not held over anything that waits for a target.
    opened: Mutex<Opened>,
    /// The engine was closed.
    closing: Condvar,
}

/// A port of a subsystem, and from where it is reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) address: Address,
    pub(crate) by: FabricWire,
}

/// What is done by one at a time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Paths(Vec<Place>),
    Port(Place),
}

/// What was opened so far.
#[derive(Default)]
pub(crate) struct Opened {
    /// The engine was closed: nothing is opened any more.
    is_closed: bool,
    controllers: BTreeMap<Place, Arc<Controller>>,
    /// By the ports that an address names, in its order.
    pub(crate) paths: BTreeMap<Vec<Place>, Found>,
    /// What is being opened: whoever wants it waits for it, and nobody else does.
    turns: BTreeMap<Turn, Arc<Mutex<()>>>,
}

impl Ports {
    pub(crate) fn new(config: Config, keys: NvmeTcpKeys, by: &FabricWire) -> Self {
        let tls = keys.tls.clone();
        let keys = keys.into_host_keys();
        let ways = Ways::of(by, config.nvme_tcp.registering);
        Self { config, keys, tls, ways, opened: Mutex::default(), closing: Condvar::new() }
    }

    pub(crate) fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn closed(at: &str) -> Error {
        Error::new(ErrorKind::Closed, Verb::Open).at(at.to_owned()).detail("the engine is closed")
    }

    /// Does something about the paths of an address, one after the other.
    pub(crate) fn in_turn<R>(&self, addresses: &[Place], act: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        self.take_turn(Turn::Paths(addresses.to_vec()), act)
    }

    fn take_turn<R>(&self, what: Turn, act: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        let turn = Arc::clone(self.opened().turns.entry(what.clone()).or_default());
        let done = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            act()
        };
        let mut opened = self.opened();
        // This one's and the map's: nobody else waits for it.
        if Arc::strong_count(&turn) <= 2 {
            opened.turns.remove(&what);
        }
        done
    }

    /// The controller of a port; associated once, and again if the association is over for ever. A lost one is tried to be made again for
    /// `patience` at least.
    pub(crate) fn controller(&self, place: &Place, patience: Duration) -> Result<Arc<Controller>, Error> {
        self.take_turn(Turn::Port(place.clone()), || {
            let opened = self.opened();
            if opened.is_closed {
                return Err(Self::closed(&place.address.host));
            }
            let known = opened.controllers.get(place);
            // One that an address of a single port opened gives up sooner than an address of several wants it to.
            if let Some(controller) = known.filter(|controller| controller.be_patient(patience) == Patient::Yes) {
                return Ok(Arc::clone(controller));
            }
            drop(opened);
            self.associate(place, patience)
        })
    }

    /// Makes an association. Blocks.
    fn associate(&self, place: &Place, patience: Duration) -> Result<Arc<Controller>, Error> {
        let Place { address, by } = place;
        let way = self.ways.to(&format!("{}:{}", address.host, address.port), by)?;
        let scheme = way.scheme();
        let NvmeTcp { digests, keep_alive, timeout, .. } = self.config.nvme_tcp;
        let config = ControllerConfig {
            keep_alive,
            patience,
            timeout,
            digests: digests_of(digests),
            depth: u16::try_from(self.config.queue_depth).unwrap_or(u16::MAX),
            ..ControllerConfig::default()
        };
        let host = identity(self.keys.clone(), &self.tls)?;
        let controller = Controller::open_by(way, address.clone(), host, config)?;
        let mut opened = self.opened();
        if opened.is_closed {
            drop(opened);
            controller.shut_down();
            return Err(Self::closed(&address.host));
        }
        attend(&controller, scheme)?;
        opened.controllers.insert(place.clone(), Arc::clone(&controller));
        Ok(controller)
    }

    /// Ends the associations in good order, for ever; the indexes of the paths that there were.
    pub(crate) fn shut_down(&self) -> Vec<u32> {
        let mut opened = self.opened();
        opened.is_closed = true;
        let controllers = core::mem::take(&mut opened.controllers);
        let paths = core::mem::take(&mut opened.paths);
        drop(opened);
        self.closing.notify_all();
        controllers.values().for_each(|controller| controller.shut_down());
        paths.into_values().map(|found| found.index).collect()
    }

    /// Rests, unless the engine is closed meanwhile; whether it is not.
    fn rest(&self, pause: Duration) -> bool {
        let opened = self.opened();
        let (opened, _) = self
            .closing
            .wait_timeout_while(opened, pause, |opened| !opened.is_closed)
            .unwrap_or_else(PoisonError::into_inner);
        !opened.is_closed
    }
}

fn digests_of(wanted: NvmeTcpDigests) -> Digests {
    let is = |one| wanted == one || wanted == NvmeTcpDigests::Both;
    Digests { header: is(NvmeTcpDigests::Header), data: is(NvmeTcpDigests::Data) }
}

/// Starts the thread that does the slow work of a controller: signs of life, connections. It ends with the association.
fn attend(controller: &Arc<Controller>, scheme: &str) -> Result<(), Error> {
    let attended = Arc::clone(controller);
    let named = (format!("{scheme} {}", controller.facts().id), controller.name());
    start(named, move || attended.attend()).inspect_err(|_| controller.shut_down())
}

/// Starts the thread that tries to reach a port which was not reached when its address was opened, as long as somebody has the paths.
pub(crate) fn keep_reaching((ports, paths): (Arc<Ports>, Weak<Paths>), leg: usize, place: Place) -> Result<(), Error> {
    let host = place.address.host.clone();
    start((format!("port {}", place.address.port), &host), move || {
        let mut pause = RETRY_FIRST;
        while ports.rest(pause) {
            let Some(paths) = paths.upgrade() else { return };
            pause = (pause * 2).min(RETRY_MAX);
            let reached = ports.controller(&place, FOR_EVER).and_then(|controller| {
                let all: Vec<_> = paths.controllers().chain([&controller]).collect();
                expect_one_subsystem(&all).map(|()| controller)
            });
            match reached {
                Ok(controller) => return paths.join(leg, controller),
                Err(why) => paths.missed(leg, why.to_string()),
            }
        }
    })
}

/// Starts a thread by its name, for what is at an address.
fn start((name, at): (String, &str), run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new().name(name).spawn(run).map(drop).map_err(|cause| no_thread(at, cause))
}

/// A port of several is tried to be reached again as long as the engine lives: what waits for a path has its own patience.
pub(crate) const FOR_EVER: Duration = Duration::MAX;
