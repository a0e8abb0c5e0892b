//! What a Redis says, as a typed error.

use redis::{ErrorKind as Class, RedisError, ServerErrorKind as Said};
use sw_engine::{Error, ErrorKind, Verb};

/// Whether the same may be answered when it is asked again: the server was away, or is coming up.
pub(super) fn is_passing(error: &RedisError) -> bool {
    let is_coming = matches!(
        error.kind(),
        Class::Server(Said::BusyLoading | Said::TryAgain | Said::MasterDown | Said::ClusterDown)
    );
    error.is_io_error() || error.is_timeout() || is_coming
}

/// Whether the connection is of no more use.
pub(super) fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.kind() == Class::Parse
}

/// The error of a server.
pub(super) fn told(error: RedisError, verb: Verb, name: &str) -> Error {
    let (kind, remedy) = class(&error);
    let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let text: String = text.chars().take(400).collect();
    Error::new(kind, verb).at(name).detail(format!("its metadata in Redis: {text}")).remedy(remedy).caused_by(error)
}

fn class(error: &RedisError) -> (ErrorKind, &'static str) {
    let keys = "set META_PASSWORD (or REDIS_PASSWORD) to the password of the Redis, and juicefs_meta_user to the user if it is not the default one";
    if error.is_timeout() {
        return (
            ErrorKind::DeadlineExceeded,
            "look whether the Redis can be reached and is well; remote_timeout_ms and remote_patience_ms say how long is waited",
        );
    }
    match error.kind() {
        Class::AuthenticationFailed | Class::Server(Said::NoPerm) => (ErrorKind::PermissionDenied, keys),
        // Words of its own: no class of the library's.
        _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "DENIED")) => (ErrorKind::PermissionDenied, keys),
        Class::Server(Said::Moved | Said::Ask | Said::CrossSlot) => (
            ErrorKind::Unsupported,
            "metadata in a Redis cluster are not read; use `juicefs mount` and its path, or `juicefs gateway` and s3://",
        ),
        Class::Server(Said::BusyLoading | Said::TryAgain | Said::MasterDown | Said::ClusterDown) => {
            (ErrorKind::Busy, "wait until the Redis is up, or raise remote_patience_ms")
        }
        Class::Parse | Class::UnexpectedReturnType => (
            ErrorKind::Protocol,
            "look at what listens there: metadata in other engines than Redis are read by `juicefs mount` and its path",
        ),
        _ if error.code() == Some("WRONGTYPE") => {
            (ErrorKind::BadFormat, "look at the number of the database: something else than JuiceFS writes in it")
        }
        _ => (
            ErrorKind::Io,
            "look at the address, the port, the number of the database, the network and the log of the Redis",
        ),
    }
}
