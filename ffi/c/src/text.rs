//! # Texts
//!
//! Long texts that the library makes, such as JSON. The caller frees them.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{ffi::CString, sync::Arc};

use straightway::Error;

use crate::{
    edge::call,
    handle::{Handle, Kind, Table},
    last::c_text,
    pointer::{Out, Ready, Str},
    status::SwStatus,
};

/// A text. Freed by `sw_text_free`.
#[repr(C)]
pub struct SwText {
    _opaque: [u8; 0],
}

impl Kind for SwText {
    type State = CString;
    const TAG: u8 = 0xa5;
    const NAME: &'static str = "a text";

    fn table() -> &'static Table<CString> {
        static TABLE: Table<CString> = Table::new();
        &TABLE
    }
}

/// Gives a text to a caller.
pub(crate) fn give(text: String, to: Ready<Handle<SwText>>) -> Result<(), Error> {
    to.put(Handle::make(Arc::new(c_text(text)))?);
    Ok(())
}

/// Tells where the bytes of a text are, and how many, without the zero byte at their end. They are valid until `sw_text_free`.
/// `length` may be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn sw_text_data(text: Handle<SwText>, data: Out<Str>, length: Out<usize>) -> SwStatus {
    call(|| {
        let data = data.ready("data")?;
        let length = if length.is_null() { None } else { Some(length.ready("length")?) };
        // The table keeps it where it is until the handle ends.
        let text = text.get()?;
        data.put(Str::lent(&text));
        if let Some(length) = length {
            length.put(text.as_bytes().len());
        }
        Ok(())
    })
}

/// Frees a text.
#[unsafe(no_mangle)]
pub extern "C" fn sw_text_free(text: Handle<SwText>) -> SwStatus {
    call(|| text.end(|_| Ok(())).map(drop))
}
