//! Wrong command lines, as one line with a remedy.

use std::{error::Error as _, ffi::OsString};

use clap::CommandFactory as _;

use crate::{
    args::Cli,
    fail::{Exit, Fail},
};

/// The failure for what the parser refused.
pub fn fail(error: &clap::Error, arguments: &[OsString]) -> Fail {
    let help = format!("see `{} --help`", command_path(arguments));
    if let Some(engine) = error.source().and_then(|source| source.downcast_ref::<straightway::Error>()) {
        return Fail::new(Exit::Usage, engine.kind().name(), engine.to_string(), engine.remedy_text());
    }
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    Fail::usage(said.strip_prefix("error: ").unwrap_or(&said), help)
}

/// The subcommands that the arguments name, behind the program's name.
fn command_path(arguments: &[OsString]) -> String {
    let cli = Cli::command();
    let (mut path, mut command) = (String::from("straightway"), &cli);
    for word in arguments.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(found) = command.find_subcommand(word) {
            path.push(' ');
            path.push_str(word);
            command = found;
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn said(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        fail(&Cli::try_parse_from(&arguments).unwrap_err(), &arguments).to_string()
    }

    #[test]
    fn every_refusal_is_one_line_with_a_remedy() {
        for line in [
            "straightway",
            "straightway frobnicate",
            "straightway bench",
            "straightway cat",
            "straightway cat /a --len 4x",
            "straightway plan gopher://x",
            "straightway plan /a --into tpu0",
            "straightway plan /a --policy fastest",
            "straightway bench read /a --depth 0",
            "straightway bench read /a --size 2g",
            "straightway cp /a",
        ] {
            let text = said(line);
            assert!(!text.contains('\n') && text.contains("; "), "{line}: {text}");
        }
        assert!(said("straightway bench read").contains("straightway bench read --help"));
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_examples() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:\n  straightway "), "{}", sub.get_name());
                check(sub);
            }
        }
        check(&Cli::command());
    }
}
