//! Runs suites on a real machine, for `straightway hwtest`: roles come from a profile, the record is one JSON document, and
//! each device ends with the driver that it had.
//!
//! Exit codes are those of the command: 0, 2 for wrong arguments, 6 if a test failed, 9 without a directory to work in, 11
//! for a bad profile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use serde_json::{Value, json};
use sw_engine::PciAddress;
use sw_vfio::Sysfs;

use crate::context::{Context, NO_BED, write_text};
use crate::kernel_log::KernelLog;
use crate::pci::Device;
use crate::profile::{Consent, Machine, Profile};
use crate::registry::{Needs, Stop, Suite, Test, Verdict};
use crate::run;
use crate::suites;

/// Changes when a field changes its meaning. The fields are in `docs/json.md`.
const SCHEMA: &str = "straightway.hwtest/1";
const USAGE: u8 = 2;
const FAILED: u8 = 6;
const LIMIT: u8 = 9;
const BAD_PROFILE: u8 = 11;

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    profile: PathBuf,
    destructive: bool,
    only: Option<String>,
    record: Option<PathBuf>,
    json: bool,
    /// From the parent of a test's process: roles that passed the gate at the start.
    admitted: BTreeSet<String>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} wants a value"));
            match *word {
                "--profile" => options.profile = PathBuf::from(value()?),
                "--only" => options.only = Some((*value()?).to_string()),
                "--record" => options.record = Some(PathBuf::from(value()?)),
                "--admitted" => options.admitted = value()?.split(',').map(String::from).collect(),
                "--destructive" => options.destructive = true,
                "--json" => options.json = true,
                _ => return Err(format!("unknown argument {word:?}")),
            }
        }
        if options.profile.as_os_str().is_empty() { Err("--profile FILE is missing".to_string()) } else { Ok(options) }
    }

    fn consent(&self) -> Consent {
        if self.destructive { Consent::Given } else { Consent::Missing }
    }

    /// A line for people: on stdout unless that carries the record.
    fn say(&self, line: &str) {
        // A reader that has gone changes nothing for the devices.
        let _ = if self.json { writeln!(std::io::stderr(), "{line}") } else { writeln!(std::io::stdout(), "{line}") };
    }
}

fn stop(code: u8, reason: &str) -> ExitCode {
    eprintln!("straightway-guest: {reason}");
    ExitCode::from(code)
}

/// `test NAME FILE --profile …`: one test in this process.
pub fn one(name: &str, file: &Path, words: &[&str]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(reason) => return stop(USAGE, &reason),
    };
    match Profile::read(&options.profile) {
        Ok(profile) => {
            let machine = Machine { profile, consent: options.consent(), admitted: options.admitted };
            run::one(name, file, |test| Context::on_machine(name, machine, test.harm, &said(file)))
        }
        Err(reason) => stop(BAD_PROFILE, &reason),
    }
}

/// Where a test says what its record should have.
fn said(result: &Path) -> PathBuf {
    result.with_extension("said")
}

/// `hwtest`: the suites of a profile.
pub fn all(words: &[&str]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(reason) => return stop(USAGE, &reason),
    };
    let profile = match Profile::read(&options.profile) {
        Ok(profile) => profile,
        Err(reason) => return stop(BAD_PROFILE, &reason),
    };
    let work = std::env::temp_dir().join(format!("straightway-hwtest-{}", std::process::id()));
    // Made anew and for its owner only: root does not write where others may have put a link.
    if let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(&work) {
        return stop(LIMIT, &format!("{}: {error}", work.display()));
    }
    let machine = Machine::new(profile, options.consent());
    let mut session = Session::new(&options, machine, &work);
    for name in session.machine.profile.suites.clone() {
        if let Some(suite) = suites::all().iter().find(|suite| suite.name == name) {
            session.suite(suite);
        }
    }
    session.give_back();
    drop(std::fs::remove_dir_all(&work));
    session.end()
}

/// A run.
struct Session<'a> {
    options: &'a Options,
    machine: Machine,
    result: PathBuf,
    /// Who had each device at the start.
    drivers: BTreeMap<String, Option<String>>,
    log: KernelLog,
    tests: Vec<Value>,
    facts: Vec<Value>,
    reasons: Vec<String>,
    counts: BTreeMap<&'static str, u32>,
}

impl<'a> Session<'a> {
    fn new(options: &'a Options, machine: Machine, work: &Path) -> Session<'a> {
        let addresses = machine.profile.roles.values().map(|role| role.address.clone());
        let drivers = addresses.map(|address| (driver(&address), address)).map(|(driver, address)| (address, driver));
        Session {
            options,
            drivers: drivers.collect(),
            machine,
            result: work.join("result"),
            log: KernelLog::from_now(),
            tests: Vec::new(),
            facts: Vec::new(),
            reasons: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn suite(&mut self, suite: &Suite) {
        for test in suite.tests {
            let name = format!("{}.{}", suite.name, test.name);
            if self.options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            let start = Instant::now();
            let verdict = self.test(&name, test);
            self.note(&name, &verdict, start.elapsed().as_secs_f64());
        }
    }

    fn test(&mut self, name: &str, test: &Test) -> Verdict {
        if test.needs == Needs::Bed {
            return Err(Stop::Skip(NO_BED.to_string()));
        }
        let admitted: Vec<&str> = self.machine.admitted.iter().map(String::as_str).collect();
        let mut more = vec!["--profile".to_string(), self.options.profile.display().to_string()];
        more.extend(["--admitted".to_string(), admitted.join(",")]);
        more.extend(self.options.destructive.then(|| "--destructive".to_string()));
        let said = said(&self.result);
        drop(std::fs::remove_file(&said));
        let verdict = run::in_process(name, test, &self.result, &more);
        let lines = std::fs::read_to_string(&said).unwrap_or_default();
        let facts = lines.lines().filter_map(|line| line.strip_prefix("SW-FACT ")?.split_once(' '));
        self.facts.extend(facts.filter_map(|(test, value)| {
            Some(json!({"test": test, "value": serde_json::from_str::<Value>(value).ok()?}))
        }));
        verdict
    }

    fn note(&mut self, name: &str, verdict: &Verdict, seconds: f64) {
        let (end, reason) = match verdict {
            Ok(()) => ("ok", ""),
            Err(Stop::Skip(reason)) => ("skip", reason.as_str()),
            Err(Stop::Fail(reason)) => ("fail", reason.as_str()),
        };
        self.options.say(format!("{end:4} {name} {seconds:.2} s {reason}").trim_end());
        *self.counts.entry(end).or_default() += 1;
        let mut test = json!({"name": name, "end": end, "seconds": (seconds * 100.0).round() / 100.0});
        if !reason.is_empty() {
            test["reason"] = json!(reason);
        }
        self.tests.push(test);
        if end == "fail" {
            self.reasons.push(format!("{name}: {reason}"));
        }
    }

    /// Gives each device to the driver that it had.
    fn give_back(&mut self) {
        for (address, before) in &self.drivers {
            if driver(address) == *before {
                continue;
            }
            match give_back(address, before.as_deref()) {
                Ok(()) => self.options.say(&format!("{address} was given back to {}", told(before))),
                Err(reason) => {
                    self.reasons.push(format!("{address} was not given back to {}: {reason}", told(before)));
                    self.options.say(&format!("{address} was NOT given back to {}: {reason}", told(before)));
                }
            }
        }
    }

    fn end(mut self) -> ExitCode {
        let count = |word| self.counts.get(word).copied().unwrap_or(0);
        let (ok, skipped, failed) = (count("ok"), count("skip"), count("fail"));
        self.options.say(&format!("{ok} passed, {skipped} skipped, {failed} failed"));
        if ok + failed == 0 {
            self.options.say("nothing was proven: no test ran");
        }
        let verdict = match (self.reasons.is_empty(), ok) {
            (false, _) => "failed",
            (true, 0) => "skipped",
            (true, _) => "passed",
        };
        let document = self.document(verdict);
        if self.options.json {
            println!("{document}");
        }
        if let Some(path) = &self.options.record {
            let written = std::fs::write(path, format!("{document:#}\n"));
            if let Err(error) = written {
                return stop(LIMIT, &format!("{}: {error}", path.display()));
            }
        }
        ExitCode::from(if self.reasons.is_empty() { 0 } else { FAILED })
    }

    fn document(&mut self, verdict: &str) -> Value {
        let roles = self.machine.profile.roles.iter().map(|(name, role)| {
            let address = role.address();
            let function = address.ok().map(|address| sw_vfio::look(&Sysfs::default(), address));
            let id = function.as_ref().map(|found| format!("{:04x}:{:04x}", found.vendor, found.device));
            json!({"role": name, "address": role.address, "id": id, "model": function.and_then(|found| found.model),
                "admitted": self.machine.admitted.contains(name)})
        });
        let roles: Vec<Value> = roles.collect();
        let grouped = |address: &String| Device::at(address).is_some_and(|device| device.iommu_group().is_some());
        let iommu = if self.drivers.keys().any(grouped) { "on" } else { "off" };
        json!({
            "schema": SCHEMA,
            "suite": self.machine.profile.suites.join(","),
            "date": ask("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
            "commit": commit(),
            "machine": self.machine.profile.name,
            "host_cpu": cpu(),
            "kernel": text("/proc/sys/kernel/osrelease"),
            "iommu": iommu,
            "devices": roles,
            "destructive": self.options.destructive,
            "verdict": verdict,
            "reasons": self.reasons,
            "tests": self.tests,
            "facts": self.facts,
            "kernel_log_lines": self.log.lines().len(),
        })
    }
}

fn told(driver: &Option<String>) -> &str {
    driver.as_deref().unwrap_or("no driver")
}

fn driver(address: &str) -> Option<String> {
    Device::at(address).and_then(|device| device.driver())
}

/// Puts a driver back by hand: tests change drivers in ways of their own, and leave no record for `nvme unbind`.
fn give_back(address: &str, before: Option<&str>) -> Result<(), String> {
    let Some(device) = Device::at(address) else { return Err("it is not there any more".to_string()) };
    if let Some(before) = before {
        device.bind(before).map_err(|stop| stop.to_string())?;
    } else if let Ok(address) = address.parse::<PciAddress>() {
        let back = sw_vfio::plan_unbind(&Sysfs::default(), address).and_then(|plan| plan.run(&Sysfs::default()));
        back.map_err(|error| error.to_string())?;
    }
    // An empty line lets any driver have it again (Linux, `Documentation/ABI/testing/sysfs-bus-pci`).
    write_text(&device.path().join("driver_override"), "\n").map_err(|stop| stop.to_string())
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "unknown".to_string(), |text| text.trim().to_string())
}

fn cpu() -> String {
    let info = text("/proc/cpuinfo");
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    model.unwrap_or("unknown").to_string()
}

fn ask(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
    output.map_or_else(|| "unknown".to_string(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The commit of the sources that this program was built from, where they still are.
fn commit() -> String {
    let of_sources = |args: &[&str]| ask("git", &[&["-C", env!("CARGO_MANIFEST_DIR")], args].concat());
    let mut commit = of_sources(&["rev-parse", "HEAD"]);
    if commit != "unknown" && !of_sources(&["status", "--porcelain"]).is_empty() {
        commit.push_str(" with changes");
    }
    commit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let words = ["--profile", "p.json", "--destructive", "--only", "vfio.reset", "--admitted", "nvme-a,peer"];
        let options = Options::parse(&words).unwrap();
        assert_eq!((options.consent(), options.only.as_deref()), (Consent::Given, Some("vfio.reset")));
        assert!(options.admitted.contains("peer") && !options.json);
        for words in [&[][..], &["--profile"], &["--profile", "p", "--fast"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_page_has_every_field_of_the_record() {
        const PAGE: &str = include_str!("../../../docs/json.md");
        let section = PAGE.split("## ").find(|part| part.starts_with(SCHEMA)).unwrap();
        let rows = section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_string()));
        let mut told: Vec<String> = rows.collect();
        let profile = r#"{"name": "m", "suites": ["vfio"], "roles": {"nvme-a": {"address": "ffff:ff:1f.7"}}}"#;
        let machine = Machine::new(Profile::parse(profile).unwrap(), Consent::Missing);
        let options = Options::default();
        let mut session = Session::new(&options, machine, Path::new("/nowhere"));
        session.note("vfio.reset", &Err(Stop::Fail("no".into())), 0.5);
        session.facts.push(json!({"test": "vfio.reset", "value": {}}));
        let document = session.document("failed");
        let mut printed = Vec::new();
        for (name, value) in document.as_object().unwrap() {
            match value.as_array().and_then(|all| all.first()?.as_object()) {
                Some(first) => printed.extend(first.keys().map(|key| format!("{name}[].{key}"))),
                None => printed.push(name.clone()),
            }
        }
        told.sort();
        printed.sort();
        assert_eq!(printed, told);
    }
}
