//! `straightway hwtest --profile FILE` as a person with a real machine runs it: the guest's controllers are that machine, and
//! the profile names them by address and serial. What it proves is the gate in front of destructive tests, the giving
//! back, and the record, which is kept as facts of this one.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::block::{self, Namespace};
use crate::context::Context;
use crate::file_system;
use crate::pci::Device;
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};

pub const SUITE: Suite = Suite {
    name: "hwtest",
    tests: &[
        Test::new("looks", "without the flag nothing is written, no driver changed, and each skip says why", looks)
            .bed_only()
            .limit_s(60),
        Test::new("misuse", "a profile that cannot be meant is refused with a remedy and its exit code", misuse)
            .bed_only(),
        Test::new("wrong-serial", "a device with another serial is left alone, whatever the flag says", wrong_serial)
            .bed_only()
            .limit_s(120),
        Test::new("mounted", "a device in use is left alone, and by whom is told", mounted).bed_only().limit_s(120),
        Test::new("destructive", "with flag and serials the suites run, and every device is given back", destructive)
            .bed_only()
            .limit_s(300),
        Test::new("one-namespace", "a drive with one namespace runs what needs no second one, and fails nothing", one)
            .bed_only()
            .limit_s(180),
    ],
};

const PROGRAM: &str = "/bin/straightway";
/// Where the guest has the program with the tests: the command looks for it beside itself and in PATH.
const PATH: &str = "/sw:/bin:/usr/bin";
const PROFILE: &str = "/tmp/machine.json";
const RECORD: &str = "/tmp/record.json";
/// Tests of one fact: a fact has a line of limited length.
const TESTS_A_FACT: usize = 12;
/// Where most tests write, and what stands there before.
const AT: u64 = 8 << 20;
const MARK: u64 = 0x41;
const MARK_BYTES: usize = 1 << 20;
/// Harmless tests of the suites that are run here.
const HARMLESS: [&str; 4] = ["bed.kernel-log", "bed.groups", "passthrough.few-calls", "passthrough.not-a-namespace"];
/// Destructive ones that need nothing but the two controllers.
const DESTRUCTIVE: [&str; 19] = [
    "bed.kernel-io",
    "bed.vfio-and-back",
    "vfio.bind-and-undo",
    "vfio.claim-twice",
    "vfio.facts",
    "vfio.identify",
    "vfio.interop",
    "vfio.interrupts",
    "vfio.reset",
    "vfio-transport.polled",
    "vfio-transport.interrupts",
    "vfio-transport.hybrid",
    "driver-io.commands",
    "driver-io.page-offsets",
    "driver-io.list-boundaries",
    "driver-load.depths",
    "driver-load.queues",
    "driver-load.reset",
    "driver-load.function-reset",
];
/// Of these, what a run of the first suites has.
const FIRST: usize = 9;

/// The two controllers, at the kernel's driver.
fn controllers(context: &Context) -> Result<[(Device, Vec<Namespace>); 2], Stop> {
    if !Path::new(PROGRAM).exists() {
        return skip("this guest carries no straightway");
    }
    let ready = |role, count| -> Result<(Device, Vec<Namespace>), Stop> {
        let device = context.device(role)?;
        let found = block::namespaces(context, &device, count)?;
        Ok((device, found))
    };
    Ok([ready("nvme-a", 2)?, ready("nvme-b", 1)?])
}

/// Writes a profile of the guest's machine. `serial_b` is what it says of nvme-b.
fn profile(context: &Context, suites: &[&str], serial_b: &str) -> Verdict {
    let (a, b, peer) = (context.device("nvme-a")?, context.device("nvme-b")?, context.device("peer")?);
    let text = json!({"name": "guest", "suites": suites, "roles": {
        "nvme-a": {"address": a.address, "serial": "sw-a"},
        "nvme-b": {"address": b.address, "serial": serial_b},
        "peer": {"address": peer.address, "bar": 2},
    }});
    Ok(std::fs::write(PROFILE, text.to_string())?)
}

fn run(args: &[&str]) -> Result<Output, Stop> {
    let _ = std::fs::remove_file(RECORD);
    let words = [&["hwtest", "--profile", PROFILE, "--record", RECORD], args].concat();
    Ok(Command::new(PROGRAM).args(words).env("PATH", PATH).output()?)
}

/// A run that ends well, and its record, which this one keeps.
fn recorded(context: &Context, args: &[&str]) -> Result<Value, Stop> {
    let output = run(args)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let bad: Vec<&str> =
            told.lines().filter(|line| line.starts_with("fail") || line.contains("NOT given")).collect();
        let complained = String::from_utf8_lossy(&output.stderr);
        return fail(format!("{}: {}: {}", output.status, bad.join("; "), complained.trim()));
    }
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(RECORD)?)?;
    let lists = ["tests", "facts"].map(|name| record[name].take().as_array().cloned().unwrap_or_default());
    let last = told.lines().last().unwrap_or_default();
    context.fact(&json!({"ran": args, "said_last": last, "record": record}));
    for tests in lists[0].chunks(TESTS_A_FACT) {
        context.fact(&json!({"record_tests": tests}));
    }
    for fact in &lists[1] {
        context.fact(&json!({"record_fact": fact}));
    }
    let [tests, facts] = lists;
    record["tests"] = tests.into();
    record["facts"] = facts.into();
    same("schema", &record["schema"], &json!("straightway.hwtest/1"))?;
    Ok(record)
}

/// End and reason of a test in a record.
fn ended<'a>(record: &'a Value, name: &str) -> (&'a str, &'a str) {
    let tests = record["tests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = tests.iter().find(|test| test["name"] == name);
    let text = |field| found.and_then(|test| test[field].as_str()).unwrap_or_default();
    (text("end"), text("reason"))
}

/// Fails unless each of the tests was skipped, for a reason with all these words.
fn skipped(record: &Value, names: &[&str], words: &[&str]) -> Verdict {
    for name in names {
        let (end, reason) = ended(record, name);
        if end != "skip" || !words.iter().all(|word| reason.contains(word)) {
            return fail(format!("{name}: {end:?} {reason:?}, expected a skip that says {words:?}"));
        }
    }
    Ok(())
}

fn all_ok(record: &Value, names: &[&str]) -> Verdict {
    names.iter().try_for_each(|name| same(name, &ended(record, name), &("ok", "")))
}

/// Both controllers are where they were.
fn at_the_kernel(devices: &[(Device, Vec<Namespace>)]) -> Verdict {
    devices.iter().try_for_each(|(device, _)| same(&device.address, &device.driver().as_deref(), &Some("nvme")))
}

fn looks(context: &Context) -> Verdict {
    let devices = controllers(context)?;
    let marked: Vec<&Namespace> = devices.iter().flat_map(|(_, found)| found).collect();
    marked.iter().try_for_each(|namespace| block::write_and_check(namespace, MARK, AT, MARK_BYTES))?;
    profile(context, &["bed", "ways", "passthrough", "vfio"], "sw-b")?;
    let record = recorded(context, &[])?;
    same("destructive", &record["destructive"], &json!(false))?;
    all_ok(&record, &HARMLESS)?;
    skipped(&record, &DESTRUCTIVE[..FIRST], &["--destructive was not given", "; give it if", "may lose its data"])?;
    skipped(&record, &["vfio.removal", "bed.machine"], &["no test bed"])?;
    at_the_kernel(&devices)?;
    marked.iter().try_for_each(|namespace| block::check(namespace, MARK, AT, MARK_BYTES))
}

fn misuse(context: &Context) -> Verdict {
    let devices = controllers(context)?;
    let (a, b) = (&devices[0].0.address, &devices[1].0.address);
    let no_serial = json!({"name": "m", "suites": ["vfio"], "roles": {"nvme-a": {"address": a}}});
    let twice = json!({"name": "m", "suites": ["vfio"],
        "roles": {"nvme-a": {"address": a, "serial": "sw-a"}, "nvme-b": {"address": a, "serial": "sw-b"}}});
    let unknown = json!({"name": "m", "suites": ["vfio"], "roles": {"nvme-b": {"address": b, "serials": "sw-b"}}});
    let suite = json!({"name": "m", "suites": ["fast"], "roles": {"nvme-b": {"address": b, "serial": "sw-b"}}});
    let mut told = Vec::new();
    for (text, exit, words) in [
        (no_serial.to_string(), 2, ["no role of", "straightway nvme list shows it"]),
        (twice.to_string(), 11, ["has another role already", "docs/hardware.md"]),
        (unknown.to_string(), 11, ["serials", "docs/hardware.md"]),
        (suite.to_string(), 11, ["no suite \"fast\"", "straightway-guest list"]),
        ("{".to_string(), 11, [PROFILE, "docs/hardware.md"]),
    ] {
        std::fs::write(PROFILE, &text)?;
        let output = run(&["--destructive"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() != Some(exit) || !words.iter().all(|word| said.contains(word)) {
            return fail(format!("{text}: expected exit {exit} and {words:?}, got {} {said}", output.status));
        }
        same("a record", &Path::new(RECORD).exists(), &false)?;
        told.push(json!({"profile": text, "exit": exit, "complained": said}));
    }
    context.fact(&json!(told));
    at_the_kernel(&devices)
}

fn wrong_serial(context: &Context) -> Verdict {
    let devices = controllers(context)?;
    let Some(namespace) = devices[1].1.first() else { return fail("no namespace") };
    block::write_and_check(namespace, MARK, AT, MARK_BYTES)?;
    profile(context, &["bed", "vfio"], "sw-x")?;
    let record = recorded(context, &["--destructive"])?;
    let needs_b = ["bed.kernel-io", "bed.vfio-and-back", "vfio.bind-and-undo", "vfio.interop", "vfio.reset"];
    skipped(&record, &needs_b, &["has serial \"sw-b\"", "the profile says \"sw-x\"", "; correct the profile if"])?;
    // The other one is as good as ever.
    all_ok(&record, &["vfio.identify", "vfio.interrupts"])?;
    at_the_kernel(&devices)?;
    block::check(namespace, MARK, AT, MARK_BYTES)
}

fn mounted(context: &Context) -> Verdict {
    let devices = controllers(context)?;
    let Some(namespace) = devices[1].1.first() else { return fail("no namespace") };
    let pattern = block::pattern(MARK, 0, MARK_BYTES);
    file_system::mounted(namespace, |dir| {
        std::fs::write(dir.join("file"), &pattern)?;
        profile(context, &["vfio"], "sw-b")?;
        let record = recorded(context, &["--destructive"])?;
        skipped(&record, &["vfio.bind-and-undo", "vfio.interop", "vfio.reset"], &["is in use", "mounted at /mnt"])?;
        same("the file", &(std::fs::read(dir.join("file"))? == pattern), &true)
    })?;
    at_the_kernel(&devices)
}

fn destructive(context: &Context) -> Verdict {
    let devices = controllers(context)?;
    profile(context, &["bed", "ways", "vfio", "vfio-transport", "driver-io", "driver-load"], "sw-b")?;
    let record = recorded(context, &["--destructive"])?;
    same("destructive", &record["destructive"], &json!(true))?;
    same("verdict", &record["verdict"], &json!("passed"))?;
    all_ok(&record, &DESTRUCTIVE)?;
    // The emulated peer has no serial number in its configuration space, so nothing may be written to it.
    skipped(&record, &["vfio.peer-dma", "vfio.peer-copies", "driver-io.bar-offsets"], &["no serial for peer"])?;
    skipped(&record, &["driver-io.namespaces", "driver-io.events"], &["no test bed"])?;
    at_the_kernel(&devices)?;
    controllers(context).map(drop)
}

/// A machine whose only drive is the bed's second one, which has one namespace, as most drives have.
fn one(context: &Context) -> Verdict {
    let devices = controllers(context)?;
    let suites = ["passthrough", "vfio-transport", "driver-io", "driver-load", "speed"];
    let text = json!({"name": "one-drive", "suites": suites,
        "roles": {"nvme-a": {"address": devices[1].0.address, "serial": "sw-b"}}});
    std::fs::write(PROFILE, text.to_string())?;
    let record = recorded(context, &["--destructive"])?;
    same("verdict", &record["verdict"], &json!("passed"))?;
    let ran = ["driver-io.commands", "driver-io.page-offsets", "driver-io.list-boundaries"];
    all_ok(&record, &ran)?;
    all_ok(&record, &["driver-load.depths", "driver-load.queues", "driver-load.reset"])?;
    skipped(&record, &["vfio-transport.polled", "vfio-transport.hybrid"], &["has no namespace 2"])?;
    skipped(&record, &["driver-load.function-reset"], &["no nvme-b"])?;
    skipped(&record, &["speed.beside-the-kernel"], &["namespaces"])?;
    at_the_kernel(&devices)?;
    controllers(context).map(drop)
}
