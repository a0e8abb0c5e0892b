//! What a controller and its namespaces say of themselves, asked over any admin queue: of a PCIe function, or of a fabric.
//!
//! Base, "Identify command"; NVM Command Set for Identify Namespace.

use std::borrow::Cow;

use sw_engine::{Error, ErrorKind, Verb};

use crate::{
    limits::TransferLimits,
    namespace::{Identity, Namespace, Unusable},
    status::{RetryDelays, Status},
    wire::{
        Command, DataPointer, IDENTIFY_BYTES, WireError,
        admin::{Identify, csi},
        identify::{
            ExtendedFormat, IdentifyController, IdentifyNamespace, MetadataVerdict, NAMESPACE_LIST_LEN,
            NamespaceDescriptors, namespace_list,
        },
        regs::Version,
    },
};

/// Active namespaces that are looked at: far above what drives have (Linux's limit for a sequential scan is 1,024 too).
pub const NAMESPACES_MAX: usize = 1024;

/// Bytes of data of one admin command at most: one page, which every page of Identify and every log entry fits.
pub const ADMIN_DATA_BYTES: usize = 4096;

/// The data of an admin command, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// None.
    None,
    /// The controller writes it.
    In(usize),
    /// The controller reads it.
    Out(usize),
}

/// The end of an admin command.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The controller's word.
    pub status: Status,
    /// DW0 of the completion.
    pub dw0: u32,
}

/// Runs admin commands, one at a time, whose data goes through one page.
pub trait AdminQueue {
    /// The controller in the operator's words.
    fn name(&self) -> &str;

    /// Runs a command and waits for it.
    ///
    /// # Errors
    /// There is no answer, or it broke a rule. A status is no error here.
    fn run(&mut self, data: Data, command: impl FnOnce(DataPointer) -> Command) -> Result<Answer, Error>;

    /// A copy of the page that the last command filled.
    fn page(&self) -> [u8; ADMIN_DATA_BYTES];

    /// An error of this controller.
    fn error(&self, kind: ErrorKind, text: impl Into<Cow<'static, str>>) -> Error {
        Error::new(kind, Verb::Setup).at(self.name()).detail(text)
    }

    /// As [`AdminQueue::run`], but a status other than success is an error that names `what`.
    ///
    /// # Errors
    /// As [`AdminQueue::run`]; what the status says.
    fn expect(
        &mut self,
        what: &str,
        data: Data,
        command: impl FnOnce(DataPointer) -> Command,
    ) -> Result<Answer, Error> {
        let answer = self.run(data, command)?;
        self.succeeded(what, answer)
    }

    /// An answer with success; another status is an error that names `what`.
    ///
    /// # Errors
    /// What the status says.
    fn succeeded(&self, what: &str, answer: Answer) -> Result<Answer, Error> {
        match answer.status.fault(&RetryDelays::default()) {
            None => Ok(answer),
            Some(fault) => {
                let error =
                    Error::from_fault(fault, Verb::Setup).at(self.name()).detail(format!("{what}: {}", answer.status));
                Err(match answer.status.remedy() {
                    Some(remedy) => error.remedy(remedy),
                    None => error,
                })
            }
        }
    }
}

/// Runs an Identify and gives the page.
fn identify(admin: &mut impl AdminQueue, what: Identify, name: &str) -> Result<[u8; IDENTIFY_BYTES], Error> {
    admin.expect(name, Data::In(IDENTIFY_BYTES), |data| Command::identify(what, data))?;
    Ok(admin.page())
}

fn broken(admin: &impl AdminQueue, cause: WireError) -> Error {
    admin
        .error(ErrorKind::Protocol, format!("the controller's data is not what it should be: {cause}"))
        .remedy("update the firmware of the drive, or the software of the target")
        .caused_by(cause)
}

/// Identify Controller. The page stays for whoever wants more of it.
///
/// # Errors
/// As [`AdminQueue::expect`]; `Protocol` for data that cannot be.
pub fn identify_controller(admin: &mut impl AdminQueue) -> Result<IdentifyController, Error> {
    let page = identify(admin, Identify::Controller, "identify controller")?;
    IdentifyController::decode(&page).map_err(|cause| broken(admin, cause))
}

/// What is known of a controller whose namespaces are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Identify Controller.
    pub info: &'a IdentifyController,
    /// VS.
    pub version: Version,
    /// CAP.MPSMIN in bytes.
    pub page_bytes_min: u32,
}

/// Looks at all active namespaces. One that cannot be used is kept with its reason; one that went away meanwhile is left out.
///
/// # Errors
/// As [`AdminQueue::expect`]; `Protocol` for lists that cannot be.
pub fn namespaces(admin: &mut impl AdminQueue, of: Known<'_>) -> Result<Vec<Namespace>, Error> {
    let mut found = Vec::new();
    for nsid in active_namespaces(admin, of)? {
        found.extend(identify_namespace(admin, nsid, of)?);
    }
    Ok(found)
}

fn active_namespaces(admin: &mut impl AdminQueue, of: Known<'_>) -> Result<Vec<u32>, Error> {
    let most = NAMESPACES_MAX;
    if of.version < Version::V1_1 {
        // No list yet: every identifier up to NN may be one.
        return Ok((1..=of.info.namespaces).take(most).collect());
    }
    let mut all: Vec<u32> = Vec::new();
    while all.len() < most {
        let after = all.last().copied().unwrap_or(0);
        let page = identify(admin, Identify::ActiveNamespaces { after }, "identify active namespaces")?;
        let list = namespace_list("active namespaces", &page, after).map_err(|cause| broken(admin, cause))?;
        let full = list.len() == NAMESPACE_LIST_LEN;
        all.extend(list);
        if !full {
            break;
        }
    }
    all.truncate(most);
    Ok(all)
}

fn identify_namespace(admin: &mut impl AdminQueue, nsid: u32, of: Known<'_>) -> Result<Option<Namespace>, Error> {
    let controller = of.info;
    let names = if of.version >= Version::V1_3 { descriptors(admin, nsid)? } else { NamespaceDescriptors::default() };
    let answer = admin.run(Data::In(IDENTIFY_BYTES), |data| Command::identify(Identify::Namespace { nsid }, data))?;
    if !answer.status.is_success() {
        // Gone since the list was read, or of a command set that this structure does not describe.
        return Ok(None);
    }
    // One odd namespace must not keep the others from use.
    let odd = |why| Ok(Some(Namespace::odd(nsid, controller.serial.as_str(), &names, why)));
    let info = match IdentifyNamespace::decode(&admin.page()) {
        Ok(Some(info)) => info,
        Ok(None) => return Ok(None),
        Err(cause) => return odd(Unusable::Odd(cause)),
    };
    let extended = match controller.extended_formats().then(|| extended_format(admin, nsid, info.format.index)) {
        None => None,
        Some(told) => match told? {
            Ok(extended) => Some(extended),
            Err(why) => return odd(why),
        },
    };
    let metadata = MetadataVerdict::of(&info, extended);
    let limits = TransferLimits::new(controller, of.page_bytes_min, &info);
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
fn descriptors(admin: &mut impl AdminQueue, nsid: u32) -> Result<NamespaceDescriptors, Error> {
    let what = Identify::NamespaceDescriptors { nsid };
    let answer = admin.run(Data::In(IDENTIFY_BYTES), |data| Command::identify(what, data))?;
    if !answer.status.is_success() {
        return Ok(NamespaceDescriptors::default());
    }
    Ok(NamespaceDescriptors::decode(&admin.page()).unwrap_or_default())
}

/// What CNS 05h says about the format in use. Without it guards of other sizes would pass for plain: the namespace
/// cannot be used then.
fn extended_format(
    admin: &mut impl AdminQueue,
    nsid: u32,
    index: u8,
) -> Result<Result<ExtendedFormat, Unusable>, Error> {
    let what = Identify::CommandSetNamespace { nsid, csi: csi::NVM };
    let answer = admin.run(Data::In(IDENTIFY_BYTES), |data| Command::identify(what, data))?;
    if !answer.status.is_success() {
        return Ok(Err(Unusable::FormatNotTold));
    }
    Ok(ExtendedFormat::decode(&admin.page(), index).map_err(Unusable::Odd))
}
