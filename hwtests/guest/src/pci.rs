//! PCI devices in sysfs: where they are, which driver has them, their group and their BARs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::context::{entries, name, read_text, write_text};
use crate::registry::{Stop, Verdict, fail, skip};

/// The root bus of the emulated board.
const ROOT_BUS: &str = "/sys/devices/pci0000:00";
/// How long a driver may take to accept a device.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
const PROBE_POLL: Duration = Duration::from_millis(5);
const BUS_DEVICES: &str = "/sys/bus/pci/devices";
const DRIVERS_PROBE: &str = "/sys/bus/pci/drivers_probe";

/// One function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    path: PathBuf,
    /// `DDDD:BB:DD.F`.
    pub address: String,
    permit: Permit,
}

/// Whether a device's driver may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permit {
    Bind,
    Look,
}

impl Device {
    /// The device behind a chain of ports, each as `DD.F`, from the root down: `07.0/00.0/01.0`.
    pub fn behind(ports: &str) -> Option<Device> {
        let mut at = PathBuf::from(ROOT_BUS);
        for port in ports.split('/') {
            at = functions(&at).into_iter().find(|path| name(path).ends_with(&format!(":{port}")))?;
        }
        let path = functions(&at).into_iter().next()?;
        let address = name(&path);
        // The bus lists a device when its files are complete; its directory is there a moment before.
        Path::new(BUS_DEVICES).join(&address).exists().then_some(Device { path, address, permit: Permit::Bind })
    }

    /// The device at an address.
    pub fn at(address: &str) -> Option<Device> {
        let path = std::fs::canonicalize(Path::new(BUS_DEVICES).join(address)).ok()?;
        Some(Device { path, address: address.to_string(), permit: Permit::Bind })
    }

    /// The same one for a test that has promised to leave it as it is.
    pub fn only_looked_at(self) -> Device {
        Device { permit: Permit::Look, ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the device's directory.
    ///
    /// # Errors
    /// A failure with the path.
    pub fn attribute(&self, name: &str) -> Result<String, Stop> {
        read_text(&self.path.join(name))
    }

    /// Vendor and device number as `VVVV:DDDD`.
    pub fn id(&self) -> Result<String, Stop> {
        let digits = |text: String| text.trim_start_matches("0x").to_string();
        Ok(format!("{}:{}", digits(self.attribute("vendor")?), digits(self.attribute("device")?)))
    }

    /// The driver that has it.
    pub fn driver(&self) -> Option<String> {
        std::fs::read_link(self.path.join("driver")).ok().map(|target| name(&target))
    }

    /// The IOMMU group, where DMA is translated.
    pub fn iommu_group(&self) -> Option<String> {
        std::fs::read_link(self.path.join("iommu_group")).ok().map(|target| name(&target))
    }

    /// Devices of its group, itself included.
    pub fn group_members(&self) -> Vec<String> {
        entries(&self.path.join("iommu_group/devices")).iter().map(|path| name(path)).collect()
    }

    /// Bytes of a BAR; 0 if it has none of that number.
    pub fn bar_bytes(&self, bar: usize) -> Result<u64, Stop> {
        let text = self.attribute("resource")?;
        let line = text.lines().nth(bar).unwrap_or_default();
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
        let words: Vec<u64> = line.split_whitespace().map(number).collect();
        match words.as_slice() {
            [0, 0, ..] => Ok(0),
            [start, end, ..] => Ok(end - start + 1),
            _ => fail(format!("{}: resource line {line:?}", self.address)),
        }
    }

    /// Gives the device to a driver, which must take it.
    ///
    /// # Errors
    /// A failure: sysfs refused, or another driver has it afterwards. A skip: this test only looks.
    pub fn bind(&self, driver: &str) -> Verdict {
        if self.driver().as_deref() == Some(driver) {
            return Ok(());
        }
        if self.permit == Permit::Look {
            return skip(format!("{} would have to be taken from {:?}", self.address, self.driver()));
        }
        write_text(&self.path.join("driver_override"), driver)?;
        if self.driver().is_some() {
            write_text(&self.path.join("driver/unbind"), &self.address)?;
        }
        write_text(Path::new(DRIVERS_PROBE), &self.address)?;
        // A device that has just appeared may be in the hands of a probe that began before ours.
        let start = Instant::now();
        while self.driver().as_deref() != Some(driver) {
            if start.elapsed() > PROBE_LIMIT {
                let other = self.driver();
                return fail(format!("{}: driver {driver} did not take it, it has {other:?}", self.address));
            }
            std::thread::sleep(PROBE_POLL);
        }
        Ok(())
    }
}

/// Functions on the bus below a directory of sysfs.
fn functions(dir: &Path) -> Vec<PathBuf> {
    let address = |path: &PathBuf| {
        let name = name(path);
        name.len() == 12 && name.get(4..5) == Some(":") && name.get(7..8) == Some(":") && name.get(10..11) == Some(".")
    };
    entries(dir).into_iter().filter(address).collect()
}
