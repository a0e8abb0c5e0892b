//! Physical addresses, for machines that are run without an IOMMU on purpose.
//!
//! Nothing keeps a device from other memory here, and nothing but `mlock` and the absence of page migration keeps a page
//! where it is. Pages of the reserved pool do not move; others may, if the kernel compacts memory. So: queues in one page
//! or one reserved huge page, data in reserved huge pages.

use std::{fs::File, os::unix::fs::FileExt};

use sw_engine::{Error, ErrorKind, Verb};

use crate::{sys, sysfs::Sysfs};

/// Pages looked up in one read.
const BATCH: usize = 512;
/// `pagemap` entry: bit 63 says present, bits 0 to 54 are the frame (Linux `Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

fn error(kind: ErrorKind, detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(kind, Verb::Register).detail(detail)
}

/// The physical address of `len` bytes at `va` (whole pages), which it locks in memory.
///
/// # Errors
/// `Unsupported` if they are not contiguous; `PermissionDenied` for a user who may not see physical addresses.
pub(super) fn physical(sysfs: &Sysfs, va: u64, len: u64) -> Result<u64, Error> {
    sys::map::lock(va, len).map_err(|errno| crate::fault::map_error(errno, "", len))?;
    let page = sys::page_bytes();
    let path = sysfs.path("proc/self/pagemap");
    let file =
        File::open(&path).map_err(|cause| error(ErrorKind::PermissionDenied, "reading pagemap").caused_by(cause))?;
    contiguous(page, va / page, len / page, |first, entries| {
        let bytes: &mut [u8] = &mut vec![0; entries.len() * 8];
        file.read_exact_at(bytes, first * 8)
            .map_err(|cause| error(ErrorKind::Io, "reading pagemap").caused_by(cause))?;
        for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Ok(())
    })
}

/// The address of the first of `pages` pages, if each follows its neighbour. `read` fills in the entries from a page on.
fn contiguous(
    page: u64,
    first: u64,
    pages: u64,
    mut read: impl FnMut(u64, &mut [u64]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let (mut done, mut base) = (0, None);
    let mut entries = [0u64; BATCH];
    while done < pages {
        let now = usize::try_from(pages - done).map_or(BATCH, |left| left.min(BATCH));
        read(first + done, &mut entries[..now])?;
        for entry in &entries[..now] {
            let frame = entry & FRAME;
            if entry & PRESENT == 0 || frame == 0 {
                return Err(error(ErrorKind::PermissionDenied, "the kernel does not show where the memory lies")
                    .remedy("run as root (CAP_SYS_ADMIN): without an IOMMU the device needs physical addresses"));
            }
            let base = *base.get_or_insert(frame);
            if frame != base + done {
                return Err(error(
                    ErrorKind::Unsupported,
                    format!(
                        "without an IOMMU memory must be physically contiguous; {} is not",
                        sw_mem::ByteLen(pages * page)
                    ),
                )
                .remedy(
                    "use reserved huge pages (vm.nr_hugepages) and regions of one huge page, or switch the IOMMU on",
                ));
            }
            done += 1;
        }
    }
    base.map(|frame| frame * page).ok_or_else(|| error(ErrorKind::ApiMisuse, "no pages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(frames: &[u64]) -> Result<u64, Error> {
        contiguous(4096, 100, frames.len() as u64, |first, entries| {
            let from = usize::try_from(first - 100).unwrap();
            entries.iter_mut().zip(&frames[from..]).for_each(|(entry, frame)| *entry = *frame);
            Ok(())
        })
    }

    #[test]
    fn only_contiguous_frames_have_an_address() {
        let run: Vec<u64> = (0..1200).map(|n| PRESENT | (7000 + n)).collect();
        assert_eq!(look(&run).unwrap(), 7000 * 4096);
        let mut broken = run;
        broken[700] += 1;
        let refused = look(&broken).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("huge pages"), "{refused}");
    }

    #[test]
    fn hidden_frames_say_who_may_see_them() {
        for entry in [0, PRESENT, 7000] {
            assert_eq!(look(&[entry]).unwrap_err().kind(), ErrorKind::PermissionDenied, "{entry:#x}");
        }
    }
}
