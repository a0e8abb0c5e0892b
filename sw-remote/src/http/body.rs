//! The body of an answer, watched: a server that falls silent ends it, and the request counts as under way until it is over.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use object_store::client::{HttpError, HttpErrorKind};
use tokio::time::{Instant, Sleep, sleep};

use super::{kind_of, limit::Place};

/// A body with its watch.
pub(super) struct Watched {
    body: Incoming,
    silence: Duration,
    watch: Pin<Box<Sleep>>,
    /// Given back with the body.
    _place: Place,
}

/// A server said nothing for too long.
#[derive(Debug)]
struct Silent(Duration);

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no bytes for {} s", self.0.as_secs_f32())
    }
}

impl std::error::Error for Silent {}

impl Watched {
    pub(super) fn new(body: Incoming, silence: Duration, place: Place) -> Self {
        Self { body, silence, watch: Box::pin(sleep(silence)), _place: place }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let until = Instant::now() + self.silence;
            self.watch.as_mut().reset(until);
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| HttpError::new(kind_of(Some(&error)), error))));
        }
        let silence = self.silence;
        self.watch.as_mut().poll(context).map(|()| Some(Err(HttpError::new(HttpErrorKind::Timeout, Silent(silence)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
