//! A controller that completes every I/O at once and moves nothing: what the driver itself costs.
//!
//! Rings lie in plain memory of atomic words, so that nothing is unsafe; a doorbell is a function call. One thread.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sw_engine::{Error, Time, seam::Wake};
use sw_mem::{DmaRegion, Iova};
use sw_nvme::{
    bus::{Bus, QueueMemory, Registers, Waiter},
    status::Status,
    wire::{
        Command, Completion, DataPointer,
        admin::opcode,
        completion::CompletionFields,
        regs,
        regs::{Aqa, Cc},
    },
};

/// Where queue memory lies: each allocation has 16 MiB of its own.
const STRIDE: u64 = 1 << 24;
/// Where regions lie: the address in the process, so that no table is needed.
const BLOCKS: u64 = 1 << 30;

type Words = Arc<[AtomicU64]>;

pub struct NullDevice {
    shared: Arc<Shared>,
    begun: Instant,
}

struct Shared {
    /// Values of the registers that are more than doorbells.
    cc: AtomicU32,
    aqa: AtomicU32,
    asq: AtomicU64,
    acq: AtomicU64,
    rings: Mutex<Rings>,
    /// Tail and head doorbells that were written.
    doorbells: [AtomicU64; 2],
}

#[derive(Default)]
struct Rings {
    memory: Vec<Words>,
    queues: Vec<Option<Queue>>,
}

struct Queue {
    sq: Words,
    sq_at: usize,
    cq: Words,
    cq_at: usize,
    mask: u32,
    head: u32,
    cq_tail: u32,
    phase: bool,
}

impl NullDevice {
    pub fn new() -> Self {
        let shared = Shared {
            cc: AtomicU32::new(0),
            aqa: AtomicU32::new(0),
            asq: AtomicU64::new(0),
            acq: AtomicU64::new(0),
            rings: Mutex::default(),
            doorbells: [const { AtomicU64::new(0) }; 2],
        };
        Self { shared: Arc::new(shared), begun: Instant::now() }
    }

    /// Tail and head doorbells that were written so far.
    pub fn doorbells(&self) -> [u64; 2] {
        self.shared.doorbells.each_ref().map(|count| count.load(Relaxed))
    }

    pub fn waiter(&self) -> NullWaiter {
        NullWaiter { begun: self.begun, wake: Arc::default() }
    }
}

#[derive(Clone)]
pub struct NullRegisters(Arc<Shared>);

impl Registers for NullRegisters {
    fn len(&self) -> u32 {
        0x2000
    }

    fn read32(&self, at: u32) -> u32 {
        match at {
            // MQES 4095, CQR, TO, NVM command set, 4 KiB pages.
            regs::CAP => 0xFFF | 1 << 16 | 1 << 24,
            0x04 => 1 << 5,
            regs::VS => 0x0001_0400,
            regs::CC => self.0.cc.load(Relaxed),
            regs::CSTS => self.0.cc.load(Relaxed) & 1,
            _ => 0,
        }
    }

    fn write32(&self, at: u32, value: u32) {
        match at {
            regs::DOORBELLS.. => self.0.doorbell((at - regs::DOORBELLS) / 4, value),
            regs::CC => {
                self.0.cc.store(value, Relaxed);
                self.0.configure(Cc::from_raw(value));
            }
            regs::AQA => self.0.aqa.store(value, Relaxed),
            _ => {}
        }
    }

    fn read64(&self, at: u32) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write64(&self, at: u32, value: u64) {
        match at {
            regs::ASQ => self.0.asq.store(value, Relaxed),
            regs::ACQ => self.0.acq.store(value, Relaxed),
            _ => {}
        }
    }
}

impl Shared {
    fn configure(&self, cc: Cc) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.queues.clear();
        if cc.is_enabled() {
            let entries = Aqa::decode(self.aqa.load(Relaxed)).sq_entries;
            let (asq, acq) = (self.asq.load(Relaxed), self.acq.load(Relaxed));
            let queue = rings.queue(asq, acq, entries);
            rings.queues.push(Some(queue));
        }
    }

    #[inline]
    fn doorbell(&self, index: u32, value: u32) {
        let count = &self.doorbells[index as usize % 2];
        count.store(count.load(Relaxed) + 1, Relaxed);
        if index % 2 == 1 {
            return;
        }
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if index == 0 { rings.admin(value) } else { rings.io(index / 2, value) }
    }
}

impl Rings {
    fn words(&self, iova: u64) -> (Words, usize) {
        let words = self.memory[usize::try_from(iova / STRIDE - 1).unwrap()].clone();
        (words, usize::try_from(iova % STRIDE).unwrap() / 8)
    }

    fn queue(&self, sq: u64, cq: u64, entries: u32) -> Queue {
        let ((sq, sq_at), (cq, cq_at)) = (self.words(sq), self.words(cq));
        Queue { sq, sq_at, cq, cq_at, mask: entries - 1, head: 0, cq_tail: 0, phase: true }
    }

    #[inline]
    fn io(&mut self, qid: u32, tail: u32) {
        let Some(Some(queue)) = self.queues.get_mut(qid as usize) else { return };
        while queue.head != tail {
            let head = queue.sq[queue.sq_at + queue.head as usize * 8].load(Relaxed);
            queue.head = (queue.head + 1) & queue.mask;
            // CID is bits 31:16 of the first word.
            let second = u64::from(queue.head) | u64::from(qid) << 16 | (head >> 16 & 0xFFFF) << 32;
            let at = queue.cq_at + queue.cq_tail as usize * 2;
            queue.cq[at].store(0, Relaxed);
            queue.cq[at + 1].store(second | u64::from(queue.phase) << 48, Relaxed);
            queue.cq_tail = (queue.cq_tail + 1) & queue.mask;
            queue.phase ^= queue.cq_tail == 0;
        }
    }

    fn admin(&mut self, tail: u32) {
        while let Some(Some(queue)) = self.queues.first()
            && queue.head != tail
        {
            let mut entry = [0; 64];
            for (word, to) in entry.chunks_exact_mut(8).enumerate() {
                let at = queue.sq_at + queue.head as usize * 8 + word;
                to.copy_from_slice(&queue.sq[at].load(Relaxed).to_le_bytes());
            }
            let command = Command::new(entry);
            let answer = self.answer(&command);
            let Some(Some(queue)) = self.queues.first_mut() else { return };
            queue.head = (queue.head + 1) & queue.mask;
            let Some(dw0) = answer else { continue };
            let completion = Completion::build(CompletionFields {
                dw0,
                sq_id: 0,
                sq_head: u16::try_from(queue.head).unwrap(),
                cid: command.cid(),
                phase: queue.phase,
                status: Status::SUCCESS,
            });
            let at = queue.cq_at + queue.cq_tail as usize * 2;
            for (word, bytes) in completion.bytes().chunks_exact(8).enumerate() {
                queue.cq[at + word].store(u64::from_le_bytes(bytes.try_into().unwrap()), Relaxed);
            }
            queue.cq_tail = (queue.cq_tail + 1) & queue.mask;
            queue.phase ^= queue.cq_tail == 0;
        }
    }

    /// Dword 0 of the answer; `None`: none.
    fn answer(&mut self, command: &Command) -> Option<u32> {
        let DataPointer::Prp(prp1, _) = command.data_pointer() else { return Some(0) };
        let (qid, entries) = (command.dword(10) & 0xFFFF, (command.dword(10) >> 16) + 1);
        match command.opcode() {
            opcode::IDENTIFY => self.identify(command.dword(10) & 0xFF, command.nsid(), prp1),
            opcode::CREATE_CQ => {
                self.queues.resize_with(self.queues.len().max(qid as usize + 1), || None);
                self.queues[qid as usize] = Some(self.queue(prp1, prp1, entries));
            }
            opcode::CREATE_SQ => {
                let (sq, sq_at) = self.words(prp1);
                if let Some(Some(queue)) = self.queues.get_mut(qid as usize) {
                    (queue.sq, queue.sq_at) = (sq, sq_at);
                }
            }
            opcode::SET_FEATURES if command.dword(10) & 0xFF == 7 => return Some(7 << 16 | 7),
            opcode::ASYNC_EVENT_REQUEST => return None,
            _ => {}
        }
        Some(0)
    }

    fn identify(&self, cns: u32, nsid: u32, to: u64) {
        let mut page = vec![0u8; 4096];
        match cns {
            0 => {
                page[..8].copy_from_slice(&BLOCKS.to_le_bytes());
                page[130] = 9;
            }
            1 => {
                page[77] = 8;
                page[512..514].copy_from_slice(&[0x66, 0x44]);
                page[516] = 1;
            }
            2 if nsid == 0 => page[0] = 1,
            _ => {}
        }
        let (words, at) = self.words(to);
        for (word, bytes) in page.chunks_exact(8).enumerate() {
            words[at + word].store(u64::from_le_bytes(bytes.try_into().unwrap()), Relaxed);
        }
    }
}

pub struct NullMemory {
    words: Words,
    iova: u64,
}

impl QueueMemory for NullMemory {
    #[inline]
    fn iova(&self) -> Iova {
        Iova::new(self.iova)
    }

    #[inline]
    fn len(&self) -> usize {
        self.words.len() * 8
    }

    #[inline]
    fn read(&self, at: usize, to: &mut [u8]) {
        for (to, word) in to.chunks_exact_mut(8).zip(&self.words[at / 8..]) {
            to.copy_from_slice(&word.load(Relaxed).to_le_bytes());
        }
    }

    #[inline]
    fn write(&self, at: usize, from: &[u8]) {
        for (from, word) in from.chunks_exact(8).zip(&self.words[at / 8..]) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(from);
            word.store(u64::from_le_bytes(bytes), Relaxed);
        }
    }

    #[inline]
    fn load32(&self, at: usize) -> u32 {
        let shift = at % 8 * 8;
        u32::try_from(self.words[at / 8].load(Relaxed) >> shift & 0xFFFF_FFFF).unwrap_or(0)
    }

    #[inline]
    fn store32(&self, at: usize, value: u32) {
        // One writer per word of 64 bits: this device has no shadow doorbells, which would share one.
        let (word, shift) = (&self.words[at / 8], at % 8 * 8);
        let kept = word.load(Relaxed) & !(0xFFFF_FFFF << shift);
        word.store(kept | u64::from(value) << shift, Relaxed);
    }

    #[inline]
    fn before_doorbell(&self) {
        sw_mem::barrier::to_device_before_doorbell();
    }

    #[inline]
    fn after_valid(&self) {
        sw_mem::barrier::from_device_after_valid();
    }

    fn store_then_load(&self) {}
}

pub struct NullWaiter {
    begun: Instant,
    wake: Arc<Flag>,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Waiter for NullWaiter {
    type Interrupt = ();

    fn watch(&mut self, (): &()) -> Result<(), Error> {
        Ok(())
    }

    fn wait(&mut self, _timeout: Duration) -> bool {
        false
    }

    #[inline]
    fn woken(&mut self) -> bool {
        self.wake.0.load(Relaxed) && self.wake.0.swap(false, Relaxed)
    }

    #[inline]
    fn relax(&mut self) {
        std::hint::spin_loop();
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.begun.elapsed().as_nanos()).unwrap())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.wake.clone()
    }
}

impl Bus for NullDevice {
    type Registers = NullRegisters;
    type Memory = NullMemory;
    type Waiter = NullWaiter;

    fn name(&self) -> &str {
        "null"
    }

    fn registers(&self) -> NullRegisters {
        NullRegisters(self.shared.clone())
    }

    fn allocate(&self, len: usize) -> Result<NullMemory, Error> {
        let words: Words = (0..len.next_multiple_of(4096) / 8).map(|_| AtomicU64::new(0)).collect();
        let mut rings = self.shared.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.memory.push(words.clone());
        Ok(NullMemory { words, iova: rings.memory.len() as u64 * STRIDE })
    }

    fn map(&self, region: &DmaRegion) -> Result<Iova, Error> {
        Ok(Iova::new(region.base().raw()))
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn interrupt(&self, _vector: u16) -> Result<(), Error> {
        Ok(())
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.begun.elapsed().as_nanos()).unwrap())
    }

    fn pause(&self, _span: Duration) {
        std::hint::spin_loop();
    }

    fn stop(&self) -> bool {
        true
    }
}
