use super::*;
use crate::{
    namespace::Identity,
    wire::identify::{IdentifyNamespace, MetadataVerdict},
};

fn pick(paths: &[(Standing, usize)], spread: Spread, turn: usize) -> Choice {
    choose(paths.iter().copied(), spread, turn)
}

#[test]
fn the_best_standing_wins_and_a_path_that_is_of_no_use_never_does() {
    use Standing::{Absent, Another, Best, Coming, Later, Never, Works};
    let rows: &[(&[Standing], Choice)] = &[
        (&[Works, Best, Works], Choice::By(1)),
        (&[Never, Works, Later], Choice::By(1)),
        // An association that is being made may bring a path; one that is up and inaccessible may, too.
        (&[Later, Coming], Choice::By(1)),
        (&[Later, Never], Choice::Wait),
        (&[Another, Later], Choice::Wait),
        // Who has it not any more says so, unless somebody else has it, or may have it.
        (&[Absent, Another, Never], Choice::By(0)),
        (&[Absent, Works], Choice::By(1)),
        (&[Absent, Later], Choice::Wait),
        (&[Never, Another], Choice::Never(Another)),
        (&[Never, Never], Choice::Never(Never)),
        (&[], Choice::Never(Never)),
    ];
    for (standings, choice) in rows {
        let paths: Vec<_> = standings.iter().map(|standing| (*standing, 0)).collect();
        for spread in [Spread::All, Spread::First] {
            assert_eq!(pick(&paths, spread, 0), *choice, "{standings:?}");
        }
    }
}

#[test]
fn ios_are_spread_over_paths_that_stand_equally_well_by_what_is_under_way() {
    let even = [(Standing::Best, 3), (Standing::Works, 0), (Standing::Best, 3)];
    let turns = |spread| [0, 1, 2].map(|turn| pick(&even, spread, turn));
    assert_eq!(turns(Spread::All), [Choice::By(0), Choice::By(2), Choice::By(0)]);
    assert_eq!(turns(Spread::First), [Choice::By(0); 3]);
    // A path that is slower has more under way, and gets less.
    let uneven = [(Standing::Best, 4), (Standing::Best, 3)];
    assert_eq!([0, 1].map(|turn| pick(&uneven, Spread::All, turn)), [Choice::By(1); 2]);
}

#[test]
fn states_of_access_have_their_standing() {
    let of = |access| Standing::of(Some(access));
    assert_eq!(
        (Standing::of(None), of(Access::Optimized), of(Access::NonOptimized)),
        (Standing::Best, Standing::Best, Standing::Works)
    );
    assert_eq!([Access::Inaccessible, Access::Change].map(of), [Standing::Later; 2]);
    assert_eq!(of(Access::PersistentLoss), Standing::Never);
}

fn namespace(nsid: u32, name: u8) -> Namespace {
    let info = IdentifyNamespace { size_blocks: 8, ..IdentifyNamespace::default() };
    let identity = Identity::Nguid([name; 16]);
    Namespace { nsid, info, metadata: MetadataVerdict::None, limits: None, identity, unusable: None, generation: 99 }
}

#[test]
fn a_namespace_has_one_generation_by_every_controller_and_another_one_has_another() {
    let mut lineage = Lineage::default();
    let mut generation = |nsid, name, serial| {
        let mut seen = namespace(nsid, name);
        lineage.name(&mut seen, serial);
        seen.generation
    };
    assert_eq!([generation(1, 7, "S"), generation(2, 8, "S"), generation(1, 7, "S")], [0, 0, 0]);
    let other = generation(1, 9, "S");
    assert_ne!(other, 0, "another name");
    let foreign = generation(1, 7, "T");
    assert!(foreign != 0 && foreign != other, "another subsystem");
    // By a controller that still has it, or again: the same.
    assert_eq!([generation(1, 7, "S"), generation(1, 9, "S"), generation(1, 7, "T")], [0, other, foreign]);
}

#[test]
fn a_lineage_that_is_full_takes_nothing_for_what_it_was() {
    let mut lineage = Lineage::default();
    for nsid in 1..=4096 {
        lineage.name(&mut namespace(nsid, 1), "S");
    }
    let mut over = [namespace(5000, 1), namespace(5000, 1), namespace(1, 1)];
    over.iter_mut().for_each(|seen| lineage.name(seen, "S"));
    let [first, second, known] = over.map(|seen| seen.generation);
    assert!(first != 0 && second != 0 && first != second);
    assert_eq!(known, 0);
}

fn holder(controller: u64) -> Holder {
    Holder { controller, association: 1 }
}

#[test]
fn no_write_is_safe_while_any_controller_may_carry_one_out() {
    let (mut fences, at) = (Fences::default(), Time);
    assert!(fences.is_safe(at(0)) && fences.doubts() == 0);
    fences.raise(holder(1), at(50), None);
    fences.raise(holder(2), at(30), None);
    // An earlier end of the same controller's fence does not count.
    fences.raise(holder(1), at(20), None);
    assert_eq!((fences.doubts(), fences.fence()), (2, Some(at(50))));
    assert!(!fences.is_safe(at(29)) && !fences.is_safe(at(49)));
    assert!(fences.is_safe(at(50)));
    assert_eq!((fences.fence(), fences.doubts()), (None, 2));
}

#[test]
fn no_write_is_safe_while_one_goes_on_whose_end_was_told() {
    let (mut fences, at) = (Fences::default(), Time);
    fences.awaits();
    fences.awaits();
    assert_eq!((fences.is_safe(at(0)), fences.doubts()), (false, 2), "lanes that took writes for safe look again");
    fences.answered();
    assert!(!fences.is_safe(at(1000)) && fences.fence() == Some(at(u64::MAX)));
    // One is in doubt by the time that nobody waits for its answer any more.
    fences.raise(holder(1), at(2000), None);
    fences.answered();
    assert!(!fences.is_safe(at(1999)) && fences.is_safe(at(2000)));
}
