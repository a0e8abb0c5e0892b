//! Identify: the controller, its namespaces and their names.
//!
//! Base, "Identify command"; NVM Command Set for Identify Namespace.

use core::sync::atomic::Ordering;
use std::sync::PoisonError;

use sw_engine::{Error, ErrorKind};

use crate::{
    bus::{Bus, Registers},
    controller::{Control, Controller, admin::Data},
    limits::TransferLimits,
    namespace::{Identity, Namespace, Unusable},
    wire::{
        Command, IDENTIFY_BYTES, WireError,
        admin::{Identify, csi},
        identify::{
            ExtendedFormat, IdentifyController, IdentifyNamespace, MetadataVerdict, NAMESPACE_LIST_LEN,
            NamespaceDescriptors, namespace_list,
        },
        regs::{self, Version},
    },
};

/// Active namespaces that are looked at: far above what drives have (Linux's limit for a sequential scan is 1,024 too).
pub const NAMESPACES_MAX: usize = 1024;

impl<B: Bus> Control<B> {
    /// Runs an Identify and gives the page.
    fn identify(&mut self, what: Identify, name: &str) -> Result<[u8; IDENTIFY_BYTES], Error> {
        self.admin.expect(name, Data::In(IDENTIFY_BYTES), |data| Command::identify(what, data))?;
        Ok(self.admin.page())
    }

    fn broken(&self, cause: WireError) -> Error {
        self.admin
            .error(ErrorKind::Protocol, format!("the controller's data is not what it should be: {cause}"))
            .remedy("update the drive's firmware")
            .caused_by(cause)
    }

    pub(super) fn identify_controller(&mut self) -> Result<IdentifyController, Error> {
        let page = self.identify(Identify::Controller, "identify controller")?;
        IdentifyController::decode(&page).map_err(|cause| self.broken(cause))
    }

    /// Looks at all active namespaces. One that cannot be used is kept with its reason; one that went away meanwhile is
    /// left out.
    pub(super) fn identify_namespaces(&mut self, info: &IdentifyController) -> Result<(), Error> {
        let version = Version(self.admin.registers.read32(regs::VS));
        let mut found = Vec::new();
        for nsid in self.active_namespaces(info, version)? {
            if let Some(mut namespace) = self.identify_namespace(nsid, info, version)? {
                let earlier = self.namespaces.iter().find(|earlier| earlier.nsid == nsid);
                let same = earlier.filter(|earlier| namespace.continues(earlier));
                namespace.generation = same.map_or(self.scans, |earlier| earlier.generation);
                found.push(namespace);
            }
        }
        self.namespaces = found;
        self.scans = self.scans.wrapping_add(1);
        Ok(())
    }

    fn active_namespaces(&mut self, info: &IdentifyController, version: Version) -> Result<Vec<u32>, Error> {
        let most = NAMESPACES_MAX;
        if version < Version::V1_1 {
            // No list yet: every identifier up to NN may be one.
            return Ok((1..=info.namespaces).take(most).collect());
        }
        let mut all: Vec<u32> = Vec::new();
        while all.len() < most {
            let after = all.last().copied().unwrap_or(0);
            let page = self.identify(Identify::ActiveNamespaces { after }, "identify active namespaces")?;
            let list = namespace_list("active namespaces", &page, after).map_err(|cause| self.broken(cause))?;
            let full = list.len() == NAMESPACE_LIST_LEN;
            all.extend(list);
            if !full {
                break;
            }
        }
        all.truncate(most);
        Ok(all)
    }

    fn identify_namespace(
        &mut self,
        nsid: u32,
        controller: &IdentifyController,
        version: Version,
    ) -> Result<Option<Namespace>, Error> {
        let names = if version >= Version::V1_3 { self.descriptors(nsid)? } else { NamespaceDescriptors::default() };
        let answer =
            self.admin.run(Data::In(IDENTIFY_BYTES), |data| Command::identify(Identify::Namespace { nsid }, data))?;
        if !answer.status.is_success() {
            // Gone since the list was read, or of a command set that this structure does not describe.
            return Ok(None);
        }
        // One odd namespace must not keep the others from use.
        let odd = |why| Ok(Some(Namespace::odd(nsid, controller.serial.as_str(), &names, why)));
        let info = match IdentifyNamespace::decode(&self.admin.page()) {
            Ok(Some(info)) => info,
            Ok(None) => return Ok(None),
            Err(cause) => return odd(Unusable::Odd(cause)),
        };
        let extended = match controller.extended_formats().then(|| self.extended_format(nsid, info.format.index)) {
            None => None,
            Some(told) => match told? {
                Ok(extended) => Some(extended),
                Err(why) => return odd(why),
            },
        };
        let metadata = MetadataVerdict::of(&info, extended);
        let limits = TransferLimits::new(controller, self.cap.page_bytes_min, &info);
        let unusable = match (names.csi.unwrap_or(csi::NVM), metadata, limits) {
            (csi::NVM, MetadataVerdict::Refused(reason), _) => Some(Unusable::Metadata(reason)),
            (csi::NVM, _, None) => Some(Unusable::Limits),
            (csi::NVM, _, Some(_)) => None,
            (other, ..) => Some(Unusable::CommandSet(other)),
        };
        let identity = Identity::of(nsid, controller.serial.as_str(), &info, &names);
        let limits = limits.filter(|_| unusable.is_none());
        Ok(Some(Namespace { nsid, info, metadata, limits, identity, unusable, generation: 0 }))
    }

    /// Names beyond those of Identify Namespace. A controller that refuses or garbles the list has none: the names in
    /// Identify Namespace serve then, as in Linux (`nvme_identify_ns_descs`).
    fn descriptors(&mut self, nsid: u32) -> Result<NamespaceDescriptors, Error> {
        let what = Identify::NamespaceDescriptors { nsid };
        let answer = self.admin.run(Data::In(IDENTIFY_BYTES), |data| Command::identify(what, data))?;
        if !answer.status.is_success() {
            return Ok(NamespaceDescriptors::default());
        }
        Ok(NamespaceDescriptors::decode(&self.admin.page()).unwrap_or_default())
    }

    /// What CNS 05h says about the format in use. Without it guards of other sizes would pass for plain: the namespace
    /// cannot be used then.
    fn extended_format(&mut self, nsid: u32, index: u8) -> Result<Result<ExtendedFormat, Unusable>, Error> {
        let what = Identify::CommandSetNamespace { nsid, csi: csi::NVM };
        let answer = self.admin.run(Data::In(IDENTIFY_BYTES), |data| Command::identify(what, data))?;
        if !answer.status.is_success() {
            return Ok(Err(Unusable::FormatNotTold));
        }
        Ok(ExtendedFormat::decode(&self.admin.page(), index).map_err(Unusable::Odd))
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
