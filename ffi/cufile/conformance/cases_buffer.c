/* SPDX-License-Identifier: Apache-2.0 */
/* Registering memory. */
#include "suite.h"

#include <sys/mman.h>

static void registered(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    is_error("deregister", cu.BufDeregister(memory), 0);
    is_error("register again", cu.BufRegister(memory, MIB, 0), 0);
    is_error("deregister again", cu.BufDeregister(memory), 0);
}

static void null_memory(void) {
    must_open();
    is_error("register", cu.BufRegister(NULL, PAGE, 0), CU_FILE_INVALID_VALUE);
    is_error("deregister", cu.BufDeregister(NULL), CU_FILE_INVALID_VALUE);
}

static void no_length(void) {
    must_open();
    is_error("register", cu.BufRegister(memory_new(PAGE), 0, 0), CU_FILE_INVALID_VALUE);
}

static void twice(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("first", cu.BufRegister(memory, MIB, 0), 0);
    is_error("second", cu.BufRegister(memory, MIB, 0), CU_FILE_MEMORY_ALREADY_REGISTERED);
    is_error("deregister", cu.BufDeregister(memory), 0);
    is_error("register again", cu.BufRegister(memory, MIB, 0), 0);
}

static void nested(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("outer", cu.BufRegister(memory, MIB, 0), 0);
    is_error("inner", cu.BufRegister(memory + 64 * KIB, 64 * KIB, 0), 0);
    is_error("deregister inner", cu.BufDeregister(memory + 64 * KIB), 0);
    CUfileHandle_t handle = open_file("file", MIB, 0);
    ssize_t got = CALL(cu.Read(handle, memory, MIB, 0, 0));
    is_bytes("the outer is still used", got, errno, (ssize_t)MIB);
    is_error("deregister outer", cu.BufDeregister(memory), 0);
}

static void overlapping(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("one", cu.BufRegister(memory, 512 * KIB, 0), 0);
    is_error("one that begins inside and ends outside", cu.BufRegister(memory + 256 * KIB, 512 * KIB, 0), 0);
}

static void deregister_twice(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    is_error("deregister", cu.BufDeregister(memory), 0);
    is_error("again", cu.BufDeregister(memory), CU_FILE_MEMORY_NOT_REGISTERED);
}

static void deregister_unknown(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("never registered", cu.BufDeregister(memory), CU_FILE_INVALID_VALUE);
}

static void deregister_inside(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    is_refused("inside", cu.BufDeregister(memory + PAGE));
    is_error("the base", cu.BufDeregister(memory), 0);
}

static void deregister_unopened(void) {
    is_refused("deregister", cu.BufDeregister(memory_new(PAGE)));
    is_number("use count", cu.UseCount(), 0);
}

static void deregister_after_close(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    is_error("close", cu.DriverClose(), 0);
    is_refused("deregister", cu.BufDeregister(memory));
}

static void odd_base_and_length(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory + 513, 70001, 0), 0);
    CUfileHandle_t handle = open_file("file", MIB, 0);
    ssize_t got = CALL(cu.Read(handle, memory + 513, 70001, 11, 0));
    is_bytes("read", got, errno, 70001);
    is_true("bytes are right", memory_is_file(memory + 513, 11, 70001));
    is_true("nothing before", memory_is_poison(memory, 513));
    is_true("nothing behind", memory_is_poison(memory + 513 + 70001, PAGE));
    is_error("deregister", cu.BufDeregister(memory + 513), 0);
}

static void flags(void) {
    must_open();
    unsigned char *memory = memory_new(4 * PAGE);
    is_error("RDMA", cu.BufRegister(memory, PAGE, CU_FILE_RDMA_REGISTER), 0);
    is_error("RDMA, relaxed", cu.BufRegister(memory + PAGE, PAGE, CU_FILE_RDMA_REGISTER | CU_FILE_RDMA_RELAXED_ORDERING), 0);
    is_error("unknown", cu.BufRegister(memory + 2 * PAGE, PAGE, 0x4000), 0);
}

static void not_writable(void) {
    must_open();
    void *memory = mmap(NULL, MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CUfileError_t got = cu.BufRegister(memory, MIB, 0);
    (void)got; /* Refused or not: it comes back, and a read into it is an error and no crash. */
    CUfileHandle_t handle = open_file("file", MIB, 0);
    ssize_t read = CALL(cu.Read(handle, memory, MIB, 0, 0));
    is_no_transfer("a read into it", read, errno);
}

static void unmapped_under(void) {
    must_open();
    void *memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    munmap(memory, MIB);
    is_error("deregister", cu.BufDeregister(memory), 0);
}

static void many(void) {
    int refused = 0;
    must_open();
    unsigned char *memory = memory_new(512 * PAGE);
    for (size_t index = 0; index < 512; index++) refused += cu.BufRegister(memory + index * PAGE, PAGE, 0).err != 0;
    for (size_t index = 0; index < 512; index++) refused += cu.BufDeregister(memory + index * PAGE).err != 0;
    is_number("refused", refused, 0);
}

static void inside_registration(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, MIB, 0), 0);
    CUfileHandle_t handle = open_file("file", MIB, 0);
    ssize_t got = CALL(cu.Read(handle, memory + 3 * PAGE, 5 * PAGE, (off_t)PAGE, 0));
    is_bytes("by a pointer", got, errno, (ssize_t)(5 * PAGE));
    is_true("bytes are right", memory_is_file(memory + 3 * PAGE, PAGE, 5 * PAGE));
    got = CALL(cu.Read(handle, memory, 5 * PAGE, (off_t)(2 * PAGE), (off_t)(100 * PAGE)));
    is_bytes("by an offset", got, errno, (ssize_t)(5 * PAGE));
    is_true("bytes are right again", memory_is_file(memory + 100 * PAGE, 2 * PAGE, 5 * PAGE));
    is_true("nothing between", memory_is_poison(memory + 8 * PAGE, 92 * PAGE));
}

static void past_registration(void) {
    must_open();
    unsigned char *memory = memory_new(MIB);
    is_error("register", cu.BufRegister(memory, 64 * KIB, 0), 0);
    CUfileHandle_t handle = open_file("file", MIB, 0);
    ssize_t got = CALL(cu.Read(handle, memory, 128 * KIB, 0, 0));
    is_refused_with("longer than the registration", got, errno, CU_FILE_INVALID_MAPPING_RANGE);
    got = CALL(cu.Read(handle, memory, PAGE, 0, 64 * KIB));
    is_refused_with("offset at its end", got, errno, CU_FILE_INVALID_MAPPING_RANGE);
    is_true("memory is untouched", memory_is_poison(memory, MIB));
}

#define REGISTER "documented: cufile.h, cuFileBufRegister"
#define DEREGISTER "documented: cufile.h, cuFileBufDeregister"
static const struct test_case cases[] = {
    {"buffer.registered", REGISTER, "memory is registered, deregistered, and registered again", registered, ANY_MEMORY, LOADED},
    {"buffer.null", REGISTER, "NULL is 5022", null_memory, HOST_ONLY, LOADED},
    {"buffer.no_length", REGISTER, "a length of 0 is 5022", no_length, ANY_MEMORY, LOADED},
    {"buffer.twice", REGISTER, "5023 for a base that is registered, until it is not", twice, ANY_MEMORY, LOADED},
    {"buffer.nested", "observed: 1.15 and 1.17", "a range inside a registered one is another registration", nested, ANY_MEMORY, LOADED},
    {"buffer.overlapping", "observed: 1.20", "ranges may overlap", overlapping, ANY_MEMORY, LOADED},
    {"buffer.deregister_twice", "observed: 1.16 to 1.20", "a second deregister is 5024", deregister_twice, ANY_MEMORY, LOADED},
    {"buffer.deregister_unknown", DEREGISTER, "5022 for memory that is not registered", deregister_unknown, ANY_MEMORY, LOADED},
    {"buffer.deregister_inside", DEREGISTER, "only the base of a registration ends it", deregister_inside, ANY_MEMORY, LOADED},
    {"buffer.deregister_unopened", DEREGISTER, "refused before open, and nothing is opened", deregister_unopened, HOST_ONLY, LOADED},
    {"buffer.deregister_after_close", "observed: 1.15 and 1.17", "refused after the last close", deregister_after_close, HOST_ONLY, LOADED},
    {"buffer.odd", REGISTER, "bases and lengths of any alignment", odd_base_and_length, ANY_MEMORY, LOADED},
    {"buffer.flags", REGISTER, "the flags for RDMA, and unknown ones, are accepted", flags, ANY_MEMORY, LOADED},
    {"buffer.not_writable", "documented: cufile.h, cuFileRead", "a read into memory that may not be written is an error and no crash", not_writable, HOST_ONLY, LOADED},
    {"buffer.unmapped_under", DEREGISTER, "memory that was unmapped can be deregistered", unmapped_under, HOST_ONLY, LOADED},
    {"buffer.many", REGISTER, "512 registrations at once", many, ANY_MEMORY, LOADED},
    {"buffer.inside", "documented: cufile.h, cuFileRead, bufPtr_offset", "a place inside a registration, by pointer and by offset", inside_registration, ANY_MEMORY, LOADED},
    {"buffer.past_end", "observed: 1.15 and 1.17", "past the end of a registration is 5017", past_registration, ANY_MEMORY, LOADED},
};

struct table buffer_cases(void) { return TABLE(cases); }
