//! Open objects: opened when a read first needs them, by threads that may wait, kept open within a bound.
//!
//! An object that reads use stays open. Of the others the one goes that was not wanted for longest, as far as one bit each can
//! tell (a clock's hand goes round and spares each once). An object of an earlier epoch is opened again, so that a change of it
//! is noticed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use straightway::{Destination, Engine, Object, Policy, Target, Uri, Verb};

use super::{error::Why, plan::Key};
use crate::samples::{Difference, ObjectEntry, version_of_text};

/// What is said of an object that nothing is wrong with itself.
const NO_PLACE: &str = "opening each of the other objects that may be open at once";

/// An object with the way to it.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) object: Object,
    pub(super) target: Target,
}

/// What an opener is to do: close the one, open the other.
pub(super) struct OpenOrder {
    pub(super) key: Key,
    pub(super) closing: Option<Opened>,
}

/// What became of a wish.
pub(super) enum Wanted {
    /// It is open, and has one more user.
    Open,
    /// It is being opened; the wish is on its list.
    Opening(Option<OpenOrder>),
    /// It cannot be had.
    Failed(Why),
    /// Too many are open and in use: ask again when one was let go.
    Full,
}

struct Entry<W> {
    key: Key,
    epoch: u64,
    state: State<W>,
    users: u32,
    /// Wanted since the hand was here.
    recent: bool,
}

enum State<W> {
    Opening { since: Instant, waiting: Vec<W> },
    Open(Opened),
    Failed(Why),
}

/// See the module documentation. `W` stands for who waits for an object.
pub(super) struct Objects<W> {
    by_key: HashMap<Key, usize>,
    entries: Vec<Entry<W>>,
    max: usize,
    hand: usize,
    opening: usize,
}

impl<W> Objects<W> {
    pub(super) fn new(max: u32) -> Self {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Self { by_key: HashMap::new(), entries: Vec::new(), max, hand: 0, opening: 0 }
    }

    /// Wants an object for a read of an epoch; `who` is told by [`Objects::opened`] if it must wait.
    pub(super) fn want(&mut self, key: Key, epoch: u64, who: W, now: Instant, patience: Duration) -> Wanted {
        if let Some(&at) = self.by_key.get(&key)
            && let Some(entry) = self.entries.get_mut(at)
        {
            entry.recent = true;
            let idle = entry.users == 0;
            match &mut entry.state {
                State::Opening { since, .. } if now.duration_since(*since) >= patience => {
                    return Wanted::Failed(Why::Stuck { what: "opening its object", after: patience });
                }
                State::Opening { waiting, .. } => {
                    waiting.push(who);
                    return Wanted::Opening(None);
                }
                State::Open(_) | State::Failed(_) if idle && entry.epoch < epoch => {
                    let closing = entry.begin(key, epoch, who, now);
                    self.opening += 1;
                    return Wanted::Opening(Some(OpenOrder { key, closing }));
                }
                State::Open(_) => {
                    entry.users += 1;
                    return Wanted::Open;
                }
                State::Failed(why) => return Wanted::Failed(why.clone()),
            }
        }
        let Some(at) = self.place() else {
            let is_held = |entry: &Entry<W>| match &entry.state {
                State::Opening { since, .. } => now.duration_since(*since) >= patience,
                State::Open(_) | State::Failed(_) => false,
            };
            // No place will be free: whoever waited for one would wait for ever.
            let all = self.entries.iter().all(is_held);
            return if all { Wanted::Failed(Why::Stuck { what: NO_PLACE, after: patience }) } else { Wanted::Full };
        };
        self.opening += 1;
        let closing = match self.entries.get_mut(at) {
            Some(entry) => {
                self.by_key.remove(&entry.key);
                entry.begin(key, epoch, who, now)
            }
            None => {
                let state = State::Opening { since: now, waiting: vec![who] };
                self.entries.push(Entry { key, epoch, state, users: 0, recent: true });
                None
            }
        };
        self.by_key.insert(key, at);
        Wanted::Opening(Some(OpenOrder { key, closing }))
    }

    /// A place for one more: a new one, or that of an object that nobody uses.
    fn place(&mut self) -> Option<usize> {
        if self.entries.len() < self.max {
            return Some(self.entries.len());
        }
        // Twice round: the first time may only clear bits.
        for _ in 0..2 * self.entries.len() {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = self.entries.get_mut(at)?;
            let idle = entry.users == 0 && !matches!(entry.state, State::Opening { .. });
            if idle && !std::mem::take(&mut entry.recent) {
                return Some(at);
            }
        }
        None
    }

    /// An opener is done. Returns who waited; each is a user now if it is open.
    pub(super) fn opened(&mut self, key: Key, result: Result<Opened, Why>) -> Vec<W> {
        let Some(entry) = self.by_key.get(&key).and_then(|at| self.entries.get_mut(*at)) else { return Vec::new() };
        let state = match result {
            Ok(opened) => State::Open(opened),
            Err(why) => State::Failed(why),
        };
        match std::mem::replace(&mut entry.state, state) {
            State::Opening { waiting, .. } => {
                self.opening -= 1;
                if matches!(entry.state, State::Open(_)) {
                    entry.users += u32::try_from(waiting.len()).unwrap_or(u32::MAX);
                }
                waiting
            }
            State::Open(_) | State::Failed(_) => Vec::new(),
        }
    }

    /// The object, for somebody who is its user.
    pub(super) fn get(&self, key: Key) -> Result<Opened, Why> {
        match self.by_key.get(&key).and_then(|at| self.entries.get(*at)).map(|entry| &entry.state) {
            Some(State::Open(opened)) => Ok(opened.clone()),
            Some(State::Failed(why)) => Err(why.clone()),
            Some(State::Opening { .. }) | None => Err(Why::NoObject { object: key.object }),
        }
    }

    /// A user is done.
    pub(super) fn release(&mut self, key: Key) {
        if let Some(entry) = self.by_key.get(&key).and_then(|at| self.entries.get_mut(*at)) {
            entry.users = entry.users.saturating_sub(1);
        }
    }

    /// Those who have waited for longer than `patience`. What opens goes on.
    pub(super) fn give_up(&mut self, now: Instant, patience: Duration) -> Vec<W> {
        let mut late = Vec::new();
        if self.opening == 0 {
            return late;
        }
        for entry in &mut self.entries {
            if let State::Opening { since, waiting } = &mut entry.state
                && now.duration_since(*since) >= patience
            {
                late.append(waiting);
            }
        }
        late
    }

    /// Objects that are being opened.
    pub(super) fn opening(&self) -> usize {
        self.opening
    }
}

impl<W> Entry<W> {
    /// Begins to open `key` in this place; returns what was open.
    fn begin(&mut self, key: Key, epoch: u64, who: W, now: Instant) -> Option<Opened> {
        let state = State::Opening { since: now, waiting: vec![who] };
        (self.key, self.epoch, self.users, self.recent) = (key, epoch, 0, true);
        match std::mem::replace(&mut self.state, state) {
            State::Open(opened) => Some(opened),
            State::Opening { .. } | State::Failed(_) => None,
        }
    }
}

/// Opens an object and compares it with what was indexed. *Blocking*.
pub(super) fn open(engine: &Engine, entry: &ObjectEntry, into: Destination, policy: &Policy) -> Result<Opened, Why> {
    let storage = |error| Why::Storage(Arc::new(error));
    let uri: Uri = entry.uri.parse().map_err(storage)?;
    let object = match (&uri, version_of_text(&entry.version)) {
        // The first answer says whether it is what was indexed: nothing is asked before.
        (Uri::Remote(at), Some(version)) if at.scheme.tells_versions() => engine.open_known(&uri, entry.len, version),
        _ => engine.open(&uri),
    };
    let object = object.map_err(storage)?;
    let changed = |what, indexed, found| Err(Why::Changed { what, indexed, found });
    match entry.difference(object.len(), object.version()) {
        Some(Difference::Len) => {
            return changed("its length in bytes", entry.len.to_string(), object.len().to_string());
        }
        Some(Difference::Version(now)) => return changed("its version", entry.version.clone(), now),
        None => {}
    }
    let target = engine.target(&object, into, policy, Verb::Read).map_err(storage)?;
    Ok(Opened { object, target })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::clock;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn key(object: u32) -> Key {
        Key { dataset: 0, object }
    }

    fn opened() -> Opened {
        let engine = Engine::builder().build().unwrap();
        let object = engine.open(&Uri::File("/proc/self/exe".to_owned())).unwrap();
        let target = engine.target(&object, Destination::Host, &Policy::Any, Verb::Read).unwrap();
        Opened { object, target }
    }

    #[test]
    fn an_object_is_opened_once_for_all_who_wait() {
        let (mut objects, now) = (Objects::new(2), clock::now());
        assert!(matches!(objects.want(key(0), 0, 'a', now, PATIENCE), Wanted::Opening(Some(_))));
        assert!(matches!(objects.want(key(0), 0, 'b', now, PATIENCE), Wanted::Opening(None)));
        assert_eq!((objects.opened(key(0), Ok(opened())), objects.opening()), (vec!['a', 'b'], 0));
        assert!(matches!(objects.want(key(0), 0, 'c', now, PATIENCE), Wanted::Open));
        assert!(objects.get(key(0)).is_ok());
    }

    #[test]
    fn what_is_in_use_stays_and_what_was_not_wanted_for_longest_goes() {
        let (mut objects, now) = (Objects::new(2), clock::now());
        for object in [0, 1] {
            objects.want(key(object), 0, (), now, PATIENCE);
            objects.opened(key(object), Ok(opened()));
        }
        assert!(matches!(objects.want(key(2), 0, (), now, PATIENCE), Wanted::Full), "both are in use");
        objects.release(key(1));
        let Wanted::Opening(Some(order)) = objects.want(key(2), 0, (), now, PATIENCE) else { panic!() };
        assert!(order.closing.is_some() && objects.get(key(1)).is_err() && objects.get(key(0)).is_ok());
    }

    #[test]
    fn an_object_of_an_earlier_epoch_is_opened_again_once_nobody_uses_it() {
        let (mut objects, now) = (Objects::new(2), clock::now());
        objects.want(key(0), 0, (), now, PATIENCE);
        objects.opened(key(0), Ok(opened()));
        assert!(matches!(objects.want(key(0), 1, (), now, PATIENCE), Wanted::Open));
        objects.release(key(0));
        objects.release(key(0));
        assert!(matches!(objects.want(key(0), 1, (), now, PATIENCE), Wanted::Opening(Some(_))));
    }

    #[test]
    fn nobody_waits_for_a_place_that_is_never_free() {
        let (mut objects, now) = (Objects::new(2), clock::now());
        for object in [0, 1] {
            objects.want(key(object), 0, (), now, PATIENCE);
        }
        assert!(matches!(objects.want(key(2), 0, (), now, PATIENCE), Wanted::Full), "they may open yet");
        let late = now + PATIENCE;
        assert!(matches!(objects.want(key(2), 0, (), late, PATIENCE), Wanted::Failed(Why::Stuck { .. })));
        objects.opened(key(0), Ok(opened()));
        assert!(matches!(objects.want(key(2), 0, (), late, PATIENCE), Wanted::Opening(Some(_)) | Wanted::Full));
    }

    #[test]
    fn whoever_waits_too_long_is_told_and_so_is_who_comes_later() {
        let (mut objects, now) = (Objects::new(2), clock::now());
        objects.want(key(0), 0, 'a', now, PATIENCE);
        assert!(objects.give_up(now, PATIENCE).is_empty());
        let late = now + PATIENCE;
        assert_eq!(objects.give_up(late, PATIENCE), ['a']);
        assert!(matches!(objects.want(key(0), 0, 'b', late, PATIENCE), Wanted::Failed(Why::Stuck { .. })));
        assert!(objects.opened(key(0), Ok(opened())).is_empty());
        assert!(matches!(objects.want(key(0), 0, 'c', late, PATIENCE), Wanted::Open), "it came after all");
    }
}
