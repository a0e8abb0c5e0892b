/* The life of the library in a process: fork, log, dlopen in a loop, the end of the process with operations in flight. */
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static atomic_int lines;

static void on_line(sw_log_level level, const char *target, const char *message, void *user) {
    if (level >= SW_LOG_ERROR && level <= SW_LOG_TRACE && target[0] && message[0]) atomic_fetch_add((atomic_int *)user, 1);
}

static void logs(const char *file) {
    sw_engine *engine = NULL;
    sw_object *object = NULL;
    sw_region *region = NULL;
    OK(sw_log_set(SW_LOG_TRACE, on_line, &lines));
    OK(sw_engine_open(NULL, &engine));
    OK(sw_object_open(engine, file, NULL, &object));
    /* Looking for a driver that is not there is logged. */
    CHECK(sw_region_allocate(engine, "gpu0", 4096, 0, &region) != SW_OK);
    OK(sw_engine_close(engine));
    OK(sw_object_close(object));
    MISUSE(sw_log_set(6, on_line, NULL));
    OK(sw_log_set(SW_LOG_OFF, NULL, NULL));
    printf("%d lines of the log\n", atomic_load(&lines));
}

static void on_end(sw_op *op, const sw_completion *done, void *user) {
    (void)op;
    (void)done;
    (void)user;
}

static int in_child(sw_object *object, sw_region *region, const char *file, sw_engine *parents) {
    sw_engine *engine = NULL;
    sw_op *op = NULL;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    IS(SW_ERR_FORKED, sw_read(object, 0, region, 0, 4096, NULL, NULL));
    options.callback = on_end;
    IS(SW_ERR_FORKED, sw_read_start(object, 0, region, 0, 4096, &options, &op));
    IS(SW_ERR_FORKED, sw_object_open(parents, file, NULL, &object));
    OK(sw_engine_close(parents));
    OK(sw_engine_open(NULL, &engine));
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, NULL, 4096, 0, &region));
    OK(sw_read(object, 0, region, 0, 4096, NULL, NULL));
    OK(sw_read_start(object, 0, region, 0, 4096, &options, &op));
    OK(sw_op_wait(op, SW_FOREVER, NULL));
    return 0;
}

static void forks(const char *file) {
    sw_engine *engine = NULL;
    sw_object *object = NULL;
    sw_region *region = NULL;
    sw_op *op = NULL;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    int status = -1;
    options.callback = on_end;
    OK(sw_engine_open(NULL, &engine));
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, NULL, 4096, 0, &region));
    OK(sw_read_start(object, 0, region, 0, 4096, &options, &op));
    OK(sw_op_wait(op, SW_FOREVER, NULL));
    OK(sw_op_free(op));
    pid_t child = fork();
    if (child == 0) _exit(in_child(object, region, file, engine));
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    OK(sw_read(object, 0, region, 0, 4096, NULL, NULL));
    OK(sw_engine_close(engine));
}

/* Threads of an engine run its code: it stays where it is. */
static void loads(const char *library) {
    for (int turn = 0; turn < 20; turn++) {
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        CHECK(handle != NULL);
        CHECK(dlsym(handle, "sw_engine_open") != NULL);
        CHECK(dlclose(handle) == 0);
    }
}

/* Ends the process with reads in flight, callbacks and all, by its own exit. */
static void leave(const char *file) {
    static sw_op *ops[64];
    sw_engine *engine = NULL;
    sw_object *object = NULL;
    sw_region *region = NULL;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    options.callback = on_end;
    OK(sw_engine_open(NULL, &engine));
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, NULL, 1 << 20, 0, &region));
    for (unsigned index = 0; index < 64; index++) {
        OK(sw_read_start(object, index * 16384, region, index * 16384, 16384, &options, &ops[index]));
    }
    exit(0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    logs(argv[1]);
    forks(argv[1]);
    loads(argv[2]);
    leave(argv[1]);
    return 1;
}
