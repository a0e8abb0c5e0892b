//! The document that `cargo xtask cufile --write` makes of the rows.

use std::fmt::Write;

use super::compare::{Column, Explained, Row, Rows, Verdict};
use super::fetch;

/// The whole document. It holds nothing of the machine or the time: what changed is a change of a library or of the suite.
pub fn render(rows: &Rows, explained: &Explained) -> String {
    let mut text = head();
    counts(&mut text, rows);
    differences(&mut text, rows, explained);
    cases(&mut text, rows);
    text
}

fn head() -> String {
    format!(
        "# Conformance of libcufile.so.0

Made by `cargo xtask cufile --write`, compared in every test run; not written by hand. One suite in C
(`ffi/cufile/conformance`), compiled against the official header, loads the library under test by its path: NVIDIA's own of
cuFile {} from the package index, and ours ([cufile.md](cufile.md)). Each case is a process of its own, so a crash or a hang is a
result. Cases come from the documentation, or from what NVIDIA's library was observed to do; both are named.

NVIDIA's library runs without a GPU, on host memory, in its compatibility mode, behind a small preload (`oracle.c` there) that
gives it an empty `/proc/modules` and a record of udev, without which its versions hang or refuse every file. For GPU memory both
run on the project's stand-in driver, which keeps device memory in host memory: that proves logic, never hardware. On a machine
with a GPU: `cargo xtask cufile --gpu`. There is no record of that yet.

",
        fetch::real_version()
    )
}

fn counts(text: &mut String, rows: &Rows) {
    text.push_str("| Library | Cases | Pass | Fail |\n|---|---|---|---|\n");
    for column in Column::ALL {
        let [pass, fail, skip] =
            [Verdict::Pass, Verdict::Fail, Verdict::Skip].map(|verdict| rows.count(column, verdict));
        let _infallible = writeln!(text, "| {} | {} | {pass} | {fail} |", column.title(), pass + fail + skip);
    }
}

fn differences(text: &mut String, rows: &Rows, explained: &Explained) {
    text.push_str(
        "\n## Differences, case by case\n\nWhat one library told and the other did not. Numbers of four digits are cuFile's codes.\n\n\
         | Case | Rule | NVIDIA's | Ours | Why |\n|---|---|---|---|---|\n",
    );
    for (name, row) in &rows.0 {
        let pairs = row.differences();
        if pairs.is_empty() {
            continue;
        }
        let [real, ours] = [0, 1].map(|side| {
            let told: Vec<&str> =
                pairs.iter().map(|pair| if side == 0 { pair.0.as_str() } else { pair.1.as_str() }).collect();
            cell(&if told.windows(2).all(|two| two.first() == two.last()) {
                told.first().copied().unwrap_or_default().to_string()
            } else {
                told.join("; in GPU memory: ")
            })
        });
        let why = cell(explained.why(name).unwrap_or("**not explained**"));
        let _infallible = writeln!(text, "| `{name}` | {} | {real} | {ours} | {why} |", cell(&row.rule));
    }
}

fn cases(text: &mut String, rows: &Rows) {
    text.push_str(
        "\n## All cases\n\nP: pass, F: fail, S: skipped, –: not a case of that memory. In this order: NVIDIA's and ours in host memory, \
         NVIDIA's and ours in GPU memory.\n\n| Case | Rule | Source | |\n|---|---|---|---|\n",
    );
    for (name, row) in &rows.0 {
        let _infallible = writeln!(text, "| `{name}` | {} | {} | {} |", cell(&row.rule), cell(&row.source), marks(row));
    }
}

fn marks(row: &Row) -> String {
    let mark = |column: &Column| match row.cells.get(column).map(|cell| cell.verdict) {
        None => "–",
        Some(Verdict::Pass) => "P",
        Some(Verdict::Fail) => "F",
        Some(Verdict::Skip) => "S",
    };
    Column::ALL.iter().map(mark).collect::<Vec<_>>().join(" ")
}

/// As a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_and_its_explanation_are_in_the_document() {
        let mut rows = Rows::default();
        for (column, answer) in [(Column::RealHost, "5006"), (Column::OursHost, "5024"), (Column::OursDevice, "5024")] {
            rows.take(column, &[format!("case\ta.b\tPASS\tobserved: x\ta|rule\tend {answer}\t\tend")]).unwrap();
        }
        let text = render(&rows, &Explained::read("a.b\n    one reason").unwrap());
        assert!(text.contains("| `a.b` | a\\|rule | end 5006 | end 5024 | one reason |"), "{text}");
        assert!(text.contains("| `a.b` | a\\|rule | observed: x | P P – P |"), "{text}");
        assert!(text.contains("| ours, GPU memory | 1 | 1 | 0 |"), "{text}");
        let text = render(&rows, &Explained::default());
        assert!(text.contains("**not explained**"), "{text}");
    }
}
