//! HDFS by its own protocols, which the library `hdfs-native` speaks: it looks for blocks, asks datanodes for packets, and compares each
//! chunk with its checksum.
//!
//! What the library leaves to us: limits of waits (it has none for a namenode), the end of a reader whose datanodes have all failed once
//! (it asks none of them again), and writers that a lost datanode or namenode has ended: the file is closed for them, and goes on where it
//! ends.

use std::{
    future::Future,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use hdfs_native::{
    Client, ClientBuilder, HdfsError, WriteOptions,
    client::FileStatus,
    file::{FileReader, FileWriter},
};
use sw_engine::{ErrorKind, TransportName, seam::EntryKind};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    fault::{Failed, check_fork},
    files::{Asked, ENTRIES_MAX, Files, Growing, Meta, Ranges, Tries, persist},
};
use crate::land::{Landing, TooMany};

/// The least rate of datanodes that is waited for, in bytes a second.
const RATE_MIN: u64 = 1 << 20;
/// How long is waited between looks whether a file has been closed for its lost writer.
const RECOVERY_WAIT: Duration = Duration::from_millis(200);
/// How many times a datanode's silence is waited for between pieces of a range: the library tells no end of one whose task has stopped.
const PIECE_SILENCES: u32 = 3;
/// Where no configuration is.
const NOWHERE: &str = "/dev/null";
/// Files of a configuration, the later over the earlier.
const FILES: [&str; 2] = ["core-site.xml", "hdfs-site.xml"];
/// Bytes of one, at most.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How it is reached.
#[derive(Clone, Debug)]
pub(super) struct NativeConfig {
    /// `hdfs://HOST:PORT` or `hdfs://SERVICE`.
    pub(super) url: String,
    /// `None`: the library looks for it in the environment.
    pub(super) user: Option<String>,
    /// The directory of `core-site.xml` and `hdfs-site.xml`.
    pub(super) conf_dir: Option<PathBuf>,
    pub(super) silence: Duration,
    pub(super) patience: Duration,
    /// Ranges that are read at a time: each has a connection.
    pub(super) ranges_max: usize,
}

/// A cluster.
pub(super) struct Native {
    config: NativeConfig,
    client: Mutex<Kept>,
    places: Semaphore,
}

/// The library's client, until a namenode is silent.
#[derive(Default)]
struct Kept {
    client: Option<Client>,
    /// How many were let go of.
    silences: usize,
}

/// A client, and how many there were before it.
type Numbered = (Client, usize);

impl Native {
    pub(super) fn new(config: NativeConfig) -> Self {
        let places = Semaphore::new(config.ranges_max.clamp(1, Semaphore::MAX_PERMITS));
        Self { config, client: Mutex::default(), places }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The library's client; another one after a silence, which asks the next namenode of the service first.
    fn client(&self) -> Result<Numbered, Failed> {
        check_fork()?;
        let mut kept = self.kept();
        let silences = kept.silences;
        if let Some(client) = &kept.client {
            return Ok((client.clone(), silences));
        }
        let millis = |time: Duration| time.as_millis().to_string();
        // Tries are ours; those of the library are for the other namenode of two.
        let config = [
            ("dfs.client.socket-timeout", millis(self.config.silence)),
            ("dfs.client.failover.max.attempts", "3".to_owned()),
            ("dfs.client.failover.sleep.base.millis", "50".to_owned()),
            ("dfs.client.failover.sleep.max.millis", "500".to_owned()),
        ];
        let folder = self.config.conf_dir.as_ref().map_or(NOWHERE.into(), |folder| folder.to_string_lossy());
        let config = config.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(self.order(silences));
        let builder = ClientBuilder::new().with_url(&self.config.url).with_config(config).with_config_dir(folder);
        let builder = builder.with_io_runtime(tokio::runtime::Handle::current());
        let builder = self.config.user.iter().fold(builder, |builder, user| builder.with_user(user));
        let client = builder.build()?;
        kept.client = Some(client.clone());
        Ok((client, silences))
    }

    /// The names of a service's namenodes, turned by as many places as there were silences: the library stays with the first one for as
    /// long as it says nothing at all.
    fn order(&self, silences: usize) -> Option<(String, String)> {
        let (service, folder) = (self.config.url.strip_prefix("hdfs://")?, self.config.conf_dir.as_ref()?);
        let name = format!("dfs.ha.namenodes.{service}");
        let said = FILES.iter().rev().find_map(|file| setting(&folder.join(file), &name)).filter(|_| silences > 0)?;
        let mut namenodes: Vec<&str> = said.split(',').map(str::trim).collect();
        let by = silences.checked_rem(namenodes.len())?;
        namenodes.rotate_left(by);
        Some((name, namenodes.join(",")))
    }

    /// Asks once, and waits no longer than a namenode may be silent.
    async fn ask<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T, Failed>
    where
        F: Future<Output = hdfs_native::Result<T>>,
    {
        let (client, silences) = self.client()?;
        self.answer(silences, ask(client)).await
    }

    /// What a client's namenode answers.
    async fn answer<T>(
        &self,
        silences: usize,
        work: impl Future<Output = hdfs_native::Result<T>>,
    ) -> Result<T, Failed> {
        let told = within(self.config.silence, work).await;
        if told.is_none() {
            // The connection of a client that waits in vain is not used again; a newer one is.
            let mut kept = self.kept();
            if kept.silences == silences {
                *kept = Kept { client: None, silences: silences + 1 };
            }
        }
        told.unwrap_or_else(|| Err(silent(self.config.silence)))
    }
}

/// `None` after the limit.
async fn within<T>(limit: Duration, work: impl Future<Output = hdfs_native::Result<T>>) -> Option<Result<T, Failed>> {
    Some(timeout(limit, work).await.ok()?.map_err(Failed::from))
}

fn silent(limit: Duration) -> Failed {
    Failed::passing(ErrorKind::DeadlineExceeded, format!("no answer for {} s", limit.as_secs_f32()))
}

/// A setting of a file of Hadoop's configuration.
fn setting(file: &Path, name: &str) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    let document = roxmltree::Document::parse(&text).ok()?;
    let word = |property: roxmltree::Node<'_, '_>, tag: &str| {
        let element = property.children().find(|child| child.has_tag_name(tag))?;
        Some(element.text()?.trim().to_owned())
    };
    let mut properties = document.root_element().children().filter(|element| element.has_tag_name("property"));
    let property = properties.find(|property| word(*property, "name").as_deref() == Some(name))?;
    word(property, "value")
}

fn meta(status: &FileStatus) -> Meta {
    let kind = if status.isdir { EntryKind::Directory } else { EntryKind::Object };
    let len = if status.isdir { 0 } else { status.length as u64 };
    Meta { kind, len, modified_ms: status.modification_time, id: 0 }
}

impl Native {
    async fn list_once(&self, path: &str) -> Result<Vec<(String, Meta)>, Failed> {
        let (client, silences) = self.client()?;
        let (entries, mut found) = (client.list_status_iter(path, false), Vec::new());
        while let Some(entry) = self.answer(silences, async { entries.next().await.transpose() }).await? {
            if found.len() == ENTRIES_MAX {
                let text = "the directory has more names than are read";
                return Err(Failed::new(ErrorKind::TooLarge, text, "list a directory below it"));
            }
            let name = entry.path.strip_prefix(path.trim_end_matches('/')).unwrap_or_default();
            found.push((name.trim_start_matches('/').to_owned(), meta(&entry)));
        }
        Ok(found)
    }
}

impl Files for Native {
    fn transport(&self) -> TransportName {
        super::HDFS
    }

    fn stat<'a>(&'a self, path: &'a str) -> Asked<'a, Meta> {
        async move { Ok(meta(&self.ask(|client| async move { client.get_file_info(path).await }).await?)) }.boxed()
    }

    fn list<'a>(&'a self, path: &'a str) -> Asked<'a, Vec<(String, Meta)>> {
        // The library begins a listing at its first name only.
        persist(self.config.patience, || self.list_once(path)).boxed()
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> Asked<'a, ()> {
        self.ask(move |client| async move { client.rename(from, to, true).await }).boxed()
    }

    fn remove<'a>(&'a self, path: &'a str) -> Asked<'a, bool> {
        self.ask(move |client| async move { client.delete(path, false).await }).boxed()
    }

    fn fence<'a>(&'a self, path: &'a str) -> Asked<'a, ()> {
        async move { self.ask(|client| async move { client.recover_lease(path).await }).await.map(drop) }.boxed()
    }

    fn bytes(self: Arc<Self>, path: String, meta: Meta) -> Arc<dyn Ranges> {
        Arc::new(NativeRanges { files: self, path, meta, reader: tokio::sync::Mutex::default() })
    }

    fn make(self: Arc<Self>, path: String) -> Asked<'static, Box<dyn Growing>> {
        async move {
            let options = WriteOptions::default().overwrite(false).create_parent(true);
            let (at, options) = (path.as_str(), &options);
            let writer = self.ask(|client| async move { client.create(at, options).await }).await?;
            let made = NativeFile { files: self, path, writer: Some(writer), sent: 0, syncs: Syncs::Yes };
            Ok(Box::new(made) as Box<dyn Growing>)
        }
        .boxed()
    }
}

/// A file, and where its blocks are.
struct NativeRanges {
    files: Arc<Native>,
    path: String,
    meta: Meta,
    reader: tokio::sync::Mutex<Option<Arc<FileReader>>>,
}

impl NativeRanges {
    /// A reader of the version that is to be read: what the namenode says after its blocks were told is what it said before.
    async fn reader(&self) -> Result<Arc<FileReader>, Failed> {
        let mut kept = self.reader.lock().await;
        if let Some(reader) = &*kept {
            return Ok(reader.clone());
        }
        let reader = self.files.ask(|client| async move { client.read(&self.path).await }).await?;
        let is_same = self.files.stat(&self.path).await? == self.meta;
        if !is_same {
            return Err(Failed::changed());
        }
        // The library reads no block that is not finished.
        if (reader.file_length() as u64) < self.meta.len {
            let text = "the file's last block is still being written";
            return Err(Failed::new(
                ErrorKind::InUse,
                text,
                "wait until its writer has closed it, or read it by webhdfs://",
            ));
        }
        Ok(kept.insert(Arc::new(reader)).clone())
    }

    /// Lets go of a reader that has failed: the library asks none of its datanodes again.
    async fn spoil(&self, reader: &Arc<FileReader>) {
        let mut kept = self.reader.lock().await;
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, reader)) {
            *kept = None;
        }
    }

    async fn land(&self, reader: &FileReader, range: Range<u64>, landing: &mut Landing) -> Result<(), Failed> {
        let (from, len) = (sw_mem::index(range.start), sw_mem::index(range.end - range.start));
        let mut pieces = pin!(reader.read_range_stream(from, len));
        // The library leaves a silent datanode for the next one; this is the limit of all of that.
        let limit = (self.files.config.silence * PIECE_SILENCES).min(self.files.config.patience);
        while let Ok(piece) = timeout(limit, pieces.next()).await {
            let Some(piece) = piece.transpose()? else { return Ok(()) };
            landing.put(&piece).map_err(|TooMany| {
                Failed::new(ErrorKind::Protocol, "datanodes sent more bytes than were asked for", "look at the cluster")
            })?;
        }
        Err(Failed::passing(ErrorKind::DeadlineExceeded, "no datanode that has the block sent anything"))
    }
}

impl Ranges for NativeRanges {
    fn ready(&self) -> Asked<'_, ()> {
        async move { self.reader().await.map(drop) }.boxed()
    }

    fn read<'a>(&'a self, range: Range<u64>, landing: &'a mut Landing) -> Asked<'a, ()> {
        async move {
            // Nobody closes it, and whoever has a place has limits of its own.
            let _place = self.files.places.acquire().await;
            let reader = self.reader().await?;
            let landed = self.land(&reader, range, landing).await;
            if landed.is_err() {
                self.spoil(&reader).await;
            }
            landed
        }
        .boxed()
    }
}

/// Whether datanodes say that they have what was written so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Syncs {
    Yes,
    /// A file with erasure coding: they do when it is closed.
    No,
}

/// A file that is written.
struct NativeFile {
    files: Arc<Native>,
    path: String,
    /// None after a failure, until it is taken up again.
    writer: Option<FileWriter>,
    /// Bytes that datanodes have.
    sent: u64,
    syncs: Syncs,
}

impl NativeFile {
    fn limit(&self, len: u64) -> Duration {
        self.files.config.silence * 2 + Duration::from_secs(len / RATE_MIN)
    }

    /// Writes bytes, and waits until the datanodes have them.
    async fn put(&mut self, bytes: Bytes) -> Result<(), Failed> {
        let (limit, syncs) = (self.limit(bytes.len() as u64), self.syncs);
        let Some(writer) = &mut self.writer else {
            return Err(Failed::passing(ErrorKind::Io, "its last writer was lost"));
        };
        let work = async {
            writer.write_bytes(bytes).await?;
            match syncs {
                Syncs::Yes => match writer.hsync().await {
                    Err(HdfsError::OperationFailed(text)) if text.contains("erasure-coded") => Ok(Syncs::No),
                    done => done.map(|()| Syncs::Yes),
                },
                Syncs::No => Ok(Syncs::No),
            }
        };
        self.syncs = within(limit, work).await.unwrap_or_else(|| Err(silent(limit)))?;
        Ok(())
    }

    /// Takes the file up where it ends, after a failure; `until` is where it may end at most.
    async fn resume(&mut self, until: u64) -> Result<(), Failed> {
        self.writer = None;
        let (files, path) = (self.files.clone(), self.path.as_str());
        let mut tries = Tries::new(files.config.patience);
        // The writer that is lost, ourselves, is shut out, and its last block gets its length.
        while !files.ask(|client| async move { client.recover_lease(path).await }).await? {
            sleep(RECOVERY_WAIT).await;
            tries.again(Failed::passing(ErrorKind::InUse, "the file is not yet closed for its lost writer")).await?;
        }
        let len = files.stat(path).await?.len;
        if !(self.sent..=until).contains(&len) {
            let text = format!("the file has {len} bytes, where {} to {until} were written", self.sent);
            return Err(Failed::new(ErrorKind::ShortData, text, "look at the cluster; write it again"));
        }
        self.sent = len;
        if len < until {
            let writer = files.ask(|client| async move { client.append(path).await }).await;
            self.writer = Some(writer?);
        }
        Ok(())
    }

    async fn grow(&mut self, bytes: Bytes) -> Result<(), Failed> {
        let (begin, until) = (self.sent, self.sent + bytes.len() as u64);
        let mut tries = Tries::new(self.files.config.patience);
        loop {
            let rest = bytes.slice(sw_mem::index(self.sent - begin)..);
            let Err(failed) = self.put(rest).await else {
                self.sent = until;
                return Ok(());
            };
            // Without an answer of the datanodes nobody knows from where on.
            if self.syncs == Syncs::No {
                return Err(failed.for_good());
            }
            tries.again(failed).await?;
            let before = self.sent;
            if let Err(failed) = self.resume(until).await {
                tries.again(failed).await?;
            }
            if self.sent == until {
                return Ok(());
            }
            if self.sent > before {
                tries.moved();
            }
        }
    }

    async fn end(&mut self) -> Result<(), Failed> {
        let (limit, mut tries) = (self.limit(0), Tries::new(self.files.config.patience));
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let closed = within(limit, writer.close()).await.unwrap_or_else(|| Err(silent(limit)));
        let Err(mut failed) = closed else { return Ok(()) };
        while self.syncs == Syncs::Yes {
            tries.again(failed).await?;
            match self.resume(self.sent).await {
                Ok(()) => return Ok(()),
                Err(next) => failed = next,
            }
        }
        Err(failed)
    }
}

impl Growing for NativeFile {
    fn append(&mut self, bytes: Bytes) -> Asked<'_, ()> {
        self.grow(bytes).boxed()
    }

    fn close(&mut self) -> Asked<'_, ()> {
        self.end().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_namenode_is_asked_after_the_others() {
        let folder = std::env::temp_dir();
        let folder = sw_testkit::scratch::Scratch::new(folder.to_str().unwrap(), "sw-remote-hdfs");
        let text = "<configuration>\n<!-- two --><property>\n <name> dfs.ha.namenodes.cluster </name>\n <value>a, b</value>\n</property></configuration>";
        std::fs::write(folder.path("hdfs-site.xml"), text).unwrap();
        let config = |url: &str| NativeConfig {
            url: url.to_owned(),
            user: None,
            conf_dir: Some(folder.root().to_owned()),
            silence: Duration::from_secs(1),
            patience: Duration::from_secs(1),
            ranges_max: 1,
        };
        let native = Native::new(config("hdfs://cluster"));
        let order = |silences| native.order(silences).map(|(_, order)| order);
        assert_eq!([0, 1, 2, 3].map(order), [None, Some("b,a".into()), Some("a,b".into()), Some("b,a".into())]);
        assert_eq!(Native::new(config("hdfs://other")).order(1), None);
        assert_eq!(Native::new(config("hdfs://host:8020")).order(1), None);
    }
}
