//! Properties: what we lay out we read back; a load plan brings every chosen byte to its place.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use sw_checkpoint::{
    Catalog, Dtype, Header, LayoutOptions, LoadLimits, LoadPlan, Pattern, PlanError, Shard, ShardIndex, TensorSpec,
    Want, WritePlan,
};

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// The byte of a file that belongs at an offset: differs between files and between neighbouring blocks.
fn byte(file: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0] ^ u8::try_from(file % 251).unwrap()
}

fn specs() -> impl Strategy<Value = Vec<TensorSpec>> {
    let name = prop_oneof![4 => "[a-c]{1,3}(\\.[a-c0-9]{1,3})?", 1 => "\\PC{0,6}", 1 => "[\"\\\\\u{0}-\u{1f}é]{1,4}"];
    // A last dimension of 8 keeps sub-byte types on byte boundaries.
    let shape = prop::collection::vec(0_u64..40, 0..3).prop_map(|mut dims| {
        dims.push(8);
        dims
    });
    let spec = (name, 0..Dtype::ALL.len(), shape);
    prop::collection::vec(spec, 0..24).prop_map(|list| {
        let unique: BTreeMap<String, (usize, Vec<u64>)> =
            list.into_iter().filter(|s| s.0 != "__metadata__").map(|(name, d, shape)| (name, (d, shape))).collect();
        unique.into_iter().map(|(name, (d, shape))| TensorSpec { name, dtype: Dtype::ALL[d], shape }).collect()
    })
}

fn options() -> impl Strategy<Value = LayoutOptions> {
    let metadata = prop::collection::btree_map("\\PC{0,5}", "\\PC{0,5}", 0..3);
    let align = prop_oneof![Just(8_u64), Just(512), Just(4096)];
    (align, prop::option::of(1_u64..20_000), metadata).prop_map(|(data_align_bytes, shard_len_max_bytes, metadata)| {
        LayoutOptions { data_align_bytes, shard_len_max_bytes, metadata, ..LayoutOptions::default() }
    })
}

/// Reads a write plan back, as a loader would.
fn catalog(plan: &WritePlan) -> Catalog {
    let mut shards: Vec<Shard> = plan
        .files
        .iter()
        .map(|f| Shard { name: f.name.clone(), header: Header::from_head(&f.head, f.len_bytes).unwrap() })
        .collect();
    match &plan.index {
        Some((_, text)) => Catalog::sharded(&ShardIndex::parse(text).unwrap(), shards).unwrap(),
        None => {
            let only = shards.remove(0);
            Catalog::single(only.name, only.header)
        }
    }
}

fn limits() -> impl Strategy<Value = LoadLimits> {
    let align = prop_oneof![Just(1_u64), Just(512), Just(4096)];
    let gap = prop_oneof![Just(0_u64), 1_u64..10_000, Just(u64::MAX)];
    let room = prop_oneof![Just(u64::MAX), 1_u64..40_000];
    (align, gap, 1_u64..5, room).prop_map(|(align_bytes, gap_max_bytes, blocks, region_len_max_bytes)| LoadLimits {
        align_bytes,
        gap_max_bytes,
        // Blocks of 1 byte would make parts of a few bytes and slow runs.
        part_len_bytes: blocks * align_bytes.max(256),
        run_min_bytes: 64,
        region_len_max_bytes,
        memory_max_bytes: u64::MAX,
    })
}

fn planned(catalog: &Catalog, pattern: &Pattern, limits: LoadLimits) -> Result<LoadPlan, PlanError> {
    LoadPlan::new(catalog, &Want::matching(catalog, pattern)?, limits)
}

/// Carries a plan out on made-up files, whole blocks at a time, and checks every rule that the module states.
fn carry_out(catalog: &Catalog, plan: &LoadPlan, limits: &LoadLimits) -> Vec<Vec<u8>> {
    const UNTOUCHED: u16 = 0x100;
    let mut regions: Vec<Vec<u16>> =
        plan.regions().iter().map(|region| vec![UNTOUCHED; at(region.len_bytes)]).collect();
    let mut read_bytes = 0;
    for part in plan.parts() {
        let file = part.file;
        assert!(part.len_bytes > 0 && part.len_bytes <= limits.part_len_bytes);
        assert_eq!(part.file_offset % limits.align_bytes, part.region_offset % limits.align_bytes);
        read_bytes += part.len_bytes;
        let blocks = plan.blocks_of(&part);
        assert_eq!(blocks.len_bytes % limits.align_bytes + blocks.file_offset % limits.align_bytes, 0);
        let file_len = catalog.files()[file].len_bytes;
        for step in 0..blocks.len_bytes {
            let offset = blocks.file_offset + step;
            let place = &mut regions[part.region][at(blocks.region_offset + step)];
            assert_eq!(*place, UNTOUCHED, "two parts share a block of region {}", part.region);
            *place = if offset < file_len { byte(file, offset).into() } else { 0 };
        }
    }
    assert_eq!(read_bytes, plan.totals().read_bytes);
    assert_eq!(plan.regions().iter().map(|region| region.len_bytes).sum::<u64>(), plan.totals().memory_bytes);
    assert_eq!(plan.totals().read_bytes, plan.totals().tensor_bytes + plan.totals().gap_bytes);
    regions.into_iter().map(|region| region.into_iter().map(|b| b.to_le_bytes()[0]).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_layout_reads_back_as_itself(specs in specs(), options in options()) {
        let plan = WritePlan::new(&specs, &options).unwrap();
        let catalog = catalog(&plan);
        prop_assert_eq!(catalog.tensors().len(), specs.len());
        prop_assert_eq!(plan.files.len() == 1, plan.index.is_none());
        for file in &plan.files {
            let header = &Header::from_head(&file.head, file.len_bytes).unwrap();
            prop_assert_eq!(header.span().data_offset() % options.data_align_bytes, 0);
            prop_assert_eq!(header.metadata(), &options.metadata);
            for placed in &file.tensors {
                let spec = &specs[placed.spec];
                let read = header.get(&spec.name).unwrap();
                prop_assert_eq!((read.dtype, &*read.shape), (spec.dtype, &*spec.shape));
                prop_assert_eq!((read.file_offset, read.len_bytes), (placed.file_offset, placed.len_bytes));
                // Descending dtypes keep each tensor on a multiple of its element size.
                if spec.dtype.bits() >= 8 {
                    prop_assert_eq!(read.file_offset % (spec.dtype.bits() / 8), 0);
                }
            }
            let data: u64 = file.tensors.iter().map(|t| t.len_bytes).sum();
            if let Some(max) = options.shard_len_max_bytes {
                let with_bytes = file.tensors.iter().filter(|t| t.len_bytes > 0).count();
                prop_assert!(data <= max || with_bytes == 1, "{} of {}", data, max);
            }
        }
        if let Some(claim) = catalog.claimed_len_bytes() {
            prop_assert_eq!(claim, catalog.tensor_len_bytes());
        }
    }

    #[test]
    fn a_plan_brings_every_chosen_byte_to_its_place(
        specs in specs(), options in options(), limits in limits(), pattern in "[a-c]\\*|\\*|\\*[0-9],a\\*|\\*\\.\\*",
    ) {
        let catalog = catalog(&WritePlan::new(&specs, &options).unwrap());
        let pattern = Pattern::parse(&pattern).unwrap();
        let chosen: Vec<&str> =
            specs.iter().map(|spec| spec.name.as_str()).filter(|name| pattern.matches(name)).collect();
        let plan = match planned(&catalog, &pattern, limits) {
            Ok(plan) => plan,
            Err(PlanError::NoMatch { .. }) => return Ok(()),
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        prop_assert_eq!(plan.views().len(), chosen.len());
        let regions = carry_out(&catalog, &plan, &limits);
        for view in plan.views() {
            let tensor = &catalog.tensors()[view.tensor];
            let chunk = &tensor.chunks()[0];
            prop_assert!(chosen.contains(&&*tensor.name));
            prop_assert_eq!(view.len_bytes, tensor.len_bytes);
            prop_assert_eq!(view.place.is_none(), view.len_bytes == 0);
            let Some(place) = view.place else { continue };
            let from = at(place.region_offset);
            let landed = &regions[place.region][from..from + at(view.len_bytes)];
            let want: Vec<u8> = (0..chunk.len_bytes).map(|o| byte(chunk.file, chunk.file_offset + o)).collect();
            prop_assert_eq!(landed, &want[..]);
        }
        for (number, region) in plan.regions().iter().enumerate() {
            let tensors = plan.views().iter().filter(|v| v.place.is_some_and(|p| p.region == number)).count();
            prop_assert!(region.len_bytes <= limits.region_len_max_bytes || tensors == 1);
        }
    }
}

fn bytes_tensors(lens: &[u64]) -> Vec<TensorSpec> {
    let tensor = |(i, &len)| TensorSpec { name: format!("t{i:02}"), dtype: Dtype::U8, shape: vec![len] };
    lens.iter().enumerate().map(tensor).collect()
}

fn plan(lens: &[u64], pattern: &str, limits: LoadLimits) -> Result<LoadPlan, PlanError> {
    let catalog = catalog(&WritePlan::new(&bytes_tensors(lens), &LayoutOptions::default()).unwrap());
    planned(&catalog, &Pattern::parse(pattern).unwrap(), limits)
}

#[test]
fn all_tensors_are_one_extent_even_without_gaps_allowed() {
    let limits = LoadLimits { gap_max_bytes: 0, ..LoadLimits::default() };
    let plan = plan(&[5, 0, 7_000, 1], "*", limits).unwrap();
    assert_eq!(plan.extents().len(), 1);
    assert_eq!(plan.extents()[0].len_bytes, 7_006);
    assert_eq!(plan.totals().memory_bytes, 8_192);
}

#[test]
fn gaps_up_to_the_limit_are_read_over_and_counted() {
    let joined = |gap_max_bytes| {
        let limits = LoadLimits { gap_max_bytes, ..LoadLimits::default() };
        let plan = plan(&[100, 5_000, 100], "t00,t02", limits).unwrap();
        (plan.extents().len(), plan.totals().gap_bytes)
    };
    assert_eq!(joined(5_000), (1, 5_000));
    assert_eq!(joined(4_999), (2, 0));
}

#[test]
fn parts_of_a_giant_tensor_are_cut_on_aligned_offsets() {
    let limits = LoadLimits { part_len_bytes: 1 << 20, ..LoadLimits::default() };
    let plan = plan(&[100, 5 << 30], "t01", limits).unwrap();
    let parts: Vec<_> = plan.parts().collect();
    assert_eq!(parts.len(), (5 << 10) + 1);
    assert_eq!(parts[0].file_offset, 4096 + 100);
    assert!(parts[1..].iter().all(|part| part.file_offset % 4096 == 0 && part.region_offset % 4096 == 0));
    assert_eq!(parts.iter().map(|part| part.len_bytes).sum::<u64>(), 5 << 30);
}

#[test]
fn wrong_limits_idle_items_and_too_much_memory_are_refused() {
    let code = |pattern: &str, limits: LoadLimits| plan(&[9_000, 9_000], pattern, limits).unwrap_err().code();
    let default = LoadLimits::default();
    assert_eq!(code("*", LoadLimits { align_bytes: 0, ..default }), "bad-align");
    assert_eq!(code("*", LoadLimits { align_bytes: 768, ..default }), "bad-align");
    assert_eq!(code("*", LoadLimits { align_bytes: 4 << 20, ..default }), "bad-align");
    assert_eq!(code("*", LoadLimits { part_len_bytes: 0, ..default }), "bad-part");
    assert_eq!(code("*", LoadLimits { part_len_bytes: 5_000, ..default }), "bad-part");
    assert_eq!(code("t00,typo", default), "no-match");
    assert_eq!(code("*", LoadLimits { memory_max_bytes: 18_000, ..default }), "over-budget");
    assert!(plan(&[9_000, 9_000], "*", LoadLimits { memory_max_bytes: 20_480, ..default }).is_ok());
}

#[test]
fn a_file_that_claims_all_of_the_address_space_is_over_budget() {
    let file_len = u64::MAX - 7;
    let json = |len: u64| format!(r#"{{"a":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    // The bit count of a tensor must fit 64 bits, so it takes several to claim so much; eight times 2^60 bytes do.
    let eighth = (1_u64 << 61) - 1;
    let entries: Vec<String> = (0..7_u64)
        .map(|i| {
            let (begin, end) = (i * eighth, (i + 1) * eighth);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{eighth}],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let text = format!("{{{}}}", entries.join(","));
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(text.as_bytes());
    let need = head.len() as u64 + 7 * eighth;
    let header = Header::from_head(&head, need).unwrap();
    let catalog = Catalog::single("big.safetensors".to_owned(), header);
    let limits = LoadLimits { memory_max_bytes: 1 << 40, ..LoadLimits::default() };
    assert_eq!(planned(&catalog, &Pattern::all(), limits).unwrap_err().code(), "over-budget");
    // One tensor of 2^61 bytes has 2^64 bits.
    let text = json(1 << 61);
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(text.as_bytes());
    assert_eq!(Header::from_head(&head, file_len).unwrap_err().code(), "size-overflow");
}

#[test]
fn layouts_that_cannot_be_written_are_refused() {
    let spec = |name: &str, dtype, shape: &[u64]| TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() };
    let code = |specs: &[TensorSpec], options: &LayoutOptions| WritePlan::new(specs, options).unwrap_err().code();
    let default = LayoutOptions::default();
    let one = [spec("a", Dtype::U8, &[1])];
    assert_eq!(code(&[one[0].clone(), one[0].clone()], &default), "layout-duplicate");
    assert_eq!(code(&[spec("__metadata__", Dtype::U8, &[1])], &default), "layout-reserved-name");
    assert_eq!(code(&[spec("a", Dtype::U8, &[1; 65])], &default), "layout-rank-over-limit");
    assert_eq!(code(&[spec("a", Dtype::F4, &[3])], &default), "layout-partial-byte");
    assert_eq!(code(&[spec("a", Dtype::F64, &[1 << 60])], &default), "layout-size-overflow");
    let many: Vec<_> = (0..9).map(|i| spec(&i.to_string(), Dtype::U8, &[(1 << 61) - 1])).collect();
    assert_eq!(code(&many, &default), "layout-size-overflow");
    assert_eq!(code(&one, &LayoutOptions { data_align_bytes: 100, ..default.clone() }), "layout-bad-align");
    assert_eq!(code(&one, &LayoutOptions { data_align_bytes: 4, ..default.clone() }), "layout-bad-align");
    assert_eq!(code(&one, &LayoutOptions { shard_len_max_bytes: Some(0), ..default.clone() }), "layout-zero-shard");
    for stem in ["", "../m", "a/b", ".m", "a\u{7}"] {
        assert_eq!(
            code(&one, &LayoutOptions { stem: stem.to_owned(), ..default.clone() }),
            "layout-bad-stem",
            "{stem}"
        );
    }
    let shards: Vec<_> = (0..100_001).map(|i| spec(&i.to_string(), Dtype::U8, &[1])).collect();
    let tiny = LayoutOptions { shard_len_max_bytes: Some(1), ..default.clone() };
    assert_eq!(code(&shards, &tiny), "layout-too-many-shards");
    let metadata = BTreeMap::from([("k".to_owned(), "x".repeat(100_000_001))]);
    assert_eq!(code(&one, &LayoutOptions { metadata, ..default }), "layout-header-over-limit");
}
