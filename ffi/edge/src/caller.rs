//! What a C caller names: addresses, room for answers, descriptors.
// UNSAFETY: room of C callers is read and written here.
#![expect(unsafe_code, reason = "room of C callers is read and written here, and their descriptors are duplicated")]

use std::{
    ffi::c_void,
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// A type that C callers fill: every bit pattern is a value.
///
/// # Safety
/// The type is `repr(C)` without bytes that no field has, and every bit pattern is a value of it, but for function pointers, which
/// are NULL or functions of the type that they say.
pub unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for usize {}
// SAFETY: as above.
unsafe impl Plain for i64 {}

/// `void *`: a number to a library. It follows none but host memory that a caller lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Addr(*mut c_void);

/// A number as an address: these interfaces are for machines with 64-bit addresses.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "asserted to be as wide")]
pub const fn address(raw: u64) -> usize {
    const { assert!(usize::BITS == 64, "handles and layouts are those of 64-bit machines") };
    raw as usize
}

impl Addr {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null_mut());

    /// An address.
    #[inline]
    pub const fn new(pointer: *mut c_void) -> Self {
        Self(pointer)
    }

    /// From its number.
    #[inline]
    pub fn from_raw(raw: u64) -> Self {
        Self(std::ptr::with_exposed_provenance_mut(address(raw)))
    }

    /// The pointer.
    #[inline]
    pub const fn as_ptr(self) -> *mut c_void {
        self.0
    }

    /// Its number.
    #[inline]
    pub fn raw(self) -> u64 {
        self.0.expose_provenance() as u64
    }
}

// SAFETY: a number to everyone but who reads or writes by it, under the contract of the function that it was passed to.
unsafe impl Send for Addr {}
// SAFETY: as above.
unsafe impl Sync for Addr {}

/// Room of a caller's that was looked at: not NULL. Alignment does not matter here.
#[derive(Clone, Copy, Debug)]
pub struct Ready<T>(*mut T);

impl<T: Copy> Ready<T> {
    /// # Safety
    /// `room` is not NULL, and writable for what is put there while this value is used (one `T`, or as many as are put with
    /// [`Ready::put_at`]); for [`Ready::get`] it holds a `T`.
    #[inline]
    pub const unsafe fn new(room: *mut T) -> Self {
        Self(room)
    }

    /// Puts a value there.
    #[inline]
    pub fn put(self, value: T) {
        self.put_at(0, value);
    }

    /// Puts one into an array.
    #[inline]
    pub fn put_at(self, index: usize, value: T) {
        let to = self.0.wrapping_add(index);
        // SAFETY: not NULL, and writable so far, by the contract of `new`.
        unsafe { to.write_unaligned(value) }
    }

    /// Puts something of another type behind `bytes` bytes: a structure that grew has parts.
    #[inline]
    pub fn put_behind<U: Copy>(self, bytes: usize, value: U) {
        let to = self.0.wrapping_byte_add(bytes).cast::<U>();
        // SAFETY: as above; that the whole structure has room for this part is what its caller chose with the version.
        unsafe { to.write_unaligned(value) }
    }
}

impl<T: Plain> Ready<T> {
    /// What is there: a parameter that goes in and out.
    #[inline]
    pub fn get(self) -> T {
        // SAFETY: not NULL, and a variable of the caller's, by the contract of `new`; any bits are a value.
        unsafe { self.0.read_unaligned() }
    }
}

/// A descriptor of the caller's as one of ours.
///
/// # Errors
/// The kernel's: `EBADF` for a number that is no open descriptor.
pub fn own_descriptor(descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the kernel refuses a number that is no descriptor, and leaves one that is as it was.
    let own = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh from the kernel, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::Read,
        os::fd::{AsRawFd, IntoRawFd},
    };

    #[test]
    fn room_takes_values_at_any_alignment() {
        let mut bytes = [0_u8; 17];
        let room = bytes.as_mut_ptr().wrapping_add(1).cast::<u32>();
        // SAFETY: sixteen bytes from there are the array's.
        let room = unsafe { Ready::new(room) };
        room.put(0x0403_0201);
        room.put_at(1, 0x0807_0605);
        room.put_behind(8, 0x100f_0e0d_0c0b_0a09_u64);
        assert_eq!(room.get(), 0x0403_0201);
        assert_eq!(bytes, std::array::from_fn(|at| u8::try_from(at).unwrap()));
    }

    #[test]
    fn a_descriptor_is_duplicated_and_what_is_none_is_refused() {
        let theirs = File::open("/proc/self/stat").unwrap();
        let own = own_descriptor(theirs.as_raw_fd()).unwrap();
        assert_ne!(own.as_raw_fd(), theirs.as_raw_fd());
        drop(theirs);
        let mut text = String::new();
        File::from(own).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        for wrong in [-1, i32::MIN, i32::MAX] {
            let refused = own_descriptor(wrong).map(IntoRawFd::into_raw_fd);
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF), "{wrong}");
        }
    }
}
