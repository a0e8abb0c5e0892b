//! The guest's side: what it asks the owner, and how it becomes the owner itself.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sw_engine::{Error, ErrorKind, Verb};

use crate::{
    cache::{self, Inner, State},
    fill::Ready,
    home::{Home, epoch_in},
    index::Word,
    key::{BlockKey, ObjectKey},
    shared::{
        claims::now,
        wire::{Conn, PAGE_OBJECTS, Reply, Request, Wanted},
    },
    status::{Evicted, KeptObject, Status},
};

/// Longest that a reader waits for the owner; then it reads from where the object is, and so do others until it answers again.
const ASK_WAIT: Duration = Duration::from_millis(250);
/// Longest that the thread which hands over blocks waits.
const FILL_WAIT: Duration = Duration::from_secs(10);
/// Longest that whoever asks for something else waits.
const OTHER_WAIT: Duration = Duration::from_secs(10);
/// Longest that readers wait for the next owner when one is gone.
const NEXT_WAIT: Duration = Duration::from_millis(500);
/// Longest that an owner which did not answer is not come to again: the first time [`TEND`], then twice as long each time.
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// Objects whose bytes are wrong that are remembered for the owner.
const WRONG_MAX: usize = 1024;
/// How often the owner is looked for while there is none.
pub(crate) const TEND: Duration = Duration::from_millis(100);

/// What readers ask.
#[derive(Debug)]
struct Asking {
    conn: Conn,
    /// The owner's.
    epoch: u64,
    /// It answered a question, rather than greeted alone.
    has_answered: bool,
}

/// When an owner is come to again that did not answer, unless another one follows: its disk may hang, and it greets nevertheless.
#[derive(Debug, Default)]
struct Again {
    /// The first moment, and the epoch.
    at: Option<(Instant, Option<u64>)>,
    step: Duration,
}

/// What a guest has of its owner.
#[derive(Debug)]
pub(crate) struct Guest {
    ask: Mutex<Option<Asking>>,
    fill: Mutex<Option<Conn>>,
    /// Where the epoch is that counts.
    epoch: File,
    is_connected: AtomicBool,
    /// Until when the next one is waited for.
    next: Mutex<Option<Instant>>,
    again: Mutex<Again>,
    /// Why there is none.
    why: Mutex<Option<String>>,
    /// Objects whose bytes are wrong, which the owner has not heard of.
    wrong: Mutex<Vec<ObjectKey>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a question where blocks are.
pub(crate) enum Found<T> {
    /// Nothing: there is no owner, or it does not answer.
    Away,
    Later,
    /// What was made of the answer.
    Taken(T),
}

impl Guest {
    pub(crate) fn new(home: &Home) -> Result<Self, Error> {
        Ok(Self {
            ask: Mutex::default(),
            fill: Mutex::default(),
            epoch: home.epoch_file()?,
            is_connected: AtomicBool::new(false),
            next: Mutex::default(),
            again: Mutex::default(),
            why: Mutex::default(),
            wrong: Mutex::default(),
        })
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
    }

    fn epoch_now(&self) -> Option<u64> {
        let mut text = [0; 64];
        let len = self.epoch.read_at(&mut text, 0).unwrap_or(0);
        epoch_in(&text[..len])
    }

    fn with<T>(&self, work: impl FnOnce(&mut Asking) -> io::Result<T>) -> Option<T> {
        let mut ask = lock(&self.ask);
        let asking = ask.as_mut()?;
        match work(asking) {
            Ok(done) => Some(done),
            Err(cause) => {
                let asking = ask.take();
                self.part(&cause, asking.as_ref());
                None
            }
        }
    }

    fn part(&self, cause: &io::Error, asking: Option<&Asking>) {
        let has_answered = asking.is_some_and(|asking| asking.has_answered);
        self.is_connected.store(false, Ordering::Release);
        let is_gone = matches!(
            cause.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
        );
        if is_gone && has_answered {
            *lock(&self.next) = Some(now() + NEXT_WAIT);
        } else {
            self.wait_longer();
        }
        tracing::debug!(%cause, "the owner of the cache does not answer; objects are read from where they are");
        *lock(&self.why) = Some(format!("the process that has the cache does not answer: {cause}"));
    }

    /// The owner did not answer.
    fn wait_longer(&self) {
        let mut again = lock(&self.again);
        again.step = (again.step * 2).clamp(TEND, AGAIN_MAX);
        again.at = Some((now() + again.step, self.epoch_now()));
    }

    /// Whether the owner is not to be come to yet.
    fn is_too_early(&self) -> bool {
        let at = lock(&self.again).at;
        at.is_some_and(|(at, epoch)| now() < at && self.epoch_now() == epoch)
    }

    /// It answers.
    fn has_answered(&self, asking: &mut Asking) {
        if !asking.has_answered {
            asking.has_answered = true;
            *lock(&self.again) = Again::default();
        }
    }

    /// Asks where blocks are. `take` takes the locks of what is said of them, in the order of the question, before anybody else asks: the owner
    /// holds the slots of one answer for each connection, until the next question.
    pub(crate) fn find<T>(
        &self,
        object: ObjectKey,
        blocks: Vec<(u32, Wanted)>,
        take: impl FnOnce(Vec<Option<Word>>) -> T,
    ) -> Found<T> {
        let count = blocks.len();
        // If the answer is void by then, it is dropped when others may ask again: so that it can tell what it does not bring.
        let mut taken = None;
        let found = self.with(|asking| match asking.conn.ask(&Request::Find { object, blocks })? {
            Reply::Later => {
                self.has_answered(asking);
                Ok(false)
            }
            Reply::Found(words) if words.len() == count => {
                self.has_answered(asking);
                taken = Some(take(words));
                // Behind the locks: an owner that came before them, or held nothing any more as the connection had ended, may have
                // others' bytes there.
                if self.epoch_now() != Some(asking.epoch) || !asking.conn.is_open() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                asking.conn.tell(&Request::Taken)?;
                Ok(true)
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        });
        match (found, taken) {
            (Some(true), Some(taken)) => Found::Taken(taken),
            (Some(_), _) => Found::Later,
            (None, _) => {
                let mut next = lock(&self.next);
                *next = next.filter(|until| now() < *until);
                if next.is_some() { Found::Later } else { Found::Away }
            }
        }
    }

    /// Says something that has no answer.
    pub(crate) fn tell(&self, request: &Request) {
        self.with(|asking| asking.conn.tell(request));
    }
}

impl Inner {
    pub(crate) fn is_owner(&self) -> bool {
        self.owns.load(Ordering::Acquire)
    }

    /// Whether what is read from where it is can be kept.
    pub(crate) fn takes_fills(&self) -> bool {
        self.is_owner() || self.guest.is_connected()
    }

    /// Finds an owner, or becomes it. For a guest's own thread, now and then.
    pub(crate) fn tend(self: &Arc<Self>) {
        if self.is_owner() || self.guest.is_connected() {
            return;
        }
        let tended = match self.home.lock() {
            Ok((lock, epoch)) => self.become_owner(lock, epoch),
            Err(error) if error.kind() == ErrorKind::InUse => {
                if self.guest.is_too_early() {
                    return;
                }
                self.connect().map_err(|cause| {
                    self.guest.wait_longer();
                    cache::wrong(&self.config.dir, cause)
                })
            }
            Err(error) => Err(error),
        };
        if let Err(error) = tended {
            *lock(&self.guest.why) = Some(error.to_string());
        }
    }

    fn connect(&self) -> io::Result<()> {
        let (conn, hello) = Conn::to_owner(&self.home, ASK_WAIT)?;
        if hello.block_bytes != self.config.block_bytes {
            return Err(io::Error::other("its owner has blocks of another size"));
        }
        // Ready beforehand, so that a block does not wait for it.
        let fill = Conn::to_owner(&self.home, FILL_WAIT)?.0;
        let wrong = std::mem::take(&mut *lock(&self.guest.wrong));
        for object in wrong {
            self.forget_far(object);
        }
        *lock(&self.guest.fill) = Some(fill);
        *lock(&self.guest.ask) = Some(Asking { conn, epoch: hello.epoch, has_answered: false });
        (*lock(&self.guest.why), *lock(&self.guest.next)) = (None, None);
        self.guest.is_connected.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes the place of an owner that is gone.
    fn become_owner(self: &Arc<Self>, lock_file: File, epoch: u64) -> Result<(), Error> {
        let sizes = self.home.sizes()?.filter(|sizes| sizes.block_bytes == self.config.block_bytes);
        let sizes = sizes.ok_or_else(|| {
            Error::new(ErrorKind::Changed, Verb::Setup)
                .at(self.config.dir.display().to_string())
                .detail("the cache has blocks of another size now")
                .remedy("make a new engine")
        })?;
        let slots = u32::try_from(sizes.bytes / u64::from(sizes.block_bytes)).unwrap_or(u32::MAX);
        let (index, loaded, discarded) = cache::open_index(&self.home, sizes.block_bytes, &self.config.dir)?;
        cache::size_data(&self.data, slots, sizes.block_bytes)
            .map_err(|cause| cache::wrong(&self.config.dir, cause))?;
        {
            let _changing = self.changing();
            let mut state = self.state();
            let warmed = std::mem::take(&mut state.warmed);
            *state = State::of(loaded, slots);
            state.warmed = warmed;
            drop(state);
            *lock(&self.index) = Some(index);
            *lock(&self.lock) = Some(lock_file);
            *lock(&self.discarded) = discarded;
            self.owns.store(true, Ordering::Release);
        }
        let wrong = std::mem::take(&mut *lock(&self.guest.wrong));
        self.forget(|key, _| wrong.contains(key));
        tracing::info!(dir = %self.config.dir.display(), "this process has the cache now");
        if let Err(error) = self.serve(epoch) {
            tracing::warn!(%error, "other processes read without the cache");
        }
        Ok(())
    }

    /// Gives whole blocks to the owner.
    pub(crate) fn hand_over(&self, batch: &[Ready]) {
        let mut left = 0;
        let mut fill = lock(&self.guest.fill);
        for ready in batch {
            let Some(conn) = fill.as_mut() else {
                left += 1;
                continue;
            };
            let request = Request::Fill {
                named: (*ready.named).clone(),
                number: ready.key.number,
                len: ready.len,
                warmed: ready.is_warmed || self.state().warmed.contains(&ready.key.object),
            };
            let sent = conn.tell(&request).and_then(|()| conn.send(ready.bytes())).and_then(|()| conn.reply());
            match sent {
                Ok(Reply::Count(count)) => left += u64::from(count == 0),
                other => {
                    left += 1;
                    *fill = None;
                    let cause = other.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into());
                    // Both are made anew together.
                    let asked = lock(&self.guest.ask).take();
                    self.guest.part(&cause, asked.as_ref());
                }
            }
        }
        self.state().sums.left += left;
    }

    /// Lets go of an object whose bytes are wrong. If the owner does not answer, it hears of it when it does, or the next one.
    pub(crate) fn forget_far(&self, object: ObjectKey) -> Evicted {
        match self.ask_owner(&Request::Forget { object }) {
            Some(Reply::Evicted(evicted)) => evicted,
            _ => {
                let mut wrong = lock(&self.guest.wrong);
                if wrong.len() == WRONG_MAX {
                    wrong.remove(0);
                }
                wrong.push(object);
                Evicted::default()
            }
        }
    }

    /// Asks the owner for something that no reader waits for.
    pub(crate) fn ask_owner(&self, request: &Request) -> Option<Reply> {
        other_request(&self.home, request).inspect_err(|cause| tracing::debug!(%cause, "the cache's owner")).ok()
    }

    /// How a cache stands whose owner does not say.
    pub(crate) fn status_away(&self) -> Status {
        let why = lock(&self.guest.why).clone();
        let mut status = Status::of(&self.config, &self.state(), None, 0);
        status.fault = Some(why.unwrap_or_else(|| "the process that has the cache does not answer".to_owned()));
        status
    }

    /// Blocks that one's own operation said to bring, and does not: those that are not on their way to the disk.
    pub(crate) fn give_back(&self, who: crate::shared::claims::Who, keys: impl Iterator<Item = BlockKey>) {
        let keys = self.not_busy(keys);
        if !keys.is_empty() {
            self.state().claims.give_back(who, keys);
        }
    }
}

fn other_request(home: &Home, request: &Request) -> io::Result<Reply> {
    let wait = match request {
        Request::Settle { millis } => Duration::from_millis(*millis) + ASK_WAIT,
        _ => OTHER_WAIT,
    };
    Conn::to_owner(home, wait)?.0.ask(request)
}

/// All objects that an owner has some of.
pub(crate) fn objects(mut ask: impl FnMut(&Request) -> Option<Reply>) -> Option<Vec<KeptObject>> {
    let mut objects = Vec::new();
    loop {
        let Some(Reply::Objects(more)) = ask(&Request::Objects { from: objects.len() as u64 }) else { return None };
        let is_last = more.len() < PAGE_OBJECTS;
        objects.extend(more);
        if is_last {
            return Some(objects);
        }
    }
}

/// What the owner of a directory says of it.
pub(crate) fn look(home: &Home) -> Option<(Status, Vec<KeptObject>)> {
    let ask = |request: &Request| other_request(home, request).ok();
    let Some(Reply::Status(status)) = ask(&Request::Status) else { return None };
    Some((*status, objects(ask)?))
}
