//! `docs/json.md` and what `--json` prints are the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    support::{Scratch, lines},
    target::{Offered, known},
};

/// The page, next to the sources, and that of the cache with its own.
const PAGE: &str = concat!(
    include_str!("../../../docs/json.md"),
    include_str!("../../../docs/cache.md"),
    include_str!("../../../docs/agp.md")
);

/// What only a machine with a controller behind an IOMMU prints (the guests of `cargo xtask vm` have one), or another
/// program (`straightway-guest`; its own tests hold the page against the record).
const ELSEWHERE: [&str; 4] =
    ["straightway.nvme.list/1", "straightway.nvme.bind/1", "straightway.nvme.unbind/1", "straightway.hwtest/1"];

/// Field and type, as the page's tables have them.
type Fields = BTreeMap<String, String>;

/// The tables of the page, by the heading above them.
fn tables() -> BTreeMap<String, Fields> {
    let mut tables: BTreeMap<String, Fields> = BTreeMap::new();
    let mut heading = String::new();
    for line in PAGE.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split('|').map(str::trim);
            let field = cells.next().unwrap().trim_end_matches('`').to_owned();
            tables.entry(heading.clone()).or_default().insert(field, cells.next().unwrap().to_owned());
        }
    }
    tables
}

/// The fields of a schema with the shared tables put in.
fn documented(tables: &BTreeMap<String, Fields>, schema: &str) -> Fields {
    let own = tables.get(schema).unwrap_or_else(|| panic!("docs/json.md has no {schema}"));
    let mut all = Fields::new();
    for (field, kind) in own {
        let shared = tables.get(&format!("Shared: {}", kind.trim_matches(['[', ']', '?'])));
        let elements = if kind.starts_with('[') { "[]" } else { "" };
        match shared {
            Some(shared) => {
                all.extend(shared.iter().map(|(name, kind)| (format!("{field}{elements}.{name}"), kind.clone())))
            }
            None => drop(all.insert(field.clone(), kind.clone())),
        }
    }
    all
}

/// Every leaf of `value` with its path; arrays of plain values are leaves.
fn leaves<'a>(value: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            fields.iter().for_each(|(name, value)| leaves(value, &join(name), found));
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            elements.iter().for_each(|element| leaves(element, &format!("{path}[]"), found));
        }
        leaf => found.push((path.to_owned(), leaf)),
    }
}

fn is_of(value: &Value, kind: &str) -> bool {
    let (kind, nullable) = kind.strip_suffix('?').map_or((kind, false), |kind| (kind, true));
    match kind {
        _ if value.is_null() => nullable,
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "bool" => value.is_boolean(),
        _ => match (value, kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']'))) {
            (Value::Array(elements), Some(kind)) => elements.iter().all(|element| is_of(element, kind)),
            _ => false,
        },
    }
}

/// The same for checkpoints: one with tensors that cannot be loaded, and one that is damaged.
fn checkpoints(scratch: &Scratch) -> Vec<Value> {
    let torch = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sw-checkpoint/testdata/torch");
    let path = |name: &str| torch.join(name).to_str().unwrap().to_owned();
    let mut damaged = std::fs::read(torch.join("views.pt")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(scratch.path("damaged.pt"), damaged).unwrap();
    std::fs::create_dir(scratch.path("out")).unwrap();
    let (dcp, hf, views, strided) = (path("dcp"), path("hf"), path("views.pt"), path("strided.pt"));
    std::fs::write(scratch.path(".old.1-0.straightway-lock"), "").unwrap();
    let runs: [&[&str]; 11] = [
        &["show", &dcp],
        &["show", &hf],
        &["show", &strided],
        &["verify", &views],
        &["verify", "damaged.pt"],
        &["diff", &views, &strided],
        &["diff", &strided, &strided],
        &["convert", &views, "--to", "safetensors", "--out", "out"],
        &["convert", &dcp, "--to", "dcp", "--out", "dcp"],
        &["show", "out"],
        &["clean", "."],
    ];
    let mut all = Vec::new();
    for arguments in runs {
        all.extend(scratch.run(&[&["checkpoint"], arguments, &["--json"]].concat()).json());
    }
    all.extend(scratch.run(&["checkpoint", "diff", &views, "damaged.pt", "--json"]).json());
    all.extend(scratch.run(&["load", "dcp", "--verify", "require", "--json"]).ok().json());
    all
}

/// Runs that together print every schema and every field.
fn everything() -> Vec<Value> {
    let scratch = Scratch::new();
    scratch.file("a", 3 << 20);
    std::fs::create_dir(scratch.path("set")).unwrap();
    scratch.file("set/1.jpg", 5000);
    scratch.file("bad.tar", 600);
    // An archive of nothing, and an index of another one beside it.
    std::fs::write(scratch.path("none.tar"), [0; 1024]).unwrap();
    std::fs::write(scratch.path("none.idx"), "v1.2 1\n").unwrap();
    let index = ["dataset", "index", "set", "bad.tar", "--checksum", "--on-error", "skip", "--out", "i.index.arrow"];
    let bench = ["bench", "read", "a", "--size", "64k", "--bytes", "1MiB"];
    crate::topology::make_any(&scratch.path("machine"));
    let runs: [&[&str]; 25] = [
        &["ls", "."],
        &["stat", "a", "stripe:64k:a,a"],
        &["plan", "a"],
        &["plan", "a", "--into", "gpu0", "--engine", "gpu=off"],
        &["plan", "a", "--into", "p2pmem:ffff:00:00.0"],
        &["doctor", "a", "absent"],
        &["nvme", "list", "--all"],
        &["topology", "--root", "machine"],
        &["nvme", "gen-dhchap-key"],
        &["nvme", "gen-tls-key"],
        &["cp", "a", "b"],
        &["cp", "a", "b", "--no-verify"],
        &["cat", "absent"],
        &["cp", "absent", "b"],
        &bench,
        &[&bench[..], &["--no-ceiling"]].concat(),
        &index,
        &["dataset", "index", "none.tar", "--out", "none.index.arrow"],
        &["dataset", "stat", "i.index.arrow"],
        &["dataset", "iterate", "i.index.arrow", "--digest"],
        &["dataset", "iterate", "set", "--seed", "1"],
        &["dataset", "verify", "i.index.arrow"],
        &["dataset", "pack", "set", "--out", "packed"],
        &["demo", "--size", "16MiB", "--keep"],
        &["demo", "--size", "16MiB", "--into", "host"],
    ];
    let mut all = Vec::new();
    for arguments in runs {
        let ran = scratch.run(&[arguments, &["--json"]].concat());
        all.extend(ran.json());
        if arguments == index {
            // What `verify` finds wrong: another index, of an object that goes.
            scratch.run(&["dataset", "index", "a", "--out", "gone.index.arrow"]).ok();
            std::fs::rename(scratch.path("a"), scratch.path("b-data")).unwrap();
            let ran = scratch.run(&["dataset", "verify", "gone.index.arrow", "--json"]);
            all.extend(ran.json());
            std::fs::rename(scratch.path("b-data"), scratch.path("a")).unwrap();
        }
        // `cat` has its objects on stderr.
        all.extend(lines(&ran.stderr.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n")));
    }
    let offered = Offered::start(&scratch, &["memory:1MiB"]);
    all.extend(scratch.run(&["nvme", "discover", offered.address(), "--json"]).json());
    // With their paths, on a machine with an identity.
    for command in ["stat", "plan"] {
        all.extend(scratch.run(&[command, offered.uri(), "--json"]).json());
    }
    drop(offered);
    let cat = scratch.run(&["cat", "a", "--json"]).ok();
    all.extend(lines(&cat.stderr));
    let demo = scratch.names().into_iter().find(|name| name.starts_with("straightway-demo-")).unwrap();
    let checkpoint = scratch.path(&demo).join("checkpoint");
    let load = ["load", checkpoint.to_str().unwrap(), "--json"];
    all.extend(scratch.run(&load).ok().json());
    all.extend(scratch.run(&[&load[..], &["--digest"]].concat()).ok().json());
    all.extend(checkpoints(&scratch));
    all.extend(crate::objects::everything_said(&scratch));
    all.extend(crate::target::everything_said(&scratch));
    all
}

#[test]
fn every_printed_field_is_documented_and_every_documented_one_is_printed() {
    let tables = tables();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for object in everything() {
        let schema = object["schema"].as_str().unwrap_or_else(|| panic!("no schema in {object}")).to_owned();
        let documented = documented(&tables, &schema);
        let mut found = Vec::new();
        leaves(&object, "", &mut found);
        for (field, value) in found {
            // An empty array, or a null object, stands for what it would hold.
            let inside =
                |known: &&String| known.starts_with(&format!("{field}[].")) || known.starts_with(&format!("{field}."));
            let holds_others = documented.keys().any(|known| inside(&known));
            if !(holds_others && (value.is_null() || value.as_array().is_some_and(Vec::is_empty))) {
                let kind = documented
                    .get(&field)
                    .unwrap_or_else(|| panic!("{schema} prints {field}, which docs/json.md does not list"));
                assert!(is_of(value, kind), "{schema}: {field} is {value}, docs/json.md says {kind}");
            }
            seen.entry(schema.clone()).or_default().insert(field);
        }
    }
    // Services are asked only by a machine with an identity.
    let not_asked = if known() { "" } else { "straightway.nvme.discover/1" };
    let here = |heading: &&String| {
        heading.starts_with("straightway.") && !ELSEWHERE.contains(&heading.as_str()) && *heading != not_asked
    };
    for schema in tables.keys().filter(here) {
        let printed = seen.get(schema).unwrap_or_else(|| panic!("nothing printed {schema}"));
        for (field, kind) in documented(&tables, schema) {
            let whole = kind.starts_with("object") && printed.iter().any(|name| name.starts_with(&format!("{field}.")));
            let has_no_identity = field.starts_with("paths[].")
                && ["straightway.stat/1", "straightway.plan/1"].contains(&schema.as_str())
                && !known();
            // Options that matter are those of mounts of servers.
            let is_of_a_server = schema == "straightway.doctor/1" && field.starts_with("paths[].mount.facts[].");
            assert!(
                whole || has_no_identity || is_of_a_server || printed.contains(&field),
                "{schema}: {field} is documented and was never printed"
            );
        }
    }
}
