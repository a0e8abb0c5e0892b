//! The kernel's discovery service with many subsystems, and with some that come and go while it is asked.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use straightway::discovery;

use super::fabrics::{NQN, Target, host_name, known, nvmet};
use crate::context::{Context, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics-discovery",
    tests: &[
        Test::new("many", "hundreds of subsystems are told of, each once", many).bed_only().limit_s(90),
        Test::new("follows", "what the page tells follows subsystems and hosts that are added and removed", follows)
            .bed_only()
            .limit_s(60),
        Test::new("changing", "a page that changes while it is read is read again: no subsystem is lost", changing)
            .bed_only()
            .limit_s(90),
    ],
};

/// Subsystems beside the target's own: more than one answer of the log page holds.
const MANY: u32 = 300;
/// Between two changes of the page, which takes about as long to read.
const PAUSE: Duration = Duration::from_millis(20);

/// A subsystem without namespaces. The target takes it away when it goes.
fn add(name: &str) -> Verdict {
    std::fs::create_dir(nvmet(&format!("subsystems/{name}")))?;
    write_text(&nvmet(&format!("subsystems/{name}/attr_allow_any_host")), "1")?;
    Ok(symlink(nvmet(&format!("subsystems/{name}")), nvmet(&format!("ports/1/subsystems/{name}")))?)
}

fn remove(name: &str) -> Verdict {
    std::fs::remove_file(nvmet(&format!("ports/1/subsystems/{name}")))?;
    Ok(std::fs::remove_dir(nvmet(&format!("subsystems/{name}")))?)
}

fn numbered(number: u32) -> String {
    format!("nqn.2026-11.io.straightway:many-{number:04}")
}

/// The subsystems that are told of; a failure if one is told of twice, or anything is left out.
fn told() -> Result<BTreeSet<String>, Stop> {
    let told = discovery::discover("127.0.0.1", &discovery::Asking::default())?;
    same("what was left out", &(told.failed.len(), told.not_followed.len(), told.left_out), &(0, 0, 0))?;
    let own = |entry: &&discovery::Entry| entry.kind == discovery::SubsystemType::Nvme;
    let names: Vec<String> = told.entries.iter().filter(own).map(|entry| entry.subsystem.to_string()).collect();
    let set: BTreeSet<String> = names.iter().cloned().collect();
    same("entries that are told of once", &names.len(), &set.len())?;
    Ok(set)
}

fn many(context: &Context) -> Verdict {
    let _target = Target::make()?;
    known()?;
    (0..MANY).try_for_each(|number| add(&numbered(number)))?;
    let mut wanted: BTreeSet<String> = (0..MANY).map(numbered).collect();
    wanted.insert(NQN.into());
    let found = told()?;
    context.fact(&json!({"subsystems": found.len()}));
    same("the subsystems", &(found == wanted), &true)?;
    (0..MANY).step_by(2).try_for_each(|number| remove(&numbered(number)))?;
    wanted.retain(|name| name == NQN || (1..MANY).step_by(2).any(|number| numbered(number) == *name));
    same("those that are left", &(told()? == wanted), &true)
}

fn follows(_: &Context) -> Verdict {
    let _target = Target::make()?;
    known()?;
    let (own, one) = (NQN.to_owned(), numbered(1));
    same("at first", &told()?, &[own.clone()].into())?;
    add(&one)?;
    same("with one more", &told()?, &[own.clone(), one.clone()].into())?;
    // Only hosts that it lets in are told of it, and we are none.
    write_text(&nvmet(&format!("subsystems/{one}/attr_allow_any_host")), "0")?;
    same("when it lets nobody in", &told()?, &[own.clone()].into())?;
    let host = nvmet(&format!("hosts/{}", host_name()));
    std::fs::create_dir(&host)?;
    let allowed = nvmet(&format!("subsystems/{one}/allowed_hosts/{}", host_name()));
    symlink(&host, &allowed)?;
    same("when it lets us in", &told()?, &[own.clone(), one.clone()].into())?;
    std::fs::remove_file(allowed)?;
    same("when it does not any more", &told()?, &[own.clone()].into())?;
    remove(&one)?;
    same("when it is gone", &told()?, &[own].into())
}

/// Answers of a page that changes, and how often it is asked for them at most.
const ANSWERS: u32 = 30;
const ASKED_MAX: u32 = 300;

fn changing(context: &Context) -> Verdict {
    let _target = Target::make()?;
    known()?;
    let stay = 40;
    (0..stay).try_for_each(|number| add(&numbered(number)))?;
    let stop = AtomicBool::new(false);
    let (asked, sizes) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut changes = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let name = numbered(stay + 1);
                add(&name)?;
                // A page that changes faster than it can be read at all is given up; that is another test's (`sw-nvme`, discovery).
                std::thread::sleep(PAUSE);
                remove(&name)?;
                std::thread::sleep(PAUSE);
                changes += 2;
            }
            Ok::<_, Stop>(changes)
        });
        let (mut sizes, mut answers) = (BTreeSet::new(), 0);
        let asked = (0..ASKED_MAX).try_for_each(|_| {
            if answers == ANSWERS {
                return Ok(());
            }
            // On a machine that others use a change may come into each of its reads.
            let found = match told() {
                Err(stop) if stop.to_string().contains("changed while it was read") => return Ok(()),
                found => found?,
            };
            answers += 1;
            sizes.insert(found.len());
            let lost = (0..stay).map(numbered).chain([NQN.to_owned()]).find(|name| !found.contains(name));
            match lost {
                Some(name) => fail(format!("{name} is not told of")),
                None => Ok(()),
            }
        });
        stop.store(true, Ordering::Relaxed);
        let changes = changing.join().unwrap_or_else(|_| fail("the thread that changes it panicked"))?;
        context.fact(&json!({"changes": changes, "sizes": format!("{sizes:?}")}));
        asked?;
        same("answers", &answers, &ANSWERS)?;
        Ok::<_, Stop>((changes, sizes))
    })?;
    let stay = usize::try_from(stay)?;
    let others = sizes.iter().find(|size| !(stay + 1..=stay + 2).contains(size));
    same("how many there are at a time", &(others, asked > 0), &(None, true))
}
