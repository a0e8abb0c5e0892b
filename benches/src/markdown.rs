//! The report as people read it.

use std::fmt::Write;

use crate::report::{Case, Goal, Metric, Report, Side};

/// Columns of a case's table: metric, heading, divisor.
const COLUMNS: &[(Metric, &str, f64)] = &[
    (Metric::OpsPerSecond, "k op/s", 1e3),
    (Metric::BytesPerSecond, "GiB/s", 1_073_741_824.0),
    (Metric::Seconds, "wall s", 1.0),
    (Metric::CpuSeconds, "CPU s", 1.0),
    (Metric::CpuMicrosPerOp, "CPU µs/op", 1.0),
];

/// The whole report.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# Benchmarks, {} size, {}\n", report.size, report.started);
    let _ = writeln!(out, "- command: `{}`", report.command.join(" "));
    let _ = writeln!(out, "- commit: {}, seed {}, {} rounds", report.commit, report.seed, report.rounds);
    let _ = writeln!(
        out,
        "- machine: {} CPUs {}, {} MiB, hypervisor {}, kernel {}, huge pages {}, load {} at the start",
        machine.cpus,
        machine.cpu,
        machine.memory_mib,
        machine.hypervisor,
        machine.kernel,
        machine.huge_pages,
        machine.load_1min
    );
    let queue: Vec<String> = machine.queue.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let _ = writeln!(out, "- storage: {} ({})", machine.storage, queue.join(", "));
    let tools: Vec<String> = report.tools.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let _ = writeln!(out, "- tools: {}", tools.join(", "));
    out.push_str(
        "\nMedians over the rounds; sides took turns inside a round, so ratios are taken there. CPU is user and system time of the job.\n",
    );
    for case in &report.cases {
        render_case(&mut out, case);
    }
    out
}

fn render_case(out: &mut String, case: &Case) {
    let _ = writeln!(out, "\n## {}\n\n{}\n", case.name, case.what);
    out.push_str("| side | own memory |");
    COLUMNS.iter().for_each(|(_, heading, _)| out.push_str(&format!(" {heading} |")));
    out.push_str(" minor faults | peak MiB |\n|---|---|");
    out.push_str(&"---|".repeat(COLUMNS.len() + 2));
    out.push('\n');
    for side in &case.sides {
        render_side(out, side);
    }
    let paths = case.sides.iter().filter_map(|side| Some((side, side.samples.last()?.path.as_ref()?)));
    for (side, path) in paths {
        let _ = writeln!(out, "\nPath of {}: `{path}`", side.name);
    }
    if !case.goals.is_empty() {
        out.push_str("\n| goal | of | against | bound | median | rounds | held |\n|---|---|---|---|---|---|---|\n");
    }
    case.goals.iter().for_each(|goal| render_goal(out, goal));
}

fn render_side(out: &mut String, side: &Side) {
    let own = match side.own_memory {
        Some(true) => "yes",
        Some(false) => "no",
        None => "–",
    };
    if let Some(reason) = &side.absent {
        let _ = writeln!(out, "| {} | {own} | absent: {} |", side.name, reason.replace('|', "/"));
        return;
    }
    let _ = write!(out, "| {} | {own} |", side.name);
    for (metric, _, divisor) in COLUMNS {
        let cell = side.median(*metric).map_or("–".to_owned(), |value| figures(value / divisor));
        let _ = write!(out, " {cell} |");
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of one run stay far below 2^52")]
    let median = |pick: fn(&crate::report::Sample) -> u64| {
        let values = side.samples.iter().map(|sample| pick(sample) as f64).collect();
        crate::report::median(values).unwrap_or(0.0)
    };
    let faults = median(|sample| sample.minor_faults);
    let _ = writeln!(out, " {faults:.0} | {:.0} |", median(|sample| sample.peak_rss_bytes) / 1_048_576.0);
}

fn render_goal(out: &mut String, goal: &Goal) {
    let rounds: Vec<String> = goal.rounds.iter().map(|value| figures(*value)).collect();
    let held = match goal.held {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "not measured",
    };
    let _ = writeln!(
        out,
        "| {} | {} | {} | {} | {} | {} | {held} |",
        goal.text,
        goal.of,
        goal.against.as_deref().unwrap_or("–"),
        goal.bound.text(),
        goal.median.map_or("–".to_owned(), figures),
        rounds.join(" ")
    );
}

/// Three digits that count, without an exponent.
pub(crate) fn figures(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
