//! Keys by the name of the other end: at a host by that of the subsystem, at a target by that of the host.
//!
//! A text of them has lines of two words, a name and a key. A line with a key alone is for every name that no other line has. Empty lines, and
//! those that begin with `#`, say nothing.
//!
//! No I/O. Invariant: whoever is not named, and for whom there is no line of all, has no key.

use crate::fabrics::Nqn;

/// Names at most; a text has no more.
pub const NAMES_MAX: usize = 1024;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Keys<K> {
    all: Option<K>,
    named: Vec<(Nqn, K)>,
}

/// Why a text is none of keys. It has nothing of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError<E> {
    /// There is none in it.
    #[error("there is no key in it")]
    Empty,
    /// A line, counted from 1, names nobody.
    #[error("line {0} begins with no nqn")]
    Name(usize),
    /// A name, or no name, comes twice.
    #[error("line {0} is for somebody who had a key before")]
    Twice(usize),
    /// More than [`NAMES_MAX`].
    #[error("there are more than 1,024 keys")]
    Many,
    /// A line has no key.
    #[error("line {0}: {1}")]
    Key(usize, E),
}

impl<K> Keys<K> {
    /// Those of the names, and of nobody else.
    pub fn named(named: Vec<(Nqn, K)>) -> Self {
        Self { all: None, named }
    }

    /// Of their text; `key` reads one.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn parse<E>(text: &str, key: impl Fn(&str) -> Result<K, E>) -> Result<Self, KeysError<E>> {
        let mut keys = Self { all: None, named: Vec::new() };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let read = |word: &str| key(word).map_err(|error| KeysError::Key(number, error));
            let Some((name, word)) = line.split_once(char::is_whitespace) else {
                let one = read(line)?;
                if keys.all.replace(one).is_some() {
                    return Err(KeysError::Twice(number));
                }
                continue;
            };
            let name = Nqn::new(name).ok_or(KeysError::Name(number))?;
            if keys.named.iter().any(|(known, _)| *known == name) {
                return Err(KeysError::Twice(number));
            }
            if keys.named.len() == NAMES_MAX {
                return Err(KeysError::Many);
            }
            keys.named.push((name, read(word.trim_start())?));
        }
        if keys.iter().next().is_none() { Err(KeysError::Empty) } else { Ok(keys) }
    }

    /// The key of a name.
    pub fn of(&self, name: &Nqn) -> Option<&K> {
        let named = self.named.iter().find(|(known, _)| known == name).map(|(_, key)| key);
        named.or(self.all.as_ref())
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.all.iter().chain(self.named.iter().map(|(_, key)| key))
    }
}

impl<K> From<K> for Keys<K> {
    /// One for all names.
    fn from(key: K) -> Self {
        Self { all: Some(key), named: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Keys<u32>, KeysError<()>> {
        Keys::parse(text, |word| word.parse().map_err(|_| ()))
    }

    #[test]
    fn who_is_named_has_his_key_and_who_is_not_has_that_of_all_or_none() {
        let nqn = |text| Nqn::new(text).unwrap();
        let keys = parse("# two\n nqn.a \t 1 \n\nnqn.b 2\n").unwrap();
        assert_eq!(["nqn.a", "nqn.b", "nqn.c"].map(|name| keys.of(&nqn(name)).copied()), [Some(1), Some(2), None]);
        let keys = parse("nqn.a 1\n7\n").unwrap();
        assert_eq!(["nqn.a", "nqn.c"].map(|name| keys.of(&nqn(name)).copied()), [Some(1), Some(7)]);
        assert_eq!(keys.iter().count(), 2);
        assert_eq!(Keys::from(9).of(&nqn("nqn.x")), Some(&9));
    }

    #[test]
    fn a_text_that_could_be_read_in_two_ways_is_refused_with_its_line() {
        let error = |text: &str| parse(text).unwrap_err();
        assert_eq!((error(""), error("# 1\n")), (KeysError::Empty, KeysError::Empty));
        assert_eq!((error("1\n2"), error("nqn.a 1\nnqn.a 1")), (KeysError::Twice(2), KeysError::Twice(2)));
        assert_eq!(
            (error("\nhost 1"), error("nqn.a x"), error("nqn.a 1 2")),
            (KeysError::Name(2), KeysError::Key(1, ()), KeysError::Key(1, ()))
        );
        let many: String = (0..=NAMES_MAX).map(|number| format!("nqn.{number} 1\n")).collect();
        assert_eq!(error(&many), KeysError::Many);
    }
}
