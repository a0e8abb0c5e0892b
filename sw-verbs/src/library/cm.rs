//! librdmacm: which device an address belongs to, connections that are asked for and those that arrive.
// UNSAFETY: calls of the library with objects that it made.
#![expect(unsafe_code, reason = "calls librdmacm")]

use std::{
    any::Any,
    ffi::{CStr, c_int},
    mem,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    ptr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Incoming, Listener, PrivateData},
};

use super::{
    Library, Refusal, errno,
    fabric::{Fd, Opened, failed},
    wire::{self, event},
};
use crate::emulated::{now, wait_readable};

/// What the connection manager may take for an address or a route, as Linux's and SPDK's hosts have it.
const RESOLVE_MS: c_int = 2000;
/// Connections that wait for a listener.
const BACKLOG: c_int = 64;
/// An event channel; destroyed when it goes, behind the identifiers on it.
pub(super) struct Channel {
    raw: *mut wire::EventChannel,
    of: Arc<Library>,
}

// SAFETY: librdmacm is thread-safe; events of a channel are taken by one thread at a time.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: ours; identifiers on it keep it.
        unsafe { (self.of.ops.destroy_event_channel)(self.raw) };
    }
}

/// An event, copied.
pub(super) struct Told {
    pub(super) kind: c_int,
    pub(super) status: c_int,
    pub(super) private: PrivateData,
    id: *mut wire::CmId,
}

impl Channel {
    fn new(of: &Arc<Library>) -> Result<Arc<Self>, Error> {
        // SAFETY: no arguments.
        let raw = unsafe { (of.ops.create_event_channel)() };
        if raw.is_null() {
            Err(match errno() {
                libc::ENODEV | libc::ENOENT => Refusal::NoConnections.error(),
                _ => failed("rdma_create_event_channel"),
            })
        } else {
            Ok(Arc::new(Self { raw, of: Arc::clone(of) }))
        }
    }

    /// The next event, or `None` when the time is over.
    pub(super) fn next(&self, timeout: Duration) -> Result<Option<Told>, Error> {
        // SAFETY: a live channel.
        let fd = Fd(unsafe { (*self.raw).fd });
        match wait_readable(&fd, timeout) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(_) => return Err(failed("poll")),
        }
        let mut raw: *mut wire::CmEvent = ptr::null_mut();
        // SAFETY: a live channel with an event, and a live local.
        if unsafe { (self.of.ops.get_cm_event)(self.raw, &raw mut raw) } != 0 {
            return Err(failed("rdma_get_cm_event"));
        }
        // SAFETY: an event that is ours until it is acknowledged, below.
        let told = unsafe { &*raw };
        let (kind, status, id) = (told.event, told.status, told.id);
        let mut private = PrivateData::empty();
        if matches!(kind, event::CONNECT_REQUEST | event::ESTABLISHED | event::REJECTED) {
            // Of these events the parameters are those of a connection.
            let (data, len) = (told.param.private_data, usize::from(told.param.private_data_len));
            if !data.is_null() {
                // SAFETY: the event has as many bytes of private data as it says.
                let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len.min(PrivateData::BYTES_MAX)) };
                private = PrivateData::new(bytes).unwrap_or(private);
            }
        }
        // SAFETY: the event of above, once; nothing of it is kept.
        unsafe { (self.of.ops.ack_cm_event)(raw) };
        Ok(Some(Told { kind, status, private, id }))
    }
}

/// An identifier of the connection manager, with its QP once there is one. The fields go in this order behind its own drop.
pub(super) struct Id {
    pub(super) raw: *mut wire::CmId,
    pub(super) channel: Arc<Channel>,
}

// SAFETY: as for `Channel`.
unsafe impl Send for Id {}
// SAFETY: as for `Channel`.
unsafe impl Sync for Id {}

impl Id {
    fn new(channel: &Arc<Channel>) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        let ops = &channel.of.ops;
        // SAFETY: a live channel and a live local.
        match unsafe { (ops.create_id)(channel.raw, &raw mut raw, ptr::null_mut(), wire::PS_TCP) } {
            0 => Ok(Self { raw, channel: Arc::clone(channel) }),
            _ => Err(failed("rdma_create_id")),
        }
    }

    pub(super) fn qp(&self) -> *mut wire::Qp {
        // SAFETY: a live identifier.
        unsafe { (*self.raw).qp }
    }

    /// The name of its device.
    fn device_name(&self, at: &str) -> Result<String, Error> {
        // SAFETY: a live identifier.
        let context = unsafe { (*self.raw).verbs };
        if context.is_null() {
            let none = Error::new(ErrorKind::NoDevice, Verb::Open).at(at.to_owned());
            return Err(none.detail("the address belongs to no single device").remedy("name an address of one device"));
        }
        // SAFETY: a context of librdmacm's, whose first field is the device.
        let device = unsafe { (*context).device };
        // SAFETY: a device of the library's; its name is a text that stays.
        let text = unsafe { (self.channel.of.ops.get_device_name)(device) };
        // SAFETY: names are zero-terminated and there.
        Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// Ends the connection: the QP goes to error.
    pub(super) fn disconnect(&self) {
        let ops = &self.channel.of.ops;
        // SAFETY: a live identifier. One that is not connected any more says so.
        unsafe { (ops.disconnect)(self.raw) };
        if !self.qp().is_null() {
            let mut attr = wire::QpAttr { qp_state: wire::QPS_ERR, rest: [0; 63] };
            // SAFETY: a live QP, and a live structure of which the state alone is looked at.
            unsafe { (ops.modify_qp)(self.qp(), &raw mut attr, wire::QP_STATE) };
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        let ops = &self.channel.of.ops;
        if !self.qp().is_null() {
            // SAFETY: a live identifier with a QP of ours.
            unsafe { (ops.destroy_qp)(self.raw) };
        }
        // SAFETY: ours, once; its events were acknowledged.
        unsafe { (ops.destroy_id)(self.raw) };
    }
}

/// An address as the system has it.
struct Address(libc::sockaddr_storage);

impl Address {
    fn of(text: &str) -> Result<Self, Error> {
        let unknown =
            || Error::new(ErrorKind::NotFound, Verb::Open).at(text.to_owned()).detail("the name is not known");
        text.to_socket_addrs().ok().and_then(|mut all| all.next()).map(Self::from).ok_or_else(unknown)
    }

    fn raw(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

impl From<SocketAddr> for Address {
    fn from(at: SocketAddr) -> Self {
        // SAFETY: a structure of integers, of which all zeroes is a value.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        match at {
            SocketAddr::V4(at) => {
                let to: *mut libc::sockaddr_in = (&raw mut storage).cast();
                let addr = libc::in_addr { s_addr: u32::from_ne_bytes(at.ip().octets()) };
                let (sin_family, sin_port) = (2, at.port().to_be());
                // SAFETY: storage is made for each kind of address.
                unsafe { to.write(libc::sockaddr_in { sin_family, sin_port, sin_addr: addr, sin_zero: [0; 8] }) };
            }
            SocketAddr::V6(at) => {
                let to: *mut libc::sockaddr_in6 = (&raw mut storage).cast();
                let whole = libc::sockaddr_in6 {
                    sin6_family: 10,
                    sin6_port: at.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: at.ip().octets() },
                    sin6_scope_id: at.scope_id(),
                };
                // SAFETY: storage is made for each kind of address.
                unsafe { to.write(whole) };
            }
        }
        Self(storage)
    }
}

/// Waits for an identifier's next event, which must be `wanted` or `REJECTED`.
pub(super) fn expect(channel: &Channel, wanted: c_int, until: Instant, at: &str) -> Result<Told, Error> {
    let left = until.saturating_duration_since(now());
    let Some(told) = channel.next(left)? else {
        return Err(Error::new(ErrorKind::DeadlineExceeded, Verb::Open).at(at.to_owned()).detail("no answer in time"));
    };
    if told.kind == wanted || told.kind == event::REJECTED {
        return Ok(told);
    }
    let text = format!("the connection manager says no (event {}, status {})", told.kind, told.status);
    Err(Error::new(ErrorKind::NoDevice, Verb::Open).at(at.to_owned()).detail(text).with_code(told.status))
}

/// An identifier whose address and route are known, and with them its device; `from`: the address of this end, if not the route chooses it.
pub(super) fn resolved(of: &Arc<Library>, (from, to): (Option<IpAddr>, &str), until: Instant) -> Result<Id, Error> {
    let channel = Channel::new(of)?;
    let id = Id::new(&channel)?;
    let mut address = Address::of(to)?;
    let mut own = from.map(|ip| Address::from(SocketAddr::new(ip, 0)));
    let source = own.as_mut().map_or(ptr::null_mut(), Address::raw);
    // SAFETY: a live identifier and live addresses, which the call copies.
    if unsafe { (of.ops.resolve_addr)(id.raw, source, address.raw(), RESOLVE_MS) } != 0 {
        return Err(unreachable(failed("rdma_resolve_addr"), to));
    }
    expect(&channel, event::ADDR_RESOLVED, until, to)?;
    // SAFETY: a live identifier whose address is resolved.
    if unsafe { (of.ops.resolve_route)(id.raw, RESOLVE_MS) } != 0 {
        return Err(unreachable(failed("rdma_resolve_route"), to));
    }
    expect(&channel, event::ROUTE_RESOLVED, until, to)?;
    Ok(id)
}

/// No device has a way to an address, in the words of whoever wants to go there.
fn unreachable(error: Error, to: &str) -> Error {
    match error.code() {
        libc::ENODEV | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL => {
            let absent = Error::new(ErrorKind::NoDevice, Verb::Open).at(to.to_owned()).with_code(error.code());
            absent.detail("no RDMA device has a route there").remedy("see `straightway doctor`; or use nvme+tcp://")
        }
        _ => error.at(to.to_owned()),
    }
}

/// An identifier that is bound to an address of this machine, and with it to its device, unless that is every address.
fn bound(of: &Arc<Library>, at: &str) -> Result<Id, Error> {
    let channel = Channel::new(of)?;
    let id = Id::new(&channel)?;
    let mut address = Address::of(at)?;
    // SAFETY: a live identifier and a live address, which the call copies.
    if unsafe { (of.ops.bind_addr)(id.raw, address.raw()) } == 0 {
        return Ok(id);
    }
    let error = failed("rdma_bind_addr");
    Err(match error.code() {
        libc::EADDRINUSE => Error::new(ErrorKind::InUse, Verb::Setup).at(at.to_owned()),
        libc::EADDRNOTAVAIL | libc::ENODEV => Error::new(ErrorKind::NoDevice, Verb::Setup)
            .at(at.to_owned())
            .detail("it is the address of no RDMA device")
            .remedy("see `straightway doctor` for those that there are"),
        _ => error,
    })
}

/// The device that connections to `to` go by; *blocking*, some seconds at most.
pub(super) fn device_towards(of: &Arc<Library>, to: &str) -> Result<String, Error> {
    resolved(of, (None, to), now() + 2 * Duration::from_millis(RESOLVE_MS.unsigned_abs().into()))?.device_name(to)
}

/// The device whose address `at` is, `HOST:PORT`.
pub(super) fn device_at(of: &Arc<Library>, at: &str) -> Result<String, Error> {
    bound(of, at)?.device_name(at)
}

/// Hears that a device goes when no connection by it is there to hear that: the peer's end may be gone a moment before, and the connections with it. An
/// identifier that is bound to an address of the device, and asked for nothing.
pub(super) struct Sentinel(Mutex<Id>);

impl Sentinel {
    /// At an address of the device that has the context; `None` where it cannot be bound.
    pub(super) fn at(of: &Arc<Library>, ip: IpAddr, context: *mut wire::Context) -> Option<Self> {
        let id = bound(of, &SocketAddr::new(ip, 0).to_string()).ok()?;
        // SAFETY: a live identifier.
        let its = unsafe { (*id.raw).verbs };
        (its == context).then(|| Self(Mutex::new(id)))
    }

    /// Whether it was told that the device goes. Does not wait; of several threads one looks.
    pub(super) fn has_heard(&self) -> bool {
        let Ok(id) = self.0.try_lock() else { return false };
        let next = || id.channel.next(Duration::ZERO).ok().flatten();
        std::iter::from_fn(next).any(|told| told.kind == event::DEVICE_REMOVAL)
    }
}

struct LibraryListener {
    id: Id,
    at: SocketAddr,
}

/// Listens.
pub(super) fn listen(of: &Arc<Opened>, at: &str) -> Result<Box<dyn Listener>, Error> {
    let id = bound(&of.library, at)?;
    // SAFETY: a live identifier that is bound.
    if unsafe { (of.ops().listen)(id.raw, BACKLOG) } != 0 {
        return Err(failed("rdma_listen"));
    }
    // SAFETY: likewise.
    let port = u16::from_be(unsafe { (of.ops().get_src_port)(id.raw) });
    let known = at.to_socket_addrs().ok().and_then(|mut all| all.next());
    let mut known = known.ok_or_else(|| Error::new(ErrorKind::NotFound, Verb::Setup).at(at.to_owned()))?;
    known.set_port(port);
    Ok(Box::new(LibraryListener { id, at: known }))
}

impl Listener for LibraryListener {
    fn address(&self) -> String {
        self.at.to_string()
    }

    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Incoming>>, Error> {
        let until = now() + timeout;
        loop {
            let left = until.saturating_duration_since(now());
            match self.id.channel.next(left)? {
                None => return Ok(None),
                Some(told) if told.kind == event::CONNECT_REQUEST => {
                    let id = Id { raw: told.id, channel: Arc::clone(&self.id.channel) };
                    return Ok(Some(Box::new(Arrived { id: Some(id), private: told.private })));
                }
                // Of connections that went before they were taken.
                Some(_) => {}
            }
        }
    }
}

/// A connection that was asked for.
pub(super) struct Arrived {
    id: Option<Id>,
    private: PrivateData,
}

impl Arrived {
    /// Takes the identifier, with a channel of its own.
    pub(super) fn take(mut self) -> Result<Id, Error> {
        let gone = || Error::new(ErrorKind::Io, Verb::Open).at("cm").detail("the connection was taken before");
        let mut id = self.id.take().ok_or_else(gone)?;
        let channel = Channel::new(&id.channel.of)?;
        // SAFETY: a live identifier whose events were acknowledged, and a live channel.
        if unsafe { (channel.of.ops.migrate_id)(id.raw, channel.raw) } != 0 {
            return Err(failed("rdma_migrate_id"));
        }
        id.channel = channel;
        Ok(id)
    }
}

impl Incoming for Arrived {
    fn request(&mut self, _timeout: Duration) -> Result<PrivateData, Error> {
        Ok(self.private)
    }

    fn reject(self: Box<Self>, private: &PrivateData) {
        if let Some(id) = &self.id {
            let bytes = private.as_bytes();
            let len = u8::try_from(bytes.len()).unwrap_or(0);
            // SAFETY: a live identifier that waits for an answer, and live bytes, which the call copies.
            unsafe { (id.channel.of.ops.reject)(id.raw, bytes.as_ptr().cast(), len) };
        }
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
