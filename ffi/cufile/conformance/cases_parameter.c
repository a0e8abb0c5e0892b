/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters. */
#include "suite.h"

/* A number that no parameter has. */
#define UNKNOWN 1000

/* What 1.20 leaves as it was: it tells no bound there. */
#define NO_BOUND ((size_t)77)
/* It tells a number that comes of an overflow there, which nobody needs to have again. */
#define ANY_NUMBER ((size_t)78)

struct number {
    CUFileSizeTConfigParameter_t which;
    const char *name;
    size_t first, least, most, other;
};
static const struct number numbers[] = {
    {CUFILE_PARAM_PROFILE_STATS, "profile_stats", 0, NO_BOUND, NO_BOUND, 2},
    {CUFILE_PARAM_EXECUTION_MAX_IO_QUEUE_DEPTH, "max_io_queue_depth", 128, 1, 256, 64},
    {CUFILE_PARAM_EXECUTION_MAX_IO_THREADS, "max_io_threads", 8, 0, 128, 2},
    {CUFILE_PARAM_EXECUTION_MIN_IO_THRESHOLD_SIZE_KB, "min_io_threshold_size_kb", 1024, 4, 4294967295, 2048},
    {CUFILE_PARAM_EXECUTION_MAX_REQUEST_PARALLELISM, "max_request_parallelism", 4, 0, 8, 2},
    {CUFILE_PARAM_PROPERTIES_MAX_DIRECT_IO_SIZE_KB, "max_direct_io_size_kb", 16384, 64, 16384, 4096},
    {CUFILE_PARAM_PROPERTIES_MAX_DEVICE_CACHE_SIZE_KB, "max_device_cache_size_kb", 131072, 0, NO_BOUND, 65536},
    {CUFILE_PARAM_PROPERTIES_PER_BUFFER_CACHE_SIZE_KB, "per_buffer_cache_size_kb", 1024, 64, 16384, 512},
    {CUFILE_PARAM_PROPERTIES_MAX_DEVICE_PINNED_MEM_SIZE_KB, "max_device_pinned_mem_size_kb", ANY_NUMBER, 64, NO_BOUND, 1048576},
    {CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, "io_batchsize", 128, 1, 256, 32},
    {CUFILE_PARAM_POLLTHRESHOLD_SIZE_KB, "poll_mode_max_size_kb", 4, 4, ANY_NUMBER, 8},
    {CUFILE_PARAM_PROPERTIES_BATCH_IO_TIMEOUT_MS, "max_batch_io_timeout_msecs", 5, 1, 1000, 50},
};
#define NUMBERS (sizeof numbers / sizeof numbers[0])

static void is_size(const char *what, size_t got, size_t wanted) {
    if (wanted != ANY_NUMBER) is_number(what, (long long)got, (long long)wanted);
}

static void size_defaults(void) {
    must_open();
    for (size_t at = 0; at < NUMBERS; at++) {
        size_t value = 77;
        CUfileError_t got = cu.GetParameterSizeT(numbers[at].which, &value);
        if (got.err) {
            is_error(numbers[at].name, got, 0);
        } else {
            is_size(numbers[at].name, value, numbers[at].first);
        }
    }
}

static void size_ranges(void) {
    for (size_t at = 0; at < NUMBERS; at++) {
        size_t least = 77, most = 77;
        char what[96];
        /* Statistics are switched by a call of their own; 1.20 knows no range for them. */
        if (numbers[at].which == CUFILE_PARAM_PROFILE_STATS) continue;
        is_error(numbers[at].name, cu.GetParameterMinMaxValue(numbers[at].which, &least, &most), 0);
        snprintf(what, sizeof what, "%s least", numbers[at].name);
        is_size(what, least, numbers[at].least);
        snprintf(what, sizeof what, "%s most", numbers[at].name);
        if (numbers[at].most != NO_BOUND) is_size(what, most, numbers[at].most);
    }
}

static void size_set(void) {
    for (size_t at = 0; at < NUMBERS; at++) {
        size_t value = 77;
        is_error(numbers[at].name, cu.SetParameterSizeT(numbers[at].which, numbers[at].other), 0);
        CUfileError_t got = cu.GetParameterSizeT(numbers[at].which, &value);
        if (got.err || value != numbers[at].other) complain("%s: %d, %zu after setting", numbers[at].name, (int)got.err, value);
    }
}

static void size_applied(void) {
    CUfileDrvProps_t properties;
    size_t value = 0;
    is_error("set", cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 32), 0);
    is_error("set", cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_MAX_DIRECT_IO_SIZE_KB, 4096), 0);
    must_open();
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("batch", properties.max_batch_io_size, 32);
    is_number("max direct KiB", (long long)properties.nvfs.max_direct_io_size, 4096);
    is_error("get", cu.GetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, &value), 0);
    is_number("value", (long long)value, 32);
    CUfileBatchHandle_t batch = NULL;
    is_error("a batch of 32", cu.BatchIOSetUp(&batch, 32), 0);
    is_refused("a batch of 33", cu.BatchIOSetUp(&batch, 33));
}

static void size_batch_256(void) {
    CUfileBatchHandle_t batch = NULL;
    is_error("set", cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 256), 0);
    must_open();
    is_error("a batch of 256", cu.BatchIOSetUp(&batch, 256), 0);
}

static void set_after_open(void) {
    const size_t sizes[1] = {4}, counts[1] = {4};
    must_open();
    is_error("size", cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 32), CU_FILE_DRIVER_ALREADY_OPEN);
    is_error("bool", cu.SetParameterBool(CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE, true), CU_FILE_DRIVER_ALREADY_OPEN);
    is_error("string", cu.SetParameterString(CUFILE_PARAM_LOGGING_LEVEL, "ERROR"), CU_FILE_DRIVER_ALREADY_OPEN);
    is_error("POSIX slabs", cu.SetParameterPosixPoolSlabArray(sizes, counts, 1), CU_FILE_DRIVER_ALREADY_OPEN);
    is_error("GPU slabs", cu.SetParameterGpuBounceBufferSlabArray(sizes, counts, 1), CU_FILE_DRIVER_ALREADY_OPEN);
}

static void set_after_close(void) {
    must_open();
    is_error("close", cu.DriverClose(), 0);
    is_error("set", cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 32), 0);
    must_open();
    CUfileDrvProps_t properties;
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("batch", properties.max_batch_io_size, 32);
}

static void unknown(void) {
    size_t value = 0, other = 0;
    bool flag = false;
    char text[64];
    is_error("get size", cu.GetParameterSizeT((CUFileSizeTConfigParameter_t)UNKNOWN, &value), CU_FILE_INVALID_VALUE);
    is_error("set size", cu.SetParameterSizeT((CUFileSizeTConfigParameter_t)UNKNOWN, 1), CU_FILE_INVALID_VALUE);
    is_error("get bool", cu.GetParameterBool((CUFileBoolConfigParameter_t)UNKNOWN, &flag), CU_FILE_INVALID_VALUE);
    is_error("set bool", cu.SetParameterBool((CUFileBoolConfigParameter_t)UNKNOWN, true), CU_FILE_INVALID_VALUE);
    is_error("get string", cu.GetParameterString((CUFileStringConfigParameter_t)UNKNOWN, text, 64), CU_FILE_INVALID_VALUE);
    is_error("set string", cu.SetParameterString((CUFileStringConfigParameter_t)UNKNOWN, "x"), CU_FILE_INVALID_VALUE);
    is_error("range", cu.GetParameterMinMaxValue((CUFileSizeTConfigParameter_t)UNKNOWN, &value, &other), CU_FILE_INVALID_VALUE);
}

static void null_size(void) {
    size_t value = 0;
    is_error("size", cu.GetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, NULL), CU_FILE_INVALID_VALUE);
    is_error("least", cu.GetParameterMinMaxValue(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, NULL, &value), CU_FILE_INVALID_VALUE);
    is_error("most", cu.GetParameterMinMaxValue(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, &value, NULL), CU_FILE_INVALID_VALUE);
}

static void null_others(void) {
    is_error("bool", cu.GetParameterBool(CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE, NULL), CU_FILE_INVALID_VALUE);
    is_error("string", cu.GetParameterString(CUFILE_PARAM_LOGGING_LEVEL, NULL, 64), CU_FILE_INVALID_VALUE);
}

static void null_string_set(void) {
    is_error("string", cu.SetParameterString(CUFILE_PARAM_LOGGING_LEVEL, NULL), CU_FILE_INVALID_VALUE);
}

struct flag {
    CUFileBoolConfigParameter_t which;
    const char *name;
    bool first;
};
static const struct flag bools[] = {
    {CUFILE_PARAM_PROPERTIES_USE_POLL_MODE, "use_poll_mode", false},
    {CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE, "allow_compat_mode", true},
    {CUFILE_PARAM_FORCE_COMPAT_MODE, "force_compat_mode", false},
    {CUFILE_PARAM_FS_MISC_API_CHECK_AGGRESSIVE, "api_check_aggressive", false},
    {CUFILE_PARAM_EXECUTION_PARALLEL_IO, "parallel_io", true},
    {CUFILE_PARAM_PROPERTIES_ALLOW_SYSTEM_MEMORY, "allow_system_memory", true},
    {CUFILE_PARAM_USE_PCIP2PDMA, "use_pci_p2pdma", false},
    {CUFILE_PARAM_PREFER_IO_URING, "prefer_iouring", false},
    {CUFILE_PARAM_FORCE_ODIRECT_MODE, "force_odirect_mode", false},
    {CUFILE_PARAM_SKIP_TOPOLOGY_DETECTION, "skip_topology_detection", false},
    {CUFILE_PARAM_STREAM_MEMOPS_BYPASS, "stream_memops_bypass", false},
    {CUFILE_PARAM_PROPERTIES_POSIX_IO_MODE, "vanilla_posix_io_mode", false},
    {CUFILE_PARAM_GDS_FALLBACK_IO, "gds_fallback_io", false},
};
#define BOOLS (sizeof bools / sizeof bools[0])

static void load(void) {
    const char *reason = api_load();
    if (reason) give_up("the library %s", reason);
}

static void bool_defaults(void) {
    load();
    must_open();
    for (size_t at = 0; at < BOOLS; at++) {
        bool value = !bools[at].first;
        CUfileError_t got = cu.GetParameterBool(bools[at].which, &value);
        if (got.err) {
            is_error(bools[at].name, got, 0);
        } else {
            is_number(bools[at].name, value, bools[at].first);
        }
    }
}

static void bool_set(void) {
    load();
    for (size_t at = 0; at < BOOLS; at++) {
        bool value = bools[at].first;
        is_error(bools[at].name, cu.SetParameterBool(bools[at].which, !bools[at].first), 0);
        CUfileError_t got = cu.GetParameterBool(bools[at].which, &value);
        if (got.err || value == bools[at].first) complain("%s: %d, %d after setting", bools[at].name, (int)got.err, value);
    }
}

static void bool_nvtx(void) {
    bool value = false;
    CUfileError_t got = cu.GetParameterBool(CUFILE_PARAM_PROFILE_NVTX, &value);
    is_true("a value, or 5022", got.err == 0 || got.err == CU_FILE_INVALID_VALUE);
}

static void string_level(void) {
    char text[64];
    is_error("set", cu.SetParameterString(CUFILE_PARAM_LOGGING_LEVEL, "INFO"), 0);
    is_error("get", cu.GetParameterString(CUFILE_PARAM_LOGGING_LEVEL, text, 64), 0);
    is_true("INFO", !strncmp(text, "INFO", 64));
    must_open();
    is_error("get after open", cu.GetParameterString(CUFILE_PARAM_LOGGING_LEVEL, text, 64), 0);
    is_true("INFO after open", !strncmp(text, "INFO", 64));
}

static void string_log_dir(void) {
    char text[256];
    is_error("set", cu.SetParameterString(CUFILE_PARAM_LOG_DIR, "/tmp/of-the-test"), 0);
    is_error("get", cu.GetParameterString(CUFILE_PARAM_LOG_DIR, text, 256), 0);
    is_true("the same", !strncmp(text, "/tmp/of-the-test", 256));
}

static void string_short(void) {
    char text[64];
    is_error("set", cu.SetParameterString(CUFILE_PARAM_LOG_DIR, "/tmp/of-the-test"), 0);
    memset(text, 'x', sizeof text);
    is_error("room for 4", cu.GetParameterString(CUFILE_PARAM_LOG_DIR, text, 4), CU_FILE_INVALID_VALUE);
    is_error("room for all but the end", cu.GetParameterString(CUFILE_PARAM_LOG_DIR, text, 16), CU_FILE_INVALID_VALUE);
    is_error("room for 0", cu.GetParameterString(CUFILE_PARAM_LOG_DIR, text, 0), CU_FILE_INVALID_VALUE);
    is_error("room for -1", cu.GetParameterString(CUFILE_PARAM_LOG_DIR, text, -1), CU_FILE_INVALID_VALUE);
    is_true("nothing behind the room", text[16] == 'x' && text[63] == 'x');
    is_error("room for all", cu.GetParameterString(CUFILE_PARAM_LOG_DIR, text, 17), 0);
}

static void string_long(void) {
    static char text[100000];
    memset(text, 'a', sizeof text - 1);
    CUfileError_t got = cu.SetParameterString(CUFILE_PARAM_LOG_DIR, text);
    answer("100,000 characters", "%s", got.err ? "refused" : "accepted");
}

static void posix_slabs(void) {
    size_t sizes[3] = {0}, counts[3] = {0};
    const size_t other_sizes[2] = {8, 64}, other_counts[2] = {16, 32};
    is_error("set", cu.SetParameterPosixPoolSlabArray(other_sizes, other_counts, 2), 0);
    is_error("get", cu.GetParameterPosixPoolSlabArray(sizes, counts, 2), 0);
    is_true("as set", sizes[0] == 8 && sizes[1] == 64 && counts[0] == 16 && counts[1] == 32);
    is_error("another length", cu.GetParameterPosixPoolSlabArray(sizes, counts, 3), CU_FILE_INVALID_VALUE);
}

static void posix_slabs_defaults(void) {
    size_t sizes[3] = {0}, counts[3] = {0};
    must_open();
    is_error("get", cu.GetParameterPosixPoolSlabArray(sizes, counts, 3), 0);
    is_true("sizes 4, 1024, 16384", sizes[0] == 4 && sizes[1] == 1024 && sizes[2] == 16384);
    is_true("counts 128, 64, 64", counts[0] == 128 && counts[1] == 64 && counts[2] == 64);
}

static void posix_slabs_bad(void) {
    size_t sizes[3] = {4, 8, 16}, counts[3] = {1, 1, 1};
    is_error("no sizes", cu.SetParameterPosixPoolSlabArray(NULL, counts, 3), CU_FILE_INVALID_VALUE);
    is_error("no counts", cu.SetParameterPosixPoolSlabArray(sizes, NULL, 3), CU_FILE_INVALID_VALUE);
    is_error("length 0", cu.SetParameterPosixPoolSlabArray(sizes, counts, 0), CU_FILE_INVALID_VALUE);
    is_error("length -1", cu.SetParameterPosixPoolSlabArray(sizes, counts, -1), CU_FILE_INVALID_VALUE);
    is_error("get without sizes", cu.GetParameterPosixPoolSlabArray(NULL, counts, 3), CU_FILE_INVALID_VALUE);
    is_error("get without counts", cu.GetParameterPosixPoolSlabArray(sizes, NULL, 3), CU_FILE_INVALID_VALUE);
}

static void gpu_slabs(void) {
    const size_t sizes[2] = {64, 1024}, counts[2] = {16, 32};
    size_t got_sizes[2] = {0}, got_counts[2] = {0};
    is_error("set", cu.SetParameterGpuBounceBufferSlabArray(sizes, counts, 2), 0);
    is_error("get", cu.GetParameterGpuBounceBufferSlabArray(got_sizes, got_counts, 2), 0);
    is_true("as set", !memcmp(sizes, got_sizes, sizeof sizes) && !memcmp(counts, got_counts, sizeof counts));
    is_error("another length", cu.GetParameterGpuBounceBufferSlabArray(got_sizes, got_counts, 1), CU_FILE_INVALID_VALUE);
}

static void gpu_slabs_bad(void) {
    size_t sizes[3] = {4, 8, 16}, counts[3] = {1, 1, 1};
    is_error("no sizes", cu.SetParameterGpuBounceBufferSlabArray(NULL, counts, 3), CU_FILE_INVALID_VALUE);
    is_error("no counts", cu.SetParameterGpuBounceBufferSlabArray(sizes, NULL, 3), CU_FILE_INVALID_VALUE);
    is_error("length 0", cu.SetParameterGpuBounceBufferSlabArray(sizes, counts, 0), CU_FILE_INVALID_VALUE);
    is_error("get without sizes", cu.GetParameterGpuBounceBufferSlabArray(NULL, counts, 3), CU_FILE_INVALID_VALUE);
}

static void out_of_range(void) {
    CUfileError_t got = cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 100000);
    answer("set", "%d", (int)got.err);
    got = cu.DriverOpen();
    answer("open", "%d", (int)got.err);
    CUfileBatchHandle_t batch = NULL;
    is_refused("a batch of 257", cu.BatchIOSetUp(&batch, 257));
}

#define GET "documented: cufile.h, cuFileGetParameter"
#define SET "documented: cufile.h, cuFileSetParameter"
static const struct test_case cases[] = {
    {"parameter.size_defaults", "observed: 1.20", "the numbers when nothing was set", size_defaults, HOST_ONLY, LOADED},
    {"parameter.size_ranges", "observed: 1.20", "least and most of each number", size_ranges, HOST_ONLY, LOADED},
    {"parameter.size_set", SET "SizeT", "each number can be set and read before open", size_set, HOST_ONLY, LOADED},
    {"parameter.size_applied", SET "SizeT", "what is set is used by the next open", size_applied, HOST_ONLY, LOADED},
    {"parameter.batch_256", "documented: configuration guide, io_batchsize", "batches of up to 256", size_batch_256, HOST_ONLY, LOADED},
    {"parameter.after_open", SET, "5026 while the driver is open", set_after_open, HOST_ONLY, LOADED},
    {"parameter.after_close", SET, "can be set again after the last close", set_after_close, HOST_ONLY, LOADED},
    {"parameter.unknown", GET, "5022 for a parameter that does not exist", unknown, HOST_ONLY, LOADED},
    {"parameter.null_size", GET "SizeT, cuFileGetParameterMinMaxValue", "NULL is 5022", null_size, HOST_ONLY, LOADED},
    {"parameter.null_others", GET "Bool, String", "NULL is 5022", null_others, HOST_ONLY, LOADED},
    {"parameter.null_string_set", SET "String", "NULL is 5022", null_string_set, HOST_ONLY, LOADED},
    {"parameter.bool_defaults", "observed: 1.20", "the switches when nothing was set", bool_defaults, HOST_ONLY, UNLOADED},
    {"parameter.bool_set", SET "Bool", "each switch can be set and read before open", bool_set, HOST_ONLY, UNLOADED},
    {"parameter.bool_nvtx", GET "Bool, deprecated", "the deprecated switch has a value, or is 5022", bool_nvtx, HOST_ONLY, LOADED},
    {"parameter.string_level", SET "String", "the level of logging, before and after open", string_level, HOST_ONLY, LOADED},
    {"parameter.string_log_dir", SET "String", "the folder of logs", string_log_dir, HOST_ONLY, LOADED},
    {"parameter.string_short", "observed: 1.15 and 1.17", "too little room is 5022, and nothing is cut", string_short, HOST_ONLY, LOADED},
    {"parameter.string_long", SET "String", "a text of any length comes back without harm", string_long, HOST_ONLY, LOADED},
    {"parameter.posix_slabs_defaults", "documented: configuration guide, posix_pool_slab_size_kb", "the three pairs before anything was set", posix_slabs_defaults, HOST_ONLY, LOADED},
    {"parameter.posix_slabs", SET "PosixPoolSlabArray", "pairs of size and count; another length is 5022", posix_slabs, HOST_ONLY, LOADED},
    {"parameter.posix_slabs_bad", SET "PosixPoolSlabArray", "NULL and bad lengths are 5022", posix_slabs_bad, HOST_ONLY, LOADED},
    {"parameter.gpu_slabs", SET "GpuBounceBufferSlabArray", "pairs of size and count; another length is 5022", gpu_slabs, HOST_ONLY, LOADED},
    {"parameter.gpu_slabs_bad", SET "GpuBounceBufferSlabArray", "NULL and bad lengths are 5022", gpu_slabs_bad, HOST_ONLY, LOADED},
    {"parameter.out_of_range", "observed: 1.15 and 1.17", "a number out of its range never makes larger batches", out_of_range, HOST_ONLY, LOADED},
};

struct table parameter_cases(void) { return TABLE(cases); }
