//! `cp`: an object copied as a whole, verified, and put in place by rename.
//!
//! ```text
//!   source ─► reads (half the depth) ─► writes (half the depth) ─► record (with --resume) ─► read back ─► commit
//! ```
//!
//! A file's name leads to the old file or to the whole new one, never to half of it. A namespace, or a part of an object, is
//! written in place: an interrupted copy leaves it half written, and says so. Memory is bounded by the pipeline's depth times
//! its piece.

use std::{collections::VecDeque, fmt, ops::Range, path::Path};

use serde::Serialize;
use straightway::{
    Destination, Engine, EntryKind, ErrorKind, Landing, Memory, NewObject, Object, Pending, Policy, ResumableObject,
    RouteMatch, Uri,
};

use crate::{
    args::Cp,
    fail::{Exit, Fail},
    out::{Out, Progress},
    pipeline::{self, CHECKSUM, Cuts, Spare, Sum},
    route::{Way, Ways},
    session, signals,
    size::{self, Bytes, Rate},
};

/// With `--resume`, what is done is made durable and recorded each time so many bytes more are: about as much as is
/// done again after an interruption.
const RECORD_BYTES: u64 = 256 << 20;

/// What was copied.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    src: String,
    dst: String,
    bytes: u64,
    /// Bytes that an earlier, interrupted copy had done.
    resumed_from: u64,
    verified: bool,
    crc64_nvme: Option<String>,
    seconds: f64,
    bytes_per_s: f64,
    read_routes: Vec<Way>,
    write_routes: Vec<Way>,
    verify_routes: Vec<Way>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {}: {} in {:.3} s, {}",
            self.src,
            self.dst,
            Bytes(self.bytes),
            self.seconds,
            Rate(self.bytes_per_s)
        )?;
        if self.resumed_from > 0 {
            write!(f, ", resumed from {}", Bytes(self.resumed_from))?;
        }
        for (what, ways) in
            [("read", &self.read_routes), ("write", &self.write_routes), ("verify", &self.verify_routes)]
        {
            for way in ways {
                write!(f, "\n  {what:<7} {way}")?;
            }
        }
        match (&self.crc64_nvme, self.verified) {
            (Some(sum), true) => write!(f, "\n  verified, crc64-nvme {sum}"),
            _ => write!(f, "\n  not verified, as asked"),
        }
    }
}

/// A destination in the making.
enum Target {
    /// Gone if it is not committed.
    Fresh(NewObject),
    /// The same of a store that shows nothing of an object before it is whole: it is verified when it is in place.
    Whole(NewObject),
    /// Kept for the next attempt if it is not committed.
    Resumable(ResumableObject),
    /// Bytes that are there already and are overwritten.
    InPlace(Object),
}

impl Target {
    fn object(&self) -> &Object {
        match self {
            Self::Fresh(target) | Self::Whole(target) => target.object(),
            Self::Resumable(target) => target.object(),
            Self::InPlace(object) => object,
        }
    }

    fn done(&self) -> u64 {
        match self {
            Self::Fresh(_) | Self::Whole(_) | Self::InPlace(_) => 0,
            Self::Resumable(target) => target.done(),
        }
    }

    fn commit(self) -> Result<(), Fail> {
        match self {
            Self::Fresh(target) | Self::Whole(target) => target.commit()?,
            Self::Resumable(target) => target.commit()?,
            Self::InPlace(_) => {}
        }
        Ok(())
    }

    /// A failure of the copy, with what became of the destination.
    fn told(&self, fail: Fail) -> Fail {
        match self {
            Self::Fresh(_) | Self::Whole(_) | Self::Resumable(_) => fail,
            Self::InPlace(_) => fail.and("the destination is written in place and may hold a part of the copy"),
        }
    }
}

/// Runs it.
///
/// # Errors
/// Those of opening, creating, reading, writing; a verification that failed; an interrupt. The message says what became of a
/// destination that is written in place; any other is untouched then.
pub fn run(args: &Cp, out: &mut Out) -> Result<(), Fail> {
    let report = session::with_engine(&args.engine, |engine| {
        let clock = session::Stopwatch::start();
        let source = engine.open(&args.src)?;
        let dst = destination(engine, args)?;
        refuse_itself(engine, args, &dst)?;
        let mut target = create(engine, args, &dst, &source)?;
        let mut copy =
            Copy { engine, source: &source, args, ways: [Ways::default(), Ways::default(), Ways::default()] };
        let resumed = copy.trusted_prefix(&mut target, out)?;
        let progress = out.progress(source.len(), "copy");
        progress.add(resumed);
        let moved = copy.moved(&mut target, resumed, &progress);
        drop(progress);
        let sum = moved.map_err(|fail| target.told(fail))?;
        let crc = copy.placed(target, &dst, (resumed, sum), out)?;
        let seconds = clock.seconds();
        let [read, write, verify] = copy.ways;
        Ok(Report {
            schema: "straightway.cp/1",
            src: args.src.to_string(),
            dst: dst.to_string(),
            bytes: source.len(),
            resumed_from: resumed,
            verified: crc.is_some(),
            crc64_nvme: crc.map(|crc| format!("{crc:016x}")),
            seconds,
            bytes_per_s: size::rate(source.len() - resumed, seconds),
            read_routes: read.report(),
            write_routes: write.report(),
            verify_routes: verify.report(),
        })
    })?;
    out.report(&report)
}

/// The destination; in a directory, the source's own name.
fn destination(engine: &Engine, args: &Cp) -> Result<Uri, Fail> {
    if let Uri::Remote(dst) = &args.dst
        && (dst.key.is_empty() || dst.key.ends_with('/'))
    {
        let name = args.src.file_name().ok_or_else(|| {
            Fail::usage(format!("{dst} is a prefix and the source has no file name"), "name the destination object")
        })?;
        return Ok(args.dst.join(name)?);
    }
    let Uri::File(dst) = &args.dst else { return Ok(args.dst.clone()) };
    let is_directory = engine.stat(&args.dst).is_ok_and(|entry| entry.kind == EntryKind::Directory);
    if !is_directory {
        return Ok(args.dst.clone());
    }
    let name = args.src.file_name().ok_or_else(|| {
        Fail::usage(format!("{dst} is a directory and the source has no file name"), "name the destination file")
    })?;
    let joined = Path::new(dst).join(name);
    let text =
        joined.to_str().ok_or_else(|| Fail::usage(format!("{dst} is not UTF-8"), "name the destination file"))?;
    Ok(Uri::File(text.to_owned()))
}

/// A copy onto itself would lose the only copy if it were not atomic; it is useless in any case.
fn refuse_itself(engine: &Engine, args: &Cp, dst: &Uri) -> Result<(), Fail> {
    let (Uri::File(_), Uri::File(_)) = (&args.src, dst) else { return Ok(()) };
    let source = engine.stat(&args.src)?;
    match engine.stat(dst) {
        Ok(target) if target.version.identity == source.version.identity => {
            Err(Fail::usage(format!("{} and {dst} are the same object", args.src), "name another destination"))
        }
        _ => Ok(()),
    }
}

fn create(engine: &Engine, args: &Cp, dst: &Uri, source: &Object) -> Result<Target, Fail> {
    if matches!(dst, Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Part { .. }) {
        return in_place(engine, args, dst, source);
    }
    if matches!(dst, Uri::Remote(_)) {
        if args.resume {
            return Err(Fail::usage(
                format!("{dst} is written as a whole, which cannot be resumed"),
                "copy it again from the start, without --resume",
            ));
        }
        return Ok(Target::Whole(engine.create(dst, source.len())?));
    }
    if args.resume {
        let version = source.version();
        let words = [version.identity.0.to_le_bytes(), version.identity.1.to_le_bytes()].concat();
        let key = CHECKSUM.of(&[&words[..], &version.stamp.to_le_bytes()[..]].concat());
        Ok(Target::Resumable(engine.create_resumable(dst, source.len(), key)?))
    } else {
        Ok(Target::Fresh(engine.create(dst, source.len())?))
    }
}

/// A destination that exists and is overwritten: it must be large enough, and an interrupted copy starts anew.
fn in_place(engine: &Engine, args: &Cp, dst: &Uri, source: &Object) -> Result<Target, Fail> {
    if args.resume {
        return Err(Fail::usage(
            format!("{dst} is written in place, which cannot be resumed"),
            "copy it again from the start, without --resume",
        ));
    }
    let object = engine.open_for_update(dst)?;
    let unit = block_of(&object);
    let (_, offset, _) = dst.whole();
    if !matches!(dst, Uri::Part { .. }) {
        // A shell cuts an address without quotes at its `&`, and what is left names the whole namespace.
        return Err(Fail::usage(
            format!("{dst} names no place to write to"),
            format!(
                "write '{dst}{}offset=0' in quotes for its start",
                if dst.to_string().contains('?') { '&' } else { '?' }
            ),
        ));
    }
    if identities(source).iter().any(|source| identities(&object).contains(source)) {
        return Err(Fail::usage(
            format!("{} and {dst} are of the same object", args.src),
            "copy through a third place, so that parts cannot overlap",
        ));
    }
    if source.len().next_multiple_of(unit) > object.len() {
        let blocks = if unit > 1 { format!(" in blocks of {unit}") } else { String::new() };
        return Err(Fail::new(
            Exit::NoSpace,
            ErrorKind::NoSpace.name(),
            format!("{dst} has {} bytes, the source {}{blocks}; nothing was written", object.len(), source.len()),
            "name a larger part",
        ));
    }
    if !offset.is_multiple_of(unit) {
        return Err(Fail::usage(
            format!("{dst} takes whole blocks of {unit} bytes"),
            format!("use an offset that is a multiple of {unit}"),
        ));
    }
    if !args.pipeline.piece.is_multiple_of(unit) {
        return Err(Fail::usage(
            format!("{dst} takes whole blocks of {unit} bytes"),
            format!("use a --piece that is a multiple of {unit}"),
        ));
    }
    Ok(Target::InPlace(object))
}

/// What tells an object, or each member of a set, from others: the whole of it, if it is a part.
fn identities(object: &Object) -> Vec<(u64, u64)> {
    object.as_engine_object().origins().iter().map(|origin| origin.version.identity).collect()
}

/// What writes to an object must be whole multiples of: 1, where some way takes any byte.
fn block_of(object: &Object) -> u64 {
    let inner = object.as_engine_object();
    let bytewise = inner.composed.is_some() || inner.bytewise_face().is_some();
    if bytewise { 1 } else { u64::from(inner.whole_unit()) }
}

/// One copy under way. The ways are those of reading, writing and verifying.
struct Copy<'a> {
    engine: &'a Engine,
    source: &'a Object,
    args: &'a Cp,
    ways: [Ways; 3],
}

impl Copy<'_> {
    /// Bytes of an interrupted copy that are there and right. What is recorded is believed only after a comparison; if it
    /// fails, everything is copied again.
    fn trusted_prefix(&mut self, target: &mut Target, out: &Out) -> Result<u64, Fail> {
        let done = target.done();
        if done == 0 || self.args.no_verify {
            return Ok(done);
        }
        let progress = out.progress(done * 2, "check what is there");
        let there = self.sum_of(target.object(), 0..done, &progress)?;
        let here = self.sum_of(self.source, 0..done, &progress)?;
        if there == here {
            return Ok(done);
        }
        if let Target::Resumable(resumable) = target {
            resumable.record(0)?;
        }
        Ok(0)
    }

    /// Everything between opening and verifying; the checksum of what was copied.
    fn moved(&mut self, target: &mut Target, from: u64, progress: &Progress) -> Result<Sum, Fail> {
        let sum = self.bytes(target, from, progress)?;
        self.source.check_unchanged()?;
        self.compare_with_stored(from, sum)?;
        self.engine.flush(target.object()).wait().ok()?;
        Ok(sum)
    }

    /// Compares what was read with the checksum that the source's store keeps, where all of it was read.
    fn compare_with_stored(&self, from: u64, sum: Sum) -> Result<(), Fail> {
        match self.source.stored_checksum() {
            Some((algorithm, stored)) if algorithm == CHECKSUM && from == 0 && stored != sum.value() => {
                // Of what a cache has, any may be it.
                self.source.forget_kept();
                Err(Fail::verification(
                    format!(
                        "{} was read with crc64-nvme {:016x}, its store has {stored:016x} of it; nothing was put in place",
                        self.source.name(),
                        sum.value()
                    ),
                    "copy again; if it stays so the store's copy is damaged",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Verifies and puts in place, or the reverse where nothing can be read before; the checksum of the whole, if it was verified.
    fn placed(&mut self, target: Target, dst: &Uri, copied: (u64, Sum), out: &Out) -> Result<Option<u64>, Fail> {
        let is_verified = !self.args.no_verify;
        if matches!(target, Target::Whole(_)) {
            signals::requested()?;
            target.commit()?;
            let verified = is_verified.then(|| self.engine.open(dst).map_err(Fail::from));
            let verified = verified.transpose()?.map(|written| self.verify(&written, copied, "it is in place", out));
            return verified.transpose();
        }
        let verified = is_verified.then(|| self.verify(target.object(), copied, "nothing was put in place", out));
        let crc = verified.transpose().map_err(|fail| target.told(fail))?;
        signals::requested().map_err(|fail| target.told(fail))?;
        target.commit()?;
        Ok(crc)
    }

    /// Copies from `from` to the end; the checksum of those bytes.
    fn bytes(&mut self, target: &mut Target, from: u64, progress: &Progress) -> Result<Sum, Fail> {
        let half = usize::from(self.args.pipeline.depth / 2).max(1);
        let mut cuts = Cuts::new(from..self.source.len(), self.args.pipeline.piece);
        let mut spare = Spare::new(self.engine);
        let mut reads: VecDeque<((u64, u64), Pending)> = VecDeque::with_capacity(half);
        let mut writes: VecDeque<((u64, u64), Pending)> = VecDeque::with_capacity(half);
        let (mut sum, mut recorded, mut written) = (Sum::default(), from, from);
        loop {
            signals::requested().inspect_err(|_| keep(target, &mut writes, written))?;
            while reads.len() < half {
                let Some((offset, len)) = cuts.next() else { break };
                let memory = spare.take(offset, len)?;
                let request = self.engine.read(self.source, offset, memory).policy(self.args.policy).checksum(CHECKSUM);
                reads.push_back(((offset, len), request.start()));
            }
            if writes.len() == half || reads.is_empty() {
                let Some((at, pending)) = writes.pop_front() else { return Ok(sum) };
                let piece = pipeline::finish(at, pending, &mut self.ways[1])?;
                spare.put(piece.memory);
                progress.add(piece.len);
                // Writes are waited for in order, so everything before this end is written.
                written = piece.offset + piece.len;
                recorded = record(target, recorded, written)?;
            }
            if let Some((at, pending)) = reads.pop_front() {
                let piece = pipeline::finish(at, pending, &mut self.ways[0])?;
                sum.add(piece.checksum, piece.len);
                let memory = self.whole_blocks(target, piece)?;
                let request = self.engine.write(target.object(), at.0, memory).policy(self.args.policy);
                writes.push_back((at, request.start()));
            }
        }
    }

    /// The last piece of a copy onto an object that takes whole blocks only gets the rest of its block from there.
    fn whole_blocks(&mut self, target: &Target, piece: pipeline::Piece) -> Result<Memory, Fail> {
        let block = match target {
            Target::InPlace(object) => block_of(object),
            Target::Fresh(_) | Target::Whole(_) | Target::Resumable(_) => 1,
        };
        let len = piece.len.next_multiple_of(block);
        if len == piece.len {
            return Ok(piece.memory);
        }
        let last = self.engine.allocate(Destination::Host, block, piece.offset + len - block)?;
        let read = self.engine.read(target.object(), piece.offset + len - block, last).start();
        let last = pipeline::finish((piece.offset + len - block, block), read, &mut self.ways[2])?;
        let last = pipeline::buffer_of(last.memory)?;
        let head = pipeline::buffer_of(piece.memory)?;
        let mut whole = pipeline::buffer_of(self.engine.allocate(Destination::Host, len, piece.offset)?)?;
        let (old, new) = (whole.len().0 - block, head.as_slice().len());
        whole.as_mut_slice()[usize::try_from(old).unwrap_or(0)..].copy_from_slice(last.as_slice());
        whole.as_mut_slice()[..new].copy_from_slice(head.as_slice());
        Ok(whole.into())
    }

    /// Reads the copied part of the destination back from its device and compares it with what was read from the source.
    /// Gives the checksum of the whole. `became`: what is told of the destination if they differ.
    fn verify(&mut self, target: &Object, (from, copied): (u64, Sum), became: &str, out: &Out) -> Result<u64, Fail> {
        let len = self.source.len();
        let progress = out.progress(len, "verify");
        let before = self.sum_of(target, 0..from, &progress)?;
        let back = self.sum_of(target, from..len, &progress)?;
        if back.value() != copied.value() {
            return Err(Fail::verification(
                format!(
                    "{} reads back with crc64-nvme {:016x}, the source had {:016x}; {became}",
                    target.name(),
                    back.value(),
                    copied.value()
                ),
                "check the device and its memory, then copy again",
            ));
        }
        let mut whole = before;
        whole.add(back.value(), len - from);
        Ok(whole.value())
    }

    /// The checksum of a range, read past the page cache where that is possible.
    fn sum_of(&mut self, object: &Object, range: Range<u64>, progress: &Progress) -> Result<Sum, Fail> {
        let device = Policy::Prefer(RouteMatch { transport: None, landing: Some(Landing::Dma) });
        let mut sum = Sum::default();
        let ways = pipeline::read_in_order((self.engine, object), range, self.args.pipeline, device, |piece| {
            sum.add(piece.checksum, piece.len);
            progress.add(piece.len);
            Ok(piece.memory)
        })?;
        self.ways[2].join(ways);
        Ok(sum)
    }
}

/// On an interrupt: what is under way is waited for and recorded, so that the next attempt need not do it again.
/// A failure to record only costs that.
fn keep(target: &mut Target, writes: &mut VecDeque<((u64, u64), Pending)>, written: u64) {
    let Target::Resumable(target) = target else { return };
    let mut end = written;
    while let Some(((offset, len), pending)) = writes.pop_front() {
        if pending.wait().result.is_err() {
            break;
        }
        end = offset + len;
    }
    let _ = target.record(end);
}

/// Records with `--resume` that bytes up to `end` are written, each time enough are. Gives the end of the record.
fn record(target: &mut Target, recorded: u64, end: u64) -> Result<u64, Fail> {
    match target {
        Target::Resumable(target) if end - recorded >= RECORD_BYTES => {
            target.record(end)?;
            Ok(end)
        }
        _ => Ok(recorded),
    }
}
