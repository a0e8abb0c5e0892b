//! `cat`, `ls`, `stat`, `plan`: right bytes and right facts.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use crate::support::{Ran, Scratch, content, lines};

#[test]
fn cat_gives_the_exact_bytes_of_any_range() {
    let scratch = Scratch::new();
    let len = 300_001;
    scratch.file("a", len);
    let whole = content(len);
    for (offset, bytes, piece) in
        [(0, len, "1MiB"), (0, len, "4k"), (1, 4096, "4k"), (4095, 100_000, "8k"), (len, 0, "1k"), (511, 1, "1")]
    {
        for io_uring in ["io_uring=auto", "io_uring=off"] {
            let (offset_text, len_text) = (offset.to_string(), bytes.to_string());
            let arguments =
                ["cat", "a", "--offset", &offset_text, "--len", &len_text, "--piece", piece, "--engine", io_uring];
            assert_eq!(scratch.run(&arguments).ok().stdout, whole[offset..offset + bytes], "{arguments:?}");
        }
    }
    assert_eq!(scratch.run(&["cat", "a", "--offset", "300k", "--depth", "1"]).fails(1, &[]).stdout, b"");
    assert_eq!(scratch.run(&["cat", "a", "--offset", "200k"]).ok().stdout, whole[200 << 10..]);
}

#[test]
fn cat_of_an_empty_object_is_empty() {
    let scratch = Scratch::new();
    scratch.file("empty", 0);
    assert_eq!(scratch.run(&["cat", "empty"]).ok().stdout, b"");
}

#[test]
fn cat_reports_on_stderr_because_stdout_has_the_bytes() {
    let scratch = Scratch::new();
    scratch.file("a", 70_000);
    let ran = scratch.run(&["cat", "a", "--json"]).ok();
    assert_eq!(ran.stdout, content(70_000));
    let report = &lines(&ran.stderr)[0];
    assert_eq!((&report["schema"], report["bytes"].as_u64()), (&"straightway.cat/1".into(), Some(70_000)));
    let routes = report["routes"].as_array().unwrap();
    let sum: u64 =
        routes.iter().flat_map(|way| way["bytes"].as_object().unwrap().values()).map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(sum, 70_000, "{routes:?}");
    let failed = scratch.run(&["cat", "absent", "--json"]);
    assert_eq!((failed.code, failed.stdout.len()), (Some(3), 0));
    assert_eq!(lines(failed.stderr.lines().last().unwrap())[0]["kind"], "not_found");
}

#[test]
fn cat_of_a_stripe_set_is_its_members_in_turn() {
    let scratch = Scratch::new();
    let whole = content(4 * 65_536);
    let (mut even, mut odd) = (Vec::new(), Vec::new());
    for (index, unit) in whole.chunks(65_536).enumerate() {
        if index % 2 == 0 { even.extend_from_slice(unit) } else { odd.extend_from_slice(unit) }
    }
    std::fs::write(scratch.path("even"), even).unwrap();
    std::fs::write(scratch.path("odd"), odd).unwrap();
    assert_eq!(scratch.run(&["cat", "stripe:64k:even,odd"]).ok().stdout, whole);
    let stat = scratch.run(&["stat", "stripe:64k:even,odd", "--json"]).ok().document("straightway.stat/1");
    assert_eq!(stat["len"].as_u64(), Some(4 * 65_536));
}

#[test]
fn a_reader_that_goes_ends_cat_quietly() {
    let scratch = Scratch::new();
    scratch.file("a", 8 << 20);
    let mut child = scratch.command(&["cat", "a"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, content(10)[..]);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""));
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let scratch = Scratch::new();
    scratch.file("a", 100_000);
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        println!("skip full disk: no /dev/full here");
        return;
    };
    let output = scratch.command(&["cat", "a"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ls_and_stat_tell_kind_and_length() {
    let scratch = Scratch::new();
    scratch.file("a", 12_345);
    std::fs::create_dir(scratch.path("dir")).unwrap();
    let listed = scratch.run(&["ls", ".", "--json"]).ok().json();
    let facts: Vec<_> =
        listed.iter().map(|entry| (entry["kind"].as_str().unwrap(), entry["len"].as_u64().unwrap())).collect();
    assert_eq!(facts, [("object", 12_345), ("directory", 0)]);
    let again = listed[0]["name"].as_str().unwrap();
    let stat = scratch.run(&["stat", again, "--json"]).ok().document("straightway.stat/1");
    assert_eq!(stat["len"].as_u64(), Some(12_345));
    assert!(!stat["faces"].as_array().unwrap().is_empty());
    assert!(scratch.run(&["stat", "dir"]).ok().text().contains("directory"));
    assert_eq!(scratch.run(&["ls", "a"]).ok().text().lines().count(), 1);
}

#[test]
fn plan_chooses_one_route_and_says_why_not_the_others() {
    let scratch = Scratch::new();
    scratch.file("a", 1 << 20);
    for verb in ["read", "write"] {
        let plan = scratch.run(&["plan", "a", "--verb", verb, "--json"]).ok().document("straightway.plan/1");
        let candidates = plan["candidates"].as_array().unwrap();
        assert_eq!(candidates.iter().filter(|candidate| candidate["verdict"] == "chosen").count(), 1, "{plan}");
        assert!(
            candidates.iter().all(|candidate| (candidate["verdict"] == "chosen") == candidate["reason"].is_null()),
            "{plan}"
        );
    }
    let threads = scratch.run(&["plan", "a", "--engine", "io_uring=off"]).ok();
    assert!(threads.text().contains("preadv2/"), "{}", threads.text());
}

#[test]
fn doctor_has_facts_and_looks_at_paths_without_leaving_files() {
    let scratch = Scratch::new();
    let doctor = scratch.run(&["doctor", ".", "--json"]).ok().document("straightway.doctor/1");
    let facts = doctor["facts"].as_array().unwrap();
    for name in ["kernel", "io_uring", "huge_pages", "locked_memory_limit"] {
        assert!(facts.iter().any(|fact| fact["name"] == name), "{name} in {facts:?}");
    }
    assert!(facts.iter().any(|fact| fact["name"].as_str().unwrap().starts_with("gpu")), "{facts:?}");
    for fact in facts.iter().filter(|fact| fact["health"] == "limited" || fact["health"] == "missing") {
        assert_ne!(fact["remedy"], "", "{fact}");
    }
    assert!(!doctor["paths"][0]["faces"].as_array().unwrap().is_empty());
    let mount = &doctor["paths"][0]["mount"];
    for name in ["at", "type", "source", "system", "direct"] {
        assert!(mount[name].as_str().is_some_and(|text| !text.is_empty()), "{name} in {mount}");
    }
    assert!(scratch.names().is_empty(), "{:?}", scratch.names());
}

#[test]
fn help_version_and_completions_go_to_stdout() {
    let scratch = Scratch::new();
    let help = scratch.run(&["--help"]).ok();
    for word in ["demo", "doctor", "plan", "Exit codes:", "Examples:"] {
        assert!(help.text().contains(word), "{word}");
    }
    assert!(scratch.run(&["--version"]).ok().text().starts_with("straightway "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(scratch.run(&["completions", shell]).ok().text().contains("straightway"));
    }
}

#[test]
fn a_checkpoint_of_more_shards_than_the_soft_limit_of_open_files_is_loaded() {
    const SHARDS: usize = 100;
    let scratch = Scratch::new();
    let mut places = serde_json::Map::new();
    for number in 0..SHARDS {
        let (name, file) = (format!("t{number}"), format!("model-{number:05}.safetensors"));
        let head = format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#);
        let bytes = [&(head.len() as u64).to_le_bytes(), head.as_bytes(), b"abcd"].concat();
        std::fs::write(scratch.path(&file), bytes).unwrap();
        places.insert(name, file.into());
    }
    let index = serde_json::json!({"metadata": {"total_size": 4 * SHARDS}, "weight_map": places});
    std::fs::write(scratch.path("model.safetensors.index.json"), index.to_string()).unwrap();
    let limited = |kind: &str| {
        let line = format!("ulimit {kind} 64; exec \"$0\" load . --json");
        let mut command = Command::new("sh");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_straightway")]).current_dir(scratch.path("."));
        Ran::of(&["load", kind], command.output().unwrap())
    };
    let report = limited("-Sn").ok();
    assert!(report.text().contains("\"t99\""), "{}", report.text());
    limited("-n").fails(9, &["ulimit -n"]);
}
