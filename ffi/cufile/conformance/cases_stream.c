/* SPDX-License-Identifier: Apache-2.0 */
/* Stream-ordered transfers. */
#include "suite.h"

#define LENGTH (MIB + 777)

struct transfer {
    size_t size;
    off_t file, memory;
    ssize_t bytes;
};

static void register_null(void) {
    must_open();
    is_error("register", cu.StreamRegister(NULL, 0), 0);
    is_error("deregister", cu.StreamDeregister(NULL), 0);
}

static void register_unopened(void) {
    CUfileError_t got = cu.StreamRegister(NULL, 0);
    is_true("accepted, or 5001", got.err == 0 || got.err == CU_FILE_DRIVER_NOT_INITIALIZED);
}

static void null_arguments(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    struct transfer one = {PAGE, 0, 0, 0};
    is_refused("size", cu.ReadAsync(handle, memory, NULL, &one.file, &one.memory, &one.bytes, NULL));
    is_refused("file offset", cu.ReadAsync(handle, memory, &one.size, NULL, &one.memory, &one.bytes, NULL));
    is_refused("memory offset", cu.ReadAsync(handle, memory, &one.size, &one.file, NULL, &one.bytes, NULL));
    is_refused("place for the number", cu.ReadAsync(handle, memory, &one.size, &one.file, &one.memory, NULL, NULL));
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void null_handle(void) {
    must_open();
    unsigned char *memory = memory_new(PAGE);
    struct transfer one = {PAGE, 0, 0, 77};
    CUfileError_t got = cu.ReadAsync(NULL, memory, &one.size, &one.file, &one.memory, &one.bytes, NULL);
    answer("call", "%d", (int)got.err);
    is_true("refused, or a negative number", got.err != 0 || one.bytes < 0);
}

static void host_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    struct transfer one = {PAGE, 0, 0, 77};
    CUfileError_t got = cu.ReadAsync(handle, memory, &one.size, &one.file, &one.memory, &one.bytes, NULL);
    answer("call", "%d", (int)got.err);
    answer("bytes", "%zd", one.bytes);
    bool read = got.err == 0 && one.bytes == (ssize_t)PAGE && memory_is_file(memory, 0, PAGE);
    bool refused = (got.err != 0 || one.bytes < 0) && memory_is_poison(memory, PAGE);
    is_true("done, or refused and told", read || refused);
}

static void read_null_stream(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(LENGTH);
    struct transfer one = {64 * KIB, (off_t)PAGE, (off_t)PAGE, 0};
    is_error("call", cu.ReadAsync(handle, memory, &one.size, &one.file, &one.memory, &one.bytes, NULL), 0);
    is_number("wait", stream_wait(NULL), 0);
    is_number("bytes", one.bytes, 64 * KIB);
    is_true("bytes are right", memory_is_file(memory + PAGE, PAGE, 64 * KIB));
}

static void in_order(unsigned flags) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(MIB);
    CUstream stream = stream_new();
    is_error("register", cu.StreamRegister(stream, flags), 0);
    is_error("register memory", cu.BufRegister(memory, MIB, 0), 0);
    struct transfer one = {MIB, 0, 0, 0};
    bool right = true;
    for (int turn = 0; turn < 10; turn++) {
        one.bytes = 0;
        right &= stream_set(stream, memory, 0x11, MIB) == 0;
        CUfileError_t got = cu.ReadAsync(handle, memory, &one.size, &one.file, &one.memory, &one.bytes, stream);
        if (got.err) give_up("call: %d", (int)got.err);
        right &= stream_set(stream, memory + MIB / 2, 0x22, MIB / 2) == 0;
        right &= stream_wait(stream) == 0 && one.bytes == (ssize_t)MIB;
        unsigned char *bytes = malloc(MIB);
        memory_get(bytes, memory, MIB);
        for (size_t at = 0; at < MIB && right; at++) right = bytes[at] == (at < MIB / 2 ? byte_at(at) : 0x22);
        free(bytes);
    }
    is_true("after what is before it in the stream, before what is behind it", right);
    is_error("deregister", cu.StreamDeregister(stream), 0);
}

static void read_in_order(void) { in_order(0); }
static void read_in_order_fixed(void) { in_order(0xF); }

static void write_in_order(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(64 * KIB);
    CUstream stream = stream_new();
    struct transfer one = {64 * KIB, (off_t)PAGE, 0, 0};
    bool right = stream_set(stream, memory, 0x33, 64 * KIB) == 0;
    is_error("call", cu.WriteAsync(handle, memory, &one.size, &one.file, &one.memory, &one.bytes, stream), 0);
    right &= stream_set(stream, memory, 0x44, 64 * KIB) == 0 && stream_wait(stream) == 0;
    is_number("bytes", one.bytes, 64 * KIB);
    static unsigned char bytes[64 * KIB];
    memset(bytes, 0x33, sizeof bytes);
    is_true("what was there when the stream came to it", right && file_has("file", PAGE, bytes, sizeof bytes));
}

static void late_arguments(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(64 * KIB);
    CUstream stream = stream_new();
    struct transfer one = {64 * KIB, 0, 0, 0};
    is_error("call", cu.ReadAsync(handle, memory, &one.size, &one.file, &one.memory, &one.bytes, stream), 0);
    is_number("wait", stream_wait(stream), 0);
    one.file = (off_t)(2 * PAGE);
    one.size = PAGE;
    is_error("second call", cu.ReadAsync(handle, memory, &one.size, &one.file, &one.memory, &one.bytes, stream), 0);
    is_number("second wait", stream_wait(stream), 0);
    is_number("bytes", one.bytes, PAGE);
    is_true("bytes are right", memory_is_file(memory, 2 * PAGE, PAGE));
}

static void errors_are_told(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(64 * KIB);
    CUstream stream = stream_new();
    struct transfer bad = {PAGE, -1, 0, 77}, end = {PAGE, (off_t)(10 * LENGTH), 0, 77};
    CUfileError_t got = cu.ReadAsync(handle, memory, &bad.size, &bad.file, &bad.memory, &bad.bytes, stream);
    is_number("wait", stream_wait(stream), 0);
    is_true("a negative offset is refused, or a negative number", got.err != 0 || bad.bytes < 0);
    is_error("past the end", cu.ReadAsync(handle, memory, &end.size, &end.file, &end.memory, &end.bytes, stream), 0);
    is_number("wait again", stream_wait(stream), 0);
    is_number("no bytes", end.bytes, 0);
}

#define ASYNC "documented: cufile.h, cuFileReadAsync"
static const struct test_case cases[] = {
    {"stream.register_null", "observed: 1.11 to 1.20", "the NULL stream is registered and deregistered", register_null, HOST_ONLY, LOADED},
    {"stream.register_unopened", "documented: cufile.h, cuFileStreamRegister", "before open: opens, or 5001", register_unopened, HOST_ONLY, LOADED},
    {"stream.null_arguments", ASYNC, "a place that is NULL is refused", null_arguments, HOST_ONLY, LOADED},
    {"stream.null_handle", ASYNC, "NULL is refused", null_handle, HOST_ONLY, LOADED},
    {"stream.host_memory", ASYNC, "without a GPU: done, or refused and told", host_memory, HOST_ONLY, LOADED},
    {"stream.read_null", ASYNC, "a read on the NULL stream", read_null_stream, DEVICE_ONLY, LOADED},
    {"stream.read_order", ASYNC, "a read is between what is before and what is behind it", read_in_order, DEVICE_ONLY, LOADED},
    {"stream.read_order_fixed", "documented: cufile.h, cuFileStreamRegister", "the same on a stream that is registered with all flags", read_in_order_fixed, DEVICE_ONLY, LOADED},
    {"stream.write_order", "documented: cufile.h, cuFileWriteAsync", "a write takes what was there when the stream came to it", write_in_order, DEVICE_ONLY, LOADED},
    {"stream.arguments", ASYNC, "size and offset are those of the places that are given", late_arguments, DEVICE_ONLY, LOADED},
    {"stream.errors", ASYNC, "errors and the end of the file are told in the number", errors_are_told, DEVICE_ONLY, LOADED},
};

struct table stream_cases(void) { return TABLE(cases); }
