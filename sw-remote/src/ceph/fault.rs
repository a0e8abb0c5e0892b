//! What Ceph's libraries say, as a typed error.

use sw_engine::{Error, ErrorKind, Verb, WriteOutcome};

use super::sys::Failed;

/// The error of a call.
pub(super) fn told(failed: Failed, verb: Verb, name: &str) -> Error {
    let (kind, remedy) = class(failed);
    Error::new(kind, verb).at(name).with_code(failed.errno).detail(failed.to_string()).remedy(remedy)
}

/// The error of a call that makes a connection.
pub(super) fn of_connection(failed: Failed, verb: Verb, name: &str) -> Error {
    let (kind, remedy) = match (failed.call, failed.errno) {
        ("rados_conf_read_file" | "ceph_conf_read_file", _) => (
            ErrorKind::NotFound,
            "name the cluster's configuration by ceph_conf=FILE or CEPH_CONF; without one it is /etc/ceph/ceph.conf",
        ),
        ("ceph_select_filesystem", _) | ("ceph_mount", libc::ENOENT) => {
            (ErrorKind::NotFound, "look for the file system with `ceph fs ls`, and whether an MDS of it is active")
        }
        // What a client says that has no monitor's address or no key.
        (_, libc::ENOENT | libc::EACCES | libc::EPERM) => (
            ErrorKind::PermissionDenied,
            "look at ceph_user, its keyring, and `mon host` of the configuration; the key must be the cluster's",
        ),
        (_, libc::ETIMEDOUT) => (
            ErrorKind::DeadlineExceeded,
            "look whether the monitors run and can be reached; remote_patience_ms is how long is waited",
        ),
        _ => class(failed),
    };
    Error::new(kind, verb).at(name).with_code(failed.errno).detail(failed.to_string()).remedy(remedy)
}

/// The error of a write: what says that nothing was done, says that.
pub(super) fn of_write(failed: Failed, verb: Verb, name: &str) -> Error {
    let outcome = match failed.errno {
        libc::EACCES
        | libc::EPERM
        | libc::ENOENT
        | libc::ENOSPC
        | libc::EDQUOT
        | libc::EFBIG
        | libc::EMSGSIZE
        | libc::EROFS => WriteOutcome::NotApplied,
        _ => WriteOutcome::Unknown,
    };
    told(failed, verb, name).with_outcome(outcome)
}

/// No answer in time, of the library or of its threads.
pub(super) fn late(verb: Verb, name: &str, seconds: u64) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, verb)
        .at(name)
        .with_code(libc::ETIMEDOUT)
        .detail(format!("no answer of the cluster within {seconds} s"))
        .remedy("look at `ceph -s`; the setting remote_patience_ms says how long is waited")
}

/// It is not what it was.
pub(super) fn changed(name: &str) -> Error {
    Error::new(ErrorKind::Changed, Verb::Read)
        .at(name)
        .detail("it was changed since it was opened")
        .remedy("open it anew; bytes of two versions are never mixed")
}

/// The one place where an errno gets its class, and what can be done.
fn class(failed: Failed) -> (ErrorKind, &'static str) {
    match failed.errno {
        libc::ENOENT => {
            (ErrorKind::NotFound, "look for the name with `straightway ls`, and for the pool or file system")
        }
        libc::EACCES | libc::EPERM | libc::EROFS => {
            (ErrorKind::PermissionDenied, "look at the capabilities of the user (`ceph auth get`), named by ceph_user")
        }
        libc::ETIMEDOUT => {
            (ErrorKind::DeadlineExceeded, "look at `ceph -s`; the setting remote_patience_ms says how long is waited")
        }
        libc::ENOSPC | libc::EDQUOT => {
            (ErrorKind::NoSpace, "look at `ceph df` and at the quota of the pool or directory")
        }
        libc::EFBIG | libc::EMSGSIZE | libc::E2BIG => {
            (ErrorKind::TooLarge, "look at osd_max_object_size and osd_max_write_size of the cluster")
        }
        libc::EISDIR | libc::ENOTDIR | libc::ELOOP => {
            (ErrorKind::WrongKind, "name a file; `straightway ls` shows those below a directory")
        }
        libc::ENAMETOOLONG => (ErrorKind::BadUri, "use a shorter name"),
        libc::EEXIST => (ErrorKind::AlreadyExists, "remove it, or use another name"),
        libc::EBUSY | libc::ETXTBSY => (ErrorKind::InUse, "wait until whoever holds it has let go of it"),
        libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN => {
            (ErrorKind::ResourceLimit, "look at the limits of this process (ulimit)")
        }
        libc::ESHUTDOWN => {
            (ErrorKind::Closed, "the cluster has shut this client out (`ceph osd blocklist ls`): make a new engine")
        }
        libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS => (
            ErrorKind::Unsupported,
            "look whether the pool, image or file system is one of this kind, and of the library's version",
        ),
        _ => (ErrorKind::Io, "look at `ceph -s` and at the logs of the cluster's daemons"),
    }
}
