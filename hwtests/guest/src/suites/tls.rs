//! TLS over NVMe/TCP with the kernel doing it, at our end and at both: the command, linked dynamically, since OpenSSL is loaded when it runs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::json;

use crate::block;
use crate::context::{Context, read_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "tls",
    tests: &[
        Test::new("kernel", "bytes are the same whether kernel or library does TLS, and their way is told", kernel)
            .bed_only()
            .limit_s(180),
        Test::new("refused", "without the key, with another, and in the clear nothing is read", refused)
            .bed_only()
            .limit_s(60),
    ],
};

/// The command, which the host built for the C library of the archive.
const COMMAND: &str = "/bin/straightway-dynamic";
const LISTEN: &str = "127.0.0.1:4430";
const URI: &str = "nvme+tcp://127.0.0.1:4430/nqn.2026-11.io.straightway:target?nsid=1";
const BYTES: usize = 4 << 20;
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
        let args = ["target", "memory:16MiB", "--tls-key-file", key, "--listen", LISTEN];
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
    let (write, read) = (format!("{URI}&serial=SWTARGET0001&offset=1MiB"), format!("{URI}&offset=1MiB&len=4MiB"));
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
        (format!("nvme_tcp_tls_key_file={other},nvme_tcp_tls_identity=v0"), "illegal_parameter"),
    ] {
        let output = command(&["cat", URI, "--len", "4k", "--engine", &engine])?;
        let text = String::from_utf8_lossy(&output.stderr);
        same(&format!("{words} in {text}"), &(text.contains(words) && output.stdout.is_empty()), &true)?;
    }
    Ok(())
}
