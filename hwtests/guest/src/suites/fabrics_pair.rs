//! Two guests and a wire: the command copies to and from our target on the other one, and the wire is cut meanwhile.
//!
//! The other guest serves from its start to its end (`hwtests/vm/init.sh`) and has no tests: what it holds is read back from here.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use serde_json::json;

use super::command::{good, start};
use super::fabrics::{SEED, busybox, known};
use crate::block;
use crate::context::{Context, read_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics-pair",
    tests: &[
        Test::new("copy", "files are copied to the other guest and from it, and are the same", copy)
            .bed_only()
            .limit_s(90),
        Test::new("cut", "a copy goes on when the wire that was cut is whole again, before KATO and past it", cut)
            .bed_only()
            .limit_s(90),
        Test::new("gone", "copies both ways end within their time, with the reason, if the wire stays cut", gone)
            .bed_only()
            .limit_s(90),
    ],
};

const MATE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 4420);
/// What the other guest serves (`hwtests/vm/init.sh`).
const TARGET: &str = "nqn.2026-11.io.straightway:target?nsid=1&serial=SWTARGET0001";
/// Bytes of a copy that is cut: a second's worth or more. No more than the other guest has.
const BYTES: usize = (4 << 20) + 4096;
/// So much of a copy was there before the wire is cut.
const BEFORE_CUT: u64 = 512 << 10;
const FROM: &str = "/tmp/pair-from";
const TO: &str = "/tmp/pair-to";
/// What a command is given up by that has lost its target: KATO, patience, and the tries in between.
const QUICK: &str = "nvme_tcp_keep_alive_ms=1000,nvme_tcp_patience_ms=3000,nvme_tcp_timeout_ms=1000";
/// Until such a command has ended, on a machine that has others to serve.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// The address of the first `len` bytes of what the other guest serves.
fn mate(len: usize) -> String {
    format!("nvme+tcp://{MATE}/{TARGET}&len={len}")
}

/// Sees to the wire and to the other end of it.
fn joined(context: &Context) -> Verdict {
    known()?;
    context.host("link", "wire up")?;
    busybox(&["ifconfig", "eth0", "10.0.0.1", "netmask", "255.255.255.0", "up"])?;
    let there = || TcpStream::connect_timeout(&MATE, Duration::from_millis(500)).ok();
    context.until(Duration::from_secs(60), "the other guest serves", there).map(drop)
}

/// Writes a file and gives what is in it.
fn file(seed: u64, len: usize) -> Result<Vec<u8>, Stop> {
    let content = block::pattern(seed, 0, len);
    std::fs::write(FROM, &content)?;
    drop(std::fs::remove_file(TO));
    Ok(content)
}

fn copied(content: &[u8]) -> Verdict {
    same("the bytes of the copy", &(std::fs::read(TO)? == content), &true)
}

fn copy(context: &Context) -> Verdict {
    joined(context)?;
    let content = file(SEED, BYTES)?;
    good(context, &["cp", FROM, &mate(BYTES)])?;
    good(context, &["cp", &mate(BYTES), TO])?;
    copied(&content)?;
    // Ends that are no whole blocks, by a process that knows nothing of the others.
    let cat = good(context, &["cat", &mate(BYTES), "--offset", "1001", "--len", "300001"])?;
    same("the bytes of a part", &(cat.stdout == content[1001..301_002]), &true)
}

/// Bytes that came and went by the wire so far.
fn carried() -> u64 {
    let of =
        |way: &str| read_text(Path::new(&format!("/sys/class/net/eth0/statistics/{way}_bytes"))).ok()?.parse().ok();
    of("rx").unwrap_or(0) + of("tx").unwrap_or(0_u64)
}

/// Starts a copy, and cuts the wire when some of it is there.
fn cut_in(context: &Context, args: &[&str]) -> Result<Child, Stop> {
    let before = carried();
    let child = start(args)?;
    let some = || (carried() > before + BEFORE_CUT).then_some(());
    context.until(Duration::from_secs(20), "some of the copy is there", some)?;
    context.host("link", "wire down")?;
    Ok(child)
}

/// Waits for the end of a command. One that has none is killed, and fails the test.
fn ended(mut child: Child, within: Duration) -> Result<Output, Stop> {
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > within {
            child.kill()?;
            return fail(format!("a command hangs: not ended within {within:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

fn cut(context: &Context) -> Verdict {
    joined(context)?;
    let content = file(SEED + 3, BYTES)?;
    good(context, &["cp", FROM, &mate(BYTES)])?;
    for (keep_alive_ms, cut_s) in [(10_000, 1), (1000, 4)] {
        drop(std::fs::remove_file(TO));
        let engine = format!("nvme_tcp_keep_alive_ms={keep_alive_ms}");
        let mut child = cut_in(context, &["cp", &mate(BYTES), TO, "--engine", &engine])?;
        std::thread::sleep(Duration::from_secs(cut_s));
        same("whether it waits", &child.try_wait()?.is_none(), &true)?;
        context.host("link", "wire up")?;
        let whole = Instant::now();
        let output = ended(child, ENDS_WITHIN)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        context.fact(&json!({"keep_alive_ms": keep_alive_ms, "cut_s": cut_s, "said": said,
            "ended_s_after": whole.elapsed().as_secs_f64()}));
        same("how it ended", &(output.status.code(), said), &(Some(0), String::new()))?;
        copied(&content)?;
    }
    Ok(())
}

fn gone(context: &Context) -> Verdict {
    joined(context)?;
    file(SEED + 4, BYTES)?;
    // A read waits for its target in vain; a write that was under way may still be carried out.
    for (from, to, codes, words) in
        [(mate(BYTES), TO.to_owned(), [8, 8], "no_device"), (FROM.to_owned(), mate(BYTES), [1, 8], "unknown")]
    {
        let child = cut_in(context, &["cp", &from, &to, "--engine", QUICK, "--json"])?;
        let begun = Instant::now();
        let output = ended(child, ENDS_WITHIN)?;
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        context.fact(&json!({"to": to, "exit": output.status.code(), "said": said,
            "ended_s_after": begun.elapsed().as_secs_f64()}));
        let is_told = output.status.code().is_some_and(|code| codes.contains(&code)) && said.contains(words);
        same(&format!("whether {said:?} tells it"), &is_told, &true)?;
        // Nothing of it is under the file's name; and all is well with the next one.
        same("a part of a file", &Path::new(TO).exists(), &false)?;
        joined(context)?;
    }
    let content = file(SEED + 5, 1 << 20)?;
    good(context, &["cp", FROM, &mate(1 << 20)])?;
    good(context, &["cp", &mate(1 << 20), TO])?;
    copied(&content)
}
