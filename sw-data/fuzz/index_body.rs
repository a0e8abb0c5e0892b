//! What target `arrow` does with its bytes. Used by it and by the bounded in-tree run (`tests/index.rs`), so that both check the
//! same things.

use sw_data::{index::Index, samples::Samples as _};

/// Most samples and objects that are asked for: a file may claim any number.
const ASKED_MAX: u64 = 300;

/// Takes `file` for a whole index and asks it everything. Returns `ok`, or the name of the error's kind.
pub fn index(file: &[u8]) -> &'static str {
    match ask(file) {
        Ok(()) => "ok",
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() < 4_000, "{text:?}");
            error.kind().name()
        }
    }
}

fn ask(file: &[u8]) -> Result<(), straightway::Error> {
    let index = Index::from_bytes(file.to_vec())?;
    let objects = u64::from(index.object_count()).min(ASKED_MAX);
    for object in (0..objects).filter_map(|object| u32::try_from(object).ok()) {
        index.object(object)?;
        let held = index.held(object)?;
        assert!(held.first + held.samples <= index.len());
    }
    assert!(index.object(index.object_count()).is_err());
    let half = ASKED_MAX / 2;
    let numbers: Vec<u64> = (0..index.len().min(half)).chain(index.len().saturating_sub(half)..index.len()).collect();
    let mut places = Vec::new();
    index.locate(&numbers, &mut places)?;
    assert_eq!(places.len(), numbers.len());
    for place in &places {
        let entry = index.object(place.object)?;
        assert!(place.extent.offset.checked_add(place.extent.len).is_some_and(|end| end <= entry.len));
    }
    let mut labels = Vec::new();
    index.labels(&numbers, &mut labels)?;
    assert_eq!(labels.len(), numbers.len());
    for (label, place) in labels.iter().zip(&places) {
        for part in &label.parts {
            assert!(part.extent.offset.checked_add(part.extent.len).is_some_and(|end| end <= place.extent.len));
        }
    }
    if !index.is_empty() {
        index.lens_from(0)?;
    }
    assert!(index.locate(&[index.len()], &mut places).is_err());
    Ok(())
}
