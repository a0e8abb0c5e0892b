//! `bench`: what it reports adds up, and what it verifies can fail.

use serde_json::Value;

use crate::support::Scratch;

fn cells(report: &Value) -> &Vec<Value> {
    report["cells"].as_array().unwrap()
}

/// Sums and orders that hold for every cell.
fn check(cell: &Value) {
    let number = |path: &str| path.split('.').fold(cell, |value, key| &value[key]).as_f64().unwrap();
    assert!((number("bytes") - number("operations") * number("size")).abs() < 0.5, "{cell}");
    let order = ["min", "p50", "p99", "p99_9", "max"].map(|name| number(&format!("latency_ns.{name}")));
    assert!(order.is_sorted() && order[0] > 0.0, "{cell}");
    let routes = cell["routes"].as_array().unwrap();
    let operations: u64 = routes.iter().map(|way| way["operations"].as_u64().unwrap()).sum();
    assert_eq!(operations as f64, number("operations"), "{cell}");
    assert!(number("calls.doorbells") + number("calls.polls") > 0.0, "{cell}");
    assert!((number("bytes_per_s") * number("seconds") - number("bytes")).abs() < 1.0, "{cell}");
}

#[test]
fn a_bound_of_bytes_is_exact_for_every_size_and_depth() {
    let scratch = Scratch::new();
    scratch.file("a", 2 << 20);
    let arguments = ["bench", "read", "a", "--size", "4k,100000", "--depth", "1,7", "--bytes", "1000000", "--random"];
    let report =
        scratch.run(&[&arguments[..], &["--json", "--no-ceiling"]].concat()).ok().document("straightway.bench/1");
    let got: Vec<_> = cells(&report)
        .iter()
        .map(|cell| (cell["size"].as_u64(), cell["depth"].as_u64(), cell["operations"].as_u64()))
        .collect();
    let want = [(4096, 1, 245), (4096, 7, 245), (100_000, 1, 10), (100_000, 7, 10)];
    assert_eq!(got, want.map(|(size, depth, operations)| (Some(size), Some(depth), Some(operations))));
    cells(&report).iter().for_each(check);
    assert!(report["ceilings"].is_null() && cells(&report)[0]["of_ceiling"].is_null());
}

#[test]
fn writes_are_verified_and_the_file_serves_reads() {
    let scratch = Scratch::new();
    let write = [
        "bench",
        "write",
        "w",
        "--file-size",
        "3MiB",
        "--size",
        "64k",
        "--bytes",
        "6MiB",
        "--jobs",
        "2",
        "--verify",
        "--keep",
    ];
    let report = scratch.run(&[&write[..], &["--json"]].concat()).ok().document("straightway.bench/1");
    cells(&report).iter().for_each(check);
    assert_eq!(cells(&report)[0]["verified_bytes"].as_u64(), Some(3 << 20));
    assert!(report["ceilings"]["sequential"]["bytes_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(scratch.names(), ["w"]);
    let read = [
        "bench",
        "read",
        "w",
        "--verify",
        "--size",
        "5000",
        "--offset-shift",
        "511",
        "--bytes",
        "1MiB",
        "--no-ceiling",
    ];
    for more in
        [&["--sequential"][..], &["--random", "--jobs", "3"], &["--engine", "io_uring=off"], &["--policy", "any"]]
    {
        let report = scratch.run(&[&read[..], more, &["--json"]].concat()).ok().document("straightway.bench/1");
        cells(&report).iter().for_each(check);
        assert_eq!(cells(&report)[0]["verified_bytes"], cells(&report)[0]["bytes"]);
    }
    scratch.run(&write).fails(10, &["--overwrite"]);
}

#[test]
fn a_wrong_byte_is_found() {
    let scratch = Scratch::new();
    scratch
        .run(&[
            "bench",
            "write",
            "w",
            "--file-size",
            "1MiB",
            "--bytes",
            "1MiB",
            "--size",
            "64k",
            "--verify",
            "--keep",
            "--no-ceiling",
        ])
        .ok();
    let read = ["bench", "read", "w", "--verify", "--size", "64k", "--bytes", "1MiB", "--no-ceiling"];
    scratch.run(&read).ok();
    // One at a time, so that the first byte is the first to be found.
    scratch.run(&[&read[..], &["--seed", "2", "--depth", "1"]].concat()).fails(6, &["byte 0 of", "seed 2", "; "]);
    let mut bytes = std::fs::read(scratch.path("w")).unwrap();
    bytes[700_001] ^= 0x10;
    std::fs::write(scratch.path("w"), bytes).unwrap();
    scratch.run(&read).fails(6, &["byte 700001 of", "; "]);
}

#[test]
fn a_bound_of_time_ends_and_the_text_has_every_cell() {
    let scratch = Scratch::new();
    scratch.file("a", 1 << 20);
    let ran = scratch.run(&["bench", "read", "a", "--size", "16k", "--depth", "1,4", "--time", "50ms"]).ok();
    assert!(ran.text().contains("ceiling: sequential"), "{}", ran.text());
    assert_eq!(
        ran.text()
            .lines()
            .filter(|line| line.trim_start().starts_with("16.0 KiB") || line.trim_start().starts_with("16 KiB"))
            .count(),
        2,
        "{}",
        ran.text()
    );
}

#[test]
fn a_bench_of_writes_leaves_nothing_and_touches_no_file_of_others() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("w"), "mine").unwrap();
    scratch.run(&["bench", "write", "w", "--file-size", "1MiB", "--size", "64k", "--bytes", "1MiB"]).ok();
    assert_eq!(std::fs::read(scratch.path("w")).unwrap(), b"mine");
    assert_eq!(scratch.names(), ["w"]);
}
