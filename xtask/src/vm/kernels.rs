//! Kernels to boot: two of the distribution, with the few modules a guest loads, and one of our own.
//!
//! | Kernel | From | Has |
//! |---|---|---|
//! | `stock` | the release's security archive, 6.12 | what machines run: NVMe, VFIO type 1; no peer-to-peer pages, no iommufd |
//! | `backports` | the next release's backports, 7.3 | and peer-to-peer pages, dma-buf export of a BAR |
//! | `own` | `cargo xtask vm kernel` | and iommufd, VFIO device nodes, VFIO without an IOMMU |
//!
//! A prepared kernel is a directory `kernels/NAME` with `vmlinuz`, `release` and `modules/NN-NAME.ko`, unpacked and in
//! the order in which they load. It is made once; a change of [`MODULES`] makes it again from the package that lies
//! in `debs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::packages::{self, Archive, Root, at};
use crate::proc::Job;
use crate::{Place, Stop};

/// A kernel that a guest can boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    Stock,
    Backports,
    Own,
}

impl Kernel {
    pub const ALL: [Kernel; 3] = [Kernel::Stock, Kernel::Backports, Kernel::Own];

    pub fn name(self) -> &'static str {
        match self {
            Kernel::Stock => "stock",
            Kernel::Backports => "backports",
            Kernel::Own => "own",
        }
    }

    pub fn named(name: &str) -> Option<Kernel> {
        Kernel::ALL.into_iter().find(|kernel| kernel.name() == name)
    }
}

/// Modules that guests of a stock kernel load, with all they depend on. One that a kernel has built in is skipped. Those in the last
/// lines are asked for by name, for authentication and for TLS: guests have nobody who would load them then.
const MODULES: [&str; 16] = [
    "nvme",
    "vfio_pci",
    "vfio_iommu_type1",
    "ext4",
    "crc32c_generic",
    "virtio_blk",
    "nvmet_tcp",
    "nvme_tcp",
    "e1000e",
    "hmac",
    "sha256_generic",
    "sha512_generic",
    "dh_generic",
    "tls",
    "gcm",
    "ghash_generic",
];
/// Modules that guests with RDMA load behind those. rxe wants its checksum first, and nobody would load that when it asks.
const RDMA_MODULES: [&str; 7] =
    ["crc32_generic", "dummy", "rdma_rxe", "ib_uverbs", "rdma_ucm", "nvmet_rdma", "nvme_rdma"];
/// Modules that a kernel may lack without being wrong: what they do is built in under another name.
const MAY_LACK: [&str; 8] = [
    "crc32_generic",
    "crc32c_generic",
    "hmac",
    "sha256_generic",
    "sha512_generic",
    "dh_generic",
    "gcm",
    "ghash_generic",
];

/// A kernel, ready to boot.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub image: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
    /// In the order in which they load; none for our own kernel.
    pub modules: Vec<PathBuf>,
    /// Those of RDMA, behind the others.
    pub rdma: Vec<PathBuf>,
}

/// Prepares a stock kernel.
///
/// # Errors
/// The archive is not reachable, or its kernel lacks a module that guests need.
pub fn stock(place: &Place, archive: &Archive<'_>, root: &Root, kernel: Kernel) -> Result<Prepared, Stop> {
    let vm = super::directory(place);
    let dir = vm.join("kernels").join(kernel.name());
    let wanted = [&MODULES[..], &RDMA_MODULES].concat().join(" ");
    if std::fs::read_to_string(dir.join("stamp")).is_ok_and(|there| there == wanted) {
        return load(&dir);
    }
    let packages = match kernel {
        Kernel::Stock => vec![first(archive, "linux-image-6.12-amd64", "bookworm-security", "linux-image-6")?],
        Kernel::Backports | Kernel::Own => {
            let image = first(archive, "linux-image-amd64", "trixie-backports", "linux-image-")?;
            let version = image.trim_start_matches("linux-image-").to_string();
            ["base", "binary", "modules"].iter().map(|part| format!("linux-{part}-{version}")).collect()
        }
    };
    let tree = vm.join("tree");
    packages::remove_dir(&tree)?;
    packages::remove_dir(&dir)?;
    packages::make_dir(&tree)?;
    for package in &packages {
        archive.unpack(&archive.deb(package)?, &tree)?;
    }
    prepare(place, root, &tree, &dir)?;
    packages::write(&dir.join("stamp"), wanted.as_bytes())?;
    packages::remove_dir(&tree)?;
    load(&dir)
}

/// The first dependency of a package whose name starts with `prefix`: what a package of no content stands for.
fn first(archive: &Archive<'_>, package: &str, suite: &str, prefix: &str) -> Result<String, Stop> {
    let depends = archive.depends(package, suite)?;
    let found = depends.into_iter().find(|name| name.starts_with(prefix));
    found.ok_or_else(|| {
        Stop::new(
            format!("{package} of {suite} names no {prefix}…"),
            "adapt the package names in xtask/src/vm/kernels.rs",
        )
    })
}

fn load(dir: &Path) -> Result<Prepared, Stop> {
    let release = String::from_utf8_lossy(&packages::read(&dir.join("release"))?).trim().to_string();
    let modules = packages::files_ending(&dir.join("modules"), ".ko")?;
    let rdma = packages::files_ending(&dir.join("rdma"), ".ko")?;
    Ok(Prepared { image: dir.join("vmlinuz"), release, modules, rdma })
}

/// Takes image and modules out of an unpacked package tree.
fn prepare(place: &Place, root: &Root, tree: &Path, dir: &Path) -> Result<(), Stop> {
    let broken = |what: &str| Stop::new(format!("the kernel package has no {what}"), "see xtask/src/vm/kernels.rs");
    let files = walk(tree)?;
    let image = files.iter().find(|path| file_name(path).starts_with("vmlinuz")).ok_or_else(|| broken("vmlinuz"))?;
    let builtin =
        files.iter().find(|path| file_name(path) == "modules.builtin").ok_or_else(|| broken("module list"))?;
    let release = builtin.parent().map(file_name).ok_or_else(|| broken("release"))?;
    let builtin = String::from_utf8_lossy(&packages::read(builtin)?).lines().map(module_name).collect::<Vec<_>>();
    let index: BTreeMap<String, PathBuf> = files
        .iter()
        .filter(|path| file_name(path).contains(".ko"))
        .map(|p| (module_name(&file_name(p)), p.clone()))
        .collect();
    let unpacked = dir.join("unpacked");
    packages::make_dir(&unpacked)?;
    packages::make_dir(&dir.join("modules"))?;
    packages::make_dir(&dir.join("rdma"))?;
    let mut depends = |name: &str| -> Result<Option<Vec<String>>, Stop> {
        let Some(path) = index.get(name) else {
            return if builtin.iter().any(|other| other == name) || MAY_LACK.contains(&name) {
                Ok(None)
            } else {
                Err(broken(&format!("module {name}")))
            };
        };
        let ko = unpacked.join(format!("{name}.ko"));
        unpack_module(place, root, path, &ko)?;
        Ok(Some(depends_of(&packages::read(&ko)?)))
    };
    let base = load_order(&MODULES, &mut depends)?.len();
    let order = load_order(&[&MODULES[..], &RDMA_MODULES].concat(), &mut depends)?;
    for (number, name) in order.iter().enumerate() {
        let folder = if number < base { "modules" } else { "rdma" };
        let to = dir.join(format!("{folder}/{number:02}-{name}.ko"));
        std::fs::rename(unpacked.join(format!("{name}.ko")), &to).map_err(|error| at(&to, "cannot make", &error))?;
    }
    packages::remove_dir(&unpacked)?;
    std::fs::copy(image, dir.join("vmlinuz")).map_err(|error| at(dir, "cannot copy a kernel to", &error))?;
    packages::write(&dir.join("release"), release.as_bytes())
}

/// Copies a module, unpacked if it is packed. busybox of the root unpacks: the machine may have no xz.
fn unpack_module(place: &Place, root: &Root, from: &Path, to: &Path) -> Result<(), Stop> {
    if !file_name(from).ends_with(".xz") {
        return std::fs::copy(from, to).map(drop).map_err(|error| at(to, "cannot copy to", &error));
    }
    let script = "exec \"$0\" xz -dc \"$1\" > \"$2\"".to_string();
    let args = ["-c".to_string(), script, path_text(&root.busybox()), path_text(from), path_text(to)];
    packages::collect("busybox xz", Job::program(place, Path::new("sh"), &args)).map(drop)
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// What `modinfo` calls depends: the module's strings hold `depends=a,b` between two NULs.
fn depends_of(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let found = module.windows(key.len()).position(|window| window == key);
    let list = found.map(|start| module.get(start + key.len()..).unwrap_or_default()).unwrap_or_default();
    let end = list.iter().position(|byte| *byte == 0).unwrap_or(0);
    let list = String::from_utf8_lossy(list.get(..end).unwrap_or_default()).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(String::from).collect()
}

/// What a module depends on; None for one that needs no loading.
type Depends<'a> = dyn FnMut(&str) -> Result<Option<Vec<String>>, Stop> + 'a;

/// Modules after all they depend on, each once.
fn load_order(wanted: &[&str], depends: &mut Depends<'_>) -> Result<Vec<String>, Stop> {
    let mut order: Vec<String> = Vec::new();
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    // A module goes on the stack twice: to look at what it needs, and below that, to be loaded.
    let mut stack: Vec<(String, bool)> = wanted.iter().rev().map(|name| ((*name).to_string(), false)).collect();
    while let Some((name, ready)) = stack.pop() {
        if ready {
            order.push(name);
        } else if seen.insert(name.clone(), ()).is_none()
            && let Some(below) = depends(&name)?
        {
            stack.push((name, true));
            stack.extend(below.into_iter().rev().map(|name| (name, false)));
        }
    }
    Ok(order)
}

/// `nvme-core` in any spelling of a module's file or line: `kernel/drivers/nvme/host/nvme-core.ko.xz`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Every file below a directory.
fn walk(dir: &Path) -> Result<Vec<PathBuf>, Stop> {
    let mut files = Vec::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        let entries = std::fs::read_dir(&dir).map_err(|error| at(&dir, "cannot list", &error))?;
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir { waiting.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_depend_on() {
        let mut depends = |name: &str| {
            let list: &[&str] = match name {
                "nvme" => &["nvme_core", "shared"],
                "vfio_pci" => &["vfio", "shared"],
                "shared" => &["base"],
                "built_in" => return Ok(None),
                "missing" => return Err(Stop::new("x", "y")),
                _ => &[],
            };
            Ok(Some(list.iter().map(|name| (*name).to_string()).collect()))
        };
        let order = load_order(&["nvme", "built_in", "vfio_pci"], &mut depends).unwrap();
        assert_eq!(order, ["nvme_core", "base", "shared", "nvme", "vfio", "vfio_pci"]);
        assert!(load_order(&["missing"], &mut depends).is_err());
    }

    #[test]
    fn names_and_dependencies_are_read_as_the_kernel_writes_them() {
        assert_eq!(module_name("kernel/drivers/nvme/host/nvme-core.ko.xz"), "nvme_core");
        assert_eq!(module_name("vfio.ko"), "vfio");
        assert_eq!(depends_of(b"x\0depends=nvme-core,nvme_auth\0y"), ["nvme_core", "nvme_auth"]);
        assert!(depends_of(b"x\0depends=\0y").is_empty());
        assert!(depends_of(b"depends").is_empty());
    }
}
