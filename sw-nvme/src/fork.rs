//! Whether this process drives the devices, or is a forked copy of the one that does.
//!
//! A child inherits registers and descriptors of the very same device, but its rings are copies that the device does not
//! know. Whatever it did in good order would be done to its parent's device.

use sw_mem::ForkMark;

#[derive(Debug, Default)]
pub(crate) struct Origin {
    mark: ForkMark,
    /// Unit tests are not forked.
    #[cfg(test)]
    pretended: std::sync::atomic::AtomicBool,
}

impl Origin {
    /// Whether this is a child of the process that made it.
    pub(crate) fn is_elsewhere(&self) -> bool {
        #[cfg(test)]
        if self.pretended.load(std::sync::atomic::Ordering::Relaxed) {
            return true;
        }
        self.mark.is_child()
    }

    #[cfg(test)]
    pub(crate) fn pretend_child(&self) {
        self.pretended.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
