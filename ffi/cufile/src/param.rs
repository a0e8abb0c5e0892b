//! Parameters that programs get and set.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{
    ffi::c_char,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    abi::CuFileError,
    code::{self, Failure},
    config::{self, Loaded},
    edge::call,
    library::library,
    log,
    pointer::{In, Out, Str},
    settings::{FLAGS, LOG_LEVEL, Origin, SIZES, SLABS, TEXTS, Values},
};

/// Slabs of one array at most.
const SLABS_MAX: usize = 64;

/// What programs set, and what was read. A call is above everything that was read, whichever comes first.
#[derive(Default)]
pub(crate) struct Settings(Mutex<State>);

#[derive(Default)]
struct State {
    calls: Calls,
    /// Read when somebody first asks; forgotten with the last close.
    loaded: Option<Result<Loaded, Failure>>,
    /// Whether a driver was made with it: nothing may be set then.
    frozen: bool,
}

#[derive(Default)]
struct Calls {
    sizes: [Option<u64>; SIZES.len()],
    flags: [Option<bool>; FLAGS.len()],
    texts: [Option<String>; TEXTS.len()],
    slabs: [Option<Vec<(u64, u64)>>; SLABS.len()],
}

impl Settings {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read, from now on for good.
    ///
    /// # Errors
    /// `DRIVER_INVALID_PROPS` with what is wrong where; then nothing is for good.
    pub(crate) fn frozen(&self) -> Result<Loaded, Failure> {
        let mut state = self.lock();
        let loaded = state.loaded()?.clone();
        state.frozen = true;
        Ok(loaded)
    }

    /// Nothing was read.
    pub(crate) fn thaw(&self) {
        let mut state = self.lock();
        state.frozen = false;
        state.loaded = None;
    }

    /// The values that count.
    ///
    /// # Errors
    /// As [`Settings::frozen`].
    pub(crate) fn effective(&self) -> Result<Values, Failure> {
        let mut state = self.lock();
        let mut values = state.loaded()?.values.clone();
        let calls = &state.calls;
        let over = values.sizes.iter_mut().zip(&calls.sizes);
        over.for_each(|(value, call)| call.iter().for_each(|call| *value = (*call, Origin::Call)));
        let over = values.flags.iter_mut().zip(&calls.flags);
        over.for_each(|(value, call)| call.iter().for_each(|call| *value = (*call, Origin::Call)));
        let over = values.texts.iter_mut().zip(&calls.texts);
        over.for_each(|(value, call)| call.iter().for_each(|call| *value = (call.clone(), Origin::Call)));
        let over = values.slabs.iter_mut().zip(&calls.slabs);
        over.for_each(|(value, call)| call.iter().for_each(|call| *value = (call.clone(), Origin::Call)));
        Ok(values)
    }

    /// Whether a driver is open, which goes by what is set now.
    pub(crate) fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// A number that a call set, also while the driver is open.
    pub(crate) fn call_size(&self, index: usize, value: u64) {
        self.lock().calls.sizes[index] = Some(value);
    }

    /// A yes or no that a call set, also while the driver is open.
    pub(crate) fn call_flag(&self, index: usize, value: impl Into<Option<bool>>) {
        self.lock().calls.flags[index] = value.into();
    }

    fn set(&self, set: impl FnOnce(&mut Calls)) -> Result<(), Failure> {
        let mut state = self.lock();
        if state.frozen {
            return Err(Failure::new(code::DRIVER_ALREADY_OPEN, "parameters are set before the driver is opened"));
        }
        set(&mut state.calls);
        // A mistake in what is read may be cured by now.
        if matches!(state.loaded, Some(Err(_))) {
            state.loaded = None;
        }
        Ok(())
    }
}

impl State {
    fn loaded(&mut self) -> Result<&Loaded, Failure> {
        self.loaded.get_or_insert_with(config::load).as_ref().map_err(Clone::clone)
    }
}

/// The place of a parameter in its table.
fn index<T>(param: i32, table: &[T], kind: &str) -> Result<usize, Failure> {
    let at = usize::try_from(param).ok().filter(|at| *at < table.len());
    at.ok_or_else(|| Failure::invalid(format!("{param} is no parameter that is {kind}")))
}

/// `cuFileGetParameterSizeT`: a number, as it counts now.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetParameterSizeT(param: i32, value: Out<usize>) -> CuFileError {
    call("cuFileGetParameterSizeT", || {
        let out = value.ready("value")?;
        let at = index(param, &SIZES, "a number")?;
        out.put(crate::pointer::address(library().settings.effective()?.size(at)));
        Ok(())
    })
}

/// `cuFileSetParameterSizeT`: before the driver is opened. The range is checked when it is.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileSetParameterSizeT(param: i32, value: usize) -> CuFileError {
    call("cuFileSetParameterSizeT", || {
        let at = index(param, &SIZES, "a number")?;
        library().settings.set(|calls| calls.sizes[at] = Some(value as u64))
    })
}

/// `cuFileGetParameterMinMaxValue`: the range of a number.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetParameterMinMaxValue(param: i32, min: Out<usize>, max: Out<usize>) -> CuFileError {
    call("cuFileGetParameterMinMaxValue", || {
        let (min, max) = (min.ready("min_value")?, max.ready("max_value")?);
        let size = SIZES[index(param, &SIZES, "a number")?];
        min.put(crate::pointer::address(size.min));
        max.put(crate::pointer::address(size.max));
        Ok(())
    })
}

/// `cuFileGetParameterBool`: a yes or no, as it counts now.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetParameterBool(param: i32, value: Out<bool>) -> CuFileError {
    call("cuFileGetParameterBool", || {
        let out = value.ready("value")?;
        let at = index(param, &FLAGS, "yes or no")?;
        out.put(library().settings.effective()?.flags[at].0);
        Ok(())
    })
}

/// `cuFileSetParameterBool`: before the driver is opened.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileSetParameterBool(param: i32, value: bool) -> CuFileError {
    call("cuFileSetParameterBool", || {
        let at = index(param, &FLAGS, "yes or no")?;
        library().settings.set(|calls| calls.flags[at] = Some(value))
    })
}

/// `cuFileGetParameterString`: a text with its zero byte into `len` bytes, which have to be enough: nothing is cut.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetParameterString(param: i32, text: Out<c_char>, len: i32) -> CuFileError {
    call("cuFileGetParameterString", || {
        text.ready("desc_str")?;
        let at = index(param, &TEXTS, "a text")?;
        let room = usize::try_from(len).unwrap_or(0);
        let value = &library().settings.effective()?.texts[at].0;
        text.text(value.as_bytes(), room).map(drop).ok_or_else(|| {
            Failure::invalid(format!("{room} bytes are too few for the {} of the text", value.len() + 1))
        })
    })
}

/// `cuFileSetParameterString`: before the driver is opened.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileSetParameterString(param: i32, text: Str) -> CuFileError {
    call("cuFileSetParameterString", || {
        let at = index(param, &TEXTS, "a text")?;
        let text = text.text("desc_str")?;
        if at == LOG_LEVEL {
            log::level_of(text).map_err(Failure::invalid)?;
        }
        library().settings.set(|calls| calls.texts[at] = Some(text.to_owned()))
    })
}

/// `cuFileSetParameterPosixPoolSlabArray`: kept, and given back; staging memory is the engine's own.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileSetParameterPosixPoolSlabArray(sizes: In<usize>, counts: In<usize>, len: i32) -> CuFileError {
    call("cuFileSetParameterPosixPoolSlabArray", || set_slabs(0, (sizes, counts), len))
}

/// `cuFileGetParameterPosixPoolSlabArray`: what was set; `len` is how many there are.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetParameterPosixPoolSlabArray(sizes: Out<usize>, counts: Out<usize>, len: i32) -> CuFileError {
    call("cuFileGetParameterPosixPoolSlabArray", || get_slabs(0, (sizes, counts), len))
}

/// `cuFileSetParameterGpuBounceBufferSlabArray`: as for the POSIX pool.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileSetParameterGpuBounceBufferSlabArray(
    sizes: In<usize>,
    counts: In<usize>,
    len: i32,
) -> CuFileError {
    call("cuFileSetParameterGpuBounceBufferSlabArray", || set_slabs(1, (sizes, counts), len))
}

/// `cuFileGetParameterGpuBounceBufferSlabArray`: as for the POSIX pool.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetParameterGpuBounceBufferSlabArray(
    sizes: Out<usize>,
    counts: Out<usize>,
    len: i32,
) -> CuFileError {
    call("cuFileGetParameterGpuBounceBufferSlabArray", || get_slabs(1, (sizes, counts), len))
}

fn set_slabs(which: usize, (sizes, counts): (In<usize>, In<usize>), len: i32) -> Result<(), Failure> {
    let wrong = || Failure::invalid(format!("{len} slabs; give arrays of 1 to {SLABS_MAX}"));
    let len = usize::try_from(len).ok().filter(|len| (1..=SLABS_MAX).contains(len)).ok_or_else(wrong)?;
    let pair = |index| Some((sizes.at(index)? as u64, counts.at(index)? as u64));
    let pairs = (0..len).map(pair).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    library().settings.set(|calls| calls.slabs[which] = Some(pairs))
}

fn get_slabs(which: usize, (sizes, counts): (Out<usize>, Out<usize>), len: i32) -> Result<(), Failure> {
    let (sizes, counts) = (sizes.ready("size_values")?, counts.ready("count_values")?);
    let values = library().settings.effective()?;
    let slabs = &values.slabs[which].0;
    if usize::try_from(len).ok() != Some(slabs.len()) {
        return Err(Failure::invalid(format!("{len} slabs; there are {}", slabs.len())));
    }
    for (index, (size, count)) in slabs.iter().enumerate() {
        sizes.put_at(index, crate::pointer::address(*size));
        counts.put_at(index, crate::pointer::address(*count));
    }
    Ok(())
}
