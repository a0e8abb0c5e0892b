//! Waiting for a socket, and heads to and from it.
// UNSAFETY: poll is a system call.
#![expect(unsafe_code, reason = "a system call")]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// Longest sleep in one call, so that a deadline that moved is seen.
const STEP: Duration = Duration::from_secs(1);

/// What a socket is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    ToRead,
    ToWrite,
}

#[expect(clippy::disallowed_methods, reason = "an emulated NIC has a clock of its own, as a real one has")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits until a socket is ready or the time is over; whether it is ready.
pub(super) fn wait(stream: &impl AsRawFd, ready: Ready, until: Option<Instant>) -> io::Result<bool> {
    let events = if ready == Ready::ToRead { libc::POLLIN } else { libc::POLLOUT };
    loop {
        let left = until.map_or(STEP, |until| until.saturating_duration_since(now()).min(STEP));
        // Rounded up, or the last part of a millisecond would be spun away.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut of = libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
        // SAFETY: one live structure, and a descriptor that the caller keeps.
        let found = unsafe { libc::poll(&raw mut of, 1, millis) };
        match found {
            1.. => return Ok(true),
            0 if until.is_some_and(|until| until <= now()) => return Ok(false),
            0 => {}
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Waits until there is something to read; whether there is.
pub(crate) fn wait_readable(from: &impl AsRawFd, timeout: Duration) -> io::Result<bool> {
    wait(from, Ready::ToRead, Some(now() + timeout))
}

/// Fills `into`; the end of the stream or of the time is an error. The socket does not block.
pub(super) fn fill(stream: &TcpStream, into: &mut [u8], until: Option<Instant>) -> io::Result<()> {
    fill_on(stream, (into, &mut 0), until)
}

/// The same, behind the first bytes, which are there; how many are there then, also when the time is over.
pub(super) fn fill_on(
    stream: &TcpStream,
    (into, have): (&mut [u8], &mut usize),
    until: Option<Instant>,
) -> io::Result<()> {
    let mut from = stream;
    while *have < into.len() {
        match from.read(into.get_mut(*have..).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => *have += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait(stream, Ready::ToRead, until)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends all of `from`; the end of the time is an error.
pub(super) fn put(stream: &TcpStream, from: &[u8], until: Option<Instant>) -> io::Result<()> {
    let (mut sent, mut to) = (0, stream);
    while sent < from.len() {
        match to.write(from.get(sent..).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => sent += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait(stream, Ready::ToWrite, until)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
