//! Copy engines that break the contract fail the case of the suite that is about it: the suite can tell.

#![forbid(unsafe_code)]

mod beds;

use std::time::Duration;

use sw_engine::{
    ErrorKind, Fault, Token,
    seam::{CopyDirection, CopyDone, CopyEngine, CopyEngineCaps, CopyJob, Fence, SlabPin},
};
use sw_mem::{ByteLen, DmaRegion};
use sw_sim::CopierParams;
use sw_testkit::conformance::{
    End,
    copy_engine::{self, Bed},
};

use beds::{DEVICE, DeviceBed};

/// What is wrong with a copy engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// It says another depth each time.
    ChangesItsCaps,
    /// The last byte is not copied.
    CopiesTooLittle,
    /// The byte behind the end is overwritten in host memory.
    CopiesTooMuch,
    /// Bytes land one byte behind their place on the device.
    LandsBeside,
    /// Bytes of one copy in a hundred do not arrive; it ends well all the same.
    LosesBytes,
    /// An end is told twice.
    EndsTwice,
    /// An end is not told.
    LosesAnEnd,
    /// More ends than the output has room for.
    GrowsTheOutput,
    /// An end of a copy that nobody asked for.
    EndsWhatWasNotBegun,
    /// The count of a poll is not that of its output.
    Miscounts,
    /// A second region is refused.
    PinsOnce,
    /// It is never quiet.
    NeverQuiet,
    /// A fence says `Quiet` and stops nothing.
    QuietIsALie,
}

struct Broken {
    inner: Box<dyn CopyEngine>,
    wrong: Wrong,
    asked: std::cell::Cell<u32>,
    submitted: u64,
    pins: u32,
    told: u64,
}

impl CopyEngine for Broken {
    fn caps(&self) -> CopyEngineCaps {
        let mut caps = self.inner.caps();
        if self.wrong == Wrong::ChangesItsCaps {
            self.asked.set(self.asked.get() + 1);
            caps.queue_depth += self.asked.get();
        }
        caps
    }

    fn pin(&mut self, slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, Fault> {
        self.pins += 1;
        if self.wrong == Wrong::PinsOnce && self.pins > 1 {
            return Err(Fault::new(ErrorKind::ResourceLimit, 0));
        }
        self.inner.pin(slabs)
    }

    fn submit(&mut self, job: &CopyJob) -> Result<(), Fault> {
        let mut job = *job;
        self.submitted += 1;
        match (self.wrong, job.direction) {
            (Wrong::CopiesTooLittle, _) if job.len > 1 => job.len -= 1,
            (Wrong::CopiesTooMuch, CopyDirection::FromDevice) => job.len += 1,
            (Wrong::LandsBeside, CopyDirection::ToDevice) => {
                job.device = job.device.checked_add(ByteLen(1)).unwrap_or(job.device);
            }
            (Wrong::LosesBytes, _) if self.submitted.is_multiple_of(100) => job.len = 1,
            _ => {}
        }
        self.inner.submit(&job)
    }

    fn ring(&mut self) -> Result<(), Fault> {
        self.inner.ring()
    }

    fn poll(&mut self, out: &mut Vec<CopyDone>) -> Result<usize, Fault> {
        let before = out.len();
        if self.wrong == Wrong::GrowsTheOutput {
            let mut all = Vec::with_capacity(64);
            self.inner.poll(&mut all)?;
            out.extend(all);
            return Ok(out.len() - before);
        }
        self.inner.poll(out)?;
        if let Some(last) = out.get(before..).and_then(|new| new.last().copied()) {
            self.told += 1;
            match self.wrong {
                Wrong::EndsTwice if out.len() < out.capacity() => out.push(last),
                Wrong::LosesAnEnd if self.told == 2 => drop(out.pop()),
                _ => {}
            }
        } else if self.wrong == Wrong::EndsWhatWasNotBegun {
            out.push(CopyDone { token: Token::from_raw(7), result: Ok(()) });
        }
        Ok(out.len() - before + usize::from(self.wrong == Wrong::Miscounts))
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<CopyDone>) -> Fence {
        match self.wrong {
            Wrong::NeverQuiet => Fence::Busy(1),
            Wrong::QuietIsALie => Fence::Quiet,
            _ => self.inner.fence(timeout, out),
        }
    }
}

struct BrokenBed {
    bed: DeviceBed,
    wrong: Wrong,
}

impl Bed for BrokenBed {
    fn name(&self) -> String {
        format!("{:?}", self.wrong)
    }

    fn engine(&mut self) -> Result<Box<dyn CopyEngine>, End> {
        let asked = std::cell::Cell::new(0);
        Ok(Box::new(Broken { inner: self.bed.engine()?, wrong: self.wrong, asked, submitted: 0, pins: 0, told: 0 }))
    }

    fn device_memory(&mut self, len: ByteLen) -> Result<DmaRegion, End> {
        self.bed.device_memory(len)
    }

    fn memory(&mut self, region: &DmaRegion) {
        self.bed.memory(region);
    }

    fn now(&self) -> Duration {
        self.bed.now()
    }

    fn idle(&mut self) {
        self.bed.idle();
    }
}

fn failed(wrong: Wrong) -> Vec<&'static str> {
    let report = copy_engine::run(&mut BrokenBed { bed: DeviceBed::new(CopierParams::calm(DEVICE), 1_000_000), wrong });
    println!("{report}");
    report.failed().map(|row| row.case).collect()
}

#[test]
fn each_broken_engine_fails_the_case_that_is_about_it() {
    let expected = [
        (Wrong::ChangesItsCaps, "caps_are_sane_and_constant"),
        (Wrong::CopiesTooLittle, "bytes_reach_device_memory_and_come_back"),
        (Wrong::CopiesTooLittle, "any_length_and_offset"),
        (Wrong::CopiesTooMuch, "bytes_beside_a_copy_are_left_alone"),
        (Wrong::LandsBeside, "bytes_reach_device_memory_and_come_back"),
        (Wrong::LosesBytes, "many_copies_end_exactly_once"),
        (Wrong::EndsTwice, "many_copies_end_exactly_once"),
        (Wrong::LosesAnEnd, "many_copies_end_exactly_once"),
        (Wrong::GrowsTheOutput, "poll_keeps_to_the_capacity_of_its_output"),
        (Wrong::EndsWhatWasNotBegun, "a_poll_without_work_gives_nothing"),
        (Wrong::Miscounts, "a_poll_without_work_gives_nothing"),
        (Wrong::PinsOnce, "two_pinned_regions_are_both_usable"),
        (Wrong::NeverQuiet, "a_fence_with_nothing_in_flight_is_quiet"),
        (Wrong::NeverQuiet, "a_fence_ends_what_is_in_flight_and_then_is_quiet"),
        (Wrong::QuietIsALie, "a_fence_ends_what_is_in_flight_and_then_is_quiet"),
    ];
    for (wrong, case) in expected {
        let failed = failed(wrong);
        assert!(failed.contains(&case), "{wrong:?} passes {case}; it fails {failed:?}");
    }
}

#[test]
fn the_wrapper_without_a_fault_fails_nothing() {
    assert_eq!(failed(Wrong::Nothing), Vec::<&str>::new());
}
