//! Tensor-name patterns: a comma list of globs.

use thiserror::Error;

/// Longest pattern in bytes. Matching one name takes at most pattern length times name length steps.
pub const PATTERN_LEN_MAX_BYTES: usize = 64 << 10;

/// Why a pattern is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatternError {
    /// Longer than the limit.
    #[error("tensor pattern has {len_bytes} bytes, over the limit of {PATTERN_LEN_MAX_BYTES}; use `*` and `?`")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
    /// Two commas in a row, or one at an end.
    #[error("item {item} of the tensor pattern is empty; write items as `a,b*`, and `\\,` for a comma in a name")]
    EmptyItem {
        /// Which item, from 1.
        item: usize,
    },
    /// A backslash with nothing after it.
    #[error("tensor pattern ends in a backslash; write `\\\\` for one in a name")]
    LoneBackslash,
}

impl PatternError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "pattern-too-long",
            Self::EmptyItem { .. } => "pattern-empty-item",
            Self::LoneBackslash => "pattern-lone-backslash",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// `*`: any characters, none included, dots included.
    Many,
    /// `?`: one character.
    One,
    Char(char),
}

#[derive(Clone, Debug)]
struct Glob {
    /// As the user wrote it, for messages.
    text: String,
    tokens: Vec<Token>,
}

/// A comma list of globs; a name matches if one item does.
///
/// `*` stands for any characters (dots too), `?` for one character, a backslash takes the next character as it is.
/// The whole name must match. The empty pattern has no items and is refused; `*` means all.
#[derive(Clone, Debug)]
pub struct Pattern {
    items: Vec<Glob>,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// Every [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_LEN_MAX_BYTES {
            return Err(PatternError::TooLong { len_bytes: text.len() });
        }
        let mut items = Vec::new();
        let mut item = Glob { text: String::new(), tokens: Vec::new() };
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c == ',' {
                items.push(std::mem::replace(&mut item, Glob { text: String::new(), tokens: Vec::new() }));
                continue;
            }
            item.text.push(c);
            let token = match c {
                '*' if item.tokens.last() == Some(&Token::Many) => continue,
                '*' => Token::Many,
                '?' => Token::One,
                '\\' => {
                    let next = chars.next().ok_or(PatternError::LoneBackslash)?;
                    item.text.push(next);
                    Token::Char(next)
                }
                plain => Token::Char(plain),
            };
            item.tokens.push(token);
        }
        items.push(item);
        match items.iter().position(|glob| glob.tokens.is_empty()) {
            Some(empty) => Err(PatternError::EmptyItem { item: empty + 1 }),
            None => Ok(Self { items }),
        }
    }

    /// The pattern that matches every name.
    #[must_use]
    pub fn all() -> Self {
        Self { items: vec![Glob { text: "*".to_owned(), tokens: vec![Token::Many] }] }
    }

    /// Whether one item matches the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.items.iter().any(|glob| glob.matches(name))
    }

    /// Items, as written, that match none of `names`: most often a misspelt name.
    pub fn idle_items<'n>(&self, names: impl Iterator<Item = &'n str>) -> Vec<String> {
        let mut idle: Vec<&Glob> = self.items.iter().collect();
        for name in names {
            if idle.is_empty() {
                break;
            }
            idle.retain(|glob| !glob.matches(name));
        }
        idle.into_iter().map(|glob| glob.text.clone()).collect()
    }
}

impl Glob {
    /// Greedy with one point of return: the last `*` and what it took. No recursion, no allocation.
    fn matches(&self, name: &str) -> bool {
        let mut at = 0;
        let mut rest = name.chars();
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            let mut ahead = rest.clone();
            let step = match (self.tokens.get(at), ahead.next()) {
                (None, None) => return true,
                (Some(Token::Many), _) => {
                    retry = Some((at, rest.clone()));
                    at += 1;
                    continue;
                }
                (Some(Token::One), Some(_)) => true,
                (Some(Token::Char(want)), Some(found)) => *want == found,
                (None, Some(_)) | (Some(_), None) => false,
            };
            if step {
                at += 1;
                rest = ahead;
                continue;
            }
            // Let the last `*` take one character more, and go on behind it.
            let Some((star, mut taken)) = retry.take() else { return false };
            if taken.next().is_none() {
                return false;
            }
            rest = taken.clone();
            retry = Some((star, taken));
            at = star + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn globs_match_whole_names() {
        assert!(matches("*", ""));
        assert!(matches("*", "a.b"));
        assert!(matches("model.*.weight", "model.layers.0.weight"));
        assert!(!matches("model.*.weight", "model.layers.0.weight.scale"));
        assert!(!matches("model.?.bias", "model.10.bias"));
        assert!(matches("a,b*", "bc"));
        assert!(!matches("a", "ab"));
        assert!(matches("?", "ü"));
        assert!(matches("a**b", "ab"));
        assert!(matches("*aab", "aaaab"));
    }

    #[test]
    fn backslash_takes_the_next_character() {
        assert!(matches("a\\,b", "a,b"));
        assert!(matches("\\*", "*"));
        assert!(!matches("\\*", "x"));
        assert_eq!(Pattern::parse("a\\").unwrap_err(), PatternError::LoneBackslash);
    }

    #[test]
    fn empty_items_and_long_patterns_are_refused() {
        assert_eq!(Pattern::parse("").unwrap_err(), PatternError::EmptyItem { item: 1 });
        assert_eq!(Pattern::parse("a,,b").unwrap_err(), PatternError::EmptyItem { item: 2 });
        let long = "x".repeat(PATTERN_LEN_MAX_BYTES + 1);
        assert_eq!(Pattern::parse(&long).unwrap_err().code(), "pattern-too-long");
    }

    #[test]
    fn idle_items_are_named_as_written() {
        let pattern = Pattern::parse("a*,typo.\\*,b").unwrap();
        assert_eq!(pattern.idle_items(["ab", "b"].into_iter()), ["typo.\\*"]);
    }

    #[test]
    fn many_stars_do_not_explode() {
        let pattern = Pattern::parse(&"a*".repeat(2_000)).unwrap();
        assert!(!pattern.matches(&("a".repeat(1_999) + &"b".repeat(3_000))));
    }

    /// The obvious recursive definition.
    fn naive(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|taken| naive(rest, &name[taken..])),
            Some(('?', rest)) => !name.is_empty() && naive(rest, &name[1..]),
            Some((c, rest)) => name.first() == Some(c) && naive(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_recursive_definition(pattern in "[ab*?]{1,8}", name in "[ab]{0,10}") {
            let p: Vec<char> = pattern.chars().collect();
            let n: Vec<char> = name.chars().collect();
            prop_assert_eq!(matches(&pattern, &name), naive(&p, &n));
        }
    }
}
