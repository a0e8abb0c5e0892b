//! Which NVMe subsystems there are on a network, asked of discovery services over TCP.

use std::io;

use sw_engine::Error;
use sw_net::DiscoverConfig;

pub use sw_net::Discovered;
pub use sw_nvme::discovery::{
    Endpoint, Entry, PORT, SecureChannel, SubsystemType, TransportType,
    walk::{NotFollowed, Service},
};

use crate::{fabrics::identity, tls::NvmeTcpTls, uri::NVME_TCP_PORT};

/// Asks the discovery service at `host` (a name or an address; one of IPv6 in brackets), and those that it refers to. Without a port
/// that is [`PORT`] and, if nobody listens there, 4420, where targets that are their own discovery service are.
///
/// *Blocking*: up to some tens of seconds for each service that does not answer.
///
/// # Errors
/// Those of [`sw_net::discover`], of the port that was asked last; `NotFound` if the machine has no identity that services could know
/// it by.
pub fn discover(host: &str, port: Option<u16>) -> Result<Discovered, Error> {
    discover_with(host, port, &NvmeTcpTls::default())
}

/// The same with TLS, which all services that are asked must have then.
///
/// # Errors
/// As [`discover`]; `PermissionDenied` where a service does not take the key; `Unsupported` without OpenSSL 3.
pub fn discover_with(host: &str, port: Option<u16>, tls: &NvmeTcpTls) -> Result<Discovered, Error> {
    let (us, config) = (identity(None, tls)?, DiscoverConfig::default());
    match (sw_net::discover(host, port.unwrap_or(PORT), &us, config), port) {
        (Err(error), None) if nobody_listens(&error) => sw_net::discover(host, NVME_TCP_PORT, &us, config),
        (told, _) => told,
    }
}

fn nobody_listens(error: &Error) -> bool {
    io::Error::from_raw_os_error(error.code()).kind() == io::ErrorKind::ConnectionRefused
}
