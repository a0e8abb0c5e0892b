//! What each fuzz target does with its bytes. Used by the libFuzzer targets here and by the bounded in-tree run
//! (`tests/mutations.rs`), so that both check the same things. Each returns a word for what came out.

use sw_mem::{ByteLen, Iova};
use sw_nvme::{
    discovery::{
        self, ENTRY_BYTES, Entry, HEADER_BYTES, Header, SubsystemType, TransportType, read::Reader, walk::Walk,
    },
    fabrics::{CONNECT_DATA_BYTES, ConnectData, FabricsCommand, NQN_BYTES_MAX, Nqn},
    limits::{TransferLimits, mdts_bytes},
    prp::{self, ListMemory, NotPrp, POISON_PRP, PageSize, Segment},
    sgl::{self, SglSupport},
    status::{Class, RetryDelays},
    wire::{
        Command, Completion, DataPointer, IDENTIFY_BYTES, WireError, ana, ccr,
        completion::CompletionFields,
        identify::{
            ExtendedFormat, IdentifyController, IdentifyNamespace, MetadataVerdict, NamespaceDescriptors, NvmLimits,
            command_set_combination, controller_list, namespace_list,
        },
        log::{AsyncEvent, ChangedNamespaces, CommandEffects, ErrorEntry, Firmware, Smart},
        regs::{Aqa, Cap, Cc, Cmb, Crto, Csts, Pmrcap},
    },
};

/// `N` bytes of `from` at `at`, zeros where it has none.
fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| from.get(at + n).copied().unwrap_or(0))
}

fn le64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(from, at))
}

fn le32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(from, at))
}

/// One line that a terminal can show, of bounded length.
fn check_text(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 4_000, "{} bytes", text.len());
}

fn refused<T>(answer: Result<T, WireError>) -> Result<T, &'static str> {
    answer.map_err(|error| {
        check_text(&error.to_string());
        match error {
            WireError::Field { field, .. } => field,
            _ => "short",
        }
    })
}

/// Takes the bytes for every Identify data structure.
pub fn identify(raw: &[u8]) -> &'static str {
    if raw.len() < IDENTIFY_BYTES {
        assert_eq!(refused(IdentifyController::decode(raw)).err(), Some("short"));
        assert_eq!(refused(IdentifyNamespace::decode(raw)).err(), Some("short"));
    }
    let page: [u8; IDENTIFY_BYTES] = bytes(raw, 0);
    let controller = refused(IdentifyController::decode(&page));
    if let Ok(id) = &controller {
        for text in [id.serial.as_str(), id.model.as_str(), id.firmware.as_str(), id.subsystem_nqn.as_str()] {
            check_text(text);
            assert_eq!(text, text.trim());
        }
        assert!(id.aborts_max >= 1 && id.async_requests_max >= 1 && id.error_entries >= 1);
    }
    lists(&page);
    match refused(IdentifyNamespace::decode(&page)) {
        Ok(None) => "inactive",
        Ok(Some(id)) => namespace(&page, &id, controller.as_ref().ok()),
        Err(field) => field,
    }
}

fn lists(page: &[u8]) {
    let after = le32(page, 4092);
    if let Ok(list) = refused(namespace_list("list", page, after)) {
        assert!(list.len() <= 1024 && list.iter().all(|&nsid| nsid > after));
        assert!(list.windows(2).all(|pair| pair[0] < pair[1]));
    }
    if let Ok(list) = refused(controller_list(page)) {
        assert!(list.windows(2).all(|pair| pair[0] < pair[1]));
    }
    if let Ok(Some((index, sets))) = refused(command_set_combination(page, 1)) {
        assert!(sets & 1 == 1 && le64(page, 8 * usize::from(index)) == sets);
    }
    let _ = refused(NamespaceDescriptors::decode(page));
    assert!(NvmLimits::decode(page).is_ok());
}

fn namespace(page: &[u8], id: &IdentifyNamespace, controller: Option<&IdentifyController>) -> &'static str {
    assert_eq!(u128::from(id.size_bytes()), u128::from(id.size_blocks) * u128::from(id.format.block_bytes));
    assert!(id.size_blocks > 0 && id.format.block_bytes.is_power_of_two() && id.format.block_bytes >= 512);
    assert!(id.formats.len() <= 64 && id.formats.contains(&id.format));
    if let Some(controller) = controller {
        let page_bytes_min = 4096 << (page[4091] & 15);
        if let Some(limits) = TransferLimits::new(controller, page_bytes_min, id) {
            assert!(mdts_bytes(controller.mdts, page_bytes_min).is_none_or(|most| limits.bytes_max() <= most));
            let piece = limits.next(le64(page, 0), le64(page, 8)).map_or(0, |piece| u64::from(piece.get()));
            assert!(piece <= le64(page, 8) && (piece > 0) == (le64(page, 8) > 0));
            let write = limits.next_write(le64(page, 0), le64(page, 8)).map_or(0, |piece| u64::from(piece.get()));
            assert!(write <= piece && (write > 0) == (piece > 0));
        }
    }
    let extended = ExtendedFormat::decode(page, id.format.index).expect("an index in the list");
    let with = MetadataVerdict::of(id, Some(extended));
    match MetadataVerdict::of(id, None) {
        MetadataVerdict::None => {
            assert_eq!((id.format.metadata_bytes, id.protection_type), (0, 0));
            assert_eq!(with, MetadataVerdict::None);
            "plain"
        }
        MetadataVerdict::Stripped(_) => {
            assert!(id.format.metadata_bytes == 8 && (1..=3).contains(&id.protection_type));
            "stripped"
        }
        MetadataVerdict::Refused(reason) => {
            check_text(&reason.to_string());
            assert!(matches!(with, MetadataVerdict::Refused(_)), "more knowledge never allows what was refused");
            "metadata"
        }
    }
}

/// Takes the bytes for every log page.
pub fn logs(raw: &[u8]) -> &'static str {
    let mut said = "short";
    if let Ok(effects) = refused(CommandEffects::decode(raw)) {
        check_text(&format!("{effects:?}"));
        said = if effects.io(2).supported() { "effects with read" } else { "effects" };
    }
    match refused(ChangedNamespaces::decode(raw)) {
        Ok(ChangedNamespaces::Listed(list)) => {
            assert!(list.len() <= 1024 && list.windows(2).all(|pair| pair[0] < pair[1]));
            // A page of other things is an empty list as well.
            if !list.is_empty() {
                said = "changed";
            }
        }
        Ok(ChangedNamespaces::TooMany) => said = "all changed",
        Err(_) => {}
    }
    if let Ok(firmware) = refused(Firmware::decode(raw)) {
        firmware.revisions.iter().for_each(|text| check_text(text.as_str()));
        assert!(firmware.active_slot <= 7 && firmware.next_slot <= 7);
    }
    assert_eq!(Smart::decode(raw).is_ok(), raw.len() >= 512);
    access(raw);
    resets(raw);
    match refused(ErrorEntry::decode(raw)) {
        Ok(Some(entry)) => {
            check_text(&entry.status.to_string());
            if entry.location.is_some_and(|place| place.bit > 7) {
                unreachable!("a byte has eight bits");
            }
            if said == "short" { "entry" } else { said }
        }
        Ok(None) => {
            if said == "short" {
                "no entry"
            } else {
                said
            }
        }
        Err(_) => said,
    }
}

/// Takes the bytes for Asymmetric Namespace Access, whole and cut.
fn access(raw: &[u8]) {
    let Ok(groups) = refused(ana::Groups::decode(raw)) else { return };
    assert!(groups.iter().count() <= ana::GROUPS_MAX.min(raw.len() / ana::GROUP_BYTES) && groups.of(0).is_none());
    assert!(groups.iter().all(|(group, access)| groups.of(group) == Some(access)));
    // What of it is cut off is not told, and nothing else is.
    if let Ok(half) = ana::Groups::decode(&raw[..raw.len() / 2]) {
        assert!(half.iter().all(|(group, access)| groups.of(group) == Some(access)));
    }
}

/// Takes the bytes for Cross-Controller Reset, whole and cut.
fn resets(raw: &[u8]) {
    let Ok(log) = refused(ccr::Log::decode(raw)) else { return };
    assert!(log.0.len() <= ccr::ENTRIES_MAX.min(raw.len() / ccr::ENTRY_BYTES));
    let again = ccr::Log::decode(&log.encode()).expect("a whole page");
    assert_eq!(again, log);
    if let Ok(half) = ccr::Log::decode(&raw[..raw.len() / 2]) {
        assert!(log.0.starts_with(&half.0));
    }
}

/// Takes the bytes for the registers of a controller.
pub fn registers(raw: &[u8]) -> &'static str {
    let (csts, crto) = (Csts(le32(raw, 28)), Crto::decode(le32(raw, 32)));
    check_text(&format!("{csts:?}"));
    let pmrcap = Pmrcap::decode(le32(raw, 36));
    assert!(pmrcap.bar <= 7);
    let aqa = Aqa::decode(le32(raw, 40));
    assert!(aqa.sq_entries <= 4096 && aqa.encode().is_none_or(|encoded| Aqa::decode(encoded) == aqa));
    let cmb = refused(Cmb::decode(le32(raw, 44), le32(raw, 48)));
    if let Ok(Some(cmb)) = &cmb {
        assert!(cmb.len_bytes >= 4096 && cmb.offset_bytes.checked_add(cmb.len_bytes).is_some());
    }
    let cap = match refused(Cap::decode(le64(raw, 0))) {
        Ok(cap) => cap,
        Err(field) => return field,
    };
    assert!((2..=65_536).contains(&cap.queue_entries_max) && cap.page_bytes_min <= cap.page_bytes_max);
    assert!(cap.ready_limit(Some(crto)) >= cap.ready_timeout && !cap.ready_timeout.is_zero());
    let qid = u16::from_le_bytes(bytes(raw, 52));
    if let (Some(tail), Some(head)) = (cap.doorbell_stride.sq_tail(qid), cap.doorbell_stride.cq_head(qid)) {
        assert!(tail >= 0x1000 && head - tail == cap.doorbell_stride.bytes() && tail.is_multiple_of(4));
    }
    for page_bytes in [cap.page_bytes_min, cap.page_bytes_max] {
        let code = cap.page_code(page_bytes).expect("a size that it names");
        let sets = cap.nvm_command_set();
        if let Some(sets) = sets {
            assert_eq!(Cc::enabled(code, sets).page_bytes(), page_bytes);
        }
    }
    match cmb {
        Ok(Some(_)) => "with memory",
        Ok(None) => "ok",
        Err(field) => field,
    }
}

/// Takes the bytes for a completion, the dword of an event, and a command that is traced.
pub fn completion(raw: &[u8]) -> &'static str {
    let entry = Completion::new(bytes(raw, 0));
    check_text(&format!("{entry:?} {:?}", AsyncEvent::decode(entry.dw0())));
    let command = Command::new(bytes(raw, 16));
    check_text(&format!("{command:?} {:?}", command.range()));
    assert_eq!(Command::new(*command.bytes()), command);
    let (sq_head, sq_id, cid) = (entry.sq_head(), entry.sq_id(), entry.cid());
    let (dw0, phase, status) = (entry.dw0(), entry.phase(), entry.status());
    let again = Completion::build(CompletionFields { dw0, sq_head, sq_id, cid, phase, status });
    assert_eq!(again.bytes()[8..], entry.bytes()[8..]);
    let delays = RetryDelays::from_crdt([0, 1, 2].map(|n| u16::from_le_bytes(bytes(raw, 80 + 2 * n))));
    assert_eq!(status.is_success(), status.fault(&delays).is_none());
    match status.class() {
        Class::Success => "success",
        Class::Retryable { crd } => {
            assert!(crd <= 3 && !status.dnr());
            "retryable"
        }
        Class::NotRetryable => "not retryable",
        Class::Media => "media",
        Class::NamespaceGone => "namespace gone",
        Class::Aborted => "aborted",
        Class::Path => "path",
    }
}

/// A list of which every write is checked.
struct Watched {
    chunks: Vec<(u64, u32)>,
    page: PageSize,
    written: u64,
}

impl ListMemory for Watched {
    fn chunk(&self, index: u32) -> Option<(Iova, u32)> {
        self.chunks.get(index as usize).map(|&(at, room)| (Iova::new(at), room))
    }

    fn put(&mut self, index: u32, at_bytes: usize, entries: &[u8]) {
        let (at, room) = self.chunks[index as usize];
        assert!(at_bytes.is_multiple_of(8) && entries.len().is_multiple_of(8) && !entries.is_empty());
        assert!(at_bytes + entries.len() <= 8 * room as usize, "written past chunk {index}");
        for entry in entries.chunks_exact(8).map(|entry| le64(entry, 0)) {
            let link = self.chunks.get(index as usize + 1).is_some_and(|&(next, _)| next == entry);
            assert!(
                entry == POISON_PRP || entry.is_multiple_of(self.page.bytes()) || link,
                "{entry:#x} in chunk {index}"
            );
        }
        // The last byte that there is may be its last.
        let last = at + (at_bytes as u64 + entries.len() as u64 - 1);
        assert_eq!(at / self.page.bytes(), last / self.page.bytes(), "a chunk lies inside one page");
        self.written += entries.len() as u64;
    }
}

/// Takes the bytes for a page size, list chunks and segments of memory: what a caller may ask to describe.
pub fn pages(raw: &[u8]) -> &'static str {
    let head: [u8; 4] = bytes(raw, 0);
    let page = PageSize::new(4096 << (head[0] % 16)).expect("in range");
    let (chunk_count, segment_count) = (usize::from(head[1] % 5), usize::from(head[2] % 6));
    let chunk = |n| (le64(raw, 4 + 12 * n), le32(raw, 12 + 12 * n) % 1024);
    let chunks: Vec<_> = (0..chunk_count).map(chunk).collect();
    let at = 4 + 12 * chunk_count;
    let segment = |n| {
        let (iova, len) = (le64(raw, at + 16 * n), le64(raw, at + 16 * n + 8));
        Segment { iova: Iova::new(iova), len: ByteLen(len >> (head[3] % 64)) }
    };
    let data: Vec<_> = (0..segment_count).map(segment).collect();
    lists_of_ranges(&data, le32(raw, 4));
    let mut list = Watched { chunks, page, written: 0 };
    let room: u64 = list.chunks.iter().map(|&(_, room)| u64::from(room)).sum();
    let answer = prp::describe(page, &data, &mut list);
    assert!(list.written <= 8 * (room + 1), "work is bounded by the list");
    match answer {
        Ok(prps) => {
            assert_eq!((prps.prp1, prps.prp1 % 4), (data[0].iova.raw(), 0));
            assert_eq!(u64::from(prps.list_bytes), list.written);
            if prps.list_bytes == 0 { "pair" } else { "list" }
        }
        Err(error) => {
            check_text(&error.to_string());
            match error {
                NotPrp::Empty => "empty",
                NotPrp::Start { .. } => "start",
                NotPrp::Ragged { .. } => "ragged",
                NotPrp::ListFull { .. } => "full",
                NotPrp::Wraps => "wraps",
                _ => "chunk",
            }
        }
    }
}

fn lists_of_ranges(data: &[Segment], sgls: u32) {
    let mut list = [[0xEE; sgl::DESCRIPTOR_BYTES]; 4];
    match sgl::describe(SglSupport::decode(sgls), data, (Iova::new(0x1000), &mut list)) {
        Ok((DataPointer::Sgl(first), bytes)) => {
            assert_eq!(bytes == 0, data.len() == 1);
            assert!(bytes as usize <= list.len() * sgl::DESCRIPTOR_BYTES);
            assert_eq!(first[15] >> 4, if bytes == 0 { 0 } else { 3 });
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => check_text(&error.to_string()),
    }
}

fn check_name(name: &Nqn) {
    check_text(name.as_str());
    assert!(name.as_str().starts_with("nqn.") && name.as_str().len() <= NQN_BYTES_MAX);
}

/// Takes the bytes for what goes over a fabric apart from data: the data of Connect, a command, a discovery log page.
pub fn fabrics(raw: &[u8]) -> &'static str {
    let _ = FabricsCommand::decode(&Command::new(bytes(raw, 0)));
    match refused(ConnectData::decode(raw)) {
        Ok(data) => {
            check_name(&data.subsystem);
            check_name(&data.host);
            let wire = data.encode();
            assert_eq!(wire.len(), CONNECT_DATA_BYTES);
            assert_eq!(ConnectData::decode(&wire).ok(), Some(data));
            return "connect";
        }
        Err("short") => assert!(raw.len() < CONNECT_DATA_BYTES),
        Err(_) => {}
    }
    match refused(Header::decode(raw)) {
        Ok(header) => {
            assert!(header.entries <= discovery::ENTRIES_MAX);
            assert_eq!(Header::decode(&header.encode()).ok(), Some(header));
            log_page(raw)
        }
        Err(field) => field,
    }
}

/// The bytes are a log page; the second half of long ones is what it has become at the fourth command.
fn log_page(raw: &[u8]) -> &'static str {
    let mut reader = Reader::new(ENTRY_BYTES * 2);
    let mut commands = 0;
    while let Some(piece) = reader.next_piece() {
        assert!(commands < 100_000, "the work has an end");
        assert!(piece.len_bytes > 0 && piece.len_bytes <= ENTRY_BYTES * 2);
        assert!(piece.offset_bytes <= (HEADER_BYTES as u64) + discovery::ENTRIES_MAX * ENTRY_BYTES as u64);
        let later = if commands >= 3 && raw.len() >= 8 * HEADER_BYTES { raw.len() / 2 } else { 0 };
        let at = later + sw_mem::index(piece.offset_bytes);
        let mut part = raw.get(at..).unwrap_or_default().to_vec();
        part.resize(piece.len_bytes, 0);
        if let Err(cause) = reader.came(&part) {
            check_text(&cause.to_string());
            return "not read";
        }
        commands += 1;
    }
    let entries = reader.into_entries();
    let by = [TransportType::Tcp, TransportType::Rdma];
    let first = by.into_iter().find_map(|by| entries.iter().find_map(|entry| Some((by, entry.endpoint(by)?))));
    let Some((by, first)) = first else {
        return if entries.is_empty() { "no entries" } else { "entries elsewhere" };
    };
    let mut walk = Walk::from(by, first);
    let mut asked = 0;
    while let Some(service) = walk.next_service() {
        asked += 1;
        assert!(asked <= discovery::walk::SERVICES_MAX && service.depth <= discovery::walk::DEPTH_MAX);
        walk.came(&service, entries.clone());
    }
    for entry in &entries {
        check_name(&entry.subsystem);
        check_text(&entry.address);
        check_text(&entry.service);
        assert_eq!(Entry::decode(&entry.encode()).as_ref().ok(), Some(entry));
    }
    if entries.iter().any(|entry| entry.kind == SubsystemType::Referral) { "referrals" } else { "entries" }
}
