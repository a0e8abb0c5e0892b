//! The errno of the kernel as the engine's kinds, with retry advice.

use std::{path::Path, sync::Arc, time::Duration};

use sw_engine::{Error, ErrorKind, Fault, Retry, Verb};

/// Time that a kernel short of memory is given before the next try.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(10);

/// The class and the advice for an errno, as `errno(3)` and the pages of the calls describe them.
pub(crate) fn classify(errno: i32) -> (ErrorKind, Retry) {
    match errno {
        libc::EAGAIN | libc::EINTR | libc::EBUSY => (ErrorKind::Busy, Retry::Now),
        libc::ENOMEM => (ErrorKind::ResourceLimit, Retry::After(NO_MEMORY_PAUSE)),
        libc::EMFILE | libc::ENFILE => (ErrorKind::ResourceLimit, Retry::Never),
        libc::ENOENT | libc::ENOTDIR => (ErrorKind::NotFound, Retry::Never),
        libc::EACCES | libc::EPERM | libc::EROFS => (ErrorKind::PermissionDenied, Retry::Never),
        libc::EISDIR | libc::ESPIPE | libc::ELOOP => (ErrorKind::WrongKind, Retry::Never),
        libc::ENOSPC | libc::EDQUOT => (ErrorKind::NoSpace, Retry::Never),
        libc::EFBIG | libc::EOVERFLOW | libc::ENAMETOOLONG => (ErrorKind::TooLarge, Retry::Never),
        libc::ECANCELED => (ErrorKind::Cancelled, Retry::Never),
        // The engine keeps to the face's granularity, so the kernel has no other reason for these on its I/Os.
        libc::EINVAL | libc::EBADF => (ErrorKind::ApiMisuse, Retry::Never),
        libc::EFAULT => (ErrorKind::NotRegistered, Retry::Never),
        libc::EOPNOTSUPP | libc::ENOSYS => (ErrorKind::Unsupported, Retry::Never),
        libc::ESTALE => (ErrorKind::Changed, Retry::Never),
        libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM => (ErrorKind::NoDevice, Retry::Never),
        libc::EEXIST => (ErrorKind::AlreadyExists, Retry::Never),
        libc::ETXTBSY => (ErrorKind::InUse, Retry::Never),
        libc::ETIMEDOUT => (ErrorKind::Io, Retry::Now),
        // EIO, EREMOTEIO, EILSEQ and whatever a driver makes up: the medium or the way to it.
        _ => (ErrorKind::Io, Retry::Never),
    }
}

/// The fault of an I/O that ended with `errno` (positive).
pub(crate) fn fault(errno: i32) -> Fault {
    let (kind, retry) = classify(errno);
    let fault = Fault::new(kind, errno).with_retry(retry);
    // A call that wrote some bytes gives their number: it says that there is no space only if it wrote none (write(2)).
    if kind == ErrorKind::NoSpace { fault.not_applied() } else { fault }
}

/// What an I/O gave back: bytes, or minus an errno.
pub(crate) fn outcome(result: i32) -> Result<u32, Fault> {
    u32::try_from(result).map_err(|_| fault(result.saturating_neg()))
}

/// The typed error of a control-plane call on `name` that failed with `errno`.
pub(crate) fn error(errno: i32, verb: Verb, name: impl Into<Arc<str>>) -> Error {
    let (kind, retry) = classify(errno);
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    // The text of the standard library ends in "(os error N)"; the code is printed by `Error` itself.
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    Error::new(kind, verb).at(name).with_code(errno).with_retry(retry).detail(text).remedy(remedy(errno))
}

/// As [`error`], for a path.
pub(crate) fn path_error(errno: i32, verb: Verb, path: &Path) -> Error {
    error(errno, verb, path.to_string_lossy().as_ref())
}

/// The error of a transport in a child of the process that made it.
pub(crate) fn forked(transport: &'static str) -> Error {
    Error::new(ErrorKind::Forked, Verb::Setup)
        .at(transport)
        .detail("the process was forked after the transport was made; its queue belongs to the parent")
        .remedy("make one in the child")
}

fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT | libc::ENOTDIR => "check the path",
        libc::EACCES | libc::EPERM => "check owner and mode of the file and of the directories above it",
        libc::EROFS => "the file system is mounted read-only; remount it or write elsewhere",
        libc::EMFILE => "raise the limit of open files (ulimit -n)",
        libc::ENFILE => "raise fs.file-max",
        libc::ENOSPC => "free space on the file system or write elsewhere",
        libc::EDQUOT => "free space or raise the quota",
        libc::ENAMETOOLONG => "use a shorter name",
        libc::EFBIG => "the file system or the file-size limit (ulimit -f) allows no file of that length",
        libc::ELOOP => "the path runs through too many symbolic links",
        libc::ETXTBSY => "a running program has the file open",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_trying_again_can_do() {
        assert_eq!(fault(libc::EAGAIN).retry, Retry::Now);
        assert_eq!(fault(libc::EIO), Fault::new(ErrorKind::Io, libc::EIO));
        assert_eq!(fault(libc::ENOSPC).kind, ErrorKind::NoSpace);
        assert_eq!(fault(libc::ECANCELED).kind, ErrorKind::Cancelled);
    }

    #[test]
    fn results_are_bytes_or_faults_even_at_the_ends_of_the_range() {
        assert_eq!(outcome(0), Ok(0));
        assert_eq!(outcome(i32::MAX), Ok(i32::MAX as u32));
        assert_eq!(outcome(-libc::EIO).unwrap_err().code, libc::EIO);
        assert_eq!(outcome(i32::MIN).unwrap_err().kind, ErrorKind::Io);
    }

    #[test]
    fn an_error_names_the_file_and_the_remedy_on_one_line() {
        let text = error(libc::ENOENT, Verb::Open, "/no/such").to_string();
        assert_eq!(text, "open /no/such failed: no such file or directory (code 2); check the path");
    }
}
