//! A machine in a temporary directory, with a kernel that reacts to writes, and forked children. For tests.
// UNSAFETY: fork and waitpid.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use sw_engine::PciAddress;

use crate::{bind::Kernel, sysfs::Sysfs};

pub(crate) struct Tree {
    sysfs: Sysfs,
    root: PathBuf,
    fail: RefCell<Option<(String, i32)>>,
    refused: RefCell<Option<String>>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sw-vfio-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        let tree = Self { sysfs: Sysfs::at(&root), root, fail: RefCell::default(), refused: RefCell::default() };
        for driver in ["nvme", "vfio-pci"] {
            fs::create_dir_all(tree.sysfs.path(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        }
        tree
    }

    pub(crate) fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// Writes a file, with its directories.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.sysfs.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A function with a driver, alone in its group or not.
    pub(crate) fn function(&self, name: &str, class: &str, driver: &str, group: &str) -> PciAddress {
        let dir = format!("sys/bus/pci/devices/{name}");
        for (file, text) in [("class", class), ("vendor", "0x1b36"), ("device", "0x0010"), ("driver_override", "")] {
            self.write(&format!("{dir}/{file}"), text);
        }
        let group_dir = format!("sys/kernel/iommu_groups/{group}");
        self.write(&format!("{group_dir}/devices/{name}"), "");
        symlink(self.sysfs.path(&group_dir), self.sysfs.path(&format!("{dir}/iommu_group"))).unwrap();
        fs::create_dir_all(self.sysfs.path(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        self.give(name, driver);
        name.parse().unwrap()
    }

    /// An NVMe controller with the kernel's driver and one namespace of 64 MiB.
    pub(crate) fn nvme(&self, name: &str, controller: &str, group: &str) -> PciAddress {
        let address = self.function(name, "0x010802", "nvme", group);
        let dir = format!("sys/bus/pci/devices/{name}/nvme/{controller}");
        self.write(&format!("{dir}/serial"), "S123                \n");
        self.write(&format!("{dir}/model"), "QEMU NVMe Ctrl     \n");
        for (file, text) in [("nsid", "1"), ("size", "131072"), ("dev", "259:0")] {
            self.write(&format!("{dir}/{controller}n1/{file}"), text);
            self.write(&format!("sys/class/block/{controller}n1/{file}"), text);
        }
        address
    }

    /// A partition of a block device.
    pub(crate) fn partition(&self, block: &str, name: &str, number: &str) {
        self.write(&format!("sys/class/block/{block}/{name}/partition"), "1");
        self.write(&format!("sys/class/block/{block}/{name}/dev"), number);
    }

    /// A process has something open.
    pub(crate) fn open_file(&self, pid: u32, fd: &str, target: &str) {
        let path = self.sysfs.path(&format!("proc/{pid}/fd/{fd}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// The next write to a path that ends so is refused.
    pub(crate) fn fail_once(&self, path_end: &str) {
        self.fail_once_with(path_end, libc::EIO);
    }

    /// As [`Tree::fail_once`], with an errno.
    pub(crate) fn fail_once_with(&self, path_end: &str, errno: i32) {
        *self.fail.borrow_mut() = Some((path_end.to_owned(), errno));
    }

    /// This driver takes nothing.
    pub(crate) fn refuse_driver(&self, driver: &str) {
        *self.refused.borrow_mut() = Some(driver.to_owned());
    }

    fn give(&self, name: &str, driver: &str) {
        if self.refused.borrow().as_deref() != Some(driver) {
            let link = self.sysfs.path(&format!("sys/bus/pci/devices/{name}/driver"));
            symlink(self.sysfs.path(&format!("sys/bus/pci/drivers/{driver}")), link).unwrap();
        }
    }
}

/// Runs `child` in a forked child and says whether it returned `true` within 20 s.
pub(crate) fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child takes no lock that another thread of the parent may hold but the allocator's, which glibc and musl
    // make usable after a fork; it leaves by _exit, and an alarm ends it if it hangs.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no pointers.
        unsafe { libc::alarm(20) };
        let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends the child without running the parent's handlers.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: a child of ours and a writable status.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    waited == pid && status == 0
}

impl Kernel for Tree {
    fn write(&self, path: &str, text: &str) -> Result<(), i32> {
        if let Some((_, errno)) = self.fail.borrow_mut().take_if(|(end, _)| path.ends_with(end.as_str())) {
            return Err(errno);
        }
        let link = |name: &str| self.sysfs.path(&format!("sys/bus/pci/devices/{name}/driver"));
        let chosen = |name: &str| {
            self.sysfs.read(&format!("sys/bus/pci/devices/{name}/driver_override")).filter(|driver| !driver.is_empty())
        };
        if let Some(name) =
            path.strip_prefix("sys/bus/pci/devices/").and_then(|rest| rest.strip_suffix("/driver_override"))
        {
            Tree::write(self, &format!("sys/bus/pci/devices/{name}/driver_override"), text.trim());
        } else if path == "sys/bus/pci/drivers_probe" {
            if !link(text).exists() {
                self.give(text, &chosen(text).unwrap_or_else(|| "nvme".into()));
            }
        } else if path.ends_with("/unbind") {
            fs::remove_file(link(text)).map_err(|_| libc::ENODEV)?;
        } else if let Some(driver) =
            path.strip_prefix("sys/bus/pci/drivers/").and_then(|rest| rest.strip_suffix("/bind"))
        {
            let allowed = chosen(text).is_none_or(|only| only == driver);
            if !allowed || link(text).exists() {
                return Err(libc::ENODEV);
            }
            self.give(text, driver);
        } else {
            return Err(libc::ENOENT);
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
