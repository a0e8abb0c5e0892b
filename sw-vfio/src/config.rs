//! The few registers of PCI configuration space that a user-space driver needs.

use std::os::fd::BorrowedFd;

use crate::sys;

/// The command register (PCI Local Bus Specification 3.0 §6.2.2 "Device Control").
const COMMAND: u64 = 4;
/// It answers accesses to its BARs.
const MEMORY: u16 = 1 << 1;
/// It may start accesses of its own.
const BUS_MASTER: u16 = 1 << 2;
/// What a function that is not there answers.
const NOBODY: u16 = u16::MAX;

/// Whether a function may start accesses of its own. One that is only memory for others has no need to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dma {
    On,
    Off,
}

/// Where configuration space lies in the file of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) offset: u64,
}

impl Config {
    pub(crate) fn command(self, device: BorrowedFd<'_>) -> Result<u16, i32> {
        let mut bytes = [0; 2];
        sys::pread_exact(device, &mut bytes, self.offset + COMMAND)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn set_command(self, device: BorrowedFd<'_>, value: u16) -> Result<(), i32> {
        sys::pwrite_exact(device, &value.to_le_bytes(), self.offset + COMMAND)
    }

    /// Lets it answer and, with `dma`, start accesses of its own. Both bits are off when a function is opened.
    pub(crate) fn enable(self, device: BorrowedFd<'_>, dma: Dma) -> Result<(), i32> {
        let command = self.command(device)?;
        if command == NOBODY {
            return Err(libc::ENODEV);
        }
        let master = if dma == Dma::On { BUS_MASTER } else { 0 };
        self.set_command(device, (command & !BUS_MASTER) | MEMORY | master)
    }

    /// Takes bus mastership away. `true`: it can start no access any more, because the bit is off or nobody is there.
    ///
    /// Reading the register back makes sure that writes it had sent before have arrived (PCI Express Base Specification
    /// §2.4 "Transaction Ordering": a completion does not pass posted requests).
    pub(crate) fn stop_dma(self, device: BorrowedFd<'_>) -> bool {
        let off = |command: u16| command == NOBODY || command & BUS_MASTER == 0;
        match self.command(device) {
            Ok(command) if off(command) => true,
            Ok(command) => {
                let written = self.set_command(device, command & !BUS_MASTER);
                written.is_ok() && self.command(device).is_ok_and(off)
            }
            // The kernel answers so when it knows that the function was pulled out.
            Err(errno) => errno == libc::ENODEV,
        }
    }
}

/// A file that stands in for configuration space, for tests.
#[cfg(test)]
pub(crate) fn fake(command: u16) -> (std::os::fd::OwnedFd, Config) {
    use std::os::fd::AsFd;
    let file = sys::map::memory_file(4096).unwrap();
    let config = Config { offset: 256 };
    config.set_command(file.as_fd(), command).unwrap();
    (file, config)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn enabling_and_stopping_touch_their_bits_only() {
        let (file, config) = fake(0x0400);
        config.enable(file.as_fd(), Dma::Off).unwrap();
        assert_eq!(config.command(file.as_fd()), Ok(0x0402));
        config.enable(file.as_fd(), Dma::On).unwrap();
        assert_eq!(config.command(file.as_fd()), Ok(0x0406));
        assert!(config.stop_dma(file.as_fd()));
        assert_eq!(config.command(file.as_fd()), Ok(0x0402));
    }

    #[test]
    fn a_function_that_is_gone_can_do_nothing() {
        let (file, config) = fake(NOBODY);
        assert!(config.stop_dma(file.as_fd()));
        assert_eq!(config.enable(file.as_fd(), Dma::On), Err(libc::ENODEV));
    }

    #[test]
    fn a_write_that_does_not_stick_is_no_stop() {
        let (_, config) = fake(0);
        let zero = sys::open(std::path::Path::new("/dev/full"), libc::O_RDWR).unwrap();
        // `/dev/full` reads as zero: DMA is off already. A closed register file is an error, not a yes.
        assert!(config.stop_dma(zero.as_fd()));
        let none = sys::open(std::path::Path::new("/dev/null"), libc::O_RDWR).unwrap();
        assert!(!config.stop_dma(none.as_fd()));
    }
}
