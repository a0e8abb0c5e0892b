//! Whether io_uring can be used here, and if not, why.

use sw_engine::{Error, ErrorKind, Reason, Retry, TransportName, Verb};

use crate::{
    fault,
    threads::PREADV2,
    uring::{IO_URING, UringConfig, UringTransport},
};

/// What this process can use.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The better of what works: `io_uring`, else `preadv2`.
    pub transport: TransportName,
    /// Why not io_uring, with the errno that the kernel gave.
    pub because: Option<(Reason, i32)>,
    /// The sysctl `kernel.io_uring_disabled`: 0 for all, 1 for members of a group, 2 for nobody; none before Linux 6.6.
    pub sysctl: Option<u8>,
}

/// Makes and drops a small ring. *Blocking*: a few system calls.
pub fn probe() -> Probe {
    let sysctl =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().and_then(|text| text.trim().parse().ok());
    let small = UringConfig { queue_depth: 1, files_max: 1, buffers_max: 1, ..UringConfig::default() };
    match UringTransport::new(small) {
        Ok(_) => Probe { transport: IO_URING, because: None, sysctl },
        Err(error) => Probe { transport: PREADV2, because: Some((reason(error.code()), error.code())), sysctl },
    }
}

/// EPERM: seccomp or the sysctl. ENOSYS: a kernel without io_uring, one too old, or seccomp again.
fn reason(errno: i32) -> Reason {
    match errno {
        libc::EINVAL => Reason::KernelTooOld,
        _ => Reason::UringBlocked,
    }
}

/// The error of a ring for `transport` that the kernel refuses. `too_old` is what to do if it lacks a feature.
pub(crate) fn setup_error(transport: TransportName, too_old: &'static str, errno: i32) -> Error {
    let error = |kind| Error::new(kind, Verb::Setup).at(transport).with_code(errno).with_retry(Retry::Never);
    match errno {
        libc::EPERM | libc::EACCES | libc::ENOSYS => {
            error(ErrorKind::Unsupported).detail("io_uring is blocked").with_reasons(vec![Reason::UringBlocked]).remedy(
                "allow it in the seccomp profile and set kernel.io_uring_disabled=0; the thread pool serves meanwhile",
            )
        }
        libc::EINVAL => error(ErrorKind::Unsupported)
            .detail("the kernel's io_uring lacks a feature")
            .with_reasons(vec![Reason::KernelTooOld])
            .remedy(too_old),
        libc::ENOMEM => error(ErrorKind::ResourceLimit)
            .detail("no memory for the ring")
            .remedy("raise RLIMIT_MEMLOCK (ulimit -l) or lower queue_depth"),
        libc::EMFILE | libc::ENFILE => error(ErrorKind::ResourceLimit)
            .detail("too many open files")
            .remedy("raise the limit of open files (ulimit -n)"),
        _ => error(fault::classify(errno).0).detail("the kernel refuses a ring"),
    }
}
