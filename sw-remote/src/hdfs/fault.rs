//! What a cluster says, as a typed error, and whether it may be another time.

use std::sync::OnceLock;

use hdfs_native::HdfsError;
use http::StatusCode;
use object_store::client::{HttpError, HttpErrorKind};
use sw_engine::{Error, ErrorKind, Verb};

use crate::{
    chain::chain,
    http::{NoTls, Refusal},
};

/// Longest text of a cluster's own that is passed on, in bytes.
const TEXT_MAX: usize = 300;

/// Whether the same may be done a moment later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passes {
    Yes,
    /// The cluster said what it thinks of it, for good.
    No,
}

/// What went wrong, without its place.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) kind: ErrorKind,
    pub(super) passes: Passes,
    text: String,
    remedy: &'static str,
    /// The status that WebHDFS has for the exception (Hadoop, "WebHDFS REST API", "HTTP Response Codes"); 0 for what is none.
    code: i32,
    /// The cluster's own answer to the request: it will not do it, and has not.
    is_refusal: bool,
}

const LOOK: &str = "look whether the namenode and the datanodes can be reached and are well";
const REFUSED: &str = "look at the namenode's log: it may be down, or refuse who asks (a proxy user, a protection that the client does not have)";
const ANEW: &str = "open it anew; bytes of two versions are never mixed";

impl Failed {
    /// One that is for good.
    pub(super) fn new(kind: ErrorKind, text: impl Into<String>, remedy: &'static str) -> Self {
        Self { kind, passes: Passes::No, text: cut(&text.into()), remedy, code: 0, is_refusal: false }
    }

    /// One that the cluster answered: it did not do it, and will not.
    pub(super) fn refusal(kind: ErrorKind, text: impl Into<String>, remedy: &'static str) -> Self {
        Self { is_refusal: true, ..Self::new(kind, text, remedy) }
    }

    pub(super) fn passing(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { passes: Passes::Yes, ..Self::new(kind, text, LOOK) }
    }

    pub(super) fn changed() -> Self {
        Self::new(ErrorKind::Changed, "the file was replaced, appended to or cut since it was opened", ANEW)
    }

    /// The same, not to be tried again.
    pub(super) fn for_good(self) -> Self {
        Self { passes: Passes::No, ..self }
    }

    /// Whether what was asked was certainly not done. Everything else, an answer that nobody understands too, leaves a doubt.
    pub(super) fn is_refusal(&self) -> bool {
        self.is_refusal
    }

    /// The same, of a question after something that may have been done.
    pub(super) fn for_doubt(self) -> Self {
        Self { is_refusal: false, ..self }
    }

    pub(super) fn may_pass(&self) -> bool {
        self.passes == Passes::Yes
    }

    /// The error of something that has a place.
    pub(super) fn told(self, verb: Verb, name: &str) -> Error {
        Error::new(self.kind, verb).at(name).with_code(self.code).detail(self.text).remedy(self.remedy)
    }

    /// What an exception of Hadoop's means. The first line of its text is its own; behind that is where it was thrown.
    pub(super) fn of_exception(class: &str, message: &str) -> Self {
        let class = class.rsplit(['.', '$']).next().unwrap_or_default();
        let text = message.lines().next().unwrap_or_default();
        let (kind, passes, remedy) = exception(class, text);
        let code = match kind {
            ErrorKind::NotFound | ErrorKind::WrongKind => 404,
            ErrorKind::BadUri | ErrorKind::Unsupported => 400,
            _ => 403,
        };
        Self { passes, code, is_refusal: passes == Passes::No, ..Self::new(kind, format!("{class}: {text}"), remedy) }
    }
}

/// The one place where Hadoop's exceptions get their class, and what can be done.
fn exception(class: &str, text: &str) -> (ErrorKind, Passes, &'static str) {
    use Passes::{No, Yes};
    let rights = "look at the file's owner and mode, and at who asks: HADOOP_USER_NAME or hdfs_user";
    match class {
        "FileNotFoundException" if text.starts_with("Path is not a file") => {
            (ErrorKind::WrongKind, No, "name a file; `straightway ls` shows what is below a directory")
        }
        "FileNotFoundException" => (ErrorKind::NotFound, No, "look for the name with `straightway ls`"),
        "AccessControlException" | "AuthorizationException" | "SecurityException" | "InvalidToken" => {
            (ErrorKind::PermissionDenied, No, rights)
        }
        "SaslException" | "GSSException" | "AuthenticationException" => {
            (ErrorKind::PermissionDenied, No, "look at the tickets (`klist`), and at hadoop.security.authentication")
        }
        "SafeModeException" => (
            ErrorKind::Busy,
            Yes,
            "the namenode is in safe mode, and takes no writes before it has left it (`hdfs dfsadmin -safemode get`)",
        ),
        "StandbyException" | "RetriableException" | "ObserverRetryOnActiveException" | "ServerTooBusyException" => {
            (ErrorKind::Busy, Yes, "look which namenode is active, and how busy it is")
        }
        "AlreadyBeingCreatedException" | "RecoveryInProgressException" | "LeaseExpiredException" => {
            (ErrorKind::InUse, Yes, "somebody else writes it, or its last writer is being waited for")
        }
        "NotReplicatedYetException" => (ErrorKind::Busy, Yes, LOOK),
        "NSQuotaExceededException" | "DSQuotaExceededException" | "QuotaExceededException" => {
            (ErrorKind::NoSpace, No, "make room in the directory, or raise its quota")
        }
        "ParentNotDirectoryException" => (ErrorKind::WrongKind, No, "what stands above it is a file"),
        "InvalidPathException" | "IllegalArgumentException" | "PathComponentTooLongException" => {
            (ErrorKind::BadUri, No, "look at the name: HDFS has no parts . and .., and none with a colon")
        }
        "FileAlreadyExistsException" => (ErrorKind::AlreadyExists, No, "remove it, or write another name"),
        "UnsupportedOperationException" | "RpcNoSuchMethodException" => {
            (ErrorKind::Unsupported, No, "look at the version and the settings of the cluster")
        }
        "IOException" if text.contains("could only be written to") => {
            (ErrorKind::NoSpace, Yes, "look whether datanodes are there, and have room")
        }
        // Of an append: datanodes have not yet told of the block that was closed.
        "IOException" if text.contains("is not sufficiently replicated yet") => (ErrorKind::Busy, Yes, LOOK),
        // A datanode that answers for a namenode that it does not reach.
        "ConnectException"
        | "NoRouteToHostException"
        | "SocketTimeoutException"
        | "EOFException"
        | "BlockMissingException" => (ErrorKind::Io, Yes, LOOK),
        _ => (ErrorKind::Io, No, "look at the logs of the namenode and the datanodes"),
    }
}

/// A text of bounded length in one line.
fn cut(text: &str) -> String {
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().find(|(at, c)| at + c.len_utf8() > TEXT_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl From<HdfsError> for Failed {
    fn from(error: HdfsError) -> Self {
        use HdfsError as Library;
        let kerberos = "look at the tickets (`klist`), at libgssapi_krb5, and at hadoop.security.authentication";
        match &error {
            Library::IOError(cause) if cause.kind() == std::io::ErrorKind::TimedOut => {
                Self::passing(ErrorKind::DeadlineExceeded, cause.to_string())
            }
            // What a namenode says before it ends a connection is lost in the library.
            Library::IOError(cause) if cause.kind() == std::io::ErrorKind::ConnectionAborted => {
                let text = format!("the namenode ended the connection: {cause}");
                Self { remedy: REFUSED, ..Self::passing(ErrorKind::Io, text) }
            }
            Library::IOError(cause) => Self::passing(ErrorKind::Io, cause.to_string()),
            // The library's own text has all that it knows of each datanode.
            Library::DataTransferError(text) if text.starts_with("All DataNodes failed") => {
                let text =
                    "no datanode that has the block gave it: dead, silent, or its bytes are not those of its checksums";
                Self::passing(ErrorKind::Io, text)
            }
            Library::DataTransferError(text) | Library::OperationFailed(text) => {
                Self::passing(ErrorKind::Io, text.as_str())
            }
            Library::ChecksumError => {
                Self::new(ErrorKind::ChecksumMismatch, "its bytes are not those of the checksums that HDFS keeps", LOOK)
            }
            Library::RPCError(class, message) => Self::of_exception(class, message),
            Library::FatalRPCError(class, message) => {
                let told = Self::of_exception(class, message);
                let is_closed = told.kind == ErrorKind::Io;
                if is_closed { Self { passes: Passes::Yes, is_refusal: false, ..told } } else { told }
            }
            Library::FileNotFound(text) | Library::BlocksNotFound(text) => {
                Self::of_exception("FileNotFoundException", &format!("there is no {text}"))
            }
            // What HDFS says of a file that another writer has open comes as this one too.
            Library::AlreadyExists(text) => Self::of_exception("AlreadyBeingCreatedException", text),
            Library::IsADirectoryError(_) => Self::new(ErrorKind::WrongKind, error.to_string(), "name a file"),
            Library::InvalidPath(_) => Self::new(ErrorKind::BadUri, error.to_string(), "look at the name"),
            Library::SASLError(_) | Library::GSSAPIError(..) | Library::NoSASLMechanism => {
                Self::new(ErrorKind::PermissionDenied, error.to_string(), kerberos)
            }
            Library::InvalidRPCResponse(_) => {
                Self::new(ErrorKind::Protocol, error.to_string(), "look whether it is a namenode's port for clients")
            }
            Library::UnsupportedErasureCodingPolicy(_) | Library::UnsupportedFeature(_) => {
                Self::new(ErrorKind::Unsupported, error.to_string(), "read it by webhdfs://, whose servers can")
            }
            Library::InvalidArgument(_) | Library::UrlParseError(_) | Library::XmlParseError(_) => Self::new(
                ErrorKind::ApiMisuse,
                error.to_string(),
                "name the namenode as HOST:PORT, or its service as in the files of HADOOP_CONF_DIR",
            ),
            Library::TrashNotEnabled | Library::ErasureCodingError(_) | Library::InternalError(_) => {
                Self::new(ErrorKind::Io, error.to_string(), LOOK)
            }
        }
    }
}

impl From<HttpError> for Failed {
    fn from(error: HttpError) -> Self {
        if let Some(refusal) = chain(&error).find_map(|error| error.downcast_ref::<Refusal>()) {
            return Self::refused(refusal);
        }
        if chain(&error).any(|error| error.is::<NoTls>()) {
            return Self::new(ErrorKind::Unsupported, NoTls.to_string(), "use a newer processor, or plain http");
        }
        let text = chain(&error).last().map_or_else(|| error.to_string(), ToString::to_string);
        match error.kind() {
            HttpErrorKind::Timeout => Self::passing(ErrorKind::DeadlineExceeded, text),
            HttpErrorKind::Decode => {
                Self::new(ErrorKind::Protocol, text, "look whether it is the namenode's port for HTTP")
            }
            HttpErrorKind::Connect | HttpErrorKind::Request | HttpErrorKind::Interrupted => {
                Self::passing(ErrorKind::Io, text)
            }
            _ => Self::new(ErrorKind::Io, text, LOOK),
        }
    }
}

impl Failed {
    /// What a refusal of WebHDFS means: its exception, or its status where a server in between said it.
    fn refused(refusal: &Refusal) -> Self {
        if let Some(class) = &refusal.code {
            return Self::of_exception(class, &refusal.text);
        }
        let text = refusal.to_string();
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Self::new(ErrorKind::PermissionDenied, text, "Kerberos over HTTP is not built: use hdfs://")
            }
            // A namenode says that it has no such file by an exception.
            StatusCode::NOT_FOUND => {
                Self::new(ErrorKind::Protocol, text, "look whether it is the namenode's port for HTTP")
            }
            status if status.is_server_error() => Self::passing(ErrorKind::Io, text),
            _ => Self::new(ErrorKind::Io, text, LOOK),
        }
    }
}

/// Whether this is a child of a process that used the library: it keeps connections of the whole process, which a child would share
/// with its parent.
pub(super) fn check_fork() -> Result<(), Failed> {
    static FIRST: OnceLock<sw_mem::ForkMark> = OnceLock::new();
    if !FIRST.get_or_init(sw_mem::ForkMark::new).is_child() {
        return Ok(());
    }
    let text = "the process was forked from one that uses hdfs://, whose connections it would share";
    Err(Failed::new(ErrorKind::Forked, text, "start workers by spawn or forkserver, or open hdfs:// in workers only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_have_their_kinds() {
        for (class, text, kind, passes) in [
            ("java.io.FileNotFoundException", "File does not exist: /a", ErrorKind::NotFound, Passes::No),
            ("java.io.FileNotFoundException", "Path is not a file: /a", ErrorKind::WrongKind, Passes::No),
            ("org.apache.hadoop.security.AccessControlException", "denied", ErrorKind::PermissionDenied, Passes::No),
            (
                "org.apache.hadoop.security.token.SecretManager$InvalidToken",
                "x",
                ErrorKind::PermissionDenied,
                Passes::No,
            ),
            ("org.apache.hadoop.hdfs.server.namenode.SafeModeException", "x", ErrorKind::Busy, Passes::Yes),
            ("org.apache.hadoop.ipc.StandbyException", "x", ErrorKind::Busy, Passes::Yes),
            ("java.io.IOException", "File /a could only be written to 0 of the 1", ErrorKind::NoSpace, Passes::Yes),
            (
                "java.io.IOException",
                "append: lastBlock=x is not sufficiently replicated yet.",
                ErrorKind::Busy,
                Passes::Yes,
            ),
            ("java.io.IOException", "whatever", ErrorKind::Io, Passes::No),
        ] {
            let failed = Failed::of_exception(class, text);
            assert_eq!((failed.kind, failed.passes), (kind, passes), "{class}: {text}");
            assert_eq!(failed.is_refusal(), passes == Passes::No, "{class}: {text}");
        }
        let long = Failed::of_exception("java.io.IOException", &format!("{}\n\tat org.apache", "ü".repeat(1000)));
        assert!(long.text.len() < TEXT_MAX + 4 && !long.text.contains("at org"), "{long:?}");
    }

    #[test]
    fn errors_of_connections_pass_and_those_of_settings_do_not() {
        let failed = Failed::from(HdfsError::IOError(std::io::ErrorKind::ConnectionRefused.into()));
        assert!(failed.may_pass());
        let failed = Failed::from(HdfsError::IOError(std::io::ErrorKind::ConnectionAborted.into()));
        assert!(failed.may_pass() && failed.remedy == REFUSED && !failed.is_refusal(), "{failed:?}");
        let failed = Failed::from(HdfsError::InternalError("odd".to_owned()));
        assert!(!failed.may_pass() && !failed.is_refusal(), "{failed:?}");
        let failed = Failed::from(HdfsError::InvalidArgument("No NameNode hosts found".to_owned()));
        assert_eq!((failed.kind, failed.passes), (ErrorKind::ApiMisuse, Passes::No));
        let failed = Failed::from(HdfsError::DataTransferError("All DataNodes failed: [lots]".to_owned()));
        assert!(failed.may_pass() && !failed.text.contains("lots"), "{failed:?}");
    }
}
