//! Bodies, watched: what is sent goes in pieces that count as life, and an answer that falls silent ends with its request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use object_store::client::{HttpError, HttpErrorKind, HttpRequestBody};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    kind_of,
    limit::Place,
    progress::{Progress, Silent},
};

/// Bytes of a piece of what is sent: the connection takes the next when it has room for it, so that each says that the other end reads.
const PIECE_BYTES: usize = 64 << 10;

/// The body of a request.
pub(super) struct Sent {
    body: HttpRequestBody,
    /// What is left of its last frame.
    rest: Bytes,
    progress: Progress,
}

impl Sent {
    pub(super) fn new(body: HttpRequestBody, progress: Progress) -> Self {
        Self { body, rest: Bytes::new(), progress }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let len = self.rest.len().min(PIECE_BYTES);
        self.progress.moved();
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let behind = self.body.size_hint();
        match behind.exact() {
            Some(len) => SizeHint::with_exact(len + self.rest.len() as u64),
            None => behind,
        }
    }
}

/// An answer has more bytes than any that was asked for.
#[derive(Debug)]
struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer has more bytes than any that was asked for")
    }
}

impl std::error::Error for TooLong {}

/// What a body has, up to `most` bytes and a frame more, and what ended it before its end.
pub(crate) async fn collect<B>(body: &mut B, most: usize) -> (Vec<u8>, Result<(), HttpError>)
where
    B: Body<Data = Bytes, Error = HttpError> + Unpin,
{
    let mut read = Vec::new();
    while read.len() < most {
        match std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            Some(Ok(frame)) => read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            Some(Err(error)) => return (read, Err(error)),
            None => break,
        }
    }
    (read, Ok(()))
}

/// The body of an answer. Its place is given back with its end, be it an error: whoever asks for the rest needs one.
pub(super) struct Watched {
    under_way: Option<(Incoming, Place)>,
    /// Bytes that it may still have.
    left: u64,
    silence: Duration,
    watch: Pin<Box<Sleep>>,
}

impl Watched {
    /// One of at most `most` bytes.
    pub(super) fn new(body: Incoming, silence: Duration, place: Place, most: u64) -> Self {
        Self { under_way: Some((body, place)), left: most, silence, watch: Box::pin(sleep(silence)) }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let Some((body, place)) = &mut self.under_way else { return Poll::Ready(None) };
        let end = match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                place.progress().moved();
                let until = Instant::now() + self.silence;
                self.watch.as_mut().reset(until);
                let left = self.left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                if let Some(left) = left {
                    self.left = left;
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(HttpError::new(HttpErrorKind::Decode, TooLong)))
            }
            Poll::Ready(Some(Err(error))) => Some(Err(HttpError::new(kind_of(Some(&error)), error))),
            Poll::Ready(None) => None,
            Poll::Pending => {
                ready!(self.watch.as_mut().poll(context));
                Some(Err(HttpError::new(HttpErrorKind::Timeout, Silent(self.silence))))
            }
        };
        self.under_way = None;
        Poll::Ready(end)
    }

    fn is_end_stream(&self) -> bool {
        self.under_way.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.under_way.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}
