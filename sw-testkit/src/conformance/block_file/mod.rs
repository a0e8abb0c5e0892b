//! The suite for [`Transport`]: files, block devices and their models.
//!
//! A bed makes objects with a given content and shows their content past the transport; the suite drives the transport
//! as the engine does, within the limits that it states, and looks at every byte: those asked for, those beside them in
//! memory and those beside them in the object.

mod arena;
mod bounds;
mod data;
mod drive;
mod ends;

use std::{sync::Arc, time::Duration};

use sw_engine::{Face, Object, seam::Transport};
use sw_mem::DmaRegion;

use super::{Case, CaseResult, End, Report, fail};

/// An object to drive I/Os at, and the face of it that belongs to the transport under test.
#[derive(Clone, Debug)]
pub struct Target {
    /// The object; the suite keeps it alive while I/Os on it are in flight.
    pub object: Arc<Object>,
    /// Index into [`Object::faces`].
    pub face: usize,
}

impl Target {
    pub(crate) fn face(&self) -> Result<Face, End> {
        let face = self.object.faces.get(self.face).copied();
        face.map_or_else(|| fail(format!("the bed names face {} of {:?}", self.face, self.object)), Ok)
    }
}

/// Makes what the cases need. What it cannot make it refuses with [`End::Skip`] and the reason.
pub trait Bed {
    /// Printed in the report: the backend and its setting.
    fn name(&self) -> String;

    /// A fresh transport with nothing in flight. It is dropped at the end of a case.
    ///
    /// # Errors
    /// [`End::Skip`] where the machine has none.
    fn transport(&mut self) -> Result<Box<dyn Transport>, End>;

    /// An object with this content, open for reading and writing in place, reachable by the transports of this bed.
    ///
    /// # Errors
    /// [`End::Skip`] if it cannot have such a length.
    fn object(&mut self, content: &[u8]) -> Result<Target, End>;

    /// The content as something other than the transport sees it (the file system, the model's medium).
    ///
    /// # Errors
    /// [`End::Skip`] if nothing else can look.
    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End>;

    /// An object of at least 64 KiB whose every read fails with an error of the medium.
    ///
    /// # Errors
    /// [`End::Skip`] if the bed cannot make one.
    fn failing_object(&mut self) -> Result<Target, End>;

    /// What can be done with its objects.
    fn access(&self) -> Access {
        Access::InPlace
    }

    /// Tells about memory that the suite will use. A model needs it to reach bytes by address; others have no use for it.
    fn memory(&mut self, _region: &DmaRegion) {}

    /// Time of the clock by which the transport waits, from any start.
    fn now(&self) -> Duration;

    /// Whether that clock runs by itself, so that another thread can act during a wait.
    fn clock(&self) -> Clock;
}

/// What can be done with a bed's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// They are read, and written in place.
    InPlace,
    /// They are read.
    ReadOnly,
}

/// Who moves the bed's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// It runs by itself.
    Real,
    /// It moves only inside waits.
    Virtual,
}

/// A case of this suite.
pub type Run = fn(&mut dyn Bed) -> CaseResult;

/// The cases, in the order they run.
pub const CASES: &[Case<Run>] = &[
    Case { name: "caps_are_sane_and_constant", run: bounds::caps_are_sane_and_constant },
    Case { name: "reads_what_the_object_holds", run: data::reads_what_the_object_holds },
    Case { name: "writes_what_memory_holds_and_nothing_beside", run: data::writes_and_nothing_beside },
    Case { name: "pieces_of_memory_fill_in_object_order", run: data::pieces_fill_in_object_order },
    Case { name: "pieces_of_memory_are_written_in_object_order", run: data::pieces_write_in_object_order },
    Case { name: "the_largest_io_works", run: data::the_largest_io_works },
    Case { name: "any_offset_and_address_on_a_bytewise_face", run: data::any_offset_on_a_bytewise_face },
    Case { name: "works_with_and_without_hints", run: data::works_with_and_without_hints },
    Case { name: "memory_that_was_not_attached_is_refused", run: data::memory_not_attached_is_refused },
    Case { name: "many_ios_end_exactly_once_with_their_own_data", run: data::many_ios_end_exactly_once },
    Case { name: "writes_and_reads_mixed_keep_every_byte", run: data::mixed_keep_every_byte },
    Case { name: "a_flush_ends_with_zero_bytes", run: data::a_flush_ends_with_zero_bytes },
    Case { name: "more_than_the_queue_holds_is_full_and_then_taken", run: bounds::full_and_then_taken },
    Case { name: "poll_keeps_to_the_capacity_of_its_output", run: bounds::poll_keeps_to_capacity },
    Case { name: "a_wait_for_nothing_ends_in_time", run: bounds::a_wait_for_nothing_ends },
    Case { name: "a_wait_ends_at_a_completion", run: bounds::a_wait_ends_at_a_completion },
    Case { name: "a_wake_before_a_wait_is_not_lost", run: bounds::a_wake_before_is_not_lost },
    Case { name: "a_wake_from_another_thread_ends_a_wait", run: bounds::a_wake_from_another_thread },
    Case { name: "a_read_over_the_end_is_short_or_an_error", run: ends::a_read_over_the_end },
    Case { name: "a_cancelled_io_ends_exactly_once", run: ends::a_cancelled_io_ends_once },
    Case { name: "cancelling_what_is_not_there_is_harmless", run: ends::cancelling_nothing },
    Case { name: "an_error_of_the_medium_is_a_fault_with_a_code", run: ends::a_medium_error_is_a_fault },
    Case { name: "a_fence_with_nothing_in_flight_is_quiet", run: ends::fence_idle },
    Case { name: "a_fence_ends_what_is_in_flight_and_then_is_quiet", run: ends::fence_busy },
    Case { name: "dropping_it_with_ios_in_flight_touches_no_memory_after", run: ends::dropped_in_flight },
];

/// Runs all cases on one bed.
pub fn run(bed: &mut dyn Bed) -> Report {
    let name = bed.name();
    Report::of("block_file", name, CASES, |run| run(bed))
}
