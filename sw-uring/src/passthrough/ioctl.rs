//! The kernel driver's interface to commands: linux `include/uapi/linux/nvme_ioctl.h`.
// UNSAFETY: ioctl with structures that name memory.
#![expect(unsafe_code, reason = "ioctl")]

use std::os::fd::{AsRawFd, BorrowedFd};

use sw_nvme::{
    status::Status,
    wire::{Command, IDENTIFY_BYTES},
};

use crate::sys;

/// Bytes of a passed-through command: `struct nvme_uring_cmd`, and `struct nvme_passthru_cmd` as well.
pub const COMMAND_BYTES: usize = 72;

/// `NVME_IOCTL_ID`: the namespace's identifier.
pub const IOCTL_ID: u32 = 0x4E40;
/// `NVME_IOCTL_ADMIN_CMD`: an admin command, waited for.
pub const IOCTL_ADMIN: u32 = 0xC048_4E41;
/// `NVME_IOCTL_IO_CMD`: an I/O command, waited for.
pub const IOCTL_IO: u32 = 0xC048_4E43;
/// `NVME_URING_CMD_IO`: an I/O command as an entry of io_uring.
pub const URING_IO: u32 = 0xC048_4E80;

/// `BLKFLSBUF` of linux `include/uapi/linux/fs.h`: writes a block device's page cache back and forgets it.
const BLKFLSBUF: u32 = 0x1261;

/// A command as the kernel takes it: the submission entry, with the address and the length of the data in place of the data
/// pointer, without an identifier. No timeout of its own: the driver's (`nvme_core.io_timeout`) holds.
#[inline]
pub fn pass(command: &Command, address: u64, data_bytes: u32) -> [u8; COMMAND_BYTES] {
    let mut out = [0; COMMAND_BYTES];
    let (head, tail) = out.split_at_mut(64);
    head.copy_from_slice(command.bytes());
    // Bytes 24 to 39 are the data pointer of an entry; here: address, bytes of metadata, bytes of data.
    head[24..32].copy_from_slice(&address.to_ne_bytes());
    head[32..36].fill(0);
    head[36..40].copy_from_slice(&data_bytes.to_ne_bytes());
    tail.fill(0);
    out
}

/// The identifier of the namespace behind a generic node.
///
/// # Errors
/// The errno. `ERANGE` for an identifier that the call cannot return.
pub(super) fn namespace_id(node: BorrowedFd<'_>) -> Result<u32, i32> {
    // SAFETY: no pointers.
    let id = unsafe { libc::ioctl(node.as_raw_fd(), sys::request(IOCTL_ID)) };
    match u32::try_from(id) {
        Ok(0) => Err(libc::ERANGE),
        Ok(id) => Ok(id),
        Err(_) if id == -1 => Err(sys::errno()),
        Err(_) => Err(libc::ERANGE),
    }
}

/// What an Identify command gives.
///
/// # Errors
/// The errno, or the controller's status.
pub(super) fn identify(node: BorrowedFd<'_>, command: &Command) -> Result<Vec<u8>, Refused> {
    let mut data = vec![0u8; IDENTIFY_BYTES];
    let bytes = u32::try_from(IDENTIFY_BYTES).unwrap_or(0);
    let address = data.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: the command names `data`, which is ours, is live until the call returns, and is as long as it says.
    unsafe { wait(node, IOCTL_ADMIN, command, address, bytes) }?;
    Ok(data)
}

/// Runs an I/O command to its end.
///
/// # Errors
/// The errno, or the controller's status.
///
/// # Safety
/// `address..address + bytes` is mapped, and nobody has a reference into it until the call returns.
pub(super) unsafe fn wait_io(node: BorrowedFd<'_>, command: &Command, address: u64, bytes: u32) -> Result<(), Refused> {
    // SAFETY: the caller's contract is passed on.
    unsafe { wait(node, IOCTL_IO, command, address, bytes) }
}

/// # Safety
/// As [`wait_io`].
unsafe fn wait(node: BorrowedFd<'_>, number: u32, command: &Command, address: u64, bytes: u32) -> Result<(), Refused> {
    let mut passed = pass(command, address, bytes);
    // SAFETY: `passed` has the layout and the size that the number announces; the caller answers for the memory that it
    // names.
    let done = unsafe { libc::ioctl(node.as_raw_fd(), sys::request(number), passed.as_mut_ptr()) };
    match u16::try_from(done) {
        Ok(0) => Ok(()),
        Ok(status) => Err(Refused::Status(status_of(status))),
        Err(_) => Err(Refused::Errno(sys::errno())),
    }
}

/// Who refused a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The kernel.
    Errno(i32),
    /// The controller.
    Status(Status),
}

/// A status as the driver returns it: without the phase bit.
pub(super) fn status_of(returned: u16) -> Status {
    Status::from_field(returned << 1)
}

/// Lets the page cache of a block device forget what it holds, so that later readers see what was written past it.
/// A wish: without privilege it is not granted.
pub(super) fn forget_cached(device: BorrowedFd<'_>) {
    // SAFETY: no pointers.
    unsafe { libc::ioctl(device.as_raw_fd(), sys::request(BLKFLSBUF), 0) };
}

#[cfg(test)]
mod tests {
    use sw_nvme::wire::{BlockCount, DataPointer, IoFlags, LbaRange};

    use super::*;

    #[test]
    fn a_command_keeps_its_dwords_and_gets_an_address_and_a_length() {
        let at = LbaRange { nsid: 7, slba: 0x1122_3344_5566, nlb: BlockCount::new(8).unwrap() };
        let command = Command::read(at, DataPointer::None, IoFlags::NONE);
        let passed = pass(&command, 0x7fff_1234_5000, 4096);
        let dword = |at: usize| u32::from_le_bytes(passed[at..at + 4].try_into().unwrap());
        assert_eq!(passed[0], 0x02);
        assert_eq!(dword(4), 7);
        assert_eq!(u64::from_le_bytes(passed[24..32].try_into().unwrap()), 0x7fff_1234_5000);
        assert_eq!((dword(32), dword(36)), (0, 4096));
        assert_eq!((dword(40), dword(44)), (0x3344_5566, 0x1122));
        assert_eq!(dword(48), 7, "blocks count from zero");
        assert!(passed[52..].iter().all(|byte| *byte == 0));
        assert!(passed[1..4].iter().chain(&passed[8..24]).all(|byte| *byte == 0));
    }

    /// What the kernel's own header says, by a C compiler; none where this machine has no compiler or no such header.
    fn header() -> Option<Vec<u64>> {
        const PROGRAM: &str = r#"
            #include <linux/nvme_ioctl.h>
            #include <linux/fs.h>
            #include <stddef.h>
            #include <stdio.h>
            #define AT(field) printf("%zu\n", offsetof(struct nvme_uring_cmd, field));
            int main(void) {
                printf("%zu\n%zu\n", sizeof(struct nvme_uring_cmd), sizeof(struct nvme_passthru_cmd));
                AT(opcode) AT(nsid) AT(cdw2) AT(metadata) AT(addr) AT(metadata_len) AT(data_len) AT(cdw10) AT(cdw15)
                AT(timeout_ms)
                printf("%lu\n%lu\n", (unsigned long)NVME_IOCTL_ID, (unsigned long)NVME_IOCTL_ADMIN_CMD);
                printf("%lu\n%lu\n", (unsigned long)NVME_IOCTL_IO_CMD, (unsigned long)NVME_URING_CMD_IO);
                printf("%lu\n", (unsigned long)BLKFLSBUF);
                return 0;
            }"#;
        let directory = std::env::temp_dir().join(format!("sw-uring-layout-{}", std::process::id()));
        std::fs::create_dir_all(&directory).ok()?;
        let (source, program) = (directory.join("layout.c"), directory.join("layout"));
        std::fs::write(&source, PROGRAM).ok()?;
        let built = std::process::Command::new("cc").arg("-o").args([&program, &source]).output().ok();
        let output = built
            .filter(|built| built.status.success())
            .and_then(|_| std::process::Command::new(&program).output().ok().map(|output| output.stdout));
        let _ = std::fs::remove_dir_all(&directory);
        Some(String::from_utf8(output?).unwrap().lines().map(|line| line.parse().unwrap()).collect())
    }

    #[test]
    fn layout_and_numbers_are_those_of_the_kernels_header() {
        let Some(header) = header() else { return println!("skip: no C compiler with linux/nvme_ioctl.h") };
        let command = u64::try_from(COMMAND_BYTES).unwrap();
        let numbers = [IOCTL_ID, IOCTL_ADMIN, IOCTL_IO, URING_IO, BLKFLSBUF].map(u64::from);
        let places = [0, 4, 8, 16, 24, 32, 36, 40, 60, 64];
        assert_eq!(header, [&[command, command], &places[..], &numbers].concat());
    }
}
