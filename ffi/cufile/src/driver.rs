//! The driver: open, close, properties, version, and what is asked of hardware that is not used.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::ffi::c_long;

use crate::{
    abi::{CuFileError, DrvProps},
    code::{self, Failure},
    edge::call,
    library::library,
    pointer::{Out, Str},
    settings::{
        BATCH, BATCH_TIMEOUT_MS, BUFFER_CACHE_KB, DEVICE_CACHE_KB, FLAGS, MAX_DIRECT_KB, PINNED_KB, POLL_KB, POLL_MODE,
        SIZES, Values,
    },
};

/// Kinds of file systems that P2P flags are kept for (`CU_FILE_MAX_TARGET_TYPES` of 1.20).
const TARGET_TYPES: i32 = 15;
/// Bit of `CU_FILE_P2PDMA` in the flags of a kind of file system.
const P2P_PCI: u32 = 1;
/// `CU_FILE_USE_POLL_MODE` and `CU_FILE_ALLOW_COMPAT_MODE`, by number.
const CONTROL_POLL: u32 = 1;
const CONTROL_WITHOUT_MODULE: u32 = 1 << 1;
/// Dynamic routing, batches, streams, parallel I/O: what the real library tells without its module.
const FEATURES: u32 = 0xf;

/// `cuFileDriverOpen`: opens the driver, or counts one more use.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverOpen() -> CuFileError {
    call("cuFileDriverOpen", || library().open())
}

/// `cuFileDriverClose` as binaries of before CUDA 11.4 name it.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverClose() -> CuFileError {
    call("cuFileDriverClose", || library().close())
}

/// `cuFileDriverClose`: gives one use back. With the last one transfers end, handles and buffers are forgotten, and parameters may be set
/// again.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverClose_v2() -> CuFileError {
    call("cuFileDriverClose", || library().close())
}

/// `cuFileUseCount`: how often the driver is open.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileUseCount() -> c_long {
    c_long::try_from(library().uses()).unwrap_or(c_long::MAX)
}

/// `cuFileDriverGetProperties`: the parameters as they are now, in the driver's structure. There is no nvidia-fs module: its version is
/// 0.0 and no file system has its support.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverGetProperties(props: Out<DrvProps>) -> CuFileError {
    call("cuFileDriverGetProperties", || {
        let out = props.ready("props")?;
        out.put(props_of(&library().settings.effective()?));
        Ok(())
    })
}

fn props_of(values: &Values) -> DrvProps {
    // The structure has 32 bits where the parameter has 64.
    let narrow = |index: usize| u32::try_from(values.size(index)).unwrap_or(u32::MAX);
    let poll = if values.flags[POLL_MODE].0 { CONTROL_POLL } else { 0 };
    DrvProps {
        major: 0,
        minor: 0,
        poll_thresh_kb: values.size(POLL_KB),
        max_direct_io_kb: values.size(MAX_DIRECT_KB),
        status_flags: 0,
        control_flags: CONTROL_WITHOUT_MODULE | poll,
        feature_flags: FEATURES,
        max_device_cache_kb: narrow(DEVICE_CACHE_KB),
        per_buffer_cache_kb: narrow(BUFFER_CACHE_KB),
        max_pinned_kb: narrow(PINNED_KB),
        max_batch: narrow(BATCH),
        batch_timeout_ms: narrow(BATCH_TIMEOUT_MS),
    }
}

/// `cuFileDriverSetPollMode`: kept and told by the properties; the engine decides how to wait.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverSetPollMode(poll: bool, threshold_kb: usize) -> CuFileError {
    call("cuFileDriverSetPollMode", || {
        set(POLL_KB, threshold_kb)?;
        if !library().settings.is_frozen() {
            library().settings.call_flag(POLL_MODE, poll);
        }
        Ok(())
    })
}

/// `cuFileDriverSetMaxDirectIOSize`: a multiple of 64 from 64 to 16384 KiB; kept and told by the properties.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverSetMaxDirectIOSize(kb: usize) -> CuFileError {
    call("cuFileDriverSetMaxDirectIOSize", || {
        if !kb.is_multiple_of(64) {
            return Err(Failure::invalid(format!("{kb} KiB are no multiple of 64")));
        }
        set(MAX_DIRECT_KB, kb)
    })
}

/// `cuFileDriverSetMaxCacheSize`: kept and told by the properties; staging memory is measured for each GPU.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverSetMaxCacheSize(kb: usize) -> CuFileError {
    call("cuFileDriverSetMaxCacheSize", || set(DEVICE_CACHE_KB, kb))
}

/// `cuFileDriverSetMaxPinnedMemSize`: kept and told by the properties.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverSetMaxPinnedMemSize(kb: usize) -> CuFileError {
    call("cuFileDriverSetMaxPinnedMemSize", || set(PINNED_KB, kb))
}

/// Keeps a number; once the driver is open nothing happens and the call succeeds, as documented for all of these.
fn set(index: usize, kb: usize) -> Result<(), Failure> {
    let (size, kb) = (SIZES[index], kb as u64);
    if !(size.min..=size.max).contains(&kb) {
        return Err(Failure::invalid(format!("{} is {} to {} KiB", size.key, size.min, size.max)));
    }
    if !library().settings.is_frozen() {
        library().settings.call_size(index, kb);
    }
    Ok(())
}

/// `cuFileGetVersion`: 1000 times the major number and 10 times the minor one, of the official library whose interface and layouts this
/// one has: 1200, or what `SW_CUFILE_VERSION` says.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetVersion(version: Out<i32>) -> CuFileError {
    call("cuFileGetVersion", || {
        version.ready("version")?.put(library().own().version);
        Ok(())
    })
}

/// `cuFileGetBARSizeInKB`: no BAR is mapped here, so there is no size to tell.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileGetBARSizeInKB(gpu: i32, size: Out<usize>) -> CuFileError {
    call("cuFileGetBARSizeInKB", || {
        size.ready("barSize")?;
        Err(Failure {
            cuda: code::CUDA_INVALID_VALUE,
            ..Failure::new(code::CUDA_DRIVER_ERROR, format!("no BAR of GPU {gpu} is used; see straightway doctor"))
        })
    })
}

/// `cuFileDriverSetP2PFlags`: kept for `cuFileDriverGetP2PFlags` until the last close; routes are planned from what a probe shows. Only
/// peer-to-peer DMA by PCI can be asked for; 0 changes nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverSetP2PFlags(kind: i32, flags: u32) -> CuFileError {
    call("cuFileDriverSetP2PFlags", || {
        check_kind(kind)?;
        match flags {
            0 => Ok(()),
            P2P_PCI => library().set_p2p(kind, flags),
            other => Err(Failure::invalid(format!("{other:#x}: only PCI peer-to-peer DMA can be asked for"))),
        }
    })
}

/// `cuFileDriverGetP2PFlags`: what was asked for.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileDriverGetP2PFlags(kind: i32, flags: Out<u32>) -> CuFileError {
    call("cuFileDriverGetP2PFlags", || {
        let out = flags.ready("flags")?;
        check_kind(kind)?;
        out.put(library().p2p(kind));
        Ok(())
    })
}

fn check_kind(kind: i32) -> Result<(), Failure> {
    if (0..TARGET_TYPES).contains(&kind) { Ok(()) } else { Err(Failure::invalid(format!("{kind} is no file system"))) }
}

/// `cuFileExportPCIeTopology`: writes what the engine found on this machine to a file, as JSON.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileExportPCIeTopology(path: Str) -> CuFileError {
    call("cuFileExportPCIeTopology", || {
        let path = path.text("path")?;
        if path.is_empty() {
            return Err(Failure::invalid("the path is empty"));
        }
        let running = library().opened()?;
        let text = crate::report::facts(&running);
        std::fs::write(path, text).map_err(|error| Failure::invalid(format!("{path}: {error}")))
    })
}

const _: () = assert!(POLL_MODE < FLAGS.len());
