// SPDX-License-Identifier: GPL-2.0

//! The part of libibverbs that the tests use.
//!
//! What verbs.h defines as inline functions goes through `struct ibv_context_ops`. Its layout, and that of
//! every structure here, is compiled into each program that uses the library and has not changed since
//! library version 1.1; a unit test compares it with the installed header. Structures that the library
//! allocates are declared only as far as the last field that is read.

use std::ffi::{c_char, c_int, c_uint, c_void};

#[repr(C)]
pub struct Device {
    _private: [u8; 0],
}

#[repr(C)]
pub struct Pd {
    _private: [u8; 0],
}

#[repr(C)]
pub struct Cq {
    _private: [u8; 0],
}

type Unused = *const c_void;

#[repr(C)]
pub struct ContextOps {
    pub before_poll_cq: [Unused; 11],
    pub poll_cq: unsafe extern "C" fn(cq: *mut Cq, entries: c_int, wc: *mut Wc) -> c_int,
    pub before_post_send: [Unused; 13],
    pub post_send:
        unsafe extern "C" fn(qp: *mut Qp, wr: *mut SendWr, bad: *mut *mut SendWr) -> c_int,
}

#[repr(C)]
pub struct Context {
    pub device: *mut Device,
    pub ops: ContextOps,
}

#[repr(C)]
pub struct Mr {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

#[repr(C)]
pub struct Qp {
    pub context: *mut Context,
    pub qp_context: *mut c_void,
    pub pd: *mut Pd,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub handle: u32,
    pub qp_num: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[repr(C)]
pub struct QpInitAttr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub cap: QpCap,
    pub qp_type: c_uint,
    pub sq_sig_all: c_int,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Gid(pub [u8; 16]);

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct GlobalRoute {
    pub dgid: Gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct AhAttr {
    pub grh: GlobalRoute,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpAttr {
    pub qp_state: c_uint,
    pub cur_qp_state: c_uint,
    pub path_mtu: c_uint,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: QpCap,
    pub ah_attr: AhAttr,
    pub alt_ah_attr: AhAttr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// The unions after `imm_data` are declared for RDMA and otherwise as the bytes that they take.
#[repr(C)]
pub struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: c_uint,
    pub send_flags: c_uint,
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub rest_of_wr: [u32; 5],
    pub qp_type: u64,
    pub bind_mw: [u64; 6],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Wc {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

/// The first fields of `struct ibv_port_attr`; the library's symbol fills in 48 bytes at most.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PortAttr {
    pub state: c_uint,
    pub max_mtu: c_uint,
    pub active_mtu: c_uint,
    pub gid_tbl_len: c_int,
    pub rest: [u32; 16],
}

pub const QPT_RC: c_uint = 2;
pub const QPS_INIT: c_uint = 1;
pub const QPS_RTR: c_uint = 2;
pub const QPS_RTS: c_uint = 3;
pub const WR_RDMA_WRITE: c_uint = 0;
pub const SEND_SIGNALED: c_uint = 1 << 1;
pub const ACCESS_LOCAL_WRITE: c_uint = 1;
pub const ACCESS_REMOTE_WRITE: c_uint = 1 << 1;

pub const QP_STATE: c_int = 1 << 0;
pub const QP_ACCESS_FLAGS: c_int = 1 << 3;
pub const QP_PKEY_INDEX: c_int = 1 << 4;
pub const QP_PORT: c_int = 1 << 5;
pub const QP_AV: c_int = 1 << 7;
pub const QP_PATH_MTU: c_int = 1 << 8;
pub const QP_TIMEOUT: c_int = 1 << 9;
pub const QP_RETRY_CNT: c_int = 1 << 10;
pub const QP_RNR_RETRY: c_int = 1 << 11;
pub const QP_RQ_PSN: c_int = 1 << 12;
pub const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub const QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub const QP_SQ_PSN: c_int = 1 << 16;
pub const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub const QP_DEST_QPN: c_int = 1 << 20;

#[link(name = "ibverbs")]
extern "C" {
    pub fn ibv_get_device_list(count: *mut c_int) -> *mut *mut Device;
    pub fn ibv_free_device_list(list: *mut *mut Device);
    pub fn ibv_get_device_name(device: *mut Device) -> *const c_char;
    pub fn ibv_open_device(device: *mut Device) -> *mut Context;
    pub fn ibv_close_device(context: *mut Context) -> c_int;
    pub fn ibv_query_port(context: *mut Context, port: u8, attr: *mut PortAttr) -> c_int;
    pub fn ibv_query_gid(context: *mut Context, port: u8, index: c_int, gid: *mut Gid) -> c_int;
    pub fn ibv_alloc_pd(context: *mut Context) -> *mut Pd;
    pub fn ibv_dealloc_pd(pd: *mut Pd) -> c_int;
    pub fn ibv_reg_mr(pd: *mut Pd, addr: *mut c_void, length: usize, access: c_uint) -> *mut Mr;
    pub fn ibv_dereg_mr(mr: *mut Mr) -> c_int;
    pub fn ibv_create_cq(
        context: *mut Context,
        entries: c_int,
        cq_context: *mut c_void,
        channel: *mut c_void,
        vector: c_int,
    ) -> *mut Cq;
    pub fn ibv_destroy_cq(cq: *mut Cq) -> c_int;
    pub fn ibv_create_qp(pd: *mut Pd, attr: *mut QpInitAttr) -> *mut Qp;
    pub fn ibv_modify_qp(qp: *mut Qp, attr: *mut QpAttr, mask: c_int) -> c_int;
    pub fn ibv_destroy_qp(qp: *mut Qp) -> c_int;
    pub fn ibv_wc_status_str(status: c_uint) -> *const c_char;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use std::mem::{offset_of, size_of};
    use std::process::{Command, Stdio};

    /// Compiles static assertions against the installed header.
    #[test]
    fn layout_is_that_of_the_installed_header() {
        if !std::path::Path::new("/usr/include/infiniband/verbs.h").exists() {
            return;
        }
        let mut program = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
        let mut offset = |kind: &str, field: &str, ours: usize| {
            writeln!(
                program,
                "_Static_assert(offsetof(struct {kind}, {field}) == {ours}, \"{kind}.{field}\");"
            )
            .unwrap();
        };
        offset(
            "ibv_context",
            "ops.poll_cq",
            offset_of!(Context, ops.poll_cq),
        );
        offset(
            "ibv_context",
            "ops.post_send",
            offset_of!(Context, ops.post_send),
        );
        offset("ibv_mr", "lkey", offset_of!(Mr, lkey));
        offset("ibv_mr", "rkey", offset_of!(Mr, rkey));
        offset("ibv_qp", "qp_num", offset_of!(Qp, qp_num));
        offset(
            "ibv_qp_init_attr",
            "qp_type",
            offset_of!(QpInitAttr, qp_type),
        );
        offset(
            "ibv_qp_init_attr",
            "sq_sig_all",
            offset_of!(QpInitAttr, sq_sig_all),
        );
        offset("ibv_qp_attr", "ah_attr", offset_of!(QpAttr, ah_attr));
        offset(
            "ibv_qp_attr",
            "ah_attr.grh.hop_limit",
            offset_of!(QpAttr, ah_attr.grh.hop_limit),
        );
        offset(
            "ibv_qp_attr",
            "ah_attr.port_num",
            offset_of!(QpAttr, ah_attr.port_num),
        );
        offset("ibv_qp_attr", "port_num", offset_of!(QpAttr, port_num));
        offset("ibv_qp_attr", "rate_limit", offset_of!(QpAttr, rate_limit));
        offset("ibv_send_wr", "sg_list", offset_of!(SendWr, sg_list));
        offset("ibv_send_wr", "send_flags", offset_of!(SendWr, send_flags));
        offset(
            "ibv_send_wr",
            "wr.rdma.remote_addr",
            offset_of!(SendWr, remote_addr),
        );
        offset("ibv_send_wr", "wr.rdma.rkey", offset_of!(SendWr, rkey));
        offset("ibv_wc", "status", offset_of!(Wc, status));
        offset("ibv_wc", "qp_num", offset_of!(Wc, qp_num));
        offset(
            "ibv_port_attr",
            "active_mtu",
            offset_of!(PortAttr, active_mtu),
        );
        for (kind, ours) in [
            ("ibv_qp_init_attr", size_of::<QpInitAttr>()),
            ("ibv_qp_attr", size_of::<QpAttr>()),
            ("ibv_send_wr", size_of::<SendWr>()),
            ("ibv_sge", size_of::<Sge>()),
            ("ibv_wc", size_of::<Wc>()),
        ] {
            writeln!(
                program,
                "_Static_assert(sizeof(struct {kind}) == {ours}, \"{kind}\");"
            )
            .unwrap();
        }
        let mut compiler = Command::new("cc")
            .args(["-fsyntax-only", "-x", "c", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut compiler.stdin.take().unwrap(), program.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success());
        assert!(size_of::<PortAttr>() >= 52);
    }
}
