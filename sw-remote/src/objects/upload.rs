//! The upload of an object in parts: begun once, by whoever sends the first, and known to whoever ends it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use object_store::MultipartId;

/// What came of its begin. It is asked for in a task of its own: an upload that the store made is known even if nobody waits for it any more.
type Begun = Shared<BoxFuture<'static, Result<MultipartId, Arc<object_store::Error>>>>;

/// It.
#[derive(Default)]
pub(super) struct Upload(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    None,
    Begun(Begun),
    /// None begins any more.
    GivenUp,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum NoUpload {
    GivenUp,
    Failed(Arc<object_store::Error>),
}

impl Upload {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, if it has begun.
    pub(super) fn known(&self) -> Option<MultipartId> {
        match &*self.state() {
            State::Begun(begun) => begun.peek().and_then(|begun| begun.as_ref().ok().cloned()),
            State::None | State::GivenUp => None,
        }
    }

    /// Its name; it begins now if it has not.
    pub(super) async fn id<F>(&self, begin: impl FnOnce() -> F) -> Result<MultipartId, NoUpload>
    where
        F: Future<Output = object_store::Result<MultipartId>> + Send + 'static,
    {
        let begun = match &mut *self.state() {
            State::GivenUp => return Err(NoUpload::GivenUp),
            State::Begun(begun) => begun.clone(),
            state @ State::None => {
                let task = tokio::spawn(begin());
                let begun = async move {
                    let lost = |error| object_store::Error::Generic { store: "upload", source: Box::new(error) };
                    task.await.map_err(lost).and_then(|begun| begun).map_err(Arc::new)
                };
                let begun = begun.boxed().shared();
                *state = State::Begun(begun.clone());
                begun
            }
        };
        let begun = begun.await;
        if begun.is_err() {
            // The next one tries again.
            let mut state = self.state();
            if matches!(&*state, State::Begun(begun) if matches!(begun.peek(), Some(Err(_)))) {
                *state = State::None;
            }
        }
        begun.map_err(NoUpload::Failed)
    }

    /// None begins from now on. What has begun, to be ended; one that is about to begin is waited for.
    pub(super) async fn give_up(&self) -> Option<MultipartId> {
        let State::Begun(begun) = std::mem::replace(&mut *self.state(), State::GivenUp) else { return None };
        begun.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn an_upload_is_known_though_nobody_waited_for_its_begin() {
        runtime().block_on(async {
            let (upload, (told, answer)) = (Upload::default(), tokio::sync::oneshot::channel());
            let mut first = Box::pin(upload.id(|| async { Ok(answer.await.unwrap()) }));
            assert!(first.as_mut().now_or_never().is_none());
            drop(first);
            told.send("a".to_owned()).unwrap();
            assert_eq!(upload.give_up().await.as_deref(), Some("a"));
            let late = upload.id(|| async { panic!("it was given up") }).await;
            assert!(matches!(late, Err(NoUpload::GivenUp)), "{late:?}");
        });
    }

    #[test]
    fn a_begin_that_failed_is_made_again() {
        runtime().block_on(async {
            let upload = Upload::default();
            let failed = upload
                .id(|| async {
                    Err(object_store::Error::NotImplemented { operation: "x".to_owned(), implementer: "y".to_owned() })
                })
                .await;
            assert!(matches!(failed, Err(NoUpload::Failed(_))), "{failed:?}");
            assert_eq!(upload.known(), None);
            assert_eq!(upload.id(|| async { Ok("b".to_owned()) }).await.unwrap(), "b");
            assert_eq!(upload.known().as_deref(), Some("b"));
        });
    }
}
