/* SPDX-License-Identifier: Apache-2.0 */
/* cuFileWrite. Files hold byte_at(at) before; what is written are the bytes of a file shifted by SHIFT. */
#include "suite.h"

#define LENGTH (MIB + 777)
#define SHIFT 12347

static void write_at(CUfileHandle_t handle, size_t size, off_t to, off_t from, const char *what) {
    unsigned char *memory = memory_new((size_t)from + size + PAGE);
    memory_fill(memory + from, (uint64_t)to + SHIFT, size);
    ssize_t got = CALL(cu.Write(handle, memory, size, to, from));
    is_bytes(what, got, errno, (ssize_t)size);
    if (got != (ssize_t)size) return;
    unsigned char *bytes = malloc(size + 2 * PAGE);
    size_t before = (size_t)to < PAGE ? (size_t)to : PAGE;
    for (size_t at = 0; at < before; at++) bytes[at] = byte_at((uint64_t)to - before + at);
    for (size_t at = 0; at < size; at++) bytes[before + at] = byte_at((uint64_t)to + SHIFT + at);
    if (!file_has("file", (uint64_t)to - before, bytes, before)) complain("%s: bytes before were changed", what);
    if (!file_has("file", (uint64_t)to, bytes + before, size)) complain("%s: wrong bytes", what);
    uint64_t end = (uint64_t)to + size;
    size_t behind = end < LENGTH ? (size_t)(LENGTH - end < PAGE ? LENGTH - end : PAGE) : 0;
    for (size_t at = 0; at < behind; at++) bytes[at] = byte_at(end + at);
    if (!file_has("file", end, bytes, behind)) complain("%s: bytes behind were changed", what);
    free(bytes);
}

static void each(int flags, size_t size, off_t to, off_t from, const char *what) {
    static bool opened;
    if (!opened) must_open();
    opened = true;
    CUfileHandle_t handle = open_file("file", LENGTH, flags);
    write_at(handle, size, to, from, what);
    if (file_length("file") != LENGTH) complain("%s: the length changed to %llu", what, (unsigned long long)file_length("file"));
    cu.HandleDeregister(handle);
}

static void aligned(int flags) {
    each(flags, PAGE, 0, 0, "a page");
    each(flags, 64 * KIB, (off_t)PAGE, 0, "64 KiB at 4096");
    each(flags, 64 * KIB, (off_t)(2 * PAGE), (off_t)(3 * PAGE), "64 KiB from an offset");
}

static void odd(int flags) {
    each(flags, 1, 0, 0, "1 byte");
    each(flags, 511, 1, 0, "511 at 1");
    each(flags, 4097, 4095, 0, "4097 at 4095");
    each(flags, 70001, 12345, 513, "70001 at 12345 from 513");
}

static void aligned_direct(void) { aligned(O_DIRECT); }
static void aligned_buffered(void) { aligned(0); }
static void odd_direct(void) { odd(O_DIRECT); }
static void odd_buffered(void) { odd(0); }

static void extends(int flags, size_t size, const char *what) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, flags);
    write_at(handle, size, (off_t)LENGTH, 0, what);
    is_number("length", (long long)file_length("file"), (long long)(LENGTH + size));
}

static void extends_buffered(void) { extends(0, 5000, "5000 at the end"); }
static void extends_direct(void) { extends(O_DIRECT, 5000, "5000 at the end, O_DIRECT"); }

static void leaves_hole(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    memory_fill(memory, SHIFT, PAGE);
    ssize_t got = CALL(cu.Write(handle, memory, PAGE, (off_t)(10 * PAGE), 0));
    is_bytes("write", got, errno, (ssize_t)PAGE);
    is_number("length", (long long)file_length("file"), (long long)(11 * PAGE));
    static const unsigned char zeros[9 * PAGE];
    is_true("the hole is zeros", file_has("file", PAGE, zeros, sizeof zeros));
}

static void large(void) {
    const size_t size = 17 * MIB + 123;
    must_open();
    CUfileHandle_t handle = open_file("file", 0, O_DIRECT);
    write_at(handle, size, 0, 0, "17 MiB + 123");
    is_number("length", (long long)file_length("file"), (long long)size);
}

static void nothing(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Write(handle, memory, 0, 0, 0));
    is_bytes("0 bytes", got, errno, 0);
    got = CALL(cu.Write(handle, memory, 0, (off_t)MIB, 0));
    is_bytes("0 bytes past the end", got, errno, 0);
    is_number("length", (long long)file_length("file"), (long long)PAGE);
}

static void negative_offset(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Write(handle, memory, PAGE, -1, 0));
    is_refused_with("-1", got, errno, CU_FILE_INVALID_VALUE);
    is_number("length", (long long)file_length("file"), (long long)PAGE);
}

static void negative_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(3 * PAGE);
    ssize_t got = CALL(cu.Write(handle, memory + PAGE, 16, 0, -16));
    is_no_transfer("-16", got, errno);
}

static void last_offset(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Write(handle, memory, PAGE, INT64_MAX, 0));
    is_no_transfer("2^63 - 1", got, errno);
    is_number("length", (long long)file_length("file"), (long long)PAGE);
}

static void read_only_file(void) {
    must_open();
    CUfileHandle_t handle = handle_of(file_new("file", PAGE, O_RDONLY));
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Write(handle, memory, PAGE, 0, 0));
    is_no_transfer("write", got, errno);
    is_number("length", (long long)file_length("file"), (long long)PAGE);
}

static void null_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    ssize_t got = CALL(cu.Write(handle, NULL, PAGE, 0, 0));
    is_no_transfer("write", got, errno);
    is_number("length", (long long)file_length("file"), (long long)PAGE);
}

static void bad_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    ssize_t got = CALL(cu.Write(handle, (const void *)(uintptr_t)0x1000, PAGE, 0, 0));
    is_no_transfer("write", got, errno);
}

static void from_registered(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    memory_fill(memory + 7 * PAGE, SHIFT, 5 * PAGE);
    ssize_t got = CALL(cu.Write(handle, memory, 5 * PAGE, 0, (off_t)(7 * PAGE)));
    is_bytes("write", got, errno, (ssize_t)(5 * PAGE));
    unsigned char bytes[5 * PAGE];
    for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = byte_at(SHIFT + at);
    is_true("the file has the bytes", file_has("file", 0, bytes, sizeof bytes));
}

static void read_back(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    unsigned char *out = memory_new(64 * KIB), *in = memory_new(64 * KIB);
    memory_fill(out, SHIFT, 64 * KIB);
    ssize_t got = CALL(cu.Write(handle, out, 40001, 333, 0));
    is_bytes("write", got, errno, 40001);
    got = CALL(cu.Read(handle, in, 40001, 333, 0));
    is_bytes("read", got, errno, 40001);
    is_true("what was written is read", memory_is_file(in, SHIFT, 40001));
}

#define WRITE "documented: cufile.h, cuFileWrite"
static const struct test_case cases[] = {
    {"write.aligned_direct", WRITE, "aligned writes to a file with O_DIRECT", aligned_direct, ANY_MEMORY, LOADED},
    {"write.aligned_buffered", WRITE, "aligned writes to a file without it", aligned_buffered, ANY_MEMORY, LOADED},
    {"write.odd_direct", WRITE, "any offset and size with O_DIRECT; neighbours and length stay", odd_direct, ANY_MEMORY, LOADED},
    {"write.odd_buffered", WRITE, "any offset and size without it; neighbours and length stay", odd_buffered, ANY_MEMORY, LOADED},
    {"write.extends_buffered", WRITE, "a write at the end makes the file longer by its size", extends_buffered, ANY_MEMORY, LOADED},
    {"write.extends_direct", WRITE, "the same with O_DIRECT", extends_direct, ANY_MEMORY, LOADED},
    {"write.hole", WRITE, "a write past the end leaves zeros between", leaves_hole, ANY_MEMORY, LOADED},
    {"write.large", WRITE, "more than the largest direct I/O in one call", large, ANY_MEMORY, LOADED},
    {"write.nothing", WRITE, "0 bytes are 0 and change nothing", nothing, ANY_MEMORY, LOADED},
    {"write.negative_offset", "observed: 1.15 to 1.20", "a negative file offset is refused with 5022", negative_offset, ANY_MEMORY, LOADED},
    {"write.negative_memory", WRITE, "a negative offset into memory is refused", negative_memory, ANY_MEMORY, LOADED},
    {"write.last_offset", WRITE, "the largest offset is refused", last_offset, ANY_MEMORY, LOADED},
    {"write.read_only", WRITE, "a file that is open for reading only is refused", read_only_file, HOST_ONLY, LOADED},
    {"write.null_memory", WRITE, "NULL is refused", null_memory, HOST_ONLY, LOADED},
    {"write.bad_memory", WRITE, "memory that is not there is refused", bad_memory, HOST_ONLY, LOADED},
    {"write.registered", WRITE, "from inside a registration", from_registered, ANY_MEMORY, LOADED},
    {"write.read_back", WRITE, "what was written is read", read_back, ANY_MEMORY, LOADED},
};

struct table write_cases(void) { return TABLE(cases); }
