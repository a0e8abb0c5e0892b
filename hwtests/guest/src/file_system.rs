//! A file system on a namespace, for as long as a test needs it.

use std::path::Path;
use std::process::Command;

use crate::block::Namespace;
use crate::registry::{Stop, Verdict, fail};

/// Where it is mounted.
const MOUNT_POINT: &str = "/mnt";
/// Bytes of a block of the file system.
const BLOCK_BYTES: u64 = 4096;

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
    small(namespace, namespace.bytes, look)
}

/// As [`mounted`], of `len_bytes` at the start of the namespace.
///
/// # Errors
/// A failure of a step, or of `look`.
pub fn small(namespace: &Namespace, len_bytes: u64, look: impl FnOnce(&Path) -> Verdict) -> Verdict {
    let blocks = (len_bytes / BLOCK_BYTES).to_string();
    run("mke2fs", &["-F", "-b", &BLOCK_BYTES.to_string(), &namespace.node.to_string_lossy(), &blocks])?;
    remounted(namespace, look)
}

/// Mounts the ext file system that is there, and gives the directory to `look`.
///
/// # Errors
/// A failure of a step, or of `look`.
pub fn remounted(namespace: &Namespace, look: impl FnOnce(&Path) -> Verdict) -> Verdict {
    let node = namespace.node.to_string_lossy();
    // Its driver takes file systems without a journal, too.
    run("mount", &["-t", "ext4", &node, MOUNT_POINT])?;
    let looked = look(Path::new(MOUNT_POINT));
    run("umount", &[MOUNT_POINT])?;
    looked
}
