//! What a Redis says, as a typed error.

use redis::{ErrorKind as Class, RedisError, ServerErrorKind as Said};
use sw_engine::{Error, ErrorKind, Verb};

/// What is wrong, and the server's own word for it. Of several commands together (a pipeline, a transaction) it is what was said of the first one
/// that failed: what comes behind is its consequence, `EXECABORT` for one.
fn first(error: &RedisError) -> (Class, Option<String>) {
    let said = error.clone().into_server_errors();
    let Some((_, said)) = said.as_deref().and_then(<[_]>::first) else {
        return (error.kind(), error.code().map(str::to_owned));
    };
    (said.kind().map_or(Class::Extension, Class::Server), Some(said.code().to_owned()))
}

/// Whether the same may be answered when it is asked again: the server was away, or is coming up.
pub(super) fn is_passing(error: &RedisError) -> bool {
    let is_coming = matches!(
        first(error).0,
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
    let (kind, code) = first(error);
    match kind {
        Class::AuthenticationFailed | Class::Server(Said::NoPerm) => (ErrorKind::PermissionDenied, keys),
        // Words of its own: no class of the library's.
        _ if matches!(code.as_deref(), Some("NOAUTH" | "WRONGPASS" | "DENIED")) => (ErrorKind::PermissionDenied, keys),
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
        _ if code.as_deref() == Some("WRONGTYPE") => {
            (ErrorKind::BadFormat, "look at the number of the database: something else than JuiceFS writes in it")
        }
        _ => (
            ErrorKind::Io,
            "look at the address, the port, the number of the database, the network and the log of the Redis",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
    };

    use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};

    use super::*;

    /// What comes of a pipeline that a server answers so, a line for each command.
    fn answered(pipe: &redis::Pipeline, answers: &[&str]) -> RedisError {
        let answers: Vec<String> = answers.iter().map(|answer| format!("{answer}\r\n")).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::Builder::new().spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok);
            let mut answers = answers.iter();
            while let Some(line) = lines.next() {
                let words: usize = line.strip_prefix('*').unwrap().parse().unwrap();
                let said: Vec<String> = lines.by_ref().take(2 * words).collect();
                let Some(answer) = answers.next() else { panic!("{said:?} is one too many") };
                socket.write_all(answer.as_bytes()).unwrap();
            }
        });
        let server = server.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async {
            let who = RedisConnectionInfo::default().set_skip_set_lib_name();
            let at = ConnectionAddr::Tcp("127.0.0.1".to_owned(), port).into_connection_info().unwrap();
            let client = Client::open(at.set_redis_settings(who)).unwrap();
            let limits = AsyncConnectionConfig::new();
            let mut made = client.get_multiplexed_async_connection_with_config(&limits).await.unwrap();
            pipe.query_async::<Vec<redis::Value>>(&mut made).await.unwrap_err()
        });
        drop(runtime);
        server.join().unwrap();
        error
    }

    #[test]
    fn of_several_commands_the_first_that_failed_says_what_is_wrong() {
        let (mut one, mut two, mut together) = (redis::pipe(), redis::pipe(), redis::pipe());
        one.get("a");
        two.get("a").get("b");
        together.atomic().get("a").lrange("b", 0, -1);
        let kind = |error: &RedisError| (is_passing(error), class(error).0);
        // A server that comes up.
        let comes = "-LOADING Redis is loading the dataset in memory";
        let down = "-MASTERDOWN Link with MASTER is down";
        for error in [
            answered(&one, &[comes]),
            answered(&two, &[comes, comes]),
            answered(&together, &["+OK", comes, comes, "-EXECABORT Transaction discarded because of previous errors."]),
            answered(&together, &["+OK", down, down, "-EXECABORT Transaction discarded because of previous errors."]),
        ] {
            assert_eq!(kind(&error), (true, ErrorKind::Busy), "{error:?}");
        }
        // Whoever may not ask.
        let denied = "-NOPERM this user has no permissions to access one of the keys used as arguments";
        for error in [
            answered(&one, &[denied]),
            answered(&two, &["$-1", denied]),
            answered(
                &together,
                &["+OK", "+QUEUED", denied, "-EXECABORT Transaction discarded because of previous errors."],
            ),
        ] {
            assert_eq!(kind(&error), (false, ErrorKind::PermissionDenied), "{error:?}");
        }
        // Something else has the key.
        let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value";
        for error in [
            answered(&one, &[wrong]),
            answered(&two, &[wrong, "$-1"]),
            answered(
                &together,
                &[
                    "+OK",
                    "+QUEUED",
                    "+QUEUED",
                    "*2\r\n$-1\r\n-WRONGTYPE Operation against a key holding the wrong kind of value",
                ],
            ),
        ] {
            assert_eq!(kind(&error), (false, ErrorKind::BadFormat), "{error:?}");
        }
    }
}
