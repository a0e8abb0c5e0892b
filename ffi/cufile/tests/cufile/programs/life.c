/* A process that loads the library again and again, opens and closes it, forks, and leaves with batches in flight. */
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

#define PAGE 4096
#define ENTRIES 128

static unsigned char memory[ENTRIES * PAGE];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void read_some(CUfileHandle_t fh) {
    memset(memory, 0, 3 * PAGE);
    CHECK(cuFileRead(fh, memory, 3 * PAGE, 100, 0) == 3 * PAGE && bytes_are(memory, 100, 3 * PAGE));
}

/* Loaded and unloaded in a loop, opened or not. */
static void load_again(const char *library, const char *path) {
    for (int round = 0; round < 30; round++) {
        void *loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        CHECK(loaded != NULL);
        CUfileError_t (*open_)(void), (*close_)(void);
        *(void **)&open_ = dlsym(loaded, "cuFileDriverOpen");
        *(void **)&close_ = dlsym(loaded, "cuFileDriverClose_v2");
        CHECK(open_ && close_);
        if (round % 3) {
            CHECK(open_().err == CU_FILE_SUCCESS);
            if (round % 3 == 2) CHECK(close_().err == CU_FILE_SUCCESS);
        }
        CHECK(dlclose(loaded) == 0);
    }
    while (cuFileUseCount() > 0) OK(cuFileDriverClose());
    (void)path;
}

static void open_again(const char *path) {
    int fd = open(path, O_RDONLY);
    double begun = now();
    for (int round = 0; round < 50; round++) {
        OK(cuFileDriverOpen());
        CUfileHandle_t fh = handle_of(fd);
        read_some(fh);
        if (round % 2) cuFileHandleDeregister(fh);
        OK(cuFileDriverClose());
        CHECK(cuFileRead(fh, memory, PAGE, 0, 0) < 0);
    }
    /* The documented library takes two seconds for each. */
    CHECK(now() - begun < 20);
    close(fd);
}

static void submit(CUfileHandle_t fh, CUfileBatchHandle_t *batch) {
    static CUfileIOParams_t params[ENTRIES];
    OK(cuFileBatchIOSetUp(batch, ENTRIES));
    for (unsigned index = 0; index < ENTRIES; index++) {
        params[index].mode = CUFILE_BATCH;
        params[index].u.batch.devPtr_base = memory;
        params[index].u.batch.devPtr_offset = index * PAGE;
        params[index].u.batch.file_offset = index * PAGE;
        params[index].u.batch.size = PAGE;
        params[index].fh = fh;
        params[index].opcode = CUFILE_READ;
    }
    OK(cuFileBatchIOSubmit(*batch, ENTRIES, params, 0));
}

static void ended_with(pid_t child, int code) {
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code);
}

/* A child knows nothing of what its parent had, and may begin anew; the parent goes on. */
static void forks(const char *path) {
    int fd = open(path, O_RDONLY);
    CUfileHandle_t fh = handle_of(fd);
    CUfileBatchHandle_t batch = NULL;
    OK(cuFileBufRegister(memory, sizeof memory, 0));
    read_some(fh);
    submit(fh, &batch);
    pid_t child = fork();
    if (child == 0) {
        unsigned room = 1;
        CUfileIOEvents_t event;
        CHECK(cuFileUseCount() == 0);
        CHECK(cuFileRead(fh, memory, PAGE, 0, 0) == -CU_FILE_HANDLE_NOT_REGISTERED);
        IS(cuFileBatchIOGetStatus(batch, 1, &room, &event, NULL), CU_FILE_INVALID_CONTEXT_ERROR);
        IS(cuFileBufDeregister(memory), CU_FILE_MEMORY_NOT_REGISTERED);
        IS(cuFileDriverClose(), CU_FILE_DRIVER_NOT_INITIALIZED);
        cuFileHandleDeregister(fh);
        cuFileBatchIODestroy(batch);
        read_some(handle_of(fd));
        pid_t grandchild = fork();
        if (grandchild == 0) {
            CHECK(cuFileUseCount() == 0);
            read_some(handle_of(fd));
            exit(8);
        }
        ended_with(grandchild, 8);
        OK(cuFileDriverClose());
        exit(7);
    }
    ended_with(child, 7);
    CHECK(cuFileUseCount() == 1);
    read_some(fh);
    cuFileBatchIODestroy(batch);
    /* Closed with a batch in flight: its memory is the caller's again. */
    submit(fh, &batch);
    OK(cuFileDriverClose());
    memset(memory, 7, sizeof memory);
    CHECK(all_are(memory, 7, sizeof memory));
    close(fd);
}

/* Leaves with transfers in flight, by exit and by the end of the thread that submitted. */
static void leaves(const char *path) {
    for (int way = 0; way < 3; way++) {
        double begun = now();
        pid_t child = fork();
        if (child == 0) {
            CUfileHandle_t fh = handle_of(open(path, O_RDONLY | (way == 1 ? O_DIRECT : 0)));
            CUfileBatchHandle_t batch = NULL;
            submit(fh, &batch);
            if (way == 2) _exit(9);
            exit(9);
        }
        ended_with(child, 9);
        CHECK(now() - begun < 10);
    }
}

static const char *shared_path;
static CUfileHandle_t shared;

static void *reader(void *number) {
    size_t own = (size_t)number;
    unsigned char *bytes = malloc(8 * PAGE);
    for (size_t round = 0; round < 40; round++) {
        size_t offset = ((own * 131 + round * 977) % 200) * 4000, size = 1 + (own * 37 + round * 4099) % (7 * PAGE);
        CHECK(cuFileRead(shared, bytes, size, (off_t)offset, 5) == (ssize_t)size && bytes_are(bytes + 5, offset, size));
        CHECK(strstr(last_path(), "\"failed\":false"));
    }
    free(bytes);
    return NULL;
}

/* Many threads on one handle, which another one opens, closes and registers beside. */
static void threads(void) {
    pthread_t all[64];
    shared = handle_of(open(shared_path, O_RDONLY));
    for (size_t number = 0; number < 64; number++) CHECK(pthread_create(&all[number], NULL, reader, (void *)number) == 0);
    for (int round = 0; round < 100; round++) {
        OK(cuFileDriverOpen());
        OK(cuFileBufRegister(memory, sizeof memory, 0));
        OK(cuFileBufDeregister(memory));
        OK(cuFileDriverClose());
    }
    for (int number = 0; number < 64; number++) CHECK(pthread_join(all[number], NULL) == 0);
    OK(cuFileDriverClose());
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    shared_path = argv[1];
    load_again(argv[2], argv[1]);
    open_again(argv[1]);
    forks(argv[1]);
    leaves(argv[1]);
    threads();
    return 0;
}
