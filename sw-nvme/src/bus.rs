//! What a driver needs of one PCIe function: its registers, memory that both sides reach, interrupts, and time.
//!
//! Two implementations: `sw-vfio` (a real function) and `sw-sim` (a modelled one). The barrier calls are part of
//! [`QueueMemory`], so that the model sees a missing one.

use std::{sync::Arc, time::Duration};

use sw_engine::{Error, Time, seam::Wake};
use sw_mem::{DmaRegion, Iova};

/// The register file (BAR 0). Cheap to clone; clones name the same registers.
///
/// Offsets are in bytes, multiples of the access size, inside [`Registers::len`]; an offset outside reads as all ones and
/// writes nothing, as a device that is gone does.
pub trait Registers: Clone + Send + 'static {
    /// Bytes of the register file.
    fn len(&self) -> u32;
    /// One 32-bit read. All ones also means: the device is gone.
    fn read32(&self, at: u32) -> u32;
    /// One 32-bit write.
    fn write32(&self, at: u32, value: u32);
    /// A 64-bit register, as one access or as two 32-bit ones, low half first.
    fn read64(&self, at: u32) -> u64;
    /// A 64-bit register, likewise.
    fn write64(&self, at: u32, value: u64);
    /// Whether the file has no bytes; never true for a device that is there.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory for rings, PRP lists and identify data: contiguous for the CPU and for the controller, page aligned, zeroed.
///
/// Offsets are in bytes from its start and inside its length; an access outside is a bug of the driver: it panics in debug
/// builds and does nothing (reads zero) in release builds.
pub trait QueueMemory: Send + 'static {
    /// Its address as the controller uses it.
    fn iova(&self) -> Iova;
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Copies bytes out.
    fn read(&self, at: usize, to: &mut [u8]);
    /// Copies bytes in.
    fn write(&self, at: usize, from: &[u8]);
    /// One aligned 32-bit load that the compiler neither repeats nor leaves out.
    fn load32(&self, at: usize) -> u32;
    /// One aligned 32-bit store, likewise.
    fn store32(&self, at: usize, value: u32);
    /// Earlier writes to any queue memory are visible to the controller before a later register write.
    fn before_doorbell(&self);
    /// Reads after this see what the controller wrote before the word that was loaded last.
    fn after_valid(&self);
    /// An earlier store to queue memory is visible to the controller before a later load from it (shadow doorbells).
    fn store_then_load(&self);
    /// Another handle of the same memory, for shadow doorbells: the handles go to the threads of different queues, each of
    /// which touches only the words of its own queue, by `load32`, `store32` and `store_then_load`. The memory stays until
    /// the last handle is dropped. `None`, which is what this says unless it is implemented: shadow doorbells are not used.
    fn alias(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
    /// Whether it has no bytes; never true.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a thread that owns queues waits: for interrupts of any number of functions of one kind, or a moment between two looks.
/// Made by whoever composes the engine, one per transport.
pub trait Waiter: Send + 'static {
    /// The interrupt handle that it can watch.
    type Interrupt: Send + 'static;

    /// Watches one more interrupt, until the waiter is dropped.
    ///
    /// # Errors
    /// A limit of the system.
    fn watch(&mut self, interrupt: &Self::Interrupt) -> Result<(), Error>;

    /// Waits at most `timeout` for any watched interrupt or a wake-up, and takes it. Spurious returns are allowed; an
    /// interrupt or wake-up that came before the call is not lost.
    ///
    /// `true`: it took a wake-up, whenever that came. Nobody else will see it.
    #[must_use = "a wake-up that was taken here is not told again"]
    fn wait(&mut self, timeout: Duration) -> bool;

    /// Takes a wake-up that came since the last look, without waiting.
    fn woken(&mut self) -> bool;

    /// Between two looks at a queue: a hint to the processor. Never blocks.
    fn relax(&mut self);

    /// Now, for the bound of a wait that looks instead of sleeping.
    fn now(&self) -> Time;

    /// A handle that ends a wait, or the next one.
    fn waker(&self) -> Arc<dyn Wake>;
}

/// One function, claimed by this process. Shared by the threads that own its queues.
pub trait Bus: Send + Sync + 'static {
    /// See [`Registers`].
    type Registers: Registers;
    /// See [`QueueMemory`].
    type Memory: QueueMemory;
    /// See [`Waiter`].
    type Waiter: Waiter;

    /// The function in the operator's words, such as `0000:3b:00.0`.
    fn name(&self) -> &str;

    /// Its register file.
    fn registers(&self) -> Self::Registers;

    /// Memory of `len` bytes (rounded up to whole pages) for rings and lists.
    ///
    /// # Errors
    /// `ResourceLimit`: locked memory, entries or space of the IOMMU.
    fn allocate(&self, len: usize) -> Result<Self::Memory, Error>;

    /// Makes a region reachable for the controller and says where it sees the region's first byte. A region that is mapped
    /// already keeps its address. It stays mapped until the region's last handle is gone.
    ///
    /// # Errors
    /// `ResourceLimit`, `Unsupported` for memory that the IOMMU cannot map.
    fn map(&self, region: &DmaRegion) -> Result<Iova, Error>;

    /// Interrupt vectors that there are, at least 1; 0 if the function has no usable interrupts and must be polled.
    fn vectors(&self) -> u16;

    /// A handle of interrupt `vector`, below [`Bus::vectors`]; enables it.
    ///
    /// # Errors
    /// The system refuses it.
    fn interrupt(&self, vector: u16) -> Result<<Self::Waiter as Waiter>::Interrupt, Error>;

    /// Now, as the owner of the engine's clock counts.
    fn now(&self) -> Time;

    /// Lets `span` pass: for the waits of bring-up and reset, which the specification gives limits in time.
    fn pause(&self, span: Duration);

    /// Tries to stop all DMA of the function from outside (function-level reset, bus master off). `true`: it can touch no
    /// memory any more.
    fn stop(&self) -> bool;

    /// Whether the system said that the function is not this process's any more: pulled out, taken back, failed. No access
    /// is made for it. `false`, which is what this says unless it is implemented, means nothing.
    fn is_gone(&self) -> bool {
        false
    }
}
