//! Names of routes and reasons as C texts that live for ever.

use std::{
    ffi::{CStr, CString},
    sync::{Mutex, OnceLock, PoisonError},
};

use straightway::Reason;

use crate::{last::c_text, pointer::Str};

/// Code and text of a reason.
pub(crate) fn reason(reason: Reason) -> (Str, Str) {
    static TEXTS: OnceLock<Vec<(CString, CString)>> = OnceLock::new();
    let texts =
        TEXTS.get_or_init(|| Reason::ALL.iter().map(|each| (c_text(each.code()), c_text(each.text()))).collect());
    let at = Reason::ALL.binary_search(&reason).ok();
    let found = at.and_then(|at| texts.get(at));
    found.map_or((Str::of(c""), Str::of(c"")), |(code, text)| (Str::lent(code), Str::lent(text)))
}

/// Transports that are looked for first; any other is kept once.
const KNOWN: [&CStr; 4] = [c"io_uring", c"preadv2", c"nvme", c"none"];

/// Name of a transport.
pub(crate) fn transport(name: &'static str) -> Str {
    if let Some(known) = KNOWN.iter().find(|known| known.to_bytes() == name.as_bytes()) {
        return Str::of(known);
    }
    // As many as transports have names in the code: a handful.
    static OTHERS: Mutex<Vec<&'static CStr>> = Mutex::new(Vec::new());
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = others.iter().find(|known| known.to_bytes() == name.as_bytes()) {
        return Str::of(known);
    }
    let text: &'static CStr = Box::leak(c_text(name).into_boxed_c_str());
    others.push(text);
    Str::of(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_in_the_order_of_their_list() {
        assert!(Reason::ALL.is_sorted());
        for each in Reason::ALL {
            assert_eq!(reason(*each).0.text("").unwrap(), Some(each.code()));
            assert_eq!(reason(*each).1.text("").unwrap(), Some(each.text()));
        }
    }

    #[test]
    fn a_transport_has_one_text() {
        for name in ["io_uring", "strange", "other"] {
            assert_eq!(transport(name).text("").unwrap(), Some(name));
            assert_eq!(transport(name).as_ptr(), transport(name).as_ptr());
        }
    }
}
