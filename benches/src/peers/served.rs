//! Sides whose other end is a server on this machine: started for the run, metered, and ended with it.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use crate::{
    fault::Fault,
    report::{Role, Sample},
    rounds::Subject,
};

/// How often, and how far apart, a server is looked for that was just started: a minute in all, as some start several programs.
const LOOKS: u32 = 3000;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Ticks of `/proc/PID/stat` in a second: USER_HZ, 100 on every machine that this project is built for (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Something to do with a server at a port.
pub(crate) type Client = Box<dyn FnMut(u16) -> Result<Sample, Fault>>;

/// A server's program with its arguments; `PORT` stands for the port.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// How to get it.
    pub remedy: &'static str,
}

/// See the module documentation.
pub(crate) struct Served {
    /// Name of the side.
    pub name: String,
    /// Whose side.
    pub role: Role,
    /// The other end.
    pub server: Program,
    /// Fills what is read, before the clock starts.
    pub prepare: Option<Client>,
    /// What is measured.
    pub client: Client,
}

/// A server that runs, until it is dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(program: &Program) -> Result<Self, Fault> {
        let port = free_port()?;
        let args = program.args.iter().map(|word| word.replace("PORT", &port.to_string()));
        let mut command = Command::new(&program.path);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Fault::Missing { what: format!("{} is not on this machine", program.path), remedy: program.remedy }
            }
            _ => Fault::os("start", program.path.as_str())(error),
        })?;
        let mut server = Self { child, port };
        // Nobody ever sends: a nap.
        let (_nobody, quiet) = mpsc::channel::<()>();
        for _ in 0..LOOKS {
            // Without connecting: iperf3 takes whoever does for its client, and is deaf for a moment after one that said nothing.
            let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
            if tables.iter().any(|table| listens(table, port)) {
                return Ok(server);
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                let words = "it ended before anybody could connect".to_owned();
                return Err(Fault::Ended { program: program.path.clone(), status: status.to_string(), words });
            }
            let _ = quiet.recv_timeout(LOOK_EVERY);
        }
        Err(Fault::TooLong { program: program.path.clone(), limit_s: 60 })
    }

    /// CPU seconds of the server so far, all its threads, in steps of 10 ms.
    fn cpu_s(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name of the program may have anything in it but ends at the last bracket; utime and stime are 12th and 13th behind it.
        let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
        let ticks = behind.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
        ticks.sum::<f64>() / TICKS_PER_SECOND
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that ended by itself is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody listens at a port of the loopback, by a table of `/proc/net/tcp` (proc(5): the local address is the second word, in
/// the order of the machine, in that of version 6 behind the prefix of mapped ones; state 0A is `TCP_LISTEN`), or at that of all addresses.
fn listens(table: &str, port: u16) -> bool {
    let at = format!("{:08X}:{port:04X}", u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()));
    let mapped = format!("{:016X}{:08X}", 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]));
    let all = [format!("{:08X}:{port:04X}", 0), format!("{:032X}:{port:04X}", 0)];
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_there = words.next().is_some_and(|word| {
            word == at || word.strip_prefix(&mapped) == Some(&at) || all.iter().any(|all| word == all)
        });
        is_there && words.nth(1) == Some("0A")
    })
}

fn free_port() -> Result<u16, Fault> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map(|at| at.port()).map_err(Fault::os("listen at", "127.0.0.1"))
}

impl Subject for Served {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let server = Server::start(&self.server)?;
        if let Some(prepare) = &mut self.prepare {
            prepare(server.port)?;
        }
        let before = server.cpu_s();
        let mut sample = (self.client)(server.port)?;
        let spent = server.cpu_s() - before;
        per_gib(&mut sample, spent);
        Ok(sample)
    }
}

/// Adds what a GiB cost at each end.
pub(crate) fn per_gib(sample: &mut Sample, server_cpu_s: f64) {
    #[expect(clippy::cast_precision_loss, reason = "bytes of one run stay far below 2^52")]
    let gib = sample.bytes as f64 / (1_u64 << 30) as f64;
    if gib > 0.0 {
        sample.more.insert("cpu_s_per_gib".to_owned(), sample.cpu_s() / gib);
        sample.more.insert("server_cpu_s_per_gib".to_owned(), server_cpu_s / gib);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_without_connecting() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = || fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(listens(&table(), port));
        let _connected = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        drop(listener);
        // A child that another test begins has it too, until it becomes its program.
        let (_silent, pause) = std::sync::mpsc::channel::<()>();
        let is_gone = || !listens(&table(), port) || pause.recv_timeout(Duration::from_millis(20)).is_ok();
        assert!((0..500).any(|_| is_gone()), "a connection to it is none that listens");
        let mapped = "  0: 0000000000000000FFFF00000100007F:5621 00000000000000000000000000000000:0000 0A 0:0";
        assert_eq!(listens(mapped, 0x5621), cfg!(target_endian = "little"));
    }

    #[test]
    fn a_server_that_is_not_there_or_ends_is_told() {
        let program = |path: &str| Program { path: path.to_owned(), args: vec!["PORT".to_owned()], remedy: "get it" };
        assert!(matches!(Server::start(&program("no-such-server")), Err(Fault::Missing { .. })));
        assert!(matches!(Server::start(&program("true")), Err(Fault::Ended { .. })));
    }
}
