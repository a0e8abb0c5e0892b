//! Names that clients look up and that have nothing behind them here: they answer "not supported", never crash.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, Out, Text, api};
use crate::state;

/// `CUipcMemHandle` and `CUipcEventHandle`: 64 bytes, by value.
#[repr(C)]
pub struct IpcHandle([u8; 64]);

api! {
    fn cuGetExportTable(table: Out<u64>, _id: u64) {
        table.set_if(0);
        Err(NOT_FOUND)
    }

    fn cuGetProcAddress(name: Text, address: Out<u64>, _version: i32, _flags: u64) {
        let found = crate::control::symbol(name.get()?).ok_or(NOT_FOUND)?;
        address.set(found)
    }

    fn cuGetProcAddress_v2(name: Text, address: Out<u64>, _version: i32, _flags: u64, status: Out<u32>) {
        match crate::control::symbol(name.get()?) {
            Some(found) => {
                status.set_if(0);
                address.set(found)
            }
            None => {
                // cuda.h, "enum CUdriverProcAddressQueryResult": symbol not found 1.
                status.set_if(1);
                address.set_if(0);
                Err(NOT_FOUND)
            }
        }
    }

    fn cuFlushGPUDirectRDMAWrites(target: u32, _scope: u32) {
        // Nothing to flush: a write by another party into the memory file is visible at once.
        state::with(|s| s.current())?;
        if target == 0 { Ok(()) } else { Err(INVALID_VALUE) }
    }

    fn cuIpcGetMemHandle(_handle: u64, _pointer: u64) { Err(NOT_SUPPORTED) }
    fn cuIpcOpenMemHandle_v2(_pointer: u64, _handle: IpcHandle, _flags: u32) { Err(NOT_SUPPORTED) }
    fn cuIpcCloseMemHandle(_pointer: u64) { Err(NOT_SUPPORTED) }
    fn cuIpcGetEventHandle(_handle: u64, _event: u64) { Err(NOT_SUPPORTED) }
    fn cuIpcOpenEventHandle(_event: u64, _handle: IpcHandle) { Err(NOT_SUPPORTED) }
}
