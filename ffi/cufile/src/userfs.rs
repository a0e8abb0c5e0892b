//! Files of a file system in user space, by the functions that it gives (`CUfileFSOps_t`).
//!
//! Its `read` and `write` move bytes of host memory: those of a GPU go through a buffer here. There is no RDMA, so the description of
//! memory for a network card is empty, and the functions that choose a card are not called. What it answers is what the caller gets: a
//! number of bytes, or an error that stays one (the documented library gave a positive code as a count).

use std::time::Instant;

use straightway::{DataPath, Destination, Landing, Policy, Reason, Route, RouteMatch, Times, Verb};

use crate::{
    abi::Descr,
    code::{self, Failure},
    count::{By, Ended, What},
    file::File,
    memory::Range,
    pointer::{FsCall, fs_ops, fs_type, host_address},
    transfer::{Transfer, count},
};

/// Bytes of device memory that go through the buffer at a time.
const BUFFER_BYTES: u64 = 4 << 20;
/// As reports name the way. Its code writes the memory, so the landing is `staged`.
const ROUTE: Route = Route { transport: "userspace_fs", landing: Landing::Staged };
/// Numbers from here on are codes of cuFile's, or of the file system's above them ("toolchain study", 2.3).
const CODES: i64 = 5000;

/// A file of a file system in user space.
pub(crate) struct UserFs {
    name: String,
    handle: u64,
    read: Option<FsCall>,
    write: Option<FsCall>,
}

impl UserFs {
    /// # Errors
    /// `IO_NOT_SUPPORTED` without functions that move bytes.
    pub(crate) fn new(descr: &Descr) -> Result<Self, Failure> {
        let missing = || Failure::new(code::IO_NOT_SUPPORTED, "fs_ops has neither read nor write");
        if descr.fs_ops == 0 {
            return Err(missing());
        }
        let ops = fs_ops(descr.fs_ops)?;
        let (read, write) = (FsCall::new(ops.read), FsCall::new(ops.write));
        if read.is_none() && write.is_none() {
            return Err(missing());
        }
        let kind = fs_type(ops.fs_type, descr.handle).unwrap_or_else(|| "file system in user space".to_owned());
        Ok(Self { name: format!("{kind} {:#x}", descr.handle), handle: descr.handle, read, write })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn function(&self, verb: Verb) -> Result<FsCall, Failure> {
        let found = if verb == Verb::Write { self.write } else { self.read };
        found.ok_or_else(|| Failure::new(code::IO_NOT_SUPPORTED, format!("{} has no such function", self.name)))
    }

    pub(crate) fn may(&self, verb: Verb) -> Result<(), Failure> {
        self.function(verb).map(drop)
    }

    /// Runs a transfer on this thread.
    ///
    /// # Errors
    /// The file system's; `IO_NOT_SUPPORTED` where a policy demands another way.
    pub(crate) fn run(&self, transfer: &Transfer) -> Result<u64, Failure> {
        let Transfer { file, offset, range, len, .. } = transfer;
        self.run_row((file, transfer.what()), &[(range.clone(), *len)], *offset)
    }

    /// Runs ranges one after the other.
    ///
    /// # Errors
    /// As [`UserFs::run`].
    pub(crate) fn run_row(
        &self,
        (file, what): (&File, What),
        row: &[(Range, u64)],
        offset: u64,
    ) -> Result<u64, Failure> {
        let verb = if matches!(what, What::Write | What::Writev) { Verb::Write } else { Verb::Read };
        allowed(&file.running.policy)?;
        let begun = now();
        let mut moved = Ok(0);
        for (range, len) in row {
            let before = moved.as_ref().copied().unwrap_or(0);
            match self.one(file, verb, (range, *len), offset + before) {
                Ok(bytes) => {
                    moved = Ok(before + bytes);
                    if bytes < *len {
                        break;
                    }
                }
                Err(failure) if before == 0 => {
                    moved = Err(failure);
                    break;
                }
                // What was moved was moved.
                Err(_) => break,
            }
        }
        let gpu = row.first().and_then(|(range, _)| range.gpu());
        let bytes = moved.as_ref().copied().unwrap_or(0);
        let (bounced, reason) = if gpu.is_some() { (bytes, Reason::MemoryUnreachable) } else { (0, Reason::Best) };
        let mut by = DataPath { route: ROUTE, bytes: Default::default(), bounced, cpu_copied: bytes, reason };
        by.bytes.add(Landing::Staged, bytes);
        let times = Times { queued_ns: 0, moving_ns: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX) };
        let ended =
            Ended { what, handle: file.id, gpu, moved: moved.as_ref().ok().copied(), path: by, times, by: By::Call };
        count(file, &ended);
        moved
    }

    fn one(&self, file: &File, verb: Verb, (range, len): (&Range, u64), offset: u64) -> Result<u64, Failure> {
        let function = self.function(verb)?;
        let call = |memory: u64, len: u64, offset: u64| {
            let told = function.call(self.handle, memory, len, offset).map_err(|number| self.failed(number))?;
            // More than was asked for would be bytes that nobody gave room for.
            if told > len {
                return Err(Failure::new(code::IO_ERROR, format!("{} told {told} of {len} bytes", self.name)));
            }
            Ok(told)
        };
        let Some(gpu) = range.gpu() else { return call(range.address(), len, offset) };
        let engine = file.engine();
        let memory = range.part(engine, 0, len)?;
        let mut buffer = vec![0_u8; usize::try_from(len.min(BUFFER_BYTES)).unwrap_or(0)];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(BUFFER_BYTES);
            let part = usize::try_from(want).unwrap_or(0);
            if verb == Verb::Write {
                let mut at = 0;
                engine.copy_out(Destination::Gpu(gpu))?.visit(&memory, done, want, |bytes| {
                    buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    at += bytes.len();
                })?;
            }
            let told = match call(host_address(&mut buffer), want, offset + done) {
                Ok(told) => told,
                // What was moved was moved.
                Err(_) if done > 0 => break,
                Err(failure) => return Err(failure),
            };
            if verb == Verb::Read {
                let told = usize::try_from(told).unwrap_or(part).min(part);
                engine.copy_in(Destination::Gpu(gpu))?.put(&memory, done, &buffer[..told])?;
            }
            done += told;
            if told < want {
                break;
            }
        }
        Ok(done)
    }

    fn failed(&self, number: i64) -> Failure {
        let text = format!("{} told error {number}", self.name);
        match i32::try_from(number) {
            Ok(code) if number > CODES => Failure::new(code, text),
            Ok(errno) => Failure::system(errno, text),
            Err(_) => Failure::new(code::IO_ERROR, text),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "times are told of what no engine times; this is the outermost layer")]
fn now() -> Instant {
    Instant::now()
}

fn allowed(policy: &Policy) -> Result<(), Failure> {
    let fits = |demand: &RouteMatch| {
        demand.transport.is_none_or(|transport| transport == ROUTE.transport)
            && demand.landing.is_none_or(|landing| landing == ROUTE.landing)
    };
    match policy {
        Policy::Require(demand) | Policy::RequireCore(demand) if !fits(demand) => Err(Failure::new(
            code::IO_NOT_SUPPORTED,
            "policy unmet: a file system in user space writes the memory by its own code",
        )),
        _ => Ok(()),
    }
}
