//! `ais`: samples of objects of NVIDIA's AIStore, together and alone, and by its own Python SDK.
//!
//! Its nodes listen on all addresses: let it run where there is the loopback alone, as `unshare --net` makes it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    bench::{Bench, Size, words},
    fault::Fault,
    peers::{
        python::Python,
        served::{Client, Program, Served},
    },
    report::{Bound, Case, Metric, Role, Sample},
    rounds::{Before, Subject},
    usage,
    worker::{self, Worker},
};

const US: &str = "straightway";
const ALONE: &str = "straightway-alone";
const BATCH: &str = "aistore-sdk-batch";
const READER: &str = "aistore-sdk-reader";
const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of a sample, and samples in flight.
const BLOCK: u64 = 16 << 10;
const DEPTH: u64 = 64;
/// Objects that samples are of.
const SHARDS: u64 = 4;
/// Where the program is, as `cargo xtask interop ais` has built it.
const AISNODE: &str = "STRAIGHTWAY_AISNODE";

/// Starts a proxy at the port, and a target, which is the process that is metered; the proxy ends when the target's end of a pipe closes.
const SERVERS: &str = r#"
set -e
dir=$1 port=$2 aisnode=$3
rm -rf "$dir" && mkdir -p "$dir/0" "$dir/1/disk"
cat >"$dir/ais.json" <<END
{"backend":{},"timeout":{"cplane_operation":"2s","max_keepalive":"4s","cold_get_conflict":"5s","max_host_busy":"20s",
"startup_time":"1m","join_startup_time":"3m","send_file_time":"5m","ec_streams_time":"10m","object_md":"2h"},
"proxy":{"primary_url":"http://127.0.0.1:$((port + 100))","original_url":"http://127.0.0.1:$((port + 100))","discovery_url":"","non_electable":false},
"space":{"cleanupwm":96,"lowwm":97,"highwm":98,"out_of_space":99,"batch_size":32768,"dont_cleanup_time":"120m"},
"resilver":{"enabled":true},"memsys":{"min_free":"256mb","default_buf":"32kb","to_gc":"4gb","hk_time":"3m","min_pct_total":0,
"min_pct_free":0},"versioning":{"enabled":true,"validate_warm_get":false},"net":{"l4":{"proto":"tcp","sndrcv_buf_size":131072},
"http":{"use_https":false,"idle_conn_time":"6s","idle_conns_per_host":32,"idle_conns":256,"chunked_transfer":true,
"skip_verify":false},"use_ipv6":false},"auth":{}}
END
node() {
  cat >"$dir/$1/local.json" <<END
{"confdir":"$dir/$1","log_dir":"$dir/$1/log","host_net":{"hostname":"127.0.0.1","hostname_intra_control":"127.0.0.1",
"hostname_intra_data":"127.0.0.1","port":"$((port + $1))","port_intra_control":"$((port + 100 + $1))",
"port_intra_data":"$((port + 200 + $1))"},"fspaths":{$2},"test_fspaths":{"root":"$dir/$1","count":0,"instance":$1}}
END
}
node 0 ''
node 1 "\"$dir/1/disk\":\"disk\""
mkfifo "$dir/alive"
sh -c '"$@" & it=$!; cat <"$0" >/dev/null; kill -9 $it' "$dir/alive" \
  "$aisnode" -config="$dir/ais.json" -local_config="$dir/0/local.json" -role=proxy -ntargets=1 >"$dir/0/out" 2>&1 &
exec 9>"$dir/alive"
exec "$aisnode" -config="$dir/ais.json" -local_config="$dir/1/local.json" -role=target >"$dir/1/out" 2>&1
"#;

/// Waits until a bucket can be made, and fills it.
const PREPARE: &str = r#"
set -e
port=$1 bytes=$2 file=$3
for i in $(seq 600); do
  if curl -sf -o /dev/null -X POST -H 'Content-Type: application/json' -d '{"action":"create-bck"}' "http://127.0.0.1:$port/v1/buckets/bed"; then
    test -e "$file" || head -c "$bytes" /dev/urandom >"$file"
    for shard in 0 1 2 3; do
      curl -sfL -o /dev/null -T "$file" "http://127.0.0.1:$port/v1/objects/bed/$shard?provider=ais"
    done
    exit 0
  fi
  sleep 0.1
done
exit 1
"#;

/// What is read.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of each shard.
    bytes: u64,
    count: u64,
}

impl Shape {
    fn of(size: Size) -> Self {
        match size {
            Size::Smoke => Self { bytes: 4 << 20, count: 400 },
            Size::Real => Self { bytes: 64 << 20, count: 20_000 },
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// One with a client of its own.
fn side(
    bench: &Bench<'_>,
    (name, role): (&str, Role),
    program: &str,
    shape: Shape,
    client: Client,
) -> Box<dyn Subject> {
    let dir = bench.scratch.join("ais");
    let args = words(&["-c", SERVERS, "sh", &text(&dir), "PORT", program]);
    let server = Program { path: "sh".to_owned(), args, remedy: "install a shell" };
    let (file, scratch) = (bench.scratch.join(format!("ais-{}", shape.bytes)), bench.scratch.clone());
    let prepare: Client = Box::new(move |port| {
        let mut command = Command::new("sh");
        command.args(["-c", PREPARE, "sh", &port.to_string(), &shape.bytes.to_string(), &text(&file)]);
        usage::run(command, &scratch, LIMIT).map(|_| Sample::default())
    });
    Box::new(Served { name: name.to_owned(), role, server, prepare: Some(prepare), client })
}

fn ours(name: &str, batch: &str, shape: Shape, scratch: &Path) -> Client {
    let (name, batch, scratch) = (name.to_owned(), batch.to_owned(), scratch.to_owned());
    Box::new(move |port| {
        let mut args = words(&["disk", "--random", &format!("--block={BLOCK}"), &format!("--depth={DEPTH}")]);
        args.push(format!("--ops={}", shape.count));
        args.extend((0..SHARDS).map(|shard| format!("--uri=ais://bed/{shard}")));
        args.push(format!("--engine=ais_endpoint=http://127.0.0.1:{port}"));
        args.push(format!("--engine=ais_batch={batch}"));
        let (name, scratch) = (name.clone(), scratch.clone());
        Worker { name, role: Role::Ours, own_memory: None, args, files: Vec::new(), scratch }.run()
    })
}

fn sdk(name: &'static str, peer: &'static str, shape: Shape, python: &Python) -> Client {
    let python = python.clone();
    Box::new(move |port| {
        let numbers = [u64::from(port), shape.bytes, BLOCK, shape.count, DEPTH].map(|number| number.to_string());
        let [port, bytes, block, count, depth] = numbers.each_ref().map(String::as_str);
        let args = ["--peer", peer, "--port", port, "--file-bytes", bytes, "--block", block, "--count", count];
        let args = [&args[..], &["--depth", depth]].concat();
        worker::parse(name, &python.peer("ais.py", &args, &[])?)
    })
}

/// Samples of a few shards, in no order.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    #[expect(clippy::disallowed_methods, reason = "told by whoever has built it")]
    let program = std::env::var_os(AISNODE).map(PathBuf::from);
    let Some(program) = program else {
        (bench.tell)(&format!(
            "ais: skipped: {AISNODE} does not say where aisnode is; `cargo xtask interop ais` builds it"
        ));
        return Ok(Vec::new());
    };
    let (program, shape, scratch, python) = (text(&program), Shape::of(bench.size), &bench.scratch, &bench.python);
    let (together, alone) = (ours(US, "on", shape, scratch), ours(ALONE, "off", shape, scratch));
    let (batch, reader) = (sdk(BATCH, "batch", shape, python), sdk(READER, "reader", shape, python));
    let sides = [
        (US, Role::Ours, together),
        (ALONE, Role::Ours, alone),
        (BATCH, Role::Peer, batch),
        (READER, Role::Peer, reader),
    ];
    let subjects = sides.map(|(name, role, client)| side(bench, (name, role), &program, shape, client)).into();
    let what = "samples of 16 KiB of 4 objects, in no order, in the page cache of a target's machine, over the loopback, one proxy and one target: 64 in \
                flight into memory, by as few GetBatches as come, each object looked at behind each; straightway-alone: each by a request; the SDK's \
                GetBatch of 64 in two threads, which looks at no versions, and its get_reader in 64; CPU is that of the end that asks, \
                server_cpu_s_per_gib that of the target";
    let mut case = bench.case("ais/samples-16KiB", what, subjects, &Before::default());
    for (text, metric, other) in [
        ("rate at least that of reads that go alone", Metric::BytesPerSecond, ALONE),
        ("samples per CPU second at least those of reads that go alone", Metric::OpsPerCpuSecond, ALONE),
        ("rate at least that of the SDK's GetBatch", Metric::BytesPerSecond, BATCH),
        ("samples per CPU second at least those of the SDK's GetBatch", Metric::OpsPerCpuSecond, BATCH),
    ] {
        case.hold(text, metric, US, Some(other), Bound::AtLeast(1.0));
    }
    Ok(vec![case])
}
