//! Objects that are written once and never again, for systems that keep their bytes in a bucket and say themselves what is where.

use std::{sync::Arc, time::Duration};

use sw_engine::{Error, ErrorKind, Landing as Lands, Verb};

use super::{
    ObjectsConfig,
    bucket::{Bucket, Wire},
    open::ObjectRead,
    settings::KeysFrom,
};
use crate::{
    address::{Address, Scheme},
    http::Connections,
    land::Landing,
};

/// A bucket of S3's full of such objects.
pub(crate) struct Bucketful {
    bucket: Arc<Bucket>,
    /// The bucket itself.
    at: Address,
    patience: Duration,
}

/// Where a bucket is, as a volume's own description has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Where {
    /// `http(s)://HOST:PORT`.
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    /// The region that requests are signed for, if it is said.
    pub(crate) region: Option<String>,
}

/// Keys that a volume's own description has: those of the caller's go before them.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

impl Bucketful {
    /// That at `place`, asked as `config` says.
    ///
    /// # Errors
    /// What is wrong with the settings, or the place.
    pub(crate) fn new(mut config: ObjectsConfig, place: Where, keys: Option<Keys>) -> Result<Self, Error> {
        let settings = &mut config.settings;
        settings.set("AWS_ENDPOINT_URL_S3", place.endpoint);
        if let Some(region) = place.region {
            settings.set("AWS_REGION", region);
        }
        if let (Some(keys), true) = (keys, settings.keys_from() != KeysFrom::Named) {
            settings.set("AWS_ACCESS_KEY_ID", keys.id);
            settings.set("AWS_SECRET_ACCESS_KEY", keys.secret);
            if let Some(token) = keys.token {
                settings.set("AWS_SESSION_TOKEN", token);
            }
        }
        let at = Address { scheme: Scheme::S3, bucket: place.bucket, key: String::new() };
        let bucket = Arc::new(Bucket::new(&at, &config, Connections::new(&config.http)?)?);
        Ok(Self { bucket, at, patience: config.patience })
    }

    /// Who puts bytes that are read into their place.
    pub(crate) fn lands(&self) -> Lands {
        self.bucket.wire.landing()
    }

    /// Whether they come by TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.bucket.wire == Wire::Tls
    }

    /// The address of one.
    pub(crate) fn address(&self, key: &str) -> String {
        self.at.sibling(key).to_string()
    }

    /// Fills `landing` from byte `offset` of the object `key`, which has `size` bytes.
    ///
    /// # Errors
    /// `NotFound` if there is none; `ShortData` if it has another length, or ends early; those of the store.
    pub(crate) async fn read(&self, (key, size): (&str, u64), offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let at = self.at.sibling(key);
        let path = self.bucket.path(&at, Verb::Read)?;
        let name = at.to_string();
        let object = ObjectRead::fixed(self.bucket.clone(), (at, path), size, self.patience);
        object.get(offset, landing).await?;
        if landing.done() < landing.len() {
            return Err(Error::new(ErrorKind::ShortData, Verb::Read)
                .at(name)
                .detail("the store gave fewer bytes than it says that there are")
                .remedy("look at the store"));
        }
        Ok(())
    }
}
