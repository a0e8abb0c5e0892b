//! The metadata of a volume, in a Redis.
//!
//! ```text
//!   setting           what the volume is            i{inode}              attributes of a file
//!   d{inode} {name}   what a directory has          c{inode}_{chunk}      slices of a chunk
//!   s{inode}          where a link leads            (JuiceFS 1.4.1 pkg/meta/redis.go)
//! ```
//!
//! Nothing is written, and no session is made: JuiceFS does not see us. What belongs together is asked in one transaction.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisError, RedisResult, aio::MultiplexedConnection,
};
use sw_engine::{Error, ErrorKind, Verb};
use tokio::{sync::Mutex, time::Instant};

use super::{
    attr::{Attr, Kind},
    fault,
    slices::Chunk,
};

/// The directory that all others are in.
pub(super) const ROOT: u64 = 1;
/// Names of one page of a directory, about; attributes that are asked for at a time.
const PAGE: usize = 1000;
/// Names in one directory at most.
const NAMES_MAX: usize = 10_000_000;
/// Links on one way, as the kernel's (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// How long is waited before a server that went away is asked again, at first and at most.
const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_MOST: Duration = Duration::from_secs(2);

/// What is done, and to what: for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) verb: Verb,
    pub(super) name: &'a str,
}

impl Ask<'_> {
    pub(super) fn fail(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.verb).at(self.name)
    }

    fn bad(&self, text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        self.fail(ErrorKind::BadFormat).detail(text).remedy("look at the volume with `juicefs fsck`")
    }

    fn not_found(&self) -> Error {
        self.fail(ErrorKind::NotFound)
            .detail("there is nothing of that name")
            .remedy("look for the name with `straightway ls`")
    }

    fn no_directory(&self) -> Error {
        self.fail(ErrorKind::WrongKind)
            .detail("a part of the path is no directory")
            .remedy("look for the name with `straightway ls`")
    }
}

/// Where a Redis is, and who asks.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: u32,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// Longest silence.
    pub(super) silence: Duration,
    /// Longest that one which was there before is asked again.
    pub(super) patience: Duration,
}

/// A Redis.
pub(super) struct Meta {
    login: Login,
    open: Mutex<Option<MultiplexedConnection>>,
    /// It answered before: if it is away it is waited for.
    was_there: AtomicBool,
}

/// A file that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) inode: u64,
    pub(super) attr: Attr,
}

/// A name in a directory.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) inode: u64,
    pub(super) attr: Attr,
}

/// What a directory has for a name: its kind, and its number (`redisMeta.packEntry`).
fn entry(bytes: &[u8]) -> Option<(Kind, u64)> {
    let (kind, inode) = bytes.split_first()?;
    let inode: [u8; 8] = inode.try_into().ok()?;
    Some((Kind::of(*kind), u64::from_be_bytes(inode)))
}

fn page(directory: &str, cursor: &str) -> redis::Cmd {
    let mut cmd = redis::cmd("HSCAN");
    cmd.arg(directory).arg(cursor).arg("COUNT").arg(PAGE);
    cmd
}

impl Meta {
    pub(super) fn new(login: Login) -> Self {
        Self { login, open: Mutex::default(), was_there: AtomicBool::new(false) }
    }

    async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        let login = &self.login;
        let mut who = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(password) = &login.password {
            who = who.set_password(password);
        }
        if let Some(user) = &login.user {
            who = who.set_username(user);
        }
        let info = ConnectionAddr::Tcp(login.host.clone(), login.port).into_connection_info()?.set_redis_settings(who);
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(login.silence))
            .set_response_timeout(Some(login.silence));
        let mut made = Client::open(info)?.get_multiplexed_async_connection_with_config(&limits).await?;
        // Not by the library, which leaves out why it is refused.
        redis::cmd("SELECT").arg(login.database).exec_async(&mut made).await?;
        Ok(open.insert(made).clone())
    }

    async fn once<T: FromRedisValue>(&self, pipe: &Pipeline) -> RedisResult<T> {
        let mut connection = self.connection().await?;
        let answer = pipe.query_async(&mut connection).await;
        match &answer {
            Err(error) if fault::is_lost(error) => drop(self.open.lock().await.take()),
            Err(_) => {}
            Ok(_) => self.was_there.store(true, Ordering::Relaxed),
        }
        answer
    }

    /// The answer to commands. One that was there before is waited for, one that never was is told at once.
    async fn ask<T: FromRedisValue>(&self, ask: Ask<'_>, pipe: &Pipeline) -> Result<T, Error> {
        let until = Instant::now() + self.login.patience;
        let mut wait = WAIT_FIRST;
        loop {
            // The library's limits are of connections and answers; this one is of both, and of whoever makes the connection.
            let limit = self.login.silence * 2;
            let late = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
            let answer = tokio::time::timeout(limit, self.once(pipe)).await.unwrap_or_else(|_| Err(late()));
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let is_known = self.was_there.load(Ordering::Relaxed);
            if !is_known || !fault::is_passing(&error) || Instant::now() + wait > until {
                return Err(fault::told(error, ask.verb, ask.name));
            }
            tracing::debug!(%error, "a Redis is asked again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MOST);
        }
    }

    /// What the volume says of itself.
    pub(super) async fn setting(&self, ask: Ask<'_>) -> Result<Vec<u8>, Error> {
        let (json,): (Option<Vec<u8>>,) = self.ask(ask, redis::pipe().get("setting")).await?;
        json.ok_or_else(|| {
            ask.fail(ErrorKind::NotFound)
                .detail("no volume of JuiceFS is in this database")
                .remedy("look at the host, the port and the number of the database: `juicefs status redis://HOST:PORT/DATABASE`")
        })
    }

    /// Attributes, and the slices of `count` chunks from `first` on, all of one moment. `None` if the file is gone.
    pub(super) async fn chunks(
        &self,
        ask: Ask<'_>,
        inode: u64,
        (first, count): (u64, u64),
    ) -> Result<Option<(Attr, Vec<Chunk>)>, Error> {
        let mut pipe = redis::pipe();
        pipe.atomic().get(format!("i{inode}"));
        for chunk in first..first + count {
            pipe.lrange(format!("c{inode}_{chunk}"), 0, -1);
        }
        let answers: Vec<redis::Value> = self.ask(ask, &pipe).await?;
        let mut answers = answers.into_iter();
        let wrong = |error: redis::ParsingError| fault::told(error.into(), ask.verb, ask.name);
        let attr = answers.next().map(Option::<Vec<u8>>::from_redis_value).transpose().map_err(wrong)?.flatten();
        let Some(attr) = attr else { return Ok(None) };
        let attr = Attr::of(&attr).ok_or_else(|| ask.bad("its attributes are none"))?;
        let chunk = |records: redis::Value| {
            let records = Vec::<Vec<u8>>::from_redis_value(records).map_err(wrong)?;
            Chunk::of(&records).map_err(|text| ask.bad(text))
        };
        let chunks = answers.map(chunk).collect::<Result<Vec<_>, Error>>()?;
        if chunks.len() as u64 != count {
            return Err(ask.bad("the Redis answers less than it was asked"));
        }
        Ok(Some((attr, chunks)))
    }

    /// Attributes of files; `None` for those that are gone.
    async fn attrs(&self, ask: Ask<'_>, inodes: &[u64]) -> Result<Vec<Option<Attr>>, Error> {
        if inodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        let keys: Vec<String> = inodes.iter().map(|inode| format!("i{inode}")).collect();
        pipe.mget(keys);
        let (records,): (Vec<Option<Vec<u8>>>,) = self.ask(ask, &pipe).await?;
        if records.len() != inodes.len() {
            return Err(ask.bad("the Redis answers less than it was asked"));
        }
        let attr = |record: Option<Vec<u8>>| {
            record.map(|record| Attr::of(&record).ok_or_else(|| ask.bad("its attributes are none"))).transpose()
        };
        records.into_iter().map(attr).collect()
    }

    async fn look_up(&self, ask: Ask<'_>, directory: u64, name: &str) -> Result<Option<(Kind, u64)>, Error> {
        let (found,): (Option<Vec<u8>>,) = self.ask(ask, redis::pipe().hget(format!("d{directory}"), name)).await?;
        found.map(|bytes| entry(&bytes).ok_or_else(|| ask.bad("an entry of a directory is none"))).transpose()
    }

    /// Where a path leads, links of its included.
    pub(super) async fn find(&self, ask: Ask<'_>, path: &str) -> Result<Found, Error> {
        let mut way = vec![ROOT];
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut end, mut links) = (None, 0);
        while let Some(part) = rest.pop() {
            if end.is_some() {
                return Err(ask.no_directory());
            }
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let directory = way.last().copied().unwrap_or(ROOT);
            let (kind, inode) = self.look_up(ask, directory, &part).await?.ok_or_else(|| ask.not_found())?;
            match kind {
                Kind::Directory => way.push(inode),
                Kind::File | Kind::Other => end = Some(inode),
                Kind::Link if links == LINKS_MAX => {
                    return Err(ask
                        .fail(ErrorKind::WrongKind)
                        .detail("links lead to links without end")
                        .remedy("name the file itself"));
                }
                Kind::Link => {
                    links += 1;
                    rest.extend(self.link(ask, inode).await?.split('/').rev().map(str::to_owned));
                }
            }
        }
        let inode = end.or(way.last().copied()).unwrap_or(ROOT);
        let attr = self.attrs(ask, &[inode]).await?.pop().flatten().ok_or_else(|| ask.not_found())?;
        Ok(Found { inode, attr })
    }

    async fn link(&self, ask: Ask<'_>, inode: u64) -> Result<String, Error> {
        let (target,): (Option<Vec<u8>>,) = self.ask(ask, redis::pipe().get(format!("s{inode}"))).await?;
        let target = target.ok_or_else(|| ask.not_found())?;
        let elsewhere = || {
            ask.fail(ErrorKind::Unsupported)
                .detail("a link leads to a path of the machine that the volume is mounted on")
                .remedy("name the file itself")
        };
        String::from_utf8(target).ok().filter(|target| !target.starts_with('/')).ok_or_else(elsewhere)
    }

    /// The names in a directory, in no order.
    pub(super) async fn list(&self, ask: Ask<'_>, directory: u64) -> Result<Vec<Named>, Error> {
        let key = format!("d{directory}");
        let (mut names, mut left_out, mut cursor) = (Vec::new(), 0u64, String::from("0"));
        loop {
            let mut pipe = redis::pipe();
            pipe.add_command(page(&key, &cursor));
            let ((next, flat),): ((String, Vec<Vec<u8>>),) = self.ask(ask, &pipe).await?;
            for pair in flat.chunks_exact(2) {
                let [name, value] = pair else { continue };
                let (_, inode) = entry(value).ok_or_else(|| ask.bad("an entry of a directory is none"))?;
                match String::from_utf8(name.clone()) {
                    Ok(name) if !name.is_empty() && !name.contains(['/', '\0']) => names.push((name, inode)),
                    _ => left_out += 1,
                }
            }
            if names.len() > NAMES_MAX {
                let text = format!("the directory has more than {NAMES_MAX} names");
                return Err(ask.fail(ErrorKind::TooLarge).detail(text).remedy("spread them over several"));
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        if left_out > 0 {
            tracing::warn!(left_out, directory = ask.name, "names that are no text are left out of a listing");
        }
        names.sort();
        // A directory that changes meanwhile may tell a name twice.
        names.dedup_by(|a, b| a.0 == b.0);
        let mut all = Vec::with_capacity(names.len());
        for names in names.chunks(PAGE) {
            let inodes: Vec<u64> = names.iter().map(|(_, inode)| *inode).collect();
            let attrs = self.attrs(ask, &inodes).await?;
            let named = |((name, inode), attr): (&(String, u64), Option<Attr>)| {
                attr.map(|attr| Named { name: name.clone(), inode: *inode, attr })
            };
            all.extend(names.iter().zip(attrs).filter_map(named));
        }
        Ok(all)
    }
}
