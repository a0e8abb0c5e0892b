//! Which NVMe subsystems there are on a network, asked of discovery services over TCP or RDMA.

use std::io;

use sw_engine::Error;
use sw_net::{DiscoverConfig, Registering};

pub use sw_net::Discovered;
pub use sw_nvme::discovery::{
    Endpoint, Entry, PORT, SecureChannel, SubsystemType, TransportType,
    walk::{NotFollowed, Service},
};

use crate::{
    fabrics::identity,
    rdma::Ways,
    tls::NvmeTcpTls,
    uri::{FabricWire, NVME_TCP_PORT},
};

/// How services are asked.
#[derive(Debug, Default)]
pub struct Asking {
    /// By what they are reached. Default TCP.
    pub by: FabricWire,
    /// Their port; none: [`PORT`] and, if nobody listens there, 4420, where targets that are their own discovery service are.
    pub port: Option<u16>,
    /// TLS, which all services that are asked must have then. Default none. There is none over RDMA.
    pub tls: NvmeTcpTls,
}

/// Asks the discovery service at `host` (a name or an address; one of IPv6 in brackets), and those that it refers to.
///
/// *Blocking*: up to some tens of seconds for each service that does not answer.
///
/// # Errors
/// Those of [`sw_net::discover`], of the port that was asked last; `NotFound` if the machine has no identity that services could know
/// it by; `PermissionDenied` where a service does not take the key; `Unsupported` for TLS without OpenSSL 3 or over RDMA; over RDMA those of
/// addresses of `nvme+rdma://`.
pub fn discover(host: &str, asking: &Asking) -> Result<Discovered, Error> {
    let Asking { by, port, tls } = asking;
    let (us, config, ways) = (identity(None, tls)?, DiscoverConfig::default(), Ways::of(by, Registering::default()));
    let ask = |port| sw_net::discover(&|place| ways.to(place, by), (host, port), &us, config);
    match (ask(port.unwrap_or(PORT)), port) {
        (Err(error), None) if nobody_listens(&error) => ask(NVME_TCP_PORT),
        (told, _) => told,
    }
}

fn nobody_listens(error: &Error) -> bool {
    io::Error::from_raw_os_error(error.code()).kind() == io::ErrorKind::ConnectionRefused
}
