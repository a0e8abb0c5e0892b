//! `target`: what it offers is read and written by addresses that it prints.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{Scratch, content};

/// A target that is ended with its owner.
pub struct Offered {
    child: Child,
    said: BufReader<ChildStdout>,
    /// What it said first.
    told: Value,
    /// Of each namespace.
    uris: Vec<String>,
}

impl Offered {
    pub fn start(scratch: &Scratch, arguments: &[&str]) -> Self {
        let arguments = [&["target", "--listen", "127.0.0.1:0", "--json"], arguments].concat();
        let mut child = scratch.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(told["schema"], "straightway.target/1");
        let uri = |namespace: &Value| namespace["uri"].as_str().unwrap().to_owned();
        let uris = told["namespaces"].as_array().unwrap().iter().map(uri).collect();
        Self { child, said, told, uris }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        self.uris[0].split("://").nth(1).unwrap().split('/').next().unwrap()
    }

    /// Of the first namespace.
    pub fn uri(&self) -> &str {
        &self.uris[0]
    }

    /// Ends it as Ctrl-C does; what it says then.
    fn end(mut self) -> Value {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        // A test that failed leaves none behind; one that ended has none.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a target says, of which nobody wants anything.
pub fn everything_said(scratch: &Scratch) -> Vec<Value> {
    let offered = Offered::start(scratch, &["memory:1MiB"]);
    let told = offered.told.clone();
    vec![told, offered.end()]
}

#[test]
fn a_file_is_copied_to_a_target_and_back_with_every_way_told() {
    let scratch = Scratch::new();
    let (bytes, disk) = (content(6 << 20), scratch.path("disk"));
    scratch.file("a", bytes.len());
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let offered = Offered::start(&scratch, &["disk", "memory:1MiB"]);
    assert_eq!(offered.uris.len(), 2);
    let uri = &offered.uris[0];
    let stat = scratch.run(&["stat", uri]);
    if stat.code != Some(0) && stat.stderr.contains("/etc/nvme/hostnqn") {
        println!("skip target: the machine has no hostid and no machine-id");
        return;
    }
    assert!(stat.ok().text().contains("block_device"));
    let serial = offered.told["serial"].as_str().unwrap().to_owned();
    let to = format!("{uri}&serial={serial}&offset=1MiB");
    let copied = scratch.run(&["cp", "a", &to]).ok();
    assert!(copied.text().contains("nvme+tcp/kernel-copy"), "{}", copied.text());
    assert_eq!(std::fs::read(&disk).unwrap()[1 << 20..7 << 20], bytes);
    let part = format!("{uri}&offset=1MiB&len=6MiB");
    scratch.run(&["cp", &part, "b"]).ok();
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), bytes);
    let cat = scratch.run(&["cat", &part, "--offset", "12345", "--len", "4321"]).ok();
    assert_eq!(cat.stdout, bytes[12345..12345 + 4321]);
    let plan = scratch.run(&["plan", uri]).ok();
    assert!(plan.text().contains("nvme+tcp/kernel-copy"), "{}", plan.text());
    // Without a serial number nothing is written; one that is another's is told.
    scratch.run(&["cp", "a", &format!("{uri}&offset=0")]).fails(2, &[&serial]);
    // Another target, also one of the same name, has another one: their namespaces are not taken for the same.
    let other = Offered::start(&scratch, &["memory:1MiB"]);
    assert!(other.told["subsystem"] == offered.told["subsystem"] && other.told["serial"] != offered.told["serial"]);
    let ended = offered.end();
    assert_eq!(ended["schema"], "straightway.target.ended/1");
    assert_eq!(ended["written_bytes"], 6 << 20);
}

#[test]
fn a_target_with_two_ports_is_reached_by_both_and_stat_and_plan_tell_how() {
    let scratch = Scratch::new();
    let offered = Offered::start(&scratch, &["memory:1MiB", "--listen", "127.0.0.1:0", "--ana", "1/1=inaccessible"]);
    let uri = &offered.uris[0];
    let ports: Vec<&str> = offered.address().split(',').collect();
    assert_eq!(ports.len(), 2, "{uri}");
    let stat = scratch.run(&["stat", "--json", uri]);
    if stat.code != Some(0) && stat.stderr.contains("/etc/nvme/hostnqn") {
        println!("skip target: the machine has no hostid and no machine-id");
        return;
    }
    let told: Value = serde_json::from_str(stat.ok().text().trim()).unwrap();
    let paths = told["paths"].as_array().unwrap();
    let states = ["inaccessible", "optimized"];
    for ((path, port), state) in paths.iter().zip(&ports).zip(states) {
        assert_eq!((path["address"].as_str(), path["state"].as_str()), (Some(*port), Some(state)), "{told}");
    }
    let plan = scratch.run(&["plan", uri]).ok();
    assert!(plan.text().contains(&format!("{} inaccessible", ports[0])), "{}", plan.text());
    scratch.run(&["cat", uri, "--len", "4096"]).ok();
}

#[test]
fn what_cannot_be_offered_is_told() {
    let scratch = Scratch::new();
    for (arguments, code, words) in [
        (&["target", "none"][..], 3, "none"),
        (&["target"], 2, "SOURCE"),
        (&["target", "memory:0"], 2, "memory:0"),
        (&["target", "memory:1MiB", "--nqn", "x"], 2, "NQN"),
        (&["target", "memory:1MiB", "--block", "1000"], 2, "block"),
        (&["target", "memory:1MiB", "--listen", "127.0.0.1"], 2, "listen"),
        (&["target", "memory:1MiB", "--ana", "1/1=asleep"], 2, "PORT/NSID=STATE"),
        (&["target", "memory:1MiB", "--ana", "2/1=change"], 2, "port 2"),
        (&["target", "memory:1MiB", "--ana", "1/2=change"], 2, "namespace 2"),
        (&["target", "memory:1MiB", "--dhchap-key-file", "none"], 3, "none"),
        (&["target", "memory:1MiB", "--dhchap-key-file", "/proc/self/status"], 11, "gen-dhchap-key"),
        (&["target", "memory:1MiB", "--dhchap-ctrl-key-file", "none"], 2, "dhchap-key-file"),
        (&["target", "memory:1MiB", "--dhchap-groups", "modp"], 2, "ffdhe2048"),
        (&["nvme", "gen-dhchap-key", "--hash", "sha1"], 2, "sha256"),
        (&["nvme", "gen-dhchap-key", "--bytes", "33"], 2, "48"),
        (&["target", "memory:1MiB", "--tls-key-file", "none"], 3, "none"),
        (&["target", "memory:1MiB", "--tls-key-file", "/proc/self/status"], 11, "gen-tls-key"),
        (&["target", "memory:1MiB", "--tls-compat"], 2, "tls-key-file"),
        (&["nvme", "gen-tls-key", "--hash", "sha512"], 2, "sha384"),
        (&["nvme", "discover", "127.0.0.1:1", "--tls-identity", "v2"], 2, "v0-compat"),
    ] {
        let ran = scratch.run(arguments);
        assert!(ran.code == Some(code) && ran.stderr.contains(words), "{arguments:?}: {:?} {}", ran.code, ran.stderr);
    }
}

/// Whether this machine has something that subsystems could know it by.
pub fn known() -> bool {
    ["/etc/nvme/hostid", "/etc/machine-id"].iter().any(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().len() >= 32
    })
}

#[test]
fn a_target_with_keys_is_for_hosts_that_have_them() {
    let scratch = Scratch::new();
    let made = |file: &str, arguments: &[&str]| {
        let key = scratch.run(&[&["nvme", "gen-dhchap-key"], arguments].concat()).ok().text().to_owned();
        std::fs::write(scratch.path(file), &key).unwrap();
        key
    };
    let (one, other) = (made("host.key", &[]), made("target.key", &["--hash", "none", "--bytes", "64"]));
    assert!(one.starts_with("DHHC-1:01:") && one.trim().len() == 59 && one.ends_with(":\n"), "{} bytes", one.len());
    assert!(other.starts_with("DHHC-1:00:") && other.trim().len() == 103);
    if !known() {
        println!("skip target: the machine has no hostid and no machine-id");
        return;
    }
    let keys = ["--dhchap-key-file", "host.key", "--dhchap-ctrl-key-file", "target.key", "--dhchap-hashes", "sha512"];
    let offered = Offered::start(&scratch, &[&["memory:1MiB"][..], &keys].concat());
    let uri = offered.uris[0].as_str();
    let both = "nvme_tcp_dhchap_key_file=host.key,nvme_tcp_dhchap_ctrl_key_file=target.key";
    assert_eq!(scratch.run(&["cat", uri, "--len", "4k", "--engine", both]).ok().stdout, [0; 4096]);
    scratch.run(&["cat", uri, "--len", "4k"]).fails(4, &["set nvme_tcp_dhchap_key_file"]);
    let wrong = scratch.run(&["cat", uri, "--len", "4k", "--engine", "nvme_tcp_dhchap_key_file=target.key"]);
    assert!(!wrong.stderr.contains("DHHC-1:0"), "{}", wrong.stderr);
    wrong.fails(4, &["compare the file of nvme_tcp_dhchap_key_file"]);
}

#[test]
fn a_target_with_tls_is_for_hosts_that_have_its_key() {
    let scratch = Scratch::new();
    for (file, arguments) in [("tls.key", &["--hash", "sha384"][..]), ("other.key", &[])] {
        let key = scratch.run(&[&["nvme", "gen-tls-key"], arguments].concat()).ok().text().to_owned();
        assert!(key.starts_with("NVMeTLSkey-1:0") && key.ends_with(":\n"), "{} bytes", key.len());
        std::fs::write(scratch.path(file), &key).unwrap();
    }
    if !known() {
        println!("skip tls: the machine has no hostid and no machine-id");
        return;
    }
    if straightway::target::Target::start(with_tls()).is_err() {
        println!("skip tls: there is no OpenSSL 3");
        return;
    }
    let offered = Offered::start(&scratch, &["memory:1MiB", "--tls-key-file", "tls.key"]);
    let uri = offered.uris[0].as_str();
    let read = |settings: &str| scratch.run(&["cat", uri, "--len", "64k", "--engine", settings]);
    for settings in [
        "nvme_tcp_tls_key_file=tls.key",
        "nvme_tcp_tls=required,nvme_tcp_tls_key_file=tls.key,nvme_tcp_tls_identity=v0",
    ] {
        assert_eq!(read(settings).ok().stdout, [0; 64 << 10]);
    }
    let wrong = read("nvme_tcp_tls_key_file=other.key");
    assert!(!wrong.stderr.contains("NVMeTLSkey-1:0"), "{}", wrong.stderr);
    wrong.fails(4, &["nvme_tcp_tls_key_file"]);
    scratch.run(&["cat", uri, "--len", "4k"]).fails(4, &["nvme_tcp_tls=required"]);
    read("nvme_tcp_tls=required").fails(2, &["nvme_tcp_tls_key_file"]);
    let told = scratch.run(&["nvme", "discover", offered.address(), "--tls-key-file", "tls.key", "--json"]).ok().json();
    let found = &told[0]["subsystems"][0];
    assert_eq!((&found["uri"], &found["secure_channel"]), (&Value::from(uri), &Value::from("required")));
    scratch.run(&["nvme", "discover", offered.address()]).fails(4, &["demands tls"]);
}

fn with_tls() -> straightway::target::TargetConfig {
    use straightway::{target::Tls, tls};
    let psk = tls::make_psk(tls::Suite::Aes128GcmSha256).unwrap();
    let tls = Some(Tls { psk: psk.into(), derivation: tls::Derivation::Standard, kernel: tls::KernelTls::IfThere });
    straightway::target::TargetConfig { tls, ..Default::default() }
}

#[test]
fn a_target_is_discovered_and_its_address_is_usable() {
    if !known() {
        println!("skip discover: the machine has no hostid and no machine-id");
        return;
    }
    let scratch = Scratch::new();
    let offered = Offered::start(&scratch, &["memory:1MiB"]);
    let told = scratch.run(&["nvme", "discover", offered.address(), "--json"]).ok().json();
    assert_eq!((told.len(), &told[0]["services"][0]), (1, &Value::from(offered.address())));
    let found = &told[0]["subsystems"][0];
    assert_eq!(found["uri"], offered.uris[0].as_str());
    assert!(found["why_not"].is_null());
    scratch.run(&["stat", found["uri"].as_str().unwrap()]).ok();
    let text = scratch.run(&["nvme", "discover", offered.address()]).ok();
    assert!(text.text().contains(&format!("-> {}", offered.uris[0])), "{}", text.text());
    // Nobody is there any more: a number of a port, and both that are looked at without one.
    let address = offered.address().to_owned();
    offered.end();
    scratch.run(&["nvme", "discover", &address]).fails(8, &["nobody listens"]);
}

#[test]
fn what_is_no_address_of_a_service_is_told() {
    let scratch = Scratch::new();
    for wrong in ["", ":4420", "host:0", "host:x", "host:65536", "2001:db8::1", "[2001:db8::1", "a/b"] {
        scratch.run(&["nvme", "discover", wrong]).fails(2, &["HOST"]);
    }
}

#[test]
fn a_file_goes_to_a_target_behind_the_emulated_fabric_and_back_and_the_emulation_is_told() {
    if !known() {
        println!("skip target: the machine has no hostid and no machine-id");
        return;
    }
    let scratch = Scratch::new();
    let bytes = content(3 << 20);
    scratch.file("a", bytes.len());
    let offered = Offered::start(&scratch, &["memory:8MiB", "--rdma-emulated"]);
    let uri = &offered.uris[0];
    assert!(uri.starts_with("nvme+rdma://127.0.0.1:") && uri.ends_with("?nsid=1&fabric=emulated"), "{uri}");
    assert!(scratch.run(&["stat", uri]).ok().text().contains("block_device"));
    let serial = offered.told["serial"].as_str().unwrap();
    let copied = scratch.run(&["cp", "a", &format!("{uri}&serial={serial}&offset=0")]).ok();
    assert!(copied.text().contains("nvme+rdma-emulated/kernel-copy"), "{}", copied.text());
    let plan = scratch.run(&["plan", uri]).ok();
    assert!(plan.text().contains("nvme+rdma-emulated/kernel-copy"), "{}", plan.text());
    let cat = scratch.run(&["cat", uri, "--offset", "1", "--len", "1000000"]).ok();
    assert_eq!(cat.stdout, bytes[1..1_000_001]);
    scratch.run(&["cat", uri, "--policy", "require=dma"]).fails(5, &["dma"]);
    let told = scratch.run(&["nvme", "discover", offered.address(), "--rdma-emulated", "--json"]).ok().json();
    assert_eq!(
        (&told[0]["subsystems"][0]["uri"], &told[0]["subsystems"][0]["transport"]),
        (&Value::from(uri.as_str()), &Value::from("rdma"))
    );
    // Without its name an address is for devices: the libraries or the kernel refuse, or none has a route there.
    let refused = scratch.run(&["stat", &uri.replace("&fabric=emulated", "")]);
    refused.fails(8, &["rdma"]);
    scratch.run(&["nvme", "discover", offered.address(), "--rdma"]).fails(8, &["rdma"]);
    scratch.run(&["target", "memory:1MiB", "--rdma"]).fails(8, &["rdma"]);
    assert_eq!(offered.end()["written_bytes"], 3 << 20);
}
