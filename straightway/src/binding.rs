//! Giving PCI functions to vfio-pci and back: what is there, what will be done, and doing it.
//!
//! A plan says its steps before anything is done; a step that fails undoes those before it; `plan_unbind` undoes the whole.

use sw_engine::Error;
pub use sw_engine::PciAddress;
use sw_vfio::Sysfs;
pub use sw_vfio::{BindPlan, FunctionFacts, NamespaceFacts, Step, Use, Which};

/// The functions of this machine, by address.
pub fn functions(which: Which) -> Vec<FunctionFacts> {
    sw_vfio::list(&Sysfs::default(), which)
}

/// What giving a function to vfio-pci takes. An empty plan: it has it.
///
/// # Errors
/// `InUse` if a namespace is mounted, held or swap, open in a process (as far as this user may see), or exported by the kernel's
/// NVMe target or a loop device; or if another function of its IOMMU group is driven by the kernel;
/// `Unsupported` without vfio-pci or an IOMMU; `WrongKind` for a bridge; `NoDevice`.
pub fn plan_bind(address: PciAddress) -> Result<BindPlan, Error> {
    sw_vfio::plan_bind(&Sysfs::default(), address)
}

/// What giving a function back to the driver that had it before takes.
///
/// # Errors
/// `InUse` if a process has it open; `ApiMisuse` if vfio-pci does not have it; `NoDevice`.
pub fn plan_unbind(address: PciAddress) -> Result<BindPlan, Error> {
    sw_vfio::plan_unbind(&Sysfs::default(), address)
}

/// Does it.
///
/// # Errors
/// The kernel's refusal, with what became of the function; `PermissionDenied` for who may not.
pub fn run(plan: &BindPlan) -> Result<(), Error> {
    plan.run(&Sysfs::default())
}
