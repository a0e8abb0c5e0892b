//! The end that is tested: stores of a server, and bytes moved as a lane moves them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sw_engine::{
    Error, Object,
    seam::{Io, IoDone, IoKind, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    Context, RemoteConfig, RemoteTransport, Runtime, System,
    objects::{ObjectStores, ObjectsConfig, Settings},
};

/// How stores of a server are reached, with little patience.
pub fn config(environment: [(&str, String); 3]) -> ObjectsConfig {
    let environment = environment.map(|(name, value)| (name.into(), value.into()));
    let mut config = ObjectsConfig { settings: Settings::from_environment(environment), ..ObjectsConfig::default() };
    config.patience = Duration::from_secs(20);
    config.http.silence = Duration::from_secs(5);
    config
}

pub fn stores(config: ObjectsConfig) -> ObjectStores {
    ObjectStores::new(Context::new(Runtime::new(2)), || config)
}

/// Reads all of an object again and again until `is_over`, once at least: it always has these bytes. How often.
pub fn read_until(is_over: &AtomicBool, stores: &dyn System, object: &Object, bytes: &[u8]) -> u32 {
    let mut rounds = 0;
    while !is_over.load(Ordering::Relaxed) || rounds == 0 {
        assert!(read(stores, object).unwrap() == bytes);
        rounds += 1;
    }
    rounds
}

/// Moves bytes of one object by one I/O after the other, as a lane does. What went wrong: as the transport explains it.
pub fn transfer(
    stores: &dyn System,
    object: &Object,
    kind: IoKind,
    offset: u64,
    buffer: &Buffer,
) -> Result<u64, Error> {
    let config = RemoteConfig { name: object.faces[0].transport, queue_depth: 4, io_bytes_max: 1 << 20 };
    let mut transport = stores.context().transport(config);
    let (total, region) = (buffer.len().0, buffer.region());
    let (mut at, mut done) = (0, Vec::with_capacity(4));
    while at < total {
        let len = u32::try_from((total - at).min(1 << 20)).unwrap();
        let place = region.base().checked_add(ByteLen(at)).unwrap();
        let segment = MemorySegment { place, len, region: region.id() };
        let io = Io {
            token: sw_engine::Token::from_raw(at),
            kind,
            object: object.id,
            handle: object.faces[0].handle,
            offset: offset + at,
            len,
            segment_count: 1,
            segments: [segment; 3],
        };
        assert_eq!(transport.submit(&io), Submit::Accepted);
        done.clear();
        while done.is_empty() {
            transport.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut done)?;
        }
        let IoDone { result, .. } = done[0];
        match result {
            Ok(0) => break,
            Ok(moved) => at += u64::from(moved),
            Err(fault) => {
                return Err(transport.explain(io.handle, fault).map_or_else(
                    || Error::from_fault(fault, sw_engine::Verb::Read),
                    |error| Error::new(error.kind(), error.verb()).detail(error.to_string()),
                ));
            }
        }
    }
    Ok(at)
}

/// Reads all of an object.
pub fn read(stores: &dyn System, object: &Object) -> Result<Vec<u8>, Error> {
    let mut buffer = Buffer::allocate(ByteLen(object.len.max(1))).unwrap();
    let moved = if object.len == 0 { 0 } else { transfer(stores, object, IoKind::Read, 0, &buffer)? };
    Ok(buffer.as_mut_slice()[..usize::try_from(moved).unwrap()].to_vec())
}

/// Makes an object of these bytes.
pub fn put(stores: &dyn System, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let intent = stores.create(name, bytes.len() as u64)?;
    write(stores, intent.object(), 0, bytes)?;
    intent.commit(sw_engine::seam::Names::Durable)
}

/// Writes bytes at a place of an object in the making.
pub fn write(stores: &dyn System, object: &Object, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut buffer = Buffer::allocate(ByteLen(bytes.len() as u64)).unwrap();
    buffer.as_mut_slice().copy_from_slice(bytes);
    transfer(stores, object, IoKind::Write, offset, &buffer).map(drop)
}

/// A read among many.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub object: &'a Object,
    pub offset: u64,
    pub len: u32,
}

/// Byte that memory has where nothing was read.
pub const UNREAD: u8 = 0xa5;

/// Reads that are under way together: one buffer, a place for each in it.
pub struct Together {
    pub transport: RemoteTransport,
    pub buffer: Buffer,
    places: Vec<(u64, u32, u64)>,
}

impl Together {
    /// Submits all of them, and lets them go at once.
    pub fn start(stores: &dyn System, asks: &[Ask<'_>]) -> Self {
        let config = RemoteConfig { queue_depth: 512, io_bytes_max: 1 << 20, ..RemoteConfig::default() };
        let mut transport = stores.context().transport(config);
        let total: u64 = asks.iter().map(|ask| u64::from(ask.len)).sum();
        let mut buffer = Buffer::allocate(ByteLen(total.max(1))).unwrap();
        buffer.as_mut_slice().fill(UNREAD);
        let (mut at, mut places) = (0, Vec::new());
        for (index, Ask { object, offset, len }) in asks.iter().enumerate() {
            let region = buffer.region();
            let place = region.base().checked_add(ByteLen(at)).unwrap();
            let segment = MemorySegment { place, len: *len, region: region.id() };
            let io = Io {
                token: sw_engine::Token::from_raw(index as u64),
                kind: IoKind::Read,
                object: object.id,
                handle: object.faces[0].handle,
                offset: *offset,
                len: *len,
                segment_count: 1,
                segments: [segment; 3],
            };
            assert_eq!(transport.submit(&io), Submit::Accepted);
            places.push((at, *len, io.handle));
            at += u64::from(*len);
        }
        transport.ring().unwrap();
        Self { transport, buffer, places }
    }

    /// What came of each.
    pub fn end(mut self) -> Vec<Result<Vec<u8>, Error>> {
        let mut results: Vec<Option<Result<u32, Error>>> = self.places.iter().map(|_| None).collect();
        let mut done = Vec::with_capacity(512);
        while results.iter().any(Option::is_none) {
            done.clear();
            self.transport.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut done).unwrap();
            for IoDone { token, result, .. } in &done {
                let index = usize::try_from(token.raw()).unwrap();
                let told = |fault| {
                    let error = self.transport.explain(self.places[index].2, fault);
                    error.map_or_else(
                        || Error::from_fault(fault, sw_engine::Verb::Read),
                        |error| Error::new(error.kind(), error.verb()).detail(error.to_string()),
                    )
                };
                results[index] = Some(result.map_err(told));
            }
        }
        let bytes = self.buffer.as_mut_slice();
        let mut read = Vec::new();
        for (result, (at, ..)) in results.into_iter().zip(&self.places) {
            let at = usize::try_from(*at).unwrap();
            read.push(result.unwrap().map(|len| bytes[at..at + usize::try_from(len).unwrap()].to_vec()));
        }
        read
    }
}

/// The bytes of reads that are under way together.
pub fn read_together(stores: &dyn System, asks: &[Ask<'_>]) -> Vec<Result<Vec<u8>, Error>> {
    Together::start(stores, asks).end()
}
