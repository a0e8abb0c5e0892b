/* Transfers that are started: asking, waiting, callbacks, eventfds, deadlines, cancelling, freeing, closing. */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"

#define COUNT 200u
#define PIECE 4096u

static sw_engine *engine;
static sw_object *object;
static sw_region *region;
static atomic_int called, wrong;

static void one(void) {
    sw_op *op = NULL;
    sw_completion done = SW_COMPLETION_INIT;
    OK(sw_read_start(object, 0, region, 0, 1 << 20, NULL, &op));
    while (sw_op_poll(op, &done) == SW_PENDING) usleep(50);
    CHECK(done.status == SW_OK && done.bytes == 1 << 20 && bytes_are(bytes_of(region), 0, 1 << 20));
    /* It may be asked again, and free of memory although the handle is there. */
    OK(sw_op_wait(op, 0, NULL));
    OK(sw_op_cancel(op));
    OK(sw_op_poll(op, &done));
    OK(sw_op_free(op));
    MISUSE(sw_op_poll(op, &done));
    MISUSE(sw_op_free(op));
    MISUSE(sw_op_cancel(op));
    MISUSE(sw_read_start(object, 0, region, 0, PIECE, NULL, NULL));
    IS(SW_ERR_OUT_OF_RANGE, sw_read_start(object, 0, region, 0, (1 << 20) + 1, NULL, &op));
    /* What is wrong with the transfer is told at its end. */
    sw_io_options options = SW_IO_OPTIONS_INIT;
    options.policy = "require=nvme";
    OK(sw_read_start(object, 0, region, 0, PIECE, &options, &op));
    IS(SW_ERR_POLICY_UNMET, sw_op_wait(op, SW_FOREVER, &done));
    CHECK(done.status == SW_ERR_POLICY_UNMET && says("POLICY_EXCLUDES"));
    OK(sw_op_free(op));
}

static sw_request read_of(unsigned index) {
    sw_request request = SW_REQUEST_INIT;
    request.object = object;
    request.verb = SW_VERB_READ;
    request.offset = index * PIECE;
    request.region = region;
    request.region_offset = index * PIECE;
    request.length = PIECE;
    return request;
}

static void many(void) {
    static sw_request requests[COUNT];
    static sw_op *ops[COUNT];
    size_t over = 0;
    memset(bytes_of(region), 0, COUNT * PIECE);
    for (unsigned index = 0; index < COUNT; index++) requests[index] = read_of(index);
    /* More than the queue holds: they wait for their place. */
    OK(sw_submit(requests, COUNT, ops));
    OK(sw_op_wait_many(ops, COUNT, 1, SW_FOREVER, &over));
    CHECK(over >= 1);
    OK(sw_op_wait_many(ops, COUNT, COUNT, SW_FOREVER, &over));
    CHECK(over == COUNT && bytes_are(bytes_of(region), 0, COUNT * PIECE));
    for (unsigned index = 0; index < COUNT; index++) {
        OK(sw_op_poll(ops[index], NULL));
        OK(sw_op_free(ops[index]));
    }
    MISUSE(sw_op_wait_many(ops, COUNT, 1, 0, &over));
    MISUSE(sw_op_wait_many(ops, 0, 0, 0, &over));
    MISUSE(sw_op_wait_many(ops, 2, 3, 0, &over));
    /* One that is wrong: none begins, and the error says which. */
    requests[COUNT - 1].length = UINT64_MAX;
    memset(bytes_of(region), 0, COUNT * PIECE);
    IS(SW_ERR_OUT_OF_RANGE, sw_submit(requests, COUNT, ops));
    CHECK(says("request 199"));
    requests[0].size = 8;
    MISUSE(sw_submit(requests, COUNT, ops));
    requests[0] = read_of(0);
    requests[1].verb = 9;
    MISUSE(sw_submit(requests, 2, ops));
    requests[1] = read_of(1);
    sw_part part = {0, region, 0, 16};
    requests[1].parts = &part;
    requests[1].part_count = 1;
    MISUSE(sw_submit(requests, 2, ops));
    requests[1].region = NULL;
    OK(sw_submit(requests, 2, ops));
    OK(sw_op_wait(ops[1], SW_FOREVER, NULL));
    OK(sw_op_free(ops[0]));
    OK(sw_op_free(ops[1]));
    MISUSE(sw_submit(requests, 0, ops));
    MISUSE(sw_submit(requests, 2, NULL));
}

static void on_end(sw_op *op, const sw_completion *done, void *user) {
    sw_completion again = SW_COMPLETION_INIT;
    if (done->status != SW_OK || done->bytes != PIECE || done->user != user) atomic_fetch_add(&wrong, 1);
    if (op != NULL) {
        /* A callback may ask, wait for others, and free its own operation. */
        if (sw_op_poll(op, &again) != SW_OK || again.bytes != PIECE) atomic_fetch_add(&wrong, 1);
        if (sw_read(object, 0, region, 0, PIECE, NULL, NULL) != SW_OK) atomic_fetch_add(&wrong, 1);
        if (sw_op_free(op) != SW_OK) atomic_fetch_add(&wrong, 1);
    }
    atomic_fetch_add(&called, 1);
}

static void on_error(sw_op *op, const sw_completion *done, void *user) {
    (void)op;
    if (done->status != SW_ERR_POLICY_UNMET || !says("POLICY_EXCLUDES")) atomic_fetch_add(&wrong, 1);
    atomic_fetch_add((atomic_int *)user, 1);
}

static void until(atomic_int *count, int wanted) {
    for (int waits = 0; atomic_load(count) < wanted && waits < 100000; waits++) usleep(100);
    CHECK(atomic_load(count) == wanted && atomic_load(&wrong) == 0);
}

static void callbacks(void) {
    static sw_request requests[COUNT];
    static sw_op *ops[COUNT];
    sw_io_options options = SW_IO_OPTIONS_INIT;
    atomic_int failures = 0;
    options.callback = on_end;
    options.user = &options;
    for (unsigned index = 0; index < COUNT; index++) {
        requests[index] = read_of(index);
        requests[index].options = &options;
    }
    OK(sw_submit(requests, COUNT, ops));
    until(&called, COUNT);
    OK(sw_submit(requests, COUNT, NULL));
    until(&called, 2 * COUNT);
    options.policy = "require=nvme";
    options.callback = on_error;
    options.user = &failures;
    OK(sw_read_start(object, 0, region, 0, PIECE, &options, NULL));
    until(&failures, 1);
    usleep(1000);
    CHECK(atomic_load(&called) == 2 * COUNT && atomic_load(&failures) == 1);
}

static void events(void) {
    static sw_request requests[COUNT];
    static sw_op *ops[COUNT];
    sw_io_options options = SW_IO_OPTIONS_INIT;
    uint64_t sum = 0;
    int fd = eventfd(0, EFD_CLOEXEC);
    CHECK(fd >= 0);
    options.flags = SW_IO_EVENT_FD;
    options.event_fd = fd;
    for (unsigned index = 0; index < COUNT; index++) {
        requests[index] = read_of(index);
        requests[index].options = &options;
    }
    MISUSE(sw_submit(requests, COUNT, NULL));
    OK(sw_submit(requests, COUNT, ops));
    while (sum < COUNT) {
        struct pollfd ready = {fd, POLLIN, 0};
        uint64_t count = 0;
        CHECK(poll(&ready, 1, 10000) == 1 && read(fd, &count, 8) == 8);
        sum += count;
    }
    CHECK(sum == COUNT);
    for (unsigned index = 0; index < COUNT; index++) {
        OK(sw_op_poll(ops[index], NULL));
        OK(sw_op_free(ops[index]));
    }
    /* The descriptor may be closed as soon as the operation was started. */
    OK(sw_submit(requests, 1, ops));
    close(fd);
    OK(sw_op_wait(ops[0], SW_FOREVER, NULL));
    OK(sw_op_free(ops[0]));
    MISUSE(sw_submit(requests, 1, ops));
    CHECK(says("event_fd"));
    options.event_fd = -1;
    MISUSE(sw_submit(requests, 1, ops));
}

static void ends_before_time(const char *file) {
    static sw_op *ops[64];
    sw_io_options options = SW_IO_OPTIONS_INIT;
    sw_completion done = SW_COMPLETION_INIT;
    sw_object *other = NULL;
    unsigned cancelled = 0, late = 0;
    OK(sw_object_open(engine, file, NULL, &other));
    for (unsigned index = 0; index < 64; index++) OK(sw_read_start(other, 0, region, index * 16384, 16384, NULL, &ops[index]));
    for (unsigned index = 0; index < 64; index++) OK(sw_op_cancel(ops[index]));
    for (unsigned index = 0; index < 64; index++) {
        sw_status status = sw_op_wait(ops[index], SW_FOREVER, &done);
        CHECK(status == done.status && (status == SW_OK || status == SW_ERR_CANCELLED));
        cancelled += status == SW_ERR_CANCELLED;
        OK(sw_op_free(ops[index]));
    }
    options.deadline_ns = 1;
    for (unsigned index = 0; index < 64; index++) {
        OK(sw_read_start(other, 0, region, index * 16384, 16384, &options, &ops[index]));
        sw_status status = sw_op_wait(ops[index], SW_FOREVER, &done);
        CHECK(status == SW_OK || status == SW_ERR_DEADLINE_EXCEEDED);
        late += status == SW_ERR_DEADLINE_EXCEEDED;
        OK(sw_op_free(ops[index]));
    }
    CHECK(late > 0);
    /* Freed while they run. */
    for (unsigned index = 0; index < 64; index++) {
        OK(sw_read_start(other, 0, region, index * 16384, 16384, NULL, &ops[index]));
        OK(sw_op_free(ops[index]));
    }
    /* The region comes free once they have let go. */
    sw_region_info info = SW_REGION_INFO_INIT;
    for (int waits = 0; waits < 100000; waits++) {
        OK(sw_region_info_get(region, &info));
        if (!info.in_use) break;
        usleep(100);
    }
    CHECK(!info.in_use);
    printf("%u of 64 were cancelled in time, %u were late\n", cancelled, late);
    OK(sw_object_close(other));
}

static void *many_threads(void *unused) {
    (void)unused;
    for (unsigned turn = 0; turn < 50; turn++) {
        sw_op *op = NULL;
        sw_completion done = SW_COMPLETION_INIT;
        OK(sw_read_start(object, 0, region, 0, PIECE, NULL, &op));
        OK(sw_op_wait(op, SW_FOREVER, &done));
        CHECK(done.bytes == PIECE);
        OK(sw_op_free(op));
        OK(sw_read(object, PIECE, region, PIECE, PIECE, NULL, NULL));
    }
    return NULL;
}

static void threads(void) {
    pthread_t thread[64];
    for (unsigned index = 0; index < 64; index++) CHECK(pthread_create(&thread[index], NULL, many_threads, NULL) == 0);
    for (unsigned index = 0; index < 64; index++) CHECK(pthread_join(thread[index], NULL) == 0);
    CHECK(bytes_are(bytes_of(region), 0, 2 * PIECE));
}

static void on_close(sw_op *op, const sw_completion *done, void *user) {
    (void)op;
    if (done->status != SW_OK && done->status != SW_ERR_CLOSED && done->status != SW_ERR_CANCELLED) atomic_fetch_add(&wrong, 1);
    atomic_fetch_add((atomic_int *)user, 1);
}

static void close_with_all_in_flight(void) {
    static sw_request requests[COUNT];
    static sw_op *ops[COUNT];
    sw_io_options options = SW_IO_OPTIONS_INIT;
    atomic_int told = 0;
    options.callback = on_close;
    options.user = &told;
    for (unsigned index = 0; index < COUNT; index++) {
        requests[index] = read_of(index);
        requests[index].options = &options;
    }
    OK(sw_submit(requests, COUNT, ops));
    OK(sw_engine_close(engine));
    CHECK(atomic_load(&told) == COUNT && atomic_load(&wrong) == 0);
    for (unsigned index = 0; index < COUNT; index++) {
        CHECK(sw_op_poll(ops[index], NULL) != SW_PENDING);
        OK(sw_op_free(ops[index]));
    }
    IS(SW_ERR_CLOSED, sw_submit(requests, COUNT, ops));
    IS(SW_ERR_CLOSED, sw_read(object, 0, region, 0, PIECE, NULL, NULL));
    OK(sw_read_start(object, 0, region, 0, PIECE, NULL, &ops[0]));
    IS(SW_ERR_CLOSED, sw_op_wait(ops[0], SW_FOREVER, NULL));
    OK(sw_op_free(ops[0]));
    MISUSE(sw_engine_close(engine));
}

static void closes(sw_op *op, const sw_completion *done, void *user) {
    (void)op;
    (void)done;
    if (sw_engine_close((sw_engine *)user) != SW_OK) atomic_fetch_add(&wrong, 1);
    atomic_fetch_add(&called, 1);
}

/* A callback may close the engine that calls it. */
static void closed_by_a_callback(const char *file) {
    sw_engine *other = NULL;
    sw_object *its = NULL;
    sw_region *place = NULL;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    int before = atomic_load(&called);
    OK(sw_engine_open(NULL, &other));
    OK(sw_object_open(other, file, NULL, &its));
    OK(sw_region_allocate(other, NULL, PIECE, 0, &place));
    options.callback = closes;
    options.user = other;
    OK(sw_read_start(its, 0, place, 0, PIECE, &options, NULL));
    until(&called, before + 1);
    MISUSE(sw_engine_close(other));
    OK(sw_object_close(its));
    OK(sw_region_release(place));
}

/* Whoever learns of the end may free the region at once. */
static void free_at_once(void) {
    for (int turn = 0; turn < 200; turn++) {
        sw_region *once = NULL;
        sw_op *op = NULL;
        OK(sw_region_allocate(engine, NULL, PIECE, 0, &once));
        OK(sw_read_start(object, 0, once, 0, PIECE, NULL, &op));
        OK(sw_op_wait(op, SW_FOREVER, NULL));
        OK(sw_region_free(once));
        OK(sw_op_free(op));
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    OK(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "gpu=off reactors=1 queue_depth=8 ops_per_lane=16"}, &engine));
    OK(sw_object_open(engine, argv[1], NULL, &object));
    OK(sw_region_allocate(engine, "host", 1 << 20, 0, &region));
    one();
    many();
    callbacks();
    events();
    ends_before_time(argv[1]);
    threads();
    free_at_once();
    closed_by_a_callback(argv[1]);
    close_with_all_in_flight();
    OK(sw_object_close(object));
    OK(sw_region_free(region));
    return 0;
}
