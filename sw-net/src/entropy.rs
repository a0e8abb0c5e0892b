//! Random bytes of the system.
// UNSAFETY: getrandom is a system call.
#![expect(unsafe_code, reason = "a system call")]

use std::io;

use sw_nvme::auth::RANDOM_BYTES;
use zeroize::Zeroizing;

/// Fills `into`. Waits, once after the start of the machine, until the system has randomness.
///
/// # Errors
/// What the system says: it has no such call.
pub(crate) fn fill(into: &mut [u8]) -> io::Result<()> {
    let mut rest = into;
    while !rest.is_empty() {
        // SAFETY: as many bytes as there are behind the live pointer; no flags.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// As many random bytes of the system as one challenge, exponent or key takes.
///
/// # Errors
/// What the system says: it has no such call.
pub fn random_bytes() -> io::Result<Zeroizing<[u8; RANDOM_BYTES]>> {
    let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
    fill(bytes.as_mut_slice())?;
    Ok(bytes)
}

/// A number of 32 bits.
///
/// # Errors
/// As [`fill`].
pub(crate) fn random_u32() -> io::Result<u32> {
    let mut bytes = [0; 4];
    fill(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_others_each_time() {
        let [one, other] = [random_bytes().unwrap(), random_bytes().unwrap()];
        assert!(one != other && one.iter().any(|byte| *byte != 0));
    }
}
