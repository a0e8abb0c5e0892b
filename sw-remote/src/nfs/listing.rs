//! Listings, call by call (RFC 1813 §3.3.17 "Procedure 17: READDIRPLUS"; of a server that has it not §3.3.16 "Procedure 16: READDIR").

use futures_util::{StreamExt, TryStreamExt, stream};
use nfs3_types::nfs3::{NFS_PROGRAM, READDIR3args, READDIRPLUS3args, cookieverf3, ftype3, nfs_fh3};
use sw_engine::{
    Error, ErrorKind, Version,
    seam::{Entry, EntryKind},
};

use super::{
    fault,
    mounts::Found,
    reply::{Facts, Garbled, Reply},
    server::{At, Server},
};

/// Names of one directory, at most.
const NAMES_MAX: usize = 10_000_000;
/// Bytes of them, at most, and of what stands beside each.
const NAMES_BYTES_MAX: usize = 1 << 30;
const NAME_BYTES: usize = 128;
/// Names of a page that are looked up at a time.
const LOOK_UPS: usize = 32;
const NOTSUPP: u32 = 10004;
/// Longest name that a server may tell.
const NAME_MAX: usize = 4096;
/// How often a listing begins anew, as the directory changes.
const AGAIN_MAX: u32 = 3;

/// A name in a directory.
struct Named {
    name: Vec<u8>,
    cookie: u64,
    facts: Option<Facts>,
}

/// A page: its names, whether it is the last, and the verifier of the cookies.
type Page = (Vec<Named>, bool, [u8; 8]);

pub(super) fn kind(facts: &Facts) -> EntryKind {
    match facts.kind {
        ftype3::NF3REG => EntryKind::Object,
        ftype3::NF3DIR => EntryKind::Directory,
        ftype3::NF3BLK => EntryKind::BlockDevice,
        _ => EntryKind::Other,
    }
}

pub(super) fn entry(name: String, facts: &Facts) -> Entry {
    let kind = kind(facts);
    Entry { name, kind, len: if kind == EntryKind::Object { facts.len } else { 0 }, version: facts.version() }
}

/// By what a directory is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Names, and what they are.
    Plus,
    /// Names alone.
    Names,
}

fn page(mut reply: Reply, by: By) -> Result<Page, Garbled> {
    reply.facts_if_any()?;
    let (verifier, mut names) = (reply.bytes::<8>()?, Vec::new());
    while reply.flag()? {
        reply.u64()?;
        let name = reply.opaque(NAME_MAX)?.to_vec();
        let cookie = reply.u64()?;
        let facts = if by == By::Plus {
            let facts = reply.facts_if_any()?;
            reply.handle_if_any()?;
            facts
        } else {
            None
        };
        names.push(Named { name, cookie, facts });
    }
    Ok((names, reply.flag()?, verifier))
}

/// Tells a way through pages that leads in a circle: one that was met before is kept, of more and more pages (R. P. Brent, "An improved
/// Monte Carlo factorization algorithm", 1980, §2).
#[derive(Default)]
struct Circle {
    kept: Option<u64>,
    pages: u64,
}

impl Circle {
    fn is_closed_by(&mut self, cookie: u64) -> bool {
        let is_met = self.kept == Some(cookie);
        self.pages += 1;
        if self.pages.is_power_of_two() {
            self.kept = Some(cookie);
        }
        is_met
    }
}

impl Server {
    /// The entries of a directory, whose address is `below`.
    pub(super) async fn list(&self, at: &At<'_>, dir: &Found, below: &str) -> Result<Vec<Entry>, Error> {
        let mut again = 0;
        loop {
            match self.names(at, dir).await {
                Err(error) if error.code() == i32::try_from(fault::BAD_COOKIE).unwrap_or(0) && again < AGAIN_MAX => {
                    again += 1
                }
                names => return self.entries(at, dir, below, names?).await,
            }
        }
    }

    /// One page, behind a cookie; by names alone if the server does not say more.
    async fn page(
        &self,
        at: &At<'_>,
        dir: &Found,
        (cookie, verifier): (u64, [u8; 8]),
        by: &mut By,
    ) -> Result<Page, Error> {
        if *by == By::Plus {
            let asked = READDIRPLUS3args {
                dir: dir.handle.clone(),
                cookie,
                cookieverf: cookieverf3(verifier),
                dircount: dir.root.list_bytes,
                maxcount: dir.root.list_bytes,
            };
            let answer = self.call(at, NFS_PROGRAM::NFSPROC3_READDIRPLUS, &asked).await?;
            if answer.status != NOTSUPP || cookie != 0 {
                return page(answer.good(at)?, *by).map_err(|garbled| at.garbled(garbled));
            }
            *by = By::Names;
        }
        let count = dir.root.list_bytes;
        let asked = READDIR3args { dir: dir.handle.clone(), cookie, cookieverf: cookieverf3(verifier), count };
        let reply = self.call(at, NFS_PROGRAM::NFSPROC3_READDIR, &asked).await?.good(at)?;
        page(reply, *by).map_err(|garbled| at.garbled(garbled))
    }

    async fn names(&self, at: &At<'_>, dir: &Found) -> Result<Vec<Named>, Error> {
        let (mut all, mut bytes, mut by) = (Vec::<Named>::new(), 0, By::Plus);
        let (mut cookie, mut verifier, mut circle) = (0, [0; 8], Circle::default());
        loop {
            // Each page has the patience of its own.
            let at = At { until: self.until(), ..*at };
            let (names, is_last, now) = self.page(&at, dir, (cookie, verifier), &mut by).await?;
            let last = names.last().map(|name| name.cookie);
            bytes += names.iter().map(|name| name.name.len() + NAME_BYTES).sum::<usize>();
            all.extend(names);
            if is_last {
                return Ok(all);
            }
            let Some(next) = last.filter(|last| *last != cookie && !circle.is_closed_by(*last)) else {
                let text = "a page of the listing leads to one before it";
                return Err(at.fail(ErrorKind::Protocol).detail(text).remedy("look at the server"));
            };
            if all.len() > NAMES_MAX || bytes > NAMES_BYTES_MAX {
                let text = format!("the directory has more than {NAMES_MAX} names, or {NAMES_BYTES_MAX} bytes of them");
                return Err(at.fail(ErrorKind::TooLarge).detail(text).remedy("spread them over several"));
            }
            (cookie, verifier) = (next, now);
        }
    }

    async fn entries(&self, at: &At<'_>, dir: &Found, below: &str, names: Vec<Named>) -> Result<Vec<Entry>, Error> {
        let (mut left_out, mut possible) = (0u64, Vec::with_capacity(names.len()));
        for Named { name, facts, .. } in names {
            match String::from_utf8(name) {
                Ok(name) if matches!(name.as_str(), "." | "..") => {}
                Ok(name) if !name.is_empty() && !name.contains(['/', '\0']) => possible.push((name, facts)),
                _ => left_out += 1,
            }
        }
        let look = |(name, facts): (String, Option<Facts>)| async move {
            let full = format!("{}/{name}", below.trim_end_matches('/'));
            self.entry_of(&At { until: self.until(), ..*at }, &dir.handle, (&name, full), facts).await
        };
        // What its page told is an entry at once; a link, or a name of which nothing is told, is asked for, several at a time.
        let entries = stream::iter(possible).map(look).buffered(LOOK_UPS);
        let mut entries: Vec<Entry> =
            entries.try_filter_map(|entry| futures_util::future::ready(Ok(entry))).try_collect().await?;
        if left_out > 0 {
            tracing::warn!(
                left_out,
                directory = at.name,
                "names that are no text, or that cannot be, are left out of a listing"
            );
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        // A directory that changes meanwhile may tell a name twice.
        entries.dedup_by(|a, b| a.name == b.name);
        Ok(entries)
    }

    /// One, of which a link is what it leads to; none if it is gone.
    async fn entry_of(
        &self,
        at: &At<'_>,
        dir: &nfs_fh3,
        (name, full): (&str, String),
        facts: Option<Facts>,
    ) -> Result<Option<Entry>, Error> {
        let facts = match facts {
            Some(facts) => facts,
            None => match self.look_up(at, dir, name).await {
                Ok((_, facts)) => facts,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Changed) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        if facts.kind != ftype3::NF3LNK {
            return Ok(Some(entry(full, &facts)));
        }
        let path = full.split_once("://").and_then(|(_, rest)| rest.find('/').and_then(|slash| rest.get(slash..)));
        match self.find(at, path.unwrap_or_default()).await {
            Ok(found) => Ok(Some(entry(full, &found.facts))),
            // Where it leads nowhere, out of what is exported, or where nobody may look, it is a name still.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound
                        | ErrorKind::Unsupported
                        | ErrorKind::WrongKind
                        | ErrorKind::BadUri
                        | ErrorKind::PermissionDenied
                        | ErrorKind::Changed
                ) =>
            {
                Ok(Some(Entry { name: full, kind: EntryKind::Other, len: 0, version: Version::default() }))
            }
            Err(error) => Err(error),
        }
    }
}
