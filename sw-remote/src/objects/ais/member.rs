//! Members of archives. AIStore gives them as a whole and says nothing of their versions: the archive is looked at before and afterwards.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Method;
use object_store::{
    Attributes, GetOptions, GetRange, GetResult, GetResultPayload,
    client::{HttpError, HttpErrorKind},
    path::Path,
};
use tokio::sync::Mutex;

use super::{
    AisStore, Facts,
    cluster::{Call, escaped, nonsense},
};
use crate::http::collect;

/// Bytes of a member, at most: it is held as a whole.
const MEMBER_BYTES_MAX: u64 = 64 << 20;

/// The last one that was read in parts, by its name and the archive's tag.
#[derive(Default)]
pub(super) struct Members(Mutex<Option<(Path, Option<String>, Bytes)>>);

/// A member has more bytes than are held.
#[derive(Debug)]
pub(in super::super) struct MemberTooLong(u64);

impl std::fmt::Display for MemberTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the member has {} bytes; AIStore gives it as a whole, and at most {MEMBER_BYTES_MAX} are held",
            self.0
        )
    }
}

impl std::error::Error for MemberTooLong {}

impl AisStore {
    /// A range of a member, or what is said of it, with the tag of its archive.
    pub(super) async fn member(
        &self,
        location: &Path,
        (archive, member): (Path, &str),
        options: &GetOptions,
    ) -> Result<GetResult, HttpError> {
        let query = format!("&archpath={}", escaped(member));
        let mut call = Call::new(Method::GET, String::new());
        call.most = Some(MEMBER_BYTES_MAX);
        let before = self.head(&archive).await?;
        let (size, bytes, facts) = if options.head {
            // Its length comes with its bytes only, which are not waited for.
            let answer = self.cluster.again(|| self.at_target((&archive, &query), &call)).await?;
            (length(&Facts::of(answer.headers()))?, Bytes::new(), before)
        } else {
            let mut last = self.members.0.lock().await;
            let known = last.as_ref().filter(|(name, tag, _)| name == location && *tag == before.tag());
            let (bytes, after) = match known {
                Some((.., bytes)) => (bytes.clone(), before),
                None => {
                    let bytes = self.cluster.again(|| self.whole(&archive, &query, &call)).await?;
                    (bytes, self.head(&archive).await?)
                }
            };
            let size = bytes.len() as u64;
            let range = match &options.range {
                Some(GetRange::Bounded(range)) => range.start.min(size)..range.end.min(size),
                _ => 0..size,
            };
            *last = (range.end - range.start < size).then(|| (location.clone(), after.tag(), bytes.clone()));
            drop(last);
            (size, bytes.slice(sw_mem::index(range.start)..sw_mem::index(range.end)), after)
        };
        let start = match &options.range {
            Some(GetRange::Bounded(range)) => range.start.min(size),
            _ => 0,
        };
        let range = start..start + bytes.len() as u64;
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter([Ok(bytes)]).boxed()),
            meta: facts.meta(location.clone(), size),
            range,
            attributes: Attributes::default(),
            extensions: http::Extensions::default(),
        })
    }

    /// All of a member, once.
    async fn whole(&self, archive: &Path, query: &str, call: &Call) -> Result<Bytes, HttpError> {
        let answer = self.at_target((archive, query), call).await?;
        let len = length(&Facts::of(answer.headers()))?;
        let mut body = answer.into_body();
        let (bytes, end) = collect(&mut body, usize::MAX).await;
        end?;
        if bytes.len() as u64 == len {
            Ok(bytes.into())
        } else {
            Err(nonsense("a member has another length than it says"))
        }
    }
}

/// Bytes of a member, by its answer.
fn length(facts: &Facts) -> Result<u64, HttpError> {
    let len = facts.len.ok_or_else(|| nonsense("a member without a length"))?;
    if len > MEMBER_BYTES_MAX {
        return Err(HttpError::new(HttpErrorKind::Unknown, MemberTooLong(len)));
    }
    Ok(len)
}
