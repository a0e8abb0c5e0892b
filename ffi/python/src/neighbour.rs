//! Memory of another process of this machine: ranks that share a load copy from each other without a third party.
// UNSAFETY: process_vm_readv and prctl have no safe face in the standard library.
#![expect(unsafe_code, reason = "copies between processes")]

use std::io;

use pyo3::prelude::*;
use straightway::{Error, ErrorKind, Verb};

use crate::{
    error::{Fail, misuse},
    foreign::{self, Access},
    wait,
};

/// Copied between two looks for signals: some ten milliseconds.
const SLICE_BYTES: usize = 64 << 20;

/// Another process of this machine, by its number. What its memory holds is for it to say, and whether it is the process that
/// is meant: a number names another process once the first one has ended.
#[pyclass(frozen, module = "straightway._native")]
#[derive(Debug)]
pub struct Neighbour {
    pid: libc::pid_t,
}

#[pymethods]
impl Neighbour {
    #[new]
    fn new(pid: libc::pid_t) -> Result<Self, Fail> {
        if pid <= 0 {
            return Err(misuse(format!("{pid} is no process"), "give what os.getpid tells there"));
        }
        Ok(Self { pid })
    }

    /// Lets this process's parent and all that it started read this one's memory, where the kernel (Yama, ptrace_scope 1)
    /// allows only parents by itself.
    #[staticmethod]
    fn admit_siblings() {
        // SAFETY: getppid has no conditions.
        let parent = unsafe { libc::getppid() };
        allow(libc::c_ulong::from(parent.cast_unsigned()));
    }

    /// Takes that back.
    #[staticmethod]
    fn admit_nobody() {
        allow(0);
    }

    /// Fills each target of `(address there, target)`; returns the bytes copied. Targets are host memory.
    fn read_many(&self, py: Python<'_>, parts: Vec<(u64, Bound<'_, PyAny>)>) -> Result<u64, Fail> {
        let mut total = 0;
        for (from, target) in &parts {
            let Some(told) = foreign::host_memory_of(target, Access::Target)? else { continue };
            let len = usize::try_from(told.len).map_err(|_| misuse("the target is too long", "give a shorter one"))?;
            let mut done = 0;
            while done < len {
                let slice = SLICE_BYTES.min(len - done);
                let (from, to) = (from.saturating_add(done as u64), told.address.saturating_add(done as u64));
                done += wait::detached(py, || self.read(from, to, slice))?;
                py.check_signals()?;
            }
            total += told.len;
        }
        Ok(total)
    }

    fn __repr__(&self) -> String {
        format!("<straightway.Neighbour {}>", self.pid)
    }
}

fn allow(process: libc::c_ulong) {
    // SAFETY: the call takes plain numbers. It fails where Yama is not built in, and then there is nothing to allow.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, process, 0, 0, 0) };
}

impl Neighbour {
    /// Copies at most `len` bytes, and at least one.
    fn read(&self, from: u64, to: u64, len: usize) -> Result<usize, Error> {
        let address = |at: u64| usize::try_from(at).map(std::ptr::with_exposed_provenance_mut::<libc::c_void>);
        let outside = |_| Error::new(ErrorKind::OutOfRange, Verb::Copy).at(self.name()).in_range(from, len as u64);
        let remote = libc::iovec { iov_base: address(from).map_err(outside)?, iov_len: len };
        let local = libc::iovec { iov_base: address(to).map_err(outside)?, iov_len: len };
        // SAFETY: the target's owner keeps `to` and `len` bytes mapped and writable for the call, and no Rust reference into
        // it exists; the kernel checks the other process's range and whether we may read it.
        let got = unsafe { libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(got) {
            Ok(got @ 1..) => Ok(got),
            _ => Err(self.refused(&io::Error::last_os_error())),
        }
    }

    fn name(&self) -> String {
        format!("process {}", self.pid)
    }

    fn refused(&self, cause: &io::Error) -> Error {
        let (kind, remedy) = match cause.raw_os_error() {
            Some(libc::EPERM) => {
                (ErrorKind::PermissionDenied, "allow ptrace between the ranks, or exchange by the process group")
            }
            Some(libc::ESRCH) => (ErrorKind::NotFound, "it has ended; look at its log"),
            _ => (ErrorKind::Io, "look at the log of that process"),
        };
        let error = Error::new(kind, Verb::Copy).at(self.name()).detail(cause.to_string()).remedy(remedy);
        error.with_code(cause.raw_os_error().unwrap_or(0))
    }
}
