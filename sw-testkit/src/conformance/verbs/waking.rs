//! No wake-up is lost.

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{Builder, yield_now},
    time::Duration,
};

use sw_engine::seam::verbs::{FabricKind, SendOp, Wc, WcKind, WcStatus};

use super::{
    super::{CaseResult, End, fail, skip},
    Bed,
    rig::{EndPoint, pair, told},
};

const OK: WcStatus = WcStatus::Success;
/// Messages of the race, each of which comes at another moment of the wait for it.
const ROUNDS: u64 = 2_000;
/// Turns that the sender spins before a message at most, and looks that the receiver takes before it arms.
const JITTER: u64 = 512;
/// Of so many pauses one lets other threads have their turn, which takes long where they have much to do.
const YIELDS_ONE_IN: u64 = 8;
/// How long a wake-up is slept for.
const SLEEP: Duration = Duration::from_secs(20);

pub(super) fn wake(bed: &mut dyn Bed) -> CaseResult {
    let (_device, mut a, mut b) = pair(bed)?;
    for round in 0..200u32 {
        b.recv(1, 0, 8)?;
        let before = b.wakes.so_far();
        told("arm", b.cq.arm())?;
        a.post(1, SendOp::Send, 0, 8)?;
        let begun = bed.now();
        while b.wakes.so_far() == before {
            if bed.now().saturating_sub(begun).as_secs() > 10 {
                return fail(format!("no wake in round {round}"));
            }
            bed.idle();
        }
        b.expect(bed, (1, WcKind::Recv, OK))?;
        a.expect(bed, (1, WcKind::Send, OK))?;
    }
    // One wake each time it is armed, and none without.
    let before = b.wakes.so_far();
    b.recv(1, 0, 8)?;
    a.post(1, SendOp::Send, 0, 8)?;
    b.expect(bed, (1, WcKind::Recv, OK))?;
    if b.wakes.so_far() == before { Ok(()) } else { fail("a wake that nobody asked for") }
}

/// What both threads of the race see.
#[derive(Default)]
struct Race {
    /// Messages that may be sent: those before were received, so that nothing else wakes whoever misses one.
    asked: AtomicU64,
    is_over: AtomicBool,
}

pub(super) fn race(bed: &mut dyn Bed) -> CaseResult {
    let (device, mut a, mut b) = pair(bed)?;
    if device.facts().kind == FabricKind::Model {
        return skip("a model has one thread: nothing happens between a look and the arm");
    }
    let race = Race::default();
    std::thread::scope(|scope| {
        let (race, a) = (&race, &mut a);
        let sending = Builder::new().name("send".to_owned()).spawn_scoped(scope, move || send_each(race, a));
        let sending = told("thread", sending)?;
        let received = receive_each(race, &mut b);
        race.is_over.store(true, Ordering::Release);
        let sent = sending.join().unwrap_or_else(|_| fail("the sending end panicked"));
        received.and(sent)
    })
}

/// Sends each message once it is asked for, and a while later each time.
fn send_each(race: &Race, a: &mut EndPoint) -> CaseResult {
    let mut some = Vec::with_capacity(1);
    for round in 0..ROUNDS {
        while race.asked.load(Ordering::Acquire) <= round {
            if race.is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            yield_now();
        }
        pause(round, 1);
        a.post(round, SendOp::Send, 0, 8)?;
        some.clear();
        while a.cq.poll(&mut some) == 0 {
            if race.is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            yield_now();
        }
        match some.first() {
            Some(Wc { kind: WcKind::Send, status: OK, .. }) => {}
            other => return fail(format!("send {round}: {other:?}")),
        }
    }
    Ok(())
}

/// Waits for each message as the seam says.
fn receive_each(race: &Race, b: &mut EndPoint) -> CaseResult {
    for round in 0..ROUNDS {
        b.recv(round, 0, 8)?;
        race.asked.store(round + 1, Ordering::Release);
        match next(b, round)? {
            Some(Wc { kind: WcKind::Recv, status: OK, wr_id, .. }) if wr_id == round => {}
            Some(other) => return fail(format!("receive {round}: {other:?}")),
            None => return fail(format!("nobody wakes for message {round}")),
        }
    }
    Ok(())
}

/// The next completion, after some looks asleep; `None` if no wake-up comes. Between two steps there is time for it to come.
fn next(b: &EndPoint, round: u64) -> Result<Option<Wc>, End> {
    let mut some = Vec::with_capacity(1);
    if (0..drawn(round, 2)).any(|_| b.cq.poll(&mut some) > 0) {
        return Ok(some.pop());
    }
    pause(round, 3);
    loop {
        let before = b.wakes.so_far();
        told("arm", b.cq.arm())?;
        if b.cq.poll(&mut some) > 0 {
            return Ok(some.pop());
        }
        pause(round, 4);
        if !b.wakes.sleep_past(before, SLEEP) {
            return Ok(None);
        }
    }
}

/// Spins for some turns, or lets others have theirs: the machine may have one processor.
fn pause(round: u64, salt: u64) {
    if drawn(round, salt + 4).is_multiple_of(YIELDS_ONE_IN) {
        yield_now();
    } else {
        (0..drawn(round, salt)).for_each(|_| spin_loop());
    }
}

/// Below [`JITTER`], another one for each round and salt (splitmix64's finalizer).
fn drawn(round: u64, salt: u64) -> u64 {
    let mut word = (round << 4 | salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (word ^ (word >> 27)) % JITTER
}
