//! TLS over NVMe/TCP with the kernel doing it, at our end and at both, and with the kernel's own target and initiator: the command, linked
//! dynamically, since OpenSSL is loaded when it runs. The kernel's handshakes are `tlshd`'s, and its keys `nvme-cli`'s.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use super::fabrics::{self, connect_with, host_name, namespace_of, nvmet};
use crate::block;
use crate::context::{Context, read_text, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "tls",
    tests: &[
        Test::new("kernel", "bytes are the same whether kernel or library does TLS, and their way is told", kernel)
            .bed_only()
            .limit_s(300),
        Test::new("refused", "without the key, with another, and in the clear nothing is read", refused)
            .bed_only()
            .limit_s(60),
        Test::new(
            "kernel-target",
            "the kernel's target lets our initiator in with the key, and with no other",
            kernel_target,
        )
        .bed_only()
        .limit_s(240),
        Test::new(
            "kernel-host",
            "our target lets the kernel's initiator in with the key, and not without",
            kernel_host,
        )
        .bed_only()
        .limit_s(240),
    ],
};

/// The command, which the host built for the C library of the archive.
const COMMAND: &str = "/bin/straightway-dynamic";
/// The serial number that our target is given.
const SERIAL: &str = "SWTARGET0001";
const LISTEN: &str = "127.0.0.1:4430";
const URI: &str = "nvme+tcp://127.0.0.1:4430/nqn.2026-11.io.straightway:target?nsid=1";
/// The subsystem of our target.
const OURS: &str = "nqn.2026-11.io.straightway:target";
/// What makes handshakes for the kernel, and what knows its keys.
const TLSHD: &str = "/usr/sbin/tlshd";
const NVME: &str = "/usr/sbin/nvme";
const LOG: &str = "/tmp/tlshd.log";
const BYTES: usize = 4 << 20;
/// The same with the kernel's own ends, of which each handshake is two programs more.
const KERNEL_BYTES: usize = 1 << 20;
const SEED: u64 = 99;

fn command(args: &[&str]) -> Result<Output, Stop> {
    Ok(Command::new(COMMAND).args(args).output()?)
}

/// What a command prints that must succeed.
fn told(args: &[&str]) -> Result<Vec<u8>, Stop> {
    let output = command(args)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    fail(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Our target with TLS, in a process of its own.
struct Target(Child);

impl Target {
    fn start(key: &str) -> Result<Self, Stop> {
        std::fs::create_dir_all("/etc")?;
        std::fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        let up = Command::new("/bin/busybox").args(["ifconfig", "lo", "127.0.0.1", "up"]).status()?;
        same("the loopback", &up.success(), &true)?;
        let args = ["target", "memory:16MiB", "--serial", SERIAL, "--tls-key-file", key, "--listen", LISTEN];
        let mut this = Self(Command::new(COMMAND).args(args).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        if let Some(said) = this.0.stdout.take() {
            BufReader::new(said).read_line(&mut line)?;
        }
        if line.starts_with("listening") { Ok(this) } else { fail(format!("the target says {line:?}")) }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn make_key(hash: &str) -> Result<String, Stop> {
    let file = format!("/tmp/{hash}.key");
    std::fs::write(&file, told(&["nvme", "gen-tls-key", "--hash", hash])?)?;
    Ok(file)
}

/// A number of `/proc/net/tls_stat`.
fn counted(name: &str) -> Result<u64, Stop> {
    let text = read_text(Path::new("/proc/net/tls_stat"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    line.and_then(|number| number.parse().ok()).map_or_else(|| fail(format!("no {name} in tls_stat")), Ok)
}

fn kernel(context: &Context) -> Verdict {
    let content = block::pattern(SEED, 0, BYTES);
    std::fs::write("/tmp/content", &content)?;
    let (write, read) = (format!("{URI}&serial={SERIAL}&offset=1MiB"), format!("{URI}&offset=1MiB&len=4MiB"));
    for hash in ["sha256", "sha384"] {
        let key = make_key(hash)?;
        let _target = Target::start(&key)?;
        for (kernel, route) in [("required", "nvme+tcp/kernel-copy"), ("off", "nvme+tcp/staged")] {
            for (digests, identity) in [("none", "v1"), ("both", "v0")] {
                let before = counted("TlsTxSw")?;
                let engine = format!(
                    "nvme_tcp_tls_key_file={key},nvme_tcp_tls_kernel={kernel},nvme_tcp_digests={digests},nvme_tcp_tls_identity={identity}"
                );
                let report = told(&["cp", "/tmp/content", &write, "--engine", &engine, "--json"])?;
                let report = String::from_utf8_lossy(&report);
                same(&format!("the route {route} in {report}"), &report.contains(route), &true)?;
                let got = told(&["cat", &read, "--engine", &engine])?;
                same(&format!("the bytes with {hash}, {kernel}, {digests}"), &(got == content), &true)?;
                let sockets = counted("TlsTxSw")? - before;
                // The target's end of each connection is the kernel's, and ours where it must be.
                context.fact(&json!({"hash": hash, "kernel": kernel, "digests": digests, "sockets": sockets}));
                same("sockets with TLS of the kernel", &(sockets > 0), &true)?;
            }
        }
    }
    same("records that the kernel could not read", &counted("TlsDecryptError")?, &0)
}

fn refused(_: &Context) -> Verdict {
    let (key, other) = (make_key("sha256")?, "/tmp/other.key".to_owned());
    std::fs::write(&other, told(&["nvme", "gen-tls-key"])?)?;
    let _target = Target::start(&key)?;
    for (engine, words) in [
        ("nvme_tcp_timeout_ms=5000".to_owned(), "nvme_tcp_tls=required"),
        (format!("nvme_tcp_tls_key_file={other}"), "handshake_failure"),
        // OpenSSL 3.5 names a binder that is wrong so; 3.0 calls it illegal_parameter.
        (format!("nvme_tcp_tls_key_file={other},nvme_tcp_tls_identity=v0"), "decrypt_error"),
    ] {
        let output = command(&["cat", URI, "--len", "4k", "--engine", &engine])?;
        let text = String::from_utf8_lossy(&output.stderr);
        same(&format!("{words} in {text}"), &(text.contains(words) && output.stdout.is_empty()), &true)?;
    }
    Ok(())
}

/// `tlshd`, which the kernel asks for handshakes.
struct Daemon(Child);

impl Daemon {
    fn start(context: &Context) -> Result<Self, Stop> {
        let file = "/tmp/tlshd.conf";
        std::fs::write(file, "[debug]\nloglevel=1\ntls=0\nnl=0\n[authenticate]\nkeyrings=.nvme\n")?;
        let log = std::fs::File::create(LOG)?;
        let this = Self(Command::new(TLSHD).args(["-s", "-c", file]).stdout(log.try_clone()?).stderr(log).spawn()?);
        // Before it listens the kernel would find nobody to ask.
        context.until(Duration::from_secs(10), "tlshd says that it is there", || {
            read_text(Path::new(LOG)).ok().filter(|text| !text.is_empty())
        })?;
        Ok(this)
    }

    /// The verdict of a test, with what the daemon said beside a failure.
    fn beside(verdict: Verdict) -> Verdict {
        verdict.map_err(|stop| match stop {
            Stop::Fail(text) => {
                let log = read_text(Path::new(LOG)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(12).collect();
                Stop::Fail(format!("{text}; tlshd, the last first: {}", last.join(" | ")))
            }
            other => other,
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has `nvme-cli` make the key of both ends from the configured one in `file`, and give it to the kernel. What it made it with is its own.
fn know(file: &str, subsystem: &str, identity: &str) -> Result<(), Stop> {
    let (text, host) = (read_text(Path::new(file))?, host_name());
    let args = ["check-tls-key", "--insert", "--identity", identity, "--subsysnqn", subsystem, "--hostnqn", &host];
    let output = Command::new(NVME).args(args).args(["--keydata", text.trim()]).output()?;
    match output.status.success() {
        true => Ok(()),
        false => fail(format!("nvme check-tls-key: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn kernel_target(context: &Context) -> Verdict {
    Daemon::beside(at_kernels_target(context))
}

fn kernel_host(context: &Context) -> Verdict {
    Daemon::beside(kernels_host(context))
}

fn at_kernels_target(context: &Context) -> Verdict {
    fabrics::known()?;
    let _daemon = Daemon::start(context)?;
    let target = fabrics::Target::prepare()?;
    for (file, text) in [("addr_tsas", "tls1.3"), ("addr_treq", "required")] {
        write_text(&nvmet("ports/1").join(file), text)?;
    }
    target.offer()?;
    let content = block::pattern(SEED, 0, KERNEL_BYTES);
    std::fs::write("/tmp/content", &content)?;
    let (nqn, serial) = (fabrics::NQN, fabrics::SERIAL);
    let uri = format!("nvme+tcp://127.0.0.1:{}/{nqn}?nsid=1", fabrics::PORT);
    let (write, read) = (format!("{uri}&serial={serial}&offset=1MiB"), format!("{uri}&offset=1MiB&len=1MiB"));
    for (hash, identity, kernel, digests) in [
        ("sha256", "1", "required", "none"),
        ("sha256", "0", "off", "both"),
        ("sha384", "1", "off", "none"),
        ("sha384", "0", "required", "both"),
    ] {
        let key = make_key(hash)?;
        know(&key, nqn, identity)?;
        let before = counted("TlsRxSw")?;
        let engine = format!(
            "nvme_tcp_tls_key_file={key},nvme_tcp_tls_kernel={kernel},nvme_tcp_digests={digests},nvme_tcp_tls_identity=v{identity}"
        );
        target.backing()?.write_all_at(&vec![0; KERNEL_BYTES], 1 << 20)?;
        told(&["cp", "/tmp/content", &write, "--engine", &engine])?;
        let mut there = vec![0; KERNEL_BYTES];
        target.backing()?.read_exact_at(&mut there, 1 << 20)?;
        let which = format!("{hash}, identity {identity}, kernel {kernel}");
        same(&format!("what the kernel's target has with {which}"), &(there == content), &true)?;
        let got = told(&["cat", &read, "--engine", &engine])?;
        same(&format!("the bytes with {which}"), &(got == content), &true)?;
        let sockets = counted("TlsRxSw")? - before;
        context.fact(
            &json!({"hash": hash, "identity": identity, "kernel": kernel, "digests": digests, "sockets": sockets}),
        );
        same("sockets with TLS of the kernel", &(sockets > 0), &true)?;
    }
    let other = "/tmp/other.key".to_owned();
    std::fs::write(&other, told(&["nvme", "gen-tls-key"])?)?;
    for (what, engine) in [
        ("in the clear", "nvme_tcp_timeout_ms=5000".to_owned()),
        ("another key, under an identity of its own", format!("nvme_tcp_tls_key_file={other}")),
        ("another key, under the same identity", format!("nvme_tcp_tls_key_file={other},nvme_tcp_tls_identity=v0")),
    ] {
        let output = command(&["cat", &uri, "--len", "4k", "--engine", &engine])?;
        let text = String::from_utf8_lossy(&output.stderr);
        context.fact(&json!({"what": what, "told": text.trim()}));
        same(&format!("{what}: {text}"), &(output.status.success() || !output.stdout.is_empty()), &false)?;
    }
    Ok(())
}

fn kernels_host(context: &Context) -> Verdict {
    fabrics::known()?;
    let _daemon = Daemon::start(context)?;
    let address = LISTEN.parse().map_err(|_| Stop::Fail(format!("{LISTEN} is no address")))?;
    let keys = ["sha256", "sha384"].map(make_key);
    // The kernel takes the best key that it has: each of these is better than those before it (`nvme_tls_psk_prio`).
    for (hash, identity) in [(0, "0"), (1, "0"), (0, "1"), (1, "1")] {
        let Ok(key) = &keys[hash] else { return fail("no key") };
        let _target = Target::start(key)?;
        know(key, OURS, identity)?;
        let before = counted("TlsRxSw")?;
        let controller = connect_with(address, OURS, ",tls")?;
        let namespace = namespace_of(context, &controller)?;
        let content = block::pattern(SEED + hash as u64, 0, KERNEL_BYTES);
        let disk = std::fs::File::options().read(true).write(true).open(&namespace.node)?;
        disk.write_all_at(&content, 1 << 20)?;
        disk.sync_all()?;
        write_text(Path::new(&format!("/sys/class/nvme/{controller}/delete_controller")), "1")?;
        drop(disk);
        let read = format!("{URI}&offset=1MiB&len=1MiB");
        let got = told(&["cat", &read, "--engine", &format!("nvme_tcp_tls_key_file={key}")])?;
        same(&format!("what the kernel wrote with {key}, identity {identity}"), &(got == content), &true)?;
        let sockets = counted("TlsRxSw")? - before;
        context.fact(&json!({"key": key, "identity": identity, "sockets": sockets}));
        same("sockets with TLS of the kernel", &(sockets > 1), &true)?;
        if identity == "1" && hash == 1 {
            let clear = connect_with(address, OURS, "");
            context.fact(&json!({"in the clear": format!("{clear:?}")}));
            same("the kernel's initiator without TLS", &clear.is_ok(), &false)?;
        }
    }
    same("records that the kernel could not read", &counted("TlsDecryptError")?, &0)
}
