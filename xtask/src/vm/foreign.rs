//! What guests carry of other people's in Python: a host of NVMe over RDMA (PyPI's `nvmeof`, by its author's `ibverbs`), pinned by version
//! and digest, and the distribution's interpreter with its library.

use std::path::{Path, PathBuf};

use super::packages::{self, Root};
use crate::{Place, Stop, pyenv};

const REQUIREMENTS: &str = "hwtests/vm/foreign-host.txt";
const SCRIPT: &str = "hwtests/vm/foreign_host.py";
/// Where a guest has the packages, and what it runs.
const PACKAGES_IN_GUEST: &str = "sw/python";
const SCRIPT_IN_GUEST: &str = "sw/foreign_host.py";
const LIBRARY: &str = "usr/lib/python3.11";
/// The interpreter, the one module of its library that is not Python and is needed, and what the packages' own is linked with.
const PROGRAMS: [&str; 4] = [
    "usr/bin/python3.11",
    "usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so",
    "lib/x86_64-linux-gnu/libdl.so.2",
    "lib/x86_64-linux-gnu/libpthread.so.0",
];
/// Parts of the library that nobody imports here, most of its bytes.
const LEFT_OUT: [&str; 9] = [
    "asyncio",
    "distutils",
    "email",
    "ensurepip",
    "lib-dynload",
    "lib2to3",
    "multiprocessing",
    "pydoc_data",
    "unittest",
];

/// The packages, in a folder below `target/vm`.
///
/// # Errors
/// No Python with `venv` on this machine, or an index that does not answer.
pub fn packages(place: &Place, vm: &Path) -> Result<PathBuf, Stop> {
    let dir = vm.join("foreign");
    pyenv::pinned(place, REQUIREMENTS, &dir).map_err(|reason| Stop::new(reason, "make the package index reachable"))?;
    let library = dir.join("lib");
    // python3.N, of the one that this machine has.
    let versions = std::fs::read_dir(&library).map_err(|error| packages::at(&library, "cannot read", &error))?;
    let sites = versions.flatten().map(|version| version.path().join("site-packages"));
    sites.into_iter().find(|site| site.join("nvmeof").exists()).ok_or_else(|| {
        Stop::new("nvmeof was installed and is not found", format!("remove {} and try again", dir.display()))
    })
}

/// What a guest carries, each file with its name there: `tree` is that with the interpreter.
///
/// # Errors
/// A folder cannot be read.
pub fn files(place: &Place, tree: &Root, site: &Path) -> Result<Vec<(String, PathBuf)>, Stop> {
    let mut files = vec![(SCRIPT_IN_GUEST.to_owned(), place.root.join(SCRIPT))];
    for program in PROGRAMS {
        files.extend(tree.closure(place, program)?);
    }
    below(&tree.file(LIBRARY), LIBRARY, &LEFT_OUT, &mut files)?;
    for package in ["nvmeof", "ibverbs"] {
        below(&site.join(package), &format!("{PACKAGES_IN_GUEST}/{package}"), &[], &mut files)?;
    }
    Ok(files)
}

/// Modules below a folder, but those of some parts.
fn below(dir: &Path, name: &str, but: &[&str], files: &mut Vec<(String, PathBuf)>) -> Result<(), Stop> {
    let entries = std::fs::read_dir(dir).map_err(|error| packages::at(dir, "cannot read", &error))?;
    for entry in entries.flatten() {
        let (path, base) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let inside = format!("{name}/{base}");
        if path.is_dir() {
            if !but.contains(&&*base) && base != "__pycache__" {
                below(&path, &inside, &[], files)?;
            }
        } else if [".py", ".so"].iter().any(|ending| base.ends_with(ending)) {
            files.push((inside, path));
        }
    }
    Ok(())
}
