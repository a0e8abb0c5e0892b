//! A machine made up for a test: `sys`, `proc` and `dev` in a directory of its own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use sw_testkit::scratch::Scratch;

use crate::sysfs::Machine;

/// See the module documentation.
pub(crate) struct Made(Scratch);

impl Made {
    /// An empty one. Its root has no symbolic link in it, so that resolved paths can be compared with it.
    pub(crate) fn new(tag: &str) -> Self {
        let under = fs::canonicalize(std::env::temp_dir()).unwrap();
        Self(Scratch::new(under.to_str().unwrap(), tag))
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine::at(self.0.root())
    }

    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.root().join(path)
    }

    /// Writes a file, with the directories above it.
    pub(crate) fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes `path` a symbolic link to `to`, both below the root.
    pub(crate) fn link(&self, path: &str, to: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.path(to), path).unwrap();
    }
}
