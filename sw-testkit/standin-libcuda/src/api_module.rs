//! Modules, functions and launches.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{
    Answer, INVALID_HANDLE, INVALID_VALUE, In, NO_BINARY_FOR_GPU, NOT_FOUND, NOT_SUPPORTED, Out, Text, api,
};
use crate::kernels::{self, Launch};
use crate::queue::{self, Work};
use crate::state::{self, Module};

api! {
    fn cuModuleLoadData(module: Out<u64>, image: u64) { load(&module, image) }

    fn cuModuleLoadDataEx(module: Out<u64>, image: u64, count: u32, _options: u64, _values: u64) {
        // Options steer a compiler that is not here; none of them changes a result.
        let _count = count;
        load(&module, image)
    }

    fn cuModuleUnload(module: u64) {
        state::attempt(|s| {
            s.current()?;
            s.modules.remove(&module).ok_or(INVALID_HANDLE)?;
            s.functions.retain(|_, (home, _)| *home != module);
            Ok(())
        })
    }

    fn cuModuleGetFunction(function: Out<u64>, module: u64, name: Text) {
        let wanted = name.get()?.to_owned();
        let handle = state::attempt(|s| {
            s.current()?;
            let entry = s.modules.get(&module).ok_or(INVALID_HANDLE)?.entries.iter().find(|e| e.name == wanted).cloned();
            let entry = entry.ok_or(NOT_FOUND)?;
            let handle = s.handle();
            s.functions.insert(handle, (module, entry));
            Ok(handle)
        })?;
        function.set(handle)
    }

    fn cuLaunchKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: u64, parameters: In<u64>, extra: u64,
    ) {
        let (stream, entry) = state::attempt(|s| {
            let context = s.current()?;
            let (module, entry) = s.functions.get(&function).cloned().ok_or(INVALID_HANDLE)?;
            if s.modules.get(&module).is_none_or(|module| module.context != context) {
                return Err(INVALID_HANDLE);
            }
            Ok((s.stream(stream)?, entry))
        })?;
        let flat = [grid_y, grid_z, block_y, block_z] == [1; 4];
        if grid_x == 0 || block_x == 0 || block_x > entry.threads_max {
            return Err(INVALID_VALUE);
        }
        if !flat || shared != 0 || extra != 0 {
            return Err(NOT_SUPPORTED);
        }
        let values = kernels::values_of(&entry, &parameters)?;
        let work = Work::Kernel(Launch { function, shape: (grid_x, block_x), values });
        let seq = state::with(|s| queue::push(s, stream, work))?;
        queue::after_push(stream, seq)
    }
}

fn load(module: &Out<u64>, image: u64) -> Answer {
    let text = kernels::text_at(image)?;
    let handle = state::attempt(|s| {
        let context = s.current()?;
        let entries = kernels::entries_of(&text, s.config.driver_version)?;
        if s.code.is_none() {
            let path = s.config.kernels.clone().ok_or(NO_BINARY_FOR_GPU)?;
            s.code = Some(kernels::Code::load(&path)?);
        }
        let handle = s.handle();
        s.modules.insert(handle, Module { context, entries });
        Ok(handle)
    })?;
    module.set(handle)
}
