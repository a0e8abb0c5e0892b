//! What the driver says about an address.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{Answer, INVALID_VALUE, In, NOT_SUPPORTED, api, write_at};
use crate::arena::Kind;
use crate::state::{self, State};

api! {
    fn cuPointerGetAttribute(data: u64, attribute: u32, pointer: u64) {
        state::attempt(|s| {
            if s.arena.find(pointer).is_none() {
                return Err(INVALID_VALUE);
            }
            answer(s, data, attribute, pointer)
        })
    }

    fn cuPointerGetAttributes(count: u32, attributes: In<u32>, data: In<u64>, pointer: u64) {
        // Unlike the call above, an address that the driver does not know answers success and zeros
        // (CUDA Driver API, "cuPointerGetAttributes").
        for index in 0..count as usize {
            let (attribute, place) = (attributes.at(index)?, data.at(index)?);
            state::with(|s| answer(s, place, attribute, pointer))?;
        }
        Ok(())
    }

    fn cuPointerSetAttribute(_value: u64, attribute: u32, pointer: u64) {
        // cuda.h, "enum CUpointer_attribute": SYNC_MEMOPS 6 is the only one that can be set.
        let known = state::with(|s| s.arena.find(pointer).is_some());
        if known && attribute == 6 { Ok(()) } else { Err(INVALID_VALUE) }
    }
}

/// Numbers from cuda.h, "enum CUpointer_attribute".
fn answer(s: &State, place: u64, attribute: u32, pointer: u64) -> Answer {
    let range = s.arena.find(pointer);
    let on_device = range.is_some_and(|r| matches!(r.kind, Kind::Device | Kind::Managed));
    let on_host = range.is_some_and(|r| r.kind != Kind::Device);
    match attribute {
        1 => write_at(place, range.map_or(0, |r| r.context)),
        // cuda.h, "enum CUmemorytype": host 1, device 2. Managed memory says device.
        2 => write_at::<u32>(place, range.map_or(0, |_| if on_device { 2 } else { 1 })),
        3 => write_at(place, if range.is_some() { pointer } else { 0 }),
        4 => write_at(place, if on_host { pointer } else { 0 }),
        6 => write_at::<u32>(place, 0),
        7 => write_at(place, range.map_or(0, |r| r.id)),
        8 => write_at::<u32>(place, u32::from(range.is_some_and(|r| r.kind == Kind::Managed))),
        9 => write_at::<i32>(place, range.map_or(-2, |r| i32::try_from(r.device).unwrap_or(-1))),
        10 => write_at::<u32>(place, u32::from(range.is_some_and(|r| r.kind == Kind::Device))),
        11 => write_at(place, range.map_or(0, |r| r.base)),
        12 => write_at(place, range.map_or(0, |r| r.len)),
        13 => write_at::<u32>(place, u32::from(range.is_some())),
        14 => write_at::<u64>(place, 0),
        15 => write_at::<u32>(place, u32::from(range.is_some_and(|r| r.kind == Kind::Device))),
        16 => write_at::<u32>(place, if range.is_some() { 3 } else { 0 }),
        17 => write_at::<u64>(place, 0),
        _ => Err(NOT_SUPPORTED),
    }
}
