//! Driver, devices and what they say about themselves.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{Answer, INVALID_VALUE, NO_DEVICE, NOT_FOUND, Out, Text, api};
use crate::{names, state};

api! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        state::attempt(|s| {
            if s.config.devices == 0 {
                return Err(NO_DEVICE);
            }
            s.ready = true;
            Ok(())
        })
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.set(state::with(|s| s.config.driver_version))
    }

    fn cuGetErrorName(code: u32, name: Out<u64>) {
        error_text(code, &name, |(name, _)| name)
    }

    fn cuGetErrorString(code: u32, text: Out<u64>) {
        error_text(code, &text, |(_, text)| text)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        count.set(state::with(|s| i32::try_from(s.devices.len()).unwrap_or(0)))
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        state::with(|s| s.device(ordinal))?;
        device.set(ordinal)
    }

    fn cuDeviceGetName(name: Out<u8>, len: i32, device: i32) {
        let index = state::with(|s| s.device(device))?;
        text_out(&name, len, &format!("Stand-in GPU {index}"))
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(uuid_of(device)?)
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(uuid_of(device)?)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<u64>, device: i32) {
        let total = state::with(|s| s.device(device).map(|_| s.config.vram_bytes))?;
        bytes.set(total)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        let found = state::attempt(|s| {
            let index = s.device(device)?;
            attribute_of(s, attribute, i32::try_from(index).unwrap_or(0)).ok_or(INVALID_VALUE)
        })?;
        value.set(found)
    }

    fn cuDeviceGetPCIBusId(name: Out<u8>, len: i32, device: i32) {
        let index = state::with(|s| s.device(device))?;
        // Bus numbers from f0: no machine that runs the tests has a device there, so a look into sysfs finds nothing.
        text_out(&name, len, &format!("0000:{:02X}:00.0", 0xf0 + index))
    }

    fn cuDeviceGetByPCIBusId(device: Out<i32>, name: Text) {
        let name = name.get()?.to_ascii_uppercase();
        let count = state::with(|s| s.devices.len());
        let found = (0..count).find(|i| name.ends_with(&format!("{:02X}:00.0", 0xf0 + i))).ok_or(INVALID_VALUE)?;
        device.set(i32::try_from(found).unwrap_or(0))
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        let answer = state::attempt(|s| {
            let (a, b) = (s.device(device)?, s.device(peer)?);
            Ok(i32::from(a != b && s.config.p2p))
        })?;
        can.set(answer)
    }

    fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: u32, device: i32, peer: i32) {
        let answer = state::attempt(|s| {
            let (a, b) = (s.device(device)?, s.device(peer)?);
            // cuda.h, "enum CUdevice_P2PAttribute": rank 1, access 2, native atomics 3, array access 4.
            match attribute {
                _ if a == b => Err(crate::abi::INVALID_DEVICE),
                1 => Ok(0),
                2 => Ok(i32::from(s.config.p2p)),
                3 | 4 => Ok(0),
                _ => Err(INVALID_VALUE),
            }
        })?;
        value.set(answer)
    }
}

fn error_text(
    code: u32,
    out: &Out<u64>,
    part: impl Fn((&'static std::ffi::CStr, &'static std::ffi::CStr)) -> &'static std::ffi::CStr,
) -> Answer {
    match names::of(code) {
        Some(both) => out.set(names::address(part(both))),
        None => {
            out.set_if(0);
            Err(INVALID_VALUE)
        }
    }
}

fn uuid_of(device: i32) -> Answer<[u8; 16]> {
    let index = state::with(|s| s.device(device))?;
    let mut uuid = *b"standin-gpu-\0\0\0\0";
    uuid[15] = u8::try_from(index).unwrap_or(0);
    Ok(uuid)
}

fn text_out(out: &Out<u8>, len: i32, text: &str) -> Answer {
    let room = usize::try_from(len).ok().filter(|room| *room > 0).ok_or(INVALID_VALUE)?;
    let fitting = text.as_bytes().iter().take(room - 1);
    for (index, byte) in fitting.enumerate() {
        out.set_at(index, *byte)?;
    }
    out.set_at(text.len().min(room - 1), 0)
}

/// Numbers from cuda.h, "enum CUdevice_attribute". A number that is not here answers `INVALID_VALUE`, as an older
/// driver does for an attribute that came later.
fn attribute_of(s: &state::State, attribute: u32, index: i32) -> Option<i32> {
    let coherent = i32::from(s.config.coherent);
    Some(match attribute {
        1 => 1024,              // threads in a block
        2 | 3 | 5 | 6 => 1024,  // block and grid extents, small on purpose
        10 => 32,               // warp
        13 => 1_000_000,        // clock, kHz
        16 => 1,                // multiprocessors
        18 | 35 | 50 | 34 => 0, // integrated, TCC, PCI domain, PCI device
        19 | 31 => 1,           // can map host memory, concurrent kernels
        20 => 0,                // compute mode: default
        33 => 0xf0 + index,     // PCI bus
        40 => 2,                // copy engines
        41 => 1,                // unified addressing
        75 => 9,                // compute capability 9.0
        76 => 0,
        83 | 89 => 1,                    // managed memory, concurrent managed access
        86 | 88 | 100 | 101 => coherent, // host atomics, pageable access, through the host's tables, managed from host
        92 | 93 | 122 | 123 => 1,        // memory operations of streams, of both kinds, with 64 bits
        91 => 1,                         // a registered host pointer is its device pointer
        99 | 113 => 1,                   // host register, read-only host register
        102 | 103 => 0,                  // virtual memory management, file descriptor handles
        110 => 0,                        // GPUDirect RDMA with virtual memory management
        115 => 0,                        // memory pools
        116 => 1,                        // GPUDirect RDMA
        117 => 1,                        // flush: from the host
        118 => 0,                        // write ordering: none
        119 => 0,                        // pool handle types
        124 => i32::from(s.config.dmabuf),
        _ => return None,
    })
}

api! {
    fn cuDeviceGetDefaultMemPool(pool: Out<u64>, device: i32) {
        state::with(|s| s.device(device))?;
        pool.set_if(0);
        Err(NOT_FOUND)
    }
}
