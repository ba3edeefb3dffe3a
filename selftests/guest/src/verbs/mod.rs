// SPDX-License-Identifier: GPL-2.0

//! RDMA as the device: a second process writes to the memory region of this one through two reliable
//! connected queue pairs of one RDMA device.

mod ffi;

use std::ffi::{c_int, CStr};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context as _, Result};

use crate::device::Dma;
use crate::map::Mapping;
use crate::stamp::Stamp;

/// Bytes that one work request writes.
const REQUEST: usize = 128 << 10;
/// Requests that the peer has under way at once.
const DEPTH: usize = 8;
const PORT: u8 = 1;

/// An open device.
struct Device {
    context: *mut ffi::Context,
    gid: ffi::Gid,
    gid_index: u8,
    mtu: u32,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the first device of the machine.
    fn open() -> Result<Self> {
        let mut count = 0;
        // SAFETY: the list and the names in it are valid until it is freed; an open device stays valid.
        let context = unsafe {
            let list = ffi::ibv_get_device_list(&mut count);
            if list.is_null() || count == 0 {
                bail!("no RDMA device");
            }
            let device = *list;
            let name = CStr::from_ptr(ffi::ibv_get_device_name(device))
                .to_string_lossy()
                .into_owned();
            let context = ffi::ibv_open_device(device);
            ffi::ibv_free_device_list(list);
            if context.is_null() {
                return Err(io::Error::last_os_error())
                    .with_context(|| format!("cannot open RDMA device {name}"));
            }
            context
        };
        let mut device = Self {
            context,
            gid: ffi::Gid::default(),
            gid_index: 0,
            mtu: 0,
        };
        device.query()?;
        Ok(device)
    }

    fn query(&mut self) -> Result<()> {
        let mut port = ffi::PortAttr::default();
        // SAFETY: `port` is larger than what the library writes.
        let error = unsafe { ffi::ibv_query_port(self.context, PORT, &mut port) };
        check(error, "query the port")?;
        self.mtu = port.active_mtu;
        // An address of IPv4 if there is one: over a loopback interface others may not be reachable.
        let mut found = None;
        for index in 0..port.gid_tbl_len.clamp(1, 16) {
            let mut gid = ffi::Gid::default();
            // SAFETY: `gid` has the size of union ibv_gid.
            let error = unsafe { ffi::ibv_query_gid(self.context, PORT, index, &mut gid) };
            if error != 0 || gid == ffi::Gid::default() {
                continue;
            }
            let is_ipv4 = gid.0[..10] == [0; 10] && gid.0[10..12] == [0xff; 2];
            if found.is_none() || is_ipv4 {
                found = Some((gid, index as u8));
            }
            if is_ipv4 {
                break;
            }
        }
        (self.gid, self.gid_index) = found.context("the RDMA device has no GID")?;
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything made from the context holds a reference to this and is gone.
        unsafe { ffi::ibv_close_device(self.context) };
    }
}

fn check(error: c_int, what: &str) -> Result<()> {
    match error {
        0 => Ok(()),
        // Some calls return the errno, some set it.
        -1 => Err(io::Error::last_os_error()).with_context(|| format!("cannot {what}")),
        errno => Err(io::Error::from_raw_os_error(errno)).with_context(|| format!("cannot {what}")),
    }
}

/// A protection domain.
pub struct Domain {
    pd: *mut ffi::Pd,
    device: Device,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// Opens the first device of the machine.
    pub fn open() -> Result<Arc<Self>> {
        let device = Device::open()?;
        // SAFETY: the context is open.
        let pd = unsafe { ffi::ibv_alloc_pd(device.context) };
        if pd.is_null() {
            return Err(io::Error::last_os_error()).context("cannot allocate a protection domain");
        }
        Ok(Arc::new(Self { pd, device }))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: regions and queue pairs hold a reference to this and are gone.
        unsafe { ffi::ibv_dealloc_pd(self.pd) };
    }
}

/// A registered stretch of memory.
pub struct Region {
    mr: *mut ffi::Mr,
    _domain: Arc<Domain>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Region {}

impl Region {
    /// Registers `range` of `map` for local and remote writes.
    pub fn for_writes(domain: &Arc<Domain>, map: &Mapping, range: Range<u64>) -> Result<Self> {
        assert!(range.end <= map.len() as u64);
        let address = map.address() + range.start as usize;
        let len = (range.end - range.start) as usize;
        let access = ffi::ACCESS_LOCAL_WRITE | ffi::ACCESS_REMOTE_WRITE;
        Self::register(domain, address, len, access)
    }

    fn register(domain: &Arc<Domain>, address: usize, len: usize, access: u32) -> Result<Self> {
        // SAFETY: the range is mapped; the pins that this takes outlive the mapping if need be.
        let mr = unsafe { ffi::ibv_reg_mr(domain.pd, address as *mut _, len, access) };
        if mr.is_null() {
            return Err(io::Error::last_os_error()).context("cannot register the memory region");
        }
        Ok(Self {
            mr,
            _domain: Arc::clone(domain),
        })
    }

    fn lkey(&self) -> u32 {
        // SAFETY: the region is registered for as long as `self` lives.
        unsafe { (*self.mr).lkey }
    }

    fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.mr).rkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `self` owns the region.
        unsafe { ffi::ibv_dereg_mr(self.mr) };
    }
}

/// A memory region that no device may write to.
pub struct ReadOnly {
    _region: Region,
}

impl ReadOnly {
    /// Registers all of `map`.
    pub fn register(map: &Mapping) -> Result<Self> {
        let domain = Domain::open()?;
        let region = Region::register(&domain, map.address(), map.len(), 0)?;
        Ok(Self { _region: region })
    }
}

/// What one side has to know of the other's queue pair.
#[derive(Clone, Copy)]
struct Address {
    number: u32,
    sequence: u32,
    gid: ffi::Gid,
}

impl Address {
    fn parse(words: &mut std::str::SplitWhitespace<'_>) -> Result<Self> {
        let mut next = || words.next().context("short message");
        let number = next()?.parse()?;
        let sequence = next()?.parse()?;
        let gid = u128::from_str_radix(next()?, 16)?;
        Ok(Self {
            number,
            sequence,
            gid: ffi::Gid(gid.to_be_bytes()),
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gid = u128::from_be_bytes(self.gid.0);
        write!(f, "{} {} {gid:032x}", self.number, self.sequence)
    }
}

/// A queue pair with its completion queue.
struct Pair {
    qp: *mut ffi::Qp,
    cq: *mut ffi::Cq,
    domain: Arc<Domain>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Pair {}

const SEQUENCE: u32 = 0x1234;

impl Pair {
    fn new(domain: &Arc<Domain>) -> Result<Self> {
        let mut pair = Self {
            qp: ptr::null_mut(),
            cq: ptr::null_mut(),
            domain: Arc::clone(domain),
        };
        // SAFETY: the context is open, and no channel is given.
        pair.cq = unsafe {
            ffi::ibv_create_cq(
                domain.device.context,
                2 * DEPTH as c_int,
                ptr::null_mut(),
                ptr::null_mut(),
                0,
            )
        };
        if pair.cq.is_null() {
            return Err(io::Error::last_os_error()).context("cannot create a completion queue");
        }
        let mut attributes = ffi::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: pair.cq,
            recv_cq: pair.cq,
            srq: ptr::null_mut(),
            cap: ffi::QpCap {
                max_send_wr: DEPTH as u32,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: ffi::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: domain and completion queue are alive.
        pair.qp = unsafe { ffi::ibv_create_qp(domain.pd, &mut attributes) };
        if pair.qp.is_null() {
            return Err(io::Error::last_os_error()).context("cannot create a queue pair");
        }
        let attributes = ffi::QpAttr {
            qp_state: ffi::QPS_INIT,
            port_num: PORT,
            qp_access_flags: ffi::ACCESS_REMOTE_WRITE,
            ..ffi::QpAttr::default()
        };
        pair.modify(
            attributes,
            ffi::QP_STATE | ffi::QP_PKEY_INDEX | ffi::QP_PORT | ffi::QP_ACCESS_FLAGS,
        )?;
        Ok(pair)
    }

    fn modify(&self, mut attributes: ffi::QpAttr, mask: c_int) -> Result<()> {
        // SAFETY: the queue pair is alive.
        let error = unsafe { ffi::ibv_modify_qp(self.qp, &mut attributes, mask) };
        check(error, "change the state of the queue pair")
    }

    fn address(&self) -> Address {
        Address {
            // SAFETY: the queue pair is alive.
            number: unsafe { (*self.qp).qp_num },
            sequence: SEQUENCE,
            gid: self.domain.device.gid,
        }
    }

    fn connect(&self, to: Address) -> Result<()> {
        let device = &self.domain.device;
        let mut attributes = ffi::QpAttr {
            qp_state: ffi::QPS_RTR,
            path_mtu: device.mtu,
            dest_qp_num: to.number,
            rq_psn: to.sequence,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
            ..ffi::QpAttr::default()
        };
        attributes.ah_attr.is_global = 1;
        attributes.ah_attr.port_num = PORT;
        attributes.ah_attr.grh.dgid = to.gid;
        attributes.ah_attr.grh.sgid_index = device.gid_index;
        attributes.ah_attr.grh.hop_limit = 64;
        self.modify(
            attributes,
            ffi::QP_STATE
                | ffi::QP_AV
                | ffi::QP_PATH_MTU
                | ffi::QP_DEST_QPN
                | ffi::QP_RQ_PSN
                | ffi::QP_MAX_DEST_RD_ATOMIC
                | ffi::QP_MIN_RNR_TIMER,
        )?;
        let attributes = ffi::QpAttr {
            qp_state: ffi::QPS_RTS,
            // 4.096 us << 18 is about a second: an emulated machine answers late.
            timeout: 18,
            retry_cnt: 7,
            rnr_retry: 7,
            sq_psn: SEQUENCE,
            max_rd_atomic: 1,
            ..ffi::QpAttr::default()
        };
        self.modify(
            attributes,
            ffi::QP_STATE
                | ffi::QP_TIMEOUT
                | ffi::QP_RETRY_CNT
                | ffi::QP_RNR_RETRY
                | ffi::QP_SQ_PSN
                | ffi::QP_MAX_QP_RD_ATOMIC,
        )
    }

    /// Starts an RDMA write.
    fn post_write(&self, from: ffi::Sge, to: u64, rkey: u32) -> Result<()> {
        let mut from = from;
        let mut request = ffi::SendWr {
            wr_id: to,
            next: ptr::null_mut(),
            sg_list: &mut from,
            num_sge: 1,
            opcode: ffi::WR_RDMA_WRITE,
            send_flags: ffi::SEND_SIGNALED,
            imm_data: 0,
            remote_addr: to,
            rkey,
            rest_of_wr: [0; 5],
            qp_type: 0,
            bind_mw: [0; 6],
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the library copies the request before it returns; the memory that `from` names is
        // registered and outlives the request.
        let error = unsafe {
            let post_send = (*self.domain.device.context).ops.post_send;
            post_send(self.qp, &mut request, &mut bad)
        };
        check(error, "post an RDMA write")
    }

    /// Waits until one request is complete.
    fn wait(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        let mut completion = ffi::Wc::default();
        loop {
            // SAFETY: there is room for the one entry that is asked for.
            let found = unsafe {
                let poll_cq = (*self.domain.device.context).ops.poll_cq;
                poll_cq(self.cq, 1, &mut completion)
            };
            match found {
                1 if completion.status == 0 => return Ok(()),
                1 => {
                    // SAFETY: the library returns a string constant for any status.
                    let why = unsafe { CStr::from_ptr(ffi::ibv_wc_status_str(completion.status)) };
                    bail!("RDMA write failed: {}", why.to_string_lossy());
                }
                0 if Instant::now() < end => std::thread::sleep(Duration::from_micros(50)),
                0 => bail!("an RDMA write did not complete within a minute"),
                _ => bail!("cannot poll the completion queue"),
            }
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: `self` owns both; the queue pair goes first because it uses the other.
        unsafe {
            if !self.qp.is_null() {
                ffi::ibv_destroy_qp(self.qp);
            }
            if !self.cq.is_null() {
                ffi::ibv_destroy_cq(self.cq);
            }
        }
    }
}

/// A line-based conversation with the other process.
struct Line {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Line {
    fn new(socket: UnixStream) -> Result<Self> {
        Ok(Self {
            reader: BufReader::new(socket.try_clone()?),
            writer: socket,
        })
    }

    fn send(&mut self, message: &str) -> Result<()> {
        writeln!(self.writer, "{message}").context("the other process is gone")
    }

    /// The next message; none if the other side has closed.
    fn receive(&mut self) -> Result<Option<String>> {
        let mut message = String::new();
        let len = self.reader.read_line(&mut message)?;
        Ok((len > 0).then(|| message.trim_end().to_owned()))
    }
}

/// The owner of the mapping: registers it and asks the peer to write to it.
pub struct Verbs {
    // In the order in which they have to go.
    pair: Option<Pair>,
    region: Option<Region>,
    line: Line,
    peer: Child,
}

impl Verbs {
    /// Registers `range` of `map` for local and remote writes and starts the peer.
    pub fn register(map: &Mapping, range: Range<u64>) -> Result<Self> {
        let domain = Domain::open()?;
        let region = Region::for_writes(&domain, map, range)?;
        let pair = Pair::new(&domain)?;

        let (ours, theirs) = UnixStream::pair()?;
        let peer = Command::new("/proc/self/exe")
            .arg("verbs-peer")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("cannot start the RDMA peer")?;
        let mut verbs = Self {
            line: Line::new(ours)?,
            pair: Some(pair),
            region: Some(region),
            peer,
        };
        verbs.connect(map.address())?;
        Ok(verbs)
    }

    fn connect(&mut self, base: usize) -> Result<()> {
        let (Some(pair), Some(region)) = (&self.pair, &self.region) else {
            bail!("not registered");
        };
        self.line
            .send(&format!("{} {base} {}", pair.address(), region.rkey()))?;
        let answer = self.line.receive()?.context("the RDMA peer is gone")?;
        pair.connect(Address::parse(&mut answer.split_whitespace())?)
    }
}

impl Dma for Verbs {
    fn write(&mut self, stamp: Stamp, range: Range<u64>) -> Result<()> {
        let Stamp { file, round } = stamp;
        self.line
            .send(&format!("{file} {round} {} {}", range.start, range.end))?;
        match self.line.receive()?.as_deref() {
            Some("done") => Ok(()),
            Some(error) => Err(anyhow!("RDMA peer: {error}")),
            None => Err(anyhow!("the RDMA peer is gone")),
        }
    }

    fn unpin(mut self: Box<Self>) -> Result<()> {
        self.pair = None;
        self.region = None;
        Ok(())
    }
}

impl Drop for Verbs {
    fn drop(&mut self) {
        // The peer ends when its line is closed.
        let _ = self.line.writer.shutdown(std::net::Shutdown::Both);
        self.pair = None;
        self.region = None;
        let _ = self.peer.wait();
    }
}

/// The other process: reads orders from standard input, a socket, and writes from anonymous memory.
pub fn run_peer() -> Result<()> {
    // SAFETY: standard input is the socket that `Verbs::register` left there, and is used nowhere else.
    let socket = unsafe { <UnixStream as std::os::fd::FromRawFd>::from_raw_fd(0) };
    let mut line = Line::new(socket)?;
    let domain = Domain::open()?;
    let source = Mapping::anonymous(DEPTH * REQUEST)?;
    let region = Region::register(
        &domain,
        source.address(),
        source.len(),
        ffi::ACCESS_LOCAL_WRITE,
    )?;
    let pair = Pair::new(&domain)?;

    let Some(greeting) = line.receive()? else {
        return Ok(());
    };
    let mut words = greeting.split_whitespace();
    let owner = Address::parse(&mut words)?;
    let base: u64 = words.next().context("no address")?.parse()?;
    let rkey: u32 = words.next().context("no key")?.parse()?;
    pair.connect(owner)?;
    line.send(&pair.address().to_string())?;

    while let Some(order) = line.receive()? {
        let numbers: Vec<u64> = order.split(' ').map_while(|w| w.parse().ok()).collect();
        let [file, round, start, end] = numbers[..] else {
            bail!("odd order: {order}");
        };
        let stamp = Stamp {
            file: file as u32,
            round: round as u32,
        };
        let answer = match serve(&pair, &region, &source, stamp, start..end, base, rkey) {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        line.send(&answer)?;
    }
    Ok(())
}

fn serve(
    pair: &Pair,
    region: &Region,
    source: &Mapping,
    stamp: Stamp,
    range: Range<u64>,
    base: u64,
    rkey: u32,
) -> Result<()> {
    let mut next = range.start;
    let mut posted = 0;
    let mut complete = 0;
    while next < range.end || complete < posted {
        if next < range.end && posted - complete < DEPTH {
            // Requests of one queue pair complete in order, so this slot is free.
            let slot = posted % DEPTH * REQUEST;
            let len = (REQUEST as u64).min(range.end - next) as usize;
            source.store(slot, &stamp.bytes(next, len));
            let from = ffi::Sge {
                addr: (source.address() + slot) as u64,
                length: len as u32,
                lkey: region.lkey(),
            };
            pair.post_write(from, base + next, rkey)?;
            next += len as u64;
            posted += 1;
        } else {
            pair.wait()?;
            complete += 1;
        }
    }
    Ok(())
}
