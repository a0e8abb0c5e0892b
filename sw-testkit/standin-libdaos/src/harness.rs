//! The tests' side: finds the built library, makes a copy of it for one test under both names, and steers that.
// UNSAFETY: loads the copy and calls its control functions.

use std::{
    ffi::{CString, c_char},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{Count, Setting};

/// The shared library that cargo built, looked for beside and above the running program.
fn built_library() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|e| format!("the running program has no path: {e}"))?;
    let folders = program.ancestors().skip(1).take(3).flat_map(|folder| [folder.to_path_buf(), folder.join("deps")]);
    let files: Vec<PathBuf> = folders.map(|folder| folder.join("libstandin_libdaos.so")).collect();
    let found = files.iter().find(|file| file.is_file()).cloned();
    found.ok_or_else(|| format!("no {files:?}; build it with `cargo build -p standin-libdaos`"))
}

/// Copies the library to `dir/libdaos.so.2`, and makes `dir/libdfs.so` another name of it: the loader takes both for one.
///
/// # Errors
/// A sentence: it was not built, or the folder cannot be written.
pub fn install(dir: &Path) -> Result<Control, String> {
    let source = built_library()?;
    let told = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(told)?;
    let copy = dir.join("libdaos.so.2");
    std::fs::copy(&source, &copy).map_err(told)?;
    std::os::unix::fs::symlink("libdaos.so.2", dir.join("libdfs.so")).map_err(told)?;
    Control::open(&copy)
}

/// The control functions of one copy, loaded in this process.
pub struct Control {
    set: extern "C" fn(i32, i64),
    count: extern "C" fn(i32) -> i64,
    root: unsafe extern "C" fn(*const c_char),
    _library: libloading::Library,
}

impl Control {
    fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: the stand-in has no initialisers.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
        // SAFETY: the signature is that of `standin_daos_set`.
        let set = unsafe { library.get::<extern "C" fn(i32, i64)>(b"standin_daos_set\0") };
        let set = *set.map_err(|e| e.to_string())?;
        // SAFETY: the signature is that of `standin_daos_count`.
        let count = unsafe { library.get::<extern "C" fn(i32) -> i64>(b"standin_daos_count\0") };
        let count = *count.map_err(|e| e.to_string())?;
        // SAFETY: the signature is that of `standin_daos_root`.
        let root = unsafe { library.get::<unsafe extern "C" fn(*const c_char)>(b"standin_daos_root\0") };
        let root = *root.map_err(|e| e.to_string())?;
        Ok(Self { set, count, root, _library: library })
    }

    /// Names the directory that pools are below.
    ///
    /// # Errors
    /// A path with a NUL.
    pub fn root(&self, path: &Path) -> Result<(), String> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: a text that ends by NUL.
        unsafe { (self.root)(path.as_ptr()) };
        Ok(())
    }

    /// Sets something.
    pub fn set(&self, setting: Setting, value: i64) {
        (self.set)(setting as i32, value);
    }

    /// Looks at a count.
    pub fn count(&self, count: Count) -> i64 {
        (self.count)(count as i32)
    }
}
