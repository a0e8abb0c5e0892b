//! Who owns a controller, and that nobody loses data by it: as values that a driver must have.
//!
//! ```text
//!   ControllerClaim::take ─► nobody else has a lock on it, the kernel does not drive it
//!         └── namespace(…) ─► the serial is the one that was asked for, and the kernel uses the same namespace by no other way
//! ```
//!
//! The lock is an advisory one (`flock(2)`) on the function's own file in sysfs: every user may take it, it needs no directory,
//! leaves nothing behind, and containers that share the device share it. VFIO itself lets one process open a group or a
//! device; the lock comes first, so that the second process learns who the first one is instead of that something is busy.

use std::{
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError},
};

use sw_engine::{Error, ErrorKind, PciAddress, Verb};
use sw_mem::ForkMark;
use sw_nvme::namespace::Identity;

use crate::{
    bind::{self, VFIO_PCI},
    fault,
    inventory::{self, Use},
    sys,
    sysfs::Sysfs,
};

/// A controller that this process, and nobody else, drives. Given up on drop, or before.
#[derive(Debug)]
pub struct ControllerClaim {
    sysfs: Sysfs,
    address: PciAddress,
    fork: ForkMark,
    lock: Mutex<Option<OwnedFd>>,
}

/// A namespace whose bytes may be written: it belongs to a claimed controller, is the one that was asked for, and the kernel
/// does not use it.
#[derive(Clone, Debug)]
pub struct NamespaceClaim {
    controller: Arc<ControllerClaim>,
    nsid: u32,
}

/// What a device said of one of its namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The controller's serial number.
    pub serial: &'a str,
    /// Which namespace of the controller.
    pub nsid: u32,
    /// The name that the namespace has everywhere.
    pub identity: &'a Identity,
}

impl ControllerClaim {
    /// Claims the controller at `address`.
    ///
    /// # Errors
    /// `InUse` if another process has it, with its number where it can be found, or if the kernel's driver has it, with what
    /// is mounted from it; `NoDevice`.
    pub fn take(sysfs: &Sysfs, address: PciAddress) -> Result<Arc<Self>, Error> {
        sysfs.expect_function(address)?;
        if let Some(driver) = sysfs.driver(address).filter(|driver| driver != VFIO_PCI) {
            let uses: Vec<String> = inventory::look(sysfs, address).uses().map(Use::to_string).collect();
            let used = if uses.is_empty() { String::new() } else { format!(" ({})", uses.join(", ")) };
            return Err(Error::new(ErrorKind::InUse, Verb::Open)
                .at(address.to_string())
                .detail(format!("the kernel's driver {driver} has it{used}"))
                .remedy(format!("straightway nvme bind {address} gives it to vfio-pci")));
        }
        let file = format!("{}/vendor", Sysfs::function(address));
        let failed = |errno| fault::error(errno, Verb::Open, address.to_string(), "locking it");
        let lock = sys::open(&sysfs.path(&file), libc::O_RDONLY).map_err(failed)?;
        match sys::try_lock(lock.as_fd()) {
            Ok(()) => {
                let (fork, lock) = (ForkMark::new(), Mutex::new(Some(lock)));
                Ok(Arc::new(Self { sysfs: sysfs.clone(), address, fork, lock }))
            }
            Err(libc::EWOULDBLOCK) => Err(in_use(sysfs, address, &file)),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Gives the controller up now, although others still hold this value: it is anybody's from then on. In a forked child
    /// nothing is done.
    pub fn release(&self) {
        if self.fork.is_child() {
            return;
        }
        if let Some(lock) = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Children of a fork share the lock: it would live as long as they do.
            let _ = sys::unlock(lock.as_fd());
        }
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Claims a namespace of it, of which the device said what is `found`; `serial` is what the caller asked for, if anything.
    ///
    /// # Errors
    /// `Changed` if another device is there than the caller named; `InUse` if the kernel mounts the same namespace through
    /// another controller.
    pub fn namespace(self: &Arc<Self>, found: Found<'_>, serial: Option<&str>) -> Result<NamespaceClaim, Error> {
        let place = format!("{}/{}", self.address, found.nsid);
        let has = found.serial.trim();
        if let Some(wanted) = serial.map(str::trim).filter(|wanted| *wanted != has) {
            return Err(Error::new(ErrorKind::Changed, Verb::Open)
                .at(place)
                .detail(format!("its serial number is {has:?}, not {wanted:?}"))
                .remedy(
                    "PCI addresses can change between two starts: look for the serial number in straightway nvme list",
                ));
        }
        let twins = twins(&self.sysfs, found);
        let uses: Vec<String> =
            twins.iter().flat_map(|name| inventory::uses(&self.sysfs, name)).map(|found| found.to_string()).collect();
        if !uses.is_empty() {
            return Err(Error::new(ErrorKind::InUse, Verb::Open)
                .at(place)
                .detail(format!("the kernel uses the same namespace through another controller: {}", uses.join(", ")))
                .remedy("unmount it first"));
        }
        Ok(NamespaceClaim { controller: Arc::clone(self), nsid: found.nsid })
    }
}

impl Drop for ControllerClaim {
    fn drop(&mut self) {
        self.release();
    }
}

impl NamespaceClaim {
    /// Its controller.
    pub fn controller(&self) -> &ControllerClaim {
        &self.controller
    }

    /// Which namespace of the controller.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }
}

fn in_use(sysfs: &Sysfs, address: PciAddress, file: &str) -> Error {
    let owner = lock_owner(sysfs, file).or_else(|| bind::owner(sysfs, address));
    let error = Error::new(ErrorKind::InUse, Verb::Open).at(address.to_string());
    if owner == Some(std::process::id()) {
        return error
            .detail("this process has it already, by another engine; a controller has one owner")
            .remedy("use the engine that has it, or close that engine first");
    }
    let who = owner.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
    error
        .detail(format!("{who} has it; a controller has one owner"))
        .remedy("stop that process, or use another controller")
}

/// The process that holds the lock on a file: `/proc/locks` names it by the file's device and number (proc(5)).
fn lock_owner(sysfs: &Sysfs, file: &str) -> Option<u32> {
    let told = std::fs::metadata(sysfs.path(file)).ok()?;
    let locks = sysfs.read("proc/locks")?;
    let (major, minor) = (libc::major(told.dev()), libc::minor(told.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", told.ino());
    let pid = |line: &str| {
        // `1: FLOCK  ADVISORY  WRITE 1234 00:15:4711 0 EOF`
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == wanted)?;
        words.get(at.checked_sub(1)?)?.parse::<u32>().ok().filter(|pid| *pid > 0)
    };
    locks.lines().filter(|line| line.contains("FLOCK")).find_map(pid)
}

/// Block devices of the kernel that are the same namespace, seen through another controller.
fn twins(sysfs: &Sysfs, found: Found<'_>) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let plain = |text: String| text.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_lowercase();
    let same = |name: &String| {
        let told = |file: &str| sysfs.read(&format!("sys/class/block/{name}/{file}"));
        match found.identity {
            Identity::Uuid(bytes) => told("uuid").map(plain) == Some(hex(bytes)),
            Identity::Nguid(bytes) => told("nguid").map(plain) == Some(hex(bytes)),
            Identity::Eui64(bytes) => told("eui").map(plain) == Some(hex(bytes)),
            Identity::Serial(serial, nsid) => {
                told("device/serial").as_deref() == Some(serial.trim()) && told("nsid") == Some(nsid.to_string())
            }
        }
    };
    let names = sysfs.names("sys/class/block");
    names.into_iter().filter(|name| name.starts_with("nvme") && same(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Tree;

    fn free() -> (Tree, PciAddress) {
        let tree = Tree::new();
        let address = tree.function("0000:01:00.0", "0x010802", VFIO_PCI, "4");
        (tree, address)
    }

    fn found(identity: &Identity) -> Found<'_> {
        Found { serial: "S123   ", nsid: 1, identity }
    }

    #[test]
    fn a_controller_has_one_owner_who_is_named() {
        let (tree, address) = free();
        let first = ControllerClaim::take(tree.sysfs(), address).unwrap();
        let second = ControllerClaim::take(tree.sysfs(), address).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::InUse);
        assert!(second.to_string().contains("another process has it; a controller has one owner"), "{second}");
        let ino = std::fs::metadata(tree.sysfs().path("sys/bus/pci/devices/0000:01:00.0/vendor")).unwrap();
        let (major, minor) = (libc::major(ino.dev()), libc::minor(ino.dev()));
        tree.write(
            "proc/locks",
            &format!("1: FLOCK  ADVISORY  WRITE 4711 {major:02x}:{minor:02x}:{} 0 EOF\n", ino.ino()),
        );
        let told = ControllerClaim::take(tree.sysfs(), address).unwrap_err();
        assert!(told.to_string().contains("process 4711 has it"), "{told}");
        let own = std::process::id();
        tree.write(
            "proc/locks",
            &format!("1: FLOCK  ADVISORY  WRITE {own} {major:02x}:{minor:02x}:{} 0 EOF\n", ino.ino()),
        );
        let told = ControllerClaim::take(tree.sysfs(), address).unwrap_err();
        assert!(told.to_string().contains("this process has it already"), "{told}");
        assert!(told.remedy_text().contains("close that engine"), "{told}");
        drop(first);
        assert!(ControllerClaim::take(tree.sysfs(), address).is_ok());
    }

    #[test]
    fn a_claim_is_given_up_while_others_hold_it_and_a_forked_child_gives_nothing_up() {
        let (tree, address) = free();
        let claim = ControllerClaim::take(tree.sysfs(), address).unwrap();
        let held = claim.namespace(found(&Identity::Nguid([7; 16])), None).unwrap();
        assert!(crate::fake::in_child(|| {
            claim.release();
            true
        }));
        assert_eq!(ControllerClaim::take(tree.sysfs(), address).unwrap_err().kind(), ErrorKind::InUse);
        claim.release();
        let second = ControllerClaim::take(tree.sysfs(), address).unwrap();
        drop((held, claim));
        assert!(ControllerClaim::take(tree.sysfs(), address).is_err(), "the old value does not give up the new claim");
        drop(second);
    }

    #[test]
    fn the_real_table_of_locks_names_this_process() {
        let path = std::env::temp_dir().join(format!("sw-vfio-lock-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let file = sys::open(&path, libc::O_RDONLY).unwrap();
        sys::try_lock(file.as_fd()).unwrap();
        let relative = path.to_string_lossy().trim_start_matches('/').to_owned();
        assert_eq!(lock_owner(&Sysfs::default(), &relative), Some(std::process::id()));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_the_kernel_drives_is_not_claimed() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.write("proc/self/mountinfo", "22 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n");
        let refused = ControllerClaim::take(tree.sysfs(), address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InUse);
        let text = refused.to_string();
        assert!(text.contains("driver nvme has it (nvme0n1 is mounted at /data)"), "{text}");
        assert!(text.contains("straightway nvme bind 0000:01:00.0"), "{text}");
    }

    #[test]
    fn another_serial_is_another_device() {
        let (tree, address) = free();
        let controller = ControllerClaim::take(tree.sysfs(), address).unwrap();
        let identity = Identity::Nguid([0xAB; 16]);
        assert_eq!(controller.namespace(found(&identity), Some("S123")).unwrap().nsid(), 1);
        assert!(controller.namespace(found(&identity), None).is_ok());
        assert_eq!(controller.namespace(found(&identity), Some("S12")).unwrap_err().kind(), ErrorKind::Changed);
    }

    #[test]
    fn a_namespace_that_is_mounted_through_another_controller_is_refused() {
        let (tree, address) = free();
        tree.nvme("0000:02:00.0", "nvme1", "5");
        tree.write("sys/class/block/nvme1n1/nguid", "abababab-abab-abab-abab-abababababab\n");
        tree.write("sys/class/block/nvme1n1/device/serial", "S9  \n");
        let controller = ControllerClaim::take(tree.sysfs(), address).unwrap();
        let same = Identity::Nguid([0xAB; 16]);
        assert!(controller.namespace(found(&same), None).is_ok(), "nobody uses it there either");
        tree.write("proc/self/mountinfo", "22 1 259:0 / /data rw - ext4 /dev/nvme1n1 rw\n");
        for same in [same, Identity::Serial("S9".into(), 1)] {
            assert_eq!(controller.namespace(found(&same), None).unwrap_err().kind(), ErrorKind::InUse);
        }
        for other in [Identity::Nguid([1; 16]), Identity::Uuid([0xAB; 16]), Identity::Serial("S9".into(), 2)] {
            assert!(controller.namespace(found(&other), None).is_ok(), "{other}");
        }
    }
}
