//! Cross-Controller Reset: what a host may ask for, and when the target says that it is done.

use std::sync::{Arc, Condvar, Mutex};

use sw_nvme::wire::{
    ccr::{self, Instance, Log, Progress, Told},
    feature::{Feature, async_events},
    log::{AsyncEvent, EventKind, LogPage, Retain},
};

use super::*;

/// Two controllers of one host: the admin queues and the lives of both.
fn two(change: impl FnOnce(&mut TargetConfig)) -> (Target, Host, [(Client, Instance); 2]) {
    let (target, config) = started(change);
    let host = Host::new(&config.subsystem, NONE);
    let both = [(); 2].map(|()| {
        let mut admin = host.admin(target.address()).0;
        let life = life(&mut admin);
        (admin, life)
    });
    (target, host, both)
}

fn life(admin: &mut Client) -> Instance {
    let page = identify::IdentifyController::decode(&admin.identify(Identify::Controller)).unwrap();
    assert_eq!(page.resets_max, 4);
    assert!(page.async_events & async_events::RESET_COMPLETED != 0);
    page.instance().unwrap()
}

/// Asks for a reset.
fn reset(admin: &mut Client, of: Instance) -> Result<Told, Status> {
    let done = admin.run(&Command::cross_controller_reset(of), Move::None).unwrap();
    let status = told(&done);
    if status.is_success() { Ok(Told::decode(done.value as u32)) } else { Err(status) }
}

/// How the resets go, as the log page tells; `lsp`: RMC.
fn log(admin: &mut Client, lsp: u8) -> Vec<(u16, u8, Progress)> {
    let page = Command::get_log_page(LogPage::Resets, 0, 4096, DataPointer::None).unwrap();
    let data = admin.run(&changed(&page, 41, &[lsp]), Move::In(4096)).unwrap().data;
    let of = |entry: ccr::Entry| (entry.controller, entry.uniquifier, entry.progress);
    Log::decode(&data).unwrap().0.into_iter().map(of).collect()
}

#[test]
fn a_controller_that_is_idle_is_reset_at_once_and_its_connections_end() {
    let (target, host, [(mut lost, of), (mut other, _)]) = two(|_| {});
    let mut io = host.io(target.address(), of.controller, 1);
    assert_eq!(reset(&mut other, of), Ok(Told::Done));
    assert!(matches!(lost.run(&Command::keep_alive(), Move::None), Err(Fail::Closed)));
    assert!(matches!(io.write(0, 1, &[1; 4096]), Err(Fail::Closed)));
    assert_eq!((target.counters().controllers, target.counters().cross_resets), (1, 1));
    assert_eq!(log(&mut other, 0), []);
    // That life is over: so it is when somebody asks again.
    assert_eq!(reset(&mut other, of), Ok(Told::Done));
    assert_eq!(target.counters().cross_resets, 1);
}

#[test]
fn another_life_of_a_controller_is_left_alone() {
    let (_target, _host, [(mut lost, of), (mut other, _)]) = two(|_| {});
    for wrong in [Instance { uniquifier: of.uniquifier + 7, ..of }, Instance { random: !of.random, ..of }] {
        assert_eq!(reset(&mut other, wrong), Ok(Told::Done), "it is over");
    }
    assert_eq!(told(&lost.run(&Command::keep_alive(), Move::None).unwrap()), Status::SUCCESS);
    // Disabled and enabled: the life before is over, and this one is not.
    assert_eq!(told(&lost.run(&Command::property_set(regs::CC, 0x0046_0000), Move::None).unwrap()), Status::SUCCESS);
    lost.enable();
    let next = life(&mut lost);
    assert!(next.controller == of.controller && next != of);
    assert_eq!(reset(&mut other, of), Ok(Told::Done));
    assert_eq!(told(&lost.run(&Command::keep_alive(), Move::None).unwrap()), Status::SUCCESS);
    assert_eq!(reset(&mut other, next), Ok(Told::Done));
    assert!(lost.run(&Command::keep_alive(), Move::None).is_err());
}

#[test]
fn a_controller_of_another_host_is_left_alone() {
    let (target, host, [_, (mut other, _)]) = two(|_| {});
    let nqn = Nqn::new("nqn.2026-11.io.straightway:another-host").unwrap();
    let (mut foreign, _) = Host { nqn, id: [9; 16], ..host }.admin(target.address());
    let of = life(&mut foreign);
    assert_eq!(reset(&mut other, of), Ok(Told::Done), "this host has none of that kind");
    assert_eq!(told(&foreign.run(&Command::keep_alive(), Move::None).unwrap()), Status::SUCCESS);
}

#[test]
fn what_cannot_be_is_refused() {
    let (_target, _host, [_, (mut other, own)]) = two(|_| {});
    assert_eq!(reset(&mut other, own), Err(Status::INVALID_FIELD.with_dnr()));
    let (_target, config) = started(|config| config.cross_reset = CrossReset::Refused);
    let (mut admin, _) = Host::new(&config.subsystem, NONE).admin(_target.address());
    let page = identify::IdentifyController::decode(&admin.identify(Identify::Controller)).unwrap();
    assert_eq!((page.resets_max, page.instance(), page.async_events), (0, None, 0));
    assert_eq!(reset(&mut admin, own), Err(Status::INVALID_OPCODE.with_dnr()));
    let command = Command::get_log_page(LogPage::Resets, 0, 4096, DataPointer::None).unwrap();
    let refused = admin.run(&command, Move::In(4096)).unwrap();
    assert_eq!(told(&refused), Status::INVALID_LOG_PAGE.with_dnr());
}

/// Holds up whoever carries a write out, until it is let go on.
#[derive(Default)]
struct Held {
    /// Threads that are held; whether they may go on.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Faults for Arc<Held> {
    fn command(&self, seen: &Seen) -> Option<Fault> {
        if (seen.qid, seen.opcode) == (1, command::opcode::WRITE) {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_timeout_while(state, PATIENCE, |(_, go_on)| !*go_on).unwrap());
        }
        None
    }
}

impl Held {
    fn wait_for(&self, held: usize) {
        let state = self.state.lock().unwrap();
        let (_state, waited) = self.changed.wait_timeout_while(state, PATIENCE, |(there, _)| *there < held).unwrap();
        assert!(!waited.timed_out(), "{held} writes do not come");
    }

    fn let_go(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

#[test]
fn while_a_command_is_carried_out_a_reset_is_not_done_and_an_event_tells_when_it_is() {
    let held = Arc::new(Held::default());
    let faults = Some(Arc::new(held.clone()) as Arc<dyn Faults>);
    let (target, host, [(_lost, of), (mut other, _)]) = two(|config| config.faults = faults);
    let mut io = host.io(target.address(), of.controller, 1);
    io.begin(&Command::write(at(0, 1), DataPointer::None, IoFlags::NONE), Move::Out(vec![5; 4096])).unwrap();
    held.wait_for(1);
    let bits = async_events::RESET_COMPLETED;
    let set = Command::set_features(&Feature::AsyncEvents { bits }, DataPointer::None);
    assert_eq!(told(&other.run(&set, Move::None).unwrap()), Status::SUCCESS);
    let (event, _) = other.begin(&Command::async_event_request(), Move::None).unwrap();
    assert_eq!(reset(&mut other, of), Ok(Told::Accepted));
    let under = (of.controller, of.uniquifier, Progress::Under);
    assert_eq!(log(&mut other, 1), [under], "what is not over is not removed");
    assert_eq!(reset(&mut other, of), Err(ccr::IN_PROGRESS.with_dnr()));
    // Somebody else asks: it is not done for him either.
    let (mut third, _) = host.admin(target.address());
    assert_eq!(reset(&mut third, of), Ok(Told::Accepted));
    assert_eq!(target.counters().writes, 0);
    held.let_go();
    let told = other.end().unwrap();
    let told_of = AsyncEvent::decode(told.value as u32);
    assert_eq!((told.user, told_of.kind, told_of.page()), (event, EventKind::ResetCompleted, Some(LogPage::Resets)));
    // It was carried out before.
    assert_eq!(target.counters().writes, 1);
    let over = (of.controller, of.uniquifier, Progress::Succeeded);
    assert_eq!((log(&mut other, 1), log(&mut other, 0)), (vec![over], vec![]));
    assert_eq!(log(&mut third, 0), [over]);
    assert_eq!(reset(&mut other, of), Ok(Told::Done));
    assert_eq!(target.counters().cross_resets, 1);
}

#[test]
fn a_controller_whose_host_went_is_not_over_before_its_commands_are() {
    let held = Arc::new(Held::default());
    let faults = Some(Arc::new(held.clone()) as Arc<dyn Faults>);
    let (target, host, [(lost, of), (mut other, _)]) = two(|config| config.faults = faults);
    let mut io = host.io(target.address(), of.controller, 1);
    io.begin(&Command::write(at(0, 1), DataPointer::None, IoFlags::NONE), Move::Out(vec![5; 4096])).unwrap();
    held.wait_for(1);
    drop((lost, io));
    until("the controller ends", || target.counters().controllers == 1);
    assert_eq!(reset(&mut other, of), Ok(Told::Accepted));
    assert_eq!(log(&mut other, 0), [(of.controller, of.uniquifier, Progress::Under)]);
    held.let_go();
    until("the write ends", || target.counters().writes == 1);
    until("the reset ends", || target.counters().connections_open == 1);
    assert_eq!(log(&mut other, 0), [(of.controller, of.uniquifier, Progress::Succeeded)]);
}

#[test]
fn a_controller_has_four_resets_under_way_at_a_time() {
    let held = Arc::new(Held::default());
    let faults = Some(Arc::new(held.clone()) as Arc<dyn Faults>);
    let (target, host, [(_first, _), (mut other, _)]) = two(|config| config.faults = faults);
    let mut busy = Vec::new();
    for held_up in 1..=5 {
        let (mut admin, _) = host.admin(target.address());
        let of = life(&mut admin);
        let mut io = host.io(target.address(), of.controller, 1);
        io.begin(&Command::write(at(0, 1), DataPointer::None, IoFlags::NONE), Move::Out(vec![5; 4096])).unwrap();
        held.wait_for(held_up);
        busy.push((admin, io, of));
    }
    let asked: Vec<_> = busy.iter().map(|(.., of)| reset(&mut other, *of)).collect();
    assert_eq!(asked[..4], [Ok(Told::Accepted); 4]);
    assert_eq!(asked[4], Err(ccr::LIMIT));
    held.let_go();
    until("the resets end", || target.counters().controllers == 3);
    until("the resets end", || target.counters().connections_open == 4);
    assert_eq!(reset(&mut other, busy[4].2), Ok(Told::Done));
    assert_eq!(log(&mut other, 0).len(), 4);
}

#[test]
fn one_that_fails_on_purpose_resets_nothing_and_says_so() {
    let (target, _host, [(mut lost, of), (mut other, _)]) = two(|config| config.cross_reset = CrossReset::Fails);
    assert_eq!(reset(&mut other, of), Ok(Told::Accepted));
    let mut seen = vec![log(&mut other, 0)[0].2];
    while *seen.last().unwrap() == Progress::Under {
        seen.push(log(&mut other, 0)[0].2);
    }
    assert_eq!((seen[0], seen.last()), (Progress::Under, Some(&Progress::Failed)));
    assert_eq!(told(&lost.run(&Command::keep_alive(), Move::None).unwrap()), Status::SUCCESS);
    assert_eq!(target.counters().cross_resets, 0);
    let page = Command::get_log_page(LogPage::Smart(Retain::Clear), 0, 512, DataPointer::None).unwrap();
    assert_eq!(told(&lost.run(&page, Move::In(512)).unwrap()), Status::SUCCESS);
}
