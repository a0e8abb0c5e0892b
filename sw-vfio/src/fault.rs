//! The errno of the kernel as typed errors: what it means here, and what helps.

use std::sync::Arc;

use sw_engine::{Error, ErrorKind, Verb};

/// The class of an errno of a control call.
fn kind(errno: i32) -> ErrorKind {
    match errno {
        libc::EBUSY | libc::EWOULDBLOCK => ErrorKind::InUse,
        libc::ENOMEM | libc::ENOSPC | libc::EMFILE | libc::ENFILE => ErrorKind::ResourceLimit,
        libc::ENOENT | libc::ENOTDIR => ErrorKind::NotFound,
        libc::EACCES | libc::EPERM | libc::EROFS => ErrorKind::PermissionDenied,
        libc::ENODEV | libc::ENXIO => ErrorKind::NoDevice,
        libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS => ErrorKind::Unsupported,
        libc::EEXIST => ErrorKind::AlreadyExists,
        libc::EINVAL | libc::EFAULT | libc::EBADF => ErrorKind::ApiMisuse,
        _ => ErrorKind::Io,
    }
}

/// `what` on `name` failed with `errno`.
pub(crate) fn error(errno: i32, verb: Verb, name: impl Into<Arc<str>>, what: &str) -> Error {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    // The text of the standard library ends in "(os error N)"; the code is printed by `Error` itself.
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    Error::new(kind(errno), verb).at(name).with_code(errno).detail(format!("{what}: {text}"))
}

/// A call in a forked child. The function, its descriptors and its mappings are the parent's.
pub(crate) fn forked(verb: Verb, name: impl Into<Arc<str>>) -> Error {
    Error::new(ErrorKind::Forked, verb)
        .at(name)
        .detail("it was opened before this process was forked; it belongs to the parent")
        .remedy("open it in the process that uses it, or start workers without fork (spawn)")
}

/// Opening a device file of VFIO or iommufd failed.
pub(crate) fn open_error(errno: i32, path: &str) -> Error {
    let error = error(errno, Verb::Open, path, "cannot open it");
    match errno {
        libc::EBUSY => error.remedy("another process has it; a controller has one owner: stop that process first"),
        libc::EACCES | libc::EPERM => {
            error.remedy(format!("run as root, or give yourself the file: chown $USER {path}"))
        }
        libc::ENOENT | libc::ENXIO | libc::ENODEV => error.remedy("load the module: modprobe vfio-pci"),
        _ => error,
    }
}

/// A mapping of `len` bytes for devices was refused.
pub(crate) fn map_error(errno: i32, name: impl Into<Arc<str>>, len: u64) -> Error {
    let error = error(errno, Verb::Register, name, &format!("mapping {} for the device", sw_mem::ByteLen(len)));
    match errno {
        libc::ENOMEM => {
            let limit = crate::sys::memlock_limit().map_or("no limit".into(), |limit| sw_mem::ByteLen(limit).to_string());
            error.remedy(format!(
                "raise the limit of locked memory, which is {limit} (ulimit -l, LimitMEMLOCK= of a service), or map less"
            ))
        }
        libc::ENOSPC => error.remedy(
            "the IOMMU container has no entry left: map fewer, larger regions, or raise dma_entry_limit of vfio_iommu_type1",
        ),
        libc::EEXIST => error.remedy("the kernel has a mapping there that this process does not know of: a defect; report it"),
        libc::EFAULT => error.remedy("this memory cannot be pinned for a device: map ordinary memory or a dma-buf of it"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_locked_memory_and_entries_are_told_apart() {
        let no_memory = map_error(libc::ENOMEM, "region 3", 4 << 20);
        assert_eq!(no_memory.kind(), ErrorKind::ResourceLimit);
        assert!(no_memory.remedy_text().contains("LimitMEMLOCK"), "{no_memory}");
        let no_entry = map_error(libc::ENOSPC, "region 3", 4096);
        assert_eq!(no_entry.kind(), ErrorKind::ResourceLimit);
        assert!(no_entry.remedy_text().contains("dma_entry_limit"), "{no_entry}");
        assert_eq!(map_error(libc::EEXIST, "region 3", 4096).kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_busy_group_says_that_a_controller_has_one_owner() {
        let busy = open_error(libc::EBUSY, "/dev/vfio/7");
        assert_eq!(busy.kind(), ErrorKind::InUse);
        assert!(busy.to_string().contains("a controller has one owner"), "{busy}");
    }
}
