//! A file system on a namespace, for as long as a test needs it.

use std::path::Path;
use std::process::Command;

use crate::block::Namespace;
use crate::registry::{Stop, Verdict, fail};

/// Where it is mounted.
const MOUNT_POINT: &str = "/mnt";

fn run(program: &str, arguments: &[&str]) -> Result<(), Stop> {
    let output = Command::new(program).args(arguments).output()?;
    match output.status.success() {
        true => Ok(()),
        false => fail(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Makes an ext file system on the namespace (what was there is lost), mounts it, and gives the directory to `look`.
///
/// # Errors
/// A failure of a step, or of `look`.
pub fn mounted(namespace: &Namespace, look: impl FnOnce(&Path) -> Verdict) -> Verdict {
    let node = namespace.node.to_string_lossy();
    run("mke2fs", &["-F", "-b", "4096", &node])?;
    // Its driver takes file systems without a journal, too.
    run("mount", &["-t", "ext4", &node, MOUNT_POINT])?;
    let looked = look(Path::new(MOUNT_POINT));
    run("umount", &[MOUNT_POINT])?;
    looked
}
