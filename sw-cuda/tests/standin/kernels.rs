//! Modules and launches. The stand-in runs the kernels' sources as code of this machine: what is shown is their logic and ours, not what
//! a device makes of the PTX.
// UNSAFETY: cases play the caller of `Kernels::launch`.

use std::ffi::c_void;
use std::time::Duration;

use standin_libcuda::{
    harness::{Control, KERNEL},
    runner::End as KnownEnd,
};
use sw_cuda::{Context, DeviceBuffer, DeviceSums, Driver, Kernels, Stream, SumRange};
use sw_engine::ErrorKind;
use sw_engine::checksum::Algorithm;
use sw_kernels::{Entry, Launch};
use sw_mem::{ByteLen, DmaSpan, GpuVa, index};
use sw_testkit::conformance::{CaseResult, End, fail, kernels::Bed};
use sw_testkit::pattern;

use crate::{Case, KERNELS, Library, Outcome, case, copies::other, first_context, holds, same, text};

const LAZY: &[(&str, &str)] = &[("STANDIN_MODE", "lazy"), KERNELS];
const WORKER: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "20"), KERNELS];
const OLDER: &[(&str, &str)] = &[("STANDIN_DRIVER_VERSION", "11080"), KERNELS];

pub fn cases() -> Vec<Case> {
    vec![
        Case { settings: WORKER, ..case("kernels_conform", conform) },
        Case { settings: LAZY, ..case("sums_are_of_what_the_device_has_when_streams_run_late", sums) },
        Case { settings: WORKER, ..case("sums_are_of_what_the_device_has_when_streams_run_beside", sums) },
        Case { settings: LAZY, end: KnownEnd::Kept, ..case("a_kernel_that_strays_is_told", faults) },
        Case { settings: LAZY, end: KnownEnd::Kept, ..case("a_kernel_that_fails_gives_no_sums", fails) },
        Case { settings: OLDER, ..case("a_driver_older_than_the_kernels_is_told", older) },
        case("a_device_without_code_for_the_kernels_is_told", no_code),
        Case { library: Library::Without("cuLaunchKernel"), ..case("a_driver_without_launches_is_told", no_launches) },
    ]
}

/// Copies by the driver's blocking calls: no product code but the launch.
struct DriverBed {
    kernels: Kernels,
    stream: Stream,
    memory: Vec<DeviceBuffer>,
}

impl DriverBed {
    fn copy(&self, call: &str, to: usize, from: usize, len: usize) -> CaseResult {
        if len == 0 {
            return Ok(());
        }
        type Copy = unsafe extern "C" fn(usize, usize, usize) -> u32;
        let library = other::library().or_else(fail)?;
        // SAFETY: the signature of cuda.h, for both calls.
        let copy = unsafe { library.get::<Copy>(call.as_bytes()) }.or_else(|error| fail(error.to_string()))?;
        // SAFETY: the suite gives ranges of its own memory.
        match unsafe { copy(to, from, len) } {
            0 => Ok(()),
            code => fail(format!("{call} answered {code}")),
        }
    }
}

fn told<T>(result: Result<T, impl std::fmt::Display>) -> Result<T, End> {
    result.or_else(|error| fail(error.to_string()))
}

impl Bed for DriverBed {
    fn name(&self) -> String {
        "the stand-in driver".to_owned()
    }

    fn allocate(&mut self, offset: u64, len: u64) -> Result<GpuVa, End> {
        let buffer = told(DeviceBuffer::allocate(self.kernels.context(), ByteLen(offset + len.max(1))))?;
        let at = buffer.base().checked_add(ByteLen(offset));
        self.memory.push(buffer);
        at.map_or_else(|| fail("an address that is none"), Ok)
    }

    fn write(&mut self, at: GpuVa, bytes: &[u8]) -> CaseResult {
        self.copy("cuMemcpyHtoD_v2", index(at.raw()), bytes.as_ptr().cast::<c_void>().expose_provenance(), bytes.len())
    }

    fn read(&mut self, at: GpuVa, len: u64) -> Result<Vec<u8>, End> {
        let mut bytes = vec![0u8; index(len)];
        let to = bytes.as_mut_ptr().cast::<c_void>().expose_provenance();
        self.copy("cuMemcpyDtoH_v2", to, index(at.raw()), bytes.len())?;
        Ok(bytes)
    }

    fn launch(&mut self, launch: &Launch) -> CaseResult {
        // SAFETY: the suite launches over its own memory and waits here.
        told(unsafe { self.kernels.launch(launch, &self.stream) })?;
        wait(&self.stream).or_else(fail)
    }

    fn free(&mut self) -> CaseResult {
        self.memory.clear();
        Ok(())
    }
}

fn wait(stream: &Stream) -> Outcome {
    let start = std::time::Instant::now();
    while !stream.is_idle().map_err(text)? {
        if start.elapsed() > Duration::from_secs(20) {
            return Err("a kernel did not end".to_owned());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// The primary context, current in this thread for the bed's blocking copies.
fn context_current() -> Result<Context, String> {
    let ours = first_context()?;
    let context = other::answer("cuDevicePrimaryCtxRetain", Some(0))?;
    other::with_handle("cuDevicePrimaryCtxRelease_v2", 0)?;
    other::with_handle("cuCtxPushCurrent_v2", context)?;
    Ok(ours)
}

fn conform() -> Outcome {
    let context = context_current()?;
    let (kernels, stream) = (Kernels::new(&context).map_err(text)?, Stream::new(&context).map_err(text)?);
    let mut bed = DriverBed { kernels, stream, memory: Vec::new() };
    sw_testkit::conformance::kernels::run(&mut bed).assert_green(&[]);
    let control = Control::open()?;
    holds("kernels ran", control.stat("kernels") > 500)?;
    same("modules, each loaded once", control.stat("calls.cuModuleLoadDataEx"), 4)?;
    drop(bed);
    same("modules left", control.stat("live.modules"), 0)
}

/// Device memory with a content.
fn filled(context: &Context, bed: &mut DriverBed, tag: u64, len: u64) -> Result<DmaSpan, String> {
    let buffer = DeviceBuffer::allocate(context, ByteLen(len)).map_err(text)?;
    bed.write(buffer.base(), &pattern::bytes(tag, 0, index(len))).map_err(text)?;
    buffer.into_region().map_err(text)?.span(0, ByteLen(len)).map_err(text)
}

fn sums() -> Outcome {
    let context = context_current()?;
    let kernels = Kernels::new(&context).map_err(text)?;
    let mut bed = DriverBed { kernels: kernels.clone(), stream: Stream::new(&context).map_err(text)?, memory: vec![] };
    let memory = filled(&context, &mut bed, 5, 300_001)?;
    let content = pattern::bytes(5, 0, 300_001);
    let mut device = DeviceSums::new(&kernels).map_err(text)?;
    // More ranges than one launch takes.
    let ranges: Vec<(u64, u64)> =
        (0..8300).map(|n| (n * 7, n % 50)).chain([(0, 300_001), (3, 0), (777, 200_000)]).collect();
    let asked = |(at, len): &(u64, u64)| SumRange { memory: &memory, at: *at, len: ByteLen(*len) };
    for algorithm in [Algorithm::Crc32c, Algorithm::Crc64Nvme] {
        let got = device.of(algorithm, &ranges.iter().map(asked).collect::<Vec<_>>()).map_err(text)?;
        let want: Vec<u64> =
            ranges.iter().map(|(at, len)| algorithm.of(&content[index(*at)..index(*at + *len)])).collect();
        same("sums", got, want)?;
    }
    let outside = device.of(Algorithm::Crc32c, &[asked(&(1, 300_001))]);
    same("a range past the end", outside.map_err(|error| error.kind), Err(ErrorKind::OutOfRange))?;
    let host = sw_mem::Buffer::allocate(ByteLen(4096)).map_err(text)?.into_span();
    let wrong = device.of(Algorithm::Crc32c, &[SumRange { memory: &host, at: 0, len: ByteLen(1) }]);
    same("host memory", wrong.map_err(|error| error.kind), Err(ErrorKind::ApiMisuse))?;
    same("no ranges", device.of(Algorithm::Crc32c, &[]), Ok(vec![]))
}

fn faults() -> Outcome {
    let context = context_current()?;
    let kernels = Kernels::new(&context).map_err(text)?;
    let mut bed = DriverBed { kernels: kernels.clone(), stream: Stream::new(&context).map_err(text)?, memory: vec![] };
    let memory = filled(&context, &mut bed, 5, 5000)?;
    let control = Control::open()?;
    let range = [SumRange { memory: &memory, at: 0, len: ByteLen(5000) }];
    let mut device = DeviceSums::new(&kernels).map_err(text)?;
    // Refused before anything runs: the next call is as if nothing had been.
    control.set_fault("cuLaunchKernel", 1, 701);
    let refused = device.of(Algorithm::Crc32c, &range);
    same("a refused launch", refused.map_err(|error| error.code), Err(701))?;
    holds("the next one runs", device.of(Algorithm::Crc32c, &range).is_ok())?;
    // A launch over memory that nobody has: the device stops it, and the context with it.
    let nobodys = GpuVa::new(memory.place().raw() + (1 << 20));
    let stray = sw_kernels::poison::fill_launch(nobodys, ByteLen(64), 1).map_err(text)?;
    // SAFETY: broken on purpose: the stand-in knows every address.
    unsafe { kernels.launch(&stray, &bed.stream) }.map_err(text)?;
    let told = wait(&bed.stream);
    holds("a stray kernel is told", told.is_err_and(|error| error.contains("700")))?;
    let after = device.of(Algorithm::Crc32c, &range);
    same("the context after it", after.map_err(|error| error.code), Err(700))?;
    Ok(())
}

/// A kernel that the device gives up while it runs: no sum comes back, and the context is lost.
fn fails() -> Outcome {
    let context = context_current()?;
    let kernels = Kernels::new(&context).map_err(text)?;
    let mut bed = DriverBed { kernels: kernels.clone(), stream: Stream::new(&context).map_err(text)?, memory: vec![] };
    let memory = filled(&context, &mut bed, 5, 5000)?;
    let mut device = DeviceSums::new(&kernels).map_err(text)?;
    Control::open()?.set_fault(KERNEL, 1, 719);
    let range = [SumRange { memory: &memory, at: 0, len: ByteLen(5000) }];
    let failed = device.of(Algorithm::Crc64Nvme, &range);
    same("a kernel that fails", failed.map_err(|error| error.code), Err(719))?;
    let after = device.of(Algorithm::Crc64Nvme, &range);
    same("and then", after.map_err(|error| error.kind), Err(ErrorKind::Closed))
}

fn refused(what: &str) -> Outcome {
    let context = first_context()?;
    let kernels = Kernels::new(&context).map_err(text)?;
    for entry in Entry::ALL {
        same(what, kernels.load(*entry).map_err(|error| error.kind), Err(ErrorKind::Unsupported))?;
    }
    let error = DeviceSums::new(&kernels).err().ok_or("sums without kernels")?;
    holds("a remedy", error.to_string().contains("CUDA 12.0"))
}

fn older() -> Outcome {
    same("version", Driver::load().map_err(text)?.version().major, 11)?;
    refused("PTX of CUDA 12 for a driver of CUDA 11.8")
}

fn no_code() -> Outcome {
    refused("no code for the device")
}

fn no_launches() -> Outcome {
    let context = first_context()?;
    same("kernels", Kernels::new(&context).map(drop).map_err(|error| error.kind), Err(ErrorKind::Unsupported))
}
