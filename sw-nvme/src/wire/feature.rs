//! Features of a controller (Base, "Set Features command", "Feature Specific Information"; NVM Command Set for the rest).

use core::time::Duration;

/// Feature identifiers.
pub mod id {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration.
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENTS: u8 = 0x0B;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0E;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// I/O Command Set Profile.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

/// SEL of Get Features: which value is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// 000b.
    Current,
    /// 001b.
    Default,
    /// 010b.
    Saved,
    /// 011b: what can be done with the feature; see [`FeatureAbilities`].
    Supported,
}

impl Select {
    pub(crate) const fn bits(self) -> u32 {
        self as u32
    }
}

/// What Get Features says in dword 0 for [`Select::Supported`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureAbilities {
    /// The value can be saved across resets.
    pub saveable: bool,
    /// It is per namespace.
    pub per_namespace: bool,
    /// It can be changed.
    pub changeable: bool,
}

impl FeatureAbilities {
    /// Decodes the completion's dword 0.
    pub const fn decode(dw0: u32) -> Self {
        Self { saveable: dw0 & 1 != 0, per_namespace: dw0 & 2 != 0, changeable: dw0 & 4 != 0 }
    }
}

/// Whether something is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Off.
    Off,
    /// On.
    On,
}

/// Numbers of I/O queues, as plain counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// Submission queues, 1 to 65,535.
    pub submission: u32,
    /// Completion queues, 1 to 65,535.
    pub completion: u32,
}

impl QueueCounts {
    /// Dword 11 of Set Features: NCQR 31:16, NSQR 15:0, both from zero. `None` for 0 or more than 65,535, which the
    /// specification forbids.
    pub fn encode(self) -> Option<u32> {
        let z = |count: u32| (1..=0xFFFF).contains(&count).then(|| count - 1);
        Some(z(self.completion)? << 16 | z(self.submission)?)
    }

    /// Dword 0 of the completion: what there is, NCQA 31:16, NSQA 15:0. May be more or less than was asked for.
    pub const fn decode(dw0: u32) -> Self {
        Self { submission: (dw0 & 0xFFFF) + 1, completion: (dw0 >> 16) + 1 }
    }
}

/// Bits of Asynchronous Event Configuration: what the controller reports.
pub mod async_events {
    /// SMART / Health critical warnings: the five bits of the log page's first byte.
    pub const SMART: u32 = 0x1F;
    /// Namespace Attribute Notices (OAES bit 8).
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware Activation Notices (OAES bit 9).
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Asymmetric Namespace Access Change Notices (OAES bit 11).
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Cross-Controller Reset Completed Notices (OAES bit 20).
    pub const RESET_COMPLETED: u32 = 1 << 20;
    /// Normal NVM Subsystem Shutdown (OAES bit 16).
    pub const NORMAL_SHUTDOWN: u32 = 1 << 16;
}

/// A feature to set, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// Arbitration: commands that the controller takes from a queue in one round, as a power of two (0 to 6; 7 is no
    /// limit).
    Arbitration {
        /// AB.
        burst_log2: u8,
    },
    /// Temperature threshold of the composite temperature, over.
    TemperatureThreshold {
        /// TMPTH in kelvins.
        kelvin: u16,
    },
    /// Error Recovery: TLER in units of 100 milliseconds, 0 for no limit; DULBE, the error for deallocated blocks.
    ErrorRecovery {
        /// TLER.
        limit_100ms: u16,
        /// DULBE.
        deallocated_error: Switch,
    },
    /// Volatile Write Cache.
    VolatileWriteCache(Switch),
    /// Number of Queues: dword 11 from [`QueueCounts::encode`].
    NumberOfQueues {
        /// The dword.
        dword11: u32,
    },
    /// Interrupt Coalescing: at most `entries` completions or `time_100us` may pass before an interrupt.
    InterruptCoalescing {
        /// THR as a plain count, 1 to 256; 1 switches it off.
        entries: u16,
        /// TIME in 100 microseconds.
        time_100us: u8,
    },
    /// Interrupt Vector Configuration: whether coalescing holds for a vector.
    InterruptVector {
        /// IV.
        vector: u16,
        /// The opposite of CD.
        coalescing: Switch,
    },
    /// Asynchronous Event Configuration: bits of [`async_events`] that Identify Controller's OAES allows.
    AsyncEvents {
        /// The bits.
        bits: u32,
    },
    /// Keep Alive Timer; rounded up to milliseconds, at most 2^32 - 1 of them, 0 switches it off.
    KeepAliveTimer {
        /// KATO.
        timeout: Duration,
    },
    /// Timestamp, milliseconds since 1970; data of 8 bytes.
    Timestamp {
        /// The time.
        unix_ms: u64,
    },
    /// Host Behavior Support; data of 512 bytes. ACRE: the controller may use Command Interrupted with a retry delay.
    HostBehavior {
        /// ACRE.
        advanced_retry: Switch,
    },
    /// Host Identifier of 128 bits (EXHID 1); data of 16 bytes.
    HostIdentifier {
        /// The identifier.
        id: [u8; 16],
    },
    /// I/O Command Set Profile: index of a combination that Identify CNS 1Ch lists.
    CommandSetProfile {
        /// IOCSCI.
        index: u16,
    },
}

impl Feature {
    /// FID.
    pub const fn id(&self) -> u8 {
        match self {
            Self::Arbitration { .. } => id::ARBITRATION,
            Self::TemperatureThreshold { .. } => id::TEMPERATURE_THRESHOLD,
            Self::ErrorRecovery { .. } => id::ERROR_RECOVERY,
            Self::VolatileWriteCache(_) => id::VOLATILE_WRITE_CACHE,
            Self::NumberOfQueues { .. } => id::NUMBER_OF_QUEUES,
            Self::InterruptCoalescing { .. } => id::INTERRUPT_COALESCING,
            Self::InterruptVector { .. } => id::INTERRUPT_VECTOR,
            Self::AsyncEvents { .. } => id::ASYNC_EVENTS,
            Self::KeepAliveTimer { .. } => id::KEEP_ALIVE_TIMER,
            Self::Timestamp { .. } => id::TIMESTAMP,
            Self::HostBehavior { .. } => id::HOST_BEHAVIOR,
            Self::HostIdentifier { .. } => id::HOST_IDENTIFIER,
            Self::CommandSetProfile { .. } => id::COMMAND_SET_PROFILE,
        }
    }

    /// Dword 11 of Set Features.
    pub fn dword11(&self) -> u32 {
        let on = |switch: Switch| u32::from(switch == Switch::On);
        match *self {
            Self::Arbitration { burst_log2 } => u32::from(burst_log2 & 7),
            Self::TemperatureThreshold { kelvin } => kelvin.into(),
            Self::ErrorRecovery { limit_100ms, deallocated_error } => {
                u32::from(limit_100ms) | on(deallocated_error) << 16
            }
            Self::VolatileWriteCache(switch) => on(switch),
            Self::NumberOfQueues { dword11 } => dword11,
            Self::InterruptCoalescing { entries, time_100us } => {
                u32::from(entries.saturating_sub(1).min(0xFF)) | u32::from(time_100us) << 8
            }
            Self::InterruptVector { vector, coalescing } => u32::from(vector) | (1 - on(coalescing)) << 16,
            Self::AsyncEvents { bits } => bits,
            Self::KeepAliveTimer { timeout } => {
                u32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
            }
            Self::HostIdentifier { .. } => 1,
            Self::CommandSetProfile { index } => u32::from(index & 0x1FF),
            Self::Timestamp { .. } | Self::HostBehavior { .. } => 0,
        }
    }

    /// Bytes of the data that goes with it, 0 for none.
    pub const fn data_bytes(&self) -> usize {
        match self {
            Self::Timestamp { .. } => 8,
            Self::HostBehavior { .. } => 512,
            Self::HostIdentifier { .. } => 16,
            _ => 0,
        }
    }

    /// The first bytes of that data; the rest up to [`Feature::data_bytes`] is zero.
    pub fn data(&self) -> [u8; 16] {
        let mut data = [0; 16];
        match *self {
            // Bytes 0 to 5 are the time; byte 6 and 7 are attributes of Get Features and reserved.
            Self::Timestamp { unix_ms } => data[..6].copy_from_slice(&unix_ms.to_le_bytes()[..6]),
            Self::HostBehavior { advanced_retry } => data[0] = u8::from(advanced_retry == Switch::On),
            Self::HostIdentifier { id } => data = id,
            _ => {}
        }
        data
    }
}
