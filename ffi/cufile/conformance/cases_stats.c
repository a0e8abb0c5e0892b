/* SPDX-License-Identifier: Apache-2.0 */
/* Statistics. */
#include "suite.h"

static void level(void) {
    int got = -1;
    is_error("get", cu.GetStatsLevel(&got), 0);
    is_number("at first", got, 0);
    for (int wanted = 0; wanted <= 3; wanted++) {
        is_error("set", cu.SetStatsLevel(wanted), 0);
        is_error("get", cu.GetStatsLevel(&got), 0);
        is_number("level", got, wanted);
    }
}

static void level_refused(void) {
    is_error("4", cu.SetStatsLevel(4), CU_FILE_INVALID_VALUE);
    is_error("-1", cu.SetStatsLevel(-1), CU_FILE_INVALID_VALUE);
    is_error("NULL", cu.GetStatsLevel(NULL), CU_FILE_INVALID_VALUE);
}

static void unopened(void) {
    static CUfileStatsLevel1_t one;
    is_error("start", cu.StatsStart(), CU_FILE_DRIVER_NOT_INITIALIZED);
    is_error("stop", cu.StatsStop(), CU_FILE_DRIVER_NOT_INITIALIZED);
    is_error("reset", cu.StatsReset(), CU_FILE_DRIVER_NOT_INITIALIZED);
    is_error("level 1", cu.GetStatsL1(&one), CU_FILE_DRIVER_NOT_INITIALIZED);
}

static void null_places(void) {
    is_error("set", cu.SetStatsLevel(3), 0);
    must_open();
    is_error("level 1", cu.GetStatsL1(NULL), CU_FILE_INVALID_VALUE);
    is_error("level 2", cu.GetStatsL2(NULL), CU_FILE_INVALID_VALUE);
    is_error("level 3", cu.GetStatsL3(NULL), CU_FILE_INVALID_VALUE);
}

static void not_enabled(void) {
    static CUfileStatsLevel1_t one;
    static CUfileStatsLevel2_t two;
    static CUfileStatsLevel3_t three;
    must_open();
    is_error("level 1 at 0", cu.GetStatsL1(&one), CU_FILE_INVALID_VALUE);
    is_error("set", cu.SetStatsLevel(1), 0);
    is_error("level 2 at 1", cu.GetStatsL2(&two), CU_FILE_INVALID_VALUE);
    is_error("level 3 at 1", cu.GetStatsL3(&three), CU_FILE_INVALID_VALUE);
}

/* Two reads of 4096 and 65536 bytes, a write of 4096, a read that fails. */
static void work(void) {
    CUfileHandle_t handle = open_file("file", MIB, O_DIRECT);
    unsigned char *memory = memory_new(64 * KIB);
    if (cu.BufRegister(memory, 64 * KIB, 0).err) give_up("memory was refused");
    bool done = cu.Read(handle, memory, PAGE, 0, 0) == (ssize_t)PAGE && cu.Read(handle, memory, 64 * KIB, 0, 0) == 64 * 1024 &&
                cu.Write(handle, memory, PAGE, 0, 0) == (ssize_t)PAGE && cu.Read(handle, memory, PAGE, -1, 0) < 0;
    if (!done) give_up("the transfers failed");
    if (cu.BufDeregister(memory).err) give_up("memory was not deregistered");
    cu.HandleDeregister(handle);
}

static void begin(int wanted) {
    is_error("set", cu.SetStatsLevel(wanted), 0);
    must_open();
    is_error("start", cu.StatsStart(), 0);
}

static void counts(void) {
    static CUfileStatsLevel1_t one;
    begin(1);
    work();
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("reads", (long long)one.read_ops.ok, 2);
    is_number("writes", (long long)one.write_ops.ok, 1);
    is_number("bytes read", (long long)one.read_bytes, (long long)(PAGE + 64 * KIB));
    is_number("bytes written", (long long)one.write_bytes, PAGE);
}

static void counts_failures(void) {
    static CUfileStatsLevel1_t one;
    begin(1);
    work();
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("failed reads", (long long)one.read_ops.err, 1);
}

static void counts_registrations(void) {
    static CUfileStatsLevel1_t one;
    begin(1);
    work();
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("files registered", (long long)one.hdl_register_ops.ok, 1);
    is_number("files deregistered", (long long)one.hdl_deregister_ops.ok, 1);
    is_number("memory registered", (long long)one.buf_register_ops.ok, 1);
    is_number("memory deregistered", (long long)one.buf_deregister_ops.ok, 1);
}

static void counts_batches(void) {
    static CUfileStatsLevel1_t one;
    CUfileIOEvents_t event;
    unsigned nr = 1;
    begin(1);
    CUfileHandle_t handle = open_file("file", MIB, O_DIRECT);
    CUfileBatchHandle_t batch = NULL;
    CUfileIOParams_t params;
    memset(&params, 0, sizeof params);
    params.mode = CUFILE_BATCH;
    params.fh = handle;
    params.opcode = CUFILE_READ;
    params.u.batch.devPtr_base = memory_new(PAGE);
    params.u.batch.size = PAGE;
    if (cu.BatchIOSetUp(&batch, 1).err || cu.BatchIOSubmit(batch, 1, &params, 0).err) give_up("the batch was refused");
    if (cu.BatchIOGetStatus(batch, 1, &nr, &event, NULL).err || nr != 1) give_up("the batch did not end");
    cu.BatchIODestroy(batch);
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("set up", (long long)one.batch_setup_ops.ok, 1);
    is_number("submitted", (long long)one.batch_submit_ops.ok, 1);
    is_number("destroyed", (long long)one.batch_destroy_ops.ok, 1);
    is_number("bytes", (long long)one.batch_read_bytes, PAGE);
}

static void counts_vectors(void) {
    static CUfileStatsLevel1_t one;
    begin(1);
    CUfileHandle_t handle = open_file("file", MIB, O_DIRECT);
    CUfileIOVec_t part = {memory_new(PAGE), PAGE};
    if (cu.Readv(handle, &part, 1, 0, 0) != (ssize_t)PAGE) give_up("the read failed");
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("vector reads", (long long)one.readv_ops.ok, 1);
    is_number("bytes", (long long)one.readv_bytes, PAGE);
    is_number("plain reads", (long long)one.read_ops.ok, 0);
}

static void histograms(void) {
    static CUfileStatsLevel2_t two;
    begin(2);
    work();
    is_error("get", cu.GetStatsL2(&two), 0);
    uint64_t reads = 0, writes = 0;
    for (int at = 0; at < 32; at++) reads += two.read_size_kb_hist[at], writes += two.write_size_kb_hist[at];
    is_number("reads", (long long)reads, 2);
    is_number("writes", (long long)writes, 1);
    is_number("reads of level 1", (long long)two.basic.read_ops.ok, 2);
}

static void per_gpu(void) {
    static CUfileStatsLevel3_t three;
    begin(3);
    work();
    is_error("get", cu.GetStatsL3(&three), 0);
    is_true("at most 16 GPUs", three.num_gpus <= 16);
    is_number("reads of level 1", (long long)three.detailed.basic.read_ops.ok, 2);
}

static void reset(void) {
    static CUfileStatsLevel1_t one;
    begin(1);
    work();
    is_error("reset", cu.StatsReset(), 0);
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("reads", (long long)one.read_ops.ok, 0);
    is_number("bytes read", (long long)one.read_bytes, 0);
}

static void stopped(void) {
    static CUfileStatsLevel1_t one;
    begin(1);
    work();
    is_error("stop", cu.StatsStop(), 0);
    work();
    is_error("get", cu.GetStatsL1(&one), 0);
    is_number("reads", (long long)one.read_ops.ok, 2);
    is_error("start again", cu.StatsStart(), 0);
    work();
    is_error("get again", cu.GetStatsL1(&one), 0);
    is_true("counted again", one.read_ops.ok == 2 || one.read_ops.ok == 4);
}

/* The calls have no size: what they write must be the layout of the version that is told. */
static void bounds(void) {
    static struct {
        CUfileStatsLevel1_t one;
        unsigned char guard1[256];
        CUfileStatsLevel2_t two;
        unsigned char guard2[256];
        CUfileStatsLevel3_t three;
        unsigned char guard3[256];
    } place;
    begin(3);
    memset(&place, 0xEE, sizeof place);
    is_error("level 1", cu.GetStatsL1(&place.one), 0);
    is_error("level 2", cu.GetStatsL2(&place.two), 0);
    is_error("level 3", cu.GetStatsL3(&place.three), 0);
    bool whole = true;
    for (size_t at = 0; at < 256; at++) whole &= place.guard1[at] == 0xEE && place.guard2[at] == 0xEE && place.guard3[at] == 0xEE;
    is_true("nothing is written behind the structures of 1.20", whole);
}

static void version_and_layout(void) {
    static struct {
        CUfileStatsLevel1_t one;
        unsigned char guard[256];
    } place;
    int version = 0;
    begin(1);
    if (cu.GetVersion(&version).err) give_up("no version");
    memset(&place, 0xEE, sizeof place);
    is_error("level 1", cu.GetStatsL1(&place.one), 0);
    /* The last field of the layout of 1.19 and later; behind the structure of earlier ones. */
    unsigned char *last = (unsigned char *)&place.one.writev_lat_sum_us;
    bool written = last[0] != 0xEE || last[7] != 0xEE;
    is_true("the layout is that of the version", written == (version >= 1190));
}

#define STATS "documented: cufile.h, cuFileStats"
#define GET "documented: cufile.h, cuFileGetStats"
static const struct test_case cases[] = {
    {"stats.level", "documented: cufile.h, cuFileSetStatsLevel", "0 at first; 0 to 3 can be set", level, HOST_ONLY, LOADED},
    {"stats.level_refused", "documented: cufile.h, cuFileSetStatsLevel", "other levels and NULL are 5022", level_refused, HOST_ONLY, LOADED},
    {"stats.unopened", STATS "Start", "5001 before open", unopened, HOST_ONLY, LOADED},
    {"stats.null", GET "L1", "NULL is 5022", null_places, HOST_ONLY, LOADED},
    {"stats.not_enabled", GET "L1", "5022 for a level that is not set", not_enabled, HOST_ONLY, LOADED},
    {"stats.counts", GET "L1", "reads, writes and their bytes", counts, ANY_MEMORY, LOADED},
    {"stats.failures", "documented: cufile.h, CUfileOpCounter_t", "transfers that failed", counts_failures, HOST_ONLY, LOADED},
    {"stats.registrations", GET "L1", "files and memory that were registered", counts_registrations, HOST_ONLY, LOADED},
    {"stats.batches", GET "L1", "batches", counts_batches, HOST_ONLY, LOADED},
    {"stats.vectors", "documented: cufile.h, independent of read/write counters", "vectors, apart from plain reads", counts_vectors, HOST_ONLY, LOADED},
    {"stats.histograms", GET "L2", "the histograms have every transfer once", histograms, HOST_ONLY, LOADED},
    {"stats.per_gpu", GET "L3", "level 3 has what level 1 has", per_gpu, HOST_ONLY, LOADED},
    {"stats.reset", STATS "Reset", "everything is 0 again", reset, HOST_ONLY, LOADED},
    {"stats.stopped", STATS "Stop", "nothing is counted until the next start", stopped, HOST_ONLY, LOADED},
    {"stats.bounds", GET "L1", "nothing is written behind the structures", bounds, HOST_ONLY, LOADED},
    {"stats.layout", GET "L1", "the layout is that of the version that is told", version_and_layout, HOST_ONLY, LOADED},
};

struct table stats_cases(void) { return TABLE(cases); }
