//! The shared library: its names, what it shows, what it needs, and the layout of what passes its edge.

use std::{
    fmt::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{header, program, scratch};

/// The shared library as cargo leaves it beside this program.
pub(crate) fn built() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let path = deps.join("libstraightway_c.so");
    assert!(path.exists(), "{} is not there", path.display());
    path
}

/// A directory in which the library has its names, as an installation would have them.
pub(crate) fn staged() -> &'static Path {
    static STAGED: OnceLock<PathBuf> = OnceLock::new();
    STAGED.get_or_init(|| {
        let stage = scratch().join(format!("lib-{}", std::process::id()));
        std::fs::create_dir_all(&stage).unwrap();
        for name in ["libstraightway.so", "libstraightway.so.0"] {
            let link = stage.join(name);
            let _ = std::fs::remove_file(&link);
            symlink(built(), link).unwrap();
        }
        stage
    })
}

fn told_by(tool: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(tool).args(args).arg(built()).output().ok()?;
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn it_shows_the_functions_of_the_header_and_nothing_else() {
    let Some(text) = told_by("nm", &["-D", "--defined-only"]) else {
        println!("skip: nm is not there; install binutils");
        return;
    };
    let mut shown: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
    shown.sort_unstable();
    let mut told = header::api().functions;
    told.sort();
    assert_eq!(shown, told);
}

#[test]
fn its_name_has_a_version_and_it_stays_once_it_is_loaded() {
    let Some(text) = told_by("readelf", &["-d"]) else {
        println!("skip: readelf is not there; install binutils");
        return;
    };
    assert!(text.contains("soname: [libstraightway.so.0]"), "{text}");
    assert!(text.contains("NODELETE"), "{text}");
    // What a machine may lack is loaded at run time.
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    let needed: Vec<&str> = needed.filter_map(|line| line.split(['[', ']']).nth(1)).collect();
    let system = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];
    let strange: Vec<&&str> =
        needed.iter().filter(|name| !system.contains(name) && !name.starts_with("ld-linux")).collect();
    assert!(strange.is_empty(), "{strange:?}");
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
    let Some(layout) = program::Compiler::c().compile(&source, "layout") else { return };
    let layout = layout.run(&[]);
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
