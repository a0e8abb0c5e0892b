//! Exports, and the way from their root to a file.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use nfs3_types::{
    mount::{self, MNTPATHLEN, MOUNT_PROGRAM, dirpath},
    nfs3::{FSINFO3args, GETATTR3args, LOOKUP3args, NFS_PROGRAM, READLINK3args, diropargs3, ftype3, nfs_fh3},
    xdr_codec::{Opaque, Pack, Void},
};
use sw_engine::{Error, ErrorKind};

use super::{
    fault, impossible,
    message::{Message, Procedure},
    reply::{Facts, Garbled, Reply},
    server::{Answer, At, Server, Service},
};

/// Exports of a server, at most.
const EXPORTS_MAX: usize = 4096;
/// Groups that may mount one, at most.
const GROUPS_MAX: usize = 4096;
/// Links on the way to a file, at most; as kernels do.
const LINKS_MAX: usize = 40;
/// Least and most bytes of one call, whatever a server says that it takes.
const CALL_BYTES: (u32, u32) = (512, 1 << 20);

/// What is known of the exports of a server.
#[derive(Default)]
pub(super) struct Exports {
    names: Vec<String>,
    roots: HashMap<String, Arc<Root>>,
}

/// The root of an export.
pub(super) struct Root {
    /// Its path at the server.
    export: String,
    handle: nfs_fh3,
    /// Bytes of a READ, a WRITE and a READDIRPLUS.
    pub(super) read_bytes: u32,
    pub(super) write_bytes: u32,
    pub(super) list_bytes: u32,
}

/// A file that was found.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) root: Arc<Root>,
    pub(super) handle: nfs_fh3,
    pub(super) facts: Facts,
}

/// What is behind an export in a path, if it lies in it.
fn below<'a>(export: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(export.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// The names in a path, without empty ones.
fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}

fn status_of(reply: &mut Reply, at: &At<'_>) -> Result<u32, Error> {
    reply.u32().map_err(|garbled| at.garbled(garbled))
}

impl Server {
    async fn mount(&self, at: &At<'_>, number: MOUNT_PROGRAM, args: &(impl Pack + Sync)) -> Result<Answer, Error> {
        let procedure = Procedure { program: mount::PROGRAM, version: mount::VERSION, number: number as u32 };
        self.ask(at, Service::Mount, Message::new(&self.credential, procedure, args)).await
    }

    async fn export_names(&self, at: &At<'_>) -> Result<Vec<String>, Error> {
        if let Some(named) = &self.config.export {
            return Ok(vec![named.clone()]);
        }
        let mut reply = self.mount(at, MOUNT_PROGRAM::MOUNTPROC3_EXPORT, &Void).await?.reply;
        names(&mut reply).map_err(|garbled| at.garbled(garbled))
    }

    /// The root of the export that a path lies in: of several the longest.
    async fn root(&self, at: &At<'_>, path: &str) -> Result<Arc<Root>, Error> {
        let mut exports = self.exports.lock().await;
        let longest = |names: &[String]| {
            let fitting = names.iter().filter(|name| below(name, path).is_some());
            fitting.max_by_key(|name| name.len()).cloned()
        };
        let mut export = longest(&exports.names);
        if export.is_none() {
            exports.names = self.export_names(at).await?;
            export = longest(&exports.names);
        }
        let Some(export) = export else {
            let names = exports.names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            let text = if names.is_empty() {
                "the server exports nothing".to_owned()
            } else {
                format!("no export has it; there are {names}")
            };
            return Err(at.fail(ErrorKind::NotFound).detail(text).remedy(
                "write nfs://HOST/EXPORT/PATH with the export's whole path; nfs_export names one that the server does not list",
            ));
        };
        if let Some(root) = exports.roots.get(&export) {
            return Ok(root.clone());
        }
        let root = Arc::new(self.make_root(at, &export).await?);
        exports.roots.insert(export, root.clone());
        Ok(root)
    }

    async fn make_root(&self, at: &At<'_>, export: &str) -> Result<Root, Error> {
        let path = dirpath(Opaque::borrowed(export.as_bytes()));
        let mut reply = self.mount(at, MOUNT_PROGRAM::MOUNTPROC3_MNT, &path).await?.reply;
        match status_of(&mut reply, at)? {
            0 => {}
            status => {
                let (error, text) = (at.said(status), format!("the export {export} is refused (MNT3ERR {status})"));
                return Err(if status == fault::NOENT {
                    error.detail(text).remedy("look at the server's exports")
                } else {
                    error.detail(text)
                });
            }
        }
        let handle = reply.handle().map_err(|garbled| at.garbled(garbled))?;
        let asked = FSINFO3args { fsroot: handle.clone() };
        let reply = self.call(at, NFS_PROGRAM::NFSPROC3_FSINFO, &asked).await?.good(at)?;
        let (read, write, list) = sizes(reply).map_err(|garbled| at.garbled(garbled))?;
        let bounded = |bytes: u32| bytes.clamp(CALL_BYTES.0, CALL_BYTES.1);
        let (read_bytes, write_bytes) = (bounded(read), bounded(write));
        Ok(Root { export: export.to_owned(), handle, read_bytes, write_bytes, list_bytes: bounded(list).max(8192) })
    }

    pub(super) async fn facts(&self, at: &At<'_>, handle: &nfs_fh3) -> Result<Facts, Error> {
        let asked = GETATTR3args { object: handle.clone() };
        let mut reply = self.call(at, NFS_PROGRAM::NFSPROC3_GETATTR, &asked).await?.good(at)?;
        reply.facts().map_err(|garbled| at.garbled(garbled))
    }

    /// A name in a directory; a link as it is.
    pub(super) async fn look_up(&self, at: &At<'_>, dir: &nfs_fh3, name: &str) -> Result<(nfs_fh3, Facts), Error> {
        let what = diropargs3 { dir: dir.clone(), name: name.as_bytes().into() };
        let mut reply = self.call(at, NFS_PROGRAM::NFSPROC3_LOOKUP, &LOOKUP3args { what }).await?.good(at)?;
        let told = reply.handle().and_then(|handle| Ok((handle, reply.facts_if_any()?)));
        let (handle, facts) = told.map_err(|garbled| at.garbled(garbled))?;
        let facts = match facts {
            Some(facts) => facts,
            None => self.facts(at, &handle).await?,
        };
        Ok((handle, facts))
    }

    async fn link(&self, at: &At<'_>, handle: &nfs_fh3) -> Result<String, Error> {
        let asked = READLINK3args { symlink: handle.clone() };
        let mut reply = self.call(at, NFS_PROGRAM::NFSPROC3_READLINK, &asked).await?.good(at)?;
        let told = reply.facts_if_any().and_then(|_| reply.opaque(MNTPATHLEN * 4));
        let told = told.map_err(|garbled| at.garbled(garbled))?;
        let target = String::from_utf8(told.to_vec());
        target.ok().filter(|target| impossible(target).is_none()).ok_or_else(|| {
            at.fail(ErrorKind::BadUri)
                .detail("a link on the way to it leads to a name that is not UTF-8, or that none has")
        })
    }

    /// The file at a path, by way of all links.
    pub(super) async fn find(&self, at: &At<'_>, path: &str) -> Result<Found, Error> {
        let found = self.walk(at, path).await;
        if found.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Changed) {
            return found;
        }
        // The server came back with other handles; a root is asked for anew, once.
        self.exports.lock().await.roots.clear();
        self.walk(at, path).await
    }

    async fn walk(&self, at: &At<'_>, path: &str) -> Result<Found, Error> {
        if path.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(at.fail(ErrorKind::BadUri).detail("a path has no . or ..").remedy("write it without"));
        }
        if let Some(text) = impossible(path) {
            return Err(at.fail(ErrorKind::BadUri).detail(text).remedy("write the name without it"));
        }
        let root = self.root(at, path).await?;
        let first = (root.handle.clone(), self.facts(at, &root.handle).await?);
        let mut trail = vec![first.clone()];
        let rest = below(&root.export, path).unwrap_or_default();
        let (mut left, mut links): (VecDeque<String>, _) = (parts(rest).map(str::to_owned).collect(), 0);
        while let Some(part) = left.pop_front() {
            if part == ".." {
                trail.pop();
                if trail.is_empty() {
                    return Err(leads_out(at));
                }
                continue;
            }
            let here = trail.last().unwrap_or(&first).0.clone();
            let (handle, facts) = self.look_up(at, &here, &part).await?;
            if facts.kind != ftype3::NF3LNK {
                trail.push((handle, facts));
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(at.fail(ErrorKind::NotFound).detail("links on the way to it lead in a circle"));
            }
            let target = self.link(at, &handle).await?;
            if target.starts_with('/') {
                let inside = below(&root.export, &target).ok_or_else(|| leads_out(at))?;
                trail.truncate(1);
                parts(inside).rev().for_each(|part| left.push_front(part.to_owned()));
            } else {
                parts(&target).rev().for_each(|part| left.push_front(part.to_owned()));
            }
        }
        let (handle, facts) = trail.pop().unwrap_or(first);
        Ok(Found { root, handle, facts })
    }
}

fn leads_out(at: &At<'_>) -> Error {
    at.fail(ErrorKind::Unsupported)
        .detail("a link on the way to it leads out of the export")
        .remedy("name what it leads to")
}

/// The answer to EXPORT (RFC 1813 §5.2.5).
fn names(reply: &mut Reply) -> Result<Vec<String>, Garbled> {
    let mut names = Vec::new();
    while reply.flag()? {
        let name = reply.opaque(MNTPATHLEN)?;
        let mut groups = 0;
        while reply.flag()? {
            reply.opaque(MNTPATHLEN)?;
            groups += 1;
            if groups > GROUPS_MAX {
                return Err(Garbled);
            }
        }
        if names.len() == EXPORTS_MAX {
            return Err(Garbled);
        }
        // Paths that are not UTF-8 cannot be named.
        names.extend(String::from_utf8(name.to_vec()).ok().filter(|name| name.starts_with('/')));
    }
    Ok(names)
}

/// What FSINFO tells (RFC 1813 §3.3.19): the most of a READ and a WRITE, and what a READDIR is best asked for.
fn sizes(mut reply: Reply) -> Result<(u32, u32, u32), Garbled> {
    reply.facts_if_any()?;
    let (read, _, _) = (reply.u32()?, reply.u32()?, reply.u32()?);
    let (write, _, _) = (reply.u32()?, reply.u32()?, reply.u32()?);
    Ok((read, write, reply.u32()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_in_an_export_by_whole_names() {
        assert_eq!(below("/a", "/a/b"), Some("/b"));
        assert_eq!(below("/a/", "/a"), Some(""));
        assert_eq!(below("/", "/a/b"), Some("/a/b"));
        assert_eq!(below("/a", "/ab"), None);
        assert_eq!(parts("//a/./b/").collect::<Vec<_>>(), ["a", "b"]);
    }
}
