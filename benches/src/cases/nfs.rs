//! `nfs`: a file behind nfs-ganesha, by our client and by libnfs's `nfs-cat`.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    bench::{Bench, Size, words},
    fault::Fault,
    peers::served::{Client, Program, Served},
    report::{Bound, Case, Metric, Role, Sample},
    rounds::{Before, Subject},
    usage,
    worker::Worker,
};

const US: &str = "straightway";
const PEER: &str = "nfs-cat";
const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of one request of ours.
const BLOCK: u64 = 1 << 20;

/// Starts the server with a `/run` of its own, and a portmapper in a network of its own, which no client asks: ports are told, and MOUNT's is
/// the next one. The portmapper ends with the server, whose end of a pipe closes then.
const SCRIPT: &str = r#"
set -e
dir=$1 port=$2 bytes=$3
rm -rf "$dir" && mkdir -p "$dir/export" "$dir/rec"
head -c "$bytes" /dev/urandom >"$dir/export/file"
mount -t tmpfs none /run && mkdir -p /run/rpcbind /run/ganesha
mkfifo "$dir/alive"
sh -c 'unshare -n rpcbind -f & it=$!; cat <"$1" >/dev/null; kill $it' sh "$dir/alive" &
exec 9>"$dir/alive"
for i in 1 2 3 4 5 6 7 8 9 10; do test -S /run/rpcbind.sock && break; sleep 0.1; done
cat >"$dir/conf" <<END
NFS_CORE_PARAM { NFS_Port=$port; MNT_Port=$((port + 1)); Bind_addr=127.0.0.1; Protocols=3; Enable_NLM=false; Enable_RQUOTA=false;
  Enable_UDP=false; mount_path_pseudo=true; }
NFSV4 { Graceless=true; RecoveryRoot="$dir/rec"; RecoveryBackend=fs; }
EXPORT { Export_Id=1; Path=$dir/export; Pseudo=/vfs; Protocols=3; Access_Type=RW; Squash=No_Root_Squash; SecType=sys; Transports=TCP;
  FSAL { Name=VFS; } }
END
exec ganesha.nfsd -F -N NIV_EVENT -f "$dir/conf" -L "$dir/log" -p "$dir/pid"
"#;

/// Bytes of the file.
fn file_bytes(size: Size) -> u64 {
    match size {
        Size::Smoke => 32 << 20,
        Size::Real => 1 << 30,
    }
}

fn server(bench: &Bench<'_>) -> Program {
    let dir = bench.scratch.join("nfs").to_string_lossy().into_owned();
    let bytes = file_bytes(bench.size).to_string();
    let args = words(&["-m", "--propagation", "private", "sh", "-c", SCRIPT, "sh", &dir, "PORT", &bytes]);
    Program { path: "unshare".to_owned(), args, remedy: "install util-linux" }
}

/// What must be there.
fn known() -> Result<(), Fault> {
    let missing = ["ganesha.nfsd", "rpcbind", PEER].into_iter().find(|name| {
        let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
        !dirs.iter().any(|dir| std::path::Path::new(dir).join(name).is_file())
    });
    let remedy = "install nfs-ganesha, nfs-ganesha-vfs, rpcbind, libnfs-utils, and run it as root";
    missing.map_or(Ok(()), |name| Err(Fault::Missing { what: format!("{name} is not on this machine"), remedy }))
}

/// It listens before it exports anything.
fn exports(bench: &Bench<'_>) -> Client {
    let scratch = bench.scratch.clone();
    Box::new(move |port| {
        let mut command = Command::new("sh");
        let script = "for i in $(seq 100); do nfs-cat \"$1\" 2>/dev/null | head -c 1 | grep -q '' && exit; sleep 0.1; done; exit 1";
        command.args(["-c", script, "sh", &url(port)]);
        usage::run(command, &scratch, LIMIT).map(|_| Sample::default())
    })
}

/// The file, as libnfs names it.
fn url(port: u16) -> String {
    format!("nfs://127.0.0.1/vfs/file?nfsport={port}&mountport={}", u32::from(port) + 1)
}

fn ours(bench: &Bench<'_>) -> Box<dyn Subject> {
    let (scratch, ops) = (bench.scratch.clone(), file_bytes(bench.size) / BLOCK);
    let client: Client = Box::new(move |port| {
        let mut args = words(&["disk", &format!("--block={BLOCK}"), "--depth=16", &format!("--ops={ops}")]);
        args.push(format!("--uri=nfs://127.0.0.1:{port}/vfs/file"));
        args.push(format!("--engine=nfs_mount_port={}", u32::from(port) + 1));
        let scratch = scratch.clone();
        Worker { name: US.to_owned(), role: Role::Ours, own_memory: None, args, files: Vec::new(), scratch }.run()
    });
    let prepare = Some(exports(bench));
    Box::new(Served { name: US.to_owned(), role: Role::Ours, server: server(bench), prepare, client })
}

fn peer(bench: &Bench<'_>) -> Box<dyn Subject> {
    let (scratch, bytes) = (bench.scratch.clone(), file_bytes(bench.size));
    let client: Client = Box::new(move |port| {
        let mut command = Command::new("sh");
        command.args(["-c", "exec nfs-cat \"$1\" >/dev/null", "sh", &url(port)]);
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        let finished = usage::run(command, &scratch, LIMIT)?;
        let (cpu_user_s, cpu_sys_s) = (finished.usage.user_s, finished.usage.sys_s);
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sample { ops: bytes / BLOCK, bytes, seconds, cpu_user_s, cpu_sys_s, ..Sample::default() })
    });
    let prepare = Some(exports(bench));
    Box::new(Served { name: PEER.to_owned(), role: Role::Peer, server: server(bench), prepare, client })
}

/// A file from its beginning to its end.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    if let Err(missing) = known() {
        (bench.tell)(&format!("nfs: skipped: {missing}"));
        return Ok(Vec::new());
    }
    let subjects = vec![ours(bench), peer(bench)];
    let what = "a file in the page cache of nfs-ganesha's machine, read once from its beginning to its end over the loopback, NFS version 3: 1 MiB requests, \
                16 in flight, into memory; nfs-cat to /dev/null, its start and end in the time; CPU is that of the end that asks, \
                server_cpu_s_per_gib that of the other";
    let mut case = bench.case("nfs/read", what, subjects, &Before::default());
    case.hold("rate at least that of nfs-cat", Metric::BytesPerSecond, US, Some(PEER), Bound::AtLeast(1.0));
    case.hold(
        "bytes per CPU second at least those of nfs-cat",
        Metric::OpsPerCpuSecond,
        US,
        Some(PEER),
        Bound::AtLeast(1.0),
    );
    case.hold("one copy of each byte", Metric::CpuCopiesPerByte, US, None, Bound::AtMost(1.0));
    Ok(vec![case])
}
