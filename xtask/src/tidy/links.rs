//! Relative links of Markdown files: the target exists, and so does the heading that an anchor names.
//!
//! Links to other hosts are not followed: a test must not depend on them. Anchors are GitHub's: the heading in lower
//! case, punctuation dropped, spaces as hyphens, a number behind a repeated one.

use super::{Finding, Tree, line_of};

/// Checks every `*.md`.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".md") {
        for (at, target) in targets(&prose(text)) {
            if let Some(message) = broken(tree, path, &target) {
                findings.push(Finding::new(path, line_of(text, at), message, "correct the link or add its target"));
            }
        }
    }
    findings
}

/// The text with fenced listings and code spans blanked; offsets and line ends stay.
pub fn prose(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut fence: Option<&str> = None;
    for line in text.split_inclusive('\n') {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        let blank = fence.is_some() || mark.is_some();
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            _ => {}
        }
        if blank {
            out.extend(line.chars().map(|c| if c == '\n' { "\n".to_string() } else { " ".repeat(c.len_utf8()) }));
        } else {
            blank_spans(line, &mut out);
        }
    }
    out
}

/// Appends `line` with `` `code` `` blanked. A span that does not end in its line is left as it is.
fn blank_spans(line: &str, out: &mut String) {
    let mut rest = line;
    while let Some(open) = rest.find('`') {
        let (before, tail) = rest.split_at(open);
        let ticks = tail.chars().take_while(|c| *c == '`').count();
        let (marker, body) = tail.split_at(ticks);
        let Some(close) = body.find(marker) else { break };
        out.push_str(before);
        out.push_str(&" ".repeat(2 * ticks + close));
        rest = body.get(close + ticks..).unwrap_or_default();
    }
    out.push_str(rest);
}

/// Link targets with the offset of each: `[text](target "title")` and `[name]: target`.
fn targets(prose: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in prose.match_indices("](") {
        let rest = prose.get(at + 2..).unwrap_or_default();
        if let Some(end) = rest.find(')') {
            found.push((at, first_word(rest.get(..end).unwrap_or_default())));
        }
    }
    let mut at = 0;
    for line in prose.split_inclusive('\n') {
        if line.starts_with('[')
            && let Some((_, target)) = line.split_once("]:")
        {
            found.push((at, first_word(target)));
        }
        at += line.len();
    }
    found
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']).to_string()
}

/// Why a link of the file `from` leads nowhere, or nothing.
fn broken(tree: &Tree, from: &str, target: &str) -> Option<String> {
    if target.is_empty() {
        return Some("a link without a target".to_string());
    }
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let path = if file.is_empty() { from.to_string() } else { resolve(from, file)? };
    if !tree.has(&path) {
        return Some(format!("link to {target}, and {path} does not exist"));
    }
    let anchor = anchor.filter(|_| path.ends_with(".md"))?;
    let text = tree.text(&path).unwrap_or_default();
    (!anchors(text).iter().any(|known| known == anchor))
        .then(|| format!("link to {target}, and no heading gives #{anchor}"))
}

/// `file` as seen from the directory of `from`, relative to the root. A path that leaves the tree stays as written,
/// which exists nowhere.
fn resolve(from: &str, file: &str) -> Option<String> {
    let mut parts: Vec<&str> = match file.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => from.rsplit_once('/').map_or(Vec::new(), |(dir, _)| dir.split('/').collect()),
    };
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => return Some(file.to_string()),
            ".." => {}
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Anchors of all headings, in order.
fn anchors(text: &str) -> Vec<String> {
    let visible = prose(text);
    let mut found: Vec<String> = Vec::new();
    for (line, masked) in text.lines().zip(visible.lines()) {
        let level = masked.chars().take_while(|c| *c == '#').count();
        if !(1..=6).contains(&level) || !masked.chars().nth(level).is_some_and(char::is_whitespace) {
            continue;
        }
        let slug = slug(line.get(level..).unwrap_or_default().trim());
        let repeats = (0..).find(|n| !found.contains(&numbered(&slug, *n))).unwrap_or_default();
        found.push(numbered(&slug, repeats));
    }
    found
}

fn numbered(slug: &str, repeats: usize) -> String {
    if repeats == 0 { slug.to_string() } else { format!("{slug}-{repeats}") }
}

fn slug(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::of(files)).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_missing_file_is_found_on_its_line() {
        let found = found(&[("docs/a.md", "text\n[b](b.md)\n")]);
        assert_eq!(
            found,
            ["docs/a.md:2: link to b.md, and docs/b.md does not exist; correct the link or add its target"]
        );
    }

    #[test]
    fn a_missing_heading_is_found() {
        let b = ("docs/b.md", "# The title\n\n## Life of a `read`, twice\n\n## Again\n\n## Again\n");
        let good =
            "[x](b.md#life-of-a-read-twice) [y](b.md#again-1) [z](../README.md) [here](#own) [d](/docs)\n# Own\n";
        assert!(found(&[("docs/a.md", good), b, ("README.md", "")]).is_empty());
        let bad = found(&[("docs/a.md", "[x](b.md#life-of-a-write) [y](#nowhere) [z](b.md#again-2)"), b]);
        assert_eq!(bad.len(), 3, "{bad:?}");
    }

    #[test]
    fn reference_definitions_and_titles_are_links_too() {
        assert_eq!(found(&[("a.md", "[one]: gone.md\n[two](also-gone.md \"title\")\n[three](<third.md>)")]).len(), 3);
    }

    #[test]
    fn code_and_other_hosts_are_not_followed() {
        let text = "`[a](gone.md)` and [b](https://example.org/x)\n```\n[c](gone.md)\n```\n[m](mailto:a@example.org)\n";
        assert!(found(&[("a.md", text)]).is_empty());
        assert_eq!(found(&[("a.md", &format!("{text}[d](gone.md)"))]).len(), 1);
    }

    #[test]
    fn a_link_out_of_the_tree_is_found() {
        assert_eq!(found(&[("docs/a.md", "[x](../../other/file.md)")]).len(), 1);
    }

    #[test]
    fn a_heading_in_a_listing_is_no_heading() {
        assert_eq!(anchors("# One\n```\n# two\n```\n#three\n"), ["one"]);
    }
}
