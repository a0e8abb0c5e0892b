//! TLS by the kernel: records are made and read by the socket itself, so that bytes go between it and their places as without TLS.
//!
//! The handshake is OpenSSL's, which hands out the secrets of the traffic behind it; keys are made of them here. (OpenSSL's own way,
//! `SSL_OP_ENABLE_KTLS`, has no receiving side for TLS 1.3 before 3.2, and distributions build without it.) It is asked for before the
//! handshake whether the kernel knows TLS at all: if not, no secret leaves the library.
//!
//! A record that is no data is not read by a plain read: that fails with EIO and leaves it, and [`control`] takes it.
//!
//! Linux `Documentation/networking/tls.rst`; `include/uapi/linux/tls.h`.
// UNSAFETY: socket options and messages are system calls.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::RawFd,
};

use sw_nvme::psk::{Suite, traffic_key};
use zeroize::Zeroizing;

use super::openssl::{Fault, Role, Traffic};

/// `SOL_TLS`, `TLS_TX`, `TLS_RX`, `TLS_SET_RECORD_TYPE`, `TLS_GET_RECORD_TYPE`.
const SOL_TLS: libc::c_int = 282;
const TLS_TX: libc::c_int = 1;
const TLS_RX: libc::c_int = 2;
const SET_RECORD_TYPE: libc::c_int = 1;
const GET_RECORD_TYPE: libc::c_int = 2;
/// `TLS_1_3_VERSION`, `TLS_CIPHER_AES_GCM_128`, `TLS_CIPHER_AES_GCM_256`.
const VERSION: u16 = 0x0304;
const AES_GCM_128: u16 = 51;
const AES_GCM_256: u16 = 52;
/// Bytes of the salt, the first of the IV of RFC 8446; the rest is the kernel's `iv`.
const SALT_BYTES: usize = 4;
/// Bytes of the number of the next record.
const SEQUENCE_BYTES: usize = 8;
/// Types of records (RFC 8446 §5.1) and of messages in them (§4).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const NEW_SESSION_TICKET: u8 = 4;
/// Bytes of a control record that are read: more than any that is understood has.
const CONTROL_BYTES: usize = 4096;

/// Asks the kernel to look after TLS on the socket, which it does once it has keys. Whether it can.
///
/// # Errors
/// The connection is over: see [`can`].
pub(crate) fn prepare(fd: RawFd) -> io::Result<bool> {
    can(option(fd, libc::SOL_TCP, libc::TCP_ULP, b"tls"))
}

/// What the kernel's answer means. It takes connections that are established only (`net/tls/tls_main.c`, `tls_init`): one that the other end
/// has closed meanwhile is lost, which says nothing of what the kernel can.
fn can(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(error),
        answer => Ok(answer.is_ok()),
    }
}

/// Gives the kernel the keys of a connection whose handshake just ended, with no record behind it yet, either way. Whether it took them;
/// if not, all is as before.
///
/// # Errors
/// What the system says, if it took those of one way only: the connection is of no use any more.
pub(crate) fn take_over(fd: RawFd, suite: Suite, role: Role, traffic: &Traffic) -> io::Result<bool> {
    let Traffic { client: Some(client), server: Some(server) } = traffic else { return Ok(false) };
    let (send, receive) = match role {
        Role::Client => (client, server),
        Role::Server => (server, client),
    };
    if option(fd, SOL_TLS, TLS_TX, &keys(suite, send)).is_err() {
        return Ok(false);
    }
    option(fd, SOL_TLS, TLS_RX, &keys(suite, receive)).map(|()| true)
}

/// `struct tls12_crypto_info_aes_gcm_128` or `_256`: version, cipher, iv, key, salt, number of the next record.
fn keys(suite: Suite, secret: &[u8]) -> Zeroizing<Vec<u8>> {
    let (key, iv) = traffic_key(suite, secret);
    let (salt, iv) = iv.split_at_checked(SALT_BYTES).unwrap_or_default();
    let cipher = match suite {
        Suite::Aes128GcmSha256 => AES_GCM_128,
        Suite::Aes256GcmSha384 => AES_GCM_256,
    };
    let mut info = Zeroizing::new(Vec::with_capacity(64));
    info.extend_from_slice(&VERSION.to_ne_bytes());
    info.extend_from_slice(&cipher.to_ne_bytes());
    for part in [iv, &key, salt, &[0; SEQUENCE_BYTES]] {
        info.extend_from_slice(part);
    }
    info
}

fn option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    // Tens of bytes.
    let len = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: a live slice of as many bytes, and a descriptor of ours.
    match unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a record that is no data says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// The peer sends no more (`close_notify`).
    End,
    /// Nothing that matters here.
    Nothing,
}

/// Room for one control message of one byte, aligned for its header.
#[repr(C, align(8))]
struct Ancillary([u8; 64]);

/// Whether a read failed because of a record that is no data.
pub(crate) fn is_control(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// Takes a record that is no data.
///
/// # Errors
/// What the system says; a [`Fault`] for an alert, and for what the kernel cannot follow: other keys.
pub(crate) fn control(fd: RawFd) -> io::Result<Control> {
    let mut record = [0; CONTROL_BYTES];
    let mut room = Ancillary([0; 64]);
    let mut part = libc::iovec { iov_base: record.as_mut_ptr().cast(), iov_len: record.len() };
    let mut message = message(&raw mut part, &mut room);
    // SAFETY: the message names live locals.
    let got = unsafe { libc::recvmsg(fd, &raw mut message, 0) };
    let Ok(got) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel filled the message.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    if first.is_null() {
        return if got == 0 { Err(io::Error::new(io::ErrorKind::UnexpectedEof, Fault::Cut)) } else { Err(broken()) };
    }
    // SAFETY: a header inside of the room above, as the macro checks.
    let header = unsafe { first.read() };
    if (header.cmsg_level, header.cmsg_type) != (SOL_TLS, GET_RECORD_TYPE) {
        return Err(broken());
    }
    // SAFETY: computes the place of the data of that header.
    let kind = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: one byte, inside of the room above.
    let kind = unsafe { kind.read() };
    understood(kind, record.get(..got).unwrap_or_default())
}

fn understood(kind: u8, record: &[u8]) -> io::Result<Control> {
    match (kind, record) {
        (ALERT, [_, 0]) => Ok(Control::End),
        (ALERT, [_, number]) => Err(io::Error::other(Fault::Alert(*number))),
        // Nobody resumes.
        (HANDSHAKE, messages) if only_tickets(messages) => Ok(Control::Nothing),
        (HANDSHAKE, _) => Err(io::Error::other(Changed)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether a record has nothing but NewSessionTicket, whole: each message has a type and a length of three bytes before it.
fn only_tickets(messages: &[u8]) -> bool {
    let mut rest = messages;
    while let [NEW_SESSION_TICKET, high, middle, low, behind @ ..] = rest {
        let len = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        let Some(next) = behind.get(len..) else { return false };
        rest = next;
    }
    rest.is_empty() && !messages.is_empty()
}

/// A message of a handshake behind the handshake: new keys, as a rule.
#[derive(Debug)]
struct Changed;

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the other end changed its keys of tls (KeyUpdate), which the kernel does not follow")
    }
}

impl std::error::Error for Changed {}

/// Tells the peer that no more bytes come, if the socket takes that: an alert in a record of its own.
pub(crate) fn close(fd: RawFd) {
    let mut alert = [1_u8, 0];
    let mut room = Ancillary([0; 64]);
    let mut part = libc::iovec { iov_base: alert.as_mut_ptr().cast(), iov_len: alert.len() };
    let mut message = message(&raw mut part, &mut room);
    // SAFETY: computes a size.
    message.msg_controllen = (unsafe { libc::CMSG_SPACE(1) }) as _;
    // SAFETY: the message names room for one header.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if first.is_null() {
        return;
    }
    // SAFETY: computes a size.
    let len = unsafe { libc::CMSG_LEN(1) };
    // SAFETY: all zeroes is a header of nothing. (Some C libraries have padding in it, which has a name.)
    let mut header: libc::cmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (header.cmsg_len, header.cmsg_level, header.cmsg_type) = (len as _, SOL_TLS, SET_RECORD_TYPE);
    // SAFETY: the header's place, inside of the room, which is aligned for it.
    unsafe { first.write(header) };
    // SAFETY: computes the place of its data.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: one byte, inside of the room.
    unsafe { data.write(ALERT) };
    // SAFETY: the message names live locals. A peer that is gone gives an error, which is as good here.
    let _ = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
}

fn message(part: *mut libc::iovec, room: &mut Ancillary) -> libc::msghdr {
    // SAFETY: all zeroes is a message without address, parts and control data.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = room.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Ancillary>() as _;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_laid_out_as_the_kernel_reads_them() {
        for (suite, secret_bytes, len) in [(Suite::Aes128GcmSha256, 32, 40), (Suite::Aes256GcmSha384, 48, 56)] {
            let secret = vec![7; secret_bytes];
            let (info, (key, iv)) = (keys(suite, &secret), traffic_key(suite, &secret));
            assert_eq!((info.len(), &info[4..12], &info[len - 8..]), (len, &iv[4..], &[0; 8][..]));
            assert_eq!((&info[12..len - 12], &info[len - 12..len - 8]), (&key[..], &iv[..4]));
        }
    }

    #[test]
    fn records_that_are_no_data_are_understood_or_refused() {
        let ticket = [4, 0, 0, 2, 9, 9];
        assert_eq!(understood(ALERT, &[1, 0]).unwrap(), Control::End);
        assert_eq!(understood(HANDSHAKE, &[ticket, ticket].concat()).unwrap(), Control::Nothing);
        let told = |kind, record: &[u8]| understood(kind, record).unwrap_err().to_string();
        assert!(told(ALERT, &[2, 20]).contains("bad_record_mac"));
        assert!(told(HANDSHAKE, &[24, 0, 0, 1, 1]).contains("KeyUpdate"));
        for broken in [&ticket[..5], &[], &[ticket, [24, 0, 0, 1, 1, 0]].concat()] {
            assert!(told(HANDSHAKE, broken).contains("KeyUpdate"));
        }
        assert_eq!(understood(23, b"data").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(understood(ALERT, &[2]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_connection_that_is_over_is_lost_and_not_one_that_the_kernel_cannot_protect() {
        let answer = |code| can(Err(io::Error::from_raw_os_error(code)));
        assert_eq!(answer(libc::ENOTCONN).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        assert!(!answer(libc::ENOENT).unwrap() && !answer(libc::EOPNOTSUPP).unwrap() && can(Ok(())).unwrap());
    }

    #[test]
    fn a_socket_without_tls_is_not_taken_over() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
        let secret = || Some(Zeroizing::new(vec![1; 32]));
        let (suite, traffic) = (Suite::Aes128GcmSha256, Traffic { client: secret(), server: secret() });
        assert!(!take_over(fd, suite, Role::Client, &traffic).unwrap());
        assert!(!take_over(fd, suite, Role::Client, &Traffic::default()).unwrap());
    }
}
