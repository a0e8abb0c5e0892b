//! Addresses of objects.
//!
//! ```text
//!   /path/to/file            file:///path/to/file            stripe:1MiB:/mnt/a/f,/mnt/b/f
//! ```

use std::{fmt, str::FromStr};

use sw_engine::{Error, ErrorKind, Verb};

/// Schemes of the design that this build does not have yet: named, so that the answer is not "bad address".
const PLANNED: [&str; 22] = [
    "nvme",
    "nvme+tcp",
    "nvme+rdma",
    "s3",
    "gs",
    "az",
    "http",
    "https",
    "hdfs",
    "nfs",
    "rbd",
    "rados",
    "cephfs",
    "ais",
    "alluxio",
    "juicefs",
    "daos",
    "agp",
    "milvus",
    "curvefs",
    "weka",
    "lustre",
];

/// An address. Parse it with [`str::parse`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Uri {
    /// A file, directory or block device of this machine.
    File(String),
    /// A stripe set over files or block devices of this machine.
    Stripe {
        /// Bytes on one member before the next one follows: a power of two of at least 4096.
        unit: u64,
        /// The members' paths, in order.
        members: Vec<String>,
    },
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |detail: String| Error::new(ErrorKind::BadUri, Verb::Open).at(text).detail(detail);
        if text.is_empty() || text.contains('\0') {
            return Err(bad("an address cannot be empty or contain NUL".into()).remedy("give a path or file:///path"));
        }
        if let Some(rest) = text.strip_prefix("stripe:") {
            return stripe(rest).ok_or_else(|| {
                bad("not a stripe set".into()).remedy("write stripe:UNIT:/path/a,/path/b with a unit such as 1MiB")
            });
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Uri::File(text.into())) };
        match scheme {
            // RFC 8089 §2 "Syntax": file://host/path; only the local host has files here.
            "file" if rest.starts_with('/') => Ok(Uri::File(rest.into())),
            "file" if rest.starts_with("localhost/") => Ok(Uri::File(rest["localhost".len()..].into())),
            "file" => Err(bad("a file address names this machine only".into()).remedy("write file:///absolute/path")),
            scheme if PLANNED.contains(&scheme) => Err(bad(format!("scheme {scheme} is not built in"))
                .remedy("use a path, file:///path or stripe:UNIT:/a,/b; mount the store to reach it by path")),
            scheme => {
                Err(bad(format!("unknown scheme {scheme}")).remedy("use a path, file:///path or stripe:UNIT:/a,/b"))
            }
        }
    }
}

fn stripe(rest: &str) -> Option<Uri> {
    let (unit, members) = rest.split_once(':')?;
    let members: Vec<String> = members.split(',').map(str::to_owned).collect();
    let unit = parse_bytes(unit)?;
    members.iter().all(|member| !member.is_empty()).then_some(Uri::Stripe { unit, members })
}

/// A number of bytes as people write it: `4096`, `4k`, `4KiB`, `1M`, `2GiB`, `1T` (powers of 1024). `None` if it is not one
/// or does not fit.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::File(path) => f.write_str(path),
            Uri::Stripe { unit, members } => write!(f, "stripe:{unit}:{}", members.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_file_addresses_are_files() {
        for (text, path) in [("/a/b", "/a/b"), ("a b", "a b"), ("file:///a", "/a"), ("file://localhost/a", "/a")] {
            assert_eq!(text.parse::<Uri>().unwrap(), Uri::File(path.into()));
        }
    }

    #[test]
    fn a_stripe_set_has_a_unit_and_members() {
        let uri: Uri = "stripe:64k:/a,/b".parse().unwrap();
        assert_eq!(uri, Uri::Stripe { unit: 65_536, members: vec!["/a".into(), "/b".into()] });
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
    }

    #[test]
    fn what_is_not_built_in_says_so() {
        for (text, word) in [("s3://b/k", "not built in"), ("gopher://x", "unknown"), ("file://host/x", "this machine")]
        {
            let error = text.parse::<Uri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadUri);
            assert!(error.to_string().contains(word), "{error}");
        }
        for text in ["", "a\0b", "stripe:", "stripe:1k", "stripe:x:/a", "stripe:1k:/a,,/b"] {
            assert_eq!(text.parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("4k"), Some(4096));
        assert_eq!(parse_bytes("1GiB"), Some(1 << 30));
        assert_eq!(parse_bytes("7"), Some(7));
        for bad in ["", "k", "-1", "1x", "1.5M", "99999999999T"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }
}
