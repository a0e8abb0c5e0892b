//! Devices, domains, memory and completion queues of libibverbs behind the seam.
//!
//! Objects are made by the library and freed by us, each once, in the order of [`sw_engine::seam::verbs`]: a QP keeps its CQs and its domain, an MR its
//! domain, and all of them the device, whose context belongs to librdmacm and stays.
// UNSAFETY: calls of the library with objects that it made.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    ffi::{CStr, c_int},
    net::{IpAddr, Ipv6Addr, ToSocketAddrs},
    os::fd::{AsRawFd, RawFd},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{Builder, JoinHandle},
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Ability, Access, Cq, Device, DeviceFacts, DmaBufRequest, Fabric, Gid, GidChoice, GidKind, Listener,
            LocalKey, Mr, MrRequest, Pd, Presence, Qp, QpConfig, RemoteKey, Sge, Wc, WcKind, WcStatus, choose_gid,
        },
    },
};
use sw_mem::RemoteAddr;

use super::{Found, Library, Refusal, cm, errno, presence::Known, queue_pair, wire};
use crate::{
    bound::{self, Keeps},
    emulated::wait_readable,
};

/// How often a thread that waits for a descriptor looks whether it shall end.
pub(super) const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(100);
/// The bit of a work request's number that says that it is a receive; callers have the others.
pub(super) const RECEIVE: u64 = 1 << 63;

/// The library as a fabric.
pub struct LibraryFabric(Arc<Library>);

impl LibraryFabric {
    /// Over the loaded library.
    pub fn new(library: Library) -> Self {
        Self(Arc::new(library))
    }
}

pub(super) fn failed(call: &'static str) -> Error {
    let errno = errno();
    match errno {
        libc::ENOMEM | libc::EAGAIN => {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("rdma").with_code(errno);
            limit.detail(format!("{call}: no room")).remedy("raise the limit on locked memory (ulimit -l)")
        }
        _ => Refusal::System(call, errno).error(),
    }
}

impl Fabric for LibraryFabric {
    fn devices(&self) -> Result<Vec<DeviceFacts>, Error> {
        let found = self.0.devices().map_err(|refusal| refusal.error())?;
        Ok(found.into_iter().filter_map(|found| Some(found.ok()?.facts)).collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>, Error> {
        let found = self.found(name)?;
        self.opened(found, None)
    }
}

/// From where connections are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortChoice {
    /// The device by name; `None`: the one that has the route.
    pub device: Option<String>,
    /// The index of the address in the table of its port; `None`: the route's, or by the [rule](choose_gid) where a device is named.
    pub gid: Option<u32>,
}

/// The address that connections of a device are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) ip: IpAddr,
    /// Its index, if somebody chose that.
    pub(super) index: Option<u32>,
}

/// The address of IP that a GID is; `None` for InfiniBand, whose GIDs are none.
fn ip_of(gid: &Gid) -> Option<IpAddr> {
    let ip = Ipv6Addr::from(gid.raw);
    match gid.kind {
        GidKind::InfiniBand => None,
        GidKind::RoceV1 | GidKind::RoceV2 => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
    }
}

/// The address to go to `to` from.
fn source(gids: &[Gid], choice: &PortChoice, to: IpAddr) -> Result<Option<Source>, Error> {
    if let Some(index) = choice.gid {
        let gid = choose_gid(gids, GidChoice::Index(index))?;
        let ip = ip_of(&gid).filter(|ip| ip.is_ipv4() == to.is_ipv4());
        let ip = ip.ok_or_else(|| {
            let misuse = Error::new(ErrorKind::ApiMisuse, Verb::Open).at(gid.to_string());
            misuse.detail(format!("no connection to {to} is made from it")).remedy("name an address of the same family")
        })?;
        return Ok(Some(Source { ip, index: Some(index) }));
    }
    let fits: Vec<Gid> =
        gids.iter().copied().filter(|gid| ip_of(gid).is_some_and(|ip| ip.is_ipv4() == to.is_ipv4())).collect();
    // A named device without such an address (InfiniBand has its own): the route chooses, and another device is refused.
    let chosen = if choice.device.is_some() { choose_gid(&fits, GidChoice::Rule).ok() } else { None };
    Ok(chosen.and_then(|gid| Some(Source { ip: ip_of(&gid)?, index: None })))
}

impl LibraryFabric {
    /// The device by which connections to `to`, `HOST:PORT`, go. *Blocking*: the connection manager asks for the route, some seconds at most.
    ///
    /// # Errors
    /// `NotFound` for a name; `NoDevice` where none has a route, or not the device or the address that was chosen; `ApiMisuse` for an
    /// address of another family.
    pub fn towards(&self, to: &str, choice: &PortChoice) -> Result<Arc<dyn Device>, Error> {
        let known = to.to_socket_addrs().ok().and_then(|mut all| all.next());
        let known = known.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, Verb::Open).at(to.to_owned()).detail("the name is not known")
        })?;
        let found = match &choice.device {
            Some(name) => self.found(name)?,
            None => self.found(&cm::device_towards(&self.0, to)?)?,
        };
        let from = source(&found.gids, choice, known.ip())?;
        self.opened(found, from)
    }

    /// The device whose address `at`, `HOST:PORT`, is: for whoever listens there.
    ///
    /// # Errors
    /// `NoDevice` for an address of no device or of all of them.
    pub fn at(&self, at: &str) -> Result<Arc<dyn Device>, Error> {
        let found = self.found(&cm::device_at(&self.0, at)?)?;
        self.opened(found, None)
    }

    fn found(&self, name: &str) -> Result<Found, Error> {
        let found = self.0.devices().map_err(|refusal| refusal.error())?;
        let all: Vec<Found> = found.into_iter().filter_map(Result::ok).collect();
        let names: Vec<String> = all.iter().map(|one| one.facts.name.clone()).collect();
        all.into_iter().find(|one| one.facts.name == name).ok_or_else(|| {
            let absent = Error::new(ErrorKind::NoDevice, Verb::Open).at(name.to_owned());
            absent.detail("there is no such RDMA device").remedy(format!("there are: {}", names.join(", ")))
        })
    }

    fn opened(&self, found: Found, from: Option<Source>) -> Result<Arc<dyn Device>, Error> {
        let ops = &self.0.ops;
        let mut count: c_int = 0;
        // SAFETY: a live local. The list is not freed, so that the contexts of librdmacm stay, which connections are made with.
        let list = unsafe { (ops.get_devices)(&raw mut count) };
        if list.is_null() {
            return Err(failed("rdma_get_devices"));
        }
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: as many entries as the library said.
            let context = unsafe { *list.wrapping_add(index) };
            // SAFETY: a context of the list, whose first field is the device.
            let device = unsafe { (*context).device };
            // SAFETY: a device of the library's, whose name is a text that stays.
            let text = unsafe { (ops.get_device_name)(device) };
            // SAFETY: names are zero-terminated and there.
            if unsafe { CStr::from_ptr(text) }.to_bytes() == found.facts.name.as_bytes() {
                // A registration of ordinary memory cannot be invalidated from afar, and windows are not built.
                let facts = DeviceFacts { remote_invalidate: Ability::No, ..found.facts };
                let (library, gids) = (Arc::clone(&self.0), found.gids);
                let known = Known::of(context);
                // InfiniBand has no addresses of IP to bind one to: there connections alone hear.
                let ip = choose_gid(&gids, GidChoice::Rule).ok().and_then(|gid| ip_of(&gid));
                let sentinel = ip.and_then(|ip| cm::Sentinel::at(&library, ip, context));
                let opened = Opened { sentinel, library, context, facts, gids, from, known };
                return Ok(Arc::new(LibraryDevice(Arc::new(opened))));
            }
        }
        let absent = Error::new(ErrorKind::NoDevice, Verb::Open).at(found.facts.name);
        Err(absent.detail("librdmacm does not know the device"))
    }
}

/// What everything of a device keeps.
pub(super) struct Opened {
    pub(super) sentinel: Option<cm::Sentinel>,
    pub(super) library: Arc<Library>,
    pub(super) context: *mut wire::Context,
    pub(super) facts: DeviceFacts,
    gids: Vec<Gid>,
    /// `None`: the route chooses.
    pub(super) from: Option<Source>,
    pub(super) known: Known,
}

// SAFETY: verbs are thread-safe (rdma-core `Documentation/libibverbs.md`), and the context stays.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Opened {
    pub(super) fn ops(&self) -> &wire::Ops {
        &self.library.ops
    }
}

struct LibraryDevice(Arc<Opened>);

impl Device for LibraryDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.0.facts
    }

    fn presence(&self) -> Presence {
        self.0.presence()
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        Ok(self.0.gids.clone())
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        self.0.expect()?;
        // SAFETY: a context that stays.
        let raw = unsafe { (self.0.ops().alloc_pd)(self.0.context) };
        if raw.is_null() {
            return Err(failed("ibv_alloc_pd"));
        }
        Ok(Arc::new(LibraryPd(Arc::new(Domain { raw, of: Arc::clone(&self.0) }))))
    }

    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        if entries == 0 || entries > self.0.facts.cqe_max {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .at("cq")
                .detail("entries out of the device's range"));
        }
        self.0.expect()?;
        LibraryCq::create(&self.0, entries, wake)
    }

    fn listen(&self, at: &str) -> Result<Box<dyn Listener>, Error> {
        cm::listen(&self.0, at)
    }
}

/// A domain; freed with its last user.
pub(super) struct Domain {
    pub(super) raw: *mut std::ffi::c_void,
    pub(super) of: Arc<Opened>,
}

// SAFETY: as for `Opened`.
unsafe impl Send for Domain {}
// SAFETY: as for `Opened`.
unsafe impl Sync for Domain {}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: ours; MRs and QPs of it keep it.
        unsafe { (self.of.ops().dealloc_pd)(self.raw) };
    }
}

struct LibraryPd(Arc<Domain>);

impl LibraryPd {
    fn register(&self, memory: MrRequest<'_>, keeps: Keeps) -> Result<Box<dyn Mr>, Error> {
        self.0.of.expect()?;
        let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("mr").detail(text.to_owned()));
        let MrRequest { region, at, len, access } = memory;
        if len == 0 || at.checked_add(len).is_none_or(|end| end > region.len().0) {
            return refuse(ErrorKind::OutOfRange, "the range is outside of the region, or empty");
        }
        if access.allows(Access::REMOTE_WRITE) && !access.allows(Access::LOCAL_WRITE) {
            return refuse(ErrorKind::ApiMisuse, "remote write needs local write beside it");
        }
        let Some(base) = region.base().host().and_then(|va| va.checked_add(sw_mem::ByteLen(at))) else {
            return refuse(ErrorKind::Unsupported, "memory of accelerators is registered by its dma-buf");
        };
        let (start, bytes) = (ptr::with_exposed_provenance_mut(sw_mem::index(base.raw())), sw_mem::index(len));
        // SAFETY: a live domain; the range is of a region that the MR keeps or is bound to, which stays mapped until it is deregistered.
        let raw = unsafe { (self.0.of.ops().reg_mr)(self.0.raw, start, bytes, flags(access)) };
        if raw.is_null() {
            return Err(failed("ibv_reg_mr"));
        }
        // SAFETY: made above; the library changes nothing in it until it is deregistered.
        let made = unsafe { &*raw };
        let keys = (made.lkey, made.rkey);
        let domain = Arc::clone(&self.0);
        Ok(Box::new(LibraryMr { raw, keys, base: base.raw(), len, access, keeps: Some(keeps), domain }))
    }
}

/// `IBV_ACCESS_LOCAL_WRITE`, `REMOTE_WRITE`, `REMOTE_READ`.
fn flags(access: Access) -> c_int {
    let flags = [(Access::LOCAL_WRITE, 1), (Access::REMOTE_WRITE, 2), (Access::REMOTE_READ, 4)];
    flags.iter().filter(|(one, _)| access.allows(*one)).fold(0, |all, (_, flag)| all | flag)
}

impl Pd for LibraryPd {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.register(memory, Keeps::Memory(memory.region.clone()))
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        bound::bind(memory.region, self.register(memory, Keeps::Nothing)?)
    }

    fn reg_dmabuf_mr(&self, memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        self.0.of.expect()?;
        memory.validate()?;
        let unsupported = |text: &str, errno| {
            let error = Error::new(ErrorKind::Unsupported, Verb::Setup).at(self.0.of.facts.name.clone());
            Err(error.detail(text.to_owned()).with_code(errno).remedy("stage it in host memory"))
        };
        let Some(register) = self.0.of.library.table.reg_dmabuf_mr else {
            return unsupported("libibverbs has no ibv_reg_dmabuf_mr (rdma-core before version 34)", 0);
        };
        let DmaBufRequest { fd, at, len, iova, access } = memory;
        // SAFETY: a live domain; the kernel finds the descriptor wrong if it is none, and holds the dma-buf as long as it is registered.
        let raw = unsafe { register(self.0.raw, at, sw_mem::index(len), iova, fd, flags(access)) };
        let raw: *mut wire::Mr = raw.cast();
        if raw.is_null() {
            return match errno() {
                // As providers and kernels say it that cannot.
                errno @ (libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOSYS | libc::EINVAL) => {
                    unsupported("the device or its driver registers no such dma-buf", errno)
                }
                libc::EBADF => {
                    let misuse = Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("mr").with_code(libc::EBADF);
                    Err(misuse.detail(format!("descriptor {fd} is no dma-buf")))
                }
                _ => Err(failed("ibv_reg_dmabuf_mr")),
            };
        }
        // SAFETY: made above; the library changes nothing in it until it is deregistered.
        let made = unsafe { &*raw };
        let (keys, domain) = ((made.lkey, made.rkey), Arc::clone(&self.0));
        Ok(Box::new(LibraryMr { raw, keys, base: iova, len, access, keeps: None, domain }))
    }

    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
        queue_pair::create(&self.0, config)
    }
}

struct LibraryMr {
    raw: *mut wire::Mr,
    keys: (u32, u32),
    base: u64,
    len: u64,
    access: Access,
    /// Let go of when nobody reaches it any more; kept for ever if the library refuses to end the registration.
    keeps: Option<Keeps>,
    domain: Arc<Domain>,
}

// SAFETY: as for `Opened`.
unsafe impl Send for LibraryMr {}
// SAFETY: as for `Opened`; nothing is changed through a shared one.
unsafe impl Sync for LibraryMr {}

impl Mr for LibraryMr {
    fn len(&self) -> u64 {
        self.len
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        at.checked_add(len.into()).filter(|end| *end <= self.len)?;
        Some(Sge { addr: self.base + at, len, lkey: LocalKey(self.keys.0) })
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        let opens = self.access.allows(Access::REMOTE_READ) || self.access.allows(Access::REMOTE_WRITE);
        (opens && at <= self.len).then(|| RemoteAddr::new(self.base + at, self.keys.1))
    }

    fn deregister(mut self: Box<Self>) -> Result<(), Error> {
        self.end()
    }
}

impl LibraryMr {
    /// Ends it, once.
    fn end(&mut self) -> Result<(), Error> {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: ours, once.
        let errno = unsafe { (self.domain.of.ops().dereg_mr)(raw) };
        if errno == 0 {
            return Ok(());
        }
        // The device may still write it: it is never given back.
        tracing::error!(errno, bytes = self.len, "memory could not be deregistered and is kept for ever");
        if let Some(keeps) = self.keeps.take() {
            Box::leak(Box::new(keeps));
        }
        let error = Error::new(ErrorKind::Io, Verb::Setup).at(self.domain.of.facts.name.clone()).with_code(errno);
        Err(error.detail("ibv_dereg_mr: the device does not let go of memory").remedy("see the kernel's log"))
    }
}

impl Drop for LibraryMr {
    fn drop(&mut self) {
        // Logged, and its memory kept.
        let _ = self.end();
    }
}

/// Requests of a QP whose completion nobody took yet.
#[derive(Default)]
pub(super) struct Open {
    pub(super) sends: AtomicU32,
    pub(super) receives: AtomicU32,
}

/// A completion queue, and the thread that waits for its events.
pub(super) struct LibraryCq {
    pub(super) raw: *mut wire::Cq,
    channel: *mut wire::CompChannel,
    of: Arc<Opened>,
    entries: u32,
    reserved: AtomicU32,
    users: Mutex<BTreeMap<u32, Arc<Open>>>,
    /// Completions of what no device was given.
    extra: Mutex<VecDeque<(Wc, Arc<Open>)>>,
    wake: Arc<dyn Wake>,
    is_ended: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

// SAFETY: as for `Opened`; polling is serialised by `users`.
unsafe impl Send for LibraryCq {}
// SAFETY: as above.
unsafe impl Sync for LibraryCq {}

/// What the thread of a CQ has.
struct Events {
    channel: *mut wire::CompChannel,
    of: Arc<Opened>,
    is_ended: Arc<AtomicBool>,
    wake: Arc<dyn Wake>,
}

// SAFETY: as for `Opened`; the channel is destroyed behind the thread's end.
unsafe impl Send for Events {}

/// A descriptor of the library's, to wait for.
pub(super) struct Fd(pub(super) RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Events {
    fn run(self) {
        // SAFETY: a live channel.
        let fd = Fd(unsafe { (*self.channel).fd });
        while !self.is_ended.load(Ordering::Acquire) {
            let is_ready = matches!(wait_readable(&fd, LOOK_EVERY), Ok(true));
            self.of.listen_for_the_end();
            if self.of.presence() == Presence::Gone {
                // Whoever waits looks once more, and is told when it asks for the next wake.
                self.wake.wake();
                return;
            }
            if !is_ready {
                continue;
            }
            let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: a live channel and live locals; an event is there, so that it does not wait.
            if unsafe { (self.of.ops().get_cq_event)(self.channel, &raw mut cq, &raw mut context) } == 0 {
                // SAFETY: the CQ of the event, which is destroyed behind this thread's end.
                unsafe { (self.of.ops().ack_cq_events)(cq, 1) };
                self.wake.wake();
            } else {
                // The kernel gives events until it takes the device away (`ib_uverbs_event_read`: EIO).
                self.of.known.is_gone();
            }
        }
    }
}

impl LibraryCq {
    fn create(of: &Arc<Opened>, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        let ops = of.ops();
        // SAFETY: a context that stays.
        let channel = unsafe { (ops.create_comp_channel)(of.context) };
        if channel.is_null() {
            return Err(failed("ibv_create_comp_channel"));
        }
        let wanted = c_int::try_from(entries).unwrap_or(c_int::MAX);
        // SAFETY: a context that stays, and its channel.
        let raw = unsafe { (ops.create_cq)(of.context, wanted, ptr::null_mut(), channel, 0) };
        if raw.is_null() {
            let error = failed("ibv_create_cq");
            // SAFETY: ours, and nothing uses it.
            unsafe { (ops.destroy_comp_channel)(channel) };
            return Err(error);
        }
        let is_ended = Arc::new(AtomicBool::new(false));
        let made = Self {
            raw,
            channel,
            of: Arc::clone(of),
            entries,
            reserved: AtomicU32::new(0),
            users: Mutex::default(),
            extra: Mutex::default(),
            wake: Arc::clone(&wake),
            is_ended: Arc::clone(&is_ended),
            thread: Mutex::default(),
        };
        let events = Events { channel, of: Arc::clone(of), is_ended, wake };
        let thread = Builder::new().name("rdma events".to_owned()).spawn(move || events.run());
        let thread = thread.map_err(|cause| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("cq").with_code(cause.raw_os_error().unwrap_or(0))
        })?;
        *made.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Arc::new(made))
    }

    fn users(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Open>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is of this device, as it was opened.
    pub(super) fn is_of(&self, device: &Arc<Opened>) -> bool {
        Arc::ptr_eq(&self.of, device)
    }

    /// Keeps room for so many requests; whether there is.
    pub(super) fn reserve(&self, requests: u32) -> bool {
        let more = |held: u32| held.checked_add(requests).filter(|all| *all <= self.entries);
        self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    pub(super) fn release(&self, requests: u32) {
        self.reserved.fetch_sub(requests, Ordering::AcqRel);
    }

    /// A completion of something that no device was given.
    pub(super) fn push(&self, wc: Wc, of: &Arc<Open>) {
        self.extra().push_back((wc, Arc::clone(of)));
        self.wake.wake();
    }

    fn extra(&self) -> MutexGuard<'_, VecDeque<(Wc, Arc<Open>)>> {
        self.extra.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A QP completes here from now on.
    pub(super) fn admit(&self, qpn: u32, open: &Arc<Open>) {
        self.users().insert(qpn, Arc::clone(open));
    }

    /// A QP is gone: nothing completes for it any more.
    pub(super) fn dismiss(&self, qpn: u32, open: &Arc<Open>) {
        let mut users = self.users();
        if users.get(&qpn).is_some_and(|there| Arc::ptr_eq(there, open)) {
            users.remove(&qpn);
        }
        self.extra().retain(|(_, of)| !Arc::ptr_eq(of, open));
    }
}

impl Drop for LibraryCq {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // One that panicked has ended too.
            let _ = thread.join();
        }
        // SAFETY: ours, with all events acknowledged and no QP of it alive: those keep it.
        unsafe { (self.of.ops().destroy_cq)(self.raw) };
        // SAFETY: ours, without its CQ.
        unsafe { (self.of.ops().destroy_comp_channel)(self.channel) };
    }
}

impl Cq for LibraryCq {
    fn poll(&self, out: &mut Vec<Wc>) -> usize {
        let users = self.users();
        let before = out.len();
        while out.len() < out.capacity() {
            let mut one = wire::Wc::default();
            // SAFETY: a live CQ.
            let context = unsafe { (*self.raw).context };
            // SAFETY: a context that stays.
            let poll = unsafe { (*context).poll_cq };
            // SAFETY: a live CQ, and room for one completion.
            if unsafe { poll(self.raw, 1, &raw mut one) } != 1 {
                break;
            }
            let is_receive = one.wr_id & RECEIVE != 0;
            // Not every provider takes the completions of a QP out when that is destroyed.
            let Some(open) = users.get(&one.qp_num) else { continue };
            let count = if is_receive { &open.receives } else { &open.sends };
            count.fetch_sub(1, Ordering::AcqRel);
            let kind = match one.opcode {
                _ if is_receive => WcKind::Recv,
                1 => WcKind::RdmaWrite,
                2 => WcKind::RdmaRead,
                _ => WcKind::Send,
            };
            let invalidated = is_receive && one.wc_flags & wire::WC_WITH_INV != 0;
            out.push(Wc {
                wr_id: one.wr_id & !RECEIVE,
                qpn: one.qp_num,
                kind,
                status: WcStatus::of(one.status),
                byte_len: one.byte_len,
                invalidated: invalidated.then_some(RemoteKey(one.invalidated_rkey)),
            });
        }
        // Behind what the device has: it was posted later.
        let mut extra = self.extra();
        let room = (out.capacity() - out.len()).min(extra.len());
        out.extend(extra.drain(..room).map(|(wc, _)| wc));
        out.len() - before
    }

    fn arm(&self) -> Result<(), Error> {
        self.of.expect()?;
        // SAFETY: a live CQ.
        let context = unsafe { (*self.raw).context };
        // SAFETY: a context that stays.
        let notify = unsafe { (*context).req_notify_cq };
        // SAFETY: a live CQ.
        match unsafe { notify(self.raw, 0) } {
            0 => Ok(()),
            errno => Err(Refusal::System("ibv_req_notify_cq", errno).error()),
        }
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
