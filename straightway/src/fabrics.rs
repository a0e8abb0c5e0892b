//! NVMe subsystems behind TCP, and behind RDMA: who is connected to which, and what lanes need of them.
//!
//! ```text
//!   nvme+tcp://HOST:PORT,…/NQN?nsid=N ─► Ports: a controller for each port, opened once
//!   nvme+rdma://…                           └─► Paths (all of one subsystem) ─► Directory ◄── TcpTransport of every lane
//! ```

use std::sync::Arc;

use sw_engine::{
    Error, ErrorKind, Object, Reason, Residency, Verb,
    seam::{Entry, EntryKind, OpenMode, Transport, TransportCaps},
};
use sw_net::{
    Address, Controller, Directory, Facts, HostIdentity, HostKeys, PathReport, Paths, QUEUE_DEPTH_MAX, TcpConfig,
    TcpTransport, Wire,
};
use sw_nvme::{fabrics::Nqn, namespace::Namespace, paths::Spread};

use crate::{
    builder::{Config, NvmeTcp, NvmeTcpPaths},
    fabric_ports::{FOR_EVER, Place, Ports, keep_reaching},
    keys::NvmeTcpKeys,
    nvme::with_blocks_that_fit,
    nvme_control::no_thread,
    policy::Destination,
    tls::NvmeTcpTls,
    uri::{FabricPort, FabricWire, NvmeTcpUri},
};

/// Where hosts keep their name and their identifier, for all NVMe over fabrics (`nvme-cli` makes both).
const HOST_NQN: &str = "/etc/nvme/hostnqn";
const HOST_ID: &str = "/etc/nvme/hostid";
/// What tells one machine from another where nobody made those (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";

/// See the module documentation.
pub(crate) struct Fabrics {
    config: Config,
    wire: Wire,
    directory: Arc<Directory>,
    ports: Arc<Ports>,
}

/// The paths of an address, and their index in handles.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) index: u32,
    paths: Arc<Paths>,
}

/// A namespace behind its paths, as it was found.
struct Reached {
    found: Found,
    /// Of the first controller that has it.
    facts: Arc<Facts>,
    namespace: Namespace,
}

/// Keeps the way to a namespace, and tells whether it is still there.
struct Keep {
    paths: Arc<Paths>,
    nsid: u32,
    generation: u32,
}

impl Fabrics {
    /// Those of a wire, whatever devices addresses of RDMA choose.
    pub(crate) fn new(config: Config, keys: NvmeTcpKeys, by: &FabricWire) -> Self {
        let wire = match by {
            FabricWire::Tcp => Wire::Tcp,
            FabricWire::EmulatedRdma => Wire::EmulatedRdma,
            FabricWire::Rdma(_) => Wire::Rdma,
        };
        Self { config, wire, directory: Arc::default(), ports: Arc::new(Ports::new(config, keys, by)) }
    }

    /// The paths of an address; associated once, and again if all associations are over.
    fn paths(&self, addresses: &[Place], name: &str) -> Result<Found, Error> {
        self.ports.in_turn(addresses, || match self.known(addresses) {
            Some(found) => Ok(found),
            None => self.reach(addresses, name),
        })
    }

    /// The paths of an address, if there are some of which one is not gone for ever.
    fn known(&self, addresses: &[Place]) -> Option<Found> {
        let mut opened = self.ports.opened();
        let found = opened.paths.get(addresses)?.clone();
        if found.paths.controllers().any(|controller| !controller.is_gone()) {
            return Some(found);
        }
        self.directory.take_out(found.index);
        opened.paths.remove(addresses);
        None
    }

    /// Makes the associations of an address, as many as can be made now. Blocks.
    fn reach(&self, addresses: &[Place], name: &str) -> Result<Found, Error> {
        let patience = if addresses.len() > 1 { FOR_EVER } else { self.config.nvme_tcp.patience };
        let reached = std::thread::scope(|all| {
            let one = |address| {
                std::thread::Builder::new().spawn_scoped(all, move || self.ports.controller(address, patience))
            };
            let threads: Vec<_> = addresses.iter().map(one).collect();
            let panicked = || Error::new(ErrorKind::Poisoned, Verb::Open).at(name.to_owned());
            let reached = threads.into_iter().map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(panicked())),
                // A port that is not reached, as others are that do not answer.
                Err(cause) => Err(no_thread(name, cause)),
            });
            reached.collect::<Vec<_>>()
        });
        if reached.iter().all(Result::is_err) {
            let mut errors = reached.into_iter().filter_map(Result::err);
            return Err(errors.next().unwrap_or_else(|| Ports::closed(name)));
        }
        let controllers: Vec<_> = reached.iter().flatten().collect();
        expect_one_subsystem(&controllers)?;
        let ports = addresses
            .iter()
            .map(|place| place.address.clone())
            .zip(reached.into_iter().map(|one| one.map_err(|why| why.to_string())));
        let NvmeTcp { paths, patience, .. } = self.config.nvme_tcp;
        let spread = match paths {
            NvmeTcpPaths::All => Spread::All,
            NvmeTcpPaths::First => Spread::First,
        };
        let paths = Paths::new(name.to_owned(), ports.collect(), spread, patience);
        let index = self.directory.add(Arc::clone(&paths))?;
        for (leg, _) in paths.missing() {
            if let Some(place) = addresses.get(leg) {
                keep_reaching((Arc::clone(&self.ports), Arc::downgrade(&paths)), leg, place.clone())?;
            }
        }
        let found = Found { index, paths };
        self.ports.opened().paths.insert(addresses.to_vec(), found.clone());
        Ok(found)
    }

    /// Opens a namespace.
    pub(crate) fn open(&self, uri: &NvmeTcpUri, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let Reached { found: Found { index, paths }, facts, namespace } = self.namespace(uri)?;
        if mode == OpenMode::Update {
            expect_serial(&facts, uri)?;
        }
        let face = sw_net::face(self.wire, index, &namespace, paths.landing())
            .and_then(|face| with_blocks_that_fit(face, self.transport_config().caps().io_bytes_max))
            .map_err(|error| error.at(uri.to_string()))?;
        Ok(Arc::new(Object {
            id: Object::next_id(),
            name: uri.to_string().into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(Keep { paths, nsid: uri.nsid, generation: namespace.generation }),
        }))
    }

    /// Facts of a namespace.
    pub(crate) fn stat(&self, uri: &NvmeTcpUri) -> Result<Entry, Error> {
        let Reached { namespace, .. } = self.namespace(uri)?;
        Ok(Entry {
            name: uri.to_string(),
            kind: EntryKind::BlockDevice,
            len: namespace.len_bytes(),
            version: namespace.version(),
        })
    }

    /// How a namespace is reached.
    pub(crate) fn path_reports(&self, uri: &NvmeTcpUri) -> Result<Vec<PathReport>, Error> {
        let Reached { found, namespace, .. } = self.namespace(uri)?;
        Ok(found.paths.report(&namespace))
    }

    fn namespace(&self, uri: &NvmeTcpUri) -> Result<Reached, Error> {
        let subsystem = Nqn::new(&uri.subsystem).ok_or_else(|| {
            Error::new(ErrorKind::BadUri, Verb::Open)
                .at(uri.to_string())
                .detail("the name of the subsystem is none")
                .remedy("it begins with nqn. and has 223 bytes at most")
        })?;
        let place = |port: &FabricPort| Place {
            address: Address { host: port.host.clone(), port: port.port, subsystem: subsystem.clone() },
            by: uri.wire.clone(),
        };
        let places: Vec<Place> = uri.ports.iter().map(place).collect();
        let found = self.paths(&places, &uri.to_string())?;
        let facts = facts_of_one_that_is_up(&found.paths, uri)?;
        let serial = facts.info.serial.to_string();
        if uri.serial.as_ref().is_some_and(|wanted| *wanted != serial) {
            return Err(Error::new(ErrorKind::Changed, Verb::Open)
                .at(uri.to_string())
                .detail(format!("the subsystem has the serial number {serial}; it is not the one that was named"))
                .remedy("look which subsystem has that name now"));
        }
        match facts.namespace(uri.nsid).cloned() {
            Some(namespace) => {
                expect_one_namespace(&found.paths, uri)?;
                Ok(Reached { found, facts, namespace })
            }
            None => {
                let there: Vec<String> = facts.namespaces.iter().map(|namespace| namespace.nsid.to_string()).collect();
                Err(Error::new(ErrorKind::NotFound, Verb::Open)
                    .at(uri.to_string())
                    .detail(format!("the subsystem has no active namespace {}", uri.nsid))
                    .remedy(format!("its namespaces are: {}", there.join(", "))))
            }
        }
    }

    fn transport_config(&self) -> TcpConfig {
        let Config { queue_depth, io_bytes, .. } = self.config;
        let queue_depth = queue_depth.min(QUEUE_DEPTH_MAX);
        TcpConfig { queue_depth, io_bytes_max: io_bytes, wire: self.wire, ..TcpConfig::default() }
    }

    /// What the transport of a lane for `destination` can do.
    pub(crate) fn caps(&self, destination: Destination) -> TransportCaps {
        let caps = self.transport_config().caps();
        // Peer memory has addresses of this process, but no processor copies through them.
        let host = match destination {
            Destination::PeerMemory(_) => Err(Reason::MemoryUnreachable),
            Destination::Host | Destination::Gpu(_) | Destination::Bar(_) => caps.host,
        };
        TransportCaps { host, ..caps }
    }

    /// The transport of one lane.
    pub(crate) fn transport(&self) -> Result<Box<dyn Transport>, Error> {
        Ok(Box::new(TcpTransport::new(self.directory.clone(), self.transport_config())?))
    }

    /// Ends the associations in good order. After the lanes: nothing is in flight.
    pub(crate) fn shut_down(&self) {
        for index in self.ports.shut_down() {
            self.directory.take_out(index);
        }
    }
}

/// What a controller that is up says; waits for one.
fn facts_of_one_that_is_up(paths: &Paths, uri: &NvmeTcpUri) -> Result<Arc<Facts>, Error> {
    let has_it = |facts: &Arc<Facts>| facts.namespace(uri.nsid).is_some() && !facts.absent.contains(&uri.nsid);
    let up = paths.controllers().map(|controller| (controller, controller.facts()));
    let mut up: Vec<_> = up.filter(|(controller, facts)| controller.is_up(facts)).map(|(_, facts)| facts).collect();
    if let Some(at) = up.iter().position(has_it) {
        return Ok(up.swap_remove(at));
    }
    up.pop().map_or_else(|| paths.expect_up(), Ok)
}

/// Ports that lead to different subsystems, or twice to one controller, are no paths.
pub(crate) fn expect_one_subsystem(controllers: &[&Arc<Controller>]) -> Result<(), Error> {
    let Some((first, others)) = controllers.split_first() else { return Ok(()) };
    let facts = first.facts();
    for other in others {
        let its = other.facts();
        let differ = |what: &str, one: &dyn core::fmt::Display, another: &dyn core::fmt::Display| {
            Error::new(ErrorKind::Changed, Verb::Open)
                .at(first.name().to_owned())
                .detail(format!("{what}: {one} by {}, {another} by {}", first.name(), other.name()))
                .remedy("name only ports of one subsystem in an address")
        };
        if facts.info.serial.as_str() != its.info.serial.as_str() {
            let (one, another) = (facts.info.serial.as_str(), its.info.serial.as_str());
            return Err(differ("the ports lead to subsystems with different serial numbers", &one, &another));
        }
        // As Linux refuses it (`nvme_validate_cntlid`): identifiers are one controller's each within a subsystem.
        if first.is_up(&facts) && other.is_up(&its) && facts.id == its.id {
            return Err(differ("two ports have controllers of the same number", &facts.id, &its.id));
        }
    }
    Ok(())
}

/// A namespace must be the same by every path that has it.
fn expect_one_namespace(paths: &Paths, uri: &NvmeTcpUri) -> Result<(), Error> {
    let by = |controller: &Arc<Controller>| {
        let facts = controller.facts();
        let found = facts.namespace(uri.nsid).cloned().filter(|_| controller.is_up(&facts));
        found.map(|namespace| (controller.name().to_owned(), namespace))
    };
    let all: Vec<(String, Namespace)> = paths.controllers().filter_map(by).collect();
    let Some(((name, first), others)) = all.split_first() else { return Ok(()) };
    match others.iter().find(|(_, other)| other.generation != first.generation) {
        None => Ok(()),
        Some((other_name, other)) => Err(Error::new(ErrorKind::Changed, Verb::Open)
            .at(uri.to_string())
            .detail(format!(
                "namespace {} is not the same by each path: {} of {} bytes by {name}, {} of {} bytes by {other_name}",
                uri.nsid,
                first.identity,
                first.len_bytes(),
                other.identity,
                other.len_bytes()
            ))
            .remedy("name only ports of one subsystem in an address")),
    }
}

/// A namespace is written only by an address that names the serial number: a subsystem behind a name may be another one tomorrow.
fn expect_serial(facts: &Facts, uri: &NvmeTcpUri) -> Result<(), Error> {
    if uri.serial.is_some() {
        return Ok(());
    }
    let named = NvmeTcpUri { serial: Some(facts.info.serial.to_string()), ..uri.clone() };
    Err(Error::new(ErrorKind::ApiMisuse, Verb::Open)
        .at(uri.to_string())
        .detail("a namespace is written only by an address that names the serial number of its subsystem")
        .remedy(format!("if it is the right one, and nobody else has a file system on it, write '{named}' in quotes")))
}

/// Who this host is to subsystems: what the machine says, so that all programs are the same host; else from its machine-id.
pub(crate) fn identity(keys: Option<Arc<HostKeys>>, tls: &NvmeTcpTls) -> Result<HostIdentity, Error> {
    let read = |path| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let machine = read(MACHINE_ID).and_then(|text| hex(&text));
    let id = read(HOST_ID).and_then(|text| hex(&text)).or(machine);
    let nqn = read(HOST_NQN).and_then(|text| Nqn::new(&text));
    let nqn = nqn.or_else(|| Nqn::new(&format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid(&id?))));
    match (nqn, id) {
        (Some(nqn), Some(id)) => Ok(HostIdentity { nqn, id, keys, tls: tls.host_tls()? }),
        _ => Err(Error::new(ErrorKind::NotFound, Verb::Open)
            .at(HOST_NQN)
            .detail("the machine has no identity that subsystems could know it by (hostnqn, hostid, machine-id)")
            .remedy(format!("write `nvme gen-hostnqn` to {HOST_NQN} and a UUID to {HOST_ID}"))),
    }
}

/// Sixteen bytes from 32 hexadecimal digits, with or without hyphens.
fn hex(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn uuid(id: &[u8; 16]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether a namespace behind TCP is what it was when it was opened; `None` for an object that is none.
pub(crate) fn unchanged(object: &Object) -> Option<Result<(), Error>> {
    let Keep { paths, nsid, generation } = object.keep.downcast_ref::<Keep>()?;
    let up = paths.controllers().map(|controller| (controller, controller.facts()));
    let up: Vec<_> = up.filter(|(controller, facts)| controller.is_up(facts)).map(|(_, facts)| facts).collect();
    if up.is_empty() {
        let lost = paths.controllers().next().map(|controller| controller.lost());
        return Some(Err(lost.unwrap_or_else(|| Ports::closed(paths.name()))));
    }
    let is_same = |now: &Namespace| {
        now.generation == *generation && now.version() == object.version && now.len_bytes() == object.len
    };
    Some(if up.iter().any(|facts| facts.namespace(*nsid).is_some_and(is_same)) {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Changed, Verb::Read)
            .at(object.name.clone())
            .detail("the subsystem has another namespace there since the association was made again")
            .remedy("open it again"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_read_with_and_without_hyphens() {
        let id = hex("01234567-89ab-cdef-0123-456789abcdef").unwrap();
        assert_eq!((hex("0123456789abcdef0123456789ABCDEF"), id[0], id[15]), (Some(id), 0x01, 0xef));
        assert_eq!(uuid(&id), "01234567-89ab-cdef-0123-456789abcdef");
        for wrong in ["", "0123", "0123456789abcdef0123456789abcdeg", "0123456789abcdef0123456789abcdef00"] {
            assert_eq!(hex(wrong), None, "{wrong:?}");
        }
    }
}
