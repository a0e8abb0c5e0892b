//! What a test in the guest may ask of the host, by a line `SW-HOST VERB ARGUMENT`.
//!
//! | Verb | Argument | Does |
//! |---|---|---|
//! | `echo` | text | answers with the text: the channel works |
//! | `device_del` | role | removes the device, as if it were pulled out |
//! | `device_add` | role | puts it back into its port, once the machine has let go of it |
//! | `peer_sum` | offset length | FNV-1a of that range of the peer's BAR, read from the file behind it |
//! | `link` | role, `up` or `down` | plugs the wire of a network card in, or cuts it |
//! | `power_cut` | | ends the machine at once; the second phase boots with what a power cut leaves |

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::machine::{DISK_BYTES, Device};
use super::qmp::Monitor;

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Ok(String),
    No(String),
    /// No answer: the machine ends.
    PowerCut,
}

/// Serves one guest.
#[derive(Debug)]
pub struct Host<'a> {
    devices: &'a [Device],
    dir: &'a Path,
    socket: PathBuf,
    monitor: Option<Monitor>,
    removed: Vec<Device>,
}

impl<'a> Host<'a> {
    /// `socket` is connected at the first request that needs QEMU.
    pub fn new(devices: &'a [Device], dir: &'a Path, socket: PathBuf) -> Host<'a> {
        Host { devices, dir, socket, monitor: None, removed: Vec::new() }
    }

    pub fn answer(&mut self, verb: &str, argument: &str) -> Answer {
        let done = match verb {
            "power_cut" => return Answer::PowerCut,
            "echo" => Ok(argument.to_string()),
            "device_del" => self.device(argument).and_then(|device| self.remove(device)),
            "device_add" => self.device(argument).and_then(|device| self.add(device)),
            "link" => self.link(argument),
            "peer_sum" => self.peer_sum(argument),
            other => Err(format!("the host does not know {other}")),
        };
        done.map_or_else(Answer::No, Answer::Ok)
    }

    fn device(&self, name: &str) -> Result<Device, String> {
        let device = Device::named(name).filter(|device| self.devices.contains(device));
        device.ok_or_else(|| format!("this guest has no device {name}"))
    }

    fn monitor(&mut self) -> Result<&mut Monitor, String> {
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::connect(&self.socket)?);
        }
        self.monitor.as_mut().ok_or_else(|| "no monitor".to_string())
    }

    fn remove(&mut self, device: Device) -> Result<String, String> {
        let id = serde_json::json!({"id": device.name()});
        self.monitor()?.execute("device_del", &id)?;
        self.removed.push(device);
        Ok(String::new())
    }

    fn add(&mut self, device: Device) -> Result<String, String> {
        let removed = self.removed.contains(&device);
        self.removed.retain(|other| *other != device);
        let monitor = self.monitor()?;
        if removed {
            monitor.wait_deleted(device.name())?;
        }
        for part in device.parts() {
            monitor.execute("device_add", &part)?;
        }
        Ok(String::new())
    }

    fn link(&mut self, argument: &str) -> Result<String, String> {
        let up = match argument.split_once(' ') {
            Some((_, "up")) => true,
            Some((_, "down")) => false,
            _ => return Err(format!("link wants a device, and up or down, got {argument:?}")),
        };
        let device = self.device(argument.split(' ').next().unwrap_or_default())?;
        let done = self.monitor()?.execute("set_link", &serde_json::json!({"name": device.name(), "up": up}));
        done.map(|_| String::new())
    }

    fn peer_sum(&self, argument: &str) -> Result<String, String> {
        let numbers: Option<Vec<u64>> = argument.split(' ').map(|word| word.parse().ok()).collect();
        let Some([offset, length]) = numbers.as_deref() else {
            return Err(format!("peer_sum wants an offset and a length, got {argument:?}"));
        };
        if offset.checked_add(*length).is_none_or(|end| end > DISK_BYTES) {
            return Err(format!("{argument} is beyond the peer's {DISK_BYTES} bytes"));
        }
        let mut bytes = vec![0; usize::try_from(*length).unwrap_or(0)];
        let file = std::fs::File::open(self.dir.join("peer.bar")).map_err(|error| format!("no peer ({error})"))?;
        file.read_exact_at(&mut bytes, *offset).map_err(|error| format!("the peer's file is short ({error})"))?;
        Ok(format!("{:016x}", super::fnv1a(&bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_before_anything_is_done() {
        let dir = std::env::temp_dir();
        let mut host = Host::new(&[Device::NvmeB], &dir, dir.join("no-such-socket"));
        assert_eq!(host.answer("echo", "a b"), Answer::Ok("a b".into()));
        assert_eq!(host.answer("power_cut", ""), Answer::PowerCut);
        for (verb, argument) in [
            ("format_disk", ""),
            ("device_del", "nvme-a"),
            ("device_del", "nvme-b"),
            ("link", "nvme-a down"),
            ("link", "nvme-b off"),
            ("peer_sum", "1"),
            ("peer_sum", "18446744073709551615 2"),
        ] {
            assert!(matches!(host.answer(verb, argument), Answer::No(_)), "{verb} {argument}");
        }
    }
}
