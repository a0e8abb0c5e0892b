/* SPDX-License-Identifier: Apache-2.0 */
/* The library in a process: loaded, unloaded, forked, left. */
#include "suite.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>

static void load(void) {
    const char *reason = api_load();
    if (reason) give_up("the library %s", reason);
}

static void names(void) {
    load();
    is_true("all 50 names", true);
}

static void load_loop(void) {
    for (int turn = 0; turn < 20; turn++) {
        load();
        int version = 0;
        if (cu.GetVersion(&version).err) give_up("no version in turn %d", turn);
        dlclose(cu.library);
    }
    is_true("20 times", true);
}

static void open_loop(void) {
    for (int turn = 0; turn < 5; turn++) {
        load();
        must_open();
        CUfileHandle_t handle = open_file("file", PAGE, 0);
        ssize_t got = CALL(cu.Read(handle, memory_new(PAGE), PAGE, 0, 0));
        is_bytes("read", got, errno, (ssize_t)PAGE);
        cu.HandleDeregister(handle);
        if (cu.DriverClose().err) give_up("close failed in turn %d", turn);
        dlclose(cu.library);
    }
}

/* Runs `what` in a child; its exit status, 128 and the signal, or -1 for a hang. */
static int in_child(void (*what)(void)) {
    pid_t pid = fork();
    if (pid < 0) give_up("no child");
    if (pid == 0) {
        what();
        exit(0);
    }
    for (int waits = 0; waits < 1000; waits++) {
        int status = 0;
        if (waitpid(pid, &status, WNOHANG) == pid) return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        usleep(10000);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return -1;
}

static CUfileHandle_t handle;
static unsigned char *memory;

static void leave_open(void) {
    load();
    must_open();
    handle = open_file("file", MIB, O_DIRECT);
    if (cu.Read(handle, memory_new(PAGE), PAGE, 0, 0) != (ssize_t)PAGE) _exit(9);
}

static void exit_open(void) { is_number("exit status", in_child(leave_open), 0); }

static void leave_batch(void) {
    enum { COUNT = 64 };
    static CUfileIOParams_t params[COUNT];
    leave_open();
    unsigned char *many = memory_new(COUNT * 64 * KIB);
    CUfileBatchHandle_t batch = NULL;
    if (cu.BatchIOSetUp(&batch, COUNT).err) _exit(9);
    for (unsigned index = 0; index < COUNT; index++) {
        params[index].mode = CUFILE_BATCH;
        params[index].fh = handle;
        params[index].u.batch.devPtr_base = many + index * 64 * KIB;
        params[index].u.batch.size = 64 * KIB;
    }
    if (cu.BatchIOSubmit(batch, COUNT, params, 0).err) _exit(9);
}

static void exit_batch(void) { is_number("exit status", in_child(leave_batch), 0); }

static void read_in_child(void) {
    ssize_t got = cu.Read(handle, memory, PAGE, 0, 0);
    _exit(got == (ssize_t)PAGE || got < 0 ? 0 : 9);
}

static void fork_read(void) {
    must_open();
    handle = open_file("file", MIB, O_DIRECT);
    memory = memory_new(PAGE);
    is_number("the child ends", in_child(read_in_child), 0);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_bytes("the parent reads", got, errno, (ssize_t)PAGE);
}

static void child_of_its_own(void) {
    leave_open();
    if (cu.DriverClose().err) _exit(8);
}

static void fork_before_open(void) {
    load();
    is_number("the child ends", in_child(child_of_its_own), 0);
    must_open();
    is_number("use count of the parent", cu.UseCount(), 1);
}

#define LIFE "documented: API reference, general"
static const struct test_case cases[] = {
    {"life.names", "documented: cufile.h 1.20", "all names of the header are exported", names, HOST_ONLY, UNLOADED},
    {"life.load_loop", LIFE, "loaded and unloaded 20 times", load_loop, HOST_ONLY, UNLOADED},
    {"life.open_loop", LIFE, "loaded, opened, used, closed and unloaded five times", open_loop, HOST_ONLY, UNLOADED},
    {"life.exit_open", LIFE, "a process may end with the driver open", exit_open, HOST_ONLY, UNLOADED},
    {"life.exit_batch", LIFE, "and with a batch that runs", exit_batch, HOST_ONLY, UNLOADED},
    {"life.fork_before", LIFE, "a child that was forked before open uses it on its own", fork_before_open, HOST_ONLY, UNLOADED},
    {"life.fork_after", LIFE, "a read in a child that was forked after open ends, and the parent reads on", fork_read, HOST_ONLY, LOADED},
};

struct table life_cases(void) { return TABLE(cases); }
