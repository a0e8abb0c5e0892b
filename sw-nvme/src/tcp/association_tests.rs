//! The fence is as long as the controller may take, and begins when it must.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const KATO: Duration = Duration::from_secs(10);

fn at(seconds: u64) -> Time {
    Time::ZERO.after(SECOND * u32::try_from(seconds).unwrap())
}

fn letting_go(kept_alive_by: KeptAliveBy) -> LettingGo {
    LettingGo { keep_alive: KATO, granularity: None, kept_alive_by, quiesce: SECOND }
}

fn association() -> Association {
    Association::new(KATO, 60 * SECOND, (1, letting_go(KeptAliveBy::Commands).span()), at(0))
}

fn is_safe(one: &Association, now: Time) -> bool {
    one.fences(now).next().is_none()
}

/// When the last fence ends.
fn fence(one: &Association) -> Option<Time> {
    one.fences(Time::ZERO).map(|(_, safe)| safe).max()
}

#[test]
fn a_controller_has_let_go_after_twice_its_keep_alive_and_three_times_where_traffic_keeps_it_alive() {
    assert_eq!(letting_go(KeptAliveBy::Commands).span(), 21 * SECOND);
    assert_eq!(letting_go(KeptAliveBy::Traffic).span(), 31 * SECOND);
    let rounded = LettingGo { granularity: Some(4 * SECOND), ..letting_go(KeptAliveBy::Commands) };
    assert_eq!(rounded.span(), 25 * SECOND, "10 s are 12 s to a timer in steps of 4 s");
}

#[test]
fn a_write_in_doubt_ends_the_association_and_no_write_is_safe_until_the_controller_let_go() {
    let mut one = association();
    assert!(is_safe(&one, at(1)));
    one.doubt(1, 21 * SECOND, at(2));
    assert_eq!((one.up(), one.duty(at(2), Wanted::Queues)), (None, Duty::LetGo));
    assert_eq!(one.duty(at(2), Wanted::Queues), Duty::Associate);
    one.made(2, 21 * SECOND, at(3));
    assert_eq!((one.up(), one.duty(at(3), Wanted::Queues)), (Some(2), Duty::Connect));
    assert!(!is_safe(&one, at(22)) && is_safe(&one, at(23)));
}

#[test]
fn doubt_about_an_earlier_association_leaves_the_next_one_up() {
    let mut one = association();
    one.lost(at(1));
    one.made(2, 21 * SECOND, at(2));
    assert!(is_safe(&one, at(3)));
    one.doubt(1, 21 * SECOND, at(4));
    assert_eq!(one.up(), Some(2));
    assert_eq!(one.fences(at(4)).collect::<Vec<_>>(), [(1, at(25))], "of the one that it was sent in");
    assert!(!is_safe(&one, at(5)));
}

#[test]
fn what_was_sent_while_a_lane_ended_the_association_begins_the_fence_anew() {
    let mut one = association();
    assert_eq!(one.duty(at(5), Wanted::None), Duty::Sign);
    one.doubt(1, 21 * SECOND, at(6));
    one.signed(at(9));
    assert_eq!(fence(&one), Some(at(30)));
    one.doubt(1, 21 * SECOND, at(10));
    assert_eq!(fence(&one), Some(at(31)));
}

#[test]
fn a_lost_association_is_tried_again_with_longer_pauses_until_patience_is_over() {
    let mut one = association();
    one.suspect();
    assert_eq!(one.duty(at(1), Wanted::Queues), Duty::Sign, "a lane that lost its connection is looked after first");
    one.lost(at(1));
    let mut now = at(1);
    let mut pauses = Vec::new();
    loop {
        assert_eq!(one.duty(now, Wanted::Queues), Duty::Associate);
        if one.failed(now) == Patience::Over {
            break;
        }
        let Duty::Rest(pause) = one.duty(now, Wanted::Queues) else { panic!() };
        pauses.push(pause.as_millis());
        now = now.after(pause);
    }
    assert_eq!(pauses[..7], [100, 200, 400, 800, 1600, 3200, 5000]);
    assert!(now.since(at(1)) >= 60 * SECOND);
}

#[test]
fn signs_are_given_twice_in_the_time_of_keep_alive() {
    let mut one = association();
    assert_eq!(one.duty(at(1), Wanted::None), Duty::Rest(4 * SECOND));
    assert_eq!(one.duty(at(5), Wanted::None), Duty::Sign);
    one.signed(at(6));
    assert_eq!(one.duty(at(6), Wanted::None), Duty::Rest(5 * SECOND));
}

#[test]
fn an_association_that_is_lost_without_a_write_in_doubt_leaves_the_fence_of_an_earlier_one_as_it_is() {
    let mut one = association();
    one.doubt(1, 21 * SECOND, at(2));
    assert_eq!(one.duty(at(2), Wanted::None), Duty::LetGo);
    // The target comes and goes: nothing of that keeps the first association alive.
    for (number, made) in [(2, 3), (3, 13), (4, 22)] {
        one.made(number, 21 * SECOND, at(made));
        one.lost(at(made));
        one.exchanged(at(made));
    }
    assert_eq!(fence(&one), Some(at(23)));
    assert!(is_safe(&one, at(23)));
}

#[test]
fn an_exchange_that_outlasts_the_fence_begins_it_anew() {
    let mut one = association();
    assert_eq!(one.duty(at(5), Wanted::None), Duty::Sign);
    one.doubt(1, 21 * SECOND, at(6));
    // Somebody looks before the attendant has given up waiting.
    assert!(is_safe(&one, at(27)));
    one.lost(at(28));
    assert_eq!(fence(&one), Some(at(49)));
}

#[test]
fn an_association_that_is_lost_at_once_is_made_again_with_longer_and_longer_pauses() {
    let mut one = association();
    let mut now = at(20);
    let mut pauses = Vec::new();
    one.lost(now);
    assert_eq!(one.duty(now, Wanted::Queues), Duty::Associate, "it lived: at once");
    for number in 2..10 {
        one.made(number, SECOND, now);
        now = now.after(Duration::from_millis(1));
        one.lost(now);
        let Duty::Rest(pause) = one.duty(now, Wanted::Queues) else { panic!("tried at once") };
        pauses.push(pause.as_millis());
        now = now.after(pause);
        assert_eq!(one.duty(now, Wanted::Queues), Duty::Associate);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    one.made(10, SECOND, now);
    now = now.after(6 * SECOND);
    one.doubt(10, SECOND, now);
    assert_eq!(one.duty(now, Wanted::Queues), Duty::LetGo);
    assert_eq!(one.duty(now, Wanted::Queues), Duty::Associate);
}
