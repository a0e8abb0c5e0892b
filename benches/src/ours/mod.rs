//! Our side: the product as a program would use it, each job in a worker process.

pub(crate) mod c_call;
pub(crate) mod cufile;
pub(crate) mod cufile_library;
pub(crate) mod disk;
pub(crate) mod gpu;
pub(crate) mod index;
pub(crate) mod load;
pub(crate) mod null;
pub(crate) mod nvme;
pub(crate) mod nvme_tcp;
pub(crate) mod nvme_transport;
pub(crate) mod openclose;
pub(crate) mod order;
pub(crate) mod reads;
pub(crate) mod s3;
pub(crate) mod samples;
pub(crate) mod save;

use straightway::{ByPath, DataPath, Route};

use crate::report::Sample;

/// Adds up the paths of many completions for the report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    route: Option<Route>,
    reason: Option<&'static str>,
    bytes: ByPath,
    bounced: u64,
    cpu_copied: u64,
    /// Operations whose route was not that of the first.
    others: u64,
}

impl Paths {
    /// Adds one completion's path.
    #[inline]
    pub(crate) fn add(&mut self, path: &DataPath) {
        if self.route.is_none() {
            self.route = Some(path.route);
            self.reason = Some(path.reason.code());
        } else if self.reason != Some(path.reason.code()) {
            self.others += 1;
        }
        self.bytes.dma += path.bytes.dma;
        self.bytes.kernel_copy += path.bytes.kernel_copy;
        self.bytes.staged += path.bytes.staged;
        self.bounced += path.bounced;
        self.cpu_copied += path.cpu_copied;
    }

    /// Writes the sums into a sample.
    pub(crate) fn tell(&self, sample: &mut Sample) {
        sample.path = Some(serde_json::json!({
            "route": self.route.map(|route| route.to_string()),
            "reason": self.reason,
            "operations_with_another_reason": self.others,
            "bytes": { "dma": self.bytes.dma, "kernel_copy": self.bytes.kernel_copy, "staged": self.bytes.staged },
            "bounced_bytes": self.bounced,
            "cpu_copied_bytes": self.cpu_copied,
        }));
    }
}

/// `value` per 1,000 of `count`.
#[expect(clippy::cast_precision_loss, reason = "counts of one run stay far below 2^52")]
pub(crate) fn per_thousand(value: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { value as f64 * 1000.0 / count as f64 }
}
