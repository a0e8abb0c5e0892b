//! Listings, call by call (RFC 1813 §3.3.17 "Procedure 17: READDIRPLUS").

use nfs3_types::nfs3::{NFS_PROGRAM, READDIRPLUS3args, cookieverf3, ftype3, nfs_fh3};
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

fn page(mut reply: Reply) -> Result<Page, Garbled> {
    reply.facts_if_any()?;
    let (verifier, mut names) = (reply.bytes::<8>()?, Vec::new());
    while reply.flag()? {
        reply.u64()?;
        let name = reply.opaque(NAME_MAX)?.to_vec();
        let cookie = reply.u64()?;
        let facts = reply.facts_if_any()?;
        reply.handle_if_any()?;
        names.push(Named { name, cookie, facts });
    }
    Ok((names, reply.flag()?, verifier))
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

    async fn names(&self, at: &At<'_>, dir: &Found) -> Result<Vec<Named>, Error> {
        let (mut all, mut cookie, mut verifier) = (Vec::<Named>::new(), 0, [0; 8]);
        loop {
            let asked = READDIRPLUS3args {
                dir: dir.handle.clone(),
                cookie,
                cookieverf: cookieverf3(verifier),
                dircount: dir.root.list_bytes,
                maxcount: dir.root.list_bytes,
            };
            // Each page has the patience of its own.
            let at = At { until: self.until(), ..*at };
            let reply = self.call(&at, NFS_PROGRAM::NFSPROC3_READDIRPLUS, &asked).await?.good(&at)?;
            let (names, is_last, now) = page(reply).map_err(|garbled| at.garbled(garbled))?;
            let last = names.last().map(|name| name.cookie);
            all.extend(names);
            if is_last {
                return Ok(all);
            }
            if last.is_none_or(|last| last == cookie) {
                let text = "a page of the listing leads to itself";
                return Err(at.fail(ErrorKind::Protocol).detail(text).remedy("look at the server"));
            }
            if all.len() > NAMES_MAX {
                let text = format!("the directory has more than {NAMES_MAX} names");
                return Err(at.fail(ErrorKind::TooLarge).detail(text).remedy("spread them over several"));
            }
            (cookie, verifier) = (last.unwrap_or(cookie), now);
        }
    }

    async fn entries(&self, at: &At<'_>, dir: &Found, below: &str, names: Vec<Named>) -> Result<Vec<Entry>, Error> {
        let (mut entries, mut left_out) = (Vec::with_capacity(names.len()), 0u64);
        for Named { name, facts, .. } in names {
            let Ok(name) = String::from_utf8(name) else {
                left_out += 1;
                continue;
            };
            if matches!(name.as_str(), "." | "..") {
                continue;
            }
            if name.is_empty() || name.contains(['/', '\0']) {
                left_out += 1;
                continue;
            }
            let full = format!("{}/{name}", below.trim_end_matches('/'));
            if let Some(entry) =
                self.entry_of(&At { until: self.until(), ..*at }, &dir.handle, (&name, full), facts).await?
            {
                entries.push(entry);
            }
        }
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
            // Where it leads nowhere, or out of what is exported, it is a name still.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::WrongKind) =>
            {
                Ok(Some(Entry { name: full, kind: EntryKind::Other, len: 0, version: Version::default() }))
            }
            Err(error) => Err(error),
        }
    }
}
