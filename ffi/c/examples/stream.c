/*
 * Reads a file into memory of a GPU, piece by piece, in the order of a CUDA stream: the host queues everything and waits once. Two
 * buffers take turns: the stream itself keeps a read from a buffer whose last piece is still being used.
 *
 *     cc stream.c $(pkg-config --cflags --libs straightway) -I$CUDA_HOME/include -lcuda -o stream
 *     ./stream FILE
 */
#include <cuda.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <straightway.h>

#define PIECE (256u << 10)

struct job {
    sw_object *object;
    CUstream stream;
    CUdeviceptr buffers[2];
    sw_region *regions[2];
    unsigned char *host; /* where the program's own work puts the bytes */
    uint64_t length;
};

static int failed(const char *what) {
    sw_error error = SW_ERROR_INIT;
    sw_error_last(&error);
    fprintf(stderr, "%s: %s\n", what, error.message);
    return 1;
}

static int cuda(CUresult result, const char *what) {
    const char *name = "unknown";
    if (result == CUDA_SUCCESS) return 0;
    cuGetErrorName(result, &name);
    fprintf(stderr, "%s: %s\n", what, name);
    return 1;
}

static int set_up(struct job *job, sw_engine *engine) {
    CUcontext context;
    CUdevice device;
    sw_region_options options = SW_REGION_OPTIONS_INIT;
    options.destination = "gpu0";
    if (cuda(cuInit(0), "cuInit") || cuda(cuDeviceGet(&device, 0), "cuDeviceGet")) return 1;
    if (cuda(cuDevicePrimaryCtxRetain(&context, device), "context") || cuda(cuCtxSetCurrent(context), "context")) return 1;
    if (cuda(cuStreamCreate(&job->stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate")) return 1;
    for (int turn = 0; turn < 2; turn++) {
        if (cuda(cuMemAlloc(&job->buffers[turn], PIECE), "cuMemAlloc")) return 1;
        if (sw_region_register(engine, (void *)(uintptr_t)job->buffers[turn], PIECE, &options, &job->regions[turn]) != SW_OK) return failed("register");
    }
    return 0;
}

/* Queues a read, and behind it the work on its bytes: a copy here, a kernel in a real program. */
static int queue(struct job *job, uint64_t at, sw_op **op) {
    int turn = (int)(at / PIECE % 2);
    uint64_t length = job->length - at < PIECE ? job->length - at : PIECE;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    options.flags = SW_IO_STREAM;
    options.stream = job->stream;
    if (sw_read_start(job->object, at, job->regions[turn], 0, length, &options, op) != SW_OK) return failed("read");
    return cuda(cuMemcpyDtoHAsync(job->host + at, job->buffers[turn], length, job->stream), "copy");
}

static int run(struct job *job) {
    uint64_t pieces = (job->length + PIECE - 1) / PIECE, moved = 0, sum = 0;
    sw_op **ops = calloc(pieces, sizeof *ops);
    job->host = malloc(job->length);
    for (uint64_t piece = 0; piece < pieces; piece++) {
        if (queue(job, piece * PIECE, &ops[piece])) return 1;
    }
    if (cuda(cuStreamSynchronize(job->stream), "stream")) return 1;
    for (uint64_t piece = 0; piece < pieces; piece++) {
        /* Over, as the stream is past it; its end tells the way of the bytes. */
        sw_completion done = SW_COMPLETION_INIT;
        if (sw_op_wait(ops[piece], SW_FOREVER, &done) != SW_OK) return failed("read");
        moved += done.bytes;
        sw_op_free(ops[piece]);
    }
    for (uint64_t at = 0; at < job->length; at++) sum += job->host[at];
    printf("sum %" PRIu64 "\n%" PRIu64 " bytes\n", sum, moved);
    free(ops);
    free(job->host);
    return 0;
}

int main(int argc, char **argv) {
    sw_engine *engine = NULL;
    sw_object_info info = SW_OBJECT_INFO_INIT;
    struct job job = {0};

    if (argc != 2) {
        fprintf(stderr, "usage: stream FILE\n");
        return 2;
    }
    if (sw_engine_open(NULL, &engine) != SW_OK) return failed("engine");
    if (sw_object_open(engine, argv[1], NULL, &job.object) != SW_OK) return failed("open");
    if (sw_object_info_get(job.object, &info) != SW_OK) return failed("info");
    job.length = info.length;
    if (set_up(&job, engine) || run(&job)) return 1;
    for (int turn = 0; turn < 2; turn++) {
        if (sw_region_free(job.regions[turn]) != SW_OK) return failed("free");
        cuMemFree(job.buffers[turn]);
    }
    cuStreamDestroy(job.stream);
    sw_object_close(job.object);
    return sw_engine_close(engine) == SW_OK ? 0 : failed("close");
}
