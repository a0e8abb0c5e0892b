//! Connections of TCP in which what was taken to be sent is nearly sent.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::net::TcpStream;
use tower_service::Service;

/// Bytes that the kernel holds unsent at most: it takes megabytes otherwise, and a server that reads slowly would look silent for as long as
/// these last (linux `Documentation/networking/ip-sysctl.rst`, tcp_notsent_lowat; two pieces of a body).
const UNSENT_BYTES: u32 = 128 << 10;

/// Makes them.
#[derive(Clone, Debug)]
pub(super) struct Tcp(pub(super) HttpConnector);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move {
            let connected = connecting.await?;
            limit(connected.inner())?;
            Ok(connected)
        })
    }
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
}
