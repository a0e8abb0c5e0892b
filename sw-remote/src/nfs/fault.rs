//! What a server says, as a typed error.

use sw_engine::{Error, ErrorKind, Verb};

use super::connection::Lost;

/// Numbers of RFC 1813 §2.6 "Defined Error Numbers" that are told apart here; those of MOUNT (§5.1.5) are among them.
pub(super) const NOENT: u32 = 2;
pub(super) const STALE: u32 = 70;
const BADHANDLE: u32 = 10001;
pub(super) const BAD_COOKIE: u32 = 10003;
pub(super) const JUKEBOX: u32 = 10008;

/// Whether a handle is none any more.
pub(super) fn is_stale(status: u32) -> bool {
    matches!(status, STALE | BADHANDLE)
}

/// Whether a status says for sure that nothing was done; others may have come up in the middle of it.
pub(super) fn is_refusal(status: u32) -> bool {
    matches!(
        class(status).0,
        ErrorKind::PermissionDenied | ErrorKind::WrongKind | ErrorKind::NoSpace | ErrorKind::BadUri
    ) || matches!(status, 17 | 18 | 66 | JUKEBOX | 10004)
        || is_stale(status)
}

/// The class of a status, its name, and what can be done.
fn class(status: u32) -> (ErrorKind, &'static str, &'static str) {
    let rights = "look at the owner and mode of the file, at nfs_uid and nfs_gid, and at what the export allows (ro, root_squash, insecure)";
    let log = "look at the server's log";
    let name = "look for the name with `straightway ls`";
    match status {
        1 => (ErrorKind::PermissionDenied, "NFS3ERR_PERM", rights),
        NOENT => (ErrorKind::NotFound, "NFS3ERR_NOENT", name),
        5 => (ErrorKind::Io, "NFS3ERR_IO", log),
        6 => (ErrorKind::Io, "NFS3ERR_NXIO", log),
        13 => (ErrorKind::PermissionDenied, "NFS3ERR_ACCES", rights),
        17 => (ErrorKind::AlreadyExists, "NFS3ERR_EXIST", "write it under another name"),
        18 => (ErrorKind::Unsupported, "NFS3ERR_XDEV", "name it within one export"),
        19 => (ErrorKind::Io, "NFS3ERR_NODEV", log),
        20 => (ErrorKind::WrongKind, "NFS3ERR_NOTDIR", name),
        21 => (ErrorKind::WrongKind, "NFS3ERR_ISDIR", "name a file; `straightway ls` shows those in it"),
        22 => (ErrorKind::BadUri, "NFS3ERR_INVAL", "the server does not take this name or request"),
        27 => (ErrorKind::TooLarge, "NFS3ERR_FBIG", "write several files"),
        28 => (ErrorKind::NoSpace, "NFS3ERR_NOSPC", "make room on the server"),
        30 => (ErrorKind::PermissionDenied, "NFS3ERR_ROFS", "let the export be written to"),
        63 => (ErrorKind::BadUri, "NFS3ERR_NAMETOOLONG", "use a shorter name"),
        66 => (ErrorKind::InUse, "NFS3ERR_NOTEMPTY", "remove what is in it"),
        69 => (ErrorKind::NoSpace, "NFS3ERR_DQUOT", "make room within the quota"),
        STALE => (ErrorKind::Changed, "NFS3ERR_STALE", "open it anew: it was removed or replaced"),
        BADHANDLE => (ErrorKind::Changed, "NFS3ERR_BADHANDLE", "open it anew: the server does not know it any more"),
        BAD_COOKIE => (ErrorKind::Changed, "NFS3ERR_BAD_COOKIE", "list it again: it changes meanwhile"),
        10004 => (ErrorKind::Unsupported, "NFS3ERR_NOTSUPP", "use a server that has it"),
        10005 => (ErrorKind::Protocol, "NFS3ERR_TOOSMALL", log),
        10006 => (ErrorKind::Io, "NFS3ERR_SERVERFAULT", log),
        10007 => (ErrorKind::WrongKind, "NFS3ERR_BADTYPE", name),
        JUKEBOX => (
            ErrorKind::Busy,
            "NFS3ERR_JUKEBOX",
            "the server fetches it from elsewhere; try later, or raise remote_patience_ms",
        ),
        _ => (ErrorKind::Io, "an unknown status", log),
    }
}

/// The error that a status is.
pub(super) fn said(status: u32, verb: Verb, name: &str) -> Error {
    let (kind, word, remedy) = class(status);
    let code = i32::try_from(status).unwrap_or(i32::MAX);
    Error::new(kind, verb).at(name).with_code(code).detail(format!("the server says {word} ({status})")).remedy(remedy)
}

/// That of an answer which did not come.
pub(super) fn lost(why: Lost, verb: Verb, name: &str) -> Error {
    let (kind, remedy) = if why.is_silence() {
        (
            ErrorKind::DeadlineExceeded,
            "look whether the server can be reached and is well; remote_timeout_ms and remote_patience_ms say how long is waited",
        )
    } else if why.is_lie() {
        (ErrorKind::Protocol, "the server does not keep to the protocol; look at what listens at that port")
    } else {
        (ErrorKind::Io, "look at the address, the port, the network and the server's log")
    };
    Error::new(kind, verb).at(name).detail(why.to_string()).remedy(remedy).caused_by(why)
}

/// That of an answer which is none.
pub(super) fn garbled(verb: Verb, name: &str) -> Error {
    Error::new(ErrorKind::Protocol, verb)
        .at(name)
        .detail("the server's answer does not follow NFS version 3")
        .remedy("look at what listens at that port")
}

/// That of a call which the server did not take (RFC 5531 §9): `accept_stat`, or a denial with its `auth_stat`.
pub(super) fn refused(refusal: Refusal, verb: Verb, name: &str) -> Error {
    let error = |kind| Error::new(kind, verb).at(name);
    match refusal {
        Refusal::Denied(why) => error(ErrorKind::PermissionDenied)
            .detail(format!("the server refuses who asks (auth_stat {why})"))
            .remedy("let the export allow sec=sys, and the port that is asked from (insecure)"),
        Refusal::NotTaken(1..=3) => error(ErrorKind::Unsupported)
            .detail("the server has not NFS version 3 at that port")
            .remedy("let it serve NFSv3 over TCP, or name the right ports (nfs_port, nfs_mount_port)"),
        Refusal::NotTaken(why) => error(ErrorKind::Io)
            .detail(format!("the server could not take the call (accept_stat {why})"))
            .remedy("look at the server's log"),
    }
}

/// How a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// By its `accept_stat`.
    NotTaken(u32),
    /// By its `auth_stat`; zero for a version of RPC that the server has not.
    Denied(u32),
}
