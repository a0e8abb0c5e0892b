//! Faults as data: match on what an I/O is, act on some of the matches.

use sw_engine::{Fault, seam::IoKind};

/// Which I/Os a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct On {
    /// Only this kind.
    pub kind: Option<IoKind>,
    /// Only those on this disk that touch this range: offset and length in bytes.
    pub range: Option<(u64, u64)>,
    /// Every n-th match; 0 and 1 mean each.
    pub every: u64,
    /// Matches to act on at most; 0 means no end.
    pub times: u64,
}

/// What a rule does with an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Part of the bytes move, then this fault.
    Fail(Fault),
    /// This many blocks fewer than asked, at least none; says so.
    Short {
        /// Blocks of the face.
        blocks: u32,
    },
    /// Moves nothing and reports success with zero bytes.
    Zero,
    /// Claims one block more than asked: a lie.
    Overclaim,
    /// Takes this many nanoseconds longer.
    Slow(u64),
    /// Never ends by itself.
    Lost,
    /// Ends, and after this many nanoseconds the same end comes again: a lie.
    Twice(u64),
    /// Ends, and an end comes for a token that nobody gave out: a lie.
    Foreign,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Which I/Os.
    pub on: On,
    /// What happens to them.
    pub act: Act,
}

/// The table with its counts. The first rule that fires decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultTable {
    rows: Vec<(FaultRule, u64, u64)>,
    /// Off: nothing fires any more (the liveness phase).
    pub(crate) quiet: bool,
}

impl FaultTable {
    pub(crate) fn new(rules: &[FaultRule]) -> Self {
        Self { rows: rules.iter().map(|rule| (*rule, 0, 0)).collect(), quiet: false }
    }

    pub(crate) fn decide(&mut self, kind: IoKind, offset: u64, len: u64) -> Option<Act> {
        if self.quiet {
            return None;
        }
        for (rule, seen, acted) in &mut self.rows {
            let on = &rule.on;
            let in_range = |(at, span): (u64, u64)| offset < at.saturating_add(span) && at < offset.saturating_add(len);
            if on.kind.is_some_and(|only| only != kind) || !on.range.is_none_or(in_range) {
                continue;
            }
            *seen += 1;
            if seen.is_multiple_of(on.every.max(1)) && (on.times == 0 || *acted < on.times) {
                *acted += 1;
                return Some(rule.act);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_fires_on_its_matches_only() {
        let on = On { kind: Some(IoKind::Read), range: Some((4096, 4096)), every: 2, times: 1 };
        let mut table = FaultTable::new(&[FaultRule { on, act: Act::Lost }]);
        assert_eq!(table.decide(IoKind::Write, 4096, 1), None);
        assert_eq!(table.decide(IoKind::Read, 0, 4096), None);
        assert_eq!(table.decide(IoKind::Read, 0, 4097), None);
        assert_eq!(table.decide(IoKind::Read, 8191, 1), Some(Act::Lost));
        assert_eq!([(); 4].map(|()| table.decide(IoKind::Read, 5000, 1)), [None; 4]);
        table = FaultTable::new(&[FaultRule { on: On::default(), act: Act::Zero }]);
        table.quiet = true;
        assert_eq!(table.decide(IoKind::Read, 0, 1), None);
    }
}
