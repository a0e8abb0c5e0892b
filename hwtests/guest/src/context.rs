//! What a test is given: the devices by their role, the host, the kernel's log, and a place for facts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::kernel_log::KernelLog;
use crate::pci::Device;
use crate::profile::Machine;
use crate::registry::{Harm, Stop, fail, skip};
use crate::wire::{InBed, LINE_CHARS_MAX, Wire};

/// Notes of the first phase, carried into the second.
const NOTES: &str = "/sw/notes";
/// Why nobody pulls a device or cuts the power of a real machine.
pub const NO_BED: &str = "no test bed around this machine";
/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(5);

/// The words `sw.NAME=VALUE` of the kernel's command line.
#[derive(Debug, Clone, Default)]
pub struct Words(BTreeMap<String, String>);

impl Words {
    pub fn read() -> Words {
        Words::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(line: &str) -> Words {
        let words = line.split_whitespace().filter_map(|word| word.strip_prefix("sw."));
        Words(words.map(|word| word.split_once('=').unwrap_or((word, ""))).map(|(k, v)| (k.into(), v.into())).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names of suites to run.
    pub fn suites(&self) -> Vec<&str> {
        self.get("suites").unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect()
    }

    pub fn phase(&self) -> u32 {
        self.get("phase").and_then(|text| text.parse().ok()).unwrap_or(1)
    }

    /// How often each test runs.
    pub fn repeat(&self) -> u32 {
        self.get("repeat").and_then(|text| text.parse().ok()).unwrap_or(1)
    }

    pub fn in_bed(&self) -> InBed {
        if self.0.contains_key("suites") { InBed::Yes } else { InBed::No }
    }
}

/// Handed to every test.
#[derive(Debug)]
pub struct Context {
    test: String,
    words: Words,
    /// A real machine instead of the bed's, and what the test may do to it.
    machine: Option<(Machine, Harm)>,
    wire: RefCell<Wire>,
    kernel_log: RefCell<KernelLog>,
}

impl Context {
    pub fn new(test: &str) -> Context {
        let words = Words::read();
        Context {
            test: test.to_string(),
            wire: RefCell::new(Wire::open(words.in_bed())),
            kernel_log: RefCell::new(KernelLog::from_now()),
            words,
            machine: None,
        }
    }

    /// For a test on a real machine. What it says goes to the file `said`.
    pub fn on_machine(test: &str, machine: Machine, harm: Harm, said: &Path) -> Context {
        Context {
            test: test.to_string(),
            words: Words::default(),
            machine: Some((machine, harm)),
            wire: RefCell::new(Wire::to_file(said)),
            kernel_log: RefCell::new(KernelLog::from_now()),
        }
    }

    /// Whether the devices are a real machine's, of which a test cannot know sizes and counts beforehand.
    pub fn is_real(&self) -> bool {
        self.machine.is_some()
    }

    /// The serial number that the device of a role must have.
    pub fn serial(&self, role: &str) -> String {
        match &self.machine {
            Some((machine, _)) => {
                machine.profile.roles.get(role).and_then(|role| role.serial.clone()).unwrap_or_default()
            }
            None => role.replace("nvme-", "sw-"),
        }
    }

    /// The BAR of a role that is used as memory. The bed's peer has its memory in BAR 2.
    pub fn bar(&self, role: &str) -> u8 {
        let told = self.machine.as_ref().and_then(|(machine, _)| machine.profile.roles.get(role)?.bar);
        told.unwrap_or(2)
    }

    /// The device of a role, such as `nvme-a`; the machine's roles are in `xtask/src/vm/machine.rs`.
    ///
    /// # Errors
    /// A skip where this machine has none; a failure where it should be there and is not.
    pub fn device(&self, role: &str) -> Result<Device, Stop> {
        if let Some((machine, harm)) = &self.machine {
            return machine.device(role, *harm);
        }
        let Some(ports) = self.words.get(&format!("port.{role}")) else {
            return skip(format!("this machine has no {role}"));
        };
        self.until(Duration::from_secs(5), &format!("{role} behind port {ports}"), || Device::behind(ports))
    }

    /// Whether a device of a role is there now, without waiting.
    pub fn present(&self, role: &str) -> bool {
        if let Some((machine, _)) = &self.machine {
            return machine.profile.roles.get(role).is_some_and(|role| Device::at(&role.address).is_some());
        }
        self.words.get(&format!("port.{role}")).is_some_and(|ports| Device::behind(ports).is_some())
    }

    /// A number that the host passed by the kernel's command line.
    ///
    /// # Errors
    /// A skip where it passed none.
    pub fn number(&self, name: &str) -> Result<u64, Stop> {
        match self.words.get(name).and_then(|text| text.parse().ok()) {
            Some(number) => Ok(number),
            None => skip(format!("the host gave no sw.{name}")),
        }
    }

    /// Asks the host for something; verbs are in `xtask/src/vm/host.rs`.
    ///
    /// # Errors
    /// The host's refusal is a failure; where there is no host, it is a skip.
    pub fn host(&self, verb: &str, argument: &str) -> Result<String, Stop> {
        if self.is_real() {
            return skip(NO_BED);
        }
        self.ask_host(verb, argument).or_else(|reason| fail(format!("the host refused {verb} {argument}: {reason}")))
    }

    /// As [`Context::host`], for a test that looks at the refusal.
    pub fn ask_host(&self, verb: &str, argument: &str) -> Result<String, String> {
        self.wire.borrow_mut().ask(verb, argument)
    }

    /// Puts a measured value into the record of the run.
    /// One that is longer than a line holds is replaced by its length.
    pub fn fact(&self, value: &serde_json::Value) {
        let mut line = format!("SW-FACT {} {value}", self.test);
        if line.chars().count() > LINE_CHARS_MAX {
            line = format!("SW-FACT {} {{\"too_long_chars\": {}}}", self.test, line.len());
        }
        self.wire.borrow_mut().send(&line);
    }

    /// Leaves a line for the second phase. It has reached the host when a later request is answered.
    pub fn note(&self, text: &str) {
        self.wire.borrow_mut().send(&format!("SW-NOTE {text}"));
    }

    /// Lines that the first phase left.
    ///
    /// # Errors
    /// A failure: the host carries a file of notes into every guest.
    pub fn notes(&self) -> Result<Vec<String>, Stop> {
        Ok(std::fs::read_to_string(NOTES)?.lines().map(String::from).collect())
    }

    /// What the kernel logged since the test began or since the last call.
    pub fn kernel_log(&self) -> Vec<String> {
        self.kernel_log.borrow_mut().lines()
    }

    /// Waits until `look` finds something.
    ///
    /// # Errors
    /// A failure that names `what` after `limit`.
    pub fn until<T>(&self, limit: Duration, what: &str, look: impl Fn() -> Option<T>) -> Result<T, Stop> {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if start.elapsed() >= limit {
                return fail(format!("{what}: not within {:.1} s", limit.as_secs_f64()));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A trimmed file of sysfs or procfs.
///
/// # Errors
/// A failure with the path.
pub fn read_text(path: &Path) -> Result<String, Stop> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_string()),
        Err(error) => fail(format!("{}: {error}", path.display())),
    }
}

/// Writes a file of sysfs.
///
/// # Errors
/// A failure with the path.
pub fn write_text(path: &Path, text: &str) -> Result<(), Stop> {
    // Never made: a file of sysfs that is not there is no permission denied.
    let written = std::fs::File::options().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.or_else(|error| fail(format!("{}: {error}", path.display())))
}

/// Entries of a directory, sorted; none where there is no such directory.
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = listed.collect();
    paths.sort();
    paths
}

/// The last part of a path as text.
pub fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_from_the_command_line() {
        let words = Words::parse("console=ttyS0 sw.suites=bed,nvme sw.phase=2 sw.port.peer=06.0 sw.shell");
        assert_eq!(words.suites(), ["bed", "nvme"]);
        assert_eq!((words.phase(), words.get("port.peer"), words.get("shell")), (2, Some("06.0"), Some("")));
        assert_eq!(words.in_bed(), InBed::Yes);
        assert_eq!(Words::parse("quiet").in_bed(), InBed::No);
    }
}
