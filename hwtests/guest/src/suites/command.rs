//! The `straightway` command where there are real controllers: every command on a namespace, from binding it to giving it
//! back. What each run prints goes into the record, so that a document can quote a real one.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use straightway::{Engine, Memory, Uri};
use sw_mem::{Buffer, ByteLen};

use crate::block;
use crate::context::Context;
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};

pub const SUITE: Suite = Suite {
    name: "command",
    tests: &[
        Test::new("doctor", "doctor finds controllers, IOMMU and groups, and says what to bind", doctor).bed_only(),
        Test::new("bind", "bind says its steps, does them, and is refused where data is in use", bind).bed_only(),
        Test::new("copy", "bytes written to a namespace are read back the direct way", copy).bed_only().limit_s(60),
        Test::new("refusals", "what is wrong is told, with a remedy and its exit code", refusals)
            .bed_only()
            .limit_s(60),
        Test::new("peer-bar", "a checkpoint is loaded from a namespace into a peer's BAR", peer_bar)
            .bed_only()
            .limit_s(90),
        Test::new("bench", "bench measures a namespace and tells the way", bench).bed_only().limit_s(60),
        Test::new("one-owner", "a second process is told who has the controller", one_owner).bed_only().limit_s(60),
        Test::new("stripe", "two controllers are one object", stripe).bed_only().limit_s(60),
        Test::new(
            "transcript",
            "the way of docs/nvme.md: bind, plan, read into a peer's BAR, verify, give back",
            transcript,
        )
        .bed_only()
        .limit_s(90),
        Test::new("unbind", "after unbind the kernel reads the bytes that we wrote", unbind).bed_only(),
        Test::new("generic-node", "the same bytes by commands through the kernel's driver", generic_node).bed_only(),
    ],
};

/// Where a guest that carries it has it.
const PROGRAM: &str = "/bin/straightway";
const SERIAL_A: &str = "sw-a";
/// An odd length: the last block is ragged.
const BYTES: usize = 3 * 1024 * 1024 + 4321;
const OFFSET: u64 = 1 << 20;
const SEED: u64 = 0x5EED;

pub(super) fn start(args: &[&str]) -> Result<Child, Stop> {
    if !Path::new(PROGRAM).exists() {
        return skip("this guest carries no straightway");
    }
    Ok(Command::new(PROGRAM).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Runs the command and notes it in the record.
fn run(context: &Context, args: &[&str]) -> Result<Output, Stop> {
    let output = start(args)?.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(1500).collect::<String>();
    let shown = if args.first() == Some(&"cat") { String::new() } else { text(&output.stdout) };
    context
        .fact(&json!({"ran": args, "exit": output.status.code(), "said": shown, "complained": text(&output.stderr)}));
    Ok(output)
}

/// A run that must succeed.
pub(super) fn good(context: &Context, args: &[&str]) -> Result<Output, Stop> {
    let output = run(context, args)?;
    if !output.status.success() {
        return fail(format!("{args:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(output)
}

/// The JSON lines of a run that must succeed.
pub(super) fn json_of(context: &Context, args: &[&str]) -> Result<Vec<Value>, Stop> {
    let output = good(context, &[args, &["--json"]].concat())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// A run that must fail with an exit code and words.
pub(super) fn refused(context: &Context, args: &[&str], exit: i32, words: &[&str]) -> Verdict {
    let output = run(context, args)?;
    let told = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(exit) || !words.iter().all(|word| told.contains(word)) {
        return fail(format!("{args:?}: expected exit {exit} and {words:?}, got {} {told}", output.status));
    }
    Ok(())
}

/// The address of nvme-a, given to vfio-pci by the command.
fn bound(context: &Context, role: &str) -> Result<String, Stop> {
    let device = context.device(role)?;
    good(context, &["nvme", "bind", &device.address, "--yes"])?;
    Ok(device.address)
}

fn pattern(len: usize) -> Vec<u8> {
    block::pattern(SEED, 0, len)
}

fn doctor(context: &Context) -> Verdict {
    let devices = [context.device("nvme-a")?, context.device("nvme-b")?];
    for (device, count) in devices.iter().zip([2, 1]) {
        block::namespaces(context, device, count)?;
    }
    let output = start(&["doctor", "--json"])?.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    context.fact(&report);
    let facts = report.get("facts").and_then(Value::as_array).cloned().unwrap_or_default();
    let fact = |name: &str| facts.iter().find(|fact| fact["name"] == name).cloned().unwrap_or_default();
    same("the IOMMU's health", &fact("iommu")["health"], &json!("good"))?;
    same("VFIO's health", &fact("vfio")["health"], &json!("good"))?;
    for (device, serial) in devices.iter().zip([SERIAL_A, "sw-b"]) {
        let controller = fact(&format!("nvme.{}", device.address));
        let text = |field: &str| controller[field].as_str().unwrap_or_default().to_string();
        let group = format!("IOMMU group {}", device.iommu_group().unwrap_or_default());
        if !text("value").contains(serial) || !text("value").ends_with(&group) {
            return fail(format!("doctor does not know {serial} in {group}: {controller}"));
        }
        if !text("remedy").contains(&format!("straightway nvme bind {}", device.address)) {
            return fail(format!("doctor does not say how to bind {}: {controller}", device.address));
        }
    }
    // What it says to do can be done, and is then not said again.
    good(context, &["nvme", "bind", &devices[1].address, "--yes"])?;
    let output = start(&["doctor", "--json"])?.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    good(context, &["nvme", "unbind", &devices[1].address, "--yes"])?;
    same("said again", &told.contains(&format!("nvme bind {}", devices[1].address)), &false)
}

fn bind(context: &Context) -> Verdict {
    let device = context.device("nvme-a")?;
    device.bind("nvme")?;
    let found = block::namespaces(context, &device, 2)?;
    let listed = json_of(context, &["nvme", "list"])?;
    let line = listed.iter().find(|line| line["address"] == device.address.as_str()).cloned().unwrap_or_default();
    same("namespaces listed", &line["namespaces"].as_array().map(Vec::len), &Some(found.len()))?;
    same("serial", &line["serial"], &json!(SERIAL_A))?;
    let dry = json_of(context, &["nvme", "bind", &device.address, "--dry-run"])?;
    same("done by a dry run", &dry.first().map(|line| line["done"].clone()), &Some(json!(false)))?;
    same("driver after a dry run", &device.driver().as_deref(), &Some("nvme"))?;
    refused(context, &["nvme", "bind", &device.address], 2, &["--yes"])?;
    let done = json_of(context, &["nvme", "bind", &device.address, "--yes"])?;
    let done = done.first().cloned().unwrap_or_default();
    same("done", &done["done"], &json!(true))?;
    same("undo", &done["undo"], &json!(format!("straightway nvme unbind {}", device.address)))?;
    same("driver", &device.driver().as_deref(), &Some("vfio-pci"))
}

fn copy(context: &Context) -> Verdict {
    let address = bound(context, "nvme-a")?;
    std::fs::write("/tmp/source", pattern(BYTES))?;
    // Both block sizes.
    for nsid in [1, 2] {
        let whole = format!("nvme://{address}/{nsid}");
        let part = format!("{whole}?serial={SERIAL_A}&offset={OFFSET}");
        let report = json_of(context, &["cp", "/tmp/source", &part])?;
        let report = report.last().cloned().unwrap_or_default();
        same("verified", &report["verified"], &json!(true))?;
        for routes in ["write_routes", "verify_routes"] {
            let ways = report[routes].as_array().cloned().unwrap_or_default();
            if ways.is_empty() || !ways.iter().all(|way| way["route"] == "nvme/dma") {
                return fail(format!("{routes} on namespace {nsid}: {ways:?}"));
            }
        }
        let len = BYTES.to_string();
        let back = good(context, &["cat", &part, "--len", &len])?;
        if back.stdout != pattern(BYTES) {
            return fail(format!("cat of namespace {nsid} gives other bytes"));
        }
        // Odd at both ends: two blocks are bounced, the core is direct.
        let odd = json_of_cat(context, &["cat", &whole, "--offset", "1048777", "--len", "700001"])?;
        if odd.0 != pattern(BYTES)[201..700_202] {
            return fail(format!("cat at an odd offset of namespace {nsid} gives other bytes"));
        }
        good(context, &["cp", &format!("{whole}?offset=0&len=8MiB"), "/tmp/back", "--json"])?;
        let image = std::fs::read("/tmp/back")?;
        let at = usize::try_from(OFFSET)?;
        if image.get(at..at + BYTES) != Some(&pattern(BYTES)[..]) {
            return fail(format!("the copy of a part of namespace {nsid} has other bytes"));
        }
        std::fs::remove_file("/tmp/back")?;
    }
    json_of(context, &["stat", &format!("nvme://{address}/1"), &format!("nvme://{address}/2")]).map(drop)
}

/// The bytes of a `cat` and its report, which is on stderr.
fn json_of_cat(context: &Context, args: &[&str]) -> Result<(Vec<u8>, Value), Stop> {
    let output = good(context, &[args, &["--json"]].concat())?;
    let report = String::from_utf8_lossy(&output.stderr).lines().last().map(serde_json::from_str).transpose()?;
    Ok((output.stdout, report.unwrap_or_default()))
}

fn refusals(context: &Context) -> Verdict {
    let address = bound(context, "nvme-a")?;
    std::fs::write("/tmp/source", pattern(8192))?;
    let at = |rest: &str| format!("nvme://{address}/{rest}");
    refused(context, &["cp", "/tmp/source", &at("1")], 2, &["serial", &format!("?serial={SERIAL_A}")])?;
    refused(context, &["cp", "/tmp/source", &at("1?serial=other")], 1, &["serial number sw-a"])?;
    let whole = at(&format!("1?serial={SERIAL_A}"));
    refused(context, &["cp", "/tmp/source", &whole], 2, &["no place to write to", "in quotes"])?;
    let (from, to) = (at("1?offset=0&len=1MiB"), format!("{whole}&offset=4MiB"));
    refused(context, &["cp", &from, &to], 2, &["same object"])?;
    refused(context, &["cp", "/tmp/source", &format!("{whole}&offset=100")], 2, &["whole blocks of 512"])?;
    refused(context, &["cp", "/tmp/source", &format!("{whole}&offset=0&len=8000")], 7, &["nothing was written"])?;
    refused(context, &["cat", &at("9")], 3, &["no active namespace 9", "1, 2"])?;
    refused(context, &["cat", &at("1?offset=1TiB")], 1, &["has 67108864 bytes"])?;
    refused(context, &["cat", "nvme://0000:7f:00.0/1"], 8, &["no PCI function"])?;
    refused(
        context,
        &["plan", &at("1"), "--policy", "require=kernel-copy"],
        5,
        &["POLICY_EXCLUDES", "straightway plan"],
    )?;
    refused(context, &["cat", &at("1"), "--engine", "nvme=off"], 8, &["nvme=auto"])
}

/// A safetensors file with one tensor of `len` bytes.
pub(super) fn checkpoint(len: usize) -> Vec<u8> {
    let header = format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{len}],\"data_offsets\":[0,{len}]}}}}");
    let padded = format!("{header:<width$}", width = 4096 - 8);
    [&(padded.len() as u64).to_le_bytes()[..], padded.as_bytes(), &pattern(len)].concat()
}

/// The digest of the only tensor of a `load --digest --json`.
pub(super) fn digest(lines: &[Value]) -> Option<Value> {
    lines.iter().find(|line| line["schema"] == "straightway.load.tensor/1").map(|line| line["sha256"].clone())
}

fn peer_bar(context: &Context) -> Verdict {
    let (address, peer) = (bound(context, "nvme-a")?, bound(context, "peer")?);
    let file = checkpoint(2 << 20);
    std::fs::write("/tmp/model.safetensors", &file)?;
    let whole = format!("nvme://{address}/1?serial={SERIAL_A}&offset=8MiB");
    good(context, &["cp", "/tmp/model.safetensors", &whole])?;
    let part = format!("{whole}&len={}", file.len());
    let bar = format!("bar:{peer}/2");
    let plan = json_of(context, &["plan", &part, "--into", &bar, "--policy", "require=dma"])?;
    same("planned route", &plan.first().map(|plan| plan["choice"]["route"].clone()), &Some(json!("nvme/dma")))?;
    plan_leaves_the_bar_alone(context, &part, &peer, &bar)?;
    let host = json_of(context, &["load", "/tmp/model.safetensors", "--digest"])?;
    let there = json_of(context, &["load", &part, "--into", &bar, "--digest", "--policy", "require=dma"])?;
    same("digest of the tensor in the BAR", &digest(&there), &digest(&host))?;
    let staged = json_of(context, &["load", &part, "--into", &bar, "--digest", "--policy", "require=staged"])?;
    same("digest after the staged way", &digest(&staged), &digest(&host))?;
    let from_file = json_of(context, &["load", "/tmp/model.safetensors", "--into", &bar, "--digest"])?;
    same("digest after the way from a file", &digest(&from_file), &digest(&host))
}

/// Planning opens nothing: it works while somebody else has the only handle of the function's group.
fn plan_leaves_the_bar_alone(context: &Context, part: &str, peer: &str, bar: &str) -> Verdict {
    let group = std::fs::canonicalize(format!("/sys/bus/pci/devices/{peer}/iommu_group"))?;
    let group = Path::new("/dev/vfio").join(group.file_name().unwrap_or_default());
    let held = std::fs::File::options().read(true).write(true).open(&group)?;
    let plan = json_of(context, &["plan", part, "--into", bar])?;
    let plan = plan.first().cloned().unwrap_or_default();
    same("planned without opening it", &plan["reach"]["self_test"], &json!("at-first-use"))?;
    refused(context, &["load", part, "--into", bar], 10, &[])?;
    drop(held);
    refused(context, &["plan", part, "--into", &format!("bar:{peer}/5")], 8, &["no memory BAR", "prefetchable"])
}

fn bench(context: &Context) -> Verdict {
    let address = bound(context, "nvme-a")?;
    let uri = format!("nvme://{address}/1");
    for completion in ["polled", "interrupt", "hybrid"] {
        let engine = format!("nvme_completion={completion}");
        let args =
            ["bench", "read", &uri, "--size", "4k", "--depth", "1,32", "--random", "--time", "1s", "--no-ceiling"];
        let report = json_of(context, &[&args[..], &["--engine", &engine]].concat())?;
        let cells = report.last().and_then(|report| report["cells"].as_array()).cloned().unwrap_or_default();
        same("cells", &cells.len(), &2)?;
        for cell in cells {
            let ways = cell["routes"].as_array().cloned().unwrap_or_default();
            if ways.len() != 1 || !ways.iter().all(|way| way["route"] == "nvme/dma" && way["reason"] == "BEST") {
                return fail(format!("{completion}: {ways:?}"));
            }
        }
    }
    Ok(())
}

fn one_owner(context: &Context) -> Verdict {
    let address = bound(context, "nvme-a")?;
    let uri = format!("nvme://{address}/1");
    let args = ["bench", "read", &uri, "--size", "4k", "--time", "20s", "--no-ceiling"];
    let mut first = start(&args)?;
    let result = owner_is_told(context, &uri, first.id());
    let _ = first.kill();
    let output = first.wait_with_output()?;
    if let Err(Stop::Fail(reason)) = result {
        let text = String::from_utf8_lossy(&output.stderr);
        return fail(format!("{reason}; the first process: {} {text}", output.status));
    }
    // What a killed process leaves is no obstacle.
    good(context, &["cat", &uri, "--len", "4k"]).map(drop)
}

fn owner_is_told(context: &Context, uri: &str, first: u32) -> Verdict {
    let holds = || {
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        locks.lines().any(|line| line.split_whitespace().any(|word| word == first.to_string())).then_some(())
    };
    context.until(Duration::from_secs(15), "the first process has the controller", holds)?;
    let output = Command::new(PROGRAM).args(["cat", uri, "--len", "4k"]).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    same("exit code of the second process", &output.status.code(), &Some(10))?;
    context.fact(&json!({"complained": told}));
    if told.contains(&format!("process {first}")) && told.contains("one owner") { Ok(()) } else { fail(told) }
}

fn stripe(context: &Context) -> Verdict {
    let (first, second) = (bound(context, "nvme-a")?, bound(context, "nvme-b")?);
    std::fs::write("/tmp/source", pattern(1 << 20))?;
    for (address, serial, half) in [(&first, SERIAL_A, 0), (&second, "sw-b", 1)] {
        let units: Vec<u8> = pattern(1 << 20).chunks(65_536).skip(half).step_by(2).flat_map(<[u8]>::to_vec).collect();
        std::fs::write("/tmp/half", units)?;
        good(context, &["cp", "/tmp/half", &format!("nvme://{address}/1?serial={serial}&offset=0")])?;
    }
    let set = format!("stripe:64KiB:nvme://{first}/1,nvme://{second}/1");
    let (bytes, report) = json_of_cat(context, &["cat", &set, "--len", "1MiB"])?;
    let ways = report["routes"].as_array().cloned().unwrap_or_default();
    if bytes != pattern(1 << 20) || !ways.iter().all(|way| way["route"] == "nvme/dma") {
        return fail(format!("the set gives other bytes, or by another way: {ways:?}"));
    }
    written_set(context, [(first.as_str(), SERIAL_A), (second.as_str(), "sw-b")])?;
    good(context, &["nvme", "unbind", &second, "--yes"]).map(drop)
}

/// `cp` does not write to a set, a program does: each unit is then on the controller that has its turn.
fn written_set(context: &Context, members: [(&str, &str); 2]) -> Verdict {
    const UNIT: usize = 64 << 10;
    let members = members.map(|(address, serial)| format!("nvme://{address}/1?serial={serial}"));
    let set = format!("stripe:{UNIT}:{}", members.join(","));
    refused(context, &["cp", "/tmp/source", &set], 8, &["a stripe set", "members"])?;
    let bytes = block::pattern(SEED + 1, 0, 1 << 20);
    let mut buffer = Buffer::allocate(ByteLen(bytes.len() as u64))?;
    buffer.as_mut_slice().copy_from_slice(&bytes);
    let (engine, direct) = (Engine::builder().build()?, straightway::parse_policy("require=dma")?);
    let object = engine.open_for_update(&set.parse::<Uri>()?)?;
    let done = engine.write(&object, 0, Memory::from(buffer)).policy(direct).wait().ok()?;
    context.fact(&json!({"set": set, "way": done.path.to_string()}));
    same("bytes written", &done.result?, &(bytes.len() as u64))?;
    engine.flush(&object).wait().ok()?;
    engine.close()?;
    for (half, member) in members.iter().enumerate() {
        let units: Vec<u8> = bytes.chunks(UNIT).skip(half).step_by(2).flat_map(<[u8]>::to_vec).collect();
        let there = good(context, &["cat", member, "--len", &units.len().to_string()])?;
        same(&format!("units on {member}"), &(there.stdout == units), &true)?;
    }
    Ok(())
}

/// As a person would do it: text, one command after the other. The record has all that was printed.
fn transcript(context: &Context) -> Verdict {
    let (device, peer) = (context.device("nvme-a")?, context.device("peer")?);
    for device in [&device, &peer] {
        if device.driver().as_deref() == Some("vfio-pci") {
            good(context, &["nvme", "unbind", &device.address, "--yes"])?;
        }
    }
    block::namespaces(context, &device, 2)?;
    let file = checkpoint(2 << 20);
    std::fs::write("/tmp/model.safetensors", &file)?;
    let namespace = format!("nvme://{}/1", device.address);
    let part = format!("{namespace}?serial={SERIAL_A}&offset=8MiB&len={}", file.len());
    let bar = format!("bar:{}/2", peer.address);
    let digest = ["load", "/tmp/model.safetensors", "--digest"];
    let before = good(context, &digest)?;
    good(context, &["nvme", "list"])?;
    good(context, &["nvme", "bind", &device.address, "--yes"])?;
    good(context, &["nvme", "bind", &peer.address, "--yes"])?;
    good(context, &["cp", "/tmp/model.safetensors", &part])?;
    good(context, &["plan", &part, "--into", &bar, "--policy", "require=dma"])?;
    let there = good(context, &["load", &part, "--into", &bar, "--policy", "require=dma", "--digest"])?;
    good(context, &["nvme", "unbind", &device.address, "--yes"])?;
    good(context, &["nvme", "unbind", &peer.address, "--yes"])?;
    let sum = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().find(|word| word.len() == 64).map(String::from)
    };
    match (sum(&before), sum(&there)) {
        (Some(before), Some(there)) => same("digest", &there, &before),
        sums => fail(format!("no digests: {sums:?}")),
    }
}

fn generic_node(context: &Context) -> Verdict {
    let device = context.device("nvme-a")?;
    let found = block::namespaces(context, &device, 2)?;
    for namespace in &found {
        let node = namespace.node.to_string_lossy().into_owned();
        let generic = node.replacen("nvme", "ng", 1);
        context.until(Duration::from_secs(5), &generic, || Path::new(&generic).exists().then_some(()))?;
        let (offset, len) = (OFFSET.to_string(), "700001");
        let plain = good(context, &["cat", &node, "--offset", &offset, "--len", len])?;
        let (bytes, report) = json_of_cat(context, &["cat", &generic, "--offset", &offset, "--len", len])?;
        let ways = report["routes"].as_array().cloned().unwrap_or_default();
        if bytes != plain.stdout || !ways.iter().all(|way| way["route"] == "nvme-passthrough/dma") {
            return fail(format!("{generic}: other bytes than {node}, or another way: {ways:?}"));
        }
    }
    Ok(())
}

fn unbind(context: &Context) -> Verdict {
    let address = bound(context, "nvme-a")?;
    std::fs::write("/tmp/source", pattern(BYTES))?;
    good(context, &["cp", "/tmp/source", &format!("nvme://{address}/1?serial={SERIAL_A}&offset={OFFSET}")])?;
    good(context, &["nvme", "unbind", &address, "--yes"])?;
    let device = context.device("nvme-a")?;
    let found = block::namespaces(context, &device, 2)?;
    let Some(namespace) = found.iter().find(|namespace| namespace.nsid == 1) else { return fail("no namespace 1") };
    let node = namespace.node.to_string_lossy().into_owned();
    let (offset, len) = (OFFSET.to_string(), BYTES.to_string());
    let back = good(context, &["cat", &node, "--offset", &offset, "--len", &len])?;
    if back.stdout == pattern(BYTES) { Ok(()) } else { fail("the kernel reads other bytes than were written") }
}
