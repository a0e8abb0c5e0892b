//! Reading: bytes land, and the file is looked at afterwards: they are of the version that was opened if it still is that one.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{Error, ErrorKind, Verb, seam::IoKind};

use super::{
    fault::Failed,
    files::{Files, Meta, Ranges, Tries, persist},
};
use crate::{
    address::Address,
    land::Landing,
    looks::Looks,
    remote::{Remote, no_range_written},
};

/// A file that is open for reading.
pub(super) struct HdfsRead {
    files: Arc<dyn Files>,
    bytes: Arc<dyn Ranges>,
    at: Address,
    path: String,
    /// What it was when it was opened.
    meta: Meta,
    patience: Duration,
    looks: Looks<Failed>,
}

impl HdfsRead {
    pub(super) fn new(
        files: Arc<dyn Files>,
        bytes: Arc<dyn Ranges>,
        (at, path): (Address, String),
        meta: Meta,
        patience: Duration,
    ) -> Self {
        Self { files, bytes, at, path, meta, patience, looks: Looks::default() }
    }

    /// Whether it is what it was when it was opened.
    async fn look(&self) -> Result<(), Failed> {
        let now = persist(self.patience, || self.files.stat(&self.path)).await;
        match now {
            Ok(now) if now == self.meta => Ok(()),
            Ok(_) => Err(Failed::changed()),
            Err(failed) => Err(failed),
        }
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Failed> {
        // Nothing is asked of what lies behind the end; the lane is told that the data is short.
        let end = offset.saturating_add(u64::from(landing.len())).min(self.meta.len);
        let mut tries = Tries::new(self.patience);
        loop {
            let from = offset + u64::from(landing.done());
            if from >= end {
                break;
            }
            let read = self.bytes.read(from..end, landing).await;
            if offset + u64::from(landing.done()) > from {
                tries.moved();
            } else if read.is_ok() {
                tries.again(Failed::passing(ErrorKind::ShortData, "no bytes came of a range of the file")).await?;
            }
            if let Err(failed) = read {
                tries.again(failed).await?;
            }
        }
        self.looks.confirm(|| self.look()).await
    }
}

impl Remote for HdfsRead {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        let len = u64::from(landing.len());
        async move {
            let read = self.get(offset, landing).await;
            read.map_err(|failed| failed.told(Verb::Read, &self.at.to_string()).in_range(offset, len))
        }
        .boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        no_range_written(&self.at, (offset, landing), "file")
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        async move { self.look().await.map_err(|failed| failed.told(Verb::Open, &self.at.to_string())) }.boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}
