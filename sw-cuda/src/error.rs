//! What the driver said, typed.

use std::fmt;

use sw_engine::{Error, ErrorKind, Fault, Verb};

use crate::table::Code;

// Values of cuda.h, "enum cudaError_enum". Those of newer drivers than this list keep their number.
pub(crate) const SUCCESS: Code = 0;
pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const NOT_INITIALIZED: Code = 3;
pub(crate) const DEINITIALIZED: Code = 4;
pub(crate) const NOT_READY: Code = 600;
pub(crate) const ALREADY_REGISTERED: Code = 712;

/// One failed call of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaError {
    /// The class, as everywhere in the engine.
    pub kind: ErrorKind,
    /// The driver's number.
    pub code: u32,
    /// The driver's name of the number, as it gave it; empty if the driver does not know it either.
    pub name: String,
    /// The function that failed.
    pub call: &'static str,
    /// Ordinal of the device, where there is one.
    pub device: Option<u16>,
    /// What to do about it; empty if nothing is known.
    pub remedy: &'static str,
}

impl CudaError {
    /// From a code, with the name that the driver gives it.
    pub(crate) fn new(code: Code, name: String, call: &'static str, device: Option<u16>) -> Self {
        Self { kind: kind_of(code), code, name, call, device, remedy: remedy_of(code, call) }
    }

    /// A refusal of ours, before the driver was asked.
    pub(crate) fn ours(kind: ErrorKind, call: &'static str, device: Option<u16>, remedy: &'static str) -> Self {
        Self { kind, code: 0, name: String::new(), call, device, remedy }
    }

    /// As an error of the engine, while doing `verb`.
    pub fn into_error(self, verb: Verb) -> Error {
        let detail = self.detail();
        let at = self.device.map_or_else(|| "cuda driver".to_owned(), |ordinal| format!("gpu{ordinal}"));
        Error::new(self.kind, verb)
            .at(at)
            .detail(detail)
            .remedy(self.remedy)
            .with_code(signed(self.code))
            .caused_by(self)
    }

    /// As a fault of the data path.
    pub fn fault(&self) -> Fault {
        Fault::new(self.kind, signed(self.code))
    }

    fn detail(&self) -> String {
        if self.code == 0 {
            format!("{} refused", self.call)
        } else if self.name.is_empty() {
            format!("{} answered a code that this driver has no name for", self.call)
        } else {
            format!("{} answered {}", self.call, self.name)
        }
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail())?;
        if self.code != 0 {
            write!(f, " ({})", self.code)?;
        }
        if let Some(device) = self.device {
            write!(f, " on gpu{device}")?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for CudaError {}

/// The fault of a code, for the data path: no text, no allocation.
pub(crate) fn fault_of(code: Code) -> Fault {
    Fault::new(kind_of(code), signed(code))
}

fn signed(code: Code) -> i32 {
    i32::try_from(code).unwrap_or(i32::MAX)
}

/// Classes. Codes of 700 and above that are not listed break the context (CUDA Driver API, "Error handling"): the device
/// did not do what it was told, which is an I/O error to us.
pub(crate) fn kind_of(code: Code) -> ErrorKind {
    match code {
        INVALID_VALUE | 201 | 400 | 401 | 709 => ErrorKind::ApiMisuse,
        OUT_OF_MEMORY => ErrorKind::ResourceLimit,
        NOT_INITIALIZED if std::process::id() != crate::driver::loaded_by() => ErrorKind::Forked,
        NOT_INITIALIZED | DEINITIALIZED => ErrorKind::Closed,
        34 | 36 | 209 | 217 | 218 | 222 | 801 | 803 | 804 => ErrorKind::Unsupported,
        46 | 100 | 101 => ErrorKind::NoDevice,
        500 => ErrorKind::NotFound,
        NOT_READY => ErrorKind::Busy,
        ALREADY_REGISTERED => ErrorKind::InUse,
        713 => ErrorKind::NotRegistered,
        800 => ErrorKind::PermissionDenied,
        _ => ErrorKind::Io,
    }
}

/// Whether a code ends the context: nothing runs in it any more, and every call answers the same.
pub(crate) fn breaks_context(code: Code) -> bool {
    code == 46 || kind_of(code) == ErrorKind::Io || matches!(code, DEINITIALIZED | 709)
}

fn remedy_of(code: Code, call: &str) -> &'static str {
    match (code, call) {
        (OUT_OF_MEMORY, "cuMemHostRegister_v2" | "cuMemHostAlloc") => {
            "lower the staging budget, or raise the limit of locked memory (ulimit -l, LimitMEMLOCK)"
        }
        (OUT_OF_MEMORY, _) => "free device memory, or load a smaller part",
        (NOT_INITIALIZED, _) => "make a new engine in this process: a driver does not survive fork",
        (34, _) => "the libcuda found is the toolkit's link-time stub: take its folder out of LD_LIBRARY_PATH",
        (46, _) => "the device is in exclusive or prohibited compute mode, or another process holds it",
        (100, _) => "no device is visible: check nvidia-smi, CUDA_VISIBLE_DEVICES and the container's devices",
        (101, _) => "use a device ordinal that `straightway doctor` lists",
        (209 | 218 | 222, _) => "use a driver of CUDA 12.0 or later and a device of compute capability 7.0 or later",
        (214 | 220, _) => "the hardware reported a memory error: reset the device and look into the kernel log for Xid",
        (803 | 804, _) => "kernel module and user-space driver differ: reboot or install matching versions",
        (ALREADY_REGISTERED, _) => "another library registered a part of this range: register the whole of it there",
        (700..=719 | 999, _) => "the context is lost: end this process, and look into the kernel log for Xid messages",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_newer_driver_keeps_its_number() {
        let error = CudaError::new(4711, String::new(), "cuMemAlloc_v2", Some(1));
        assert_eq!(error.to_string(), "cuMemAlloc_v2 answered a code that this driver has no name for (4711) on gpu1");
        assert_eq!((error.kind, error.fault().code), (ErrorKind::Io, 4711));
    }

    #[test]
    fn out_of_memory_says_which_memory() {
        let of = |call| CudaError::new(OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY".into(), call, None).remedy;
        assert!(of("cuMemHostRegister_v2").contains("locked memory"));
        assert!(of("cuMemAlloc_v2").contains("device memory"));
    }
}
