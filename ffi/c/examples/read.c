/*
 * Reads a file and tells the way that its bytes took.
 *
 *     cc read.c $(pkg-config --cflags --libs straightway) -o read
 *     ./read FILE [DESTINATION [POLICY]]
 */
#include <inttypes.h>
#include <stdio.h>
#include <straightway.h>

/* Tells the last error, and gives the exit status. */
static int failed(const char *what) {
    sw_error error = SW_ERROR_INIT;
    sw_error_last(&error);
    fprintf(stderr, "%s: %s\n", what, error.message);
    return 1;
}

/* Reads all of an object into fresh memory, in pieces of at most 8 MiB. */
static int read_all(sw_engine *engine, sw_object *object, const char *destination, const char *policy) {
    const uint64_t piece = 8u << 20;
    sw_object_info info = SW_OBJECT_INFO_INIT;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    sw_region *region = NULL;
    int status = 0;

    if (sw_object_info_get(object, &info) != SW_OK) return failed("info");
    if (sw_region_allocate(engine, destination, piece, 0, &region) != SW_OK) return failed("allocate");
    options.policy = policy;
    options.checksum = SW_CHECKSUM_CRC64_NVME;
    for (uint64_t at = 0; at < info.length && status == 0; at += piece) {
        uint64_t length = info.length - at < piece ? info.length - at : piece;
        sw_completion done = SW_COMPLETION_INIT;
        if (sw_read(object, at, region, 0, length, &options, &done) != SW_OK) {
            status = failed("read");
        } else {
            printf("%" PRIu64 " bytes by %s, %" PRIu64 " in place, %" PRIu64 " bounced (%s)", done.bytes, done.transport,
                   done.bytes_dma, done.bounced, done.reason);
            if (done.has_checksum) printf(", crc64 %016" PRIx64, done.checksum);
            printf("\n");
        }
    }
    sw_region_free(region);
    return status;
}

int main(int argc, char **argv) {
    sw_engine *engine = NULL;
    sw_object *object = NULL;
    int status;

    if (argc < 2) {
        fprintf(stderr, "usage: read FILE [DESTINATION [POLICY]]\n");
        return 2;
    }
    if (sw_engine_open(NULL, &engine) != SW_OK) return failed("engine");
    if (sw_object_open(engine, argv[1], NULL, &object) != SW_OK) {
        status = failed("open");
    } else {
        status = read_all(engine, object, argc > 2 ? argv[2] : "host", argc > 3 ? argv[3] : NULL);
        sw_object_close(object);
    }
    sw_engine_close(engine);
    return status;
}
