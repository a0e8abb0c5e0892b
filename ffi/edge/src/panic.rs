//! Where a panic stops.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Runs work; a panic of it stops here.
///
/// # Errors
/// That a panic was contained, with its words.
#[inline(always)]
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // What a panic leaves half done is only reached through the engine, which has its own containment, and through locks that
    // are used although they are poisoned.
    catch_unwind(AssertUnwindSafe(work)).map_err(told)
}

#[cold]
fn told(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("a panic was contained: {}", text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_in_its_words() {
        assert_eq!(contained(|| 7), Ok(7));
        assert_eq!(contained(|| panic!("seven")), Err::<(), _>("a panic was contained: seven".into()));
        assert_eq!(contained(|| panic!("seven {}", 7)), Err::<(), _>("a panic was contained: seven 7".into()));
        let odd = contained(|| std::panic::panic_any(7));
        assert_eq!(odd, Err::<(), _>("a panic was contained: no message".into()));
    }
}
