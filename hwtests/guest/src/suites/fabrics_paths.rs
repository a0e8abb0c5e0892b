//! Two ports of the kernel's target under our initiator, and two of ours under the kernel's: failing over and back, under load.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use straightway::{
    Engine, NvmeTcp, Object, Uri, WriteOutcome,
    target::{Backing, PortAccess, PortState, Target as OurTarget, TargetConfig, Tells},
};

use super::fabrics::{
    NQN, PORT, SECOND_PORT, SEED, SERIAL, Target, busybox, connect_with, known, memory, namespace_of, nvmet, read,
};
use crate::block;
use crate::context::{Context, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics-paths",
    tests: &[
        Test::new("ana", "reads and writes follow the states of two ports (ANA) under load, and none fails", ana)
            .bed_only()
            .limit_s(90),
        Test::new("lost", "a port that goes and comes back under load loses no read, and is used again", lost)
            .bed_only()
            .limit_s(120),
        Test::new("dies", "a port that goes for good under load loses no read, and writes go on", dies)
            .bed_only()
            .limit_s(90),
        Test::new("kernel-host", "the kernel's initiator fails over between two ports of our target", kernel_host)
            .bed_only()
            .limit_s(90),
    ],
};

const LEN: usize = 256 << 10;
/// Where writes go.
const AT: u64 = 8 << 20;
/// A fence of these tests takes twice as long.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Between two changes under load.
const STEP: Duration = Duration::from_millis(400);
const BACK_WITHIN: Duration = Duration::from_secs(20);

/// What went on under load.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    unknown: AtomicU64,
}

fn address() -> Result<Uri, Stop> {
    Ok(format!("nvme+tcp://127.0.0.1:{PORT},127.0.0.1:{SECOND_PORT}/{NQN}?nsid=1&serial={SERIAL}").parse()?)
}

fn engine() -> Result<Engine, Stop> {
    known()?;
    Ok(Engine::builder().nvme_tcp(NvmeTcp { keep_alive: KEEP_ALIVE, ..NvmeTcp::default() }).build()?)
}

impl Load {
    /// Reads what does not change, until it is told to stop.
    fn read_on(&self, engine: &Engine, object: &Object, bytes: &[u8]) -> Verdict {
        while !self.stop.load(Ordering::Relaxed) {
            same("the bytes", &(read(engine, object, 0, bytes.len())? == bytes), &true)?;
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes, and reads what it wrote; a write of unknown outcome is written again.
    fn write_on(&self, engine: &Engine, object: &Object) -> Verdict {
        let mut number = 0u64;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let bytes = block::pattern(SEED + number, 0, 64 << 10);
            loop {
                match engine.write(object, AT, memory(&bytes)?).wait().result {
                    Ok(_) => break,
                    Err(error) if error.outcome() == Some(WriteOutcome::Unknown) => {
                        self.unknown.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => return fail(format!("a write fails: {error}")),
                }
            }
            self.writes.fetch_add(1, Ordering::Relaxed);
            same("what was written", &(read(engine, object, AT, bytes.len())? == bytes), &true)?;
        }
        Ok(())
    }

    /// Does something while both go on.
    fn under(&self, context: &Context, (engine, object): (&Engine, &Object), act: impl FnOnce() -> Verdict) -> Verdict {
        let bytes = block::pattern(SEED, 0, LEN);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| self.read_on(engine, object, &bytes));
            let writing = scope.spawn(|| self.write_on(engine, object));
            let done = act();
            self.stop.store(true, Ordering::Relaxed);
            let panicked = |_| Stop::Fail("a thread panicked".into());
            reading.join().map_err(panicked)??;
            writing.join().map_err(panicked)??;
            done
        })?;
        let [reads, writes, unknown] =
            [&self.reads, &self.writes, &self.unknown].map(|count| count.load(Ordering::Relaxed));
        context.fact(&json!({"reads": reads, "writes": writes, "unknown": unknown}));
        same("whether there was load", &(reads > 10 && writes > 0), &true)
    }
}

/// The states of the paths, as they are told.
fn states(engine: &Engine) -> Vec<&'static str> {
    let paths = address().ok().and_then(|address| engine.paths(&address).ok());
    paths.unwrap_or_default().iter().map(|path| path.state.name()).collect()
}

fn begin() -> Result<(Target, Engine, Object), Stop> {
    let target = Target::make()?;
    target.second()?;
    target.backing()?.write_all_at(&block::pattern(SEED, 0, LEN), 0)?;
    let engine = engine()?;
    let object = engine.open_for_update(&address()?)?;
    same("both paths", &states(&engine), &vec!["optimized", "optimized"])?;
    Ok((target, engine, object))
}

fn set(port: u32, state: &str) -> Verdict {
    write_text(&nvmet(&format!("ports/{port}/ana_groups/1/ana_state")), state)
}

fn ana(context: &Context) -> Verdict {
    let (_target, engine, object) = begin()?;
    let load = Load::default();
    load.under(context, (&engine, &object), || {
        for _ in 0..5 {
            for (first, second) in
                [("inaccessible", "optimized"), ("non-optimized", "change"), ("optimized", "persistent-loss")]
            {
                // The good one first: there is a path all the while.
                let good = |state: &str| state.ends_with("optimized");
                let mut changes = [(1, first), (2, second)];
                changes.sort_by_key(|(_, state)| !good(state));
                changes.into_iter().try_for_each(|(port, state)| set(port, state))?;
                std::thread::sleep(STEP);
            }
        }
        // None for a while: what is asked for waits.
        set(1, "inaccessible")?;
        set(2, "inaccessible")?;
        std::thread::sleep(4 * STEP);
        set(2, "optimized")?;
        context.until(BACK_WITHIN, "the states are told", || {
            (states(&engine) == ["inaccessible", "optimized"]).then_some(())
        })
    })?;
    same("writes of unknown outcome", &load.unknown.load(Ordering::Relaxed), &0)
}

fn lost(context: &Context) -> Verdict {
    let (target, engine, object) = begin()?;
    Load::default().under(context, (&engine, &object), || {
        for port in ["1", "2"] {
            target.withdraw_at(port)?;
            std::thread::sleep(4 * KEEP_ALIVE);
            target.offer_at(port)?;
            context.until(BACK_WITHIN, "the path is back", || {
                (states(&engine) == ["optimized", "optimized"]).then_some(())
            })?;
        }
        Ok(())
    })
}

fn dies(context: &Context) -> Verdict {
    let (target, engine, object) = begin()?;
    Load::default().under(context, (&engine, &object), || {
        std::thread::sleep(STEP);
        target.withdraw_at("2")?;
        std::thread::sleep(10 * KEEP_ALIVE);
        same("the paths", &states(&engine), &vec!["optimized", "connecting"])
    })
}

fn kernel_host(context: &Context) -> Verdict {
    known()?;
    busybox(&["ifconfig", "lo", "127.0.0.1", "up"])?;
    let more = vec![TargetConfig::default().listen];
    let namespaces = vec![Backing::Memory(16 << 20)];
    let config = TargetConfig { more, tells: Tells::Access, namespaces, ..TargetConfig::default() };
    let subsystem = config.subsystem.to_string();
    let ours = OurTarget::start(config)?;
    // By itself Linux tries again every ten seconds.
    let connect = |at: &std::net::SocketAddr| connect_with(*at, &subsystem, ",reconnect_delay=1");
    let controllers = ours.addresses().iter().map(connect).collect::<Result<Vec<_>, Stop>>()?;
    let namespace = namespace_of(context, &controllers[0])?;
    block::write_and_check(&namespace, SEED, 0, LEN)?;
    for port in [0, 1] {
        ours.set_port(port, PortState::Shut);
        let start = std::time::Instant::now();
        block::check(&namespace, SEED, 0, LEN)?;
        block::write_and_check(&namespace, SEED, 0, LEN)?;
        context.fact(&json!({"port": port, "failed_over_s": start.elapsed().as_secs_f64()}));
        ours.set_port(port, PortState::Open);
        context.until(Duration::from_secs(30), "the kernel is connected again", || {
            (ours.counters().controllers == 2).then_some(())
        })?;
    }
    // Inaccessible by both ports in turn: told by a status, or by the event.
    for port in [0, 1] {
        ours.set_access(port, 1, PortAccess::Inaccessible);
        block::check(&namespace, SEED, 0, LEN)?;
        block::write_and_check(&namespace, SEED, 0, LEN)?;
        ours.set_access(port, 1, PortAccess::Optimized);
    }
    for controller in controllers {
        write_text(Path::new(&format!("/sys/class/nvme/{controller}/delete_controller")), "1")?;
    }
    Ok(())
}
