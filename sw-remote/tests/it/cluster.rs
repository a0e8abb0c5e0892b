//! A cluster of Ceph's in this machine, by the programs of the distribution, on ports of the loopback that are free: one monitor, one store,
//! and what else a test starts. It asks nobody for a key, or everybody.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sw_testkit::scratch::Scratch;

const CLUSTER: &str = "11111111-2222-3333-4444-555555555555";
const OSD: &str = "66666666-7777-8888-9999-aaaaaaaaaaaa";

/// A process that ends with its handle.
pub struct Running(Child);

impl Running {
    pub fn of(child: Child) -> Self {
        Self(child)
    }

    /// Stops it, or lets it go on, as `kill -NAME` does.
    pub fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), id]).status().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Where objects are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// In memory: what is there goes with the process.
    Memory,
    /// In a file, as on a disk: what was acknowledged outlives a SIGKILL.
    Disk,
}

/// Whether keys are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    None,
    Cephx,
}

/// It.
pub struct Cluster {
    // Before the folder that they work in.
    pub osd: Option<Running>,
    pub monitor: Option<Running>,
    pub folder: Scratch,
}

impl Cluster {
    /// Starts a monitor and a store; `more` is added to the configuration, with `{at}` for the folder.
    pub fn start(name: &str, medium: Medium, keys: Keys, more: &str) -> Self {
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), name);
        let ports = free_ports::<2>();
        let at = folder.root().display().to_string();
        let auth = if keys == Keys::Cephx { "cephx" } else { "none" };
        let store = match medium {
            Medium::Memory => "osd objectstore = memstore\n",
            // As large as it may grow: the file has holes.
            Medium::Disk => {
                "osd objectstore = bluestore\nbluestore block size = 4294967296\nosd memory target = 939524096\n"
            }
        };
        // A store that is stopped for longer than its lease to read (16 s if nothing is said) and has nobody beside it lets reads wait for
        // ever when it goes on (seen with Ceph 16: "waiting for readable"): the lease is longer than a test stops it.
        let text = format!(
            "[global]\nfsid = {CLUSTER}\nmon host = [v2:127.0.0.1:{}/0,v1:127.0.0.1:{}/0]\nmon initial members = a\n\
             public addr = 127.0.0.1\ncluster addr = 127.0.0.1\nauth cluster required = {auth}\nauth service required = {auth}\n\
             auth client required = {auth}\nauth allow insecure global id reclaim = false\nms mon client mode = crc\n\
             keyring = {at}/$name.keyring\nadmin socket = {at}/$name.asok\n\
             log file = {at}/$name.log\npid file = {at}/$name.pid\nrun dir = {at}\ncrash dir = {at}\nmon data = {at}/mon\n\
             osd data = {at}/osd\nosd pool default size = 1\nosd pool default min size = 1\nosd pool default pg num = 8\n\
             osd pool default read lease ratio = 10\nmon allow pool size one = true\nosd crush chooseleaf type = 0\nmon data avail crit = 1\npaxos propose interval = 0.05\n\
             paxos min wait = 0.02\nosd class update on start = false\nmds beacon interval = 0.5\n{store}{}",
            ports[0],
            ports[1],
            more.replace("{at}", &at),
        );
        fs::write(folder.path("ceph.conf"), text).unwrap();
        for name in ["mon", "osd"] {
            fs::create_dir(folder.path(name)).unwrap();
        }
        let mut made = Self { osd: None, monitor: None, folder };
        let monitors = format!("[v2:127.0.0.1:{},v1:127.0.0.1:{}]", ports[0], ports[1]);
        made.keyrings(keys);
        made.run("monmaptool", &["--create", "--fsid", CLUSTER, "--addv", "a", &monitors, "monmap"]);
        made.run("ceph-mon", &["-i", "a", "--mkfs", "--monmap", "monmap", "--keyring", "mon.keyring"]);
        made.start_monitor();
        made.make_osd(keys);
        made.start_osd();
        made
    }

    fn keyrings(&self, keys: Keys) {
        fs::write(self.folder.path("mon.keyring"), "").unwrap();
        if keys == Keys::None {
            return;
        }
        let capabilities = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mds", "allow *"];
        let admin = ["--create-keyring", "client.admin.keyring", "--gen-key", "-n", "client.admin"];
        self.run("ceph-authtool", &[&admin[..], &capabilities].concat());
        let monitor = ["--create-keyring", "mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"];
        self.run("ceph-authtool", &monitor);
        self.run("ceph-authtool", &["mon.keyring", "--import-keyring", "client.admin.keyring"]);
    }

    fn make_osd(&self, keys: Keys) {
        if keys == Keys::None {
            self.run("ceph", &["--connect-timeout", "20", "osd", "new", OSD]);
        } else {
            let key = self.ask("ceph-authtool", &["--gen-print-key"]);
            let key = key.trim();
            fs::write(self.folder.path("secret.json"), format!("{{\"cephx_secret\":\"{key}\"}}")).unwrap();
            self.run("ceph", &["--connect-timeout", "20", "osd", "new", OSD, "-i", "secret.json"]);
            fs::write(self.folder.path("osd.0.keyring"), format!("[osd.0]\nkey = {key}\n")).unwrap();
        }
        self.run("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", OSD]);
    }

    pub fn start_monitor(&mut self) {
        self.monitor = Some(self.spawn("ceph-mon", &["-i", "a", "-f"]));
    }

    pub fn start_osd(&mut self) {
        self.osd = Some(self.spawn("ceph-osd", &["-i", "0", "-f"]));
    }

    pub fn conf(&self) -> PathBuf {
        self.folder.path("ceph.conf")
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.root()).env("CEPH_CONF", self.conf());
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) {
        self.ask(program, arguments);
    }

    /// What a program says.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(program, arguments);
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

/// Asks `whether` something is so, ten times a second, for a minute at most.
pub fn wait_until(mut whether: impl FnMut() -> bool) -> bool {
    for _ in 0..600 {
        if whether() {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    false
}

/// Ports that nobody listens at.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}
