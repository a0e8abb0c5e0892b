//! JSON with comments, as `cufile.json` is: `//` to the end of the line, and `/* … */`.

/// Comments become blanks, so that places in messages of the parser are places in the file.
///
/// # Errors
/// The line of a comment that does not end.
pub(crate) fn without_comments(text: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.char_indices().peekable();
    let mut in_string = false;
    while let Some((at, c)) = rest.next() {
        let next = rest.peek().map(|(_, next)| *next);
        match (in_string, c, next) {
            (true, '\\', Some(escaped)) => {
                plain.extend([c, escaped]);
                rest.next();
            }
            (_, '"', _) => {
                in_string = !in_string;
                plain.push(c);
            }
            (false, '/', Some('/')) => {
                plain.push(' ');
                while rest.peek().is_some_and(|(_, c)| *c != '\n') {
                    rest.next();
                    plain.push(' ');
                }
            }
            (false, '/', Some('*')) => {
                let line = text[..at].matches('\n').count() + 1;
                let len =
                    text[at + 2..].find("*/").ok_or_else(|| format!("the comment in line {line} does not end"))?;
                let end = at + 2 + len + 2;
                plain.extend(text[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                while rest.peek().is_some_and(|(next, _)| *next < end) {
                    rest.next();
                }
            }
            _ => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_places_and_strings_stay() {
        let text = "{ // one\n \"a//b\": \"\\\"/*x*/\", /* two\nlines */ \"c\": 1 /**/ }";
        let plain = without_comments(text).unwrap();
        assert_eq!(plain.chars().count(), text.chars().count());
        assert_eq!(plain.matches('\n').count(), 2);
        let value: serde_json::Value = serde_json::from_str(&plain).unwrap();
        assert_eq!(value, serde_json::json!({"a//b": "\"/*x*/", "c": 1}));
    }

    #[test]
    fn what_does_not_end_is_told_with_its_line() {
        assert_eq!(without_comments("{\n/* x }"), Err("the comment in line 2 does not end".to_owned()));
        for text in ["", "/", "\"", "\"\\", "// x", "{\"a\": 1 / 2}"] {
            let plain = without_comments(text).unwrap();
            assert_eq!(plain.len(), text.len(), "{text:?}");
        }
    }
}
