//! Faults as data: match on what an I/O is, act on some of the matches.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sw_engine::{
    Error, Fault, Token,
    seam::{Attach, Fence, Io, IoDone, IoKind, Submit, Transport, TransportCaps, Wait, Wake},
};

/// Which I/Os a rule is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct On {
    /// Only this kind.
    pub kind: Option<IoKind>,
    /// Only those that touch this object range: offset and length in bytes.
    pub range: Option<(u64, u64)>,
    /// Matches to let pass first.
    pub skip: u32,
    /// Matches to act on after that; 0 means all.
    pub times: u32,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The end is this fault (the bytes may have moved).
    Fail(Fault),
    /// The end claims at most this many bytes.
    Short(u32),
    /// The end claims this many bytes more than the transport moved: a lie.
    Overclaim(u32),
    /// The submit is refused once.
    RefuseOnce,
    /// The end comes twice.
    Twice,
    /// The end never comes; a fence still ends it.
    Swallow,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Which I/Os.
    pub on: On,
    /// What happens to them.
    pub act: Act,
}

/// A transport with a table of faults. The first rule that fires decides.
pub struct Faulty<T> {
    inner: T,
    rules: Vec<(Rule, u32)>,
    marked: BTreeMap<u64, Act>,
    /// Ends that a rule repeats at the next poll.
    again: Vec<IoDone>,
    fired: u32,
}

impl<T: Transport> Faulty<T> {
    /// Around `inner`, with these rules.
    pub fn new(inner: T, rules: Vec<Rule>) -> Self {
        let rules = rules.into_iter().map(|rule| (rule, 0)).collect();
        Self { inner, rules, marked: BTreeMap::new(), again: Vec::new(), fired: 0 }
    }

    /// How often a rule acted.
    pub fn fired(&self) -> u32 {
        self.fired
    }

    fn decide(&mut self, io: &Io) -> Option<Act> {
        for (rule, seen) in &mut self.rules {
            if !rule.on.matches(io) {
                continue;
            }
            *seen += 1;
            let past = seen.saturating_sub(rule.on.skip);
            if past > 0 && (rule.on.times == 0 || past <= rule.on.times) {
                self.fired += 1;
                return Some(rule.act);
            }
        }
        None
    }

    /// Bends the fresh ends; gives how many are left of them.
    fn bend(&mut self, out: &mut Vec<IoDone>, before: usize) -> usize {
        let mut at = before;
        while let Some(done) = out.get_mut(at) {
            match self.marked.remove(&done.token.raw()) {
                Some(Act::Fail(fault)) => done.result = Err(fault),
                Some(Act::Short(most)) => done.result = done.result.map(|bytes| bytes.min(most)),
                Some(Act::Overclaim(more)) => done.result = done.result.map(|bytes| bytes.saturating_add(more)),
                Some(Act::Twice) => self.again.push(*done),
                Some(Act::Swallow) => {
                    out.remove(at);
                    continue;
                }
                Some(Act::RefuseOnce) | None => {}
            }
            at += 1;
        }
        out.len() - before
    }
}

impl On {
    fn matches(&self, io: &Io) -> bool {
        let kind = self.kind.is_none_or(|kind| kind == io.kind);
        let range = self.range.is_none_or(|(offset, len)| {
            io.offset < offset.saturating_add(len) && offset < io.offset.saturating_add(u64::from(io.len))
        });
        kind && range
    }
}

impl<T: Transport> Transport for Faulty<T> {
    fn caps(&self) -> TransportCaps {
        self.inner.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.inner.attach(hint)
    }

    fn submit(&mut self, io: &Io) -> Submit {
        let act = self.decide(io);
        if let Some(Act::RefuseOnce) = act {
            return Submit::Full;
        }
        let taken = self.inner.submit(io);
        if let (Submit::Accepted, Some(act)) = (taken, act) {
            self.marked.insert(io.token.raw(), act);
        }
        taken
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.inner.ring()
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let before = out.len();
        while out.len() < out.capacity()
            && let Some(done) = self.again.pop()
        {
            out.push(done);
        }
        let repeated = out.len() - before;
        if out.len() == out.capacity() {
            return Ok(repeated);
        }
        let from = out.len();
        self.inner.poll(if repeated > 0 { Wait::No } else { wait }, out)?;
        Ok(repeated + self.bend(out, from))
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        let before = out.len();
        let fence = self.inner.fence(timeout, out);
        self.bend(out, before);
        fence
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}
