//! Whether io_uring can read and write a dma-buf: the way into device memory that needs no pages.
//!
//! No released kernel can, up to Linux 7.3 (`include/uapi/linux/io_uring.h`: none of its 38 registrations takes a dma-buf for
//! storage; the one for network areas, `IORING_ZCRX_AREA_DMABUF`, is another thing). A series is under review (io-uring
//! mailing list, April 2026, and later revisions): it extends the update of registered buffers, and its numbers may still
//! change. What is not in a released header is not called here: a guess at an interface could do something else. So this
//! module only tells what the kernel says of itself.
// UNSAFETY: io_uring_register takes a pointer.
#![expect(unsafe_code, reason = "io_uring_register")]

/// `IORING_REGISTER_*` operations of Linux 7.3: the newest kernel whose header this program was written by.
const KNOWN_REGISTRATIONS: u32 = 38;

/// What the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmabufRegistration {
    /// It has as many registrations as are known here, or fewer, and none of those takes a dma-buf.
    Absent {
        /// How many it has.
        registrations: u32,
    },
    /// It has more than are known here. One may be it; a newer version of this program is needed to use it.
    PerhapsNewer {
        /// How many it has.
        registrations: u32,
    },
    /// It cannot be asked (before Linux 6.18, or io_uring is blocked). Kernels of that age have none.
    Silent,
}

impl DmabufRegistration {
    fn of(registrations: Option<u32>) -> Self {
        match registrations {
            None => Self::Silent,
            Some(registrations) if registrations > KNOWN_REGISTRATIONS => Self::PerhapsNewer { registrations },
            Some(registrations) => Self::Absent { registrations },
        }
    }
}

/// Asks the kernel. *Blocking*: one system call; no ring is made.
pub fn dmabuf_registration() -> DmabufRegistration {
    DmabufRegistration::of(registrations())
}

/// `nr_register_opcodes` of `IO_URING_QUERY_OPCODES`.
fn registrations() -> Option<u32> {
    const REGISTER_QUERY: u32 = 35;
    let mut answer = Opcodes::default();
    let mut question = Header {
        next: 0,
        data: (&raw mut answer).expose_provenance() as u64,
        operation: 0,
        bytes: u32::try_from(size_of::<Opcodes>()).ok()?,
        result: 0,
        reserved: [0; 3],
    };
    // SAFETY: both structures have the layout of `include/uapi/linux/io_uring/query.h` and are live; the kernel writes at
    // most `bytes` of the answer. No ring is needed for it: -1 says so.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_register, -1, REGISTER_QUERY, &raw mut question, 0u32) };
    (done == 0 && question.result == 0 && answer.registrations > 0).then_some(answer.registrations)
}

/// `struct io_uring_query_hdr`.
#[repr(C)]
struct Header {
    next: u64,
    data: u64,
    operation: u32,
    bytes: u32,
    result: i32,
    reserved: [u32; 3],
}

/// `struct io_uring_query_opcode`.
#[repr(C)]
#[derive(Default)]
struct Opcodes {
    requests: u32,
    registrations: u32,
    features: u64,
    setup_flags: u64,
    enter_flags: u64,
    entry_flags: u64,
    queries: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Header>() == 40 && size_of::<Opcodes>() == 48);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kernel_is_said_to_have_what_no_header_has() {
        for (told, want) in [
            (None, DmabufRegistration::Silent),
            (Some(36), DmabufRegistration::Absent { registrations: 36 }),
            (Some(38), DmabufRegistration::Absent { registrations: 38 }),
            (Some(39), DmabufRegistration::PerhapsNewer { registrations: 39 }),
        ] {
            assert_eq!(DmabufRegistration::of(told), want);
        }
    }

    #[test]
    fn a_kernel_that_answers_has_the_registrations_that_it_was_asked_with() {
        match dmabuf_registration() {
            // The question itself is number 35, counted from zero.
            DmabufRegistration::Absent { registrations } | DmabufRegistration::PerhapsNewer { registrations } => {
                assert!(registrations >= 36, "{registrations}");
            }
            DmabufRegistration::Silent => println!("skip: the kernel cannot be asked"),
        }
    }
}
