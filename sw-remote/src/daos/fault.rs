//! What DAOS's libraries say, as a typed error.

use sw_engine::{Error, ErrorKind, Verb, WriteOutcome};

use super::sys::{Code, Failed};

/// The error of a call.
pub(super) fn told(failed: Failed, verb: Verb, name: &str) -> Error {
    let (kind, remedy) = match failed.code {
        Code::Der(number) => of_daos(number),
        Code::Errno(number) => of_dfs(number),
    };
    Error::new(kind, verb).at(name).with_code(failed.code.number()).detail(failed.to_string()).remedy(remedy)
}

/// The error of a call that connects: what is not there is a pool or a container.
pub(super) fn of_connection(failed: Failed, verb: Verb, name: &str) -> Error {
    let remedy = match (failed.call, failed.code) {
        ("daos_pool_connect", Code::Der(DER_NONEXIST)) => "look for the pool with `daos pool list`",
        ("daos_cont_open", Code::Der(DER_NONEXIST | DER_CONT_NONEXIST)) => {
            "look for the container with `daos container list POOL`"
        }
        ("dfs_mount", _) => "look whether the container is one of type POSIX (`daos container get-prop`)",
        ("daos_init", _) => AGENT,
        _ => return told(failed, verb, name),
    };
    told(failed, verb, name).remedy(remedy)
}

/// The error of a look-up, or of making a temporary name, before a change: what has the final name is as it was.
pub(super) fn of_begin(failed: Failed, verb: Verb, name: &str) -> Error {
    told(failed, verb, name).with_outcome(WriteOutcome::NotApplied)
}

/// The error of a change. Without a transaction it is several updates, and an error may be that of the last of them, whatever its number.
pub(super) fn of_change(failed: Failed, verb: Verb, name: &str) -> Error {
    told(failed, verb, name).with_outcome(WriteOutcome::Unknown)
}

/// The error of a rename, which says what is left.
pub(super) fn of_rename(failed: Failed, name: &str, temporary: &str) -> Error {
    of_change(failed, Verb::Create, name)
        .detail(format!("{failed}; {temporary} beside it, if it is there, is left"))
        .remedy("look at the file; copy it before you remove either name, or rename one over the other: both may be one object")
}

/// No answer in time, of the library or of its threads.
pub(super) fn late(verb: Verb, name: &str, seconds: u64) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, verb)
        .at(name)
        .with_code(libc::ETIMEDOUT)
        .detail(format!("no answer of DAOS within {seconds} s"))
        .remedy("look at `dmg system query`; the setting remote_patience_ms says how long is waited")
}

/// It is not what it was.
pub(super) fn changed(name: &str) -> Error {
    Error::new(ErrorKind::Changed, Verb::Read)
        .at(name)
        .with_code(libc::ESTALE)
        .detail("it was changed since it was opened")
        .remedy("open it anew; bytes of two versions are never mixed")
}

/// What is not a file.
pub(super) fn wrong_kind(name: &str, detail: &'static str) -> Error {
    let error = Error::new(ErrorKind::WrongKind, Verb::Open).at(name).detail(detail);
    error.remedy("name a file; `straightway ls` shows those below a directory")
}

/// Of `daos_errno.h`: those of gurt begin behind 1,000, those of DAOS behind 2,000.
const DER_NO_PERM: i32 = 1001;
const DER_NONEXIST: i32 = 1005;
const DER_UNREACH: i32 = 1006;
const DER_NOSPACE: i32 = 1007;
const DER_NOMEM: i32 = 1009;
const DER_NOSYS: i32 = 1010;
const DER_TIMEDOUT: i32 = 1011;
const DER_BUSY: i32 = 1012;
const DER_PROTO: i32 = 1014;
const DER_UNINIT: i32 = 1015;
const DER_CANCELED: i32 = 1018;
const DER_MISMATCH: i32 = 1031;
const DER_EXCLUDED: i32 = 1032;
const DER_QUOTA_LIMIT: i32 = 1046;
const DER_ENOENT: i32 = 2003;
const DER_CSUM: i32 = 2021;
const DER_OP_CANCELED: i32 = 2027;
const DER_AGENT_INCOMPAT: i32 = 2029;
const DER_AGENT_COMM: i32 = 2034;
const DER_NOTSUPPORTED: i32 = 2037;
const DER_NO_CERT: i32 = 2043;
const DER_BAD_CERT: i32 = 2044;
const DER_CONT_NONEXIST: i32 = 2050;

const AGENT: &str = "look whether daos_agent runs on this machine and its configuration names the system";
const REACH: &str =
    "look at `dmg system query`, and at the network of the servers; remote_patience_ms is how long is waited";
const LIMITS: &str = "look at the limits of this process (ulimit)";
const RIGHTS: &str = "look at the ACL (`daos pool get-acl`, `daos container get-acl`) for the user of this process";
const NAMES: &str = "look for the name with `straightway ls`";
const SPACE: &str = "look at `daos pool query`, and at the quota";
const LOGS: &str = "look at `dmg system query` and at the servers' logs";

/// The one place where a number of libdaos gets its class, and what can be done.
fn of_daos(number: i32) -> (ErrorKind, &'static str) {
    match number {
        DER_NONEXIST | DER_ENOENT | DER_CONT_NONEXIST => (ErrorKind::NotFound, NAMES),
        DER_NO_PERM => (ErrorKind::PermissionDenied, RIGHTS),
        DER_NO_CERT | DER_BAD_CERT => {
            (ErrorKind::PermissionDenied, "look at the certificates that daos_agent is configured with")
        }
        DER_UNREACH | DER_TIMEDOUT => (ErrorKind::DeadlineExceeded, REACH),
        DER_NOSPACE | DER_QUOTA_LIMIT => (ErrorKind::NoSpace, SPACE),
        DER_NOMEM => (ErrorKind::ResourceLimit, LIMITS),
        DER_BUSY => (ErrorKind::InUse, "wait until whoever holds it has let go of it"),
        DER_CANCELED | DER_OP_CANCELED => (ErrorKind::Cancelled, LOGS),
        DER_CSUM => {
            (ErrorKind::ChecksumMismatch, "look at the servers' logs: the bytes do not agree with their checksum")
        }
        DER_UNINIT | DER_AGENT_COMM => (ErrorKind::NoDevice, AGENT),
        DER_EXCLUDED => (ErrorKind::Closed, "the pool has shut this client out: make a new engine"),
        DER_PROTO | DER_MISMATCH | DER_AGENT_INCOMPAT | DER_NOSYS | DER_NOTSUPPORTED => {
            (ErrorKind::Unsupported, "use client libraries, an agent and servers of one version")
        }
        _ => (ErrorKind::Io, LOGS),
    }
}

/// Likewise for an errno.
fn of_dfs(number: i32) -> (ErrorKind, &'static str) {
    match number {
        libc::ENOENT => (ErrorKind::NotFound, NAMES),
        libc::EACCES | libc::EPERM | libc::EROFS => (ErrorKind::PermissionDenied, RIGHTS),
        libc::ETIMEDOUT | libc::EHOSTUNREACH => (ErrorKind::DeadlineExceeded, REACH),
        libc::ENOSPC | libc::EDQUOT => (ErrorKind::NoSpace, SPACE),
        libc::EFBIG | libc::E2BIG | libc::EOVERFLOW => (ErrorKind::TooLarge, "use smaller files"),
        libc::EISDIR | libc::ENOTDIR | libc::ELOOP => {
            (ErrorKind::WrongKind, "name a file; `straightway ls` shows those below a directory")
        }
        libc::ENAMETOOLONG => (ErrorKind::BadUri, "use a shorter name"),
        libc::EEXIST | libc::ENOTEMPTY => (ErrorKind::AlreadyExists, "remove it, or use another name"),
        libc::EBUSY => (ErrorKind::InUse, "wait until whoever holds it has let go of it"),
        libc::ECANCELED => (ErrorKind::Cancelled, LOGS),
        libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN => (ErrorKind::ResourceLimit, LIMITS),
        libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::EPROTO => {
            (ErrorKind::Unsupported, "look whether the container is one of type POSIX, and of the library's version")
        }
        _ => (ErrorKind::Io, LOGS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_libraries_have_their_class() {
        let of = |code| told(Failed { call: "f", code }, Verb::Open, "daos://p/c/f").kind();
        for (der, kind) in [
            (1001, ErrorKind::PermissionDenied),
            (1005, ErrorKind::NotFound),
            (1011, ErrorKind::DeadlineExceeded),
            (2021, ErrorKind::ChecksumMismatch),
            (2034, ErrorKind::NoDevice),
            (2001, ErrorKind::Io),
        ] {
            assert_eq!(of(Code::Der(der)), kind, "{der}");
        }
        assert_eq!(of(Code::Errno(libc::ENOTDIR)), ErrorKind::WrongKind);
        assert_eq!(of(Code::Errno(libc::EIO)), ErrorKind::Io);
        let failed = Failed { call: "daos_pool_connect", code: Code::Der(1005) };
        assert!(of_connection(failed, Verb::Open, "daos://p/c/f").remedy_text().contains("daos pool list"));
    }
}
