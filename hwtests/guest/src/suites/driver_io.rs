//! What our driver moves, byte for byte: every I/O command, memory at every offset of a page, lists up to and past their
//! boundaries, namespaces of several sizes and formats, errors of the medium, and a file system that both drivers see.

use std::time::Duration;

use serde_json::json;
use sw_engine::seam::{CopyDirection, IoKind};
use sw_engine::{ErrorKind, Object};
use sw_mem::{ByteLen, DmaSpan};
use sw_nvme::bus::{Bus, Registers};
use sw_nvme::commands::{Blocks, Commands, Durability, Payload};
use sw_nvme::namespace::Namespace;
use sw_nvme::status::Status;
use sw_nvme::transport::{Completion, NvmeConfig};
use sw_nvme::wire::identify::MetadataVerdict;
use sw_nvme::wire::log::{AsyncEvent, EventKind, id};
use sw_nvme::wire::{BlockCount, Command, IoFlags, LbaRange};
use sw_vfio::{Backend, VfioFunction};

use super::vfio::{copy, peer};
use crate::block;
use crate::context::Context;
use crate::file_system;
use crate::io::{bytes, io, piece, run};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};
use crate::vfio_rig::{Lane, Rig, all, attach, data, on_each, once};

pub const SUITE: Suite = Suite {
    name: "driver-io",
    tests: &[
        Test::new("commands", "each I/O command does what the standard says, on both block sizes", commands)
            .limit_s(60),
        Test::new(
            "page-offsets",
            "memory may begin at every dword of a page, and nothing beside it is touched",
            offsets,
        )
        .limit_s(90),
        Test::new("list-boundaries", "lists of every length to one command's limit, and chains of lists", lists)
            .limit_s(120),
        Test::new("bar-offsets", "the same offsets and boundaries in a peer's BAR, guards intact", bar_offsets)
            .limit_s(90),
        Test::new("namespaces", "each namespace has its own size, blocks and bytes; others are refused", namespaces)
            .bed_only()
            .limit_s(60),
        Test::new("media-errors", "an error of the medium is a typed fault, and no neighbour suffers", media_errors)
            .bed_only()
            .limit_s(60),
        Test::new(
            "abilities",
            "shadow doorbells, lists and controller memory are found and, where we can, used",
            abilities,
        )
        .bed_only(),
        Test::new("events", "the controller reports a doorbell that is none, and tells its health", events).bed_only(),
        Test::new(
            "file-system",
            "a file system copied by us is mounted by the kernel, files and all",
            file_system_copied,
        )
        .bed_only()
        .limit_s(120),
    ],
};

/// Where these tests work on a namespace; the smallest has 16 MiB.
const AT: u64 = 4 << 20;
const PAGE: u64 = 4096;
const POISON: u8 = 0xA5;
const PATIENCE: Duration = Duration::from_secs(20);

/// One transfer of a sweep: so many bytes from `at` of memory.
type Shape = (u64, u32);

fn commands(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let mut commands = Commands::new(rig.controller.clone(), PATIENCE)?;
        for namespace in rig.controller.namespaces() {
            let told = every_command(&rig, &mut commands, &namespace)?;
            context.fact(&json!({"backend": backend.name(), "nsid": namespace.nsid, "statuses": told}));
        }
        Ok(())
    })
}

/// Runs all of them on one namespace; gives the statuses of those that a controller may lack.
fn every_command(rig: &Rig, run: &mut Commands<VfioFunction>, of: &Namespace) -> Result<serde_json::Value, Stop> {
    let block = of.block_bytes() as usize;
    let (slba, count) = (AT / u64::from(of.block_bytes()), 8);
    let ok = |what: &str, status: Status| same(what, &status.is_success(), &true);
    let mut want = block::pattern(51, AT, block * 8);
    let mut back = vec![POISON; block * 8];
    ok("write", run.write(of, slba, &want, Durability::UntilFlushed)?)?;
    ok("flush", run.flush(of)?)?;
    ok("read", run.read(of, slba, &mut back)?)?;
    same("read after write", &(back == want), &true)?;
    want[block..2 * block].copy_from_slice(&block::pattern(52, 0, block));
    ok("forced write", run.write(of, slba + 1, &want[block..2 * block], Durability::AtOnce)?)?;
    let abilities = rig.controller.facts().info.nvm;
    if abilities.compare() {
        ok("compare of what is there", run.compare(of, slba, &want)?)?;
        let mut other = want.clone();
        other[7 * block + 3] ^= 1;
        let status = run.compare(of, slba, &other)?;
        same("compare of something else", &status.code(), &Status::COMPARE_FAILURE.code())?;
    }
    if abilities.write_zeroes() {
        ok("write zeroes", run.write_zeroes(of, Blocks { slba: slba + 2, count: 3 })?)?;
        want[2 * block..5 * block].fill(0);
    }
    // QEMU's controller has it and does not say so.
    let verified = run.verify(of, Blocks { slba, count })?;
    if !verified.is_success() {
        let want = (false, Status::INVALID_OPCODE.code());
        same("verify", &(abilities.verify(), verified.code()), &want)?;
    }
    ok("read of all", run.read(of, slba, &mut back)?)?;
    same("every block", &(back == want), &true)?;
    if abilities.dataset_management() {
        let ranges = [Blocks { slba: slba + 5, count: 1 }, Blocks { slba: slba + 7, count: 1 }];
        ok("deallocate", run.deallocate(of, &ranges)?)?;
        ok("read of neighbours", run.read(of, slba, &mut back)?)?;
        // What deallocated blocks read as is the controller's choice.
        let kept = |at: usize| back[at * block..(at + 1) * block] == want[at * block..(at + 1) * block];
        same("neighbours of what was deallocated", &[0, 1, 2, 3, 4, 6].map(kept), &[true; 6])?;
    }
    let bad = run.write_uncorrectable(of, Blocks { slba, count: 1 })?;
    if bad.is_success() {
        let status = run.read(of, slba, &mut back[..block])?;
        same("read of an uncorrectable block", &status.code(), &Status::UNRECOVERED_READ.code())?;
        ok("written again", run.write(of, slba, &want[..block], Durability::UntilFlushed)?)?;
    } else {
        same("write uncorrectable", &bad.code(), &Status::INVALID_OPCODE.code())?;
    }
    let past = run.read(of, of.blocks() - 1, &mut back[..2 * block])?;
    same("read past the end", &past.code(), &Status::LBA_OUT_OF_RANGE.code())?;
    let nobody = Namespace { nsid: 0x4711, ..of.clone() };
    let missing = run.read(&nobody, 0, &mut back[..block])?;
    same("a namespace that is not there", &missing.is_success(), &false)?;
    Ok(
        json!({"compare": abilities.compare(), "write_zeroes": abilities.write_zeroes(), "verify": verified.is_success(),
        "deallocate": abilities.dataset_management(), "write_uncorrectable": bad.is_success(),
        "no_such_namespace": format!("{:#x}", missing.code())}),
    )
}

/// Reads each shape into poisoned memory and looks at it and its surroundings. `image` is what the object holds from [`AT`].
fn sweep(lane: &mut Lane, object: &Object, span: &DmaSpan, image: &[u8], shapes: &[Shape]) -> Verdict {
    let len = sw_mem::index(span.len().0);
    for (number, &(at, bytes_of)) in shapes.iter().enumerate() {
        let (start, count) = (sw_mem::index(at), bytes_of as usize);
        let window = (start.saturating_sub(4096), len.min(start + count + 4096));
        span.fill(window.0 as u64, (window.1 - window.0) as u64, POISON)?;
        all(lane, IoKind::Read, object, AT, (span, at, bytes_of))?;
        let got = bytes(span, window.0 as u64, window.1 - window.0)?;
        let (from, to) = (start - window.0, start - window.0 + count);
        let right = got[from..to] == image[..count];
        let guards = got[..from].iter().chain(&got[to..]).all(|byte| *byte == POISON);
        same(&format!("read {number} of {count} bytes at {at}: data and guards"), &(right, guards), &(true, true))?;
    }
    Ok(())
}

/// Writes each shape to the same place, each time other bytes of `image`, and compares what a read into whole pages finds.
fn write_sweep(lane: &mut Lane, object: &Object, span: &DmaSpan, image: &[u8], shapes: &[Shape]) -> Verdict {
    let to = AT + (8 << 20);
    for (number, &(at, len)) in shapes.iter().enumerate() {
        let from = number * 16 % (image.len() - len as usize + 1);
        let want = &image[from..from + len as usize];
        span.write(at, want)?;
        all(lane, IoKind::Write, object, to, (span, at, len))?;
        span.fill(0, len.into(), POISON)?;
        all(lane, IoKind::Read, object, to, (span, 0, len))?;
        same(&format!("write of {len} bytes from {at}"), &(bytes(span, 0, len as usize)? == want), &true)?;
    }
    Ok(())
}

/// Puts the pattern that sweeps read at its place, and gives it.
fn prepare(lane: &mut Lane, object: &Object, span: &DmaSpan, len: u32) -> Result<Vec<u8>, Stop> {
    let image = block::pattern(61, AT, len as usize);
    span.write(0, &image)?;
    all(lane, IoKind::Write, object, AT, (span, 0, len))?;
    Ok(image)
}

fn offsets(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let span = data(backend, 1 << 20, 0)?;
        for (nsid, block) in [(1, 512u32), (2, 4096)] {
            let object = match rig.namespace(nsid) {
                Ok(namespace) if namespace.block_bytes() == block => rig.object(nsid)?,
                _ if context.is_real() => continue,
                other => return fail(format!("namespace {nsid}: {other:?}")),
            };
            let mut lane = rig.lane(Completion::Polled)?;
            attach(&mut lane, span.region())?;
            let image = prepare(&mut lane, &object, &span, 256 << 10)?;
            // Every dword of a page; one block and nine, which end in the first page, the next one, or need a list.
            let shapes: Vec<Shape> = (0..PAGE)
                .step_by(4)
                .flat_map(|offset| [(2 * PAGE + offset, block), (2 * PAGE + offset, 9 * block)])
                .collect();
            sweep(&mut lane, &object, &span, &image, &shapes)?;
            let some: Vec<Shape> = shapes.iter().copied().step_by(7).collect();
            write_sweep(&mut lane, &object, &span, &image, &some)?;
            let bad = once(&mut lane, IoKind::Read, &object, AT, (&span, 2 * PAGE + 2, block))?;
            same("half a dword", &bad.is_err(), &true)?;
        }
        Ok(())
    })
}

/// Lengths around which PRP1, PRP2 and lists take turns: a list has 512 entries, the last of which links to the next one.
/// With memory that begins inside a page there is one entry more; past 1,024 pieces QEMU's controller fails a command with
/// Internal Error (its host takes no more in one call).
const LENGTHS_PAGES: [u64; 18] = [1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 510, 511, 512, 513, 514, 1022, 1023];

fn lists(context: &Context) -> Verdict {
    on_each(context, |backend| {
        if backend == Backend::NoIommu {
            return skip("memory of one huge page is all there is in one piece");
        }
        for role in ["nvme-a", "nvme-many"] {
            if !context.present(role) {
                continue;
            }
            let rig = Rig::open(context, role, backend)?;
            let object = rig.object(1)?;
            let command = rig.namespace(1)?.limits.map_or(0, |limits| limits.bytes_max()).min(4 << 20);
            let config = NvmeConfig { io_bytes_max: 4 << 20, ..NvmeConfig::default() };
            let mut lane = rig.lane_with(config)?;
            let span = data(backend, (4 << 20) + 4 * PAGE, 0)?;
            attach(&mut lane, span.region())?;
            let image = prepare(&mut lane, &object, &span, 4 << 20)?;
            let mut shapes = Vec::new();
            for pages in LENGTHS_PAGES {
                let len = u32::try_from(pages * PAGE)?;
                // On a page; a dword past it, so that one entry more is needed; a dword before the next; and a block short.
                shapes.extend([(PAGE, len), (PAGE + 4, len), (2 * PAGE - 4, len), (PAGE + 2048, len - 512)]);
            }
            sweep(&mut lane, &object, &span, &image, &shapes)?;
            let counters = lane.counters();
            write_sweep(&mut lane, &object, &span, &image, &shapes)?;
            context.fact(&json!({"backend": backend.name(), "role": role, "bytes_of_one_command": command,
                "shapes": shapes.len(), "commands_beyond_the_first": counters.splits,
                "list_bytes": counters.queues.prp_list_bytes}));
            if role == "nvme-many" {
                same("commands that were cut", &counters.splits, &0)?;
            }
        }
        Ok(())
    })
}

fn bar_offsets(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let bar = peer(context, &rig.space)?;
        let (object, mut lane) = (rig.object(1)?, rig.lane(Completion::Polled)?);
        let host = data(backend, 1 << 20, 0)?;
        attach(&mut lane, host.region())?;
        let held = prepare(&mut lane, &object, &host, 512 << 10)?;
        let region = bar.allocate(ByteLen(1 << 20))?;
        let span = region.span(0, ByteLen(1 << 20))?;
        attach(&mut lane, &region)?;
        let page_offsets = (0..PAGE).step_by(132).chain([4, 3584, 3588, 4092]).map(|offset| (2 * PAGE + offset, 512));
        let around = [2, 3, 64, 128].into_iter().flat_map(|pages| {
            let len = u32::try_from(pages * PAGE).unwrap_or(0);
            [(PAGE, len), (PAGE + 4, len), (2 * PAGE - 4, len), (PAGE + 2048, len - 512)]
        });
        let shapes: Vec<Shape> = page_offsets.chain(around).collect();
        for &(at, len) in &shapes {
            let mut image = vec![POISON; 1 << 20];
            host.write(0, &image)?;
            copy(&bar, CopyDirection::ToDevice, &host, &span)?;
            all(&mut lane, IoKind::Read, &object, AT, (&span, at, len))?;
            let (start, count) = (sw_mem::index(at), len as usize);
            image[start..start + count].copy_from_slice(&held[..count]);
            copy(&bar, CopyDirection::FromDevice, &host, &span)?;
            same(
                &format!("{len} bytes at {at} of the BAR, guards included"),
                &(bytes(&host, 0, 1 << 20)? == image),
                &true,
            )?;
            // Out of the BAR from the same place, and back into the host's memory.
            all(&mut lane, IoKind::Write, &object, AT + (8 << 20), (&span, at, len))?;
            host.fill(0, 1 << 20, 0)?;
            all(&mut lane, IoKind::Read, &object, AT + (8 << 20), (&host, 0, len))?;
            same(
                &format!("{len} bytes from {at} of the BAR"),
                &(bytes(&host, 0, count)? == image[start..start + count]),
                &true,
            )?;
        }
        context.fact(&json!({"backend": backend.name(), "shapes": shapes.len()}));
        Ok(())
    })
}

/// Number, block and length in bytes of the namespaces of `nvme-many` that can be used (`xtask/src/vm/machine.rs`).
/// Of the last one the image holds 8 bytes of protection information for each block.
const MANY: [(u32, u32, u64); 4] =
    [(1, 512, 16 << 20), (3, 4096, 8 << 20), (7, 512, (24 << 20) + 512), (PROTECTED, 512, (8 << 20) / 520 * 512)];
/// The one whose protection information the controller makes on writes, and checks and strips on reads.
const PROTECTED: u32 = 11;

fn namespaces(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-many", backend)?;
        let found: Vec<(u32, u32, u64)> = rig
            .controller
            .namespaces()
            .iter()
            .filter(|namespace| namespace.unusable.is_none())
            .map(|namespace| (namespace.nsid, namespace.block_bytes(), namespace.len_bytes()))
            .collect();
        same("namespaces", &found, &MANY.to_vec())?;
        let refused: Vec<(u32, String)> = rig
            .controller
            .namespaces()
            .iter()
            .filter_map(|namespace| Some((namespace.nsid, namespace.unusable?.to_string())))
            .collect();
        context.fact(&json!({"backend": backend.name(), "unusable": refused}));
        let protected = rig.namespace(PROTECTED)?;
        same("stripped", &matches!(protected.metadata, MetadataVerdict::Stripped(_)), &true)?;
        let mut lane = rig.lane(Completion::Polled)?;
        let span = data(backend, 1 << 20, 0)?;
        attach(&mut lane, span.region())?;
        // First and last blocks of each, each with its own pattern, before any is read.
        let ends = |block: u32, len: u64| [0, len - 4 * u64::from(block)];
        for (nsid, block, len) in MANY {
            let object = rig.object(nsid)?;
            for offset in ends(block, len) {
                span.write(0, &block::pattern(u64::from(nsid), offset, 4 * block as usize))?;
                all(&mut lane, IoKind::Write, &object, offset, (&span, 0, 4 * block))?;
            }
            let past = once(&mut lane, IoKind::Read, &object, len - u64::from(block), (&span, 0, 2 * block))?;
            same("past the end", &past.map_err(|fault| fault.kind), &Err(ErrorKind::OutOfRange))?;
        }
        for (nsid, block, len) in MANY {
            for offset in ends(block, len) {
                all(&mut lane, IoKind::Read, &rig.object(nsid)?, offset, (&span, 0, 4 * block))?;
                let want = block::pattern(u64::from(nsid), offset, 4 * block as usize);
                same(&format!("namespace {nsid} at {offset}"), &(bytes(&span, 0, want.len())? == want), &true)?;
            }
        }
        protection_is_checked(&rig, &protected)
    })
}

/// A block with a reference tag that is not its own cannot be read; written by us, it can, and is verified.
fn protection_is_checked(rig: &Rig, of: &Namespace) -> Verdict {
    let mut run = Commands::new(rig.controller.clone(), PATIENCE)?;
    let (mut block, want) = ([0; 512], block::pattern(77, 0, 512));
    let ours = LbaRange { nsid: of.nsid, slba: 100, nlb: BlockCount::new(1).ok_or(Stop::Fail("1 block".into()))? };
    // The first byte of dword 14. The controller takes the tag as it comes if it is not told to check it.
    let wrong = |data| {
        let mut entry = *Command::write(ours, data, IoFlags::PRACT).bytes();
        entry[56] = 99;
        Command::new(entry)
    };
    same("a write with another tag", &run.run(Payload::Out(&want), wrong)?.is_success(), &true)?;
    let refused = run.read(of, 100, &mut block)?;
    same("read of it", &refused.code(), &0x284)?;
    same("written", &run.write(of, 100, &want, Durability::UntilFlushed)?.is_success(), &true)?;
    same("read", &run.read(of, 100, &mut block)?.is_success(), &true)?;
    same("bytes", &(block[..] == want[..]), &true)?;
    same("compare", &run.compare(of, 100, &want).is_err(), &true)
}

fn media_errors(context: &Context) -> Verdict {
    let (bad_read, bad_write) = (context.number("bad_read")? * 512, context.number("bad_write")? * 512);
    if !context.present("nvme-faulty") {
        return skip("this machine has no nvme-faulty");
    }
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-faulty", backend)?;
        let (object, mut lane) = (rig.object(1)?, rig.lane(Completion::Polled)?);
        let span = data(backend, 1 << 20, 1)?;
        attach(&mut lane, span.region())?;
        // Media and data integrity errors: unrecovered read error, write fault.
        for (kind, offset, code) in [(IoKind::Read, bad_read, 0x281), (IoKind::Write, bad_write, 0x280)] {
            // Alone, and in the middle of a longer one.
            for (from, len) in [(offset, 512), (offset - 65_536, 131_072)] {
                let fault = once(&mut lane, kind, &object, from, (&span, 0, len))?;
                let fault = fault.map_err(|fault| (fault.kind, fault.code));
                same(&format!("{kind:?} of {len} at {from}"), &fault, &Err((ErrorKind::Io, code)))?;
            }
            for neighbour in [offset - 512, offset + 512] {
                all(&mut lane, kind, &object, neighbour, (&span, 0, 512))?;
            }
        }
        let (smart, log) = (rig.controller.smart()?, rig.controller.error_log(4)?);
        let counters = lane.counters();
        context.fact(&json!({"backend": backend.name(), "sent_again": counters.retries, "resets": counters.resets,
            "error_log_entries": log.len(), "smart": format!("{smart:?}")}));
        same("resets", &counters.resets, &0)
    })
}

/// Optional features that QEMU's controller has: shadow doorbells and scatter gather lists are used, a controller memory
/// buffer is known with its place and length.
fn abilities(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let facts = rig.controller.facts();
        same("shadow doorbells, no buffer", &(facts.shadow_doorbells, facts.cmb.is_none()), &(true, true))?;
        let (object, mut lane) = (rig.object(1)?, rig.lane(Completion::Polled)?);
        let span = data(backend, 1 << 20, 0)?;
        attach(&mut lane, span.region())?;
        let image = prepare(&mut lane, &object, &span, 64 << 10)?;
        span.fill(0, 1 << 20, POISON)?;
        // A joint inside a block, which only a list can describe.
        let pieces = [(4 * PAGE, 100u32), (9 * PAGE + 1024, 4096 - 100)];
        let mut read = io(IoKind::Read, &object, AT, Some(piece(&span, pieces[0].0, pieces[0].1)?))?;
        (read.segments[1], read.segment_count, read.len) = (piece(&span, pieces[1].0, pieces[1].1)?, 2, 4096);
        same("a ragged read", &run(&mut lane, &read)?, &Ok(4096))?;
        let mut want = vec![POISON; 1 << 20];
        for ((at, len), from) in pieces.into_iter().zip([0, 100]) {
            let (at, len) = (sw_mem::index(at), len as usize);
            want[at..at + len].copy_from_slice(&image[from..from + len]);
        }
        same("its bytes, and nothing else", &(bytes(&span, 0, 1 << 20)? == want), &true)?;
        same("commands with a list", &lane.counters().queues.sgl_commands, &1)?;
        let buffered = Rig::open(context, "nvme-cmb", backend)?;
        let buffer = buffered.controller.facts().cmb;
        context
            .fact(&json!({"backend": backend.name(), "sgl": format!("{:?}", facts.sgl), "cmb": format!("{buffer:?}")}));
        let told = buffer.map(|cmb| (cmb.bar, cmb.offset_bytes, cmb.len_bytes));
        same("the buffer of nvme-cmb", &told, &Some((2, 0, 64 << 20)))
    })
}

/// Rings a doorbell of a queue pair that nobody made: QEMU reports it by an asynchronous event, which comes again once its
/// log page was read.
fn events(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let (facts, registers) = (rig.controller.facts(), rig.function.registers());
        let Some(nobodys) = facts.cap.doorbell_stride.sq_tail(facts.queue_pairs) else { return fail("no doorbell") };
        same("events before", &rig.controller.take_events(), &Vec::new())?;
        for round in 0..3 {
            registers.write32(nobodys, 1);
            let seen = context.until(PATIENCE, "the event", || {
                let served = rig.controller.service().map_err(|error| error.to_string());
                let events = rig.controller.take_events();
                (served.is_err() || !events.is_empty()).then_some((served, events))
            })?;
            let reported = AsyncEvent { kind: EventKind::InvalidDoorbell, log_page: id::ERROR };
            same(&format!("event {round}"), &seen, &(Ok(()), vec![reported]))?;
        }
        let mut commands = Commands::new(rig.controller.clone(), PATIENCE)?;
        let (namespace, mut block) = (rig.namespace(1)?, [0; 512]);
        let before = rig.controller.smart()?;
        for _ in 0..10 {
            same("a read", &commands.read(&namespace, 0, &mut block)?.is_success(), &true)?;
        }
        let after = rig.controller.smart()?;
        context.fact(&json!({"backend": backend.name(), "smart": format!("{after:?}")}));
        same("read commands", &(after.read_commands - before.read_commands), &10)?;
        same("write commands", &after.write_commands, &before.write_commands)?;
        // QEMU's `hw/nvme/nvme.h`, NVME_TEMPERATURE.
        same("warnings and kelvins", &(after.critical_warning, after.temperature_kelvin), &(0, 0x143))
    })
}

/// Bytes of the file system that is copied.
const FILE_SYSTEM_BYTES: u64 = 16 << 20;

/// The kernel makes a file system, we copy all of its blocks to another controller, and the kernel mounts that.
fn file_system_copied(context: &Context) -> Verdict {
    let (from, to) = (context.device("nvme-a")?, context.device("nvme-b")?);
    on_each(context, |backend| {
        let source = block::namespaces(context, &from, 2)?;
        let Some(namespace) = source.first() else { return fail("no namespace") };
        let files: Vec<(String, Vec<u8>)> = [0usize, 1, 511, 4096, 70_001, 3 << 20]
            .into_iter()
            .zip(0..)
            .map(|(len, seed)| (format!("file-{seed}"), block::pattern(seed, 0, len)))
            .collect();
        file_system::small(namespace, FILE_SYSTEM_BYTES, |dir| {
            files.iter().try_for_each(|(name, bytes)| Ok(std::fs::write(dir.join(name), bytes)?))
        })?;
        copy_namespace(context, backend)?;
        let copied = block::namespaces(context, &to, 1)?;
        let Some(namespace) = copied.first() else { return fail("no namespace") };
        file_system::remounted(namespace, |dir| {
            for (name, bytes) in &files {
                same(name, &(std::fs::read(dir.join(name))? == *bytes), &true)?;
            }
            // And it can be written: the kernel finds nothing wrong with it.
            std::fs::write(dir.join("later"), b"later")?;
            same("later", &std::fs::read(dir.join("later"))?, &b"later".to_vec())
        })
    })
}

fn copy_namespace(context: &Context, backend: Backend) -> Verdict {
    const PIECE: u32 = 1 << 20;
    let (from, to) = (Rig::open(context, "nvme-a", backend)?, Rig::open(context, "nvme-b", backend)?);
    let (source, target) = (from.object(1)?, to.object(1)?);
    let (mut reads, mut writes) = (from.lane(Completion::Polled)?, to.lane(Completion::Interrupt)?);
    let span = data(backend, u64::from(PIECE), 0)?;
    attach(&mut reads, span.region())?;
    attach(&mut writes, span.region())?;
    for offset in (0..FILE_SYSTEM_BYTES).step_by(PIECE as usize) {
        all(&mut reads, IoKind::Read, &source, offset, (&span, 0, PIECE))?;
        all(&mut writes, IoKind::Write, &target, offset, (&span, 0, PIECE))?;
    }
    from.controller.shut_down()?;
    Ok(to.controller.shut_down()?)
}
