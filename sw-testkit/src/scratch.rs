//! A directory of a test's own, which goes with its owner.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// See the module documentation.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A fresh directory below `under`: `env!("CARGO_TARGET_TMPDIR")`, which is on a disk; the system's temporary directory
    /// is often a tmpfs without `O_DIRECT`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(under: &str, tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(under).join(format!("{tag}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// A name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A name in it as text.
    ///
    /// # Panics
    /// If the path is not UTF-8.
    pub fn text(&self, name: &str) -> String {
        let path = self.path(name);
        path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display())).to_owned()
    }

    /// A file of `len` bytes that depend on the name and the place, and those bytes.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, len: usize) -> Vec<u8> {
        let seed: usize = name.bytes().map(usize::from).sum();
        let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + at / 4093 + seed).to_le_bytes()[0]).collect();
        fs::write(self.path(name), &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        bytes
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is the build directory's to keep.
        let _ = fs::remove_dir_all(&self.0);
    }
}
