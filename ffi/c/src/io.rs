//! # Transfers that wait
//!
//! Each returns when it is over, and tells the way that its bytes took.
// UNSAFETY: exported names, and structures that C callers fill.
#![expect(unsafe_code, reason = "exported names, and structures that C callers fill")]

use std::time::Duration;

use straightway::{
    ByPath, Completed, DataPath, Error, Landing, Memory, Policy, Reason, Request, checksum::Algorithm, parse_policy,
};

use crate::{
    edge::{ask, misuse},
    handle::Handle,
    names,
    object::{ObjectState, SW_VERB_FLUSH, SW_VERB_READ, SW_VERB_WRITE, SwObject, SwVerb},
    op::SwOp,
    pointer::{Addr, In, Out, Plain, SizedOut, Str, versioned},
    region::SwRegion,
    status::{SW_OK, SwStatus, status_of},
};

/// A checksum of the bytes of an operation.
pub type SwChecksum = i32;

/// None.
pub const SW_CHECKSUM_NONE: SwChecksum = 0;
/// CRC-32C, in the low 32 bits.
pub const SW_CHECKSUM_CRC32C: SwChecksum = 1;
/// CRC-64/NVME.
pub const SW_CHECKSUM_CRC64_NVME: SwChecksum = 2;

/// Bits of `sw_io_options.flags`.
pub type SwIoFlags = u32;

/// Before a read, host memory is filled with the byte `poison`, so that bytes that never arrive show.
pub const SW_IO_POISON: SwIoFlags = 1;
/// A flush makes all metadata durable too.
pub const SW_IO_ALL_METADATA: SwIoFlags = 2;
/// When the operation is over, 1 is added to the eventfd `event_fd`. Only for operations that are started.
pub const SW_IO_EVENT_FD: SwIoFlags = 4;

/// The operation takes its place in the stream `stream` of the GPU `stream_gpu`: it begins when everything that the stream holds
/// now is done, and what is submitted to the stream after this call waits until it is over, well or not. Only for operations that are
/// started. The stream is of the device's primary context, as those of the CUDA runtime are, and lives until the operation is over.
/// Operations in one stream come one after the other; a vectored one is one. A deadline counts from when it begins.
pub const SW_IO_STREAM: SwIoFlags = 8;

/// Parts of a vectored operation at most.
pub const SW_PARTS_MAX: u32 = 65_536;

/// Told of the end of an operation, once, with `sw_io_options.user`; `op` is NULL for an operation that was started without a
/// place for its handle. `sw_error_last` tells more of an error. Callbacks of one engine run one after the other, by a thread of
/// the library's: one that takes long delays the others. A callback may call every function; it must not throw an exception or
/// leave by longjmp.
pub type SwCallback = Option<extern "C" fn(op: Handle<SwOp>, completion: In<SwCompletion>, user: Addr)>;

/// How an operation is done. All zeros but for the size are the defaults.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwIoOptions {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// Which routes are accepted: `any`, `prefer=ROUTE`, `require=ROUTE` or `require-core=ROUTE`, with a route such as `dma`,
    /// `staged` or `io_uring/dma`. NULL: any.
    pub policy: Str,
    /// Nanoseconds from the call to when the caller's wait ends; 0: never. A device may touch the memory longer:
    /// `sw_region_free` tells.
    pub deadline_ns: u64,
    /// Which checksum to compute.
    pub checksum: SwChecksum,
    /// `SW_IO_` bits.
    pub flags: SwIoFlags,
    /// With `SW_IO_POISON`: a byte, 0 to 255.
    pub poison: u32,
    /// With `SW_IO_EVENT_FD`: an eventfd(2). The library works on a duplicate of it.
    pub event_fd: i32,
    /// With `SW_IO_STREAM`: a `CUstream` or `cudaStream_t`; NULL is the legacy default stream.
    pub stream: Addr,
    /// With `SW_IO_STREAM`: whose it is, counted as the driver counts.
    pub stream_gpu: u32,
    /// Zero.
    pub reserved: u32,
    /// Told when the operation is over; NULL: nobody is. Only for operations that are started.
    pub callback: SwCallback,
    /// For the callback; comes back in `sw_completion.user`.
    pub user: Addr,
}

versioned!(SwIoOptions, "sw_io_options", 72);

/// A part of a vectored operation: `length` bytes at `offset` of the object, and at `region_offset` of the region. All parts of
/// one operation are in one kind of memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwPart {
    /// Bytes from the start of the object.
    pub offset: u64,
    /// The region.
    pub region: Handle<SwRegion>,
    /// Bytes from the start of the region.
    pub region_offset: u64,
    /// Bytes.
    pub length: u64,
}

// SAFETY: `repr(C)`, numbers and a handle; no padding.
unsafe impl Plain for SwPart {}

/// Who wrote the final bytes.
pub type SwLanding = i32;

/// Nobody: no byte moved.
pub const SW_LANDING_NONE: SwLanding = 0;
/// A device wrote or read the memory itself. This and nothing else is direct.
pub const SW_LANDING_DMA: SwLanding = 1;
/// The kernel copied once between its page cache and the memory.
pub const SW_LANDING_KERNEL_COPY: SwLanding = 2;
/// The bytes went through a slab of the engine's.
pub const SW_LANDING_STAGED: SwLanding = 3;

/// The end of an operation, with the way that its bytes took. Its texts live for ever.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwCompletion {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// What became of it.
    pub status: SwStatus,
    /// The landing of most of its bytes.
    pub landing: SwLanding,
    /// Bytes moved: all that were asked for, or 0 with an error.
    pub bytes: u64,
    /// Who moved them between object and memory, such as `io_uring`.
    pub transport: Str,
    /// Code of why the least direct of its bytes went no better way, such as `BEST`. `docs/paths.md` lists them.
    pub reason: Str,
    /// The same for people.
    pub reason_text: Str,
    /// Bytes that a device wrote or read in place.
    pub bytes_dma: u64,
    /// Bytes that the kernel copied once.
    pub bytes_kernel_copy: u64,
    /// Bytes through a slab or bounce block of the engine's.
    pub bytes_staged: u64,
    /// Of all bytes, those that passed through memory of the engine's.
    pub bounced: u64,
    /// Bytes that a CPU copied, once per copy.
    pub cpu_copied: u64,
    /// The checksum that was asked for, if `has_checksum`.
    pub checksum: u64,
    /// 1 if there is a checksum: it was asked for, the operation succeeded, and the CPU saw its bytes.
    pub has_checksum: i32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds until its first part was with the transport.
    pub queued_ns: u64,
    /// Nanoseconds from then until the last part was back.
    pub moving_ns: u64,
    /// `sw_io_options.user`.
    pub user: Addr,
}

versioned!(SwCompletion, "sw_completion", 128);

impl SwCompletion {
    pub(crate) fn new(done: &Completed, user: Addr) -> Self {
        let DataPath { route, bytes, bounced, cpu_copied, reason } = done.path;
        let ByPath { dma, kernel_copy, staged } = bytes;
        let (reason, reason_text) = names::reason(reason);
        let (status, moved) = match &done.result {
            Ok(bytes) => (SW_OK, *bytes),
            Err(error) => (status_of(error.kind()), 0),
        };
        Self {
            size: size_of::<Self>(),
            status,
            landing: if bytes.total() == 0 { SW_LANDING_NONE } else { landing(route.landing) },
            bytes: moved,
            transport: names::transport(route.transport),
            reason,
            reason_text,
            bytes_dma: dma,
            bytes_kernel_copy: kernel_copy,
            bytes_staged: staged,
            bounced,
            cpu_copied,
            checksum: done.checksum.unwrap_or_default(),
            has_checksum: i32::from(done.checksum.is_some()),
            reserved: 0,
            queued_ns: done.times.queued_ns,
            moving_ns: done.times.moving_ns,
            user,
        }
    }

    /// Of an operation that never began.
    pub(crate) fn failed(status: SwStatus, user: Addr) -> Self {
        let (reason, reason_text) = names::reason(Reason::Best);
        Self {
            size: size_of::<Self>(),
            status,
            landing: SW_LANDING_NONE,
            bytes: 0,
            transport: Str::of(c""),
            reason,
            reason_text,
            bytes_dma: 0,
            bytes_kernel_copy: 0,
            bytes_staged: 0,
            bounced: 0,
            cpu_copied: 0,
            checksum: 0,
            has_checksum: 0,
            reserved: 0,
            queued_ns: 0,
            moving_ns: 0,
            user,
        }
    }
}

fn landing(landing: Landing) -> SwLanding {
    match landing {
        Landing::Dma => SW_LANDING_DMA,
        Landing::KernelCopy => SW_LANDING_KERNEL_COPY,
        Landing::Staged => SW_LANDING_STAGED,
    }
}

/// What is to be moved: of the object, of memory.
#[derive(Clone, Copy)]
pub(crate) enum What {
    One { offset: u64, region: Handle<SwRegion>, region_offset: u64, length: u64 },
    Parts { parts: In<SwPart>, count: usize },
    Nothing,
}

/// What is to be moved, with its memory.
pub(crate) enum Moved {
    One(u64, Memory),
    Parts(Vec<(u64, Memory)>),
    Nothing,
}

impl Moved {
    /// The request. Nothing of it fails, so that a value as large is made where it stays.
    #[inline(always)]
    pub(crate) fn request(self, state: &ObjectState, verb: SwVerb) -> Request {
        let (engine, object) = (&state.engine.engine, &state.object);
        match self {
            Self::One(offset, memory) if verb == SW_VERB_READ => engine.read(object, offset, memory),
            Self::One(offset, memory) => engine.write(object, offset, memory),
            Self::Parts(parts) if verb == SW_VERB_READ => engine.read_vectored(object, parts),
            Self::Parts(parts) => engine.write_vectored(object, parts),
            Self::Nothing => engine.flush(object),
        }
    }
}

/// The memory of what a caller wants moved.
///
/// # Errors
/// Of the handles and the ranges. Nothing has begun then.
#[inline(always)]
pub(crate) fn moved(state: &ObjectState, verb: SwVerb, what: What) -> Result<Moved, Error> {
    match (verb, what) {
        (SW_VERB_READ | SW_VERB_WRITE, What::One { offset, region, region_offset, length }) => {
            Ok(Moved::One(offset, region.look()?.state()?.part(&state.engine, region_offset, length)?))
        }
        (SW_VERB_READ | SW_VERB_WRITE, What::Parts { parts, count }) => {
            let limit = SW_PARTS_MAX as usize;
            if count == 0 || count > limit {
                return Err(misuse(format!("{count} parts"), "give 1 to 65,536 parts"));
            }
            let part = |index| {
                let SwPart { offset, region, region_offset, length } = parts.element(index, "parts")?;
                Ok((offset, region.look()?.state()?.part(&state.engine, region_offset, length)?))
            };
            Ok(Moved::Parts((0..count).map(part).collect::<Result<_, Error>>()?))
        }
        (SW_VERB_FLUSH, What::Nothing) => Ok(Moved::Nothing),
        (SW_VERB_FLUSH, _) => Err(misuse("a flush with memory", "leave region and parts NULL")),
        (other, _) => Err(misuse(format!("{other} is no sw_verb"), "use a constant SW_VERB_")),
    }
}

/// The same, done as its caller wants it.
///
/// # Errors
/// Of the options. Nothing has begun then.
pub(crate) fn with_options(mut request: Request, options: &SwIoOptions) -> Result<Request, Error> {
    let known = SW_IO_POISON | SW_IO_ALL_METADATA | SW_IO_EVENT_FD | SW_IO_STREAM;
    if options.flags & !known != 0 {
        return Err(crate::edge::unsupported(
            format!("unknown bits {:#x} in sw_io_options.flags", options.flags & !known),
            "update the library, or leave them out",
        ));
    }
    let policy = options.policy.text("sw_io_options.policy")?.map(parse_policy).transpose()?;
    if let Some(policy) = policy.filter(|policy| *policy != Policy::Any) {
        request = request.policy(policy);
    }
    if options.deadline_ns != 0 {
        request = request.deadline(Duration::from_nanos(options.deadline_ns));
    }
    request = match options.checksum {
        SW_CHECKSUM_NONE => request,
        SW_CHECKSUM_CRC32C => request.checksum(Algorithm::Crc32c),
        SW_CHECKSUM_CRC64_NVME => request.checksum(Algorithm::Crc64Nvme),
        other => return Err(misuse(format!("{other} is no sw_checksum"), "use a constant SW_CHECKSUM_")),
    };
    if options.flags & SW_IO_POISON != 0 {
        let byte = u8::try_from(options.poison)
            .map_err(|_| misuse(format!("poison {} is no byte", options.poison), "give 0 to 255"))?;
        request = request.poison(byte);
    }
    if options.flags & SW_IO_ALL_METADATA != 0 {
        request = request.all_metadata();
    }
    Ok(request)
}

fn run(
    object: Handle<SwObject>,
    verb: SwVerb,
    what: What,
    options: In<SwIoOptions>,
    completion: Out<SwCompletion>,
) -> SwStatus {
    ask(|| {
        let out = completion.optional()?;
        let held = object.look()?;
        let state = held.state()?;
        let request = moved(state, verb, what)?.request(state, verb);
        drop(held);
        if options.is_null() { ended(request.wait(), out, Addr::NULL) } else { run_with(request, options, out) }
    })
}

/// A request with options, which few have: the others do not carry it about for them.
#[inline(never)]
fn run_with(request: Request, options: In<SwIoOptions>, out: SizedOut<SwCompletion>) -> Result<SwStatus, Error> {
    let options = options.sized()?;
    if options.callback.is_some() || options.flags & (SW_IO_EVENT_FD | SW_IO_STREAM) != 0 {
        return Err(misuse(
            "an operation that waits tells nobody else, and has no place in a stream",
            "start it, or leave callback, event_fd and stream",
        ));
    }
    ended(with_options(request, &options)?.wait(), out, options.user)
}

#[inline]
fn ended(done: Completed, out: SizedOut<SwCompletion>, user: Addr) -> Result<SwStatus, Error> {
    out.put(|| SwCompletion::new(&done, user));
    done.result.map(|_| SW_OK)
}

/// Reads `length` bytes from byte `offset` of an object to byte `region_offset` of a region. `options` and `completion` may be
/// NULL. With an error of the transfer the completion is filled too; with one of the arguments it is left alone.
///
/// Errors: `SW_ERR_OUT_OF_RANGE` past the end of the object or the region; `SW_ERR_POLICY_UNMET`;
/// `SW_ERR_DEADLINE_EXCEEDED`; what the transport reports.
#[unsafe(no_mangle)]
pub extern "C" fn sw_read(
    object: Handle<SwObject>,
    offset: u64,
    region: Handle<SwRegion>,
    region_offset: u64,
    length: u64,
    options: In<SwIoOptions>,
    completion: Out<SwCompletion>,
) -> SwStatus {
    run(object, SW_VERB_READ, What::One { offset, region, region_offset, length }, options, completion)
}

/// Writes `length` bytes from byte `region_offset` of a region to byte `offset` of an object that was opened for update or
/// created. As `sw_read` otherwise; after an error `sw_error.outcome` tells what became of the bytes.
#[unsafe(no_mangle)]
pub extern "C" fn sw_write(
    object: Handle<SwObject>,
    offset: u64,
    region: Handle<SwRegion>,
    region_offset: u64,
    length: u64,
    options: In<SwIoOptions>,
    completion: Out<SwCompletion>,
) -> SwStatus {
    run(object, SW_VERB_WRITE, What::One { offset, region, region_offset, length }, options, completion)
}

/// Reads `count` parts (1 to `SW_PARTS_MAX`), each from its own offset: one operation, one completion.
#[unsafe(no_mangle)]
pub extern "C" fn sw_readv(
    object: Handle<SwObject>,
    parts: In<SwPart>,
    count: usize,
    options: In<SwIoOptions>,
    completion: Out<SwCompletion>,
) -> SwStatus {
    run(object, SW_VERB_READ, What::Parts { parts, count }, options, completion)
}

/// Writes `count` parts (1 to `SW_PARTS_MAX`), each at its own offset: one operation, one completion.
#[unsafe(no_mangle)]
pub extern "C" fn sw_writev(
    object: Handle<SwObject>,
    parts: In<SwPart>,
    count: usize,
    options: In<SwIoOptions>,
    completion: Out<SwCompletion>,
) -> SwStatus {
    run(object, SW_VERB_WRITE, What::Parts { parts, count }, options, completion)
}

/// Makes completed writes durable.
#[unsafe(no_mangle)]
pub extern "C" fn sw_flush(
    object: Handle<SwObject>,
    options: In<SwIoOptions>,
    completion: Out<SwCompletion>,
) -> SwStatus {
    run(object, SW_VERB_FLUSH, What::Nothing, options, completion)
}
