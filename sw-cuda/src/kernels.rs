//! The kernels of `sw-kernels` in one context: modules loaded as they are asked for, launches on a stream.
//!
//! Nothing here takes the caller's default stream, and nothing blocks but loading, which makes code of PTX: the driver keeps the result
//! in its cache, so only a machine's first load of a version takes long.
// UNSAFETY: driver calls.
#![expect(unsafe_code, reason = "driver calls")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUfunction, CUjit_option, CUmodule};
use sw_engine::ErrorKind;
use sw_kernels::{Entry, Launch, Module};

use crate::context::Context;
use crate::error::{CudaError, SUCCESS};
use crate::stream::{ForeignStream, Stream};

const LOAD: &str = "cuModuleLoadDataEx";
/// Bytes for what the driver's compiler has to say.
const LOG_BYTES: usize = 4096;

/// Kernels of a context. Cloning shares them; the modules are unloaded with the last one, after their launches have ended.
#[derive(Clone, Debug)]
pub struct Kernels(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    context: Context,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    modules: BTreeMap<Module, CUmodule>,
    functions: BTreeMap<Entry, CUfunction>,
}

// SAFETY: module and function handles may be used from any thread (CUDA Driver API, "Module Management"); they are names here.
unsafe impl Send for Loaded {}

impl Kernels {
    /// Loads nothing yet.
    ///
    /// # Errors
    /// `Unsupported` if the driver lacks one of the functions for modules and launches.
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        let table = context.device().driver().table();
        let there =
            [table.cuModuleUnload.is_some(), table.cuModuleGetFunction.is_some(), table.cuLaunchKernel.is_some()];
        if table.cuModuleLoadDataEx.is_none() || there.contains(&false) {
            return Err(unsupported(context, LOAD));
        }
        Ok(Self(Arc::new(Shared { context: context.clone(), loaded: Mutex::default() })))
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Makes sure that a kernel can be launched: loads its module, if nobody has. *Blocking*: while the driver compiles.
    ///
    /// # Errors
    /// `Unsupported` if the driver is older than the PTX, or has no code for the device; the driver's.
    pub fn load(&self, entry: Entry) -> Result<(), CudaError> {
        self.function(entry).map(drop)
    }

    fn function(&self, entry: Entry) -> Result<CUfunction, CudaError> {
        let context = &self.0.context;
        let mut loaded = self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(&entry) {
            return Ok(*function);
        }
        let module = match loaded.modules.get(&entry.module()) {
            Some(module) => *module,
            None => {
                let module = load(context, entry.module())?;
                loaded.modules.insert(entry.module(), module);
                module
            }
        };
        const CALL: &str = "cuModuleGetFunction";
        let entered = context.enter()?;
        let get = entered.driver().table().cuModuleGetFunction.ok_or_else(|| unsupported(context, CALL))?;
        let name = CString::new(entry.name()).map_err(|_| unsupported(context, CALL))?;
        let mut function: CUfunction = std::ptr::null_mut();
        // SAFETY: a checked symbol, a writable result, our own live module, a zero-terminated name, a current context.
        let answer = unsafe { get(&raw mut function, module, name.as_ptr()) };
        context.check(answer, CALL)?;
        loaded.functions.insert(entry, function);
        Ok(function)
    }

    /// Puts a launch at the end of `stream`, which is of the same context. Blocks only if its module was not loaded yet.
    ///
    /// # Errors
    /// As [`Kernels::load`]; the driver's, and nothing was launched then.
    ///
    /// # Safety
    /// Until the stream has passed the launch, the addresses in it and in the jobs that it names are of device memory that stays
    /// allocated, that nobody else writes, and of which nobody else reads what the kernel writes.
    pub unsafe fn launch(&self, launch: &Launch, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: this function's contract is that of the other; our own stream is alive.
        unsafe { self.launch_in(launch, stream.as_foreign()) }
    }

    /// As [`Kernels::launch`], in a stream of the caller's, which may be one that is captured into a graph: nothing but the launch is done
    /// to it.
    ///
    /// # Errors
    /// As [`Kernels::launch`].
    ///
    /// # Safety
    /// As [`Kernels::launch`]; for a graph, whenever it runs.
    pub unsafe fn launch_in(&self, launch: &Launch, stream: ForeignStream) -> Result<(), CudaError> {
        const CALL: &str = "cuLaunchKernel";
        let context = &self.0.context;
        let function = self.function(launch.entry())?;
        let entered = context.enter()?;
        let run = entered.driver().table().cuLaunchKernel.ok_or_else(|| unsupported(context, CALL))?;
        let mut values = [0u64; sw_kernels::ARGUMENTS_MAX];
        values.iter_mut().zip(launch.arguments()).for_each(|(to, from)| *to = *from);
        let mut pointers = values.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        let (blocks, threads) = (launch.blocks(), launch.threads());
        // SAFETY: a checked symbol, our own live function and stream, a current context; the kernel reads as many pointers as it has
        // parameters, each of 64 bits (`sw-kernels` compares that with the PTX), and the driver copies them before it returns. What the
        // kernel touches is the caller's promise.
        let answer = unsafe {
            run(function, blocks, 1, 1, threads, 1, 1, 0, stream.raw(), pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        context.check(answer, CALL)
    }
}

fn unsupported(context: &Context, call: &'static str) -> CudaError {
    let remedy = "use a driver of CUDA 12.0 or later";
    CudaError::ours(ErrorKind::Unsupported, call, Some(context.device().ordinal()), remedy)
}

fn load(context: &Context, module: Module) -> Result<CUmodule, CudaError> {
    let entered = context.enter()?;
    let load = entered.driver().table().cuModuleLoadDataEx.ok_or_else(|| unsupported(context, LOAD))?;
    let ptx = CString::new(module.ptx()).map_err(|_| unsupported(context, LOAD))?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // CUDA Driver API, "enum CUjit_option": the buffer is a pointer, its size is the value itself.
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
    let mut handle: CUmodule = std::ptr::null_mut();
    // SAFETY: a checked symbol, a writable result, a zero-terminated text, two options with two values, a current context. The driver
    // writes the log during the call only.
    let answer = unsafe { load(&raw mut handle, ptx.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()) };
    if answer != SUCCESS {
        let said = String::from_utf8_lossy(&log);
        let said = said.trim_end_matches('\0').trim();
        tracing::warn!(gpu = context.device().ordinal(), ?module, code = answer, said, "kernels not loaded");
    }
    context.check(answer, LOAD)?;
    Ok(handle)
}

impl Drop for Shared {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Ok(entered) = self.context.enter() else { return };
        let Some(unload) = entered.driver().table().cuModuleUnload else { return };
        for module in loaded.modules.values() {
            // SAFETY: a checked symbol and our own module, used by nobody after this: whoever launches waits before it lets go.
            let answer = unsafe { unload(*module) };
            if answer != SUCCESS {
                tracing::debug!(gpu = self.context.device().ordinal(), code = answer, "module unloaded with an error");
            }
        }
    }
}
