//! # Log
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{
    cell::Cell,
    fmt::{self, Write},
    sync::{
        Once, PoisonError, RwLock,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{
    edge::{call, misuse},
    last::c_text,
    pointer::{Addr, Str},
    status::SwStatus,
};

/// How much is logged.
pub type SwLogLevel = i32;

/// Nothing.
pub const SW_LOG_OFF: SwLogLevel = 0;
/// What went wrong and cannot be told otherwise.
pub const SW_LOG_ERROR: SwLogLevel = 1;
/// What works, and not as well as it could.
pub const SW_LOG_WARN: SwLogLevel = 2;
/// What happens once or seldom.
pub const SW_LOG_INFO: SwLogLevel = 3;
/// For finding faults.
pub const SW_LOG_DEBUG: SwLogLevel = 4;
/// Everything.
pub const SW_LOG_TRACE: SwLogLevel = 5;

/// Told of a line of the log. `message` is valid during the call. Any thread of the library may call it, several at once; it must
/// not call this library, throw an exception or leave by longjmp.
pub type SwLog = Option<extern "C" fn(level: SwLogLevel, target: Str, message: Str, user: Addr)>;

static SINK: RwLock<(SwLog, Addr)> = RwLock::new((None, Addr::NULL));
static MAX: AtomicI32 = AtomicI32::new(SW_LOG_OFF);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Sets who is told of log lines up to `level`, of all engines of the process; `log` NULL: nobody. When it returns, no call of the
/// callback that was set before is running.
#[unsafe(no_mangle)]
pub extern "C" fn sw_log_set(level: SwLogLevel, log: SwLog, user: Addr) -> SwStatus {
    call(|| {
        if !(SW_LOG_OFF..=SW_LOG_TRACE).contains(&level) {
            return Err(misuse(format!("{level} is no sw_log_level"), "use a constant SW_LOG_"));
        }
        if INSIDE.get() {
            return Err(misuse("the log was set from a call of the log", "set it elsewhere"));
        }
        static INSTALL: Once = Once::new();
        // The statics of this shared library are its own: no subscriber of the program is replaced.
        INSTALL.call_once(|| drop(tracing::subscriber::set_global_default(ToCallback)));
        let mut sink = SINK.write().unwrap_or_else(PoisonError::into_inner);
        *sink = (log, user);
        MAX.store(if log.is_some() { level } else { SW_LOG_OFF }, Ordering::Release);
        drop(sink);
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    })
}

fn number(level: &Level) -> SwLogLevel {
    match *level {
        Level::ERROR => SW_LOG_ERROR,
        Level::WARN => SW_LOG_WARN,
        Level::INFO => SW_LOG_INFO,
        Level::DEBUG => SW_LOG_DEBUG,
        Level::TRACE => SW_LOG_TRACE,
    }
}

/// Hands events to the callback. Spans are not kept.
struct ToCallback;

impl Subscriber for ToCallback {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(metadata.level()) <= MAX.load(Ordering::Acquire)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        span::Id::from_u64(NEXT.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        // A line that is logged while one is told would wait for itself.
        if INSIDE.get() {
            return;
        }
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let (Some(log), user) = *sink else { return };
        let mut line = Line::default();
        event.record(&mut line);
        let message = c_text(line.message + &line.fields);
        let target = c_text(event.metadata().target());
        INSIDE.set(true);
        log(number(event.metadata().level()), Str::lent(&target), Str::lent(&message), user);
        INSIDE.set(false);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The message first, then the fields as `name=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
