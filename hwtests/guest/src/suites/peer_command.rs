//! The `straightway` command into memory of another device (`p2pmem:ADDRESS`): planned from the PCI tree before anything is
//! tried, moved in place where a drive reaches it, and moved right by another way, with the reason, where none does.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use sw_uring::{Machine, peer};

use crate::context::Context;
use crate::file_system;
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};
use crate::suites::command::{checkpoint, digest, good, json_of, refused};
use crate::suites::passthrough::generic;
use crate::suites::peer_dma::{address, lend, namespace, path};

pub const SUITE: Suite = Suite {
    name: "peer-command",
    tests: &[
        Test::new("doctor", "doctor says how the memory is named, and which drives reach it", doctor).bed_only(),
        Test::new("across", "a checkpoint goes from a drive under the same switch into it in place", across)
            .bed_only()
            .limit_s(60),
        Test::new("other-port", "from another root port it is refused before trying, and goes another way", other_port)
            .bed_only()
            .limit_s(60),
        Test::new("commands", "commands through the kernel's driver bring the same bytes", commands)
            .bed_only()
            .limit_s(60),
        Test::new("bench", "reads and writes of a file are measured with their way", bench).bed_only().limit_s(60),
        Test::new("all-of-it", "a program that takes all of the memory is still tested for", all_of_it).bed_only(),
        Test::new("wrong", "what gives no memory out is refused with what to do", wrong).bed_only(),
    ],
};

/// Bytes of the tensor.
const TENSOR: usize = 2 << 20;
const NO_SWITCH: &str = "P2P_NO_COMMON_SWITCH";

/// The destination; a skip where the kernel has no such memory.
fn destination(context: &Context) -> Result<String, Stop> {
    drop(lend(context, 4096)?);
    Ok(format!("p2pmem:{}", address(context, "nvme-cmb")?))
}

/// Puts a checkpoint at the start of a drive's namespace, past the page cache of whoever reads next. Gives its node and the
/// digest of its tensor in host memory.
fn stored(context: &Context, role: &str) -> Result<(String, Option<Value>), Stop> {
    let file = checkpoint(TENSOR);
    std::fs::write("/tmp/model.safetensors", &file)?;
    let node = path(&namespace(context, role)?);
    let device = File::options().write(true).open(&node)?;
    device.write_all_at(&file, 0)?;
    device.sync_all()?;
    drop(device);
    std::fs::write("/proc/sys/vm/drop_caches", "1")?;
    let host = json_of(context, &["load", "/tmp/model.safetensors", "--digest"])?;
    Ok((node, digest(&host)))
}

/// As a part, so that nothing is read behind it.
fn part(node: &str) -> String {
    format!("file://{node}?offset=0&len={}", TENSOR + 4096)
}

fn plan(context: &Context, uri: &str, into: &str) -> Result<Value, Stop> {
    Ok(json_of(context, &["plan", uri, "--into", into])?.into_iter().next().unwrap_or_default())
}

/// Loads and compares; gives the ways of the whole.
fn load(context: &Context, uri: &str, into: &str, policy: &str, want: &Option<Value>) -> Result<Vec<Value>, Stop> {
    let lines = json_of(context, &["load", uri, "--into", into, "--policy", policy, "--digest"])?;
    same("digest of the tensor", &digest(&lines), want)?;
    Ok(lines.last().and_then(|line| line["routes"].as_array()).cloned().unwrap_or_default())
}

fn all_ways(ways: &[Value], route: &str, reason: &str) -> Verdict {
    match !ways.is_empty() && ways.iter().all(|way| way["route"] == route && way["reason"] == reason) {
        true => Ok(()),
        false => fail(format!("expected {route} because of {reason}, got {ways:?}")),
    }
}

fn complaints(context: &Context) -> Vec<String> {
    context.kernel_log().into_iter().filter(|line| line.contains("peer-to-peer")).collect()
}

fn doctor(context: &Context) -> Verdict {
    let into = destination(context)?;
    let report = json_of(context, &["doctor"])?.into_iter().next().unwrap_or_default();
    let facts = report["facts"].as_array().cloned().unwrap_or_default();
    match facts.iter().any(|fact| fact["value"].as_str().is_some_and(|value| value.contains(&into))) {
        true => Ok(()),
        false => fail(format!("no fact names {into}")),
    }
}

fn across(context: &Context) -> Verdict {
    let into = destination(context)?;
    let (node, want) = stored(context, "nvme-near")?;
    let planned = plan(context, &node, &into)?;
    same("in place", &planned["reach"]["in_place"], &json!(true))?;
    same("the tree", &planned["reach"]["tree"], &json!("reaches it across 4 links, without the host bridge"))?;
    same("nothing was tested", &planned["reach"]["self_test"], &json!("at-first-use"))?;
    same("route", &planned["choice"]["route"], &json!("io_uring/dma"))?;
    all_ways(&load(context, &part(&node), &into, "require=dma", &want)?, "io_uring/dma", "BEST")?;
    // By the thread pool too.
    let threads = ["load", &part(&node), "--into", &into, "--policy", "require=dma", "--digest"];
    let lines = json_of(context, &[&threads[..], &["--engine", "io_uring=off"]].concat())?;
    same("digest by the thread pool", &digest(&lines), &want)
}

fn other_port(context: &Context) -> Verdict {
    let into = destination(context)?;
    let (node, want) = stored(context, "nvme-a")?;
    drop(context.kernel_log());
    let planned = plan(context, &node, &into)?;
    same("not in place", &planned["reach"]["reason"], &json!(NO_SWITCH))?;
    same("route", &planned["choice"]["route"], &json!("io_uring/kernel-copy"))?;
    same("reason", &planned["choice"]["reason"], &json!(NO_SWITCH))?;
    refused(context, &["plan", &node, "--into", &into, "--policy", "require=dma"], 5, &[NO_SWITCH])?;
    refused(context, &["load", &part(&node), "--into", &into, "--policy", "require=dma"], 5, &[NO_SWITCH])?;
    all_ways(&load(context, &part(&node), &into, "any", &want)?, "io_uring/kernel-copy", NO_SWITCH)?;
    all_ways(&load(context, &part(&node), &into, "require=staged", &want)?, "io_uring/staged", NO_SWITCH)?;
    same("the kernel was not asked", &complaints(context), &Vec::new())
}

fn commands(context: &Context) -> Verdict {
    let into = destination(context)?;
    let (near, want) = stored(context, "nvme-near")?;
    let node =
        |role| -> Result<String, Stop> { Ok(generic(&namespace(context, role)?)?.to_string_lossy().into_owned()) };
    let ways = load(context, &part(&node("nvme-near")?), &into, "any", &want)?;
    context.fact(&json!({"near": near, "by commands": ways}));
    all_ways(&ways, "nvme-passthrough/dma", "BEST")?;
    let (_, want) = stored(context, "nvme-a")?;
    let far = part(&node("nvme-a")?);
    // A namespace's generic node has no page cache: a slab is the other way.
    all_ways(&load(context, &far, &into, "any", &want)?, "nvme-passthrough/staged", NO_SWITCH)
}

fn bench(context: &Context) -> Verdict {
    let into = destination(context)?;
    file_system::mounted(&namespace(context, "nvme-near")?, |directory| {
        let file = directory.join("file").to_string_lossy().into_owned();
        let size = ["--size", "64k", "--depth", "4", "--bytes", "2MiB", "--no-ceiling", "--policy", "require=dma"];
        // The pattern comes from host memory, so that the reads below can be verified.
        good(
            context,
            &["bench", "write", &file, "--file-size", "2MiB", "--verify", "--keep", "--bytes", "2MiB", "--no-ceiling"],
        )?;
        let read = ["bench", "read", &file, "--into", &into, "--verify"];
        let write = ["bench", "write", "/mnt/other", "--into", &into, "--file-size", "2MiB"];
        for args in [&read[..], &write] {
            let report = json_of(context, &[args, &size].concat())?;
            let cell = report.last().map(|report| report["cells"][0].clone()).unwrap_or_default();
            let ways = cell["routes"].as_array().cloned().unwrap_or_default();
            all_ways(&ways, "io_uring/dma", "BEST")?;
        }
        Ok(())
    })
}

/// Bytes of one operation where memory is short.
const SIZE: u64 = 256 << 10;

fn all_of_it(context: &Context) -> Verdict {
    let into = destination(context)?;
    let cmb = address(context, "nvme-cmb")?;
    let found = peer::providers(&Machine::this()).into_iter().find(|one| one.address == cmb);
    let Some(provider) = found else { return fail("no provider") };
    // All but what one operation takes, and what the engine keeps for its self-tests.
    let others = lend(context, provider.available - peer::SELF_TEST_BYTES.0 - SIZE)?;
    let size = SIZE.to_string();
    let node = path(&namespace(context, "nvme-near")?);
    let args = ["bench", "read", &node, "--into", &into, "--size", &size, "--depth", "1", "--bytes", &size];
    let report = json_of(context, &[&args[..], &["--policy", "require=dma", "--no-ceiling"]].concat())?;
    let cell = report.last().map(|report| report["cells"][0].clone()).unwrap_or_default();
    drop(others);
    all_ways(cell["routes"].as_array().map_or(&[], Vec::as_slice), "io_uring/dma", "BEST")
}

fn wrong(context: &Context) -> Verdict {
    drop(lend(context, 4096)?);
    let node = path(&namespace(context, "nvme-near")?);
    let none = format!("p2pmem:{}", address(context, "nvme-near")?);
    let bench = ["bench", "read", &node, "--into", &none, "--no-ceiling"];
    for args in [&["plan", &node, "--into", &none][..], &bench] {
        refused(context, args, 8, &["NO_P2PDMA", "CONFIG_PCI_P2PDMA"])?;
    }
    refused(context, &["plan", &node, "--into", "p2pmem:3b"], 2, &["p2pmem:PCI-ADDRESS"])
}
