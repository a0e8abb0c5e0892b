//! Keys, looked at before they are used: whoever waits for them waits for a while, and what no header can carry is none.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use object_store::{CredentialProvider, aws::AwsCredential};
use tokio::time::Instant;

use super::Settings;

/// Who gives credentials of a kind.
pub(super) type Provider<C> = Arc<dyn CredentialProvider<Credential = C>>;

/// There are no credentials, or none that can be used.
#[derive(Debug)]
pub(super) struct NoCredentials(Why);

#[derive(Debug)]
enum Why {
    Late(Duration),
    Unusable,
    Nobody,
    Failed(object_store::Error),
}

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there are no credentials")?;
        match &self.0 {
            Why::Late(limit) => write!(f, ": whoever has them did not give them within {} s", limit.as_secs_f32()),
            Why::Unusable => f.write_str(": a key or a token has characters that no header can have"),
            Why::Nobody => f.write_str(": nothing names any, and AWS_EC2_METADATA_DISABLED is set"),
            Why::Failed(_) => Ok(()),
        }
    }
}

impl std::error::Error for NoCredentials {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Why::Failed(error) => Some(error),
            Why::Late(_) | Why::Unusable | Why::Nobody => None,
        }
    }
}

impl From<Why> for object_store::Error {
    fn from(why: Why) -> Self {
        Self::Generic { store: "credentials", source: Box::new(NoCredentials(why)) }
    }
}

/// Those of a provider that asks servers, one request at a time: whoever stands behind others that fail waits no longer than they do.
pub(super) struct Bounded<C> {
    pub(super) from: Provider<C>,
    pub(super) limit: Duration,
    /// Whether headers can carry them.
    pub(super) is_usable: fn(&C) -> bool,
}

impl<C> fmt::Debug for Bounded<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("limit", &self.limit).finish_non_exhaustive()
    }
}

#[async_trait]
impl<C: Send + Sync + 'static> CredentialProvider for Bounded<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        let got = tokio::time::timeout(self.limit, self.from.get_credential()).await;
        let got = got.map_err(|_| Why::Late(self.limit))?.map_err(Why::Failed)?;
        if (self.is_usable)(&got) { Ok(got) } else { Err(Why::Unusable.into()) }
    }
}

/// Nobody is asked, nobody has any.
#[derive(Debug)]
pub(super) struct Nobody;

#[async_trait]
impl CredentialProvider for Nobody {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Err(Why::Nobody.into())
    }
}

/// Whether a header can carry a text.
pub(super) fn is_of_a_header(text: &str) -> bool {
    http::HeaderValue::from_str(text).is_ok()
}

/// Whether the keys of S3 can be used.
pub(super) fn is_usable(keys: &AwsCredential) -> bool {
    is_of_a_header(&keys.key_id) && keys.token.as_deref().is_none_or(is_of_a_header)
}

/// How what is said of us is found out again.
#[derive(Clone)]
pub struct Again(pub Arc<dyn Fn() -> Settings + Send + Sync>);

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").finish_non_exhaustive()
    }
}

/// Keys of a profile's files, which whoever renews them writes anew.
pub(super) struct Profile {
    again: Again,
    keep: Duration,
    known: Mutex<(Instant, Arc<AwsCredential>)>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl Profile {
    /// Those that are known now, looked up again when they are older than `keep`.
    pub(super) fn new(now: AwsCredential, keep: Duration, again: Again) -> Self {
        Self { again, keep, known: Mutex::new((Instant::now(), Arc::new(now))) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, (Instant, Arc<AwsCredential>)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CredentialProvider for Profile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let (since, keys) = self.known().clone();
        if since.elapsed() < self.keep {
            return Ok(keys);
        }
        let again = self.again.clone();
        // Files may lie on a server that is slow.
        let found = tokio::task::spawn_blocking(move || (again.0)().keys()).await;
        // One that is just being written has no keys, or half of them.
        let keys = found.ok().flatten().map_or(keys, Arc::new);
        *self.known() = (Instant::now(), keys.clone());
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::StaticCredentialProvider;

    use super::*;
    use crate::chain::chain;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    fn keys(key: &str, token: Option<&str>) -> AwsCredential {
        AwsCredential { key_id: key.to_owned(), secret_key: "S".to_owned(), token: token.map(str::to_owned) }
    }

    #[derive(Debug)]
    struct Never;

    #[async_trait]
    impl CredentialProvider for Never {
        type Credential = AwsCredential;

        async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
            std::future::pending().await
        }
    }

    #[test]
    fn keys_that_do_not_come_or_cannot_be_used_are_none() {
        let of = |from| Bounded { from, limit: Duration::from_millis(20), is_usable };
        let of_keys = |keys| of(Arc::new(StaticCredentialProvider::new(keys)) as Provider<AwsCredential>);
        runtime().block_on(async {
            of_keys(keys("A", Some("T"))).get_credential().await.unwrap();
            for bad in [of(Arc::new(Never)), of_keys(keys("A\r", None)), of_keys(keys("A", Some("T\nx")))] {
                let error = bad.get_credential().await.unwrap_err();
                assert!(chain(&error).any(|error| error.is::<NoCredentials>()), "{error}");
            }
        });
    }

    #[test]
    fn a_profile_is_read_again_and_half_a_file_changes_nothing() {
        let (asked, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new("B")));
        let (count, text) = (asked.clone(), told.clone());
        let again = Again(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let mut settings = Settings::default();
            let credentials = format!("[default]\naws_access_key_id = {}\n", text.lock().unwrap());
            settings.add_profile("default", &credentials, "");
            settings
        }));
        let fresh = Profile::new(keys("A", None), Duration::from_secs(3600), again.clone());
        let old = Profile::new(keys("A", None), Duration::ZERO, again);
        runtime().block_on(async {
            assert_eq!(fresh.get_credential().await.unwrap().key_id, "A");
            assert_eq!(asked.load(Ordering::Relaxed), 0);
            assert_eq!(old.get_credential().await.unwrap().key_id, "A", "its secret is not written yet");
            *told.lock().unwrap() = "B\naws_secret_access_key = S2";
            assert_eq!(
                *old.get_credential().await.unwrap(),
                AwsCredential { secret_key: "S2".to_owned(), ..keys("B", None) }
            );
            assert_eq!(asked.load(Ordering::Relaxed), 2);
        });
    }
}
