//! What is used of verbs and of the connection manager to move bytes, written by hand from rdma-core's public headers (44.0): layouts, and the
//! functions by name. What the headers have as inline functions goes through the context's table of operations, whose places are ABI.
// UNSAFETY: the functions of the libraries, and their look-up by name.
#![expect(unsafe_code, reason = "types and look-up of foreign functions")]

use std::ffi::{c_char, c_int, c_void};

use libloading::Library as Loaded;

use super::{CM, Refusal, VERBS};

/// `struct ibv_context`: the device, and the operations.
#[repr(C)]
pub(super) struct Context {
    pub(super) device: *mut c_void,
    pub(super) before_poll: [*const c_void; 11],
    pub(super) poll_cq: unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int,
    pub(super) req_notify_cq: unsafe extern "C" fn(*mut Cq, c_int) -> c_int,
    pub(super) before_post: [*const c_void; 12],
    pub(super) post_send: unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int,
    pub(super) post_recv: unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int,
    pub(super) behind_post: [*const c_void; 5],
    pub(super) cmd_fd: c_int,
    pub(super) async_fd: c_int,
}

/// `struct ibv_async_event`.
#[repr(C)]
pub(super) struct AsyncEvent {
    /// What it is about.
    pub(super) element: *mut c_void,
    pub(super) kind: c_int,
}

/// `struct ibv_comp_channel`, its first fields.
#[repr(C)]
pub(super) struct CompChannel {
    pub(super) context: *mut Context,
    pub(super) fd: c_int,
}

/// `struct ibv_cq`, its first fields.
#[repr(C)]
pub(super) struct Cq {
    pub(super) context: *mut Context,
}

/// `struct ibv_qp`, its first fields.
#[repr(C)]
pub(super) struct Qp {
    pub(super) context: *mut Context,
    pub(super) qp_context: *mut c_void,
    pub(super) pd: *mut c_void,
    pub(super) send_cq: *mut Cq,
    pub(super) recv_cq: *mut Cq,
    pub(super) srq: *mut c_void,
    pub(super) handle: u32,
    pub(super) qp_num: u32,
}

/// `struct ibv_mr`.
#[repr(C)]
pub(super) struct Mr {
    pub(super) context: *mut Context,
    pub(super) pd: *mut c_void,
    pub(super) addr: *mut c_void,
    pub(super) length: usize,
    pub(super) handle: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Sge {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

/// `struct ibv_send_wr`, of which the tail is of no use here.
#[repr(C)]
pub(super) struct SendWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut SendWr,
    pub(super) sg_list: *mut Sge,
    pub(super) num_sge: c_int,
    pub(super) opcode: c_int,
    pub(super) send_flags: u32,
    pub(super) invalidate_rkey: u32,
    pub(super) remote_addr: u64,
    pub(super) rkey: u32,
    pub(super) tail: [u64; 9],
}

/// `struct ibv_recv_wr`.
#[repr(C)]
pub(super) struct RecvWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut RecvWr,
    pub(super) sg_list: *mut Sge,
    pub(super) num_sge: c_int,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Wc {
    pub(super) wr_id: u64,
    pub(super) status: u32,
    pub(super) opcode: u32,
    pub(super) vendor_err: u32,
    pub(super) byte_len: u32,
    pub(super) invalidated_rkey: u32,
    pub(super) qp_num: u32,
    pub(super) src_qp: u32,
    pub(super) wc_flags: u32,
    pub(super) pkey_index: u16,
    pub(super) slid: u16,
    pub(super) sl: u8,
    pub(super) dlid_path_bits: u8,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub(super) struct QpInitAttr {
    pub(super) qp_context: *mut c_void,
    pub(super) send_cq: *mut Cq,
    pub(super) recv_cq: *mut Cq,
    pub(super) srq: *mut c_void,
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
    pub(super) qp_type: c_int,
    pub(super) sq_sig_all: c_int,
}

/// `struct ibv_qp_attr`: its state, and room for the rest.
#[repr(C)]
pub(super) struct QpAttr {
    pub(super) qp_state: c_int,
    pub(super) rest: [u32; 63],
}

impl QpAttr {
    /// `ah_attr.grh.sgid_index`: byte 76 of `struct ibv_qp_attr`.
    pub(super) fn source_gid_index(&self) -> u8 {
        self.rest[SGID_INDEX_AT / 4 - 1].to_ne_bytes()[SGID_INDEX_AT % 4]
    }
}

/// Where `ah_attr.grh.sgid_index` lies in `struct ibv_qp_attr`, in bytes.
pub(super) const SGID_INDEX_AT: usize = 76;

/// `struct rdma_event_channel`.
#[repr(C)]
pub(super) struct EventChannel {
    pub(super) fd: c_int,
}

/// `struct rdma_cm_id`, its first fields.
#[repr(C)]
pub(super) struct CmId {
    pub(super) verbs: *mut Context,
    pub(super) channel: *mut EventChannel,
    pub(super) context: *mut c_void,
    pub(super) qp: *mut Qp,
}

/// `struct rdma_conn_param`.
#[repr(C)]
pub(super) struct ConnParam {
    pub(super) private_data: *const c_void,
    pub(super) private_data_len: u8,
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) flow_control: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry_count: u8,
    pub(super) srq: u8,
    pub(super) qp_num: u32,
}

/// `struct rdma_cm_event`, of connections.
#[repr(C)]
pub(super) struct CmEvent {
    pub(super) id: *mut CmId,
    pub(super) listen_id: *mut CmId,
    pub(super) event: c_int,
    pub(super) status: c_int,
    pub(super) param: ConnParam,
}

/// `enum rdma_cm_event_type`.
pub(super) mod event {
    pub const ADDR_RESOLVED: i32 = 0;
    pub const ROUTE_RESOLVED: i32 = 2;
    pub const CONNECT_REQUEST: i32 = 4;
    pub const REJECTED: i32 = 8;
    pub const ESTABLISHED: i32 = 9;
    pub const DISCONNECTED: i32 = 10;
    pub const DEVICE_REMOVAL: i32 = 11;
}

/// `RDMA_PS_TCP`.
pub(super) const PS_TCP: c_int = 0x0106;
/// `IBV_QPT_RC`.
pub(super) const QPT_RC: c_int = 2;
/// `IBV_QP_STATE`.
pub(super) const QP_STATE: c_int = 1;
/// `IBV_QP_AV`.
pub(super) const QP_AV: c_int = 1 << 7;
/// `IBV_QPS_ERR`.
pub(super) const QPS_ERR: c_int = 6;
/// `IBV_SEND_SIGNALED`.
pub(super) const SEND_SIGNALED: u32 = 2;
/// `IBV_WC_WITH_INV`.
pub(super) const WC_WITH_INV: u32 = 8;

macro_rules! table {
    ($($field:ident: fn($($argument:ty),*) $(-> $answer:ty)?, $library:ident, $name:literal;)*) => {
        /// The functions.
        pub(super) struct Ops {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
        }

        impl Ops {
            /// Looks all of them up.
            pub(super) fn of(verbs: &'static Loaded, cm: &'static Loaded) -> Result<Self, Refusal> {
                Ok(Self {
                    $($field: {
                        let (library, name) = if stringify!($library) == "verbs" { (verbs, VERBS) } else { (cm, CM) };
                        type Function = unsafe extern "C" fn($($argument),*) $(-> $answer)?;
                        // SAFETY: the type is that of the declaration in the library's header.
                        let found = unsafe { library.get::<Function>($name.as_bytes()) };
                        *found.map_err(|_| Refusal::NoSymbol(name, $name))?
                    },)*
                })
            }
        }
    };
}

table! {
    get_device_name: fn(*mut c_void) -> *const c_char, verbs, "ibv_get_device_name";
    alloc_pd: fn(*mut Context) -> *mut c_void, verbs, "ibv_alloc_pd";
    dealloc_pd: fn(*mut c_void) -> c_int, verbs, "ibv_dealloc_pd";
    reg_mr: fn(*mut c_void, *mut c_void, usize, c_int) -> *mut Mr, verbs, "ibv_reg_mr";
    dereg_mr: fn(*mut Mr) -> c_int, verbs, "ibv_dereg_mr";
    create_comp_channel: fn(*mut Context) -> *mut CompChannel, verbs, "ibv_create_comp_channel";
    destroy_comp_channel: fn(*mut CompChannel) -> c_int, verbs, "ibv_destroy_comp_channel";
    create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq, verbs, "ibv_create_cq";
    destroy_cq: fn(*mut Cq) -> c_int, verbs, "ibv_destroy_cq";
    get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int, verbs, "ibv_get_cq_event";
    ack_cq_events: fn(*mut Cq, u32), verbs, "ibv_ack_cq_events";
    get_async_event: fn(*mut Context, *mut AsyncEvent) -> c_int, verbs, "ibv_get_async_event";
    ack_async_event: fn(*mut AsyncEvent), verbs, "ibv_ack_async_event";
    query_qp: fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int, verbs, "ibv_query_qp";
    modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int, verbs, "ibv_modify_qp";
    get_devices: fn(*mut c_int) -> *mut *mut Context, cm, "rdma_get_devices";
    create_event_channel: fn() -> *mut EventChannel, cm, "rdma_create_event_channel";
    destroy_event_channel: fn(*mut EventChannel), cm, "rdma_destroy_event_channel";
    create_id: fn(*mut EventChannel, *mut *mut CmId, *mut c_void, c_int) -> c_int, cm, "rdma_create_id";
    destroy_id: fn(*mut CmId) -> c_int, cm, "rdma_destroy_id";
    migrate_id: fn(*mut CmId, *mut EventChannel) -> c_int, cm, "rdma_migrate_id";
    bind_addr: fn(*mut CmId, *mut libc::sockaddr) -> c_int, cm, "rdma_bind_addr";
    resolve_addr: fn(*mut CmId, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int, cm, "rdma_resolve_addr";
    resolve_route: fn(*mut CmId, c_int) -> c_int, cm, "rdma_resolve_route";
    create_qp: fn(*mut CmId, *mut c_void, *mut QpInitAttr) -> c_int, cm, "rdma_create_qp";
    destroy_qp: fn(*mut CmId), cm, "rdma_destroy_qp";
    connect: fn(*mut CmId, *mut ConnParam) -> c_int, cm, "rdma_connect";
    accept: fn(*mut CmId, *mut ConnParam) -> c_int, cm, "rdma_accept";
    reject: fn(*mut CmId, *const c_void, u8) -> c_int, cm, "rdma_reject";
    listen: fn(*mut CmId, c_int) -> c_int, cm, "rdma_listen";
    disconnect: fn(*mut CmId) -> c_int, cm, "rdma_disconnect";
    get_cm_event: fn(*mut EventChannel, *mut *mut CmEvent) -> c_int, cm, "rdma_get_cm_event";
    ack_cm_event: fn(*mut CmEvent) -> c_int, cm, "rdma_ack_cm_event";
    get_src_port: fn(*mut CmId) -> u16, cm, "rdma_get_src_port";
}
