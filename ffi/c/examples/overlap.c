/*
 * Keeps many reads in flight: each place of a ring gets the next piece of the file as soon as its last one is over.
 *
 *     cc overlap.c $(pkg-config --cflags --libs straightway) -o overlap
 *     ./overlap FILE
 */
#include <inttypes.h>
#include <stdio.h>
#include <straightway.h>

#define PLACES 16
#define PIECE (256u << 10)

struct reader {
    sw_object *object;
    sw_region *region;
    uint64_t length; /* of the file */
    uint64_t next;   /* first byte that was not asked for yet */
    uint64_t bytes;  /* that arrived */
};

static int failed(const char *what) {
    sw_error error = SW_ERROR_INIT;
    sw_error_last(&error);
    fprintf(stderr, "%s: %s\n", what, error.message);
    return 1;
}

/* Starts the next piece into a place, if there is one; *op is NULL otherwise. */
static sw_status start(struct reader *reader, unsigned place, sw_op **op) {
    uint64_t at = reader->next, length = reader->length - at;
    *op = NULL;
    if (length == 0) return SW_OK;
    if (length > PIECE) length = PIECE;
    reader->next += length;
    return sw_read_start(reader->object, at, reader->region, (uint64_t)place * PIECE, length, NULL, op);
}

static sw_status run(struct reader *reader) {
    sw_op *ops[PLACES] = {NULL};
    sw_status status = SW_OK;
    for (unsigned place = 0; place < PLACES && status == SW_OK; place++) status = start(reader, place, &ops[place]);
    for (unsigned place = 0; status == SW_OK && ops[place] != NULL; place = (place + 1) % PLACES) {
        sw_completion done = SW_COMPLETION_INIT;
        status = sw_op_wait(ops[place], SW_FOREVER, &done);
        sw_op_free(ops[place]);
        ops[place] = NULL;
        reader->bytes += done.bytes;
        /* Here the bytes of the piece would be used: they are in the region, at place * PIECE. */
        if (status == SW_OK) status = start(reader, place, &ops[place]);
    }
    for (unsigned place = 0; place < PLACES; place++) {
        if (ops[place] != NULL) sw_op_free(ops[place]);
    }
    return status;
}

int main(int argc, char **argv) {
    sw_engine *engine = NULL;
    sw_object_info info = SW_OBJECT_INFO_INIT;
    struct reader reader = {0};

    if (argc != 2) {
        fprintf(stderr, "usage: overlap FILE\n");
        return 2;
    }
    if (sw_engine_open(NULL, &engine) != SW_OK) return failed("engine");
    if (sw_object_open(engine, argv[1], NULL, &reader.object) != SW_OK) return failed("open");
    if (sw_object_info_get(reader.object, &info) != SW_OK) return failed("info");
    if (sw_region_allocate(engine, "host", PLACES * PIECE, 0, &reader.region) != SW_OK) return failed("allocate");
    reader.length = info.length;
    if (run(&reader) != SW_OK) return failed("read");
    printf("%" PRIu64 " bytes\n", reader.bytes);
    sw_region_release(reader.region);
    sw_object_close(reader.object);
    return sw_engine_close(engine) == SW_OK ? 0 : failed("close");
}
