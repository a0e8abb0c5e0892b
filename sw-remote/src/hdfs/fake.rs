//! A cluster that is none: names without bytes, and answers that are lost as tests want.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::FutureExt;
use sw_engine::{ErrorKind, TransportName, seam::EntryKind};
use tokio::sync::Semaphore;

use super::{
    fault::Failed,
    files::{Asked, Files, Growing, Meta, Ranges},
};
use crate::land::Landing;

/// What it says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing, and it does nothing.
    Silence,
    /// That it will not do it.
    Refused,
    /// Nothing.
    Lost(Then),
    /// What nobody understands.
    Odd(Then),
    /// The client stops.
    Panic,
}

/// What has become of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    Done,
    /// It was done, and somebody has put another file there since.
    Replaced,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Meta>,
    stamp: u64,
    says: HashMap<&'static str, VecDeque<Said>>,
    asked: Vec<(&'static str, String)>,
}

pub(super) struct Fake {
    state: Mutex<State>,
    /// Appends that may go through.
    pub(super) gate: Semaphore,
}

impl Default for Fake {
    fn default() -> Self {
        Self { state: Mutex::default(), gate: Semaphore::new(Semaphore::MAX_PERMITS) }
    }
}

impl State {
    fn put(&mut self, path: &str, len: u64) {
        self.stamp += 1;
        let meta = Meta { kind: EntryKind::Object, len, modified_ms: self.stamp, id: 0 };
        self.files.insert(path.to_owned(), meta);
    }
}

fn missing() -> Failed {
    Failed::of_exception("FileNotFoundException", "there is none")
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn says(&self, what: &'static str, said: impl IntoIterator<Item = Said>) {
        self.state().says.entry(what).or_default().extend(said);
    }

    pub(super) fn put(&self, path: &str, len: u64) {
        self.state().put(path, len);
    }

    pub(super) fn meta(&self, path: &str) -> Option<Meta> {
        self.state().files.get(path).copied()
    }

    /// The names that it was asked for.
    pub(super) fn asked(&self, what: &str) -> Vec<String> {
        self.state().asked.iter().filter(|(asked, _)| *asked == what).map(|(_, path)| path.clone()).collect()
    }

    /// Does what it is asked, and says of it what it is to say; `path` is where somebody may put another file then.
    fn answer<T>(
        &self,
        what: &'static str,
        (asked, path): (&str, &str),
        work: impl FnOnce(&mut State) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        let mut state = self.state();
        state.asked.push((what, asked.to_owned()));
        let said = state.says.get_mut(what).and_then(VecDeque::pop_front);
        let (then, failed) = match said {
            None => return work(&mut state),
            Some(Said::Panic) => {
                drop(state);
                panic!("as the test wants");
            }
            Some(Said::Silence) => (Then::Nothing, Failed::passing(ErrorKind::DeadlineExceeded, "silence")),
            Some(Said::Refused) => (Then::Nothing, Failed::of_exception("AccessControlException", "no")),
            Some(Said::Lost(then)) => (then, Failed::passing(ErrorKind::Io, "lost")),
            Some(Said::Odd(then)) => (then, Failed::new(ErrorKind::Protocol, "odd", "")),
        };
        if then != Then::Nothing {
            drop(work(&mut state)?);
        }
        if then == Then::Replaced {
            state.put(path, 99);
        }
        Err(failed)
    }
}

impl Files for Fake {
    fn transport(&self) -> TransportName {
        super::HDFS
    }

    fn stat<'a>(&'a self, path: &'a str) -> Asked<'a, Meta> {
        async move { self.meta(path).ok_or_else(missing) }.boxed()
    }

    fn list<'a>(&'a self, _path: &'a str) -> Asked<'a, Vec<(String, Meta)>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> Asked<'a, ()> {
        let rename = |state: &mut State| {
            let meta = state.files.remove(from).ok_or_else(missing)?;
            state.files.insert(to.to_owned(), meta);
            Ok(())
        };
        async move { self.answer("rename", (from, to), rename) }.boxed()
    }

    fn remove<'a>(&'a self, path: &'a str) -> Asked<'a, bool> {
        let remove = |state: &mut State| Ok(state.files.remove(path).is_some());
        async move { self.answer("remove", (path, path), remove) }.boxed()
    }

    fn fence<'a>(&'a self, path: &'a str) -> Asked<'a, ()> {
        async move { self.answer("fence", (path, path), |_| Ok(())) }.boxed()
    }

    fn bytes(self: Arc<Self>, _path: String, _meta: Meta) -> Arc<dyn Ranges> {
        Arc::new(Nothing)
    }

    fn make(self: Arc<Self>, path: String) -> Asked<'static, Box<dyn Growing>> {
        let make = move || {
            self.answer("make", (&path, &path), |state| {
                state.put(&path, 0);
                Ok(())
            })?;
            Ok(Box::new(FakeFile { fake: self, path }) as Box<dyn Growing>)
        };
        async move { make() }.boxed()
    }
}

struct Nothing;

impl Ranges for Nothing {
    fn ready(&self) -> Asked<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn read<'a>(&'a self, _range: Range<u64>, _landing: &'a mut Landing) -> Asked<'a, ()> {
        async { Ok(()) }.boxed()
    }
}

struct FakeFile {
    fake: Arc<Fake>,
    path: String,
}

impl Growing for FakeFile {
    fn append(&mut self, bytes: Bytes) -> Asked<'_, ()> {
        async move {
            self.fake.gate.acquire().await.unwrap().forget();
            let mut state = self.fake.state();
            let meta = state.files.get_mut(&self.path).ok_or_else(missing)?;
            meta.len += bytes.len() as u64;
            Ok(())
        }
        .boxed()
    }

    fn close(&mut self) -> Asked<'_, ()> {
        async move { self.fake.answer("close", (&self.path, &self.path), |_| Ok(())) }.boxed()
    }
}
