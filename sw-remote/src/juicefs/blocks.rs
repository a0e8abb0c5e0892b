//! Where the blocks of a volume are read from.

use std::{
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Landing as Lands, Verb};
use tokio::{sync::oneshot, task::JoinHandle};

use super::format::Place;
use crate::{
    land::Landing,
    objects::{Bucketful, ObjectsConfig},
    runtime::Runtime,
};

/// Threads that read the files of one volume's folder. What is below it may never answer: they are nobody else's.
const THREADS: usize = 16;

/// Blocks of one volume.
pub(super) enum Blocks {
    /// As objects of a bucket, whose names begin with this.
    Bucket(Box<Bucketful>, String),
    /// As files below a folder.
    Folder(Folder),
}

/// A folder, and the threads that read in it.
pub(super) struct Folder {
    path: PathBuf,
    threads: Runtime,
    /// Longest that one read takes.
    silence: Duration,
    /// Longest that it waits for a thread before that.
    patience: Duration,
}

/// A call that is not begun if nobody waits for it any more.
struct Wanted<T>(JoinHandle<T>);

impl<T> Drop for Wanted<T> {
    fn drop(&mut self) {
        // One that has begun goes on.
        self.0.abort();
    }
}

impl Blocks {
    pub(super) fn new(place: Place, name: &str, config: ObjectsConfig) -> Result<Self, Error> {
        Ok(match place {
            Place::Bucket(place, keys) => {
                Self::Bucket(Box::new(Bucketful::new(config, place, keys)?), format!("{name}/"))
            }
            Place::Folder(path) => Self::Folder(Folder::new(path, (config.http.silence, config.patience))),
        })
    }

    /// Who puts bytes that are read into their place.
    pub(super) fn lands(&self) -> Lands {
        match self {
            Self::Bucket(bucket, _) => bucket.lands(),
            Self::Folder(..) => Lands::Staged,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Bucket(bucket, _) if bucket.is_tls())
    }

    /// What one is called, for people.
    pub(super) fn name(&self, key: &str) -> String {
        match self {
            Self::Bucket(bucket, prefix) => bucket.address(&format!("{prefix}{key}")),
            Self::Folder(folder) => folder.path.join(key).display().to_string(),
        }
    }

    /// Fills `landing` from byte `offset` of the block `key`, which has `size` bytes.
    ///
    /// # Errors
    /// `NotFound` if there is none; `ShortData` if it has another length.
    pub(super) async fn read(&self, (key, size): (&str, u64), offset: u64, landing: &mut Landing) -> Result<(), Error> {
        match self {
            Self::Bucket(bucket, prefix) => bucket.read((&format!("{prefix}{key}"), size), offset, landing).await,
            Self::Folder(folder) => {
                let path = folder.path.join(key);
                let name = path.display().to_string();
                let want = sw_mem::index(u64::from(landing.len()));
                // Into memory of its own: a thread that is not waited for any more may still write.
                let bytes = folder.call(&name, move || read_file(&path, size, offset, want)).await?;
                landing.put(&bytes).map_err(|_| Error::new(ErrorKind::Protocol, Verb::Read).at(name))
            }
        }
    }
}

impl Folder {
    fn new(path: PathBuf, (silence, patience): (Duration, Duration)) -> Self {
        Self { path, threads: Runtime::for_calls(THREADS), silence, patience }
    }

    /// What a call says that blocks, from when a thread has begun it.
    async fn call<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (begins, begun) = oneshot::channel();
        let told = move || {
            // Nobody waits where it is not received.
            let _wanted = begins.send(());
            work()
        };
        let mut call = Wanted(self.threads.handle()?.spawn_blocking(told));
        let late = |_| of_file(io::ErrorKind::TimedOut.into(), name);
        // It is lost with a call that is given up, whose end tells more.
        let _lost = tokio::time::timeout(self.patience, begun).await.map_err(late)?;
        let end = tokio::time::timeout(self.silence, &mut call.0).await.map_err(late)?;
        end.map_err(io::Error::other).flatten().map_err(|error| of_file(error, name))
    }
}

fn read_file(path: &Path, size: u64, offset: u64, want: usize) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    if file.metadata()?.len() != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; want];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn of_file(error: io::Error, name: &str) -> Error {
    let (kind, remedy) = match error.kind() {
        io::ErrorKind::NotFound => (ErrorKind::NotFound, "look at the folder"),
        io::ErrorKind::PermissionDenied => (ErrorKind::PermissionDenied, "look at the rights of the volume's folder"),
        io::ErrorKind::UnexpectedEof => {
            (ErrorKind::ShortData, "it has another length than was written: look at the volume with `juicefs fsck`")
        }
        io::ErrorKind::TimedOut => {
            (ErrorKind::DeadlineExceeded, "look at the disk or the mount that the volume's folder is on")
        }
        _ => (ErrorKind::Io, "look at the disk or the mount that the volume's folder is on"),
    };
    let code = error.raw_os_error().unwrap_or(0);
    Error::new(kind, Verb::Read).at(name).with_code(code).detail(error.to_string()).remedy(remedy).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_folder_that_does_not_answer_stops_nobody_but_its_readers_and_those_not_for_long() {
        let (go, may_go) = mpsc::channel::<()>();
        let shared = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let folder = Folder::new("/".into(), (Duration::from_millis(500), Duration::from_millis(700)));
        let may_go = std::sync::Arc::new(std::sync::Mutex::new(may_go));
        let stuck = || {
            let may_go = may_go.clone();
            // A lock's holder waits for the end of the test, the others for the lock.
            move || {
                let _gone = may_go.lock().map(|may_go| may_go.recv());
                Ok(())
            }
        };
        shared.block_on(async {
            let calls = futures_util::future::join_all((0..THREADS).map(|_| folder.call("a", stuck()))).await;
            for call in calls {
                assert_eq!(call.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
            }
            // Whoever has other work finds a thread.
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            // One that gets none is told so, and is not begun later.
            let (begun, is_begun) = mpsc::channel();
            let queued = folder.call("b", move || begun.send(()).map_err(io::Error::other)).await;
            assert_eq!(queued.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
            drop(go);
            assert!(is_begun.recv_timeout(Duration::from_secs(20)).is_err(), "it is dropped, not begun");
            // They are there again; its time begins with it, not with the wait before it.
            assert_eq!(folder.call("c", || Ok(7)).await.unwrap(), 7);
        });
    }
}
