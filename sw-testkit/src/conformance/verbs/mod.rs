//! The suite for the seam of RDMA verbs: NICs, the kernel's software ones, the emulation, models.

mod cases;
mod faults;
mod rig;
mod waking;

use std::{sync::Arc, time::Duration};

use sw_engine::seam::verbs::Device;

use super::{Case, CaseResult, End, Report};

/// Makes what the cases need. What it cannot make it refuses with [`End::Skip`] and the reason.
pub trait Bed {
    /// Printed in the report: the fabric and its setting.
    fn name(&self) -> String;

    /// A device that reaches itself.
    ///
    /// # Errors
    /// [`End::Skip`] where the machine has none.
    fn device(&mut self) -> Result<Arc<dyn Device>, End>;

    /// Where one of its ends listens; port 0 for a free one.
    fn address(&self) -> String;

    /// Two pages of memory behind a descriptor that the device registers in place of a dma-buf, for a device that says that it can.
    ///
    /// # Errors
    /// [`End::Skip`] where the machine has none.
    fn dma_buf(&mut self) -> Result<Box<dyn Behind>, End> {
        Err(End::Skip("nobody here has a dma-buf".to_owned()))
    }

    /// Time, from any start.
    fn now(&self) -> Duration;

    /// Called between polls that gave nothing: a model moves its clock here, others yield.
    fn idle(&mut self);
}

/// Memory behind a descriptor.
pub trait Behind {
    /// The descriptor's number.
    fn fd(&self) -> i32;

    /// Its bytes, as whoever else has it sees them.
    fn bytes(&self) -> Vec<u8>;
}

/// A case of this suite.
pub type Run = fn(&mut dyn Bed) -> CaseResult;

/// The cases, in the order they run.
pub const CASES: &[Case<Run>] = &[
    Case { name: "facts_are_sane", run: cases::facts_are_sane },
    Case { name: "private_data_goes_both_ways", run: cases::private_data },
    Case { name: "a_refusal_carries_private_data", run: cases::refusal },
    Case { name: "nobody_listens_is_told", run: cases::nobody_listens },
    Case { name: "a_queue_pair_is_connected_once", run: cases::connected_once },
    Case { name: "messages_of_any_length_arrive_whole", run: cases::messages },
    Case { name: "writes_are_visible_when_the_send_behind_them_is_received", run: cases::write_then_send },
    Case { name: "reads_bring_the_bytes", run: cases::reads },
    Case { name: "completions_come_in_the_order_of_the_posts", run: cases::order },
    Case { name: "a_full_queue_refuses_until_completions_are_taken", run: cases::full_queue },
    Case { name: "a_wake_is_not_lost", run: waking::wake },
    Case { name: "a_completion_that_races_with_the_arm_is_not_missed", run: waking::race },
    Case { name: "a_completion_queue_without_room_makes_no_queue_pair", run: cases::no_room },
    Case { name: "registrations_out_of_range_are_refused", run: cases::registrations },
    Case { name: "a_dma_buf_that_cannot_be_registered_is_refused_as_such", run: cases::dma_buf },
    Case { name: "bytes_land_in_a_dma_buf_and_nowhere_beside", run: cases::dma_buf_lands },
    Case { name: "nothing_is_sent_before_it_is_connected", run: cases::not_connected },
    Case { name: "a_write_past_the_window_lands_nowhere_and_ends_the_connection", run: faults::past_the_window },
    Case { name: "access_that_was_not_given_is_refused", run: faults::access },
    Case { name: "a_key_of_another_domain_opens_nothing", run: faults::other_domain },
    Case { name: "a_local_key_opens_nothing_for_the_peer", run: faults::local_key },
    Case { name: "a_revoked_key_opens_nothing", run: faults::revoked },
    Case { name: "a_bound_registration_ends_with_its_memory", run: faults::bound },
    Case { name: "a_send_can_invalidate_a_key_of_the_peers", run: faults::invalidate },
    Case { name: "a_key_is_not_invalidated_twice", run: faults::invalidate_twice },
    Case { name: "a_message_longer_than_its_receive_is_refused", run: faults::too_long },
    Case { name: "a_receive_needs_memory_that_may_be_written", run: faults::local_protection },
    Case { name: "a_request_needs_memory_that_is_registered", run: faults::stale_local_key },
    Case { name: "a_send_without_a_receive_ends_in_time", run: faults::no_receive },
    Case { name: "an_error_flushes_everything_once_and_in_order", run: faults::flush },
    Case { name: "the_peer_hears_of_the_end", run: faults::peer_ends },
    Case { name: "posts_to_a_queue_pair_in_error_are_flushed", run: faults::post_in_error },
    Case { name: "a_queue_pair_that_is_gone_completes_nothing", run: faults::gone },
    Case { name: "nothing_lands_behind_the_end", run: faults::nothing_behind_the_end },
    Case { name: "nothing_lands_behind_a_deregistration", run: faults::nothing_behind_deregistration },
];

/// Runs all cases on one bed.
pub fn run(bed: &mut dyn Bed) -> Report {
    let name = bed.name();
    Report::of("verbs", name, CASES, |run| run(bed))
}
