//! # Objects
//!
//! Files, block devices, namespaces, stripe sets and parts of them.
// UNSAFETY: exported names, and structures that C callers fill.
#![expect(unsafe_code, reason = "exported names, and structures that C callers fill")]

use std::sync::{Arc, Mutex, PoisonError};

use straightway::{NewObject, Object, Uri, Verb, parse_policy};

use crate::{
    edge::{call, misuse},
    engine::{EngineState, SwEngine},
    handle::{Handle, Kind, Table},
    pointer::{In, Out, Str, versioned},
    report,
    status::SwStatus,
    text::{self, SwText},
};

/// Something with bytes at offsets. Any thread may use it. Closed by `sw_object_close` or `sw_object_commit`.
#[repr(C)]
pub struct SwObject {
    _opaque: [u8; 0],
}

impl Kind for SwObject {
    type State = ObjectState;
    const TAG: u8 = 0xa2;
    const NAME: &'static str = "an object";

    fn table() -> &'static Table<ObjectState> {
        static TABLE: Table<ObjectState> = Table::new();
        &TABLE
    }
}

/// What is behind a handle of an object.
pub struct ObjectState {
    pub(crate) engine: Arc<EngineState>,
    pub(crate) object: Object,
    /// What makes it last, for an object in the making.
    new: Mutex<Option<NewObject>>,
}

/// What an object is opened for.
pub type SwMode = i32;

/// To read.
pub const SW_MODE_READ: SwMode = 0;
/// To read and to write in place.
pub const SW_MODE_UPDATE: SwMode = 1;

/// How an object is opened.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwObjectOptions {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// What for.
    pub mode: SwMode,
    /// Zero.
    pub reserved: u32,
}

versioned!(SwObjectOptions, "sw_object_options", 16);

/// What an operation does.
pub type SwVerb = i32;

/// Bytes from an object into memory.
pub const SW_VERB_READ: SwVerb = 1;
/// Bytes from memory into an object.
pub const SW_VERB_WRITE: SwVerb = 2;
/// Completed writes become durable.
pub const SW_VERB_FLUSH: SwVerb = 3;

/// Facts of an object.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwObjectInfo {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// Length in bytes when it was opened.
    pub length: u64,
    /// Bytes of it in the page cache, as of at most 100 ms ago; `UINT64_MAX` if nobody can tell.
    pub cached_bytes: u64,
}

versioned!(SwObjectInfo, "sw_object_info", 24);

/// Opens a path or an address, such as `/data/shard-0` or `nvme://0000:3b:00.0/1`. `options` may be NULL: to read.
///
/// Errors: `SW_ERR_BAD_URI`, `SW_ERR_NOT_FOUND`, `SW_ERR_PERMISSION_DENIED`, `SW_ERR_WRONG_KIND`, and what the system reports.
#[unsafe(no_mangle)]
pub extern "C" fn sw_object_open(
    engine: Handle<SwEngine>,
    uri: Str,
    options: In<SwObjectOptions>,
    object: Out<Handle<SwObject>>,
) -> SwStatus {
    call(|| {
        let out = object.ready("object")?;
        let mode = options.sized()?.mode;
        let engine = engine.get()?;
        let uri: Uri = uri.required("uri")?.parse()?;
        let object = match mode {
            SW_MODE_READ => engine.engine.open(&uri)?,
            SW_MODE_UPDATE => engine.engine.open_for_update(&uri)?,
            other => return Err(misuse(format!("{other} is no sw_mode"), "use SW_MODE_READ or SW_MODE_UPDATE")),
        };
        out.put(Handle::make(Arc::new(ObjectState { engine, object, new: Mutex::new(None) }))?);
        Ok(())
    })
}

/// Starts a new file of `length` bytes under a temporary name. `sw_object_commit` puts it in place as a whole; closed without
/// that, nothing has changed.
///
/// Errors: as of `sw_object_open`; `SW_ERR_NO_SPACE` before anything is written.
#[unsafe(no_mangle)]
pub extern "C" fn sw_object_create(
    engine: Handle<SwEngine>,
    uri: Str,
    length: u64,
    object: Out<Handle<SwObject>>,
) -> SwStatus {
    call(|| {
        let out = object.ready("object")?;
        let engine = engine.get()?;
        let uri: Uri = uri.required("uri")?.parse()?;
        let new = engine.engine.create(&uri, length)?;
        let object = new.object().clone();
        out.put(Handle::make(Arc::new(ObjectState { engine, object, new: Mutex::new(Some(new)) }))?);
        Ok(())
    })
}

/// Makes a new object durable under its name, and closes its handle, whatever the answer is. After an error what had the name
/// before still has it. Wait for its writes first.
///
/// Errors: `SW_ERR_API_MISUSE` for an object that was opened and not created, which stays open; what the system reports.
#[unsafe(no_mangle)]
pub extern "C" fn sw_object_commit(object: Handle<SwObject>) -> SwStatus {
    call(|| {
        let lock = |state: &ObjectState| state.new.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut new = None;
        object.end(|state| {
            new = lock(state);
            let opened = || misuse("the object was opened, not created", "use sw_flush, then sw_object_close");
            new.is_some().then_some(()).ok_or_else(opened)
        })?;
        new.map_or(Ok(()), NewObject::commit)
    })
}

/// Closes an object. Operations on it go on.
#[unsafe(no_mangle)]
pub extern "C" fn sw_object_close(object: Handle<SwObject>) -> SwStatus {
    call(|| object.end(|_| Ok(())).map(drop))
}

/// Tells facts of an object.
#[unsafe(no_mangle)]
pub extern "C" fn sw_object_info_get(object: Handle<SwObject>, info: Out<SwObjectInfo>) -> SwStatus {
    call(|| {
        let out = info.sized()?;
        let object = &object.get()?.object;
        let cached_bytes = object.cached_bytes().unwrap_or(u64::MAX);
        out.put(|| SwObjectInfo { size: 0, length: object.len(), cached_bytes });
        Ok(())
    })
}

/// Tells every route that a transfer could take, with a verdict for each: JSON `straightway.plan/1`, whose fields `docs/json.md`
/// lists. `destination` is where the memory is, as for `sw_region_allocate`; `policy` is as in `sw_io_options`, and may be NULL.
/// A policy that no route meets is no error: `choice` is null then. Freed by `sw_text_free`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_object_plan(
    object: Handle<SwObject>,
    verb: SwVerb,
    destination: Str,
    policy: Str,
    json: Out<Handle<SwText>>,
) -> SwStatus {
    call(|| {
        let out = json.ready("json")?;
        let object = object.get()?;
        let verb = match verb {
            SW_VERB_READ => Verb::Read,
            SW_VERB_WRITE => Verb::Write,
            other => return Err(misuse(format!("{other} is nothing to plan"), "use SW_VERB_READ or SW_VERB_WRITE")),
        };
        let destination = destination.required("destination")?.parse()?;
        let policy = parse_policy(policy.text("policy")?.unwrap_or("any"))?;
        text::give(report::plan(&object.engine.engine, &object.object, (destination, policy, verb)), out)
    })
}
