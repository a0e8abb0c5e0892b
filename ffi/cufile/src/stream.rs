//! Transfers in the order of a stream, and what is told of streams.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::sync::{Arc, PoisonError};

use straightway::{Error, ErrorKind, StreamGate, Verb};

use crate::{
    abi::{CuFileError, Handle},
    code::{self, Failure},
    edge::{call, negative_word},
    file::{File, file_of},
    library::library,
    memory::Range,
    pointer::{Addr, Kept, Out, stream},
    pump::Job,
    transfer::{Numbers, Transfer},
};

/// What a registered stream promises: the parameter has its last value when the transfer is asked for.
const FIXED_BUF_OFFSET: u32 = 1;
const FIXED_FILE_OFFSET: u32 = 2;
const FIXED_FILE_SIZE: u32 = 4;
const PAGE_ALIGNED: u32 = 8;
/// GPUs that a stream is looked for on, at most: those that an engine serves.
const GPUS_MAX: u16 = 64;

/// Numbers of a transfer that a caller may still change until the stream reaches it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    pub(crate) base: u64,
    size: Kept<usize>,
    file_offset: Kept<i64>,
    buffer_offset: Kept<i64>,
    /// Those that a flag fixed when the transfer was asked for.
    fixed: (Option<usize>, Option<i64>, Option<i64>),
}

impl Late {
    /// The numbers as they are now.
    pub(crate) fn numbers(&self) -> Numbers {
        Numbers {
            base: self.base,
            size: self.fixed.0.unwrap_or_else(|| self.size.get()),
            file_offset: self.fixed.1.unwrap_or_else(|| self.file_offset.get()),
            buffer_offset: self.fixed.2.unwrap_or_else(|| self.buffer_offset.get()),
        }
    }
}

/// What a transfer in a stream is asked with.
struct Asked {
    base: Addr,
    size: Out<usize>,
    file_offset: Out<i64>,
    buffer_offset: Out<i64>,
    moved: Out<isize>,
    stream: Addr,
}

/// `cuFileReadAsync`: a read that begins when the stream has come so far, and that later work of the stream waits for. The numbers are
/// read when it begins, unless the stream was registered with flags that fix them; `*moved` is written before the stream goes on: bytes,
/// or a negative code or errno. All variables stay where they are until then. `stream` NULL: it is done when the call returns.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileReadAsync(
    fh: Handle,
    base: Addr,
    size: Out<usize>,
    file_offset: Out<i64>,
    buffer_offset: Out<i64>,
    moved: Out<isize>,
    stream: Addr,
) -> CuFileError {
    call("cuFileReadAsync", || ask(fh, Verb::Read, &Asked { base, size, file_offset, buffer_offset, moved, stream }))
}

/// `cuFileWriteAsync`: as `cuFileReadAsync`, for a write.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileWriteAsync(
    fh: Handle,
    base: Addr,
    size: Out<usize>,
    file_offset: Out<i64>,
    buffer_offset: Out<i64>,
    moved: Out<isize>,
    stream: Addr,
) -> CuFileError {
    call("cuFileWriteAsync", || ask(fh, Verb::Write, &Asked { base, size, file_offset, buffer_offset, moved, stream }))
}

fn ask(fh: Handle, verb: Verb, asked: &Asked) -> Result<(), Failure> {
    let moved = asked.moved.ready("bytes_done")?;
    let (size, file_offset) = (asked.size.ready("size_p")?, asked.file_offset.ready("file_offset_p")?);
    let buffer_offset = asked.buffer_offset.ready("buf_offset_p")?;
    let file = file_of(fh)?;
    file.may(verb)?;
    let flags = flags_of(asked.stream);
    let fixed = (
        (flags & FIXED_FILE_SIZE != 0).then(|| size.get()),
        (flags & FIXED_FILE_OFFSET != 0).then(|| file_offset.get()),
        (flags & FIXED_BUF_OFFSET != 0).then(|| buffer_offset.get()),
    );
    let late = Late {
        base: asked.base.raw(),
        size: Kept::new(size),
        file_offset: Kept::new(file_offset),
        buffer_offset: Kept::new(buffer_offset),
        fixed,
    };
    if asked.stream.raw() == 0 {
        moved.put(now(file, verb, &late));
        return Ok(());
    }
    // The size now is the largest that it may become: memory that is none is refused before anything is queued.
    let memory = Range::new(file.engine(), late.base, 0, 0)?;
    let pump = library().pump()?;
    pump.wait_for_room();
    let gate = gate(&file, memory.gpu(), asked.stream)?;
    pump.add(Job::new(file, verb, late, Kept::new(moved), (gate, asked.stream.raw())))
}

fn now(file: Arc<File>, verb: Verb, late: &Late) -> isize {
    let done = Transfer::new(file, verb, late.numbers()).and_then(|transfer| transfer.run());
    match done {
        Ok(bytes) => isize::try_from(bytes).unwrap_or(isize::MAX),
        Err(failure) => negative_word(&failure),
    }
}

/// A gate in a stream of the memory's GPU; for host memory of whichever GPU has the stream.
fn gate(file: &File, gpu: Option<u16>, handle: Addr) -> Result<StreamGate, Failure> {
    let close = |gpu: u16| file.engine().stream_gate(gpu, stream(handle));
    if let Some(gpu) = gpu {
        return close(gpu).map_err(refused);
    }
    let mut last = None;
    for gpu in 0..GPUS_MAX {
        match close(gpu) {
            Ok(gate) => return Ok(gate),
            Err(error) if error.kind() == ErrorKind::NoDevice && last.is_some() => break,
            Err(error) => {
                let stop = error.kind() == ErrorKind::NoDevice;
                last = Some(error);
                if stop {
                    break;
                }
            }
        }
    }
    Err(last.map_or_else(|| Failure::new(code::ASYNC_NOT_SUPPORTED, "there is no GPU"), refused))
}

fn refused(error: Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::NoDevice | ErrorKind::Unsupported => code::ASYNC_NOT_SUPPORTED,
        _ => code::CUDA_DRIVER_ERROR,
    };
    let failure = Failure::from(error);
    let cuda = if code == code::CUDA_DRIVER_ERROR { failure.errno.max(code::CUDA_INVALID_VALUE) } else { 0 };
    Failure { code, cuda, errno: 0, ..failure }
}

fn flags_of(stream: Addr) -> u32 {
    let streams = library().streams.read().unwrap_or_else(PoisonError::into_inner);
    streams.get(&stream.raw()).copied().unwrap_or(0)
}

/// `cuFileStreamRegister`: tells which numbers of its transfers are fixed when they are asked for. A stream needs no registration.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileStreamRegister(stream: Addr, flags: u32) -> CuFileError {
    call("cuFileStreamRegister", || {
        let known = FIXED_BUF_OFFSET | FIXED_FILE_OFFSET | FIXED_FILE_SIZE | PAGE_ALIGNED;
        if flags & !known != 0 {
            return Err(Failure::invalid(format!("unknown flags {:#x}", flags & !known)));
        }
        let mut streams = library().streams.write().unwrap_or_else(PoisonError::into_inner);
        if streams.contains_key(&stream.raw()) {
            return Err(Failure::invalid(format!("stream {:#x} is registered already", stream.raw())));
        }
        streams.insert(stream.raw(), flags);
        Ok(())
    })
}

/// `cuFileStreamDeregister`: forgets that.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileStreamDeregister(stream: Addr) -> CuFileError {
    call("cuFileStreamDeregister", || {
        let gone = library().streams.write().unwrap_or_else(PoisonError::into_inner).remove(&stream.raw());
        let unknown = || Failure::invalid(format!("stream {:#x} is not registered", stream.raw()));
        gone.map(drop).ok_or_else(unknown)
    })
}
