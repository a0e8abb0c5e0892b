//! What the driver costs: commands per CPU second against a controller that completes at once and moves nothing.
//!
//! `cargo run --release -p sw-nvme --example speed [SECONDS]`
#![expect(clippy::unwrap_used, reason = "a measuring program: a failure to prepare ends it")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

#[path = "../tests/null/mod.rs"]
mod null;

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use sw_engine::{
    ObjectId, Token,
    seam::{Attach, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{ByteLen, HugePages, Iova, SlabPool};
use sw_nvme::{
    controller::{Controller, ControllerConfig},
    directory::{Directory, handle},
    prp::Segment,
    transport::{NvmeConfig, NvmeTransport},
    wire::{BlockCount, Command, IoFlags, LbaRange},
};

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let span = Duration::from_secs_f64(seconds);
    for depth in [1, 8, 32, 128] {
        println!("transport, depth {depth:>3}: {:6.2} million commands/CPU s", transport(depth, span));
    }
    for depth in [1, 32] {
        println!("queue,     depth {depth:>3}: {:6.2} million commands/CPU s", queue(depth, span));
    }
}

/// CPU time and wall time of this thread so far. The first is what counts on a machine that does other things too.
fn spent() -> (Duration, Instant) {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let on_cpu = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    (Duration::from_nanos(on_cpu), Instant::now())
}

/// Millions of commands a CPU second.
fn rate(count: u64, begun: (Duration, Instant)) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let count = count as f64;
    count / (spent().0 - begun.0).as_secs_f64() / 1e6
}

fn transport(depth: u32, span: Duration) -> f64 {
    let device = Arc::new(null::NullDevice::new());
    let waiter = device.waiter();
    let directory = Arc::new(Directory::default());
    directory.add(Controller::open(device.clone(), ControllerConfig::default()).unwrap()).unwrap();
    let mut transport = NvmeTransport::new(directory, waiter, NvmeConfig::default()).unwrap();
    let pool = SlabPool::new(depth, ByteLen(4096), HugePages::Never).unwrap();
    let region = pool.region();
    transport.attach(Attach::Region(region)).unwrap();
    let mut ios: Vec<Io> = (0..u64::from(depth))
        .map(|slot| {
            let place = region.base().advanced(ByteLen(slot * 4096));
            let segment = MemorySegment { place, len: 4096, region: region.id() };
            Io {
                token: Token::from_raw(slot),
                kind: IoKind::Read,
                object: ObjectId(1),
                handle: handle(0, 1),
                offset: slot * 4096,
                len: 4096,
                segment_count: 1,
                segments: [segment; MAX_SEGMENTS],
            }
        })
        .collect();
    let mut out: Vec<IoDone> = Vec::with_capacity(depth as usize);
    let (begun, mut count) = (spent(), 0);
    while begun.1.elapsed() < span {
        for _ in 0..1000 {
            for io in &mut ios {
                io.offset = (io.offset + 4096) & 0xFFFF_FFFF;
                assert_eq!(transport.submit(black_box(io)), Submit::Accepted);
            }
            transport.ring().unwrap();
            count += transport.poll(Wait::No, &mut out).unwrap() as u64;
            black_box(out.drain(..).filter(|done| done.result == Ok(4096)).count());
        }
    }
    let rate = rate(count, begun);
    let [tails, heads] = device.doorbells();
    assert!(tails.max(heads) <= count / u64::from(depth) + 64, "a doorbell a batch each way, beside the admin queue's");
    rate
}

/// The queue pair alone, without the transport's checks and tables.
fn queue(depth: u32, span: Duration) -> f64 {
    let device = Arc::new(null::NullDevice::new());
    let controller = Controller::open(device.clone(), ControllerConfig::default()).unwrap();
    let request = sw_nvme::controller::PairRequest {
        depth: 128,
        data_bytes_max: 1 << 20,
        notify: sw_nvme::controller::Notify::Polled,
    };
    let mut pair = controller.create_pair(&request).unwrap();
    let segment = Segment { iova: Iova::new(1 << 40), len: ByteLen(4096) };
    let (begun, mut count) = (spent(), 0);
    while begun.1.elapsed() < span {
        for _ in 0..1000 {
            for slot in 0..u64::from(depth) {
                let at = LbaRange { nsid: 1, slba: slot * 8, nlb: BlockCount::new(8).unwrap() };
                let segment = black_box([segment]);
                pair.queue.stage(&segment, slot, |data| Command::read(at, data, IoFlags::NONE)).unwrap();
            }
            pair.queue.ring();
            count += pair.queue.poll(128, |ended| assert!(black_box(ended).status.is_success())) as u64;
        }
    }
    rate(count, begun)
}
