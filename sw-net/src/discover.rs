//! Asks discovery services over TCP or RDMA which subsystems there are.
//!
//! ```text
//!   discover ─► connection ─► Connect (KATO 0, no I/O queues) ─► enable ─► Get Log Page 70h … ─► shut down
//!      ▲                                                                        │ referrals
//!      └── sw_nvme::discovery::walk ◄───────────────────────────────────────────┘
//! ```
//!
//! Base 2.x, "Discovery Service". The logic is in [`sw_nvme::discovery`]; here are the connections. A service is asked and left; none is
//! watched for changes.

use std::time::Duration;

use sw_engine::{Error, ErrorKind};
use sw_nvme::{
    discovery::{
        Endpoint, Entry,
        read::Reader,
        walk::{NotFollowed, Service, Walk},
    },
    fabrics::{ANY_CONTROLLER, ConnectData, Nqn, PropertySize, QueueRequest},
    inquiry::{ADMIN_DATA_BYTES, AdminQueue as _, Data},
    tcp::pdu::{ADMIN_CAPSULE_DATA_BYTES, Digests},
    wire::{
        Command,
        log::LogPage,
        regs::{self, Cc, Shutdown},
    },
};

use crate::{
    HostIdentity,
    admin::{Admin, after},
    associate::{ADMIN_ENTRIES, connect, enable},
    carrier::{Carrier, QueueOf, Way},
    connection::ConnectionConfig,
    controller::Address,
};

/// How services are asked.
#[derive(Clone, Copy, Debug)]
pub struct DiscoverConfig {
    /// How long a connection to one service, or an answer of it, may take. Default 10 s.
    pub timeout: Duration,
    /// Digests to ask for, over TCP. Default none.
    pub digests: Digests,
}

impl Default for DiscoverConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), digests: Digests::default() }
    }
}

/// What discovery services said.
#[derive(Debug, Default)]
pub struct Discovered {
    /// Subsystems, each address once, in the order in which they were told of; at most [`sw_nvme::discovery::ENTRIES_MAX`].
    pub entries: Vec<Entry>,
    /// Services that answered, the first one first.
    pub asked: Vec<Service>,
    /// Services that others referred to and that did not answer, and why.
    pub failed: Vec<(Service, Error)>,
    /// Referrals that were not followed.
    pub not_followed: Vec<NotFollowed>,
    /// Subsystems beyond the limit.
    pub left_out: u64,
}

/// By what the service at `HOST:PORT` is reached: all by the same kind of transport. Over RDMA the device depends on where it is.
pub type ReachedBy<'a> = &'a dyn Fn(&str) -> Result<Way, Error>;

/// Asks the discovery service at `host` (a name or an address; one of IPv6 in brackets) and those that it refers to.
///
/// *Blocking*: a few times [`DiscoverConfig::timeout`] for each service at most, of which there are
/// [`sw_nvme::discovery::walk::SERVICES_MAX`].
///
/// # Errors
/// Those of the first service: `NotFound` for a name, `NoDevice` for one that is not there (with the system's code; `ECONNREFUSED` where
/// nobody listens), `PermissionDenied`, `Unsupported` where a secure channel is demanded, `DeadlineExceeded`, `Protocol` for a page that
/// is none. A service that was referred to and fails is told of in [`Discovered::failed`].
pub fn discover(
    by: ReachedBy<'_>,
    (host, port): (&str, u16),
    as_host: &HostIdentity,
    config: DiscoverConfig,
) -> Result<Discovered, Error> {
    let first = open(by, (host, port), (&Nqn::discovery(), as_host), config)?;
    let peer = first.connection.peer(host, port).map_err(|cause| {
        Error::new(ErrorKind::NoDevice, sw_engine::Verb::Open)
            .at(format!("{host}:{port}"))
            .detail("the connection was lost")
            .with_code(cause.raw_os_error().unwrap_or(0))
            .caused_by(cause)
    })?;
    let mut walk = Walk::from(first.way.transport_type(), Endpoint { ip: peer.ip(), port: peer.port() });
    let mut told = Discovered::default();
    let mut first = Some(first);
    while let Some(service) = walk.next_service() {
        let is_first = first.is_some();
        let at = (&*service.at.host(), service.at.port);
        let opened = first.take().map_or_else(|| open(by, at, (&service.name, as_host), config), Ok);
        match opened.and_then(|opened| ask(&service, opened, as_host, config)) {
            Ok(entries) => {
                walk.came(&service, entries);
                told.asked.push(service);
            }
            Err(error) if is_first => return Err(error),
            Err(error) => told.failed.push((service, error)),
        }
    }
    let (entries, not_followed, left_out) = (walk.found().to_vec(), walk.not_followed().to_vec(), walk.left_out());
    Ok(Discovered { entries, not_followed, left_out, ..told })
}

/// A connection, and what it goes by.
struct Opened {
    connection: Carrier,
    way: Way,
}

fn open(
    by: ReachedBy<'_>,
    (host, port): (&str, u16),
    (service, as_host): (&Nqn, &HostIdentity),
    config: DiscoverConfig,
) -> Result<Opened, Error> {
    let way = by(&format!("{host}:{port}"))?;
    let limits = ConnectionConfig {
        digests: config.digests,
        depth: ADMIN_ENTRIES - 1,
        capsule_data_bytes: ADMIN_CAPSULE_DATA_BYTES,
    };
    let peers = as_host.peers(service, None);
    let connection = Carrier::open((&way, peers), (host, port), (QueueOf::ADMIN, limits), after(config.timeout))?;
    Ok(Opened { connection, way })
}

/// Makes an association, reads the page, ends the association.
fn ask(
    service: &Service,
    Opened { connection, way }: Opened,
    as_host: &HostIdentity,
    config: DiscoverConfig,
) -> Result<Vec<Entry>, Error> {
    let Service { at, name, .. } = service;
    let name = way.name_of(&Address { host: at.host(), port: at.port, subsystem: name.clone() });
    let mut admin = Admin::new(name, connection, config.timeout)?;
    // No sign of life is sent: the association is over in a moment (Base, "Discovery Controller": KATO may be 0).
    let request = QueueRequest { qid: 0, entries: ADMIN_ENTRIES, keep_alive_ms: 0 };
    let data = ConnectData {
        host_id: as_host.id,
        controller: ANY_CONTROLLER,
        subsystem: Nqn::clone(&service.name),
        host: as_host.nqn.clone(),
    };
    connect(&mut admin, (request, &data), as_host.keys.as_deref(), config.timeout)?;
    enable(&mut admin, config.timeout)?;
    let entries = page(&mut admin);
    if entries.is_ok()
        && let Ok(cc) = admin.property(regs::CC, PropertySize::Four)
    {
        let cc = Cc::from_raw(u32::try_from(cc).unwrap_or(0)).shutdown(Shutdown::Normal);
        // The service ends the association by itself when the connection goes.
        let _ = admin.run(Data::None, |_| Command::property_set(regs::CC, cc.raw()));
    }
    entries
}

fn page(admin: &mut Admin) -> Result<Vec<Entry>, Error> {
    let mut reader = Reader::new(ADMIN_DATA_BYTES);
    while let Some(piece) = reader.next_piece() {
        // At most ADMIN_DATA_BYTES, and a multiple of 4, as the offset is.
        let len_bytes = u32::try_from(piece.len_bytes).unwrap_or(0);
        admin.expect("get log page discovery", Data::In(piece.len_bytes), |data| {
            Command::get_log_page(LogPage::Discovery, piece.offset_bytes, len_bytes, data)
                .unwrap_or_else(Command::keep_alive)
        })?;
        let bytes = admin.page();
        reader.came(bytes.get(..piece.len_bytes).unwrap_or_default()).map_err(|cause| {
            admin
                .error(ErrorKind::Protocol, cause.to_string())
                .remedy("report it to whoever makes the discovery service")
                .caused_by(cause)
        })?;
    }
    Ok(reader.into_entries())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Target, TargetConfig};
    use sw_nvme::discovery::TransportType;

    fn identity() -> HostIdentity {
        HostIdentity { nqn: Nqn::new("nqn.2026-11.io.straightway:host").unwrap(), id: [7; 16], keys: None, tls: None }
    }

    #[test]
    fn a_target_tells_of_its_subsystem_and_is_left_in_good_order() {
        let target = Target::start(TargetConfig::default()).unwrap();
        let at = target.address();
        let both = DiscoverConfig { digests: Digests { header: true, data: true }, ..DiscoverConfig::default() };
        for config in [DiscoverConfig::default(), both] {
            let told = discover(&|_| Ok(Way::Tcp), ("127.0.0.1", at.port()), &identity(), config).unwrap();
            let entry = &told.entries[0];
            assert_eq!((told.entries.len(), told.asked.len(), told.failed.len(), told.left_out), (1, 1, 0, 0));
            assert_eq!((entry.subsystem.as_str(), entry.controller), ("nqn.2026-11.io.straightway:target", 0xFFFF));
            assert_eq!(entry.endpoint(TransportType::Tcp), Some(Endpoint { ip: at.ip(), port: at.port() }));
        }
        assert_eq!(target.counters().terminations, 0);
    }

    #[test]
    fn nobody_there_is_told_with_the_systems_code() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let by = |_: &str| Ok(Way::Tcp);
        let error = discover(&by, ("127.0.0.1", port), &identity(), DiscoverConfig::default()).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NoDevice, libc::ECONNREFUSED));
    }
}
