//! What cuFile cannot say: the way of every byte, and errors in words. Functions that begin with `sw_cufile_`.
//!
//! Each writes a text with a zero byte into `room` bytes and returns its length without that byte; if that is `room` or more, nothing
//! was written: ask again with more room. 0: there is nothing to tell. Negative: an error, as a negative code.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::ffi::c_char;

use serde_json::{Value, json};
use straightway::{Reason, Verb};

use crate::{
    abi::Handle,
    code::Failure,
    count::{LastPath, Routes, last_path},
    edge,
    file::{Source, file_of},
    library::{Running, library},
    pointer::Out,
    settings::{Effect, FLAGS, Origin, SIZES, SLABS, TEXTS, Values},
};

/// The way of the calling thread's last transfer, as JSON `straightway.cufile.path/1`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_cufile_last_path(text: Out<c_char>, room: usize) -> isize {
    told("sw_cufile_last_path", (text, room), || {
        Ok(last_path().map(|last| path(&last).to_string()).unwrap_or_default())
    })
}

/// The ways of all transfers of a handle, as JSON `straightway.cufile.handle/1`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_cufile_handle_report(fh: Handle, text: Out<c_char>, room: usize) -> isize {
    told("sw_cufile_handle_report", (text, room), || {
        let file = file_of(fh)?;
        let faces = match &file.source {
            Source::Kernel(kernel) => kernel.object.as_engine_object().faces.as_slice(),
            Source::User(_) => &[],
        };
        let faces = faces.iter().map(|face| {
            json!({ "transport": face.transport, "landing": face.landing.name(),
                    "reason": face.because.map(Reason::code), "block_bytes": face.granularity.block })
        });
        let mut report = json!({
            "schema": "straightway.cufile.handle/1",
            "name": file.name(),
            "faces": faces.collect::<Vec<Value>>(),
        });
        merge(&mut report, routes(&file.routes));
        Ok(report.to_string())
    })
}

/// Settings with their origins, and the ways of all transfers of the process, as JSON `straightway.cufile/1`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_cufile_report(text: Out<c_char>, room: usize) -> isize {
    told("sw_cufile_report", (text, room), || {
        let library = library();
        let values = library.settings.effective()?;
        let running = library.running();
        let mut report = json!({
            "schema": "straightway.cufile/1",
            "version": library.own().version,
            "policy": library.own().policy_text,
            "open": running.is_some(),
            "settings": settings(&values),
        });
        if let Some(running) = running {
            let ignored = running.loaded.ignored.iter();
            let ignored = ignored.map(|(name, why)| json!({ "name": name, "reason": why })).collect::<Vec<Value>>();
            let file = running.loaded.file.as_ref().map(|path| path.display().to_string());
            merge(&mut report, json!({ "file": file, "ignored": ignored, "engine": running.options }));
        }
        merge(&mut report, routes(&library.counts.routes));
        Ok(report.to_string())
    })
}

/// The calling thread's last failure in words; it stays until another call fails.
#[unsafe(no_mangle)]
pub extern "C" fn sw_cufile_last_error(text: Out<c_char>, room: usize) -> isize {
    told("sw_cufile_last_error", (text, room), || Ok(edge::last_text()))
}

fn told(
    name: &'static str,
    (text, room): (Out<c_char>, usize),
    work: impl FnOnce() -> Result<String, Failure>,
) -> isize {
    let mut answer = 0;
    let failed = edge::call(name, || {
        let found = work()?;
        // No room is an answer of its own: NULL with 0 asks how much it takes.
        text.text(found.as_bytes(), room);
        answer = isize::try_from(found.len()).unwrap_or(isize::MAX);
        Ok(())
    });
    if failed.err == 0 { answer } else { -isize::try_from(failed.err).unwrap_or(1) }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

fn verb(verb: Verb) -> &'static str {
    if verb == Verb::Write { "write" } else { "read" }
}

fn path(last: &LastPath) -> Value {
    let LastPath { handle, verb: what, path, times, failed } = last;
    json!({
        "schema": "straightway.cufile.path/1",
        "handle": format!("{handle:#x}"),
        "verb": verb(*what),
        "failed": failed,
        "route": path.route.to_string(),
        "bytes": { "dma": path.bytes.dma, "kernel_copy": path.bytes.kernel_copy, "staged": path.bytes.staged },
        "bounced_bytes": path.bounced,
        "cpu_copied_bytes": path.cpu_copied,
        "reason": path.reason.code(),
        "reason_text": path.reason.text(),
        "queued_ns": times.queued_ns,
        "moving_ns": times.moving_ns,
    })
}

fn routes(routes: &Routes) -> Value {
    let (sums, failed) = routes.sums();
    let rows = sums.iter().map(|sum| {
        let reasons = sum.reasons.iter().map(|reason| reason.code()).collect::<Vec<_>>();
        json!({
            "route": format!("{}/{}", sum.transport, sum.landing.name()),
            "operations": sum.operations,
            "bytes": sum.bytes,
            "bounced_bytes": sum.bounced,
            "reasons": reasons,
        })
    });
    json!({ "routes": rows.collect::<Vec<Value>>(), "failed_operations": failed })
}

fn settings(values: &Values) -> Value {
    let row = |key: &str, value: Value, origin: Origin, effect: Effect| {
        let note = match effect {
            Effect::Used => Value::Null,
            Effect::Kept(why) => why.into(),
        };
        json!({ "key": key, "value": value, "origin": origin.name(), "no_effect": note })
    };
    let sizes =
        SIZES.iter().zip(&values.sizes).map(|(size, (value, from))| row(size.key, json!(value), *from, size.effect));
    let flags =
        FLAGS.iter().zip(&values.flags).map(|(flag, (value, from))| row(flag.key, json!(value), *from, flag.effect));
    let texts =
        TEXTS.iter().zip(&values.texts).map(|(text, (value, from))| row(text.key, json!(value), *from, text.effect));
    let slabs = SLABS.iter().zip(&values.slabs).map(|((key, _), (value, from))| {
        row(key, json!(value), *from, Effect::Kept("staging memory is the engine's own"))
    });
    sizes.chain(flags).chain(texts).chain(slabs).collect()
}

/// What the engine found on this machine: facts with their remedies.
pub(crate) fn facts(running: &Running) -> String {
    let doctor = running.engine.doctor();
    let facts = doctor.facts.iter();
    let facts = facts.map(|fact| json!({ "name": fact.name, "value": fact.value, "remedy": fact.remedy }));
    let report = json!({ "schema": "straightway.cufile.facts/1", "facts": facts.collect::<Vec<Value>>() });
    format!("{report:#}\n")
}
