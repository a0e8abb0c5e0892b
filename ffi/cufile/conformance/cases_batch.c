/* SPDX-License-Identifier: Apache-2.0 */
/* Batches. */
#include "suite.h"

#define LENGTH (2 * MIB + 777)
#define EVENTS_MAX 256
/* A batch that is not done by then never will be. */
#define PATIENCE_MS 4000

static CUfileIOParams_t operation(CUfileHandle_t handle, CUfileOpcode_t opcode, void *memory, size_t size, off_t from, uintptr_t cookie) {
    CUfileIOParams_t params;
    memset(&params, 0, sizeof params);
    params.mode = CUFILE_BATCH;
    params.u.batch.devPtr_base = memory;
    params.u.batch.file_offset = from;
    params.u.batch.size = size;
    params.fh = handle;
    params.opcode = opcode;
    params.cookie = (void *)cookie;
    return params;
}

static CUfileIOParams_t reading(CUfileHandle_t handle, void *memory, size_t size, off_t from, uintptr_t cookie) {
    return operation(handle, CUFILE_READ, memory, size, from, cookie);
}

static CUfileBatchHandle_t batch_of(unsigned nr) {
    CUfileBatchHandle_t batch = NULL;
    CUfileError_t got = cu.BatchIOSetUp(&batch, nr);
    if (got.err) give_up("a batch of %u was refused: %d", nr, (int)got.err);
    return batch;
}

/* Collects that many events; how many came. */
static unsigned collect(CUfileBatchHandle_t batch, unsigned wanted, CUfileIOEvents_t *events) {
    uint64_t end = now_ms() + PATIENCE_MS;
    unsigned done = 0;
    while (done < wanted && now_ms() < end) {
        unsigned nr = wanted - done;
        struct timespec timeout = {0, 100000000};
        CUfileError_t got = cu.BatchIOGetStatus(batch, nr, &nr, events + done, &timeout);
        if (got.err) {
            complain("status: %d", (int)got.err);
            break;
        }
        done += nr;
    }
    return done;
}

static CUfileIOEvents_t *event_of(CUfileIOEvents_t *events, unsigned count, uintptr_t cookie) {
    for (unsigned index = 0; index < count; index++) {
        if (events[index].cookie == (void *)cookie) return &events[index];
    }
    give_up("no event has cookie %lu", (unsigned long)cookie);
}

static void is_event(const char *what, const CUfileIOEvents_t *event, int status, ssize_t bytes) {
    answer(what, "status %d, %zd", (int)event->status, (ssize_t)event->ret);
    if ((int)event->status != status || (ssize_t)event->ret != bytes) {
        complain("%s: status %d, %zd; wanted status %d, %zd", what, (int)event->status, (ssize_t)event->ret, status, bytes);
    }
}

/* Submits one and waits for it; a refusal of the submission is an answer too. NULL then. */
static CUfileIOEvents_t *one(const char *what, CUfileIOParams_t params) {
    static CUfileIOEvents_t events[1];
    CUfileBatchHandle_t batch = batch_of(1);
    CUfileError_t got = cu.BatchIOSubmit(batch, 1, &params, 0);
    if (got.err) {
        answer(what, "refused with %d", (int)got.err);
        cu.BatchIODestroy(batch);
        return NULL;
    }
    if (collect(batch, 1, events) != 1) give_up("%s: no event in %d ms", what, PATIENCE_MS);
    cu.BatchIODestroy(batch);
    return events;
}

static void setup_sizes(void) {
    CUfileBatchHandle_t batch = NULL;
    must_open();
    is_error("1", cu.BatchIOSetUp(&batch, 1), 0);
    cu.BatchIODestroy(batch);
    is_error("128", cu.BatchIOSetUp(&batch, 128), 0);
    cu.BatchIODestroy(batch);
}

static void setup_too_many(void) {
    CUfileBatchHandle_t batch = NULL;
    must_open();
    is_refused("129", cu.BatchIOSetUp(&batch, 129));
    is_refused("257", cu.BatchIOSetUp(&batch, 257));
    is_refused("2^32 - 1", cu.BatchIOSetUp(&batch, UINT32_MAX));
}

static void setup_none(void) {
    CUfileBatchHandle_t batch = NULL;
    must_open();
    is_refused("0", cu.BatchIOSetUp(&batch, 0));
    is_refused("NULL", cu.BatchIOSetUp(NULL, 1));
}

static void setup_unopened(void) {
    CUfileBatchHandle_t batch = NULL;
    CUfileError_t got = cu.BatchIOSetUp(&batch, 4);
    answer("set up", "%d", (int)got.err);
    is_true("a batch only on success", (got.err == CU_FILE_SUCCESS) == (batch != NULL));
}

static void reads(int flags) {
    enum { COUNT = 16 };
    CUfileIOParams_t params[COUNT];
    CUfileIOEvents_t events[COUNT];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, flags);
    unsigned char *memory = memory_new(COUNT * 64 * KIB);
    CUfileBatchHandle_t batch = batch_of(COUNT);
    for (unsigned index = 0; index < COUNT; index++) {
        params[index] = reading(handle, memory + index * 64 * KIB, 64 * KIB, (off_t)(index * 64 * KIB), index + 1);
    }
    is_error("submit", cu.BatchIOSubmit(batch, COUNT, params, 0), 0);
    unsigned count = collect(batch, COUNT, events);
    is_number("events", count, COUNT);
    int wrong = 0;
    for (unsigned index = 0; index < COUNT && count == COUNT; index++) {
        CUfileIOEvents_t *event = event_of(events, count, index + 1);
        wrong += event->status != CUFILE_COMPLETE || event->ret != 64 * KIB;
        wrong += !memory_is_file(memory + index * 64 * KIB, index * 64 * KIB, 64 * KIB);
    }
    is_number("bad ones", wrong, 0);
    cu.BatchIODestroy(batch);
}

static void reads_direct(void) { reads(O_DIRECT); }
static void reads_buffered(void) { reads(0); }

static void registered(int flags) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, flags);
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    CUfileIOParams_t params = reading(handle, memory, 64 * KIB, (off_t)PAGE, 1);
    params.u.batch.devPtr_offset = (off_t)(3 * PAGE);
    CUfileIOEvents_t *event = one("read", params);
    if (!event) give_up("refused");
    is_event("read", event, CUFILE_COMPLETE, 64 * KIB);
    is_true("bytes are right", memory_is_file(memory + 3 * PAGE, PAGE, 64 * KIB));
    is_true("nothing before", memory_is_poison(memory, 3 * PAGE));
}

static void registered_direct(void) { registered(O_DIRECT); }
static void registered_buffered(void) { registered(0); }

static void writes(void) {
    enum { COUNT = 8 };
    CUfileIOParams_t params[COUNT];
    CUfileIOEvents_t events[COUNT];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(COUNT * PAGE);
    memory_fill(memory, 999, COUNT * PAGE);
    CUfileBatchHandle_t batch = batch_of(COUNT);
    for (unsigned index = 0; index < COUNT; index++) {
        params[index] = operation(handle, CUFILE_WRITE, memory + index * PAGE, PAGE, (off_t)(index * PAGE), index + 1);
    }
    is_error("submit", cu.BatchIOSubmit(batch, COUNT, params, 0), 0);
    is_number("events", collect(batch, COUNT, events), COUNT);
    static unsigned char bytes[COUNT * PAGE];
    for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = byte_at(999 + at);
    is_true("the file has the bytes", file_has("file", 0, bytes, sizeof bytes));
    cu.BatchIODestroy(batch);
}

static void mixed(void) {
    CUfileIOEvents_t events[2];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT), other = open_file("other", LENGTH, 0);
    unsigned char *in = memory_new(PAGE), *out = memory_new(PAGE);
    memory_fill(out, 999, PAGE);
    CUfileIOParams_t params[2] = {reading(handle, in, PAGE, (off_t)PAGE, 1),
                                  operation(other, CUFILE_WRITE, out, PAGE, 0, 2)};
    CUfileBatchHandle_t batch = batch_of(2);
    is_error("submit", cu.BatchIOSubmit(batch, 2, params, 0), 0);
    is_number("events", collect(batch, 2, events), 2);
    is_event("read", event_of(events, 2, 1), CUFILE_COMPLETE, PAGE);
    is_event("write", event_of(events, 2, 2), CUFILE_COMPLETE, PAGE);
    is_true("bytes are right", memory_is_file(in, PAGE, PAGE));
}

static void odd(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(128 * KIB);
    CUfileIOEvents_t *event = one("read", reading(handle, memory + 3, 70001, 12345, 1));
    if (!event) give_up("refused");
    is_event("read", event, CUFILE_COMPLETE, 70001);
    is_true("bytes are right", memory_is_file(memory + 3, 12345, 70001));
    is_true("nothing around", memory_is_poison(memory, 3) && memory_is_poison(memory + 3 + 70001, PAGE));
}

static void ends(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE + 100, 0);
    unsigned char *memory = memory_new(2 * PAGE);
    CUfileIOEvents_t *event = one("across the end", reading(handle, memory, 2 * PAGE, 0, 1));
    if (event) is_event("across the end", event, CUFILE_COMPLETE, (ssize_t)PAGE + 100);
    event = one("past the end", reading(handle, memory, PAGE, (off_t)(10 * PAGE), 1));
    if (event) is_event("past the end", event, CUFILE_COMPLETE, 0);
}

static void nothing(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    CUfileIOEvents_t *event = one("0 bytes", reading(handle, memory_new(PAGE), 0, 0, 1));
    if (event) is_true("no bytes", (ssize_t)event->ret <= 0);
}

/* Refused, or told as an event that failed: what a batch may never do is to tell such an operation as done. */
static void is_not_done(const char *what, CUfileIOParams_t params) {
    CUfileIOEvents_t *event = one(what, params);
    if (!event) return;
    answer(what, "status %d, %zd", (int)event->status, (ssize_t)event->ret);
    if (event->status == CUFILE_COMPLETE && (ssize_t)event->ret >= 0) complain("%s: told as done", what);
}

static void bad_operations(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    is_not_done("negative offset", reading(handle, memory, PAGE, -1, 1));
    is_not_done("no such operation", operation(handle, (CUfileOpcode_t)7, memory, PAGE, 0, 1));
    is_not_done("NULL handle", reading(NULL, memory, PAGE, 0, 1));
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void null_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    is_not_done("NULL memory", reading(handle, NULL, PAGE, 0, 1));
}

static void bad_mode(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOParams_t params = reading(handle, memory_new(PAGE), PAGE, 0, 1);
    params.mode = (CUfileBatchMode_t)9;
    is_not_done("mode 9", params);
}

static void dead_handle(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    cu.HandleDeregister(handle);
    CUfileIOParams_t params = reading(handle, memory_new(PAGE), PAGE, 0, 1);
    CUfileBatchHandle_t batch = batch_of(1);
    is_error("submit", cu.BatchIOSubmit(batch, 1, &params, 0), CU_FILE_HANDLE_NOT_REGISTERED);
}

static void submit_bad(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    CUfileIOParams_t params[3];
    for (unsigned index = 0; index < 3; index++) params[index] = reading(handle, memory, PAGE, 0, index + 1);
    CUfileBatchHandle_t batch = batch_of(2);
    is_refused("more than the batch has", cu.BatchIOSubmit(batch, 3, params, 0));
    is_refused("none", cu.BatchIOSubmit(batch, 0, params, 0));
    is_refused("NULL batch", cu.BatchIOSubmit(NULL, 1, params, 0));
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void submit_null(void) {
    must_open();
    CUfileBatchHandle_t batch = batch_of(2);
    is_refused("NULL array", cu.BatchIOSubmit(batch, 1, NULL, 0));
}

static void submit_again(void) {
    CUfileIOEvents_t events[4];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(4 * PAGE);
    CUfileBatchHandle_t batch = batch_of(4);
    for (unsigned turn = 0; turn < 5; turn++) {
        CUfileIOParams_t params[4];
        for (unsigned index = 0; index < 4; index++) {
            params[index] = reading(handle, memory + index * PAGE, PAGE, (off_t)((turn + index) * PAGE), index + 1);
        }
        is_error("submit", cu.BatchIOSubmit(batch, 4, params, 0), 0);
        is_number("events", collect(batch, 4, events), 4);
    }
    is_true("bytes are right", memory_is_file(memory, 4 * PAGE, 4 * PAGE));
}

static void submit_piecewise(void) {
    CUfileIOEvents_t events[4];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(4 * PAGE);
    CUfileBatchHandle_t batch = batch_of(4);
    for (unsigned index = 0; index < 4; index++) {
        CUfileIOParams_t params = reading(handle, memory + index * PAGE, PAGE, (off_t)(index * PAGE), index + 1);
        is_error("submit", cu.BatchIOSubmit(batch, 1, &params, 0), 0);
    }
    is_number("events", collect(batch, 4, events), 4);
    is_true("bytes are right", memory_is_file(memory, 0, 4 * PAGE));
}

static void status_bad(void) {
    CUfileIOEvents_t events[4];
    unsigned nr = 2;
    struct timespec timeout = {0, 0};
    must_open();
    CUfileBatchHandle_t batch = batch_of(4);
    is_error("more wanted than there is room", cu.BatchIOGetStatus(batch, 3, &nr, events, &timeout), CU_FILE_INVALID_VALUE);
    is_refused("no place for the number", cu.BatchIOGetStatus(batch, 0, NULL, events, &timeout));
    nr = 2;
    is_refused("no batch", cu.BatchIOGetStatus(NULL, 0, &nr, events, &timeout));
}

static void status_no_events(void) {
    unsigned nr = 2;
    struct timespec timeout = {0, 0};
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOParams_t params = reading(handle, memory_new(PAGE), PAGE, 0, 1);
    CUfileBatchHandle_t batch = batch_of(4);
    is_error("submit", cu.BatchIOSubmit(batch, 1, &params, 0), 0);
    usleep(100000);
    is_refused("no place for events", cu.BatchIOGetStatus(batch, 1, &nr, NULL, &timeout));
}

static void status_room(void) {
    CUfileIOEvents_t events[8];
    CUfileIOParams_t params[8];
    unsigned seen = 0, done = 0;
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(8 * PAGE);
    CUfileBatchHandle_t batch = batch_of(8);
    for (unsigned index = 0; index < 8; index++) params[index] = reading(handle, memory, PAGE, 0, index + 1);
    is_error("submit", cu.BatchIOSubmit(batch, 8, params, 0), 0);
    for (uint64_t end = now_ms() + PATIENCE_MS; done < 8 && now_ms() < end;) {
        unsigned nr = 3;
        CUfileError_t got = cu.BatchIOGetStatus(batch, 1, &nr, events, NULL);
        if (got.err) give_up("status: %d", (int)got.err);
        if (nr > 3) give_up("%u events where there is room for 3", nr);
        for (unsigned index = 0; index < nr; index++) seen |= 1u << (uintptr_t)events[index].cookie;
        done += nr;
    }
    is_number("events", done, 8);
    is_true("each once", seen == 0x1FE);
}

/* Of a batch in which nothing was submitted. */
static void status_of_nothing(unsigned min_nr) {
    CUfileIOEvents_t events[4];
    unsigned nr = 4;
    struct timespec timeout = {0, 50000000};
    must_open();
    CUfileBatchHandle_t batch = batch_of(4);
    uint64_t began = now_ms();
    CUfileError_t got = cu.BatchIOGetStatus(batch, min_nr, &nr, events, &timeout);
    is_true("comes back", now_ms() - began < 5000);
    is_true("no events", got.err != 0 || nr == 0);
}

static void status_empty(void) { status_of_nothing(0); }

static void status_empty_waits(void) { status_of_nothing(1); }

static void status_no_timeout(void) {
    CUfileIOEvents_t events[4];
    CUfileIOParams_t params[4];
    unsigned nr = 4;
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(4 * PAGE);
    CUfileBatchHandle_t batch = batch_of(4);
    for (unsigned index = 0; index < 4; index++) params[index] = reading(handle, memory, PAGE, 0, index + 1);
    is_error("submit", cu.BatchIOSubmit(batch, 4, params, 0), 0);
    is_error("status", cu.BatchIOGetStatus(batch, 4, &nr, events, NULL), 0);
    is_number("events", nr, 4);
}

static void status_again(void) {
    CUfileIOEvents_t events[4];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    CUfileIOParams_t params = reading(handle, memory_new(PAGE), PAGE, 0, 1);
    CUfileBatchHandle_t batch = batch_of(4);
    is_error("submit", cu.BatchIOSubmit(batch, 1, &params, 0), 0);
    is_number("events", collect(batch, 1, events), 1);
    unsigned nr = 4;
    struct timespec timeout = {0, 0};
    CUfileError_t got = cu.BatchIOGetStatus(batch, 0, &nr, events, &timeout);
    is_true("no event twice", got.err != 0 || nr == 0);
}

static void destroyed(void) {
    CUfileIOEvents_t events[4];
    unsigned nr = 4;
    struct timespec timeout = {0, 0};
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOParams_t params = reading(handle, memory_new(PAGE), PAGE, 0, 1);
    CUfileBatchHandle_t batch = batch_of(4);
    cu.BatchIODestroy(batch);
    is_refused("submit", cu.BatchIOSubmit(batch, 1, &params, 0));
    is_refused("status", cu.BatchIOGetStatus(batch, 0, &nr, events, &timeout));
}

static void destroy_twice(void) {
    must_open();
    CUfileBatchHandle_t batch = batch_of(4);
    cu.BatchIODestroy(batch);
    cu.BatchIODestroy(batch);
    cu.BatchIODestroy(NULL);
    is_number("use count", cu.UseCount(), 1);
}

static void cancel_idle(void) {
    must_open();
    CUfileBatchHandle_t batch = batch_of(4);
    is_error("nothing in it", cu.BatchIOCancel(batch), 0);
    is_number("use count", cu.UseCount(), 1);
}

static void cancel_null(void) {
    must_open();
    CUfileError_t got = cu.BatchIOCancel(NULL);
    answer("NULL", "%d", (int)got.err);
}

static void cancel_running(void) {
    enum { COUNT = 64 };
    static CUfileIOParams_t params[COUNT];
    static CUfileIOEvents_t events[COUNT];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(COUNT * 64 * KIB);
    CUfileBatchHandle_t batch = batch_of(COUNT);
    for (unsigned index = 0; index < COUNT; index++) {
        params[index] = reading(handle, memory + index * 64 * KIB, 64 * KIB, (off_t)(index % 16 * 64 * KIB), index + 1);
    }
    CUfileError_t got = cu.BatchIOSubmit(batch, COUNT, params, 0);
    if (got.err) give_up("submit: %d", (int)got.err);
    got = cu.BatchIOCancel(batch);
    is_true("success, or 5042", got.err == 0 || got.err == CU_FILE_INTERNAL_BATCH_CANCEL_ERROR);
    int wrong = 0;
    unsigned count = 0;
    for (uint64_t end = now_ms() + 2000; count < COUNT && now_ms() < end;) {
        unsigned nr = COUNT - count;
        struct timespec timeout = {0, 10000000};
        if (cu.BatchIOGetStatus(batch, 0, &nr, events + count, &timeout).err) break;
        count += nr;
    }
    for (unsigned index = 0; index < count; index++) {
        bool done = events[index].status == CUFILE_COMPLETE && events[index].ret == 64 * KIB;
        wrong += !done && events[index].status != CUFILE_CANCELED;
    }
    is_number("events that are neither done nor cancelled", wrong, 0);
    cu.BatchIODestroy(batch);
}

static void destroy_running(void) {
    enum { COUNT = 64 };
    static CUfileIOParams_t params[COUNT];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(COUNT * 64 * KIB);
    for (int turn = 0; turn < 5; turn++) {
        CUfileBatchHandle_t batch = batch_of(COUNT);
        for (unsigned index = 0; index < COUNT; index++) {
            params[index] = reading(handle, memory + index * 64 * KIB, 64 * KIB, (off_t)(index % 16 * 64 * KIB), index + 1);
        }
        CUfileError_t got = cu.BatchIOSubmit(batch, COUNT, params, 0);
        if (got.err) give_up("submit: %d", (int)got.err);
        cu.BatchIODestroy(batch);
    }
    ssize_t read = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_bytes("a read afterwards", read, errno, (ssize_t)PAGE);
}

static void several(void) {
    enum { COUNT = 8 };
    CUfileBatchHandle_t batches[COUNT];
    CUfileIOEvents_t events[4];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(COUNT * PAGE);
    for (unsigned index = 0; index < COUNT; index++) {
        batches[index] = batch_of(4);
        CUfileIOParams_t params = reading(handle, memory + index * PAGE, PAGE, (off_t)(index * PAGE), index + 1);
        is_error("submit", cu.BatchIOSubmit(batches[index], 1, &params, 0), 0);
    }
    for (unsigned index = COUNT; index-- > 0;) {
        if (collect(batches[index], 1, events) != 1 || events[0].cookie != (void *)(uintptr_t)(index + 1)) {
            complain("batch %u: not its own event", index);
        }
        cu.BatchIODestroy(batches[index]);
    }
    is_true("bytes are right", memory_is_file(memory, 0, COUNT * PAGE));
}

static void full(void) {
    enum { COUNT = 128 };
    static CUfileIOParams_t params[COUNT];
    static CUfileIOEvents_t events[COUNT];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(COUNT * PAGE);
    CUfileBatchHandle_t batch = batch_of(COUNT);
    for (unsigned turn = 0; turn < 3; turn++) {
        for (unsigned index = 0; index < COUNT; index++) {
            params[index] = reading(handle, memory + index * PAGE, PAGE, (off_t)(index * PAGE), index + 1);
        }
        is_error("submit", cu.BatchIOSubmit(batch, COUNT, params, 0), 0);
        is_number("events", collect(batch, COUNT, events), COUNT);
    }
    is_true("bytes are right", memory_is_file(memory, 0, COUNT * PAGE));
}

#define SETUP "documented: cufile.h, cuFileBatchIOSetUp"
#define SUBMIT "documented: API reference, cuFileBatchIOSubmit"
#define STATUS "documented: API reference, cuFileBatchIOGetStatus"
static const struct test_case cases[] = {
    {"batch.setup", SETUP, "batches of 1 and of io_batchsize (128)", setup_sizes, HOST_ONLY, LOADED},
    {"batch.setup_too_many", "documented: API reference, io_batchsize", "more than io_batchsize are refused", setup_too_many, HOST_ONLY, LOADED},
    {"batch.setup_none", SETUP, "a batch of 0 and NULL are refused", setup_none, HOST_ONLY, LOADED},
    {"batch.setup_unopened", SETUP, "before open: a batch or a refusal", setup_unopened, HOST_ONLY, LOADED},
    {"batch.reads_direct", SUBMIT, "16 reads of a file with O_DIRECT", reads_direct, ANY_MEMORY, LOADED},
    {"batch.reads_buffered", SUBMIT, "16 reads of a file without it", reads_buffered, ANY_MEMORY, LOADED},
    {"batch.registered_direct", SUBMIT, "an offset into registered memory, O_DIRECT", registered_direct, ANY_MEMORY, LOADED},
    {"batch.registered_buffered", SUBMIT, "an offset into registered memory, without it", registered_buffered, ANY_MEMORY, LOADED},
    {"batch.writes", SUBMIT, "8 writes", writes, ANY_MEMORY, LOADED},
    {"batch.mixed", SUBMIT, "reads and writes of several files", mixed, ANY_MEMORY, LOADED},
    {"batch.odd", SUBMIT, "any offset and size; nothing around is touched", odd, ANY_MEMORY, LOADED},
    {"batch.ends", STATUS, "the bytes up to the end of the file; 0 past it", ends, ANY_MEMORY, LOADED},
    {"batch.nothing", STATUS, "0 bytes", nothing, HOST_ONLY, LOADED},
    {"batch.bad_operations", STATUS, "what cannot be done is refused, or told as not done", bad_operations, HOST_ONLY, LOADED},
    {"batch.null_memory", STATUS, "the same without memory", null_memory, HOST_ONLY, LOADED},
    {"batch.bad_mode", "documented: cufile.h, CUfileBatchMode_t", "the same with a mode that does not exist", bad_mode, HOST_ONLY, LOADED},
    {"batch.dead_handle", "observed: 1.20", "5027 for a handle that was deregistered", dead_handle, HOST_ONLY, LOADED},
    {"batch.submit_bad", SUBMIT, "more than the batch has, none, and NULL are refused", submit_bad, HOST_ONLY, LOADED},
    {"batch.submit_null", SUBMIT, "no array is refused", submit_null, HOST_ONLY, LOADED},
    {"batch.submit_again", SUBMIT, "a batch is used again when all of it is done", submit_again, ANY_MEMORY, LOADED},
    {"batch.submit_piecewise", SUBMIT, "operations may be submitted one by one", submit_piecewise, ANY_MEMORY, LOADED},
    {"batch.status_bad", STATUS, "5022 where more are wanted than there is room; NULL is refused", status_bad, HOST_ONLY, LOADED},
    {"batch.status_no_events", STATUS, "no place for events is refused", status_no_events, HOST_ONLY, LOADED},
    {"batch.status_room", STATUS, "never more events than there is room, each once", status_room, HOST_ONLY, LOADED},
    {"batch.status_empty", STATUS, "an empty batch has no events", status_empty, HOST_ONLY, LOADED},
    {"batch.status_empty_waits", STATUS, "and a wait for one comes back after its time", status_empty_waits, HOST_ONLY, LOADED},
    {"batch.status_no_timeout", STATUS, "without a time it waits for as many as are wanted", status_no_timeout, HOST_ONLY, LOADED},
    {"batch.status_again", STATUS, "no event is told twice", status_again, HOST_ONLY, LOADED},
    {"batch.destroyed", "observed: 1.17", "a destroyed batch is refused", destroyed, HOST_ONLY, LOADED},
    {"batch.destroy_twice", SETUP, "destroying twice, or NULL, does nothing", destroy_twice, HOST_ONLY, LOADED},
    {"batch.cancel_idle", "observed: 1.17", "cancelling an empty batch succeeds", cancel_idle, HOST_ONLY, LOADED},
    {"batch.cancel_null", SETUP, "cancelling NULL comes back", cancel_null, HOST_ONLY, LOADED},
    {"batch.cancel_running", "documented: API reference, cuFileBatchIOCancel", "what was running is done or cancelled", cancel_running, HOST_ONLY, LOADED},
    {"batch.destroy_running", SETUP, "destroying a batch that runs leaves the library whole", destroy_running, HOST_ONLY, LOADED},
    {"batch.several", SUBMIT, "batches beside each other have their own events", several, HOST_ONLY, LOADED},
    {"batch.full", SUBMIT, "128 operations, three times", full, ANY_MEMORY, LOADED},
};

struct table batch_cases(void) { return TABLE(cases); }
