//! The record of a run: one JSON document a guest, and one of the whole where all guests of a group were wanted, in
//! `target/vm/records`, and in `hwtests/records` when asked for.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::packages;
use super::spent::Spent;
use super::wire::{End, Test};
use super::{Row, Steps, Verdict};
use crate::{Place, Stop};

/// Changes when a field changes its meaning.
const SCHEMA: &str = "straightway-vm/1";
/// Of the whole.
const RUN_SCHEMA: &str = "straightway-vm-run/1";
/// What the whole of a group may take on a fresh machine, downloads included: 12 minutes.
pub const RUN_LIMIT_S: f64 = 720.0;

/// What is the same for every guest of a run.
#[derive(Debug)]
pub struct Setting {
    pub date: String,
    pub commit: String,
    pub qemu: String,
    pub cpu: String,
}

impl Setting {
    /// Asks the clock, git, QEMU and the processor. What does not answer is "unknown".
    pub fn find(place: &Place, qemu_version: &str) -> Setting {
        let ask = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).current_dir(&place.root).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_string()).filter(|_| output.status.success())
        };
        let unknown = || "unknown".to_string();
        let mut commit = ask("git", &["rev-parse", "HEAD"]).unwrap_or_else(unknown);
        if ask("git", &["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty()) {
            commit.push_str(" with changes");
        }
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
        Setting {
            date: ask("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_else(unknown),
            commit,
            qemu: qemu_version.to_string(),
            cpu: model.map_or_else(unknown, String::from),
        }
    }
}

/// Writes a row's record and gives its path.
///
/// # Errors
/// The directory cannot be written.
pub fn write(folder: &Path, setting: &Setting, row: &Row) -> Result<PathBuf, Stop> {
    packages::make_dir(folder)?;
    let path = folder.join(format!("vm-{}.json", row.boot.name));
    let document = json!({
        "schema": SCHEMA,
        "suite": row.boot.name,
        "why": row.boot.why,
        "date": setting.date,
        "commit": setting.commit,
        "emulator": setting.qemu,
        "accelerator": "tcg",
        "host_cpu": setting.cpu,
        "kernel": row.release,
        "iommu": format!("{:?}", row.boot.iommu).to_lowercase(),
        "devices": row.boot.devices.iter().map(|device| device.name()).collect::<Vec<_>>(),
        "wall_s": rounded(row.spent.wall_s),
        "cpu_s": rounded(row.spent.cpu_s),
        "verdict": row.verdict.word(),
        "reasons": row.verdict.reasons(),
        "guests": row.outcomes.iter().map(|outcome| json!({
            "ended": format!("{:?}", outcome.ended),
            "init_after_s": outcome.up_s,
            "tests_ended_after_s": outcome.end_s,
            "wall_s": rounded(outcome.wall.as_secs_f64()),
            "requests": outcome.requests,
        })).collect::<Vec<_>>(),
        "tests": row.tests().map(test).collect::<Vec<_>>(),
        "facts": row.outcomes.iter().flat_map(|outcome| &outcome.facts)
            .map(|(test, value)| json!({"test": test, "value": value})).collect::<Vec<_>>(),
        "kernel_log_lines": row.outcomes.iter().map(|outcome| outcome.kernel_log.len()).sum::<usize>(),
    });
    let text = serde_json::to_string_pretty(&document)
        .map_err(|error| Stop::new(format!("the record is no JSON ({error})"), "see xtask/src/vm/record.rs"))?;
    packages::write(&path, format!("{text}\n").as_bytes())?;
    Ok(path)
}

/// Writes the record of all guests of a group, which took what is told beside the steps before them.
///
/// # Errors
/// The directory cannot be written.
pub fn write_run(
    folder: &Path,
    setting: &Setting,
    group: &str,
    took: (&Steps, Spent),
    rows: &[Row],
) -> Result<PathBuf, Stop> {
    packages::make_dir(folder)?;
    let path = folder.join(format!("run-{group}.json"));
    let text = serde_json::to_string_pretty(&run(setting, group, took, rows))
        .map_err(|error| Stop::new(format!("the record is no JSON ({error})"), "see xtask/src/vm/record.rs"))?;
    packages::write(&path, format!("{text}\n").as_bytes())?;
    Ok(path)
}

fn run(setting: &Setting, group: &str, (steps, all): (&Steps, Spent), rows: &[Row]) -> Value {
    let skipped = rows.iter().filter(|row| matches!(row.verdict, Verdict::Skipped(_)));
    json!({
        "schema": RUN_SCHEMA,
        "group": group,
        "date": setting.date,
        "commit": setting.commit,
        "emulator": setting.qemu,
        "host_cpu": setting.cpu,
        "wall_s": rounded(all.wall_s),
        "cpu_s": rounded(all.cpu_s),
        "others_cpu_s": rounded(all.others_cpu_s),
        "limit_s": RUN_LIMIT_S,
        "within_limit": all.wall_s <= RUN_LIMIT_S,
        // Nearly nothing where it was there already.
        "made_ready": steps.taken.iter().map(|(name, spent)| json!({
            "what": name, "wall_s": rounded(spent.wall_s), "cpu_s": rounded(spent.cpu_s),
        })).collect::<Vec<_>>(),
        "rows": rows.iter().map(|row| json!({
            "suite": row.boot.name,
            "verdict": row.verdict.word(),
            "wall_s": rounded(row.spent.wall_s),
            "passed": row.count(End::Ok),
            "skipped": row.count(End::Skip),
        })).collect::<Vec<_>>(),
        "rows_skipped": skipped.map(|row| json!({"suite": row.boot.name, "reasons": row.verdict.reasons()}))
            .collect::<Vec<_>>(),
    })
}

fn test(test: &Test) -> Value {
    let mut value = json!({"name": test.name, "end": test.end.word(), "seconds": test.seconds});
    if !test.reason.is_empty() {
        value["reason"] = json!(test.reason);
    }
    value
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::super::boots::BOOTS;
    use super::*;

    fn row(at: usize, verdict: Verdict, wall_s: f64) -> Row {
        let spent = Spent { wall_s, cpu_s: 1.0, others_cpu_s: 0.0 };
        Row { boot: &BOOTS[at], release: String::new(), outcomes: Vec::new(), verdict, spent }
    }

    #[test]
    fn a_run_tells_its_total_against_the_limit_and_what_it_left_out() {
        let unknown = || "unknown".to_string();
        let setting = Setting { date: unknown(), commit: unknown(), qemu: unknown(), cpu: unknown() };
        let mut steps = Steps::new();
        steps.taken.push(("QEMU".to_string(), Spent { wall_s: 20.0, cpu_s: 2.0, others_cpu_s: 0.0 }));
        let took = |wall_s| (&steps, Spent { wall_s, cpu_s: 3.0, others_cpu_s: 4.0 });
        let rows = [row(0, Verdict::Passed, 699.0), row(1, Verdict::Skipped("no kernel".to_string()), 1.0)];
        let told = run(&setting, "nvme", took(720.0), &rows);
        assert_eq!((&told["wall_s"], &told["within_limit"]), (&json!(720.0), &json!(true)));
        assert_eq!(told["rows_skipped"], json!([{"suite": BOOTS[1].name, "reasons": ["no kernel"]}]));
        assert_eq!(told["rows"].as_array().map(Vec::len), Some(2));
        let late = run(&setting, "nvme", took(720.2), &[row(0, Verdict::Passed, 700.2)]);
        assert_eq!((&late["wall_s"], &late["within_limit"]), (&json!(720.2), &json!(false)));
    }
}
