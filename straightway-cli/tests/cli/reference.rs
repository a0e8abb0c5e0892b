//! `docs/cli-reference.md` is what `--help` prints.

use crate::support::Scratch;

/// The page, next to the sources.
const PAGE: &str = include_str!("../../../docs/cli-reference.md");

/// Every command, as the page orders them.
const COMMANDS: [&str; 32] = [
    "",
    "demo",
    "doctor",
    "topology",
    "plan",
    "ls",
    "stat",
    "cat",
    "cache",
    "cache status",
    "cache warm",
    "cache evict",
    "cp",
    "load",
    "checkpoint",
    "checkpoint show",
    "checkpoint verify",
    "checkpoint diff",
    "checkpoint convert",
    "checkpoint clean",
    "bench",
    "bench read",
    "bench write",
    "nvme",
    "nvme discover",
    "nvme gen-dhchap-key",
    "nvme gen-tls-key",
    "target",
    "agent",
    "agent serve",
    "hwtest",
    "completions",
];

#[test]
fn the_reference_page_is_the_help_of_every_command() {
    let scratch = Scratch::new();
    let mut page = String::from(
        "# Command reference\n\nWhat `--help` prints, for each command. `cargo test -p straightway-cli` compares this page \
         with it, and\nwrites a fresh one when they differ. What the words mean: [the command line](cli.md).\n",
    );
    for command in COMMANDS {
        let arguments: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
        let help = scratch.run(&arguments).ok();
        let title = format!("straightway {command}");
        let lines = help.text().lines().map(|line| format!("    {line}").trim_end().to_owned() + "\n");
        page.push_str(&format!("\n## {}\n\n{}", title.trim_end(), lines.collect::<String>()));
    }
    if page != PAGE {
        let fresh = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-reference.md");
        std::fs::write(&fresh, &page).unwrap();
        panic!("docs/cli-reference.md is not what --help prints; copy {} over it", fresh.display());
    }
}
