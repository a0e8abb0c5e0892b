/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that transfers go to and come from: of the host, or of the first GPU by whatever libcuda the loader finds. */
#include "suite.h"

#include <dlfcn.h>
#include <sys/mman.h>

enum memory memory_kind;

/* What of the driver is used, by the types that its interface has on a 64-bit machine: the suite needs no header of CUDA beside
 * what cufile.h includes. */
static int (*init)(unsigned);
static int (*retain)(void **, int);
static int (*set_current)(void *);
static int (*allocate)(uint64_t *, size_t);
static int (*to_device)(uint64_t, const void *, size_t);
static int (*to_host)(void *, uint64_t, size_t);
static int (*stream_create)(void **, unsigned);
static int (*stream_synchronize)(void *);
static int (*set_async)(uint64_t, unsigned char, size_t, void *);

static bool find(void *library, const char *name, void *place) {
    *(void **)place = dlsym(library, name);
    return *(void **)place != NULL;
}

const char *memory_ready(void) {
    if (memory_kind == HOST) return NULL;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) return "there is no libcuda.so.1";
    bool all = find(library, "cuInit", &init) && find(library, "cuDevicePrimaryCtxRetain", &retain) &&
               find(library, "cuCtxSetCurrent", &set_current) && find(library, "cuMemAlloc_v2", &allocate) &&
               find(library, "cuMemcpyHtoD_v2", &to_device) && find(library, "cuMemcpyDtoH_v2", &to_host) &&
               find(library, "cuStreamCreate", &stream_create) && find(library, "cuMemsetD8Async", &set_async) &&
               find(library, "cuStreamSynchronize", &stream_synchronize);
    if (!all) return "libcuda.so.1 lacks a function";
    void *context = NULL;
    if (init(0) || retain(&context, 0) || set_current(context)) return "libcuda.so.1 has no usable GPU";
    return NULL;
}

static uint64_t device(const void *at) { return (uint64_t)(uintptr_t)at; }

static void must(int result, const char *what) {
    if (result) give_up("%s of the test itself failed: CUDA error %d", what, result);
}

void *memory_new(size_t length) {
    size_t whole = (length + PAGE - 1) / PAGE * PAGE + PAGE;
    if (memory_kind == HOST) {
        void *at = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) give_up("no memory");
        memset(at, POISON, whole);
        return at;
    }
    uint64_t at = 0;
    must(allocate(&at, whole), "cuMemAlloc");
    unsigned char *poison = malloc(whole);
    memset(poison, POISON, whole);
    must(to_device(at, poison, whole), "cuMemcpyHtoD");
    free(poison);
    return (void *)(uintptr_t)at;
}

void memory_put(void *to, const void *from, size_t length) {
    if (memory_kind == HOST) {
        memcpy(to, from, length);
    } else if (length) {
        must(to_device(device(to), from, length), "cuMemcpyHtoD");
    }
}

void memory_get(void *to, const void *from, size_t length) {
    if (memory_kind == HOST) {
        memcpy(to, from, length);
    } else if (length) {
        must(to_host(to, device(from), length), "cuMemcpyDtoH");
    }
}

bool memory_is_file(const void *at, uint64_t from, size_t length) {
    unsigned char *got = malloc(length + 1);
    memory_get(got, at, length);
    bool same = true;
    for (size_t index = 0; index < length && same; index++) same = got[index] == byte_at(from + index);
    free(got);
    return same;
}

bool memory_is_poison(const void *at, size_t length) {
    unsigned char *got = malloc(length + 1);
    memory_get(got, at, length);
    bool same = true;
    for (size_t index = 0; index < length && same; index++) same = got[index] == POISON;
    free(got);
    return same;
}

void memory_fill(void *at, uint64_t from, size_t length) {
    unsigned char *bytes = malloc(length + 1);
    for (size_t index = 0; index < length; index++) bytes[index] = byte_at(from + index);
    memory_put(at, bytes, length);
    free(bytes);
}

struct CUstream_st *stream_new(void) {
    void *stream = NULL;
    must(stream_create(&stream, 1), "cuStreamCreate");
    return stream;
}

int stream_wait(struct CUstream_st *stream) { return stream_synchronize(stream); }

int stream_set(struct CUstream_st *stream, void *at, unsigned char value, size_t length) {
    return set_async(device(at), value, length, stream);
}
