//! The shared library: its names, what it shows, what it needs.

use std::collections::BTreeSet;

use crate::LIBRARY;

fn committed() -> BTreeSet<String> {
    std::fs::read_to_string(LIBRARY.in_package("abi.txt")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn it_shows_the_committed_names_and_nothing_else() {
    let Some(shown) = LIBRARY.shown() else { return };
    assert_eq!(shown, committed(), "a change of ffi/cufile/abi.txt is a change of the interface");
    let (own, official): (Vec<_>, Vec<_>) = shown.iter().partition(|name| name.starts_with("sw_cufile_"));
    assert_eq!(official.len(), 50, "the public names of 1.20");
    assert!(official.iter().all(|name| name.starts_with("cuFile")), "{official:?}");
    assert_eq!(own.len(), 4);
}

#[test]
fn every_name_is_in_a_header() {
    let header = |name: &str| std::fs::read_to_string(LIBRARY.in_package("include").join(name)).unwrap();
    let headers = header("cufile.h") + &header("sw_cufile.h");
    for name in committed() {
        assert!(headers.contains(&format!("{name}(")), "{name} is in no header");
    }
}

#[test]
fn its_name_is_that_of_cufile_and_it_stays_once_it_is_loaded() {
    let Some(text) = LIBRARY.assert_loads_anywhere_and_stays() else { return };
    // As of the official one: no versions of symbols.
    assert!(!text.contains("VERDEF"), "{text}");
}
