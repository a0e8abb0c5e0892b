//! Giving a function to vfio-pci and back: as a plan that can be read before it is run, and undone.
//!
//! ```text
//!   plan_bind ─► refuses what is in use ─► BindPlan (steps as text) ─► run ─► each step, undone in reverse if one fails
//!   plan_unbind ─► refuses what a process has open ─► the driver that was there before, from the record in /run/straightway
//! ```

use core::fmt;
use std::os::fd::OwnedFd;

use sw_engine::{Error, ErrorKind, PciAddress, Verb};

use crate::{
    fault,
    inventory::{self, FunctionFacts, Use},
    sysfs::Sysfs,
};

/// The driver that user space drives functions through.
pub const VFIO_PCI: &str = "vfio-pci";
/// Where it is written down who drove a function before. Goes with a restart, as the binding does.
const RECORDS: &str = "run/straightway/bound";
/// In a record: nobody drove it.
const NOBODY: &str = "-";
/// Uses that one refusal names.
const USES_SHOWN: usize = 8;
const PROBE: &str = "sys/bus/pci/drivers_probe";

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes down which driver has the function.
    Record(Option<String>),
    /// Says which driver may take the function; `None`: whichever knows it.
    Override(Option<String>),
    /// Takes the function from its driver.
    Unbind(String),
    /// Gives the function to a driver by name.
    Bind(String),
    /// Lets the kernel look for a driver.
    Probe,
    /// Removes the record.
    Forget,
}

/// What will be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindPlan {
    address: PciAddress,
    before: Option<String>,
    /// Who should have it afterwards; `None`: nobody in particular.
    after: Option<String>,
    steps: Vec<Step>,
}

/// Who writes; the tests have one that acts as the kernel does.
pub(crate) trait Kernel {
    fn write(&self, path: &str, text: &str) -> Result<(), i32>;
}

impl Kernel for Sysfs {
    fn write(&self, path: &str, text: &str) -> Result<(), i32> {
        Sysfs::write(self, path, text)
    }
}

fn record(address: PciAddress) -> String {
    format!("{RECORDS}/{address}")
}

fn refused(kind: ErrorKind, address: PciAddress, detail: impl Into<String>) -> Error {
    Error::new(kind, Verb::Setup).at(address.to_string()).detail(detail.into())
}

/// Plans to give a function to vfio-pci. An empty plan: vfio-pci has it.
///
/// # Errors
/// `InUse` if a namespace is mounted, held, swap, exported or open in a process that this user may see, or if another function of its IOMMU group is driven by the kernel;
/// `Unsupported` without vfio-pci or an IOMMU; `WrongKind` for a bridge; `NoDevice`.
pub fn plan_bind(sysfs: &Sysfs, address: PciAddress) -> Result<BindPlan, Error> {
    sysfs.expect_function(address)?;
    let function = inventory::look(sysfs, address);
    if function.is_bridge() {
        return Err(refused(ErrorKind::WrongKind, address, "it is a bridge: the kernel needs it"));
    }
    expect_unused(address, function.uses())?;
    expect_unused(address, &inventory::openers(sysfs, &function, &[]))?;
    if !sysfs.exists(&format!("sys/bus/pci/drivers/{VFIO_PCI}")) {
        return Err(refused(ErrorKind::Unsupported, address, "the kernel has no vfio-pci driver loaded")
            .remedy("load it: modprobe vfio-pci"));
    }
    let noiommu = sysfs.read("sys/module/vfio/parameters/enable_unsafe_noiommu_mode").is_some_and(|on| on == "Y");
    if function.group.is_none() && !noiommu {
        return Err(refused(ErrorKind::Unsupported, address, "it is behind no IOMMU")
            .remedy("switch the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on"));
    }
    check_group(sysfs, &function)?;
    let before = function.driver;
    let mut plan = BindPlan { address, before: before.clone(), after: Some(VFIO_PCI.into()), steps: Vec::new() };
    if before.as_deref() != Some(VFIO_PCI) {
        plan.steps.extend([Step::Record(before.clone()), Step::Override(Some(VFIO_PCI.into()))]);
        plan.steps.extend(before.map(Step::Unbind));
        plan.steps.push(Step::Probe);
    }
    Ok(plan)
}

fn expect_unused<'a>(address: PciAddress, uses: impl IntoIterator<Item = &'a Use>) -> Result<(), Error> {
    let mut uses = uses.into_iter().peekable();
    if uses.peek().is_none() { Ok(()) } else { Err(in_use(address, uses)) }
}

fn in_use<'a>(address: PciAddress, uses: impl IntoIterator<Item = &'a Use>) -> Error {
    let uses: Vec<String> = uses.into_iter().take(USES_SHOWN).map(ToString::to_string).collect();
    refused(ErrorKind::InUse, address, uses.join(", "))
        .remedy("unmount it, stop who has it open, or take it out of use, first")
}

/// A group is given to user space as a whole: VFIO refuses it while the kernel drives one of its functions.
fn check_group(sysfs: &Sysfs, function: &FunctionFacts) -> Result<(), Error> {
    let others = function.neighbours.iter().map(|address| inventory::look(sysfs, *address));
    let driven = others.filter(|other| !other.is_bridge());
    let driven = driven.filter_map(|other| other.driver.map(|driver| (other.address, driver)));
    let driven: Vec<String> = driven
        .filter(|(_, driver)| driver != VFIO_PCI)
        .map(|(address, driver)| format!("{address} ({driver})"))
        .collect();
    if driven.is_empty() {
        return Ok(());
    }
    let group = function.group.as_deref().unwrap_or("?");
    let detail = format!("IOMMU group {group} also has {}, driven by the kernel", driven.join(", "));
    Err(refused(ErrorKind::InUse, function.address, detail)
        .remedy("unbind those too, or move the device to a slot with a group of its own"))
}

/// Plans to give a function back to the driver that had it before, or to whichever knows it.
///
/// # Errors
/// `InUse` if a process has it open: the kernel would wait for that process; `ApiMisuse` if vfio-pci does not have it.
pub fn plan_unbind(sysfs: &Sysfs, address: PciAddress) -> Result<BindPlan, Error> {
    sysfs.expect_function(address)?;
    let before = sysfs.driver(address);
    if before.as_deref() != Some(VFIO_PCI) {
        let has = before.map_or_else(|| "no driver has it".into(), |driver| format!("{driver} has it"));
        return Err(refused(ErrorKind::ApiMisuse, address, format!("{has}, not vfio-pci")));
    }
    expect_closed(sysfs, address)?;
    let told = sysfs.read(&record(address));
    let mut steps = vec![Step::Override(None), Step::Unbind(VFIO_PCI.into())];
    let after = match told.as_deref() {
        // A driver that is not loaded any more: whichever knows it.
        Some(driver) if driver != NOBODY && sysfs.exists(&format!("sys/bus/pci/drivers/{driver}")) => {
            steps.push(Step::Bind(driver.into()));
            Some(driver.to_owned())
        }
        Some(NOBODY) => None,
        _ => {
            steps.push(Step::Probe);
            None
        }
    };
    if told.is_some() {
        steps.push(Step::Forget);
    }
    Ok(BindPlan { address, before, after, steps })
}

/// An error if a process has the function open through VFIO: the kernel would wait for that process.
fn expect_closed(sysfs: &Sysfs, address: PciAddress) -> Result<(), Error> {
    let Some(owner) = owner(sysfs, address) else { return Ok(()) };
    Err(refused(ErrorKind::InUse, address, format!("process {owner} has it open")).remedy("stop that process first"))
}

/// A process that has the function open through VFIO, as far as this user may see.
pub(crate) fn owner(sysfs: &Sysfs, address: PciAddress) -> Option<u32> {
    let files = sysfs.group(address).map(|group| group.file()).into_iter().chain(sysfs.cdev(address));
    files.flat_map(|file| inventory::holders_of(sysfs, &file)).next()
}

impl BindPlan {
    /// The function.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Who has it before.
    pub fn before(&self) -> Option<&str> {
        self.before.as_deref()
    }

    /// What will be done; nothing if everything is as wanted.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Does it, and looks whether the function is where it should be. If a step fails, what was done is undone. First it
    /// looks again who uses the function, since time may have gone by, and keeps its namespaces from being mounted meanwhile.
    ///
    /// # Errors
    /// `InUse` or `Changed`: it is not as it was when this was planned, and nothing was done. The kernel's refusal, with what became of the function; `PermissionDenied` for who may not.
    pub fn run(&self, sysfs: &Sysfs) -> Result<(), Error> {
        self.run_on(sysfs, sysfs)
    }

    pub(crate) fn run_on(&self, sysfs: &Sysfs, kernel: &dyn Kernel) -> Result<(), Error> {
        let mut held = self.look_again(sysfs)?;
        let mut done = 0;
        let failed = self.steps.iter().find_map(|step| match self.step(sysfs, kernel, step) {
            Ok(()) => {
                done += 1;
                if matches!(step, Step::Unbind(_)) {
                    // The block devices are gone; a descriptor would keep what is left of them.
                    held.clear();
                }
                None
            }
            Err(errno) => Some(fault::error(errno, Verb::Setup, self.address.to_string(), &self.told(step))),
        });
        let failed = failed.or_else(|| self.misplaced(sysfs));
        let Some(error) = failed else { return Ok(()) };
        let remedy = match self.undo(sysfs, kernel, done) {
            Ok(()) if error.kind() == ErrorKind::PermissionDenied => "run it as root; everything is as it was before",
            Ok(()) => "everything is as it was before",
            Err(_) => {
                "and undoing it failed, too: look at the kernel log, then write the address to /sys/bus/pci/drivers_probe"
            }
        };
        Err(error.remedy(remedy))
    }

    /// Whether what was planned may still be done. With the block devices of the function, held for this process alone.
    fn look_again(&self, sysfs: &Sysfs) -> Result<Vec<OwnedFd>, Error> {
        if self.steps.is_empty() {
            return Ok(Vec::new());
        }
        sysfs.expect_function(self.address)?;
        let function = inventory::look(sysfs, self.address);
        if function.driver != self.before {
            let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".into());
            let detail = format!("{} has it now, not {}", name(&function.driver), name(&self.before));
            return Err(refused(ErrorKind::Changed, self.address, detail).remedy("plan it again"));
        }
        if self.before.as_deref() == Some(VFIO_PCI) {
            expect_closed(sysfs, self.address)?;
            return Ok(Vec::new());
        }
        check_group(sysfs, &function)?;
        expect_unused(self.address, function.uses())?;
        let held = inventory::hold(sysfs, &function).map_err(|busy| in_use(self.address, [&busy]))?;
        // After that: whoever opens it from now on gets a device that is about to go, but nobody who has it is missed.
        expect_unused(self.address, &inventory::openers(sysfs, &function, &held))?;
        Ok(held)
    }

    /// An error if another driver has the function than was planned.
    fn misplaced(&self, sysfs: &Sysfs) -> Option<Error> {
        let has = sysfs.driver(self.address);
        let right = self.after.is_none() || has == self.after;
        (!right).then(|| {
            let has = has.unwrap_or_else(|| "no driver".into());
            refused(ErrorKind::Busy, self.address, format!("{has} has it afterwards; the kernel log may say why"))
        })
    }

    fn told(&self, step: &Step) -> String {
        Told(self.address, step).to_string()
    }

    fn step(&self, sysfs: &Sysfs, kernel: &dyn Kernel, step: &Step) -> Result<(), i32> {
        let address = self.address.to_string();
        let io = |done: std::io::Result<()>| done.map_err(|error| crate::sys::code(&error));
        match step {
            Step::Record(driver) => {
                io(std::fs::create_dir_all(sysfs.path(RECORDS)))?;
                io(std::fs::write(sysfs.path(&record(self.address)), driver.as_deref().unwrap_or(NOBODY)))
            }
            Step::Forget => io(std::fs::remove_file(sysfs.path(&record(self.address)))),
            Step::Override(driver) => {
                let path = format!("{}/driver_override", Sysfs::function(self.address));
                // An empty line clears it (Linux `Documentation/ABI/testing/sysfs-bus-pci`).
                kernel.write(&path, driver.as_deref().unwrap_or("\n"))
            }
            Step::Unbind(driver) => kernel.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), &address),
            Step::Bind(driver) => kernel.write(&format!("sys/bus/pci/drivers/{driver}/bind"), &address),
            Step::Probe => kernel.write(PROBE, &address),
        }
    }

    /// Undoes the first `done` steps. Looks at what is, not at what was meant: a step that failed may have had an effect.
    fn undo(&self, sysfs: &Sysfs, kernel: &dyn Kernel, done: usize) -> Result<(), i32> {
        let did = |wanted: fn(&Step) -> bool| self.steps.iter().take(done).any(wanted);
        let mut back = Vec::new();
        let has = sysfs.driver(self.address);
        back.extend(has.clone().filter(|_| has != self.before).map(Step::Unbind));
        if did(|step| matches!(step, Step::Override(_))) {
            // Before the old driver: it may not take the function otherwise.
            back.push(Step::Override(self.before.clone().filter(|driver| driver == VFIO_PCI)));
        }
        back.extend(self.before.clone().filter(|_| has != self.before).map(Step::Bind));
        if did(|step| matches!(step, Step::Record(_))) {
            back.push(Step::Forget);
        }
        if did(|step| matches!(step, Step::Forget)) {
            back.push(Step::Record(self.after.clone()));
        }
        // All of them, whatever becomes of one.
        let failed: Vec<i32> = back.iter().filter_map(|step| self.step(sysfs, kernel, step).err()).collect();
        failed.first().map_or(Ok(()), |errno| Err(*errno))
    }
}

/// A step in words, for a function.
struct Told<'a>(PciAddress, &'a Step);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address, step) = self;
        match step {
            Step::Record(Some(driver)) => write!(f, "note in /{RECORDS} that {driver} has {address}"),
            Step::Record(None) => write!(f, "note in /{RECORDS} that no driver has {address}"),
            Step::Override(Some(driver)) => write!(f, "let only {driver} take {address} (driver_override)"),
            Step::Override(None) => write!(f, "let any driver take {address} again (driver_override)"),
            Step::Unbind(driver) => write!(f, "take {address} from {driver} (drivers/{driver}/unbind)"),
            Step::Bind(driver) => write!(f, "give {address} to {driver} (drivers/{driver}/bind)"),
            Step::Probe => write!(f, "let the kernel look for a driver for {address} (drivers_probe)"),
            Step::Forget => write!(f, "remove the note in /{RECORDS}"),
        }
    }
}

impl fmt::Display for BindPlan {
    /// One line a step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            return write!(f, "nothing to do: {} has {}", self.before.as_deref().unwrap_or("no driver"), self.address);
        }
        for (n, step) in self.steps.iter().enumerate() {
            write!(f, "{}{}. {}", if n == 0 { "" } else { "\n" }, n + 1, Told(self.address, step))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Tree;

    fn bound() -> (Tree, PciAddress) {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        plan_bind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap();
        (tree, address)
    }

    #[test]
    fn a_plan_says_what_it_does_and_does_it() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        let plan = plan_bind(tree.sysfs(), address).unwrap();
        assert_eq!(
            plan.to_string(),
            "1. note in /run/straightway/bound that nvme has 0000:01:00.0\n\
             2. let only vfio-pci take 0000:01:00.0 (driver_override)\n\
             3. take 0000:01:00.0 from nvme (drivers/nvme/unbind)\n\
             4. let the kernel look for a driver for 0000:01:00.0 (drivers_probe)"
        );
        plan.run_on(tree.sysfs(), &tree).unwrap();
        assert_eq!(tree.sysfs().driver(address).as_deref(), Some("vfio-pci"));
        let again = plan_bind(tree.sysfs(), address).unwrap();
        assert_eq!(
            (again.steps(), again.to_string().as_str()),
            ([].as_slice(), "nothing to do: vfio-pci has 0000:01:00.0")
        );
    }

    #[test]
    fn unbinding_brings_the_driver_back_that_was_there() {
        let (tree, address) = bound();
        plan_unbind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap();
        assert_eq!(tree.sysfs().driver(address).as_deref(), Some("nvme"));
        assert!(!tree.sysfs().exists(&record(address)), "the record is gone");
        assert_eq!(tree.sysfs().read(&format!("{}/driver_override", Sysfs::function(address))).as_deref(), Some(""));
        assert_eq!(plan_unbind(tree.sysfs(), address).unwrap_err().kind(), ErrorKind::ApiMisuse);
    }

    #[test]
    fn without_a_record_the_kernel_looks_for_a_driver() {
        let (tree, address) = bound();
        std::fs::remove_file(tree.sysfs().path(&record(address))).unwrap();
        plan_unbind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap();
        assert_eq!(tree.sysfs().driver(address).as_deref(), Some("nvme"));
    }

    #[test]
    fn whatever_step_fails_everything_is_as_it_was() {
        for failing in ["driver_override", "nvme/unbind", "drivers_probe"] {
            let tree = Tree::new();
            let address = tree.nvme("0000:01:00.0", "nvme0", "4");
            tree.fail_once(failing);
            let error = plan_bind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap_err();
            assert!(error.to_string().contains("as it was before"), "{failing}: {error}");
            assert_eq!(tree.sysfs().driver(address).as_deref(), Some("nvme"), "{failing}");
            assert!(!tree.sysfs().exists(&record(address)), "{failing}");
            let overridden = tree.sysfs().read(&format!("{}/driver_override", Sysfs::function(address)));
            assert_eq!(overridden.as_deref(), Some(""), "{failing}");
        }
    }

    #[test]
    fn who_may_not_write_is_told_who_may() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.fail_once_with("driver_override", libc::EACCES);
        let error = plan_bind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.remedy_text().starts_with("run it as root"), "{error}");
    }

    #[test]
    fn a_driver_that_does_not_take_it_is_noticed_and_undone() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.refuse_driver("vfio-pci");
        let error = plan_bind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap_err();
        assert!(error.to_string().contains("no driver has it afterwards"), "{error}");
        assert_eq!(tree.sysfs().driver(address).as_deref(), Some("nvme"));
    }

    #[test]
    fn what_is_in_use_is_refused_with_the_reason() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.write("proc/self/mountinfo", "22 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n");
        let error = plan_bind(tree.sysfs(), address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("nvme0n1 is mounted at /data"), "{error}");
    }

    #[test]
    fn an_open_generic_node_is_refused_too() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.open_file(4711, "9", "/dev/ng0n1");
        let error = plan_bind(tree.sysfs(), address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("process 4711 has ng0n1 open"), "{error}");
    }

    #[test]
    fn what_came_into_use_after_the_plan_stops_its_first_step() {
        type Change = fn(&Tree);
        let changes: [(Change, ErrorKind); 4] = [
            (
                |tree| tree.write("proc/self/mountinfo", "22 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n"),
                ErrorKind::InUse,
            ),
            (|tree| tree.open_file(4711, "9", "/dev/nvme0n1"), ErrorKind::InUse),
            (
                |tree| assert!(tree.function("0000:01:00.1", "0x020000", "e1000", "4").to_string().ends_with(".1")),
                ErrorKind::InUse,
            ),
            (
                |tree| Kernel::write(tree, "sys/bus/pci/drivers/nvme/unbind", "0000:01:00.0").unwrap(),
                ErrorKind::Changed,
            ),
        ];
        for (n, (change, kind)) in changes.into_iter().enumerate() {
            let tree = Tree::new();
            let address = tree.nvme("0000:01:00.0", "nvme0", "4");
            let plan = plan_bind(tree.sysfs(), address).unwrap();
            change(&tree);
            let driver = tree.sysfs().driver(address);
            assert_eq!(plan.run_on(tree.sysfs(), &tree).unwrap_err().kind(), kind, "{n}");
            assert_eq!(tree.sysfs().driver(address), driver, "{n}: nothing was done");
            assert!(!tree.sysfs().exists(&record(address)), "{n}");
        }
    }

    #[test]
    fn a_function_that_was_opened_after_the_plan_is_not_taken_back() {
        let (tree, address) = bound();
        let plan = plan_unbind(tree.sysfs(), address).unwrap();
        tree.open_file(4711, "9", "/dev/vfio/4");
        let error = plan.run_on(tree.sysfs(), &tree).unwrap_err();
        assert!(error.to_string().contains("process 4711 has it open"), "{error}");
        assert_eq!(tree.sysfs().driver(address).as_deref(), Some(VFIO_PCI));
    }

    #[test]
    fn a_group_with_a_driven_neighbour_is_refused_but_bridges_do_not_count() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.function("0000:00:02.0", "0x060400", "pcieport", "4");
        assert!(plan_bind(tree.sysfs(), address).is_ok());
        tree.function("0000:01:00.1", "0x020000", "e1000", "4");
        let error = plan_bind(tree.sysfs(), address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("0000:01:00.1 (e1000)"), "{error}");
    }

    #[test]
    fn what_cannot_be_driven_says_why() {
        let tree = Tree::new();
        let bridge = tree.function("0000:00:02.0", "0x060400", "pcieport", "1");
        assert_eq!(plan_bind(tree.sysfs(), bridge).unwrap_err().kind(), ErrorKind::WrongKind);
        assert_eq!(plan_bind(tree.sysfs(), "9:00.0".parse().unwrap()).unwrap_err().kind(), ErrorKind::NoDevice);
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        std::fs::remove_file(tree.sysfs().path("sys/bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
        let error = plan_bind(tree.sysfs(), address).unwrap_err();
        assert!(error.remedy_text().contains("intel_iommu=on"), "{error}");
        std::fs::remove_dir_all(tree.sysfs().path("sys/bus/pci/drivers/vfio-pci")).unwrap();
        let error = plan_bind(tree.sysfs(), address).unwrap_err();
        assert!(error.remedy_text().contains("modprobe vfio-pci"), "{error}");
    }
}
