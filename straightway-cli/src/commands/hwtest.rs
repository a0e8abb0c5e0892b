//! `hwtest`: the suites of the test bed on a real machine.
//!
//! The tests are a program of their own, `straightway-guest`: the command links no tests. It checks the profile, so that
//! what is wrong is told like everything else that is wrong, runs the program, and passes its lines on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use serde::Deserialize;
use straightway::{ErrorKind, PciAddress};

use crate::{
    args::Hwtest,
    environment,
    fail::{Exit, Fail},
    out::Out,
    signals,
};

/// The program with the tests.
const PROGRAM: &str = "straightway-guest";
/// BARs of a function are numbered 0 to 5.
const BAR_MAX: u8 = 5;
/// Where the file's form is explained.
const PAGE: &str = "docs/hardware.md has an example";

/// The file that names a machine's devices.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    name: String,
    roles: BTreeMap<String, Role>,
    suites: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Role {
    address: String,
    serial: Option<String>,
    bar: Option<u8>,
}

/// Runs `hwtest`.
///
/// # Errors
/// A profile that cannot be read or used, a program that is not there, a test that failed.
pub fn run(args: &Hwtest, out: &mut Out) -> Result<(), Fail> {
    let shown = args.profile.display();
    let text = fs::read_to_string(&args.profile).map_err(|error| Fail::system(&format!("read of {shown}"), &error))?;
    let profile = parse(&text)
        .map_err(|why| Fail::new(Exit::BadFormat, ErrorKind::BadFormat.name(), format!("{shown}: {why}"), PAGE))?;
    let serial = |role: &Role| role.serial.as_deref().is_some_and(|serial| !serial.trim().is_empty());
    if args.destructive && !profile.roles.values().any(serial) {
        return Err(Fail::usage(
            format!("--destructive, and no role of {shown} has a serial"),
            "write the serial of each device that may lose its data into the profile; straightway nvme list shows it",
        ));
    }
    let program = find(environment::program_directory().into_iter().chain(environment::search_path()))?;
    out.text(format_args!("machine {}: suites {}", profile.name, profile.suites.join(", ")))?;
    out.flush()?;
    let status = command(&program, args, out).status();
    let status = status.map_err(|error| Fail::system(&format!("start of {}", program.display()), &error))?;
    signals::requested()?;
    ended(status)
}

fn parse(text: &str) -> Result<Profile, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if profile.roles.is_empty() || profile.suites.is_empty() {
        return Err("a profile has a role and a suite at least".to_owned());
    }
    let mut addresses = BTreeSet::new();
    for (name, role) in &profile.roles {
        let address: PciAddress = role.address.parse().map_err(|error| format!("role {name}: {error}"))?;
        if !addresses.insert(address.to_string()) {
            return Err(format!("role {name}: {address} has another role already"));
        }
        if role.bar.is_some_and(|bar| bar > BAR_MAX) {
            return Err(format!("role {name}: a BAR is 0 to {BAR_MAX}"));
        }
    }
    Ok(profile)
}

/// The program in the first of the directories that has it.
fn find(directories: impl Iterator<Item = PathBuf>) -> Result<PathBuf, Fail> {
    let mut programs = directories.map(|directory| directory.join(PROGRAM));
    programs.find(|path| is_file(path)).ok_or_else(|| {
        Fail::new(
            Exit::Unsupported,
            ErrorKind::Unsupported.name(),
            format!("{PROGRAM}, the program with the tests, is neither beside this command nor in PATH"),
            format!("build it: cargo build --release -p {PROGRAM}"),
        )
    })
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file())
}

fn command(program: &Path, args: &Hwtest, out: &Out) -> Command {
    let mut command = Command::new(program);
    command.arg("hwtest").arg("--profile").arg(&args.profile);
    if args.destructive {
        command.arg("--destructive");
    }
    if let Some(only) = &args.only {
        command.arg("--only").arg(only);
    }
    if let Some(record) = &args.record {
        command.arg("--record").arg(record);
    }
    if out.is_json() {
        command.arg("--json");
    }
    command
}

/// What the program's end means for this command.
fn ended(status: ExitStatus) -> Result<(), Fail> {
    let other = |exit, kind: ErrorKind| {
        let message = format!("{PROGRAM} ended with {status}");
        Err(Fail::new(exit, kind.name(), message, "the lines above say why"))
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(6) => Err(Fail::new(
            Exit::Verification,
            "test_failed",
            "a test failed, or a device was not given back",
            "the lines above and the record say which and why",
        )),
        Some(9) => other(Exit::Limit, ErrorKind::ResourceLimit),
        Some(11) => other(Exit::BadFormat, ErrorKind::BadFormat),
        _ => other(Exit::Failed, ErrorKind::Io),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_that_has_it_wins() {
        assert_eq!(find(std::iter::empty()).unwrap_err().exit(), Exit::Unsupported);
        // A directory of that name is no program.
        assert!(!is_file(Path::new("/")));
    }

    #[test]
    fn a_profile_without_roles_or_with_one_device_twice_is_refused() {
        let with = |roles: &str| parse(&format!(r#"{{"name": "m", "roles": {{{roles}}}, "suites": ["vfio"]}}"#));
        assert!(with("").is_err());
        assert!(with(r#""nvme-a": {"address": "0000:01:00.0"}"#).is_ok());
        assert!(with(r#""nvme-a": {"address": "0000:01:00.0"}, "peer": {"address": "0000:01:00.0"}"#).is_err());
        assert!(with(r#""peer": {"address": "0000:01:00.0", "bar": 6}"#).is_err());
    }
}
