//! Licences of third-party crates: an expression passes if what it allows us to choose is on the list.

use super::Finding;
use super::workspace::Workspace;

/// Permissive licences that may be linked into an Apache-2.0 work without further duties than notice.
const ALLOWED: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
    "0BSD",
    "BSL-1.0",
];
/// Exceptions that only widen what a licence allows.
const ALLOWED_EXCEPTIONS: &[&str] = &["LLVM-exception"];

/// Checks every package that is not of this workspace.
pub fn check(everything: &Workspace) -> Vec<Finding> {
    let refused = everything.packages.iter().filter(|package| package.third_party).filter_map(|package| {
        let why = match package.licence.as_deref() {
            None => "states no licence expression".to_string(),
            Some(expression) if passes(expression) => return None,
            Some(expression) => format!("is under {expression}"),
        };
        let remedy = "choose another crate, or add the licence to xtask/src/tidy/licences.rs after reading it";
        Some(Finding::new("Cargo.lock", 0, format!("{} {why}", package.name), remedy))
    });
    refused.collect()
}

/// Evaluates an SPDX expression (SPDX 2.3 annex D "SPDX license expressions"): OR lets us choose, AND binds to both.
/// A slash is the old manifest form of OR. What does not parse does not pass.
fn passes(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens, depth: 0 };
    parser.any() == Some(true) && parser.tokens.is_empty()
}

/// Parentheses inside each other; real expressions have two at most.
const DEPTH_MAX: usize = 16;

struct Parser<'a> {
    tokens: &'a [&'a str],
    depth: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn eat(&mut self, word: &str) -> bool {
        let there = self.tokens.first() == Some(&word);
        if there {
            self.tokens = self.tokens.get(1..).unwrap_or_default();
        }
        there
    }

    fn any(&mut self) -> Option<bool> {
        let mut allowed = self.all()?;
        while self.eat("OR") {
            allowed |= self.all()?;
        }
        Some(allowed)
    }

    fn all(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.eat("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        let name = self.next()?;
        if name == "(" {
            self.depth += 1;
            let allowed = (self.depth <= DEPTH_MAX).then(|| self.any()).flatten()?;
            self.depth -= 1;
            return self.eat(")").then_some(allowed);
        }
        let mut allowed = ALLOWED.contains(&name);
        if self.eat("WITH") {
            allowed &= ALLOWED_EXCEPTIONS.contains(&self.next()?);
        }
        Some(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::workspace::Package;
    use super::*;

    #[test]
    fn choices_and_duties() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(passes(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MPL-2.0",
            "MIT OR",
            "(MIT",
            "MIT MIT",
            "Apache-2.0 WITH Strange-exception",
        ] {
            assert!(!passes(bad), "{bad}");
        }
        assert!(!passes(&"(".repeat(10_000)));
    }

    #[test]
    fn a_crate_under_another_licence_is_found() {
        let package = |name: &str, licence: Option<&str>, third_party| Package {
            name: name.into(),
            licence: licence.map(String::from),
            third_party,
            ..Package::default()
        };
        let packages = vec![
            package("good", Some("MIT"), true),
            package("copyleft", Some("GPL-2.0-only"), true),
            package("silent", None, true),
            package("ours", None, false),
        ];
        let found: Vec<_> = check(&Workspace { packages }).iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("Cargo.lock:1: copyleft is under GPL-2.0-only;"), "{found:?}");
        assert!(found[1].starts_with("Cargo.lock:1: silent states no licence"), "{found:?}");
    }
}
