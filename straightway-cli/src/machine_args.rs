//! The arguments of the commands that look at the machine.

use std::path::PathBuf;

use clap::Args;

use crate::args::EngineArgs;

/// `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  straightway doctor
  straightway doctor /data /scratch
  straightway doctor --json")]
pub struct Doctor {
    /// Files or directories whose file system is looked at
    pub paths: Vec<PathBuf>,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `topology`.
#[derive(Args, Debug)]
#[command(
    after_help = "PIX: one switch or one bus between them. PXB: several switches. PHB: a host bridge. SYS: the link between
processors. direct: bytes turn round in a switch; anything else is proven by a self-test first.

Examples:
  straightway topology
  straightway topology --file /opt/microsoft/ndv5-topo.xml
  straightway topology --gid-index 3 --json"
)]
pub struct Topology {
    /// A topology file of NCCL's, for where functions are: virtual machines hide their switches
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The entry of each port's GID table to use, instead of the rule's choice
    #[arg(long, value_name = "N")]
    pub gid_index: Option<u32>,
    /// Look at the copy of another machine's sys below this directory
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}
