//! A bucket, by the library that speaks to it.

use std::{sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetResult, ObjectMeta, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AwsCredential},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    http::HttpBuilder,
    list::PaginatedListStore,
    multipart::MultipartStore,
    path::Path,
};
use sha2::{Digest, Sha256};
use sw_engine::{
    Error, ErrorKind, Landing, Verb, Version,
    seam::{Entry, EntryKind},
};

use super::{
    ObjectsConfig,
    ais::AisStore,
    credentials::{self, Bounded, Nobody, Profile, Provider},
    listing::{CameTo, Listings},
    settings::KeysFrom,
};
use crate::{
    address::{Address, Scheme},
    http::Connections,
    sign::Sign,
};

/// One bucket, and how it is asked.
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// How large objects are written; plain HTTP is only read.
    pub(super) writes: Option<Arc<dyn MultipartStore>>,
    /// How it is listed; plain HTTP is not.
    pub(super) pages: Option<Arc<dyn PaginatedListStore>>,
    /// Whether an object that is put by one request is there as a whole, or as it was before.
    pub(super) puts_whole: bool,
    /// Whether an object that was written in parts keeps words of ours beside its bytes.
    pub(super) keeps_tags: bool,
    /// Whether an upload that is aborted makes no object any more.
    pub(super) aborts: bool,
    pub(super) wire: Wire,
    /// What AIStore's can do more.
    pub(super) ais: Option<Arc<AisStore>>,
    /// Where its requests go.
    pub(super) came_to: CameTo,
}

/// How bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Plain,
    /// A library in this process decrypts them.
    Tls,
}

impl Wire {
    /// Who puts bytes that are read into their place: the kernel from the socket, or the library that decrypts.
    pub(super) fn landing(self) -> Landing {
        match self {
            Self::Plain => Landing::KernelCopy,
            Self::Tls => Landing::Staged,
        }
    }
}

/// Longest that a request is tried again: it is signed once, and the signature is good for 15 minutes from then (Amazon S3 API,
/// "Authenticating Requests (AWS Signature Version 4)").
const SIGNED_FOR: Duration = Duration::from_secs(5 * 60);
/// Longest that the metadata service of an instance is asked for keys: it is on the same machine, or is not there.
const INSTANCE_LIMIT: Duration = Duration::from_secs(5);
/// Longest that the keys of a profile are used before its files are read again.
const PROFILE_KEPT: Duration = Duration::from_secs(60);

impl Bucket {
    pub(super) fn new(at: &Address, config: &ObjectsConfig, connections: Connections) -> Result<Self, Error> {
        let retry_timeout = config.patience.min(SIGNED_FOR);
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 10, retry_timeout };
        let (limit, settings) = (config.patience, &config.settings);
        let unset = |text: String| {
            let remedy = "look at the environment, the profile and the settings of the store";
            Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(at.to_string()).detail(text).remedy(remedy)
        };
        let told = |error: object_store::Error| unset(error.to_string());
        let connections = Listings::of(at.scheme, connections);
        let came_to = connections.came_to();
        // The client is made twice, where it is to have another's keys than the library finds for it: with those, looked at.
        let made = match at.scheme {
            Scheme::Ais => Self::ais(at, config, connections.into_inner()).map_err(unset)?,
            Scheme::Alluxio => {
                let builder = settings.alluxio(AmazonS3Builder::new(), &at.bucket).map_err(unset)?;
                let builder = builder.with_crypto_provider(Arc::new(Sign)).with_retry(retry);
                Self::of_alluxio(builder.with_http_connector(connections)).map_err(told)?
            }
            Scheme::Hdfs
            | Scheme::WebHdfs
            | Scheme::Nfs
            | Scheme::Rados
            | Scheme::Rbd
            | Scheme::CephFs
            | Scheme::Daos
            | Scheme::JuiceFs
            | Scheme::Milvus
            | Scheme::Agent => {
                return Err(unset("not an address of an object store".to_owned()));
            }
            Scheme::S3 => {
                let builder =
                    settings.s3(AmazonS3Builder::new().with_client_options(options()), &at.bucket).map_err(unset)?;
                let builder =
                    builder.with_crypto_provider(Arc::new(Sign)).with_http_connector(connections).with_retry(retry);
                let of_library = || Ok(builder.clone().build().map_err(told)?.credentials().clone());
                let from: Provider<AwsCredential> = match (settings.profile_keys(), &config.again) {
                    (Some(keys), Some(again)) => Arc::new(Profile::new(keys, PROFILE_KEPT, again.clone())),
                    _ if settings.keys_from() == KeysFrom::Nobody => Arc::new(Nobody),
                    _ => of_library()?,
                };
                let is_instance = settings.keys_from() == KeysFrom::Instance;
                let limit = if is_instance { limit.min(INSTANCE_LIMIT) } else { limit };
                let keys = Bounded { from, limit, is_usable: credentials::is_usable };
                let made = Self::of(Arc::new(builder.with_credentials(Arc::new(keys)).build().map_err(told)?));
                if settings.is_s3_plain() { Self { wire: Wire::Plain, ..made } } else { made }
            }
            Scheme::Gcs => {
                let builder = settings.gcs(GoogleCloudStorageBuilder::new()).with_crypto_provider(Arc::new(Sign));
                let builder = builder.with_bucket_name(&at.bucket).with_http_connector(connections).with_retry(retry);
                let from = builder.clone().build().map_err(told)?.credentials().clone();
                let keys = Bounded { from, limit, is_usable: |keys| credentials::is_of_a_header(&keys.bearer) };
                Self::of(Arc::new(builder.with_credentials(Arc::new(keys)).build().map_err(told)?))
            }
            Scheme::Azure => {
                let builder = settings.azure(MicrosoftAzureBuilder::new()).with_crypto_provider(Arc::new(Sign));
                let builder = builder.with_container_name(&at.bucket).with_http_connector(connections);
                Self::of_azure(builder.with_retry(retry), limit).map_err(told)?
            }
            Scheme::Http | Scheme::Https => {
                let url = format!("{}://{}", at.scheme.name(), at.bucket);
                let made = HttpBuilder::new().with_url(url).with_http_connector(connections).with_retry(retry).build();
                let (store, wire) =
                    (Arc::new(made.map_err(told)?), if at.scheme == Scheme::Http { Wire::Plain } else { Wire::Tls });
                Self::of_reads(store, wire)
            }
        };
        Ok(Self { came_to, ..made })
    }

    /// Of a PUT that ends early Alluxio makes an object of what came. It keeps no words of ours; what becomes of an upload that is aborted while it
    /// ends, nobody says.
    fn of_alluxio(builder: AmazonS3Builder) -> object_store::Result<Self> {
        let made = Self::of(Arc::new(builder.build()?));
        Ok(Self { puts_whole: false, keeps_tags: false, aborts: false, wire: Wire::Plain, ..made })
    }

    /// The library has no way to tell words to this one, and nothing ends an upload but its time.
    fn of_azure(builder: MicrosoftAzureBuilder, limit: Duration) -> object_store::Result<Self> {
        let from = builder.clone().build()?.credentials().clone();
        let keys = Bounded { from, limit, is_usable: |_| true };
        let made = builder.with_credentials(Arc::new(keys)).build()?;
        Ok(Self { keeps_tags: false, aborts: false, ..Self::of(Arc::new(made)) })
    }

    /// One that is only read.
    fn of_reads(store: Arc<dyn ObjectStore>, wire: Wire) -> Self {
        let (ais, came_to) = (None, CameTo::default());
        Self {
            store,
            writes: None,
            pages: None,
            puts_whole: true,
            keeps_tags: false,
            aborts: false,
            wire,
            ais,
            came_to,
        }
    }

    fn ais(at: &Address, config: &ObjectsConfig, connections: Connections) -> Result<Self, String> {
        let (endpoint, token) = config.settings.ais()?;
        let wire = if endpoint.starts_with("http://") { Wire::Plain } else { Wire::Tls };
        let ais = Arc::new(AisStore::new(&at.bucket, (endpoint, token), (connections, config))?);
        let (made, ais) = (Self::of(ais.clone()), Some(ais));
        // Objects of parts have no words of ours; what an abort did not find may have become an object.
        Ok(Self { keeps_tags: false, aborts: false, wire, ais, ..made })
    }

    pub(super) fn of<S: ObjectStore + MultipartStore + PaginatedListStore>(store: Arc<S>) -> Self {
        let (writes, pages) = (Some(store.clone() as _), Some(store.clone() as _));
        let (wire, ais, came_to) = (Wire::Tls, None, CameTo::default());
        Self { store, writes, pages, puts_whole: true, keeps_tags: true, aborts: true, wire, ais, came_to }
    }

    /// What there is by a name, without its bytes.
    pub(super) async fn head(&self, path: &Path) -> object_store::Result<GetResult> {
        self.store.get_opts(path, GetOptions { head: true, ..GetOptions::default() }).await
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
        if at.scheme.lists() {
            return Path::parse(&at.key).map_err(|error| wrong(error.to_string()));
        }
        // A URL's path is written as everybody writes it, and has no more behind it.
        if at.key.contains(['?', '#']) {
            return Err(wrong("a URL with a query, such as a signed one, is not asked for".to_owned()));
        }
        Path::from_url_path(&at.key).map_err(|error| wrong(error.to_string()))
    }

    /// The name of a prefix; `None` for all of the bucket.
    pub(super) fn prefix(&self, at: &Address, verb: Verb) -> Result<Option<Path>, Error> {
        let path = self.path(at, verb)?;
        Ok((!path.as_ref().is_empty()).then_some(path))
    }
}

/// What each request to S3 has: checksums are told to those only who ask for them (Amazon S3 API, "HeadObject").
fn options() -> ClientOptions {
    let asked = (http::HeaderName::from_static("x-amz-checksum-mode"), http::HeaderValue::from_static("ENABLED"));
    ClientOptions::new().with_default_headers([asked].into_iter().collect())
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
