//! The namespaces of a controller that this process drives: which ones there are now, and which are others than before.

use core::sync::atomic::Ordering;
use std::sync::PoisonError;

use sw_engine::Error;

use crate::{
    bus::{Bus, Registers},
    controller::{Control, Controller},
    inquiry::{self, Known},
    wire::{
        identify::IdentifyController,
        regs::{self, Version},
    },
};

impl<B: Bus> Control<B> {
    /// Looks at all active namespaces.
    pub(super) fn identify_namespaces(&mut self, info: &IdentifyController) -> Result<(), Error> {
        let version = Version(self.admin.registers.read32(regs::VS));
        let known = Known { info, version, page_bytes_min: self.cap.page_bytes_min };
        let mut found = inquiry::namespaces(&mut self.admin, known)?;
        for namespace in &mut found {
            let earlier = self.namespaces.iter().find(|earlier| earlier.nsid == namespace.nsid);
            let same = earlier.filter(|earlier| namespace.continues(earlier));
            namespace.generation = same.map_or(self.scans, |earlier| earlier.generation);
        }
        self.namespaces = found;
        self.scans = self.scans.wrapping_add(1);
        Ok(())
    }
}

impl<B: Bus> Controller<B> {
    /// Looks at all namespaces again.
    ///
    /// # Errors
    /// What the controller says; the list is as it was then.
    pub fn rescan(&self) -> Result<(), Error> {
        self.control_up(|control, _| self.rescan_with(control))
    }

    pub(super) fn rescan_with(&self, control: &mut Control<B>) -> Result<(), Error> {
        let before = control.namespaces.clone();
        control.identify_namespaces(&self.facts.info)?;
        if control.namespaces != before {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            *published = control.namespaces.as_slice().into();
            drop(published);
            self.inventory.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
}
