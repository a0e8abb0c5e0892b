//! Compiles a probe against the libraries' headers, where they are there, and compares every offset and number that is used.

use core::mem::offset_of;
use std::process::Command;

use sw_testkit::scratch::Scratch;

use super::{
    sys::{DeviceAttr, GidEntry, PortAttr},
    wire::{
        AsyncEvent, CmEvent, CmId, CompChannel, ConnParam, Context, Cq, EventChannel, Mr, Qp, QpAttr, QpInitAttr,
        RecvWr, SendWr, Sge, Wc,
    },
};

/// Expressions in C with the values that they must have.
type Wanted = Vec<(String, usize)>;

macro_rules! same {
    ($to:ident, $c:literal, $rust:ty, $($field:ident),+) => {
        $($to.push((format!("offsetof(struct {}, {})", $c, stringify!($field)), offset_of!($rust, $field)));)+
    };
}

fn of_devices(to: &mut Wanted) {
    same!(to, "ibv_device_attr", DeviceAttr, fw_ver, node_guid, max_mr_size, vendor_id, hw_ver, max_qp, max_qp_wr);
    same!(to, "ibv_device_attr", DeviceAttr, device_cap_flags, max_sge, max_cqe, max_mr, max_qp_rd_atom, max_pkeys);
    same!(to, "ibv_device_attr", DeviceAttr, local_ca_ack_delay, phys_port_cnt);
    same!(to, "ibv_port_attr", PortAttr, state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz);
    same!(to, "ibv_gid_entry", GidEntry, gid, gid_index, port_num, gid_type, ndev_ifindex);
    to.push(("sizeof(struct ibv_device_attr)".into(), size_of::<DeviceAttr>()));
    to.push(("sizeof(struct ibv_gid_entry)".into(), size_of::<GidEntry>()));
    // Ours is longer, so that no revision writes past it.
    to.push((format!("sizeof(struct ibv_port_attr) <= {}", size_of::<PortAttr>()), 1));
}

fn of_queues(to: &mut Wanted) {
    same!(to, "ibv_context", Context, device, cmd_fd, async_fd);
    to.push(("offsetof(struct ibv_async_event, event_type)".into(), offset_of!(AsyncEvent, kind)));
    to.push(("sizeof(struct ibv_async_event)".into(), size_of::<AsyncEvent>()));
    for (field, at) in [
        ("poll_cq", offset_of!(Context, poll_cq)),
        ("req_notify_cq", offset_of!(Context, req_notify_cq)),
        ("post_send", offset_of!(Context, post_send)),
        ("post_recv", offset_of!(Context, post_recv)),
    ] {
        to.push((format!("offsetof(struct ibv_context, ops.{field})"), at));
    }
    same!(to, "ibv_comp_channel", CompChannel, context, fd);
    same!(to, "ibv_cq", Cq, context);
    same!(to, "ibv_qp", Qp, context, send_cq, handle, qp_num);
    same!(to, "ibv_mr", Mr, context, pd, addr, length, handle, lkey, rkey);
    same!(to, "ibv_qp_init_attr", QpInitAttr, qp_context, send_cq, recv_cq, srq, qp_type, sq_sig_all);
    same!(to, "ibv_qp_attr", QpAttr, qp_state);
    to.push(("offsetof(struct ibv_qp_attr, ah_attr.grh.sgid_index)".into(), super::wire::SGID_INDEX_AT));
    let inline = offset_of!(QpInitAttr, max_inline_data);
    to.push(("offsetof(struct ibv_qp_init_attr, cap.max_inline_data)".into(), inline));
    to.push(("sizeof(struct ibv_qp_init_attr)".into(), size_of::<QpInitAttr>()));
    to.push((format!("sizeof(struct ibv_qp_attr) <= {}", size_of::<QpAttr>()), 1));
}

fn of_requests(to: &mut Wanted) {
    same!(to, "ibv_sge", Sge, addr, length, lkey);
    same!(to, "ibv_send_wr", SendWr, wr_id, next, sg_list, num_sge, opcode, send_flags, invalidate_rkey);
    to.push(("offsetof(struct ibv_send_wr, wr.rdma.remote_addr)".into(), offset_of!(SendWr, remote_addr)));
    to.push(("offsetof(struct ibv_send_wr, wr.rdma.rkey)".into(), offset_of!(SendWr, rkey)));
    same!(to, "ibv_recv_wr", RecvWr, wr_id, next, sg_list, num_sge);
    same!(to, "ibv_wc", Wc, wr_id, status, opcode, vendor_err, byte_len, invalidated_rkey, qp_num, wc_flags);
    same!(to, "ibv_wc", Wc, dlid_path_bits);
    to.push(("sizeof(struct ibv_send_wr)".into(), size_of::<SendWr>()));
    to.push(("sizeof(struct ibv_recv_wr)".into(), size_of::<RecvWr>()));
    to.push(("sizeof(struct ibv_wc)".into(), size_of::<Wc>()));
}

fn of_connections(to: &mut Wanted) {
    same!(to, "rdma_event_channel", EventChannel, fd);
    same!(to, "rdma_cm_id", CmId, verbs, channel, context, qp);
    same!(to, "rdma_conn_param", ConnParam, private_data, private_data_len, responder_resources, initiator_depth);
    same!(to, "rdma_conn_param", ConnParam, flow_control, retry_count, rnr_retry_count, srq, qp_num);
    same!(to, "rdma_cm_event", CmEvent, id, listen_id, event, status);
    to.push(("offsetof(struct rdma_cm_event, param.conn)".into(), offset_of!(CmEvent, param)));
}

/// Names of the headers with the numbers that are written here.
const NUMBERS: [(&str, usize); 35] = [
    ("IBV_PORT_ACTIVE", 4),
    ("IBV_DEVICE_MEM_MGT_EXTENSIONS", 1 << 21),
    ("IBV_GID_TYPE_IB", 0),
    ("IBV_GID_TYPE_ROCE_V1", 1),
    ("IBV_GID_TYPE_ROCE_V2", 2),
    ("IBV_WC_LOC_LEN_ERR", 1),
    ("IBV_WC_LOC_PROT_ERR", 4),
    ("IBV_WC_WR_FLUSH_ERR", 5),
    ("IBV_WC_REM_INV_REQ_ERR", 9),
    ("IBV_WC_REM_ACCESS_ERR", 10),
    ("IBV_WC_REM_OP_ERR", 11),
    ("IBV_WC_RETRY_EXC_ERR", 12),
    ("IBV_WC_RNR_RETRY_EXC_ERR", 13),
    ("IBV_WC_RDMA_WRITE", 1),
    ("IBV_WC_RDMA_READ", 2),
    ("IBV_WC_WITH_INV", 8),
    ("IBV_WR_RDMA_WRITE", 0),
    ("IBV_WR_SEND", 2),
    ("IBV_WR_RDMA_READ", 4),
    ("IBV_WR_SEND_WITH_INV", 9),
    ("IBV_SEND_SIGNALED", 2),
    ("IBV_ACCESS_LOCAL_WRITE", 1),
    ("IBV_ACCESS_REMOTE_WRITE", 2),
    ("IBV_ACCESS_REMOTE_READ", 4),
    ("IBV_QPS_ERR", 6),
    ("IBV_QP_STATE", 1),
    ("IBV_QP_AV", 1 << 7),
    ("IBV_QPT_RC", 2),
    ("RDMA_PS_TCP", 0x0106),
    ("RDMA_CM_EVENT_CONNECT_REQUEST", 4),
    ("RDMA_CM_EVENT_REJECTED", 8),
    ("RDMA_CM_EVENT_ESTABLISHED", 9),
    ("RDMA_CM_EVENT_DISCONNECTED", 10),
    ("RDMA_CM_EVENT_DEVICE_REMOVAL", 11),
    ("IBV_EVENT_DEVICE_FATAL", 8),
];

#[test]
fn structures_and_numbers_are_those_of_the_headers() {
    let mut wanted = Wanted::new();
    for each in [of_devices, of_queues, of_requests, of_connections] {
        each(&mut wanted);
    }
    wanted.extend(NUMBERS.map(|(name, value)| (name.to_owned(), value)));
    let Some(told) = told(&wanted) else { return };
    assert_eq!(told.len(), wanted.len());
    for ((expression, value), told) in wanted.iter().zip(told) {
        assert_eq!(*value, told, "{expression}");
    }
}

/// What the expressions come to; `None` where they cannot be compiled for want of a compiler or of the headers.
fn told(expressions: &Wanted) -> Option<Vec<usize>> {
    let scratch = Scratch::new(std::env::temp_dir().to_str().unwrap(), "sw-verbs-layout");
    let (source, built) = (scratch.path("probe.c"), scratch.path("probe"));
    let lines = expressions.iter().map(|(expression, _)| format!("printf(\"%zu\\n\", (size_t)({expression}));\n"));
    let headers =
        "#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n#include <stddef.h>\n#include <stdio.h>\n";
    let program = format!("{headers}int main(void) {{\n{}return 0; }}\n", lines.collect::<String>());
    std::fs::write(&source, program).unwrap();
    let Ok(compiled) = Command::new("cc").arg("-o").arg(&built).arg(&source).output() else {
        println!("skip: no C compiler");
        return None;
    };
    let said = String::from_utf8_lossy(&compiled.stderr).into_owned();
    if said.contains("verbs.h: No such file") || said.contains("rdma_cma.h: No such file") {
        println!("skip: the headers are not there (libibverbs-dev, librdmacm-dev)");
        return None;
    }
    assert!(compiled.status.success(), "{said}");
    let told = String::from_utf8(Command::new(&built).output().unwrap().stdout).unwrap();
    Some(told.lines().map(|line| line.parse().unwrap()).collect())
}
