//! Live state as a tree, for the command line, the error report and the message of a failed test.

use core::fmt;

/// A named value with parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// What it is.
    pub name: String,
    /// Its value; empty for a mere group.
    pub value: String,
    /// Its parts.
    pub parts: Vec<Tree>,
}

impl Tree {
    /// A leaf.
    pub fn leaf(name: impl Into<String>, value: impl fmt::Display) -> Self {
        Self { name: name.into(), value: value.to_string(), parts: Vec::new() }
    }

    /// A group.
    pub fn group(name: impl Into<String>, parts: Vec<Tree>) -> Self {
        Self { name: name.into(), value: String::new(), parts }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        writeln!(
            f,
            "{:indent$}{}{}{}",
            "",
            self.name,
            if self.value.is_empty() { "" } else { ": " },
            self.value,
            indent = depth * 2
        )?;
        self.parts.iter().try_for_each(|part| part.write(f, depth + 1))
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}
