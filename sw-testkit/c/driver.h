/* What of a GPU's driver test programs use themselves (cuda.h), from the library that is given: the project's stand-in, or a real one. */
#ifndef DRIVER_H
#define DRIVER_H

#include <dlfcn.h>

#include "test.h"

typedef struct CUstream_st *CUstream;

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxPushCurrent)(void *);
static int (*cuStreamCreate)(CUstream *, unsigned);
static int (*cuStreamSynchronize)(CUstream);
static int (*cuStreamDestroy)(CUstream);
static int (*cuMemAlloc)(uint64_t *, size_t);
static int (*cuMemFree)(uint64_t);
static int (*cuMemsetD8)(uint64_t, unsigned char, size_t);
static int (*cuMemsetD8Async)(uint64_t, unsigned char, size_t, CUstream);
static int (*cuMemcpyDtoH)(void *, uint64_t, size_t);
static int (*cuMemcpyHtoD)(uint64_t, const void *, size_t);

static void symbol(void *library, const char *name, void *pointer) {
    void *found = dlsym(library, name);
    CHECK(found != NULL);
    memcpy(pointer, &found, sizeof found);
}

/* Loads the driver and makes the first GPU's primary context the thread's. */
static void load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    void *context = NULL;
    CHECK(library != NULL);
    symbol(library, "cuInit", &cuInit);
    symbol(library, "cuDevicePrimaryCtxRetain", &cuDevicePrimaryCtxRetain);
    symbol(library, "cuCtxPushCurrent_v2", &cuCtxPushCurrent);
    symbol(library, "cuStreamCreate", &cuStreamCreate);
    symbol(library, "cuStreamSynchronize", &cuStreamSynchronize);
    symbol(library, "cuStreamDestroy_v2", &cuStreamDestroy);
    symbol(library, "cuMemAlloc_v2", &cuMemAlloc);
    symbol(library, "cuMemFree_v2", &cuMemFree);
    symbol(library, "cuMemsetD8_v2", &cuMemsetD8);
    symbol(library, "cuMemsetD8Async", &cuMemsetD8Async);
    symbol(library, "cuMemcpyDtoH_v2", &cuMemcpyDtoH);
    symbol(library, "cuMemcpyHtoD_v2", &cuMemcpyHtoD);
    CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxPushCurrent(context) == 0);
}

#endif
