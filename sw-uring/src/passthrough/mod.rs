//! NVMe commands through the kernel's driver: `/dev/ngXnY` by io_uring, for machines that keep the driver.
//!
//! ```text
//!   FileStore::open("/dev/ng0n1") ─► node: identify, limits, claim ─► Object { one face: whole blocks, dma }
//!   Io ─► Command ─► entry of 128 bytes (IORING_OP_URING_CMD) ─► driver ─► controller ─► entry of 32 bytes: NVMe status
//! ```
//!
//! It skips the page cache and most of the block layer, and nothing else: the driver owns the queues, maps memory, resets
//! the controller. Registered buffers are used where a region is attached. Needs Linux 6.1.
//!
//! Invariants, as absences: no command is longer than the device and the driver move without a copy (the kernel would copy in
//! secret a transfer with more pieces than the device takes: `node.rs`); a longer I/O ends short, and the engine asks for
//! the rest. No write without a claim of the block device. No namespace with metadata.
//!
//! Cancelling does nothing: the driver takes no cancel, and its own timeout ends what hangs.

mod ioctl;
pub(crate) mod node;
mod word;

use std::os::fd::RawFd;

use io_uring::{cqueue, opcode, squeue};
use sw_engine::{
    ErrorKind, Fault, Retry, Token, TransportName,
    seam::{Io, IoDone, IoKind, TransportCaps},
};
use sw_nvme::{
    status::RetryDelays,
    wire::{BlockCount, Command, DataPointer, IoFlags, LbaRange},
};

use crate::{
    fault, peer,
    sysfs::Machine,
    uring::{Completions, RingTransport, UringConfig, shape::Shape, tables::Tables},
};

pub use ioctl::{COMMAND_BYTES, IOCTL_ADMIN, IOCTL_ID, IOCTL_IO, URING_IO};
use word::{Link, PollQueues, Word};

/// Its name in routes and reports.
pub const NVME_PASSTHROUGH: &str = "nvme-passthrough";

/// NVMe namespaces by commands through the kernel's driver. Faces that a [`crate::FileStore`] gives `/dev/ngXnY`.
pub type PassthroughTransport = RingTransport<Commands>;

/// Bytes of one I/O that suit most devices: the limit of many, and short enough to come in several at once.
const IO_BYTES_MAX: u32 = 128 << 10;

impl UringConfig {
    /// Defaults for a [`PassthroughTransport`]: I/Os of 128 KiB at most.
    pub fn passthrough() -> Self {
        Self { io_bytes_max: IO_BYTES_MAX, ..Self::default() }
    }

    /// What a [`PassthroughTransport`] of this configuration can do.
    pub fn passthrough_caps(&self) -> TransportCaps {
        self.caps_of::<Commands>()
    }
}

/// Whether there is a namespace that commands can be sent to. A program may leave the transport out where there is none.
/// *Blocking*: reads a directory of sysfs.
pub fn is_possible(machine: &Machine) -> bool {
    !node::names(machine).is_empty()
}

/// Entries of 128 bytes with a command in them.
///
/// A completion entry has no length, so what each I/O asked for is remembered here, under a ticket that is its user data.
pub struct Commands {
    tickets: Box<[Ticket]>,
    /// Tickets that no I/O has.
    free: Vec<u32>,
    completions: Completions,
}

#[derive(Clone, Copy)]
struct Ticket {
    token: Token,
    /// Bytes that the command moves; none while the ticket is free.
    bytes: Option<u32>,
    memory: Memory,
    /// What to do if the driver gives up on it.
    given_up: Retry,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Ordinary,
    Peer,
}

impl Shape for Commands {
    type Submission = squeue::Entry128;
    type Completion = cqueue::Entry32;

    const NAME: TransportName = NVME_PASSTHROUGH;
    /// The driver takes several pieces too, but pieces that do not fill pages make the kernel copy.
    const SEGMENTS_MAX: u8 = 1;
    const TOO_OLD: &'static str = "use Linux 6.1 or newer; the block device of the namespace serves meanwhile";

    fn new(_entries: u32, queue_depth: u32, completions: Completions) -> Self {
        let unused =
            Ticket { token: Token::from_raw(0), bytes: None, memory: Memory::Ordinary, given_up: Retry::Never };
        Self {
            tickets: vec![unused; sw_mem::index(u64::from(queue_depth))].into_boxed_slice(),
            free: (0..queue_depth).rev().collect(),
            completions,
        }
    }

    fn fd(handle: u64) -> RawFd {
        Word::unpack(handle).fd
    }

    #[inline]
    fn is_polled(io: &Io) -> bool {
        matches!(io.kind, IoKind::Read | IoKind::Write)
    }

    #[inline]
    fn entry(&mut self, io: &Io, tables: &Tables) -> Result<squeue::Entry128, Fault> {
        let word = Word::unpack(io.handle);
        if self.completions == Completions::Polled && word.poll_queues == PollQueues::None {
            // The driver would take the command and interrupt: not what was asked for.
            return Err(Fault::new(ErrorKind::Unsupported, libc::EOPNOTSUPP));
        }
        let (command, piece) = match io.kind {
            IoKind::FlushData | IoKind::FlushAll => (Command::flush(word.nsid), None),
            IoKind::Read | IoKind::Write => {
                let [segment] = io.segments() else { return Err(MISUSE) };
                let bytes = segment.len.min(1 << word.command_shift);
                (transfer(io, &word, bytes)?, Some((segment, bytes)))
            }
        };
        let (address, bytes, buffer) = match piece {
            None => (0, 0, None),
            Some((segment, bytes)) => {
                let va = segment.place.host().ok_or(Fault::new(ErrorKind::Unsupported, 0))?;
                (va.raw(), bytes, tables.buffer(segment))
            }
        };
        let memory = match piece {
            Some((segment, _)) if peer::is_peer(segment.region) => Memory::Peer,
            _ => Memory::Ordinary,
        };
        let given_up = after_giving_up(io.kind, word.link);
        let number = self.take(Ticket { token: io.token, bytes: Some(bytes), memory, given_up })?;
        let (fd, flags) = tables.target(io.object, word.fd);
        let mut payload = [0; 80];
        payload[..COMMAND_BYTES].copy_from_slice(&ioctl::pass(&command, address, bytes));
        let entry = opcode::UringCmd80::new(fd, URING_IO).cmd(payload).buf_index(buffer).build();
        Ok(entry.flags(flags).user_data(u64::from(number)))
    }

    #[inline]
    fn end(&mut self, word: u64, result: i32) -> Option<IoDone> {
        let ticket = self.tickets.get_mut(usize::try_from(word).ok()?)?;
        let Ticket { token, memory, given_up, .. } = *ticket;
        let bytes = ticket.bytes.take()?;
        self.free.push(u32::try_from(word).ok()?);
        let result = outcome(result, bytes, given_up);
        let result = if memory == Memory::Peer { result.map_err(peer::as_refusal) } else { result };
        Some(IoDone { token, result, aside: 0 })
    }

    fn word(&self, _token: Token) -> Option<u64> {
        None
    }
}

const MISUSE: Fault = Fault::new(ErrorKind::ApiMisuse, libc::EINVAL);

impl Commands {
    #[inline]
    fn take(&mut self, ticket: Ticket) -> Result<u32, Fault> {
        // The transport takes no more I/Os than there are tickets.
        let number = self.free.pop().ok_or(MISUSE)?;
        let place = self.tickets.get_mut(sw_mem::index(u64::from(number))).ok_or(MISUSE)?;
        *place = ticket;
        Ok(number)
    }
}

/// The command for `bytes` from the start of an I/O.
#[inline]
fn transfer(io: &Io, word: &Word, bytes: u32) -> Result<Command, Fault> {
    let block_mask = (1 << word.block_shift) - 1;
    let nlb = BlockCount::new(bytes >> word.block_shift).ok_or(MISUSE)?;
    if io.offset & u64::from(block_mask) != 0 || bytes & block_mask != 0 {
        return Err(MISUSE);
    }
    let at = LbaRange { nsid: word.nsid, slba: io.offset >> word.block_shift, nlb };
    Ok(match io.kind {
        IoKind::Write => Command::write(at, DataPointer::None, IoFlags::NONE),
        _ => Command::read(at, DataPointer::None, IoFlags::NONE),
    })
}

/// Whether a command that the driver gave up on may be sent again.
///
/// Over PCI the driver has disabled the controller before, so nothing comes late. Over a network it has closed its own end: no
/// memory of ours is touched any more, but the other side may still carry out what it was sent. A write that comes late would
/// undo a newer one, so it is not repeated, and its outcome is unknown (linux drivers/nvme/host/ioctl.c,
/// nvme_uring_cmd_end_io; core.c, nvme_cancel_request; tcp.c and rdma.c, error recovery).
#[inline]
fn after_giving_up(kind: IoKind, link: Link) -> Retry {
    match (kind, link) {
        (IoKind::Write, Link::Network) => Retry::Never,
        _ => Retry::Now,
    }
}

/// What a completion says: minus an errno, or an NVMe status as the driver returns it.
#[inline]
fn outcome(result: i32, bytes: u32, given_up: Retry) -> Result<u32, Fault> {
    match result {
        0 => Ok(bytes),
        // The driver gave up on it: a timeout, or a reset.
        result if result == -libc::EINTR => Err(Fault::new(ErrorKind::Io, libc::EINTR).with_retry(given_up)),
        ..0 => fault::outcome(result),
        status => {
            let status = u16::try_from(status).ok().map(ioctl::status_of);
            let fault = status.and_then(|status| status.fault(&RetryDelays::default()));
            Err(fault.unwrap_or(Fault::new(ErrorKind::Protocol, result)))
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
