//! What is used of libibverbs' interface, written by hand from its public header (rdma-core `libibverbs/verbs.h`, 44.0): structures whose layout
//! is the library's ABI, and the functions that it exports. A test compiles a probe in C where the header is there.
// UNSAFETY: the types of the library's functions.

use std::ffi::{c_char, c_int, c_void};

/// `struct ibv_device`: named by its pointer only.
pub(super) type Device = *mut c_void;
/// `struct ibv_context`: likewise.
pub(super) type Context = *mut c_void;
/// `struct ibv_pd`: likewise.
pub(super) type Pd = *mut c_void;

/// `struct ibv_device_attr`.
#[repr(C)]
pub(super) struct DeviceAttr {
    pub(super) fw_ver: [u8; 64],
    pub(super) node_guid: u64,
    pub(super) sys_image_guid: u64,
    pub(super) max_mr_size: u64,
    pub(super) page_size_cap: u64,
    pub(super) vendor_id: u32,
    pub(super) vendor_part_id: u32,
    pub(super) hw_ver: u32,
    pub(super) max_qp: c_int,
    pub(super) max_qp_wr: c_int,
    pub(super) device_cap_flags: u32,
    pub(super) max_sge: c_int,
    pub(super) max_sge_rd: c_int,
    pub(super) max_cq: c_int,
    pub(super) max_cqe: c_int,
    pub(super) max_mr: c_int,
    pub(super) max_pd: c_int,
    pub(super) max_qp_rd_atom: c_int,
    /// From `max_ee_rd_atom` to `max_srq_sge`: of no use here.
    pub(super) others: [c_int; 19],
    pub(super) max_pkeys: u16,
    pub(super) local_ca_ack_delay: u8,
    pub(super) phys_port_cnt: u8,
}

/// `IBV_DEVICE_MEM_MGT_EXTENSIONS`: SEND with Invalidate, among others.
pub(super) const MEM_MGT_EXTENSIONS: u32 = 1 << 21;

/// `struct ibv_port_attr`, with room behind it: later revisions are longer.
#[repr(C)]
pub(super) struct PortAttr {
    pub(super) state: c_int,
    pub(super) max_mtu: c_int,
    pub(super) active_mtu: c_int,
    pub(super) gid_tbl_len: c_int,
    pub(super) port_cap_flags: u32,
    pub(super) max_msg_sz: u32,
    pub(super) rest: [u8; 104],
}

/// `IBV_PORT_ACTIVE`.
pub(super) const PORT_ACTIVE: c_int = 4;

/// `struct ibv_gid_entry`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct GidEntry {
    pub(super) gid: [u8; 16],
    pub(super) gid_index: u32,
    pub(super) port_num: u32,
    /// 0: InfiniBand, 1: RoCE v1, 2: RoCE v2.
    pub(super) gid_type: u32,
    pub(super) ndev_ifindex: u32,
}

pub(super) type GetDeviceList = unsafe extern "C" fn(*mut c_int) -> *mut Device;
pub(super) type FreeDeviceList = unsafe extern "C" fn(*mut Device);
pub(super) type GetDeviceName = unsafe extern "C" fn(Device) -> *const c_char;
pub(super) type OpenDevice = unsafe extern "C" fn(Device) -> Context;
pub(super) type CloseDevice = unsafe extern "C" fn(Context) -> c_int;
pub(super) type QueryDevice = unsafe extern "C" fn(Context, *mut DeviceAttr) -> c_int;
pub(super) type QueryPort = unsafe extern "C" fn(Context, u8, *mut PortAttr) -> c_int;
/// `_ibv_query_gid_table`: context, entries, how many there is room for, flags, bytes of one; how many there are, or minus an errno.
pub(super) type QueryGidTable = unsafe extern "C" fn(Context, *mut GidEntry, usize, u32, usize) -> isize;
pub(super) type AllocPd = unsafe extern "C" fn(Context) -> Pd;
pub(super) type DeallocPd = unsafe extern "C" fn(Pd) -> c_int;
/// PD, offset, length, iova, descriptor, access.
pub(super) type RegDmabufMr = unsafe extern "C" fn(Pd, u64, usize, u64, c_int, c_int) -> *mut c_void;
