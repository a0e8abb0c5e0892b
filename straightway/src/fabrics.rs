//! NVMe subsystems behind TCP, and behind RDMA: who is connected to which, and what lanes need of them.
//!
//! ```text
//!   nvme+tcp://HOST:PORT/NQN?nsid=N ─► controller (opened once) ─► Directory ◄── TcpTransport of every lane
//!   nvme+rdma://…                   ─► the device that has the route ─┘
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sw_engine::{
    Error, ErrorKind, Object, Reason, Residency, Verb,
    seam::{Entry, EntryKind, OpenMode, Transport, TransportCaps},
};
use sw_net::{
    Address, Controller, ControllerConfig, Directory, HostIdentity, HostKeys, QUEUE_DEPTH_MAX, TcpConfig, TcpTransport,
    Wire,
};
use sw_nvme::{fabrics::Nqn, namespace::Namespace, tcp::pdu::Digests};

use crate::{
    builder::{Config, NvmeTcp, NvmeTcpDigests},
    keys::NvmeTcpKeys,
    nvme::with_blocks_that_fit,
    nvme_control::no_thread,
    policy::Destination,
    rdma::Ways,
    tls::NvmeTcpTls,
    uri::{FabricWire, NvmeTcpUri},
};

/// Where hosts keep their name and their identifier, for all NVMe over fabrics (`nvme-cli` makes both).
const HOST_NQN: &str = "/etc/nvme/hostnqn";
const HOST_ID: &str = "/etc/nvme/hostid";
/// What tells one machine from another where nobody made those (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";

/// See the module documentation.
pub(crate) struct Fabrics {
    config: Config,
    keys: Option<Arc<HostKeys>>,
    tls: NvmeTcpTls,
    wire: Wire,
    ways: Ways,
    directory: Arc<Directory>,
    /// Not held over anything that waits for a target.
    opened: Mutex<Opened>,
}

/// What was opened so far.
#[derive(Default)]
struct Opened {
    /// The engine was closed: nothing is opened any more.
    is_closed: bool,
    controllers: BTreeMap<Place, Driven>,
    /// Places whose association is being made: whoever wants one that is, waits for it, and nobody else does.
    opening: BTreeMap<Place, Arc<Mutex<()>>>,
}

/// A subsystem, and from where it is reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    address: Address,
    by: FabricWire,
}

/// A controller that this process has an association with.
#[derive(Clone)]
struct Driven {
    index: u32,
    controller: Arc<Controller>,
}

/// Keeps a namespace's controller, and tells whether it is still there.
struct Keep {
    controller: Arc<Controller>,
    nsid: u32,
    generation: u32,
}

impl Fabrics {
    /// Those of a wire, whatever devices addresses of RDMA choose.
    pub(crate) fn new(config: Config, keys: NvmeTcpKeys, by: &FabricWire) -> Self {
        let tls = keys.tls.clone();
        let keys = keys.into_host_keys();
        let wire = match by {
            FabricWire::Tcp => Wire::Tcp,
            FabricWire::EmulatedRdma => Wire::EmulatedRdma,
            FabricWire::Rdma(_) => Wire::Rdma,
        };
        Self {
            config,
            keys,
            tls,
            wire,
            ways: Ways::of(by, config.nvme_tcp.registering),
            directory: Arc::default(),
            opened: Mutex::default(),
        }
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller of a place; associated once, and again if the association is over.
    fn controller(&self, place: Place) -> Result<Driven, Error> {
        let turn = Arc::clone(self.opened().opening.entry(place.clone()).or_default());
        let driven = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            match self.known(&place) {
                Ok(None) => self.associate(&place),
                Ok(Some(driven)) => Ok(driven),
                Err(error) => Err(error),
            }
        };
        let mut opened = self.opened();
        // This one's and the map's: nobody else waits for it.
        if Arc::strong_count(&turn) <= 2 {
            opened.opening.remove(&place);
        }
        driven
    }

    fn closed(address: &Address) -> Error {
        Error::new(ErrorKind::Closed, Verb::Open).at(address.host.clone()).detail("the engine is closed")
    }

    /// The controller of a place, if there is one that is not gone for ever.
    fn known(&self, place: &Place) -> Result<Option<Driven>, Error> {
        let mut opened = self.opened();
        if opened.is_closed {
            return Err(Self::closed(&place.address));
        }
        let Some(driven) = opened.controllers.get(place) else { return Ok(None) };
        if !driven.controller.is_gone() {
            return Ok(Some(driven.clone()));
        }
        self.directory.take_out(driven.index);
        opened.controllers.remove(place);
        Ok(None)
    }

    /// Makes an association. Blocks.
    fn associate(&self, place: &Place) -> Result<Driven, Error> {
        let Place { address, by } = place;
        let way = self.ways.to(&format!("{}:{}", address.host, address.port), by)?;
        let scheme = way.scheme();
        let NvmeTcp { digests, keep_alive, patience, timeout, .. } = self.config.nvme_tcp;
        let config = ControllerConfig {
            keep_alive,
            patience,
            timeout,
            digests: digests_of(digests),
            depth: u16::try_from(self.config.queue_depth).unwrap_or(u16::MAX),
            ..ControllerConfig::default()
        };
        let controller = Controller::open_by(way, address.clone(), identity(self.keys.clone(), &self.tls)?, config)?;
        let mut opened = self.opened();
        if opened.is_closed {
            drop(opened);
            controller.shut_down();
            return Err(Self::closed(address));
        }
        let index = self.directory.add(Arc::clone(&controller))?;
        let driven = Driven { index, controller };
        attend(&driven.controller, scheme)?;
        opened.controllers.insert(place.clone(), driven.clone());
        Ok(driven)
    }

    /// Opens a namespace.
    pub(crate) fn open(&self, uri: &NvmeTcpUri, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let (driven, namespace) = self.namespace(uri)?;
        if mode == OpenMode::Update {
            expect_serial(&driven, uri)?;
        }
        let face = sw_net::face(self.wire, driven.index, &namespace, driven.controller.landing())
            .and_then(|face| with_blocks_that_fit(face, self.transport_config().caps().io_bytes_max))
            .map_err(|error| error.at(uri.to_string()))?;
        Ok(Arc::new(Object {
            id: Object::next_id(),
            name: uri.to_string().into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face],
            residency: Residency::Unknown.into(),
            stripe: None,
            keep: Box::new(Keep { controller: driven.controller, nsid: uri.nsid, generation: namespace.generation }),
        }))
    }

    /// Facts of a namespace.
    pub(crate) fn stat(&self, uri: &NvmeTcpUri) -> Result<Entry, Error> {
        let (_, namespace) = self.namespace(uri)?;
        Ok(Entry {
            name: uri.to_string(),
            kind: EntryKind::BlockDevice,
            len: namespace.len_bytes(),
            version: namespace.version(),
        })
    }

    fn namespace(&self, uri: &NvmeTcpUri) -> Result<(Driven, Namespace), Error> {
        let subsystem = Nqn::new(&uri.subsystem).ok_or_else(|| {
            Error::new(ErrorKind::BadUri, Verb::Open)
                .at(uri.to_string())
                .detail("the name of the subsystem is none")
                .remedy("it begins with nqn. and has 223 bytes at most")
        })?;
        let address = Address { host: uri.host.clone(), port: uri.port, subsystem };
        let driven = self.controller(Place { address, by: uri.wire.clone() })?;
        let facts = driven.controller.expect_up()?;
        let serial = facts.info.serial.to_string();
        if uri.serial.as_ref().is_some_and(|wanted| *wanted != serial) {
            return Err(Error::new(ErrorKind::Changed, Verb::Open)
                .at(uri.to_string())
                .detail(format!("the subsystem has the serial number {serial}; it is not the one that was named"))
                .remedy("look which subsystem has that name now"));
        }
        match facts.namespace(uri.nsid) {
            Some(namespace) => Ok((driven, namespace.clone())),
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
        let mut opened = self.opened();
        opened.is_closed = true;
        for (_, driven) in core::mem::take(&mut opened.controllers) {
            self.directory.take_out(driven.index);
            driven.controller.shut_down();
        }
    }
}

fn digests_of(wanted: NvmeTcpDigests) -> Digests {
    let is = |one| wanted == one || wanted == NvmeTcpDigests::Both;
    Digests { header: is(NvmeTcpDigests::Header), data: is(NvmeTcpDigests::Data) }
}

fn serial_of(driven: &Driven) -> String {
    driven.controller.facts().info.serial.to_string()
}

/// A namespace is written only by an address that names the serial number: a subsystem behind a name may be another one tomorrow.
fn expect_serial(driven: &Driven, uri: &NvmeTcpUri) -> Result<(), Error> {
    if uri.serial.is_some() {
        return Ok(());
    }
    let named = NvmeTcpUri { serial: Some(serial_of(driven)), ..uri.clone() };
    Err(Error::new(ErrorKind::ApiMisuse, Verb::Open)
        .at(uri.to_string())
        .detail("a namespace is written only by an address that names the serial number of its subsystem")
        .remedy(format!("if it is the right one, and nobody else has a file system on it, write '{named}' in quotes")))
}

/// Starts the thread that does the slow work of a controller: signs of life, connections. It ends with the association.
fn attend(controller: &Arc<Controller>, scheme: &str) -> Result<(), Error> {
    let attended = Arc::clone(controller);
    let name = format!("{scheme} {}", controller.facts().id);
    let thread = std::thread::Builder::new().name(name).spawn(move || attended.attend());
    thread.map(drop).map_err(|cause| {
        controller.shut_down();
        no_thread(controller.name(), cause)
    })
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
    let Keep { controller, nsid, generation } = object.keep.downcast_ref::<Keep>()?;
    let facts = controller.facts();
    if !controller.is_up(&facts) {
        return Some(Err(controller.lost()));
    }
    let same = facts.namespace(*nsid).is_some_and(|now| {
        now.generation == *generation && now.version() == object.version && now.len_bytes() == object.len
    });
    Some(if same {
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
