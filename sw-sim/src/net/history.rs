//! What was asked, answered and carried out, block by block; and what of it cannot be.
//!
//! Two judges. The one knows what the target did, and when: a write that was answered is carried out before, one whose outcome is unknown
//! until the end of the fence and never behind a later write; a read gives what was current while it was under way. The other
//! ([`linearizable`]) knows answers only, as a caller does.

use std::collections::BTreeMap;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;

/// How a write was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is carried out.
    Done,
    /// Nobody knows.
    Unknown,
    /// It failed, and nothing of it is carried out from now on.
    Failed,
}

/// A write of one block.
#[derive(Clone, Debug)]
struct Write {
    block: u64,
    begun: u64,
    /// Times that it was given to the transport.
    tries: u32,
    carried_out: Vec<u64>,
    answer: Option<(u64, Answer)>,
}

/// A read of one block, that succeeded.
#[derive(Clone, Copy, Debug)]
struct Seen {
    block: u64,
    begun: u64,
    ended: u64,
    tag: u64,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// By the tag that they write.
    writes: BTreeMap<u64, Write>,
    /// What each block held from when on.
    content: BTreeMap<u64, Vec<(u64, u64)>>,
    reads: Vec<Seen>,
}

/// A broken promise.
pub(crate) type Broken = (&'static str, String);

impl History {
    /// A write of a block was asked for, for the first time or again.
    pub(crate) fn writes(&mut self, now: u64, block: u64, tag: u64) {
        let new = Write { block, begun: now, tries: 0, carried_out: Vec::new(), answer: None };
        self.writes.entry(tag).or_insert(new).tries += 1;
    }

    /// A write was answered.
    pub(crate) fn answered(&mut self, now: u64, tag: u64, answer: Answer) -> Option<Broken> {
        let write = self.writes.get_mut(&tag)?;
        write.answer = Some((now, answer));
        let is_lost = answer == Answer::Done && write.carried_out.is_empty();
        is_lost.then(|| ("writes", format!("write {tag} of block {} was answered and never carried out", write.block)))
    }

    /// Whether a write of this tag was answered as unknown.
    pub(crate) fn is_unknown(&self, tag: u64) -> bool {
        self.writes.get(&tag).is_some_and(|write| matches!(write.answer, Some((_, Answer::Unknown))))
    }

    /// The target carries out a write of a block; `fence` is when the host takes writes for safe again, if it does not.
    pub(crate) fn carried_out(&mut self, now: u64, block: u64, tag: u64, fence: Option<u64>) -> Option<Broken> {
        self.content.entry(block).or_default().push((now, tag));
        let later = |answered: u64| {
            let mut others = self.writes.iter().filter(|(other, write)| **other != tag && write.block == block);
            others.any(|(_, write)| write.begun > answered && !write.carried_out.is_empty())
        };
        let what = format!("write {tag} of block {block}");
        let Some(write) = self.writes.get(&tag).filter(|write| write.block == block) else {
            return Some(("writes", format!("{what} was never asked for")));
        };
        let broken = match write.answer {
            _ if write.carried_out.len() >= sw_mem::index(write.tries.into()) => {
                Some(("writes", format!("{what} is carried out once more than it was asked for")))
            }
            Some((at, Answer::Done)) => Some(("writes", format!("{what} is carried out, and was answered at {at}"))),
            Some((at, Answer::Failed)) => Some(("writes", format!("{what} is carried out, and had failed at {at}"))),
            Some((at, Answer::Unknown)) if later(at) => {
                Some(("fence", format!("{what}, unknown since {at}, is carried out behind a later one")))
            }
            Some((at, Answer::Unknown)) if fence.is_none_or(|fence| now > fence) => {
                Some(("fence", format!("{what}, unknown since {at}, is carried out when writes are taken for safe")))
            }
            _ => None,
        };
        if let Some(write) = self.writes.get_mut(&tag) {
            write.carried_out.push(now);
        }
        broken
    }

    /// A read of a block gave `tag`.
    pub(crate) fn read(&mut self, (begun, now): (u64, u64), block: u64, tag: u64) -> Option<Broken> {
        self.reads.push(Seen { block, begun, ended: now, tag });
        let content = self.content.get(&block).map_or(&[][..], Vec::as_slice);
        let before = content.iter().take_while(|(at, _)| *at < begun).last().map_or(0, |(_, tag)| *tag);
        let mut during = content.iter().filter(|(at, _)| (begun..=now).contains(at));
        let is_current = before == tag || during.any(|(_, held)| *held == tag);
        (!is_current).then(|| ("reads", format!("a read of block {block} gives {tag}, and {before} was current")))
    }

    /// What a caller can see of it, judged by that alone.
    pub(crate) fn judge(&self) -> Option<Broken> {
        let blocks: std::collections::BTreeSet<u64> = self.writes.values().map(|write| write.block).collect();
        blocks.into_iter().find_map(|block| {
            let writes = self.writes.iter().filter(|(_, write)| write.block == block);
            let mut ops = vec![Op { is_write: true, tag: 0, begun: 0, ended: 0 }];
            ops.extend(writes.filter_map(|(tag, write)| {
                let ended = match write.answer {
                    Some((at, Answer::Done)) => at,
                    // It may have been carried out before it failed, in part of an operation.
                    Some((at, Answer::Failed)) if !write.carried_out.is_empty() => at,
                    Some((_, Answer::Failed)) => return None,
                    Some((_, Answer::Unknown)) | None => u64::MAX,
                };
                Some(Op { is_write: true, tag: *tag, begun: write.begun, ended })
            }));
            let reads = self.reads.iter().filter(|read| read.block == block);
            ops.extend(reads.map(|read| Op { is_write: false, tag: read.tag, begun: read.begun, ended: read.ended }));
            linearizable(&ops).err().map(|why| ("linearizable", format!("block {block}: {why}")))
        })
    }
}

/// An operation on one register. `ended` is `u64::MAX` for a write whose outcome is unknown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) is_write: bool,
    pub(crate) tag: u64,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// Whether a history of one register, of which each value is written once, can be put in an order that each operation agrees with.
///
/// Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 26(4), 1997, §4: the operations of a value make a zone, from the first end
/// to the last begin. Zones with the end first (the value was certainly there all the while) must not overlap, and none of the
/// others may lie within one of them. A write that nobody saw and that was not answered may have never been.
pub(crate) fn linearizable(ops: &[Op]) -> Result<(), String> {
    let mut zones: BTreeMap<u64, (u64, u64, usize)> = BTreeMap::new();
    for op in ops {
        let zone = zones.entry(op.tag).or_insert((u64::MAX, 0, 0));
        *zone = (zone.0.min(op.ended), zone.1.max(op.begun), zone.2 + 1);
    }
    for read in ops.iter().filter(|op| !op.is_write) {
        let write = ops.iter().find(|op| op.is_write && op.tag == read.tag);
        let write = write.ok_or_else(|| format!("{} was read and never written", read.tag))?;
        if read.ended < write.begun {
            return Err(format!("{} was read before it was written", read.tag));
        }
    }
    zones.retain(|_, (end, _, count)| *count > 1 || *end < u64::MAX);
    let all: Vec<(u64, u64, u64)> = zones.into_iter().map(|(tag, (end, begin, _))| (tag, end, begin)).collect();
    for (tag, end, begin) in all.iter().filter(|(_, end, begin)| end < begin) {
        for (other, first, last) in all.iter().filter(|(other, ..)| other != tag) {
            // The same for a zone that overlaps this one, and for one of the others that lies within it.
            if first < begin && end < last {
                return Err(format!("{tag} was there from {end} to {begin}, and {other} in between"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(tag: u64, begun: u64, ended: u64) -> Op {
        Op { is_write: true, tag, begun, ended }
    }

    fn read(tag: u64, begun: u64, ended: u64) -> Op {
        Op { is_write: false, tag, begun, ended }
    }

    #[test]
    fn histories_that_can_be_are_told_from_those_that_cannot() {
        let start = write(0, 0, 0);
        for good in [
            vec![start, write(1, 1, 2), read(1, 3, 4)],
            // Two at a time, in either order.
            vec![start, write(1, 1, 5), write(2, 2, 6), read(2, 7, 8)],
            vec![start, write(1, 1, 5), write(2, 2, 6), read(1, 7, 8)],
            // Unknown: seen late, or never.
            vec![start, write(1, 1, u64::MAX), write(2, 2, 3), read(2, 4, 5), read(1, 6, 7)],
            vec![start, write(1, 1, u64::MAX), write(2, 2, 3), read(2, 4, 5)],
            vec![start, write(1, 1, 9), read(0, 2, 3), read(1, 4, 5)],
        ] {
            assert_eq!(linearizable(&good), Ok(()), "{good:?}");
        }
        for bad in [
            // Stale, lost, from nowhere, from the future, and back again.
            vec![start, write(1, 1, 2), read(0, 3, 4)],
            vec![start, write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
            vec![start, read(7, 1, 2)],
            vec![start, read(1, 1, 2), write(1, 3, 4)],
            vec![start, write(1, 1, 9), write(2, 1, 9), read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)],
            vec![start, write(1, 1, 9), read(1, 2, 3), read(0, 4, 5)],
        ] {
            assert!(linearizable(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_write_of_unknown_outcome_may_come_late_and_not_behind_a_later_one() {
        let mut history = History::default();
        history.writes(1, 0, 10);
        assert_eq!(history.answered(2, 10, Answer::Unknown), None);
        let mut late = History::default();
        late.writes(1, 0, 10);
        late.answered(2, 10, Answer::Unknown);
        assert_eq!(history.carried_out(4, 0, 10, Some(5)), None);
        assert_eq!(late.carried_out(6, 0, 10, None).map(|(rule, _)| rule), Some("fence"));
        let mut behind = History::default();
        behind.writes(1, 0, 10);
        behind.answered(2, 10, Answer::Unknown);
        behind.writes(3, 0, 11);
        assert_eq!(behind.carried_out(4, 0, 11, None), None);
        assert_eq!(behind.carried_out(5, 0, 10, Some(9)).map(|(rule, _)| rule), Some("fence"));
        assert_eq!(behind.carried_out(6, 0, 11, None).map(|(rule, _)| rule), Some("writes"));
    }
}
