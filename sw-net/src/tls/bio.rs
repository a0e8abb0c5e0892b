//! What OpenSSL reads and writes with: the socket, by `recv` and `send` (`MSG_NOSIGNAL`). Its own would raise SIGPIPE in programs that do not
//! ignore it.
// UNSAFETY: is called by a C library with pointers of its own.
#![expect(unsafe_code, reason = "is called by OpenSSL")]

use std::{
    cell::Cell,
    ffi::{c_char, c_int, c_long, c_void},
    io,
    os::fd::RawFd,
    sync::OnceLock,
};

use super::table::{Handle, Table, table};

/// `BIO_TYPE_SOURCE_SINK`.
const BIO_SOURCE_SINK: c_int = 0x0400;
/// `BIO_FLAGS_READ`, `BIO_FLAGS_WRITE`, both and the special one, `BIO_FLAGS_SHOULD_RETRY`.
const BIO_READ: c_int = 1;
const BIO_WRITE: c_int = 2;
const BIO_FLAGS: c_int = 7 | BIO_RETRY;
const BIO_RETRY: c_int = 8;
const BIO_CTRL_EOF: c_int = 2;
const BIO_CTRL_FLUSH: c_int = 11;

/// The socket of one session, which uses it by one thread at a time.
pub(super) struct Line {
    fd: RawFd,
    /// It is at its end.
    is_over: Cell<bool>,
    /// The last code of the system.
    code: Cell<i32>,
    /// Writes until the peer is gone.
    #[cfg(test)]
    pub(super) writes_left: Cell<Option<u32>>,
}

impl Line {
    pub(super) fn new(fd: RawFd) -> Self {
        Self {
            fd,
            is_over: Cell::new(false),
            code: Cell::new(0),
            #[cfg(test)]
            writes_left: Cell::new(None),
        }
    }

    /// Whether a test has the peer gone by now.
    fn is_cut(&self) -> bool {
        #[cfg(test)]
        if let Some(left) = self.writes_left.get() {
            self.writes_left.set(Some(left.saturating_sub(1)));
            return left == 0;
        }
        false
    }

    /// The last code of the system; 0: none.
    pub(super) fn code(&self) -> i32 {
        self.code.get()
    }
}

/// A BIO over the socket; `None`: no memory.
///
/// # Safety
/// `line` lives as long as the BIO.
pub(super) unsafe fn make(table: &'static Table, line: *const Line) -> Option<Handle> {
    let method = method(table)?;
    // SAFETY: the table of functions, which lives as long as the program.
    let bio = unsafe { (table.BIO_new)(method) };
    if bio.is_null() {
        return None;
    }
    // SAFETY: the live BIO. What is behind the pointer is not written through it but by its cells.
    unsafe { (table.BIO_set_data)(bio, line.cast::<c_void>().cast_mut()) };
    // SAFETY: the live BIO.
    unsafe { (table.BIO_set_init)(bio, 1) };
    Some(bio)
}

/// The BIO over a socket; made once.
fn method(table: &'static Table) -> Option<Handle> {
    struct Method(Handle);
    // SAFETY: a table of functions that is not changed once it is made.
    unsafe impl Send for Method {}
    // SAFETY: as above.
    unsafe impl Sync for Method {}
    static MADE: OnceLock<Option<Method>> = OnceLock::new();
    let make = || {
        // SAFETY: a function without arguments.
        let index = unsafe { (table.BIO_get_new_index)() };
        // SAFETY: a number of our own and a name that lives as long as the program.
        let made = unsafe { (table.BIO_meth_new)(index | BIO_SOURCE_SINK, c"straightway".as_ptr()) };
        if made.is_null() {
            return None;
        }
        // SAFETY: the live table of functions, and a function of that type.
        let mut set = unsafe { (table.BIO_meth_set_write)(made, bio_write) };
        // SAFETY: as above.
        set &= unsafe { (table.BIO_meth_set_read)(made, bio_read) };
        // SAFETY: as above.
        set &= unsafe { (table.BIO_meth_set_ctrl)(made, bio_ctrl) };
        (set == 1).then_some(Method(made))
    };
    MADE.get_or_init(make).as_ref().map(|method| method.0)
}

unsafe extern "C" fn bio_write(bio: Handle, from: *const c_char, len: c_int) -> c_int {
    transfer(bio, BIO_WRITE, |fd| {
        // SAFETY: the library names `len` bytes of its own. A peer that is gone gives an error, not a signal.
        unsafe { libc::send(fd, from.cast(), usize::try_from(len).unwrap_or(0), libc::MSG_NOSIGNAL) }
    })
}

unsafe extern "C" fn bio_read(bio: Handle, to: *mut c_char, len: c_int) -> c_int {
    transfer(bio, BIO_READ, |fd| {
        // SAFETY: the library names room for `len` bytes of its own.
        unsafe { libc::recv(fd, to.cast(), usize::try_from(len).unwrap_or(0), 0) }
    })
}

/// Moves bytes of the library's over the socket of `bio`.
fn transfer(bio: Handle, way: c_int, call: impl Fn(RawFd) -> isize) -> c_int {
    let Ok(table) = table() else { return -1 };
    // SAFETY: the library calls with a live BIO of ours.
    let data = unsafe { (table.BIO_get_data)(bio) };
    // SAFETY: set by `make`, whose caller keeps it.
    let Some(line) = (unsafe { data.cast::<Line>().as_ref() }) else { return -1 };
    // SAFETY: the live BIO.
    unsafe { (table.BIO_clear_flags)(bio, BIO_FLAGS) };
    if way == BIO_WRITE && line.is_cut() {
        line.code.set(libc::EPIPE);
        return -1;
    }
    let moved = loop {
        let moved = call(line.fd);
        if moved >= 0 {
            break moved;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => {
                // SAFETY: the live BIO.
                unsafe { (table.BIO_set_flags)(bio, way | BIO_RETRY) };
                break -1;
            }
            _ => {
                line.code.set(error.raw_os_error().unwrap_or(0));
                break -1;
            }
        }
    };
    if moved == 0 && way == BIO_READ {
        line.is_over.set(true);
    }
    // Not more than was asked for, which is an int.
    c_int::try_from(moved).unwrap_or(-1)
}

unsafe extern "C" fn bio_ctrl(bio: Handle, what: c_int, _: c_long, _: *mut c_void) -> c_long {
    let Ok(table) = table() else { return 0 };
    match what {
        BIO_CTRL_FLUSH => 1,
        BIO_CTRL_EOF => {
            // SAFETY: the library calls with a live BIO of ours.
            let data = unsafe { (table.BIO_get_data)(bio) };
            // SAFETY: as in `transfer`.
            let is_over = unsafe { data.cast::<Line>().as_ref() }.is_some_and(|line| line.is_over.get());
            c_long::from(is_over)
        }
        _ => 0,
    }
}
