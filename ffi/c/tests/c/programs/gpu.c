/* Memory and streams of a GPU, by the driver that is given (the project's stand-in, or a real one). */
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

#define LENGTH (1u << 20)
#define HALF (LENGTH / 2)

static sw_engine *engine;
static sw_object *object;
static unsigned char host[LENGTH];
static atomic_int called;

/* How many bytes from a place on are a byte. */
static uint64_t run_of(const unsigned char *bytes, uint64_t length, unsigned char byte) {
    uint64_t at = 0;
    while (at < length && bytes[at] == byte) at++;
    return at;
}

/* Memory of the engine's, and of the program's. */
static void memory(void) {
    sw_region *own = NULL, *given = NULL, *found = NULL;
    sw_region_info info = SW_REGION_INFO_INIT;
    sw_region_options options = SW_REGION_OPTIONS_INIT;
    sw_completion done = SW_COMPLETION_INIT;
    uint64_t device = 0, at = 0;
    OK(sw_region_allocate(engine, "gpu0", LENGTH, 0, &own));
    OK(sw_region_info_get(own, &info));
    CHECK(strcmp(info.destination, "gpu0") == 0 && info.length == LENGTH && info.address != NULL);
    OK(sw_read(object, 0, own, 0, LENGTH, NULL, &done));
    CHECK(done.bytes == LENGTH && done.landing != SW_LANDING_NONE);
    OK(sw_region_get(own, 0, LENGTH, host));
    CHECK(bytes_are(host, 0, LENGTH));
    OK(sw_region_put(own, 5, 3, "abc"));
    OK(sw_region_get(own, 4, 5, host));
    CHECK(memcmp(host + 1, "abc", 3) == 0 && host[0] == byte_at(4) && host[4] == byte_at(8));
    OK(sw_region_free(own));

    CHECK(cuMemAlloc(&device, LENGTH) == 0);
    options.destination = "gpu0";
    OK(sw_region_register(engine, (void *)(uintptr_t)device, LENGTH, &options, &given));
    OK(sw_region_find(engine, (void *)(uintptr_t)(device + 4096), 4096, &found, &at));
    CHECK(found == given && at == 4096);
    OK(sw_read(object, 12345, given, 777, 50000, NULL, &done));
    CHECK(cuMemcpyDtoH(host, device + 777, 50000) == 0 && bytes_are(host, 12345, 50000));
    options.destination = "gpu9";
    CHECK(sw_region_register(engine, (void *)(uintptr_t)device, LENGTH, &options, &found) != SW_OK);
    options.destination = "gpu0";
    CHECK(sw_region_register(engine, (void *)(uintptr_t)8192, LENGTH, &options, &found) != SW_OK);
    OK(sw_region_free(given));
    CHECK(cuMemFree(device) == 0);
}

static void on_end(sw_op *op, const sw_completion *done, void *user) {
    (void)op;
    if (done->status == *(sw_status *)user) atomic_fetch_add(&called, 1);
}

/* A read after a fill of the program's, and before another one. Nobody waits for the read but the stream. */
static void read_in_order(sw_region *region, uint64_t device, CUstream stream) {
    sw_io_options options = SW_IO_OPTIONS_INIT;
    sw_op *op = NULL;
    sw_completion done = SW_COMPLETION_INIT;
    options.flags = SW_IO_STREAM;
    options.stream = stream;
    for (int turn = 0; turn < 20; turn++) {
        CHECK(cuMemsetD8Async(device, 0x11, LENGTH, stream) == 0);
        OK(sw_read_start(object, 0, region, 0, LENGTH, &options, &op));
        /* One that did not wait for its stream would be over before anybody asks the stream. */
        if (turn % 5 == 0) usleep(20000);
        CHECK(cuMemsetD8Async(device, 0x33, HALF, stream) == 0);
        CHECK(cuStreamSynchronize(stream) == 0);
        OK(sw_op_poll(op, &done));
        CHECK(done.bytes == LENGTH);
        CHECK(cuMemcpyDtoH(host, device, LENGTH) == 0);
        CHECK(run_of(host, HALF, 0x33) == HALF && bytes_are(host + HALF, HALF, HALF));
        OK(sw_op_free(op));
    }
}

/* The first that an engine does with a GPU: setting it up allocates, which may wait for whatever is in the stream. */
static void first_of_all(const char *file, uint64_t device, CUstream stream) {
    sw_engine *fresh = NULL;
    sw_object *its = NULL;
    sw_region *region = NULL;
    sw_op *op = NULL;
    sw_region_options options = SW_REGION_OPTIONS_INIT;
    sw_io_options ordered = SW_IO_OPTIONS_INIT;
    options.destination = "gpu0";
    ordered.flags = SW_IO_STREAM;
    ordered.stream = stream;
    OK(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "reactors=2 staging_bytes=4MiB"}, &fresh));
    OK(sw_object_open(fresh, file, NULL, &its));
    OK(sw_region_register(fresh, (void *)(uintptr_t)device, LENGTH, &options, &region));
    for (int turn = 0; turn < 4; turn++) {
        CHECK(cuMemsetD8Async(device, 0x11, LENGTH, stream) == 0);
        OK(sw_read_start(its, 0, region, 0, LENGTH, &ordered, &op));
        OK(sw_op_wait(op, SW_FOREVER, NULL));
        OK(sw_op_free(op));
        CHECK(cuStreamSynchronize(stream) == 0 && cuMemcpyDtoH(host, device, LENGTH) == 0 && bytes_are(host, 0, LENGTH));
    }
    OK(sw_engine_close(fresh));
    OK(sw_object_close(its));
    OK(sw_region_release(region));
}

/* Two reads in one stream that nobody but the library looks at: it does not ask the stream about the second one while the first runs,
 * for a driver that runs a stream when it is asked would wait for the first, which waits for who asks. */
static void two_in_one_stream(sw_region *region, uint64_t device, CUstream stream) {
    sw_io_options options = SW_IO_OPTIONS_INIT;
    sw_op *op[2] = {NULL, NULL};
    sw_completion done = SW_COMPLETION_INIT;
    struct timespec begun, ended;
    options.flags = SW_IO_STREAM;
    options.stream = stream;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (int turn = 0; turn < 10; turn++) {
        CHECK(cuMemsetD8Async(device, 0x11, LENGTH, stream) == 0);
        OK(sw_read_start(object, 0, region, 0, LENGTH, &options, &op[0]));
        OK(sw_read_start(object, 9, region, 0, HALF, &options, &op[1]));
        usleep(20000);
        CHECK(cuStreamSynchronize(stream) == 0);
        for (int each = 0; each < 2; each++) {
            OK(sw_op_poll(op[each], &done));
            CHECK(done.bytes == (each ? HALF : LENGTH));
            OK(sw_op_free(op[each]));
        }
        CHECK(cuMemcpyDtoH(host, device, LENGTH) == 0);
        CHECK(bytes_are(host, 9, HALF) && bytes_are(host + HALF, HALF, HALF));
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    CHECK(ended.tv_sec - begun.tv_sec < 8);
}

/* The same without a handle: the callback tells. */
static void callback_in_order(sw_region *region, uint64_t device, CUstream stream) {
    sw_io_options options = SW_IO_OPTIONS_INIT;
    sw_status wanted = SW_OK;
    options.flags = SW_IO_STREAM;
    options.stream = stream;
    options.callback = on_end;
    options.user = &wanted;
    OK(sw_read_start(object, 0, region, 0, LENGTH, &options, NULL));
    CHECK(cuMemsetD8Async(device, 0x44, 1, stream) == 0 && cuStreamSynchronize(stream) == 0);
    for (int waits = 0; atomic_load(&called) < 1 && waits < 100000; waits++) usleep(100);
    CHECK(atomic_load(&called) == 1);
    CHECK(cuMemcpyDtoH(host, device, LENGTH) == 0 && host[0] == 0x44 && bytes_are(host + 1, 1, LENGTH - 1));
}

/* A write of what a fill before it left, not of what one after it does. */
static void write_in_order(const char *file, sw_region *region, uint64_t device, CUstream stream) {
    char name[4096];
    sw_object *fresh = NULL;
    sw_region *back = NULL;
    sw_op *op = NULL;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    snprintf(name, sizeof name, "%s.gpu", file);
    options.flags = SW_IO_STREAM;
    options.stream = stream;
    OK(sw_object_create(engine, name, LENGTH, &fresh));
    CHECK(cuMemsetD8Async(device, 0x55, LENGTH, stream) == 0);
    OK(sw_write_start(fresh, 0, region, 0, LENGTH, &options, &op));
    usleep(20000);
    CHECK(cuMemsetD8Async(device, 0x66, LENGTH, stream) == 0 && cuStreamSynchronize(stream) == 0);
    OK(sw_op_poll(op, NULL));
    OK(sw_op_free(op));
    OK(sw_object_commit(fresh));
    OK(sw_object_open(engine, name, NULL, &fresh));
    OK(sw_region_allocate(engine, NULL, LENGTH, 0, &back));
    OK(sw_read(fresh, 0, back, 0, LENGTH, NULL, NULL));
    CHECK(run_of(bytes_of(back), LENGTH, 0x55) == LENGTH);
    OK(sw_region_free(back));
    OK(sw_object_close(fresh));
    remove(name);
}

/* Whatever becomes of the operation, the stream goes on. */
static void stream_goes_on(sw_region *region, uint64_t device, CUstream stream) {
    sw_io_options options = SW_IO_OPTIONS_INIT;
    sw_request requests[3];
    sw_op *op = NULL;
    options.flags = SW_IO_STREAM;
    options.stream = stream;
    options.policy = "require=nvme";
    OK(sw_read_start(object, 0, region, 0, LENGTH, &options, &op));
    CHECK(cuStreamSynchronize(stream) == 0);
    IS(SW_ERR_POLICY_UNMET, sw_op_poll(op, NULL));
    OK(sw_op_free(op));
    options.policy = NULL;
    /* Refused: none of its gates stays closed. */
    for (unsigned index = 0; index < 3; index++) {
        requests[index] = (sw_request)SW_REQUEST_INIT;
        requests[index].object = object;
        requests[index].verb = SW_VERB_READ;
        requests[index].region = region;
        requests[index].length = index < 2 ? LENGTH : LENGTH + 1;
        requests[index].options = &options;
    }
    IS(SW_ERR_OUT_OF_RANGE, sw_submit(requests, 3, (sw_op *[3]){NULL}));
    CHECK(cuStreamSynchronize(stream) == 0);
    options.stream_gpu = 9;
    CHECK(sw_read_start(object, 0, region, 0, LENGTH, &options, &op) != SW_OK);
    options.stream_gpu = 0;
    MISUSE(sw_read(object, 0, region, 0, LENGTH, &options, NULL));
    /* Freed and cancelled at once. */
    for (int turn = 0; turn < 50; turn++) {
        CHECK(cuMemsetD8Async(device, 0x77, LENGTH, stream) == 0);
        OK(sw_read_start(object, 0, region, 0, LENGTH, &options, &op));
        if (turn % 2) OK(sw_op_cancel(op));
        OK(sw_op_free(op));
    }
    CHECK(cuStreamSynchronize(stream) == 0);
    /* More than there are gates: refused, and the stream goes on. */
    static sw_op *ops[1100];
    unsigned started = 0;
    sw_status status = SW_OK;
    CHECK(cuMemsetD8Async(device, 0x77, LENGTH, stream) == 0);
    while (started < 1100 && (status = sw_read_start(object, 0, region, 0, 16, &options, &ops[started])) == SW_OK) started++;
    CHECK(started == 1100 || status == SW_ERR_BUSY);
    for (unsigned index = 0; index < started; index++) {
        OK(sw_op_wait(ops[index], SW_FOREVER, NULL));
        OK(sw_op_free(ops[index]));
    }
    CHECK(cuStreamSynchronize(stream) == 0);
    printf("%u in stream order at once\n", started);
}

int main(int argc, char **argv) {
    CUstream stream = NULL;
    uint64_t device = 0;
    sw_region *region = NULL;
    sw_op *op = NULL;
    sw_region_options options = SW_REGION_OPTIONS_INIT;
    sw_io_options ordered = SW_IO_OPTIONS_INIT;
    CHECK(argc == 3);
    load(argv[2]);
    OK(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "reactors=2 staging=64KiBx4"}, &engine));
    OK(sw_object_open(engine, argv[1], NULL, &object));
    memory();
    CHECK(cuMemAlloc(&device, LENGTH) == 0 && cuStreamCreate(&stream, 1) == 0);
    options.destination = "gpu0";
    OK(sw_region_register(engine, (void *)(uintptr_t)device, LENGTH, &options, &region));
    first_of_all(argv[1], device, stream);
    read_in_order(region, device, stream);
    two_in_one_stream(region, device, stream);
    callback_in_order(region, device, stream);
    write_in_order(argv[1], region, device, stream);
    stream_goes_on(region, device, stream);
    /* Closed with one in the stream. */
    ordered.flags = SW_IO_STREAM;
    ordered.stream = stream;
    CHECK(cuMemsetD8Async(device, 0x77, LENGTH, stream) == 0);
    OK(sw_read_start(object, 0, region, 0, LENGTH, &ordered, &op));
    OK(sw_engine_close(engine));
    CHECK(cuStreamSynchronize(stream) == 0);
    CHECK(sw_op_poll(op, NULL) != SW_PENDING);
    OK(sw_op_free(op));
    OK(sw_object_close(object));
    OK(sw_region_release(region));
    CHECK(cuStreamDestroy(stream) == 0 && cuMemFree(device) == 0);
    return 0;
}
