//! A bucket, by the library that speaks to it.

use std::sync::Arc;

use object_store::{
    BackoffConfig, ObjectMeta, ObjectStore, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, http::HttpBuilder, multipart::MultipartStore, path::Path,
};
use sha2::{Digest, Sha256};
use sw_engine::{
    Error, ErrorKind, Verb, Version,
    seam::{Entry, EntryKind},
};

use super::{Address, ObjectsConfig, Scheme, fault};
use crate::{http::Connections, sign::Sign};

/// One bucket, and how it is asked.
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// How large objects are written; plain HTTP is only read.
    pub(super) parts: Option<Arc<dyn MultipartStore>>,
    /// Whether an object that was written in parts keeps words of ours beside its bytes.
    pub(super) keeps_tags: bool,
}

impl Bucket {
    pub(super) fn new(at: &Address, config: &ObjectsConfig, connections: Connections) -> Result<Self, Error> {
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 10, retry_timeout: config.patience };
        let settings = &config.settings;
        let told = |error| fault::told(error, Verb::Open, &at.to_string());
        Ok(match at.scheme {
            Scheme::S3 => {
                let builder = settings.s3(AmazonS3Builder::new(), &at.bucket).with_crypto_provider(Arc::new(Sign));
                let made = builder.with_http_connector(connections).with_retry(retry).build().map_err(told)?;
                Self::of(Arc::new(made))
            }
            Scheme::Gcs => {
                let builder = settings.gcs(GoogleCloudStorageBuilder::new()).with_crypto_provider(Arc::new(Sign));
                let builder = builder.with_bucket_name(&at.bucket);
                Self::of(Arc::new(builder.with_http_connector(connections).with_retry(retry).build().map_err(told)?))
            }
            Scheme::Azure => {
                let builder = settings.azure(MicrosoftAzureBuilder::new()).with_crypto_provider(Arc::new(Sign));
                let builder = builder.with_container_name(&at.bucket);
                let made = builder.with_http_connector(connections).with_retry(retry).build().map_err(told)?;
                // The library has no way to tell them to this one.
                Self { keeps_tags: false, ..Self::of(Arc::new(made)) }
            }
            Scheme::Http | Scheme::Https => {
                let url = format!("{}://{}", at.scheme.name(), at.bucket);
                let made = HttpBuilder::new().with_url(url).with_http_connector(connections).with_retry(retry).build();
                Self { store: Arc::new(made.map_err(told)?), parts: None, keeps_tags: false }
            }
        })
    }

    fn of<S: ObjectStore + MultipartStore>(store: Arc<S>) -> Self {
        Self { store: store.clone(), parts: Some(store), keeps_tags: true }
    }

    /// The name of an object as the library wants it.
    pub(super) fn path(&self, at: &Address, verb: Verb) -> Result<Path, Error> {
        let wrong = |why: String| {
            let remedy = "names with empty parts, . or .. are not reached";
            Error::new(ErrorKind::BadUri, verb).at(at.to_string()).detail(why).remedy(remedy)
        };
        // The library would leave a first slash out, which is another name.
        if at.key.starts_with('/') {
            return Err(wrong("the name begins with a slash".to_owned()));
        }
        Path::parse(&at.key).map_err(|error| wrong(error.to_string()))
    }

    /// The name of a prefix; `None` for all of the bucket.
    pub(super) fn prefix(&self, at: &Address, verb: Verb) -> Result<Option<Path>, Error> {
        let path = self.path(at, verb)?;
        Ok((!path.as_ref().is_empty()).then_some(path))
    }
}

/// What tells two states of an object apart: its ETag, of which a hash is kept, and its time. The same by a listing and by the object's
/// own headers: those have no fractions of seconds, a listing has no identifier of a version.
pub(super) fn version(meta: &ObjectMeta) -> Version {
    let hash: [u8; 32] = Sha256::digest(meta.e_tag.as_deref().unwrap_or_default().as_bytes()).into();
    let word = |at: usize| hash.iter().skip(at).take(8).fold(0, |word, byte| word << 8 | u64::from(*byte));
    Version { identity: (word(0), word(8)), stamp: i128::from(meta.last_modified.timestamp()) * 1_000_000_000 }
}

/// An object in a listing.
pub(super) fn entry(name: String, meta: &ObjectMeta) -> Entry {
    Entry { name, kind: EntryKind::Object, len: meta.size, version: version(meta) }
}
