//! Where the blocks of a volume are read from.

use std::{io, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use sw_engine::{Error, ErrorKind, Landing as Lands, Verb};

use super::format::Place;
use crate::{
    land::Landing,
    objects::{Bucketful, ObjectsConfig},
};

/// Blocks of one volume.
pub(super) enum Blocks {
    /// As objects of a bucket, whose names begin with this.
    Bucket(Box<Bucketful>, String),
    /// As files below a folder, which are waited for so long.
    Folder(PathBuf, Duration),
}

impl Blocks {
    pub(super) fn new(place: Place, name: &str, config: ObjectsConfig) -> Result<Self, Error> {
        Ok(match place {
            Place::Bucket(place, keys) => {
                Self::Bucket(Box::new(Bucketful::new(config, place, keys)?), format!("{name}/"))
            }
            Place::Folder(folder) => Self::Folder(folder, config.http.silence),
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
            Self::Folder(folder, _) => folder.join(key).display().to_string(),
        }
    }

    /// Fills `landing` from byte `offset` of the block `key`, which has `size` bytes.
    ///
    /// # Errors
    /// `NotFound` if there is none; `ShortData` if it has another length.
    pub(super) async fn read(&self, (key, size): (&str, u64), offset: u64, landing: &mut Landing) -> Result<(), Error> {
        match self {
            Self::Bucket(bucket, prefix) => bucket.read((&format!("{prefix}{key}"), size), offset, landing).await,
            Self::Folder(folder, limit) => {
                let path = folder.join(key);
                let name = path.display().to_string();
                let want = sw_mem::index(u64::from(landing.len()));
                // Into memory of its own: a thread that is not waited for any more may still write.
                let read = tokio::task::spawn_blocking(move || read_file(&path, size, offset, want));
                let late = || io::Error::from(io::ErrorKind::TimedOut);
                let read = tokio::time::timeout(*limit, read).await.map_err(|_| late());
                let bytes =
                    read.and_then(|end| end.map_err(io::Error::other)?).map_err(|error| of_file(error, &name))?;
                landing.put(&bytes).map_err(|_| Error::new(ErrorKind::Protocol, Verb::Read).at(name))
            }
        }
    }
}

fn read_file(path: &PathBuf, size: u64, offset: u64, want: usize) -> io::Result<Vec<u8>> {
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
