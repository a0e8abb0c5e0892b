/* SPDX-License-Identifier: Apache-2.0 */
/* NVIDIA's library and ours in one process, whose names and soname are the same:
 *
 *     both NVIDIA OURS FOLDER nvidia|ours
 *
 * The one that the last word names is loaded first, for all to see, and goes first; both work on one file at the same time.
 * The last line begins with `test result: ok.` if everything held. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cufile.h>

#define BLOCK ((size_t)64 << 10)
#define BLOCKS 64
#define ROUNDS 4

struct api {
    const char *name, *path;
    void *library;
    CUfileError_t (*open)(void);
    CUfileError_t (*close)(void);
    CUfileError_t (*file)(CUfileHandle_t *, CUfileDescr_t *);
    void (*forget)(CUfileHandle_t);
    CUfileError_t (*memory)(const void *, size_t, int);
    CUfileError_t (*forget_memory)(const void *);
    ssize_t (*read)(CUfileHandle_t, void *, size_t, off_t, off_t);
    ssize_t (*write)(CUfileHandle_t, const void *, size_t, off_t, off_t);
    long (*use_count)(void);
    /* Ours alone has it: which of the two the names led to. */
    void *own;
};

#define OUR_OWN "sw_cufile_report"

struct work {
    struct api *api;
    int fd;
    size_t first;
    unsigned char seed;
    CUfileHandle_t handle;
    unsigned char *memory;
};

static void fail(const char *what, const struct api *api, long got) {
    printf("%s by %s: %ld\n", what, api ? api->name : "both", got);
    printf("test result: FAILED. 0 passed; 1 failed; 0 ignored\n");
    exit(1);
}

/* What is no failure of anybody. */
static void cannot(const char *why) {
    printf("%s\n", why);
    exit(77);
}

static void load(struct api *api, int visible) {
    api->library = dlopen(api->path, RTLD_NOW | visible);
    if (!api->library) {
        printf("%s\n", dlerror());
        fail("loading", api, 0);
    }
#define FIND(field, symbol)                                                                                            \
    *(void **)&api->field = dlsym(api->library, symbol);                                                               \
    if (!api->field) fail("finding " symbol, api, 0);
    FIND(open, "cuFileDriverOpen")
    FIND(close, "cuFileDriverClose_v2")
    FIND(file, "cuFileHandleRegister")
    FIND(forget, "cuFileHandleDeregister")
    FIND(memory, "cuFileBufRegister")
    FIND(forget_memory, "cuFileBufDeregister")
    FIND(read, "cuFileRead")
    FIND(write, "cuFileWrite")
    FIND(use_count, "cuFileUseCount")
#undef FIND
    api->own = dlsym(api->library, OUR_OWN);
}

static void ok(CUfileError_t error, const char *what, const struct api *api) {
    if (error.err != CU_FILE_SUCCESS) fail(what, api, error.err);
}

static void begin(struct work *work) {
    CUfileDescr_t descr;
    memset(&descr, 0, sizeof descr);
    descr.type = CU_FILE_HANDLE_TYPE_OPAQUE_FD;
    descr.handle.fd = work->fd;
    ok(work->api->open(), "opening", work->api);
    CUfileError_t error = work->api->file(&work->handle, &descr);
    if (error.err != CU_FILE_SUCCESS && !work->api->own) cannot("NVIDIA's library takes no file of this file system");
    ok(error, "registering a file", work->api);
    if (posix_memalign((void **)&work->memory, 4096, BLOCK)) exit(2);
    ok(work->api->memory(work->memory, BLOCK, 0), "registering memory", work->api);
}

static void end(struct work *work) {
    ok(work->api->forget_memory(work->memory), "forgetting memory", work->api);
    work->api->forget(work->handle);
    free(work->memory);
}

static unsigned char value(size_t block, unsigned char seed) { return (unsigned char)(block * 7 + seed); }

/* Every second block is one's own: written, with other bytes each time, and read back. */
static void *run(void *given) {
    struct work *work = given;
    const struct api *api = work->api;
    for (unsigned round = 0; round < ROUNDS; round++) {
        work->seed++;
        for (size_t block = work->first; block < BLOCKS; block += 2) {
            off_t at = (off_t)(block * BLOCK);
            memset(work->memory, value(block, work->seed), BLOCK);
            ssize_t moved = api->write(work->handle, work->memory, BLOCK, at, 0);
            if (moved != (ssize_t)BLOCK) fail("writing", api, moved);
            memset(work->memory, 0, BLOCK);
            moved = api->read(work->handle, work->memory, BLOCK, at, 0);
            if (moved != (ssize_t)BLOCK) fail("reading", api, moved);
            for (size_t byte = 0; byte < BLOCK; byte++)
                if (work->memory[byte] != value(block, work->seed)) fail("a byte", api, (long)(block * BLOCK + byte));
        }
    }
    return NULL;
}

static void look(struct work *work, const struct work *by) {
    for (size_t block = by->first; block < BLOCKS; block += 2) {
        ssize_t moved = work->api->read(work->handle, work->memory, BLOCK, (off_t)(block * BLOCK), 0);
        if (moved != (ssize_t)BLOCK) fail("reading what the other wrote", work->api, moved);
        if (work->memory[0] != value(block, by->seed) || work->memory[BLOCK - 1] != value(block, by->seed))
            fail("what the other wrote", work->api, (long)block);
    }
}

static void together(struct api *first, struct api *second, const char *path) {
    load(first, RTLD_GLOBAL);
    load(second, RTLD_LOCAL);
    if (!first->own == !second->own) fail("the names led to one library", NULL, 0);
    int fd = open(path, O_RDWR | O_DIRECT);
    if (fd < 0) cannot("the file system has no O_DIRECT");
    struct work one = {.api = first, .fd = fd, .first = 0, .seed = 11};
    struct work other = {.api = second, .fd = fd, .first = 1, .seed = 90};
    begin(&one);
    begin(&other);
    if (first->use_count() != 1 || second->use_count() != 1) fail("opened once, counted", NULL, first->use_count());
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, &one)) exit(2);
    run(&other);
    pthread_join(thread, NULL);
    look(&one, &other);
    look(&other, &one);
    /* One goes, the other stays. */
    end(&one);
    ok(first->close(), "closing", first);
    run(&other);
    if (second->use_count() != 1) fail("closing one closed the other", NULL, second->use_count());
    end(&other);
    ok(second->close(), "closing", second);
    close(fd);
}

int main(int argc, char **argv) {
    char path[4096];
    if (argc != 5) {
        fprintf(stderr, "both NVIDIA OURS FOLDER nvidia|ours\n");
        return 2;
    }
    snprintf(path, sizeof path, "%s/both.data", argv[3]);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, BLOCK * BLOCKS)) return 2;
    close(fd);
    struct api theirs = {.name = "NVIDIA's", .path = argv[1]}, ours = {.name = "ours", .path = argv[2]};
    bool theirs_first = !strcmp(argv[4], "nvidia");
    together(theirs_first ? &theirs : &ours, theirs_first ? &ours : &theirs, path);
    unlink(path);
    printf("test result: ok. 1 passed; 0 failed; 0 ignored\n");
    return 0;
}
