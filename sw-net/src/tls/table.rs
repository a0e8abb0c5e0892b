//! The functions of OpenSSL 3 that are used, found in the library when the program runs.
//!
//! The types are those of `openssl/ssl.h`, `bio.h` and `err.h` of 3.0, whose functions keep them for all of 3.x (the library's `SONAME`
//! says so). Handles are pointers without a type here; [`super::openssl`] alone makes and frees them.
// UNSAFETY: loads a library and gives its functions their types.
#![expect(unsafe_code, reason = "loads a library and names its functions")]

use std::{
    ffi::{c_char, c_int, c_long, c_ulong, c_void},
    sync::OnceLock,
};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sw_engine::{Error, ErrorKind, Verb};

/// The library, whose dependency `libcrypto.so.3` is searched with it.
const NAME: &str = "libssl.so.3";
/// `OPENSSL_INIT_NO_ATEXIT`: threads may still be inside when the program ends.
const INIT_NO_ATEXIT: u64 = 0x0008_0000;
/// `OPENSSL_VERSION_NUMBER` of 3.0.0.
const OLDEST: c_ulong = 0x3000_0000;

/// A handle of the library.
pub(super) type Handle = *mut c_void;
/// `SSL_psk_use_session_cb_func`.
pub(super) type UseSession =
    unsafe extern "C" fn(Handle, *const c_void, *mut *const u8, *mut usize, *mut Handle) -> c_int;
/// `SSL_psk_find_session_cb_func`.
pub(super) type FindSession = unsafe extern "C" fn(Handle, *const u8, usize, *mut Handle) -> c_int;
/// `SSL_CTX_keylog_cb_func`.
pub(super) type KeyLog = unsafe extern "C" fn(Handle, *const c_char);
/// What a BIO writes with.
pub(super) type BioWrite = unsafe extern "C" fn(Handle, *const c_char, c_int) -> c_int;
/// What a BIO reads with.
pub(super) type BioRead = unsafe extern "C" fn(Handle, *mut c_char, c_int) -> c_int;
/// What else a BIO is asked.
pub(super) type BioCtrl = unsafe extern "C" fn(Handle, c_int, c_long, *mut c_void) -> c_long;

/// Why the library cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is not there, or does not load.
    Library(String),
    /// It lacks a function.
    Function(&'static str),
    /// It is older than 3.0.
    Version(c_ulong),
    /// It does not start.
    Start,
}

impl Missing {
    pub(super) fn error(&self) -> Error {
        let made = |text: String| Error::new(ErrorKind::Unsupported, Verb::Setup).at(NAME).detail(text);
        match self {
            Self::Library(why) => made(format!("tls needs openssl 3, which does not load: {why}"))
                .remedy("install it (libssl3), and run a program that is not linked statically"),
            Self::Function(name) => made(format!("the library has no function {name}"))
                .remedy("install openssl 3.0 or later of your system"),
            Self::Version(number) => made(format!("the library says that it is of version {number:#x}"))
                .remedy("install openssl 3.0 or later of your system"),
            Self::Start => made("the library does not start".into()).remedy("look at its configuration, openssl.cnf"),
        }
    }
}

macro_rules! table {
    ($($(#[$attribute:meta])* $name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, by their own names.
        #[expect(non_snake_case, reason = "the library's own names")]
        pub(super) struct Table {
            $($(#[$attribute])* pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Table {
            fn find(library: &Library) -> Result<Self, Missing> {
                Ok(Self {
                    $($(#[$attribute])* $name: {
                        let address = symbol(library, stringify!($name))?;
                        // SAFETY: the address of the function of this name, whose type for all of 3.x the table has from the
                        // library's headers.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address) }
                    },)*
                })
            }
        }
    };
}

table! {
    OPENSSL_init_ssl: fn(u64, *const c_void) -> c_int;
    OpenSSL_version_num: fn() -> c_ulong;
    TLS_method: fn() -> Handle;
    SSL_CTX_new: fn(Handle) -> Handle;
    SSL_CTX_free: fn(Handle);
    SSL_CTX_ctrl: fn(Handle, c_int, c_long, *mut c_void) -> c_long;
    SSL_CTX_clear_options: fn(Handle, u64) -> u64;
    SSL_CTX_set_ciphersuites: fn(Handle, *const c_char) -> c_int;
    SSL_CTX_set_num_tickets: fn(Handle, usize) -> c_int;
    SSL_CTX_set_verify: fn(Handle, c_int, *const c_void);
    SSL_CTX_set_default_read_buffer_len: fn(Handle, usize);
    SSL_CTX_set_psk_use_session_callback: fn(Handle, UseSession);
    SSL_CTX_set_psk_find_session_callback: fn(Handle, FindSession);
    SSL_CTX_set_keylog_callback: fn(Handle, KeyLog);
    SSL_new: fn(Handle) -> Handle;
    SSL_free: fn(Handle);
    SSL_set_bio: fn(Handle, Handle, Handle);
    SSL_set_connect_state: fn(Handle);
    SSL_set_accept_state: fn(Handle);
    SSL_set_ex_data: fn(Handle, c_int, *mut c_void) -> c_int;
    SSL_get_ex_data: fn(Handle, c_int) -> *mut c_void;
    SSL_set_read_ahead: fn(Handle, c_int);
    SSL_do_handshake: fn(Handle) -> c_int;
    SSL_read_ex: fn(Handle, *mut c_void, usize, *mut usize) -> c_int;
    SSL_write_ex: fn(Handle, *const c_void, usize, *mut usize) -> c_int;
    SSL_get_error: fn(Handle, c_int) -> c_int;
    SSL_shutdown: fn(Handle) -> c_int;
    SSL_has_pending: fn(Handle) -> c_int;
    #[cfg(test)]
    SSL_key_update: fn(Handle, c_int) -> c_int;
    SSL_session_reused: fn(Handle) -> c_int;
    SSL_get_current_cipher: fn(Handle) -> Handle;
    SSL_CIPHER_get_id: fn(Handle) -> u32;
    SSL_CIPHER_find: fn(Handle, *const u8) -> Handle;
    SSL_SESSION_new: fn() -> Handle;
    SSL_SESSION_free: fn(Handle);
    SSL_SESSION_set1_master_key: fn(Handle, *const u8, usize) -> c_int;
    SSL_SESSION_set_cipher: fn(Handle, Handle) -> c_int;
    SSL_SESSION_set_protocol_version: fn(Handle, c_int) -> c_int;
    BIO_get_new_index: fn() -> c_int;
    BIO_meth_new: fn(c_int, *const c_char) -> Handle;
    BIO_meth_set_write: fn(Handle, BioWrite) -> c_int;
    BIO_meth_set_read: fn(Handle, BioRead) -> c_int;
    BIO_meth_set_ctrl: fn(Handle, BioCtrl) -> c_int;
    BIO_new: fn(Handle) -> Handle;
    BIO_set_data: fn(Handle, *mut c_void);
    BIO_get_data: fn(Handle) -> *mut c_void;
    BIO_set_init: fn(Handle, c_int);
    BIO_set_flags: fn(Handle, c_int);
    BIO_clear_flags: fn(Handle, c_int);
    ERR_get_error: fn() -> c_ulong;
    ERR_clear_error: fn();
}

/// The table, for the rest of the process: what a library started stays, as its own threads and exit handlers count on it.
pub(super) fn table() -> Result<&'static Table, &'static Missing> {
    static LOADED: OnceLock<Result<Table, Missing>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref()
}

fn load() -> Result<Table, Missing> {
    let library = open(NAME)?;
    let table = Table::find(&library)?;
    // SAFETY: a function without arguments.
    let version = unsafe { (table.OpenSSL_version_num)() };
    if version < OLDEST {
        return Err(Missing::Version(version));
    }
    // SAFETY: no settings; the library may have been started by others before, which is as good.
    if unsafe { (table.OPENSSL_init_ssl)(INIT_NO_ATEXIT, std::ptr::null()) } != 1 {
        return Err(Missing::Start);
    }
    // The handle is not closed: the functions are used as long as the process lives.
    let _ = library.into_raw();
    Ok(table)
}

fn open(name: &str) -> Result<Library, Missing> {
    // SAFETY: runs the initialisers of the system's own OpenSSL, which are made for that.
    let loaded = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
    // libloading keeps the loader's sentence in the source of its error.
    let text = |error: libloading::Error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    };
    loaded.map_err(|error| Missing::Library(text(error)))
}

fn symbol(library: &Library, name: &'static str) -> Result<*mut c_void, Missing> {
    // SAFETY: only the address is taken here; its type is given in the table.
    let found = unsafe { library.get::<*mut c_void>(name.as_bytes()) };
    found.ok().map(|symbol| *symbol).filter(|address| !address.is_null()).ok_or(Missing::Function(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_a_remedy() {
        let missing = open("libsw-none.so.3").err().unwrap();
        let text = missing.error().to_string();
        assert!(text.contains("libsw-none.so.3") && text.contains("; install"), "{text}");
        if let Ok(library) = open("libc.so.6") {
            assert_eq!(Table::find(&library).err(), Some(Missing::Function("OPENSSL_init_ssl")));
        }
        for missing in [Missing::Function("SSL_new"), Missing::Version(0x1010_1000), Missing::Start] {
            let error = missing.error();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(';'), "{error}");
        }
    }
}
