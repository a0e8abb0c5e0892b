//! Pointers of C callers. Every raw access of this crate is in this file, or behind the types of `straightway-edge`.
//!
//! A parameter that is a pointer in C is one of five types here: [`In`] (`const T *`), [`Out`] (`T *`), [`Str`]
//! (`const char *`), [`Addr`] (`void *`) and [`ConstAddr`] (`const void *`). Only an unsafe constructor makes one in Rust, so functions that take them are
//! safe. What can be known about a pointer is checked: NULL, and alignment.
// UNSAFETY: pointers of C callers are read and written here.
#![expect(unsafe_code, reason = "pointers of C callers are read and written here and nowhere else")]

use std::ffi::{CStr, c_char, c_void};

use straightway::Error;
pub use straightway_edge::{Addr, Plain};
pub(crate) use straightway_edge::{Ready, address, own_descriptor};

use crate::edge::misuse;

/// A structure that begins with its own size in bytes as its caller knows it.
///
/// # Safety
/// The first field is that `usize`. All zeros is a value.
pub unsafe trait Versioned: Plain {
    /// Its name in C.
    const NAME: &'static str;
    /// Size in the first version of the interface, in bytes.
    const FIRST: usize;
}

/// Says what a structure is called in C, and its size in the first version of the interface, in bytes.
macro_rules! versioned {
    ($type:ident, $name:literal, $first:literal) => {
        const _: () = assert!(size_of::<$type>() >= $first && std::mem::offset_of!($type, size) == 0);

        // SAFETY: the header test takes `repr(C)` structures of numbers, pointers, handles and optional functions only, of which
        // every bit pattern is a value, and zero too; what would be padding has a name, as their committed layout shows.
        unsafe impl crate::pointer::Plain for $type {}

        // SAFETY: the first field is the size, as asserted.
        unsafe impl crate::pointer::Versioned for $type {
            const NAME: &'static str = $name;
            const FIRST: usize = $first;
        }
    };
}
pub(crate) use versioned;

/// Structures that claim more than this are taken for garbage: bytes.
const SIZE_MAX: usize = 4096;

/// `const T *`: NULL, or what the caller leaves as it is during the call.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct In<T>(*const T);

/// `T *`: NULL, or room for a value.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

/// `const char *`: NULL, or text that ends with a zero byte.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Str(*const c_char);

/// `const void *`: as [`Addr`], for bytes that the library only looks at.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct ConstAddr(*const c_void);

fn check<T>(pointer: *const T, name: &str) -> Result<(), Error> {
    if pointer.is_null() {
        return Err(misuse(format!("{name} is NULL"), "give an address"));
    }
    if !pointer.is_aligned() {
        let align = align_of::<T>();
        return Err(misuse(format!("{name} is not aligned to {align} bytes"), "give the address of a variable"));
    }
    Ok(())
}

impl<T: Plain> In<T> {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null());

    /// # Safety
    /// `pointer` is NULL, or readable for what it is passed for (one `T`, or as many as the count beside it says) while this
    /// value is used.
    pub const unsafe fn new(pointer: *const T) -> Self {
        Self(pointer)
    }

    /// A value that a callback looks at during its call.
    pub(crate) fn lent(value: &T) -> Self {
        Self(value)
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The `index`th of an array.
    ///
    /// # Errors
    /// `ApiMisuse` for NULL or a misaligned address.
    pub(crate) fn element(self, index: usize, name: &str) -> Result<T, Error> {
        check(self.0, name)?;
        let element = self.0.wrapping_add(index);
        // SAFETY: not null and aligned, as checked; readable so far by the contract of `new`, which C callers take on with the
        // count that they pass; any bits are a value.
        Ok(unsafe { element.read() })
    }
}

impl<T: Versioned> In<T> {
    /// The structure: all zeros for NULL. What a caller of an older version does not have is zero; what a newer one has
    /// besides must be.
    ///
    /// # Errors
    /// `ApiMisuse` for a size that it cannot have; `Unsupported` for a field that this library does not know and that is set.
    pub(crate) fn sized(self) -> Result<T, Error> {
        if self.is_null() { Ok(zeroed()) } else { self.sized_at(0) }
    }

    /// The same for one that lies `offset` bytes further: arrays of a caller have its own distance.
    ///
    /// # Errors
    /// As [`In::sized`]; `ApiMisuse` for NULL.
    pub(crate) fn sized_at(self, offset: usize) -> Result<T, Error> {
        check(self.0, T::NAME)?;
        let from = self.0.wrapping_byte_add(offset);
        let size = size_of_one(from)?;
        let mut value = zeroed::<T>();
        let known = size.min(size_of::<T>());
        // SAFETY: `size` bytes are readable by the contract of `new`; `value` has `known` bytes, and any bits are a value.
        unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), known) };
        let rest = from.cast::<u8>().wrapping_add(known);
        // SAFETY: as above: the caller's structure goes on to `size`.
        let rest = unsafe { std::slice::from_raw_parts(rest, size - known) };
        if rest.iter().any(|byte| *byte != 0) {
            return Err(crate::edge::unsupported(
                format!("{} has {size} bytes and sets a field that this library does not know", T::NAME),
                "update the library, or leave the newer fields zero",
            ));
        }
        Ok(value)
    }

    /// The size that the first of an array claims: the distance of all.
    ///
    /// # Errors
    /// As [`In::sized`].
    pub(crate) fn stride(self) -> Result<usize, Error> {
        check(self.0, T::NAME)?;
        size_of_one(self.0)
    }
}

fn size_of_one<T: Versioned>(from: *const T) -> Result<usize, Error> {
    // SAFETY: not null and aligned, as the callers checked; a structure of any version begins with its size.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    if (T::FIRST..=SIZE_MAX).contains(&size) {
        return Ok(size);
    }
    Err(misuse(
        format!("{}.size is {size}, which no version of it has", T::NAME),
        "start from its _INIT value, or set size to sizeof of the structure",
    ))
}

fn zeroed<T: Plain>() -> T {
    // SAFETY: any bits are a value of a `Plain`, and of its function pointers, which are options, zero is none.
    unsafe { std::mem::zeroed() }
}

impl<T: Copy> Out<T> {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null_mut());

    /// # Safety
    /// `pointer` is NULL, or writable for what it is passed for while this value is used.
    pub const unsafe fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Checks before anything is done that there will be room.
    ///
    /// # Errors
    /// `ApiMisuse` for NULL or a misaligned address.
    pub(crate) fn ready(self, name: &str) -> Result<Ready<T>, Error> {
        check(self.0, name)?;
        // SAFETY: not null, as checked; writable by the contract of `new`, which C callers take on.
        Ok(unsafe { Ready::new(self.0) })
    }
}

/// Room for a structure with its size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizedOut<T> {
    /// None if the caller wants nothing.
    to: Option<(*mut T, usize)>,
}

impl<T: Versioned> Out<T> {
    /// As [`Out::ready`] for a structure with its size, which the caller has set. NULL: the caller wants nothing.
    ///
    /// # Errors
    /// `ApiMisuse` for a misaligned address or a size that it cannot have.
    pub(crate) fn optional(self) -> Result<SizedOut<T>, Error> {
        if self.is_null() { Ok(SizedOut { to: None }) } else { self.sized() }
    }

    /// As [`Out::optional`]; NULL is an error.
    ///
    /// # Errors
    /// As [`Out::optional`].
    pub(crate) fn sized(self) -> Result<SizedOut<T>, Error> {
        check(self.0, T::NAME)?;
        Ok(SizedOut { to: Some((self.0, size_of_one(self.0)?)) })
    }
}

impl<T: Versioned> SizedOut<T> {
    /// Puts as much of a value there as its caller knows; its size stays, and what the caller knows besides becomes zero.
    #[inline]
    pub(crate) fn put(self, value: impl FnOnce() -> T) {
        let Some((to, size)) = self.to else { return };
        let value = value();
        let head = size_of::<usize>();
        let known = size.min(size_of::<T>());
        let (from, target) = ((&raw const value).cast::<u8>(), to.cast::<u8>());
        // SAFETY: `size` bytes are writable by the contract of `Out::new`, of which `known` are copied from a `T`; the first
        // field of both is the size.
        unsafe {
            std::ptr::copy_nonoverlapping(from.wrapping_add(head), target.wrapping_add(head), known - head);
        }
        // SAFETY: as above: the caller's structure goes on to `size`.
        unsafe { target.wrapping_add(known).write_bytes(0, size - known) };
    }
}

impl Str {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null());

    /// Text that lives for ever.
    pub(crate) const fn of(text: &'static CStr) -> Self {
        Self(text.as_ptr())
    }

    /// Text that its owner keeps for as long as the interface promises.
    pub(crate) fn lent(text: &CStr) -> Self {
        Self(text.as_ptr())
    }

    /// # Safety
    /// `pointer` is NULL, or a text that ends with a zero byte and stays as it is while this value is used.
    pub const unsafe fn new(pointer: *const c_char) -> Self {
        Self(pointer)
    }

    /// The pointer.
    pub fn as_ptr(self) -> *const c_char {
        self.0
    }

    /// The text; `None` for NULL.
    ///
    /// # Errors
    /// `ApiMisuse` if it is not UTF-8.
    pub(crate) fn text<'a>(self, name: &str) -> Result<Option<&'a str>, Error> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: a text that ends with a zero byte, by the contract of `new`; it is used during the call only.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(Some).map_err(|_| misuse(format!("{name} is not UTF-8"), "give UTF-8"))
    }

    /// The text.
    ///
    /// # Errors
    /// As [`Str::text`]; `ApiMisuse` for NULL.
    pub(crate) fn required<'a>(self, name: &str) -> Result<&'a str, Error> {
        self.text(name)?.ok_or_else(|| misuse(format!("{name} is NULL"), "give a text"))
    }
}

impl ConstAddr {
    /// An address.
    pub const fn new(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// Its number.
    pub fn raw(self) -> u64 {
        self.0.expose_provenance() as u64
    }

    /// The bytes there, to look at.
    ///
    /// # Errors
    /// `ApiMisuse` for NULL, unless `len` is 0.
    pub(crate) fn bytes<'a>(self, len: usize, name: &str) -> Result<&'a [u8], Error> {
        if len == 0 {
            return Ok(&[]);
        }
        check(self.0.cast::<u8>(), name)?;
        // SAFETY: not null; that so many bytes are readable is the contract of the C functions that take an address and a length;
        // they are used during the call only.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), len) })
    }
}

// SAFETY: a number, never followed as an address.
unsafe impl<K> Plain for crate::handle::Handle<K> {}
// SAFETY: texts that live for ever, or are read during a call only.
unsafe impl Send for Str {}
// SAFETY: as above.
unsafe impl Sync for Str {}

/// Copies bytes to memory of a caller's, `at` bytes behind `to`.
///
/// # Errors
/// `ApiMisuse` for NULL.
pub(crate) fn fill(to: Addr, at: usize, bytes: &[u8], name: &str) -> Result<(), Error> {
    check(to.as_ptr().cast::<u8>(), name)?;
    let to = to.as_ptr().cast::<u8>().wrapping_add(at);
    // SAFETY: that so many bytes are writable is the contract of the C functions that take an address and a length.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    Ok(())
}

/// Region of memory that a C caller lends: its contract stands at `sw_region_register`.
pub(crate) fn lend(
    place: straightway::Place,
    len: u64,
    owner: Box<dyn std::any::Any + Send + Sync>,
) -> Result<straightway::DmaRegion, Error> {
    // SAFETY: the caller of `sw_region_register` keeps the range until the owner is dropped, which `sw_region_free` or the
    // release callback tells it; memory of the engine's own is kept by the owner itself. No reference into it is made here.
    let region = unsafe { straightway::DmaRegion::from_foreign(place, straightway::ByteLen(len), owner) };
    region.map_err(|cause| misuse(cause.to_string(), "give the address and length of one allocation"))
}

/// A stream of a C caller.
pub(crate) fn stream(handle: Addr) -> straightway::CallerStream {
    // SAFETY: the contract of `SW_IO_STREAM`: a stream of the primary context that lives until the operation is over. A handle that
    // is none is the driver's to refuse.
    unsafe { straightway::CallerStream::from_raw(address(handle.raw())) }
}
