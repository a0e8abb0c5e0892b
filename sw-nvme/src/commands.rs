//! I/O commands one at a time, with data copied in and out: for tools and tests, and for what the engine's seam does not
//! have (compare, write zeroes, deallocate, verify, writes that last at once). Not a data path.

use core::time::Duration;
use std::sync::Arc;

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::ByteLen;

use crate::{
    bus::{Bus, QueueMemory},
    controller::{Controller, Notify, Pair, PairRequest, Reset},
    namespace::Namespace,
    prp::Segment,
    queue::{Ended, NotStaged},
    status::Status,
    wire::{
        BlockCount, Command, DataPointer, IoFlags, LbaRange,
        command::{DSM_RANGE_BYTES, DSM_RANGES_MAX, DatasetAttribute, dsm_range},
        identify::MetadataVerdict,
    },
};

/// Bytes of data of one command at most.
pub const DATA_BYTES_MAX: usize = 128 << 10;
/// What stands in the buffer before the controller writes it.
const UNWRITTEN: u8 = 0xA5;
/// How long a queue pair's deletion and a reset may take.
const ENDING: Duration = Duration::from_secs(10);

/// Data of a command.
#[derive(Debug)]
pub enum Payload<'a> {
    /// None.
    None,
    /// The controller gives it.
    In(&'a mut [u8]),
    /// The controller takes it.
    Out(&'a [u8]),
}

impl Payload<'_> {
    fn len(&self) -> usize {
        match self {
            Payload::None => 0,
            Payload::In(bytes) => bytes.len(),
            Payload::Out(bytes) => bytes.len(),
        }
    }
}

/// A range of blocks of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first.
    pub slba: u64,
    /// How many, 1 to 65,536.
    pub count: u32,
}

/// How long a write may stay in a volatile cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Until the next flush.
    UntilFlushed,
    /// Not at all: it is on the medium when it completes (FUA).
    AtOnce,
}

/// A queue pair of its own, one command at a time.
///
/// A status other than success is an answer, not an error. *Blocking*: each command, at most `timeout`; a command without an
/// answer ends in a reset of the controller, so that its buffer is free.
pub struct Commands<B: Bus> {
    controller: Arc<Controller<B>>,
    /// `None` once the controller let go of it, or it was leaked.
    pair: Option<Pair<B>>,
    data: Option<B::Memory>,
    timeout: Duration,
}

impl<B: Bus> Commands<B> {
    /// Makes a queue pair on `controller`.
    ///
    /// # Errors
    /// What [`Controller::create_pair`] and the bus say.
    pub fn new(controller: Arc<Controller<B>>, timeout: Duration) -> Result<Self, Error> {
        let data_bytes_max = u32::try_from(DATA_BYTES_MAX).unwrap_or(0);
        let data = controller.bus().allocate(DATA_BYTES_MAX)?;
        let pair = controller.create_pair(&PairRequest { depth: 1, data_bytes_max, notify: Notify::Polled })?;
        Ok(Self { controller, pair: Some(pair), data: Some(data), timeout })
    }

    /// Reads blocks; `to` has their length in bytes.
    ///
    /// # Errors
    /// As [`Commands::run`].
    pub fn read(&mut self, of: &Namespace, slba: u64, to: &mut [u8]) -> Result<Status, Error> {
        let range = self.range_of(of, slba, to.len())?;
        let flags = of.io_flags().0;
        self.run(Payload::In(to), |data| Command::read(range, data, flags))
    }

    /// Writes blocks.
    ///
    /// # Errors
    /// As [`Commands::run`].
    pub fn write(&mut self, of: &Namespace, slba: u64, from: &[u8], lasting: Durability) -> Result<Status, Error> {
        let range = self.range_of(of, slba, from.len())?;
        let fua = if lasting == Durability::AtOnce { IoFlags::FUA } else { IoFlags::NONE };
        let flags = of.io_flags().1 | fua;
        self.run(Payload::Out(from), |data| Command::write(range, data, flags))
    }

    /// Compares blocks with `with`: [`Status::COMPARE_FAILURE`] where they differ.
    ///
    /// # Errors
    /// As [`Commands::run`]; `Unsupported` for a namespace with protection information, which the host would have to give.
    pub fn compare(&mut self, of: &Namespace, slba: u64, with: &[u8]) -> Result<Status, Error> {
        if of.metadata != MetadataVerdict::None {
            return Err(self.error(ErrorKind::Unsupported, "compare of a namespace with protection information"));
        }
        let range = self.range_of(of, slba, with.len())?;
        self.run(Payload::Out(with), |data| Command::compare(range, data, IoFlags::NONE))
    }

    /// Sets blocks to zero.
    ///
    /// # Errors
    /// As [`Commands::run`].
    pub fn write_zeroes(&mut self, of: &Namespace, blocks: Blocks) -> Result<Status, Error> {
        let (range, flags) = (self.range(of, blocks)?, of.io_flags().1);
        self.run(Payload::None, |_| Command::write_zeroes(range, flags))
    }

    /// Lets the controller read and check blocks.
    ///
    /// # Errors
    /// As [`Commands::run`].
    pub fn verify(&mut self, of: &Namespace, blocks: Blocks) -> Result<Status, Error> {
        let range = self.range(of, blocks)?;
        let flags = match of.metadata {
            MetadataVerdict::Stripped(protection) => protection.verify,
            _ => IoFlags::NONE,
        };
        self.run(Payload::None, |_| Command::verify(range, flags))
    }

    /// Makes later reads of blocks fail, until they are written again. For tests of media errors.
    ///
    /// # Errors
    /// As [`Commands::run`].
    pub fn write_uncorrectable(&mut self, of: &Namespace, blocks: Blocks) -> Result<Status, Error> {
        let range = self.range(of, blocks)?;
        self.run(Payload::None, |_| Command::write_uncorrectable(range))
    }

    /// Gives blocks back to the controller (Dataset Management, deallocate): at most 256 ranges.
    ///
    /// # Errors
    /// As [`Commands::run`]; `TooLarge` for no or too many ranges.
    pub fn deallocate(&mut self, of: &Namespace, ranges: &[Blocks]) -> Result<Status, Error> {
        if ranges.is_empty() || ranges.len() > DSM_RANGES_MAX {
            return Err(self.error(ErrorKind::TooLarge, "1 to 256 ranges can be deallocated at once"));
        }
        let mut list = [0; DSM_RANGE_BYTES * DSM_RANGES_MAX];
        for (to, range) in list.chunks_exact_mut(DSM_RANGE_BYTES).zip(ranges) {
            to.copy_from_slice(&dsm_range(range.slba, range.count));
        }
        let (nsid, count) = (of.nsid, ranges.len());
        let bytes = list.get(..count * DSM_RANGE_BYTES).unwrap_or_default();
        // In range: checked above.
        let command = |data| {
            Command::dataset_management(nsid, count, DatasetAttribute::Deallocate, data).unwrap_or(Command::ZERO)
        };
        self.run(Payload::Out(bytes), command)
    }

    /// Makes completed writes of a namespace last.
    ///
    /// # Errors
    /// As [`Commands::run`].
    pub fn flush(&mut self, of: &Namespace) -> Result<Status, Error> {
        let nsid = of.nsid;
        self.run(Payload::None, |_| Command::flush(nsid))
    }

    /// Runs one command; `command` gets the pointer to its data.
    ///
    /// # Errors
    /// `TooLarge` for more than [`DATA_BYTES_MAX`]; `NoDevice` once the controller was reset or given up; `DeadlineExceeded`
    /// and `Protocol` with the controller reset.
    pub fn run(&mut self, data: Payload<'_>, command: impl FnOnce(DataPointer) -> Command) -> Result<Status, Error> {
        let len = data.len();
        if len > DATA_BYTES_MAX {
            return Err(self.error(ErrorKind::TooLarge, format!("{len} bytes are more than {DATA_BYTES_MAX}")));
        }
        let (Some(pair), Some(memory)) = (&mut self.pair, &self.data) else { return Err(self.void()) };
        match &data {
            Payload::None => {}
            Payload::In(bytes) => memory.write(0, &vec![UNWRITTEN; bytes.len()]),
            Payload::Out(bytes) => memory.write(0, bytes),
        }
        let segment = [Segment { iova: memory.iova(), len: ByteLen(len as u64) }];
        let pieces = if len == 0 { &[][..] } else { &segment[..] };
        match pair.queue.stage(pieces, 0, command) {
            Ok(_) => {}
            Err(NotStaged::Shape(cause)) => return Err(self.error(ErrorKind::ApiMisuse, cause.to_string())),
            Err(NotStaged::Full | NotStaged::Broken) => return Err(self.void()),
        }
        pair.queue.ring();
        let status = self.wait()?;
        if let (Payload::In(bytes), Some(memory)) = (data, &self.data) {
            memory.read(0, bytes);
        }
        Ok(status)
    }

    fn wait(&mut self) -> Result<Status, Error> {
        let bus = self.controller.bus().clone();
        let begun = bus.now();
        let mut pause = Duration::from_micros(1);
        loop {
            let Some(pair) = &mut self.pair else { return Err(self.void()) };
            let mut answer = None;
            pair.queue.poll(1, |Ended { status, .. }| answer = Some(status));
            if let Some(status) = answer {
                return Ok(status);
            }
            if pair.queue.breach().is_some() || self.controller.life().lets_go_of(pair.epoch) {
                let why =
                    pair.queue.breach().map_or("the controller was reset".to_owned(), |breach| breach.to_string());
                self.end();
                return Err(self.error(ErrorKind::Protocol, why));
            }
            if bus.now().since(begun) >= self.timeout || self.controller.is_ill(pair.epoch) {
                self.end();
                let text = format!("no answer to an I/O command in {} ms", self.timeout.as_millis());
                return Err(self.error(ErrorKind::DeadlineExceeded, text));
            }
            bus.pause(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// Lets the pair go: deleted if nothing is in flight, else by a reset; leaked if even that does not help.
    #[expect(clippy::mem_forget, reason = "a controller that could not be stopped may still write this buffer")]
    fn end(&mut self) {
        let Some(pair) = self.pair.take() else { return };
        let (qid, epoch) = (pair.queue.qid(), pair.epoch);
        if pair.queue.in_flight() == 0 && pair.queue.breach().is_none() {
            return self.controller.discard(pair.queue, epoch);
        }
        match self.controller.quiesce(epoch, ENDING) {
            Reset::Again(_) | Reset::Dead | Reset::Down => self.controller.release_pair(qid),
            Reset::Unproven | Reset::Late => {
                core::mem::forget(self.data.take());
                pair.queue.leak();
            }
        }
    }

    fn range_of(&self, of: &Namespace, slba: u64, bytes: usize) -> Result<LbaRange, Error> {
        let block = sw_mem::index(u64::from(of.block_bytes()));
        match u32::try_from(bytes / block) {
            Ok(count) if bytes.is_multiple_of(block) => self.range(of, Blocks { slba, count }),
            _ => Err(self.error(ErrorKind::ApiMisuse, format!("{bytes} bytes are no whole blocks of {block}"))),
        }
    }

    fn range(&self, of: &Namespace, blocks: Blocks) -> Result<LbaRange, Error> {
        let nlb = BlockCount::new(blocks.count)
            .ok_or_else(|| self.error(ErrorKind::ApiMisuse, format!("{} blocks; 1 to 65536 can go", blocks.count)))?;
        Ok(LbaRange { nsid: of.nsid, slba: blocks.slba, nlb })
    }

    fn error(&self, kind: ErrorKind, text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(kind, Verb::Setup).at(self.controller.name()).detail(text)
    }

    fn void(&self) -> Error {
        self.error(ErrorKind::NoDevice, "the queue pair is void: the controller was reset or given up")
    }
}

impl<B: Bus> Drop for Commands<B> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::ControllerConfig,
        testbus::{Lie, Model, TestBus},
        wire::command::opcode,
    };

    fn open() -> (Arc<TestBus>, Commands<TestBus>, Namespace) {
        let bus = TestBus::new(Model::default());
        let controller = Controller::open(bus.clone(), ControllerConfig::default()).unwrap();
        let namespace = controller.namespaces().remove(0);
        (bus, Commands::new(controller, Duration::from_secs(1)).unwrap(), namespace)
    }

    #[test]
    fn data_goes_in_and_out_and_flags_are_set() {
        let (bus, mut commands, namespace) = open();
        let bytes: Vec<u8> = (0..8192_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert!(commands.write(&namespace, 5, &bytes, Durability::AtOnce).unwrap().is_success());
        let mut back = vec![0; 8192];
        assert!(commands.read(&namespace, 5, &mut back).unwrap().is_success());
        assert_eq!(back, bytes);
        assert!(commands.flush(&namespace).unwrap().is_success());
        let log = bus.model().io_log.clone();
        assert_eq!(log.iter().map(Command::opcode).collect::<Vec<_>>(), [opcode::WRITE, opcode::READ, opcode::FLUSH]);
        assert!(IoFlags::from_dword12(log[0].dword(12)).contains(IoFlags::FUA));
        assert!(!IoFlags::from_dword12(log[1].dword(12)).contains(IoFlags::FUA));
    }

    #[test]
    fn a_status_is_an_answer_and_misuse_is_not_sent() {
        let (bus, mut commands, namespace) = open();
        let blocks = Blocks { slba: 0, count: 8 };
        // The small model has none of these.
        for status in [
            commands.write_zeroes(&namespace, blocks),
            commands.verify(&namespace, blocks),
            commands.write_uncorrectable(&namespace, blocks),
            commands.compare(&namespace, 0, &[0; 512]),
            commands.deallocate(&namespace, &[blocks, blocks]),
        ] {
            assert_eq!(status.unwrap(), Status::INVALID_OPCODE.with_dnr());
        }
        let log: Vec<(u8, u32)> =
            bus.model().io_log.iter().map(|sent| (sent.opcode(), sent.dword(12) & 0xFFFF)).collect();
        use opcode::{COMPARE, DATASET_MANAGEMENT, VERIFY, WRITE_UNCORRECTABLE, WRITE_ZEROES};
        let want = [(WRITE_ZEROES, 7), (VERIFY, 7), (WRITE_UNCORRECTABLE, 7), (COMPARE, 0), (DATASET_MANAGEMENT, 0)];
        assert_eq!(log, want, "NLB counts from zero");
        // And any other word of the controller, as it came: with or without DNR, of the medium or of the command.
        for status in [
            Status::UNRECOVERED_READ.with_dnr(),
            Status::UNRECOVERED_READ,
            Status::LBA_OUT_OF_RANGE.with_dnr(),
            Status::COMPARE_FAILURE,
        ] {
            bus.model().statuses.push_back(status);
            assert_eq!(commands.read(&namespace, 0, &mut [0; 512]).unwrap(), status);
        }
        let sent = bus.model().io_log.len();
        assert_eq!(commands.read(&namespace, 0, &mut [0; 100]).unwrap_err().kind(), ErrorKind::ApiMisuse);
        assert_eq!(commands.deallocate(&namespace, &[]).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(commands.read(&namespace, 0, &mut vec![0; 1 << 20]).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(bus.model().io_log.len(), sent);
    }

    #[test]
    fn a_command_without_an_answer_ends_in_a_reset() {
        for lie in [None, Some(Lie::UnknownCid)] {
            let (bus, mut commands, namespace) = open();
            bus.model().lie = lie;
            bus.model().lose = u32::from(lie.is_none());
            let kind = commands.flush(&namespace).unwrap_err().kind();
            assert_eq!(kind, if lie.is_some() { ErrorKind::Protocol } else { ErrorKind::DeadlineExceeded });
            assert_eq!(commands.controller.counters().resets, 1);
            assert_eq!(commands.flush(&namespace).unwrap_err().kind(), ErrorKind::NoDevice);
            assert_eq!(commands.controller.queue_pairs_in_use(), 0);
        }
    }

    #[test]
    fn a_dropped_one_gives_its_queue_back() {
        let (_, commands, _) = open();
        let controller = commands.controller.clone();
        drop(commands);
        assert_eq!((controller.queue_pairs_in_use(), controller.counters().resets), (0, 0));
    }
}
