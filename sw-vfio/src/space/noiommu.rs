//! Physical addresses, for machines that are run without an IOMMU on purpose.
//!
//! Nothing keeps a device from other memory here, so the kernel must leave the pages where they are. Locked memory is not
//! enough: the kernel compacts it (`vm.compact_unevictable_allowed`), moves it between NUMA nodes, and gives the parent of a
//! fork a copy when it writes. Pages of the reserved pool (hugetlbfs, `MAP_HUGETLB`) are left alone by all of these; only
//! contiguous allocations (CMA), memory that is unplugged, who asks for it (`migrate_pages(2)`), and soft offlining move them:
//! the last is what a kernel or a daemon (`ras_cec`, mcelog, rasdaemon) does to pages with corrected memory errors. Nothing here
//! keeps it from that; a machine that is run so has it switched off. Other memory is refused, and a child of a fork gets none
//! of it (`MADV_DONTFORK`; it stays so for the rest of the mapping's life).
//!
//! With an IOMMU none of this is needed: pinned pages stay, and the kernel copies them for the child at once (Linux 5.9).

use std::{fs::File, os::unix::fs::FileExt};

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::{align_down, align_up};

use crate::{sys, sysfs::Sysfs};

/// Pages looked up in one read.
const BATCH: usize = 512;
/// `pagemap` entry: bit 63 says present, bits 0 to 54 are the frame (Linux `Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

fn error(kind: ErrorKind, detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(kind, Verb::Register).detail(detail)
}

/// The physical address of `len` bytes at `va` (whole pages), which stay there.
///
/// # Errors
/// `Unsupported` if they are not of the reserved pool or not contiguous; `PermissionDenied` for a user who may not see
/// physical addresses.
pub(super) fn physical(sysfs: &Sysfs, va: u64, len: u64) -> Result<u64, Error> {
    let maps = sysfs.read("proc/self/smaps").unwrap_or_default();
    let huge = reserved(&maps, va, len)?;
    // Gives each page its frame. The kernel counts no locked memory for pages of the pool, so there is nothing to undo.
    sys::map::lock(va, len).map_err(|errno| crate::fault::map_error(errno, "", len))?;
    let page = sys::page_bytes();
    let path = sysfs.path("proc/self/pagemap");
    let file =
        File::open(&path).map_err(|cause| error(ErrorKind::PermissionDenied, "reading pagemap").caused_by(cause))?;
    let first = contiguous(page, va / page, len / page, |first, entries| {
        let bytes: &mut [u8] = &mut vec![0; entries.len() * 8];
        file.read_exact_at(bytes, first * 8)
            .map_err(|cause| error(ErrorKind::Io, "reading pagemap").caused_by(cause))?;
        for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Ok(())
    })?;
    // Last: memory that is refused stays as the program made it. Both ends lie inside the mappings, which have whole pages of
    // this size only.
    let start = align_down(va, huge);
    let whole = align_up(va + len, huge).map_or(len, |end| end - start);
    sys::map::dont_fork(start, whole)
        .map_err(|errno| crate::fault::error(errno, Verb::Register, "", "keeping it from forked children"))?;
    Ok(first)
}

/// Bytes of a page of the mappings that cover `len` bytes from `va`, if all of them have pages of the reserved pool and of one
/// size, as the kernel tells it in `smaps` (`KernelPageSize`, proc(5); transparent huge pages do not count there).
///
/// # Errors
/// `Unsupported` otherwise.
fn reserved(smaps: &str, va: u64, len: u64) -> Result<u64, Error> {
    let base = sys::page_bytes();
    let end = va.checked_add(len).filter(|_| len > 0).ok_or_else(not_reserved)?;
    let (mut covered, mut size, mut range) = (va, None, None);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((from, to)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).ok();
            range = number(from).zip(number(to));
        } else if let ("KernelPageSize:", Some((from, to))) = (first, range) {
            let kib: Option<u64> = words.next().and_then(|word| word.parse().ok());
            let page = kib.and_then(|kib| kib.checked_mul(1024)).unwrap_or(0);
            if page > base && page.is_power_of_two() && (from..to).contains(&covered) {
                if *size.get_or_insert(page) != page {
                    return Err(error(ErrorKind::Unsupported, "without an IOMMU memory must have pages of one size")
                        .remedy("register each mapping on its own"));
                }
                covered = to;
            }
        }
        if covered >= end {
            break;
        }
    }
    size.filter(|_| covered >= end).ok_or_else(not_reserved)
}

fn not_reserved() -> Error {
    error(
        ErrorKind::Unsupported,
        "without an IOMMU memory must be of reserved huge pages: the kernel moves other pages",
    )
    .remedy(
        "reserve some (echo 64 > /proc/sys/vm/nr_hugepages) and map them (MAP_HUGETLB), read and write \
             through slabs (--policy require=staged), or switch the IOMMU on",
    )
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
                    "use regions of one reserved huge page (vm.nr_hugepages), read and write through slabs (--policy \
                     require=staged), or switch the IOMMU on",
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
        assert!(refused.to_string().contains("reserved huge page"), "{refused}");
    }

    #[test]
    fn only_pages_of_the_reserved_pool_count() {
        let map = |from: u64, to: u64, kib: u64| {
            format!(
                "{from:x}-{to:x} rw-p 00000000 00:0f 12 /anon_hugepage (deleted)\nSize: 4096 kB\nKernelPageSize: {kib:8} kB\n\
                 MMUPageSize: {kib:8} kB\nAnonHugePages: 2048 kB\nVmFlags: rd wr mr mw me de ht \n"
            )
        };
        let size = |text: &str, va, len| reserved(text, va, len).ok();
        let (m, huge) = (1 << 20, 2048);
        let text =
            [map(m, 2 * m, 4), map(4 * m, 8 * m, huge), map(8 * m, 10 * m, huge), map(10 * m, 12 * m, 4)].concat();
        assert_eq!(size(&text, 4 * m, 6 * m), Some(2 * m));
        assert_eq!(size(&text, 5 * m + 4096, 4096), Some(2 * m));
        assert_eq!(size(&text, 9 * m, 2 * m), None, "its end is of small pages");
        for (va, len) in [(m, 4096), (3 * m, 4096), (11 * m, 4096), (9 * m, 0), (u64::MAX, 2)] {
            assert_eq!(size(&text, va, len), None, "{va:#x}");
        }
        let (gigabyte, wide) = (map(1 << 30, 2 << 30, 1 << 20), map(0x4000_0000 - 2 * m, 1 << 30, huge));
        let mixed = [wide, gigabyte].concat();
        assert_eq!(size(&mixed, 0x4000_0000 - m, m), Some(2 * m));
        assert_eq!(size(&mixed, 0x4000_0000, m), Some(1 << 30));
        let refused = reserved(&mixed, 0x4000_0000 - m, 2 * m).unwrap_err();
        assert!(refused.to_string().contains("of one size"), "{refused}");
        assert_eq!(size("", m, 4096), None);
    }

    /// Whether a forked child gets the memory at `va`, by what the kernel says (`dc` of `VmFlags`, proc(5)).
    fn is_kept_from_children(va: u64) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_ours = false;
        for line in maps.lines() {
            let first = line.split_whitespace().next().unwrap();
            if let Some((from, to)) = first.split_once('-') {
                let number = |text| u64::from_str_radix(text, 16).unwrap();
                is_ours = (number(from)..number(to)).contains(&va);
            } else if is_ours && first == "VmFlags:" {
                return line.split_whitespace().any(|flag| flag == "dc");
            }
        }
        panic!("{va:#x} is not mapped")
    }

    #[test]
    fn memory_that_is_refused_still_goes_to_children() {
        const HUGE: u64 = 2 << 20;
        let mapping =
            sw_mem::HostMapping::map(sw_mem::ByteLen(HUGE), HUGE, sw_mem::HugePages::Never, sw_mem::Populate::Lazy);
        let mapping = mapping.unwrap();
        let va = mapping.base().raw();
        // A kernel that calls these pages huge, and shows them where this test says.
        let tree = crate::fake::Tree::new();
        let end = va + HUGE;
        tree.write("proc/self/smaps", &format!("{va:x}-{end:x} rw-p 0 00:0f 1 x\nKernelPageSize: 2048 kB\n"));
        tree.write("proc/self/pagemap", "");
        let pagemap = File::options().write(true).open(tree.sysfs().path("proc/self/pagemap")).unwrap();
        let show = |frames: [u64; 2]| {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| (PRESENT | frame).to_le_bytes()).collect();
            pagemap.write_all_at(&bytes, va / sys::page_bytes() * 8).unwrap();
        };
        let len = 2 * sys::page_bytes();
        show([7, 9]);
        assert_eq!(physical(tree.sysfs(), va, len).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(!is_kept_from_children(va), "the program goes on with it, and so may a child");
        show([7, 8]);
        assert_eq!(physical(tree.sysfs(), va, len).unwrap(), 7 * sys::page_bytes());
        assert!(is_kept_from_children(va) && is_kept_from_children(end - 1));
    }

    #[test]
    fn ordinary_memory_of_this_process_is_refused_with_a_remedy() {
        let buffer = sw_mem::Buffer::allocate(sw_mem::ByteLen(4 << 20)).unwrap();
        let refused = physical(&Sysfs::default(), buffer.region().base().raw(), 4096).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.remedy_text().contains("nr_hugepages"), "{refused}");
    }

    #[test]
    fn hidden_frames_say_who_may_see_them() {
        for entry in [0, PRESENT, 7000] {
            assert_eq!(look(&[entry]).unwrap_err().kind(), ErrorKind::PermissionDenied, "{entry:#x}");
        }
    }
}
