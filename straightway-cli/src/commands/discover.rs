//! `nvme discover`: which subsystems a discovery service knows, and the address to use for each.

use std::fmt;

use serde::Serialize;
use straightway::{
    FabricPort, FabricWire, NvmeTcpUri, RdmaPort,
    discovery::{self, Asking, Discovered, Entry, NotFollowed, SecureChannel, SubsystemType, TransportType},
    tls::{NvmeTcpTls, read_psks},
};

use crate::{args::NvmeDiscover, fail::Fail, out::Out};

/// SECTYPE of TLS 1.2.
const TLS_1_2: u8 = 1;

/// What `nvme discover` says.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    /// The services that answered, the first one first.
    services: Vec<String>,
    subsystems: Vec<Subsystem>,
    /// Services that were referred to and did not answer, with the error.
    failed: Vec<String>,
    not_followed: Vec<String>,
    left_out: u64,
}

#[derive(Serialize)]
struct Subsystem {
    subsystem: String,
    kind: String,
    transport: String,
    address: String,
    service: String,
    port_id: u16,
    controller: u16,
    secure_channel: &'static str,
    /// The address to use, of namespace 1.
    uri: Option<String>,
    /// Why there is none.
    why_not: Option<&'static str>,
}

impl Subsystem {
    /// Of an entry that services reached by `by` told of.
    fn of(entry: &Entry, by: &FabricWire) -> Self {
        let (wire, at) = match (by, entry.transport) {
            (FabricWire::EmulatedRdma, TransportType::Rdma) => {
                (FabricWire::EmulatedRdma, entry.endpoint(TransportType::Rdma))
            }
            (_, TransportType::Rdma) => (FabricWire::Rdma(RdmaPort::default()), entry.endpoint(TransportType::Rdma)),
            (_, transport) => (FabricWire::Tcp, entry.endpoint(transport)),
        };
        let uri = match (entry.kind, entry.secure_channel, at) {
            (_, _, None) => Err("only TCP and RDMA to an address of IPv4 or IPv6 are built in"),
            (SubsystemType::Nvme, SecureChannel::Required, _) if entry.security == TLS_1_2 => {
                Err("it demands TLS 1.2; 1.3 is built in")
            }
            (SubsystemType::Nvme, _, Some(at)) => {
                let subsystem = entry.subsystem.to_string();
                let ports = vec![FabricPort { host: at.host(), port: at.port }];
                Ok(NvmeTcpUri { ports, subsystem, nsid: 1, serial: None, wire }.to_string())
            }
            _ => Err("it is no subsystem with namespaces"),
        };
        let why_not = uri.as_ref().err().copied();
        Self {
            subsystem: entry.subsystem.to_string(),
            kind: entry.kind.to_string(),
            transport: entry.transport.to_string(),
            address: entry.address.clone(),
            service: entry.service.clone(),
            port_id: entry.port_id,
            controller: entry.controller,
            secure_channel: entry.secure_channel.name(),
            uri: uri.ok(),
            why_not,
        }
    }
}

impl fmt::Display for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subsystem, kind, transport, address, service, .. } = self;
        write!(f, "{subsystem}  {kind}, {transport}, {address} {service}")?;
        match (&self.uri, self.why_not) {
            (Some(uri), _) if self.secure_channel == SecureChannel::Required.name() => {
                write!(f, "\n  -> {uri}  (demands TLS: --engine nvme_tcp_tls_key_file=FILE)")
            }
            (Some(uri), _) => write!(f, "\n  -> {uri}"),
            (None, why_not) => write!(f, "\n  -> not usable: {}", why_not.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asked {}", self.services.join(", "))?;
        if self.subsystems.is_empty() {
            f.write_str("\nno subsystem is known there to this host")?;
        }
        self.subsystems.iter().try_for_each(|one| write!(f, "\n{one}"))?;
        self.failed.iter().try_for_each(|one| write!(f, "\nnot asked: {one}"))?;
        self.not_followed.iter().try_for_each(|one| write!(f, "\nnot followed: {one}"))?;
        if self.left_out > 0 {
            write!(f, "\n{} more subsystems are not shown", self.left_out)?;
        }
        Ok(())
    }
}

fn not_followed(why: &NotFollowed) -> String {
    match why {
        NotFollowed::Elsewhere(entry) => {
            format!("{} {}: a referral by {} is not followed", entry.address, entry.service, entry.transport)
        }
        NotFollowed::TooDeep(service) => format!("{}: too many referrals led to it", service.at),
        NotFollowed::TooMany(service) => format!("{}: too many services were asked already", service.at),
    }
}

/// Runs `nvme discover`.
///
/// # Errors
/// The service does not answer, or not as one does; the machine has no identity.
pub fn run(args: &NvmeDiscover, out: &mut Out) -> Result<(), Fail> {
    let key = args.tls.tls_key_file.as_ref().map(read_psks).transpose()?;
    let tls = NvmeTcpTls { key, form: args.tls.tls_identity, ..NvmeTcpTls::default() };
    let by = args.wire.chosen();
    let asking = Asking { by: by.clone(), port: args.service.port, tls };
    let told = discovery::discover(&args.service.host, &asking)?;
    let Discovered { entries, asked, failed, left_out, .. } = &told;
    out.report(&Report {
        schema: "straightway.nvme.discover/1",
        services: asked.iter().map(|service| service.at.to_string()).collect(),
        subsystems: entries.iter().map(|entry| Subsystem::of(entry, &by)).collect(),
        failed: failed.iter().map(|(service, error)| format!("{}: {error}", service.at)).collect(),
        not_followed: told.not_followed.iter().map(not_followed).collect(),
        left_out: *left_out,
    })
}
