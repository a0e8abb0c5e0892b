//! Splits Rust source into what the compiler runs and what people read.
//!
//! Three texts of the same length and with the same line ends, so that an offset in one is an offset in all:
//! `code` has comments and the insides of literals blanked, `comments` has everything else blanked, and `spoken` is
//! code with its literals but without comments. This is a scanner, not a parser: it knows comments (nested), strings
//! (plain, raw, byte, C), character literals and lifetimes, which is all that the checks need.

/// The three views of one source file.
#[derive(Debug)]
pub struct Views {
    /// Code; comments and literal contents are spaces.
    pub code: String,
    /// Comments; everything else is spaces.
    pub comments: String,
    /// Code and literals; comments are spaces.
    pub spoken: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Literal,
    Comment,
}

impl Views {
    /// Scans a whole file. Unterminated literals and comments run to the end of the text.
    pub fn of(text: &str) -> Views {
        let kinds = classify(text.as_bytes());
        let view = |keep: &[Kind]| -> String {
            text.char_indices()
                .flat_map(|(at, c)| {
                    let kept = c == '\n' || kinds.get(at).is_some_and(|kind| keep.contains(kind));
                    // A blanked character leaves as many spaces as it had bytes: offsets stay equal.
                    std::iter::repeat_n(if kept { c } else { ' ' }, if kept { 1 } else { c.len_utf8() })
                })
                .collect()
        };
        Views {
            code: view(&[Kind::Code]),
            comments: view(&[Kind::Comment]),
            spoken: view(&[Kind::Code, Kind::Literal]),
        }
    }
}

fn classify(bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let (len, kind) = token(rest, at.checked_sub(1).and_then(|before| bytes.get(before)).copied());
        let end = (at + len.max(1)).min(bytes.len());
        if let Some(span) = kinds.get_mut(at..end) {
            span.fill(kind);
        }
        at = end;
    }
    kinds
}

/// Length and kind of what starts here. `before` is the byte before it.
fn token(rest: &[u8], before: Option<u8>) -> (usize, Kind) {
    if rest.starts_with(b"//") {
        return (rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()), Kind::Comment);
    }
    if rest.starts_with(b"/*") {
        return (block_comment(rest), Kind::Comment);
    }
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !in_word && let Some(len) = raw_string(rest) {
        return (len, Kind::Literal);
    }
    match rest.first() {
        Some(b'"') => (1 + quoted(rest, b'"'), Kind::Literal),
        Some(b'\'') => match char_literal(rest) {
            Some(len) => (len, Kind::Literal),
            None => (1, Kind::Code),
        },
        _ => (1, Kind::Code),
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = rest.get(at..).unwrap_or_default();
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Bytes after the opening quote up to and with the closing one.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            b if *b == quote => return at,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`: the whole length, or nothing if this is no raw string.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = match rest {
        [b'r', ..] => 1,
        [b'b' | b'c', b'r', ..] => 2,
        _ => return None,
    };
    let hashes = rest.get(prefix..)?.iter().take_while(|b| **b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    let body = rest.get(open + 1..)?;
    let end = body.windows(closing.len()).position(|window| window == closing);
    Some(end.map_or(rest.len(), |end| open + 1 + end + closing.len()))
}

/// `'x'`, `'\n'`, `'\u{1F600}'`, `'é'`; a lifetime gives nothing.
fn char_literal(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(1 + quoted(rest, b'\''));
    }
    // One character of up to four bytes, then the closing quote.
    (2..=5)
        .find(|at| {
            rest.get(*at) == Some(&b'\'')
                && rest.get(1..*at).is_some_and(|c| std::str::from_utf8(c).is_ok_and(|c| c.chars().count() == 1))
        })
        .map(|at| at + 1)
}

/// Offsets at which `word` stands in `text` with no identifier character beside it.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).filter_map(move |(at, _)| {
        let before = text.get(..at).and_then(|head| head.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|tail| tail.chars().next());
        (!before.is_some_and(is_part) && !after.is_some_and(is_part)).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_leave_the_code() {
        let views = Views::of("let a = \"unsafe\"; // unsafe\nunsafe { b }");
        assert_eq!(words(&views.code, "unsafe").collect::<Vec<_>>(), [28]);
        assert_eq!(words(&views.comments, "unsafe").count(), 1);
        assert_eq!(words(&views.spoken, "unsafe").count(), 2);
    }

    #[test]
    fn nested_comments_end_where_they_should() {
        let views = Views::of("/* a /* b */ unsafe */ code");
        assert_eq!(views.code.trim(), "code");
    }

    #[test]
    fn raw_strings_lifetimes_and_characters() {
        let text = r##"let a = r#"unsafe " quote"#; fn f<'a>(x: &'a str) { ('"', '\'', 'é', b"x\"y") } unsafe"##;
        let views = Views::of(text);
        assert_eq!(words(&views.code, "unsafe").collect::<Vec<_>>(), [text.len() - 6]);
        assert!(views.code.contains("fn f<'a>(x: &'a str)"), "{}", views.code);
        assert!(!views.code.contains('é'));
    }

    #[test]
    fn offsets_and_lines_are_kept() {
        let text = "// é\nlet s = \"ü\";\n/* ö\n */ x";
        let views = Views::of(text);
        for view in [&views.code, &views.comments, &views.spoken] {
            assert_eq!(view.len(), text.len());
            assert_eq!(view.lines().count(), text.lines().count());
        }
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("unsafe_code unsafe notunsafe", "unsafe").collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn an_unterminated_literal_ends_with_the_file() {
        assert_eq!(Views::of("a \"unsafe").code.trim(), "a");
        assert_eq!(Views::of("a r#\"unsafe").code.trim(), "a");
        assert_eq!(Views::of("a /* unsafe").code.trim(), "a");
    }
}
