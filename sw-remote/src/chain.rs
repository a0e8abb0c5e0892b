//! What is behind an error.

use std::error::Error as StdError;

/// An error and what is behind it.
pub(crate) fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| behind(*error))
}

/// What is behind an error. An `io::Error` shows what it carries as itself, not as its source.
fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    carried.map(|error| error as &(dyn StdError + 'static)).or_else(|| error.source())
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn what_an_error_of_the_system_carries_is_found_however_deep() {
        let error = Error::other(Error::other(std::fmt::Error));
        assert!(chain(&error).any(|error| error.is::<std::fmt::Error>()));
    }
}
