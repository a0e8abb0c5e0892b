//! Only a success of exactly that life lets writes go on before their time, and nobody is asked twice.

use super::*;
use crate::{
    paths::Fences,
    status::Status,
    wire::{
        IDENTIFY_BYTES,
        ccr::{self, Entry},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u32) -> Time {
    Time::ZERO.after(SECOND * seconds)
}

fn holder(controller: u64, association: u64) -> Holder {
    Holder { controller, association }
}

/// Identify Controller of CNTLID `id`, with serial number, CIU, CIRN, CCRL.
fn says(id: u16, serial: u8, uniquifier: u8, random: u64, most: u8) -> IdentifyController {
    let mut page = vec![0; IDENTIFY_BYTES];
    page[4] = serial;
    page[78..80].copy_from_slice(&id.to_le_bytes());
    page[135] = uniquifier;
    page[136..144].copy_from_slice(&random.to_le_bytes());
    page[512..514].copy_from_slice(&[0x66, 0x44]);
    page[1807] = most;
    IdentifyController::decode(&page).unwrap()
}

fn host(name: &str) -> Nqn {
    Nqn::new(&format!("nqn.2026-11.io.example:{name}")).unwrap()
}

/// The life of CNTLID `id` with a CIU of 5, of host `a`, as any other is in one point of.
fn life(id: u16) -> Life {
    Life::of(&says(id, b'S', 5, 0xABCD, 4), id, (&host("a"), [1; 16])).unwrap()
}

/// Of association 1 of controller 9, whose CNTLID is 90.
fn errands(most: u8) -> Errands {
    Errands::of(holder(9, 1), &says(90, b'S', 7, 1, most), 90, (&host("a"), [1; 16])).unwrap()
}

fn answer(dw0: u32) -> Option<Answer> {
    Some(Answer { status: Status::SUCCESS, dw0 })
}

/// CNTLID, CIU, and how it goes.
type Row = (u16, u8, Progress);

fn log(entries: &[Row]) -> Log {
    let entry = |(controller, uniquifier, progress)| Entry { controller, uniquifier, alternate: 0, progress, flags: 3 };
    Log(entries.iter().copied().map(entry).collect())
}

/// Fences with one of controller 1, whose CNTLID is 10, until 20 s.
fn fenced() -> Fences {
    let mut fences = Fences::default();
    fences.raise(holder(1, 1), at(20), Some(&life(10)));
    fences
}

#[test]
fn success_at_once_lets_writes_go_on_and_doubt_that_is_told_later_raises_nothing() {
    let (mut fences, mut errands) = (fenced(), errands(4));
    let errand = fences.claim(&errands, at(1)).unwrap();
    assert_eq!((errand.of, errand.instance, errand.until), (holder(1, 1), life(10).instance, at(20)));
    assert!(!fences.is_safe(at(1)), "asking proves nothing");
    let verdict = errands.answered(errand, answer(1), at(1));
    assert_eq!((verdict, errands.due()), (Verdict::Done, None));
    fences.settle(&errand, verdict);
    assert!(fences.is_safe(at(1)) && fences.proofs() == 1);
    // A lane tells of its doubt about the same association only now.
    let doubts = fences.doubts();
    fences.raise(holder(1, 1), at(30), Some(&life(10)));
    assert!(fences.is_safe(at(2)) && fences.doubts() == doubts);
    // The next association of the same controller is another life.
    fences.raise(holder(1, 2), at(30), Some(&life(10)));
    assert!(!fences.is_safe(at(2)));
}

#[test]
fn a_fence_of_another_association_or_a_write_that_is_awaited_stays() {
    let (mut fences, mut errands) = (fenced(), errands(4));
    fences.raise(holder(1, 2), at(25), None);
    let errand = fences.claim(&errands, at(1)).unwrap();
    fences.settle(&errand, errands.answered(errand, answer(1), at(1)));
    assert!(!fences.is_safe(at(24)) && fences.is_safe(at(25)));
    let mut fences = fenced();
    fences.awaits();
    fences.settle(&errand, Verdict::Done);
    assert!(!fences.is_safe(at(1)), "its controller is alive, and carries it out");
    fences.answered();
    assert!(fences.is_safe(at(1)));
}

#[test]
fn what_was_accepted_is_no_success_until_the_log_page_says_so_of_that_life() {
    use Progress::{Failed, Other, Succeeded, Under};
    let rows: &[(&[Row], Verdict)] = &[
        (&[(10, 5, Succeeded)], Verdict::Done),
        (&[(10, 5, Under)], Verdict::Open),
        (&[(10, 5, Failed)], Verdict::Failed),
        (&[(10, 5, Other(9))], Verdict::Open),
        (&[], Verdict::Open),
        // Others.
        (&[(10, 6, Succeeded), (11, 5, Succeeded), (90, 7, Succeeded)], Verdict::Open),
        (&[(10, 6, Failed), (10, 5, Succeeded)], Verdict::Done),
        // Two of the same: one of them may be an earlier one's.
        (&[(10, 5, Succeeded), (10, 5, Under)], Verdict::Open),
        (&[(10, 5, Succeeded), (10, 5, Failed)], Verdict::Failed),
    ];
    for (entries, wanted) in rows {
        let (mut fences, mut errands) = (fenced(), errands(4));
        let errand = fences.claim(&errands, at(1)).unwrap();
        assert_eq!(errands.answered(errand, answer(0), at(1)), Verdict::Open);
        assert_eq!(errands.due(), Some(at(1).after(LOOK_FIRST)));
        let over = errands.told(Some(&log(entries)), at(2));
        assert_eq!(over.first().map_or(Verdict::Open, |(_, verdict)| *verdict), *wanted, "{entries:?}");
        over.iter().for_each(|(errand, verdict)| fences.settle(errand, *verdict));
        assert_eq!(fences.is_safe(at(2)), *wanted == Verdict::Done, "{entries:?}");
        assert_eq!(errands.due().is_some(), *wanted == Verdict::Open);
    }
}

#[test]
fn the_log_page_is_looked_at_with_longer_pauses_at_once_after_an_event_and_not_behind_the_fence() {
    let (mut fences, mut errands) = (fenced(), errands(4));
    let errand = fences.claim(&errands, at(0)).unwrap();
    errands.answered(errand, answer(0), at(0));
    let (mut now, mut pauses) = (at(0), Vec::new());
    let over = loop {
        let due = errands.due().unwrap();
        pauses.push(due.since(now).as_millis());
        now = due;
        // A page that is refused says nothing.
        let over = errands.told((pauses.len() % 2 == 0).then_some(&Log::default()), now);
        if !over.is_empty() {
            break over;
        }
    };
    assert_eq!(pauses[..8], [20, 40, 80, 160, 320, 640, 1000, 1000]);
    assert!(now >= at(20) && now < at(22));
    assert_eq!((over, errands.due()), (vec![(errand, Verdict::Failed)], None));
    let mut fences = fenced();
    let mut errands = self::errands(4);
    let errand = fences.claim(&errands, at(0)).unwrap();
    errands.answered(errand, answer(0), at(0));
    errands.hurry(at(0));
    assert_eq!(errands.due(), Some(at(0)));
    assert_eq!(errands.end(), [errand]);
}

#[test]
fn refusals_prove_nothing_and_somebody_else_may_be_asked() {
    let statuses = [ccr::IN_PROGRESS, ccr::LIMIT, ccr::LOG_FULL, Status::INVALID_FIELD, Status::INVALID_OPCODE];
    let refused = statuses.map(|status| Some(Answer { status, dw0: 1 }));
    for answer in refused.into_iter().chain([None]) {
        let (mut fences, mut errands) = (fenced(), errands(4));
        let errand = fences.claim(&errands, at(1)).unwrap();
        let other = Errands::of(holder(8, 1), &says(80, b'S', 1, 1, 1), 80, (&host("a"), [1; 16])).unwrap();
        assert_eq!(fences.claim(&other, at(1)), None, "one at a time");
        let verdict = errands.answered(errand, answer, at(1));
        assert_eq!(verdict, Verdict::Failed);
        fences.settle(&errand, verdict);
        assert!(!fences.is_safe(at(19)) && fences.proofs() == 0);
        assert_eq!(fences.claim(&errands, at(1)), None, "nobody is asked twice");
        assert_eq!(fences.claim(&other, at(1)), Some(errand));
        assert_eq!(fences.claim(&other, at(20)), None, "nothing to be won");
    }
}

#[test]
fn only_a_controller_of_the_same_subsystem_and_host_is_asked_and_never_about_itself() {
    let asks = |life: Option<Life>, by: &Errands| {
        let mut fences = Fences::default();
        fences.raise(holder(1, 1), at(20), life.as_ref());
        fences.claim(by, at(1)).is_some()
    };
    let of = |id, serial, name, host_id| Life::of(&says(id, serial, 5, 1, 0), id, (&host(name), host_id));
    assert!(asks(of(10, b'S', "a", [1; 16]), &errands(1)));
    assert!(!asks(of(10, b'T', "a", [1; 16]), &errands(1)), "another subsystem under the same name");
    assert!(!asks(of(10, b'S', "b", [1; 16]), &errands(1)) && !asks(of(10, b'S', "a", [2; 16]), &errands(1)));
    assert!(!asks(of(90, b'S', "a", [1; 16]), &errands(1)), "its own number");
    assert!(!asks(None, &errands(1)));
    assert_eq!(Life::of(&says(10, b'S', 0, 1, 4), 10, (&host("a"), [1; 16])), None, "no CIU");
    assert_eq!(Life::of(&says(10, b'S', 5, 1, 4), 11, (&host("a"), [1; 16])), None, "Connect said another number");
    assert!(Errands::of(holder(9, 1), &says(90, b'S', 7, 1, 0), 90, (&host("a"), [1; 16])).is_none());
    // The association in doubt itself, whatever its number.
    let mut fences = Fences::default();
    fences.raise(holder(9, 1), at(20), Some(&life(10)));
    assert_eq!(fences.claim(&errands(4), at(1)), None);
}

#[test]
fn no_more_are_asked_for_at_a_time_than_the_controller_takes_and_each_number_once() {
    let (mut fences, mut errands) = (Fences::default(), errands(2));
    (1..=3).for_each(|n| fences.raise(holder(n, 1), at(20), Some(&life(u16::try_from(10 + n).unwrap()))));
    let [one, two] = [(); 2].map(|()| {
        let errand = fences.claim(&errands, at(1)).unwrap();
        errands.answered(errand, answer(0), at(1));
        errand
    });
    assert_eq!(fences.claim(&errands, at(1)), None);
    let log = log(&[(one.instance.controller, 5, Progress::Succeeded), (two.instance.controller, 5, Progress::Under)]);
    assert_eq!(errands.told(Some(&log), at(2)), [(one, Verdict::Done)]);
    fences.settle(&one, Verdict::Done);
    assert!(fences.claim(&errands, at(2)).is_some_and(|errand| errand.of == holder(3, 1)));
    // Another life with the CNTLID and CIU of one that was asked for: an entry of the page could be of either.
    fences.raise(
        holder(4, 1),
        at(20),
        Some(&Life { instance: Instance { random: 1, ..life(11).instance }, ..life(11) }),
    );
    assert_eq!(fences.claim(&self::errands(4), at(2)).map(|errand| errand.of), Some(holder(4, 1)));
    let mut fences = Fences::default();
    fences.raise(holder(4, 1), at(20), Some(&life(11)));
    assert_eq!(fences.claim(&errands, at(2)), None);
}
