//! The word in a face: descriptor, namespace, block, and the longest command, so that the data path looks nothing up.
//!
//! ```text
//!   63 ─────────── 32 31    30 ───── 27 26 ──── 24 23     22 ──────── 0
//!   NSID              polls  log2 bytes  log2 block network  descriptor
//!                            of a command − 12   − 9
//! ```

use std::os::fd::RawFd;

/// Blocks of 2^9 to 2^16 bytes.
pub(super) const BLOCK_SHIFTS: std::ops::RangeInclusive<u8> = 9..=16;
/// Commands of 2^12 to 2^27 bytes at most.
pub(super) const COMMAND_SHIFTS: std::ops::RangeInclusive<u8> = 12..=27;

const DESCRIPTOR: u64 = (1 << 23) - 1;
const NETWORK: u64 = 1 << 23;
const POLLS: u64 = 1 << 31;

/// Whether a device has queues whose completions are polled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollQueues {
    /// It has.
    Some,
    /// It has none.
    None,
}

/// How the kernel reaches the controller, and so what it knows of a command that it gave up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Over PCI: the controller is disabled before, so the command is over.
    Pcie,
    /// Over a network, or nobody tells: what was sent may still be carried out.
    Network,
}

/// What a face's handle says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) fd: RawFd,
    pub(super) nsid: u32,
    /// Log2 of the bytes of a block, in [`BLOCK_SHIFTS`].
    pub(super) block_shift: u8,
    /// Log2 of the bytes that one command moves at most, in [`COMMAND_SHIFTS`].
    pub(super) command_shift: u8,
    pub(super) poll_queues: PollQueues,
    pub(super) link: Link,
}

impl Word {
    /// The handle; none if something is out of range.
    pub(super) fn pack(self) -> Option<u64> {
        let fd = u64::try_from(self.fd).ok().filter(|fd| *fd <= DESCRIPTOR)?;
        let fits = BLOCK_SHIFTS.contains(&self.block_shift) && COMMAND_SHIFTS.contains(&self.command_shift);
        let block = u64::from(self.block_shift.checked_sub(*BLOCK_SHIFTS.start())?);
        let command = u64::from(self.command_shift.checked_sub(*COMMAND_SHIFTS.start())?);
        let polls = if self.poll_queues == PollQueues::Some { POLLS } else { 0 };
        let network = if self.link == Link::Network { NETWORK } else { 0 };
        fits.then_some(u64::from(self.nsid) << 32 | polls | network | command << 27 | block << 24 | fd)
    }

    #[inline]
    pub(super) fn unpack(handle: u64) -> Self {
        Self {
            fd: ((handle & DESCRIPTOR) as u32).cast_signed(),
            nsid: (handle >> 32) as u32,
            block_shift: (handle >> 24 & 0x7) as u8 + BLOCK_SHIFTS.start(),
            command_shift: (handle >> 27 & 0xF) as u8 + COMMAND_SHIFTS.start(),
            poll_queues: if handle & POLLS == 0 { PollQueues::None } else { PollQueues::Some },
            link: if handle & NETWORK == 0 { Link::Pcie } else { Link::Network },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_at_the_ends_of_every_range() {
        for fd in [0, (1 << 23) - 1] {
            for nsid in [1, 0xFFFF_FFFE] {
                for (block_shift, command_shift) in [(9, 12), (16, 27), (12, 17)] {
                    for (poll_queues, link) in [
                        (PollQueues::Some, Link::Pcie),
                        (PollQueues::None, Link::Network),
                        (PollQueues::None, Link::Pcie),
                    ] {
                        let word = Word { fd, nsid, block_shift, command_shift, poll_queues, link };
                        assert_eq!(Word::unpack(word.pack().unwrap()), word);
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (poll_queues, link) = (PollQueues::None, Link::Pcie);
        let good = Word { fd: 3, nsid: 1, block_shift: 9, command_shift: 17, poll_queues, link };
        assert!(good.pack().is_some());
        for bad in [
            Word { fd: 1 << 23, ..good },
            Word { fd: -1, ..good },
            Word { block_shift: 8, ..good },
            Word { block_shift: 17, ..good },
            Word { command_shift: 11, ..good },
            Word { command_shift: 28, ..good },
        ] {
            assert_eq!(bad.pack(), None, "{bad:?}");
        }
    }
}
