//! Our cufile.h beside the official one: every constant is there and has the same number, every type has the same size, and one
//! program (the suite itself) compiles against both.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use super::fetch::Real;
use super::{Bench, words};
use crate::Stop;
use crate::proc::{Echo, Job};

/// Names of the official header that are no constants: macros with arguments, and one that is a list.
const NO_CONSTANTS: [&str; 5] =
    ["CUFILE_OP", "CUFILE_ERRSTR", "CU_FILE_CUDA_ERR", "CUFILEOP_STATUS_ENTRIES", "CUFILE_H"];

/// What differs.
///
/// # Errors
/// The compiler cannot be started, or refuses the official header.
pub fn findings(bench: &Bench<'_>, real: &Real, suite: &[String]) -> Result<Vec<String>, Stop> {
    let own = bench.place.root.join("ffi/cufile/include");
    let names = names(&text_of(bench, &real.include)?);
    let official = numbers(bench, &real.include, &names, "official")?;
    let ours = match numbers(bench, &own, &names, "ours") {
        Ok(ours) => ours,
        Err(_) => {
            return Ok(vec!["our cufile.h lacks names of the official one; see what the compiler said above".into()]);
        }
    };
    let pairs = official.iter().zip(&ours).filter(|(official, ours)| official != ours);
    let mut found: Vec<String> =
        pairs.map(|(official, ours)| format!("our cufile.h: {ours}; the official one: {official}")).collect();
    let mut args = words("-std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -fsyntax-only -I");
    args.push(own.display().to_string());
    args.extend_from_slice(suite);
    if bench.compile(&args).is_err() {
        found.push("the suite does not compile against our cufile.h".into());
    }
    Ok(found)
}

/// The header after the preprocessor, with its macros, without what it includes.
fn text_of(bench: &Bench<'_>, include: &Path) -> Result<Vec<String>, Stop> {
    let header = include.join("cufile.h").display().to_string();
    let args = [words("-E -dD -D_GNU_SOURCE -I"), vec![include.display().to_string(), header.clone()]].concat();
    let outcome = Job::program(bench.place, Path::new("cc"), &args).echo(Echo::Hidden).run()?;
    if !outcome.ok() {
        return Err(Stop::new(format!("cc -E {header} failed"), "run it by hand"));
    }
    let mut inside = false;
    let mut lines = Vec::new();
    for line in outcome.lines {
        // `# LINE "FILE"` says where what follows is from.
        if line.starts_with("# ") {
            inside = line.contains(&header);
        } else if inside {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Constants and types in the text of a header.
fn names(lines: &[String]) -> BTreeSet<String> {
    let is_name = |word: &&str| word.starts_with("CU_FILE_") || word.starts_with("CUFILE") || is_type(word);
    let all = lines.iter().flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let wanted = all.filter(is_name).filter(|word| !NO_CONSTANTS.contains(word));
    // Of an enumeration both its tag and its type are named; the type is what programs use.
    wanted
        .filter(|word| is_type(word) || word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .map(String::from)
        .collect()
}

fn is_type(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    lower.starts_with("cufile") && word.ends_with("_t") && !word.ends_with("_enum")
}

/// A line with name and number, or size, for each.
fn numbers(bench: &Bench<'_>, include: &Path, names: &BTreeSet<String>, called: &str) -> Result<Vec<String>, Stop> {
    let mut code = String::from("#include <stdio.h>\n#include <cufile.h>\nint main(void) {\n");
    for name in names {
        let number = if is_type(name) { format!("sizeof({name})") } else { name.clone() };
        let _infallible = writeln!(code, "    printf(\"{name} %lld\\n\", (long long)({number}));");
    }
    code.push_str("    return 0;\n}\n");
    let source = bench.write(&format!("header-{called}.c"), &code)?;
    let program = bench.run.join(format!("header-{called}"));
    let mut args = words("-std=gnu11 -D_GNU_SOURCE -w -I");
    args.extend([
        include.display().to_string(),
        source.display().to_string(),
        "-o".into(),
        program.display().to_string(),
    ]);
    bench.compile(&args)?;
    Ok(Job::program(bench.place, &program, &[]).echo(Echo::Hidden).run()?.lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_types_are_found_in_a_header() {
        let text = "typedef enum CUfileX { CU_FILE_A = 0, CUFILE_B } CUfileX_t;\n#define CUFILE_OP(a) a\nint cuFileRead(CUfileX_t x);";
        let lines: Vec<String> = text.lines().map(String::from).collect();
        assert_eq!(names(&lines).into_iter().collect::<Vec<_>>(), ["CUFILE_B", "CU_FILE_A", "CUfileX_t"]);
    }
}
