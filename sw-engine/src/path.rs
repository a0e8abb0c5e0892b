//! Which way bytes went, and why not a better one.

use core::fmt;
use core::ops::AddAssign;

/// A transport by the name that reports print, such as `io_uring`.
pub type TransportName = &'static str;

/// Who wrote the final bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Landing {
    /// A device or NIC wrote (or read) the caller's memory itself. This and nothing else is "direct".
    Dma,
    /// The kernel copied once between its page cache or socket and the caller's memory.
    KernelCopy,
    /// The bytes went through a slab of ours, then a copy engine or the CPU; or through a buffer of a library of the transport's.
    Staged,
}

impl Landing {
    /// The name that reports and policies use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dma => "dma",
            Self::KernelCopy => "kernel-copy",
            Self::Staged => "staged",
        }
    }

    /// How often a CPU copies a byte on a face with this landing. One that is staged by its transport: the kernel into a library's
    /// buffer, the library into its place.
    pub(crate) fn copies(self) -> u8 {
        match self {
            Self::Dma => 0,
            Self::KernelCopy => 1,
            Self::Staged => 2,
        }
    }
}

/// A transport and a landing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Who moves the bytes between object and memory.
    pub transport: TransportName,
    /// Who writes the final ones.
    pub landing: Landing,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport, self.landing.name())
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a route was refused or not the best. Codes are stable; texts may improve.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable code.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// One sentence for people, with the remedy where there is one.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Nothing better exists.
    Best = "BEST", "no better route exists for this object and memory";
    /// The policy excludes it.
    PolicyExcludes = "POLICY_EXCLUDES", "the policy asks for another route";
    /// The policy prefers it, although another accepted route ranks higher.
    Preferred = "PREFERRED", "the policy prefers this route; without it another one would have been taken";
    /// A route that ranks higher was accepted.
    RankedLower = "RANKED_LOWER", "another accepted route ranks higher";
    /// Measured slower than another of the same rank, or than the page cache for a resident file.
    MeasuredSlower = "MEASURED_SLOWER", "another route was measured to be faster in this engine; rates are kept by device, transport, landing and page cache, for all objects together";
    /// Most of the file is in the page cache.
    Resident = "PAGE_CACHE_RESIDENT", "the file is in the page cache, which is faster than its device";
    /// The file system or device refuses O_DIRECT.
    DirectRefused = "O_DIRECT_REFUSED", "the file system refuses O_DIRECT; use one that has it (ext4, xfs, btrfs)";
    /// A descriptor of the caller's could not be opened a second time with other flags.
    NotReopened = "NOT_REOPENED", "the caller's descriptor could not be opened once more (no /proc, or no right to the file), so only its own flags count; open the file with O_DIRECT, or let this process reach /proc/self/fd";
    /// Nobody could tell the alignment that O_DIRECT needs.
    DirectUnaligned = "O_DIRECT_ALIGNMENT_UNKNOWN", "the alignment that O_DIRECT needs cannot be found out";
    /// Memory and object offsets are not congruent to the alignment.
    MemoryMisaligned = "MEMORY_MISALIGNED", "memory address and object offset differ modulo the device's alignment; place the memory congruent to the offset";
    /// First or last bytes share a block with bytes that were not asked for.
    RaggedEnds = "RAGGED_ENDS", "offset or length is not a multiple of the block; the ends go through a bounce block";
    /// A write whose ends are no whole blocks, on an object that takes only whole blocks.
    RaggedWrite = "RAGGED_WRITE_UNSUPPORTED", "the object takes whole blocks only; align offset and length of the write";
    /// The transport cannot reach that memory.
    MemoryUnreachable = "MEMORY_UNREACHABLE", "the transport cannot address this kind of memory; the bytes are staged in host memory";
    /// The memory is not there, or nobody can use it.
    NoSuchMemory = "NO_SUCH_MEMORY", "the destination names no memory that this process can use";
    /// The kernel lacks peer-to-peer pages for device memory.
    NoPeerPages = "NO_P2PDMA", "no peer-to-peer mapping of device memory was proven on this machine";
    /// Drive and memory hang on different branches of the PCI tree.
    P2pNoCommonSwitch = "P2P_NO_COMMON_SWITCH", "the drive and the device memory share no PCI switch, and the kernel lists no host bridge between them as safe for peer-to-peer DMA; put both below one switch";
    /// A bridge between them sends peer-to-peer requests to the root complex.
    P2pAcsRedirect = "P2P_ACS_REDIRECT", "a PCI bridge between the drive and the device memory redirects peer-to-peer DMA (ACS); see the kernel parameter pci=disable_acs_redir";
    /// The object is on no PCI device.
    P2pNotPci = "P2P_NOT_PCI", "the object is on no PCI device, and peer-to-peer DMA is between PCI devices";
    /// The kernel refused a peer-to-peer I/O that it was asked for.
    P2pRefused = "P2P_REFUSED", "the kernel refused peer-to-peer DMA between the drive and the device memory; its log says why";
    /// No copy engine for that device.
    NoCopyEngine = "NO_COPY_ENGINE", "no copy engine serves this device memory";
    /// No staging slabs were configured.
    NoStaging = "NO_STAGING", "no staging budget is configured";
    /// The kernel or a policy blocks io_uring.
    UringBlocked = "IO_URING_BLOCKED", "io_uring is blocked (seccomp or kernel.io_uring_disabled); allow it for fewer system calls";
    /// The kernel is too old for something the route needs.
    KernelTooOld = "KERNEL_TOO_OLD", "the kernel lacks a feature that the route needs";
    /// The driver library was not found.
    NoDriver = "NO_GPU_DRIVER", "no GPU driver library was found";
    /// A self-test failed.
    SelfTestFailed = "SELF_TEST_FAILED", "the route is offered but its self-test failed";
    /// Nobody named a vendor's library, and without that it is not taken.
    VendorNotAsked = "VENDOR_NOT_ASKED", "a vendor's library decides by itself how bytes go, so it moves them only where a policy or the engine names it";
    /// There is no vendor's library, or none that can be used.
    NoVendorLibrary = "NO_VENDOR_LIBRARY", "no vendor's library for files can be used here; `straightway doctor` says what is missing";
    /// It does not take the object.
    VendorRefused = "VENDOR_REFUSED", "the vendor's library does not take this object: its file system, or what it is";
    /// It moves the bytes, and does not tell how.
    VendorDecides = "VENDOR_DECIDES", "the vendor's library decides by itself how bytes go and does not tell; they count as copied by the kernel, never as direct";
    /// The object ends before a whole block.
    TailOfFile = "TAIL_OF_FILE", "the object ends inside a block";
    /// TLS is done by a library of this process.
    TlsInUserSpace = "TLS_IN_USER_SPACE", "the connection's TLS is done by a library in this process, which decrypts and copies each byte; for NVMe over TCP, with the kernel's module tls they go as without TLS";
    /// The target kept no order, and bytes came to places that were meant for others.
    OutOfOrder = "OUT_OF_ORDER", "the target sent data in another order than was foreseen; it was copied aside, and from there to its place";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.text())
    }
}

/// Bytes by who wrote them finally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ByPath {
    /// Written (or read) in place by a device.
    pub dma: u64,
    /// Copied once by the kernel.
    pub kernel_copy: u64,
    /// Through a slab or bounce block of ours, or a buffer of the transport's: one of its library, or what it copied aside.
    pub staged: u64,
}

impl ByPath {
    /// `bytes`, all of them under `landing`.
    #[inline]
    pub(crate) fn only(landing: Landing, bytes: u64) -> Self {
        let under = |this: Landing| if landing == this { bytes } else { 0 };
        Self { dma: under(Landing::Dma), kernel_copy: under(Landing::KernelCopy), staged: under(Landing::Staged) }
    }

    /// Adds `bytes` under `landing`.
    #[inline]
    pub fn add(&mut self, landing: Landing, bytes: u64) {
        match landing {
            Landing::Dma => self.dma += bytes,
            Landing::KernelCopy => self.kernel_copy += bytes,
            Landing::Staged => self.staged += bytes,
        }
    }

    /// Those under `landing`.
    #[inline]
    pub fn of(&self, landing: Landing) -> u64 {
        match landing {
            Landing::Dma => self.dma,
            Landing::KernelCopy => self.kernel_copy,
            Landing::Staged => self.staged,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.dma + self.kernel_copy + self.staged
    }
}

impl AddAssign for ByPath {
    fn add_assign(&mut self, more: ByPath) {
        self.dma += more.dma;
        self.kernel_copy += more.kernel_copy;
        self.staged += more.staged;
    }
}

/// The way that the bytes of one operation took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPath {
    /// The route of most of its bytes; the planned one at a tie or before any byte moved.
    pub route: Route,
    /// The caller's bytes, by who wrote them finally.
    pub bytes: ByPath,
    /// Of the caller's bytes, those that passed through a slab or bounce block of ours. For a host-memory operation on a
    /// direct route these are the ragged ends.
    pub bounced: u64,
    /// Bytes copied by a CPU on the way, kernel and ours together: each byte counts once per copy.
    pub cpu_copied: u64,
    /// Why the least direct of its bytes went no better way.
    pub reason: Reason,
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes, {} bounced; {})", self.route, self.bytes.total(), self.bounced, self.reason.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_reason_with_its_text() {
        let document = include_str!("../../docs/paths.md");
        for reason in Reason::ALL {
            let row = format!("| `{}` | {} |", reason.code(), reason.text());
            assert!(document.contains(&row), "docs/paths.md lacks the row {row}");
        }
    }

    #[test]
    fn reason_codes_are_unique_and_upper_case() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert!(
            codes.iter().all(|code| code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        );
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len());
    }
}
