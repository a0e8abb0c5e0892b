/* SPDX-License-Identifier: Apache-2.0 */
/* The file of settings and the environment. The library is loaded by the case, after they were set. */
#include "suite.h"

static void settings(const char *text) {
    FILE *file = fopen("cufile.json", "w");
    if (!file || fputs(text, file) < 0 || fclose(file)) give_up("cannot write cufile.json");
    char path[4096];
    if (!getcwd(path, sizeof path - 16)) give_up("no folder");
    strcat(path, "/cufile.json");
    setenv("CUFILE_ENV_PATH_JSON", path, 1);
}

static void load(void) {
    const char *reason = api_load();
    if (reason) give_up("the library %s", reason);
}

static size_t batch_size(void) {
    CUfileDrvProps_t properties;
    memset(&properties, 0, sizeof properties);
    if (cu.DriverGetProperties(&properties).err) give_up("no properties");
    return properties.max_batch_io_size;
}

static void file_used(void) {
    settings("{ \"properties\": { \"io_batchsize\": 16, \"max_direct_io_size_kb\": 4096 } }\n");
    load();
    must_open();
    CUfileDrvProps_t properties;
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("batch", properties.max_batch_io_size, 16);
    is_number("max direct KiB", (long long)properties.nvfs.max_direct_io_size, 4096);
}

static void comments(void) {
    settings("// a line\n{\n  /* a block */\n  \"properties\": { // behind\n    \"io_batchsize\": 16\n  }\n}\n");
    load();
    must_open();
    is_number("batch", (long long)batch_size(), 16);
}

static void unknown_keys(void) {
    settings("{ \"no_such_group\": { \"key\": [1, 2] }, \"properties\": { \"no_such_key\": true, \"io_batchsize\": 16 } }\n");
    load();
    is_error("open", cu.DriverOpen(), 0);
    is_number("batch", (long long)batch_size(), 16);
}

static void broken_file(void) {
    settings("{ \"properties\": { \"io_batchsize\": \n");
    load();
    CUfileError_t got = cu.DriverOpen();
    answer("open", "%d", (int)got.err);
    if (got.err) return;
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    ssize_t read = CALL(cu.Read(handle, memory_new(PAGE), PAGE, 0, 0));
    is_bytes("a read after it", read, errno, (ssize_t)PAGE);
}

static void no_file(void) {
    setenv("CUFILE_ENV_PATH_JSON", "/no/such/file.json", 1);
    load();
    is_error("open", cu.DriverOpen(), 0);
    is_number("batch", (long long)batch_size(), 128);
}

static void wrong_type(void) {
    settings("{ \"properties\": { \"io_batchsize\": \"many\" } }\n");
    load();
    CUfileError_t got = cu.DriverOpen();
    answer("open", "%d", (int)got.err);
}

static void parameter_before_file(void) {
    settings("{ \"properties\": { \"io_batchsize\": 16 } }\n");
    load();
    is_error("set", cu.SetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 32), 0);
    must_open();
    is_number("batch", (long long)batch_size(), 32);
}

static bool forced(void) {
    bool value = false;
    CUfileError_t got = cu.GetParameterBool(CUFILE_PARAM_FORCE_COMPAT_MODE, &value);
    if (got.err) give_up("the switch cannot be read: %d", (int)got.err);
    return value;
}

static void environment_before_file(void) {
    settings("{ \"properties\": { \"force_compat_mode\": false } }\n");
    setenv("CUFILE_FORCE_COMPAT_MODE", "true", 1);
    load();
    must_open();
    is_true("on", forced());
}

static void parameter_before_environment(void) {
    setenv("CUFILE_FORCE_COMPAT_MODE", "true", 1);
    load();
    is_error("set", cu.SetParameterBool(CUFILE_PARAM_FORCE_COMPAT_MODE, false), 0);
    must_open();
    is_true("off", !forced());
}

static void stats_from_file(void) {
    int level = -1;
    settings("{ \"profile\": { \"cufile_stats\": 2 } }\n");
    load();
    must_open();
    is_error("level", cu.GetStatsLevel(&level), 0);
    is_number("level", level, 2);
}

static void forced_reads(void) {
    setenv("CUFILE_FORCE_COMPAT_MODE", "true", 1);
    load();
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, O_DIRECT);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_bytes("read", got, errno, (ssize_t)PAGE);
    is_true("bytes are right", memory_is_file(memory, 0, PAGE));
}

static void compat_refused(void) {
    settings("{ \"properties\": { \"allow_compat_mode\": false } }\n");
    load();
    CUfileError_t open = cu.DriverOpen();
    CUfileHandle_t handle = NULL;
    CUfileError_t got = open.err ? open : register_fd(&handle, file_new("file", PAGE, O_RDWR | O_DIRECT));
    is_true("no open or no handle without nvidia-fs", got.err != 0);
    answer("open", "%d", (int)open.err);
}

#define FILE_DOC "documented: configuration guide, cufile.json"
#define ORDER "documented: cufile.h, cuFileSetParameter: parameters, then environment, then file"
static const struct test_case cases[] = {
    {"config.file", FILE_DOC, "the file that CUFILE_ENV_PATH_JSON names is used", file_used, HOST_ONLY, UNLOADED},
    {"config.comments", FILE_DOC, "comments are allowed", comments, HOST_ONLY, UNLOADED},
    {"config.unknown", FILE_DOC, "unknown keys are passed over", unknown_keys, HOST_ONLY, UNLOADED},
    {"config.broken", FILE_DOC, "a broken file: a refusal or defaults, no crash", broken_file, HOST_ONLY, UNLOADED},
    {"config.none", FILE_DOC, "without a file the defaults hold", no_file, HOST_ONLY, UNLOADED},
    {"config.wrong_type", FILE_DOC, "a text for a number comes back without harm", wrong_type, HOST_ONLY, UNLOADED},
    {"config.parameter_first", ORDER, "a parameter is before the file", parameter_before_file, HOST_ONLY, UNLOADED},
    {"config.environment_second", ORDER, "the environment is before the file", environment_before_file, HOST_ONLY, UNLOADED},
    {"config.parameter_before_environment", ORDER, "a parameter is before the environment", parameter_before_environment, HOST_ONLY, UNLOADED},
    {"config.stats", "documented: configuration guide, cufile_stats", "the level of statistics from the file", stats_from_file, HOST_ONLY, UNLOADED},
    {"config.forced", "documented: configuration guide, force_compat_mode", "reads work in forced compatibility mode", forced_reads, ANY_MEMORY, UNLOADED},
    {"config.refused", "documented: configuration guide, allow_compat_mode", "without it and without nvidia-fs nothing is registered", compat_refused, HOST_ONLY, UNLOADED},
};

struct table config_cases(void) { return TABLE(cases); }
