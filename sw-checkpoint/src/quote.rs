//! Names from outside, made safe to print.
//!
//! A tensor or shard name comes from a file. Printed as it is, it could move the cursor of the operator's terminal or
//! fill the log; in errors it is quoted, escaped and cut.

use std::fmt;

/// Longest prefix of a name that an error prints, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// Displays a name in double quotes, control characters escaped, cut after 120 characters.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for (shown, c) in self.0.chars().enumerate() {
            if shown == SHOWN_CHARS_MAX {
                return write!(f, "…\" ({} bytes)", self.0.len());
            }
            write!(f, "{}", c.escape_debug())?;
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_control_characters_and_cuts() {
        assert_eq!(Quoted("a\u{1b}[2Jb\n").to_string(), "\"a\\u{1b}[2Jb\\n\"");
        let long = "x".repeat(5_000);
        let shown = Quoted(&long).to_string();
        assert!(shown.len() < 200, "{}", shown.len());
        assert!(shown.ends_with("(5000 bytes)"), "{shown}");
    }
}
