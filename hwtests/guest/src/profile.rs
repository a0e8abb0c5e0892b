//! A real machine's roles, from a file that its owner wrote, and the gate before anything that can lose data.
//!
//! ```text
//!   profile ─► role ─► address ─┐
//!   sysfs ─► serial, uses ──────┴─► gate ─► the test gets the device, or is skipped with the reason
//! ```
//!
//! A device is never guessed: a role that the profile does not name is not there. What the file means to people is in
//! `docs/hardware.md`; the command looks at its form, too (`straightway-cli/src/commands/hwtest.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use sw_engine::PciAddress;
use sw_vfio::Sysfs;

use crate::pci::Device;
use crate::registry::{Harm, Stop, skip};

/// BARs of a function are numbered 0 to 5.
const BAR_MAX: u8 = 5;
/// Where the list of extended capabilities begins, and most steps along it (PCI Express Base 5.0 §7.6.3, "PCI Express
/// Extended Capability Header"): 4 KiB less 256 bytes, 8 at least for each.
const EXTENDED_START: usize = 0x100;
const EXTENDED_STEPS_MAX: usize = 480;
/// "Device Serial Number Extended Capability" (PCI Express Base 5.0 §7.9.3).
const SERIAL_CAPABILITY: u32 = 0x0003;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What its owner calls the machine; it goes into the record.
    pub name: String,
    /// Devices by role, such as `nvme-a`.
    pub roles: BTreeMap<String, Role>,
    /// Suites to run, in order.
    pub suites: Vec<String>,
}

/// A device that plays a role.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Its PCI address.
    pub address: String,
    /// The serial number that it must have before anything destructive is done to it.
    pub serial: Option<String>,
    /// The BAR that is used as memory.
    pub bar: Option<u8>,
}

impl Profile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong with it, with the path.
    pub fn read(path: &Path) -> Result<Profile, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Profile::parse(&text).map_err(|reason| format!("{}: {reason}", path.display()))
    }

    /// Checks the text of one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Profile, String> {
        let mut profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut addresses = BTreeSet::new();
        for (name, role) in &mut profile.roles {
            let address = role.address().map_err(|error| format!("role {name}: {error}"))?;
            // As the kernel writes it.
            role.address = address.to_string();
            if !addresses.insert(address.to_string()) {
                return Err(format!("role {name}: {address} has another role already"));
            }
            if role.bar.is_some_and(|bar| bar > BAR_MAX) {
                return Err(format!("role {name}: a BAR is 0 to {BAR_MAX}"));
            }
        }
        for suite in &profile.suites {
            if crate::suites::all().iter().all(|known| known.name != suite) {
                return Err(format!("there is no suite {suite:?}; straightway-guest list has them"));
            }
        }
        Ok(profile)
    }
}

impl Role {
    pub fn address(&self) -> Result<PciAddress, String> {
        self.address.parse().map_err(|error: sw_engine::Error| error.to_string())
    }

    fn serial(&self) -> Option<&str> {
        self.serial.as_deref().map(str::trim).filter(|serial| !serial.is_empty())
    }
}

/// Whether `--destructive` was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    Given,
    Missing,
}

/// What the machine says about the device of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub driver: Option<String>,
    /// Of an NVMe controller the one that the kernel's driver read by Identify; of another function the one in its
    /// configuration space.
    pub serial: Option<String>,
    /// Who uses its namespaces, for people.
    pub uses: Vec<String>,
}

impl Facts {
    fn look(address: PciAddress) -> Facts {
        let function = sw_vfio::look(&Sysfs::default(), address);
        let config = || std::fs::read(format!("/sys/bus/pci/devices/{address}/config")).ok();
        let serial = match function.is_nvme() {
            true => function.serial.as_deref().map(|serial| serial.trim().to_string()),
            false => config().and_then(|config| device_serial(&config)),
        };
        Facts { driver: function.driver.clone(), serial, uses: function.uses().map(ToString::to_string).collect() }
    }
}

/// The number of the serial number capability, as `lspci -vv` prints it: bytes in hexadecimal, the highest first.
/// `config` is the function's configuration space, of which an ordinary user sees 64 bytes only.
fn device_serial(config: &[u8]) -> Option<String> {
    let dword = |at: usize| Some(u32::from_le_bytes(config.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let mut at = EXTENDED_START;
    for _ in 0..EXTENDED_STEPS_MAX {
        let header = dword(at)?;
        if header & 0xffff == SERIAL_CAPABILITY {
            let (low, high) = (dword(at + 4)?, dword(at + 8)?);
            let bytes = high.to_be_bytes().into_iter().chain(low.to_be_bytes());
            return Some(bytes.map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join("-"));
        }
        at = usize::try_from(header >> 20).ok()?;
        if at < EXTENDED_START {
            return None;
        }
    }
    None
}

/// Whether a role's serial was compared at the start of the run, when the kernel's driver had the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    FromStart,
    Not,
}

/// Whether something destructive may be done to the device of a role.
///
/// # Errors
/// The reason why not.
pub fn gate(name: &str, role: &Role, consent: Consent, facts: &Facts, known: Known) -> Result<(), String> {
    let address = &role.address;
    if consent == Consent::Missing {
        return Err(format!(
            "it is destructive and --destructive was not given; give it if {name} at {address} may lose its data"
        ));
    }
    let Some(wanted) = role.serial() else {
        return Err(format!(
            "it is destructive and the profile has no serial for {name}; write it there if the device may lose its data"
        ));
    };
    if !facts.uses.is_empty() {
        return Err(format!("{name} at {address} is in use: {}", facts.uses.join(", ")));
    }
    match facts.serial.as_deref() {
        Some(serial) if serial == wanted => Ok(()),
        Some(serial) => Err(format!(
            "{name} at {address} has serial {serial:?}, the profile says {wanted:?}; correct the profile if this device \
             may lose its data"
        )),
        // Between tests vfio-pci has it, and its serial is not to be read.
        None if known == Known::FromStart && facts.driver.as_deref() != Some("nvme") => Ok(()),
        None if facts.driver.as_deref() == Some("vfio-pci") => Err(format!(
            "the serial of {name} cannot be read while vfio-pci has it; straightway nvme unbind {address} first"
        )),
        None => Err(format!("the machine tells no serial of {name} at {address}")),
    }
}

/// The machine as a test sees it.
#[derive(Debug, Clone)]
pub struct Machine {
    pub profile: Profile,
    pub consent: Consent,
    /// Roles that passed the gate at the start.
    pub admitted: BTreeSet<String>,
}

impl Machine {
    /// Looks at every role once. What passes the gate now stays admitted while tests change its driver.
    pub fn new(profile: Profile, consent: Consent) -> Machine {
        let passes = |name: &str, role: &Role| {
            let facts = role.address().map(Facts::look).unwrap_or_default();
            gate(name, role, consent, &facts, Known::Not).is_ok()
        };
        let admitted = profile.roles.iter().filter(|(name, role)| passes(name, role));
        let admitted = admitted.map(|(name, _)| name.clone()).collect();
        Machine { profile, consent, admitted }
    }

    /// The device of a role for a test.
    ///
    /// # Errors
    /// A skip: there is none, or the gate holds the test back.
    pub fn device(&self, name: &str, harm: Harm) -> Result<Device, Stop> {
        let Some(role) = self.profile.roles.get(name) else {
            return skip(format!("the profile has no {name}"));
        };
        let Some(device) = Device::at(&role.address) else {
            return skip(format!("nothing is at {}, the address of {name}", role.address));
        };
        if harm == Harm::Nothing {
            return Ok(device.only_looked_at());
        }
        let known = if self.admitted.contains(name) { Known::FromStart } else { Known::Not };
        let facts = role.address().map(Facts::look).unwrap_or_default();
        match gate(name, role, self.consent, &facts, known) {
            Ok(()) => Ok(device),
            Err(reason) => skip(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{"name": "bench", "suites": ["vfio"], "roles": {
        "nvme-a": {"address": "0000:3b:00.0", "serial": "S64X"}, "peer": {"address": "0000:5e:00.0", "bar": 2}}}"#;

    fn facts(serial: Option<&str>, driver: &str, uses: &[&str]) -> Facts {
        Facts {
            driver: Some(driver.into()),
            serial: serial.map(String::from),
            uses: uses.iter().map(|text| (*text).to_string()).collect(),
        }
    }

    #[test]
    fn a_profile_is_strict() {
        let profile = Profile::parse(PROFILE).unwrap();
        assert_eq!((profile.roles["peer"].bar, profile.suites.len()), (Some(2), 1));
        let twice = PROFILE.replace("5e", "3b");
        let (no_bar, no_address) = (PROFILE.replace("\"bar\": 2", "\"bar\": 6"), PROFILE.replace("0000:3b:00.0", "3b"));
        let unknown = PROFILE.replace("\"bar\"", "\"window\"");
        for (text, word) in [(twice, "another role"), (no_bar, "0 to 5"), (no_address, "nvme-a"), (unknown, "window")] {
            let reason = Profile::parse(&text).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn the_gate_wants_consent_the_serial_and_nobody_using_it() {
        let profile = Profile::parse(PROFILE).unwrap();
        let (nvme, peer) = (&profile.roles["nvme-a"], &profile.roles["peer"]);
        let free = facts(Some("S64X"), "nvme", &[]);
        let given = |role, facts: &Facts| gate("nvme-a", role, Consent::Given, facts, Known::Not);
        assert_eq!(given(nvme, &free), Ok(()));
        let held = |result: Result<(), String>, word: &str| {
            let reason = result.unwrap_err();
            assert!(reason.contains(word), "{reason}");
        };
        held(gate("nvme-a", nvme, Consent::Missing, &free, Known::FromStart), "--destructive");
        held(given(peer, &free), "no serial");
        held(given(nvme, &facts(Some("S64Y"), "nvme", &[])), "\"S64Y\"");
        held(given(nvme, &facts(Some("S64X"), "nvme", &["nvme0n1 is mounted at /"])), "mounted at /");
        held(given(nvme, &facts(None, "nvme", &[])), "tells no serial");
        let mut empty = nvme.clone();
        empty.serial = Some(" ".into());
        held(given(&empty, &facts(Some(""), "nvme", &[])), "no serial");
    }

    #[test]
    fn a_device_at_vfio_passes_only_if_its_serial_was_read_before() {
        let profile = Profile::parse(PROFILE).unwrap();
        let at = |driver, uses: &[&str], known| {
            gate("nvme-a", &profile.roles["nvme-a"], Consent::Given, &facts(None, driver, uses), known)
        };
        assert!(at("vfio-pci", &[], Known::Not).unwrap_err().contains("nvme unbind 0000:3b:00.0"));
        assert_eq!(at("vfio-pci", &[], Known::FromStart), Ok(()));
        // The kernel's driver has it again: then it must tell.
        assert!(at("nvme", &[], Known::FromStart).is_err());
        assert!(at("vfio-pci", &["nvme0n1 is in use"], Known::FromStart).is_err());
    }

    #[test]
    fn the_serial_number_capability_is_found() {
        let mut config = vec![0; 4096];
        // AER at 100h, then the serial number at 148h.
        config[0x100..0x104].copy_from_slice(&0x1481_0001_u32.to_le_bytes());
        config[0x148..0x14c].copy_from_slice(&0x0001_0003_u32.to_le_bytes());
        config[0x14c..0x150].copy_from_slice(&0x0403_0201_u32.to_le_bytes());
        config[0x150..0x154].copy_from_slice(&0x0807_0605_u32.to_le_bytes());
        assert_eq!(device_serial(&config).as_deref(), Some("08-07-06-05-04-03-02-01"));
        assert_eq!(device_serial(&config[..64]), None);
        assert_eq!(device_serial(&config[..0x150]), None);
        // A list that bites its tail ends.
        config[0x148..0x14c].copy_from_slice(&0x1001_0001_u32.to_le_bytes());
        assert_eq!(device_serial(&config), None);
    }
}
