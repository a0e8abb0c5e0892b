//! The shared library: its names, what it shows, what it needs, and the layout of what passes its edge.

use std::fmt::Write;

use sw_testkit::native::Compiler;

use crate::{LIBRARY, header, scratch};

#[test]
fn it_shows_the_functions_of_the_header_and_nothing_else() {
    if let Some(shown) = LIBRARY.shown() {
        assert_eq!(shown, header::api().functions.into_iter().collect());
    }
}

#[test]
fn its_name_has_a_version_and_it_stays_once_it_is_loaded() {
    let _told = LIBRARY.assert_loads_anywhere_and_stays();
}

/// The layout as the C compiler sees it: a change of a line is a change of the interface.
#[test]
fn the_layout_is_the_committed_one() {
    let api = header::api();
    let mut code = String::from("#include <stdio.h>\n#include <straightway.h>\nint main(void) {\n");
    for prototype in &api.prototypes {
        writeln!(code, "    puts(\"function {prototype}\");").unwrap();
    }
    for name in &api.constants {
        writeln!(code, "    printf(\"constant {name} %lld\\n\", (long long)({name}));").unwrap();
    }
    for (name, fields) in &api.structs {
        writeln!(code, "    printf(\"struct {name} %zu\\n\", sizeof({name}));").unwrap();
        for field in fields {
            let place = format!("offsetof({name}, {field}), sizeof((({name} *)0)->{field})");
            writeln!(code, "    printf(\"field {name}.{field} %zu %zu\\n\", {place});").unwrap();
        }
    }
    code += "    return 0;\n}\n";
    let source = scratch().join("layout.c");
    std::fs::write(&source, code).unwrap();
    let Some(layout) = LIBRARY.compile(&Compiler::c(), &source) else { return };
    let layout = layout.run(&[], &[]);
    crate::same_or_written("abi.txt", &layout);
    no_unnamed_bytes(&layout);
}

/// What lies between fields is not set by anybody, and would be taken for a field by a later version.
fn no_unnamed_bytes(layout: &str) {
    let mut end = (0, 0);
    for line in layout.lines().chain(["struct end 0"]) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        match words[0] {
            "struct" => {
                assert_eq!(end.0, end.1, "bytes without a name before {line}");
                end = (0, number(2));
            }
            "field" => {
                assert_eq!(end.0, number(2), "bytes without a name before {line}");
                end.0 += number(3);
            }
            _ => {}
        }
    }
}
