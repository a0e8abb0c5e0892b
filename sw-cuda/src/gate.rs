//! Gates: a stream of the caller's waits at one until an operation that is none of the device's is over.
//!
//! ```text
//!   the caller's stream:  … earlier work │ reached │ wait until word ≥ value │ passed │ later work …
//!                                            ▲                ▲                  ▲
//!   is_reached() asks ───────────────────────┘                │                  │
//!   dropping the gate writes the word ────────────────────────┘                  │
//!   the words are freed once all asked ──────────────────────────────────────────┘
//! ```
//!
//! No function of the host runs in the stream, and no other stream waits. Invariants: a word's value only grows, so a gate that is
//! open stays open for a stream that comes late; every gate opens, at the latest when it is dropped; the words are not freed
//! under a stream that has yet to look at them.
// UNSAFETY: driver calls with the caller's stream.
#![expect(unsafe_code, reason = "driver calls")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sw_engine::ErrorKind;
use sw_mem::{ByteLen, DmaSpan};

use crate::buffer::PinnedBuffer;
use crate::context::Context;
use crate::error::{CudaError, NOT_READY, SUCCESS};
use crate::stream::{Event, ForeignStream};
use crate::wait;

/// Gates that are closed at the same time, of one device: a page of words.
pub const GATES_MAX: u32 = 1024;
const WORD_BYTES: u64 = 4;
/// `CU_STREAM_WAIT_VALUE_GEQ`: until the word is the value or comes after it, counted in a circle.
const GEQ: u32 = 0;
const CALL: &str = "cuStreamWaitValue32_v2";
/// How long dropping the last gate's home waits for streams that have yet to look at their words.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Where the gates of one context come from. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    context: Context,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` only while it is dropped.
    words: Option<DmaSpan>,
    /// What each word is.
    values: Vec<u32>,
    free: Vec<usize>,
    /// Places behind the waits of streams that may not have looked yet.
    leaving: Vec<Event>,
}

/// One place in a stream. Dropping it lets the stream go on.
#[derive(Debug)]
pub struct Gate {
    home: Gates,
    at: usize,
    value: u32,
    reached: Event,
    passed: Option<Event>,
}

impl Gates {
    /// Takes a page of pinned memory.
    ///
    /// # Errors
    /// `Unsupported` if the driver has no waits for memory; `ResourceLimit`; the driver's.
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        if context.device().driver().table().cuStreamWaitValue32_v2.is_none() {
            let remedy = "use a driver of CUDA 12 or later, or wait for completions";
            return Err(CudaError::ours(ErrorKind::Unsupported, CALL, Some(context.device().ordinal()), remedy));
        }
        let bytes = ByteLen(u64::from(GATES_MAX) * WORD_BYTES);
        let region = PinnedBuffer::allocate(context, bytes)?.into_region()?;
        let protocol = |_| CudaError::ours(ErrorKind::Protocol, CALL, Some(context.device().ordinal()), "");
        let words = region.span(0, bytes).map_err(protocol)?;
        words.fill(0, bytes.0, 0).map_err(protocol)?;
        let state = State {
            words: Some(words),
            values: vec![0; GATES_MAX as usize],
            free: (0..GATES_MAX as usize).rev().collect(),
            leaving: Vec::new(),
        };
        Ok(Self(Arc::new(Shared { context: context.clone(), state: Mutex::new(state) })))
    }

    /// Closes a gate at the end of what `stream` holds now. The stream is of this context.
    ///
    /// # Errors
    /// `Busy` if [`GATES_MAX`] are closed; the driver's, and the stream does not wait then.
    pub fn close(&self, stream: ForeignStream) -> Result<Gate, CudaError> {
        let Shared { context, .. } = &*self.0;
        let ordinal = Some(context.device().ordinal());
        let busy = || CudaError::ours(ErrorKind::Busy, CALL, ordinal, "wait for an operation in stream order first");
        let unsupported = || CudaError::ours(ErrorKind::Unsupported, CALL, ordinal, "");
        let (reached, passed) = (Event::new(context)?, Event::new(context)?);
        let entered = context.enter()?;
        let table = entered.driver().table();
        let wait_value = table.cuStreamWaitValue32_v2.ok_or_else(unsupported)?;
        self.forget_passed();
        let mut state = self.lock();
        let address = state.words.as_ref().map(|words| words.place().raw()).ok_or_else(unsupported)?;
        let at = state.free.pop().ok_or_else(busy)?;
        let value = state.values.get(at).map_or(1, |value| value.wrapping_add(1));
        let mut gate = Gate { home: self.clone(), at, value, reached, passed: None };
        drop(state);
        // SAFETY: a checked symbol, our own live event, the caller's live stream, a current context.
        let answer = unsafe { (table.cuEventRecord)(gate.reached.raw(), stream.raw()) };
        context.check(answer, "cuEventRecord")?;
        let word = address + at as u64 * WORD_BYTES;
        // SAFETY: as above; the word lives until every stream has passed it (`Shared::drop`).
        let answer = unsafe { wait_value(stream.raw(), word, value, GEQ) };
        context.check(answer, CALL)?;
        // SAFETY: as above.
        let answer = unsafe { (table.cuEventRecord)(passed.raw(), stream.raw()) };
        // Without it nobody would know when the stream has looked: an event that was never recorded counts as reached.
        gate.passed = Some(passed);
        context.check(answer, "cuEventRecord").inspect_err(|_| gate.home.keep_words())?;
        Ok(gate)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets places that were passed. The driver is asked without the lock: it may take as long as it likes.
    fn forget_passed(&self) {
        let mut leaving = std::mem::take(&mut self.lock().leaving);
        leaving.retain(|event| is_behind(&self.0.context, event));
        self.lock().leaving.append(&mut leaving);
    }

    /// The words stay for the life of the process.
    fn keep_words(&self) {
        keep_for_ever(self.clone());
    }
}

/// Whether a stream has yet to come to an event, as far as the driver tells.
fn is_behind(context: &Context, event: &Event) -> bool {
    !matches!(is_reached(context, event), Ok(true))
}

fn is_reached(context: &Context, event: &Event) -> Result<bool, CudaError> {
    let entered = context.enter()?;
    // SAFETY: a checked symbol and our own live event.
    match unsafe { (entered.driver().table().cuEventQuery)(event.raw()) } {
        SUCCESS => Ok(true),
        NOT_READY => Ok(false),
        code => context.check(code, "cuEventQuery").map(|()| false),
    }
}

impl Gate {
    /// Whether everything that the stream held before the gate is done. Never blocks.
    ///
    /// # Errors
    /// The driver's; also those of earlier work in the context.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        is_reached(&self.home.0.context, &self.reached)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut state = self.home.lock();
        // What the operation wrote comes before the word, for the device too.
        sw_mem::barrier::to_device_before_doorbell();
        if let Some(words) = &state.words
            && words.store32(self.at as u64 * WORD_BYTES, self.value).is_err()
        {
            tracing::error!(gpu = self.home.0.context.device().ordinal(), "a stream cannot be told to go on");
        }
        if let Some(value) = state.values.get_mut(self.at) {
            *value = self.value;
        }
        state.free.push(self.at);
        state.leaving.extend(self.passed.take());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let context = self.context.clone();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let left = wait::until(LEAVE_WAIT, || {
            state.leaving.retain(|event| is_behind(&context, event));
            Ok::<bool, CudaError>(state.leaving.is_empty())
        });
        if left != Ok(true) {
            tracing::warn!(gpu = context.device().ordinal(), "a page of gates is kept: a stream has yet to pass one");
            keep_for_ever(state.words.take());
        }
    }
}

#[expect(clippy::mem_forget, reason = "a stream may still look at these words; the device would fault without them")]
fn keep_for_ever<T>(what: T) {
    std::mem::forget(what);
}
