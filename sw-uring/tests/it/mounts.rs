//! Mounts and loop devices, undone when their value is dropped, also by a panic.
#![expect(clippy::unwrap_used, reason = "test code: a failure to prepare is a failed test")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Runs a program; its output, or why it did not succeed.
pub(crate) fn tool(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program} does not start: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Whether this process may mount.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Something mounted.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// `mount ARGS… at`; makes the directory.
    pub(crate) fn new(args: &[&str], at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let at_text = at.to_str().unwrap();
        tool("mount", &[args, &[at_text]].concat())?;
        Ok(Self(at.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let at = self.0.to_str().unwrap();
        // Lazily if something is still open: the mount is gone from the tree all the same.
        if tool("umount", &[at]).is_err() {
            let _ = tool("umount", &["-l", at]);
        }
    }
}

/// A loop device over a file of its own.
pub(crate) struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    pub(crate) fn new(file: &Path, len: u64) -> Result<Self, String> {
        let made = std::fs::File::create(file).and_then(|file| file.set_len(len));
        made.map_err(|error| error.to_string())?;
        let device = tool("losetup", &["--find", "--show", file.to_str().unwrap()])?;
        Ok(Self { device, file: file.to_owned() })
    }

    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool("losetup", &["-d", &self.device]);
    }
}

/// A file system of its own on a loop device. The mount goes first.
pub(crate) struct LoopMount {
    mount: Mount,
    _device: Loop,
}

impl LoopMount {
    /// `mkfs` is the program and its options.
    pub(crate) fn new(mkfs: &[&str], dir: &Path, len: u64) -> Result<Self, String> {
        if !is_root() {
            return Err("mounting needs root".to_owned());
        }
        let device = Loop::new(&dir.join("image"), len)?;
        let (program, options) = mkfs.split_first().unwrap();
        tool(program, &[options, &[device.device()]].concat())?;
        let mount = Mount::new(&[device.device()], &dir.join("mnt"))?;
        Ok(Self { mount, _device: device })
    }

    pub(crate) fn path(&self) -> &Path {
        self.mount.path()
    }
}
