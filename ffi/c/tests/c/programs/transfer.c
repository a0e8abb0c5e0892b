/* Transfers that wait: bytes, the way they took, vectored ones, regions of the caller's, plans and facts. */
#include "check.h"

#define LENGTH (1u << 20)

static sw_engine *engine;
static int released;

static void on_release(void *user) { *(int *)user += 1; }

static void reads(const char *file) {
    sw_object *object = NULL;
    sw_region *region = NULL;
    sw_completion done = SW_COMPLETION_INIT;
    sw_io_options options = SW_IO_OPTIONS_INIT;
    int marker = 0;

    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, "host", LENGTH, 0, &region));
    unsigned char *bytes = bytes_of(region);
    options.checksum = SW_CHECKSUM_CRC32C;
    options.user = &marker;
    OK(sw_read(object, 0, region, 0, LENGTH, &options, &done));
    CHECK(done.status == SW_OK && done.bytes == LENGTH && bytes_are(bytes, 0, LENGTH));
    CHECK(done.bytes_dma + done.bytes_kernel_copy + done.bytes_staged == LENGTH);
    CHECK(done.landing != SW_LANDING_NONE && done.transport[0] && done.reason[0] && done.reason_text[0]);
    CHECK(done.has_checksum == 1 && done.checksum >> 32 == 0 && done.user == &marker);
    /* A part, to an interior place; the bytes beside it stay. */
    memset(bytes, 0xee, LENGTH);
    OK(sw_read(object, 777, region, 4096 + 777, 10000, NULL, &done));
    CHECK(done.bytes == 10000 && bytes_are(bytes + 4096 + 777, 777, 10000));
    CHECK(bytes[4096 + 776] == 0xee && bytes[4096 + 777 + 10000] == 0xee);
    /* The same bytes again, and again while nothing else is there. */
    for (int again = 0; again < 3; again++) OK(sw_read(object, 0, region, 0, 4096, NULL, NULL));
    /* Nothing to move is no error of ours: whatever it is, it is told as a status. */
    sw_status empty = sw_read(object, 0, region, 0, 0, NULL, &done);
    CHECK(empty == SW_OK || empty == SW_ERR_API_MISUSE || empty == SW_ERR_OUT_OF_RANGE);
    /* With an error of the transfer there is a completion. */
    options = (sw_io_options)SW_IO_OPTIONS_INIT;
    options.policy = "require=nvme";
    done.bytes = 7;
    IS(SW_ERR_POLICY_UNMET, sw_read(object, 0, region, 0, 4096, &options, &done));
    CHECK(done.status == SW_ERR_POLICY_UNMET && done.bytes == 0 && done.landing == SW_LANDING_NONE);
    /* Callbacks are for operations that are started. */
    options.policy = NULL;
    options.flags = SW_IO_EVENT_FD;
    MISUSE(sw_read(object, 0, region, 0, 4096, &options, &done));
    OK(sw_region_free(region));
    OK(sw_object_close(object));
}

static void vectored(const char *file) {
    sw_object *object = NULL;
    sw_region *one = NULL, *other = NULL;
    sw_completion done = SW_COMPLETION_INIT;
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, "host", 1 << 16, 0, &one));
    OK(sw_region_allocate(engine, "host", 1 << 16, 0, &other));
    sw_part parts[3] = {{0, one, 0, 4096}, {500000, other, 100, 5000}, {8192, one, 8192, 1}};
    OK(sw_readv(object, parts, 3, NULL, &done));
    CHECK(done.bytes == 4096 + 5000 + 1);
    CHECK(bytes_are(bytes_of(one), 0, 4096) && bytes_are(bytes_of(other) + 100, 500000, 5000));
    CHECK(bytes_are(bytes_of(one) + 8192, 8192, 1));
    MISUSE(sw_readv(object, parts, 0, NULL, &done));
    MISUSE(sw_readv(object, parts, SW_PARTS_MAX + 1, NULL, &done));
    MISUSE(sw_readv(object, NULL, 3, NULL, &done));
    parts[2].region = NULL;
    MISUSE(sw_readv(object, parts, 3, NULL, &done));
    parts[2] = (sw_part){LENGTH - 1, one, 0, 2};
    IS(SW_ERR_OUT_OF_RANGE, sw_readv(object, parts, 3, NULL, &done));
    OK(sw_region_free(one));
    OK(sw_region_free(other));
    OK(sw_object_close(object));
}

static void writes(const char *file) {
    char name[4096], first[16];
    sw_object *object = NULL;
    sw_region *region = NULL, *back = NULL;
    sw_completion done = SW_COMPLETION_INIT;
    snprintf(name, sizeof name, "%s.new", file);
    remove(name);
    OK(sw_region_allocate(engine, "host", 10000, 0, &region));
    for (int at = 0; at < 10000; at++) bytes_of(region)[at] = byte_at((uint64_t)at);
    /* Created: there as a whole after the commit, not before. */
    OK(sw_object_create(engine, name, 10000, &object));
    OK(sw_write(object, 0, region, 0, 10000, NULL, &done));
    CHECK(done.bytes == 10000 && fopen(name, "r") == NULL);
    OK(sw_object_commit(object));
    MISUSE(sw_object_commit(object));
    /* Closed without a commit: nothing changes. */
    OK(sw_object_create(engine, name, 5, &object));
    OK(sw_object_close(object));
    /* Updated in place, by parts. */
    OK(sw_object_open(engine, name, &(sw_object_options){sizeof(sw_object_options), SW_MODE_UPDATE, 0}, &object));
    MISUSE(sw_object_commit(object));
    sw_part parts[2] = {{0, region, 100, 8}, {9992, region, 200, 8}};
    OK(sw_writev(object, parts, 2, NULL, &done));
    CHECK(done.bytes == 16);
    sw_io_options options = SW_IO_OPTIONS_INIT;
    options.flags = SW_IO_ALL_METADATA;
    OK(sw_flush(object, &options, &done));
    OK(sw_region_allocate(engine, "host", 10000, 0, &back));
    OK(sw_read(object, 0, back, 0, 10000, NULL, NULL));
    CHECK(bytes_are(bytes_of(back), 100, 8) && bytes_are(bytes_of(back) + 8, 8, 9984) && bytes_are(bytes_of(back) + 9992, 200, 8));
    OK(sw_region_get(back, 9992, 8, first));
    CHECK(bytes_are((unsigned char *)first, 200, 8));
    OK(sw_region_put(back, 1, 3, "xyz"));
    CHECK(memcmp(bytes_of(back) + 1, "xyz", 3) == 0);
    IS(SW_ERR_OUT_OF_RANGE, sw_region_get(back, 9999, 2, first));
    MISUSE(sw_region_put(back, 0, 1, NULL));
    OK(sw_region_free(back));
    OK(sw_region_free(region));
    OK(sw_object_close(object));
    remove(name);
}

static void memory_of_the_caller(const char *file) {
    sw_object *object = NULL;
    sw_region *region = NULL, *twice = NULL, *found = NULL;
    sw_region_info info = SW_REGION_INFO_INIT;
    sw_region_options options = SW_REGION_OPTIONS_INIT;
    uint64_t at = 7;
    unsigned char *bytes = malloc(LENGTH);
    CHECK(bytes != NULL);
    options.release = on_release;
    options.user = &released;
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_register(engine, bytes, LENGTH, &options, &region));
    OK(sw_region_register(engine, bytes, LENGTH / 2, NULL, &twice));
    OK(sw_region_info_get(region, &info));
    CHECK(info.address == bytes && info.length == LENGTH && strcmp(info.destination, "host") == 0 && info.in_use == 0);
    /* An interior pointer. */
    OK(sw_region_find(engine, bytes + 70001, LENGTH - 70001, &found, &at));
    CHECK(found == region && at == 70001);
    OK(sw_read(object, 70001, found, at, 100, NULL, NULL));
    CHECK(bytes_are(bytes + 70001, 70001, 100));
    IS(SW_ERR_NOT_REGISTERED, sw_region_find(engine, bytes + 1, LENGTH, &found, &at));
    IS(SW_ERR_NOT_REGISTERED, sw_region_find(engine, bytes + 1, UINT64_MAX, &found, &at));
    OK(sw_read(object, 0, region, 0, LENGTH, NULL, NULL));
    CHECK(bytes_are(bytes, 0, LENGTH));
    CHECK(released == 0);
    OK(sw_region_free(region));
    CHECK(released == 1);
    OK(sw_region_find(engine, bytes, 1, &found, &at));
    CHECK(found == twice);
    OK(sw_region_release(twice));
    IS(SW_ERR_NOT_REGISTERED, sw_region_find(engine, bytes, 1, &found, &at));
    /* A registration that fails gives nothing back. */
    options.destination = "gpu0";
    CHECK(sw_region_register(engine, bytes, LENGTH, &options, &region) != SW_OK);
    CHECK(released == 1);
    free(bytes);
    OK(sw_object_close(object));
}

static void texts(const char *file) {
    sw_object *object = NULL;
    sw_text *text = NULL;
    const char *data = NULL;
    size_t length = 0;
    OK(sw_engine_doctor(engine, &text));
    OK(sw_text_data(text, &data, &length));
    CHECK(strlen(data) == length && strstr(data, "\"schema\":\"straightway.doctor/1\"") && strstr(data, "\"io_uring\""));
    OK(sw_text_free(text));
    MISUSE(sw_text_free(text));
    MISUSE(sw_text_data(text, &data, NULL));
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_object_plan(object, SW_VERB_READ, "host", "require=dma", &text));
    OK(sw_text_data(text, &data, NULL));
    CHECK(strstr(data, "\"schema\":\"straightway.plan/1\"") && strstr(data, "\"candidates\":[{") && strstr(data, "\"faces\":[{"));
    OK(sw_text_free(text));
    MISUSE(sw_object_plan(object, SW_VERB_FLUSH, "host", NULL, &text));
    MISUSE(sw_object_plan(object, SW_VERB_READ, NULL, NULL, &text));
    OK(sw_engine_inspect(engine, &text));
    OK(sw_text_data(text, &data, NULL));
    CHECK(strstr(data, "engine") != NULL);
    OK(sw_text_free(text));
    OK(sw_object_close(object));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    OK(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "gpu=off reactors=2"}, &engine));
    reads(argv[1]);
    vectored(argv[1]);
    writes(argv[1]);
    memory_of_the_caller(argv[1]);
    texts(argv[1]);
    OK(sw_engine_close(engine));
    return 0;
}
