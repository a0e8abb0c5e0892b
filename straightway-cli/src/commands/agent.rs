//! `agent`: what an engine opens, for hosts behind a socket.

use std::{fmt, sync::mpsc, time::Duration};

use serde::Serialize;
use straightway::agent::{AgentCounters, AgentListen, AgentServe, AgentServer};

use crate::{agent_args::AgentServe as Args, fail::Fail, out::Out, session, signals};

/// How often it looks whether it shall end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `agent serve` says when it listens.
#[derive(Serialize)]
struct Listening {
    schema: &'static str,
    /// What addresses of it begin with.
    addresses: Vec<String>,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("listening")?;
        self.addresses.iter().try_for_each(|at| write!(f, "\n  {at}/URI"))
    }
}

/// What it says at its end.
#[derive(Serialize)]
struct Ended {
    schema: &'static str,
    connections: u64,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    failed: u64,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, reads, read_bytes, writes, written_bytes, failed, .. } = self;
        write!(
            f,
            "{connections} connections; {reads} reads of {read_bytes} bytes, {writes} writes of {written_bytes} bytes, {failed} failures"
        )
    }
}

impl From<AgentCounters> for Ended {
    fn from(counters: AgentCounters) -> Self {
        let AgentCounters { connections, reads, writes, failed, .. } = counters;
        let schema = "straightway.agent.ended/1";
        Self {
            schema,
            connections,
            reads: reads.0,
            read_bytes: reads.1,
            writes: writes.0,
            written_bytes: writes.1,
            failed,
        }
    }
}

/// Runs `agent serve`, until a signal ends it.
///
/// # Errors
/// A configuration that cannot be; a place that cannot be listened at.
pub fn serve(args: &Args, out: &mut Out) -> Result<(), Fail> {
    let engine = session::engine(&args.engine)?;
    let config = AgentServe { listen: args.listen.clone(), allow: args.allow.clone(), keys: args.keys.clone() };
    let server = AgentServer::start(engine, &config)?;
    let unix = args.listen.iter().filter_map(|listen| match listen {
        AgentListen::Unix(path) => Some(format!("agp://unix:{}", path.display())),
        AgentListen::Tcp(_) => None,
    });
    let tcp = server.addresses().iter().map(|at| format!("agp://{at}"));
    out.report(&Listening { schema: "straightway.agent/1", addresses: unix.chain(tcp).collect() })?;
    // Nobody ever sends: this is a nap that a lint has nothing against.
    let (_nobody, quiet) = mpsc::channel::<()>();
    while signals::requested().is_ok() {
        let _ = quiet.recv_timeout(LOOK_EVERY);
    }
    let counters = server.counters();
    server.stop();
    out.report(&Ended::from(counters))
}
