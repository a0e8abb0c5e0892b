/*
 * straightway.h: GPU-direct storage, for C and C++.
 *
 * Made from the sources of the library by its tests; changes here are lost.
 *
 *   sw_engine *engine = NULL;
 *   sw_object *object = NULL;
 *   sw_region *region = NULL;
 *   sw_completion done = SW_COMPLETION_INIT;
 *
 *   sw_engine_open(NULL, &engine);
 *   sw_object_open(engine, "/data/shard-0", NULL, &object);
 *   sw_region_allocate(engine, "gpu0", 1 << 20, 0, &region);
 *   sw_read(object, 0, region, 0, 1 << 20, NULL, &done);
 *   printf("%llu bytes by %s: %s\n", (unsigned long long)done.bytes, done.transport, done.reason);
 *
 * Rules that hold for all functions:
 *
 * - A function that can fail returns a status. Outputs are the last parameters. They are written only if there is something to
 *   tell: after an error of the arguments they are as before.
 * - Handles are pointers that nobody may follow. NULL, a handle of another kind, and one that was closed before are
 *   SW_ERR_API_MISUSE, and nothing is done.
 * - Structures that begin with `size` are passed with their size set: start from the _INIT value. A program that was compiled with
 *   an older header goes on working with a newer library, and the other way round as long as it sets no field that the library
 *   does not know.
 * - Texts are UTF-8 and end with a zero byte.
 * - Lengths and offsets are bytes, times are nanoseconds.
 * - Every function may be called by any thread at any time, unless its text says otherwise. A process that was forked makes
 *   an engine of its own.
 */
#ifndef STRAIGHTWAY_H
#define STRAIGHTWAY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define SW_API __attribute__((visibility("default")))
#else
#define SW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sw_error sw_error;
typedef struct sw_version sw_version;
typedef struct sw_text sw_text;
typedef struct sw_engine sw_engine;
typedef struct sw_engine_options sw_engine_options;
typedef struct sw_object sw_object;
typedef struct sw_object_options sw_object_options;
typedef struct sw_object_info sw_object_info;
typedef struct sw_region sw_region;
typedef struct sw_region_options sw_region_options;
typedef struct sw_region_info sw_region_info;
typedef struct sw_io_options sw_io_options;
typedef struct sw_part sw_part;
typedef struct sw_completion sw_completion;
typedef struct sw_op sw_op;
typedef struct sw_request sw_request;

/* ---- Status ---------------------------------------------------------------------------------------------------------- */

/** Every function that can fail returns a status. After one that is an error, `sw_error_last` tells more. */

/**
 * What became of a call: `SW_OK`, `SW_PENDING`, or one of the errors, which are positive. A number never changes its
 * meaning; new ones may come.
 */
typedef int32_t sw_status;
enum {
    /** Not over yet; no error. */
    SW_PENDING = -1,
    /** Done. */
    SW_OK = 0,
    /** The caller broke a rule of the interface; nothing was done. */
    SW_ERR_API_MISUSE = 1,
    /** The address does not parse or names a scheme that is not built in. */
    SW_ERR_BAD_URI = 2,
    /** There is nothing at that address. */
    SW_ERR_NOT_FOUND = 3,
    /** The system refuses access. */
    SW_ERR_PERMISSION_DENIED = 4,
    /** A directory or another kind of thing where bytes were expected, or the reverse. */
    SW_ERR_WRONG_KIND = 5,
    /** A range outside the object or the memory. */
    SW_ERR_OUT_OF_RANGE = 6,
    /** A length or a count over a stated limit. */
    SW_ERR_TOO_LARGE = 7,
    /** Memory that no registration covers. */
    SW_ERR_NOT_REGISTERED = 8,
    /** The device named is not there, or its driver is not. */
    SW_ERR_NO_DEVICE = 9,
    /** No route meets the policy; the message has the reasons. */
    SW_ERR_POLICY_UNMET = 10,
    /** The source ended, or gave fewer bytes than it promised. */
    SW_ERR_SHORT_DATA = 11,
    /** The object changed while it was read. */
    SW_ERR_CHANGED = 12,
    /** The medium or the kernel reported an I/O error. */
    SW_ERR_IO = 13,
    /** No space for the bytes. */
    SW_ERR_NO_SPACE = 14,
    /** A limit of the system: locked memory, descriptors, address space, handles. */
    SW_ERR_RESOURCE_LIMIT = 15,
    /** A queue or pool is full and the caller asked not to wait. */
    SW_ERR_BUSY = 16,
    /** The deadline passed. */
    SW_ERR_DEADLINE_EXCEEDED = 17,
    /** The caller cancelled. */
    SW_ERR_CANCELLED = 18,
    /** The engine is closing or closed. */
    SW_ERR_CLOSED = 19,
    /** A checksum or a comparison failed. */
    SW_ERR_CHECKSUM_MISMATCH = 20,
    /** A device, peer or kernel broke its contract; evidence is in the message. */
    SW_ERR_PROTOCOL = 21,
    /** The process was forked after the engine was made; the child must make its own. */
    SW_ERR_FORKED = 22,
    /** A fault of the library itself was contained; the engine refuses further work. */
    SW_ERR_POISONED = 23,
    /** The platform, or this version of the library, lacks what was asked for. */
    SW_ERR_UNSUPPORTED = 24,
    /** Outside data does not follow its format. */
    SW_ERR_BAD_FORMAT = 25,
    /** Somebody else holds it. */
    SW_ERR_IN_USE = 26,
    /** A file with that name exists and was not to be replaced. */
    SW_ERR_ALREADY_EXISTS = 27
};

/** Whether and when trying again can help. */
typedef int32_t sw_retry;
enum {
    /** The same call will fail again. */
    SW_RETRY_NEVER = 0,
    /** At once. */
    SW_RETRY_NOW = 1,
    /** After `retry_after_ns`. */
    SW_RETRY_AFTER = 2,
    /** Only once the old path provably cannot write any more. */
    SW_RETRY_AFTER_FENCE = 3
};

/** What became of a write that failed. */
typedef int32_t sw_outcome;
enum {
    /** It was no write. */
    SW_OUTCOME_NONE = 0,
    /** Every byte is in the object, durable only after a flush. */
    SW_OUTCOME_APPLIED = 1,
    /** No byte reached the object. */
    SW_OUTCOME_NOT_APPLIED = 2,
    /** Some bytes may have; only reading back tells. */
    SW_OUTCOME_UNKNOWN = 3
};

/* ---- Errors ---------------------------------------------------------------------------------------------------------- */

/** Each thread has its own last error, as `errno`. */

/**
 * An error in full. No text is NULL; texts of a thread's last error are valid until a call of the same thread fails
 * again.
 */
struct sw_error {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** The status; `SW_OK` if no call of the thread has failed yet. */
    sw_status status;
    /** Code of the layer below: an errno, a device status; 0 if there is none. */
    int32_t system_code;
    /** Whether trying again can help. */
    sw_retry retry;
    /** What became of a write. */
    sw_outcome outcome;
    /** With `SW_RETRY_AFTER`: nanoseconds to wait. */
    uint64_t retry_after_ns;
    /** First byte of the range that it is about. */
    uint64_t offset;
    /** Bytes of that range; 0 if it is about none. */
    uint64_t length;
    /** Stable name of the status, such as `not_found`. */
    const char *kind;
    /** What was being done, such as `read`. */
    const char *verb;
    /** The object, device or setting that it is about; may be empty. */
    const char *place;
    /** One line with everything, the remedy included. */
    const char *message;
    /** What to do about it; empty if nothing is known. */
    const char *remedy;
    /** Codes of the reasons why routes were refused, with commas between; empty but for `SW_ERR_POLICY_UNMET`. */
    const char *reasons;
};

/** A `sw_error` with its size, and all else zero. */
#define SW_ERROR_INIT { sizeof(sw_error), 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL }

/**
 * Tells the last error of the calling thread: of the last call on it that returned one, or of the operation that a
 * callback is told of. Calls that succeed do not change it.
 */
SW_API sw_status sw_error_last(sw_error *error);

/**
 * The name of a status, such as `SW_ERR_NOT_FOUND`: a text that lives for ever; `SW_ERR_UNKNOWN` for a number that
 * this version does not know.
 */
SW_API const char *sw_status_name(sw_status status);

/* ---- Version and features -------------------------------------------------------------------------------------------- */

/**
 * Number of this interface. It grows when something is added; nothing is taken away while the shared library has its
 * name.
 */
#define SW_ABI_VERSION 1

/** What library it is. */
struct sw_version {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** Of the library. */
    uint32_t major;
    /** Of the library. */
    uint32_t minor;
    /** Of the library. */
    uint32_t patch;
    /** Number of the interface that the library has; `SW_ABI_VERSION` is the one that the program was compiled for. */
    uint32_t abi;
    /** The version of the library as text. */
    const char *text;
};

/** A `sw_version` with its size, and all else zero. */
#define SW_VERSION_INIT { sizeof(sw_version), 0, 0, 0, 0, NULL }

/** Tells the version of the library that runs, which may be newer than the header. */
SW_API sw_status sw_version_get(sw_version *version);

/**
 * Tells whether the library has a feature, by name: 1 or 0, also for a name that it does not know. Names: `callback`,
 * `event-fd`, `vectored`, `submit`, `checksum-crc32c`, `checksum-crc64-nvme`, `plan-json`, `doctor-json`, `log`,
 * `stream`. What the machine can do is another question: `sw_engine_doctor`.
 */
SW_API sw_status sw_feature(const char *name, int32_t *present);

/* ---- Texts ----------------------------------------------------------------------------------------------------------- */

/** Long texts that the library makes, such as JSON. The caller frees them. */

/** `sw_text`: A text. Freed by `sw_text_free`. */

/**
 * Tells where the bytes of a text are, and how many, without the zero byte at their end. They are valid until
 * `sw_text_free`. `length` may be NULL.
 */
SW_API sw_status sw_text_data(sw_text *text, const char **data, size_t *length);

/** Frees a text. */
SW_API sw_status sw_text_free(sw_text *text);

/* ---- Log ------------------------------------------------------------------------------------------------------------- */

/** How much is logged. */
typedef int32_t sw_log_level;
enum {
    /** Nothing. */
    SW_LOG_OFF = 0,
    /** What went wrong and cannot be told otherwise. */
    SW_LOG_ERROR = 1,
    /** What works, and not as well as it could. */
    SW_LOG_WARN = 2,
    /** What happens once or seldom. */
    SW_LOG_INFO = 3,
    /** For finding faults. */
    SW_LOG_DEBUG = 4,
    /** Everything. */
    SW_LOG_TRACE = 5
};

/**
 * Told of a line of the log. `message` is valid during the call. Any thread of the library may call it, several at
 * once; it must not call this library, throw an exception or leave by longjmp.
 */
typedef void (*sw_log)(sw_log_level level, const char *target, const char *message, void *user);

/**
 * Sets who is told of log lines up to `level`, of all engines of the process; `log` NULL: nobody. When it returns, no
 * call of the callback that was set before is running.
 */
SW_API sw_status sw_log_set(sw_log_level level, sw_log log, void *user);

/* ---- Engine ---------------------------------------------------------------------------------------------------------- */

/** `sw_engine`: Moves bytes between objects and memory. Any thread may use it. Closed by `sw_engine_close`. */

/** How an engine is made. */
struct sw_engine_options {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /**
     * Settings as the command line has them, with spaces or commas between, such as `queue_depth=128 gpu=off`. NULL:
     * the defaults. They are: `reactors` (1 to 64), `queue_depth` (1 to 4096), `io_bytes`, `staging_bytes`,
     * `staging=BYTESxCOUNT`, `ops_per_lane`, `keep_bytes`, `sqpoll_ms`, `iopoll=on|off`, `gpu=auto|off`,
     * `io_uring=auto|off`, `nvme=auto|off`, `nvme_backend=auto|type1|iommufd|noiommu`,
     * `nvme_completion=polled|interrupt|hybrid`, `cufile=on-request|prefer|off`, `cufile_library=FILE`. Bytes may be
     * written as `64KiB`.
     */
    const char *settings;
};

/** A `sw_engine_options` with its size, and all else zero. */
#define SW_ENGINE_OPTIONS_INIT { sizeof(sw_engine_options), NULL }

/**
 * Makes an engine. Its threads and queues come with the first operation that needs them. `options` may be NULL.
 *
 * Errors: `SW_ERR_API_MISUSE` for a setting that does not exist or is out of range.
 */
SW_API sw_status sw_engine_open(const sw_engine_options *options, sw_engine **engine);

/**
 * Ends every operation in flight and stops the engine; each operation gets its answer. Callbacks are over when it
 * returns, unless it was called from one. Objects, regions and operations of the engine are still to be closed or
 * freed by their own functions; other calls with them fail with `SW_ERR_CLOSED`. Takes up to 5 seconds for each queue
 * whose device does not answer.
 *
 * Errors: `SW_ERR_PROTOCOL` if a device did not let go of memory in time. The handle is closed all the same, and that
 * memory is kept until the process ends.
 */
SW_API sw_status sw_engine_close(sw_engine *engine);

/**
 * Tells what this machine can do, and what to change: JSON with the fields `health` and `facts` of
 * `straightway.doctor/1`, which `docs/json.md` lists. Freed by `sw_text_free`.
 */
SW_API sw_status sw_engine_doctor(sw_engine *engine, sw_text **json);

/** Tells the live state of an engine, as text for people. Freed by `sw_text_free`. */
SW_API sw_status sw_engine_inspect(sw_engine *engine, sw_text **state);

/* ---- Objects --------------------------------------------------------------------------------------------------------- */

/** Files, block devices, namespaces, stripe sets and parts of them. */

/**
 * `sw_object`: Something with bytes at offsets. Any thread may use it. Closed by `sw_object_close` or
 * `sw_object_commit`.
 */

/** What an object is opened for. */
typedef int32_t sw_mode;
enum {
    /** To read. */
    SW_MODE_READ = 0,
    /** To read and to write in place. */
    SW_MODE_UPDATE = 1
};

/** How an object is opened. */
struct sw_object_options {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** What for. */
    sw_mode mode;
    /** Zero. */
    uint32_t reserved;
};

/** A `sw_object_options` with its size, and all else zero. */
#define SW_OBJECT_OPTIONS_INIT { sizeof(sw_object_options), 0, 0 }

/** What an operation does. */
typedef int32_t sw_verb;
enum {
    /** Bytes from an object into memory. */
    SW_VERB_READ = 1,
    /** Bytes from memory into an object. */
    SW_VERB_WRITE = 2,
    /** Completed writes become durable. */
    SW_VERB_FLUSH = 3
};

/** Facts of an object. */
struct sw_object_info {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** Length in bytes when it was opened. */
    uint64_t length;
    /** Bytes of it in the page cache, as of at most 100 ms ago; `UINT64_MAX` if nobody can tell. */
    uint64_t cached_bytes;
};

/** A `sw_object_info` with its size, and all else zero. */
#define SW_OBJECT_INFO_INIT { sizeof(sw_object_info), 0, 0 }

/**
 * Opens a path or an address, such as `/data/shard-0` or `nvme://0000:3b:00.0/1`. `options` may be NULL: to read.
 *
 * Errors: `SW_ERR_BAD_URI`, `SW_ERR_NOT_FOUND`, `SW_ERR_PERMISSION_DENIED`, `SW_ERR_WRONG_KIND`, and what the system
 * reports.
 */
SW_API sw_status sw_object_open(
    sw_engine *engine,
    const char *uri,
    const sw_object_options *options,
    sw_object **object);

/**
 * Starts a new file of `length` bytes under a temporary name. `sw_object_commit` puts it in place as a whole; closed
 * without that, nothing has changed.
 *
 * Errors: as of `sw_object_open`; `SW_ERR_NO_SPACE` before anything is written.
 */
SW_API sw_status sw_object_create(sw_engine *engine, const char *uri, uint64_t length, sw_object **object);

/**
 * Makes a new object durable under its name, and closes its handle, whatever the answer is. After an error what had
 * the name before still has it. Wait for its writes first.
 *
 * Errors: `SW_ERR_API_MISUSE` for an object that was opened and not created, which stays open; what the system
 * reports.
 */
SW_API sw_status sw_object_commit(sw_object *object);

/** Closes an object. Operations on it go on. */
SW_API sw_status sw_object_close(sw_object *object);

/** Tells facts of an object. */
SW_API sw_status sw_object_info_get(sw_object *object, sw_object_info *info);

/**
 * Tells every route that a transfer could take, with a verdict for each: JSON `straightway.plan/1`, whose fields
 * `docs/json.md` lists. `destination` is where the memory is, as for `sw_region_allocate`; `policy` is as in
 * `sw_io_options`, and may be NULL. A policy that no route meets is no error: `choice` is null then. Freed by
 * `sw_text_free`.
 */
SW_API sw_status sw_object_plan(
    sw_object *object,
    sw_verb verb,
    const char *destination,
    const char *policy,
    sw_text **json);

/* ---- Regions --------------------------------------------------------------------------------------------------------- */

/**
 * Memory that operations use. Operations name a region and a range in it, so that interior addresses need no
 * registration of their own; `sw_region_find` finds the region of an address. Two operations may use the same bytes at
 * the same time; they then race as two system calls do.
 */

/**
 * `sw_region`: Memory that the engine may use. Any thread may use it. Freed by `sw_region_free` or
 * `sw_region_release`.
 */

/**
 * Called when no operation and no device touches the memory of a region any more. It may be called by any thread, also
 * by the one that frees the region, and must not call this library or throw an exception.
 */
typedef void (*sw_release)(void *user);

/** How memory is registered. */
struct sw_region_options {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** Where the memory is: NULL or `host`, or `gpu0`, `gpu1`, and so on, counted as the GPU's driver counts. */
    const char *destination;
    /** Told when the memory is the caller's again; NULL: nobody is. */
    sw_release release;
    /** For `release`. */
    void *user;
};

/** A `sw_region_options` with its size, and all else zero. */
#define SW_REGION_OPTIONS_INIT { sizeof(sw_region_options), NULL, NULL, NULL }

/** Facts of a region. */
struct sw_region_info {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** Address of its first byte. Of host memory the program may follow it; of a GPU it is a device pointer. */
    void *address;
    /** Length in bytes. */
    uint64_t length;
    /** Where it is, such as `host`. Valid until the region is freed. */
    const char *destination;
    /** Whether an operation or a device holds it now: 1 or 0. */
    int32_t in_use;
    /** Zero. */
    uint32_t reserved;
};

/** A `sw_region_info` with its size, and all else zero. */
#define SW_REGION_INFO_INIT { sizeof(sw_region_info), NULL, 0, NULL, 0, 0 }

/**
 * Fresh memory of `length` bytes in `destination`: `host`, `gpu0`, `gpu1` and so on; NULL is `host`. Memory of `bar:`
 * and `p2pmem:` is not given out yet. Its address is congruent to `phase` modulo the page size, so that bytes from
 * file offset `phase` on can land in place. Host memory is zeroed, and on huge pages where the kernel has some.
 *
 * Errors: `SW_ERR_RESOURCE_LIMIT`; `SW_ERR_NO_DEVICE`; `SW_ERR_API_MISUSE` for zero bytes; `SW_ERR_UNSUPPORTED`.
 */
SW_API sw_status sw_region_allocate(
    sw_engine *engine,
    const char *destination,
    uint64_t length,
    uint64_t phase,
    sw_region **region);

/**
 * Makes memory of the caller's known to an engine: `length` bytes from `address`, host memory of this process or
 * memory of a GPU. `options` may be NULL: host memory.
 *
 * The memory must stay mapped, and where it is, until `sw_region_free` returns `SW_OK` or the release callback was
 * called. While an operation uses a range of it, the program must not touch that range (of a write: not change it).
 *
 * Errors: `SW_ERR_API_MISUSE` for a NULL address, zero bytes or a range that wraps; `SW_ERR_NO_DEVICE`;
 * `SW_ERR_NOT_REGISTERED` if the driver does not know device memory there; `SW_ERR_OUT_OF_RANGE` if it leaves its
 * allocation. Whether host memory is mapped cannot be known: using memory that is not may end the process.
 */
SW_API sw_status sw_region_register(
    sw_engine *engine,
    void *address,
    uint64_t length,
    const sw_region_options *options,
    sw_region **region);

/**
 * Frees a region that nothing uses. Memory that the caller registered is the caller's again when it returns `SW_OK`.
 *
 * Errors: `SW_ERR_IN_USE` while an operation or a device holds it; the region stays. That may be so for a while after
 * a deadline or a cancel, until the device has let go: try again later, or call `sw_region_release`.
 */
SW_API sw_status sw_region_free(sw_region *region);

/**
 * Gives a region up: its handle ends at once, its memory when the last operation and device have let go of it. The
 * release callback tells when that is.
 */
SW_API sw_status sw_region_release(sw_region *region);

/** Tells facts of a region. */
SW_API sw_status sw_region_info_get(sw_region *region, sw_region_info *info);

/**
 * Finds the region of an engine that has all of `length` bytes from `address`, and where in it they begin. The handle
 * is the one that is there already; it is not to be freed once more.
 *
 * Errors: `SW_ERR_NOT_REGISTERED`.
 */
SW_API sw_status sw_region_find(
    sw_engine *engine,
    const void *address,
    uint64_t length,
    sw_region **region,
    uint64_t *offset);

/**
 * Copies `length` bytes from byte `offset` of a region, also of device memory, to host memory at `to`. For checks and
 * headers; it is not the fast path.
 */
SW_API sw_status sw_region_get(sw_region *region, uint64_t offset, uint64_t length, void *to);

/**
 * Copies `length` bytes of host memory at `from` to byte `offset` of a region, also of device memory. It is not the
 * fast path.
 */
SW_API sw_status sw_region_put(sw_region *region, uint64_t offset, uint64_t length, const void *from);

/* ---- Transfers that wait --------------------------------------------------------------------------------------------- */

/** Each returns when it is over, and tells the way that its bytes took. */

/** A checksum of the bytes of an operation. */
typedef int32_t sw_checksum;
enum {
    /** None. */
    SW_CHECKSUM_NONE = 0,
    /** CRC-32C, in the low 32 bits. */
    SW_CHECKSUM_CRC32C = 1,
    /** CRC-64/NVME. */
    SW_CHECKSUM_CRC64_NVME = 2
};

/** Bits of `sw_io_options.flags`. */
typedef uint32_t sw_io_flags;
enum {
    /** Before a read, host memory is filled with the byte `poison`, so that bytes that never arrive show. */
    SW_IO_POISON = 1,
    /** A flush makes all metadata durable too. */
    SW_IO_ALL_METADATA = 2,
    /** When the operation is over, 1 is added to the eventfd `event_fd`. Only for operations that are started. */
    SW_IO_EVENT_FD = 4,
    /**
     * The operation takes its place in the stream `stream` of the GPU `stream_gpu`: it begins when everything that the
     * stream holds now is done, and what is submitted to the stream after this call waits until it is over, well or
     * not. Only for operations that are started. The stream is of the device's primary context, as those of the CUDA
     * runtime are, and lives until the operation is over. Operations in one stream come one after the other; a
     * vectored one is one. A deadline counts from when it begins.
     */
    SW_IO_STREAM = 8
};

/** Parts of a vectored operation at most. */
#define SW_PARTS_MAX 65536

/**
 * Told of the end of an operation, once, with `sw_io_options.user`; `op` is NULL for an operation that was started
 * without a place for its handle. `sw_error_last` tells more of an error. Callbacks of one engine run one after the
 * other, by a thread of the library's: one that takes long delays the others. A callback may call every function; it
 * must not throw an exception or leave by longjmp.
 */
typedef void (*sw_callback)(sw_op *op, const sw_completion *completion, void *user);

/** How an operation is done. All zeros but for the size are the defaults. */
struct sw_io_options {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /**
     * Which routes are accepted: `any`, `prefer=ROUTE`, `require=ROUTE` or `require-core=ROUTE`, with a route such as
     * `dma`, `staged` or `io_uring/dma`. NULL: any.
     */
    const char *policy;
    /**
     * Nanoseconds from the call to when the caller's wait ends; 0: never. A device may touch the memory longer:
     * `sw_region_free` tells.
     */
    uint64_t deadline_ns;
    /** Which checksum to compute. */
    sw_checksum checksum;
    /** `SW_IO_` bits. */
    sw_io_flags flags;
    /** With `SW_IO_POISON`: a byte, 0 to 255. */
    uint32_t poison;
    /** With `SW_IO_EVENT_FD`: an eventfd(2). The library works on a duplicate of it. */
    int32_t event_fd;
    /** With `SW_IO_STREAM`: a `CUstream` or `cudaStream_t`; NULL is the legacy default stream. */
    void *stream;
    /** With `SW_IO_STREAM`: whose it is, counted as the driver counts. */
    uint32_t stream_gpu;
    /** Zero. */
    uint32_t reserved;
    /** Told when the operation is over; NULL: nobody is. Only for operations that are started. */
    sw_callback callback;
    /** For the callback; comes back in `sw_completion.user`. */
    void *user;
};

/** A `sw_io_options` with its size, and all else zero. */
#define SW_IO_OPTIONS_INIT { sizeof(sw_io_options), NULL, 0, 0, 0, 0, 0, NULL, 0, 0, NULL, NULL }

/**
 * A part of a vectored operation: `length` bytes at `offset` of the object, and at `region_offset` of the region. All
 * parts of one operation are in one kind of memory.
 */
struct sw_part {
    /** Bytes from the start of the object. */
    uint64_t offset;
    /** The region. */
    sw_region *region;
    /** Bytes from the start of the region. */
    uint64_t region_offset;
    /** Bytes. */
    uint64_t length;
};

/** Who wrote the final bytes. */
typedef int32_t sw_landing;
enum {
    /** Nobody: no byte moved. */
    SW_LANDING_NONE = 0,
    /** A device wrote or read the memory itself. This and nothing else is direct. */
    SW_LANDING_DMA = 1,
    /** The kernel copied once between its page cache and the memory. */
    SW_LANDING_KERNEL_COPY = 2,
    /** The bytes went through a slab of the engine's. */
    SW_LANDING_STAGED = 3
};

/** The end of an operation, with the way that its bytes took. Its texts live for ever. */
struct sw_completion {
    /** Size of this structure in bytes, set by the caller. */
    size_t size;
    /** What became of it. */
    sw_status status;
    /** The landing of most of its bytes. */
    sw_landing landing;
    /** Bytes moved: all that were asked for, or 0 with an error. */
    uint64_t bytes;
    /** Who moved them between object and memory, such as `io_uring`. */
    const char *transport;
    /** Code of why the least direct of its bytes went no better way, such as `BEST`. `docs/paths.md` lists them. */
    const char *reason;
    /** The same for people. */
    const char *reason_text;
    /** Bytes that a device wrote or read in place. */
    uint64_t bytes_dma;
    /** Bytes that the kernel copied once. */
    uint64_t bytes_kernel_copy;
    /** Bytes through a slab or bounce block of the engine's. */
    uint64_t bytes_staged;
    /** Of all bytes, those that passed through memory of the engine's. */
    uint64_t bounced;
    /** Bytes that a CPU copied, once per copy. */
    uint64_t cpu_copied;
    /** The checksum that was asked for, if `has_checksum`. */
    uint64_t checksum;
    /** 1 if there is a checksum: it was asked for, the operation succeeded, and the CPU saw its bytes. */
    int32_t has_checksum;
    /** Zero. */
    uint32_t reserved;
    /** Nanoseconds until its first part was with the transport. */
    uint64_t queued_ns;
    /** Nanoseconds from then until the last part was back. */
    uint64_t moving_ns;
    /** `sw_io_options.user`. */
    void *user;
};

/** A `sw_completion` with its size, and all else zero. */
#define SW_COMPLETION_INIT { sizeof(sw_completion), 0, 0, 0, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL }

/**
 * Reads `length` bytes from byte `offset` of an object to byte `region_offset` of a region. `options` and `completion`
 * may be NULL. With an error of the transfer the completion is filled too; with one of the arguments it is left alone.
 *
 * Errors: `SW_ERR_OUT_OF_RANGE` past the end of the object or the region; `SW_ERR_POLICY_UNMET`;
 * `SW_ERR_DEADLINE_EXCEEDED`; what the transport reports.
 */
SW_API sw_status sw_read(
    sw_object *object,
    uint64_t offset,
    sw_region *region,
    uint64_t region_offset,
    uint64_t length,
    const sw_io_options *options,
    sw_completion *completion);

/**
 * Writes `length` bytes from byte `region_offset` of a region to byte `offset` of an object that was opened for update
 * or created. As `sw_read` otherwise; after an error `sw_error.outcome` tells what became of the bytes.
 */
SW_API sw_status sw_write(
    sw_object *object,
    uint64_t offset,
    sw_region *region,
    uint64_t region_offset,
    uint64_t length,
    const sw_io_options *options,
    sw_completion *completion);

/** Reads `count` parts (1 to `SW_PARTS_MAX`), each from its own offset: one operation, one completion. */
SW_API sw_status sw_readv(
    sw_object *object,
    const sw_part *parts,
    size_t count,
    const sw_io_options *options,
    sw_completion *completion);

/** Writes `count` parts (1 to `SW_PARTS_MAX`), each at its own offset: one operation, one completion. */
SW_API sw_status sw_writev(
    sw_object *object,
    const sw_part *parts,
    size_t count,
    const sw_io_options *options,
    sw_completion *completion);

/** Makes completed writes durable. */
SW_API sw_status sw_flush(sw_object *object, const sw_io_options *options, sw_completion *completion);

/* ---- Transfers that are started -------------------------------------------------------------------------------------- */

/**
 * An operation that is started goes on by itself. Its end is found by asking (`sw_op_poll`), by waiting (`sw_op_wait`,
 * `sw_op_wait_many`), by a callback or by an eventfd, in any combination.
 */

/** `sw_op`: An operation that was started. Any thread may use it. Freed by `sw_op_free`. */

/** An operation to start. */
struct sw_request {
    /** Size of this structure in bytes, set by the caller; the same for all of an array. */
    size_t size;
    /** The object. */
    sw_object *object;
    /** What to do. */
    sw_verb verb;
    /** Zero. */
    uint32_t reserved;
    /** Bytes from the start of the object. */
    uint64_t offset;
    /** The region; NULL for a flush, and for one with parts. */
    sw_region *region;
    /** Bytes from the start of the region. */
    uint64_t region_offset;
    /** Bytes. */
    uint64_t length;
    /** Parts of a vectored operation, or NULL. */
    const sw_part *parts;
    /** How many parts. */
    size_t part_count;
    /** How; NULL: the defaults. */
    const sw_io_options *options;
};

/** A `sw_request` with its size, and all else zero. */
#define SW_REQUEST_INIT { sizeof(sw_request), NULL, 0, 0, 0, NULL, 0, 0, NULL, 0, NULL }

/** No limit of time. */
#define SW_FOREVER UINT64_MAX

/** Operations of one `sw_submit` or `sw_op_wait_many` at most. */
#define SW_OPS_MAX 65536

/**
 * Starts a read and returns at once; otherwise as `sw_read`. `op` may be NULL if there is a callback: the operation is
 * freed after it then. If all queues are full the operation waits for a place, and moves when somebody asks for it.
 */
SW_API sw_status sw_read_start(
    sw_object *object,
    uint64_t offset,
    sw_region *region,
    uint64_t region_offset,
    uint64_t length,
    const sw_io_options *options,
    sw_op **op);

/** Starts a write; as `sw_read_start`. */
SW_API sw_status sw_write_start(
    sw_object *object,
    uint64_t offset,
    sw_region *region,
    uint64_t region_offset,
    uint64_t length,
    const sw_io_options *options,
    sw_op **op);

/**
 * Starts `count` operations together (1 to `SW_OPS_MAX`), of any objects of any engines. `ops` is an array of as many
 * handles; NULL if every request has a callback. They may begin and end in any order. All requests are checked before
 * the first begins: after an error none has.
 */
SW_API sw_status sw_submit(const sw_request *requests, size_t count, sw_op **ops);

/**
 * Looks whether an operation is over. If it is: the completion is filled (unless it is NULL), and its status is
 * returned. Otherwise `SW_PENDING`. It may be asked again and again.
 */
SW_API sw_status sw_op_poll(sw_op *op, sw_completion *completion);

/**
 * Waits for an operation for at most `timeout_ns` nanoseconds; `SW_FOREVER`: as long as it takes. As `sw_op_poll`
 * otherwise.
 */
SW_API sw_status sw_op_wait(sw_op *op, uint64_t timeout_ns, sw_completion *completion);

/**
 * Waits until at least `min` of `count` operations are over (`min` up to `count`; `count` up to `SW_OPS_MAX`), for at
 * most `timeout_ns` nanoseconds. `over` tells how many are. `SW_PENDING` if there are fewer than `min`. Ask each with
 * `sw_op_poll` then.
 */
SW_API sw_status sw_op_wait_many(sw_op *const *ops, size_t count, size_t min, uint64_t timeout_ns, size_t *over);

/**
 * Asks for an early end of an operation. It still comes to an end of its own: `SW_ERR_CANCELLED`, or what it came to
 * first.
 */
SW_API sw_status sw_op_cancel(sw_op *op);

/**
 * Frees an operation. One that is not over is ended early, and nobody learns of its end; its memory is held until no
 * device touches it any more. Whoever waits for it is told `SW_ERR_CANCELLED`. Its callback is not running when this
 * returns, unless this was called from a callback.
 */
SW_API sw_status sw_op_free(sw_op *op);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* STRAIGHTWAY_H */
