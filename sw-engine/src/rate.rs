//! Measured rates of routes: what breaks a tie between two routes that are equally capable.
//!
//! Rates of all objects of an engine go into one row for each [`RateClass`]: with a fast and a slow drive behind one transport
//! it is the rate of their mix.

use crate::path::{Landing, TransportName};

/// Routes whose rates are kept; more than any machine has transports times landings.
const ROUTES_MAX: usize = 32;
/// Weight of the past in the moving average: 7 parts of 8.
const PAST: u64 = 7;

/// What is measured apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateClass {
    /// The transport.
    pub transport: TransportName,
    /// The landing.
    pub landing: Landing,
    /// Who fills memory on the object's face: the device or the kernel. For what lands directly it is the landing; a slab can
    /// be filled by either, at different rates.
    pub face: Landing,
    /// Whether the source was in the page cache.
    pub resident: bool,
}

/// Moving averages of bytes per second, in integers so that decisions replay exactly.
#[derive(Clone, Debug, Default)]
pub struct RateTable {
    rows: Vec<(RateClass, u64)>,
}

impl RateTable {
    /// An empty table: nothing was measured.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a measurement: `bytes` in `nanos`. Too short ones (under 64 KiB or 0 ns) say nothing about a rate.
    pub fn record(&mut self, class: RateClass, bytes: u64, nanos: u64) {
        if bytes < 64 << 10 || nanos == 0 {
            return;
        }
        let rate = u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(nanos)).unwrap_or(u64::MAX);
        if let Some(row) = self.rows.iter_mut().find(|row| row.0 == class) {
            row.1 = row.1 / (PAST + 1) * PAST + rate / (PAST + 1);
        } else if self.rows.len() < ROUTES_MAX {
            self.rows.push((class, rate));
        }
    }

    /// Bytes per second, if it was measured.
    pub fn get(&self, class: RateClass) -> Option<u64> {
        self.rows.iter().find(|row| row.0 == class).map(|row| row.1)
    }

    /// All rows, for reports.
    pub fn rows(&self) -> &[(RateClass, u64)] {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_and_short_measurements_are_ignored() {
        let class = RateClass { transport: "t", landing: Landing::Dma, face: Landing::Dma, resident: false };
        let mut table = RateTable::new();
        table.record(class, 100, 1);
        assert_eq!(table.get(class), None);
        table.record(class, 1 << 20, 1_000_000);
        let first = table.get(class).unwrap();
        table.record(class, 1 << 20, 2_000_000);
        let second = table.get(class).unwrap();
        assert!(second < first && second > first / 2, "{first} {second}");
    }
}
