//! Copies of the control plane through a copy engine: measuring slab sizes, and device memory out for verification.
//!
//! Both end with a fence. Memory that a device may still touch afterwards is kept for ever, never freed under it.

use std::{fmt, time::Duration};

use sw_engine::{
    Error, ErrorKind, Fault, SlabRate, StagingShape, Time, Token, Verb, choose_staging,
    seam::{CopyDirection, CopyDone, CopyEngine, CopyJob, Fence, SlabPin},
    slab_candidates,
};
use sw_mem::{ByteLen, DmaRegion, DmaSpan, GpuVa, HostVa, HugePages, Place, SlabPool};

use crate::clock::Clock;

/// Longest that measuring one GPU may take, set-up included: an engine must not be slow to start.
const MEASURE_TIME: Duration = Duration::from_millis(40);
/// Bytes of one round: some 0.3 ms of a 25 GB/s link, far longer than the cost of asking whether it is over.
pub(crate) const ROUND_BYTES: u64 = 8 << 20;
/// Rounds of each size; the best counts.
const ROUNDS: usize = 3;
/// Longest that one verification copy may take.
const COPY_WAIT: Duration = Duration::from_secs(10);
/// Longest that copies may go on at the end, before their memory is kept for ever.
const SETTLE_WAIT: Duration = Duration::from_secs(1);
/// Bytes of one verification copy.
const COPY_BYTES: usize = 1 << 20;

/// The staging ring of one GPU's lanes, and where its shape comes from.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    pub(crate) shape: StagingShape,
    pub(crate) source: Source,
}

/// Where a shape comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The builder named it.
    Builder,
    /// Measured; the rates of every size that was.
    Measured(Vec<SlabRate>),
    /// No size could be measured in time: the largest is taken.
    TooSlow,
}

impl fmt::Display for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.shape)?;
        match &self.source {
            Source::Builder => f.write_str("fixed by the builder")?,
            Source::TooSlow => write!(f, "no copy of {} MiB ended within {MEASURE_TIME:?}", ROUND_BYTES >> 20)?,
            Source::Measured(rates) => {
                f.write_str("measured")?;
                for (n, rate) in rates.iter().enumerate() {
                    let comma = if n == 0 { ":" } else { "," };
                    write!(f, "{comma} {} KiB {} MiB/s", rate.slab_bytes >> 10, rate.bytes_per_s >> 20)?;
                }
            }
        }
        f.write_str(")")
    }
}

/// Whether copies of a round are still running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WentOn {
    /// All ended.
    No,
    /// Some had not when the time was over.
    PastTheTime,
}

/// Copies of one size at a time between a pinned pool and device memory.
struct Rig<'a> {
    engine: &'a mut dyn CopyEngine,
    direction: CopyDirection,
    host: HostVa,
    device: GpuVa,
    bytes: u64,
    clock: Clock,
    done: Vec<CopyDone>,
}

/// Measures slab sizes and chooses. `device` has [`ROUND_BYTES`] of the engine's device.
///
/// # Errors
/// `ResourceLimit` if slabs cannot be had or pinned; the engine's fault; `DeadlineExceeded` if copies do not end at all.
pub(crate) fn measure(
    mut engine: Box<dyn CopyEngine>,
    device: DmaRegion,
    budget_bytes: u64,
    io_bytes: u32,
    clock: Clock,
) -> Result<Staging, Error> {
    let until = clock.now().after(MEASURE_TIME);
    let sizes = slab_candidates(budget_bytes, io_bytes);
    let largest = sizes.last().copied().unwrap_or(io_bytes);
    let bytes = ROUND_BYTES.max(u64::from(largest));
    let (pool, pin) = pinned(engine.as_mut(), bytes)?;
    let (Some(host), Place::Device(_, start)) = (pool.memory().place().host(), device.base()) else {
        return Err(no_device_memory());
    };
    let bytes = bytes.min(device.len().0);
    let done = Vec::with_capacity(engine.caps().queue_depth as usize);
    let direction = CopyDirection::ToDevice;
    let mut rig = Rig { engine: engine.as_mut(), direction, host, device: start, bytes, clock, done };
    let measured = rig.rates(&sizes, until);
    settle(engine, (pool, pin), device)?;
    let rates = measured
        .map_err(|fault| copy_error(fault).detail("a copy to device memory failed while slab sizes were measured"))?;
    Ok(match choose_staging(&rates, budget_bytes) {
        Some(shape) => Staging { shape, source: Source::Measured(rates) },
        None => Staging { shape: StagingShape::within(budget_bytes, largest), source: Source::TooSlow },
    })
}

/// Bytes per second of copies of `slab_bytes` one way between pinned memory and `device`, which has [`ROUND_BYTES`], for
/// about `time`: what transfers could reach if nothing else cost anything. `slab_bytes` divides [`ROUND_BYTES`].
///
/// # Errors
/// As [`measure`].
pub(crate) fn copy_rate(
    mut engine: Box<dyn CopyEngine>,
    device: DmaRegion,
    (direction, slab_bytes): (CopyDirection, u32),
    time: Duration,
    clock: Clock,
) -> Result<u64, Error> {
    let (pool, pin) = pinned(engine.as_mut(), ROUND_BYTES)?;
    let (Some(host), Place::Device(_, start)) = (pool.memory().place().host(), device.base()) else {
        return Err(no_device_memory());
    };
    let bytes = ROUND_BYTES.min(device.len().0);
    let done = Vec::with_capacity(engine.caps().queue_depth as usize);
    let mut rig = Rig { engine: engine.as_mut(), direction, host, device: start, bytes, clock, done };
    let measured = rig.rate(slab_bytes, time);
    settle(engine, (pool, pin), device)?;
    measured
        .map_err(|fault| copy_error(fault).detail("a copy failed while its rate was measured"))?
        .ok_or_else(too_long)
}

impl Rig<'_> {
    /// The rate of whole rounds of one size, for about `time` after one that warms up. `None` if one did not end at all.
    fn rate(&mut self, slab_bytes: u32, time: Duration) -> Result<Option<u64>, Fault> {
        let limit = self.clock.now().after(COPY_WAIT);
        if self.round(slab_bytes, limit)? == WentOn::PastTheTime {
            return Ok(None);
        }
        let (start, mut moved) = (self.clock.now(), 0u64);
        loop {
            if self.round(slab_bytes, start.after(time).after(COPY_WAIT))? == WentOn::PastTheTime {
                return Ok(None);
            }
            moved += self.bytes;
            let spent = self.clock.now().since(start);
            if spent >= time {
                let rate = u128::from(moved) * 1_000_000_000 / spent.as_nanos().max(1);
                return Ok(Some(u64::try_from(rate).unwrap_or(u64::MAX)));
            }
        }
    }

    /// The best rate of each size of which a round ended by `until`. Sizes take turns, so that a disturbance meets all.
    fn rates(&mut self, sizes: &[u32], until: Time) -> Result<Vec<SlabRate>, Fault> {
        let mut rates: Vec<SlabRate> = Vec::with_capacity(sizes.len());
        // Memory that was never touched, queues that were never used: the first round tells nothing about a rate.
        let largest = sizes.last().copied().unwrap_or(0);
        if self.round(largest, until)? == WentOn::PastTheTime {
            return Ok(rates);
        }
        for slab_bytes in sizes.iter().cycle().take(sizes.len() * ROUNDS).copied() {
            let start = self.clock.now();
            // After a round that was cut off its copies still run; they would be counted with the next one.
            if start >= until || self.round(slab_bytes, until)? == WentOn::PastTheTime {
                break;
            }
            let nanos = self.clock.now().since(start).as_nanos().max(1);
            let bytes_per_s = u64::try_from(u128::from(self.bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
            match rates.iter_mut().find(|rate| rate.slab_bytes == slab_bytes) {
                Some(rate) => rate.bytes_per_s = rate.bytes_per_s.max(bytes_per_s),
                None => rates.push(SlabRate { slab_bytes, bytes_per_s }),
            }
        }
        Ok(rates)
    }

    /// Copies the whole window once, as many slabs in flight as the engine takes.
    fn round(&mut self, slab_bytes: u32, until: Time) -> Result<WentOn, Fault> {
        let depth = u64::from(self.engine.caps().queue_depth);
        let count = self.bytes / u64::from(slab_bytes);
        let (mut sent, mut ended) = (0u64, 0u64);
        while ended < count {
            while sent < count && sent - ended < depth {
                let at = ByteLen(sent * u64::from(slab_bytes));
                let (Some(host), Some(device)) = (self.host.checked_add(at), self.device.checked_add(at)) else {
                    return Err(Fault::new(ErrorKind::Protocol, 0));
                };
                let (token, direction) = (Token::from_raw(sent), self.direction);
                self.engine.submit(&CopyJob { token, direction, host, device, len: slab_bytes })?;
                sent += 1;
            }
            self.engine.ring()?;
            self.done.clear();
            self.engine.poll(&mut self.done)?;
            self.done.iter().try_for_each(|end| end.result)?;
            ended += self.done.len() as u64;
            if ended < count && self.clock.now() >= until {
                return Ok(WentOn::PastTheTime);
            }
            std::hint::spin_loop();
        }
        Ok(WentOn::No)
    }
}

/// Device memory to the host and back, a piece at a time through one pinned slab. For verification and for bytes that no
/// read can put in place, not for speed. Between calls nothing is in flight.
pub(crate) struct Reader {
    parts: Option<Parts>,
}

/// Fields drop in this order: the pin ends before its memory.
struct Parts {
    pin: Box<dyn SlabPin>,
    pool: SlabPool,
    engine: Box<dyn CopyEngine>,
}

impl Reader {
    /// # Errors
    /// `ResourceLimit` if a slab cannot be had or pinned.
    pub(crate) fn new(mut engine: Box<dyn CopyEngine>) -> Result<Self, Error> {
        let (pool, pin) = pinned(engine.as_mut(), COPY_BYTES as u64)?;
        Ok(Self { parts: Some(Parts { pin, pool, engine }) })
    }

    /// Shows `len` bytes from byte `at` on of device memory, which lies in `region`, to `each`, in order.
    ///
    /// # Errors
    /// `OutOfRange`, the engine's fault, `DeadlineExceeded`; `Closed` after a copy that failed.
    pub(crate) fn visit(
        &mut self,
        from: (Place, ByteLen),
        region: &DmaRegion,
        (at, len): (u64, u64),
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.with(from, region, (at, len), |parts, base| parts.copy_out(base, (at, len), each))
    }

    /// Copies `bytes` to byte `at` on.
    ///
    /// # Errors
    /// As [`Reader::visit`].
    pub(crate) fn put(&mut self, to: &DmaSpan, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.with((to.place(), to.len()), to.region(), (at, bytes.len() as u64), |parts, base| {
            parts.copy_in(base, at, bytes)
        })
    }

    fn with(
        &mut self,
        (place, have): (Place, ByteLen),
        region: &DmaRegion,
        (at, len): (u64, u64),
        copy: impl FnOnce(&mut Parts, GpuVa) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Place::Device(device, base) = place else { return Err(no_device_memory()) };
        if at.checked_add(len).is_none_or(|end| end > have.0) {
            return Err(Error::new(ErrorKind::OutOfRange, Verb::Copy)
                .at(format!("gpu{} memory", device.0))
                .in_range(at, len)
                .detail(format!("the range ends past the memory, which has {} bytes", have.0)));
        }
        let Some(mut parts) = self.parts.take() else {
            return Err(Error::new(ErrorKind::Closed, Verb::Copy).detail("a copy failed before").remedy("begin anew"));
        };
        match copy(&mut parts, base) {
            Ok(()) => {
                self.parts = Some(parts);
                Ok(())
            }
            Err(error) => {
                settle(parts.engine, (parts.pool, parts.pin), region.clone())?;
                Err(error)
            }
        }
    }
}

impl Parts {
    fn copy_out(&mut self, base: GpuVa, (at, len): (u64, u64), each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let mut piece = vec![0; COPY_BYTES.min(sw_mem::index(len))];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(COPY_BYTES as u64);
            let Some(bytes) = piece.get_mut(..sw_mem::index(now)) else { return Err(no_device_memory()) };
            self.one(CopyDirection::FromDevice, base, (at.saturating_add(done), now))?;
            self.pool.memory().read(0, bytes).map_err(|cause| no_device_memory().caused_by(cause))?;
            each(bytes);
            done += now;
        }
        Ok(())
    }

    fn copy_in(&mut self, base: GpuVa, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        for piece in bytes.chunks(COPY_BYTES) {
            self.pool.memory().write(0, piece).map_err(|cause| no_device_memory().caused_by(cause))?;
            let now = piece.len() as u64;
            self.one(CopyDirection::ToDevice, base, (at.saturating_add(done), now))?;
            done += now;
        }
        Ok(())
    }

    /// Moves at most `COPY_BYTES` between the slab and the device, and waits for it.
    fn one(&mut self, direction: CopyDirection, base: GpuVa, (at, len): (u64, u64)) -> Result<(), Error> {
        let (Some(device), Some(host)) = (base.checked_add(ByteLen(at)), self.pool.memory().place().host()) else {
            return Err(no_device_memory());
        };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        one_copy(self.engine.as_mut(), &CopyJob { token: Token::from_raw(1), direction, host, device, len })
    }
}

fn one_copy(engine: &mut dyn CopyEngine, job: &CopyJob) -> Result<(), Error> {
    let fault = |fault| copy_error(fault).detail("a copy between a slab and device memory failed");
    let mut done = Vec::with_capacity(4);
    engine.submit(job).and_then(|()| engine.ring()).map_err(fault)?;
    match engine.fence(COPY_WAIT, &mut done) {
        Fence::Quiet => {}
        // A lost device says so; one that is merely silent does not.
        Fence::Busy(_) => {
            let told = engine.ring().err().map_or_else(too_long, fault);
            return Err(told);
        }
    }
    match done.first() {
        Some(end) => end.result.map_err(fault),
        // Quiet without an end: the copy never ran.
        None => Err(fault(engine.ring().err().unwrap_or(Fault::new(ErrorKind::Io, 0)))),
    }
}

/// A pool of one slab of `bytes`, pinned for `engine`.
fn pinned(engine: &mut dyn CopyEngine, bytes: u64) -> Result<(SlabPool, Box<dyn SlabPin>), Error> {
    let pool = SlabPool::new(1, ByteLen(bytes), HugePages::Advise).map_err(|cause| {
        Error::new(ErrorKind::ResourceLimit, Verb::Copy).detail("no memory for a slab").caused_by(cause)
    })?;
    let pin = engine.pin(pool.region()).map_err(|fault| {
        copy_error(fault)
            .detail("the copy engine cannot pin a slab")
            .remedy("raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)")
    })?;
    Ok((pool, pin))
}

/// Lets go of engine and memory once no copy runs; keeps them for ever if one may.
fn settle(
    mut engine: Box<dyn CopyEngine>,
    slabs: (SlabPool, Box<dyn SlabPin>),
    device: DmaRegion,
) -> Result<(), Error> {
    let mut done = Vec::with_capacity(engine.caps().queue_depth as usize);
    if engine.fence(SETTLE_WAIT, &mut done) == Fence::Quiet {
        // The pin ends before its memory.
        let (pool, pin) = slabs;
        drop(pin);
        drop(pool);
        return Ok(());
    }
    let lost = engine.ring().err();
    keep_for_ever((engine, slabs, device));
    // Known to be lost: the caller tells that. Otherwise it is news.
    lost.map_or_else(|| Err(too_long()), |fault| Err(copy_error(fault).detail("the device was lost during a copy")))
}

fn copy_error(fault: Fault) -> Error {
    Error::from_fault(fault, Verb::Copy).remedy(
        "see `straightway doctor` and the kernel log for the device; a device that was lost needs a new process",
    )
}

fn too_long() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, Verb::Copy)
        .detail(format!("a copy between a slab and device memory took over {} s", COPY_WAIT.as_secs()))
        .remedy("see the kernel log for the device")
}

fn no_device_memory() -> Error {
    Error::new(ErrorKind::ApiMisuse, Verb::Copy).detail("not device memory")
}

#[expect(
    clippy::mem_forget,
    reason = "a device may still touch this memory; freeing it would corrupt whoever gets it next"
)]
fn keep_for_ever<T>(what: T) {
    std::mem::forget(what);
}
