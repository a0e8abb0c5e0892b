/* SPDX-License-Identifier: Apache-2.0 */
/* cuFileRead. */
#include "suite.h"

#include <pthread.h>

#define LENGTH (2 * MIB + 777)

static void read_at(CUfileHandle_t handle, size_t size, off_t from, off_t into, const char *what) {
    unsigned char *memory = memory_new((size_t)into + size + PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, size, from, into));
    is_bytes(what, got, errno, (ssize_t)size);
    if (got != (ssize_t)size) return;
    if (!memory_is_file(memory + into, (uint64_t)from, size)) complain("%s: wrong bytes", what);
    if (!memory_is_poison(memory, (size_t)into)) complain("%s: bytes before were changed", what);
    if (!memory_is_poison(memory + into + size, PAGE)) complain("%s: bytes behind were changed", what);
}

static void aligned(int flags) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, flags);
    read_at(handle, PAGE, 0, 0, "a page");
    read_at(handle, MIB, (off_t)PAGE, 0, "1 MiB at 4096");
    read_at(handle, 64 * KIB, (off_t)MIB, (off_t)(2 * PAGE), "64 KiB into an offset");
}

static void odd(int flags) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, flags);
    read_at(handle, 1, 0, 0, "1 byte");
    read_at(handle, 511, 1, 0, "511 at 1");
    read_at(handle, 4097, 4095, 0, "4097 at 4095");
    read_at(handle, 70001, 12345, 513, "70001 at 12345 into 513");
    read_at(handle, MIB + 1, 777, 1, "1 MiB + 1 at 777 into 1");
}

static void aligned_direct(void) { aligned(O_DIRECT); }
static void aligned_buffered(void) { aligned(0); }
static void odd_direct(void) { odd(O_DIRECT); }
static void odd_buffered(void) { odd(0); }

static void whole_large(void) {
    const size_t size = 17 * MIB + 123;
    must_open();
    CUfileHandle_t handle = open_file("file", size, O_DIRECT);
    read_at(handle, size, 0, 0, "17 MiB + 123");
}

static void at_end(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, (off_t)LENGTH, 0));
    is_bytes("at the end", got, errno, 0);
    got = CALL(cu.Read(handle, memory, PAGE, (off_t)(10 * LENGTH), 0));
    is_bytes("past the end", got, errno, 0);
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void across_end(int flags) {
    must_open();
    CUfileHandle_t handle = open_file("file", 3 * PAGE + 1000, flags);
    unsigned char *memory = memory_new(64 * KIB);
    ssize_t got = CALL(cu.Read(handle, memory, 64 * KIB, (off_t)PAGE, 0));
    is_bytes("read", got, errno, (ssize_t)(2 * PAGE + 1000));
    is_true("bytes are right", memory_is_file(memory, PAGE, 2 * PAGE + 1000));
}

static void across_end_buffered(void) { across_end(0); }
static void across_end_direct(void) { across_end(O_DIRECT); }

static void short_leaves_rest(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", 1000, 0);
    unsigned char *memory = memory_new(64 * KIB);
    ssize_t got = CALL(cu.Read(handle, memory, 64 * KIB, 0, 0));
    is_bytes("read", got, errno, 1000);
    is_true("bytes behind the answer are untouched", memory_is_poison(memory + 1000, 64 * KIB - 1000));
}

static void nothing(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, 0, 0, 0));
    is_bytes("0 bytes", got, errno, 0);
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void negative_file_offset(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, -1, 0));
    is_refused_with("-1", got, errno, CU_FILE_INVALID_VALUE);
    got = CALL(cu.Read(handle, memory, PAGE, INT64_MIN, 0));
    is_refused_with("-2^63", got, errno, CU_FILE_INVALID_VALUE);
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void negative_memory_offset(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(3 * PAGE);
    ssize_t got = CALL(cu.Read(handle, memory + PAGE, 16, 0, -16));
    is_no_transfer("-16", got, errno);
    is_true("memory is untouched", memory_is_poison(memory, 3 * PAGE));
}

static void last_offset(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, INT64_MAX, 0));
    is_true("2^63 - 1: no bytes", got <= 0);
    got = CALL(cu.Read(handle, memory, PAGE, INT64_MAX - (off_t)PAGE + 1, 0));
    is_true("the last page: no bytes", got <= 0);
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void size_out_of_range(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, SIZE_MAX, 0, 0));
    is_no_transfer("2^64 - 1", got, errno);
    got = CALL(cu.Read(handle, memory, (size_t)INT64_MAX + 1, 0, 0));
    is_no_transfer("2^63", got, errno);
}

static void null_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    ssize_t got = CALL(cu.Read(handle, NULL, PAGE, 0, 0));
    is_no_transfer("read", got, errno);
}

static void bad_memory(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    ssize_t got = CALL(cu.Read(handle, (void *)(uintptr_t)0x1000, PAGE, 0, 0));
    is_no_transfer("read", got, errno);
}

static void write_only_file(void) {
    must_open();
    CUfileHandle_t handle = handle_of(file_new("file", PAGE, O_WRONLY));
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_refused_with("read", got, errno, CU_FILE_INVALID_FILE_OPEN_FLAG);
}

static void error_form(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, -1, 0));
    is_number("negative offset", got, -CU_FILE_INVALID_VALUE);
    cu.HandleDeregister(handle);
    got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_number("dead handle", got, -CU_FILE_HANDLE_NOT_REGISTERED);
}

static void file_position(void) {
    must_open();
    int fd = file_new("file", LENGTH, O_RDWR);
    CUfileHandle_t handle = handle_of(fd);
    unsigned char *memory = memory_new(PAGE);
    lseek(fd, 100, SEEK_SET);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 5, 0));
    is_bytes("read", got, errno, (ssize_t)PAGE);
    is_true("bytes are those of the offset", memory_is_file(memory, 5, PAGE));
    is_number("file position", lseek(fd, 0, SEEK_CUR), 100);
}

static void truncated(void) {
    must_open();
    int fd = file_new("file", 4 * PAGE, O_RDWR);
    CUfileHandle_t handle = handle_of(fd);
    unsigned char *memory = memory_new(4 * PAGE);
    if (ftruncate(fd, (off_t)PAGE)) give_up("cannot cut the file");
    ssize_t got = CALL(cu.Read(handle, memory, 4 * PAGE, 0, 0));
    is_bytes("cut", got, errno, (ssize_t)PAGE);
    if (ftruncate(fd, (off_t)(4 * PAGE))) give_up("cannot make the file longer");
    got = CALL(cu.Read(handle, memory, 4 * PAGE, 0, 0));
    is_bytes("longer again", got, errno, (ssize_t)(4 * PAGE));
}

static void sparse(void) {
    must_open();
    int fd = file_new("file", PAGE, O_RDWR);
    if (ftruncate(fd, (off_t)MIB)) give_up("cannot make the file longer");
    CUfileHandle_t handle = handle_of(fd);
    unsigned char *memory = memory_new(MIB);
    ssize_t got = CALL(cu.Read(handle, memory, MIB, 0, 0));
    is_bytes("read", got, errno, (ssize_t)MIB);
    static unsigned char bytes[MIB];
    memory_get(bytes, memory, MIB);
    bool zero = true;
    for (size_t at = PAGE; at < MIB; at++) zero &= bytes[at] == 0;
    is_true("the hole is zeros", zero);
}

static void before_open(void) {
    unsigned char *memory = memory_new(PAGE);
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    cu.HandleDeregister(handle);
    while (cu.UseCount() > 0 && cu.DriverClose().err == 0) continue;
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_no_transfer("read", got, errno);
}

struct reader {
    CUfileHandle_t handle;
    unsigned number;
    int wrong;
    pthread_t thread;
};

static void *read_some(void *argument) {
    struct reader *reader = argument;
    if (memory_ready()) give_up("no memory in a thread");
    unsigned char *memory = memory_new(64 * KIB);
    for (unsigned turn = 0; turn < 10; turn++) {
        uint64_t from = (reader->number * 7919 + turn * 104729) % (LENGTH - 64 * KIB);
        ssize_t got = cu.Read(reader->handle, memory, 64 * KIB, (off_t)from, 0);
        reader->wrong += got != (ssize_t)(64 * KIB) || !memory_is_file(memory, from, 64 * KIB);
    }
    return NULL;
}

static void in_threads(void) {
    enum { THREADS = 64 };
    static struct reader readers[THREADS];
    must_open();
    CUfileHandle_t handle = open_file("file", LENGTH, O_DIRECT);
    int wrong = 0;
    for (unsigned index = 0; index < THREADS; index++) {
        readers[index] = (struct reader){handle, index, 0, 0};
        if (pthread_create(&readers[index].thread, NULL, read_some, &readers[index])) give_up("no thread");
    }
    for (unsigned index = 0; index < THREADS; index++) {
        pthread_join(readers[index].thread, NULL);
        wrong += readers[index].wrong;
    }
    is_number("bad reads", wrong, 0);
}

#define READ "documented: cufile.h, cuFileRead"
static const struct test_case cases[] = {
    {"read.aligned_direct", READ, "aligned reads of a file with O_DIRECT", aligned_direct, ANY_MEMORY, LOADED},
    {"read.aligned_buffered", READ, "aligned reads of a file without it", aligned_buffered, ANY_MEMORY, LOADED},
    {"read.odd_direct", READ, "any offset and size of a file with O_DIRECT; nothing around is touched", odd_direct, ANY_MEMORY, LOADED},
    {"read.odd_buffered", READ, "any offset and size of a file without it; nothing around is touched", odd_buffered, ANY_MEMORY, LOADED},
    {"read.large", READ, "more than the largest direct I/O in one call", whole_large, ANY_MEMORY, LOADED},
    {"read.at_end", READ, "0 at the end of the file and past it", at_end, ANY_MEMORY, LOADED},
    {"read.across_end_buffered", READ, "the bytes up to the end of the file", across_end_buffered, ANY_MEMORY, LOADED},
    {"read.across_end_direct", READ, "the bytes up to the end of the file, with O_DIRECT", across_end_direct, ANY_MEMORY, LOADED},
    {"read.short_rest", READ ", size of bytes successfully read", "bytes behind the answer are untouched", short_leaves_rest, ANY_MEMORY, LOADED},
    {"read.nothing", "observed: 1.15 to 1.20", "0 bytes are 0", nothing, ANY_MEMORY, LOADED},
    {"read.negative_offset", "observed: 1.15 to 1.20", "a negative file offset is refused with 5022", negative_file_offset, ANY_MEMORY, LOADED},
    {"read.negative_memory", READ, "a negative offset into memory is refused", negative_memory_offset, ANY_MEMORY, LOADED},
    {"read.last_offset", READ, "no bytes at the largest offsets, and no crash", last_offset, ANY_MEMORY, LOADED},
    {"read.size_range", READ, "a size that no answer can tell is refused", size_out_of_range, ANY_MEMORY, LOADED},
    {"read.null_memory", "observed: 1.11 to 1.20", "NULL is refused", null_memory, HOST_ONLY, LOADED},
    {"read.bad_memory", READ, "memory that is not there is refused", bad_memory, HOST_ONLY, LOADED},
    {"read.write_only", "observed: 1.15 and 1.17", "5019 for a file that is open for writing only", write_only_file, HOST_ONLY, LOADED},
    {"read.error_form", READ ", return values", "an error of the library is the negative of its code", error_form, HOST_ONLY, LOADED},
    {"read.position", READ, "the file position neither counts nor moves", file_position, HOST_ONLY, LOADED},
    {"read.truncated", READ, "the length of the file is that of the moment", truncated, ANY_MEMORY, LOADED},
    {"read.sparse", READ, "holes are zeros", sparse, ANY_MEMORY, LOADED},
    {"read.after_all", READ, "refused after the last close", before_open, HOST_ONLY, LOADED},
    {"read.threads", READ, "64 threads on one handle read what they asked for", in_threads, ANY_MEMORY, LOADED},
};

struct table read_cases(void) { return TABLE(cases); }
