//! Parameters of cuFile: their names, where they are written, what they do here.
//!
//! Numbers, defaults and ranges: field note "peers", 5.4 and 5.6, with what 1.20 answers where versions differ.

use straightway::Policy;

/// Where a value came from; a later one wins over an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Default,
    File,
    Environment,
    Call,
}

impl Origin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Call => "call",
        }
    }
}

/// What a parameter does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// What its documentation says.
    Used,
    /// It is kept and given back, and does nothing; why.
    Kept(&'static str),
}

/// A parameter that is a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) key: &'static str,
    pub(crate) environment: Option<&'static str>,
    pub(crate) default: u64,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) effect: Effect,
}

/// A parameter that is yes or no.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    pub(crate) key: &'static str,
    pub(crate) environment: Option<&'static str>,
    pub(crate) default: bool,
    pub(crate) effect: Effect,
}

/// A parameter that is a text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    pub(crate) key: &'static str,
    pub(crate) environment: Option<&'static str>,
    pub(crate) default: &'static str,
    pub(crate) effect: Effect,
}

const OWN_STAGING: Effect =
    Effect::Kept("staging memory is measured for each GPU; set SW_CUFILE_ENGINE=staging_bytes=… to change it");
const OWN_SPLIT: Effect = Effect::Kept("the engine cuts requests by itself");
const NO_MODULE: Effect = Effect::Kept("there is no kernel module; every route is planned, see SW_CUFILE_POLICY");
const NO_COMPAT: Effect =
    Effect::Kept("there is no compat mode: every route is planned and told; SW_CUFILE_POLICY=require=… refuses others");

const fn size(
    key: &'static str,
    environment: Option<&'static str>,
    (default, min, max): (u64, u64, u64),
    effect: Effect,
) -> Size {
    Size { key, environment, default, min, max, effect }
}

/// `CUFileSizeTConfigParameter_t` in its order.
pub(crate) const SIZES: [Size; 12] = [
    size("profile.cufile_stats", Some("CUFILE_STATS_LEVEL"), (0, 0, 3), Effect::Used),
    size("execution.max_io_queue_depth", None, (128, 1, 256), Effect::Used),
    size("execution.max_io_threads", None, (8, 0, 128), Effect::Used),
    size("execution.min_io_threshold_size_kb", None, (1024, 4, 0xffff_ffff), OWN_SPLIT),
    size("execution.max_request_parallelism", None, (4, 0, 8), OWN_SPLIT),
    size("properties.max_direct_io_size_kb", None, (16_384, 64, 16_384), OWN_SPLIT),
    size(
        "properties.max_device_cache_size_kb",
        Some("CUFILE_MAX_DEVICE_CACHE_SIZE"),
        (131_072, 0, u64::MAX),
        OWN_STAGING,
    ),
    size("properties.per_buffer_cache_size_kb", Some("CUFILE_PER_BUFFER_CACHE_SIZE"), (1024, 64, 16_384), OWN_STAGING),
    size("properties.max_device_pinned_mem_size_kb", None, (33_554_432, 64, u64::MAX), OWN_STAGING),
    size("properties.io_batchsize", None, (128, 1, 256), Effect::Used),
    size(
        "properties.poll_mode_max_size_kb",
        None,
        (4, 4, u64::MAX >> 10),
        Effect::Kept("the engine decides how to wait"),
    ),
    size(
        "properties.max_batch_io_timeout_msecs",
        None,
        (5, 1, 1000),
        Effect::Kept("a batch waits as long as its caller asks for"),
    ),
];

/// One that is no unless somebody says otherwise.
const fn no(key: &'static str, environment: Option<&'static str>, effect: Effect) -> Flag {
    Flag { key, environment, default: false, effect }
}

/// One that is yes unless somebody says otherwise.
const fn yes(key: &'static str, environment: Option<&'static str>, effect: Effect) -> Flag {
    Flag { default: true, ..no(key, environment, effect) }
}

/// `CUFileBoolConfigParameter_t` in its order.
pub(crate) const FLAGS: [Flag; 14] = [
    no("properties.use_poll_mode", None, Effect::Kept("the engine decides how to wait")),
    yes("properties.allow_compat_mode", Some("CUFILE_ALLOW_COMPAT_MODE"), NO_COMPAT),
    no("properties.force_compat_mode", Some("CUFILE_FORCE_COMPAT_MODE"), NO_COMPAT),
    no("fs.misc_api_check_aggressive", None, Effect::Kept("arguments are always checked")),
    yes("execution.parallel_io", None, OWN_SPLIT),
    no("profile.nvtx", Some("CUFILE_NVTX"), Effect::Kept("no marks are written")),
    yes("properties.allow_system_memory", None, Effect::Kept("host memory always works")),
    no("properties.use_pci_p2pdma", Some("CUFILE_USE_PCIP2PDMA"), NO_MODULE),
    no("properties.prefer_iouring", None, Effect::Kept("io_uring is used wherever the kernel has it")),
    no("properties.force_odirect_mode", None, Effect::Kept("use SW_CUFILE_POLICY=prefer=dma")),
    no(
        "properties.skip_topology_detection",
        Some("CUFILE_SKIP_TOPOLOGY_DETECTION"),
        Effect::Kept("there is none to skip"),
    ),
    no("properties.stream_memops_bypass", Some("CUFILE_STREAM_MEMOPS_BYPASS"), Effect::Kept("streams wait by memory")),
    no("properties.vanilla_posix_io_mode", None, NO_COMPAT),
    no("properties.gds_fallback_io", None, NO_COMPAT),
];

/// `CUFileStringConfigParameter_t` in its order.
pub(crate) const TEXTS: [Text; 4] = [
    Text { key: "logging.level", environment: Some("CUFILE_LOGGING_LEVEL"), default: "OFF", effect: Effect::Used },
    Text { key: "logging.file", environment: Some("CUFILE_LOGFILE_PATH"), default: "", effect: Effect::Used },
    Text { key: "logging.dir", environment: None, default: "", effect: Effect::Used },
    Text {
        key: "properties.rdma_transport_type",
        environment: None,
        default: "DC_V1",
        effect: Effect::Kept("there is no RDMA to user-space file systems"),
    },
];

/// Other names of keys.
pub(crate) const ALIASES: [(&str, &str); 3] = [
    ("properties.use_compat_mode", "properties.allow_compat_mode"),
    ("profile.io_batchsize", "properties.io_batchsize"),
    ("properties.max_batch_io_size", "properties.io_batchsize"),
];

/// Places of the parameters that this crate looks at itself.
pub(crate) const STATS_LEVEL: usize = 0;
pub(crate) const QUEUE_DEPTH: usize = 1;
pub(crate) const IO_THREADS: usize = 2;
pub(crate) const MAX_DIRECT_KB: usize = 5;
pub(crate) const DEVICE_CACHE_KB: usize = 6;
pub(crate) const BUFFER_CACHE_KB: usize = 7;
pub(crate) const PINNED_KB: usize = 8;
pub(crate) const BATCH: usize = 9;
pub(crate) const POLL_KB: usize = 10;
pub(crate) const BATCH_TIMEOUT_MS: usize = 11;
pub(crate) const POLL_MODE: usize = 0;
pub(crate) const LOG_LEVEL: usize = 0;
pub(crate) const LOG_FILE: usize = 1;
pub(crate) const LOG_DIR: usize = 2;

/// Sizes and counts of slabs, in pairs: `PosixPoolSlabArray` and `GpuBounceBufferSlabArray`.
pub(crate) const SLABS: [(&str, &str); 2] = [
    ("properties.posix_pool_slab_size_kb", "properties.posix_pool_slab_count"),
    ("properties.gpu_bounce_buffer_slab_size_kb", "properties.gpu_bounce_buffer_slab_count"),
];

/// Slabs that the real library has by default, of sizes in KiB with their counts.
pub(crate) const SLAB_DEFAULT: [(u64, u64); 3] = [(4, 128), (1024, 64), (16_384, 64)];

/// A value and where it is from.
pub(crate) type From<T> = (T, Origin);

/// All parameters.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) sizes: [From<u64>; SIZES.len()],
    pub(crate) flags: [From<bool>; FLAGS.len()],
    pub(crate) texts: [From<String>; TEXTS.len()],
    pub(crate) slabs: [From<Vec<(u64, u64)>>; SLABS.len()],
}

impl Default for Values {
    fn default() -> Self {
        let default = Origin::Default;
        Self {
            sizes: SIZES.map(|size| (size.default, default)),
            flags: FLAGS.map(|flag| (flag.default, default)),
            texts: TEXTS.map(|text| (text.default.to_owned(), default)),
            slabs: [(SLAB_DEFAULT.to_vec(), default), (SLAB_DEFAULT.to_vec(), default)],
        }
    }
}

impl Values {
    pub(crate) fn size(&self, index: usize) -> u64 {
        self.sizes[index].0
    }

    /// The first value out of its range.
    pub(crate) fn wrong(&self) -> Option<String> {
        let mut sizes = SIZES.iter().zip(&self.sizes);
        sizes.find(|(size, (value, _))| !(size.min..=size.max).contains(value)).map(|(size, (value, origin))| {
            let Size { key, min, max, .. } = size;
            format!("{key} is {value} by {}; it is {min} to {max}", origin.name())
        })
    }
}

/// Which answer a failed transfer gives; see `docs/cufile.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum ErrorForm {
    /// Minus the code, or minus one with the system's `errno`.
    #[default]
    Documented,
    /// Minus one always, with the code in `errno`.
    Observed,
}

/// Settings that cuFile does not have: variables that begin with `SW_CUFILE_`.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) policy: Policy,
    pub(crate) policy_text: String,
    pub(crate) errors: ErrorForm,
    /// As `cuFileGetVersion` tells it; decides on layouts too.
    pub(crate) version: i32,
    /// Options of the engine, as the command line has them.
    pub(crate) engine: String,
}

/// Versions whose layouts are known, as `cuFileGetVersion` tells them.
pub(crate) const VERSIONS: [i32; 9] = [1110, 1130, 1140, 1150, 1160, 1170, 1180, 1190, 1200];

/// The version whose statistics have the vectored calls.
pub(crate) const VECTORED_SINCE: i32 = 1190;

impl Default for Own {
    fn default() -> Self {
        Self {
            policy: Policy::Any,
            policy_text: "any".to_owned(),
            errors: ErrorForm::default(),
            version: VERSIONS[VERSIONS.len() - 1],
            engine: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn row(key: &str, environment: Option<&str>, (default, range): (String, String), effect: Effect) -> String {
        let environment = environment.map(|name| format!("`{name}`")).unwrap_or_default();
        let effect = match effect {
            Effect::Used => "used",
            Effect::Kept(why) => &format!("kept: {why}"),
        };
        format!("| `{key}` | {environment} | {default} | {range} | {effect} |\n")
    }

    #[test]
    fn the_document_has_every_parameter() {
        let mut table = String::new();
        for size in SIZES {
            let range = match size.max {
                u64::MAX => format!("from {}", size.min),
                max => format!("{} to {max}", size.min),
            };
            table += &row(size.key, size.environment, (size.default.to_string(), range), size.effect);
        }
        for flag in FLAGS {
            let range = "true, false".to_owned();
            table += &row(flag.key, flag.environment, (flag.default.to_string(), range), flag.effect);
        }
        for text in TEXTS {
            table += &row(text.key, text.environment, (text.default.to_owned(), "text".to_owned()), text.effect);
        }
        let document = include_str!("../../../docs/cufile.md");
        let mut missing = String::new();
        for line in table.lines().filter(|line| !document.contains(*line)) {
            writeln!(missing, "{line}").unwrap();
        }
        assert!(missing.is_empty(), "docs/cufile.md lacks these rows:\n{missing}");
        for (other, key) in ALIASES {
            assert!(document.contains(&format!("`{other}`")), "docs/cufile.md does not say that {other} is {key}");
        }
    }
}
