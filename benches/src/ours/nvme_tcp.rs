//! Our target of NVMe over TCP with a namespace in memory, in a process of its own.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr},
};

use straightway::target::{Backing, Target, TargetConfig};

use crate::fault::Fault;

/// Entries of a queue: more than the deepest job.
const ENTRIES: u16 = 256;

/// Where it is and how large.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Serve {
    /// The port, on the loopback.
    #[arg(long)]
    pub port: u16,
    /// Bytes of the namespace.
    #[arg(long)]
    pub bytes: u64,
}

impl Serve {
    /// The address of its namespace, to read and write.
    pub(crate) fn uri(port: u16) -> String {
        let TargetConfig { subsystem, serial, .. } = TargetConfig::default();
        format!("nvme+tcp://127.0.0.1:{port}/{subsystem}?nsid=1&serial={serial}")
    }

    /// Serves until whoever started it ends it, or closes its standard input.
    pub(crate) fn run(self) -> Result<(), Fault> {
        let config = TargetConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            namespaces: vec![Backing::Memory(self.bytes)],
            queue_entries: ENTRIES,
            ..TargetConfig::default()
        };
        let target = Target::start(config)?;
        let mut rest = Vec::new();
        let read = std::io::stdin().read_to_end(&mut rest);
        target.stop();
        read.map(drop).map_err(Fault::os("read", "standard input"))
    }
}
