//! Bytes of the other end into every decoder of AGP/1. Used by the libFuzzer target and by `tests/properties.rs`.
//!
//! Nothing panics; what is decoded keeps the limits, and is encoded and decoded again as the same.

use sw_agent::wire::completion::COMPLETION_BYTES;
use sw_agent::wire::descriptor::DESCRIPTOR_BYTES;
use sw_agent::wire::frame::{DataHead, HEADER_BYTES};
use sw_agent::wire::{Completion, Descriptor, Frame, Header, Message};

/// One input: frames one behind the other.
pub fn agp(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = Header::decode(head) else { break };
        let mut again = Vec::new();
        header.encode(&mut again);
        assert_eq!(again, head, "a header is encoded as it was");
        // A body that is shorter than its header says is looked at as if it was all.
        let length = usize::try_from(header.length).map_or(behind.len(), |length| length.min(behind.len()));
        let (body, next) = behind.split_at(length);
        let cut = Header { length: u32::try_from(length).unwrap_or(0), ..header };
        if let Ok(frame) = Frame::decode(&cut, body) {
            check(frame);
        }
        rest = next;
    }
    // As rings of shared memory have them, and with a check that fits, so that what is behind it is reached.
    if let Some(raw) = bytes.first_chunk::<DESCRIPTOR_BYTES>() {
        check_descriptor(raw);
    }
    if let Some(raw) = bytes.first_chunk::<COMPLETION_BYTES>() {
        check_completion(raw);
    }
}

fn check(frame: Frame) {
    match frame {
        Frame::Control(message) => {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(
                Message::decode(message.kind(), &bytes),
                Ok(Some(message)),
                "a message is decoded again as the same"
            );
        }
        Frame::Descriptors(descriptors) => {
            descriptors.iter().for_each(|descriptor| check_descriptor(&descriptor.encode()))
        }
        Frame::Completions(completions) => {
            completions.iter().for_each(|completion| check_completion(&completion.encode()))
        }
        Frame::Data(head, _) => {
            let mut bytes = Vec::new();
            head.encode(&mut bytes);
            assert_eq!(
                bytes.first_chunk().map(DataHead::decode),
                Some(Ok(head)),
                "a head is decoded again as the same"
            );
        }
        Frame::Unknown(_) => {}
    }
}

fn check_descriptor(raw: &[u8; DESCRIPTOR_BYTES]) {
    let mut fitting = *raw;
    let sum = sw_engine::checksum::Algorithm::Crc32c.of(&raw[..60]).to_le_bytes();
    fitting[60..].copy_from_slice(&sum[..4]);
    if let Ok(descriptor) = Descriptor::decode(&fitting) {
        assert_eq!(descriptor.encode(), fitting, "a descriptor is encoded as it was");
        assert!(descriptor.region_offset.checked_add(u64::from(descriptor.length)).is_some());
        assert!(descriptor.object_offset.checked_add(u64::from(descriptor.length)).is_some());
    }
}

fn check_completion(raw: &[u8; COMPLETION_BYTES]) {
    let mut fitting = *raw;
    fitting[14..16].fill(0);
    let sum = sw_engine::checksum::Algorithm::Crc32c.of(&fitting).to_le_bytes();
    fitting[14..16].copy_from_slice(&sum[..2]);
    if let Ok(completion) = Completion::decode(&fitting) {
        assert_eq!(completion.encode(), fitting, "a completion is encoded as it was");
    }
}
