//! One connection of TLS 1.3 over a socket, by OpenSSL: handshake with a pre-shared key, bytes in and out.
//!
//! ```text
//!   Context (suite, role) ─► Session ── handshake ─► receive: socket ─► the library's buffer ─► decrypted, copied to its place
//!                               │                    send:    its place ─► encrypted into the library's buffer ─► socket
//!                               └ State: the key, the socket's descriptor, what the callbacks found
//! ```
//!
//! **Who may sleep.** A record is decrypted as a whole, so that bytes may be inside the library while the socket has none: nobody may
//! wait for the socket then. [`Session::receive`] asks until all places are full, or the library says that it needs more from the socket. Only in
//! the second case, which [`Session::is_dry`] tells, does the socket's readiness mean anything. Whoever waits looks at it first.
//!
//! Invariants: the handshake is over only if the key was used (no certificate is ever accepted); keys are wiped when they are let go of, as
//! far as they are ours (the library wipes its own); what a peer says is bytes only.
//!
//! *Thread*: a session is used by one thread at a time.
// UNSAFETY: calls a C library, which calls back.
#![expect(unsafe_code, reason = "calls OpenSSL, and is called by it")]

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char, c_int, c_long, c_void},
    io,
    os::fd::RawFd,
    sync::Arc,
};

use sw_mem::ForkMark;
use sw_nvme::psk::{Answer, Suite, TlsPsk};
use zeroize::Zeroizing;

use super::{
    bio::{self, Line},
    table::{Handle, Table, table},
};
use crate::socket::Piece;

/// Bytes of one record at most (RFC 8446 §5.1 "Record Layer").
const RECORD_BYTES: usize = 1 << 14;
/// What is sent in pieces that are shorter becomes one record together; longer ones are encrypted from where they lie.
const GATHER_BYTES: usize = 2048;
/// The library reads so much from a socket at a time, once records are all that comes.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// `SSL_OP_ALLOW_NO_DHE_KEX`: keys without an exchange of their own, which NVMe/TCP has no place for.
const OP_ALLOW_NO_DHE_KEX: u64 = 1 << 10;
const CTRL_MODE: c_int = 33;
/// `SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER`.
const PARTIAL_WRITES: c_long = 1 | 2;
const CTRL_SESSION_CACHE: c_int = 44;
const CTRL_MIN_VERSION: c_int = 123;
const CTRL_MAX_VERSION: c_int = 124;
const TLS1_3: c_int = 0x0304;
/// `SSL_VERIFY_PEER`: with no certificate trusted, a handshake by certificate fails.
const VERIFY_PEER: c_int = 1;
/// The place for data of the application (`SSL_set_app_data`).
const APP_DATA: c_int = 0;
const ERROR_SSL: c_int = 1;
const ERROR_WANT_READ: c_int = 2;
const ERROR_WANT_WRITE: c_int = 3;
const ERROR_SYSCALL: c_int = 5;
const ERROR_ZERO_RETURN: c_int = 6;
/// Reasons of the library (`sslerr.h`): the end of the socket without `close_notify`; what came is no TLS.
const REASON_EOF: u32 = 294;
const REASONS_NO_TLS: [u32; 5] = [267, 155, 156, 198, 443];
/// What the peer shows is a certificate, and none is trusted (`SSL_R_CERTIFICATE_VERIFY_FAILED`).
const REASON_CERTIFICATE: u32 = 134;
/// Reasons from here on are alerts of the peer (`SSL_AD_REASON_OFFSET`).
const REASON_ALERTS: u32 = 1000;
/// `ERR_LIB_SSL`.
const LIB_SSL: u32 = 20;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The host, which names a key.
    Client,
    /// The target, which knows it.
    Server,
}

/// Why a handshake, or a connection behind it, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The peer's word for it (RFC 8446 §6 "Alert Protocol").
    Alert(u8),
    /// What came is no TLS.
    NoTls,
    /// The peer closed the connection without `close_notify`.
    Cut,
    /// The system's code.
    System(i32),
    /// The library's own reason, as a number of its `sslerr.h`; 0: none.
    Library(u32),
    /// The handshake was made without the key.
    WithoutKey,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alert(number) => write!(f, "the other end says {} (tls alert {number})", super::alert_name(*number)),
            Self::NoTls => f.write_str("what the other end sends is no tls"),
            Self::Cut => f.write_str("the connection was cut off: it ended without close_notify of tls"),
            Self::System(code) => io::Error::from_raw_os_error(*code).fmt(f),
            Self::Library(reason) => write!(f, "tls failed on this side (reason {reason} of openssl)"),
            Self::WithoutKey => f.write_str("the other end made a connection without the key"),
        }
    }
}

impl std::error::Error for Fault {}

/// Finds the key that a host names.
pub(crate) type Find = Arc<dyn Fn(&[u8]) -> Option<Answer> + Send + Sync>;

/// What sessions of one suite and role have in common.
pub(crate) struct Context {
    table: &'static Table,
    handle: Handle,
    suite: Suite,
    role: Role,
}

// SAFETY: a context is counted and locked by the library (SSL_CTX, "thread-safe once it is set up"); it is not changed after `new`.
unsafe impl Send for Context {}
// SAFETY: as above: sessions may be made of it by several threads.
unsafe impl Sync for Context {}

impl Context {
    /// The suite of its sessions.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// # Errors
    /// `Unsupported` without the library, or if it does not take the suite.
    pub(crate) fn new(suite: Suite, role: Role) -> Result<Self, sw_engine::Error> {
        let table = table().map_err(super::table::Missing::error)?;
        // SAFETY: a function without arguments; what it gives is the library's own and static.
        let method = unsafe { (table.TLS_method)() };
        // SAFETY: the method above.
        let handle = unsafe { (table.SSL_CTX_new)(method) };
        if handle.is_null() {
            return Err(super::table::Missing::Start.error());
        }
        let this = Self { table, handle, suite, role };
        if !this.set_up() {
            return Err(super::refuses(suite));
        }
        Ok(this)
    }

    fn set_up(&self) -> bool {
        let Self { table, handle, suite, role } = *self;
        let ctrl = |what: c_int, value: c_long| {
            // SAFETY: the live context; these take a number and no pointer.
            unsafe { (table.SSL_CTX_ctrl)(handle, what, value, std::ptr::null_mut()) }
        };
        ctrl(CTRL_MODE, PARTIAL_WRITES);
        // The system's configuration may have allowed it.
        // SAFETY: the live context; numbers.
        unsafe { (table.SSL_CTX_clear_options)(handle, OP_ALLOW_NO_DHE_KEX) };
        ctrl(CTRL_SESSION_CACHE, 0);
        let versions = [CTRL_MIN_VERSION, CTRL_MAX_VERSION].map(|what| ctrl(what, c_long::from(TLS1_3)));
        let name = match suite {
            Suite::Aes128GcmSha256 => c"TLS_AES_128_GCM_SHA256",
            Suite::Aes256GcmSha384 => c"TLS_AES_256_GCM_SHA384",
        };
        // SAFETY: the live context and a name that ends with a zero.
        let suites = unsafe { (table.SSL_CTX_set_ciphersuites)(handle, name.as_ptr()) };
        // SAFETY: the live context.
        unsafe { (table.SSL_CTX_set_default_read_buffer_len)(handle, READ_BUFFER_BYTES) };
        // Nobody resumes: each connection is made with the key. A server has no certificate either, so that it cannot do without.
        // SAFETY: the live context.
        let tickets = unsafe { (table.SSL_CTX_set_num_tickets)(handle, 0) };
        match role {
            Role::Client => {
                // SAFETY: the live context; no callback.
                unsafe { (table.SSL_CTX_set_verify)(handle, VERIFY_PEER, std::ptr::null()) };
                // SAFETY: the live context, and a function that lives as long as the program.
                unsafe { (table.SSL_CTX_set_psk_use_session_callback)(handle, use_session) };
            }
            // SAFETY: as above.
            Role::Server => unsafe { (table.SSL_CTX_set_psk_find_session_callback)(handle, find_session) },
        }
        // SAFETY: as above. It keeps nothing unless a session wants to hand its keys to the kernel.
        unsafe { (table.SSL_CTX_set_keylog_callback)(handle, keep_secret) };
        versions == [1, 1] && suites == 1 && tickets == 1
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours, and not used any more; sessions count it.
        unsafe { (self.table.SSL_CTX_free)(self.handle) };
    }
}

/// Who knows the key of a session.
pub(crate) enum Keys {
    /// The host: this one.
    Mine(TlsPsk),
    /// The target: that which the host names.
    Theirs(Find),
}

/// What is done with the secrets of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrets {
    /// The library alone has them.
    Hidden,
    /// They are kept for the kernel.
    Kept,
}

/// Secrets of traffic, of both directions (RFC 8446 §7.1).
#[derive(Default)]
pub(crate) struct Traffic {
    pub(crate) client: Option<Zeroizing<Vec<u8>>>,
    pub(crate) server: Option<Zeroizing<Vec<u8>>>,
}

/// What callbacks and BIO of a session know. Reached by a pointer that the library keeps; only inside calls of the session's thread.
struct State {
    line: Line,
    keys: Keys,
    secrets: Secrets,
    traffic: RefCell<Traffic>,
    found: RefCell<Option<Answer>>,
}

/// How far a step of a handshake came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is over.
    Done,
    /// It goes on when the socket has bytes.
    WantsToRead,
    /// It goes on when the socket has room.
    WantsToWrite,
}

/// See the module documentation.
pub(crate) struct Session {
    table: &'static Table,
    ssl: Handle,
    state: *mut State,
    suite: Suite,
    /// Records that are on their way: the bytes of short pieces that were gathered into one.
    gathered: RefCell<Zeroizing<Vec<u8>>>,
    /// Bytes of a long piece of which the library has made a record that the socket had no room for.
    pending: Cell<usize>,
    is_dry: Cell<bool>,
    /// Nothing may be asked of the library any more, not even to close.
    fault: Cell<Option<Fault>>,
    /// The peer sent `close_notify`.
    is_ended: Cell<bool>,
    /// This side did.
    is_closed: Cell<bool>,
    /// A child that was forked has the descriptor and the keys too: what it would send is the parent's to send.
    fork: ForkMark,
}

// SAFETY: a session is one thread's at a time (it is not Sync, as the pointers in it are not); the library keeps nothing by thread but its
// queue of errors, which is emptied before each call.
unsafe impl Send for Session {}

impl Session {
    /// A session over the socket `fd`, which lives longer.
    ///
    /// # Errors
    /// The library has no memory.
    pub(crate) fn new(context: &Context, fd: RawFd, keys: Keys, secrets: Secrets) -> io::Result<Self> {
        let Context { table, handle, suite, role } = *context;
        let no_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        // SAFETY: the live context.
        let ssl = unsafe { (table.SSL_new)(handle) };
        if ssl.is_null() {
            return Err(no_memory());
        }
        let state = Box::into_raw(Box::new(State {
            line: Line::new(fd),
            keys,
            secrets,
            traffic: RefCell::default(),
            found: RefCell::default(),
        }));
        // From here on dropping it frees both.
        let this = Self {
            table,
            ssl,
            state,
            suite,
            gathered: RefCell::new(Zeroizing::new(Vec::with_capacity(RECORD_BYTES))),
            pending: Cell::new(0),
            is_dry: Cell::new(false),
            fault: Cell::new(None),
            is_ended: Cell::new(false),
            is_closed: Cell::new(false),
            fork: ForkMark::new(),
        };
        // SAFETY: the live state.
        let line = unsafe { &raw const (*state).line };
        // SAFETY: the state lives longer, as the session frees it last.
        let bio = unsafe { bio::make(table, line) }.ok_or_else(no_memory)?;
        // SAFETY: the live session takes the one count of the BIO, for both ways.
        unsafe { (table.SSL_set_bio)(ssl, bio, bio) };
        // SAFETY: the live session; the state as above.
        let kept = unsafe { (table.SSL_set_ex_data)(ssl, APP_DATA, state.cast()) };
        match role {
            // SAFETY: the live session.
            Role::Client => unsafe { (table.SSL_set_connect_state)(ssl) },
            // SAFETY: the live session.
            Role::Server => unsafe { (table.SSL_set_accept_state)(ssl) },
        }
        if kept == 1 { Ok(this) } else { Err(no_memory()) }
    }

    fn state(&self) -> &State {
        // SAFETY: made by `new`, freed by `drop` alone; everybody else has shared references, too.
        unsafe { &*self.state }
    }

    /// Readies the library for the next call, unless a call failed for good.
    fn check(&self) -> io::Result<()> {
        self.clear();
        self.fault.get().map_or(Ok(()), |fault| Err(of_fault(fault)))
    }

    fn clear(&self) {
        // SAFETY: a function without arguments.
        unsafe { (self.table.ERR_clear_error)() };
    }

    /// What stands behind a call that gave `result`.
    fn why(&self, result: c_int) -> Result<Step, Fault> {
        // SAFETY: the live session, behind a call of this thread.
        let error = unsafe { (self.table.SSL_get_error)(self.ssl, result) };
        match error {
            ERROR_WANT_READ => return Ok(Step::WantsToRead),
            ERROR_WANT_WRITE => return Ok(Step::WantsToWrite),
            // `close_notify`: what is still sent is heard.
            ERROR_ZERO_RETURN => {
                self.is_ended.set(true);
                return Ok(Step::Done);
            }
            _ => {}
        }
        // SAFETY: a function without arguments.
        let packed = unsafe { (self.table.ERR_get_error)() };
        // ERR_GET_LIB and ERR_GET_REASON of 3.0: 31 bits, the reason in the low 23.
        let packed = u32::try_from(packed & 0x7FFF_FFFF).unwrap_or(0);
        let (library, reason) = (packed >> 23 & 0xFF, packed & 0x7F_FFFF);
        let code = self.state().line.code();
        let fault = match (error, library, reason) {
            (ERROR_SSL, LIB_SSL, REASON_EOF) => Fault::Cut,
            (ERROR_SSL, LIB_SSL, reason) if REASONS_NO_TLS.contains(&reason) => Fault::NoTls,
            (ERROR_SSL, LIB_SSL, REASON_CERTIFICATE) => Fault::WithoutKey,
            (ERROR_SSL, LIB_SSL, REASON_ALERTS..1256) => {
                Fault::Alert(u8::try_from(reason - REASON_ALERTS).unwrap_or(u8::MAX))
            }
            (ERROR_SYSCALL, ..) if code != 0 => Fault::System(code),
            (ERROR_SYSCALL, ..) => Fault::Cut,
            _ => Fault::Library(reason),
        };
        self.fault.set(Some(fault));
        Err(fault)
    }

    /// Goes on with the handshake.
    ///
    /// # Errors
    /// [`Fault`]; the session is of no use any more.
    pub(crate) fn handshake(&self) -> Result<Step, Fault> {
        self.clear();
        // SAFETY: the live session.
        let result = unsafe { (self.table.SSL_do_handshake)(self.ssl) };
        if result != 1 {
            return match self.why(result)? {
                Step::Done => Err(Fault::Cut),
                step => Ok(step),
            };
        }
        // SAFETY: the live session.
        let by_key = unsafe { (self.table.SSL_session_reused)(self.ssl) } == 1;
        // SAFETY: the live session, whose handshake is over: it has a cipher.
        let cipher = unsafe { (self.table.SSL_get_current_cipher)(self.ssl) };
        // SAFETY: a cipher of the library's own table, or nothing, for which it gives 0.
        let id = if cipher.is_null() { 0 } else { unsafe { (self.table.SSL_CIPHER_get_id)(cipher) } };
        if by_key && id & 0xFFFF == u32::from(self.suite.id()) { Ok(Step::Done) } else { Err(Fault::WithoutKey) }
    }

    /// The library reads more than one record at a time from here on.
    pub(crate) fn read_ahead(&self) {
        // SAFETY: the live session.
        unsafe { (self.table.SSL_set_read_ahead)(self.ssl, 1) };
    }

    /// Whether bytes of the peer are inside the library.
    pub(crate) fn has_pending(&self) -> bool {
        // SAFETY: the live session.
        unsafe { (self.table.SSL_has_pending)(self.ssl) != 0 }
    }

    /// Whether a wait for the socket is a wait for bytes: see the module documentation.
    pub(crate) fn is_dry(&self) -> bool {
        // What ended inside the library is told by it alone, too.
        let is_told = self.fault.get().is_some() || self.is_ended.get();
        !is_told && (self.is_dry.get() || !self.has_pending())
    }

    /// The secrets of the traffic, of which nothing is left here.
    pub(crate) fn take_traffic(&self) -> Traffic {
        self.state().traffic.take()
    }

    /// What the host named, once.
    pub(crate) fn take_answer(&self) -> Option<Answer> {
        self.state().found.take()
    }

    /// Receives into `pieces`, in order; 0 is the end. `WouldBlock`: there is nothing.
    pub(crate) fn receive(&self, pieces: &[Piece]) -> io::Result<usize> {
        let mut got = 0;
        self.is_dry.set(false);
        for piece in pieces {
            let mut have = 0;
            while have < piece.len {
                match self.read(piece.base.wrapping_add(have), piece.len - have) {
                    Ok(0) => return Ok(got),
                    Ok(bytes) => (have, got) = (have + bytes, got + bytes),
                    // What came before counts; the next call says it again.
                    Err(_) if got > 0 => return Ok(got),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(got)
    }

    /// Receives into `piece` what one record has, at most: on a socket that blocks, the next one may be long in coming.
    pub(crate) fn receive_record(&self, piece: Piece) -> io::Result<usize> {
        self.read(piece.base, piece.len)
    }

    /// Reads into `len` bytes of memory that the caller keeps, and that nobody has a reference to.
    fn read(&self, base: *mut u8, len: usize) -> io::Result<usize> {
        self.check()?;
        let mut bytes = 0;
        // SAFETY: the live session; the memory is the caller's, who keeps it until this returns. The library writes at most `len` bytes.
        let result = unsafe { (self.table.SSL_read_ex)(self.ssl, base.cast(), len, &raw mut bytes) };
        if result == 1 {
            return Ok(bytes);
        }
        match self.why(result) {
            Ok(Step::Done) => Ok(0),
            Ok(Step::WantsToRead | Step::WantsToWrite) => {
                self.is_dry.set(true);
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(fault) => Err(of_fault(fault)),
        }
    }

    /// Sends `pieces`, in order, as far as there is room. `WouldBlock`: there is none; the next call has the same bytes first.
    pub(crate) fn send(&self, pieces: &[Piece]) -> io::Result<usize> {
        let mut sent = 0;
        loop {
            let step = self.send_record(pieces, sent);
            match step {
                Ok(0) => return Ok(sent),
                Ok(bytes) => sent += bytes,
                // What went before counts, whatever is wrong now: the peer may have it all. The next call says it again.
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a record is made and not sent: whatever is asked of the library next sends it, though its bytes are told as unsent.
    pub(crate) fn owes(&self) -> bool {
        self.pending.get() > 0 || !self.gathered.borrow().is_empty()
    }

    #[cfg(test)]
    pub(crate) fn cut_after(&self, writes: u32) {
        self.state().line.writes_left.set(Some(writes));
    }

    /// Sends one record of what is behind the first `skip` bytes of `pieces`.
    fn send_record(&self, pieces: &[Piece], skip: usize) -> io::Result<usize> {
        let mut gathered = self.gathered.borrow_mut();
        if gathered.is_empty() {
            let Some(first) = rest(pieces, skip).next() else { return Ok(0) };
            if first.len >= GATHER_BYTES || self.pending.get() > 0 {
                return self.send_piece(first);
            }
            gather(rest(pieces, skip), &mut gathered);
        }
        let (base, len) = (gathered.as_ptr(), gathered.len());
        // One record or nothing: the library takes all of it, or keeps it for the next call.
        let bytes = self.write(base, len)?;
        gathered.clear();
        Ok(bytes)
    }

    /// Sends of a long piece what one record has.
    fn send_piece(&self, piece: Piece) -> io::Result<usize> {
        let len = match self.pending.get() {
            0 => piece.len.min(RECORD_BYTES),
            // The record is made, of these bytes.
            pending if pending <= piece.len => pending,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let written = self.write(piece.base, len);
        self.pending.set(if matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            len
        } else {
            0
        });
        written
    }

    fn write(&self, base: *const u8, len: usize) -> io::Result<usize> {
        self.check()?;
        let mut bytes = 0;
        // SAFETY: the live session; the memory is the caller's, who keeps it until this returns. The library reads at most `len` bytes;
        // others may write it meanwhile, which gives other bytes and no other length.
        let result = unsafe { (self.table.SSL_write_ex)(self.ssl, base.cast(), len, &raw mut bytes) };
        if result == 1 {
            return Ok(bytes);
        }
        match self.why(result) {
            Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fault) => Err(of_fault(fault)),
        }
    }

    /// Tells the peer that no more bytes come, if the socket takes that. A record that is owed does not go with it: the library refuses.
    pub(crate) fn close(&self) {
        if self.fault.get().is_none() && !self.fork.is_child() && !self.is_closed.replace(true) {
            self.clear();
            // SAFETY: the live session, of which no call failed. Its answer is not waited for.
            let _ = unsafe { (self.table.SSL_shutdown)(self.ssl) };
        }
    }

    /// The kernel has the connection: the library sends nothing more.
    pub(crate) fn forget(self) {
        self.is_closed.set(true);
    }

    /// Asks for other keys of traffic with the next record, and for those of the peer (RFC 8446 §4.6.3 "Key and Initialization Vector Update").
    #[cfg(test)]
    pub(crate) fn change_keys(&self) -> bool {
        // SAFETY: the live session.
        unsafe { (self.table.SSL_key_update)(self.ssl, 1) == 1 }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
        // SAFETY: ours, and not used any more; it frees its BIO.
        unsafe { (self.table.SSL_free)(self.ssl) };
        // SAFETY: made by `Box::into_raw`; the library has no pointer to it any more.
        drop(unsafe { Box::from_raw(self.state) });
    }
}

fn of_fault(fault: Fault) -> io::Error {
    match fault {
        Fault::System(code) => io::Error::from_raw_os_error(code),
        Fault::Cut => io::Error::new(io::ErrorKind::UnexpectedEof, Fault::Cut),
        fault => io::Error::other(fault),
    }
}

/// The pieces behind the first `skip` bytes, without empty ones.
fn rest(pieces: &[Piece], skip: usize) -> impl Iterator<Item = Piece> {
    let mut skip = skip;
    pieces.iter().filter_map(move |piece| {
        let gone = piece.len.min(skip);
        skip -= gone;
        (gone < piece.len).then(|| Piece { base: piece.base.wrapping_add(gone), len: piece.len - gone })
    })
}

/// Copies short pieces one behind the other, as many as one record has.
fn gather(pieces: impl Iterator<Item = Piece>, into: &mut Vec<u8>) {
    for piece in pieces {
        let have = into.len();
        if piece.len >= GATHER_BYTES || have + piece.len > RECORD_BYTES {
            break;
        }
        into.resize(have + piece.len, 0);
        let to = into.as_mut_ptr().wrapping_add(have);
        // SAFETY: the piece is memory that the caller keeps, copied without a reference to it; the list was made long enough.
        unsafe { std::ptr::copy_nonoverlapping(piece.base, to, piece.len) };
    }
}

/// The state of a session, of a pointer that the library gives back.
///
/// # Safety
/// `pointer` is null, or what [`Session::new`] gave to the library; the session lives as long as the result is used.
unsafe fn state_of<'a>(pointer: *mut c_void) -> Option<&'a State> {
    // SAFETY: by the contract of this function.
    unsafe { pointer.cast::<State>().as_ref() }
}

/// A session of the library's that stands for a key.
fn session_of(table: &Table, ssl: Handle, psk: &TlsPsk) -> Option<Handle> {
    let number = psk.suite().id().to_be_bytes();
    // SAFETY: the live session and two bytes.
    let cipher = unsafe { (table.SSL_CIPHER_find)(ssl, number.as_ptr()) };
    // SAFETY: a function without arguments.
    let session = unsafe { (table.SSL_SESSION_new)() };
    if session.is_null() || cipher.is_null() {
        // SAFETY: ours, or null, which is nothing to free.
        unsafe { (table.SSL_SESSION_free)(session) };
        return None;
    }
    // SAFETY: the live session of ours and as many bytes as are named, which it copies.
    let mut set = unsafe { (table.SSL_SESSION_set1_master_key)(session, psk.key().as_ptr(), psk.key().len()) };
    // SAFETY: the live session of ours and a cipher of the library's own table.
    set &= unsafe { (table.SSL_SESSION_set_cipher)(session, cipher) };
    // SAFETY: the live session of ours.
    set &= unsafe { (table.SSL_SESSION_set_protocol_version)(session, TLS1_3) };
    if set != 1 {
        // SAFETY: ours.
        unsafe { (table.SSL_SESSION_free)(session) };
        return None;
    }
    Some(session)
}

/// `SSL_psk_use_session_cb_func`: the key of the host. There is one suite, so that the hash of a second round (HelloRetryRequest) is that of
/// the first.
unsafe extern "C" fn use_session(
    ssl: Handle,
    _hash: *const c_void,
    identity: *mut *const u8,
    len: *mut usize,
    session: *mut Handle,
) -> c_int {
    let Ok(table) = table() else { return 0 };
    // SAFETY: the library calls with a live session.
    let data = unsafe { (table.SSL_get_ex_data)(ssl, APP_DATA) };
    // SAFETY: set by `Session::new`; the library calls inside a call of the session.
    let Some(State { keys: Keys::Mine(psk), .. }) = (unsafe { state_of(data) }) else { return 0 };
    let Some(made) = session_of(table, ssl, psk) else { return 0 };
    // SAFETY: the library names places for the results. The identity lives as long as the session; the library copies it.
    unsafe { identity.write(psk.identity().as_ptr()) };
    // SAFETY: as above.
    unsafe { len.write(psk.identity().len()) };
    // SAFETY: as above; it takes our count of the session.
    unsafe { session.write(made) };
    1
}

/// `SSL_psk_find_session_cb_func`: the key that a host names. Without one the handshake goes on, and fails for want of a certificate.
unsafe extern "C" fn find_session(ssl: Handle, identity: *const u8, len: usize, session: *mut Handle) -> c_int {
    // SAFETY: the library names a place for the result.
    unsafe { session.write(std::ptr::null_mut()) };
    let Ok(table) = table() else { return 0 };
    // SAFETY: the library calls with a live session.
    let data = unsafe { (table.SSL_get_ex_data)(ssl, APP_DATA) };
    // SAFETY: set by `Session::new`; the library calls inside a call of the session.
    let Some(State { keys: Keys::Theirs(find), found, .. }) = (unsafe { state_of(data) }) else { return 0 };
    if identity.is_null() {
        return 1;
    }
    // SAFETY: the library names `len` bytes of its own, which nobody writes meanwhile.
    let identity = unsafe { std::slice::from_raw_parts(identity, len) };
    let Some(answer) = find(identity) else { return 1 };
    let Some(made) = session_of(table, ssl, &answer.psk) else { return 0 };
    found.replace(Some(answer));
    // SAFETY: as above; it takes our count of the session.
    unsafe { session.write(made) };
    1
}

/// `SSL_CTX_keylog_cb_func`: keeps secrets of traffic for the kernel, where they are wanted. The library wipes its own copy of the line.
unsafe extern "C" fn keep_secret(ssl: Handle, line: *const c_char) {
    let Ok(table) = table() else { return };
    // SAFETY: the library calls with a live session.
    let data = unsafe { (table.SSL_get_ex_data)(ssl, APP_DATA) };
    // SAFETY: set by `Session::new`; the library calls inside a call of the session.
    let Some(State { secrets: Secrets::Kept, traffic, .. }) = (unsafe { state_of(data) }) else { return };
    if line.is_null() {
        return;
    }
    // SAFETY: the library gives text that ends with a zero, for the time of this call.
    let line = unsafe { CStr::from_ptr(line) };
    let mut words = line.to_bytes().split(|byte| *byte == b' ');
    let (name, secret) = (words.next(), words.nth(1).and_then(hex));
    match name {
        Some(b"CLIENT_TRAFFIC_SECRET_0") => traffic.borrow_mut().client = secret,
        Some(b"SERVER_TRAFFIC_SECRET_0") => traffic.borrow_mut().server = secret,
        _ => {}
    }
}

fn hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.chunks(2) {
        let [high, low] = pair else { return None };
        bytes.push(digit(*high)? << 4 | digit(*low)?);
    }
    Some(bytes)
}

#[cfg(test)]
#[path = "openssl_tests.rs"]
mod tests;
