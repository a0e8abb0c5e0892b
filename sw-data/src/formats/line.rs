//! Text made of numbers, as headers and index files have it.

/// A number in octal digits, with spaces or NUL around it, as tar headers have it. Nothing but those: `None`.
pub(super) fn octal(field: &[u8]) -> Option<u64> {
    let text = field.trim_ascii();
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = text[..end].trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    text.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A number in decimal digits and nothing else.
pub(super) fn decimal(field: &[u8]) -> Option<u64> {
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}
