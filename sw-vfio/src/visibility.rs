//! When bytes that were written into a BAR are there for work on its device. A class of each landing, known when the BAR is
//! opened; reports tell it, because no error would.
//!
//! The order of PCIe holds between two writes on one way. A controller writes data to the BAR and then its completion entry
//! to host memory: two ways from the first switch or root complex on, so that the entry may be seen while the data is still
//! in a buffer (PCI Express Base Specification 5.0 §2.4 "Transaction Ordering" orders what passes one port). A read by the
//! CPU comes by a third way, and proves no more. A read by the controller itself would follow its writes; no command of the
//! standard does that without storing something.

use core::fmt;

use sw_engine::Landing;

/// The class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Stores of the CPU, after which the copy engine read from the BAR: the read does not pass them, and its answer comes
    /// from the device. What is submitted to the device after the copy was told as complete finds the bytes.
    ReadBack,
    /// DMA of another function: complete says that the bytes were sent. Emulation shows them at once; for real switches and root
    /// complexes nothing is shown.
    Unproven,
}

impl Visibility {
    /// The class of bytes that come to a BAR so.
    pub(crate) const fn of(landing: Landing) -> Self {
        match landing {
            Landing::Dma => Self::Unproven,
            Landing::KernelCopy | Landing::Staged => Self::ReadBack,
        }
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadBack => "read-back",
            Self::Unproven => "unproven",
        }
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
