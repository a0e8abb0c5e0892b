//! Measured rates of routes: what breaks a tie between two routes that are equally capable.
//!
//! Rates of all objects of an engine go into one row for each [`RateClass`], so a slow drive and a fast one behind one transport
//! are not taken for each other.

use crate::{
    object::Device,
    path::{Landing, TransportName},
};

/// Rows that are kept: for every device that is told apart, more than any machine has transports times landings.
const ROWS_MAX: usize = Device::COUNT as usize * 32;
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
    /// The device of the object. Rates of the page cache are of no device: one row has them all.
    pub device: Device,
}

impl RateClass {
    fn row(self) -> Self {
        let device = if self.resident { Device::default() } else { self.device };
        Self { device, ..self }
    }
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
        let class = class.row();
        if let Some(row) = self.rows.iter_mut().find(|row| row.0 == class) {
            row.1 = row.1 / (PAST + 1) * PAST + rate / (PAST + 1);
        } else if self.rows.len() < ROWS_MAX {
            self.rows.push((class, rate));
        }
    }

    /// Bytes per second, if it was measured.
    pub fn get(&self, class: RateClass) -> Option<u64> {
        let class = class.row();
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

    const CLASS: RateClass =
        RateClass { transport: "t", landing: Landing::Dma, face: Landing::Dma, resident: false, device: Device(0) };

    #[test]
    fn devices_have_rates_of_their_own_and_the_page_cache_has_one() {
        let mut table = RateTable::new();
        let [one, other, third] = [1, 2, 3].map(|device| RateClass { device: Device(device), ..CLASS });
        table.record(one, 1 << 20, 1_000_000);
        table.record(other, 1 << 20, 10_000_000);
        let (fast, slow) = (table.get(one).unwrap(), table.get(other).unwrap());
        assert_eq!((fast / slow, table.get(third)), (10, None));
        let cached = |class| RateClass { resident: true, ..class };
        table.record(cached(one), 1 << 20, 500_000);
        assert!(table.get(cached(one)).is_some() && table.get(cached(one)) == table.get(cached(other)));
        assert_eq!((table.get(one), table.rows().len()), (Some(fast), 3));
    }

    #[test]
    fn the_average_follows_and_short_measurements_are_ignored() {
        let class = CLASS;
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
