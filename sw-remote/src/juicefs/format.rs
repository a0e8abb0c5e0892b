//! What a volume says of itself: the JSON that `juicefs format` wrote.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use sw_engine::{Error, ErrorKind, Verb};
use url::Url;

use super::slices::{Form, Naming};
use crate::{
    address::shown,
    objects::{Keys, Where},
};

/// The version of metadata that is read here (JuiceFS 1.4.1 `pkg/meta/base.go`, `MaxVersion`).
const META_VERSION: u64 = 1;
/// Bytes of a block at most: `juicefs format` takes 16 MiB.
const BLOCK_BYTES_MAX: u64 = 64 << 20;

/// A volume.
#[derive(Clone)]
pub(super) struct Format {
    pub(super) name: String,
    /// A number made of its UUID.
    pub(super) identity: u64,
    pub(super) naming: Naming,
    /// Where its blocks are, or why they are not read.
    pub(super) place: Result<Place, Unread>,
}

/// Where blocks are.
#[derive(Clone)]
pub(super) enum Place {
    /// In a bucket of S3's, whose keys the volume may have too.
    Bucket(Where, Option<Keys>),
    /// Below a folder of this machine.
    Folder(PathBuf),
}

/// Why the blocks of a volume are not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unread(String);

impl Unread {
    pub(super) fn error(&self, verb: Verb, name: &str) -> Error {
        Error::new(ErrorKind::Unsupported, verb)
            .at(name)
            .detail(self.0.clone())
            .remedy("read it by `juicefs mount` and its path, or by `juicefs gateway --keep-etag` and s3://")
    }
}

impl Format {
    /// By its JSON; `bucket` is where the blocks are, if the caller knows better.
    ///
    /// # Errors
    /// Why it is no volume that can be read.
    pub(super) fn parse(json: &[u8], bucket: Option<&str>) -> Result<Self, (ErrorKind, String)> {
        let bad = |text: &str| (ErrorKind::BadFormat, text.to_owned());
        let value: Value =
            serde_json::from_slice(json).map_err(|error| bad(&format!("the volume's settings: {error}")))?;
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        if number("MetaVersion") > META_VERSION {
            let text = format!("the metadata are of version {}, and {META_VERSION} is known", number("MetaVersion"));
            return Err((ErrorKind::Unsupported, text));
        }
        let (name, uuid) = (text("Name"), text("UUID"));
        if name.is_empty() || uuid.is_empty() || name.contains(['/', '\0']) {
            return Err(bad("the volume's settings name no volume"));
        }
        let block_bytes = number("BlockSize").saturating_mul(1024);
        if !(1..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(bad("the volume's blocks have no size that can be"));
        }
        let is_hashed = value.get("HashPrefix").and_then(Value::as_bool).unwrap_or(false);
        let naming = Naming { block_bytes, form: if is_hashed { Form::Hashed } else { Form::Counted } };
        let hash = Sha256::digest(uuid.as_bytes());
        let identity = hash.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte));
        let place = Self::place(&value, bucket.unwrap_or_else(|| text("Bucket"))).map_err(Unread);
        Ok(Self { name: name.to_owned(), identity, naming, place })
    }

    fn place(value: &Value, bucket: &str) -> Result<Place, String> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        if !matches!(text("Compression"), "" | "none") {
            return Err(format!("the volume's blocks are compressed ({})", text("Compression")));
        }
        if !text("EncryptKey").is_empty() {
            return Err("the volume's blocks are encrypted".to_owned());
        }
        if value.get("Shards").and_then(Value::as_u64).unwrap_or(0) > 1 {
            return Err("the volume's blocks are spread over several buckets (--shards)".to_owned());
        }
        match text("Storage").to_ascii_lowercase().as_str() {
            "file" => Ok(Place::Folder(folder(bucket, text("Name")))),
            // The bucket's name stands elsewhere in those, and they have no region where others do.
            "s3" if bucket.contains(".vpce.amazonaws.com") => {
                Err(format!("the volume's bucket is reached by a private link ({})", shown(bucket)))
            }
            storage @ ("s3" | "minio") => {
                let place = place_of(storage, bucket).ok_or_else(|| format!("no bucket is at {:?}", shown(bucket)))?;
                // What is encrypted is a secret between JuiceFS and its volume.
                let is_plain = !value.get("KeyEncrypted").and_then(Value::as_bool).unwrap_or(false);
                let keys = Keys {
                    id: text("AccessKey").to_owned(),
                    secret: text("SecretKey").to_owned(),
                    token: Some(text("SessionToken").to_owned()).filter(|token| !token.is_empty()),
                };
                let is_whole = !keys.id.is_empty() && !keys.secret.is_empty();
                Ok(Place::Bucket(place, (is_plain && is_whole).then_some(keys)))
            }
            other => Err(format!("the volume's blocks are in a storage ({other:?}) that is not read directly")),
        }
    }
}

/// The folder of a volume of files (JuiceFS 1.4.1 `pkg/object/file.go`, `filestore.path`): what has no last slash is a beginning of a name.
fn folder(root: &str, volume: &str) -> PathBuf {
    if root.ends_with('/') { Path::new(root).join(volume) } else { PathBuf::from(format!("{root}{volume}")) }
}

/// The bucket that a URL means to JuiceFS (1.4.1 `pkg/object/s3.go`, `newS3`; `minio.go`, `newMinio`).
fn place_of(storage: &str, text: &str) -> Option<Where> {
    let is_amazon = |host: &str| host.contains(".amazonaws.com");
    let text = text.trim_end_matches('/');
    let whole = match text.split_once("://") {
        Some(_) => text.to_owned(),
        None if storage == "minio" || (text.contains('.') && !is_amazon(text)) => format!("http://{text}"),
        None => format!("https://{text}"),
    };
    let url = Url::parse(&whole).ok()?;
    let host = url.host_str()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let region = url.query_pairs().find(|(name, _)| name == "region").map(|(_, region)| region.into_owned());
    let mut parts = url.path_segments()?.filter(|part| !part.is_empty());
    let in_path = match parts.next() {
        Some("minio") if storage == "minio" => parts.next().or(Some("minio")),
        first => first,
    };
    let (bucket, host) = match in_path {
        Some(bucket) => (bucket, host.to_owned()),
        None if storage == "minio" => return None,
        None if is_amazon(host) => {
            let (bucket, rest) = host.split_once(".s3")?;
            (bucket, format!("s3{rest}"))
        }
        None => {
            let (bucket, rest) = host.split_once('.')?;
            (bucket, rest.to_owned())
        }
    };
    let region = region.or_else(|| is_amazon(&format!(".{host}")).then(|| amazon_region(&host)));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_bucket = !bucket.is_empty() && bucket.bytes().all(is_name);
    is_bucket.then(|| Where { endpoint: format!("{}://{host}{port}", url.scheme()), bucket: bucket.to_owned(), region })
}

/// `s3.REGION.amazonaws.com` or `s3-REGION.amazonaws.com`; without one it is the first of all.
fn amazon_region(host: &str) -> String {
    let rest = host.split_once("s3").map_or("", |(_, rest)| rest);
    let region = rest.split(".amazonaws.com").next().unwrap_or_default().trim_matches(['.', '-']);
    if region.is_empty() { "us-east-1".to_owned() } else { region.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"Name":"v","UUID":"6a1c","Storage":"file","Bucket":"/d/","BlockSize":4096,"MetaVersion":1}"#;

    fn with(more: &str) -> String {
        FILE.replacen('{', &format!("{{{more},"), 1)
    }

    fn unread(json: &str) -> String {
        match Format::parse(json.as_bytes(), None).map(|format| format.place) {
            Ok(Err(Unread(text))) => text,
            Ok(Ok(_)) => panic!("{json} is read"),
            Err((_, text)) => panic!("{text}"),
        }
    }

    #[test]
    fn a_volume_over_files_is_below_its_folder() {
        let format = Format::parse(FILE.as_bytes(), None).unwrap();
        assert_eq!((format.name.as_str(), format.naming.block_bytes), ("v", 4 << 20));
        let Ok(Place::Folder(folder)) = format.place else { panic!("no folder") };
        assert_eq!(folder, Path::new("/d/v"));
        let Ok(Place::Folder(folder)) = Format::parse(FILE.as_bytes(), Some("/e-")).unwrap().place else { panic!() };
        assert_eq!(folder, Path::new("/e-v"));
    }

    #[test]
    fn what_is_not_read_says_why() {
        assert!(unread(&with(r#""Compression":"lz4""#)).contains("lz4"));
        assert!(unread(&with(r#""EncryptKey":"x""#)).contains("encrypted"));
        assert!(unread(&with(r#""Shards":2"#)).contains("--shards"));
        assert!(unread(&FILE.replace("\"file\"", "\"gs\"")).contains("gs"));
        assert!(unread(&FILE.replace("\"file\"", "\"minio\"").replace("/d/", "http://h:9")).contains("no bucket"));
        for link in [
            "https://b.bucket.vpce-1-a.s3.eu-1.vpce.amazonaws.com",
            "https://bucket.vpce-1-a.s3.eu-1.vpce.amazonaws.com/b",
        ] {
            assert!(
                unread(&FILE.replace("\"file\"", "\"s3\"").replace("/d/", link)).contains("private link"),
                "{link}"
            );
        }
    }

    #[test]
    fn what_is_no_volume_is_told() {
        let kind = |json: &str| Format::parse(json.as_bytes(), None).err().map(|(kind, _)| kind);
        assert_eq!(kind("{"), Some(ErrorKind::BadFormat));
        assert_eq!(kind("{}"), Some(ErrorKind::BadFormat));
        assert_eq!(kind(&FILE.replace("4096", "0")), Some(ErrorKind::BadFormat));
        assert_eq!(kind(&FILE.replace("\"MetaVersion\":1", "\"MetaVersion\":2")), Some(ErrorKind::Unsupported));
        assert_eq!(kind(&FILE.replace("\"v\"", "\"a/b\"")), Some(ErrorKind::BadFormat));
    }

    #[test]
    fn a_bucket_is_where_juicefs_looks_for_it() {
        let place = |storage, text| {
            place_of(storage, text).map(|place| (place.endpoint, place.bucket, place.region.unwrap_or_default()))
        };
        let some = |endpoint: &str, bucket: &str, region: &str| {
            Some((endpoint.to_owned(), bucket.to_owned(), region.to_owned()))
        };
        assert_eq!(place("minio", "http://127.0.0.1:9100/b"), some("http://127.0.0.1:9100", "b", ""));
        assert_eq!(place("minio", "h:9/minio/b?region=r"), some("http://h:9", "b", "r"));
        assert_eq!(place("minio", "http://h:9/"), None);
        assert_eq!(place("s3", "https://h:9/b/"), some("https://h:9", "b", ""));
        assert_eq!(place("s3", "https://b.s3.eu-1.amazonaws.com"), some("https://s3.eu-1.amazonaws.com", "b", "eu-1"));
        assert_eq!(place("s3", "b.s3-eu-1.amazonaws.com"), some("https://s3-eu-1.amazonaws.com", "b", "eu-1"));
        assert_eq!(place("s3", "https://s3.amazonaws.com/b"), some("https://s3.amazonaws.com", "b", "us-east-1"));
        assert_eq!(place("s3", "b.oss.example.com"), some("http://oss.example.com", "b", ""));
        assert_eq!(place("s3", "alone"), None);
    }

    #[test]
    fn keys_are_taken_where_they_are_no_secret() {
        let s3 = FILE.replace("\"file\"", "\"s3\"").replace("/d/", "http://h:9/b");
        let keys = |more: &str| {
            let json = s3.replacen('{', &format!(r#"{{"AccessKey":"A","SecretKey":"S"{more},"#), 1);
            let Ok(Place::Bucket(_, keys)) = Format::parse(json.as_bytes(), None).unwrap().place else { panic!() };
            keys.map(|keys| (keys.id, keys.secret))
        };
        assert_eq!(keys(""), Some(("A".to_owned(), "S".to_owned())));
        assert_eq!(keys(r#","KeyEncrypted":true"#), None);
    }
}
