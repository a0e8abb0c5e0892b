//! A panic of ours while a caller runs its own operation.

use std::sync::Arc;

use sw_engine::{
    Granularity, LaneConfig, LaneParts, OpOptions, Spans, Target,
    seam::{Attach, Fence, Io, IoDone, Submit, Transport, TransportCaps, Wake},
};
use sw_mem::{Buffer, WeakRegion};
use sw_testkit::null::NullTransport;

use super::*;
use crate::{Engine, GpuUse, Uri};

/// Takes I/Os and panics when it is asked for their end. `ends` is what its device says of them afterwards.
struct Panics {
    inner: NullTransport,
    ends: Fence,
}

impl Transport for Panics {
    fn caps(&self) -> TransportCaps {
        self.inner.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.inner.attach(hint)
    }

    fn submit(&mut self, io: &Io) -> Submit {
        self.inner.submit(io)
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.inner.ring()
    }

    fn poll(&mut self, _wait: Wait, _out: &mut Vec<IoDone>) -> Result<usize, Error> {
        panic!("a bug of ours");
    }

    fn cancel(&mut self, token: sw_engine::Token) {
        self.inner.cancel(token);
    }

    fn fence(&mut self, _timeout: Duration, _out: &mut Vec<IoDone>) -> Fence {
        self.ends
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}

/// Runs one read in line over such a transport; what came of it, and its memory.
fn run(core: &Core, ends: Fence) -> (Completion, WeakRegion) {
    let inner = NullTransport::new(4, 1 << 20);
    let parts = LaneParts { transports: vec![Box::new(Panics { inner, ends })], copiers: Vec::new(), staging: None };
    let lane = Lane::new(LaneConfig::default(), parts).unwrap();
    let object = NullTransport::object(1 << 20, Granularity { block: 512, memory: 512 });
    let (caps, rates) = (lane.transport_caps(), RateTable::new());
    let choice = sw_engine::plan(&object, &MemoryFacts::HOST, &caps, &Policy::Any, &rates, Verb::Read).choice.unwrap();
    core.host.inline_made.fetch_add(1, Ordering::AcqRel);
    assert!(core.host.idle.push(Box::new(lane)).is_ok());
    let buffer = Buffer::allocate(ByteLen(4096)).unwrap();
    let memory = buffer.region().downgrade();
    let (target, spans) = (Target::new(object, choice).unwrap(), Spans::One(buffer.into_span()));
    let op = Op { user: 0, verb: Verb::Read, target, offset: 0, spans, options: OpOptions::default() };
    (core.run_inline(&core.host, op, "null:").unwrap(), memory)
}

#[test]
fn a_panic_in_line_is_an_error_and_frees_only_what_the_device_let_go_of() {
    for (ends, stays) in [(Fence::Quiet, false), (Fence::Busy(1), true)] {
        let core = Core::new(
            *Engine::builder().gpu(GpuUse::Off).config(),
            CuFileSource::Search,
            NvmeTcpKeys::default(),
            (Remote::default(), None),
        );
        let (done, memory) = run(&core, ends);
        let error = done.result.unwrap_err();
        assert_eq!((error.kind(), done.op.is_none()), (ErrorKind::Poisoned, true), "{error}");
        assert!(error.to_string().contains("null:"), "{error}");
        assert_eq!(memory.is_alive(), stays, "{ends:?}");
        // The lane is gone, and the engine takes nothing more.
        assert_eq!((core.host.idle.len(), core.host.inline_made.load(Ordering::Acquire)), (0, 0));
        let refused = core.check(Verb::Read).unwrap_err();
        assert_eq!((refused.kind(), refused.remedy_text().is_empty()), (ErrorKind::Poisoned, false));
        assert_eq!(core.close(), 0);
    }
    // Other engines of the process go on.
    let engine = Engine::builder().gpu(GpuUse::Off).build().unwrap();
    let here: Uri = std::env::current_exe().unwrap().to_str().unwrap().parse().unwrap();
    let object = engine.open(&here).unwrap();
    let memory = engine.allocate(Destination::Host, 4096, 0).unwrap();
    assert_eq!(engine.read(&object, 0, memory).wait().result.unwrap(), 4096);
}
