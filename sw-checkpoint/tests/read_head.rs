//! The head reader: bounded steps, memory by what arrived, short reads, files that shrink.

use sw_checkpoint::{
    Dtype, FIRST_STEP_LEN_BYTES, HEADER_LEN_MAX_BYTES, HeadReader, LayoutOptions, ReadStep, STEP_LEN_MAX_BYTES,
    TensorSpec, WritePlan,
};

#[test]
fn a_small_header_takes_one_step() {
    let specs = [TensorSpec { name: "a".to_owned(), dtype: Dtype::U8, shape: vec![500_000] }];
    let plan = WritePlan::new(&specs, &LayoutOptions::default()).unwrap();
    let mut file = plan.files[0].head.clone();
    file.resize(usize::try_from(plan.files[0].len_bytes).unwrap(), 7);
    let mut reader = HeadReader::new(file.len() as u64).unwrap();
    assert_eq!(reader.need(), Some(ReadStep { file_offset: 0, len_bytes: FIRST_STEP_LEN_BYTES }));
    reader.push(&file[..usize::try_from(FIRST_STEP_LEN_BYTES).unwrap()]).unwrap();
    assert_eq!(reader.need(), None);
    assert_eq!(reader.finish().unwrap().tensors().len(), 1);
}

#[test]
fn a_long_header_is_asked_for_in_bounded_steps() {
    let file_len = 200_000_000;
    let mut reader = HeadReader::new(file_len).unwrap();
    let mut first = vec![b' '; usize::try_from(FIRST_STEP_LEN_BYTES).unwrap()];
    first[..8].copy_from_slice(&HEADER_LEN_MAX_BYTES.to_le_bytes());
    reader.push(&first).unwrap();
    let step = reader.need().unwrap();
    assert_eq!(step, ReadStep { file_offset: FIRST_STEP_LEN_BYTES, len_bytes: STEP_LEN_MAX_BYTES });
    // The file delivers nothing more: an error, not a wait for 100 MB.
    assert_eq!(reader.push(&[]).unwrap_err().code(), "file-shrank");
}

#[test]
fn byte_by_byte_works_and_never_asks_past_the_end() {
    let plan = WritePlan::new(&[], &LayoutOptions { data_align_bytes: 8, ..LayoutOptions::default() }).unwrap();
    let file = &plan.files[0].head;
    let mut reader = HeadReader::new(file.len() as u64).unwrap();
    for &byte in file {
        let step = reader.need().unwrap();
        assert!(step.file_offset + step.len_bytes <= file.len() as u64);
        reader.push(&[byte]).unwrap();
    }
    assert_eq!(reader.need(), None);
    assert!(reader.finish().unwrap().tensors().is_empty());
}

#[test]
fn an_unfinished_head_is_an_error() {
    assert_eq!(HeadReader::new(7).unwrap_err().code(), "too-short");
    let mut reader = HeadReader::new(100).unwrap();
    reader.push(&[20, 0, 0]).unwrap();
    assert_eq!(reader.finish().unwrap_err().code(), "file-shrank");
    let mut reader = HeadReader::new(100).unwrap();
    reader.push(&[20, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
    assert_eq!(reader.finish().unwrap_err().code(), "wrong-slice");
}
