//! The way that bytes took, as reports show it.

use std::fmt;

use serde::Serialize;
use straightway::{ByPath, DataPath, Reason};

use crate::size::Bytes;

/// Bytes by who wrote them finally.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Landed {
    dma: u64,
    kernel_copy: u64,
    staged: u64,
}

impl From<ByPath> for Landed {
    fn from(bytes: ByPath) -> Self {
        Self { dma: bytes.dma, kernel_copy: bytes.kernel_copy, staged: bytes.staged }
    }
}

impl fmt::Display for Landed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, bytes) in [("dma", self.dma), ("kernel-copy", self.kernel_copy), ("staged", self.staged)] {
            if bytes > 0 {
                write!(f, "{separator}{name} {}", Bytes(bytes))?;
                separator = ", ";
            }
        }
        if separator.is_empty() { f.write_str("no bytes") } else { Ok(()) }
    }
}

/// Operations that went the same way for the same reason.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// Transport and landing of their bulk.
    pub route: String,
    /// How many.
    pub operations: u64,
    /// Their bytes, by who wrote them finally.
    pub bytes: Landed,
    /// Of those, bytes that passed through memory of the engine's.
    pub bounced: u64,
    /// Bytes that a CPU copied, once per copy.
    pub cpu_copied: u64,
    /// Code of why no better route was taken.
    pub reason: &'static str,
    /// The same for people.
    pub reason_text: &'static str,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.operations == 1 { "" } else { "s" };
        write!(
            f,
            "{} x{} operation{plural}: {}; bounced {}; {}: {}",
            self.route,
            self.operations,
            self.bytes,
            Bytes(self.bounced),
            self.reason,
            self.reason_text
        )
    }
}

/// Ways of many operations, equal ones added up. At most routes times reasons rows.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    route: straightway::Route,
    reason: Reason,
    operations: u64,
    bytes: ByPath,
    bounced: u64,
    cpu_copied: u64,
}

impl Ways {
    /// Those of one operation.
    pub fn of(path: &DataPath) -> Self {
        let mut ways = Self::default();
        ways.add(path);
        ways
    }

    /// Adds one operation.
    pub fn add(&mut self, path: &DataPath) {
        self.add_many(path, 1);
    }

    /// Adds operations that went the same way; `path` has their sums.
    pub fn add_many(&mut self, path: &DataPath, operations: u64) {
        let same = |row: &&mut Row| row.route == path.route && row.reason == path.reason;
        let fresh = Row {
            route: path.route,
            reason: path.reason,
            operations,
            bytes: path.bytes,
            bounced: path.bounced,
            cpu_copied: path.cpu_copied,
        };
        match self.rows.iter_mut().find(same) {
            Some(row) => row.merge(&fresh),
            None => self.rows.push(fresh),
        }
    }

    /// Adds those of another thread.
    pub fn join(&mut self, other: Ways) {
        for more in other.rows {
            match self.rows.iter_mut().find(|row| row.route == more.route && row.reason == more.reason) {
                Some(row) => row.merge(&more),
                None => self.rows.push(more),
            }
        }
    }

    /// All bytes, by who wrote them finally.
    pub fn bytes(&self) -> ByPath {
        let mut sum = ByPath::default();
        self.rows.iter().for_each(|row| sum += row.bytes);
        sum
    }

    /// Bytes that passed through memory of the engine's.
    pub fn bounced(&self) -> u64 {
        self.rows.iter().map(|row| row.bounced).sum()
    }

    /// Bytes that a CPU copied.
    pub fn cpu_copied(&self) -> u64 {
        self.rows.iter().map(|row| row.cpu_copied).sum()
    }

    /// For reports, the way of most bytes first.
    pub fn report(&self) -> Vec<Way> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.bytes.total()));
        rows.into_iter().map(Row::report).collect()
    }
}

impl Row {
    fn merge(&mut self, more: &Row) {
        self.operations += more.operations;
        self.bytes += more.bytes;
        self.bounced += more.bounced;
        self.cpu_copied += more.cpu_copied;
    }

    fn report(&self) -> Way {
        Way {
            route: self.route.to_string(),
            operations: self.operations,
            bytes: self.bytes.into(),
            bounced: self.bounced,
            cpu_copied: self.cpu_copied,
            reason: self.reason.code(),
            reason_text: self.reason.text(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use straightway::{Landing, Route};

    fn path(landing: Landing, bytes: u64, reason: Reason) -> DataPath {
        let mut by = ByPath::default();
        by.add(landing, bytes);
        DataPath { route: Route { transport: "t", landing }, bytes: by, bounced: 1, cpu_copied: 2, reason }
    }

    #[test]
    fn equal_ways_add_up_and_the_largest_comes_first() {
        let mut ways = Ways::default();
        ways.add(&path(Landing::Staged, 10, Reason::NoPeerPages));
        ways.add(&path(Landing::Dma, 100, Reason::Best));
        let mut other = Ways::default();
        other.add(&path(Landing::Dma, 5, Reason::Best));
        ways.join(other);
        let report = ways.report();
        assert_eq!(report.len(), 2);
        assert_eq!((report[0].operations, report[0].bytes.dma, report[0].reason), (2, 105, "BEST"));
        assert_eq!((ways.bytes().total(), ways.bounced(), ways.cpu_copied()), (115, 3, 6));
        assert!(report[1].to_string().contains("NO_P2PDMA"), "{}", report[1]);
    }
}
