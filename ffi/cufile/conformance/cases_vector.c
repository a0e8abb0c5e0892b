/* SPDX-License-Identifier: Apache-2.0 */
/* cuFileReadv and cuFileWritev, of cuFile 1.19. */
#include "suite.h"

#define LENGTH (MIB + 777)

static void read_parts(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *one = memory_new(2 * PAGE), *two = memory_new(2 * PAGE);
    CUfileIOVec_t parts[2] = {{one, PAGE}, {two, 2 * PAGE}};
    ssize_t got = CALL(cu.Readv(handle, parts, 2, (off_t)PAGE, 0));
    is_bytes("read", got, errno, (ssize_t)(3 * PAGE));
    is_true("the first part", memory_is_file(one, PAGE, PAGE) && memory_is_poison(one + PAGE, PAGE));
    is_true("the second part", memory_is_file(two, 2 * PAGE, 2 * PAGE));
}

static void read_odd_parts(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(64 * KIB);
    CUfileIOVec_t parts[3] = {{memory + 1, 511}, {memory + 5000, 1}, {memory + 10001, 30003}};
    ssize_t got = CALL(cu.Readv(handle, parts, 3, 77, 0));
    is_bytes("read", got, errno, 511 + 1 + 30003);
    is_true("the first", memory_is_file(memory + 1, 77, 511));
    is_true("the second", memory_is_file(memory + 5000, 77 + 511, 1));
    is_true("the third", memory_is_file(memory + 10001, 77 + 512, 30003));
    is_true("nothing between", memory_is_poison(memory + 512, 4488) && memory_is_poison(memory + 5001, 5000));
}

static void read_across_end(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE + 100, 0);
    unsigned char *one = memory_new(PAGE), *two = memory_new(PAGE);
    CUfileIOVec_t parts[2] = {{one, PAGE}, {two, PAGE}};
    ssize_t got = CALL(cu.Readv(handle, parts, 2, 0, 0));
    is_bytes("across", got, errno, (ssize_t)PAGE + 100);
    got = CALL(cu.Readv(handle, parts, 2, (off_t)(2 * PAGE), 0));
    is_bytes("past", got, errno, 0);
}

static void empty_parts(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(2 * PAGE);
    CUfileIOVec_t parts[3] = {{memory, PAGE}, {memory + PAGE, 0}, {memory + PAGE, 100}};
    ssize_t got = CALL(cu.Readv(handle, parts, 3, 0, 0));
    is_bytes("a part of 0 bytes between others", got, errno, (ssize_t)PAGE + 100);
    is_true("bytes are right", memory_is_file(memory, 0, PAGE + 100));
}

static void no_parts(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOVec_t part = {memory_new(PAGE), PAGE};
    ssize_t got = CALL(cu.Readv(handle, &part, 0, 0, 0));
    is_true("a count of 0 transfers nothing", got <= 0);
    got = CALL(cu.Readv(handle, NULL, 1, 0, 0));
    is_no_transfer("NULL", got, errno);
}

static void null_part(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOVec_t parts[2] = {{memory_new(PAGE), PAGE}, {NULL, PAGE}};
    ssize_t got = CALL(cu.Readv(handle, parts, 2, 0, 0));
    is_no_transfer("a part without memory", got, errno);
}

static void negative_offset(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOVec_t part = {memory_new(PAGE), PAGE};
    ssize_t got = CALL(cu.Readv(handle, &part, 1, -1, 0));
    is_no_transfer("read", got, errno);
    got = CALL(cu.Writev(handle, &part, 1, -1, 0));
    is_no_transfer("write", got, errno);
}

static void unknown_flags(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    CUfileIOVec_t part = {memory_new(PAGE), PAGE};
    ssize_t got = CALL(cu.Readv(handle, &part, 1, 0, 0x80));
    is_no_transfer("read", got, errno);
}

static void bad_handle(void) {
    must_open();
    CUfileIOVec_t part = {memory_new(PAGE), PAGE};
    ssize_t got = CALL(cu.Readv(NULL, &part, 1, 0, 0));
    is_no_transfer("NULL", got, errno);
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    cu.HandleDeregister(handle);
    got = CALL(cu.Readv(handle, &part, 1, 0, 0));
    is_refused_with("dead", got, errno, CU_FILE_HANDLE_NOT_REGISTERED);
}

static void many_parts(size_t count) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(count * 64);
    CUfileIOVec_t *parts = calloc(count, sizeof *parts);
    for (size_t index = 0; index < count; index++) parts[index] = (CUfileIOVec_t){memory + index * 64, 64};
    ssize_t got = CALL(cu.Readv(handle, parts, count, 0, 0));
    is_bytes("read", got, errno, (ssize_t)(count * 64));
    is_true("bytes are right", memory_is_file(memory, 0, count * 64));
}

static void parts_128(void) { many_parts(128); }
static void parts_1024(void) { many_parts(1024); }

static void write_parts(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(64 * KIB);
    memory_fill(memory, 5000, 64 * KIB);
    CUfileIOVec_t parts[2] = {{memory, PAGE}, {memory + PAGE, 20001}};
    ssize_t got = CALL(cu.Writev(handle, parts, 2, 333, 0));
    is_bytes("write", got, errno, (ssize_t)PAGE + 20001);
    unsigned char bytes[PAGE + 20001 + 1];
    for (size_t at = 0; at < sizeof bytes - 1; at++) bytes[at] = byte_at(5000 + at);
    bytes[sizeof bytes - 1] = byte_at(333 + PAGE + 20001);
    is_true("the file has the bytes, and its own behind them", file_has("file", 333, bytes, sizeof bytes));
    is_number("length", (long long)file_length("file"), (long long)LENGTH);
}

#define READV "documented: cufile.h, cuFileReadv"
static const struct test_case cases[] = {
    {"vector.read", READV, "parts are filled one after another", read_parts, ANY_MEMORY, LOADED},
    {"vector.read_odd", READV, "parts of any place and length; nothing between is touched", read_odd_parts, ANY_MEMORY, LOADED},
    {"vector.across_end", READV, "the bytes up to the end of the file; 0 past it", read_across_end, ANY_MEMORY, LOADED},
    {"vector.empty_part", READV, "a part of 0 bytes takes none", empty_parts, ANY_MEMORY, LOADED},
    {"vector.no_parts", READV, "no parts transfer nothing; NULL is refused", no_parts, HOST_ONLY, LOADED},
    {"vector.null_part", READV, "a part without memory is refused", null_part, HOST_ONLY, LOADED},
    {"vector.negative_offset", READV, "a negative file offset is refused", negative_offset, HOST_ONLY, LOADED},
    {"vector.flags", READV ", flags: should be 0", "flags are refused", unknown_flags, HOST_ONLY, LOADED},
    {"vector.bad_handle", READV, "NULL is refused, a dead handle with 5027", bad_handle, HOST_ONLY, LOADED},
    {"vector.many", READV, "128 parts", parts_128, ANY_MEMORY, LOADED},
    {"vector.more", "documented: cufile.h, preadv/pwritev-equivalent", "1024 parts, as preadv takes them", parts_1024, ANY_MEMORY, LOADED},
    {"vector.write", "documented: cufile.h, cuFileWritev", "parts are written one after another; neighbours and length stay", write_parts, ANY_MEMORY, LOADED},
};

struct table vector_cases(void) { return TABLE(cases); }
