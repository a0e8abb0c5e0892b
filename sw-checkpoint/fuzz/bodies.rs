//! What each fuzz target does with its bytes. Used by the libFuzzer targets here and by the bounded in-tree run
//! (`tests/mutations.rs`), so that both check the same things.

use sw_checkpoint::{
    Catalog, HeadReader, Header, HeaderError, LayoutOptions, LoadLimits, LoadPlan, Pattern, ShardIndex, TensorSpec,
    Want, WritePlan,
};

/// Takes `file` for a whole safetensors file. Returns `ok` or the error's code.
pub fn header(file: &[u8]) -> &'static str {
    let file_len_bytes = file.len() as u64;
    let whole = Header::from_head(file, file_len_bytes);
    let stepwise = in_steps(file);
    match (&whole, &stepwise) {
        (Ok(a), Ok(b)) => assert_eq!(a.tensors(), b.tensors()),
        // A head that is not all there is reported in the words of who noticed.
        (Err(a), Err(b)) => assert_eq!(a.code(), b.code()),
        (a, b) => panic!("the two readers disagree: {a:?} {b:?}"),
    }
    let header = match whole {
        Ok(header) => header,
        Err(error) => {
            check_message(&error.to_string());
            return error.code();
        }
    };
    let mut at = header.span().data_offset();
    for tensor in header.tensors() {
        assert_eq!(tensor.file_offset, at);
        at = tensor.file_end();
        assert_eq!(header.get(&tensor.name), Some(tensor));
    }
    assert_eq!(at, file_len_bytes);
    rewrite(&header);
    let catalog = Catalog::single("f.safetensors".to_owned(), header);
    let wants = Want::matching(&catalog, &Pattern::all()).expect("a pattern for all matches");
    let plan = LoadPlan::new(&catalog, &wants, LoadLimits::default()).expect("a real file fits memory");
    let read: u64 = plan.parts().map(|part| part.len_bytes).sum();
    assert_eq!(read, catalog.tensor_len_bytes());
    "ok"
}

fn in_steps(file: &[u8]) -> Result<Header, HeaderError> {
    let mut reader = HeadReader::new(file.len() as u64)?;
    let mut steps = 0;
    while let Some(step) = reader.need() {
        // Short reads of a third of what is asked.
        let from = usize::try_from(step.file_offset).expect("inside the slice");
        let len = usize::try_from(step.len_bytes.div_ceil(3)).expect("inside the slice");
        reader.push(&file[from..from + len])?;
        steps += 1;
        assert!(steps < 1_000, "the head reader makes no progress");
    }
    reader.finish()
}

/// Whatever we accept we can write, and read back as the same tensors.
fn rewrite(header: &Header) {
    let specs: Vec<TensorSpec> = header
        .tensors()
        .iter()
        .map(|t| TensorSpec { name: t.name.to_string(), dtype: t.dtype, shape: t.shape.to_vec() })
        .collect();
    let options = LayoutOptions { metadata: header.metadata().clone(), ..LayoutOptions::default() };
    let plan = WritePlan::new(&specs, &options).expect("an accepted header can be written");
    let file = &plan.files[0];
    let again = Header::from_head(&file.head, file.len_bytes).expect("our own file is accepted");
    assert_eq!(again.span().data_offset() % 4096, 0);
    assert_eq!(again.metadata(), header.metadata());
    for tensor in header.tensors() {
        let twin = again.get(&tensor.name).expect("every tensor comes back");
        assert_eq!((twin.dtype, &twin.shape, twin.len_bytes), (tensor.dtype, &tensor.shape, tensor.len_bytes));
    }
}

/// Takes `file` for a whole file of `torch.save`. Returns `ok` or the error's code.
pub fn torch(file: &[u8]) -> &'static str {
    match Catalog::of_torch_bytes("f.pt".to_owned(), file) {
        Ok(catalog) => {
            for tensor in catalog.tensors() {
                assert_eq!(catalog.get(&tensor.name), Some(tensor));
                for chunk in tensor.chunks() {
                    assert!(chunk.file_offset + chunk.len_bytes <= file.len() as u64);
                }
            }
            let whole = |at| Want::whole(&catalog, at).expect("a position of the catalog");
            let loadable = |at: &usize| matches!(catalog.tensors()[*at].held, sw_checkpoint::Held::Chunks(_));
            let wants: Vec<Want> = (0..catalog.tensors().len()).filter(loadable).map(whole).collect();
            let plan = LoadPlan::new(&catalog, &wants, LoadLimits::default()).expect("a real file fits memory");
            let end = |part: sw_checkpoint::ReadPart| part.file_offset + part.len_bytes;
            assert!(plan.parts().all(|part| end(part) <= file.len() as u64));
            "ok"
        }
        Err(error) => {
            check_message(&error.to_string());
            error.code()
        }
    }
}

/// Takes `metadata` for a `.metadata` file. Returns `ok` or the error's code.
pub fn dcp(metadata: &[u8]) -> &'static str {
    match sw_checkpoint::dcp_names(metadata) {
        Ok(_) => "ok",
        Err(error) => {
            check_message(&error.to_string());
            error.code()
        }
    }
}

/// Takes `text` for an index file. Returns `ok` or the error's code.
pub fn index(text: &[u8]) -> &'static str {
    match ShardIndex::parse(text) {
        Ok(index) => {
            for (tensor, file) in index.tensors() {
                assert_eq!(index.file_of(tensor), Some(file));
                assert!(sw_checkpoint::check_shard_name(file).is_ok());
                assert_eq!(std::path::Path::new(file).components().count(), 1);
            }
            "ok"
        }
        Err(error) => {
            check_message(&error.to_string());
            error.code()
        }
    }
}

/// Takes the first line for a pattern and the rest for a name. Returns `ok` or the error's code.
pub fn pattern(text: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(text);
    let (pattern, name) = text.split_once('\n').unwrap_or((&text, ""));
    match Pattern::parse(pattern) {
        Ok(pattern) => {
            let idle = pattern.idle_items(std::iter::once(name));
            assert!(pattern.matches(name) || !idle.is_empty());
            "ok"
        }
        Err(error) => {
            check_message(&error.to_string());
            error.code()
        }
    }
}

/// One line that a terminal can show, of bounded length.
fn check_message(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(message.len() < 4_000, "{} bytes", message.len());
}
