//! Ways from user space to a device, as far as the kernel shows them: nodes of iommufd, of VFIO devices, and of groups
//! without an IOMMU. A stock kernel has groups only, and says so by a skip.

use std::path::Path;
use std::time::Duration;

use crate::context::{Context, entries, name};
use crate::registry::{Suite, Test, Verdict, fail, same, skip};

pub const SUITE: Suite = Suite {
    name: "ways",
    tests: &[
        Test::new("iommufd", "a device has a node of its own beside /dev/iommu", iommufd),
        Test::new("no-iommu", "a device without an IOMMU is in a group that says so", no_iommu),
    ],
};

const NODE_LIMIT: Duration = Duration::from_secs(5);

fn iommufd(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    if !Path::new("/dev/iommu").exists() {
        return skip("this kernel has no iommufd");
    }
    if device.iommu_group().is_none() {
        return skip("this machine has no IOMMU");
    }
    device.bind("vfio-pci")?;
    let Some(dir) = entries(&device.path().join("vfio-dev")).into_iter().next() else {
        return fail("vfio-pci made no vfio-dev: VFIO_DEVICE_CDEV is off");
    };
    let node = Path::new("/dev/vfio/devices").join(name(&dir));
    context.until(NODE_LIMIT, &node.display().to_string(), || node.exists().then_some(()))
}

fn no_iommu(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    if device.iommu_group().is_some() {
        return skip("this machine has an IOMMU");
    }
    device.bind("vfio-pci")?;
    let Some(group) = device.iommu_group() else {
        return fail("vfio-pci took the device and gave it no group");
    };
    let node = Path::new("/dev/vfio").join(format!("noiommu-{group}"));
    context.until(NODE_LIMIT, &node.display().to_string(), || node.exists().then_some(()))?;
    same("a node without the warning in its name", &Path::new("/dev/vfio").join(&group).exists(), &false)
}
