//! Anything that an agent reaches, by AGP/1 (`docs/agp.md`): it speaks the storage's protocol and has the credentials.
//!
//! ```text
//!   Agents ── agp://AGENT/URI ─► Link, one to each agent ─► Drive: sw_agent::host::Host ── carrier: Unix socket with a segment, TCP
//!     objects: Opened, Making ──► operations in places of the Room, which the agent is lent; copied to their callers, and from them
//! ```
//!
//! A caller's own memory is never lent: what an agent that is lost may still write to is memory that was given up with it.

mod carrier;
mod link;
mod object;
mod room;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sw_agent::{
    failure::Class,
    wire::{
        Message,
        message::{Access, EntryKind as Kind},
    },
};
use sw_engine::{
    Error, ErrorKind, Landing, Object, Retry, TransportName, Verb, Version,
    seam::{Entry, EntryKind, OpenMode, Store, WriteIntent},
};

use self::{
    carrier::Place,
    link::{Link, Question, Refusal},
    object::{Making, Opening},
};
use crate::{
    address::Address,
    intent::Intent,
    system::{Context, Opened, System},
};

/// What comes by an agent, in routes and reports.
pub const AGP: TransportName = "agp";
/// Entries of a listing, at most.
const ENTRIES_MAX: usize = 1_000_000;

/// How agents are reached.
#[derive(Clone)]
pub struct AgentConfig {
    /// The tenant and its key, for agents behind TCP. Default: none, which agents behind a Unix socket take.
    pub key: Option<(String, Vec<u8>)>,
    /// Longest that an operation takes, connecting anew included. Default 60 s.
    pub patience: Duration,
    /// Longest that an agent is silent. Default 10 s.
    pub silence: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { key: None, patience: Duration::from_secs(60), silence: Duration::from_secs(10) }
    }
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.key.as_ref().map(|(tenant, _)| tenant);
        f.debug_struct("AgentConfig").field("tenant", &tenant).field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// The tenant and its key, if there is one.
type FindKey = Box<dyn Fn() -> Result<Option<(String, Vec<u8>)>, Error> + Send + Sync>;

/// Names behind agents to objects. Made for nothing: connections come with the first use.
pub struct Agents {
    context: Context,
    config: AgentConfig,
    key: FindKey,
    links: Mutex<HashMap<String, Arc<Link>>>,
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// An address, taken apart: its agent, and what that is asked for.
struct At {
    link: Arc<Link>,
    uri: String,
}

/// An agent's answer to the error of whoever asked.
fn told(refusal: &Refusal, verb: Verb, name: &str) -> Error {
    let Refusal { failure, text } = refusal;
    let kind = failure.detail.kind().unwrap_or(ErrorKind::Io);
    let origin = match failure.origin {
        sw_agent::failure::Origin::Host => "agp",
        sw_agent::failure::Origin::Carrier => "the way to the agent",
        sw_agent::failure::Origin::Agent => "the agent",
        sw_agent::failure::Origin::Storage | sw_agent::failure::Origin::Media => "the storage behind the agent",
    };
    let text = if text.is_empty() { kind.name() } else { text };
    let error = Error::new(kind, verb).at(name.to_owned()).detail(format!("{origin}: {text}"));
    match failure.class {
        Class::RetryNow => error.with_retry(Retry::Now),
        Class::RetryAfterFence => error.with_retry(Retry::AfterFence),
        Class::Caller | Class::Integrity | Class::Fatal => error,
    }
}

/// A version in words, as it goes to an agent and comes back.
fn version_of(text: &str) -> Version {
    let mut words = text.split('.').map(|word| u128::from_str_radix(word, 16).unwrap_or_default());
    let mut next = || words.next().unwrap_or_default();
    let identity = (next(), next());
    let half = |word: u128| u64::try_from(word).unwrap_or_default();
    Version { identity: (half(identity.0), half(identity.1)), stamp: next().cast_signed() }
}

impl Agents {
    /// Those that `config` describes; `key` is asked for the key of each new link to an agent.
    pub fn new(
        context: Context,
        config: AgentConfig,
        key: impl Fn() -> Result<Option<(String, Vec<u8>)>, Error> + Send + Sync + 'static,
    ) -> Self {
        Self { context, config, key: Box::new(key), links: Mutex::default() }
    }

    fn at(&self, name: &str, verb: Verb) -> Result<At, Error> {
        let wrong = |detail: &'static str| {
            Error::new(ErrorKind::BadUri, verb)
                .at(name)
                .detail(detail)
                .remedy("write agp://HOST:PORT/URI or agp://unix:/SOCKET/URI with a whole address behind it, as in agp://unix:/run/sw.sock/file:///data/a")
        };
        let at: Address = name.parse().map_err(wrong)?;
        let place = match at.bucket.strip_prefix("unix:") {
            Some(path) => Place::Unix(path.to_owned()),
            None => Place::Tcp(at.bucket.clone()),
        };
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&at.bucket) {
            return Ok(At { link: link.clone(), uri: at.key });
        }
        let config = AgentConfig { key: (self.key)()?, ..self.config.clone() };
        let link = Link::start(&self.context.runtime().handle()?, place, config).map_err(|error| {
            Error::new(ErrorKind::ResourceLimit, verb)
                .at(name)
                .detail("no memory to share with an agent")
                .caused_by(error)
        })?;
        let link = links.entry(at.bucket).or_insert(Arc::new(link)).clone();
        Ok(At { link, uri: at.key })
    }

    fn patience(&self) -> Duration {
        self.config.patience
    }

    fn ask(&self, (verb, name): (Verb, &str), link: &Arc<Link>, question: Question) -> Result<Message, Error> {
        let link = link.clone();
        let limit = self.patience() + Duration::from_secs(1);
        let asked = async move { Ok(link.ask(question).await) };
        let answer = self.context.runtime().wait((verb, name), limit, asked)?;
        answer.map_err(|refusal| told(&refusal, verb, name))
    }

    fn begin(&self, name: &str, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let At { link, uri } = self.at(name, Verb::Create)?;
        let generation = link.generation();
        let question = Question::Open(uri, Access::Write, String::new());
        let Message::Opened { object, .. } = self.ask((Verb::Create, name), &link, question)? else {
            return Err(wrong_answer(Verb::Create, name));
        };
        let making = Arc::new(Making::new(name, link, (object, generation), len, self.patience()));
        let opened = self.opened(name, making.clone(), (len.unwrap_or(u64::MAX), Version::default()));
        Ok(Box::new(Intent::new(Arc::new(opened), making, self.context.runtime().clone())))
    }

    fn opened(&self, name: &str, remote: Arc<dyn crate::remote::Remote>, (len, version): (u64, Version)) -> Object {
        self.context.object(Opened {
            name: name.to_owned(),
            remote,
            len,
            version,
            transport: AGP,
            lands: Landing::Staged,
            because: None,
            stored: None,
            patience: self.patience(),
        })
    }
}

fn wrong_answer(verb: Verb, name: &str) -> Error {
    Error::new(ErrorKind::Protocol, verb).at(name).detail("the agent answers another question")
}

fn kind_of(kind: Kind) -> EntryKind {
    match kind {
        Kind::Object => EntryKind::Object,
        Kind::Folder => EntryKind::Directory,
    }
}

impl System for Agents {
    fn context(&self) -> &Context {
        &self.context
    }

    /// What an agent lists has no versions: of that the length counts.
    fn open_known(&self, name: &str, len: u64, version: Version) -> Result<Arc<Object>, Error> {
        let opened = self.open(name, OpenMode::Read)?;
        let noted = if version == Version::default() { opened.version } else { version };
        crate::system::looked_at(opened, (len, noted))
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        self.begin(name, None)
    }
}

impl Store for Agents {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        if mode == OpenMode::Update {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail("behind an agent objects are written as a whole, never in place")
                .remedy("copy to it, or write a new object"));
        }
        let At { link, uri } = self.at(name, Verb::Open)?;
        let generation = link.generation();
        let question = Question::Open(uri.clone(), Access::Read, String::new());
        let Message::Opened { object, length, version, .. } = self.ask((Verb::Open, name), &link, question)? else {
            return Err(wrong_answer(Verb::Open, name));
        };
        let noted = version_of(&version);
        let remote = Arc::new(Opening::new((name, uri), link, (object, generation), version));
        Ok(Arc::new(self.opened(name, remote, (length, noted))))
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        self.begin(name, Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let At { link, uri } = self.at(name, Verb::Open)?;
        match self.ask((Verb::Open, name), &link, Question::Stat(uri))? {
            Message::Stated { kind, length, version, .. } => {
                Ok(Entry { name: name.to_owned(), kind: kind_of(kind), len: length, version: version_of(&version) })
            }
            _ => Err(wrong_answer(Verb::Open, name)),
        }
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let At { link, uri } = self.at(name, Verb::List)?;
        let (mut entries, mut cursor) = (Vec::new(), String::new());
        loop {
            let question = Question::List(uri.clone(), cursor.clone());
            let Message::Listed { cursor: next, entries: page, .. } = self.ask((Verb::List, name), &link, question)?
            else {
                return Err(wrong_answer(Verb::List, name));
            };
            let below = name.trim_end_matches('/');
            entries.extend(page.iter().map(|one| Entry {
                // An object lists as itself, without a name below it.
                name: if one.name.is_empty() { name.to_owned() } else { format!("{below}/{}", one.name) },
                kind: kind_of(one.kind),
                len: one.length,
                version: Version::default(),
            }));
            // A page that leads nowhere would be asked for again for ever.
            if next.is_empty() || next.as_ref() == cursor || page.is_empty() {
                break;
            }
            if entries.len() > ENTRIES_MAX {
                return Err(Error::new(ErrorKind::TooLarge, Verb::List).at(name).detail("more than a million entries"));
            }
            cursor = next.into();
        }
        entries.sort_by(|a: &Entry, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Unsupported, Verb::Replace)
            .at(name)
            .detail("agents remove nothing")
            .remedy("remove it where it is stored"))
    }
}
