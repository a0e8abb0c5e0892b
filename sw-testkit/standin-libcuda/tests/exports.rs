//! The names that clients look up are there. Lists: KvikIO 26.10 and NVIDIA's libcufile 1.20 as observed, and cudarc.

use standin_libcuda::harness;

const KVIKIO: &str = "cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCurrent cuCtxGetDevice cuCtxPopCurrent_v2 \
    cuCtxPushCurrent_v2 cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDevicePrimaryCtxRelease_v2 \
    cuDevicePrimaryCtxRetain cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventQuery cuEventRecord \
    cuEventSynchronize cuGetErrorName cuGetErrorString cuLaunchHostFunc cuMemFreeHost cuMemGetAddressRange_v2 \
    cuMemHostAlloc cuMemHostRegister_v2 cuMemHostUnregister cuMemcpyAsync cuMemcpyBatchAsync_v2 \
    cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuPointerGetAttribute cuPointerGetAttributes cuStreamCreate \
    cuStreamDestroy_v2 cuStreamSynchronize";

const CUFILE: &str = "cuCtxCreate_v2 cuCtxEnablePeerAccess cuCtxGetStreamPriorityRange cuCtxSetCurrent \
    cuDeviceCanAccessPeer cuDeviceGetName cuDeviceGetPCIBusId cuDeviceGetUuid_v2 cuEventElapsedTime cuGetExportTable \
    cuInit cuIpcGetEventHandle cuIpcOpenEventHandle cuIpcGetMemHandle cuIpcOpenMemHandle_v2 cuIpcCloseMemHandle \
    cuMemAllocHost_v2 cuMemAllocManaged cuMemAlloc_v2 cuMemFree_v2 cuMemGetHandleForAddressRange \
    cuMemHostGetDevicePointer_v2 cuMemcpy cuMemcpyDtoH_v2 cuMemcpyHtoD_v2 cuMemcpyPeer cuMemcpyPeerAsync \
    cuMemsetD8Async cuMemsetD8_v2 cuPointerSetAttribute cuStreamCreateWithPriority cuStreamWaitEvent \
    cuStreamWaitValue32_v2 cuStreamWriteValue32_v2";

const MODULES: &str = "cuModuleLoadData cuModuleLoadDataEx cuModuleUnload cuModuleGetFunction cuLaunchKernel";

fn exported() -> Result<Vec<String>, String> {
    let library = std::fs::read(harness::built_library()?).map_err(|e| e.to_string())?;
    // The dynamic string table is a run of zero-terminated names; a name of ours appears there whole.
    Ok(library
        .split(|b| *b == 0)
        .filter(|name| name.starts_with(b"cu") && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_'))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

#[test]
fn what_kvikio_and_cufile_look_up_is_exported() {
    let exported = exported().unwrap();
    let absent: Vec<_> = KVIKIO
        .split_whitespace()
        .chain(CUFILE.split_whitespace())
        .chain(MODULES.split_whitespace())
        .filter(|n| !exported.iter().any(|e| e == n))
        .collect();
    assert!(absent.is_empty(), "not exported: {absent:?}");
}

#[test]
fn an_export_can_be_taken_out_of_the_installed_copy() {
    let dir = std::env::temp_dir().join(format!("standin-exports-{}", std::process::id()));
    harness::install(&dir, &["cuEventQuery"]).unwrap();
    let bytes = std::fs::read(dir.join("libcuda.so.1")).unwrap();
    assert!(!bytes.windows(14).any(|w| w == b"\0cuEventQuery\0"));
    assert!(harness::install(&dir, &["cuNoSuchName"]).unwrap_err().contains("cuNoSuchName"));
    std::fs::remove_dir_all(&dir).unwrap();
}
