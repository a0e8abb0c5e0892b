//! The command line of `agent`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use straightway::agent::AgentListen;

use crate::args::EngineArgs;

/// `agent`.
#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  straightway agent serve --listen unix:/run/sw.sock
  straightway cat agp://unix:/run/sw.sock/file:///data/a")]
pub enum Agent {
    /// Serve hosts: open, list, read and write what they name, until a signal ends it
    Serve(AgentServe),
}

/// `agent serve`.
#[derive(Args, Debug)]
#[command(
    after_help = "Hosts use addresses agp://unix:/SOCKET/URI or agp://HOST:PORT/URI. What is spoken by TCP is neither hidden nor guarded: use it on a
network of your own. Ctrl-C ends it.

Examples:
  straightway agent serve --listen unix:/run/sw.sock
  straightway agent serve --listen unix:/run/sw.sock --allow s3://bucket/data --allow file:///data
  straightway agent serve --listen tcp:10.0.0.1:4421 --keys tenants.keys"
)]
pub struct AgentServe {
    /// Where to listen: unix:/PATH, or tcp:HOST:PORT, which needs --keys. May be given several times
    #[arg(long, required = true, value_name = "PLACE", value_parser = parse_listen)]
    pub listen: Vec<AgentListen>,
    /// Open only addresses that begin with this, to their end or to a slash. May be given several times
    #[arg(long, value_name = "URI")]
    pub allow: Vec<String>,
    /// A file of lines TENANT:KEY; hosts behind TCP must prove one of them
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

fn parse_listen(text: &str) -> Result<AgentListen, String> {
    text.parse().map_err(str::to_owned)
}
