//! Limits of version 1, each with its unit. `docs/agp.md` has the same table.

/// Bytes behind the header of a control message at most.
pub const CONTROL_BYTES_MAX: u32 = 65_536;
/// Descriptors, or completions, in one frame at most.
pub const BATCH_MAX: u32 = 64;
/// Payload bytes of one DATA frame at most.
pub const DATA_BYTES_MAX: u32 = 1 << 20;
/// Payload bytes of one operation at most; each end may tell less in its HELLO or WELCOME.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 30;
/// Operations of one session under way at most.
pub const OPERATIONS_MAX: u16 = 4096;
/// Leases of one session at most.
pub const LEASES_MAX: u16 = 1024;
/// Open objects of one session at most.
pub const OBJECTS_MAX: u16 = 4096;
/// Requests (OPEN, STAT, LIST, CLOSE) of one connection under way at most.
pub const REQUESTS_MAX: usize = 64;
/// Bytes under one lease at most.
pub const LEASE_BYTES_MAX: u64 = 1 << 40;
/// Bytes of a URI at most.
pub const URI_BYTES_MAX: usize = 4096;
/// Bytes of a version (etag, generation) at most.
pub const VERSION_BYTES_MAX: usize = 256;
/// Bytes of a cursor of LIST at most.
pub const CURSOR_BYTES_MAX: usize = 4096;
/// Bytes of one name in LISTED at most.
pub const NAME_BYTES_MAX: usize = 4096;
/// Entries in one LISTED at most.
pub const ENTRIES_MAX: u16 = 1024;
/// Bytes of a tenant's name at most.
pub const TENANT_BYTES_MAX: usize = 64;
/// Bytes of the text of a refusal at most.
pub const TEXT_BYTES_MAX: usize = 512;
/// Bytes of evidence in one AUTH at most.
pub const EVIDENCE_BYTES_MAX: usize = 8192;
/// Steps of AUTH in each direction at most.
pub const AUTH_STEPS_MAX: u16 = 8;
/// Bytes of the software's name in HELLO and WELCOME at most.
pub const SOFTWARE_BYTES_MAX: usize = 64;
/// Microseconds that an operation may take at most: an hour.
pub const DEADLINE_US_MAX: u32 = 3_600_000_000;
/// Milliseconds of silence after which an end is given up: least and most.
pub const SILENCE_MS: core::ops::RangeInclusive<u32> = 100..=60_000;
/// Milliseconds that a lease lives unless it is renewed: least and most.
pub const LIFETIME_MS: core::ops::RangeInclusive<u32> = 1_000..=3_600_000;
