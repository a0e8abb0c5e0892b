//! Noise on the wire: whatever comes, everything ends once and in time, what counts as read is right, and nothing lands afterwards.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

use super::*;

/// A small generator: seeds give the same noise again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ x >> 31) % sides
    }

    fn index(&mut self, sides: usize) -> usize {
        sw_mem::index(self.roll(sides as u64))
    }
}

/// What a wire does to what the target says: clean up to `quiet` connections and so many bytes of each.
#[derive(Clone, Copy)]
struct Noise {
    seed: u64,
    quiet: u64,
    clean_bytes: u64,
    /// One piece in so many suffers.
    every: u64,
}

fn spoil(piece: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.index(piece.len());
    match dice.roll(8) {
        0 => piece.truncate(at),
        1 => {
            let again = piece[at..].to_vec();
            piece.extend(again);
        }
        2 => drop(piece.drain(..at)),
        3 => piece[at..].fill(0xFF),
        4 => piece[at] = piece[at].wrapping_add(1),
        5 => piece.insert(at, 7),
        _ => piece[at] ^= 1 << dice.roll(8),
    }
}

fn pump_clean(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 8192];
    while let Ok(got @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..got]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn pump_noise(mut from: TcpStream, mut to: TcpStream, noise: Noise, mut dice: Dice) {
    let (mut bytes, mut clean) = ([0; 8192], noise.clean_bytes);
    while let Ok(got @ 1..) = from.read(&mut bytes) {
        let mut left = &bytes[..got];
        let mut ends = false;
        while !left.is_empty() && !ends {
            let (now, rest) = left.split_at(1 + dice.index(left.len()));
            left = rest;
            let mut piece = now.to_vec();
            clean = clean.saturating_sub(piece.len() as u64);
            if clean == 0 && dice.roll(noise.every) == 0 {
                spoil(&mut piece, &mut dice);
                ends = dice.roll(4) == 0;
            }
            ends |= to.write_all(&piece).is_err();
        }
        if ends {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Passes connections on to `target`, with noise; ends when the target does not answer any more.
fn wire(target: SocketAddr, noise: Noise) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let run = move || {
        for number in 0.. {
            let (Ok((host, _)), Ok(far)) = (listener.accept(), TcpStream::connect(target)) else { return };
            let (host_too, far_too) = (host.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::Builder::new().spawn(move || pump_clean(host, far)).unwrap();
            let dice = Dice(noise.seed << 16 ^ number);
            let back = move || match number < noise.quiet {
                true => pump_clean(far_too, host_too),
                false => pump_noise(far_too, host_too, noise, dice),
            };
            std::thread::Builder::new().spawn(back).unwrap();
        }
    };
    std::thread::Builder::new().spawn(run).unwrap();
    at
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    0..count
}

fn impatient(digests: Digests) -> ControllerConfig {
    ControllerConfig {
        digests,
        depth: 4,
        timeout: Duration::from_millis(300),
        association_timeout: Duration::from_secs(1),
        ..ControllerConfig::default()
    }
}

#[test]
fn noise_while_an_association_is_made_ends_it_or_not_but_in_time() {
    let target = own();
    let subsystem = target.subsystem.clone();
    let target = Target::start(target).unwrap();
    for seed in seeds(30) {
        let noise = Noise { seed, quiet: 0, clean_bytes: seed % 5 * 100, every: 1 + seed % 7 };
        let at = wire(target.address(), noise);
        let address = Address { host: at.ip().to_string(), port: at.port(), subsystem: subsystem.clone() };
        let digests = if seed % 2 == 0 { BOTH } else { Digests::default() };
        let start = now();
        let opened = Controller::open(address, identity(), impatient(digests));
        assert!(now().since(start) < Duration::from_secs(5), "seed {seed}");
        if let Ok(controller) = opened {
            controller.shut_down();
        }
    }
}

const SPAN_BLOCKS: u64 = 24;

fn content(block: u64) -> u8 {
    u8::try_from(block % 200).unwrap() + 1
}

/// A target, an association with it that nothing disturbs, by which its content is written, and one with noise on its queues.
fn bed(seed: u64, digests: Digests) -> (Target, Rig, Rig) {
    let target = TargetConfig {
        mdts: 2,
        capsule_data_bytes: u32::from(seed.is_multiple_of(3)) * 8192,
        h2c_bytes_max: 4096,
        r2t_bytes_max: 6144,
        c2h_bytes_max: 3072,
        alignment: u8::try_from(seed % 32).unwrap(),
        namespaces: vec![Backing::Memory(4 << 20)],
        ..own()
    };
    let subsystem = target.subsystem.clone();
    let target = Target::start(target).unwrap();
    let directory = Arc::new(Directory::default());
    let rig = |noise: Noise| {
        let at = wire(target.address(), noise);
        let address = Address { host: at.ip().to_string(), port: at.port(), subsystem: subsystem.clone() };
        let controller = Controller::open(address, identity(), impatient(digests)).unwrap();
        Rig::of(controller, &directory)
    };
    let noise = Noise { seed, quiet: 1, clean_bytes: 400 + seed % 9 * 3000, every: 2 + seed % 40 };
    let rigs = (rig(Noise { quiet: u64::MAX, ..noise }), rig(noise));
    (target, rigs.0, rigs.1)
}

fn round(seed: u64, digests: Digests) {
    let (_target, clean, noisy) = bed(seed, digests);
    let config = TcpConfig { command_timeout: Duration::from_millis(400), ..TcpConfig::default() };
    let (object, mut transport) = (clean.object(), clean.transport(config));
    for block in 0..256 {
        let memory = span(BLOCK, content(block));
        transport.submit(&io(&object, IoKind::Write, block * BLOCK, &memory, 1));
        assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    }
    let (object, mut transport) = (noisy.object(), noisy.transport(config));
    let mut dice = Dice(seed);
    let count = 24u64;
    let mut ios: Vec<(Io, DmaSpan, Option<Vec<u8>>)> = Vec::new();
    for number in 0..count {
        let blocks = 1 + dice.roll(SPAN_BLOCKS);
        let kind = if dice.roll(4) == 0 { IoKind::Write } else { IoKind::Read };
        // Writes go elsewhere.
        let first = if kind == IoKind::Write { 512 } else { dice.roll(256 - SPAN_BLOCKS) };
        let memory = span(blocks * BLOCK, 0xEE);
        ios.push((io(&object, kind, first * BLOCK, &memory, number), memory, None));
        assert_eq!(transport.submit(&ios.last().unwrap().0), Submit::Accepted);
    }
    let (start, mut over, mut done) = (now(), 0, Vec::with_capacity(64));
    while over < count {
        assert!(now().since(start) < Duration::from_secs(60), "seed {seed}: {over} of {count} ended");
        transport.poll(Wait::For { timeout: Duration::from_millis(10), min: 1 }, &mut done).unwrap();
        if dice.roll(3) == 0 {
            transport.cancel(Token::from_raw(dice.roll(count)));
        }
        for IoDone { token, result, .. } in done.drain(..) {
            over += 1;
            let number = (0..count).find(|number| Token::from_raw(*number) == token).unwrap();
            let (io, memory, kept) = &mut ios[sw_mem::index(number)];
            assert!(kept.is_none(), "seed {seed}: two ends of {number}");
            let mut bytes = vec![0; sw_mem::index(memory.len().0)];
            memory.read(0, &mut bytes).unwrap();
            if let (Ok(moved), IoKind::Read, true) = (result, io.kind, digests.data) {
                for (at, byte) in bytes.iter().enumerate().take(sw_mem::index(u64::from(moved))) {
                    assert_eq!(*byte, content((io.offset + at as u64) / BLOCK), "seed {seed}: {number} at {at}");
                }
            }
            *kept = Some(bytes);
        }
    }
    assert_eq!(transport.in_flight, 0);
    // What comes now lands nowhere.
    for _ in 0..10 {
        transport.poll(Wait::For { timeout: Duration::from_millis(5), min: 1 }, &mut done).unwrap();
    }
    assert!(done.is_empty(), "seed {seed}: an end too many");
    for (io, memory, kept) in &ios {
        let mut bytes = vec![0; sw_mem::index(memory.len().0)];
        memory.read(0, &mut bytes).unwrap();
        assert!(*kept.as_ref().unwrap() == bytes, "seed {seed}: {:?} landed late", io.token);
    }
    assert_eq!(transport.fence(Duration::from_secs(1), &mut done), Fence::Quiet);
}

#[test]
fn noise_on_a_queue_ends_everything_once_and_nothing_wrong_counts_as_read() {
    for seed in seeds(5) {
        round(seed, BOTH);
        round(seed, Digests::default());
    }
}
