//! Form of files: length, marks, suppressions, and the one vendor's word that has its own crate.

use std::collections::BTreeMap;

use super::source::{Views, words};
use super::{Finding, Tree, line_of};

/// Lines a file may have. 300 to 600 is the aim; above this it holds more than one concept.
const FILE_LINES_MAX: usize = 800;
/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[
    ("ffi/c/include/straightway.h", "made from the sources of ffi/c; C programs include one file"),
    ("docs/cli-reference.md", "what --help prints for each command, compared by a test"),
];
/// Kinds of files whose length counts.
const COUNTED: &[&str] = &[".rs", ".md", ".py", ".pyi", ".sh", ".c", ".h", ".cu"];
/// Lines a function may have; clippy counts them, this file holds clippy's configuration.
const FUNCTION_LINES_MAX: usize = 70;

/// The word that appears in one backend, in documents and in tests only.
const VENDOR_WORD: &str = "cuda";
/// Directories whose code may say it: the backend, the test kit with its stand-in, developer tools, the command line, which
/// prints it, and the bindings, whose protocols have it in their names.
const VENDOR_DIRS: &[&str] = &["sw-cuda/", "sw-testkit/", "hwtests/", "benches/", "straightway-cli/", "xtask/", "ffi/"];
/// The crate that composes backends; one file of it may say the word.
const COMPOSING_DIR: &str = "straightway/src/";

/// Marks that never ship. `TODO` may, with an issue number.
const FORBIDDEN_MARKS: &[&str] = &["FIXME", "XXX"];

/// Every check of form.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = lengths(tree, LONG_FILES);
    findings.extend(clippy_settings(tree));
    for (path, text) in tree.ending(".rs") {
        findings.extend(rust_file(path, text));
    }
    for (path, text) in tree.ending(".md") {
        findings.extend(marks(path, text, &super::links::prose(text)));
    }
    for suffix in [".toml", ".sh", ".py", ".pyi", ".yml", ".yaml", ".c", ".cu", ".h"] {
        for (path, text) in tree.ending(suffix) {
            findings.extend(marks(path, text, text));
        }
    }
    findings.extend(vendor_word(tree));
    findings
}

fn lengths(tree: &Tree, exceptions: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for suffix in COUNTED {
        for (path, text) in tree.ending(suffix) {
            let lines = text.lines().count();
            if lines > FILE_LINES_MAX && !exceptions.iter().any(|(excepted, _)| *excepted == path) {
                let message = format!("{lines} lines, more than {FILE_LINES_MAX}");
                findings.push(Finding::new(path, FILE_LINES_MAX + 1, message, "split it by concept"));
            }
        }
    }
    for (path, _) in exceptions.iter().filter(|(path, _)| !tree.has(path)) {
        let message = format!("LONG_FILES names {path}, which is not there");
        findings.push(Finding::new("xtask/src/tidy/form.rs", 0, message, "remove the exception"));
    }
    findings
}

/// Function length is clippy's to count; a loosened setting would silence it.
fn clippy_settings(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let setting = tree.text("clippy.toml").unwrap_or_default().lines().find_map(|line| {
        let value = line.strip_prefix("too-many-lines-threshold")?.trim_start().strip_prefix('=')?;
        value.trim().parse::<usize>().ok()
    });
    if setting.is_none_or(|lines| lines > FUNCTION_LINES_MAX) {
        let message = format!("functions are not held to {FUNCTION_LINES_MAX} lines");
        let remedy = format!("set too-many-lines-threshold = {FUNCTION_LINES_MAX}");
        findings.push(Finding::new("clippy.toml", 0, message, remedy));
    }
    let root = tree.text("Cargo.toml").unwrap_or_default();
    let on = |level: &str| root.lines().any(|line| line.trim() == format!("too_many_lines = \"{level}\""));
    if !on("warn") && !on("deny") {
        let message = "clippy's too_many_lines is off";
        findings.push(Finding::new("Cargo.toml", 0, message, "set it to warn in [workspace.lints.clippy]"));
    }
    findings
}

fn rust_file(path: &str, text: &str) -> Vec<Finding> {
    let views = Views::of(text);
    let mut findings = marks(path, text, &super::links::prose(&views.comments));
    for name in ["todo", "unimplemented"] {
        for at in words(&views.code, name) {
            if views.code.get(at + name.len()..).is_some_and(|rest| rest.starts_with('!')) {
                let message = format!("{name}! stands in for code");
                findings.push(Finding::new(path, line_of(text, at), message, "write it, or return a typed error"));
            }
        }
    }
    for at in words(&views.code, "allow") {
        let line = line_of(text, at);
        let head = views.code.get(..at).unwrap_or_default();
        let called = views.code.get(at + "allow".len()..).is_some_and(|rest| rest.trim_start().starts_with('('));
        if called && inside_attribute(head) {
            let remedy = "use #[expect(lint, reason = \"…\")]: it tells when it is no longer needed";
            findings.push(Finding::new(path, line, "a lint is silenced with allow", remedy));
        }
    }
    findings
}

/// Whether the end of `head` stands inside `#[…` or `#![…`.
fn inside_attribute(head: &str) -> bool {
    let Some(start) = head.rfind("#[").max(head.rfind("#![")) else { return false };
    let inside = head.get(start..).unwrap_or_default();
    inside.matches('[').count() > inside.matches(']').count()
}

/// Forbidden marks in `visible`, which has the offsets of `text`.
fn marks(path: &str, text: &str, visible: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mark in FORBIDDEN_MARKS {
        for at in words(visible, mark) {
            let remedy = "fix it, or open an issue and write what holds now";
            findings.push(Finding::new(path, line_of(text, at), format!("mark {mark}"), remedy));
        }
    }
    for at in words(visible, "TODO") {
        let rest = visible.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let issue = rest.split('#').skip(1).any(|tail| tail.starts_with(|c: char| c.is_ascii_digit()));
        if !issue {
            let remedy = "write TODO(#issue): and why it is safe to ship without";
            findings.push(Finding::new(path, line_of(text, at), "mark TODO without an issue number", remedy));
        }
    }
    findings
}

fn vendor_word(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut composing: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, text) in tree.ending(".rs") {
        let is_test = path.contains("/tests/") || path.ends_with("tests.rs");
        if is_test || VENDOR_DIRS.iter().any(|dir| path.starts_with(dir)) {
            continue;
        }
        let spoken = Views::of(text).spoken.to_lowercase();
        // Unit tests at the end of a file are tests.
        let product = spoken.split("#[cfg(test)]").next().unwrap_or_default();
        let Some(at) = product.find(VENDOR_WORD) else { continue };
        // Lower-casing can change lengths outside ASCII, so the line is counted in the text that was searched.
        let line = line_of(&spoken, at);
        if path.starts_with(COMPOSING_DIR) {
            composing.insert(path, line);
        } else {
            let remedy = "say what it can do (device memory, copy engine), not whose it is";
            findings.push(Finding::new(path, line, format!("the word {VENDOR_WORD} outside its backend"), remedy));
        }
    }
    for (path, line) in composing.iter().skip(1) {
        let message = format!("a second module of the facade says {VENDOR_WORD}");
        findings.push(Finding::new(path, *line, message, "keep it in the module that composes the backends"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(findings: Vec<Finding>) -> Vec<String> {
        findings.iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_long_file_is_found_unless_excepted() {
        let text = "x\n".repeat(FILE_LINES_MAX + 1);
        let tree = Tree::of(&[("a/src/a.rs", &text)]);
        assert!(shown(lengths(&tree, &[]))[0].starts_with("a/src/a.rs:801: 801 lines"));
        assert!(lengths(&tree, &[("a/src/a.rs", "generated")]).is_empty());
        assert_eq!(lengths(&tree, &[("a/src/a.rs", "generated"), ("gone.rs", "generated")]).len(), 1);
        let fits = "x\n".repeat(FILE_LINES_MAX);
        assert!(lengths(&Tree::of(&[("a.md", &fits)]), &[]).is_empty());
    }

    #[test]
    fn loosened_clippy_settings_are_found() {
        let root = ("Cargo.toml", "[workspace.lints.clippy]\ntoo_many_lines = \"warn\"\n");
        let good = Tree::of(&[("clippy.toml", "too-many-lines-threshold = 70\n"), root]);
        assert!(clippy_settings(&good).is_empty());
        assert_eq!(clippy_settings(&Tree::of(&[("clippy.toml", "too-many-lines-threshold = 90\n"), root])).len(), 1);
        assert_eq!(clippy_settings(&Tree::of(&[root])).len(), 1);
        let off = ("Cargo.toml", "[workspace.lints.clippy]\ntoo_many_lines = \"allow\"\n");
        assert_eq!(clippy_settings(&Tree::of(&[("clippy.toml", "too-many-lines-threshold = 70\n"), off])).len(), 1);
    }

    #[test]
    fn marks_are_found_in_comments_and_prose() {
        let tree = Tree::of(&[
            ("clippy.toml", "too-many-lines-threshold = 70"),
            ("Cargo.toml", "too_many_lines = \"warn\""),
            (
                "a.rs",
                "let s = \"FIXME\"; // FIXME later\n// TODO: soon\n// TODO(#12): not read on tmpfs, typed error\n",
            ),
            ("b.md", "XXX here, `XXX` there\n```\nFIXME in a listing\n```\n"),
            ("c.sh", "# TODO\n"),
            // Excepted from the limit of lines, so they have to be there.
            ("ffi/c/include/straightway.h", ""),
            ("docs/cli-reference.md", ""),
        ]);
        assert_eq!(
            shown(check(&tree)).iter().map(|f| f.split(';').next().unwrap().to_string()).collect::<Vec<_>>(),
            [
                "a.rs:1: mark FIXME",
                "a.rs:2: mark TODO without an issue number",
                "b.md:1: mark XXX",
                "c.sh:1: mark TODO without an issue number"
            ]
        );
    }

    #[test]
    fn placeholders_for_code_are_found() {
        let found =
            shown(rust_file("a.rs", "fn f() {\n    todo!()\n}\nfn g() { unimplemented!(\"no\") } // todo!()\n"));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a.rs:2: todo!"));
        assert!(found[1].starts_with("a.rs:4: unimplemented!"));
    }

    #[test]
    fn allow_is_found_in_every_form_of_attribute() {
        for attribute in
            ["#[allow(dead_code)]", "#![allow(dead_code)]", "#[cfg_attr(test, allow(dead_code))]", "#[ allow (x)]"]
        {
            assert_eq!(rust_file("a.rs", &format!("{attribute}\nfn f() {{}}\n")).len(), 1, "{attribute}");
        }
        for code in ["#[expect(dead_code, reason = \"r\")]", "policy.allow(x)", "#[test] fn allow(x: u8) {}"] {
            assert!(rust_file("a.rs", code).is_empty(), "{code}");
        }
    }

    #[test]
    fn the_vendor_word_is_found_outside_its_places() {
        let word = "fn open_cuda() {}";
        let find = |files: &[(&str, &str)]| shown(vendor_word(&Tree::of(files)));
        assert!(
            find(&[("sw-engine/src/a.rs", "\n// CUDA is fine in a comment\nconst N: &str = \"CUDA\";")])[0]
                .starts_with("sw-engine/src/a.rs:3: the word")
        );
        assert!(find(&[("sw-cuda/src/a.rs", word), ("sw-engine/tests/a.rs", word)]).is_empty());
        assert!(find(&[("sw-engine/src/a.rs", "fn f() {}\n#[cfg(test)]\nmod tests { fn cuda() {} }")]).is_empty());
        assert!(find(&[("straightway/src/compose.rs", word)]).is_empty());
        let two = find(&[("straightway/src/compose.rs", word), ("straightway/src/other.rs", word)]);
        assert!(two.len() == 1 && two[0].starts_with("straightway/src/other.rs:1: a second module"), "{two:?}");
    }
}
