/* SPDX-License-Identifier: Apache-2.0 */
/* Opening, closing, counting, properties and their setters, version, topology, flags of peer-to-peer. */
#include "suite.h"

#include <pthread.h>

static void open_close(void) {
    is_number("use count at first", cu.UseCount(), 0);
    is_error("open", cu.DriverOpen(), 0);
    is_number("use count", cu.UseCount(), 1);
    is_error("close", cu.DriverClose(), 0);
    is_number("use count at last", cu.UseCount(), 0);
}

static void open_twice(void) {
    must_open();
    is_error("second open", cu.DriverOpen(), 0);
    is_number("use count", cu.UseCount(), 2);
    is_error("first close", cu.DriverClose(), 0);
    is_number("use count after it", cu.UseCount(), 1);
    unsigned char *memory = memory_new(PAGE);
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_bytes("read in between", got, errno, (ssize_t)PAGE);
    cu.HandleDeregister(handle);
    is_error("second close", cu.DriverClose(), 0);
    is_number("use count at last", cu.UseCount(), 0);
}

static void close_unopened(void) {
    is_error("close", cu.DriverClose(), CU_FILE_DRIVER_NOT_INITIALIZED);
    is_number("use count", cu.UseCount(), 0);
}

static void close_again(void) {
    must_open();
    is_error("close", cu.DriverClose(), 0);
    is_error("close again", cu.DriverClose(), CU_FILE_DRIVER_NOT_INITIALIZED);
    is_number("use count", cu.UseCount(), 0);
}

static void close_by_old_name(void) {
    must_open();
    is_error("close", cu.DriverCloseV1(), 0);
    is_number("use count", cu.UseCount(), 0);
}

static void reopen(void) {
    unsigned char *memory = memory_new(PAGE);
    for (int turn = 0; turn < 3; turn++) {
        must_open();
        CUfileHandle_t handle = open_file("file", PAGE, 0);
        ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
        is_bytes("read", got, errno, (ssize_t)PAGE);
        cu.HandleDeregister(handle);
        is_error("close", cu.DriverClose(), 0);
    }
    is_true("bytes are right", memory_is_file(memory, 0, PAGE));
}

static void implicit_open_by_handle(void) {
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_bytes("read", got, errno, (ssize_t)PAGE);
    is_number("use count", cu.UseCount(), 1);
    is_error("open", cu.DriverOpen(), 0);
    is_number("use count after open", cu.UseCount(), 2);
}

static void implicit_open_by_buffer(void) {
    unsigned char *memory = memory_new(PAGE);
    is_error("register", cu.BufRegister(memory, PAGE, 0), 0);
    is_number("use count", cu.UseCount(), 1);
    is_error("deregister", cu.BufDeregister(memory), 0);
}

static void count_after_dead_deregister(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    long before = cu.UseCount();
    cu.HandleDeregister(handle);
    cu.HandleDeregister(handle);
    is_number("change of the use count", cu.UseCount() - before, 0);
}

static void *open_and_close(void *failures) {
    for (int turn = 0; turn < 20; turn++) {
        if (cu.DriverOpen().err) __atomic_fetch_add((int *)failures, 1, __ATOMIC_RELAXED);
        if (cu.DriverClose().err) __atomic_fetch_add((int *)failures, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void open_in_threads(void) {
    pthread_t threads[8];
    int failures = 0;
    must_open();
    for (int index = 0; index < 8; index++) pthread_create(&threads[index], NULL, open_and_close, &failures);
    for (int index = 0; index < 8; index++) pthread_join(threads[index], NULL);
    is_number("failures", failures, 0);
    is_number("use count", cu.UseCount(), 1);
}

static void properties_null(void) {
    is_error("before open", cu.DriverGetProperties(NULL), CU_FILE_INVALID_VALUE);
    must_open();
    is_error("after open", cu.DriverGetProperties(NULL), CU_FILE_INVALID_VALUE);
}

static void properties_unopened(void) {
    CUfileDrvProps_t properties;
    memset(&properties, 0xEE, sizeof properties);
    is_error("call", cu.DriverGetProperties(&properties), 0);
    is_number("batch", properties.max_batch_io_size, 128);
    is_number("use count", cu.UseCount(), 0);
}

static void properties_values(void) {
    CUfileDrvProps_t properties;
    must_open();
    memset(&properties, 0xEE, sizeof properties);
    is_error("call", cu.DriverGetProperties(&properties), 0);
    is_number("nvidia-fs major", properties.nvfs.major_version, 0);
    is_number("nvidia-fs minor", properties.nvfs.minor_version, 0);
    is_number("poll threshold", (long long)properties.nvfs.poll_thresh_size, 4);
    is_number("max direct KiB", (long long)properties.nvfs.max_direct_io_size, 16384);
    is_number("status flags", properties.nvfs.dstatusflags, 0);
    is_number("control flags", properties.nvfs.dcontrolflags, 1 << CU_FILE_ALLOW_COMPAT_MODE);
    is_number("device cache KiB", properties.max_device_cache_size, 131072);
    is_number("per buffer KiB", properties.per_buffer_cache_size, 1024);
    is_number("batch", properties.max_batch_io_size, 128);
    is_number("batch timeout ms", properties.max_batch_io_timeout_msecs, 5);
}

static void properties_features(void) {
    CUfileDrvProps_t properties;
    must_open();
    is_error("call", cu.DriverGetProperties(&properties), 0);
    is_true("batch", properties.fflags & (1u << CU_FILE_BATCH_IO_SUPPORTED));
    is_true("streams", properties.fflags & (1u << CU_FILE_STREAMS_SUPPORTED));
    is_true("parallel", properties.fflags & (1u << CU_FILE_PARALLEL_IO_SUPPORTED));
    is_true("peer to peer", !(properties.fflags & (1u << CU_FILE_P2P_SUPPORTED)));
}

static void properties_whole(void) {
    struct {
        CUfileDrvProps_t properties;
        unsigned char guard[64];
    } place;
    must_open();
    memset(&place, 0xEE, sizeof place);
    is_error("call", cu.DriverGetProperties(&place.properties), 0);
    bool whole = true;
    for (size_t at = 0; at < sizeof place.guard; at++) whole &= place.guard[at] == 0xEE;
    is_true("nothing is written behind the structure", whole);
    is_true("the pinned size is filled", place.properties.max_device_pinned_mem_size != 0xEEEEEEEE);
}

static void poll_mode(void) {
    CUfileDrvProps_t properties;
    is_error("set", cu.DriverSetPollMode(true, 8), 0);
    must_open();
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("threshold KiB", (long long)properties.nvfs.poll_thresh_size, 8);
    is_true("the control flag is set", properties.nvfs.dcontrolflags & (1u << CU_FILE_USE_POLL_MODE));
    is_error("set after open", cu.DriverSetPollMode(true, 16), 0);
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("threshold after it", (long long)properties.nvfs.poll_thresh_size, 8);
}

static void max_direct_size(void) {
    CUfileDrvProps_t properties;
    is_error("set", cu.DriverSetMaxDirectIOSize(2048), 0);
    must_open();
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("KiB", (long long)properties.nvfs.max_direct_io_size, 2048);
}

static void max_direct_after_open(void) {
    CUfileDrvProps_t properties;
    must_open();
    is_error("set", cu.DriverSetMaxDirectIOSize(2048), 0);
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("KiB", (long long)properties.nvfs.max_direct_io_size, 16384);
}

static void max_direct_refused(void) {
    is_error("0", cu.DriverSetMaxDirectIOSize(0), CU_FILE_INVALID_VALUE);
    is_error("63 KiB", cu.DriverSetMaxDirectIOSize(63), CU_FILE_INVALID_VALUE);
    is_error("100 KiB", cu.DriverSetMaxDirectIOSize(100), CU_FILE_INVALID_VALUE);
    is_error("16385 KiB", cu.DriverSetMaxDirectIOSize(16385), CU_FILE_INVALID_VALUE);
    is_error("1 TiB", cu.DriverSetMaxDirectIOSize((size_t)1 << 30), CU_FILE_INVALID_VALUE);
}

static void max_cache_size(void) {
    CUfileDrvProps_t properties;
    is_error("set", cu.DriverSetMaxCacheSize(65536), 0);
    must_open();
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("KiB", properties.max_device_cache_size, 65536);
}

static void max_pinned_size(void) {
    CUfileDrvProps_t properties;
    is_error("set", cu.DriverSetMaxPinnedMemSize(1048576), 0);
    must_open();
    is_error("properties", cu.DriverGetProperties(&properties), 0);
    is_number("KiB", properties.max_device_pinned_mem_size, 1048576);
}

static void version(void) {
    int number = -1;
    is_error("call", cu.GetVersion(&number), 0);
    answer("version", "%d", number);
    is_true("1000 times major and 10 times minor", number >= 1000 && number < 3000 && number % 10 == 0);
    is_error("NULL", cu.GetVersion(NULL), CU_FILE_INVALID_VALUE);
    is_number("use count", cu.UseCount(), 0);
}

static void bar_size(void) {
    size_t size = 0;
    is_error("before open", cu.GetBARSizeInKB(0, &size), CU_FILE_DRIVER_NOT_INITIALIZED);
    must_open();
    is_error("NULL", cu.GetBARSizeInKB(0, NULL), CU_FILE_INVALID_VALUE);
    is_error("no such GPU", cu.GetBARSizeInKB(99, &size), CU_FILE_INVALID_VALUE);
    is_error("negative", cu.GetBARSizeInKB(-1, &size), CU_FILE_INVALID_VALUE);
}

static void flags_set(void) {
    CUfileP2PFlags_t flags = CU_FILE_P2P_FLAG_C2C;
    is_error("get", cu.DriverGetP2PFlags(CU_FILE_NVME_SUPPORTED, &flags), 0);
    is_number("at first", flags, 0);
    is_error("set", cu.DriverSetP2PFlags(CU_FILE_NVME_SUPPORTED, CU_FILE_P2P_FLAG_PCI_P2PDMA), 0);
    is_error("get again", cu.DriverGetP2PFlags(CU_FILE_NVME_SUPPORTED, &flags), 0);
    is_number("then", flags, CU_FILE_P2P_FLAG_PCI_P2PDMA);
    is_error("another kind", cu.DriverGetP2PFlags(CU_FILE_LUSTRE_SUPPORTED, &flags), 0);
    is_number("there", flags, 0);
}

static void flags_refused(void) {
    is_refused("nvidia-fs", cu.DriverSetP2PFlags(CU_FILE_NVME_SUPPORTED, CU_FILE_P2P_FLAG_NVFS));
    is_refused("dma-buf", cu.DriverSetP2PFlags(CU_FILE_NVME_SUPPORTED, CU_FILE_P2P_FLAG_DMABUF));
    is_refused("C2C on x86-64", cu.DriverSetP2PFlags(CU_FILE_NVME_SUPPORTED, CU_FILE_P2P_FLAG_C2C));
    is_error("no such kind", cu.DriverSetP2PFlags(CU_FILE_MAX_TARGET_TYPES, CU_FILE_P2P_FLAG_PCI_P2PDMA),
             CU_FILE_INVALID_VALUE);
}

static void flags_bad_get(void) {
    CUfileP2PFlags_t flags;
    is_error("NULL", cu.DriverGetP2PFlags(CU_FILE_NVME_SUPPORTED, NULL), CU_FILE_INVALID_VALUE);
    is_error("no such kind", cu.DriverGetP2PFlags(CU_FILE_MAX_TARGET_TYPES, &flags), CU_FILE_INVALID_VALUE);
}

static void topology_refused(void) {
    const char *reason = api_load();
    if (reason) give_up("the library %s", reason);
    is_error("NULL", cu.ExportPCIeTopology(NULL), CU_FILE_INVALID_VALUE);
    is_error("empty", cu.ExportPCIeTopology(""), CU_FILE_INVALID_VALUE);
    is_error("no such folder", cu.ExportPCIeTopology("no/such/folder/file.json"), CU_FILE_INVALID_VALUE);
}

static void topology_written(void) {
    const char *reason = api_load();
    if (reason) give_up("the library %s", reason);
    CUfileError_t got = cu.ExportPCIeTopology("topology.json");
    is_true("success, or 5030 for no topology", got.err == CU_FILE_SUCCESS || got.err == CU_FILE_INTERNAL_ERROR);
    is_true("a file on success only", (got.err == CU_FILE_SUCCESS) == (file_length("topology.json") > 0));
}

#define HEADER(function) "documented: cufile.h, cuFile" function
static const struct test_case cases[] = {
    {"driver.open_close", HEADER("DriverOpen, DriverClose, UseCount"), "open and close succeed; the use count is that of the opens", open_close, HOST_ONLY, LOADED},
    {"driver.open_twice", "observed: 1.15 to 1.20", "opens are counted; the last close ends the session", open_twice, HOST_ONLY, LOADED},
    {"driver.close_unopened", "observed: 1.11 to 1.20", "a close without an open is 5001", close_unopened, HOST_ONLY, LOADED},
    {"driver.close_again", "observed: 1.11 to 1.20", "a second close is 5001", close_again, HOST_ONLY, LOADED},
    {"driver.close_old_name", "documented: cufile.h, macro cuFileDriverClose", "both names of close are there and close", close_by_old_name, HOST_ONLY, LOADED},
    {"driver.reopen", HEADER("DriverOpen"), "a session can follow another", reopen, HOST_ONLY, LOADED},
    {"driver.implicit_open_handle", "documented: API reference, dynamic initialization", "registering a file opens the driver", implicit_open_by_handle, HOST_ONLY, LOADED},
    {"driver.implicit_open_buffer", "documented: API reference, dynamic initialization", "registering memory opens the driver", implicit_open_by_buffer, HOST_ONLY, LOADED},
    {"driver.count_dead_handle", HEADER("UseCount"), "deregistering a dead handle does not change the use count", count_after_dead_deregister, HOST_ONLY, LOADED},
    {"driver.open_threads", HEADER("UseCount"), "opens and closes of many threads balance", open_in_threads, HOST_ONLY, LOADED},
    {"driver.properties_null", HEADER("DriverGetProperties"), "NULL is 5022", properties_null, HOST_ONLY, LOADED},
    {"driver.properties_unopened", HEADER("DriverGetProperties"), "before open: the staged values, and nothing is opened", properties_unopened, HOST_ONLY, LOADED},
    {"driver.properties_values", "observed: 1.20 without a GPU", "the values of every field that programs read", properties_values, ANY_MEMORY, LOADED},
    {"driver.properties_features", "observed: 1.20 without a GPU", "batch, streams and parallel I/O are told as supported, peer to peer is not", properties_features, ANY_MEMORY, LOADED},
    {"driver.properties_bounds", HEADER("DriverGetProperties"), "every field is filled and nothing behind them", properties_whole, HOST_ONLY, LOADED},
    {"driver.poll_mode", HEADER("DriverSetPollMode"), "taken before open; after it nothing happens and the call succeeds", poll_mode, HOST_ONLY, LOADED},
    {"driver.max_direct", HEADER("DriverSetMaxDirectIOSize"), "taken before open", max_direct_size, HOST_ONLY, LOADED},
    {"driver.max_direct_open", HEADER("DriverSetMaxDirectIOSize"), "after open nothing happens and the call succeeds", max_direct_after_open, HOST_ONLY, LOADED},
    {"driver.max_direct_refused", HEADER("DriverSetMaxDirectIOSize"), "5022 unless a multiple of 64 KiB from 64 KiB to 16 MiB", max_direct_refused, HOST_ONLY, LOADED},
    {"driver.max_cache", HEADER("DriverSetMaxCacheSize"), "taken before open", max_cache_size, ANY_MEMORY, LOADED},
    {"driver.max_pinned", HEADER("DriverSetMaxPinnedMemSize"), "taken before open", max_pinned_size, ANY_MEMORY, LOADED},
    {"driver.version", HEADER("GetVersion"), "1000 times major and 10 times minor; NULL is 5022; nothing is opened", version, HOST_ONLY, LOADED},
    {"driver.bar_size", HEADER("GetBARSizeInKB"), "5001 before open; 5022 for NULL and for a GPU that is not there", bar_size, ANY_MEMORY, LOADED},
    {"driver.p2p_flags", HEADER("DriverSetP2PFlags"), "kept for each kind of file system, 0 at first", flags_set, ANY_MEMORY, LOADED},
    {"driver.p2p_flags_refused", HEADER("DriverSetP2PFlags"), "on x86-64 only P2PDMA can be asked for", flags_refused, ANY_MEMORY, LOADED},
    {"driver.p2p_flags_bad_get", HEADER("DriverGetP2PFlags"), "NULL and no such kind are 5022", flags_bad_get, ANY_MEMORY, LOADED},
    {"driver.topology_refused", HEADER("ExportPCIeTopology"), "NULL, an empty and a bad path are 5022", topology_refused, HOST_ONLY, UNLOADED},
    {"driver.topology_written", HEADER("ExportPCIeTopology"), "a file, or 5030 where there is no topology", topology_written, HOST_ONLY, UNLOADED},
};

struct table driver_cases(void) { return TABLE(cases); }
