//! `target`: files and memory as namespaces that other machines read and write by NVMe over TCP or RDMA.

use std::{fmt, net::SocketAddr, sync::mpsc, time::Duration};

use serde::Serialize;
use sha2::{Digest, Sha256};
use straightway::{
    FabricPort, FabricWire, NvmeTcpUri,
    authentication::{Offer, read_secrets},
    target::{self, Access, Authentication, Backing, Counters, Nqn, Target, TargetConfig, Tells, Tls},
    tls::{Derivation, KernelTls, read_psks},
};

use crate::{
    fail::Fail,
    out::Out,
    signals,
    target_args::{PortState, Target as Args, TargetSource},
};

/// How often it looks whether it shall end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `target` says when it listens.
#[derive(Serialize)]
struct Listening {
    schema: &'static str,
    address: String,
    subsystem: String,
    serial: String,
    namespaces: Vec<Namespace>,
}

#[derive(Serialize)]
struct Namespace {
    nsid: u32,
    source: String,
    uri: String,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listening at {}, serial {}", self.address, self.serial)?;
        self.namespaces.iter().try_for_each(|one| write!(f, "\n  {}: {}", one.source, one.uri))
    }
}

/// What it says at its end.
#[derive(Serialize)]
struct Ended {
    schema: &'static str,
    connections: u64,
    commands: u64,
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, reads, writes, read_bytes, written_bytes, .. } = self;
        write!(
            f,
            "{connections} connections; {reads} reads of {read_bytes} bytes, {writes} writes of {written_bytes} bytes"
        )
    }
}

impl From<Counters> for Ended {
    fn from(counters: Counters) -> Self {
        let Counters { connections, commands, reads, writes, read_bytes, written_bytes, .. } = counters;
        Self { schema: "straightway.target.ended/1", connections, commands, reads, writes, read_bytes, written_bytes }
    }
}

/// Where others reach it: one that listens at every address of the machine by the machine's name.
fn reached_at(listens: SocketAddr) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match (listens.ip().is_unspecified(), name.trim()) {
        (true, name) if !name.is_empty() => name.to_owned(),
        _ if listens.is_ipv6() => format!("[{}]", listens.ip()),
        _ => listens.ip().to_string(),
    }
}

/// The keys that hosts must have; none: no host needs one.
fn authentication(args: &Args) -> Result<Option<Authentication>, Fail> {
    let Some(file) = &args.dhchap_key_file else { return Ok(None) };
    let controller_secret = args.dhchap_ctrl_key_file.as_ref().map(read_secrets).transpose()?;
    let offer = Offer { hashes: args.dhchap_hashes.0.clone(), groups: args.dhchap_groups.0.clone() };
    Ok(Some(Authentication { secret: read_secrets(file)?, controller_secret, offer }))
}

/// TLS that hosts must have; none: connections go in the clear.
fn tls(args: &Args) -> Result<Option<Tls>, Fail> {
    let Some(file) = &args.tls_key_file else { return Ok(None) };
    let derivation = if args.tls_compat { Derivation::Compat } else { Derivation::Standard };
    Ok(Some(Tls { psk: read_psks(file)?, derivation, kernel: KernelTls::IfThere }))
}

/// A serial number that no other target has that is started without one: hosts take namespaces of the same subsystem, serial number and NSID
/// for the same, by whichever path. The same each time for the same ports; another each time where a free one is looked for.
fn serial_of(listen: &[SocketAddr]) -> String {
    // Containers of one image have its machine-id, but names of their own.
    let mut hash = Sha256::new();
    for file in ["/etc/machine-id", "/proc/sys/kernel/hostname"] {
        hash.update(std::fs::read(file).unwrap_or_default());
        hash.update([0]);
    }
    listen.iter().for_each(|at| hash.update(format!("{at} ")));
    if listen.iter().any(|at| at.port() == 0) {
        hash.update(std::process::id().to_le_bytes());
        hash.update(std::fs::read("/proc/sys/kernel/random/uuid").unwrap_or_default());
    }
    let hash = hash.finalize();
    hash.iter().take(8).fold("SW".to_owned(), |serial, byte| serial + &format!("{byte:02X}"))
}

/// Runs `target`, until a signal ends it.
///
/// # Errors
/// A configuration that cannot be; a file or an address that cannot be opened.
pub fn run(args: &Args, out: &mut Out) -> Result<(), Fail> {
    let subsystem = Nqn::new(&args.nqn)
        .ok_or_else(|| Fail::usage(format!("{:?} is no NQN", args.nqn), "write nqn.YEAR-MONTH.DOMAIN:NAME"))?;
    let access = if args.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let backing = |source: &TargetSource| match source {
        TargetSource::Memory(bytes) => Backing::Memory(*bytes),
        TargetSource::File(path) => Backing::File(path.clone(), access),
    };
    let Some((&listen, more)) = args.listen.split_first() else {
        return Err(Fail::usage("there is no place to listen", "write --listen ADDRESS:PORT"));
    };
    if args.wire.chosen() != FabricWire::Tcp && !more.is_empty() {
        return Err(Fail::usage("over RDMA a target listens at one place", "write --listen once"));
    }
    let is_there = |one: &&PortState| one.port <= more.len() && one.nsid as usize <= args.sources.len();
    if let Some(wrong) = args.ana.iter().find(|one| !is_there(one)) {
        let text =
            format!("--ana names port {} and namespace {}, of which one is not there", wrong.port + 1, wrong.nsid);
        return Err(Fail::usage(
            text,
            "ports count from 1 in the order of --listen, namespaces in that of the sources",
        ));
    }
    let serial = args.serial.clone().unwrap_or_else(|| serial_of(&args.listen));
    let config = TargetConfig {
        authentication: authentication(args)?,
        tls: tls(args)?,
        listen,
        more: more.to_vec(),
        tells: if args.ana.is_empty() { Tells::Nothing } else { Tells::Access },
        subsystem,
        namespaces: args.sources.iter().map(backing).collect(),
        serial: serial.clone(),
        block_bytes: args.block,
        ..TargetConfig::default()
    };
    let wire = args.wire.chosen();
    let target = match &wire {
        FabricWire::Tcp => Target::start(config)?,
        FabricWire::Rdma(_) => target::start_rdma(config)?,
        FabricWire::EmulatedRdma => target::start_rdma_emulated(config)?,
    };
    args.ana.iter().for_each(|one| target.set_access(one.port, one.nsid, one.access));
    let at = target.address();
    let ports = |at: &SocketAddr| FabricPort { host: reached_at(*at), port: at.port() };
    let reached: Vec<FabricPort> = target.addresses().iter().map(ports).collect();
    let namespaces = (1..).zip(&args.sources).map(|(nsid, source)| Namespace {
        nsid,
        source: source.to_string(),
        uri: NvmeTcpUri { ports: reached.clone(), subsystem: args.nqn.clone(), nsid, serial: None, wire: wire.clone() }
            .to_string(),
    });
    out.report(&Listening {
        schema: "straightway.target/1",
        address: at.to_string(),
        subsystem: args.nqn.clone(),
        serial,
        namespaces: namespaces.collect(),
    })?;
    // Nobody ever sends: this is a nap that a lint has nothing against.
    let (_nobody, quiet) = mpsc::channel::<()>();
    while signals::requested().is_ok() {
        let _ = quiet.recv_timeout(LOOK_EVERY);
    }
    let counters = target.counters();
    target.stop();
    out.report(&Ended::from(counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_every_address_is_told_as_the_name_of_the_machine() {
        let told = |at: &str| reached_at(at.parse().unwrap());
        assert_eq!((told("127.0.0.1:4420"), told("[::1]:1")), ("127.0.0.1".into(), "[::1]".into()));
        for every in ["0.0.0.0:4420", "[::]:4420"] {
            let name = told(every);
            assert!(!name.is_empty() && !name.starts_with("0.0.0.0") && !name.starts_with("[::]"), "{name}");
        }
    }
}
