//! Structures of the libraries', as the headers of DAOS 2.6.5 have them on systems of 64 bits.

use std::{
    ffi::{c_int, c_void},
    mem::offset_of,
    ptr,
};

/// `daos_handle_t` (`daos_types.h`), which is passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    cookie: u64,
}

impl Handle {
    /// `DAOS_HDL_INVAL`.
    pub(super) const NONE: Self = Self { cookie: 0 };
}

/// `daos_event_t` (`daos_types.h`). The library links it into lists of its own: it stays where it is until it was polled.
#[repr(C)]
pub(super) struct Event {
    /// What came of the operation: of libdfs's an errno.
    pub(super) error: c_int,
    private: [u64; 20],
    debug: u64,
}

impl Event {
    /// As it is before `daos_event_init`.
    pub(super) const EMPTY: Self = Self { error: 0, private: [0; 20], debug: 0 };
}

/// `d_iov_t` (`gurt/types.h`).
#[repr(C)]
pub(super) struct Iov {
    pub(super) base: *mut c_void,
    pub(super) room: usize,
    pub(super) len: usize,
}

/// `d_sg_list_t` (`gurt/types.h`).
#[repr(C)]
pub(super) struct SgList {
    pub(super) count: u32,
    pub(super) count_out: u32,
    pub(super) iovs: *mut Iov,
}

impl SgList {
    /// A list of one piece, which is set later.
    pub(super) const ONE: Self = Self { count: 1, count_out: 0, iovs: ptr::null_mut() };
}

/// `daos_anchor_t` (`daos_types.h`): where a listing is.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Anchor {
    kind: u16,
    shard: u16,
    flags: u32,
    sub_anchors: u64,
    buffer: [u8; 104],
}

impl Anchor {
    /// `DAOS_ANCHOR_INIT`.
    pub(super) const START: Self = Self { kind: 0, shard: 0, flags: 0, sub_anchors: 0, buffer: [0; 104] };

    /// Whether it is `DAOS_ANCHOR_TYPE_EOF`.
    pub(super) fn is_end(&self) -> bool {
        self.kind == 3
    }
}

/// `daos_obj_id_t` (`daos_types.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::daos) struct ObjectId {
    pub(in crate::daos) low: u64,
    pub(in crate::daos) high: u64,
}

// By the headers' declarations; those of events, pieces, lists and anchors were copied from there and measured by a C compiler on x86-64.
const _: () = assert!(size_of::<Handle>() == 8);
const _: () = assert!(size_of::<Event>() == 176 && offset_of!(Event, private) == 8 && offset_of!(Event, debug) == 168);
const _: () = assert!(size_of::<Iov>() == 24 && offset_of!(Iov, room) == 8 && offset_of!(Iov, len) == 16);
const _: () = assert!(size_of::<SgList>() == 16 && offset_of!(SgList, count_out) == 4 && offset_of!(SgList, iovs) == 8);
const _: () =
    assert!(size_of::<Anchor>() == 120 && offset_of!(Anchor, sub_anchors) == 8 && offset_of!(Anchor, buffer) == 16);
const _: () = assert!(size_of::<ObjectId>() == 16 && offset_of!(ObjectId, high) == 8);
