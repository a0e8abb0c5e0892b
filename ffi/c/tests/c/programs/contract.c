/* Misuse: what can be known is a clean error, with nothing done. */
#include <stdint.h>

#include "check.h"

static sw_engine *engine;

static void sizes_of_structures(const char *file) {
    struct {
        sw_object_options known;
        uint64_t newer;
    } options = {SW_OBJECT_OPTIONS_INIT, 0};
    sw_object *object = (sw_object *)8;
    sw_object_info info = SW_OBJECT_INFO_INIT;
    sw_completion small;

    /* A newer caller: fine as long as it wants nothing new. */
    options.known.size = sizeof options;
    OK(sw_object_open(engine, file, &options.known, &object));
    OK(sw_object_close(object));
    options.newer = 1;
    object = (sw_object *)8;
    IS(SW_ERR_UNSUPPORTED, sw_object_open(engine, file, &options.known, &object));
    CHECK(says("sets a field that this library does not know"));
    CHECK(object == (sw_object *)8);
    /* No version has these. */
    options.known.size = 0;
    MISUSE(sw_object_open(engine, file, &options.known, &object));
    CHECK(says("sw_object_options.size is 0"));
    options.known.size = SIZE_MAX;
    MISUSE(sw_object_open(engine, file, &options.known, &object));
    options.known = (sw_object_options)SW_OBJECT_OPTIONS_INIT;
    options.known.mode = 7;
    MISUSE(sw_object_open(engine, file, &options.known, &object));
    CHECK(says("7 is no sw_mode"));

    OK(sw_object_open(engine, file, NULL, &object));
    info.size = 8;
    MISUSE(sw_object_info_get(object, &info));
    /* A newer caller's output: what the library does not know is zero. */
    struct {
        sw_object_info known;
        uint64_t newer;
    } more = {SW_OBJECT_INFO_INIT, 7};
    more.known.size = sizeof more;
    OK(sw_object_info_get(object, &more.known));
    CHECK(more.known.length == 1 << 20 && more.newer == 0 && more.known.size == sizeof more);
    memset(&small, 0, sizeof small);
    MISUSE(sw_flush(object, NULL, &small));
    CHECK(says("sw_completion.size is 0"));
    OK(sw_object_close(object));
}

static void handles(const char *file) {
    sw_object *object = NULL;
    sw_region *region = NULL;
    sw_engine *none = NULL;

    MISUSE(sw_engine_close(none));
    CHECK(says("the handle of an engine is NULL"));
    MISUSE(sw_engine_open(NULL, NULL));
    CHECK(says("engine is NULL"));
    MISUSE(sw_object_open(engine, NULL, NULL, &object));
    CHECK(says("uri is NULL"));
    MISUSE(sw_object_open(engine, "\xff", NULL, &object));
    CHECK(says("uri is not UTF-8"));
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, "host", 4096, 0, &region));
    /* Of another kind. */
    MISUSE(sw_object_close((sw_object *)engine));
    CHECK(says("an engine was given where an object belongs"));
    MISUSE(sw_read((sw_object *)region, 0, region, 0, 4096, NULL, NULL));
    CHECK(says("a region was given where an object belongs"));
    MISUSE(sw_read(object, 0, (sw_region *)object, 0, 4096, NULL, NULL));
    /* No handle at all: it is not followed. */
    MISUSE(sw_object_close((sw_object *)&object));
    CHECK(says("is no handle of an object"));
    MISUSE(sw_object_close((sw_object *)(uintptr_t)0xa2ffffff00ffffffu));
    MISUSE(sw_read(object, 0, NULL, 0, 4096, NULL, NULL));
    CHECK(says("the handle of a region is NULL"));
    /* Misaligned. */
    char room[sizeof(sw_completion) + 1];
    MISUSE(sw_read(object, 0, region, 0, 4096, NULL, (sw_completion *)(void *)(room + 1)));
    CHECK(says("not aligned"));
    /* Used after closing; closed twice. */
    OK(sw_object_close(object));
    MISUSE(sw_object_close(object));
    CHECK(says("was closed before"));
    MISUSE(sw_read(object, 0, region, 0, 4096, NULL, NULL));
    OK(sw_region_free(region));
    MISUSE(sw_region_free(region));
    MISUSE(sw_region_release(region));
}

static void errors(const char *file) {
    sw_error error = SW_ERROR_INIT;
    sw_object *object = NULL;
    sw_region *region = NULL;

    IS(SW_ERR_NOT_FOUND, sw_object_open(engine, "/no/such/file", NULL, &object));
    OK(sw_error_last(&error));
    CHECK(error.status == SW_ERR_NOT_FOUND && error.system_code == 2);
    CHECK(strcmp(error.kind, "not_found") == 0 && strcmp(error.verb, "open") == 0);
    CHECK(strcmp(error.place, "/no/such/file") == 0 && error.message[0] != 0 && strstr(error.message, "/no/such/file"));
    CHECK(error.retry == SW_RETRY_NEVER && error.outcome == SW_OUTCOME_NONE && error.length == 0);
    MISUSE(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "queue_depth=64,  gpu"}, &engine));
    CHECK(says("\"gpu\" has no value"));
    MISUSE(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "queue_depth=0"}, &engine));
    CHECK(says("use 1 to 4096"));
    IS(SW_ERR_BAD_URI, sw_object_open(engine, "ftp://a/b", NULL, &object));

    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(engine, NULL, 1 << 20, 0, &region));
    IS(SW_ERR_OUT_OF_RANGE, sw_read(object, 1 << 20, region, 0, 1, NULL, NULL));
    OK(sw_error_last(&error));
    CHECK(error.offset == 1 << 20 && error.length == 1 && error.remedy[0] != 0);
    IS(SW_ERR_OUT_OF_RANGE, sw_read(object, UINT64_C(1) << 63, region, 0, 4096, NULL, NULL));
    IS(SW_ERR_OUT_OF_RANGE, sw_read(object, UINT64_MAX, region, 0, UINT64_MAX, NULL, NULL));
    IS(SW_ERR_OUT_OF_RANGE, sw_read(object, 0, region, 1 << 20, 1, NULL, NULL));
    IS(SW_ERR_OUT_OF_RANGE, sw_read(object, 0, region, UINT64_MAX, 2, NULL, NULL));
    CHECK(sw_write(object, 0, region, 0, 4096, NULL, NULL) != SW_OK);
    OK(sw_error_last(&error));
    CHECK(strcmp(error.verb, "write") == 0);

    sw_io_options options = SW_IO_OPTIONS_INIT;
    options.policy = "require=fast";
    MISUSE(sw_read(object, 0, region, 0, 4096, &options, NULL));
    options.policy = "require=nvme";
    IS(SW_ERR_POLICY_UNMET, sw_read(object, 0, region, 0, 4096, &options, NULL));
    OK(sw_error_last(&error));
    CHECK(strstr(error.reasons, "POLICY_EXCLUDES") != NULL);
    options = (sw_io_options)SW_IO_OPTIONS_INIT;
    options.flags = 1u << 31;
    IS(SW_ERR_UNSUPPORTED, sw_read(object, 0, region, 0, 4096, &options, NULL));
    options.flags = SW_IO_POISON;
    options.poison = 256;
    MISUSE(sw_read(object, 0, region, 0, 4096, &options, NULL));
    options.flags = 0;
    options.checksum = 9;
    MISUSE(sw_read(object, 0, region, 0, 4096, &options, NULL));
    OK(sw_region_free(region));
    OK(sw_object_close(object));
    MISUSE(sw_region_allocate(engine, "host", 0, 0, &region));
    MISUSE(sw_region_allocate(engine, "cpu", 1, 0, &region));
    IS(SW_ERR_NO_DEVICE, sw_region_allocate(engine, "gpu0", 1, 0, &region));
    MISUSE(sw_region_register(engine, NULL, 4096, NULL, &region));
    MISUSE(sw_region_register(engine, (void *)(uintptr_t)4096, UINT64_MAX, NULL, &region));
    CHECK(strcmp(sw_status_name(SW_PENDING), "SW_PENDING") == 0);
    CHECK(strcmp(sw_status_name(SW_ERR_ALREADY_EXISTS), "SW_ERR_ALREADY_EXISTS") == 0);
    CHECK(strcmp(sw_status_name(-2), "SW_ERR_UNKNOWN") == 0 && strcmp(sw_status_name(28), "SW_ERR_UNKNOWN") == 0);
}

static void two_engines(const char *file) {
    sw_engine *other = NULL;
    sw_object *object = NULL;
    sw_region *region = NULL;
    OK(sw_engine_open(NULL, &other));
    OK(sw_object_open(engine, file, NULL, &object));
    OK(sw_region_allocate(other, NULL, 4096, 0, &region));
    MISUSE(sw_read(object, 0, region, 0, 4096, NULL, NULL));
    CHECK(says("different engines"));
    OK(sw_engine_close(other));
    MISUSE(sw_engine_close(other));
    OK(sw_region_free(region));
    OK(sw_object_close(object));
}

static void versions(void) {
    sw_version version = SW_VERSION_INIT;
    int32_t present = 7;
    OK(sw_version_get(&version));
    CHECK(version.abi == SW_ABI_VERSION && version.text[0] != 0);
    OK(sw_feature("callback", &present));
    CHECK(present == 1);
    OK(sw_feature("teleport", &present));
    CHECK(present == 0);
    MISUSE(sw_feature(NULL, &present));
}

int main(int argc, char **argv) {
    sw_error error = SW_ERROR_INIT;
    CHECK(argc == 2);
    OK(sw_error_last(&error));
    CHECK(error.status == SW_OK && error.message[0] == 0);
    OK(sw_engine_open(&(sw_engine_options){sizeof(sw_engine_options), "gpu=off, queue_depth=32\treactors=2"}, &engine));
    versions();
    sizes_of_structures(argv[1]);
    handles(argv[1]);
    errors(argv[1]);
    two_engines(argv[1]);
    OK(sw_engine_close(engine));
    return 0;
}
