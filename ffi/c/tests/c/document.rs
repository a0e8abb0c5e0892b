//! `docs/c-api.md`: what it shows is what is tested, and it names every function.

use crate::{LIBRARY, header};

const PAGE: &str = include_str!("../../../../docs/c-api.md");

/// Blocks of code of a language.
fn blocks(language: &str) -> Vec<&str> {
    let start = format!("```{language}\n");
    PAGE.split(start.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn without_indent(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn its_code_is_from_programs_that_are_tested() {
    let programs =
        ["examples", "tests/c/programs"].iter().flat_map(|dir| std::fs::read_dir(LIBRARY.in_package(dir)).unwrap());
    let programs: Vec<String> =
        programs.map(|entry| without_indent(&std::fs::read_to_string(entry.unwrap().path()).unwrap())).collect();
    let shown: Vec<&str> = blocks("c").into_iter().chain(blocks("cpp")).chain(blocks("cmake")).collect();
    assert!(shown.len() >= 4, "{}", shown.len());
    for block in shown {
        let block = without_indent(block);
        assert!(programs.iter().any(|program| program.contains(&block)), "in no program:\n{block}");
    }
}

#[test]
fn it_names_every_function_and_every_status() {
    let api = header::api();
    let names = api.functions.iter().chain(api.constants.iter().filter(|name| name.starts_with("SW_ERR_")));
    let missing: Vec<&String> = names.filter(|name| !PAGE.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
